"""The parameters of an LSTM, and the options of a cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from xplstm._typing import Array


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
