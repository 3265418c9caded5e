"""Define learning-rate schedules, which are picklable functions of the number of updates so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from xplstm import _values
from xplstm._errors import ArgumentError

LearningRate: TypeAlias = "float | Callable[[int], float]"


@dataclass(frozen=True)
class _WarmupCosine:
    """The schedule of `warmup_cosine`."""

    peak: float
    warmup: int
    total: int
    floor: float

    def __call__(self, step: int) -> float:
        step = _values.size("step", step, 0)
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if step >= self.total:
            return self.floor
        share = (step - self.warmup) / (self.total - self.warmup)
        return _anneal(self.peak, self.floor, share)


@dataclass(frozen=True)
class _OneCycle:
    """The schedule of `one_cycle`."""

    peak: float
    rise: int
    total: int
    start: float
    floor: float

    def __call__(self, step: int) -> float:
        step = _values.size("step", step, 0)
        if step < self.rise:
            return _anneal(self.start, self.peak, step / self.rise)
        if step >= self.total - 1:
            return self.floor
        return _anneal(self.peak, self.floor, (step - self.rise) / (self.total - 1 - self.rise))


def _anneal(first: float, last: float, share: float) -> float:
    """Return the rate at `share`, in [0, 1], of half a cosine from `first` to `last`."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def warmup_cosine(peak: float, warmup: int, total: int, floor: float = 0.0) -> Callable[[int], float]:
    """Return a schedule whose learning rate rises linearly, then falls along half a cosine.

    The fall is ``floor + (peak - floor) * (1 + cos(pi * s)) / 2`` with s from 0 to 1
    (formula 5 of Loshchilov and Hutter, "SGDR: stochastic gradient descent with
    warm restarts", 2017, without the restarts).

    Parameters
    ----------
    peak : float
        The rate after the rise, finite and at least `floor`.
    warmup : int
        Number of updates of the rise, in ``[0, total]``. The first update uses ``peak / warmup``.
    total : int
        Number of updates until the rate reaches `floor`, where it stays.
    floor : float, optional
        The final rate, at least 0 and finite.

    Returns
    -------
    callable
        Function from the number of updates so far to the learning rate, for the argument
        `lr` of `SGD`, `Adam` and `AdamW`. Can be pickled.

    Raises
    ------
    ArgumentError
        If a value is outside its range.
    DTypeError
        If a value is not a number.

    Examples
    --------
    >>> from xplstm import optim
    >>> lr = optim.warmup_cosine(1.0, warmup=2, total=4)
    >>> [round(lr(step), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    floor, peak = _values.at_least_zero("floor", floor), _values.finite("peak", peak)
    warmup, total = _values.size("warmup", warmup, 0), _values.size("total", total, 0)
    if peak < floor:
        msg = f"peak={peak} must be at least floor={floor}"
        raise ArgumentError(msg)
    if warmup > total:
        msg = f"warmup={warmup} must be in [0, total={total}]"
        raise ArgumentError(msg)
    return _WarmupCosine(peak, warmup, total, floor)


def one_cycle(
    peak: float, total: int, *, rise: float = 0.3, start: float | None = None, floor: float | None = None
) -> Callable[[int], float]:
    """Return a schedule whose learning rate rises along half a cosine, then falls along half a cosine.

    The schedule is that of Smith and Topin, "Super-convergence: very fast training of neural networks
    using large learning rates", 2018, with cosines instead of lines.

    Parameters
    ----------
    peak : float
        The highest rate, at least 0 and finite.
    total : int
        Number of updates of the whole cycle, at least 2. Afterwards the rate stays at `floor`.
    rise : float, optional
        Share of the updates in which the rate rises, in ``[0, 1)``; at most ``total - 2`` updates. If the
        share is less than one update, the first rate is `peak`.
    start, floor : float, optional
        The first and the last rate, in ``[0, peak]``; ``peak / 25`` and ``start / 10_000`` if omitted.

    Returns
    -------
    callable
        Function from the number of updates so far to the learning rate. Can be pickled.

    Raises
    ------
    ArgumentError
        If a value is outside its range.
    DTypeError
        If a value is not a number.

    Examples
    --------
    >>> from xplstm import optim
    >>> lr = optim.one_cycle(1.0, total=5, rise=0.4, floor=0.0)
    >>> [round(lr(step), 3) for step in range(6)]
    [0.04, 0.52, 1.0, 0.5, 0.0, 0.0]
    """
    peak, total = _values.at_least_zero("peak", peak), _values.size("total", total, 2)
    rise = _values.in_range("rise", rise, 0, 1)
    first = peak / 25 if start is None else _values.at_least_zero("start", start)
    last = first / 10_000 if floor is None else _values.at_least_zero("floor", floor)
    if first > peak or last > peak:
        msg = f"peak={peak} must be at least start={first} and floor={last}"
        raise ArgumentError(msg)
    # The last update has the rate `floor`, so the update before it is the last that can have the rate `peak`.
    return _OneCycle(peak, min(int(rise * total), total - 2), total, first, last)


class Plateau:
    """A schedule that lowers the learning rate when the validation loss stops improving.

    `xplstm.training.fit` reports every validation loss, and after a resume all earlier losses. A custom
    training loop calls `report`.

    Parameters
    ----------
    lr : float
        The first rate, at least 0 and finite.
    factor : float, optional
        Factor of a reduction, in ``(0, 1)``.
    patience : int, optional
        Number of consecutive reports without improvement before a reduction, at least 0. The next such
        report lowers the rate.
    threshold : float, optional
        Relative improvement that counts, in ``[0, 1)``: a value below ``best - threshold * abs(best)``.
    floor : float, optional
        The lowest rate, at least 0 and finite.

    Raises
    ------
    ArgumentError
        If a value is outside its range.
    DTypeError
        If a value is not a number.

    Examples
    --------
    >>> from xplstm import optim
    >>> plateau = optim.Plateau(1.0, factor=0.5, patience=1)
    >>> sgd = optim.SGD(plateau)
    >>> for value in (3.0, 3.0, 3.0):
    ...     plateau.report(value)
    >>> sgd.lr
    0.5
    """

    def __init__(
        self,
        lr: float,
        *,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        floor: float = 0.0,
    ) -> None:
        self._first = _values.at_least_zero("lr", lr)
        self._factor = _values.in_range("factor", factor, 0, 1)
        self._patience = _values.size("patience", patience, 0)
        self._threshold = _values.in_range("threshold", threshold, 0, 1)
        self._floor = _values.at_least_zero("floor", floor)
        if self._factor == 0:
            msg = f"factor={factor} must be above 0"
            raise ArgumentError(msg)
        self.reset()

    def __call__(self, step: int) -> float:  # noqa: ARG002 - a schedule is given the step
        """Return the current learning rate.

        Parameters
        ----------
        step : int
            Number of updates so far. Every schedule takes this argument; this one ignores it.

        Returns
        -------
        float
        """
        return self._lr

    def reset(self) -> None:
        """Restore the first learning rate, and discard all reports."""
        self._lr, self._best, self._worse = self._first, math.inf, 0

    def report(self, value: float) -> None:
        """Record a validation loss, and lower the learning rate if the patience is exhausted.

        Parameters
        ----------
        value : float
            The loss, where lower is better. NaN counts as no improvement.

        Raises
        ------
        DTypeError
            If `value` is not a number.
        """
        value = _values.number("value", value)
        bound = self._best if math.isinf(self._best) else self._best - self._threshold * abs(self._best)
        if value < bound:
            self._best, self._worse = value, 0
            return
        self._worse += 1
        if self._worse > self._patience:
            self._lr, self._worse = max(self._lr * self._factor, min(self._floor, self._lr)), 0
