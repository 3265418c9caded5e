"""Check the reference kernel against an independent oracle and differences, on every backend."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support import oracle
from tests.support.cases import CASES, Case, run, settled, slopes
from xplstm import _dispatch
from xplstm._array import to_numpy
from xplstm.kernels import _recycled


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_oracle(name: str) -> None:
    case = CASES[name]
    lstm, a = case.lstm(), case.arrays()
    x = np.swapaxes(a["x"], 0, 1) if case.options.get("batch_first") else a["x"]
    layers = case.options.get("num_layers", 1)
    exists = case.exists().T if case.options.get("batch_first") else case.exists()
    expected = oracle.stack(x, lstm.params, a["h_0"], a["c_0"], layers, case.directions, exists)
    with xplstm.use_kernel("reference"):
        y, (h_n, c_n) = lstm(a["x"], (a["h_0"], a["c_0"]), **case.valid())
    y = np.swapaxes(y, 0, 1) if case.options.get("batch_first") else y
    for got, want in zip((y, h_n, c_n), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


def loss(case: Case, lstm: xplstm.LSTM, a: dict[str, np.ndarray]) -> float:
    y, (h_n, c_n) = lstm(a["x"], (a["h_0"], a["c_0"]), **case.valid())
    return float(np.sum(y * a["dy"]) + np.sum(h_n * a["dh_n"]) + np.sum(c_n * a["dc_n"]))


@pytest.mark.parametrize(
    "name", ["plain", "bidirectional_ragged", "bidirectional_holes", "projection_ragged"]
)
def test_gradients_are_those_of_differences(name: str) -> None:
    case = CASES[name]
    lstm, a = case.lstm(), case.arrays()
    with xplstm.use_kernel("reference"):
        got = run(lstm, a, **case.valid())
        for key, gradient in (("x", got.dx), ("h_0", got.dh_0), ("c_0", got.dc_0)):
            said, want = slopes(lambda v, key=key: loss(case, lstm, a | {key: v}), a[key], gradient)
            np.testing.assert_allclose(said, want, rtol=0, atol=2e-8, err_msg=key)
        for key, gradient in got.dparams.items():
            at = lstm.params[key]

            def moved(v: np.ndarray, key: str = key) -> float:
                lstm.params[key] = v
                return loss(case, lstm, a)

            said, want = slopes(moved, at, gradient)
            lstm.params[key] = at
            np.testing.assert_allclose(said, want, rtol=0, atol=2e-8, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_every_backend_gives_the_same(xp: Any, name: str) -> None:
    case = CASES[name]
    arrays = case.arrays()
    with xplstm.use_kernel("reference"):
        want = run(case.lstm(), arrays, **case.valid())
        lstm = case.lstm(xp=xp.xp)
        lstm.params = {k: xp.asarray(to_numpy(v)) for k, v in lstm.params.items()}
        got = run(lstm, xp.arrays(arrays), **case.valid())
    for key, value in want.flat().items():
        array = got.flat()[key]
        assert type(array) is type(xp.asarray(value))
        np.testing.assert_allclose(to_numpy(array), value, rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(
    "name", ["plain", "bidirectional_ragged", "bidirectional_holes", "projection_ragged"]
)
def test_checkpointing_changes_nothing(xp: Any, name: str, every: int) -> None:
    if xp.name in ("dask", "array_api_strict") and every not in (2,):
        pytest.skip(f"{xp.name}: one segment length is enough on a slow backend")
    case = CASES[name]
    arrays = case.arrays()
    want = run(case.lstm(), arrays, **case.valid())
    got = run(case.lstm(xp=xp.xp), xp.arrays(arrays), **case.valid(), checkpoint=every)
    for key, value in want.flat().items():
        np.testing.assert_allclose(to_numpy(got.flat()[key]), value, rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize("name", ["plain", "stacked", "bidirectional_ragged"])
def test_without_dx_the_other_gradients_keep_their_bits(xp: Any, name: str, every: int | None) -> None:
    case = CASES[name]
    lstm = case.lstm(xp=xp.xp, input_dropout=0.5)
    x = xp.arrays(case.arrays())["x"]
    options = {"rng": 1, "checkpoint": every, **case.valid()}
    y, _, full = lstm.vjp(x, **options)
    (none, *got), (_, *want) = lstm.vjp(x, **options, dx=False)[2](y), full(y)
    assert none is None
    mine, theirs = [*got[0], *got[1].values()], [*want[0], *want[1].values()]
    results = iter(settled([a for pair in zip(mine, theirs, strict=True) for a in pair]))
    for found, expected in zip(results, results, strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


def peak(work: Any) -> int:
    """Return the largest number of bytes that `work` held, minus the bytes before."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most - before


@pytest.mark.parametrize("kernel", ["reference", "numpy_inplace"])
@pytest.mark.slow
def test_checkpointing_holds_less(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = xplstm.LSTM(8, 32, rng=0)
    x = np.zeros((400, 16, 8), dtype=np.float32)

    def work(every: int | None) -> int:
        def call() -> None:
            monkeypatch.setattr(_recycled, "pieces", _recycled.Pieces())
            y, _, pullback = lstm.vjp(x, checkpoint=every)
            pullback(y)

        with xplstm.use_kernel(kernel):
            call()
            return peak(call)

    assert work(20) < 0.4 * work(None)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["native", "numpy_inplace"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_checkpointing_holds_y_once(
    kernel: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if _dispatch.why_missing(kernel):
        pytest.skip(_dispatch.why_missing(kernel))
    lstm = xplstm.LSTM(2, 64, bidirectional=bidirectional, rng=0)
    x = np.zeros((1600, 16, 2), dtype=np.float32)
    monkeypatch.setattr(_recycled, "pieces", _recycled.Pieces())
    kept: list[Any] = []
    with xplstm.use_kernel(kernel):
        lstm.vjp(x[:80], checkpoint=40)
        assert peak(lambda: kept.append(lstm.vjp(x, checkpoint=40))) < 1.3 * kept[0][0].nbytes
        dy = kept[0][0]
        assert peak(lambda: kept[0][2](dy)) < 0.6 * dy.nbytes


def test_inference_holds_no_more_steps_than_its_blocks() -> None:
    """Apart from the results, the memory of a call stays bounded while T grows."""
    lstm = xplstm.LSTM(8, 32, rng=0)

    def beyond_results(T: int) -> int:
        x = np.zeros((T, 16, 8), dtype=np.float32)
        lstm(x)
        return peak(lambda: lstm(x)) - T * 16 * 32 * 4

    assert beyond_results(2000) < beyond_results(200) + 2**18


def test_truncated_backpropagation_is_a_call_a_window() -> None:
    """Gradients of two windows are those of the whole, without the path between the windows."""
    case = Case(T=6)
    lstm, a = case.lstm(), case.arrays()
    dy = a["dy"]
    _, state, first = lstm.vjp(a["x"][:3], (a["h_0"], a["c_0"]))
    _, _, second = lstm.vjp(a["x"][3:], state)
    dx_2, dstate, dp_2 = second(dy[3:])
    dx_1, _, dp_1 = first(dy[:3], dstate)
    _, _, whole = lstm.vjp(a["x"], (a["h_0"], a["c_0"]))
    dx, _, dp = whole(dy)
    np.testing.assert_allclose(np.concatenate([dx_1, dx_2]), dx, rtol=0, atol=1e-13)
    for key, value in dp.items():
        np.testing.assert_allclose(dp_1[key] + dp_2[key], value, rtol=0, atol=1e-12)
    truncated, _, _ = first(dy[:3])
    assert np.abs(truncated - dx[:3]).max() > 1e-3
