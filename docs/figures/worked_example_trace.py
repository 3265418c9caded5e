"""Draw docs/figures/worked_example_trace.svg: the worked example's step, and what is left of it later."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

from xplstm.cli import example
from xplstm.plots import plot_trace

SILENT = 7


def draw(path: Path) -> None:
    """Gates and states of the example's step and of some steps whose input is zero."""
    lstm, x, state = example.setting("numpy", "float64")
    x = np.concatenate([x, np.zeros((SILENT, 1, 3))])
    # Text as outlines and no date: the same picture wherever and whenever the pages are built.
    with matplotlib.rc_context({"svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        figure = plot_trace(lstm.trace(x, state), tokens=["x", *["0"] * SILENT])
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
