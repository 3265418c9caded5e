"""Wrong LSTMs by name, and what each record says of them: ``python -m spec.mutants`` writes spec/kills.json.

An effect is the largest error that a mutant makes in a record, in the record's
tolerances for float32: a mutant is killed where it reaches 100 of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import TypeAlias

import numpy as np

from spec.records import RECORDS, STRESS, VALID, Record, arrays, broken, stated
from spec.subject import Arrays, Config
from spec.wrong import LSTM

Call: TypeAlias = Callable[[str, Config, Arrays], Arrays]
Change: TypeAlias = Callable[[np.ndarray], np.ndarray]

KILLS = Path(__file__).parent / "kills.json"
MARGIN = 100
UNIT = float(np.finfo("float32").eps) / 2

FAULTS = (
    "mask ignored",
    "mask taken as lengths",
    "lengths ignored",
    "one step too many",
    "rows sorted and not put back",
    "empty rows take a step",
    "both directions forward",
    "directions swapped in y",
    "directions share parameters",
    "states by direction first",
    "reverse starts from the end of forward",
    "every layer starts from the first state",
    "dropout ignored",
    "dropout on x",
    "dropout on the last output",
    "one dropout mask for all times",
    "dropout keeps what it should drop",
    "dropout not scaled",
    "dropout not in the backward pass",
    "reverse ignored",
    "always reverse",
    "masked by multiplication",
    "padding walked through",
    "holes reset the state",
    "holes hold h alone",
    "resets ignored",
    "resets of h alone",
    "resets of c alone",
    "resets a step late",
    "resets a step early",
    "resets in holes lost",
    "resets at the start lost",
    "resets of any row in all rows",
    "resets in the first layer alone",
    "resets not in a backward direction",
    "resets before steps of the walk",
    "resets after the last step",
    "gradients cross resets",
    "padding filled with ones",
    "padding not zeroed",
    "y in walking order",
    "empty rows end at zero",
    "h_n is the last y",
    "pre-activations clipped at 3",
    "forget bias added",
    "sigmoid for g",
    "relu for g",
    "f coupled to i",
    "c clipped at 0.5",
    "i and f trade places in c",
    "tanh(c) omitted",
    "h from the old c",
    "projection before the output gate",
    "o sees the new c",
    "state carries tanh(c)",
    "hard sigmoid",
    "tanh for the gates",
    "h_0 ignored",
    "c_0 ignored",
    "dh_n ignored",
    "dc_n ignored",
    "dy of the last step only",
    "slope of tanh(c) omitted",
    "path from h to c cut",
    "gradient of i cut",
    "gradient of f cut",
    "gradient of g cut",
    "gradient of o cut",
    "weight_ih sees the last step only",
    "dweight_hh with the new h",
    "bias_hh not trained",
    "path through h cut",
    "path through c cut",
    "dc not multiplied by f",
    "gradients flow through the padding",
    "dy of the padding counted",
    "dx of one direction only",
    "sigmoid by exp(v) / (1 + exp(v))",
    "tanh by exp(2 v)",
)

VARIANT_FAULTS = (
    *(f"peepholes in the order {order}" for order in ("iof", "fio", "oif", "foi", "ofi")),
    "peepholes ignored",
    "peepholes of i and f see the new c",
    "peepholes of i and f not in the backward pass",
    "peephole of o sees the old c",
    "peephole of o sees the unclipped c",
    "peephole of o sees tanh(c)",
    "peephole of o not in the backward pass",
    "weight_ch sees the last step only",
    "gate_clip ignored",
    *(f"gate clip not on {gate}" for gate in "ifgo"),
    "gate clip from above alone",
    "gate clip before the peepholes",
    "gate clip after the activation",
    "gate clip passes gradients",
    "cell_clip ignored",
    "cell clip of the old c",
    "cell clip from above alone",
    "cell clip passes gradients",
    "h from the unclipped c",
    "unclipped c carried",
    "coupled ignored",
    "coupled: i is 1 - f",
    "coupled: f is i",
    "coupled: f is F(-z_i)",
    "coupled: f is 1 - o",
    "coupled: no gradient from f",
    "coupled: rows of f get gradients",
    "activations ignored",
    "alpha and beta ignored",
    "alpha and beta swapped",
    "beta ignored",
    "other defaults",
    "threshold of zero",
    "threshold subtracted",
    "every slope is the sigmoid's",
    "reverse has forward's activations",
    "G and H swapped",
    "F for g",
    "H is always tanh",
    "o is always a sigmoid",
    "layer_norm ignored",
    "norm over each gate",
    "norm over the batch",
    "norm without the mean",
    "norm's mean not in the backward pass",
    "norm's variance not in the backward pass",
    "one norm of the whole sum",
    "recurrent sum not normalised",
    "c not normalised",
    "normalised c carried",
    "biases normalised",
    "bias_c ignored",
    "gains swapped",
    "gain_c not trained",
    "unbiased variance",
    "eps dropped",
    "eps of 1e-3",
    "eps of 1e-6",
    "eps outside the root",
    "zoneout of h ignored",
    "zoneout of c ignored",
    "zoneout of h and c swapped",
    "zoneout inverted",
    "zoneout to zero",
    "zoneout scaled as dropout",
    "zoneout drawn for c alone",
    "one zoneout for all times",
    "expectation of zoneout ignored",
    "expectation of zoneout with noise",
    "h from the zoned c",
    "y before zoneout",
    "kept share of zoneout not carried back",
    "recurrent dropout ignored",
    "recurrent dropout keeps what it should drop",
    "recurrent dropout not scaled",
    "recurrent dropout drawn at every step",
    "recurrent dropout on c",
    "recurrent dropout on g",
    "recurrent dropout not in the backward pass",
    "dweight_hh with the h before recurrent dropout",
    "input dropout ignored",
    "input dropout keeps what it should drop",
    "input dropout not scaled",
    "input dropout not on x",
    "input dropout drawn at every step",
    "weight dropout ignored",
    "weight dropout keeps what it should drop",
    "weight dropout not scaled",
    "weight dropout on weight_ih",
    "weight dropout drawn by columns",
    "weight dropout not in the backward pass",
    "noise key swapped",
    "noise in walking order",
    "stream of noise ignored",
    "streams by direction first",
    "purpose of noise ignored",
    "time and stream of noise swapped",
    "merge none joins",
    "mean merged as sum",
    "mean not halved in the backward pass",
    "sum merged as mean",
    "product merged as sum",
    "product merged as sum in the backward pass",
)

# What no record finds and a relation does.
RELATION_FAULTS = ("variance by the difference of squares",)
# What no record finds and a rate next to a drawn number does.
DRAW_FAULTS = ("masks of float32 numbers", "masks of 32 bits")


def given(prefixes: tuple[str, ...], change: Change) -> Call:
    """Return an LSTM that changes the arrays with these name prefixes."""

    def call(op: str, config: Config, a: Arrays) -> Arrays:
        return LSTM().call(op, config, {n: change(v) if n.startswith(prefixes) else v for n, v in a.items()})

    return call


def swapped(first: str, second: str, after: bool = False) -> Call:
    """Return an LSTM that exchanges two arrays, if their shapes allow it."""

    def exchange(a: Arrays) -> Arrays:
        fits = first in a and a[first].shape == a[second].shape
        return a | {first: a[second], second: a[first]} if fits else a

    def call(op: str, config: Config, a: Arrays) -> Arrays:
        return exchange(LSTM().call(op, config, a)) if after else LSTM().call(op, config, exchange(a))

    return call


def blocks_in(order: tuple[int, ...]) -> Change:
    return lambda a: np.concatenate([np.split(a, 4)[k] for k in order])


def transposed(a: np.ndarray) -> np.ndarray:
    square = a.shape[0] == 4 * a.shape[1]
    return np.concatenate([block.T for block in np.split(a, 4)]) if square else a


def taken_as_columns(a: np.ndarray) -> np.ndarray:
    """Read a (rows, columns) matrix in Fortran's order."""
    return a.reshape(a.shape[::-1]).T


