"""What all optimisers share: state of each parameter, groups, tied parameters, wide copies, export."""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, cast

from xplstm import _array, _values
from xplstm._array import part
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError
from xplstm._summary import Row, Summary
from xplstm._typing import Array, Namespace, Params
from xplstm.optim._clip import float_array
from xplstm.optim._schedules import LearningRate

Averages: TypeAlias = dict[str, dict[str, Array]]
"""Kind, then name of a parameter -> array; none yet for a parameter that is new."""

MASTER = "master"
"""The kind that holds float32 copies of half-precision parameters."""


class Rule(Protocol):
    """One update: its numbers, and what they make of one parameter."""

    @property
    def name(self) -> str:
        """Name of the kernel that computes it."""
        ...

    def __call__(self, p: Array, g: Array, before: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """Return the new value of the parameter and its new averages."""
        ...


@dataclass(frozen=True)
class Group:
    """Options for some parameters.

    Parameters
    ----------
    names : str or sequence of str
        Names or patterns of ``fnmatch``, such as ``"lstm.weight*"`` or ``"bias*"``. One with a dot is
        compared with the whole name of a parameter, one without with the part after the last dot. The name
        of a layer, such as ``"lstm"``, means all its parameters.
    lr : float or callable, optional
        Replaces the optimiser's ``lr`` for these parameters.
    lr_scale : float, optional
        Multiplies the learning rate of these parameters; at least 0.
    weight_decay : float, optional
        Replaces the optimiser's ``weight_decay``, for `AdamW` alone; at least 0.

    Raises
    ------
    ArgumentError
        For a value outside its range.
    DTypeError
        For a value of another type.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> sgd = optim.SGD(1.0, groups=[optim.Group("embedding", lr_scale=0.5)])
    >>> sgd.update({"embedding.weight": np.zeros(1)}, {"embedding.weight": np.ones(1)})
    {'embedding.weight': array([-0.5])}
    """

    names: str | Sequence[str]
    lr: LearningRate | None = None
    lr_scale: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        names = patterns("names", self.names)
        if not names:
            msg = f"names={self.names!r} must have at least 1 name or pattern"
            raise ArgumentError(msg)
        object.__setattr__(self, "names", names)
        _values.in_range("lr_scale", self.lr_scale, 0, math.inf)
        if self.lr is not None:
            _checked_rate(self.lr)
        if self.weight_decay is not None:
            _values.in_range("weight_decay", self.weight_decay, 0, math.inf)


def patterns(argument: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """Return names or patterns as a tuple."""
    names = (given,) if isinstance(given, str) else tuple(_values.items(argument, given))
    if not all(isinstance(name, str) for name in names):
        msg = f"{argument}={given!r} must be a name, a pattern or a sequence of them"
        raise DTypeError(msg)
    return names


def matches(name: str, chosen: Iterable[str]) -> bool:
    """Return whether a parameter's name fits one of the patterns; `Group` has the rule."""
    last = name.rpartition(".")[2]
    return any(
        fnmatchcase(name if "." in pattern else last, pattern) or name.startswith(f"{pattern}.")
        for pattern in chosen
    )


class Optimizer(Summary, ABC):
    """What `SGD`, `Adam` and `AdamW` have in common: state of each parameter by name, and its export.

    Attributes
    ----------
    step : int
        Updates made so far.
    """

    _options: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that hold a class's own options."""

    _columns = ("state", "of", "numbers")

    def __init__(self, lr: LearningRate, averages: tuple[str, ...], groups: Sequence[Group] = ()) -> None:
        self.lr = lr
        self.groups = tuple(groups) if isinstance(groups, Sequence) else (groups,)
        for group in self.groups:
            if not isinstance(group, Group):
                msg = f"groups={groups!r} must be a sequence of xplstm.optim.Group"
                raise DTypeError(msg)
        self._averages: Averages = {kind: {} for kind in (*averages, MASTER)}
        self._counts = bool(averages)
        self._steps: dict[str, int] = {}
        self.step = 0

    def __repr__(self) -> str:
        options = [f"{name}={getattr(self, name)!r}" for name in self._options]
        groups = [f"groups={list(self.groups)!r}"] if self.groups else []
        return f"{type(self).__name__}({', '.join([f'lr={self._lr!r}', *options, *groups])})"

    def _rows(self) -> list[Row]:
        found = []
        for kind, arrays in self._averages.items():
            count = sum(math.prod(a.shape) for a in arrays.values())
            found += [(kind, f"{len(arrays)} parameters", count)] if arrays else []
        return found

    @property
    def num_parameters(self) -> int:
        """Number of elements of the state, such as averages of gradients."""
        return super().num_parameters

    @property
    def lr(self) -> float:
        """Learning rate of the next update; a number or a schedule can be assigned."""
        return self._rate(self._lr)

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self._lr = _checked_rate(lr)

    @property
    def schedule(self) -> Callable[[int], float] | None:
        """The function that gives the learning rate; None where it is a number."""
        return self._lr if callable(self._lr) else None

    def update(self, params: Params, grads: Params) -> dict[str, Array]:
        """Make one update.

        Parameters
        ----------
        params : mapping of str to array
            Float arrays.
        grads : mapping of str to array
            Of the same shapes. A parameter without a gradient stays the same array, and keeps its averages
            and its own count of updates; so does a name that is left out of `params`.

        Returns
        -------
        dict of str to array
            New parameters with the names and dtypes of `params`; what was passed is not written to.

        Raises
        ------
        ArgumentError
            If `grads` has a name that `params` lacks, or the schedule gives a learning rate below 0.
        DTypeError
            If an array is not of floats.
        ShapeError
            If the shapes differ, or a state that was loaded belongs to parameters of other shapes.

        Notes
        -----
        Every parameter has its own averages and its own count of updates, as in ``torch.optim``. Schedules
        are given the number of calls of `update`.

        Names that share one array object are tied: their gradients are added, they get one update, and
        share one array afterwards.

        For each float16 and bfloat16 parameter a float32 copy is kept, which takes the updates; the parameter
        is that copy rounded. Where a parameter is no longer its copy rounded, because other code replaced it,
        the copy is replaced too. Averages are float32.

        Where `xplstm.use_kernel` lets CUDA kernels run, one launch updates up to 32 of CuPy's parameters
        of equal options and gives the bits that NumPy gives.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm import optim
        >>> optim.SGD(0.5).update({"w": np.ones(2), "frozen": np.ones(1)}, {"w": np.ones(2)})
        {'w': array([0.5, 0.5]), 'frozen': array([1.])}
        """
        moved, names = _moved_together(params, grads)
        rules = {first: self._rule_for(tied) for first, tied in names.items()}
        before = {first: self._state_of(moved[first].p, tied) for first, tied in names.items()}
        moving = [name for tied in names.values() for name in tied] if self._counts else []
        new, steps = dict(params), {name: self._steps.get(name, 0) + 1 for name in moving}
        averages: Averages = {kind: dict(values) for kind, values in self._averages.items()}
        if moved:
            xp = _array.namespace(next(iter(moved.values())).p, "params")
            made, after = _updated(
                xp,
                rules,
                {first: pair.p for first, pair in moved.items()},
                {first: pair.g for first, pair in moved.items()},
                {kind: {n: s[kind] for n, s in before.items() if kind in s} for kind in averages},
            )
            for first, tied in names.items():
                new.update(dict.fromkeys(tied, made[first]))
                for kind, values in after.items():
                    if first in values:
                        averages[kind].update(dict.fromkeys(tied, values[first]))
        self._averages, self._steps = averages, self._steps | steps
        self.step += 1
        return new

    @abstractmethod
    def _rule(self, lr: float, step: int, decay: float | None, name: str) -> Rule:
        """Return the update number `step` of the parameter `name`; `decay` replaces the weight decay."""

    def _rule_for(self, tied: list[str]) -> Rule:
        """Return the next update of a parameter with these names."""
        step = max(self._steps.get(name, 0) for name in tied)
        group = next((g for g in self.groups if any(matches(name, g.names) for name in tied)), None)
        if group is None:
            return self._rule(self.lr, step + 1, None, tied[0])
        rate = self.lr if group.lr is None else self._rate(group.lr)
        return self._rule(rate * group.lr_scale, step + 1, group.weight_decay, tied[0])

    def _rate(self, lr: LearningRate) -> float:
        """Return the present value of a learning rate."""
        return _values.in_range("lr", lr(self.step), 0, math.inf) if callable(lr) else lr

    def _state_of(self, p: Array, tied: list[str]) -> dict[str, Array]:
        """Return the averages of one parameter by kind, which fit it."""
        found: dict[str, Array] = {}
        for kind, values in self._averages.items():
            for name in tied:
                if name in values:
                    found[kind] = values[name]
                    _check_fits(f"{kind}.{name}", values[name], name, p)
                    break
        return found

    def settings(self) -> dict[str, Any]:
        """Return the class and the options, learning rates left out, as JSON can hold them.

        Returns
        -------
        dict
            ``class``, ``groups`` and the options by name.

        Examples
        --------
        >>> from xplstm import optim
        >>> optim.SGD(0.1, momentum=0.5).settings()
        {'class': 'SGD', 'momentum': 0.5, 'groups': []}
        """
        options = {name: getattr(self, name) for name in self._options}
        groups = [
            {"names": list(g.names), "lr_scale": g.lr_scale, "weight_decay": g.weight_decay}
            for g in self.groups
        ]
        return {"class": type(self).__name__, **options, "groups": groups}

    def state_dict(self) -> dict[str, Array | int]:
        """Return everything that the next update depends on besides parameters, gradients and settings.

        Returns
        -------
        dict of str to array or int
            ``step``; the array of each average, such as ``m.weight_ih_l0``; ``master.weight_ih_l0`` and the
            like for half precision; and ``step.weight_ih_l0`` for a parameter that was left out of an update.

        Examples
        --------
        >>> from xplstm import optim
        >>> optim.Adam(1e-3).state_dict()
        {'step': 0}
        """
        arrays = {
            f"{kind}.{name}": v for kind, values in self._averages.items() for name, v in values.items()
        }
        own = {f"step.{name}": step for name, step in self._steps.items() if step != self.step}
        return {"step": self.step, **own, **arrays}

    def without_state(self, names: Iterable[str]) -> list[str]:
        """Return the names of parameters that this optimiser has no averages of, though its class has some.

        Parameters
        ----------
        names : iterable of str

        Returns
        -------
        list of str

        Examples
        --------
        >>> from xplstm import optim
        >>> optim.Adam(0.1).without_state(["w"]), optim.SGD(0.1).without_state(["w"])
        (['w'], [])
        """
        names = patterns("names", names)
        kinds = [values for kind, values in self._averages.items() if kind != MASTER]
        return [name for name in names if any(name not in values for values in kinds)]

    def load_state_dict(self, state: Mapping[str, Array | int]) -> None:
        """Continue from the state of another optimiser.

        Parameters
        ----------
        state : mapping of str to array or int
            From `state_dict` of an optimiser of the same class; arrays of the parameters' library.

        Raises
        ------
        ArgumentError
            If a name is not one of this class, ``step`` or an average is missing, or a count is out of its
            range.
        DTypeError
            If a count is not an integer, or an average is not an array of floats.
        ShapeError
            If two averages of one parameter differ in shape.

        Examples
        --------
        >>> from xplstm import optim
        >>> sgd = optim.SGD(1e-3)
        >>> sgd.load_state_dict({"step": 7})
        >>> sgd.step
        7
        """
        kinds = tuple(self._averages)
        if not isinstance(state, Mapping):
            msg = f"state={state!r} must be a mapping, as state_dict returns"
            raise DTypeError(msg)
        known = (*kinds, "step")
        strange = [name for name in state if not isinstance(name, str) or name.partition(".")[0] not in known]
        if strange or "step" not in state:
            expected = ", ".join(["'step'", *(f"'{kind}.<name>'" for kind in kinds)])
            msg = f"state of {type(self).__name__} has the names {expected}; given are {list(state)}"
            raise ArgumentError(msg)
        step, steps = _values.size("step", state["step"], 0), dict[str, int]()
        averages: Averages = {kind: {} for kind in kinds}
        for key, value in state.items():
            kind, dot, name = key.partition(".")
            if kind in averages:
                averages[kind][name] = float_array(f"state[{key!r}]", cast("Array", value))
                steps.setdefault(name, step)
            elif dot:
                steps[name] = _values.size(key, value, 0)
        if self._counts and step > 0 and not steps:
            needed = ", ".join(f"'{kind}.<name>'" for kind in kinds if kind != MASTER)
            msg = f"state has step={step} and no averages; {type(self).__name__} needs {needed}"
            raise ArgumentError(msg)
        _check_complete(kinds, averages, steps, step)
        self.step, self._averages, self._steps = step, averages, steps if self._counts else {}


class _Pair(NamedTuple):
    """A parameter and its gradient."""

    p: Array
    g: Array


def _moved_together(params: Params, grads: Params) -> tuple[dict[str, _Pair], dict[str, list[str]]]:
    """Return the parameters that have a gradient under their first names, and all the names of each."""
    _check_names(params, grads)
    by_object: dict[int, list[str]] = {}
    for name, param in params.items():
        by_object.setdefault(id(param), []).append(name)
    pairs: dict[str, _Pair] = {}
    names: dict[str, list[str]] = {}
    for tied in by_object.values():
        given = [name for name in tied if name in grads]
        if not given:
            continue
        p = float_array(f"params[{given[0]!r}]", params[given[0]])
        gs = [float_array(f"grads[{name!r}]", grads[name]) for name in given]
        for name, g in zip(given, gs, strict=True):
            if g.shape != p.shape:
                msg = f"grads[{name!r}] has shape {tuple(g.shape)}; params has {tuple(p.shape)}"
                raise ShapeError(msg)
        g = gs[0] if len(gs) == 1 else functools.reduce(operator.add, map(_array.widen, gs))
        pairs[tied[0]], names[tied[0]] = _Pair(p, g), tied
    return pairs, names


@part
def _updated(
    xp: Namespace, rules: Mapping[str, Rule], params: Params, grads: Params, averages: Averages
) -> tuple[dict[str, Array], Averages]:
    """Return new parameters and averages, one parameter after another."""
    new: dict[str, Array] = {}
    after: Averages = {kind: {} for kind in averages}
    for name, param in params.items():
        xp = _array.namespace(param, name)
        wide = _array.wide_dtype(xp, param.dtype)
        p, g = xp.astype(param, wide, copy=False), xp.astype(grads[name], wide, copy=False)
        master = averages[MASTER].get(name)
        if master is not None:
            p = xp.where(xp.astype(master, param.dtype) == param, master, p)
        before = {k: v[name] if name in v else xp.zeros_like(p) for k, v in averages.items() if k != MASTER}
        p, values = rules[name](p, g, before)
        new[name] = xp.astype(p, param.dtype, copy=False)
        if wide != param.dtype:
            values[MASTER] = p
        for kind, value in values.items():
            after[kind][name] = value
    return new, after


def _checked_rate(lr: LearningRate) -> LearningRate:
    """Return a learning rate that is a number of at least 0, or a function."""
    if isinstance(lr, type):
        msg = f"lr={lr!r} is a class; a number or a function of the step was expected"
        raise DTypeError(msg)
    return lr if callable(lr) else _values.in_range("lr", lr, 0, math.inf)


def _check_names(params: Params, grads: Params) -> None:
    """Refuse what is no mapping, and gradients of parameters that are not there."""
    for argument, given in (("params", params), ("grads", grads)):
        if not isinstance(given, Mapping):
            msg = f"{argument} must be a mapping of names to arrays, got {type(given).__name__}"
            raise DTypeError(msg)
    strange = sorted(map(str, grads.keys() - params.keys()))
    if strange:
        missing = sorted(map(str, params.keys() - grads.keys()))
        msg = f"grads must have names of params; missing: {missing}, unknown: {strange}"
        raise ArgumentError(msg)


def _check_fits(key: str, value: Array, name: str, p: Array) -> None:
    """Refuse a state of another parameter than `p`."""
    if value.shape != p.shape:
        msg = f"state {key!r} has shape {tuple(value.shape)}; params[{name!r}] has {tuple(p.shape)}"
        raise ShapeError(msg)
    if type(value) is not type(p):
        theirs, ours = _array.namespace(value, key), _array.namespace(p, name)
        if theirs is not ours:
            home = _array.backend_name(theirs), _array.backend_name(ours)
            msg = f"state {key!r} is of {home[0]}; params[{name!r}] is of {home[1]}; move one of them"
            raise BackendError(msg)
    found, param = _array.dtype_name(value.dtype), _array.dtype_name(p.dtype)
    wide = "float32" if param in ("float16", "bfloat16") else param
    if found != wide:
        msg = f"state {key!r} has dtype {found}; params[{name!r}] of {param} asks for {wide}"
        raise DTypeError(msg)


def _check_complete(kinds: tuple[str, ...], averages: Averages, steps: Mapping[str, int], step: int) -> None:
    """Refuse a loaded state in which a part is missing, or the parts contradict each other."""
    needed = [kind for kind in kinds if kind != MASTER]
    for name, own in steps.items():
        missing = [f"{kind}.{name}" for kind in needed if name not in averages[kind]]
        if missing:
            msg = f"state lacks {missing}, and has other entries of {name!r}"
            raise ArgumentError(msg)
        if not 0 < own <= step:
            msg = f"step.{name}={own} must be in [1, step={step}]"
            raise ArgumentError(msg)
        shapes = {kind: tuple(values[name].shape) for kind, values in averages.items() if name in values}
        if len(set(shapes.values())) > 1:
            msg = f"state of {name!r} has the shapes {shapes}; one shape was expected"
            raise ShapeError(msg)
