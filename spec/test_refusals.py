"""Check that layers and modules refuse wrong shapes of every array, and repair none."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest

from spec import calls, gru_calls
from spec.sized import Sized
from spec.sized_mutants import Test, both, empty, no_rows, option, single, stacked
from spec.subject import Adapter, Arrays, Config, Refused, Unsupported
from spec.test_vectors import says

CASES = calls.CASES | gru_calls.CASES
CALLS = {
    "layer": "lengths-231",
    "module": "four-layers",
    "projection": "projection-module",
    "reverse": "two-directions-2-p2",
    "upper": "two-directions-2-p2",
    "gru": "gru-lengths-equal-after",
    "gru_before": "gru-no-ends-before",
    "no_steps": "no-steps-two-directions",
    "no_entries": "no-rows-module",
    "peepholes": "peepholes-two-directions",
    "peepholes_layer": "peepholes-reverse",
    "projection_layer": "projection-lengths-reverse",
    "norm": "layer-norm-two-directions",
    "norm_layer": "layer-norm-reverse",
    "sum": "merge-sum-two-layers",
    "none": "merge-none-one-layer",
    "no_bias": "no-bias-module",
    "coupled": "coupled-module",
    "gate_clip": "gate-clip-module",
    "cell_clip": "cell-clip-module",
    "zoneout": "zoneout-module",
    "activations": "functions-module",
    "mask": "mask-module-one-direction",
    "reset": "resets-two-directions",
    "dropout": "noise-dropout-module",
    "input_dropout": "noise-input-module",
    "masked_hh": "noise-weight-module",
    "noise": "noise-zoneout-module",
}
WITH_OPTIONS = (
    *("no_bias", "coupled", "gate_clip", "cell_clip", "zoneout", "activations", "mask", "reset"),
    *("dropout", "input_dropout", "masked_hh", "noise"),
)
"""Calls with one option each, which only the test of shapes makes."""
ONLY = {
    "gru_before": ("weight_hh", "bias"),
    "no_entries": ("weight", "bias", "h_0", "c_0", "dh_n"),
    "peepholes": ("weight_ch",),
    "peepholes_layer": ("weight_ch",),
    "projection_layer": ("weight_h", "h_0", "dy", "dh_n"),
    "norm": ("gain", "bias_c"),
    "norm_layer": ("gain", "bias_c"),
    "sum": ("dy",),
    "none": ("dy",),
    **dict.fromkeys(WITH_OPTIONS, ("weight_hh", "h_0", "dy")),
}
"""Beginnings of the names that some calls test. The first calls test the others."""
GRIDS = {
    "mask": "mask-module",
    "reset": "resets-reverse",
    "gru_mask": "gru-mask-after",
    "gru_reset": "gru-resets-before",
}
"""Calls with an array of booleans for each step and batch entry."""


def given(name: str, dtype: str = "float32") -> Arrays:
    """Return the arrays of a call of either cell."""
    return gru_calls.given(name, dtype) if name in gru_calls.CASES else calls.given(name, dtype)


def places() -> list[str]:
    """Return each array of each call, by its name in that call."""
    names = {call: [*given(name)] for call, name in CALLS.items()}
    return [f"{call}-{n}" for call, here in names.items() for n in here if asked(call, n)]


def plain_places() -> list[str]:
    """Return the places without those of the calls with one option."""
    return [n for n in places() if n.partition("-")[0] not in WITH_OPTIONS]


def asked(call: str, name: str) -> bool:
    """Return whether a call tests an array: not x, which sets T and B, nor what other calls test."""
    if call == "reverse":
        return name.endswith("_reverse")
    if call == "upper":
        return "_l1" in name
    return name != "x" and "_l1" not in name and name.startswith(ONLY.get(call, ""))


def wrong_shapes(a: np.ndarray) -> dict[str, np.ndarray]:
    """Return the array transposed, cut, longer or shorter, with one axis more or less, or of one number."""
    made = {"transposed": a.T, "one axis more": a[None], "one axis more at the end": a[..., None]}
    made |= {"one axis less": a[0] if len(a) else np.zeros(a.shape[1:], a.dtype), "no numbers": a[:0]}
    made |= {"one number": np.ones((1,) * a.ndim, a.dtype)}
    for axis, size in enumerate(a.shape):
        if not size:
            made[f"one more in axis {axis}"] = np.insert(a, 0, 0, axis)
            continue
        made[f"one less in axis {axis}"] = np.delete(a, -1, axis)
        made[f"one more in axis {axis}"] = np.concatenate([a, a.take([-1], axis)], axis)
        made[f"axis {axis} of one"] = a.take([0], axis)
    return {how: np.array(v, order="C") for how, v in made.items() if v.shape != a.shape}


def other_widths(a: Arrays, array: str) -> dict[str, np.ndarray]:
    """Return, with a projection, an array with P columns instead of H, or H instead of P."""
    P, H = a["h_0"].shape[-1], a.get("c_0", a["h_0"]).shape[-1]
    width = {P: H, H: P}.get(a[array].shape[-1])
    if width is None or P == H:
        return {}
    wide = np.concatenate([a[array], a[array]], -1)
    return {f"{width} columns": np.array(np.concatenate([wide, wide], -1)[..., :width], order="C")}


def accepted(subject: Adapter, case: Sized, a: Arrays, array: str, gradients: bool) -> list[str]:
    """Return the wrong shapes that are not refused; each call is otherwise right."""
    start = a if gradients else {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    op, found = f"{case.op}_vjp" if gradients else case.op, []
    subject.call(op, case.config, dict(start))
    for how, wrong in (wrong_shapes(a[array]) | other_widths(a, array)).items():
        with contextlib.suppress(Refused):
            subject.call(op, case.config, start | {array: wrong})
            found.append(f"{how}, {wrong.shape} for {a[array].shape}{', with gradients' * gradients}")
    return found


@pytest.mark.parametrize("name", places())
def test_wrong_shape_is_refused(subject: Adapter, name: str) -> None:
    """XPL-ERR-002: call with gradients and, except for cotangents, without."""
    refuse(subject, name, "float32")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize(
    "name", ["layer-weight_hh", "layer-h_0", "layer-dy", "module-bias_ih_l0", "gru-weight_ih_l0"]
)
def test_wrong_shape_is_refused_in_each_dtype(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-ERR-002: test the other dtypes with some arrays."""
    refuse(subject, name, dtype)


