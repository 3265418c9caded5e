"""Save and load models as one safetensors file with parameters and options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, cast

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, FormatError, XplstmError
from xplstm._typing import Array, Device, Namespace
from xplstm.io import _load
from xplstm.io._contents import json_object, show
from xplstm.io._written import METADATA, MODEL, is_checkpoint, parse_options
from xplstm.io.files import safetensors
from xplstm.io.files._durable import write_durably
from xplstm.nn import Embedding, Linear, Recurrent

Path: TypeAlias = "str | os.PathLike[str]"


class Checkpoint(Protocol):
    """Interface of `xplstm.training.Checkpoint` that a model needs."""

    @property
    def model(self) -> Mapping[str, Any] | None:
        """Result of the model's ``config()``."""

    @property
    def final(self) -> str:
        """Name of the attribute with the parameters of the model at the end of `fit`."""


def save_model(
    path: Path,
    config: Mapping[str, Any],
    params: Mapping[str, Array],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a model atomically, with further metadata; an existing file is overwritten."""
    place = _values.path("path", path)
    if not place.lower().endswith(safetensors.SUFFIXES):
        msg = f"path={place!r} must end in {' or '.join(safetensors.SUFFIXES)}"
        raise ArgumentError(msg)
    _checks.all_finite({name: _array.to_numpy(a) for name, a in params.items()}, _load.NOT_SAVED)
    metadata = {METADATA: json.dumps(config["networks"]), MODEL: json.dumps(config), **(about or {})}
    write_durably(place, safetensors.pack(params, metadata))


def load_model(
    path: Path | Checkpoint, *, xp: str | Namespace | None = None, device: Device | None = None
) -> Any:
    """Load a model with its class, options and parameters from a file.

    Parameters
    ----------
    path : path or Checkpoint
        A safetensors file from ``save`` of a model or layer, or a checkpoint of `xplstm.training.fit`. The
        checkpoint can be a file or a result of `xplstm.training.load_checkpoint`. From a checkpoint, the
        model gets the parameters that it had at the end of `fit`, such as the best after early stopping.
    xp, device : optional
        Backend and device of the parameters, as for `xplstm.LSTM`.

    Returns
    -------
    model
        Model of the saved class, with the saved dtype.

    Raises
    ------
    FormatError
        If the file is damaged, does not describe a model, or its parts are inconsistent.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import xplstm.io
    >>> from xplstm.models import CharLM
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     CharLM("abc", 8, rng=0).save(path)
    ...     xplstm.io.load_model(path).vocab
    ('a', 'b', 'c')
    """
    import xplstm

    if isinstance(path, xplstm.training.Checkpoint):
        return _from_checkpoint("the checkpoint", path, xp, device)
    where = _values.path("path", path)
    contents = safetensors.read(where)
    about = json_object(f"{where}: its metadata", contents.metadata.get(METADATA, "{}"))
    if is_checkpoint(about):
        return _from_checkpoint(where, xplstm.training.load_checkpoint(where), xp, device)
    if MODEL not in contents.metadata:
        return _load.load(where, xp=xp, device=device)
    params = {name: tensor.array() for name, tensor in contents.tensors.items()}
    return _build(where, json_object(f"{where}: its metadata", contents.metadata[MODEL]), params, xp, device)


def _from_checkpoint(where: str, point: Checkpoint, xp: Any, device: Any) -> Any:
    """Create the model of a checkpoint, with its parameters at the end of `fit`."""
    params = getattr(point, point.final)
    if point.model is None or params is None:
        msg = f"{where} does not have the config() of its model, or the parameters {point.final!r}"
        raise FormatError(msg)
    return _build(where, point.model, params, xp, device)


def _build(where: str, config: Mapping[str, Any], params: Mapping[str, Array], xp: Any, device: Any) -> Any:
    """Create a model from its config and its parameters."""
    import xplstm

    known = {name: getattr(xplstm.models, name) for name in xplstm.models.__all__}
    kind = known.get(str(config.get("class")))
    if not hasattr(kind, "from_config"):
        name = show(str(config.get("class"))[:80])
        msg = f"{where} contains a model of class {name}, which xplstm.models does not have"
        raise FormatError(msg)
    return kind.from_config(where, config, params, xp, device)  # type: ignore[union-attr]


def make_layer(
    where: str, kind: type, params: Mapping[str, Array], options: Any, xp: Any, device: Any
) -> Any:
    """Create one layer of a model from its parameters and its `options`."""
    try:
        if issubclass(kind, Recurrent):
            # Each class except the LSTM always stores an option that only that class has.
            name = "GRU" if "reset_after" in options else "RNN" if "nonlinearity" in options else "LSTM"
            given = parse_options(where, name, options)
            network = _load.load(params, format="torch", xp=xp, device=device, **given)
            if type(network).__name__ not in (name, f"Jordan{name}"):
                msg = f"it has the parameters of {type(network).__name__}, but the options of {name}"
                raise FormatError(msg)
            return network
        _checks.all_finite(params, _load.REMEDY)
        dtype = _array.dtype_name(params["weight"].dtype)
        rows, columns = params["weight"].shape
        sizes: dict[str, Any] = {"num_embeddings": rows, "embedding_dim": columns}
        unknown = {*options} - ({"padding_idx"} if kind is Embedding else set())
        if unknown:
            msg = f"{kind.__name__} does not have the options {ascii(sorted(unknown))[:200]}"
            raise FormatError(msg)
        sizes |= options
        if kind is Linear:
            sizes = {"in_features": columns, "out_features": rows, "bias": "bias" in params}
        layer: Any = cast("Any", kind)(**sizes, xp=xp, device=device, dtype=dtype, rng=0)
        layer.load_state_dict(params)
    except (XplstmError, TypeError, ValueError, KeyError) as error:
        msg = f"{where}: the description of {kind.__name__} is invalid: {show(str(error)[:500])}"
        raise FormatError(msg) from error
    return layer
