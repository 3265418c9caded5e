"""Update the model, the optimiser and the generator together, one complete update at a time."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError, FormatError, NonFiniteError, ShapeError
from xplstm._typing import Array
from xplstm.optim import Optimizer, Plateau, clip_by_global_norm
from xplstm.optim._optimizer import MASTER, add_tied
from xplstm.training import _judge, _trees
from xplstm.training._data import Found, Place, Source
from xplstm.training._resumed import check_length, check_parameters, check_run, restore_generator
from xplstm.training._saved import Checkpoint, History, State, parts_of, with_parts
from xplstm.training._shards import Shards, Work, gradients
from xplstm.training._team import Team

Grads = dict[str, Array]

# Dynamic loss scaling (Micikevicius et al., "Mixed precision training", 2018, section 3.2): halve after an
# overflow, double after UPDATES_BETWEEN_DOUBLINGS updates without overflow.
FIRST_SCALE = 2.0**16
UPDATES_BETWEEN_DOUBLINGS = 2000
HIGHEST_SCALE = 2.0**24


class Model(Protocol):
    """Interface of a model that `fit` can train, such as `xplstm.models.CharLM`.

    Attributes
    ----------
    params : dict of str to array
        All parameters by name. `fit` sets a new dict after each update.

    Notes
    -----
    A model may also have a method ``config()`` that returns a JSON object, such as its class and options.
    `fit` keeps the object in the checkpoint as ``Checkpoint.model``.
    """

    params: dict[str, Array]

    def loss_vjp(
        self, inputs: Any, targets: Any, state: Any, rng: np.random.Generator | None
    ) -> tuple[Array, State, Callable[..., dict[str, Array]]]:
        """Return the loss, the next state, and the function that returns the gradients.

        Parameters
        ----------
        inputs, targets : object
            One batch, exactly as it is in the data.
        state : tuple of arrays, array or None
            State after the previous batch; None at the beginning.
        rng : numpy.random.Generator or None
            Generator for dropout; None for no dropout.

        Returns
        -------
        loss : array, shape ()
        state : tuple of arrays, array or None
            State after this batch. Backpropagation is truncated here.
        pullback : callable
            ``pullback()`` returns a dict of gradients with the keys of `params`. For float16 with loss
            scaling, ``pullback(factor)`` returns the gradients of ``factor * loss``.
        """
        ...


class Event(NamedTuple):
    """Argument of the callbacks of `fit`, after each update and each validation.

    Attributes
    ----------
    update, epoch : int
        Number of updates made, and epoch of the next batch.
    loss : array or float
        Loss of the last update; NaN before the first update. ``float(event.loss)`` waits for the device.
    lr : float
        Learning rate of the last update.
    norm : array or float
        Global gradient norm before clipping; NaN before the first update.
    validation : float or None
        Result of ``validate()``, in the event after a validation; otherwise None.
    """

    update: int
    epoch: int
    loss: Any
    lr: float
    norm: Any
    validation: float | None = None


class Options(NamedTuple):
    """Options of an update."""

    carry: bool
    max_norm: float | None
    accumulate: int
    frozen: tuple[str, ...]
    """Names of parameters that do not change."""
    average: float | None
    scale: bool
    """Whether the loss is scaled."""
    measure: bool
    """Whether callbacks need the gradient norm."""
    epochs: int | None
    shards: Shards | None


class _Gradients(NamedTuple):
    """Losses, gradients and places of the batches of one update."""

    loss: Any
    grads: Grads
    state: State
    first: Place
    last: Place
    next: Place


class Run:
    """One run of `fit`.

    `at` always describes the last complete update and is replaced in one assignment. After any
    interruption, ``restore(at)`` therefore restores model, optimiser and generator.

    On the host, each update is checked before it is kept. On a device, that check would block. Instead, a
    flag of shape () records whether all values were finite. Once the flag is False, later updates change no
    parameter or average. `settle` reads the flag together with the losses.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        source: Source,
        rng: np.random.Generator | None,
        options: Options,
        settings: Mapping[str, Any],
        team: Team,
    ) -> None:
        self.model, self.optimizer, self.rng, self.source = model, optimizer, rng, source
        self.options, self.team = options, team
        self.read: Callable[[Place], Found] = source.batch
        self.lr = self.norm = math.nan
        self._advice = "try a lower lr, or max_norm="
        self._good: Array | None = None
        self._places: list[Place] = []
        self._scale, self._since_doubling = FIRST_SCALE if options.scale else 1.0, 0
        self.at = Checkpoint(0, 0, 0, {}, {}, None, None, History(), None, {}, settings=dict(settings))
        self.written: tuple[str | None, int] | None = None
        """Run id and update in the checkpoint file that this run wrote or read last; None before that."""
        self._settled = 0
        data = source.describe(0)
        self.at = self._refresh(optimizer=optimizer.state_dict(), settings={**settings, "data": data})
        if options.average is not None:
            self.at = self.at._replace(average=_each_once(_wide, self.at.params))

    # One update.

    def advance(self) -> None:
        """Make one update, and keep it if its numbers are finite."""
        with np.errstate(all="ignore"):  # overflow is checked below
            made = self._gradients()
            deferred = self._is_deferred(made)
            if not deferred:
                self._judge_loss(made)
            grads, norm = self._clip(made.grads)
            if self.options.scale and not self._fits_scale(made, grads):
                self._keep(made, self.model.params, self.at.optimizer)
                return
            self.lr, self.norm = self.optimizer.lr, norm
            old = self.model.params
            new = self.optimizer.update(old, grads)
            state = self.optimizer.state_dict()
            if deferred:
                new, state = self._keep_where_finite(made, norm, (new, old), state)
            else:
                self._judge_update(made, norm, new, state)
            self._keep(made, new, state)

    def _gradients(self) -> _Gradients:
        """Run the batches of one update, and average the losses and gradients."""
        at, options = self.at, self.options
        place, state = Place(at.epoch, at.position), at.state
        first, losses, total = place, list[Any](), dict[str, list[Array]]()
        while len(losses) < options.accumulate and place.epoch != options.epochs:
            loss, state, made, is_last = self._of_batch(place, state)
            losses.append(loss)
            for name, g in made.items():
                # The next batch of a model may overwrite the gradients of this one.
                total.setdefault(name, []).append(g if options.accumulate == 1 else _array.copy(g))
            last, place = place, place.next(is_last)
            state = state if options.carry and not is_last else None
        grads = {name: _mean(gs, self._scale) for name, gs in total.items()}
        loss = losses[0] if len(losses) == 1 else functools.reduce(operator.add, losses) / len(losses)
        return _Gradients(loss, grads, state, first, last, place)

    def _of_batch(self, place: Place, state: State) -> tuple[Any, State, Grads, bool]:
        """Return loss, state and gradients of one batch, and whether the batch ends its epoch."""

        def read() -> Found:
            batch = self.read(place)
            if batch.data is not None:  # a resumed run compares these
                self.at = self.at._replace(settings={**self.at.settings, "data": batch.data})
            return batch

        def of_part(
            inputs: Any, targets: Any, state: State, rng: np.random.Generator | None
        ) -> tuple[Any, State, Grads]:
            loss, after, pullback = self._loss_vjp(inputs, targets, state, rng, place)
            return loss, after, self._compute_gradients(pullback)

        if self.options.shards is None:
            found = read()
            return *of_part(found.inputs, found.targets, state, self.rng), found.is_last
        names = tuple(name for name in self.model.params if name not in self.options.frozen)
        parted = bool(self.source.is_parted)
        work = Work(self.team, place, self.options.shards, self.model, names, self.rng, parted)
        return gradients(work, read, of_part, state, self.options.carry)

    def _loss_vjp(
        self, inputs: Any, targets: Any, state: State, rng: np.random.Generator | None, place: Place
    ) -> tuple[Any, State, Callable[..., Grads]]:
        """Run the model on a batch or a part of a batch, and check the results."""
        try:
            results = self.model.loss_vjp(inputs, targets, state, rng)
        except ShapeError as error:
            if state is None:
                raise
            msg = f"{place} does not fit the state after the previous batch, with carry=True: {error}"
            raise ShapeError(msg) from error
        if not isinstance(results, tuple) or len(results) != 3 or not callable(results[2]):
            msg = f"model.loss_vjp must return (loss, state, pullback), got {type(results).__name__}"
            raise DTypeError(msg)
        loss, after, pullback = _array.detach(results[0]), results[1], results[2]
        if tuple(getattr(loss, "shape", ())) != ():
            msg = f"model.loss_vjp returned a loss of shape {tuple(loss.shape)}, expected shape ()"
            raise ShapeError(msg)
        _check_number("model.loss_vjp returned the loss", loss)
        if isinstance(loss, int):
            loss = _values.number("model.loss_vjp's loss", loss)
        if not _array.is_lazy(loss) and not math.isfinite(float(loss)):
            self._advice = _judge.gaps({"inputs": inputs, "targets": targets}) or self._advice
        if self.options.carry:
            _check_state(after)
            after = _trees.map_arrays("state", after, lambda _, a: _array.detach(a))
        return loss, after, pullback

    def _compute_gradients(self, pullback: Callable[..., Grads]) -> Grads:
        """Return the gradients of one batch with respect to all parameters that are not frozen."""
        if not self.options.scale:
            grads = pullback()
        elif _takes_factor(pullback):
            grads = pullback(self._scale)
        else:
            msg = (
                "loss scaling needs a pullback with the argument factor, pullback(factor=1.0); "
                "loss_scale=None trains float16 without loss scaling"
            )
            raise ArgumentError(msg)
        if not isinstance(grads, Mapping):
            msg = f"pullback() returned {type(grads).__name__}, expected a dict of gradients by name"
            raise DTypeError(msg)
        missing = sorted(self.model.params.keys() - grads.keys() - set(self.options.frozen))
        if missing:
            msg = f"pullback() returned no gradients with respect to {missing}; exclude parameters by frozen="
            raise ArgumentError(msg)
        return {
            name: _array.detach(_array.float_array(f"grads[{name!r}]", g))
            for name, g in grads.items()
            if name not in self.options.frozen
        }

    def _clip(self, grads: Grads) -> tuple[Grads, Any]:
        """Return the clipped gradients, and their norm before clipping if an option needs it."""
        grads = add_tied(self.model.params, grads)
        if self.options.max_norm is not None:
            return clip_by_global_norm(grads, self.options.max_norm)
        return grads, clip_by_global_norm(grads, math.inf)[1] if self.options.measure else math.nan

    # Checks of an update.

    def _is_deferred(self, made: _Gradients) -> bool:
        """Return whether reading a value would block; loss scaling and shards block in any case."""
        first = next(iter(made.grads.values()))
        waits = self.options.scale or self.options.shards is not None
        return not waits and (_array.is_lazy(made.loss) or _array.is_lazy(first))

    def _judge_loss(self, made: _Gradients) -> None:
        """Check that the loss is finite."""
        loss = float(made.loss)
        if not math.isfinite(loss):
            raise self._error_at(f"the loss of update {self.at.update} is {loss}", made.first, made.last)

    def _judge_update(self, made: _Gradients, norm: Any, new: Grads, state: Mapping[str, Any]) -> None:
        """Check that all numbers after an update are finite."""
        state = {name: a for name, a in state.items() if _is_average(name, a)}
        moved = {name: a for name, a in new.items() if name not in self.options.frozen}
        known = self.options.max_norm is None or math.isfinite(float(norm))
        if known and _judge.are_finite((*moved.values(), *state.values())):
            return
        update = self.at.update
        bad = _judge.first_not_finite(made.grads)
        if bad is not None:
            what = f"the gradient of {bad!r} in update {update} is not finite"
        elif not known:
            what = f"the norm of the gradients of update {update} is {float(norm)}"
        else:
            bad = _judge.first_not_finite(moved) or _judge.first_not_finite(state)
            what = f"update {update} makes {bad!r} infinite or NaN"
        raise self._error_at(what, made.first, made.last)

    def _keep_where_finite(
        self, made: _Gradients, norm: Any, params: tuple[Grads, Grads], state: Mapping[str, Any]
    ) -> tuple[Grads, dict[str, Any]]:
        """Return the new parameters and averages if all values so far are finite, else the old ones.

        The selection runs on the device, without synchronisation.
        """
        new, old = params
        xp, device = _array.namespace(made.loss, "loss"), _array.device(made.loss)
        good = xp.zeros((), dtype=xp.int32, device=device) if self._good is None else self._good
        judged = [made.loss, *([] if self.options.max_norm is None else [norm]), *new.values()]
        averages = [a for name, a in state.items() if _is_average(name, a)]
        alive = _judge.still_finite(good == len(self._places), [*judged, *averages])
        self._good = good + xp.astype(alive, xp.int32)
        self._places.append(made.first)
        state = _judge.select_finite(alive, state, self.at.optimizer)
        self.optimizer.load_state_dict(state)
        return _judge.select_finite(alive, new, old), state

    def _fits_scale(self, made: _Gradients, grads: Grads) -> bool:
        """Return whether the scaled gradients are finite, and set the next scale."""
        if _judge.are_finite(grads.values()):
            self._since_doubling += 1
            if self._since_doubling >= UPDATES_BETWEEN_DOUBLINGS:
                self._scale, self._since_doubling = min(2 * self._scale, HIGHEST_SCALE), 0
            return True
        if self._scale <= 1:
            bad = _judge.first_not_finite(made.grads)
            what = f"the gradient of {bad!r} in update {self.at.update} is not finite, even with loss scale 1"
            raise self._error_at(what, made.first, made.last)
        self._scale, self._since_doubling = self._scale / 2, 0
        return False

    def _error_at(self, what: str, first: Place, last: Place) -> NonFiniteError:
        """Return the error for a value that is not finite at these batches."""
        where = str(first) if first == last else f"{first} to {last}"
        kept = "the best validation" if self.at.best is not None else f"{self.at.update} updates"
        kept = f"the model has the parameters of {kept}"
        return NonFiniteError(f"{what}, at {where}; {kept}; {self._advice}")

    # Steps between complete updates.

    def _keep(self, made: _Gradients, params: Grads, state: dict[str, Any]) -> None:
        """Set the new parameters of the model, and advance `at`."""
        self.model.params = params
        at, decay = self.at, self.options.average
        average = at.average
        if average is not None and decay is not None:
            average = _update_average(average, params, decay)
        at.history.losses.append(made.loss)
        epoch, position = made.next
        where = {"update": at.update + 1, "epoch": epoch, "position": position, "state": made.state}
        self.at = self._refresh(**where, average=average, optimizer=state)

    def _refresh(self, **where: Any) -> Checkpoint:
        """Return `at` with the fields `where` and the current model, optimiser and generator."""
        settings = where.pop("settings", self.at.settings)
        if self.options.scale:
            settings = {**settings, "scale": [self._scale, self._since_doubling]}
        return self.at._replace(
            params=dict(self.model.params),
            rng=None if self.rng is None else self.rng.bit_generator.state,
            settings=settings,
            final="params",
            **where,
        )

    def validate(self, validate: Callable[[], Any], keep_best: bool) -> float:
        """Validate the current parameters, or their average, and record the result."""
        self.settle()
        params, average = self.model.params, self.average()
        if average is not None:
            self.model.params = average
        try:
            value = self.team.together(lambda: _as_number(validate()))[0]
        finally:
            self.model.params = params
        validations = [*self.at.history.validations, (self.at.update, value)]
        history = History(self.at.history.losses, validations)
        is_best = keep_best and value < math.inf and history.best == validations[-1]
        best = dict(params if average is None else average) if is_best else self.at.best
        for plateau in plateaus_of(self.optimizer):
            plateau.report(value)
        self.at = self.at._replace(history=history, best=best)
        return value

    def average(self) -> Grads | None:
        """Return the moving average of the parameters, in their dtypes."""
        if self.at.average is None:
            return None
        dtypes = {id(a): _array.dtype_name(self.at.params[name].dtype) for name, a in self.at.average.items()}
        return _each_once(lambda a: _array.narrow(a, dtypes[id(a)]), self.at.average)

    def settle(self) -> None:
        """Convert the pending losses to numbers, and read the flag; this may block."""
        losses, update = self.at.history.losses, self.at.update
        del losses[update:]
        places = self._places[: update - self._settled]
        good = len(places) if self._good is None else min(int(float(self._good)), len(places))
        self._good, self._places, self._settled = None, [], update
        first = len(losses)
        while first > 0 and type(losses[first - 1]) is not float:
            first -= 1
        losses[first:] = [float(loss) for loss in losses[first:]]
        if good < len(places):
            self._step_back(len(places) - good, places[good])

    def _step_back(self, updates: int, place: Place) -> None:
        """Discard the updates after the first one that was not finite, and raise the error."""
        at = self.at
        update, loss = at.update - updates, at.history.losses[at.update - updates]
        del at.history.losses[update:]
        optimizer = _lower_step(at.optimizer, updates, self.options.frozen)
        self.optimizer.load_state_dict(optimizer)
        self._settled = update
        self.at = at._replace(update=update, optimizer=optimizer, epoch=place.epoch, position=place.position)
        what = f"the loss of update {update} is {loss}"
        if math.isfinite(loss):
            what = f"the gradients or the new parameters of update {update} are not finite"
        raise self._error_at(what, place, place)

    def restore(self, at: Checkpoint) -> None:
        """Set model, optimiser and generator to those of `at`."""
        own = self.model.params
        here = _mover_to(next(iter(own.values())))
        at = at._replace(
            params=here({name: at.params[name] for name in own}),
            optimizer={
                **at.optimizer,
                **here({n: a for n, a in at.optimizer.items() if not isinstance(a, int)}),
            },
            state=with_parts(at.state, here(dict(enumerate(parts_of(at.state)))).values()),
            best=None if at.best is None else here(at.best),
            average=None if at.average is None else here(at.average),
        )
        restore_generator(self.rng, at.rng)
        self.optimizer.load_state_dict(at.optimizer)
        self.model.params = dict(at.params)
        if self.options.scale:
            self._scale, self._since_doubling = at.settings.get("scale", (self._scale, 0))
        self._good, self._places, self._settled = None, [], at.update
        self.at = at

    def resume(self, at: Checkpoint, updates: int | None, epochs: int | None) -> None:
        """Continue from the checkpoint `at`, after checking that it fits the arguments of this run."""
        check_parameters(self.model.params, at)
        check_run(at, self.at)
        check_length(at, updates, epochs)
        self.source.check(at.settings.get("data"), Place(at.epoch, at.position))
        self.written = at.settings.get("run"), at.update  # older files have no id
        if self.at.settings["patience"] is None:
            at = at._replace(best=None)  # the average at the end of that run, which continues here
        self.restore(at._replace(settings={"run": self.at.settings["run"], **at.settings}))
        trained = [name for name in at.params if name not in self.options.frozen]
        missing = self.optimizer.without_state(trained)
        if at.update > 0 and missing and not self.options.scale:
            msg = f"the checkpoint at update {at.update} is damaged: it has no averages of {missing}"
            raise FormatError(msg)
        for plateau in plateaus_of(self.optimizer):
            plateau.reset()
            for _, value in at.history.validations:
                plateau.report(value)


