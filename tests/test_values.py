"""Check the checks of plain values: results, and errors with the argument, its value and the bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import _values, init, models
from xplstm._errors import ArgumentError, DTypeError

INF, NAN = float("inf"), float("nan")
RETURNED: list[tuple[Any, Any]] = [
    (lambda: _values.size("n", np.int8(3)), 3),
    (lambda: _values.size("n", 0, 0), 0),
    (lambda: _values.finite("x", np.float32(-2.5)), -2.5),
    (lambda: _values.positive("x", 2), 2.0),
    (lambda: _values.in_range("x", 0, 0, 1), 0.0),
    (lambda: _values.probability("p", np.float64(0.5)), 0.5),
    (lambda: _values.flag("f", np.True_), True),
    (lambda: _values.one_of("w", "a", ("a", "b")), "a"),
    (lambda: _values.seed("rng", np.uint64(2**63)), 2**63),
    (lambda: _values.seed("rng", None), None),
]


class Strict:
    """An array that refuses iteration."""

    def __iter__(self) -> Any:
        msg = "array iteration is not allowed"
        raise TypeError(msg)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: _values.items("n", Strict()), DTypeError, "n is a Strict, expected a sequence: array iteration"),
    (lambda: _values.size("n", 1.0), DTypeError, r"n=1\.0 must be an integer"),
    (lambda: _values.size("n", True), DTypeError, "n=True must be an integer"),
    (lambda: _values.size("n", np.asarray(3)), DTypeError, r"n=array\(3\) must be an integer"),
    (lambda: _values.size("n", 0), ArgumentError, "n=0 must be at least 1"),
    (lambda: _values.size("n", 2**31), ArgumentError, "n=2147483648 must be at most 2147483647"),
    (lambda: _values.size("n", 10**400), ArgumentError, "n=an integer of 1329 bits must be at most"),
    (lambda: _values.finite("x", INF), ArgumentError, "x=inf must be finite"),
    (lambda: _values.finite("x", -(10**400)), ArgumentError, "must be finite"),
    (lambda: _values.finite("x", "1"), DTypeError, "x='1' must be a number, finite"),
    (lambda: _values.positive("x", 0.0), ArgumentError, r"x=0\.0 must be above 0 and finite"),
    (lambda: _values.positive("x", NAN), ArgumentError, "x=nan must be above 0"),
    (lambda: _values.in_range("x", 1, 0, 1), ArgumentError, r"x=1 must be in \[0, 1\)"),
    (lambda: _values.in_range("x", None, 0, 1), DTypeError, r"x=None must be a number, in \[0, 1\)"),
    (lambda: _values.probability("p", True), DTypeError, "p=True must be a number"),
    (lambda: _values.flag("f", 1), DTypeError, "f=1 must be True or False"),
    (lambda: _values.one_of("w", "c", ("a", "b")), ArgumentError, "w='c' must be one of a, b"),
    (lambda: _values.one_of("w", ["a"], ("a", "b")), DTypeError, r"w=\['a'\] must be one of a, b"),
    (lambda: _values.seed("rng", -1), ArgumentError, "rng=-1 must be at least 0"),
    (lambda: _values.seed("rng", np.ones((1, 2)).view(np.matrix)), DTypeError, "rng=matrix"),
    (lambda: _values.size("n", "x" * 10**6), DTypeError, r"^.{0,300}$"),
    # The public face takes the same checks.
    (lambda: xplstm.LSTM(10**400, 2), ArgumentError, "input_size=an integer of"),
    (lambda: xplstm.LSTM(3, 2, num_layers=2**63), ArgumentError, "num_layers=9223372036854775808"),
    (lambda: xplstm.LSTM(3, 2, merge=["sum"]), DTypeError, "merge="),
    (lambda: init.uniform((2, 2), INF), ArgumentError, r"bound=inf must be in \[0, inf\)"),
    (lambda: init.uniform((2, 2), "a"), DTypeError, "bound='a' must be a number"),
    (lambda: init.lstm_uniform(xplstm.LSTM(3, 2).shapes, "x"), DTypeError, "rng='x'"),
    (lambda: models.CharLM("ab", 4, rng="x"), DTypeError, "rng='x' must be an integer"),
    (lambda: models.Seq2Seq("ab", "xy", 4, teacher_forcing="0.5"), DTypeError, "teacher_forcing='0.5'"),
]


@pytest.mark.parametrize("number", range(len(RETURNED)))
def test_a_value_comes_back_as_pythons_own(number: int) -> None:
    call, want = RETURNED[number]
    got = call()
    assert got == want
    assert type(got) is type(want)


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_refusal_names_the_argument_its_value_and_the_bound(number: int) -> None:
    call, kind, message = REFUSED[number]
    with pytest.raises(kind, match=message):
        call()


def test_numpy_integers_are_sizes_like_any_other() -> None:
    wide = np.uint8(200)
    x = np.ones((2, 1, 3), dtype="float32")
    lstm = xplstm.LSTM(3, 250, 2, proj_size=wide, bidirectional=True)
    assert lstm(x)[0].shape == (2, 1, 400)
    assert models.SequenceClassifier(3, wide, 2, bidirectional=True)(x).shape == (1, 2)
    assert models.windows(np.ones((300, 1)), np.uint8(255))[0].shape == (255, 45, 1)
    assert {type(n) for shape in lstm.shapes.values() for n in shape} == {int}
