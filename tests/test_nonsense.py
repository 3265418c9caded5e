"""Nonsense for every argument of the public face: an error of ours, or a meaning that is listed here."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support import nonsense

ROOT = Path(__file__).parents[1]
SEED = int(os.environ.get("XPLSTM_NONSENSE_SEED", "0"))
PARTS = 2
"""Processes, one after another; in each a part of all calls is made."""

# Values that an argument of this name takes, wherever it is, and why.
COUNTS = "an integer in range"
NUMBERS = "a finite number in range"
LEFT_OUT = "left out"
HELD = "a sequence without elements that it could check"
TAKEN = {
    "axis": (LEFT_OUT, "None 0 1"),
    "average": (LEFT_OUT, "None 0"),
    "batch_axis": (COUNTS, "0"),
    "blank": (COUNTS, "0"),
    "bound": (NUMBERS, "0 1 1.5 2**63"),
    "callbacks": (HELD, "[] () lambda generator empty"),
    "checkpoint": (LEFT_OUT, "None 1 'x'"),
    "checkpoint_seconds": (LEFT_OUT, "None 1 1.5 2**63"),
    "count": (COUNTS, "None 0 1"),
    "data": ("an iterable of batches, read when training begins", ""),
    "delta": (NUMBERS, "1 1.5 2**63"),
    "eps": (NUMBERS, "0 1 1.5 2**63"),
    "extra": ("what JSON can hold", "None {} dict"),
    "floor": (NUMBERS, "None 0 1 1.5 2**63"),
    "grads": ("no parameter is updated", "{}"),
    "groups": (HELD, "'' [] () generator empty"),
    "ids": ("integers of any shape", "matrix 0-d ones"),
    "ignore_index": (LEFT_OUT, "None -1 0 1"),
    "label_smoothing": (NUMBERS, "0"),
    "length": (COUNTS, "0 1"),
    "length_penalty": (NUMBERS, "0 1 1.5"),
    "logits": ("one row of logits", "ones"),
    "lr": ("a number or a schedule", "None 0 1 1.5 2**63 lambda"),
    "lr_scale": (NUMBERS, "0 1 1.5 2**63"),
    "max_norm": ("a number above 0, infinity included", "None 1 1.5 inf 10**400 2**63"),
    "mean": (NUMBERS, "-1 0 1 1.5 2**63 0-d ones"),
    "momentum": (NUMBERS, "0"),
    "names": ("names that no parameter has", "'x' '' [] () generator empty strings"),
    "no_decay": ("names that no parameter has", "'x' '' [] () generator empty strings"),
    "frozen": (HELD, "[] () generator empty"),
    "padding_idx": ("counted from the end where negative", "None -1 0 1"),
    "path": ("the name of a file", "'x'"),
    "patience": (COUNTS, "None 0 1"),
    "peak": (NUMBERS, "0 1 1.5 2**63"),
    "positive_weights": (LEFT_OUT, "None ones"),
    "progress": ("a function of the history", "True lambda"),
    "proj_size": (COUNTS, "0 1"),
    "rng": ("a seed", "None 0 1 2**63"),
    "row": (COUNTS, "0 1"),
    "rows": ("rows of the batch, or none", "None 0 1 [] () empty"),
    "rule": ("a function, called later", "class lambda"),
    "seed": ("a seed", "0 1"),
    "sequences": ("arrays of any dtype", "complex matrix"),
    "series": ("an array of any dtype", "complex"),
    "shape": ("a shape without axes", "[] () generator empty"),
    "shapes": ("no parameters", "{}"),
    "start": (NUMBERS, "None 0"),
    "state": (LEFT_OUT, "None ()"),
    "std": (NUMBERS, "1 1.5 2**63 0-d ones"),
    "steps": (COUNTS, "0 1"),
    "teacher_forcing": (NUMBERS, "0 1"),
    "temperature": (NUMBERS, "0 1 1.5 2**63"),
    "text": ("tokens, or none", "'x' '' [] () generator empty strings"),
    "tokens": ("tokens", "None 'x' strings"),
    "vocab": ("a vocabulary", "'x'"),
    "source_vocab": ("a vocabulary", "'x'"),
    "target_vocab": ("a vocabulary", "'x'"),
    "name": ("what was chosen by itself before", "None"),
    "prompt": ("tokens", "strings"),
    "tolerance": (NUMBERS, "1 1.5 2**63"),
    "top_p": (LEFT_OUT, "None 1"),
    "updates": (COUNTS, "0 1"),
    "value": ("a number; what is not finite is no improvement", "-1 0 1 1.5 nan inf 10**400 2**63"),
    "validate": ("a function that gives a number", "None class"),
    "warmup": (COUNTS, "0 1"),
    "weight_decay": (NUMBERS, "None 0 1 1.5 2**63"),
    "x": ("an array of any shape", "empty ones"),
    "gate_clip": (NUMBERS, "None 1 1.5 2**63"),
    "cell_clip": (NUMBERS, "None 1 1.5 2**63"),
}
ZERO = {"dropout", "input_dropout", "weight_dropout", "p", "rise", "threshold", "index"}
ZERO |= {"zoneout_h", "zoneout_c", "recurrent_dropout"}

# Arguments whose value is never looked at.
UNUSED = {("optim.Plateau.__call__", "step"): "every schedule is given it"}

# Errors that come from what the caller passed, not from this library.
PASSED = {
    ("training.fit", "callbacks", "class"): "the caller's function raises",
    ("training.fit", "progress", "class"): "the caller's function raises",
    ("testing.check_grad", "vjp", "class"): "the caller's function raises",
    ("testing.check_grad", "vjp", "lambda"): "the caller's function raises",
    ("testing.check_grad", "arguments", "{}"): "the caller's function raises",
    **{
        (f"{kind}.initialize", "rule", "class"): "the caller's function raises"
        for kind in ("LSTM", "GRU", "RNN", "JordanRNN")
    },
    **{
        (f"models.{name} with a horizon", "known", value): "no column is known ahead"
        for name in ("Forecaster", "windows")
        for value in ("()", "[]", "{}", "''", "empty", "generator")
    },
}


def allowed(argument: str, parameter: inspect.Parameter) -> set[str]:
    """Values that an argument takes, by its name, its default and its annotation."""
    kind = str(parameter.annotation)
    found = set(TAKEN.get(argument, ("", ""))[1].split())
    found |= {"None"} if parameter.default is None or "None" in kind else set()
    found |= {"True"} if "bool" in kind else set()
    found |= {"1"} if "int" in kind else set()
    return found | ({"0"} if argument in ZERO else set())


def results(share: float) -> dict[tuple[str, str, str], str]:
    """What each call did; a process that ended early is an outcome of the call that it made last."""
    found = {}
    for part in range(PARTS):
        command = [sys.executable, "-m", "tests.support.nonsense", *map(str, (part, PARTS, SEED, share))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for trial, outcome in itertools.zip_longest(lines[::2], lines[1::2]):
            ended = f"the process ended with code {done.returncode}: {done.stderr[-500:]}"
            found[tuple(trial)] = ended if outcome is None else outcome
        assert lines, done.stderr
    return found


def test_nonsense_is_refused_by_name_or_has_a_meaning():
    share = float(os.environ.get("XPLSTM_NONSENSE_SHARE", "0.5"))
    strange = []
    for (name, argument, value), outcome in results(share).items():
        parameter = inspect.signature(nonsense.CALLS[name]()[0]).parameters[argument]
        if outcome == "refused" or (name, argument, value) in PASSED:
            continue
        if outcome == "returned" and (name, argument) in UNUSED:
            continue
        if name.startswith("io.") or (outcome == "returned" and value in allowed(argument, parameter)):
            continue
        strange.append(f"{name}({argument}={value}): {outcome}")
    assert not strange, "\n".join(strange)


def documented() -> set[str]:
    """Names of the functions and classes on the pages of the interface."""
    found = set()
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if hit := re.match(r"\.\. (currentmodule|autofunction|autoclass):: (\S+)", line):
                module = hit[2].removeprefix("xplstm").lstrip(".") if hit[1] == "currentmodule" else module
                found |= set() if hit[1] == "currentmodule" else {f"{module}.{hit[2]}".lstrip(".")}
    return found


# What has no arguments, only holds what it is given, or takes models and files rather than plain values.
APART = {"release_memory", "show_config", "Explanation", "LSTMParams", "LSTMState", "LSTMTrace", "GRUTrace"}
APART |= {"FrozenLSTM", "FrozenRNN", "models.Ragged", "models.Hypothesis", "optim.Optimizer", "io.Inspection"}
APART |= {"models.WithFuture"}
APART |= {"testing.GradientReport", "testing.GradientRow", "training.Checkpoint", "training.Event"}
APART |= {"testing.QuantisationReport", "testing.QuantisationRow"}
APART |= {"sklearn.LSTMClassifier", "sklearn.LSTMRegressor"}  # tests/test_sklearn.py tries them
APART |= {"training.History", "training.Model", "io.columns.forward", "io.columns.forward_sequence"}
# Connections to other processes, which tests/training/test_shards.py makes and closes.
APART |= {f"training.{name}" for name in ("Group", "LocalGroup", "MPIGroup", "TorchGroup", "local_group")}


def test_every_documented_name_is_tried():
    missing = {
        name for name in documented() - nonsense.CALLS.keys() - APART if not name.startswith("io.onnx")
    }
    assert not missing
