"""Define the interface of an implementation under test.

An adapter has ``describe()``, ``why_unavailable()`` and
``call(op, config, arrays)``. Arguments and results are time-major NumPy arrays
with gates i, f, g, o, two biases, and the state (h, c). The operations are:

layer
    Run one layer and direction with the arrays x, h_0, c_0 and parameters
    without a suffix; return y, h_n, c_n.
module
    Run an LSTM of the sizes in config, with parameter names such as
    ``weight_ih_l0`` and states (L*D, B, H); return y, h_n, c_n and, if
    possible, i, f, g, o.
layer_vjp, module_vjp
    Run the same with dy, dh_n, dc_n among the arrays; also return d<name> of
    every input.

Besides the sizes, config contains the options that differ from the standard LSTM,
with real numbers as decimals: ``variant``, ``merge``, ``input_dropout`` and
``weight_dropout``. If it has ``noise``, its key determines the masks of the call;
``dropout`` has a separate key. Only the operations that end in _vjp get noise.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

Arrays: TypeAlias = dict[str, np.ndarray]
Config: TypeAlias = dict[str, Any]


class Refused(Exception):
    """The implementation rejected the call; `kind` is "shape" or "other"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Unsupported(Exception):
    """The implementation states that it does not support the call."""


class Adapter(Protocol):
    """Implementation under test."""

    def __hash__(self) -> int: ...

    def describe(self) -> dict[str, str]: ...

    def why_unavailable(self) -> str | None:
        """Return what is missing to run here at all, or None."""

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        """Run one operation, or raise `Refused` or `Unsupported`."""
