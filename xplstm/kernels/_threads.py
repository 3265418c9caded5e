"""Determine the number of threads of the compiled kernel: as requested, else the available processors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from xplstm import _choice, _values

ROOT = Path("/")
"""The root of the file system with the files of Linux's control groups."""

LIMIT_HOLDS = 1.0
"""Seconds until a control group's quota is read again."""


@cache
def from_environment() -> int:
    """Return the number of threads that the environment requested at the first call, or 0.

    An invalid ``XPLSTM_NUM_THREADS`` raises an error. An invalid ``OMP_NUM_THREADS`` is ignored, because it
    may follow the rules of another library.
    """
    own = os.environ.get("XPLSTM_NUM_THREADS", "").strip()
    if own:
        return _values.size("XPLSTM_NUM_THREADS", _integer(own))
    other = _integer(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip())
    return min(other, _values.LARGEST) if isinstance(other, int) else 0


def _integer(text: str) -> int | str:
    """Return a text as an integer, or unchanged if it is not a decimal number."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else text


def count(environment: int) -> int:
    """Return the number of threads of a call; a negative number is an upper limit for automatic selection."""
    number = _choice.threads.get() or environment or -_processors.get()
    return max(-_ceiling.number, min(number, _ceiling.number))


class _Ceiling:
    """The limit that threadpoolctl sets for the process, including blocks of `use_threads`."""

    number = _values.LARGEST
    is_registered = False


_ceiling = _Ceiling()


def can_register() -> bool:
    """Return whether threadpoolctl is imported, accepts other libraries, and does not list xplstm yet."""
    return not _ceiling.is_registered and hasattr(sys.modules.get("threadpoolctl"), "register")


def register(path: str, environment: Callable[[], int]) -> None:
    """Let threadpoolctl list and limit the threads of the compiled library at `path`.

    `environment` returns the number of threads that the environment requests, or 0.
    """
    threadpoolctl: Any = sys.modules["threadpoolctl"]

    def unlimited() -> int:
        return _choice.threads.everywhere() or environment() or _processors.get()

    class Controller(threadpoolctl.LibController):  # type: ignore[misc]
        """The number of threads outside blocks of `use_threads`."""

        user_api = internal_api = "xplstm"
        filename_prefixes = (os.path.basename(path).lower(),)
        check_symbols = ("PyInit__engine",)

        def set_additional_attributes(self) -> None:
            # A library of the same name, but without the symbol, is not listed.
            if not os.path.samefile(self.filepath, path):
                self.dynlib = None

        def get_num_threads(self) -> int:
            return min(unlimited(), _ceiling.number)

        def set_num_threads(self, num_threads: int) -> None:
            # The unlimited number ends the limit, so that the automatic number follows the affinity again.
            _ceiling.number = num_threads if num_threads < unlimited() else _values.LARGEST

        def get_version(self) -> str:
            return str(sys.modules["xplstm"].__version__)

    threadpoolctl.register(Controller)
    _ceiling.is_registered = True


class _Processors:
    """The number of processors within the quota, which is read again after LIMIT_HOLDS seconds."""

    def __init__(self) -> None:
        self.number, self.until = 1, -1.0

    def get(self) -> int:
        """Return the number of processors, at least 1."""
        now = time.monotonic()
        if now > self.until:
            self.number, self.until = max(1, min(os.cpu_count() or 1, quota())), now + LIMIT_HOLDS
        return self.number


_processors = _Processors()


def quota() -> int:
    """Return the CPU limit of this process's control groups; without a limit, return LARGEST."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return _values.LARGEST
    limits = [_values.LARGEST]
    for line in lines:
        _, controllers, inner = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = ROOT / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = folder / inner.lstrip("/")
        # Parents limit a group too. In a container, its own group may be the root.
        limits += [_limit(one) for one in (group, *group.parents) if one.is_relative_to(folder)]
    return min(limits)


def _limit(group: Path) -> int:
    """Return the CPU limit of one control group (version 2 or 1), rounded down, at least 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (group / name).read_text(encoding="utf-8").split()]
        except OSError:
            continue
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            return max(1, int(words[0]) // int(words[1]))
    return _values.LARGEST
