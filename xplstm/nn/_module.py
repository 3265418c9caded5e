"""Define the base classes of all layers with parameters."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from xplstm import _array, _checks, _dispatch, _stack, _values
from xplstm._checks import Home
from xplstm._dispatch import Stepper
from xplstm._errors import ArgumentError, BackendError, DTypeError, FormatError
from xplstm._stack import Layers, Packed, Prepare, Stack
from xplstm._summary import Row, Summary, shape_rows
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.cells import Cell
from xplstm.cells.params import each
from xplstm.kernels import _stored
from xplstm.kernels._stored import Storage
from xplstm.nn import _pytrees

Seed: TypeAlias = "int | np.random.Generator | None"
Shapes = dict[str, tuple[int, ...]]
Rule = Callable[..., Mapping[str, np.ndarray]]
DParams = dict[str, Array]


class Module(Summary):
    """Base class of layers: a dict of parameters, and the methods that read and replace it."""

    params: dict[str, Array]
    """Parameters by name. Values may be replaced; every call checks their shapes."""

    shapes: Shapes
    """Shape of each parameter by name."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _pytrees.add(cls, lambda _: ("params",))

    def _allocate(
        self,
        values: Mapping[str, np.ndarray],
        xp: str | Namespace | None,
        device: Device | None,
        dtype: Any,
    ) -> None:
        """Move the initial values to the requested backend, device and dtype; float32 by default."""
        xp = _array.resolve(xp)
        _pytrees.register()
        kind = _checks.dtype("float32" if dtype is None else dtype)
        self.params = {name: _array.asarray(values[name], xp, device, kind) for name in self.shapes}

    def _home(self) -> Home:
        """Check all parameters; return their library, device and dtype."""
        _checks.mapping("params", self.params)
        if self.params.keys() != self.shapes.keys():
            _checks.names(self.params, self.shapes)
        home = _checks.home(self.params)
        _checks.parameters(self.params, self.shapes)
        return home

    def _rows(self) -> list[Row]:
        return shape_rows(self.shapes)

    @property
    def nbytes(self) -> int:
        """Size of the parameters in bytes."""
        return sum(_array.nbytes(a) for a in self.params.values())

    def __sizeof__(self) -> int:
        """Return the size in bytes; Dask uses it to place and spill objects."""
        return object.__sizeof__(self) + self.nbytes

    def _duplicate(self) -> Self:
        """Return a copy of the layer with copies of its parameters."""
        owned = copy.copy(self)
        owned.params = {name: _array.copy(a) for name, a in self.params.items()}
        return owned

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by name.

        Returns
        -------
        dict of str to array
            A new dict with the same arrays, not with copies.

        Examples
        --------
        >>> import xplstm
        >>> sorted(xplstm.LSTM(3, 2).state_dict())
        ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
        """
        return dict(self.params)

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Replace all parameters with copies on the layer's backend and device.

        Parameters
        ----------
        state_dict : mapping of str to array
            All parameters by name, with the shapes and dtype of the layer. Arrays may be of any library.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            If a name, shape or dtype is wrong. One error lists all problems.

        Examples
        --------
        >>> import xplstm
        >>> a, b = xplstm.LSTM(3, 2, rng=0), xplstm.LSTM(3, 2, rng=1)
        >>> b.load_state_dict(a.state_dict())
        """
        home = self._home()
        _checks.state_dict(state_dict, self.shapes, home.dtype)
        self.params = {
            name: _array.copy(_array.native(_array.asarray(state_dict[name], home.xp, home.device)))
            for name in self.shapes
        }

    def to(
        self, xp: str | Namespace | None = None, device: Device | None = None, dtype: FloatDType | None = None
    ) -> Self:
        """Move the parameters to another backend, device or dtype, in place.

        Parameters
        ----------
        xp : str or namespace, optional
            New backend; unchanged if omitted.
        device : device, optional
            New device. If omitted, the device is unchanged, or the default device of a new backend.
        dtype : {"float64", "float32", "float16", "bfloat16"}, or a library's dtype, optional
            New dtype; unchanged if omitted.

        Returns
        -------
        self

        Raises
        ------
        BackendError
            If the backend cannot run here, or the device cannot store its arrays.
        DTypeError
            If `dtype` is none of the four dtypes.
        ArgumentError
            If a parameter has numbers outside the range of `dtype`. Values on a device are not checked.

        Examples
        --------
        >>> import xplstm
        >>> xplstm.LSTM(3, 2).to(dtype="float64").params["bias_hh_l0"].dtype
        dtype('float64')
        """
        self.params = self._convert_params(xp, device, dtype)
        return self

    def _convert_params(
        self, xp: str | Namespace | None, device: Device | None, dtype: Any, prefix: str = ""
    ) -> dict[str, Array]:
        """Return the parameters in another backend, device or dtype; errors name them with `prefix`."""
        home = self._home()
        target = home.xp if xp is None else _array.resolve(xp)
        _pytrees.register()
        device = home.device if device is None and target is home.xp else device
        kind = home.dtype if dtype is None else _checks.dtype(dtype)
        return {
            name: _checks.convert(prefix + name, a, target, device, kind) for name, a in self.params.items()
        }


