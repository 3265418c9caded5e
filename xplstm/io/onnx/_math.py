"""Arithmetic operators: products, convolutions, norms, reductions, elementwise functions.

Formulas and defaults are those of https://onnx.ai/onnx/operators/. Traces between layers stop at these nodes,
since they change numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, ShapeError
from xplstm._typing import Array, Namespace
from xplstm.cells.activations import sigmoid
from xplstm.io.onnx._graph import Node
from xplstm.io.onnx._nodes import (
    Operation,
    Place,
    _axis,
    _numbers,
    _of_two,
    _takes,
    _together,
    to_library,
    truncate_quotient,
)


def _of_one(compute: Callable[[Namespace, Array], Array]) -> Operation:
    """Return the operation of an elementwise function of one array."""

    def run(_place: Place, _node: Node, values: list[Any]) -> list[Array]:
        return [compute(_array.namespace(values[0], "X"), values[0])]

    return _takes(run, 1, 1)


def _relu(xp: Namespace, x: Array) -> Array:
    """Return the positive part; NaN stays NaN."""
    return xp.where(x < 0, xp.zeros_like(x), x)


def _pow(place: Place, _node: Node, values: list[Any]) -> list[Array]:
    """Raise to a power; the result has the dtype of the base."""
    xp, (a, b) = _together(place, *values)
    if not _is_float(a):
        if not _is_float(b) and np.any(_array.to_numpy(b) < 0):
            msg = "Y has a negative power of an integer, expected powers of at least 0"
            raise ArgumentError(msg)
        a, dtype = _array.asarray(a, xp, None, "float64"), a.dtype
        return [xp.astype(xp.pow(a, xp.astype(b, a.dtype)), dtype)]
    return [xp.pow(a, xp.astype(b, a.dtype))]


def _is_float(a: Array) -> bool:
    return _array.dtype_name(a.dtype).startswith(("float", "bfloat"))


def _leaky_relu(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    xp = _array.namespace(values[0], "X")
    return [xp.where(values[0] < 0, node.attributes.get("alpha", 0.01) * values[0], values[0])]


def _clip(place: Place, _node: Node, values: list[Any]) -> list[Array]:
    """Clip to the optional inputs min and max."""
    x, low, high = [*values, None, None][:3]
    if low is not None:
        xp, (x, low) = _together(place, x, low)
        x = xp.where(x < low, low, x)
    if high is not None:
        xp, (x, high) = _together(place, x, high)
        x = xp.where(x > high, high, x)
    return [x]


def _softmax(place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Return ``exp(x) / sum(exp(x))``; before opset 13, over all axes from `axis` to the last."""
    x = values[0]
    xp, shape = _array.namespace(x, "input"), x.shape
    axis = _axis(node, node.attributes.get("axis", -1 if place.opset >= 13 else 1), x.ndim)
    if place.opset < 13:
        x = _array.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
        axis = 1
    x = x - xp.max(x, axis=axis, keepdims=True)
    if node.op == "LogSoftmax":
        x = x - xp.log(xp.sum(xp.exp(x), axis=axis, keepdims=True))
    else:
        x = xp.exp(x)
        x = x / xp.sum(x, axis=axis, keepdims=True)
    return [_array.reshape(x, shape)]


