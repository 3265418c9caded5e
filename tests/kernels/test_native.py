"""Check the compiled kernel against the reference, bit by bit against itself, and its errors."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import Case, run
from tests.support.interpreter import started
from xplstm._problem import Problem
from xplstm.cells.lstm import STANDARD
from xplstm.kernels import _recycled, native

if native.WHY_NOT and "native" not in os.environ.get("XPLSTM_REQUIRE", ""):
    pytest.skip(native.WHY_NOT, allow_module_level=True)

FUSED = [isa for isa, fused in native.ISAS.items() if fused]
EXHAUSTIVE = os.environ.get("XPLSTM_EXHAUSTIVE") == "1"


@pytest.fixture(autouse=True)
def pinned() -> Iterator[None]:
    with xplstm.use_kernel("native"):
        yield


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native, "ISA", request.param)
    return str(request.param)


def drawn(seed: int) -> tuple[Case, str]:
    """Draw an unusual configuration, and a dtype."""
    rng = np.random.default_rng(seed)
    wide = seed % 4 == 0
    T, B = int(rng.integers(0, 8)), int(rng.choice([1, 2, 7, 30] if wide else [0, 1, 2, 3, 5, 13, 40]))
    I = int(rng.choice([129, 257] if wide else [1, 2, 7, 16, 33, 130]))
    H = int(rng.choice([129, 140, 256] if wide else [1, 2, 5, 8, 17, 31, 64]))
    options = {"bidirectional": bool(rng.random() < 0.4), "bias": bool(rng.random() < 0.8)}
    options["proj_size"] = int(rng.integers(1, H)) if H > 1 and rng.random() < 0.3 else 0
    ragged = rng.random()
    lengths = rng.integers(0, T + 1, B).tolist() if ragged < 0.3 else None
    return Case(T, B, I, H, options, lengths, 0.3 <= ragged < 0.5, seed), str(
        rng.choice(["float32", "float64"])
    )


@pytest.mark.parametrize("seed", range(24))
def test_any_problem_agrees_with_the_reference(isa: str, seed: int) -> None:
    case, dtype = drawn(seed)
    poisoned = {k: a.astype(dtype) for k, a in case.poisoned().items()}
    lstm = case.lstm(dtype=dtype)
    with xplstm.use_kernel("reference"):
        want = run(
            case.lstm(dtype=dtype).to(dtype="float64"),
            {k: a.astype("float64") for k, a in poisoned.items()},
            **case.valid(),
        )
    got = run(lstm, poisoned, **case.valid())
    unit = np.finfo(dtype).eps / 2
    for key, value in want.flat().items():
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(got.flat()[key], value, rtol=0, atol=32 * unit * scale, err_msg=key)
    y, (h_n, c_n) = lstm(poisoned["x"], (poisoned["h_0"], poisoned["c_0"]), **case.valid())
    for key, value in (("y", y), ("h_n", h_n), ("c_n", c_n)):
        np.testing.assert_array_equal(value, got.flat()[key], err_msg=f"{key} with and without residuals")


LARGE = {
    "one row": Case(6, 1, 40, 150),
    "few rows": Case(6, 5, 40, 150),
    "many rows": Case(5, 61, 40, 70),
    "many weights": Case(3, 16, 30, 256, {}, [3, 0, 2, 3, 1, 3, 3, 2, 3, 3, 0, 1, 2, 3, 3, 3]),
    "projection": Case(6, 5, 40, 150, {"proj_size": 130}),
    "two directions": Case(6, 9, 140, 60, {"bidirectional": True}, [6, 0, 3, 5, 1, 6, 6, 2, 4]),
    "holes": Case(9, 40, 30, 80, holes=True),
}


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("name", LARGE)
def test_bits_do_not_depend_on_threads(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = LARGE[name]
    monkeypatch.setattr(native, "THREADS", 1)
    want = run(case.lstm(dtype="float32"), as_float32(case), **case.valid()).flat()
    monkeypatch.setattr(native, "THREADS", threads)
    got = run(case.lstm(dtype="float32"), as_float32(case), **case.valid()).flat()
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def as_float32(case: Case) -> dict[str, np.ndarray]:
    return {k: a.astype("float32") for k, a in case.arrays().items()}


@pytest.mark.parametrize(("I", "H"), [(3, 17), (9, 40), (64, 64), (65, 60), (5, 80), (7, 65), (20, 130)])
def test_a_single_step_has_the_bits_of_a_sequence(isa: str, I: int, H: int) -> None:
    """A step prefetches its weights differently, and a sequence multiplies the input in advance."""
    lstm = Case(2, 1, I, H).lstm(dtype="float32")
    x, h, c = (as_float32(Case(2, 1, I, H))[name] for name in ("x", "h_0", "c_0"))
    y, _ = lstm(x, (h, c))
    one, _ = lstm(x[:1], (h, c))
    np.testing.assert_array_equal(one[0], y[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LARGE)
def test_bits_do_not_depend_on_instructions(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, results = LARGE[name], []
    for isa in FUSED:
        monkeypatch.setattr(native, "ISA", isa)
        arrays = {key: a.astype(dtype) for key, a in case.arrays().items()}
        results.append(run(case.lstm(dtype=dtype), arrays, **case.valid()).flat())
    for found in results[1:]:
        for key, value in results[0].items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("network", [xplstm.GRU, xplstm.RNN])
def test_bits_of_other_cells_do_not_depend_on_instructions(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((6, 37, 20)).astype("float32")
    results = []
    for isa in FUSED:
        monkeypatch.setattr(native, "ISA", isa)
        y, _, pullback = network(20, 72, 2, bidirectional=True, rng=1).vjp(x, lengths=np.arange(37) % 7)
        dx, _, dparams = pullback(y)
        results.append({"y": y, "dx": dx, **dparams})
    for found in results[1:]:
        for key, value in results[0].items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.skipif(not native.ISAS.get(native.ISA), reason="there are no fused multiply-adds here")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden_size", [50, 260])
def test_a_row_has_the_same_bits_alone(dtype: str, hidden_size: int) -> None:
    """The larger layer exceeds the L2 cache, so several steps of a batch share the product with W_ih."""
    case = Case(4, 37, 140, hidden_size)
    lstm, a = case.lstm(dtype=dtype), {k: v.astype(dtype) for k, v in case.arrays().items()}
    y, (h_n, c_n) = lstm(a["x"], (a["h_0"], a["c_0"]))
    for rows in (slice(0, 1), slice(7, 12), slice(36, 37)):
        part, state = lstm(a["x"][:, rows], (a["h_0"][:, rows], a["c_0"][:, rows]))
        np.testing.assert_array_equal(part, y[:, rows])
        np.testing.assert_array_equal(state.h, h_n[:, rows])
        np.testing.assert_array_equal(state.c, c_n[:, rows])
    assert lstm.explain(a["x"]).canonical_sums


def unaligned(a: np.ndarray) -> np.ndarray:
    """Return the same numbers at an odd offset in a buffer."""
    room = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    room[...] = a
    return room


def test_arrays_at_odd_addresses() -> None:
    """UndefinedBehaviorSanitizer detects reads of unaligned numbers."""
    case = Case(4, 5, 3, 7, {"proj_size": 2})
    arrays = as_float32(case)
    want = run(case.lstm(dtype="float32"), arrays).flat()
    lstm = case.lstm(dtype="float32")
    lstm.params = {k: unaligned(a) for k, a in lstm.params.items()}
    got = run(lstm, {k: unaligned(a) for k, a in arrays.items()}).flat()
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)
    lengths = np.asarray([4, 0, 2, 3, 4], np.int32)
    y, _ = lstm(arrays["x"], lengths=unaligned(lengths))
    np.testing.assert_array_equal(y, lstm(arrays["x"], lengths=lengths)[0])


UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine(), 0)  # FE_UPWARD of fenv.h


ROUNDS = pytest.mark.skipif(
    sys.platform != "linux" or not UPWARD, reason="how to round upward is not known here"
)


@contextmanager
def rounding_upward() -> Iterator[None]:
    environment = ctypes.CDLL(None)
    assert environment.fesetround(UPWARD) == 0
    try:
        yield
        above = np.float32(1) + np.float32(2**-40)
    finally:
        environment.fesetround(0)
    assert above > 1, "the caller's rounding is as it was"


@ROUNDS
@pytest.mark.parametrize("threads", [1, 3])
def test_the_callers_rounding_changes_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """XPL-EXACT-001: some libraries change the rounding mode or flush subnormal numbers."""
    monkeypatch.setattr(native, "THREADS", threads)
    case = LARGE["few rows"]
    lstm, arrays = case.lstm(dtype="float32"), as_float32(case)
    want = run(lstm, arrays, **case.valid()).flat()
    with rounding_upward():
        got = run(lstm, arrays, **case.valid()).flat()
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


ROUNDED: dict[str, Callable[..., Any]] = {
    "lstm": partial(xplstm.LSTM, num_layers=2),
    "gru": partial(xplstm.GRU, num_layers=2),
    "reset": partial(xplstm.GRU, reset_after=False),
    "dropped": partial(xplstm.LSTM, variant=xplstm.Variant(recurrent_dropout=0.3)),
}


@ROUNDS
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ROUNDED)
def test_the_callers_rounding_changes_no_bit_that_numpy_computes(kind: str, dtype: str) -> None:
    """XPL-EXACT-010 and XPL-EXACT-011: on Arm, NumPy rounds float16 as the caller does."""
    rng, network = np.random.default_rng(0), ROUNDED[kind](7, 9, dtype=dtype, rng=1)
    x, dy = (rng.uniform(-1, 1, (6, 5, size)).astype(dtype) for size in (7, 9))
    rows = network.num_layers, 5, 9
    h, c = (rng.uniform(-1, 1, rows).astype(dtype) for _ in range(2))
    state = (h, c) if isinstance(network, xplstm.LSTM) else h
    frozen = network.freeze()

    def answers() -> list[np.ndarray]:
        y, end, pullback = network.vjp(x, state, rng=3)
        dx, dstate, dparams = pullback(dy)
        return [y, *end, dx, *dstate, *dparams.values(), frozen(x, state)[0], frozen.step(x[0], state)[0]]

    want = answers()
    with rounding_upward():
        got = answers()
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def test_calls_of_many_threads_do_not_meet() -> None:
    case = LARGE["few rows"]
    lstm, a = case.lstm(dtype="float32"), as_float32(case)
    want = lstm(a["x"])[0]
    wrong: list[int] = []

    def call(k: int) -> None:
        with xplstm.use_kernel("native"):
            for _ in range(20):
                if not np.array_equal(lstm(a["x"])[0], want):
                    wrong.append(k)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, numpy as np, xplstm
from xplstm.kernels import native
native.THREADS = 3
lstm, x = xplstm.LSTM(40, 150, rng=0), np.ones((20, 5, 40), "float32")
want = lstm(x)[0]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(lstm(x)[0], want) else 3)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(lstm(x)[0], want)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_fork_with_threads_alive_is_safe() -> None:
    started(FORK)


def test_the_environment_pins_instructions_and_threads() -> None:
    code = "from xplstm.kernels import native as n; print(n.ISA, n.THREADS, n.ISAS[n.ISA])"
    slowest, fused = list(native.ISAS.items())[-1]
    told = started(code, XPLSTM_NATIVE_ISA=slowest, XPLSTM_NUM_THREADS="3").stdout.split()
    assert told == [slowest, "3", str(fused)]
    assert started(code, XPLSTM_NUM_THREADS="", OMP_NUM_THREADS="5").stdout.split()[1] == "5"


def test_unknown_instructions_are_a_reason() -> None:
    code = "from xplstm.kernels import native; print(native.WHY_NOT)"
    text = started(code, XPLSTM_NATIVE_ISA="abacus").stdout
    assert "XPLSTM_NATIVE_ISA='abacus'" in text
    assert next(iter(native.ISAS)) in text


WITHOUT = """
import sys
sys.modules["xplstm.kernels._engine"] = None
import numpy as np, xplstm
lstm, x = xplstm.LSTM(3, 2, rng=0), np.ones((5, 4, 3), "float32")
lstm(x)
print(lstm.explain(x))
xplstm.show_config()
"""


@pytest.mark.slow
def test_without_the_compiled_part_the_rest_works_and_says_so() -> None:
    text = started(WITHOUT).stdout
    assert "layer 0: numpy_inplace" in text
    assert text.count("not compiled here") == 2
    assert text.count("install a C compiler, then repeat pip install with --force-reinstall") == 2


def bits(dtype: str) -> Iterator[np.ndarray]:
    """Return all float32 numbers except NaN, or a sample over all exponents of a dtype."""
    if EXHAUSTIVE and dtype == "float32":
        for first in range(0, 2**32, 2**24):
            x = np.arange(first, first + 2**24, dtype=np.uint32).view(np.float32)
            yield x[~np.isnan(x)]
        return
    rng = np.random.default_rng(0)
    near = [rng.uniform(-s, s, 40000) for s in (0.3, 1, 4, 20)]
    far = np.exp2(rng.uniform(-140, 11, 40000)) * rng.choice([-1, 1], 40000)
    yield np.concatenate([*near, far, [0.0, 5e-324, 1e-45, 1e30, np.inf, -np.inf]]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
def test_functions_are_within_two_units(isa: str, function: str, dtype: str) -> None:
    """The largest error over all numbers of float32 is measured under XPLSTM_EXHAUSTIVE=1."""
    precision, least = (24, -149) if dtype == "float32" else (53, -1074)
    worst = 0.0
    for x in bits(dtype):
        got = np.empty_like(x)
        native._engine.apply(isa, dtype, function, x, got)
        wide = x.astype(np.float64 if dtype == "float32" else np.longdouble)
        e = np.exp(-abs(wide))
        true = np.tanh(wide) if function == "tanh" else np.where(wide < 0, e, 1) / (1 + e)
        assert abs(got).max() <= 1
        unit = np.ldexp(np.ones_like(wide), np.maximum(np.frexp(true)[1] - precision, least))
        worst = max(worst, float((abs(got - true) / unit).max()))
    assert 1 < worst < 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_keep_nan_and_sign(isa: str, dtype: str) -> None:
    x = np.array([np.nan, -0.0, np.inf, -np.inf], dtype)
    y = np.empty_like(x)
    native._engine.apply(isa, dtype, "tanh", x, y)
    assert np.isnan(y[0])
    assert np.signbit(y).tolist()[1:] == [True, False, True]
    native._engine.apply(isa, dtype, "sigmoid", x, y)
    np.testing.assert_array_equal(y[1:], [0.5, 1, 0])
    assert np.isnan(y[0])


def forward_arguments() -> list[Any]:
    """Return valid arguments of the extension module, which tests make invalid."""
    p = Case(3, 2, 4, 5).lstm(dtype="float32").params
    handle = native._engine.pack(
        native.ISA, "float32", 0, 4, 5, 0, native._allocate, 1, *p.values(), *[None] * 8
    )
    zeros = [np.zeros(shape, "float32") for shape in ((3, 2, 4), (1, 2, 5), (1, 2, 5))]
    outs = [np.zeros(shape, "float32") for shape in ((3, 2, 5), (1, 2, 5), (1, 2, 5))]
    return [(handle,), (False,), *zeros, None, None, None, None, *outs, None, 1]


@pytest.mark.parametrize("place", [2, 3, 4, 9, 10, 11])
def test_a_buffer_of_the_wrong_size_is_refused(place: int) -> None:
    arguments = forward_arguments()
    native._engine.forward(*arguments)
    arguments[place] = arguments[place][..., :-1].copy()
    with pytest.raises(ValueError, match=r"bytes were expected|is not \(T, B, I\)"):
        native._engine.forward(*arguments)


def test_results_go_to_arrays_that_can_be_written_to() -> None:
    arguments = forward_arguments()
    arguments[9].flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        native._engine.forward(*arguments)


def test_sizes_beyond_memory_are_refused() -> None:
    with pytest.raises(OverflowError, match="exceeds any memory"):
        native._engine.pack(native.ISA, "float32", 0, 2**40, 2**40, 0, native._allocate, 1, *[None] * 12)


def test_the_backward_pass_takes_as_many_batch_entries_as_its_counters() -> None:
    """The sizes are checked before the buffers, of which only x is as large, without memory."""
    (handle,), _, _, h_0, *_ = forward_arguments()
    most, small = (2**31 - 1) // 8, np.zeros(1, "float32")
    for T, B, error in (
        (1, most, ValueError),
        (1, most + 1, OverflowError),
        (most, 1, ValueError),
        (most + 1, 1, OverflowError),
    ):
        x = np.broadcast_to(np.zeros(4, "float32"), (T, B, 4))
        given = ((handle,), (False,), ((None,) * 8,), x, h_0, None, None, None, None)
        with pytest.raises(error, match=r"exceeds any memory|bytes were expected"):
            native._engine.backward(*given, small, ((),), small, small, small, ((),), 1)


def test_weights_need_a_storage_that_is_there() -> None:
    rest = (2, 3, 0, native._allocate, 1, *[None] * 12)
    for dtype, storage in (("float32", len(native.PRODUCTS)), ("float32", -1), ("float64", 1)):
        with pytest.raises(ValueError, match=f"no storage {storage} of weights for {dtype}"):
            native._engine.pack(native.ISA, dtype, storage, *rest)
    w = np.zeros((12, 3), np.int8)
    with pytest.raises(ValueError, match="a matrix is missing"):
        native._engine.pack(native.ISA, "float32", 0, *rest)
    with pytest.raises(ValueError, match="or its scales"):
        native._engine.pack(
            native.ISA, "float32", 3, 3, 3, 0, native._allocate, 1, (w, None), (w, None), *[None] * 10
        )


@pytest.mark.parametrize("place", [0, 2, 3, 4])
@pytest.mark.parametrize("kind", [-1, 99])
def test_an_unknown_step_or_function_is_refused(place: int, kind: int) -> None:
    p, sigmoid, tanh = Case(3, 2, 4, 5).lstm(dtype="float32").params, (0, 0.0, 0.0), (1, 0.0, 0.0)
    options: list[Any] = [0, False, sigmoid, tanh, tanh, np.inf, np.inf, 0.0, 0.0, 5]
    given = (native.ISA, "float32", 0, 4, 5, 0, native._allocate, 1, *p.values(), *[None] * 7)
    native._engine.pack(*given, tuple(options))
    options[place] = (kind, 0.0, 0.0) if place else kind
    with pytest.raises(ValueError, match="an unknown activation or step"):
        native._engine.pack(*given, tuple(options))


def test_weights_need_the_room_that_was_asked_for() -> None:
    p = Case(3, 2, 4, 5).lstm(dtype="float32").params
    rest = (1, *p.values(), *[None] * 8)
    with pytest.raises(ValueError, match="less memory than requested"):
        native._engine.pack(
            native.ISA, "float32", 0, 4, 5, 0, lambda size: np.empty(size - 1, np.uint8), *rest
        )
    with pytest.raises(TypeError):
        native._engine.pack(native.ISA, "float32", 0, 4, 5, 0, lambda _: None, *rest)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_pack_the_same(dtype: str) -> None:
    """The weights are large enough for two threads."""
    p = xplstm.LSTM(70, 301, proj_size=77, dtype=dtype, rng=0).params
    rooms = [np.zeros(2**23, np.uint8) for _ in range(2)]
    for threads, room in enumerate(rooms, 1):
        native._engine.pack(
            native.ISA,
            dtype,
            0,
            70,
            301,
            77,
            lambda _, room=room: room,
            threads,
            *p.values(),
            *[None] * 7,
        )
    first = [-room.ctypes.data % 64 for room in rooms]
    one, two = (room[start : start + 2**23 - 64] for room, start in zip(rooms, first, strict=True))
    assert one.any()
    np.testing.assert_array_equal(one, two)


def test_reasons_against() -> None:
    x = np.zeros((2, 4, 3), "float32")
    with xplstm.use_kernel(None):
        for variant in (xplstm.Variant(zoneout_h=0.1), xplstm.Variant(layer_norm=True)):
            assert xplstm.LSTM(3, 5, variant=variant).explain(x).kernels == ("native",)
        normal = xplstm.LSTM(3, 5, variant=xplstm.Variant(layer_norm=True), reproducible=True)
        with pytest.raises(xplstm.KernelError, match=r"not native: .*reproducible summation order"):
            normal(x)


def test_released_memory_is_taken_again(monkeypatch) -> None:
    lstm, x = xplstm.LSTM(64, 64, rng=0), np.ones((100, 64, 64), "float32")
    y, _, pullback = lstm.vjp(x)
    want = pullback(y)[0].copy()
    del pullback
    assert _recycled.pieces.waiting
    xplstm.release_memory()
    assert not _recycled.pieces.waiting
    y, _, pullback = lstm.vjp(x)
    np.testing.assert_array_equal(pullback(y)[0], want)


SLOW_FREE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <unistd.h>
void free(void *p)
{
    static void (*real)(void *);
    if (!real)
        real = dlsym(RTLD_NEXT, "free");
    int large = p && malloc_usable_size(p) > 100000 && getenv("SLOW");
    real(p);
    if (large)
        usleep(300000);
}
"""

