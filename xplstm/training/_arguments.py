"""Check the arguments of `fit` before any work, and collect those that a resumed run must share."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError
from xplstm.io.files._durable import check_writable
from xplstm.nn import Dropout, Recurrent
from xplstm.optim import Optimizer
from xplstm.optim._optimizer import matches, patterns
from xplstm.training import _trees
from xplstm.training._resumed import earlier_name
from xplstm.training._run import Event, Model, Options, Run, plateaus_of
from xplstm.training._samples import Epoch
from xplstm.training._saved import as_json, ties_of
from xplstm.training._shards import Shards

Callback: TypeAlias = Callable[[Event], object]
Path: TypeAlias = str | os.PathLike[str]


class Plan(NamedTuple):
    """Arguments that decide when `fit` stops, validates, saves and reports."""

    updates: int | None
    epochs: int | None
    validate: Callable[[], float] | None
    validate_every: int
    patience: int | None
    checkpoint: Path | None
    checkpoint_every: int
    checkpoint_seconds: float
    callbacks: tuple[Callback, ...]
    read_ahead: int

    def is_over(self, run: Run) -> bool:
        """Return whether the last update has been made."""
        if self.updates is not None:
            return run.at.update >= self.updates
        return self.epochs is not None and run.at.epoch >= self.epochs

    def total(self, run: Run) -> int | None:
        """Return the number of updates of the whole run, or None if the data does not state it."""
        if self.epochs is None:
            return self.updates
        batches = run.source.count(self.epochs)
        return None if batches is None else -(-batches // run.options.accumulate)


def check_parallel(model: Model, parallel: Any) -> None:
    """Check that `parallel` is a `Shards` or None, and that its batch axis fits the layers."""
    if parallel is None:
        return
    if not isinstance(parallel, Shards):
        msg = f"parallel={parallel!r} must be training.Shards(group, count) or None"
        raise DTypeError(msg)
    layers = [model, *getattr(model, "__dict__", {}).values()]
    if parallel.batch_axis == 1 and any(getattr(layer, "batch_first", False) is True for layer in layers):
        msg = f"a layer of {type(model).__name__} has batch_first=True, which needs Shards(..., batch_axis=0)"
        raise ArgumentError(msg)
    axis = getattr(model, "batch_axis", parallel.batch_axis)
    if parallel.batch_axis != axis:
        msg = f"{type(model).__name__} has batch axis {axis}, but Shards has batch_axis={parallel.batch_axis}"
        raise ArgumentError(msg)


def check_samples(model: Model, batches: Any) -> None:
    """Check that samples have the batch axis of the model's targets; `prepare` may move it."""
    wanted = getattr(model, "targets_axis", None)
    if wanted is None or not isinstance(batches, Epoch) or batches.samples.prepare is not None:
        return
    samples = batches.samples
    several = [a for _, a in _trees.leaves({"targets": samples.trees["targets"]}) if len(a.shape) > 1]
    if several and wanted == 0 and samples.batch_axis == 1:
        msg = f"targets of {type(model).__name__} have the batch on axis 0, but Samples has batch_axis="
        msg += f"{samples.batch_axis}, which gives the shape ({several[0].shape[1]}, B); "
        raise ArgumentError(msg + "pass prepare=lambda x, y: (x, y.T)")


