"""Read and write Equinox files: consecutive arrays without names.

A cell is recognised by its shapes: input weights, recurrent weights and biases. Shapes do not determine the
gate order, so the caller must name the format.
"""

from __future__ import annotations

import io
import os
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm.io import _registry
from xplstm.io._contents import Contents, Opening, Tensor, by_name
from xplstm.io.files import npz
from xplstm.io.layouts.single import EQUINOX
from xplstm.nn._module import Recurrent

SUFFIXES = (".eqx",)
LAYOUT = "equinox"

# Largest number of leaves of a module.
MOST = 100_000


class _Array(NamedTuple):
    """Header of an array in the file."""

    start: int
    """Offset of its data."""
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def recognises(opening: Opening) -> bool:
    """Return whether a file begins with an array."""
    return opening.head.startswith(b"\x93NUMPY")


def read(path: str) -> Contents:
    """Return arrays by their index; the arrays of a cell by the index of the first and their names."""
    with open(path, "rb") as file:
        arrays = _arrays(path, file)
    names = _names([a.shape for a in arrays])
    tensors = (
        (name, Tensor(a.shape, _array.dtype_name(a.dtype), partial(_read, path, a)))
        for name, a in zip(names, arrays, strict=True)
    )
    return Contents(path, "eqx", by_name(path, tensors), {}, LAYOUT)


def _arrays(path: str, file: BinaryIO) -> list[_Array]:
    """Return all arrays, and check that they fill the file."""
    found: list[_Array] = []
    place, size = 0, os.path.getsize(path)
    while place < size:
        if len(found) == MOST:
            msg = f"{path} has more than {MOST} arrays, too many for a module"
            raise FormatError(msg)
        file.seek(place)
        where = f"{path}: array {len(found)}"
        start = io.BytesIO(file.read(16 + npz.LONGEST_HEADER))
        shape, dtype, offset, fortran, length = npz.header(where, start)
        found.append(_Array(place + offset, shape, dtype, fortran))
        place += offset + length
        if place > size:
            msg = f"{where} with shape {shape} and dtype {dtype} ends at byte {place} of {size}"
            raise FormatError(msg)
    return found


def _names(shapes: list[tuple[int, ...]]) -> list[str]:
    """Return a name for each array."""
    names: list[str] = []
    while len(names) < len(shapes):
        k = len(names)
        cell = _cell(shapes[k : k + 4])
        names += [f"{k}.{name}" for name in cell] if cell else [str(k)]
    return names


def _cell(shapes: list[tuple[int, ...]]) -> tuple[str, ...]:
    """Return the array names of a cell at the start of `shapes`; empty if there is no cell."""
    if len(shapes) < 2 or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        return ()
    rows, H = shapes[1]
    if H < 1 or shapes[0][0] != rows or rows not in (4 * H, 3 * H):
        return ()
    row = EQUINOX if rows == 4 * H else EQUINOX.also[0]
    biases = tuple(name for group in row.biases for name in group)
    wanted = [(rows,), (H,)][: len(biases)]
    return row.weights + (biases if shapes[2 : 2 + len(biases)] == wanted else ())


def _read(path: str, a: _Array) -> np.ndarray:
    """Read one array whose header is checked."""
    with open(path, "rb") as file:
        file.seek(a.start)
        flat = np.frombuffer(file.read(int(np.prod(a.shape)) * a.dtype.itemsize), dtype=a.dtype)
    return flat.reshape(a.shape[::-1]).T if a.fortran else flat.reshape(a.shape)


def encode(network: Recurrent, layout: str, prefix: str) -> bytes:
    """Return a file that ``equinox.tree_deserialise_leaves`` reads into a cell or a list of cells."""
    if layout != LAYOUT or prefix:
        msg = (
            f"format={layout!r} and prefix={prefix!r} are not possible in an Equinox file, which has no names"
        )
        raise ArgumentError(msg)
    content = io.BytesIO()
    for name, a in _registry.layout(layout).to_mapping(network).items():
        if _array.dtype_name(a.dtype) == "bfloat16":
            msg = f"{name} has dtype bfloat16, which NumPy's array format does not support; use .safetensors"
            raise ArgumentError(msg)
        np.save(content, _array.to_numpy(a), allow_pickle=False)
    return content.getvalue()
