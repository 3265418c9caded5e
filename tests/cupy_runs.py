"""``python -m tests.cupy_runs`` runs CuPy's kernels on small problems, for a checker of memory to watch.

Every array is an allocation of its own there, without CuPy's pool, so that a step beyond its end is seen.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import xplstm
from tests.cases import CASES, Answer, Case, run
from xplstm import _array, optim
from xplstm.models import CharLM

KERNELS = ("cupy_persistent", "cupy_fused")
KINDS = ("float64", "float32", "tf32", "float16", "bfloat16")
BITS = {"float64": 53, "float32": 24, "tf32": 11, "float16": 11, "bfloat16": 8}
ULPS = 8


def agree(kernel: str, case: Case, kind: str, ulps: float = ULPS) -> None:
    """Outputs and gradients of a pinned kernel beside the reference's in float64 on NumPy.

    Raises KernelError where the kernel does not run the problem, AssertionError where it runs it wrongly.
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
    compare(got, want, ulps * 2.0 ** -BITS[kind])
    for name, a in (("y", y), ("h_n", h_n), ("c_n", c_n)):
        np.testing.assert_array_equal(
            cp.asnumpy(a).astype("float64"),
            cp.asnumpy(getattr(got, name)).astype("float64"),
            err_msg=f"{name} with and without residuals",
        )


def compare(got: Answer, want: Answer, part: float) -> None:
    """Within a part of each array's largest number, or of 1."""
    import cupy as cp

    for key, value in want.flat().items():
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        found: Any = cp.asnumpy(got.flat()[key]).astype("float64")
        np.testing.assert_allclose(found, value, rtol=0, atol=part * scale, err_msg=key)


def learned(xp: Any) -> list[float]:
    """Losses of a model over three updates: layers, dropout, cross-entropy, a clip and Adam."""
    model = CharLM("abcd", 5, num_layers=2, dropout=0.4, rng=3, xp=xp)
    ids, adam, found = xp.asarray([[0, 1], [2, 2], [1, 3]]), optim.Adam(0.05), []
    for step in range(3):
        loss, _, pullback = model.loss_vjp(ids, ids[::-1], rng=step)
        grads, _ = optim.clip_by_global_norm(pullback(), 0.5)
        model.params = adam.update(model.params, grads)
        found.append(float(loss))
    return found


def main() -> int:
    import cupy as cp

    cp.cuda.set_allocator(None)
    ran = dict.fromkeys(KERNELS, 0)
    for kernel in KERNELS:
        with xplstm.use_kernel(kernel):
            got = learned(cp)
        np.testing.assert_allclose(got, learned(np), rtol=1e-5)
        for kind in KINDS:
            for name, case in CASES.items():
                try:
                    agree(kernel, case, kind)
                except xplstm.KernelError as error:
                    print(f"{kernel} {kind} {name}: {error}")
                else:
                    ran[kernel] += 1
    print(", ".join(f"{kernel}: {count} problems" for kernel, count in ran.items()))
    return min(ran.values()) == 0


if __name__ == "__main__":
    sys.exit(main())
