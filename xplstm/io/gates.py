"""Convert parameters with separate matrices for each gate, as in hand-written LSTMs.

There are two forms. *Joined*: each gate has a bias and one matrix ``Wf, Wi, WC, Wo`` (H, H + I), which
multiplies h and x stacked. *Parted*: each gate has a bias, a matrix for h, such as ``Wfh`` (H, H), and a
matrix for x, such as ``Wfx`` (H, I). C or c is the candidate, whose name in this package is g.
"""

from __future__ import annotations

from collections.abc import Mapping

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._typing import Array, Namespace
from xplstm.cells.lstm import STANDARD
from xplstm.cells.params import LSTMParams


def from_joined(weights: Mapping[str, Array]) -> LSTMParams:
    """Convert a layer with one matrix for each gate, which multiplies h and x stacked.

    Parameters
    ----------
    weights : mapping of str to array
        ``Wf, Wi, WC, Wo`` of shape (H, H + I), and optionally ``bf, bi, bC, bo`` of shape (H, 1) or (H,).
        ``Wc`` and ``bc`` are accepted for ``WC`` and ``bC``. All arrays have one library, device and float
        dtype.

    Returns
    -------
    LSTMParams
        New arrays. bias_hh is zero, since this form has one bias for each gate.

    Raises
    ------
    ArgumentError
        If a name is missing or unknown.
    ShapeError, DTypeError, BackendError
        If a matrix or bias has the wrong shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import gates
    >>> rng = np.random.default_rng(0)
    >>> theirs = {f"W{k}": rng.normal(size=(5, 5 + 3)) for k in "fiCo"}
    >>> params = gates.from_joined(theirs | {f"b{k}": np.zeros((5, 1)) for k in "fiCo"})
    >>> y, state = xplstm.lstm(rng.normal(size=(4, 3)), params)
    >>> y.shape
    (4, 5)
    """
    _checks.mapping("weights", weights)
    g = "C" if "WC" in weights else "c"
    letters = ("i", "f", g, "o")
    matrices, biases = [f"W{k}" for k in letters], [f"b{k}" for k in letters]
    _check_names(weights, matrices, biases)
    H, columns = _matrix_shape(weights, "Wf: (H, H + I)", "Wf")
    if columns <= H:
        msg = f"Wf has shape {(H, columns)}, expected (H, H + I), with more columns than rows"
        raise ShapeError(msg)
    _check_shapes(weights, dict.fromkeys(matrices, (H, columns)))
    parts = {k: (weights[f"W{k}"][:, :H], weights[f"W{k}"][:, H:]) for k in letters}
    return _assemble([parts[k] for k in letters], _biases(weights, biases, H))


def to_joined(
    params: LSTMParams, *, candidate: str = "C", columns: bool = True, gradient: bool = False
) -> dict[str, Array]:
    """Convert a layer to one matrix for each gate, which multiplies h and x stacked.

    Parameters
    ----------
    params : LSTMParams
        Parameters of a standard LSTM without a projection.
    candidate : {"C", "c"}
        Letter of the candidate.
    columns : bool, default True
        Whether a bias has shape (H, 1) instead of (H,).
    gradient : bool, default False
        Whether `params` are gradients from a pullback. The gradient with respect to the bias is then that of
        bias_ih. Otherwise bias_ih and bias_hh are added.

    Returns
    -------
    dict of str to array
        ``Wf, Wi, WC, Wo``, and ``bf, bi, bC, bo`` if `params` has biases.

    Raises
    ------
    ArgumentError
        If `params` has a parameter that this form does not support.
    ShapeError, DTypeError, BackendError
        If an array has the wrong shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import gates
    >>> params = xplstm.LSTMParams(np.ones((20, 3)), np.ones((20, 5)), np.ones(20), np.ones(20))
    >>> theirs = gates.to_joined(params)
    >>> theirs["WC"].shape, theirs["bC"].shape, float(theirs["bC"][0, 0])
    ((5, 8), (5, 1), 2.0)
    """
    g = _values.one_of("candidate", candidate, ("C", "c"))
    params, xp = _check_params(params)
    joined = _blocks(xp.concat([params.weight_hh, params.weight_ih], axis=1), g)
    return {f"W{k}": a for k, a in joined.items()} | _merge_biases(params, g, columns, gradient)


def from_parted(weights: Mapping[str, Array]) -> LSTMParams:
    """Convert a layer with two matrices for each gate, one for h and one for x.

    Parameters
    ----------
    weights : mapping of str to array
        ``Wfh, Wih, Wch, Woh`` of shape (H, H), ``Wfx, Wix, Wcx, Wox`` of shape (H, I), and optionally
        ``bf, bi, bc, bo`` of shape (H, 1) or (H,). All arrays have one library, device and float dtype.

    Returns
    -------
    LSTMParams
        New arrays. bias_hh is zero, since this form has one bias for each gate.

    Raises
    ------
    ArgumentError
        If a name is missing or unknown.
    ShapeError, DTypeError, BackendError
        If a matrix or bias has the wrong shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.io import gates
    >>> theirs = {f"W{k}h": np.ones((2, 2)) for k in "fico"} | {f"W{k}x": np.ones((2, 3)) for k in "fico"}
    >>> gates.from_parted(theirs).weight_ih.shape
    (8, 3)
    """
    _checks.mapping("weights", weights)
    letters = ("i", "f", "c", "o")
    matrices, biases = [f"W{k}{of}" for of in "hx" for k in letters], [f"b{k}" for k in letters]
    _check_names(weights, matrices, biases)
    H, columns = _matrix_shape(weights, "(H, I)", "Wfx")
    _check_shapes(weights, {name: (H, H if name.endswith("h") else columns) for name in matrices})
    parts = [(weights[f"W{k}h"], weights[f"W{k}x"]) for k in letters]
    return _assemble(parts, _biases(weights, biases, H))


