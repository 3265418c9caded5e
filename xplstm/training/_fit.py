"""`fit`: one update a batch, validation, early stopping and checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError, FormatError
from xplstm._typing import Array
from xplstm.optim import Optimizer, clip_by_global_norm
from xplstm.training._data import Batches
from xplstm.training._saved import Checkpoint, History, State, load_checkpoint, save_checkpoint

_EXTRA = "it comes with pip install 'xplstm[train]'"
_SECONDS_BETWEEN_REPORTS = 0.5


class Model(Protocol):
    """What `fit` needs of a model, such as `xplstm.models.CharLM`.

    Attributes
    ----------
    params : dict of str to array
        Can be set; `fit` sets a new dict after each update.

    Notes
    -----
    A model may also have a method ``config()`` that returns a dict for JSON, such as its class and
    options. `fit` keeps it in the checkpoint, as `Checkpoint.model`.
    """

    params: dict[str, Array]

    def loss_vjp(
        self, inputs: Any, targets: Any, state: Any, rng: np.random.Generator | None
    ) -> tuple[Array, State, Callable[[], dict[str, Array]]]:
        """Return the loss, the state to go on with, and the function that gives the gradients.

        Parameters
        ----------
        inputs, targets : object
            One batch, as the data gave it.
        state : tuple of arrays or None
            What the batch before returned; None at the beginning.
        rng : numpy.random.Generator or None
            What dropout draws from; None for no dropout.

        Returns
        -------
        loss : array, shape ()
        state : tuple of arrays or None
            Its gradient is not asked for: here backpropagation is cut.
        pullback : callable
            ``pullback()`` gives a dict with the keys of `params`.
        """
        ...


def fit(
    model: Model,
    data: Batches | Callable[[int], Batches],
    optimizer: Optimizer,
    *,
    updates: int,
    carry: bool = False,
    max_norm: float | None = None,
    rng: int | np.random.Generator | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int = 100,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    extra: Mapping[str, Any] | None = None,
    progress: bool | Callable[[History], str] = True,
) -> History:
    """Train a model, one update a batch.

    Ctrl-C leaves the model as it was after the last whole update, writes the
    checkpoint, and raises `KeyboardInterrupt` again. A run that is resumed with
    the same arguments gives bit for bit what it would have given uninterrupted.

    Parameters
    ----------
    model : Model
        Trained in place: its ``params`` are set.
    data : sequence of (inputs, targets), or callable
        One epoch; or a function from the number of the epoch, from 0, to its
        sequence, for data in another order each time. Batches are fetched by
        index, so that a resumed run finds its place.
    optimizer : Optimizer
    updates : int
        Updates in all, those before a resume included; at least 0.
    carry : bool, optional
        Whether the state after a batch goes into the next one of the epoch:
        truncated backpropagation through time. Otherwise each batch begins anew.
    max_norm : float, optional
        Bound of the gradients' global norm (`xplstm.optim.clip_by_global_norm`).
    rng : int or numpy.random.Generator, optional
        A seed or a generator for dropout. Without it nothing is dropped.
    validate : callable, optional
        ``validate()`` gives a number that should fall; called every
        `validate_every` updates, at the beginning and at the end.
    validate_every : int, optional
        At least 1.
    patience : int, optional
        Stop after this many validations in a row that are no new best, and
        end with the parameters of the best validation.
    checkpoint : path, optional
        File that is written every `checkpoint_every` updates, at the end and on
        Ctrl-C. Its folder must exist.
    checkpoint_every : int, optional
        At least 1.
    resume : bool, optional
        Go on from the file at `checkpoint`, which must exist.
    extra : mapping, optional
        Kept in the checkpoint; anything that JSON can hold.
    progress : bool or callable, optional
        Whether to show a bar, which needs the package tqdm; or a function from
        the history to the text beside the bar.

    Returns
    -------
    History
        Of the whole run, what came before a resume included.

    Raises
    ------
    ArgumentError
        For a value outside its range, or arguments that do not go together.
    FileNotFoundError
        If there is nothing to resume from.
    FormatError
        If the file to resume from is no checkpoint of this model.
    FloatingPointError
        If the loss is no longer finite; the checkpoint on disk stays as it was.
    ImportError
        If a package that the arguments ask for is missing.

    Notes
    -----
    Arrays that are computed only when they are looked at, such as Dask's, are
    no place to train: each loss that is read computes the run from its start.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses, optim, training
    >>> class Line:
    ...     params = {"slope": np.zeros((1, 1))}
    ...
    ...     def loss_vjp(self, inputs, targets, state, rng):
    ...         loss, pullback = losses.mse(inputs @ self.params["slope"], targets)
    ...         return loss, None, lambda: {"slope": inputs.T @ pullback()}
    >>> line, x = Line(), np.asarray([[1.0], [2.0]])
    >>> history = training.fit(line, [(x, 3 * x)], optim.SGD(0.1), updates=50, progress=False)
    >>> round(float(line.params["slope"][0, 0]), 6)
    3.0
    """
    _values.size("updates", updates, 0)
    _values.size("validate_every", validate_every)
    _values.size("checkpoint_every", checkpoint_every)
    rng = _values.seed("rng", rng)
    _check_together(validate, patience, checkpoint, resume)
    _check_extra(extra)
    epochs = data if callable(data) else lambda _epoch: data
    run = _Run(model, optimizer, epochs, None if rng is None else np.random.default_rng(rng), carry, max_norm)
    if resume and checkpoint is not None:
        run.restore(load_checkpoint(checkpoint))
    if extra is not None:
        run.at = run.at._replace(extra=dict(extra))
    run.at = run.at._replace(model=_config_of(model))
    plan = _Plan(updates, validate, validate_every, patience, checkpoint, checkpoint_every)
    with _bar(progress, run.at.update, updates) as report:
        try:
            _loop(run, plan, report)
        except KeyboardInterrupt:
            run.restore(run.at)
            _save(run, plan)
            raise
    if run.at.best is not None:
        model.params = run.at.best
    return run.at.history


class _Plan(NamedTuple):
    """When `fit` stops, validates and saves."""

    updates: int
    validate: Callable[[], float] | None
    validate_every: int
    patience: int | None
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int


class _Run:
    """The model, the optimiser and the generator, moved together from one update to the next.

    `at` always describes the last whole update and is replaced in one
    assignment: whatever interrupts, ``restore(at)`` brings all three back to it.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        epochs: Callable[[int], Batches],
        rng: np.random.Generator | None,
        carry: bool,
        max_norm: float | None,
    ) -> None:
        self.model, self.optimizer, self.rng = model, optimizer, rng
        self._epochs, self._carry, self._max_norm = epochs, carry, max_norm
        self._epoch, self._batches = 0, _epoch_of(epochs, 0)
        self.at = Checkpoint(0, 0, 0, {}, {}, None, None, History(), None, {})
        self.at = self._moved(update=0)

    def advance(self) -> None:
        """Make one update."""
        at = self.at
        if at.epoch != self._epoch:
            self._epoch, self._batches = at.epoch, _epoch_of(self._epochs, at.epoch)
        inputs, targets = self._batches[at.position]
        loss, state, pullback = self.model.loss_vjp(inputs, targets, at.state, self.rng)
        grads = pullback()
        if self._max_norm is not None:
            grads, _ = clip_by_global_norm(grads, self._max_norm)
        self.model.params = self.optimizer.update(self.model.params, grads)
        at.history.losses.append(loss)  # type: ignore[arg-type]  # a number once `settle` has read it
        if at.position + 1 == len(self._batches):
            self.at = self._moved(update=at.update + 1, epoch=at.epoch + 1, position=0, state=None)
        else:
            state = state if self._carry else None
            self.at = self._moved(update=at.update + 1, position=at.position + 1, state=state)

    def _moved(self, **where: Any) -> Checkpoint:
        """`at`, elsewhere, with what the model, the optimiser and the generator hold now."""
        return self.at._replace(
            params=dict(self.model.params),
            optimizer=self.optimizer.state_dict(),
            rng=None if self.rng is None else self.rng.bit_generator.state,
            final="params",
            **where,
        )

    def judge(self, value: float, keep_best: bool) -> None:
        """Note a validation of the present parameters."""
        validations = [*self.at.history.validations, (self.at.update, value)]
        history = History(self.at.history.losses, validations)
        is_best = keep_best and history.best == validations[-1]
        best = dict(self.model.params) if is_best else self.at.best
        self.at = self.at._replace(history=history, best=best)

    def settle(self) -> None:
        """Turn the losses, which may wait for a device, into numbers, and look at them."""
        losses = self.at.history.losses
        del losses[self.at.update :]
        first = len(losses)
        while first > 0 and type(losses[first - 1]) is not float:
            first -= 1
        for index in range(first, len(losses)):
            losses[index] = float(losses[index])
            if not math.isfinite(losses[index]):
                msg = f"the loss of update {index} is {losses[index]}; try a lower lr, or max_norm="
                raise FloatingPointError(msg)

    def restore(self, at: Checkpoint) -> None:
        """Go back, or on, to where `at` stands."""
        own = self.model.params
        _check_same_parameters(own, at.params)
        if (at.rng is None) != (self.rng is None):
            msg = f"rng={self.rng}, but the run to resume had {'none' if at.rng is None else 'one'}"
            raise ArgumentError(msg)
        first = next(iter(own.values()))

        def here(a: Array) -> Array:
            return _array.asarray(a, _array.namespace(first, "params"), _array.device(first))

        at = at._replace(
            params={name: here(a) for name, a in at.params.items()},
            optimizer={name: a if isinstance(a, int) else here(a) for name, a in at.optimizer.items()},
            state=None if at.state is None else tuple(here(a) for a in at.state),
            best=None if at.best is None else {name: here(a) for name, a in at.best.items()},
        )
        self.model.params = dict(at.params)
        self.optimizer.load_state_dict(at.optimizer)
        if self.rng is not None and at.rng is not None:
            self.rng.bit_generator.state = at.rng
        self.at = at


