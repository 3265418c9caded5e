"""Check the sources of `load` other than paths and mappings, and its messages for files without weights."""

from __future__ import annotations

import importlib.util
import io as bytesio
import operator
import os
import tarfile
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import xplstm
from tests.support import weightfiles
from xplstm import io
from xplstm._errors import ArgumentError, FormatError
from xplstm.io.onnx import export


@pytest.mark.parametrize("name", [f"whole{suffix}" for suffix in weightfiles.SUFFIXES])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, bytesio.BytesIO])
def test_bytes_and_open_files_load(name, kind):
    content = weightfiles.whole()[name]
    found = io.load(kind(content))
    for parameter, a in weightfiles.lstm().params.items():
        np.testing.assert_array_equal(found.params[parameter], a)
    assert io.arrays(kind(content)).keys() == {f"encoder.{parameter}" for parameter in found.params}
    assert str(io.inspect(kind(content))).startswith(f"the {kind.__name__}: ")


def test_a_model_of_onnx_in_bytes_loads():
    pytest.importorskip("onnx")
    lstm = xplstm.LSTM(3, 2, rng=0)
    content = export(lstm).SerializeToString()
    for found in (io.load(content), io.load(bytesio.BytesIO(content))):
        np.testing.assert_array_equal(found.params["weight_hh_l0"], lstm.params["weight_hh_l0"])
    with pytest.raises(FormatError, match=r"^the bytes is not an ONNX model"):
        io.load(content[:60])


def test_an_error_about_bytes_names_no_temporary_file(tmp_path):
    with pytest.raises(FormatError, match=r"^the bytes has none of the formats"):
        io.load(b"hello there")
    with pytest.raises(ArgumentError, match="mode 'rb'"):
        io.load(bytesio.StringIO("hello"))
    path = tmp_path / "weights.npz"
    path.write_bytes(weightfiles.whole()["whole.npz"][:-30])
    with path.open("rb") as file, pytest.raises(FormatError, match=r"^the open file is a damaged zip"):
        io.load(file)


def test_a_module_of_torch_loads_with_its_options(torch):
    torch.manual_seed(1)
    model = torch.nn.Module()
    model.encoder = torch.nn.LSTM(3, 5, 2, batch_first=True, dropout=0.25)
    model.simple = torch.nn.RNN(3, 5, nonlinearity="relu")
    lstm = io.load(model, prefix="encoder")
    assert repr(lstm) == "LSTM(3, 5, num_layers=2, batch_first=True, dropout=0.25)"
    x = torch.randn(2, 6, 3)
    want = model.encoder.eval()(x)[0].detach().numpy()
    np.testing.assert_allclose(lstm(x.numpy())[0], want, rtol=0, atol=1e-6)
    rnn = io.load(model, prefix="simple")
    x = torch.randn(6, 2, 3)
    np.testing.assert_allclose(rnn(x.numpy())[0], model.simple(x)[0].detach().numpy(), rtol=0, atol=1e-6)


def test_a_train_state_gives_its_params():
    class State(NamedTuple):
        step: int
        params: dict

    state = State(3, {"cell": io.to_mapping(xplstm.LSTM(3, 2, rng=0), "flax")})
    assert repr(io.load(state)) == "LSTM(3, 2, num_layers=1)"


def test_masked_arrays_in_a_mapping_are_refused_by_name():
    params = xplstm.LSTM(3, 2, rng=0).params
    params["bias_hh_l0"] = np.ma.masked_less(params["bias_hh_l0"], 0)
    for load in (io.load, io.arrays):
        with pytest.raises(xplstm.DTypeError, match="bias_hh_l0 is a masked array"):
            load(params)


class _Averaged(NamedTuple):
    params: dict
    ema_params: dict