def plan_of(given: Mapping[str, Any]) -> Plan:
    """Return the checked plan from the arguments of `fit`."""
    if (given["updates"] is None) == (given["epochs"] is None):
        msg = f"updates={given['updates']} and epochs={given['epochs']}; pass exactly one of the two"
        raise ArgumentError(msg)
    ends = {n: None if given[n] is None else _values.size(n, given[n], 0) for n in ("updates", "epochs")}
    checkpoint = given["checkpoint"]
    if checkpoint is not None:
        # The process may change its working directory while it trains.
        checkpoint = os.path.abspath(_values.path("checkpoint", checkpoint))
    seconds, callbacks = given["checkpoint_seconds"], given["callbacks"]
    callbacks = (callbacks,) if callable(callbacks) else _values.items("callbacks", callbacks)
    if given["patience"] is not None:
        _values.size("patience", given["patience"])
    return Plan(
        updates=ends["updates"],
        epochs=ends["epochs"],
        validate_every=_values.size("validate_every", given["validate_every"]),
        checkpoint_every=_values.size("checkpoint_every", given["checkpoint_every"]),
        validate=given["validate"],
        patience=given["patience"],
        checkpoint=checkpoint,
        checkpoint_seconds=math.inf if seconds is None else _values.positive("checkpoint_seconds", seconds),
        callbacks=tuple(_values.function(f"callbacks[{k}]", f) for k, f in enumerate(callbacks)),
        read_ahead=_values.size("read_ahead", given["read_ahead"], 0),
    )


def options_of(
    model: Model, optimizer: Optimizer, given: Mapping[str, Any]
) -> tuple[Options, dict[str, Any]]:
    """Return the options of an update, and the settings that a resumed run must share."""
    _check_model(model)
    _check_optimizer(optimizer, model)
    params = model.params
    chosen = patterns("frozen", given["frozen"])
    frozen = _frozen_names(params, chosen)
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
    for name, attribute in (("shards", "count"), ("batch_axis", "batch_axis"), ("sums", "sums")):
        settings[name] = None if options.shards is None else getattr(options.shards, attribute)
    settings |= {"validate": given["validate"] is not None, "patience": given["patience"]}
    if given["validate"] is not None:
        settings["validate_every"] = given["validate_every"]
    return options, json.loads(json.dumps(settings | {"optimizer": optimizer.settings()}))


def _check_model(model: Any) -> None:
    """Check that `model` has `loss_vjp` and float parameters."""
    if isinstance(model, type):
        msg = f"model={model.__name__} is a class; pass an instance of it"
        raise DTypeError(msg)
    if not (
        callable(getattr(model, "loss_vjp", None)) and isinstance(getattr(model, "params", None), Mapping)
    ):
        msg = (
            f"model={type(model).__name__} must have params, a dict of arrays, and loss_vjp; the models of "
            "xplstm.models have both, and xplstm.training.Model describes what your own model needs"
        )
        raise DTypeError(msg)
    if not model.params:
        msg = "model.params is empty; it must contain at least one array"
        raise ArgumentError(msg)
    for name, a in model.params.items():
        _array.float_array(f"params[{name!r}]", a)


def _check_optimizer(optimizer: Any, model: Model) -> None:
    """Check that `optimizer` is from `xplstm.optim`, and that each of its groups matches a parameter."""
    if isinstance(optimizer, type):
        msg = f"optimizer={optimizer.__name__} is a class; pass an instance, such as Adam(1e-3)"
        raise DTypeError(msg)
    if not isinstance(optimizer, Optimizer):
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        msg = f"optimizer is a {kind}, expected an optimiser of xplstm.optim"
        raise DTypeError(msg)
    for group in optimizer.groups:
        if not any(matches(name, group.names) for name in model.params):
            msg = f"{group} matches no parameter; {_list_names(model.params)}"
            raise ArgumentError(msg)


def _list_names(params: Mapping[str, Any]) -> str:
    """List the names of the parameters, with the rule for patterns."""
    rule = "a pattern without a dot is compared with the part after the last dot"
    return f"{rule}, and the model has {sorted(params)}"


