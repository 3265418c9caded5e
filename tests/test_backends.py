"""Check the selection of backends by `--backend`, and the table at the end of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = "tests/test_functional.py::test_is_a_direction_of_the_class"


def pytest_run(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.rstrip().splitlines()


@pytest.mark.slow
def test_a_run_ends_with_the_table_of_the_backends_that_were_chosen():
    lines = pytest_run("--backend", "numpy", "--backend", "numpy_readonly", FILE)
    table = {line[:18].strip(): line[18:].split() for line in lines[-10:-1]}
    libraries = ["numpy", "numpy_readonly", "array_api_strict", "torch", "jax", "dask", "cupy"]
    assert list(table) == ["backend", *libraries, "no backend"]
    assert table["numpy"] == table["numpy_readonly"] == ["6", "0", "0"]
    assert {tuple(row[:3]) for name, row in table.items() if name in ("torch", "cupy")} == {("0", "0", "0")}
    assert "SKIPPED" not in "".join(lines)


@pytest.mark.slow
def test_fixtures_marks_and_subjects_tell_the_backend_of_a_test():
    files = ("tests/optim/test_optim_states.py", "tests/nn/test_torch.py", "spec/test_exact.py")
    found = [line for line in pytest_run("--collect-only", "--backend", "torch", *files) if "::" in line]
    here = {name for name in found if name.startswith("tests/optim")}
    assert here, "the first test with PyTorch is kept even where it is not installed"
    assert not any("test_schedules_pickle_and_copy" in name for name in here)
    assert not any("xplstm:numpy:" in name for name in found)
