"""Define the base class of optimisers: state, groups, tied parameters, float32 copies and export."""

from __future__ import annotations

import math
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
from xplstm.optim._schedules import LearningRate

Averages: TypeAlias = dict[str, dict[str, Array]]
"""Arrays by kind, then by parameter name. A parameter that was never updated has no array."""

MASTER = "master"
"""The kind of the float32 copies of half-precision parameters."""


class Rule(Protocol):
    """The update of one parameter, with all its constants."""

    @property
    def name(self) -> str:
        """Name of the CUDA kernel that computes the update."""
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
        Names or patterns of ``fnmatch``, such as ``"lstm.weight*"`` or ``"bias*"``. A pattern with a dot is
        compared with the whole name of a parameter, and a pattern without a dot with the part after the last
        dot. The name of a layer, such as ``"lstm"``, matches all its parameters.
    lr : float or callable, optional
        Replaces the optimiser's ``lr`` for these parameters.
    lr_scale : float, optional
        Factor of the learning rate of these parameters, at least 0 and finite.
    weight_decay : float, optional
        Replaces the ``weight_decay`` of `AdamW`, at least 0 and finite. Other optimisers reject it.

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
        _values.at_least_zero("lr_scale", self.lr_scale)
        if self.lr is not None:
            _check_rate(self.lr)
        if self.weight_decay is not None:
            _values.at_least_zero("weight_decay", self.weight_decay)