def _loop(run: _Run, plan: _Plan, report: Callable[[_Run], None]) -> None:
    """Update, validate and save until the plan says stop."""
    while True:
        _validate_if_due(run, plan)
        if run.at.update >= plan.updates or _out_of_patience(run.at.history, plan.patience):
            break
        run.advance()
        report(run)
        if run.at.update % plan.checkpoint_every == 0:
            _save(run, plan)
    run.at = run.at._replace(final="params" if run.at.best is None else "best")
    _save(run, plan)


def _validate_if_due(run: _Run, plan: _Plan) -> None:
    """Validate, unless that was done at this update before the run was interrupted."""
    if plan.validate is None:
        return
    done = run.at.history.validations
    due = run.at.update % plan.validate_every == 0 or run.at.update >= plan.updates
    if due and not (done and done[-1][0] == run.at.update):
        run.judge(float(plan.validate()), keep_best=plan.patience is not None)


def _out_of_patience(history: History, patience: int | None) -> bool:
    """Whether the last `patience` validations brought no new best."""
    if patience is None or not history.validations:
        return False
    return len(history.validations) - 1 - history.validations.index(history.best) >= patience


def _save(run: _Run, plan: _Plan) -> None:
    """Write the checkpoint, if one is asked for."""
    run.settle()
    if plan.checkpoint is not None:
        save_checkpoint(plan.checkpoint, run.at)


