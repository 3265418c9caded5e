"""What a file or a mapping holds, before anything is made of it: tensors, and the networks among them.

Every format, ours and others', speaks in these tuples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from xplstm._errors import FormatError
from xplstm._typing import Array

# No honest name is longer; without a bound a short file could spell a long name many times over.
LONGEST_NAME = 1000


class Opening(NamedTuple):
    """What can be seen of a file without reading it."""

    path: str
    head: bytes
    """Its first 64 bytes, or fewer."""
    members: Collection[str]
    """The names in the archive, if it is a zip file; else none."""


class Tensor(NamedTuple):
    """An array that is there, and perhaps not read yet."""

    shape: tuple[int, ...]
    dtype: str
    array: Callable[[], Array]
    """The array itself: NumPy's for a file (or a view of it), any library's for a mapping."""


class Contents(NamedTuple):
    """What a file or a mapping holds."""

    where: str
    """How errors call it: the path, or "the mapping"."""
    file: str
    """Name of the file format, a key of `_registry.FILES`, or "mapping"."""
    tensors: Mapping[str, Tensor]
    """By name; the parts of a name, where it has some, are joined by dots: see `by_name`."""
    metadata: Mapping[str, Any]
    """Whatever else the format knows: a configuration, a graph."""
    layout: str | None = None
    """The only layout that this file can have; None where it could have any."""
    said: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """What a live module says of a network, by its prefix: options, or a ``problem`` in words."""


class Found(NamedTuple):
    """A network among the contents: where, what, and how to get its parameters."""

    prefix: str
    """What the names of its tensors begin with, without the last dot; "" where nothing is before them."""
    layout: str
    """A key of `_registry.LAYOUTS`."""
    kind: str
    """Name of its class, as `nn.NETWORKS` lists it."""
    options: Mapping[str, Any]
    """Arguments of that class: all sizes, and the options that the contents give."""
    gates: str
    """The order of the gates, in words; two layouts with the same words read the same numbers."""
    names: tuple[str, ...]
    """The tensors that it is made of."""
    params: Callable[[], dict[str, Array]]
    """Parameters by the names of `LSTM.params`, of the shapes that `options` imply; called once, last."""
    problem: str | None = None
    """Why it cannot be loaded, in words that name tensor, shape and what was expected; else None."""
    untold: tuple[str, ...] = ()
    """Arguments that change the numbers and that are not among the contents: a caller must give them.

    "format" is one where the class has no other functions than its own: a caller confirms those. "reverse" is
    one where the outputs are from the last step to the first: a caller confirms that ours are in order of
    time.
    """
    parts: tuple[str, ...] = ()
    """The prefixes of the cells that it is made of, where they are not its own."""

    state: tuple[Array, ...] | None = None
    """Its own initial state, h or h and c, of (layers and directions, batch, size); None if it has none."""
    lengths: tuple[int, ...] | None = None
    """Its own lengths of the sequences, one if all have the same; None if it has none."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the file passes to each call of the network."""
        given = {"state": self.state, "lengths": self.lengths}
        return tuple(name for name, value in given.items() if value is not None)

    @property
    def places(self) -> tuple[str, ...]:
        """The prefixes under which every tensor must be one of its own, or harmless."""
        return self.parts or (self.prefix,)


def by_name(where: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors under names whose parts are joined by dots, each name once."""
    found: dict[str, Tensor] = {}
    for given, tensor in tensors:
        name = dotted(given)
        if len(name) > LONGEST_NAME:
            start = shown(name[:40])
            msg = f"{where} holds a name of {len(name)} letters, {start}...; {LONGEST_NAME} are allowed"
            raise FormatError(msg)
        if name in found:
            msg = f"{where} holds {shown(name)} twice"
            raise FormatError(msg)
        found[name] = tensor
    return found


def json_object(what: str, text: str | bytes, once: bool = False) -> dict[str, Any]:
    """Return a JSON object of a file; with `once`, refuse a name that occurs twice in an object."""
    try:
        plain = text.decode() if isinstance(text, bytes) else text
        found = json.loads(plain, object_pairs_hook=_each_once if once else None)
    except (ValueError, TypeError, RecursionError) as error:
        msg = f"{what} is no JSON: {quoted(str(error))}"
        raise FormatError(msg) from error
    if not isinstance(found, dict):
        msg = f"{what} is no JSON object"
        raise FormatError(msg)
    return found


def _each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; ValueError if a name occurs twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            msg = f"{shown(name[:80])} occurs twice"
            raise ValueError(msg)
        found[name] = value
    return found


def dotted(name: str) -> str:
    """Return `name` with dots between its parts, and without the ":0" of TensorFlow's variables."""
    return name.replace("/", ".").removesuffix(":0").strip(".")


# How much of a file's name or value is shown in a message.
_LONGEST_SHOWN = 200


def shown(name: str, longest: int = _LONGEST_SHOWN) -> str:
    """Return the start of a name of a file as text that a terminal can be given."""
    start = name[:longest]
    start = start if start.isprintable() else ascii(start)[1:-1]
    return start if len(name) <= longest else f"{start[:longest]}..."


def quoted(value: object) -> str:
    """Return a value of a file as text; only its type where its text could be long."""
    if isinstance(value, str | bytes):
        return ascii(value[:_LONGEST_SHOWN])
    if value is None or isinstance(value, bool | float) or (type(value) is int and abs(value) < 1 << 64):
        return repr(value)
    return f"a value of type {type(value).__name__}"
