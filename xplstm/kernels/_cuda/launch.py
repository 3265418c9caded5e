"""Compile and launch the CUDA sources with CuPy.

All work runs on the current device and stream, without synchronisation. CuPy is
imported when a kernel runs, never to find out whether it is installed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xplstm._typing import CuPyArray

SOURCES = Path(__file__).parent
HEADERS = ("primitives.cuh", "functions.cuh", "layer.cuh")


class Constants(NamedTuple):
    """Constants that the sources and the launches share. Each is a macro with its name in the sources."""

    WARP: int = 32
    THREADS: int = 128
    """Largest number of threads of a block of fused.cu."""
    RUN_THREADS: int = 256
    """Number of threads of a block of sum_runs."""
    TRAINING_THREADS: int = 256
    """Largest number of threads of a block of training.cu."""
    TABLE: int = 32
    """Largest number of arrays of one launch of training.cu."""
    WALK_THREADS: int = 256
    """Number of threads of a block of a persistent kernel and of project.cu."""
    POLLS: int = 64
    """Number of reads of a counter between two reads of the clock."""
    BLOCK_OF_K: int = 128
    """Number of terms of one chain of fused multiply-adds."""
    LANE_ROWS: int = 4
    """Number of rows of a lane of persistent.cu."""
    TILE_ROWS: int = 16
    """Number of rows of an mma instruction."""
    STEP_BYTES: int = 32
    """Bytes of a row along k that an mma instruction reads."""
    PROJECT_TILE: int = 64
    PROJECT_STAGED: int = 16


CONSTANTS = Constants()
DEFINES = tuple(f"-D{name}={value}" for name, value in CONSTANTS._asdict().items())
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Item size of each supported dtype, in bytes."""
KINDS = {**SIZES, "tf32": 4}
"""Item size of each kind for which a kernel is compiled: the dtypes, and float32 with TF32 products."""
WALK = ("persistent.cu", "persistent_mma.cu")


def parts(name: str) -> tuple[str, ...]:
    """Return the names of the files of a source, in order."""
    cell = ("cell.cuh",) if name in ("fused.cu", *WALK) else ()
    walk = ("walk.cuh",) if name in WALK else ()
    return (*HEADERS, *cell, *walk, name)


@cache
def source(name: str) -> str:
    """Return a source as one text, because CuPy's kernel cache does not track includes."""
    return "\n".join((SOURCES / part).read_text(encoding="utf-8") for part in parts(name))


@cache
def kernel(file: str, name: str, kind: str, cooperative: bool = False) -> Any:
    """Return the kernel `name` of a file for one kind; the first launch on a device compiles it."""
    return _module(file, kind, cooperative, _entry(name) if file in WALK else None).get_function(name)


def _entry(name: str) -> int:
    """Return the number of a kernel of a persistent source, as walk.cuh numbers its entries."""
    return int(name.rpartition("_")[2]) + (100 if "back" in name else 0) + (200 if "alone" in name else 0)


@cache
def _module(file: str, kind: str, cooperative: bool, only: int | None) -> Any:
    import cupy as cp

    options = (f"-D{kind.upper()}", *DEFINES, *(() if only is None else (f"-DONLY={only}",)))
    return cp.RawModule(code=source(file), options=options, enable_cooperative_groups=cooperative)


def wide(dtype: str) -> str:
    """Return the name of the accumulation dtype of a dtype or kind."""
    return "float64" if dtype == "float64" else "float32"


def fields(spec: str) -> np.dtype:
    """Return the dtype of a struct of pointers and 64-bit integers; `name:n` is an array of length n."""
    parts = (part.partition(":") for part in spec.split())
    return np.dtype([(name, np.int64, (int(n),)) if n else (name, np.int64) for name, _, n in parts])


def struct(dtype: np.dtype, **values: Any) -> np.ndarray:
    """Fill a struct for a launch: arrays become addresses, None becomes null, a list fills an array field."""
    packed = np.zeros(1, dtype)
    for name, value in values.items():
        if isinstance(value, list):
            packed[name][0, : len(value)] = value
        else:
            packed[name] = address(value) if hasattr(value, "data") else (0 if value is None else value)
    return by_value(packed)


def by_value(packed: np.ndarray) -> np.ndarray:
    """Return the same memory without fields, as the argument of a launch.

    With fields, NumPy would build a description at every launch, which takes longer than the launch.
    """
    return packed.view(f"V{packed.nbytes}")


def address(a: CuPyArray) -> int:
    """Return the address of the first element of `a` in device memory."""
    return int(a.data.ptr)
