"""Layers with parameters: `LSTM` and what stands before and after it in a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from xplstm import _array, _checks, _dropout, _stack, init
from xplstm._checks import Home
from xplstm._dispatch import Kernel
from xplstm._errors import ArgumentError
from xplstm._params import Explanation, LSTMParams, LSTMState, LSTMTrace, Problem
from xplstm._typing import Array, Device, Namespace

Seed: TypeAlias = "int | np.random.Generator | None"
Shapes = dict[str, tuple[int, ...]]
Rule = Callable[..., Mapping[str, np.ndarray]]
DParams = dict[str, Array]


class _Module:
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


class LSTM(_Module):
    """Long short-term memory, of one or more layers and one or two directions.

    Names, shapes and defaults are those of ``torch.nn.LSTM``. The equations
    stand in :doc:`/equations`: Hochreiter and Schmidhuber (1997) with the
    forget gate of Gers, Schmidhuber and Cummins (2000); projection after Sak,
    Senior and Beaufays (2014).

    Parameters
    ----------
    input_size, hidden_size : int
        At least 1.
    num_layers : int, default 1
    bias : bool, default True
        Both bias_ih and bias_hh, or neither.
    batch_first : bool, default False
        x and y are (B, T, ·) instead of (T, B, ·). States never are.
    dropout : float, default 0.0
        Probability, in [0, 1), to drop an output between layers in `vjp`.
    bidirectional : bool, default False
    proj_size : int, default 0
        Size of h after a projection, below hidden_size; 0 for none.
    xp : str or namespace, optional
        Where the parameters are made: see `use_backend`.
    device : device, optional
    dtype : {"float32", "float64", "float16", "bfloat16"}, or a library's dtype, optional
        float32 if left out.
    rng : int or numpy.random.Generator, optional
        Of the first values, uniform within 1 / sqrt(hidden_size); other rules
        stand in `xplstm.init`.

    Attributes
    ----------
    params : dict of str to array
        ``weight_ih_l0`` (4H, I), ``weight_hh_l0`` (4H, H or P), ``bias_ih_l0`` (4H,), ``bias_hh_l0`` (4H,),
        ``weight_hr_l0`` (P, H); ``_l1`` and so on for layers, ``_reverse`` for the backward direction.
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
        proj_size: int = 0,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: str | None = None,
        rng: Seed = None,
    ) -> None:
        self._stack = _stack.Stack(
            input_size=_checks.size("input_size", input_size),
            hidden_size=_checks.size("hidden_size", hidden_size),
            proj_size=_checks.projection(proj_size, hidden_size),
            bias=_checks.flag("bias", bias),
            num_layers=_checks.size("num_layers", num_layers),
            reverse=(False, True) if _checks.flag("bidirectional", bidirectional) else (False,),
            dropout=_checks.probability("dropout", dropout),
            batch_first=_checks.flag("batch_first", batch_first),
        )
        self.shapes = _stack.shapes(self._stack)
        self._allocate(init.lstm_uniform(self.shapes, _checks.seed(rng)), xp, device, dtype)

    def __repr__(self) -> str:
        return f"LSTM{self._stack.arguments()}"

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

    def __call__(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Any = None,
        mask: Array | None = None,
    ) -> tuple[Array, LSTMState]:
        """Run all layers over a sequence; never drops anything.

        Parameters
        ----------
        x : array, shape (T, B, I), or (B, T, I) with batch_first, or (T, I)
            Of the parameters' library, device and dtype; never written to.
        state : (h, c), optional
            h (L*D, B, H or P) and c (L*D, B, H), without the B for (T, I). Zeros if left out.
        lengths : integers, shape (B,), optional
            Steps of each row, in [0, T], in any order; a list or NumPy array will do on every backend.
            Values that are on a device or traced are not looked at: they act as if clipped to [0, T].
        mask : boolean array, with x's first two axes, optional
            True where a row has a step; holes are allowed and hold the state.

        Returns
        -------
        y : array, shape (T, B, D*H or D*P), axes as in x
            The last layer's h, the directions side by side; exactly 0 where a row has no step.
        state : LSTMState
            After each row's last step; the initial state for a row without steps.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            Naming the argument, its value and the bound, before any work.
        """
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, state, lengths, mask)
        return _stack.forward(self._stack, call, _packing(layers))

    def vjp(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Any = None,
        mask: Array | None = None,
        rng: Seed = None,
        checkpoint: int | None = None,
    ) -> tuple[Array, LSTMState, Callable[..., tuple[Array, LSTMState, DParams]]]:
        """Run all layers and keep what the gradients need.

        Parameters
        ----------
        x, state, lengths, mask
            As for a call.
        rng : int or numpy.random.Generator, optional
            Dropout is applied exactly when this is given. The masks are the
            same on every backend for one seed.
        checkpoint : int, optional
            Keep one state for every `checkpoint` steps and run the steps again
            in the pullback: O(T / checkpoint + checkpoint) steps of memory.

        Returns
        -------
        y, state
            As from a call.
        pullback : callable
            ``pullback(dy=None, dstate_n=None) -> dx, dstate_0, dparams``: the gradients of a scalar
            by y and by the final state in, its gradients by x, by the initial state and by the
            parameters, with the keys of `params`, out. None stands for zeros. May be called more than
            once; until the last time, do not write into what was passed to `vjp` or into `params`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            Naming the argument, its value and the bound, before any work.

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
        every = _checks.checkpoint(checkpoint)
        key = None if rng is None else _dropout.draw_key(_checks.rng(rng))
        call = _stack.enter(self._stack, home, x, state, lengths, mask)
        y, state_n, pull_back = _stack.vjp(self._stack, call, layers, key, every)

        def pullback(
            dy: Array | None = None, dstate_n: LSTMState | None = None
        ) -> tuple[Array, LSTMState, DParams]:
            dx, dstate_0, dlayers = pull_back(dy, dstate_n)
            return dx, dstate_0, self._by_name(dlayers)

        return y, state_n, pullback

    def step(
        self, x_t: Array, state: LSTMState | tuple[Array, Array] | None = None
    ) -> tuple[Array, LSTMState]:
        """Run one step of all layers, for streams.

        Parameters
        ----------
        x_t : array, shape (B, I) or (I,)
        state : (h, c), optional
            As for a call: what the step before returned. Zeros if left out.

        Returns
        -------
        y_t : array, shape (B, H or P) or (H or P,)
        state : LSTMState

        Raises
        ------
        ArgumentError
            With bidirectional=True: a backward direction starts at the end.
        ShapeError, DTypeError, BackendError
            As for a call.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> lstm = xplstm.LSTM(3, 2, rng=0)
        >>> y_t, state = lstm.step(np.ones((4, 3), dtype="float32"))
        >>> y_t, state = lstm.step(np.ones((4, 3), dtype="float32"), state)
        """
        home, layers = self._open()
        return _step(self._stack, home, x_t, state, _packing(layers))

    def freeze(self) -> FrozenLSTM:
        """Copy the parameters once and pack them at most once a kernel.

        Returns
        -------
        FrozenLSTM
            The same call, `step` and `explain`; later changes of `params` do not reach it.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> fast = xplstm.LSTM(3, 2, rng=0).freeze()
        >>> y_t, state = fast.step(np.ones((4, 3), dtype="float32"))
        """
        home, layers = self._open()
        copies = tuple(
            tuple(LSTMParams(*(None if a is None else _array.copy(a) for a in p)) for p in layer)
            for layer in layers
        )
        return FrozenLSTM(self._stack, home, copies)

    def trace(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Any = None,
        mask: Array | None = None,
    ) -> LSTMTrace:
        """Every gate and state of every step, layer and direction, by the reference kernel.

        Parameters
        ----------
        x, state, lengths, mask
            As for a call.

        Returns
        -------
        LSTMTrace
            i, f, g, o, c of shape (L*D, T, B, H) and h of (L*D, T, B, H or P); T and B as in x.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> lstm = xplstm.LSTM(3, 2, rng=0)
        >>> lstm.trace(np.ones((5, 4, 3), dtype="float32")).f.shape
        (1, 5, 4, 2)
        """
        home, layers = self._open()
        call = _stack.enter(self._stack, home, x, state, lengths, mask)
        return LSTMTrace(*_stack.trace(self._stack, call, layers))

    def explain(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Any = None,
        mask: Array | None = None,
    ) -> Explanation:
        """Say which kernel would run this call, and why not each faster one.

        Parameters
        ----------
        x, state, lengths, mask
            As for a call.

        Returns
        -------
        Explanation
            Prints as a short text.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> print(xplstm.LSTM(3, 2, dtype="float16").explain(np.ones((5, 4, 3), dtype="float16")))
        layer 0: reference
          not numpy_inplace: dtype float16 is neither float32 nor float64
        canonical sums: no
        """
        call = _stack.enter(self._stack, self._home(), x, state, lengths, mask)
        return _stack.explain(self._stack, call)

    def _open(self) -> tuple[Home, _stack.Layers]:
        """Where the parameters live, and they themselves by layer and direction, checked."""
        home = self._home()
        native = {name: _array.native(a) for name, a in self.params.items()}
        return home, tuple(
            tuple(LSTMParams(*(native.get(name) for name in names)) for names in layer)
            for layer in _stack.names(self._stack)
        )

    def _by_name(self, layers: _stack.Layers) -> DParams:
        """A dict with the keys of `params`, in their order."""
        found: DParams = {}
        for layer_names, layer in zip(_stack.names(self._stack), layers, strict=True):
            for names, arrays in zip(layer_names, layer, strict=True):
                found.update(zip(names, arrays, strict=True))
        return {name: found[name] for name in self.shapes}


class FrozenLSTM:
    """An LSTM whose parameters are its own copies, packed for the kernels that have run.

    Made by `LSTM.freeze`; read-only.
    """

    def __init__(self, stack: _stack.Stack, home: Home, layers: _stack.Layers) -> None:
        self._stack = stack
        self._where = home
        self._layers = layers
        self._packed: dict[tuple[str, int], Any] = {}

    def __repr__(self) -> str:
        return f"FrozenLSTM{self._stack.arguments()}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the array library's module, which is no value, and what can be packed again."""
        return {"_stack": self._stack, "_layers": self._layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        first = state["_layers"][0][0]
        self.__init__(state["_stack"], _checks.home(first._asdict()), state["_layers"])  # type: ignore[misc]

    def __call__(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Any = None,
        mask: Array | None = None,
    ) -> tuple[Array, LSTMState]:
        """Run all layers over a sequence, as `LSTM` does.

        Parameters
        ----------
        x, state, lengths, mask
            As for a call of `LSTM`.

        Returns
        -------
        y : array
            As from `LSTM`.
        state : LSTMState
            As from `LSTM`.
        """
        call = _stack.enter(self._stack, self._where, x, state, lengths, mask)
        return _stack.forward(self._stack, call, self._prepare)

    def step(
        self, x_t: Array, state: LSTMState | tuple[Array, Array] | None = None
    ) -> tuple[Array, LSTMState]:
        """Run one step of all layers, as `LSTM.step` does.

        Parameters
        ----------
        x_t, state
            As for `LSTM.step`.

        Returns
        -------
        y_t : array
            As from `LSTM.step`.
        state : LSTMState
            What the next step goes on from.
        """
        return _step(self._stack, self._where, x_t, state, self._prepare)

    def explain(
        self,
        x: Array,
        state: LSTMState | tuple[Array, Array] | None = None,
        *,
        lengths: Any = None,
        mask: Array | None = None,
    ) -> Explanation:
        """Say which kernel would run this call, as `LSTM.explain` does.

        Parameters
        ----------
        x, state, lengths, mask
            As for a call.

        Returns
        -------
        Explanation
            Prints as a short text.
        """
        call = _stack.enter(self._stack, self._where, x, state, lengths, mask)
        return _stack.explain(self._stack, call)

    def _prepare(self, kernel: Kernel, problem: Problem, layer: int) -> Any:
        """The layer's packed weights: safe to keep, because nobody else can write to these copies."""
        key = (kernel.name, layer)
        if key not in self._packed:
            self._packed[key] = kernel.prepare(problem, self._layers[layer])
        return self._packed[key]


def _packing(layers: _stack.Layers) -> _stack.Prepare:
    """Pack at every call: the user may have written to the parameters since the last."""
    return lambda kernel, problem, layer: kernel.prepare(problem, layers[layer])


def _step(
    stack: _stack.Stack, home: Home, x_t: Array, state: Any, prepare: _stack.Prepare
) -> tuple[Array, LSTMState]:
    """One step as a sequence of one."""
    if len(stack.reverse) == 2:
        msg = "step needs bidirectional=False: a backward direction starts at the end of the sequence"
        raise ArgumentError(msg)
    shape = (stack.input_size,) if getattr(x_t, "ndim", 2) == 1 else ("B", stack.input_size)
    x_t = _checks.array("x_t", x_t, home, shape, "the last is input_size")
    stack = stack._replace(batch_first=False)
    call = _stack.enter(stack, home, x_t[None, ...], state, None, None)
    y, state_n = _stack.forward(stack, call, prepare)
    return y[0, ...], state_n


class Embedding(_Module):
    """A table of vectors looked up by number; what a one-hot vector times a weight gives, without the zeros.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        At least 1.
    xp, device, dtype, rng
        As for `LSTM`; the first values are standard normal.

    Attributes
    ----------
    params : dict
        ``weight`` of shape (num_embeddings, embedding_dim).

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> xplstm.Embedding(10, 3, rng=0)(np.asarray([[1, 2], [9, 1]])).shape
    (2, 2, 3)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: str | None = None,
        rng: Seed = None,
    ) -> None:
        self.num_embeddings = _checks.size("num_embeddings", num_embeddings)
        self.embedding_dim = _checks.size("embedding_dim", embedding_dim)
        self.shapes = {"weight": (num_embeddings, embedding_dim)}
        weight = np.random.default_rng(_checks.seed(rng)).standard_normal(self.shapes["weight"])
        self._allocate({"weight": weight}, xp, device, dtype)

    def __call__(self, ids: Array) -> Array:
        """Look up.

        Parameters
        ----------
        ids : array of integers, shape (...)
            In [0, num_embeddings); on a device or traced they are not looked at.

        Returns
        -------
        array, shape (..., embedding_dim)

        Raises
        ------
        DTypeError, BackendError, ArgumentError
            Naming the argument, its value and the bound.
        """
        ids = _checks.ids("ids", ids, self._home(), self.num_embeddings)
        return _array.take_rows(self.params["weight"], ids)

    def vjp(self, ids: Array) -> tuple[Array, Callable[[Array], DParams]]:
        """Look up and keep what the gradient needs.

        Parameters
        ----------
        ids : array of integers, shape (...)
            As for a call.

        Returns
        -------
        y : array, shape (..., embedding_dim)
        pullback : callable
            ``pullback(dy) -> dparams``: the gradient of ``weight``; ids have none.
        """
        y = self(ids)

        def pullback(dy: Array) -> DParams:
            home = self._home()
            dy = _checks.array("dy", dy, home, y.shape, "the shape of y")
            flat = _array.widen(home.xp.reshape(dy, (-1, self.embedding_dim)))
            numbers = _checks.ids("ids", home.xp.reshape(ids, (-1,)), home, self.num_embeddings)
            return {"weight": _array.narrow(_array.sum_rows(numbers, flat, self.num_embeddings), home.dtype)}

        return y, pullback


class Linear(_Module):
    """``y = x W^T + b`` on the last axis.

    Parameters
    ----------
    in_features, out_features : int
        At least 1.
    bias : bool, default True
    xp, device, dtype, rng
        As for `LSTM`; the first values are uniform within 1 / sqrt(in_features).

    Attributes
    ----------
    params : dict
        ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> xplstm.Linear(3, 2, rng=0)(np.ones((5, 4, 3), dtype="float32")).shape
    (5, 4, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: str | None = None,
        rng: Seed = None,
    ) -> None:
        self.in_features = _checks.size("in_features", in_features)
        self.out_features = _checks.size("out_features", out_features)
        self.shapes = {"weight": (out_features, in_features)}
        if _checks.flag("bias", bias):
            self.shapes["bias"] = (out_features,)
        generator = np.random.default_rng(_checks.seed(rng))
        values = {
            name: init.uniform(shape, in_features**-0.5, generator) for name, shape in self.shapes.items()
        }
        self._allocate(values, xp, device, dtype)

    def __call__(self, x: Array) -> Array:
        """Apply.

        Parameters
        ----------
        x : array, shape (..., in_features)

        Returns
        -------
        array, shape (..., out_features)

        Raises
        ------
        ShapeError, DTypeError, BackendError
            Naming the argument, its value and the bound.
        """
        home = self._check(x)
        y = _array.widen(x) @ _array.widen(self.params["weight"]).T
        y = y + _array.widen(self.params["bias"]) if "bias" in self.params else y
        return _array.narrow(y, home.dtype)

    def vjp(self, x: Array) -> tuple[Array, Callable[[Array], tuple[Array, DParams]]]:
        """Apply and keep what the gradients need.

        Parameters
        ----------
        x : array, shape (..., in_features)

        Returns
        -------
        y : array, shape (..., out_features)
        pullback : callable
            ``pullback(dy) -> dx, dparams``.
        """
        y = self(x)

        def pullback(dy: Array) -> tuple[Array, DParams]:
            home = self._home()
            xp = home.xp
            dy = _checks.array("dy", dy, home, y.shape, "the shape of y")
            rows = _array.widen(xp.reshape(dy, (-1, self.out_features)))
            dparams = {"weight": rows.T @ _array.widen(xp.reshape(x, (-1, self.in_features)))}
            if "bias" in self.params:
                dparams["bias"] = xp.sum(rows, axis=0)
            dx = xp.reshape(rows @ _array.widen(self.params["weight"]), x.shape)
            dparams = {name: _array.narrow(a, home.dtype) for name, a in dparams.items()}
            return _array.narrow(dx, home.dtype), dparams

        return y, pullback

    def _check(self, x: Array) -> Home:
        home = self._home()
        axes = tuple(f"n{k}" for k in range(max(0, getattr(x, "ndim", 1) - 1)))
        _checks.array("x", x, home, (*axes, self.in_features), "the last is in_features")
        return home


class Dropout:
    """Zero elements at random and scale the others up; Srivastava et al. (2014).

    Parameters
    ----------
    p : float
        Probability to drop, in [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> y, pullback = xplstm.Dropout(0.5).vjp(np.ones(8, dtype="float32"), rng=0)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """

    def __init__(self, p: float) -> None:
        self.p = _checks.probability("p", p)

    def __call__(self, x: Array) -> Array:
        """Give `x` itself: nothing is dropped outside training.

        Parameters
        ----------
        x : array

        Returns
        -------
        array
            `x`.
        """
        return x

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Callable[[Array], Array]]:
        """Drop exactly when given a seed or a generator.

        Parameters
        ----------
        x : array
        rng : int or numpy.random.Generator, optional
            The mask is the same on every backend for one seed.

        Returns
        -------
        y : array, shape of x
        pullback : callable
            ``pullback(dy) -> dx``, with the same mask.
        """
        home = _checks.home({"x": x})
        if rng is None or self.p == 0:
            return x, lambda dy: _checks.array("dy", dy, home, x.shape, "the shape of x")
        key = _dropout.draw_key(_checks.rng(rng))
        mask = _dropout.scaled_mask(home.xp, x.shape, self.p, key, 0, home.dtype, home.device)
        return x * mask, lambda dy: _checks.array("dy", dy, home, x.shape, "the shape of x") * mask
