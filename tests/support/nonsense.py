"""Call every public function with an invalid value, and classify the outcome.

The calls come from `publiccalls`. As a module, this file runs one share of the calls and writes one line of
JSON for each, in a process with limited memory and time.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

import xplstm
from tests.support import innercalls, publiccalls

CALLS = {**publiccalls.CALLS, **innercalls.CALLS}
SECONDS = 5
BYTES = 2**30

with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)
    MATRIX = np.asmatrix([[1, 2]])
VALUES: dict[str, Any] = {
    **{
        "None": None,
        "True": True,
        "-1": -1,
        "0": 0,
        "1": 1,
        "1.5": 1.5,
        "nan": float("nan"),
        "inf": float("inf"),
    },
    **{
        "10**400": 10**400,
        "2**63": 2**63,
        "'x'": "x",
        "''": "",
        "b'x'": b"x",
        "1j": 1j,
        "[]": [],
        "()": (),
        "{}": {},
    },
    **{"object": object(), "class": int, "lambda": lambda *_: None, "generator": (_ for _ in ())},
    **{
        "matrix": MATRIX,
        "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
        "datetime": np.datetime64("2020"),
    },
    **{
        "complex": np.ones((3, 2), complex),
        "empty": np.empty((0,)),
        "strings": np.array(["a", "b"]),
        "0-d": np.array(2),
    },
    **{"ones": np.ones(3), "objects": np.array([None, "a"], object), "list": [None, 1], "dict": {1: None}},
}


def trials(seed: int, share: float) -> Iterator[tuple[str, str, str]]:
    """Yield the call, argument and value of each trial in one share of all, drawn by the seed."""
    drawn = random.Random(seed)
    for name, make in CALLS.items():
        function, _ = make()
        for argument, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                yield from ((name, argument, value) for value in VALUES if drawn.random() < share)


def outcome(name: str, argument: str, value: str) -> str:
    """Return the outcome of a call: "refused", "returned" or the unexpected error."""
    function, good = CALLS[name]()
    signal.alarm(SECONDS)
    try:
        function(**good | {argument: VALUES[value]})
    except (xplstm.XplstmError, ImportError):
        return "refused"
    except OSError as error:
        return "refused" if argument in {"path", "source", "checkpoint"} else repr(error)
    except BaseException as error:
        return repr(error)[:200]
    finally:
        signal.alarm(0)
        xplstm.use_kernel(None)
        xplstm.use_threads(None)
        xplstm.use_backend("numpy")
    return "returned"


def too_long(*_: object) -> None:
    msg = f"the call ran for more than {SECONDS} s"
    raise RuntimeError(msg)


def main(part: int, parts: int, seed: int, share: float) -> None:
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp())
    signal.signal(signal.SIGALRM, too_long)
    outcome("LSTM.vjp", "x", "None")
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.RLIM_INFINITY))
    for k, trial in enumerate(trials(seed, share)):
        if k % parts == part:
            print(json.dumps(trial), flush=True)  # first, to name a call that ends the process
            print(json.dumps(outcome(*trial)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
