"""Decide which clauses a result is about: some are about outputs, others about gradients alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from spec.subject import Adapter, Arrays, Config, Unsupported

NOT_OF_NUMBERS = ("XPL-NUM-002", "XPL-SEQ-006", "XPL-REL-015")
"""Clauses about dtypes, inputs and settings, which wrong numbers alone do not break."""
OF_MEMORY = (
    *("XPL-NUM-002", "XPL-SEQ-006", "XPL-SEQ-011"),
    *("XPL-REL-013", "XPL-REL-015", "XPL-REL-016"),
)
"""Clauses about arrays and settings of a process, which a program cannot break: it exchanges numbers."""
BOUNDS = ("XPL-NUM-001", "XPL-NUM-005")
UNGIVEN, BROKEN = "gradients are missing because", "broken clauses"
"""Names of the properties of a test's report."""


class Fault(NamedTuple):
    """What is wrong with one array of an answer."""

    array: str
    what: str
    has_numbers: bool = True
    """Whether its shape and dtype are right, so that only its numbers are wrong."""

    def __str__(self) -> str:
        return f"{self.array} {self.what}"

    @property
    def is_of_gradients(self) -> bool:
        return self.array.startswith("d")


class Missed(AssertionError):
    """A case failed because of these faults."""

    def __init__(self, where: str, faults: Sequence[Fault]) -> None:
        super().__init__(f"{where}: {'; '.join(map(str, faults))}")
        self.faults = faults


def require_none(faults: Sequence[Fault], where: str) -> None:
    """Raise `Missed` if an answer has faults."""
    __tracebackhide__ = True
    if faults:
        raise Missed(where, faults)


def is_of_gradients(clause: str) -> bool:
    """Return whether a clause is about gradients alone."""
    return clause.startswith("XPL-GRAD-") or clause == "XPL-VAR-017"


def broken(clauses: Iterable[str], error: BaseException | None) -> tuple[str, ...]:
    """Return the clauses of a case that its failure shows to be broken."""
    found = tuple(clauses)
    if not isinstance(error, Missed):
        return found
    if all(fault.has_numbers for fault in error.faults):
        found = tuple(c for c in found if c not in NOT_OF_NUMBERS)
    if any(c.startswith("XPL-GRU-") for c in found):
        return found  # the clauses of GRUs are about outputs and gradients
    kinds = {fault.is_of_gradients for fault in error.faults}
    if True in kinds and not any(map(is_of_gradients, found)):
        found = ("XPL-GRAD-001", *found)
    return tuple(c for c in found if c in BOUNDS or is_of_gradients(c) in kinds)


class Watched:
    """Subject that remembers, until `declined` is cleared, why it gave no gradients."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.declined = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapter, name)

    def describe(self) -> dict[str, str]:
        return self.adapter.describe()

    def why_unavailable(self) -> str | None:
        return self.adapter.why_unavailable()

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        try:
            return self.adapter.call(op, config, arrays)
        except Unsupported as reason:
            if op.endswith("_vjp"):
                self.declined = str(reason)
            raise
