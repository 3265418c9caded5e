"""The records of a benchmark on CPU or GPU: the file of a run, its tables and its figure."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from xplstm import ArgumentError, BackendError, FormatError
from xplstm.cli.peers import Shape, option_of
from xplstm.io.files._durable import write_durably

TITLES = {
    "forward": "inference",
    "train": "training: forward, backward and all gradients",
    "step": "a stream",
}

PEAKS = "peak GFLOP/s"
"""Entry of a report with the speed of the fastest large matrix product, by setting."""

WIDEST = 100
"""Columns of a printed table."""

# Markers of the engines in a figure, in order.
MARKERS = "*osD^v<>pX"


class Row(NamedTuple):
    """The times of one engine at one shape."""

    shape: Shape
    setting: str
    """Number of threads on a CPU, precision on a GPU."""
    what: str
    engine: str
    times: Sequence[float] = ()
    """Microseconds per step, one number for each round."""
    facts: Mapping[str, Any] = {}
    """Other measurements, or the `reason` why there are no times."""


Rows = dict[str, Row]
"""The rows of one shape, by engine."""
Baselines = Callable[[Rows], Mapping[str, str]]
"""Return the engine with which each other engine of a shape is compared."""


class Report(NamedTuple):
    """All measurements, and the data that is needed to repeat them."""

    about: dict[str, Any]
    rows: list[Row]

    def save(self, file: Path) -> None:
        """Write the file of a run, completely or not at all."""
        rows = []
        for row in self.rows:
            times = [float(f"{t:.7g}") for t in row.times]
            values = {**row._asdict(), "shape": str(row.shape), "times": times}
            rows.append({name: value for name, value in values.items() if value})
        text = json.dumps({**self.about, "rows": rows}, indent=1)
        write_durably(str(file), (text + "\n").encode())

    def text(self, baselines: Baselines) -> str:
        """Return a description of the run, and a table for each operation and setting."""
        about = (
            f"{name}: {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}"
            for name, value in self.about.items()
        )
        tables = (
            table(what, setting, shapes, baselines, self.about.get(PEAKS, {}).get(setting))
            for (what, setting), shapes in group_timed(self.rows).items()
        )
        return "\n\n".join(["\n".join(about), *tables])


def load(file: Path) -> Report:
    """Read the file of an earlier run."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        rows = [Row(**{**row, "shape": Shape.parse(row["shape"])}) for row in about.pop("rows")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{file}: it is not a benchmark report: {error}"
        raise FormatError(msg) from error
    return Report(about, rows)


def describe_run(*command: str) -> dict[str, Any]:
    """Return the date, and the command with the arguments of this process."""
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "command": shlex.join([*command, *sys.argv[1:]])}


def group_timed(rows: Iterable[Row]) -> dict[tuple[str, str], dict[Shape, Rows]]:
    """Return the measured rows, grouped by operation and setting, and then by shape."""
    groups: dict[tuple[str, str], dict[Shape, Rows]] = {}
    for row in rows:
        if row.times:
            groups.setdefault((row.what, row.setting), {}).setdefault(row.shape, {})[row.engine] = row
    return groups


def ratio(ours: Row, other: Row) -> float:
    """Return the median over the rounds of the time of `other` divided by that of `ours`."""
    return statistics.median(b / a for a, b in zip(ours.times, other.times, strict=True))


def pairs(names: Iterable[str]) -> dict[str, str]:
    """Return the baseline of each engine except the first: our engine with the same option, or the first."""
    first: dict[str, str] = {}
    baselines: dict[str, str] = {}
    for name in names:
        ours = first.setdefault(option_of(name), name)
        baselines[name] = next(iter(first.values())) if ours == name else ours
    return {name: ours for name, ours in baselines.items() if name != ours}


def ratios(shapes: dict[Shape, Rows], baselines: Baselines) -> dict[str, dict[Shape, float]]:
    """Return the ratio of each engine to its baseline, by shape."""
    found: dict[str, dict[Shape, float]] = {}
    for shape, rows in shapes.items():
        for name, ours in baselines(rows).items():
            found.setdefault(name, {})[shape] = ratio(rows[ours], rows[name])
    return found


def speed(what: str, shape: Shape, times: Sequence[float]) -> float:
    """Return the GFLOP/s of the matrix products; training has three times the products of inference."""
    passes = 3 if what == "train" else 1
    return passes * 2e-3 * shape.multiply_adds() / statistics.median(times)


def table(
    what: str, setting: str, shapes: dict[Shape, Rows], baselines: Baselines, peak: float | None
) -> str:
    """Return a table with a row for each shape: medians, ratios, and the share of the peak if it is known."""
    names = list(dict.fromkeys(name for rows in shapes.values() for name in rows))
    compared = ratios(shapes, baselines)
    header = ["T,B,I,H", *names, *(f"x/{name}" for name in compared)]
    lines = [header + (["GFLOP/s", "of peak"] if peak else [])]
    for shape, rows in shapes.items():
        medians = [f"{statistics.median(rows[name].times):.2f}" if name in rows else "-" for name in names]
        of_peers = [f"{by_shape[shape]:.2f}" if shape in by_shape else "-" for by_shape in compared.values()]
        lines.append([str(shape), *medians, *of_peers])
        if peak:
            reached = speed(what, shape, rows[names[0]].times)
            lines[-1] += [f"{reached:.1f}", f"{reached / peak:.0%}"]
    means = [f"{statistics.geometric_mean(by_shape.values()):.2f}" for by_shape in compared.values()]
    lines.append(["geometric mean", *[""] * len(names), *means, *[""] * (2 * bool(peak))])
    return f"{TITLES[what]}, {setting}\n" + "\n\n".join(fold_table(lines))


