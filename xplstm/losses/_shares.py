"""Check the arguments of losses, and compute the weight of each element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError
from xplstm._typing import Array, Namespace

Pullback: TypeAlias = Callable[..., Array]

REDUCTIONS = ("mean", "sum", "none")


def counting(xp: Namespace, x: Array, mask: Array | None) -> Array:
    """Set elements to 0 where the mask is False, so that infinities in the padding raise no warning."""
    return x if mask is None else xp.where(mask[..., None], x, xp.zeros_like(x))


def included(
    xp: Namespace, mask: Array | None, weights: Array | None, shape: tuple[int, ...], wide: Any
) -> Array | None:
    """Return a mask that also excludes the elements of weight 0, whose loss may be infinite."""
    if weights is None:
        return mask
    counted = xp.broadcast_to(xp.astype(weights, wide) > 0, shape)
    return counted if mask is None else mask & counted


def share(xp: Namespace, like: Array, mask: Array | None) -> Array:
    """Return each element's weight in the mean: 1 / count for included elements, else 0."""
    if mask is None:
        return xp.full_like(like, 1.0 / max(math.prod(like.shape), 1))
    counts = xp.astype(mask, like.dtype)
    return counts / positive(xp, xp.sum(counts))


def positive(xp: Namespace, total: Array) -> Array:
    """Return a sum of weights, or 1 if the sum is 0, so that a division of zeros gives 0."""
    return xp.where(total > 0, total, xp.ones_like(total))


def weighted_share(
    xp: Namespace,
    like: Array,
    mask: Array | None,
    weights: Array | None,
    reduction: str,
    of_each: Array | None = None,
) -> Array:
    """Return the factor of each element, with the shape of `like`, before the reduction.

    `of_each` are further weights, which are part of the mean's divisor but not of the factors.
    """
    if weights is None and of_each is None and reduction == "mean":
        return share(xp, like, mask)
    counts = xp.ones_like(like) if mask is None else xp.astype(mask, like.dtype)
    if weights is not None:
        counts = counts * xp.astype(weights, like.dtype)
    if reduction != "mean":
        return counts
    return counts / positive(xp, xp.sum(counts if of_each is None else counts * of_each))


def reduce(xp: Namespace, values: Array, reduction: str) -> Array:
    """Return the values for "none", else their sum."""
    return values if reduction == "none" else xp.sum(values)


def guard(loss: Array, pullback: Pullback) -> tuple[Array, Pullback]:
    """Return a loss, and its pullback, which checks `dloss`."""

    def of(dloss: Array | float = 1.0) -> Array:
        return pullback(_gradient_of(dloss, loss))

    return loss, of


def _gradient_of(dloss: Any, loss: Array) -> Array | float:
    """Return `dloss`, checked to be a finite number or an array of floats with the shape of the loss."""
    if not hasattr(dloss, "dtype"):
        return _values.finite("dloss", dloss)
    xp = common_namespace(dloss=dloss, loss=loss)
    if not xp.isdtype(dloss.dtype, "real floating"):
        msg = f"dloss has dtype {_array.dtype_name(dloss.dtype)}, expected a number or an array of floats"
        raise DTypeError(msg)
    if tuple(dloss.shape) != tuple(loss.shape):
        msg = f"dloss has shape {tuple(dloss.shape)}, expected {tuple(loss.shape)}, the shape of the loss"
        raise ShapeError(msg)
    return _array.native(dloss)


def check_reduction(reduction: Any) -> str:
    """Return the checked reduction."""
    return _values.one_of("reduction", reduction, REDUCTIONS)


