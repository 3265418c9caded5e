"""Train one layer with explicit calls of forward, backward, update and reset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from xplstm import _array, _state, _values
from xplstm._errors import ArgumentError, DTypeError, NonFiniteError, ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.optim import Optimizer, clip_by_global_norm
from xplstm.optim._optimizer import add_tied
from xplstm.training import _judge


class Recurrent(Protocol):
    """Interface of a layer for `StatefulTrainer`, such as `xplstm.LSTM`."""

    params: dict[str, Array]

    def vjp(self, x: Array, state: Any = None, **options: Any) -> tuple[Array, Any, Callable[..., Any]]:
        """Run from `state`, and return y, the final state, and the pullback of both."""
        ...


class StatefulTrainer:
    """Train a recurrent layer with four methods: `forward`, `backward`, `update` and `reset_state`.

    Each `forward` starts from the final state of the previous one. `backward` propagates gradients through
    all `forward` calls since the last `backward`, of one or more steps each. Earlier calls get no gradient
    (truncated backpropagation through time). For data in batches use `fit`, which also has a progress bar and
    checkpoints.

    Parameters
    ----------
    lstm : LSTM
        An LSTM, or another layer with `params` and ``vjp(x, state, ...) -> y, state, pullback``.
    optimizer : Optimizer
        An optimiser of `xplstm.optim`.
    max_norm : float, optional
        Bound of the global gradient norm (`xplstm.optim.clip_by_global_norm`), above 0.

    Attributes
    ----------
    state : LSTMState or None
        Initial state of the next `forward`; None for zeros.
    grads : dict of str to array, or None
        Sum of the parameter gradients since the last `update`; None if there are none.

    Raises
    ------
    ArgumentError
        If `max_norm` is not above 0.
    DTypeError
        If `lstm` is not such a layer, or `optimizer` is not an optimiser of `xplstm.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm import optim
    >>> from xplstm.training import StatefulTrainer
    >>> trainer = StatefulTrainer(xplstm.LSTM(3, 2, rng=0), optim.Adam(0.1))
    >>> for _ in range(100):
    ...     trainer.reset_state()
    ...     for x_t in np.eye(3, dtype="float32"):
    ...         y = trainer.forward(x_t[None])
    ...     dx = trainer.backward(y - np.asarray([[0.5, -0.5]], dtype="float32"))
    ...     trainer.update()
    >>> bool(abs(y - np.asarray([[0.5, -0.5]])).max() < 0.01)
    True
    """

    def __init__(self, lstm: Recurrent, optimizer: Optimizer, *, max_norm: float | None = None) -> None:
        if not (hasattr(lstm, "vjp") and hasattr(lstm, "params")):
            msg = f"lstm={lstm!r} must have params and vjp, such as an LSTM"
            raise DTypeError(msg)
        if not isinstance(optimizer, Optimizer):
            msg = f"optimizer={optimizer!r} must be an optimiser of xplstm.optim, such as Adam(1e-3)"
            raise DTypeError(msg)
        self.lstm, self.optimizer = lstm, optimizer
        self.max_norm = None if max_norm is None else _values.above_zero("max_norm", max_norm)
        self.state: Any = None
        self.grads: dict[str, Array] | None = None
        self._pullbacks: list[Callable[..., Any]] = []

    def forward(self, x: Array, **options: Any) -> Array:
        """Run the layer from `state`, and keep the pullback for `backward`.

        Parameters
        ----------
        x : array
            Input of the layer, of one or more steps.
        **options
            Options of the layer's ``vjp``: ``lengths=``, ``mask=``, ``reset=``, ``rng=``, ``checkpoint=``.

        Returns
        -------
        array
            The output y of the layer.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call of the layer.
        """
        try:
            y, state, pullback = self.lstm.vjp(x, self.state, **options)
        except ShapeError as error:
            if self.state is None or not any(name in str(error) for name in ("h_0", "c_0", "state")):
                raise
            msg = f"x does not fit the state of the last forward: {error}; call reset_state() for zeros"
            raise ShapeError(msg) from error
        self.state = state
        self._pullbacks.append(pullback)
        return y

    def backward(self, dy: Array | Sequence[Array | None], dstate_n: Any = None) -> list[Array]:
        """Propagate gradients through every `forward` since the last `backward` or `reset_state`.

        The parameter gradients are added to `grads`.

        Parameters
        ----------
        dy : array, or list of array or None
            Gradient with respect to y of the last `forward`, or a list with one gradient for each `forward`.
        dstate_n : LSTMState, optional
            Gradient with respect to `state`; zeros if omitted.

        Returns
        -------
        list of array
            Gradients with respect to each x, in the order of the `forward` calls.

        Raises
        ------
        ArgumentError
            If there was no `forward`, or the list `dy` has the wrong length.
        """
        count = len(self._pullbacks)
        if not count:
            msg = "backward was called without a forward since the last backward or reset_state"
            raise ArgumentError(msg)
        dys = list(dy) if isinstance(dy, list | tuple) else [*[None] * (count - 1), dy]
        if len(dys) != count:
            msg = f"dy has {len(dys)} gradients, expected {count}, one for each forward"
            raise ArgumentError(msg)
        dxs: list[Array] = []
        total = self.grads
        for pullback, dy_t in zip(reversed(self._pullbacks), reversed(dys), strict=True):
            dx, dstate_n, dparams = pullback(dy_t, dstate_n)
            dxs.insert(0, dx)
            total = dparams if total is None else {name: a + dparams[name] for name, a in total.items()}
        # Add only after all pullbacks, so that an error leaves `grads` unchanged.
        self.grads, self._pullbacks = total, []
        return dxs

    def update(self) -> None:
        """Update the parameters with the sum of the gradients since the last `update`.

        Raises
        ------
        ArgumentError
            If there was no `backward`, or a `forward` has no `backward` yet, since its gradients are those
            of the current parameters.
        NonFiniteError
            If a parameter would be infinite or NaN. Nothing changes then. On a device this is not checked.
        """
        if self.grads is None:
            msg = "update was called without a backward since the last update"
            raise ArgumentError(msg)
        if self._pullbacks:
            count = len(self._pullbacks)
            msg = f"update would change the parameters of {count} forward calls without a backward; "
            msg += "call backward or reset_state first"
            raise ArgumentError(msg)
        grads = self.grads
        if self.max_norm is not None:
            grads, _ = clip_by_global_norm(add_tied(self.lstm.params, grads), self.max_norm)
        before = self.optimizer.state_dict()
        with np.errstate(all="ignore"):  # overflow is checked below
            new = self.optimizer.update(self.lstm.params, grads)
        if not any(map(_array.is_lazy, new.values())) and not _judge.are_finite(new.values()):
            self.optimizer.load_state_dict(before)
            bad = _judge.first_not_finite(self.grads) or _judge.first_not_finite(new)
            msg = f"update would make parameters infinite or NaN, first {bad!r}; nothing was changed"
            raise NonFiniteError(msg)
        self.lstm.params = new
        self.grads = None

    def reset_state(self, rows: Any = None) -> None:
        """Set the state to zeros, and discard every `forward` without a `backward`.

        Parameters
        ----------
        rows : int, integers or booleans, optional
            Batch entries whose state is reset, as for `LSTMState.reset`; all if omitted.
        """
        self._pullbacks = []
        if rows is None:
            self.state = None
        elif isinstance(self.state, tuple):
            self.state = LSTMState(*self.state).reset(rows)
        elif self.state is not None:
            self.state = _state.reset_entries("state", self.state, rows, None, self.state.ndim - 2)
