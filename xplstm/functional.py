"""Run one LSTM layer and direction as a function of arrays: `lstm` and `lstm_vjp`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xplstm import _checks, _stack, _values
from xplstm._stack import Stack
from xplstm._state import LSTMState
from xplstm._typing import Array, Lengths, Precision
from xplstm.cells.params import LSTMParams, Variant
from xplstm.cells.variant import lstm_cell

Pullback = Callable[..., tuple[Array, LSTMState, LSTMParams]]


def lstm(
    x: Array,
    params: LSTMParams,
    state: LSTMState | tuple[Array, Array] | None = None,
    *,
    lengths: Lengths = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    variant: Variant | None = None,
    precision: Precision | None = None,
    reproducible: bool = False,
) -> tuple[Array, LSTMState]:
    """Run one LSTM layer over a sequence.

    :doc:`/equations` lists the equations, which are those of Hochreiter and Schmidhuber (1997)
    with the forget gate of Gers, Schmidhuber and Cummins (2000).

    Parameters
    ----------
    x : array, shape (T, B, I) or (T, I)
        Never written to. May have any strides and, with NumPy, any byte order.
    params : LSTMParams
        With the array library, device and dtype of x: float64, float32, float16 or bfloat16.
    state : (h, c), optional
        Shapes (B, H) and (B, H), or (B, P) for h with a projection. Shapes (H,), or (P,), for x (T, I).
        Zeros if omitted.
    lengths : integers, shape (B,), optional
        Number of steps of each batch entry, in [0, T], in any order. May be a list or a NumPy array with
        any backend. Values on a device and traced values are not checked, but clipped to [0, T].
    mask : boolean array, shape (T, B), optional
        True where a batch entry has a step. Steps may be missing anywhere; a missing step keeps the state.
    reset : boolean array, shape (T, B), optional
        True where h and c of a batch entry are zeroed before a step, as for `LSTM`.
    reverse : bool, default False
        Run from the last valid step of each batch entry to its first.
    variant : Variant, optional
        Options that change the standard LSTM.
    precision : {None, "tf32"}, default None
        "tf32" allows GPU kernels to compute float32 products in TF32, as for `LSTM`.
    reproducible : bool, default False
        Run only kernels with the reproducible summation order, as for `LSTM`.

    Returns
    -------
    y : array, shape (T, B, H), or (T, B, P) with a projection
        h after every step, in the order of x. Exactly 0 at padded and masked steps.
    state : LSTMState
        State after the last step of each batch entry, or the initial state of an entry without steps.

    Raises
    ------
    ShapeError, DTypeError, BackendError, ArgumentError
        If an argument is invalid. The message names the argument, its value and the bound. Arguments are
        checked before any work starts.
    KernelError
        If the pinned kernel cannot run this call, or no kernel can with ``reproducible=True``.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> rng = np.random.default_rng(0)
    >>> params = xplstm.LSTMParams(rng.normal(size=(8, 3)), rng.normal(size=(8, 2)))
    >>> y, (h_n, c_n) = xplstm.lstm(rng.normal(size=(5, 4, 3)), params, lengths=[5, 0, 2, 5])
    >>> y.shape, h_n.shape
    ((5, 4, 2), (4, 2))
    """
    params, stack = _one_layer(params, reverse, variant, precision, reproducible)
    call = _stack.enter(stack, _checks.home(params._asdict()), x, state, lengths, mask, reset)
    return _stack.forward(stack, call, _stack.packing(((params,),)))


def lstm_vjp(
    x: Array,
    params: LSTMParams,
    state: LSTMState | tuple[Array, Array] | None = None,
    *,
    lengths: Lengths = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    variant: Variant | None = None,
    precision: Precision | None = None,
    reproducible: bool = False,
    rng: int | np.random.Generator | None = None,
    checkpoint: int | None = None,
) -> tuple[Array, LSTMState, Pullback]:
    """Run one LSTM layer, and return the function that computes its gradients.

    For truncated backpropagation, call this function once per window. Pass the
    final state to the next call, and ignore the gradient ``dstate_0``.

    Parameters
    ----------
    x, params, state, lengths, mask, reset, reverse, variant, precision, reproducible
        As for `lstm`.
    rng : int or numpy.random.Generator, optional
        Seed or generator of the masks of zoneout and recurrent dropout. Without it,
        no mask is drawn. One seed gives the same masks on every backend.
    checkpoint : int, optional
        At least 1. Keep one state for every `checkpoint` steps, and run the steps again in
        the pullback. The pullback needs the memory of O(T / checkpoint + checkpoint) steps.

    Returns
    -------
    y, state
        As returned by `lstm`.
    pullback : callable
        ``pullback(dy=None, dstate_n=None) -> dx, dstate_0, dparams``. The arguments are
        gradients with respect to y and state, in their shapes; None means zeros. The results
        are gradients with respect to x, the initial state and params, in their shapes.
        May be called several times. Do not modify the arguments of `lstm_vjp` before the last call.

    Raises
    ------
    ShapeError, DTypeError, BackendError, ArgumentError
        If an argument is invalid. The message names the argument, its value and the bound. Arguments are
        checked before any work starts.
    KernelError
        If the pinned kernel cannot run this call, or no kernel can with ``reproducible=True``.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> rng = np.random.default_rng(0)
    >>> params = xplstm.LSTMParams(rng.normal(size=(8, 3)), rng.normal(size=(8, 2)))
    >>> y, state, pullback = xplstm.lstm_vjp(rng.normal(size=(5, 4, 3)), params)
    >>> dx, dstate_0, dparams = pullback(np.ones_like(y))
    >>> dx.shape, dparams.weight_hh.shape
    ((5, 4, 3), (8, 2))
    """
    params, stack = _one_layer(params, reverse, variant, precision, reproducible)
    call = _stack.enter(stack, _checks.home(params._asdict()), x, state, lengths, mask, reset)
    y, state_n, backward = _stack.vjp(stack, call, ((params,),), rng, checkpoint)

    def pullback(
        dy: Array | None = None, dstate_n: LSTMState | None = None
    ) -> tuple[Array, LSTMState, LSTMParams]:
        dx, dstate_0, dlayers = backward(dy, dstate_n)
        (dparams,) = dlayers[0]
        return dx, dstate_0, dparams

    return y, state_n, pullback


def _one_layer(
    params: LSTMParams,
    reverse: bool,
    variant: Variant | None,
    precision: str | None,
    reproducible: bool,
) -> tuple[LSTMParams, Stack]:
    """Check the parameters; return them and the description of their layer."""
    cell = lstm_cell(variant, directions=1)
    params, sizes = _checks.layer(params, cell)
    reproducible = _values.flag("reproducible", reproducible)
    return params, Stack(
        sizes.input,
        sizes.hidden,
        proj_size=sizes.projection,
        bias=sizes.bias,
        num_layers=1,
        reverse=(_values.flag("reverse", reverse),),
        layer_axis=False,
        cell=cell,
        precision=_checks.precision(precision, reproducible),
        reproducible=reproducible,
    )
