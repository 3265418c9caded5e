"""Save and load a training run between two updates.

A checkpoint is one safetensors file, with arrays as tensors and all other values as JSON in the metadata.
`save_checkpoint` writes a temporary file, flushes it to the disk and renames it. The old or the new file is
therefore complete at every moment, even after a power failure.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError, FormatError
from xplstm._summary import brief
from xplstm._typing import Array
from xplstm.io._contents import json_object
from xplstm.io._written import METADATA, MODEL
from xplstm.io.files import safetensors
from xplstm.io.files._durable import write_durably
from xplstm.optim._optimizer import names_by_array

State: TypeAlias = "tuple[Array, ...] | Array | None"

FORMAT = "xplstm-checkpoint-2"
FINALS = ("params", "average", "best")


@dataclass(repr=False)
class History:
    """Losses and validations of a run.

    Attributes
    ----------
    losses : list of float
        Loss of each update.
    validations : list of (int, float)
        Number of updates made, and result of `validate` at that update.
    """

    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)

    def __repr__(self) -> str:
        text = f"{len(self.losses)} losses" + (f", the last {self.losses[-1]:.4g}" if self.losses else "")
        if self.validations:
            update, value = self.best
            text += f"; {len(self.validations)} validations, the best {value:.4g} at update {update}"
        return f"History({text})"

    @property
    def best(self) -> tuple[int, float]:
        """Update and value of the lowest validation, the earliest of equal ones; NaN counts as infinity.

        Raises
        ------
        ArgumentError
            If there are no validations.
        """
        if not self.validations:
            msg = "history.validations is empty; pass validate= to fit"
            raise ArgumentError(msg)
        return min(self.validations, key=lambda v: math.inf if math.isnan(v[1]) else v[1])


class Checkpoint(NamedTuple):
    """State of a training run between two updates, complete enough to continue the run.

    Attributes
    ----------
    update : int
        Number of updates made.
    epoch, position : int
        Place of the next batch in the data.
    params, optimizer : dict
        Parameters of the model, and `xplstm.optim.Optimizer.state_dict`.
    state : tuple of arrays, array or None
        State after the previous batch, with ``carry=True``.
    rng : mapping or None
        ``bit_generator.state`` of the generator for dropout.
    history : History
        Losses and validations so far.
    best : dict or None
        Parameters at `History.best`, with early stopping.
    extra : dict
        JSON object of the caller.
    model : dict or None
        Result of the model's ``config()``; None for a model without that method.
    average : dict or None
        Moving average of the parameters, with ``average=``.
    settings : dict
        Arguments of `fit` that a resumed run must share, the id of the run, and the sizes of its data.
    final : {"params", "average", "best"}
        Which of the three dicts the model had when `fit` ended.
    """

    update: int
    epoch: int
    position: int
    params: dict[str, Array]
    optimizer: dict[str, Any]
    state: State
    rng: Mapping[str, Any] | None
    history: History
    best: dict[str, Array] | None
    extra: dict[str, Any]
    model: dict[str, Any] | None = None
    average: dict[str, Array] | None = None
    settings: Mapping[str, Any] = {}
    final: str = "params"

    def __repr__(self) -> str:
        return brief(self)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : path
        A safetensors file in an existing folder. An existing file is overwritten.
    checkpoint : Checkpoint
        Arrays may be of any library; arrays on a device are copied to the host.

    Raises
    ------
    OSError
        If the file cannot be written. An existing file is then unchanged.
    ArgumentError
        If a number is below 0, or `extra`, `model` or `settings` is not a JSON object.
    DTypeError
        If a number is not an integer, or safetensors does not support the dtype of an array.

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
    path = _values.path("path", path)
    if not isinstance(checkpoint, Checkpoint):
        msg = f"checkpoint must be a Checkpoint, got {type(checkpoint).__name__}"
        raise DTypeError(msg)
    _check_parts(checkpoint)
    tensors = {name: _array.to_numpy(a) for name, a in _named_arrays(checkpoint)}
    for name, a in tensors.items():
        if _array.dtype_name(a.dtype) not in safetensors.DTYPES.values():
            msg = f"{name} has dtype {a.dtype}, which safetensors does not support; convert it first"
            raise DTypeError(msg)
    rest = {
        "format": FORMAT,
        **{
            name: _values.size(name, getattr(checkpoint, name), 0) for name in ("update", "epoch", "position")
        },
        "optimizer": {name: v for name, v in checkpoint.optimizer.items() if isinstance(v, int)},
        "rng": checkpoint.rng,
        "extra": checkpoint.extra,
        "settings": dict(checkpoint.settings),
        "tied": ties_of(checkpoint.params),
        "final": checkpoint.final,
    }
    metadata = {METADATA: as_json("the checkpoint", rest, plain)}
    if checkpoint.model is not None:
        metadata[MODEL] = as_json("the checkpoint", checkpoint.model, plain)
    write_durably(path, safetensors.pack(tensors, metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` or `fit` wrote.

    Parameters
    ----------
    path : path
        The safetensors file.

    Returns
    -------
    Checkpoint
        With NumPy arrays, even if the saved arrays were of another library.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    FormatError
        If the file is damaged or not a checkpoint; the error names the file.

    Examples
    --------
    See `save_checkpoint`.
    """
    where = _values.path("path", path)
    contents = safetensors.read(where)
    rest = _read_rest(where, contents.metadata)
    groups: dict[str, dict[str, Array]] = {}
    for name, tensor in contents.tensors.items():
        group, _, key = name.partition(".")
        # Copy, since views of the mapped file would keep it open.
        groups.setdefault(group, {})[_unescape(key)] = np.array(tensor.array())
    _check_groups(where, groups)
    for group in ("params", "best", "average"):
        _restore_ties(where, group, groups.get(group, {}), rest["tied"])
    return Checkpoint(
        rest["update"],
        rest["epoch"],
        rest["position"],
        groups["params"],
        {**rest["optimizer"], **groups.get("optimizer", {})},
        _state(where, groups.get("state")),
        rest["rng"],
        _history(where, groups["history"]),
        groups.get("best"),
        rest["extra"],
        _model(where, contents.metadata),
        groups.get("average"),
        rest["settings"],
        rest["final"],
    )


