"""Generate small valid weight files of every kind, for tests that load, damage or fuzz them."""

from __future__ import annotations

import io as bytesio
import json
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np

import xplstm
from xplstm import io, training

SUFFIXES = (".safetensors", ".npz", ".pt")
ALL_SUFFIXES = (*SUFFIXES, ".weights.h5", ".keras", ".onnx", ".eqx", ".index.json")


def lstm(**options):
    """Return an LSTM with distinct weights for each gate, layer and direction."""
    arguments = {"hidden_size": 5, "num_layers": 2, "bidirectional": True, "rng": 7} | options
    return xplstm.LSTM(3, **arguments)


@cache
def whole() -> dict[str, bytes]:
    """Return the bytes of a valid file of every kind, by name."""
    with tempfile.TemporaryDirectory() as folder:
        return write_all(Path(folder))


def write_all(folder: Path) -> dict[str, bytes]:
    """Write the files, and return their bytes."""
    found = {}
    for suffix in SUFFIXES:
        path = folder / f"whole{suffix}"
        io.save(path, lstm(), prefix="encoder")
        found[path.name] = path.read_bytes()
    path = folder / "variant.npz"
    io.save(path, lstm(variant=xplstm.Variant(peepholes=True, cell_clip=3.0)))
    found[path.name] = path.read_bytes()
    return found


@cache
def more() -> dict[str, bytes]:
    """Return the bytes of further kinds by name: h5py, ONNX, a training checkpoint, and an index."""
    found = {"whole.keras": keras(), "whole.index.json": INDEX.encode()}
    found["legacy.pt"] = OLD + old_tensor() + OLD_KEYS + b"\x18" + bytes(7 + 96)
    with tempfile.TemporaryDirectory() as folder:
        found["keras_2.weights.h5"] = keras_2(Path(folder))
        one_way = lstm(bidirectional=False)
        networks = {
            "whole.weights.h5": one_way,
            "whole.onnx": one_way,
            "projected.onnx": lstm(proj_size=2),
            "whole.eqx": one_way,
            "gru.eqx": xplstm.GRU(3, 5, rng=7),
            "gru.safetensors": xplstm.GRU(3, 5, rng=7),
            "gru.weights.h5": xplstm.GRU(3, 5, rng=7),
        }
        for name, network in networks.items():
            path = Path(folder) / name
            io.save(path, network)
            found[name] = path.read_bytes()
        params = {name: np.asarray(a) for name, a in lstm(num_layers=1).params.items()}
        history = training.History([0.5], [(1, 0.25)])
        point = training.Checkpoint(1, 0, 1, params, {"step": 1}, None, None, history, None, {"note": 1})
        path = Path(folder) / "checkpoint.safetensors"
        training.save_checkpoint(path, point)
        found[path.name] = path.read_bytes()
    return found


def tensor(offset=b"K\x00", shape=b"K\x08K\x03", strides=b"K\x03K\x01", key=b"X\x01\x00\x00\x000"):
    """Return the instructions that build one tensor of a storage of 24 float32 numbers."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"X\x03\x00\x00\x00cpuK\x18tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + b"(" + shape + b"t(" + strides
    return made + b"t\x89ccollections\nOrderedDict\n)RtR"


def in_dict(value):
    return b"\x80\x02}X\x0c\x00\x00\x00weight_ih_l0" + value + b"s."


# A file from before PyTorch 1.6 starts with a magic number, a version and the system.
OLD = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"\x80\x02M\xe9\x03.\x80\x02}U\rlittle_endian\x88s."

OLD_KEYS = b"]U\x010a."


def old_tensor():
    """Return the pickle of one tensor of a storage of 24 float32 numbers, as before PyTorch 1.6."""
    return in_dict(tensor()).replace(b"K\x18tQ", b"K\x18NtQ")


def keras_2(folder: Path) -> bytes:
    """Return a complete Keras 2 model: the configuration is an attribute, and names end with ":0"."""
    import h5py

    layer = {"class_name": "LSTM", "config": CONFIG}
    with h5py.File(folder / "keras_2.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}})
        file.attrs["keras_version"] = np.bytes_("2.4.0")
        group = file.create_group("model_weights/lstm")
        for name, a in io.to_mapping(lstm(num_layers=1, bidirectional=False), "keras").items():
            group[f"lstm/lstm_cell/{name}:0"] = a
        group.attrs["weight_names"] = [
            np.bytes_(f"lstm/lstm_cell/{name}") for name in group["lstm/lstm_cell"]
        ]
    return (folder / "keras_2.h5").read_bytes()


INDEX = json.dumps({"metadata": {}, "weight_map": {"a": "a.safetensors", "b.c": ["b.safetensors"]}})
CONFIG = {
    "name": "lstm",
    "units": 5,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "go_backwards": False,
}


@cache
def keras_parts() -> dict[str, bytes]:
    """Return the archive members of a model of one LSTM, by name."""
    layer = {"module": "keras.layers", "class_name": "LSTM", "config": CONFIG}
    model = {"class_name": "Sequential", "config": {"layers": [layer]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.weights.h5"
        io.save(path, lstm(num_layers=1, bidirectional=False))
        weights = path.read_bytes()
    return {
        "config.json": json.dumps(model).encode(),
        "metadata.json": b'{"keras_version": "3.15.0"}',
        "model.weights.h5": weights,
    }


def keras() -> bytes:
    """Return a complete Keras model."""
    content = bytesio.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in keras_parts().items():
            file.writestr(name, data)
    return content.getvalue()
