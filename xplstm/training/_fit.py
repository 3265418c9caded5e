"""`fit`: one update after another, validation, early stopping and checkpoints."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from xplstm import _values
from xplstm._errors import ArgumentError, GroupError, NonFiniteError
from xplstm.optim import Optimizer
from xplstm.training import _trees
from xplstm.training._ahead import ahead
from xplstm.training._arguments import (
    Callback,
    Path,
    Plan,
    check_arguments,
    check_parallel,
    check_path,
    config_of,
    options_of,
    plan_of,
)
from xplstm.training._data import Batches, Place, Source
from xplstm.training._progress import bar
from xplstm.training._resumed import check_own, saved_run
from xplstm.training._run import Event, Model, Run
from xplstm.training._saved import History, save_checkpoint
from xplstm.training._shards import Shards, own_entries
from xplstm.training._team import Team, digest


def fit(
    model: Model,
    data: Batches | Callable[[int], Batches],
    optimizer: Optimizer,
    *,
    updates: int | None = None,
    epochs: int | None = None,
    carry: bool = False,
    max_norm: float | None = None,
    accumulate: int = 1,
    frozen: str | Sequence[str] = (),
    average: float | None = None,
    loss_scale: Literal["auto"] | None = "auto",
    rng: int | np.random.Generator | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int = 100,
    patience: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
    checkpoint_seconds: float | None = None,
    resume: bool | Literal["auto"] = False,
    extra: Mapping[str, Any] | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    progress: bool | Callable[[History], str] = True,
    parallel: Shards | None = None,
    read_ahead: int = 0,
) -> History:
    """Train a model, one update a batch.

    An update is kept only if the loss, the gradients' norm, the new parameters and the optimiser's averages
    are finite. Ctrl-C, SIGTERM and every other error leave the model as it was after the last whole update,
    and write the checkpoint. A run that is resumed with the same arguments gives bit for bit what it would
    have given uninterrupted.

    Parameters
    ----------
    model : Model
        Trained in place: its ``params`` are set.
    data : sequence of (inputs, targets), iterable of them, or callable
        One epoch; or a function from the number of the epoch, from 0, to its batches, for data in another
        order each time. Sequences are read by index. An iterable is read in order, one batch ahead, and at a
        resume up to the place of the run; an iterator can be read once, so that it is one epoch.
    optimizer : Optimizer
    updates, epochs : int
        One of the two: how many there are in all, those before a resume included; at least 0.
    carry : bool, optional
        Whether the state after a batch goes into the next one of the epoch:
        truncated backpropagation through time. Otherwise each batch begins from zeros.
    max_norm : float, optional
        Bound of the gradients' global norm (`xplstm.optim.clip_by_global_norm`).
    accumulate : int, optional
        Batches for each update, which gets the mean of their gradients; at least 1.
    frozen : str or sequence of str, optional
        Names or patterns, as in `xplstm.optim.Group`, of parameters that stay as they are.
    average : float, optional
        Decay, in ``[0, 1)``, of a moving average of the parameters. `validate` then sees the model with the
        average, and `fit` leaves it with the average.
    loss_scale : {"auto", None}, optional
        ``"auto"`` scales the loss where a parameter is float16, so that small gradients are not lost, and
        skips each update whose gradients overflow. It starts at 65536, is halved after an overflow, and
        doubled after 2000 updates without one. This reads a value in each update, which waits for a device.
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
        File that is written every `checkpoint_every` updates, at the end, on Ctrl-C, on SIGTERM and after
        any other error. Its folder must exist. Another process that writes it too is an error.
    checkpoint_every : int, optional
        At least 1.
    checkpoint_seconds : float, optional
        Also write after an update when so many seconds have passed since the last write; above 0.
    resume : bool or "auto", optional
        Continue from the file at `checkpoint`, which must exist; ``"auto"`` starts a new run where it does
        not.
    extra : mapping, optional
        Kept in the checkpoint; anything that JSON can hold.
    callbacks : callable or sequence of callables, optional
        Each is given an `Event` after every update and after every validation.
    progress : bool or callable, optional
        Whether to show a bar, which needs the package tqdm; or a function from
        the history to the text next to the bar.
    parallel : Shards, optional
        Cut each batch into shards, and train with all processes of a group. Each of them calls `fit` with
        the same arguments. Rank 0 alone reads and writes the checkpoint and shows progress; its validation
        and its clock decide for all.
    read_ahead : int, optional
        Read up to so many batches in a thread while the model computes; at least 0. The order stays, an error
        of the data is raised in its turn, and the thread ends with `fit`. The data must not mind the thread.

    Returns
    -------
    History
        Of the whole run, what came before a resume included.

    Raises
    ------
    ArgumentError
        For a value outside its range, arguments that do not go together, or others than those of the run
        to resume. Only the learning rate, `updates`, `epochs`, the number of `patience`, the seed, and what
        concerns files and display may change. The model must have the options that it had.
    DTypeError
        For an argument of another type.
    FileNotFoundError
        If there is nothing to resume from.
    FormatError
        If the file to resume from is no checkpoint of this model.
    GroupError
        If another process of `parallel` is lost, or has an error. All processes stop after the same update.
    NonFiniteError
        If a loss, a norm, a parameter or an average is not finite; also a `FloatingPointError`. The update is
        not kept. The model is left with the parameters of the best validation under `patience`, else with
        the last finite ones. The checkpoint on disk stays as it was.
    ImportError
        If a package that the arguments ask for is missing.

    Warns
    -----
    UserWarning
        If the model has dropout and `rng` is left out.

    Notes
    -----
    On a device, judging an update does not wait: a flag is computed there, and parameters and averages are
    kept by arithmetic from the first update on that is not finite. The flag is read at each validation,
    checkpoint and report, and at least every five seconds; the error comes then.

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
    check_parallel(model, parallel)
    team = Team(None) if parallel is None else Team(parallel.group, parallel.sums)
    with team.noted():
        rng = _values.seed("rng", rng)
        plan = plan_of(locals())
        options, settings = options_of(model, optimizer, locals())
        check_arguments(model, optimizer, validate, patience, checkpoint, resume, extra, rng, progress)
        if checkpoint is not None and team.is_first:
            check_path(checkpoint)
    at, name = saved_run(team, checkpoint, resume)

    def begun() -> Run:
        generator = None if rng is None else np.random.default_rng(rng)
        source = Source(data, functools.partial(own_entries, parallel))
        run = Run(model, optimizer, source, generator, options, settings | {"run": name}, team)
        config = config_of(model)
        run.at = run.at._replace(model=config)
        if at is not None:
            run.resume(at, plan.updates, plan.epochs)
        kept = run.at.extra if extra is None else dict(extra)
        run.at = run.at._replace(extra=kept, model=config)
        return run

    run, owner = _agreed(team, begun, plan), os.getpid()
    reading = ahead(run.source, plan.read_ahead, plan.epochs)
    reports = bar(progress if team.is_first else False, run.at.update, updates)
    with reports as report, team.signals(), reading as run.read:
        try:
            _loop(run, plan, report)
        except NonFiniteError:
            run.restore(run.at)
            if run.at.best is not None:
                model.params = run.at.best
            raise
        except BaseException as error:
            if os.getpid() == owner:  # a process that a callback forked leaves the file to the run
                _leave(run, plan, error)
            raise
    if run.at.best is not None:
        model.params = run.at.best
    return run.at.history


