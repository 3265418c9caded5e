"""Contents of a file or mapping: tensors, and descriptions of the networks among them.

All format modules exchange these tuples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from xplstm._errors import FormatError
from xplstm._typing import Array

# Longest allowed tensor name. Without a bound, a short file could repeat a long name many times.
LONGEST_NAME = 1000


class Opening(NamedTuple):
    """The first bytes of a file, and the member names if it is an archive."""

    path: str
    head: bytes
    """The first bytes of the file, at most 64."""
    members: Collection[str]
    """Names of the members of a zip file; empty for other files."""


class Tensor(NamedTuple):
    """An array with its shape and dtype, read on demand."""

    shape: tuple[int, ...]
    dtype: str
    array: Callable[[], Array]
    """Return the array: a NumPy array or view for a file, an array of any library for a mapping."""


def unreadable(why: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Return a tensor that raises the error `why` when it is read."""

    def refuse() -> Any:
        raise FormatError(why)

    return Tensor(shape, "unreadable", refuse)


class Contents(NamedTuple):
    """The contents of a file or mapping."""

    where: str
    """Name for error messages: the path, or "the mapping"."""
    file: str
    """Name of the file format, a key of `_registry.FILES`, or "mapping"."""
    tensors: Mapping[str, Tensor]
    """Tensors by name. Dots join the parts of a name; see `by_name`."""
    metadata: Mapping[str, Any]
    """Other contents of the format, such as a configuration or a graph."""
    layout: str | None = None
    """The only layout that this file can have; None if several are possible."""
    said: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """Options of the networks of a module in memory by prefix, or the text of a ``problem``."""


class Found(NamedTuple):
    """A network in the contents: place, class, options, and access to its parameters."""

    prefix: str
    """Common start of its tensor names, without the last dot; "" if there is none."""
    layout: str
    """A key of `_registry.LAYOUTS`."""
    kind: str
    """Name of its class, a key of `nn.NETWORKS`."""
    options: Mapping[str, Any]
    """Arguments of that class: all sizes, and the options in the contents."""
    gates: str
    """Order of the gates as text. Two layouts with the same text read the same parameters."""
    names: tuple[str, ...]
    """Names of its tensors."""
    params: Callable[[], dict[str, Array]]
    """Return the parameters by the names of `LSTM.params`, with the shapes from `options`; called once."""
    problem: str | None = None
    """Why the network cannot be loaded, with tensor, shape and expected shape; None if it can."""
    undetermined: tuple[str, ...] = ()
    """Arguments that change the results but are not in the contents. The caller must pass them.

    With "format" the caller confirms the functions of the class, if the class has no options for them. With
    "reverse" the caller confirms outputs in order of time, if the contents describe outputs in reverse order.
    """
    parts: tuple[str, ...] = ()
    """Prefixes of its cells, if they differ from `prefix`."""

    state: tuple[Array, ...] | None = None
    """Constant initial state, h or h and c, each (layers and directions, batch, size), or None."""
    lengths: tuple[int, ...] | None = None
    """Constant lengths of the sequences, one number if all are equal, or None."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the constant arguments that the file passes to each call."""
        given = {"state": self.state, "lengths": self.lengths}
        return tuple(name for name, value in given.items() if value is not None)

    @property
    def places(self) -> tuple[str, ...]:
        """Prefixes under which all tensors must belong to the network or be harmless."""
        return self.parts or (self.prefix,)


def by_name(where: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors by names with dots between the parts, and check that no name occurs twice."""
    tensors_by_name: dict[str, Tensor] = {}
    for given, tensor in tensors:
        name = dot_name(given)
        if len(name) > LONGEST_NAME:
            start = show(name[:40])
            msg = f"{where} has a name of {len(name)} characters, {start}...; at most {LONGEST_NAME} "
            msg += "are allowed"
            raise FormatError(msg)
        if name in tensors_by_name:
            msg = f"{where} contains {show(name)} twice"
            raise FormatError(msg)
        tensors_by_name[name] = tensor
    return tensors_by_name


def json_object(what: str, text: str | bytes, once: bool = False) -> dict[str, Any]:
    """Parse a JSON object of a file; with `once`, raise an error for duplicate names."""
    try:
        plain = text.decode() if isinstance(text, bytes) else text
        value = json.loads(plain, object_pairs_hook=_each_once if once else None)
    except (ValueError, TypeError, RecursionError) as error:
        msg = f"{what} is not valid JSON: {quote(str(error))}"
        raise FormatError(msg) from error
    if not isinstance(value, dict):
        msg = f"{what} is not a JSON object"
        raise FormatError(msg)
    return value


def _each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict, and raise ValueError if a name occurs twice."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            msg = f"{show(name[:80])} occurs twice"
            raise ValueError(msg)
        members[name] = value
    return members


def dot_name(name: str) -> str:
    """Return `name` with dots between its parts, without the suffix ":0" of TensorFlow variables."""
    return name.replace("/", ".").removesuffix(":0").strip(".")


# Longest part of a name or value of a file in a message.
_LONGEST_SHOWN = 200


def show(name: str, longest: int = _LONGEST_SHOWN) -> str:
    """Format the start of a name from a file, with escapes for unprintable characters."""
    start = name[:longest]
    start = start if start.isprintable() else ascii(start)[1:-1]
    return start if len(name) <= longest else f"{start[:longest]}..."


def quote(value: object) -> str:
    """Format a value from a file; only its type if the text could be long."""
    if isinstance(value, str | bytes):
        return ascii(value[:_LONGEST_SHOWN])
    if value is None or isinstance(value, bool | float) or (type(value) is int and abs(value) < 1 << 64):
        return repr(value)
    return f"a value of type {type(value).__name__}"