def _epoch_of(epochs: Callable[[int], Batches], epoch: int) -> Batches:
    """Batches of an epoch, of which there must be some."""
    batches = epochs(epoch)
    if len(batches) == 0:
        msg = f"data has no batches in epoch {epoch}; at least 1 is needed"
        raise ArgumentError(msg)
    return batches


@contextlib.contextmanager
def _bar(
    progress: bool | Callable[[History], str], done: int, updates: int
) -> Iterator[Callable[[_Run], None]]:
    """Give the function that moves the bar; its text is renewed seldom, as to read a loss may be to wait."""
    if not progress:
        yield lambda _run: None
        return
    text = progress if callable(progress) else _latest
    try:
        from tqdm import tqdm
    except ImportError as error:
        msg = f"a progress bar needs the package tqdm: {_EXTRA}; or pass progress=False"
        raise ImportError(msg) from error
    # In a log file each repainted bar is a line of its own.
    pause = _SECONDS_BETWEEN_REPORTS if sys.stderr.isatty() else 10 * _SECONDS_BETWEEN_REPORTS
    told = -math.inf
    with tqdm(initial=done, total=updates, unit="update", mininterval=pause, dynamic_ncols=True) as bar:

        def report(run: _Run) -> None:
            nonlocal told
            bar.update()
            if time.monotonic() - told >= pause or run.at.update == updates:
                run.settle()
                bar.set_postfix_str(text(run.at.history), refresh=False)
                told = time.monotonic()

        yield report


