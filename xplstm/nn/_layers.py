"""Define the layers before and after an LSTM: `Embedding`, `Linear`, `Dropout`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xplstm import _array, _checks, _values, init
from xplstm._array import part
from xplstm._checks import Home
from xplstm._summary import Summary
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.cells import masks
from xplstm.nn import _blocks
from xplstm.nn._module import DParams, Module, Seed


class Embedding(Module):
    """A table of vectors, looked up by integer ids.

    The result equals the product of one-hot vectors and the table.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        At least 1.
    padding_idx : int, optional
        An id in [-num_embeddings, num_embeddings), whose vector is initialised to zeros and has a gradient
        of zero.
    xp, device, dtype, rng
        As for `LSTM`. The initial values are standard normal.

    Attributes
    ----------
    params : dict of str to array
        ``weight`` of shape (num_embeddings, embedding_dim).

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If an argument is invalid.

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
        padding_idx: int | None = None,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: Seed = None,
    ) -> None:
        self.num_embeddings = _values.size("num_embeddings", num_embeddings)
        self.embedding_dim = _values.size("embedding_dim", embedding_dim)
        self.padding_idx: int | None = None
        if padding_idx is not None:
            count = self.num_embeddings
            self.padding_idx = _values.size("padding_idx", padding_idx, -count, count - 1) % count
        self.shapes = {"weight": (self.num_embeddings, self.embedding_dim)}
        weight = _values.generator("rng", rng).standard_normal(self.shapes["weight"])
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0.0
        self._allocate({"weight": weight}, xp, device, dtype)

    def __repr__(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"Embedding({self.num_embeddings}, {self.embedding_dim}{padding})"

    def __call__(self, ids: Array) -> Array:
        """Look up the vectors of ids.

        Parameters
        ----------
        ids : array of integers, shape (...)
            In [0, num_embeddings). Values on a device and traced values are not checked. For a Dask array,
            the result is a Dask array, and each task checks the ids of its block.

        Returns
        -------
        array, shape (..., embedding_dim)
            Vectors in the dtype of the parameters.

        Raises
        ------
        DTypeError, BackendError, ArgumentError
            If `ids` is invalid. The message names the value and the bound.
        """
        home = self._home()
        if _blocks.takes(ids, home):
            return _blocks.lookup(self, home, ids, self.embedding_dim)
        ids = _checks.ids("ids", ids, home, self.num_embeddings)
        return _array.take_rows(self.params["weight"], ids)

    def vjp(self, ids: Array) -> tuple[Array, Callable[[Array], DParams]]:
        """Look up the vectors of ids, and return a function that computes the gradient.

        Parameters
        ----------
        ids : array of integers, shape (...)
            As for a call.

        Returns
        -------
        y : array, shape (..., embedding_dim)
        pullback : callable
            ``pullback(dy) -> dparams``, with the gradient of ``weight``. Ids have no gradient.

        Raises
        ------
        DTypeError, BackendError, ArgumentError
            As for a call.
        """
        y, home = self(ids), self._home()

        def pullback(dy: Array) -> DParams:
            dy = _checks.array("dy", dy, home, y.shape, "the shape of y")
            rows = home.xp.reshape(dy, (-1, self.embedding_dim))
            numbers = _checks.ids("ids", home.xp.reshape(ids, (-1,)), home, self.num_embeddings)
            dweight = _sum_rows(home.xp, numbers, rows, self.num_embeddings)
            if self.padding_idx is not None:
                row = home.xp.arange(self.num_embeddings, device=home.device)[:, None]
                dweight = home.xp.where(row == self.padding_idx, home.xp.zeros_like(dweight), dweight)
            return {"weight": dweight}

        return y, pullback


@part
def _sum_rows(xp: Namespace, ids: Any, rows: Array, count: int) -> Array:
    """Return an array (count, N) whose row k is the sum of the `rows` with id k, in a fixed order."""
    wide = _array.widen(rows)
    if isinstance(wide, np.ndarray):
        order = np.argsort(ids, kind="stable")
        present, starts = np.unique(ids[order], return_index=True)
        total = np.zeros((count, wide.shape[1]), dtype=wide.dtype)
        if present.size:
            total[present] = np.add.reduceat(wide[order], starts, axis=0)
    else:
        numbers = xp.arange(count, dtype=ids.dtype, device=_array.device(ids))
        total = xp.astype(numbers[:, None] == ids[None, :], wide.dtype) @ wide
    return _array.narrow(total, _array.dtype_name(rows.dtype))


class Linear(Module):
    """Apply ``y = x W^T + b`` to the last axis.

    Parameters
    ----------
    in_features, out_features : int
        At least 1.
    bias : bool, default True
        Whether the layer has the parameter bias.
    xp, device, dtype, rng
        As for `LSTM`. The initial values are uniform within 1 / sqrt(in_features) of zero.

    Attributes
    ----------
    params : dict of str to array
        ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If an argument is invalid.

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
        dtype: FloatDType | None = None,
        rng: Seed = None,
    ) -> None:
        self.in_features = _values.size("in_features", in_features)
        self.out_features = _values.size("out_features", out_features)
        self.shapes = {"weight": (self.out_features, self.in_features)}
        if _values.flag("bias", bias):
            self.shapes["bias"] = (self.out_features,)
        generator = _values.generator("rng", rng)
        values = {
            name: init.uniform(shape, self.in_features**-0.5, generator)
            for name, shape in self.shapes.items()
        }
        self._allocate(values, xp, device, dtype)

    def __repr__(self) -> str:
        options = "" if "bias" in self.shapes else ", bias=False"
        return f"Linear({self.in_features}, {self.out_features}{options})"

    def __call__(self, x: Array) -> Array:
        """Apply the layer.

        Parameters
        ----------
        x : array, shape (..., in_features)
            Same library, device and dtype as the parameters. For a Dask array, the result is a Dask array
            with one task per chunk: see :doc:`/guides/dask`.

        Returns
        -------
        array, shape (..., out_features)
            In the dtype of the parameters.

        Raises
        ------
        ShapeError, DTypeError, BackendError
            If `x` is invalid. The message names the value and the bound.
        """
        home = self._home()
        if _blocks.takes(x, home):
            return _blocks.layer(self, home, "x", x, self.in_features, self.out_features)
        home, x = self._check(x)
        params = {name: _array.native(a) for name, a in self.params.items()}
        # Flatten to one product; a batched product makes CuPy copy the weights and launch more kernels.
        rows = _array.reshape(x, (math.prod(x.shape[:-1]), self.in_features))
        y = _array.widen(rows) @ _array.widen(params["weight"]).T
        y = y + _array.widen(params["bias"]) if "bias" in params else y
        return _array.narrow(_array.reshape(y, (*x.shape[:-1], self.out_features)), home.dtype)

    def vjp(self, x: Array) -> tuple[Array, Callable[[Array], tuple[Array, DParams]]]:
        """Apply the layer, and return a function that computes the gradients.

        Parameters
        ----------
        x : array, shape (..., in_features)
            As for a call; not a Dask array.

        Returns
        -------
        y : array, shape (..., out_features)
        pullback : callable
            ``pullback(dy) -> dx, dparams``, with the shapes of x and the parameters.

        Raises
        ------
        ShapeError, DTypeError, BackendError
            As for a call.
        """
        home, x = self._check(x)
        y, xp, params = self(x), home.xp, {name: _array.native(a) for name, a in self.params.items()}

        def pullback(dy: Array) -> tuple[Array, DParams]:
            dy = _checks.array("dy", dy, home, y.shape, "the shape of y")
            rows = _array.widen(xp.reshape(dy, (-1, self.out_features)))
            dparams = {"weight": rows.T @ _array.widen(xp.reshape(x, (-1, self.in_features)))}
            if "bias" in params:
                dparams["bias"] = xp.sum(rows, axis=0)
            dx = xp.reshape(rows @ _array.widen(params["weight"]), x.shape)
            dparams = {name: _array.narrow(a, home.dtype) for name, a in dparams.items()}
            return _array.narrow(dx, home.dtype), dparams

        return y, pullback

    def _check(self, x: Array) -> tuple[Home, Array]:
        """Check the parameters and x; return their library, device and dtype, and x."""
        home = self._home()
        axes = tuple(f"n{k}" for k in range(max(0, getattr(x, "ndim", 1) - 1)))
        return home, _checks.array("x", x, home, (*axes, self.in_features), "the last axis is in_features")


class Dropout(Summary):
    """Set elements to zero at random, and scale the others by 1 / (1 - p) (Srivastava et al., 2014).

    Parameters
    ----------
    p : float
        Probability of dropping an element, in [0, 1).

    Raises
    ------
    DTypeError
        If `p` is not a number.
    ArgumentError
        If `p` is outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> y, pullback = xplstm.Dropout(0.5).vjp(np.ones(8, dtype="float32"), rng=0)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """

    p = _values.Option(_values.probability)

    def __init__(self, p: float) -> None:
        self.p = p

    def __repr__(self) -> str:
        return f"Dropout({self.p})"

    def __call__(self, x: Array) -> Array:
        """Return `x` itself, because dropout applies only in `vjp`.

        Parameters
        ----------
        x : array of floats

        Returns
        -------
        array
            `x`.

        Raises
        ------
        DTypeError
            If `x` is not an array of floats.
        """
        _checks.home({"x": x})
        return _array.native(x)

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Callable[[Array], Array]]:
        """Drop elements of x, and return a function that computes the gradient.

        Parameters
        ----------
        x : array of floats
        rng : int or numpy.random.Generator, optional
            Seed or generator of the mask. Without it, no element is dropped. One seed gives the same
            mask on every backend.

        Returns
        -------
        y : array, shape of x
        pullback : callable
            ``pullback(dy) -> dx``, with the same mask.

        Raises
        ------
        DTypeError
            If `x` is not an array of floats, or `rng` is not a seed or a generator.
        """
        home, x = _checks.home({"x": x}), _array.native(x)
        if rng is None or self.p == 0:
            return x, lambda dy: _checks.array("dy", dy, home, x.shape, "the shape of x")
        key = masks.draw_key(rng)
        between = masks.Purpose.BETWEEN_LAYERS
        mask = masks.scaled_mask(home.xp, x.shape, self.p, key, 0, home.dtype, home.device, between)
        return x * mask, lambda dy: _checks.array("dy", dy, home, x.shape, "the shape of x") * mask
