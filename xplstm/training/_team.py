"""Collective operations of the processes of one run: fixed-order sums and shared decisions.

All ranks make the same calls in the same order. An event on one rank (an error, a signal, the time for a
checkpoint) is sent with the next call, so that all ranks react to it at the same update.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeVar

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, GroupError
from xplstm.training._groups import Group
from xplstm.training._signals import end_fork, sigterm_interrupts

T = TypeVar("T")

LOSS, PROBLEMS, SAVE, BATCH, HEADER = 0, 1, 2, 3, 19
"""Indices in a summed array: loss, ranks with a problem, ranks that request a checkpoint, 16 bits of a digest
of the batch, gradients."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Team:
    """One process and its group; a team of one process sends nothing."""

    def __init__(self, group: Group | None, sums: str = "tree") -> None:
        self._group, self.sums = group, sums
        self.rank, self.size = (0, 1) if group is None else (group.rank, group.size)
        self._problem: BaseException | None = None
        self._wants_save = self._saves = False
        self._owner = os.getpid()

    @property
    def is_first(self) -> bool:
        """Whether this rank reads and writes the files."""
        return self.rank == 0

    # Collective calls.

    def together(self, act: Callable[[], T]) -> list[T]:
        """Run `act` on every rank, and return all results, which must be JSON values.

        An error of one rank, now or recorded before, is raised on all ranks.
        """
        with self.record_errors():
            result = act()
        if self.size == 1:
            return [result]
        given = {"problem": self._problem_text(), "result": None if self._problem else result}
        everything = self._gather_values(given)
        self._raise_problems([each["problem"] for each in everything])
        return [each["result"] for each in everything]

    def share(self, content: bytes) -> list[bytes]:
        """Return the bytes of every rank."""
        return [content] if self.size == 1 else self._gather(content)

    def add(self, act: Callable[[], tuple[np.ndarray, T]], length: int, dtype: str) -> tuple[np.ndarray, T]:
        """Run `act` on every rank; return the sum of its arrays, and the second result of this rank."""
        made = None
        with self.record_errors():
            made = act()
        if self.size == 1 and made is not None:
            return made
        flat = np.zeros(-(-length // self.size) * self.size, dtype)
        if made is not None:
            flat[:length] = made[0]
        flat[PROBLEMS], flat[SAVE] = self._problem_text() is not None, self._wants_save
        self._wants_save = False
        self._all_reduce(flat)
        self._saves = self._saves or flat[SAVE] > 0
        if flat[PROBLEMS] > 0 or made is None:
            self._raise_problems(self._gather_values(self._problem_text()))
        assert made is not None
        return flat[:length], made[1]

    def compare(self, facts: list[dict[str, Any]], error: type[Exception]) -> None:
        """Check that all ranks have the same facts."""
        for rank, theirs in enumerate(facts):
            for name, expected in facts[0].items():
                if theirs[name] != expected:
                    msg = f"rank {rank} has {name}={theirs[name]!r}, but rank 0 has {expected!r}; "
                    msg += "every rank must have the same model, data and arguments"
                    raise error(msg)

    def is_due(self, here: bool) -> bool:
        """Return whether all ranks save now; only the clock of rank 0 is used."""
        if self.size == 1:
            return here
        self._wants_save = here and self.is_first
        saves, self._saves = self._saves, False
        return saves

    # Events on one rank.

    @contextlib.contextmanager
    def record_errors(self) -> Iterator[None]:
        """Record an error for the next collective call; a team of one process raises it at once."""
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            self._problem = self._problem or error

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Treat Ctrl-C and SIGTERM as a problem of all ranks; a second signal interrupts at once."""
        if self.size == 1:
            with sigterm_interrupts():
                yield
            return
        ours = threading.current_thread() is threading.main_thread()
        defaults = (signal.default_int_handler, signal.SIG_DFL)
        before = {n: signal.getsignal(n) for n in _SIGNALS if ours and signal.getsignal(n) in defaults}
        try:
            for number in before:
                signal.signal(number, self._interrupt)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        """Record a signal for the next collective call."""
        end_fork(number, self._owner)
        again = isinstance(self._problem, KeyboardInterrupt)
        self._problem = KeyboardInterrupt(signal.Signals(number).name)
        if again:
            raise self._problem

    def _problem_text(self) -> str | None:
        """Return the problem of this rank as text for the other ranks."""
        return None if self._problem is None else f"{type(self._problem).__name__}: {self._problem}"

    def _raise_problems(self, problems: list[str | None]) -> None:
        """Raise the problem of this rank, or name the first rank that has one."""
        own, self._problem = self._problem, None
        if own is not None:
            raise own
        for rank, problem in enumerate(problems):
            if problem is not None:
                if problem.startswith(KeyboardInterrupt.__name__):
                    raise KeyboardInterrupt(f"rank {rank}: {problem}")
                msg = f"all ranks stop because of an error on rank {rank}: {problem}"
                raise GroupError(msg)

    # Communication.

    @contextlib.contextmanager
    def _connected_to(self, what: str) -> Iterator[None]:
        """Convert errors of the transport to a GroupError that names this rank and the lost connection."""
        try:
            yield
        except Exception as error:
            msg = f"rank {self.rank} lost {what}: {error}; start the run again with resume='auto'"
            raise GroupError(msg) from error

    def _gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank."""
        assert self._group is not None
        with self._connected_to("its connection"):
            return self._group.gather(data)

    def _gather_values(self, value: Any) -> list[Any]:
        """Return the JSON value of every rank."""
        return [json.loads(text) for text in self._gather(json.dumps(value).encode())]

    def _exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Return the array of another rank."""
        assert self._group is not None
        with self._connected_to(f"rank {peer}"):
            other = self._group.exchange(array, peer)
        if other.shape != array.shape or other.dtype != array.dtype:
            msg = f"rank {self.rank} got {other.dtype}{other.shape} from rank {peer}, "
            msg += f"expected {array.dtype}{array.shape}; every rank must have the same model"
            raise GroupError(msg)
        return other

    def _sum_of_transport(self, array: np.ndarray) -> np.ndarray:
        """Return the sum over all ranks, in an order that the transport chooses."""
        group: Any = self._group
        with self._connected_to("its connection"):
            return np.asarray(group.all_reduce(array))

    def _all_reduce(self, flat: np.ndarray) -> None:
        """Replace an array with its sum over all ranks, by recursive halving and doubling.

        Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH"
        (2005), section 4.4, with the nearest ranks first. Every element is added in one binary tree, whose
        leaves are the ranks in order.
        """
        if self.sums == "fast":
            flat[:] = self._sum_of_transport(flat)
            return
        low, high, step = 0, flat.size, 1
        while step < self.size:
            middle, peer = (low + high) // 2, self.rank ^ step
            if self.rank & step:
                flat[middle:high] += self._exchange(flat[low:middle], peer)
                low = middle
            else:
                flat[low:middle] += self._exchange(flat[middle:high], peer)
                high = middle
            step *= 2
        while step > 1:
            step //= 2
            width, peer = high - low, self.rank ^ step
            other = self._exchange(flat[low:high], peer)
            if self.rank & step:
                low -= width
                flat[low : low + width] = other
            else:
                high += width
                flat[high - width : high] = other


def digest(arrays: Mapping[str, Any]) -> str:
    """Return a short hash of arrays."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        host = _array.to_numpy(arrays[name])
        hasher.update(f"{name} {_array.dtype_name(host.dtype)} {host.shape} ".encode() + host.tobytes())
    return hasher.hexdigest()[:16]


def refuse_size(size: int, shards: int, sums: str) -> None:
    """Check that the shards can be distributed over the ranks."""
    if sums == "fast":
        if shards % size:
            msg = f"the group has {size} processes, expected a divisor of the number of shards, {shards}"
            raise ArgumentError(msg)
    elif size & (size - 1) or shards % size:
        msg = f"the group has {size} processes, expected a power of two that divides {shards}, the shards"
        raise ArgumentError(msg)