SECONDS_UNSETTLED = 5.0


def _loop(run: Run, plan: Plan, report: Callable[[Run], None]) -> None:
    """Update, validate and save until the plan says stop."""
    saved = settled = time.monotonic()
    while True:
        _validate_if_due(run, plan)
        if plan.is_over(run) or _is_out_of_patience(run.at.history, plan.patience):
            break
        run.advance()
        with run.team.noted():
            report(run)
        _call_back(run, plan, None)
        now = time.monotonic()
        is_late = run.team.is_due(now - saved >= plan.checkpoint_seconds)
        if run.at.update % plan.checkpoint_every == 0 or is_late:
            _save(run, plan)
            saved = settled = now
        elif now - settled >= SECONDS_UNSETTLED:
            run.settle()
            settled = now
    run.settle()
    best = run.at.best if plan.patience is not None else run.average()
    run.at = run.at._replace(best=best, final="params" if best is None else "best")
    _save(run, plan)


def _leave(run: Run, plan: Plan, error: BaseException) -> None:
    """Bring the model to the last whole update and write that; `error` is raised afterwards."""
    try:
        run.settle()
        run.restore(run.at)
        _write(run, plan)
    except NonFiniteError as ruined:
        run.restore(run.at)
        error.add_note(f"the checkpoint was not written: {ruined}")
    except (OSError, ArgumentError) as failed:
        error.add_note(f"the checkpoint was not written: {failed}")


