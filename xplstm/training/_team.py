"""What the processes of one run do together: add arrays in a fixed order, and share every decision.

All ranks make the same calls in the same order. What only one of them meets (an error, a signal, the time for
a checkpoint) goes into the next call, so that all of them act on it at the same update.
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

LOSS, PROBLEMS, SAVE, HEADER = 0, 1, 2, 3
"""Places in the array of a sum: loss, ranks with a problem, ranks that ask for a checkpoint, gradients."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Team:
    """One process and its group; a team of one acts alone, and nothing is sent."""

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

    # What is done together.

    def together(self, act: Callable[[], T]) -> list[T]:
        """Run `act` on every rank, and return all results, which JSON can hold.

        An error of one rank, now or noted before, is raised on all.
        """
        with self.noted():
            result = act()
        if self.size == 1:
            return [result]
        given = {"problem": self._problem_text(), "result": None if self._problem else result}
        everything = [json.loads(text) for text in self._gather(json.dumps(given).encode())]
        self._raise_problems([each["problem"] for each in everything])
        return [each["result"] for each in everything]

    def share(self, content: bytes) -> list[bytes]:
        """Return the bytes of every rank."""
        return [content] if self.size == 1 else self._gather(content)

    def add(self, act: Callable[[], tuple[np.ndarray, T]], length: int, dtype: str) -> tuple[np.ndarray, T]:
        """Add the arrays that `act` makes on every rank, and return the sum and the result of `act` here."""
        made = None
        with self.noted():
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
            self._raise_problems(
                [json.loads(text) for text in self._gather(json.dumps(self._problem_text()).encode())]
            )
        assert made is not None
        return flat[:length], made[1]

    def compare(self, facts: list[dict[str, Any]], error: type[Exception]) -> None:
        """Raise if the ranks differ in what must be the same."""
        for rank, theirs in enumerate(facts):
            for name, expected in facts[0].items():
                if theirs[name] != expected:
                    msg = f"rank {rank} has {name}={theirs[name]!r}, and rank 0 has {expected!r}; "
                    msg += "every rank must have the same model, data and arguments"
                    raise error(msg)

    def is_due(self, here: bool) -> bool:
        """Return whether all ranks save now; rank 0 alone looks at the clock."""
        if self.size == 1:
            return here
        self._wants_save = here and self.is_first
        saves, self._saves = self._saves, False
        return saves

    # What one rank meets.

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Keep an error for the next thing that is done together; alone, raise it."""
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            self._problem = self._problem or error

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as a problem of all ranks; the second one interrupts at once."""
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
        """Note a signal for the next thing that is done together."""
        end_fork(number, self._owner)
        again = isinstance(self._problem, KeyboardInterrupt)
        self._problem = KeyboardInterrupt(signal.Signals(number).name)
        if again:
            raise self._problem

    def _problem_text(self) -> str | None:
        """Return the problem of this rank as text for the others."""
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
                msg = f"rank {rank} stopped, and so do all others: {problem}"
                raise GroupError(msg)

    # Over the wire.

    def _gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank."""
        assert self._group is not None
        try:
            return self._group.gather(data)
        except Exception as error:
            msg = f"rank {self.rank} lost its group: {error}; start the run again with resume='auto'"
            raise GroupError(msg) from error

    def _exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Return the array of another rank."""
        assert self._group is not None
        try:
            other = self._group.exchange(array, peer)
        except Exception as error:
            msg = f"rank {self.rank} lost rank {peer}: {error}; start the run again with resume='auto'"
            raise GroupError(msg) from error
        if other.shape != array.shape or other.dtype != array.dtype:
            msg = f"rank {self.rank} got {other.dtype}{other.shape} from rank {peer}; "
            msg += f"{array.dtype}{array.shape} was expected; every rank must have the same model"
            raise GroupError(msg)
        return other

    def _sum_of_transport(self, array: np.ndarray) -> np.ndarray:
        """Return the sum over all ranks, in the order of the transport."""
        group: Any = self._group
        try:
            return np.asarray(group.all_reduce(array))
        except Exception as error:
            msg = f"rank {self.rank} lost its group: {error}; start the run again with resume='auto'"
            raise GroupError(msg) from error

    def _all_reduce(self, flat: np.ndarray) -> None:
        """Replace an array by the sum over all ranks, by recursive halving and doubling.

        Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH"
        (2005), section 4.4, with the nearest ranks first: each element is added in the binary tree whose
        leaves are the ranks in order, whichever rank adds it.
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
    """Return a few digits that differ where arrays differ."""
    made = hashlib.sha256()
    for name in sorted(arrays):
        host = _array.to_numpy(arrays[name])
        made.update(f"{name} {_array.dtype_name(host.dtype)} {host.shape} ".encode() + host.tobytes())
    return made.hexdigest()[:16]


def refuse_size(size: int, shards: int, sums: str) -> None:
    """Refuse a number of ranks over which the shards cannot be spread."""
    if sums == "fast":
        if shards % size:
            msg = f"the group has {size} processes; a number that divides the {shards} shards was expected"
            raise ArgumentError(msg)
    elif size & (size - 1) or shards % size:
        msg = f"the group has {size} processes; a power of two that divides the {shards} shards was expected"
        raise ArgumentError(msg)
