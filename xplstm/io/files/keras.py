"""Read and write Keras files without Keras.

Keras 3 writes models (``.keras``) and weights (``.weights.h5``). Keras 2 writes both as HDF5 (``.h5``,
``.hdf5``), which Keras 3 can also write. The configuration of a model is read as data. Classes and functions
in it are never imported.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any

from xplstm import _array
from xplstm._errors import FormatError
from xplstm.io import layers
from xplstm.io._contents import Contents, Opening, by_name, json_object, quote
from xplstm.io._written import WORDS, plain, words_for
from xplstm.io.files import h5
from xplstm.io.files.archive import Archive
from xplstm.io.layouts import keras_config
from xplstm.io.layouts.keras import NUMBERED
from xplstm.io.layouts.keras_layers import SIDES
from xplstm.nn import _module

SUFFIXES = (".weights.h5",)
_HDF5 = (".h5", ".hdf5")
_VARIABLE = re.compile(r"(^|/)(vars/\d+|recurrent_kernel(:0)?)$")
LAYOUT = "keras"

# A configuration has a few kilobytes for each layer.
LONGEST_CONFIG = 1 << 24
LONGEST_METADATA = 1 << 16
_WEIGHTS, _CONFIG, _METADATA = "model.weights.h5", "config.json", "metadata.json"


def recognises(opening: Opening) -> bool:
    """Return whether a file is HDF5, or an archive with an HDF5 file and a configuration."""
    archive = {_WEIGHTS, _CONFIG} <= {*opening.members} or opening.path.lower().endswith(".keras")
    return archive or opening.head.startswith(h5.SIGNATURE) or opening.path.lower().endswith(_HDF5)


def read(path: str) -> Contents:
    """Return variables by path, and the configuration of a model."""
    with open(path, "rb") as file:
        archived = file.read(2) == b"PK"
    if not archived:
        return _read_hdf5(path)
    archive = Archive(path)
    missing = sorted({_WEIGHTS, _CONFIG} - archive.members.keys())
    if missing:
        msg = f"{path} is not a Keras 3 model: it does not contain {', '.join(missing)}"
        raise FormatError(msg)
    if archive.members[_CONFIG].file_size > LONGEST_CONFIG:
        size = archive.members[_CONFIG].file_size
        msg = f"{path}: {_CONFIG} has {size} bytes; at most {LONGEST_CONFIG} are allowed"
        raise FormatError(msg)
    config = json_object(f"{path}: {_CONFIG}", archive.read(_CONFIG))
    tree = h5.read(h5.Source(path, archive.read(_WEIGHTS), os.path.getsize(path)))
    version = _version(archive)
    config = keras_config.modern(config) if version == 2 else config
    metadata = {"config": config, "names": tree.names, "version": version}
    return Contents(path, "keras", by_name(path, tree.tensors), metadata, "keras")


def _read_hdf5(path: str) -> Contents:
    """Read an HDF5 file: Keras 3 weights, or a model or weights in the Keras 2 form."""
    bounds = {"model_config": LONGEST_CONFIG, "keras_version": LONGEST_METADATA, WORDS: LONGEST_METADATA}
    tree = h5.read(h5.Source(path), bounds)
    if not tree.marks & {"layer_names", "layer_names0", "model_config"}:
        is_of_keras = any(_VARIABLE.search(name) for name, _ in tree.tensors)
        layout = "keras" if is_of_keras else None
        words = {name: text for name, text in tree.attributes.items() if name == WORDS}
        return Contents(path, "keras", by_name(path, tree.tensors), words, layout)
    tensors = ((name.removeprefix("model_weights/"), tensor) for name, tensor in tree.tensors)
    version = tree.attributes.get("keras_version")
    metadata: dict[str, Any] = {"version": version and _major(path, version), "by_layer": True}
    if "model_config" in tree.attributes:
        config = json_object(f"{path}: model_config", tree.attributes["model_config"])
        metadata |= {"config": keras_config.modern(config), "names": {}}
    return Contents(path, "keras", by_name(path, tensors), metadata, "keras")


def _version(archive: Archive) -> int | None:
    """Return the major version of Keras that wrote a model, 2 or 3; None if the archive has no version."""
    if _METADATA not in archive.members:
        return None
    metadata = json_object(f"{archive.path}: {_METADATA}", archive.read(_METADATA, LONGEST_METADATA))
    return _major(archive.path, metadata.get("keras_version"))


def _major(where: str, version: Any) -> int:
    major = re.match("[23](?=[.])", version) if isinstance(version, str) else None
    if major is None:
        msg = f"{where} was written by Keras {quote(version)}, expected version 2 or 3"
        raise FormatError(msg)
    return int(major[0])


def encode(network: _module.Recurrent, _layout: str, prefix: str) -> bytes:
    """Return the bytes of a Keras weights file."""
    content = io.BytesIO()
    with h5.import_h5py().File(content, "w") as file:
        row = NUMBERED.row_of(network)
        reset_after = network._stack.cell.options().get("reset_after", True)
        parted = layers.split(plain(network, "keras", row.kind))
        kind = row.kind.lower() if len(parted[0]) == 1 else "bidirectional"
        first = ".".join(filter(None, [prefix, "layers", kind]))
        file.attrs.update(words_for(network, "keras", first + ("*" if len(parted) > 1 else ""), apart=False))
        for number, directions in enumerate(parted):
            place = first.replace(".", "/") + (f"_{number}" if number else "")
            sides = ("",) if len(directions) == 1 else tuple(f"/{side}" for side in SIDES)
            for side, params in zip(sides, directions, strict=True):
                for name, a in row.write(params, reset_after).items():
                    file[f"{place}{side}/{name.replace('.', '/')}"] = _array.to_numpy(a)
    return content.getvalue()
