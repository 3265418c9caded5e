"""Inspect the compiled CUDA sources: parameters of each kernel, and instructions of the walks.

nvdisasm, from the package nvidia-cuda-nvdisasm, lists the instructions. The emulation checks every launch
against its parameter sizes, which must be those of the compiled kernels.
"""

from __future__ import annotations

import collections
import ctypes
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.cuda_emulation import compiled

ENTRY = re.compile(rb"\.entry (\w+)\((.*?)\)", re.DOTALL)
POINTER = rb"(?: \.ptr(?: \.global)?(?: \.align \d+)?)?"
PARAMETER = re.compile(rb"\.param (?:\.align \d+ )?\.([bsuf])(\d+)" + POINTER + rb" \w+(?:\[(\d+)\])?")
FUNCTION = re.compile(r"^\.text\.(\w+):$", re.MULTILINE)
OPERATION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.MULTILINE)


class Bound(NamedTuple):
    """Largest number of an instruction in a walk."""

    operation: str
    most: int
    why: str


FORWARD = (
    Bound("FCHK", 0, "an IEEE division has a branch, so that the activations of a cell do not overlap"),
    Bound("CALL", 0, "a function call waits for all that is under way"),
)
MMA = (*FORWARD, Bound("BSSY", 45, "weights that are loaded in branches are loaded one after another"))
BOUNDS = {"persistent.cu": {"float32": FORWARD}, "persistent_mma.cu": dict.fromkeys(("float16", "tf32"), MMA)}
"""For the kinds of numbers whose walks are listed: by them the others are known."""
ARCHITECTURE = 90
SHOWN = ("FCHK", "CALL", "BSSY", "MUFU", "LDS", "STS", "LDG", "LDGSTS", "BAR")


def disassembler() -> Path:
    """Return the path of nvdisasm, which needs no GPU."""
    for file in importlib.metadata.files("nvidia-cuda-nvdisasm") or []:
        if file.name in ("nvdisasm", "nvdisasm.exe"):
            return Path(str(file.locate()))
    sys.exit("no nvdisasm is here: pip install nvidia-cuda-nvdisasm")


def parameters(ptx: bytes) -> dict[str, list[int]]:
    """Return the sizes of the parameters of each kernel, in bytes."""
    found = {}
    for name, text in ENTRY.findall(ptx):
        sizes = PARAMETER.findall(text)
        found[name.decode()] = [int(bits) // 8 * int(count or 1) for _, bits, count in sizes]
    return found


def emulated_parameters(file: str, kind: str) -> dict[str, list[int]]:
    """Return the sizes of the parameters in the emulation."""
    library, found = compiled.library(file, kind), {}
    for name in compiled.names(file, kind):
        sizes = (ctypes.c_uint * 64)()
        found[name] = list(sizes[: getattr(library, f"arguments_{name}")(sizes)])
    return found


def counts(cubin: bytes) -> dict[str, collections.Counter[str]]:
    """Return the number of each operation in each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "module.cubin"
        file.write_bytes(cubin)
        command = [str(disassembler()), "-c", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *parts = FUNCTION.split(text)
    return {
        name: collections.Counter(OPERATION.findall(body))
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def beyond(file: str, kind: str, found: dict[str, collections.Counter[str]]) -> list[str]:
    """Return the walks with more of an instruction than allowed."""
    bounds = BOUNDS[file][kind]
    return [
        f"{file} {kind} {name}: {count[bound.operation]} {bound.operation}, at most {bound.most}: {bound.why}"
        for name, count in found.items()
        for bound in bounds
        if count[bound.operation] > bound.most
    ]
