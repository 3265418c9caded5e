"""Draw docs/figures/benchmarks.svg from the measurements in docs/benchmarks.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

from xplstm.cli.peers import Shape
from xplstm.cli.results import Found
from xplstm.cli.results import draw as draw_ratios

NUMBERS = Path(__file__).resolve().parents[1] / "benchmarks.json"


def measured() -> dict[int, Found]:
    """Return the times by number of threads, what was timed, and shape."""
    times = json.loads(NUMBERS.read_text(encoding="utf-8"))["times"]
    return {
        int(threads): {
            what: {Shape(*map(int, shape.split(","))): found for shape, found in rows.items()}
            for what, rows in kinds.items()
        }
        for threads, kinds in times.items()
    }


def draw(path: Path) -> None:
    """Draw the ratios of every shape as `python -m xplstm bench --plot` does."""
    with matplotlib.rc_context({"svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        draw_ratios(measured(), path)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_suffix(".svg"))