def to_parted(params: LSTMParams, *, columns: bool = True, gradient: bool = False) -> dict[str, Array]:
    """Convert a layer to two matrices for each gate, one for h and one for x.

    Parameters
    ----------
    params : LSTMParams
        Parameters of a standard LSTM without a projection.
    columns : bool, default True
        Whether a bias has shape (H, 1) instead of (H,).
    gradient : bool, default False
        Whether `params` are gradients from a pullback, as for `to_joined`.

    Returns
    -------
    dict of str to array
        ``Wfh, Wfx`` and the same for i, c and o, and ``bf, bi, bc, bo`` if `params` has biases.

    Raises
    ------
    ArgumentError
        If `params` has a parameter that this form does not support.
    ShapeError, DTypeError, BackendError
        If an array has the wrong shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import gates
    >>> theirs = gates.to_parted(xplstm.LSTMParams(np.ones((8, 3)), np.ones((8, 2))))
    >>> theirs["Wch"].shape, theirs["Wcx"].shape
    ((2, 2), (2, 3))
    """
    params, _ = _check_params(params)
    of_h = {f"W{k}h": a for k, a in _blocks(params.weight_hh, "c").items()}
    of_x = {f"W{k}x": a for k, a in _blocks(params.weight_ih, "c").items()}
    return of_h | of_x | _merge_biases(params, "c", columns, gradient)


def _check_params(params: LSTMParams) -> tuple[LSTMParams, Namespace]:
    """Check the parameters of a standard layer, and return them with their library."""
    if not isinstance(params, LSTMParams):
        msg = f"params must be an LSTMParams, got {type(params).__name__}"
        raise DTypeError(msg)
    plain = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    unsupported = [name for name, a in params._asdict().items() if a is not None and name not in plain]
    if unsupported:
        msg = f"params has {', '.join(unsupported)}, which this form does not support"
        raise ArgumentError(msg)
    params, _ = _checks.layer(params, STANDARD)
    return params, _array.namespace(params.weight_hh, "weight_hh")


def _check_names(weights: Mapping[str, Array], matrices: list[str], biases: list[str]) -> None:
    """Check that there are all matrices, all biases or none, and no other names."""
    wanted = {*matrices, *(biases if weights.keys() & {*biases} else [])}
    missing, unknown = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted)
    if missing or unknown:
        msg = f"weights: missing {missing}, unknown {unknown}; expected {', '.join([*matrices, *biases])}"
        raise ArgumentError(msg)
    _checks.home(weights)


def _matrix_shape(weights: Mapping[str, Array], wanted: str, name: str) -> tuple[int, int]:
    """Return the shape of the matrix that determines the sizes."""
    shape = tuple(weights[name].shape)
    if len(shape) != 2 or 0 in shape:
        msg = f"{name} has shape {shape}, expected {wanted}, with each size at least 1"
        raise ShapeError(msg)
    return shape[0], shape[1]


def _check_shapes(weights: Mapping[str, Array], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check the shapes of all matrices, with one error for all."""
    wrong = [
        f"{name} has shape {tuple(weights[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if tuple(weights[name].shape) != shape
    ]
    if wrong:
        msg = "; ".join(wrong)
        raise ShapeError(msg)


def _biases(weights: Mapping[str, Array], names: list[str], H: int) -> list[Array] | None:
    """Return the biases as vectors in the order i, f, g, o, or None if there are none."""
    if names[0] not in weights:
        return None
    for name in names:
        shape = tuple(weights[name].shape)
        if shape not in ((H, 1), (H,)):
            msg = f"{name} has shape {shape}, expected {(H, 1)} or {(H,)}"
            raise ShapeError(msg)
    return [_array.reshape(weights[name], (H,)) for name in names]


def _assemble(parts: list[tuple[Array, Array]], biases: list[Array] | None) -> LSTMParams:
    """Join the matrices of the gates, which are in the order i, f, g, o."""
    xp = _array.namespace(parts[0][0], "W")
    weight_hh, weight_ih = (
        xp.concat([_array.native(a) for a in of], axis=0) for of in zip(*parts, strict=True)
    )
    if biases is None:
        return LSTMParams(weight_ih, weight_hh)
    bias = xp.concat([_array.native(b) for b in biases], axis=0)
    return LSTMParams(weight_ih, weight_hh, bias, xp.zeros_like(bias))


def _blocks(a: Array, g: str) -> dict[str, Array]:
    """Return copies of the rows of each gate, by the letters of these forms, f first."""
    H = a.shape[0] // 4
    blocks = {k: a[n * H : (n + 1) * H, ...] for n, k in enumerate(("i", "f", g, "o"))}
    return {k: _array.copy(blocks[k]) for k in ("f", "i", g, "o")}


def _merge_biases(params: LSTMParams, g: str, columns: bool, gradient: bool) -> dict[str, Array]:
    """Return one bias for each gate."""
    columns, gradient = _values.flag("columns", columns), _values.flag("gradient", gradient)
    if params.bias_ih is None:
        return {}
    bias = params.bias_ih if gradient else params.bias_ih + params.bias_hh
    blocks = _blocks(bias, g)
    return {f"b{k}": _array.reshape(b, (b.shape[0], 1)) if columns else b for k, b in blocks.items()}
