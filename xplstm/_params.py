"""What travels through the house: parameters, states, and the description of a problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from xplstm import _rows
from xplstm._errors import ArgumentError
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
    weight_ch : array, shape (3H,), or None
        Peepholes from c to the gates i, f and o, with the variant's peepholes alone.
    gain_ih, gain_hh : array, shape (4H,), or None
        Scales after the normalisation of ``W_ih x`` and ``W_hh h``, with the variant's layer_norm alone.
    gain_c, bias_c : array, shape (H,), or None
        Scale and shift after that of c, likewise; bias_c only beside the other biases.

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
    weight_ch: Array | None = None
    gain_ih: Array | None = None
    gain_hh: Array | None = None
    gain_c: Array | None = None
    bias_c: Array | None = None


class RNNParams(NamedTuple):
    """Parameters of one layer and direction of a simple recurrent network.

    Attributes
    ----------
    weight_ih : array, shape (H, I)
    weight_hh : array, shape (H, H), or (H, O) with an output
    bias_ih, bias_hh : array, shape (H,), or None
    weight_hr, bias_hr : array, shapes (O, H) and (O,), or None
        From the hidden units to the output that recurs.
    """

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None = None
    bias_hh: Array | None = None
    weight_hr: Array | None = None
    bias_hr: Array | None = None


Params: TypeAlias = "LSTMParams | RNNParams"
P = TypeVar("P", bound="LSTMParams | RNNParams")


def each(change: Callable[[Array], Array], p: P) -> P:
    """The parameters with every array that is there changed."""
    return type(p)(*(None if a is None else change(a) for a in p))


class Activation(NamedTuple):
    """A function of one number; `alpha` and `beta` where it has them."""

    name: str
    alpha: float | None = None
    beta: float | None = None


def _spelled(activation: Any) -> str:
    """An activation as text: its name, and its constants where they were given."""
    name, *constants = (activation,) if isinstance(activation, str) else activation
    while constants and constants[-1] is None:
        constants.pop()
    return f"{name}({', '.join(map(str, constants))})" if constants else name


class Variant(NamedTuple):
    """What an LSTM does otherwise than the plain one; every option goes with every other.

    The order of all of it within a step, with sources, stands in :doc:`/variants`.

    Parameters
    ----------
    peepholes : bool, default False
        i and f see the old c, o sees the new one, unit by unit; Gers and Schmidhuber (2000).
    coupled : bool, default False
        f is 1 - i; Greff et al. (2017). The rows of f keep their place in the weights.
    activations : sequence, default ("sigmoid", "tanh", "tanh")
        Of the gates i, f, o; of g; and of c on its way to h. Three for all directions, or six: the
        forward direction's, then the backward one's. Each is a name or (name, alpha) or (name, alpha,
        beta): affine, elu, hard_sigmoid, identity, leaky_relu, relu, scaled_tanh, sigmoid, softplus,
        softsign, tanh, thresholded_relu.
    gate_clip : float or None
        Bound, above 0, of what goes into the gates' functions, g's included; the clip of ONNX.
    cell_clip : float or None
        Bound, above 0, of c; Sak, Senior and Beaufays (2014).
    layer_norm : bool, default False
        Normalise ``W_ih x``, ``W_hh h`` and c on its way to h; Ba, Kiros and Hinton (2016).
    zoneout_h, zoneout_c : float, default 0.0
        Probability, in [0, 1), that a unit keeps its old value; Krueger et al. (2017). Without a
        generator a unit moves by its expectation.
    recurrent_dropout : float, default 0.0
        Probability, in [0, 1), to drop a unit of h on its way to the gates, the same units at every
        step; Gal and Ghahramani (2016). Only with a generator.

    Examples
    --------
    >>> import xplstm
    >>> lstm = xplstm.LSTM(3, 2, variant=xplstm.Variant(peepholes=True, cell_clip=3.0))
    >>> lstm.params["weight_ch_l0"].shape
    (6,)
    """

    peepholes: bool = False
    coupled: bool = False
    activations: tuple[Any, ...] = ("sigmoid", "tanh", "tanh")
    gate_clip: float | None = None
    cell_clip: float | None = None
    layer_norm: bool = False
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0

    def __str__(self) -> str:
        given = self._replace(activations=tuple(map(_spelled, self.activations)))
        return ", ".join(
            name if value is True else f"{name}={value}"
            for (name, value), default in zip(given._asdict().items(), Variant(), strict=True)
            if value != default
        )


class Simple(NamedTuple):
    """A simple recurrent network in the place of an LSTM: one gate, and no c."""

    nonlinearity: str
    output: bool
    """Whether an output of the hidden units recurs (Jordan), or they themselves do (Elman)."""
    alpha: float | None = None
    beta: float | None = None
    """The nonlinearity's constants, where it has them."""
    clip: float | None = None
    """Bound of what goes into it."""

    def __str__(self) -> str:
        return "a Jordan network" if self.output else "an Elman network"


