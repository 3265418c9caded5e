"""Define GRU calls from seeds: sizes, steps, lengths, masks, resets, large numbers, NaN and infinities."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np

from spec.calls import rounded
from spec.corners import BOTH, lengths_of, mask_of, nan_in_an_empty_entry, zero_states
from spec.gru import config_of
from spec.margins import scaled
from spec.paths import no_ends, no_outputs
from spec.plan import Choice
from spec.sized import SIZES, Sized
from spec.subject import Arrays
from spec.wrong_gru import GRU

STATED = ("XPL-GRU-002", "XPL-GRU-004")


def gru(I: int, H: int, T: int, B: int, **options: Any) -> Sized:
    """Return a call of a module whose cell is a GRU."""
    change, gradients = options.pop("change", None), options.pop("gradients", True)
    return Sized("module", config_of(I, H, **options), T, B, STATED, change, gradients)


def sizes() -> dict[str, Sized]:
    """Return each size as I, H and B, alternating two layers, two directions and both reset gates."""
    found = {}
    for n, H in enumerate(SIZES):
        I, B = SIZES[(5 * n + 3) % len(SIZES)], SIZES[(7 * n + 1) % len(SIZES)]
        shape = {"num_layers": 1 + (n % 3 == 0), "bidirectional": n % 4 == 1, "reset_after": n % 2 == 0}
        found[f"gru-i{I}-h{H}-b{B}"] = gru(I, H, 3, B, **shape)
    for n in (130, 300):
        found |= {f"gru-i{n}": gru(n, 5, 2, 2), f"gru-h{n}": gru(3, n, 2, 2), f"gru-b{n}": gru(3, 4, 2, n)}
    return found


def nan_past_the_end(a: Arrays) -> None:
    """Set x and dy to NaN after the lengths 4, 0, 2 and 3."""
    for name in ("x", "dy"):
        a[name][:, 1] = a[name][2:, 2] = a[name][3:, 3] = np.nan


def nan_in_x(a: Arrays) -> None:
    a["x"][1, 0] = np.nan


def nan_in_h(a: Arrays) -> None:
    a["h_0"][..., 1, 0] = np.nan


def loud(a: Arrays) -> None:
    """Set sums of some thousand, for which a tanh by exp(2v) overflows; one feature prevents cancellation."""
    a["x"][1, 0, 0] = 4000
    a["h_0"][..., 1, :] *= 3


def both_places() -> dict[str, Sized]:
    """Return the calls for the reset gate after W_hn h + b_hn, and before it."""
    ragged: Choice = {"lengths": [4, 0, 2, 3], "change": nan_past_the_end}
    resets: Choice = {"reset": [[(t + 2 * b) % 3 == 1 for b in range(4)] for t in range(5)]}
    asked: dict[str, Sized] = {
        "steps": gru(3, 4, 300, 2),
        "empty": gru(3, 4, 3, 0, num_layers=2),
        "empty-lengths": gru(3, 4, 3, 0, lengths=[], **BOTH),
        "no-steps": gru(3, 4, 0, 2, **BOTH),
        "no-steps-no-entries": gru(3, 4, 0, 0, **BOTH),
        "no-steps-lengths": gru(3, 4, 0, 2, lengths=[0, 0], bias=False),
        "one-step": gru(12, 4, 1, 3, **BOTH),
        "one-entry": gru(4, 4, 3, 1, lengths=[2]),
        "square": gru(4, 12, 4, 4, bidirectional=True),
        "three-layers": gru(3, 9, 4, 3, num_layers=3),
        "four-layers": gru(3, 4, 3, 2, num_layers=4, bidirectional=True),
        "no-bias": gru(3, 12, 4, 3, bias=False, **BOTH),
        "no-bias-lengths": gru(3, 4, 5, 4, bias=False, lengths=[4, 0, 2, 5]),
        "no-bias-mask": gru(3, 4, 5, 4, bias=False, mask=mask_of(5, 4)),
        "lengths": gru(3, 5, 5, 4, **BOTH, **ragged),
        "lengths-equal": gru(3, 4, 5, 3, lengths=[3, 3, 3], bidirectional=True),
        "lengths-of-none": gru(3, 4, 3, 3, lengths=[0, 0, 0]),
        "mask": gru(3, 5, 4, 3, mask=mask_of(4, 3), **BOTH),
        "mask-of-an-empty-entry": gru(
            3, 4, 4, 3, mask=[[True, False, True]] * 4, change=nan_in_an_empty_entry
        ),
        "resets": gru(3, 5, 5, 4, **BOTH, **resets),
        "resets-lengths": gru(3, 4, 5, 4, bidirectional=True, **resets, **ragged),
        "resets-mask": gru(3, 4, 5, 4, mask=mask_of(5, 4), **BOTH, **resets),
        "large-lengths": gru(3, 17, 22, 19, lengths=lengths_of(22, 19), **BOTH),
        "large-mask": gru(3, 17, 22, 19, mask=mask_of(22, 19), num_layers=2),
        "zero-states": gru(3, 4, 4, 3, change=zero_states),
        "no-outputs": gru(3, 4, 4, 3, change=no_outputs),
        "no-ends": gru(3, 4, 4, 3, change=no_ends),
        "loud": gru(3, 4, 4, 3, change=loud, num_layers=2),
        "large-x": gru(3, 4, 4, 3, change=scaled(12, "x", inverse="weight_ih")),
        "large-h": gru(3, 4, 2, 3, change=scaled(12, "h_0", inverse="weight_hh")),
        "large-weights": gru(3, 4, 4, 3, change=scaled(12, "weight_ih", inverse="x")),
        "large-weights-of-h": gru(3, 4, 1, 3, change=scaled(12, "weight_hh", inverse="h_0")),
        "large-cotangents": gru(3, 4, 4, 3, change=scaled(40, "dy", "dh_n")),
        "large-biases": gru(3, 4, 4, 3, change=scaled(3, "bias")),
        "layers-of-one-shape": gru(4, 4, 3, 3, num_layers=2),
        "states-as-entries": gru(3, 4, 3, 6, num_layers=3, bidirectional=True),
        "entries-as-outputs": gru(3, 2, 3, 4, bidirectional=True),
        "nan-in-x": gru(3, 4, 4, 3, change=nan_in_x, gradients=False, **BOTH),
        "nan-in-h": gru(3, 4, 4, 3, change=nan_in_h, gradients=False),
    }
    return {
        f"gru-{name}-{place}": case._replace(config=case.config | {"reset_after": place == "after"})
        for name, case in asked.items()
        for place in ("after", "before")
    }


CASES: dict[str, Sized] = {**sizes(), **both_places(), "gru-steps-1100": gru(2, 3, 1100, 2)}


def drawn(case: Sized, rng: np.random.Generator) -> Arrays:
    """Draw the arrays of a call and its cotangents, in float64."""
    config, T, B = case.config, case.T, case.B
    H, D = config["hidden_size"], 1 + config["bidirectional"]
    a: Arrays = {}
    for k in range(config["num_layers"]):
        for suffix in ("", "_reverse")[:D]:
            wide = config["input_size"] if not k else D * H
            for kind, shape in (("weight_ih", (3 * H, wide)), ("weight_hh", (3 * H, H))):
                a[f"{kind}_l{k}{suffix}"] = rng.uniform(-1, 1, shape) / np.sqrt(shape[1])
            names = ("bias_ih", "bias_hh") if config["bias"] else ()
            a |= {f"{kind}_l{k}{suffix}": rng.uniform(-1, 1, 3 * H) for kind in names}
    states = (config["num_layers"] * D, B, H)
    shapes = {"x": (T, B, config["input_size"]), "h_0": states, "dy": (T, B, D * H), "dh_n": states}
    return a | {n: rng.uniform(-1, 1, shape) for n, shape in shapes.items()}


def given(name: str, dtype: str) -> Arrays:
    """Return the arrays of a call, the same in every run; read-only."""
    case = CASES[name]
    a = drawn(case, np.random.default_rng(zlib.crc32(name.encode())))
    if case.change is not None:
        case.change(a | {"c_0": a["h_0"], "dc_n": a["dh_n"]})
    return rounded(a, dtype)


@cache
def expected(name: str, dtype: str) -> Arrays:
    """Return the results of the call for inputs rounded to the dtype."""
    with np.errstate(all="ignore"):
        return GRU().call("module_vjp", CASES[name].config, given(name, dtype))
