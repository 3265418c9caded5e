"""The records tell an LSTM from a wrong one: each mutant below is killed, by a wide margin.

A mutant stands between the records and a right implementation and spoils what
goes in or what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np
import pytest

from spec.adapter import Adapter, Arrays, Config
from spec.records import RECORDS, arrays, errors, named

Call: TypeAlias = Callable[[str, Config, Arrays], Arrays]
Mutant: TypeAlias = Callable[[Call, str, Config, Arrays], Arrays]

DTYPE = "float32"
MARGIN = 100  # smallest effect of a mutant, in tolerances
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
RIGHT = Adapter("numpy", "reference")


def blocks(a: np.ndarray) -> list[np.ndarray]:
    return np.split(a, 4)


def changed(**changes: Callable[[np.ndarray], np.ndarray]) -> Mutant:
    """Spoil input arrays by name."""

    def run(call: Call, op: str, config: Config, given: Arrays) -> Arrays:
        return call(op, config, given | {k: change(given[k]) for k, change in changes.items() if k in given})

    return run


def configured(**changes: Any) -> Mutant:
    """Spoil an option."""
    return lambda call, op, config, given: call(op, config | changes, given)


def returned(**changes: Callable[[Arrays], np.ndarray]) -> Mutant:
    """Spoil result arrays by name."""

    def run(call: Call, op: str, config: Config, given: Arrays) -> Arrays:
        got = call(op, config, given)
        return got | {k: change(got) for k, change in changes.items() if k in got}

    return run


def gate_order(order: tuple[int, ...]) -> Mutant:
    return changed(**dict.fromkeys(PARAMETERS, lambda a: np.concatenate([blocks(a)[k] for k in order])))


def transposed(a: np.ndarray) -> np.ndarray:
    square = a.shape[0] == 4 * a.shape[1]
    return np.concatenate([block.T for block in blocks(a)]) if square else a


def swapped_states(call: Call, op: str, config: Config, given: Arrays) -> Arrays:
    if given["h_0"].shape != given["c_0"].shape:
        return call(op, config, given)
    return call(op, config, given | {"h_0": given["c_0"], "c_0": given["h_0"]})


def mixed(right: tuple[str, ...]) -> Mutant:
    """Right lengths for the named results, no lengths for the others."""

    def run(call: Call, op: str, config: Config, given: Arrays) -> Arrays:
        got = call(op, config, given)
        return call(op, config | {"lengths": None}, given) | {k: got[k] for k in right}

    return run


def padding_first(call: Call, op: str, config: Config, given: Arrays) -> Arrays:
    """Walk a reverse direction from t = T - 1 through the padding, then blank y there."""
    got = call(op, config | {"lengths": None}, given)
    steps = np.arange(len(got["y"]))[:, None, None]
    lengths = np.asarray(config["lengths"] or [len(got["y"])])[:, None]
    return got | {"y": np.where(steps < lengths, got["y"], 0)}


def empty_rows_reset(call: Call, op: str, config: Config, given: Arrays) -> Arrays:
    got = call(op, config, given)
    empty = np.asarray(config["lengths"] or [1]) == 0
    return got | {k: np.where(empty[:, None], 0, got[k]) for k in ("h_n", "c_n")}


def walking_order(call: Call, op: str, config: Config, given: Arrays) -> Arrays:
    got = call(op, config, given)
    return got | {"y": got["y"][::-1]} if config["reverse"] else got


def last_step_only(dy: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(dy[:-1]), dy[-1:]])


FORWARD: dict[str, Mutant] = {
    **{
        f"gates {''.join('ifgo'[k] for k in p)}": gate_order(p)
        for p in permutations(range(4))
        if p != (0, 1, 2, 3)
    },
    "weight_hh transposed": changed(weight_hh=transposed),
    "h_0 ignored": changed(h_0=np.zeros_like),
    "c_0 ignored": changed(c_0=np.zeros_like),
    "h_0 and c_0 swapped": swapped_states,
    "h_n and c_n swapped": returned(h_n=lambda got: got["c_n"], c_n=lambda got: got["h_n"]),
    "bias_ih dropped": changed(bias_ih=np.zeros_like),
    "bias_hh dropped": changed(bias_hh=np.zeros_like),
    "bias_ih twice": lambda call, op, config, given: call(
        op, config, given | ({"bias_hh": given["bias_ih"]} if "bias_ih" in given else {})
    ),
    "reverse ignored": configured(reverse=False),
    "always reverse": configured(reverse=True),
    "lengths ignored": configured(lengths=None),
    "padding not zeroed": mixed(right=("h_n", "c_n")),
    "final state from the padding": mixed(right=("y",)),
    "padding walked through": padding_first,
    "empty rows end at zero": empty_rows_reset,
    "y in walking order": walking_order,
    "weight_hr reversed": changed(weight_hr=lambda a: a[::-1]),
}
BACKWARD: dict[str, Mutant] = {
    **{
        f"d{name} zero": returned(**{f"d{name}": lambda got, key=f"d{name}": np.zeros_like(got[key])})
        for name in (*PARAMETERS, "weight_hr", "x", "h_0", "c_0")
    },
    "dy of the last step only": changed(dy=last_step_only),
    "dh_n ignored": changed(dh_n=np.zeros_like),
    "dc_n ignored": changed(dc_n=np.zeros_like),
    "gradient blocks i and f swapped": returned(
        dweight_hh=lambda got: np.concatenate([blocks(got["dweight_hh"])[k] for k in (1, 0, 2, 3)])
    ),
    "one bias takes both gradients": returned(dbias_ih=lambda got: 2 * got["dbias_ih"]),
}


def largest_effect(name: str, op: str, mutant: Mutant) -> float:
    """Largest error in tolerances over the tensors of one record; NaN counts as infinite."""
    record = RECORDS[name]
    given = arrays(record["inputs"], DTYPE)
    groups = ("outputs",) if op == "layer" else ("outputs", "gradients")
    if op == "layer_vjp":
        given |= arrays(record["cotangents"], DTYPE)
    got = mutant(RIGHT.call, op, record["config"], given)
    found = {group: errors(got, record[group], DTYPE) for group in groups}
    worst: float = max(e / record["tolerance"][group] for group, es in found.items() for e in es.values())
    return worst


def effects(op: str, mutant: Mutant) -> dict[str, float]:
    return {name: largest_effect(name, op, mutant) for name in named("layer", "valid")}


@pytest.mark.parametrize("op", ["layer", "layer_vjp"])
def test_right_implementation_survives(op: str) -> None:
    assert max(effects(op, changed()).values()) <= 1


@pytest.mark.parametrize("mutant", FORWARD.values(), ids=FORWARD.keys())
def test_forward_mutant_is_killed(mutant: Mutant) -> None:
    assert max(effects("layer", mutant).values()) >= MARGIN


@pytest.mark.parametrize("mutant", BACKWARD.values(), ids=BACKWARD.keys())
def test_backward_mutant_is_killed(mutant: Mutant) -> None:
    assert max(effects("layer_vjp", mutant).values()) >= MARGIN


def test_companion_alone_kills_every_gate_order() -> None:
    """One record of 8 distinct rows; published cases with constant weights kill none of the 23."""
    orders = {name: mutant for name, mutant in FORWARD.items() if name.startswith("gates")}
    assert len(orders) == 23
    alive = {n for n, m in orders.items() if largest_effect("worked-example-companion", "layer", m) < MARGIN}
    assert alive == set()