def identity(path: str) -> tuple[str | None, int] | None:
    """Return the run id and the update of a checkpoint; None if the file is not a checkpoint."""
    try:
        rest = _read_rest(path, safetensors.read(path).metadata)
    except (FileNotFoundError, FormatError):
        return None
    return rest["settings"].get("run"), rest["update"]


def ties_of(params: Mapping[str, Array]) -> list[list[str]]:
    """Return sorted groups of names that share one array object."""
    return sorted(sorted(names) for names in names_by_array(params) if len(names) > 1)


def _check_parts(point: Checkpoint) -> None:
    """Check the types of the fields of a checkpoint."""
    for name in ("params", "optimizer", "extra", "settings", "rng", "best", "average", "model"):
        value = getattr(point, name)
        if value is not None or name in ("params", "optimizer", "extra", "settings"):
            _values.mapping(name, value)
    if not isinstance(point.state, tuple | list | None) and not hasattr(point.state, "dtype"):
        msg = f"state={point.state!r} must be a tuple of arrays, an array or None"
        raise DTypeError(msg)
    if not isinstance(point.history, History):
        msg = f"history must be a History, got {type(point.history).__name__}"
        raise DTypeError(msg)
    _values.one_of("final", point.final, FINALS)
    counts = {name: v for name, v in point.optimizer.items() if isinstance(v, int)}
    for name, value in counts.items():
        _values.size(f"optimizer[{name!r}]", value, 0)


def _named_arrays(checkpoint: Checkpoint) -> Iterator[tuple[str, Array]]:
    """Yield each array of a checkpoint with its name in the file, ``group.key``."""
    history = checkpoint.history
    groups: dict[str, Mapping[str, Any]] = {
        "params": checkpoint.params,
        "optimizer": {name: v for name, v in checkpoint.optimizer.items() if not isinstance(v, int)},
        "state": _name_parts(checkpoint.state),
        "best": checkpoint.best or {},
        "average": checkpoint.average or {},
        "history": {
            "losses": _floats("history.losses", history.losses, (-1,)),
            "validations": _floats("history.validations", history.validations, (-1, 2)),
        },
    }
    for group, arrays in groups.items():
        for key, a in arrays.items():
            _array.namespace(a, f"{group}[{key!r}]")
            yield f"{group}.{_escape(key)}", a


def parts_of(state: Any) -> tuple[Array, ...]:
    """Return the arrays of a state, which is a tuple of arrays, an array or None."""
    if state is None:
        return ()
    return tuple(state) if isinstance(state, tuple | list) else (state,)


def with_parts(state: Any, parts: Iterable[Array]) -> State:
    """Return a state of the kind of `state` with other arrays."""
    if state is None:
        return None
    arrays = tuple(parts)
    return arrays if isinstance(state, tuple | list) else arrays[0]


def _name_parts(state: Any) -> dict[str, Array]:
    """Return the arrays of a state by their names in a file, which is empty for a state of one array."""
    names = map(str, range(len(state))) if isinstance(state, tuple | list) else ("",)
    return dict(zip(names, parts_of(state), strict=False))


