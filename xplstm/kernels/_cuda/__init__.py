"""The CUDA sources of the CuPy kernels, and the Python that launches them."""
