"""Read the known deviations of implementations: spec/deviations/<name>.txt.

A line is ``test value value: reason (XPL-..., XPL-...)``, with the values in the order of their names, as a
failure prints them. * matches any value. The clauses are those that the implementation violates; the case
does not count for its other clauses. Empty lines and lines that begin with # are ignored. Every case of an
entry must fail, and every entry must match a case.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "deviations"
FORM = re.compile(
    r"(?P<case>\S[^:]*): (?P<reason>\S.*) \((?P<clauses>XPL-[A-Z]+-\d{3}(, XPL-[A-Z]+-\d{3})*)\)"
)


class Deviation(NamedTuple):
    """One entry."""

    case: str
    reason: str
    clauses: tuple[str, ...]

    def means(self, key: str) -> bool:
        """Return whether the entry matches a case, word by word."""
        words, given = self.case.split(), key.split()
        return len(words) == len(given) and all(map(fnmatchcase, given, words))


@cache
def read(path: Path) -> tuple[Deviation, ...]:
    """Return the entries of a file; a missing file has none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return tuple(parsed(path, line) for line in lines if line.strip() and not line.startswith("#"))


def parsed(path: Path, line: str) -> Deviation:
    match = FORM.fullmatch(line.strip())
    if match is None:
        msg = f"{path.name}: {line!r} is not of the form 'test value value: reason (XPL-ABC-001)'"
        raise ValueError(msg)
    return Deviation(match["case"], match["reason"], tuple(match["clauses"].split(", ")))


def why_unusable(path: Path) -> str | None:
    """Return that a list is missing or has a wrong line, or None."""
    if not path.exists():
        return f"the list of deviations {str(path)!r} does not exist"
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return None


def path_of(subject: str) -> Path:
    return FOLDER / f"{subject}.txt"


def find(path: Path, key: str) -> Deviation | None:
    """Return the entry that matches a case, or None; two are an error."""
    found = [entry for entry in read(path) if entry.means(key)]
    if len(found) > 1:
        msg = f"{path.name} has several entries for {key!r}: {[entry.case for entry in found]}"
        raise ValueError(msg)
    return found[0] if found else None


def stale(path: Path, keys: set[str]) -> list[str]:
    """Return the entries that match none of these cases."""
    return [entry.case for entry in read(path) if not any(entry.means(key) for key in keys)]
