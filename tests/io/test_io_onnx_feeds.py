"""Check the inputs of recurrent nodes: read correctly, requested as an option, or refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io
from xplstm.io import onnx as ours
from xplstm.io.onnx import _graph

onnx = pytest.importorskip("onnx")
torch: Any = pytest.importorskip("torch")
pytestmark = pytest.mark.backend("torch")

I, H, BATCH, STEPS = 3, 5, 2, 6


def exported(model: Any, inputs: tuple[Any, ...], path: Path, **options: Any) -> Any:
    """Write a model with the older exporter, which needs no other package."""
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, str(path), dynamo=False, opset_version=17, **options)
    return model


def loaded(path: Path, batch_first: bool) -> Any:
    """Return the network, with the order of axes as an argument if `load` needs it."""
    try:
        return xplstm.io.load(path)
    except xplstm.ArgumentError as error:
        if not str(error).startswith("batch_first is not stored in "):
            raise
    return xplstm.io.load(path, batch_first=batch_first)


class Front(torch.nn.Module):  # type: ignore[misc]
    """Model with a layer before an LSTM."""

    def __init__(self, front: Any, batch_first: bool) -> None:
        super().__init__()
        self.front, self.lstm = front, torch.nn.LSTM(I, H, batch_first=batch_first)

    def forward(self, x: Any) -> Any:
        return self.lstm(self.front(x))[0]


class Convolved(torch.nn.Module):  # type: ignore[misc]
    """Model with a convolution along time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(I, I, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Turned(torch.nn.Module):  # type: ignore[misc]
    """Model that reverses time."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Any) -> Any:
        return x.flip(self.axis)


FRONTS = {
    "embedding": lambda: torch.nn.Embedding(11, I),
    "norm": lambda: torch.nn.LayerNorm(I),
    "linear": lambda: torch.nn.Linear(I, I),
    "linear and relu": lambda: torch.nn.Sequential(torch.nn.Linear(I, I), torch.nn.ReLU()),
    "convolution": Convolved,
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_before_the_lstm(front: str, batch_first: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Front(FRONTS[front](), batch_first), tmp_path / "m.onnx"
    shape = (BATCH, STEPS) if batch_first else (STEPS, BATCH)
    x = torch.randint(0, 11, shape) if front == "embedding" else torch.randn(*shape, I)
    exported(model, (x,), path)
    net = loaded(path, batch_first)
    assert net._stack.batch_first == batch_first
    with torch.no_grad():
        given, wanted = model.front(x).numpy(), model(x).numpy()
    np.testing.assert_allclose(net(given)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("first", [torch.nn.Identity, torch.nn.ReLU])
def test_a_turned_sequence_is_refused(axis: int, first: Any, tmp_path: Path) -> None:
    model = Front(torch.nn.Sequential(first(), Turned(axis)), False)
    exported(model, (torch.randn(STEPS, BATCH, I),), tmp_path / "m.onnx")
    with pytest.raises(xplstm.FormatError, match=r"the LSTM node '/lstm/LSTM' .*(reverse|reorder)"):
        xplstm.io.load(tmp_path / "m.onnx")


class Joined(torch.nn.Module):  # type: ignore[misc]
    """Model that concatenates parts of a sequence."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Any) -> Any:
        return torch.cat(
            [x.narrow(self.axis, 1, x.shape[self.axis] - 1), x.narrow(self.axis, 0, 1)], self.axis
        )


@pytest.mark.parametrize("axis", [0, 2])
def test_a_sequence_of_parts_is_refused(axis: int, tmp_path: Path) -> None:
    exported(Front(Joined(axis), False), (torch.randn(STEPS, BATCH, I),), tmp_path / "m.onnx")
    with pytest.raises(xplstm.FormatError, match=r"the LSTM node '/lstm/LSTM' does not read .* unchanged"):
        xplstm.io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("op", ["GatherND", "Pad"])
def test_numbers_in_other_places_are_refused(op: str, tmp_path: Path) -> None:
    rng, helper = np.random.default_rng(0), onnx.helper
    given = {
        "W": rng.normal(size=(1, 4 * H, I)).astype("float32"),
        "R": rng.normal(size=(1, 4 * H, H)).astype("float32"),
        "k": np.asarray([[1], [0], [2]] if op == "GatherND" else [1, 0, 0, 0, 0, 0], "int64"),
    }
    nodes = [
        helper.make_node(op, ["x", "k"], ["z"], "front"),
        helper.make_node("LSTM", ["z", "W", "R"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, None) for name in "xy")
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in given.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    with pytest.raises(
        xplstm.FormatError, match=f"does not read 'x' unchanged: .*such as the {op} node 'front'"
    ):
        xplstm.io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("batch", [3, 4])
def test_sizes_that_fit_one_batch_prove_nothing(batch: int, tmp_path: Path) -> None:
    """A Reshape to (-1, batch, I) mixes time and batch at every other batch size."""
    rng, helper = np.random.default_rng(0), onnx.helper
    given = {
        "W": rng.normal(size=(1, 4 * H, I)).astype("float32"),
        "R": rng.normal(size=(1, 4 * H, H)).astype("float32"),
        "k": np.asarray([-1, batch, I], "int64"),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "k"], ["z"], "front"),
        helper.make_node("LSTM", ["z", "W", "R"], ["y"], "lstm"),
    ]
    x = helper.make_tensor_value_info("x", 1, ["T", "B", I])
    y = helper.make_tensor_value_info("y", 1, None)
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in given.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    with pytest.raises(xplstm.FormatError, match="'lstm' does not read 'x' unchanged"):
        xplstm.io.load(tmp_path / "m.onnx")


