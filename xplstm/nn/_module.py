"""What every layer with parameters has: a plain dict of them, and the ways in and out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from xplstm import _array, _checks, _stack
from xplstm._checks import Home
from xplstm._stack import Layers, Stack
from xplstm._typing import Array, Device, Namespace

Seed: TypeAlias = "int | np.random.Generator | None"
Shapes = dict[str, tuple[int, ...]]
Rule = Callable[..., Mapping[str, np.ndarray]]
DParams = dict[str, Array]


class Module:
    """Parameters in a plain dict, and the ways in and out of it."""

    params: dict[str, Array]
    """Name -> array; replace values freely, shapes are checked at every call."""

    shapes: Shapes
    """Name -> shape of every parameter."""

    def _allocate(
        self,
        values: Mapping[str, np.ndarray],
        xp: str | Namespace | None,
        device: Device | None,
        dtype: str | None,
    ) -> None:
        """Bring first values to where the caller asked; float32 unless told otherwise."""
        xp = _array.resolve(xp)
        dtype = _checks.dtype("float32" if dtype is None else dtype)
        self.params = {name: _array.asarray(values[name], xp, device, dtype) for name in self.shapes}

    def _home(self) -> Home:
        """Where the parameters live, after a look at all of them."""
        _checks.mapping("params", self.params)
        if self.params.keys() != self.shapes.keys():
            _checks.names(self.params, self.shapes)
        home = _checks.home(self.params)
        _checks.parameters(self.params, self.shapes)
        return home

    def state_dict(self) -> dict[str, Array]:
        """Parameters by name.

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
        """Replace all parameters by copies, brought to where the present ones live.

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
        self, xp: str | Namespace | None = None, device: Device | None = None, dtype: str | None = None
    ) -> Any:
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

        Examples
        --------
        >>> import xplstm
        >>> xplstm.LSTM(3, 2).to(dtype="float64").params["bias_hh_l0"].dtype
        dtype('float64')
        """
        home = self._home()
        target = home.xp if xp is None else _array.resolve(xp)
        device = home.device if device is None and target is home.xp else device
        dtype = home.dtype if dtype is None else _checks.dtype(dtype)
        self.params = {name: _array.asarray(a, target, device, dtype) for name, a in self.params.items()}
        return self


class Recurrent(Module):
    """Layers over time: what `LSTM` and the simple networks have in common."""

    _stack: Stack

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._stack.arguments()}"

    def initialize(self, rule: Rule, rng: Seed = None) -> None:
        """Draw all parameters anew by a rule of `xplstm.init`.

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
        values = rule(self.shapes, _checks.seed(rng))
        _checks.state_dict(values, self.shapes, "float64")
        self._allocate(values, home.xp, home.device, home.dtype)

    def _open(self) -> tuple[Home, Layers]:
        """Where the parameters live, and they themselves by layer and direction, checked."""
        home = self._home()
        fields = _stack.params_type(self._stack)
        native = {name: _array.native(a) for name, a in self.params.items()}
        return home, tuple(
            tuple(fields(*(native.get(name) for name in names)) for names in layer)
            for layer in _stack.names(self._stack)
        )

    def _by_name(self, layers: Layers) -> DParams:
        """A dict with the keys of `params`, in their order."""
        found: DParams = {}
        for layer_names, layer in zip(_stack.names(self._stack), layers, strict=True):
            for names, arrays in zip(layer_names, layer, strict=True):
                found.update(zip(names, arrays, strict=True))
        return {name: found[name] for name in self.shapes}
