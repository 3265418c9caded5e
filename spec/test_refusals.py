"""Wrong shapes of every array, in a layer and in a module: nothing is repaired."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest

from spec.calls import CASES, given
from spec.sized import Sized
from spec.subject import Adapter, Arrays, Refused, Unsupported
from spec.test_vectors import says

CALLS = {
    "layer": "lengths-231",
    "module": "four-layers",
    "projection": "projection-module",
    "reverse": "two-directions-2-p2",
}
GRIDS = {"mask": "mask-module", "reset": "resets-reverse"}
"""Calls with an array of booleans for each step and batch entry."""


def places() -> list[str]:
    """Each array of each call, by its name there."""
    names = {call: [*given(name, "float32")] for call, name in CALLS.items()}
    return [f"{call}-{n}" for call, here in names.items() for n in here if asked(call, n)]


def asked(call: str, name: str) -> bool:
    """Leave out x, whose shape gives T and B, and of layers and directions what another call asks."""
    return name.endswith("_reverse") if call == "reverse" else name != "x" and "_l1" not in name


def wrong_shapes(a: np.ndarray) -> dict[str, np.ndarray]:
    """The array transposed, cut to one row, a row or column larger or smaller, an axis more or less."""
    made = {"transposed": a.T, "one axis more": a[None], "one axis more at the end": a[..., None]}
    made |= {"one axis less": a[0], "no numbers": a[:0]}
    for axis in range(a.ndim):
        made[f"one less in axis {axis}"] = np.delete(a, -1, axis)
        made[f"one more in axis {axis}"] = np.concatenate([a, a.take([-1], axis)], axis)
        made[f"axis {axis} of one"] = a.take([0], axis)
    return {how: np.array(v, order="C") for how, v in made.items() if v.shape != a.shape}


def other_widths(a: Arrays, array: str) -> dict[str, np.ndarray]:
    """Under a projection: an array of the hidden state as wide as the cell state, and the other way round."""
    P, H = a["h_0"].shape[-1], a["c_0"].shape[-1]
    width = {P: H, H: P}.get(a[array].shape[-1])
    if width is None or P == H:
        return {}
    wide = np.concatenate([a[array], a[array]], -1)
    return {f"{width} columns": np.array(np.concatenate([wide, wide], -1)[..., :width], order="C")}


def accepted(subject: Adapter, case: Sized, a: Arrays, array: str) -> list[str]:
    """The wrong shapes that end in a result; each call is one that is right otherwise."""
    late = array.startswith("d")
    start = a if late else {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    op = f"{case.op}_vjp" if late else case.op
    found = []
    try:
        subject.call(op, case.config, dict(start))
        for how, wrong in (wrong_shapes(a[array]) | other_widths(a, array)).items():
            try:
                subject.call(op, case.config, start | {array: wrong})
            except Refused:
                continue
            found.append(f"{how}, {wrong.shape} for {a[array].shape}")
    except Unsupported as reason:
        pytest.skip(str(reason))
    return found


@pytest.mark.parametrize("name", places())
def test_wrong_shape_is_refused(subject: Adapter, name: str) -> None:
    """XPL-ERR-002."""
    call, array = name.split("-")
    case = CASES[CALLS[call]]
    found = accepted(subject, case, given(CALLS[call], "float32"), array)
    assert not found, f"{array} was accepted: {'; '.join(found)}"


@pytest.mark.parametrize("call", CALLS)
def test_wrong_features_are_refused(subject: Adapter, call: str) -> None:
    """XPL-ERR-002: x with a feature more or less, and x without its batch axis."""
    case, a = CASES[CALLS[call]], given(CALLS[call], "float32")
    start, x, found = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}, a["x"], []
    wider = np.concatenate([x, x[..., :1]], -1)
    try:
        for wrong in (wider, x[..., :-1].copy(), x[..., :1].copy(), x[:, 0].copy()):
            with contextlib.suppress(Refused):
                subject.call(case.op, case.config, start | {"x": wrong})
                found.append(wrong.shape)
        if call == "layer":
            # A batch of one is not to be guessed either.
            one = {n: start[n][:1].copy() for n in ("h_0", "c_0")} | {"x": x[:, 0].copy()}
            with contextlib.suppress(Refused):
                subject.call(case.op, case.config | {"lengths": None}, start | one)
                found.append(one["x"].shape)
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert not found, f"x was accepted with the shapes {found}"


@pytest.mark.parametrize("name", ["layer", "module"])
@pytest.mark.parametrize("count", [2, 4])
def test_wrong_number_of_lengths_is_refused(subject: Adapter, name: str, count: int) -> None:
    """XPL-ERR-002."""
    key = {"layer": "lengths-231", "module": "lengths-231-two-directions"}[name]
    case = CASES[key]
    a = {n: v for n, v in given(key, "float32").items() if n not in ("dy", "dh_n", "dc_n")}
    try:
        subject.call(case.op, case.config, dict(a))
        with pytest.raises(Refused):
            subject.call(case.op, case.config | {"lengths": [2, 3, 1, 2][:count]}, dict(a))
    except Unsupported as reason:
        pytest.skip(str(reason))


RAGGED = {
    "layer": "lengths-231",
    "reverse": "lengths-231-reverse",
    "module": "ragged-one-direction",
    "directions": "lengths-231-two-directions",
}


def with_lengths(subject: Adapter, name: str, gradients: bool, lengths: list[int]) -> None:
    """Ask for other lengths than a call has."""
    case, a = CASES[RAGGED[name]], given(RAGGED[name], "float32")
    kept = {n: v for n, v in a.items() if gradients or n not in ("dy", "dh_n", "dc_n")}
    op = f"{case.op}_vjp" if gradients else case.op
    try:
        subject.call(op, case.config | {"lengths": lengths}, kept)
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("wrong", [-3, 6, 47])
def test_refusal_names_the_length(subject: Adapter, name: str, wrong: int) -> None:
    """XPL-ERR-003: the value itself, as a number of its own in the message."""
    with pytest.raises(Refused) as refusal:
        with_lengths(subject, name, False, [2, wrong, 1])
    assert re.search(rf"(?<![\w.-]){wrong}(?![\w.])", str(refusal.value)), f"no {wrong} in: {refusal.value}"


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("name", RAGGED)
def test_wrong_length_is_refused_anywhere(subject: Adapter, name: str, at: int, gradients: bool) -> None:
    """XPL-ERR-003: of each batch entry, in each direction, with gradients and without."""
    for wrong in (-1, 6):
        with pytest.raises(Refused):
            with_lengths(subject, name, gradients, [wrong if b == at else 2 for b in range(3)])


@pytest.mark.parametrize(
    "how",
    [
        *("transposed", "a step less", "a step more", "an entry less", "an entry more"),
        *("one entry", "one step", "no axis of steps", "an axis more"),
    ],
)
@pytest.mark.parametrize("name", GRIDS)
def test_wrong_mask_is_refused(subject: Adapter, name: str, how: str) -> None:
    """XPL-ERR-002: a mask and resets have the shape (T, B)."""
    case = CASES[GRIDS[name]]
    grid = np.asarray(case.config[name])
    wrong = {
        "transposed": grid.T,
        "a step less": grid[:-1],
        "a step more": np.concatenate([grid, grid[:1]]),
        "an entry less": grid[:, :-1],
        "an entry more": np.concatenate([grid, grid[:, :1]], 1),
        "one entry": grid[:, :1],
        "one step": grid[:1],
        "no axis of steps": grid[0],
        "an axis more": grid[..., None],
    }[how]
    a = {n: v for n, v in given(GRIDS[name], "float32").items() if n not in ("dy", "dh_n", "dc_n")}
    try:
        subject.call(case.op, case.config, dict(a))
        with pytest.raises(Refused):
            subject.call(case.op, case.config | {name: wrong.tolist()}, dict(a))
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", [name for name in places() if "weight" in name or "bias" in name])
def test_refusal_names_the_parameter(subject: Adapter, name: str) -> None:
    """XPL-ERR-001: the parameter, the expected shape and the given one, of each parameter."""
    call, array = name.split("-")
    case, a = CASES[CALLS[call]], dict(given(CALLS[call], "float32"))
    forward = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    wrong = np.concatenate([a[array], a[array][-1:]])
    # A library that has modules alone may name the parameter of a layer as a module's.
    argument = f"{array}(_l0)?" if call == "layer" else array
    fault = {"argument": argument, "expected": a[array].shape, "given": wrong.shape}
    try:
        with pytest.raises(Refused) as refusal:
            subject.call(case.op, case.config, forward | {array: wrong})
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert says(str(refusal.value), fault), f"not named, or without both shapes: {refusal.value}"


@pytest.mark.parametrize("name", [n for n in places() if "bias" in n or "weight_hh_l" in n])
def test_a_missing_parameter_is_refused(subject: Adapter, name: str) -> None:
    """XPL-ERR-004: a bias of any layer and direction, and a weight, which is not taken for zero."""
    call, array = name.split("-")
    case, a = CASES[CALLS[call]], given(CALLS[call], "float32")
    kept = {n: v for n, v in a.items() if n not in (array, "dy", "dh_n", "dc_n")}
    try:
        with pytest.raises(Refused):
            subject.call(case.op, case.config, kept)
    except Unsupported as reason:
        pytest.skip(str(reason))
