"""Compute the losses of regression: squared error, absolute error, Huber loss and quantile loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from xplstm import _array, _values
from xplstm._errors import ArgumentError, ShapeError
from xplstm._typing import Array, Namespace
from xplstm.losses._shares import (
    Pullback,
    check_float,
    check_like,
    check_mask,
    check_reduction,
    check_weights,
    common_namespace,
    counting,
    guard,
    included,
    reduce,
    weighted_share,
)

Reduction: TypeAlias = Literal["mean", "sum", "none"]
OfError: TypeAlias = Callable[[Namespace, Array], Array]


def mse(
    pred: Array,
    target: Array,
    *,
    mask: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    """Compute the mean squared error.

    The loss is ``mean((pred - target)**2)`` over all n included numbers. Its gradient
    is ``2 (pred - target) / n``.

    Parameters
    ----------
    pred : array, shape (..., O)
        Any floating dtype. Sums over float16 and bfloat16 are computed in float32.
    target : array, shape (..., O)
        Same dtype as `pred`. Values where `mask` is False are ignored, here and in `pred`.
    mask : array of bool, shape (...), optional
        True where the O numbers of the last axis are included. If none is included, the loss and its gradient
        are 0.
    weights : array of floats, optional
        Weight of each element, at least 0 and finite. An element with weight 0 is excluded, as
        with `mask`. The shape must broadcast to that of `mask`: ``(B,)`` weights samples, and ``(T, 1)``
        weights steps.
    reduction : {"mean", "sum", "none"}, optional
        Return the weighted mean over all included numbers, the weighted sum, or the weighted elements.

    Returns
    -------
    loss : array, shape (), or (..., O) for ``reduction="none"``
        In the dtype of `pred`.
    pullback : callable
        ``pullback(dloss=1.0)`` returns the gradient of ``sum(dloss * loss)`` with respect to `pred`.
        `dloss` is a finite number, or an array of floats with the shape of the loss.

    Raises
    ------
    DTypeError
        If `pred` is not of floats, `target` has another dtype, or `mask` is not of bool.
    ShapeError
        If the shapes do not match, or have no last axis, or O is 0.
    BackendError
        If the arrays are from different libraries or on different devices.
    ArgumentError
        If `reduction` is unknown, a weight is negative or not finite, or the dtype of the sums cannot
        represent a weight. Weights on a device and traced weights are not checked.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.mse(np.asarray([[1.0, 3.0]]), np.asarray([[1.0, 1.0]]))
    >>> float(loss), pullback()
    (2.0, array([[0., 2.]]))
    """
    return _of_errors(pred, target, mask, weights, reduction, lambda _, e: e * e, lambda _, e: 2.0 * e)


def mae(
    pred: Array,
    target: Array,
    *,
    mask: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    """Compute the mean absolute error, ``mean(abs(pred - target))``.

    The gradient at an error of 0 is 0.

    Parameters
    ----------
    pred, target, mask, weights, reduction
        As for `mse`.

    Returns
    -------
    loss : array, shape (), or (..., O) for ``reduction="none"``
        In the dtype of `pred`.
    pullback : callable
        ``pullback(dloss=1.0)`` gives the gradient of ``sum(dloss * loss)`` with respect to `pred`.
        `dloss` is a finite number, or an array of floats of the shape of the loss.

    Raises
    ------
    DTypeError, ShapeError, BackendError, ArgumentError
        As for `mse`.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.mae(np.asarray([[1.0, 3.0]]), np.asarray([[1.0, 1.0]]))
    >>> float(loss), pullback()
    (1.0, array([[0. , 0.5]]))
    """
    return _of_errors(
        pred, target, mask, weights, reduction, lambda xp, e: xp.abs(e), lambda xp, e: xp.sign(e)
    )


def huber(
    pred: Array,
    target: Array,
    delta: float = 1.0,
    *,
    mask: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    """Compute the Huber loss, which is squared for small errors and linear for large errors.

    With ``e = pred - target``, the loss is ``e**2 / 2`` where ``abs(e) <= delta``, else
    ``delta * (abs(e) - delta / 2)`` (Huber, "Robust estimation of a location parameter", 1964).

    Parameters
    ----------
    pred, target
        As for `mse`.
    delta : float, optional
        The largest small error, above 0 and finite.
    mask, weights, reduction
        As for `mse`.

    Returns
    -------
    loss : array, shape (), or (..., O) for ``reduction="none"``
        In the dtype of `pred`.
    pullback : callable
        ``pullback(dloss=1.0)`` gives the gradient of ``sum(dloss * loss)`` with respect to `pred`.
        `dloss` is a finite number, or an array of floats of the shape of the loss.

    Raises
    ------
    DTypeError, ShapeError, BackendError, ArgumentError
        As for `mse`, and if `delta` is not a finite number above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.huber(np.asarray([[0.5, 3.0]]), np.zeros((1, 2)))
    >>> float(loss), pullback()
    (1.3125, array([[0.25, 0.5 ]]))
    """
    given = _values.positive("delta", delta)

    def bound(xp: Namespace, e: Array) -> float:
        """Return the largest small error; a bound above the range of the dtype has the effect of its end."""
        return min(given, float(xp.finfo(e.dtype).max))

    def value(xp: Namespace, e: Array) -> Array:
        # The square of a large error, which this does not compute, would overflow.
        size = xp.abs(e)
        small = _array.clip_values(xp, size, 0.0, bound(xp, e))
        return small * (size - 0.5 * small)

    def slope(xp: Namespace, e: Array) -> Array:
        return _array.clip_values(xp, e, -bound(xp, e), bound(xp, e))

    return _of_errors(pred, target, mask, weights, reduction, value, slope)


def quantile(
    pred: Array,
    target: Array,
    quantiles: float | Sequence[float],
    *,
    mask: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    """Compute the quantile loss (pinball loss), which is smallest where `pred` is a quantile of the targets.

    The loss is ``q * d`` where ``d = target - pred`` is above 0, else ``(q - 1) * d`` (Koenker and Bassett,
    "Regression quantiles", 1978). The gradient at ``d = 0`` is 0.

    Parameters
    ----------
    pred : array, shape (..., O), or (..., O, Q) for a sequence of quantiles
        Any floating dtype. Sums over float16 and bfloat16 are computed in float32.
    target : array, shape (..., O)
        Same dtype as `pred`.
    quantiles : float or sequence of Q floats
        Each in ``(0, 1)``.
    mask, weights, reduction
        As for `mse`. The shape of `mask` is the shape of `target` without the last axis.

    Returns
    -------
    loss : array, shape (), or the shape of `pred` for ``reduction="none"``
        In the dtype of `pred`.
    pullback : callable
        ``pullback(dloss=1.0)`` gives the gradient of ``sum(dloss * loss)`` with respect to `pred`.
        `dloss` is a finite number, or an array of floats of the shape of the loss.

    Raises
    ------
    DTypeError, ShapeError, BackendError, ArgumentError
        As for `mse`, and if a quantile is outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.quantile(np.asarray([[[1.0, 1.0]]]), np.asarray([[3.0]]), [0.5, 0.75])
    >>> float(loss), pullback()
    (1.25, array([[[-0.25 , -0.375]]]))
    """
    several = isinstance(quantiles, Sequence)
    given = quantiles if isinstance(quantiles, Sequence) else (quantiles,)
    numbers = [_values.in_range(f"quantiles[{k}]", q, 0, 1) for k, q in enumerate(given)]
    if not numbers or 0 in numbers:
        msg = f"quantiles={quantiles!r} must have at least 1 number, all in (0, 1)"
        raise ArgumentError(msg)
    xp = common_namespace(pred=pred, target=target)
    check_float("pred", pred)
    wide = _array.wide_dtype(xp, pred.dtype)
    q = xp.asarray(numbers, dtype=wide, device=_array.device(pred))
    if several:
        check_float("target", target)
        if tuple(pred.shape) != (*target.shape, len(numbers)):
            msg = f"pred has shape {tuple(pred.shape)}, expected {(*target.shape, len(numbers))}"
            raise ShapeError(msg)
        target = xp.broadcast_to(target[..., None], pred.shape)

    def value(xp: Namespace, e: Array) -> Array:
        return xp.where(e < 0, -q * e, (1.0 - q) * e)

    def slope(xp: Namespace, e: Array) -> Array:
        return xp.where(e < 0, -q * xp.ones_like(e), (1.0 - q) * xp.sign(e))

    return _of_errors(pred, target, mask, weights, reduction, value, slope, axes=1 + several)


def _of_errors(
    pred: Array,
    target: Array,
    mask: Array | None,
    weights: Array | None,
    reduction: str,
    value: OfError,
    slope: OfError,
    axes: int = 1,
) -> tuple[Array, Pullback]:
    """Return a loss of each error, and its pullback; a mask does not have the last `axes` axes."""
    xp = common_namespace(pred=pred, target=target, mask=mask, weights=weights)
    pred, target = _array.native(pred), _array.native(target)
    check_float("pred", pred)
    check_reduction(reduction)
    check_like("target", target, "pred", pred)
    rows = pred.shape[: len(pred.shape) - axes]
    mask = check_mask(xp, mask, rows)
    weights = check_weights("weights", weights, rows, pred)
    wide = _array.wide_dtype(xp, pred.dtype)
    mask = included(xp, mask, weights, rows, wide)
    inner = mask if mask is None or axes == 1 else mask[..., None]
    error = counting(xp, xp.astype(pred, wide, copy=False), inner)
    error = error - counting(xp, xp.astype(target, wide, copy=False), inner)
    last = (0,) * axes
    part = weighted_share(xp, error[(..., *last)], mask, weights, reduction)[(..., *(None,) * axes)]
    if reduction == "mean":
        part = part / float(math.prod(pred.shape[len(rows) :]))
    loss = reduce(xp, value(xp, error) * part, reduction)

    def pullback(dloss: Array | float) -> Array:
        return xp.astype(slope(xp, error) * (part * dloss), pred.dtype, copy=False)

    return guard(xp.astype(loss, pred.dtype, copy=False), pullback)
