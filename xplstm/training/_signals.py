"""Handle SIGTERM as Ctrl-C; batch systems and containers send it before they stop a process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, in the main thread and if the program has set no handler."""
    if not _can_be_set():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt."""
        end_fork(number, owner)
        raise KeyboardInterrupt(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_fork(number: int, owner: int) -> None:
    """End a process that `owner` forked during training, as the default handler would."""
    if os.getpid() != owner:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _can_be_set() -> bool:
    """Return whether this thread may set a handler and the program has set none."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:  # the main thread of a subinterpreter; only this call can detect it
        return False
    return True
