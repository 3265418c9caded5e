"""Run the kernels for NumPy and CuPy on the memory of PyTorch and JAX arrays on the CPU and on CUDA.

The inputs are views, the weights are packed as for NumPy or CuPy, and the results have the same bits as with
arrays of NumPy or CuPy. If the library of the arrays differentiates a call, the call becomes one operation of
that library, whose derivative is the kernel's backward pass. The generic kernels run second derivatives,
and every call whose arrays are not plain memory of one device, such as tracers and transformed tensors.
"""

from __future__ import annotations

import importlib.util
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from xplstm import _array, _choice, _dispatch
from xplstm._dispatch import Directions, Kernel, Stepper
from xplstm._problem import Loan, Problem
from xplstm._stack import _cuda, _jax
from xplstm._stack._run import Library, Packed, Run, host, lent_problem, loan_of, pack, pick_present
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.kernels import _threads

if TYPE_CHECKING:
    from xplstm._checks import Home

R = TypeVar("R")


def loan(
    home: Home, arrays: Sequence[Array | None], layers: tuple[Directions, ...], keep: bool
) -> Loan | str:
    """Return the `Loan` of a call's arrays, or why only the kernels of their own library can run on them.

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
    borrows = isinstance(problem.loan, Loan) and problem.loan.backend == kernel.arrays
    return _adapt_kernel(kernel, problem.backend) if borrows else kernel


@cache
def _adapt_kernel(kernel: Kernel, backend: str) -> Kernel:
    """Return `kernel`, adapted to the arrays of another library."""
    library = _LIBRARIES[backend, kernel.arrays]()

    def prepare(problem: Problem, params: Directions) -> Packed:
        return pack(kernel, library, problem, params)

    def forward(
        problem: Problem, layer: Packed, x: Array, state: LSTMState, *steps: Array | None
    ) -> tuple[Array, LSTMState, Any]:
        run = Run(kernel, library, problem, layer, steps)
        arrays = [x, *state, *pick_present(layer.params, layer.params)]
        if library.differentiates(arrays):
            y, h_n, c_n = library.operation(run, arrays)
            return y, LSTMState(h_n, c_n), None
        (y, h_n, c_n), residuals = run.forward(arrays, problem.keep)
        return y, LSTMState(h_n, c_n), (run, residuals)

    def backward(kept: Any, dy: Array, dstate_n: LSTMState) -> tuple[Array, LSTMState, Directions]:
        run, residuals = kept
        gradients = run.backward(residuals, (dy, *dstate_n), dy)
        return gradients[0], LSTMState(*gradients[1:3]), run.of(gradients)

    def directly(
        make: Callable[..., Stepper],
        own: Callable[[list[Any], Array], list[Array]],
        problem: Problem,
        layers: tuple[Packed, ...],
        *options: bool,
    ) -> Stepper:
        with library.bound(loan_of(problem)):
            step = make(lent_problem(problem, False), tuple(layer.packed for layer in layers), *options)

        def step_or_call(x_t: Any, state: Any) -> tuple[Array, LSTMState] | None:
            """Run one step or small call, or return None for arguments that need a call's checks."""
            several = isinstance(state, tuple)
            arrays = [x_t] if state is None else [x_t, *state] if several else [x_t, state]
            if any(not library.has(a) for a in arrays):
                return None
            if isinstance(library.loan(arrays, False), str) or library.differentiates(arrays):
                return None
            x, *before = map(library.view, arrays)
            found = step(x, tuple(before) if several else before[0] if before else None)
            if found is None:
                return None
            y, h, c = own([found[0], *found[1]], x_t)
            return y, LSTMState(h, c)

        return step_or_call

    stepper = kernel.stepper and partial(directly, kernel.stepper, library.own_step)
    caller = kernel.caller and partial(directly, kernel.caller, library.own)
    return kernel._replace(
        prepare=prepare, forward=forward, backward=backward, stepper=stepper, caller=caller
    )


# ---- PyTorch


def _torch_loan(arrays: list[Any], keep: bool) -> Loan | str:
    """Return the `Loan` of these tensors, or why they are not plain memory of one device."""
    import torch

    if torch.compiler.is_compiling():
        return "torch.compile traces them"
    # PyTorch has already imported both modules. An import statement would take as long as all checks.
    unpack_dual = torch.autograd.forward_ad.unpack_dual
    if torch.jit.is_tracing() or torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
        return "PyTorch records the operations on them"
    lent = host() if arrays[0].is_cpu else _torch_gpu(arrays)
    if isinstance(lent, str):
        return lent
    for a in arrays:
        if a.layout != torch.strided:
            return f"their layout is {a.layout}"
        if a.is_cpu != arrays[0].is_cpu:
            return f"they are on {arrays[0].device} and {a.device}"
        if type(a) not in (torch.Tensor, torch.nn.Parameter):
            return f"one is a {type(a).__name__}, a subclass"
        if unpack_dual(a).tangent is not None or not _has_memory(a):
            return "a transform of PyTorch traces them"
    if keep and _torch_differentiates(arrays):
        return "autograd records the pullback"
    return lent