def plateaus_of(optimizer: Optimizer) -> list[Plateau]:
    """Return each `Plateau` among the learning rates of an optimiser and its groups once."""
    rates = (optimizer.schedule, *(group.lr for group in optimizer.groups))
    return list({id(rate): rate for rate in rates if isinstance(rate, Plateau)}.values())


def _mean(gs: list[Array], scale: float) -> Array:
    """Return the mean of the gradients of several batches, divided by the loss scale."""
    if len(gs) == 1 and scale == 1:
        return gs[0]
    return functools.reduce(operator.add, map(_array.widen, gs)) * (1 / (len(gs) * scale))


def _wide(a: Array) -> Array:
    """Convert a parameter to the dtype of its average."""
    return _array.widen(_array.native(_array.detach(a)))


def _update_average(average: Grads, params: Grads, decay: float) -> Grads:
    """Return ``decay * average + (1 - decay) * params``; shared arrays stay shared.

    The sum is computed from the difference, so that the average of a parameter that does not change is exact.
    """
    averages: dict[tuple[int, int], Array] = {}
    new: Grads = {}
    for name, before in average.items():
        key = id(before), id(params[name])
        if key not in averages:
            now = _wide(params[name])
            averages[key] = (
                before + (1 - decay) * (now - before) if decay > 0.5 else now + decay * (before - now)
            )
        new[name] = averages[key]
    return new


