"""Clipping of gradients by their global norm."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np

from xplstm import _array, _values
from xplstm._array import part
from xplstm._errors import ArgumentError, DTypeError, NonFiniteError
from xplstm._typing import Array, Namespace, Params

# Keeps a norm of finite numbers finite, and is exact.
SHIFT = 2.0**-64


def clip_by_global_norm(
    grads: Params, max_norm: float, *, error_if_nonfinite: bool = False
) -> tuple[dict[str, Array], Array]:
    """Scale all gradients together so that their common Euclidean norm is at most `max_norm`.

    ``g * max_norm / max(norm, max_norm)``: Pascanu, Mikolov and Bengio, "On the
    difficulty of training recurrent neural networks", 2013, section 3.2. The
    decision is made by arithmetic, where the arrays are; nothing waits for a device.

    Parameters
    ----------
    grads : mapping of str to array
        At least one, all of floats; float16 and bfloat16 are squared and summed in float32.
    max_norm : float
        Greater than 0. Infinity leaves the gradients as they are and measures their norm.
    error_if_nonfinite : bool, optional
        Raise if the norm is infinite or NaN. This reads the norm, and so waits for a device.

    Returns
    -------
    clipped : dict of str to array
        In the dtypes of `grads`; equal to them where the norm is small enough.
    norm : array, shape ()
        The norm before clipping; infinite where a gradient is, or where the dtype cannot hold it.

    Raises
    ------
    ArgumentError
        If `max_norm` is not greater than 0, or is 0 in the dtype of the sums, or there are no gradients.
    DTypeError
        If a gradient is not of floats.
    NonFiniteError
        If the norm is infinite or NaN and `error_if_nonfinite` asks for an error.

    Notes
    -----
    Without `error_if_nonfinite` an infinite gradient makes every finite number 0 and every infinite one
    NaN, and a NaN makes all of them NaN, as in ``torch.nn.utils.clip_grad_norm_``.

    Where `xplstm.use_kernel` lets CUDA kernels run, three launches do this for up to 32 of CuPy's arrays; the
    order of their sums depends on the sizes of the arrays alone.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim
    >>> clipped, norm = optim.clip_by_global_norm({"a": np.asarray([3.0]), "b": np.asarray([4.0])}, 0.5)
    >>> clipped, float(norm)
    ({'a': array([0.3]), 'b': array([0.4])}, 5.0)
    """
    bound = _values.above_zero("max_norm", max_norm)
    error_if_nonfinite = _values.flag("error_if_nonfinite", error_if_nonfinite)
    if not _values.mapping("grads", grads):
        msg = "grads is empty; it must hold at least one array"
        raise ArgumentError(msg)
    arrays = {name: float_array(f"grads[{name!r}]", g) for name, g in grads.items()}
    xp = _array.namespace(next(iter(arrays.values())), "grads")
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        clipped, norm = _clipped(xp, arrays, _representable(xp, bound, arrays))
    if error_if_nonfinite and not math.isfinite(float(norm)):
        msg = f"the norm of the gradients is {float(norm)}; a finite norm was expected"
        raise NonFiniteError(msg)
    return clipped, norm


def float_array(name: str, a: Array) -> Array:
    """Return `a`, an array of floats that is no subclass of NumPy's."""
    _array.namespace(a, name)
    if _array.dtype_name(a.dtype) not in _array.FLOATS:
        msg = f"{name} has dtype {_array.dtype_name(a.dtype)}; it must be one of {', '.join(_array.FLOATS)}"
        raise DTypeError(msg)
    return _array.native(a)


@part
def _clipped(xp: Namespace, grads: Params, bound: float) -> tuple[dict[str, Array], Array]:
    """Return clipped gradients, and their norm before."""
    names = {name: _array.namespace(g, name) for name, g in grads.items()}
    wide = {
        name: xp.astype(grads[name], _array.wide_dtype(xp, grads[name].dtype), copy=False)
        for name, xp in names.items()
    }
    largest, scale, root = _norm_parts(xp, list(wide.values()))
    norm = scale * root
    one = xp.ones_like(norm)
    limit = xp.full_like(norm, bound)
    fits = norm <= limit
    overflows = xp.isinf(norm) & xp.isfinite(largest) & ~fits
    shift = xp.where(overflows, SHIFT * one, one)
    factor = xp.where(fits, one, limit / (scale * shift * root))
    clipped = {name: xp.astype(g * shift * factor, grads[name].dtype, copy=False) for name, g in wide.items()}
    return clipped, norm


def _representable(xp: Namespace, bound: float, grads: Params) -> float:
    """Return `bound`, or infinity where the sums cannot hold it; refuse one that they take for 0."""
    wide = any(_array.dtype_name(g.dtype) == "float64" for g in grads.values())
    limits = xp.finfo(xp.float64 if wide else xp.float32)
    if bound < float(limits.smallest_normal):
        msg = f"max_norm={bound} is below {float(limits.smallest_normal)}, the least bound for this dtype"
        raise ArgumentError(msg)
    return bound if bound <= float(limits.max) else math.inf


def _norm_parts(xp: Namespace, arrays: list[Array]) -> tuple[Array, Array, Array]:
    """Return the largest magnitude, a scale, and the norm over that scale, so that no square overflows."""
    full = [a for a in arrays if 0 not in a.shape]
    if not full:
        zero = xp.sum(arrays[0])
        return zero, xp.ones_like(zero), zero
    largest = functools.reduce(xp.maximum, (xp.max(xp.abs(a)) for a in full))
    usable = (largest > 0) & xp.isfinite(largest)
    # XLA divides by way of the reciprocal, which it rounds to 0 where the divisor is close to the bound.
    highest = xp.full_like(largest, 2.0**120 if largest.dtype == xp.float32 else 2.0**1016)
    scale = xp.where(usable, xp.minimum(largest, highest), xp.ones_like(largest))
    squares = functools.reduce(operator.add, (xp.sum((a / scale) ** 2) for a in full))
    return largest, scale, xp.sqrt(squares)