def _gemm(place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Return ``alpha * A @ B + beta * C``."""
    a, b, c = [*values, None][:3]
    xp = _array.namespace(a, "A")
    if a.ndim != 2 or b.ndim != 2:
        msg = f"the {node.label} multiplies {tuple(a.shape)} and {tuple(b.shape)}, expected matrices"
        raise ShapeError(msg)
    a = xp.permute_dims(a, (1, 0)) if node.attributes.get("transA", 0) else a
    b = xp.permute_dims(b, (1, 0)) if node.attributes.get("transB", 0) else b
    y = node.attributes.get("alpha", 1.0) * xp.matmul(a, b)
    if c is None:
        return [y]
    xp, (y, c) = _together(place, y, c)
    return [y + node.attributes.get("beta", 1.0) * c]


def _layer_norm(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Return ``(x - mean) / sqrt(variance + epsilon) * scale + bias``, mean and inverse deviation."""
    x, scale, bias = [*values, None][:3]
    xp = _array.namespace(x, "X")
    axes = tuple(range(_axis(node, node.attributes.get("axis", -1), x.ndim), x.ndim))
    mean = xp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1 / xp.sqrt(
        xp.mean(centred * centred, axis=axes, keepdims=True) + node.attributes.get("epsilon", 1e-5)
    )
    y = centred * inverse * scale
    return [y if bias is None else y + bias, mean, inverse]


def _make_reduction(name: str) -> Operation:
    """Return the operation that reduces axes with a function of the array namespace."""

    def run(_place: Place, node: Node, values: list[Any]) -> list[Array]:
        x = values[0]
        given = _numbers(values[1]) if len(values) > 1 and values[1] is not None else None
        axes = node.attributes.get("axes") if given is None else given
        if not axes and node.attributes.get("noop_with_empty_axes", 0):
            return [x]
        chosen = tuple(_axis(node, k, x.ndim) for k in axes) if axes else tuple(range(x.ndim))
        xp = _array.namespace(x, "data")
        keep = bool(node.attributes.get("keepdims", 1))
        count = math.prod(x.shape[k] for k in chosen)
        if count == 0 and name != "sum":
            msg = f"reduces axes {list(chosen)} of shape {tuple(x.shape)}, which have no element"
            raise ShapeError(msg)
        if name in ("sum", "mean") and not _is_float(x):
            return [_reduce_integers(xp, x, chosen, keep, count if name == "mean" else 1)]
        options = {"dtype": x.dtype} if name == "sum" else {}
        return [getattr(xp, name)(x, axis=chosen, keepdims=keep, **options)]

    return _takes(run, 1, 2, "axes", "keepdims", "noop_with_empty_axes")


def _reduce_integers(xp: Namespace, x: Array, axes: tuple[int, ...], keep: bool, divisor: int) -> Array:
    """Return the sum of integers, or their mean without its fraction, in the dtype of `x`."""
    total = xp.sum(x, axis=axes, keepdims=keep, dtype=xp.uint64 if x.dtype == xp.uint64 else xp.int64)
    whole = total if divisor == 1 else truncate_quotient(xp, total, xp.full_like(total, divisor))
    result = xp.astype(whole, x.dtype)
    if divisor == 1 and bool(xp.any(xp.astype(result, total.dtype) != total)):
        msg = f"has a sum that {_array.dtype_name(x.dtype)} cannot represent"
        raise ArgumentError(msg)
    return result


def _pad(place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Pad axes before and after in the mode constant, edge, reflect or wrap."""
    x, pads, value, axes = [*values, None, None][:4]
    counts = _numbers(pads)
    chosen = [_axis(node, k, x.ndim) for k in (range(x.ndim) if axes is None else _numbers(axes))]
    mode = node.attributes.get("mode", "constant")
    if len(counts) != 2 * len(chosen) or mode not in _PADDED:
        msg = f"the {node.label} has {len(counts)} pads for {len(chosen)} axes and mode={mode!r}, "
        msg += f"expected two pads per axis and one of {', '.join(_PADDED)}"
        raise ShapeError(msg)
    for k, axis in enumerate(chosen):
        x = _pad_axis(place, node, x, axis, (counts[k], counts[k + len(chosen)]), mode, value)
    return [x]


# Maps an index k outside an axis of size n to an index inside, for each mode.
_PADDED: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "constant": lambda k, n: np.where((k < 0) | (k >= n), n, k),
    "edge": lambda k, n: np.clip(k, 0, n - 1),
    "reflect": lambda k, n: n - 1 - abs(k % max(2 * n - 2, 1) - (n - 1)),
    "wrap": lambda k, n: k % n,
}


def _pad_axis(
    place: Place, node: Node, x: Array, axis: int, counts: tuple[int, int], mode: str, value: Array | None
) -> Array:
    """Pad one axis; negative counts crop it."""
    before, after = counts
    n = x.shape[axis]
    if before == after == 0:
        return x
    if n + before + after < 0 or (n == 0 and mode != "constant"):
        msg = f"the {node.label} pads an axis of size {n} by {before} and {after}, which is not possible"
        raise ShapeError(msg)
    xp, (x,) = _together(place, x)
    if mode == "constant":
        x = xp.concat([x, _constant_slice(place, xp, x, axis, value)], axis=axis)
    places = _PADDED[mode](np.arange(-before, n + after), n).astype(np.int64)
    index = places if xp is _array.named_namespace("numpy") else _array.asarray(places, xp, place.device)
    return xp.take(x, index, axis=axis)


def _constant_slice(place: Place, xp: Namespace, x: Array, axis: int, value: Array | None) -> Array:
    """Return one slice along `axis` with all elements equal to `value`."""
    shape = tuple(1 if k == axis else size for k, size in enumerate(x.shape))
    if value is None:
        return xp.zeros(shape, dtype=x.dtype, device=_array.device(x))
    _, (_, fill) = _together(place, x, value)
    return xp.broadcast_to(_array.reshape(fill, (1,) * x.ndim), shape)


def _conv(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Correlate along the single spatial axis, as one matrix product for each group."""
    x, w, bias = [*values, None][:3]
    groups = node.attributes.get("group", 1)
    if x.ndim != 3 or w.ndim != 3 or groups < 1 or w.shape[0] % groups or x.shape[1] != groups * w.shape[1]:
        msg = (
            f"the {node.label} has X {tuple(x.shape)}, W {tuple(w.shape)} and group={groups}; "
            "expected (B, C, L) and (M, C / group, kernel)"
        )
        raise ShapeError(msg)
    xp = _array.namespace(x, "X")
    columns = _columns(xp, node, x, w.shape[2])
    B, _, _, L = columns.shape
    M, C, kernel = w.shape
    size = M // groups
    parts = [
        xp.matmul(
            _array.reshape(w[g * size : (g + 1) * size, ...], (size, C * kernel)),
            _array.reshape(columns[:, g * C : (g + 1) * C, ...], (B, C * kernel, L)),
        )
        for g in range(groups)
    ]
    y = parts[0] if groups == 1 else xp.concat(parts, axis=1)
    return [y if bias is None else y + _array.reshape(bias, (1, M, 1))]


def _columns(xp: Namespace, node: Node, x: Array, kernel: int) -> Array:
    """Return the inputs under the kernel at each output position, (B, C, kernel, L)."""
    stride, dilation = (_single(node, name, 1) for name in ("strides", "dilations"))
    if node.attributes.get("kernel_shape", [kernel]) != [kernel] or stride < 1 or dilation < 1:
        msg = f"the {node.label} has {dict(node.attributes)}, but W has a kernel of {kernel}"
        raise ShapeError(msg)
    reach = dilation * (kernel - 1) + 1
    before, after = _edges(node, x.shape[2], reach, stride)
    edges = [
        xp.zeros((*x.shape[:2], count), dtype=x.dtype, device=_array.device(x)) for count in (before, after)
    ]
    x = xp.concat([edges[0], x, edges[1]], axis=2) if before or after else x
    L = (x.shape[2] - reach) // stride + 1
    if L < 1:
        msg = f"the {node.label} has a kernel that spans {reach}, but its padded input has size {x.shape[2]}"
        raise ShapeError(msg)
    starts = (k * dilation for k in range(kernel))
    return xp.stack([x[:, :, s : s + (L - 1) * stride + 1 : stride] for s in starts], axis=2)


def _single(node: Node, name: str, default: int) -> int:
    """Return the only number of an attribute with one number for each spatial axis."""
    values: Sequence[int] = node.attributes.get(name, [default])
    if len(values) != 1:
        msg = f"the {node.label} has {name}={list(values)}, expected one number"
        raise ShapeError(msg)
    return values[0]


def _edges(node: Node, n: int, reach: int, stride: int) -> tuple[int, int]:
    """Return the number of zeros before and after the input of a convolution."""
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = node.attributes.get("pads", [0, 0])
        if len(pads) != 2 or min(pads) < 0:
            msg = f"the {node.label} has pads={list(pads)}, expected two numbers of at least 0"
            raise ShapeError(msg)
        return pads[0], pads[1]
    if auto not in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        msg = f"the {node.label} has auto_pad={auto!r}, expected NOTSET, VALID, SAME_UPPER or SAME_LOWER"
        raise ArgumentError(msg)
    total = 0 if auto == "VALID" else max((-(-n // stride) - 1) * stride + reach - n, 0)
    less = total // 2
    return (less, total - less) if auto == "SAME_UPPER" else (total - less, less)


def _softplus(xp: Namespace, x: Array) -> Array:
    """Return log(1 + exp(x)) without overflow."""
    return xp.log1p(xp.exp(-xp.abs(x))) + _relu(xp, x)


def _gather_elements(place: Place, node: Node, values: list[Any]) -> list[Array]:
    xp, (a, indices) = _together(place, *values)
    axis = _axis(node, node.attributes.get("axis", 0), a.ndim)
    n, shape = a.shape[axis], tuple(indices.shape)
    fits = all(k == axis or size <= a.shape[k] for k, size in enumerate(shape[: a.ndim]))
    if len(shape) != a.ndim or not fits:
        msg = f"the {node.label} has indices of shape {shape}, but its input has shape {tuple(a.shape)}"
        raise ShapeError(msg)
    if isinstance(values[1], np.ndarray):
        wrong = [k for k in _numbers(values[1].reshape(-1)) if not -n <= k < n]
        if wrong:
            msg = f"the {node.label} has index {wrong[0]}, but the axis has size {n}"
            raise ShapeError(msg)
    return [_take_along(xp, a, xp.where(indices < 0, indices + n, indices), axis)]


def _take_along(xp: Namespace, a: Array, indices: Array, axis: int) -> Array:
    """Return the elements of `a` at the indices along an axis, at the same place on every other axis."""
    shape, device = tuple(indices.shape), _array.device(a)
    flat = xp.astype(indices, xp.int64) * math.prod(a.shape[axis + 1 :])
    for k, size in enumerate(shape):
        if k != axis:
            steps = xp.arange(size, dtype=xp.int64, device=device) * math.prod(a.shape[k + 1 :])
            flat = flat + xp.reshape(steps, (*(1,) * k, size, *(1,) * (len(shape) - k - 1)))
    taken = xp.take(xp.reshape(a, (-1,)), xp.reshape(flat, (-1,)), axis=0)
    return _array.reshape(taken, shape)


def _top_k(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Return the k largest or smallest elements along an axis, in order, and their indices."""
    a, (k, *_) = values[0], _numbers(values[1])
    xp, axis = _array.namespace(a, "X"), _axis(node, node.attributes.get("axis", -1), a.ndim)
    if not 0 <= k <= a.shape[axis]:
        msg = f"the {node.label} has k={k}, but the axis has size {a.shape[axis]}"
        raise ShapeError(msg)
    if node.attributes.get("largest", 1):
        # Of equal elements the first comes first; argsort of NumPy has no descending order.
        turned = xp.argsort(xp.flip(a, axis=axis), axis=axis, stable=True)
        order = a.shape[axis] - 1 - xp.flip(turned, axis=axis)
    else:
        order = xp.argsort(a, axis=axis, stable=True)
    first = xp.astype(order, xp.int64)[(*(slice(None),) * axis, slice(k), ...)]
    return [_take_along(xp, a, first, axis), first]


def _range(place: Place, node: Node, values: list[Any]) -> list[Array]:
    given: list[Any] = [_array.to_numpy(a).reshape(())[()] for a in values]
    start, limit, step = given
    if step == 0:
        msg = f"the {node.label} has a step of 0, expected a nonzero step"
        raise ArgumentError(msg)
    return [to_library(place, np.arange(start, limit, step, dtype=start.dtype))]


MATH = {
    "Abs": _of_one(lambda xp, x: xp.abs(x)),
    "Neg": _of_one(lambda _, x: -x),
    "Exp": _of_one(lambda xp, x: xp.exp(x)),
    "Log": _of_one(lambda xp, x: xp.log(x)),
    "Sqrt": _of_one(lambda xp, x: xp.sqrt(x)),
    "Relu": _of_one(_relu),
    "Softplus": _of_one(_softplus),
    "Tanh": _of_one(lambda xp, x: xp.tanh(x)),
    "Sigmoid": _of_one(sigmoid),
    "Not": _of_one(lambda xp, x: xp.logical_not(x)),
    "And": _of_two(lambda xp, a, b: xp.logical_and(a, b)),
    "Or": _of_two(lambda xp, a, b: xp.logical_or(a, b)),
    "Less": _of_two(lambda _, a, b: a < b),
    "LessOrEqual": _of_two(lambda _, a, b: a <= b),
    "Greater": _of_two(lambda _, a, b: a > b),
    "GreaterOrEqual": _of_two(lambda _, a, b: a >= b),
    "Pow": _takes(_pow, 2, 2),
    "LeakyRelu": _takes(_leaky_relu, 1, 1, "alpha"),
    "Clip": _takes(_clip, 1, 3),
    "Softmax": _takes(_softmax, 1, 1, "axis"),
    "LogSoftmax": _takes(_softmax, 1, 1, "axis"),
    "Gemm": _takes(_gemm, 2, 3, "alpha", "beta", "transA", "transB"),
    "LayerNormalization": _takes(_layer_norm, 2, 3, "axis", "epsilon", "stash_type"),
    "ReduceMean": _make_reduction("mean"),
    "ReduceSum": _make_reduction("sum"),
    "ReduceMax": _make_reduction("max"),
    "ReduceMin": _make_reduction("min"),
    "Pad": _takes(_pad, 2, 4, "mode"),
    "Conv": _takes(_conv, 2, 3, "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
    "Range": _takes(_range, 3, 3),
    "GatherElements": _takes(_gather_elements, 2, 2, "axis"),
    "TopK": _takes(_top_k, 2, 2, "axis", "largest", "sorted"),
}
