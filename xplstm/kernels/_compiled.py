"""Check that the C extension module exists and has the interface of this version."""

from __future__ import annotations

INTERFACE = 16
"""Increment with every change of the arguments in module.c. An old build has another number, or none."""

# All four are needed, because pip keeps an installed version and caches a wheel built without a compiler.
_OPTIONS = "--force-reinstall --no-deps --no-cache-dir --no-binary xplstm"


def _why_not() -> str:
    """Return why the compiled module cannot be used, and what to do, or an empty text."""
    try:
        from xplstm.kernels import _engine
    except (ImportError, SystemError) as error:
        hint = f"install a C compiler, then repeat pip install with {_OPTIONS}"
        return f"it is not compiled here ({error}); {hint}"
    version = _engine.interface() if hasattr(_engine, "interface") else 0
    if version == INTERFACE:
        return ""
    return (
        f"its compiled module is from another version: it has interface {version}, expected {INTERFACE}; "
        f"repeat pip install with {_OPTIONS}"
    )


WHY_NOT = _why_not()
