"""Test values and slopes of functions and clips at their kinks, which no difference can judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from spec.sized import layer
from spec.subject import Adapter, Arrays, Config, Unsupported
from spec.wrong_calls import Plain
from spec.wrong_cell import ACTIVATIONS, Activation

UNITS = 19
"""Enough for every remainder of a vector; every other unit is at the kink."""
BESIDE = 2.0**-3
"""How far the other units are from it."""
BOUND = {"float64": 1e-12, "float32": 1e-5}
SIGMOID, TANH, IDENTITY = ["sigmoid"], ["tanh"], ["identity"]


class Kink(NamedTuple):
    """A function with its kink, its value there, and its lowest and highest slope there."""

    function: list[str]
    at: float
    value: float
    slopes: tuple[float, float]


KINKS = {
    "relu": Kink(["relu"], 0, 0, (0, 1)),
    "leaky-relu": Kink(["leaky_relu", "0.25"], 0, 0, (0.25, 1)),
    "thresholded-relu": Kink(["thresholded_relu", "0.5"], 0.5, 0.5, (0, 1)),
    "hard-sigmoid-below": Kink(["hard_sigmoid", "0.25", "0.5"], -2, 0, (0, 0.25)),
    "hard-sigmoid-above": Kink(["hard_sigmoid", "0.25", "0.5"], 2, 1, (0, 0.25)),
    "elu": Kink(["elu", "0.5"], 0, 0, (0.5, 1)),
}


class Question(NamedTuple):
    """One step of units at a kink, and what its results must be there."""

    variant: Config
    arrays: Arrays
    value: tuple[str, float]
    """A final state and its value."""
    slope: tuple[str, int, Callable[[Arrays], float | np.ndarray]]
    """A gradient, its row of units, and by how much the slope is multiplied in it."""
    slopes: tuple[float, float]


def one_step(z: dict[str, float], which: str, at: float, cotangent: str = "dh_n", c_0: float = 0) -> Arrays:
    """Return arrays whose pre-activations are biases; every other unit of a gate or of c_0 has `at`."""
    bias, c = np.repeat([z.get(gate, 0.0) for gate in "ifgo"], UNITS), np.full((1, UNITS), c_0)
    units = c[0] if which == "c" else bias[UNITS * "ifgo".index(which) :][:UNITS]
    units[::2] = at
    states = {n: np.full((1, UNITS), float(n == cotangent)) for n in ("h_0", "dh_n", "dc_n")}
    zeros = {"weight_ih": np.zeros((4 * UNITS, 2)), "weight_hh": np.zeros((4 * UNITS, UNITS))}
    sequences = {"x": np.zeros((1, 1, 2)), "dy": np.zeros((1, 1, UNITS))}
    return zeros | {"bias_ih": bias, "bias_hh": np.zeros(4 * UNITS), "c_0": c} | states | sequences


def in_i(kink: Kink) -> Question:
    """c' = F(z_i) tanh(1) and h = F(z_o) tanh(c')."""

    def into_i(got: Arrays) -> np.ndarray:
        h, c = got["h_n"][0], got["c_n"][0]
        o = h[1] / np.tanh(c[1])
        return np.asarray(o * (1 - np.tanh(c[::2]) ** 2) * np.tanh(1))

    z = {"i": kink.at + BESIDE, "g": 1.0, "o": kink.at + 1}
    value, slope = ("c_n", kink.value * np.tanh(1)), ("dbias_ih", 0, into_i)
    return Question(
        {"activations": [kink.function, TANH, TANH]}, one_step(z, "i", kink.at), value, slope, kink.slopes
    )


def in_g(kink: Kink) -> Question:
    """c' = G(z_g) / 2 and h = c' / 2."""
    a, slope = one_step({"g": kink.at + BESIDE}, "g", kink.at), ("dbias_ih", 2, lambda _: 0.25)
    functions = [SIGMOID, kink.function, IDENTITY]
    return Question({"activations": functions}, a, ("c_n", kink.value / 2), slope, kink.slopes)


def in_c(kink: Kink) -> Question:
    """c' = c_0 / 2 and h = H(c') / 2."""
    a, slope = one_step({}, "c", 2 * kink.at, c_0=2 * kink.at + BESIDE), ("dc_0", 0, lambda _: 0.25)
    functions = [SIGMOID, TANH, kink.function]
    return Question({"activations": functions}, a, ("h_n", kink.value / 2), slope, kink.slopes)


def at_gate_clip(bound: float) -> Question:
    """c' = tanh(z_g) / 2, where z_g is the bound."""
    a = one_step({"g": 1.5 * bound}, "g", bound, "dc_n")
    slope = ("dbias_ih", 2, lambda _: (1 - np.tanh(bound) ** 2) / 2)
    return Question({"gate_clip": str(abs(bound))}, a, ("c_n", np.tanh(bound) / 2), slope, (0, 1))


