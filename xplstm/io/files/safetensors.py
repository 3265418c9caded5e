"""Read and write safetensors files: header length in eight bytes, JSON header, tensors.

The package safetensors is not used, since its NumPy interface does not support bfloat16.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._errors import FormatError
from xplstm._typing import Array
from xplstm.io._contents import Contents, Opening, Tensor, by_name, json_object, show
from xplstm.io._foreign import refuse_irregular
from xplstm.io._written import serialise
from xplstm.io.files import buffers
from xplstm.nn._module import Recurrent

SUFFIXES = (".safetensors",)
LAYOUT = "torch"

# Bound of the format.
LONGEST_HEADER = 100_000_000
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F6_E2M3": "float6_e2m3",
    "F6_E3M2": "float6_e3m2",
    "F4": "float4_e2m1",
}


def recognises(opening: Opening) -> bool:
    """Return whether a file starts with a header length and JSON, or its name ends in .safetensors."""
    return opening.head[8:9] == b"{" or opening.path.lower().endswith(SUFFIXES)


def read(path: str) -> Contents:
    """Return tensors as views of the memory-mapped file."""
    refuse_irregular(path)
    length = os.path.getsize(path)
    with open(path, "rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        if length < 8 or header_length > min(length - 8, LONGEST_HEADER):
            msg = f"{path} has {length} bytes, but a header length of {header_length}"
            raise FormatError(msg)
        header = json_object(f"{path}: its header", file.read(header_length), once=True)
    start = 8 + header_length
    metadata = _metadata(path, header.pop("__metadata__", None))
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    _check_places(path, [(name, *entry[2:]) for name, entry in entries.items()], length - start)
    data = np.memmap(path, dtype=np.uint8, mode="r") if entries else np.zeros(0, np.uint8)

    def tensor(name: str, dtype: str, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        raw = data[start + low : start + high]
        return Tensor(shape, dtype, partial(buffers.as_array, path, name, raw, dtype, shape))

    tensors = ((name, tensor(name, *entry)) for name, entry in entries.items())
    return Contents(path, "safetensors", by_name(path, tensors), metadata)


def encode(network: Recurrent, layout: str, prefix: str) -> bytes:
    """Return the bytes of a file with the parameters of `network`."""
    return pack(*serialise(network, layout, prefix))


def pack(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a file with `arrays`; the widest dtypes come first, which aligns all tensors."""
    hosts: dict[str, np.ndarray] = {name: _array.native(_array.to_numpy(a)) for name, a in arrays.items()}
    names = sorted(hosts, key=lambda name: (-hosts[name].dtype.itemsize, name))
    codes = {ours: theirs for theirs, ours in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in names:
        a = hosts[name]
        header[name] = {
            "dtype": codes[_array.dtype_name(a.dtype)],
            "shape": list(a.shape),
            "data_offsets": [place, place + a.nbytes],
        }
        place += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(hosts[name].tobytes() for name in names)])


def _metadata(path: str, given: Any) -> dict[str, Any]:
    """Check that the metadata is a mapping from str to str."""
    if given is None:  # MLX writes null
        return {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        msg = f"{path} has metadata that is not an object with text values"
        raise FormatError(msg)
    return given


def _entry(path: str, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape and byte range of one tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        msg = f"{path}: {show(name)} must have exactly the keys dtype, shape and data_offsets"
        raise FormatError(msg)
    code, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        msg = f"{path}: {show(name)} has an unknown dtype, {ascii(code)[:40]}"
        raise FormatError(msg)
    needed = buffers.size(path, name, DTYPES[code], shape)
    buffers.check_numbers(path, name, place)
    if len(place) != 2 or place[1] - place[0] != needed:
        msg = f"{path}: {show(name)}, {code} of shape {shape}, needs {needed} bytes; its offsets are {place}"
        raise FormatError(msg)
    return DTYPES[code], tuple(shape), place[0], place[1]


def _check_places(path: str, places: Iterable[tuple[str, int, int]], length: int) -> None:
    """Check that the tensors fill the data without gaps or overlaps."""
    end = 0
    for name, low, high in sorted(places, key=lambda place: place[1:]):
        if low != end:
            what = "overlaps another tensor" if low < end else "leaves a gap before it"
            msg = f"{path}: {show(name)} begins at byte {low} and {what}, expected byte {end}"
            raise FormatError(msg)
        end = high
    if end != length:
        msg = f"{path} has {length} bytes of tensors, expected {end} from its header"
        raise FormatError(msg)
