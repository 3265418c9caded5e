"""The LSTMs and RNNs in an ONNX model, or among arrays that are called as the operators' inputs are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from xplstm._errors import FormatError, XplstmError
from xplstm._params import Variant
from xplstm._typing import Array
from xplstm.io._contents import Contents, Found
from xplstm.io.onnx._graph import Graph, Node, dotted
from xplstm.io.onnx._model import padded, weight_names, why_not_node
from xplstm.io.onnx._operator import (
    OPERATORS,
    REVERSE,
    Attributes,
    Weights,
    elman_cells,
    lstm_params,
    node_cell,
    rnn_params,
)
from xplstm.io.onnx._trace import Trace

_ARRAY = re.compile(r"((?:.*\.)?)R")
_LAYER = re.compile(r"((?:.*\.)?)l(0|[1-9]\d{0,5})\.")


class Layer(NamedTuple):
    """What the parameters of one layer stand in."""

    kind: str
    names: Weights
    """Of tensors in the contents; None for what is left out."""
    attributes: Attributes


def in_graph(contents: Contents, graph: Graph) -> list[Found]:
    """Every recurrent node; those that stand one upon the other, together."""
    trace = Trace(graph)
    nodes = {node.outputs[0]: node for node in graph.nodes if node.op in OPERATORS and node.outputs}
    below = {Y: _below(trace, nodes, node) for Y, node in nodes.items()}
    # An output that several recurrent nodes take is the end of its stack.
    claims = Counter(under[0] for under in below.values() if under is not None)
    stacks: dict[str, tuple[list[Node], list[str]]] = {}
    for Y, node in nodes.items():
        under = below[Y]
        if under is not None and claims[under[0]] == 1 and under[0] in stacks:
            stack, merges = stacks.pop(under[0])
            stacks[Y] = ([*stack, node], [*merges, under[1]])
        else:
            stacks[Y] = ([node], [])
    return [one for stack, merges in stacks.values() for one in _apart(contents, trace, stack, merges)]


def in_arrays(contents: Contents) -> list[Found]:
    """Arrays W, R, B and P; those under ``l0``, ``l1`` and so on as layers of one network."""
    stacks: dict[str, list[str]] = {}
    for name in contents.tensors:
        match = _ARRAY.fullmatch(name)
        if match is None or f"{match[1]}W" not in contents.tensors:
            continue
        layer = _LAYER.fullmatch(match[1])
        stacks.setdefault(layer[1] if layer else match[1], []).append(match[1])
    found = []
    for start, prefixes in stacks.items():
        ordered = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
        layers = [_of_arrays(contents, prefix) for prefix in ordered]
        options = {} if layers[0].names.P is None else {"variant": Variant(peepholes=True)}
        gap = (
            None
            if ordered in ([start], [f"{start}l{k}." for k in range(len(ordered))])
            else "a layer is missing"
        )
        found.append(_found(contents, start.removesuffix("."), layers, options, gap))
    return found


def _of_arrays(contents: Contents, prefix: str) -> Layer:
    """The layer whose arrays begin with `prefix`: with two directions, or the forward one."""
    names = Weights(*(prefix + k if prefix + k in contents.tensors else None for k in Weights._fields))
    W, R = contents.tensors[names.W].shape, contents.tensors[names.R].shape
    kind = "RNN" if len(W) == len(R) == 3 and W[1] == R[2] else "LSTM"
    return Layer(kind, names, Attributes("bidirectional" if W[:1] == (2,) else "forward"))


def _below(trace: Trace, nodes: dict[str, Node], node: Node) -> tuple[str, str] | None:
    """The output of the node that this one stands upon, and how its directions were merged; or None."""
    origin = trace.origin(node.inputs[0]) if node.inputs else None
    if origin is None or origin[0] not in nodes:
        return None
    under = nodes[origin[0]]
    alike = under.op == node.op and under.attributes == node.attributes
    alike = alike and [bool(n) for n in weight_names(under)] == [bool(n) for n in weight_names(node)]
    shape = trace.graph.constants[under.inputs[2]].shape if under.inputs[2] in trace.graph.constants else ()
    if not alike or why_not_node(under) or len(shape) != 3:
        return None
    layout = under.attributes.get("layout", 0)
    merge = trace.merge_after(origin[0], shape[0], shape[2], node.inputs[0], layout)
    return None if merge in (None, "none") else (origin[0], str(merge))


def _apart(contents: Contents, trace: Trace, stack: list[Node], merges: list[str]) -> list[Found]:
    """One network, or several where one cannot say what the graph does between its layers."""
    layers = [_of_node(node) for node in stack]
    last = _last_merge(contents, trace, stack[-1], layers[-1])
    ways = {*merges, last or (merges or ["concat"])[-1]}
    if len(ways) > 1 and ways != {"concat", "none"}:
        return [_in_graph(contents, trace, [n], [k], "concat") for n, k in zip(stack, layers, strict=True)]
    return [_in_graph(contents, trace, stack, layers, "none" if "none" in ways else ways.pop())]


def _last_merge(contents: Contents, trace: Trace, node: Node, layer: Layer | str) -> str | None:
    """How the directions stand in an output of the model, if one is made of this node's alone."""
    if isinstance(layer, str) or layer.attributes.direction != "bidirectional":
        return None
    shape = contents.tensors[layer.names.R].shape if layer.names.R in contents.tensors else ()
    if len(shape) != 3 or shape[0] != 2:
        return None
    ways = (
        trace.merge_after(node.outputs[0], 2, shape[2], end, layer.attributes.layout)
        for end in trace.graph.outputs
    )
    return next(filter(None, ways), None)


