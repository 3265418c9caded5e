"""An LSTM in NumPy, right as it stands, with a place for each fault that a wrong one can have.

It is no reference and no adapter's model: the oracle judges it like any other
implementation. `faults` are names; each line that a fault spoils asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spec.subject import Arrays, Config

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def sigmoid(z: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(z))
    found: np.ndarray = np.where(z >= 0, 1.0, small) / (1.0 + small)
    return found


def before(lengths: np.ndarray, T: int) -> np.ndarray:
    """(T, B), true at the times below a row's length."""
    times: np.ndarray = np.arange(T)[:, None]
    return np.asarray(times < lengths, bool)


class Step(NamedTuple):
    """What one step leaves for the way back."""

    t: int
    exists: np.ndarray
    x: np.ndarray
    h: np.ndarray
    c: np.ndarray
    gates: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    squashed: np.ndarray


class LSTM:
    """Operations as in spec/subject.py, with faults."""

    def __init__(self, *faults: str) -> None:
        self.faults = frozenset(faults)

    def has(self, fault: str) -> bool:
        return fault in self.faults

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        a = {name: np.asarray(value, "float64") for name, value in arrays.items()}
        with np.errstate(all="ignore"):
            return self.layer(config, a) if op.startswith("layer") else self.module(config, a)

    def exists(self, config: Config, T: int, B: int) -> np.ndarray:
        if "mask" in config and not self.has("mask ignored"):
            mask = np.asarray(config["mask"], bool)
            return before(mask.sum(0), T) if self.has("mask taken as lengths") else mask
        if config.get("lengths") is None or self.has("lengths ignored"):
            return np.ones((T, B), bool)
        lengths = np.asarray(config["lengths"])
        lengths = lengths + 1 if self.has("one step too many") else lengths
        lengths = np.sort(lengths)[::-1] if self.has("rows sorted and not put back") else lengths
        return before(np.maximum(lengths, 1) if self.has("empty rows take a step") else lengths, T)

    def layer(self, config: Config, a: Arrays) -> Arrays:
        exists = self.exists(config, *a["x"].shape[:2])
        out, steps = self.forward(a, exists, config.get("reverse", False))
        return out | (self.backward(a, steps, a["dy"], a["dh_n"], a["dc_n"]) if "dy" in a else {})

    def module(self, config: Config, a: Arrays) -> Arrays:
        suffixes = ("", "_reverse") if config["bidirectional"] else ("",)
        exists, x, runs, h_n, c_n = self.exists(config, *a["x"].shape[:2]), a["x"], [], [], []
        for k in range(config["num_layers"]):
            scale = self.mask(config, k, x.shape)
            x, ys, row = x * scale, [], []
            for d, suffix in enumerate(suffixes):
                part = self.part(a, k, suffix, k * len(suffixes) + d, config["num_layers"]) | {"x": x}
                out, steps = self.forward(part, exists, d == 1 and not self.has("both directions forward"))
                row.append((part, steps))
                ys.append(out["y"])
                h_n.append(out["h_n"])
                c_n.append(out["c_n"])
            runs.append((row, scale))
            x = np.concatenate(ys[::-1] if self.has("directions swapped in y") else ys, axis=2)
            x = x * self.mask(config, k + 1, x.shape) if self.has("dropout on the last output") else x
        found = {"y": x, "h_n": np.stack(h_n), "c_n": np.stack(c_n)}
        return found | (self.module_backward(a, runs, suffixes) if "dy" in a else {})

    def part(self, a: Arrays, k: int, suffix: str, at: int, layers: int) -> Arrays:
        """One layer and direction of a module."""
        shared = "" if self.has("directions share parameters") else suffix
        if self.has("states by direction first"):
            per_layer = len(a["h_0"]) // layers
            at = at % per_layer * layers + at // per_layer
        at = 0 if self.has("every layer starts from the first state") else at
        found = {n: a[f"{n}_l{k}{shared}"] for n in PARAMETERS if f"{n}_l{k}{shared}" in a}
        return found | {"h_0": a["h_0"][at], "c_0": a["c_0"][at]}

    def mask(self, config: Config, stream: int, shape: tuple[int, ...]) -> np.ndarray:
        """Dropout before layer `stream`."""
        dropout = config.get("dropout")
        if not dropout or self.has("dropout ignored") or (stream == 0 and not self.has("dropout on x")):
            return np.ones(())
        p = float(dropout["p"])
        key = np.asarray([int(k) for k in dropout["key"]], np.uint64)
        key = key[::-1] if self.has("dropout key swapped") else key
        counter = np.asarray([0, 0, 0 if self.has("dropout stream ignored") else stream, 0], np.uint64)
        draws = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(shape)
        if self.has("one dropout mask for all times"):
            draws = np.broadcast_to(draws[:1], shape)
        keep = draws < p if self.has("dropout keeps what it should drop") else draws >= p
        return keep * (1.0 if self.has("dropout not scaled") else 1 / (1 - p))

    def forward(self, a: Arrays, exists: np.ndarray, reverse: bool) -> tuple[Arrays, list[Step]]:
        h, c, T = a["h_0"], a["c_0"], len(a["x"])
        y, steps = [np.zeros_like(h)] * T, []
        reverse = (reverse and not self.has("reverse ignored")) or self.has("always reverse")
        for t in reversed(range(T)) if reverse else range(T):
            now = exists[t][:, None]
            h_new, c_new, step = self.step(a, t, now, h, c)
            steps.append(step)
            if self.has("masked by multiplication"):
                h_new, c_new = now * h_new + (1.0 - now) * h, now * c_new + (1.0 - now) * c
            through = self.has("padding walked through") or self.has("masked by multiplication")
            walked = np.ones_like(now) if through else now
            h = np.where(walked, h_new, np.zeros_like(h) if self.has("holes reset the state") else h)
            c = np.where(walked, c_new, np.zeros_like(c) if self.has("holes reset the state") else c)
            if self.has("holes hold h alone"):
                c = np.where(now, c, c_new)
            y[t] = np.where(now, h, np.full_like(h, 1.0) if self.has("padding filled with ones") else 0.0)
            y[t] = h if self.has("padding not zeroed") else y[t]
        y = y[::-1] if reverse and self.has("y in walking order") else y
        h = np.where(exists.any(axis=0, keepdims=True).T, h, 0.0) if self.has("empty rows end at zero") else h
        h_n = y[-1] if self.has("h_n is the last y") and y else h
        return {"y": np.stack(y) if y else np.zeros((0, *h.shape)), "h_n": h_n, "c_n": c}, steps

    def step(
        self, a: Arrays, t: int, now: np.ndarray, h: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Step]:
        x = a["x"][t]
        z = x @ a["weight_ih"].T + h @ a["weight_hh"].T
        if "bias_ih" in a:
            z = z + a["bias_ih"] + a["bias_hh"]
        z = np.clip(z, -3, 3) if self.has("pre-activations clipped at 3") else z
        zi, zf, zg, zo = np.split(z, 4, axis=1)
        zf = zf + 1.0 if self.has("forget bias added") else zf
        gate = self.gate
        i, f, o = gate(zi), gate(zf), gate(zo)
        g = sigmoid(zg) if self.has("sigmoid for g") else np.tanh(zg)
        g = np.maximum(zg, 0) if self.has("relu for g") else g
        f = 1.0 - i if self.has("f coupled to i") else f
        c_new = f * c + i * g
        c_new = np.clip(c_new, -0.5, 0.5) if self.has("c clipped at 0.5") else c_new
        c_new = i * c + f * g if self.has("i and f trade places in c") else c_new
        squashed = c_new if self.has("tanh(c) omitted") else np.tanh(c_new)
        squashed = np.tanh(c) if self.has("h from the old c") else squashed
        m = o * squashed
        if "weight_hr" in a:
            m = (
                m @ a["weight_hr"].T
                if not self.has("projection before the output gate")
                else self.early(a, o, squashed)
            )
        if self.has("o sees the new c"):
            m = gate(zo + c_new) * squashed if "weight_hr" not in a else m
        kept = c_new if not self.has("state carries tanh(c)") else squashed
        return m, kept, Step(t, now, x, h, c, (i, f, g, o), squashed)

    def early(self, a: Arrays, o: np.ndarray, squashed: np.ndarray) -> np.ndarray:
        """The projection of tanh(c), with as many output gates as it has units."""
        projected: np.ndarray = o[:, : len(a["weight_hr"])] * (squashed @ a["weight_hr"].T)
        return projected

    def gate(self, z: np.ndarray) -> np.ndarray:
        if self.has("hard sigmoid"):
            return np.clip(0.2 * z + 0.5, 0, 1)
        return np.tanh(z) if self.has("tanh for the gates") else sigmoid(z)

    def backward(
        self, a: Arrays, steps: Sequence[Step], dy: np.ndarray, dh: np.ndarray, dc: np.ndarray
    ) -> Arrays:
        """Gradients by every input; each path can be cut."""
        grads = {f"d{n}": np.zeros_like(a[n]) for n in (*PARAMETERS, "x") if n in a}
        dh = np.zeros_like(dh) if self.has("dh_n ignored") else dh
        dc = np.zeros_like(dc) if self.has("dc_n ignored") else dc
        for s in reversed(steps):
            i, f, g, o = s.gates
            ones = self.has("dy of the last step only") and s.t != len(dy) - 1
            dm = dh + (0.0 if ones else dy[s.t] * s.exists)
            grown = o * s.squashed
            if "weight_hr" in a:
                grads["dweight_hr"] += (dm * s.exists).T @ np.where(s.exists, grown, 0)
                dm = dm @ a["weight_hr"]
            slope = 1.0 if self.has("slope of tanh(c) omitted") else 1 - s.squashed**2
            back = dc + (0.0 if self.has("path from h to c cut") else dm * o * slope)
            dz = np.concatenate(
                [
                    back * g * i * (1 - i),
                    back * s.c * f * (1 - f),
                    back * i * (1 - g * g),
                    dm * s.squashed * o * (1 - o),
                ],
                1,
            )
            for k, name in enumerate("ifgo"):
                if self.has(f"gradient of {name} cut"):
                    dz[:, k * i.shape[1] : (k + 1) * i.shape[1]] = 0
            dz = np.where(s.exists, dz, 0)
            grads["dx"][s.t] = np.where(s.exists, dz @ a["weight_ih"], 0)
            if not (self.has("input weights see the last step only") and s is not steps[-1]):
                grads["dweight_ih"] += dz.T @ np.where(s.exists, s.x, 0)
            grads["dweight_hh"] += dz.T @ (
                grown if self.has("dweight_hh with the new h") and "weight_hr" not in a else s.h
            )
            if "bias_ih" in a:
                grads["dbias_ih"] += dz.sum(0)
                grads["dbias_hh"] += 0 if self.has("bias_hh not trained") else dz.sum(0)
            through = 0.0 if self.has("path through h cut") else dz @ a["weight_hh"]
            dh = np.where(s.exists, through, dh)
            dc = np.where(s.exists, 0.0 if self.has("path through c cut") else back * f, dc)
            if self.has("gradients flow through the padding"):
                dh, dc = np.where(s.exists, dh, 0), np.where(s.exists, dc, 0)
        return grads | {"dh_0": dh, "dc_0": dc}

    def module_backward(
        self,
        a: Arrays,
        runs: Sequence[tuple[list[tuple[Arrays, list[Step]]], np.ndarray]],
        suffixes: Sequence[str],
    ) -> Arrays:
        grads: Arrays = {"dh_0": np.zeros_like(a["h_0"]), "dc_0": np.zeros_like(a["c_0"])}
        dx = a["dy"]
        for k in reversed(range(len(runs))):
            row, scale = runs[k]
            parts = np.split(dx, len(suffixes), axis=2)
            back = []
            for d, (suffix, (part, steps), dy) in enumerate(zip(suffixes, row, parts, strict=True)):
                at = k * len(suffixes) + d
                found = self.backward(part, steps, dy, a["dh_n"][at], a["dc_n"][at])
                grads["dh_0"][at], grads["dc_0"][at] = found.pop("dh_0"), found.pop("dc_0")
                back.append(found.pop("dx"))
                grads |= {f"{name}_l{k}{suffix}": value for name, value in found.items()}
            dx = back[0] if self.has("dx of one direction only") else np.sum(back, axis=0)
            dx = dx if self.has("dropout not on the way back") else dx * scale
        return grads | {"dx": dx}
