"""Check Dask arrays: the bits of one call over the whole array, in a graph with one task per block."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import random_chunks
from xplstm.models import Forecaster, SequenceClassifier

da = pytest.importorskip("dask.array", reason="dask is not installed")
pytestmark = pytest.mark.backend("dask")

T, B, I = 11, 8, 3
RNG = np.random.default_rng(3)
X = RNG.normal(size=(T, B, I)).astype("float32")
LENGTHS = [11, 0, 5, 4, 8, 1, 11, 3]
HOLES = RNG.random((T, B)) < 0.6
RESETS = RNG.random((T, B)) < 0.3
CHUNKS = [(4, 3, 2), (11, 8, 3), (1, 5, 1), ((3, 8), (8,), 3)]
LAYERS: dict[str, Any] = {
    "plain": {},
    "stacked": {"num_layers": 2},
    "projected": {"num_layers": 2, "proj_size": 2},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "merged": {"num_layers": 2, "bidirectional": True, "merge": "sum"},
    "apart": {"bidirectional": True, "merge": "none"},
    "batch first": {"batch_first": True, "bidirectional": True},
}


def given(valid: str, chunked: bool) -> dict[str, Any]:
    """Return keywords of a call; those in `chunked` are Dask arrays with separate chunks."""
    if valid.startswith("resets"):
        reset = {"reset": da.from_array(RESETS, chunks=(5, 3)) if chunked else RESETS}
        return reset | given(valid.removeprefix("resets, "), chunked)
    if valid == "lengths":
        return {"lengths": da.from_array(np.asarray(LENGTHS), chunks=5) if chunked else LENGTHS}
    if valid == "mask":
        return {"mask": da.from_array(HOLES, chunks=3) if chunked else HOLES}
    return {}


def same(got: Any, want: Any) -> None:
    assert isinstance(got, da.Array)
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.compute(scheduler="threads"), want)


@pytest.mark.parametrize("valid", ["full", "lengths", "mask", "resets, lengths", "resets, mask"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_bits_of_one_call(name: str, chunks: Any, valid: str) -> None:
    if not xplstm.LSTM(1, 1).explain(np.zeros((1, 1, 1), "float32")).canonical_sums:
        pytest.skip("a kernel that calls a BLAS has other bits in other batches")
    lstm = xplstm.LSTM(I, 5, rng=1, **LAYERS[name])
    first = lstm.batch_first
    x = X.swapaxes(0, 1) if first else X
    cut = (chunks[1], chunks[0], chunks[2]) if first else chunks
    keywords, chunked = given(valid, chunked=False), given(valid, chunked=True)
    for flags in {"mask", "reset"} & keywords.keys() if first else ():
        keywords[flags], chunked[flags] = keywords[flags].T, chunked[flags].T
    rows = lstm.num_layers * (2 if lstm.bidirectional else 1)
    h = RNG.normal(size=(rows, B, LAYERS[name].get("proj_size", 5))).astype("float32")
    c = RNG.normal(size=(rows, B, 5)).astype("float32")
    y, state = lstm(x, (h, c), **keywords)
    for network in (lstm, lstm.freeze()):
        got, ends = network(da.from_array(x, chunks=cut), (da.from_array(h, chunks=2), c), **chunked)
        same(got, y)
        same(ends.h, state.h)
        same(ends.c, state.c)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_states_in_half_precision_are_not_rounded_between_chunks(name: str, dtype: Any) -> None:
    pytest.importorskip("ml_dtypes")
    lstm, x, cut = xplstm.LSTM(I, 5, rng=1, dtype=dtype, **LAYERS[name]), X.astype(dtype), (4, 3, 3)
    if lstm.batch_first:
        x, cut = x.swapaxes(0, 1), (3, 4, 3)
    if not lstm.explain(x).canonical_sums:
        pytest.skip("a kernel that calls a BLAS has other bits in other batches")
    y, state = lstm(x, lengths=LENGTHS)
    lazily = da.from_array(x, chunks=cut)
    got, ends = lstm(lazily, lengths=LENGTHS)
    for found, expected in ((got, y), (ends.h, state.h), (ends.c, state.c)):
        assert found.dtype == expected.dtype == found.compute().dtype
        same(found.astype("float32"), expected.astype("float32"))
    assert lstm.explain(lazily).kernels == ("native",) * lstm.num_layers


@pytest.mark.parametrize("network", [xplstm.GRU, xplstm.RNN])
def test_networks_without_c_take_the_same_door(network: Any) -> None:
    rnn = network(I, 5, 2, bidirectional=True, rng=1)
    y, h_n = rnn(X, lengths=LENGTHS)
    got, end = rnn(da.from_array(X, chunks=(4, 3, 3)), lengths=LENGTHS)
    np.testing.assert_allclose(got.compute(), y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(end.compute(), h_n, rtol=0, atol=1e-6)
    y, _ = rnn(X, reset=RESETS)
    got, _ = rnn(da.from_array(X, chunks=(4, 3, 3)), reset=RESETS)
    np.testing.assert_allclose(got.compute(), y, rtol=0, atol=1e-6)
    with pytest.raises(xplstm.DTypeError, match="reset has dtype int64, expected bool"):
        rnn(da.from_array(X), reset=RESETS * 1)


def test_one_sequence_without_a_batch_and_no_steps() -> None:
    lstm = xplstm.LSTM(I, 5, rng=1)
    y, state = lstm(X[:, 0], lengths=7)
    got, ends = lstm(da.from_array(X[:, 0], chunks=(4, 3)), lengths=7)
    same(got, y)
    same(ends.c, state.c)
    got, ends = lstm(da.zeros((0, B, I), dtype="float32"))
    same(got, lstm(X[:0])[0])
    same(ends.h, lstm(X[:0])[1].h)


def test_later_changes_of_the_parameters_do_not_reach_a_graph() -> None:
    lstm = xplstm.LSTM(I, 5, rng=1)
    want, (got, _) = lstm(X)[0], lstm(da.from_array(X, chunks=(4, 3, 3)))
    lstm.params = {name: 2 * a for name, a in lstm.params.items()}
    same(got, want)
    other, _ = lstm(da.from_array(X, chunks=(4, 3, 3)))
    assert other.name != got.name


def test_chunks_of_unknown_size() -> None:
    keep = np.asarray([1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
    x, lstm = da.from_array(X, chunks=(4, 3, 3)), xplstm.LSTM(I, 5, rng=1)
    picked = x[:, da.from_array(keep, chunks=3), :]
    lengths = da.from_array(np.asarray(LENGTHS), chunks=3)[da.from_array(keep, chunks=3)]
    y, state = lstm(X[:, keep], lengths=np.asarray(LENGTHS)[keep])
    got, ends = lstm(picked, lengths=lengths)
    np.testing.assert_allclose(got.compute(), y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ends.h.compute(), state.h, rtol=0, atol=1e-6)
    with pytest.raises(xplstm.ShapeError, match="must be a Dask array in the batch chunks of x"):
        lstm(picked, lengths=[1] * 6)
    with pytest.raises(xplstm.ShapeError, match=r"unknown size along time; call x\.compute_chunk_sizes"):
        lstm(x[da.from_array(np.ones(T, dtype=bool), chunks=4)])


@pytest.mark.parametrize("network", [xplstm.LSTM, xplstm.GRU, xplstm.RNN])
@pytest.mark.parametrize("seed", range(12))
def test_random_chunks_some_of_them_empty(seed: int, network: Any) -> None:
    if not network(1, 1).explain(np.zeros((1, 1, 1), "float32")).canonical_sums:
        pytest.skip("a kernel that calls a BLAS has other bits in other batches")
    rng = np.random.default_rng(seed)
    steps, batch = int(rng.choice([0, 1, 5])), int(rng.choice([0, 1, 8]))
    net = network(I, 5, 2, bidirectional=bool(seed % 2), rng=seed)
    net = net.freeze() if seed % 3 else net
    times, batches = random_chunks(rng, steps), random_chunks(rng, batch)
    x = rng.normal(size=(steps, batch, I)).astype("float32")
    flags = rng.random((steps, batch)) < 0.5
    lengths, keep = rng.integers(0, steps + 1, size=batch), rng.random(batch) < 0.3

    def chunked(a: np.ndarray, axis: int, *, pick: bool) -> Any:
        own = {0: (batches,), 1: (times, batches, random_chunks(rng, I))[: a.ndim]}[axis]
        lazily = da.from_array(a, chunks=own)
        return lazily[(slice(None),) * axis + (da.from_array(keep, chunks=(batches,)),)] if pick else lazily

    # Dask itself cannot pick from axes of at most one element in several chunks.
    sound = all(size > 1 or len(own) == 1 for size, own in ((steps, times), (batch, batches)))
    for pick in (False, True) if sound else (False,):
        for names in ((), ("lengths",), ("mask",), ("reset", "lengths")):
            arrays = {name: lengths if name == "lengths" else flags for name in names}
            axes = {name: 0 if name == "lengths" else 1 for name in names}
            plain = {n: np.compress(keep, a, axis=axes[n]) if pick else a for n, a in arrays.items()}
            given = {n: chunked(a, axes[n], pick=pick) for n, a in arrays.items()}
            want = net(np.compress(keep, x, axis=1) if pick else x, **plain)
            got = net(chunked(x, 1, pick=pick), **given)
            for lazily, expected in zip(parts(got), parts(want), strict=True):
                computed = lazily.compute(scheduler="synchronous")
                assert computed.shape == expected.shape
                np.testing.assert_array_equal(computed, expected)


def parts(results: Any) -> list[Any]:
    """Return the arrays in the result of a call."""
    y, end = results
    return [y, *(end if isinstance(end, tuple) else (end,))]


def test_the_graph_is_small_and_holds_the_model_once() -> None:
    lstm = xplstm.LSTM(16, 32, rng=0)
    x = da.zeros((1000, 10_000, 16), dtype="float32", chunks=(100, 1000, 16))
    y, state = lstm(x)
    blocks = 100
    assert y.chunks == (*x.chunks[:2], (32,))
    assert state.h.chunks == ((1,), x.chunks[1], (32,))
    assert len(y.dask) - len(x.dask) == 2 * blocks + 1
    assert sum("Packed object" in repr(task) for task in dict(y.dask).values()) == 1


def test_a_layer_tells_its_size_to_dask() -> None:
    lstm = xplstm.LSTM(16, 32)
    for thing in (lstm, lstm.freeze(), pickle.loads(pickle.dumps(lstm.freeze()))):
        assert thing.nbytes == sum(a.nbytes for a in lstm.params.values())
        assert sys.getsizeof(thing) > thing.nbytes


def test_explain_names_the_kernel_of_a_block() -> None:
    x = da.from_array(X, chunks=(4, 3, 3))
    lstm = xplstm.LSTM(I, 5)
    assert lstm.explain(x, lengths=LENGTHS).kernels == lstm.explain(X, lengths=LENGTHS).kernels
    assert xplstm.GRU(I, 5).explain(x).kernels == xplstm.GRU(I, 5).explain(X).kernels


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda m, x: m(x[..., :2]), xplstm.ShapeError, r"x has shape \(11, 8, 2\), expected \(T, B, 3\)"),
    (lambda m, x: m(x.astype("float64")), xplstm.DTypeError, r"expected float32; convert it with x\.astype"),
    (lambda m, x: m(x, lengths=[12] * 8), xplstm.ArgumentError, r"lengths\[0\]=12 must be in \[0, T=11\]"),
    (lambda m, x: m(x, lengths=[1] * 7), xplstm.ShapeError, "lengths has shape"),
    (lambda m, x: m(x, lengths=da.ones(8)), xplstm.DTypeError, "lengths has dtype float64"),
    (lambda m, x: m(x, mask=da.ones((11, 8))), xplstm.DTypeError, "mask has dtype float64, expected bool"),
    (lambda m, x: m(x, mask=HOLES.T), xplstm.ShapeError, r"mask has shape \(8, 11\), expected \(11, 8\)"),
    (lambda m, x: m(x, lengths=[1] * 8, mask=HOLES), xplstm.ArgumentError, "both passed"),
    (lambda m, x: m(x, (np.ones((1, 8, 4), "f4"),) * 2), xplstm.ShapeError, "h_0 has shape"),
    (lambda m, x: m.vjp(x), xplstm.BackendError, "only a call of a layer accepts"),
    (lambda m, x: m.step(x[0]), xplstm.BackendError, "only a call of a layer accepts"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_does_not_fit_is_refused_before_any_work(number: int) -> None:
    call, kind, message = REFUSED[number]
    with pytest.raises(kind, match=message):
        call(xplstm.LSTM(I, 5), da.from_array(X, chunks=(4, 3, 3)))


@pytest.mark.parametrize("wrong", [-1, 12])
def test_a_length_out_of_range_is_an_error_of_its_task(wrong: int) -> None:
    lengths = da.from_array(np.asarray([1, 2, 3, 4, wrong, 6, 7, 8]), chunks=3)
    for network in (xplstm.LSTM(I, 5), xplstm.GRU(I, 5, bidirectional=True)):
        y, _ = network(da.from_array(X, chunks=(4, 3, 3)), lengths=lengths)
        with pytest.raises(
            xplstm.ArgumentError, match=rf"lengths contains {wrong}, which is not in \[0, T=11\]"
        ):
            y.compute()


CALLS: dict[str, Callable[[Any], Any]] = {
    "LSTM": lambda x: xplstm.LSTM(I, 5, rng=1)(x)[0],
    "Linear": lambda x: xplstm.Linear(I, 5, rng=1)(x),
    "Forecaster": lambda x: Forecaster(I, 5, rng=1)(x)[0],
    "forecast": lambda x: Forecaster(I, 5, rng=1).forecast(x, 2),
    "predict": lambda x: SequenceClassifier(I, 5, 2, task="regression", rng=1).predict(x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_bytes_in_another_order_are_converted(call: Callable[[Any], Any]) -> None:
    got = call(da.from_array(X.astype(">f4"), chunks=(4, 3, 3)))
    assert got.dtype.isnative
    same(got, call(da.from_array(X, chunks=(4, 3, 3))).compute())


def test_two_worker_processes_one_of_them_killed() -> None:
    """The other worker repeats the lost work, with the same bits."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    lstm = xplstm.LSTM(I, 64, 2, rng=1)
    x = np.random.default_rng(5).normal(size=(400, 64, I)).astype("float32")
    want, state = lstm(x)
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        y, ends = lstm(da.from_array(x, chunks=(20, 8, I)))
        results = client.compute([y, ends.h])
        worker = next(iter(cluster.workers.values()))
        os.kill(worker.process.process.pid, signal.SIGKILL)
        got_y, got_h = client.gather(results)
    np.testing.assert_array_equal(got_y, want)
    np.testing.assert_array_equal(got_h, state.h)
