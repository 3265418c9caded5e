"""Run an ONNX model on any array library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xplstm import _array, _checks
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError, XplstmError
from xplstm._typing import Array
from xplstm.io._contents import Tensor
from xplstm.io.onnx import _operator
from xplstm.io.onnx._graph import Graph, Input, Node, shorten
from xplstm.io.onnx._math import MATH
from xplstm.io.onnx._nodes import OPERATIONS, Place, is_host, to_library
from xplstm.io.onnx._operator import OPERATORS, Attributes, Operator, Weights

# Supported operators, except recurrent operators and If.
RUNNABLE = OPERATIONS | MATH
# Errors of operators on unsuitable inputs; an omitted input is None.
FAILURES = (XplstmError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError)
# Inputs X, W, R, B, sequence_lens, initial_h, and for LSTM initial_c and P.
_WEIGHTS = (1, 2, 3, 7)


class Prepared:
    """A model from `prepare`, which can run any number of times."""

    def __init__(self, graph: Graph, place: Place) -> None:
        reason = why_not(graph)
        if reason is not None:
            raise ArgumentError(shorten(reason))
        self._graph = graph
        self._place = place
        self._makers = {name: node for node in graph.nodes for name in node.outputs if name}
        # Recurrent nodes with constant weights, by their output names.
        self._operators: dict[tuple[str, ...], Operator] = {}
        fixed = {*graph.constants} - {i.name for i in graph.inputs}
        for node in (n for n in graph.nodes if n.op in OPERATORS):
            if fixed.issuperset(name for name in weight_names(node) if name):
                with naming(graph.where, node):
                    weights = Weights(*(self._constant(name) for name in weight_names(node)))
                    self._operators[node.outputs] = operator(node, weights)
        used = {name for node in graph.nodes for name in self._inputs(node)} | {*graph.outputs}
        self._constants = {name: self._constant(name) for name in graph.constants if name in used}

    def run(self, inputs: Sequence[Array] | Mapping[str, Array]) -> tuple[Array, ...]:
        """Run the model.

        Parameters
        ----------
        inputs : sequence of array, or mapping of str to array
            Inputs by name or in the order of the model, with optional inputs last. Float arrays must be of
            the prepared library and device; integer arrays may also be NumPy arrays.

        Returns
        -------
        tuple of array
            Outputs of the model, in order.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            If an input is missing, unknown or wrong, or a node cannot run; the message names it.
        """
        values: dict[str, Any] = {"": None, **self._constants, **self._check_inputs(inputs)}
        wanted = [*reversed(self._graph.outputs)]
        while wanted:
            if wanted[-1] in values:
                wanted.pop()
                continue
            node = self._makers[wanted[-1]]
            needed = self._needed_values(node, values)
            missing = [name for name in needed if name not in values]
            wanted += missing
            if not missing:
                outputs = [values[n] for n in needed] if node.op == "If" else self._run(node, values)
                values |= {name: value for name, value in zip(node.outputs, outputs, strict=False) if name}
        return tuple(self._convert_output(values[name]) for name in self._graph.outputs)

    def _needed_values(self, node: Node, values: Mapping[str, Any]) -> list[str]:
        """Return the values that a node needs; for an If node, the outputs of the taken branch."""
        if node.op != "If":
            return self._inputs(node)
        condition, *branches = node.inputs
        if condition not in values:
            return [condition]
        half = len(branches) // 2
        chosen = _array.to_numpy(values[condition])
        if chosen.size != 1 or chosen.dtype != bool:
            found = f"shape {chosen.shape} and dtype {chosen.dtype}"
            msg = f"the {node.label} has a condition of {found}, expected one bool"
            raise ShapeError(msg)
        return branches[:half] if chosen.all() else branches[half:]

    def _run(self, node: Node, values: Mapping[str, Any]) -> Sequence[Array]:
        """Return the outputs of one node."""
        with naming(self._graph.where, node):
            if node.op in RUNNABLE:
                return RUNNABLE[node.op].run(self._place, node, [values[name] for name in node.inputs])
            ready = self._operators.get(node.outputs)
            if ready is None:
                ready = operator(node, Weights(*(values[name] for name in weight_names(node))))
            others = (values[name] for k, name in enumerate(pad_inputs(node)) if k not in _WEIGHTS)
            return ready(*others)[: len(node.outputs)]

    def _check_inputs(self, inputs: Sequence[Array] | Mapping[str, Array]) -> dict[str, Array]:
        """Return the checked inputs by name."""
        optional = [i for i in self._graph.inputs if i.name in self._graph.constants]
        required = [i for i in self._graph.inputs if i.name not in self._graph.constants]
        known = {i.name: i for i in (*required, *optional)}
        if not isinstance(inputs, Mapping):
            if not isinstance(inputs, Sequence) or not len(required) <= len(inputs) <= len(known):
                wanted = f"{len(required)} to {len(known)}" if optional else len(required)
                count = len(inputs) if isinstance(inputs, Sequence) else type(inputs).__name__
                msg = f"inputs has {count} arrays, expected {wanted}: {', '.join(known)}"
                raise ArgumentError(msg)
            inputs = dict(zip(known, inputs, strict=False))
        missing = [i.name for i in required if i.name not in inputs]
        unknown = sorted(inputs.keys() - known.keys())
        if missing or unknown:
            msg = (
                f"inputs has missing names {missing} and unknown names {unknown}, expected {', '.join(known)}"
            )
            raise ArgumentError(msg)
        return {name: self._check_input(known[name], a) for name, a in inputs.items()}

    def _check_input(self, expected: Input, a: Array) -> Array:
        """Check one input against the dtype, library and shape of the model."""
        xp, dtype = _array.namespace(a, expected.name), _array.dtype_name(a.dtype)
        if expected.dtype is not None and dtype != expected.dtype:
            msg = f"{expected.name} has dtype {dtype}, expected {expected.dtype}"
            raise DTypeError(msg)
        if xp is not self._place.xp and not is_host(a):
            ours, theirs = _array.backend_name(xp), _array.backend_name(self._place.xp)
            msg = f"{expected.name} is an array from {ours}, but the model was prepared for {theirs}"
            raise BackendError(msg)
        if expected.shape is not None and not _checks.fits(a.shape, expected.shape):
            msg = f"{expected.name} has shape {tuple(a.shape)}, expected {expected.shape}"
            raise ShapeError(msg)
        return _array.native(a)

    def _convert_output(self, a: Array) -> Array:
        """Convert an output to the array library."""
        return _array.asarray(a, self._place.xp, self._place.device) if isinstance(a, np.ndarray) else a

    def _constant(self, name: str) -> Array | None:
        """Return an initialiser on its device; None for other names."""
        return (
            to_library(self._place, self._graph.constants[name].array())
            if name in self._graph.constants
            else None
        )

    def _inputs(self, node: Node) -> list[str]:
        """Return the inputs that a node needs, without converted weights."""
        ready = node.outputs in self._operators
        return [name for k, name in enumerate(node.inputs) if not (ready and k in _WEIGHTS)]


def why_not(graph: Graph) -> str | None:
    """Return why a model is not supported, with its first unsupported node; None if it is supported."""
    return next((f"{graph.where} has {why}" for why in map(why_not_node, graph.nodes) if why), None)


def why_not_node(node: Node) -> str | None:
    """Return why a node is not supported, as text that starts with the node; None if it is supported."""
    needs: frozenset[str] = frozenset()
    if node.op in OPERATORS:
        others = (kind.own for name, kind in OPERATORS.items() if name != node.op)
        known = frozenset(Attributes._fields).difference(*others)
        counts = range(3, OPERATORS[node.op].inputs + 1)
    elif node.op == "If":
        counts, known = range(1 + 2 * len(node.outputs), 2 + 2 * len(node.outputs)), frozenset()
    elif node.op in RUNNABLE:
        _, counts, known, needs = RUNNABLE[node.op]
    else:
        return f"the {node.label}; supported operators are {', '.join([*OPERATORS, *RUNNABLE, 'If'])}"
    strange, missing = sorted(node.attributes.keys() - known), sorted(needs - node.attributes.keys())
    if strange or missing:
        return f"the {node.label} with unknown attributes {strange} and missing attributes {missing}"
    wrong = next((name for name, value in node.attributes.items() if not _is_kind(name, value)), None)
    if wrong is not None:
        return f"the {node.label} with {wrong}={node.attributes[wrong]!a}, which has the wrong type"
    if len(node.inputs) not in counts:
        return f"the {node.label} with {len(node.inputs)} inputs, expected {counts[0]} to {counts[-1]}"
    if node.op in OPERATORS and node.attributes.get("layout", 0) not in (0, 1):
        return f"the {node.label} with layout={node.attributes['layout']}, expected 0 or 1"
    if node.op == "Dropout" and any(node.outputs[1:]):
        return f"the {node.label} with a mask as output, which is not supported"
    return None


# Types of the attributes, and of the elements of lists.
_KINDS: dict[str, tuple[type, type | None]] = {
    **dict.fromkeys(("direction",), (str, None)),
    **dict.fromkeys(("clip", "ratio", "epsilon", "alpha", "beta"), (float, None)),
    **dict.fromkeys(("mode", "auto_pad"), (str, None)),
    **dict.fromkeys(("activations",), (list, str)),
    **dict.fromkeys(("activation_alpha", "activation_beta"), (list, float)),
    **dict.fromkeys(
        ("axes", "perm", "starts", "ends", "split", "pads", "strides", "dilations", "kernel_shape"),
        (list, int),
    ),
    "value": (Tensor, None),
}


def _is_kind(name: str, value: Any) -> bool:
    """Return whether an attribute has its type, which is int by default."""
    kind, inner = _KINDS.get(name, (int, None))
    if isinstance(value, list) and kind is list and inner is not None:
        return all(isinstance(one, inner) for one in value)
    return isinstance(value, kind)


def pad_inputs(node: Node) -> list[str]:
    """Return all eight inputs of a recurrent node."""
    return [*node.inputs, *[""] * (8 - len(node.inputs))]


def weight_names(node: Node) -> list[str]:
    """Return W, R, B and P of a recurrent node."""
    return [pad_inputs(node)[k] for k in _WEIGHTS]


def operator(node: Node, weights: Weights) -> Operator:
    """Return the operator of a recurrent node with its weights."""
    return _operator.operator(node.op, weights, Attributes(**node.attributes))


@contextmanager
def naming(where: str, node: Node) -> Iterator[None]:
    """Add the model and the node to errors; errors of array libraries become `ArgumentError`."""
    try:
        yield
    except FAILURES as error:
        kind = type(error) if isinstance(error, XplstmError) else ArgumentError
        label = f"the {node.label}"
        msg = str(error).removeprefix(label).lstrip(": ")
        raise kind(f"{where}: {label}: {shorten(msg)}") from error
