"""Files of weights to load, to break and to fuzz: small, whole, of every kind that needs no other library."""

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
ALL_SUFFIXES = (*SUFFIXES, ".weights.h5", ".keras", ".onnx", ".index.json")


def lstm(**options):
    """An LSTM in which no two gates, layers or directions are alike."""
    arguments = {"hidden_size": 5, "num_layers": 2, "bidirectional": True, "rng": 7} | options
    return xplstm.LSTM(3, **arguments)


@cache
def whole() -> dict[str, bytes]:
    """Name -> bytes of a whole file of every kind."""
    with tempfile.TemporaryDirectory() as folder:
        return write_all(Path(folder))


def write_all(folder: Path) -> dict[str, bytes]:
    """Write the files, and give their bytes."""
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
    """Name -> bytes of more kinds: those that need h5py or onnx, a checkpoint of training, and an index."""
    found = {"whole.keras": keras(), "whole.index.json": INDEX.encode()}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("whole.weights.h5", "whole.onnx", "gru.safetensors", "gru.weights.h5"):
            path = Path(folder) / name
            io.save(path, xplstm.GRU(3, 5, rng=7) if name.startswith("gru") else lstm(bidirectional=False))
            found[name] = path.read_bytes()
        params = {name: np.asarray(a) for name, a in lstm(num_layers=1).params.items()}
        history = training.History([0.5], [(1, 0.25)])
        point = training.Checkpoint(1, 0, 1, params, {"step": 1}, None, None, history, None, {"note": 1})
        path = Path(folder) / "checkpoint.safetensors"
        training.save_checkpoint(path, point)
        found[path.name] = path.read_bytes()
    return found


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
    """Member -> bytes of a model of one LSTM."""
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
    """A whole model of Keras."""
    content = bytesio.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in keras_parts().items():
            file.writestr(name, data)
    return content.getvalue()
