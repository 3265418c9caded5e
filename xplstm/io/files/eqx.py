"""Read and write Equinox files: consecutive arrays without names.

A cell is recognised by its shapes: input weights, recurrent weights and biases. Shapes do not determine the
gate order, so the caller must name the format.
"""

from __future__ import annotations

import io
import os
from functools import partial
from typing import BinaryIO

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm.io._contents import Contents, Opening, Tensor, by_name
from xplstm.io.files import npz
from xplstm.io.layouts.single import EQUINOX
from xplstm.nn._module import Recurrent

SUFFIXES = (".eqx",)
LAYOUT = "equinox"

# Largest number of leaves of a module.
MOST = 100_000


def recognises(opening: Opening) -> bool:
    """Return whether a file begins with an array."""
    return opening.head.startswith(b"\x93NUMPY")


def read(path: str) -> Contents:
    """Return arrays by their index; the arrays of a cell by the index of the first and their names."""
    with open(path, "rb") as file:
        arrays = _arrays(path, file)
    names = _names([head.shape for _, head in arrays])
    tensors = (
        (name, Tensor(head.shape, _array.dtype_name(head.dtype), partial(_read, path, place, head)))
        for name, (place, head) in zip(names, arrays, strict=True)
    )
    return Contents(path, "eqx", by_name(path, tensors), {}, LAYOUT)


def _arrays(path: str, file: BinaryIO) -> list[tuple[int, npz.Header]]:
    """Return where each array begins and its header, and check that the arrays fill the file."""
    headers: list[tuple[int, npz.Header]] = []
    place, size = 0, os.path.getsize(path)
    while place < size:
        if len(headers) == MOST:
            msg = f"{path} has more than {MOST} arrays, too many for a module"
            raise FormatError(msg)
        file.seek(place)
        where = f"{path}: array {len(headers)}"
        head = npz.header(where, io.BytesIO(file.read(16 + npz.LONGEST_HEADER)))
        headers.append((place, head))
        place += head.offset + head.length
        if place > size:
            msg = f"{where} with shape {head.shape} and dtype {head.dtype} ends at byte {place} of {size}"
            raise FormatError(msg)
    return headers


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


def _read(path: str, place: int, head: npz.Header) -> np.ndarray:
    """Read one array after its header was checked."""
    with open(path, "rb") as file:
        file.seek(place + head.offset)
        return head.array(file.read(head.length))


def encode(network: Recurrent, _layout: str, prefix: str) -> bytes:
    """Return a file that ``equinox.tree_deserialise_leaves`` reads into a cell or a list of cells."""
    if prefix:
        msg = f"prefix={prefix!r} is not possible in an Equinox file, which has no names"
        raise ArgumentError(msg)
    content = io.BytesIO()
    for a in EQUINOX.to_mapping(network).values():
        np.save(content, _array.to_numpy(a), allow_pickle=False)
    return content.getvalue()
