"""Check ``python -m xplstm prove`` on the stand-in for CuPy: kernels that pass, fail, hang and crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spec import exact_cases
from spec.ieee import FORMATS
from tests.cuda_emulation import compiled, kinds, standin, thorough
from tests.cuda_emulation.training import ROOM
from xplstm import __main__, _array, _dispatch
from xplstm._problem import Problem
from xplstm.cells.lstm import STANDARD
from xplstm.cli import fit, prove, published, trials
from xplstm.kernels._cuda import launch, partitions, proof

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "spec" / "vectors-exact"
emulated = pytest.mark.skipif(
    compiled.compiler() is None or int(np.__version__.split(".")[0]) < 2,
    reason="a C++20 compiler and NumPy 2 are needed to emulate the CUDA sources",
)
Prove = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Prove:
    """Run the command, whose processes import the stand-in as CuPy; return its exit code and lines."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'cuda_emulation' / 'process'}{os.pathsep}{ROOT}")
    monkeypatch.setenv(proof.FOLDER, str(tmp_path / "proofs"))
    monkeypatch.setenv("XPLSTM_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(trials, "SUBJECTS", {"cupy_persistent": ("float32",)})

    def prove(*options: str, faults: tuple[tuple[str, str], ...] = ()) -> tuple[int, list[str]]:
        monkeypatch.setenv("XPLSTM_FAULTS", json.dumps(faults))
        code = __main__.main(["prove", *options])
        found = capfd.readouterr()
        return code, (found.out + found.err).splitlines()

    return prove


def row(lines: list[str], kernel: str = "cupy_persistent") -> str:
    return next(line for line in lines if line.startswith(kernel))


def begun(log: Path) -> int:
    """Return how many processes have started trials."""
    return len(log.read_text().splitlines()) if log.exists() else 0


@thorough
@emulated
def test_a_kernel_that_passes_is_recorded_and_chosen(
    run: Prove, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = {"cupy_persistent": ("float32",), "cupy_fused": ("float32",)}
    monkeypatch.setattr(trials, "SUBJECTS", subjects)
    code, lines = run()
    assert code == 0, lines
    assert lines[0] == "Emulated 0, 6 SMs, CuPy 14.2.0, NVRTC 13.0"
    assert [line.split()[:3] for line in lines[4:6]] == [
        ["cupy_persistent", "float32", "passed"],
        ["cupy_fused", "float32", "passed"],
    ]
    with standin.installed():
        monkeypatch.setenv(proof.FOLDER, str(tmp_path / "proofs"))
        problem = Problem(
            *(standin.LIBRARY, "cupy", standin.Device(0), "float32", 5, 4, 3, 130, 0, True, (False,)),
            *("all", False, STANDARD),
        )
        assert _dispatch.select(problem).name == "cupy_persistent"
        assert _dispatch.select(problem._replace(dtype="float64")).name == "cupy_fused"
    before = begun(tmp_path / "log")
    code, lines = run()
    assert (code, begun(tmp_path / "log")) == (0, before)
    assert "recorded on 20" in row(lines)
    monkeypatch.setattr(trials, "SUBJECTS", {"cupy_fused": ("float32",)})
    assert run("--again")[0] == 0
    assert begun(tmp_path / "log") == before + 1


FAULTS = {
    "wrong bits": (
        "recorded bits: ",
        ("product(gate[0], gate[2])", "product(gate[2], sum(gate[0], 1e-6f))"),
    ),
    "wrong gradient": ("every kind of partition: d", ("dc = dc_new * f;", "dc = dc_new;")),
    "crash": (
        "recorded bits: ended by SIG",
        ("own.publish(f.waits, 1);", "__builtin_trap();"),
    ),
    "hang": (
        "recorded bits: did not end within 6 s",
        ("own.publish(f.waits, 1);", "for (;;) rest();"),
    ),
    "a block never arrives": (
        "recorded bits: ",
        (
            "if (!ALONE && threadIdx.x == 0)\n            store_release",
            "if (!ALONE && threadIdx.x == 0 && !blockIdx.y)\n store_release",
        ),
    ),
}


FAULTY = [
    pytest.param(reason, faults, id=name, marks=[] if name == "wrong bits" else [thorough])
    for name, (reason, *faults) in FAULTS.items()
]


@pytest.mark.slow
@emulated
@pytest.mark.parametrize(("reason", "faults"), FAULTY)
def test_a_kernel_with_a_fault_is_refused_and_recorded(
    reason: str,
    faults: tuple[tuple[str, str], ...],
    run: Prove,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XPLSTM_PATIENCE", "2")
    limit = "6" if "6 s" in reason else "300"
    code, lines = run("--limit", limit, faults=faults)
    assert code == 1, lines
    assert "FAILED" in row(lines)
    assert reason in row(lines)
    path = next((tmp_path / "proofs").glob("*.json"))
    (found,) = json.loads(path.read_text())["proofs"].values()
    assert found["passed"] is False
    assert found["reason"].startswith(reason)
    before = begun(tmp_path / "log")
    code, lines = run()
    assert (code, begun(tmp_path / "log")) == (1, before), "a failure is recorded too"
    assert reason in row(lines)


@thorough
@emulated
def test_eight_processes_at_once_run_the_trials_once(run: Prove, tmp_path: Path) -> None:
    code = (
        "from xplstm.cli import trials; trials.SUBJECTS = {'cupy_fused': ('float32',)}; "
        "from xplstm.__main__ import main; raise SystemExit(main(['prove']))"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(8)]
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 8
    assert all("cupy_fused       float32   passed" in text for text in printed)
    assert begun(tmp_path / "log") == 1
    assert run()[0] == 0


def decided(folder: Path, monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    """Record a verdict for cupy_persistent in float32, so that no trial is left."""
    monkeypatch.setattr(trials, "SUBJECTS", {})
    with standin.installed():
        monkeypatch.setenv(proof.FOLDER, str(folder))
        name = proof.name_of("cupy_persistent", "float32")
        proof.record(proof.identity(0), name, proof.verdict(reason))


@pytest.mark.slow
@emulated
def test_costs_are_fitted_and_used(run: Prove, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided(tmp_path / "proofs", monkeypatch, None)
    code, lines = run("--fit")
    assert code == 0, lines
    said = "costs fitted to 12 step times; median error of predictions 0%"
    assert any(line.startswith(said) for line in lines), lines
    with standin.installed():
        monkeypatch.setenv(proof.FOLDER, str(tmp_path / "proofs"))
        found = partitions.costs_of(standin.Device(0))
        assert found.fused_step == pytest.approx(1.5 * partitions.COSTS.fused_step, rel=1e-3)
        assert partitions.costs_of(standin.Device(1)) == partitions.COSTS
        path = proof.costs_file(proof.identity(0))
        assert path.stat().st_mode & 0o777 == 0o600
        path.write_text(path.read_text().replace("costs", "coasts"))
        proof.forget()
        assert partitions.costs_of(standin.Device(0)) == partitions.COSTS


@pytest.mark.slow
@emulated
def test_a_kernel_that_failed_fits_no_costs(
    run: Prove, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(tmp_path / "proofs", monkeypatch, "two streams: y has other bits")
    code, lines = run("--fit")
    assert code == 1
    reason = "cupy_persistent has not passed the trials for any of float32"
    assert f"the costs were not fitted: times of steps: {reason}" in lines
    assert not list((tmp_path / "proofs").glob("*.costs.json"))


@emulated
def test_a_step_is_timed_without_its_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of the stand-in count launches: two per step of the fused kernel, none per step of a walk."""
    monkeypatch.setattr(fit, "STEPS", (2, 5))
    monkeypatch.setattr(fit, "SIZES", ((3, 9),))
    monkeypatch.setattr(partitions, "THREADS", 64)
    like = Problem(
        *(standin.LIBRARY, "cupy", standin.Device(0), "float32", 1, 1, 1, 1, 0, True, (False,)),
        *("all", True, STANDARD),
    )
    with standin.installed() as cupy:
        (point,) = fit.points(cupy, like, "float32")
    assert (point.name, point.time) == ("cupy_fused forward float32 B=3 H=9", 2000.0)


def test_a_fit_that_predicts_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    wild = [
        fit.Point("", float(10.0 ** rng.uniform(-3, 3)), lambda costs: costs.fused_step) for _ in range(20)
    ]
    monkeypatch.setattr(fit, "points", lambda *_: wild)
    costs, said = fit.find_costs(None, None, ["float32"])  # type: ignore[arg-type]
    assert costs is None
    assert said.startswith("20 step times; median error of predictions ")
    assert fit.find_costs(None, None, [])[1] == "0 times were measured, but 7 costs need at least as many"  # type: ignore[arg-type]


def test_without_a_device_it_says_why(run: Prove, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError('no such thing here')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    code, lines = run()
    assert code == 2
    assert "device 0 cannot be tested: exit code 2: " in lines[-1]
    assert "no such thing here" in lines[-1]


@emulated
def test_a_cache_that_cannot_be_written_is_an_error_before_any_trial(
    run: Prove, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(proof.FOLDER, str(tmp_path / "file" / "proofs"))
    code, lines = run()
    assert code == 1
    assert "file" in lines[-1]
    assert begun(tmp_path / "log") == 0


SAID = {
    "memory": ('{"begun": {"a": "b"}}\n{"trial": "one"}\n{"not_run": "MemoryError: full"}', True, None),
    "not begun": ("Traceback", False, None),
    "crash": ('{"begun": {"a": "b"}}\n{"trial": "one"}\n{"tr', False, False),
    "passed and crashed": ('{"begun": {}}\n{"trial": "one"}\n{"passed": true}', False, False),
    "passed": ('{"begun": {}}\n{"trial": "one"}\nnoise\n{"passed": true}', True, True),
}


@pytest.mark.parametrize(("printed", "clean", "passed"), SAID.values(), ids=SAID)
def test_what_a_process_said(printed: str, clean: bool, passed: bool | None) -> None:
    found = prove.parse_output(printed, "ended by SIGSEGV", clean=clean).found
    assert (None if found is None else found.passed) is passed


@pytest.mark.parametrize("dtype", published.DIGESTS)
@pytest.mark.parametrize("name", published.RECORDS)
def test_published_records_are_those_of_the_specification(name: str, dtype: str) -> None:
    record = json.loads((VECTORS / f"{name}-{dtype}.json").read_text(encoding="utf-8"))
    given = published.inputs(name, dtype)
    got = {n: a for n, a in {**given.params._asdict(), **given._asdict()}.items() if n != "params"}
    for key, value in exact_cases.inputs(record).items():
        np.testing.assert_array_equal(got[key], np.asarray(value, dtype), err_msg=key)
    decoded = (exact_cases.decoded(record["outputs"][key], FORMATS[dtype]) for key in ("y", "h_n", "c_n"))
    assert published.digest(*(np.asarray(a, dtype) for a in decoded)) == published.DIGESTS[dtype][name]


@pytest.mark.parametrize("kind", launch.KINDS)
@pytest.mark.parametrize("processors", [132, 14])
def test_the_plans_of_the_trials_take_every_entry_and_kind_of_cut(kind: str, processors: int) -> None:
    chip, mma = partitions.Chip(processors, 232448), kind in partitions.STEP_OF_K
    for backward in (False, True):
        found = [(s, p) for s in trials.cut_shapes(kind) for p in trials.cuts(chip, s, kind, backward)]
        entries = {p.units if mma else p.tile_rows for _, p in found}
        assert entries == ({8, 16, 24, 32} if mma else {4, 8, 16})
        assert any(p.passes > 1 for _, p in found)
        assert {p.unit_blocks > 1 for _, p in found} == {True, False}
        assert any(p.groups > 1 and p.groups * p.rows > s.B for s, p in found)
        assert any(p.unit_blocks > 1 and p.unit_blocks * p.units > s.H for s, p in found)
        assert any(0 < p.chunk < 4 * s.H for s, p in found) is (backward and not mma)
        if mma and processors > 100:
            rests = {p.units for s, p in found if partitions.slice_steps(p, s.H, kind, backward).rest}
            assert len(rests) > 1
        assert all(p.unit_blocks * p.groups * len(s.reverse) <= processors for s, p in found)


@emulated
@pytest.mark.parametrize("dtype", kinds(launch.SIZES))
def test_trials_of_training(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.installed():
        monkeypatch.setattr(_array, "faster", lambda _: ROOM if _dispatch.pinned() == "cupy_fused" else None)
        assert trials.training_differs(np, "cpu", dtype) is None
        with compiled.faulty(("log(total)", "log(2 * total)")):
            launch.kernel.cache_clear()
            assert "cross-entropy has an error of" in str(trials.training_differs(np, "cpu", dtype))
