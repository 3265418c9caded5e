"""Export networks as ONNX models with one recurrent node for each layer.

A runtime sets the final state of a batch entry without steps to zero. The model selects the initial state
instead, as this package does. Lengths and initial states are optional inputs with default values.

A layer whose weights `freeze` stored in 8 bits becomes ONNX Runtime's operator DynamicQuantizeLSTM, with the
same integers and scales.

The operator LSTM has no projection. With ``h = W_hr m``, the node uses m as its recurrent state: its R is
``W_hh W_hr``, its outputs are multiplied by W_hr, and an initial h is multiplied by a right inverse of W_hr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xplstm import _array, _checks
from xplstm._errors import ArgumentError
from xplstm._stack import Layers, Stack
from xplstm.cells.activations import FUNCTIONS
from xplstm.cells.params import Activation, each
from xplstm.io.onnx._graph import import_onnx
from xplstm.io.onnx._operator import ACTIVATIONS, OPERATORS, QUANTIZED, RUNTIME, Weights, from_params
from xplstm.nn._module import Frozen, Recurrent

# Versions that the runtimes of recent years support.
OPSET, IR_VERSION = 17, 8
DTYPES = ("float32", "float64", "float16")
# A protobuf message is smaller than 2 GiB, including nodes and names.
LARGEST = (1 << 31) - (1 << 20)
# Default length; the model uses the minimum of this and T.
# With a larger condition number, the inverse of a projection loses more than half the digits of float32.
WORST_CONDITION = 1e4
NO_END = np.asarray([np.iinfo(np.int32).max], dtype=np.int32)


def model_of(network: Recurrent | Frozen, prefix: str) -> Any:
    """Return the ModelProto of a network; names of nodes and weights start with `prefix`."""
    model, layers = open_network(network, prefix)
    return model.of(layers)


def open_network(network: Recurrent | Frozen, prefix: str) -> tuple[GraphBuilder, Layers]:
    """Return a graph builder for the network, and the parameters of its layers."""
    if not isinstance(network, Recurrent | Frozen):
        wanted = "a network, a frozen one, a CharLM, a Forecaster or a SequenceClassifier"
        msg = f"model must be {wanted}, got {type(network).__name__}"
        if hasattr(network, "encoder") and hasattr(network, "decoder"):
            msg += "; export its encoder and its decoder, each a network"
        raise ArgumentError(msg)
    if isinstance(network, Frozen):
        home, layers = network._where, network._layers
        stored, projected = network._stack.weights, network._stack.proj_size
        cell = network._stack.cell.name
        if stored and (stored != "int8" or projected or cell != "LSTM"):
            how = f"{stored!r}" + (f" and proj_size={projected}" if projected else "")
            what = f"the network is {'an' if cell == 'LSTM' else 'a'} {cell} frozen with weights={how}"
            msg = f"{what}, which no ONNX operator supports; export the layer that is not frozen"
            raise ArgumentError(msg)
    else:
        home, layers = network._open()
    wrong = why_not_export(network._stack)
    if wrong is None and home.dtype not in DTYPES:
        wrong = f"has dtype {home.dtype}"
    if wrong is not None:
        msg = f"the network {wrong}, which the ONNX operators LSTM, GRU and RNN do not support"
        raise ArgumentError(msg)
    return GraphBuilder(network._stack, home.dtype, prefix), layers


def why_not_export(stack: Stack) -> str | None:
    """Return the options of a network that no recurrent node supports as text; None if all are supported."""
    if stack.cell.name not in OPERATORS:
        return f"is a {stack.cell.name}"
    variant = stack.cell.options().get("variant")
    strange = ("cell_clip", "layer_norm", "zoneout_h", "zoneout_c")
    used = [f"variant.{name}" for name in strange if variant and getattr(variant, name)]
    return f"has {', '.join(used)}" if used else None


class GraphBuilder:
    """Builder of a model with ordered nodes and constants."""

    def __init__(self, stack: Stack, dtype: str, prefix: str) -> None:
        self.stack, self.dtype = stack, dtype
        self.start = prefix and f"{prefix}."
        self.operator = stack.cell.name
        self.letters = "hc" if self.operator == "LSTM" else "h"
        self.sizes = {"h": stack.output_size, "c": stack.cell.cell_size(stack.hidden_size)}
        self.states = stack.num_layers * len(stack.reverse)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.size = 0

    def of(self, layers: Layers) -> Any:
        """Return the model of the network."""
        self._leave(self.run(layers, "x"))
        stack = self.stack
        axes = ["B", "T"] if stack.batch_first else ["T", "B"]
        apart = stack.merge == "none"
        y = [2, *axes, stack.output_size] if apart else [*axes, stack.width]
        return self.model(self.operator, {"x": [*axes, stack.input_size]}, {"y": y})

    def run(self, layers: Layers, x: str, lengths: str | None = None) -> str:
        """Add the nodes of all layers on `x` and the outputs of the final states; return time-major y.

        `lengths` are the lengths of all entries; those of the input lengths if omitted.
        """
        x = self.add("Transpose", [x], "x_by_time", perm=[1, 0, 2]) if self.stack.batch_first else x
        lengths = self.lengths(x) if lengths is None else lengths
        none = self.constant(f"{self.start}no_steps", np.zeros(1, dtype=np.int32))
        empty = self.add("Equal", [lengths, none], "empty_rows")
        no_steps = self.add("Unsqueeze", [empty, self.integers(1)], "empty_rows_of_states")
        starts = [self._start(letter) for letter in self.letters]
        ends: list[list[str]] = [[] for _ in self.letters]
        for layer, params in enumerate(layers):
            host = [p if self.stack.weights else each(_array.to_numpy, p) for p in params]
            begins = [
                self._part(start, letter, layer) for letter, start in zip(self.letters, starts, strict=True)
            ]
            if self.stack.weights:
                Y, *last = self._add_quantised(layer, host, [x, lengths, *begins])
            elif self.stack.proj_size:
                Y, *last = self._add_projected(layer, host, [x, lengths, *begins])
            else:
                Y, *last = self._recurrent(layer, self._weights(layer, host), [x, lengths, *begins])
            for k, (begin, end) in enumerate(zip(begins, last, strict=True)):
                ends[k].append(self.add("Where", [no_steps, begin, end], f"held_{self.letters[k]}_l{layer}"))
            x = self._add_merge(layer, Y)
        for letter, parts in zip(self.letters, ends, strict=True):
            self.add("Concat", parts, f"{letter}_n", made=f"{letter}_n", axis=0)
        return x

    def constant(self, name: str, value: Any) -> str:
        """Add a constant."""
        host = np.ascontiguousarray(value)
        if np.ndim(value):  # scalars belong to the graph, which ignores padding by -inf in a maximum
            _checks.finite(name, host, "such numbers are not written, because no call could use them")
        self.size += host.nbytes
        if self.size > LARGEST:
            what = f"the tensors up to {name} have {self.size} bytes; an ONNX file can have at most {LARGEST}"
            msg = f"{what}; save the parameters as .safetensors with xplstm.io.save"
            raise ArgumentError(msg)
        self.constants.append(import_onnx().numpy_helper.from_array(host, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a list of integers, once for equal lists."""
        name = f"{self.start}integers_{'_'.join(map(str, values))}"
        kept = any(constant.name == name for constant in self.constants)
        return name if kept else self.constant(name, np.asarray(values, dtype=np.int64))

    def add(self, op: str, inputs: Sequence[str], name: str, made: str = "", **attributes: Any) -> str:
        """Add a node with the name of its output."""
        return self.add_many(op, inputs, name, [made or self.start + name], **attributes)[0]

    def add_many(
        self, op: str, inputs: Sequence[str], name: str, made: list[str], **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        helper = import_onnx().helper
        self.nodes.append(helper.make_node(op, list(inputs), made, self.start + name, **attributes))
        return made

    def lengths(self, x: str) -> str:
        """Return the lengths of all entries of `x` (T, B, ...) from the input lengths."""
        shape = self.add("Shape", [x], "shape")
        T = self.add("Gather", [shape, self.integers(0)], "T")
        B = self.add("Gather", [shape, self.integers(1)], "B")
        most = self.add("Cast", [T], "T_as_length", to=import_onnx().TensorProto.INT32)
        bounded = self.add("Min", [self.constant("lengths", NO_END), most], "bounded_lengths")
        return self.add("Expand", [bounded, B], "all_lengths")

    def _start(self, letter: str) -> str:
        """Return an initial state for all batch entries."""
        size = self.sizes[letter]
        shape = [self.integers(self.states), f"{self.start}B", self.integers(size)]
        wanted = self.add("Concat", shape, f"shape_of_{letter}_0", axis=0)
        zeros = self.constant(f"{letter}_0", np.zeros((self.states, 1, size), dtype=self.dtype))
        return self.add("Expand", [zeros, wanted], f"all_{letter}_0")

    def _part(self, start: str, letter: str, layer: int) -> str:
        """Return the initial states of one layer."""
        D = len(self.stack.reverse)
        bounds = [self.integers(layer * D), self.integers((layer + 1) * D), self.integers(0)]
        return self.add("Slice", [start, *bounds], f"{letter}_0_l{layer}")

    def _weights(self, layer: int, params: Sequence[Any]) -> Weights:
        """Add the parameters of one layer, and return their names."""
        return Weights(
            *(
                "" if a is None else self.constant(f"{self.start}{name}_l{layer}", _array.to_numpy(a))
                for name, a in from_params(params)._asdict().items()
            )
        )

    def _recurrent(
        self, layer: int, weights: Sequence[str], inputs: list[str], scales: Sequence[str] = ()
    ) -> list[str]:
        """Add the node of one layer, and return Y and the final states."""
        x, lengths, *begins = inputs
        W, R, B, P = weights
        given = [x, W, R, B, lengths, *begins] + ([P] if P or scales else [])
        outputs = [f"{self.start}{name}_l{layer}" for name in ("Y", "Y_h", "Y_c")[: 1 + len(begins)]]
        attributes = attributes_of(self.stack) | ({"domain": RUNTIME} if scales else {})
        operator = QUANTIZED if scales else self.operator
        name = f"{self.operator.lower()}_l{layer}"
        return self.add_many(operator, [*given, *scales], name, outputs, **attributes)

    def _add_quantised(self, layer: int, params: Sequence[Any], inputs: list[str]) -> list[str]:
        """Add the node of a layer with integer matrices and a scale for each row."""
        integers = from_params(
            [p._replace(weight_ih=p.weight_ih.values, weight_hh=p.weight_hh.values) for p in params]
        )
        columns = ((p.weight_ih.scales[:, None], p.weight_hh.scales[:, None]) for p in params)
        scales = from_params(
            [p._replace(weight_ih=i, weight_hh=h) for p, (i, h) in zip(params, columns, strict=True)]
        )
        kept, by_row = [], []
        for letter in "WR":
            start = f"{self.start}{letter}_l{layer}"
            kept.append(self.constant(start, getattr(integers, letter).transpose(0, 2, 1)))
            rows = getattr(scales, letter)[..., 0]
            by_row.append(self.constant(f"{start}_scale", rows))
            by_row.append(self.constant(f"{start}_zero_point", np.zeros(rows.shape, np.int8)))
        for letter in "BP":
            a = getattr(integers, letter)
            kept.append("" if a is None else self.constant(f"{self.start}{letter}_l{layer}", a))
        return self._recurrent(layer, kept, inputs, by_row)

    def _add_projected(self, layer: int, params: Sequence[Any], inputs: list[str]) -> list[str]:
        """Add the nodes of a layer with a projection."""
        x, lengths, h, c = inputs
        out = np.stack([p.weight_hr.T for p in params])
        finite = np.isfinite(out).all()
        worst = np.linalg.cond(out.astype(np.float64)).max() if finite else np.inf
        if worst > WORST_CONDITION:
            bound = f"expected at most {WORST_CONDITION:.0e}, so that an initial h keeps its digits"
            msg = f"weight_hr_l{layer} has the condition number {worst:.1e}, {bound}"
            raise ArgumentError(msg)
        back = np.linalg.pinv(out.astype(np.float64))
        inverse = self.constant(f"{self.start}projection_back_l{layer}", back.astype(self.dtype))
        projection = self.constant(f"{self.start}projection_l{layer}", out)
        m = self.add("MatMul", [h, inverse], f"m_0_l{layer}")
        W, R, B, P = self._weights(layer, [p._replace(weight_hr=None) for p in params])
        turned = self.add("Transpose", [projection], f"weight_hr_l{layer}", perm=[0, 2, 1])
        whole = self.add("MatMul", [R, turned], f"R_projected_l{layer}")
        Y, Y_h, Y_c = self._recurrent(layer, (W, whole, B, P), [x, lengths, m, c])
        return [
            self.add("MatMul", [Y, projection], f"projected_Y_l{layer}"),
            self.add("MatMul", [Y_h, projection], f"projected_h_l{layer}"),
            Y_c,
        ]

    def _add_merge(self, layer: int, Y: str) -> str:
        """Merge the outputs of both directions, time-major; merge="none" keeps those of the last layer."""
        merge, D, P = self.stack.merge, len(self.stack.reverse), self.stack.output_size
        if D == 1:
            return self.add("Squeeze", [Y, self.integers(1)], f"y_l{layer}")
        if merge == "none" and layer == self.stack.num_layers - 1:
            return Y
        if merge in ("concat", "none"):
            beside = self.add("Transpose", [Y], f"beside_l{layer}", perm=[0, 2, 1, 3])
            return self.add("Reshape", [beside, self.integers(0, 0, D * P)], f"y_l{layer}")
        sides = self.add_many(
            "Split", [Y, self.integers(1, 1)], f"split_l{layer}", [f"{Y}_{d}" for d in range(D)], axis=1
        )
        op = "Mul" if merge == "product" else "Add"
        joined = self.add(
            "Squeeze", [self.add(op, sides, f"joined_l{layer}"), self.integers(1)], f"y_l{layer}"
        )
        if merge != "mean":
            return joined
        half = self.constant(f"{self.start}half_l{layer}", np.asarray(0.5, dtype=self.dtype))
        return self.add("Mul", [joined, half], f"mean_l{layer}")

    def _leave(self, y: str) -> None:
        """Add the output y from the last layer, with the axes of x."""
        if self.stack.merge == "none":
            self.add(
                "Transpose", [y], "y", made="y", perm=[1, 2, 0, 3] if self.stack.batch_first else [1, 0, 2, 3]
            )
        elif self.stack.batch_first:
            self.add("Transpose", [y], "y", made="y", perm=[1, 0, 2])
        else:
            self.add("Identity", [y], "y", made="y")

    def model(
        self,
        name: str,
        inputs: Mapping[str, list[Any]],
        outputs: Mapping[str, list[Any]],
        integers: bool = False,
    ) -> Any:
        """Return the ModelProto with inputs and outputs of these shapes; `integers` sets the input dtype."""
        onnx = import_onnx()
        helper = onnx.helper
        number = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        kind = onnx.TensorProto.INT64 if integers else number
        given = [helper.make_tensor_value_info(key, kind, shape) for key, shape in inputs.items()]
        given.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ["rows"]))
        given += [
            helper.make_tensor_value_info(f"{k}_0", number, [self.states, "rows", self.sizes[k]])
            for k in self.letters
        ]
        made = [helper.make_tensor_value_info(key, number, shape) for key, shape in outputs.items()]
        made += [
            helper.make_tensor_value_info(f"{k}_n", number, [self.states, "B", self.sizes[k]])
            for k in self.letters
        ]
        graph = helper.make_graph(self.nodes, f"{self.start}{name}", given, made, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(RUNTIME, 1)] if self.stack.weights else []
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="xplstm")


