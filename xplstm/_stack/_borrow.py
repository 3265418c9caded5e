"""Run the kernels for NumPy on the memory of PyTorch and JAX arrays on the CPU.

The inputs are views, the weights are packed as for NumPy, and the results have the same bits as NumPy's. If
the library differentiates a call, the call becomes one operation of that library, whose derivative is the
kernel's backward pass. The generic kernels run second derivatives. They also run every call whose arrays are
not plain CPU memory, such as tracers, transformed tensors and arrays on other devices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from xplstm import _array, _choice, _dispatch
from xplstm._dispatch import Directions, Kernel, Stepper
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.kernels import _threads

if TYPE_CHECKING:
    from xplstm._checks import Home

R = TypeVar("R")

KERNELS = ("native", "numpy_inplace")
"""Kernels for NumPy that run on borrowed memory."""

GENERIC = ("jax_scan", "reference")
"""Kernels that use the library's own operations, fastest first."""


def why_not(
    home: Home, arrays: Sequence[Array | None], layers: tuple[Directions, ...], keep: bool
) -> str | None:
    """Return why the kernels for NumPy cannot run on a call's arrays, or None if they can.

    The reason is empty for a library whose memory is never borrowed.
    """
    look = _LOOKS.get(_array.backend_name(home.xp))
    if look is None:
        return ""
    if home.dtype == "bfloat16" and not _numpy_has_bfloat16():
        return "NumPy has bfloat16 only with the package ml_dtypes"
    params = (a for layer in layers for p in layer for a in p)
    return look([a for a in (*arrays, *params) if a is not None], keep)


@cache
def _numpy_has_bfloat16() -> bool:
    """Return whether ml_dtypes, which provides NumPy's bfloat16, is installed."""
    return importlib.util.find_spec("ml_dtypes") is not None


def is_compiled(home: Home) -> bool:
    """Return whether ``torch.compile`` traces a call with parameters at `home`."""
    if _array.backend_name(home.xp) != "torch":
        return False
    import torch

    return bool(torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting())


def outside_graphs(work: Callable[..., R], *arguments: Any) -> R:
    """Return ``work(*arguments)``, called outside the graphs of ``torch.compile``.

    A graph would contain every step of a sequence. Outside a graph, the kernel for plain tensors runs.
    """
    import torch

    return cast("R", torch.compiler.disable(work)(*arguments))


def select(problem: Problem) -> Kernel:
    """Return the kernel that runs `problem`, adapted to the arrays of the problem's library."""
    kernel = _dispatch.select(problem)
    borrows = problem.why_not_borrowed is None and kernel.name in KERNELS
    return _borrowing(kernel, problem.backend) if borrows else kernel


class _Library(NamedTuple):
    """Functions of one library whose memory is borrowed."""

    has: Callable[[Any], bool]
    """Return whether an object is an array of the library."""
    why_not: Callable[[list[Any], bool], str | None]
    """Return why arrays are not plain CPU memory, or None."""
    view: Callable[[Array], np.ndarray]
    """Return an array's memory as a NumPy array."""
    own: Callable[[list[Any], Array], list[Array]]
    """Convert results to arrays of the library, on the device of an input."""
    own_step: Callable[[list[Any], Array], list[Array]]
    """Convert results with recurring shapes, as `own` does."""
    bound: Callable[[], AbstractContextManager[Any]]
    """Return the context in which the kernel runs."""
    differentiates: Callable[[Sequence[Array]], bool]
    """Return whether the library records operations on any of these arrays for a derivative."""
    operation: Callable[[_Run, Sequence[Array]], Sequence[Array]]
    """Return y, h_n and c_n, computed by an operation that the library can differentiate."""


class _Packed(NamedTuple):
    """One layer's weights: the library's arrays, and the kernel's packed copy."""

    params: Directions
    packed: Any


