"""Check batches of arrays larger than memory: order, parts, reading ahead, and resuming."""

from __future__ import annotations

import threading
import time
import tracemalloc

import numpy as np
import pytest

import xplstm
from tests.training.test_shards import digest, together
from xplstm import optim, training
from xplstm.models import Forecaster, Ragged, SequenceClassifier
from xplstm.training._order import Permutation


class Stored:
    """Array on a disk, like zarr: it is read by slices, and counts the reads."""

    def __init__(self, a):
        self.array, self.shape, self.dtype, self.read = a, a.shape, a.dtype, []

    def __getitem__(self, key):
        assert isinstance(key, slice)
        self.read.append(key.indices(len(self.array)))
        return self.array[key]


# The order.


@pytest.mark.parametrize("size", [1, 2, 3, 31, 64, 65, 1000, 4097])
def test_a_permutation_gives_each_number_once(size):
    numbers = np.arange(size)
    for tweak in (0, 7):
        images = Permutation(size, 5)(numbers, tweak)
        np.testing.assert_array_equal(np.sort(images), numbers)
        np.testing.assert_array_equal(Permutation(size, 5).inverse(images, tweak), numbers)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["entropy", "tweak"])
def test_all_permutations_are_equally_frequent(by):
    numbers, found = np.arange(4), {}
    for k in range(1200):
        images = Permutation(4, 9, k)(numbers) if by == "entropy" else Permutation(4, 9)(numbers, k)
        found[tuple(images)] = found.get(tuple(images), 0) + 1
    assert len(found) == 24
    assert sum((n - 50) ** 2 / 50 for n in found.values()) < 49.7  # chi squared, 23 degrees, 0.1 %


@pytest.mark.slow
def test_each_number_comes_to_each_place():
    size, orders = 50, 2000
    seen, steps = np.zeros((size, size)), np.zeros(size)
    for epoch in range(orders):
        images = Permutation(size, 1, epoch)(np.arange(size))
        seen[np.arange(size), images] += 1
        steps += np.bincount(np.diff(images) % size, minlength=size)
    assert ((seen - 40) ** 2 / 40).sum() < 2630  # chi squared, 49 * 49 degrees, 0.1 %
    assert ((steps[1:] - orders) ** 2 / orders).sum() < 85  # 48 degrees: neighbours do not stay together


def test_an_order_of_many_numbers_needs_no_memory():
    permutation = Permutation(2**63 - 1, 3)
    tracemalloc.start()
    images = permutation(np.arange(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6
    np.testing.assert_array_equal(permutation.inverse(images), np.arange(1000))


def test_the_order_is_the_same_on_every_machine():
    np.testing.assert_array_equal(Permutation(1000, 1, 2)(np.arange(5)), [69, 383, 652, 77, 828])


@pytest.mark.parametrize(("size", "block"), [(1, 1), (7, 3), (12, 4), (100, 7), (5, 9), (30, 1)])
@pytest.mark.parametrize("kind", [np.asarray, Stored])
def test_an_epoch_has_each_sample_once(kind, size, block):
    x = np.arange(size)
    data = training.Samples(kind(x), kind(10 * x), 4, seed=2, block=block)
    orders = []
    for epoch in (0, 1):
        batches = list(data(epoch))
        assert [len(inputs) for inputs, _ in batches] == [min(4, size - k) for k in range(0, size, 4)]
        assert len(batches) == len(data)
        orders.append(np.concatenate([inputs for inputs, _ in batches]))
        np.testing.assert_array_equal(np.sort(orders[-1]), x)
        np.testing.assert_array_equal(np.concatenate([t for _, t in batches]), 10 * orders[-1])
    assert size < 12 or not np.array_equal(*orders)


def test_samples_without_a_seed_keep_their_order():
    stored = Stored(np.arange(10))
    read = [inputs.tolist() for inputs, _ in training.Samples(stored, None, 4)(0)]
    assert read == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert stored.read == [(0, 4, 1), (4, 8, 1), (8, 10, 1)]


def test_a_block_is_read_once_and_whole():
    stored = Stored(np.arange(60))
    batches = training.Samples(stored, None, 7, seed=0, block=10)(0)
    for k in range(len(batches)):
        batches[k]
    assert sorted(stored.read) == [(k, k + 10, 1) for k in range(0, 60, 10)]


def test_a_part_is_the_slice_of_the_whole_batch():
    x = np.random.default_rng(0).standard_normal((20, 5, 2))
    lengths = np.arange(20) % 6
    data = training.Samples(Ragged(x, lengths), {"value": lengths}, 8, seed=1, block=3)(4)
    whole, targets = data[1]
    assert whole.x.shape == (5, 8, 2)
    part, some = data.part(1, 2, 5)
    np.testing.assert_array_equal(part.x, whole.x[:, 2:5])
    np.testing.assert_array_equal(part.lengths, whole.lengths[2:5])
    np.testing.assert_array_equal(some["value"], targets["value"][2:5])
    assert training.Samples(x, x, 8, batch_axis=0)(0)[0][0].shape == (8, 5, 2)


# In `fit`.


def series(entries=44):
    return np.cumsum(np.random.default_rng(5).standard_normal((entries, 9, 2)), 1).astype("float32")


def data_of(x, **options):
    options = {"seed": 3, "block": 4, "prepare": lambda x, _: (x[:-1], x[1:])} | options
    return training.Samples(x, None, 12, **options)


def trained(data, group=None, shards=None, **options):
    model = Forecaster(2, 8, 2, dropout=0.5, rng=0)
    options = {"progress": False, "updates": 10, "rng": 1} | options
    parallel = None if shards is None else training.Shards(group, shards)
    training.fit(model, data, optim.Adam(1e-2), parallel=parallel, **options)
    return digest(model.params)


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_a_resumed_run_continues_in_the_order(tmp_path, stop):
    path = tmp_path / "run.safetensors"
    whole = trained(data_of(Stored(series())))
    trained(data_of(series()), updates=stop, checkpoint=path)
    assert trained(data_of(Stored(series())), checkpoint=path, resume=True, read_ahead=3) == whole


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 4}, "seed=4, expected 3"),
        ({"block": 2}, "block=2, expected 4"),
        ({"x": series(43)}, "samples=43, expected 44"),
    ],
)
def test_another_order_is_not_resumed(tmp_path, change, name):
    path = tmp_path / "run.safetensors"
    trained(data_of(series()), updates=2, checkpoint=path)
    change = dict(change)
    with pytest.raises(xplstm.ArgumentError, match=name):
        trained(data_of(change.pop("x", series()), **change), checkpoint=path, resume=True)
    with pytest.raises(xplstm.ArgumentError, match=r"data has no describe\(\)"):
        trained(list(data_of(series())(0)), checkpoint=path, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True])
