"""The errors a caller can catch; each is also the built-in that people already catch."""

from __future__ import annotations


class XplstmError(Exception):
    """Base of every error that xplstm raises on purpose."""


class ArgumentError(XplstmError, ValueError):
    """An argument has a value outside its bounds."""


class ShapeError(XplstmError, ValueError):
    """An array has another shape than the sizes ask for."""


class DTypeError(XplstmError, TypeError):
    """An array has another type, dtype or array library than the call needs."""


class BackendError(XplstmError, RuntimeError):
    """An array library was asked for that cannot run here, or two were mixed."""


class KernelError(XplstmError, RuntimeError):
    """The kernel that was asked for cannot run this problem, or no kernel can as was asked for."""


class NonFiniteError(XplstmError, FloatingPointError):
    """A loss, a gradient or a parameter is infinite or NaN."""


class FormatError(XplstmError, ValueError):
    """A file does not hold what its format promises."""


class GradientError(XplstmError, AssertionError):
    """A gradient is not what finite differences say."""
