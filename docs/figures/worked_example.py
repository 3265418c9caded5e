"""Draw docs/figures/worked_example.svg from the numbers that xplstm computes."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xplstm.cli import example

KEPT, WRITTEN, SHOWN, PLAIN = "#4477aa", "#cc7711", "#228833", "#888888"
GATES = {
    "i": ("input gate i", WRITTEN),
    "f": ("forget gate f", KEPT),
    "g": ("candidate g", WRITTEN),
    "o": ("output gate o", SHOWN),
}


def draw(path: Path) -> None:
    """Three panels: the gates, and for each unit the way from c_0 to h."""
    found = example.step(*example.setting("numpy", "float64"))
    # Text as outlines and no date: the same picture wherever and whenever the pages are built.
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        figure = Figure(figsize=(12, 4), layout="constrained")
        gates, *units = figure.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
        draw_gates(gates, found)
        for unit, axes in enumerate(units):
            draw_unit(axes, found, unit)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=120)


def draw_gates(axes: Axes, found: dict[str, list[float]]) -> None:
    """One bar a gate; both units have the same."""
    axes.set_title("The gates, the same for both units")
    for row, (gate, (_, colour)) in enumerate(GATES.items()):
        z, value = found[f"z_{gate}"][0], found[gate][0]
        function = "tanh" if gate == "g" else "σ"
        axes.barh(row, value, 0.6, color=colour)
        axes.text(value + 0.02, row, f"{function}({z:.2f}) = {value:.3f}", va="center")
    axes.set_yticks(range(len(GATES)), [label for label, _ in GATES.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.spines[["top", "right"]].set_visible(False)


def draw_unit(axes: Axes, found: dict[str, list[float]], unit: int) -> None:
    """The cell state before, what is kept of it, what is added, and what is shown."""
    c_0, (i, f, g) = example.C_0[unit], (found[k][unit] for k in "ifg")
    c, h = found["c"][unit], found["h"][unit]
    bars = [
        ("$c_0$\nbefore", 0.0, c_0, PLAIN),
        ("$f\\,c_0$\nkept", 0.0, f * c_0, KEPT),
        ("$i\\,g$\nadded", f * c_0, i * g, WRITTEN),
        ("$c$\nafter", 0.0, c, PLAIN),
        ("$o\\,\\tanh c$\nshown as $h$", 0.0, h, SHOWN),
    ]
    axes.set_title(f"Unit {unit}")
    axes.axhline(0, color="black", linewidth=0.8)
    for level, start in ((f * c_0, 1), (c, 2)):
        axes.hlines(level, start, start + 1, color="black", linewidth=0.8, linestyle="dotted")
    for column, (_, bottom, height, colour) in enumerate(bars):
        axes.bar(column, height, 0.6, bottom, color=colour, zorder=2)
        text = f"{height:.3f}".replace("-", "\N{MINUS SIGN}")
        up = height > 0
        axes.text(
            column, bottom + height + (0.03 if up else -0.03), text, ha="center", va="bottom" if up else "top"
        )
    axes.set_xticks(range(len(bars)), [label for label, *_ in bars])
    axes.set_ylim(-0.8, 1.0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