def _latest(history: History) -> str:
    """Text beside the bar: the mean of the last losses, and the last validation."""
    recent = history.losses[-20:]
    text = f"loss {sum(recent) / len(recent):.4f}"
    return f"{text}, validation {history.validations[-1][1]:.4f}" if history.validations else text


def _config_of(model: Model) -> dict[str, Any] | None:
    """Return what the model says of itself, in what JSON can hold; None where it has no `config()`."""
    config = getattr(model, "config", None)
    if not callable(config):
        return None
    value = config()
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        msg = f"model.config() gave {value!r}, which JSON cannot hold: {error}"
        raise ArgumentError(msg) from error
    if not isinstance(value, dict):
        msg = f"model.config() gave {value!r}; a dict was expected"
        raise DTypeError(msg)
    return value


def _check_extra(extra: Mapping[str, Any] | None) -> None:
    """Refuse, before any training, what no checkpoint could hold."""
    try:
        json.dumps(extra)
    except TypeError as error:
        msg = f"extra={extra!r} must be what JSON can hold: {error}"
        raise ArgumentError(msg) from error


def _check_together(
    validate: object, patience: int | None, checkpoint: str | os.PathLike[str] | None, resume: bool
) -> None:
    """Refuse arguments that need others, before any work."""
    if patience is not None:
        _values.size("patience", patience)
        if validate is None:
            msg = f"patience={patience} needs validate="
            raise ArgumentError(msg)
    if checkpoint is None:
        if resume:
            msg = "resume=True needs checkpoint="
            raise ArgumentError(msg)
        return
    folder = os.path.dirname(os.path.abspath(checkpoint))
    if os.path.isdir(checkpoint):
        msg = f"checkpoint={os.fspath(checkpoint)!r} is a folder; it must be a file in one"
        raise ArgumentError(msg)
    if not os.path.isdir(folder):
        msg = f"checkpoint={os.fspath(checkpoint)!r} lies in no folder: make {folder!r} first"
        raise ArgumentError(msg)


def _check_same_parameters(own: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    """Refuse the checkpoint of another model."""

    def shown(params: Mapping[str, Array]) -> dict[str, str]:
        return {name: f"{_array.dtype_name(a.dtype)}{tuple(a.shape)}" for name, a in params.items()}

    ours, theirs = shown(own), shown(given)
    if ours != theirs:
        differing = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        lines = [
            f"{name}: the model has {ours.get(name)}, the checkpoint {theirs.get(name)}" for name in differing
        ]
        msg = "the checkpoint is of another model:\n  " + "\n  ".join(lines)
        raise FormatError(msg)
