"""Share memory of JAX arrays with the kernels for NumPy and CuPy, and wrap a layer as an operation of JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, lru_cache
from itertools import count
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._problem import Loan
from xplstm._stack import _cuda
from xplstm._stack._run import Library, Run, host, loan_of

WORTH_COMPILING = 64
"""Number of conversions of the same shapes after which a compiled conversion has paid for its compilation."""

SMALL = 2**20
"""Bytes up to which a compiled conversion, which copies, takes less time than `device_put`."""


def loan(arrays: list[Any], keep: bool) -> Loan | str:
    """Return the `Loan` of these arrays, or why they are not plain memory of one device."""
    lent: Loan | str = host()
    for a in arrays:
        known = _known_values(a)
        if known is None:
            return "JAX traces them"
        devices = known.devices()
        if len(devices) > 1 or next(iter(devices)).platform != "cpu":
            lent = _gpu_loan([_known_values(a) for a in arrays])
            break
    if isinstance(lent, Loan) and keep and any(map(_array.is_traced, arrays)):
        return "JAX differentiates the pullback"
    return lent


def _gpu_loan(arrays: list[Any]) -> Loan | str:
    """Return the `Loan` of the GPU of these arrays, or why CuPy's kernels cannot run on it."""
    if any(a is None for a in arrays):
        return "JAX traces them"
    devices = {device for a in arrays for device in a.devices()}
    names = " and ".join(sorted(map(str, devices)))
    if len(devices) > 1 or next(iter(devices)).platform != "gpu":
        return f"they are on {names}"
    kinds = {tuple(map(int, a.__dlpack_device__())) for a in arrays}
    kind, number = min(kinds)
    if len(kinds) > 1 or kind != _cuda.DLPACK_KIND:
        return f"they are on {names}, and not all are in CUDA memory"
    return _cuda.loan(names, number)


def _known_values(a: Any) -> Any:
    """Return the array with known values: `a`, or the primal value of a grad or jvp tracer; else None."""
    value = getattr(a, "primal", None) if _array.is_traced(a) else a
    return None if value is None or _array.is_traced(value) else value


def _view(a: Any) -> np.ndarray:
    """Return an array's memory as a read-only NumPy array."""
    return np.asarray(_known_values(a))


def _to_jax(results: list[np.ndarray], like: Any) -> list[Any]:
    """Return JAX arrays on the device of `like`, committed to the device if `like` is."""
    import jax

    device, bound = _place(like)
    shapes = tuple((a.shape, a.dtype) for a in results)
    often = next(_conversions(shapes)) >= WORTH_COMPILING and sum(a.nbytes for a in results) <= SMALL
    with jax.core.eval_context(), jax.default_device(device):
        if often:
            return list(_identity(device if bound else None)(*results))
        if bound:
            return list(jax.device_put(results, device))
        return list(map(jax.numpy.asarray, results))


@lru_cache(maxsize=256)
def _conversions(shapes: tuple[Any, ...]) -> count[int]:  # noqa: ARG001 - the key of the cache
    """Return the counter of conversions of results with these shapes and dtypes."""
    return count()


def _place(a: Any) -> tuple[Any, bool]:
    """Return the device of an array and whether the array is committed to it."""
    import jax

    known = _known_values(a)
    if not isinstance(known, jax.Array):
        # While JAX traces a call, it keeps constants as NumPy arrays, which are committed to no device.
        return jax.config.jax_default_device, False
    (device,) = known.devices()
    return device, known.committed


def _step_to_jax(results: list[np.ndarray], like: Any) -> list[Any]:
    """Return JAX arrays as `_to_jax` does, by a compiled function, which is faster than `device_put`."""
    import jax

    device, bound = _place(like)
    with jax.core.eval_context(), jax.default_device(device):
        return list(_identity(device if bound else None)(*results))


def _gpu_view(a: Any) -> Any:
    """Return an array's GPU memory as a CuPy array."""
    return _cuda.view(_known_values(a))


def _gpu_to_jax(results: list[Any], like: Any) -> list[Any]:
    """Return JAX arrays that share the memory of the results, committed to the device if `like` is."""
    import jax

    device, bound = _place(like)
    with jax.core.eval_context():
        arrays = [
            jax.dlpack.from_dlpack(a)
            if a.size
            else jax.numpy.zeros(a.shape, _array.dtype_name(a.dtype), device=device)
            for a in results
        ]
        return list(jax.device_put(arrays, device)) if bound else arrays


