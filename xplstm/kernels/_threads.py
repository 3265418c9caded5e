"""How many threads the compiled kernel uses: as asked for, else as many as there are processors for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from xplstm import _choice, _values

ROOT = Path("/")
"""Where the files of Linux's control groups are found."""

LIMIT_HOLDS = 1.0
"""Seconds for which a control group's quota is taken to be unchanged."""


def from_environment() -> int:
    """Return the count that the environment asks for, or 0.

    A wrong ``XPLSTM_NUM_THREADS`` is an error. ``OMP_NUM_THREADS`` is for other libraries too, whose rules
    differ: what is no count is left to them.
    """
    own = os.environ.get("XPLSTM_NUM_THREADS", "").strip()
    if own:
        return _values.size("XPLSTM_NUM_THREADS", _integer(own))
    other = _integer(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip())
    return min(other, _values.LARGEST) if isinstance(other, int) else 0


def _integer(text: str) -> int | str:
    """Return the integer that a text is, or the text."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else text


def count(environment: int) -> int:
    """Return the threads of a call; a negative number lets the engine take fewer where processors are few."""
    return _choice.threads.get() or environment or -_processors.get()


class _Processors:
    """The processors of the machine within the quota, looked up again when that may have changed."""

    def __init__(self) -> None:
        self.number, self.until = 1, -1.0

    def get(self) -> int:
        """Return at least 1."""
        now = time.monotonic()
        if now > self.until:
            self.number, self.until = max(1, min(os.cpu_count() or 1, quota())), now + LIMIT_HOLDS
        return self.number


_processors = _Processors()


def quota() -> int:
    """Return the processors that control groups leave to this process; a large number without a limit."""
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
        # A container may see its own group as the root, and a group is bound by those above it.
        limits += [_limit(one) for one in (group, *group.parents) if one.is_relative_to(folder)]
    return min(limits)


def _limit(group: Path) -> int:
    """Return the processors of one control group, of version 2 or 1, rounded down to at least 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (group / name).read_text(encoding="utf-8").split()]
        except OSError:
            continue
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            return max(1, int(words[0]) // int(words[1]))
    return _values.LARGEST
