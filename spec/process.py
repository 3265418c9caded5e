"""Read and change process settings that a call could change: XPL-REL-015."""

from __future__ import annotations

import contextlib
import decimal
import gc
import locale
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np


def modes() -> dict[str, Any]:
    """Return the modes of arithmetic and of files that can be read in microseconds."""
    return {
        "subnormal numbers": float((np.array([2.0**-140], "float32") * np.float32(0.5))[0]),
        "rounding": [one + np.float64(2.0**-53) * 1.5 for one in np.array([1.0, -1.0])],
        "errors of NumPy": np.geterr(),
        "folder": os.getcwd(),
        "mode of new files": mode_of_new_files(),
    }


def mode_of_new_files() -> int:
    """Return the permission mask, which can be read only by setting it."""
    mode = os.umask(0o22)
    os.umask(mode)
    return mode


AT_FIRST, ENVIRONMENT = modes(), dict(os.environ)
"""As they were before any call."""
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGALRM", "SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
"""Those whose handler a test can exchange; faulthandler handles others."""


def settings() -> dict[str, Any]:
    """Return the settings that other code of the process sees."""
    return modes() | {
        "how NumPy prints": str(np.get_printoptions()),
        "random numbers of NumPy": str(np.random.get_state()),  # noqa: NPY002 - the global one is meant
        "random numbers of Python": random.getstate(),
        "environment": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
        "garbage collection": gc.isenabled(),
        "modules' path": [*sys.path],
        "filters of warnings": [*warnings.filters],
        "log": (logging.getLogger().level, [*logging.getLogger().handlers]),
        "decimals": str(decimal.getcontext()),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "streams": (sys.stdout, sys.stderr),
        "open files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None,
    }


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore the settings at the end of a block."""
    level, limit, variables = logging.getLogger().level, sys.getrecursionlimit(), dict(os.environ)
    names, handlers = locale.setlocale(locale.LC_ALL), {n: signal.getsignal(n) for n in SIGNALS}
    with np.printoptions(), np.errstate(), warnings.catch_warnings(), decimal.localcontext():
        try:
            yield
        finally:
            logging.getLogger().setLevel(level)
            sys.setrecursionlimit(limit)
            locale.setlocale(locale.LC_ALL, names)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            set_environment(variables)


@contextlib.contextmanager
def other_settings() -> Iterator[None]:
    """Change the settings that an earlier call may have changed."""
    np.random.random()  # noqa: NPY002 - a generator that each call seeds is then elsewhere
    random.random()
    gc.enable()
    with restored():
        np.set_printoptions(precision=5)
        np.seterr(divide="print")
        warnings.simplefilter("error")
        decimal.getcontext().prec = 31
        logging.getLogger().setLevel(logging.getLogger().level + 1)
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)
        locale.setlocale(locale.LC_ALL, "C")
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        set_environment(ENVIRONMENT)
        yield


def set_environment(variables: dict[str, str]) -> None:
    """Replace the whole environment by `variables`."""
    for variable in os.environ.keys() - variables.keys():
        del os.environ[variable]
    os.environ.update(variables)
