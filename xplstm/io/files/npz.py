"""Read and write NumPy .npz files, without unpickling."""

from __future__ import annotations

import io
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array
from xplstm._errors import FormatError
from xplstm.io._contents import Contents, Opening, Tensor, by_name, show
from xplstm.io._written import METADATA, WORDS, serialise
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
        head = _header(archive, member)
        if name in (METADATA, WORDS) and head.dtype.kind == "U" and head.shape == ():
            metadata[name] = _text(archive, member, head)
        else:
            array = partial(_read, archive, member, head)
            tensors.append((name, Tensor(head.shape, _array.dtype_name(head.dtype), array)))
    return Contents(path, "npz", by_name(path, tensors), metadata)


def encode(network: Recurrent, layout: str, prefix: str) -> bytes:
    """Return the bytes of a file with the parameters of `network`."""
    arrays, metadata = serialise(network, layout, prefix)
    hosts: dict[str, Any] = {name: _array.to_numpy(a) for name, a in arrays.items()}
    hosts |= {name: np.asarray(text) for name, text in metadata.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **hosts)
    return buffer.getvalue()


class Header(NamedTuple):
    """Header of an array in NumPy's format."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    """Where the data begins, in bytes."""
    fortran: bool
    """Whether the data has the order of Fortran."""
    length: int
    """Number of data bytes."""

    def array(self, data: bytes | memoryview) -> np.ndarray:
        """Return the array of these data bytes."""
        flat: np.ndarray = np.frombuffer(data, dtype=self.dtype)
        return flat.reshape(self.shape[::-1]).T if self.fortran else flat.reshape(self.shape)


def header(where: str, start: io.BytesIO) -> Header:
    """Return the checked header of an array."""
    try:
        version = np.lib.format.read_magic(start)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](start, max_header_size=LONGEST_HEADER)
    except Exception as error:  # a header is a Python literal, whose parser raises many types of errors
        msg = f"{where} is not a valid NumPy array: {show(str(error)[:200])}"
        raise FormatError(msg) from error
    if dtype.hasobject or dtype.names or dtype.subdtype:
        msg = f"{where} has dtype {dtype}; arrays of objects or records are not supported"
        raise FormatError(msg)
    numbers = buffers.count(where, "its shape", shape)
    return Header(shape, dtype, start.tell(), fortran, numbers * dtype.itemsize)


def _header(archive: Archive, member: str) -> Header:
    """Return the header of a member of an archive, and check that the array fills the member."""
    where = f"{archive.path}: {show(member)}"
    head = header(where, io.BytesIO(archive.read(member, 16 + LONGEST_HEADER)))
    given, wanted = archive.members[member].file_size, head.offset + head.length
    if wanted != given:
        of = f"shape {head.shape} and dtype {head.dtype}"
        msg = f"{where} has {given} bytes, expected {wanted} for {of}"
        raise FormatError(msg)
    return head


def _read(archive: Archive, member: str, head: Header) -> np.ndarray:
    """Read one array whose header is checked."""
    return head.array(memoryview(archive.read(member))[head.offset :])


def _text(archive: Archive, member: str, head: Header) -> Any:
    """Return the text that `encode` stored with the arrays."""
    length = head.dtype.itemsize // 4
    if length > LONGEST_TEXT:
        msg = f"{archive.path}: {show(member)} has {length} characters; at most {LONGEST_TEXT} are allowed"
        raise FormatError(msg)
    try:
        return str(_read(archive, member, head))
    except ValueError as error:
        msg = f"{archive.path}: {show(member)} is not valid Unicode text: {error}"
        raise FormatError(msg) from error
