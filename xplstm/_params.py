"""What travels through the house: parameters, states, and the description of a problem."""

from __future__ import annotations

from typing import Literal, NamedTuple

from xplstm._typing import Array, Device, Namespace


class LSTMParams(NamedTuple):
    """Parameters of one layer and direction, the gates in the order i, f, g, o.

    Attributes
    ----------
    weight_ih : array, shape (4H, I)
    weight_hh : array, shape (4H, H), or (4H, P) with a projection
    bias_ih, bias_hh : array, shape (4H,), or None
        Both or neither.
    weight_hr : array, shape (P, H), or None
        The projection from the hidden units to the state h.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> p = xplstm.LSTMParams(np.ones((8, 3)), np.ones((8, 2)))
    >>> p.bias_ih is None
    True
    """

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None = None
    bias_hh: Array | None = None
    weight_hr: Array | None = None


class LSTMState(NamedTuple):
    """State of an LSTM: always h first, then c.

    Attributes
    ----------
    h : array, shape (L*D, B, H), or (L*D, B, P) with a projection
        Index ``layer * D + direction``.
    c : array, shape (L*D, B, H)

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> h, c = xplstm.LSTMState(np.zeros((1, 4, 2)), np.zeros((1, 4, 2)))
    """

    h: Array
    c: Array


class Problem(NamedTuple):
    """One layer, all its directions, one whole sequence: what a kernel is asked to run.

    Everything that chooses a kernel and nothing that a computation needs the
    values of.
    """

    xp: Namespace
    backend: str
    device: Device
    dtype: str
    T: int
    B: int
    I: int
    H: int
    proj_size: int
    bias: bool
    reverse: tuple[bool, ...]
    valid: Literal["all", "lengths", "mask"]
    keep: bool

    @property
    def output_size(self) -> int:
        """Features of h: P with a projection, else H."""
        return self.proj_size or self.H


class LSTMTrace(NamedTuple):
    """Every gate and state of every step.

    Attributes
    ----------
    i, f, g, o, c : array, shape (L*D, T, B, H)
        Index ``layer * D + direction``; the other axes as x has them. Exactly
        0 where a row has no step.
    h : array, shape (L*D, T, B, H), or (L*D, T, B, P) with a projection
    """

    i: Array
    f: Array
    g: Array
    o: Array
    c: Array
    h: Array


class Explanation(NamedTuple):
    """Which kernel would run each layer, and why not each faster one.

    Attributes
    ----------
    kernels : tuple of str
        One name a layer.
    reasons : tuple of dict
        For each layer, the reason against each kernel that stands before the chosen one.
    canonical_sums : bool
        Whether every layer's sums are added in the one published order, so that a
        row's bits do not depend on the batch around it.
    """

    kernels: tuple[str, ...]
    reasons: tuple[dict[str, str], ...]
    canonical_sums: bool

    def __str__(self) -> str:
        lines = []
        for layer, (kernel, reasons) in enumerate(zip(self.kernels, self.reasons, strict=True)):
            lines.append(f"layer {layer}: {kernel}")
            lines += [f"  not {name}: {reason}" for name, reason in reasons.items()]
        lines.append(f"canonical sums: {'yes' if self.canonical_sums else 'no'}")
        return "\n".join(lines)
