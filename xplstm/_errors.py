"""Exceptions of xplstm. Each is also a subclass of the matching built-in exception."""

from __future__ import annotations


class XplstmError(Exception):
    """Base of every error that xplstm raises on purpose."""


class ArgumentError(XplstmError, ValueError):
    """An argument has a value outside its bounds."""


class ShapeError(XplstmError, ValueError):
    """An array has a shape that does not match the sizes."""


class DTypeError(XplstmError, TypeError):
    """An array has a type, dtype or array library that the call does not accept."""


class BackendError(XplstmError, RuntimeError):
    """A requested array library cannot run here, or arrays of two libraries or devices are mixed."""


class KernelError(XplstmError, RuntimeError):
    """The pinned kernel cannot run this problem, or no kernel supports the requested options."""


class NonFiniteError(XplstmError, FloatingPointError):
    """A loss, a gradient or a parameter is infinite or NaN."""


class GroupError(XplstmError, RuntimeError):
    """A process of a training group was lost, or raised an error that ends training in all processes."""


class FormatError(XplstmError, ValueError):
    """The content of a file violates its format.

    The message quotes the file. `printable` therefore escapes and truncates it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


LONGEST_MESSAGE = 2000


def printable(message: str) -> str:
    """Escape a message that quotes a file, and truncate it to 2,000 characters."""
    start = message[:LONGEST_MESSAGE]
    lines = (line if line.isprintable() else ascii(line)[1:-1] for line in start.split("\n"))
    text = "\n".join(lines)
    cut = len(text) > LONGEST_MESSAGE or len(message) > LONGEST_MESSAGE
    return text[: LONGEST_MESSAGE - 4] + " ..." if cut else text


class GradientError(XplstmError, AssertionError):
    """A gradient differs from finite differences."""
