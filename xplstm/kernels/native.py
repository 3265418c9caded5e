"""Run every cell on the CPU by compiled C: packed weights, register tiles, threads, reproducible sums.

The C code of `_native/` runs all directions of a layer in one call, without the interpreter. It
exists only if a compiler was available at installation. The instruction set is selected at import;
``XPLSTM_NATIVE_ISA`` pins one. `_threads` determines the number of threads.

The code implements the equations of `xplstm.cells.lstm`, `gru` and `rnn`, and the clauses XPL-CELL,
XPL-SEQ, XPL-EXACT and XPL-GRU of the specification.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np

from xplstm import _array
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm.cells import FourBlocks, Params, Sizes
from xplstm.cells.lstm import STANDARD_STEP
from xplstm.cells.masks import Draw
from xplstm.cells.params import LSTMParams
from xplstm.kernels import _recycled, _stored, _support, _threads
from xplstm.kernels._compiled import WHY_NOT as WHY_NOT_COMPILED
from xplstm.kernels._stored import STORAGES, Stored

if WHY_NOT_COMPILED:
    ISAS: dict[str, bool] = {}
else:
    from xplstm.kernels import _engine

    ISAS = dict(_engine.isas())


def _choose_isa() -> tuple[str, str]:
    """Return the instruction set, or "" and the reason why none can be used."""
    wanted = os.environ.get("XPLSTM_NATIVE_ISA", "")
    if wanted and wanted not in ISAS:
        unknown = f"XPLSTM_NATIVE_ISA={wanted!r} must be one of {', '.join(ISAS)} on this machine"
        return "", WHY_NOT_COMPILED or unknown
    return wanted or next(iter(ISAS), ""), WHY_NOT_COMPILED


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _in_ieee(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run the NumPy operations of `function` in IEEE 754 arithmetic too, whatever mode the caller set."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return _engine.in_ieee(partial(function, *args, **kwargs))

    return call


DTYPES = ("float32", "float64", "float16", "bfloat16")
HALVES = ("float16", "bfloat16")
storages = STORAGES
arrays = "numpy"
# Pairs of weight storage and activation rounding, in the order of the storages of lstm.h.
PRODUCTS = (
    *((None, None), ("bfloat16", None), ("float16", None), ("int8", None)),
    *(("int8", "int8"), ("bfloat16", "bfloat16")),
)
# The largest number of products of an 8-bit and an unsigned 8-bit integer whose sum fits 32 bits.
LONGEST = 2**16
# In the order of the activation kinds of lstm.h.
ACTIVATIONS = (
    *("sigmoid", "tanh", "identity", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh"),
    *("hard_sigmoid", "elu", "softsign", "softplus"),
)
STEPS = ("lstm", "gru", "elman", "reset")
# Kinds of steps in which h is also c.
GATED = ("gru", "reset")
# The layouts of x for a function of `_engine.stepper`, in the order of stepper.h.
ONE_STEP, TIME_FIRST, BATCH_FIRST = range(3)
ISA, WHY_NOT = _choose_isa()
THREADS = _threads.from_environment()
"""The number of threads that the environment requests, or 0."""


class Costs(NamedTuple):
    """Microseconds of a step on one thread: per batch entry here, then of `numpy_inplace`."""

    entry: float
    unit: float
    feature: float
    numpy_step: float
    numpy_unit: float
    numpy_feature: float


# Fitted to measured processor times of inference (False) and training (True), for H = 1 to 16, I = 1 to 32
# and B = 150 to 10,000.
COSTS = {
    False: Costs(0.0365, 0.0013, 0.0011, 10.5, 0.0065, 0.00035),
    True: Costs(0.155, 0.0165, 0.0032, 28.0, 0.0215, 0.0015),
}
# Units are padded to whole vectors of up to 16 lanes, so `numpy_inplace` can be faster for at most NARROW
# units and at least MANY batch entries.
NARROW, MANY = 12, 150
# The number of multiply-adds from which a call uses several threads.
WORTH_THREADS = _engine.worth_threads() if ISAS else 0


Step: TypeAlias = Callable[[Any, Any], "tuple[np.ndarray, LSTMState] | None"]
"""One step of several layers from x_t and (h, c); returns None for arguments that need a call's checks."""


class Packed(NamedTuple):
    """The weights of every direction, packed by the C code for the forward pass, and unpacked."""

    handles: tuple[object, ...]
    weights: tuple[tuple[Any, ...], ...]
    """weight_ih, weight_hh and weight_hr of each direction, for the backward pass."""


