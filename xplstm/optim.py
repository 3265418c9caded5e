"""From gradients to better parameters: SGD, Adam, AdamW, clipping and a learning-rate schedule.

An optimiser never writes to an array that it is given: it returns new ones, so
that it runs on immutable arrays too, and a reference to old parameters stays
a copy of them.
"""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeAlias

from xplstm import _array
from xplstm._errors import ArgumentError, ShapeError
from xplstm._parts import part
from xplstm._typing import Array, Namespace, Params

LearningRate: TypeAlias = "float | Callable[[int], float]"
Averages: TypeAlias = dict[str, dict[str, Array]]
"""Kind, then name of a parameter -> array; none yet for a parameter that is new."""


class _Rule(Protocol):
    """One update: its numbers, and what they make of one parameter."""

    @property
    def name(self) -> str:
        """What a kernel that computes it is called after."""
        ...

    def __call__(self, p: Array, g: Array, before: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """Return the new value of the parameter and its new averages."""
        ...


class Optimizer(ABC):
    """What `SGD`, `Adam` and `AdamW` have in common: a step count, averages by name, their export.

    Attributes
    ----------
    step : int
        Updates made so far.
    """

    def __init__(self, lr: LearningRate, averages: tuple[str, ...]) -> None:
        self._lr = lr if callable(lr) else _in_range("lr", lr, 0, math.inf)
        self._averages: Averages = {kind: {} for kind in averages}
        self.step = 0

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return _in_range("lr", self._lr(self.step), 0, math.inf) if callable(self._lr) else self._lr

    def update(self, params: Params, grads: Params) -> dict[str, Array]:
        """Make one update.

        Parameters
        ----------
        params, grads : mapping of str to array
            With the same names and shapes.

        Returns
        -------
        dict of str to array
            New parameters in the dtypes of `params`; what was passed is not written to.
            For float16 and bfloat16 parameters the averages are kept in float32.

        Raises
        ------
        ArgumentError
            If the names differ, or the schedule gives a learning rate below 0.
        ShapeError
            If the shapes differ.

        Notes
        -----
        Where `xplstm.use_kernel` lets CUDA kernels run, one launch updates up to 32 of CuPy's parameters
        and gives the bits that NumPy gives.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm import optim
        >>> optim.SGD(0.5).update({"w": np.ones(2)}, {"w": np.ones(2)})
        {'w': array([0.5, 0.5])}
        """
        _check_alike(params, grads)
        rule = self._rule(self.lr)
        new: dict[str, Array] = {}
        if params:
            name, first = next(iter(params.items()))
            xp = _array.namespace(first, name)
            new, self._averages = _updated(xp, rule, params, grads, self._averages)
        self.step += 1
        return new

    @abstractmethod
    def _rule(self, lr: float) -> _Rule:
        """Return the next update."""

    def state_dict(self) -> dict[str, Array | int]:
        """Everything that the next update depends on beside parameters, gradients and settings.

        Returns
        -------
        dict of str to array or int
            ``step``, and the array of each average, such as ``m.weight_ih_l0``.

        Examples
        --------
        >>> from xplstm import optim
        >>> optim.Adam(1e-3).state_dict()
        {'step': 0}
        """
        arrays = {
            f"{kind}.{name}": v for kind, values in self._averages.items() for name, v in values.items()
        }
        return {"step": self.step, **arrays}

    def load_state_dict(self, state: Mapping[str, Array | int]) -> None:
        """Go on where the optimiser stood that gave `state`.

        Parameters
        ----------
        state : mapping of str to array or int
            From `state_dict` of an optimiser of the same class; the arrays where the parameters are.

        Raises
        ------
        ArgumentError
            If a name is not one of this class, or ``step`` is missing.

        Examples
        --------
        >>> from xplstm import optim
        >>> adam = optim.Adam(1e-3)
        >>> adam.load_state_dict({"step": 7})
        >>> adam.step
        7
        """
        averages: Averages = {kind: {} for kind in self._averages}
        arrays = {name: value for name, value in state.items() if name != "step"}
        strange = [name for name in arrays if name.partition(".")[0] not in averages]
        if strange or "step" not in state:
            known = ", ".join(["'step'", *(f"'{kind}.<name>'" for kind in averages)])
            msg = f"state of {type(self).__name__} has the names {known}; given are {list(state)}"
            raise ArgumentError(msg)
        for name, value in arrays.items():
            kind, _, param = name.partition(".")
            averages[kind][param] = value
        self.step, self._averages = int(state["step"]), averages


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum.

    ``m = momentum * m + g; p = p - lr * m``, beginning at m = 0 (Sutskever,
    Martens, Dahl and Hinton, "On the importance of initialization and momentum
    in deep learning", 2013, with the learning rate outside the average).

    Parameters
    ----------
    lr : float or callable
        The learning rate, at least 0, or a function from the number of updates
        made so far (0 at the first) to it, such as `warmup_cosine`.
    momentum : float, optional
        In ``[0, 1)``.

    Raises
    ------
    ArgumentError
        For a value outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> sgd = optim.SGD(0.5, momentum=0.5)
    >>> params = sgd.update({"w": np.zeros(1)}, {"w": np.ones(1)})
    >>> sgd.update(params, {"w": np.ones(1)})
    {'w': array([-1.25])}
    """

    def __init__(self, lr: LearningRate, momentum: float = 0.0) -> None:
        self.momentum = _in_range("momentum", momentum, 0, 1)
        super().__init__(lr, ("momentum",) if self.momentum else ())

    def _rule(self, lr: float) -> _Rule:
        return _Descent(lr, self.momentum)


class Adam(Optimizer):
    """Steps scaled by running averages of the gradient and of its square.

    Algorithm 1 of Kingma and Ba, "Adam: a method for stochastic optimization",
    2015, with the corrections of both averages applied as written there.

    Parameters
    ----------
    lr : float or callable
        The learning rate, at least 0, or a function from the number of updates
        made so far (0 at the first) to it, such as `warmup_cosine`.
    betas : (float, float), optional
        Decay of the two averages, each in ``[0, 1)``.
    eps : float, optional
        Added to the root of the second average; at least 0.

    Raises
    ------
    ArgumentError
        For a value outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> optim.Adam(0.25, eps=0.0).update({"w": np.ones(2)}, {"w": np.asarray([3.0, -7.0])})
    {'w': array([0.75, 1.25])}
    """

    def __init__(
        self, lr: LearningRate, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.betas = (_in_range("betas[0]", betas[0], 0, 1), _in_range("betas[1]", betas[1], 0, 1))
        self.eps = _in_range("eps", eps, 0, math.inf)
        super().__init__(lr, ("m", "v"))

    def _rule(self, lr: float) -> _Rule:
        return self._shrinking(lr, 1.0)

    def _shrinking(self, lr: float, keep: float) -> _Rule:
        """Return the next update, of parameters that are first multiplied by `keep`."""
        beta_m, beta_v = self.betas
        unbias_m, unbias_v = 1 - beta_m ** (self.step + 1), 1 - beta_v ** (self.step + 1)
        rate, root = lr / unbias_m, math.sqrt(unbias_v)
        return _Moments(rate, keep, beta_m, 1 - beta_m, beta_v, 1 - beta_v, root, self.eps)


class AdamW(Adam):
    """`Adam` that also shrinks every parameter by ``lr * weight_decay`` of itself.

    Algorithm 2 of Loshchilov and Hutter, "Decoupled weight decay
    regularization", 2019, with their schedule multiplier inside `lr`.

    Parameters
    ----------
    lr : float or callable
        The learning rate, at least 0, or a function from the number of updates
        made so far (0 at the first) to it, such as `warmup_cosine`.
    betas : (float, float), optional
        Decay of the two averages, each in ``[0, 1)``.
    eps : float, optional
        Added to the root of the second average; at least 0.
    weight_decay : float, optional
        At least 0.

    Raises
    ------
    ArgumentError
        For a value outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> optim.AdamW(0.5, weight_decay=0.5).update({"w": np.ones(2)}, {"w": np.zeros(2)})
    {'w': array([0.75, 0.75])}
    """

    def __init__(
        self,
        lr: LearningRate,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas, eps)
        self.weight_decay = _in_range("weight_decay", weight_decay, 0, math.inf)

    def _rule(self, lr: float) -> _Rule:
        return self._shrinking(lr, 1 - lr * self.weight_decay)


class _Descent(NamedTuple):
    """The rule of `SGD`."""

    rate: float
    momentum: float

    @property
    def name(self) -> str:
        return "descent"

    def __call__(self, p: Array, g: Array, before: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        if not before:
            return p - self.rate * g, {}
        m = self.momentum * before["momentum"] + g
        return p - self.rate * m, {"momentum": m}


class _Moments(NamedTuple):
    """The rule of `Adam` and `AdamW`; `fresh` is one minus `decay`, `root` unbiases the root of v."""

    rate: float
    keep: float
    decay_m: float
    fresh_m: float
    decay_v: float
    fresh_v: float
    root: float
    eps: float

    @property
    def name(self) -> str:
        return "moments"

    def __call__(self, p: Array, g: Array, before: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        xp = _array.namespace(p, "p")
        m = self.decay_m * before["m"] + self.fresh_m * g
        v = self.decay_v * before["v"] + self.fresh_v * (g * g)
        step = m / (xp.sqrt(v) / self.root + self.eps)
        p = p if self.keep == 1 else p * self.keep
        return p - self.rate * step, {"m": m, "v": v}


@part
def _updated(
    xp: Namespace, rule: _Rule, params: Params, grads: Params, averages: Averages
) -> tuple[dict[str, Array], Averages]:
    """New parameters and averages, one parameter after another."""
    new: dict[str, Array] = {}
    after: Averages = {kind: {} for kind in averages}
    for name, param in params.items():
        xp = _array.namespace(param, name)
        wide = _array.wide_dtype(xp, param.dtype)
        p, g = xp.astype(param, wide, copy=False), xp.astype(grads[name], wide, copy=False)
        before = {k: v[name] if name in v else xp.zeros_like(p) for k, v in averages.items()}
        p, values = rule(p, g, before)
        new[name] = xp.astype(p, param.dtype, copy=False)
        for kind, value in values.items():
            after[kind][name] = value
    return new, after


def clip_by_global_norm(grads: Params, max_norm: float) -> tuple[dict[str, Array], Array]:
    """Scale all gradients together so that their common Euclidean norm is at most `max_norm`.

    ``g * max_norm / max(norm, max_norm)``: Pascanu, Mikolov and Bengio, "On the
    difficulty of training recurrent neural networks", 2013, section 3.2. The
    decision is made by arithmetic, where the arrays are; nothing waits for a device.

    Parameters
    ----------
    grads : mapping of str to array
        At least one; float16 and bfloat16 are squared and summed in float32.
    max_norm : float
        Greater than 0.

    Returns
    -------
    clipped : dict of str to array
        In the dtypes of `grads`; equal to them where the norm is small enough.
    norm : array, shape ()
        The norm before clipping.

    Raises
    ------
    ArgumentError
        If `max_norm` is not greater than 0, or there are no gradients.

    Notes
    -----
    Where `xplstm.use_kernel` lets CUDA kernels run, three launches do this for up to 32 of CuPy's arrays; the
    order of their sums depends on the sizes of the arrays alone.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> clipped, norm = optim.clip_by_global_norm({"a": np.asarray([3.0]), "b": np.asarray([4.0])}, 0.5)
    >>> clipped, float(norm)
    ({'a': array([0.3]), 'b': array([0.4])}, 5.0)
    """
    if not max_norm > 0:
        msg = f"max_norm={max_norm} must be greater than 0"
        raise ArgumentError(msg)
    if not grads:
        msg = "grads is empty; it must hold at least one array"
        raise ArgumentError(msg)
    name, first = next(iter(grads.items()))
    return _clipped(_array.namespace(first, name), grads, max_norm)


@part
def _clipped(xp: Namespace, grads: Params, max_norm: float) -> tuple[dict[str, Array], Array]:
    """Clipped gradients, and their norm before."""
    names = {name: _array.namespace(g, name) for name, g in grads.items()}
    wide = {
        name: xp.astype(grads[name], _array.wide_dtype(xp, grads[name].dtype), copy=False)
        for name, xp in names.items()
    }
    norm = _global_norm(xp, list(wide.values()))
    bound = xp.full_like(norm, float(max_norm))
    scale = bound / xp.maximum(norm, bound)
    return {name: xp.astype(g * scale, grads[name].dtype, copy=False) for name, g in wide.items()}, norm


def _global_norm(xp: Namespace, arrays: list[Array]) -> Array:
    """Euclidean norm of all elements; scaled by the largest first, so that no square overflows."""
    full = [a for a in arrays if 0 not in a.shape]
    if not full:
        return xp.sum(arrays[0])
    largest = functools.reduce(xp.maximum, (xp.max(xp.abs(a)) for a in full))
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    squares = functools.reduce(operator.add, (xp.sum((a / scale) ** 2) for a in full))
    return scale * xp.sqrt(squares) * xp.astype(largest > 0, largest.dtype)


def warmup_cosine(peak: float, warmup: int, total: int, floor: float = 0.0) -> Callable[[int], float]:
    """Schedule a learning rate that rises in a line, then falls along half a cosine.

    ``floor + (peak - floor) * (1 + cos(pi * s)) / 2`` with s from 0 to 1:
    formula 5 of Loshchilov and Hutter, "SGDR: stochastic gradient descent with
    warm restarts", 2017, without the restarts.

    Parameters
    ----------
    peak : float
        The rate after the rise; at least `floor`.
    warmup : int
        Updates of the rise, in ``[0, total]``; the first is made at ``peak / warmup``.
    total : int
        Updates until the rate is `floor`, where it stays.
    floor : float, optional
        At least 0.

    Returns
    -------
    callable
        From the number of updates made so far to the learning rate; what `SGD`,
        `Adam` and `AdamW` take as `lr`.

    Raises
    ------
    ArgumentError
        For a value outside its range.

    Examples
    --------
    >>> from xplstm import optim
    >>> lr = optim.warmup_cosine(1.0, warmup=2, total=4)
    >>> [round(lr(step), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    _in_range("floor", floor, 0, math.inf)
    if not peak >= floor:
        msg = f"peak={peak} must be at least floor={floor}"
        raise ArgumentError(msg)
    if not 0 <= warmup <= total:
        msg = f"warmup={warmup} must be in [0, total={total}]"
        raise ArgumentError(msg)

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if step >= total:
            return floor
        return floor + (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    return lr


def _in_range(name: str, value: float, least: float, below: float) -> float:
    """Return `value` as a Python float, which no array library lets decide the dtype."""
    if not least <= value < below:
        msg = f"{name}={value} must be in [{least}, {below})"
        raise ArgumentError(msg)
    return float(value)


def _check_alike(params: Params, grads: Params) -> None:
    """Refuse gradients of other parameters."""
    if params.keys() != grads.keys():
        missing, strange = sorted(params.keys() - grads.keys()), sorted(grads.keys() - params.keys())
        msg = f"grads must have the names of params; missing: {missing}, unknown: {strange}"
        raise ArgumentError(msg)
    for name, param in params.items():
        if grads[name].shape != param.shape:
            msg = f"grads[{name!r}] has shape {tuple(grads[name].shape)}; params has {tuple(param.shape)}"
            raise ShapeError(msg)
