"""Check one layer as functions: the numbers of the class, and states without the layer axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import Case, settled
from xplstm._array import to_numpy

FIELDS = xplstm.LSTMParams._fields


def as_params(lstm: xplstm.LSTM, suffix: str = "_l0") -> xplstm.LSTMParams:
    return xplstm.LSTMParams(*(lstm.params.get(name + suffix) for name in FIELDS))


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"proj_size": 2}], ids=["plain", "no_bias", "projection"]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_is_a_direction_of_the_class(xp: Any, options: dict[str, Any], reverse: bool) -> None:
    case = Case(options={**options, "bidirectional": True})
    lstm, host = case.lstm(xp=xp.xp), case.arrays()
    arrays = xp.arrays(host)
    P, d = case.output_size, int(reverse)
    y, (h_n, c_n), pullback = lstm.vjp(arrays["x"], (arrays["h_0"], arrays["c_0"]), lengths=[3, 0, 5, 2])
    dy = np.zeros_like(host["dy"])
    dy[..., d * P : (d + 1) * P] = host["dy"][..., d * P : (d + 1) * P]
    dx, dstate, dparams = pullback(xp.asarray(dy))
    y, h_n, c_n, dx, *values = settled([y, h_n, c_n, dx, *dstate, *dparams.values()])
    dstate, dparams = xplstm.LSTMState(*values[:2]), dict(zip(dparams, values[2:], strict=True))

    params = as_params(lstm, "_l0_reverse" if reverse else "_l0")
    state = xp.asarray(host["h_0"][d]), xp.asarray(host["c_0"][d])
    y_1, state_1, pullback_1 = xplstm.lstm_vjp(
        arrays["x"], params, state, lengths=[3, 0, 5, 2], reverse=reverse
    )
    dx_1, dstate_1, dparams_1 = pullback_1(xp.asarray(np.ascontiguousarray(dy[..., d * P : (d + 1) * P])))
    same = {
        "y": (y_1, to_numpy(y)[..., d * P : (d + 1) * P]),
        "h_n": (state_1.h, to_numpy(h_n)[d]),
        "c_n": (state_1.c, to_numpy(c_n)[d]),
        "dx": (dx_1, to_numpy(dx)),
        "dh_0": (dstate_1.h, to_numpy(dstate.h)[d]),
        "dc_0": (dstate_1.c, to_numpy(dstate.c)[d]),
    }
    for name, value in zip(FIELDS, dparams_1, strict=True):
        key = name + ("_l0_reverse" if reverse else "_l0")
        assert (value is None) == (key not in dparams)
        if value is not None:
            same[name] = value, to_numpy(dparams[key])
    found = settled([got for got, _ in same.values()])
    for (name, (_, want)), got in zip(same.items(), found, strict=True):
        np.testing.assert_allclose(to_numpy(got), want, rtol=0, atol=1e-13, err_msg=name)
    plain, plain_state = xplstm.lstm(arrays["x"], params, state, lengths=[3, 0, 5, 2], reverse=reverse)
    np.testing.assert_allclose(to_numpy(plain), to_numpy(y_1), rtol=0, atol=1e-14)
    np.testing.assert_allclose(to_numpy(plain_state.c), to_numpy(state_1.c), rtol=0, atol=1e-14)


def test_unbatched(xp: Any) -> None:
    case = Case(B=1)
    lstm, host = case.lstm(xp=xp.xp), case.arrays()
    want, want_state = lstm(xp.asarray(host["x"]), (xp.asarray(host["h_0"]), xp.asarray(host["c_0"])))
    state = xp.asarray(host["h_0"][0, 0]), xp.asarray(host["c_0"][0, 0])
    y, (h_n, c_n) = xplstm.lstm(xp.asarray(host["x"][:, 0]), as_params(lstm), state)
    assert h_n.shape == c_n.shape == (case.H,)
    np.testing.assert_allclose(to_numpy(y), to_numpy(want)[:, 0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(to_numpy(h_n), to_numpy(want_state.h)[0, 0], rtol=0, atol=1e-14)


def test_no_gradient_for_a_zero_cotangent() -> None:
    case = Case()
    _, _, pullback = xplstm.lstm_vjp(case.arrays()["x"], as_params(case.lstm()))
    dx, dstate, dparams = pullback()
    assert not any(np.any(a) for a in (dx, *dstate, *(p for p in dparams if p is not None)))
