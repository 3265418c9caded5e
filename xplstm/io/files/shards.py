"""Read models in several files (shards) with a JSON index: safetensors, PyTorch and Keras.

The index maps the name of each tensor, or of each tensor group for Keras, to a file name. The files must be
in the folder of the index. A single shard is not read, since it could look like a smaller model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from xplstm._errors import FormatError
from xplstm.io._contents import Contents, Opening, Tensor, dot_name, json_object, quote, show
from xplstm.io._written import METADATA, WORDS

# An index has about a hundred bytes for each tensor.
LONGEST_INDEX = 1 << 26
MOST_SHARDS = 10_000
_INDEX = (".index.json", ".weights.json")
_SHARD = re.compile(r"(.*?)-(\d{1,6})-of-(\d{1,6})\.([\w.]+)", re.DOTALL)
_KERAS_SHARD = re.compile(r"(.*)_\d{5}\.weights\.h5", re.DOTALL)


def is_index(opening: Opening) -> bool:
    """Return whether a file has the name of an index and starts like JSON."""
    return opening.path.lower().endswith(_INDEX) and opening.head.lstrip().startswith(b"{")


def refuse_shard(path: str) -> None:
    """Raise an error if the name of a file is that of a shard."""
    folder, name = os.path.split(path)
    match = _SHARD.fullmatch(name)
    if match is not None and int(match[3]) > 1:
        index = f"{match[1]}.{match[4]}.index.json"
        msg = f"{path} is part {int(match[2])} of {int(match[3])} of a model; load {index}, which lists them"
        raise FormatError(msg)
    match = _KERAS_SHARD.fullmatch(name)
    if match is not None and os.path.exists(os.path.join(folder, f"{match[1]}.weights.json")):
        msg = f"{path} is one part of a model; load {match[1]}.weights.json, which lists the parts"
        raise FormatError(msg)


def read(path: str, read_one: Callable[[str], Contents]) -> Contents:
    """Return all tensors of all shards; `read_one` reads one file."""
    places = _places(path)
    given = {name for names in places.values() for name in names if _shard_path(path, name)}
    files = sorted(given)
    if not 0 < len(files) <= MOST_SHARDS:
        msg = f"{path} lists {len(files) or 'no'} files, expected 1 to {MOST_SHARDS}"
        raise FormatError(msg)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    layouts, kinds = set(), set()
    for file in files:
        part = read_one(_shard_path(path, file))
        layouts.add(part.layout)
        kinds.add(part.file)
        twice = {name for name in part.metadata.keys() & metadata.keys() if name in (METADATA, WORDS)}
        if any(part.metadata[name] != metadata[name] for name in twice):
            msg = f"{path} lists files with options of different networks; save each network as one file"
            raise FormatError(msg)
        metadata = {**part.metadata, **metadata}
        for name, tensor in part.tensors.items():
            if name in tensors or not _is_listed(name, file, places):
                unlisted = f"is in {show(file)}, but the index does not list it there"
                what = "is in two files" if name in tensors else unlisted
                msg = f"{path}: {show(name)} {what}"
                raise FormatError(msg)
            tensors[name] = tensor
    if len(kinds) != 1:
        msg = f"{path} lists files of different formats: {', '.join(sorted(kinds))}"
        raise FormatError(msg)
    missing = [name for name in places if name not in tensors] if layouts == {None} else []
    if missing:
        msg = f"{path} lists {show(missing[0])}, which is not in any of its files"
        raise FormatError(msg)
    return Contents(path, kinds.pop(), tensors, metadata, layouts.pop())


def _is_listed(name: str, file: str, places: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether the index lists a tensor, or a group of the tensor, in a file."""
    while name:
        if name in places:
            return file in places[name]
        name = name.rpartition(".")[0]
    return False


def _places(path: str) -> dict[str, tuple[str, ...]]:
    """Return the files of each name in the index."""
    if os.path.getsize(path) > LONGEST_INDEX:
        msg = f"{path} has {os.path.getsize(path)} bytes; at most {LONGEST_INDEX} are allowed for an index"
        raise FormatError(msg)
    with open(path, "rb") as file:
        index = json_object(path, file.read())
    given = index.get("weight_map")
    places: dict[str, tuple[str, ...]] = {}
    if not isinstance(given, dict):
        msg = f"{path} has no weight_map from names to files"
        raise FormatError(msg)
    for name, files in given.items():
        places[dot_name(name)] = tuple(files) if isinstance(files, list) else (files,)
    return places


def _shard_path(path: str, file: Any) -> str:
    """Return the path of a shard, and check that its name has no folder."""
    plain = isinstance(file, str) and file == os.path.basename(file) and file not in ("", ".", "..")
    if not plain or any(letter in file for letter in "\\:\0"):
        msg = f"{path} refers to the file {quote(file)}, expected a file name without a folder"
        raise FormatError(msg)
    shard = os.path.join(os.path.dirname(path), file)
    if not os.path.isfile(shard):
        msg = f"{path} lists the file {quote(file)}, which is not in its folder"
        raise FormatError(msg)
    if shard.lower().endswith(_INDEX):
        msg = f"{path} lists the file {quote(file)}, which is an index itself"
        raise FormatError(msg)
    return shard