def refuse(subject: Adapter, name: str, dtype: str) -> None:
    """Fail if a subject accepts a wrong shape of an array."""
    call, array = name.split("-")
    case, a, late = CASES[CALLS[call]], given(CALLS[call], dtype), array.startswith("d")
    found: list[str] = []
    for gradients in (True,) if late else (False, True):
        try:
            found += accepted(subject, case, a, array, gradients)
        except Unsupported as reason:
            if late or not gradients:
                pytest.skip(str(reason))
        except Refused as reason:
            pytest.skip(f"it refuses the right call too: {reason}")
    assert not found, f"{array} was accepted: {'; '.join(found)}"


@pytest.mark.parametrize("call", ["layer", "module", "projection", "reverse", "gru", "no_steps"])
def test_wrong_features_are_refused(subject: Adapter, call: str) -> None:
    """XPL-ERR-002: pass x with a feature more or less, and x without its batch axis."""
    case, a = CASES[CALLS[call]], given(CALLS[call])
    start, x, found = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}, a["x"], []
    wider = np.concatenate([x, x[..., :1]], -1)
    try:
        for wrong in (wider, x[..., :-1].copy(), x[..., :1].copy(), x[:, 0].copy()):
            with contextlib.suppress(Refused):
                subject.call(case.op, case.config, start | {"x": wrong})
                found.append(wrong.shape)
        if call == "layer":
            # An implementation must not add a batch axis either.
            one = {n: start[n][:1].copy() for n in ("h_0", "c_0")} | {"x": x[:, 0].copy()}
            with contextlib.suppress(Refused):
                subject.call(case.op, case.config | {"lengths": None}, start | one)
                found.append(one["x"].shape)
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert not found, f"x was accepted with the shapes {found}"