def patterns(argument: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """Return names or patterns as a tuple."""
    names = (given,) if isinstance(given, str) else tuple(_values.items(argument, given))
    if not all(isinstance(name, str) for name in names):
        msg = f"{argument}={given!r} must be a name, a pattern, or a sequence of names and patterns"
        raise DTypeError(msg)
    return names


def matches(name: str, chosen: Iterable[str]) -> bool:
    """Return whether a parameter's name matches a pattern by the rule of `Group`."""
    last = name.rpartition(".")[2]
    return any(
        fnmatchcase(name if "." in pattern else last, pattern) or name.startswith(f"{pattern}.")
        for pattern in chosen
    )


class Optimizer(Summary, ABC):
    """Base class of `SGD`, `Adam` and `AdamW`, with the state of each parameter by name.

    Attributes
    ----------
    step : int
        Number of updates so far.
    """

    _options: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that contain the options of a subclass."""

    _decays: ClassVar[bool] = False
    """Whether a subclass has a weight decay."""

    _columns = ("state", "of", "numbers")

    def __init__(self, lr: LearningRate, averages: tuple[str, ...], groups: Sequence[Group] = ()) -> None:
        self.lr = lr
        self.groups = groups
        self._averages: Averages = {kind: {} for kind in (*averages, MASTER)}
        self._counts = bool(averages)
        self._steps: dict[str, int] = {}
        self.step = 0

    def __repr__(self) -> str:
        options = [f"{name}={getattr(self, name)!r}" for name in self._options]
        groups = [f"groups={list(self.groups)!r}"] if self.groups else []
        return f"{type(self).__name__}({', '.join([f'lr={self._lr!r}', *options, *groups])})"

    def _rows(self) -> list[Row]:
        rows = []
        for kind, arrays in self._averages.items():
            count = sum(math.prod(a.shape) for a in arrays.values())
            rows += [(kind, f"{len(arrays)} parameters", count)] if arrays else []
        return rows

    @property
    def num_parameters(self) -> int:
        """Number of elements of the state, such as averages of gradients."""
        return super().num_parameters

    @property
    def lr(self) -> float:
        """Learning rate of the next update. May be set to a number or a schedule."""
        return self._rate(self._lr)

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self._lr = _check_rate(lr)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Other options for some parameters. May be set to a sequence of groups."""
        return self._groups

    @groups.setter
    def groups(self, groups: Sequence[Group]) -> None:
        given = tuple(groups) if isinstance(groups, Sequence) else (groups,)
        for group in given:
            if not isinstance(group, Group):
                msg = f"groups={groups!r} must be a sequence of xplstm.optim.Group"
                raise DTypeError(msg)
            if group.weight_decay is not None and not self._decays:
                msg = f"groups has {group!r}, but {type(self).__name__} has no weight decay; use AdamW"
                raise ArgumentError(msg)
        self._groups = given

    @property
    def schedule(self) -> Callable[[int], float] | None:
        """The schedule of the learning rate, or None if the learning rate is a number."""
        return self._lr if callable(self._lr) else None

    def update(self, params: Params, grads: Params) -> dict[str, Array]:
        """Return updated parameters.

        Parameters
        ----------
        params : mapping of str to array
            Arrays of floats.
        grads : mapping of str to array
            Gradients with the shapes of `params`. A parameter without a gradient is returned unchanged, and
            keeps its averages and its count of updates. So does a name that is missing from `params`.

        Returns
        -------
        dict of str to array
            New parameters with the names and dtypes of `params`. The arguments are not modified.

        Raises
        ------
        ArgumentError
            If `grads` has a name that is not in `params`, or the schedule returns a learning rate below 0.
        DTypeError
            If an array is not of floats, or a loaded state has the wrong dtype.
        ShapeError
            If the shapes differ, or a loaded state belongs to parameters of other shapes.
        BackendError
            If a loaded state and the parameters are from different libraries.

        Notes
        -----
        Every parameter has its own averages and its own count of updates, as in ``torch.optim``. The
        argument of a schedule is the number of calls of `update`.

        Names that share one array object are tied. Their gradients are added, and they receive one update
        and share one array afterwards.

        Each float16 or bfloat16 parameter has a float32 copy, which accumulates the updates. The parameter is
        the rounded copy. If other code replaces the parameter, the copy is replaced too. Averages are
        float32.

        PyTorch's autograd records no update. New parameters require gradients where the old ones do.

        For CuPy arrays, a CUDA kernel may update up to 32 parameters with equal options in one launch; see
        `xplstm.use_kernel`. The result has the same bits as with NumPy.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm import optim
        >>> optim.SGD(0.5).update({"w": np.ones(2), "frozen": np.ones(1)}, {"w": np.ones(2)})
        {'w': array([0.5, 0.5]), 'frozen': array([1.])}
        """
        moved, names = _group_tied(params, grads)
        rules = {first: self._rule_for(tied) for first, tied in names.items()}
        before = {first: self._state_of(moved[first].p, tied) for first, tied in names.items()}
        moving = {name for tied in names.values() for name in tied}
        steps = {name: self._steps.get(name, 0) + (name in moving) for name in params} if self._counts else {}
        new = dict(params)
        averages: Averages = {kind: dict(values) for kind, values in self._averages.items()}
        if moved:
            xp = _array.namespace(next(iter(moved.values())).p, "params")
            updated, after = _update(
                xp,
                rules,
                {first: pair.p for first, pair in moved.items()},
                {first: pair.g for first, pair in moved.items()},
                {kind: {n: s[kind] for n, s in before.items() if kind in s} for kind in averages},
            )
            for first, tied in names.items():
                new.update(dict.fromkeys(tied, _array.requiring(updated[first], params[first])))
                for kind, values in after.items():
                    if first in values:
                        averages[kind].update(dict.fromkeys(tied, values[first]))
        self._averages, self._steps = averages, self._steps | steps
        self.step += 1
        return new

    @abstractmethod
    def _rule(self, lr: float, step: int, decay: float | None, name: str) -> Rule:
        """Return the rule of update number `step` for the parameter `name`; `decay` replaces weight_decay."""

    def _rule_for(self, tied: list[str]) -> Rule:
        """Return the rule of the next update of a parameter with these names."""
        step = max(self._steps.get(name, 0) for name in tied)
        group = next((g for g in self.groups if any(matches(name, g.names) for name in tied)), None)
        if group is None:
            return self._rule(self.lr, step + 1, None, tied[0])
        rate = self.lr if group.lr is None else self._rate(group.lr)
        return self._rule(rate * group.lr_scale, step + 1, group.weight_decay, tied[0])

    def _rate(self, lr: LearningRate) -> float:
        """Return the current value of a learning rate."""
        return _values.at_least_zero("lr", lr(self.step)) if callable(lr) else lr

    def _state_of(self, p: Array, tied: list[str]) -> dict[str, Array]:
        """Return the averages of one parameter by kind, checked to match the parameter."""
        state: dict[str, Array] = {}
        for kind, values in self._averages.items():
            for name in tied:
                if name in values:
                    state[kind] = values[name]
                    _check_fits(f"{kind}.{name}", values[name], name, p)
                    break
        return state

    def settings(self) -> dict[str, Any]:
        """Return the class and its options, without learning rates, as values for JSON.

        Returns
        -------
        dict
            The keys ``class`` and ``groups``, and the options by name.

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
        """Return the state that the next update depends on, without parameters and settings.

        Returns
        -------
        dict of str to array or int
            ``step``, and the array of each average, such as ``m.weight_ih_l0``. Half precision adds
            ``master.weight_ih_l0`` and so on. A parameter that missed an update adds
            ``step.weight_ih_l0``, its own number of updates. If all updates had empty `params`, ``step.``
            is 0.

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
        nothing = {"step.": 0} if self._counts and self.step and not self._steps else {}
        return {"step": self.step, **nothing, **own, **arrays}

    def without_state(self, names: Iterable[str]) -> list[str]:
        """Return the names of parameters without an average that this class of optimiser keeps.

        Parameters
        ----------
        names : iterable of str

        Returns
        -------
        list of str
            In the order of `names`. Empty for a class without averages.

        Raises
        ------
        DTypeError
            If `names` is not an iterable of str.

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
            Result of `state_dict` of an optimiser of the same class, with arrays of the parameters' library.

        Raises
        ------
        ArgumentError
            If this class does not know a name, ``step`` or an average is missing, or a count is outside its
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
            msg = f"state={state!r} must be a mapping, such as the result of state_dict"
            raise DTypeError(msg)
        known = (*kinds, "step")
        unknown = [name for name in state if not isinstance(name, str) or name.partition(".")[0] not in known]
        if unknown or "step" not in state:
            expected = ", ".join(["'step'", *(f"'{kind}.<name>'" for kind in kinds)])
            msg = f"state has the names {list(state)}, expected {expected} for {type(self).__name__}"
            raise ArgumentError(msg)
        step, steps = _values.size("step", state["step"], 0), dict[str, int]()
        averages: Averages = {kind: {} for kind in kinds}
        for key, value in state.items():
            kind, dot, name = key.partition(".")
            if kind in averages:
                averages[kind][name] = _array.float_array(f"state[{key!r}]", cast("Array", value))
                steps.setdefault(name, step)
            elif dot:
                steps[name] = _values.size(key, value, 0)
        if self._counts and step > 0 and not steps:
            needed = ", ".join(f"'{kind}.<name>'" for kind in kinds if kind != MASTER)
            msg = f"state has step={step} and no averages; {type(self).__name__} needs {needed}"
            raise ArgumentError(msg)
        _check_complete(kinds, averages, steps, step)
        steps.pop("", None)
        self.step, self._averages, self._steps = step, averages, steps if self._counts else {}


class _Pair(NamedTuple):
    """A parameter and its gradient."""

    p: Array
    g: Array


def names_by_array(params: Params) -> list[list[str]]:
    """Return the names of each array; several names if they share it."""
    by_object: dict[int, list[str]] = {}
    for name, a in params.items():
        by_object.setdefault(id(a), []).append(name)
    return list(by_object.values())


def add_tied(params: Params, grads: Params) -> dict[str, Array]:
    """Add the gradients of names that share one parameter, whose norm is that of the sum."""
    sums = dict(grads)
    for tied in names_by_array(params):
        # `update` raises an error for another shape.
        given = [n for n in tied if n in grads and tuple(grads[n].shape) == tuple(params[n].shape)]
        for name in given[1:]:
            sums[given[0]] = _array.widen(sums[given[0]]) + _array.widen(sums.pop(name))
    return sums


def _group_tied(params: Params, grads: Params) -> tuple[dict[str, _Pair], dict[str, list[str]]]:
    """Return the parameters with a gradient by their first names, and all names of each parameter."""
    _check_names(params, grads)
    sums = add_tied(params, {name: _check_gradient(name, params[name], g) for name, g in grads.items()})
    pairs: dict[str, _Pair] = {}
    names: dict[str, list[str]] = {}
    for tied in names_by_array(params):
        for name in [name for name in tied if name in sums]:
            p = _array.native(_array.detach(params[name]))
            pairs[tied[0]], names[tied[0]] = _Pair(p, sums[name]), tied
    return pairs, names


def _check_gradient(name: str, param: Array, g: Array) -> Array:
    """Return a gradient that has the library and the shape of its parameter."""
    p = _array.float_array(f"params[{name!r}]", param)
    g = _array.detach(_array.float_array(f"grads[{name!r}]", g))
    xp, theirs = _array.namespace(p, name), _array.namespace(g, name)
    if theirs is not xp:
        msg = f"grads[{name!r}] is from {_array.backend_name(theirs)}, expected "
        raise BackendError(msg + f"{_array.backend_name(xp)} as in params")
    if g.shape != p.shape:
        msg = f"grads[{name!r}] has shape {tuple(g.shape)}, expected {tuple(p.shape)} as in params"
        raise ShapeError(msg)
    return g


@part
def _update(
    xp: Namespace, rules: Mapping[str, Rule], params: Params, grads: Params, averages: Averages
) -> tuple[dict[str, Array], Averages]:
    """Return new parameters and averages."""
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


def _check_rate(lr: LearningRate) -> LearningRate:
    """Return a learning rate, checked to be a function or a number of at least 0."""
    if isinstance(lr, type):
        msg = f"lr={lr!r} is a class, expected a number or a function of the step"
        raise DTypeError(msg)
    return lr if callable(lr) else _values.at_least_zero("lr", lr)


def _check_names(params: Params, grads: Params) -> None:
    """Raise an error unless both are mappings and every gradient has a parameter."""
    for argument, given in (("params", params), ("grads", grads)):
        if not isinstance(given, Mapping):
            msg = f"{argument} must be a mapping from names to arrays, got {type(given).__name__}"
            raise DTypeError(msg)
    unknown = sorted(map(str, grads.keys() - params.keys()))
    if unknown:
        missing = sorted(map(str, params.keys() - grads.keys()))
        msg = f"grads must have the names of params; missing: {missing}, unknown: {unknown}"
        raise ArgumentError(msg)


def _check_fits(key: str, value: Array, name: str, p: Array) -> None:
    """Raise an error if a state does not match the parameter `p`."""
    if value.shape != p.shape:
        msg = f"state {key!r} has shape {tuple(value.shape)}, but params[{name!r}] has {tuple(p.shape)}"
        raise ShapeError(msg)
    if type(value) is not type(p):
        theirs, ours = _array.namespace(value, key), _array.namespace(p, name)
        if theirs is not ours:
            home = _array.backend_name(theirs), _array.backend_name(ours)
            msg = f"state {key!r} is from {home[0]}, but params[{name!r}] is from {home[1]}; move one of them"
            raise BackendError(msg)
    dtype, param = _array.dtype_name(value.dtype), _array.dtype_name(p.dtype)
    wide = "float32" if param in ("float16", "bfloat16") else param
    if dtype != wide:
        msg = f"state {key!r} has dtype {dtype}, expected {wide} for params[{name!r}] of {param}"
        raise DTypeError(msg)


def _check_complete(kinds: tuple[str, ...], averages: Averages, steps: Mapping[str, int], step: int) -> None:
    """Raise an error if a loaded state is incomplete or inconsistent."""
    needed = [kind for kind in kinds if kind != MASTER]
    for name, own in steps.items():
        missing = [f"{kind}.{name}" for kind in needed if name not in averages[kind]]
        if own == 0 and len(missing) == len(needed):
            continue
        if missing:
            msg = f"state has some entries of {name!r}, but lacks {missing}"
            raise ArgumentError(msg)
        if not 0 < own <= step:
            msg = f"step.{name}={own} must be in [1, step={step}]"
            raise ArgumentError(msg)
        shapes = {kind: tuple(values[name].shape) for kind, values in averages.items() if name in values}
        if len(set(shapes.values())) > 1:
            msg = f"state of {name!r} has the shapes {shapes}, expected equal shapes"
            raise ShapeError(msg)
