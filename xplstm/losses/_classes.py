"""Compute the losses of classification: softmax and binary cross-entropy."""

from __future__ import annotations

from typing import Any, Literal

from xplstm import _array, _values
from xplstm._array import part
from xplstm._errors import ArgumentError
from xplstm._typing import Array, Namespace
from xplstm.losses._shares import (
    Pullback,
    check_classes,
    check_float,
    check_like,
    check_mask,
    check_reduction,
    check_weights,
    common_namespace,
    counting,
    guard,
    included,
    one_hot,
    reduce,
    share,
    weighted_share,
)


def softmax_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    weights: Array | None = None,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> tuple[Array, Pullback]:
    """Compute the mean negative log-probability, in nats, of target classes under softmax of the logits.

    ``-log softmax(z)[k]`` is computed as ``log(sum(exp(z - max z))) - (z_k - max z)``,
    which neither overflows nor loses small probabilities. Its gradient is
    ``softmax(z) - onehot(k)`` (Goodfellow, Bengio and Courville, "Deep Learning",
    2016, section 6.2.2.3).

    Parameters
    ----------
    logits : array, shape (..., V)
        Any floating dtype. Sums over float16 and bfloat16 are computed in float32. V is at least 1.
    targets : array of integers, shape (...)
        Classes in ``[0, V)``. Values where `mask` is False are ignored, here and in `logits`.
    mask : array of bool, shape (...), optional
        True where an element is included. If none is included, the loss and its gradient are 0.
    weights : array of floats, optional
        Weight of each element, at least 0 and finite. An element with weight 0 is excluded, as with `mask`,
        but its target must still be a class. The shape must broadcast to that of `targets`: ``(B,)`` weights
        samples, and ``(T, 1)`` weights steps.
    class_weights : array of floats, shape (V,), optional
        Weight of each class, at least 0 and finite. The divisor of the mean is then the sum of the weights
        of all targets.
    label_smoothing : float, optional
        Share of each target's probability, in ``[0, 1)``, that is spread over all classes (Szegedy et
        al., "Rethinking the Inception architecture for computer vision", 2016, section 7).
    ignore_index : int, optional
        Elements with this target are excluded.
    reduction : {"mean", "sum", "none"}, optional
        Return the weighted mean over all included elements, the weighted sum, or the weighted elements.

    Returns
    -------
    loss : array, shape (), or (...) for ``reduction="none"``
        In the dtype of `logits`.
    pullback : callable
        ``pullback(dloss=1.0)`` returns the gradient of ``sum(dloss * loss)`` with respect to `logits`.
        `dloss` is a finite number, or an array of floats with the shape of the loss.

    Raises
    ------
    DTypeError
        If `logits` or weights are not of floats, `targets` not of integers, or `mask` not of bool.
    ShapeError
        If the shapes do not match, or V is 0.
    BackendError
        If the arrays are from different libraries or on different devices.
    ArgumentError
        If `label_smoothing` or `reduction` is outside its bounds, a weight is negative or not finite, the
        dtype of the sums cannot represent or add the weights, or a target that is included is outside
        ``[0, V)``. Values on a device and traced values are not checked.

    Notes
    -----
    For CuPy arrays without options other than `mask`, a CUDA kernel may compute the loss; see
    `xplstm.use_kernel`. `pullback` then reads `logits` again, so do not modify `logits` before.

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
    given = {"mask": mask, "weights": weights, "class_weights": class_weights}
    xp = common_namespace(logits=logits, targets=targets, **given)
    logits = _array.native(logits)
    check_float("logits", logits)
    check_reduction(reduction)
    smoothing = _values.probability("label_smoothing", label_smoothing)
    if ignore_index is not None:
        ignored = _values.size("ignore_index", ignore_index, -_values.LARGEST)
        # PyTorch and JAX would wrap an index outside the range of the dtype, such as -100 with uint8.
        if xp.isdtype(targets.dtype, "integral") and ignored in _range_of(xp, targets):
            kept: Any = targets != ignored
            mask = kept if mask is None else check_mask(xp, mask, targets.shape) & kept
    targets, mask = check_classes(xp, logits, targets, mask)
    weights = check_weights("weights", weights, targets.shape, logits)
    class_weights = check_weights("class_weights", class_weights, logits.shape[-1:], logits)
    if weights is None and class_weights is None and smoothing == 0 and reduction == "mean":
        return guard(*_cross_entropy(xp, logits, targets, mask))
    return guard(*_weighted_entropy(xp, logits, targets, mask, weights, class_weights, smoothing, reduction))


def _range_of(xp: Namespace, ids: Array) -> range:
    """Return the integers that the dtype of `ids` represents."""
    limits = xp.iinfo(ids.dtype)
    return range(int(limits.min), int(limits.max) + 1)


def binary_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    weights: Array | None = None,
    positive_weights: Array | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> tuple[Array, Pullback]:
    """Compute the negative log-probability, in nats, of binary targets under the sigmoid of the logits.

    The loss is ``t softplus(-z) + (1 - t) softplus(z)``, which neither overflows nor loses small
    probabilities. Its gradient is ``sigmoid(z) - t``.

    Parameters
    ----------
    logits : array, shape (..., O)
        Any floating dtype. Sums over float16 and bfloat16 are computed in float32.
    targets : array, shape (..., O)
        In ``[0, 1]``, with the dtype of `logits`. Values where `mask` is False are ignored, here and in
        `logits`.
    mask : array of bool, shape (...), optional
        True where the O numbers of the last axis are included. If none is included, the loss and its gradient
        are 0.
    weights : array of floats, optional
        Weight of each element, at least 0 and finite. An element with weight 0 is excluded, as
        with `mask`. The shape must broadcast to that of `mask`: ``(B,)`` weights samples, and ``(T, 1)``
        weights steps.
    positive_weights : array of floats, shape (O,), optional
        Factor of the positive term ``t softplus(-z)``, at least 0 and finite, for rare positive targets.
    reduction : {"mean", "sum", "none"}, optional
        Return the weighted mean over all included numbers, the weighted sum, or the weighted elements.

    Returns
    -------
    loss : array, shape (), or (..., O) for ``reduction="none"``
        In the dtype of `logits`.
    pullback : callable
        ``pullback(dloss=1.0)`` returns the gradient of ``sum(dloss * loss)`` with respect to `logits`.
        `dloss` is a finite number, or an array of floats with the shape of the loss.

    Raises
    ------
    DTypeError
        If `logits` is not of floats, `targets` has another dtype, or `mask` is not of bool.
    ShapeError
        If the shapes do not match, or have no last axis, or O is 0.
    BackendError
        If the arrays are from different libraries or on different devices.
    ArgumentError
        If `reduction` is unknown, a weight is negative or not finite, the dtype of the sums cannot represent
        a weight, or a target that is included is outside ``[0, 1]``. Values on a device and traced values
        are not checked.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.binary_cross_entropy(np.zeros((1, 2)), np.asarray([[1.0, 0.0]]))
    >>> round(float(loss), 4)
    0.6931
    >>> pullback()
    array([[-0.25,  0.25]])
    """
    given = {"mask": mask, "weights": weights, "positive_weights": positive_weights}
    xp = common_namespace(logits=logits, targets=targets, **given)
    logits, targets = _array.native(logits), _array.native(targets)
    check_float("logits", logits)
    check_reduction(reduction)
    check_like("targets", targets, "logits", logits)
    mask = check_mask(xp, mask, logits.shape[:-1])
    weights = check_weights("weights", weights, logits.shape[:-1], logits)
    positive_weights = check_weights("positive_weights", positive_weights, logits.shape[-1:], logits)
    wide = _array.wide_dtype(xp, logits.dtype)
    mask = included(xp, mask, weights, logits.shape[:-1], wide)
    z, t = (counting(xp, xp.astype(a, wide, copy=False), mask) for a in (logits, targets))
    if not _array.is_lazy(t) and not bool(xp.all((t >= 0) & (t <= 1))):
        msg = "targets has elements outside [0, 1]; all must be in [0, 1]"
        raise ArgumentError(msg)
    yes = t if positive_weights is None else t * xp.astype(positive_weights, wide)
    part = weighted_share(xp, z[..., 0], mask, weights, reduction)[..., None]
    part = part / float(z.shape[-1]) if reduction == "mean" else part
    small = xp.exp(-xp.abs(z))
    rest = xp.log1p(small)
    zero = xp.zeros_like(z)
    each = yes * (rest + xp.where(z < 0, -z, zero)) + (1.0 - t) * (rest + xp.where(z > 0, z, zero))
    sigmoid = xp.where(z < 0, small, xp.ones_like(z)) / (1.0 + small)

    def pullback(dloss: Array | float) -> Array:
        dz = (sigmoid * (1.0 - t + yes) - yes) * (part * dloss)
        return xp.astype(dz, logits.dtype, copy=False)

    return guard(xp.astype(reduce(xp, each * part, reduction), logits.dtype, copy=False), pullback)


def _exponentials(xp: Namespace, logits: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Return the logits, shifted so that the largest is 0, their exponentials, and the sums of those."""
    z = counting(xp, xp.astype(logits, _array.wide_dtype(xp, logits.dtype), copy=False), mask)
    # Dask cannot compute the maximum of an empty array, not even along an axis with elements.
    z = z - (z[..., :1] if 0 in z.shape else xp.max(z, axis=-1, keepdims=True))
    exp_z = xp.exp(z)
    return z, exp_z, xp.sum(exp_z, axis=-1, keepdims=True)


