"""Show and change the settings of this process: backends, kernels, threads and cached memory."""

from __future__ import annotations

import platform

from xplstm import _array, _choice, _dispatch, _values
from xplstm._choice import Chosen
from xplstm.kernels import _recycled, _threads


def show_config() -> None:
    """Print versions, the installed and usable backends, and the kernels.

    Queries CUDA devices if CuPy is installed. Imports no other array library.

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
        proof = "" if kernel.proof is None else "usable if proven on the device, or pinned"
        text = f"not usable: {missing}" if missing else proof
        print(f"  {name:<17} {text}" if text else f"  {name}")


def use_threads(count: int | None) -> Chosen[int | None]:
    """Set the number of threads of the kernel ``native``; None restores the automatic number.

    A call sets the number for the whole process at once. As a context manager,
    the call sets the number inside its block, for the current thread or task.
    The number of threads does not change the bits of a result. `FrozenLSTM.step` keeps
    the number that was set when the layer was frozen.

    threadpoolctl, if imported before xplstm, lists this number for the process.
    Its limits apply inside blocks too: the smaller number applies.

    The automatic number is ``XPLSTM_NUM_THREADS``, else ``OMP_NUM_THREADS``,
    else the number of processors that the process may use. The CPU affinity and
    the quota of the control group limit that number, even if they change later.

    Parameters
    ----------
    count : int or None
        At least 1. The kernel uses at most 64 threads, and fewer for a small problem.

    Returns
    -------
    context manager
        Optional to enter. Leaving its block restores the previous setting.

    Raises
    ------
    DTypeError
        If `count` is not an integer.
    ArgumentError
        If `count` is below 1 or above 2**31 - 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> lstm = xplstm.LSTM(3, 2, rng=0)
    >>> with xplstm.use_threads(1):
    ...     y, state = lstm(np.ones((5, 4, 3), dtype="float32"))
    """
    return Chosen(_choice.threads, None if count is None else _values.size("count", count))


def register_threads() -> None:
    """Let threadpoolctl, if it is already imported, list and limit the threads of the kernel ``native``."""
    if not _threads.can_register():
        return
    from xplstm.kernels._compiled import WHY_NOT

    if WHY_NOT:
        return
    from xplstm.kernels import _engine

    def environment() -> int:
        # An invalid variable is an error at the first use of the kernel, not at `import xplstm`.
        from xplstm.kernels import native

        return native.THREADS

    _threads.register(_engine.__file__, environment)


def release_memory() -> None:
    """Free the memory that the kernels for NumPy keep for the next call.

    These kernels keep the memory of the largest training step and the scratch
    memory of the largest call. Memory that arrays still use is not freed. The
    next call takes longer because it allocates memory again.

    Examples
    --------
    >>> import xplstm
    >>> xplstm.release_memory()
    """
    from xplstm.kernels import native

    _recycled.pieces.release()
    native.release_memory()
