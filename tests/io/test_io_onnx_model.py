"""Check ONNX models: the backend on cases of onnx, exports in ONNX Runtime, and loading of exports."""

from __future__ import annotations

import contextlib
import re
import warnings
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io
from xplstm import Variant, _array
from xplstm.io import onnx as ours

onnx = pytest.importorskip("onnx")
make, FLOAT = onnx.helper, onnx.TensorProto.FLOAT

T, B, I, H = 5, 4, 3, 2


@pytest.fixture(scope="module")
def cases() -> Any:
    """Return the class of onnx's node tests, run by this backend."""
    backend_test = pytest.importorskip("onnx.backend.test")
    return backend_test.BackendTest(ours, __name__).test_cases["OnnxBackendNodeModelTest"]


@pytest.mark.filterwarnings("ignore")  # of the making of the other operators' cases
@pytest.mark.parametrize(
    ("names", "least"),
    [
        (r"test_(lstm|simple_rnn|rnn)_\w+", 11),
        (r"test_(squeeze|unsqueeze|transpose|reshape|slice|expand|flatten|split|where)_(?!to_)\w+", 60),
        (
            r"test_(shape|size|gather|concat|constant|constantofshape|equal)_(?!elements|pad)\w+|test_identity",
            30,
        ),
    ],
)
def test_cases_of_onnx(cases: Any, names: str, least: int) -> None:
    found = [name for name in vars(cases) if re.fullmatch(names + "_cpu", name)]
    found = [name for name in found if not re.search("sequence|string|_opt_", name)]
    assert len(found) >= least
    for name in found:
        getattr(cases(name), name)()


def lstm_model(
    inputs: dict[str, Any], weights: dict[str, Any], op: str = "LSTM", nodes: Any = (), **attributes: Any
) -> Any:
    """Return a model of one node with initialisers as weights; `nodes` come before it."""
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    names = [name if name in weights or name in inputs else "" for name in order]
    while not names[-1]:
        names.pop()
    made = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    node = make.make_node(op, names, made, "the_lstm", **attributes)
    given = [
        make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    kept = [onnx.numpy_helper.from_array(a, name) for name, a in weights.items()]
    outputs = [make.make_tensor_value_info(name, FLOAT, None) for name in made]
    graph = make.make_graph([*nodes, node], "one", given, outputs, kept)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)


def weights(rng: np.random.Generator, D: int = 1, gates: int = 4) -> dict[str, np.ndarray]:
    shapes = {"W": (D, gates * H, I), "R": (D, gates * H, H), "B": (D, 2 * gates * H)}
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def test_every_library(xp: Any, rng: np.random.Generator) -> None:
    """An exported stack with shape operations runs on the library of the arrays."""
    lstm = xplstm.LSTM(I, H, 2, bidirectional=True, merge="mean", batch_first=True, rng=1)
    x = rng.normal(size=(B, T, I)).astype("float32")
    lengths = np.asarray([5, 0, 2, 4], dtype="int32")
    model = ours.prepare(ours.export(lstm), xp=xp.xp)
    y, (h_n, c_n) = lstm(x, lengths=lengths)
    found = model.run({"x": xp.asarray(x), "lengths": lengths})
    assert {_array.backend_name(_array.namespace(a, "an output")) for a in found} == {
        _array.backend_name(xp.xp)
    }
    for got, want in zip(found, (y, h_n, c_n), strict=True):
        np.testing.assert_allclose(_array.to_numpy(got), want, rtol=0, atol=1e-6)


def test_another_library_is_refused() -> None:
    strict = (
        _array.named_namespace("array_api_strict") if not _array.why_unusable("array_api_strict") else None
    )
    if strict is None:
        pytest.skip("array_api_strict is not installed")
    model = ours.prepare(ours.export(xplstm.LSTM(I, H)), xp=strict)
    with pytest.raises(
        xplstm.BackendError, match="x is an array from numpy, but the model was prepared for array_api"
    ):
        model.run([np.ones((T, B, I), "float32")])


