"""Format the results of `bench` as tables, a report and a figure."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from xplstm import ArgumentError, BackendError
from xplstm.cli.peers import PEERS, Shape, option_of

Times = dict[str, list[float]]
"""Microseconds per step for each engine, one number for each round."""
Found = dict[str, dict[Shape, Times]]
"""Times by operation and shape."""

TITLES = {
    "forward": "inference",
    "train": "training: forward, backward and all gradients",
    "step": "a stream",
}

WIDEST = 100
"""Columns of a printed table."""

# Colours of the engines in a figure, in order.
MARKERS = "*osD^v<>pX"


def ratio(times: Times, ours: str, other: str) -> float:
    """Return the median over the rounds of the time of `other` divided by that of `ours`."""
    return median_ratio(times[ours], times[other])


def median_ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Return the median over the rounds of `other` divided by `ours`."""
    return statistics.median(b / a for a, b in zip(ours, other, strict=True))


def pairs(names: Iterable[str]) -> dict[str, str]:
    """Return the baseline of each engine but the first: our engine with the same option, else the first."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for name in names:
        ours = first.setdefault(option_of(name), name)
        found[name] = next(iter(first.values())) if ours == name else ours
    return {name: ours for name, ours in found.items() if name != ours}


def mean_ratios(rows: dict[Shape, Times]) -> dict[str, float]:
    """Return the geometric mean over shapes of each engine's ratio to its baseline."""
    found = pairs(dict.fromkeys(name for times in rows.values() for name in times))
    return {
        name: statistics.geometric_mean(ratio(t, ours, name) for t in rows.values() if name in t)
        for name, ours in found.items()
    }


def speed(what: str, shape: Shape, times: list[float]) -> float:
    """Return the GFLOP/s of the matrix products; training has three times the products of inference."""
    passes = 3 if what == "train" else 1
    return passes * 2e-3 * shape.multiply_adds() / statistics.median(times)


def table(what: str, threads: int, rows: dict[Shape, Times], peak: float) -> str:
    """Return a table with a row for each shape: medians, ratios to our engine, and our share of the peak."""
    ours = next(iter(next(iter(rows.values()))))
    means = mean_ratios(rows)
    others = pairs([ours, *means])
    header = ["T,B,I,H", ours, *means, *(f"x/{name}" for name in means), "GFLOP/s", "of peak"]
    lines = [header]
    for shape, times in rows.items():
        medians = [f"{statistics.median(times[n]):.1f}" if n in times else "-" for n in (ours, *means)]
        ratios = [f"{ratio(times, to, n):.2f}" if n in times else "-" for n, to in others.items()]
        reached = speed(what, shape, times[ours])
        lines.append([str(shape), *medians, *ratios, f"{reached:.1f}", f"{reached / peak:.0%}"])
    lines.append(["geometric mean", *[""] * (1 + len(means)), *(f"{m:.2f}" for m in means.values()), "", ""])
    return f"{TITLES[what]}, {threads} thread{'s' * (threads > 1)}\n" + "\n\n".join(folded(lines))


