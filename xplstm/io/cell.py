"""Run one step with the weights as arguments, as in PyTorch 0.4."""

from __future__ import annotations

from xplstm import _array, _checks
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.cells.params import LSTMParams
from xplstm.functional import lstm


def lstm_cell(
    x: Array,
    state: LSTMState | tuple[Array, Array],
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
) -> LSTMState:
    """Run one step of one layer.

    The positional arguments are those of ``LSTMCell`` in PyTorch 0.4: input, hidden, w_ih, w_hh, b_ih and
    b_hh. The result is also the same: hy and cy.

    Parameters
    ----------
    x : array, shape (B, I)
        Input of the step, of any float dtype.
    state : (h, c)
        Initial state, arrays of shape (B, H).
    weight_ih : array, shape (4H, I)
        Input weights, with the gates in the order i, f, g, o.
    weight_hh : array, shape (4H, H)
        Recurrent weights.
    bias_ih, bias_hh : array, shape (4H,), optional
        Biases; each may be omitted.

    Returns
    -------
    LSTMState
        h and c after the step.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        If an argument has the wrong shape, dtype, library or device.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.io.cell import lstm_cell
    >>> hidden = np.zeros((4, 2)), np.zeros((4, 2))
    >>> hy, cy = lstm_cell(np.ones((4, 3)), hidden, np.ones((8, 3)), np.ones((8, 2)))
    >>> hy.shape
    (4, 2)
    """
    if (bias_ih is None) != (bias_hh is None):
        xp = _array.namespace(weight_hh, "weight_hh")
        zeros = xp.zeros(weight_hh.shape[:1], dtype=weight_hh.dtype, device=_array.device(weight_hh))
        bias_ih, bias_hh = (zeros if bias is None else bias for bias in (bias_ih, bias_hh))
    params = LSTMParams(weight_ih, weight_hh, bias_ih, bias_hh)
    x = _checks.array("x", x, _checks.home(params._asdict()), ("B", "I"), "one step")
    _, state_n = lstm(x[None, ...], params, state)
    return state_n
