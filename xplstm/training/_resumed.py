"""Read the run to resume, send it to all ranks, and check that it matches the arguments."""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
import tempfile
import warnings
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm._typing import Array
from xplstm.training._saved import Checkpoint, as_json, identity, load_checkpoint, plain, ties_of
from xplstm.training._team import Team

REMEDY = "use the options of that run, or start a new run with resume=False"


def _is_resumed(checkpoint: str | os.PathLike[str], resume: bool | str) -> bool:
    """Return whether the run resumes from a file."""
    return resume is True or (resume == "auto" and os.path.exists(checkpoint))


def saved_run(
    team: Team, checkpoint: str | os.PathLike[str] | None, resume: bool | str
) -> tuple[Checkpoint | None, str]:
    """Return the run to resume, or None for a new run, and the run's id; rank 0 sends both to all ranks."""
    at, content = None, b""
    with team.record_errors():
        if team.is_first and checkpoint is not None and _is_resumed(checkpoint, resume):
            at = load_checkpoint(checkpoint)
            with open(checkpoint, "rb") as file:
                content = file.read() if team.size > 1 else b""
    team.together(lambda: None)
    own = secrets.token_hex(8) if at is None else str(at.settings.get("run", secrets.token_hex(8)))
    name, _, content = team.share(b"%s %s" % (own.encode(), content))[0].partition(b" ")
    if team.is_first or not content:
        return at, name.decode()
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "run.safetensors")
        with open(copy, "wb") as file:
            file.write(content)
        return load_checkpoint(copy), name.decode()


def earlier_name(path: str | os.PathLike[str]) -> str:
    """Return the unused path under which the file of an earlier run is kept, in the same folder."""
    folder, name = os.path.split(os.path.realpath(path))
    starts = itertools.chain(["previous"], (f"previous-{k}" for k in itertools.count(2)))
    paths = (os.path.join(folder, f"{start}-{name}") for start in starts)
    return next(kept for kept in paths if not os.path.lexists(kept))


def keep_earlier(path: str | os.PathLike[str]) -> str | None:
    """Rename the file of an earlier run, and return its new path; None if there is no file."""
    if not os.path.exists(path):
        return None
    kept = earlier_name(path)
    os.rename(os.path.realpath(path), kept)
    return kept


def check_own(checkpoint: str, own: tuple[str | None, int]) -> None:
    """Check that the file has the run id and the update that this run last wrote or read."""
    found = identity(checkpoint)
    if found is not None and found != own:
        msg = f"checkpoint={checkpoint!r} is at update {found[1]} of run {found[0]}, "
        msg += f"expected update {own[1]} of run {own[0]}. Another process writes this file. "
        msg += "The file was not changed; give each run its own file"
        raise ArgumentError(msg)


def check_length(at: Checkpoint, updates: int | None, epochs: int | None) -> None:
    """Check that the run to resume is not past its end."""
    for name, end, reached in (("updates", updates, at.update), ("epochs", epochs, at.epoch)):
        if end is not None and end < reached:
            msg = f"{name}={end} must be at least {reached}, the {name} of the run to resume; {REMEDY}"
            raise ArgumentError(msg)


def check_run(at: Checkpoint, given: Checkpoint) -> None:
    """Check that the file is consistent, and matches the arguments and the model of the run `given`."""
    if len(at.history.losses) != at.update or any(not 0 <= u <= at.update for u, _ in at.history.validations):
        msg = (
            f"the checkpoint is damaged: it is at update {at.update} and has {len(at.history.losses)} losses"
        )
        raise FormatError(msg)
    _check_parts(at.settings)
    for name, ours in given.settings.items():
        recorded = at.settings.get(name, ours)
        if name == "patience":
            _check_patience(recorded, ours)
        elif name == "scale" and (recorded is False) != (ours is False):
            words = {True: "a loss scale", False: "no loss scale"}
            msg = f"loss_scale= and the dtypes of the parameters give {words[ours is not False]}, expected "
            msg += f"{words[recorded is not False]} as in the run to resume; {REMEDY}"
            raise ArgumentError(msg)
        elif name not in ("data", "rng", "run", "scale") and recorded != ours:
            msg = f"{name}={ours!r} must be {recorded!r} as in the run to resume; {REMEDY}"
            raise ArgumentError(msg)
    if (at.average is None) != (given.average is None):
        found = "no moving average" if at.average is None else "a moving average"
        msg = f"average= does not fit the checkpoint, which has {found}; {REMEDY}"
        raise ArgumentError(msg)
    _check_config(at.model, given.model)


def check_parameters(own: Mapping[str, Array], at: Checkpoint) -> None:
    """Check that the checkpoint is from this model."""
    ours = {name: (_array.dtype_name(a.dtype), tuple(a.shape)) for name, a in own.items()}
    _check_same("", ours, at.params)
    _check_same("best.", ours, at.best or at.params)
    wide = {"float16": "float32", "bfloat16": "float32"}
    averages = {name: (wide.get(dtype, dtype), shape) for name, (dtype, shape) in ours.items()}
    if at.average is not None:
        _check_same("average.", averages, at.average)
    if ties_of(own) != ties_of(at.params):
        msg = f"the model shares arrays among {ties_of(own)}, but the checkpoint among {ties_of(at.params)}"
        raise FormatError(msg)


