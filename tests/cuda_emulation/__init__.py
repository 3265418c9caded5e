"""The CUDA sources as programs of the processor, and a stand-in for the few calls of CuPy that launch them.

Nothing here is a run on a GPU: it shows that the kernels' logic and the Python
side's buffers, launch sizes and arguments are right, and nothing of speed,
of memory order on a GPU, or of NVIDIA's compiler.
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
    """Return the kinds of numbers as parameters; all but the first take long."""
    return [pytest.param(name, marks=[] if name in FIRST else [thorough]) for name in names]
