"""Check transports of `Shards`: MPI in real processes, NCCL with a stand-in for CuPy, and transport sums."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import xplstm
from tests.training.test_shards import batches, digest, together, trained
from xplstm import optim, training
from xplstm.models import Forecaster

ROOT = Path(__file__).parents[2]
BESIDE = Path(sys.executable).with_name("mpiexec")
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
HAS_MPI = bool(MPIEXEC) and importlib.util.find_spec("mpi4py") is not None

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are started by fork")


def parameters(group, sums, shards=4, updates=8):
    model = Forecaster(2, 8, 2, rng=0)
    training.fit(
        model,
        batches(7, True),
        optim.SGD(0.1),
        updates=updates,
        parallel=training.Shards(group, shards, sums=sums),
        progress=False,
        carry=True,
    )
    return model.params


def assert_close(found, expected):
    for name, a in expected.items():
        np.testing.assert_allclose(found[name], a, rtol=1e-4, atol=1e-6, err_msg=name)


# Pipes between processes that are not forked.


def of_method(group, end):
    end.send(trained(group, 4, batches(7, True), carry=True, rng=3))
    end.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.slow
def test_processes_of_every_start_method(method):
    """Their sockets are pickled, which does not keep the timeout."""
    context, groups = multiprocessing.get_context(method), training.local_group(2, timeout=60.0)
    pairs = [context.Pipe(duplex=False) for _ in groups]
    ranks = [
        context.Process(target=of_method, args=(group, end))
        for group, (_, end) in zip(groups, pairs, strict=True)
    ]
    for rank in ranks:
        rank.start()
    for group in groups:
        group.close()
    for rank in ranks:
        rank.join()
    found = [end.recv() if end.poll() else None for end, _ in pairs]
    assert found == [trained(None, 4, batches(7, True), carry=True, rng=3)] * 2


# MPI.

PROGRAM = """
import numpy as np
from tests.training.test_shards import batches, digest, trained
from tests.training.test_transports import assert_close, parameters
from xplstm import training
from mpi4py import MPI

group = training.MPIGroup()
assert group.size == {size}
if {size} & ({size} - 1) == 0:
    assert trained(group, 4, batches(7, True), carry=True, rng=3) == "{expected}"
assert group.gather(b"x" * group.rank) == [b"x" * rank for rank in range(group.size)]
params = parameters(group, "fast", shards=12)
assert_close(params, parameters(None, "tree", shards=12))
assert len(set(MPI.COMM_WORLD.allgather(digest(params)))) == 1
if group.rank == 0:
    print("all agree")
