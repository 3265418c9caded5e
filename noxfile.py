"""Sessions of nox: by default the checks of every change, by name or tag other libraries and versions."""

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
# The tests come last, so that the table of backends is the last thing printed before nox's own summary.
nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.reuse_venv = "yes"
# A missing Python is skipped, because few machines have every version.
nox.options.error_on_missing_interpreters = False

GROUPS = nox.project.load_toml("pyproject.toml")["dependency-groups"]
# pytest-xdist starts a process for each core. A BLAS with all cores in each process would be much slower.
ENVIRONMENT = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
# Tests start Python many times. Where no bytecode may be stored, each start compiles all modules.
ENVIRONMENT["PYTHONDONTWRITEBYTECODE"] = ""
HOST_BACKENDS = "numpy,numpy_readonly,array_api_strict"
# The tests of the specification's own tools, which a change of the package seldom concerns.
SPEC_TOOLS = [
    f"spec/test_{tool}.py"
    for tool in ("diagnosis", "exact", "generate", "mutants", "package", "served", "stdio", "suite")
]
# The tests that run the CUDA kernels on the CPU, `prove`, and the GPU benchmark.
EMULATED = [f"tests/kernels/test_{name}.py" for name in ("cupy_emulated", "cuda_training", "waits")]
EMULATED += ["tests/cli/test_prove.py", "tests/benchmarks/gpu/test_gpu_bench.py"]
# The versions that the conformance page is of. They change together with it.
VERSIONS = {
    "ai-edge-litert": "2.3.0",
    "array-api-compat": "1.16.0",
    "array-api-strict": "2.6.1",
    "dask[array]": "2026.8.0",
    "flax": "0.12.8",
    "jax": "0.10.2",
    "keras": "3.15.1",
    "mlx[cpu]": "0.32.4",
    "numpy": "2.4.6",
    "onnx": "1.23.2",
    "onnxruntime": "1.32.0",
    "openvino": "2026.4.1",
    "tensorflow-cpu": "2.21.0",
    "tinygrad": "0.14.0",
    "torch": "2.13.0",
}


def pinned(*packages: str) -> list[str]:
    """Return requirements of these packages in the versions of the conformance page."""
    return [f"{package}=={VERSIONS[package]}" for package in packages]


def fetch(session: nox.Session, *packages: str, **env: str) -> None:
    """Install packages without compiling their Python, which takes longer than all else; imports do it."""
    session.install("--no-compile", *packages, env=env)


def install(session: nox.Session, *packages: str) -> None:
    """Install the clone, and compile its kernel only if no earlier session did."""
    fetch(session, "-e", *packages, XPLSTM_KEEP_BUILD="1")


def run_short_tests(session: nox.Session, require: str) -> None:
    """Run the tests but those that have sessions of their own: `slow`, `spec_tools` and `emulation`."""
    run_tests(session, require, "-m", "not slow", *(f"--ignore={path}" for path in SPEC_TOOLS + EMULATED))


