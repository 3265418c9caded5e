"""Simple recurrent networks: the hidden units of an `RNN` recur, the output of a `JordanRNN`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xplstm import _checks, _dropout, _stack, init
from xplstm._errors import DTypeError
from xplstm._params import LSTMState, Simple
from xplstm._typing import Array, Device, Namespace
from xplstm.nn._module import DParams, Recurrent, Seed

NONLINEARITIES = ("tanh", "relu")


class _SimpleNetwork(Recurrent):
    """What both have in common: a state of one array."""

    def _set_up(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int,
        nonlinearity: str,
        *,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
    ) -> None:
        """Check what both are called with; an output of size 0 is none."""
        function = _checks.one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        self._stack = _stack.Stack(
            input_size=_checks.size("input_size", input_size),
            hidden_size=_checks.size("hidden_size", hidden_size),
            proj_size=output_size,
            bias=_checks.flag("bias", bias),
            num_layers=_checks.size("num_layers", num_layers),
            reverse=(False, True) if _checks.flag("bidirectional", bidirectional) else (False,),
            dropout=_checks.probability("dropout", dropout),
            batch_first=_checks.flag("batch_first", batch_first),
            variant=Simple(function, output=output_size > 0),
        )
        self.shapes = _stack.shapes(self._stack)

    def __call__(
        self, x: Array, h_0: Array | None = None, *, lengths: Any = None, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Run all layers over a sequence; never drops anything.

        Parameters
        ----------
        x : array, shape (T, B, I), or (B, T, I) with batch_first, or (T, I)
            Of the parameters' library, device and dtype; never written to.
        h_0 : array, shape (L*D, B, H or O), optional
            What recurs before the first step; without the B for (T, I). Zeros if left out.
        lengths, mask
            Which steps there are, as for `LSTM`.

        Returns
        -------
        y : array, shape (T, B, D*H or D*O), axes as in x
            The last layer's output, the directions side by side; exactly 0 where a row has no step.
        h_n : array, shape of h_0
            What recurs after each row's last step.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            Naming the argument, its value and the bound, before any work.
        """
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, _state(h_0), lengths, mask)
        y, state_n = _stack.forward(self._stack, call, _stack.packing(layers))
        return y, state_n.h

    def vjp(
        self,
        x: Array,
        h_0: Array | None = None,
        *,
        lengths: Any = None,
        mask: Array | None = None,
        rng: Seed = None,
        checkpoint: int | None = None,
    ) -> tuple[Array, Array, Callable[..., tuple[Array, Array, DParams]]]:
        """Run all layers and keep what the gradients need.

        Parameters
        ----------
        x, h_0, lengths, mask
            As for a call.
        rng, checkpoint
            As for `LSTM.vjp`.

        Returns
        -------
        y, h_n
            As from a call.
        pullback : callable
            ``pullback(dy=None, dh_n=None) -> dx, dh_0, dparams``, as from `LSTM.vjp`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            Naming the argument, its value and the bound, before any work.
        """
        home, layers = self._open()
        every = _checks.checkpoint(checkpoint)
        key = None if rng is None else _dropout.draw_key(_checks.rng(rng))
        call = _stack.enter(self._stack, home, x, _state(h_0), lengths, mask)
        y, state_n, pull_back = _stack.vjp(self._stack, call, layers, key, every)

        def pullback(dy: Array | None = None, dh_n: Array | None = None) -> tuple[Array, Array, DParams]:
            dx, dstate_0, dlayers = pull_back(dy, _state(dh_n, "dh_n"))
            return dx, dstate_0.h, self._by_name(dlayers)

        return y, state_n.h, pullback

    def step(self, x_t: Array, h: Array | None = None) -> tuple[Array, Array]:
        """Run one step of all layers, for streams.

        Parameters
        ----------
        x_t : array, shape (B, I) or (I,)
        h : array, optional
            What the step before returned. Zeros if left out.

        Returns
        -------
        y_t : array, shape (B, H or O) or (H or O,)
        h : array, shape (L, B, H or O) or (L, H or O)

        Raises
        ------
        ArgumentError
            With bidirectional=True: a backward direction starts at the end.
        ShapeError, DTypeError, BackendError
            As for a call.
        """
        home, layers = self._open()
        y_t, state = _stack.step(self._stack, home, x_t, _state(h, "h"), _stack.packing(layers))
        return y_t, state.h

    def trace(
        self, x: Array, h_0: Array | None = None, *, lengths: Any = None, mask: Array | None = None
    ) -> Array:
        """Every layer's and direction's hidden units at every step.

        Parameters
        ----------
        x, h_0, lengths, mask
            As for a call.

        Returns
        -------
        array, shape (L*D, T, B, H)
            T and B as in x; exactly 0 where a row has no step.
        """
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, _state(h_0), lengths, mask)
        (hidden,) = _stack.trace(self._stack, call, layers)
        return hidden


def _state(h: Array | None, name: str = "h_0") -> LSTMState | None:
    """A state whose c has no columns."""
    if h is None:
        return None
    if getattr(h, "ndim", 0) < 1:
        shown = f"a {type(h).__name__}"
        msg = f"{name} must be an array of what recurs, not {shown}: this network has no c"
        raise DTypeError(msg)
    return LSTMState(h, h[..., :0])


class RNN(_SimpleNetwork):
    """A simple recurrent network, of one or more layers and one or two directions; Elman (1990).

    ``h_t = act(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)``. Names, shapes and
    defaults are those of ``torch.nn.RNN``.

    Parameters
    ----------
    input_size, hidden_size : int
        At least 1.
    num_layers : int, default 1
    nonlinearity : {"tanh", "relu"}, default "tanh"
    bias, batch_first, dropout, bidirectional, xp, device, dtype, rng
        As for `LSTM`.

    Attributes
    ----------
    params : dict of str to array
        ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, H), ``bias_ih_l0`` (H,), ``bias_hh_l0`` (H,); ``_l1``
        and so on for layers, ``_reverse`` for the backward direction.
    shapes : dict of str to tuple
        The shape of each.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        Naming the argument, its value and the bound.

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
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: str | None = None,
        rng: Seed = None,
    ) -> None:
        self._set_up(
            *(input_size, hidden_size, 0, num_layers, nonlinearity),
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self._allocate(init.rnn_uniform(self.shapes, _checks.seed(rng)), xp, device, dtype)


class JordanRNN(_SimpleNetwork):
    """A simple recurrent network whose output recurs, not its hidden units; Jordan (1986).

    ``h_t = act(W_ih x_t + b_ih + W_hh y_(t-1) + b_hh)`` and ``y_t = W_hr h_t + b_hr``.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        At least 1.
    num_layers : int, default 1
    nonlinearity : {"tanh", "relu"}, default "tanh"
    bias, batch_first, dropout, bidirectional, xp, device, dtype, rng
        As for `LSTM`.

    Attributes
    ----------
    params : dict of str to array
        ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, O), ``bias_ih_l0`` (H,), ``bias_hh_l0`` (H,),
        ``weight_hr_l0`` (O, H), ``bias_hr_l0`` (O,).
    shapes : dict of str to tuple
        The shape of each.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        Naming the argument, its value and the bound.

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
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: str | None = None,
        rng: Seed = None,
    ) -> None:
        output_size = _checks.size("output_size", output_size)
        self._set_up(
            *(input_size, hidden_size, output_size, num_layers, nonlinearity),
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self._allocate(init.rnn_uniform(self.shapes, _checks.seed(rng)), xp, device, dtype)
