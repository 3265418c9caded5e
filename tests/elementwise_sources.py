"""Compile the recorded elementwise kernels with the sources and headers of CuPy and NVRTC, without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xplstm import Variant
from xplstm.cells import Cell, Sizes
from xplstm.cells.gru import GRUCell
from xplstm.cells.lstm import STANDARD
from xplstm.cells.variant import lstm_cell
from xplstm.kernels._cuda.program import Kernel, compile_kernel
from xplstm.kernels.cupy_elementwise import Form, record

FUNCTIONS = ("elu", "softsign", "softplus", "leaky_relu", "scaled_tanh", "hard_sigmoid", "thresholded_relu")
CELLS: dict[str, Cell] = {
    "lstm": STANDARD,
    "peepholes": lstm_cell(Variant(peepholes=True, coupled=True, gate_clip=3.0, cell_clip=3.0), 1),
    **{name: lstm_cell(Variant(activations=(name,) * 3), 1) for name in FUNCTIONS},
    "gru": GRUCell(),
    "gru_reset_before": GRUCell(reset_after=False),
}
H, P = 24, 8
# Text that CuPy writes before an elementwise kernel, and the kinds of arguments in its enumeration.
HEADERS = "".join(f"#include <cupy/{name}>\n" for name in ("complex.cuh", "carray.cuh", "atomics.cuh"))
NDARRAY, INDEXER = 1, 2


def kernels() -> Iterator[tuple[str, Kernel]]:
    for name, cell in CELLS.items():
        for projection in (0, P) if name == "lstm" else (0,):
            shapes = tuple(cell.shapes(Sizes(1, H, projection, True)).items())
            for masked in (False, True):
                recorded = record(Form(cell, shapes, H, projection or H, masked, resets=masked))
                for part in ("forward", "infer", "backward"):
                    for step in getattr(recorded, part).steps:
                        if isinstance(step, Kernel):
                            yield f"{name} {part}{' masked' if masked else ''}", step


def source(kernel: Kernel, dtype: str, contiguous: bool) -> str:
    """Return CuPy's source for arrays of this dtype, contiguous and with 32-bit indices, or not."""
    import cupy
    from cupy._core import _carray, _kernel

    made: Any = compile_kernel(kernel)
    arguments = [
        _kernel._ArgInfo(INDEXER, _carray.Indexer, None, 1, True, contiguous)
        if p.name == "_ind"
        else _kernel._ArgInfo(
            NDARRAY, cupy.ndarray, np.dtype(dtype if p.ctype == "T" else p.dtype), 2, contiguous, contiguous
        )
        for p in made.params
    ]
    types = _kernel._TypeMap((("T", np.dtype(dtype).type),))
    code: str = _kernel._get_elementwise_kernel_code(
        tuple(arguments), types, made.params, made.operation, made.name, made.preamble, "", "", ()
    )
    return HEADERS + code


def include() -> tuple[str, ...]:
    """Return the options for the folders of CuPy's headers."""
    from cupy._core import core

    folder = Path(core.__file__).parent / "include"
    return tuple(f"-I{path}" for path in (folder, *sorted((folder / "cupy" / "_cccl").iterdir())))


def log_of(nvrtc: ctypes.CDLL, code: str, options: tuple[str, ...]) -> tuple[bool, str]:
    """Return whether NVRTC compiled the code, and its log."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"elementwise.cu", 0, None, None)
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return not failed, log.value.decode()