SPREADS = {
    "repeat": lambda h, B: h.repeat(1, B, 1),
    "expand": lambda h, B: h.expand(-1, B, -1).contiguous(),
    "add": lambda h, B: h + torch.zeros(1, B, 1),
    "full": lambda h, B: torch.full((h.shape[0], B, h.shape[2]), 0.7),
    "cat": lambda h, B: torch.cat([h] * B, 1),
}


class Learned(torch.nn.Module):  # type: ignore[misc]
    """Model whose initial state is a parameter, or computed from constants."""

    def __init__(self, kind: str, way: str, **options: Any) -> None:
        super().__init__()
        self.rnn, self.way = getattr(torch.nn, kind)(I, H, **options), way
        self.h0 = torch.nn.Parameter(torch.randn(self.rnn.num_layers * (1 + self.rnn.bidirectional), 1, H))
        self.c0 = torch.nn.Parameter(torch.randn(self.h0.shape))

    def forward(self, x: Any) -> Any:
        B = x.shape[0 if self.rnn.batch_first else 1]
        h, c = (SPREADS[self.way](a, B) for a in (self.h0, self.c0))
        return self.rnn(x, (h, c) if isinstance(self.rnn, torch.nn.LSTM) else h)[0]


@pytest.mark.parametrize("way", SPREADS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
def test_a_constant_state_comes_with_the_network(kind: str, way: str, options: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Learned(kind, way, **options), tmp_path / "m.onnx"
    x = torch.randn(STEPS, BATCH, I)
    exported(model, (x,), path, dynamic_axes={"x": [0, 1]}, input_names=["x"])
    with pytest.raises(
        xplstm.FormatError, match=r"is called with constant state; call xplstm.io.load_with_call"
    ):
        xplstm.io.load(path)
    assert "called with constant state" in str(xplstm.io.inspect(path))
    net, arguments = xplstm.io.load_with_call(path)
    state = arguments.pop("state")
    assert not arguments
    B = x.shape[0 if net._stack.batch_first else 1]
    h = state.h if kind == "LSTM" else state
    if h.shape[1] == 1:
        state = state.take([0] * B) if kind == "LSTM" else np.repeat(state, B, axis=1)
    with torch.no_grad():
        np.testing.assert_allclose(net(x.numpy(), state)[0], model(x).numpy(), rtol=0, atol=1e-6)


def test_a_state_of_the_input_is_refused(tmp_path: Path) -> None:
    class OfInput(Learned):
        def forward(self, x: Any) -> Any:
            h = self.h0.repeat(1, x.shape[1], 1) * x[:1, :, :1]
            return self.rnn(x, (h, torch.zeros_like(h)))[0]

    exported(OfInput("LSTM", ""), (torch.randn(STEPS, BATCH, I),), tmp_path / "m.onnx")
    with pytest.raises(xplstm.FormatError, match="the LSTM node '/rnn/LSTM' has the initial state"):
        xplstm.io.load_with_call(tmp_path / "m.onnx")


def test_a_network_without_a_state_of_its_own_comes_alone(tmp_path: Path) -> None:
    net = xplstm.LSTM(I, H, rng=0)
    ours.export(net, tmp_path / "m.onnx")
    again, arguments = xplstm.io.load_with_call(tmp_path / "m.onnx")
    assert arguments == {}
    assert np.array_equal(again.params["weight_hh_l0"], net.params["weight_hh_l0"])


def least_of_steps(x: str) -> list[Any]:
    """Return nodes that compute min(T, 100) as `steps`."""
    node = onnx.helper.make_node
    sizes = [node("Shape", [x], ["sizes"]), node("Slice", ["sizes", "zero", "one"], ["T"])]
    return [*sizes, node("Min", ["T", "most"], ["steps"])]


BOUNDED = {
    "first": ("zero", "most"),
    "last": ("last", "end"),
    "computed": ("zero", "steps"),
}


@pytest.mark.parametrize(
    ("place", "way"),
    [*((place, way) for place in ("x", "between") for way in BOUNDED), ("lengths", "computed")],
)
def test_a_bound_beyond_a_trial_proves_nothing(place: str, way: str, tmp_path: Path) -> None:
    """The first or last 100 steps are all steps of a short sequence only."""
    rng, node = np.random.default_rng(0), onnx.helper.make_node
    integers = {"zero": [0], "one": [1], "most": [100], "last": [-100], "end": [1 << 40]}
    given = {name: np.asarray(value, "int64") for name, value in integers.items()}
    for k, size in (("1", I), ("2", H)):
        given[f"W{k}"] = rng.normal(size=(1, 4 * H, size)).astype("float32")
        given[f"R{k}"] = rng.normal(size=(1, 4 * H, H)).astype("float32")
    below = [node("LSTM", ["x", "W1", "R1"], ["y1"], "below"), node("Squeeze", ["y1", "one"], ["squeezed"])]
    start = "squeezed" if place == "between" else "x"
    nodes = [*(below if place == "between" else []), *least_of_steps(start)]
    weights = ["W2", "R2"] if place == "between" else ["W1", "R1"]
    if place == "lengths":
        nodes.append(node("Slice", ["sizes", "one", "two"], ["B"]))
        nodes.append(
            node("ConstantOfShape", ["B"], ["ones"], value=onnx.numpy_helper.from_array(given["one"]))
        )
        nodes.append(node("Mul", ["ones", "steps"], ["product"]))
        nodes.append(node("Cast", ["product"], ["lengths"], to=6))
        nodes.append(node("LSTM", ["x", *weights, "", "lengths"], ["y"], "lstm"))
        given["two"] = np.asarray([2], "int64")
    else:
        nodes.append(node("Slice", [start, *BOUNDED[way], "zero"], ["cut"]))
        nodes.append(node("LSTM", ["cut", *weights], ["y"], "lstm"))
    x, y = (
        onnx.helper.make_tensor_value_info(name, 1, shape)
        for name, shape in (("x", ["T", "B", I]), ("y", None))
    )
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in given.items()]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    if place == "between":
        networks = [row[0] for row in xplstm.io.inspect(tmp_path / "m.onnx").networks]
        assert networks == ["below", "lstm"]
        return
    with pytest.raises(
        xplstm.FormatError, match=r"the LSTM node 'lstm' (does not read 'x' unch|has sequence_lens)"
    ):
        xplstm.io.load(tmp_path / "m.onnx")


def write_lstm(
    path: Path, nodes: list[Any], x: str = "x", h: str = "h", lengths: str = "", **given: Any
) -> None:
    """Write a model of some nodes before an LSTM that reads the values `x`, `h` and `lengths`."""
    rng, helper = np.random.default_rng(0), onnx.helper
    given["W"], given["R"] = rng.normal(size=(1, 4 * H, I)), rng.normal(size=(1, 4 * H, H))
    tensors = [
        onnx.numpy_helper.from_array(a if a.dtype == np.int64 else a.astype("float32"), name)
        for name, a in given.items()
    ]
    nodes = [*nodes, helper.make_node("LSTM", [x, "W", "R", "", lengths, h, h], ["y"], "lstm")]
    x_info, y_info = (
        helper.make_tensor_value_info(name, 1, ["T", "B", n]) for name, n in (("x", I), ("y", H))
    )
    inputs = [x_info, *([helper.make_tensor_value_info("lengths", 6, ["B"])] if lengths else [])]
    graph = helper.make_graph(nodes, "g", inputs, [y_info], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


CHANGES = ("Abs", "Ceil", "Clip", "CumSum", "Exp", "Floor", "Log", "Neg", "Round", "Sign", "Sqrt", "Trilu")


@pytest.mark.parametrize("op", CHANGES)
@pytest.mark.parametrize("moved", [False, True])
def test_a_function_of_the_input_is_not_lost(op: str, moved: bool, tmp_path: Path) -> None:
    """Without the node, the network would read other numbers than the model."""
    node = onnx.helper.make_node
    more = {"Clip": ["low", "high"], "CumSum": ["axis"]}.get(op, [])
    nodes = [node(op, ["x", *more], ["z"], "front")]
    nodes += [node("Transpose", ["z"], ["m"], perm=[1, 0, 2])] if moved else []
    given = {"low": np.asarray(-1.0), "high": np.asarray(1.0), "axis": np.asarray(0)}
    write_lstm(tmp_path / "m.onnx", nodes, x="m" if moved else "z", h="", **given)
    for batch_first in (None, False, True):
        with pytest.raises(xplstm.FormatError, match="the LSTM node 'lstm' does not read 'x' unchanged"):
            xplstm.io.load(tmp_path / "m.onnx", batch_first=batch_first)


def changed_twice() -> dict[str, list[Any]]:
    """Return nodes that compute z from x, and read x more than once or change a part of x."""
    node = onnx.helper.make_node
    clip = node("Clip", ["x", "low", "high"], ["c"], "front")
    parts = [node("Split", ["x", "sizes"], ["p", "q"], "parts", axis=2)]
    neg = node("Neg", ["p"], ["n"], "front")
    conv = [
        node("Transpose", ["x"], ["t"], perm=[1, 2, 0]),
        node("Conv", ["t", "kernel"], ["f"], "conv"),
        node("Transpose", ["f"], ["c"], perm=[2, 0, 1]),
    ]
    graphs = [
        onnx.helper.make_graph(
            [node(op, ["x"], [op])], op, [], [onnx.helper.make_tensor_value_info(op, 1, None)]
        )
        for op in ("Identity", "Neg")
    ]
    return {
        "minus a part": [clip, node("Sub", ["x", "c"], ["z"], "front")],
        "Clip with attributes": [node("Clip", ["x"], ["z"], "front", min=-1.0, max=1.0)],
        "one part": [*parts, neg, node("Concat", ["n", "q"], ["z"], "front", axis=2)],
        "parts in another order": [*parts, node("Concat", ["q", "p"], ["z"], "front", axis=2)],
        "gate": [node("Sigmoid", ["x"], ["c"]), node("Mul", ["c", "x"], ["z"], "front")],
        "activation": [node("Relu", ["x"], ["z"], "front")],
        "residual": [*conv, node("Add", ["x", "c"], ["z"], "front")],
        "mean": [node("ReduceMean", ["x"], ["c"], axes=[2]), node("Sub", ["x", "c"], ["z"], "front")],
        "mean alone": [node("ReduceMean", ["x"], ["z"], "front", axes=[0])],
        "pool": [node("MaxPool", ["x"], ["z"], "front", kernel_shape=[3], pads=[1, 1])],
        "einsum": [node("Einsum", ["x"], ["z"], "front", equation="tbi->bti")],
        "products": [
            node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            node("MatMul", ["x", "t"], ["c"], "front"),
            node("MatMul", ["c", "x"], ["z"], "front"),
        ],
        "unknown": [node("QuickGelu", ["x"], ["z"], "front", domain="com.microsoft")],
        "branch": [
            node("If", ["branch"], ["z"], "front", then_branch=graphs[0], else_branch=graphs[1]),
        ],
    }


@pytest.mark.parametrize("case", changed_twice())
def test_every_path_from_the_input_is_followed(case: str, tmp_path: Path) -> None:
    path, integers = tmp_path / "m.onnx", {"sizes": np.asarray([1, 2])}
    floats = {"low": np.asarray(-1.0), "high": np.asarray(1.0), "kernel": np.ones((I, I, 1))}
    write_lstm(path, changed_twice()[case], x="z", h="", **floats, **integers)
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.graph.input.append(onnx.helper.make_tensor_value_info("branch", onnx.TensorProto.BOOL, []))
    onnx.save(model, path)
    words = "the LSTM node 'lstm' does not read 'x' unchanged: .*, such as the .* node '(front|parts)';"
    for batch_first in (None, False, True):
        with pytest.raises(xplstm.FormatError, match=words):
            xplstm.io.load(path, batch_first=batch_first)


@pytest.mark.parametrize("case", ["mask", "joined", "halves"])
def test_paths_that_do_not_change_the_input_load(case: str, tmp_path: Path) -> None:
    """The other inputs do not fit the network, or the paths together change nothing."""
    node, path = onnx.helper.make_node, tmp_path / "m.onnx"
    nodes = {
        "mask": [node("Gather", ["table", "ids"], ["e"]), node("Mul", ["e", "x"], ["z"])],
        "joined": [node("Gather", ["table", "ids"], ["e"]), node("Concat", ["e", "x"], ["z"], axis=2)],
        "halves": [
            node("Split", ["x", "sizes"], ["p", "q"], axis=2),
            node("Concat", ["p", "q"], ["z"], axis=2),
        ],
    }[case]
    write_lstm(path, nodes, x="z", h="", table=np.ones((7, I - 1)), sizes=np.asarray([1, 2]))
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("ids", 7, ["T", "B"]))
    if case in ("mask", "joined"):
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1
    if case == "mask":
        table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
        table.CopyFrom(onnx.numpy_helper.from_array(np.ones((7, I), "float32"), "table"))
    onnx.save(model, path)
    assert xplstm.io.load(path, batch_first=False)._stack.input_size == I


@pytest.mark.parametrize("to", ["BOOL", "INT8", "UINT8", "INT16", "UINT16", "FLOAT16", "BFLOAT16", "FLOAT"])
def test_lengths_that_a_type_cannot_hold_are_refused(to: str, tmp_path: Path) -> None:
    """As a bool, each length is 1; as a uint8, 300 becomes 44."""
    node = onnx.helper.make_node
    narrow = node("Cast", ["lengths"], ["narrow"], to=getattr(onnx.TensorProto, to))
    wide = node("Cast", ["narrow"], ["wide"], to=onnx.TensorProto.INT32)
    write_lstm(tmp_path / "m.onnx", [narrow, wide], h="", lengths="wide")
    with pytest.raises(xplstm.FormatError, match="has sequence_lens 'wide', which the model computes"):
        xplstm.io.load(tmp_path / "m.onnx")
    narrow.attribute[0].i = onnx.TensorProto.INT64
    write_lstm(tmp_path / "m.onnx", [narrow, wide], h="", lengths="wide")
    assert isinstance(xplstm.io.load(tmp_path / "m.onnx"), xplstm.LSTM)


@pytest.mark.parametrize("way", ["direct", "Cast", "Min"])
def test_a_default_of_lengths_comes_with_the_network(way: str, tmp_path: Path) -> None:
    """Lengths may replace the default; a type that cannot represent them is still refused."""
    node, path = onnx.helper.make_node, tmp_path / "m.onnx"
    nodes = [node(way, ["lengths"], ["l"], **({"to": 6} if way == "Cast" else {}))] if way != "direct" else []
    name = "l" if nodes else "lengths"
    write_lstm(path, nodes, h="", lengths=name)
    model = onnx.load(path)
    if way == "direct":
        model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2

    def give(*lengths: int) -> None:
        del model.graph.initializer[2:]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(lengths, "int32"), "lengths"))
        onnx.save(model, path)

    give(3, 6)
    with pytest.raises(xplstm.FormatError, match=r"is called with constant lengths"):
        xplstm.io.load(path)
    assert xplstm.io.load_with_call(path)[1]["lengths"].tolist() == [3, 6]
    give(*[(1 << 31) - 1] * 2)
    assert xplstm.io.load_with_call(path)[1] == {}
    model.ir_version = 3  # without defaults
    for value in (*model.graph.initializer[:2],):
        model.graph.input.append(onnx.helper.make_tensor_value_info(value.name, 1, list(value.dims)))
    give(3, 6)
    assert xplstm.io.load_with_call(path)[1]["lengths"].tolist() == [3, 6]
    assert [i.name for i in _graph.as_graph(model, "m").inputs] == ["x"]
    model.ir_version = 8
    if way == "Cast":
        model.graph.node[0].attribute[0].i = onnx.TensorProto.INT8
        give(3, 6)
        with pytest.raises(xplstm.FormatError, match="has sequence_lens 'l', which the model computes"):
            xplstm.io.load_with_call(path)


