"""Draw docs/figures/gpu_launches.svg: what a loop, cupy_fused and cupy_persistent launch, and when."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

INPUT, RECUR, GATES, MARK = "#88aacc", "#4477aa", "#cc7711", "black"
STEPS = 6
GAP = 0.22
"""Between two launches; its true length differs from machine to machine."""


class Launch(NamedTuple):
    """A bar: when it begins, how long it is, and what it does."""

    start: float
    width: float
    colour: str


def loop() -> list[Launch]:
    """Two products and some kernels for the gates, every step anew."""
    return one_after_another(
        [(0.35, INPUT), (0.55, RECUR), (0.16, GATES), (0.16, GATES), (0.16, GATES)] * STEPS
    )


def fused() -> list[Launch]:
    """The input of all steps first, then a product and a kernel a step."""
    return one_after_another([(1.3, INPUT), *[(0.55, RECUR), (0.16, GATES)] * STEPS])


def persistent() -> list[Launch]:
    """The input of all steps first, then one launch, without its waits inside."""
    return one_after_another([(1.3, INPUT), (STEPS * 0.75, RECUR)])


def one_after_another(bars: list[tuple[float, str]]) -> list[Launch]:
    """Launches with gaps between them."""
    launches, now = [], 0.0
    for width, colour in bars:
        launches.append(Launch(now, width, colour))
        now += width + GAP
    return launches


ROWS = {
    "a loop over steps": loop(),
    "cupy_fused": fused(),
    "cupy_persistent": persistent(),
}


def draw(path: Path) -> None:
    """A time line for each way, one below the other."""
    # Text as outlines and no date: the same picture wherever and whenever the pages are built.
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        axes = figure.subplots()
        for row, launches in enumerate(ROWS.values()):
            draw_row(axes, row, launches)
        draw_inside(axes, len(ROWS) - 1, ROWS["cupy_persistent"][1])
        axes.set_yticks(range(len(ROWS)), list(ROWS))
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([])
        axes.set_xlabel(f"time (schematic: {STEPS} steps of one layer; no width is measured)")
        axes.set_ylim(len(ROWS) - 0.45, -0.75)
        axes.set_xlim(-0.1, None)
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.legend(handles=legend(), loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def draw_row(axes: Axes, row: int, launches: list[Launch]) -> None:
    """Bars, and above each the mark of a launch."""
    starts = [launch.start for launch in launches]
    axes.barh(
        [row] * len(launches),
        [launch.width for launch in launches],
        0.44,
        starts,
        color=[launch.colour for launch in launches],
    )
    axes.plot(starts, [row - 0.34] * len(starts), "v", color=MARK, markersize=4, linestyle="none")
    end = launches[-1].start + launches[-1].width
    axes.text(end + 0.15, row, f"{len(launches)} launches", va="center")


def draw_inside(axes: Axes, row: int, launch: Launch) -> None:
    """The steps of the one launch: each waits for all blocks' h, multiplies, and applies the gates."""
    step = launch.width / STEPS
    for k in range(STEPS):
        start = launch.start + k * step
        axes.barh(row, 0.16, 0.44, start + step - 0.16, color=GATES)
        axes.barh(row, 0.04, 0.44, start, color="white")
        axes.text(start + step / 2, row + 0.36, f"{k}", ha="center", va="center", fontsize=8)


def legend() -> list[Line2D | Patch]:
    """What the colours mean."""
    return [
        Line2D([], [], marker="v", color=MARK, markersize=4, linestyle="none", label="a launch"),
        Patch(color=INPUT, label="$W_{ih}\\,x$"),
        Patch(color=RECUR, label="$W_{hh}\\,h$"),
        Patch(color=GATES, label="gates, c and h"),
    ]


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
