"""Build the distribution from spec/ and use it in an empty folder, without the clone and xplstm."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from spec import clauses

FOLDER = Path(__file__).parent
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
BLOCK = """\
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("xplstm", "spec"):
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Absent())
"""
WRONG = ("sigmoid(z[H + k]) * *here + sigmoid(z[k])", "sigmoid(z[k]) * *here + sigmoid(z[H + k])")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of packages with the distribution, in which xplstm and spec cannot be imported."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(FOLDER, folder / "source", ignore=IGNORED)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=folder / "source")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("lstm_spec-*.whl")
    shutil.unpack_archive(wheel, folder / "site", "zip")
    (folder / "site" / "sitecustomize.py").write_text(BLOCK, encoding="utf-8")
    return folder / "site"


def run(site: Path, here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), "PYTEST_ADDOPTS": "", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "lstm_spec.command", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=here, env=env)


def compiled(source: str, here: Path) -> str:
    """Build the example in C in an empty folder, and return its command."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    (here / "mine.c").write_text(source, encoding="utf-8")
    subprocess.run([compiler, "-D_GNU_SOURCE", "-o", "mine", "mine.c", "-lm"], cwd=here, check=True)
    return "./mine"


def test_a_right_program_in_c_passes(site: Path, tmp_path: Path) -> None:
    program = compiled((FOLDER / "examples" / "one_layer.c").read_text(encoding="utf-8"), tmp_path)
    found = run(site, tmp_path, "--stdio", program, "-k", "sequence or lengths or refus or sizes-i65")
    assert found.returncode == 0, found.stdout + found.stderr
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed
    assert int(passed[1]) > 25
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.c"}


def test_a_wrong_program_in_c_is_told_what_is_wrong(site: Path, tmp_path: Path) -> None:
    source = (FOLDER / "examples" / "one_layer.c").read_text(encoding="utf-8")
    assert WRONG[0] in source
    program = compiled(source.replace(*WRONG), tmp_path)
    found = run(site, tmp_path, "--stdio", program, "-k", "test_outputs and sequence")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "i and f trade places in c" in found.stdout
    assert "from lstm_spec.stdio import Stdio" in found.stdout


def test_a_program_in_python_passes(site: Path, tmp_path: Path) -> None:
    program = f"{sys.executable} {site / 'lstm_spec' / 'examples' / 'one_layer.py'}"
    found = run(site, tmp_path, "--stdio", program, "-k", "sequence or refus or side_effects or sizes-i65")
    assert found.returncode == 0, found.stdout + found.stderr
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed
    assert int(passed[1]) > 25


def test_a_program_in_rust_passes(site: Path, tmp_path: Path) -> None:
    if shutil.which("rustc") is None:
        pytest.skip("rustc is not installed")
    source = site / "lstm_spec" / "examples" / "one_layer.rs"
    subprocess.run(["rustc", "-O", "-o", "mine", str(source)], cwd=tmp_path, check=True)
    found = run(site, tmp_path, "--stdio", "./mine", "-k", "sequence or lengths or refus or sizes-i65")
    assert found.returncode == 0, found.stdout + found.stderr
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed
    assert int(passed[1]) > 25


def test_a_program_in_javascript_passes(site: Path, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    shutil.copy(site / "lstm_spec" / "examples" / "one_layer.mjs", tmp_path)
    found = run(
        site,
        tmp_path,
        "--stdio",
        "node one_layer.mjs",
        "-k",
        "sequence and test_outputs or test_relation and lengths",
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "passed" in found.stdout


def test_a_program_gets_a_report(site: Path, tmp_path: Path) -> None:
    """Write the report to a separate folder."""
    code = "import sys; from lstm_spec import command, report; report.FILES = ('behaviour',)"
    env = {**os.environ, "PYTHONPATH": str(site), "PYTEST_ADDOPTS": "", "PYTHONSAFEPATH": "1"}
    program = f"{sys.executable} {site / 'lstm_spec' / 'examples' / 'one_layer.py'}"
    command = [
        sys.executable,
        "-c",
        f"{code}; sys.exit(command.main())",
        "report",
        "--stdio",
        program,
        "--out",
        ".",
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert found.returncode == 0, found.stdout + found.stderr
    page = (tmp_path / "conformance.md").read_text(encoding="utf-8")
    assert "XPL-ERR-004" in page
    assert "stdio not installed" not in page, "a program has no version, but it was run"
    assert "checked by hand" not in page
    assert "guides/" not in page, "a link to a page that is not written"
    prose = (tmp_path / "clauses.md").read_text(encoding="utf-8")
    assert "{container}" not in page, "syntax that only Sphinx reads"
    assert ")=\n" not in prose, "syntax that only Sphinx reads"
    assert "(clauses.md#xpl-num-001)" in page
    assert '<a id="xpl-num-001"></a>' in prose
    results = json.loads((tmp_path / "conformance.json").read_text(encoding="utf-8"))["results"]["stdio"]
    assert results["XPL-SEQ-011"]["status"] == "not offered", "a program gets no strides"
    assert results["XPL-ERR-004"]["status"] == "passed"


def test_help_names_every_command_and_option(site: Path, tmp_path: Path) -> None:
    said = run(site, tmp_path, "--help").stdout
    options = ("--stdio", "--subject", "--where", "--patience", "--deviations", "--isolated")
    assert [name for name in (*options, "lstm-spec report", "lstm-spec kills") if name not in said] == []


def test_the_folder_of_the_vectors_is_printed(site: Path, tmp_path: Path) -> None:
    printed = Path(run(site, tmp_path, "--where").stdout.strip())
    assert (printed / "vectors" / "cell.json").exists()
    assert (printed / "SPEC.md").exists()


def test_the_version_is_that_of_the_prose() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == clauses.version(clauses.SPEC.read_text(encoding="utf-8"))
    assert (FOLDER / "LICENSE").read_bytes() == (FOLDER.parent / "LICENSE").read_bytes()
