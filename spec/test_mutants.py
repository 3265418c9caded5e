"""The records tell an LSTM from a wrong one: each mutant is killed by a wide margin, each record kills."""

from __future__ import annotations

import json

import pytest

from spec import mutants
from spec.records import RECORDS, VALID
from spec.wrong import LSTM

PUBLISHED = json.loads(mutants.KILLS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", VALID)
def test_right_implementation_survives(name: str) -> None:
    assert mutants.effect(RECORDS[name], LSTM().call) < 1e-6


@pytest.mark.parametrize("name", VALID)
def test_record_kills_whom_it_says(name: str) -> None:
    found, said = mutants.summary(name), PUBLISHED[name]
    assert found["kills"], "a record that kills no mutant tests nothing"
    assert found["kills"] == said["kills"]
    assert float(found["smallest_effect"]) == pytest.approx(float(said["smallest_effect"]), rel=0.1)


def test_every_mutant_is_killed() -> None:
    assert PUBLISHED.keys() == set(VALID)
    killed = {mutant for said in PUBLISHED.values() for mutant in said["kills"]}
    assert killed == mutants.MUTANTS.keys()
    assert len(killed) >= 40


def test_every_fault_of_the_wrong_lstm_is_a_mutant() -> None:
    source = (mutants.KILLS.parent / "wrong.py").read_text(encoding="utf-8")
    asked = {part.partition('"')[0] for part in source.split('self.has("')[1:]}
    assert asked | {f"gradient of {gate} cut" for gate in "ifgo"} == set(mutants.FAULTS)