Noise: TypeAlias = tuple[tuple[Any, ...], ...]
"""For each direction, the masks that the C code reads: recurrent dropout, zoneout of h, zoneout of c."""


class Residuals(NamedTuple):
    """The residuals of a whole call."""

    problem: Problem
    packed: Packed
    x: np.ndarray
    h_0: np.ndarray
    lengths: np.ndarray | None
    mask: np.ndarray | None
    fresh: np.ndarray | None
    noise: Noise | None
    kept: tuple[tuple[np.ndarray, ...], ...]


def supports(problem: Problem) -> str | None:
    """Return None if the C code is compiled, which supports every problem, else the reason."""
    why_not = _support.why_not(problem, "numpy", DTYPES, resets=True)
    return why_not or _why_not_integers(problem) or WHY_NOT or None


def _why_not_integers(problem: Problem) -> str | None:
    """Return why sums of integer products could overflow, or None."""
    longest = max(problem.I, problem.H)
    if problem.weights == "int8" and longest > LONGEST:
        return f"sums of {longest} products with int8 weights could overflow; the limit is {LONGEST} products"
    return None


def slower(problem: Problem) -> str | None:
    """Return why `numpy_inplace`, which vectorises along the batch, is faster; None otherwise."""
    alone = problem.cell.reason or problem.activations or problem.dtype in HALVES
    B, I, H = problem.B, problem.I, problem.H
    if alone or H > NARROW or B < MANY:
        return None
    costs = COSTS[problem.keep]
    shared = problem.T * B * 4 * H * (I + H) >= WORTH_THREADS
    ours = (
        B
        * (costs.entry + costs.unit * H + costs.feature * I)
        / (abs(_threads.count(THREADS)) if shared else 1)
    )
    if ours <= costs.numpy_step + B * (costs.numpy_unit * H + costs.numpy_feature * I):
        return None
    return f"H={H} fills only part of a vector, and B={B} is large"


def canonical_sums(problem: Problem) -> bool:
    """Return whether the call uses the reproducible summation order, which needs fused multiply-adds."""
    published = problem.weights != "int8" and not problem.activations and not _is_normal(problem)
    return ISAS.get(ISA, False) and published


def prepare(problem: Problem, params: tuple[Params, ...]) -> Packed:
    """Pack each direction's weights for the instruction set in use."""
    change = problem.cell.in_four_blocks
    blocks = tuple(_stored.move_rows(change, p) if problem.weights else change(p) for p in params)
    arrays: list[Any] = [
        tuple(None if a is None else _convert_storage(a) for a in (*p.lstm, p.bias_hr)) for p in blocks
    ]
    threads, hr = _threads.count(THREADS), blocks[0].lstm.weight_hr
    half = problem.dtype in HALVES
    products = PRODUCTS.index((problem.dtype if half else problem.weights, problem.activations))
    start = (
        ISA,
        "float32" if half else problem.dtype,
        products,
        problem.I,
        _gate_units(problem),
        0 if hr is None else problem.output_size,
        _allocate,
        threads,
    )
    arguments: list[Any] = [(*start, *a, _pointwise(problem, d)) for d, a in enumerate(arrays)]
    handles = [_engine.pack(*each) for each in arguments]
    return Packed(
        tuple(handles), tuple((p.lstm.weight_ih, p.lstm.weight_hh, p.lstm.weight_hr) for p in blocks)
    )


def _convert_storage(a: Any) -> Any:
    """Convert an array for the C code: half precision to bits, and int8 to values and scales."""
    if not isinstance(a, Stored):
        if a.dtype.itemsize != 2:
            return _align(a)
        return _align(a).view(np.uint16) if a.ndim == 2 else _widen(a)
    return a.values if a.scales is None else (a.values, a.scales)


def _pointwise(problem: Problem, d: int) -> tuple[Any, ...] | None:
    """Return the pointwise options of direction `d` for the C code, or None for the standard step."""
    step = problem.cell.direction(d).pointwise(problem)
    if step is STANDARD_STEP:
        return None
    kinds = ((ACTIVATIONS.index(name), alpha, beta) for name, alpha, beta in step.activations)
    return (
        STEPS.index(step.kind),
        step.coupled,
        *kinds,
        step.gate_clip,
        step.cell_clip,
        step.hold_h,
        step.hold_c,
        problem.H,
    )


