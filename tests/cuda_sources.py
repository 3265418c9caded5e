"""Compile every CUDA source for every supported GPU without a GPU: ``python -m tests.cuda_sources``.

CuPy generates the sources of elementwise kernels, and the calls of CuPy are compared with its own signatures.
NVRTC compiles with the options of CuPy. A warning is an error. A kernel also fails if it has more registers
or spilled bytes than its bound, float64 arithmetic in half precision, other parameter sizes than the
emulation, or a forbidden instruction in its loop.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import sys
from itertools import product
from typing import NamedTuple

from tests import cuda_binaries, cupy_signatures, elementwise_sources
from xplstm.kernels._cuda import launch

# Options that CuPy 14 passes to NVRTC, and options that make warnings errors.
OPTIONS = (
    "-std=c++17",
    "-ftz=true",
    "--device-as-default-execution-space",
    "-Werror=all-warnings",
    "--ptxas-options=-v",
)


class Source(NamedTuple):
    """File with its GPUs and dtypes, and the limits of a thread."""

    name: str
    architectures: tuple[int, ...]
    registers: int
    spilled: int = 0
    """Bytes."""
    kinds: tuple[str, ...] = tuple(launch.SIZES)


SOURCES = (
    Source("fused.cu", (75, 80, 90, 100, 120), 72),
    Source("training.cu", (75, 80, 90, 100, 120), 72),
    Source("persistent.cu", (80, 90, 100, 120), 184, kinds=("float64", "float32")),
    # All 255 registers, 128 of them for weights. Spilled registers are read once per step, or at the start.
    Source("persistent_mma.cu", (80, 90, 100, 120), 255, 192, kinds=("float16", "bfloat16", "tf32")),
    Source("project.cu", (80, 90, 100, 120), 184),
    Source("trial.cu", (75, 80, 90, 100, 120), 72, kinds=("float32",)),
)

# Limits of the kernels that CuPy generates from recorded steps.
ELEMENTWISE_REGISTERS = 72

FORWARD = re.compile(r"walk_(alone_)?\d+|project_input|forward_\w+")
FLUSHED = re.compile(rb"\b(?:neg|add|sub|mul|fma|div|sqrt)(?:\.\w+)*\.ftz\.f32")

REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Use(NamedTuple):
    """Resources of one kernel on one GPU."""

    name: str
    stack: int
    stores: int
    loads: int
    registers: int


def library() -> ctypes.CDLL:
    """Load NVRTC from the package nvidia-cuda-nvrtc."""
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        # NVRTC loads this library, which must be loaded first.
        found = sorted(
            (f for f in files if re.search(r"libnvrtc(-builtins)?\.so\.\d+", f.name)),
            key=lambda f: -len(f.name),
        )
        return [ctypes.CDLL(str(f.locate()), mode=ctypes.RTLD_GLOBAL) for f in found if "alt" not in f.name][
            -1
        ]
    sys.exit("no NVRTC is here: pip install nvidia-cuda-nvrtc")


def compiled(nvrtc: ctypes.CDLL, file: str, options: tuple[str, ...]) -> tuple[str, bytes]:
    """Return NVRTC's log and the PTX."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), launch.source(file).encode(), file.encode(), 0, None, None
    )
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    log = text(nvrtc, "ProgramLog", program).decode()
    if failed:
        sys.exit(f"{file} {' '.join(options)}\n{log}")
    ptx = text(nvrtc, "PTX", program)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return log, ptx


def binary(nvrtc: ctypes.CDLL, file: str, kind: str) -> bytes:
    """Return the module for a GPU."""
    program = ctypes.c_void_p()
    options = (*OPTIONS, f"-arch=sm_{cuda_binaries.ARCHITECTURE}", f"-D{kind.upper()}", *launch.DEFINES)
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), launch.source(file).encode(), file.encode(), 0, None, None
    )
    nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    held = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, held)
    return held.raw


def text(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    held = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, held)
    return held.value


def uses(log: str) -> list[Use]:
    return [Use(m["name"], *(int(m[key]) for key in Use._fields[1:])) for m in REPORT.finditer(log)]


def flushes(ptx: bytes) -> list[str]:
    """Return the operations of forward kernels that flush subnormals; they must match the CPU's bits."""
    found = []
    for entry in ptx.split(b".entry ")[1:]:
        name = entry.partition(b"(")[0].decode()
        flushed = {word.decode() for word in FLUSHED.findall(entry)}
        if FORWARD.fullmatch(name) and flushed:
            found.append(f"{name}: {', '.join(sorted(flushed))}")
    return found


def main() -> int:
    nvrtc, wrong = library(), []
    for source in SOURCES:
        for architecture in source.architectures:
            for kind in source.kinds:
                options = (*OPTIONS, f"-arch=sm_{architecture}", f"-D{kind.upper()}", *launch.DEFINES)
                log, ptx = compiled(nvrtc, source.name, options)
                found, where = uses(log), f"{source.name} sm_{architecture} {kind}"
                if not found:
                    wrong.append(f"{where}: the compiler reports no kernel: {log}")
                for use in found:
                    spilled = use.stores + use.loads
                    line = f"{where} {use.name}: {use.registers} registers, {spilled} bytes spilled"
                    print(line)
                    if use.registers > source.registers or spilled > source.spilled:
                        wrong.append(f"{line}; the bounds are {source.registers} and {source.spilled}")
                if "16" in kind and re.search(rb"\w\.f64\b", ptx):
                    wrong.append(f"{where}: arithmetic in float64")
                wrong += [f"{where} {line}" for line in flushes(ptx)]
                sizes = cuda_binaries.parameters(ptx), cuda_binaries.emulated_parameters(source.name, kind)
                if sizes[0] != sizes[1]:
                    wrong.append(f"{where}: parameters of {sizes[0]} bytes, emulated {sizes[1]}")
    for file, kinds in cuda_binaries.BOUNDS.items():
        for kind in kinds:
            found_in = cuda_binaries.counts(binary(nvrtc, file, kind))
            for name, count in found_in.items():
                listed = ", ".join(f"{count[op]} {op}" for op in cuda_binaries.SHOWN)
                print(f"{file} sm_{cuda_binaries.ARCHITECTURE} {kind} {name}: {listed}")
            wrong += cuda_binaries.beyond(file, kind, found_in)
    wrong += elementwise(nvrtc) + cupy_signatures.wrong()
    print("\n".join(wrong))
    return len(wrong) > 0


def elementwise(nvrtc: ctypes.CDLL) -> list[str]:
    """Return the errors of the kernels that CuPy generates from recorded steps."""
    wrong = []
    # CuPy's headers cause warnings of their own.
    options = (*(o for o in OPTIONS if "Werror" not in o), *elementwise_sources.include())
    cases = ("float32", True, 75), ("float64", False, 90), ("float32", False, 120)
    for (name, kernel), (dtype, contiguous, architecture) in product(elementwise_sources.kernels(), cases):
        code = elementwise_sources.source(kernel, dtype, contiguous)
        done, log = elementwise_sources.log_of(nvrtc, code, (*options, f"-arch=sm_{architecture}"))
        found, where = uses(log), f"elementwise {name} sm_{architecture} {dtype}"
        if not done or len(found) != 1:
            wrong.append(f"{where}: {log}")
            continue
        spilled = found[0].stores + found[0].loads
        line = f"{where}: {found[0].registers} registers, {spilled} bytes spilled"
        print(line)
        if spilled or found[0].registers > ELEMENTWISE_REGISTERS:
            wrong.append(f"{line}; the bounds are {ELEMENTWISE_REGISTERS} and 0")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
