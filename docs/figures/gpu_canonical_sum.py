"""Draw docs/figures/gpu_canonical_sum.svg: in which order the canonical sums of one gate's z are added."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

BLOCK = 128
INPUTS, HIDDEN = 200, 330
INPUT, RECUR, PLAIN = "#6688aa", "#4477aa", "#888888"
ROW = {INPUT: 2.35, RECUR: 0.95}
SCALE = 3.1 / BLOCK
"""Width of one k on the page."""


def blocks(count: int) -> list[tuple[int, int]]:
    """First and last k of each block."""
    return [(lo, min(lo + BLOCK, count) - 1) for lo in range(0, count, BLOCK)]


def draw(path: Path) -> None:
    """The blocks of both sums, and below them the one chain of additions."""
    # Text as outlines and no date: the same picture wherever and whenever the pages are built.
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots()
        draw_blocks(axes, "$W_{ih}\\,x$", INPUT, "p", INPUTS)
        draw_blocks(axes, "$W_{hh}\\,h$", RECUR, "q", HIDDEN)
        draw_chain(axes)
        axes.set_xlim(-1.1, 9.2)
        axes.set_ylim(-1.15, 3.1)
        axes.set_aspect("equal")
        axes.axis("off")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def draw_blocks(axes: Axes, title: str, colour: str, letter: str, count: int) -> None:
    """A box for each block of k: a chain of fused multiply-adds from 0, in ascending k."""
    height, left = ROW[colour], 0.0
    axes.text(-0.2, height, title, ha="right", va="center")
    for number, (first, last) in enumerate(blocks(count)):
        width = (last - first + 1) * SCALE
        box = FancyBboxPatch((left, height - 0.3), width - 0.12, 0.6, "round,pad=0,rounding_size=0.08")
        box.set(facecolor=colour, edgecolor="none", alpha=0.25)
        axes.add_patch(box)
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.6}
        axes.annotate("", (left + width - 0.2, height - 0.12), (left + 0.08, height - 0.12), arrowprops=arrow)
        axes.text(left + (width - 0.12) / 2, height + 0.1, f"k = {first} … {last}", ha="center", va="center")
        name = f"${letter}_{number}$"
        axes.text(left + (width - 0.12) / 2, height + 0.48, name, ha="center", va="center", color=colour)
        left += width


def draw_chain(axes: Axes) -> None:
    """z as one chain: what is taken up, from left to right, each sum rounded once."""
    terms = [
        *((f"$p_{n}$", INPUT) for n in range(len(blocks(INPUTS)))),
        ("$b_{ih}+b_{hh}$", PLAIN),
        *((f"$q_{n}$", RECUR) for n in range(len(blocks(HIDDEN)))),
    ]
    height, left, pitch = -0.85, 0.35, 1.42
    for number, (name, colour) in enumerate(terms):
        centre = left + number * pitch
        if number == 0:
            axes.text(centre, height, name, ha="center", va="center", color=colour, fontsize=12)
            continue
        start = centre - pitch + (0.25 if number == 1 else 0.2)
        axes.annotate("", (centre - 0.2, height), (start, height), arrowprops={"arrowstyle": "->"})
        axes.add_patch(Circle((centre, height), 0.17, facecolor="white", edgecolor="black"))
        axes.text(centre, height, "+", ha="center", va="center", fontsize=12)
        axes.annotate("", (centre, height + 0.2), (centre, height + 0.55), arrowprops={"arrowstyle": "->"})
        axes.text(centre, height + 0.68, name, ha="center", va="center", color=colour, fontsize=12)
    end = left + (len(terms) - 1) * pitch
    axes.annotate("", (end + 0.75, height), (end + 0.2, height), arrowprops={"arrowstyle": "->"})
    axes.text(end + 0.9, height, "$z$", ha="center", va="center", fontsize=12)
    axes.text(-0.2, height, "the sum", ha="right", va="center")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