def network(seed: int) -> Any:
    """Return a random network that ONNX supports."""
    rng = np.random.default_rng(seed)
    D = int(rng.integers(2))
    options: dict[str, Any] = {
        "num_layers": int(rng.integers(1, 4)),
        "bidirectional": bool(D),
        "batch_first": bool(rng.integers(2)),
        "bias": bool(rng.integers(2)),
    }
    if seed % 4 == 0:
        return xplstm.RNN(I, H, nonlinearity=("tanh", "relu")[seed // 4 % 2], rng=seed, **options)
    options["variant"] = Variant(
        peepholes=bool(rng.integers(2)),
        coupled=bool(rng.integers(2)),
        gate_clip=0.5 if rng.integers(2) else None,
        activations=("hard_sigmoid", "affine", ("scaled_tanh", 0.7, 1.2))
        if rng.integers(2)
        else Variant().activations,
    )
    if D:
        options["merge"] = str(rng.choice(["concat", "sum", "mean", "product", "none"]))
    return xplstm.LSTM(I, H, rng=seed, **options)


def feeds(net: Any, seed: int) -> list[dict[str, np.ndarray]]:
    """Return x alone, with lengths, and with a state, of several sizes, with no steps or one batch entry."""
    rng, found = np.random.default_rng(seed), []
    states = net._stack.num_layers * len(net._stack.reverse)
    for steps, rows in ((T, B), (7, 1), (0, 3)):
        shape = (rows, steps, I) if net._stack.batch_first else (steps, rows, I)
        feed = {"x": rng.normal(size=shape).astype("float32")}
        found.append(dict(feed))
        feed["lengths"] = rng.integers(0, steps + 1, size=rows).astype("int32")
        feed["lengths"][0] = 0
        found.append(dict(feed))
        feed["h_0"] = rng.normal(size=(states, rows, H)).astype("float32")
        if not isinstance(net, xplstm.RNN):
            feed["c_0"] = rng.normal(size=(states, rows, H)).astype("float32")
        found.append(feed)
    return found


def ours_of(net: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    state: Any = feed.get("h_0")
    if "c_0" in feed:
        state = (feed["h_0"], feed["c_0"])
    y, end = net(feed["x"], state, lengths=feed.get("lengths"))
    return [y, *(end if isinstance(end, tuple) else [end])]


@pytest.mark.parametrize("seed", range(16))
def test_exports_give_the_same_numbers(seed: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = network(seed)
    model = ours.export(net)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it lists every optional input
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    prepared = ours.prepare(model)
    for feed in feeds(net, seed):
        wanted = ours_of(net, feed)
        for found in (session.run(None, feed), prepared.run(feed)):
            for got, want in zip(found, wanted, strict=True):
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=0, atol=3e-6, err_msg=f"{net} {list(feed)}")


@pytest.mark.parametrize("seed", range(16))
def test_exports_are_loaded_again(seed: int, tmp_path: Any) -> None:
    net = network(seed)
    path = tmp_path / "net.onnx"
    ours.export(net, path)
    again = xplstm.io.load(path)
    assert repr(again) == repr(net)
    assert again.params.keys() == net.params.keys()
    for name, a in net.params.items():
        assert np.array_equal(again.params[name], a), name
    xplstm.io.save(path, net)
    assert repr(xplstm.io.load(path)) == repr(net)


REFUSED = {
    "has variant.layer_norm": lambda: xplstm.LSTM(I, H, variant=Variant(layer_norm=True)),
    "has variant.cell_clip, variant.zoneout_h": lambda: xplstm.LSTM(
        I, H, variant=Variant(cell_clip=1.0, zoneout_h=0.1)
    ),
    "is a JordanRNN": lambda: xplstm.JordanRNN(I, H, 1),
    "has dtype bfloat16": lambda: xplstm.LSTM(I, H, dtype="bfloat16"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_place_is_refused(message: str) -> None:
    if "bfloat16" in message:
        pytest.importorskip("ml_dtypes")
    with pytest.raises(xplstm.ArgumentError, match=f"the network {message}, which"):
        ours.export(REFUSED[message]())


def test_a_projection_is_multiplied_out(tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(4)
    net = xplstm.LSTM(
        I,
        5,
        2,
        proj_size=2,
        bidirectional=True,
        batch_first=True,
        merge="sum",
        variant=Variant(peepholes=True),
        rng=1,
    )
    model = ours.export(net)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    prepared = ours.prepare(model)
    h_0, c_0 = rng.normal(size=(4, B, 2)).astype("float32"), rng.normal(size=(4, B, 5)).astype("float32")
    feed = {"x": rng.normal(size=(B, T, I)).astype("float32")}
    for more in ({}, {"lengths": np.asarray([5, 0, 2, 4], "int32")}, {"h_0": h_0, "c_0": c_0}):
        feed |= more
        for found in (session.run(None, feed), prepared.run(feed)):
            for got, want in zip(found, ours_of(net, feed), strict=True):
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    again = xplstm.io.load(tmp_path / "net.onnx")
    assert repr(again) == repr(net)
    assert all(np.array_equal(again.params[name], a) for name, a in net.params.items())
    net.params["weight_hr_l1"][:] = np.nan
    with pytest.raises(xplstm.ArgumentError, match="condition number inf"):
        ours.export(net)
    net.params["weight_hr_l1"][:] = 1
    with pytest.raises(
        xplstm.ArgumentError, match=r"weight_hr_l1 has the condition number .*, expected at most 1e\+04"
    ):
        ours.export(net)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_dtypes_go_there_and_back(dtype: str, tmp_path: Any) -> None:
    net = xplstm.LSTM(I, H, 2, dtype=dtype, rng=0)
    model = ours.export(net, tmp_path / "net.onnx")
    again = xplstm.io.load(tmp_path / "net.onnx")
    assert all(np.array_equal(again.params[name], a) for name, a in net.params.items())
    x = np.ones((T, B, I), dtype=dtype)
    assert np.array_equal(ours.run_model(model, [x])[0], net(x)[0])


@pytest.mark.parametrize(("layers", "both"), [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_exports_of_torch(
    layers: int, both: bool, batch_first: bool, fixed: bool, tmp_path: Any, torch
) -> None:
    theirs = torch.nn.LSTM(I, H, layers, bidirectional=both, batch_first=batch_first)
    x, path = torch.randn(B, T, I), tmp_path / "torch.onnx"
    axes = {} if fixed else {"x": [0, 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter names its successor and the batch
        torch.onnx.export(
            theirs, (x,), str(path), input_names=["x"], dynamic_axes=axes, dynamo=False, opset_version=17
        )
    found = xplstm.io.load(path)
    assert repr(found) == repr(xplstm.LSTM(I, H, layers, bidirectional=both, batch_first=batch_first))
    with torch.no_grad():
        y, (h_n, c_n) = theirs(x)
    np.testing.assert_allclose(found(x.numpy())[0], y.numpy(), rtol=0, atol=1e-6)
    for got, want in zip(ours.prepare(path).run([x.numpy()]), (y, h_n, c_n), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("spoiled", [False, True])
def test_fixed_sizes_between_layers(
    batch: int, D: int, batch_first: bool, spoiled: bool, rng: np.random.Generator, tmp_path: Any
) -> None:
    """Exporters without free sizes write a Reshape with the sizes of one input."""
    width, kept, nodes = D * H, {}, []
    shape = (batch, T, I) if batch_first else (T, batch, I)
    below = "x"
    if batch_first:
        nodes.append(make.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]))
        below = "x_time"
    kept["sizes"] = np.array([T, batch, width])
    for k in range(2):
        layer = weights(rng, D) | (
            {} if k == 0 else {"W": rng.normal(size=(D, 4 * H, width)).astype("float32")}
        )
        kept |= {f"{name}{k}": a for name, a in layer.items()}
        direction = "bidirectional" if D == 2 else "forward"
        names = [below, f"W{k}", f"R{k}", f"B{k}"]
        nodes.append(make.make_node("LSTM", names, [f"Y{k}"], hidden_size=H, direction=direction))
        perm = [2, 0, 1, 3] if spoiled and k == 0 else [0, 2, 1, 3]
        nodes.append(make.make_node("Transpose", [f"Y{k}"], [f"moved{k}"], perm=perm))
        nodes.append(make.make_node("Reshape", [f"moved{k}", "sizes"], [f"y{k}"]))
        below = f"y{k}"
    if batch_first:
        nodes.append(make.make_node("Transpose", ["y1"], ["y"], perm=[1, 0, 2]))
        below = "y"
    graph = make.make_graph(
        nodes,
        "fixed",
        [make.make_tensor_value_info("x", FLOAT, shape)],
        [make.make_tensor_value_info(below, FLOAT, None)],
        [onnx.numpy_helper.from_array(a, name) for name, a in kept.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "fixed.onnx")
    if spoiled and batch > 1:
        with pytest.raises(xplstm.ArgumentError, match="has 2 networks"):
            xplstm.io.load(tmp_path / "fixed.onnx")
        return
    lstm = xplstm.io.load(tmp_path / "fixed.onnx")
    assert repr(lstm) == repr(xplstm.LSTM(I, H, 2, bidirectional=D == 2, batch_first=batch_first))
    x = rng.normal(size=shape).astype("float32")
    np.testing.assert_allclose(lstm(x)[0], ours.run_model(model, [x])[0], rtol=0, atol=1e-6)


def test_a_node_with_its_options(rng: np.random.Generator, tmp_path: Any) -> None:
    model = lstm_model(
        {"X": np.zeros((B, T, I), "float32")},
        weights(rng, 2) | {"P": rng.normal(size=(2, 3 * H)).astype("float32")},
        direction="bidirectional",
        layout=1,
        clip=0.3,
        activations=["Sigmoid", "Tanh", "Tanh", "HardSigmoid", "Relu", "Softsign"],
        activation_alpha=[0.4],
    )
    onnx.save(model, tmp_path / "one.onnx")
    lstm = xplstm.io.load(tmp_path / "one.onnx")
    assert lstm._stack.batch_first
    x = rng.normal(size=(B, T, I)).astype("float32")
    Y, Y_h, _ = ours.run_model(model, [x])
    y, (h_n, _) = lstm(x)
    np.testing.assert_allclose(Y.reshape(B, T, 2 * H), y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(Y_h.swapaxes(0, 1), h_n, rtol=0, atol=1e-6)


def test_arrays_by_the_operators_names(rng: np.random.Generator) -> None:
    lstm = xplstm.LSTM(I, H, 2, bidirectional=True, variant=Variant(peepholes=True), rng=0)
    arrays = xplstm.io.to_mapping(lstm, "onnx")
    assert sorted(arrays) == sorted(f"l{layer}.{name}" for layer in (0, 1) for name in "WRBP")
    again = xplstm.io.load(arrays, format="onnx")
    assert repr(again) == repr(lstm)
    assert all(np.array_equal(again.params[name], a) for name, a in lstm.params.items())
    x = rng.normal(size=(T, B, I)).astype("float32")
    first = {name.removeprefix("l0."): a for name, a in arrays.items() if name.startswith("l0.")}
    Y, *_ = ours.lstm(x, **first, direction="bidirectional")
    assert xplstm.io.load(first, format="onnx")(x)[0].shape == (T, B, 2 * H)
    np.testing.assert_allclose(
        xplstm.io.load(first, format="onnx")(x)[0],
        Y.transpose(0, 2, 1, 3).reshape(T, B, 2 * H),
        rtol=0,
        atol=1e-6,
    )
    with pytest.raises(xplstm.ArgumentError, match="coupled"):
        xplstm.io.to_mapping(xplstm.LSTM(I, H, variant=Variant(coupled=True)), "onnx")


def graph_of(*nodes: Any, outputs: tuple[str, ...] = ("Y",), kept: Any = None) -> Any:
    """Return a model of these nodes on x (T, B, I)."""
    kept = weights(np.random.default_rng(0)) if kept is None else kept
    given = [make.make_tensor_value_info("x", FLOAT, ["T", "B", I])]
    made = [make.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    constants = [onnx.numpy_helper.from_array(a, name) for name, a in kept.items()]
    graph = make.make_graph(list(nodes), "g", given, made, constants)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)


node = make.make_node
LSTM = node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=H)


def test_an_unknown_node_is_refused_by_name_before_anything_runs() -> None:
    model = graph_of(node("Transpose", ["x"], ["t"]), node("Einsum", ["t"], ["Y"], "the_einsum"))
    assert not ours.is_compatible(model)
    with pytest.raises(
        xplstm.ArgumentError, match="has the Einsum node 'the_einsum'; supported operators are LSTM, GRU, RNN"
    ):
        ours.prepare(model)
    with pytest.raises(xplstm.ArgumentError, match=r"Dropout node .* with a mask"):
        ours.prepare(graph_of(node("Dropout", ["x"], ["Y", "mask"])))
    with pytest.raises(xplstm.ArgumentError, match=r"unknown attributes \['linear'\]"):
        ours.prepare(graph_of(node("LSTM", ["x", "W", "R"], ["Y"], linear=1)))
    assert ours.is_compatible(graph_of(LSTM))
    assert ours.supports_device("CPU")
    assert not ours.supports_device("TPU")


def test_one_node_alone(rng: np.random.Generator) -> None:
    given = [rng.normal(size=(T, B, I)).astype("float32"), *weights(rng).values()]
    (found,) = ours.run_node(LSTM, given)
    assert np.array_equal(found, ours.lstm(*given)[0])
    with pytest.raises(xplstm.BackendError, match="device='TPU' cannot store numpy arrays"):
        ours.run_node(LSTM, given, "TPU")


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], xplstm.ArgumentError, "inputs has 0 arrays, expected 1: x"),
        ({"X": np.ones(1)}, xplstm.ArgumentError, r"missing names \['x'\] and unknown names \['X'\]"),
        ([np.ones((T, B, I))], xplstm.DTypeError, "x has dtype float64, expected float32"),
        ([np.ones((T, B, 7), "float32")], xplstm.ShapeError, r"x has shape \(5, 4, 7\)"),
    ],
)
def test_wrong_inputs_are_named(inputs: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ours.prepare(graph_of(LSTM)).run(inputs)


def load(model: Any, tmp_path: Any, **options: Any) -> Any:
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return xplstm.io.load(path, **options)


def second(X: str, name: str = "upper") -> Any:
    return node("LSTM", [X, "W2", "R", "B"], [name], hidden_size=H)


def stack_of(*between: Any) -> Any:
    kept = weights(np.random.default_rng(0))
    kept |= {"W2": kept["W"][:, :, :H].copy(), "axis": np.asarray([1]), "scale": np.asarray(2.0, "float32")}
    return graph_of(LSTM, *between, outputs=("upper",), kept=kept)


def test_layers_are_one_network_only_where_the_graph_says_so(tmp_path: Any) -> None:
    squeeze = node("Squeeze", ["Y", "axis"], ["s"])
    assert load(stack_of(squeeze, second("s")), tmp_path)._stack.num_layers == 2
    for between in (
        [node("Mul", ["s", "scale"], ["m"]), second("m")],  # a scale between them
        [node("Tanh", ["s"], ["m"]), second("m")],  # what no layer here does
        [second("s"), second("s", "other")],  # one output for two
    ):
        model = stack_of(squeeze, *between)
        with pytest.raises(xplstm.ArgumentError, match=r"has [23] networks"):
            load(model, tmp_path)
        assert load(model, tmp_path, prefix="upper")._stack.input_size == H


def test_a_state_of_the_models_own_is_told(tmp_path: Any) -> None:
    kept = weights(np.random.default_rng(0))
    stateful = node("LSTM", ["x", "W", "R", "B", "", "start", "start"], ["Y"], hidden_size=H)
    zeros = {"start": np.zeros((1, B, H), "float32")}
    assert load(graph_of(stateful, kept=kept | zeros), tmp_path)._stack.hidden_size == H
    with pytest.raises(xplstm.FormatError, match=r"prefix='Y', .*is called with constant state"):
        load(graph_of(stateful, kept=kept | {"start": zeros["start"] + 1}), tmp_path)


def test_what_no_network_here_can_be_is_told(tmp_path: Any) -> None:
    reverse = graph_of(node("LSTM", ["x", "W", "R"], ["Y"], direction="reverse"))
    assert load(reverse, tmp_path).reverse
    with pytest.raises(xplstm.ArgumentError, match=r"contradicts .*reverse=True"):
        load(reverse, tmp_path, reverse=False)
    with pytest.raises(xplstm.FormatError, match="'t' is not a tensor of the model"):
        load(graph_of(node("Sin", ["W"], ["t"]), node("LSTM", ["x", "t", "R"], ["Y"])), tmp_path)
    bounded = load(graph_of(node("Tanh", ["W"], ["t"]), node("LSTM", ["x", "t", "R"], ["Y"])), tmp_path)
    assert abs(bounded.params["weight_ih_l0"]).max() < 1
    simple = {name: a[:, :H] for name, a in weights(np.random.default_rng(0)).items()}
    with pytest.raises(xplstm.FormatError, match=r"clip=0.5, expected Tanh or Relu and no clip"):
        load(graph_of(node("RNN", ["x", "W", "R"], ["Y"], clip=0.5), kept=simple), tmp_path)
    with pytest.raises(xplstm.FormatError, match="contains no known LSTM"):
        load(graph_of(node("Tanh", ["x"], ["Y"])), tmp_path)


def spoiled(change: Any) -> bytes:
    model = graph_of(LSTM)
    change(model)
    data: bytes = model.SerializeToString()
    return data


def external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../etc/passwd")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL


def of_first(**fields: Any) -> Any:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                tensor.dims[:] = value
            else:
                setattr(tensor, name, value)

    return change


HOSTILE = {
    "truncated": (spoiled(lambda _: None)[:200], "is not an ONNX model, or damaged"),
    "no protobuf": (b"\x08" + b"\xff" * 64, "is not an ONNX model"),
    "external data": (spoiled(external), "W is in another file"),
    "a huge shape": (
        spoiled(of_first(dims=[1, 4 * H, 1 << 40])),
        r"W has 96 bytes, expected .* for float32 \(1, 8, 1099511627776\)",
    ),
    "a negative shape": (
        spoiled(of_first(dims=[1, -8, 3])),
        "W has a shape or offset that is not a list of integers",
    ),
    "fewer bytes": (spoiled(of_first(raw_data=b"1234")), "W has 4 bytes, expected .* for float32"),
    "text for numbers": (spoiled(of_first(data_type=8)), "W has data type 8"),
    "a name twice": (spoiled(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "'W' twice"),
    "an output twice": (spoiled(lambda m: m.graph.node.append(m.graph.node[0])), "which already exists"),
    "out of order": (
        spoiled(lambda m: m.graph.node[0].input.__setitem__(0, "z")),
        "uses 'z', which no earlier node",
    ),
    "no opset": (spoiled(lambda m: m.ClearField("opset_import")), r"has opset \[\]"),
    "an opset to come": (spoiled(lambda m: setattr(m.opset_import[0], "version", 9999)), r"opset \[9999\]"),
    "a circle": (
        spoiled(lambda m: m.graph.node[0].input.__setitem__(0, "Y")),
        "uses 'Y', which no earlier node computes",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_models(kind: str, tmp_path: Any) -> None:
    data, message = HOSTILE[kind]
    with pytest.raises(xplstm.FormatError, match=message) as error:
        load(data, tmp_path)
    assert str(error.value).startswith(str(tmp_path / "model.onnx"))


def test_prepare_opens_no_other_file() -> None:
    with pytest.raises(xplstm.FormatError, match="W is in another file"):
        ours.prepare(HOSTILE["external data"][0])


@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_are_refused_or_loaded(seed: int, tmp_path: Any) -> None:
    rng = np.random.default_rng(seed)
    lstm = xplstm.LSTM(I, H, 2, bidirectional=True, variant=Variant(peepholes=True, gate_clip=0.5))
    whole = ours.export(lstm).SerializeToString()
    path = tmp_path / "model.onnx"
    for _ in range(25):
        changed = bytearray(whole)
        for place in rng.integers(len(changed), size=rng.integers(1, 6)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(xplstm.FormatError, xplstm.ArgumentError):
            xplstm.io.inspect(path)
            assert isinstance(xplstm.io.load(path), xplstm.LSTM)
        with contextlib.suppress(xplstm.XplstmError):
            ours.prepare(path)
