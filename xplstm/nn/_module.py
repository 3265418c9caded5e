"""What every layer with parameters has: a plain dict of them, and the methods that read and replace it."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias

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
    """Parameters in a plain dict, and the methods that read and replace it."""

    params: dict[str, Array]
    """Name -> array; replace values freely, shapes are checked at every call."""

    shapes: Shapes
    """Name -> shape of every parameter."""

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
        """Move the initial values to the backend that the caller asked for; float32 by default."""
        xp = _array.resolve(xp)
        _pytrees.register()
        kind = _checks.dtype("float32" if dtype is None else dtype)
        self.params = {name: _array.asarray(values[name], xp, device, kind) for name in self.shapes}

    def _home(self) -> Home:
        """Check all parameters and return where they live."""
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
        """Bytes of the parameters."""
        return sum(_array.nbytes(a) for a in self.params.values())

    def __sizeof__(self) -> int:
        """Return the bytes by which Dask places and spills objects."""
        return object.__sizeof__(self) + self.nbytes

    def _own(self) -> Self:
        """Return a copy whose parameters no other code can write to."""
        owned = copy.copy(self)
        owned.params = {name: _array.copy(a) for name, a in self.params.items()}
        return owned

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by name.

        Returns
        -------
        dict of str to array
            A new dict of the arrays themselves.

        Examples
        --------
        >>> import xplstm
        >>> sorted(xplstm.LSTM(3, 2).state_dict())
        ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
        """
        return dict(self.params)

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Replace all parameters by copies on the backend and device of the present ones.

        Parameters
        ----------
        state_dict : mapping of str to array
            Every parameter's name, with its shape and dtype; arrays of any library.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            One error that lists every name, shape and dtype that is wrong.

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
        """Move the parameters, in place.

        Parameters
        ----------
        xp : str or namespace, optional
            Backend to move to; the present one if left out.
        device : device, optional
            Of that backend; its default if left out and the backend changes.
        dtype : {"float64", "float32", "float16", "bfloat16"}, or a library's dtype, optional
            The present one if left out.

        Returns
        -------
        self

        Raises
        ------
        BackendError
            If the backend cannot run here.
        DTypeError
            For another dtype.
        ArgumentError
            If a parameter holds numbers beyond the range of `dtype`, where they are at hand without waiting.

        Examples
        --------
        >>> import xplstm
        >>> xplstm.LSTM(3, 2).to(dtype="float64").params["bias_hh_l0"].dtype
        dtype('float64')
        """
        home = self._home()
        target = home.xp if xp is None else _array.resolve(xp)
        _pytrees.register()
        device = home.device if device is None and target is home.xp else device
        kind = home.dtype if dtype is None else _checks.dtype(dtype)
        self.params = {
            name: _checks.narrowed(name, a, target, device, kind) for name, a in self.params.items()
        }
        return self


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
    """Check what every recurrent layer is called with; `others` are checked already."""
    if _values.probability("dropout", dropout) and num_layers == 1:
        msg = f"dropout={dropout} has no effect: it acts between layers, and num_layers is 1"
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
        msg = "reverse=True needs bidirectional=False: two directions include the reverse one"
        raise ArgumentError(msg)
    return (False, True) if bidirectional else (reverse,)


