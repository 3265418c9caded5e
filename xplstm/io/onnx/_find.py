"""Find networks in an ONNX model, or among arrays with the names of the operator inputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from xplstm._errors import FormatError, XplstmError
from xplstm._typing import Array
from xplstm.cells.params import Variant
from xplstm.io._contents import Contents, Found, dot_name
from xplstm.io.onnx._entry import Entry, entry_of, fit_together, state_of
from xplstm.io.onnx._fold import BudgetError
from xplstm.io.onnx._graph import SHOWN_NAME, Graph, Node, shorten
from xplstm.io.onnx._model import weight_names, why_not_node
from xplstm.io.onnx._operator import (
    OPERATORS,
    REVERSE,
    Attributes,
    Weights,
    cells_of,
    elman_cells,
    params_of,
)
from xplstm.io.onnx._trace import Trace

_ARRAY = re.compile(r"((?:.*\.)?)R")
_LAYER = re.compile(r"((?:.*\.)?)l(0|[1-9]\d{0,5})\.")


class Layer(NamedTuple):
    """Names of the tensors of one layer, and its options."""

    kind: str
    names: Weights
    """Names of tensors in the contents; None for omitted ones."""
    attributes: Attributes
    projection: str | None = None
    """Constant that projects h, (D, H, P), or None."""


class Part(NamedTuple):
    """A recurrent node with its layer and classified inputs."""

    node: Node
    prefix: str
    layer: Layer | None
    entry: Entry | None
    problem: str | None


def in_graph(contents: Contents, graph: Graph) -> list[Found]:
    """Return all recurrent nodes as networks; nodes that feed each other form one network."""
    try:
        return _in_scope(contents, graph)
    except BudgetError as error:
        return [Found("", "onnx", "LSTM", {}, "", (), dict, str(error))]


def _in_scope(contents: Contents, graph: Graph) -> list[Found]:
    trace = Trace(graph)
    parts = _parts(contents, trace)
    below = [_below(trace, parts, part) for part in parts]
    # An output that several recurrent nodes read ends its stack.
    claims = Counter(under[0] for under in below if under is not None)
    stacks: dict[int, tuple[list[Part], list[str]]] = {}
    for k, (part, under) in enumerate(zip(parts, below, strict=True)):
        if under is not None and claims[under[0]] == 1 and under[0] in stacks:
            lower, merges = stacks[under[0]]
            entries = [p.entry for p in (*lower, part) if p.entry]
            if len(entries) > len(lower) and fit_together(entries):
                del stacks[under[0]]
                stacks[k] = ([*lower, part], [*merges, under[1]])
                continue
        stacks[k] = ([part], [])
    return [one for stack, merges in stacks.values() for one in _split_stack(contents, trace, stack, merges)]


def _parts(contents: Contents, trace: Trace) -> list[Part]:
    """Return all recurrent nodes, each with its own problem or None."""
    parts: list[Part] = []
    names = Counter(name for node in trace.graph.nodes if node.op in OPERATORS for name in _names(node)[:1])
    known: dict[str, bool] = {}
    for k, node in enumerate(trace.graph.nodes):
        if node.op not in OPERATORS:
            continue
        # Two nodes can have the same name; outputs have unique names.
        own = (name for place, name in enumerate(_names(node)) if place or names[name] == 1)
        prefix = next(own, f"{node.op}_{k}")
        layer, entry, problem = _of_node(trace.graph, node), None, None
        if isinstance(layer, str):
            parts.append(Part(node, prefix, None, None, layer))
            continue
        shapes = [contents.tensors[n].shape if n in contents.tensors else () for n in layer.names[:2]]
        if all(len(shape) == 3 for shape in shapes):
            (D, _, I), (_, _, width) = shapes
            hidden = contents.tensors[layer.projection].shape[1] if layer.projection else width
            try:
                entry = entry_of(trace, node, D, (width, hidden), I, known)
            except BudgetError:
                raise
            except FormatError as error:
                problem = str(error)
            if node.outputs and node.outputs[0] and entry is not None and entry.batch_first is not None:
                known[node.outputs[0]] = entry.batch_first == bool(node.attributes.get("layout", 0))
        parts.append(Part(node, prefix, layer, entry, problem))
    return parts


def _names(node: Node) -> list[str]:
    """Return possible names of a node: its own name, then its outputs, if they are printable."""
    names = [dot_name(name) for name in (node.name, *node.outputs)]
    return [name for name in names if 0 < len(name) <= SHOWN_NAME]


def in_arrays(contents: Contents) -> list[Found]:
    """Return networks from arrays W, R, B and P; prefixes ``l0``, ``l1``, ... belong to one."""
    stacks: dict[str, list[str]] = {}
    for name in contents.tensors:
        match = _ARRAY.fullmatch(name)
        if match is None or f"{match[1]}W" not in contents.tensors:
            continue
        layer = _LAYER.fullmatch(match[1])
        stacks.setdefault(layer[1] if layer else match[1], []).append(match[1])
    networks = []
    for start, prefixes in stacks.items():
        ordered = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
        layers = [_of_arrays(contents, prefix) for prefix in ordered]
        options = {} if layers[0].names.P is None else {"variant": Variant(peepholes=True)}
        gap = (
            None
            if ordered in ([start], [f"{start}l{k}." for k in range(len(ordered))])
            else "a layer is missing"
        )
        one = _find_network(contents, start.removesuffix("."), layers, options, gap)
        networks.append(one._replace(undetermined=("nonlinearity",) if one.kind == "RNN" else ()))
    return networks


def _of_arrays(contents: Contents, prefix: str) -> Layer:
    """Return the layer with the arrays under `prefix`: both directions, or the forward direction."""
    names = Weights(*(prefix + k if prefix + k in contents.tensors else None for k in Weights._fields))
    W, R = contents.tensors[names.W].shape, contents.tensors[names.R].shape
    kind = "RNN" if len(W) == len(R) == 3 and W[1] == R[2] else "LSTM"
    return Layer(kind, names, Attributes("bidirectional" if W[:1] == (2,) else "forward"))


def _below(trace: Trace, parts: Sequence[Part], part: Part) -> tuple[int, str] | None:
    """Return the index and the merge of the part whose output this part reads; None without such a part."""
    node = part.node
    path = trace.path(node.inputs[0]) if node.inputs and part.layer else None
    k = next(
        (k for k, p in enumerate(parts) if path and path.start and p.node.outputs[:1] == (path.start,)), None
    )
    if path is None or k is None or parts[k].problem:
        return None
    under = parts[k].node
    alike = under.op == node.op and under.attributes == node.attributes
    alike = alike and [bool(n) for n in weight_names(under)] == [bool(n) for n in weight_names(node)]
    projections = trace.graph.projections
    alike = alike and (under.outputs in projections) == (node.outputs in projections)
    shape = trace.graph.constants[under.inputs[2]].shape if under.inputs[2] in trace.graph.constants else ()
    if not alike or len(shape) != 3 or not trace.is_alone(path.start, path.nodes, node):
        return None
    layout = under.attributes.get("layout", 0)
    merge = trace.merge_after(path.start, shape[0], shape[2], node.inputs[0], layout, between=True)
    if merge in (None, "none") or (merge != "concat" and node.op != "LSTM"):  # only LSTM has merge=
        return None
    return k, str(merge)


def _split_stack(contents: Contents, trace: Trace, stack: list[Part], merges: list[str]) -> list[Found]:
    """Return one network, or several if one network cannot represent the graph between its layers."""
    last = _last_merge(contents, trace, stack[-1].node, stack[-1].layer)
    ways = {*merges, last or (merges or ["concat"])[-1]}
    if len(ways) > 1 and ways != {"concat", "none"}:
        return [_network(contents, [part], "concat") for part in stack]
    return [_network(contents, stack, "none" if "none" in ways else ways.pop())]


def _last_merge(contents: Contents, trace: Trace, node: Node, layer: Layer | None) -> str | None:
    """Return the merge of the directions in an output that depends only on this node."""
    if layer is None or layer.kind != "LSTM" or layer.attributes.direction != "bidirectional":
        return None
    shape = contents.tensors[layer.names.R].shape if layer.names.R in contents.tensors else ()
    if len(shape) != 3 or shape[0] != 2:
        return None
    ways = (
        trace.merge_after(node.outputs[0], 2, shape[2], end, layer.attributes.layout)
        for end in trace.graph.outputs
    )
    return next(filter(None, ways), None)


def _of_node(graph: Graph, node: Node) -> Layer | str:
    """Return the layer of a node, or the reason why there is none."""
    wrong = why_not_node(node)
    if wrong is not None:
        return f"there is {wrong}"
    return Layer(
        node.op,
        Weights(*(dot_name(name) if name else None for name in weight_names(node))),
        Attributes(**node.attributes),
        dot_name(graph.projections[node.outputs]) if node.outputs in graph.projections else None,
    )


def _network(contents: Contents, stack: Sequence[Part], merge: str) -> Found:
    """Return the network of several nodes, with its problem if it cannot be loaded."""
    first = stack[0]
    prefix, layers = first.prefix, [part.layer for part in stack if part.layer is not None]
    problem = next((shorten(part.problem) for part in stack if part.problem), None)
    if not layers:
        return Found(prefix, "onnx", first.node.op, {}, "", (), dict, problem)
    options: dict[str, Any] = {} if merge == "concat" else {"merge": merge}
    batch_first = first.entry.batch_first if first.entry else False
    try:
        first_cell = cells_of(layers[0].kind, layers[0].attributes, layers[0].names.P)[0]
        options |= first_cell.options() | ({"batch_first": True} if batch_first else {})
    except XplstmError as error:
        problem = str(error)
    network = _find_network(contents, prefix, layers, options, problem)
    if network.problem is None:
        D = 2 if network.options["bidirectional"] else 1
        hidden_size = network.options["hidden_size"]
        sizes = (network.options.get("proj_size") or hidden_size, hidden_size)
        entries = [part.entry for part in stack if part.entry]
        try:
            state = state_of(entries, D, sizes, 2 if network.kind == "LSTM" else 1)
        except FormatError as error:
            return network._replace(problem=str(error))
        lengths = entries[0].lengths if entries and isinstance(entries[0].lengths, tuple) else None
        network = network._replace(state=state, lengths=lengths)
    return network._replace(undetermined=("batch_first",)) if batch_first is None else network


def _find_network(
    contents: Contents, prefix: str, layers: Sequence[Layer], options: dict[str, Any], problem: str | None
) -> Found:
    """Return the network of several layers, with its problem if it cannot be loaded."""
    kind = layers[0].kind
    names = tuple(name for layer in layers for name in (*layer.names, layer.projection) if name is not None)
    gates = {"LSTM": "rows i, o, f, c", "GRU": "rows z, r, h"}.get(kind, "rows")
    outside = next((name for name in names if name not in contents.tensors), None)
    if outside is not None:
        problem = f"{outside!r} is not a tensor of the model; the model computes it at run time"
    problem = (
        problem or _unreadable(contents, names) or _misfit(contents, layers, options.get("merge", "concat"))
    )
    names = tuple(name for name in names if name in contents.tensors)
    told = {} if problem else _sizes(contents, layers) | options
    return Found(prefix, "onnx", kind, told, gates, names, partial(_params, contents, layers), problem)


def _unreadable(contents: Contents, names: Sequence[str]) -> str | None:
    """Return why a tensor cannot be read; None if all can be read."""
    for name in (n for n in names if contents.tensors[n].dtype == "unreadable"):
        try:
            contents.tensors[name].array()
        except FormatError as error:
            return str(error)
    return None


def _sizes(contents: Contents, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the sizes of a network from the shapes of its layers."""
    (W, R, B, _), projection = layers[0].names, layers[0].projection
    width = contents.tensors[R].shape[2]
    sizes = {
        "input_size": contents.tensors[W].shape[2],
        "hidden_size": width,
        "num_layers": len(layers),
        "bias": B is not None,
        "bidirectional": contents.tensors[W].shape[0] == 2,
    }
    if contents.file == "onnx" and not sizes["bidirectional"]:  # names of arrays do not show the direction
        sizes["reverse"] = layers[0].attributes.direction == "reverse"
    if projection is not None:
        sizes |= {"hidden_size": contents.tensors[projection].shape[1], "proj_size": width}
    return sizes