@pytest.mark.parametrize("kind", [_Averaged, SimpleNamespace])
def test_a_train_state_with_two_sets_of_parameters_is_refused(kind):
    theirs = {"cell": io.to_mapping(xplstm.LSTM(3, 2, rng=0), "flax")}
    state = kind(params=theirs, ema_params=theirs)
    with pytest.raises(xplstm.ArgumentError, match=r"params and ema_params, .* source.params or source.ema_"):
        io.load(state)
    assert repr(io.load(state.ema_params)) == "LSTM(3, 2, num_layers=1)"


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell"])
def test_a_module_of_nnx_loads(kind):
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

    class Model(nnx.Module):
        def __init__(self):
            self.cell = getattr(nnx, kind)(3, 5, rngs=nnx.Rngs(0))

    model = Model()
    x = np.random.default_rng(0).standard_normal((1, 2, 3)).astype("float32")
    carry = (np.zeros((2, 5), "float32"), np.zeros((2, 5), "float32"))
    want = model.cell(carry, x[0])[1]
    np.testing.assert_allclose(io.load(model)(x)[0][0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell"])
def test_a_module_of_nnx_says_what_its_weights_do_not(kind):
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    nn = pytest.importorskip("flax.linen", reason="flax is not installed")

    def cell(**options):
        return getattr(nnx, kind)(3, 5, rngs=nnx.Rngs(0), **options)

    for name, function in (("gate_fn", nn.hard_sigmoid), ("activation_fn", nn.relu)):
        odd = cell(**{name: function})
        with pytest.raises(FormatError, match=f"{name}={function.__name__}, expected"):
            io.load(odd)
        assert f"{name}={function.__name__}" in str(io.inspect(odd))
        assert io.load(nnx.to_pure_dict(nnx.state(odd, nnx.Param)))._stack.hidden_size == 5
    with pytest.raises(FormatError, match="gate_fn=sigmoid, expected sigmoid of jax"):
        io.load(cell(gate_fn=sigmoid))
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype("float32")
    back = nnx.RNN(cell(), reverse=True)
    with pytest.raises(ArgumentError, match="in reverse order of time; pass reverse=True"):
        io.load(back)
    np.testing.assert_allclose(io.load(back, reverse=True)(x)[0][:, ::-1], back(x), rtol=0, atol=1e-6)
    back = nnx.RNN(cell(), reverse=True, keep_order=True)
    np.testing.assert_allclose(io.load(back)(x)[0], back(x), rtol=0, atol=1e-6)
    with pytest.raises(ArgumentError, match="reverse': True} contradicts"):
        io.load(nnx.RNN(cell()), reverse=True)
    for time_major in (False, True):
        rnn = nnx.RNN(cell(), time_major=time_major)
        assert io.load(rnn)._stack.batch_first == (not time_major)
    both = nnx.Bidirectional(nnx.RNN(cell()), nnx.RNN(cell()))
    sides = [("forward_rnn.cell", "backward_rnn.cell")]
    np.testing.assert_allclose(io.load(both, prefix=sides)(x)[0], both(x), rtol=0, atol=1e-6)
    both = nnx.Bidirectional(nnx.RNN(cell()), nnx.RNN(cell()), time_major=True)
    np.testing.assert_allclose(io.load(both, prefix=sides)(x)[0], both(x), rtol=0, atol=1e-6)
    both = nnx.Bidirectional(nnx.RNN(cell()), nnx.RNN(cell()), merge_fn=operator.add)
    with pytest.raises(FormatError, match="merge_fn=add, expected _concatenate of flax"):
        io.load(both, prefix=sides)


def sigmoid(x):
    """Function of another library with the name of a JAX function."""
    return x > 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_that_cannot_be_read_is_named(torch, tmp_path):
    weights = torch.nn.LSTM(3, 5).state_dict()
    nested = torch.nested.nested_tensor([torch.randn(20, 5)])
    with pytest.raises(FormatError, match="weight_hh_l0 is nested, which cannot be read"):
        io.load(weights | {"weight_hh_l0": nested})
    torch.save({name: a.to_sparse() for name, a in weights.items()}, tmp_path / "one.pt")
    with pytest.raises(FormatError, match=r"one\.pt: weight_ih_l0 is a sparse tensor, which cannot be read"):
        io.load(tmp_path / "one.pt")
    assert io.load({"lstm": weights, "other": nested})._stack.hidden_size == 5
    with pytest.raises(FormatError, match="other is nested, which cannot be read"):
        io.arrays({"other": nested})
    torch.save(weights | {"weight_hh_l0": torch._neg_view(weights["weight_hh_l0"])}, tmp_path / "one.pt")
    with pytest.raises(FormatError, match=r"one\.pt: weight_hh_l0 is a conjugated or negated view, which"):
        io.load(tmp_path / "one.pt")


def test_an_option_that_does_not_exist_is_named():
    for kind, theirs in ((xplstm.LSTM, "LSTM"), (xplstm.GRU, "GRU")):
        network = kind(3, 5, rng=0)
        for name in ("foo", "rng"):
            words = f"{name}= is not an option of {theirs}, expected one of input_size, "
            with pytest.raises(ArgumentError, match=words):
                io.load(network.params, **{name: 3})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(tmp_path):
    """Opening a pipe without a writer would never return."""
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    calls = [io.load, io.inspect, io.arrays, io.load_model, xplstm.training.load_checkpoint]
    if importlib.util.find_spec("onnx"):
        calls.append(importlib.import_module("xplstm.io.onnx").prepare)
    for call in calls:
        with pytest.raises(FormatError, match=r"pipe.safetensors is a pipe, socket or device, expected"):
            call(path)


def test_one_lstm_under_two_names_has_its_options_under_both(torch):
    inner = torch.nn.LSTM(3, 5, batch_first=True)
    model = torch.nn.ModuleDict({"a": inner, "b": inner})
    for prefix in "ab":
        assert io.load(model, prefix=prefix)._stack.batch_first


def test_an_option_that_contradicts_a_module_is_refused(torch):
    relu = torch.nn.RNN(3, 5, nonlinearity="relu")
    with pytest.raises(ArgumentError, match="nonlinearity='relu', which nonlinearity='tanh' contradicts"):
        io.load(relu, nonlinearity="tanh")
    # The order of the axes changes no number.
    assert io.load(relu, nonlinearity="relu", batch_first=True).batch_first


def test_tensors_of_pytorch_that_show_other_numbers_than_they_store(torch):
    lstm = torch.nn.LSTM(3, 5)
    negated = {name: torch._neg_view(a.detach()) for name, a in lstm.named_parameters()}
    for name, a in io.load(negated).params.items():
        np.testing.assert_array_equal(a, -getattr(lstm, name).detach().numpy())
    with pytest.raises(FormatError, match="weight_ih_l0 is on the meta device, which cannot be read"):
        io.load(torch.nn.LSTM(3, 5, device="meta"))
    sparse = {name: a.detach().to_sparse() for name, a in lstm.named_parameters()}
    with pytest.raises(
        FormatError, match=r"weight_ih_l0 is of layout torch.sparse_coo, which cannot be read"
    ):
        io.load(sparse)


def test_a_module_of_equinox_loads(jax):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")

    class Model(eqx.Module):
        cell: eqx.nn.LSTMCell
        heads: list

    key = jax.random.key(0)
    model = Model(eqx.nn.LSTMCell(3, 5, key=key), [eqx.nn.Linear(5, 2, key=key)])
    x = np.random.default_rng(0).standard_normal((1, 1, 3)).astype(model.cell.weight_ih.dtype)
    h, _ = model.cell(x[0, 0], (np.zeros(5, x.dtype), np.zeros(5, x.dtype)))
    found = io.load(model, prefix="cell")
    np.testing.assert_allclose(found(x)[0][0, 0], h, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(io.arrays(model, "heads.0")["weight"], model.heads[0].weight)


def test_what_is_no_source_is_refused():
    for given in (3, [1], xplstm.LSTM(3, 2)):
        with pytest.raises(ArgumentError, match="source must be a path"):
            io.load(given)


def tar():
    content = bytesio.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.ckpt"))
    return content.getvalue()


FOREIGN = {
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "page.onnx": (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "a web page"),
    "model.xml": (b'<?xml version="1.0"?>\n<net name="a" version="11">', "OpenVINO"),
    "saved_model.pb": (b"\x08\x01\x12\xa2\x02" + bytes(99), "a SavedModel"),
    "empty.pt": (b"", "empty"),
    "model.nemo": (tar(), "tar -xf"),
    "model.gguf": (b"GGUF\x03\0\0\0" + bytes(99), "GGUF"),
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "TFLite"),
    "model.ort": (b"\x1c\0\0\0ORTM" + bytes(99), "ONNX Runtime"),
    "weights.npz": (b"\x1f\x8b\x08\0" + bytes(99), "gunzip -c FILE > COPY"),
    "model.msgpack": (b"\x82\xa6params" + bytes(99), "msgpack"),
    "model.eqx": (b"\x93NUMPY\x01\0" + bytes(99), "array 0 is not a valid NumPy array"),
    "weights.pkl": (b"\x80\x04}.", "a pickle that PyTorch did not write"),
    "config.json": (b"{}" + bytes(9), "JSON"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_called_what_it_is(name, tmp_path):
    content, words = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(content)
    for call in (io.load, io.inspect, io.arrays):
        with pytest.raises(FormatError, match=words) as raised:
            call(path)
        assert str(raised.value).startswith(str(path))


FOLDERS = {
    "saved_model.pb": "a SavedModel",
    ".metadata": "dcp_to_torch",
    "_CHECKPOINT_METADATA": "a checkpoint of Orbax",
    "model.weights.h5": "load model.weights.h5",
    "other": "name a file in it$",
    "a.bin": "name a file in it, such as 'a.bin'",
    "b.index.json": "name a file in it, such as 'b.index.json'",
    "\x1b.pt": r"such as '\\x1b.pt'",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_called_what_it_is(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FormatError, match=FOLDERS[name]):
        io.load(tmp_path)
