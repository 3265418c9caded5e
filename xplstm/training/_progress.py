"""Show the progress bar of `fit`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

from xplstm.training._arguments import Plan
from xplstm.training._run import Run
from xplstm.training._saved import History

_EXTRA = "it comes with pip install 'xplstm[train]'"
SECONDS_BETWEEN_REPORTS = 0.5


@contextlib.contextmanager
def bar(progress: bool | Callable[[History], str], run: Run, plan: Plan) -> Iterator[Callable[[Run], None]]:
    """Yield the function that moves the bar; its text changes rarely, since reading a loss may block."""
    if not progress or sys.stderr is None:  # as in a program without a console on Windows
        yield lambda _run: None
        return
    text = progress if callable(progress) else _describe_latest
    try:
        from tqdm import tqdm
    except ImportError as error:
        msg = f"a progress bar needs the package tqdm: {_EXTRA}; or pass progress=False"
        raise ImportError(msg) from error
    # In a log file, each redraw of the bar is a new line.
    pause = SECONDS_BETWEEN_REPORTS if sys.stderr.isatty() else 10 * SECONDS_BETWEEN_REPORTS
    reported, total = -math.inf, plan.total(run)
    # tqdm's own interval is shorter, so that it draws whenever `show` has set a new text.
    options = {"unit": " updates", "mininterval": pause / 2, "miniters": 1, "dynamic_ncols": True}
    with tqdm(initial=run.at.update, total=total, **options) as shown:

        def show(run: Run) -> None:
            if total is None and plan.epochs != 1:
                epoch = min(run.at.epoch + 1, plan.epochs or 0)
                shown.set_description_str(f"epoch {epoch} of {plan.epochs}", refresh=False)
            shown.set_postfix_str(text(run.at.history), refresh=False)
            shown.update(run.at.update - shown.n)

        def report(run: Run) -> None:
            nonlocal reported
            if time.monotonic() - reported >= pause:
                run.settle()
                show(run)
                reported = time.monotonic()

        try:
            yield report
            if run.at.history.losses:
                show(run)
        finally:
            shown.update(run.at.update - shown.n)


def _describe_latest(history: History) -> str:
    """Return the text next to the bar: the mean of the last losses, and the last validation."""
    recent = history.losses[-20:]
    text = f"loss {sum(recent) / len(recent):.4f}"
    return f"{text}, validation {history.validations[-1][1]:.4f}" if history.validations else text
