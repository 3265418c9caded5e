"""Compile the CUDA sources as C++20 with primitives.hpp: one library for each file and dtype."""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from xplstm.kernels._cuda import launch

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++20",
    "-O1",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-pthread",
)
extra: tuple[str, ...] = ()
"""Further flags of every library, such as a sanitizer's."""
AS_NVRTC = ("-DFLUSH", "-mfma", "-ffp-contract=fast")
"""C++ as CuPy has it compiled: subnormal numbers are flushed, and products and sums contracted."""
faults: tuple[tuple[str, str], ...] = ()
"""Texts of the sources, and what replaces them: kernels that are wrong on purpose."""

INCLUDES = re.compile(r"^\s*#include <[^>]+>", re.MULTILINE)
NAMES = re.compile(r"__global__\s+void\s+(?:(?:__launch_bounds__\([^)]*\)|BOUNDS)\s+)?(\w+)\s*\(")


@cache
def compiler() -> str | None:
    """Return a compiler that supports the threads of C++20, if one is installed."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(
            "#include <atomic>\nint main() { std::atomic<int> a(0); a.notify_all(); return 0; }\n"
        )
        for name in (os.environ.get("CXX"), "g++", "clang++"):
            if name and shutil.which(name):
                command = [name, "-std=c++20", "-pthread", str(source), "-o", str(Path(folder) / "probe")]
                if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                    return name
    return None


@cache
def sanitizer() -> str | None:
    """Return the path of ThreadSanitizer's library, if one can be preloaded."""
    name = compiler()
    if name is None:
        return None
    found = subprocess.run([name, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=False)
    path = found.stdout.strip()
    env = {**os.environ, "LD_PRELOAD": path}
    runs = (
        os.path.isabs(path)
        and subprocess.run(["true"], env=env, capture_output=True, check=False).stderr == b""
    )
    return path if runs else None


def text(file: str, kind: str) -> str:
    """Return the sources with primitives.hpp instead of primitives.cuh, and code that calls the kernels."""
    sources = sources_of(file)
    calls = (f"EXPORT({name})" for name in names(file, kind))
    return "\n".join(((HERE / "primitives.hpp").read_text(encoding="utf-8"), sources, *calls))


def sources_of(file: str) -> str:
    """Return all sources except primitives.cuh, with the faults of the current test."""
    gpu, *others = launch.parts(file)
    assert gpu == "primitives.cuh"
    sources = "\n".join((launch.SOURCES / part).read_text(encoding="utf-8") for part in others)
    for right, wrong in faults:
        sources = sources.replace(right, wrong)
    return sources


def names(file: str, kind: str, *options: str) -> list[str]:
    """Return the kernels of a file for one dtype and these options."""
    command = [str(compiler()), "-E", f"-D{kind.upper()}", *launch.DEFINES, *options, "-x", "c++", "-"]
    done = subprocess.run(command, input=sources_of(file), capture_output=True, text=True, check=True)
    return NAMES.findall(done.stdout)


def build(file: str, kind: str) -> Path:
    """Return the path of the shared library, built once for each content."""
    options = (*FLAGS, f"-D{kind.upper()}", *launch.DEFINES, *extra)
    return shared(f"{Path(file).stem}-{kind}", text(file, kind), options)


def shared(stem: str, content: str, options: tuple[str, ...] = FLAGS) -> Path:
    """Return the path of the shared library of a source, built once for each content."""
    options = (*options, "-fPIC")
    path = made(stem, ".so", content, options)
    if not path.exists():
        compile_to(path, content, "-shared", "-include", str(headers(content, options)), *options)
    return path


def headers(content: str, options: tuple[str, ...]) -> Path:
    """Return the path of the standard headers of a source, precompiled once for equal includes."""
    lines = "\n".join(INCLUDES.findall(content))
    options = tuple(option for option in options if not option.startswith("-D"))
    path = made("headers", ".hpp", lines, options)
    precompiled = path.with_suffix(".hpp.gch")
    if not precompiled.exists():
        path.write_text(lines)
        compile_to(precompiled, lines, "-x", "c++-header", *options)
    return path


def made(stem: str, ending: str, content: str, options: tuple[str, ...]) -> Path:
    """Return the path of an output, which depends on content, compiler and options."""
    mark = hashlib.sha256(repr((compiler(), content, options)).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"xplstm-emulation-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{stem}-{mark}{ending}"


def compile_to(path: Path, content: str, *options: str) -> None:
    """Compile a source to a file, which is renamed when it is complete."""
    name = compiler()
    assert name is not None
    with tempfile.TemporaryDirectory(dir=path.parent) as fresh:
        source, whole = Path(fresh) / "source.cpp", Path(fresh) / "made"
        source.write_text(content)
        subprocess.run([name, *options, str(source), "-o", str(whole)], check=True)
        whole.rename(path)


def library(file: str, kind: str) -> ctypes.CDLL:
    return _library(file, kind, faults, extra)


@cache
def _library(file: str, kind: str, *_: tuple[Any, ...]) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(file, kind)))


@contextmanager
def with_options(*options: str) -> Iterator[None]:
    """Compile with further options."""
    global extra
    before, extra = extra, (*extra, *options)
    try:
        yield
    finally:
        extra = before


@contextmanager
def faulty(*pairs: tuple[str, str]) -> Iterator[None]:
    """Compile sources in which the second text of each pair replaces the first."""
    global faults
    for right, _ in pairs:
        assert any(right in path.read_text(encoding="utf-8") for path in launch.SOURCES.glob("*.cu*")), right
    faults, before = (*faults, *pairs), faults
    try:
        yield
    finally:
        faults = before
