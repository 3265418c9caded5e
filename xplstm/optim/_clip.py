"""Clip gradients by their global norm."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np

from xplstm import _array, _values
from xplstm._array import part
from xplstm._errors import ArgumentError, NonFiniteError
from xplstm._typing import Array, Namespace, Params

# A power of two that keeps the scaled norm of finite numbers finite. Its products are exact.
SHIFT = 2.0**-64


def clip_by_global_norm(
    grads: Params, max_norm: float, *, error_if_nonfinite: bool = False
) -> tuple[dict[str, Array], Array]:
    """Scale all gradients with one factor so that their global Euclidean norm is at most `max_norm`.

    A gradient becomes ``g * max_norm / max(norm, max_norm)`` (Pascanu, Mikolov and
    Bengio, "On the difficulty of training recurrent neural networks", 2013, section
    3.2). The factor is computed on the device of the arrays, without synchronisation.

    Parameters
    ----------
    grads : mapping of str to array
        At least one array of floats. Squares and sums of float16 and bfloat16 are computed in float32.
    max_norm : float
        Above 0. Infinity only measures the norm and keeps the gradients.
    error_if_nonfinite : bool, optional
        Raise an error if the norm is infinite or NaN. This reads the norm, and waits for a device.

    Returns
    -------
    clipped : dict of str to array
        Gradients in the dtypes of `grads`, unchanged if the norm is at most `max_norm`.
    norm : array, shape ()
        The norm before clipping. Infinite if a gradient is infinite, or if the norm overflows its dtype.

    Raises
    ------
    ArgumentError
        If `max_norm` is not above 0, or underflows in the dtype of the sums, or `grads` is empty.
    DTypeError
        If a gradient is not of floats.
    NonFiniteError
        If the norm is infinite or NaN and `error_if_nonfinite` is True.

    Notes
    -----
    Without `error_if_nonfinite`, an infinite gradient changes all finite numbers to 0 and all infinite
    numbers to NaN. A NaN changes all numbers to NaN. ``torch.nn.utils.clip_grad_norm_`` does the same.

    For CuPy arrays, CUDA kernels may clip up to 32 arrays with three launches; see `xplstm.use_kernel`. The
    order of their sums depends only on the sizes of the arrays.

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
        msg = "grads={} must have at least 1 array"
        raise ArgumentError(msg)
    arrays = {name: _array.float_array(f"grads[{name!r}]", g) for name, g in grads.items()}
    xp = _array.namespace(next(iter(arrays.values())), "grads")
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        clipped, norm = _clip(xp, arrays, _representable(xp, bound, arrays))
    if error_if_nonfinite and not math.isfinite(float(norm)):
        msg = f"the norm of the gradients is {float(norm)}, expected a finite norm"
        raise NonFiniteError(msg)
    return clipped, norm


@part
def _clip(xp: Namespace, grads: Params, bound: float) -> tuple[dict[str, Array], Array]:
    """Return clipped gradients, and their norm before clipping."""
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
    """Return `bound`, or infinity if `bound` overflows in the dtype of the sums; reject an underflow."""
    wide = any(_array.dtype_name(g.dtype) == "float64" for g in grads.values())
    limits = xp.finfo(xp.float64 if wide else xp.float32)
    if bound < float(limits.smallest_normal):
        msg = f"max_norm={bound} must be at least {float(limits.smallest_normal)} for gradients of this dtype"
        raise ArgumentError(msg)
    return bound if bound <= float(limits.max) else math.inf


def _norm_parts(xp: Namespace, arrays: list[Array]) -> tuple[Array, Array, Array]:
    """Return the largest magnitude, a scale, and the norm divided by the scale; no square overflows."""
    full = [a for a in arrays if 0 not in a.shape]
    if not full:
        zero = xp.sum(arrays[0])
        return zero, xp.ones_like(zero), zero
    largest = functools.reduce(xp.maximum, (xp.max(xp.abs(a)) for a in full))
    usable = (largest > 0) & xp.isfinite(largest)
    # XLA multiplies by the reciprocal, which underflows to 0 if the divisor is close to the largest number.
    highest = xp.full_like(largest, 2.0**120 if largest.dtype == xp.float32 else 2.0**1016)
    scale = xp.where(usable, xp.minimum(largest, highest), xp.ones_like(largest))
    squares = functools.reduce(operator.add, (xp.sum((a / scale) ** 2) for a in full))
    return largest, scale, xp.sqrt(squares)
