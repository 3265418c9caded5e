"""What implementations are known to do otherwise: spec/deviations/<name>.txt.

A line is ``test dtype record: reason``; blank lines and lines that begin with #
say nothing. An entry that no longer holds fails.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "deviations"


def read(path: Path) -> dict[str, str]:
    """Reason by case."""
    lines = path.read_text(encoding="utf-8").splitlines()
    parts = [line.partition(": ") for line in lines if line.strip() and not line.startswith("#")]
    return {case: reason for case, _, reason in parts}


DEVIATIONS = {path.stem: read(path) for path in sorted(FOLDER.glob("*.txt"))}
