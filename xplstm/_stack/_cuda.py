"""Share CUDA memory of other libraries with CuPy, by DLPack and without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._problem import Loan
from xplstm._typing import CuPyArray

DLPACK_KIND = 2
"""DLPack's device type of CUDA memory."""


def loan(place: str, number: int) -> Loan | str:
    """Return the `Loan` of the memory of GPU `number`, or why the kernels for CuPy cannot run there."""
    # Not needed by a program without arrays on CUDA.
    from xplstm.kernels._cuda import layer

    reason = _array.why_unusable("cupy") or layer.why_not_this_cupy()
    if reason:
        return f"they are on {place}, where CuPy's kernels cannot run: {reason}"
    xp = _array.named_namespace("cupy")
    import cupy as cp

    return Loan(xp, "cupy", cp.cuda.Device(number))


def view(a: Any) -> CuPyArray:
    """Return a CuPy array that shares the memory of `a`, or a copy of a NumPy array.

    The current stream waits for pending writes to `a`.
    """
    import cupy as cp

    return cp.asarray(a) if isinstance(a, np.ndarray) else cp.from_dlpack(a)


@contextmanager
def use_stream(lent: Loan, stream: Any) -> Iterator[None]:
    """Set a stream of another library as CuPy's current stream."""
    import cupy as cp

    with lent.device, cp.cuda.Stream.from_external(stream):
        yield


@contextmanager
def synchronise_after(lent: Loan) -> Iterator[None]:
    """Synchronise at the end; otherwise JAX could reuse memory that CuPy's stream still reads."""
    import cupy as cp

    with lent.device:
        try:
            yield
        finally:
            cp.cuda.get_current_stream().synchronize()
