"""Check ONNX files of exporters with external tensors and nested graphs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io
from tests.support import bytesums
from xplstm.io import onnx as ours

onnx = pytest.importorskip("onnx")
make, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
node = make.make_node


def outside(path: Path, location: str = "weights.data", **changes: Any) -> None:
    """Write an LSTM whose tensors are in another file."""
    model = ours.export(xplstm.LSTM(3, 16, rng=0))
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        told = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name == "W_l0":
            told |= {"location": location} | {key: str(value) for key, value in changes.items()}
        del tensor.external_data[:]
        for key, value in told.items():
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_tensors_in_a_file_of_the_same_folder(tmp_path: Path) -> None:
    outside(tmp_path / "m.onnx")
    net, wanted = xplstm.io.load(tmp_path / "m.onnx"), xplstm.LSTM(3, 16, rng=0)
    assert all(np.array_equal(net.params[name], a) for name, a in wanted.params.items())
    x = np.ones((4, 2, 3), "float32")
    y = ours.prepare(tmp_path / "m.onnx").run({"x": x})[0]
    np.testing.assert_allclose(y, wanted(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "../weights.data"}, "expected a file name without a folder"),
        ({"location": "/etc/passwd"}, "expected a file name without a folder"),
        ({"location": "sub\\weights.data"}, "expected a file name without a folder"),
        ({"location": "C:weights.data"}, "expected a file name without a folder"),
        ({"location": ".."}, "expected a file name without a folder"),
        ({"location": "\x1b[31m"}, "expected a file name without a folder"),
        ({"location": "link"}, "which is not a regular file"),
        ({"location": "folder"}, "which is not a regular file"),
        ({"location": "gone"}, "cannot be opened"),
        ({"offset": 10**9}, "of .* bytes, at offset"),
        ({"offset": -4}, "of .* bytes, at offset"),
        ({"offset": "9" * 4000}, "of .* bytes, at offset"),
        ({"length": 8}, "of .* bytes, at offset"),
    ],
)
def test_another_file_that_is_refused(changes: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "weights.data", tmp_path / "link")
    outside(tmp_path / "m.onnx", **changes)
    with pytest.raises(xplstm.FormatError, match=message) as error:
        xplstm.io.load(tmp_path / "m.onnx")
    assert len(str(error.value)) < 2000
    assert str(error.value).isprintable()
    xplstm.io.inspect(tmp_path / "m.onnx")


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"W": (1, 8, 3), "R": (1, 8, 2), "B": (1, 16)}
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def model_of(nodes: Any, inputs: Any, outputs: Any, kept: Any, **options: Any) -> Any:
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [make.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in kept.items()],
    )
    options.setdefault("opset_imports", [make.make_opsetid("", 17)])
    return make.make_model(graph, ir_version=8, **options)


def branch(name: str, kept: dict[str, np.ndarray]) -> Any:
    """Return a graph for an If node; both branches use the same names."""
    lstm = node("LSTM", ["x", "W_in", "R_in", "B_in"], ["Y_in"], "lstm", hidden_size=2)
    made = [make.make_tensor_value_info("Y_in", FLOAT, None)]
    initial = [onnx.numpy_helper.from_array(a, f"{k}_in") for k, a in kept.items()]
    return make.make_graph([lstm], name, [], made, initial)


def by_runtime(model: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, feed))


def test_an_lstm_in_each_branch(tmp_path: Path) -> None:
    branches = {"then_branch": branch("a", tensors(1)), "else_branch": branch("b", tensors(2))}
    model = model_of(
        [node("If", ["first"], ["Y"], "choice", **branches)],
        [("x", FLOAT, ["T", "B", 3]), ("first", onnx.TensorProto.BOOL, [])],
        ["Y"],
        {},
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    for first, name in ((True, "then_branch"), (False, "else_branch")):
        feed = {"x": x, "first": np.asarray(first)}
        wanted = by_runtime(model, feed)[0]
        np.testing.assert_allclose(ours.prepare(model).run(feed)[0], wanted, rtol=0, atol=1e-6)
        net = xplstm.io.load(tmp_path / "m.onnx", prefix=f"choice.{name}.lstm")
        np.testing.assert_allclose(net(x)[0], wanted[:, 0], rtol=0, atol=1e-6)
    with pytest.raises(xplstm.ArgumentError, match="has 2 networks"):
        xplstm.io.load(tmp_path / "m.onnx")


def test_names_of_tensorflow_variables(tmp_path: Path) -> None:
    """TensorFlow's names end in ":0"; `load` and `inspect` remove this end."""
    weights = {f"lstm/{name}:0": a for name, a in tensors().items()}
    lstm = node("LSTM", ["x:0", *weights], ["lstm/Y:0"], hidden_size=2)
    onnx.save(model_of([lstm], [("x:0", FLOAT, ["T", "B", 3])], ["lstm/Y:0"], weights), tmp_path / "m.onnx")
    (network,) = xplstm.io.inspect(tmp_path / "m.onnx").networks
    assert network == ("lstm.Y", "onnx", "float32", "LSTM(3, 2)")
    wanted = xplstm.io.load(tensors(), format="onnx", variant=None).params
    for prefix in (None, "lstm/Y:0", "lstm.Y"):
        net = xplstm.io.load(tmp_path / "m.onnx", prefix=prefix)
        assert all(np.array_equal(net.params[name], a) for name, a in wanted.items())


