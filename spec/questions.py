"""Repeat a failed case, and explain the results of its calls."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any, NamedTuple

import pytest

from spec.cases import Case
from spec.offers import Offered
from spec.stdio import InvalidAnswer
from spec.subject import Adapter, Arrays, Config, Refused, Unsupported

MOST = 10
"""Failures of a process that are explained; each takes a second."""
LONG = 100
PASSES = (
    "the case passes when it is repeated: its result depends on earlier calls, "
    "and the program that reproduces it may pass too"
)
TOO_LONG = f"no comparison with wrong LSTMs: its calls have more than {LONG} steps"
UNJUDGED = ("XPL-ERR-", "XPL-REL-012")
"""Clauses whose cases make wrong calls, which have no correct results."""


class Answer(NamedTuple):
    """One call and its results."""

    op: str
    config: Config
    arrays: Arrays
    got: Arrays

    def explainable(self) -> bool:
        """Return whether wrong LSTMs or GRUs run calls of this kind, and in short time."""
        cell = self.config.get("cell", "lstm")
        profile = self.config.keys() & {"profile", "weights"}
        return cell in ("lstm", "gru") and not profile and not self.is_long()

    def is_long(self) -> bool:
        return len(self.arrays["x"]) > LONG


class Recorded:
    """Subject that keeps its answers."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.answers: list[Answer] = []
        self.error = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapter, name)

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        # Tests change arrays and options between calls.
        given = {n: v.copy() for n, v in arrays.items()}, copy.deepcopy(config)
        try:
            got = self.adapter.call(op, config, arrays)
        except (Refused, Unsupported):
            raise
        except Exception as error:
            self.error = f"the call ends in {type(error).__name__}: {error}"
            raise
        self.answers.append(Answer(op, given[1], given[0], {n: v.copy() for n, v in got.items()}))
        return got


def is_invalid_answer(error: BaseException | None) -> bool:
    """Return whether a line of a program that is no answer caused an error: repeated, its case may pass."""
    while error is not None and not isinstance(error, InvalidAnswer):
        error = error.__cause__ or error.__context__
    return error is not None


def say(case: Case) -> str:
    """Return the wrong LSTM that gives the numbers of a failed case; an empty string if none is compared."""
    # The wrong LSTMs are made only when something has failed.
    from spec.diagnosis import explain

    if isinstance(case.subject.adapter, Offered):
        # What an earlier call left in the process must not reach the repeated case.
        case.subject.adapter.program.abandon()
    subject, test = Recorded(case.subject.adapter), getattr(importlib.import_module(case.module), case.test)
    others = {"note": lambda *_: None} if "note" in inspect.signature(test).parameters else {}
    try:
        test(subject, **case.values, **others)
    except (Exception, pytest.fail.Exception):
        # The report of the first failure says what is wrong with these results.
        if subject.error:
            return subject.error
    else:
        return PASSES
    if any(clause.startswith(UNJUDGED) for clause in case.clauses):
        return ""
    said = (explain(*one, str(one.arrays["x"].dtype)) for one in subject.answers if one.explainable())
    return next(filter(None, said), TOO_LONG if any(one.is_long() for one in subject.answers) else "")