def _torch_gpu(arrays: list[Any]) -> Loan | str:
    """Return the `Loan` of the GPU of these tensors, or why CuPy's kernels cannot run on it."""
    import torch

    devices = {a.device for a in arrays}
    device = arrays[0].device
    if device.type != "cuda" or len(devices) > 1:
        return f"they are on {' and '.join(sorted(map(str, devices)))}"
    if torch.version.hip or not hasattr(torch.cuda.Stream, "__cuda_stream__"):
        return f"PyTorch {torch.__version__} has no CUDA streams that CuPy accepts"
    if torch.cuda.is_current_stream_capturing():
        return "PyTorch captures a CUDA graph of the operations on them"
    return _cuda.loan(str(device), device.index)


def _has_memory(a: Any) -> bool:
    """Return whether a tensor has memory; the wrappers that torch.func passes have none."""
    try:
        a.data_ptr()
    except RuntimeError:
        return False
    return True


def _torch_view(a: Any, memory: Callable[[Any], Any] = operator.methodcaller("numpy")) -> Any:
    """Return a tensor's memory as a NumPy array, after any deferred negation."""
    if a.requires_grad:
        a = a.detach()
    if a.is_neg():
        a = a.resolve_neg()
    if a.dtype.itemsize == 2:
        import torch

        if a.dtype == torch.bfloat16:
            # int16 passes the bits, because NumPy cannot read PyTorch's bfloat16.
            return memory(a.view(torch.int16)).view(_array.dtype_from_name(np, "bfloat16"))
    return memory(a)


def _to_torch(results: list[Any], like: Any, on_gpu: bool = False) -> list[Any]:
    """Return tensors that share the memory of the results."""
    import torch

    tensor = partial(_torch_from_gpu, like) if on_gpu else torch.from_numpy
    # Do not compare dtype names, because computing a name takes longer than the rest of this function.
    if results[0].dtype.itemsize == 2 and results[0].dtype != np.float16:
        return [tensor(a.view(np.int16)).view(torch.bfloat16) for a in results]
    return list(map(tensor, results))


def _torch_from_gpu(like: Any, a: Any) -> Any:
    """Return a tensor that shares the memory of a CuPy array; an empty array has no memory."""
    import torch

    return torch.from_dlpack(a) if a.size else torch.zeros(a.shape, dtype=like.dtype, device=like.device)


def _torch_stream(lent: Loan) -> AbstractContextManager[Any]:
    """Use PyTorch's device and current stream, so that both libraries reuse memory in stream order."""
    import torch

    return _cuda.use_stream(lent, torch.cuda.current_stream(lent.device.id))


def _limit_to_torch_threads(_: Loan) -> AbstractContextManager[Any]:
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


def _torch_generic(run: Run, arrays: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
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
    grads: Iterator[Any] = iter(())
    if ys:
        grads = iter(torch.autograd.grad(ys, needed, dys, create_graph=again, allow_unused=True))
    return [next(grads, None) if a.requires_grad else None for a in inputs]


@cache
def _torch() -> Library:
    """Return PyTorch's functions, including the autograd function that runs a layer."""
    import torch

    class Layer(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        """Call of one layer on a sequence."""

        @staticmethod
        def forward(ctx: Any, run: Run, *arrays: Any) -> Any:
            results, residuals = run.forward(arrays, keep=True)
            # The residuals contain the packed weights, so that a backward pass frees both.
            run.packed = None
            # A saved tensor carries the residuals; PyTorch frees them together. Checkpointing replaces saved
            # tensors by hooks, which drops the residuals.
            holder: Any = torch.empty(0)
            holder.residuals = residuals
            ctx.run = run
            ctx.save_for_backward(holder, *arrays, *run.steps)
            return tuple(results)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            run: Run = ctx.run
            holder, *saved = ctx.saved_tensors
            arrays = saved[: len(saved) - len(run.steps)]
            if torch.is_grad_enabled() or isinstance(_torch_loan(list(gradients), False), str):
                return (None, *_torch_generic(run, arrays, gradients))
            residuals = getattr(holder, "residuals", None)
            residuals = run.keep(arrays) if residuals is None else residuals
            return (None, *run.backward(residuals, gradients, gradients[0]))

    def operation(run: Run, arrays: Sequence[Any]) -> Any:
        return Layer.apply(run, *arrays)  # type: ignore[no-untyped-call, unused-ignore]

    return Library(
        lambda a: isinstance(a, torch.Tensor),
        *(_torch_loan, _torch_view, _to_torch, _to_torch, _limit_to_torch_threads, _torch_differentiates),
        operation,
    )


@cache
def _torch_on_gpu() -> Library:
    """Return PyTorch's functions for tensors on a GPU."""
    own = partial(_to_torch, on_gpu=True)
    view = partial(_torch_view, memory=_cuda.view)
    return _torch()._replace(view=view, own=own, own_step=own, bound=_torch_stream)


_LOOKS: dict[str, Callable[[list[Any], bool], Loan | str]] = {"torch": _torch_loan, "jax": _jax.loan}
_LIBRARIES: dict[tuple[str, str], Callable[[], Library]] = {
    ("torch", "numpy"): _torch,
    ("torch", "cupy"): _torch_on_gpu,
    ("jax", "numpy"): _jax.on_cpu,
    ("jax", "cupy"): _jax.on_gpu,
}
