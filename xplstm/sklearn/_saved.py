"""Convert parameters and attributes of an estimator to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xplstm._errors import ArgumentError


def plain(name: str, value: Any) -> Any:
    """Convert a value to JSON types: arrays with their dtype, mappings as lists of pairs."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "O" and not all(isinstance(item, str) for item in value.flat):
            msg = f"{name} contains objects that are not str"
            raise ArgumentError(msg)
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"pairs": [[plain(name, k), plain(f"{name}[{k!r}]", v)] for k, v in value.items()]}
    return value


def unplain(value: dict[str, Any]) -> Any:
    """Undo `plain`."""
    if value.keys() == {"array", "dtype"}:
        return np.asarray(value["array"], dtype=value["dtype"])
    if value.keys() == {"pairs"}:
        return dict(value["pairs"])
    return value
