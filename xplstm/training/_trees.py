"""Name and replace arrays in nested tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from xplstm._typing import Array

Tree: TypeAlias = Any
"""An array, None, or a tuple, list, NamedTuple or mapping of trees."""


def leaves(trees: Mapping[str, Tree]) -> Iterator[tuple[str, Array]]:
    """Yield every array with its name, such as ``state.h``, ``params.weight`` or ``pair[1]``."""
    for name, tree in trees.items():
        branches = _branches(name, tree)
        if branches is None:
            yield name, tree
        else:
            yield from leaves(branches)


def beside(trees: Mapping[str, Tree], others: Mapping[str, Tree]) -> Iterator[tuple[str, Array | None]]:
    """Yield the name of each array, and the array at the same place in `others`, or None."""
    for name, tree in trees.items():
        branches, other = _branches(name, tree), others.get(name)
        if branches is None:
            yield name, other
        else:
            yield from beside(branches, dict(zip(branches, _in_order(tree, other), strict=False)))


def _in_order(tree: Tree, other: Tree) -> list[Tree]:
    """Return the branches of `other` in the order of `tree`: mappings by key, others by position."""
    if isinstance(tree, Mapping):
        return [other.get(key) for key in tree] if isinstance(other, Mapping) else []
    return list(other) if isinstance(other, tuple | list) else []


def map_arrays(name: str, tree: Tree, new: Callable[[str, Array], Array]) -> Tree:
    """Return a tree with ``new(name, array)`` for each array."""
    branches = _branches(name, tree)
    if branches is None:
        return new(name, tree)
    if tree is None:
        return None
    items = [map_arrays(inner, branch, new) for inner, branch in branches.items()]
    if isinstance(tree, Mapping):
        return dict(zip(tree, items, strict=True))
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def with_array(trees: Mapping[str, Tree], name: str, a: Array) -> dict[str, Tree]:
    """Return the trees with `a` in place of the array `name`."""

    def new(found: str, old: Array) -> Array:
        return a if found == name else old

    return {key: map_arrays(key, tree, new) for key, tree in trees.items()}


def _branches(name: str, tree: Tree) -> dict[str, Tree] | None:
    """Return the branches of a tree by name; None for an array."""
    if tree is None:
        return {}
    if isinstance(tree, Mapping):
        return {f"{name}.{key}": branch for key, branch in tree.items()}
    if isinstance(tree, tuple | list):
        fields = getattr(tree, "_fields", None)
        names = [f"[{k}]" for k in range(len(tree))] if fields is None else [f".{field}" for field in fields]
        return {f"{name}{inner}": branch for inner, branch in zip(names, tree, strict=True)}
    return None
