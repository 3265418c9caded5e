"""Define calls of any size, option and direction from a seed, without stored numbers.

The numbers are uniform and use all bits of the dtype:
an implementation that stores them in less misses by far. Weights are so small that
rounding errors do not grow with the size, so that one bound serves all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from spec.records import UNITS, Record
from spec.subject import Arrays

Change: TypeAlias = Callable[[Arrays], None]

SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65)
ALLOWED = {"outputs": 64, "gradients": 256}
"""Errors in u * s, as XPL-NUM-001 counts them."""
KEY = {"key": ["11400714819323198485", "15241578753238836750"]}


class Sized(NamedTuple):
    """One call: its sizes and options, and the changes of its arrays."""

    op: str
    config: Record
    T: int
    B: int
    clauses: tuple[str, ...]
    change: Change | None = None
    gradients: bool = True

    @property
    def work(self) -> int:
        """Return the approximate cost of the call."""
        return self.T * (8 + self.B * int(self.config["hidden_size"]))

    @property
    def draws(self) -> bool:
        """Return whether the call draws masks; calls without gradients draw none."""
        return not self.config.keys().isdisjoint(("dropout", "noise"))


def layer(I: int, H: int, T: int, B: int, *clauses: str, **options: Any) -> Sized:
    change, gradients = options.pop("change", None), options.pop("gradients", True)
    config = {"input_size": I, "hidden_size": H, "proj_size": 0, "bias": True, "reverse": False}
    said = clauses or ("XPL-CELL-002", "XPL-SEQ-001", "XPL-GRAD-001")
    return Sized("layer", config | {"lengths": None} | options, T, B, said, change, gradients)


def module(I: int, H: int, T: int, B: int, *clauses: str, **options: Any) -> Sized:
    change = options.pop("change", None)
    config = {"input_size": I, "hidden_size": H, "num_layers": 1, "bidirectional": False, "proj_size": 0}
    said = clauses or ("XPL-STK-001", "XPL-STK-003", "XPL-GRAD-001")
    return Sized("module", config | {"bias": True, "lengths": None} | options, T, B, said, change)


def grid() -> dict[str, Sized]:
    """Return every size as I, H, B and P, forward and in reverse."""
    found = {}
    for n, H in enumerate(SIZES):
        I, B, P = (SIZES[(k * n + m) % len(SIZES)] for k, m in ((5, 3), (7, 1), (11, 0)))
        for proj_size in {0, P if P < H and n % 3 == 2 else 0}:
            made = layer(I, H, 3, B, reverse=n % 2 == 1, proj_size=proj_size)
            found[f"sizes-i{I}-h{H}-b{B}-p{proj_size}"] = made
    return found


def ragged(lengths: list[int], **options: Any) -> dict[str, Sized]:
    """Return lengths of five steps, in a layer, in reverse and in a module of two directions."""
    name, said = "".join(map(str, lengths)), ("XPL-SEQ-003", "XPL-SEQ-005", "XPL-GRAD-002")
    return {
        f"lengths-{name}": layer(3, 4, 5, len(lengths), said[0], said[2], lengths=lengths, **options),
        f"lengths-{name}-reverse": layer(3, 4, 5, len(lengths), *said, lengths=lengths, reverse=True),
        f"lengths-{name}-two-directions": module(
            3, 4, 5, len(lengths), "XPL-STK-002", *said, lengths=lengths, num_layers=2, bidirectional=True
        ),
    }


MASK = [[True, False, True], [False, True, True], [True, True, True], [True, False, False]]
RESETS = [[True, False, False], [False, True, False], [False, True, True], [True, False, True]]
VARIANTS: dict[str, tuple[str, Record]] = {
    "peepholes": ("XPL-VAR-001", {"peepholes": True}),
    "coupled": ("XPL-VAR-002", {"coupled": True}),
    "gate-clip": ("XPL-VAR-005", {"gate_clip": "0.25"}),
    "cell-clip": ("XPL-VAR-006", {"cell_clip": "0.25"}),
    "layer-norm": ("XPL-VAR-007", {"layer_norm": True}),
    "zoneout": ("XPL-VAR-010", {"zoneout_h": "0.125", "zoneout_c": "0.375"}),
}


def options() -> dict[str, Sized]:
    """Return each option in layers and modules, in both directions, on full and ragged batches and a mask."""
    found: dict[str, Sized] = {}
    for name, (clause, variant) in VARIANTS.items():
        given: Record = {"variant": variant}
        found |= {
            f"{name}-reverse": layer(3, 5, 4, 3, clause, reverse=True, **given),
            f"{name}-module": module(3, 5, 4, 3, clause, lengths=[2, 1, 3], **given),
            f"{name}-two-directions": module(3, 5, 4, 3, clause, num_layers=2, bidirectional=True, **given),
        }
    both: Record = {"num_layers": 2, "bidirectional": True}
    for merge in ("sum", "mean", "product", "none"):
        single = both | {"num_layers": 1}
        found[f"merge-{merge}-one-layer"] = module(3, 5, 4, 3, "XPL-VAR-014", merge=merge, **single)
        found[f"merge-{merge}-two-layers"] = module(3, 5, 4, 3, "XPL-VAR-014", merge=merge, **both)
    for p, layers in (("0.5", 3), ("0.125", 2)):
        drops: Record = {"num_layers": layers, "dropout": {"p": p, **KEY}}
        said = ("XPL-DRP-001", "XPL-DRP-002", "XPL-DRP-003")
        # More than 4 * 2**8 elements, so that a counter of eight bits would begin again.
        found[f"dropout-{p}"] = module(3, 33, 9, 8, *said, **drops)
    for name, steps in (("", {}), ("-lengths", {"lengths": [4, 2, 3]}), ("-mask", {"mask": MASK})):
        given = {"reset": RESETS, **steps}
        found[f"resets{name}"] = layer(3, 5, 4, 3, "XPL-SEQ-010", proj_size=2, **given)
        found[f"resets{name}-reverse"] = layer(3, 5, 4, 3, "XPL-SEQ-010", reverse=True, **given)
        found[f"resets{name}-two-directions"] = module(3, 5, 4, 3, "XPL-SEQ-010", **both, **given)
    many = [[(t * t + 3 * b) % 7 == 0 for b in range(33)] for t in range(70)]
    found["resets-many"] = layer(3, 17, 70, 33, "XPL-SEQ-010", reset=many)
    found["mask-module"] = module(3, 5, 4, 3, "XPL-SEQ-007", mask=MASK, **both)
    found["mask-module-one-direction"] = module(3, 5, 4, 3, "XPL-SEQ-007", mask=MASK)
    return found


def nan_in(name: str, value: float = np.nan) -> Change:
    """Set one number of the second batch entry to NaN."""

    def change(a: Arrays) -> None:
        a[name][1, 0] = value

    return change


def far(a: Arrays) -> None:
    a["c_0"][...] = np.where(np.arange(a["c_0"].size).reshape(a["c_0"].shape) % 2, 100, -100)


def nan_past_the_end(a: Arrays) -> None:
    a["dy"][3:, 1] = a["x"][3:, 1] = np.nan


def extremes() -> dict[str, Sized]:
    one: Record = {"gradients": False}
    return {
        "nan-in-h": layer(3, 4, 5, 3, "XPL-NUM-004", change=nan_in("h_0"), **one),
        "nan-in-c": layer(3, 4, 5, 3, "XPL-NUM-004", change=nan_in("c_0"), **one),
        "infinite-c": layer(3, 4, 5, 3, "XPL-NUM-003", change=nan_in("c_0", np.inf), **one),
        "infinite-h": layer(3, 4, 5, 3, "XPL-NUM-003", change=nan_in("h_0", np.inf), **one),
        "infinite-bias": layer(3, 4, 5, 3, "XPL-NUM-003", change=infinite_bias, **one),
        "far-c": layer(3, 4, 5, 3, "XPL-NUM-003", "XPL-GRAD-001", change=far),
        "nan-past-the-end": layer(
            3, 4, 5, 3, "XPL-SEQ-004", "XPL-GRAD-002", lengths=[5, 3, 4], change=nan_past_the_end
        ),
    }


def infinite_bias(a: Arrays) -> None:
    a["bias_ih"][[0, 5, 9, 14]] = [np.inf, -np.inf, np.inf, -np.inf]


def empties() -> dict[str, Sized]:
    both: Record = {"num_layers": 2, "bidirectional": True}
    return {
        "no-steps-reverse": layer(3, 4, 0, 2, "XPL-SEQ-008", "XPL-GRAD-003", reverse=True),
        "no-steps-module": module(3, 4, 0, 2, "XPL-SEQ-008", "XPL-GRAD-003", num_layers=2),
        "no-steps-two-directions": module(3, 4, 0, 2, "XPL-SEQ-008", "XPL-GRAD-003", **both),
        "no-rows": layer(3, 4, 5, 0, "XPL-SEQ-009"),
        "no-rows-module": module(3, 4, 5, 0, "XPL-SEQ-009", num_layers=2),
        "no-rows-two-directions": module(3, 4, 5, 0, "XPL-SEQ-009", **both),
    }


def directions() -> dict[str, Sized]:
    """Return two directions on full batches, the most common use."""
    said = ("XPL-STK-002", "XPL-STK-003", "XPL-GRAD-001")
    found = {
        f"two-directions-{layers}-p{P}": module(
            3, 5, 4, 2, *said, num_layers=layers, bidirectional=True, proj_size=P
        )
        for layers in (1, 2, 3)
        for P in (0, 2)
    }
    for T in (1, 5):
        found[f"reverse-{T}"] = layer(3, 4, T, 2, "XPL-SEQ-005", "XPL-GRAD-001", reverse=True)
    return found


CASES: dict[str, Sized] = {
    **directions(),
    **ragged([2, 3, 1]),
    **ragged([3, 3, 3]),
    **ragged([5, 5, 5]),
    **ragged([0, 0, 0]),
    **empties(),
    **extremes(),
    **grid(),
    "square": layer(8, 8, 3, 4),
    "as-many-steps-as-rows": module(3, 4, 5, 5),
    "four-layers": module(3, 4, 4, 3, num_layers=4),
    "no-bias": layer(3, 4, 5, 3, "XPL-CELL-005", bias=False),
    "no-bias-module": module(3, 4, 5, 3, "XPL-CELL-005", bias=False, num_layers=2),
    "projection-module": module(3, 5, 4, 3, "XPL-CELL-004", proj_size=2, num_layers=2),
    "gradients-of-19-units": layer(3, 19, 2, 11),
    "steps-70": layer(2, 3, 70, 3, "XPL-SEQ-001", "XPL-GRAD-001"),
    "steps-1100": layer(2, 3, 1100, 3, "XPL-SEQ-001", "XPL-GRAD-001"),
    **options(),
}


def drawn(case: Sized, rng: np.random.Generator) -> Arrays:
    """Draw the arrays of a call and its cotangents, in float64."""
    config = case.config
    H, P = config["hidden_size"], config["proj_size"] or config["hidden_size"]
    stacked = case.op == "module"
    L, D = config.get("num_layers", 1), 1 + bool(config.get("bidirectional"))
    merge, T, B = config.get("merge", "concat"), case.T, case.B
    a: Arrays = {}
    for k in range(L):
        for suffix in ("", "_reverse")[:D]:
            wide = config["input_size"] if not k else P * (D if merge in ("concat", "none") else 1)
            part = parameters(rng, wide, H, P, config)
            a |= {f"{n}_l{k}{suffix}" if stacked else n: v for n, v in part.items()}
    lead = (L * D,) if stacked else ()
    y = {"concat": (T, B, D * P), "none": (D, T, B, P)}.get(merge, (T, B, P))
    shapes = {"x": (T, B, config["input_size"]), "h_0": (*lead, B, P), "c_0": (*lead, B, H)}
    shapes |= {"dy": y, "dh_n": (*lead, B, P), "dc_n": (*lead, B, H)}
    return a | {n: rng.uniform(-1, 1, shape) for n, shape in shapes.items()}


def parameters(rng: np.random.Generator, I: int, H: int, P: int, config: Record) -> Arrays:
    """Return one layer and direction; the sums have about the same size for all I, H and P."""
    variant = config.get("variant", {})
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (4 * H, I), "weight_hh": (4 * H, P)}
    shapes |= {"bias_ih": (4 * H,), "bias_hh": (4 * H,)} if config["bias"] else {}
    shapes |= {"weight_hr": (P, H)} if config["proj_size"] else {}
    shapes |= {"weight_ch": (3 * H,)} if variant.get("peepholes") else {}
    if variant.get("layer_norm"):
        shapes |= {"gain_ih": (4 * H,), "gain_hh": (4 * H,), "gain_c": (H,)}
        shapes |= {"bias_c": (H,)} if config["bias"] else {}
    return {n: rng.uniform(-1, 1, s) / np.sqrt(s[1] if len(s) == 2 else 1) for n, s in shapes.items()}


def distance(got: np.ndarray, wanted: np.ndarray, dtype: str) -> float:
    """Return the largest error in u * s; infinite if a NaN or an infinity is at a wrong position."""
    finite = np.isfinite(wanted)
    if (
        not np.array_equal(got[~finite], wanted[~finite], equal_nan=True)
        or not np.isfinite(got[finite]).all()
    ):
        return float("inf")
    worst = np.abs(got[finite] - wanted[finite]).max(initial=0.0)
    return float(worst / np.abs(wanted[finite]).max(initial=1.0) / UNITS[dtype])
