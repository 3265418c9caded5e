"""Define the activation functions of gates, and their derivatives.

The functions, formulas, and default alpha and beta are those of ONNX's LSTM operator
(https://onnx.ai/onnx/operators/onnx__LSTM.html).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xplstm._array import clip_values
from xplstm._typing import Array, Namespace
from xplstm.cells.params import Activation


class Compiled:
    """The namespace of a library that compiles a step, with functions that are single operations there.

    A kernel passes it to a cell's equations instead of the library's namespace.
    """

    def __init__(
        self,
        library: Namespace,
        logistic: Callable[[Array], Array],
        split: Callable[[Array, int], Sequence[Array]],
    ) -> None:
        self._library, self.logistic, self.split = library, logistic, split

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def sigmoid(xp: Namespace, z: Array) -> Array:
    """Return ``1 / (1 + exp(-z))``, computed without overflow by exponentials of ``-abs(z)``."""
    if isinstance(xp, Compiled):
        return xp.logistic(z)
    positive = z >= 0
    e = xp.exp(xp.where(positive, -z, z))
    return xp.where(positive, 1 / (1 + e), e / (1 + e))


def blocks(xp: Namespace, a: Array, count: int) -> Sequence[Array]:
    """Split the last axis into `count` equal parts; one split operation has a simpler compiled gradient."""
    if isinstance(xp, Compiled):
        return xp.split(a, count)
    H = a.shape[-1] // count
    return tuple(a[..., k * H : (k + 1) * H] for k in range(count))


class Function(NamedTuple):
    """A function and its derivative; no intermediate value overflows unless the result does."""

    value: Callable[[Namespace, Array, float, float], Array]
    """xp, z, alpha, beta -> a"""
    slope: Callable[[Namespace, Array, Array, float, float], Array]
    """xp, z, a, alpha, beta -> da / dz"""
    alpha: float | None = None
    beta: float | None = None


def _zero_where(xp: Namespace, where: Array, a: Array) -> Array:
    """Return `a` with 0 where `where` is True; NaN stays NaN, because comparisons with NaN are False."""
    return xp.where(where, xp.zeros_like(a), a)


def _step(xp: Namespace, where: Array, z: Array) -> Array:
    """Return 0 where `where` is True, else 1."""
    return _zero_where(xp, where, xp.ones_like(z))


def _negative(xp: Namespace, z: Array) -> Array:
    """Return the minimum of z and 0, whose exponential cannot overflow."""
    return _zero_where(xp, z >= 0, z)


def _softplus(xp: Namespace, z: Array, _alpha: float, _beta: float) -> Array:
    """Return ``log(1 + exp(z))``; both branches have the same derivative at 0, for automatic derivatives."""
    positive = z > 0
    small = xp.log1p(xp.exp(xp.where(positive, -z, z)))
    return xp.where(positive, z + small, small)


def _hard_sigmoid(xp: Namespace, z: Array, alpha: float, beta: float) -> Array:
    """Return ``alpha * z + beta``, clipped to [0, 1]; the automatic derivative is 0 at both bounds."""
    line = alpha * z + beta
    line = _zero_where(xp, line <= 0, line)
    return xp.where(line >= 1, xp.ones_like(line), line)


def _hard_slope(xp: Namespace, z: Array, _a: Array, alpha: float, beta: float) -> Array:
    line = alpha * z + beta
    return alpha * _step(xp, (line <= 0) | (line >= 1), z)


FUNCTIONS = {
    "sigmoid": Function(lambda xp, z, *_: sigmoid(xp, z), lambda xp, z, a, *_: a * (1 - a)),
    "tanh": Function(lambda xp, z, *_: xp.tanh(z), lambda xp, z, a, *_: 1 - a * a),
    "identity": Function(lambda xp, z, *_: z, lambda xp, z, *_: xp.ones_like(z)),
    "relu": Function(
        lambda xp, z, *_: _zero_where(xp, z <= 0, z),
        lambda xp, z, *_: _step(xp, z <= 0, z),
    ),
    "affine": Function(
        lambda xp, z, alpha, beta: alpha * z + beta,
        lambda xp, z, a, alpha, beta: alpha * xp.ones_like(z),
        alpha=1.0,
        beta=0.0,
    ),
    "leaky_relu": Function(
        lambda xp, z, alpha, _: xp.where(z >= 0, z, alpha * z),
        lambda xp, z, a, alpha, _: xp.where(z >= 0, xp.ones_like(z), alpha * xp.ones_like(z)),
        alpha=0.01,
    ),
    "thresholded_relu": Function(
        lambda xp, z, alpha, _: _zero_where(xp, z < alpha, z),
        lambda xp, z, a, alpha, _: _step(xp, z < alpha, z),
        alpha=1.0,
    ),
    "scaled_tanh": Function(
        lambda xp, z, alpha, beta: alpha * xp.tanh(beta * z),
        lambda xp, z, a, alpha, beta: alpha * beta * (1 - xp.tanh(beta * z) ** 2),
        alpha=1.0,
        beta=1.0,
    ),
    "hard_sigmoid": Function(
        _hard_sigmoid,
        _hard_slope,
        alpha=0.2,
        beta=0.5,
    ),
    "elu": Function(
        lambda xp, z, alpha, _: xp.where(z >= 0, z, alpha * xp.expm1(_negative(xp, z))),
        lambda xp, z, a, alpha, _: xp.where(z >= 0, xp.ones_like(z), alpha * xp.exp(_negative(xp, z))),
        alpha=1.0,
    ),
    "softsign": Function(
        lambda xp, z, *_: z / (1 + xp.abs(z)),
        lambda xp, z, *_: (1 / (1 + xp.abs(z))) ** 2,
    ),
    "softplus": Function(
        _softplus,
        lambda xp, z, *_: sigmoid(xp, z),
    ),
}


def value(xp: Namespace, activation: Activation, z: Array) -> Array:
    """Evaluate the function at `z`."""
    function = FUNCTIONS[activation.name]
    return function.value(xp, z, *constants(activation))


def slope(xp: Namespace, activation: Activation, z: Array, a: Array) -> Array:
    """Evaluate the derivative at `z`, given the value `a` at `z`."""
    function = FUNCTIONS[activation.name]
    return function.slope(xp, z, a, *constants(activation))


def constants(activation: Activation) -> tuple[float, float]:
    """Return alpha and beta: the given values, else the function's defaults, else 0."""
    function = FUNCTIONS[activation.name]
    alpha = function.alpha if activation.alpha is None else activation.alpha
    beta = function.beta if activation.beta is None else activation.beta
    return alpha or 0.0, beta or 0.0


def clip(xp: Namespace, a: Array, bound: float | None) -> Array:
    """Clip `a` to [-bound, bound]; if there is no bound, return `a` unchanged."""
    return a if bound is None else clip_values(xp, a, -bound, bound)


def clip_back(xp: Namespace, da: Array, a: Array, bound: float | None) -> Array:
    """Return the gradient with respect to the input of `clip`, which is 0 where `a` was clipped."""
    return da if bound is None else xp.where(xp.abs(a) <= bound, da, xp.zeros_like(da))