def _misfit(contents: Contents, layers: Sequence[Layer], merge: str) -> str | None:
    """Return why the layers do not form a network; None if they do."""
    gates = len(OPERATORS[layers[0].kind].to_gates)
    first, second = (contents.tensors[name].shape for name in layers[0].names[:2])
    if not len(first) == len(second) == 3 or 0 in (*first, *second):
        return f"W has shape {first} and R has shape {second}, expected three axes of size 1 or more"
    D, P = first[0], second[2]
    H = contents.tensors[layers[0].projection].shape[1] if layers[0].projection else P
    for number, layer in enumerate(layers):
        I = first[2] if number == 0 else D * P if merge in ("concat", "none") else P
        wanted = {"W": (D, gates * H, I), "R": (D, gates * H, P), "B": (D, 2 * gates * H), "P": (D, 3 * H)}
        wanted["projection"] = (D, H, P)
        names = (*layer.names, layer.projection)
        for field, name in zip((*Weights._fields, "projection"), names, strict=True):
            if name is not None and contents.tensors[name].shape != wanted[field]:
                return f"{name} has shape {contents.tensors[name].shape}, expected {wanted[field]}"
    return _find_unsupported(layers[0], D, H)


def _find_unsupported(layer: Layer, D: int, H: int) -> str | None:
    """Return the attributes of a node that no network supports as text; None if all are supported."""
    own = layer.attributes
    if own.direction not in REVERSE or len(REVERSE[own.direction]) != D or own.hidden_size not in (None, H):
        what = f"direction={own.direction} and hidden_size={own.hidden_size}"
        return f"the node has {what}, but W has {D} directions and R has hidden_size {H}"
    if layer.kind == "RNN":
        first, *others = elman_cells(own)
        if (
            first.clip is not None
            or others not in ([], [first])
            or first.activation not in (("tanh", None, None), ("relu", None, None))
        ):
            return f"activations={own.activations} and clip={own.clip}, expected Tanh or Relu and no clip"
    return None


def _params(contents: Contents, layers: Sequence[Layer]) -> dict[str, Array]:
    """Return the parameters by the names of this package."""
    found: dict[str, Array] = {}
    for number, layer in enumerate(layers):
        weights = Weights(*(None if n is None else contents.tensors[n].array() for n in layer.names))
        for suffix, params in zip(("", "_reverse"), params_of(layer.kind, weights), strict=False):
            named = params._asdict().items()
            found |= {f"{field}_l{number}{suffix}": a for field, a in named if a is not None}
        if layer.projection is not None:
            whole = contents.tensors[layer.projection].array()
            for d, suffix in enumerate(("", "_reverse")[: whole.shape[0]]):
                found[f"weight_hr_l{number}{suffix}"] = whole[d, ...].T
    return found
