"""Read and write PyTorch files without PyTorch: zip files, the format before PyTorch 1.6, and TorchScript.

A pickle describes tensors as views of storages. `torch_objects` has the classes and functions that it may
name; any other object in a checkpoint becomes a placeholder. TorchScript programs are not run; only their
parameters are read.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from xplstm import _array
from xplstm._errors import FormatError
from xplstm.io._contents import Contents, Opening, Tensor, by_name, show, unreadable
from xplstm.io._written import METADATA, WORDS, refuse_lost, serialise
from xplstm.io.files import buffers, pickled
from xplstm.io.files.archive import SMALL, Archive
from xplstm.io.files.pickled import Inert
from xplstm.io.files.torch_objects import (
    CALLS,
    STORAGES,
    Leaf,
    Opaque,
    Quantised,
    Storage,
    View,
    is_text,
    leaves,
    storage_of,
)
from xplstm.io.layouts.reparametrized import is_known, owner_of
from xplstm.nn._module import Recurrent

SUFFIXES = (".pt", ".pth")
LAYOUT = "torch"

# Largest ratio of tensor bytes to storage bytes. Layers can share a storage, and expanded tensors repeat one.
TIMES = 32
# Folder of additional files in PyTorch's archives.
_EXTRA, _LONGEST_EXTRA = "extra/", 100_000
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_SHOWN = 5
# Endings of parameter names. An object with such a name may be a parameter and must not be skipped.
_PARAMETER = re.compile(r"(weight|bias|kernel)\w*$")


class Store(Protocol):
    """Access to the storages of a file."""

    @property
    def path(self) -> str:
        """Path of the file."""

    @property
    def order(self) -> str:
        """Byte order of the numbers, "little" or "big"."""

    def size(self, key: str) -> int:
        """Return the number of bytes of a storage."""

    def read(self, key: str) -> bytes:
        """Return the bytes of a storage."""


def recognises(opening: Opening) -> bool:
    """Return whether a file is an archive with data.pkl, or has the format before PyTorch 1.6."""
    return opening.head.startswith(_LEGACY) or any(name.endswith("/data.pkl") for name in opening.members)


def read(path: str) -> Contents:
    """Return all tensors by their place in the containers; each is read on demand."""
    with open(path, "rb") as file:
        legacy = file.read(len(_LEGACY)) == _LEGACY
    whole, store, extra = _read_legacy(path) if legacy else _read_archive(path)
    named = list(leaves(path, whole))
    tensors = [(name, leaf) for name, leaf in named if not isinstance(leaf, Inert)]
    objects = _objects(path, named)
    if objects and not tensors:
        some = ", ".join(list(dict.fromkeys(objects.values()))[:_SHOWN])
        msg = f"{path} contains no tensor, only objects of {some}, which are not created; save a state_dict()"
        raise FormatError(msg)
    if not tensors and any(str(leaf).startswith("__torch__") for _, leaf in named):
        msg = f"{path} is a TorchScript program without parameters, as torch.jit.freeze makes it; "
        raise FormatError(msg + "save the program before it is frozen")
    storages = _Storages(store, [leaf for _, leaf in tensors])
    found = by_name(path, ((name, storages.entry(name, leaf)) for name, leaf in tensors))
    return Contents(path, "pt", found, {**objects, **extra}, said=_problems_of(named))


def _problems_of(named: Sequence[tuple[str, Leaf]]) -> dict[str, dict[str, str]]:
    """Return why TorchScript modules may compute something other than PyTorch's modules, by prefix."""
    wrong = "which is not a PyTorch class and may compute something else; xplstm.io.arrays reads the weights"
    return {
        owner_of(place): {"problem": f"it is a {show(kind)}, {wrong}"}
        for place, kind in ((name.strip("."), str(leaf)) for name, leaf in named if isinstance(leaf, Inert))
        if kind.startswith("__torch__") and not is_known(place, kind)
    }


def _objects(path: str, named: Sequence[tuple[str, Leaf]]) -> dict[str, str]:
    """Return the classes of all objects that are not tensors, by name."""
    objects = {}
    for name, leaf in named:
        if isinstance(leaf, Inert):
            if _PARAMETER.search(name) and not leaf.items and not isinstance(leaf.state, dict):
                msg = f"{path}: {show(name.strip('.'))} is an object of {leaf}, expected a tensor"
                raise FormatError(msg)
            if leaf.name.module.partition(".")[0] != "__torch__":
                objects[name.strip(".") or "the whole"] = str(leaf)
    return objects


