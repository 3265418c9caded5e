"""Layers above the seam: dropout between them, and the shapes that users pass and get back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from xplstm import _array, _checkpoint, _checks, _dispatch, _dropout, _sequence
from xplstm._checks import Home, Valid
from xplstm._dispatch import Directions, Kernel
from xplstm._params import Explanation, LSTMParams, LSTMState, Problem
from xplstm._typing import Array, Namespace

Size = TypeVar("Size", int, str)

# (kernel, problem, layer) -> the layer's packed weights
Prepare = Callable[[Kernel, Problem, int], Any]
Layers = tuple[Directions, ...]
Pullback = Callable[[Array | None, LSTMState | None], tuple[Array, LSTMState, Layers]]


class Stack(NamedTuple):
    """An LSTM of one or more layers: everything about it but the values of its parameters."""

    input_size: int
    hidden_size: int
    proj_size: int
    bias: bool
    num_layers: int
    reverse: tuple[bool, ...]
    dropout: float = 0.0
    batch_first: bool = False
    layer_axis: bool = True
    """Whether states have the leading axis of layers and directions."""

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes of a state."""
        return (self.num_layers * len(self.reverse),) if self.layer_axis else ()

    @property
    def output_size(self) -> int:
        """Features of h."""
        return self.proj_size or self.hidden_size

    def arguments(self) -> str:
        """What `LSTM` was called with, where it is not the default."""
        sizes = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        options = {
            "bias=False": not self.bias,
            "batch_first=True": self.batch_first,
            f"dropout={self.dropout}": self.dropout,
            "bidirectional=True": len(self.reverse) == 2,
            f"proj_size={self.proj_size}": self.proj_size,
        }
        return f"({', '.join([sizes, *(text for text, used in options.items() if used)])})"


class Call(NamedTuple):
    """What a user passed, checked and time-major, and the shapes to give back."""

    home: Home
    x: Array
    state: LSTMState
    valid: Valid
    batched: bool

    @property
    def xp(self) -> Namespace:
        """The array library in use."""
        return self.home.xp


def enter(
    stack: Stack,
    home: Home,
    x: Array,
    state: LSTMState | tuple[Array, Array] | None,
    lengths: Any,
    mask: Array | None,
) -> Call:
    """Check every argument and bring it to (T, B, ·) and (L*D, B, ·)."""
    batched = getattr(x, "ndim", 3) != 2
    shape: tuple[int | str, ...] = (*_axes(stack, "T", "B", batched), stack.input_size)
    x = _checks.array("x", x, home, shape, "the last is input_size")
    x = _time_major(stack, home.xp, x, batched)
    T, B = x.shape[0], x.shape[1]
    if mask is not None:
        mask = _checks.mask(mask, home, _axes(stack, T, B, batched))
        mask = _time_major(stack, home.xp, mask, batched)
    if not batched and isinstance(lengths, int):
        lengths = [lengths]
    elif not batched and getattr(lengths, "shape", None) == ():
        lengths = lengths[None]
    valid = _checks.valid(lengths, mask, home, T, B)
    return Call(home, x, _enter_state(stack, home, state, B, batched, "_0", "state"), valid, batched)


def _axes(stack: Stack, T: Size, B: Size, batched: bool) -> tuple[Size, ...]:
    """The first axes of whatever has time, as the user passes it."""
    if not batched:
        return (T,)
    return (B, T) if stack.batch_first else (T, B)


def _enter_state(
    stack: Stack,
    home: Home,
    state: LSTMState | tuple[Array, Array] | None,
    B: int,
    batched: bool,
    suffix: str,
    name: str,
) -> LSTMState:
    """Zeros, or the state that was passed, as (L*D, B, ·)."""
    rows = stack.num_layers * len(stack.reverse)
    sizes = (stack.output_size, stack.hidden_size)
    if state is None:
        dtype = _array.dtype_named(home.xp, home.dtype)
        return LSTMState(*(home.xp.zeros((rows, B, n), dtype=dtype, device=home.device) for n in sizes))
    meaning = ("num_layers * directions, " if stack.layer_axis else "") + ("B, " if batched else "")
    entered = []
    lasts = ("output size", "hidden_size")
    for letter, a, n, last in zip("hc", _checks.state(name, state), sizes, lasts, strict=True):
        shape = (*stack.lead, *([B] if batched else []), n)
        a = _checks.array(letter + suffix, a, home, shape, f"({meaning}{last})")
        entered.append(_array.reshape(a, (rows, B, n)))
    return LSTMState(*entered)


