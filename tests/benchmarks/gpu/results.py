"""What the GPU benchmark found: its rows, the goals, its tables, its file and its picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.gpu.engines import OURS, PRECISIONS
from xplstm._errors import FormatError
from xplstm.cli.peers import Shape
from xplstm.cli.results import TITLES, aligned, median_ratio, write_figure
from xplstm.io.files._durable import write_durably

UNIT = "microseconds a step, one layer of one direction"


class Row(NamedTuple):
    """One engine at one shape: its rounds, or why there are none."""

    shape: Shape
    precision: str
    what: str
    engine: str
    times: Sequence[float] = ()
    """Microseconds a step by round."""
    host: float = 0.0
    """Microseconds a call until Python had it under way, the median."""
    reason: str = ""
    walk: float | None = None
    """Microseconds a step of our kernel's walk through time alone: forward, or in training back."""
    launches: dict[str, int] | None = None


class Report(NamedTuple):
    """Everything measured so far."""

    about: dict[str, Any]
    rows: list[Row]

    def done(self) -> set[tuple[Shape, str]]:
        """What has been measured of which shape."""
        return {(row.shape, row.what) for row in self.rows}

    def save(self, file: Path) -> None:
        """Write it, as a whole or not at all."""
        rows = [_written(row) for row in self.rows]
        text = json.dumps({"unit": UNIT, **self.about, "rows": rows}, indent=1)
        write_durably(str(file), (text + "\n").encode())


def _written(row: Row) -> dict[str, Any]:
    """A row as JSON, without what it has not."""
    found = {name: value for name, value in row._asdict().items() if value not in ("", None, (), [], 0.0)}
    numbers = [float(f"{t:.4g}") for t in row.times]
    return {**found, "shape": str(row.shape), **({"times": numbers} if numbers else {})}


def load(file: Path) -> Report:
    """What an earlier run wrote."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        rows = [_read(row) for row in about.pop("rows")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{file}: it is no report of the GPU benchmark: {error}"
        raise FormatError(msg) from error
    about.pop("unit", None)
    return Report(about, rows)


def _read(row: dict[str, Any]) -> Row:
    return Row(**{**row, "shape": Shape(*map(int, row["shape"].split(",")))})


Table = dict[tuple[str, str], dict[Shape, dict[str, Row]]]
"""By what and precision, by shape, by engine: those that were timed."""


def timed(rows: Iterable[Row]) -> Table:
    """The rows that have times, sorted into tables."""
    found: Table = {}
    for row in rows:
        if row.times:
            found.setdefault((row.what, row.precision), {}).setdefault(row.shape, {})[row.engine] = row
    return found


def ratio(ours: Row, other: Row) -> float:
    """Median over the rounds of the other's time over ours."""
    return median_ratio(ours.times, other.times)


def best(engines: dict[str, Row]) -> Row | None:
    """The faster of our kernels."""
    ours = [engines[name] for name in OURS if name in engines]
    return min(ours, key=lambda row: statistics.median(row.times), default=None)


def against(table: Table, what: str, precision: str, other: str) -> dict[Shape, float]:
    """By shape, how many times faster the faster of our kernels is than another engine."""
    found = {}
    for shape, engines in table.get((what, precision), {}).items():
        ours = best(engines)
        if ours is not None and other in engines:
            found[shape] = ratio(ours, engines[other])
    return found


class Goal(NamedTuple):
    """One thing to reach, and whether it was."""

    text: str
    reached: bool | None
    """None where nothing was measured."""

    def __str__(self) -> str:
        return f"{ {True: 'pass', False: 'missed', None: 'not measured'}[self.reached]:<13}{self.text}"


# Least geometric mean for hidden sizes from 256 to 1024, and the least anywhere.
MEANS = {"forward": 2.0, "train": 1.5}
LEAST = 0.95
DOCUMENTS = 50.0


def persists(shape: Shape) -> bool:
    """Whether PyTorch takes cuDNN's persistent kernel in float16."""
    return shape.H % 128 == shape.I % 128 == shape.B % 8 == 0 and shape.H <= 1024 and shape.B <= 128


