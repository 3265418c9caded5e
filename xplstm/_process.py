"""The backends, kernels, threads of the compiled kernel and kept memory of this process."""

from __future__ import annotations

import platform

from xplstm import _array, _choice, _dispatch, _values
from xplstm._choice import Chosen
from xplstm.kernels import _recycled


def show_config() -> None:
    """Print versions, the backends found and usable, and the kernels.

    Looks at CuPy's devices if CuPy is installed; imports no other library.

    Examples
    --------
    >>> import xplstm
    >>> xplstm.show_config()  # doctest: +ELLIPSIS
    xplstm ...
    """
    from xplstm import __version__

    print(f"xplstm {__version__} on Python {platform.python_version()}, {platform.machine()}")
    print("backends")
    for name, (_, package) in _array.BACKENDS.items():
        reason = _array.why_unusable(name)
        text = "usable" if reason is None else f"not usable: {reason}"
        print(f"  {name:<17} {_array.version(package) or '-':<12} {text}")
    print("kernels, fastest first")
    for name in _dispatch.TABLE:
        missing, kernel = _dispatch.why_missing(name), _dispatch.load(name)
        proof = "" if kernel.proof is None else "where it is proven on the device, or pinned"
        text = f"not usable: {missing}" if missing else proof
        print(f"  {name:<17} {text}" if text else f"  {name}")


def use_threads(count: int | None) -> Chosen[int | None]:
    """Set how many threads the kernel ``native`` uses from here on; None chooses automatically again.

    Takes effect at once for the whole process, or, as a context manager,
    inside the block for the present thread or task alone. The number of
    threads changes no bit of a result. A `FrozenLSTM` keeps for its `step`
    the number that held when it was frozen.

    Automatic is ``XPLSTM_NUM_THREADS``, else ``OMP_NUM_THREADS``, else as
    many as the process has processors: its affinity and the quota of its
    control group count, also when they change while it runs.

    Parameters
    ----------
    count : int or None
        At least 1. More than 64 are as many as 64, and a small problem takes fewer.

    Returns
    -------
    context manager
        Need not be entered; leaving its block restores what held before.

    Raises
    ------
    DTypeError, ArgumentError
        If `count` is no integer of at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> lstm = xplstm.LSTM(3, 2, rng=0)
    >>> with xplstm.use_threads(1):
    ...     y, state = lstm(np.ones((5, 4, 3), dtype="float32"))
    """
    return Chosen(_choice.threads, None if count is None else _values.size("count", count))


def release_memory() -> None:
    """Give the memory that is kept for the next call back to the system.

    The kernels for NumPy keep the memory of the largest training step, and
    the scratch of the largest call, for the next one. What arrays still use
    is not touched. The next call takes longer by the time it needs to get
    such memory again.

    Examples
    --------
    >>> import xplstm
    >>> xplstm.release_memory()
    """
    from xplstm.kernels import native

    _recycled.pieces.release()
    native.release_memory()