def _time_major(stack: Stack, xp: Namespace, a: Array, batched: bool) -> Array:
    """(T, B, ...) from what the user passes."""
    if not batched:
        return xp.expand_dims(a, axis=1)
    return _swap(xp, a) if stack.batch_first else a


def _user_major(stack: Stack, call: Call, a: Array) -> Array:
    """What the user gets from (T, B, ...)."""
    if not call.batched:
        return a[:, 0, ...]
    return _swap(call.xp, a) if stack.batch_first else a


def _swap(xp: Namespace, a: Array) -> Array:
    return xp.permute_dims(a, (1, 0, *range(2, a.ndim)))


def _leave_state(stack: Stack, call: Call, state: LSTMState) -> LSTMState:
    B = call.x.shape[1]
    shapes = ((*stack.lead, *([B] if call.batched else []), a.shape[-1]) for a in state)
    return LSTMState(*(_array.reshape(a, shape) for a, shape in zip(state, shapes, strict=True)))


def problem(stack: Stack, call: Call, layer: int, keep: bool) -> Problem:
    """What a kernel is asked to run for one layer."""
    T, B = call.x.shape[0], call.x.shape[1]
    inner = stack.output_size * len(stack.reverse)
    return Problem(
        call.xp,
        _array.backend_name(call.xp),
        call.home.device,
        call.home.dtype,
        T,
        B,
        inner if layer else stack.input_size,
        stack.hidden_size,
        stack.proj_size,
        stack.bias,
        stack.reverse,
        call.valid.kind,
        keep,
    )


def _layer_state(stack: Stack, state: LSTMState, layer: int) -> LSTMState:
    D = len(stack.reverse)
    return LSTMState(*(a[layer * D : (layer + 1) * D, ...] for a in state))


def explain(stack: Stack, call: Call) -> Explanation:
    """What would run each layer, and why not each faster kernel."""
    chosen, reasons = [], []
    for layer in range(stack.num_layers):
        asked = problem(stack, call, layer, keep=False)
        chosen.append(_dispatch.select(asked))
        names = list(_dispatch.TABLE)
        faster = names[: names.index(chosen[-1].name)]
        reasons.append({name: _dispatch.why_not(name, asked) for name in faster})
    return Explanation(
        tuple(kernel.name for kernel in chosen),
        tuple(reasons),
        all(kernel.canonical_sums for kernel in chosen),
    )


def forward(stack: Stack, call: Call, prepare: Prepare) -> tuple[Array, LSTMState]:
    """Output and final state, nothing kept."""
    x, ends = call.x, []
    for layer in range(stack.num_layers):
        asked = problem(stack, call, layer, keep=False)
        kernel = _dispatch.select(asked)
        state = _layer_state(stack, call.state, layer)
        x, end, _ = kernel.forward(asked, prepare(kernel, asked, layer), x, state, call.valid.array)
        ends.append(end)
    return _user_major(stack, call, x), _leave_state(stack, call, _concat(call.xp, ends))


def _concat(xp: Namespace, states: list[LSTMState]) -> LSTMState:
    if len(states) == 1:
        return states[0]
    return LSTMState(xp.concat([s.h for s in states], axis=0), xp.concat([s.c for s in states], axis=0))


def vjp(
    stack: Stack, call: Call, layers: Layers, key: np.ndarray | None, checkpoint: int | None
) -> tuple[Array, LSTMState, Pullback]:
    """Output, final state, and the function that takes their gradients back."""
    x, ends, kept, masks = call.x, [], [], []
    for layer, params in enumerate(layers):
        masks.append(_dropout_mask(stack, call, key, layer))
        x = x if masks[-1] is None else x * masks[-1]
        state = _layer_state(stack, call.state, layer)
        x, end, residuals = _keep(problem(stack, call, layer, keep=True), params, x, state, call, checkpoint)
        ends.append(end)
        kept.append(residuals)

    def pullback(
        dy: Array | None = None, dstate_n: LSTMState | None = None
    ) -> tuple[Array, LSTMState, Layers]:
        return _pull_back(stack, call, kept, masks, dy, dstate_n)

    return _user_major(stack, call, x), _leave_state(stack, call, _concat(call.xp, ends)), pullback


