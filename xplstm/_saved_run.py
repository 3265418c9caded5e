"""A training run between two updates, and the file that holds it.

One safetensors file: arrays as tensors, the rest as JSON. It is written beside
its final name, forced to the disk and then renamed, so that at every moment, a
power cut included, the old file or the new one is there whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xplstm import _array
from xplstm._durable import write_durably
from xplstm._errors import ArgumentError, FormatError
from xplstm._typing import Array

State: TypeAlias = "tuple[Array, ...] | None"

_FORMAT = "xplstm-checkpoint-1"
_METADATA = "xplstm"


@dataclass
class History:
    """What happened in a run.

    Attributes
    ----------
    losses : list of float
        One for each update.
    validations : list of (int, float)
        Number of updates made, and what `validate` gave then.
    """

    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float]:
        """The earliest of the lowest validations; NaN counts as infinity.

        Raises
        ------
        ArgumentError
            If nothing was validated.
        """
        if not self.validations:
            msg = "history.validations is empty; fit was not given validate="
            raise ArgumentError(msg)
        return min(self.validations, key=lambda v: math.inf if math.isnan(v[1]) else v[1])


class Checkpoint(NamedTuple):
    """A run between two updates: all that the rest of the run depends on.

    Attributes
    ----------
    update : int
        Updates made.
    epoch, position : int
        Where in the data the next batch stands.
    params, optimizer : dict
        Of the model and of the optimiser (`xplstm.optim.Optimizer.state_dict`).
    state : tuple of arrays or None
        Carried from the batch before.
    rng : mapping or None
        ``bit_generator.state`` of the generator that dropout draws from.
    history : History
    best : dict or None
        The parameters at `History.best`, where early stopping is on.
    extra : dict
        What the caller wants kept beside them; anything that JSON can hold.
    """

    update: int
    epoch: int
    position: int
    params: dict[str, Array]
    optimizer: dict[str, Array | int]
    state: State
    rng: Mapping[str, Any] | None
    history: History
    best: dict[str, Array] | None
    extra: dict[str, Any]


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint: wholly, or not at all.

    Parameters
    ----------
    path : path
        A safetensors file; its folder must exist. What stood there is replaced.
    checkpoint : Checkpoint
        Of any array library; arrays on a device are copied to the host.

    Raises
    ------
    OSError
        If the file cannot be written; the old one is then still whole.
    ImportError
        If the package safetensors is missing.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from xplstm import training
    >>> params, history = {"weight": np.ones((2, 3), dtype="float32")}, training.History([0.5])
    >>> point = training.Checkpoint(1, 0, 1, params, {"step": 1}, None, None, history, None, {"note": 1})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.safetensors")
    ...     training.save_checkpoint(path, point)
    ...     loaded = training.load_checkpoint(path)
    >>> loaded.update, loaded.extra, loaded.params["weight"].dtype.name
    (1, {'note': 1}, 'float32')
    """
    tensors = {name: _array.to_numpy(a) for name, a in _named_arrays(checkpoint)}
    bfloat16 = [name for name, a in tensors.items() if _array.dtype_name(a.dtype) == "bfloat16"]
    # NumPy has no bfloat16 for safetensors to read it back as; float32 holds each one exactly.
    tensors |= {name: tensors[name].astype(np.float32) for name in bfloat16}
    rest = {
        "format": _FORMAT,
        "update": checkpoint.update,
        "epoch": checkpoint.epoch,
        "position": checkpoint.position,
        "optimizer": {name: v for name, v in checkpoint.optimizer.items() if isinstance(v, int)},
        "rng": checkpoint.rng,
        "extra": checkpoint.extra,
        "bfloat16": bfloat16,
    }
    import_safetensors()
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
    metadata = {_METADATA: json.dumps(rest, default=np.ndarray.tolist)}
    write_durably(os.fspath(path), save(contiguous, metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` or `fit` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Checkpoint
        With NumPy arrays, whatever library they came from.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If the file is damaged, or something else.
    ImportError
        If the package safetensors is missing.

    Examples
    --------
    See `save_checkpoint`.
    """
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        msg = f"{os.fspath(path)} is not a whole safetensors file: {error}"
        raise FormatError(msg) from error
    rest = json.loads(metadata.get(_METADATA, "{}"))
    if rest.get("format") != _FORMAT:
        msg = f"{os.fspath(path)} has the format {rest.get('format')}, not {_FORMAT}"
        raise FormatError(msg)
    for name in rest["bfloat16"]:
        tensors[name] = tensors[name].astype(_array.dtype_named(np, "bfloat16"))
    groups: dict[str, dict[str, Array]] = {}
    for name, value in tensors.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    history = groups["history"]
    validations = [(int(update), value) for update, value in history["validations"].tolist()]
    state = groups.get("state")
    return Checkpoint(
        rest["update"],
        rest["epoch"],
        rest["position"],
        groups["params"],
        {**rest["optimizer"], **groups.get("optimizer", {})},
        None if state is None else tuple(state[str(i)] for i in range(len(state))),
        rest["rng"],
        History(history["losses"].tolist(), validations),
        groups.get("best"),
        rest["extra"],
    )


def _named_arrays(checkpoint: Checkpoint) -> Iterator[tuple[str, Array]]:
    """Each array of a checkpoint with its name in the file, ``group.key``."""
    history = checkpoint.history
    groups: dict[str, Mapping[str, Array]] = {
        "params": checkpoint.params,
        "optimizer": {name: v for name, v in checkpoint.optimizer.items() if not isinstance(v, int)},
        "state": {str(i): a for i, a in enumerate(checkpoint.state or ())},
        "best": checkpoint.best or {},
        "history": {
            "losses": np.asarray(history.losses, dtype=np.float64),
            "validations": np.asarray(history.validations, dtype=np.float64).reshape(-1, 2),
        },
    }
    for group, arrays in groups.items():
        for key, a in arrays.items():
            yield f"{group}.{key}", a


def import_safetensors() -> Any:
    """Return the package safetensors."""
    try:
        import safetensors
    except ImportError as error:
        msg = "checkpoints need the package safetensors: it comes with pip install 'xplstm[train]'"
        raise ImportError(msg) from error
    return safetensors