def goals(rows: Iterable[Row]) -> list[Goal]:
    """What the kernels should reach."""
    rows = list(rows)
    table, found = timed(rows), []
    for precision in ("float32", "tf32", "bfloat16"):
        for what, mean in MEANS.items():
            ratios = against(table, what, precision, "torch")
            middle = [r for shape, r in ratios.items() if 256 <= shape.H <= 1024]
            text = f"{what} {precision} against torch, H 256 to 1024, geometric mean"
            found.append(_goal(text, middle, statistics.geometric_mean, mean))
            text = f"{what} {precision} against torch, least anywhere"
            found.append(_goal(text, ratios.values(), min, LEAST))
    for what in MEANS:
        ratios = against(table, what, "float16", "torch")
        text = f"{what} float16 against torch where it persists, least"
        found.append(_goal(text, [r for shape, r in ratios.items() if persists(shape)], min, 1.0))
        ratios = against(table, what, "float32", "documents")
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
    """A layer forward is one walk of the persistent kernel."""
    walks = [
        sum(count for name, count in row.launches.items() if name.startswith("walk"))
        for row in rows
        if row.engine == "cupy_persistent" and row.what == "forward" and row.launches
    ]
    text = "launches of the persistent kernel a layer forward: at most 1"
    return Goal(f"{text}; {max(walks)} found" if walks else text, max(walks) <= 1 if walks else None)


def tables(rows: Iterable[Row]) -> str:
    """Medians by engine, and how many times faster the best of ours is: a table for each precision."""
    parts = []
    for (what, precision), shapes in timed(rows).items():
        names = list(dict.fromkeys(name for engines in shapes.values() for name in engines))
        others = [name for name in names if name not in OURS]
        lines = [["T,B,I,H", *names, *(f"x/{name}" for name in others)]]
        for shape, engines in shapes.items():
            medians = [f"{statistics.median(engines[n].times):.2f}" if n in engines else "-" for n in names]
            ours = best(engines)
            ratios = [f"{ratio(ours, engines[n]):.2f}" if ours and n in engines else "-" for n in others]
            lines.append([str(shape), *medians, *ratios])
        parts.append("\n".join([f"{TITLES[what]}, {precision}", *aligned(lines)]))
    return "\n\n".join(parts)


def hosts(rows: Iterable[Row]) -> dict[str, float]:
    """The least microseconds of Python a call, by engine: those of the calls that wait for nothing."""
    found: dict[str, float] = {}
    for row in rows:
        if row.times:
            found[row.engine] = min(row.host, found.get(row.engine, row.host))
    return found


def reasons(rows: Iterable[Row]) -> list[str]:
    """Who was not timed and why, a line for each reason."""
    found: dict[tuple[str, str, str], list[Shape]] = {}
    for row in rows:
        if row.reason:
            found.setdefault((row.engine, row.precision, row.reason), []).append(row.shape)
    return [
        f"{engine} {precision}, {len(set(shapes))} shapes from {shapes[0]}: {reason}"
        for (engine, precision, reason), shapes in found.items()
    ]


def wrong(rows: Iterable[Row]) -> list[Row]:
    """Our kernels' results that are not the judge's."""
    return [row for row in rows if row.engine in OURS and row.reason.startswith("differs")]


def draw(rows: Iterable[Row], file: Path) -> None:
    """How many times faster than PyTorch we are: a panel for each precision and thing timed."""
    from matplotlib.figure import Figure

    table = timed(rows)
    precisions = [p for p in PRECISIONS if any(precision == p for _, precision in table)]
    if not precisions:
        msg = f"--plot {file.name}: nothing was measured"
        raise FormatError(msg)
    figure = Figure(figsize=(5.2 * len(precisions), 8), layout="constrained")
    grid = figure.subplots(len(TITLES), len(precisions), squeeze=False)
    for line, what in zip(grid, TITLES, strict=True):
        for axes, precision in zip(line, precisions, strict=True):
            _panel(axes, against(table, what, precision, "torch"))
            axes.set_title(f"{what}, {precision}")
    figure.supylabel("torch.nn.LSTM's time over ours: above the line we are faster")
    figure.supxlabel("hidden size")
    write_figure(figure, file)


def _panel(axes: Any, ratios: dict[Shape, float]) -> None:
    """A line for each batch size, over its longest sequences."""
    for B in sorted({shape.B for shape in ratios}):
        by_size = {}
        for shape in sorted(shape for shape in ratios if shape.B == B):
            by_size[shape.H] = ratios[shape]
        axes.plot(*zip(*sorted(by_size.items()), strict=True), "o-", markersize=4, label=f"B {B}")
    axes.axhline(1, color="#444444", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    if ratios:
        axes.legend(fontsize=7)
