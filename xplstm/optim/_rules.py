"""Define the optimisers SGD, Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from xplstm import _array, _values
from xplstm._errors import DTypeError
from xplstm._typing import Array
from xplstm.optim._optimizer import Group, Optimizer, Rule, matches, patterns
from xplstm.optim._schedules import LearningRate


def _two_decays(name: str, betas: Any) -> tuple[float, float]:
    """Return the checked decay rates of two averages."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        msg = f"{name}={betas!r} must be a pair of numbers in [0, 1)"
        raise DTypeError(msg)
    return _values.probability(f"{name}[0]", betas[0]), _values.probability(f"{name}[1]", betas[1])


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    An update computes ``m = momentum * m + g`` and ``p = p - lr * m``, from m = 0
    (Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and
    momentum in deep learning", 2013, with the learning rate outside the average).

    Parameters
    ----------
    lr : float or callable
        The learning rate, at least 0. Or a function of the number of updates so far (0 at the first update)
        that returns the learning rate, such as `warmup_cosine`.
    momentum : float, optional
        Factor of the previous m, in ``[0, 1)``.
    groups : sequence of Group, optional
        Other options for some parameters. The first group that matches a parameter applies.

    Raises
    ------
    ArgumentError
        If a value is outside its range.
    DTypeError
        If a value has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> sgd = optim.SGD(0.5, momentum=0.5)
    >>> params = sgd.update({"w": np.zeros(1)}, {"w": np.ones(1)})
    >>> sgd.update(params, {"w": np.ones(1)})
    {'w': array([-1.25])}
    """

    _options = ("momentum",)

    def __init__(self, lr: LearningRate, momentum: float = 0.0, *, groups: Sequence[Group] = ()) -> None:
        self._momentum = _values.probability("momentum", momentum)
        super().__init__(lr, ("momentum",) if self._momentum else (), groups)

    @property
    def momentum(self) -> float:
        """Factor of the previous m. May be set; m begins at 0 then if there was no momentum before."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        self._momentum = _values.probability("momentum", momentum)
        if self._momentum:
            self._averages.setdefault("momentum", {})
            self._counts = True

    def _rule(self, lr: float, step: int, decay: float | None, name: str) -> Rule:  # noqa: ARG002
        return _Descent(lr, self.momentum)


class Adam(Optimizer):
    """Adam, which scales updates by moving averages of the gradient and of its square.

    An update is algorithm 1 of Kingma and Ba, "Adam: a method for stochastic
    optimization", 2015, with the bias corrections of that algorithm.

    Parameters
    ----------
    lr : float or callable
        The learning rate, at least 0. Or a function of the number of updates so far (0 at the first update)
        that returns the learning rate, such as `warmup_cosine`.
    betas : (float, float), optional
        Decay rates of the two averages, each in ``[0, 1)``.
    eps : float, optional
        Added to the square root of the second average, at least 0 and finite.
    groups : sequence of Group, optional
        Other options for some parameters. The first group that matches a parameter applies.

    Raises
    ------
    ArgumentError
        If a value is outside its range.
    DTypeError
        If a value has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> optim.Adam(0.25, eps=0.0).update({"w": np.ones(2)}, {"w": np.asarray([3.0, -7.0])})
    {'w': array([0.75, 1.25])}
    """

    _options: ClassVar[tuple[str, ...]] = ("betas", "eps")

    betas = _values.Option(_two_decays)
    eps = _values.Option(_values.at_least_zero)

    def __init__(
        self,
        lr: LearningRate,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        groups: Sequence[Group] = (),
    ) -> None:
        self.betas, self.eps = betas, eps
        super().__init__(lr, ("m", "v"), groups)

    def _rule(self, lr: float, step: int, decay: float | None, name: str) -> Rule:  # noqa: ARG002
        return self._shrinking(lr, step, 1.0)

    def _shrinking(self, lr: float, step: int, keep: float) -> Rule:
        """Return the rule of update number `step`, which first multiplies the parameter by `keep`."""
        beta_m, beta_v = self.betas
        unbias_m, unbias_v = 1 - beta_m**step, 1 - beta_v**step
        rate, root = lr / unbias_m, math.sqrt(unbias_v)
        return _Moments(rate, keep, beta_m, 1 - beta_m, beta_v, 1 - beta_v, root, self.eps)


class AdamW(Adam):
    """AdamW, which also multiplies every parameter by ``1 - lr * weight_decay``.

    An update is algorithm 2 of Loshchilov and Hutter, "Decoupled weight decay
    regularization", 2019, with the schedule multiplier included in `lr`.

    Parameters
    ----------
    lr : float or callable
        The learning rate, at least 0. Or a function of the number of updates so far (0 at the first update)
        that returns the learning rate, such as `warmup_cosine`.
    betas : (float, float), optional
        Decay rates of the two averages, each in ``[0, 1)``.
    eps : float, optional
        Added to the square root of the second average, at least 0 and finite.
    weight_decay : float, optional
        At least 0 and finite.
    no_decay : str or sequence of str, optional
        Names or patterns, as in `Group`, of parameters without weight decay; biases if omitted.
        ``no_decay=()`` applies weight decay to all parameters, like ``torch.optim.AdamW``.
    groups : sequence of Group, optional
        Other options for some parameters. The first group that matches a parameter applies.

    Raises
    ------
    ArgumentError
        If a value is outside its range.
    DTypeError
        If a value has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> optim.AdamW(0.5, weight_decay=0.5).update({"w": np.ones(2)}, {"w": np.zeros(2)})
    {'w': array([0.75, 0.75])}
    """

    _options = (*Adam._options, "weight_decay", "no_decay")
    _decays = True

    weight_decay = _values.Option(_values.at_least_zero)
    no_decay = _values.Option(patterns)

    def __init__(
        self,
        lr: LearningRate,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        no_decay: str | Sequence[str] = ("bias*",),
        groups: Sequence[Group] = (),
    ) -> None:
        self.weight_decay, self.no_decay = weight_decay, no_decay
        super().__init__(lr, betas, eps, groups=groups)

    def _rule(self, lr: float, step: int, decay: float | None, name: str) -> Rule:
        if decay is None:
            decay = 0.0 if matches(name, self.no_decay) else self.weight_decay
        return self._shrinking(lr, step, 1 - lr * decay)


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
    """The rule of `Adam` and `AdamW`; `fresh` is ``1 - decay``, and `root` unbiases ``sqrt(v)``."""

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