def run_tests(session: nox.Session, require: str, *options: str, workers: str = "auto") -> None:
    """Run the tests and the specification; fail if a library in `require` cannot run."""
    # Only an editable install builds the kernel `native` where the tests find it.
    native = ",native" if shutil.which(os.environ.get("CC", "cc").partition(" ")[0]) else ""
    env = {**ENVIRONMENT, "XPLSTM_REQUIRE": require + native}
    # Idle workers steal tests from busy ones.
    session.run("pytest", "-n", workers, "--dist", "worksteal", *options, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and wording of Python, C, CUDA and documents."""
    session.log("about ten seconds on two cores")
    fetch(session, *GROUPS["lint"])
    sources = [str(p) for p in Path("xplstm/kernels").glob("_*/*") if p.suffix in (".c", ".h", ".cu", ".cuh")]
    session.run("clang-format", "--dry-run", "-Werror", *sources)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("python", "-m", "tests.words")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strict."""
    session.log("about half a minute on two cores")
    fetch(session, *GROUPS["types"])
    session.run("mypy", "--num-workers", "auto")
    session.run("pytest", "--noconftest", "tests/types")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the short tests, and the specification, on NumPy, read-only NumPy and array-api-strict."""
    session.log("two to four minutes on two cores, after half a minute of installation")
    install(session, ".[test,guides]")
    run_short_tests(session, HOST_BACKENDS)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that `tests` leaves out because they take long, and the guides that train models."""
    install(session, ".[test,guides]")
    run_tests(session, "numpy", "-m", "slow", "tests", *(f"--ignore={path}" for path in EMULATED))


@nox.session(tags=["spec"])
def spec_tools(session: nox.Session) -> None:
    """Test the specification itself, and ask every kernel all calls and relations."""
    install(session, ".[test]")
    run_tests(session, "numpy", *SPEC_TOOLS)
    # The default session asks a part.
    files = (f"spec/test_{name}.py" for name in ("gru", "relations", "sized"))
    run_tests(session, "numpy", *files, "--subject=xplstm:numpy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in docs/_build/html; a warning is an error."""
    session.log("about half a minute on two cores")
    # No page needs the compiled kernel, which takes as long to build as all pages.
    fetch(session, ".[docs]", XPLSTM_PURE="1")
    session.run("sphinx-build", "-j", "auto", "-W", "--keep-going", "-n", "-q", "docs", "docs/_build/html")


@nox.session(tags=["docs"])
def notebooks(session: nox.Session) -> None:
    """Run the notebooks of the guides."""
    install(session, ".[guides,docs]", "nbclient", "ipykernel")
    session.run("python", "docs/notebooks.py", "docs/_build/notebooks", env=ENVIRONMENT)


@nox.session(tags=["backends"])
def torch(session: nox.Session) -> None:
    """Run the tests that use PyTorch, as array library and as reference."""
    install(session, ".[test]", *pinned("torch"))
    run_tests(session, "torch", "--backend", "torch")


@nox.session(tags=["backends"])
def jax(session: nox.Session) -> None:
    """Run the tests that use JAX."""
    install(session, ".[test]", "jax")
    # Compiling takes most of the time. The processes, and later runs, share the compiled programs.
    session.env["JAX_COMPILATION_CACHE_DIR"] = str(session.cache_dir.absolute() / "jax")
    session.env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    session.env["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    run_tests(session, "jax", "--backend", "jax")


@nox.session(tags=["backends"])
def dask(session: nox.Session) -> None:
    """Run the tests that use Dask."""
    install(session, ".[test,dask]")
    run_tests(session, "dask", "--backend", "dask")


@nox.session(tags=["backends"])
def mpi(session: nox.Session) -> None:
    """Train on 2, 3 and 4 processes of MPI, whose library comes from PyPI."""
    install(session, ".[test,mpi]", "mpich")
    run_tests(session, "numpy", "tests/training/test_transports.py", "-rs", workers="0")


class Subjects(NamedTuple):
    """Subjects of the specification that need the same packages."""

    names: tuple[str, ...]
    packages: tuple[str, ...] = ()


SUBJECTS = {
    "numpy": Subjects(("xplstm:numpy", "xplstm:numpy_readonly")),
    "array_api_strict": Subjects(("xplstm:array_api_strict",)),
    "torch": Subjects(("xplstm:torch", "torch", "torch_autocast"), ("torch",)),
    "jax": Subjects(("xplstm:jax", "jax"), ("jax",)),
    "dask": Subjects(("xplstm:dask",), ("dask[array]",)),
    "onnx": Subjects(("onnx",), ("onnx",)),
    "onnxruntime": Subjects(("onnxruntime",), ("onnx", "onnxruntime")),
    "openvino": Subjects(("openvino",), ("onnx", "openvino")),
    "litert": Subjects(("litert",), ("ai-edge-litert",)),
    "flax": Subjects(("flax", "flax_lstm_cell"), ("flax",)),
    "keras": Subjects(("keras",), ("keras", "torch")),
    "mlx": Subjects(("mlx",), ("mlx[cpu]",)),
    "tensorflow": Subjects(("tensorflow",), ("tensorflow-cpu",)),
    "tinygrad": Subjects(("tinygrad",), ("tinygrad",)),
}


@nox.session(tags=["spec"])
@nox.parametrize("library", [nox.param(name, id=name) for name in SUBJECTS])
def spec(session: nox.Session, library: str) -> None:
    """Run the specification on one library, which must be installed."""
    subjects = SUBJECTS[library]
    install(session, ".[test]", *pinned(*subjects.packages))
    chosen = [f"--subject={name}" for name in subjects.names]
    run_tests(session, library, "spec", *chosen)


@nox.session(tags=["report"])
def conformance(session: nox.Session) -> None:
    """Write the conformance page from one environment with all subjects; 1 to 2 hours, more with Clang."""
    install(session, ".[test]", *pinned(*VERSIONS))
    # A second run asks again only the subjects whose adapter, list or version has changed.
    kept = Path(session.create_tmp()).absolute() / "kept"
    session.run("python", "-m", "spec", "report", "--kept", str(kept), *session.posargs, env=ENVIRONMENT)


@nox.session(tags=["backends"])
def weights(session: nox.Session) -> None:
    """Test files and parameters of other libraries, and their guides."""
    peers = ("flax", "equinox", "keras", "onnxruntime")
    install(session, ".[test,io]", *pinned("torch"), *peers)
    if sys.platform == "linux":
        fetch(session, "mlx[cpu]")
    run_tests(session, "torch,jax", "tests/io", "tests/docs/test_docs.py")


@nox.session(tags=["published"])
def published(session: nox.Session) -> None:
    """Compare networks that packages on PyPI contain with the libraries that made them."""
    install(session, ".[test,io]", *pinned("torch"), "keras", "onnxruntime", "safetensors")
    # Their files are read, their code is not run: what they depend on is not needed.
    packages = ("silero-vad==6.2.3", "resemblyzer==0.1.4", "textgenrnn==2.0.0", "ethnicolr==0.4.0")
    fetch(session, "--no-deps", *packages)
    run_tests(session, "torch", "tests/io/test_published.py", "tests/io/test_io_onnx_math.py", "-rs")


@nox.session(tags=["versions"])
def package(session: nox.Session) -> None:
    """Build the source distribution and wheels; test them and an installation without a compiler."""
    install(session, ".[test]", "build")
    session.run("pytest", "tests/test_package.py", *session.posargs, env={"XPLSTM_PACKAGE": "1"})


@nox.session(tags=["fuzz"])
def fuzz(session: nox.Session) -> None:
    """Fuzz the readers of weight files for two minutes; options of libFuzzer go after ``--``."""
    install(session, ".[test,io]")
    try:
        fetch(session, "atheris")
    except CommandFailed:
        session.skip("atheris has no wheel for this Python and machine, and could not be built")
    limits = ("-max_total_time=120", "-max_len=20000")
    session.run("python", "-m", "tests.fuzz_weights", *limits, *session.posargs)


@nox.session(tags=["mutations"])
def mutations(session: nox.Session) -> None:
    """Change the package in one place at a time and count what its tests do not see; options after ``--``."""
    install(session, ".[test,io]", "coverage", *pinned("keras", "torch"))
    session.run("python", "-m", "tests.mutations", *session.posargs)


@nox.session(tags=["sanitizers"])
@nox.parametrize("sanitizer", ["address,undefined", "thread"])
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """Test the compiled kernel with GCC's sanitizers, with threads even for the smallest problems."""
    flags = f"-fsanitize={sanitizer} -fno-omit-frame-pointer -g"
    build = {"CFLAGS": f"{flags} -DXPLSTM_ALWAYS_THREADS", "LDFLAGS": flags}
    # A copy is needed, because the tests import the source tree before an installed package.
    tree = Path(session.create_tmp()) / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("xplstm", "spec", "tests"):
        shutil.copytree(name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(name, tree)
    session.chdir(tree)
    fetch(session, "--editable", ".[test]", **build)
    libraries = {"address,undefined": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}[sanitizer]
    found = [session.run("gcc", f"-print-file-name={name}", silent=True, external=True) for name in libraries]
    preload = " ".join(str(path).strip() for path in found)
    env = {
        **ENVIRONMENT,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "report_thread_leaks=0 die_after_fork=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "XPLSTM_NUM_THREADS": "3",
        "XPLSTM_REQUIRE": "native",
    }
    # ThreadSanitizer fails with address space randomisation on some Linux kernels.
    pytest = ("setarch", "-R", "pytest")
    names = ("native", "threads", "composed", "networks", "stored", "half")
    tests = [f"tests/kernels/test_{name}.py" for name in names]
    session.run(*pytest, *tests, *session.posargs, env=env, external=True)
    # The fast path of small calls needs one thread: in this build, several would share every call.
    one = env | {"XPLSTM_NUM_THREADS": "1"}
    session.run(*pytest, "tests/kernels/test_steps.py", *session.posargs, env=one, external=True)


@nox.session(tags=["benchmarks"])
def instructions(session: nox.Session) -> None:
    """Compare the instruction counts of the compiled kernel with the stated ones; needs valgrind."""
    if shutil.which("valgrind") is None:
        session.skip("valgrind is not installed")
    install(session, ".[test]")
    env = {**ENVIRONMENT, "XPLSTM_REQUIRE": "native", "XPLSTM_INSTRUCTIONS": "1"}
    session.run("pytest", "tests/benchmarks/test_instructions.py", *session.posargs, env=env)


@nox.session(tags=["sources"])
def cuda_sources(session: nox.Session) -> None:
    """Compile the CUDA sources with NVRTC for every supported GPU; needs no GPU."""
    # CuPy writes the source of its elementwise kernels without a GPU too.
    fetch(session, ".[test]", "nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm", "cupy-cuda13x")
    session.run("python", "-m", "tests.cuda_sources")


@nox.session(tags=["sources"])
def emulation(session: nox.Session) -> None:
    """Test the CUDA kernels in CPU emulation, with the long cases: more tilings, and ThreadSanitizer."""
    install(session, ".[test]")
    env = {**ENVIRONMENT, "XPLSTM_THOROUGH": "1"}
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *EMULATED, *session.posargs, env=env)


@nox.session(tags=["sources"])
def protocol(session: nox.Session) -> None:
    """Check how blocks of the persistent CUDA kernel wait for each other; needs spin and gcc."""
    if shutil.which("spin") is None or shutil.which("gcc") is None:
        session.skip("spin or gcc is not installed; both are packages of Debian")
    install(session, ".[test]")
    session.run("pytest", "tests/protocol", *session.posargs, env={"XPLSTM_THOROUGH": "1"})


@nox.session(python=["3.11", "3.12"], tags=["versions"])
def oldest(session: nox.Session) -> None:
    """Test the oldest NumPy and array-api-compat that pyproject.toml allows."""
    install(session, ".[test]", "numpy==1.26.*", "array-api-compat==1.13.*")
    run_short_tests(session, "numpy,numpy_readonly")


@nox.session(python=["3.11", "3.12", "3.13"], tags=["versions"])
def python(session: nox.Session) -> None:
    """Test every supported Python."""
    install(session, ".[test]")
    run_tests(session, HOST_BACKENDS)


@nox.session(python=["3.13t", "3.14t"], tags=["versions"])
def free_threading(session: nox.Session) -> None:
    """Test Pythons without the global interpreter lock."""
    install(session, ".[test]")
    run_tests(session, HOST_BACKENDS)


@nox.session(tags=["gpu"])
def cupy(session: nox.Session) -> None:
    """Test CuPy on a CUDA device; without one, skip, or fail if XPLSTM_REQUIRE=cupy."""
    version = cuda_version()
    if version is None:
        reason = "the CUDA driver reports no device, so CuPy is not tested"
        if "cupy" in os.environ.get("XPLSTM_REQUIRE", ""):
            session.error(f"XPLSTM_REQUIRE names cupy, but {reason}")
        session.skip(reason)
    install(session, f".[test,cuda{version}]")
    # The emulation replaces CuPy, which is installed here.
    options = ("--backend", "cupy", "--ignore=tests/kernels/test_cupy_emulated.py")
    # A required kernel is selected although no GPU has run it. The second run tests cupy_fused alone.
    for kernels in ("cupy_persistent,cupy_fused", "cupy_fused"):
        run_tests(session, f"cupy,{kernels}", *options, workers="0")


def cuda_version() -> int | None:
    """Return the newest major CUDA version with a CuPy wheel for this driver; None without a device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if failed or count.value == 0 or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return min(13, version.value // 1000) if version.value >= 12000 else None