@pytest.mark.parametrize("name", ["layer", "module"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_wrong_number_of_lengths_is_refused(subject: Adapter, name: str, count: int) -> None:
    """XPL-ERR-002."""
    key = {"layer": "lengths-231", "module": "lengths-231-two-directions"}[name]
    case = CASES[key]
    a = {n: v for n, v in given(key).items() if n not in ("dy", "dh_n", "dc_n")}
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
    "gru": "gru-lengths-equal-before",
}


def with_lengths(subject: Adapter, name: str, gradients: bool, lengths: list[int]) -> None:
    """Make a call with other lengths than it has."""
    case, a = CASES[RAGGED[name]], given(RAGGED[name])
    kept = {n: v for n, v in a.items() if gradients or n not in ("dy", "dh_n", "dc_n")}
    op = f"{case.op}_vjp" if gradients else case.op
    try:
        subject.call(op, case.config | {"lengths": lengths}, kept)
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("wrong", [-3, 6, 47])
def test_refusal_names_the_length(subject: Adapter, name: str, wrong: int) -> None:
    """XPL-ERR-003: find the value as a separate number in the message."""
    with pytest.raises(Refused) as refusal:
        with_lengths(subject, name, False, [2, wrong, 1])
    assert re.search(rf"(?<![\w.-]){wrong}(?![\w.])", str(refusal.value)), f"no {wrong} in: {refusal.value}"


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("name", RAGGED)
def test_wrong_length_is_refused_anywhere(subject: Adapter, name: str, at: int, gradients: bool) -> None:
    """XPL-ERR-003: test each batch entry and direction, with gradients and without."""
    # The last three are valid lengths where only 8, 16 or 32 bits of them are read.
    for wrong in (-1, 6, 258, 65538, 2**32 + 2):
        with pytest.raises(Refused):
            with_lengths(subject, name, gradients, [wrong if b == at else 2 for b in range(3)])


@pytest.mark.parametrize(
    "name", ["no-steps-lengths", "no-steps-lengths-module", "gru-no-steps-lengths-after"]
)
def test_a_length_above_no_steps_is_refused(subject: Adapter, name: str) -> None:
    """XPL-ERR-003."""
    case, a = CASES[name], given(name)
    kept = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    try:
        with pytest.raises(Refused):
            subject.call(case.op, case.config | {"lengths": [0, 1]}, kept)
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    "how",
    [
        *("transposed", "a step less", "a step more", "an entry less", "an entry more"),
        *("one entry", "one step", "no axis of steps", "an axis more"),
    ],
)
@pytest.mark.parametrize("name", GRIDS)
def test_wrong_mask_is_refused(subject: Adapter, name: str, how: str) -> None:
    """XPL-ERR-002: require the shape (T, B) of masks and resets."""
    case, option = CASES[GRIDS[name]], name.removeprefix("gru_")
    grid = np.asarray(case.config[option])
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
    a = {n: v for n, v in given(GRIDS[name]).items() if n not in ("dy", "dh_n", "dc_n")}
    try:
        subject.call(case.op, case.config, dict(a))
        with pytest.raises(Refused):
            subject.call(case.op, case.config | {option: wrong.tolist()}, dict(a))
    except Unsupported as reason:
        pytest.skip(str(reason))


SIZING = "projection_layer-weight_hr"
"""The rows of this parameter may define a layer's outputs; another parameter then has the wrong shape."""


@pytest.mark.parametrize(
    "name", [n for n in plain_places() if n != SIZING and ("weight" in n or "bias" in n or "gain" in n)]
)
def test_refusal_names_the_parameter(subject: Adapter, name: str) -> None:
    """XPL-ERR-001: find the parameter, the expected and the given shape in the message."""
    call, array = name.split("-")
    case, a = CASES[CALLS[call]], dict(given(CALLS[call]))
    forward = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    wrong = np.concatenate([a[array], a[array][-1:]])
    # A library that has only modules may use a module's name for the parameter of a layer.
    argument = f"{array}(_l0)?" if case.op == "layer" else array
    fault = {"argument": argument, "expected": a[array].shape, "given": wrong.shape}
    try:
        with pytest.raises(Refused) as refusal:
            subject.call(case.op, case.config, forward | {array: wrong})
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert says(str(refusal.value), fault), f"not named, or without both shapes: {refusal.value}"


NEEDED = ("bias", "weight_hh_l", "weight_ch", "gain")


@pytest.mark.parametrize("name", [n for n in plain_places() if n.partition("-")[2].startswith(NEEDED)])
def test_a_missing_parameter_is_refused(subject: Adapter, name: str) -> None:
    """XPL-ERR-004: leave out a bias of each layer and direction, or a weight, which is not taken for zero."""
    call, array = name.split("-")
    case, a = CASES[CALLS[call]], given(CALLS[call])
    kept = {n: v for n, v in a.items() if n not in (array, "dy", "dh_n", "dc_n")}
    try:
        with pytest.raises(Refused):
            subject.call(case.op, case.config, kept)
    except Unsupported as reason:
        pytest.skip(str(reason))


class Lax:
    """Subject that refuses wrong shapes, except in the calls where it checks none."""

    def __init__(self, looks_away: Test, right: Arrays) -> None:
        self.looks_away, self.right = looks_away, right

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(("name", "version", "library", "kernel"), "lax")

    def why_unavailable(self) -> str | None:
        return None

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        if self.looks_away(op, config, arrays) or all(
            self.right[n].shape == a.shape for n, a in arrays.items()
        ):
            return {}
        raise Refused("shape", "a wrong shape")


