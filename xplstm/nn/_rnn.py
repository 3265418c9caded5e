"""Define `RNN`, `JordanRNN` and `GRU`, whose state is only h, and their frozen copy `FrozenRNN`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xplstm import _dispatch, _stack, _values
from xplstm._checks import Home
from xplstm._errors import DTypeError
from xplstm._problem import Explanation
from xplstm._stack import Layers, Prepare, Stack
from xplstm._state import LSTMState
from xplstm._summary import brief
from xplstm._typing import Array, Device, FloatDType, Lengths, Namespace, Nonlinearity
from xplstm.cells.gru import GRUCell
from xplstm.cells.params import Activation
from xplstm.cells.rnn import ElmanCell, JordanCell
from xplstm.kernels._stored import Storage
from xplstm.nn import _blocks
from xplstm.nn._module import DParams, Frozen, Recurrent, Seed, describe

NONLINEARITIES = ("tanh", "relu")


class _Calls:
    """Calls without gradients, shared by a network and its frozen copy."""

    _stack: Stack
    _ready: Callable[[], tuple[Home, Prepare]]
    _own_layers: Callable[[], Layers]

    def __call__(
        self,
        x: Array,
        h_0: Array | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> tuple[Array, Array]:
        """Run all layers over a sequence, without dropout.

        Parameters
        ----------
        x : array, shape (T, B, I), or (B, T, I) with batch_first, or (T, I)
            Same library, device and dtype as the parameters; not modified. For a Dask array with chunks of
            that library, the results are Dask arrays with one task per chunk: see :doc:`/guides/dask`.
        h_0 : array, shape (L*D, B, H or O), optional
            Initial state, without B for (T, I). Zeros if omitted.
        lengths, mask, reset
            Which steps are valid, and which start from zeros, as for `LSTM`.

        Returns
        -------
        y : array, shape (T, B, D*H or D*O), axes as in x
            Output of the last layer, with the directions concatenated. Exactly 0 at padded and masked steps.
        h_n : array, shape of h_0
            State after the last step of each batch entry.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            If an argument is invalid; raised before any computation.
        KernelError
            If the pinned kernel cannot run this call.
        """
        home, prepare = self._ready()
        if _blocks.takes(x, home):
            y, state_n = _blocks.forward(
                self._stack, home, self._own_layers(), x, _state(h_0), lengths, mask, reset
            )
            return y, state_n.h
        call = _stack.enter(self._stack, home, x, _state(h_0), lengths, mask, reset)
        y, state_n = _stack.forward(self._stack, call, prepare)
        return y, state_n.h

    def step(self, x_t: Array, h: Array | None = None) -> tuple[Array, Array]:
        """Run one step of all layers, for streams.

        Parameters
        ----------
        x_t : array, shape (B, I) or (I,)
            Same library, device and dtype as the parameters.
        h : array, shape (L, B, H or O) or (L, H or O), optional
            State that the previous step returned. Zeros if omitted.

        Returns
        -------
        y_t : array, shape (B, H or O) or (H or O,)
            Output of the last layer.
        h : array, shape (L, B, H or O) or (L, H or O)
            State for the next step.

        Raises
        ------
        ArgumentError
            If ``bidirectional=True`` or ``reverse=True``, because a backward direction starts at the end of
            the sequence.
        ShapeError, DTypeError, BackendError
            If an argument is invalid; raised before any computation.
        """
        home, prepare = self._ready()
        y_t, state = _stack.step(self._stack, home, x_t, _state(h, "h"), prepare)
        return y_t, state.h

    def explain(
        self,
        x: Array,
        h_0: Array | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Explanation:
        """Report which kernel would run this call, and why each faster kernel would not.

        Parameters
        ----------
        x, h_0, lengths, mask, reset
            As for a call.

        Returns
        -------
        Explanation
            The kernel of each layer, with reasons; `print` formats it as text.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError, KernelError
            As for a call.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> xplstm.GRU(3, 2, reset_after=False).explain(np.ones((5, 4, 3), dtype="float32")).kernels
        ('native',)
        """
        home, prepare = self._ready()
        if _blocks.takes(x, home):
            return _blocks.explain(self._stack, home, prepare.layers, x, lengths, mask, reset)
        call = _stack.enter(self._stack, home, x, _state(h_0), lengths, mask, reset)
        return _stack.explain(self._stack, call, prepare.layers)


class _HiddenNetwork(_Calls, Recurrent):
    """Base class of the networks whose state is one array."""

    def vjp(
        self,
        x: Array,
        h_0: Array | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
        rng: Seed = None,
        checkpoint: int | None = None,
        dx: bool = True,
    ) -> tuple[Array, Array, Callable[..., tuple[Any, Array, DParams]]]:
        """Run all layers and return a function that computes the gradients.

        Parameters
        ----------
        x, h_0, lengths, mask, reset
            As for a call.
        rng, checkpoint, dx
            As for `LSTM.vjp`.

        Returns
        -------
        y, h_n
            As returned by a call.
        pullback : callable
            ``pullback(dy=None, dh_n=None) -> dx, dh_0, dparams``, like the pullback of `LSTM.vjp`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            If an argument is invalid; raised before any computation.
        KernelError
            If the pinned kernel cannot run this call.
        """
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, _state(h_0), lengths, mask, reset)
        y, state_n, backward = _stack.vjp(self._stack, call, layers, rng, checkpoint, dx)

        def pullback(
            dy: Array | None = None, dh_n: Array | None = None
        ) -> tuple[Array | None, Array, DParams]:
            into_x, dstate_0, dlayers = backward(dy, _state(dh_n, "dh_n"))
            return into_x, dstate_0.h, self._by_name(dlayers)

        return y, state_n.h, pullback

    def freeze(self, *, weights: Storage | None = None, activations: Storage | None = None) -> FrozenRNN:
        """Return a read-only copy whose parameters are packed at most once for each kernel.

        Parameters
        ----------
        weights, activations
            As for `LSTM.freeze`.

        Returns
        -------
        FrozenRNN
            Has the same call, `step` and `explain`. Later changes of `params` do not affect the copy.

        Raises
        ------
        ArgumentError, BackendError, DTypeError
            As for `LSTM.freeze`.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> fast = xplstm.GRU(3, 2, rng=0).freeze()
        >>> y_t, h = fast.step(np.ones((4, 3), dtype="float32"))
        >>> xplstm.GRU(64, 128, rng=0).freeze(weights="int8")
        FrozenRNN(GRU(64, 128, num_layers=1, weights='int8'))
        """
        return FrozenRNN(*self._store(weights, activations))

    def _trace(
        self, x: Array, h_0: Array | None, lengths: Lengths, mask: Array | None, reset: Array | None
    ) -> tuple[Array, ...]:
        """Return the traced arrays of the cell, each (L*D, T, B, H)."""
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, _state(h_0), lengths, mask, reset)
        return _stack.trace(self._stack, call, layers)


class FrozenRNN(_Calls, Frozen):
    """Read-only `RNN`, `JordanRNN` or `GRU` with its own copy of the parameters, packed once for each kernel.

    Returned by the method ``freeze`` of these networks.
    """

    def __call__(
        self,
        x: Array,
        h_0: Array | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> tuple[Array, Array]:
        """Run all layers over a sequence, like a call of the network.

        Parameters
        ----------
        x, h_0, lengths, mask, reset
            As for a call of the network.

        Returns
        -------
        y : array
        h_n : array
            As returned by a call of the network.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError, KernelError
            As for a call of the network.
        """
        if lengths is not None or mask is not None or reset is not None:
            return super().__call__(x, h_0, lengths=lengths, mask=mask, reset=reset)
        caller = self._callers.get(_dispatch.pinned())
        results = None if caller is None else caller(x, h_0)
        if results is not None:
            return results[0], results[1].h
        result = super().__call__(x, h_0)
        self._keep_caller()
        return result

    def step(self, x_t: Array, h: Array | None = None) -> tuple[Array, Array]:
        """Run one step of all layers, like ``step`` of the network.

        Parameters
        ----------
        x_t, h
            As for ``step`` of the network.

        Returns
        -------
        y_t : array
        h : array
            As returned by ``step`` of the network.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for ``step`` of the network.
        """
        stepper = self._steppers.get(_dispatch.pinned())
        results = None if stepper is None else stepper(x_t, h)
        if results is not None:
            return results[0], results[1].h
        result = super().step(x_t, h)
        self._keep_stepper(x_t)
        return result

    def __repr__(self) -> str:
        return f"FrozenRNN({self._stack.cell.name}{self._stack.arguments()})"


def _state(h: Array | None, name: str = "h_0") -> LSTMState | None:
    """Return a state whose c has no columns."""
    if h is None:
        return None
    if getattr(h, "ndim", 0) < 1:
        shown = f"a {type(h).__name__}"
        msg = f"{name} must be an array, got {shown}; the state of this network is h, without c"
        raise DTypeError(msg)
    return LSTMState(h, h[..., :0])


def _activation(nonlinearity: Nonlinearity) -> Activation:
    """Check the nonlinearity of an RNN."""
    return Activation(_values.one_of("nonlinearity", nonlinearity, NONLINEARITIES))


class _HiddenUnits(_HiddenNetwork):
    """Base class of the RNNs, whose trace has only the hidden units."""

    def trace(
        self,
        x: Array,
        h_0: Array | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Array:
        """Return the hidden units of every layer, direction and step.

        Parameters
        ----------
        x, h_0, lengths, mask, reset
            As for a call.

        Returns
        -------
        array, shape (L*D, T, B, H)
            T and B are in the order of x. Exactly 0 at padded and masked steps.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            If an argument is invalid; raised before any computation.
        """
        (hidden,) = self._trace(x, h_0, lengths, mask, reset)
        return hidden


class RNN(_HiddenUnits):
    """Elman RNN (1990) with one or more layers and one or two directions.

    ``h_t = act(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)``. Names, shapes and
    defaults are those of ``torch.nn.RNN``.

    Parameters
    ----------
    input_size, hidden_size : int
        At least 1.
    num_layers : int, default 1
        At least 1.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        Activation of the hidden units.
    bias, batch_first, dropout, bidirectional, reverse, xp, device, dtype, rng
        As for `LSTM`.

    Attributes
    ----------
    params : dict of str to array
        ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, H), ``bias_ih_l0`` (H,), ``bias_hh_l0`` (H,). Later
        layers have the suffixes ``_l1`` and so on. The backward direction adds the suffix ``_reverse``.
    shapes : dict of str to tuple
        Shape of each parameter.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If an argument is invalid. The message names the argument, its value and the bound.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> y, h_n = xplstm.RNN(3, 2, bidirectional=True, rng=0)(np.ones((5, 4, 3), dtype="float32"))
    >>> y.shape, h_n.shape
    ((5, 4, 4), (2, 4, 2))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: Seed = None,
    ) -> None:
        stack = describe(
            ElmanCell(_activation(nonlinearity)),
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse),
        )
        self._set_up(stack, xp, device, dtype, rng)


