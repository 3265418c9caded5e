"""One matrix, or two, for each gate: how hand-written LSTMs keep their parameters.

Two forms are read and written. *Joined*: each gate has one matrix on h above
x, ``Wf, Wi, WC, Wo`` (H, H + I), and a bias. *Parted*: each gate has one matrix
for h and one for x, ``Wfh`` (H, H) and ``Wfx`` (H, I), and a bias. Their C or c
is the candidate, here called g.
"""

from __future__ import annotations

from collections.abc import Mapping

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._typing import Array, Namespace
from xplstm.cells.lstm import STANDARD
from xplstm.cells.params import LSTMParams


def from_joined(weights: Mapping[str, Array]) -> LSTMParams:
    """Read a layer whose gates have one matrix each, on h above x.

    Parameters
    ----------
    weights : mapping of str to array
        ``Wf, Wi, WC, Wo`` of shape (H, H + I), and ``bf, bi, bC, bo`` of shape (H, 1) or (H,), or no bias
        at all; ``Wc`` and ``bc`` are accepted for ``WC`` and ``bC``. Of one library, device and float dtype.

    Returns
    -------
    LSTMParams
        New arrays; bias_hh is zero, because these layers have one bias a gate.

    Raises
    ------
    ArgumentError
        If a name is missing or unknown.
    ShapeError, DTypeError, BackendError
        Naming the matrix or bias and what it should be.

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
        msg = f"Wf has shape {(H, columns)}, expected (H, H + I): h above x, so more columns than rows"
        raise ShapeError(msg)
    _check_shapes(weights, dict.fromkeys(matrices, (H, columns)))
    parts = {k: (weights[f"W{k}"][:, :H], weights[f"W{k}"][:, H:]) for k in letters}
    return _assemble([parts[k] for k in letters], _biases(weights, biases, H))


def to_joined(
    params: LSTMParams, *, candidate: str = "C", columns: bool = True, gradient: bool = False
) -> dict[str, Array]:
    """Write a layer as one matrix for each gate, on h above x.

    Parameters
    ----------
    params : LSTMParams
        Of a standard LSTM without a projection.
    candidate : {"C", "c"}
        What the candidate is called.
    columns : bool, default True
        Whether a bias is a column (H, 1), or else (H,).
    gradient : bool, default False
        Whether `params` are the gradients that a pullback gave. Both of our biases then hold the
        gradient with respect to the one bias of this form, and one of them is taken; else the two are added.

    Returns
    -------
    dict of str to array
        ``Wf, Wi, WC, Wo`` and, unless `params` has none, ``bf, bi, bC, bo``.

    Raises
    ------
    ArgumentError
        If `params` has a parameter that this form has no place for.

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
    params, xp = _checked(params)
    joined = _blocks(xp.concat([params.weight_hh, params.weight_ih], axis=1), g)
    return {f"W{k}": a for k, a in joined.items()} | _written_biases(params, g, columns, gradient)


