"""Operators that rearrange elements, and basic arithmetic.

Integers, such as shapes and indices, stay NumPy arrays on the host, which avoids waiting for a device. Floats
are arrays of the array library. An operation on both converts the integers to that library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, ShapeError
from xplstm._typing import Array, Device, Namespace
from xplstm.io.onnx._graph import DTYPES, Node


class Place(NamedTuple):
    """Library and device of arrays, and opset of the nodes."""

    xp: Namespace
    device: Device | None
    opset: int


class Operation(NamedTuple):
    """An operator: its function, and the inputs and attributes of its nodes."""

    run: Callable[[Place, Node, list[Any]], list[Array]]
    inputs: range
    """Allowed numbers of inputs."""
    attributes: frozenset[str] = frozenset()
    """Allowed attributes."""
    needs: frozenset[str] = frozenset()
    """Required attributes."""


def is_host(a: Array) -> bool:
    """Return whether `a` is a NumPy array of integers or booleans, which stays on the host."""
    return isinstance(a, np.ndarray) and _array.dtype_name(a.dtype).startswith(("int", "uint", "bool"))


def to_library(place: Place, a: Array) -> Array:
    """Convert a float array to the array library; leave other arrays unchanged."""
    if is_host(a) or not isinstance(a, np.ndarray):
        return a
    return _array.asarray(a, place.xp, place.device)


def _together(place: Place, *arrays: Array) -> tuple[Namespace, list[Array]]:
    """Convert arrays to one library; NumPy if all are on the host."""
    if all(isinstance(a, np.ndarray) for a in arrays):
        return _array.named_namespace("numpy"), list(arrays)
    moved = (_array.asarray(a, place.xp, place.device) if isinstance(a, np.ndarray) else a for a in arrays)
    return place.xp, list(moved)


def _numbers(a: Array) -> list[int]:
    """Convert an integer array to a list of Python integers."""
    return [int(n) for n in np.reshape(_array.to_numpy(a), (-1,))]


def _axis(node: Node, axis: int, ndim: int) -> int:
    """Return an axis counted from the front."""
    if not -ndim <= axis < ndim:
        msg = f"the {node.label} has axis {axis}, but its input has {ndim} axes"
        raise ShapeError(msg)
    return axis % ndim


def _axes(node: Node, values: list[Any]) -> list[int] | None:
    """Return the axes, which are an attribute before opset 13 and an input from opset 13 on."""
    if len(values) > 1 and values[1] is not None:
        return _numbers(values[1])
    return node.attributes.get("axes")


def _identity(_place: Place, _node: Node, values: list[Any]) -> list[Array]:
    return [values[0]]


def _dropout(_place: Place, _node: Node, values: list[Any]) -> list[Array]:
    """Return the input unchanged, as in inference."""
    if len(values) > 2 and values[2] is not None and np.any(_array.to_numpy(values[2])):
        msg = "training_mode is true, so the node draws random numbers; export the model for inference"
        raise ArgumentError(msg)
    return [values[0]]


def _constant_of_shape(place: Place, node: Node, values: list[Any]) -> list[Array]:
    fill = node.attributes.get("value")
    of = np.zeros(1, dtype=np.float32) if fill is None else fill.array()
    return [to_library(place, np.full(_numbers(values[0]), of.reshape(()), dtype=of.dtype))]


def _shape(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return [np.asarray(tuple(values[0].shape)[start:end], dtype=np.int64)]


def _size(_place: Place, _node: Node, values: list[Any]) -> list[Array]:
    return [np.asarray(math.prod(values[0].shape), dtype=np.int64)]


def _gather(place: Place, node: Node, values: list[Any]) -> list[Array]:
    xp, (a, indices) = _together(place, *values)
    axis = _axis(node, node.attributes.get("axis", 0), a.ndim)
    n = a.shape[axis]
    if isinstance(values[1], np.ndarray):
        wrong = [k for k in _numbers(values[1]) if not -n <= k < n]
        if wrong:
            msg = f"the {node.label} has index {wrong[0]}, but the axis has size {n}"
            raise ShapeError(msg)
    flat = xp.reshape(indices, (-1,))
    flat = xp.where(flat < 0, flat + n, flat)
    taken = xp.take(a, flat, axis=axis)
    return [_array.reshape(taken, (*a.shape[:axis], *indices.shape, *a.shape[axis + 1 :]))]


def _concat(place: Place, node: Node, values: list[Any]) -> list[Array]:
    xp, arrays = _together(place, *values)
    return [xp.concat(arrays, axis=_axis(node, node.attributes["axis"], arrays[0].ndim))]


def _slice(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a = values[0]
    for axis, start, end, step in cuts(node, values):
        a = _slice_axis(node, a, axis, start, end, step)
    return [a]


def cuts(node: Node, values: list[Any]) -> list[tuple[int, int, int, int]]:
    """Return axis, start, end and step of each sliced axis, which are attributes before opset 10."""
    a, *given = values
    if given:
        starts, ends, axes, steps = (None if v is None else _numbers(v) for v in [*given, None, None][:4])
    else:
        starts, ends, axes, steps = (
            node.attributes.get(name) for name in ("starts", "ends", "axes", "steps")
        )
    return [
        (_axis(node, axes[k] if axes else k, a.ndim), start, end, steps[k] if steps else 1)
        for k, (start, end) in enumerate(zip(starts or [], ends or [], strict=True))
    ]


def _slice_axis(node: Node, a: Array, axis: int, start: int, end: int, step: int) -> Array:
    """Slice along one axis; a negative step slices a flipped array, since some libraries lack such steps."""
    if step == 0:
        msg = f"the {node.label} has a step of 0, expected a nonzero step"
        raise ArgumentError(msg)
    n = a.shape[axis]
    chosen = range(n)[slice(start, end, step)]
    if step < 0:
        a = _array.namespace(a, "data").flip(a, axis=axis)
        chosen = range(n - 1 - chosen.start, n - 1 - chosen.stop, -step)
    index = [slice(None)] * a.ndim
    index[axis] = slice(chosen.start, max(chosen.stop, chosen.start), chosen.step)
    return a[tuple(index)]


def _squeeze(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a, axes = values[0], _axes(node, values)
    gone = {_axis(node, k, a.ndim) for k in axes} if axes else {k for k in range(a.ndim) if a.shape[k] == 1}
    wrong = [k for k in gone if a.shape[k] != 1]
    if wrong:
        msg = f"the {node.label} removes axis {wrong[0]} of size {a.shape[wrong[0]]}, expected size 1"
        raise ShapeError(msg)
    return [_array.reshape(a, tuple(n for k, n in enumerate(a.shape) if k not in gone))]


def _unsqueeze(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a, axes = values[0], _axes(node, values) or []
    ndim = a.ndim + len(axes)
    new, sizes = {_axis(node, k, ndim) for k in axes}, iter(a.shape)
    return [_array.reshape(a, tuple(1 if k in new else next(sizes) for k in range(ndim)))]


def _transpose(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a = values[0]
    order = tuple(node.attributes.get("perm") or reversed(range(a.ndim)))
    if sorted(order) != list(range(a.ndim)):
        msg = f"the {node.label} has perm={list(order)}, but its input has {a.ndim} axes"
        raise ShapeError(msg)
    return [_array.namespace(a, "data").permute_dims(a, order)]


def _reshape(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a, wanted = values[0], _numbers(values[1])
    keep = not node.attributes.get("allowzero", 0)
    if keep and any(n == 0 and k >= a.ndim for k, n in enumerate(wanted)):
        msg = f"the {node.label} keeps an axis that shape {tuple(a.shape)} does not have: {wanted}"
        raise ShapeError(msg)
    shape = [a.shape[k] if n == 0 and keep else n for k, n in enumerate(wanted)]
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and known:
        shape[shape.index(-1)] = math.prod(a.shape) // known
    if min(shape, default=0) < 0 or math.prod(shape) != math.prod(a.shape):
        msg = f"the {node.label} cannot reshape {tuple(a.shape)} to {wanted}"
        raise ShapeError(msg)
    return [_array.reshape(a, tuple(shape))]


def _flatten(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a, axis = values[0], node.attributes.get("axis", 1)
    axis = axis + values[0].ndim if axis < 0 else axis
    return [_array.reshape(a, (math.prod(a.shape[:axis]), math.prod(a.shape[axis:])))]


def _split(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a, count = values[0], len(node.outputs)
    axis = _axis(node, node.attributes.get("axis", 0), a.ndim)
    given = _numbers(values[1]) if len(values) > 1 and values[1] is not None else node.attributes.get("split")
    n = a.shape[axis]
    each = -(-n // count)
    sizes = given or [min(each, n - k * each) for k in range(count)]
    if len(sizes) != count or sum(sizes) != n or min(sizes) < 0:
        msg = f"the {node.label} splits an axis of size {n} into {sizes} for {count} outputs"
        raise ShapeError(msg)
    ends = np.cumsum([0, *sizes]).tolist()
    return [_slice_axis(node, a, axis, lo, hi, 1) for lo, hi in pairwise(ends)]


def _cast(place: Place, node: Node, values: list[Any]) -> list[Array]:
    number = node.attributes["to"]
    if number not in DTYPES:
        msg = f"the {node.label} has to={number}, a data type that is not supported"
        raise ArgumentError(msg)
    a, name = values[0], DTYPES[number][0]
    xp = _array.namespace(a, "data")
    return [to_library(place, xp.astype(a, _array.dtype_from_name(xp, name)))]


def _expand(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a = values[0]
    try:
        shape = np.broadcast_shapes(tuple(a.shape), tuple(_numbers(values[1])))
    except ValueError as error:
        msg = f"the {node.label} cannot expand {tuple(a.shape)}: {error}"
        raise ShapeError(msg) from error
    return [_array.namespace(a, "data").broadcast_to(a, shape)]


def _where(place: Place, _node: Node, values: list[Any]) -> list[Array]:
    xp, arrays = _together(place, *values)
    return [xp.where(*arrays)]


def _chain_binary(compute: Callable[[Namespace, Array, Array], Array]) -> Operation:
    """Return an operation that reduces any number of arrays with a binary function."""

    def run(place: Place, _node: Node, values: list[Any]) -> list[Array]:
        xp, arrays = _together(place, *values)
        return [reduce(partial(compute, xp), arrays)]

    return Operation(run, range(1, 1000))


def _of_two(compute: Callable[[Namespace, Array, Array], Array]) -> Operation:
    """Return the operation of a binary function."""
    return _chain_binary(compute)._replace(inputs=range(2, 3))


def _div(place: Place, _node: Node, values: list[Any]) -> list[Array]:
    """Divide two arrays; integers are truncated towards zero."""
    xp, (a, b) = _together(place, *values)
    return [truncate_quotient(xp, a, b) if _array.dtype_name(a.dtype).startswith(("int", "uint")) else a / b]


def truncate_quotient(xp: Namespace, a: Any, b: Any) -> Array:
    """Return the quotient of two integer arrays without its fraction."""
    if np.any(_array.to_numpy(b) == 0):
        msg = "divides an integer by 0"
        raise ArgumentError(msg)
    floor = a // b
    if _array.dtype_name(a.dtype).startswith("uint"):
        return floor
    return xp.where((floor * b != a) & ((a < 0) != (b < 0)), floor + 1, floor)


def _tile(_place: Place, node: Node, values: list[Any]) -> list[Array]:
    a, repeats = values[0], _numbers(values[1])
    if len(repeats) != a.ndim or min(repeats, default=0) < 0:
        msg = f"the {node.label} has repeats {repeats}, but its input has {a.ndim} axes"
        raise ShapeError(msg)
    return [_array.namespace(a, "data").tile(a, tuple(repeats))]


def _dequantize(place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Return ``(x - zero_point) * scale``, with scalars or one number for each index of an axis."""
    a, scale, zero = [*values, None][:3]
    scale = _array.to_numpy(scale)
    axis = _axis(node, node.attributes.get("axis", 1), a.ndim) if scale.size > 1 else 0
    if scale.ndim > 1 or (scale.size > 1 and scale.shape[0] != a.shape[axis]):
        msg = f"the {node.label} has a scale of shape {scale.shape}, but its input has shape {tuple(a.shape)}"
        raise ShapeError(msg)
    along = tuple(scale.size if k == axis else 1 for k in range(a.ndim))
    whole = _array.to_numpy(a).astype(np.int64)
    if zero is not None:
        zero = _array.to_numpy(zero)
        if zero.size != scale.size:
            msg = f"the {node.label} has {zero.size} zero points, expected {scale.size}, one for each scale"
            raise ShapeError(msg)
        whole = whole - zero.astype(np.int64).reshape(along)
    return [to_library(place, whole.astype(scale.dtype) * scale.reshape(along))]


