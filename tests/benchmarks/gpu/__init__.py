"""Measure the CuPy kernels on a GPU: ``python -m tests.benchmarks.gpu``."""