def _validate_if_due(run: Run, plan: Plan) -> None:
    """Validate, unless that was done at this update before the run was interrupted."""
    if plan.validate is None:
        return
    done = run.at.history.validations
    due = run.at.update % plan.validate_every == 0 or plan.is_over(run)
    if due and not (done and done[-1][0] == run.at.update):
        value = run.validate(plan.validate, keep_best=plan.patience is not None)
        _call_back(run, plan, value)


def _call_back(run: Run, plan: Plan, validation: float | None) -> None:
    """Call every callback with the event."""
    if plan.callbacks:
        losses = run.at.history.losses
        loss = losses[run.at.update - 1] if run.at.update else math.nan
        event = Event(run.at.update, run.at.epoch, loss, run.lr, run.norm, validation)
        with run.team.noted():
            for callback in plan.callbacks:
                callback(event)


def _is_out_of_patience(history: History, patience: int | None) -> bool:
    """Return whether the last `patience` validations brought no new best."""
    if patience is None or not history.validations:
        return False
    return len(history.validations) - 1 - history.validations.index(history.best) >= patience


def _save(run: Run, plan: Plan) -> None:
    """Write the checkpoint, if one is asked for; the ranks must then have the same parameters."""
    run.settle()
    facts = run.team.together(lambda: _write(run, plan))
    run.team.compare(facts, GroupError)


def _write(run: Run, plan: Plan) -> dict[str, Any]:
    """Write the checkpoint at rank 0, and return what must be the same on all ranks."""
    if plan.checkpoint is not None and run.team.is_first:
        if run.written is not None:
            check_own(os.fspath(plan.checkpoint), run.at, run.written)
        save_checkpoint(plan.checkpoint, run.at)
        run.written = run.at.update
    if run.team.size == 1:
        return {}
    return {"update": run.at.update, "the digest of the parameters": digest(run.at.params)}


def _agreed(team: Team, begin: Callable[[], Run], plan: Plan) -> Run:
    """Return the run of this rank, after all ranks have compared theirs."""
    begun: list[Run] = []

    def begin_and_describe() -> dict[str, Any]:
        run = begin()
        begun.append(run)
        if team.size == 1:
            return {}
        at = run.at
        batch = {}
        if not run.source.is_parted:
            found = run.source.batch(Place(at.epoch, at.position))
            trees = {"i": found.inputs, "t": found.targets}
            batch = {name: a for name, a in _trees.leaves(trees) if hasattr(a, "shape")}
        arrays = {name: a for name, a in at.optimizer.items() if not isinstance(a, int)}
        return {
            **at.settings,
            "update": at.update,
            "updates": plan.updates,
            "epochs": plan.epochs,
            "checkpoint_every": plan.checkpoint_every,
            "callbacks": len(plan.callbacks) > 0,
            "sums": run.team.sums,
            "rng": repr(at.rng),
            "the digest of the parameters": digest(at.params),
            "the digest of the optimiser's averages": digest(arrays),
            "the digest of the next batch": digest(batch),
        }

    team.compare(team.together(begin_and_describe), ArgumentError)
    return begun[0]
