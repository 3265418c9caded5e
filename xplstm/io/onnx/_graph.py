"""Read ONNX models as tuples of nodes, inputs and constants; constants are read on demand.

Graphs inside nodes and model functions are inlined into one list of nodes. The name of the containing node
becomes a prefix of their names. External tensor files are opened only inside the folder of the model.
"""

from __future__ import annotations

import os
import stat
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np

from xplstm import _values
from xplstm._errors import DTypeError, FormatError
from xplstm.io._contents import Tensor, show, unreadable
from xplstm.io._foreign import refuse_irregular
from xplstm.io.files import buffers

# Maps TensorProto.DataType to the dtype name, and to the field for data that is not raw bytes.
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
# Bounds of inlined graphs: number of nodes, and nesting depth.
LEAST_NODES, NODES_PER_BYTE, DEEPEST = 1000, 1, 64
LONGEST_PREFIX = 300
# First version of the format in which an input may have a default value; older ones list every initialiser as
# an input.
_WITH_DEFAULTS = 4
# First opset with the current inputs and outputs of LSTM.
OLDEST_OPSET = 7


# Characters of a name in a message.
SHOWN_NAME = 120
# Characters of a message, without the path and prefix before it.
SHOWN_MESSAGE = 1000


def brief(name: str) -> str:
    """Format a name for a message: printable and short."""
    text = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
    return show(text)


def shorten(message: str) -> str:
    """Shorten a message to a readable length."""
    return message if len(message) <= SHOWN_MESSAGE else f"{message[:SHOWN_MESSAGE]}..."


