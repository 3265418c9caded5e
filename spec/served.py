"""An adapter in a process of its own: ``python -m spec.served NAME`` answers the questions of `spec.stdio`.

A library that aborts or hangs then fails the question alone, and the suite goes to the next one.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
from typing import Any

from spec.stdio import PATIENCE, Stdio, read, written
from spec.subject import Adapter, Refused, Unsupported
from spec.subjects import named


class Served(Stdio):
    """The subject called `name`, described here and called there."""

    def __init__(self, name: str, adapter: Adapter, patience: float = PATIENCE) -> None:
        super().__init__(shlex.join([sys.executable, "-m", __name__, name]), patience)
        self.adapter = adapter

    def describe(self) -> dict[str, str]:
        return self.adapter.describe()

    def why_unavailable(self) -> str | None:
        return self.adapter.why_unavailable()


def answer(adapter: Adapter, question: Any) -> Any:
    """Call the adapter; an exception other than `Refused` and `Unsupported` fails the question."""
    if question["dtype"] == "bfloat16":
        # NumPy knows this dtype once the package is imported, and a library need not import it.
        importlib.import_module("ml_dtypes")
    given = {name: read(a, question["dtype"]) for name, a in question["arrays"].items()}
    try:
        got = adapter.call(question["op"], question["config"], given)
    except Unsupported as error:
        return {"unsupported": str(error)}
    except Refused as error:
        return {"refused": error.kind, "message": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"arrays": {name: written(a) for name, a in got.items()}}


def main(name: str) -> None:
    """Answer until the input ends; what the library prints goes to the standard error."""
    (adapter,) = named([name]).values()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            question = json.loads(line)
            print(json.dumps({"id": question["id"], **answer(adapter, question)}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