def _takes_factor(pullback: Callable[..., Any]) -> bool:
    """Return whether a pullback accepts one argument."""
    try:
        inspect.signature(pullback).bind(1.0)
    except TypeError:
        return False
    return True


def _lower_step(state: Mapping[str, Any], updates: int, frozen: tuple[str, ...]) -> dict[str, Any]:
    """Return an optimiser's state with each step count reduced by `updates`, and without arrays at step 0."""
    step = state["step"] - updates
    own = {
        key.removeprefix("step."): value if key.removeprefix("step.") in frozen else value - updates
        for key, value in state.items()
        if key.startswith("step.")
    }
    arrays = {key: a for key, a in state.items() if not isinstance(a, int)}
    arrays = {key: a for key, a in arrays.items() if own.get(key.partition(".")[2], step) > 0}
    return {"step": step, **{f"step.{name}": n for name, n in own.items() if n > 0}, **arrays}


def _is_average(name: str, a: Any) -> bool:
    """Return whether an entry of an optimiser's state needs a check; a copy of a parameter does not."""
    return not isinstance(a, int) and not name.startswith(f"{MASTER}.")


def _as_number(value: Any) -> float:
    """Return the result of ``validate()`` as a float."""
    _check_number("validate() gave", value)
    return _values.number("validate()", value) if isinstance(value, Real) else float(value)


