"""Read mappings of arrays: state dicts, nested parameters, attributes of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm.io._contents import Contents, Tensor, by_name, show

WHERE = "the mapping"
_DEEPEST = 64


def contents(given: Mapping[Any, Any]) -> Contents:
    """Return the contents of a flat or nested mapping; ignore values that are not arrays of numbers."""
    return Contents(WHERE, "mapping", by_name(WHERE, _leaves(given, "", 0)), {})


def _leaves(given: Mapping[Any, Any], start: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEEPEST:
        msg = f"{WHERE} is nested deeper than {_DEEPEST} levels"
        raise ArgumentError(msg)
    for parts, value in given.items():
        # The keys of a flat state are paths.
        key = ".".join(map(str, parts)) if isinstance(parts, tuple) else parts
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{key}.", depth + 1)
        elif getattr(value, "is_nested", False):  # has no shape
            yield f"{start}{key}", Tensor((), "unreadable", partial(_load, f"{start}{key}", value))
        elif (
            hasattr(value, "shape") and hasattr(value, "dtype") and not getattr(value, "is_quantized", False)
        ):
            dtype = _array.dtype_name(value.dtype)
            yield f"{start}{key}", Tensor(tuple(value.shape), dtype, partial(_load, f"{start}{key}", value))


def _load(name: str, a: Any) -> Any:
    """Return a checked array, or the detached values of a PyTorch tensor."""
    if not hasattr(a, "is_meta"):
        _array.namespace(a, show(name))
        return a
    if a.is_meta or a.is_nested or str(a.layout) != "torch.strided":
        what = "on the meta device" if a.is_meta else "nested" if a.is_nested else f"of layout {a.layout}"
        msg = f"{WHERE}: {show(name)} is {what}, which cannot be read"
        raise FormatError(msg)
    return a.resolve_conj().resolve_neg()
