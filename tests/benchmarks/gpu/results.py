"""Evaluate a run of the GPU benchmark: the goals, the missing measurements, and the figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.gpu.engines import OURS
from xplstm.cli import results
from xplstm.cli.peers import Shape
from xplstm.cli.results import Row, Rows

UNIT = "microseconds per step, one layer of one direction"
COMPARED = "medians; x/peer: its time over that of the faster of our kernels, above 1 we are faster"


def pairs(rows: Rows) -> dict[str, str]:
    """Return the baseline of each peer at one shape: the faster of our kernels."""
    ours = [row for name, row in rows.items() if name in OURS]
    if not ours:
        return {}
    fastest = min(ours, key=lambda row: statistics.median(row.times)).engine
    return {name: fastest for name in rows if name not in OURS}


class Goal(NamedTuple):
    """Goal, and whether it was reached."""

    text: str
    reached: bool | None
    """None where nothing was measured."""

    def __str__(self) -> str:
        return f"{ {True: 'pass', False: 'missed', None: 'not measured'}[self.reached]:<13}{self.text}"


# Smallest geometric mean for hidden sizes from 256 to 1024, and the smallest single ratio.
MEANS = {"forward": 2.0, "train": 1.5}
LEAST = 0.95
DOCUMENTS = 50.0


def persists(shape: Shape) -> bool:
    """Return whether PyTorch uses cuDNN's persistent kernel in float16."""
    return shape.H % 128 == shape.I % 128 == shape.B % 8 == 0 and shape.H <= 1024 and shape.B <= 128


def goals(rows: Iterable[Row]) -> list[Goal]:
    """Return the goals of the kernels."""
    rows = list(rows)
    compared = {key: results.ratios(shapes, pairs) for key, shapes in results.group_timed(rows).items()}
    found = []

    def of(what: str, precision: str, peer: str) -> dict[Shape, float]:
        return compared.get((what, precision), {}).get(peer, {})

    for precision in ("float32", "tf32", "bfloat16"):
        for what, mean in MEANS.items():
            ratios = of(what, precision, "torch")
            middle = [r for shape, r in ratios.items() if 256 <= shape.H <= 1024]
            text = f"{what} {precision} against torch, H 256 to 1024, geometric mean"
            found.append(_goal(text, middle, statistics.geometric_mean, mean))
            text = f"{what} {precision} against torch, least anywhere"
            found.append(_goal(text, ratios.values(), min, LEAST))
    for what in MEANS:
        ratios = of(what, "float16", "torch")
        text = f"{what} float16 against torch where it persists, least"
        found.append(_goal(text, [r for shape, r in ratios.items() if persists(shape)], min, 1.0))
        ratios = of(what, "float32", "documents")
        text = f"{what} against the documents' loop at T 512, geometric mean"
        long = [r for shape, r in ratios.items() if shape.T == 512]
        found.append(_goal(text, long, statistics.geometric_mean, DOCUMENTS))
    return [*found, _launch_goal(rows)]


def _goal(text: str, ratios: Iterable[float], middle: Callable[[list[float]], float], least: float) -> Goal:
    ratios = list(ratios)
    if not ratios:
        return Goal(f"{text}: at least {least:g}", None)
    reached = middle(ratios)
    span = f"{len(ratios)} shapes, {min(ratios):.2f} to {max(ratios):.2f}"
    return Goal(f"{text}: {reached:.2f} of {least:g} ({span})", reached >= least)


def _launch_goal(rows: list[Row]) -> Goal:
    """Return the goal that a forward layer is one launch of the persistent kernel."""
    walks = [
        sum(count for name, count in row.facts["launches"].items() if name.startswith("walk"))
        for row in rows
        if row.engine == "cupy_persistent" and row.what == "forward" and "launches" in row.facts
    ]
    text = "launches of the persistent kernel a layer forward: at most 1"
    return Goal(f"{text}; {max(walks)} found" if walks else text, max(walks) <= 1 if walks else None)


def hosts(rows: Iterable[Row]) -> dict[str, float]:
    """Return the smallest microseconds of Python per call, by engine, over calls that do not wait."""
    found: dict[str, float] = {}
    for row in rows:
        if row.times:
            host = row.facts["host"]
            found[row.engine] = min(host, found.get(row.engine, host))
    return found


def reasons(rows: Iterable[Row]) -> list[str]:
    """Return why engines were not measured, one line per reason."""
    found: dict[tuple[str, str, str], list[Shape]] = {}
    for row in rows:
        if "reason" in row.facts:
            found.setdefault((row.engine, row.setting, row.facts["reason"]), []).append(row.shape)
    return [
        f"{engine} {precision}, {len(set(shapes))} shapes from {shapes[0]}: {reason}"
        for (engine, precision, reason), shapes in found.items()
    ]


def wrong(rows: Iterable[Row]) -> list[Row]:
    """Return the results of xplstm's kernels that differ from those of the judge."""
    return [row for row in rows if row.engine in OURS and row.facts.get("reason", "").startswith("differs")]


def draw(rows: Iterable[Row], file: Path) -> None:
    """Draw the longest sequences of each size, on whose ratios the goals depend."""
    rows = list(rows)
    longest: dict[tuple[int, ...], int] = {}
    for row in rows:
        size = row.shape[1:]
        longest[size] = max(row.shape.T, longest.get(size, 0))
    results.draw([row for row in rows if longest[row.shape[1:]] == row.shape.T], file, pairs)
