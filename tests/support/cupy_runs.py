"""Run CuPy's kernels on small problems under a memory checker: ``python -m tests.cupy_runs``.

Each array has its own allocation, without CuPy's pool, so that the checker detects out-of-bounds accesses.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import xplstm
from tests.support.cases import CASES, Answer, Case, run
from xplstm import _array, optim
from xplstm._problem import Problem
from xplstm.kernels._cuda import layer, partitions
from xplstm.models import CharLM

KERNELS = ("cupy_block", "cupy_persistent", "cupy_fused", "cupy_elementwise")
KINDS = ("float64", "float32", "tf32", "float16", "bfloat16")
BITS = {"float64": 53, "float32": 24, "tf32": 11, "float16": 11, "bfloat16": 8}
ULPS = 8

# Small sizes with more batch entries than a tile of any dtype has rows.
UNEVEN = Case(T=3, B=35, I=5, H=23, lengths=[3, 0, 2, 3, 1] * 7)


best_plan = partitions.plan_of


def uneven_plan(problem: Problem, backward: bool, alone: bool) -> partitions.Plan | None:
    """Return a partition whose blocks wait for each other, in passes that begin at different threads."""
    if alone:
        return best_plan(problem, backward, alone)
    sizes = len(problem.reverse), problem.B, problem.H, layer.kind(problem)
    chip = partitions.chip_of(problem.device)
    plans = partitions.plans(chip, *sizes, backward, partitions.COSTS)
    uneven = (p for p in plans if p.tiles * p.tile_rows * p.units % partitions.THREADS)
    return next(p for p in uneven if p.unit_blocks > 1 and p.passes > 1)


def agree(kernel: str, case: Case, kind: str, ulps: float = ULPS) -> None:
    """Compare results and gradients of a pinned kernel with the float64 reference on NumPy.

    Raise KernelError if the kernel cannot run the problem, and AssertionError if its results are wrong.
    """
    import cupy as cp

    dtype = "float32" if kind == "tf32" else kind
    host = {k: _array.asarray(a, np, dtype=dtype) for k, a in case.poisoned().items()}
    options = {"precision": "tf32"} if kind == "tf32" else {}
    lstm = case.lstm(dtype=dtype)
    there = xplstm.LSTM(case.I, case.H, xp=cp, dtype=dtype, **case.options, **options)
    there.load_state_dict({k: _array.asarray(a, cp) for k, a in lstm.params.items()})
    arrays = {k: _array.asarray(a, cp) for k, a in host.items()}
    with xplstm.use_kernel(kernel):
        got = run(there, arrays, **case.valid())
        y, (h_n, c_n) = there(arrays["x"], (arrays["h_0"], arrays["c_0"]), **case.valid())
    with xplstm.use_kernel("reference"):
        exact = {k: a.astype("float64") for k, a in host.items()}
        want = run(lstm.to(dtype="float64"), exact, **case.valid())
    part = ulps * 2.0 ** -BITS[kind]
    compare(got, want, part)
    # cuBLAS may select another algorithm for another address.
    part = 0 if kernel in ("cupy_block", "cupy_persistent") else part
    for name, a in (("y", y), ("h_n", h_n), ("c_n", c_n)):
        alone, beside = (cp.asnumpy(v).astype("float64") for v in (a, getattr(got, name)))
        scale = max(1.0, float(np.abs(beside).max(initial=0)))
        message = f"{name} with and without residuals"
        np.testing.assert_allclose(alone, beside, rtol=0, atol=part * scale, err_msg=message)


def compare(got: Answer, want: Answer, part: float) -> None:
    """Check that arrays differ at most by a fraction of their largest number, or of 1."""
    import cupy as cp

    for key, value in want.flat().items():
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        found: Any = cp.asnumpy(got.flat()[key]).astype("float64")
        np.testing.assert_allclose(found, value, rtol=0, atol=part * scale, err_msg=key)


def learned(xp: Any) -> list[float]:
    """Return the losses of a model over three updates: layers, dropout, cross-entropy, a clip and Adam."""
    model = CharLM("abcd", 5, num_layers=2, dropout=0.4, rng=3, xp=xp)
    ids, adam, found = xp.asarray([[0, 1], [2, 2], [1, 3]]), optim.Adam(0.05), []
    for step in range(3):
        loss, _, pullback = model.loss_vjp(ids, ids[::-1], rng=step)
        grads, _ = optim.clip_by_global_norm(pullback(), 0.5)
        model.params = adam.update(model.params, grads)
        found.append(float(loss))
    return found


def main(names: list[str]) -> int:
    """Run the named cases, or all; return 1 if a kernel did not run or a training operation failed."""
    import cupy as cp

    cp.cuda.set_allocator(None)
    cases = {name: CASES[name] for name in names or CASES}
    ran = dict.fromkeys(KERNELS, 0)
    for kernel in KERNELS:
        with xplstm.use_kernel(kernel):
            got = learned(cp)
        np.testing.assert_allclose(got, learned(np), rtol=1e-5)
        for kind in KINDS:
            for name, case in cases.items():
                try:
                    agree(kernel, case, kind)
                except xplstm.KernelError as error:
                    print(f"{kernel} {kind} {name}: {error}")
                else:
                    ran[kernel] += 1
    with patch.object(partitions, "plan_of", uneven_plan):
        for kind in KINDS:
            agree("cupy_persistent", UNEVEN, kind)
    print(", ".join(f"{kernel}: {count} problems" for kernel, count in ran.items()))
    parts = pytest.main(
        ["-q", "-p", "no:cacheprovider", "--backend", "cupy", "tests/kernels/test_cuda_training.py"]
    )
    return min(ran.values()) == 0 or parts != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
