"""What training minimises: each loss returns its value and the function that gives its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from xplstm import _array
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError
from xplstm._parts import part
from xplstm._typing import Array, Namespace

Pullback: TypeAlias = Callable[..., Array]

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def softmax_cross_entropy(
    logits: Array, targets: Array, *, mask: Array | None = None
) -> tuple[Array, Pullback]:
    """Mean negative log-probability, in nats, of the target classes under softmax of the logits.

    ``-log softmax(z)[k] = log(sum(exp(z - max z))) - (z_k - max z)``, which
    neither overflows nor loses small probabilities; its gradient is
    ``softmax(z) - onehot(k)`` (Goodfellow, Bengio and Courville, "Deep
    Learning", 2016, section 6.2.2.3).

    Parameters
    ----------
    logits : array, shape (..., V)
        Any floating dtype; float16 and bfloat16 are summed in float32. V at least 1.
    targets : array of integers, shape (...)
        Classes in ``[0, V)``. Where `mask` is False anything may stand here and in `logits`.
    mask : array of bool, shape (...), optional
        Which elements count. With none of them the loss is 0 and so is its gradient.

    Returns
    -------
    loss : array, shape ()
        The mean over the elements that count, in the dtype of `logits`.
    pullback : callable
        ``pullback(dloss=1.0)`` gives the gradient of ``dloss * loss`` by `logits`.

    Raises
    ------
    DTypeError
        If the dtypes are not a float, an integer and bool.
    ShapeError
        If the shapes do not fit each other, or V is 0.
    BackendError
        If the arrays are of several libraries or devices.
    ArgumentError
        If a target that counts is outside ``[0, V)``; looked at only where the
        values are at hand, that is not on a GPU and not while a compiler traces.

    Notes
    -----
    Where `xplstm.use_kernel` lets CUDA kernels run, one pass over CuPy's logits gives the loss and
    another one the gradient: `pullback` reads `logits` again, which must still be what they were.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.softmax_cross_entropy(np.zeros((1, 2)), np.asarray([1]))
    >>> round(float(loss), 4)
    0.6931
    >>> pullback()
    array([[ 0.5, -0.5]])
    """
    xp = _common_namespace(logits=logits, targets=targets, mask=mask)
    logits = _array.native(logits)
    _check_float("logits", logits)
    _check_classes(xp, logits, targets, mask)
    return _cross_entropy(xp, logits, targets, mask)


def mse(pred: Array, target: Array, *, mask: Array | None = None) -> tuple[Array, Pullback]:
    """Mean squared error.

    ``mean((pred - target)**2)`` over all n numbers that count; its gradient is
    ``2 (pred - target) / n``.

    Parameters
    ----------
    pred : array, shape (..., O)
        Any floating dtype; float16 and bfloat16 are summed in float32.
    target : array, shape (..., O), of the same dtype
        Where `mask` is False anything may stand here and in `pred`.
    mask : array of bool, shape (...), optional
        Which rows of O numbers count. With none of them the loss is 0 and so is its gradient.

    Returns
    -------
    loss : array, shape ()
        The mean over the numbers that count, in the dtype of `pred`.
    pullback : callable
        ``pullback(dloss=1.0)`` gives the gradient of ``dloss * loss`` by `pred`.

    Raises
    ------
    DTypeError
        If the dtypes are not floats, equal, and bool for `mask`.
    ShapeError
        If the shapes do not fit each other, or have no last axis, or O is 0.
    BackendError
        If the arrays are of several libraries or devices.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.mse(np.asarray([[1.0, 3.0]]), np.asarray([[1.0, 1.0]]))
    >>> float(loss), pullback()
    (2.0, array([[0., 2.]]))
    """
    xp = _common_namespace(pred=pred, target=target, mask=mask)
    pred, target = _array.native(pred), _array.native(target)
    _check_float("pred", pred)
    _check_like_pred(pred, target)
    _check_mask(xp, mask, pred.shape[:-1])
    wide = _array.wide_dtype(xp, pred.dtype)
    error = _counting(xp, xp.astype(pred, wide, copy=False), mask)
    error = error - _counting(xp, xp.astype(target, wide, copy=False), mask)
    share = _share(xp, error[..., 0], mask)[..., None] / float(pred.shape[-1])
    loss = xp.sum(error * error * share)

    def pullback(dloss: Array | float = 1.0) -> Array:
        return xp.astype(2.0 * error * (share * dloss), pred.dtype, copy=False)

    return xp.astype(loss, pred.dtype, copy=False), pullback


@part
def _cross_entropy(
    xp: Namespace, logits: Array, targets: Array, mask: Array | None
) -> tuple[Array, Pullback]:
    """The loss and its pullback, of arguments that fit each other."""
    wide = _array.wide_dtype(xp, logits.dtype)
    z = _counting(xp, xp.astype(logits, wide, copy=False), mask)
    # Dask finds no maximum of an empty array, even along an axis that is not empty.
    z = z - (z[..., :1] if 0 in z.shape else xp.max(z, axis=-1, keepdims=True))
    exp_z = xp.exp(z)
    total = xp.sum(exp_z, axis=-1, keepdims=True)
    hit = _one_hot(xp, targets, z.shape[-1])
    z_target = xp.sum(xp.where(hit, z, xp.zeros_like(z)), axis=-1)
    share = _share(xp, z[..., 0], mask)
    loss = xp.sum((xp.log(total[..., 0]) - z_target) * share)

    def pullback(dloss: Array | float = 1.0) -> Array:
        dz = (exp_z / total - xp.astype(hit, wide)) * (share * dloss)[..., None]
        return xp.astype(dz, logits.dtype, copy=False)

    return xp.astype(loss, logits.dtype, copy=False), pullback


def _counting(xp: Namespace, x: Array, mask: Array | None) -> Array:
    """Put zeros where the mask is False, so that infinities in the padding raise no warning."""
    return x if mask is None else xp.where(mask[..., None], x, xp.zeros_like(x))


def _share(xp: Namespace, like: Array, mask: Array | None) -> Array:
    """Weight of each element in the mean: one over their number where they count, else 0."""
    if mask is None:
        return xp.full_like(like, 1.0 / max(math.prod(like.shape), 1))
    share = xp.astype(mask, like.dtype)
    number = xp.sum(share)
    return share / xp.where(number > 0, number, xp.ones_like(number))


def _one_hot(xp: Namespace, targets: Array, classes: int) -> Array:
    """Boolean array, True at each target; a class outside is nowhere True."""
    index = xp.arange(classes, device=_array.device(targets))
    return xp.astype(targets, index.dtype)[..., None] == index


def _common_namespace(**arrays: Array | None) -> Namespace:
    """Namespace of the given arrays, all of one library and device."""
    given = {name: x for name, x in arrays.items() if x is not None}
    where = {name: (_array.namespace(x, name), _array.device(x)) for name, x in given.items()}
    (first, (xp, device)), *others = where.items()
    for name, (its_xp, its_device) in others:
        if its_xp is not xp or (None not in (device, its_device) and its_device != device):
            msg = (
                f"{name} is of {_array.backend_name(its_xp)} on {its_device}, "
                f"{first} of {_array.backend_name(xp)} on {device}; move one of them"
            )
            raise BackendError(msg)
    return xp


def _check_float(name: str, x: Array) -> None:
    """Refuse other dtypes than floats, and arrays without a last axis."""
    if _array.dtype_name(x.dtype) not in _FLOATS:
        msg = f"{name} has dtype {_array.dtype_name(x.dtype)}; it must be one of {', '.join(_FLOATS)}"
        raise DTypeError(msg)
    if len(x.shape) == 0 or x.shape[-1] == 0:
        msg = f"{name} has shape {tuple(x.shape)}; its last axis must have at least 1 element"
        raise ShapeError(msg)


def _check_classes(xp: Namespace, logits: Array, targets: Array, mask: Array | None) -> None:
    """Refuse targets that are no classes of these logits."""
    if not xp.isdtype(targets.dtype, "integral"):
        msg = f"targets has dtype {_array.dtype_name(targets.dtype)}; it must hold integers"
        raise DTypeError(msg)
    if targets.shape != logits.shape[:-1]:
        msg = f"targets has shape {tuple(targets.shape)}; logits ask for {tuple(logits.shape[:-1])}"
        raise ShapeError(msg)
    _check_mask(xp, mask, targets.shape)
    if _array.is_lazy(targets) or (mask is not None and _array.is_lazy(mask)):
        return
    counted = _array.to_numpy(targets)
    counted = counted if mask is None else counted[_array.to_numpy(mask)]
    outside = counted[(counted < 0) | (counted >= logits.shape[-1])]
    if outside.size:
        msg = f"targets holds the class {outside[0]}; classes are in [0, {logits.shape[-1]})"
        raise ArgumentError(msg)


def _check_like_pred(pred: Array, target: Array) -> None:
    """Refuse a target of another shape or dtype than the prediction."""
    if target.shape != pred.shape:
        msg = f"target has shape {tuple(target.shape)}; pred has {tuple(pred.shape)}"
        raise ShapeError(msg)
    if target.dtype != pred.dtype:
        msg = f"target has dtype {_array.dtype_name(target.dtype)}; pred has {_array.dtype_name(pred.dtype)}"
        raise DTypeError(msg)


def _check_mask(xp: Namespace, mask: Array | None, shape: tuple[int, ...]) -> None:
    """Refuse a mask that does not say yes or no for each element."""
    if mask is None:
        return
    if not xp.isdtype(mask.dtype, "bool"):
        msg = f"mask has dtype {_array.dtype_name(mask.dtype)}; it must hold booleans"
        raise DTypeError(msg)
    if mask.shape != shape:
        msg = f"mask has shape {tuple(mask.shape)}; it must have {tuple(shape)}"
        raise ShapeError(msg)
