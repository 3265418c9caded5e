"""Run, export and load ONNX models with the operators LSTM, GRU and RNN.

`lstm`, `lstm_vjp` and `rnn` are the operators as functions, for arrays of any library and without the package
onnx. `prepare`, `run_model` and `run_node` have the interface of ``onnx.backend.base.Backend``. `export`
writes a network as an ONNX model, and `xplstm.io.load` loads a network from an ONNX model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xplstm import _array, _values
from xplstm._errors import ArgumentError
from xplstm._typing import Array, Namespace
from xplstm.cells.params import Variant
from xplstm.io._contents import Contents, Found, Opening, by_name
from xplstm.io._written import no_place
from xplstm.io.files._durable import write_durably
from xplstm.io.onnx import _graph, _operator
from xplstm.io.onnx._export import model_of, why_not_export
from xplstm.io.onnx._find import in_arrays, in_graph
from xplstm.io.onnx._fold import decide_branches, dequantise, fold_constants
from xplstm.io.onnx._graph import Graph, Input
from xplstm.io.onnx._model import Prepared, weight_names, why_not
from xplstm.io.onnx._nodes import Place
from xplstm.io.onnx._operator import OPERATORS, Attributes, Weights, from_params
from xplstm.io.onnx._projected import find_projections
from xplstm.io.onnx._whole import Exportable, whole
from xplstm.nn._module import Frozen, Recurrent

SUFFIXES = (".onnx",)
LAYOUT = "onnx"
STATE = ("h", "c")
SURE = False

__all__ = [
    "Prepared",
    "export",
    "is_compatible",
    "lstm",
    "lstm_vjp",
    "prepare",
    "rnn",
    "run_model",
    "run_node",
    "supports_device",
]


def recognises(opening: Opening) -> bool:
    """Return whether a file name ends in .onnx, since the first bytes of a model are not unique.

    Without a file name, the first bytes decide: the format version, and the tag of a later field.
    """
    if os.path.splitext(opening.path)[1]:
        return opening.path.lower().endswith(SUFFIXES)
    return re.match(rb"\x08[\x03-\x7f][\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca]", opening.head) is not None


def read(path: str) -> Contents:
    """Return the tensors of a model, and its graph."""
    graph = find_projections(decide_branches(dequantise(_graph.as_graph(path, path))))
    graph = fold_constants(graph, _weights_of(graph))
    return Contents(path, "onnx", by_name(path, graph.constants.items()), {"graph": graph}, "onnx")


def _weights_of(graph: Graph) -> list[str]:
    """Return the names of the weights of all recurrent nodes."""
    return [name for node in graph.nodes if node.op in OPERATORS for name in weight_names(node)]


def _folded_weights(graph: Graph) -> Graph:
    """Return the graph with weights that nodes compute from initialisers that are not also inputs."""
    given = {i.name for i in graph.inputs}
    fixed = {name: tensor for name, tensor in graph.constants.items() if name not in given}
    constants = fold_constants(graph._replace(constants=fixed), _weights_of(graph)).constants
    return graph._replace(constants={**graph.constants, **constants})


def encode(network: Recurrent, _layout: str, prefix: str) -> bytes:
    """Return the bytes of an ONNX model of `network`."""
    content: bytes = model_of(network, prefix).SerializeToString()
    return content


def find(contents: Contents) -> list[Found]:
    """Find the recurrent nodes of a model, or arrays with the names of the operator inputs."""
    if contents.file == "onnx":
        return in_graph(contents, contents.metadata["graph"])
    return in_arrays(contents)


def to_mapping(network: Recurrent) -> dict[str, Array]:
    """Return W, R, B and P of one layer; several layers get the prefixes ``l0``, ``l1`` and so on."""
    stack = network._stack
    options = {**stack.cell.options().get("variant", Variant()).changed(), "peepholes": False}
    wrong = f"has proj_size={stack.proj_size}" if stack.proj_size else why_not_export(stack)
    if wrong is None and stack.cell.name == "GRU":
        wrong = "is a GRU, and its arrays do not show where it applies the reset gate"
    if wrong is None and (Variant(**options).changed() or stack.merge != "concat" or network.reverse):
        wrong = f"is LSTM{stack.arguments()}"
    if wrong is not None:
        raise no_place("onnx", wrong)
    _, layers = network._open()
    return {
        f"l{number}.{name}" if len(layers) > 1 else name: a
        for number, layer in enumerate(layers)
        for name, a in from_params(layer)._asdict().items()
        if a is not None
    }


def lstm(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Any = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    hidden_size: int | None = None,
    clip: float | None = None,
    input_forget: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
) -> tuple[Array, Array, Array]:
    """Run the ONNX operator LSTM.

    The operator is defined in https://onnx.ai/onnx/operators/onnx__LSTM.html. D is 2 with
    ``direction="bidirectional"``, otherwise 1. The gate order of rows is i, o, f, c. The definition does not
    cover batch entries without steps; here they keep their initial state.

    Parameters
    ----------
    X : array, shape (T, B, I), or (B, T, I) with layout=1
        Input of dtype float64, float32, float16 or bfloat16. All other float arrays have the same dtype.
    W : array, shape (D, 4H, I)
        Input weights.
    R : array, shape (D, 4H, H)
        Recurrent weights.
    B : array, shape (D, 8H), optional
        Biases of W, followed by those of R; zeros if omitted.
    sequence_lens : integers, shape (B,), optional
        Number of steps of each batch entry, in [0, T]; T if omitted.
    initial_h, initial_c : array, shape (D, B, H), or (B, D, H) with layout=1, optional
        Initial state; zeros if omitted.
    P : array, shape (D, 3H), optional
        Peephole weights in the order i, o, f; no peepholes if omitted.
    direction : {"forward", "reverse", "bidirectional"}, default "forward"
        Direction of time.
    layout : {0, 1}, default 0
        Whether time (0) or the batch (1) is the first axis.
    hidden_size : int, optional
        H; the size of R if omitted.
    clip : float, optional
        Bound of the inputs of the gate functions, above 0; no bound if omitted.
    input_forget : {0, 1}, default 0
        With 1, f is 1 - i.
    activations : sequence of str, optional
        Functions of the gates i, o and f, of c, and of the hidden state, for each direction. Sigmoid, Tanh
        and Tanh if omitted. Relu, Affine, LeakyRelu, ThresholdedRelu, ScaledTanh, HardSigmoid, Elu, Softsign
        and Softplus are also supported.
    activation_alpha, activation_beta : sequence of float, optional
        Constants of the functions that have such a constant, in order. The defaults of the operators apply
        if a list is too short. A list must not be too long.

    Returns
    -------
    Y : array, shape (T, D, B, H), or (B, T, D, H) with layout=1
        Outputs, exactly 0 after the length of a batch entry.
    Y_h, Y_c : array, shape of initial_h
        Final state.

    Raises
    ------
    ShapeError, DTypeError, BackendError, ArgumentError
        If an argument has the wrong shape, dtype, library or value.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.io import onnx
    >>> rng = np.random.default_rng(0)
    >>> X, W, R = rng.normal(size=(5, 4, 3)), rng.normal(size=(1, 8, 3)), rng.normal(size=(1, 8, 2))
    >>> Y, Y_h, Y_c = onnx.lstm(X, W, R)
    >>> Y.shape, Y_h.shape
    ((5, 1, 4, 2), (1, 4, 2))
    """
    attributes = Attributes(
        direction, layout, hidden_size, clip, input_forget, activations, activation_alpha, activation_beta
    )
    return _operator.operator("LSTM", Weights(W, R, B, P), attributes)(X, sequence_lens, initial_h, initial_c)


def lstm_vjp(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Any = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,
    **attributes: Any,
) -> tuple[Array, Array, Array, Callable[..., dict[str, Array]]]:
    """Run the ONNX operator LSTM, and return its pullback.

    Parameters
    ----------
    X, W, R, B, sequence_lens, initial_h, initial_c, P
        As for `lstm`.
    **attributes
        Keyword arguments of `lstm`, such as ``direction`` and ``layout``.

    Returns
    -------
    Y, Y_h, Y_c
        As from `lstm`.
    pullback : callable
        ``pullback(dY=None, dY_h=None, dY_c=None)`` returns a dict of the gradients with respect to X, W, R,
        initial_h and initial_c, and to B and P if they were passed. None means zeros.

    Raises
    ------
    ShapeError, DTypeError, BackendError, ArgumentError
        If an argument has the wrong shape, dtype, library or value.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.io import onnx
    >>> rng = np.random.default_rng(0)
    >>> X, W, R = rng.normal(size=(5, 4, 3)), rng.normal(size=(2, 8, 3)), rng.normal(size=(2, 8, 2))
    >>> Y, Y_h, Y_c, pullback = onnx.lstm_vjp(X, W, R, direction="bidirectional")
    >>> pullback(np.ones_like(Y))["W"].shape
    (2, 8, 3)
    """
    known = [name for name in Attributes._fields if name not in OPERATORS["GRU"].own]
    strange = sorted(attributes.keys() - {*known})
    if strange:
        msg = f"{strange[0]}= is not an attribute of LSTM, expected one of {', '.join(known)}"
        raise ArgumentError(msg)
    ready = _operator.operator("LSTM", Weights(W, R, B, P), Attributes(**attributes))
    outputs, pullback = ready.vjp(X, sequence_lens, initial_h, initial_c)
    return *outputs, pullback


def rnn(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Any = None,
    initial_h: Array | None = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    hidden_size: int | None = None,
    clip: float | None = None,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
) -> tuple[Array, Array]:
    """Run the ONNX operator RNN, which is defined in https://onnx.ai/onnx/operators/onnx__RNN.html.

    Parameters
    ----------
    X : array
        As for `lstm`.
    W : array, shape (D, H, I)
        Input weights.
    R : array, shape (D, H, H)
        Recurrent weights.
    B : array, shape (D, 2H), optional
        Biases of W, followed by those of R; zeros if omitted.
    sequence_lens, initial_h, direction, layout, hidden_size, clip
        As for `lstm`.
    activations : sequence of str, optional
        Function of each direction; Tanh if omitted.
    activation_alpha, activation_beta
        As for `lstm`.

    Returns
    -------
    Y : array, shape (T, D, B, H), or (B, T, D, H) with layout=1
        Outputs, exactly 0 after the length of a batch entry.
    Y_h : array, shape of initial_h
        Final state.

    Raises
    ------
    ShapeError, DTypeError, BackendError, ArgumentError
        If an argument has the wrong shape, dtype, library or value.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.io import onnx
    >>> X, W, R = np.ones((5, 4, 3)), np.ones((1, 2, 3)), np.ones((1, 2, 2))
    >>> Y, Y_h = onnx.rnn(X, W, R, activations=["Softsign"])
    >>> Y.shape
    (5, 1, 4, 2)
    """
    attributes = Attributes(
        direction, layout, hidden_size, clip, 0, activations, activation_alpha, activation_beta
    )
    return _operator.operator("RNN", Weights(W, R, B), attributes)(X, sequence_lens, initial_h)[:2]


def prepare(model: Any, device: str = "CPU", *, xp: str | Namespace | None = None) -> Prepared:
    """Prepare an ONNX model for repeated runs.

    Parameters
    ----------
    model : ModelProto, bytes or path
        Model of nodes LSTM, GRU and RNN and of supported other operators; see :doc:`/guides/onnx`. The
        tensors must be inside the file, or in a file of the same folder.
    device : str, default "CPU"
        "CPU", "CUDA", or a device of the library `xp`.
    xp : str or namespace, optional
        Array library, as for `use_backend`. If omitted, CuPy for "CUDA".

    Returns
    -------
    Prepared
        Object with a method ``run``.

    Raises
    ------
    ArgumentError
        If a node is not supported; the message names the first one.
    FormatError
        If the model is damaged.
    ShapeError, DTypeError, BackendError
        If a tensor has the wrong shape or dtype, or the library is not available.
    ImportError
        If the package onnx is missing.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import onnx
    >>> model = onnx.prepare(onnx.export(xplstm.LSTM(3, 2, rng=0)))
    >>> y, h_n, c_n = model.run([np.ones((5, 4, 3), dtype="float32")])
    """
    graph = _folded_weights(_graph.as_graph(model, "the model"))
    return Prepared(graph, _place(device, xp, graph.opset))


def _place(device: str, xp: str | Namespace | None, opset: int) -> Place:
    """Return the library and device of arrays; CuPy for "CUDA" without a library."""
    named = isinstance(device, str) and device in ("CPU", "CUDA")
    if xp is None and named and device == "CUDA":
        xp = "cupy"
    return Place(_array.resolve(xp), None if named else device, opset)


def run_model(
    model: Any,
    inputs: Sequence[Array] | Mapping[str, Array],
    device: str = "CPU",
    *,
    xp: str | Namespace | None = None,
) -> tuple[Array, ...]:
    """Prepare a model and run it once.

    Parameters
    ----------
    model : ModelProto, bytes or path
        As for `prepare`.
    inputs : sequence or mapping of array
        As for `Prepared.run`.
    device, xp : optional
        As for `prepare`.

    Returns
    -------
    tuple of array
        Outputs of the model, in order.

    Raises
    ------
    ArgumentError, FormatError, ShapeError, DTypeError, BackendError, ImportError
        As for `prepare` and `Prepared.run`.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.io import onnx
    >>> model = onnx.export(xplstm.LSTM(3, 2, rng=0))
    >>> [a.shape for a in onnx.run_model(model, [np.ones((5, 4, 3), dtype="float32")])]
    [(5, 4, 2), (1, 4, 2), (1, 4, 2)]
    """
    return prepare(model, device, xp=xp).run(inputs)


def run_node(
    node: Any,
    inputs: Sequence[Array],
    device: str = "CPU",
    outputs_info: Any = None,  # noqa: ARG001 - onnx's own signature
    *,
    xp: str | Namespace | None = None,
) -> tuple[Array, ...]:
    """Run one node of the newest supported opset.

    Parameters
    ----------
    node : NodeProto
        The node.
    inputs : sequence of array
        Arrays of the named inputs of the node, in order.
    device : str, default "CPU"
        As for `prepare`.
    outputs_info : object, optional
        Ignored; part of the backend interface of ONNX.
    xp : str or namespace, optional
        As for `prepare`.

    Returns
    -------
    tuple of array
        Arrays of the named outputs of the node.

    Raises
    ------
    ArgumentError, FormatError, ShapeError, DTypeError, BackendError, ImportError
        As for `prepare` and `Prepared.run`.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import helper
    >>> from xplstm.io import onnx
    >>> node = helper.make_node("RNN", ["X", "W", "R"], ["Y"], hidden_size=2)
    >>> onnx.run_node(node, [np.ones((5, 4, 3)), np.ones((1, 2, 3)), np.ones((1, 2, 2))])[0].shape
    (5, 1, 4, 2)
    """
    one = _graph.as_node("the node", node)
    given = tuple(Input(name, None, None) for name in dict.fromkeys(filter(None, one.inputs)))
    opset = _graph.import_onnx().defs.onnx_opset_version()
    nodes, constants = _graph.lift_constants([one])
    graph = Graph("the node", opset, given, tuple(filter(None, one.outputs)), nodes, constants)
    return Prepared(graph, _place(device, xp, opset)).run(inputs)


def export(
    model: Recurrent | Frozen | Exportable,
    path: str | os.PathLike[str] | None = None,
    *,
    softmax: bool = False,
) -> Any:
    """Export a network or a model as an ONNX model of opset 17.

    The graph of a network has the inputs x, lengths, h_0 and c_0 and the outputs y, h_n and c_n. Their shapes
    are those of a call, with any batch size and number of steps. lengths, h_0 and c_0 are optional. In any
    runtime, y is 0 after the length of a batch entry, and an entry without steps keeps its initial state. The
    graph has no dropout.

    A `CharLM` has the input ids and the output logits instead. A `SequenceClassifier` has the input x, or ids
    with `vocab_size`, and the output logits. A `Forecaster` has the input x, with `known` also future,
    and the output following. Its graph includes its scaling. With `softmax`, probabilities replace logits.

    Parameters
    ----------
    model : LSTM, RNN, FrozenLSTM, CharLM, SequenceClassifier or Forecaster
        Network or model of dtype float32, float64 or float16, with any layers, directions, `merge`,
        projection, peepholes, `coupled`, `activations` and `gate_clip`. ONNX Runtime runs only float32. A
        projection is multiplied into the recurrent weights; `load` recovers it. A layer from
        ``freeze(weights="int8")`` becomes nodes DynamicQuantizeLSTM of ONNX Runtime, which also rounds x and
        h to 8 bits.
    path : path, optional
        File to write atomically.
    softmax : bool, default False
        Whether the output is probabilities instead of logits.

    Returns
    -------
    ModelProto
        The ONNX model.

    Raises
    ------
    ArgumentError
        If the operators LSTM, GRU and RNN do not support an option of the network: layer normalisation,
        cell_clip, zoneout, a recurrent output, weights in bfloat16, or weights in 8 bits with a projection.
        If tensors have more than 2 GiB, the largest size of an ONNX file, or the rows of a projection are
        nearly linearly dependent. If the object has no graph, such as a `Seq2Seq`; export its encoder and
        decoder instead.
    OSError
        If the file cannot be written.
    ImportError
        If the package onnx is missing.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm.io import onnx
    >>> model = onnx.export(xplstm.LSTM(3, 2, num_layers=2, bidirectional=True))
    >>> [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    (['x', 'lengths', 'h_0', 'c_0'], ['y', 'h_n', 'c_n'])
    """
    softmax = _values.flag("softmax", softmax)
    if isinstance(model, Exportable):
        proto = whole(model, softmax)
    elif softmax:
        msg = f"softmax=True needs a model with logits, got {type(model).__name__}"
        raise ArgumentError(msg)
    else:
        proto = model_of(model, "")
    if path is not None:
        write_durably(_values.path("path", path), proto.SerializeToString())
    return proto


def supports_device(device: str) -> bool:
    """Return whether models run on a device.

    Parameters
    ----------
    device : str
        "CPU", or "CUDA" for CuPy. A number after a colon is ignored.

    Returns
    -------
    bool
        True if the device is available.

    Examples
    --------
    >>> from xplstm.io import onnx
    >>> onnx.supports_device("CPU")
    True
    """
    kind = _values.text("device", device).partition(":")[0]
    return kind == "CPU" or (kind == "CUDA" and _array.why_unusable("cupy") is None)


def is_compatible(model: Any, device: str = "CPU") -> bool:
    """Return whether all nodes of a model are supported on a device.

    Parameters
    ----------
    model : ModelProto, bytes or path
        As for `prepare`.
    device : str, default "CPU"
        As for `supports_device`.

    Returns
    -------
    bool
        True if `prepare` accepts the model and the device.

    Raises
    ------
    FormatError
        If the model is damaged.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm.io import onnx
    >>> onnx.is_compatible(onnx.export(xplstm.LSTM(3, 2)))
    True
    """
    graph = _graph.as_graph(model, "the model")
    return supports_device(device) and why_not(graph) is None
