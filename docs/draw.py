"""Run the programs of guide pages, show what they print, and keep the figures that they draw.

    python -m docs.draw classification forecasting

A page's text holds what such a run printed, and docs/figures what it drew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import matplotlib

from tests.support.pages import SNIPPETS

FIGURES = Path(__file__).resolve().parent / "figures"


def draw(name: str) -> None:
    """Run all programs of docs/guides/<name>.md in order, in a folder of their own."""
    page = f"docs/guides/{name}.md"
    programs = [snippet for snippet in SNIPPETS if snippet.page == page and snippet.language == "python"]
    if not programs:
        sys.exit(f"{page} has no programs")
    namespace = {"__name__": "snippet"}
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context({"svg.hashsalt": "xplstm"}):
        os.chdir(folder)
        for snippet in programs:
            print(f"--- {page}:{snippet.line}", flush=True)
            exec(compile("\n" * snippet.line + snippet.code, page, "exec"), namespace)
        for drawn in sorted(Path(folder).glob("*.svg")):
            # Lines of an SVG by Matplotlib end in spaces.
            lines = (line.rstrip() for line in drawn.read_text(encoding="utf-8").splitlines())
            (FIGURES / drawn.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"wrote {FIGURES / drawn.name}")
        os.chdir(FIGURES)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw(name)
