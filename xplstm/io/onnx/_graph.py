"""ONNX models as plain tuples: nodes, inputs, and constants that are read when they are asked for.

Nothing outside the model is ever opened: a tensor that stands in another file is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xplstm._errors import DTypeError, FormatError
from xplstm.io._contents import Tensor, shown
from xplstm.io.files import buffers

# TensorProto.DataType -> our name of the dtype, and the field of what is not stored as raw bytes.
DTYPES = {
    1: ("float32", "float_data"),
    2: ("uint8", "int32_data"),
    3: ("int8", "int32_data"),
    4: ("uint16", "int32_data"),
    5: ("int16", "int32_data"),
    6: ("int32", "int32_data"),
    7: ("int64", "int64_data"),
    9: ("bool", "int32_data"),
    10: ("float16", "int32_data"),
    11: ("float64", "double_data"),
    12: ("uint32", "uint64_data"),
    13: ("uint64", "uint64_data"),
    16: ("bfloat16", "int32_data"),
}
# LSTM has had its present inputs and outputs since then.
OLDEST_OPSET = 7


# Letters of a name that a message shows.
SHOWN_NAME = 120
# Letters of a message, a path and a prefix before it apart.
SHOWN_MESSAGE = 1000


def brief(name: str) -> str:
    """Return a name for a message: printable, and not longer than one can read."""
    text = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
    return shown(text)


def shortened(message: str) -> str:
    """Return a message of which one can read the whole."""
    return message if len(message) <= SHOWN_MESSAGE else f"{message[:SHOWN_MESSAGE]}..."


class Node(NamedTuple):
    """One operation; an input or output that is left out is ""."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    """Numbers, text, lists of them, `Tensor`, `Graph`; None for anything else."""

    @property
    def label(self) -> str:
        """How errors call it."""
        made = next((name for name in self.outputs if name), "nothing")
        name = f"{brief(self.name)!r}" if self.name else f"that makes {brief(made)!r}"
        return f"{brief(self.op)} node {name}"

    @property
    def graphs(self) -> list[Graph]:
        """The graphs that it holds, such as the branches of an If."""
        return [value for value in self.attributes.values() if isinstance(value, Graph)]


class Input(NamedTuple):
    """What a caller passes; a size in words stands for any."""

    name: str
    dtype: str | None
    shape: tuple[int | str, ...] | None


class Graph(NamedTuple):
    """A model: each node after those whose outputs it uses."""

    where: str
    opset: int
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    """The initialisers."""
    size: int = 0
    """Bytes of the model, those of its other files included."""
    captured: frozenset[str] = frozenset()
    """Values that the graphs inside of its nodes use."""


def read_model(path: str) -> Any:
    """The ModelProto in a file."""
    onnx = import_onnx()
    with open(path, "rb") as file:
        return parse_model(path, file.read(), onnx)


def parse_model(where: str, data: bytes, onnx: Any = None) -> Any:
    """The ModelProto in some bytes."""
    from google.protobuf.message import DecodeError

    try:
        return (onnx or import_onnx()).ModelProto.FromString(data)
    except DecodeError as error:
        msg = f"{where} is no ONNX model, or not a whole one: {error}"
        raise FormatError(msg) from error


def import_onnx() -> Any:
    """The package onnx."""
    try:
        import onnx
    except ImportError as error:
        msg = "ONNX models need the package onnx: it comes with pip install 'xplstm[io]'"
        raise ImportError(msg) from error
    return onnx


def as_graph(model: Any, where: str) -> Graph:
    """A ModelProto, or what says where to find one, as a graph; checked as far as names go."""
    if isinstance(model, str | os.PathLike):
        where = os.fspath(model)
        model = read_model(where)
    elif isinstance(model, bytes):
        model = parse_model(where, model)
    elif not hasattr(model, "graph") or not hasattr(model, "opset_import"):
        msg = f"model must be a ModelProto, its bytes or a path, got {type(model).__name__}"
        raise DTypeError(msg)
    graph = _body(where, model.graph)
    _check_names(graph, {""})
    return graph._replace(opset=_opset(where, model), size=model.ByteSize())


def _body(where: str, graph: Any) -> Graph:
    """Return the parts of a GraphProto, whose names are not checked yet; opset 0 is that of the model."""
    constants = {}
    for name, tensor in ((text(where, t.name), t) for t in graph.initializer):
        if not name or name in constants:
            msg = f"{where} holds a tensor named {brief(name)!r} twice, or one without a name"
            raise FormatError(msg)
        constants[name] = tensor_of(where, name, tensor)
    for sparse in graph.sparse_initializer:
        name = text(where, sparse.values.name)
        constants[name] = refusal(where, name, "is sparse")
    nodes, made = lifted([as_node(where, node) for node in graph.node])
    inputs = tuple(_input(where, value) for value in graph.input)
    outputs = tuple(text(where, value.name) for value in graph.output)
    twice = next((name for name in made if name in constants), None)
    if twice is not None:
        msg = f"{where} holds {brief(twice)!r} twice"
        raise FormatError(msg)
    captured = frozenset(name for node in nodes for inner in node.graphs for name in _used(inner))
    return Graph(where, 0, inputs, outputs, nodes, constants | made, captured=captured)


def _used(graph: Graph) -> set[str]:
    """Return the values that a graph uses, those of graphs inside its nodes included."""
    return {*graph.captured, *graph.outputs}.union(*(node.inputs for node in graph.nodes))


def text(where: str, value: Any) -> str:
    """`value`, which the package gives as bytes where it is no text."""
    if isinstance(value, bytes):
        msg = f"{where} holds a name that is no text, {ascii(value)[:80]}"
        raise FormatError(msg)
    return str(value)


def dotted(name: str) -> str:
    """A name as the contents of a file have it."""
    return name.replace("/", ".").strip(".")


def lifted(nodes: Iterable[Node]) -> tuple[tuple[Node, ...], dict[str, Tensor]]:
    """The nodes without those that only hold a constant, and these constants."""
    others, constants = [], {}
    for node in nodes:
        value = next(iter(node.attributes.values()), None)
        if node.op != "Constant" or len(node.attributes) != 1 or len(node.outputs) != 1 or value is None:
            others.append(node)
            continue
        if not isinstance(value, Tensor):
            dtype = "int64" if next(iter(node.attributes)) in ("value_int", "value_ints") else "float32"
            host = np.asarray(value, dtype=dtype)
            value = Tensor(host.shape, dtype, partial(_same, host))
        constants[node.outputs[0]] = value
    return tuple(others), constants


def _same(a: np.ndarray) -> np.ndarray:
    return a


def _opset(where: str, model: Any) -> int:
    """Version of ONNX's own operators that the model was written for."""
    newest = import_onnx().defs.onnx_opset_version()
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        msg = f"{where} asks for opset {versions}; one from {OLDEST_OPSET} to {newest} is understood"
        raise FormatError(msg)
    return int(versions[0])


