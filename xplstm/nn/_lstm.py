"""Define `LSTM`, and `FrozenLSTM`, whose weights are packed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xplstm import _checks, _dispatch, _stack, _values
from xplstm._checks import Home
from xplstm._problem import Explanation
from xplstm._stack import Layers, Prepare, Stack
from xplstm._state import LSTMState
from xplstm._summary import brief
from xplstm._typing import Array, Device, FloatDType, Lengths, Merge, Namespace, Precision
from xplstm.cells.params import Variant
from xplstm.cells.variant import lstm_cell
from xplstm.kernels._stored import Storage
from xplstm.nn import _blocks
from xplstm.nn._module import DParams, Frozen, Recurrent, Seed, describe


class LSTMTrace(NamedTuple):
    """Every gate and state of every step.

    Attributes
    ----------
    i, f, g, o, c : array, shape (L*D, T, B, H)
        Index ``layer * D + direction`` on the first axis; the time and batch axes are in the
        order of x. Exactly 0 at padded and masked steps.
    h : array, shape (L*D, T, B, H), or (L*D, T, B, P) with a projection
    """

    i: Array
    f: Array
    g: Array
    o: Array
    c: Array
    h: Array

    def __repr__(self) -> str:
        return brief(self)


class _Calls:
    """Calls without gradients, shared by `LSTM` and `FrozenLSTM`."""

    _stack: Stack
    _ready: Callable[[], tuple[Home, Prepare]]
    _own_layers: Callable[[], Layers]

    def __call__(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> tuple[Array, LSTMState]:
        """Run all layers over a sequence, without dropout.

        Parameters
        ----------
        x : array, shape (T, B, I), or (B, T, I) with batch_first, or (T, I)
            Same library, device and dtype as the parameters; not modified. For a Dask array with chunks of
            that library, the results are Dask arrays with one task per chunk: see :doc:`/guides/dask`.
        state : (h, c), optional
            h (L*D, B, H or P) and c (L*D, B, H), without B for (T, I). Zeros if omitted.
        lengths : integers, shape (B,), optional
            Number of steps of each batch entry, in [0, T], in any order. May be a list or a NumPy array with
            any backend. Values on a device and traced values are not checked, but clipped to [0, T].
        mask : boolean array, with the first two axes of x, optional
            True where a batch entry has a step. A step that is False keeps the state.
        reset : boolean array, with the first two axes of x, optional
            True where h and c of a batch entry are zeroed before a step, in every layer. The entry starts a
            new segment there; no state or gradient crosses a segment boundary. A backward direction
            starts at the end of each segment. See :doc:`/guides/resets`.

        Returns
        -------
        y : array, shape (T, B, D*H or D*P), axes as in x
            h of the last layer, with the directions concatenated or merged according to `merge`. Exactly 0 at
            padded and masked steps.
        state : LSTMState
            State after the last step of each batch entry, or the initial state of an entry without steps.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            If an argument is invalid; raised before any computation.
        KernelError
            If the pinned kernel cannot run this call, or no kernel can with ``reproducible=True``.
        """
        home, prepare = self._ready()
        if _blocks.takes(x, home):
            return _blocks.forward(self._stack, home, self._own_layers(), x, state, lengths, mask, reset)
        call = _stack.enter(self._stack, home, x, state, lengths, mask, reset)
        return _stack.forward(self._stack, call, prepare)

    def step(
        self, x_t: Array, state: LSTMState | tuple[Array, Array] | None = None
    ) -> tuple[Array, LSTMState]:
        """Run one step of all layers, for streams.

        Parameters
        ----------
        x_t : array, shape (B, I) or (I,)
            Same library, device and dtype as the parameters.
        state : (h, c), optional
            State that the previous step returned. Zeros if omitted.

        Returns
        -------
        y_t : array, shape (B, H or P) or (H or P,)
            h of the last layer.
        state : LSTMState
            State for the next step.

        Raises
        ------
        ArgumentError
            If ``bidirectional=True`` or ``reverse=True``, because a backward direction starts at the end of
            the sequence.
        ShapeError, DTypeError, BackendError
            If an argument is invalid; raised before any computation.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> lstm = xplstm.LSTM(3, 2, rng=0)
        >>> y_t, state = lstm.step(np.ones((4, 3), dtype="float32"))
        >>> y_t, state = lstm.step(np.ones((4, 3), dtype="float32"), state)
        """
        home, prepare = self._ready()
        return _stack.step(self._stack, home, x_t, state, prepare)

    def explain(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Explanation:
        """Report which kernel would run this call, and why each faster kernel would not.

        `vjp` may use another kernel, because it needs more on-chip memory on a GPU, and because other costs
        decide for layers of a few units on a CPU.

        Parameters
        ----------
        x, state, lengths, mask, reset
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
        >>> with xplstm.use_kernel("numpy_inplace"):
        ...     print(xplstm.LSTM(3, 2).explain(np.ones((5, 4, 3), dtype="float32")))
        layer 0: numpy_inplace
          not native: kernel 'numpy_inplace' is pinned
        reproducible summation order: no
        """
        home, prepare = self._ready()
        if _blocks.takes(x, home):
            return _blocks.explain(self._stack, home, prepare.layers, x, lengths, mask, reset)
        call = _stack.enter(self._stack, home, x, state, lengths, mask, reset)
        return _stack.explain(self._stack, call, prepare.layers)


class LSTM(_Calls, Recurrent):
    """Long short-term memory with one or more layers and one or two directions.

    Names, shapes and defaults are those of ``torch.nn.LSTM``. :doc:`/equations` lists
    the equations, which are those of Hochreiter and Schmidhuber (1997) with the
    forget gate of Gers, Schmidhuber and Cummins (2000) and the projection of Sak,
    Senior and Beaufays (2014).

    Parameters
    ----------
    input_size, hidden_size : int
        At least 1.
    num_layers : int, default 1
        At least 1.
    bias : bool, default True
        Whether the layers have the parameters bias_ih and bias_hh.
    batch_first : bool, default False
        x and y are (B, T, ·) instead of (T, B, ·). States are always (L*D, B, ·).
    dropout : float, default 0.0
        Probability, in [0, 1), of dropping an output between layers in `vjp`.
    bidirectional : bool, default False
        Run a forward and a backward direction in each layer.
    reverse : bool, default False
        Run the only direction from the last step of each sequence to the first. y keeps the order of x, so
        that ``y[0]`` is computed last.
    proj_size : int, default 0
        Size of h after a projection, below hidden_size; 0 for no projection.
    variant : Variant, optional
        Options that change the standard LSTM: peepholes, clips, coupled gates, other activations, layer
        normalisation, zoneout, recurrent dropout.
    merge : {"concat", "sum", "mean", "product", "none"}, default "concat"
        How each layer combines the outputs of its two directions. With "none", the last layer returns both
        outputs on a first axis of y, of length 2, and all other layers concatenate their outputs.
    input_dropout : float, default 0.0
        Probability, in [0, 1), of dropping a feature of a layer's input in `vjp`, the same features at
        every step (Gal and Ghahramani, 2016).
    weight_dropout : float, default 0.0
        Probability, in [0, 1), of dropping an element of weight_hh in `vjp` (Merity, Keskar and Socher,
        2018).
    xp : str or namespace, optional
        Array library of the parameters; see `use_backend`.
    device : device, optional
        Device of the parameters; the library's default if omitted.
    dtype : {"float32", "float64", "float16", "bfloat16"}, or a library's dtype, optional
        Dtype of the parameters; float32 if omitted.
    rng : int or numpy.random.Generator, optional
        Seed of the initialisation, which is uniform within 1 / sqrt(hidden_size) of zero. `xplstm.init` has
        other rules.
    precision : {None, "tf32"}, default None
        "tf32" allows GPU kernels to round float32 factors of matrix products to TF32 (11-bit significand).
        Sums stay in float32. Other dtypes and kernels without TF32 ignore this option.
    reproducible : bool, default False
        Run only kernels with the reproducible summation order. y and state of a batch entry then have the
        same bits in every batch, with any number of threads, on CPU and GPU. A call that no such kernel can
        run raises `KernelError`. See :doc:`/backends`. Cannot be combined with precision="tf32".

    Attributes
    ----------
    params : dict of str to array
        ``weight_ih_l0`` (4H, I), ``weight_hh_l0`` (4H, H or P), ``bias_ih_l0`` (4H,), ``bias_hh_l0`` (4H,),
        ``weight_hr_l0`` (P, H). Some variants add ``weight_ch_l0`` (3H,), ``gain_ih_l0`` (4H,),
        ``gain_hh_l0`` (4H,), ``gain_c_l0`` (H,) and ``bias_c_l0`` (H,). Later layers have the suffixes
        ``_l1`` and so on. The backward direction adds the suffix ``_reverse``.
    shapes : dict of str to tuple
        Shape of each parameter.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> lstm = xplstm.LSTM(3, 2, num_layers=2, bidirectional=True, rng=0)
    >>> x = np.ones((5, 4, 3), dtype="float32")
    >>> y, (h_n, c_n) = lstm(x)
    >>> y.shape, h_n.shape
    ((5, 4, 4), (4, 4, 2))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        proj_size: int = 0,
        variant: Variant | None = None,
        merge: Merge = "concat",
        input_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: Seed = None,
        precision: Precision | None = None,
        reproducible: bool = False,
    ) -> None:
        directions = 2 if _values.flag("bidirectional", bidirectional) else 1
        reproducible = _values.flag("reproducible", reproducible)
        stack = describe(
            lstm_cell(variant, directions),
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse),
            proj_size=_checks.projection(proj_size, _values.size("hidden_size", hidden_size)),
            merge=_checks.merge(merge, directions == 2),
            input_dropout=_values.probability("input_dropout", input_dropout),
            weight_dropout=_values.probability("weight_dropout", weight_dropout),
            precision=_checks.precision(precision, reproducible),
            reproducible=reproducible,
        )
        self._set_up(stack, xp, device, dtype, rng)

    def vjp(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
        rng: Seed = None,
        checkpoint: int | None = None,
        dx: bool = True,
    ) -> tuple[Array, LSTMState, Callable[..., tuple[Any, LSTMState, DParams]]]:
        """Run all layers and return a function that computes the gradients.

        Parameters
        ----------
        x, state, lengths, mask, reset
            As for a call.
        rng : int or numpy.random.Generator, optional
            Seed of all dropout and zoneout masks. Without it, no mask is drawn. One seed gives the same
            masks on every backend.
        checkpoint : int, optional
            At least 1. Keep one state for every `checkpoint` steps, and recompute the steps in the pullback.
            The pullback needs the memory of O(T / checkpoint + checkpoint) steps.
        dx : bool, default True
            Whether the pullback computes the gradient with respect to x. With False, the pullback returns
            None as dx. The kernel ``native`` then skips a product, and so does any kernel with `checkpoint`.

        Returns
        -------
        y, state
            As returned by a call.
        pullback : callable
            ``pullback(dy=None, dstate_n=None) -> dx, dstate_0, dparams``. The arguments are the gradients of
            a scalar with respect to y and the final state; None means zeros. The results are the gradients
            with respect to x, the initial state and the parameters, with the keys of `params`. May be called
            several times. Do not modify `params` or the arguments of `vjp` before the last call.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            If an argument is invalid; raised before any computation.
        KernelError
            If the pinned kernel cannot run this call, or no kernel can with ``reproducible=True``.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> lstm = xplstm.LSTM(3, 2, num_layers=2, dropout=0.5, rng=0)
        >>> y, state, pullback = lstm.vjp(np.ones((5, 4, 3), dtype="float32"), rng=1)
        >>> dx, dstate_0, dparams = pullback(np.ones_like(y))
        >>> dparams.keys() == lstm.params.keys()
        True
        """
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, state, lengths, mask, reset)
        y, state_n, backward = _stack.vjp(self._stack, call, layers, rng, checkpoint, dx)

        def pullback(
            dy: Array | None = None, dstate_n: LSTMState | None = None
        ) -> tuple[Array | None, LSTMState, DParams]:
            into_x, dstate_0, dlayers = backward(dy, dstate_n)
            return into_x, dstate_0, self._by_name(dlayers)

        return y, state_n, pullback

    def freeze(self, *, weights: Storage | None = None, activations: Storage | None = None) -> FrozenLSTM:
        """Return a read-only copy whose parameters are packed at most once for each kernel.

        Parameters
        ----------
        weights : {None, "bfloat16", "int8"}, default None
            Storage type of weight_ih, weight_hh and weight_hr. None keeps the dtype. The other types need
            float32 parameters on NumPy. x, y, states, biases and sums stay float32. "bfloat16" rounds each
            weight to an 8-bit significand. "int8" has one scale per row of a matrix: the row's largest
            magnitude divided by 127. See :doc:`/guides/precision`.
        activations : {None, "bfloat16", "int8"}, default None
            Type that x and h are rounded to before products; None, or equal to `weights`. With None,
            bfloat16 weights use unrounded x and h, and int8 weights use x and h in 24 bits, relative to
            the largest magnitude of a batch entry at that step. "bfloat16" rounds each number to an 8-bit
            significand, and "int8" to 8 bits relative to that magnitude. Only the kernel ``native`` supports
            `activations`.

        Returns
        -------
        FrozenLSTM
            Has the same call, `step` and `explain`. Later changes of `params` do not affect the copy.

        Raises
        ------
        ArgumentError
            If `weights` or `activations` is unknown, `activations` differs from `weights`, or
            `weights` cannot represent a weight; and for "int8" or `activations` with ``reproducible=True``.
        BackendError, DTypeError
            If `weights` is not None and the parameters are not float32 NumPy arrays.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> fast = xplstm.LSTM(3, 2, rng=0).freeze()
        >>> y_t, state = fast.step(np.ones((4, 3), dtype="float32"))
        >>> xplstm.LSTM(64, 128, rng=0).freeze(weights="int8")
        FrozenLSTM(64, 128, num_layers=1, weights='int8')
        """
        return FrozenLSTM(*self._store(weights, activations))

    def trace(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> LSTMTrace:
        """Return every gate and state of every step, layer and direction, computed by the reference kernel.

        This kernel does not use the reproducible summation order, even with ``reproducible=True``.

        Parameters
        ----------
        x, state, lengths, mask, reset
            As for a call.

        Returns
        -------
        LSTMTrace
            i, f, g, o and c have the shape (L*D, T, B, H), and h (L*D, T, B, H or P), with T and B in the
            order of x.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            If an argument is invalid; raised before any computation.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> lstm = xplstm.LSTM(3, 2, rng=0)
        >>> lstm.trace(np.ones((5, 4, 3), dtype="float32")).f.shape
        (1, 5, 4, 2)
        """
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, state, lengths, mask, reset)
        return LSTMTrace(*_stack.trace(self._stack, call, layers))


