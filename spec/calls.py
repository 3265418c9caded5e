"""Define all seeded calls with their results: those of `sized`, and each pair of options of `plan`.

The expected numbers are those of the LSTM of wrong.py without a fault, in float64. Every record compares that
LSTM with the oracle.
"""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np

from spec import corners, margins, paths, plan, sized
from spec.judgement import Fault
from spec.plan import Choice
from spec.records import Record
from spec.sized import ALLOWED, KEY, Sized, distance, drawn, layer, module
from spec.subject import Arrays
from spec.wrong import LSTM
from spec.wrong_cell import Cell

BOTH: Record = {"num_layers": 2, "bidirectional": True}


def stacks() -> dict[str, Sized]:
    """Return every size in a module of two layers, with one and two directions alternately."""
    found, sizes = {}, sized.SIZES
    for n, H in enumerate(sizes):
        I, B, P = (sizes[(k * n + m) % len(sizes)] for k, m in ((7, 5), (5, 2), (11, 3)))
        shape = {"num_layers": 2, "bidirectional": n % 2 == 0, "proj_size": P if P < H and n % 3 else 0}
        found[f"module-i{I}-h{H}-b{B}"] = module(I, H, 3, B, **shape)
    return found


def long() -> dict[str, Sized]:
    """Return long sequences in reverse, in modules, and of unequal lengths."""
    said = ("XPL-SEQ-001", "XPL-SEQ-005", "XPL-GRAD-001")
    mask = [[(t * t + b) % 5 != 0 for b in range(3)] for t in range(140)]
    return {
        "steps-1100-lengths": layer(2, 3, 1100, 3, "XPL-SEQ-003", *said, lengths=[700, 1100, 65]),
        "steps-1100-reverse": layer(
            2, 3, 1100, 3, "XPL-SEQ-003", *said, lengths=[1030, 3, 1100], reverse=True
        ),
        "steps-530-module": module(2, 3, 530, 2, *said, **BOTH),
        "steps-140-mask": layer(2, 3, 140, 3, "XPL-SEQ-007", *said, mask=mask),
        "steps-140-mask-module": module(2, 3, 140, 3, "XPL-SEQ-007", *said, mask=mask, **BOTH),
    }


def random_masks() -> dict[str, Sized]:
    """Return counters of more than 16 bits, times above 8 bits, and every layer and direction."""
    said = ("XPL-DRP-001", "XPL-DRP-002", "XPL-DRP-003")
    zoneout = {"variant": {"zoneout_h": "0.25", "zoneout_c": "0.5"}, "noise": KEY}
    drop = {"dropout": {"p": "0.25", **KEY}}
    return {
        # 266,240 elements before layer 1: more than four for each value of a 16-bit counter.
        "dropout-counter": module(2, 65, 64, 64, *said, num_layers=2, **drop),
        "dropout-lengths": module(3, 5, 6, 3, *said, lengths=[4, 0, 5], num_layers=4, **drop),
        "dropout-two-directions": module(
            3, 5, 4, 3, *said, num_layers=3, bidirectional=True, proj_size=3, **drop
        ),
        "zoneout-time": layer(2, 3, 300, 2, "XPL-VAR-009", "XPL-VAR-016", **zoneout),
        "zoneout-time-reverse": layer(2, 3, 300, 2, "XPL-VAR-009", "XPL-VAR-016", reverse=True, **zoneout),
        "zoneout-layers": module(
            3, 4, 3, 2, "XPL-VAR-009", "XPL-VAR-016", num_layers=5, bidirectional=True, **zoneout
        ),
    }


def nan_step(a: Arrays) -> None:
    a["x"][1, 0] = np.nan


def nan_state(a: Arrays) -> None:
    a["h_0"][..., 1, 0] = a["c_0"][..., 1, 2] = np.nan


def infinite_state(a: Arrays) -> None:
    a["c_0"][..., 1, 1] = np.inf


def nan_past_two(a: Arrays) -> None:
    a["x"][2:, 1] = np.nan


def not_finite() -> dict[str, Sized]:
    """Return NaN and infinities in stacks, with options, in reverse, and where resets replace a state."""
    said, begin = "XPL-NUM-004", {"reset": [[True] * 3, *[[False] * 3] * 3]}
    ragged = {"lengths": [4, 2, 3], "change": nan_past_two}
    norm = {"variant": {"layer_norm": True}}
    found = {
        "nan-in-module": module(3, 4, 4, 3, said, change=nan_step, **BOTH),
        "nan-in-reverse": layer(3, 4, 4, 3, said, change=nan_step, reverse=True),
        "nan-in-states-module": module(3, 4, 4, 3, said, change=nan_state, num_layers=3),
        "infinite-c-module": module(3, 4, 4, 3, "XPL-NUM-003", change=infinite_state, **BOTH),
        "nan-in-states-of-empty": layer(3, 4, 4, 3, "XPL-SEQ-003", change=nan_state, lengths=[4, 0, 2]),
        "nan-in-states-reset": layer(3, 4, 4, 3, "XPL-SEQ-010", change=nan_state, **begin),
        "nan-in-norm": layer(3, 4, 4, 3, said, change=nan_step, **norm),
    }
    found = {name: case._replace(gradients=False) for name, case in found.items()}
    return found | {
        "nan-past-module": module(3, 4, 4, 3, "XPL-SEQ-004", "XPL-GRAD-002", **BOTH, **ragged),
        "nan-past-norm": layer(3, 4, 4, 3, "XPL-SEQ-004", "XPL-GRAD-002", **norm, **ragged),
        "nan-past-peepholes": layer(
            3, 4, 4, 3, "XPL-SEQ-004", "XPL-GRAD-002", variant={"peepholes": True}, reverse=True, **ragged
        ),
    }


