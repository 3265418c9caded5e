"""Define calls at corners: options at sizes, in long sequences and in threes; odd values, holes and ties."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from typing import Any, TypeAlias

import numpy as np

from spec import plan
from spec.plan import FACTORS, SEED, VALUES, Choice
from spec.records import Record
from spec.sized import KEY, MASK, Sized, layer, module
from spec.subject import Arrays

BOTH: Record = {"num_layers": 2, "bidirectional": True}
Triple: TypeAlias = tuple[tuple[str, Any], ...]


def lengths_of(T: int, B: int) -> list[int]:
    """Return unsorted lengths, each several times, with 0 and T."""
    return [(2 * T * (b + 1) // 3 + b // 2) % (T + 1) for b in range(B)]


def mask_of(T: int, B: int) -> list[list[bool]]:
    return [[(t * t + 3 * b + b // 4) % 4 != 0 for b in range(B)] for t in range(T)]


DROPS = ("XPL-DRP-001", "XPL-DRP-002", "XPL-DRP-003")
CLAUSES = {
    **{"peepholes": "XPL-VAR-001", "coupled": "XPL-VAR-002", "gate_clip": "XPL-VAR-005"},
    **{"cell_clip": "XPL-VAR-006", "layer_norm": "XPL-VAR-007", "zoneout": "XPL-VAR-010"},
    **{"lengths": "XPL-SEQ-003", "mask": "XPL-SEQ-007", "resets": "XPL-SEQ-010", "no-bias": "XPL-CELL-005"},
}


def settings(name: str, T: int, B: int) -> Choice:
    """Return the options of one kind at a size."""
    if name in VALUES:
        return {"variant": VALUES[name]}
    options: dict[str, Choice] = {
        "lengths": {"lengths": lengths_of(T, B)},
        "mask": {"mask": mask_of(T, B)},
        "resets": {"reset": [[(t + b) % 4 == 1 for b in range(B)] for t in range(T)]},
        "no-bias": {"bias": False},
    }
    return options[name]


def at_sizes() -> dict[str, Sized]:
    """Return each option with many inputs, units and batch entries, and with many steps."""
    found: dict[str, Sized] = {}
    for name, said in CLAUSES.items():
        many, long = settings(name, 3, 66), settings(name, 70, 3)
        found |= {
            f"large-{name}": layer(34, 66, 3, 66, said, **many),
            f"large-{name}-reverse": layer(9, 33, 3, 66, said, reverse=True, **many),
            f"large-{name}-module": module(34, 33, 3, 66, said, **BOTH, **many),
            f"projection-{name}-reverse": layer(
                3, 6, 4, 5, said, proj_size=4, reverse=True, **settings(name, 4, 5)
            ),
            f"long-{name}": layer(2, 3, 70, 3, said, **long),
            f"long-{name}-reverse": layer(2, 3, 70, 3, said, reverse=True, **long),
            f"long-{name}-module": module(2, 3, 70, 3, said, num_layers=3, **long),
        }
    for merge in ("sum", "mean", "product", "none"):
        found[f"large-{merge}"] = module(9, 34, 2, 66, "XPL-VAR-014", merge=merge, **BOTH)
        found[f"long-{merge}"] = module(2, 3, 70, 3, "XPL-VAR-014", merge=merge, **BOTH)
    return found | {
        "large-projection": layer(9, 67, 3, 34, "XPL-CELL-004", proj_size=34, reverse=True),
        "large-projection-module": module(9, 67, 3, 34, "XPL-CELL-004", proj_size=33, **BOTH),
        "long-projection": layer(2, 5, 70, 3, "XPL-CELL-004", proj_size=3),
        "long-projection-module": module(
            2, 5, 70, 3, "XPL-CELL-004", proj_size=3, lengths=[70, 44, 9], **BOTH
        ),
        "large-dropout": module(3, 9, 3, 80, *DROPS, **BOTH, dropout={"p": "0.5", **KEY}),
        "long-dropout": module(3, 4, 70, 3, *DROPS, num_layers=3, dropout={"p": "0.5", **KEY}),
        "dropout-of-nothing": module(3, 5, 4, 3, *DROPS, **BOTH, dropout={"p": "0", **KEY}),
        "dropout-of-most": module(3, 5, 4, 9, *DROPS, **BOTH, dropout={"p": "0.875", **KEY}),
        "dropout-mask": module(3, 5, 4, 3, *DROPS, mask=MASK, **BOTH, dropout={"p": "0.25", **KEY}),
        "dropout-sum": module(3, 5, 4, 3, *DROPS, merge="sum", **BOTH, dropout={"p": "0.25", **KEY}),
    }


def between() -> dict[str, Sized]:
    """Return common sizes, between and beyond those of the plan."""
    found = {}
    for n in (80, 96, 100, 112, 160, 192, 384, 784, 1000, 1024, 2049):
        found[f"between-i{n}"] = layer(n, 4, 2, 2)
        found[f"between-b{n}"] = layer(3, 4, 2, n, reverse=n % 3 == 0)
    for n in (80, 96, 100, 112, 160, 192):
        found[f"between-h{n}"] = layer(3, n, 2, 2)
    for B in (8, 16, 32, 64, 100):
        found[f"ragged-b{B}"] = module(3, 4, 4, B, lengths=lengths_of(4, B), **BOTH)
    return found | {
        "between-i300-module": module(300, 5, 2, 2, **BOTH),
        "between-i784-module": module(784, 3, 2, 2),
        "between-h110-module": module(3, 110, 2, 2, num_layers=2),
        "between-b1030-module": module(3, 4, 2, 1030, **BOTH),
    }


def zero_steps(a: Arrays) -> None:
    a["x"][1, 0] = a["x"][-2:, 1] = a["x"][0, 2] = 0


def zero_states(a: Arrays) -> None:
    a["h_0"][...] = a["c_0"][...] = 0


def zero_h(a: Arrays) -> None:
    a["h_0"][...] = 0


def zero_c(a: Arrays) -> None:
    a["c_0"][...] = 0


def equal_states(a: Arrays) -> None:
    a["c_0"][...] = a["h_0"]


def zero_weights(a: Arrays) -> None:
    for name in (n for n in a if n.startswith("weight")):
        a[name][...] = 0


def zero_inputs(a: Arrays) -> None:
    a["x"][...] = 0


def loud(a: Arrays) -> None:
    """Set larger numbers than usual, small enough that not all gates are saturated."""
    a["x"] *= 40
    a["h_0"] *= 3
    a["c_0"] *= 30
    for name in (n for n in a if n.startswith("bias")):
        a[name] *= 5
    for name in (n for n in a if n.startswith("weight_ih")):
        a[name] /= 10
        a[name][:, 0] *= 80


def loud_cotangents(a: Arrays) -> None:
    for name in ("dy", "dh_n", "dc_n"):
        a[name] *= 2.0**20


def nan_in_an_empty_entry(a: Arrays) -> None:
    a["x"][:, 1] = a["dy"][:, 1] = np.nan


def nan_in_holes(a: Arrays) -> None:
    holes = ~np.asarray(MASK)
    a["x"][holes] = a["dy"][holes] = np.nan


def tiny_states(a: Arrays) -> None:
    """Set states to subnormal numbers of float32 and of float64."""
    a["h_0"][..., 1, :2] = a["c_0"][..., 1, :2] = 2.0**-140, -(2.0**-1060)


def values() -> dict[str, Sized]:
    """Return zeros, ties, large and small numbers, in layers, in reverse and in modules."""
    changes = {
        "zero-steps": zero_steps,
        "zero-states": zero_states,
        "zero-h": zero_h,
        "zero-c": zero_c,
        "equal-states": equal_states,
        "zero-weights": zero_weights,
        "zero-inputs": zero_inputs,
        "loud": loud,
        "loud-cotangents": loud_cotangents,
    }
    found = {}
    for name, change in changes.items():
        found[name] = layer(3, 4, 4, 3, change=change)
        found[f"{name}-reverse"] = layer(3, 4, 4, 3, reverse=True, change=change)
        found[f"{name}-module"] = module(3, 4, 4, 3, change=change, **BOTH)
    return found


def absent() -> dict[str, Sized]:
    """Return NaN at invalid steps, entries and batches without steps, and separate equal lengths."""
    nothing = [[True, False, True]] * 4
    said = ("XPL-SEQ-003", "XPL-SEQ-004", "XPL-GRAD-002")
    lengths: Choice = {"lengths": [4, 0, 3]}
    found: dict[str, Sized] = {}
    ways: tuple[tuple[str, Callable[..., Sized], Choice], ...] = (
        ("", layer, {}),
        ("-reverse", layer, {"reverse": True}),
        ("-module", module, BOTH),
    )
    for name, made, more in ways:
        found |= {
            f"nan-in-an-empty-entry{name}": made(
                3, 4, 4, 3, *said, change=nan_in_an_empty_entry, **lengths, **more
            ),
            f"nan-in-holes{name}": made(
                3, 4, 4, 3, "XPL-SEQ-007", "XPL-GRAD-002", change=nan_in_holes, mask=MASK, **more
            ),
            f"tiny-states{name}": made(3, 4, 4, 3, "XPL-SEQ-003", change=tiny_states, **lengths, **more),
            f"an-empty-entry-of-a-mask{name}": made(
                3, 4, 4, 3, "XPL-SEQ-007", change=tiny_states, mask=nothing, **more
            ),
            f"no-step-of-a-mask{name}": made(3, 4, 2, 3, "XPL-SEQ-007", mask=[[False] * 3] * 2, **more),
            f"lengths-apart{name}": made(3, 4, 4, 8, "XPL-SEQ-003", lengths=[3, 1, 3, 0, 1, 3, 4, 1], **more),
        }
    return found


def covering(rng: np.random.Generator) -> list[Choice]:
    """Return choices among which every possible three values occur together; each is the best of several."""
    named = [*enumerate(combinations(FACTORS, 3))]
    triples: list[tuple[int, Triple]] = [
        (n, tuple(zip(names, values, strict=True)))
        for n, names in named
        for values in product(*(FACTORS[f] for f in names))
    ]
    usual = {name: values[0] for name, values in FACTORS.items()}
    of = plan.numbers([usual | dict(triple) for _, triple in triples], at_once=3)
    own = of[range(len(triples)), [n for n, _ in triples]]
    left, found = np.ones(own.max() + 1, bool), []
    for (_, triple), number in zip(triples, own, strict=True):
        if left[number]:
            tried = [repaired(choice | dict(triple), triple) for choice in plan.draw(40, rng)]
            fitting = [c for c in tried if plan.possible(c)]
            if fitting:
                combined = plan.numbers(fitting, at_once=3)
                best = left[combined].sum(axis=1).argmax()
                found.append(fitting[best])
                left[combined[best]] = False
    return found


def repaired(choice: Choice, triple: Triple) -> Choice:
    """Remove options that exclude each other, but keep the triple."""
    fixed, usual = dict(triple), {"op": "module", "two": True}
    if choice["merge"] != "concat" or choice["num_layers"] > 1:
        wanted = usual if choice["merge"] != "concat" else {"op": "module"}
        if all(fixed.get(n, v) == v for n, v in wanted.items()):
            return choice | wanted
        free = {"merge": "concat", "num_layers": 1}
        return choice | {n: v for n, v in free.items() if n not in fixed}
    return choice


def threes() -> dict[str, Sized]:
    rng = np.random.default_rng(SEED)
    return {
        f"threes-{n}": plan.made(choice, rng)._replace(clauses=("XPL-VAR-018",))
        for n, choice in enumerate(covering(rng))
    }


CASES: dict[str, Sized] = {**at_sizes(), **between(), **values(), **absent(), **threes()}
