"""Classify the inputs of a recurrent node: sequence, lengths and initial state.

An input is accepted if it provably equals a possible argument of a network call. Otherwise an error names the
node.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from xplstm import _array
from xplstm._errors import FormatError, XplstmError
from xplstm.io.onnx._fold import BudgetError
from xplstm.io.onnx._graph import Node, brief
from xplstm.io.onnx._model import pad_inputs
from xplstm.io.onnx._operator import OPERATORS
from xplstm.io.onnx._trace import (
    FREE,
    LARGEST_TRIED,
    LONGEST_PATH,
    MEASURING,
    MOVERS,
    TWICE,
    Path,
    Trace,
    distinct,
)

# Operators whose output is zero if all inputs are zero.
_KEEP_ZERO = {
    *("Concat", "Add", "Sum", "Sub", "Min", "Max", "Tanh", "Relu", "Neg", "Abs", "Sqrt", "Erf", "Softsign")
}
_PASS_ON = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Expand"}
_BETWEEN = {"Identity", "Cast", "Dropout"}
# Numbers of the types that represent every length: int32, int64, float64, uint32 and uint64.
_EVERY_LENGTH = (6, 7, 11, 12, 13)
# Least default value of lengths that means all steps, of any number.
_NO_END = (1 << 31) - 1
# Other operators that rearrange their first input, and that cannot run here.
_PLACING = {
    *("Compress", "GatherElements", "GatherND", "Pad", "ScatterElements", "ScatterND", "TopK", "Unique")
}

# Positions of the inputs that are a shape or part of a shape.
_SHAPES = {
    "ConstantOfShape": {0},
    "Expand": {1},
    "Reshape": {1},
    "Squeeze": {1},
    "Tile": {1},
    "Unsqueeze": {1},
}
_TRIED = (FREE, FREE[::-1], (4, 5))

RUN_IT = "use xplstm.io.onnx.prepare to run the model, or xplstm.io.arrays to read its weights"


class Start(NamedTuple):
    """Source of an initial state: zeros, constants, or a slice of an input."""

    name: str = ""
    """Name of the input; "" for zeros and constants."""
    offset: int = 0
    length: int = 0
    value: np.ndarray | None = None
    """Constants, (D, B, n); B is 1 if all batch entries have the same state."""


class Entry(NamedTuple):
    """Classified inputs of a recurrent node."""

    batch_first: bool | None
    """None if the graph does not show it."""
    lengths: str | tuple[int, ...]
    """Model input with the lengths, or constants; "" if there are no lengths."""
    starts: tuple[Start, Start]


class Refused(FormatError):
    """An input of a node does not correspond to an argument of a network call."""


def entry_of(
    trace: Trace, node: Node, D: int, sizes: tuple[int, int], I: int, known: dict[str, bool]
) -> Entry:
    """Classify the inputs of a node whose states h and c have the given sizes.

    `known` maps outputs of other nodes to whether they have the axes of the output of their network; False
    means that time and batch are exchanged.
    """
    names = pad_inputs(node)
    first = _batch_first(trace, node, I, known)
    lengths = _lengths(trace, node, names[4], I)
    starts = [_start(trace, node, name, D, n) for name, n in zip(names[5:7], sizes, strict=True)]
    return Entry(first, lengths, (starts[0], starts[1]))


def _batch_first(trace: Trace, node: Node, I: int, known: dict[str, bool]) -> bool | None:
    """Return whether the batch is the first axis of the input; None if the graph does not show it."""
    layout, X = bool(node.attributes.get("layout", 0)), node.inputs[0]
    before, nodes = trace.follow_moves(X)
    # Whether the last node that moves an axis swaps time and the batch.
    last = next((one for one in nodes if one.op not in _BETWEEN), None)
    swapped = last is not None and last.op == "Transpose" and last.attributes.get("perm") == [1, 0, 2]
    inputs, layers, between = trace.find_sources(X)
    if len(inputs) == 1 and not layers:
        return _from_input(trace, node, inputs[0], between, I, swapped)
    if not inputs and not layers:  # an input of the body of a Loop or Scan
        changed = next((one for one in between if one.op not in MOVERS), None)
        if changed is not None:
            raise _refuse_change(node, changed.inputs[0], between)
    if not any(one.op in OPERATORS for one in layers):
        if not inputs and not any(map(trace.has_weights, layers)):  # only one such as MaxPool
            inputs, _, between = trace.find_sources(X, only_weighted=True)
        for source in (one for one in inputs if _may_be_read(trace, one, I)):
            raise _refuse_change(node, source, between)
    made = trace.maker(before)
    chooser = next((one for one in nodes if _reorders(trace, one)), None)
    if chooser is None and made is not None and made.op in _PLACING and not trace.is_constant(made.inputs[0]):
        chooser = made
    if chooser is not None:
        msg = f"the input of the {node.label} was reversed or reordered by the {chooser.label}"
        raise Refused(msg)
    own = trace.has_own_order(X, known)
    own = False if own is None and swapped else own
    return None if own is None else own == layout


def _reorders(trace: Trace, node: Node) -> bool:
    """Return whether a node may reorder numbers."""
    if node.op != "Slice":
        return node.op in ("Gather", "ReverseSequence")
    if len(node.inputs) < 5 or not node.inputs[4]:
        return False
    steps = node.inputs[4]
    return not trace.is_constant(steps) or bool(np.min(trace.evaluator.value(steps), initial=1) < 1)


def _may_be_read(trace: Trace, source: str, I: int) -> bool:
    """Return whether a model input could be passed to a network of input size `I`."""
    _, dtype, shape = trace.inputs[source]
    if dtype is not None and dtype not in _array.FLOATS:
        return False
    return (
        shape is None
        or shape[1:] == (I,)
        or (len(shape) == 3 and (shape[2] == I or isinstance(shape[2], str)))
    )


def _from_input(
    trace: Trace, node: Node, source: str, between: list[Node], I: int, swapped: bool
) -> bool | None:
    """Return the result of `_batch_first` for a node whose X depends on one model input."""
    layout, X = bool(node.attributes.get("layout", 0)), node.inputs[0]
    path, shape = trace.path(X), trace.inputs[source].shape
    changed = path is None or path.start != source or any(n.op not in MOVERS for n in between)
    orders = {"unknown"}
    if path is not None and path.start == source and (shape is None or len(shape) == 3):
        own = tuple(n for n in (shape or ())[:2] if isinstance(n, int) and n > 0)
        fixed = len(own) == 2 and any(n.op == "Reshape" for n in path.nodes)
        sizes = [own] if fixed and math.prod(own) * I <= LARGEST_TRIED else TWICE
        tried = (distinct((*size, I), trace.dtype_of(node)) for size in sizes)
        orders = {_order(trace, path, X, x) for x in tried}
    if orders == {"kept"}:
        return layout
    if orders == {"swapped"}:
        return not layout
    if orders == {"unknown"} and not changed and trace.chooses(trace.follow_moves(X)[1]) is None:
        return not layout if swapped else None
    raise _refuse_change(node, source, between)


def _refuse_change(node: Node, source: str, between: list[Node]) -> Refused:
    """Return the error for a node that does not read a model input unchanged."""
    unlike = [one for one in between if one.op not in _BETWEEN and one.op != "Transpose"] or between
    msg = (
        f"the {node.label} does not read {brief(source)!r} unchanged: nodes between them reverse, "
        f"reorder or change its numbers, such as the {unlike[0].label}; {RUN_IT}"
    )
    return Refused(msg)


def _order(trace: Trace, path: Path, X: str, x: np.ndarray) -> str:
    """Return what a path does to the first two axes: "kept", "swapped", "changed" or "unknown"."""
    result = trace.run_path(path, x, X)
    if result is None:
        return "unknown"
    if np.array_equal(result, x):
        return "kept"
    return "swapped" if np.array_equal(result, x.swapaxes(0, 1)) else "changed"


def _lengths(trace: Trace, node: Node, name: str, I: int) -> str | tuple[int, ...]:
    """Return the model input with the lengths, or constant lengths; "" if all lengths are T."""
    path = trace.path(node.inputs[0])
    under = trace.maker(path.start) if path else None
    if under is not None and under.op in OPERATORS and pad_inputs(under)[4] == name and name in trace.lengths:
        return trace.lengths[name]  # both nodes have the same input and the same number of steps
    leaves = set()
    wanted, seen = [name] if name else [], 0
    while wanted:
        one, seen = wanted.pop(), seen + 1
        made = trace.maker(one)
        if one in trace.inputs:
            leaves.add(one)
        elif made is not None and made.op == "Min":
            wanted += made.inputs
        elif made is not None and made.op in _PASS_ON and made.attributes.get("to", 7) in _EVERY_LENGTH:
            wanted.append(made.inputs[0])
        elif not _is_full(trace, node, one, I):
            if not trace.depends_on_input(name):
                trace.lengths[name] = _constant_lengths(trace, node, name)
                return trace.lengths[name]
            raise _refuse_lengths(node, name)
        if seen > LONGEST_PATH:
            msg = f"the {node.label} has sequence_lens {brief(name)!r}, which depends on too many nodes"
            raise Refused(msg)
    if len(leaves) > 1:
        inputs = ", ".join(map(brief, sorted(leaves)))
        msg = f"the {node.label} has sequence_lens that depend on several inputs: {inputs}"
        raise Refused(msg)
    trace.lengths[name] = leaf = next(iter(leaves), "")
    if leaf and trace.is_constant(leaf) and not _is_no_bound(trace, node, leaf, I):
        trace.lengths[name] = _constant_lengths(trace, node, name)
    return trace.lengths[name]


def _is_no_bound(trace: Trace, node: Node, name: str, I: int) -> bool:
    """Return whether the default value of an input of lengths means all steps."""
    value = _constant(trace, name)
    return value is not None and bool(np.all(value >= _NO_END) or _is_full(trace, node, name, I))


def _refuse_lengths(node: Node, name: str) -> Refused:
    msg = f"the {node.label} has sequence_lens {brief(name)!r}, which the model computes"
    return Refused(f"{msg}, expected an input of the model, constants, or none; {RUN_IT}")


def _is_full(trace: Trace, node: Node, name: str, I: int) -> bool:
    """Return whether all lengths are provably T."""
    X, layout = node.inputs[0], node.attributes.get("layout", 0)
    if trace.is_constant(name):
        own = trace.own_sizes(X, layout)
        value = _constant(trace, name)
        return own is not None and value is not None and bool(np.all(value == own[0]))
    way, made = trace.path(X), trace.path(name)
    if way is None or made is None or made.start:
        return False
    inside = {way.start, *(one for n in way.nodes for one in n.outputs)}
    if not made.measured <= inside:
        return False
    nodes = {id(n): n for n in (*way.nodes, *made.nodes)}
    ordered = [n for n in trace.graph.nodes if id(n) in nodes]
    for first, second in (FREE, FREE[::-1]):
        whole = Path(way.start, tuple(ordered), frozenset())
        x = np.zeros((first, second, I), np.float32)
        lengths, given = trace.run_path(whole, x, name), trace.run_path(whole, x, X)
        if lengths is None or given is None or given.ndim != 3:
            return False
        if not np.all(lengths == given.shape[1 if layout else 0]):
            return False
    return True


def _constant(trace: Trace, name: str) -> np.ndarray | None:
    """Return a value that depends only on initialisers; None if it cannot be evaluated."""
    try:
        return trace.evaluator.value(name)
    except BudgetError:
        raise
    except (XplstmError, ValueError, TypeError, IndexError):
        return None


def _start(trace: Trace, node: Node, name: str, D: int, H: int) -> Start:
    """Return the source of an initial state."""
    if not name:
        return Start()
    layout = bool(node.attributes.get("layout", 0))
    if name in trace.inputs and name not in trace.graph.constants:
        return Start(name)
    if _is_changed_input(trace, name):
        raise _refuse_state(node, name)
    if _is_zero(trace, name):
        shape = _zero_shape(trace, name)
        wanted = [shape[1] if layout else shape[0], shape[2]] if len(shape) == 3 else list(shape)
        if shape and wanted != [D, H]:
            msg = f"the {node.label} has an initial state {brief(name)!r} of shape {shape}, expected "
            raise Refused(msg + f"{D} directions and hidden_size {H}")
        return Start()
    part = _part_of_input(trace, node, name, D, H)
    if part is not None:
        return part
    value = _constant_state(trace, node, name, D, H)
    if value is not None:
        return Start(value=value)
    raise _refuse_state(node, name)


def _refuse_state(node: Node, name: str) -> Refused:
    what = f"the {node.label} has the initial state {brief(name)!r}"
    return Refused(f"{what}, which is neither constant nor an input of the model; {RUN_IT}")


def _is_changed_input(trace: Trace, name: str) -> bool:
    """Return whether nodes change a model input, with or without a default, before it becomes a state."""
    wanted, seen = [name], set[str]()
    while wanted:
        one = wanted.pop()
        node = trace.maker(one)
        if node is None or one in seen:
            continue
        seen.add(one)
        if node.op in MOVERS:
            wanted.append(node.inputs[0])
        elif node.op == "Concat":
            wanted += node.inputs
        elif trace.depends_on_input(one):
            return True
    return False


def _constant_values(trace: Trace, node: Node, name: str) -> list[np.ndarray]:
    """Return a value for several batch sizes, if the value depends only on the batch size; else []."""
    if trace.is_constant(name):
        values = [_constant(trace, name)]
    else:
        path = trace.path(name, by_element=True)
        own = trace.own_sizes(node.inputs[0], node.attributes.get("layout", 0))
        if path is None or path.start or _takes_sizes(path, name):
            return []
        # A value with a fixed batch does not fit the other sizes.
        sizes = [*_TRIED, *([own] if own else [])]
        values = [trace.run_path(path, np.zeros((*two, 1), np.float32), name, large=True) for two in sizes]
    return [a for a in values if a is not None]


def _constant_lengths(trace: Trace, node: Node, name: str) -> tuple[int, ...]:
    """Return constant lengths, one number if all are equal."""
    found = set()
    for a in _constant_values(trace, node, name):
        if a.ndim != 1 or not a.size or not _array.dtype_name(a.dtype).startswith("int") or a.min() < 0:
            raise _refuse_lengths(node, name)
        lengths = tuple(a.tolist())
        found.add(lengths[:1] if len({*lengths}) == 1 and not trace.is_constant(name) else lengths)
    if len(found) != 1:
        raise _refuse_lengths(node, name)
    return found.pop()


def _constant_state(trace: Trace, node: Node, name: str, D: int, n: int) -> np.ndarray | None:
    """Return an initial state that depends only on the batch size; None if it may depend on an input."""
    layout = node.attributes.get("layout", 0)
    states = []
    for a in _constant_values(trace, node, name):
        if a.ndim != 3 or not _array.dtype_name(a.dtype).startswith(("float", "bfloat")):
            return None
        state = a.swapaxes(0, 1) if layout else a
        if (state.shape[0], state.shape[2]) != (D, n) or not state.shape[1]:
            return None
        states.append(state[:, :1, :] if np.all(state == state[:, :1, :]) else state)
    alike = all(np.array_equal(states[0], state) for state in states)
    return states[0] if states and alike else None


def _takes_sizes(path: Path, name: str) -> bool:
    """Return whether the elements of a value depend on the batch size, not only its shape."""
    sizes: set[str] = set()
    for node in path.nodes:
        places = {k for k, one in enumerate(node.inputs) if one in sizes}
        if node.op in MEASURING or not places <= _SHAPES.get(node.op, set()):
            sizes |= {*node.outputs}
    return name in sizes


def _is_zero(trace: Trace, name: str) -> bool:
    """Return whether a value is provably zero."""
    wanted, seen = [name], set()
    while wanted:
        one = wanted.pop()
        if one in seen:
            continue
        seen.add(one)
        if len(seen) > LONGEST_PATH:
            return False
        if trace.is_constant(one):
            value = _constant(trace, one)
            if value is None or np.any(value):
                return False
            continue
        node = trace.maker(one)
        if node is None:
            return False
        if node.op == "ConstantOfShape":
            fill = node.attributes.get("value")
            if fill is not None and np.any(np.asarray(fill.array())):
                return False
        elif node.op in MOVERS:
            wanted.append(node.inputs[0])
        elif node.op in _KEEP_ZERO:
            wanted += node.inputs
        elif node.op == "Where":
            wanted += node.inputs[1:]
        elif node.op in ("Mul", "MatMul"):
            factors = [one for one in node.inputs if trace.is_constant(one)]
            others = [one for one in node.inputs if one not in factors]
            values = [_constant(trace, one) for one in factors]
            if not others or any(v is None or not np.all(np.isfinite(v)) for v in values):
                return False
            wanted += others
        else:
            return False
    return True


def _zero_shape(trace: Trace, name: str) -> tuple[int, ...]:
    """Return the shape of zeros, with any batch size; () if the shape is unknown."""
    if trace.is_constant(name):
        value = _constant(trace, name)
        return () if value is None else value.shape
    path = trace.path(name)
    if path is None or path.start:
        return ()
    state = trace.run_path(path, np.zeros((*FREE, 1), np.float32), name)
    return () if state is None else state.shape


def _part_of_input(trace: Trace, node: Node, name: str, D: int, H: int) -> Start | None:
    """Return the slice of a model input that a state is; None if it is not a slice."""
    path = trace.path(name)
    tensor = trace.inputs.get(path.start) if path else None
    if path is None or tensor is None or tensor.shape is None:
        return None
    shape = tuple(n if isinstance(n, int) and n > 0 else 3 for n in tensor.shape)
    if math.prod(shape) > LARGEST_TRIED:
        return None
    parts = set()
    for first in range(4):  # an input of one number has one sign and magnitude in each trial
        given = distinct(shape, trace.dtype_of(node), first)
        result = trace.run_path(path, given, name)
        if result is None or result.ndim != 3 or not result.size:
            return None
        state = result.swapaxes(0, 1) if node.attributes.get("layout", 0) else result
        places = np.flatnonzero(given == state.flat[0])
        fits = [k for k in places if np.array_equal(given.flat[k : k + state.size], state.flat)]
        if (state.shape[0], state.shape[2]) != (D, H) or len(fits) != 1:
            return None
        parts.add(Start(path.start, int(fits[0]), state.size))
    return parts.pop() if len(parts) == 1 else None


def state_of(
    entries: list[Entry], D: int, sizes: tuple[int, int], letters: int
) -> tuple[np.ndarray, ...] | None:
    """Return the constant initial state of a network, h or (for two `letters`) h and c; None if zero.

    Its axes are (layers and directions, batch, size). The batch is 1 if all entries have the same state.
    """
    columns = [[entry.starts[k].value for entry in entries] for k in range(letters)]
    given = [a for column in columns for a in column if a is not None]
    if not given:
        return None
    names = {start.name for entry in entries for start in entry.starts[:letters] if start.name}
    if names:
        inputs = ", ".join(map(brief, sorted(names)))
        msg = f"initial h and c must both be constants or both inputs, but only one is an input: {inputs}"
        raise Refused(f"{msg}; {RUN_IT}")
    B = max(a.shape[1] for a in given)
    if any(a.shape[1] not in (1, B) for a in given):
        msg = f"constant initial states have different batch sizes: {sorted({a.shape[1] for a in given})}"
        raise Refused(msg)
    zeros = [np.zeros((D, 1, n), given[0].dtype) for n in sizes]
    return tuple(
        np.concatenate(
            [np.broadcast_to(zero if a is None else a, (D, B, zero.shape[2])) for a in column], axis=0
        )
        for zero, column in zip(zeros, columns, strict=False)
    )


def fit_together(entries: list[Entry]) -> bool:
    """Return whether layers with these inputs can be one network."""
    first = entries[0]
    if any(entry.lengths != first.lengths for entry in entries):
        return False
    for starts in zip(*(entry.starts for entry in entries), strict=True):
        names = [start.name for start in starts]
        if any(start.value is not None for start in starts):
            if any(names):
                return False
            continue
        if len({*names}) == len(names) and all(names):
            if any(start.offset for start in starts):
                return False
            continue
        if len({*names}) > 1:
            return False
        consecutive = all(
            low.length and low.offset + low.length == high.offset for low, high in pairwise(starts)
        )
        if names[0] and not consecutive:
            return False
    return True