def _reverse_sequence(place: Place, node: Node, values: list[Any]) -> list[Array]:
    """Reverse the first steps of each batch entry."""
    xp, (a, lengths) = _together(place, *values)
    time, batch = node.attributes.get("time_axis", 0), node.attributes.get("batch_axis", 1)
    if {time, batch} != {0, 1} or a.ndim < 2 or lengths.shape != (a.shape[batch],):
        shape = tuple(a.shape)
        msg = f"the {node.label} has lengths of shape {tuple(lengths.shape)}, but its input has shape {shape}"
        raise ShapeError(msg)
    host = _array.to_numpy(lengths).astype(np.int64)
    steps = np.arange(a.shape[time], dtype=np.int64)
    places = np.where(steps < host[:, None], host[:, None] - 1 - steps, steps)
    entries = [
        xp.take(a[:, k, ...] if time == 0 else a[k, ...], _array.asarray(places[k], xp, place.device), axis=0)
        for k in range(a.shape[batch])
    ]
    return [xp.stack(entries, axis=batch)]


def _takes(
    run: Callable[[Place, Node, list[Any]], list[Array]],
    least: int,
    most: int,
    *attributes: str,
    needs: str = "",
) -> Operation:
    return Operation(
        run, range(least, most + 1), frozenset({*attributes, needs} - {""}), frozenset({needs} - {""})
    )