def _allocate(size: int) -> np.ndarray:
    """Allocate `size` bytes."""
    return _recycled.empty((size,), np.dtype(np.uint8))


@_in_ieee
def forward(
    problem: Problem,
    packed: Packed,
    x: np.ndarray,
    state: LSTMState,
    valid: np.ndarray | None,
    fresh: np.ndarray | None = None,
) -> tuple[np.ndarray, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·), or from zeros where `fresh` is True.

    Half precision is widened to float32. h and c stay float32 inside the call, and results are rounded once.
    """
    _recycled.pieces.free_idle()
    shape = (problem.T, problem.B, problem.output_size * len(packed.handles))
    empty, zeros = (_recycled.empty, _recycled.zeros) if problem.keep else (np.empty, np.zeros)
    x, h_0 = _readable(_widen(x)), _align(_widen(state.h))
    c_0 = _align(_widen(state.c)) if state.c.shape[-1] else _in_place_of_c(problem, h_0)
    y = (empty if valid is None else zeros)(shape, x.dtype)
    h_n, c_n = np.empty(h_0.shape, x.dtype), np.empty(c_0.shape, x.dtype)
    steps = (*_split_valid(problem, valid), None if fresh is None else np.ascontiguousarray(fresh))
    kept = _keep(problem, packed, x.dtype) if problem.keep else None
    threads = _threads.count(THREADS)
    noise = _draw(problem, packed)
    _engine.forward(packed.handles, problem.reverse, x, h_0, c_0, *steps, noise, y, h_n, c_n, kept, threads)
    residuals = None if kept is None else Residuals(problem, packed, x, h_0, *steps, noise, kept)
    y, h_n, c_n = _narrow(problem, y, h_n, c_n)
    return y, LSTMState(h_n, c_n if state.c.shape[-1] else np.empty_like(state.c)), residuals


def _draw(problem: Problem, packed: Packed) -> Noise | None:
    """Draw the random masks of a call, equal to the reference kernel's, or return None without masks."""
    T, B, P = problem.T, problem.B, problem.output_size
    found = []
    for d, handle in enumerate(packed.handles):
        masks = problem.cell.masks(problem.part(d, 0, T))
        if masks is None:
            return None
        units = _engine.units(handle)
        held_h = _flags(masks.held_h, T, B, P, problem.proj_size or units)
        held_c = _flags(masks.held_c, T, B, problem.H, units)
        found.append((_drop_units(problem, masks.dropped), held_h, held_c))
    return tuple(found)


def _flags(draw: Draw | None, T: int, B: int, size: int, stride: int) -> np.ndarray | None:
    """Draw flags for `size` units at T times, with `stride` flags per batch entry."""
    if draw is None:
        return None
    flags = _recycled.zeros((T, B, stride), np.dtype(np.uint8))
    where = draw.purpose, draw.stream, draw.start
    _engine.draw(*draw.key, *where, draw.p, (T, B, size, stride), flags, _threads.count(THREADS))
    return flags


def _drop_units(problem: Problem, draw: Draw | None) -> np.ndarray | None:
    """Draw the factors of recurrent dropout, shape (B, output_size)."""
    flags = _flags(draw, 1, problem.B, problem.output_size, problem.output_size)
    if draw is None or flags is None:
        return None
    wide = np.dtype(np.float32 if problem.dtype in HALVES else problem.dtype).type
    return np.where(flags[0], wide(0), wide(1 / (1 - draw.p)))


def _drop_initial_h(h_0: np.ndarray, noise: Noise | None) -> np.ndarray:
    """Return the initial h after recurrent dropout, the input of the products."""
    dropped = [] if noise is None else [mask for mask, *_ in noise if mask is not None]
    return h_0 * np.asarray(dropped) if dropped else h_0


def _kind(problem: Problem) -> str:
    """Return the kind of the step."""
    return problem.cell.direction(0).pointwise(problem).kind


def _is_normal(problem: Problem) -> bool:
    """Return whether the step uses layer normalisation."""
    return "gain_ih" in problem.cell.shapes(_sizes(problem))


def _sizes(problem: Problem) -> Sizes:
    """Return the sizes of the layer."""
    return Sizes(problem.I, problem.H, problem.proj_size, problem.bias)


def _in_place_of_c(problem: Problem, h: np.ndarray) -> np.ndarray:
    """Return the array that replaces c for a cell without c: h for a GRU, zeros for an RNN."""
    return h if _kind(problem) in GATED else np.zeros((*h.shape[:2], _quarter(problem)), h.dtype)


