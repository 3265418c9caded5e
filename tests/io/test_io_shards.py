"""Check models in several files: an index is read, and a single shard is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xplstm
from xplstm import io
from xplstm._errors import FormatError
from xplstm.io.files import safetensors

LSTM = xplstm.LSTM(3, 5, num_layers=3, rng=1)


def index(folder, name, places):
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return path


def split(count=3):
    """Return the parameters of each layer by the name of its shard."""
    names = [f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)]
    parts = [{n: a for n, a in LSTM.params.items() if n.endswith(f"_l{k}")} for k in range(count)]
    return dict(zip(names, parts, strict=True))


@pytest.fixture
def folder(tmp_path):
    for name, arrays in split().items():
        (tmp_path / name).write_bytes(safetensors.pack(arrays, {}))
    index(tmp_path, "model.safetensors.index.json", PLACES)
    return tmp_path


PLACES = {name: file for file, arrays in split().items() for name in arrays}
FIRST = "model-00001-of-00003.safetensors"


def test_an_index_of_safetensors_is_read(folder):
    path = folder / "model.safetensors.index.json"
    found = io.load(path)
    assert repr(found) == "LSTM(3, 5, num_layers=3)"
    for name, a in LSTM.params.items():
        np.testing.assert_array_equal(found.params[name], a)
    assert len(io.inspect(path).tensors) == len(io.arrays(path)) == 12


def test_an_index_of_pytorch_is_read(tmp_path, torch):
    places = {}
    for k, arrays in enumerate(split().values()):
        name = f"pytorch_model-{k + 1:05}-of-00003.bin"
        torch.save({n: torch.asarray(np.asarray(a)) for n, a in arrays.items()}, tmp_path / name)
        places |= dict.fromkeys(arrays, name)
    path = index(tmp_path, "pytorch_model.bin.index.json", places)
    np.testing.assert_array_equal(io.load(path).params["weight_hh_l2"], LSTM.params["weight_hh_l2"])
    with pytest.raises(FormatError, match=r"part 2 of 3 .* load pytorch_model\.bin\.index\.json"):
        io.load(tmp_path / "pytorch_model-00002-of-00003.bin")


def test_an_index_of_keras_is_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    ours = xplstm.LSTM(3, 5, rng=1)
    arrays = io.to_mapping(ours, "keras")
    names = ["model_00000.weights.h5", "model_00001.weights.h5"]
    with h5py.File(tmp_path / names[0], "w") as file:
        file["layers/lstm/cell/vars/0"] = arrays["kernel"]
    with h5py.File(tmp_path / names[1], "w") as file:
        file["layers/lstm/cell/vars/1"] = arrays["recurrent_kernel"]
        file["layers/lstm/cell/vars/2"] = arrays["bias"]
    path = index(tmp_path, "model.weights.json", {"/layers/lstm/cell/vars": names})
    found = io.load(path, variant=None)
    np.testing.assert_array_equal(found.params["weight_hh_l0"], ours.params["weight_hh_l0"])
    with pytest.raises(FormatError, match=r"one part of a model; load model\.weights\.json"):
        io.load(tmp_path / names[1])


@pytest.mark.parametrize("call", [io.load, io.inspect, io.arrays])
def test_a_part_alone_is_refused(call, folder):
    with pytest.raises(FormatError, match=r"is part 1 of 3 .* load model\.safetensors\.index\.json"):
        call(folder / FIRST)
    whole = folder / "model-00001-of-00001.safetensors"
    whole.write_bytes(safetensors.pack(LSTM.params, {}))
    assert len(call(whole).params if call is io.load else io.arrays(whole)) == 12


WRONG = {
    "a parent": ({"weight_ih_l0": "../secret.safetensors"}, "a file name without a folder"),
    "an absolute path": ({"weight_ih_l0": "/etc/passwd"}, "a file name without a folder"),
    "a path of windows": ({"weight_ih_l0": "C:\\a.safetensors"}, "a file name without a folder"),
    "the folder": ({"weight_ih_l0": ".."}, "a file name without a folder"),
    "a number": ({"weight_ih_l0": 3}, "a file name without a folder"),
    "a list in a list": ({"weight_ih_l0": [["a"]]}, "a file name without a folder|no weight_map"),
    "a file that is not there": ({"weight_ih_l0": "other.safetensors"}, "not in its folder"),
    "itself": ({"weight_ih_l0": "model.safetensors.index.json"}, "an index itself"),
    "a tensor that no file has": (PLACES | {"weight_ih_l9": FIRST}, "weight_ih_l9, which is not in any"),
    "a tensor in another file": (PLACES | {"weight_ih_l2": FIRST}, "the index does not list it there"),
    "a tensor that is not listed": ({"weight_ih_l0": FIRST}, "the index does not list it there"),
    "a list": ([], "no weight_map"),
    "nothing": ({}, "lists no files"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_index_is_refused(case, folder):
    places, words = WRONG[case]
    path = index(folder, "model.safetensors.index.json", places)
    with pytest.raises(FormatError, match=words) as raised:
        io.load(path)
    assert str(raised.value).startswith(str(path))


def test_an_index_that_is_no_json_is_refused(folder):
    path = folder / "model.safetensors.index.json"
    for content in (b"{", b"{" * 100_000, b'{"a":' * 100_000, b"{}", b'{"weight_map": 3}'):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"is not valid JSON|is not a JSON object|no weight_map"):
            io.load(path)


def test_a_tensor_in_two_files_is_refused(folder):
    path = index(folder, "model.safetensors.index.json", PLACES | {"a": "twice.safetensors"})
    (folder / "twice.safetensors").write_bytes(safetensors.pack({"weight_ih_l0": np.ones(3)}, {}))
    with pytest.raises(FormatError, match=r"weight_ih_l0 is in two files|the index does not list it there"):
        io.load(path)


def test_options_of_several_networks_are_not_lost(tmp_path):
    for name, options in (("a", {"coupled": True}), ("b", {"gate_clip": 1.0})):
        net = xplstm.LSTM(3, 5, variant=xplstm.Variant(**options), rng=0)
        io.save(tmp_path / f"{name}.safetensors", net, prefix=name)
    places = {
        tensor: f"{name}.safetensors"
        for name in "ab"
        for tensor in io.arrays(tmp_path / f"{name}.safetensors")
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(FormatError, match="lists files with options of different networks"):
        io.load(tmp_path / "model.safetensors.index.json", prefix="b")
