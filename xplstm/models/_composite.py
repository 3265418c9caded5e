"""Base class of the models: layers and their parameters as one object."""

from __future__ import annotations

import copy
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from xplstm import _array, _checks, _values
from xplstm._checks import Home
from xplstm._errors import ArgumentError, FormatError, XplstmError
from xplstm._state import LSTMState
from xplstm._summary import Row, Summary
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.io._contents import show
from xplstm.io._models import load_model, make_layer, save_model
from xplstm.io._written import changed_options
from xplstm.nn import LSTM, Embedding, Linear, Recurrent, _pytrees

if TYPE_CHECKING:
    from xplstm.training import Checkpoint

Params: TypeAlias = dict[str, Array]
State: TypeAlias = "LSTMState | tuple[Array, Array] | None"


class Composite(Summary, ABC):
    """A model whose parameters are those of its parts, with the name of the part as prefix."""

    _parts: ClassVar[Mapping[str, type]]
    """Attributes that are layers with parameters, and their classes."""

    _optional: ClassVar[frozenset[str]] = frozenset()
    """Parts that may be absent; the attribute is then None."""

    # Batch axis of inputs and targets with two or more axes. `Shards` must have the same.
    batch_axis: ClassVar[int] = 1

    _columns = ("part", "layer", "parameters")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _pytrees.add(cls, lambda model: tuple(model._layers))

    _set_options: Callable[..., None]
    """Check and store the options of the model itself, which are its arguments."""

    @property
    def targets_axis(self) -> int:
        """Batch axis of targets with two or more axes, for `Shards` and `Samples`."""
        return self.batch_axis

    @property
    def _layers(self) -> dict[str, Embedding | LSTM | Linear]:
        """Return the layers with parameters, by prefix."""
        layers = {part: getattr(self, part) for part in self._parts}
        return {part: layer for part, layer in layers.items() if layer is not None}

    @property
    def params(self) -> Params:
        """All parameters by name."""
        return join_prefixed({part: layer.params for part, layer in self._layers.items()})

    @params.setter
    def params(self, params: Mapping[str, Array]) -> None:
        _checks.mapping("params", params)
        _checks.names(params, self.shapes)
        for part, layer in self._layers.items():
            layer.params = {name: params[f"{part}.{name}"] for name in layer.shapes}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by name."""
        return {f"{part}.{name}": s for part, a in self._layers.items() for name, s in a.shapes.items()}

    def _network(self, part: str, *, causal: bool = True) -> LSTM:
        """Return a recurrent part, which users may replace, checked to be time-major.

        A `causal` part must not read later steps.
        """
        layer: Any = getattr(self, part)
        if layer.batch_first or (causal and (layer.bidirectional or layer.reverse)):
            needed = "one direction, reverse=False and batch_first=False" if causal else "batch_first=False"
            msg = f"{part}={layer!r} must have {needed}"
            raise ArgumentError(msg)
        return layer

    def _duplicate(self) -> Self:
        """Return a copy with copied parameters."""
        owned = copy.copy(self)
        for part, layer in self._layers.items():
            setattr(owned, part, layer._duplicate())
        return owned

    def count(self, inputs: Any, targets: Any) -> int:
        """Return the number of elements over which the loss of a batch is averaged.

        `xplstm.training.Shards` weights the parts of a batch by this number.

        Parameters
        ----------
        inputs, targets : object
            A batch, as for ``loss_vjp``.

        Returns
        -------
        int
            At least 0.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster, Ragged
        >>> x = np.ones((4, 2, 1), dtype="float32")
        >>> Forecaster(1, 3, rng=0).count(Ragged(x, [4, 1]), x)
        5
        """
        return self._count(inputs, targets)

    @abstractmethod
    def _count(self, inputs: Any, targets: Any) -> int:
        """Return the number of elements over which the loss of a batch is averaged."""

    def state_dict(self) -> Params:
        """Return all parameters by name.

        Returns
        -------
        dict of str to array
            A new dict. The arrays are not copied.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> len(CharLM("ab", 3, num_layers=1).state_dict())
        7
        """
        return self.params

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Replace all parameters with copies on the device of the current parameters.

        Parameters
        ----------
        state_dict : mapping of str to array
            All parameters by name, each with the shape and dtype of the current parameter. The arrays may be
            of any library, such as the ``params`` of `xplstm.training.load_checkpoint`.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            If names, shapes or dtypes differ. The message lists all differences.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> a, b = CharLM("ab", 3, rng=0), CharLM("ab", 3, rng=1)
        >>> b.load_state_dict(a.state_dict())
        """
        _checks.state_dict(state_dict, self.shapes, self._home().dtype)
        for part, layer in self._layers.items():
            layer.load_state_dict({name: state_dict[f"{part}.{name}"] for name in layer.shapes})

    def to(
        self, xp: str | Namespace | None = None, device: Device | None = None, dtype: FloatDType | None = None
    ) -> Self:
        """Move or convert the parameters in place.

        Parameters
        ----------
        xp : str or namespace, optional
            Backend to move to; the current backend if omitted.
        device : device, optional
            Device of that backend. If omitted, the current device, or the default device of a new backend.
        dtype : {"float64", "float32", "float16", "bfloat16"}, or a library's dtype, optional
            Dtype to convert to; the current dtype if omitted.

        Returns
        -------
        self

        Raises
        ------
        BackendError
            If the backend is not available.
        DTypeError
            If the dtype is not one of these.
        ArgumentError
            If a parameter has numbers outside the range of `dtype`; no parameter changes then. Values on a
            device are not checked.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> CharLM("ab", 3).to(dtype="float64").params["linear.bias"].dtype
        dtype('float64')
        """
        layers = self._layers
        # Convert all layers before one changes, so that an error leaves the model as it was.
        converted = {
            part: layer._convert_params(xp, device, dtype, f"{part}.") for part, layer in layers.items()
        }
        for part, layer in layers.items():
            layer.params = converted[part]
        return self

    def config(self) -> dict[str, Any]:
        """Return the options of the model as a JSON object, without parameters.

        Returns
        -------
        dict
            ``class`` is the name of the class, ``options`` has the options of the model, and ``networks`` has
            the options of each recurrent layer and embedding. Sizes follow from the parameters.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> CharLM("ab", 3, dropout=0.5).config()["options"]
        {'vocab': ['a', 'b'], 'dropout': 0.5}
        """
        networks = {}
        for name, layer in self._layers.items():
            if isinstance(layer, Recurrent):
                networks[name] = changed_options(layer)
            elif isinstance(layer, Embedding) and layer.padding_idx is not None:
                networks[name] = {"padding_idx": layer.padding_idx}
        return {"class": type(self).__name__, "options": self._options(), "networks": networks}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically to one file; an existing file is overwritten.

        Parameters
        ----------
        path : path
            File name that ends in ``.safetensors``, in an existing folder.

        Raises
        ------
        ArgumentError
            If `path` does not end in ``.safetensors``.
        OSError
            If the file cannot be written. An existing file is then unchanged.

        Examples
        --------
        >>> import os, tempfile
        >>> from xplstm.models import CharLM
        >>> model = CharLM("ab", 3, rng=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     model.save(path)
        ...     again = CharLM.load(path)
        >>> again.generate("ab", 5, rng=1) == model.generate("ab", 5, rng=1)
        True
        """
        save_model(path, self.config(), self.params)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Checkpoint,
        *,
        xp: str | Namespace | None = None,
        device: Device | None = None,
    ) -> Self:
        """Load a model of this class from a file of `save` or a checkpoint of `xplstm.training.fit`.

        Parameters
        ----------
        path : path or Checkpoint
            File or checkpoint. From a checkpoint, the model gets the parameters that it had at the end of
            `fit`, such as the best parameters after early stopping.
        xp, device : optional
            Backend and device of the parameters, as for `xplstm.LSTM`.

        Returns
        -------
        model
            Model of this class, with the saved dtype.

        Raises
        ------
        FormatError
            If the file is damaged, contains a model of another class, or its parts are inconsistent.
        OSError
            If the file cannot be read.

        Examples
        --------
        See `save`.
        """
        model = load_model(path, xp=xp, device=device)
        if not isinstance(model, cls):
            where = os.fspath(path) if isinstance(path, str | os.PathLike) else "the checkpoint"
            msg = f"{where} has the class {type(model).__name__}, expected {cls.__name__}; "
            msg += "xplstm.io.load_model loads any class"
            raise FormatError(msg)
        return model

    @classmethod
    def from_config(
        cls,
        where: str,
        config: Mapping[str, Any],
        params: Mapping[str, Array],
        xp: str | Namespace | None = None,
        device: Device | None = None,
    ) -> Self:
        """Create a model from the result of `config` and its parameters.

        Parameters
        ----------
        where : str
            Name of the source, for error messages.
        config : mapping
            Result of `config`.
        params : mapping of str to array
            All parameters by name.
        xp, device : optional
            Backend and device of the parameters, as for `xplstm.LSTM`.

        Returns
        -------
        model

        Raises
        ------
        FormatError
            If the options or the parameters do not fit this class.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> model = CharLM("ab", 3, rng=0)
        >>> CharLM.from_config("here", model.config(), model.params).vocab
        ('a', 'b')
        """
        options, networks = config.get("options"), config.get("networks")
        if not isinstance(options, dict) or not isinstance(networks, dict):
            msg = f"{where}: the config of a {cls.__name__} must have the objects options and networks"
            raise FormatError(msg)
        model = cls.__new__(cls)
        for part, kind in cls._parts.items():
            own = {n.removeprefix(f"{part}."): a for n, a in params.items() if n.startswith(f"{part}.")}
            if not own and part in cls._optional:
                setattr(model, part, None)
                continue
            setattr(model, part, make_layer(where, kind, own, networks.get(part, {}), xp, device))
        try:
            model._set_options(**options)
        except (XplstmError, TypeError, ValueError, OverflowError) as error:
            msg = f"{where}: options of {cls.__name__}: {show(str(error)[:500])}"
            raise FormatError(msg) from error
        given = {name: tuple(a.shape) for name, a in params.items()}
        wanted = model.shapes | {f"{part}.weight": shape for part, shape in model._fitting().items()}
        if given != wanted:
            wrong = sorted(name for name in {**given, **wanted} if given.get(name) != wanted.get(name))
            first = wrong[0]
            msg = (
                f"{where}: {show(first)} has shape {given.get(first)}, expected {wanted.get(first)}; "
                f"{len(wrong)} parameters of the {cls.__name__} do not fit"
            )
            raise FormatError(msg)
        return model

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Return the options of the model itself."""

    @abstractmethod
    def _fitting(self) -> dict[str, tuple[int, int]]:
        """Return the expected weight shape of each part that is not recurrent."""

    def _rows(self) -> list[Row]:
        return [(name, repr(layer), layer.num_parameters) for name, layer in self._layers.items()]

    def __repr__(self) -> str:
        known = inspect.signature(type(self)).parameters
        options = {n: v for n, v in self._options().items() if n not in known or v != known[n].default}
        parts = [f"{name}={part!r}" for name, part in {**self._layers, **options}.items()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _home(self) -> Home:
        """Return the library, device and dtype of the parameters."""
        return _checks.home(next(iter(self._layers.values())).params)

    def _to_device(self, numbers: Any) -> Array:
        """Move a host array to the device of the parameters."""
        home = self._home()
        return _array.asarray(numbers, home.xp, home.device)


def join_prefixed(groups: Mapping[str, Mapping[str, Array]]) -> Params:
    """Join several dicts into one, with names such as ``lstm.weight_ih_l0``."""
    return {f"{part}.{name}": a for part, named in groups.items() for name, a in named.items()}


def hidden(state: Any) -> Array:
    """Return h of the state of an LSTM, or the state of a network that has only h."""
    return state.h if isinstance(state, LSTMState) else state


def between_layers(num_layers: int, dropout: float) -> float:
    """Return the dropout between layers, 0 for one layer; the model applies dropout to the last output."""
    return 0.0 if _values.size("num_layers", num_layers) == 1 else dropout
