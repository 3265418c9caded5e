"""Files of PyTorch since 1.6: a zip file of storages, and a pickle that says how tensors lie in them.

Read without PyTorch. Tensors and containers alone are known: a file that
holds a whole model, as ``torch.save(model)`` writes it, names the model's
class, and is refused by that name; ``torch.save(model.state_dict())`` does not.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm.io._contents import LONGEST_NAME, Contents, Opening, Tensor, by_name, quoted, shown
from xplstm.io._written import told, written
from xplstm.io.files import buffers, pickled
from xplstm.io.files.archive import SMALL, Archive
from xplstm.io.files.pickled import Global
from xplstm.nn._module import Recurrent

SUFFIXES = (".pt", ".pth")
LAYOUT = "torch"

# How deep checkpoints are nested at most; how much there is to look at, since what is shared is met again.
DEEPEST = 64
MOST = 5_000_000
_A_CONTAINER = 50
# Layers can share a storage, and what was expanded repeats its own: how many bytes may be made of one.
TIMES = 32
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_DTYPES = [name for name, bits in buffers.BITS.items() if bits % 8 == 0]


class Storage(NamedTuple):
    """A run of numbers, in a member of its own; of bytes, where `dtype` is None."""

    member: str
    dtype: str | None


class Lying(NamedTuple):
    """How a tensor lies in its storage, counted in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def recognises(opening: Opening) -> bool:
    """An archive with a pickle called data, or what earlier versions of PyTorch wrote."""
    return opening.head.startswith(_LEGACY) or any(name.endswith("/data.pkl") for name in opening.members)