"""


@pytest.mark.skipif(not HAS_MPI, reason="mpi4py or mpiexec is missing")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_mpi_gives_the_same_bits(size):
    expected = trained(None, 4, batches(7, True), carry=True, rng=3)
    program = PROGRAM.format(size=size, expected=expected)
    command = [str(MPIEXEC), "-n", str(size), sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "all agree" in done.stdout, done.stderr


# NCCL.


class OnDevice(np.ndarray):
    """Array of the stand-in for CuPy that only `get` copies to the host."""

    def get(self):
        return np.asarray(self).copy()


CUPY = types.SimpleNamespace(
    ndarray=type("ndarray", (), {}),  # array-api-compat asks for it, and no array of these tests is one
    asarray=lambda a: np.array(a).view(OnDevice),
    empty_like=lambda a: np.full_like(a, 77).view(OnDevice),
    empty=lambda shape, dtype: np.full(shape, 77, dtype).view(OnDevice),
)


class Backend:
    """`cupyx.distributed.NCCLBackend` with its signatures and errors, on the sockets of a local group."""

    def __init__(self, group):
        self.rank, self._group = group.rank, group

    def _check(self, *arrays):
        for a in arrays:
            assert isinstance(a, OnDevice)
            assert a.flags.c_contiguous
            assert a.dtype.char in "bBiIlLqQefd"

    def all_reduce(self, in_array, out_array, op="sum", stream=None):  # noqa: ARG002
        self._check(in_array, out_array)
        every = self._group.gather(in_array.tobytes())
        out_array[...] = sum(np.frombuffer(part, in_array.dtype) for part in every)

    def all_gather(self, in_array, out_array, count, stream=None):  # noqa: ARG002
        self._check(in_array, out_array)
        every = b"".join(self._group.gather(in_array[:count].tobytes()))
        out_array.reshape(-1)[...] = np.frombuffer(every, in_array.dtype)

    def send_recv(self, in_array, out_array, peer, stream=None):  # noqa: ARG002
        self._check(in_array, out_array)
        out_array[...] = self._group.exchange(np.ascontiguousarray(in_array), peer)


@pytest.mark.parametrize("size", [2, 4])
def test_nccl_gives_the_same_bits_on_a_stand_in(monkeypatch, size):
    monkeypatch.setitem(sys.modules, "cupy", CUPY)
    alone = trained(None, 4, batches(7, True), carry=True, rng=3)

    def work(group):
        nccl = training.NCCLGroup(Backend(group), size)
        assert nccl.gather(b"x" * nccl.rank) == [b"x" * rank for rank in range(size)]
        return trained(nccl, 4, batches(7, True), carry=True, rng=3)

    assert together(size, work) == [alone] * size


def test_nccl_adds_in_its_own_order(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", CUPY)
    expected = parameters(None, "tree", 6)
    found = together(3, lambda g: parameters(training.NCCLGroup(Backend(g), 3), "fast", 6))
    for params in found:
        assert_close(params, expected)
        assert digest(params) == digest(found[0])


@pytest.mark.parametrize("name", ["all_reduce", "all_gather", "send_recv"])
def test_the_stand_in_has_the_signatures_of_cupy(name):
    backend = pytest.importorskip("cupyx.distributed").NCCLBackend
    assert str(inspect.signature(getattr(backend, name))) == str(inspect.signature(getattr(Backend, name)))


# Sums of the transport.


def of_torch(rank, size, path, end):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    end.send(parameters(training.TorchGroup(), "fast", 6))
    end.close()
    dist.destroy_process_group()


def test_gloo_adds_in_its_own_order(torch, tmp_path):
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe(duplex=False) for _ in range(3)]
    ranks = [
        context.Process(target=of_torch, args=(rank, 3, tmp_path / "meet", end))
        for rank, (_, end) in enumerate(pairs)
    ]
    for rank in ranks:
        rank.start()
    expected = parameters(None, "fast", 6)
    found = [end.recv() if end.poll(120) else None for end, _ in pairs]
    for rank in ranks:
        rank.join()
    for params in found:
        assert_close(params, expected)
        assert digest(params) == digest(found[0])


@pytest.mark.parametrize(
    ("name", "make"), [("mpi4py", training.MPIGroup), ("torch", training.TorchGroup)], ids=["mpi", "torch"]
)
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, name, make):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"{make.__name__} needs the package {name}.*install"):
        make()


def test_sums_of_a_transport_without_any_are_refused():
    first, second = training.local_group(2)
    with pytest.raises(
        xplstm.ArgumentError, match="sums='fast' needs a group with all_reduce, which LocalGr"
    ):
        training.Shards(first, 4, sums="fast")
    with pytest.raises(xplstm.ArgumentError, match="sums='quick'"):
        training.Shards(None, 4, sums="quick")
    first.close()
    second.close()


class Three:
    rank, size = 0, 3

    def exchange(self, *_):
        raise AssertionError

    gather = all_reduce = exchange


def test_any_number_that_divides_the_shards_can_add_fast():
    assert training.Shards(Three(), 12, sums="fast").count == 12
    with pytest.raises(
        xplstm.ArgumentError, match="3 processes, expected a divisor of the number of shards, 4"
    ):
        training.Shards(Three(), 4, sums="fast")


def test_ranks_with_other_sums_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", CUPY)

    def work(group):
        return parameters(training.NCCLGroup(Backend(group), 2), ("tree", "fast")[group.rank])

    for text in together(2, work):
        assert "rank 1 has sums='fast', but rank 0 has 'tree'" in text
