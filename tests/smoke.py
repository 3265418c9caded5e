"""Check an installed xplstm: ``python -P tests/smoke.py [native]``; the argument makes `native` required."""

from __future__ import annotations

import importlib.metadata
import sys

import numpy as np

import xplstm


def answers(kernel: str) -> list[np.ndarray]:
    """Return outputs, states and gradients of a small ragged batch."""
    rng = np.random.default_rng(0)
    lstm = xplstm.LSTM(3, 5, num_layers=2, bidirectional=True, rng=1)
    x, dy = (rng.standard_normal((7, 4, n)).astype("float32") for n in (3, 10))
    with xplstm.use_kernel(kernel):
        y, state, pullback = lstm.vjp(x, lengths=[7, 0, 3, 5])
    dx, dstate, dparams = pullback(dy)
    return [y, *state, dx, *dstate, *dparams.values()]


def main() -> None:
    """Compare the kernels of the installation with the reference."""
    assert importlib.metadata.version("xplstm") == xplstm.__version__
    want = answers("reference")
    kernels = ["numpy_inplace", *(["native"] if "native" in sys.argv[1:] else [])]
    for kernel in kernels:
        for got, expected in zip(answers(kernel), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=kernel)
    print(f"xplstm {xplstm.__version__} on Python {sys.version.split()[0]}: {', '.join(kernels)} agree")


if __name__ == "__main__":
    main()
