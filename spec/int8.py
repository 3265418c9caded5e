"""Define the profile int8, an LSTM whose products are of 8-bit integers, and calls of it from seeds.

The clauses XPL-INT of SPEC.md in code. Integers are made in float32 as the clauses say, sums of
them are exact, and all else is in float64. A method is what a mutant replaces.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from spec.records import Record
from spec.sized import Sized, drawn, module
from spec.subject import Arrays

Array = np.ndarray
INPUTS = {"": 2**23 - 1, "int8": 127}
"""The largest integer of an input, by what `activations` is."""


class Stored:
    """LSTM with 8-bit weights."""

    def scales(self, w: Array) -> Array:
        """XPL-INT-001: return the factors of each row's integers."""
        largest = np.abs(w).max(1, keepdims=True)
        return np.asarray(np.maximum(largest / np.float32(127), np.finfo("float32").tiny))

    def integers(self, w: Array, scales: Array) -> Array:
        return np.asarray(np.rint(w / scales).astype("int64"))

    def magnitudes(self, a: Array) -> Array:
        """XPL-INT-002: return the largest magnitude of each row."""
        return np.asarray(np.maximum(np.abs(a).max(-1, keepdims=True, initial=0), np.float32(2.0**-100)))

    def entered(self, a: Array, limit: int) -> tuple[Array, Array]:
        """Return the integers of rows, and their factors."""
        a = a.astype("float32")
        finite = np.isfinite(a).all(-1, keepdims=True)
        a = np.where(finite, a, np.float32(0))
        magnitudes = self.magnitudes(a)
        n = np.minimum(np.rint(a * (np.float32(limit) / magnitudes)), limit).astype("int64")
        return n, np.where(finite, magnitudes.astype("float64") / limit, np.nan)

    def product(self, a: Array, w: Array, limit: int) -> Array:
        """XPL-INT-003."""
        scales = self.scales(w)
        n, by = self.entered(a, limit)
        return np.asarray((n @ self.integers(w, scales).T) * scales[:, 0].astype("float64") * by)

    def layer(self, p: Arrays, a: Arrays, exists: Array, limit: int, reverse: bool) -> Arrays:
        h, c = (a[n].astype("float64") for n in ("h_0", "c_0"))
        y = np.zeros((len(exists), *h.shape))
        for t in reversed(range(len(y))) if reverse else range(len(y)):
            z = self.product(a["x"][t], p["weight_ih"], limit) + self.product(h, p["weight_hh"], limit)
            z = z + p["bias_ih"].astype("float64") + p["bias_hh"] if "bias_ih" in p else z
            i, f, g, o = np.split(z, 4, -1)
            i, f, o = (1 / (1 + np.exp(-v)) for v in (i, f, o))
            new = f * c + i * np.tanh(g)
            m = o * np.tanh(new)
            m = self.product(m, p["weight_hr"], limit) if "weight_hr" in p else m
            now = exists[t][:, None]
            h, c = np.where(now, m, h), np.where(now, new, c)
            y[t] = np.where(now, h, 0)
        return {"y": y, "h_n": h, "c_n": c}

    def call(self, config: Record, a: Arrays) -> Arrays:
        """Run a module call; layers pass float32 numbers to the next layer."""
        T, B = a["x"].shape[:2]
        lengths = config["lengths"] if config.get("lengths") is not None else [T] * B
        exists = np.arange(T)[:, None] < np.asarray(lengths)
        limit, x = INPUTS[config.get("activations", "")], a["x"]
        ends: list[Arrays] = []
        for k in range(config["num_layers"]):
            ys = []
            for d, suffix in enumerate(("", "_reverse")[: 1 + config["bidirectional"]]):
                at = len(ends)
                p = {n.partition("_l")[0]: v for n, v in a.items() if n.endswith(f"_l{k}{suffix}")}
                given = {"x": x, "h_0": a["h_0"][at], "c_0": a["c_0"][at]}
                found = self.layer(p, given, exists, limit, reverse=d == 1)
                ys.append(found["y"])
                ends.append(found)
            x = np.concatenate(ys, -1).astype("float32")
        return {"y": np.concatenate(ys, -1), **{n: np.stack([e[n] for e in ends]) for n in ("h_n", "c_n")}}


class ForUnsigned(Stored):
    """The largest weight of a row is 128, the magnitude of the smallest 8-bit integer."""

    def scales(self, w: Array) -> Array:
        return super().scales(w) * np.float32(127 / 128)


class OfMatrix(Stored):
    """The whole matrix has one scale."""

    def scales(self, w: Array) -> Array:
        return np.full((len(w), 1), super().scales(w).max(), "float32")


