"""Check the scan over the cell's step against the reference, under every transformation of JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import settled
from xplstm import _array

T, B, I, H = 5, 3, 4, 6
HOW = {"dtype": "float64", "rng": 1, "xp": "jax"}
LAYERS: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: xplstm.LSTM(I, H, 2, bidirectional=True, **HOW),
    "projection": lambda: xplstm.LSTM(I, H, proj_size=2, bidirectional=True, **HOW),
    "no bias": lambda: xplstm.LSTM(I, H, bias=False, **HOW),
    "peepholes": lambda: xplstm.LSTM(I, H, variant=xplstm.Variant(peepholes=True, cell_clip=0.1), **HOW),
    "layer norm": lambda: xplstm.LSTM(I, H, variant=xplstm.Variant(layer_norm=True), **HOW),
    "GRU": lambda: xplstm.GRU(I, H, 2, bidirectional=True, **HOW),
    "GRU, reset before": lambda: xplstm.GRU(I, H, reset_after=False, **HOW),
    "RNN": lambda: xplstm.RNN(I, H, nonlinearity="relu", bidirectional=True, **HOW),
    "JordanRNN": lambda: xplstm.JordanRNN(I, H, 2, **HOW),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lengths": {"lengths": np.asarray([2, 5, 0])},
    "mask": {"mask": np.asarray([[1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0], [1, 0, 1]], dtype=bool)},
    "resets": {"reset": np.arange(T * B).reshape(T, B) % 4 == 0, "lengths": np.asarray([4, 5, 2])},
}


@pytest.fixture
def x(jax: Any, rng: np.random.Generator) -> Any:
    with jax.enable_x64(True):
        yield jax.numpy.asarray(rng.normal(size=(T, B, I)))


def flat(tree: Any) -> list[np.ndarray]:
    import jax

    return [_array.to_numpy(a) for a in settled(jax.tree_util.tree_leaves(tree))]


def check(found: Any, expected: Any) -> None:
    for a, b in zip(flat(found), flat(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def slopes(state: Any) -> Any:
    """Return the gradient of `loss` with respect to a state, (h, c) or h alone."""
    return xplstm.LSTMState(*(3 * a**2 for a in state)) if isinstance(state, tuple) else 3 * state**2


def expected_of(layer: Any, options: dict[str, Any], x: Any) -> tuple[Any, Any, Any, Any]:
    """Return outputs, states and the gradients of `loss` from NumPy and the reference."""
    with xplstm.use_kernel("reference"):
        y, state, pullback = layer.to("numpy").vjp(np.asarray(x), **options)
        dx, _, dparams = pullback(2 * y, slopes(state))
    return y, state, dparams, dx


def run_of(layer: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """Return outputs and states as a function of the parameters and x; the scan must run."""

    def run(params: Any, x: Any) -> Any:
        layer.params = dict(params)
        assert layer.explain(x).kernels == ("jax_scan",) * layer.num_layers
        return layer(x, **options)

    return run


def loss(run: Callable[..., Any]) -> Callable[..., Any]:
    def value(params: Any, x: Any) -> Any:
        y, state = run(params, x)
        return (y**2).sum() + sum((a**3).sum() for a in (state if isinstance(state, tuple) else (state,)))

    return value


CASES = [(name, "whole") for name in LAYERS]
CASES += [(name, option) for name in ("LSTM", "projection", "GRU") for option in OPTIONS if option != "whole"]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_jit_and_grad_give_the_numbers_of_the_reference(name: str, options: str, jax: Any, x: Any) -> None:
    run, params = run_of(LAYERS[name](), OPTIONS[options]), LAYERS[name]().params

    def all_of(params: Any, x: Any) -> Any:
        return run(params, x), jax.grad(loss(run), (0, 1))(params, x)

    (y, state), (dparams, dx) = jax.jit(all_of)(params, x)
    check((y, state, dparams, dx), expected_of(LAYERS[name](), OPTIONS[options], x))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_vjp_gives_the_gradients_of_the_reference(name: str, options: str, jax: Any, x: Any) -> None:
    """The backward pass of the kernel itself runs."""
    layer = LAYERS[name]()

    def run(x: Any) -> Any:
        y, state, pullback = layer.vjp(x, **OPTIONS[options])
        dx, _, dparams = pullback(2 * y, slopes(state))
        return y, state, dparams, dx

    check(jax.jit(run)(x), expected_of(LAYERS[name](), OPTIONS[options], x))


def test_vmap_jvp_and_second_derivatives(jax: Any, x: Any) -> None:
    options = OPTIONS["lengths"]
    params, run = LAYERS["projection"]().params, run_of(LAYERS["projection"](), options)
    y, _ = jax.vmap(run, in_axes=(None, 0))(params, jax.numpy.stack([x, 2 * x]))
    for k in (1, 2):
        check(y[k - 1], expected_of(LAYERS["projection"](), options, k * x)[0])
    of_x = jax.jit(lambda x: loss(run)(params, x))
    dx = expected_of(LAYERS["projection"](), options, x)[3]
    check(jax.jvp(of_x, (x,), (x + 1,))[1], (dx * (np.asarray(x) + 1)).sum())
    along = jax.jvp(jax.grad(of_x), (x,), (x + 1,))[1]
    step = 1e-5
    ahead, back = (expected_of(LAYERS["projection"](), options, x + s * (x + 1))[3] for s in (step, -step))
    np.testing.assert_allclose(along, (ahead - back) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_there_is_one_scan_a_direction_whatever_the_length(jax: Any, bidirectional: bool) -> None:
    layer = xplstm.LSTM(I, H, bidirectional=bidirectional, xp="jax", rng=0)

    def equations(steps: int) -> list[str]:
        traced = jax.make_jaxpr(lambda x: layer(x)[0])(jax.numpy.zeros((steps, B, I), "float32"))
        (call,) = [e for e in traced.eqns if str(e.primitive) == "custom_jvp_call"]
        return [str(e.primitive) for e in call.params["call_jaxpr"].eqns]

    assert equations(5) == equations(500)
    assert equations(5).count("scan") == 1 + bidirectional


def test_no_gradient_of_weights_is_carried_from_step_to_step(jax: Any) -> None:
    """Products after the scan sum over steps; a carry of (4H, H) would be written T times."""
    layer = xplstm.LSTM(I, H, xp="jax", rng=0)
    run = run_of(layer, {})
    of_both = jax.grad(lambda params, x: run(params, x)[0].sum(), (0, 1))
    traced = jax.make_jaxpr(of_both)(layer.params, jax.numpy.zeros((T, B, I), "float32"))
    scans = [e.params for e in traced.eqns if str(e.primitive) == "scan"]
    carries = [scan["jaxpr"].out_avals[: scan["num_carry"]] for scan in scans]
    assert {a.shape for carry in carries for a in carry} == {(B, H)}


@pytest.mark.parametrize("shape", [(0, B), (T, 0)])
def test_nothing_to_do_is_done(shape: tuple[int, int], jax: Any) -> None:
    layer = xplstm.LSTM(I, H, xp="jax", rng=0)
    x = jax.numpy.zeros((*shape, I), "float32")
    with xplstm.use_kernel("jax_scan"):
        y, state, pullback = layer.vjp(x)
    assert y.shape == (*shape, H)
    dx, _, dparams = pullback(y, state)
    assert dx.shape == x.shape
    assert not any(flat(a)[0].any() for a in dparams.values())


def test_half_precision_is_summed_in_float32(jax: Any) -> None:
    made = xplstm.LSTM(I, H, xp="jax", rng=0, dtype="bfloat16")
    x = jax.numpy.ones((50, B, I), "bfloat16")
    with xplstm.use_kernel("reference"):
        expected = made(x)
    with xplstm.use_kernel("jax_scan"):
        found = made(x)
    for a, b in zip(flat(found), flat(expected), strict=True):
        np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), atol=2e-3)


def test_half_precision_is_differentiated_while_jax_traces(jax: Any) -> None:
    """The weights are widened before the derivative, so their tangents are float32."""
    layer = xplstm.LSTM(I, H, xp="jax", rng=0, dtype="bfloat16")
    x = jax.numpy.ones((T, B, I), "bfloat16")
    y, _, pullback = layer.vjp(x)
    run = run_of(layer, {})
    found = jax.jit(jax.grad(lambda params: run(params, x)[0].astype("float32").sum()))(layer.params)
    for name, expected in pullback(jax.numpy.ones_like(y))[2].items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name].astype("f4"), expected.astype("f4"), rtol=0.02, atol=0.02)


def test_random_masks_are_left_to_the_reference(jax: Any) -> None:
    layer = xplstm.LSTM(I, H, xp="jax", rng=0, variant=xplstm.Variant(zoneout_h=0.5))
    x = jax.numpy.ones((T, B, I), "float32")
    with xplstm.use_kernel("jax_scan"), pytest.raises(xplstm.KernelError, match="does not draw random masks"):
        layer.vjp(x, rng=0)
    layer.vjp(x, rng=0)


def test_other_arrays_are_refused() -> None:
    with xplstm.use_kernel("jax_scan"), pytest.raises(xplstm.KernelError, match="needs jax arrays"):
        xplstm.LSTM(I, H)(np.zeros((T, B, I), "float32"))
