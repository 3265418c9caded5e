"""Read the clauses of SPEC.md and their register: ``python -m spec.clauses`` enters new and changed clauses.

A clause's history holds one hash for each version of its text, and is only
ever added to: text that changes without a new version is found by its hash.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

SPEC = Path(__file__).parent / "SPEC.md"
REGISTER = Path(__file__).parent / "clauses.toml"
HEAD = re.compile(r"^\*\*(XPL-[A-Z]+-\d{3})\*\* \((MUST|SHOULD|MAY)(, draft)?\) ", re.MULTILINE)


class Clause(NamedTuple):
    """Clause with its current text."""

    id: str
    level: str
    status: str
    text: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(f"{self.level} {self.status} {self.text}".encode()).hexdigest()


def clauses(prose: str) -> dict[str, Clause]:
    """Return every clause by id; a text ends at an empty line, and line breaks do not count."""
    found = {}
    for match in HEAD.finditer(prose):
        text = " ".join(prose[match.end() :].partition("\n\n")[0].split())
        found[match[1]] = Clause(match[1], match[2], "draft" if match[3] else "stable", text)
    return found


def version(prose: str) -> str:
    """Return the version that SPEC.md states."""
    match = re.search(r"^Version (\d+\.\d+)\.", prose, re.MULTILINE)
    assert match is not None
    return match[1]


def register() -> dict[str, Any]:
    return tomllib.loads(REGISTER.read_text(encoding="utf-8")) if REGISTER.exists() else {}


def entered(known: dict[str, Any], prose: str) -> dict[str, Any]:
    """Return the register with new clauses and new versions of changed ones; no entry is removed."""
    found = dict(known)
    for clause in clauses(prose).values():
        entry = found.get(clause.id, {"since": version(prose), "history": []})
        history = [*entry["history"]]
        if not history or history[-1] != clause.hash:
            history.append(clause.hash)
        found[clause.id] = {
            "level": clause.level,
            "status": clause.status,
            "since": entry["since"],
            "history": history,
        }
    return found


def dumps(entries: dict[str, Any]) -> str:
    parts = []
    for name, entry in sorted(entries.items()):
        hashes = "".join(f'    "{digest}",\n' for digest in entry["history"])
        head = "".join(f'{key} = "{entry[key]}"\n' for key in ("level", "status", "since"))
        parts.append(f"[{name}]\n{head}history = [\n{hashes}]\n")
    return "\n".join(parts)


def main() -> int:
    REGISTER.write_text(dumps(entered(register(), SPEC.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
