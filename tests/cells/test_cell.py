"""Check the equations alone: values against scalar code, and derivatives against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.support.cases import differences
from xplstm import LSTMParams
from xplstm._array import numpy_namespace, to_numpy
from xplstm.cells.activations import sigmoid
from xplstm.cells.lstm import STANDARD

XP = numpy_namespace()
B, I, H, P = 3, 2, 4, 3


def params(rng: np.random.Generator, projected: bool) -> LSTMParams:
    return LSTMParams(
        rng.normal(size=(4 * H, I)),
        rng.normal(size=(4 * H, P if projected else H)),
        rng.normal(size=4 * H),
        rng.normal(size=4 * H),
        rng.normal(size=(P, H)) if projected else None,
    )


@pytest.mark.parametrize("z", [-745.0, -20.0, -1e-9, 0.0, 1e-9, 3.0, 40.0, 745.0])
def test_sigmoid_is_accurate_on_both_sides(z: float) -> None:
    exact = 1 / (1 + math.exp(-z)) if z > -700 else math.exp(z)
    got = float(sigmoid(XP, np.asarray(z)))
    assert got == pytest.approx(exact, rel=1e-15, abs=0)


def test_sigmoid_at_the_ends(xp) -> None:
    largest = float(np.finfo(np.float32).max)
    z = xp.asarray(np.asarray([-np.inf, -largest, largest, np.inf, np.nan], dtype=np.float32))
    np.testing.assert_array_equal(to_numpy(sigmoid(xp.xp, z)), np.asarray([0, 0, 1, 1, np.nan], np.float32))


@pytest.mark.parametrize("projected", [False, True])
def test_backward_is_the_derivative_of_forward(rng: np.random.Generator, projected: bool) -> None:
    p = params(rng, projected)
    n = P if projected else H
    x, h, c = rng.normal(size=(B, I)), rng.normal(size=(B, n)), rng.normal(size=(B, H))
    dh, dc = rng.normal(size=(B, n)), rng.normal(size=(B, H))
    zx = STANDARD.project_input(x, p)

    def loss(zx_: np.ndarray, h_: np.ndarray, c_: np.ndarray) -> float:
        h_new, c_new, _ = STANDARD.forward(XP, zx_, h_, c_, p)
        return float(np.sum(h_new * dh) + np.sum(c_new * dc))

    _, _, step = STANDARD.forward(XP, zx, h, c, p)
    rows, dh_prev, dc_prev = STANDARD.backward(XP, dh, dc, step, p)
    np.testing.assert_allclose(rows.dz, differences(lambda a: loss(a, h, c), zx), rtol=0, atol=1e-8)
    np.testing.assert_allclose(dh_prev, differences(lambda a: loss(zx, a, c), h), rtol=0, atol=1e-8)
    np.testing.assert_allclose(dc_prev, differences(lambda a: loss(zx, h, a), c), rtol=0, atol=1e-8)