class Noise(NamedTuple):
    """Where the random masks of a variant come from."""

    key: tuple[int, int]
    stream: int
    """Index ``layer * D + direction`` of the first direction."""
    start: int
    """Time of the first step."""


class LSTMState(NamedTuple):
    """State of an LSTM: always h first, then c.

    Its methods change the members of a batch, for streams that come and go.
    They find the rows on axis 1 of three axes. A state of two axes could be
    (B, H), as `lstm` takes it, or (L*D, H), without rows: there they ask for
    ``axis=0``, or for `stack`. Rows are given as integers: one, a list, or an array of
    NumPy or of the state's library; they are never looked at on a device.

    Attributes
    ----------
    h : array, shape (L*D, B, H), or (L*D, B, P) with a projection
        Index ``layer * D + direction``.
    c : array, shape (L*D, B, H)

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> state = xplstm.LSTMState(np.ones((1, 4, 2)), np.ones((1, 4, 2)))
    >>> h, c = state.reset([1, 2])
    >>> h[0, :, 0]
    array([1., 0., 0., 1.])
    """

    h: Array
    c: Array

    def take(self, rows: Any, *, axis: int | None = None) -> LSTMState:
        """Give some rows, in the order asked for, repeated if asked for twice.

        Parameters
        ----------
        rows : int, or integers of shape (N,)
            In [0, B). A single int gives a state without rows.
        axis : int, optional
            Of the rows; 1 if left out, for which the state must have three axes.

        Returns
        -------
        LSTMState
            With N rows, or without the axis.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming what is wrong and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> h = np.arange(4.0).reshape(1, 4, 1)
        >>> xplstm.LSTMState(h, h).take([3, 0]).h[0, :, 0]
        array([3., 0.])
        """
        return LSTMState(*(_rows.take(n, a, rows, _rows.axis_of(n, a, axis)) for n, a in self._named()))

    def reset(self, rows: Any, to: Any = None, *, axis: int | None = None) -> LSTMState:
        """Let some rows begin anew; the others keep their bits.

        Parameters
        ----------
        rows : int, integers of shape (N,), or booleans of shape (B,)
            Which rows.
        to : (h, c), optional
            What they become: of this state's shape, or with one row or no axis of rows, for all
            alike. Zeros if left out.
        axis : int, optional
            Of the rows; 1 if left out, for which the state must have three axes.

        Returns
        -------
        LSTMState
            New arrays of the same shapes.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming what is wrong and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> h = np.arange(4.0).reshape(1, 4, 1)
        >>> xplstm.LSTMState(h, h).reset([True, False, False, True], to=(h + 10, h)).h[0, :, 0]
        array([10.,  1.,  2., 13.])
        """
        tos = (None, None) if to is None else _rows.pair("to", to)
        return LSTMState(
            *(
                _rows.reset(n, a, rows, b, _rows.axis_of(n, a, axis))
                for (n, a), b in zip(self._named(), tos, strict=True)
            )
        )

    def zeros(self, count: int, *, axis: int | None = None) -> LSTMState:
        """Make rows of zeros like these: what a new member of the batch begins with.

        Parameters
        ----------
        count : int
            Number of rows, at least 0.
        axis : int, optional
            Of the rows; 1 if left out, for which the state must have three axes.

        Returns
        -------
        LSTMState
            Of the same library, device, dtype and sizes.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            Naming what is wrong and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> xplstm.LSTMState(np.ones((1, 4, 2)), np.ones((1, 4, 2))).zeros(3).h.shape
        (1, 3, 2)
        """
        return LSTMState(*(_rows.zeros(n, a, count, _rows.axis_of(n, a, axis)) for n, a in self._named()))

    @staticmethod
    def concat(states: Sequence[LSTMState | tuple[Array, Array]], *, axis: int | None = None) -> LSTMState:
        """Join the rows of several states to one batch.

        Parameters
        ----------
        states : sequence of (h, c)
            At least one; the same sizes but for the rows.
        axis : int, optional
            Of the rows; 1 if left out, for which the states must have three axes.

        Returns
        -------
        LSTMState
            The rows of the first, then those of the second, and so on.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming the state and what is wrong with it.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> state = xplstm.LSTMState(np.ones((1, 4, 2)), np.ones((1, 4, 2)))
        >>> xplstm.LSTMState.concat([state, state.zeros(1)]).h[0, :, 0]
        array([1., 1., 1., 1., 0.])
        """
        return LSTMState(*(_rows.join(n, a, _rows.axis_of(n[0], a[0], axis)) for n, a in _columns(states)))

    @staticmethod
    def stack(states: Sequence[LSTMState | tuple[Array, Array]]) -> LSTMState:
        """Make a batch of states that have no rows, as from calls without a batch axis.

        Parameters
        ----------
        states : sequence of (h, c)
            At least one; h and c of shape (L*D, ·) or (·,), the same for all.

        Returns
        -------
        LSTMState
            (L*D, B, ·) or (B, ·), one row a state; ``take`` with an int undoes it.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming the state and what is wrong with it.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> one = xplstm.LSTMState(np.ones((3, 2)), np.ones((3, 2)))
        >>> xplstm.LSTMState.stack([one, one, one, one]).h.shape
        (3, 4, 2)
        """
        return LSTMState(*(_rows.stack(names, arrays) for names, arrays in _columns(states)))

    def _named(self) -> tuple[tuple[str, Array], tuple[str, Array]]:
        return ("h", self.h), ("c", self.c)


