"""Run the CUDA sources as CPU programs, with a substitute for the CuPy functions that launch them.

Nothing here runs on a GPU. The emulation checks the logic of the kernels, and the buffers, launch sizes and
arguments of the Python code. It does not check speed, memory order on a GPU, or NVIDIA's compiler.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

thorough = pytest.mark.skipif(
    os.environ.get("XPLSTM_THOROUGH") != "1", reason="takes long: XPLSTM_THOROUGH=1, or nox -s emulation"
)

FIRST = ("float32", "bfloat16")
"""The default run's kinds of numbers, one by fused multiply-adds, one by tensor cores: each is compiled."""


def kinds(names: Iterable[str]) -> list[Any]:
    """Return the dtypes as parameters; all except the first are slow."""
    return [pytest.param(name, marks=[] if name in FIRST else [thorough]) for name in names]