def empties() -> dict[str, Sized]:
    """Return calls without steps or batch entries, with options."""
    said = ("XPL-SEQ-003", "XPL-SEQ-008", "XPL-GRAD-003")
    return {
        "no-steps-lengths": layer(3, 4, 0, 2, *said, lengths=[0, 0]),
        "no-steps-lengths-reverse": layer(3, 4, 0, 2, *said, lengths=[0, 0], reverse=True),
        "no-steps-lengths-module": module(3, 4, 0, 2, *said, lengths=[0, 0], **BOTH),
        "no-steps-norm": layer(3, 4, 0, 2, "XPL-SEQ-008", variant={"layer_norm": True}),
        "no-steps-no-rows": layer(3, 4, 0, 0, "XPL-SEQ-008", "XPL-SEQ-009", reverse=True),
        "no-steps-no-rows-module": module(3, 4, 0, 0, "XPL-SEQ-008", "XPL-SEQ-009", **BOTH),
        "no-rows-lengths": layer(3, 4, 5, 0, "XPL-SEQ-009", reverse=True, lengths=[]),
        "no-rows-projection": layer(3, 4, 5, 0, "XPL-SEQ-009", proj_size=2),
    }


def ones() -> dict[str, Sized]:
    """Return calls with one step, batch entry, input, unit or output."""
    return {
        "one-of-all": layer(1, 1, 1, 1),
        "one-of-all-module": module(1, 1, 1, 1, **BOTH),
        "one-entry": layer(5, 6, 7, 1, reverse=True),
        "one-entry-lengths": layer(5, 6, 7, 1, "XPL-SEQ-003", lengths=[4], reverse=True),
        "one-unit": module(3, 1, 5, 4, **BOTH),
        "one-output": module(3, 5, 4, 3, "XPL-CELL-004", proj_size=1, **BOTH),
        "all-but-one-output": module(3, 5, 4, 3, "XPL-CELL-004", proj_size=4, **BOTH),
        "as-many-entries-as-states": module(3, 4, 5, 4, **BOTH),
        "as-many-inputs-as-outputs": module(8, 4, 3, 2, bidirectional=True, num_layers=3),
        "everything-three": module(3, 3, 3, 3, num_layers=3),
        "lengths-ascending": layer(3, 4, 5, 5, "XPL-SEQ-003", lengths=[1, 2, 3, 4, 5]),
        "lengths-descending": module(3, 4, 5, 5, "XPL-SEQ-003", lengths=[5, 4, 3, 2, 1], **BOTH),
        "no-bias-two-directions": module(3, 4, 4, 3, "XPL-CELL-005", bias=False, **BOTH),
    }


def sensitive(case: Sized) -> bool:
    """Return whether rounding errors grow: in a normalised product of directions, or through three norms.

    They also grow with one normalised output: only its sign remains, and its gradient is a sum that cancels.
    """
    config = case.config
    merged, deep = config.get("merge") == "product", config.get("num_layers", 1) > 2
    return "layer_norm" in config.get("variant", {}) and (merged or deep or config.get("proj_size") == 1)


def with_resets() -> dict[str, Sized]:
    """Return the calls of `plan` with resets: with pairs of options, and in holes of a mask."""
    rng = np.random.default_rng(plan.SEED)
    holes: Choice = {"mask": (rng.random((12, 4)) < 0.5).tolist()}
    holes["reset"] = (rng.random((12, 4)) < 0.3).tolist()
    found = {
        "resets-holes": layer(3, 5, 12, 4, "XPL-SEQ-010", **holes),
        "resets-holes-reverse": layer(3, 5, 12, 4, "XPL-SEQ-010", reverse=True, **holes),
        "resets-holes-module": module(3, 5, 12, 4, "XPL-SEQ-010", **BOTH, **holes),
    }
    for name, case in plan.OPTIONS.items():
        if sensitive(case) and case.config.get("merge") == "product":
            continue
        reset: Choice = {"reset": (rng.random((case.T, case.B)) < 0.4).tolist()}
        found[f"{name}-reset"] = case._replace(config=case.config | reset, clauses=("XPL-SEQ-010",))
    return found


