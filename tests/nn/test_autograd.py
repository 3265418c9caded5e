"""Check that differentiation and compilation of other libraries work through the reference kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import CASES, Case, run

GRADED = ["plain", "bidirectional_ragged", "bidirectional_holes", "projection_ragged"]


@pytest.mark.parametrize("name", GRADED)
def test_torch_autograd(name: str, torch) -> None:
    case = CASES[name]
    want = run(case.lstm(), case.arrays(), **case.valid())
    lstm = case.lstm(xp="torch")
    lstm.params = {k: v.requires_grad_() for k, v in lstm.params.items()}
    a = {k: torch.tensor(v, requires_grad=True) for k, v in case.arrays().items()}
    y, (h_n, c_n) = lstm(a["x"], (a["h_0"], a["c_0"]), **case.valid())
    ((y * a["dy"]).sum() + (h_n * a["dh_n"]).sum() + (c_n * a["dc_n"]).sum()).backward()
    got = {"dx": a["x"].grad, "dh_0": a["h_0"].grad, "dc_0": a["c_0"].grad}
    got |= {k: v.grad for k, v in lstm.params.items()}
    for key, value in got.items():
        np.testing.assert_allclose(value.numpy(), want.flat()[key], rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", ["bidirectional_ragged", "bidirectional_holes"])
def test_padding_of_nan_does_not_reach_torch_gradients(name: str, torch) -> None:
    case = CASES[name]
    lstm = case.lstm(xp="torch")
    lstm.params = {k: v.requires_grad_() for k, v in lstm.params.items()}
    x = torch.tensor(case.poisoned()["x"], requires_grad=True)
    y, _ = lstm(x, **case.valid())
    y.sum().backward()
    exists = torch.tensor(case.exists())
    assert torch.isfinite(x.grad[exists]).all()
    assert not x.grad[~exists].any()
    assert all(torch.isfinite(v.grad).all() for v in lstm.params.values())


def jax_loss(jnp: Any, case: Case, lstm: xplstm.LSTM) -> Any:
    valid = {k: jnp.asarray(v) for k, v in case.valid().items()}

    def loss(params: dict[str, Any], a: dict[str, Any], valid: dict[str, Any]) -> Any:
        local = xplstm.LSTM(case.I, case.H, **case.options, xp="jax", dtype="float64")
        local.params = params
        y, (h_n, c_n) = local(a["x"], (a["h_0"], a["c_0"]), **valid)
        return jnp.sum(y * a["dy"]) + jnp.sum(h_n * a["dh_n"]) + jnp.sum(c_n * a["dc_n"])

    return loss, lstm.params, {k: jnp.asarray(v) for k, v in case.arrays().items()}, valid


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", GRADED)
def test_jax_grad_and_jit(name: str, compiled: bool, jax) -> None:
    case = CASES[name]
    want = run(case.lstm(), case.arrays(), **case.valid())
    loss, params, arrays, valid = jax_loss(jax.numpy, case, case.lstm(xp="jax"))
    grad = jax.grad(loss, argnums=(0, 1))
    dparams, da = (jax.jit(grad) if compiled else grad)(params, arrays, valid)
    got = {"dx": da["x"], "dh_0": da["h_0"], "dc_0": da["c_0"]} | dparams
    for key, value in got.items():
        np.testing.assert_allclose(np.asarray(value), want.flat()[key], rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("differentiate", ["grad", "linearize"])
def test_jax_differentiates_with_a_constant_input(differentiate: str, jax) -> None:
    case = CASES["bidirectional_ragged"]
    loss, params, arrays, valid = jax_loss(jax.numpy, case, case.lstm(xp="jax"))
    want = run(case.lstm(), case.arrays(), **case.valid())

    def of_params(params: dict[str, Any]) -> Any:
        # Made inside the function, so that JAX keeps it as a NumPy array.
        constants = arrays | {"x": jax.numpy.asarray(case.arrays()["x"])}
        return loss(params, constants, valid)

    if differentiate == "grad":
        for key, value in jax.grad(of_params)(params).items():
            np.testing.assert_allclose(value, want.flat()[key], rtol=0, atol=1e-12, err_msg=key)
    else:
        pushed = jax.linearize(of_params, params)[1](params)
        expected = sum(np.vdot(params[key], want.flat()[key]) for key in params)
        np.testing.assert_allclose(pushed, expected, rtol=1e-12)


def test_jax_jit_of_the_functional_face(jax) -> None:
    rng = np.random.default_rng(0)
    host = xplstm.LSTMParams(rng.normal(size=(8, 3)), rng.normal(size=(8, 2)))
    params = xplstm.LSTMParams(*(None if a is None else jax.numpy.asarray(a) for a in host))
    x = rng.normal(size=(5, 4, 3))
    want, _ = xplstm.lstm(x, host, lengths=[5, 0, 2, 3])
    run_ = jax.jit(lambda x, p, lengths: xplstm.lstm(x, p, lengths=lengths))
    got, _ = run_(jax.numpy.asarray(x), params, jax.numpy.asarray([5, 0, 2, 3]))
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-13)
