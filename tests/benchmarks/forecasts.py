"""``python -m tests.benchmarks.forecasts`` compares `Forecaster` with three other forecasts on two series.

The series are part of statsmodels, so that nothing is downloaded. Each method learns from the steps before
the last ten years, and forecasts all steps of a horizon from every origin in these ten years. Needs
statsmodels and scikit-learn: ``pip install 'xplstm[guides]'``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xplstm.models import Backtest, Forecaster, WithFuture, windows

SEEDS = 5
QUANTILES = (0.1, 0.5, 0.9)


class Task(NamedTuple):
    """Series of columns; the first column is the target."""

    name: str
    series: np.ndarray
    known: tuple[int, ...]
    """Columns that are known in advance."""
    window: int
    horizon: int
    start: int
    """The first step that is forecast."""
    season: int
    """Steps of a year."""

    @property
    def roles(self) -> dict[str, Any]:
        """Return arguments of `windows` and of `Forecaster`."""
        return {"horizon": self.horizon, "targets": [0], "known": self.known}


def tasks() -> Iterator[Task]:
    """Yield sea surface temperatures with the month, and unemployment with five past covariates."""
    from statsmodels.datasets import elnino, macrodata

    sea = elnino.load_pandas().data.drop(columns="YEAR").to_numpy().ravel()
    angle = np.arange(len(sea)) * (2 * np.pi / 12)
    months = np.stack([sea, np.sin(angle), np.cos(angle)], axis=1)
    yield Task("sea surface temperature, 12 months ahead", months, (1, 2), 24, 12, len(sea) - 120, 12)
    table = macrodata.load_pandas().data
    rates = table[["unemp", "infl", "tbilrate"]].to_numpy()[1:]
    growth = 100 * np.diff(np.log(table[["realgdp", "realinv", "realcons"]].to_numpy()), axis=0)
    quarters = np.concatenate([rates, growth], axis=1)
    yield Task("unemployment rate, 4 quarters ahead", quarters, (), 8, 4, len(quarters) - 40, 4)


def features(task: Task, series: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what is known at each origin, one row per origin: the window and the future; and the targets."""
    inputs, targets = windows(series, task.window, **task.roles)
    x, future = inputs if isinstance(inputs, WithFuture) else (inputs, None)
    parts = [x[:, :, columns]] if future is None else [x[:, :, columns], future]
    rows = [part.transpose(1, 0, 2).reshape(part.shape[1], -1) for part in parts]
    return np.concatenate(rows, axis=1), targets[-1, :, :, 0]


def others(task: Task) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the forecasts (origins, horizon) of the other methods."""
    past, later = task.series[: task.start], task.series[task.start - task.window :]
    known, _ = features(task, later, [0])
    now = known[:, task.window - 1, None]
    yield "persistence", np.repeat(now, task.horizon, axis=1)
    year_ago = task.window - task.season + np.arange(task.horizon)
    yield "the same time a year before", known[:, year_ago]
    yield "autoregressive", autoregressive(features(task, past, [0]), known)
    columns = [k for k in range(task.series.shape[1]) if k not in task.known]
    learnt, asked = features(task, past, columns), features(task, later, columns)[0]
    yield "gradient boosting", boosted(*learnt, asked)
    before = learnt[0][:, (task.window - 1) * len(columns), None]
    yield "gradient boosting of changes", now + boosted(learnt[0], learnt[1] - before, asked)


def autoregressive(learnt: tuple[np.ndarray, np.ndarray], asked: np.ndarray) -> np.ndarray:
    """Fit a linear model for each step of the horizon by least squares."""

    def with_constant(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.ones((len(x), 1))], axis=1)

    weights, *_ = np.linalg.lstsq(with_constant(learnt[0]), learnt[1])
    return with_constant(asked) @ weights


def boosted(x: np.ndarray, happened: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Fit a HistGradientBoostingRegressor for each step of the horizon."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    def one(y: np.ndarray) -> np.ndarray:
        return HistGradientBoostingRegressor(random_state=0).fit(x, y).predict(asked)

    return np.stack([one(y) for y in happened.T], axis=1)


def forecaster(task: Task, seed: int, quantiles: Sequence[float] | None = None) -> Forecaster:
    """Train a model on the steps before the test."""
    roles = task.roles | {"quantiles": quantiles}
    model = Forecaster(task.series.shape[1], 16, dropout=0.2, rng=seed, **roles)
    model.fit(task.series[: task.start], task.window, updates=300, rng=seed, progress=False)
    return model


def ours(task: Task, quantiles: Sequence[float] | None = None) -> list[Backtest]:
    """Test the models of several seeds."""
    models = [forecaster(task, seed, quantiles) for seed in range(SEEDS)]
    return [model.backtest(task.series, task.window, start=task.start) for model in models]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of root mean square errors."""
    argparse.ArgumentParser(prog="python -m tests.benchmarks.forecasts", description=__doc__).parse_args(
        arguments
    )
    for task in tasks():
        tests, of_quantiles = ours(task), ours(task, QUANTILES)
        happened = tests[0].happened[..., 0]
        print(f"{task.name}: root mean square error of {len(happened)} origins")
        for name, found in others(task):
            print(f"  {name:<34}{np.sqrt(np.mean((found - happened) ** 2)):.2f}")
        for name, group in (("Forecaster", tests), ("Forecaster, median", of_quantiles)):
            errors = [float(test.rmse[0]) for test in group]
            print(
                f"  {name:<34}{np.mean(errors):.2f} ({min(errors):.2f} to {max(errors):.2f}, {SEEDS} seeds)"
            )
        shares = np.mean([test.coverage[0] for test in of_quantiles], axis=0)
        pairs = ", ".join(f"{s:.2f} ({q})" for q, s in zip(QUANTILES, shares, strict=True))
        print(f"  share below each quantile: {pairs}")


if __name__ == "__main__":
    main()