def _floats(name: str, numbers: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Convert numbers to a float64 array."""
    try:
        return np.asarray(numbers, dtype=np.float64).reshape(shape)
    except (TypeError, ValueError) as error:
        msg = f"{name} must contain numbers: {error}"
        raise DTypeError(msg) from error


def _escape(key: str) -> str:
    """Escape the characters of `key` that a reader of safetensors files may treat as separators."""
    key = key.replace("%", "%25").replace("/", "%2F")
    return key[:-1] + "%2E" if key.endswith(".") else key or "%00"


def _unescape(key: str) -> str:
    """Undo `_escape`."""
    key = "" if key == "%00" else key
    return key.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")


def as_json(what: str, value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return `value` as JSON text; `default` converts values that JSON does not support."""
    try:
        return json.dumps(value, default=default)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{what} cannot be written as JSON: {error}"
        raise ArgumentError(msg) from error


def plain(part: Any) -> Any:
    """Convert NumPy arrays and numbers in the state of a generator to Python objects."""
    if isinstance(part, np.ndarray | np.generic):
        return part.tolist()
    msg = f"{part!r} is of type {type(part).__name__}"
    raise TypeError(msg)


_TYPES: dict[str, tuple[type, ...]] = {
    "update": (int,),
    "epoch": (int,),
    "position": (int,),
    "optimizer": (dict,),
    "rng": (dict, type(None)),
    "extra": (dict,),
    "settings": (dict,),
    "tied": (list,),
    "final": (str,),
}


def _read_rest(where: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a checkpoint, with the types checked."""
    rest = json_object(f"{where}: its metadata", metadata.get(METADATA, "{}"))
    if rest.get("format") != FORMAT:
        msg = f"{where} has the format {_short(rest.get('format'))}, not {FORMAT}"
        raise FormatError(msg)
    for name, types in _TYPES.items():
        if name not in rest:
            msg = f"{where} does not contain {name!r} of the run; the file is damaged"
            raise FormatError(msg)
        value = rest[name]
        if type(value) not in types or (type(value) is int and value < 0):
            msg = f"{where} contains {_short(value)} as {name!r} of the run; the file is damaged"
            raise FormatError(msg)
    numbers = rest["optimizer"].values()
    if not all(type(number) is int for number in numbers) or rest["final"] not in FINALS:
        msg = f"{where} contains {_short(rest['optimizer'])} and {_short(rest['final'])}; the file is damaged"
        raise FormatError(msg)
    return rest


def _model(where: str, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the saved ``model.config()``, or None."""
    return json_object(f"{where}: its model", metadata[MODEL]) if MODEL in metadata else None


def _check_groups(where: str, groups: Mapping[str, Mapping[str, Array]]) -> None:
    """Check that the file has all groups of tensors of a checkpoint, and no others."""
    unknown = groups.keys() - {"params", "optimizer", "state", "best", "average", "history"}
    missing = {"params", "history"} - groups.keys()
    if unknown or missing:
        what = f"unknown: {_short(sorted(unknown))}, missing: {sorted(missing)}"
        msg = f"{where} does not contain the tensor groups of a checkpoint; {what}"
        raise FormatError(msg)


def _restore_ties(where: str, group: str, arrays: dict[str, Any], ties: list[Any]) -> None:
    """Restore the sharing of arrays: set one array for all names in each group of `ties`."""
    for names in ties if arrays else ():
        known = isinstance(names, list) and names and all(isinstance(n, str) and n in arrays for n in names)
        if not known or any(arrays[n].tobytes() != arrays[names[0]].tobytes() for n in names):
            msg = (
                f"{where} lists {_short(names)} as names of one shared array, but {group}.* has no such array"
            )
            raise FormatError(msg)
        arrays.update(dict.fromkeys(names, arrays[names[0]]))


def _state(where: str, arrays: Mapping[str, Array] | None) -> State:
    """Return the arrays of the carried state in order."""
    if arrays is None:
        return None
    if arrays.keys() == {""}:
        return arrays[""]
    if arrays.keys() != {str(i) for i in range(len(arrays))}:
        msg = f"{where} has {_short(sorted(arrays))} as state.*, expected 0 to {len(arrays) - 1}"
        raise FormatError(msg)
    return tuple(arrays[str(i)] for i in range(len(arrays)))


def _history(where: str, arrays: Mapping[str, Any]) -> History:
    """Return losses and validations."""
    losses, validations = arrays.get("losses"), arrays.get("validations")
    if losses is None or validations is None or losses.ndim != 1 or validations.shape[1:] != (2,):
        shapes = {name: a.shape for name, a in arrays.items()}
        msg = f"{where} has {_short(shapes)} as history.*, expected losses (n,) and validations (m, 2)"
        raise FormatError(msg)
    updates = validations[:, 0]
    whole = np.isfinite(updates).all() and np.array_equal(updates, np.floor(abs(updates)))
    if losses.dtype != np.float64 or validations.dtype != np.float64 or not whole:
        msg = f"{where} has a history that is not float64, or has updates that are not integers"
        raise FormatError(msg)
    return History(losses.tolist(), [(int(update), value) for update, value in validations.tolist()])


def _short(value: Any) -> str:
    """Format the start of a value from a file in ASCII."""
    return ascii(value)[:200]
