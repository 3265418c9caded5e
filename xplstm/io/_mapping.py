"""Mappings of live arrays: state dicts, nested parameters, the attributes of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm.io._contents import Contents, Tensor, by_name, shown

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
            yield f"{start}{key}", Tensor(tuple(value.shape), dtype, partial(_read, f"{start}{key}", value))


def _read(name: str, a: Any) -> Any:
    """Return an array; of a tensor of PyTorch, the numbers that it shows."""
    if not hasattr(a, "is_meta"):
        return a
    if a.is_meta or str(a.layout) != "torch.strided":
        what = "on the meta device" if a.is_meta else f"of layout {a.layout}"
        msg = f"{WHERE}: {shown(name)} is {what}, whose numbers are not read"
        raise FormatError(msg)
    return a.resolve_conj().resolve_neg()
