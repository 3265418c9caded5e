"""Writing a file so that a crash at any moment leaves the old one or the new one whole."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
import time

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open
    fcntl = None  # type: ignore[assignment]

UNFINISHED = 60.0
"""Seconds after which a temporary file that no process has locked is what a killed one left."""


def write_durably(path: str, content: bytes, permissions: int = 0o666) -> None:
    """Put `content` at `path` so that a crash at any moment leaves the old file or the new one.

    The new file is forced to the disk before it takes the name, since file
    systems may do the renaming first (Pillai et al., "All file systems are not
    created equal", 2014); the folder is forced last, so that the name stays.

    A symbolic link stays and the file it points to is replaced. A file keeps its permissions; a new one gets
    `permissions`, less what the umask takes. What a killed process left unfinished under the same name is
    removed.

    Raises
    ------
    OSError
        If the disk refuses, or `path` is no plain file: a pipe or a device cannot be replaced.
    """
    path = os.path.realpath(path)
    mode = _mode(path)
    folder, name = os.path.split(path)
    _remove_unfinished(folder, name)
    new = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    file = _create(new, path, permissions if mode is None else 0o600)
    try:
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                _lock(file)
            if mode is not None and os.name == "posix":
                os.fchmod(file, mode)
            _write_all(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise
    if os.name == "posix":
        _sync_folder(folder)


def check_writable(path: str) -> None:
    """Raise the OSError that `write_durably` would meet at `path`: make its temporary file, and remove it."""
    path = os.path.realpath(path)
    _mode(path)
    folder, name = os.path.split(path)
    new = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    os.close(_create(new, path, 0o600))
    os.unlink(new)


def _create(new: str, path: str, permissions: int) -> int:
    """Open a temporary file that is not there; an error names `path`, for which it is."""
    try:
        return os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), permissions)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _mode(path: str) -> int | None:
    """Return the permissions of a file that is there, or None; refuse what is no plain file."""
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        msg = f"{path!r} is not a plain file, so it cannot be replaced; give the path of a file"
        raise OSError(msg)
    return stat.S_IMODE(found)


def _remove_unfinished(folder: str, name: str) -> None:
    """Remove the temporary files for `name` that a killed process left."""
    for left in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp")):
        # Another process may have removed it, or may still write to it: then it is not ours to remove.
        with contextlib.suppress(OSError):
            if time.time() - os.stat(left).st_mtime > UNFINISHED:
                _remove_unlocked(left)


def _remove_unlocked(path: str) -> None:
    """Remove a file that no process has locked."""
    file = os.open(path, os.O_RDWR)
    try:
        _lock(file)
    finally:
        os.close(file)
    os.unlink(path)


def _lock(file: int) -> None:
    """Lock an open file until it is closed; raise OSError where another process has locked it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