NUMBERS = ("float", "bfloat", "int", "uint")
"""Prefixes of the dtype names of real numbers."""


def _check_number(what: str, value: Any) -> None:
    """Check that `value` is a real number, or an array of real numbers."""
    dtype = _array.dtype_name(value.dtype) if hasattr(value, "dtype") else ""
    is_array = tuple(getattr(value, "shape", (0,))) == () and dtype.startswith(NUMBERS)
    if isinstance(value, bool) or not (is_array or isinstance(value, Real)):
        msg = f"{what} {value!r}, expected a number"
        raise DTypeError(msg)


def _check_state(state: Any) -> None:
    """Check that `state` is a tuple of arrays, an array or None."""
    parts = parts_of(state)
    if not all(hasattr(a, "dtype") for a in parts):
        kinds = ", ".join(type(a).__name__ for a in parts)
        msg = f"model.loss_vjp returned a state of {kinds}, expected a tuple of arrays, or an array"
        raise DTypeError(msg)
    for a in parts:
        _array.namespace(a, "the state that model.loss_vjp returned")


def _each_once(change: Callable[[Array], Array], arrays: Mapping[Any, Array]) -> dict[Any, Array]:
    """Apply `change` once to each array; shared arrays stay shared."""
    changed: dict[int, Array] = {}
    for a in arrays.values():
        if id(a) not in changed:
            changed[id(a)] = change(a)
    return {name: changed[id(a)] for name, a in arrays.items()}


def _mover_to(like: Array) -> Callable[[Mapping[Any, Array]], dict[Any, Array]]:
    """Return a function that moves arrays to the library and device of `like`."""
    xp, device = _array.namespace(like, "params"), _array.device(like)
    return functools.partial(_each_once, lambda a: _array.asarray(a, xp, device))
