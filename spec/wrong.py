"""An LSTM in NumPy, correct by default, with a place for each fault that a wrong one can have.

It is no reference and no adapter's model: the oracle judges it like any other
implementation. `faults` are names; each line that a fault spoils asks for it.
This file has time, layers and directions; a single step is in wrong_cell.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from spec.subject import Arrays, Config
from spec.wrong_cell import Cell, Exact, Faulty, Key

PARAMETERS = (
    *("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"),
    *("weight_ch", "gain_ih", "gain_hh", "gain_c", "bias_c"),
)


def before(lengths: np.ndarray, T: int) -> np.ndarray:
    """(T, B), true at the times below a row's length."""
    times: np.ndarray = np.arange(T)[:, None]
    return np.asarray(times < lengths, bool)


def transposed(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, -1, -2)


class Run(NamedTuple):
    """One layer and direction, and what its steps keep for the backward pass."""

    cell: Cell
    a: Arrays
    exists: np.ndarray
    steps: list[SimpleNamespace]
    weight_mask: np.ndarray | None = None


class LSTM(Faulty):
    """Operations as in spec/subject.py, with faults."""

    def __init__(self, *faults: str, arithmetic: Exact | None = None) -> None:
        super().__init__(frozenset(faults), arithmetic or Exact())

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        unused = () if op.endswith("_vjp") else ("dy", "dh_n", "dc_n")
        a = {name: np.asarray(value, "float64") for name, value in arrays.items() if name not in unused}
        with np.errstate(all="ignore"):
            return self.layer(config, a) if op.startswith("layer") else self.module(config, a)

    def at(self, _layer: int, _direction: int) -> LSTM:
        """The LSTM that runs one layer and direction, because a fault can have a place."""
        return self

    def key(self, config: Config) -> Key | None:
        given = config.get("noise") or config.get("dropout")
        return (int(given["key"][0]), int(given["key"][1])) if given else None

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

    def reset(self, config: Config, exists: np.ndarray) -> np.ndarray | None:
        """(T, B), true where a reset is."""
        if config.get("reset") is None or self.has("resets ignored"):
            return None
        found = np.asarray(config["reset"], bool)
        never = np.zeros_like(found[:1])
        found = np.concatenate([never, found[:-1]]) if self.has("resets a step late") else found
        found = np.concatenate([found[1:], never]) if self.has("resets a step early") else found
        found = found & exists if self.has("resets in holes lost") else found
        found = np.concatenate([never, found[1:]]) if self.has("resets at the start lost") else found
        return found.any(1, keepdims=True) | found if self.has("resets of any row in all rows") else found

    def layer(self, config: Config, a: Arrays) -> Arrays:
        one = self.at(0, int(bool(config.get("reverse"))))
        exists = one.exists(config, *a["x"].shape[:2])
        cell = Cell(one.faults, one.arithmetic, a, one.variant(config, 0), one.key(config), 0)
        reset = one.reset(config, exists)
        out, steps = one.forward(cell, a, exists, config.get("reverse", False), reset)
        if "dy" not in a:
            return out
        return out | one.backward(Run(cell, a, exists, steps), a["dy"], a["dh_n"], a["dc_n"])

    def module(self, config: Config, a: Arrays) -> Arrays:
        suffixes = ("", "_reverse") if config["bidirectional"] else ("",)
        x, layers = a["x"], []
        ys: list[np.ndarray] = []
        h_n: list[np.ndarray] = []
        c_n: list[np.ndarray] = []
        for k in range(config["num_layers"]):
            scale = self.masks(config, k, x.shape)
            x, ys, runs = x * scale, [], []
            for d, suffix in enumerate(suffixes):
                stream = (
                    d * config["num_layers"] + k
                    if self.has("streams by direction first")
                    else k * len(suffixes) + d
                )
                one = self.at(k, d)
                exists = one.exists(config, *a["x"].shape[:2])
                part = one.part(a, k, suffix, k * len(suffixes) + d, config["num_layers"]) | {"x": x}
                if d and one.has("reverse starts from the end of forward"):
                    part |= {"h_0": h_n[-1], "c_0": c_n[-1]}
                weight_mask = one.weight_mask(config, part, stream)
                if weight_mask is not None:
                    name = "weight_ih" if one.has("weight dropout on weight_ih") else "weight_hh"
                    part[name] = part[name] * weight_mask
                cell = Cell(
                    *(one.faults, one.arithmetic, part),
                    *(one.variant(config, d), one.key(config), stream),
                )
                out, steps = one.forward(
                    *(cell, part, exists, d == 1 and not one.has("both directions forward")),
                    None if k and one.has("resets in the first layer alone") else one.reset(config, exists),
                )
                runs.append(Run(cell, part, exists, steps, weight_mask))
                ys.append(out["y"])
                h_n.append(out["h_n"])
                c_n.append(out["c_n"])
            last = k == config["num_layers"] - 1
            layers.append((runs, scale, ys))
            x = self.merged(config.get("merge", "concat"), ys, last)
            x = x * self.masks(config, k + 1, x.shape) if self.has("dropout on the last output") else x
        found = {"y": x, "h_n": np.stack(h_n), "c_n": np.stack(c_n)}
        return found | (self.module_backward(config, a, layers) if "dy" in a else {})

    def merged(self, how: str, ys: list[np.ndarray], last: bool) -> np.ndarray:
        """What the directions of a layer make together."""
        ys = ys[::-1] if self.has("directions swapped in y") else ys
        for wrong, fault in (
            ("sum", "mean merged as sum"),
            ("mean", "sum merged as mean"),
            ("sum", "product merged as sum"),
        ):
            how = wrong if self.has(fault) and fault.startswith(how) else how
        if how == "none" and last:
            return np.concatenate(ys, -1) if self.has("merge none joins") else np.stack(ys)
        if how in ("concat", "none"):
            return np.concatenate(ys, -1)
        merged = ys[0] * ys[-1] if how == "product" else ys[0] + ys[-1]
        return np.asarray(merged / 2 if how == "mean" else merged)

    def part(self, a: Arrays, k: int, suffix: str, at: int, layers: int) -> Arrays:
        """One layer and direction of a module."""
        shared = "" if self.has("directions share parameters") else suffix
        if self.has("states by direction first"):
            per_layer = len(a["h_0"]) // layers
            at = at % per_layer * layers + at // per_layer
        at = 0 if self.has("every layer starts from the first state") else at
        found = {n: a[f"{n}_l{k}{shared}"] for n in PARAMETERS if f"{n}_l{k}{shared}" in a}
        return found | {"h_0": a["h_0"][at], "c_0": a["c_0"][at]}

    def masks(self, config: Config, k: int, shape: tuple[int, ...]) -> np.ndarray:
        """Dropout of the input of layer `k`, and input dropout."""
        key, (T, *samples, B, size) = self.key(config), shape
        found = np.ones(())
        once = self.dropped("input dropout", key, 4, k, float(config.get("input_dropout", 0)), (B, size))
        if once is not None and not (k == 0 and self.has("input dropout not on x")):
            if self.has("input dropout drawn at every step"):
                p = float(config["input_dropout"])
                assert key is not None
                once = (self.draw(key, 4, k, 0, (T, *[1] * len(samples), B, size)) >= p) / (1 - p)
            found = found * once
        dropout = config.get("dropout")
        if not dropout or (k == 0 and not self.has("dropout on x")):
            return found
        words = self.key(config | {"noise": dropout})
        between = self.dropped("dropout", words, 0, k, float(dropout["p"]), (T, B, size))
        if between is None:
            return found
        if self.has("one dropout mask for all times"):
            between = np.broadcast_to(between[:1], between.shape)
        return np.asarray(found * between.reshape(T, *[1] * len(samples), B, size))

    def weight_mask(self, config: Config, p: Arrays, stream: int) -> np.ndarray | None:
        on = "weight_ih" if self.has("weight dropout on weight_ih") else "weight_hh"
        rate, shape = float(config.get("weight_dropout", 0)), p[on].shape
        shape = shape[::-1] if self.has("weight dropout drawn by columns") else shape
        found = self.dropped("weight dropout", self.key(config), 5, stream, rate, shape)
        return found.T if found is not None and self.has("weight dropout drawn by columns") else found

    def forward(
        self, cell: Cell, a: Arrays, exists: np.ndarray, reverse: bool, reset: np.ndarray | None = None
    ) -> tuple[Arrays, list[SimpleNamespace]]:
        h, c = (np.zeros_like(a[n]) if self.has(f"{n} ignored") else a[n] for n in ("h_0", "c_0"))
        T = len(a["x"])
        y, steps = [np.zeros_like(h)] * T, []
        reverse = (reverse and not self.has("reverse ignored")) or self.has("always reverse")
        begins = self.begins(exists, reset, reverse)
        for n, t in enumerate(reversed(range(T)) if reverse else range(T)):
            now = exists[t][:, None]
            h = h if self.has("resets of c alone") else np.where(begins[t], 0.0, h)
            c = c if self.has("resets of h alone") else np.where(begins[t], 0.0, c)
            h_new, c_new, step = cell.forward(n if self.has("noise in walking order") else t, a["x"][t], h, c)
            step.t, step.begins = t, begins[t]
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
            y[t] = np.where(now, step.h_new, 0.0) if self.has("y before zoneout") else y[t]
            y[t] = h if self.has("padding not zeroed") else y[t]
        y = y[::-1] if reverse and self.has("y in walking order") else y
        h = np.where(exists.any(axis=0, keepdims=True).T, h, 0.0) if self.has("empty rows end at zero") else h
        h_n = y[-1] if self.has("h_n is the last y") and y else h
        if y:
            y[0] = np.broadcast_to(y[0], y[-1].shape)
        return {
            "y": np.stack(np.broadcast_arrays(*y)) if y else np.zeros((0, *h.shape)),
            "h_n": h_n,
            "c_n": c,
        }, steps

    def begins(self, exists: np.ndarray, reset: np.ndarray | None, reverse: bool) -> np.ndarray:
        """(T, B, 1), true where a direction starts a step from zeros."""
        found = np.zeros_like(exists)
        if reset is None or (reverse and self.has("resets not in a backward direction")):
            return found[..., None]
        if reverse and self.has("resets before steps of the walk"):
            return reset[..., None]
        count = np.cumsum(reset, 0)
        last = np.full(exists.shape[1], -1 if reverse else 0)
        for t in reversed(range(len(exists))) if reverse else range(len(exists)):
            found[t] = exists[t] & (last > count[t] if reverse else last < count[t])
            last = np.where(exists[t], count[t], last)
        if self.has("resets after the last step"):
            found |= reset & ~exists
        return found[..., None]

    def backward(self, run: Run, dy: np.ndarray, dh: np.ndarray, dc: np.ndarray) -> Arrays:
        """Return the gradients with respect to every input; each path can be cut."""
        cell, a, exists, steps, weight_mask = run
        grads: dict[str, Any] = {f"d{n}": np.zeros_like(a[n]) for n in PARAMETERS if n in a}
        dx: list[np.ndarray] = [np.zeros(a["x"].shape[1:])] * len(a["x"])
        dh = np.zeros_like(dh) if self.has("dh_n ignored") else dh
        dc = np.zeros_like(dc) if self.has("dc_n ignored") else dc
        for s in reversed(steps):
            now = exists[s.t][:, None]
            ones = self.has("dy of the last step only") and s.t != len(dy) - 1
            rows, dh_old, dc_old = cell.backward(s, dh + (0.0 if ones else dy[s.t] * now), dc)
            dx[s.t] = np.where(now, rows.pop("x"), 0)
            for name, row in rows.items():
                late = name in ("weight_ih", "weight_ch") and s is not steps[-1]
                if not (late and self.has(f"{name} sees the last step only")):
                    grads[f"d{name}"] = grads[f"d{name}"] + self.added(row, now)
            if not self.has("gradients cross resets"):
                dh_old, dc_old = (np.where(s.begins, 0.0, v) for v in (dh_old, dc_old))
            held = dh + dy[s.t] if self.has("dy of the padding counted") else dh
            dh, dc = np.where(now, dh_old, held), np.where(now, dc_old, dc)
            if self.has("gradients flow through the padding"):
                dh, dc = np.where(now, dh, 0), np.where(now, dc, 0)
        if weight_mask is not None and not self.has("weight dropout not in the backward pass"):
            grads["dweight_hh"] = grads["dweight_hh"] * weight_mask
        return grads | {
            "dx": np.stack(np.broadcast_arrays(*dx)) if dx else np.zeros_like(a["x"]),
            "dh_0": dh,
            "dc_0": dc,
        }

    def added(self, row: Any, now: np.ndarray) -> np.ndarray:
        """What one step adds to a parameter's gradient, rows that do not exist left out."""
        if not isinstance(row, tuple):
            return np.asarray(np.where(now, row, 0).sum(-2))
        left, right = (np.where(now, v, 0) for v in row)
        return self.arithmetic.product(transposed(left), right)

    def module_backward(
        self, config: Config, a: Arrays, layers: Sequence[tuple[list[Run], np.ndarray, list[np.ndarray]]]
    ) -> Arrays:
        grads: Arrays = {}
        starts: dict[str, list[np.ndarray]] = {"dh_0": [], "dc_0": []}
        dx = a["dy"]
        for k in reversed(range(len(layers))):
            runs, scale, ys = layers[k]
            back: list[np.ndarray] = []
            parts = self.unmerged(config.get("merge", "concat"), dx, ys, k == len(layers) - 1)
            for d in reversed(range(len(runs))):
                at = k * len(runs) + d
                found = self.at(k, d).backward(runs[d], parts[d], a["dh_n"][at], a["dc_n"][at])
                for name, column in starts.items():
                    column.insert(0, found.pop(name))
                back.insert(0, found.pop("dx"))
                suffix = "_reverse" * d
                grads |= {f"{name}_l{k}{suffix}": value for name, value in found.items()}
            dx = back[0] if self.has("dx of one direction only") else np.sum(back, axis=0)
            dx = dx if self.has("dropout not in the backward pass") else dx * scale
        return grads | {"dx": dx} | {name: np.stack(column) for name, column in starts.items()}

    def unmerged(self, how: str, dy: np.ndarray, ys: list[np.ndarray], last: bool) -> list[np.ndarray]:
        """The gradient of each direction's output."""
        if how == "none" and last:
            return [*dy]
        if how in ("concat", "none"):
            return np.split(dy, len(ys), axis=-1)
        if how == "product" and not self.has("product merged as sum in the backward pass"):
            dy = dy.reshape(len(dy), *[1] * (ys[0].ndim - dy.ndim), *dy.shape[1:])
            return [dy * ys[1], dy * ys[0]]
        halved = how == "mean" and not self.has("mean not halved in the backward pass")
        return [dy / 2 if halved else dy] * 2
