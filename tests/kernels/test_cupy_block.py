"""Check the walk of a single block in the emulation: entries, partitions, and when it is selected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda_emulation import compiled, kinds, standin
from tests.cuda_emulation.carried import emulated
from tests.support.cases import CASES, run
from xplstm import _dispatch
from xplstm._problem import Problem
from xplstm._typing import Proof
from xplstm.cells.lstm import STANDARD
from xplstm.cli import trials
from xplstm.kernels import cupy_block, cupy_persistent
from xplstm.kernels._cuda import launch, partitions, proof

pytestmark = [
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here"),
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
]
CHIP = partitions.Chip(5, 232448)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(partitions, "THREADS", 64)
    with standin.installed() as cupy:
        yield cupy


def problem(kind: str = "float32", **changes: Any) -> Problem:
    xp, device, dtype = standin.LIBRARY, standin.Device(0), "float32" if kind == "tf32" else kind
    sizes = 5, 4, 3, 6, 0, True, (False,)
    made = Problem(xp, "cupy", device, dtype, *sizes, "all", False, STANDARD)
    return made._replace(precision="tf32" if kind == "tf32" else None, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds(launch.KINDS))
def test_every_entry_and_partition_gives_the_same_numbers(kind: str, cupy: Any) -> None:
    taken = [
        p
        for shape in trials.shapes_alone()
        for backward in (False, True)
        for p in trials.cuts(CHIP, shape, kind, backward, alone=True)
    ]
    assert all(p.alone and p.unit_blocks == 1 for p in taken)
    assert any(p.passes > 1 and p.tiles > 1 for p in taken)
    assert any(p.groups > 1 and p.groups * p.rows > 35 for p in taken)
    with standin.Device(0):
        assert trials.every_cut(cupy, problem(kind, keep=True), kind, CHIP, alone=True) is None
    names = {name for name in standin.launched if name.startswith("walk")}
    entries = (8, 16) if kind in partitions.STEP_OF_K else (4,)
    assert names == {f"{walk}_alone_{n}" for walk in ("walk", "walk_back") for n in entries}


@pytest.mark.parametrize("name", ["plain", "bidirectional_ragged"])
def test_float32_has_the_bits_of_several_blocks(
    name: str, cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, found = CASES[name], {}
    a = {key: value.astype("float32") for key, value in case.arrays().items()}
    for kernel in ("cupy_block", "cupy_persistent"):
        monkeypatch.setattr(_dispatch, "select", lambda _, kernel=kernel: emulated(kernel))
        found[kernel] = run(case.lstm(dtype="float32"), a, **case.valid()).flat()
    for key in ("y", "h_n", "c_n"):
        np.testing.assert_array_equal(found["cupy_block"][key], found["cupy_persistent"][key], err_msg=key)


def test_a_launch_has_no_counters_and_is_not_cooperative(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[Any, ...]] = []
    kernel = launch.kernel

    def record(*arguments: Any, **options: Any) -> Any:
        loaded.append((arguments[1], options.get("cooperative", False)))
        return kernel(*arguments, **options)

    case = CASES["plain"]
    monkeypatch.setattr(launch, "kernel", record)
    monkeypatch.setattr(_dispatch, "select", lambda _: emulated("cupy_block"))
    monkeypatch.setattr(cupy, "zeros", None)  # of the counters
    case.lstm(dtype="float32")(case.arrays()["x"].astype("float32"))
    assert loaded == [("walk_alone_4", False)]


@pytest.mark.usefixtures("cupy")
def test_it_is_chosen_where_it_is_faster_after_a_check() -> None:
    chosen = _dispatch.select(problem())
    assert chosen.name == "cupy_block"
    assert "passed its trials on this device" in _dispatch.proof(chosen, problem())
    assert "reproducible summation order" in str(_dispatch.why_not("cupy_block", problem(reproducible=True)))


@pytest.mark.usefixtures("cupy")
def test_a_kernel_with_wrong_numbers_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = cupy_block.backward

    def wrong(*arguments: Any, **options: Any) -> Any:
        dx, state, dparams = backward(*arguments, **options)
        return dx + dx, state, dparams

    monkeypatch.setattr(cupy_block, "backward", wrong)
    reason = cupy_block.proof(problem(), trials.reference()).text
    assert "the kernel failed its trials on this device" in reason
    assert "dx has an error of" in reason


@pytest.mark.usefixtures("cupy")
def test_what_is_expected_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cupy_block.slower(problem()) is None
    large = problem(H=100)
    key = cupy_persistent.NAME, "float32", 0
    monkeypatch.setitem(proof._decided, key, Proof(False, "no"))
    assert cupy_block.slower(large) is None
    monkeypatch.setitem(proof._decided, key, Proof(True, "passed"))
    assert "us by several blocks" in str(cupy_block.slower(large))
    monkeypatch.setattr(partitions, "COSTS", partitions.COSTS._replace(fused_step=0.0))
    assert "us with cuBLAS products" in str(cupy_block.slower(problem()))


@pytest.mark.usefixtures("cupy")
def test_what_it_refuses() -> None:
    assert cupy_block.supports(problem(H=100)) is None
    reason = str(cupy_block.supports(problem(H=200)))
    assert (
        reason
        == "hidden_size=200 with a batch of 4 does not fit into one block with 232448 bytes of shared memory"
    )
    assert "does not fit into one block" in str(cupy_block.supports(problem("bfloat16", H=33)))
    assert "projection" in str(cupy_block.supports(problem(proj_size=2)))
    old = problem(device=standin.Device(1))
    old.device.compute_capability = "75"
    assert "capability below 8.0" in str(cupy_block.supports(old))
