"""Run an implementation in any language: a program that reads JSON lines and answers each with one line.

A request is ``{"id", "op", "config", "dtype", "arrays": {name: {"shape", "data"}}}``. An answer is
``{"arrays": ...}``, ``{"unsupported": why}``, ``{"refused": "shape" or "other", "message": why}``, or
``{"error": what}`` if the call failed. An answer may repeat the id of the request, which is then compared.
Data are in C order; NaN and infinities are the strings nan, inf and -inf.
"""

from __future__ import annotations

import atexit
import json
import math
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np

from spec.subject import Arrays, Config, Refused, Unsupported

PATIENCE = 60.0
HANGS = 3
"""Number of requests without an answer in time after which the program gets no more requests."""
STRAY = 5.0
"""Seconds to wait for the answer after an unexpected line."""


class Failed(Exception):
    """The call failed, and the program waits for the next request."""


class InvalidAnswer(RuntimeError):
    """The program's line is no answer to the request."""


class Stdio:
    """Program that is started by the first request."""

    def __init__(self, command: str, patience: float = PATIENCE) -> None:
        self.command, self.unreadable = words(command)
        self.patience = patience
        self.hangs = 0
        self.asked = 0
        self.process: subprocess.Popen[str] | None = None
        self.listener = ThreadPoolExecutor(1)

    def describe(self) -> dict[str, str]:
        return {"name": "stdio", "version": "", "library": "stdio", "kernel": shlex.join(self.command)}

    def why_unavailable(self) -> str | None:
        if self.unreadable:
            return self.unreadable
        if not self.command:
            return "--stdio needs the command of a program"
        found = shutil.which(self.command[0])
        return None if found else f"the program {self.command[0]!r} does not exist"

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        dtype = str(next(iter(arrays.values())).dtype)
        given = {name: written(a) for name, a in arrays.items()}
        self.asked += 1
        config = {"bias": any("bias" in name for name in arrays), **config}
        question = {"id": self.asked, "op": op, "config": config, "dtype": dtype, "arrays": given}
        line = self.ask(json.dumps(question))
        try:
            answer = json.loads(line)
            if answer.get("id", self.asked) != self.asked:
                self.abandon()
                msg = f"its id is {answer['id']}, expected {self.asked}"
                raise ValueError(msg)
            if "unsupported" in answer:
                raise Unsupported(answer["unsupported"])
            if "refused" in answer:
                raise Refused(answer["refused"], answer["message"])
            if "error" in answer:
                raise Failed(answer["error"])
            return {name: read(a, dtype) for name, a in answer["arrays"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, json.JSONDecodeError):
                self.skip_answer()
            msg = f"{shlex.join(self.command)} gave an invalid answer, {line[:200]!r}: {error!r}"
            raise InvalidAnswer(msg) from error

    def skip_answer(self) -> None:
        """Skip the answer that follows an unexpected line; otherwise the next request would get it."""
        assert self.process is not None
        assert self.process.stdout is not None
        heard = self.listener.submit(self.process.stdout.readline)
        try:
            heard.result(min(self.patience, STRAY))
        except TimeoutError:
            self.hangs += 1
            self.abandon()

    def ask(self, line: str) -> str:
        if self.hangs == HANGS:
            msg = f"no further request: {HANGS} requests had no answer within {self.patience:g} s each"
            raise RuntimeError(msg)
        process = self.started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.fail("ended")
        heard = self.listener.submit(process.stdout.readline)
        try:
            answer = heard.result(self.patience)
        except TimeoutError:
            self.hangs += 1
            self.abandon()
            what = f"gave no answer within {self.patience:g} s; does it flush its output after each line?"
            msg = f"{shlex.join(self.command)} {what}"
            raise RuntimeError(msg) from None
        return answer or self.fail("ended without an answer")

    def started(self) -> subprocess.Popen[str]:
        """Return the running program."""
        if self.process is None:
            atexit.register(self.close)
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        return self.process

    def fail(self, what: str) -> NoReturn:
        """End the program and raise an error; the next request starts it again."""
        process, self.process = self.process, None
        assert process is not None
        process.communicate()
        msg = f"{shlex.join(self.command)} {what}, exit status {process.returncode}"
        raise RuntimeError(msg)

    def abandon(self) -> None:
        """End the program; the next request starts it again."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def close(self) -> None:
        """Close the input of the program, so that it ends."""
        atexit.unregister(self.close)
        if self.process is not None:
            self.process.communicate()
            self.process = None
        self.listener.shutdown()


def words(command: str) -> tuple[list[str], str]:
    """Split a command as a shell does; return its words, or none and the reason."""
    try:
        return shlex.split(command), ""
    except ValueError as error:
        return [], f"the command {command!r} cannot be split into words: {error}"


def written(a: np.ndarray) -> Any:
    data = a.ravel().tolist()
    if not np.isfinite(a).all():
        data = [v if math.isfinite(v) else str(v) for v in data]
    return {"shape": list(a.shape), "data": data}


def read(a: Any, dtype: str) -> np.ndarray:
    if None in a["data"]:
        msg = "data contain null; NaN and infinities are the strings nan, inf and -inf"
        raise ValueError(msg)
    return np.array([float(v) for v in a["data"]], dtype).reshape(a["shape"])
