"""Define LSTMs with faults in what they remember, return, change, or detect about their arguments."""

from __future__ import annotations

import decimal
import gc
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
from collections.abc import Callable
from itertools import permutations

import numpy as np

from spec.records import Record
from spec.sized_mutants import RIGHT, Call, Wrong
from spec.subject import Arrays


class Plain(Wrong):
    """Wrong LSTM that returns the arrays of `ask` themselves."""

    def __init__(self, ask: Call = RIGHT.call) -> None:
        super().__init__(ask)

    def call(self, op: str, config: Record, arrays: Arrays) -> Arrays:
        return self.ask(op, config, arrays)


def buffered() -> Call:
    kept: Arrays = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        got = dict(RIGHT.call(op, config, a))
        buffer = kept.setdefault(f"{op} {got['y'].shape}", np.empty_like(got["y"]))
        buffer[...] = got["y"]
        return got | {"y": buffer}

    return call


def packed_once() -> Call:
    """Return an LSTM that remembers weights by the address of their array."""
    kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        weights = {
            n: kept.setdefault(id(v), (v, v.copy()))[1] for n, v in a.items() if n.startswith("weight")
        }
        return RIGHT.call(op, config, a | weights)

    return call


def with_old_biases() -> Call:
    """Return an LSTM that uses the biases of the first call in calls of the same sizes without biases."""
    kept: dict[tuple[tuple[int, ...], ...], Arrays] = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        sizes = tuple(v.shape for n, v in a.items() if n.startswith("weight"))
        biases = {n: v.copy() for n, v in a.items() if n.startswith("bias")}
        old = kept.setdefault(sizes, biases) if biases else kept.get(sizes, {})
        got = RIGHT.call(op, config | {"bias": bool(biases or old)}, a | (biases or old))
        return got if biases else {n: v for n, v in got.items() if not n.startswith("dbias")}

    return call


def with_old_lengths() -> Call:
    """Return an LSTM that uses the lengths of an earlier call in a call without lengths."""
    kept: dict[tuple[int, ...], list[int]] = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        lengths = config.get("lengths") or kept.get(a["x"].shape)
        if lengths:
            kept[a["x"].shape] = lengths
        return RIGHT.call(op, config | {"lengths": lengths}, a)

    return call


def packed_by_sum() -> Call:
    """Return an LSTM that remembers weights by their shape and sum."""
    kept: dict[tuple[str, tuple[int, ...], float], np.ndarray] = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        packed = {n: kept.setdefault((n, v.shape, round(float(v.sum()), 3)), v.copy()) for n, v in a.items()}
        return RIGHT.call(op, config, packed)

    return call


def packed_by(key: Callable[[np.ndarray], bytes], ending: str = "") -> Call:
    """Return an LSTM that remembers arrays of names with this ending by their shape and a key."""
    kept: dict[tuple[str, tuple[int, ...], bytes], np.ndarray] = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        packed = {
            n: kept.setdefault((n, v.shape, key(v)), v.copy()) for n, v in a.items() if n.endswith(ending)
        }
        return RIGHT.call(op, config, a | packed)

    return call


def lanes_of_nan() -> Call:
    """Return an LSTM that keeps a NaN of the previous call in a padded unit."""
    left = 0.0

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        nonlocal left
        got = dict(RIGHT.call(op, config, a))
        got["y"], left = got["y"] + 0 * left, float(np.sum(a["h_0"]))
        return got

    return call


def with_large_buffers() -> Call:
    """Return an LSTM that reuses a buffer for results of more than a thousand numbers."""
    kept: Arrays = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        got = dict(RIGHT.call(op, config, a))
        for n in (n for n, v in got.items() if v.size > 1000):
            buffer = kept.setdefault(f"{n} {got[n].shape}", np.empty_like(got[n]))
            buffer[...] = got[n]
            got[n] = buffer
        return got

    return call


def setting(change: Callable[[], object]) -> Call:
    """Return an LSTM that changes a setting of the process to the same value in each call."""

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        change()
        return RIGHT.call(op, config, a)

    return call


def in_another_zone() -> None:
    """Change the time zone without its variable."""
    before = dict(os.environ)
    os.environ["TZ"] = "XPL-7"
    time.tzset()
    del os.environ["TZ"]
    os.environ.update(before)