def read(path: str) -> Contents:
    """Every tensor by its place in the containers; each is read when it is asked for."""
    with open(path, "rb") as file:
        if file.read(len(_LEGACY)) == _LEGACY:
            msg = (
                f"{path} was written by PyTorch before 1.6, or as it wrote then; "
                f"torch.save(torch.load(path, weights_only=True), path) writes it anew"
            )
            raise FormatError(msg)
    archive = Archive(path)
    pickles = [name for name in archive.members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        msg = f"{path} holds {len(pickles)} pickles; a file of PyTorch has 1"
        raise FormatError(msg)
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.members:
        msg = f"{path} holds a program of TorchScript; save the state_dict() of its model instead"
        raise FormatError(msg)
    order = _byte_order(archive, folder)
    persistent = partial(_storage, archive, folder)
    whole = pickled.load(path, archive.read(pickles[0]), _CALLS, persistent)
    leaves = list(_leaves(path, whole))
    storages = _Storages(archive, order, [lying for _, lying in leaves])
    tensors = (
        (name, Tensor(lying.shape, lying.dtype, partial(storages.tensor, name, lying)))
        for name, lying in leaves
    )
    return Contents(path, "pt", by_name(path, tensors), {})


def encode(network: Recurrent, layout: str, prefix: str) -> bytes:
    """The bytes of a file that ``torch.load`` reads: a state dict, which holds parameters alone."""
    arrays, _ = written(network, layout, prefix)
    lost = {name: value for name, value in told(network).items() if name in ("variant", "merge")}
    if lost and layout == "torch":
        msg = f"a state dict of PyTorch has no place for {', '.join(lost)}; use .safetensors"
        raise ArgumentError(msg)
    hosts = {name: _array.native(_array.to_numpy(a)) for name, a in arrays.items()}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", _program(hosts))
        file.writestr("archive/byteorder", "little")
        for number, a in enumerate(hosts.values()):
            file.writestr(f"archive/data/{number}", a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes())
        file.writestr("archive/version", "3\n")
    return content.getvalue()


def _program(hosts: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors, instruction by instruction."""
    classes = {ours: theirs for theirs, ours in _STORAGES.items()}
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


def _byte_order(archive: Archive, folder: str) -> str:
    """Which end of a number comes first; files before 2.1 do not say, and were written little end first."""
    name = f"{folder}byteorder"
    order = archive.read(name, 16) if name in archive.members else b"little"
    if order not in (b"little", b"big"):
        msg = f"{archive.path} has the byte order {order!a}; little and big are known"
        raise FormatError(msg)
    return order.decode()


def _storage(archive: Archive, folder: str, given: Any) -> Storage:
    """The storage that a persistent id means."""
    if (
        not isinstance(given, tuple)
        or len(given) != 5
        or not isinstance(given[0], str)
        or given[0] != "storage"
    ):
        msg = f"{archive.path} refers to something outside its pickle that is no storage"
        raise FormatError(msg)
    _, kind, key, _, _ = given
    member = f"{folder}data/{key}" if isinstance(key, str) else None
    if not isinstance(kind, Global) or member is None or member not in archive.members:
        msg = f"{archive.path} refers to a storage that is not there: {quoted(key)}"
        raise FormatError(msg)
    return Storage(member, _STORAGES.get(kind.name))


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> Lying:
    """Stand-in for what makes a tensor of a storage that knows its dtype."""
    if not isinstance(storage, Storage) or storage.dtype is None:
        msg = "a tensor lies in what is no storage of numbers"
        raise ValueError(msg)
    return Lying(storage, storage.dtype, offset, shape, strides)


def _rebuild_as(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_rest: Any
) -> Lying:
    """Stand-in for what makes a tensor of a storage of bytes."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Global) or dtype.name not in _DTYPES:
        msg = "a tensor lies in what is no storage, or has no dtype"
        raise ValueError(msg)
    return Lying(storage, dtype.name, offset, shape, strides)


def _first(data: Any, *_rest: Any) -> Any:
    """Stand-in for what makes a parameter of a tensor, a device of its name."""
    return data


def _ordered(items: Any = ()) -> dict[Any, Any]:
    """Stand-in for an ordered dict, which torch writes empty and then fills."""
    if items:
        msg = "an ordered dict is made of items"
        raise ValueError(msg)
    return {}


def _counted(counts: Any) -> dict[Any, Any]:
    """Stand-in for a counter, which is made of a dict."""
    if not isinstance(counts, dict):
        msg = f"a counter is made of {type(counts).__name__}"
        raise TypeError(msg)
    return counts


def _defaulting(factory: Any = None) -> dict[Any, Any]:
    """Stand-in for a dict with a default, which is filled afterwards; nothing is asked for the default."""
    if factory is not None and not isinstance(factory, Global):
        msg = f"a default is made by {type(factory).__name__}"
        raise TypeError(msg)
    return {}


def _items(items: Any) -> tuple[Any, ...]:
    """Stand-in for what makes a container of a list or a tuple; which one is all the same here."""
    if not isinstance(items, list | tuple):
        msg = f"a container is made of {type(items).__name__}"
        raise TypeError(msg)
    return tuple(items)


def _not_called(*_: Any) -> Any:
    msg = "calls what is a name alone"
    raise ValueError(msg)


# The same by the names of Python 3 and 2, which protocol 2 writes.
_BUILTINS = ("builtins", "__builtin__")
_DEFAULTS = ("dict", "list", "int", "float")
_CALLS: dict[Global, Callable[..., Any]] = {
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_as,
    Global("torch._utils", "_rebuild_parameter"): _first,
    Global("collections", "OrderedDict"): _ordered,
    Global("collections", "Counter"): _counted,
    Global("collections", "defaultdict"): _defaulting,
    **{Global(module, "set"): _items for module in _BUILTINS},
    **{Global(module, name): _not_called for module in _BUILTINS for name in _DEFAULTS},
    Global("torch", "Size"): _items,
    Global("torch", "device"): _first,
    **{Global("torch", name): _not_called for name in (*_STORAGES, *_DTYPES)},
    Global("torch.storage", "UntypedStorage"): _not_called,
}


# A storage or a name by itself is walked into as well, and has nothing inside.
_NOT_LEAVES = (dict, list, tuple)


def _leaves(path: str, whole: Any) -> Iterator[tuple[str, Lying]]:
    """Every tensor with the keys that lead to it; each place is looked at, and none for ever."""
    pending = [("", 0, whole)] if isinstance(whole, _NOT_LEAVES) else []
    looked_at = 0
    while pending:
        name, depth, value = pending.pop()
        looked_at += _A_CONTAINER
        if looked_at > MOST or depth > DEEPEST or len(name) > LONGEST_NAME:
            msg = f"{path} is nested deeper, or names more, than any checkpoint: {shown(name[:80])}"
            raise FormatError(msg)
        if isinstance(value, Lying):
            yield name, _checked(path, name, value)
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        pending += reversed([(f"{name}.{k}", depth + 1, v) for k, v in items if isinstance(v, _NOT_LEAVES)])
        looked_at += len(value)


def _checked(path: str, name: str, lying: Lying) -> Lying:
    """A tensor whose numbers are all whole, and that does not lie upon itself, unless it was expanded."""
    numbers = buffers.count(path, name, lying.shape)
    buffers.check_numbers(path, name, lying.strides)
    buffers.check_numbers(path, name, (lying.offset,))
    pairs = zip(lying.strides, lying.shape, strict=False)
    axes = sorted((stride, n) for stride, n in pairs if n > 1 and stride)
    end = 1
    for stride, n in axes if numbers else ():
        if stride < end:
            msg = f"{path}: {shown(name)} lies upon itself: shape {lying.shape}, strides {lying.strides}"
            raise FormatError(msg)
        end = (n - 1) * stride + end
    if len(lying.strides) != len(lying.shape):
        msg = f"{path}: {shown(name)} has {len(lying.shape)} axes and {len(lying.strides)} strides"
        raise FormatError(msg)
    return lying._replace(shape=tuple(lying.shape), strides=tuple(lying.strides))


class _Storages:
    """What the tensors of a file lie in."""

    def __init__(self, archive: Archive, order: str, tensors: Sequence[Lying]) -> None:
        self.archive = archive
        self.order = order
        self.users = Counter(lying.storage.member for lying in tensors)
        self.shared: dict[str, bytes] = {}
        self.given: set[str] = set()
        self.left = max(TIMES * sum(archive.members[member].file_size for member in self.users), SMALL)

    def tensor(self, name: str, lying: Lying) -> np.ndarray:
        """One tensor, from the bytes of its storage."""
        path, width = self.archive.path, buffers.BITS[lying.dtype] // 8
        self._spend(name, math.prod(lying.shape) * width)
        raw = self._raw(lying.storage.member)
        reach = sum((n - 1) * stride for n, stride in zip(lying.shape, lying.strides, strict=True))
        end = lying.offset + reach + 1 if math.prod(lying.shape) else 0
        if end * width > len(raw):
            msg = f"{path}: {shown(name)} reaches to byte {end * width} of a storage of {len(raw)}"
            raise FormatError(msg)
        numbers = np.frombuffer(raw, dtype=f"V{width}", count=len(raw) // width)
        strides = tuple(stride * width for stride in lying.strides)
        lying_so = np.lib.stride_tricks.as_strided(
            numbers[lying.offset :], lying.shape, strides, writeable=False
        )
        whole = np.ascontiguousarray(lying_so).reshape(-1)
        if self.order == "big":
            whole = whole.view(np.uint8).reshape(-1, width)[:, ::-1].copy().view(f"V{width}")[:, 0]
        return buffers.as_array(path, name, whole, lying.dtype, lying.shape)

    def _spend(self, name: str, size: int) -> None:
        """Refuse tensors that are together far more than their storages."""
        if name not in self.given:
            self.given.add(name)
            self.left -= size
        if self.left < 0:
            what = f"with {shown(name)}, the tensors have more than {TIMES} times the bytes that they lie in"
            msg = f"{self.archive.path}: {what}"
            raise FormatError(msg)

    def _raw(self, member: str) -> bytes:
        """The bytes of a storage; of one that several tensors share, read once."""
        if self.users[member] == 1:
            return self.archive.read(member)
        if member not in self.shared:
            self.shared[member] = self.archive.read(member)
        return self.shared[member]
