"""Fit the cost model for partitions and kernels to times measured on the current device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from xplstm._problem import Problem
from xplstm.kernels import cupy_fused, cupy_persistent
from xplstm.kernels._cuda import layer, partitions, trials, walks
from xplstm.kernels._cuda.partitions import Costs, best_plan, fused_cost, plan_cost
from xplstm.kernels._cuda.trials import Shape

ITERATIONS = 200
"""Largest number of Levenberg-Marquardt iterations."""
SIZES = ((1, 256), (16, 512), (64, 512), (64, 1024))
"""Batch and hidden sizes of the measurements."""
KINDS = ("float32", "tf32", "float16")
STEPS = (64, 192)
"""Steps of a short and a long sequence; their time difference excludes launch and weight loading."""
REPEATS = 5
WORST = 0.5
"""Largest accepted median of the relative errors of the predictions."""


class Timed(Protocol):
    """A measured time and its prediction."""

    @property
    def time(self) -> float:
        """Measured microseconds per step."""

    @property
    def predicted(self) -> Callable[[Costs], float]:
        """Function from costs to predicted microseconds per step."""


class Point(NamedTuple):
    """One measurement."""

    name: str
    time: float
    predicted: Callable[[Costs], float]


def fit(found: Sequence[Timed], start: Costs) -> Costs:
    """Return the costs with the least squares of relative errors."""
    at, damping = np.log(np.asarray(start)), 1e-2
    off = errors(found, start)
    for _ in range(ITERATIONS):
        slopes = np.stack(
            [(errors(found, _costs(at + 1e-4 * e)) - off) / 1e-4 for e in np.eye(len(at))], axis=1
        )
        square = slopes.T @ slopes
        # Damp also costs on which no measurement depends; those do not change.
        damped = square + damping * (np.diag(np.diag(square)) + 1e-9 * np.eye(len(at)))
        moved = at + np.clip(np.linalg.solve(damped, -slopes.T @ off), -1, 1)
        new = errors(found, _costs(moved))
        if new @ new < off @ off:
            at, off, damping = moved, new, damping / 3
        else:
            damping *= 4
        if damping > 1e12:
            break
    return _costs(at)


def _costs(logarithms: np.ndarray) -> Costs:
    return Costs(*map(float, np.exp(logarithms)))


def errors(found: Sequence[Timed], costs: Costs) -> np.ndarray:
    """Return the logarithms of the ratios of predicted to measured times."""
    return np.log([m.predicted(costs) / m.time for m in found])


def median_error(found: Sequence[Timed], costs: Costs) -> float:
    """Return the median of the relative errors of the predictions."""
    return float(np.expm1(np.median(np.abs(errors(found, costs)))))


def find_costs(cp: Any, like: Problem, kinds: Sequence[str]) -> tuple[Costs | None, str]:
    """Return the fitted costs of the device of `like`, or None, and a description of the fit."""
    start = partitions.COSTS
    samples = [point for kind in kinds for point in points(cp, like, kind)]
    if len(samples) < len(start):
        return None, f"{len(samples)} times were measured, but {len(start)} costs need at least as many"
    costs = fit(samples, start)
    before, after = median_error(samples, start), median_error(samples, costs)
    summary = f"{len(samples)} step times; median error of predictions {after:.0%}, before {before:.0%}"
    return (costs if after <= WORST else None), summary


def points(cp: Any, like: Problem, kind: str) -> list[Point]:
    """Return the times of both kernels for one data type; skip differences that are not positive."""
    samples, start, chip = [], partitions.COSTS, partitions.chip_of(like.device)
    for B, H in SIZES:
        plans = [best_plan(chip, 1, B, H, kind, backward, start) for backward in (False, True)]
        for n, plan in enumerate(plans):
            if plan is not None:
                name = f"cupy_persistent {'backward' if n else 'forward'} {kind} B={B} H={H}"
                time = step_time(cp, like, kind, (B, H), partial(_persistent, plans=plans, backward=bool(n)))
                samples.append(Point(name, time, partial(plan_cost, plan, H, kind, bool(n))))
        time = step_time(cp, like, kind, (B, H), _run_fused)
        cost = partial(fused_cost, 1, B, H, kind)
        samples.append(Point(f"cupy_fused forward {kind} B={B} H={H}", time, cost))
    return [point for point in samples if point.time > 0]


Walk = Callable[..., Any]
Run = Callable[[Problem, trials.Inputs, Callable[[Walk], Walk]], None]


def step_time(cp: Any, like: Problem, kind: str, sizes: tuple[int, int], run: Run) -> float:
    """Return the microseconds per step of a walk from device events, without launch costs."""
    least = []
    for T in STEPS:
        shape = Shape(T=T, B=sizes[0], I=8, H=sizes[1])
        problem = trials.problem_of(shape, like, kind)
        inputs = trials.each_array(trials.draw_inputs(shape, problem.dtype), cp.asarray)
        times = []
        for _ in range(REPEATS + 1):
            first, last = cp.cuda.Event(), cp.cuda.Event()
            run(problem, inputs, partial(between, first, last))
            last.synchronize()
            times.append(1000 * cp.cuda.get_elapsed_time(first, last))
        least.append(min(times[1:]))  # the first call compiles
    return float(least[1] - least[0]) / (STEPS[1] - STEPS[0])


def between(first: Any, last: Any, walk: Walk) -> Walk:
    """Return `walk` with device events before and after it."""

    def time_walk(*arguments: Any) -> Any:
        first.record()
        results = walk(*arguments)
        last.record()
        return results

    return time_walk


def _persistent(
    problem: Problem,
    inputs: trials.Inputs,
    time_walk: Callable[[Walk], Walk],
    *,
    plans: Sequence[partitions.Plan | None],
    backward: bool,
) -> None:
    packed = cupy_persistent.prepare(problem, inputs.params)
    forward_walk = partial(walks.walk, plan=plans[0])
    problem = problem._replace(keep=backward)
    _, end, residuals = layer.forward(
        *(problem, packed, inputs.x, inputs.state, None),
        forward_walk if backward else time_walk(forward_walk),
    )
    if residuals is not None:
        layer.backward(residuals, inputs.dy, end, time_walk(partial(walks.walk_back, plan=plans[1])))


def _run_fused(problem: Problem, inputs: trials.Inputs, time_walk: Callable[[Walk], Walk]) -> None:
    problem = problem._replace(keep=False)
    packed = cupy_fused.prepare(problem, inputs.params)
    layer.forward(problem, packed, inputs.x, inputs.state, None, time_walk(cupy_fused.walk))