class _Run:
    """One call of a layer.

    The arrays of the call are x, h_0, c_0 and the parameters, in this order. `steps` are the arrays that mark
    existing steps and steps that start from zeros.
    """

    def __init__(
        self,
        kernel: Kernel,
        library: _Library,
        problem: Problem,
        layer: _Packed,
        steps: Sequence[Array | None],
    ) -> None:
        self.kernel, self.library, self.problem = kernel, library, problem
        self.params, self.packed, self.steps = layer.params, layer.packed, steps

    def forward(self, arrays: Sequence[Array], keep: bool) -> tuple[list[Array], Any]:
        """Return y, h_n and c_n, and the residuals for `backward`."""
        view = self.library.view
        problem = _on_host(self.problem)._replace(keep=keep)
        steps = [None if a is None else view(a) for a in self.steps]
        x, h_0, c_0 = map(view, arrays[:3])
        with self.library.bound():
            y, end, residuals = self.kernel.forward(problem, self.packed, x, LSTMState(h_0, c_0), *steps)
        return self.library.own([y, *end], arrays[0]), residuals

    def backward(self, residuals: Any, gradients: Sequence[Array]) -> list[Array]:
        """Return the gradients with respect to the arrays, given the gradients of y, h_n and c_n."""
        dy, dh_n, dc_n = map(self.library.view, gradients)
        with self.library.bound():
            dx, dstate_0, dparams = self.kernel.backward(residuals, dy, LSTMState(dh_n, dc_n))
        return self.library.own([dx, *dstate_0, *_present(self.params, dparams)], gradients[0])

    def keep(self, arrays: Sequence[Array]) -> Any:
        """Return the residuals for `backward`, from a forward pass over `arrays`."""
        layer = _prepare(self.kernel, self.library, self.problem, self.of(arrays))
        return _Run(self.kernel, self.library, self.problem, layer, self.steps).forward(arrays, True)[1]

    def of(self, arrays: Sequence[Array]) -> Directions:
        """Return the parameters among `arrays`, by direction."""
        rest = iter(arrays[3:])
        return tuple(p._make(None if a is None else next(rest) for a in p) for p in self.params)

    def generic(self, *arrays: Array) -> list[Array]:
        """Return y, h_n and c_n, computed by operations that the library can differentiate repeatedly."""
        problem = self.problem._replace(keep=False)
        able = (k for k in map(_dispatch.load, GENERIC) if k.supports(problem) is None)
        kernel = next(able)
        packed, (x, h_0, c_0) = kernel.prepare(problem, self.of(arrays)), arrays[:3]
        y, end, _ = kernel.forward(problem, packed, x, LSTMState(h_0, c_0), *self.steps)
        return [y, *end]


def _on_host(problem: Problem) -> Problem:
    """Return the problem for NumPy arrays, which the kernel runs."""
    return problem._replace(xp=_array.numpy_namespace(), backend="numpy", device="cpu", dx=True)


def _present(params: Directions, others: Directions) -> Iterator[Any]:
    """Yield the items of `others` at the parameters that are not None."""
    for p, other in zip(params, others, strict=True):
        yield from (b for a, b in zip(p, other, strict=True) if a is not None)


def _prepare(kernel: Kernel, library: _Library, problem: Problem, params: Directions) -> _Packed:
    """Pack views of the parameters for the kernel."""
    views = tuple(p._make(None if a is None else library.view(a) for a in p) for p in params)
    return _Packed(params, kernel.prepare(_on_host(problem), views))