FORK_IN_FREE = """
import os, threading, time, numpy as np, xplstm
from xplstm.kernels import native
lstm = xplstm.LSTM(40, 150, rng=0)
small, large = np.ones((4, 200, 40), "float32"), np.ones((4, 2000, 40), "float32")
native.THREADS = 2
want = lstm(small)[0]
os.environ["SLOW"] = "1"
os.putenv("SLOW", "1")
other = threading.Thread(target=lstm, args=(large,))
other.start()
children = []
for _ in range(12):
    child = os.fork()
    if child == 0:
        os.unsetenv("SLOW")
        os._exit(0 if np.array_equal(lstm(small)[0], want) else 3)
    children.append(child)
    time.sleep(0.03)
print(*(os.waitpid(child, 0)[1] for child in children))
other.join()
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and cc"
)
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer must be preloaded alone")
@pytest.mark.slow
def test_a_fork_while_memory_is_freed_is_safe(tmp_path) -> None:
    (tmp_path / "free.c").write_text(SLOW_FREE)
    library = tmp_path / "free.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "free.c", "-ldl"], check=True)
    assert set(started(FORK_IN_FREE, LD_PRELOAD=str(library)).stdout.split()) == {"0"}


@pytest.mark.parametrize(
    ("H", "B", "expected"),
    [
        *((1, 600, "numpy_inplace"), (1, 150, "native"), (4, 1200, "numpy_inplace"), (4, 300, "native")),
        *((8, 1200, "native"), (12, 10000, "native")),
    ],
)
def test_few_units_of_a_large_batch_are_left_to_numpy(
    H: int, B: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "THREADS", 1)
    x = np.zeros((2, B, 3), "float32")
    with xplstm.use_kernel(None):
        assert xplstm.LSTM(3, H).explain(x).kernels == (expected,)
        assert xplstm.LSTM(3, H, reproducible=True).explain(x).kernels == ("native",)
    assert xplstm.LSTM(3, H).explain(x).kernels == ("native",)


@pytest.mark.parametrize(
    ("H", "B", "left"),
    [(1, 300, True), (1, 150, False), (12, 1200, True), (12, 150, False), (16, 10000, False)],
)
def test_training_of_few_units_is_left_to_numpy_sooner(
    H: int, B: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads help only the compiled kernel."""
    monkeypatch.setattr(native, "THREADS", 1)
    problem = Problem(np, "numpy", "cpu", "float32", 500, B, H, H, 0, True, (False,), "all", True, STANDARD)
    assert (native.slower(problem) is not None) == left
    monkeypatch.setattr(native, "THREADS", 64)
    assert native.slower(problem) is None


