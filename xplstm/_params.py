"""Parameters, the options of a cell, and the description of a problem that a kernel is asked to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from xplstm._typing import Array, Device, Namespace
from xplstm.cells import Cell


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
        Scale and shift after that of c, likewise; bias_c only together with the other biases.

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


P = TypeVar("P", bound=NamedTuple)


def each(change: Callable[[Array], Array], p: P) -> P:
    """Return the parameters with every array changed; None stays."""
    return p._make(None if a is None else change(a) for a in p)


class Activation(NamedTuple):
    """A function of one number; `alpha` and `beta` where it has them."""

    name: str
    alpha: float | None = None
    beta: float | None = None


def _format_activation(activation: Any) -> Any:
    """Return an activation as users pass it: a name, or the name and its constants."""
    name, *constants = (activation,) if isinstance(activation, str) else activation
    while constants and constants[-1] is None:
        constants.pop()
    return (name, *constants) if constants else name


class Variant(NamedTuple):
    """Options that change the standard LSTM; all can be combined.

    For their order within a step, with sources, see :doc:`/variants`.

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

    def changed(self) -> dict[str, Any]:
        """Return the options that are not the defaults.

        Returns
        -------
        dict of str to object
            As `Variant` takes them.

        Examples
        --------
        >>> import xplstm
        >>> xplstm.Variant(cell_clip=3.0).changed()
        {'cell_clip': 3.0}
        """
        given = self._replace(activations=tuple(map(_format_activation, self.activations)))._asdict()
        return {name: given[name] for name, default in self._field_defaults.items() if given[name] != default}

    def __repr__(self) -> str:
        return f"Variant({', '.join(f'{name}={value!r}' for name, value in self.changed().items())})"


class Noise(NamedTuple):
    """Where the random masks of a variant come from."""

    key: tuple[int, int]
    stream: int
    """Index ``layer * D + direction`` of the first direction."""
    start: int
    """Time of the first step."""


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
    cell: Cell
    noise: Noise | None = None
    """None where nothing is random."""
    precision: str | None = None
    """What products of float32 may be made in on a GPU: "tf32", or None for float32 alone."""
    reproducible: bool = False
    """Whether sums must have the reproducible summation order."""
    weights: str | None = None
    """What the matrices are stored in where it is not `dtype`."""
    resets: bool = False
    """Whether some steps start from zeros: `forward` then takes one more array, which says where."""
    activations: str | None = None
    """What x and h are rounded to on their way into products with int8 weights; None for `dtype`."""
    why_not_borrowed: str | None = ""
    """Why kernels for NumPy may not run on the memory of another library's arrays, or None where they may.
    Empty where the library's memory is never borrowed."""

    @property
    def output_size(self) -> int:
        """Features of h: P with a projection, else H."""
        return self.proj_size or self.H

    def part(self, d: int, lo: int, hi: int) -> Problem:
        """Return direction `d` alone, over the steps ``lo:hi``."""
        noise = self.noise
        if noise is not None:
            noise = Noise(noise.key, noise.stream + d, noise.start + lo)
        cell, reverse = self.cell.direction(d), self.reverse[d : d + 1]
        return self._replace(T=hi - lo, reverse=reverse, cell=cell, noise=noise)


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
    """Kernel that would run each layer, and why each faster kernel would not.

    Attributes
    ----------
    kernels : tuple of str
        One name a layer.
    reasons : tuple of dict
        For each layer, the reason why each kernel before the selected one cannot run.
    canonical_sums : bool
        Whether every layer has the reproducible summation order, so that the bits of
        a batch entry do not depend on the other entries.
    weights : tuple of str
        For each layer of ``freeze(weights=)``, what its kernel reads the weights as; else empty.
    proofs : tuple of str
        For each layer, what proved its kernel on the device; empty where no kernel needs a proof.
    """

    kernels: tuple[str, ...]
    reasons: tuple[dict[str, str], ...]
    canonical_sums: bool
    weights: tuple[str, ...] = ()
    proofs: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for layer, (kernel, reasons) in enumerate(zip(self.kernels, self.reasons, strict=True)):
            lines.append(f"layer {layer}: {kernel}")
            lines += [f"  weights: {read}" for read in self.weights[layer : layer + 1]]
            lines += [
                f"  proof: it {text}; without it another kernel runs, and the results have other bits"
                for text in self.proofs[layer : layer + 1]
                if text
            ]
            lines += [f"  not {name}: {reason}" for name, reason in reasons.items()]
        lines.append(f"reproducible summation order: {'yes' if self.canonical_sums else 'no'}")
        return "\n".join(lines)
