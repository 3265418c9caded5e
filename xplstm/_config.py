"""What is installed here and what of it can run: `show_config`."""

from __future__ import annotations

import platform

from xplstm import _array, _dispatch


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
        missing, unproven = _dispatch.why_missing(name), _dispatch.load(name).unproven
        text = f"not usable: {missing}" if missing else unproven and f"only when pinned: {unproven}"
        print(f"  {name:<17} {text}" if text else f"  {name}")
