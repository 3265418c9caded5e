"""``python -m tests.cuda_sources`` compiles every CUDA source for every GPU it has to run on; needs no GPU.

NVRTC compiles as it does in CuPy's hands. A warning is an error, and so is a
kernel with more registers or more spilled bytes than its bound, or with arithmetic in
float64 where the numbers are of half precision.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import sys
from typing import NamedTuple

from xplstm.kernels._cuda import launch

# What CuPy 14 hands to NVRTC, and what makes it strict.
OPTIONS = (
    "-std=c++17",
    "-ftz=true",
    "--device-as-default-execution-space",
    "-Werror=all-warnings",
    "--ptxas-options=-v",
)


class Source(NamedTuple):
    """A file, the GPUs and kinds of numbers that it is for, and what a thread may take at most."""

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
    # All registers there are, 128 of them for weights; a spilled one or two are read once a step.
    Source("persistent_mma.cu", (80, 90, 100, 120), 255, 16, kinds=("float16", "bfloat16", "tf32")),
    Source("project.cu", (80, 90, 100, 120), 184),
)

REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Use(NamedTuple):
    """What one kernel takes on one GPU."""

    name: str
    stack: int
    stores: int
    loads: int
    registers: int


def library() -> ctypes.CDLL:
    """NVRTC of the package nvidia-cuda-nvrtc."""
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        # The part that it loads itself has to be there first.
        found = sorted(
            (f for f in files if re.search(r"libnvrtc(-builtins)?\.so\.\d+", f.name)),
            key=lambda f: -len(f.name),
        )
        return [ctypes.CDLL(str(f.locate()), mode=ctypes.RTLD_GLOBAL) for f in found if "alt" not in f.name][
            -1
        ]
    sys.exit("no NVRTC is here: pip install nvidia-cuda-nvrtc")


def compiled(nvrtc: ctypes.CDLL, file: str, options: tuple[str, ...]) -> tuple[str, bytes]:
    """NVRTC's log and the PTX."""
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


def text(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    held = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, held)
    return held.value


def uses(log: str) -> list[Use]:
    return [Use(m["name"], *(int(m[key]) for key in Use._fields[1:])) for m in REPORT.finditer(log)]


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
    print("\n".join(wrong))
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
