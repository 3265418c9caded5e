"""`fit`: one update after another, validation, early stopping and checkpoints."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError, GroupError, NonFiniteError
from xplstm.io.files._durable import check_writable
from xplstm.nn import Dropout
from xplstm.optim import Optimizer, Plateau
from xplstm.optim._clip import FLOATS
from xplstm.optim._optimizer import matches, patterns
from xplstm.training import _trees
from xplstm.training._data import Batches, Place, Source
from xplstm.training._progress import bar
from xplstm.training._run import Event, Model, Options, Run
from xplstm.training._saved import Checkpoint, History, load_checkpoint, save_checkpoint, tied
from xplstm.training._shards import Shards
from xplstm.training._team import Team, digest

Callback = Callable[[Event], object]
Path = str | os.PathLike[str]


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
        any other error. Its folder must exist.
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

    Returns
    -------
    History
        Of the whole run, what came before a resume included.

    Raises
    ------
    ArgumentError
        For a value outside its range, arguments that do not go together, or others than those of the run
        to resume. Only the learning rate, `updates`, `epochs`, the seed, and what concerns files and display
        may change.
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
    _check_parallel(model, parallel)
    team = Team(None if parallel is None else parallel.group)
    with team.noted():
        rng = _values.seed("rng", rng)
        plan = _plan_of(locals())
        options, settings = _options_of(model, optimizer, locals())
        _check_arguments(model, optimizer, validate, patience, checkpoint, resume, extra, rng, progress)
        if checkpoint is not None and team.is_first:
            _check_path(checkpoint)
    at = _saved_run(team, checkpoint, resume)

    def begun() -> Run:
        generator = None if rng is None else np.random.default_rng(rng)
        run = Run(model, optimizer, Source(data), generator, options, settings, team)
        if at is not None:
            run.resume(at)
        kept = run.at.extra if extra is None else dict(extra)
        run.at = run.at._replace(extra=kept, model=_config_of(model))
        return run

    run = _agreed(team, begun, plan)
    with bar(progress if team.is_first else False, run.at.update, updates) as report, team.signals():
        try:
            _loop(run, plan, report)
        except NonFiniteError:
            run.restore(run.at)
            if run.at.best is not None:
                model.params = run.at.best
            raise
        except BaseException as error:
            _leave(run, plan, error)
            raise
    if run.at.best is not None:
        model.params = run.at.best
    return run.at.history


class _Plan(NamedTuple):
    """When `fit` stops, validates, saves and reports."""

    updates: int | None
    epochs: int | None
    validate: Callable[[], float] | None
    validate_every: int
    patience: int | None
    checkpoint: Path | None
    checkpoint_every: int
    checkpoint_seconds: float
    callbacks: tuple[Callback, ...]

    def is_over(self, run: Run) -> bool:
        """Return whether the last update has been made."""
        if self.updates is not None:
            return run.at.update >= self.updates
        return self.epochs is not None and run.at.epoch >= self.epochs


SECONDS_UNSETTLED = 5.0


def _loop(run: Run, plan: _Plan, report: Callable[[Run], None]) -> None:
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


def _leave(run: Run, plan: _Plan, error: BaseException) -> None:
    """Bring the model to the last whole update and write that; `error` is raised afterwards."""
    try:
        run.settle()
        run.restore(run.at)
        _write(run, plan)
    except NonFiniteError as ruined:
        run.restore(run.at)
        error.add_note(f"the checkpoint was not written: {ruined}")
    except OSError as failed:
        error.add_note(f"the checkpoint was not written: {failed}")


def _validate_if_due(run: Run, plan: _Plan) -> None:
    """Validate, unless that was done at this update before the run was interrupted."""
    if plan.validate is None:
        return
    done = run.at.history.validations
    due = run.at.update % plan.validate_every == 0 or plan.is_over(run)
    if due and not (done and done[-1][0] == run.at.update):
        value = run.validate(plan.validate, keep_best=plan.patience is not None)
        _call_back(run, plan, value)


def _call_back(run: Run, plan: _Plan, validation: float | None) -> None:
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


def _save(run: Run, plan: _Plan) -> None:
    """Write the checkpoint, if one is asked for; the ranks must then have the same parameters."""
    run.settle()
    facts = run.team.together(lambda: _write(run, plan))
    run.team.compare(facts, GroupError)


def _write(run: Run, plan: _Plan) -> dict[str, Any]:
    """Write the checkpoint at rank 0, and return what must be the same on all ranks."""
    if plan.checkpoint is not None and run.team.is_first:
        save_checkpoint(plan.checkpoint, run.at)
    if run.team.size == 1:
        return {}
    return {"update": run.at.update, "the digest of the parameters": digest(run.at.params)}


# What is checked before any work.


def _check_parallel(model: Model, parallel: Any) -> None:
    """Refuse what is no `Shards`, and layers whose first axis is the batch where another one is cut."""
    if parallel is None:
        return
    if not isinstance(parallel, Shards):
        msg = f"parallel={parallel!r} must be training.Shards(group, count) or None"
        raise DTypeError(msg)
    layers = [model, *getattr(model, "__dict__", {}).values()]
    if parallel.batch_axis == 1 and any(getattr(layer, "batch_first", False) is True for layer in layers):
        msg = f"a layer of {type(model).__name__} has batch_first=True; Shards needs batch_axis=0 then"
        raise ArgumentError(msg)


def _is_resumed(checkpoint: Path, resume: bool | str) -> bool:
    """Return whether there is a file to resume from, or must be one."""
    return resume is True or (resume == "auto" and os.path.exists(checkpoint))


def _saved_run(team: Team, checkpoint: Path | None, resume: bool | str) -> Checkpoint | None:
    """Return the run to resume, which rank 0 reads and sends to all others; None for a new run."""
    at, content = None, b""
    with team.noted():
        if team.is_first and checkpoint is not None and _is_resumed(checkpoint, resume):
            at = load_checkpoint(checkpoint)
            with open(checkpoint, "rb") as file:
                content = file.read() if team.size > 1 else b""
    team.together(lambda: None)
    content = team.share(content)[0]
    if team.is_first or not content:
        return at
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "run.safetensors")
        with open(copy, "wb") as file:
            file.write(content)
        return load_checkpoint(copy)


def _agreed(team: Team, begin: Callable[[], Run], plan: _Plan) -> Run:
    """Return the run of this rank, after all ranks have compared theirs."""
    begun: list[Run] = []

    def begin_and_describe() -> dict[str, Any]:
        run = begin()
        begun.append(run)
        if team.size == 1:
            return {}
        at = run.at
        (inputs, targets), _ = run.source.batch(Place(at.epoch, at.position))
        batch = {n: a for n, a in _trees.leaves({"i": inputs, "t": targets}) if hasattr(a, "shape")}
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


def _plan_of(given: Mapping[str, Any]) -> _Plan:
    """Return the plan that the arguments of `fit` ask for."""
    if (given["updates"] is None) == (given["epochs"] is None):
        msg = f"updates={given['updates']} and epochs={given['epochs']}: one of the two is needed"
        raise ArgumentError(msg)
    ends = {n: None if given[n] is None else _values.size(n, given[n], 0) for n in ("updates", "epochs")}
    seconds, callbacks = given["checkpoint_seconds"], given["callbacks"]
    callbacks = (callbacks,) if callable(callbacks) else _values.items("callbacks", callbacks)
    if given["patience"] is not None:
        _values.size("patience", given["patience"])
    return _Plan(
        updates=ends["updates"],
        epochs=ends["epochs"],
        validate_every=_values.size("validate_every", given["validate_every"]),
        checkpoint_every=_values.size("checkpoint_every", given["checkpoint_every"]),
        validate=given["validate"],
        patience=given["patience"],
        checkpoint=given["checkpoint"],
        checkpoint_seconds=math.inf if seconds is None else _values.positive("checkpoint_seconds", seconds),
        callbacks=tuple(_values.function(f"callbacks[{k}]", f) for k, f in enumerate(callbacks)),
    )


def _options_of(
    model: Model, optimizer: Optimizer, given: Mapping[str, Any]
) -> tuple[Options, dict[str, Any]]:
    """Return how updates are made, and what of the arguments a resumed run must share."""
    _check_model(model)
    _check_optimizer(optimizer, model)
    params = model.params
    chosen = patterns("frozen", given["frozen"])
    frozen = _frozen(params, chosen)
    max_norm, average, scale = given["max_norm"], given["average"], given["loss_scale"]
    if scale is not None:
        _values.one_of("loss_scale", scale, ("auto",))
    halves = [n for n, a in params.items() if _array.dtype_name(a.dtype) == "float16" and n not in frozen]
    options = Options(
        carry=_values.flag("carry", given["carry"]),
        max_norm=None if max_norm is None else _values.above_zero("max_norm", max_norm),
        accumulate=_values.size("accumulate", given["accumulate"]),
        frozen=frozen,
        average=None if average is None else _values.probability("average", average),
        scale=scale == "auto" and bool(halves),
        measure=bool(given["plan"].callbacks),
        epochs=given["epochs"],
        shards=given["parallel"],
    )
    shared = ("carry", "max_norm", "accumulate", "average", "scale")
    settings = {name: getattr(options, name) for name in shared} | {"frozen": list(frozen)}
    settings["shards"] = None if options.shards is None else options.shards.count
    settings |= {"validate": given["validate"] is not None, "patience": given["patience"]}
    if given["validate"] is not None:
        settings["validate_every"] = given["validate_every"]
    return options, json.loads(json.dumps(settings | {"optimizer": optimizer.settings()}))


def _check_model(model: Any) -> None:
    """Refuse what is no model, and say what to do."""
    if isinstance(model, type):
        msg = f"model={model.__name__} is a class; pass an instance of it"
        raise DTypeError(msg)
    if not (
        callable(getattr(model, "loss_vjp", None)) and isinstance(getattr(model, "params", None), Mapping)
    ):
        msg = (
            f"model={type(model).__name__} must have params, a dict of arrays, and loss_vjp; the models of "
            "xplstm.models have both, and xplstm.training.Model says what a layer of your own needs around it"
        )
        raise DTypeError(msg)
    if not model.params:
        msg = "model.params is empty; it must hold at least one array"
        raise ArgumentError(msg)
    for name, a in model.params.items():
        _array.namespace(a, f"params[{name!r}]")
        if _array.dtype_name(a.dtype) not in FLOATS:
            dtype = _array.dtype_name(a.dtype)
            msg = f"params[{name!r}] has dtype {dtype}; it must be one of {', '.join(FLOATS)}"
            raise DTypeError(msg)


def _check_optimizer(optimizer: Any, model: Model) -> None:
    """Refuse what is no optimiser of this library, and groups that match no parameter."""
    if isinstance(optimizer, type):
        msg = f"optimizer={optimizer.__name__} is a class; pass an instance, such as Adam(1e-3)"
        raise DTypeError(msg)
    if not isinstance(optimizer, Optimizer):
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        msg = f"optimizer is a {kind}; one of xplstm.optim was expected"
        raise DTypeError(msg)
    for group in optimizer.groups:
        if not any(matches(name, group.names) for name in model.params):
            msg = f"{group} matches no parameter; the model has {sorted(model.params)}"
            raise ArgumentError(msg)


def _frozen(params: Mapping[str, Any], chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the frozen parameters."""
    for pattern in chosen:
        if not any(matches(name, (pattern,)) for name in params):
            msg = f"frozen={pattern!r} matches no parameter; the model has {sorted(params)}"
            raise ArgumentError(msg)
    frozen = tuple(sorted(name for name in params if matches(name, chosen)))
    if len(frozen) == len(params):
        msg = f"frozen={list(chosen)} leaves no parameter to train"
        raise ArgumentError(msg)
    for names in tied(params):
        if 0 < len({*names} & {*frozen}) < len(names):
            msg = f"frozen has some of {names}, which share one array; freeze all of them or none"
            raise ArgumentError(msg)
    return frozen


