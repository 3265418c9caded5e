"""Check the stored texts of an HDF5 file before the HDF5 library reads them.

An attribute has the length and the address of its text in a global heap. The library allocates any length up
to 4 GiB, and does not terminate for some damaged heaps. The HDF5 file format specification describes both in
the sections "Attribute Message" and "Disk Format: Level 1E - Global Heap".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xplstm._errors import FormatError

_HEAP, _HEADER = b"GCOL\x01", 16
_FRACTAL = b"FRHP\0"
# HDF5 type class of texts and lists with variable length.
_VARIABLE = 9


def check_texts(where: str, content: Any, longest: Mapping[str, int]) -> None:
    """Check that the named attributes are not longer than `longest`, and that no heap is damaged."""
    _check_heaps(where, content)
    _check_packed(where, content)
    for name, most in longest.items():
        _check_lengths(where, content, name, most)


def _check_heaps(where: str, content: Any) -> None:
    """Check that every global heap can be traversed."""
    start, left = content.find(_HEAP), len(content) // _HEADER
    while start >= 0:
        end = start + _number(content, start + 8, 8)
        place = start + _HEADER
        # The library rejects a heap that is longer than the file.
        while end <= len(content) and place + _HEADER <= end:
            size = _number(content, place + 8, 8)
            step = _HEADER + _pad(size) if _number(content, place, 2) else size
            left -= 1
            if step < _HEADER or place + step > end or left < 0:
                msg = f"{where} has a damaged global heap at byte {start}"
                raise FormatError(msg)
            place += step
        start = content.find(_HEAP, start + 1)


def _check_packed(where: str, content: Any) -> None:
    """Check that no filter compresses attributes, since compressed bytes cannot be checked."""
    start = content.find(_FRACTAL)
    while start >= 0:
        if _number(content, start + 7, 2):
            msg = f"{where} has compressed attributes or links at byte {start}, which are not supported"
            raise FormatError(msg)
        start = content.find(_FRACTAL, start + 1)


def _check_lengths(where: str, content: Any, name: str, most: int) -> None:
    """Check that all possible attributes of this name have a length of at most `most`."""
    wanted = name.encode() + b"\0"
    start = content.find(wanted)
    while start >= 0:
        for version in (1, 2, 3):
            header = start - (9 if version == 3 else 8)
            if header < 0 or content[header] != version or _number(content, header + 2, 2) != len(wanted):
                continue
            kind, space = (_number(content, header + k, 2) for k in (4, 6))
            if version == 1:
                first, kind, space = start + _pad(len(wanted)), _pad(kind), _pad(space)
            else:
                first = start + len(wanted)
            if first >= len(content) or (version > 1 and content[header + 1] & 1):
                msg = f"{where} has an attribute {name!r} with a shared type, which is not supported"
                raise FormatError(msg)
            length = _number(content, first + kind + space, 4)
            if content[first] & 15 == _VARIABLE and length > most:
                msg = f"{where} has an attribute {name!r} of {length} bytes; at most {most} are allowed"
                raise FormatError(msg)
        start = content.find(wanted, start + 1)


def _number(content: Any, start: int, size: int) -> int:
    return int.from_bytes(content[start : start + size], "little")


def _pad(size: int) -> int:
    return (size + 7) // 8 * 8
