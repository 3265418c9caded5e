"""Convert parameters between names (`xplstm.LSTM`) and layers with directions (`xplstm.lstm`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from xplstm import _checks, _values
from xplstm._errors import ArgumentError, DTypeError
from xplstm._typing import Array
from xplstm.cells.params import LSTMParams
from xplstm.nn import LSTM

Layers: TypeAlias = Sequence[LSTMParams | Sequence[LSTMParams]]

_SUFFIXES = ("", "_reverse")


def split(params: Mapping[str, Array]) -> tuple[tuple[LSTMParams, ...], ...]:
    """Split the parameters of an LSTM, or their gradients, by layer and direction.

    Parameters
    ----------
    params : mapping of str to array
        ``lstm.params``, ``lstm.state_dict()``, or gradients from a pullback with the same names.

    Returns
    -------
    tuple of tuple of LSTMParams
        Parameters by layer, then by direction. The arrays are not copied.

    Raises
    ------
    ArgumentError
        If a name is not that of a parameter, or a weight is missing.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm.io import layers
    >>> lstm = xplstm.LSTM(3, 2, num_layers=2, bidirectional=True)
    >>> parted = layers.split(lstm.params)
    >>> len(parted), len(parted[0]), parted[1][0].weight_ih.shape
    (2, 2, (8, 4))
    """
    _checks.mapping("params", params)
    directions = 2 if "weight_ih_l0_reverse" in params else 1
    count = max(1, sum(f"weight_ih_l{layer}" in params for layer in range(len(params))))
    found = tuple(
        tuple(
            LSTMParams._make(params.get(f"{field}_l{layer}{suffix}") for field in LSTMParams._fields)
            for suffix in _SUFFIXES[:directions]
        )
        for layer in range(count)
    )
    weights = {
        f"{weight}_l{layer}{suffix}"
        for layer in range(count)
        for suffix in _SUFFIXES[:directions]
        for weight in ("weight_ih", "weight_hh")
    }
    _checks.names(params, weights | join(found).keys())
    return found


def join(layers: Layers) -> dict[str, Array]:
    """Join the parameters of layers into a dict with the names of `xplstm.LSTM`.

    Parameters
    ----------
    layers : sequence of LSTMParams, or of one or two LSTMParams each
        The layers in order. For two directions, each layer is a pair with the forward direction first.

    Returns
    -------
    dict of str to array
        ``weight_ih_l0`` and so on, for `xplstm.LSTM.load_state_dict`. The arrays are not copied.

    Raises
    ------
    ArgumentError, DTypeError
        If there is no layer, or a layer has the wrong type or number of directions.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import layers
    >>> list(layers.join([xplstm.LSTMParams(np.ones((8, 3)), np.ones((8, 2)))]))
    ['weight_ih_l0', 'weight_hh_l0']
    """
    return {
        f"{field}_l{layer}{suffix}": a
        for layer, directions in enumerate(_directions(layers))
        for suffix, params in zip(_SUFFIXES, directions, strict=False)
        for field, a in params._asdict().items()
        if a is not None
    }


def to_lstm(layers: Layers, **options: Any) -> LSTM:
    """Create an LSTM from the parameters of its layers.

    Parameters
    ----------
    layers : sequence of LSTMParams, or of one or two LSTMParams each
        The layers in order. For two directions, each layer is a pair with the forward direction first. All
        arrays have one library, device and float dtype. The arrays are copied.
    **options
        Options of `xplstm.LSTM` that shapes do not show, such as ``batch_first`` and ``dropout``.

    Returns
    -------
    LSTM
        LSTM with the sizes, library, device and dtype of the parameters.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError, BackendError
        If a layer or parameter has the wrong type, shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import layers
    >>> rng = np.random.default_rng(0)
    >>> one = xplstm.LSTMParams(rng.normal(size=(8, 3)), rng.normal(size=(8, 2)))
    >>> two = xplstm.LSTMParams(rng.normal(size=(8, 2)), rng.normal(size=(8, 2)))
    >>> layers.to_lstm([one, two], batch_first=True)
    LSTM(3, 2, num_layers=2, bias=False, batch_first=True)
    """
    directions = _directions(layers)
    named = join(directions)
    first = directions[0][0]
    home = _checks.home(named)
    proj_size, hidden_size = (
        (0, first.weight_hh.shape[1]) if first.weight_hr is None else first.weight_hr.shape
    )
    dtype: Any = home.dtype
    lstm = LSTM(
        first.weight_ih.shape[1],
        hidden_size,
        len(directions),
        bias=first.bias_ih is not None,
        bidirectional=len(directions[0]) == 2,
        proj_size=proj_size,
        xp=home.xp,
        device=home.device,
        dtype=dtype,
        rng=0,
        **options,
    )
    lstm.load_state_dict(named)
    return lstm


def _directions(layers: Layers) -> list[tuple[LSTMParams, ...]]:
    """Return the directions of each layer, and check that all layers have the same number."""
    found = [
        (layer,) if isinstance(layer, LSTMParams) else tuple(_values.items(f"layers[{k}]", layer))
        for k, layer in enumerate(_values.items("layers", layers, 1))
    ]
    for number, directions in enumerate(found):
        if len(directions) != len(found[0]) or len(directions) not in (1, 2):
            wanted = len(found[0]) if len(found[0]) in (1, 2) else "1 or 2"
            msg = f"layers[{number}] has {len(directions)} directions, expected {wanted}"
            raise ArgumentError(msg)
        for direction in directions:
            if not isinstance(direction, LSTMParams):
                msg = (
                    f"layers[{number}] must be LSTMParams, or a pair of them, got {type(direction).__name__}"
                )
                raise DTypeError(msg)
    return found
