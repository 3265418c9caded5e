"""Compare the page about large runs with the simulation, and the simulation with real processes."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import at_scale
from tests.training.test_shards import digest, together
from xplstm import optim, training
from xplstm.models import Forecaster
from xplstm.training._team import Team


@pytest.mark.skipif(importlib.util.find_spec("dask") is None, reason="counts the tasks of Dask")
def test_the_page_has_the_figures_of_the_simulation() -> None:
    text = at_scale.PAGE.read_text(encoding="utf-8")
    assert text.split(at_scale.BEGIN)[1].split(at_scale.END)[0].strip() == at_scale.tables().strip()


@pytest.mark.skipif(sys.platform == "win32", reason="processes are started by fork")
@pytest.mark.parametrize("length", [1000, 1003])
def test_the_simulation_sends_what_processes_send(length: int) -> None:
    def sent(group: Any) -> list[tuple[int, int]]:
        found, exchange = [], group.exchange

        def noted(array: np.ndarray, peer: int) -> np.ndarray:
            found.append((peer, array.nbytes))
            return np.asarray(exchange(array, peer))

        group.exchange = noted
        Team(group).add(lambda: (np.zeros(length, "float32"), None), length, "float32")
        return found

    assert together(8, sent) == [[tuple(m) for m in own] for own in at_scale.messages(8, length)]


def test_times_of_a_tree_by_hand() -> None:
    """Three steps inside a machine, then one between two, and the same again."""
    size, inside, between = 4 * 1600, at_scale.LATENCY_INSIDE, at_scale.LATENCY_BETWEEN
    halves = [size / 2**k for k in (1, 2, 3)]
    expected = 2 * sum(inside + half / at_scale.BANDWIDTH_INSIDE for half in halves)
    expected += 2 * (between + 8 * size / 16 / at_scale.BANDWIDTH_BETWEEN)
    assert at_scale.tree_time(at_scale.messages(16, 1600)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_an_epoch_of_a_billion_samples(tmp_path: Path) -> None:
    """The array repeats one sample, so it takes no memory. The order still has 1e9 numbers."""
    sample = np.sin(np.arange(6.0, dtype="float32")).reshape(1, 6, 1)
    stored, path = np.broadcast_to(sample, (at_scale.SEQUENCES, 6, 1)), tmp_path / "run.safetensors"
    seen: list[np.ndarray] = []

    def trained(**options: Any) -> str:
        numbers = Numbers(stored, seen)
        data = training.Samples(numbers, None, 64, seed=1, prepare=lambda x, _: (x[:-1], x[1:]))
        model = Forecaster(1, 4, rng=0)
        assert len(data) == at_scale.SEQUENCES // 64
        training.fit(model, data, optim.Adam(0.01), progress=False, **options)
        return digest(model.params)

    tracemalloc.start()
    whole = trained(updates=6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7
    read = np.concatenate(seen)
    assert len(np.unique(read)) == 6 * 64
    assert np.ptp(read) > 0.9 * at_scale.SEQUENCES
    seen.clear()
    trained(updates=2, checkpoint=path)
    assert trained(updates=6, checkpoint=path, resume=True) == whole
    np.testing.assert_array_equal(np.concatenate(seen), read)


class Numbers:
    """Array that records the samples that are read, one slice per read."""

    def __init__(self, stored: np.ndarray, seen: list[np.ndarray]) -> None:
        self.stored, self.seen, self.shape, self.dtype = stored, seen, stored.shape, stored.dtype

    def __getitem__(self, key: slice) -> np.ndarray:
        self.seen.append(np.arange(key.start, key.stop))
        return self.stored[key]
