"""``python -m spec kills``: how many wrong LSTMs of each family die by each clause.

Vectors say it by spec/kills.json. The sized calls and the relations are run here,
which takes minutes: every wrong LSTM that is no mutant of the vectors through
the sized calls of each clause until one finds it, and every one through each
relation once.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np

from spec import calls, mutants, plan, sized_mutants
from spec.calls import faults
from spec.diagnosis import WRONGS
from spec.records import RECORDS
from spec.relations import LAWS, Ask, broken
from spec.subject import Arrays, Config

LONG = 100
FAILS = (IndexError, KeyError, ValueError)
"""Where a wrong LSTM cannot run, which is a find."""
CALLS = ("layer", "module-three-by-two", "module-two-directions", "options-5")
"""The relations are asked of the first of these that they say something of."""


class Judged:
    """A wrong LSTM as a subject in float64."""

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(("name", "version", "library", "kernel"), self.name)

    def why_unavailable(self) -> str | None:
        return None

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        return WRONGS[self.name].call(op, {"bidirectional": False, **config}, arrays)


def by_vectors() -> Iterator[tuple[str, str]]:
    """Clause and wrong LSTM, of each vector that finds it."""
    published = json.loads(mutants.KILLS.read_text(encoding="utf-8"))
    for record, said in published.items():
        yield from ((clause, name) for clause in RECORDS[record]["clauses"] for name in said["kills"])


def by_sizes() -> Iterator[tuple[str, str]]:
    """The cheapest calls first; a wrong LSTM is asked only what can say more of it."""
    found: set[tuple[str, str]] = set()
    for call in sorted(calls.CASES, key=calls.cost):
        case, a = calls.CASES[call], calls.given(call, "float64")
        for name, wrong in WRONGS.items():
            more = {(clause, name) for clause in case.clauses} - found
            if not more or name in mutants.MUTANTS or (case.T > LONG and "step" not in name):
                continue
            try:
                got = wrong.call(f"{case.op}_vjp", case.config, dict(a))
                said = faults(call, got, "float64", case.gradients)
            except FAILS:
                said = ["the call fails"]
            if said:
                found |= more
        sized_mutants.ANSWERED.clear()
    yield from found


def by_relations() -> Iterator[tuple[str, str]]:
    for law, (clause, _, applies) in LAWS.items():
        call = next(name for name in CALLS if applies(plan.CASES[name]))
        for name in WRONGS:
            try:
                said, _ = broken(Ask(Judged(name), "float64"), law, call)
            except FAILS:
                said = ["the call fails"]
            if said:
                yield clause, name


def table() -> list[str]:
    """One line for each clause and family: how many die, of how many."""
    with np.errstate(all="ignore"):
        found = {*by_vectors(), *by_sizes(), *by_relations()}
    sizes = Counter(wrong.family for wrong in WRONGS.values())
    lines = []
    for clause in sorted({clause for clause, _ in found}):
        killed = Counter(WRONGS[name].family for of, name in found if of == clause)
        families = ", ".join(f"{family} {n}/{sizes[family]}" for family, n in killed.most_common())
        lines.append(f"{clause}: {families}")
    alive = sorted(WRONGS.keys() - {name for _, name in found})
    lines.append(f"{len(WRONGS) - len(alive)} of {len(WRONGS)} die; alive: {', '.join(alive) or 'none'}")
    return lines


def main() -> int:
    print(*table(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
