"""Read untrusted zip files: all names, sizes and offsets are checked before a member is unpacked."""

from __future__ import annotations

import errno
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from xplstm._errors import FormatError
from xplstm.io._contents import quote, show

# Largest ratio of unpacked to packed size. Weights compress little; a zip bomb compresses a thousandfold.
GROWTH = 100
SMALL = 1 << 20

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_UTF8 = 0x800
# Local header of a member: signature, eight unused numbers, lengths of the name and of the extra field.
_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\x03\x04"
# Central directory: an entry without its texts, then the end record, after two more records for zip64.
_ENTRY, _END, _ENDS64 = 46, 22, 76
_DESCRIBED = 0x8
# Data descriptor after a member of unknown size: with or without signature, with sizes of 4 or 8 bytes.
_DESCRIPTORS = (12, 16, 20, 24)


class Archive:
    """A checked zip file with its members by name."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self._name_file(), zipfile.ZipFile(path) as file:
            infos, start = file.infolist(), file.start_dir
        self.members = {info.filename: info for info in infos}
        self._check(infos)
        with self._name_file(), open(path, "rb") as content:
            self._check_places(content, infos, start)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the bytes of a member, or the first `most` bytes."""
        info = self.members[name]
        size = info.file_size if most is None else min(most, info.file_size)
        # ZipFile.open would parse the directory again, or keep the file open after the first read.
        with self._name_file(), open(self.path, "rb") as file:
            _seek(file, info)
            with zipfile.ZipExtFile(file, "r", info) as member:
                content = member.read(size)
                if size == info.file_size:
                    member.read(1)  # reading the end of a member verifies its checksum
        if len(content) != size:
            msg = f"{self.path}: {show(name)} ends after {len(content)} of {size} bytes"
            raise FormatError(msg)
        return content

    def _check(self, infos: list[zipfile.ZipInfo]) -> None:
        """Check that names are unique and stay inside the archive, and that the sizes are plausible."""
        if len(self.members) < len(infos):
            twice = Counter(info.filename for info in infos).most_common(1)[0][0]
            msg = f"{self.path} contains {show(twice)} twice"
            raise FormatError(msg)
        for info in infos:
            self._check_member(info)
        length, total = os.path.getsize(self.path), sum(info.file_size for info in infos)
        if total > max(GROWTH * length, SMALL):
            msg = f"{self.path} has {length} bytes and would unpack to {total}, too many for weights"
            raise FormatError(msg)

    def _check_places(self, file: BinaryIO, infos: list[zipfile.ZipInfo], start: int) -> None:
        """Check that members, directory and end record fill the file without gaps or overlaps.

        Other readers may find a different directory, or count offsets from a different place. For a file
        without gaps, all readers find the same members.
        """
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            gap = info.header_offset - end
            if gap:
                what = "overlaps another member" if gap < 0 else f"has {gap} unknown bytes before it"
                msg = f"{self.path}: {show(info.filename)} {what}{self._advice()}"
                raise FormatError(msg)
            _seek(file, info)
            end = file.tell() + info.compress_size
            if info.flag_bits & _DESCRIBED:
                end += _descriptor(file, info, end)
        names = (info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437") for info in infos)
        texts = sum(map(len, names)) + sum(len(info.extra) + len(info.comment) for info in infos)
        tail = start + len(infos) * _ENTRY + texts
        length = os.path.getsize(self.path)
        if start != end or length - tail not in (_END, _END + _ENDS64) or not _is_end(file, tail, start):
            what = "unknown bytes between its members, its directory and its end"
            msg = f"{self.path} has {what}{self._advice()}"
            raise FormatError(msg)

    def _advice(self) -> str:
        if self.path.lower().endswith(".distcp"):
            return "; it is part of a distributed checkpoint; convert its folder with dcp_to_torch_save"
        return "; it is damaged, or several zip files in one"

    def _check_member(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in info.orig_filename:
            msg = f"{self.path} contains {show(name)}, a path outside the archive"
            raise FormatError(msg)
        if info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
            how = "encrypted" if info.flag_bits & _ENCRYPTED else f"compressed by method {info.compress_type}"
            msg = f"{self.path}: {show(name)} is {how}; it must be stored or deflated"
            raise FormatError(msg)
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            sizes = f"{info.compress_size} stored bytes for {info.file_size} bytes"
            msg = f"{self.path}: {show(name)} is not compressed, but has {sizes}"
            raise FormatError(msg)

    @contextmanager
    def _name_file(self) -> Iterator[None]:
        """Convert errors of the standard library to a FormatError that names the file."""
        try:
            yield
        except FormatError:
            raise
        except Exception as error:  # zipfile raises many types of errors for damaged files
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            msg = f"{self.path} is a damaged zip file: {type(error).__name__} {quote(str(error))}"
            raise FormatError(msg) from error


def _descriptor(file: BinaryIO, info: zipfile.ZipInfo, place: int) -> int:
    """Return the length of the data descriptor after a member; 0 if there is none."""
    file.seek(place)
    data = file.read(max(_DESCRIPTORS))
    crc = struct.pack("<I", info.CRC)
    for size in ("<II", "<QQ"):
        try:
            wanted = crc + struct.pack(size, info.compress_size, info.file_size)
        except struct.error:  # the size does not fit into four bytes
            continue
        for form in (b"PK\x07\x08" + wanted, wanted):
            if data.startswith(form):
                return len(form)
    return 0


def _is_end(file: BinaryIO, tail: int, start: int) -> bool:
    """Return whether the end record is at `tail` and has `start` as the offset of the directory."""
    file.seek(tail)
    data = file.read()
    end = data[-_END:]
    (place,) = struct.unpack("<I", end[16:20])
    if not end.startswith(b"PK\x05\x06") or place not in (start, 0xFFFFFFFF):
        return False
    if len(data) == _END:
        return place == start
    (place,) = struct.unpack("<Q", data[48:56])
    return data.startswith(b"PK\x06\x06") and place == start


def _seek(file: BinaryIO, info: zipfile.ZipInfo) -> None:
    """Seek to the first byte of a member, and check the name in its local header."""
    file.seek(info.header_offset)
    signature, name_length, rest = _HEADER.unpack(file.read(_HEADER.size))
    name = file.read(name_length).decode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    if signature != _SIGNATURE or name != info.orig_filename:
        msg = f"the member at byte {info.header_offset} is not {show(info.orig_filename)}"
        raise zipfile.BadZipFile(msg)
    file.seek(rest, os.SEEK_CUR)