def _of_node(node: Node) -> Layer | str:
    """A node's layer, or why it has none."""
    wrong = why_not_node(node)
    if wrong is not None:
        return f"there is {wrong}"
    return Layer(
        node.op,
        Weights(*(dotted(name) if name else None for name in weight_names(node))),
        Attributes(**node.attributes),
    )


def _in_graph(
    contents: Contents, trace: Trace, stack: Sequence[Node], layers: Sequence[Layer | str], merge: str
) -> Found:
    """The network of some nodes."""
    prefix = dotted(stack[0].name) or dotted(stack[0].outputs[0])
    wrong = next((layer for layer in layers if isinstance(layer, str)), None)
    good = [layer for layer in layers if isinstance(layer, Layer)]
    if wrong is not None:
        return Found(prefix, "onnx", stack[0].op, {}, "rows i, o, f, c", (), dict, wrong)
    for node in stack:
        for name in padded(node)[5:7]:
            if trace.own_start(name):
                wrong = (
                    f"the {node.label} begins with a state of the model's own, {name!r}: pass it at a call"
                )
    shape = contents.tensors[good[0].names.W].shape if good[0].names.W in contents.tensors else ()
    layout = good[0].attributes.layout
    first = trace.batch_first(stack[0].inputs[0], shape[2], layout) if len(shape) == 3 else bool(layout)
    options = {} if merge == "concat" else {"merge": merge}
    try:
        options |= _variant(good[0]) | ({"batch_first": True} if first else {})
    except XplstmError as error:
        wrong = str(error)
    return _found(contents, prefix, good, options, wrong)


def _found(
    contents: Contents, prefix: str, layers: Sequence[Layer], options: dict[str, Any], problem: str | None
) -> Found:
    """The network of some layers, or why it cannot be loaded."""
    kind = layers[0].kind
    names = tuple(name for layer in layers for name in layer.names if name is not None)
    gates = "rows i, o, f, c" if kind == "LSTM" else "rows"
    outside = next((name for name in names if name not in contents.tensors), None)
    if outside is not None:
        problem = f"{outside!r} is no tensor of the model: something makes it at run time"
    problem = (
        problem or _unreadable(contents, names) or _misfit(contents, layers, options.get("merge", "concat"))
    )
    told = {} if problem else _sizes(contents, layers) | options
    return Found(prefix, "onnx", kind, told, gates, names, partial(_params, contents, layers), problem)


def _unreadable(contents: Contents, names: Sequence[str]) -> str | None:
    """Why a tensor cannot be read, if one cannot."""
    for name in (n for n in names if contents.tensors[n].dtype == "unreadable"):
        try:
            contents.tensors[name].array()
        except FormatError as error:
            return str(error)
    return None


def _sizes(contents: Contents, layers: Sequence[Layer]) -> dict[str, Any]:
    """Sizes, as the shapes of fitting layers have them."""
    W, R, B, _ = layers[0].names
    return {
        "input_size": contents.tensors[W].shape[2],
        "hidden_size": contents.tensors[R].shape[2],
        "num_layers": len(layers),
        "bias": B is not None,
        "bidirectional": contents.tensors[W].shape[0] == 2,
    }


def _variant(layer: Layer) -> dict[str, Any]:
    """The options that the attributes tell."""
    if layer.kind == "LSTM":
        return node_cell(layer.attributes, layer.names.P).options()
    return elman_cells(layer.attributes)[0].options()


def _misfit(contents: Contents, layers: Sequence[Layer], merge: str) -> str | None:
    """Why the layers are no network of ours."""
    gates = 4 if layers[0].kind == "LSTM" else 1
    first, second = (contents.tensors[name].shape for name in layers[0].names[:2])
    if not len(first) == len(second) == 3 or 0 in (*first, *second):
        return f"W has shape {first} and R {second}, expected three axes, at least 1 of each"
    D, H = first[0], second[2]
    for number, layer in enumerate(layers):
        I = first[2] if number == 0 else D * H if merge in ("concat", "none") else H
        wanted = {"W": (D, gates * H, I), "R": (D, gates * H, H), "B": (D, 2 * gates * H), "P": (D, 3 * H)}
        for field, name in zip(Weights._fields, layer.names, strict=True):
            if name is not None and contents.tensors[name].shape != wanted[field]:
                return f"{name} has shape {contents.tensors[name].shape}, expected {wanted[field]}"
    return _strange(layers[0], D, H)


def _strange(layer: Layer, D: int, H: int) -> str | None:
    """What of a node's attributes no network of ours has."""
    told = layer.attributes
    if (
        told.direction not in REVERSE
        or len(REVERSE[told.direction]) != D
        or told.hidden_size not in (None, H)
    ):
        return f"W has {D} directions and R hidden_size {H}, the node {told.direction} and {told.hidden_size}"
    if told.direction == "reverse":
        return "direction='reverse' alone: no LSTM here has it; xplstm.lstm does, and xplstm.io.onnx.prepare"
    if layer.kind == "RNN":
        first, *others = elman_cells(told)
        if (
            first.clip is not None
            or others not in ([], [first])
            or first.activation not in (("tanh", None, None), ("relu", None, None))
        ):
            return (
                f"activations={told.activations}, clip={told.clip}: an RNN here has Tanh or Relu, and no clip"
            )
    return None


def _params(contents: Contents, layers: Sequence[Layer]) -> dict[str, Array]:
    """Parameters by our names."""
    found: dict[str, Array] = {}
    for number, layer in enumerate(layers):
        weights = Weights(*(None if n is None else contents.tensors[n].array() for n in layer.names))
        directions: Sequence[Any] = lstm_params(weights) if layer.kind == "LSTM" else rnn_params(weights)
        for suffix, params in zip(("", "_reverse"), directions, strict=False):
            named = params._asdict().items()
            found |= {f"{field}_l{number}{suffix}": a for field, a in named if a is not None}
    return found
