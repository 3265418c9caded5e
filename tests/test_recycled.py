"""Memory is used again once nobody has it, never before, and does not grow."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from xplstm import _recycled

FLOAT = np.dtype(np.float32)
LARGE = _recycled.SMALLEST // FLOAT.itemsize


def address(a: np.ndarray) -> int:
    return a.ctypes.data


@pytest.fixture(autouse=True)
def own_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recycled, "_pieces", _recycled._Pieces())


def held() -> int:
    return sum(piece.size for piece in _recycled._pieces.all)


def test_shape_dtype_and_place():
    a = _recycled.empty((3, LARGE), FLOAT)
    assert a.shape == (3, LARGE)
    assert a.dtype == FLOAT
    assert a.flags.c_contiguous
    assert a.flags.aligned
    assert address(a) % 64 == 0
    a[:] = 2
    assert a.sum(dtype=np.float64) == 6 * LARGE


def test_small_arrays_are_numpys_own():
    assert _recycled.empty((3,), FLOAT).base is None
    assert held() == 0


def test_memory_comes_again_when_its_array_is_gone():
    a = _recycled.empty((LARGE,), FLOAT)
    before = address(a)
    del a
    assert address(_recycled.empty((LARGE,), FLOAT)) == before


def test_an_array_or_a_view_of_it_keeps_its_memory():
    a = _recycled.empty((2, LARGE), FLOAT)
    a[:] = 1
    row = a[1, ::2]
    del a
    b = _recycled.zeros((2, LARGE), FLOAT)
    assert not np.shares_memory(b, row)
    assert (row == 1).all()
    assert not b.any()


def test_zeros_are_zeros_in_used_memory():
    a = _recycled.empty((LARGE,), FLOAT)
    a[:] = 1
    before = address(a)
    del a
    b = _recycled.zeros((LARGE,), FLOAT)
    assert address(b) == before
    assert not b.any()


def test_a_much_larger_piece_is_not_taken_for_a_small_array():
    a = _recycled.empty((4 * LARGE,), FLOAT)
    before = address(a)
    keep = a[:1]
    del a
    b = _recycled.empty((LARGE,), FLOAT)
    del keep
    assert address(_recycled.empty((4 * LARGE,), FLOAT)) == before
    assert address(b) != before


def test_what_waits_and_what_is_used_are_never_more_than_was_used_at_once():
    for _ in range(3):
        for factor in (3, 5, 2, 7):
            a = _recycled.empty((factor * LARGE,), FLOAT)
            del a
    assert held() <= 4 * 7 * LARGE + 64
    assert len(_recycled._pieces.all) <= 4


def test_memory_not_wanted_again_is_given_back():
    a = _recycled.empty((100 * LARGE,), FLOAT)
    del a
    for _ in range(500):
        a = _recycled.empty((LARGE,), FLOAT)
        del a
    assert held() < 4 * 2 * LARGE


def test_a_thread_has_pieces_of_its_own_and_its_arrays_outlive_it():
    found = []
    thread = threading.Thread(target=lambda: found.append(_recycled.zeros((LARGE,), FLOAT)))
    thread.start()
    thread.join()
    assert held() == 0
    a = _recycled.empty((LARGE,), FLOAT)
    a[:] = 1
    assert not found[0].any()