def _gate_units(problem: Problem) -> int:
    """Return the number of units of one gate in the C code."""
    return _quarter(problem) if _kind(problem) == "elman" else problem.H


def _quarter(problem: Problem) -> int:
    """Return the number of an RNN's units that form one gate in the C code."""
    return (problem.H + 3) // 4


def _widen(a: Any) -> Any:
    """Convert half precision to float32; return other dtypes unchanged."""
    return a.astype(np.float32) if a.dtype.itemsize == 2 else a


def _narrow(problem: Problem, *results: Any) -> tuple[Any, ...]:
    """Convert float32 results to half precision for a problem of that dtype; else return them unchanged."""
    if problem.dtype not in HALVES:
        return results
    with np.errstate(under="ignore"):
        return tuple(None if a is None else _array.narrow(a, problem.dtype) for a in results)


def stepper(problem: Problem, packed: tuple[Packed, ...]) -> Step:
    """Return a function for single steps of all layers; the C code checks x_t and the state itself."""
    return _direct(problem, packed, ONE_STEP)


def caller(problem: Problem, packed: tuple[Packed, ...], batch_first: bool) -> Step:
    """Return a function for small calls of all layers on one thread; the C code checks the arguments."""
    return _direct(problem, packed, BATCH_FIRST if batch_first else TIME_FIRST)


def _direct(problem: Problem, packed: tuple[Packed, ...], order: int) -> Step:
    """Return a function of x and a state that bypasses the checks of a call."""
    handles = tuple(layer.handles[0] for layer in packed)
    if problem.dtype not in HALVES:
        step = _steps_of(handles, problem.dtype, order)
    else:
        step = _in_half_precision(problem, [_steps_of((handle,), "float32", order) for handle in handles])
    return step if problem.cell.cell_size(problem.H) else _of_h(problem, step)


def _of_h(problem: Problem, step: Step) -> Step:
    """Wrap `step` of a cell without c into a function of x and h."""
    gated, quarter = _kind(problem) in GATED, _quarter(problem)

    def step_of_h(x: Any, h: Any) -> tuple[np.ndarray, LSTMState] | None:
        if h is None:
            return step(x, None)
        if type(h) is not np.ndarray or not h.ndim:
            return None
        return step(x, (h, h if gated else np.zeros((*h.shape[:-1], quarter), h.dtype)))

    return step_of_h


def _steps_of(handles: tuple[object, ...], dtype: str, order: int) -> Step:
    """Return the C function for steps or small calls of several layers."""
    arguments = handles, _threads.count(THREADS), np.ndarray, np.dtype(dtype), np.empty, LSTMState, order
    step: Step = _engine.stepper(*arguments)
    return step


def _in_half_precision(problem: Problem, layers: list[Step]) -> Step:
    """Return a function that widens each layer's inputs and rounds its results, as a call does."""
    # Comparing dtypes is much faster than comparing their names.
    half: np.dtype = np.dtype(_array.dtype_from_name(np, problem.dtype))

    @_in_ieee
    def step(x_t: Any, state: Any) -> tuple[np.ndarray, LSTMState] | None:
        if state is not None and not (isinstance(state, tuple) and len(state) == 2):
            return None
        for a in (x_t, *(state or ())):
            if type(a) is not np.ndarray or a.dtype != half:
                return None
        before: Any = None
        if state is not None:
            h, c = state
            if h.shape[:1] != (len(layers),) or c.shape[:1] != h.shape[:1]:
                return None
            before = h.astype(np.float32), c.astype(np.float32)
        y: Any = x_t
        ends: list[tuple[Any, Any]] = []
        with np.errstate(under="ignore"):
            for k, layer in enumerate(layers):
                results = layer(y.astype(np.float32), before and (before[0][k : k + 1], before[1][k : k + 1]))
                if results is None:
                    return None
                y, (h_n, c_n) = results[0].astype(half), cast("tuple[Any, Any]", results[1])
                ends.append((h_n.astype(half), c_n.astype(half)))
        h, c = ends[0] if len(ends) == 1 else map(np.concatenate, zip(*ends, strict=True))
        return y, LSTMState(h, c)

    return step