def _check_arguments(
    model: Model,
    optimizer: Optimizer,
    validate: object,
    patience: int | None,
    checkpoint: Path | None,
    resume: bool | str,
    extra: Mapping[str, Any] | None,
    rng: object,
    progress: object,
) -> None:
    """Refuse arguments that need others, files that could not be written, and warn of what has no effect."""
    if isinstance(optimizer.schedule, Plateau) and validate is None:
        msg = "the learning rate is a Plateau, which needs validate="
        raise ArgumentError(msg)
    if not isinstance(progress, bool) and not callable(progress):
        msg = f"progress={progress!r} must be True, False or a function of the history"
        raise DTypeError(msg)
    if patience is not None and validate is None:
        msg = f"patience={patience} needs validate="
        raise ArgumentError(msg)
    if validate is not None and not callable(validate):
        msg = f"validate={validate!r} must be a function without arguments that gives a number"
        raise DTypeError(msg)
    if not isinstance(resume, bool) and not (isinstance(resume, str) and resume == "auto"):
        msg = f"resume={resume!r} must be True, False or 'auto'"
        raise ArgumentError(msg)
    _check_extra(extra)
    if checkpoint is None and resume:
        msg = f"resume={resume!r} needs checkpoint="
        raise ArgumentError(msg)
    if rng is None and _has_dropout(model):
        msg = f"{type(model).__name__} has dropout, and fit without rng= drops nothing; pass a seed as rng="
        warnings.warn(msg, UserWarning, stacklevel=3)


