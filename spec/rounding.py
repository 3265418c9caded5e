"""Estimate how far rounding may change a result, from which the tolerance of a record follows.

A bound that can be proved grows with every step and would accept anything. An
estimate by samples does not: each operation of the LSTM of wrong.py errs at
random, products by up to sqrt(n) u sum |w| |x|, functions by up to 4u, anything
else by up to u, and the largest error among the samples is the estimate.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np

from spec.records import Record, arrays
from spec.wrong import LSTM
from spec.wrong_cell import Array, Exact
from spec.wrong_gru import GRU

SAMPLES, LEAST, MOST = 64, 8, 128


class Profile(NamedTuple):
    """Format: half its machine epsilon, and its bits if it cannot represent the inputs."""

    unit: float
    input_bits: int | None = None


PROFILES = {"ieee": Profile(2.0**-24), "fp16": Profile(2.0**-11), "bfloat16": Profile(2.0**-8, 8)}


class Perturbed(Exact):
    """Operations with errors, different for each sample, on an axis before the last two."""

    def __init__(self, unit: float) -> None:
        self.unit = unit
        self.random = np.random.Generator(np.random.Philox(0))

    def error(self, v: Array) -> Array:
        shape = v.shape if v.ndim > 2 else (SAMPLES, *v.shape)
        return self.unit * (2 * self.random.random(shape) - 1)

    def product(self, a: Array, b: Array) -> Array:
        found = np.asarray(a @ b)
        return np.asarray(found + np.sqrt(a.shape[-1]) * (np.abs(a) @ np.abs(b)) * self.error(found))

    def rounded(self, v: Array, ulps: float = 1.0) -> Array:
        return np.asarray(v * (1 + ulps * self.error(v)))

    def curved(self, v: Array) -> Array:
        """Return a function's value with an error; a value at its limit has none."""
        return np.where(np.abs(v) == 1, v, self.rounded(v, 4))


def cut(v: Array, bits: int) -> Array:
    """Return the nearest numbers with this number of bits."""
    mantissa, exponent = np.frexp(v)
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits))


def estimates(record: Record, profile: Profile) -> dict[str, float]:
    """Return the largest error in u * s of outputs, and of gradients."""
    given = arrays(record["inputs"] | record.get("cotangents", {}), "float64")
    op = record["op"] + "_vjp" * ("cotangents" in record)
    config = {"bidirectional": False, **record["config"]}
    judge = GRU if config.get("cell") == "gru" else LSTM
    exact = judge().call(op, config, given)
    held = {k: v if profile.input_bits is None else cut(v, profile.input_bits) for k, v in given.items()}
    samples = judge(arithmetic=Perturbed(profile.unit)).call(op, config, held)
    apart = {name: spread(samples[name], exact[name], profile.unit) for name in exact}
    found = {"outputs": max(apart[name] for name in ("y", "h_n", "c_n") if name in apart)}
    if "cotangents" in record:
        found["gradients"] = max(e for name, e in apart.items() if name.startswith("d"))
    return found


def spread(samples: Array, exact: Array, unit: float) -> float:
    """Return the largest error of any sample, in u * s."""
    finite = np.isfinite(exact)
    scale = np.abs(exact[finite]).max(initial=1.0)
    apart = np.abs(samples - np.expand_dims(exact, -2 if exact.ndim == 1 else -3))
    return float(apart.max(initial=0.0, where=np.isfinite(apart)) / scale / unit)


def tolerance(record: Record) -> Record:
    """Return the tolerance of XPL-NUM-001 and XPL-NUM-005; None if the estimate is too large."""
    found = {name: estimates(record, profile) for name, profile in PROFILES.items()}
    whole = {
        name: {group: max(LEAST, ceil(e)) for group, e in estimate.items() if e <= MOST}
        for name, estimate in found.items()
    }
    if whole["ieee"].keys() != found["ieee"].keys():
        msg = f"{found['ieee']}: an estimate above {MOST} u says nothing of an implementation"
        raise ValueError(msg)
    return {**whole.pop("ieee"), **whole}
