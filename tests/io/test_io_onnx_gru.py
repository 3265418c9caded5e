"""Check the ONNX operator GRU: run, load and export, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io
from xplstm.io import onnx as ours

onnx = pytest.importorskip("onnx")
make, FLOAT = onnx.helper, onnx.TensorProto.FLOAT

T, B, I, H = 6, 4, 3, 5
SIDES = {"forward": 1, "reverse": 1, "bidirectional": 2}


def session_of(model: Any) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def gru_model(seed: int, direction: str, **attributes: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Return a model of a node with constant parameters, whose other inputs are model inputs."""
    rng, D = np.random.default_rng(seed), SIDES[direction]
    shapes = {"W": (D, 3 * H, I), "R": (D, 3 * H, H)} | ({"B": (D, 6 * H)} if rng.integers(2) else {})
    kept = {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    feed: dict[str, np.ndarray] = {"X": rng.normal(size=(T, B, I)).astype("float32")}
    if rng.integers(2):
        feed["sequence_lens"] = rng.integers(1, T + 1, size=B).astype("int32")
    if rng.integers(2):
        feed["initial_h"] = rng.normal(size=(D, B, H)).astype("float32")
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    names = [name if name in kept or name in feed else "" for name in order]
    attributes |= {"direction": direction, "hidden_size": H}
    node = make.make_node("GRU", names, ["Y", "Y_h"], "the_gru", **attributes)
    inputs = [
        make.make_tensor_value_info(n, make.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feed.items()
    ]
    outputs = [make.make_tensor_value_info(name, FLOAT, None) for name in ("Y", "Y_h")]
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in kept.items()]
    graph = make.make_graph([node], "gru", inputs, outputs, tensors)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), feed


