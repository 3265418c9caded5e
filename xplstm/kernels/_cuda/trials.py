"""Check the results of a kernel on a device, by small problems with known answers.

The answers come from the reference kernel in float64 on NumPy, forward and backward. The padding of a ragged
batch is NaN, so that a kernel that reads the padding fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from xplstm import _array
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import Proof
from xplstm.cells.params import LSTMParams
from xplstm.kernels._cuda import layer
from xplstm.kernels._cuda import proof as proofs

BITS = {"float64": 53, "float32": 24, "tf32": 11, "float16": 11, "bfloat16": 8}
"""Bits of the significand of a product's factors, by kind."""
ULPS = 8
"""Tolerance of a result for each block of sums, in units of the last of these bits."""


class Engine(NamedTuple):
    """The functions of a kernel that a trial calls, with the signatures of `xplstm._dispatch.Kernel`."""

    prepare: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]


class Shape(NamedTuple):
    """The sizes and options of one trial."""

    T: int
    B: int
    I: int
    H: int
    reverse: tuple[bool, ...] = (False,)
    valid: Literal["all", "lengths", "mask"] = "all"
    proj_size: int = 0
    bias: bool = True


class Inputs(NamedTuple):
    """The inputs of a kernel, forward and backward."""

    params: tuple[LSTMParams, ...]
    x: Any
    state: LSTMState
    valid: Any
    dy: Any
    dstate: LSTMState


BOTH = (False, True)
CHECKED = (
    Shape(T=3, B=5, I=3, H=9, reverse=BOTH, valid="lengths"),
    Shape(T=4, B=3, I=5, H=17, valid="mask", bias=False),
)
PROJECTED = (Shape(T=3, B=4, I=3, H=7, reverse=BOTH, valid="lengths", proj_size=2),)


def draw_inputs(shape: Shape, dtype: str) -> Inputs:
    """Draw inputs of `dtype` on the host, with different numbers for every array."""
    rng, D, P = np.random.default_rng(1), len(shape.reverse), shape.proj_size or shape.H
    T, B, I, H = shape[:4]

    def numbers(*sizes: int, scale: float = 1.0) -> Any:
        return _array.asarray(rng.normal(size=sizes) * scale, np, dtype=dtype)

    def params() -> LSTMParams:
        biases = [numbers(4 * H, scale=0.5) if shape.bias else None for _ in range(2)]
        weight_ih, weight_hh = numbers(4 * H, I, scale=I**-0.5), numbers(4 * H, P, scale=0.5 * P**-0.5)
        weight_hr = numbers(P, H, scale=H**-0.5) if shape.proj_size else None
        return LSTMParams(weight_ih, weight_hh, biases[0], biases[1], weight_hr)

    valid, exists = _valid(shape, rng)
    missing: Any = _array.asarray([np.nan], np, dtype=dtype)
    x, dy = (np.where(exists[:, :, None], numbers(T, B, size), missing) for size in (I, D * P))
    state, dstate = (LSTMState(numbers(D, B, P), numbers(D, B, H)) for _ in range(2))
    return Inputs(tuple(params() for _ in range(D)), x, state, valid, dy, dstate)