OPERATIONS = {
    "Identity": _takes(_identity, 1, 1),
    "Dropout": _takes(_dropout, 1, 3, "ratio", "seed"),
    "ConstantOfShape": _takes(_constant_of_shape, 1, 1, "value"),
    "Shape": _takes(_shape, 1, 1, "start", "end"),
    "Size": _takes(_size, 1, 1),
    "Gather": _takes(_gather, 2, 2, "axis"),
    "Concat": _takes(_concat, 1, 1000, needs="axis"),
    "Slice": _takes(_slice, 1, 5, "starts", "ends", "axes"),
    "Squeeze": _takes(_squeeze, 1, 2, "axes"),
    "Unsqueeze": _takes(_unsqueeze, 1, 2, "axes"),
    "Transpose": _takes(_transpose, 1, 1, "perm"),
    "Reshape": _takes(_reshape, 2, 2, "allowzero"),
    "Flatten": _takes(_flatten, 1, 1, "axis"),
    "Split": _takes(_split, 1, 2, "axis", "split", "num_outputs"),
    "Cast": _takes(_cast, 1, 1, "saturate", needs="to"),
    "Expand": _takes(_expand, 2, 2),
    "Where": _takes(_where, 3, 3),
    "Tile": _takes(_tile, 2, 2),
    "DequantizeLinear": _takes(_dequantize, 2, 3, "axis"),
    "ReverseSequence": _takes(_reverse_sequence, 2, 2, "batch_axis", "time_axis"),
    "MatMul": _of_two(lambda xp, a, b: xp.matmul(a, b)),
    "Add": _of_two(lambda _, a, b: a + b),
    "Sub": _of_two(lambda _, a, b: a - b),
    "Mul": _of_two(lambda _, a, b: a * b),
    "Div": _takes(_div, 2, 2),
    "Min": _chain_binary(lambda xp, a, b: xp.minimum(a, b)),
    "Sum": _chain_binary(lambda _, a, b: a + b),
    "Max": _chain_binary(lambda xp, a, b: xp.maximum(a, b)),
    "Equal": _of_two(lambda _, a, b: a == b),
}
