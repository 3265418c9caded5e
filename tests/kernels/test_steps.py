"""Compare single steps on the fast path from Python with the path through all checks."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm.kernels import native

if native.WHY_NOT and "native" not in os.environ.get("XPLSTM_REQUIRE", ""):
    pytest.skip(native.WHY_NOT, allow_module_level=True)

I, H = 3, 21
STACKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"num_layers": 3},
    "projection": {"num_layers": 2, "proj_size": 5},
    "double": {"num_layers": 2, "dtype": "float64"},
    "no bias": {"bias": False, "batch_first": True},
}


class Both:
    """Frozen LSTM that counts its steps on the fast path."""

    def __init__(self, **options: Any) -> None:
        lstm = xplstm.LSTM(I, H, rng=3, **options)
        self.long, self.short = lstm.freeze(), lstm.freeze()
        self.dtype = lstm.params["weight_hh_l0"].dtype
        self.short.step(self.random(0, 1, I))
        self.taken = 0
        stepper = self.short._steppers[None]
        assert stepper is not None

        def counted(*args: Any) -> Any:
            found = stepper(*args)
            self.taken += found is not None
            return found

        self.short._steppers[None] = counted

    def random(self, seed: int, *shape: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=shape).astype(self.dtype)

    def state(self, *rows: int) -> tuple[np.ndarray, np.ndarray]:
        L, P = self.short._stack.num_layers, self.short._stack.output_size
        return self.random(1, L, *rows, P), self.random(2, L, *rows, H)

    def agree(self, x: Any, state: Any, short: bool) -> None:
        """Compare bits or errors; `short` states whether the fast path is taken."""
        outcomes, self.taken = [], 0
        for frozen in (self.short, self.long):
            frozen._steppers = frozen._steppers if frozen is self.short else {None: None}
            try:
                y, after = frozen.step(x, state)
                outcomes.append([type(after), *((a.shape, a.dtype, a.tobytes()) for a in (y, *after))])
            except Exception as error:
                outcomes.append([type(error), str(error)])
        assert outcomes[0] == outcomes[1]
        assert self.taken == short


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("rows", [(), (1,), (4,), (70,)])
def test_the_short_way_gives_the_same_bits(name: str, rows: tuple[int, ...]) -> None:
    both = Both(**STACKS[name])
    x, state = both.random(5, *rows, I), both.state(*rows)
    both.agree(x, state, True)
    both.agree(x, xplstm.LSTMState(*state), True)
    both.agree(x, None, rows in ((), (1,)))
    both.agree(x, list(state), False)


def test_a_large_step_gives_the_same_bits_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "THREADS", 3)
    lstm = xplstm.LSTM(40, 150, num_layers=2, rng=0)
    frozen, x = lstm.freeze(), np.ones((9, 40), "float32")
    _, state = frozen.step(x)
    y, after = frozen.step(x, state)
    monkeypatch.setattr(native, "THREADS", 1)
    want, want_after = lstm.step(x, state)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(after.c, want_after.c)


def unaligned(a: np.ndarray) -> np.ndarray:
    room = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    room[...] = a
    return room


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


UNUSUAL: dict[str, tuple[Callable[[np.ndarray], Any], bool]] = {
    "read-only": (read_only, True),
    "strided": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], False),
    "reversed": (lambda a: a[..., ::-1].copy()[..., ::-1], False),
    "byte-swapped": (lambda a: a.astype(a.dtype.newbyteorder()), False),
    "unaligned": (unaligned, False),
    "subclass": (lambda a: a.view(type("Sub", (np.ndarray,), {})), False),
    "masked": (np.ma.masked_array, False),
    "double": (lambda a: a.astype("float64"), False),
    "half": (lambda a: a.astype("float16"), False),
    "integers": (lambda a: a.astype("int32"), False),
    "objects": (lambda a: a.astype(object), False),
    "dates": (lambda a: a.astype("int64").astype("datetime64[s]"), False),
    "complex": (lambda a: a.astype("complex64"), False),
    "list": (np.ndarray.tolist, False),
    "buffer": (memoryview, False),
    "nothing": (lambda _: None, False),
    "too long": (lambda a: np.concatenate([a, a], axis=-1), False),
    "two rows": (lambda a: np.repeat(a, 2, axis=-2), False),
    "no rows": (lambda a: a[..., :0, :], False),
    "an axis more": (lambda a: a[None], False),
    "an axis less": (lambda a: a.reshape(-1), False),
    "a number": (lambda a: a.reshape(-1)[0], False),
    "no axes": (lambda a: a.reshape(-1)[0].reshape(()), False),
}


@pytest.mark.parametrize("place", ["x", "h", "c"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_whatever_is_unusual_is_as_by_the_long_way(name: str, place: str) -> None:
    both = Both(num_layers=2)
    change, short = UNUSUAL[name]
    given: dict[str, Any] = dict(zip("xhc", (both.random(5, 1, I), *both.state(1)), strict=True))
    given[place] = change(given[place])
    both.agree(given["x"], (given["h"], given["c"]), short)


@pytest.mark.parametrize("state", [(), (1,), (1, 2, 3), "hc", 7, {}, np.zeros((2, 1, 1, H), "float32")])
def test_states_that_are_none(state: Any) -> None:
    both = Both()
    both.agree(both.random(5, 1, I), state, False)


def test_another_library_is_refused_as_by_the_long_way() -> None:
    strict = pytest.importorskip("array_api_strict")
    both = Both()
    both.agree(strict.asarray(both.random(5, 1, I)), both.state(1), False)


def test_results_are_new_and_alone() -> None:
    both = Both(num_layers=2)
    x, state = both.random(5, 1, I), both.state(1)
    before = [a.copy() for a in (x, *state)]
    y, after = both.short.step(x, state)
    y_2, after_2 = both.short.step(x, state)
    arrays = [x, *state, y, *after, y_2, *after_2]
    for k, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[k + 1 :])
    for a in (y, *after):
        assert a.flags.owndata
        assert a.flags.writeable
        a[...] = np.nan
    for a, b in zip((x, *state), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert both.taken == 2


def test_a_pinned_kernel_runs_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both()
    x, state = both.random(5, 1, I), both.state(1)
    both.short.step(x, state)
    for name in ("reference", "numpy_inplace"):
        with xplstm.use_kernel(name):
            for _ in range(2):
                got, _ = both.short.step(x, state)
            want, _ = both.long.step(x, state)
        np.testing.assert_array_equal(got, want)
        assert both.short._steppers[name] is None
    assert both.taken == 1
    with xplstm.use_kernel("native"):
        both.short.step(x, state)
        assert both.short._steppers["native"] is not None
    half = xplstm.LSTM(I, H, dtype="float16").freeze()
    with xplstm.use_kernel("numpy_inplace"), pytest.raises(xplstm.KernelError, match="float16"):
        half.step(np.zeros((1, I), "float16"))


def test_what_other_kernels_run_has_no_short_way() -> None:
    layer, x = xplstm.LSTM(I, H).freeze(), np.ones((1, I), "float32")
    with xplstm.use_kernel("reference"):
        _, state = layer.step(x)
        layer.step(x, state)
    assert layer._steppers == {"reference": None}
    with pytest.raises(xplstm.ArgumentError, match="bidirectional"):
        xplstm.LSTM(I, H, bidirectional=True).freeze().step(x)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_a_frozen_lstm_that_has_stepped_travels(way: Any) -> None:
    both = Both()
    x, state = both.random(5, 1, I), both.state(1)
    other = way(both.short)
    for _ in range(2):
        np.testing.assert_array_equal(other.step(x, state)[0], both.long.step(x, state)[0])


def test_steps_of_many_threads_do_not_meet() -> None:
    frozen = xplstm.LSTM(40, 150, num_layers=2, rng=0).freeze()
    starts = [np.full((B, 40), B, "float32") for B in (1, 2, 7, 1)]

    def stream(x: np.ndarray, steps: int = 60) -> np.ndarray:
        state = None
        for _ in range(steps):
            y, state = frozen.step(x, state)
        return y

    wants, got = [stream(x) for x in starts], [None] * len(starts)

    def run(k: int) -> None:
        got[k] = stream(starts[k])

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(starts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for y, want in zip(got, wants, strict=True):
        np.testing.assert_array_equal(y, want)


def test_steps_leave_no_references_behind() -> None:
    both = Both()
    x, state = both.random(5, 1, I), both.state(1)
    watched = [x, *state, state, np.ndarray, xplstm.LSTMState]
    if sys.version_info < (3, 12):  # later None is immortal, and its count says nothing
        watched.append(None)
    gc.collect()  # what earlier tests left is not counted while it goes
    before = [sys.getrefcount(a) for a in watched]
    for _ in range(200):
        both.short.step(x, state)
        both.short.step(x[:, ::-1], None)
    after = [sys.getrefcount(a) for a in watched]
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True))


class Calls(Both):
    """Frozen LSTM that counts its calls on the fast path."""

    def __init__(self, **options: Any) -> None:
        lstm = xplstm.LSTM(I, H, rng=3, **options)
        self.long, self.short = lstm.freeze(), lstm.freeze()
        self.dtype = lstm.params["weight_hh_l0"].dtype
        self.short(self.random(0, 1, 1, I))
        self.taken = 0
        caller = self.short._callers[None]
        assert caller is not None

        def counted(*args: Any) -> Any:
            found = caller(*args)
            self.taken += found is not None
            return found

        self.short._callers[None] = counted
        self.long._callers = {None: None}

    def agree(self, x: Any, state: Any, short: bool, **options: Any) -> None:
        """Compare bits or errors; `short` states whether the fast path is taken."""
        outcomes, self.taken = [], 0
        for frozen in (self.short, self.long):
            try:
                y, after = frozen(x, state, **options)
                outcomes.append([type(after), *((a.shape, a.dtype, a.tobytes()) for a in (y, *after))])
            except Exception as error:
                outcomes.append([type(error), str(error)])
        assert outcomes[0] == outcomes[1]
        assert self.taken == short


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("rows", [(), (1,), (4,)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("T", [1, 2, 9])
def test_a_small_call_gives_the_same_bits(
    name: str, rows: tuple[int, ...], batch_first: bool, T: int
) -> None:
    calls = Calls(**(STACKS[name] | {"batch_first": batch_first}))
    sizes = (*rows, T, I) if batch_first else (T, *rows, I)
    x, state = calls.random(5, *sizes), calls.state(*rows)
    short = rows != (4,) or not batch_first
    calls.agree(x, state, short)
    calls.agree(x, xplstm.LSTMState(*state), short)
    calls.agree(x, None, rows != (4,))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_layers_hand_on_whole_sequences(layers: int) -> None:
    calls = Calls(num_layers=layers)
    x, state = calls.random(5, 7, 3, I), calls.state(3)
    calls.agree(x, state, True)
    y, after = calls.short(x, state)
    y_2, _ = calls.short(x, state)
    arrays = [x, *state, y, *after, y_2]
    for k, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[k + 1 :])


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("place", ["x", "h", "c"])
def test_whatever_is_unusual_in_a_call_is_as_by_the_long_way(name: str, place: str) -> None:
    calls = Calls(num_layers=2)
    change, short = UNUSUAL[name]
    given: dict[str, Any] = dict(zip("xhc", (calls.random(5, 3, 1, I), *calls.state(1)), strict=True))
    given[place] = change(given[place])
    calls.agree(given["x"], (given["h"], given["c"]), short)


def test_what_only_a_checked_call_can_do_goes_the_long_way() -> None:
    calls = Calls()
    x, state = calls.random(5, 6, 2, I), calls.state(2)
    calls.agree(x, state, False, lengths=[3, 6])
    calls.agree(x, state, False, mask=x[..., 0] > 0)
    calls.agree(x, state, False, reset=x[..., 0] > 0)
    calls.agree(calls.random(5, 0, 2, I), state, False)
    calls.agree(calls.random(5, 6, 8, I), calls.state(8), False)
    calls.agree(calls.random(5, 10**5, 1, I), calls.state(1), False)
    both_ways = xplstm.LSTM(I, H, bidirectional=True).freeze()
    both_ways(x)
    assert both_ways._callers == {None: None}


def test_a_large_batch_first_leaves_small_calls_their_short_way() -> None:
    frozen = xplstm.LSTM(2, 3).freeze()
    frozen(np.ones((1, 600, 2), "float32"))
    assert frozen._callers[None] is not None
    assert frozen._callers[None](np.ones((1, 600, 2), "float32"), None) is None


OTHERS: dict[str, Callable[..., Any]] = {
    "gru": xplstm.GRU,
    "reset": lambda *sizes, **options: xplstm.GRU(*sizes, reset_after=False, **options),
    "rnn": xplstm.RNN,
    "jordan": lambda I, H, L, **options: xplstm.JordanRNN(I, H, 5, L, **options),
}


@pytest.mark.parametrize("cell", OTHERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_cells_without_c_go_the_short_way(cell: str, dtype: Any) -> None:
    network = OTHERS[cell](I, 7, 2, dtype=dtype, rng=3)
    frozen, O = network.freeze(), 5 if cell == "jordan" else 7
    x = np.random.default_rng(0).normal(size=(4, 3, I)).astype(dtype)
    h = np.random.default_rng(1).normal(size=(2, 3, O)).astype(dtype)
    frozen(x), frozen.step(x[0])
    taken = frozen._callers[None](x, h), frozen._steppers[None](x[0], h)
    for (y, state), short in zip((network(x, h), network.step(x[0], h)), taken, strict=True):
        np.testing.assert_array_equal(short[0], y)
        np.testing.assert_array_equal(short[1].h, state)
    for got, want in ((frozen(x, h), network(x, h)), (frozen(x[:, 0]), network(x[:, 0]))):
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    for wrong in ((h, h), h[:1], h[..., :2], h.astype("int64"), h[0, 0, 0]):
        with pytest.raises(xplstm.XplstmError, match="h_0"):
            frozen(x, wrong)
        with pytest.raises(xplstm.XplstmError):
            frozen.step(x[0], wrong)