def fold_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as text, in parts that fit a terminal of `WIDEST` columns; each has the first column."""
    first, *columns = zip(*lines, strict=True)
    labels = [label.ljust(max(map(len, first))) for label in first]
    parts: list[list[str]] = []
    for column in columns:
        width = 2 + max(map(len, column))
        if not parts or len(parts[-1][0]) + width > WIDEST:
            parts.append(labels)
        parts[-1] = [row + cell.rjust(width) for row, cell in zip(parts[-1], column, strict=True)]
    return ["\n".join(row for row in part if row.rstrip() not in first) for part in parts]


def regret(rows: Rows) -> tuple[str, float]:
    """Return the fastest other engine, and the relative extra time of the first engine.

    The function compares minimum times, since other work on the machine only adds to a time.
    """
    chosen, *rest = (min(row.times) for row in rows.values())
    fastest = min(range(len(rest)), key=lambda k: rest[k])
    return list(rows)[1 + fastest], max(0.0, chosen / rest[fastest] - 1)


def regrets(rows: Iterable[Row]) -> str:
    """Return a line for each measurement: the fastest alternative, and the extra time of the choice."""
    lines = ["regret of the choice: its least time over that of the fastest alternative, less 1"]
    worst = 0.0
    for (what, setting), shapes in group_timed(rows).items():
        for shape, engines in shapes.items():
            name, lost = regret(engines)
            worst = max(worst, lost)
            lines.append(f"{what:8}{setting:10}{shape!s:18}{name:16}{lost:6.1%}")
    return "\n".join([*lines, f"largest regret: {worst:.1%}"])


def processor() -> str:
    """Return the processor name on Linux, otherwise the architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of the installed packages."""
    found = {"python": platform.python_version()}
    for name in dict.fromkeys(packages):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_plot(file: Path) -> None:
    """Check, before any measurement, that the figure can be drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = f"--plot {file.name} needs matplotlib: pip install 'xplstm[plot]'"
        raise BackendError(msg) from error
    kinds = Figure().canvas.get_supported_filetypes()
    if file.suffix and file.suffix[1:].lower() not in kinds:
        msg = f"--plot {file.name} must end in one of {', '.join(sorted(kinds))}, which matplotlib can write"
        raise ArgumentError(msg)


def draw(rows: Iterable[Row], file: Path, baselines: Baselines) -> None:
    """Draw the ratios of the peers: a row of panels for each operation, a column for each setting."""
    from matplotlib.figure import Figure

    tables = {key: (shapes, ratios(shapes, baselines)) for key, shapes in group_timed(rows).items()}
    if not tables:
        msg = f"--plot {file.name} has nothing to draw: nothing was measured"
        raise ArgumentError(msg)
    settings = list(dict.fromkeys(setting for _, setting in tables))
    # The panels of an operation have the same shapes on the vertical axis.
    shapes_of: dict[str, dict[Shape, None]] = {}
    for (what, _), (shapes, _) in tables.items():
        shapes_of.setdefault(what, {}).update(dict.fromkeys(shapes))
    heights = [2.5 + len(shapes) for shapes in shapes_of.values()]
    figure = Figure(figsize=(1 + 3.2 * len(settings), 1 + 0.22 * sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(heights), len(settings), squeeze=False, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    # An engine has the same marker and colour in all panels.
    names = dict.fromkeys(name for _, compared in tables.values() for name in compared)
    looks = {
        name: f"{marker}C{k % 10}"
        for k, (name, marker) in enumerate(zip(names, itertools.cycle(MARKERS), strict=False))
    }
    for line, (what, listed) in zip(grid, shapes_of.items(), strict=True):
        for axes, setting in zip(line, settings, strict=True):
            _draw_panel(axes, tables.get((what, setting), ({}, {}))[1], list(listed), looks)
            axes.set_title(f"{what}, {setting}", fontsize=11)
    dots = {line.get_label(): line for axes in grid.flat for line in axes.lines if line.get_label() in looks}
    columns = min(len(dots), 2 * len(settings))
    figure.legend(dots.values(), dots.keys(), loc="outside upper center", ncols=columns, frameon=False)
    figure.supxlabel(
        "time of the other divided by ours, by T, B, I, H; right of the line ours is faster", fontsize=10
    )
    # The same numbers give the same bytes.
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)


def _draw_panel(
    axes: Any, compared: dict[str, dict[Shape, float]], shapes: list[Shape], looks: dict[str, str]
) -> None:
    """Draw one dot for each shape and peer."""
    for name, by_shape in compared.items():
        places = [shapes.index(shape) for shape in by_shape]
        axes.plot(list(by_shape.values()), places, looks[name], markersize=5, label=name)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(shapes)), [str(s) for s in shapes], fontsize=8)
    axes.set_ylim(len(shapes) - 0.5, -0.5)
    axes.grid(alpha=0.3)