def test_an_lstm_in_a_function(tmp_path: Path) -> None:
    """Attributes and weights are those of the call."""
    lstm = node("LSTM", ["X", "W", "R", "B"], ["Y"], "lstm")
    lstm.attribute.append(onnx.AttributeProto(name="hidden_size", type="INT", ref_attr_name="size"))
    domain = make.make_opsetid("own", 1)
    versions = [make.make_opsetid("", 17)]
    function = make.make_function("own", "Layer", ["X", "W", "R", "B"], ["Y"], [lstm], versions, ["size"])
    calls = [node("Layer", ["x", "W", "R", "B"], ["Y"], "call", domain="own", size=2)]
    model = model_of(
        calls,
        [("x", FLOAT, ["T", "B", 3])],
        ["Y"],
        tensors(),
        functions=[function],
        opset_imports=[*versions, domain],
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    wanted = by_runtime(model, {"x": x})[0]
    np.testing.assert_allclose(ours.prepare(model).run({"x": x})[0], wanted, rtol=0, atol=1e-6)
    net = xplstm.io.load(tmp_path / "m.onnx", prefix="call.lstm")
    np.testing.assert_allclose(net(x)[0], wanted[:, 0], rtol=0, atol=1e-6)
    model.functions[0].opset_import[0].version = 14
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        xplstm.FormatError, match=r"the function 'Layer' has opset \[14\], but the model has 17"
    ):
        xplstm.io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_functions_of_one_name_are_told_apart(order: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept = {"W": rng.normal(size=(1, 8, 3)).astype("f4"), "R": rng.normal(size=(1, 8, 2)).astype("f4")}
    functions = []
    for letter in order:
        double = make.make_node("Add", ["W", "W"], ["W2"])
        lstm = make.make_node("LSTM", ["x", "W2" if letter == "b" else "W", "R"], ["y"])
        body = [double, lstm] if letter == "b" else [lstm]
        functions.append(
            make.make_function("my", "Net", ["x", "W", "R"], ["y"], body, [make.make_opsetid("", 17)])
        )
        functions[-1].overload = letter
    call = node("Net", ["x", "W", "R"], ["Y"], "call", domain="my")
    call.overload = "b"
    opsets = [make.make_opsetid("", 17), make.make_opsetid("my", 1)]
    inputs = [("x", FLOAT, ["T", "B", 3])]
    model = model_of([call], inputs, ["Y"], kept, functions=functions, opset_imports=opsets)
    onnx.save(model, tmp_path / "m.onnx")
    found = xplstm.io.load(tmp_path / "m.onnx").params["weight_ih_l0"]
    np.testing.assert_allclose(abs(found).sum(), 2 * abs(kept["W"]).sum(), rtol=1e-5)
    for function in model.functions:
        function.overload = ""
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(xplstm.FormatError, match="two functions with the same name"):
        xplstm.io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("calls_itself", [False, True])
def test_functions_that_grow_without_end(calls_itself: bool, tmp_path: Path) -> None:
    functions, domain = [], make.make_opsetid("own", 1)
    for k in range(40):
        below = f"F{k if calls_itself else k - 1}"
        body = [node(below, ["X"], ["a"], domain="own"), node(below, ["a"], ["Y"], domain="own")]
        body = [node("Relu", ["X"], ["Y"])] if k == 0 and not calls_itself else body
        functions.append(
            make.make_function("own", f"F{k}", ["X"], ["Y"], body, [make.make_opsetid("", 17), domain])
        )
    call = [node("F39", ["x"], ["Y"], domain="own")]
    inputs = [("x", FLOAT, ["T", "B", 3])]
    opsets = [make.make_opsetid("", 17), domain]
    model = model_of(call, inputs, ["Y"], {}, functions=functions, opset_imports=opsets)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(xplstm.FormatError, match="nodes inside nodes"):
        xplstm.io.load(tmp_path / "m.onnx")


def test_a_loop_holds_an_lstm_and_is_not_run(tmp_path: Path) -> None:
    body = make.make_graph(
        [
            node("Identity", ["on"], ["on_out"]),
            node("LSTM", ["x", "W", "R", "B", "", "h"], ["", "h_out"], "cell", hidden_size=2),
        ],
        "body",
        [make.make_tensor_value_info(name, kind, None) for name, kind in (("i", 7), ("on", 9), ("h", FLOAT))],
        [make.make_tensor_value_info(name, kind, None) for name, kind in (("on_out", 9), ("h_out", FLOAT))],
    )
    kept = tensors() | {"n": np.asarray(3), "h_0": np.zeros((1, 4, 2), "float32")}
    loop = node("Loop", ["n", "", "h_0"], ["h_n"], "loop", body=body)
    model = model_of([loop], [("x", FLOAT, [5, 4, 3])], ["h_n"], kept)
    onnx.save(model, tmp_path / "m.onnx")
    assert "loop.body.cell" in repr(xplstm.io.inspect(tmp_path / "m.onnx"))
    with pytest.raises(xplstm.FormatError, match=r"LSTM node 'loop\.body\.cell' has the initial state"):
        xplstm.io.load(tmp_path / "m.onnx")
    with pytest.raises(xplstm.ArgumentError, match="has the Loop node 'loop'"):
        ours.prepare(model)


@pytest.mark.parametrize("name", ["W", "R", "h"])
def test_an_input_of_a_body_has_no_default(name: str, tmp_path: Path) -> None:
    """The Loop passes another value, which the network of the file must not ignore."""
    kept = tensors() | {"n": np.asarray(1), "h_0": np.ones((1, 4, 2), "float32")}
    state = {"W": "", "R": "", "h": "h"}[name]
    given = ["x", "W", "R", "B", "", state] if state else ["x", "W", "R", "B"]
    body = make.make_graph(
        [node("Identity", [one], [f"{one}_out"]) for one in ("on", name)]
        + [node("LSTM", given, ["", "last"], "cell", hidden_size=2)],
        "body",
        [make.make_tensor_value_info(one, kind, None) for one, kind in (("i", 7), ("on", 9), (name, FLOAT))],
        [make.make_tensor_value_info(f"{one}_out", kind, None) for one, kind in (("on", 9), (name, FLOAT))],
        [onnx.numpy_helper.from_array(np.zeros_like(kept.get(name, kept["h_0"])), name)],
    )
    first = "h_0" if name == "h" else name
    loop = node("Loop", ["n", "", first], ["end"], "loop", body=body)
    onnx.save(model_of([loop], [("x", FLOAT, [5, 4, 3])], ["end"], kept), tmp_path / "m.onnx")
    with pytest.raises(
        xplstm.FormatError, match=rf"an initializer for 'loop\.body\.{name}', an input of a graph"
    ):
        xplstm.io.load(tmp_path / "m.onnx", batch_first=False)


@pytest.mark.parametrize("op", ["Relu", "Neg", "Identity", "Cast"])
def test_a_body_must_not_change_the_input_of_its_network(op: str, tmp_path: Path) -> None:
    options = {"to": FLOAT} if op == "Cast" else {}
    body = make.make_graph(
        [
            node("Identity", ["on"], ["on_out"]),
            node(op, ["value"], ["X"], **options),
            node("LSTM", ["X", "W", "R", "B"], ["", "last"], "cell", hidden_size=2),
            node("Identity", ["value"], ["value_out"]),
        ],
        "body",
        [
            make.make_tensor_value_info(one, kind, None)
            for one, kind in (("i", 7), ("on", 9), ("value", FLOAT))
        ],
        [
            make.make_tensor_value_info(one, kind, None)
            for one, kind in (("on_out", 9), ("value_out", FLOAT), ("last", FLOAT))
        ],
    )
    loop = node("Loop", ["n", "", "x"], ["end", "lasts"], "loop", body=body)
    kept = tensors() | {"n": np.asarray(1)}
    onnx.save(model_of([loop], [("x", FLOAT, [5, 4, 3])], ["lasts"], kept), tmp_path / "m.onnx")
    if op in ("Identity", "Cast"):
        assert xplstm.io.load(tmp_path / "m.onnx", batch_first=False).input_size == 3
        return
    with pytest.raises(xplstm.FormatError, match=f"does not read 'loop.body.value' unchanged.*the {op} node"):
        xplstm.io.load(tmp_path / "m.onnx", batch_first=False)


@pytest.mark.filterwarnings("ignore")  # of the quantiser
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_weights_of_8_bits(both: bool, per_channel: bool, kind: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    net = xplstm.LSTM(16, 24, 2, bidirectional=both, rng=0)
    ours.export(net, tmp_path / "float.onnx")
    quantization.quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "q.onnx",
        per_channel=per_channel,
        weight_type=getattr(quantization.QuantType, kind),
    )
    assert any(n.op_type == "DynamicQuantizeLSTM" for n in onnx.load(tmp_path / "q.onnx").graph.node)
    found = xplstm.io.load(tmp_path / "q.onnx")
    assert repr(found) == repr(net)
    for name, a in net.params.items():
        step = np.abs(a).max() / 127
        np.testing.assert_allclose(found.params[name], a, rtol=0, atol=1.1 * step, err_msg=name)
    with pytest.raises(xplstm.ArgumentError, match="DynamicQuantizeLSTM"):
        ours.prepare(tmp_path / "q.onnx")
    bytesums.skip_where_they_saturate()
    x = np.random.default_rng(0).normal(size=(5, 4, 16)).astype("float32")
    theirs = by_runtime(onnx.load(tmp_path / "q.onnx"), {"x": x})[0]
    np.testing.assert_allclose(found(x)[0], theirs, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False, "variant": xplstm.Variant(peepholes=True)},
        {"variant": xplstm.Variant(coupled=True, gate_clip=2.0)},
    ],
)
def test_a_layer_stored_in_8_bits(options: dict[str, Any], tmp_path: Path) -> None:
    net = xplstm.LSTM(16, 24, rng=0, **options)
    frozen = net.freeze(weights="int8")
    ours.export(frozen, tmp_path / "q.onnx")
    size = (tmp_path / "q.onnx").stat().st_size
    ours.export(net, tmp_path / "float.onnx")
    assert size < 0.5 * (tmp_path / "float.onnx").stat().st_size
    again = xplstm.io.load(tmp_path / "q.onnx")
    assert repr(again) == repr(net)
    # Each number is the one that the frozen layer computes with.
    for name, scale in (("weight_ih_l0", 127), ("weight_hh_l0", 127), ("bias_ih_l0", 0), ("weight_ch_l0", 0)):
        if name in net.params:
            a = net.params[name]
            step = np.max(abs(a), axis=1, keepdims=True) / np.float32(scale) if scale else None
            wanted = a if step is None else np.rint(a / step) * step
            np.testing.assert_array_equal(again.params[name], wanted, err_msg=name)
    bytesums.skip_where_they_saturate()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4, 16)).astype("float32")
    states = (len(frozen._stack.reverse) * frozen._stack.num_layers, 5 if net._stack.batch_first else 4, 24)
    h, c = (rng.normal(size=states).astype("float32") for _ in "hc")
    lengths = np.asarray([4, 2, 4, 1, 3][: states[1]], "int32")
    theirs = by_runtime(onnx.load(tmp_path / "q.onnx"), {"x": x, "h_0": h, "c_0": c, "lengths": lengths})
    y, state = frozen(x, (h, c), lengths=lengths)
    for mine, other in zip((y, *state), theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=3e-2)


def test_what_no_operator_stores_in_fewer_bits() -> None:
    with pytest.raises(xplstm.ArgumentError, match="weights='bfloat16', which no ONNX operator supports"):
        ours.export(xplstm.LSTM(3, 5, rng=0).freeze(weights="bfloat16"))
    with pytest.raises(
        xplstm.ArgumentError, match="weights='int8' and proj_size=2, which no ONNX operator supports"
    ):
        ours.export(xplstm.LSTM(3, 5, proj_size=2, rng=0).freeze(weights="int8"))
    with pytest.raises(xplstm.ArgumentError, match="a GRU frozen with weights='int8', which no ONNX"):
        ours.export(xplstm.GRU(3, 5, rng=0).freeze(weights="int8"))
