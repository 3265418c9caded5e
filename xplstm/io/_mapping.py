"""Mappings of live arrays: state dicts, nested parameters, the attributes of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from xplstm import _array
from xplstm._errors import ArgumentError
from xplstm.io._contents import Contents, Tensor, by_name

WHERE = "the mapping"
_DEEPEST = 64


def contents(given: Mapping[Any, Any]) -> Contents:
    """Return what a mapping holds, nested or not; what is no array of plain numbers is ignored."""
    return Contents(WHERE, "mapping", by_name(WHERE, _leaves(given, "", 0)), {})


def _leaves(given: Mapping[Any, Any], start: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEEPEST:
        msg = f"{WHERE} is nested deeper than {_DEEPEST}"
        raise ArgumentError(msg)
    for parts, value in given.items():
        # The keys of a flat state are paths.
        key = ".".join(map(str, parts)) if isinstance(parts, tuple) else parts
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{key}.", depth + 1)
        elif (
            hasattr(value, "shape") and hasattr(value, "dtype") and not getattr(value, "is_quantized", False)
        ):
            dtype = _array.dtype_name(value.dtype)
            yield f"{start}{key}", Tensor(tuple(value.shape), dtype, partial(_same, value))


def _same(a: Any) -> Any:
    return a
