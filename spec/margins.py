"""Define calls at the margin of an option: no steps, one step, unit or entry, a high rate, another option.

An implementation that is right with an option, and right at a size, may still be wrong with both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spec import plan
from spec.corners import BOTH, lengths_of, mask_of
from spec.paths import SHORT_KEY
from spec.plan import LARGE, VALUES, Choice
from spec.sized import RESETS, Change, Sized, layer, module
from spec.subject import Arrays

FUNCTIONS: Choice = {
    "activations": [["hard_sigmoid", "0.3", "0.4"], ["softsign"], ["scaled_tanh", "1.3", "0.7"]]
}
EDGES: dict[str, tuple[int, int, int]] = {
    "no-steps": (4, 0, 2),
    "no-entries": (4, 3, 0),
    "one-step": (4, 1, 3),
    "one-unit": (1, 3, 3),
    "one-entry": (4, 3, 1),
}
"""Hidden units, steps and batch entries."""
CLAUSES = {"no-steps": ("XPL-SEQ-008",), "no-entries": ("XPL-SEQ-009",)}
OWN = ("XPL-VAR-018",)
WAYS: tuple[tuple[str, Callable[..., Sized], Choice], ...] = (
    ("", layer, {}),
    ("-reverse", layer, {"reverse": True}),
    ("-module", module, BOTH),
)
MASKS: Choice = {"input_dropout": "0.3", "weight_dropout": "0.3", "noise": SHORT_KEY}
ONE_LAYER: tuple[str, Callable[..., Sized], Choice] = ("-two-directions", module, {"bidirectional": True})


def edges() -> dict[str, Sized]:
    """Return each option at each edge, in layers, in reverse and in modules."""
    given = VALUES | {"functions": FUNCTIONS}
    found = {
        f"{edge}-{name}{way}": made(3, H, T, B, *CLAUSES.get(edge, OWN), variant=variant, **options)
        for edge, (H, T, B) in EDGES.items()
        for name, variant in given.items()
        for way, made, options in WAYS
    }
    for edge, (H, T, B) in EDGES.items():
        said = CLAUSES.get(edge, OWN)
        for way, made, options in WAYS:
            found[f"{edge}-no-bias{way}"] = made(3, H, T, B, *said, bias=False, **options)
            ragged: Choice = {"lengths": lengths_of(T, B)} if way == "-reverse" else {}
            if H > 1:
                found[f"{edge}-projection{way}"] = made(3, H, T, B, *said, proj_size=2, **ragged, **options)
        steps: Choice = {"lengths": lengths_of(T, B)}
        if T:
            # Empty lists of steps do not show the number of batch entries.
            steps |= {"mask": mask_of(T, B), "reset": [[True] * B] * T}
        for name, value in steps.items():
            for way, made, options in (*WAYS, ONE_LAYER):
                found[f"{edge}-with-{name}{way}"] = made(3, H, T, B, *said, **{name: value}, **options)
        found[f"{edge}-one-layer-two-directions"] = module(3, H, T, B, *said, bidirectional=True)
        for merge in ("mean", "product", "none"):
            found[f"{edge}-{merge}"] = module(3, H, T, B, *said, merge=merge, **BOTH)
        drops: Choice = {"dropout": {"p": "0.25", **SHORT_KEY}}
        found[f"{edge}-dropout"] = module(3, H, T, B, *said, **drops, **BOTH)
        found[f"{edge}-masks"] = module(3, H, T, B, *said, **drops, **MASKS, **BOTH)
        noise: Choice = {"noise": SHORT_KEY, "variant": {"zoneout_h": "0.25", "recurrent_dropout": "0.5"}}
        found[f"{edge}-noise"] = layer(3, H, T, B, *said, **noise)
    return found


def rates() -> dict[str, Sized]:
    """Return zoneout of one state alone, equal rates, and rates above one half."""
    pairs = (("0.3", ""), ("", "0.3"), ("0.3", "0.3"), ("0.7", "0.9"))
    found = {}
    for h, c in pairs:
        variant = {n: p for n, p in (("zoneout_h", h), ("zoneout_c", c)) if p}
        name = f"zoneout-{h or 0}-{c or 0}"
        found[name] = layer(3, 4, 4, 3, "XPL-VAR-010", variant=variant)
        found[f"{name}-module"] = module(3, 4, 4, 3, "XPL-VAR-010", variant=variant, **BOTH)
        found[f"{name}-drawn"] = layer(3, 4, 4, 3, "XPL-VAR-009", variant=variant, noise=SHORT_KEY)
    for rate in ("input_dropout", "weight_dropout"):
        found[f"{rate}-0.7"] = module(3, 4, 4, 3, "XPL-VAR-016", noise=SHORT_KEY, **BOTH, **{rate: "0.7"})
    often: Choice = {"variant": {"recurrent_dropout": "0.7"}, "noise": SHORT_KEY}
    found["recurrent_dropout-0.7"] = layer(3, 4, 4, 3, "XPL-VAR-012", **often)
    drops: Choice = {"num_layers": 2, "dropout": {"p": "0.75", **SHORT_KEY}}
    found["dropout-0.75"] = module(3, 4, 4, 3, "XPL-DRP-001", "XPL-DRP-002", **drops)
    return found


PURPOSES: dict[str, tuple[int, int, str, Choice]] = {
    "dropout": (0, 1, "XPL-DRP-003", {"num_layers": 2}),
    "recurrent_dropout": (1, 0, "XPL-VAR-012", {}),
    "zoneout_h": (2, 0, "XPL-VAR-009", {}),
    "zoneout_c": (3, 0, "XPL-VAR-009", {}),
    "input_dropout": (4, 0, "XPL-VAR-013", {"num_layers": 1}),
    "weight_dropout": (5, 0, "XPL-VAR-015", {"num_layers": 1}),
}
"""Of each mask its purpose, its stream, its clause and its module."""


def beside_a_draw() -> dict[str, Sized]:
    """Return rates that equal a drawn number, and the next larger rate."""
    found = {}
    for name, (purpose, stream, clause, options) in PURPOSES.items():
        key = np.array([int(word) for word in SHORT_KEY["key"]], np.uint64)
        philox = np.random.Philox(key=key, counter=np.array([0, 0, stream, purpose], np.uint64))
        drawn = (philox.random_raw(12) >> np.uint64(11)) / 2.0**53
        usual = drawn[(drawn > 0.1) & (drawn < 0.9)]
        rates = {"at": usual[0], "above": np.nextafter(usual[usual.astype("float32") > usual][0], 1)}
        for place, rate in rates.items():
            p = repr(float(rate))
            given: Choice = {"variant": {name: p}, "noise": SHORT_KEY} if not options else {name: p}
            given |= {"dropout": {"p": p, **SHORT_KEY}} if name == "dropout" else {"noise": SHORT_KEY}
            made = module if options else layer
            found[f"{name}-{place}-a-draw"] = made(4, 4, 3, 3, clause, "XPL-VAR-016", **given, **options)
    return found


def deep() -> dict[str, Sized]:
    """Return each option in six layers and in one."""
    rates: Choice = {"zoneout_h": "0.3", "zoneout_c": "0.1", "recurrent_dropout": "0.3"}
    options: dict[str, Choice] = {
        **{name: {"variant": given} for name, given in VALUES.items()},
        "mask": {"mask": mask_of(3, 3)},
        "reset": {"reset": RESETS[:3]},
        "lengths": {"lengths": [3, 0, 2]},
        "projection": {"proj_size": 2},
        "no-bias": {"bias": False},
        "functions": {"variant": FUNCTIONS},
        "dropout": {"dropout": {"p": "0.3", **SHORT_KEY}},
        "sum": {"merge": "sum"},
        "noise": {"variant": rates, "noise": SHORT_KEY, "input_dropout": "0.3", "weight_dropout": "0.3"},
    }
    found = {
        f"six-layers-{name}": module(
            3, 4, 3, 3, *OWN, num_layers=6, bidirectional=name == "sum" or n % 2 == 0, **option
        )
        for n, (name, option) in enumerate(options.items())
    }
    others = ("dropout", "sum", "noise")
    return found | {
        f"one-layer-{name}": module(3, 4, 3, 3, *OWN, **option)
        for name, option in options.items()
        if name not in others
    }


def pairs() -> dict[str, Sized]:
    """Return each pair of options of `plan` with other activations, and with random masks of each kind."""
    found: dict[str, Sized] = {}
    for name, case in plan.OPTIONS.items():
        config, variant = case.config, case.config.get("variant", {})
        if config.get("merge") == "product" and "layer_norm" in variant:
            continue
        masks: Choice = {"variant": variant | {"recurrent_dropout": "0.3"}, "noise": SHORT_KEY}
        if case.op == "module":
            masks |= MASKS | ({"dropout": {"p": "0.25", **SHORT_KEY}} if config["num_layers"] > 1 else {})
        given: dict[str, Choice] = {"functions": {"variant": FUNCTIONS | variant}, "masks": masks}
        found |= {f"{name}-{n}": case._replace(config=config | o, clauses=OWN) for n, o in given.items()}
    return found


def meetings() -> dict[str, Sized]:
    """Return other activations, and noise, with each other option."""
    options: dict[str, Choice] = {
        **{name: {"variant": variant} for name, variant in VALUES.items()},
        **{"mask": {"mask": mask_of(4, 3)}, "reset": {"reset": RESETS}, "lengths": {"lengths": [4, 0, 3]}},
        **{"projection": {"proj_size": 2}, "no-bias": {"bias": False}, "functions": {"variant": FUNCTIONS}},
    }
    noise = {"zoneout_h": "0.3", "recurrent_dropout": "0.3"}
    found: dict[str, Sized] = {}
    for name, option in options.items():
        rest = {n: v for n, v in option.items() if n != "variant"}
        mixed = {"variant": FUNCTIONS | option.get("variant", {})}
        drawn = {"variant": noise | option.get("variant", {}), "noise": SHORT_KEY}
        for way, made, shape in WAYS[:2] if name == "functions" else WAYS:
            found[f"functions-and-{name}{way}"] = made(3, 4, 4, 3, *OWN, **mixed, **rest, **shape)
        found[f"noise-and-{name}"] = layer(3, 4, 4, 3, "XPL-VAR-016", **drawn, **rest)
    for merge in ("sum", "mean", "product", "none"):
        found[f"functions-and-{merge}"] = module(3, 4, 4, 3, *OWN, variant=FUNCTIONS, merge=merge, **BOTH)
    three: Choice = {"num_layers": 3, "bidirectional": True}
    every = FUNCTIONS | {
        option: value
        for name, given in VALUES.items()
        if name != "layer_norm"
        for option, value in given.items()
    }
    holes: Choice = {"reset": RESETS, "mask": mask_of(4, 3), "reverse": True, "proj_size": 3}
    ragged: Choice = {"reset": RESETS, "lengths": [4, 0, 3], "merge": "sum", "proj_size": 3}
    return found | {
        "peepholes-and-norm": layer(3, 4, 4, 3, *OWN, variant={"peepholes": True, "layer_norm": True}),
        "functions-of-all": layer(3, 5, 4, 3, *OWN, variant=every, **holes),
        "functions-of-all-module": module(3, 5, 4, 3, *OWN, variant=every, **ragged, **BOTH),
        "functions-of-three-layers": module(3, 4, 4, 3, *OWN, variant=FUNCTIONS, **three),
        "weight-dropout-of-three-layers": module(
            3, 4, 4, 3, "XPL-VAR-015", weight_dropout="0.3", noise=SHORT_KEY, **three
        ),
    }


def large() -> dict[str, Sized]:
    """Return many options of large or long calls, for which an implementation may take another path."""
    holes: Choice = {
        "mask": mask_of(2, 70),
        "reset": [[(t + b) % 3 == 1 for b in range(70)] for t in range(2)],
    }
    peepholes, norm = {"variant": {"peepholes": True}}, {"variant": {"layer_norm": True}}
    functions: Choice = {"variant": FUNCTIONS}
    return {
        "large-functions": layer(34, 66, 3, 66, *OWN, reverse=True, **functions),
        "large-functions-module": module(34, 33, 3, 66, *OWN, **BOTH, **functions),
        "long-functions": layer(2, 3, 140, 3, *OWN, lengths=[140, 0, 77], **functions),
        "large-in-all": layer(70, 70, 2, 70, *OWN, **holes, variant={"peepholes": True, "layer_norm": True}),
        "large-in-all-module": module(36, 36, 2, 36, *OWN, lengths=lengths_of(2, 36), **BOTH, **norm),
        "long-in-all": layer(2, 3, 310, 2, *OWN, mask=mask_of(310, 2), proj_size=2, **peepholes),
        "long-in-all-module": module(2, 3, 610, 2, *OWN, lengths=[610, 333], **BOTH, **peepholes),
        "long-norm": layer(2, 8, 310, 2, "XPL-VAR-007", reverse=True, **norm),
        "resets-in-all": layer(
            3, 5, 4, 3, *OWN, reset=RESETS, lengths=[4, 0, 3], proj_size=3, reverse=True, **peepholes
        ),
        "units-of-610": layer(3, 610, 1, 2, "XPL-CELL-004", proj_size=530),
        "units-of-270-module": module(3, 270, 1, 2),
        "inputs-of-4100": layer(4100, 2, 1, 2),
    }


def swept_gates(a: Arrays) -> None:
    """Set sums of each gate to every quarter from -40 to 40, where a function may saturate too early."""
    sums = np.linspace(-40, 40, 321)
    for gate, step in enumerate((1, 7, 11, 13)):
        a["bias_ih"][gate * 321 : (gate + 1) * 321] = sums[np.arange(321) * step % 321]
    for name in ("weight_ih", "weight_hh", "bias_hh"):
        a[name] /= 64


def swept_states(a: Arrays) -> None:
    """Set cell states from -20 to 20, which the cell keeps."""
    a["c_0"][...] = np.linspace(-20, 20, a["c_0"].size).reshape(a["c_0"].shape)
    a["bias_ih"][161:322] = 40


def scaled(power: int, *names: str, inverse: str = "") -> Change:
    """Return a change of arrays: a power of two times those with these name prefixes, and its inverse."""

    def change(a: Arrays) -> None:
        for name, v in a.items():
            if name.startswith(names):
                v *= 2.0**power
            elif inverse and name.startswith(inverse):
                v /= 2.0**power

    return change


def large_peepholes(a: Arrays) -> None:
    """Scale the peepholes of i and f, whose cell state is then small, but not that of o."""
    a["weight_ch"][: 2 * len(a["weight_ch"]) // 3] *= 2.0**12
    a["c_0"] /= 2.0**12


def nan_in_rows_of_f(a: Arrays) -> None:
    for name in ("weight_ih", "weight_hh", "bias_ih"):
        np.split(a[name], 4)[1][0] = np.nan


def ranges() -> dict[str, Sized]:
    """Return calls in which one array is large, and its counterpart so small that no gate is saturated."""
    norm, peepholes = {"variant": VALUES["layer_norm"]}, {"variant": VALUES["peepholes"]}
    said = "XPL-NUM-001"
    return {
        "large-weights-of-h": layer(3, 4, 1, 3, said, change=scaled(12, "weight_hh", inverse="h_0")),
        "large-h": layer(3, 4, 2, 3, said, change=scaled(12, "h_0", inverse="weight_hh")),
        "large-c": layer(3, 4, 2, 3, said, change=scaled(12, "c_0")),
        "large-outputs": layer(3, 4, 1, 3, said, proj_size=2, change=scaled(12, "weight_hr")),
        "large-weights-of-c": layer(3, 4, 1, 3, said, "XPL-VAR-001", change=large_peepholes, **peepholes),
        "large-gains": layer(3, 4, 1, 3, said, "XPL-VAR-007", change=scaled(3, "gain", "bias_c"), **norm),
        "large-norm": layer(3, 4, 1, 3, "XPL-VAR-007", change=scaled(20, "x", "h_0", "c_0"), **norm),
        "small-norm": layer(3, 4, 1, 3, "XPL-VAR-007", change=scaled(-10, "x", "h_0", "c_0"), **norm),
        "unused-rows": layer(
            3, 4, 4, 3, "XPL-VAR-002", change=nan_in_rows_of_f, gradients=False, variant=VALUES["coupled"]
        ),
        **{
            f"large-{name}": layer(3, 4, 3, 3, said, change=scaled(40, name))
            for name in ("dy", "dh_n", "dc_n")
        },
    }


def numbers() -> dict[str, Sized]:
    """Return sums and states at which a function may saturate too early, and large inputs and weights."""
    said = ("XPL-NUM-001", "XPL-CELL-002")
    return {
        **ranges(),
        "swept-gates": layer(2, 321, 1, 2, *said, change=swept_gates),
        "swept-states": layer(2, 161, 1, 2, *said, "XPL-CELL-003", change=swept_states),
        "large-inputs": layer(3, 4, 4, 3, *said, change=scaled(20, "x", inverse="weight_ih")),
        "large-weights": layer(3, 4, 4, 3, *said, change=scaled(20, "weight_ih", inverse="x")),
    }


def shapes() -> dict[str, Sized]:
    """Return square matrices, as many steps as entries, and larger calls and stacks."""
    square = [[True, True, False], [False, False, True], [True, False, True]]
    found = {
        "square-weight_ih": layer(8, 2, 3, 3),
        "square-weight_ih-module": module(8, 2, 3, 3, lengths=[2, 0, 3], **BOTH),
        "square-mask": layer(3, 4, 3, 3, "XPL-SEQ-007", mask=square),
        "square-reset": layer(3, 4, 3, 3, "XPL-SEQ-010", reset=square),
        "a-full-mask-module": module(3, 4, 3, 4, "XPL-SEQ-007", mask=[[True] * 4] * 3, **BOTH),
        "a-full-mask": layer(3, 4, 3, 4, "XPL-SEQ-007", mask=[[True] * 4] * 3, reverse=True),
        "every-step-reset": module(3, 4, 3, 4, "XPL-SEQ-010", reset=[[True] * 4] * 3, **BOTH),
        "one-shorter": layer(3, 4, 5, 4, "XPL-SEQ-003", lengths=[5, 5, 3, 5], reverse=True),
        "steps-300-reset": layer(
            2, 3, 300, 2, "XPL-SEQ-010", reset=[[t % 37 == b for b in (5, 9)] for t in range(300)]
        ),
        "many-numbers": layer(4, 40, 30, 60),
        "many-numbers-module": module(4, 40, 30, 60, bidirectional=True),
        "many-steps-and-entries": layer(2, 2, 90, 100, reverse=True),
        "a-million-weights": layer(600, 450, 1, 2),
        "steps-2100": layer(2, 2, 2100, 2),
        "four-layers-of-two-directions": module(2, 3, 3, 2, num_layers=4, bidirectional=True),
        "twelve-layers-of-two-directions": module(2, 2, 2, 2, num_layers=12, bidirectional=True),
        "three-large-layers": module(3, 70, 2, 70, num_layers=3),
        "projection-of-many-entries": layer(3, 5, 2, 70, "XPL-CELL-004", proj_size=2),
    }
    for n, size in enumerate((120, 123, 144, 200, 224, 300, 320, 400, *LARGE[3:])):
        found[f"units-of-{size}"] = layer(3, size, 2, 2, reverse=n % 2 == 1)
    for size in LARGE[3:]:
        found[f"outputs-of-{size}"] = layer(3, size + 3, 2, 2, "XPL-CELL-004", proj_size=size)
    for T in (150, 200, 500, 512, 1000, 1024):
        found[f"steps-of-{T}"] = layer(2, 2, T, 2, "XPL-SEQ-001", "XPL-GRAD-001")
    for I, H, B in ((130, 4, 3), (3, 130, 3), (3, 4, 130)):
        found[f"lengths-i{I}-h{H}-b{B}"] = layer(
            I, H, 3, B, "XPL-SEQ-003", lengths=lengths_of(3, B), reverse=True
        )
    return found | {
        **{f"{n}-layers": module(2, 3, 2, 2, num_layers=n) for n in (7, 8)},
        "entries-of-200": layer(3, 4, 2, 200),
        "inputs-of-640": layer(640, 4, 2, 2),
    }


CASES: dict[str, Sized] = {
    **edges(),
    **rates(),
    **beside_a_draw(),
    **deep(),
    **pairs(),
    **meetings(),
    **large(),
    **numbers(),
    **shapes(),
}
