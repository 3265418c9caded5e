"""What `nox` runs: by itself the checks of every change, by name or tag the other libraries and versions."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "tests", "docs"]
# A machine seldom has every Python; one that is missing shows as skipped.
nox.options.error_on_missing_interpreters = False

GROUPS = nox.project.load_toml("pyproject.toml")["dependency-groups"]
# pytest-xdist has a process for each core: a BLAS that takes all cores in each of them is slower by far.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
HOST_BACKENDS = "numpy,numpy_readonly,array_api_strict"


def run_tests(session: nox.Session, require: str, *options: str, workers: str = "auto") -> None:
    """Run the tests and the specification; what `require` names and cannot run is a failure."""
    # The kernel `native` is built by an editable install, and only there do the tests find it.
    native = ",native" if shutil.which(os.environ.get("CC", "cc").partition(" ")[0]) else ""
    env = {**ONE_THREAD, "XPLSTM_REQUIRE": require + native}
    # Tests that take seconds stand side by side: who has nothing left takes from who has.
    session.run("pytest", "-n", workers, "--dist", "worksteal", *options, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting, of C and CUDA too."""
    session.install(*GROUPS["lint"])
    sources = [str(p) for p in Path("xplstm/kernels").glob("_*/*") if p.suffix in (".c", ".h", ".cu", ".cuh")]
    session.run("clang-format", "--dry-run", "-Werror", *sources)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    session.install(*GROUPS["types"])
    session.run("mypy")
    session.run("pytest", "--noconftest", "tests/types")