def _check_names(graph: Graph, outer: set[str]) -> None:
    """Refuse a value that is made twice, or used before it is made; a graph inside a node sees `outer`."""
    where, known = graph.where, {*outer}
    given = [i.name for i in graph.inputs]
    for name in [*graph.constants, *(n for n in given if n not in graph.constants)]:
        if name in known or given.count(name) > 1:
            msg = f"{where} holds {brief(name)!r} twice"
            raise FormatError(msg)
        known.add(name)
    for node in graph.nodes:
        for name in node.inputs:
            if name not in known:
                msg = f"{where}: the {node.label} uses {brief(name)!r}, which nothing before it makes"
                raise FormatError(msg)
        for inner in node.graphs:
            _check_names(inner, known)
        for name in filter(None, node.outputs):
            if name in known:
                msg = f"{where}: the {node.label} makes {brief(name)!r}, which is there already"
                raise FormatError(msg)
            known.add(name)
    missing = [name for name in graph.outputs if name not in known]
    if missing:
        msg = f"{where} has the outputs {', '.join(map(brief, missing[:3]))}, which nothing makes"
        raise FormatError(msg)


def _input(where: str, value: Any) -> Input:
    """What is told of an input."""
    name = text(where, value.name)
    if not value.type.HasField("tensor_type"):
        return Input(name, None, None)
    tensor = value.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type, (None,))[0]
    if not tensor.HasField("shape"):
        return Input(name, dtype, None)
    sizes = (
        d.dim_value if d.HasField("dim_value") else text(where, d.dim_param) or "?" for d in tensor.shape.dim
    )
    return Input(name, dtype, tuple(sizes))