def functions() -> dict[str, Sized]:
    """Return other activations, for each direction and layer."""
    names = {"activations": [["relu"], ["softsign"], ["identity"]]}
    said = ("XPL-VAR-003", "XPL-VAR-004")
    return {
        "functions": layer(3, 5, 4, 3, *said, reverse=True, variant=names),
        "functions-no-bias": layer(3, 5, 4, 3, *said, bias=False, variant=names),
        "functions-module": module(3, 5, 4, 3, *said, lengths=[3, 4, 1], variant=names, **BOTH),
        "functions-peepholes": module(
            3, 5, 4, 3, *said, proj_size=2, variant=names | {"peepholes": True}, **BOTH
        ),
    }


PARTS = (
    sized.CASES,
    stacks(),
    long(),
    random_masks(),
    not_finite(),
    empties(),
    ones(),
    functions(),
    {n: c._replace(clauses=("XPL-VAR-018",)) for n, c in plan.OPTIONS.items()},
    with_resets(),
    corners.CASES,
    paths.CASES,
    margins.CASES,
)
CASES: dict[str, Sized] = {name: case for part in PARTS for name, case in part.items()}


def given(name: str, dtype: str) -> Arrays:
    """Return the arrays of a call, the same in every run; read-only."""
    case = CASES[name]
    a = drawn(case, np.random.default_rng(zlib.crc32(name.encode())))
    if case.change is not None:
        case.change(a)
    return rounded(a, dtype)


def rounded(a: Arrays, dtype: str) -> Arrays:
    """Return read-only arrays in a dtype."""
    found = {n: v.astype(dtype) for n, v in a.items()}
    for v in found.values():
        v.flags.writeable = False
    return found


@cache
def expected(name: str, dtype: str) -> Arrays:
    """Return the expected results for inputs that are rounded to the dtype."""
    case = CASES[name]
    with np.errstate(all="ignore"):
        return LSTM().call(f"{case.op}_vjp", case.config, given(name, dtype))


def shows_gates(case: Sized) -> bool:
    """Return whether a call may show gates: it has one layer and direction, and every step exists."""
    one = case.op == "module" and case.config["num_layers"] == 1 and not case.config["bidirectional"]
    whole = case.T > 0 and all(case.config.get(n) is None for n in ("lengths", "mask", "reset"))
    return one and whole and case.change is None and not case.draws


@cache
def gates(name: str, dtype: str) -> Arrays:
    """Return i, f, g and o of each step of a call that may show them."""
    config, a, lstm = CASES[name].config, given(name, dtype), LSTM()
    p = {n.removesuffix("_l0"): v.astype("float64") for n, v in a.items()}
    p |= {n: p[n][0] for n in ("h_0", "c_0")}
    cell = Cell(frozenset(), lstm.arithmetic, p, lstm.variant(config, 0), None, 0)
    _, steps = lstm.forward(cell, p, np.ones(p["x"].shape[:2], bool), reverse=False)
    return {gate: np.stack([getattr(step, gate) for step in steps]) for gate in "ifgo"}


def idle(case: Sized) -> np.ndarray:
    """Return (B,) booleans, True if a batch entry has no step, so that its state does not change."""
    if case.config.get("mask") is not None:
        return ~np.any(np.reshape(case.config["mask"], (case.T, case.B)), axis=0)
    lengths = case.config.get("lengths")
    return np.equal([case.T] * case.B if lengths is None else lengths, 0)


def faults(name: str, got: Arrays, dtype: str, gradients: bool) -> list[Fault]:
    """Return the errors of an answer to one of these calls."""
    return misses(CASES[name], expected(name, dtype), got, dtype, gradients)


def misses(case: Sized, right: Arrays, got: Arrays, dtype: str, gradients: bool) -> list[Fault]:
    """Return the wrong arrays of an answer with their error and the bound."""
    found, growth = [], 4 if sensitive(case) else 1
    for tensor, wanted in right.items():
        late = tensor.startswith("d")
        if late and not gradients:
            continue
        if tensor not in got:
            found.append(Fault(tensor, "is missing", has_numbers=False))
            continue
        a, allowed = got[tensor], growth * ALLOWED["gradients" if late else "outputs"]
        if a.shape != wanted.shape or str(a.dtype) != dtype:
            what = f"is {a.dtype} {a.shape}, expected {dtype} {wanted.shape}"
            found.append(Fault(tensor, what, has_numbers=False))
            continue
        missed = distance(a.astype("float64"), wanted, dtype)
        if missed > allowed:
            found.append(Fault(tensor, f"misses by {missed:.3g} u * s, allowed are {allowed}"))
        elif tensor in ("h_n", "c_n") and kept_otherwise(case, a, wanted):
            found.append(Fault(tensor, "is not the initial state bit for bit where no step exists"))
        elif tensor in ("y", "dx") and a[(wanted == 0) & np.isfinite(a)].any():
            found.append(Fault(tensor, "is not exactly zero where no step exists"))
    return found


def kept_otherwise(case: Sized, got: np.ndarray, wanted: np.ndarray) -> bool:
    """Return whether a state of an entry without a step differs in bits other than those of zero and NaN."""
    here = idle(case)
    return not np.array_equal(got[..., here, :], wanted[..., here, :], equal_nan=True)
