"""Train a model: updates, validation, early stopping and checkpoints."""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from xplstm import _values
from xplstm._errors import ArgumentError, GroupError, NonFiniteError
from xplstm.optim import Optimizer
from xplstm.training._ahead import ahead
from xplstm.training._arguments import (
    Callback,
    Path,
    Plan,
    check_arguments,
    check_parallel,
    check_path,
    check_samples,
    config_of,
    options_of,
    plan_of,
)
from xplstm.training._data import Batches, Place, Source, arrays_of
from xplstm.training._progress import bar
from xplstm.training._resumed import check_own, check_seed, fingerprint, keep_earlier, saved_run
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
    """Train a model on batches.

    An update is kept only if the loss, the gradient norm, the new parameters and the optimiser's averages
    are finite. After Ctrl-C, SIGTERM or any other error, the model has the parameters of the last complete
    update, and the checkpoint is written. A resumed run with the same arguments has the same bits as an
    uninterrupted run.

    Parameters
    ----------
    model : Model
        The model; `fit` sets its ``params``.
    data : sequence of (inputs, targets), iterable of them, or callable
        The batches of one epoch, or a function from the epoch number (from 0) to its batches. A sequence is
        read by index. An iterable is read in order, one batch in advance; a resumed run reads it up to its
        place. An iterator can be read once and provides one epoch. A batch whose inputs have no elements is
        an error.
    optimizer : Optimizer
        An optimiser of `xplstm.optim`.
    updates, epochs : int
        Pass exactly one: the total number, including those before a resume; at least 0.
    carry : bool, optional
        Whether the state after a batch is the initial state of the next batch of the epoch (truncated
        backpropagation through time). Otherwise each batch starts from zeros.
    max_norm : float, optional
        Bound of the global gradient norm, above 0 (`xplstm.optim.clip_by_global_norm`).
    accumulate : int, optional
        Number of batches for each update, at least 1. The update uses the mean of their gradients.
    frozen : str or sequence of str, optional
        Names or patterns, as in `xplstm.optim.Group`, of parameters that do not change.
    average : float, optional
        Decay, in ``[0, 1)``, of a moving average of the parameters. `validate` runs with the averaged
        parameters, and the trained model has them at the end.
    loss_scale : {"auto", None}, optional
        ``"auto"`` scales the loss if a parameter is float16, so that small gradients do not underflow, and
        skips each update whose gradients overflow. The factor starts at 65536. It is halved after an
        overflow and doubled after 2000 updates without overflow. Each update then waits for the device.
    rng : int or numpy.random.Generator, optional
        Seed or generator for dropout; no dropout if omitted. A resumed run continues with the generator of
        the checkpoint.
    validate : callable, optional
        ``validate()`` returns a number to minimise. `fit` calls it every `validate_every` updates, at the
        beginning and at the end.
    validate_every : int, optional
        Updates between validations, at least 1.
    patience : int, optional
        Stop after this number of validations in a row without a new best, at least 1. The model then gets
        the parameters of the best validation. If no validation is finite, `fit` warns, and the model keeps
        its last parameters.
    checkpoint : path, optional
        File that `fit` writes every `checkpoint_every` updates, at the end, on Ctrl-C, on SIGTERM and after
        any other error. Its folder must exist. A new run never overwrites a file: its first write renames
        the file of an earlier run to ``previous-NAME``, or to ``previous-2-NAME`` and so on. `fit` raises an
        error if another process writes the file.
    checkpoint_every : int, optional
        Updates between writes, at least 1.
    checkpoint_seconds : float, optional
        Also write after an update if this number of seconds has passed since the last write; above 0.
    resume : bool or "auto", optional
        Whether to continue from the file at `checkpoint`, which must exist. ``"auto"`` starts a new run if
        the file does not exist.
    extra : mapping, optional
        JSON object to keep in the checkpoint.
    callbacks : callable or sequence of callables, optional
        Functions of an `Event`, called after every update and after every validation.
    progress : bool or callable, optional
        Whether to show a progress bar, which needs the package tqdm; or a function from the history to the
        text next to the bar. Where the data states no number of batches, the bar shows the epoch instead of
        the total.
    parallel : Shards, optional
        Split each batch into shards, and train with all processes of a group. Every process calls `fit` with
        the same arguments. Only rank 0 reads and writes the checkpoint and shows progress. Its validations
        and its clock apply to all processes.
    read_ahead : int, optional
        Number of batches to prefetch in a thread while the model computes; at least 0. The order of the
        batches does not change. An error in reading a batch is raised when that batch is needed. The thread
        ends with `fit`. Reading the data must be safe in a thread.

    Returns
    -------
    History
        Losses and validations of the whole run, including those before a resume.

    Raises
    ------
    ArgumentError
        If a value is outside its range, or arguments contradict each other. A resumed run must have the
        arguments and the model options of the first run. It may change the learning rate, `updates`,
        `epochs`, the value of `patience`, the seed, and the arguments for files and display.
    DTypeError
        If an argument has the wrong type.
    FileNotFoundError
        If the file to resume from does not exist.
    FormatError
        If the file to resume from is not a checkpoint of this model.
    GroupError
        If another process of `parallel` is lost or has an error. All processes stop after the same update.
    NonFiniteError
        If a loss, a norm, a parameter or an average is not finite; also a `FloatingPointError`. The update is
        not kept. With `patience` the model gets the parameters of the best validation, otherwise the last
        finite parameters. The checkpoint on disk does not change.
    ImportError
        If a package that an argument needs is missing.

    Warns
    -----
    UserWarning
        If the model has dropout and `rng` is omitted, a new run finds a file at `checkpoint`, or a resumed
        run has another `rng`, which has no effect: the generator of the checkpoint continues.

    Notes
    -----
    On a device, `fit` checks an update without synchronisation. A flag on the device records whether all
    values were finite. Once it is False, later updates leave parameters and averages unchanged. `fit` reads
    the flag at each validation, checkpoint and report, at least every five seconds, and then raises an error.

    Do not train lazy arrays, such as Dask arrays, because reading a loss computes the whole run again.

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
    with team.record_errors():
        rng = _values.seed("rng", rng)
        plan = plan_of(locals())
        options, settings = options_of(model, optimizer, locals())
        check_arguments(model, optimizer, validate, patience, checkpoint, resume, extra, rng, progress)
        if checkpoint is not None and team.is_first:
            check_path(checkpoint, resume)
    at, name = saved_run(team, checkpoint, resume)
    generator = None if rng is None else np.random.default_rng(rng)
    own = {"run": name, "rng": fingerprint(None if generator is None else generator.bit_generator.state)}
    if at is not None and team.is_first:
        with team.record_errors():
            check_seed(at, generator)

    def begun() -> Run:
        own_part, check = functools.partial(own_entries, parallel), functools.partial(check_samples, model)
        source = Source(data, own_part, check)
        run = Run(model, optimizer, source, generator, options, settings | own, team)
        config = config_of(model)
        run.at = run.at._replace(model=config)
        if at is not None:
            run.resume(at, plan.updates, plan.epochs)
        kept = run.at.extra if extra is None else dict(extra)
        run.at = run.at._replace(extra=kept, model=config)
        return run

    run, owner = _compare_runs(team, begun, plan), os.getpid()
    reading = ahead(run.source, plan.read_ahead, plan.epochs)
    reports = bar(progress if team.is_first else False, run, plan)
    with reports as report, team.signals(), reading as run.read:
        try:
            _loop(run, plan, report)
        except NonFiniteError:
            run.restore(run.at)
            if run.at.best is not None:
                model.params = run.at.best
            raise
        except BaseException as error:
            if os.getpid() == owner:  # a process that a callback forked must not write the file
                _leave(run, plan, error)
            raise
    if run.at.best is not None:
        model.params = run.at.best
    return run.at.history


SECONDS_UNSETTLED = 5.0


def _loop(run: Run, plan: Plan, report: Callable[[Run], None]) -> None:
    """Update, validate and save until the plan is complete."""
    saved = settled = time.monotonic()
    while True:
        _validate_if_due(run, plan)
        if plan.is_over(run) or _is_out_of_patience(run.at.history, plan.patience):
            break
        run.advance()
        with run.team.record_errors():
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
    if plan.patience is not None and best is None:
        msg = "no result of validate() was finite, so the model keeps its last parameters"
        warnings.warn(msg, UserWarning, stacklevel=3)
    run.at = run.at._replace(best=best, final="params" if best is None else "best")
    _save(run, plan)


def _leave(run: Run, plan: Plan, error: BaseException) -> None:
    """Restore the last complete update and write it; the caller raises `error` afterwards."""
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
    """Validate if it is due, and not already done at this update before an interruption."""
    if plan.validate is None:
        return
    validations = run.at.history.validations
    due = run.at.update % plan.validate_every == 0 or plan.is_over(run)
    if due and not (validations and validations[-1][0] == run.at.update):
        value = run.validate(plan.validate, keep_best=plan.patience is not None)
        _call_back(run, plan, value)


def _call_back(run: Run, plan: Plan, validation: float | None) -> None:
    """Call every callback with the event of this update."""
    if plan.callbacks:
        losses = run.at.history.losses
        loss = losses[run.at.update - 1] if run.at.update else math.nan
        event = Event(run.at.update, run.at.epoch, loss, run.lr, run.norm, validation)
        with run.team.record_errors():
            for callback in plan.callbacks:
                callback(event)


def _is_out_of_patience(history: History, patience: int | None) -> bool:
    """Return whether none of the last `patience` validations is a new best."""
    if patience is None or not history.validations:
        return False
    return len(history.validations) - 1 - history.validations.index(history.best) >= patience


def _save(run: Run, plan: Plan) -> None:
    """Write the checkpoint, if there is a path, and check that all ranks have the same parameters."""
    run.settle()
    facts = run.team.together(lambda: _write(run, plan))
    run.team.compare(facts, GroupError)


def _write(run: Run, plan: Plan) -> dict[str, Any]:
    """Write the checkpoint at rank 0, and return the facts that all ranks must share."""
    if plan.checkpoint is not None and run.team.is_first:
        if run.written is None:
            keep_earlier(plan.checkpoint)
        else:
            check_own(os.fspath(plan.checkpoint), run.written)
        save_checkpoint(plan.checkpoint, run.at)
        run.written = run.at.settings["run"], run.at.update
    if run.team.size == 1:
        return {}
    return {"update": run.at.update, "the digest of the parameters": digest(run.at.params)}


def _compare_runs(team: Team, begin: Callable[[], Run], plan: Plan) -> Run:
    """Return the run of this rank after all ranks have compared their runs."""
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
            batch = arrays_of(found.inputs, found.targets)
        arrays = {name: a for name, a in at.optimizer.items() if not isinstance(a, int)}
        return {
            **at.settings,
            "update": at.update,
            "updates": plan.updates,
            "epochs": plan.epochs,
            "checkpoint_every": plan.checkpoint_every,
            "callbacks": len(plan.callbacks) > 0,
            "rng": repr(at.rng),
            "the digest of the parameters": digest(at.params),
            "the digest of the optimiser's averages": digest(arrays),
            "the digest of the next batch": digest(batch),
        }

    team.compare(team.together(begin_and_describe), ArgumentError)
    return begun[0]