@cache
def _borrowing(kernel: Kernel, backend: str) -> Kernel:
    """Return `kernel`, adapted to the arrays of another library."""
    library = {"torch": _torch, "jax": _jax}[backend]()

    def prepare(problem: Problem, params: Directions) -> _Packed:
        return _prepare(kernel, library, problem, params)

    def forward(
        problem: Problem, layer: _Packed, x: Array, state: LSTMState, *steps: Array | None
    ) -> tuple[Array, LSTMState, Any]:
        run = _Run(kernel, library, problem, layer, steps)
        arrays = [x, *state, *_present(layer.params, layer.params)]
        if library.differentiates(arrays):
            y, h_n, c_n = library.operation(run, arrays)
            return y, LSTMState(h_n, c_n), None
        (y, h_n, c_n), residuals = run.forward(arrays, problem.keep)
        return y, LSTMState(h_n, c_n), (run, residuals)

    def backward(kept: Any, dy: Array, dstate_n: LSTMState) -> tuple[Array, LSTMState, Directions]:
        run, residuals = kept
        gradients = run.backward(residuals, (dy, *dstate_n))
        return gradients[0], LSTMState(*gradients[1:3]), run.of(gradients)

    def directly(
        make: Callable[..., Stepper],
        own: Callable[[list[Any], Array], list[Array]],
        problem: Problem,
        layers: tuple[_Packed, ...],
        *options: bool,
    ) -> Stepper:
        with library.bound():
            step = make(_on_host(problem), tuple(layer.packed for layer in layers), *options)

        def borrowed(x_t: Any, state: Any) -> tuple[Array, LSTMState] | None:
            """Run one step or small call, or return None for arguments that need a call's checks."""
            several = isinstance(state, tuple)
            arrays = [x_t] if state is None else [x_t, *state] if several else [x_t, state]
            if any(not library.has(a) for a in arrays):
                return None
            if library.why_not(arrays, False) is not None or library.differentiates(arrays):
                return None
            x, *before = map(library.view, arrays)
            found = step(x, tuple(before) if several else before[0] if before else None)
            if found is None:
                return None
            y, h, c = own([found[0], *found[1]], x_t)
            return y, LSTMState(h, c)

        return borrowed

    stepper = kernel.stepper and partial(directly, kernel.stepper, library.own_step)
    caller = kernel.caller and partial(directly, kernel.caller, library.own)
    return kernel._replace(
        prepare=prepare, forward=forward, backward=backward, stepper=stepper, caller=caller
    )


# ---- PyTorch


def _why_not_torch(arrays: list[Any], keep: bool) -> str | None:
    """Return why these tensors are not plain CPU memory, or None."""
    import torch

    if torch.compiler.is_compiling():
        return "torch.compile traces them"
    # PyTorch has already imported both modules. An import statement would take as long as all checks.
    unpack_dual = torch.autograd.forward_ad.unpack_dual
    if torch.jit.is_tracing() or torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
        return "PyTorch records the operations on them"
    for a in arrays:
        if not a.is_cpu or a.layout != torch.strided:
            return f"they are on {a.device}" if a.layout == torch.strided else f"their layout is {a.layout}"
        if type(a) not in (torch.Tensor, torch.nn.Parameter):
            return f"one is a {type(a).__name__}, a subclass"
        if unpack_dual(a).tangent is not None or not _has_memory(a):
            return "a transform of PyTorch follows them"
    if keep and _torch_differentiates(arrays):
        return "autograd follows the pullback"
    return None


def _has_memory(a: Any) -> bool:
    """Return whether a tensor has memory; the wrappers that torch.func passes have none."""
    try:
        a.data_ptr()
    except RuntimeError:
        return False
    return True


def _torch_view(a: Any) -> np.ndarray:
    """Return a tensor's memory as a NumPy array, after any deferred negation."""
    import torch

    if a.requires_grad or a.is_neg():
        a = a.detach().resolve_neg()
    if a.dtype == torch.bfloat16:
        # int16 passes the bits: NumPy cannot read PyTorch's bfloat16.
        return np.asarray(a.view(torch.int16).numpy().view(_array.dtype_named(np, "bfloat16")))
    view: np.ndarray = a.numpy()
    return view


def _torch_own(results: list[np.ndarray], _: Any) -> list[Any]:
    """Return tensors that share the memory of the results."""
    import torch

    # Do not compare dtype names: computing a name takes longer than the rest of this function.
    if results[0].dtype.itemsize == 2 and results[0].dtype != np.float16:
        return [torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) for a in results]
    return list(map(torch.from_numpy, results))


def _torch_bound() -> AbstractContextManager[Any]:
    """Limit the kernel's threads to the number that PyTorch may use."""
    import torch

    most = torch.get_num_threads()
    if most >= abs(_threads.count(_threads.from_environment())):
        return nullcontext()
    return _choice.Chosen(_choice.threads, most)


