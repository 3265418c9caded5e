"""Check one-hot vectors, ragged batches and windows on every backend."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import _array
from xplstm.models import Ragged, one_hot, pad, windows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_hot_is_one_at_its_place_alone(xp, dtype):
    ids = np.asarray([[3, 0, 1], [4, 4, 2]])
    vectors = one_hot(xp.asarray(ids), 5, dtype=dtype)
    assert _array.dtype_name(vectors.dtype) == dtype
    np.testing.assert_array_equal(_array.to_numpy(vectors), np.eye(5)[ids])


def test_one_hot_times_a_weight_is_what_an_embedding_looks_up(xp, rng):
    embedding = xplstm.Embedding(5, 3, xp=xp.xp, dtype="float64", rng=1)
    ids = xp.asarray(rng.integers(0, 5, size=(4, 2)))
    product = one_hot(ids, 5, dtype="float64") @ embedding.params["weight"]
    np.testing.assert_array_equal(_array.to_numpy(product), _array.to_numpy(embedding(ids)))


def test_one_hot_takes_small_integers_and_a_single_one():
    assert one_hot(np.asarray([255], dtype=np.uint8), 300).argmax() == 255
    assert one_hot(np.asarray(2), 4).tolist() == [0, 0, 1, 0]
    assert one_hot(np.zeros((0, 3), dtype=int), 4).shape == (0, 3, 4)


@pytest.mark.parametrize("bad", [-1, 5])
def test_one_hot_refuses_what_is_no_place(bad):
    with pytest.raises(xplstm.ArgumentError, match=rf"ids contains {bad}, which is not in \[0, 5\)"):
        one_hot(np.asarray([0, bad]), 5)


def test_one_hot_refuses_other_types():
    with pytest.raises(xplstm.DTypeError, match="ids has dtype float64, expected integers"):
        one_hot(np.zeros(3), 5)
    with pytest.raises(xplstm.DTypeError, match="dtype='int64' must be one of"):
        one_hot(np.zeros(3, dtype=int), 5, dtype="int64")
    with pytest.raises(xplstm.ArgumentError, match="count=0 must be at least 1"):
        one_hot(np.zeros(3, dtype=int), 0)


def test_pad_lays_sequences_side_by_side(xp, rng):
    sequences = [rng.normal(size=(steps, 3)) for steps in (2, 5, 0, 3)]
    x, lengths = pad([xp.asarray(a) for a in sequences])
    assert lengths.tolist() == [2, 5, 0, 3]
    whole = _array.to_numpy(x)
    assert whole.shape == (5, 4, 3)
    for row, a in enumerate(sequences):
        np.testing.assert_array_equal(whole[: len(a), row], a)
        np.testing.assert_array_equal(whole[len(a) :, row], 0)


def test_what_pad_gives_an_lstm_takes(xp, rng):
    lstm = xplstm.LSTM(3, 4, dtype="float64", rng=0)
    sequences = [rng.normal(size=(steps, 3)) for steps in (2, 5, 0, 3)]
    batch = pad([xp.asarray(a) for a in sequences])
    there = xplstm.LSTM(3, 4, dtype="float64", rng=0, xp=xp.xp)
    _, (h_n, _) = there(batch.x, lengths=batch.lengths)
    for row, a in enumerate(sequences):
        np.testing.assert_allclose(_array.to_numpy(h_n)[:, row], lstm(a)[1].h, atol=1e-14)


def test_pad_names_what_does_not_fit():
    with pytest.raises(xplstm.ArgumentError, match="sequences is empty"):
        pad([])
    with pytest.raises(xplstm.ShapeError, match=r"sequences\[1\] has shape \(2, 4\), expected \('T', 3\)"):
        pad([np.zeros((2, 3)), np.zeros((2, 4))])
    with pytest.raises(xplstm.ShapeError, match=r"sequences\[0\] has shape \(\)"):
        pad([np.asarray(3.0)])
    with pytest.raises(xplstm.DTypeError, match=r"sequences\[1\] must be an array"):
        pad([np.zeros(2), [1.0]])


def test_ragged_is_a_pair():
    x, lengths = Ragged("x", [1])
    assert (x, lengths) == ("x", [1])


def test_windows_are_every_stretch_and_its_successor(xp, rng):
    series = rng.normal(size=(9, 2))
    inputs, targets = (_array.to_numpy(a) for a in windows(xp.asarray(series), 4))
    assert inputs.shape == targets.shape == (4, 5, 2)
    for k in range(5):
        np.testing.assert_array_equal(inputs[:, k], series[k : k + 4])
        np.testing.assert_array_equal(targets[:, k], series[k + 1 : k + 5])


def test_windows_names_what_does_not_fit():
    with pytest.raises(xplstm.ArgumentError, match="size=9 must be less than the 9 steps"):
        windows(np.zeros((9, 2)), 9)
    with pytest.raises(xplstm.ArgumentError, match="size=0 must be at least 1"):
        windows(np.zeros((9, 2)), 0)
    with pytest.raises(xplstm.ShapeError, match=r"series has shape \(9,\), expected \(N, F\)"):
        windows(np.zeros(9), 3)
