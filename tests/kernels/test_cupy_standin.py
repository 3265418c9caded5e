"""Check that the stand-in for CuPy refuses what CuPy and CUDA refuse."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from tests.cuda_emulation import compiled, libraries, standin
from xplstm.kernels._cuda import launch

pytestmark = [
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here for the stand-ins"),
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
]

ONE = np.ones(2, np.float32)


def product(handle: int, rows: int = 1, result: int = 0) -> None:
    """A product of CuPy's, of two numbers whose columns are one number apart, with a result of some type."""
    a, scalars = standin.zeros(2), ONE.ctypes.data
    numbers = [a.data.ptr, 0, 1]
    out = [a.data.ptr, result, 1]
    libraries.gemmEx(handle, 0, 0, rows, 1, 1, scalars, *numbers, *numbers, scalars, *out, 68, -1)


def test_the_legacy_stream_cannot_be_asked_while_a_blocking_stream_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocking, other = standin.Stream(), standin.Stream(non_blocking=True)
    legacy = standin.Stream(null=True)
    monkeypatch.setattr(other, "captured", True)
    assert not legacy.is_capturing()
    monkeypatch.setattr(blocking, "captured", True)
    with pytest.raises(RuntimeError, match="CaptureImplicit"):
        legacy.is_capturing()


def test_products_of_cupy_are_refused_during_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.installed():
        product(libraries.handle())
        monkeypatch.setattr(standin.Stream.current[0], "captured", True)
        with pytest.raises(NotImplementedError, match="during stream capture"):
            product(libraries.handle())


def test_cublas_makes_no_product_of_every_type_and_layout() -> None:
    with standin.installed():
        with pytest.raises(AssertionError, match="no product of these types"):
            product(libraries.handle(), result=2)
        with pytest.raises(AssertionError, match="columns that overlap"):
            product(libraries.handle(), rows=2)


def test_a_struct_with_fields_is_refused_because_it_costs_more_than_the_launch() -> None:
    packed = np.zeros(1, launch.fields("a b:2"))
    with pytest.raises(AssertionError, match="describes the fields"):
        standin._argument(packed)
    assert bytes(standin._argument(launch.by_value(packed))) == bytes(24)


def test_tf32_is_cut_and_not_rounded() -> None:
    a = np.asarray([1 + 2.0**-10 - 2.0**-23, np.inf], np.float32)
    np.testing.assert_array_equal(libraries.tf32(a), np.asarray([1, np.inf], np.float32))


def test_a_handle_belongs_to_a_device() -> None:
    with standin.installed():
        handle = libraries.handle()
        with standin.Device(1), pytest.raises(AssertionError, match="handle of another device"):
            product(handle)


def test_the_driver_has_no_kernel_of_another_stream() -> None:
    with standin.installed(), pytest.raises(AssertionError, match="another stream"):
        libraries._set_library_stream(libraries.handle(), 12345)


@pytest.mark.parametrize(("blocks", "threads"), [(7, 256), (49, 32)])
def test_the_driver_refuses_blocks_that_cannot_all_be_resident(blocks: int, threads: int) -> None:
    """With 255 registers per thread, a multiprocessor can hold 256 threads, in one block or several."""
    with standin.installed():
        kernel = launch.kernel("trial.cu", "occupy", "float32", cooperative=True)
        kernel((1, blocks - 1), (threads,), (0,), shared_mem=1024)
        with pytest.raises(AssertionError, match=f"room for {blocks - 1} blocks at once"):
            kernel((1, blocks), (threads,), (0,), shared_mem=1024)
        kernel.max_dynamic_shared_size_bytes = 10**6
        with pytest.raises(AssertionError, match="room for 6 blocks at once"):
            kernel((1, blocks), (threads,), (0,), shared_mem=120000)


def test_every_result_has_memory_of_its_own() -> None:
    a = standin.zeros(3)
    total = a + a
    assert total.memory is not a.memory
    assert total.memory.start == total.data.ptr
    ctypes.memset(total.data.ptr + total.nbytes, 0, 1)
    assert not total.memory.unharmed()
    standin.Memory.everything.discard(total.memory)


def test_copies_and_sums_are_launches() -> None:
    a = standin.zeros((2, 3))
    standin.copied.clear()
    a + a, standin.stack([a, a]), standin.ascontiguousarray(a.T)
    standin.array(a, np.float64, copy=True, order="C")
    assert standin.copied == [(2, 3), (2, 2, 3), (3, 2), (2, 3)]


@pytest.mark.parametrize("make", ["array", "ascontiguousarray", "stack"])
def test_arrays_of_the_host_are_refused(make: str) -> None:
    a = np.zeros((2, 3))
    options = {"dtype": "f4", "copy": True, "order": "C"} if make == "array" else {}
    with pytest.raises(AssertionError, match="of the host"):
        getattr(standin, make)([a] if make == "stack" else a, **options)


def test_modules_of_cupy_are_taken_away_again() -> None:
    before = sys.modules.get("cupy")
    with standin.installed() as cupy:
        assert sys.modules["cupy"] is cupy
    assert sys.modules.get("cupy") is before
