"""Write files atomically and durably."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
import time

try:
    import fcntl
except ImportError:  # Windows, which does not remove open files
    fcntl = None  # type: ignore[assignment]

UNFINISHED = 60.0
"""Age in seconds after which an unlocked temporary file is a remnant of a killed process."""


def write_durably(path: str, content: bytes, permissions: int = 0o666) -> None:
    """Write `content` to `path` so that the old or the new file is complete after a crash.

    The new file is synced to the disk before it is renamed, since file systems may reorder the two (Pillai et
    al., "All file systems are not created equal", 2014). The folder is synced last, which makes the new name
    durable.

    A symbolic link is followed. An existing file keeps its permissions. A new file gets `permissions` without
    the bits of the umask. Temporary files that a killed process left for the same path are removed.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` is a pipe, a device or another special file.
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
    """Raise the OSError that `write_durably` would raise; create and remove a temporary file."""
    path = os.path.realpath(path)
    _mode(path)
    folder, name = os.path.split(path)
    new = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    os.close(_create(new, path, 0o600))
    os.unlink(new)


def _create(new: str, path: str, permissions: int) -> int:
    """Create a temporary file for `path`; an error names `path`."""
    try:
        return os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), permissions)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _mode(path: str) -> int | None:
    """Return the permissions of an existing regular file, or None if there is no file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        msg = f"{path!r} is not a regular file and cannot be replaced; pass the path of a file"
        raise OSError(msg)
    return stat.S_IMODE(mode)


def _remove_unfinished(folder: str, name: str) -> None:
    """Remove the temporary files of killed processes for `name`."""
    for left in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp")):
        # Another process may remove the file at the same time, or may still write to it.
        with contextlib.suppress(OSError):
            if time.time() - os.stat(left).st_mtime > UNFINISHED:
                _remove_unlocked(left)


def _remove_unlocked(path: str) -> None:
    """Remove a file if no process has locked it."""
    file = os.open(path, os.O_RDWR)
    try:
        _lock(file)
    finally:
        os.close(file)
    os.unlink(path)


def _lock(file: int) -> None:
    """Lock an open file until it is closed; raise OSError if another process has locked it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_all(file: int, content: bytes) -> None:
    """Write all bytes of `content`; a system call may write fewer."""
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def _sync_folder(folder: str) -> None:
    """Sync the entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
