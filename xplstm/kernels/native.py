"""Compiled for the CPU: packed weights, tiles held in registers, threads, sums in the published order.

The C of `_native/` runs a layer's directions as one call without the interpreter. It is there
where a compiler was at installation; the instruction set is chosen when it is
loaded, and ``XPLSTM_NATIVE_ISA`` pins one. `_threads` counts the threads.

Derived from the equations of `xplstm.cells.lstm`, clauses XPL-CELL, XPL-SEQ and
XPL-EXACT of the specification.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xplstm._params import LSTMParams, Problem
from xplstm._state import LSTMState
from xplstm._stored import STORAGES, Stored
from xplstm.cells import Sizes
from xplstm.cells.lstm import STANDARD_STEP
from xplstm.kernels import _recycled, _support, _threads


def _describe_old_build(found: int, expected: int) -> str:
    """Say that the compiled part and this file are of different versions, and what to do."""
    return (
        f"its compiled part has interface {found}, expected {expected}: it was built from another version; "
        "pip install --force-reinstall --no-binary xplstm xplstm builds it, in a source tree pip install -e ."
    )


try:
    from xplstm.kernels import _engine
except (ImportError, SystemError) as error:
    # All four are needed: pip keeps what is installed, and the wheel that it made without a compiler.
    _HINT = (
        "install a C compiler, then repeat pip install with"
        " --force-reinstall --no-deps --no-cache-dir --no-binary xplstm"
    )
    _MISSING = f"it is not compiled here ({error}); {_HINT}"
    ISAS: dict[str, bool] = {}
else:
    # Counts changes of the arguments in module.c. An old build has another number, or none.
    INTERFACE = 3
    _FOUND = _engine.interface() if hasattr(_engine, "interface") else 0
    _MISSING = "" if _FOUND == INTERFACE else _describe_old_build(_FOUND, INTERFACE)
    ISAS = {} if _MISSING else dict(_engine.isas())


def _chosen_isa() -> tuple[str, str]:
    """The instruction set, and why there is none."""
    wanted = os.environ.get("XPLSTM_NATIVE_ISA", "")
    if wanted and wanted not in ISAS:
        return "", _MISSING or f"XPLSTM_NATIVE_ISA={wanted!r} is none of {', '.join(ISAS)}, which run here"
    return wanted or next(iter(ISAS), ""), _MISSING


DTYPES = ("float32", "float64")
storages = STORAGES
# In the order of the storages of lstm.h: what weights are stored in, and what activations are rounded to.
PRODUCTS = ((None, None), ("bfloat16", None), ("int8", None), ("int8", "int8"))
# Terms of a sum of products of 8 and 8 bits, one of them unsigned, that 32 bits hold.
LONGEST = 2**16
# In the order of the kinds of lstm.h.
ACTIVATIONS = (
    *("sigmoid", "tanh", "identity", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh"),
    *("hard_sigmoid", "elu", "softsign", "softplus"),
)
ISA, WHY_NOT = _chosen_isa()
THREADS = _threads.from_environment()
"""Threads that the environment asks for, or 0."""


# Units are padded to whole vectors, of up to 16 lanes: measured with H = 1, 2, 3 and 4.
NARROW, MANY = 2, 500


class Packed(NamedTuple):
    """Every direction's weights: as the C code reads them forward, and as they were."""

    handles: tuple[object, ...]
    weights: tuple[tuple[np.ndarray | None, ...], ...]
    """weight_ih, weight_hh and weight_hr of each."""


class Residuals(NamedTuple):
    """What the backward pass needs of a whole call."""

    problem: Problem
    packed: Packed
    x: np.ndarray
    h_0: np.ndarray
    lengths: np.ndarray | None
    mask: np.ndarray | None
    fresh: np.ndarray | None
    kept: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