def _columns(states: Sequence[LSTMState | tuple[Array, Array]]) -> list[tuple[list[str], list[Array]]]:
    """The h of all states, then the c, each with its names."""
    pairs = [LSTMState(*_rows.pair(f"states[{k}]", state)) for k, state in enumerate(states)]
    if not pairs:
        msg = "states is empty; at least 1 is needed"
        raise ArgumentError(msg)
    return [
        ([f"states[{k}].{letter}" for k in range(len(pairs))], [getattr(pair, letter) for pair in pairs])
        for letter in LSTMState._fields
    ]


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
    variant: Variant | Simple | None = None
    """None for the plain LSTM."""
    noise: Noise | None = None
    """None where nothing is random."""
    precision: str | None = None
    """What products of float32 may be made in on a GPU: "tf32", or None for float32 alone."""
    reproducible: bool = False
    """Whether sums must be in the published order."""

    @property
    def output_size(self) -> int:
        """Features of h: P with a projection, else H."""
        return self.proj_size or self.H

    @property
    def trace_sizes(self) -> tuple[int, ...]:
        """Features of what a trace shows of a step: i, f, g, o, c and h, or the hidden units alone."""
        return (self.H,) if isinstance(self.variant, Simple) else (*[self.H] * 5, self.output_size)

    def part(self, d: int, lo: int, hi: int) -> Problem:
        """Direction `d` alone, over the steps ``lo:hi``."""
        variant, noise = self.variant, self.noise
        if isinstance(variant, Variant):
            a = variant.activations
            variant = variant._replace(activations=a[3 * d : 3 * d + 3] if len(a) == 6 else a)
        if noise is not None:
            noise = Noise(noise.key, noise.stream + d, noise.start + lo)
        return self._replace(T=hi - lo, reverse=self.reverse[d : d + 1], variant=variant, noise=noise)


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