def _readable(x: np.ndarray) -> np.ndarray:
    """Return `x`, or a copy unless features are contiguous and strides are multiples of the item size."""
    flags = x.flags
    if flags.c_contiguous and flags.aligned:
        return x
    numbers = flags.aligned and all(stride % x.itemsize == 0 for stride in x.strides)
    return x if numbers and (x.shape[2] == 1 or x.strides[2] == x.itemsize) else _align(x)


def _align(a: Any) -> np.ndarray:
    """Return `a` as a contiguous and aligned array."""
    a = np.ascontiguousarray(a)
    return a if a.flags.aligned else a.copy()


def _split_valid(problem: Problem, valid: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return lengths and mask, of which at least one is None."""
    if valid is None:
        return None, None
    if problem.valid == "lengths":
        return _align(valid.astype(np.int32, copy=False)), None
    return None, np.ascontiguousarray(valid)


def _keep(problem: Problem, packed: Packed, dtype: np.dtype) -> tuple[tuple[np.ndarray, ...], ...]:
    """Allocate the gates, c and h of every step of each direction, and one more c for the initial state.

    Layer normalisation adds the normalised W_ih x, W_hh h and c, and three scales.
    """
    T, B, P = problem.T, problem.B, problem.output_size
    kept = []
    for n in map(_engine.units, packed.handles):
        shapes = [(T, B, 4 * n), (T + 1, B, n), (T, B, P)]
        shapes += [(T, B, 4 * n), (T, B, 4 * n), (T, B, n), (T, B, 3)] if _is_normal(problem) else []
        kept.append(tuple(_recycled.empty(shape, dtype) for shape in shapes))
    return tuple(kept)


@_in_ieee
def backward(
    residuals: Residuals, dy: np.ndarray, dstate_n: LSTMState
) -> tuple[np.ndarray | None, LSTMState, tuple[Params, ...]]:
    """Return the gradients with respect to x (if dx is True), the initial state and the parameters."""
    problem, packed, x, h_0, lengths, mask, fresh, noise, kept = residuals
    h_0 = _drop_initial_h(h_0, noise)
    dx = _recycled.zeros((problem.T, problem.B, problem.I), x.dtype) if problem.dx else None
    dh_0, dc_0 = (np.array(_widen(a), order="C") for a in dstate_n)
    carried = dc_0 if dc_0.shape[-1] else np.zeros_like(_in_place_of_c(problem, dh_0))
    weights = tuple(tuple(None if a is None else _align(_widen(a)) for a in p) for p in packed.weights)
    shapes = problem.cell.shapes(_sizes(problem))
    # The C code computes the gradients of the parameters in four blocks.
    ih, hh = (a.shape for a in packed.weights[0][:2])
    shapes = shapes | {"weight_ih": ih, "weight_hh": hh}
    shapes |= {"bias_ih": (4 * _gate_units(problem),)} if problem.bias else {}
    shapes |= {} if packed.weights[0][2] is None else {"weight_hr": packed.weights[0][2].shape}
    names = [name for name in (*LSTMParams._fields, "bias_hr") if name != "bias_hh"]
    gradients = tuple(
        tuple(_recycled.zeros(shapes[name], x.dtype) if name in shapes else None for name in names)
        for _ in packed.weights
    )
    _engine.backward(
        *(packed.handles, problem.reverse, weights, x, h_0, lengths, mask, fresh, noise),
        *(_align(_widen(dy)), kept, dx, dh_0, carried, gradients, _threads.count(THREADS)),
    )
    if _kind(problem) in GATED:
        dh_0 += carried
    dx, dh_0, dc_0 = _narrow(problem, dx, dh_0, dc_0)
    dparams = (_as_params(*_narrow(problem, *direction)) for direction in gradients)
    return dx, LSTMState(dh_0, dc_0), tuple(map(problem.cell.from_four_blocks, dparams))


def _as_params(ih: Any, hh: Any, bias: Any, *rest: Any) -> FourBlocks:
    """Return one direction's gradients; both biases get the same gradient, without shared memory."""
    *others, bias_hr = rest
    return FourBlocks(LSTMParams(ih, hh, bias, None if bias is None else bias.copy(), *others), bias_hr)


SHARES = ("automatic", "rows", "panels")
"""The ways to divide the work of a direction among threads, in the order of jobs.h."""


def pin_shares(how: str) -> None:
    """Pin how threads divide the work of every direction, for benchmarks; `how` is one of SHARES."""
    _engine.pin_shares(SHARES.index(how))


def release_memory() -> None:
    """Free the scratch memory that is kept between calls."""
    if ISAS:
        _engine.release_memory()
