"""Define wrong LSTMs by family, and find the one that gives the numbers of a subject.

After a failure, the suite calls the subject again and compares its results with those of every wrong LSTM.
The nearest wrong LSTM is the diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from spec import (
    corner_mutants,
    gru_mutants,
    margin_mutants,
    mutants,
    path_mutants,
    plausible_mutants,
    sized_mutants,
    wrong_gru,
)
from spec.mutants import Call
from spec.records import UNITS
from spec.sized_mutants import Sometimes, may_differ
from spec.subject import Arrays, Config
from spec.wrong import LSTM
from spec.wrong_gru import GRU

PLACES = (
    *("the reverse direction", "the forward direction of two"),
    *("the first layer of several", "every layer but the first", "the last layer", "a layer between others"),
)
CALLS_WITH = ("calls with a projection", "calls with lengths", "calls with a mask")
CELL_FAULTS = (
    *("forget bias added", "sigmoid for g", "relu for g", "f coupled to i"),
    *("c clipped at 0.5", "i and f trade places in c", "tanh(c) omitted", "h from the old c"),
    *("o sees the new c", "state carries tanh(c)", "hard sigmoid", "tanh for the gates"),
    *("slope of tanh(c) omitted", "path from h to c cut", "gradient of i cut", "gradient of f cut"),
    *("gradient of g cut", "gradient of o cut", "dweight_hh with the new h", "bias_hh not trained"),
    *("path through h cut", "path through c cut", "dc not multiplied by f"),
)
SEQUENCE_FAULTS = (
    *("lengths ignored", "one step too many", "empty rows take a step", "empty rows end at zero"),
    *("padding walked through", "h_n is the last y", "mask ignored", "mask taken as lengths"),
    *("holes reset the state", "holes hold h alone"),
    *("resets ignored", "resets of h alone", "resets of c alone", "resets a step late"),
    *("h_0 ignored", "c_0 ignored", "dh_n ignored", "dc_n ignored", "dy of the last step only"),
    *("gradients flow through the padding", "gradients cross resets", "weight_ih sees the last step only"),
)
ANYWHERE_FAULTS = (
    *("h_n is the last y", "h_0 ignored", "c_0 ignored", "dh_n ignored", "dc_n ignored"),
    *("dy of the last step only", "resets ignored", "resets of h alone", "weight_ih sees the last step only"),
)
"""Faults of sequences that do not need lengths or a mask."""
CHANGES: dict[str, tuple[tuple[str, ...], mutants.Change]] = {
    "weight_hh transposed": (("weight_hh",), mutants.transposed),
    "weight_ih in column order": (("weight_ih",), mutants.taken_as_columns),
    "weight_hh ignored": (("weight_hh",), np.zeros_like),
    "bias_ih dropped": (("bias_ih",), np.zeros_like),
    "bias_hh dropped": (("bias_hh",), np.zeros_like),
    "biases counted twice": (("bias",), lambda a: 2 * a),
    "bias_ih counted twice": (("bias_ih",), lambda a: 2 * a),
    "bias_hh counted twice": (("bias_hh",), lambda a: 2 * a),
    **{
        f"gates {''.join('ifgo'[k] for k in order)}": (mutants.GATES, mutants.blocks_in(order))
        for order in permutations(range(4))
        if order != (0, 1, 2, 3)
    },
}
RIGHT = 256
"""Differences in u * s that are no fault."""
LEAD = 0.9
"""The share of the error that a wrong LSTM must explain to be named; others mislead."""
NARROWER = {"float64": "float32", "float32": "float16"}
ROUNDED = (1 / 64, 16)
"""Differences in u * s of a narrower dtype that can be its rounding errors."""
CLOSE = 1e-3
"""The share of the right LSTM's error that a wrong one leaves where it explains the numbers."""