def test_processes_read_their_own_parts(ragged):
    x = series()
    lengths = np.arange(len(x)) % 9
    inputs = Ragged(x[:, :-1], lengths) if ragged else x[:, :-1]

    def data():
        return training.Samples(inputs, x[:, 1:], 12, seed=3)

    alone = trained(data(), None, 4)
    batches = [list(data()(epoch)) for epoch in range(3)]
    assert trained(lambda epoch: batches[epoch], None, 4) == alone
    for size in (2, 4):
        assert together(size, lambda g: trained(data(), g, 4, read_ahead=2)) == [alone] * size

    def count(group):
        stored = Stored(x)
        trained(training.Samples(stored, stored, 12, seed=3), group, 4, epochs=1, updates=None)
        return sum(high - low for low, high, _ in stored.read) / 2

    read = together(2, count)
    assert sum(read) == len(x)  # each sample by one process
    assert max(read) <= 22


def test_more_shards_than_batch_entries():
    data = data_of(series(13))  # its second batch has one entry
    alone = trained(data, None, 4)
    assert together(2, lambda g: trained(data, g, 4)) == [alone] * 2


def test_an_error_of_reading_reaches_all_ranks(tmp_path):
    def work(group):
        x = series()

        class Broken(Stored):
            def __getitem__(self, key):
                if group.rank == 1 and len(self.read) == 30:
                    raise OSError("the disk is gone")
                return super().__getitem__(key)

        return trained(data_of(Broken(x), block=1), group, 4, read_ahead=2)

    first, second = together(2, work)
    assert "all ranks stop because of an error on rank 1: OSError: the disk is gone" in first
    assert second.startswith("OSError")


# Reading ahead.


class Batches:
    """Batches that record the thread that reads them; one of them raises an error."""

    def __init__(self, count, broken=None):
        self.count, self.broken, self.read = count, broken, []

    def __len__(self):
        return self.count

    def __getitem__(self, k):
        self.read.append((k, threading.current_thread()))
        if k == self.broken:
            raise OSError("unreadable")
        x = np.full((4, 2, 2), k, "float32")
        return x, x


def test_batches_are_read_in_a_thread_in_their_order():
    threads, data = threading.active_count(), Batches(5)
    plain = trained(Batches(5), updates=12)
    assert trained(data, updates=12, read_ahead=2) == plain
    read = [k for k, _ in data.read]
    assert read == [k % 5 for k in range(len(read))]
    assert 12 <= len(read) <= 14
    assert threading.main_thread() not in [thread for _, thread in data.read]
    assert threading.active_count() == threads