def check_weights(name: str, weights: Array | None, shape: tuple[int, ...], like: Array) -> Array | None:
    """Return weights, checked to be floats of at least 0 that broadcast to `shape`.

    The sums over arrays of the dtype of `like` must be able to represent them.
    """
    if weights is None:
        return None
    weights = _array.float_array(name, weights)
    given = tuple(weights.shape)
    aligned = zip(reversed(given), reversed(shape), strict=False)
    if len(given) > len(shape) or any(ours not in (1, theirs) for ours, theirs in aligned):
        msg = f"{name} has shape {given}, which must broadcast to {tuple(shape)}"
        raise ShapeError(msg)
    if not _array.is_lazy(weights):
        values = _array.to_numpy(weights)
        if not np.all((values >= 0) & np.isfinite(values)):
            msg = f"{name} has elements that are negative, infinite or NaN; all must be at least 0 and finite"
            raise ArgumentError(msg)
        sums = "float64" if _array.dtype_name(like.dtype) == "float64" else "float32"
        _check_range(name, values, sums, math.prod(shape) // max(values.size, 1))
    return weights


def _check_range(name: str, weights: np.ndarray, dtype: str, times: int) -> None:
    """Raise an error if a weight or the sum is infinite in the dtype of the sums, or all weights become 0.

    Broadcasting repeats each weight `times` times.
    """
    with np.errstate(over="ignore", under="ignore"):
        converted = weights.astype(dtype)
        total = times * converted.sum(dtype="float64")
    if not total <= np.finfo(dtype).max or (weights.any() and not converted.any()):
        msg = f"{name} has elements up to {weights.max()}, which {dtype}, the dtype of the sums, cannot "
        raise ArgumentError(msg + f"represent or add; multiply {name} by a constant")


def one_hot(xp: Namespace, targets: Array, classes: int) -> Array:
    """Return booleans (..., classes), True at each target; an unknown class has no True."""
    index = xp.arange(classes, device=_array.device(targets))
    return xp.astype(targets, index.dtype)[..., None] == index


def common_namespace(**arrays: Array | None) -> Namespace:
    """Return the namespace of the arrays, checked to share a library and device; the first two must exist."""
    given = {name: x for k, (name, x) in enumerate(arrays.items()) if x is not None or k < 2}
    where = {name: (_array.namespace(x, name), _array.device(x)) for name, x in given.items()}
    (first, (xp, device)), *others = where.items()
    for name, (its_xp, its_device) in others:
        if its_xp is not xp or (None not in (device, its_device) and its_device != device):
            msg = (
                f"{name} is from {_array.backend_name(its_xp)} on {its_device}, "
                f"but {first} is from {_array.backend_name(xp)} on {device}; move one of them"
            )
            raise BackendError(msg)
    return xp


def check_float(name: str, x: Array) -> None:
    """Raise an error unless `x` has a floating dtype and a last axis with elements."""
    _array.float_array(name, x)
    if len(x.shape) == 0 or x.shape[-1] == 0:
        msg = f"{name} has shape {tuple(x.shape)}, expected a last axis with at least 1 element"
        raise ShapeError(msg)


def check_classes(
    xp: Namespace, logits: Array, targets: Array, mask: Array | None
) -> tuple[Array, Array | None]:
    """Return targets, checked to be classes of these logits, and the checked mask."""
    targets = _array.native(targets)
    _array.check_integers("targets", targets)
    if targets.shape != logits.shape[:-1]:
        msg = f"targets has shape {tuple(targets.shape)}, expected {tuple(logits.shape[:-1])} as in logits"
        raise ShapeError(msg)
    mask = check_mask(xp, mask, targets.shape)
    if _array.is_lazy(targets) or (mask is not None and _array.is_lazy(mask)):
        return targets, mask
    counted = _array.to_numpy(targets)
    counted = counted if mask is None else counted[_array.to_numpy(mask)]
    outside = counted[(counted < 0) | (counted >= logits.shape[-1])]
    if outside.size:
        msg = f"targets contains the class {outside[0]}, expected classes in [0, {logits.shape[-1]})"
        raise ArgumentError(msg)
    return targets, mask


def check_like(name: str, x: Array, other_name: str, other: Array) -> None:
    """Raise an error if `x` and `other` differ in shape or dtype."""
    if x.shape != other.shape:
        msg = f"{name} has shape {tuple(x.shape)}, but {other_name} has {tuple(other.shape)}"
        raise ShapeError(msg)
    if x.dtype != other.dtype:
        ours, theirs = _array.dtype_name(x.dtype), _array.dtype_name(other.dtype)
        msg = f"{name} has dtype {ours}, but {other_name} has {theirs}"
        raise DTypeError(msg)


def check_mask(xp: Namespace, mask: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Return a mask, checked to have one boolean per element."""
    if mask is None:
        return None
    if not xp.isdtype(mask.dtype, "bool"):
        msg = f"mask has dtype {_array.dtype_name(mask.dtype)}, expected bool"
        raise DTypeError(msg)
    if mask.shape != shape:
        msg = f"mask has shape {tuple(mask.shape)}, expected {tuple(shape)}"
        raise ShapeError(msg)
    return _array.native(mask)
