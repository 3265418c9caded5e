"""Check that memory is used again after its last reference ends, not before, and does not grow."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import xplstm
from xplstm.kernels import _recycled

FLOAT = np.dtype(np.float32)
LARGE = _recycled.SMALLEST // FLOAT.itemsize


def address(a: np.ndarray) -> int:
    return a.ctypes.data


@pytest.fixture(autouse=True)
def own_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recycled, "pieces", _recycled.Pieces())


def held() -> int:
    """Return the bytes that are in use or kept for reuse."""
    pieces = _recycled.pieces
    return sum(piece.size for piece, _ in pieces.waiting.values()) + sum(pieces.used.values())


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


def test_what_waited_for_long_is_given_back(monkeypatch: pytest.MonkeyPatch):
    a, b = (_recycled.empty((LARGE,), FLOAT) for _ in range(2))
    del a
    _recycled.pieces.free_idle()
    assert held() > 4 * 2 * LARGE
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + _recycled.LONG + 1)
    _recycled.pieces.free_idle()
    assert 4 * LARGE < held() < 4 * 2 * LARGE
    del b


def test_inference_gives_back_what_training_left(monkeypatch: pytest.MonkeyPatch):
    lstm, x = xplstm.LSTM(16, 128), np.ones((64, 32, 16), "float32")
    lstm.vjp(x)[2](np.ones((64, 32, 128), "float32"))
    assert held() > 2**22
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + _recycled.LONG + 1)
    lstm.freeze()(x)
    assert held() < 2**20


def test_threads_do_not_share_memory():
    ends: list[bool] = []

    def work(number: int) -> None:
        same = True
        for _ in range(200):
            a = _recycled.empty((LARGE,), FLOAT)
            a[:: LARGE // 7] = number
            b = a[::-1]
            del a
            same &= bool((b[:: LARGE // 7].max() <= number) and (b[:: -(LARGE // 7)] == number).any())
            same &= b[-1] == number
        ends.append(bool(same))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [True] * 4


def test_a_thread_s_array_outlives_it():
    found = []
    thread = threading.Thread(target=lambda: found.append(_recycled.zeros((LARGE,), FLOAT)))
    thread.start()
    thread.join()
    a = _recycled.empty((LARGE,), FLOAT)
    a[:] = 1
    assert not found[0].any()


def test_arrays_that_live_to_the_end_of_the_interpreter_say_nothing():
    code = """
import numpy as np
import xplstm
from xplstm.kernels import _recycled
class Cycle: pass
cycle = Cycle()
cycle.self, cycle.a = cycle, _recycled.empty((2**20,), np.dtype("float32"))
a = _recycled.empty((2**20,), np.dtype("float32"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_training_never_changes_what_a_user_holds():
    lstm, rng = xplstm.LSTM(16, 128, rng=0), np.random.default_rng(0)
    held_arrays, copies = [], []
    for _ in range(6):
        x = rng.standard_normal((64, 32, 16), dtype=np.float32)
        y, _, pullback = lstm.vjp(x)
        dx, _, grads = pullback(y)
        for a in (y, dx, *grads.values()):
            held_arrays.append(a)
            copies.append(a.copy())
    assert any(a.nbytes >= _recycled.SMALLEST for a in held_arrays)
    for a, copy in zip(held_arrays, copies, strict=True):
        np.testing.assert_array_equal(a, copy)
