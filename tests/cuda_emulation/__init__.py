"""The CUDA sources as programs of the processor, and a stand-in for the few calls of CuPy that launch them.

Nothing here is a run on a GPU: it shows that the kernels' logic and the Python
side's buffers, launch sizes and arguments are right, and nothing of speed,
of memory order on a GPU, or of NVIDIA's compiler.
"""

from __future__ import annotations

import os

import pytest

thorough = pytest.mark.skipif(
    os.environ.get("XPLSTM_THOROUGH") != "1", reason="takes long: XPLSTM_THOROUGH=1, or nox -s emulation"
)