def _torch_differentiates(arrays: Sequence[Any]) -> bool:
    """Return whether autograd records operations on any of these tensors."""
    import torch

    return torch.is_grad_enabled() and any(a.requires_grad for a in arrays)


def _torch_generic(run: _Run, arrays: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
    """Return the gradient with respect to each tensor, computed by operations that autograd can record."""
    import torch

    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # An input may depend on another input. The views exclude such paths outside the layer.
        inputs = [a.view_as(a) for a in arrays]
        outputs: list[Any] = run.generic(*inputs)
    needed = [a for a in inputs if a.requires_grad]
    pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
    ys, dys = [y for y, _ in pairs], [dy for _, dy in pairs]
    found: Iterator[Any] = iter(())
    if ys:
        found = iter(torch.autograd.grad(ys, needed, dys, create_graph=again, allow_unused=True))
    return [next(found, None) if a.requires_grad else None for a in inputs]


@cache
def _torch() -> _Library:
    """Return PyTorch's functions, with the function that autograd records."""
    import torch

    class Layer(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        """One layer over a sequence."""

        @staticmethod
        def forward(ctx: Any, run: _Run, *arrays: Any) -> Any:
            results, residuals = run.forward(arrays, keep=True)
            # The residuals hold the packed weights, so that a backward pass frees both.
            run.packed = None
            # A saved tensor carries the residuals: PyTorch frees them together. Checkpointing replaces saved
            # tensors by hooks, which drops the residuals.
            holder: Any = torch.empty(0)
            holder.residuals = residuals
            ctx.run = run
            ctx.save_for_backward(holder, *arrays, *run.steps)
            return tuple(results)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            run: _Run = ctx.run
            holder, *saved = ctx.saved_tensors
            arrays = saved[: len(saved) - len(run.steps)]
            if torch.is_grad_enabled() or _why_not_torch(list(gradients), False) is not None:
                return (None, *_torch_generic(run, arrays, gradients))
            residuals = getattr(holder, "residuals", None)
            residuals = run.keep(arrays) if residuals is None else residuals
            return (None, *run.backward(residuals, gradients))

    def operation(run: _Run, arrays: Sequence[Any]) -> Any:
        return Layer.apply(run, *arrays)  # type: ignore[no-untyped-call, unused-ignore]

    return _Library(
        lambda a: isinstance(a, torch.Tensor),
        *(_why_not_torch, _torch_view, _torch_own, _torch_own, _torch_bound, _torch_differentiates),
        operation,
    )


# ---- JAX


def _why_not_jax(arrays: list[Any], keep: bool) -> str | None:
    """Return why these arrays are not plain CPU memory, or None."""
    for a in arrays:
        known = _known(a)
        if known is None:
            return "JAX traces them"
        devices = known.devices()
        if len(devices) > 1 or next(iter(devices)).platform != "cpu":
            return f"they are on {', '.join(sorted(map(str, devices)))}"
    return "JAX follows the pullback" if keep and any(map(_array.is_traced, arrays)) else None


def _known(a: Any) -> Any:
    """Return the array with known values: `a`, or the primal value of a grad or jvp tracer; else None."""
    value = getattr(a, "primal", None) if _array.is_traced(a) else a
    return None if value is None or _array.is_traced(value) else value


def _jax_view(a: Any) -> np.ndarray:
    """Return an array's memory as a read-only NumPy array."""
    return np.asarray(_known(a))


def _jax_own(results: list[np.ndarray], like: Any) -> list[Any]:
    """Return JAX arrays on the device of `like`, committed to the device if `like` is."""
    import jax

    device, bound = _jax_place(like)
    with jax.ensure_compile_time_eval(), jax.default_device(device):
        if bound:
            return list(jax.device_put(results, device))
        return list(map(jax.numpy.asarray, results))


def _jax_place(a: Any) -> tuple[Any, bool]:
    """Return the device of an array and whether the array is committed to it."""
    import jax

    known = _known(a)
    if not isinstance(known, jax.Array):
        # While JAX traces a call, it keeps constants as NumPy arrays, which are committed to no device.
        return jax.config.jax_default_device, False
    (device,) = known.devices()
    return device, known.committed


def _jax_own_step(results: list[np.ndarray], like: Any) -> list[Any]:
    """Return JAX arrays as `_jax_own` does, by a compiled function, which is faster than `device_put`."""
    import jax

    device, bound = _jax_place(like)
    if bound:
        return _jax_own(results, like)
    with jax.ensure_compile_time_eval(), jax.default_device(device):
        return list(_jax_identity()(*results))


@cache
def _jax_identity() -> Callable[..., tuple[Any, ...]]:
    """Return a compiled function that returns its arguments."""
    import jax

    compiled: Callable[..., tuple[Any, ...]] = jax.jit(lambda *arrays: arrays)
    return compiled


@cache
def _jax() -> _Library:
    """Return JAX's functions, which use two primitives: a layer, and the layer's derivative."""
    import jax
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    layer, tangent = Primitive("xplstm_layer"), Primitive("xplstm_layer_tangent")
    layer.multiple_results = tangent.multiple_results = True

    def results(x: Any, h_0: Any, c_0: Any, *_: Any, run: _Run, **__: Any) -> Any:
        y = (*x.shape[:2], len(run.problem.reverse) * run.problem.output_size)
        return [jax.core.ShapedArray(shape, x.dtype) for shape in (y, h_0.shape, c_0.shape)]

    def pushed(*tangents: Any, run: _Run, arrays: Any, **_: Any) -> Any:
        return jax.jvp(run.generic, tuple(arrays), tangents)[1]

    def differentiate(arrays: Any, tangents: Any, *, run: _Run) -> Any:
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        if any(map(_array.is_traced, arrays)):
            return jax.jvp(run.generic, tuple(arrays), tuple(tangents))
        values, residuals = run.forward(arrays, keep=True)
        given = {"run": run, "arrays": _Hashed(arrays), "residuals": _Hashed((residuals,))}
        return values, tangent.bind(*tangents, **given)

    def transpose(gradients: Any, *tangents: Any, run: _Run, arrays: Any, residuals: Any) -> Any:
        gradients = [ad.instantiate_zeros(g) for g in gradients]
        if any(map(_array.is_traced, gradients)):
            found = jax.vjp(run.generic, *arrays)[1](gradients)
        else:
            found = run.backward(residuals[0], gradients)
        return [g if ad.is_undefined_primal(t) else None for g, t in zip(found, tangents, strict=True)]

    def batch(tangents: Any, axes: Any, **given: Any) -> Any:
        found = jax.vmap(lambda *ts: pushed(*ts, **given), in_axes=tuple(axes))(*tangents)
        return found, [0] * len(found)

    def again(primals: Any, tangents: Any, **given: Any) -> Any:
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        return tangent.bind(*primals, **given), tangent.bind(*tangents, **given)

    layer.def_impl(lambda *arrays, run: run.forward(arrays, keep=False)[0])
    layer.def_abstract_eval(results)
    ad.primitive_jvps[layer] = differentiate
    tangent.def_impl(pushed)
    tangent.def_abstract_eval(results)
    ad.primitive_jvps[tangent] = again
    ad.primitive_transposes[tangent] = transpose
    batching.primitive_batchers[tangent] = batch
    mlir.register_lowering(tangent, mlir.lower_fun(pushed, multiple_results=True))

    def differentiates(arrays: Sequence[Any]) -> bool:
        return any(map(_array.is_traced, arrays))

    def operation(run: _Run, arrays: Sequence[Any]) -> Any:
        return layer.bind(*arrays, run=run)

    return _Library(
        lambda a: isinstance(a, jax.Array),
        *(_why_not_jax, _jax_view, _jax_own, _jax_own_step, nullcontext, differentiates),
        operation,
    )


class _Hashed(tuple[Any, ...]):
    """A tuple that is hashed and compared by identity: parameters of a primitive must be hashable."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


_LOOKS: dict[str, Callable[[list[Any], bool], str | None]] = {"torch": _why_not_torch, "jax": _why_not_jax}
