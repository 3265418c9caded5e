"""The run to resume: read, sent to all ranks, and compared with the run that was asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm._typing import Array
from xplstm.training._data import Place, Source
from xplstm.training._saved import Checkpoint, load_checkpoint, tied
from xplstm.training._team import Team


def _is_resumed(checkpoint: str | os.PathLike[str], resume: bool | str) -> bool:
    """Return whether there is a file to resume from, or must be one."""
    return resume is True or (resume == "auto" and os.path.exists(checkpoint))


def saved_run(team: Team, checkpoint: str | os.PathLike[str] | None, resume: bool | str) -> Checkpoint | None:
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


def check_same_parameters(own: Mapping[str, Array], at: Checkpoint) -> None:
    """Refuse the checkpoint of another model."""

    def describe(params: Mapping[str, Array]) -> dict[str, str]:
        return {name: f"{_array.dtype_name(a.dtype)}{tuple(a.shape)}" for name, a in params.items()}

    ours = describe(own)
    for kind, given in (("", at.params), ("best.", at.best or at.params)):
        theirs = describe(given)
        differing = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        if differing:
            lines = [
                f"{kind}{name}: the model has {ours.get(name)}, the checkpoint {theirs.get(name)}"
                for name in differing
            ]
            msg = "the checkpoint is of another model:\n  " + "\n  ".join(lines)
            raise FormatError(msg)
    if tied(own) != tied(at.params):
        msg = f"the model shares arrays among {tied(own)}, the checkpoint among {tied(at.params)}"
        raise FormatError(msg)


def check_resumed(ours: Checkpoint, source: Source, at: Checkpoint) -> None:
    """Refuse a file that contradicts itself, or the arguments and the data of this run."""
    if len(at.history.losses) != at.update or any(not 0 <= u <= at.update for u, _ in at.history.validations):
        msg = (
            f"the checkpoint is at update {at.update} and has {len(at.history.losses)} losses; it is damaged"
        )
        raise FormatError(msg)
    for name, given in ours.settings.items():
        recorded = at.settings.get(name, given)
        if name not in ("data", "scale") and recorded != given:
            msg = f"the run to resume had {name}={recorded!r}; {name}={given!r} is given"
            raise ArgumentError(msg)
    if (at.average is None) != (ours.average is None):
        msg = "average= and the checkpoint do not fit: one of them has a moving average, the other has none"
        raise ArgumentError(msg)
    source.check(at.settings.get("data"), Place(at.epoch, at.position))
