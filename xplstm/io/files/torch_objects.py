"""Objects of PyTorch pickles: tensors as views of storages, and placeholders for all other objects.

`CALLS` maps the names that PyTorch writes to functions of this module. No other function is called. A tensor
that cannot be read (sparse, on the meta device, of an unknown subclass) becomes an `Opaque` entry. `inspect`
lists such entries, and the other tensors can still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xplstm._errors import FormatError
from xplstm.io._contents import LONGEST_NAME, show
from xplstm.io.files import buffers
from xplstm.io.files.pickled import Global, Inert

# Bounds of the nesting depth and of the visited objects; a shared container is visited more than once.
DEEPEST = 64
MOST = 5_000_000
_A_CONTAINER = 50
# Each call copies its text, and a short file can repeat a long text many times.
_LONGEST_BYTES = 256

STORAGES = {
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
# Storages of quantised numbers.
_QUANTISED = {"QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32"}
_DTYPES = [name for name, bits in buffers.BITS.items() if bits % 8 == 0]


class Storage(NamedTuple):
    """A storage by key; its elements are bytes if `dtype` is None."""

    key: str
    dtype: str | None
    start: int = 0
    """Offset of this view of the storage, in elements."""


class View(NamedTuple):
    """A tensor as a view of a storage, with offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque(NamedTuple):
    """A tensor that cannot be read."""

    kind: str
    shape: tuple[int, ...]


class Quantised(NamedTuple):
    """A quantised tensor with one scale and one zero point."""

    view: View
    scale: float
    zero_point: int


def is_text(given: Any, wanted: str) -> bool:
    """Return whether a value is the text `wanted`, which Python 2 wrote as bytes."""
    return isinstance(given, str | bytes) and given in (wanted, wanted.encode())


def storage_of(where: str, given: Any, length: int, is_known: Callable[[str], bool]) -> Storage:
    """Return the storage of a persistent id, a tuple of `length` items."""
    if not isinstance(given, tuple) or len(given) != length or not is_text(given[0], "storage"):
        msg = f"{where} refers to an object outside its pickle that is not a storage"
        raise FormatError(msg)
    kind, key = given[1:3]
    if not isinstance(kind, Global) or not isinstance(key, str) or not is_known(key):
        what = ascii(key[:40]) if isinstance(key, str) else f"a key of type {type(key).__name__}"
        msg = f"{where} refers to a missing storage: {what}"
        raise FormatError(msg)
    return Storage(key, STORAGES.get(kind.name) or _QUANTISED.get(kind.name))


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """Replace the function that makes a tensor from a storage with a dtype."""
    if not isinstance(storage, Storage) or storage.dtype is None:
        msg = "a tensor has no storage of numbers"
        raise ValueError(msg)
    # Flags that change every number: conjugated, negated.
    if len(rest) > 2 and rest[2]:
        return Opaque("a conjugated or negated view", _shape(shape))
    return View(storage, storage.dtype, offset, shape, strides)


