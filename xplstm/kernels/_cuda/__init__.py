"""The CUDA sources of the CuPy kernels, and the Python code that launches them."""
