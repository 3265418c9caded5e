"""Run the standard LSTM on CuPy arrays by one cooperative launch per layer, with weights on-chip.

Each block keeps the rows of W_hh of some hidden units on-chip for all steps (Diamos et
al., 2016). Blocks synchronise by counters, or in TF32 by flags inside the exchanged
words. A cost model of the device selects the partition. The number of blocks never
exceeds the number that can be resident at once, because the launch would otherwise
deadlock.

Half precision, and float32 with ``precision="tf32"``, use mma instructions with weights in
registers. float32 and float64 use fused multiply-adds in reproducible summation order, with weights in
shared memory. With ``reproducible=True``, the input projection uses that order too, so that
the outputs have exactly the bits of XPL-EXACT. Without the compiled module, the same projection
runs during the capture of a CUDA graph, because CuPy does not allow cuBLAS calls then.

The code implements the equations of `xplstm.cells.lstm`, and the clauses XPL-CELL, XPL-SEQ
and XPL-EXACT of the specification.
"""

from __future__ import annotations

from xplstm._problem import Problem
from xplstm._typing import Proof
from xplstm.kernels._cuda import layer, partitions, waits, walks
from xplstm.kernels._cuda import proof as proofs
from xplstm.kernels._cuda.partitions import STEP_OF_K, Plan

NAME = walks.WAITING

arrays = "cupy"
prepare = layer.prepare
__getattr__ = layer.lazy_why_not


def _plan(problem: Problem, backward: bool) -> Plan | None:
    return partitions.plan_of(problem, backward, alone=False)


forward, backward = walks.passes(_plan)


def supports(problem: Problem) -> str | None:
    """Return None for a standard LSTM that fits the chip, else the reason."""
    device = problem.device
    reason = walks.why_not(problem) or waits.why_not(device.id)
    if reason is not None:
        return reason
    if not device.attributes["CooperativeLaunch"]:
        return "the device does not support cooperative launches"
    if problem.T * problem.B and partitions.step_cost(problem, _plan) is None:
        chip = partitions.chip_of(device)
        return (
            f"hidden_size={problem.H} with a batch of {problem.B} does not fit into {chip.processors} SMs "
            f"with {chip.shared} bytes of shared memory each"
        )
    return None


def proof(problem: Problem, _: object) -> Proof:
    """Return the kernel's proof on the device; a separate process must run the trials."""
    return proofs.decide(NAME, layer.kind(problem), problem.device)


def slower(problem: Problem) -> str | None:
    """Return why cuBLAS products are expected to be faster, or None."""
    if problem.reproducible or layer.refuses_products(problem):
        return None
    cost, other = partitions.step_cost(problem, _plan) or 0.0, partitions.products_cost(problem)
    if cost > other:
        return f"a step is expected to take {cost:.1f} us, but {other:.1f} us with cuBLAS products"
    return None


def canonical_sums(problem: Problem) -> bool:
    """Return whether all sums use the reproducible order; by default cuBLAS projects the input."""
    return problem.reproducible and layer.kind(problem) not in STEP_OF_K