class JordanRNN(_HiddenUnits):
    """Jordan RNN (1986), which feeds its output back instead of its hidden units.

    ``h_t = act(W_ih x_t + b_ih + W_hh y_(t-1) + b_hh)`` and ``y_t = W_hr h_t + b_hr``.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        At least 1.
    num_layers : int, default 1
        At least 1.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        Activation of the hidden units.
    bias, batch_first, dropout, bidirectional, reverse, xp, device, dtype, rng
        As for `LSTM`.

    Attributes
    ----------
    params : dict of str to array
        ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, O), ``bias_ih_l0`` (H,), ``bias_hh_l0`` (H,),
        ``weight_hr_l0`` (O, H), ``bias_hr_l0`` (O,).
    shapes : dict of str to tuple
        Shape of each parameter.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If an argument is invalid. The message names the argument, its value and the bound.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> y, y_n = xplstm.JordanRNN(3, 8, 2, rng=0)(np.ones((5, 4, 3), dtype="float32"))
    >>> y.shape, y_n.shape
    ((5, 4, 2), (1, 4, 2))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: Seed = None,
    ) -> None:
        stack = describe(
            JordanCell(_activation(nonlinearity)),
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse),
            proj_size=_values.size("output_size", output_size),
        )
        self._set_up(stack, xp, device, dtype, rng)


class GRUTrace(NamedTuple):
    """Every gate and state of every step of a `GRU`.

    Attributes
    ----------
    r, z, n, h : array, shape (L*D, T, B, H)
        Index ``layer * D + direction`` on the first axis; the time and batch axes are in the
        order of x. Exactly 0 at padded and masked steps.
    """

    r: Array
    z: Array
    n: Array
    h: Array

    def __repr__(self) -> str:
        return brief(self)


class GRU(_HiddenNetwork):
    """Gated recurrent unit (Cho et al., 2014) with one or more layers and one or two directions.

    ``r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)``, ``n = tanh(W_in x + b_in + r * (W_hn h + b_hn))``,
    ``h' = (1 - z) * n + z * h``. Names, shapes, defaults and gate order are those of ``torch.nn.GRU``.

    Parameters
    ----------
    input_size, hidden_size : int
        At least 1.
    num_layers : int, default 1
        At least 1.
    reset_after : bool, default True
        With True, the reset gate scales ``W_hn h + b_hn``, as in PyTorch and by default in Keras; ONNX calls
        this linear_before_reset. With False, the reset gate scales h before the product,
        ``W_hn (r * h) + b_hn``, as in the paper.
    bias, batch_first, dropout, bidirectional, reverse, xp, device, dtype, rng
        As for `LSTM`.

    Attributes
    ----------
    params : dict of str to array
        ``weight_ih_l0`` (3H, I), ``weight_hh_l0`` (3H, H), ``bias_ih_l0`` (3H,), ``bias_hh_l0`` (3H,), with
        the gates in the order r, z, n. Later layers have the suffixes ``_l1`` and so on. The backward
        direction adds the suffix ``_reverse``.
    shapes : dict of str to tuple
        Shape of each parameter.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If an argument is invalid. The message names the argument, its value and the bound.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> y, h_n = xplstm.GRU(3, 2, bidirectional=True, rng=0)(np.ones((5, 4, 3), dtype="float32"))
    >>> y.shape, h_n.shape
    ((5, 4, 4), (2, 4, 2))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: Seed = None,
    ) -> None:
        stack = describe(
            GRUCell(_values.flag("reset_after", reset_after)),
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse),
        )
        self._set_up(stack, xp, device, dtype, rng)

    def trace(
        self,
        x: Array,
        h_0: Array | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> GRUTrace:
        """Return every gate and state of every layer, direction and step, computed by the reference kernel.

        Parameters
        ----------
        x, h_0, lengths, mask, reset
            As for a call.

        Returns
        -------
        GRUTrace
            r, z, n and h, each (L*D, T, B, H).

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            If an argument is invalid; raised before any computation.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> xplstm.GRU(3, 2, rng=0).trace(np.ones((5, 4, 3), dtype="float32")).z.shape
        (1, 5, 4, 2)
        """
        return GRUTrace(*self._trace(x, h_0, lengths, mask, reset))
