"""Check CuPy's kernels in the emulation on the CPU: logic, buffers, launches and arguments, not on a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import xplstm
from spec import exact_cases
from spec.ieee import FORMATS
from tests.cuda_emulation import FIRST, compiled, kinds, standin, thorough
from tests.cuda_emulation.carried import DEVICE, ROOMS, emulated
from tests.support.cases import CASES, Case, run
from xplstm import _array, _dispatch
from xplstm._problem import Problem
from xplstm.cells.gru import GRUCell
from xplstm.cells.lstm import STANDARD
from xplstm.kernels import _compiled, cupy_persistent
from xplstm.kernels._cuda import launch, layer, partitions, walks

VECTORS = Path(__file__).parents[2] / "spec" / "vectors-exact"
BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8, "tf32": 11}
"""Of what a product's factors are rounded to, by the kind of numbers."""
ULPS = 8

pytestmark = [
    pytest.mark.skipif(
        compiled.compiler() is None,
        reason="no C++20 compiler is here, so that the CUDA sources are not emulated",
    ),
    # CuPy 14 has the array API's own functions, and so has NumPy 2, which replaces it here.
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
]


def only(name: str) -> Callable[[Problem], _dispatch.Kernel]:
    """Return a selector of the emulated kernel, which skips a test if the kernel cannot run the problem."""
    kernel = emulated(name)

    def select(problem: Problem) -> _dispatch.Kernel:
        reason = kernel.supports(problem)
        if reason is not None:
            pytest.skip(f"{name}: {reason}")
        return kernel

    return select


