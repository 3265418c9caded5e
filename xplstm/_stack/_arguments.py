"""Check the arguments of a call, convert them to (T, B, ·), and convert results to the user's axes."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from xplstm import _array, _checks
from xplstm._checks import Home, Valid
from xplstm._errors import ArgumentError
from xplstm._stack._layers import Stack
from xplstm._state import LSTMState
from xplstm._typing import Array, Lengths, Namespace
from xplstm.kernels import _steps

Size = TypeVar("Size", int, str)


class Call(NamedTuple):
    """The checked, time-major arguments of a call."""

    home: Home
    x: Array
    state: LSTMState
    valid: Valid
    batched: bool
    fresh: tuple[Array, ...]
    """Empty, or one array (D, T, B): True where a direction starts a step from zeros."""

    @property
    def xp(self) -> Namespace:
        """Namespace of the arrays."""
        return self.home.xp


def enter(
    stack: Stack,
    home: Home,
    x: Array,
    state: LSTMState | tuple[Array, Array] | None,
    lengths: Lengths,
    mask: Array | None,
    reset: Array | None = None,
) -> Call:
    """Check every argument and convert it to (T, B, ·) or (L*D, B, ·)."""
    batched = getattr(x, "ndim", 3) != 2
    shape: tuple[int | str, ...] = (*_axes(stack, "T", "B", batched), stack.input_size)
    x = _checks.array("x", x, home, shape, "the last axis is input_size")
    x = _time_major(stack, home.xp, x, batched)
    T, B = x.shape[0], x.shape[1]
    _checks.sizes(T, B)
    mask = _enter_flags(stack, home, "mask", mask, T, B, batched)
    reset = _enter_flags(stack, home, "reset", reset, T, B, batched)
    entries: Any = lengths
    if not batched and isinstance(entries, int):
        entries = [entries]
    elif not batched and getattr(entries, "shape", None) == ():
        entries = entries[None]
    valid = _checks.valid(entries, mask, home, T, B)
    hint = f"; {_checks.AXES}" if batched and T > 1 else ""
    state = enter_state(stack, home, state, B, batched, "_0", "state", hint)
    fresh: tuple[Array, ...] = ()
    if reset is not None:
        exists = _steps.existing(home.xp, *valid, T, home.device)
        fresh = (_steps.fresh(home.xp, reset, exists, stack.reverse),)
    return Call(home, x, state, valid, batched, fresh)


def _enter_flags(
    stack: Stack, home: Home, name: str, flags: Array | None, T: int, B: int, batched: bool
) -> Array | None:
    """Check booleans with the time and batch axes, and convert them to (T, B)."""
    if flags is None:
        return None
    flags = _checks.flags(name, flags, home, _axes(stack, T, B, batched))
    return _time_major(stack, home.xp, flags, batched)


def _axes(stack: Stack, T: Size, B: Size, batched: bool) -> tuple[Size, ...]:
    """Return the sizes of the time and batch axes, in the user's order."""
    if not batched:
        return (T,)
    return (B, T) if stack.batch_first else (T, B)


def enter_state(
    stack: Stack,
    home: Home,
    state: LSTMState | tuple[Array, Array] | None,
    B: int,
    batched: bool,
    suffix: str,
    name: str,
    hint: str = "",
) -> LSTMState:
    """Return the given state, or zeros, as (L*D, B, ·); the error for another shape ends with `hint`."""
    rows = stack.num_layers * len(stack.reverse)
    sizes = (stack.output_size, stack.cell.cell_size(stack.hidden_size))
    if state is None:
        return LSTMState(*(_array.zeros(home.xp, (rows, B, n), home.dtype, home.device) for n in sizes))
    meaning = ("num_layers * directions, " if stack.layer_axis else "") + ("B, " if batched else "")
    entered = []
    lasts = ("output size", "hidden_size")
    for letter, a, n, last in zip("hc", _checks.state(name, state), sizes, lasts, strict=True):
        if a is None and name == "dstate_n":
            entered.append(_array.zeros(home.xp, (rows, B, n), home.dtype, home.device))
            continue
        shape = (*stack.lead, *([B] if batched else []), n)
        a = _checks.array(letter + suffix, a, home, shape, f"({meaning}{last}){hint}")
        entered.append(_array.reshape(a, (rows, B, n)))
    return LSTMState(*entered)


def _time_major(stack: Stack, xp: Namespace, a: Array, batched: bool) -> Array:
    """Convert an array from the user's layout to (T, B, ...)."""
    if not batched:
        return xp.expand_dims(a, axis=1)
    return _swap(xp, a) if stack.batch_first else a


def user_major(stack: Stack, call: Call, a: Array) -> Array:
    """Convert an array (T, B, ...) to the user's layout."""
    if not call.batched:
        return a[:, 0, ...]
    return _swap(call.xp, a) if stack.batch_first else a


def _swap(xp: Namespace, a: Array) -> Array:
    return xp.permute_dims(a, (1, 0, *range(2, a.ndim)))


def leave_state(stack: Stack, call: Call, state: LSTMState) -> LSTMState:
    if stack.layer_axis and call.batched:
        return state
    B = call.x.shape[1]
    shapes = ((*stack.lead, *([B] if call.batched else []), a.shape[-1]) for a in state)
    return LSTMState(*(_array.reshape(a, shape) for a, shape in zip(state, shapes, strict=True)))


def leave_y(stack: Stack, call: Call, y: Array) -> Array:
    """Convert y (T, B, ·) to the user's layout; merge="none" puts the directions on a first axis."""
    if stack.merge != "none":
        return user_major(stack, call, y)
    P = stack.output_size
    return call.xp.stack([user_major(stack, call, y[..., d * P : (d + 1) * P]) for d in range(2)], axis=0)


def enter_step(stack: Stack, home: Home, x_t: Array, state: Any) -> Call:
    """Check the arguments of a step, and return the call for a sequence of length 1."""
    if any(stack.reverse):
        option = "bidirectional" if len(stack.reverse) == 2 else "reverse"
        msg = f"step needs {option}=False: a backward direction starts at the end of the sequence"
        raise ArgumentError(msg)
    shape = (stack.input_size,) if getattr(x_t, "ndim", 2) == 1 else ("B", stack.input_size)
    x_t = _checks.array("x_t", x_t, home, shape, "the last axis is input_size")
    return enter(stack._replace(batch_first=False), home, x_t[None, ...], state, None, None)


def enter_dy(stack: Stack, call: Call, dy: Array | None, T: int, B: int) -> Array:
    """Return the gradient with respect to y as (T, B, ·), with the directions concatenated."""
    if dy is None:
        dtype = _array.dtype_from_name(call.xp, call.home.dtype)
        return call.xp.zeros((T, B, stack.width), dtype=dtype, device=call.home.device)
    axes = _axes(stack, T, B, call.batched)
    if stack.merge != "none":
        dy = _checks.array("dy", dy, call.home, (*axes, stack.width), "the shape of y")
        return _time_major(stack, call.xp, dy, call.batched)
    dy = _checks.array("dy", dy, call.home, (2, *axes, stack.output_size), "the shape of y")
    parts = [_time_major(stack, call.xp, dy[d, ...], call.batched) for d in range(2)]
    return call.xp.concat(parts, axis=-1)
