"""Draw docs/figures/gpu_cut.svg: how cupy_persistent cuts a layer, and how its blocks hand each other h."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

UNITS = ("#4477aa", "#b8650a", "#228833", "#aa3377")
"""A colour for each block of hidden units."""
GREY, BLACK = "#777777", "#444444"
GROUPS = 2
WIDTH = 1.32
STAGES = (
    "wait until all four counters are at k + 1 (acquire)",
    "copy the group's $h_k$ to shared memory",
    "multiply by own rows of $W_{hh}$, k in parts",
    "add the parts in order; gates; c stays here",
    "write own $h_{k+1}$ to the other buffer",
    "own counter to k + 2 (release)",
    "write y; have $W_{ih}\\,x$ of step k + 1 brought",
)
PITCH = 0.62
"""From one stage to the next."""


def draw(path: Path) -> None:
    """Left what each block holds, right what one group's blocks do in a step."""
    # Text as outlines and no date: the same picture wherever and whenever the pages are built.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        held, step = figure.subplots(1, 2)
        draw_held(held)
        draw_step(step)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def box(axes: Axes, at: tuple[float, float], size: tuple[float, float], colour: str, text: str = "") -> None:
    """A filled rectangle with its text in the middle."""
    axes.add_patch(Rectangle(at, *size, facecolor=colour, edgecolor="white", linewidth=1.5))
    axes.text(at[0] + size[0] / 2, at[1] + size[1] / 2, text, ha="center", va="center", color="white")


def draw_held(axes: Axes) -> None:
    """The weights above, cut by units; the batch at the side, cut by rows; a block where cuts meet."""
    axes.set_title("What each block holds: H = 32, B = 8, 8 blocks on 8 processors")
    axes.text(-0.15, 3.2, "$W_{hh}$\n(4 · 32 rows)", ha="right", va="center")
    for n, colour in enumerate(UNITS):
        box(axes, (n * WIDTH, 2.9), (WIDTH - 0.06, 0.6), colour, f"units {8 * n} to {8 * n + 7}")
    for group in range(GROUPS):
        bottom = 1.65 - 1.5 * group
        rows = f"rows {4 * group} to {4 * group + 3}\nof the batch"
        box(axes, (-1.35, bottom), (1.25, 0.8), GREY, rows)
        for n, colour in enumerate(UNITS):
            text = f"{4 * 8} rows of $W_{{hh}}$,\nand $c$ of {8 * 4} cells"
            box(axes, (n * WIDTH, bottom), (WIDTH - 0.06, 0.8), colour, text)
        text = f"group {group}: these four hand each other h, and wait for nobody else"
        axes.text(2 * WIDTH, bottom - 0.2, text, ha="center", va="center")
    axes.set_xlim(-1.4, 4 * WIDTH)
    axes.set_ylim(-0.25, 3.6)
    axes.axis("off")


def draw_step(axes: Axes) -> None:
    """What a block does from one h to the next, and the two buffers beside it."""
    axes.set_title("What every block of a group does in step k")
    for number, text in enumerate(STAGES):
        box(axes, (0, -PITCH * number), (4.7, PITCH - 0.14), BLACK if "counter" in text else GREY, text)
    draw_buffer(axes, -PITCH, "buffer k mod 2: the group's $h_k$,\nwritten by all four in step k − 1", "<-")
    draw_buffer(axes, -PITCH * 4, "buffer (k + 1) mod 2: $h_{k+1}$", "->")
    axes.set_xlim(-0.2, 8.2)
    axes.set_ylim(-PITCH * (len(STAGES) - 1) - 0.2, PITCH)
    axes.axis("off")


def draw_buffer(axes: Axes, bottom: float, text: str, style: str) -> None:
    """A slice for each block's units, beside the stage that reads or writes it."""
    left, width, height = 5.35, 2.7, PITCH - 0.14
    axes.text(left + width / 2, bottom + height + 0.08, text, ha="center", va="bottom")
    for n, colour in enumerate(UNITS):
        box(axes, (left + n * width / len(UNITS), bottom), (width / len(UNITS), height), colour)
    middle = bottom + height / 2
    axes.annotate("", (left - 0.02, middle), (4.72, middle), arrowprops={"arrowstyle": style})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