@pytest.fixture(params=ROOMS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of the emulated kernel, which replaces all other kernels."""
    monkeypatch.setattr(partitions, "THREADS", 64)
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only(request.param))
        yield request.param


def made(case: Case, kind: str) -> tuple[xplstm.LSTM, str]:
    """Return a layer whose kernels use this kind of numbers, and its dtype."""
    if kind == "tf32":
        return case.lstm(dtype="float32", precision="tf32"), "float32"
    return case.lstm(dtype=kind), kind


def compared(name: str, kind: str) -> Any:
    """A case and a kind of numbers; each case by one kind for each way of products, else when asked."""
    late = name != "plain" and kind not in FIRST
    return pytest.param(name, kind, marks=[thorough] if late else [])


def close(got: np.ndarray, want: np.ndarray, kind: str, what: str, ulps: int = ULPS) -> None:
    u = 2.0 ** -BITS[kind]
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got.astype("float64"), want, rtol=0, atol=ulps * u * scale, err_msg=what)


@pytest.mark.parametrize(("name", "kind"), [compared(*pair) for pair in product(CASES, BITS)])
def test_agrees_with_the_reference(
    kernel: Any, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    lstm, dtype = made(case, kind)
    arrays = {k: _array.asarray(a, np, dtype=dtype) for k, a in case.poisoned().items()}
    got = run(lstm, arrays, **case.valid())
    y, (h_n, c_n) = lstm(arrays["x"], (arrays["h_0"], arrays["c_0"]), **case.valid())
    monkeypatch.undo()
    with xplstm.use_kernel("reference"):
        exact = {k: a.astype("float64") for k, a in arrays.items()}
        want = run(lstm.to(dtype="float64"), exact, **case.valid())
    for key, value in want.flat().items():
        assert _array.dtype_name(got.flat()[key].dtype) == dtype
        close(got.flat()[key], value, kind, key)
    for key, value in (("y", y), ("h_n", h_n), ("c_n", c_n)):
        np.testing.assert_array_equal(value, got.flat()[key], err_msg=f"{key} with and without residuals")


def test_tf32_is_used_where_it_is_asked_for(kernel: Any) -> None:
    """Factors with an 11-bit significand change every output, forward and backward."""
    case = Case(H=9, options={"bidirectional": True})
    a = {k: _array.asarray(a, np, dtype="float32") for k, a in case.arrays().items()}
    rounded, plain = (run(made(case, kind)[0], a).flat() for kind in ("tf32", "float32"))
    for key, value in plain.items():
        assert np.abs(rounded[key] - value).max() > 2.0**-18 * np.abs(value).max(), key
    again = run(case.lstm(dtype="float32"), a).flat()
    assert all(np.array_equal(again[key], value) for key, value in plain.items())


@pytest.mark.parametrize(("name", "proj_size"), [("cupy_fused", 2), ("cupy_persistent", 0)])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(T: int, B: int, name: str, proj_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(T=T, B=B, options={"bidirectional": True, "proj_size": proj_size})
    with standin.installed(), monkeypatch.context() as patch:
        patch.setattr(_dispatch, "select", only(name))
        got = run(case.lstm(), case.arrays())
    with xplstm.use_kernel("reference"):
        want = run(case.lstm(), case.arrays())
    for key, value in want.flat().items():
        np.testing.assert_array_equal(got.flat()[key], value, err_msg=key)


def test_a_pullback_can_be_called_again(kernel: Any) -> None:
    case = CASES["bidirectional_ragged"]
    a = case.arrays()
    _, _, pullback = case.lstm().vjp(a["x"], (a["h_0"], a["c_0"]), **case.valid())
    first, again = (pullback(a["dy"], (a["dh_n"], a["dc_n"])) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    for key, value in first[2].items():
        np.testing.assert_array_equal(value, again[2][key])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_blocks_of_steps_join_seamlessly(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits do not depend on the number of steps of an input projection."""
    case = Case(T=5, B=3, lengths=[5, 2, 4], options={"bidirectional": True, "proj_size": 2})
    a = case.arrays()
    answers = []
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only("cupy_fused"))
        share = steps * 2 * case.B * 4 * case.H * 8 / standin.TOTAL_MEMORY
        for bound in (layer.PROJECTION_SHARE, share):
            monkeypatch.setattr(layer, "PROJECTION_SHARE", bound)
            answers.append(case.lstm()(a["x"], (a["h_0"], a["c_0"]), **case.valid()))
    (y, state), (y_2, state_2) = answers
    for one, other in ((y, y_2), *zip(state, state_2, strict=True)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


def test_a_step_is_one_product_and_one_kernel_for_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(T=3, options={"bidirectional": True})
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only("cupy_fused"))
        case.lstm()(case.arrays()["x"])
        assert standin.launched == ["gemm", *["gemm", "forward_gates"] * 3]


def test_a_layer_is_one_product_and_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(T=3, lengths=[3, 0, 2, 1], options={"bidirectional": True})
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only("cupy_persistent"))
        case.lstm()(case.arrays()["x"], **case.valid())
        assert standin.launched[0] == "gemm"
        assert [name[:5] for name in standin.launched[1:]] == ["walk_"]


