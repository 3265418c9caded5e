"""``python -m tests.benchmarks.gpu``: time the CuPy kernels and their peers on one GPU."""

from __future__ import annotations

import sys

from tests.benchmarks.gpu.bench import main

if __name__ == "__main__":
    sys.exit(main())
