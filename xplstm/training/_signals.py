"""SIGTERM as Ctrl-C: what batch systems and containers send before they stop a process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM, in the main thread and where no other handler is set."""
    if not _can_be_set():
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _can_be_set() -> bool:
    """Return whether this thread may set a handler, and the program has set none."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:  # the main thread of a subinterpreter, which only this call can distinguish
        return False
    return True


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Handle the signal."""
    raise KeyboardInterrupt(signal.Signals(number).name)