def describe(
    cell: Cell,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
    reverse: bool,
    **others: Any,
) -> Stack:
    """Check the arguments that all recurrent layers share; `others` must already be checked."""
    if _values.probability("dropout", dropout) and num_layers == 1:
        msg = f"dropout={dropout} has no effect with num_layers=1, because it applies between layers"
        warnings.warn(msg, UserWarning, stacklevel=3)
    return Stack(
        input_size=_values.size("input_size", input_size),
        hidden_size=_values.size("hidden_size", hidden_size),
        num_layers=_values.size("num_layers", num_layers),
        bias=_values.flag("bias", bias),
        batch_first=_values.flag("batch_first", batch_first),
        dropout=_values.probability("dropout", dropout),
        reverse=_directions(_values.flag("bidirectional", bidirectional), _values.flag("reverse", reverse)),
        cell=cell,
        **others,
    )


def _directions(bidirectional: bool, reverse: bool) -> tuple[bool, ...]:
    """Return whether each direction runs from the last step to the first."""
    if bidirectional and reverse:
        msg = "reverse=True needs bidirectional=False; bidirectional=True includes a reverse direction"
        raise ArgumentError(msg)
    return (False, True) if bidirectional else (reverse,)


class Recurrent(Module):
    """Base class of `LSTM`, `GRU` and the RNNs."""

    _stack: Stack

    def _set_up(
        self,
        stack: Stack,
        xp: str | Namespace | None,
        device: Device | None,
        dtype: Any,
        rng: Seed,
    ) -> None:
        """Store the description and initialise the parameters."""
        self._stack, self.shapes = stack, _stack.shapes(stack)
        self._allocate(stack.cell.init(self.shapes, _values.seed("rng", rng)), xp, device, dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._stack.arguments()}"

    @property
    def input_size(self) -> int:
        """Number of features of x."""
        return self._stack.input_size

    @property
    def hidden_size(self) -> int:
        """Number of hidden units of each layer and direction."""
        return self._stack.hidden_size

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self._stack.num_layers

    @property
    def bias(self) -> bool:
        """Whether the layers have biases."""
        return self._stack.bias

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ·)."""
        return self._stack.batch_first

    @property
    def dropout(self) -> float:
        """Probability of dropping an output between layers in `vjp`."""
        return self._stack.dropout

    @property
    def bidirectional(self) -> bool:
        """Whether the layers have two directions."""
        return len(self._stack.reverse) == 2

    @property
    def reverse(self) -> bool:
        """Whether the only direction runs from the last step to the first."""
        return self._stack.reverse == (True,)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer atomically to one safetensors file; an existing file is overwritten.

        Parameters
        ----------
        path : path
            Must end in ``.safetensors``; `xplstm.io.save` writes other formats.

        Raises
        ------
        ArgumentError
            If `path` does not end in ``.safetensors``.
        OSError
            If the file cannot be written. An existing file then stays complete.

        Examples
        --------
        >>> import os, tempfile
        >>> import xplstm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "lstm.safetensors")
        ...     xplstm.LSTM(3, 2, batch_first=True).save(path)
        ...     xplstm.LSTM.load(path)
        LSTM(3, 2, num_layers=1, batch_first=True)
        """
        import xplstm

        layer: Any = self
        where = _values.path("path", path)
        if not where.lower().endswith(".safetensors"):
            msg = f"path={where!r} must end in .safetensors; xplstm.io.save writes other formats"
            raise ArgumentError(msg)
        xplstm.io.save(path, layer)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        xp: str | Namespace | None = None,
        device: Device | None = None,
    ) -> Self:
        """Read a layer of this class that `save` wrote; `xplstm.io.load` reads other formats.

        Parameters
        ----------
        path : path
            File that `save` wrote.
        xp, device : optional
            Backend and device of the parameters, as for `LSTM`.

        Returns
        -------
        layer
            Layer of this class, with the options and the dtype that were saved.

        Raises
        ------
        FormatError
            If the file is damaged or contains another class.
        OSError
            If the file cannot be read.

        Examples
        --------
        See `save`.
        """
        import xplstm

        network = xplstm.io.load_model(path, xp=xp, device=device)
        if not isinstance(network, cls):
            msg = f"{os.fspath(path)} has the class {type(network).__name__}, expected {cls.__name__}; "
            msg += "xplstm.io.load_model loads any class"
            raise FormatError(msg)
        return network

    def initialize(self, rule: Rule, rng: Seed = None) -> None:
        """Initialise all parameters by a rule of `xplstm.init`.

        Parameters
        ----------
        rule : callable
            ``rule(shapes, rng)``, which returns a dict of float64 NumPy arrays with these shapes.
        rng : int or numpy.random.Generator, optional
            A seed, a generator to draw from, or None for fresh entropy.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            If an argument is invalid, or the rule returns wrong names, shapes or dtypes.

        Examples
        --------
        >>> import xplstm
        >>> from xplstm import init
        >>> lstm = xplstm.LSTM(3, 2)
        >>> lstm.initialize(init.lstm_glorot_orthogonal, rng=0)
        """
        home = self._home()
        values = _values.function("rule", rule)(self.shapes, _values.seed("rng", rng))
        _checks.state_dict(values, self.shapes, "float64")
        self._allocate(values, home.xp, home.device, home.dtype)

    def _open(self) -> tuple[Home, Layers]:
        """Check the parameters; return their `Home`, and the parameters by layer and direction."""
        home = self._home()
        fields = self._stack.cell.Params
        native = {name: _array.native(a) for name, a in self.params.items()}
        return home, tuple(
            tuple(fields(*(native.get(name) for name in names)) for names in layer)
            for layer in _stack.names(self._stack)
        )

    def _ready(self) -> tuple[Home, Prepare]:
        """Return the `Home` of the parameters, and the parameters with their packing function."""
        home, layers = self._open()
        return home, _stack.packing(layers)

    def _own_layers(self) -> Layers:
        """Return copies of the parameters, by layer and direction."""
        return self._copy()[2]

    def _copy(self) -> tuple[Stack, Home, Layers]:
        """Return the arguments of `Frozen`."""
        home, layers = self._open()
        return self._stack, home, tuple(tuple(each(_array.copy, p) for p in layer) for layer in layers)

    def _store(self, weights: Storage | None, activations: Storage | None) -> tuple[Stack, Home, Layers]:
        """Return the arguments of `Frozen`, with the matrices in the storage type `weights`."""
        stack, home, layers = self._copy()
        if activations is not None:
            _values.one_of("activations", activations, _stored.STORAGES)
            if weights != activations:
                msg = f"activations={activations!r} needs weights={activations!r}, got weights={weights!r}"
                raise ArgumentError(msg)
        if weights is None:
            return stack, home, layers
        _check_storage(stack, home, _values.one_of("weights", weights, _stored.STORAGES), activations)
        stored = (
            tuple(_stored.store(p, weights, names) for p, names in zip(*each, strict=True))
            for each in zip(layers, _stack.names(stack), strict=True)
        )
        return stack._replace(weights=weights, activations=activations), home, tuple(stored)

    def _by_name(self, layers: Layers) -> DParams:
        """Return a dict with the keys of `params`, in their order."""
        grads: DParams = {}
        for layer_names, layer in zip(_stack.names(self._stack), layers, strict=True):
            for names, arrays in zip(layer_names, layer, strict=True):
                grads.update(zip(names, arrays, strict=True))
        return {name: grads[name] for name in self.shapes}