def at_cell_clip(bound: float) -> Question:
    """c' = c_0 / 2 is the bound."""
    a = one_step({}, "c", 2 * bound, "dc_n", c_0=8 * bound)
    return Question({"cell_clip": str(abs(bound))}, a, ("c_n", bound), ("dc_0", 0, lambda _: 0.5), (0, 1))


OF_FUNCTIONS = {
    f"{name}-in-{place}": (make, name)
    for place, make in (("i", in_i), ("g", in_g), ("c", in_c))
    for name in KINKS
}
QUESTIONS = {name: make(KINKS[kink]) for name, (make, kink) in OF_FUNCTIONS.items()} | {
    **{f"gate-clip-{side}": at_gate_clip(sign * 0.5) for side, sign in (("below", -1), ("above", 1))},
    **{f"cell-clip-{side}": at_cell_clip(sign * 0.25) for side, sign in (("below", -1), ("above", 1))},
}


def clause_of(name: str) -> str:
    return {"gate": "XPL-VAR-005", "cell": "XPL-VAR-006"}.get(name.partition("-")[0], "XPL-VAR-003")


def answer(subject: Adapter, op: str, name: str, dtype: str) -> Arrays:
    asked = QUESTIONS[name]
    given = {
        n: v.astype(dtype) for n, v in asked.arrays.items() if op == "layer_vjp" or not n.startswith("d")
    }
    try:
        return subject.call(op, layer(2, UNITS, 1, 1, variant=asked.variant).config, given)
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.clauses(clause_of(name))) for name in QUESTIONS]
)
def test_values_at_kinks(subject: Adapter, name: str, dtype: str) -> None:
    """Compute a state from units at a kink; the clause is that of the function or clip."""
    state, value = QUESTIONS[name].value
    got = answer(subject, "layer", name, dtype)[state][0, ::2]
    np.testing.assert_allclose(got, np.full(got.shape, value), rtol=0, atol=BOUND[dtype])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("name", QUESTIONS)
def test_slopes_at_kinks(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-VAR-019."""
    (gradient, row, factor), (low, high) = QUESTIONS[name].slope, QUESTIONS[name].slopes
    got, bound = answer(subject, "layer_vjp", name, dtype), BOUND[dtype]
    slopes = got[gradient].reshape(-1, UNITS)[row, ::2] / factor(got)
    assert ((low - bound <= slopes) & (slopes <= high + bound)).all(), f"{slopes} is not in [{low}, {high}]"


@pytest.mark.parametrize("slope", [-0.25, 1.25, np.nan])
@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_a_wrong_slope_is_found(name: str, slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kink = KINKS[OF_FUNCTIONS[name][1]]
    make, defaults = ACTIVATIONS[kink.function[0]]

    def wrong(*numbers: float) -> Activation:
        right = make(*numbers)
        return right._replace(slope=lambda z, y: np.where(z == kink.at, slope, right.slope(z, y)))

    test_slopes_at_kinks(Plain(), name, "float64")
    monkeypatch.setitem(ACTIVATIONS, kink.function[0], (wrong, defaults))
    with pytest.raises(AssertionError, match="is not in"):
        test_slopes_at_kinks(Plain(), name, "float64")


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_a_wrong_value_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kink = KINKS[OF_FUNCTIONS[name][1]]
    make, defaults = ACTIVATIONS[kink.function[0]]

    def wrong(*numbers: float) -> Activation:
        right = make(*numbers)
        return right._replace(value=lambda z: np.where(z == kink.at, 0.75, right.value(z)))

    test_values_at_kinks(Plain(), name, "float64")
    monkeypatch.setitem(ACTIVATIONS, kink.function[0], (wrong, defaults))
    with pytest.raises(AssertionError):
        test_values_at_kinks(Plain(), name, "float64")