def from_parted(weights: Mapping[str, Array]) -> LSTMParams:
    """Read a layer whose gates have two matrices each, one for h and one for x.

    Parameters
    ----------
    weights : mapping of str to array
        ``Wfh, Wih, Wch, Woh`` of shape (H, H), ``Wfx, Wix, Wcx, Wox`` of shape (H, I), and ``bf, bi, bc,
        bo`` of shape (H, 1) or (H,), or no bias at all. Of one library, device and floating dtype.

    Returns
    -------
    LSTMParams
        New arrays; bias_hh is zero, because these layers have one bias a gate.

    Raises
    ------
    ArgumentError
        If a name is missing or unknown.
    ShapeError, DTypeError, BackendError
        Naming the matrix or bias and what it should be.

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
    """Write a layer as two matrices for each gate, one for h and one for x.

    Parameters
    ----------
    params : LSTMParams
        Of a standard LSTM without a projection.
    columns : bool, default True
        Whether a bias is a column (H, 1), or else (H,).
    gradient : bool, default False
        Whether `params` are the gradients that a pullback gave: as for `to_joined`.

    Returns
    -------
    dict of str to array
        ``Wfh, Wfx`` and so on for i, c and o, and, unless `params` has none, ``bf, bi, bc, bo``.

    Raises
    ------
    ArgumentError
        If `params` has a parameter that this form has no place for.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import gates
    >>> theirs = gates.to_parted(xplstm.LSTMParams(np.ones((8, 3)), np.ones((8, 2))))
    >>> theirs["Wch"].shape, theirs["Wcx"].shape
    ((2, 2), (2, 3))
    """
    params, _ = _checked(params)
    of_h = {f"W{k}h": a for k, a in _blocks(params.weight_hh, "c").items()}
    of_x = {f"W{k}x": a for k, a in _blocks(params.weight_ih, "c").items()}
    return of_h | of_x | _written_biases(params, "c", columns, gradient)


def _checked(params: LSTMParams) -> tuple[LSTMParams, Namespace]:
    """Return the parameters of one layer without options, and their library."""
    if not isinstance(params, LSTMParams):
        msg = f"params must be an LSTMParams, got {type(params).__name__}"
        raise DTypeError(msg)
    plain = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    strange = [name for name, a in params._asdict().items() if a is not None and name not in plain]
    if strange:
        msg = f"params has {', '.join(strange)}, for which this form has no place"
        raise ArgumentError(msg)
    params, _ = _checks.layer(params, STANDARD)
    return params, _array.namespace(params.weight_hh, "weight_hh")


def _check_names(weights: Mapping[str, Array], matrices: list[str], biases: list[str]) -> None:
    """Return all matrices, all biases or none, and nothing else; all of one home."""
    wanted = {*matrices, *(biases if weights.keys() & {*biases} else [])}
    missing, unknown = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted)
    if missing or unknown:
        msg = f"weights: missing {missing}, unknown {unknown}; expected {', '.join([*matrices, *biases])}"
        raise ArgumentError(msg)
    _checks.home(weights)


def _matrix_shape(weights: Mapping[str, Array], wanted: str, name: str) -> tuple[int, int]:
    """Return rows and columns of the matrix that the others are compared with."""
    shape = tuple(weights[name].shape)
    if len(shape) != 2 or 0 in shape:
        msg = f"{name} has shape {shape}, expected {wanted}, at least 1 of each"
        raise ShapeError(msg)
    return shape[0], shape[1]


def _check_shapes(weights: Mapping[str, Array], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse all matrices of another shape in one error."""
    wrong = [
        f"{name} has shape {tuple(weights[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if tuple(weights[name].shape) != shape
    ]
    if wrong:
        msg = "; ".join(wrong)
        raise ShapeError(msg)


def _biases(weights: Mapping[str, Array], names: list[str], H: int) -> list[Array] | None:
    """Return vectors in our order of gates, or None where there are none."""
    if names[0] not in weights:
        return None
    for name in names:
        shape = tuple(weights[name].shape)
        if shape not in ((H, 1), (H,)):
            msg = f"{name} has shape {shape}, expected {(H, 1)} or {(H,)}"
            raise ShapeError(msg)
    return [_array.reshape(weights[name], (H,)) for name in names]


def _assemble(parts: list[tuple[Array, Array]], biases: list[Array] | None) -> LSTMParams:
    """Return parameters from each gate's matrices for h and for x, in our order of gates."""
    xp = _array.namespace(parts[0][0], "W")
    weight_hh, weight_ih = (
        xp.concat([_array.native(a) for a in of], axis=0) for of in zip(*parts, strict=True)
    )
    if biases is None:
        return LSTMParams(weight_ih, weight_hh)
    bias = xp.concat([_array.native(b) for b in biases], axis=0)
    return LSTMParams(weight_ih, weight_hh, bias, xp.zeros_like(bias))


def _blocks(a: Array, g: str) -> dict[str, Array]:
    """Return copies of the four gates' rows, by the letters of these forms, f first."""
    H = a.shape[0] // 4
    blocks = {k: a[n * H : (n + 1) * H, ...] for n, k in enumerate(("i", "f", g, "o"))}
    return {k: _array.copy(blocks[k]) for k in ("f", "i", g, "o")}


def _written_biases(params: LSTMParams, g: str, columns: bool, gradient: bool) -> dict[str, Array]:
    """Return one bias for each gate."""
    columns, gradient = _values.flag("columns", columns), _values.flag("gradient", gradient)
    if params.bias_ih is None:
        return {}
    bias = params.bias_ih if gradient else params.bias_ih + params.bias_hh
    blocks = _blocks(bias, g)
    return {f"b{k}": _array.reshape(b, (b.shape[0], 1)) if columns else b for k, b in blocks.items()}
