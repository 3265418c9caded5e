"""Define a case of the suite: a test with its subject and values, its clauses, and how to run it alone."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from spec.records import RECORDS
from spec.subject import Adapter

CLAUSE = re.compile(r"XPL-[A-Z]+-\d{3}")

# Tests of records are short enough for a snippet; the snippet of any other test calls it.
RECORD_TESTS = {"test_outputs": ("outputs",), "test_gradients": ("outputs", "gradients")}
BY_RECORD = """\
from spec.records import RECORDS, arrays, errors
{subject}
record = RECORDS[{name!r}]
given = arrays(record["inputs"]{cotangents}, {dtype!r})
got = subject.call({op!r}, record["config"], given)
found = {{}}
for group in {groups!r}:
    for name, error in errors(got, record[group], {dtype!r}).items():
        found[name] = error, record["tolerance"][group]
print("error in u * s and what is allowed:", found)
assert all(error <= allowed for error, allowed in found.values())
"""
BY_CALL = """\
from {module} import {test}
{subject}
{test}(subject{values})
"""


class Chosen(NamedTuple):
    """Subject with the name by which it was selected."""

    name: str
    adapter: Adapter
    source: str
    """Python that makes it, for a snippet."""


class Case(NamedTuple):
    """Collected test of a subject."""

    test: str
    module: str
    subject: Chosen
    values: dict[str, Any]
    clauses: tuple[str, ...]

    @property
    def key(self) -> str:
        """Return the case as an entry in spec/deviations."""
        return " ".join([self.test, *(str(self.values[name]) for name in sorted(self.values))])

    @property
    def snippet(self) -> str:
        """Return a program that fails if the case fails."""
        groups = RECORD_TESTS.get(self.test)
        if groups is None:
            values = "".join(f", {name}={value!r}" for name, value in self.values.items())
            return BY_CALL.format(
                module=self.module, test=self.test, subject=self.subject.source, values=values
            )
        name, gradients = self.values["name"], "gradients" in groups
        return BY_RECORD.format(
            subject=self.subject.source,
            name=name,
            dtype=self.values["dtype"],
            cotangents=' | record["cotangents"]' * gradients,
            op=RECORDS[name]["op"] + "_vjp" * gradients,
            groups=groups,
        )


def case_of(item: pytest.Item) -> Case | None:
    """Return the case of an item; None without a subject."""
    callspec = getattr(item, "callspec", None)
    if not isinstance(item, pytest.Function) or callspec is None or "subject" not in callspec.params:
        return None
    marked = [clause for mark in item.iter_markers("clauses") for clause in mark.args]
    said = CLAUSE.findall(item.function.__doc__ or "")
    return Case(
        item.function.__name__,
        f"spec.{item.path.stem}",
        callspec.params["subject"],
        {name: value for name, value in callspec.params.items() if name != "subject"},
        tuple(sorted({*marked, *said})),
    )