def here(place: str, config: Config, layer: int, direction: int) -> bool:
    """Return whether a layer and direction of a call is at the place."""
    layers = config.get("num_layers", 1)
    return {
        "the reverse direction": direction == 1,
        "the forward direction of two": direction == 0 and bool(config.get("bidirectional")),
        "the first layer of several": layers > 1 and layer == 0,
        "every layer but the first": layer > 0,
        "the last layer": layers > 2 and layer == layers - 1,
        "a layer between others": 0 < layer < layers - 1,
        "calls with a projection": bool(config.get("proj_size")),
        "calls with lengths": config.get("lengths") is not None,
        "calls with a mask": config.get("mask") is not None,
    }[place]


class Placed(LSTM):
    """LSTM with a fault at one place."""

    def __init__(self, fault: str, place: str, config: Config) -> None:
        super().__init__()
        self.wrong, self.place, self.config = LSTM(fault), place, config

    def at(self, layer: int, direction: int) -> LSTM:
        return self.wrong if here(self.place, self.config, layer, direction) else self


def fault_at(fault: str, place: str) -> Call:
    """Return an LSTM with a fault at one place; calls without this place give correct results."""

    def there(op: str, config: Config, _a: Arrays) -> bool:
        layers, directions = config.get("num_layers", 1), 1 + bool(config.get("bidirectional"))
        at = (
            product(range(layers), range(directions))
            if op.startswith("module")
            else [(0, int(bool(config.get("reverse"))))]
        )
        return any(here(place, config, *each) for each in at)

    return Sometimes(there, lambda op, config, a: Placed(fault, place, config).call(op, config, a))


def parameters_at(what: str, place: str) -> Call:
    """Return an LSTM that interprets some parameters differently, at one place."""
    prefixes, change = CHANGES[what]

    def spoilt(op: str, config: Config, name: str) -> bool:
        if not name.startswith(prefixes):
            return False
        if op.startswith("layer"):
            return here(place, config, 0, int(bool(config.get("reverse"))))
        layer = int(name.partition("_l")[2].partition("_")[0])
        return here(place, config, layer, int(name.endswith("_reverse")))

    def call(op: str, config: Config, a: Arrays) -> Arrays:
        # Gradients of a changed parameter have the places of the changed one, so only outputs are compared.
        return LSTM().call(op, config, {n: change(v) if spoilt(op, config, n) else v for n, v in a.items()})

    return Sometimes(lambda op, config, a: any(spoilt(op, config, n) for n in a), call)


class Wrong(NamedTuple):
    """Wrong LSTM and its kind."""

    family: str
    call: Call


def wrongs() -> dict[str, Wrong]:
    """Return every wrong LSTM by name."""
    found = {name: Wrong(family(name), call) for name, call in mutants.MUTANTS.items()}
    for where, of in (
        ("at some sizes", sized_mutants),
        ("in some calls", plausible_mutants),
        ("at corners", corner_mutants),
        ("on one path", path_mutants),
        ("at margins", margin_mutants),
    ):
        found |= {name: Wrong(f"{where}: {family(name)}", call) for name, call in of.MUTANTS.items()}
    for place in (*PLACES, *CALLS_WITH):
        of_sequences = SEQUENCE_FAULTS if place in PLACES else ANYWHERE_FAULTS
        found |= {f"{f}, in {place}": Wrong(f"cell, in {place}", fault_at(f, place)) for f in CELL_FAULTS}
        found |= {
            f"{f}, in {place}": Wrong(f"sequence, in {place}", fault_at(f, place)) for f in of_sequences
        }
        found |= {
            f"{w}, in {place}": Wrong(f"parameters, in {place}", parameters_at(w, place)) for w in CHANGES
        }
    # With a projection, these two faults need P = H.
    for fault in ("dweight_hh with the new h", "weight_hh transposed"):
        del found[f"{fault}, in calls with a projection"]
    return found


