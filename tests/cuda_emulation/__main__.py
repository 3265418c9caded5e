"""Run a kernel's emulation under a preloaded ThreadSanitizer: ``python -m tests.cuda_emulation KERNEL``."""

from __future__ import annotations

import sys

import numpy as np

from tests.cuda_emulation import compiled, standin
from tests.cuda_emulation.carried import emulated
from tests.support.cases import Case, run
from tests.support.cupy_runs import uneven_plan
from xplstm import _array, _dispatch
from xplstm.kernels._cuda import partitions

RUNS = {
    "cupy_fused": [
        ("float32", Case(T=3, B=5, H=17, lengths=[3, 0, 2, 3, 1], options={"bidirectional": True})),
        ("float32", Case(T=3, B=5, H=17, lengths=[3, 0, 2, 3, 1], options={"proj_size": 2})),
    ],
    "cupy_persistent": [
        (
            "float32",
            Case(T=3, B=9, H=17, lengths=[3, 0, 2, 3, 1, 3, 2, 3, 3], options={"bidirectional": True}),
        ),
        ("bfloat16", Case(T=2, B=17, H=9, lengths=[2, 0, 1] * 5 + [2, 2])),
        ("tf32", Case(T=3, B=17, H=9, lengths=[3, 0, 1] * 5 + [2, 2])),
    ],
    "cupy_block": [
        (
            "float32",
            Case(T=3, B=9, H=17, lengths=[3, 0, 2, 3, 1, 3, 2, 3, 3], options={"bidirectional": True}),
        ),
        ("bfloat16", Case(T=2, B=17, H=9, lengths=[2, 0, 1] * 5 + [2, 2])),
        ("bfloat16", Case(T=2, B=17, H=29)),
    ],
}


def main(name: str) -> None:
    compiled.extra = ("-fsanitize=thread", "-g")
    partitions.plan_of = uneven_plan
    _dispatch.select = lambda _: emulated(name)
    with standin.installed():
        for kind, case in RUNS[name]:
            partitions.THREADS = 64 if kind == "float32" else 96
            dtype, precision = ("float32", "tf32") if kind == "tf32" else (kind, None)
            arrays = {key: _array.asarray(a, np, dtype=dtype) for key, a in case.arrays().items()}
            run(case.lstm(dtype=dtype, precision=precision), arrays, **case.valid())
    print("no race")


main(sys.argv[1])
