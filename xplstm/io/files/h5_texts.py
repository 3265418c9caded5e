"""Check how the texts in an HDF5 file are stored, before the HDF5 library reads one.

An attribute holds the length and the place of its text, which is in a global heap. The library allocates any
length, up to 4 GiB, and walks in a circle in some damaged heaps. The layout of both is described in the HDF5
file format specification, sections "Attribute Message" and "Disk Format: Level 1E - Global Heap".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xplstm._errors import FormatError

_HEAP, _HEADER = b"GCOL\x01", 16
_FRACTAL = b"FRHP\0"
# The class of texts and lists of any length among the types of HDF5.
_VARIABLE = 9


def check_texts(where: str, content: Any, longest: Mapping[str, int]) -> None:
    """Refuse a file in which an attribute of these names is longer than said, or a heap is damaged."""
    _check_heaps(where, content)
    _check_packed(where, content)
    for name, most in longest.items():
        _check_lengths(where, content, name, most)


def _check_heaps(where: str, content: Any) -> None:
    """Walk through every global heap as the library does."""
    start, left = content.find(_HEAP), len(content) // _HEADER
    while start >= 0:
        end = start + _number(content, start + 8, 8)
        place = start + _HEADER
        # The library itself refuses a heap that is longer than the file.
        while end <= len(content) and place + _HEADER <= end:
            size = _number(content, place + 8, 8)
            step = _HEADER + _padded(size) if _number(content, place, 2) else size
            left -= 1
            if step < _HEADER or place + step > end or left < 0:
                msg = f"{where} has a damaged heap of texts at byte {start}"
                raise FormatError(msg)
            place += step
        start = content.find(_HEAP, start + 1)


def _check_packed(where: str, content: Any) -> None:
    """Refuse attributes that are packed by a filter, whose bytes cannot be looked at."""
    start = content.find(_FRACTAL)
    while start >= 0:
        if _number(content, start + 7, 2):
            msg = f"{where} has packed attributes or links at byte {start}, which no library writes"
            raise FormatError(msg)
        start = content.find(_FRACTAL, start + 1)


def _check_lengths(where: str, content: Any, name: str, most: int) -> None:
    """Refuse a length beyond `most` in whatever may be an attribute of this name."""
    wanted = name.encode() + b"\0"
    start = content.find(wanted)
    while start >= 0:
        for version in (1, 2, 3):
            header = start - (9 if version == 3 else 8)
            if header < 0 or content[header] != version or _number(content, header + 2, 2) != len(wanted):
                continue
            kind, space = (_number(content, header + k, 2) for k in (4, 6))
            if version == 1:
                first, kind, space = start + _padded(len(wanted)), _padded(kind), _padded(space)
            else:
                first = start + len(wanted)
            if first >= len(content) or (version > 1 and content[header + 1] & 1):
                msg = f"{where} has an attribute {name!r} of a type that is elsewhere"
                raise FormatError(msg)
            length = _number(content, first + kind + space, 4)
            if content[first] & 15 == _VARIABLE and length > most:
                msg = f"{where} has an attribute {name!r} of {length} letters; {most} are allowed"
                raise FormatError(msg)
        start = content.find(wanted, start + 1)


def _number(content: Any, start: int, size: int) -> int:
    return int.from_bytes(content[start : start + size], "little")


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8
