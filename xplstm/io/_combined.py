"""Combine networks of one layer and direction into one network with several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from xplstm import _array
from xplstm._stack import _merge
from xplstm._typing import Array
from xplstm.io._contents import Found

Stack = Sequence[tuple[Found, ...]]


def combine(prefix: str, stack: Stack, merge: str = "concat") -> Found:
    """Return one network from layers and directions that are separate networks."""
    ones = [one for layer in stack for one in layer]
    first = ones[0]
    problem = next((one.problem for one in ones if one.problem), None) or _misfit(stack, merge)
    options = dict(first.options) | {"num_layers": len(stack), "bidirectional": len(stack[0]) == 2}
    names = tuple(name for one in ones for name in one.names)
    return first._replace(
        prefix=prefix,
        options=options,
        names=names,
        params=partial(_params, stack),
        problem=problem,
        parts=tuple(place for one in ones for place in one.places),
        state=_state(ones) if problem is None else None,
    )


def _state(ones: Sequence[Found]) -> tuple[Array, ...] | None:
    """Concatenate the initial states of all layers and directions."""
    states = [one.state for one in ones if one.state is not None]
    if not states:
        return None
    xp = _array.namespace(states[0][0], "h_0")
    return tuple(xp.concat(arrays, axis=0) for arrays in zip(*states, strict=True))


def _misfit(stack: Stack, merge: str) -> str | None:
    """Return why these networks cannot be layers of one network; None if they can."""
    first = stack[0][0]
    batches = [one.state and one.state[0].shape[1] for layer in stack for one in layer]
    if len({*batches}) > 1:
        return "only some layers have an initial state, or the states have different batch sizes"
    if len({one.lengths for layer in stack for one in layer}) > 1:
        return "the layers have different constant lengths"
    if len({len(layer) for layer in stack}) > 1 or len(stack[0]) > 2:
        counts = [len(layer) for layer in stack]
        return f"the layers have {counts} directions; all must have 1, or all 2"
    outputs = first.options.get("proj_size") or first.options["hidden_size"]
    width = _merge.width(merge, outputs, len(stack[0]))
    for number, layer in enumerate(stack):
        for place, one in enumerate(layer):
            if "reverse" in one.undetermined:
                return f"{one.prefix!r} returns its outputs in reverse order of time; load it separately"
            single = one.options.get("num_layers", 1) == 1 and not one.options.get("bidirectional")
            if one.kind != first.kind or not single:
                return f"{one.prefix!r} must be an {first.kind} with one layer and one direction"
            wanted = {**first.options, "input_size": width if number else first.options["input_size"]}
            for name, value in wanted.items():
                given = one.options.get(name)
                if given != value and (name, place) != ("reverse", 1):  # the second direction is the reverse
                    return f"{one.prefix!r} has {name}={given!r}, expected {value!r} in layer {number}"
    return None


def _params(stack: Stack) -> dict[str, Array]:
    return {
        f"{name.removesuffix('_l0')}_l{number}{suffix}": a
        for number, layer in enumerate(stack)
        for suffix, one in zip(("", "_reverse"), layer, strict=False)
        for name, a in one.params().items()
    }
