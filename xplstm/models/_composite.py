"""What every model is: layers with parameters under one roof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeAlias

from xplstm import _array, _checks
from xplstm._checks import Home
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, Namespace
from xplstm.nn import LSTM, Embedding, Linear

Params: TypeAlias = dict[str, Array]
State: TypeAlias = "LSTMState | tuple[Array, Array] | None"


class Composite:
    """A model whose parameters are those of its parts, each name with the part's before it."""

    _parts: ClassVar[tuple[str, ...]]
    """Names of the attributes that are layers with parameters."""

    @property
    def _layers(self) -> dict[str, Embedding | LSTM | Linear]:
        """The layers that have parameters, by their prefix."""
        return {part: getattr(self, part) for part in self._parts}

    @property
    def params(self) -> Params:
        """All parameters by name."""
        return prefixed({part: layer.params for part, layer in self._layers.items()})

    @params.setter
    def params(self, params: Mapping[str, Array]) -> None:
        _checks.names(params, self.shapes)
        for part, layer in self._layers.items():
            layer.params = {name: params[f"{part}.{name}"] for name in layer.shapes}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name."""
        return {f"{part}.{name}": s for part, a in self._layers.items() for name, s in a.shapes.items()}

    def state_dict(self) -> Params:
        """Parameters by name.

        Returns
        -------
        dict of str to array
            A new dict of the arrays themselves.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> len(CharLM("ab", 3, num_layers=1).state_dict())
        7
        """
        return self.params

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Replace all parameters by copies, brought to where the present ones live.

        Parameters
        ----------
        state_dict : mapping of str to array
            Every parameter's name, with its shape and dtype; arrays of any library, such as the
            ``params`` of `xplstm.training.load_checkpoint`.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            One error that lists every name, shape and dtype that is wrong.

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
        self, xp: str | Namespace | None = None, device: Device | None = None, dtype: str | None = None
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

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> CharLM("ab", 3).to(dtype="float64").params["linear.bias"].dtype
        dtype('float64')
        """
        for layer in self._layers.values():
            layer.to(xp, device, dtype)
        return self

    def _home(self) -> Home:
        """Where the parameters live."""
        return _checks.home(next(iter(self._layers.values())).params)

    def _here(self, numbers: Any) -> Array:
        """A host array, where the parameters are."""
        home = self._home()
        return _array.asarray(numbers, home.xp, home.device)


def prefixed(groups: Mapping[str, Mapping[str, Array]]) -> Params:
    """One dict of several, with names such as ``lstm.weight_ih_l0``."""
    return {f"{part}.{name}": a for part, named in groups.items() for name, a in named.items()}