@pytest.mark.parametrize("op", ["Mul", "Add", "Tanh", "Identity"])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_default_of_the_state_that_nodes_change_is_refused(op: str, value: float, tmp_path: Path) -> None:
    """A state that replaces the default would not pass through the nodes."""
    path, given = tmp_path / "m.onnx", {"start": np.full((1, 2, H), value), "two": np.asarray(2.0)}
    inputs = ["start", "two"] if op in ("Mul", "Add") else ["start"]
    write_lstm(path, [onnx.helper.make_node(op, inputs, ["h"])], **given)
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("start", 1, [1, 2, H]))
    onnx.save(model, path)
    if op == "Identity":
        state = xplstm.io.load_with_call(path)[1].get("state")
        assert (state is None) if value == 0 else np.all(state.h == value)
        return
    with pytest.raises(xplstm.FormatError, match="has the initial state 'h', which is neither constant"):
        xplstm.io.load_with_call(path)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_state_made_of_the_size_of_the_batch_is_refused(scaled: bool, tmp_path: Path) -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["B"]),
        node("Concat", ["one", "B", "width"], ["whole"], axis=0),
        node("Cast", ["B"], ["number"], to=1),
        node("Mul" if scaled else "Identity", ["h0", "number"][: 1 + scaled], ["m"]),
        node("Expand", ["m", "whole"], ["h"]),
    ]
    h0 = np.random.default_rng(1).normal(size=(1, 1, H)).astype("float32")
    write_lstm(tmp_path / "m.onnx", nodes, one=np.asarray([1]), width=np.asarray([H]), h0=h0)
    if scaled:
        with pytest.raises(xplstm.FormatError, match="the LSTM node 'lstm' has the initial state"):
            xplstm.io.load_with_call(tmp_path / "m.onnx")
    else:
        assert np.array_equal(xplstm.io.load_with_call(tmp_path / "m.onnx")[1]["state"].h, h0)


