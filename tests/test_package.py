"""Check a release: the source distribution, wheel tags, and the remedy for a missing kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}

pytestmark = [
    pytest.mark.skipif(os.environ.get("XPLSTM_PACKAGE") != "1", reason="builds packages: nox -s package"),
    pytest.mark.skipif(os.name != "posix", reason="the kernel is built on POSIX systems alone"),
]


def call(*command: object, cwd: Path | None = None, **variables: str) -> str:
    """Run a command and return its output; show the output if the command fails."""
    env = {**os.environ, **variables}
    done = subprocess.run(
        [*map(str, command)], env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    call(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
    return next(folder.iterdir())


@pytest.fixture
def unpacked(sdist: Path, tmp_path: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    return next(path for path in tmp_path.iterdir() if path.is_dir())


def wheel_of(source: Path, folder: Path, **variables: str) -> tuple[str, set[str], str]:
    """Return a wheel's name, its files and its tags."""
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder, source, **variables)
    path = next(folder.glob("*.whl"))
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (tags,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/WHEEL"))
    return path.name, names, tags


def test_a_wheel_with_the_kernel_serves_every_python_of_its_platform(unpacked: Path, tmp_path: Path) -> None:
    name, files, tags = wheel_of(unpacked, tmp_path / "dist")
    assert re.fullmatch(r"xplstm-[^-]+-cp311-abi3-[a-z].*\.whl", name)
    assert "xplstm/kernels/_engine.abi3.so" in files
    assert "Root-Is-Purelib: false" in tags
    assert not [file for file in files if file.endswith((".c", ".h"))]
    assert {"xplstm/py.typed", "xplstm/kernels/_cuda/fused.cu"} <= files


@pytest.mark.parametrize("variables", [NO_COMPILER, {"XPLSTM_PURE": "1"}], ids=["no compiler", "pure"])
@pytest.mark.slow
def test_a_wheel_without_the_kernel_is_for_every_platform(
    variables: dict[str, str], unpacked: Path, tmp_path: Path
) -> None:
    # A kernel of an earlier build must not be packed as if it were new.
    stale = unpacked / "xplstm" / "kernels" / "_engine.abi3.so"
    stale.write_bytes(b"stale")
    name, files, tags = wheel_of(unpacked, tmp_path / "dist", **variables)
    assert re.fullmatch(r"xplstm-[^-]+-py3-none-any\.whl", name)
    assert not [file for file in files if "_engine" in file and not file.endswith(".pyi")]
    assert "Root-Is-Purelib: true" in tags
    assert "Tag: py3-none-any" in tags


def test_an_editable_installation_keeps_a_newer_kernel_on_request(unpacked: Path, tmp_path: Path) -> None:
    kernel = unpacked / "xplstm" / "kernels" / "_engine.abi3.so"
    kernel.write_bytes(b"kept")
    command = (sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir", tmp_path / "dist")
    variables = {**NO_COMPILER, "XPLSTM_KEEP_BUILD": "1"}
    call(*command, cwd=unpacked, **variables)
    assert kernel.read_bytes() == b"kept"
    os.utime(unpacked / "xplstm" / "kernels" / "_native" / "pool.h", (2**32, 2**32))
    call(*command, cwd=unpacked, **variables)
    assert not kernel.exists()


def test_the_source_distribution_tests_itself(unpacked: Path) -> None:
    chosen = ("tests/test_functional.py", "tests/docs/test_readme.py", "spec/test_vectors.py")
    options = ("-q", "-p", "no:cacheprovider", "--backend", "numpy", "-k", "not float32")
    printed = call(sys.executable, "-m", "pytest", *options, *chosen, cwd=unpacked)
    assert re.search(r"[1-9]\d+ passed", printed)
    needed = {"noxfile.py", "pyproject.toml", "setup.py", "CHANGELOG.md"}
    assert needed <= {path.name for path in unpacked.iterdir()}


@pytest.mark.parametrize("by_name", [False, True], ids=["from a folder", "by name"])
def test_the_remedy_for_a_missing_kernel_works(
    by_name: bool, unpacked: Path, sdist: Path, tmp_path: Path
) -> None:
    """The options in the message are passed to the command that failed."""
    home = tmp_path / "home"
    venv.create(home, with_pip=True, system_site_packages=False)
    python, elsewhere = home / "bin" / "python", tmp_path / "elsewhere"
    elsewhere.mkdir()
    source = ["--find-links", sdist.parent, "xplstm"] if by_name else [unpacked]
    cache = {"PIP_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": ""}
    call(python, "-m", "pip", "install", *source, cwd=elsewhere, **NO_COMPILER, **cache)
    printed = call(python, "-m", "xplstm", "info", cwd=elsewhere, **cache)
    (options,) = {tuple(found.split()) for found in re.findall(r"repeat pip install with (--.*)", printed)}
    shutil.rmtree(unpacked / "build", ignore_errors=True)
    call(python, "-m", "pip", "install", *options, *source, cwd=elsewhere, **cache)
    printed = call(python, "-P", ROOT / "tests" / "smoke.py", "native", cwd=elsewhere, **cache)
    assert "native agree" in printed