def late(op: str, _config: Config, _a: Arrays) -> bool:
    return op.endswith("_vjp")


def second_layer(name: str) -> Test:
    """Return the condition that an array of the second layer has a wrong number of rows."""
    return lambda _op, c, a: np.shape(a[name])[:1] != (4 * c["hidden_size"],)


LAX: dict[str, tuple[Test, bool, str]] = {
    "with gradients": (both(single, late), True, "layer-weight_hh"),
    "of states with gradients": (both(single, late), True, "layer-c_0"),
    "of modules with gradients": (both(stacked, late), True, "module-weight_ih_l0"),
    "of projections with gradients": (both(option("proj_size"), late), True, "projection-weight_hr_l0"),
    "of reverse with gradients": (both(option("bidirectional"), late), True, "reverse-bias_ih_l0_reverse"),
    "of second layers": (
        both(stacked, second_layer("weight_ih_l1_reverse")),
        False,
        "upper-weight_ih_l1_reverse",
    ),
    "of biases of second layers": (
        both(stacked, second_layer("bias_hh_l1")),
        False,
        "upper-bias_hh_l1",
    ),
    "without steps": (empty, False, "no_steps-h_0"),
    "without steps, of parameters": (empty, False, "no_steps-weight_hh_l0_reverse"),
    "without batch entries": (no_rows, False, "no_entries-weight_ih_l0"),
    "of states without batch entries": (no_rows, False, "no_entries-c_0"),
    "of a single number": (lambda _op, _c, a: a["c_0"].size == 1, False, "layer-c_0"),
    "of cotangents without steps": (both(empty, late), True, "no_steps-dy"),
    "of peepholes": (option("peepholes"), False, "peepholes-weight_ch_l0_reverse"),
    "of peepholes in layers": (both(single, option("peepholes")), False, "peepholes_layer-weight_ch"),
    "of projections of layers": (both(single, option("proj_size")), False, "projection_layer-weight_hr"),
    "of gains": (option("layer_norm"), False, "norm-gain_hh_l0"),
    "of gains of layers": (both(single, option("layer_norm")), False, "norm_layer-gain_ih"),
    "of bias_c of layers": (both(single, option("layer_norm")), False, "norm_layer-bias_c"),
    "of gain_c with gradients": (both(option("layer_norm"), late), True, "norm-gain_c_l0"),
    "of sums of directions": (both(option("merge"), late), True, "sum-dy"),
    "of directions apart": (both(option("merge"), late), True, "none-dy"),
    **{
        f"with {name}": (option(name), False, f"{name}-weight_hh_l0")
        for name in ("coupled", "gate_clip", "cell_clip", "activations", "mask", "reset", "dropout", "noise")
    },
    "with zoneout": (option("zoneout_h"), False, "zoneout-weight_hh_l0"),
    "without biases": (lambda _op, c, _a: not c["bias"], False, "no_bias-weight_hh_l0"),
    "of cotangents with input_dropout": (both(option("input_dropout"), late), True, "input_dropout-dy"),
    "of cotangents with weight_dropout": (both(option("weight_dropout"), late), True, "masked_hh-dy"),
    "of GRUs": (option("cell"), False, "gru-weight_hh_l0"),
    "of states of GRUs": (option("cell"), False, "gru-h_0"),
    "of GRUs with gradients": (both(option("cell"), late), True, "gru-bias_hh_l0"),
    "of cotangents of GRUs": (both(option("cell"), late), True, "gru-dh_n"),
    "of GRUs without reset_after": (both(option("cell"), late), True, "gru_before-bias_ih_l0"),
}
"""Where no shape is checked, whether the call has gradients, and the array that detects it."""


@pytest.mark.parametrize("where", LAX)
def test_a_lax_subject_is_found(where: str) -> None:
    when, gradients, name = LAX[where]
    assert name in places()
    call, array = name.split("-")
    case, a = CASES[CALLS[call]], given(CALLS[call])
    assert not accepted(Lax(lambda *_: False, a), case, a, array, gradients)
    assert accepted(Lax(when, a), case, a, array, gradients)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_subject_lax_in_one_dtype_is_found(dtype: str) -> None:
    name = "layer-weight_hh"
    a = given(CALLS["layer"])
    test_wrong_shape_is_refused_in_each_dtype(Lax(lambda *_: False, a), name, dtype)
    with pytest.raises(AssertionError, match="accepted"):
        test_wrong_shape_is_refused_in_each_dtype(
            Lax(lambda _op, _c, a: a["x"].dtype == dtype, a), name, dtype
        )