def encode(network: Recurrent, layout: str, prefix: str) -> bytes:
    """Return the bytes of a file that ``torch.load`` reads: a state dict, and options for `load`."""
    arrays, metadata = serialise(network, layout, prefix)
    if layout == "torch":
        refuse_lost(network, "a state dict of PyTorch")
    hosts = {name: _array.native(_array.to_numpy(a)) for name, a in arrays.items()}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", _program(hosts))
        file.writestr("archive/byteorder", "little")
        for number, a in enumerate(hosts.values()):
            file.writestr(f"archive/data/{number}", a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes())
        file.writestr("archive/version", "3\n")
        for name, text in metadata.items():
            file.writestr(f"archive/{_EXTRA}{name}", text)
    return content.getvalue()


def _program(hosts: Mapping[str, np.ndarray]) -> bytes:
    """Return the pickle of a dict of tensors."""
    classes = {ours: theirs for theirs, ours in STORAGES.items()}
    parts = [b"\x80\x02}"]
    for number, (name, a) in enumerate(hosts.items()):
        strides = [math.prod(a.shape[axis + 1 :]) for axis in range(a.ndim)]
        storage = _text("storage") + _name("torch", classes[_array.dtype_name(a.dtype)])
        storage += _text(str(number)) + _text("cpu") + _number(a.size)
        parts += [_text(name), _name("torch._utils", "_rebuild_tensor_v2"), b"((", storage, b"tQ", _number(0)]
        parts += [b"(", *map(_number, a.shape), b"t(", *map(_number, strides), b"t\x89"]
        parts += [_name("collections", "OrderedDict"), b")RtRs"]
    return b"".join((*parts, b"."))


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _number(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)


class _ZipStore(NamedTuple):
    """Storages in the members of an archive."""

    archive: Archive
    folder: str
    order: str

    @property
    def path(self) -> str:
        return self.archive.path

    def size(self, key: str) -> int:
        return self.archive.members[f"{self.folder}data/{key}"].file_size

    def read(self, key: str) -> bytes:
        return self.archive.read(f"{self.folder}data/{key}")


class _LegacyStore(NamedTuple):
    """Consecutive storages after the pickles, with offset and size by key."""

    path: str
    order: str
    places: Mapping[str, tuple[int, int]]

    def size(self, key: str) -> int:
        return self.places[key][1]

    def read(self, key: str) -> bytes:
        first, count = self.places[key]
        with open(self.path, "rb") as file:
            file.seek(first)
            return file.read(count)


def _read_archive(path: str) -> tuple[Any, Store, dict[str, bytes]]:
    """Return what the pickle of an archive builds, its storages, and the additional files of `encode`."""
    archive = Archive(path)
    pickles = [name for name in archive.members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        msg = f"{path} has {len(pickles)} pickles, expected 1 in a PyTorch file"
        raise FormatError(msg)
    folder = pickles[0].removesuffix("data.pkl")
    store = _ZipStore(archive, folder, _byte_order(archive, folder))

    def persistent(given: Any) -> Storage:
        return storage_of(path, given, 5, lambda key: f"{folder}data/{key}" in archive.members)

    whole = pickled.load(path, archive.read(pickles[0]), CALLS, persistent)
    extra = {
        name: archive.read(f"{folder}{_EXTRA}{name}", _LONGEST_EXTRA)
        for name in (METADATA, WORDS)
        if f"{folder}{_EXTRA}{name}" in archive.members
    }
    return whole, store, extra


def _read_legacy(path: str) -> tuple[Any, Store, dict[str, bytes]]:
    """Return the object in the fourth pickle of an old file, and the storages after the fifth pickle."""
    kinds: dict[str, Storage] = {}

    def persistent(given: Any) -> Any:
        if isinstance(given, tuple) and len(given) == 4 and is_text(given[0], "module"):
            return given[1]
        one = storage_of(path, given, 6, lambda _: True)
        if kinds.setdefault(one.key, one) != one:
            msg = f"{path} has two dtypes for the storage {show(one.key[:40])}"
            raise FormatError(msg)
        part = given[5]
        if part is None:
            return one
        if not isinstance(part, tuple) or len(part) != 3 or type(part[1]) is not int or part[1] < 0:
            msg = f"{path} has an invalid view of a storage"
            raise FormatError(msg)
        return one._replace(start=part[1])

    with open(path, "rb") as file:
        magic, protocol, system = (pickled.load(path, file, {}, persistent) for _ in range(3))
        little = system.get("little_endian", True) if isinstance(system, dict) else None
        if (magic, protocol) != (_MAGIC, _PROTOCOL) or little is not True:
            msg = f"{path} does not have the header of a PyTorch file, or is big-endian"
            raise FormatError(msg)
        whole = pickled.load(path, file, CALLS, persistent)
        keys = pickled.load(path, file, {}, persistent)
        return whole, _LegacyStore(path, "little", _places(path, file, keys, kinds)), {}


def _places(path: str, file: BinaryIO, keys: Any, kinds: Mapping[str, Storage]) -> dict[str, tuple[int, int]]:
    """Return the range of each storage; a storage is a count of elements, followed by the elements."""
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in kinds for key in keys):
        msg = f"{path} lists storages that are not in its pickle"
        raise FormatError(msg)
    length, first = os.path.getsize(path), file.tell()
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        file.seek(first)
        count = int.from_bytes(file.read(8), "little")
        size = count * buffers.BITS[kinds[key].dtype or "uint8"] // 8
        if key in places or first + 8 + size > length:
            msg = (
                f"{path} ends before the {count} elements of the storage {show(key[:40])}, or lists it twice"
            )
            raise FormatError(msg)
        places[key] = (first + 8, size)
        first += 8 + size
    if first != length or places.keys() != kinds.keys():
        msg = f"{path} has {length} bytes, but its {len(places)} of {len(kinds)} storages end at byte {first}"
        raise FormatError(msg)
    return places


