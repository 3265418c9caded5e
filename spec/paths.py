"""Define calls for which an implementation may have a separate path: steps, sizes, noise, functions.

An implementation that is right in one place and wrong in another has chosen between
two paths: by the size of its work, by an option, or by a number that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spec.corners import BOTH, lengths_of, loud, mask_of
from spec.plan import SEED, SMALL, VALUES, Choice
from spec.records import Record
from spec.sized import Change, Sized, layer, module
from spec.subject import Arrays

SHORT_KEY: Record = {"key": ["7", "5"]}
"""Words of few bits."""
KEYS = {
    "0-and-5": ["0", "5"],
    "5-and-0": ["5", "0"],
    "zeros": ["0", "0"],
    "equal": ["9", "9"],
    "ones": [str(2**64 - 1)] * 2,
    "short-and-long": ["5", str(2**63 + 2**40 + 1)],
    "long-and-short": [str(2**63 + 2**40 + 1), "5"],
}
"""Keys that an implementation may take for no key, for a key of other words, or for a negative number."""
STEPS = range(8, 73)


def steps() -> dict[str, Sized]:
    """Return numbers of steps at which a loop may be unrolled or split, in layers, in reverse, in modules."""
    ways: tuple[tuple[Callable[..., Sized], Choice], ...] = (
        (layer, {}),
        (layer, {"reverse": True}),
        (module, {"num_layers": 2}),
        (layer, {"reverse": True, "proj_size": 2}),
    )
    found = {}
    for T in (*STEPS, 96, 100, 127, 128, 129, 192, 255, 256, 257):
        made, options = ways[T % 4 if T < 128 else 0]
        found[f"steps-of-{T}"] = made(2, 3, T, 2, "XPL-SEQ-001", "XPL-GRAD-001", **options)
    return found


def modules() -> dict[str, Sized]:
    """Return every size from 1 to 72 in a module."""
    rng, found = np.random.default_rng(SEED), {}
    columns = (rng.permutation(SMALL) for _ in range(3))
    for n, sizes in enumerate(zip(*columns, strict=True)):
        I, H, B = map(int, sizes)
        shape = {"num_layers": 1 + n % 2, "bidirectional": n % 3 == 0}
        found[f"module-sizes-i{I}-h{H}-b{B}"] = module(I, H, 2, B, **shape)
    return found


def together() -> dict[str, Sized]:
    """Return pairs of large sizes, and more layers than one digit counts."""
    return {
        "wide-i130-h130": layer(130, 130, 2, 2),
        "wide-i130-b130": layer(130, 4, 2, 130),
        "wide-h130-b66": layer(3, 130, 2, 66),
        "wide-h520": layer(3, 520, 2, 2),
        "wide-h70-t70": layer(2, 70, 70, 2),
        "wide-t70-b70": layer(2, 3, 70, 70),
        "wide-i1030-module": module(1030, 3, 2, 2, **BOTH),
        "wide-p66-module": module(3, 70, 2, 3, "XPL-CELL-004", proj_size=66, lengths=[2, 1, 0], **BOTH),
        "wide-p66-lengths": layer(3, 70, 2, 3, "XPL-CELL-004", proj_size=66, lengths=[2, 1, 0]),
        "square-projection": layer(3, 5, 4, 2, "XPL-CELL-004", proj_size=3),
        "states-as-entries": module(3, 4, 3, 6, num_layers=3, bidirectional=True),
        "ragged-one-direction": module(3, 4, 5, 3, "XPL-SEQ-003", lengths=[2, 3, 1]),
        "one-step-of-a-module": module(9, 20, 1, 5),
        "one-step-or-none": module(9, 20, 1, 5, "XPL-SEQ-003", lengths=[1, 0, 1, 1, 0]),
        "twelve-layers": module(3, 3, 3, 2, num_layers=12),
        "six-layers-of-two-directions": module(2, 3, 3, 2, num_layers=6, bidirectional=True),
    }


RATES: dict[str, tuple[str, Choice]] = {
    "zoneout": ("XPL-VAR-009", {"variant": {"zoneout_h": "0.3", "zoneout_c": "0.1"}}),
    "recurrent": ("XPL-VAR-012", {"variant": {"recurrent_dropout": "0.3"}}),
    "input": ("XPL-VAR-013", {"input_dropout": "0.3"}),
    "weight": ("XPL-VAR-015", {"weight_dropout": "0.3"}),
    "dropout": ("XPL-DRP-001", {"dropout": {"p": "0.3", **SHORT_KEY}}),
}
"""Rates that no binary fraction is, each with its clause."""


def noise() -> dict[str, Sized]:
    """Return each kind of noise in layers and modules, alone and with all others; keys of short words."""
    key: Choice = {"noise": SHORT_KEY}
    found: dict[str, Sized] = {}
    for name, (clause, rates) in RATES.items():
        # Of dropout the key is its own; the others have keys that differ from call to call of one shape.
        own: Choice = {} if "dropout" in rates else {"noise": {"key": [str(len(name)), "5"]}}
        given, said = rates | own, (clause, "XPL-VAR-016")
        if "variant" in rates:
            found |= {
                f"noise-{name}": layer(3, 4, 4, 3, *said, **given),
                f"noise-{name}-reverse": layer(3, 4, 4, 3, *said, reverse=True, **given),
                f"noise-{name}-large": layer(18, 34, 20, 35, *said, lengths=lengths_of(20, 35), **given),
            }
        layers = 2 if name == "dropout" else 1
        found[f"noise-{name}-module"] = module(3, 4, 4, 3, *said, num_layers=layers, **given)
        found[f"noise-{name}-large-module"] = module(18, 33, 18, 34, *said, **BOTH, **given)
    for name, words in KEYS.items():
        drops: Choice = {"num_layers": 2, "dropout": {"p": "0.5", "key": words}}
        often: Choice = {"variant": {"zoneout_h": "0.5"}, "noise": {"key": words}}
        found[f"key-{name}"] = module(3, 4, 4, 3, "XPL-DRP-003", **drops)
        found[f"key-{name}-zoneout"] = layer(3, 4, 4, 3, "XPL-VAR-016", **often)
    every: Choice = key | {
        "variant": {"zoneout_h": "0.3", "zoneout_c": "0.1", "recurrent_dropout": "0.7", "peepholes": True},
        **{"input_dropout": "0.1", "weight_dropout": "0.6", "dropout": {"p": "0.3", **SHORT_KEY}},
        **{"num_layers": 3, "bidirectional": True, "proj_size": 2},
    }
    said = ("XPL-VAR-016", "XPL-DRP-001")
    resets = {"reset": [[(t + 2 * b) % 3 == 1 for b in range(3)] for t in range(4)]}
    normed: Choice = {"variant": every["variant"] | {"layer_norm": True, "coupled": True}}
    return found | {
        "noise-of-all": module(3, 5, 4, 3, *said, **every),
        "noise-of-all-lengths": module(3, 5, 4, 3, *said, lengths=[4, 1, 3], merge="mean", **every),
        "noise-of-all-mask": module(3, 5, 4, 3, *said, mask=mask_of(4, 3), merge="none", **every),
        "noise-of-all-resets": module(3, 5, 4, 3, *said, merge="sum", **resets, **every),
        "noise-of-all-norm": module(3, 5, 4, 3, *said, **every | normed | {"num_layers": 2, "proj_size": 0}),
    }


def no_outputs(a: Arrays) -> None:
    a["dy"][...] = 0


def no_ends(a: Arrays) -> None:
    a["dh_n"][...] = a["dc_n"][...] = 0


def no_end_of_c(a: Arrays) -> None:
    a["dc_n"][...] = 0


def end_of_c_alone(a: Arrays) -> None:
    a["dy"][...] = a["dh_n"][...] = 0


def end_of_h_alone(a: Arrays) -> None:
    a["dy"][...] = a["dc_n"][...] = 0


def nothing(a: Arrays) -> None:
    a["dy"][...] = a["dh_n"][...] = a["dc_n"][...] = 0


def cotangents() -> dict[str, Sized]:
    """Return cotangents with zeros, as from a loss of outputs alone or of states alone."""
    changes = {"no-outputs": no_outputs, "no-ends": no_ends, "no-end-of-c": no_end_of_c}
    changes |= {"end-of-c": end_of_c_alone, "end-of-h": end_of_h_alone, "no-cotangent": nothing}
    return {
        f"{name}-{way}": made(3, 4, 4, 3, "XPL-GRAD-001", change=change, **options)
        for name, change in changes.items()
        for way, made, options in (
            ("layer", layer, {"lengths": [4, 0, 2]}),
            ("reverse", layer, {"reverse": True}),
            ("module", module, BOTH),
        )
    }


def set_to(value: float, name: str, *at: int) -> Change:
    """Set a number of every array with this name prefix."""

    def change(a: Arrays) -> None:
        for n in (n for n in a if n.startswith(name)):
            a[n][at] = value

    return change


def louder(a: Arrays) -> None:
    """Set sums whose exponential overflows in float64."""
    loud(a)
    a["x"] *= 32


def infinite_past_the_end(a: Arrays) -> None:
    """Set x and dy to infinity at invalid steps, as uninitialised memory may contain."""
    for name in ("x", "dy"):
        a[name][3:, 1], a[name][2:, 2] = np.inf, -np.inf


def not_finite() -> dict[str, Sized]:
    """Return NaN with every option, in the first and last batch entry, and in parameters; infinities."""
    first, last = set_to(np.nan, "x", 1, 0, 0), set_to(np.nan, "x", 1, -1, 0)
    clip, said = {"gate_clip": "0.5", "cell_clip": "0.5"}, "XPL-NUM-004"
    options: dict[str, Choice] = {
        **{name: {"variant": variant} for name, variant in VALUES.items()},
        **{"clips": {"variant": clip}, "projection": {"proj_size": 2}, "no-bias": {"bias": False}},
        **{f: {"variant": {"activations": [[f], [f], [f]]}} for f in ("relu", "hard_sigmoid", "elu")},
    }
    found = {f"nan-with-{name}": layer(3, 4, 4, 3, said, change=first, **o) for name, o in options.items()}
    found |= {
        f"nan-in-{name}-of-{way}": made(3, 4, 4, 3, said, change=set_to(np.nan, name, 0), **o)
        for name in ("weight_ih", "weight_hh", "bias_hh")
        for way, made, o in (("layer", layer, {}), ("module", module, BOTH))
    }
    found |= {
        "nan-in-many-units": layer(5, 37, 3, 19, said, change=first),
        "nan-in-many-units-of-modules": module(5, 37, 3, 19, said, change=last, **BOTH),
        "nan-in-many-steps": layer(3, 4, 70, 3, said, change=first, reverse=True),
        "nan-in-projections": module(3, 5, 4, 3, said, change=first, proj_size=2, **BOTH),
        "nan-in-the-last-entry": layer(3, 4, 4, 3, said, change=last),
        "nan-in-the-last-entry-of-modules": module(3, 4, 4, 3, said, change=last, **BOTH),
        "infinite-weight": layer(3, 4, 4, 3, "XPL-NUM-003", change=set_to(np.inf, "weight_ih", 0, 0)),
        "infinite-x-of-many-units": layer(5, 37, 3, 19, "XPL-NUM-003", change=set_to(np.inf, "x", 1, 1, 1)),
        "infinite-x": layer(3, 4, 4, 3, "XPL-NUM-003", change=set_to(-np.inf, "x", 1, 1, 1)),
    }
    infinite = set_to(-np.inf, "x", 1, 1, 1)
    found |= {
        f"infinite-with-{name}": layer(
            3, 4, 4, 3, "XPL-NUM-003", change=infinite, reverse=True, **options[name]
        )
        for name in ("coupled", "gate_clip", "peepholes", "zoneout", "projection")
    }
    found = {name: case._replace(gradients=False) for name, case in found.items()}
    ragged: Choice = {"lengths": [4, 3, 2], "change": infinite_past_the_end}
    late = ("XPL-SEQ-004", "XPL-GRAD-002")
    return found | {
        "infinite-past-the-end": layer(3, 4, 4, 3, *late, **ragged),
        "infinite-past-the-end-reverse": layer(3, 4, 4, 3, *late, reverse=True, **ragged),
        "infinite-past-the-end-module": module(3, 4, 4, 3, *late, **BOTH, **ragged),
    }


FUNCTIONS: dict[str, list[str]] = {
    **{"relu": [], "softsign": [], "softplus": [], "identity": [], "affine": ["0.3", "0.1"]},
    **{"leaky_relu": ["0.3"], "thresholded_relu": ["0.2"], "scaled_tanh": ["1.3", "0.7"]},
    **{"hard_sigmoid": ["0.3", "0.4"], "elu": ["0.7"]},
}
"""Functions with numbers that are not their usual ones."""
ODD: dict[str, list[str]] = {
    **{"affine": ["-0.3", "-0.1"], "leaky_relu": ["-0.3"], "thresholded_relu": ["-0.2"]},
    **{"scaled_tanh": ["-1.3", "0.7"], "hard_sigmoid": ["-0.3", "0.4"], "elu": ["-0.7"]},
}
"""Functions with negative numbers."""
LONE: dict[str, list[str]] = {
    **{"affine": ["0.3"], "scaled_tanh": ["1.3"], "hard_sigmoid": ["0.3"], "leaky_relu": ["1.7"]},
}
"""Functions with alpha alone, whose beta has its default; a leaky_relu that is steeper below zero."""
BOUNDED = ("softsign", "softplus", "scaled_tanh", "hard_sigmoid")
"""Functions that are asked far from zero: a result grows with none of them, or overflows on its way."""


def functions() -> dict[str, Sized]:
    """Return each function in reverse, with many units, in the second direction alone, and far from zero."""
    said, usual = ("XPL-VAR-003", "XPL-VAR-004"), [["sigmoid"], ["tanh"], ["tanh"]]
    found = {}
    for name, numbers in FUNCTIONS.items():
        one: Choice = {"variant": {"activations": [["sigmoid"], [name, *numbers], ["tanh"]]}}
        two: Choice = {"variant": {"activations": [*usual, [name, *numbers], ["tanh"], ["softsign"]]}}
        found[f"function-{name}"] = layer(3, 10, 3, 3, *said, reverse=True, **one)
        found[f"function-{name}-module"] = module(3, 5, 3, 3, *said, **BOTH, **two)
        if name in BOUNDED:
            for way, change in (("far", loud), ("farther", louder)):
                found[f"function-{name}-{way}"] = layer(
                    3, 4, 4, 3, *said, change=change, gradients=False, **one
                )
    for way, numbers_of in (("odd", ODD), ("lone", LONE)):
        for name, numbers in numbers_of.items():
            one = {"variant": {"activations": [["sigmoid"], [name, *numbers], ["tanh"]]}}
            found[f"function-{way}-{name}"] = layer(3, 10, 3, 3, *said, **one)
    bounds: Choice = {"variant": {"gate_clip": "2.7", "cell_clip": "3.3"}}
    found["wide-clips"] = layer(3, 4, 4, 3, "XPL-VAR-005", "XPL-VAR-006", change=loud, **bounds)
    found["wide-clips-module"] = module(
        3, 4, 4, 3, "XPL-VAR-005", "XPL-VAR-006", change=loud, **BOTH, **bounds
    )
    bounds = {"variant": {"gate_clip": "9.3", "cell_clip": "17.6"}}
    found["far-clips"] = layer(3, 4, 4, 3, "XPL-VAR-005", "XPL-VAR-006", change=loud, **bounds)
    bounds = {"variant": {"gate_clip": "0.003", "cell_clip": "0.0002"}}
    found["tiny-clips"] = layer(3, 4, 4, 3, "XPL-VAR-005", "XPL-VAR-006", **bounds)
    bounds = {"variant": {"gate_clip": "0.03", "cell_clip": "0.02"}}
    found["narrow-clips-reverse"] = layer(3, 4, 4, 3, "XPL-VAR-005", "XPL-VAR-006", reverse=True, **bounds)
    found["narrow-clips-module"] = module(3, 4, 4, 3, "XPL-VAR-005", "XPL-VAR-006", **BOTH, **bounds)
    return found


CASES: dict[str, Sized] = {
    **steps(),
    **modules(),
    **together(),
    **noise(),
    **cotangents(),
    **not_finite(),
    **functions(),
}