@pytest.mark.parametrize("direction", SIDES)
@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_a_node_is_run_and_read(direction: str, linear: int, seed: int, tmp_path: Path) -> None:
    model, feed = gru_model(seed, direction, linear_before_reset=linear)
    wanted = session_of(model).run(None, feed)
    for got, want in zip(ours.prepare(model).run(feed), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    onnx.save(model, tmp_path / "gru.onnx")
    net = xplstm.io.load(tmp_path / "gru.onnx")
    assert isinstance(net, xplstm.GRU)
    assert net.reverse == (direction == "reverse")
    y, h_n = net(feed["X"], feed.get("initial_h"), lengths=feed.get("sequence_lens"))
    np.testing.assert_allclose(y, wanted[0].transpose(0, 2, 1, 3).reshape(y.shape), rtol=0, atol=1e-6)
    np.testing.assert_allclose(h_n, wanted[1], rtol=0, atol=1e-6)


def test_every_library(xp: Any) -> None:
    model, feed = gru_model(1, "bidirectional", linear_before_reset=1)
    model_here = ours.prepare(model, xp=xp.xp)
    found = model_here.run({n: a if n == "sequence_lens" else xp.asarray(a) for n, a in feed.items()})
    for got, want in zip(found, ours.prepare(model).run(feed), strict=True):
        np.testing.assert_allclose(xplstm._array.to_numpy(got), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_exports_run_and_come_back(reset_after: bool, both: bool, batch_first: bool, tmp_path: Path) -> None:
    net = xplstm.GRU(
        I, H, 2, bidirectional=both, batch_first=batch_first, reset_after=reset_after, rng=1, bias=not both
    )
    model = ours.export(net, tmp_path / "gru.onnx")
    onnx.checker.check_model(model, full_check=True)
    rng = np.random.default_rng(0)
    shape = (B, T, I) if batch_first else (T, B, I)
    x, lengths = rng.normal(size=shape).astype("float32"), np.asarray([6, 0, 2, 4], "int32")
    h_0 = rng.normal(size=(4 if both else 2, B, H)).astype("float32")
    session, prepared = session_of(model), ours.prepare(model)
    for feed in ({"x": x}, {"x": x, "lengths": lengths}, {"x": x, "lengths": lengths, "h_0": h_0}):
        wanted = net(x, feed.get("h_0"), lengths=feed.get("lengths"))
        for found in (session.run(None, feed), prepared.run(feed)):
            for got, want in zip(found, wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    again = xplstm.io.load(tmp_path / "gru.onnx")
    assert repr(again) == repr(net)
    assert all(np.array_equal(again.params[name], a) for name, a in net.params.items())


@pytest.mark.parametrize("attributes", [{"clip": 0.5}, {"activations": ["HardSigmoid", "Tanh"]}])
def test_another_gru_is_refused(attributes: dict[str, Any], tmp_path: Path) -> None:
    model, _ = gru_model(0, "forward", **attributes)
    onnx.save(model, tmp_path / "gru.onnx")
    with pytest.raises(xplstm.FormatError, match="expected Sigmoid and Tanh and no clip for a GRU"):
        xplstm.io.load(tmp_path / "gru.onnx")
    with pytest.raises(xplstm.ArgumentError, match=r"GRU node 'the_gru': .* expected Sigmoid"):
        ours.prepare(model)


@pytest.mark.filterwarnings("ignore")  # the exporter names its successor
def test_an_export_of_torch(tmp_path: Path, torch) -> None:
    torch.manual_seed(0)
    theirs, x = torch.nn.GRU(I, H, 2, bidirectional=True, batch_first=True).eval(), torch.randn(B, T, I)
    torch.onnx.export(theirs, (x,), str(tmp_path / "gru.onnx"), dynamo=False, opset_version=17)
    net = xplstm.io.load(tmp_path / "gru.onnx")
    assert repr(net) == repr(xplstm.GRU(I, H, 2, bidirectional=True, batch_first=True))
    np.testing.assert_allclose(net(x.numpy())[0], theirs(x)[0].detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_a_sum_of_directions_is_not_read(kind: str, tmp_path: Path) -> None:
    """The network returns both directions, and another layer that reads the sum is another network."""
    gates, node, rng = (3 if kind == "GRU" else 1), onnx.helper.make_node, np.random.default_rng(0)
    nodes, kept = [], {}
    for k, size in enumerate((I, H)):
        kept |= {f"W{k}": rng.normal(size=(2, gates * H, size)), f"R{k}": rng.normal(size=(2, gates * H, H))}
        given = [f"x{k}", f"W{k}", f"R{k}"]
        nodes += [node(kind, given, [f"Y{k}"], f"net{k}", direction="bidirectional", hidden_size=H)]
        nodes += [node("Split", [f"Y{k}"], [f"f{k}", f"b{k}"], axis=1, num_outputs=2)]
        nodes += [
            node("Add", [f"f{k}", f"b{k}"], [f"s{k}"]),
            node("Squeeze", [f"s{k}", "axes"], [f"x{k + 1}"]),
        ]
    tensors = [onnx.numpy_helper.from_array(a.astype("f4"), name) for name, a in kept.items()]
    tensors.append(onnx.numpy_helper.from_array(np.asarray([1]), "axes"))
    infos = [onnx.helper.make_tensor_value_info(n, 1, ["T", "B", s]) for n, s in (("x0", I), ("x2", H))]
    graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "m.onnx")
    first, second = (xplstm.io.load(tmp_path / "m.onnx", prefix=f"net{k}", batch_first=False) for k in (0, 1))
    x = rng.normal(size=(T, B, I)).astype("f4")
    (wanted,) = ours.prepare(model).run([x])
    inner = first(x)[0].reshape(T, B, 2, H).sum(axis=2)
    np.testing.assert_allclose(second(inner)[0].reshape(T, B, 2, H).sum(axis=2), wanted, rtol=0, atol=1e-5)


def test_arrays_cannot_tell_a_gru() -> None:
    with pytest.raises(xplstm.ArgumentError, match="is a GRU, and its arrays do not show"):
        xplstm.io.to_mapping(xplstm.GRU(I, H), "onnx")
    with pytest.raises(xplstm.ArgumentError, match="linear_before_reset= is not an attribute of LSTM"):
        ours.lstm_vjp(np.ones((2, 1, 3)), np.ones((1, 8, 3)), np.ones((1, 8, 2)), linear_before_reset=1)


def test_a_model_beyond_the_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xplstm.io.onnx._export.LARGEST", 1000)
    ours.export(xplstm.GRU(I, 2))
    with pytest.raises(xplstm.ArgumentError, match=r"R_l0 have \d+ bytes; .*; save the parameters as .safe"):
        ours.export(xplstm.GRU(I, 8))