def directions_first(op: str, config: Config, a: Arrays) -> Arrays:
    """Run an LSTM whose states are of every layer in one direction, and then of every layer in the other."""
    if op.startswith("layer"):
        return LSTM().call(op, config, a)
    at: np.ndarray = np.arange(len(a["h_0"])).reshape(1 + bool(config["bidirectional"]), -1).T.ravel()
    read = {n: v[at] if n in ("h_0", "c_0", "dh_n", "dc_n") else v for n, v in a.items()}
    got = LSTM().call(op, config, read)
    return {n: v[np.argsort(at)] if n in ("h_n", "c_n", "dh_0", "dc_0") else v for n, v in got.items()}


def flipped(a: np.ndarray) -> np.ndarray:
    return a[::-1]


def emptied(a: np.ndarray) -> np.ndarray:
    """Return a sequence without its first step."""
    return np.concatenate([np.zeros_like(a[:1]), a[1:]])


GATES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

MUTANTS: dict[str, Call] = {
    **{
        f"gates {''.join('ifgo'[k] for k in order)}": given(GATES, blocks_in(order))
        for order in permutations(range(4))
        if order != (0, 1, 2, 3)
    },
    "weight_hh transposed": given(("weight_hh",), transposed),
    "weight_ih in column order": given(("weight_ih",), taken_as_columns),
    "weight_hr in column order": given(("weight_hr",), taken_as_columns),
    "weight_hr upside down": given(("weight_hr",), flipped),
    "weight_hh ignored": given(("weight_hh",), np.zeros_like),
    "weight_hh's gates reversed alone": given(("weight_hh",), blocks_in((3, 2, 1, 0))),
    "bias_hh's gates f and g swapped alone": given(("bias_hh",), blocks_in((0, 2, 1, 3))),
    "bias_ih dropped": given(("bias_ih",), np.zeros_like),
    "bias_hh dropped": given(("bias_hh",), np.zeros_like),
    "biases counted twice": given(("bias",), lambda a: 2 * a),
    "bias_ih counted twice": given(("bias_ih",), lambda a: 2 * a),
    "bias_hh counted twice": given(("bias_hh",), lambda a: 2 * a),
    "states before and after by direction first": directions_first,
    "h_0 and c_0 swapped": swapped("h_0", "c_0"),
    "h_n and c_n swapped": swapped("h_n", "c_n", after=True),
    "dh_0 and dc_0 swapped": swapped("dh_0", "dc_0", after=True),
    "first input lost": given(("x",), emptied),
    **{fault: LSTM(fault).call for fault in (*FAULTS, *VARIANT_FAULTS)},
}


