"""A whole ONNX model of recurrent nodes and what stands around them, run on any array library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError, XplstmError
from xplstm._typing import Array
from xplstm.io._contents import Tensor
from xplstm.io.onnx._graph import Graph, Input, Node, shortened
from xplstm.io.onnx._math import MATH
from xplstm.io.onnx._nodes import OPERATIONS, Place, is_host, settled
from xplstm.io.onnx._operator import OPERATORS, Attributes, Operator, Weights

# X, W, R, B, sequence_lens, initial_h, and for LSTM initial_c and P.
_INPUTS = {"LSTM": 8, "RNN": 6}
_WEIGHTS = (1, 2, 3, 7)
# What runs here beside recurrent nodes and If.
_RUN = OPERATIONS | MATH
_BRANCHES = ("else_branch", "then_branch")


class Prepared:
    """A model that is ready to run, any number of times; made by `prepare`."""

    def __init__(self, graph: Graph, place: Place) -> None:
        reason = why_not(graph)
        if reason is not None:
            raise ArgumentError(shortened(reason))
        self._graph = graph
        self._place = place
        given = {i.name for i in graph.inputs}
        self._body = _Body(graph, place, {}, given)

    def run(self, inputs: Sequence[Array] | Mapping[str, Array]) -> tuple[Array, ...]:
        """Run the model.

        Parameters
        ----------
        inputs : sequence of array, or mapping of str to array
            By name, or in the model's order, those that may be left out last. Floats are arrays of the
            library that the model was prepared for; integers may also be NumPy's.

        Returns
        -------
        tuple of array
            The model's outputs, in its order.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming the input or node and what is wrong with it.
        """
        made = self._body.run({"": None}, self._given(inputs))
        return tuple(self._left(a) for a in made)

    def _given(self, inputs: Sequence[Array] | Mapping[str, Array]) -> dict[str, Array]:
        """What was passed, by name and checked."""
        optional = [i for i in self._graph.inputs if i.name in self._graph.constants]
        required = [i for i in self._graph.inputs if i.name not in self._graph.constants]
        known = {i.name: i for i in (*required, *optional)}
        if not isinstance(inputs, Mapping):
            if not isinstance(inputs, Sequence) or not len(required) <= len(inputs) <= len(known):
                wanted = f"{len(required)} to {len(known)}" if optional else len(required)
                count = len(inputs) if isinstance(inputs, Sequence) else type(inputs).__name__
                msg = f"inputs: {count} given, expected {wanted}: {', '.join(known)}"
                raise ArgumentError(msg)
            inputs = dict(zip(known, inputs, strict=False))
        missing = [i.name for i in required if i.name not in inputs]
        unknown = sorted(inputs.keys() - known.keys())
        if missing or unknown:
            msg = f"inputs: missing {missing}, unknown {unknown}; expected {', '.join(known)}"
            raise ArgumentError(msg)
        return {name: self._entered(known[name], a) for name, a in inputs.items()}

    def _entered(self, told: Input, a: Array) -> Array:
        """One input, if it is what the model says."""
        xp, dtype = _array.namespace(a, told.name), _array.dtype_name(a.dtype)
        if told.dtype is not None and dtype != told.dtype:
            msg = f"{told.name} has dtype {dtype}, expected {told.dtype}"
            raise DTypeError(msg)
        if xp is not self._place.xp and not is_host(a):
            ours, theirs = _array.backend_name(xp), _array.backend_name(self._place.xp)
            msg = f"{told.name} is an array of {ours}, but the model was prepared for {theirs}"
            raise BackendError(msg)
        if told.shape is not None and not _fits(a.shape, told.shape):
            msg = f"{told.name} has shape {tuple(a.shape)}, expected {told.shape}"
            raise ShapeError(msg)
        return _array.native(a)

    def _left(self, a: Array) -> Array:
        """An output in the array library, whatever it is."""
        return _array.asarray(a, self._place.xp, self._place.device) if isinstance(a, np.ndarray) else a


class _Body:
    """A graph, or a branch of one: its constants, and its recurrent nodes with weights in our order."""

    def __init__(self, graph: Graph, place: Place, outer: Mapping[str, Tensor], given: set[str]) -> None:
        self._graph, self._place = graph, place
        constants = {**outer, **graph.constants}
        # By the names of their outputs: those nodes whose weights no caller can change.
        self._operators: dict[tuple[str, ...], Operator] = {}
        fixed = {*constants} - given
        for node in (n for n in graph.nodes if n.op in OPERATORS):
            if fixed.issuperset(name for name in weight_names(node) if name):
                with naming(node):
                    weights = Weights(*(_constant(place, constants, name) for name in weight_names(node)))
                    self._operators[node.outputs] = operator(node, weights)
        self._branches = {
            node.outputs: [_Body(node.attributes[name], place, constants, given) for name in _BRANCHES]
            for node in graph.nodes
            if node.op == "If"
        }
        used = self.needed()
        self._constants = {
            name: _constant(place, constants, name) for name in graph.constants if name in used
        }

    def needed(self) -> set[str]:
        """Return the values that the nodes use when they run, those of branches included."""
        inner = (body.needed() for branches in self._branches.values() for body in branches)
        own = {name for node in self._graph.nodes for name in self._inputs(node)}
        return own.union(self._graph.outputs, *inner)

    def run(self, outer: Mapping[str, Any], given: Mapping[str, Any]) -> list[Any]:
        """Return the outputs; `outer` is what the graph around it has made so far."""
        values = {**outer, **self._constants, **given}
        for node in self._graph.nodes:
            values |= zip(node.outputs, self._run(node, values), strict=False)
        return [values[name] for name in self._graph.outputs]

    def _run(self, node: Node, values: Mapping[str, Any]) -> Sequence[Array]:
        """The outputs of one node."""
        if node.op == "If":
            chosen = _array.to_numpy(values[node.inputs[0]])
            if chosen.size != 1 or chosen.dtype != bool:
                msg = f"the {node.label} has a condition of shape {chosen.shape} and dtype {chosen.dtype}"
                raise ShapeError(msg)
            return self._branches[node.outputs][int(chosen.reshape(())[()])].run(values, {})
        with naming(node):
            if node.op in _RUN:
                return _RUN[node.op].run(self._place, node, [values[name] for name in node.inputs])
            ready = self._operators.get(node.outputs)
            if ready is None:
                ready = operator(node, Weights(*(values[name] for name in weight_names(node))))
            others = (values[name] for k, name in enumerate(padded(node)) if k not in _WEIGHTS)
            return ready(*others)[: len(node.outputs)]

    def _inputs(self, node: Node) -> list[str]:
        """What a node still needs: not the weights of one that has them in our order."""
        ready = node.outputs in self._operators
        return [name for k, name in enumerate(node.inputs) if not (ready and k in _WEIGHTS)]


def _constant(place: Place, constants: Mapping[str, Tensor], name: str) -> Array | None:
    """Return an initialiser in its place; None for what is left out."""
    return settled(place, constants[name].array()) if name else None


def _fits(given: tuple[int, ...], told: tuple[int | str, ...]) -> bool:
    """Whether a shape is the one that a model tells, where a size in words is any."""
    return len(given) == len(told) and all(
        isinstance(t, str) or g == t for g, t in zip(given, told, strict=True)
    )


def why_not(graph: Graph) -> str | None:
    """Why a model cannot run here: the first node that cannot."""
    for node in graph.nodes:
        why = why_not_node(node)
        reasons = [f"{graph.where} has {why}" if why else None, *map(why_not, node.graphs)]
        reason = next(filter(None, reasons), None)
        if reason is not None:
            return reason
    return None


def why_not_node(node: Node) -> str | None:
    """Why a node cannot run here, in words that begin with it."""
    needs: frozenset[str] = frozenset()
    if node.op in OPERATORS:
        known = frozenset(Attributes._fields) - ({"input_forget"} if node.op == "RNN" else set())
        counts = range(3, _INPUTS[node.op] + 1)
    elif node.op == "If":
        counts, known, needs = range(1, 2), frozenset(_BRANCHES), frozenset(_BRANCHES)
    elif node.op in _RUN:
        _, counts, known, needs = _RUN[node.op]
    else:
        return f"the {node.label}; what runs here is {', '.join([*OPERATORS, 'If', *_RUN])}"
    strange, missing = sorted(node.attributes.keys() - known), sorted(needs - node.attributes.keys())
    if strange or missing:
        return f"the {node.label} with attributes unknown: {strange}, missing: {missing}"
    wrong = next((name for name, value in node.attributes.items() if not _is_kind(name, value)), None)
    if wrong is not None:
        return f"the {node.label} with {wrong}={node.attributes[wrong]!a}, which has another type"
    if len(node.inputs) not in counts:
        return f"the {node.label} with {len(node.inputs)} inputs, expected {counts[0]} to {counts[-1]}"
    if node.op == "Dropout" and any(node.outputs[1:]):
        return f"the {node.label} with a mask for an output: nothing is dropped here"
    return None


# Types of the attributes that are read, and of the elements of those that are lists.
_KINDS: dict[str, tuple[type, type | None]] = {
    **dict.fromkeys(("direction", "auto_pad", "mode"), (str, None)),
    **dict.fromkeys(("clip", "ratio", "alpha", "beta", "epsilon"), (float, None)),
    **dict.fromkeys(("activations",), (list, str)),
    **dict.fromkeys(("activation_alpha", "activation_beta"), (list, float)),
    **dict.fromkeys(
        ("axes", "perm", "starts", "ends", "split", "dilations", "kernel_shape", "pads", "strides"),
        (list, int),
    ),
    **dict.fromkeys(_BRANCHES, (Graph, None)),
    "value": (Tensor, None),
}


def _is_kind(name: str, value: Any) -> bool:
    """Whether an attribute is of its type: an integer, if nothing else is said."""
    kind, inner = _KINDS.get(name, (int, None))
    if isinstance(value, list) and kind is list and inner is not None:
        return all(isinstance(one, inner) for one in value)
    return isinstance(value, kind)


def padded(node: Node) -> list[str]:
    """All eight inputs of a recurrent node."""
    return [*node.inputs, *[""] * (8 - len(node.inputs))]


def weight_names(node: Node) -> list[str]:
    """W, R, B and P of a recurrent node."""
    return [padded(node)[k] for k in _WEIGHTS]


def operator(node: Node, weights: Weights) -> Operator:
    """A recurrent node with its weights."""
    return OPERATORS[node.op](weights, Attributes(**node.attributes))


@contextmanager
def naming(node: Node) -> Iterator[None]:
    """Name the node in whatever is wrong with it."""
    try:
        yield
    except XplstmError as error:
        msg = f"the {node.label}: {error}"
        raise type(error)(msg) from error