@pytest.mark.parametrize("kind", kinds(BITS))
@pytest.mark.parametrize("engine", [False, True])
def test_a_captured_stream_has_no_product_of_cupy(
    kind: str, engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording gets its products from the compiled engine, or without it from a kernel."""
    if engine and _compiled.WHY_NOT:
        pytest.skip("the compiled engine is missing")
    monkeypatch.setattr(_compiled, "WHY_NOT", "" if engine else "missing")
    case = Case(T=3, I=19)
    lstm, dtype = made(case, kind)
    a = {k: _array.asarray(v, np, dtype=dtype) for k, v in case.arrays().items()}
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only("cupy_persistent"))
        monkeypatch.setattr(standin.Stream.current[DEVICE.id], "captured", True)
        y, _ = lstm(a["x"], (a["h_0"], a["c_0"]))
        assert standin.launched[0] == ("gemm" if engine else "project_input")
        assert [name[:5] for name in standin.launched[1:]] == ["walk_"]
        problem = Problem(np, "cupy", DEVICE, dtype, 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
        assert engine or cupy_persistent.slower(problem) is None
        assert ("being captured" in str(ROOMS["cupy_fused"].supports(problem))) is not engine
    monkeypatch.undo()
    with xplstm.use_kernel("reference"):
        want, _ = lstm.to(dtype="float64")(
            *(a["x"].astype("f8"), tuple(a[k].astype("f8") for k in ("h_0", "c_0")))
        )
    close(y, want, kind, "y")


def test_sums_of_columns_over_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bias gradients have rows for several blocks, and the last block is incomplete."""
    monkeypatch.setattr(layer, "RUN_ROWS", 9)
    case = Case(T=7, B=4, H=9)
    with standin.installed(), monkeypatch.context() as patch:
        patch.setattr(_dispatch, "select", only("cupy_fused"))
        got = run(case.lstm(), case.arrays())
    want = run(case.lstm(), case.arrays())
    for key in ("bias_ih_l0", "bias_hh_l0"):
        close(got.dparams[key], want.dparams[key], "float64", key)


def test_checkpoints(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["projection_ragged"]
    got = run(case.lstm(), case.arrays(), **case.valid(), checkpoint=2)
    monkeypatch.undo()
    want = run(case.lstm(), case.arrays(), **case.valid())
    for key, value in want.flat().items():
        close(got.flat()[key], value, "float64", key)


@pytest.mark.parametrize(
    "name", [n for n, r in exact_cases.records().items() if r["dtype"] in FORMATS and r["op"] == "layer"]
)
def test_published_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are those of the profile `exact`, with subnormal numbers and NaN."""
    record = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    config, dtype = record["config"], record["dtype"]
    a = {name: np.asarray(value, dtype) for name, value in exact_cases.inputs(record).items()}
    params = xplstm.LSTMParams(**{n: v for n, v in a.items() if n.startswith(("weight", "bias"))})
    valid = {"lengths": config["lengths"], "mask": config.get("mask")}
    valid = {key: np.asarray(value) for key, value in valid.items() if value is not None}
    options = {"reverse": config["reverse"], "reproducible": True, **valid}
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only("cupy_persistent"))
        y, (h_n, c_n) = xplstm.lstm(a["x"], params, (a["h_0"], a["c_0"]), **options)
    for key, got in (("y", y), ("h_n", h_n), ("c_n", c_n)):
        want = np.asarray(exact_cases.decoded(record["outputs"][key], FORMATS[dtype]), dtype)
        np.testing.assert_array_equal(got, want, err_msg=key)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="it sets a register of x86")
@pytest.mark.parametrize("fault", [False, True])
def test_published_bits_where_the_compiler_flushes_subnormals(
    fault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy compiles with -ftz=true, which flushes what the sources leave to C++; and NVRTC contracts.

    A minus alone is no arithmetic here, as it is on a GPU: nox -s cuda_sources looks for it in the PTX.
    """
    faults = (("sum(b, negated(first))", "(b - first)"),) if fault else ()
    expected = pytest.raises(AssertionError) if fault else contextlib.nullcontext()
    with compiled.with_options(*compiled.AS_NVRTC), compiled.faulty(*faults), expected:
        test_published_bits("functions-float32", monkeypatch)


def test_copies_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk in one launch copies nothing; the loop copies both states at its start and its end."""
    case, found = Case(T=3), {}
    for name in ROOMS:
        with standin.installed(), monkeypatch.context() as patch:
            patch.setattr(_dispatch, "select", only(name))
            layer_of = case.lstm()
            layer_of(case.arrays()["x"])
            standin.copied.clear()
            layer_of(case.arrays()["x"])
            found[name] = [shape for shape in standin.copied if len(shape) == 2 and shape[0] == case.B]
    counts = {name: len(shapes) for name, shapes in found.items()}
    assert counts == {"cupy_fused": 4, "cupy_persistent": 0, "cupy_block": 0}


def test_a_recording_that_failed_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(np, "cupy", DEVICE, "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
    with standin.installed():
        monkeypatch.setattr(standin.Stream.current[DEVICE.id], "invalid", True)
        with pytest.raises(RuntimeError, match="CaptureInvalidated"):
            ROOMS["cupy_fused"].supports(problem)


# Several blocks of k, of units and of rows; mma in scalar loops takes its time, and has a smaller one.
MMA_CUT = Case(T=3, B=35, I=5, H=23, lengths=[3, 0, 2, 3, 1] * 7)
CUT = {
    "float64": Case(
        T=3, B=11, I=5, H=29, options={"bidirectional": True}, lengths=[3, 0, 2, 3, 1, 3, 2, 3, 1, 1, 2]
    ),
    "float32": Case(T=2, B=11, I=5, H=133, lengths=[2, 0, 1, 2, 2, 1, 2, 0, 1, 1, 2]),
    **dict.fromkeys(partitions.STEP_OF_K, MMA_CUT),
}
CUT_THREADS = 160
"""No pass has cells for five warps alike: where it has, it hides which thread touches whose."""


class Property(NamedTuple):
    """Properties that distinguish partitions in a test."""

    uneven_passes: bool
    passes_of_tiles: bool
    short_group: bool
    short_block: bool
    chunks: bool


def properties(p: partitions.Plan, case: Case) -> Property:
    return Property(
        p.passes > 1 and p.tiles * p.tile_rows * p.units % CUT_THREADS > 0,
        p.passes > 1 and p.tiles > 1,
        p.groups > 1 and p.groups * p.rows > case.B,
        p.unit_blocks > 1 and p.unit_blocks * p.units > case.H,
        0 < p.chunk < 4 * case.H,
    )


def cuts(case: Case, kind: str, backward: bool) -> list[partitions.Plan]:
    """Of cuts over 5 processors one for each combination of properties, of uneven ones for each kernel."""
    sizes = (case.directions, case.B, case.H, kind, backward, partitions.COSTS)
    found: dict[Any, partitions.Plan] = {}
    # dz comes in chunks where shared memory is short.
    chips = (partitions.Chip(5, shared) for shared in (232448, 140000))
    for p in (plan for chip in chips for plan in partitions.plans(chip, *sizes)):
        which, has = p.units if kind in partitions.STEP_OF_K else p.tile_rows, properties(p, case)
        found.setdefault((has.uneven_passes and which, has), p)
    return list(found.values())


@thorough
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", CUT)
def test_every_kind_of_cut_gives_the_same(kind: str, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of the forward walk do not depend on groups, tiles and passes; with mma not on units either."""
    case = CUT[kind] if ragged else replace(CUT[kind], lengths=None)
    lstm, dtype = made(case, kind)
    a = {name: _array.asarray(value, np, dtype=dtype) for name, value in case.poisoned().items()}
    answers = []
    monkeypatch.setattr(partitions, "THREADS", CUT_THREADS)
    plans = [cuts(case, kind, backward) for backward in (False, True)]
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only("cupy_persistent"))
        for n in range(max(map(len, plans))):
            pair = [each[n % len(each)] for each in plans]
            monkeypatch.setattr(cupy_persistent, "_plan", lambda _, backward, pair=pair: pair[backward])
            answers.append(run(lstm, a, **case.valid()).flat())
    monkeypatch.undo()
    with xplstm.use_kernel("reference"):
        exact = {k: v.astype("float64") for k, v in a.items()}
        want = run(lstm.to(dtype="float64"), exact, **case.valid())
    for answer in answers:
        for key, value in want.flat().items():
            close(answer[key], value, kind, key, ULPS * (1 + case.H // 128))
            if key in ("y", "h_n", "c_n"):
                np.testing.assert_array_equal(answer[key], answers[0][key], err_msg=key)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", CUT)
def test_the_cuts_that_run_have_every_property(kind: str, backward: bool) -> None:
    """Uneven passes occur in every kernel, and together with each other property."""
    mma = kind in partitions.STEP_OF_K
    found = [(p, properties(p, CUT[kind])) for p in cuts(CUT[kind], kind, backward)]
    uneven = [(p, has) for p, has in found if has.uneven_passes]
    for name in ("passes_of_tiles", "short_group", "short_block"):
        assert any(getattr(has, name) for _, has in uneven), name
    assert any(has.chunks for _, has in found) is (backward and not mma)
    ran = {p.units if mma else p.tile_rows for p, _ in uneven}
    assert ran >= ({8, 16, 24, 32} if mma else {4, 8})


@pytest.mark.parametrize("kind", BITS)
def test_no_more_blocks_than_run_at_the_same_time(kind: str) -> None:
    """Check complete devices and parts of them; each row, unit and byte has a place."""
    for processors, shared in ((132, 232448), (66, 232448), (14, 101376)):
        for D, B, H in ((1, 1, 16), (2, 16, 96), (1, 64, 256), (2, 65, 130), (1, 256, 512), (2, 33, 1024)):
            for backward in (False, True):
                chip = partitions.Chip(processors, shared)
                for p in partitions.plans(chip, D, B, H, kind, backward, partitions.COSTS):
                    assert D * p.groups * p.unit_blocks <= processors
                    assert 0 < p.shared <= shared
                    assert p.units * p.unit_blocks >= H
                    assert p.rows * p.groups >= B
                    assert p.tiles * p.passes * p.tile_rows >= p.rows
                    assert p.cost > 0


@pytest.mark.parametrize("units", [8, *(pytest.param(u, marks=thorough) for u in (16, 24, 32))])
@pytest.mark.parametrize("backward", [False, True])
def test_weights_past_the_registers(units: int, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warp computes all of k, and only its first weights are in registers."""
    case, kind = Case(T=2, B=3, I=2, H=150), "tf32"
    lstm, dtype = made(case, kind)
    a = {name: _array.asarray(value, np, dtype=dtype) for name, value in case.arrays().items()}
    monkeypatch.setattr(partitions, "THREADS", 32)
    chip, best = partitions.Chip(32, 10**6), partitions.plan_of

    def plan(problem: Problem, back: bool, alone: bool) -> Any:
        if back != backward:
            return best(problem, back, alone)
        sizes = (chip, 1, problem.B, problem.H, kind, back, partitions.COSTS)
        found = next(p for p in partitions.plans(*sizes) if p.units == units and p.tiles == 1)
        assert partitions.slice_steps(found, problem.H, kind, back).rest > 0
        return found

    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", only("cupy_persistent"))
        monkeypatch.setattr(partitions, "plan_of", plan)
        monkeypatch.setitem(standin.ATTRIBUTES, "MaxSharedMemoryPerBlockOptin", chip.shared)
        got = run(lstm, a)
    monkeypatch.undo()
    with xplstm.use_kernel("reference"):
        want = run(lstm.to(dtype="float64"), {k: v.astype("float64") for k, v in a.items()})
    for key, value in want.flat().items():
        close(got.flat()[key], value, kind, key)


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_kernel_refuses(room: str) -> None:
    problem = Problem(np, "cupy", DEVICE, "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
    supports = ROOMS[room].supports
    assert supports(problem) is None
    assert "numpy" in str(supports(problem._replace(backend="numpy")))
    assert "float128" in str(supports(problem._replace(dtype="float128")))
    assert "the cell of GRU" in str(supports(problem._replace(cell=GRUCell())))
    assert "2147483647" in str(supports(problem._replace(T=2**30)))


def test_devices_too_old_are_refused() -> None:
    problem = Problem(
        np, "cupy", standin.Device(1), "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD
    )
    problem.device.compute_capability = "75"
    assert "capability below 8.0" in str(cupy_persistent.supports(problem))
    assert ROOMS["cupy_fused"].supports(problem) is None


def test_rows_of_the_input_have_the_long_axis_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other axes have at most 65535 blocks."""
    rows, grids = 2**22 + 64, []
    problem = Problem(np, "cupy", DEVICE, "float32", rows, 1, 1, 6, 0, True, (False,), "all", False, STANDARD)
    with standin.installed(), DEVICE, monkeypatch.context() as patch:
        patch.setattr(launch, "kernel", lambda *_: lambda grid, *_, **__: grids.append(grid))
        one = standin.empty((1, 1, 1, 1))
        x, z = one[0], np.broadcast_to(one, (1, rows, 1, 24), subok=True)
        x = np.broadcast_to(x, (rows, 1, 1), subok=True)
        packed = layer.Packed(one, one, None, None)
        call, segment = layer.Call(problem, None), layer.Segment(0, rows, [0])
        walks._project_in_order(call, packed, x, z, segment)
    assert grids == [(65537, 1, 1)]


def test_what_cublas_is_expected_to_run_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure falls back without a pinned kernel, except with the reproducible summation order."""
    problem = Problem(np, "cupy", DEVICE, "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
    with standin.installed():
        assert cupy_persistent.slower(problem) is None
        monkeypatch.setattr(partitions, "COSTS", partitions.COSTS._replace(fused_step=0.0))
        assert "with cuBLAS products" in str(cupy_persistent.slower(problem))
        assert cupy_persistent.supports(problem) is None
        assert cupy_persistent.slower(problem._replace(reproducible=True)) is None


@pytest.mark.parametrize("dtype", launch.SIZES)
def test_which_sums_are_canonical(dtype: str) -> None:
    problem = Problem(np, "cupy", DEVICE, dtype, 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
    assert not cupy_persistent.canonical_sums(problem)
    assert cupy_persistent.canonical_sums(problem._replace(reproducible=True)) is (BITS[dtype] > 11)
    reason = _dispatch.why_not("cupy_fused", problem._replace(reproducible=True))
    assert "reproducible summation order" in str(reason)


def test_float32_alone_is_rounded() -> None:
    problem = Problem(np, "cupy", DEVICE, "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
    asked = problem._replace(precision="tf32")
    assert [layer.kind(p) for p in (problem, asked)] == ["float32", "tf32"]
    assert layer.kind(asked._replace(dtype="float64")) == "float64"


@thorough
@pytest.mark.parametrize("room", ROOMS)
def test_threads_do_not_race(room: str) -> None:
    """ThreadSanitizer checks every access of every emulated thread."""
    sanitizer = compiled.sanitizer()
    if sanitizer is None:
        pytest.skip("the compiler has no ThreadSanitizer that runs here")
    env = {**os.environ, "LD_PRELOAD": sanitizer, "TSAN_OPTIONS": "exitcode=66:report_bugs=1"}
    command = [sys.executable, "-m", "tests.cuda_emulation", room]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "no race"


@pytest.mark.parametrize(
    ("version", "is_hip", "reason"),
    [
        ("13.6.0", False, "the kernel needs CuPy 14 or later, and this is CuPy 13.6.0"),
        ("14.2.0", True, "the kernel needs CUDA, and this CuPy is for ROCm"),
    ],
)
@pytest.mark.parametrize("room", ROOMS)
def test_another_cupy_is_refused_by_name(
    room: str, version: str, is_hip: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standin.installed() as cupy:
        monkeypatch.setattr(cupy, "__version__", version)
        monkeypatch.setattr(cupy.cuda.runtime, "is_hip", is_hip)
        problem = Problem(
            np, "cupy", DEVICE, "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD
        )
        assert ROOMS[room].supports(problem) == reason


@pytest.mark.parametrize("file", launch.WALK)
def test_a_walk_is_compiled_alone(file: str) -> None:
    """Compiling the other walks of the file would take several times as long."""
    kind = "float32" if file == "persistent.cu" else "tf32"
    every = compiled.names(file, kind)
    assert len(every) == len(set(every)) >= 6
    for name in every:
        assert compiled.names(file, kind, f"-DONLY={launch._entry(name)}") == [name]
