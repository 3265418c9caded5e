"""Why an engine does not run a problem: checks and wording that all engines share."""

from __future__ import annotations

from collections.abc import Collection

from xplstm._params import Problem


def why_not(problem: Problem, backend: str, dtypes: Collection[str]) -> str | None:
    """Return why an engine for arrays of `backend` and `dtypes` cannot run `problem`, or None."""
    if problem.backend != backend:
        return f"the arrays are of {problem.backend}, not of {backend}"
    if problem.dtype not in dtypes:
        return f"dtype {problem.dtype} is none of {', '.join(dtypes)}"
    return None
