"""Draw docs/figures/benchmarks.svg from the measurements in docs/benchmarks.json."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

from xplstm.cli import results

NUMBERS = Path(__file__).resolve().parents[1] / "benchmarks.json"


def draw(path: Path) -> None:
    """Draw the ratios of every shape as `python -m xplstm bench --plot` does."""
    with matplotlib.rc_context({"svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        results.draw(results.load(NUMBERS).rows, path, results.pairs)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_suffix(".svg"))
