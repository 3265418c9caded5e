"""An implementation in any language: a program that reads JSON lines and answers each with one.

A question is ``{"op", "config", "dtype", "arrays": {name: {"shape", "data"}}}``,
an answer ``{"arrays": ...}``, ``{"unsupported": why}`` or
``{"refused": "shape" or "other", "message": why}``. Data are in C order; NaN and
infinities are the strings nan, inf and -inf.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
from typing import Any

import numpy as np

from spec.subject import Arrays, Config, Refused, Unsupported


class Stdio:
    """A program, started with the first question."""

    def __init__(self, command: str) -> None:
        self.command = shlex.split(command)
        self.process: subprocess.Popen[str] | None = None

    def describe(self) -> dict[str, str]:
        return {"name": "stdio", "version": "", "library": "stdio", "kernel": self.command[0]}

    def why_unavailable(self) -> str | None:
        found = shutil.which(self.command[0])
        return None if found else f"there is no program {self.command[0]!r}"

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        dtype = str(next(iter(arrays.values())).dtype)
        question = {
            "op": op,
            "config": config,
            "dtype": dtype,
            "arrays": {k: written(a) for k, a in arrays.items()},
        }
        answer = self.ask(json.dumps(question))
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        if "refused" in answer:
            raise Refused(answer["refused"], answer["message"])
        return {name: read(a, dtype) for name, a in answer["arrays"].items()}

    def ask(self, line: str) -> Any:
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            msg = f"{self.command[0]} ended without an answer, exit status {self.process.wait()}"
            raise RuntimeError(msg)
        return json.loads(answer)

    def close(self) -> None:
        """End the program by the end of its input."""
        if self.process is not None:
            self.process.communicate()
            self.process = None


def written(a: np.ndarray) -> Any:
    return {"shape": list(a.shape), "data": [v if math.isfinite(v) else str(v) for v in a.ravel().tolist()]}


def read(a: Any, dtype: str) -> np.ndarray:
    return np.array([float(v) for v in a["data"]], dtype).reshape(a["shape"])