def test_epochs_are_read_to_their_end_and_no_further():
    opened = []
    trained(lambda epoch: opened.append(epoch) or Batches(3), updates=None, epochs=2, read_ahead=9)
    assert opened == [0, 1]
    batches = iter([Batches(1)[0]] * 6)
    assert trained(batches, updates=6, read_ahead=2) == trained([Batches(1)[0]] * 6, updates=6)


def test_no_more_batches_are_read_than_were_asked_for():
    data, seen = Batches(100), []

    def look(event):
        time.sleep(0.02)
        seen.append(len(data.read) - event.update)

    trained(data, updates=6, read_ahead=3, callbacks=look)
    assert max(seen) == 3


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_an_error_of_the_data_comes_at_its_batch(tmp_path, ahead):
    threads, path = threading.active_count(), tmp_path / "run.safetensors"
    with pytest.raises(OSError, match="unreadable"):
        trained(Batches(9, broken=5), read_ahead=ahead, checkpoint=path)
    assert training.load_checkpoint(path).update == 5
    assert threading.active_count() == threads


def test_the_thread_ends_when_the_model_or_the_caller_stops():
    threads = threading.active_count()

    def stop(event):
        if event.update == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(Batches(100), read_ahead=2, callbacks=stop)
    assert threading.active_count() == threads


def test_an_iterator_is_compared_by_the_ranks_and_then_read():
    batches = [Batches(9)[k] for k in range(9)]
    alone = trained(batches, None, 2, updates=8)
    assert together(2, lambda g: trained(iter(batches), g, 2, updates=8)) == [alone] * 2


# What is wrong is named.


def test_wrong_arguments_are_named():
    x = np.zeros((6, 3, 2))
    for given, error, match in [
        ((x, x[:5], 2), xplstm.ShapeError, "inputs has 6, targets has 5"),
        ((x, 3.0, 2), xplstm.DTypeError, "targets is a float"),
        ((x[:0], x[:0], 2), xplstm.ArgumentError, "no samples"),
        ((None, None, 2), xplstm.ArgumentError, "inputs=None contains no array"),
        ((x, x, 0), xplstm.ArgumentError, "batch_size=0"),
    ]:
        with pytest.raises(error, match=match):
            training.Samples(*given)
    for options in ({"seed": -1}, {"block": 0}, {"batch_axis": 2}, {"prepare": 3}):
        with pytest.raises(xplstm.XplstmError, match=next(iter(options))):
            training.Samples(x, x, 2, **options)
    with pytest.raises(xplstm.ArgumentError, match="read_ahead=-1"):
        trained(Batches(2), read_ahead=-1)
    with pytest.raises(IndexError, match="index=3"):
        training.Samples(x, x, 2)(0)[3]
    for index in ("a", 1.0, True):
        with pytest.raises(xplstm.DTypeError, match=r"index=.* must be an integer or a slice"):
            training.Samples(x, x, 2)(0)[index]


def test_targets_of_whole_sequences_keep_the_batch_first():
    """With as many targets as entries in a batch, transposed targets would have a valid shape."""
    x = np.random.default_rng(0).standard_normal((8, 5, 2)).astype("float32")
    targets = x[:, 0, :1] * np.asarray([[1, 0, 2, 0]], "float32")

    def loss_after(data, **options):
        model = SequenceClassifier(2, 4, 4, task="regression", rng=0)
        training.fit(model, data, optim.Adam(0.01), epochs=3, progress=False, **options)
        return float(model.loss(x.swapaxes(0, 1), targets))

    transposed = training.Samples(x, targets, 4)
    for data in (transposed, transposed(0), lambda epoch: transposed(2 * epoch)):
        with pytest.raises(xplstm.ArgumentError, match=r"batch on axis 0, .* shape \(4, B\); pass prepare="):
            loss_after(data)
    samples = training.Samples(x, targets, 4, prepare=lambda a, b: (a, b.T))
    expected = loss_after([(x[k : k + 4].swapaxes(0, 1), targets[k : k + 4]) for k in (0, 4)])
    assert loss_after(samples) == expected
    parted = loss_after(samples, parallel=training.Shards(None, 2))
    assert parted == pytest.approx(expected, rel=1e-5)


def test_a_part_of_another_size_is_refused():
    data = training.Samples(series(), None, 12, prepare=lambda x, _: (x[:-1, 1:], x[1:, 1:]))
    with pytest.raises(xplstm.ShapeError, match=r"part\(0, 12\) of the data returned 11 entries on axis 1"):
        trained(data, None, 4)