def _byte_order(archive: Archive, folder: str) -> str:
    """Return the byte order; files before PyTorch 2.1 have no entry and are little-endian."""
    name = f"{folder}byteorder"
    order = archive.read(name, 16) if name in archive.members else b"little"
    if order not in (b"little", b"big"):
        msg = f"{archive.path} has the byte order {order!a}, expected little or big"
        raise FormatError(msg)
    return order.decode()


class _Storages:
    """Storages of a file, and tensors as views of the storages."""

    def __init__(self, store: Store, found: Sequence[View | Opaque | Quantised]) -> None:
        self.store = store
        views = [leaf.view if isinstance(leaf, Quantised) else leaf for leaf in found]
        self.users = Counter(view.storage.key for view in views if isinstance(view, View))
        self.shared: dict[str, bytes] = {}
        self.given: set[str] = set()
        self.left = max(TIMES * sum(map(store.size, self.users)), SMALL)

    def entry(self, name: str, leaf: View | Opaque | Quantised) -> Tensor:
        """Return an unread tensor."""
        if isinstance(leaf, View):
            return Tensor(leaf.shape, leaf.dtype, partial(self.tensor, name, leaf))
        if isinstance(leaf, Quantised):
            return Tensor(leaf.view.shape, f"q{leaf.view.dtype}", partial(self.dequantise, name, leaf))
        what = f"{show(name.strip('.'))} is {leaf.kind}, which cannot be read"
        return unreadable(f"{self.store.path}: {what}", leaf.shape)

    def tensor(self, name: str, view: View) -> np.ndarray:
        """Read one tensor from the bytes of its storage."""
        path, width = self.store.path, buffers.BITS[view.dtype] // 8
        self._spend(name, math.prod(view.shape) * width)
        raw = self._raw(view.storage.key)
        reach = sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
        end = view.offset + reach + 1 if math.prod(view.shape) else 0
        if end * width > len(raw):
            msg = f"{path}: {show(name)} ends at byte {end * width} of a storage with {len(raw)} bytes"
            raise FormatError(msg)
        numbers = np.frombuffer(raw, dtype=f"V{width}", count=len(raw) // width)
        strides = tuple(stride * width for stride in view.strides)
        strided = np.lib.stride_tricks.as_strided(
            numbers[view.offset :], view.shape, strides, writeable=False
        )
        whole = np.ascontiguousarray(strided).reshape(-1)
        if self.store.order == "big":
            whole = whole.view(np.uint8).reshape(-1, width)[:, ::-1].copy().view(f"V{width}")[:, 0]
        return buffers.as_array(path, name, whole, view.dtype, view.shape)

    def dequantise(self, name: str, leaf: Quantised) -> np.ndarray:
        """Return the real numbers of a quantised tensor, as float32."""
        # The difference of two int32 fits int64.
        integers = self.tensor(name, leaf.view).astype(np.int64) - leaf.zero_point
        return (integers * leaf.scale).astype(np.float32)

    def _spend(self, name: str, size: int) -> None:
        """Check that all tensors together are not much larger than their storages."""
        if name not in self.given:
            self.given.add(name)
            self.left -= size
        if self.left < 0:
            what = f"with {show(name)}, the tensors have more than {TIMES} times the bytes of their storages"
            msg = f"{self.store.path}: {what}"
            raise FormatError(msg)

    def _raw(self, key: str) -> bytes:
        """Return the bytes of a storage; a storage of several tensors is read once."""
        if self.users[key] == 1:
            return self.store.read(key)
        if key not in self.shared:
            self.shared[key] = self.store.read(key)
        return self.shared[key]