def as_node(where: str, node: Any) -> Node:
    """A NodeProto; an operator of another domain than ONNX's own keeps that in its name."""
    domain, op, name = (text(where, value) for value in (node.domain, node.op_type, node.name))
    op = op if domain in ("", "ai.onnx") else f"{domain}.{op}"
    inputs, outputs = (tuple(text(where, value) for value in values) for values in (node.input, node.output))
    made = Node(op, name, inputs, outputs, {})
    attributes = {text(where, a.name): _attribute(f"{where}: the {made.label}", a) for a in node.attribute}
    if len(attributes) != len(node.attribute):
        msg = f"{where}: the {made.label} has an attribute twice"
        raise FormatError(msg)
    return made._replace(attributes=attributes)


def _attribute(where: str, a: Any) -> Any:
    """An AttributeProto's value."""
    kind = next((name for name, number in a.AttributeType.items() if number == a.type), None)
    if kind in ("FLOAT", "FLOATS"):
        numbers = [_written(number) for number in ([a.f] if kind == "FLOAT" else a.floats)]
        return numbers[0] if kind == "FLOAT" else numbers
    if kind in ("INT", "INTS"):
        return a.i if kind == "INT" else list(a.ints)
    if kind in ("STRING", "STRINGS"):
        texts = [value.decode(errors="replace") for value in ([a.s] if kind == "STRING" else a.strings)]
        return texts[0] if kind == "STRING" else texts
    if kind == "GRAPH":
        return _body(where, a.g)
    return tensor_of(where, a.name, a.t) if kind == "TENSOR" else None


def _written(number: float) -> float:
    """The shortest decimal of a single float, as it was before it was stored: 0.2, not 0.200000003."""
    return float(str(np.float32(number)))


def tensor_of(where: str, name: str, tensor: Any) -> Tensor:
    """A TensorProto: that it holds as many numbers as it says is looked at now, what it holds later."""
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        return refusal(where, name, "stands in another file; save the model with its tensors inside")
    if tensor.data_type not in DTYPES:
        return refusal(where, name, f"has data type {tensor.data_type}, which no array here can have")
    dtype, field = DTYPES[tensor.data_type]
    shape = tuple(tensor.dims)
    raw = tensor.HasField("raw_data")
    given = len(tensor.raw_data if raw else getattr(tensor, field))
    needed = buffers.size(where, name, dtype, shape) if raw else buffers.count(where, name, shape)
    if given != needed:
        what = "bytes" if raw else "numbers"
        msg = f"{where}: {brief(name)} has {given} {what}, and {dtype} {shape} needs {needed}"
        raise FormatError(msg)
    return Tensor(shape, dtype, partial(_array_of, where, name, tensor, dtype, shape))


def refusal(where: str, name: str, why: str) -> Tensor:
    """A tensor that is refused when it is asked for."""

    def refuse() -> Any:
        msg = f"{where}: {brief(name)} {why}"
        raise FormatError(msg)

    return Tensor((), "unreadable", refuse)


def _array_of(where: str, name: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a TensorProto."""
    if tensor.HasField("raw_data"):
        return buffers.as_array(where, name, tensor.raw_data, dtype, shape)
    values = getattr(tensor, DTYPES[tensor.data_type][1])
    host = np.asarray(values, dtype=np.int64 if dtype in ("float16", "bfloat16") else dtype)
    if dtype in ("float16", "bfloat16"):  # stored as their bits
        return buffers.as_array(where, name, host.astype("<u2").tobytes(), dtype, shape)
    return host.reshape(shape)