class FrozenLSTM(_Calls, Frozen):
    """Read-only LSTM with its own copy of the parameters, packed for the kernels that have run.

    Returned by `LSTM.freeze`.
    """

    def __call__(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Lengths = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> tuple[Array, LSTMState]:
        """Run all layers over a sequence, like a call of the `LSTM`.

        Parameters
        ----------
        x, state, lengths, mask, reset
            As for a call of the `LSTM`.

        Returns
        -------
        y : array
        state : LSTMState
            As returned by a call of the `LSTM`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError, KernelError
            As for a call of the `LSTM`.
        """
        if lengths is not None or mask is not None or reset is not None:
            return super().__call__(x, state, lengths=lengths, mask=mask, reset=reset)
        caller = self._callers.get(_dispatch.pinned())
        results = None if caller is None else caller(x, state)
        if results is not None:
            return results
        result = super().__call__(x, state)
        self._keep_caller()
        return result

    def step(
        self, x_t: Array, state: LSTMState | tuple[Array, Array] | None = None
    ) -> tuple[Array, LSTMState]:
        """Run one step of all layers, like `LSTM.step`.

        Parameters
        ----------
        x_t, state
            As for `LSTM.step`.

        Returns
        -------
        y_t : array
            As returned by `LSTM.step`.
        state : LSTMState
            State for the next step.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for `LSTM.step`.
        """
        stepper = self._steppers.get(_dispatch.pinned())
        results = None if stepper is None else stepper(x_t, state)
        if results is not None:
            return results
        result = super().step(x_t, state)
        self._keep_stepper(x_t)
        return result