def effect(record: Record, call: Call) -> float:
    """Return the largest error of outputs, or of all arrays if outputs do not kill the mutant."""
    groups = [group for group in ("outputs", "gradients") if group in record]
    found = [shown(record, call, groups[:1])]
    if found[0] < MARGIN and len(groups) == 2:
        found.append(shown(record, call, groups))
    return max(found)


def shown(record: Record, call: Call, groups: Sequence[str]) -> float:
    """Return the largest error of the arrays of `groups`, in the record's tolerances for float32."""
    late = "gradients" in groups
    a = arrays(record["inputs"] | (record["cotangents"] if late else {}), "float64")
    with np.errstate(all="ignore"):
        got = call(record["op"] + "_vjp" * late, {"bidirectional": False} | record["config"], a)
        if record["result"] == "stress":
            return float("inf") if broken(a, got) else 0.0
        found = [
            distance(got[name], expected) / record["tolerance"][group]
            for group in groups
            for name, expected in record[group].items()
            if name in got
        ]
    return float(max(found))


def distance(got: np.ndarray, reference: Record) -> float:
    """Return the largest error in u * s of float32."""
    if list(got.shape) != reference["shape"]:
        return float("inf")
    here = stated(reference)
    got = got.ravel()[here]
    expected = arrays({"": reference}, "float64")[""].ravel()[here]
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    worst = np.abs(got[finite] - expected[finite]).max(initial=0.0)
    scale = np.abs(expected[finite]).max(initial=1.0)
    return float("inf") if np.isnan(worst) else float(worst / scale / UNIT)


def effects(name: str, mutants: Iterable[str] = MUTANTS) -> dict[str, float]:
    """Return the effect of each mutant in the named record."""
    return {mutant: effect(RECORDS[name], MUTANTS[mutant]) for mutant in mutants}


def summary(name: str) -> Record:
    """Return the published summary of a record: its smallest effect to two digits, and the killed mutants."""
    found = {mutant: e for mutant, e in effects(name).items() if e >= MARGIN}
    least = min(found.values(), default=float("nan"))
    return {
        "smallest_effect": float(f"{least:.2g}") if np.isfinite(least) else str(least),
        "kills": sorted(found),
    }


def main() -> int:
    found = {name: summary(name) for name in (*VALID, *STRESS)}
    KILLS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