SETTERS: dict[str, Callable[[], object]] = {
    "environment": lambda: os.environ.update(KMP_BLOCKTIME="0"),
    "decimals": lambda: setattr(decimal.getcontext(), "prec", 9),
    "recursion": lambda: sys.setrecursionlimit(5000),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"),
    "log": lambda: logging.getLogger().setLevel(logging.DEBUG),
    "levels that are not logged": lambda: logging.disable(logging.INFO),
    "signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "another signal": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    "generator of NumPy": lambda: np.random.seed(3),  # noqa: NPY002 - the fault
    "generator of Python": lambda: random.seed(3),
    "how NumPy prints": lambda: np.set_printoptions(precision=3),
    "buffers of NumPy": lambda: np.setbufsize(16384),
    "errors of NumPy": lambda: np.seterrcall(print),
    "interval of threads": lambda: sys.setswitchinterval(0.02),
    "stack of new threads": lambda: threading.stack_size(1 << 20),
    "digits of integers": lambda: sys.set_int_max_str_digits(9000),
    "garbage collection": lambda: gc.set_threshold(5000, 20, 20),
    "uncaught exceptions": lambda: setattr(sys, "excepthook", print),
    "exceptions of finalisers": lambda: setattr(sys, "unraisablehook", print),
    "exceptions of threads": lambda: setattr(threading, "excepthook", print),
    "display of warnings": lambda: setattr(warnings, "showwarning", print),
    "timeout of sockets": lambda: socket.setdefaulttimeout(5),
    "threads": lambda: threading.Timer(3600, print).start(),
    "start of processes": lambda: multiprocessing.set_start_method("spawn", force=True),
    "profile of threads": lambda: threading.setprofile(lambda *_: None),
}
if hasattr(time, "tzset"):
    SETTERS["time zone"] = in_another_zone
if hasattr(signal, "pthread_sigmask"):
    SETTERS["blocked signals"] = lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
    FIRST = min(os.sched_getaffinity(0))
    SETTERS["processors"] = lambda: os.sched_setaffinity(0, {FIRST})


def scratch() -> Call:
    """Return an LSTM whose calls share one place for x."""
    place: Arrays = {}

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        place["x"] = a["x"]
        time.sleep(1e-3)
        return RIGHT.call(op, config, a | {"x": place["x"]})

    return call


def in_a_ring() -> Call:
    """Return an LSTM that alternates between two buffers for each size."""
    kept: Arrays = {}
    calls = 0

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        nonlocal calls
        got, calls = dict(RIGHT.call(op, config, a)), calls + 1
        buffer = kept.setdefault(f"{calls % 2} {got['y'].shape}", np.empty_like(got["y"]))
        buffer[...] = got["y"]
        return got | {"y": buffer}

    return call


def in_an_arena() -> Call:
    """Return an LSTM that puts the results of all sizes at one place."""
    place = np.empty(1 << 16)

    def call(op: str, config: Record, a: Arrays) -> Arrays:
        got = dict(RIGHT.call(op, config, a))
        y = place[: got["y"].size].reshape(got["y"].shape)
        y[...] = got["y"]
        return got | {"y": y}

    return call


def final_of_outputs(op: str, config: Record, a: Arrays) -> Arrays:
    got = RIGHT.call(op, config, a)
    return got | {"h_n": got["y"][-1]} if op.startswith("layer") and not config["lengths"] else got


def emptied(op: str, config: Record, a: Arrays) -> Arrays:
    got = RIGHT.call(op, config, a)
    for name in ("mask", "variant", "dropout"):
        config.pop(name, None)
    return got


def rows_by_width(op: str, config: Record, a: Arrays) -> Arrays:
    """Compute from the memory of an array whose last axis is contiguous, without its other strides."""
    return RIGHT.call(
        op, config, {n: from_here(v) if v.strides[-1] == v.itemsize else v for n, v in a.items()}
    )


