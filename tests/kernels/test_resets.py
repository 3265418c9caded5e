"""Check resets inside a sequence: each segment has the results of a separate call, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import Case, kernels, run
from xplstm import _array, _stack
from xplstm._problem import Problem
from xplstm.kernels import cupy_fused, cupy_persistent
from xplstm.testing import check_grad

KERNELS = kernels()
T, B = 9, 4
CASES = {
    "plain": Case(T, B),
    "projection": Case(T, B, options={"proj_size": 2, "num_layers": 2}),
    "ragged": Case(T, B, options={"bias": False}, lengths=[9, 0, 5, 1]),
    "bidirectional": Case(T, B, options={"bidirectional": True, "num_layers": 2}),
    "bidirectional_ragged": Case(T, B, options={"bidirectional": True, "proj_size": 3}, lengths=[4, 9, 0, 7]),
    "bidirectional_holes": Case(T, B, options={"bidirectional": True, "num_layers": 2}, holes=True),
    "many_units": Case(T, B, H=37, options={"bidirectional": True}),
}
OTHERS: dict[str, Any] = {
    "peepholes": lambda: lstm(variant=xplstm.Variant(peepholes=True, coupled=True, cell_clip=0.5)),
    "layer_norm": lambda: lstm(variant=xplstm.Variant(layer_norm=True, zoneout_h=0.25, zoneout_c=0.5)),
    "rnn": lambda: xplstm.RNN(3, 6, bidirectional=True, dtype="float64", rng=7),
    "jordan": lambda: xplstm.JordanRNN(3, 6, 2, bidirectional=True, dtype="float64", rng=7),
    "gru": lambda: xplstm.GRU(3, 6, 2, bidirectional=True, dtype="float64", rng=7),
}


def lstm(**options: Any) -> xplstm.LSTM:
    return Case(options={"bidirectional": True, "num_layers": 2, **options}).lstm()


def resets(seed: int = 5) -> np.ndarray:
    """Return resets at the first step, at two consecutive steps, and at random steps."""
    found = np.random.default_rng(seed).random((T, B)) < 0.25
    found[0, 0] = found[3:5, 2] = True
    return found


def segments(reset: np.ndarray, exists: np.ndarray) -> list[list[int]]:
    """Return the steps of one entry's segments; the first is empty if a reset comes before all steps."""
    found: list[list[int]] = [[]]
    waiting = False
    for t in range(len(reset)):
        waiting = bool(waiting or reset[t])
        if exists[t] and waiting:
            found.append([])
        if exists[t]:
            found[-1].append(t)
            waiting = False
    return found


def alone(layer: Any, x: Any, states: Any, reset: Any, exists: Any, dy: Any, dends: Any) -> tuple[Any, ...]:
    """What `reset` means: y, final states, dx, dstates and dparams from calls for one segment of one entry.

    `states` and `dends` hold h, or h and c. The forward direction's state enters the first segment, the
    backward one's the last. A reset before every step lets no state in, but a backward one out.
    """
    D = 1 + bool(layer.bidirectional)
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    ends, starts = [a.copy() for a in states], [a.copy() for a in dends]
    dparams = {name: np.zeros_like(a) for name, a in layer.params.items()}
    for b in range(x.shape[1]):
        parts = segments(reset[:, b], exists[:, b])
        for n, times in enumerate(parts):
            inside = [len(parts) - 1 - n if row % D else n for row in range(len(states[0]))]
            enters = np.asarray([k == 0 for k in inside])[:, None, None]
            ended = [len(parts) - 1 - (row % D and not parts[0]) for row in range(len(inside))]
            leaves = np.asarray(inside)[:, None, None] == np.asarray(ended)[:, None, None]
            if not times:  # the state or its gradient ends here
                for a in starts:
                    a[:, b : b + 1] = np.where(enters & (len(parts) > 1), 0, a[:, b : b + 1])
                continue
            given = [np.where(enters, a[:, b : b + 1], 0) for a in states]
            out, state, pullback = layer.vjp(x[times, b : b + 1], pair(given))
            y[times, b : b + 1] = out
            below = [np.where(leaves, a[:, b : b + 1], 0) for a in dends]
            dx[times, b : b + 1], dstart, dp = pullback(dy[times, b : b + 1], pair(below))
            for a, part in zip(ends, unpair(state), strict=True):
                a[:, b : b + 1] = np.where(leaves, part, a[:, b : b + 1])
            for a, part in zip(starts, unpair(dstart), strict=True):
                a[:, b : b + 1] = np.where(enters, part, a[:, b : b + 1])
            dparams = {name: a + dp[name] for name, a in dparams.items()}
    return y, *ends, dx, *starts, *dparams.values()