def _check_storage(stack: Stack, home: Home, weights: str, activations: str | None) -> None:
    """Raise an error if the parameters cannot be converted to the storage type."""
    backend = _array.backend_name(home.xp)
    if backend != "numpy":
        msg = f"weights={weights!r} needs parameters of numpy, got {backend}; move them with .to(xp='numpy')"
        raise BackendError(msg)
    if home.dtype != "float32":
        msg = f"weights={weights!r} needs float32 parameters, got {home.dtype}; call .to(dtype='float32')"
        raise DTypeError(msg)
    if stack.reproducible and (weights == "int8" or activations):
        given = f"activations={activations!r}" if activations else f"weights={weights!r}"
        msg = f"{given} cannot be combined with reproducible=True; use weights='bfloat16' without activations"
        raise ArgumentError(msg)


class Frozen(Summary, Packed):
    """Base class of the read-only layers that `freeze` returns."""

    def __init__(self, stack: Stack, home: Home | None, layers: Layers) -> None:
        super().__init__(stack, home, layers)
        # Keys are names of pinned kernels. These functions bypass the checks, which dominate small calls.
        self._steppers: dict[str | None, Stepper | None] = {}
        self._callers: dict[str | None, Stepper | None] = {}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raise an error for a missing attribute; the message refers to the layer that was frozen."""
            msg = f"{type(self).__name__} has no attribute {name!r}"
            if not name.startswith("_"):
                msg += "; it is a read-only copy, so use the layer that was frozen"
            raise AttributeError(msg, name=name, obj=self)

    def _keep_caller(self) -> None:
        """Cache the function for small calls, after a call that passed the checks."""
        pinned = _dispatch.pinned()
        if pinned not in self._callers:
            self._callers[pinned] = _stack.caller(self._stack, self._where, self._prepare)

    def _keep_stepper(self, x_t: Array) -> None:
        """Cache the function for single steps, after a step that passed the checks."""
        pinned = _dispatch.pinned()
        if pinned not in self._steppers:
            self._steppers[pinned] = _stack.stepper(self._stack, self._where, x_t, self._prepare)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._stack.arguments()}"

    def _rows(self) -> list[Row]:
        return shape_rows(_stack.shapes(self._stack))
