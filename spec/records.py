"""The published records as NumPy arrays, and how far a result is from them."""

from __future__ import annotations

import json
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Record: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, np.ndarray]

PATHS = sorted((Path(__file__).parent / "vectors").glob("*.json"))
RECORDS: dict[str, Record] = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in PATHS}
VALID = [name for name, record in RECORDS.items() if record["result"] == "valid"]


def named(op: str, result: str) -> list[str]:
    return [name for name, record in RECORDS.items() if (record["op"], record["result"]) == (op, result)]


def arrays(group: Record, dtype: str) -> Arrays:
    """A group of a record's arrays, each number rounded once."""
    return {
        name: np.array([float(v) for v in a["data"]], dtype).reshape(a["shape"]) for name, a in group.items()
    }


def error(got: np.ndarray, reference: Record, dtype: str) -> float:
    """XPL-NUM-001: the largest absolute error in u * s; infinite for another shape or dtype.

    NaN and infinities must stand exactly where the record has them.
    """
    if got.dtype != np.dtype(dtype) or list(got.shape) != reference["shape"]:
        return float("inf")
    expected = np.array([float(v) for v in reference["data"]])
    flat = got.ravel().astype("float64")
    finite = np.isfinite(expected)
    if (
        not np.array_equal(flat[~finite], expected[~finite], equal_nan=True)
        or not np.isfinite(flat[finite]).all()
    ):
        return float("inf")
    with localcontext(prec=60):
        exact = [Decimal(v) for v, keep in zip(reference["data"], finite, strict=True) if keep]
        worst = max(
            (abs(Decimal(g) - e) for g, e in zip(flat[finite].tolist(), exact, strict=True)), default=0
        )
        scale = max((abs(e) for e in exact), default=Decimal(1))
        return float(worst / max(scale, Decimal(1)) / Decimal(float(np.finfo(dtype).eps) / 2))


def errors(got: Arrays, references: Record, dtype: str) -> dict[str, float]:
    """The error of every tensor that both hold."""
    return {name: error(got[name], reference, dtype) for name, reference in references.items() if name in got}
