"""Zip files from strangers: every name, size and place is looked at before anything is unpacked."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from xplstm._errors import FormatError
from xplstm.io._contents import shown

# What a zip file may grow to. Weights hardly shrink; zeros shrink a thousandfold, and a bomb is made of them.
GROWTH = 100
SMALL = 1 << 20

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_UTF8 = 0x800
# What stands before a member's bytes: signature, eight numbers unused here, how long name and rest are.
_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\x03\x04"
# What the standard library raises at a zip file that is none, is cut, or is made to confuse.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


class Archive:
    """The members of a zip file, by name."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self._naming(), zipfile.ZipFile(path) as file:
            infos = file.infolist()
        self.members = {info.filename: info for info in infos}
        self._check(infos)

    def read(self, name: str, most: int | None = None) -> bytes:
        """A member's bytes, or the first `most` of them."""
        info = self.members[name]
        size = info.file_size if most is None else min(most, info.file_size)
        # ZipFile.open would parse the whole directory again, or keep the file open from the first read on.
        with self._naming(), open(self.path, "rb") as file:
            _seek(file, info)
            with zipfile.ZipExtFile(file, "r", info) as member:
                content = member.read(size)
                if size == info.file_size:
                    member.read(1)  # at its end a member's checksum is compared
        if len(content) != size:
            msg = f"{self.path}: {shown(name)} ends after {len(content)} of {size} bytes"
            raise FormatError(msg)
        return content

    def _check(self, infos: list[zipfile.ZipInfo]) -> None:
        """Refuse names that stand twice or lead elsewhere, and sizes that no file of this length can mean."""
        if len(self.members) < len(infos):
            twice = Counter(info.filename for info in infos).most_common(1)[0][0]
            msg = f"{self.path} holds {shown(twice)} twice"
            raise FormatError(msg)
        for info in infos:
            self._check_member(info)
        length, total = os.path.getsize(self.path), sum(info.file_size for info in infos)
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.header_offset < end or info.header_offset + info.compress_size > length:
                msg = f"{self.path}: {shown(info.filename)} lies upon another member, or outside the file"
                raise FormatError(msg)
            end = info.header_offset + _HEADER.size + info.compress_size
        if total > max(GROWTH * length, SMALL):
            msg = f"{self.path} has {length} bytes and says that it unpacks to {total}, which no weights do"
            raise FormatError(msg)

    def _check_member(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in info.orig_filename:
            msg = f"{self.path} holds {shown(name)}, a name that leads out of it"
            raise FormatError(msg)
        if info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
            how = "encrypted" if info.flag_bits & _ENCRYPTED else f"packed by method {info.compress_type}"
            msg = f"{self.path}: {shown(name)} is {how}; it must be stored or deflated"
            raise FormatError(msg)
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            what = f"{info.compress_size} bytes for {info.file_size}"
            msg = f"{self.path}: {shown(name)} is stored as it is, in {what}"
            raise FormatError(msg)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in whatever the standard library says about it."""
        try:
            yield
        except _BROKEN as error:
            msg = f"{self.path} is no whole zip file: {error}"
            raise FormatError(msg) from error


def _seek(file: BinaryIO, info: zipfile.ZipInfo) -> None:
    """Go to a member's first byte; what stands before it must be of the name that the directory says."""
    file.seek(info.header_offset)
    signature, name_length, rest = _HEADER.unpack(file.read(_HEADER.size))
    name = file.read(name_length).decode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    if signature != _SIGNATURE or name != info.orig_filename:
        msg = f"at byte {info.header_offset} begins another member than {shown(info.orig_filename)}"
        raise zipfile.BadZipFile(msg)
    file.seek(rest, os.SEEK_CUR)
