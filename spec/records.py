"""Read the published records as NumPy arrays, and measure the errors of results."""

from __future__ import annotations

import json
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from spec.judgement import Fault

Record: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, np.ndarray]

UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half the machine epsilon; NumPy cannot be asked for that of bfloat16."""


def stored(folder: str) -> dict[str, Record]:
    paths = sorted((Path(__file__).parent / folder).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


RECORDS, OF_GRUS = stored("vectors"), stored("vectors-gru")
VALID = [name for name, record in RECORDS.items() if record["result"] == "valid"]
STRESS = [name for name, record in RECORDS.items() if record["result"] == "stress"]


def named(op: str, result: str) -> list[str]:
    return [name for name, record in RECORDS.items() if (record["op"], record["result"]) == (op, result)]


def arrays(group: Record, dtype: str) -> Arrays:
    """Return a group of a record's arrays, each number rounded once; NaN if a record has no number."""
    return {
        name: np.array([float(v or "nan") for v in a["data"]], dtype).reshape(a["shape"])
        for name, a in group.items()
    }


def stated(reference: Record) -> np.ndarray:
    """Return where an array has a number; long records contain only some gradients."""
    return np.array([v != "" for v in reference["data"]], bool)


def error(got: np.ndarray, reference: Record, dtype: str) -> float:
    """Return the largest absolute error in u * s (XPL-NUM-001); infinite for another shape or dtype.

    NaN and infinities must be at the same positions as in the record.
    """
    if got.dtype != np.dtype(dtype) or list(got.shape) != reference["shape"]:
        return float("inf")
    here = stated(reference)
    texts = [v for v in reference["data"] if v]
    expected = np.array([float(v) for v in texts])
    flat = got.ravel().astype("float64")[here]
    finite = np.isfinite(expected)
    if (
        not np.array_equal(flat[~finite], expected[~finite], equal_nan=True)
        or not np.isfinite(flat[finite]).all()
    ):
        return float("inf")
    with localcontext(prec=60):
        exact = [Decimal(v) for v, keep in zip(texts, finite, strict=True) if keep]
        worst = max(
            (abs(Decimal(g) - e) for g, e in zip(flat[finite].tolist(), exact, strict=True)), default=0
        )
        scale = max((abs(e) for e in exact), default=Decimal(1))
        return float(worst / max(scale, Decimal(1)) / Decimal(UNITS[dtype]))


def errors(got: Arrays, references: Record, dtype: str) -> dict[str, float]:
    """Return the error of every tensor in both mappings."""
    return {name: error(got[name], reference, dtype) for name, reference in references.items() if name in got}


def too_large(got: Arrays, references: Record, dtype: str, allowed: float) -> list[Fault]:
    """Return the tensors in both mappings whose error is above what is allowed."""
    found = []
    for name, missed in errors(got, references, dtype).items():
        a, shape = got[name], references[name]["shape"]
        if missed <= allowed:
            continue
        if list(a.shape) != shape:
            found.append(Fault(name, f"has shape {a.shape}, expected {tuple(shape)}", has_numbers=False))
        elif a.dtype != np.dtype(dtype):
            found.append(Fault(name, f"has dtype {a.dtype}, expected {dtype}", has_numbers=False))
        elif missed < float("inf"):
            found.append(Fault(name, f"misses by {missed:.3g} u * s, allowed are {allowed:.3g}"))
        else:
            found.append(Fault(name, "has NaN or infinities where the record has none, or lacks them"))
    return found


def broken(inputs: Arrays, got: Arrays) -> list[str]:
    """Return the properties of any LSTM of one layer that this result does not have (XPL-NUM-006)."""
    y, h_n, c_n = got["y"], got["h_n"], got["c_n"]
    if not all(np.isfinite(a).all() for a in (y, h_n, c_n)):
        return ["a result is not finite"]
    holds = {
        "a number of y is larger than 1": np.abs(y).max() <= 1,
        "c_n is further from c_0 than there are steps": np.abs(c_n - inputs["c_0"]).max() <= len(y),
        "h_n is not y at the last step": np.array_equal(h_n, y[-1]),
    }
    return [fault for fault, held in holds.items() if not held]