def _rebuild_as(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> Any:
    """Replace the function that makes a tensor from a storage of bytes."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Global):
        msg = "a tensor has no storage, or no dtype"
        raise ValueError(msg)
    if dtype.name not in _DTYPES or (rest and rest[0]):
        return Opaque(str(dtype), _shape(shape))
    return View(storage, dtype.name, offset, shape, strides)


def _rebuild_quantised(storage: Any, offset: Any, shape: Any, strides: Any, scheme: Any, *_rest: Any) -> Any:
    """Replace the function that makes a quantised tensor; only one scale for all numbers is supported."""
    affine = Global("torch", "per_tensor_affine")
    if (
        isinstance(storage, Storage)
        and storage.dtype is not None
        and isinstance(scheme, tuple)
        and len(scheme) == 3
        and scheme[0] == affine
        and isinstance(scheme[1], float)
        and isinstance(scheme[2], int)
    ):
        return Quantised(View(storage, storage.dtype, offset, shape, strides), scheme[1], scheme[2])
    return Opaque("a quantised tensor", _shape(shape))


def _rebuild_meta(_dtype: Any, shape: Any, *_rest: Any) -> Opaque:
    return Opaque("a tensor on the meta device", _shape(shape))


def _rebuild_sparse(*_: Any) -> Opaque:
    return Opaque("a sparse tensor", ())


def _rebuild_other(*_: Any) -> Opaque:
    return Opaque("a tensor of another device or layout", ())


# Tensor subclasses with the data of an ordinary tensor.
_PLAIN = {
    Global("torch", "Tensor"),
    Global("torch.nn.parameter", "Parameter"),
    Global("torch.nn.parameter", "Buffer"),
}


def _rebuild_typed(function: Any, kind: Any, arguments: Any, *_state: Any) -> Any:
    """Replace the function that makes a tensor subclass or a tensor with attributes."""
    if isinstance(function, Global) and function in CALLS and isinstance(arguments, tuple) and kind in _PLAIN:
        return CALLS[function](*arguments)
    return Opaque(str(kind) if isinstance(kind, Global) else "a tensor of another class", ())


def _shape(shape: Any) -> tuple[int, ...]:
    """Return a shape for display; () if it is not a shape."""
    whole = isinstance(shape, tuple) and len(shape) <= 64 and all(type(n) is int for n in shape)
    return shape if whole and all(0 <= n < 1 << 48 for n in shape) else ()


def _unwrap(data: Any, *_rest: Any) -> Any:
    """Replace a wrapper of one value, such as Parameter or device, with the value."""
    return data


def _encode(text: Any, codec: Any) -> Any:
    """Replace the function by which protocol 2 writes bytes; long text stays a placeholder."""
    if isinstance(text, str) and len(text) <= _LONGEST_BYTES and is_text(codec, "latin1"):
        return text.encode("latin1")
    return Inert(Global("_codecs", "encode"))


def _make_ordered(items: Any = ()) -> dict[Any, Any]:
    """Replace OrderedDict, which PyTorch writes empty and fills; Python 2 writes its items."""
    if not isinstance(items, list | tuple | dict):
        msg = f"an ordered dict is made from {type(items).__name__}, expected a sequence of pairs"
        raise TypeError(msg)
    entries = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        if not isinstance(key, str | int):
            msg = f"an ordered dict has a {type(key).__name__} as a key"
            raise TypeError(msg)
        entries[key] = value
    return entries


def _make_counter(counts: Any = None) -> dict[Any, Any]:
    """Return the dict of a Counter instead of the Counter."""
    if counts is not None and not isinstance(counts, dict):
        msg = f"a counter is made from {type(counts).__name__}, expected a dict"
        raise TypeError(msg)
    return {} if counts is None else counts


def _make_default(factory: Any = None) -> dict[Any, Any]:
    """Replace defaultdict, which is filled afterwards; the default factory is never called."""
    if factory is not None and not isinstance(factory, Global | Inert):
        msg = f"a defaultdict has a factory of type {type(factory).__name__}, expected a class"
        raise TypeError(msg)
    return {}


def _make_list(items: Any = (), *_rest: Any) -> list[Any]:
    """Replace a container that is made from a list or tuple with a list."""
    if not isinstance(items, list | tuple):
        msg = f"a container is made from {type(items).__name__}, expected a list or tuple"
        raise TypeError(msg)
    return list(items)


def _reject_call(*_: Any) -> Any:
    msg = "calls a type that the reader never creates"
    raise ValueError(msg)


# Names from Python 3 and from Python 2, which protocol 2 writes.
_BUILTINS = ("builtins", "__builtin__")
_DEFAULTS = ("dict", "list", "int", "float")
_OTHERS = ("_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor")
CALLS: dict[Global, Callable[..., Any]] = {
    Global("torch._utils", "_rebuild_tensor"): _rebuild,
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_as,
    Global("torch._utils", "_rebuild_parameter"): _unwrap,
    Global("torch._utils", "_rebuild_parameter_with_state"): _unwrap,
    Global("torch._utils", "_rebuild_qtensor"): _rebuild_quantised,
    Global("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta,
    Global("torch._utils", "_rebuild_sparse_tensor"): _rebuild_sparse,
    Global("torch._utils", "_rebuild_nested_tensor"): _rebuild_other,
    Global("torch._utils", "_rebuild_wrapper_subclass"): _rebuild_other,
    **{Global("torch._utils", name): _rebuild_other for name in _OTHERS},
    Global("torch._tensor", "_rebuild_from_type_v2"): _rebuild_typed,
    Global("torch.jit._pickle", "restore_type_tag"): _unwrap,
    **{Global("torch.jit._pickle", f"build_{of}list"): _unwrap for of in ("int", "tensor", "double", "bool")},
    Global("_codecs", "encode"): _encode,
    Global("collections", "OrderedDict"): _make_ordered,
    Global("collections", "Counter"): _make_counter,
    Global("collections", "defaultdict"): _make_default,
    Global("collections", "deque"): _make_list,
    **{Global(module, name): _make_list for module in _BUILTINS for name in ("set", "frozenset")},
    **{Global(module, name): _reject_call for module in _BUILTINS for name in _DEFAULTS},
    Global("torch", "Size"): _make_list,
    Global("torch", "device"): _unwrap,
    **{Global("torch", name): _reject_call for name in (*STORAGES, *_DTYPES)},
    Global("torch.storage", "UntypedStorage"): _reject_call,
}


Leaf = View | Opaque | Quantised | Inert
_LEAVES = (View, Opaque, Quantised)
_CONTAINERS = (dict, list, tuple)


def leaves(path: str, whole: Any) -> Iterator[tuple[str, Leaf]]:
    """Yield all tensors and placeholders with their nested keys, in bounded time."""
    pending = [("", 0, whole)] if isinstance(whole, (*_CONTAINERS, Inert)) else []
    looked_at = 0
    while pending:
        name, depth, value = pending.pop()
        looked_at += _A_CONTAINER
        if looked_at > MOST or depth > DEEPEST or len(name) > LONGEST_NAME:
            msg = f"{path} is nested too deeply, or has too many objects, at {show(name[:80])}"
            raise FormatError(msg)
        if isinstance(value, _LEAVES):
            yield name, _check_layout(path, name, value)
            continue
        if isinstance(value, Inert):
            packed = _unpack_object(value)
            if packed is None:
                yield name, value
            value = _items_of(value) if packed is None else packed
        if isinstance(value, Storage | Global):
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = [
            (f"{name}.{_part(k)}", depth + 1, v) for k, v in items if isinstance(v, (*_CONTAINERS, Inert))
        ]
        pending += reversed(inner)
        looked_at += len(value)


def _part(key: Any) -> Any:
    """Return the text of a key that is bytes; return other keys unchanged."""
    return key.decode("latin1") if isinstance(key, bytes) else key


_CLASSES = "__torch__.torch.classes."


def _unpack_object(one: Inert) -> dict[str, Any] | None:
    """Return the dynamically quantised tensors of an object by name; None for other objects.

    The object of a linear layer has (weight, bias). The object of a recurrent layer has its kind, tensors,
    numbers, and two objects of linear layers, for x and for h.
    """
    state, name = one.state, f"{one.name.module}.{one.name.name}"
    if name == "torch.ScriptObject" and isinstance(state, tuple) and len(state) == 2:
        state, name = state
    if name == f"{_CLASSES}quantized.LinearPackedParamsBase":
        return dict(zip(("weight", "bias"), state, strict=False)) if isinstance(state, tuple) else None
    if name != f"{_CLASSES}rnn.CellParamsBase" or not isinstance(state, tuple) or len(state) != 5:
        return None
    kind, biases, _, _, linear = state
    if not isinstance(linear, list) or len(linear) != 2 or not all(isinstance(k, Inert) for k in linear):
        return None
    inner = [_unpack_object(part) or {} for part in linear]
    if kind == "quantized_fp16":
        biases = [part.get("bias") for part in inner]
    elif kind != "quantized_dynamic" or not isinstance(biases, list) or len(biases) != 2:
        return None
    weights = [part.get("weight") for part in inner]
    named = zip(("ih", "hh"), weights, biases, strict=True)
    return {of: {"weight": weight, "bias": bias} for of, weight, bias in named}


def _items_of(one: Inert) -> dict[Any, Any]:
    """Return the items of a placeholder for a dict, or the attributes of a TorchScript module."""
    if one.name.module.partition(".")[0] == "__torch__" and isinstance(one.state, dict):
        # A second list of an LSTM's weights; the weights are also present by name.
        return {key: value for key, value in one.state.items() if key != "_flat_weights"}
    return one.items


def _check_layout(path: str, name: str, leaf: Any) -> Any:
    """Check that offset, shape and strides are integers, and that only expanded axes overlap."""
    if isinstance(leaf, Opaque):
        return leaf
    if isinstance(leaf, Quantised):
        return leaf._replace(view=_check_layout(path, name, leaf.view))
    numbers = buffers.count(path, name, leaf.shape)
    buffers.check_numbers(path, name, leaf.strides)
    buffers.check_numbers(path, name, (leaf.offset,))
    pairs = zip(leaf.strides, leaf.shape, strict=False)
    axes = sorted((stride, n) for stride, n in pairs if n > 1 and stride)
    end = 1
    for stride, n in axes if numbers else ():
        if stride < end:
            msg = f"{path}: {show(name)} overlaps itself: shape {leaf.shape}, strides {leaf.strides}"
            raise FormatError(msg)
        end = (n - 1) * stride + end
    if len(leaf.strides) != len(leaf.shape):
        msg = f"{path}: {show(name)} has {len(leaf.shape)} axes and {len(leaf.strides)} strides"
        raise FormatError(msg)
    offset = leaf.offset + leaf.storage.start
    return leaf._replace(offset=offset, shape=tuple(leaf.shape), strides=tuple(leaf.strides))