@cache
def _identity(device: Any) -> Callable[..., tuple[Any, ...]]:
    """Return a compiled function that returns its arguments, committed to `device` if that is not None."""
    import jax

    where = None if device is None else jax.sharding.SingleDeviceSharding(device)
    compiled: Callable[..., tuple[Any, ...]] = jax.jit(lambda *arrays: arrays, out_shardings=where)
    return compiled


@cache
def on_cpu() -> Library:
    """Return JAX's functions, which use two primitives: a layer, and the layer's derivative."""
    import jax
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    layer, tangent = Primitive("xplstm_layer"), Primitive("xplstm_layer_tangent")
    layer.multiple_results = tangent.multiple_results = True

    def results(x: Any, h_0: Any, c_0: Any, *_: Any, run: Run, **__: Any) -> Any:
        y = (*x.shape[:2], len(run.problem.reverse) * run.problem.output_size)
        return [jax.core.ShapedArray(shape, x.dtype) for shape in (y, h_0.shape, c_0.shape)]

    def dense(run: Run, a: Any) -> Any:
        # JAX itself makes zeros by two operations, which take longer than a short call.
        if type(a) is ad.Zero and loan_of(run.problem) is host():
            return np.zeros(a.aval.shape, a.aval.dtype)
        return ad.instantiate_zeros(a)

    def push_forward(*tangents: Any, run: Run, arrays: Any, **_: Any) -> Any:
        return jax.jvp(run.generic, tuple(arrays), tangents)[1]

    def differentiate(arrays: Any, tangents: Any, *, run: Run) -> Any:
        tangents = [dense(run, t) for t in tangents]
        if any(map(_array.is_traced, arrays)):
            return jax.jvp(run.generic, tuple(arrays), tuple(tangents))
        values, residuals = run.forward(arrays, keep=True)
        given = {"run": run, "arrays": _Hashed(arrays), "residuals": _Hashed((residuals,))}
        return values, tangent.bind(*tangents, **given)

    def transpose(gradients: Any, *tangents: Any, run: Run, arrays: Any, residuals: Any) -> Any:
        gradients = [dense(run, g) for g in gradients]
        if any(map(_array.is_traced, gradients)):
            grads = jax.vjp(run.generic, *arrays)[1](gradients)
        else:
            grads = run.backward(residuals[0], gradients, arrays[0])
        return [g if ad.is_undefined_primal(t) else None for g, t in zip(grads, tangents, strict=True)]

    def batch(tangents: Any, axes: Any, **given: Any) -> Any:
        results = jax.vmap(lambda *ts: push_forward(*ts, **given), in_axes=tuple(axes))(*tangents)
        return results, [0] * len(results)

    def again(primals: Any, tangents: Any, *, run: Run, **given: Any) -> Any:
        tangents = [dense(run, t) for t in tangents]
        return tangent.bind(*primals, run=run, **given), tangent.bind(*tangents, run=run, **given)

    layer.def_impl(lambda *arrays, run: run.forward(arrays, keep=False)[0])
    layer.def_abstract_eval(results)
    ad.primitive_jvps[layer] = differentiate
    tangent.def_impl(push_forward)
    tangent.def_abstract_eval(results)
    ad.primitive_jvps[tangent] = again
    ad.primitive_transposes[tangent] = transpose
    batching.primitive_batchers[tangent] = batch
    mlir.register_lowering(tangent, mlir.lower_fun(push_forward, multiple_results=True))

    def differentiates(arrays: Sequence[Any]) -> bool:
        return any(map(_array.is_traced, arrays))

    def operation(run: Run, arrays: Sequence[Any]) -> Any:
        return layer.bind(*arrays, run=run)

    return Library(
        lambda a: isinstance(a, jax.Array),
        *(loan, _view, _to_jax, _step_to_jax, nullcontext, differentiates),
        operation,
    )


class _Hashed(tuple[Any, ...]):
    """A tuple that is hashed and compared by identity, because parameters of a primitive must be hashable."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def on_gpu() -> Library:
    """Return JAX's functions for arrays on a GPU."""
    own = _gpu_to_jax
    return on_cpu()._replace(view=_gpu_view, own=own, own_step=own, bound=_cuda.synchronise_after)