def pair(arrays: list[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def unpair(state: Any) -> Any:
    return state if isinstance(state, tuple) else (state,)


def together(layer: Any, x: Any, states: Any, dy: Any, dends: Any, **options: Any) -> tuple[Any, ...]:
    y, end, pullback = layer.vjp(x, pair(states), **options)
    dx, start, dparams = pullback(dy, pair(dends))
    plain, plain_end = layer(x, pair(states), **{k: v for k, v in options.items() if k != "checkpoint"})
    for one, other in zip((y, *unpair(end)), (plain, *unpair(plain_end)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)
    return y, *unpair(end), dx, *unpair(start), *dparams.values()


@pytest.mark.parametrize("checkpoint", [None, 1, 4])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_segment_runs_as_if_alone(kernel: str, name: str, checkpoint: int | None) -> None:
    case, reset = CASES[name], resets()
    a = case.arrays()
    states, dends = [a["h_0"], a["c_0"]], [a["dh_n"], a["dc_n"]]
    with xplstm.use_kernel(kernel):
        want = alone(case.lstm(), a["x"], states, reset, case.exists(), a["dy"], dends)
        options = {**case.valid(), "reset": reset, "checkpoint": checkpoint}
        got = together(case.lstm(), a["x"], states, a["dy"], dends, **options)
    for k, (one, other) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11, err_msg=str(k))
    if kernel == "native":
        for one, other in zip(got[:3], want[:3], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", OTHERS)
def test_every_cell_has_resets(name: str) -> None:
    layer, rng, reset = OTHERS[name](), np.random.default_rng(3), resets()
    x = rng.normal(size=(T, B, 3))
    y, end = layer(x)
    dy, dends = rng.normal(size=y.shape), [rng.normal(size=a.shape) for a in unpair(end)]
    states = [rng.normal(size=a.shape) for a in unpair(end)]
    want = alone(layer, x, states, reset, np.ones((T, B), dtype=bool), dy, dends)
    for one, other in zip(together(layer, x, states, dy, dends, reset=reset), want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("checkpoint", [None, 4])
def test_half_precision_has_resets(checkpoint: int | None) -> None:
    case, reset = CASES["bidirectional_holes"], resets()
    arrays = {name: a.astype("float16") for name, a in case.arrays().items()}
    layer = case.lstm(dtype="float16")
    wide = {name: a.astype("float64") for name, a in arrays.items()}
    want = run(case.lstm(dtype="float16").to(dtype="float64"), wide, **case.valid(), reset=reset).flat()
    got = run(layer, arrays, **case.valid(), reset=reset, checkpoint=checkpoint).flat()
    for name, value in want.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(got[name] / scale, value / scale, rtol=0, atol=4e-3, err_msg=name)


def test_gradients_are_those_of_finite_differences() -> None:
    case, reset = CASES["bidirectional_holes"], resets()
    a = case.arrays()
    given = {"x": a["x"], "state": (a["h_0"], a["c_0"])}
    check_grad(case.lstm(), given, reset=reset, entries=8, **case.valid())


def test_steps_with_a_state_that_is_reset_give_the_same() -> None:
    layer, reset = xplstm.LSTM(3, 6, 2, rng=1), resets()
    x = np.random.default_rng(0).normal(size=(T, B, 3)).astype("float32")
    y, end = layer(x, reset=reset)
    _, state = layer(x[:0])
    for t in range(T):
        y_t, state = layer.step(x[t], state.reset(reset[t]))
        np.testing.assert_allclose(y_t, y[t], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.c, end.c, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_does_not_cross_a_boundary(kernel: str) -> None:
    case, reset = CASES["bidirectional"], np.zeros((T, B), dtype=bool)
    reset[4] = True
    a = case.arrays()
    a["dy"][:4] = np.nan
    a["dh_n"][...] = a["dc_n"][...] = 0
    with xplstm.use_kernel(kernel):
        y, _, pullback = case.lstm().vjp(a["x"], (a["h_0"], a["c_0"]), reset=reset)
        dx, _, _ = pullback(a["dy"], (a["dh_n"], a["dc_n"]))
        poisoned = np.where(np.arange(T)[:, None, None] < 4, np.nan, a["x"])
        y_later, _ = case.lstm()(poisoned, (a["h_0"], a["c_0"]), reset=reset)
    np.testing.assert_array_equal(y_later[4:], y[4:])
    assert np.isnan(dx[:4]).all()
    assert np.isfinite(dx[4:]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_resets_where_nothing_starts_change_no_bit(kernel: str) -> None:
    """No reset, resets after the last step, and resets of entries without steps change nothing."""
    case = Case(T, B, options={"bidirectional": True}, lengths=[9, 0, 5, 1])
    a, late = case.arrays(), ~case.exists()
    with xplstm.use_kernel(kernel):
        want = run(case.lstm(), a, lengths=case.lengths).flat()
        for valid in ({"lengths": case.lengths}, {"mask": case.exists()}):
            for reset in (late, np.zeros((T, B), dtype=bool)):
                for name, value in run(case.lstm(), a, **valid, reset=reset).flat().items():
                    np.testing.assert_array_equal(value, want[name], err_msg=name)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 1)])
def test_empty_and_smallest(kernel: str, shape: tuple[int, int]) -> None:
    case = Case(*shape, options={"bidirectional": True})
    a = case.arrays()
    with xplstm.use_kernel(kernel):
        got = run(case.lstm(), a, reset=np.ones(shape, dtype=bool))
        want = run(case.lstm(), a | {"h_0": 0 * a["h_0"], "c_0": 0 * a["c_0"]})
    np.testing.assert_array_equal(got.y[..., :6], want.y[..., :6])
    if shape == (1, 1):
        assert not got.dh_0[0].any()
        assert got.dh_0[1].any()


@pytest.mark.parametrize("valid", [{"lengths": [0, 0, 0]}, {"mask": np.zeros((0, 3), bool)}, {}])
def test_no_steps_need_no_slice_beyond_the_end(xp: Any, valid: dict[str, Any]) -> None:
    layer = xplstm.LSTM(3, 2, bidirectional=True, xp=xp.xp, rng=0)
    valid = {name: xp.asarray(a) if name == "mask" else a for name, a in valid.items()}
    x, reset = xp.asarray(np.zeros((0, 3, 3), "float32")), xp.asarray(np.zeros((0, 3), bool))
    y, (h_n, _) = layer(x, reset=reset, **valid)
    assert tuple(y.shape) == (0, 3, 4)
    assert not _array.to_numpy(h_n).any()


def test_axes_are_those_of_x() -> None:
    x, reset = np.random.default_rng(0).normal(size=(T, B, 3)).astype("float32"), resets()
    layer = xplstm.LSTM(3, 6, rng=1)
    y, _ = layer(x, reset=reset)
    by_batch = xplstm.LSTM(3, 6, batch_first=True, rng=1)
    np.testing.assert_array_equal(by_batch(x.swapaxes(0, 1), reset=reset.T)[0], y.swapaxes(0, 1))
    np.testing.assert_allclose(layer(x[:, 1], reset=reset[:, 1])[0], y[:, 1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(layer.trace(x, reset=reset).h[0], y, rtol=0, atol=1e-6)
    assert layer.explain(x, reset=reset).kernels == layer.explain(x).kernels


@pytest.mark.parametrize(
    ("reset", "error", "said"),
    [
        (np.zeros((T, B), dtype="int8"), xplstm.DTypeError, "reset has dtype int8, expected bool"),
        (np.zeros((B, T), dtype=bool), xplstm.ShapeError, r"reset has shape \(4, 9\), expected \(9, 4\)"),
        ([True], xplstm.DTypeError, "reset must be an array"),
    ],
)
def test_wrong_resets_are_refused_by_name(reset: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        xplstm.LSTM(3, 6)(np.zeros((T, B, 3), dtype="float32"), reset=reset)


@pytest.mark.parametrize("kernel", [cupy_fused, cupy_persistent])
def test_kernels_without_resets_say_so(kernel: Any) -> None:
    layer = xplstm.LSTM(3, 6)
    home, params = layer._ready()
    call = _stack.enter(layer._stack, home, np.zeros((T, B, 3), "float32"), None, None, None, resets())
    problem: Problem = _stack.problem(layer._stack, call, params, 0, keep=False)._replace(backend="cupy")
    assert "does not support reset=" in kernel.supports(problem)


@pytest.mark.parametrize("proj_size", [0, 300])
def test_threads_that_share_the_units_of_a_layer_change_no_bit(proj_size: int) -> None:
    """Each thread zeroes only its own units, so other entries keep their gradients."""
    lstm = xplstm.LSTM(16, 512, proj_size=proj_size, rng=0)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 2, 16), dtype="float32")
    reset = np.zeros((12, 2), bool)
    reset[5, 0] = reset[8, 1] = True
    made = []
    for threads in (1, 3):
        with xplstm.use_kernel("native"), xplstm.use_threads(threads):
            y, _, pullback = lstm.vjp(x, reset=reset)
            dx, dstate, dparams = pullback(np.cos(y))
        made.append([y, dx, *dstate, *dparams.values()])
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one, other)
