"""The formats: kinds of files, and layouts of an LSTM in one. Each is imported when it is first used.

A *file* is a container, recognised by its bytes. Its module has

``SUFFIXES: tuple[str, ...]``
    How such a file's name ends; `save` goes by it.
``LAYOUT: str``
    The layout that `save` writes when the caller names none; a key of `LAYOUTS`.
``recognises(opening: Opening) -> bool``
    By the first bytes, and the names in the archive if it is a zip file.
``read(path: str) -> Contents``
    Everything by name. Tensors are read when asked for. Whatever is wrong is a `FormatError` that begins with
    the path; memory stays within a small multiple of the file's size; nothing in it is executed.
``encode(network: LSTM | RNN | JordanRNN, layout: str, prefix: str) -> bytes``
    The whole file; `save` puts it in its place durably. `ArgumentError` for what it has no place for.

A *layout* says which names, axes and order of gates. It is a module, or an object in one, and has

``find(contents: Contents) -> list[Found]``
    Every network whose names are there; one whose shapes do not fit has `Found.problem`.
``to_mapping(network: LSTM | RNN | JordanRNN) -> dict[str, Array]``
    The arrays by their names there; `ArgumentError` for what it has no place for.
``STATE: tuple[str, str]``
    ``("h", "c")`` or ``("c", "h")``: the order of a state.
``SURE: bool``
    Whether its names alone distinguish it. Else a caller must name it, unless `Contents.layout`
    does: the same names could mean another order of gates.

One module may be both. A new format is a module and a row here.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

FILES = {
    "safetensors": "xplstm.io.files.safetensors",
    "npz": "xplstm.io.files.npz",
    "pt": "xplstm.io.files.pt",
    "eqx": "xplstm.io.files.eqx",
    "keras": "xplstm.io.files.keras",
    "onnx": "xplstm.io.onnx",
}

# A module, or an object after a colon in a module.
LAYOUTS = {
    "torch": "xplstm.io.layouts.torch",
    "flax": "xplstm.io.layouts.single:FLAX",
    "nnx": "xplstm.io.layouts.single:NNX",
    "nnx_optimized": "xplstm.io.layouts.single:NNX_OPTIMIZED",
    "equinox": "xplstm.io.layouts.single:EQUINOX",
    "mlx": "xplstm.io.layouts.single:MLX",
    "haste": "xplstm.io.layouts.single:HASTE",
    "chainer": "xplstm.io.layouts.chainer",
    "allennlp": "xplstm.io.layouts.single:ALLENNLP",
    "mxnet": "xplstm.io.layouts.single:MXNET",
    "tensorflow": "xplstm.io.layouts.concatenated:TENSORFLOW",
    "tensorflow_cudnn": "xplstm.io.layouts.concatenated:TENSORFLOW_CUDNN",
    "elmo": "xplstm.io.layouts.concatenated:ELMO",
    "haiku": "xplstm.io.layouts.concatenated:HAIKU",
    "keras": "xplstm.io.layouts.keras",
    "onnx": "xplstm.io.onnx",
    "joined": "xplstm.io.layouts.documents:JOINED",
    "parted": "xplstm.io.layouts.documents:PARTED",
}


@cache
def file_format(name: str) -> Any:
    """Return the module of a file format, imported at the first call."""
    return importlib.import_module(FILES[name])


@cache
def layout(name: str) -> Any:
    """Return the module or object of a layout, imported at the first call."""
    module, _, attribute = LAYOUTS[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