class Node(NamedTuple):
    """One operation; omitted inputs and outputs are ""."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    """Numbers, texts, lists of these, or `Tensor`; None for other types."""

    @property
    def label(self) -> str:
        """Name for error messages."""
        output = next((name for name in self.outputs if name), "nothing")
        name = f"{brief(self.name)!r}" if self.name else f"that makes {brief(output)!r}"
        return f"{brief(self.op)} node {name}"


class Input(NamedTuple):
    """An input of the model; a size that is a str means any size."""

    name: str
    dtype: str | None
    shape: tuple[int | str, ...] | None


class Graph(NamedTuple):
    """A model with nodes in topological order."""

    where: str
    opset: int
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    """The initialisers."""
    size: int = 0
    """Bytes of the model, including its external files."""
    projections: Mapping[tuple[str, ...], str] = MappingProxyType({})
    """Maps the outputs of LSTM nodes with a projection to the projection constant, (D, H, P)."""


def read_model(path: str) -> Any:
    """Return the ModelProto in a file."""
    onnx = import_onnx()
    refuse_irregular(path)
    with open(path, "rb") as file:
        return parse_model(path, file.read(), onnx)


def parse_model(where: str, data: bytes, onnx: Any = None) -> Any:
    """Parse a ModelProto from bytes."""
    from google.protobuf.message import DecodeError

    try:
        return (onnx or import_onnx()).ModelProto.FromString(data)
    except DecodeError as error:
        msg = f"{where} is not an ONNX model, or damaged: {error}"
        raise FormatError(msg) from error


def import_onnx() -> Any:
    """Return the package onnx."""
    try:
        import onnx
    except ImportError as error:
        msg = "ONNX models need the package onnx: pip install 'xplstm[io]'"
        raise ImportError(msg) from error
    return onnx


def as_graph(model: Any, where: str) -> Graph:
    """Return a graph from a ModelProto, its bytes or a path, with checked names."""
    folder = None
    if isinstance(model, str | os.PathLike):
        where = _values.path("model", model)
        folder = os.path.dirname(where)
        model = read_model(where)
    elif isinstance(model, bytes):
        model = parse_model(where, model)
    elif not hasattr(model, "graph") or not hasattr(model, "opset_import"):
        msg = f"model must be a ModelProto, its bytes or a path, got {type(model).__name__}"
        raise DTypeError(msg)
    return _graph(model, where, Beside(where, folder))


def _graph(model: Any, where: str, beside: Beside) -> Graph:
    """Return the graph of a ModelProto."""
    flat = _Flat(where, model, beside)
    outputs = tuple(flat.add_graph(model.graph, "", ChainMap(), {}))
    nodes, constants = lift_constants(flat.nodes)
    inputs = tuple(_input(where, value) for value in model.graph.input)
    if model.ir_version < _WITH_DEFAULTS:
        inputs = tuple(i for i in inputs if i.name not in flat.constants)
    free = [*(i.name for i in inputs), *flat.free]
    _check_names(where, free, flat.constants, constants, nodes, outputs)
    size = model.ByteSize() + beside.size
    return Graph(where, _opset(where, model), inputs, outputs, nodes, flat.constants | constants, size)


class _Flat:
    """Builder of one list of nodes, with unique value names, from a graph and its nested graphs."""

    def __init__(self, where: str, model: Any, beside: Beside) -> None:
        self.where, self.beside, self._opset = where, beside, _opset(where, model)
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.free: list[str] = []
        """Values of outer graphs that inner graphs use."""
        self._functions = {(f.domain, f.name, _overload(f)): f for f in model.functions}
        if len(self._functions) < len(model.functions):
            msg = f"{where} has two functions with the same name"
            raise FormatError(msg)
        # Functions that call each other twice would double the nodes at each level.
        self._most = LEAST_NODES + NODES_PER_BYTE * model.ByteSize()
        self._prefixes: set[str] = set()
        self._depth = 0

    def add_graph(
        self, graph: Any, prefix: str, names: ChainMap[str, str], given: Mapping[str, Any]
    ) -> list[str]:
        """Add the nodes of a graph, and return its output names; `given` are the attributes of a call."""
        for tensor in graph.initializer:
            self._constant(text(self.where, tensor.name), prefix, names, tensor)
        for sparse in graph.sparse_initializer:
            name = prefix + text(self.where, sparse.values.name)
            names[text(self.where, sparse.values.name)] = name
            self.constants[name] = unreadable(f"{self.where}: {brief(name)} is sparse")
        if prefix:
            for value in graph.input:
                self._free(text(self.where, value.name), prefix, names)
        for node in graph.node:
            self._node(node, prefix, names, given)
        outputs = (text(self.where, value.name) for value in graph.output)
        return [names.get(name, name) for name in outputs]

    def _constant(self, name: str, prefix: str, names: ChainMap[str, str], tensor: Any) -> None:
        if not name or prefix + name in self.constants:
            msg = f"{self.where} has a tensor {brief(prefix + name)!r} twice, or one without a name"
            raise FormatError(msg)
        names[name] = prefix + name
        self.constants[prefix + name] = self.beside.tensor(prefix + name, tensor)

    def _free(self, name: str, prefix: str, names: ChainMap[str, str]) -> None:
        if prefix + name in self.constants:
            what = f"an initializer for {brief(prefix + name)!r}, an input of a graph inside a node"
            msg = f"{self.where} has {what}; such an input gets a value from the node: remove the initializer"
            raise FormatError(msg)
        names[name] = prefix + name
        self.free.append(prefix + name)

    def _node(self, node: Any, prefix: str, names: ChainMap[str, str], given: Mapping[str, Any]) -> None:
        if len(self.nodes) >= self._most or self._depth > DEEPEST:
            msg = f"{self.where} has more than {self._most} nodes inside nodes, or {DEEPEST} levels of them"
            raise FormatError(msg)
        attributes = [_resolve_attribute(a, given) for a in node.attribute]
        one = as_node(self.where, node, [a for a in attributes if a is not None])
        inputs = [names.get(name, name) for name in one.inputs]
        function = self._functions.get((node.domain, node.op_type, _overload(node)))
        if function is not None:
            if node.domain in ("", "ai.onnx") and import_onnx().defs.has(node.op_type):
                msg = f"{self.where} defines a function with the name of the operator {brief(one.op)}"
                raise FormatError(f"{msg}; not all runtimes use the function: rename it")
            self._call(function, one, inputs, prefix, names, [a for a in attributes if a is not None])
            return
        graphs = {a.name: a.g for a in attributes if a is not None and a.type == a.GRAPH}
        start = self._inside(one, prefix) if graphs else ""
        self._depth += 1
        for name in sorted(graphs, reverse=True):  # then_branch before else_branch
            inputs += self.add_graph(graphs[name], f"{start}{name}.", names.new_child(), given)
        self._depth -= 1
        for name in filter(None, one.outputs):
            names[name] = prefix + name
        self.nodes.append(
            Node(
                one.op,
                prefix + one.name.lstrip("/") if prefix and one.name else one.name,
                tuple(inputs),
                tuple(names[name] if name else "" for name in one.outputs),
                {name: value for name, value in one.attributes.items() if name not in graphs},
            )
        )

    def _inside(self, node: Node, prefix: str) -> str:
        """Return the name prefix of the graphs inside a node."""
        output = next(filter(None, node.outputs), "")
        starts = (f"{prefix}{name}." for name in (node.name, output) if name)
        free = (start for start in starts if start not in self._prefixes and len(start) <= LONGEST_PREFIX)
        start = next(free, f"inside{len(self._prefixes)}.")
        self._prefixes.add(start)
        return start

    def _call(
        self,
        function: Any,
        node: Node,
        inputs: list[str],
        prefix: str,
        names: ChainMap[str, str],
        attributes: list[Any],
    ) -> None:
        """Add the nodes of a function in place of a node that calls it."""
        self._check_opset(function)
        inside = self._inside(node, prefix)
        local: ChainMap[str, str] = ChainMap()
        for k, name in enumerate(function.input):
            local[text(self.where, name)] = inputs[k] if k < len(inputs) else ""
        given = {a.name: a for a in (*function.attribute_proto, *attributes)}
        self._depth += 1
        for one in function.node:
            self._node(one, inside, local, given)
        self._depth -= 1
        for name, output in zip(function.output, node.outputs, strict=False):
            if output:
                names[output] = prefix + output
                source = local.get(text(self.where, name), inside + name)
                self.nodes.append(Node("Identity", "", (source,), (prefix + output,), {}))

    def _check_opset(self, function: Any) -> None:
        """Check that a function has the opset of the model."""
        versions = {o.version for o in function.opset_import if o.domain in ("", "ai.onnx")}
        if versions - {self._opset}:
            whose = f"the function {brief(text(self.where, function.name))!r} has opset {sorted(versions)}"
            msg = f"{self.where}: {whose}, but the model has {self._opset}; convert the model with "
            raise FormatError(f"{msg}onnx.inliner.inline_local_functions(model, convert_version=True)")


def _overload(one: Any) -> str:
    """Return the overload of a function; older versions of onnx have no overloads."""
    return str(getattr(one, "overload", ""))


def _resolve_attribute(a: Any, given: Mapping[str, Any]) -> Any:
    """Resolve an attribute that refers to an attribute of the call; None if the call does not have it."""
    if not a.ref_attr_name:
        return a
    actual = given.get(a.ref_attr_name)
    if actual is None:
        return None
    copy = type(a)()
    copy.CopyFrom(actual)
    copy.name = a.name
    return copy


def text(where: str, value: Any) -> str:
    """Return `value` as text; onnx returns bytes for invalid text."""
    if isinstance(value, bytes):
        msg = f"{where} has a name that is not valid text, {ascii(value)[:80]}"
        raise FormatError(msg)
    return str(value)


def lift_constants(nodes: Iterable[Node]) -> tuple[tuple[Node, ...], dict[str, Tensor]]:
    """Return the nodes without Constant nodes, and the constants of those."""
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
    """Return the opset version of the ONNX operators in the model."""
    newest = import_onnx().defs.onnx_opset_version()
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        msg = f"{where} has opset {versions}, expected one from {OLDEST_OPSET} to {newest}"
        raise FormatError(msg)
    return int(versions[0])


def _check_names(
    where: str,
    inputs: list[str],
    constants: Mapping[str, Any],
    made: Mapping[str, Any],
    nodes: Iterable[Node],
    outputs: Iterable[str],
) -> None:
    """Check that each value is defined once, and before its use."""
    known = {"", *constants}
    for name in [*(n for n in inputs if n not in constants), *made]:
        if name in known:
            msg = f"{where} has {brief(name)!r} twice"
            raise FormatError(msg)
        known.add(name)
    for node in nodes:
        for name in node.inputs:
            if name not in known:
                msg = f"{where}: the {node.label} uses {brief(name)!r}, which no earlier node computes"
                raise FormatError(msg)
        for name in filter(None, node.outputs):
            if name in known:
                msg = f"{where}: the {node.label} computes {brief(name)!r}, which already exists"
                raise FormatError(msg)
            known.add(name)
    missing = [name for name in outputs if name not in known]
    if missing:
        msg = f"{where} has the outputs {', '.join(map(brief, missing[:3]))}, which no node computes"
        raise FormatError(msg)


def _input(where: str, value: Any) -> Input:
    """Return the name, dtype and shape of an input."""
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


def as_node(where: str, node: Any, given: Sequence[Any] | None = None) -> Node:
    """Convert a NodeProto; the name of an operator of another domain includes the domain.

    `given` replaces the attributes of the node.
    """
    protos = node.attribute if given is None else given
    domain, op, name = (text(where, value) for value in (node.domain, node.op_type, node.name))
    op = op if domain in ("", "ai.onnx") else f"{domain}.{op}"
    inputs, outputs = (tuple(text(where, value) for value in values) for values in (node.input, node.output))
    made = Node(op, name, inputs, outputs, {})
    attributes = {text(where, a.name): _attribute(f"{where}: the {made.label}", a) for a in protos}
    if len(attributes) != len(protos):
        msg = f"{where}: the {made.label} has an attribute twice"
        raise FormatError(msg)
    return made._replace(attributes=attributes)


def _attribute(where: str, a: Any) -> Any:
    """Return the value of an AttributeProto."""
    kind = next((name for name, number in a.AttributeType.items() if number == a.type), None)
    if kind in ("FLOAT", "FLOATS"):
        # The shortest decimals that round to these float32 numbers: 0.2, not 0.200000003.
        numbers = [float(str(np.float32(number))) for number in ([a.f] if kind == "FLOAT" else a.floats)]
        return numbers[0] if kind == "FLOAT" else numbers
    if kind in ("INT", "INTS"):
        return a.i if kind == "INT" else list(a.ints)
    if kind in ("STRING", "STRINGS"):
        texts = [value.decode(errors="replace") for value in ([a.s] if kind == "STRING" else a.strings)]
        return texts[0] if kind == "STRING" else texts
    return tensor_of(where, a.name, a.t) if kind == "TENSOR" else None


KEEP_INSIDE = "save the model with internal tensors, onnx.save(onnx.load(path), path)"


class Beside:
    """External tensor files of a model; only files in the model's folder are opened."""

    def __init__(self, where: str, folder: str | None) -> None:
        self.where, self._folder = where, folder
        self._sizes: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Return the total bytes of all files."""
        return sum(self._sizes.values())

    def tensor(self, name: str, tensor: Any) -> Tensor:
        """Convert a TensorProto with data inside the model or in another file."""
        if tensor.data_location != tensor.EXTERNAL and not tensor.external_data:
            return tensor_of(self.where, name, tensor)
        named = {text(self.where, e.key): text(self.where, e.value) for e in tensor.external_data}
        try:
            return self._outside(name, tensor, named)
        except FormatError as error:
            return unreadable(f"{self.where}: {brief(name)} {error}")

    def _outside(self, name: str, tensor: Any, named: Mapping[str, str]) -> Tensor:
        location = named.get("location", "")
        what = f"is in another file, {brief(location)!r}"
        if self._folder is None:
            msg = f"{what}, but the model was not read from a path; {KEEP_INSIDE}"
            raise FormatError(msg)
        if location in ("", ".", "..") or not location.isprintable() or {*location} & {*"/\\:"}:
            msg = f"{what}, expected a file name without a folder; {KEEP_INSIDE}"
            raise FormatError(msg)
        if tensor.data_type not in DTYPES:
            msg = f"has data type {tensor.data_type}, which is not supported"
            raise FormatError(msg)
        dtype, shape = DTYPES[tensor.data_type][0], tuple(tensor.dims)
        needed = buffers.size(self.where, name, dtype, shape)
        offset, length = (
            _whole(named.get(key, str(default))) for key, default in (("offset", 0), ("length", needed))
        )
        size = self._size(location, what)
        if length != needed or offset is None or offset + needed > size:
            place = f"offset {named.get('offset', 0)!a:.30} and length {named.get('length', needed)!a:.30}"
            msg = f"{what} of {size} bytes, at {place}; {dtype} {shape} needs {needed} bytes"
            raise FormatError(msg)
        return Tensor(shape, dtype, partial(self._array, name, location, offset, dtype, shape))

    def _size(self, location: str, what: str) -> int:
        if location not in self._sizes:
            with self._open_beside(location, what) as file:
                self._sizes[location] = os.fstat(file.fileno()).st_size
        return self._sizes[location]

    def _open_beside(self, location: str, what: str) -> IO[bytes]:
        """Open a regular file in the folder of the model; a link could leave the folder."""
        path = os.path.join(self._folder or "", location)
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                msg = f"{what}, which is not a regular file"
                raise FormatError(msg)
            return os.fdopen(os.open(path, flags), "rb")
        except OSError as error:
            msg = f"{what}, which cannot be opened: {error.strerror}"
            raise FormatError(msg) from error

    def _array(self, name: str, location: str, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        needed = buffers.size(self.where, name, dtype, shape)
        with self._open_beside(location, f"{self.where}: {brief(name)}") as file:
            file.seek(offset)
            raw = file.read(needed)
        if len(raw) != needed:
            msg = f"{self.where}: {brief(name)} has {len(raw)} bytes in {location}, expected {needed}"
            raise FormatError(msg)
        return buffers.as_array(self.where, name, raw, dtype, shape)


def _whole(told: str) -> int | None:
    """Parse a decimal integer of at least 0; None for other text."""
    return int(told) if told.isascii() and told.isdigit() and len(told) <= 18 else None


def tensor_of(where: str, name: str, tensor: Any) -> Tensor:
    """Convert a TensorProto; the size is checked now, and the data is read on demand."""
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        return unreadable(f"{where}: {brief(name)} is in another file; {KEEP_INSIDE}")
    if tensor.data_type not in DTYPES:
        what = f"has data type {tensor.data_type}, which is not supported"
        return unreadable(f"{where}: {brief(name)} {what}")
    dtype, field = DTYPES[tensor.data_type]
    shape = tuple(tensor.dims)
    raw = tensor.HasField("raw_data")
    given = len(tensor.raw_data if raw else getattr(tensor, field))
    needed = buffers.size(where, name, dtype, shape) if raw else buffers.count(where, name, shape)
    if given != needed:
        what = "bytes" if raw else "numbers"
        msg = f"{where}: {brief(name)} has {given} {what}, expected {needed} for {dtype} {shape}"
        raise FormatError(msg)
    return Tensor(shape, dtype, partial(_array_of, where, name, tensor, dtype, shape))


def _array_of(where: str, name: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the data of a TensorProto."""
    if tensor.HasField("raw_data"):
        return buffers.as_array(where, name, tensor.raw_data, dtype, shape)
    values = getattr(tensor, DTYPES[tensor.data_type][1])
    host = np.asarray(values, dtype=np.int64 if dtype in ("float16", "bfloat16") else dtype)
    if dtype in ("float16", "bfloat16"):  # stored as bit patterns
        return buffers.as_array(where, name, host.astype("<u2").tobytes(), dtype, shape)
    return host.reshape(shape)
