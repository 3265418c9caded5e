"""Write by which sized call each wrong LSTM is found: ``python -m spec.witnesses``.

Run by hand after a wrong LSTM or a call has changed; it takes minutes, because it
asks the cheapest calls first and stops at the one that distinguishes the wrong LSTM from
the right one. The tests ask that one alone.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

from spec import calls
from spec.calls import CASES, given
from spec.corner_mutants import MUTANTS as CORNERS
from spec.kills import finds
from spec.margin_mutants import MUTANTS as MARGINS
from spec.path_mutants import MUTANTS as PATHS
from spec.plausible_mutants import MUTANTS as PLAUSIBLE
from spec.sized_mutants import MUTANTS
from spec.subject import Arrays

FILE = Path(__file__).parent / "witnesses.json"
WRONG = MUTANTS | PLAUSIBLE | CORNERS | PATHS | MARGINS


@cache
def drawn(name: str) -> Arrays:
    """The arrays of a call; the same ones each time, because `right` remembers its answers by them."""
    return given(name, "float64")


def tells(name: str, mutant: str) -> bool:
    """Return whether a call distinguishes a wrong LSTM from the right one, with gradients or without them."""
    with np.errstate(all="ignore"):
        return finds(calls, name, mutant, drawn(name))


def main() -> int:
    """Write the file; fail where no call finds a wrong LSTM."""
    cheapest = sorted(CASES, key=lambda name: CASES[name].work)
    found = {mutant: next((name for name in cheapest if tells(name, mutant)), "") for mutant in WRONG}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    alive = [mutant for mutant, name in found.items() if not name]
    print(f"{len(found) - len(alive)} of {len(found)} are found; alive: {', '.join(alive) or 'none'}")
    return len(alive) > 0


if __name__ == "__main__":
    sys.exit(main())