@nox.session
def tests(session: nox.Session) -> None:
    """Tests and specification on NumPy, read-only NumPy and array-api-strict; the guide pages on models."""
    session.install("-e", ".[test,guides]")
    run_tests(session, HOST_BACKENDS)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in docs/_build/html; a warning is an error."""
    session.install(".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "docs", "docs/_build/html")


@nox.session(tags=["backends"])
def torch(session: nox.Session) -> None:
    """Everything that PyTorch has a part in, as array library and as judge."""
    session.install("-e", ".[test]", "torch==2.13.0")
    run_tests(session, "torch", "-k", "torch")


@nox.session(tags=["backends"])
def jax(session: nox.Session) -> None:
    """Everything that JAX has a part in."""
    session.install("-e", ".[test]", "jax")
    run_tests(session, "jax", "-k", "jax")


@nox.session(tags=["backends"])
def dask(session: nox.Session) -> None:
    """Everything that Dask has a part in."""
    session.install("-e", ".[test]", "dask[array]")
    run_tests(session, "dask", "-k", "dask")


class Subjects(NamedTuple):
    """Subjects of the specification that need the same packages."""

    names: tuple[str, ...]
    packages: tuple[str, ...] = ()


SUBJECTS = {
    "numpy": Subjects(("xplstm:numpy", "xplstm:numpy_readonly")),
    "array_api_strict": Subjects(("xplstm:array_api_strict",)),
    "torch": Subjects(("xplstm:torch", "torch"), ("torch==2.13.0",)),
    "jax": Subjects(("xplstm:jax",), ("jax",)),
    "dask": Subjects(("xplstm:dask",), ("dask[array]",)),
    "onnxruntime": Subjects(("onnxruntime",), ("onnx", "onnxruntime")),
    "flax": Subjects(("flax",), ("flax",)),
    "keras": Subjects(("keras",), ("keras", "torch==2.13.0")),
}


@nox.session(tags=["spec"])
@nox.parametrize("library", [nox.param(name, id=name) for name in SUBJECTS])
def spec(session: nox.Session, library: str) -> None:
    """The specification on one library alone, which has to be there."""
    subjects = SUBJECTS[library]
    session.install("-e", ".[test]", *subjects.packages)
    chosen = [f"--subject={name}" for name in subjects.names]
    run_tests(session, library, "spec", *chosen)


@nox.session(tags=["backends"])
def weights(session: nox.Session) -> None:
    """Files and parameters that other libraries write; their guides."""
    peers = ("torch==2.13.0", "flax", "equinox", "keras", "onnxruntime")
    session.install("-e", ".[test,io]", *peers)
    if sys.platform == "linux":
        session.install("mlx[cpu]")
    run_tests(session, "torch,jax", "-k", "test_io or test_onnxruntime or from_ or onnx.md")


@nox.session(tags=["fuzz"])
def fuzz(session: nox.Session) -> None:
    """What reads files of weights, for two minutes or as long as libFuzzer is told after ``--``."""
    session.install("-e", ".[test,io]")
    try:
        session.install("atheris")
    except CommandFailed:
        session.skip("atheris has no wheel for this Python and machine, and could not be built")
    limits = ("-max_total_time=120", "-max_len=20000")
    session.run("python", "-m", "tests.fuzz_weights", *limits, *session.posargs)


@nox.session(tags=["sanitizers"])
@nox.parametrize("sanitizer", ["address,undefined", "thread"])
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """The compiled kernel's tests under GCC's sanitizers, with threads for the smallest problems too."""
    flags = f"-fsanitize={sanitizer} -fno-omit-frame-pointer -g"
    build = {"CFLAGS": f"{flags} -DXPLSTM_ALWAYS_THREADS", "LDFLAGS": flags}
    # A copy, because the tests find the source tree before an installed package.
    tree = Path(session.create_tmp()) / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("xplstm", "spec", "tests"):
        shutil.copytree(name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, tree)
    session.chdir(tree)
    session.install("--editable", ".[test]", env=build)
    names = {"address,undefined": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}[sanitizer]
    found = [session.run("gcc", f"-print-file-name={name}", silent=True, external=True) for name in names]
    preload = " ".join(str(path).strip() for path in found)
    env = {
        **ONE_THREAD,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "report_thread_leaks=0 die_after_fork=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "XPLSTM_NUM_THREADS": "3",
        "XPLSTM_REQUIRE": "native",
    }
    # Python's own address space layout is what ThreadSanitizer cannot live with on some kernels.
    tests = ("tests/test_native.py", "tests/test_steps.py")
    session.run("setarch", "-R", "pytest", *tests, *session.posargs, env=env, external=True)


@nox.session(tags=["benchmarks"])
def instructions(session: nox.Session) -> None:
    """Instruction counts of the compiled kernel, held against those stated; needs valgrind."""
    if shutil.which("valgrind") is None:
        session.skip("valgrind is not installed")
    session.install("-e", ".[test]")
    env = {**ONE_THREAD, "XPLSTM_REQUIRE": "native", "XPLSTM_INSTRUCTIONS": "1"}
    session.run("pytest", "tests/benchmarks/test_instructions.py", *session.posargs, env=env)


@nox.session(tags=["sources"])
def cuda_sources(session: nox.Session) -> None:
    """The CUDA sources, compiled by NVRTC for every GPU they are for; needs no GPU."""
    session.install(".", "nvidia-cuda-nvrtc")
    session.run("python", "-m", "tests.cuda_sources")


@nox.session(tags=["sources"])
def emulation(session: nox.Session) -> None:
    """The CUDA kernels emulated on the processor, with what takes long: more cuts, and ThreadSanitizer."""
    session.install("-e", ".[test]")
    files = ("tests/test_cupy_emulated.py", "tests/test_cuda_training.py")
    session.run("pytest", *files, *session.posargs, env={**ONE_THREAD, "XPLSTM_THOROUGH": "1"})


@nox.session(python=["3.11", "3.12"], tags=["versions"])
def oldest(session: nox.Session) -> None:
    """The oldest NumPy and array-api-compat that pyproject.toml allows."""
    session.install("-e", ".[test]", "numpy==1.26.*", "array-api-compat==1.13.*")
    run_tests(session, "numpy,numpy_readonly")


@nox.session(python=["3.11", "3.12", "3.13"], tags=["versions"])
def python(session: nox.Session) -> None:
    """Every supported Python."""
    session.install("-e", ".[test]")
    run_tests(session, HOST_BACKENDS)


@nox.session(python=["3.13t", "3.14t"], tags=["versions"])
def free_threading(session: nox.Session) -> None:
    """Pythons without the global interpreter lock."""
    session.install("-e", ".[test]")
    run_tests(session, HOST_BACKENDS)


@nox.session(tags=["gpu"])
def cupy(session: nox.Session) -> None:
    """CuPy on a CUDA device; without one skipped, or failed under XPLSTM_REQUIRE=cupy."""
    version = cuda_version()
    if version is None:
        reason = "the CUDA driver shows no device, so that nothing of CuPy is tested"
        if "cupy" in os.environ.get("XPLSTM_REQUIRE", ""):
            session.error(f"XPLSTM_REQUIRE asks for cupy: {reason}")
        session.skip(reason)
    session.install("-e", f".[test,cuda{version}]")
    # The emulated kernels stand in for CuPy, which is here itself.
    options = ("-k", "cupy", "--ignore=tests/test_cupy_emulated.py")
    # What is required is chosen though no GPU has run it; the second leaves to one what both can run.
    for kernels in ("cupy_persistent,cupy_fused", "cupy_fused"):
        run_tests(session, f"cupy,{kernels}", *options, workers="0")


def cuda_version() -> int | None:
    """Newest major CUDA version with a CuPy wheel that the driver serves; None without a device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if failed or count.value == 0 or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return min(13, version.value // 1000) if version.value >= 12000 else None