FAMILIES: dict[str, tuple[str, ...]] = {
    "order of gates": ("gates ",),
    "parameters": ("weight_", "bias_", "biases "),
    "gradients": ("gradient", "d", "path ", "slope", "every slope"),
    "lengths and masks": (
        *("mask", "lengths", "rows", "row", "padding", "holes", "empty", "y cut", "equal", "all rows"),
    ),
    "directions": ("reverse", "always reverse", "both directions", "directions", "h_n is", "y in walking"),
    "states": ("h_0", "c_0", "h_n", "states", "every layer", "state", "first input"),
    "random masks": (
        *("dropout", "one dropout", "recurrent dropout", "input dropout", "weight dropout", "noise"),
        *("stream", "purpose", "time and stream", "zoneout"),
    ),
    "variants": (
        *("peephole", "gate clip", "gate_clip", "cell clip", "cell_clip", "coupled", "activations", "norm"),
        *("alpha", "beta", "layer_norm", "merge", "mean merged", "sum merged", "product", "eps", "gain"),
    ),
}


def family(name: str) -> str:
    """Return the kind of a wrong LSTM, from the start of its name."""
    return next((kind for kind, heads in FAMILIES.items() if name.startswith(heads)), "cell and sequence")


def suspects(config: Config) -> Iterator[tuple[str, Call]]:
    """Yield the wrong implementations of a call's cell."""
    known = WRONG_GRUS if config.get("cell") == "gru" else WRONGS
    yield from ((name, wrong.call) for name, wrong in known.items())


WRONGS = wrongs()
WRONG_GRUS = {fault: Wrong(f"GRU: {family(fault)}", GRU(fault).call) for fault in wrong_gru.FAULTS}
WRONG_GRUS |= {n: Wrong(f"GRU in some calls: {family(n)}", c) for n, c in gru_mutants.MUTANTS.items()}


def apart(got: Arrays, other: Arrays, gradients: bool) -> float:
    """Return the largest difference of two answers, relative to the magnitude of the answer, or to 1."""
    worst = 0.0
    for name in (n for n in got.keys() & other.keys() if n.startswith("d") == gradients):
        a, b = got[name].astype("float64"), other[name]
        if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return float("inf")
        finite = np.isfinite(a)
        size = max(1.0, float(np.abs(a[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / size)
    return worst


def explain(op: str, config: Config, a: Arrays, got: Arrays, dtype: str) -> str:
    """Return which wrong LSTM gives these numbers, or that none does; an empty string if they are correct."""
    config = {"bidirectional": False, **config}
    right = GRU() if config.get("cell") == "gru" else LSTM()
    with np.errstate(all="ignore"):
        expected = right.call(op, config, dict(a))
        # Gradients are compared only if the outputs agree, because a changed parameter changes their meaning.
        gradients = apart(got, expected, False) < RIGHT * UNITS[dtype]
        missed = apart(got, expected, gradients)
        if missed < RIGHT * UNITS[dtype]:
            return ""
        found = {name: left(call, op, config, a, got, gradients) for name, call in suspects(config)}
    shares = {name: share(off, missed) for name, off in found.items()}
    near = sorted(shares, key=lambda name: shares[name])
    if shares[near[0]] < CLOSE:
        alike = [name for name in near[:3] if shares[name] < CLOSE]
        return f"as if: {', or: '.join(alike)} (explains all but {shares[near[0]]:.1g} of the error)"
    narrow = NARROWER.get(dtype, dtype)
    if ROUNDED[0] < missed / UNITS[narrow] < ROUNDED[1]:
        return f"as if: computed in {narrow} (the error has the size of its rounding errors)"
    said = f"none of {len(found)} wrong implementations explains the numbers"
    some = 1 - shares[near[0]]
    return f"{said}; the nearest, {near[0]!r}, explains {some:.0%} of the error" if some > LEAD else said


def share(off: float, missed: float) -> float:
    """Return the share of the error of the correct LSTM that remains with a wrong one."""
    return off / missed if np.isfinite(missed) else float(not np.isfinite(off))


def left(call: Call, op: str, config: Config, a: Arrays, got: Arrays, gradients: bool) -> float:
    """Return the distance of a wrong LSTM from an answer; infinite if it cannot run, or is correct."""
    if not may_differ(call, op, config, a):
        return float("inf")
    try:
        return apart(got, call(op, config, dict(a)), gradients)
    except (IndexError, KeyError, ValueError):
        return float("inf")
