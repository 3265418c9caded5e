"""Run one call of a layer on borrowed memory, by functions that each library of arrays provides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

from xplstm import _array, _dispatch
from xplstm._dispatch import Directions, Kernel
from xplstm._problem import Loan, Problem
from xplstm._state import LSTMState
from xplstm._typing import Array

GENERIC = ("jax_scan", "reference")
"""Kernels that use the library's own operations, fastest first."""


@cache
def host() -> Loan:
    """Return the `Loan` of CPU memory."""
    return Loan(_array.numpy_namespace(), "numpy", "cpu")


class Library(NamedTuple):
    """Functions of one library whose memory is borrowed."""

    has: Callable[[Any], bool]
    """Return whether an object is an array of the library."""
    loan: Callable[[list[Any], bool], Loan | str]
    """Return the `Loan` of arrays, or why they are not plain memory of one device."""
    view: Callable[[Array], Any]
    """Return an array's memory as a NumPy array."""
    own: Callable[[list[Any], Array], list[Array]]
    """Convert results to arrays of the library, on the device of an input."""
    own_step: Callable[[list[Any], Array], list[Array]]
    """Convert results with recurring shapes, as `own` does."""
    bound: Callable[[Loan], AbstractContextManager[Any]]
    """Return the context for views, the kernel and results."""
    differentiates: Callable[[Sequence[Array]], bool]
    """Return whether the library records operations on any of these arrays for a derivative."""
    operation: Callable[[Run, Sequence[Array]], Sequence[Array]]
    """Return y, h_n and c_n, computed by an operation that the library can differentiate."""


class Packed(NamedTuple):
    """One layer's weights: the library's arrays, and the kernel's packed copy."""

    params: Directions
    packed: Any


class Run:
    """One call of a layer.

    The arrays of the call are x, h_0, c_0 and the parameters, in this order. `steps` are the arrays that mark
    existing steps and steps that start from zeros.
    """

    def __init__(
        self,
        kernel: Kernel,
        library: Library,
        problem: Problem,
        layer: Packed,
        steps: Sequence[Array | None],
    ) -> None:
        self.kernel, self.library, self.problem = kernel, library, problem
        self.params, self.packed, self.steps = layer.params, layer.packed, steps

    def forward(self, arrays: Sequence[Array], keep: bool) -> tuple[list[Array], Any]:
        """Return y, h_n and c_n, and the residuals for `backward`."""
        view = self.library.view
        problem = lent_problem(self.problem, keep)
        with self.library.bound(loan_of(self.problem)):
            steps = [None if a is None else view(a) for a in self.steps]
            x, h_0, c_0 = map(view, arrays[:3])
            y, end, residuals = self.kernel.forward(problem, self.packed, x, LSTMState(h_0, c_0), *steps)
            return self.library.own([y, *end], arrays[0]), residuals

    def backward(self, residuals: Any, gradients: Sequence[Array], like: Array) -> list[Array]:
        """Return the gradients with respect to the arrays, given those of y, h_n and c_n, where `like` is."""
        with self.library.bound(loan_of(self.problem)):
            dy, dh_n, dc_n = map(self.library.view, gradients)
            dx, dstate_0, dparams = self.kernel.backward(residuals, dy, LSTMState(dh_n, dc_n))
            return self.library.own([dx, *dstate_0, *pick_present(self.params, dparams)], like)

    def keep(self, arrays: Sequence[Array]) -> Any:
        """Return the residuals for `backward`, from a forward pass over `arrays`."""
        layer = pack(self.kernel, self.library, self.problem, self.of(arrays))
        return Run(self.kernel, self.library, self.problem, layer, self.steps).forward(arrays, True)[1]

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


def loan_of(problem: Problem) -> Loan:
    """Return the `Loan` of a problem that has one."""
    assert isinstance(problem.loan, Loan), "a kernel of another library runs on nothing else"
    return problem.loan


def lent_problem(problem: Problem, keep: bool) -> Problem:
    """Return the problem for the borrowed memory, which the kernel runs; autograd may ask for dx later."""
    return problem.lend_to(loan_of(problem).backend)._replace(dx=True, keep=keep)


def pick_present(params: Directions, others: Directions) -> Iterator[Any]:
    """Yield the items of `others` at the parameters that are not None."""
    for p, other in zip(params, others, strict=True):
        yield from (b for a, b in zip(p, other, strict=True) if a is not None)


def pack(kernel: Kernel, library: Library, problem: Problem, params: Directions) -> Packed:
    """Pack views of the parameters for the kernel."""
    with library.bound(loan_of(problem)):
        views = tuple(p._make(None if a is None else library.view(a) for a in p) for p in params)
        return Packed(params, kernel.prepare(lent_problem(problem, problem.keep), views))
