"""Writing a file so that a crash at any moment leaves the old one or the new one whole."""

from __future__ import annotations

import contextlib
import os
import secrets


def write_durably(path: str, content: bytes) -> None:
    """Put `content` at `path` so that a crash at any moment leaves the old file or the new one.

    The new file is forced to the disk before it takes the name, since file
    systems may do the renaming first (Pillai et al., "All file systems are not
    created equal", 2014); the folder is forced last, so that the name stays.
    """
    folder, name = os.path.split(os.path.abspath(path))
    beside = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            _write_all(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    if os.name == "posix":
        _sync_folder(folder)


def check_writable(path: str) -> None:
    """Raise the OSError that `write_durably` would meet at `path`: make its temporary file, and remove it."""
    folder, name = os.path.split(os.path.abspath(path))
    beside = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    os.unlink(beside)


def _write_all(file: int, content: bytes) -> None:
    """Write the whole of `content`; the system may take it in parts."""
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def _sync_folder(folder: str) -> None:
    """Force a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