def folded(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as text, in parts that fit a terminal of `WIDEST` columns; each has the first column."""
    parts: list[list[int]] = []
    used = WIDEST
    first, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for column, width in enumerate(widths, 1):
        used += 2 + width
        if used > WIDEST:
            parts.append([0])
            used = first + 2 + width
        parts[-1].append(column)
    return [
        "\n".join(aligned([[line[k] for k in part] for line in lines if any(line[k] for k in part[1:])]))
        for part in parts
    ]


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Format the rows of a table, with the first column left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        line[0].ljust(widths[0]) + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]


def regret(times: Times) -> tuple[str, float]:
    """Return the fastest other engine, and the relative extra time of the first engine.

    The function compares minimum times, since other work on the machine only adds to a time.
    """
    chosen, *rest = (min(rounds) for rounds in times.values())
    fastest = min(range(len(rest)), key=lambda k: rest[k])
    return list(times)[1 + fastest], max(0.0, chosen / rest[fastest] - 1)


def regrets(found: dict[int, Found]) -> str:
    """Return a line for each measurement: the fastest alternative, and the extra time of the choice."""
    lines = ["regret of the choice: its least time over that of the fastest alternative, less 1"]
    worst = 0.0
    for n, kinds in found.items():
        for what, rows in kinds.items():
            for shape, times in rows.items():
                name, lost = regret(times)
                worst = max(worst, lost)
                lines.append(f"{what:8}{n} thread{'s' * (n > 1):2}{shape!s:18}{name:16}{lost:6.1%}")
    return "\n".join([*lines, f"largest regret: {worst:.1%}"])


class Report(NamedTuple):
    """All measurements, by number of threads."""

    found: dict[int, Found]
    peaks: dict[int, float]
    """GFLOP/s of the fastest large matrix product."""
    rounds: int

    def __str__(self) -> str:
        """Return the tables."""
        parts = [
            f"{processor()}, {os.cpu_count()} cores, float32, one layer of one direction\n"
            f"microseconds a step: median of {self.rounds} interleaved rounds, results checked equal first\n"
            "x/peer: the peer's time over ours, median of the rounds; above 1 we are faster\n"
            "an option of a peer is compared with ours of that option, and ours with ours without"
        ]
        for n, kinds in self.found.items():
            parts += [table(what, n, rows, self.peaks[n]) for what, rows in kinds.items()]
            peak = f"{self.peaks[n]:.0f} GFLOP/s in the fastest large product of matrices"
            parts.append(f"peak with {n} thread{'s' * (n > 1)}: {peak}")
        return "\n\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Return all measurements with the settings that are needed to repeat them."""
        kinds_of = self.found.items()
        needed = (package for peer in PEERS.values() for package in peer.needs)
        return {
            "date": datetime.now(UTC).date().isoformat(),
            "command": shlex.join(["python", "-m", "xplstm", *sys.argv[1:]]),
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": versions(["xplstm", "numpy", *needed]),
            "rounds": self.rounds,
            "unit": "microseconds a step, float32, one layer of one direction",
            "peak GFLOP/s": {str(threads): float(f"{peak:.7g}") for threads, peak in self.peaks.items()},
            "geometric means": {
                str(n): {what: _rounded(rows) for what, rows in kinds.items()} for n, kinds in kinds_of
            },
            "times": {
                str(n): {
                    what: {str(shape): times for shape, times in rows.items()} for what, rows in kinds.items()
                }
                for n, kinds in kinds_of
            },
        }


def _rounded(rows: dict[Shape, Times]) -> dict[str, float]:
    """Return the mean ratios, rounded to 3 decimals."""
    return {name: round(r, 3) for name, r in mean_ratios(rows).items()}


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


def draw(found: dict[int, Found], file: Path) -> None:
    """Draw the ratios to our engine: a column for each operation, a row for each number of threads."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(what for rows in found.values() for what in rows))
    engines = [name for rows in found.values() for ts in rows.values() for t in ts.values() for name in t]
    # An engine has the same colour in all panels.
    looks = {
        name: f"{marker}C{k}"
        for k, (name, marker) in enumerate(zip(dict.fromkeys(engines), MARKERS, strict=False))
    }
    # The width of a documentation page, which keeps the font size.
    figure = Figure(figsize=(3 * len(kinds), 0.6 + 3.6 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), len(kinds), squeeze=False)
    for line, (threads, by_kind) in zip(grid, found.items(), strict=True):
        for axes, what in zip(line, kinds, strict=True):
            _panel(axes, by_kind[what], looks)
            axes.set_title(f"{what}, {threads} thread{'s' * (threads > 1)}", fontsize=11)
    dots = {line.get_label(): line for axes in grid.flat for line in axes.lines if line.get_label() in looks}
    figure.legend(dots.values(), dots.keys(), loc="outside upper center", ncols=len(dots), frameon=False)
    figure.supxlabel(
        "the other's time over ours, by T, B, I, H: right of the line we are faster", fontsize=10
    )
    write_figure(figure, file)


def write_figure(figure: Any, file: Path) -> None:
    """Write a figure, with the same bytes for the same numbers."""
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)


def _panel(axes: Any, rows: dict[Shape, Times], looks: dict[str, str]) -> None:
    """Draw one dot for each shape and peer."""
    shapes = list(rows)
    for name, ours in pairs(dict.fromkeys(name for times in rows.values() for name in times)).items():
        points = [(ratio(rows[s], ours, name), k) for k, s in enumerate(shapes) if name in rows[s]]
        axes.plot(*zip(*points, strict=True), looks[name], markersize=5, label=name)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(shapes)), [str(s) for s in shapes], fontsize=8)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
