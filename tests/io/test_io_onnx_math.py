"""Check arithmetic around recurrent nodes: cases of onnx, models of PyTorch, and the real Silero VAD."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io
from xplstm.io import onnx as ours

onnx = pytest.importorskip("onnx")
make = onnx.helper
FLOAT = onnx.TensorProto.FLOAT

SHAPES = r"relu|softplus|tanh|sigmoid|sqrt|neg|exp|log|abs|leakyrelu|clip(?!\w*int8)\w*"
NUMBERS = r"gemm|softmax|logsoftmax|layer_normalization|reduce_(mean|sum|max|min)|sum|pow|less|greater"
OTHERS = r"less_equal|greater_equal|constant_pad|edge_pad|reflect_pad|wrap_pad|range|gather_elements|top_k"


@pytest.fixture(scope="module")
def cases() -> Any:
    backend_test = pytest.importorskip("onnx.backend.test")
    return backend_test.BackendTest(ours, __name__).test_cases["OnnxBackendNodeModelTest"]


@pytest.mark.filterwarnings("ignore")  # of the making of the other operators' cases
@pytest.mark.parametrize(("names", "least"), [(SHAPES, 20), (NUMBERS, 50), (OTHERS, 6)])
def test_cases_of_onnx(cases: Any, names: str, least: int) -> None:
    found = [name for name in vars(cases) if re.fullmatch(rf"test_({names})(_\w+)?_cpu", name)]
    strange = (
        "expanded|bfloat16|int8|uint|empty_set|_sum_square|log_sum|logsumexp|sequence|bool_inputs|default_int"
    )
    found = [name for name in found if not re.search(strange, name)]
    assert len(found) >= least
    for name in found:
        getattr(cases(name), name)()


def model_of(nodes: Any, inputs: dict[str, Any], outputs: Any, constants: Any = (), opset: int = 17) -> Any:
    given = [
        make.make_tensor_value_info(k, make.np_dtype_to_tensor_dtype(a.dtype), None)
        for k, a in inputs.items()
    ]
    made = [make.make_tensor_value_info(k, FLOAT, None) for k in outputs]
    stored = [onnx.numpy_helper.from_array(a, k) for k, a in dict(constants).items()]
    graph = make.make_graph(nodes, "g", given, made, stored)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=8)


def session_of(model: Any) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_weights_may_be_products_of_matrices(op: str) -> None:
    rng = np.random.default_rng(0)
    (H, I, inner), ones = (16, 32, 48), np.asarray([0], "int64")
    a, b = (rng.standard_normal(shape).astype("f4") for shape in ((4 * H, inner), (inner, I)))
    third = {"C": rng.standard_normal((4 * H, 1)).astype("f4")} if op == "Gemm" else {}
    nodes = [
        make.make_node(op, ["A", "B", *third], ["product"]),
        make.make_node("Unsqueeze", ["product", "zero"], ["W"]),
        make.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=H),
    ]
    R = rng.standard_normal((1, 4 * H, H)).astype("f4")
    x = rng.standard_normal((5, 2, I)).astype("f4")
    model = model_of(nodes, {"x": x}, ["y"], {"A": a, "B": b, "R": R, "zero": ones, **third})
    net = xplstm.io.load(model.SerializeToString(), batch_first=False)
    (theirs,) = session_of(model).run(None, {"x": x})
    np.testing.assert_allclose(net(x)[0], theirs[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_convolutions_agree_with_onnx_runtime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, per, M = (int(n) for n in rng.integers(1, 4, 3))
    kernel, stride, dilation = (int(n) for n in rng.integers(1, 4, 3))
    x = rng.standard_normal((2, groups * per, 11)).astype("f4")
    weights = {"W": rng.standard_normal((groups * M, per, kernel)).astype("f4")}
    weights["b"] = rng.standard_normal(groups * M).astype("f4")
    options: dict[str, Any] = {"group": groups, "strides": [stride]}
    if rng.integers(2):
        options |= {"pads": [int(n) for n in rng.integers(0, 4, 2)], "dilations": [dilation]}
    else:
        options |= {"auto_pad": str(rng.choice(["VALID", "SAME_UPPER", "SAME_LOWER"]))}
    model = model_of([make.make_node("Conv", ["x", "W", "b"], ["y"], **options)], {"x": x}, ["y"], weights)
    (theirs,) = session_of(model).run(None, {"x": x})
    (y,) = ours.run_model(model, [x])
    np.testing.assert_allclose(y, theirs, rtol=0, atol=1e-5)


def test_softmax_before_opset_13_is_over_all_later_axes() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype("f4")
    model = model_of([make.make_node("Softmax", ["x"], ["y"])], {"x": x}, ["y"], opset=12)
    (y,) = ours.run_model(model, [x])
    np.testing.assert_allclose(y, session_of(model).run(None, {"x": x})[0], rtol=0, atol=1e-6)
    assert y[0].sum() == pytest.approx(1)


INTEGERS = {
    "Div int8": ("Div", [np.asarray([-128, -7, 7, -6], "int8"), np.asarray([3, 2, -2, 3], "int8")], {}),
    "Div int64": ("Div", [np.asarray([-(2**63), -7, 7]), np.asarray([2, 2, -2])], {}),
    "Div uint8": ("Div", [np.asarray([250, 7], "uint8"), np.asarray([10, 2], "uint8")], {}),
    "Div uint64": ("Div", [np.asarray([2**64 - 1, 7], "uint64"), np.asarray([2, 2], "uint64")], {}),
    "mean": ("ReduceMean", [np.asarray([[3, -4, -5, 1], [9, 9, 9, 8]], "int32")], {"axes": [1]}),
    "sum": ("ReduceSum", [np.asarray([[2**31 - 1, 0], [1, 2]], "int32"), np.asarray([1])], {"keepdims": 0}),
}


@pytest.mark.parametrize("case", INTEGERS)
def test_integers_are_divided_as_in_onnx_runtime(case: str) -> None:
    op, given, attributes = INTEGERS[case]
    inputs = {f"a{k}": a for k, a in enumerate(given)}
    model = model_of([make.make_node(op, [*inputs], ["y"], **attributes)], inputs, ["y"])
    model.graph.output[0].type.Clear()
    (theirs,) = session_of(model).run(None, inputs)
    (y,) = ours.run_model(model, inputs)
    np.testing.assert_array_equal(y, theirs)
    assert y.dtype == theirs.dtype


EMPTY, TWO = np.zeros((0, 1, 4), "f4"), np.ones((2, 3, 4), "f4")
FAILING = {
    "by zero": ("Div", [np.asarray([1, 2]), np.asarray([0, 1])], {}, "divides an integer by 0"),
    "sum": ("ReduceSum", [np.asarray([2**31 - 1, 5], "int32")], {}, "has a sum that int32 cannot represent"),
    **{
        op: (op, [EMPTY], {"axes": [0]}, r"reduces axes \[0\] of shape \(0, 1, 4\), which have no")
        for op in ("ReduceMax", "ReduceMin", "ReduceMean")
    },
    "joined": ("Concat", [EMPTY, TWO], {"axis": 0}, "dimensions"),
    "added": ("Add", [TWO, TWO[:, :2]], {}, "broadcast"),
    "elements": ("GatherElements", [TWO, np.asarray([[[5]]])], {}, "index 5, but the axis has size 2"),
    "elements of another shape": (
        "GatherElements",
        [TWO, np.zeros((2, 4, 4), int)],
        {},
        r"indices of shape \(2, 4, 4\), but its input has shape \(2, 3, 4\)",
    ),
    "too many": ("TopK", [TWO, np.asarray([5])], {}, "has k=5, but the axis has size 4"),
    "once": ("Squeeze", [TWO, np.asarray([0])], {}, r"removes axis 0 of size 2, expected size 1$"),
}


@pytest.mark.parametrize("case", FAILING)
def test_an_error_of_a_node_names_file_and_node(case: str, tmp_path: Path) -> None:
    op, given, attributes, words = FAILING[case]
    inputs = {f"a{k}": a for k, a in enumerate(given)}
    path = tmp_path / "model.onnx"
    onnx.save(model_of([make.make_node(op, [*inputs], ["y"], "one", **attributes)], inputs, ["y"]), path)
    with pytest.raises(xplstm.XplstmError, match=rf"model.onnx: the {op} node 'one': (?!the).*{words}"):
        ours.prepare(path).run(inputs)


def test_a_function_with_the_name_of_an_operator_is_refused() -> None:
    """In ONNX, the runtime decides whether the function or the operator runs."""
    x, opset = np.ones(3, "f4"), make.make_opsetid("", 17)
    for name, refused in (("Identity", True), ("Opposite", False)):
        model = model_of([make.make_node(name, ["x"], ["y"])], {"x": x}, ["y"])
        inner = [make.make_node("Neg", ["a"], ["b"])]
        model.functions.append(make.make_function("", name, ["a"], ["b"], inner, [opset]))
        if refused:
            with pytest.raises(xplstm.FormatError, match="with the name of the operator Identity"):
                ours.prepare(model)
        else:
            np.testing.assert_array_equal(ours.run_model(model, [x])[0], -x)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layout_that_does_not_exist_is_refused(kind: str) -> None:
    model = ours.export(getattr(xplstm, kind)(3, 5, rng=0))
    node = next(node for node in model.graph.node if node.op_type == kind)
    node.attribute.append(make.make_attribute("layout", 2))
    with pytest.raises(
        xplstm.FormatError, match=f"there is the {kind} node .* with layout=2, expected 0 or 1"
    ):
        xplstm.io.load(model.SerializeToString())


def test_dropout_in_training_is_refused() -> None:
    x = np.ones((3, 2), "f4")
    node = make.make_node("Dropout", ["x", "rate", "training"], ["y"], "drop")
    for training in (False, True):
        kept = {"rate": np.float32(0.5), "training": np.asarray(training)}
        model = ours.prepare(model_of([node], {"x": x}, ["y"], kept))
        if training:
            with pytest.raises(xplstm.ArgumentError, match="Dropout node 'drop': training_mode is true"):
                model.run([x])
        else:
            np.testing.assert_array_equal(model.run([x])[0], x)


def branches(outer: str) -> Any:
    """Return an If node: an LSTM with weights outside the branch, or zeros of the same shape."""
    node = make.make_node
    lstm = [node("LSTM", [outer, "W", "R"], ["Y"], hidden_size=2), node("Identity", ["Y"], ["t"])]
    zeros = [node("Mul", [outer, "none"], ["e0"]), node("Unsqueeze", ["e0", "one"], ["e1"])]
    zeros.append(node("Slice", ["e1", "none_at", "two", "last"], ["e"]))
    value = make.make_tensor_value_info
    then = make.make_graph(lstm, "then", [], [value("t", FLOAT, None)])
    other = make.make_graph(zeros, "else", [], [value("e", FLOAT, None)])
    return node("If", ["c"], ["y"], then_branch=then, else_branch=other)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_branch_sees_the_graph_around_it(chosen: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 4, 3)).astype("f4")
    constants = {
        "W": rng.standard_normal((1, 8, 3)),
        "R": rng.standard_normal((1, 8, 2)),
        "none": np.zeros(1),
    }
    constants = {k: a.astype("f4") for k, a in constants.items()}
    constants |= {k: np.array([n]) for k, n in {"one": 1, "none_at": 0, "two": 2, "last": 3}.items()}
    feeds = {"x": x, "c": np.array(chosen)}
    nodes = [make.make_node("Relu", ["x"], ["r"]), branches("r")]
    model = model_of(nodes, feeds, ["y"], constants)
    (y,) = ours.run_model(model, feeds)
    np.testing.assert_allclose(y, session_of(model).run(None, feeds)[0], rtol=0, atol=1e-6)
    assert bool(abs(y).max() > 0) is chosen
    nodes[1] = branches("nowhere")
    with pytest.raises(xplstm.FormatError, match="'nowhere', which no earlier node computes"):
        ours.prepare(model_of(nodes, feeds, ["y"], constants))
    nodes[1] = branches("r")
    nodes[1].attribute[0].g.node[-1].op_type = "Einsum"
    with pytest.raises(xplstm.ArgumentError, match="Einsum"):
        ours.prepare(model_of(nodes, feeds, ["y"], constants))


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
def test_a_classifier_of_torch_runs(tmp_path: Any, torch) -> None:
    torch.manual_seed(0)

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table = torch.nn.Conv1d(6, 6, 3, padding=1), torch.nn.Embedding(11, 6)
            self.lstm, self.head = (
                torch.nn.LSTM(6, 8, batch_first=True, bidirectional=True),
                torch.nn.Linear(16, 3),
            )

        def forward(self, ids: Any) -> Any:
            x = torch.relu(self.conv(self.table(ids).transpose(1, 2))).transpose(1, 2)
            return torch.softmax(self.head(self.lstm(x)[0][:, -1]), -1)

    net, ids = Classifier().eval(), torch.randint(0, 11, (4, 9))
    torch.onnx.export(net, (ids,), tmp_path / "m.onnx", dynamo=False)
    (y,) = ours.run_model(tmp_path / "m.onnx", [ids.numpy()])
    np.testing.assert_allclose(y, net(ids).detach().numpy(), rtol=0, atol=1e-6)


SILERO = importlib.util.find_spec("silero_vad")
FILES = sorted(Path(SILERO.origin).parent.glob("data/*.onnx")) if SILERO and SILERO.origin else [None]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem if path else "none")
def test_silero_runs_over_a_whole_signal(path: Path | None) -> None:
    if path is None:
        pytest.skip("needs the files of silero-vad: pip install --no-deps silero-vad")
    t = np.arange(32000) / 16000
    tone = np.sin(1400 * t * (1 + 0.3 * np.sin(3 * t))) * np.sin(2 * t) / 2
    signal = np.concatenate([np.zeros(64), tone]).astype("f4")
    session, model = session_of(path), ours.prepare(path)
    names = {i.name for i in session.get_inputs()}
    state = {
        "h": np.zeros((1, 1, 128), "f4"),
        "c": np.zeros((1, 1, 128), "f4"),
        "state": np.zeros((2, 1, 128), "f4"),
    }
    state = {name: a for name, a in state.items() if name in names}
    rate = {"sr": np.array(16000)} if "sr" in names else {}
    theirs, mine = state, state
    for start in range(0, len(signal) - 576, 512):
        feed = {"input": signal[None, start : start + 576], **rate}
        wanted, found = session.run(None, {**feed, **theirs}), model.run({**feed, **mine})
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=5e-5)
        theirs, mine = (dict(zip(state, outputs[1:], strict=True)) for outputs in (wanted, found))


def test_a_value_that_a_branch_uses_ends_its_stack(tmp_path: Any) -> None:
    rng, node = np.random.default_rng(0), make.make_node
    x = rng.standard_normal((5, 4, 3)).astype("f4")
    weights = {"W": (1, 8, 3), "R": (1, 8, 2), "U": (1, 8, 2)}
    constants = {k: rng.standard_normal(shape).astype("f4") for k, shape in weights.items()}
    constants |= {"one": np.array([1])}
    same = make.make_graph(
        [node("Identity", ["y1"], ["t"])], "g", [], [make.make_tensor_value_info("t", FLOAT, None)]
    )
    other = make.make_graph(
        [node("Neg", ["y1"], ["e"])], "g", [], [make.make_tensor_value_info("e", FLOAT, None)]
    )
    nodes = [
        node("LSTM", ["x", "W", "R"], ["Y1"], "lower", hidden_size=2),
        node("Squeeze", ["Y1", "one"], ["y1"]),
    ]
    nodes += [node("LSTM", ["y1", "U", "R"], ["Y2"], "upper", hidden_size=2)]
    feeds = {"x": x, "c": np.array(True)}
    plain = model_of(nodes, feeds, ["Y2"], constants)
    nodes = [*nodes, node("If", ["c"], ["z"], then_branch=same, else_branch=other)]
    for model, layers in ((plain, 2), (model_of(nodes, feeds, ["Y2", "z"], constants), 1)):
        onnx.save(model, tmp_path / "m.onnx")
        prefix = None if layers == 2 else "lower"
        assert xplstm.io.load(tmp_path / "m.onnx", prefix=prefix).num_layers == layers
