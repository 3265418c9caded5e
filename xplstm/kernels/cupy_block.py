"""Run a small standard LSTM on CuPy arrays by one launch per layer, in which no block waits for another.

A thread block has all weights of a direction on-chip, and runs all steps of some batch entries. Its threads
exchange h and dz in shared memory. So no launch can hang, and a check of the numbers at the first use
suffices. The walk and its engines are those of `cupy_persistent`.

The code implements the equations of `xplstm.cells.lstm`, and the clauses XPL-CELL and XPL-SEQ of the
specification.
"""

from __future__ import annotations

from functools import partial

from xplstm._problem import Problem
from xplstm._typing import Proof
from xplstm.kernels._cuda import layer, partitions, trials, waits, walks
from xplstm.kernels._cuda import proof as proofs
from xplstm.kernels._cuda.partitions import Plan

NAME = "cupy_block"
CHECKED = (*trials.CHECKED, trials.Shape(T=3, B=19, I=3, H=70, valid="lengths"))
"""Problems for every entry of a walk."""

arrays = "cupy"
prepare = layer.prepare
__getattr__ = layer.lazy_why_not


def _plan(problem: Problem, backward: bool) -> Plan | None:
    return partitions.plan_of(problem, backward, alone=True)


forward, backward = walks.passes(_plan)


def supports(problem: Problem) -> str | None:
    """Return None for a standard LSTM whose weights fit into one block, else the reason."""
    reason = walks.why_not(problem)
    if reason is None and problem.T * problem.B and partitions.step_cost(problem, _plan) is None:
        shared = partitions.chip_of(problem.device).shared
        sizes = f"hidden_size={problem.H} with a batch of {problem.B}"
        return f"{sizes} does not fit into one block with {shared} bytes of shared memory"
    return reason


def proof(problem: Problem, reference: trials.Engine) -> Proof:
    """Return the kernel's proof on the device; a quick check suffices, because its blocks never wait."""
    engine = trials.Engine(prepare, forward, backward)
    return trials.proof(NAME, engine, reference, problem, lambda: check_shapes(problem))


def check_shapes(like: Problem) -> list[trials.Shape]:
    """Return the shapes of `CHECKED` that fit into one block of the device of `like`."""
    problems = {shape: trials.problem_of(shape, like, layer.kind(like)) for shape in CHECKED}
    return [shape for shape, problem in problems.items() if supports(problem) is None]


def slower(problem: Problem) -> str | None:
    """Return why several blocks that wait for each other, or cuBLAS, are expected to be faster, or None."""
    cost = partitions.step_cost(problem, _plan) or 0.0
    others = {}
    if not layer.refuses_products(problem):
        others["with cuBLAS products"] = partitions.products_cost(problem)
    several = partitions.step_cost(problem, partial(partitions.plan_of, alone=False))
    proven = proofs.decide(walks.WAITING, layer.kind(problem), problem.device).passed
    if several and proven and waits.why_not(problem.device.id) is None:
        others["by several blocks"] = several
    for how, other in others.items():
        if cost > other:
            return f"a step is expected to take {cost:.1f} us, but {other:.1f} us {how}"
    return None
