"""Columns of a forecast: targets, covariates known in advance, horizon and quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from xplstm import _array, _values, losses
from xplstm._errors import ArgumentError, ShapeError
from xplstm._typing import Array, Namespace
from xplstm.cells.activations import sigmoid

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph
    from xplstm.nn import Linear

# Division by a smaller standard deviation may overflow.
SMALLEST = {"float64": 1e-300, "float32": 1e-37, "bfloat16": 1e-37, "float16": 6.2e-5}
LARGEST = {"float64": 1.7e308, "float32": 3.4e38, "bfloat16": 3.3e38, "float16": 65504.0}
NEED_HORIZON = ("targets", "known", "quantiles")


class Roles(NamedTuple):
    """Roles of the columns of a series, and shape of a forecast from one step."""

    features: int
    targets: tuple[int, ...]
    known: tuple[int, ...]
    horizon: int | None
    """Steps of a direct forecast; None if a forecast is one step of all columns."""
    quantiles: tuple[float, ...] | None

    @classmethod
    def of(cls, features: int, targets: Any, known: Any, horizon: Any, quantiles: Any) -> Self:
        """Check the options of a model with `features` columns."""
        if horizon is None:
            for name, value in zip(NEED_HORIZON, (targets, known, quantiles), strict=True):
                if value is not None:
                    msg = f"{name}={value!r} needs horizon=, the number of steps to forecast"
                    raise ArgumentError(msg)
            return cls(features, tuple(range(features)), (), None, None)
        ahead = columns("known", known, features)
        rest = [k for k in range(features) if k not in ahead]
        chosen = tuple(rest) if targets is None else columns("targets", targets, features)
        if not chosen:
            msg = f"targets={targets!r} with known={list(ahead)} leaves no column to forecast"
            raise ArgumentError(msg)
        both = sorted({*chosen} & {*ahead})
        if both:
            msg = f"targets={list(chosen)} and known={list(ahead)} both contain {both}"
            raise ArgumentError(msg)
        return cls(features, chosen, ahead, _values.size("horizon", horizon), _quantiles(quantiles))

    def options(self) -> dict[str, Any]:
        """Return these options as arguments of the model, in JSON types."""
        if self.horizon is None:
            return {}
        quantiles = None if self.quantiles is None else [*self.quantiles]
        columns = {"targets": [*self.targets], "known": [*self.known]}
        return {"horizon": self.horizon, **columns, "quantiles": quantiles}

    @property
    def inputs(self) -> int:
        """Number of features that the network reads at each step."""
        return self.features + len(self.known) * (self.horizon or 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the forecast from one step."""
        if self.horizon is None:
            return (self.features,)
        of_each = () if self.quantiles is None else (len(self.quantiles),)
        return (self.horizon, len(self.targets), *of_each)

    @property
    def outputs(self) -> int:
        """Number of outputs of the linear layer."""
        return math.prod(self.shape)

    def select(self, a: Array, of: tuple[int, ...]) -> Array:
        """Return the columns `of` of the last axis."""
        if of == tuple(range(a.shape[-1])):
            return a
        xp = _array.namespace(a, "a")
        return xp.stack([a[..., k] for k in of], axis=-1)

    def join_input(self, z: Array, future: Array | None, lengths: Array | None) -> Array:
        """Return the network input: z (T, B, F), joined with the known columns of the next `horizon` steps.

        `future` (horizon, B, K) starts after the last step of each entry, given by `lengths` (B,) or T.
        """
        if future is None or self.horizon is None:
            return z
        xp, ahead = _array.namespace(z, "z"), self.select(z, self.known)
        joined = xp.concat([ahead, future], axis=0)
        if lengths is not None:
            joined = _write_future(xp, joined, future, lengths)
        T = z.shape[0]
        return xp.concat([z, *(joined[j : j + T, ...] for j in range(1, self.horizon + 1))], axis=-1)

    def forecasts(self, raw: Array, z: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Return the forecasts (..., *shape) from the linear layer's output `raw`, and the pullback to `raw`.

        A forecast is the current value plus `raw`.
        """
        if self.horizon is None:
            return z + raw, lambda d: d
        rows = tuple(raw.shape[:-1])
        raw = _array.reshape(raw, (*rows, *self.shape))
        now = self.select(z, self.targets)[..., None, :]
        if self.quantiles is None:
            return now + raw, lambda d: _array.reshape(d, (*rows, self.outputs))
        ordered, pullback = in_order(raw)
        return now[..., None] + ordered, lambda d: _array.reshape(pullback(d), (*rows, self.outputs))

    def export_to(self, graph: ModelGraph, z: str, scale: tuple[Array, Array], linear: Linear) -> None:
        """Add the nodes of a direct forecast from the standardised columns z to an ONNX graph."""
        horizon = self.horizon or 0
        entered = z
        if self.known:
            mean, std = (
                graph.number(f"{name}_of_known", self.select(a, self.known))
                for name, a in zip(("mean", "std"), scale, strict=True)
            )
            future = graph.future("future", horizon, len(self.known))
            future = graph.apply("Div", graph.apply("Sub", future, mean, "future_centred"), std, "future_z")
            entered = graph.join_ahead(z, graph.columns(z, self.known, "known"), future, horizon)
        raw = graph.split_last(graph.linear(linear, graph.recur(entered)), self.shape, "raw")
        several = 0 if self.quantiles is None else len(self.quantiles)
        ordered = graph.in_order(raw, several) if several else raw
        now = graph.columns(z, self.targets, "now")
        ones = (1,) if several else ()
        now = graph.split_last(now, (1, len(self.targets), *ones), "now_ahead")
        expected = graph.apply("Add", now, ordered, "expected")
        mean, std = (
            graph.number(f"{name}_of_targets", _array.reshape(self.select(a, self.targets), (-1, *ones)))
            for name, a in zip(("mean", "std"), scale, strict=True)
        )
        following = graph.apply("Add", graph.apply("Mul", expected, std, "wide"), mean, "original")
        graph.leave(following, "following", ["T", "B", *self.shape])

    def loss(self, found: Array, happened: Array, mask: Array | None) -> tuple[Array, Callable[..., Array]]:
        """Return the mean loss of forecasts, and its pullback to the forecasts; `mask` selects steps."""
        if self.horizon is None:
            return losses.mse(found, happened, mask=mask)
        rows = tuple(happened.shape[:-2])
        numbers = self.horizon * len(self.targets)
        flat = _array.reshape(happened, (*rows, numbers))
        if self.quantiles is None:
            loss, pullback = losses.mse(_array.reshape(found, (*rows, numbers)), flat, mask=mask)
        else:
            pred = _array.reshape(found, (*rows, numbers, len(self.quantiles)))
            loss, pullback = losses.quantile(pred, flat, self.quantiles, mask=mask)
        return loss, lambda factor=1.0: _array.reshape(pullback(factor), tuple(found.shape))


def columns(name: str, value: Any, features: int) -> tuple[int, ...]:
    """Return column indices, each at most once."""
    given = _values.items(name, () if value is None else value)
    indices = tuple(_values.size(f"{name}[{k}]", c, 0, features - 1) for k, c in enumerate(given))
    if len({*indices}) < len(indices):
        msg = f"{name}={list(indices)} must not contain a column twice"
        raise ArgumentError(msg)
    return indices


def _quantiles(value: Any) -> tuple[float, ...] | None:
    """Check that quantiles are ascending numbers in (0, 1)."""
    if value is None:
        return None
    given = _values.items("quantiles", value)
    levels = tuple(_values.in_range(f"quantiles[{k}]", q, 0, 1) for k, q in enumerate(given))
    if not levels or levels[0] <= 0 or any(a >= b for a, b in pairwise(levels)):
        msg = f"quantiles={list(levels)} must be one or more ascending numbers in (0, 1)"
        raise ArgumentError(msg)
    return levels


def _write_future(xp: Namespace, joined: Array, future: Array, lengths: Array) -> Array:
    """Write the future of each entry into `joined` (T + n, B, K), after the entry's last step."""
    steps = xp.arange(joined.shape[0], dtype=lengths.dtype, device=_array.device(joined))[:, None]
    for j in range(future.shape[0]):
        joined = xp.where((steps == lengths[None, :] + j)[..., None], future[j, ...][None, ...], joined)
    return joined


def in_order(raw: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Return quantiles that cannot cross, and the pullback to `raw` (..., Q).

    The middle quantile is the middle element of `raw`. Each quantile above or below it differs from its
    neighbour by ``log(1 + exp(raw))``.
    """
    xp, dtype = _array.namespace(raw, "raw"), _array.dtype_name(raw.dtype)
    wide = _array.widen(raw)
    count = wide.shape[-1]
    middle = count // 2
    gaps = xp.log1p(xp.exp(-xp.abs(wide))) + xp.where(wide > 0, wide, xp.zeros_like(wide))
    outputs = {middle: wide[..., middle]}
    for k in range(middle + 1, count):
        outputs[k] = outputs[k - 1] + gaps[..., k]
    for k in range(middle - 1, -1, -1):
        outputs[k] = outputs[k + 1] - gaps[..., k]

    def pullback(d: Array) -> Array:
        d, slope = _array.widen(d), sigmoid(xp, wide)
        above, below = d[..., count - 1], d[..., 0]
        parts: dict[int, Array] = {middle: xp.sum(d, axis=-1)}
        for k in range(count - 1, middle, -1):
            parts[k] = above * slope[..., k]
            above = above + d[..., k - 1]
        for k in range(middle):
            parts[k] = -below * slope[..., k]
            below = below + d[..., k + 1]
        return _array.narrow(xp.stack([parts[k] for k in range(count)], axis=-1), dtype)

    return _array.narrow(xp.stack([outputs[k] for k in range(count)], axis=-1), dtype), pullback


def check_future(future: Array | None, roles: Roles) -> None:
    """Check that there is a future exactly if columns are known in advance."""
    if roles.known and future is None:
        msg = (
            f"x has no future of the columns known={list(roles.known)}; pass WithFuture(x, future) "
            f"with a future of shape ({roles.horizon}, B, {len(roles.known)})"
        )
        raise ShapeError(msg)
    if future is not None and not roles.known:
        msg = "x has a future, but the model has no known columns; create the model with horizon= and known="
        raise ArgumentError(msg)


def mean_and_deviation(
    values: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each column; a deviation is not finite if the sum overflows.

    The differences are divided by the largest before they are squared, because the square of a number below
    1e-162 or above 1e154 is 0 or infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.average(values, axis=0, weights=weights)
        differences = values - mean
        largest = np.abs(differences).max(axis=0, initial=0.0)
        shares = differences / np.where(largest > 0, largest, 1.0)
        return mean, largest * np.sqrt(np.average(shares**2, axis=0, weights=weights))