def from_here(v: np.ndarray) -> np.ndarray:
    memory = root(v).ravel("K")[(address(v) - address(root(v))) // v.itemsize :]
    return np.concatenate([memory, np.zeros(v.size, v.dtype)])[: v.size].reshape(v.shape)


def address(v: np.ndarray) -> int:
    return int(v.__array_interface__["data"][0])


def at_wide_addresses(op: str, config: Record, a: Arrays) -> Arrays:
    moved = {n: np.roll(v, address(v) % 16 // v.itemsize, -1) for n, v in a.items()}
    return RIGHT.call(op, config, moved)


def at_multiples(op: str, config: Record, a: Arrays) -> Arrays:
    """Read each array from the next multiple of its item size."""
    moved = {n: np.roll(v, -bool(address(v) % v.itemsize)) for n, v in a.items()}
    return RIGHT.call(op, config, moved)


def drawing_elsewhere(op: str, config: Record, a: Arrays) -> Arrays:
    if "dropout" in config:
        np.random.random()  # noqa: NPY002 - the fault
    return RIGHT.call(op, config, a)


def own_state(op: str, config: Record, a: Arrays) -> Arrays:
    got = RIGHT.call(op, config, a)
    return got if len(a["x"]) else got | {"h_n": a["h_0"]}


def state_without_steps(op: str, config: Record, a: Arrays) -> Arrays:
    got = RIGHT.call(op, config, a)
    return got if np.any(config.get("mask", True)) else got | {"h_n": a["h_0"]}


def one_zero(op: str, config: Record, a: Arrays) -> Arrays:
    """Return y as one number that every axis repeats, where it is zero everywhere."""
    got = RIGHT.call(op, config, a)
    y = np.lib.stride_tricks.as_strided(np.zeros(1), got["y"].shape, (0,) * got["y"].ndim)
    return got if got["y"].any() else got | {"y": y}


def in_c_order(op: str, config: Record, a: Arrays) -> Arrays:
    """Compute from the memory of each array in C order, from its first address."""
    return RIGHT.call(op, config, {n: from_the_first(v) for n, v in a.items()})


def from_the_first(v: np.ndarray) -> np.ndarray:
    memory = root(v).ravel("K")
    return np.concatenate([memory, np.zeros(v.size, v.dtype)])[: v.size].reshape(v.shape)


def root(v: np.ndarray) -> np.ndarray:
    while isinstance(v.base, np.ndarray):
        v = v.base
    return v


def sorting(op: str, config: Record, a: Arrays) -> Arrays:
    if config.get("lengths"):
        config["lengths"].sort()
    return RIGHT.call(op, config, a)


def gradients_by_object(op: str, config: Record, a: Arrays) -> Arrays:
    """Compute one gradient, the sum, for all parameters that are one array."""
    got = RIGHT.call(op, config, a)
    return got | {
        f"d{n}": np.sum([got[f"d{m}"] for m, w in a.items() if w is v and f"d{m}" in got], axis=0)
        for n, v in a.items()
        if f"d{n}" in got
    }


def one_object(op: str, config: Record, a: Arrays) -> Arrays:
    """Compute with c_0 of zeros where it is the array of h_0."""
    same = a["c_0"] is a["h_0"]
    return RIGHT.call(op, config, a | ({"c_0": np.zeros_like(a["c_0"])} if same else {}))


def of_one_vector(op: str, config: Record, a: Arrays) -> Arrays:
    """Compute with parameters in reversed order where they are parts of one vector."""
    weights = {n: v for n, v in a.items() if n.startswith(("weight", "bias"))}
    if len(weights) != len({id(root(v)) for v in weights.values()}):
        whole = np.concatenate([v.ravel() for v in reversed(weights.values())])
        ends = np.cumsum([v.size for v in weights.values()])
        a = a | {
            n: whole[end - v.size : end].reshape(v.shape)
            for (n, v), end in zip(weights.items(), ends, strict=True)
        }
    return RIGHT.call(op, config, a)


def apart(op: str, config: Record, a: Arrays) -> Arrays:
    """Compute with zeros for each array that begins inside another one."""
    inside = {
        n for (n, v), (_, w) in permutations(a.items(), 2) if address(w) < address(v) < address(w) + w.nbytes
    }
    return RIGHT.call(op, config, {n: np.zeros_like(v) if n in inside else v for n, v in a.items()})