def supports(problem: Problem) -> str | None:
    """Run the LSTM, and options of its pointwise step, in float32 and float64, where the C code is."""
    why_not = _support.why_not(problem, "numpy", DTYPES, resets=True) or _why_not_cell(problem)
    return why_not or _why_not_integers(problem) or WHY_NOT or None


def _why_not_integers(problem: Problem) -> str | None:
    """Return why the sums of products of integers could overflow, or None."""
    longest = max(problem.I, problem.H)
    if problem.weights == "int8" and longest > LONGEST:
        return f"sums of {longest} products with int8 weights could overflow, at most {LONGEST} cannot"
    return None


def _why_not_cell(problem: Problem) -> str | None:
    """Return why the C code cannot compose the pointwise step of `problem`, or None."""
    if problem.cell.pointwise(problem) is None:
        return f"composes peepholes, coupled gates, activations and clips; {problem.cell.reason}"
    return None


def slower(problem: Problem) -> str | None:
    """Leave layers of one or two units to NumPy where the batch fills its vectors better."""
    if problem.H <= NARROW and problem.B >= MANY and not problem.cell.reason and not problem.activations:
        return f"H={problem.H} leaves most lanes of its vectors empty, and B={problem.B} is large"
    return None


def canonical_sums(problem: Problem) -> bool:
    """Return whether multiply-adds are fused; int8 adds in integers instead."""
    return ISAS.get(ISA, False) and problem.weights != "int8"


def prepare(problem: Problem, params: tuple[LSTMParams, ...]) -> Packed:
    """Pack each direction's weights for the instruction set in use."""
    arrays: list[Any] = [tuple(None if a is None else _as_read(a) for a in p[:6]) for p in params]
    threads, sizes = _threads.count(THREADS), (problem.I, problem.H, problem.proj_size)
    start = (
        ISA,
        problem.dtype,
        PRODUCTS.index((problem.weights, problem.activations)),
        *sizes,
        _room,
        threads,
    )
    arguments: list[Any] = [(*start, *a, _pointwise(problem, d)) for d, a in enumerate(arrays)]
    handles = [_engine.pack(*each) for each in arguments]
    return Packed(tuple(handles), tuple((ih, hh, hr) for ih, hh, _, _, hr, _ in arrays))


def _as_read(a: Any) -> Any:
    """Return an array as the C code reads it: (values, scales) of int8."""
    if not isinstance(a, Stored):
        return _whole(a)
    return a.values if a.scales is None else (a.values, a.scales)


def _pointwise(problem: Problem, d: int) -> tuple[Any, ...] | None:
    """Return the options of the pointwise step of direction `d` for the C code, or None where none is on."""
    step = problem.cell.direction(d).pointwise(problem)
    assert step is not None, "supports has refused it"
    if step is STANDARD_STEP:
        return None
    kinds = ((ACTIVATIONS.index(name), alpha, beta) for name, alpha, beta in step.activations)
    return (step.coupled, *kinds, step.gate_clip, step.cell_clip)


def _room(size: int) -> np.ndarray:
    """Memory for so many bytes."""
    return _recycled.empty((size,), np.dtype(np.uint8))