def _check_path(checkpoint: Path) -> None:
    """Refuse a file that could not be written, before any training."""
    path = _values.path("checkpoint", checkpoint)
    if os.path.isdir(path):
        msg = f"checkpoint={path!r} is a folder; it must be a file in one"
        raise ArgumentError(msg)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        msg = f"checkpoint={path!r} is in no folder: make {folder!r} first"
        raise ArgumentError(msg)
    try:
        check_writable(path)
    except (OSError, ValueError) as error:
        msg = f"checkpoint={path!r} cannot be written: {error}"
        raise ArgumentError(msg) from error


def _has_dropout(model: Model) -> bool:
    """Return whether a layer of the model drops something."""
    layers = [model, *getattr(model, "__dict__", {}).values()]
    stacks = [getattr(layer, "_stack", None) for layer in layers]
    of_stacks = ("dropout", "input_dropout", "weight_dropout")
    chances = [getattr(stack, name, 0) for stack in stacks for name in of_stacks]
    return any(chances) or any(isinstance(layer, Dropout) and layer.p for layer in layers)


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
    if extra is not None:
        _values.mapping("extra", extra)
    try:
        json.dumps(extra)
    except TypeError as error:
        msg = f"extra={extra!r} must be what JSON can hold: {error}"
        raise ArgumentError(msg) from error