# More batch entries than one pass of the products takes, and units beyond whole vectors.
CROWDED: dict[str, Callable[[], Any]] = {
    "standard": lambda: xplstm.LSTM(5, 9, dtype="float64", rng=0),
    "projection": lambda: xplstm.LSTM(5, 9, proj_size=4, dtype="float64", rng=0),
    "layer normalisation": lambda: xplstm.LSTM(
        5, 33, variant=xplstm.Variant(layer_norm=True), dtype="float64", rng=0
    ),
    "zoneout": lambda: xplstm.LSTM(5, 9, variant=xplstm.Variant(zoneout_h=0.5), dtype="float64", rng=0),
    "dropout": lambda: xplstm.LSTM(
        5, 9, variant=xplstm.Variant(recurrent_dropout=0.5), dtype="float64", rng=0
    ),
    "GRU": lambda: xplstm.GRU(5, 9, dtype="float64", rng=0),
    "GRU, reset before": lambda: xplstm.GRU(5, 9, reset_after=False, dtype="float64", rng=0),
}


@pytest.mark.parametrize("name", CROWDED)
def test_large_batches_agree_with_the_reference(isa: str, name: str) -> None:
    network = CROWDED[name]()
    x = np.random.default_rng(0).standard_normal((3, 201, 5))

    def results() -> list[np.ndarray]:
        y, state, pullback = network.vjp(x, rng=1)
        dx, dstate, gradients = pullback(y, state)
        states = [s if isinstance(s, tuple) else (s,) for s in (state, dstate)]
        return [y, dx, *states[0], *states[1], *gradients.values()]

    with xplstm.use_kernel("reference"):
        want = results()
    for value, expected in zip(results(), want, strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("how", native.SHARES)
def test_every_way_of_sharing_work_gives_the_same_bits(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "THREADS", 3)
    lstm = xplstm.LSTM(5, 70, bidirectional=True, rng=0)
    x = np.random.default_rng(0).standard_normal((6, 4, 5), dtype=np.float32)

    def results() -> list[bytes]:
        y, state, pullback = lstm.vjp(x)
        dx, dstate, gradients = pullback(y, state)
        return [a.tobytes() for a in (y, *state, dx, *dstate, *gradients.values())]

    want = results()
    native.pin_shares(how)
    try:
        assert results() == want
    finally:
        native.pin_shares("automatic")
