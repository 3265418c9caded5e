"""Pass invalid values for every public argument: each causes an error, or a listed meaning."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    "activation_alpha": (HELD, "[] () generator empty"),
    "activation_beta": (HELD, "[] () generator empty"),
    "clip": (NUMBERS, "None 1 1.5 2**63"),
    "delta": (NUMBERS, "1 1.5 2**63"),
    "device": (LEFT_OUT, "None"),
    "dloss": (NUMBERS, "-1 0 1 1.5 2**63"),
    "epoch": (COUNTS, "0 1"),
    "eps": (NUMBERS, "0 1 1.5 2**63"),
    "extra": ("what JSON can hold", "None {} dict"),
    "factor": (NUMBERS, "-1 0 1 1.5 2**63"),
    "floor": (NUMBERS, "None 0 1 1.5 2**63"),
    "grad": ("an array of floats", "ones empty"),
    "gradient": ("an array of floats", "ones"),
    "grads": ("no parameter is updated", "{}"),
    "groups": (HELD, "'' [] () generator empty"),
    "ids": ("integers of any shape", "matrix 0-d ones"),
    "ignore_index": (LEFT_OUT, "None -1 0 1"),
    "label_smoothing": (NUMBERS, "0"),
    "input_forget": (COUNTS, "0"),
    "layout": (COUNTS, "0"),
    "length": (COUNTS, "0 1"),
    "length_penalty": (NUMBERS, "0 1 1.5"),
    "lengths": (LEFT_OUT, "None"),
    "logits": ("one row of logits", "ones"),
    "lr": ("a number or a schedule", "None 0 1 1.5 2**63 lambda"),
    "lr_scale": (NUMBERS, "0 1 1.5 2**63"),
    "m": ("an array of floats", "ones"),
    "mask": (LEFT_OUT, "None"),
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
    "param": ("an array of floats", "ones"),
    "positive_weights": (LEFT_OUT, "None ones"),
    "progress": ("a function of the history", "True lambda"),
    "proj_size": (COUNTS, "0 1"),
    "rate": (NUMBERS, "0 1 1.5 2**63"),
    "read_ahead": ("batches to read ahead, or none", "0 1"),
    "reset": (LEFT_OUT, "None"),
    "rng": ("a seed", "None 0 1 2**63"),
    "row": (COUNTS, "0 1"),
    "rows": ("batch entries, or none", "None 0 1 [] () empty"),
    "rule": ("a function, called later", "class lambda"),
    "seed": ("a seed", "0 1"),
    "sequences": ("arrays of any dtype", "complex matrix"),
    "series": ("an array of any dtype", "complex"),
    "shape": ("a shape without axes", "[] () generator empty"),
    "shapes": ("no parameters", "{}"),
    "start": (NUMBERS, "None 0"),
    "state": (LEFT_OUT, "None ()"),
    "std": (NUMBERS, "1 1.5 2**63 0-d ones"),
    "step": (COUNTS, "0 1"),
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
    "update": (COUNTS, "0 1"),
    "updates": (COUNTS, "0 1"),
    "v": ("an array of floats", "ones"),
    "value": ("a number; what is not finite is no improvement", "-1 0 1 1.5 nan inf 10**400 2**63"),
    "validate": ("a function that gives a number", "None class"),
    "warmup": (COUNTS, "0 1"),
    "weight_decay": (NUMBERS, "None 0 1 1.5 2**63"),
    "x": ("an array of any shape", "empty ones"),
    "xp": (LEFT_OUT, "None"),
    "gate_clip": (NUMBERS, "None 1 1.5 2**63"),
    "cell_clip": (NUMBERS, "None 1 1.5 2**63"),
}
ZERO = {"dropout", "input_dropout", "weight_dropout", "p", "rise", "threshold", "index"}
ZERO |= {"zoneout_h", "zoneout_c", "recurrent_dropout"}

WRITTEN = "a file that another call wrote, or a mapping without arrays"

# The same of one argument of one call.
HERE = {
    ("training.fit of a validation", "value"): (NUMBERS, "0-d"),
    ("training.fit of a loss", "loss"): (NUMBERS, "-1 0 1 1.5 2**63 0-d"),
    ("training.fit of a state", "state"): ("a state without arrays", "[]"),
    ("training.save_checkpoint of", "params"): ("a run without parameters", "{}"),
    ("training.save_checkpoint of", "optimizer"): ("an optimiser without state", "{}"),
    ("training.save_checkpoint of", "state"): ("a state without arrays, or of one array", "[] ones"),
    ("training.save_checkpoint of", "rng"): ("what JSON can hold", "{} dict"),
    ("training.Samples", "inputs"): ("trees of arrays of any dtype", "dict ones complex"),
    ("training.Samples", "targets"): ("arrays of any dtype, or none", "None {} [] () dict ones complex"),
    ("training.Samples", "prepare"): ("a function, called later", "lambda class"),
    ("training.Streams.item", "index"): ("an index, also from the end", "-1 0 1"),
    ("plots.plot_history of", "losses"): ("numbers", "ones"),
    ("plots.plot_history of", "validations"): (HELD, "[] () generator empty"),
    ("io.save", "prefix"): ("a prefix, or none", "'x' ''"),
    ("io.load", "prefix"): ("no prefix", "''"),
    ("io.load_with_call", "prefix"): ("no prefix", "''"),
    ("io.arrays", "prefix"): ("no prefix", "''"),
    ("io.inspect", "source"): (
        WRITTEN,
        "'x' {} dict",
    ),
    ("io.load_with_call", "source"): (WRITTEN, "'x'"),
    ("io.arrays", "source"): (WRITTEN, "'x' {} dict"),
    ("io.onnx.is_compatible", "model"): (WRITTEN, "'x'"),
    ("io.columns.forward_sequence", "X"): ("no steps", "[] ()"),
    ("io.onnx.supports_device", "device"): ("the name of a device that is not there", "'x' ''"),
    ("io.onnx.is_compatible", "device"): ("the name of a device that is not there", "'x' ''"),
    ("models.Seq2Seq.loss", "target"): ("integers", "matrix"),
    ("models.Seq2Seq.loss_vjp", "targets"): ("integers", "matrix"),
}

# Arguments whose value is never looked at.
UNUSED = {("optim.Plateau.__call__", "step"): "every schedule is given it"}

# Errors that come from what the caller passed, not from this library.
PASSED = {
    ("io.onnx.run_model", "model", "'x'"): "a file that is not there",
    ("io.onnx.prepare", "model", "'x'"): "a file that is not there",
    ("io.onnx.is_compatible", "model", "'x'"): "a file that is not there",
    ("training.gradients_over", "loss", "class"): "the caller's function raises",
    ("training.fit", "callbacks", "class"): "the caller's function raises",
    ("training.fit", "progress", "class"): "the caller's function raises",
    ("models.Forecaster.fit", "progress", "class"): "the caller's function raises",
    ("models.Forecaster.fit", "validation", "0"): "nothing is held out",
    ("models.Forecaster.backtest", "refit", "class"): "the caller's function raises",
    ("models.Forecaster.backtest", "refit", "lambda"): "the caller's function trains nothing",
    ("testing.check_grad", "vjp", "class"): "the caller's function raises",
    ("testing.check_grad", "vjp", "lambda"): "the caller's function raises",
    ("testing.check_grad", "arguments", "{}"): "the caller's function raises",
    **{
        ("training.Streams.item", "index", v): "a sequence raises IndexError"
        for v in ("10**400", "2**63", "0-d")
    },
    **{
        (f"{kind}.initialize", "rule", "class"): "the caller's function raises"
        for kind in ("LSTM", "GRU", "RNN", "JordanRNN")
    },
    **{
        (f"models.{name} with a horizon", "known", value): "no column is known in advance"
        for name in ("Forecaster", "windows")
        for value in ("()", "[]", "{}", "''", "empty", "generator")
    },
}


def allowed(name: str, argument: str, parameter: inspect.Parameter) -> set[str]:
    """Return the values that an argument accepts, by its name, default and annotation."""
    kind = str(parameter.annotation)
    found = set(TAKEN.get(argument, ("", ""))[1].split()) | set(
        HERE.get((name, argument), ("", ""))[1].split()
    )
    found |= {"None"} if parameter.default is None or "None" in kind else set()
    found |= {"True"} if "bool" in kind else set()
    found |= {"1"} if "int" in kind else set()
    return found | ({"0"} if argument in ZERO else set())


def results(share: float) -> dict[tuple[str, str, str], str]:
    """Return the outcome of each call; the end of a process is the outcome of its last call."""
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


@pytest.mark.slow
def test_nonsense_is_refused_by_name_or_has_a_meaning():
    share = float(os.environ.get("XPLSTM_NONSENSE_SHARE", "0.2"))
    strange = []
    for (name, argument, value), outcome in results(share).items():
        parameter = inspect.signature(nonsense.CALLS[name]()[0]).parameters[argument]
        if outcome == "refused" or (name, argument, value) in PASSED:
            continue
        if outcome == "returned" and (name, argument) in UNUSED:
            continue
        if outcome == "returned" and value in allowed(name, argument, parameter):
            continue
        strange.append(f"{name}({argument}={value}): {outcome}")
    assert not strange, "\n".join(strange)


def documented() -> set[str]:
    """Return the names of the functions and classes on the API pages."""
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
APART |= {"models.WithFuture", "models.Backtest"}
APART |= {"testing.GradientReport", "testing.GradientRow", "training.Checkpoint", "training.Event"}
APART |= {"training.Gradients"}
APART |= {"testing.QuantisationReport", "testing.QuantisationRow"}
APART |= {"sklearn.LSTMClassifier", "sklearn.LSTMRegressor"}  # tests/test_sklearn.py tries them
APART |= {"training.History", "training.Model", "io.onnx.Prepared"}
APART |= {"io.onnx.run_node"}  # its node is a message of onnx, which checks it
# Connections to other processes, which tests/training/test_shards.py makes and closes.
APART |= {f"training.{name}" for name in ("Group", "LocalGroup", "MPIGroup", "NCCLGroup", "TorchGroup")}
APART |= {"training.local_group"}


def test_every_documented_name_is_tried():
    assert not documented() - nonsense.CALLS.keys() - APART
