"""Check that the fit recovers known costs from the times that they predict."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import fit_costs
from xplstm.cli import fit
from xplstm.cli.peers import Shape
from xplstm.cli.results import Report, Row
from xplstm.kernels._cuda import partitions
from xplstm.kernels._cuda.partitions import COSTS, Chip, Costs, best_plan, fused_cost

CHIP = Chip(132, 232448)
TRUE = Costs(
    *(value * factor for value, factor in zip(COSTS, cycle((1.2, 0.6, 1.5, 1.3, 0.7)), strict=False))
)
SHAPES = [Shape(64, B, H, H) for H in (64, 128, 256, 512, 1024) for B in (1, 16, 64, 256)]


def rows(noise: float = 0.0) -> list[Row]:
    """Return the measurements on a device with the costs TRUE, with plans that COSTS selected."""
    found, rng = [], np.random.default_rng(5)
    for shape in SHAPES:
        for kind in ("float32", "tf32", "bfloat16"):
            for what in ("forward", "train"):
                plan = best_plan(CHIP, 1, shape.B, shape.H, kind, what == "train", COSTS)
                if plan is None:
                    continue
                costs = {
                    "cupy_persistent": partitions.plan_cost(plan, shape.H, kind, what == "train", TRUE),
                    "cupy_fused": fused_cost(1, shape.B, shape.H, kind, TRUE),
                }
                for engine, cost in costs.items():
                    cost *= math.exp(noise * rng.normal())
                    found.append(Row(shape, kind, what, engine, [cost, cost], {"walk": cost}))
    return found


@pytest.mark.slow
def test_it_finds_the_costs_that_made_the_times() -> None:
    found = fit.fit(fit_costs.measured(rows(), CHIP, COSTS), COSTS)
    # Some costs are only determined together, such as cycles and their number per microsecond. Predictions
    # agree.
    for m in fit_costs.measured(rows(), CHIP, COSTS):
        assert m.predicted(found) == pytest.approx(m.time, rel=1e-3)
    assert found.fused_step == pytest.approx(TRUE.fused_step, rel=1e-3)
    assert found.fused_operations == pytest.approx(TRUE.fused_operations, rel=1e-3)


def test_fitted_costs_choose_what_was_faster() -> None:
    noisy = rows(noise=0.03)
    found = fit.fit(fit_costs.measured(noisy, CHIP, COSTS), COSTS)
    chosen = fit_costs.choices(noisy, CHIP, found)
    assert len(chosen) == len({(r.shape, r.setting) for r in noisy})
    for fast, slow, right in chosen:
        assert right or slow.times[0] / fast.times[0] < 1.25, (fast, slow)
    assert sum(right for *_, right in chosen) > 0.9 * len(chosen)


def test_the_command_prints_a_table_with_its_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {
        **{"gpu": "NVIDIA H200", "driver": "580.1", "date": "2026-11-21", "command": "bench"},
        **{"multiprocessors": CHIP.processors, "shared bytes a block": CHIP.shared, "costs": COSTS._asdict()},
    }
    file = tmp_path / "times.json"
    Report(about, rows()).save(file)
    assert fit_costs.main(file) == 0
    text = capsys.readouterr().out
    assert "# Fitted to NVIDIA H200, driver 580.1, 2026-11-21: bench" in text
    made: dict[str, object] = {}
    exec(text[text.index("COSTS = ") : text.index("before:")], {"Costs": Costs}, made)
    assert made["COSTS"].fused_step == pytest.approx(TRUE.fused_step, rel=0.01)  # type: ignore[attr-defined]
    assert "fitted: off by 0% in the median" in text


def test_too_few_measurements_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"multiprocessors": 132, "shared bytes a block": 232448, "costs": COSTS._asdict()}
    file = tmp_path / "times.json"
    Report(about, rows()[:3]).save(file)
    assert fit_costs.main(file) == 1
    assert f"has 3 walks; {len(COSTS)} costs need as many at least" in capsys.readouterr().out
