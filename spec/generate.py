"""Write spec/vectors/*.json and their hashes from the oracle: ``python -m spec.generate [NAME ...]``.

Run by hand when a vector is added or a clause changes. The test suite computes
every output and a sample of the gradients again, and compares; nothing
overwrites a published number on its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import textwrap
from pathlib import Path

from mpmath import mp

from spec import documents, families, oracle, rounding, variants
from spec.dyadic import Record
from spec.families import Wanted, every

VECTORS = Path(__file__).parent / "vectors"
PINS = VECTORS / "SHA256SUMS"
BUILDERS = families.CASES | documents.CASES | variants.CASES


def record(name: str, wanted: Wanted = every) -> Record:
    """Return one published record in the precision of the oracle, with gradients where `wanted`."""
    with mp.workdps(oracle.DIGITS):
        return {"name": name, **BUILDERS[name](wanted)}


def finished(found: Record) -> Record:
    """Return the record with its tolerance, if it has outputs to compare."""
    return found | {"tolerance": rounding.tolerance(found)} if found["result"] == "valid" else found


def dumps(content: Record) -> str:
    """Return JSON with filled lines of the innermost lists, for readable diffs."""
    body = json.dumps(content, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda m: fill(m[0]), body) + "\n"


def fill(numbers: str) -> str:
    return textwrap.fill(" ".join(numbers.split()), 100, break_long_words=False, break_on_hyphens=False)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(names: list[str]) -> int:
    for name in names or BUILDERS:
        (VECTORS / f"{name}.json").write_text(dumps(finished(record(name))), encoding="utf-8")
        print(name)
    lines = [f"{digest(path)}  {path.name}\n" for path in sorted(VECTORS.glob("*.json"))]
    PINS.write_text("".join(lines), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
