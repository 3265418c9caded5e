"""Run the benchmark: ``python -m tests.benchmarks.gpu``."""

from __future__ import annotations

import sys

from tests.benchmarks.gpu.bench import main

if __name__ == "__main__":
    sys.exit(main())
