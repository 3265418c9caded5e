"""Kernels: one module each, with the functions that `xplstm._dispatch.Kernel` lists.

A kernel's module imports neither another kernel nor `_dispatch`. It is loaded on first use.
"""
