"""Check the cell of PyTorch 0.4 against its equations, with two, one or no biases."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import _array
from xplstm.io.cell import lstm_cell

B, I, H = 4, 3, 2
rng = np.random.default_rng(40)
X, H_0, C_0 = rng.normal(size=(B, I)), rng.normal(size=(B, H)), rng.normal(size=(B, H))
W_IH, W_HH = rng.normal(size=(4 * H, I)), rng.normal(size=(4 * H, H))
BIASES = {"bias_ih": rng.normal(size=4 * H), "bias_hh": rng.normal(size=4 * H)}


@pytest.mark.parametrize("names", [(), ("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh")], ids="+".join)
def test_the_cell_is_the_printed_equations(names, xp):
    biases = {name: BIASES[name] for name in names}
    z = X @ W_IH.T + H_0 @ W_HH.T + sum(biases.values())
    i, f, g, o = np.split(z, 4, axis=1)
    i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
    cy = f * C_0 + i * np.tanh(g)
    x, h, c, w_ih, w_hh = (xp.asarray(a) for a in (X, H_0, C_0, W_IH, W_HH))
    found = lstm_cell(x, (h, c), w_ih, w_hh, **xp.arrays(biases))
    np.testing.assert_allclose(_array.to_numpy(found.h), o * np.tanh(cy), rtol=0, atol=1e-14)
    np.testing.assert_allclose(_array.to_numpy(found.c), cy, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X[0]}, r"x has shape \(3,\), expected \(B, I\)"),
        ({"weight_ih": W_IH[:4]}, r"weight_ih has shape \(4, 3\), expected \(8, 3\)"),
        ({"bias_hh": BIASES["bias_hh"][:3]}, r"bias_hh has shape \(3,\), expected \(8,\)"),
        ({"state": (H_0, C_0[:1])}, r"c_0 has shape \(1, 2\), expected \(4, 2\)"),
    ],
)
def test_wrong_shapes_are_named(changed, message):
    right = {"x": X, "state": (H_0, C_0), "weight_ih": W_IH, "weight_hh": W_HH}
    with pytest.raises(xplstm.ShapeError, match=message):
        lstm_cell(**(right | changed))