def forward(
    problem: Problem,
    packed: Packed,
    x: np.ndarray,
    state: LSTMState,
    valid: np.ndarray | None,
    fresh: np.ndarray | None = None,
) -> tuple[np.ndarray, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·), or from zeros where `fresh` is true."""
    _recycled.pieces.free_idle()
    shape = (problem.T, problem.B, problem.output_size * len(packed.handles))
    empty, zeros = (_recycled.empty, _recycled.zeros) if problem.keep else (np.empty, np.zeros)
    y = (empty if valid is None else zeros)(shape, x.dtype)
    x, h_0, c_0 = _readable(x), _whole(state.h), _whole(state.c)
    h_n, c_n = np.empty(h_0.shape, x.dtype), np.empty(c_0.shape, x.dtype)
    steps = (*_which(problem, valid), None if fresh is None else np.ascontiguousarray(fresh))
    kept = _keep(problem, packed, x.dtype) if problem.keep else None
    threads = _threads.count(THREADS)
    _engine.forward(packed.handles, problem.reverse, x, h_0, c_0, *steps, y, h_n, c_n, kept, threads)
    residuals = None if kept is None else Residuals(problem, packed, x, h_0, *steps, kept)
    return y, LSTMState(h_n, c_n), residuals


def stepper(
    problem: Problem, packed: tuple[Packed, ...]
) -> Callable[[Any, Any], tuple[np.ndarray, LSTMState] | None]:
    """Single steps of all layers; the C code looks at x_t and the state by itself."""
    handles = tuple(layer.handles[0] for layer in packed)
    threads = _threads.count(THREADS)
    return _engine.stepper(handles, threads, np.ndarray, np.dtype(problem.dtype), np.empty, LSTMState)


def _readable(x: np.ndarray) -> np.ndarray:
    """`x` itself if its features follow each other in memory, at whole numbers' distance; else a copy."""
    flags = x.flags
    if flags.c_contiguous and flags.aligned:
        return x
    numbers = flags.aligned and all(stride % x.itemsize == 0 for stride in x.strides)
    return x if numbers and (x.shape[2] == 1 or x.strides[2] == x.itemsize) else _whole(x)


def _whole(a: Any) -> np.ndarray:
    """Return `a`, contiguous and aligned."""
    a = np.ascontiguousarray(a)
    return a if a.flags.aligned else a.copy()


def _which(problem: Problem, valid: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Lengths, mask."""
    if valid is None:
        return None, None
    if problem.valid == "lengths":
        return _whole(valid.astype(np.int32, copy=False)), None
    return None, np.ascontiguousarray(valid)


def _keep(
    problem: Problem, packed: Packed, dtype: np.dtype
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
    """Room for the gates, c and h of every step of each direction; c also of the one before the first."""
    T, B = problem.T, problem.B
    units = [_engine.units(handle) for handle in packed.handles]
    return tuple(
        (
            _recycled.empty((T, B, 4 * n), dtype),
            _recycled.empty((T + 1, B, n), dtype),
            _recycled.empty((T, B, problem.output_size), dtype),
        )
        for n in units
    )


def backward(
    residuals: Residuals, dy: np.ndarray, dstate_n: LSTMState
) -> tuple[np.ndarray, LSTMState, tuple[LSTMParams, ...]]:
    """Return the gradients with respect to x, the initial state and each direction's parameters."""
    problem, packed, x, h_0, lengths, mask, fresh, kept = residuals
    dx = _recycled.zeros((problem.T, problem.B, problem.I), x.dtype)
    dh_0, dc_0 = (np.array(a, order="C") for a in dstate_n)
    shapes = problem.cell.shapes(Sizes(problem.I, problem.H, problem.proj_size, problem.bias))
    names = ("weight_ih", "weight_hh", "bias_ih", "weight_hr", "weight_ch")
    gradients = tuple(
        tuple(_recycled.zeros(shapes[name], x.dtype) if name in shapes else None for name in names)
        for _ in packed.weights
    )
    _engine.backward(
        *(packed.handles, problem.reverse, packed.weights, x, h_0, lengths, mask, fresh),
        *(_whole(dy), kept, dx, dh_0, dc_0, gradients, _threads.count(THREADS)),
    )
    return dx, LSTMState(dh_0, dc_0), tuple(_as_params(*direction) for direction in gradients)


def _as_params(ih: Any, hh: Any, bias: Any, hr: Any, ch: Any) -> LSTMParams:
    """Both biases have the same gradient, and no memory in common."""
    return LSTMParams(ih, hh, bias, None if bias is None else bias.copy(), hr, ch)


def release_memory() -> None:
    """Give back the scratch that is kept from call to call."""
    if ISAS:
        _engine.release_memory()