def fingerprint(state: Mapping[str, Any] | None) -> str | None:
    """Return a hash of the state of a generator; None without one."""
    return None if state is None else sha256(as_json("rng", state, plain).encode()).hexdigest()[:16]


def check_seed(at: Checkpoint, rng: np.random.Generator | None) -> None:
    """Warn if `rng` is neither the recorded generator nor the one at the start of the run to resume."""
    if rng is None or at.rng is None or "rng" not in at.settings:  # older files have no fingerprint
        return
    state = rng.bit_generator.state
    same_kind = state["bit_generator"] == at.rng.get("bit_generator")
    if same_kind and fingerprint(state) not in (at.settings["rng"], fingerprint(at.rng)):
        msg = "rng= is another seed or generator than that of the run to resume, and has no effect: "
        msg += "the resumed run continues with the recorded generator"
        warnings.warn(msg, UserWarning, stacklevel=3)


def restore_generator(rng: np.random.Generator | None, state: Mapping[str, Any] | None) -> None:
    """Set a generator to the recorded state of a generator of the same kind."""
    if (state is None) != (rng is None):
        msg = f"rng={rng}, but the run to resume had {'no rng' if state is None else 'an rng'}; {REMEDY}"
        raise ArgumentError(msg)
    if rng is None or state is None:
        return
    ours, theirs = type(rng.bit_generator).__name__, state.get("bit_generator")
    if ours != theirs:
        msg = f"rng={rng}, but the run to resume used {theirs!r}; pass a Generator of that kind, or a seed"
        raise ArgumentError(msg)
    try:
        rng.bit_generator.state = state
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        msg = f"the checkpoint is damaged: the state of {theirs} cannot be restored: {error!r}"
        raise FormatError(msg) from error


def _check_parts(settings: Mapping[str, Any]) -> None:
    """Check that `fit` could have written the settings."""
    data, scale = settings.get("data"), settings.get("scale", False)
    whole = data is None or (isinstance(data, dict) and {"epoch", "batches", "shapes"} <= data.keys())
    if whole and isinstance(data, dict):
        whole = type(data["epoch"]) is int and data["epoch"] >= 0
    if isinstance(scale, list) and [type(number) for number in scale] == [float, int]:
        whole = whole and 1 <= scale[0] < math.inf and scale[1] >= 0
    else:
        whole = whole and scale is False
    if not whole:
        msg = f"the checkpoint is damaged: it has the settings data={data!r} and scale={scale!r}"
        raise FormatError(msg)


def _check_patience(recorded: int | None, given: int | None) -> None:
    """Check that both runs have patience or neither has; the numbers may differ."""
    if (recorded is None) == (given is None):
        return
    msg = f"patience={given} does not fit the run to resume, which had patience={recorded}. "
    if recorded is None:
        msg += "The checkpoint has no best parameters; resume with patience=None"
    else:
        msg += "patience=None would lose the best parameters; pass any number of validations"
    msg += ", or load the file with xplstm.io.load_model and start a new run with resume=False"
    raise ArgumentError(msg)


def _check_config(recorded: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> None:
    """Check that the model has the recorded options, such as the vocabulary."""
    if recorded is None or given is None:
        return
    ours = _flat("", json.loads(json.dumps(given)))
    theirs = _flat("", dict(recorded))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            msg = f"the model has {name}={ours.get(name)!r}, expected {theirs.get(name)!r} as in the run to "
            msg += f"resume; {REMEDY}"
            raise ArgumentError(msg)


def _flat(start: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of nested dicts by dotted path."""
    entries: dict[str, Any] = {}
    for name, value in config.items():
        entries |= _flat(f"{start}{name}.", value) if isinstance(value, dict) else {f"{start}{name}": value}
    return entries


def _check_same(kind: str, ours: Mapping[str, tuple[str, Any]], given: Mapping[str, Array]) -> None:
    """Check that arrays have the names, dtypes and shapes of the model's arrays."""
    theirs = {name: (_array.dtype_name(a.dtype), tuple(a.shape)) for name, a in given.items()}
    differing = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    if differing:
        lines = [
            f"{kind}{name}: the model has {_describe_array(ours.get(name))}, "
            f"the checkpoint {_describe_array(theirs.get(name))}"
            for name in differing
        ]
        msg = "the checkpoint is from another model:\n  " + "\n  ".join(lines)
        raise FormatError(msg)


def _describe_array(kind: tuple[str, Any] | None) -> str:
    """Format a dtype and a shape."""
    return "None" if kind is None else f"{kind[0]}{kind[1]}"
