"""Define the calls of a case, and explain their results."""

from __future__ import annotations

from typing import NamedTuple

from spec import calls, gru_calls
from spec.cases import Case
from spec.records import OF_GRUS, RECORDS, Record, arrays
from spec.subject import Arrays, Unsupported

MOST = 10
"""Failures of a process that are explained; each takes a second."""
LONG = 100
SIZED = {"test_sizes": calls, "test_gru_sizes": gru_calls}


class Question(NamedTuple):
    """One call."""

    op: str
    config: Record
    arrays: Arrays
    dtype: str


def questions(case: Case) -> list[Question]:
    """Return the calls of a case, the one with gradients first; none if the case is not a single call."""
    name, dtype = str(case.values.get("name")), str(case.values.get("dtype", "float64"))
    if case.test in ("test_outputs", "test_gradients") and "outputs" in RECORDS[name]:
        record = RECORDS[name]
        inputs = arrays(record["inputs"], dtype)
        found = [Question(record["op"], record["config"], inputs, dtype)]
        if case.test == "test_gradients":
            cotangents = arrays(record["cotangents"], dtype)
            found = [Question(f"{record['op']}_vjp", record["config"], inputs | cotangents, dtype)]
        return found
    if case.test == "test_gru_record":
        record = OF_GRUS[name]
        inputs, cotangents = (arrays(record[part], dtype) for part in ("inputs", "cotangents"))
        op = record["op"]
        return [
            Question(f"{op}_vjp", record["config"], inputs | cotangents, dtype),
            Question(op, record["config"], inputs, dtype),
        ]
    if case.test in SIZED:
        suite = SIZED[case.test]
        one, a = suite.CASES[name], suite.given(name, dtype)
        forward = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
        return [
            Question(f"{one.op}_vjp", one.config, dict(a), dtype),
            Question(one.op, one.config, forward, dtype),
        ][not one.gradients :]
    return []


def say(case: Case) -> str:
    """Return the wrong LSTM that gives the numbers of a failed case; an empty string if none is compared."""
    # The wrong LSTMs are made only when something has failed.
    from spec.diagnosis import explain

    for question in questions(case):
        if len(question.arrays["x"]) > LONG:
            continue
        try:
            got = case.subject.adapter.call(question.op, question.config, dict(question.arrays))
        except Unsupported:
            continue
        except Exception as error:
            return f"the call ends in {type(error).__name__}: {error}"
        return explain(question.op, question.config, question.arrays, got, question.dtype)
    return ""
