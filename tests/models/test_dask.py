"""Compare models on Dask arrays with one NumPy call, over chunks of any size, in a small graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import random_chunks
from xplstm.models import CharLM, Forecaster, Ragged, Seq2Seq, SequenceClassifier, WithFuture

da = pytest.importorskip("dask.array", reason="dask is not installed")
pytestmark = pytest.mark.backend("dask")

T, B, I = 11, 8, 3
RNG = np.random.default_rng(3)
X = RNG.normal(size=(T, B, I)).astype("float32")
IDS = RNG.integers(0, 9, size=(T, B))
LENGTHS = np.asarray([11, 0, 5, 4, 8, 1, 11, 3])
KEEP = np.asarray([1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
CHUNKS: dict[str, Any] = {"small": (4, 3), "whole": (11, 8), "uneven": ((3, 8), (7, 1))}


def chunked(a: np.ndarray, chunks: Any) -> Any:
    """Return a Dask array with the features in two chunks."""
    return da.from_array(a, chunks=(*chunks, 2) if a.ndim == 3 else chunks)


def picked(a: Any, axis: int) -> Any:
    """Return the entries `KEEP` of a Dask array; Dask does not know their number."""
    keep = da.from_array(KEEP, chunks=(a.chunks[axis],))
    return a[(slice(None),) * axis + (keep,)]


def same(got: Any, want: Any) -> None:
    assert isinstance(got, da.Array)
    computed = got.compute(scheduler="threads")
    assert (got.ndim, got.dtype, computed.dtype) == (want.ndim, want.dtype, want.dtype)
    assert all(n in (size, np.nan) or n != n for n, size in zip(got.shape, want.shape, strict=True))
    np.testing.assert_allclose(computed, want, rtol=0, atol=2e-6)


def classifier(ids: bool, **options: Any) -> SequenceClassifier:
    if ids:
        return SequenceClassifier(None, 5, 4, vocab_size=9, padding_idx=0, rng=0, **options)
    return SequenceClassifier(I, 5, 4, rng=0, **options)


def answers(model: Any, x: Any) -> list[Any]:
    made = [model(x), model.predict(x)]
    return made if model.task.name == "regression" else [*made, model.predict_proba(x)]


READS = [("last", False), ("mean", False), ("max", False), ("last", True)]


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize(("pooling", "each_step"), READS)
def test_a_classifier(pooling: str, each_step: bool, task: str, ids: bool) -> None:
    options: dict[str, Any] = {"pooling": pooling, "each_step": each_step, "task": task}
    model = classifier(ids, bidirectional=True, num_layers=2, **options)
    x = IDS if ids else X
    for chunks in CHUNKS.values():
        for got, want in zip(answers(model, chunked(x, chunks)), answers(model, x), strict=True):
            same(got, want)
        lengths = da.from_array(LENGTHS, chunks=5)
        ragged = Ragged(chunked(x, chunks), lengths if each_step else LENGTHS)
        for got, want in zip(answers(model, ragged), answers(model, Ragged(x, LENGTHS)), strict=True):
            same(got, want)
    unknown = Ragged(picked(chunked(x, (4, 3)), 1), picked(da.from_array(LENGTHS, chunks=3), 0))
    wants = answers(model, Ragged(x[:, KEEP], LENGTHS[KEEP]))
    for got, want in zip(answers(model, unknown), wants, strict=True):
        same(got, want)


def test_one_sequence_without_a_batch() -> None:
    for ids in (False, True):
        model, x = classifier(ids), (IDS if ids else X)[:, 0]
        same(model.predict(da.from_array(x, chunks=4)), model.predict(x))


SERIES: dict[str, dict[str, Any]] = {
    "next step": {},
    "direct": {"horizon": 4, "targets": [0, 2]},
    "quantiles": {"horizon": 4, "targets": [1], "quantiles": [0.1, 0.5, 0.9]},
}


@pytest.mark.parametrize("name", SERIES)
def test_a_forecaster(name: str) -> None:
    model = Forecaster(I, 5, 2, mean=[1, 0, 2], std=[2, 1, 3], rng=0, **SERIES[name])
    state = tuple(RNG.normal(size=(2, B, 5)).astype("float32") for _ in "hc")
    following, end = model(Ragged(X, LENGTHS), state)
    forecast = model.forecast(X, 3, state)
    for chunks in CHUNKS.values():
        x = chunked(X, chunks)
        got, ends = model(Ragged(x, LENGTHS), state)
        same(got, following)
        assert got.chunks[:2] == x.chunks[:2]
        same(ends.c, end.c)
        same(model.forecast(x, 3, state), forecast)
        same(model.forecast(x, 3), model.forecast(X, 3))
    x = picked(chunked(X, (4, 3)), 1)
    same(model(x)[0], model(X[:, KEEP])[0])
    same(model.forecast(x, 2), model.forecast(X[:, KEEP], 2))
    same(model.forecast(da.from_array(X[:, 0], chunks=4), 2), model.forecast(X[:, 0], 2))


def test_a_forecaster_that_knows_columns_ahead() -> None:
    model = Forecaster(I, 5, horizon=4, known=[1], rng=0)
    future = RNG.normal(size=(4, B, 1)).astype("float32")
    want = model.forecast(WithFuture(X, future))
    x = chunked(X, (4, 3))
    for ahead in (future, da.from_array(future, chunks=2)):
        same(model.forecast(WithFuture(x, ahead)), want)
    with pytest.raises(xplstm.ArgumentError, match=r"pass Ragged\(x.x.compute\(\), x.lengths\)"):
        model.forecast(WithFuture(Ragged(x, [1] * X.shape[1]), ahead))
    with pytest.raises(xplstm.ArgumentError, match="which only forecast accepts"):
        model(WithFuture(x, future))
    with pytest.raises(xplstm.ShapeError, match="has no future of the columns"):
        model.forecast(x)
    with pytest.raises(xplstm.ShapeError, match=r"future has shape \(3, 8, 1\), expected \(4, 8, 1\)"):
        model.forecast(WithFuture(x, future[1:]))


def test_a_value_that_is_not_finite_is_an_error_of_its_task() -> None:
    model, bad = Forecaster(I, 5, rng=0), X.copy()
    bad[2, 1, 0] = np.nan
    with pytest.raises(xplstm.ArgumentError, match="a forecast needs finite numbers"):
        model.forecast(chunked(bad, (4, 3)), 2).compute()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_an_error_of_its_task(value) -> None:
    bad = X.copy()
    bad[-1, 1, 0] = value
    for pooling in ("last", "mean"):
        model = SequenceClassifier(I, 5, 2, pooling=pooling, rng=0)
        for predict in (model.predict, model.predict_proba):
            with pytest.raises(xplstm.ArgumentError, match=rf"x\[\d+, 1, 0\] is {value}"):
                predict(chunked(bad, (4, 3))).compute()
            same(predict(Ragged(chunked(bad, (4, 3)), [T - 1] * B)), predict(Ragged(X, [T - 1] * B)))


def test_language_models_and_pairs() -> None:
    ids = IDS % 7
    model = CharLM("abcdefg", 5, rng=0)
    logits, end = model(ids)
    pairs = Seq2Seq("abcdefgh", "vwxyz", 5, rng=0)
    targets = IDS % 5
    want, between = pairs(Ragged(ids, LENGTHS), targets)
    for chunks in CHUNKS.values():
        got, ends = model(chunked(ids, chunks))
        same(got, logits)
        same(ends.h, end.h)
        got, ends = pairs(Ragged(chunked(ids, chunks), LENGTHS), chunked(targets, chunks))
        same(got, want)
        same(ends.c, between.c)
    got, _ = pairs(picked(chunked(ids, (4, 3)), 1), picked(chunked(targets, (4, 3)), 1))
    same(got, pairs(ids[:, KEEP], targets[:, KEEP])[0])
    with pytest.raises(xplstm.BackendError, match=r"decode returns lists; use source\.compute\(\)"):
        pairs.decode(chunked(ids, (4, 3)), max_length=2)
    wrong = chunked(np.where(ids == 3, 7, ids), (4, 3))
    with pytest.raises(xplstm.ArgumentError, match=r"ids contains 7, which is not in \[0, 7\)"):
        model(wrong)[0].compute()


def test_layers_without_recurrence() -> None:
    linear, embedding = xplstm.Linear(I, 2, rng=0), xplstm.Embedding(9, 2, rng=0)
    got = linear(chunked(X, (4, 3)))
    same(got, linear(X))
    assert got.name == linear(chunked(X, (4, 3))).name
    want, lazily = linear(X), linear(chunked(X, (4, 3)))
    linear.params["weight"] *= 2
    same(lazily, want)
    same(embedding(chunked(IDS, (4, 3)).astype("int8")), embedding(IDS))
    for call, kind, message in (
        (lambda: linear(chunked(X, (4, 3))[..., :2]), xplstm.ShapeError, r"expected \(\.\.\., 3\)"),
        (lambda: linear(da.ones((2, 3))), xplstm.DTypeError, "expected float32; convert it with x.astype"),
        (
            lambda: embedding(chunked(X, (4, 3))),
            xplstm.DTypeError,
            "ids has dtype float32, expected integers",
        ),
        (lambda: linear.vjp(chunked(X, (4, 3))), xplstm.BackendError, "only a call of a layer accepts"),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_a_model_is_one_node_and_a_block_a_few_tasks() -> None:
    model = classifier(False)
    x = da.zeros((1000, 10_000, I), dtype="float32", chunks=(100, 1000, I))
    found = model.predict(x)
    blocks, batches = 100, 10
    layers = 2  # the network, and the linear layer
    assert len(found.dask) - len(x.dask) <= 2 * blocks + 4 * batches + layers
    assert sum("Linear" in repr(task) for task in dict(found.dask).values()) == 1


@pytest.mark.parametrize("seed", range(16))
def test_random_chunks_some_of_them_empty(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, batch = int(rng.choice([1, T])), int(rng.choice([1, B]))
    times, batches = random_chunks(rng, steps), random_chunks(rng, batch)
    x, ids, lengths = X[:steps, :batch], IDS[:steps, :batch] % 5, np.minimum(LENGTHS[:batch], steps)
    lazily = da.from_array(x, chunks=(times, batches, (2, 1)))
    tokens = da.from_array(ids, chunks=(times, batches))
    within = da.from_array(lengths, chunks=(batches,))
    model = classifier(False, num_layers=2, each_step=bool(seed % 2))
    same(model(Ragged(lazily, within)), model(Ragged(x, lengths)))
    of_ids = classifier(True, pooling="mean")
    same(of_ids.predict(Ragged(tokens, within)), of_ids.predict(Ragged(ids, lengths)))
    forecaster = Forecaster(I, 5, horizon=2, rng=0)
    same(forecaster.forecast(lazily), forecaster.forecast(x))
    language, pairs = CharLM("abcde", 5, rng=0), Seq2Seq("abcde", "vwxyz", 5, rng=0)
    same(language(tokens)[0], language(ids)[0])
    same(pairs(Ragged(tokens, within), tokens)[0], pairs(Ragged(ids, lengths), ids)[0])
