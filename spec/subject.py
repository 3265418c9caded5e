"""What the suite asks of an implementation, however it is reached.

An adapter has ``describe()``, ``why_unavailable()`` and
``call(op, config, arrays)``: NumPy arrays in and out, time-major, gates
i, f, g, o, two biases, (h, c). The operations:

layer
    One layer and direction: arrays x, h_0, c_0 and parameters without suffix;
    gives y, h_n, c_n.
module
    An LSTM of the sizes in config, parameters named as in ``weight_ih_l0``,
    states (L*D, B, H); gives y, h_n, c_n and, where it can, i, f, g, o.
layer_vjp, module_vjp
    The same with dy, dh_n, dc_n among the arrays; gives also d<name> of every
    input.

Beside the sizes, config holds what differs from the plain LSTM, real numbers as
decimals: ``variant``, ``merge``, ``input_dropout`` and ``weight_dropout``. Where it
has ``noise``, the masks of the call are those of its key; ``dropout`` has a key of
its own. Only the operations that end in _vjp are called with noise.
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
    """The implementation declares that it does not offer this."""


class Adapter(Protocol):
    """An implementation under test."""

    def __hash__(self) -> int: ...

    def describe(self) -> dict[str, str]: ...

    def why_unavailable(self) -> str | None:
        """Say what is missing to run here at all, or None."""

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        """Run one operation, or raise `Refused` or `Unsupported`."""
