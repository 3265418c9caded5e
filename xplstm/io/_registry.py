"""Tables of the file formats and of the layouts of a network; modules are imported on first use.

A *file format* is a container, recognised by its first bytes. Its module has

``SUFFIXES: tuple[str, ...]``
    File name endings, by which `save` selects the format.
``LAYOUT: str``
    Default layout of `save`, a key of `LAYOUTS`.
``recognises(opening: Opening) -> bool``
    Return whether a file has this format, from its first bytes and its archive members.
``read(path: str) -> Contents``
    Return the contents by name; tensors are read on demand. All errors are `FormatError` and start with the
    path. Memory is bounded by a small multiple of the file size. Code in the file is never executed.
``encode(network: LSTM | RNN | JordanRNN, layout: str, prefix: str) -> bytes``
    Return the bytes of a file, which `save` writes durably. Raise `ArgumentError` for unsupported options.

A *layout* defines names, axes and gate order. It is a module, or an object in a module, and has

``find(contents: Contents) -> list[Found]``
    Return all networks with these names. A network whose shapes do not fit has a `Found.problem`.
``to_mapping(network: LSTM | RNN | JordanRNN) -> dict[str, Array]``
    Return the arrays by the names of the layout. Raise `ArgumentError` for unsupported options.
``STATE: tuple[str, str]``
    Order of a state, ``("h", "c")`` or ``("c", "h")``.
``SURE: bool``
    Whether the names identify the layout. If not, the same names could mean another gate order, and
    the caller or `Contents.layout` must name the layout.

One module may be both. A new format needs a module and a row in these tables.
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

# A module, or a module and an object, separated by a colon.
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


# File formats whose files can have one layout only, and file formats without bfloat16.
ONE_LAYOUT, NO_BFLOAT16 = ("eqx", "keras", "onnx"), ("npz", "eqx", "keras")


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
