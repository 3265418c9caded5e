"""Register layers and models as pytrees of JAX: the parameters are leaves, all other attributes are static.

This module does not import JAX. A class is registered when it is defined, or, if JAX is imported later,
when the next layer allocates parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class _Static:
    """The attributes of an object without its children. Two instances are equal if their descriptions are."""

    def __init__(self, description: str, attributes: dict[str, Any]) -> None:
        self.description, self.attributes = description, attributes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.description == other.description

    def __hash__(self) -> int:
        return hash(self.description)

    def __repr__(self) -> str:
        return self.description


class _Waiting(NamedTuple):
    """A class to register, and a function that names its attributes with parameters."""

    kind: type
    names: Callable[[Any], tuple[str, ...]]


_waiting: list[_Waiting] = []


def add(kind: type, names: Callable[[Any], tuple[str, ...]]) -> None:
    """Register a class; `names(object)` returns the attributes that are pytrees, such as ``params``."""
    _waiting.append(_Waiting(kind, names))
    register()


def register() -> None:
    """Register the waiting classes if JAX is imported."""
    if not _waiting or "jax" not in sys.modules:
        return
    from jax import tree_util

    while _waiting:
        kind, names = _waiting.pop()

        def flatten(item: Any, names: Callable[[Any], tuple[str, ...]] = names) -> tuple[Any, Any]:
            chosen = names(item)
            rest = {name: value for name, value in vars(item).items() if name not in chosen}
            return tuple(getattr(item, name) for name in chosen), (chosen, _Static(repr(item), rest))

        def unflatten(static: Any, children: Any, kind: type = kind) -> Any:
            # Do not check the children: JAX also passes placeholder objects instead of arrays.
            item: Any = object.__new__(kind)
            chosen, others = static
            vars(item).update(others.attributes, **dict(zip(chosen, children, strict=True)))
            return item

        tree_util.register_pytree_node(kind, flatten, unflatten)
