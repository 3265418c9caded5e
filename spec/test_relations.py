"""Test the relations between calls of a subject, at every size and each pair of options."""

from __future__ import annotations

import zlib
from types import ModuleType

import numpy as np
import pytest

from spec import plan, relations
from spec.relations import CALLS, LAWS, Ask, broken
from spec.sized_mutants import MUTANTS, RIGHT, Call, Wrong
from spec.subject import Adapter, Arrays, Config, Unsupported
from spec.wrong import LSTM

EVERY_SIZE = ("permuted", "larger")


def cases() -> list[tuple[str, str]]:
    """Return each law with the calls that it applies to; two laws have every size."""
    return [
        (law, name)
        for law, (_, _, applies) in LAWS.items()
        for name, case in plan.CASES.items()
        if applies(case) and (law in EVERY_SIZE or name not in plan.SIZES)
    ]


@pytest.mark.parametrize(
    ("law", "name"),
    [pytest.param(law, name, marks=pytest.mark.clauses(LAWS[law].clause)) for law, name in cases()],
)
def test_relation(subject: Adapter, law: str, name: str) -> None:
    """Alternate float64 and float32; use the other dtype if the subject does not offer one."""
    hold(subject, relations, law, name)


def hold(subject: Adapter, suite: ModuleType, law: str, name: str) -> None:
    """Fail where a subject breaks a law of `relations` or `gru_relations` in a call."""
    turn = zlib.crc32(name.encode()) % 2
    for dtype in ("float64", "float32")[:: -1 if turn else 1]:
        try:
            said, held = suite.broken(Ask(subject, dtype), law, name)
        except Unsupported as reason:
            refused = str(reason)
            continue
        if not held:
            pytest.skip("it offers none of the calls that the relation compares")
        assert not said, f"{law} of {name}, {dtype}, {suite.CASES[name]}: {'; '.join(said)}"
        return
    pytest.skip(refused)


class Remembering:
    """LSTM that returns what it computed before for the same weights."""

    def __init__(self) -> None:
        self.known: dict[bytes, Arrays] = {}

    def __call__(self, op: str, config: Config, a: Arrays) -> Arrays:
        key = next(v for n, v in a.items() if n.startswith("weight_hh")).tobytes() + op.encode()
        return self.known.setdefault(key, RIGHT.call(op, config, a))


def zeroing(op: str, config: Config, a: Arrays) -> Arrays:
    """Set the padding of the input to zero in place, and compute."""
    if config.get("lengths"):
        a["x"][np.arange(len(a["x"]))[:, None] >= np.asarray(config["lengths"])] = 0
    return RIGHT.call(op, config, a)


def bounded(op: str, config: Config, a: Arrays) -> Arrays:
    """Compute, and clip the gradients."""
    return {n: v.clip(-0.5, 0.5) if n.startswith("d") else v for n, v in RIGHT.call(op, config, a).items()}


FOUND: dict[str, tuple[Call, str]] = {
    "permuted": (MUTANTS["units beyond 32 wrong"], "sizes-h129"),
    "alone": (MUTANTS["the last row is the first where B is a multiple of 8"], "sizes-b512"),
    "larger": (MUTANTS["remainder of I beyond a multiple of 8 ignored"], "sizes-i129"),
    "cut": (MUTANTS["state reset at step 1024"], "steps-2000"),
    "segments": (LSTM("resets of c alone").call, "layer"),
    "reversed": (MUTANTS["reverse of a layer ignored where every row is full"], "layer"),
    "layers": (MUTANTS["gates f and g swapped in the fourth layer"], "module-five-layers"),
    "directions": (LSTM("both directions forward").call, "module-two-directions"),
    "steps": (MUTANTS["equal lengths taken for full rows"], "layer-lengths-short-reverse"),
    "linear": (bounded, "layer"),
    "slope": (LSTM("path through c cut").call, "layer"),
    "identity": (LSTM("projection before the output gate").call, "layer-no-bias"),
    "vanishing": (LSTM("coupled: f is i").call, "layer"),
    "shifted": (LSTM("variance by the difference of squares").call, "options-5"),
    "again": (zeroing, "layer-lengths"),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_a_wrong_lstm_breaks_the_law(law: str) -> None:
    call, name = FOUND[law]
    assert LAWS[law].applies(plan.CASES[name])
    said, held = broken(Ask(Wrong(call), "float64"), law, name)
    assert held
    assert said


def test_an_answer_of_an_earlier_call_is_found() -> None:
    assert broken(Ask(Wrong(Remembering()), "float64"), "alone", "layer")[0]


@pytest.mark.parametrize("law", LAWS)
def test_the_right_lstm_keeps_the_law(law: str) -> None:
    """Use the calls by which `kills` judges wrong LSTMs, which are made from this one."""
    names = [name for name in CALLS if LAWS[law].applies(plan.CASES[name])]
    assert names
    assert not [said for name in names for said in broken(Ask(Wrong(RIGHT.call), "float64"), law, name)[0]]
