"""A GRU in NumPy with derivatives by hand, and a place for each fault that a wrong one can have."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np

from spec.subject import Arrays, Config
from spec.wrong import LSTM
from spec.wrong_cell import Array, Exact, sigmoid

FAULTS = (
    *(f"gates {''.join(order)}" for order in permutations("rzn") if order != ("r", "z", "n")),
    "z inverted",
    "reset gate at the other place",
    "reset gate ignored",
    "reset gate does not scale b_hn",
    "b_hn added to both sums",
    "tanh omitted",
    "sigmoid for n",
    "h' from the new n alone",
    "bias_hh dropped",
    "bias_ih dropped",
    "h_0 ignored",
    "lengths ignored",
    "mask taken as lengths",
    "both directions forward",
    "directions swapped in y",
    "h_n is the last y",
    "padding not zeroed",
    "every layer starts from the first state",
    "weight_hh transposed",
    "dy of the last step only",
    "dh_n ignored",
    "path through z cut",
    "path through r cut",
    "path through n cut",
    "path through h cut",
    "bias_hh trained as bias_ih",
    "dx of one direction only",
)


STEPS = LSTM()
"""Which steps exist and where segments begin is the same for every cell."""


class GRU:
    """The module of `spec/gru.py`, with faults."""

    def __init__(self, *faults: str, arithmetic: Exact | None = None) -> None:
        self.faults = frozenset(faults)
        self.arithmetic = arithmetic or Exact()

    def has(self, fault: str) -> bool:
        return fault in self.faults

    def call(self, _op: str, config: Config, arrays: Arrays) -> Arrays:
        a = {name: np.asarray(v, "float64") for name, v in arrays.items()}
        D = 1 + bool(config["bidirectional"])
        x, runs, h_n, exists = a["x"], [], [], self.exists(config, *a["x"].shape[:2])
        reset = STEPS.reset(config, exists)
        for k in range(config["num_layers"]):
            ends = [
                self.forward(self.part(a, k, d, D), x, exists, d, config["reset_after"], reset)
                for d in range(D)
            ]
            ys = [end.y for end in ends]
            x = np.concatenate(ys[::-1] if self.has("directions swapped in y") else ys, -1)
            h_n += [end.h_n for end in ends]
            runs.append(ends)
        found = {"y": x, "h_n": np.stack(h_n)}
        return found | self.backward(a, runs, exists) if "dy" in a else found

    def exists(self, config: Config, T: int, B: int) -> Array:
        found = STEPS.exists(config, T, B)
        if config.get("mask"):
            return np.arange(T)[:, None] < found.sum(0) if self.has("mask taken as lengths") else found
        return np.ones_like(found) if self.has("lengths ignored") else found

    def part(self, a: Arrays, k: int, d: int, D: int) -> SimpleNamespace:
        """One layer and direction; absent biases are zero."""
        suffix = f"_l{k}{'_reverse' * d}"
        H = a[f"weight_hh{suffix}"].shape[1]
        p = {
            n: a.get(f"{n}{suffix}", np.zeros(3 * H))
            for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        for name in ("bias_ih", "bias_hh"):
            p[name] = np.zeros_like(p[name]) if self.has(f"{name} dropped") else p[name]
        for order in permutations("rzn"):
            if self.has(f"gates {''.join(order)}"):
                p = {n: np.concatenate([np.split(v, 3)["rzn".index(g)] for g in order]) for n, v in p.items()}
        if self.has("weight_hh transposed"):
            p["weight_hh"] = np.concatenate([block.T for block in np.split(p["weight_hh"], 3)])
        at = 0 if self.has("every layer starts from the first state") else k * D + d
        h_0 = np.zeros_like(a["h_0"][at]) if self.has("h_0 ignored") else a["h_0"][at]
        return SimpleNamespace(**p, h_0=h_0, H=H, suffix=suffix, bias="bias_ih" + suffix in a, at=at)

    def forward(
        self, p: Any, x: Array, exists: Array, d: int, reset_after: bool, reset: Array | None
    ) -> SimpleNamespace:
        h, steps = p.h_0, []
        after = reset_after != self.has("reset gate at the other place")
        y: list[Array] = [np.zeros_like(h)] * len(x)
        reverse = d == 1 and not self.has("both directions forward")
        begins = STEPS.begins(exists, reset, reverse)
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            h = np.where(begins[t], 0.0, h)
            s = self.step(p, x[t], h, after)
            s.t, s.begins = t, begins[t]
            now = exists[t][:, None]
            h = np.where(now, s.new, h)
            y[t] = h if self.has("padding not zeroed") else np.where(now, h, 0)
            steps.append(s)
        h_n = y[-1] if self.has("h_n is the last y") and y else h
        stacked = np.stack(np.broadcast_arrays(*y)) if y else np.zeros((0, *h.shape))
        return SimpleNamespace(p=p, y=stacked, h_n=h_n, steps=steps, x=x)

    def step(self, p: Any, x: Array, h: Array, after: bool) -> SimpleNamespace:
        A, H = self.arithmetic, p.H
        s = SimpleNamespace(x=x, h=h, after=after)
        of_x = A.rounded(A.product(x, p.weight_ih.T) + p.bias_ih)
        of_h = A.rounded(A.product(h, p.weight_hh.T) + p.bias_hh)
        s.r, s.z = (
            A.curved(sigmoid(A.rounded(of_x[..., k * H : (k + 1) * H] + of_h[..., k * H : (k + 1) * H])))
            for k in (0, 1)
        )
        if self.has("reset gate ignored"):
            s.r = np.ones_like(s.r)
        b = p.bias_hh[2 * H :]
        if after:
            s.last = of_h[..., 2 * H :]
            n = s.r * (s.last - b) + b if self.has("reset gate does not scale b_hn") else s.r * s.last
            n = n + b if self.has("b_hn added to both sums") else n
        else:
            s.scaled = A.rounded(s.r * h)
            n = A.rounded(A.product(s.scaled, p.weight_hh[2 * H :].T) + b)
        n = A.rounded(of_x[..., 2 * H :] + A.rounded(n), 2)
        s.n = n if self.has("tanh omitted") else A.curved(np.tanh(n))
        s.n = sigmoid(n) if self.has("sigmoid for n") else s.n
        z = 1 - s.z if self.has("z inverted") else s.z
        s.new = A.rounded((1 - z) * s.n + z * h, 3)
        s.new = s.n if self.has("h' from the new n alone") else s.new
        return s

    def backward(self, a: Arrays, runs: list[list[SimpleNamespace]], exists: Array) -> Arrays:
        found: Arrays = {}
        starts: dict[int, Array] = {}
        dy = a["dy"]
        for ends in reversed(runs):
            dxs = []
            for d, part in enumerate(np.split(dy, len(ends), -1)):
                end = ends[d]
                dx, dh, grads = self.directed(end, part, a["dh_n"][end.p.at], exists)
                dxs.append(dx)
                starts[end.p.at] = dh
                kept = {n: v for n, v in grads.items() if end.p.bias or not n.startswith("dbias")}
                found |= {f"{n}{end.p.suffix}": v for n, v in kept.items()}
            dy = dxs[0] if self.has("dx of one direction only") else np.sum(dxs, axis=0)
        return found | {"dx": dy, "dh_0": np.stack([starts[k] for k in sorted(starts)])}

    def directed(
        self, end: SimpleNamespace, dy: Array, dh: Array, exists: Array
    ) -> tuple[Array, Array, Arrays]:
        """One layer and direction: gradients with respect to x, h_0 and the parameters."""
        A, p, H = self.arithmetic, end.p, end.p.H
        dh = np.zeros_like(dh) if self.has("dh_n ignored") else dh
        grads: dict[str, Any] = dict.fromkeys(("dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"), 0.0)
        dx: list[Array] = [np.zeros(end.x.shape[1:])] * len(end.x)
        for s in reversed(end.steps):
            now = exists[s.t][:, None]
            late = self.has("dy of the last step only") and s.t != len(dy) - 1
            into = dh if late else dh + np.where(now, dy[s.t], 0)
            of_x, of_h, back, seen = self.step_backward(p, s, into)
            dx[s.t] = np.where(now, A.product(of_x, p.weight_ih), 0)
            rows = {"dweight_ih": (of_x, s.x), "dbias_ih": of_x, "dbias_hh": of_h}
            rows["dbias_hh"] = of_x if self.has("bias_hh trained as bias_ih") else of_h
            for name, row in rows.items():
                grads[name] = grads[name] + self.added(row, now)
            first = self.added((of_h[..., : 2 * H], s.h), now)
            last = self.added((of_h[..., 2 * H :], seen), now)
            grads["dweight_hh"] = grads["dweight_hh"] + np.concatenate([first, last], -2)
            dh = np.where(now, np.where(s.begins, 0.0, back), dh)
        if not end.steps:
            grads = {
                f"d{n}": np.zeros_like(getattr(p, n))
                for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
        return np.stack(np.broadcast_arrays(*dx)) if dx else np.zeros_like(end.x), dh, grads

    def step_backward(self, p: Any, s: SimpleNamespace, dh: Array) -> tuple[Array, Array, Array, Array]:
        """Gradients with respect to the sums of x and of h, to h, and what the last rows of W_hh multiply."""
        A, H = self.arithmetic, p.H
        dn = (1 - s.z) * dh * (1 - s.n**2)
        dn = np.zeros_like(dn) if self.has("path through n cut") else dn
        dz = dh * (s.h - s.n) * s.z * (1 - s.z)
        dz = np.zeros_like(dz) if self.has("path through z cut") else dz
        W_n = p.weight_hh[2 * H :]
        if s.after:
            dlast, dr, seen = dn * s.r, dn * s.last, s.h
            direct = A.product(dlast, W_n)
        else:
            dlast, seen = dn, s.scaled
            dscaled = A.product(dn, W_n)
            dr, direct = dscaled * s.h, dscaled * s.r
        dr = np.zeros_like(dr) if self.has("path through r cut") else dr * s.r * (1 - s.r)
        both = A.rounded(np.concatenate([dr, dz], -1), 6)
        back = s.z * dh + A.product(both, p.weight_hh[: 2 * H]) + direct
        back = s.z * dh if self.has("path through h cut") else back
        of_x, of_h = (A.rounded(np.concatenate([both, v], -1), 4) for v in (dn, dlast))
        return of_x, of_h, A.rounded(back, 3), seen

    def added(self, row: Any, now: Array) -> Array:
        """What one step adds to a parameter's gradient; what does not exist adds nothing."""
        if not isinstance(row, tuple):
            return np.asarray(np.where(now, row, 0).sum(-2))
        left, right = (np.where(now, v, 0) for v in row)
        return self.arithmetic.product(np.swapaxes(left, -1, -2), right)