def _valid(shape: Shape, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return the lengths, the mask or None, and a boolean array (T, B) that is True at valid steps."""
    every = np.ones((shape.T, shape.B), np.bool_)
    if shape.valid == "lengths":
        lengths = np.arange(shape.B, dtype=np.int64) * 3 % (shape.T + 1)
        return lengths, np.arange(shape.T)[:, None] < lengths
    if shape.valid == "mask":
        every = rng.random(every.shape) < 0.6
    return (every if shape.valid == "mask" else None), every


def problem_of(shape: Shape, like: Problem, kind: str, keep: bool = True) -> Problem:
    """Return a problem with this shape, and the cell, library and device of `like`."""
    return like._replace(
        **{name: getattr(shape, name) for name in Shape._fields},
        dtype="float32" if kind == "tf32" else kind,
        precision="tf32" if kind == "tf32" else None,
        keep=keep,
        reproducible=False,
    )


def each_array(given: Any, move: Callable[[Any], Any]) -> Any:
    """Apply `move` to every array of nested tuples, and keep None."""
    if isinstance(given, tuple):
        arrays = [each_array(a, move) for a in given]
        return type(given)(*arrays) if hasattr(given, "_fields") else tuple(arrays)
    return None if given is None else move(given)


def results(engine: Engine, problem: Problem, inputs: Inputs) -> dict[str, Any]:
    """Return every output and gradient by name."""
    packed = engine.prepare(problem, inputs.params)
    y, end, residuals = engine.forward(problem, packed, inputs.x, inputs.state, inputs.valid)
    dx, start, dparams = engine.backward(residuals, inputs.dy, inputs.dstate)
    arrays = {"y": y, "h_n": end[0], "c_n": end[1], "dx": dx, "dh_0": start[0], "dc_0": start[1]}
    for d, p in enumerate(dparams):
        arrays |= {f"d{name} of direction {d}": a for name, a in p._asdict().items() if a is not None}
    return arrays


def answers(reference: Engine, problem: Problem, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return every output and gradient by name, computed by the reference in float64 on NumPy."""
    exact = problem._replace(xp=np, backend="numpy", device="cpu", dtype="float64", precision=None)
    wide = each_array(inputs, lambda a: a if a.dtype.kind in "bi" else a.astype(np.float64))
    return results(reference, exact, wide)


def difference(got: dict[str, Any], want: dict[str, np.ndarray], part: float) -> str | None:
    """Return which array has an error above ``part * max(1, largest magnitude)``, or None."""
    cp = sys.modules["cupy"]
    for name, value in want.items():
        found = cp.asnumpy(got[name]).astype(np.float64)
        off = float(np.abs(found - value).max(initial=0))
        bound = part * max(1.0, float(np.abs(value).max(initial=0)))
        if not off <= bound:  # NaN too
            return f"{name} has an error of {off:.3g}; at most {bound:.3g} is allowed"
    return None


def tolerance(shape: Shape, kind: str) -> float:
    """Return the allowed error of a result, relative to its largest magnitude."""
    return ULPS * (1 + shape.H // 128) * 2.0 ** -BITS[kind]


def proof(
    kernel: str, engine: Engine, reference: Engine, problem: Problem, shapes: Callable[[], Iterable[Shape]]
) -> Proof:
    """Return the proof of a kernel whose blocks never wait; without a record, check `shapes`."""
    sizes = kernel, layer.kind(problem), problem.device
    if layer.capturing(problem) and not proofs.is_decided(*sizes):
        return Proof(False, "its numbers are checked in a first call outside a stream capture")
    return proofs.decide(*sizes, lambda: check(engine, reference, problem, shapes()))


def check(engine: Engine, reference: Engine, like: Problem, shapes: Iterable[Shape]) -> str | None:
    """Return why the results of `engine` are wrong for the device and kind of `like`, or None."""
    kind, cp = layer.kind(like), sys.modules["cupy"]
    for shape in shapes:
        problem = problem_of(shape, like, kind)
        inputs = draw_inputs(shape, problem.dtype)
        with problem.device:
            there = each_array(inputs, cp.asarray)
            got = results(engine, problem, there)
            alone = problem._replace(keep=False)
            packed = engine.prepare(alone, there.params)
            y = engine.forward(alone, packed, there.x, there.state, there.valid)[0]
        want, part = answers(reference, problem, inputs), tolerance(shape, kind)
        reason = difference(got, want, part) or difference({"y": y}, {"y": want["y"]}, part)
        if reason is not None:
            return f"T={shape.T}, B={shape.B}, H={shape.H}: {reason}"
    return None
