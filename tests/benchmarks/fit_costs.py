"""Fit the costs that select kernels to measurements: ``python -m tests.benchmarks.fit_costs FILE.json``.

``python -m tests.benchmarks.gpu --json FILE`` writes FILE. The method of Levenberg and Marquardt changes the
logarithms of all costs, until the logarithms of predicted and measured step times are closest. The command
prints the table for ``xplstm/kernels/_cuda/partitions.py`` with the conditions of the measurement, the errors
of the predictions, and how often the table selects the faster kernel.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xplstm.cli import fit, results
from xplstm.cli.results import Row
from xplstm.kernels._cuda.partitions import Chip, Costs, best_plan, fused_cost, plan_cost


class Measured(NamedTuple):
    """Measured microseconds per step, and the prediction of the model."""

    row: Row
    time: float
    predicted: Callable[[Costs], float]


def measured(rows: list[Row], chip: Chip, costs: Costs) -> list[Measured]:
    """Return the runs of both kernels that the model covers, with the partitions that `costs` selected."""
    found = []
    for row in rows:
        if "walk" not in row.facts:
            continue
        walk = row.facts["walk"]
        B, H, kind, backward = row.shape.B, row.shape.H, row.setting, row.what == "train"
        if row.engine == "cupy_persistent":
            plan = best_plan(chip, 1, B, H, kind, backward, costs)
            assert plan is not None, "it was run"
            found.append(Measured(row, walk, partial(plan_cost, plan, H, kind, backward)))
        elif not backward:
            found.append(Measured(row, walk, partial(fused_cost, 1, B, H, kind)))
    return found


def choices(rows: list[Row], chip: Chip, costs: Costs) -> list[tuple[Row, Row, bool]]:
    """Return the faster and the slower kernel of each forward shape, and whether the faster is selected."""
    found = []
    for (what, precision), shapes in results.group_timed(rows).items():
        for shape, engines in shapes.items() if what == "forward" else ():
            if not {"cupy_persistent", "cupy_fused"} <= set(engines):
                continue
            ours = sorted(
                (engines["cupy_persistent"], engines["cupy_fused"]), key=lambda r: statistics.median(r.times)
            )
            plan = best_plan(chip, 1, shape.B, shape.H, precision, False, costs)
            assert plan is not None, "it was run"
            persists = plan.cost <= fused_cost(1, shape.B, shape.H, precision, costs)
            found.append((*ours, persists == (ours[0].engine == "cupy_persistent")))
    return found


def table(costs: Costs, about: dict[str, Any]) -> str:
    """Return the costs as Python code, with the conditions of the measurement."""
    values = "\n".join(f"    {name}={value:.3g}," for name, value in costs._asdict().items())
    machine = f"{about['gpu']}, driver {about['driver']}, {about['date']}"
    return f"# Fitted to {machine}: {about['command']}\nCOSTS = Costs(\n{values}\n)"


def main(file: Path) -> int:
    about, rows = results.load(file)
    chip = Chip(about["multiprocessors"], about["shared bytes a block"])
    before = Costs(**about["costs"])
    found = measured(rows, chip, before)
    if len(found) < len(before):
        print(f"{file} has {len(found)} walks; {len(before)} costs need as many at least")
        return 1
    costs = fit.fit(found, before)
    print(table(costs, about))
    for name, tried in (("before", before), ("fitted", costs)):
        off = np.abs(fit.errors(found, tried))
        worst = found[int(off.argmax())].row
        print(
            f"{name}: off by {np.expm1(np.median(off)):.0%} in the median, {np.expm1(off.max()):.0%} at most "
            f"({worst.engine} {worst.what} {worst.setting} at {worst.shape})"
        )
        chosen = choices(rows, chip, tried)
        wrong = [results.ratio(fast, slow) for fast, slow, right in chosen if not right]
        lost = f", at most {max(wrong):.2f} times slower for it" if wrong else ""
        print(f"{name}: {len(chosen) - len(wrong)} of {len(chosen)} choices are the faster{lost}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fit_costs")
    parser.add_argument("file", type=Path, help="what tests.benchmarks.gpu --json wrote")
    sys.exit(main(parser.parse_args().file))