def _frozen_names(params: Mapping[str, Any], chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the frozen parameters."""
    for pattern in chosen:
        if not any(matches(name, (pattern,)) for name in params):
            msg = f"frozen={pattern!r} matches no parameter; {_list_names(params)}"
            raise ArgumentError(msg)
    frozen = tuple(sorted(name for name in params if matches(name, chosen)))
    if len(frozen) == len(params):
        msg = f"frozen={list(chosen)} leaves no parameter to train"
        raise ArgumentError(msg)
    for names in ties_of(params):
        if 0 < len({*names} & {*frozen}) < len(names):
            msg = f"frozen has some of {names}, which share one array; freeze all of them or none"
            raise ArgumentError(msg)
    return frozen


def check_arguments(
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
    """Check that the arguments are consistent, and warn about dropout without `rng`."""
    if plateaus_of(optimizer) and validate is None:
        msg = "a learning rate is a Plateau, which needs validate="
        raise ArgumentError(msg)
    if not isinstance(progress, bool) and not callable(progress):
        msg = f"progress={progress!r} must be True, False or a function of the history"
        raise DTypeError(msg)
    if patience is not None and validate is None:
        msg = f"patience={patience} needs validate="
        raise ArgumentError(msg)
    if validate is not None and not callable(validate):
        msg = f"validate={validate!r} must be a function without arguments that returns a number"
        raise DTypeError(msg)
    if not isinstance(resume, bool) and not (isinstance(resume, str) and resume == "auto"):
        msg = f"resume={resume!r} must be True, False or 'auto'"
        raise ArgumentError(msg)
    _check_extra(extra)
    if checkpoint is None and resume:
        msg = f"resume={resume!r} needs checkpoint="
        raise ArgumentError(msg)
    if rng is None and _has_dropout(model):
        msg = f"{type(model).__name__} has dropout, and fit applies no dropout without rng=; pass a seed"
        warnings.warn(msg, UserWarning, stacklevel=3)


def check_path(checkpoint: Path, resume: bool | str) -> None:
    """Check, before any training, that the checkpoint can be written; warn of a new run over a file."""
    path = _values.path("checkpoint", checkpoint)
    if os.path.isdir(path):
        msg = f"checkpoint={path!r} is a folder, expected the path of a file"
        raise ArgumentError(msg)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        msg = f"checkpoint={path!r} needs the folder {folder!r}, which does not exist; create it first"
        raise ArgumentError(msg)
    try:
        check_writable(path)
    except (OSError, ValueError) as error:
        msg = f"checkpoint={path!r} cannot be written: {error}"
        raise ArgumentError(msg) from error
    if not resume and os.path.exists(path):
        kept = os.path.basename(earlier_name(path))
        msg = f"checkpoint={path!r} exists, and resume=False starts a new run. The first checkpoint of "
        msg += f"the new run renames that file to {kept!r}; resume='auto' continues the run of the file"
        warnings.warn(msg, UserWarning, stacklevel=3)


def _has_dropout(model: Model) -> bool:
    """Return whether a layer of the model has dropout."""
    layers = [model, *getattr(model, "__dict__", {}).values()]
    stacks = [layer._stack for layer in layers if isinstance(layer, Recurrent)]
    of_stacks = ("dropout", "input_dropout", "weight_dropout")
    chances = [getattr(stack, name) for stack in stacks for name in of_stacks]
    variants = [stack.cell.options().get("variant") for stack in stacks]
    chances += [variant.recurrent_dropout for variant in variants if variant is not None]
    return any(chances) or any(isinstance(layer, Dropout) and layer.p for layer in layers)


def config_of(model: Model) -> dict[str, Any] | None:
    """Return the result of ``model.config()``, a JSON object; None for a model without that method."""
    config = getattr(model, "config", None)
    if not callable(config):
        return None
    value = config()
    as_json(f"model.config()={value!r}", value)
    if not isinstance(value, dict):
        msg = f"model.config()={value!r} must be a dict"
        raise DTypeError(msg)
    return value


def _check_extra(extra: Mapping[str, Any] | None) -> None:
    """Check, before any training, that `extra` can be written as JSON."""
    if extra is not None:
        _values.mapping("extra", extra)
    as_json(f"extra={extra!r}", extra)
