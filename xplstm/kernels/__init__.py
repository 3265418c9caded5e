"""One room an engine, siblings behind the signature of `xplstm._dispatch.Kernel`.

They import neither each other nor the seam, and are loaded when first used.
"""