class Crossed(torch.nn.Module):  # type: ignore[misc]
    """Model with a second layer along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.LSTM(I, H), torch.nn.LSTM(H, H)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x)[0].transpose(0, 1))[0]


def test_a_layer_along_another_axis_stays_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(STEPS, BATCH, I)
    model = exported(Crossed(), (x,), tmp_path / "m.onnx")
    with pytest.raises(xplstm.ArgumentError, match="has 2 networks"):
        xplstm.io.load(tmp_path / "m.onnx")
    first, second = (
        xplstm.io.load(tmp_path / "m.onnx", prefix=f"{name}.LSTM") for name in ("first", "second")
    )
    with torch.no_grad():
        wanted = model(x).numpy().swapaxes(0, 1)  # the network has its outputs as its inputs
    np.testing.assert_allclose(second(first(x.numpy())[0])[0], wanted, rtol=0, atol=1e-6)


class Packed(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lstm, self.first = torch.nn.LSTM(I, H, 2, batch_first=batch_first), batch_first

    def forward(self, x: Any, lengths: Any) -> Any:
        rnn = torch.nn.utils.rnn
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=self.first)
        return rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=self.first)[0]


@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_sequences(batch_first: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = (BATCH, STEPS, I) if batch_first else (STEPS, BATCH, I)
    x, lengths = torch.randn(*shape), torch.tensor([STEPS, 3])
    model = exported(Packed(batch_first), (x, lengths), tmp_path / "m.onnx")
    net = loaded(tmp_path / "m.onnx", batch_first)
    with torch.no_grad():
        wanted = model(x, lengths).numpy()
    assert net._stack.num_layers == 2
    np.testing.assert_allclose(net(x.numpy(), lengths=lengths.numpy())[0], wanted, rtol=0, atol=1e-6)


class Twice(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(I, I)

    def forward(self, x: Any) -> Any:
        return self.lstm(self.lstm(x)[0])[0]


def test_one_lstm_used_twice(tmp_path: Path) -> None:
    x = torch.randn(STEPS, BATCH, I)
    model = exported(Twice(), (x,), tmp_path / "m.onnx")
    net = xplstm.io.load(tmp_path / "m.onnx")
    np.testing.assert_allclose(net(x.numpy())[0], model(x).detach().numpy(), rtol=0, atol=1e-6)
    assert "num_layers=2" in repr(xplstm.io.inspect(tmp_path / "m.onnx"))


def bomb(*between: Any, kept: dict[str, np.ndarray] | None = None) -> bytes:
    """Return two LSTMs, and nodes between them whose results are much larger than their inputs."""
    make, node = onnx.helper, onnx.helper.make_node
    rng = np.random.default_rng(0)
    weights = {"W": (1, 8, 3), "R": (1, 8, 2), "W2": (1, 8, 2)}
    tensors = {name: rng.normal(size=shape).astype("float32") for name, shape in weights.items()}
    tensors |= {"one": np.asarray([1]), **(kept or {})}
    nodes = [node("LSTM", ["x", "W", "R"], ["Y0"], hidden_size=2), node("Squeeze", ["Y0", "one"], ["t0"])]
    end = between[-1].output[0]
    nodes += [*between, node("LSTM", [end, "W2", "R"], ["Y"], hidden_size=2)]
    given = [make.make_tensor_value_info("x", 1, ["T", "B", 3])]
    made = [make.make_tensor_value_info("Y", 1, None)]
    initial = [onnx.numpy_helper.from_array(a, name) for name, a in tensors.items()]
    model = make.make_model(make.make_graph(nodes, "bomb", given, made, initial))
    model.opset_import[0].version = 17
    data: bytes = model.SerializeToString()
    return data


def bombs() -> dict[str, bytes]:
    node, many = onnx.helper.make_node, 40
    places = {"places": np.zeros((8, 8), "int64")}
    huge = {"huge": np.asarray([1 << 20, 1 << 20, 1, 1, 1])}
    doubled = [node("Concat", [f"t{k}"] * 2, [f"t{k + 1}"], axis=0) for k in range(many)]
    taken = [node("Gather", [f"t{k}", "places"], [f"t{k + 1}"], axis=0) for k in range(many)]
    tiled = [node("Tile", [f"t{k}", "ten"], [f"t{k + 1}"]) for k in range(many)]
    return {
        "concat": bomb(*doubled),
        "gather": bomb(*taken, kept=places),
        "tile": bomb(*tiled, kept={"ten": np.asarray([10, 10, 10])}),
        "expand": bomb(node("Expand", ["t0", "huge"], ["t1"]), kept=huge),
        "constant": bomb(
            node("ConstantOfShape", ["huge"], ["zeros"]),
            node("ReduceSum", ["zeros"], ["sum"]),
            node("Add", ["t0", "zeros"], ["t1"]),
            kept=huge,
        ),
    }


@pytest.mark.parametrize("op", ["Range", "Pad", "Conv", "Gemm", "Less"])
def test_an_initial_state_has_the_same_budget(op: str, tmp_path: Path) -> None:
    """Arithmetic nodes are bounded before they run, like nodes that move elements."""
    wide, attributes = np.zeros((1, 1 << 14)), {"pads": [0, 1 << 28]} if op == "Conv" else {}
    given: dict[str, list[np.ndarray]] = {
        "Range": [np.asarray(0), np.asarray(1 << 40), np.asarray(1)],
        "Pad": [wide, np.asarray([0, 0, 1 << 13, 1 << 20])],
        "Conv": [np.zeros((1, 1, 4)), np.zeros((1, 1, 3))],
        "Gemm": [wide.T, wide],
        "Less": [wide, wide.T],
    }
    kept = {f"a{k}": a for k, a in enumerate(given[op])}
    nodes = [
        onnx.helper.make_node(op, [*kept], ["a"], **attributes),
        onnx.helper.make_node("Cast", ["a"], ["h"], to=1),
    ]
    write_lstm(tmp_path / "m.onnx", nodes, **kept)
    with pytest.raises(xplstm.FormatError, match=r"more than \d+ bytes, the limit for a file"):
        xplstm.io.load_with_call(tmp_path / "m.onnx")


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_constant_lengths_come_with_the_network(same: bool, options: Any, tmp_path: Path) -> None:
    """All layers share the lengths that the exporter fixed."""
    model, lengths = ours.export(xplstm.LSTM(I, H, rng=0, **options)), np.asarray([3, 6], "int32")
    lengths = np.full(2, 4, "int32") if same else lengths
    for node in model.graph.node:
        if node.op_type == "LSTM":
            node.input[4] = "fixed"
    model.graph.initializer.append(onnx.numpy_helper.from_array(lengths, "fixed"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(xplstm.FormatError, match=r"is called with constant lengths; .*load_with_call"):
        xplstm.io.load(tmp_path / "m.onnx")
    assert "called with constant lengths" in str(xplstm.io.inspect(tmp_path / "m.onnx"))
    net, arguments = xplstm.io.load_with_call(tmp_path / "m.onnx")
    assert arguments.keys() == {"lengths"}
    assert arguments["lengths"].tolist() == lengths.tolist()
    x = np.random.default_rng(0).normal(size=(STEPS, 2, I)).astype("float32")
    wanted = xplstm.LSTM(I, H, rng=0, **options)(x, lengths=lengths)[0]
    np.testing.assert_array_equal(net(x, **arguments)[0], wanted)


def test_a_state_half_constant_is_refused(tmp_path: Path) -> None:
    model = ours.export(xplstm.LSTM(I, H, rng=0))
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    lstm.input[5], lstm.input[6] = "learned", "given"
    model.graph.input.append(onnx.helper.make_tensor_value_info("given", 1, [1, "B", H]))
    learned = np.ones((1, 1, H), "float32")
    model.graph.initializer.append(onnx.numpy_helper.from_array(learned, "learned"))
    onnx.save(model, tmp_path / "m.onnx")
    assert "initial h and c must both be constants" in str(xplstm.io.inspect(tmp_path / "m.onnx"))
    with pytest.raises(xplstm.FormatError, match="initial h and c must both be constants or both inputs"):
        xplstm.io.load_with_call(tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["concat", "gather", "tile", "expand", "constant"])
def test_evaluation_has_a_budget(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bombs()[kind])
    with pytest.raises(xplstm.FormatError, match=r"more than \d+ bytes, the limit for a file"):
        xplstm.io.load(path)
    assert "the limit for a file" in repr(xplstm.io.inspect(path))


def test_two_nodes_of_one_name_are_two_networks(tmp_path: Path) -> None:
    model = ours.export(xplstm.LSTM(I, H, 2, rng=0))
    for node in model.graph.node:
        if node.op_type == "LSTM":
            node.name = "lstm"
            node.attribute.append(onnx.helper.make_attribute("clip", 1.0 + node.output[0].count("1")))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(xplstm.ArgumentError, match="has 2 networks"):
        xplstm.io.load(tmp_path / "m.onnx")
    assert xplstm.io.load(tmp_path / "m.onnx", prefix="Y_l1")._stack.input_size == H


def test_a_name_of_control_characters_is_shown_escaped(tmp_path: Path) -> None:
    model = ours.export(xplstm.LSTM(I, H, rng=0))
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    lstm.name = "\x1b[31m" + "x" * 5000
    lstm.attribute.append(onnx.helper.make_attribute("\x1b]0;title\x07" * 400, 1))
    onnx.save(model, tmp_path / "m.onnx")
    for call in (xplstm.io.load, ours.prepare):
        with pytest.raises(xplstm.XplstmError) as error:
            call(tmp_path / "m.onnx")
        assert "\x1b" not in str(error.value)
        assert len(str(error.value)) <= 2000
    assert "\x1b" not in repr(xplstm.io.inspect(tmp_path / "m.onnx"))


@pytest.mark.parametrize("inputs", [[], [""]])
@pytest.mark.parametrize("op", ["Cast", "Expand", "Squeeze", "Min", "Concat", "Shape"])
@pytest.mark.parametrize("place", [0, 4, 5])
def test_a_node_without_inputs_proves_nothing(op: str, place: int, inputs: list[str], tmp_path: Path) -> None:
    model = ours.export(xplstm.LSTM(I, H, rng=0))
    model.graph.node.insert(0, onnx.helper.make_node(op, inputs, ["nothing"]))
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    lstm.input[place] = "nothing"
    onnx.save(model, tmp_path / "m.onnx")
    xplstm.io.inspect(tmp_path / "m.onnx")
    with pytest.raises(
        xplstm.XplstmError, match=r"the LSTM node 'lstm_l0'|batch_first|cannot be evaluated|is missing"
    ):
        xplstm.io.load(tmp_path / "m.onnx")
