"""Define random problems, and the float64 results with which every backend and kernel is compared."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np
import pytest

import xplstm
from xplstm import _dispatch

SLOPES = 12
"""Directions along which a gradient of a large array is checked."""


def kernels() -> list[Any]:
    """Return every kernel for host arrays as a parameter; skip missing kernels that are not required."""
    found = []
    for name in _dispatch.TABLE:
        missing = _dispatch.why_missing(name)
        required = name in os.environ.get("XPLSTM_REQUIRE", "").split(",")
        skip = pytest.mark.skipif(bool(missing) and not required, reason=f"{name}: {missing}")
        if not name.startswith(("cupy", "jax")):
            found.append(pytest.param(name, marks=skip))
    return found


@dataclass
class Case:
    """Configuration and arrays, with distinct weights and with distinct states other than zero."""

    T: int = 5
    B: int = 4
    I: int = 3
    H: int = 6
    options: dict[str, Any] = field(default_factory=dict)
    lengths: list[int] | None = None
    holes: bool = False
    seed: int = 7

    def lstm(self, **where: Any) -> xplstm.LSTM:
        where.setdefault("dtype", "float64")
        return xplstm.LSTM(self.I, self.H, rng=self.seed, **self.options, **where)

    @property
    def output_size(self) -> int:
        return self.options.get("proj_size", 0) or self.H

    @property
    def directions(self) -> int:
        return 2 if self.options.get("bidirectional") else 1

    @property
    def rows(self) -> int:
        return self.options.get("num_layers", 1) * self.directions

    def arrays(self) -> dict[str, np.ndarray]:
        """Return x, h_0, c_0 and the gradients dy, dh_n, dc_n."""
        rng = np.random.default_rng(self.seed)
        shape = (self.B, self.T) if self.options.get("batch_first") else (self.T, self.B)
        return {
            "x": rng.normal(size=(*shape, self.I)),
            "h_0": rng.normal(size=(self.rows, self.B, self.output_size)),
            "c_0": rng.normal(size=(self.rows, self.B, self.H)),
            "dy": rng.normal(size=(*shape, self.output_size * self.directions)),
            "dh_n": rng.normal(size=(self.rows, self.B, self.output_size)),
            "dc_n": rng.normal(size=(self.rows, self.B, self.H)),
        }

    def valid(self) -> dict[str, Any]:
        """Return the keyword that makes the batch ragged, if any."""
        if self.holes:
            shape = (self.B, self.T) if self.options.get("batch_first") else (self.T, self.B)
            return {"mask": np.random.default_rng(self.seed).random(shape) < 0.6}
        return {} if self.lengths is None else {"lengths": self.lengths}

    def exists(self) -> np.ndarray:
        """Return which steps are valid, with the first two axes of x."""
        valid = self.valid()
        if "mask" in valid:
            return np.asarray(valid["mask"])
        lengths = np.asarray(valid.get("lengths", [self.T] * self.B))
        exists = np.arange(self.T)[:, None] < lengths[None, :]
        return exists.T if self.options.get("batch_first") else exists

    def poisoned(self) -> dict[str, np.ndarray]:
        """Return the arrays with NaN in x and dy at padded and masked steps."""
        arrays = self.arrays()
        exists = self.exists()[:, :, None]
        return arrays | {k: np.where(exists, arrays[k], np.nan) for k in ("x", "dy")}


CASES = {
    "plain": Case(),
    "no_bias": Case(options={"bias": False}),
    "ragged": Case(lengths=[2, 5, 0, 3]),
    "holes": Case(holes=True),
    "bidirectional": Case(options={"bidirectional": True}),
    "bidirectional_ragged": Case(options={"bidirectional": True, "num_layers": 2}, lengths=[3, 0, 5, 1]),
    "bidirectional_holes": Case(options={"bidirectional": True}, holes=True),
    "stacked": Case(options={"num_layers": 3}),
    "projection": Case(options={"proj_size": 2, "num_layers": 2}),
    "projection_ragged": Case(options={"proj_size": 2, "bidirectional": True}, lengths=[5, 1, 4, 0]),
    "batch_first": Case(options={"batch_first": True}, lengths=[1, 5, 4, 2]),
    "one_step": Case(T=1, B=1),
    "one_unit": Case(H=1, I=2, B=3),
}


@dataclass
class Answer:
    """Outputs and gradients of one call."""

    y: Any
    h_n: Any
    c_n: Any
    dx: Any
    dh_0: Any
    dc_0: Any
    dparams: dict[str, Any]

    def flat(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "dparams"} | self.dparams


def settled(arrays: list[Any]) -> list[Any]:
    """Return the arrays; compute Dask arrays together, so that shared parts are computed once."""
    if array_api_compat.is_dask_array(arrays[0]):
        return list(sys.modules["dask"].persist(*arrays))
    return arrays


def run(lstm: xplstm.LSTM, arrays: dict[str, Any], **options: Any) -> Answer:
    """Run the forward and the backward pass."""
    y, (h_n, c_n), pullback = lstm.vjp(arrays["x"], (arrays["h_0"], arrays["c_0"]), **options)
    dx, dstate_0, dparams = pullback(arrays["dy"], (arrays["dh_n"], arrays["dc_n"]))
    results = settled([y, h_n, c_n, dx, *dstate_0, *dparams.values()])
    return Answer(*results[:6], dict(zip(dparams, results[6:], strict=True)))


def differences(f: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the central differences of `f` with respect to every element of `at`."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (f(up) - f(down)) / (2 * step)
    return gradient


def slopes(
    f: Callable[[np.ndarray], float], at: np.ndarray, gradient: np.ndarray, step: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Return directional derivatives from a gradient, and from central differences of `f`.

    The directions are each element of a small array, and random unit vectors for a large array. A wrong
    element changes nearly all derivatives along random vectors.
    """
    along = np.eye(at.size) if at.size <= SLOPES else np.random.default_rng(0).normal(size=(SLOPES, at.size))
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    moves = step * along.reshape(len(along), *at.shape)
    return along @ np.ravel(gradient), np.array([(f(at + m) - f(at - m)) / (2 * step) for m in moves])


def random_chunks(rng: np.random.Generator, size: int) -> tuple[int, ...]:
    """Return up to four chunk sizes of a Dask axis, some of them zero."""
    inner = np.sort(rng.integers(0, size + 1, size=int(rng.integers(0, 4)))).tolist()
    bounds = [0, *inner, size]
    return tuple(b - a for a, b in itertools.pairwise(bounds))
