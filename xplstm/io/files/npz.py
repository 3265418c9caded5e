"""Read and write NumPy .npz files, without unpickling."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm.io._contents import Contents, Opening, Tensor, by_name, shown
from xplstm.io._written import METADATA, WORDS, written
from xplstm.io.files import buffers
from xplstm.io.files.archive import Archive
from xplstm.nn._module import Recurrent

SUFFIXES = (".npz",)
LAYOUT = "torch"

# NumPy's bound, which limits the cost of parsing a header.
LONGEST_HEADER = 10_000
LONGEST_TEXT = 100_000


def recognises(opening: Opening) -> bool:
    """Return whether all members are arrays."""
    return bool(opening.members) and all(name.endswith(".npy") for name in opening.members)


def read(path: str) -> Contents:
    """Return arrays by name without ".npy"; each array is unpacked on demand."""
    archive = Archive(path)
    tensors, metadata = [], {}
    for member in archive.members:
        name = member.removesuffix(".npy")
        shape, dtype, offset, fortran = _header(archive, member)
        if name in (METADATA, WORDS) and dtype.kind == "U" and shape == ():
            metadata[name] = _text(archive, member, dtype, offset)
        else:
            array = partial(_read, archive, member, dtype, shape, offset, fortran)
            tensors.append((name, Tensor(shape, _array.dtype_name(dtype), array)))
    return Contents(path, "npz", by_name(path, tensors), metadata)


def encode(network: Recurrent, layout: str, prefix: str) -> bytes:
    """Return the bytes of a file with the parameters of `network`."""
    arrays, metadata = written(network, layout, prefix)
    hosts: dict[str, Any] = {name: _array.to_numpy(a) for name, a in arrays.items()}
    for name, a in hosts.items():
        if _array.dtype_name(a.dtype) == "bfloat16":
            msg = f"{name} has dtype bfloat16, which an .npz file does not support; use .safetensors"
            raise ArgumentError(msg)
    hosts |= {name: np.asarray(text) for name, text in metadata.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **hosts)
    return buffer.getvalue()


def header(where: str, start: io.BytesIO) -> tuple[tuple[int, ...], np.dtype, int, bool, int]:
    """Return shape, dtype, data offset, whether the order is Fortran's, and the number of data bytes."""
    try:
        version = np.lib.format.read_magic(start)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](start, max_header_size=LONGEST_HEADER)
    except Exception as error:  # a header is a Python literal, whose parser raises many types of errors
        msg = f"{where} is not a valid NumPy array: {shown(str(error)[:200])}"
        raise FormatError(msg) from error
    if dtype.hasobject or dtype.names or dtype.subdtype:
        msg = f"{where} has dtype {dtype}; arrays of objects or records are not supported"
        raise FormatError(msg)
    numbers = buffers.count(where, "its shape", shape)
    return shape, dtype, start.tell(), fortran, numbers * dtype.itemsize


def _header(archive: Archive, member: str) -> tuple[tuple[int, ...], np.dtype, int, bool]:
    """Return the header of a member of an archive, and check that the array fills the member."""
    where = f"{archive.path}: {shown(member)}"
    start = io.BytesIO(archive.read(member, 16 + LONGEST_HEADER))
    shape, dtype, offset, fortran, length = header(where, start)
    given = archive.members[member].file_size
    if offset + length != given:
        msg = f"{where} has {given} bytes, expected {offset + length} for shape {shape} and dtype {dtype}"
        raise FormatError(msg)
    return shape, dtype, offset, fortran


def _read(
    archive: Archive, member: str, dtype: np.dtype, shape: tuple[int, ...], offset: int, fortran: bool
) -> np.ndarray:
    """Read one array whose header is checked."""
    flat: np.ndarray = np.frombuffer(archive.read(member), dtype=dtype, offset=offset)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _text(archive: Archive, member: str, dtype: np.dtype, offset: int) -> Any:
    """Return the text that `encode` stored with the arrays."""
    if dtype.itemsize > 4 * LONGEST_TEXT:
        length = dtype.itemsize // 4
        msg = f"{archive.path}: {shown(member)} has {length} characters; at most {LONGEST_TEXT} are allowed"
        raise FormatError(msg)
    try:
        return str(_read(archive, member, dtype, (), offset, False))
    except ValueError as error:
        msg = f"{archive.path}: {shown(member)} is not valid Unicode text: {error}"
        raise FormatError(msg) from error
