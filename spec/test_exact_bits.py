"""The records of the profile `exact` against every subject that claims it, bit by bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from spec import exact_cases
from spec.subject import Adapter, Unsupported

RECORDS: dict[str, Any] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(exact_cases.VECTORS.glob("*.json"))
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.clauses(*record["clauses"])) for name, record in RECORDS.items()],
)
def test_every_bit(subject: Adapter, name: str) -> None:
    record = RECORDS[name]
    given = {key: np.array(a, record["dtype"]) for key, a in exact_cases.inputs(record).items()}
    try:
        got = subject.call(record["op"], record["config"] | {"profile": "exact"}, given)
    except Unsupported as reason:
        pytest.skip(str(reason))
    for key, expected in record["outputs"].items():
        flat = np.array([float.fromhex(v) for v in expected["data"]], record["dtype"])
        assert got[key].dtype == flat.dtype
        np.testing.assert_array_equal(got[key], flat.reshape(expected["shape"]), err_msg=key)
