"""Run an adapter in a separate process: ``python -m spec.served NAME`` answers requests of `spec.stdio`.

An abort or hang of a library then fails only one request, and the suite continues with the next.
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
    """Subject called `name`, described in this process and called in another."""

    def __init__(self, name: str, adapter: Adapter, patience: float = PATIENCE) -> None:
        super().__init__(shlex.join([sys.executable, "-m", __name__, name]), patience)
        self.adapter = adapter

    def describe(self) -> dict[str, str]:
        return self.adapter.describe()

    def why_unavailable(self) -> str | None:
        return self.adapter.why_unavailable()


def answer(adapter: Adapter, question: Any) -> Any:
    """Call the adapter; an exception other than `Refused` and `Unsupported` fails the request."""
    if question["dtype"] == "bfloat16":
        # NumPy knows this dtype once the package is imported, which the library may not do.
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
    """Answer until the input ends; the output of the library goes to the standard error."""
    (adapter,) = named([name]).values()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            question = json.loads(line)
            print(json.dumps({"id": question["id"], **answer(adapter, question)}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
