"""Count the wrong LSTMs and GRUs of each family that each clause detects: ``python -m spec kills``.

For vectors, spec/kills.json contains the result. The sized calls and the relations run here. Every
wrong LSTM that is not a mutant of the vectors runs the sized calls of each clause until one detects it,
and every wrong LSTM runs each relation once. Wrong GRUs run only the calls and relations of GRUs. Two
processes share the work. ``--kept FILE`` stores the results, so that an interrupted run can continue.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np

from spec import calls, gru_calls, gru_relations, mutants, relations, sized_mutants
from spec.diagnosis import WRONG_GRUS, WRONGS
from spec.records import RECORDS
from spec.relations import Ask
from spec.report import progress
from spec.subject import Arrays, Config

LONG = 100
FAILS = (IndexError, KeyError, ValueError)
"""Where a wrong LSTM cannot run, which is a find."""
AT_ONCE = 30
"""Wrong LSTMs between two notes of what is found."""
PROCESSES = 2
GRUS = {f"GRU: {name}": wrong for name, wrong in WRONG_GRUS.items()}
EVERY = WRONGS | GRUS


class Judged:
    """Wrong LSTM as a subject in float64."""

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(("name", "version", "library", "kernel"), self.name)

    def why_unavailable(self) -> str | None:
        return None

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        return EVERY[self.name].call(op, {"bidirectional": False, **config}, arrays)


def by_vectors() -> dict[str, set[str]]:
    """Return the clauses that detect each wrong LSTM, from the vectors that detect it."""
    found: dict[str, set[str]] = {name: set() for name in EVERY}
    published = json.loads(mutants.KILLS.read_text(encoding="utf-8"))
    for record, said in published.items():
        for name in said["kills"]:
            found[name] |= {*RECORDS[record]["clauses"]}
    return found


def by_calls(suite: ModuleType, names: Sequence[str]) -> dict[str, set[str]]:
    """Return the calls, cheapest first, whose results a wrong cell may change."""
    found: dict[str, set[str]] = {name: set() for name in names if name not in mutants.MUTANTS}
    for call in sorted(suite.CASES, key=lambda name: suite.CASES[name].work):
        case, a = suite.CASES[call], suite.given(call, "float64")
        for name, known in found.items():
            if known.issuperset(case.clauses) or (case.T > LONG and known and "step" not in name):
                continue
            if finds(suite, call, name, a):
                known |= {*case.clauses}
        sized_mutants.ANSWERED.clear()
    return found


def finds(suite: ModuleType, call: str, name: str, a: Arrays) -> bool:
    """Return whether a call detects a wrong cell, with gradients or without."""
    case, wrong, right = suite.CASES[call], EVERY[name].call, suite.expected(call, "float64")
    for op in (f"{case.op}_vjp",) if case.draws else (f"{case.op}_vjp", case.op):
        if not sized_mutants.may_differ(wrong, op, case.config, a):
            continue
        try:
            got, late = wrong(op, case.config, dict(a)), case.gradients and op != case.op
            if calls.misses(case, right, got, "float64", late):
                return True
        except FAILS:
            return True
    return False


def by_relations(suite: ModuleType, names: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in names}
    for law, (clause, _, applies) in suite.LAWS.items():
        call = next(name for name in suite.CALLS if applies(suite.CASES[name]))
        for name in names:
            try:
                said, _ = suite.broken(Ask(Judged(name), "float64"), law, call)
            except FAILS:
                said = ["the call fails"]
            if said:
                found[name].add(clause)
    return found


def judged(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the clauses that detect some wrong LSTMs, from the calls and relations that run here."""
    lstms, grus = ([n for n in names if n in of] for of in (WRONGS, GRUS))
    with np.errstate(all="ignore"):
        sizes = by_calls(calls, lstms) | by_calls(gru_calls, grus)
        laws = by_relations(relations, lstms) | by_relations(gru_relations, grus)
    return {name: sorted(sizes.get(name, set()) | laws[name]) for name in names}


def digest() -> str:
    """Return a hash of all that the result depends on."""
    folder = Path(__file__).parent
    files = sorted([*folder.glob("*.py"), *folder.glob("vectors/*.json"), mutants.KILLS])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def found_by_runs(kept: Path | None) -> dict[str, list[str]]:
    """Return what sized calls and relations detect, from an earlier run of the same suite if there is one."""
    state = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else {}
    of = digest()
    found: dict[str, list[str]] = state.get("found", {}) if state.get("of") == of else {}
    left = iter([name for name in EVERY if name not in found])
    parts = list(iter(lambda: tuple(islice(left, AT_ONCE)), ()))
    bar = progress(len(EVERY), "wrong LSTMs")
    bar.update(len(found))
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for part in pool.imap_unordered(judged, parts):
            found |= part
            bar.update(len(part))
            if kept:
                kept.write_text(json.dumps({"of": of, "found": found}), encoding="utf-8")
    bar.close()
    return found


def table(found: dict[str, set[str]]) -> Iterator[str]:
    """Yield one line for each clause and family: the number of detected wrong LSTMs, and of all."""
    sizes = Counter(wrong.family for wrong in EVERY.values())
    for clause in sorted(set().union(*found.values())):
        killed = Counter(EVERY[name].family for name, clauses in found.items() if clause in clauses)
        yield f"{clause}: " + ", ".join(f"{family} {n}/{sizes[family]}" for family, n in killed.most_common())
    alive = sorted(name for name in EVERY if not found[name])
    yield f"{len(EVERY) - len(alive)} of {len(EVERY)} die; alive: {', '.join(alive) or 'none'}"


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m spec kills", description=__doc__)
    parser.add_argument("--kept", type=Path, metavar="FILE", help="store results, and continue from them")
    runs, found = found_by_runs(parser.parse_args(arguments).kept), by_vectors()
    print(*table({name: found[name] | {*runs[name]} for name in EVERY}), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