class Recurrent(Module):
    """Layers over time: what `LSTM`, `GRU` and the RNNs have in common."""

    _stack: Stack

    def _set_up(
        self,
        stack: Stack,
        xp: str | Namespace | None,
        device: Device | None,
        dtype: Any,
        rng: Seed,
    ) -> None:
        """Keep the description and make the parameters."""
        self._stack, self.shapes = stack, _stack.shapes(stack)
        self._allocate(stack.cell.init(self.shapes, _values.seed("rng", rng)), xp, device, dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._stack.arguments()}"

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self._stack.input_size

    @property
    def hidden_size(self) -> int:
        """Hidden units of each layer and direction."""
        return self._stack.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers."""
        return self._stack.num_layers

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self._stack.bias

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ·)."""
        return self._stack.batch_first

    @property
    def dropout(self) -> float:
        """Probability to drop an output between layers in `vjp`."""
        return self._stack.dropout

    @property
    def bidirectional(self) -> bool:
        """Whether there are two directions."""
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
            Ends in ``.safetensors``; `xplstm.io.save` writes other formats.

        Raises
        ------
        ArgumentError
            For another ending.
        OSError
            If the file cannot be written; the old one is then still complete.

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
        xp, device : optional
            Backend and device of the parameters, as for `LSTM`.

        Returns
        -------
        layer
            Of this class, with all its options, in the dtype that was saved.

        Raises
        ------
        FormatError
            If the file is damaged or holds another class.
        OSError
            If the file cannot be read.

        Examples
        --------
        See `save`.
        """
        import xplstm

        found = xplstm.io.load_model(path, xp=xp, device=device)
        if not isinstance(found, cls):
            msg = f"{os.fspath(path)} holds a {type(found).__name__}, not a {cls.__name__}"
            raise FormatError(msg)
        return found

    def initialize(self, rule: Rule, rng: Seed = None) -> None:
        """Initialise all parameters by a rule of `xplstm.init`.

        Parameters
        ----------
        rule : callable
            ``rule(shapes, rng)`` -> dict of float64 NumPy arrays.
        rng : int or numpy.random.Generator, optional

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
        """Return where the parameters live, and the parameters by layer and direction, checked."""
        home = self._home()
        fields = self._stack.cell.Params
        native = {name: _array.native(a) for name, a in self.params.items()}
        return home, tuple(
            tuple(fields(*(native.get(name) for name in names)) for names in layer)
            for layer in _stack.names(self._stack)
        )

    def _ready(self) -> tuple[Home, Prepare]:
        """Return what a call needs: where the parameters live, and how each layer's are packed."""
        home, layers = self._open()
        return home, _stack.packing(layers)

    def _own_layers(self) -> Layers:
        """Return copies of the parameters that later changes do not reach."""
        return self._copied()[2]

    def _copied(self) -> tuple[Stack, Home, Layers]:
        """Return what `Frozen` is made of."""
        home, layers = self._open()
        return self._stack, home, tuple(tuple(each(_array.copy, p) for p in layer) for layer in layers)

    def _stored(self, weights: Storage | None, activations: Storage | None) -> tuple[Stack, Home, Layers]:
        """Return what `Frozen` is made of, with the matrices in `weights` where it is not None."""
        stack, home, layers = self._copied()
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
        found: DParams = {}
        for layer_names, layer in zip(_stack.names(self._stack), layers, strict=True):
            for names, arrays in zip(layer_names, layer, strict=True):
                found.update(zip(names, arrays, strict=True))
        return {name: found[name] for name in self.shapes}


def _check_storage(stack: Stack, home: Home, weights: str, activations: str | None) -> None:
    """Raise an error where the parameters cannot be stored in fewer bits."""
    backend = _array.backend_name(home.xp)
    if backend != "numpy":
        msg = f"weights={weights!r} needs parameters of numpy, got {backend}; move them with .to(xp='numpy')"
        raise BackendError(msg)
    if home.dtype != "float32":
        msg = f"weights={weights!r} needs float32 parameters, got {home.dtype}; .to(dtype='float32') converts"
        raise DTypeError(msg)
    if stack.reproducible and (weights == "int8" or activations):
        given = f"activations={activations!r}" if activations else f"weights={weights!r}"
        msg = f"{given} lacks the summation order that reproducible=True requires; bfloat16 weights have it"
        raise ArgumentError(msg)


class Frozen(Summary, Packed):
    """Layers over time that `freeze` has copied and packed."""

    def __init__(self, stack: Stack, home: Home | None, layers: Layers) -> None:
        super().__init__(stack, home, layers)
        # One for each pinned kernel. The checks of a small step or call take much longer than its work.
        self._steppers: dict[str | None, Stepper | None] = {}
        self._callers: dict[str | None, Stepper | None] = {}

    def _keep_caller(self) -> None:
        """Keep the function for small calls, after a call that passed the checks."""
        pinned = _dispatch.pinned()
        if pinned not in self._callers:
            self._callers[pinned] = _stack.caller(self._stack, self._where, self._prepare)

    def _keep_stepper(self, x_t: Array) -> None:
        """Keep the function for single steps, after one that passed the checks."""
        pinned = _dispatch.pinned()
        if pinned not in self._steppers:
            self._steppers[pinned] = _stack.stepper(self._stack, self._where, x_t, self._prepare)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._stack.arguments()}"

    def _rows(self) -> list[Row]:
        return shape_rows(_stack.shapes(self._stack))