def attributes_of(stack: Stack) -> dict[str, Any]:
    """Return the attributes of a recurrent node."""
    D, options = len(stack.reverse), stack.cell.options()
    variant = options.get("variant")
    attributes: dict[str, Any] = {"hidden_size": stack.hidden_size}
    if any(stack.reverse):
        attributes["direction"] = "bidirectional" if D == 2 else "reverse"
    if "reset_after" in options:
        return attributes | {"linear_before_reset": int(options["reset_after"])}
    if "nonlinearity" in options:
        return attributes | _functions((Activation(options["nonlinearity"]),) * D)
    if variant is None:
        return attributes
    attributes |= {"input_forget": 1} if variant.coupled else {}
    attributes |= {} if variant.gate_clip is None else {"clip": variant.gate_clip}
    return attributes | _functions(variant.activations * (D if len(variant.activations) == 3 else 1))


def _functions(activations: Sequence[Activation]) -> dict[str, Any]:
    """Return the names of functions, and their constants in order."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    attributes: dict[str, list[Any]] = {"activations": [], "activation_alpha": [], "activation_beta": []}
    for activation in activations:
        name = "affine" if activation.name == "identity" else activation.name
        function = FUNCTIONS[name]
        attributes["activations"].append(names[name])
        for letter in ("alpha", "beta"):
            default, given = getattr(function, letter), getattr(activation, letter)
            if default is not None:
                attributes[f"activation_{letter}"].append(default if given is None else given)
    return {name: values for name, values in attributes.items() if values}
