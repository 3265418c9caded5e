"""Define the parameters of an LSTM, and the options of its cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from xplstm._typing import Array


class LSTMParams(NamedTuple):
    """Parameters of one layer and direction, with the gates in the order i, f, g, o.

    Attributes
    ----------
    weight_ih : array, shape (4H, I)
        float64, float32, float16 or bfloat16, like all parameters.
    weight_hh : array, shape (4H, H), or (4H, P) with a projection
    bias_ih, bias_hh : array, shape (4H,), or None
        Both biases, or neither.
    weight_hr : array, shape (P, H), or None
        Projection from the hidden units to the state h.
    weight_ch : array, shape (3H,), or None
        Peephole weights from c to the gates i, f and o. Only with ``Variant(peepholes=True)``.
    gain_ih, gain_hh : array, shape (4H,), or None
        Scales after the normalisation of ``W_ih x`` and ``W_hh h``. Only with ``Variant(layer_norm=True)``.
    gain_c, bias_c : array, shape (H,), or None
        Scale and shift after the normalisation of c. Only with ``Variant(layer_norm=True)``; bias_c only
        with the other biases.

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
    """Return the parameters with `change` applied to every array; keep None."""
    return p._make(None if a is None else change(a) for a in p)


class Activation(NamedTuple):
    """An activation function with its constants; None for a constant's default."""

    name: str
    alpha: float | None = None
    beta: float | None = None


def _format_activation(activation: Any) -> Any:
    """Return an activation in the form that users pass: a name, or a name with constants."""
    name, *constants = (activation,) if isinstance(activation, str) else activation
    while constants and constants[-1] is None:
        constants.pop()
    return (name, *constants) if constants else name


class Variant(NamedTuple):
    """Options that change the standard LSTM; all options can be combined.

    :doc:`/variants` lists the order of the options within a step, with sources.

    Parameters
    ----------
    peepholes : bool, default False
        Add the weighted previous c to the inputs of i and f, and the weighted new c to the input of o,
        unit by unit (Gers and Schmidhuber, 2000).
    coupled : bool, default False
        Set f to 1 - i (Greff et al., 2017). The weights keep their rows for f.
    activations : sequence, default ("sigmoid", "tanh", "tanh")
        Functions of the gates i, f and o, of the candidate g, and of c before the output gate. Three
        functions for all directions, or six: three for the forward direction, then three for the backward
        direction. Each is a name, (name, alpha) or (name, alpha, beta). The names are affine, elu,
        hard_sigmoid, identity, leaky_relu, relu, scaled_tanh, sigmoid, softplus, softsign, tanh and
        thresholded_relu.
    gate_clip : float or None
        Clip the inputs of the functions of i, f, g and o to [-gate_clip, gate_clip], above 0, as ONNX does.
    cell_clip : float or None
        Clip c to [-cell_clip, cell_clip], above 0 (Sak, Senior and Beaufays, 2014).
    layer_norm : bool, default False
        Normalise ``W_ih x``, ``W_hh h``, and c before the output gate (Ba, Kiros and Hinton, 2016).
    zoneout_h, zoneout_c : float, default 0.0
        Probability, in [0, 1), that a unit keeps its previous value (Krueger et al., 2017). Without a
        generator, the expected value replaces the random choice.
    recurrent_dropout : float, default 0.0
        Probability, in [0, 1), of dropping a unit of h before the gates, the same units at every
        step (Gal and Ghahramani, 2016). Only with a generator.

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
        """Return the options that differ from the defaults.

        Returns
        -------
        dict of str to object
            Arguments of `Variant`.

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