@part
def _cross_entropy(
    xp: Namespace, logits: Array, targets: Array, mask: Array | None
) -> tuple[Array, Pullback]:
    """Return the mean over all included elements, and its pullback."""
    z, exp_z, total = _exponentials(xp, logits, mask)
    hit = one_hot(xp, targets, z.shape[-1])
    z_target = xp.sum(xp.where(hit, z, xp.zeros_like(z)), axis=-1)
    each = share(xp, z[..., 0], mask)
    loss = xp.sum((xp.log(total[..., 0]) - z_target) * each)

    def pullback(dloss: Array | float) -> Array:
        dz = (exp_z / total - xp.astype(hit, z.dtype)) * (each * dloss)[..., None]
        return xp.astype(dz, logits.dtype, copy=False)

    return xp.astype(loss, logits.dtype, copy=False), pullback


def _weighted_entropy(
    xp: Namespace,
    logits: Array,
    targets: Array,
    mask: Array | None,
    weights: Array | None,
    class_weights: Array | None,
    smoothing: float,
    reduction: str,
) -> tuple[Array, Pullback]:
    """Return the loss with every option, and its pullback."""
    mask = included(xp, mask, weights, targets.shape, _array.wide_dtype(xp, logits.dtype))
    z, exp_z, total = _exponentials(xp, logits, mask)
    log_p = z - xp.log(total)
    classes = z.shape[-1]
    hit = xp.astype(one_hot(xp, targets, classes), z.dtype)
    wanted = hit * (1 - smoothing) + smoothing / classes
    of_target = None
    if class_weights is not None:
        of_class = xp.astype(class_weights, z.dtype)
        wanted, of_target = wanted * of_class, xp.sum(hit * of_class, axis=-1)
    # A class with the logit minus infinity and no weight adds 0.
    each = -xp.sum(wanted * xp.where(wanted > 0, log_p, xp.zeros_like(z)), axis=-1)
    part = weighted_share(xp, each, mask, weights, reduction, of_target)

    def pullback(dloss: Array | float) -> Array:
        dz = exp_z / total * xp.sum(wanted, axis=-1, keepdims=True) - wanted
        return xp.astype(dz * (part * dloss)[..., None], logits.dtype, copy=False)

    return xp.astype(reduce(xp, each * part, reduction), logits.dtype, copy=False), pullback