class OfGate(Stored):
    """Each gate has one scale."""

    def scales(self, w: Array) -> Array:
        found = super().scales(w).reshape(4, -1) if len(w) % 4 == 0 else super().scales(w)
        return np.broadcast_to(found.max(1, keepdims=True), found.shape).reshape(-1, 1)


class Truncated(Stored):
    """Weights are truncated, not rounded."""

    def integers(self, w: Array, scales: Array) -> Array:
        return np.asarray(np.trunc(w / scales).astype("int64"))


class Asymmetric(Stored):
    """Integers span the range from the smallest to the largest weight of a row."""

    def product(self, a: Array, w: Array, limit: int) -> Array:
        low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
        step = (high - low) / np.float32(255)
        represented = np.rint((w - low) / step) * step.astype("float64") + low
        n, by = self.entered(a, limit)
        return np.asarray((n * by) @ represented.T)


class OfBatch(Stored):
    """The whole batch has one magnitude."""

    def magnitudes(self, a: Array) -> Array:
        found = super().magnitudes(a)
        return np.full_like(found, found.max(initial=np.float32(2.0**-100)))


class OfOne(Stored):
    """Inputs are assumed to be in [-1, 1]."""

    def magnitudes(self, a: Array) -> Array:
        return np.ones_like(super().magnitudes(a))


class OfPowers(Stored):
    """The magnitude is rounded up to a power of two."""

    def magnitudes(self, a: Array) -> Array:
        return np.asarray(np.exp2(np.ceil(np.log2(super().magnitudes(a)))).astype("float32"))


class StateWhole(Stored):
    """The state is not rounded before its product."""

    def layer(self, p: Arrays, a: Arrays, exists: Array, limit: int, reverse: bool) -> Arrays:
        wide = super().product(a["x"], p["weight_ih"], limit)
        rows = len(p["weight_ih"])
        given = a | {"x": wide.astype("float32")}
        return _Whole().layer(p | {"weight_ih": np.eye(rows, dtype="float32")}, given, exists, limit, reverse)


class _Whole(Stored):
    def product(self, a: Array, w: Array, limit: int) -> Array:  # noqa: ARG002 - the signature of what it replaces
        scales = self.scales(w)
        return np.asarray(a @ (self.integers(w, scales) * scales.astype("float64")).T)


class Swallowed(Stored):
    """A NaN makes its row zero."""

    def entered(self, a: Array, limit: int) -> tuple[Array, Array]:
        n, by = super().entered(a, limit)
        return n, np.nan_to_num(by, nan=0.0)


MUTANTS = {
    of.__name__: of()
    for of in (
        ForUnsigned,
        OfMatrix,
        OfGate,
        Truncated,
        Asymmetric,
        OfBatch,
        OfOne,
        OfPowers,
        StateWhole,
        Swallowed,
    )
}


def nan_in_x(a: Arrays) -> None:
    a["x"][1, 0, 0] = np.nan


def zero_rows(a: Arrays) -> None:
    """Set rows of weights and inputs to zero; such rows have no scale."""
    a["weight_ih_l0"][2] = a["x"][0, 1] = a["h_0"][:, 0] = 0


def loud(a: Arrays) -> None:
    """Set batch entries of very different magnitudes."""
    a["x"] *= np.exp2(np.arange(a["x"].shape[1]) * 6.0 - 12)[:, None]


def cases() -> dict[str, Sized]:
    """Return every call, with 24-bit and 8-bit inputs."""
    both: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    plain = {
        "layer": module(5, 7, 4, 3),
        "two-by-two": module(3, 6, 4, 3, lengths=[4, 0, 2], **both),
        "projection": module(4, 9, 3, 2, proj_size=3, num_layers=2),
        "no-bias": module(3, 5, 4, 2, bias=False),
        "wide": module(130, 33, 2, 9),
        "zeros": module(3, 5, 3, 3, change=zero_rows),
        "loud": module(6, 5, 3, 5, change=loud),
        "nan": module(3, 5, 3, 2, change=nan_in_x),
        "no-steps": module(3, 5, 0, 2),
        "no-rows": module(3, 5, 2, 0),
    }
    found = {}
    for name, case in plain.items():
        for suffix, more in (("", {}), ("-both", {"activations": "int8"})):
            config = case.config | {"weights": "int8"} | more
            said = ("XPL-INT-001", "XPL-INT-002", "XPL-INT-003", "XPL-INT-004")
            found[name + suffix] = case._replace(config=config, clauses=said, gradients=False)
    return found


CASES = cases()


def given(name: str) -> Arrays:
    """Return the arrays of a call, the same in every run."""
    case = CASES[name]
    a = drawn(case, np.random.default_rng(zlib.crc32(f"int8 {name}".encode())))
    if case.change is not None:
        case.change(a)
    return {n: v.astype("float32") for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