def _keep(
    asked: Problem, params: Directions, x: Array, state: LSTMState, call: Call, checkpoint: int | None
) -> tuple[Array, LSTMState, Callable[[Array, LSTMState], tuple[Array, LSTMState, Directions]]]:
    """One layer forward, and its way back."""
    valid = call.valid.array
    if checkpoint is None or checkpoint >= asked.T:
        kernel = _dispatch.select(asked)
        y, end, residuals = kernel.forward(asked, kernel.prepare(asked, params), x, state, valid)
        return y, end, lambda dy, dstate: kernel.backward(residuals, dy, dstate)
    kernel = _dispatch.select(_checkpoint.widened(asked)._replace(T=checkpoint))
    y, end, segments = _checkpoint.forward(kernel, checkpoint, asked, params, x, state, valid)
    return y, end, lambda dy, dstate: _checkpoint.backward(segments, dy, dstate)


def _dropout_mask(stack: Stack, call: Call, key: np.ndarray | None, layer: int) -> Array | None:
    """The mask between the layer before and this one; the stream is this layer's number."""
    if key is None or stack.dropout == 0 or layer == 0:
        return None
    T, B = call.x.shape[0], call.x.shape[1]
    shape = (T, B, stack.output_size * len(stack.reverse))
    xp, device, dtype = call.home
    return _dropout.scaled_mask(xp, shape, stack.dropout, key, layer, dtype, device)


def _pull_back(
    stack: Stack,
    call: Call,
    kept: list[Callable[[Array, LSTMState], tuple[Array, LSTMState, Directions]]],
    masks: list[Array | None],
    dy: Array | None,
    dstate_n: LSTMState | None,
) -> tuple[Array, LSTMState, Layers]:
    """Gradients by x, by the initial state and by each layer's parameters."""
    T, B = call.x.shape[0], call.x.shape[1]
    dx = _enter_dy(stack, call, dy, T, B)
    dstate_n = _enter_state(stack, call.home, dstate_n, B, call.batched, "_n's gradient", "dstate_n")
    starts: list[LSTMState] = []
    dlayers: list[Directions] = []
    for layer in reversed(range(stack.num_layers)):
        dx, dstate, dparams = kept[layer](dx, _layer_state(stack, dstate_n, layer))
        mask = masks[layer]
        dx = dx if mask is None else dx * mask
        starts.insert(0, dstate)
        dlayers.insert(0, dparams)
    dstate_0 = _leave_state(stack, call, _concat(call.xp, starts))
    return _user_major(stack, call, dx), dstate_0, tuple(dlayers)


def _enter_dy(stack: Stack, call: Call, dy: Array | None, T: int, B: int) -> Array:
    n = stack.output_size * len(stack.reverse)
    if dy is None:
        dtype = _array.dtype_named(call.xp, call.home.dtype)
        return call.xp.zeros((T, B, n), dtype=dtype, device=call.home.device)
    dy = _checks.array("dy", dy, call.home, (*_axes(stack, T, B, call.batched), n), "the shape of y")
    return _time_major(stack, call.xp, dy, call.batched)


def trace(stack: Stack, call: Call, layers: Layers) -> tuple[Array, ...]:
    """i, f, g, o, c, h, each (L*D, T, B, ·), by the reference kernel."""
    x, directions = call.x, []
    for layer, params in enumerate(layers):
        asked = problem(stack, call, layer, keep=True)
        packed = _sequence.prepare(asked, params)
        state = _layer_state(stack, call.state, layer)
        x, _, residuals = _sequence.forward(asked, packed, x, state, call.valid.array)
        assert residuals is not None
        directions += [_sequence.trace(residuals, d) for d in range(len(stack.reverse))]
    return tuple(_traced(stack, call, column) for column in zip(*directions, strict=True))


def _traced(stack: Stack, call: Call, column: tuple[Array, ...]) -> Array:
    """One quantity of all layers and directions, with the axes as the user passes x."""
    return call.xp.stack([_user_major(stack, call, a) for a in column], axis=0)


def names(stack: Stack) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Names of the parameters by layer and direction, each in the order of `LSTMParams`."""
    suffixes = ("", "_reverse")[: len(stack.reverse)]
    return tuple(
        tuple(tuple(f"{field}_l{layer}{suffix}" for field in LSTMParams._fields) for suffix in suffixes)
        for layer in range(stack.num_layers)
    )


def shapes(stack: Stack) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter that the stack has, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(stack.num_layers):
        size = stack.output_size * len(stack.reverse) if layer else stack.input_size
        for suffix in ("", "_reverse")[: len(stack.reverse)]:
            found |= _checks.parameter_shapes(
                size, stack.hidden_size, stack.proj_size, stack.bias, f"_l{layer}{suffix}"
            )
    return found
