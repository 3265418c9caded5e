"""Check the command that runs all GPU checks, without a GPU: its steps, messages and exit status."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from spec.subjects import named
from tests import gpu
from tests.gpu import Outcome, Step
from tests.support.cases import CASES
from xplstm import _dispatch

FOREVER = float("inf")


def ended(code: int) -> Step:
    return Step("tests", f"ends with {code}", (sys.executable, "-c", f"raise SystemExit({code})"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide a GPU, as far as the command checks."""
    monkeypatch.setattr(gpu, "why_not_here", lambda: "")


@pytest.mark.slow
def test_steps_end_passed_failed_or_skipped_with_a_reason() -> None:
    assert gpu.do(ended(0), FOREVER)[1:4:2] == ("passed", "")
    assert gpu.do(ended(3), FOREVER)[1:4:2] == ("failed", "exit code 3")
    assert gpu.do(ended(0), time.monotonic() - 1)[1:4:2] == ("skipped", "the time is up")
    assert gpu.do(Step("sanitizer", "memcheck", reason="none"), FOREVER)[1:4:2] == ("skipped", "none")
    late = Step("bench", "late", (sys.executable, "-c", "import time; time.sleep(60)"))
    outcome = gpu.do(late, time.monotonic() + 0.3)
    assert outcome[1:4:2] == ("failed", "it had not ended when the time was up")
    assert outcome.seconds < 30


@pytest.mark.slow
def test_a_step_that_waits_for_ever_is_ended_with_all_it_started(tmp_path: Path) -> None:
    sleeper = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    gpu.do(Step("tests", "stuck", (sys.executable, "-c", code)), time.monotonic() + 3)
    number = int((tmp_path / "pid").read_text())
    status = Path(f"/proc/{number}/stat")
    end = time.monotonic() + 10
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_step_has_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPLSTM_REQUIRE", "numpy")
    code = "import os; raise SystemExit(os.environ['XPLSTM_REQUIRE'] != 'cupy')"
    assert gpu.do(Step("tests", "a", (sys.executable, "-c", code), {"XPLSTM_REQUIRE": "cupy"}), FOREVER)[
        1
    ] == ("passed")


@pytest.mark.usefixtures("here")
@pytest.mark.slow
def test_it_fails_when_anything_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"good": lambda _: iter([ended(0)]), "bad": lambda _: iter([ended(1), ended(0)])}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["good", "--out", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new").is_dir()
    assert gpu.main(["--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in lines[-3:]] == ["passed", "failed", "passed"]
    with pytest.raises(SystemExit):
        gpu.main(["worse"])
    assert "part 'worse' is unknown, expected one of good, bad" in capsys.readouterr().err


def test_without_a_gpu_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "NEEDS", ("numpy", "no_such_package"))
    assert gpu.main([]) == 1
    assert "not installed: no_such_package; a wheel on PYTHONPATH is enough" in capsys.readouterr().err


def test_the_steps_name_what_there_is(tmp_path: Path) -> None:
    """The steps name existing kernels, subjects, test files and options of the benchmark."""
    (tmp_path / "gpu.json").write_text("of other kernels")
    steps = {part: list(make(tmp_path)) for part, make in gpu.PARTS.items()}
    kernels = {kernel for step in steps["tests"] for kernel in step.variables["XPLSTM_REQUIRE"].split(",")}
    assert {name for name in _dispatch.TABLE if name.startswith("cupy")} == kernels - {"cupy"}
    for step in steps["tests"]:
        files = [o.removeprefix("--ignore=") for o in step.command if "tests" in o]
        assert files
        assert all((gpu.ROOT / file).exists() for file in files)
    for step in steps["spec"]:
        assert named([step.command[-1].partition("=")[2]])
    for step in steps["sanitizer"]:
        assert step.reason or set(step.command[step.command.index("tests.support.cupy_runs") + 1 :]) <= set(
            CASES
        )
    assert "--quick" in steps["bench"][0].command
    assert not (tmp_path / "gpu.json").exists()


def test_where_the_sanitizer_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found, places = gpu.find_sanitizer()
    assert str(tmp_path / "bin") in places
    if found is None:
        assert all("compute-sanitizer in PATH" in step.reason for step in gpu.sanitizer(tmp_path))
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / gpu.SANITIZER
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert gpu.find_sanitizer()[0] == str(tool)
    assert [step.command[0] for step in gpu.sanitizer(tmp_path)] == [str(tool)] * 2


def test_the_table_lines_up() -> None:
    outcomes = [Outcome(ended(0), "passed", 1.4), Outcome(ended(10), "failed", 100.0, "exit code 10")]
    assert gpu.table(outcomes).splitlines() == [
        "part   what          outcome  seconds  why",
        "tests  ends with 0   passed   1",
        "tests  ends with 10  failed   100      exit code 10",
    ]
