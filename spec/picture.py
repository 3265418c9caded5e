"""Draw the report: a row for each implementation, a column for each group of clauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from spec.page import Report, implementations, joined, title

GROUPS = {
    "CELL": "cell",
    "SEQ": "sequences",
    "STK": "stacks",
    "DRP": "dropout",
    "VAR": "variants",
    "GRAD": "gradients",
    "GRU": "GRU",
    "NUM": "numbers",
    "ERR": "errors",
    "REL": "relations",
    "EXACT": "exact bits",
    "INT": "int8",
}
"""What the middle part of a clause's name means."""

FIRST, WIDTH, HEIGHT, TOP = 172, 64, 30, 34


class Colours(NamedTuple):
    """Colours of a cell's background and text."""

    ground: str
    text: str


KEPT = Colours("#cfe9dc", "#0a4f33")
PARTLY = Colours("#fde0bf", "#7a3600")
BROKEN = Colours("#f5c3bd", "#8b1a12")
ABSENT = Colours("#f3f3f3", "#666666")


def counts(report: Report, subjects: Sequence[str], group: str) -> tuple[int, int, bool]:
    """Return how many clauses of a group pass, how many pass or fail, and whether none was run."""
    found = [joined(report, subjects, c)["status"] for c in report["clauses"] if c.split("-")[1] == group]
    passed = found.count("passed")
    asked = passed + found.count("failed") + found.count("deviates")
    return passed, asked, set(found) == {"not run"}


def drawn(report: Report) -> str:
    """Return the picture as SVG: in each cell the clauses that pass, of those that pass or fail."""
    present = {clause.split("-")[1] for clause in report["clauses"]}
    groups = [*(g for g in GROUPS if g in present), *sorted(present - GROUPS.keys())]
    found = implementations(report)
    size = FIRST + WIDTH * len(groups), TOP + HEIGHT * len(found)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}" font-family="sans-serif" font-size="14">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>',
        *(
            text(FIRST + WIDTH * (n + 0.5), TOP - 12, GROUPS.get(g, g), "#333333")
            for n, g in enumerate(groups)
        ),
    ]
    for row, (name, subjects) in enumerate(found.items()):
        y = TOP + HEIGHT * row
        lines.append(text(FIRST - 10, y + HEIGHT / 2 + 5, title(name), "#111111", "end"))
        for column, group in enumerate(groups):
            lines += cell(FIRST + WIDTH * column, y, *counts(report, subjects, group))
    return "\n".join([*lines, "</svg>"]) + "\n"


def cell(x: float, y: float, passed: int, asked: int, unknown: bool) -> list[str]:
    """Return one cell, coloured by whether all, some or none of what was asked passes."""
    colours = ABSENT if not asked else KEPT if passed == asked else PARTLY if passed else BROKEN
    ground = (
        f'<rect x="{x + 2:g}" y="{y + 2:g}" width="{WIDTH - 4}" height="{HEIGHT - 4}" '
        f'rx="4" fill="{colours.ground}"/>'
    )
    said = f"{passed} / {asked}" if asked else "?" if unknown else "–"
    return [ground, text(x + WIDTH / 2, y + HEIGHT / 2 + 5, said, colours.text)]


def text(x: float, y: float, said: str, colour: str, anchor: str = "middle") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(said)}</text>'
