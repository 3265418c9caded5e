"""Run steps and sequences with column vectors, the shapes of hand-written LSTMs.

In these functions a batch entry is a column; in the rest of the package it is a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xplstm import _array, _checks
from xplstm._errors import ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.cells.lstm import STANDARD
from xplstm.cells.params import LSTMParams
from xplstm.functional import lstm


def from_columns(h: Array, c: Array) -> LSTMState:
    """Convert a state whose columns are batch entries.

    Parameters
    ----------
    h, c : array, shape (H, B)
        State; B is 1 for a single column vector.

    Returns
    -------
    LSTMState
        h and c of shape (B, H), as for `xplstm.lstm`. Add an axis with ``[None]`` for `xplstm.LSTM`.

    Raises
    ------
    ShapeError
        If an array does not have two axes.
    DTypeError, BackendError
        If `h` and `c` are not float arrays of one library, device and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.io import columns
    >>> columns.from_columns(np.zeros((5, 1)), np.zeros((5, 1))).h.shape
    (1, 5)
    """
    _checks.floats({"h": h, "c": c})
    for name, a in (("h", h), ("c", c)):
        if a.ndim != 2:
            msg = f"{name} has shape {tuple(a.shape)}, expected column vectors (H, B)"
            raise ShapeError(msg)
    return LSTMState(_array.native(h).T, _array.native(c).T)


def to_columns(state: LSTMState | tuple[Array, Array]) -> tuple[Array, Array]:
    """Convert a state of `xplstm.lstm` to a state with batch entries as columns.

    Parameters
    ----------
    state : (h, c)
        State with arrays of shape (B, H).

    Returns
    -------
    h : array, shape (H, B)
    c : array, shape (H, B)

    Raises
    ------
    ShapeError
        If an array does not have two axes.
    DTypeError, BackendError
        If h and c are not float arrays of one library, device and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.io import columns
    >>> h, c = columns.to_columns((np.zeros((1, 5)), np.zeros((1, 5))))
    >>> h.shape
    (5, 1)
    """
    h, c = _checks.state("state", state)
    h, c = from_columns(h, c)  # a transpose is its own inverse
    return h, c


def forward(x: Array, h_prev: Array, c_prev: Array, params: LSTMParams) -> tuple[Array, Array]:
    """Run one step on column vectors.

    Parameters
    ----------
    x : array, shape (I, 1), or (I, B) for a batch
        Input of the step, of any float dtype.
    h_prev, c_prev : array, shape (H, 1), or (H, B)
        Initial state.
    params : LSTMParams
        Parameters, such as those from `xplstm.io.gates`.

    Returns
    -------
    h : array, shape of h_prev
    c : array, shape of c_prev

    Raises
    ------
    ShapeError, DTypeError, BackendError
        If an argument has the wrong shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import columns
    >>> params = xplstm.LSTMParams(np.ones((20, 3)), np.ones((20, 5)))
    >>> h, c = columns.forward(np.ones((3, 1)), np.zeros((5, 1)), np.zeros((5, 1)), params)
    >>> h.shape, c.shape
    ((5, 1), (5, 1))
    """
    params, home = _layer(params)
    x = _checks.array("x", x, home, (params.weight_ih.shape[1], "B"), "column vectors of input_size")
    B, H, outputs = x.shape[1], params.weight_hh.shape[0] // 4, params.weight_hh.shape[1]
    h_prev = _checks.array("h_prev", h_prev, home, (outputs, B), "column vectors, as many as x has")
    c_prev = _checks.array("c_prev", c_prev, home, (H, B), "column vectors, as many as x has")
    _, state = lstm(x.T[None, ...], params, from_columns(h_prev, c_prev))
    return to_columns(state)


def forward_sequence(X: Array | Sequence[Array], params: LSTMParams) -> Array:
    """Run one sequence from a zero state.

    Parameters
    ----------
    X : array, shape (T, I) or (T, I, 1), or sequence of T arrays, shape (I,) or (I, 1)
        The sequence, of any float dtype.
    params : LSTMParams
        Parameters, such as those from `xplstm.io.gates`.

    Returns
    -------
    array, shape (T, H)
        h after every step.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        If an argument has the wrong shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import columns
    >>> params = xplstm.LSTMParams(np.ones((8, 3)), np.ones((8, 2)))
    >>> x = [np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [3.0], [4.0]])]
    >>> columns.forward_sequence(x, params).shape
    (2, 2)
    """
    params, home = _layer(params)
    I = params.weight_ih.shape[1]
    joined: Any = _stack_vectors(X, home, I) if isinstance(X, list | tuple) else X
    shape = ("T", I, 1) if getattr(joined, "ndim", 2) == 3 else ("T", I)
    joined = _checks.array("X", joined, home, shape, "the second is input_size")
    y, _ = lstm(_array.reshape(joined, (joined.shape[0], I)), params)
    return y


def _layer(params: LSTMParams) -> tuple[LSTMParams, _checks.Home]:
    """Check parameters, and return them with their library, device and dtype."""
    params, _ = _checks.layer(params, STANDARD)
    return params, _checks.home(params._asdict())


def _stack_vectors(X: Sequence[Array], home: _checks.Home, I: int) -> Array:
    """Stack vectors or column vectors into an array (T, I)."""
    if not X:
        return home.xp.zeros((0, I), dtype=_array.dtype_from_name(home.xp, home.dtype), device=home.device)
    for t, x_t in enumerate(X):
        shape = (I, 1) if getattr(x_t, "ndim", 1) == 2 else (I,)
        _checks.array(f"X[{t}]", x_t, home, shape, "input_size numbers")
    return home.xp.stack([_array.reshape(x_t, (I,)) for x_t in X], axis=0)
