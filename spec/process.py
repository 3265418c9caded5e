"""Read and change process settings that a call could change: XPL-REL-015."""

from __future__ import annotations

import contextlib
import decimal
import gc
import importlib
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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


def stack_size() -> int:
    """Return the stack size of new threads, which reading sets to the default."""
    size = threading.stack_size()
    threading.stack_size(size)
    return size


AT_FIRST, ENVIRONMENT = modes(), dict(os.environ)
"""The modes and the environment before any call."""
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGALRM", "SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
"""Those whose handler a test can exchange; faulthandler handles others."""


class Setting(NamedTuple):
    """How to read a setting and to write it, and a value that no implementation chooses."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    other: Callable[[], Any]


def attribute(owner: object, name: str, other: Callable[[], Any]) -> Setting:
    return Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), other)


def set_environment(variables: dict[str, str]) -> None:
    """Replace the whole environment by `variables`."""
    for variable in os.environ.keys() - variables.keys():
        del os.environ[variable]
    os.environ.update(variables)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def set_handlers(given: list[Any]) -> None:
    for number, handler in zip(SIGNALS, given, strict=True):
        signal.signal(number, handler)


def of_unix() -> dict[str, Setting]:
    """Return the settings that Windows does not have."""
    found = {}
    if hasattr(signal, "pthread_sigmask"):
        found["blocked signals"] = Setting(
            lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []),
            lambda value: signal.pthread_sigmask(signal.SIG_SETMASK, value),
            lambda: {signal.SIGUSR1},
        )
        resource = importlib.import_module("resource")
        found["open files at most"] = Setting(
            lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
            lambda value: resource.setrlimit(resource.RLIMIT_NOFILE, value),
            lambda: (1021, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )
    if hasattr(time, "tzset"):
        # It is read from the environment, which is restored first.
        found["time zone"] = Setting(lambda: time.tzname, lambda _: time.tzset(), lambda: None)
    if hasattr(os, "sched_getaffinity"):
        last = {max(os.sched_getaffinity(0))}
        found["processors"] = Setting(
            lambda: os.sched_getaffinity(0),
            lambda value: os.sched_setaffinity(0, value),
            lambda: last,
        )
    return found


SETTINGS: dict[str, Setting] = {
    "environment": Setting(lambda: dict(os.environ), set_environment, lambda: ENVIRONMENT),
    "recursion": Setting(sys.getrecursionlimit, sys.setrecursionlimit, lambda: sys.getrecursionlimit() + 1),
    "interval of threads": Setting(sys.getswitchinterval, sys.setswitchinterval, lambda: 0.003),
    "digits of integers": Setting(sys.get_int_max_str_digits, sys.set_int_max_str_digits, lambda: 4321),
    "stack of new threads": Setting(stack_size, threading.stack_size, lambda: 1 << 23),
    "thresholds of garbage collection": Setting(
        gc.get_threshold, lambda value: gc.set_threshold(*value), lambda: (701, 11, 11)
    ),
    "uncaught exceptions": attribute(sys, "excepthook", lambda: lambda *_: None),
    "exceptions of finalisers": attribute(sys, "unraisablehook", lambda: lambda *_: None),
    "exceptions of threads": attribute(threading, "excepthook", lambda: lambda *_: None),
    "display of warnings": attribute(warnings, "showwarning", lambda: lambda *_: None),
    "level of the log": Setting(
        lambda: logging.getLogger().level,
        lambda value: logging.getLogger().setLevel(value),
        lambda: logging.getLogger().level + 1,
    ),
    "levels that are not logged": Setting(lambda: logging.root.manager.disable, logging.disable, lambda: 7),
    "timeout of sockets": Setting(socket.getdefaulttimeout, socket.setdefaulttimeout, lambda: 77.0),
    "start of processes": Setting(
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda value: multiprocessing.set_start_method(value, force=True),
        lambda: multiprocessing.get_all_start_methods()[-1],
    ),
    "locale": Setting(
        lambda: locale.setlocale(locale.LC_ALL),
        lambda value: locale.setlocale(locale.LC_ALL, value),
        lambda: "C",
    ),
    "signals": Setting(handlers, set_handlers, lambda: [lambda *_: None] * len(SIGNALS)),
    **of_unix(),
}
"""Settings that a test can change and restore."""


def settings() -> dict[str, Any]:
    """Return the settings that other code of the process sees."""
    return (
        {name: setting.read() for name, setting in SETTINGS.items()}
        | modes()
        | {
            "how NumPy prints": str(np.get_printoptions()),
            "buffers and errors of NumPy": (np.getbufsize(), np.geterrcall()),
            "random numbers of NumPy": str(np.random.get_state()),  # noqa: NPY002 - the global one is meant
            "random numbers of Python": random.getstate(),
            "garbage collection": gc.isenabled(),
            "modules' path": [*sys.path],
            "filters of warnings": [*warnings.filters],
            "handlers of the log": [*logging.getLogger().handlers],
            "decimals": str(decimal.getcontext()),
            "functions that trace": (sys.getprofile(), threading.getprofile()),
            "all signals": [signal.getsignal(number) for number in signal.valid_signals()],
            "streams": (sys.stdout, sys.stderr),
            "threads": threading.active_count(),
            "open files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None,
        }
    )


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore the settings at the end of a block, and cancel the timers that were started in it."""
    before = {name: setting.read() for name, setting in SETTINGS.items()}
    threads = threading.enumerate()
    profile = threading.getprofile()
    with np.printoptions(), np.errstate(), warnings.catch_warnings(), decimal.localcontext():
        try:
            yield
        finally:
            for name, setting in SETTINGS.items():
                setting.write(before[name])
            threading.setprofile(profile)
            for thread in threading.enumerate():
                if isinstance(thread, threading.Timer) and thread not in threads:
                    thread.cancel()
                    thread.join()


@contextlib.contextmanager
def other_settings() -> Iterator[None]:
    """Change the settings that an earlier call may have changed."""
    np.random.random()  # noqa: NPY002 - a generator that each call seeds is then elsewhere
    random.random()
    gc.enable()
    with restored():
        np.set_printoptions(precision=5)
        np.seterr(divide="print")
        np.setbufsize(4096)
        np.seterrcall(lambda *_: None)
        warnings.simplefilter("error")
        decimal.getcontext().prec = 31
        for setting in SETTINGS.values():
            setting.write(setting.other())
        yield
