"""Check that each record kills a mutant, and that records kill each mutant by a wide margin."""

from __future__ import annotations

import ast
import json
import os
import re

import pytest

from spec import mutants
from spec.records import RECORDS, STRESS, VALID
from spec.wrong import LSTM

FOLDER = mutants.KILLS.parent
PUBLISHED = json.loads(mutants.KILLS.read_text(encoding="utf-8"))
RECORDED = [*VALID, *STRESS]
LONG = 100


@pytest.mark.parametrize("name", RECORDED)
def test_right_implementation_survives(name: str) -> None:
    assert mutants.effect(RECORDS[name], LSTM().call) < 1e-6


@pytest.mark.parametrize("name", RECORDED)
def test_record_kills_whom_it_says(name: str) -> None:
    """Check every fourth mutant, other ones in each record, and fewer of long records; all if SPEC_ALL=1."""
    said = PUBLISHED[name]
    assert said["kills"], "a record that kills no mutant tests nothing"
    every = 32 if RECORDS[name]["inputs"]["x"]["shape"][0] > LONG else 4
    every = 1 if os.environ.get("SPEC_ALL") == "1" else every
    tried = [*mutants.MUTANTS][RECORDED.index(name) % every :: every]
    killed = {mutant: e for mutant, e in mutants.effects(name, tried).items() if e >= mutants.MARGIN}
    assert sorted(killed) == sorted({*said["kills"]} & {*tried})
    least = min(killed.values(), default=float("inf"))
    assert least >= float(said["smallest_effect"]) * 0.9
    assert every > 1 or least == pytest.approx(float(said["smallest_effect"]), rel=0.1)


def test_every_mutant_is_killed() -> None:
    assert PUBLISHED.keys() == {*VALID, *STRESS}
    killed = {mutant for said in PUBLISHED.values() for mutant in said["kills"]}
    assert killed == mutants.MUTANTS.keys()
    assert len(killed) >= 40


def test_every_fault_of_the_wrong_lstm_is_a_mutant() -> None:
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in ("wrong.py", "wrong_cell.py")]
    asked = [fault for text in texts for fault in re.findall(r'self\.has\(f?"([^"]+)"\)', text)]
    patterns = [re.compile(re.sub(r"\\{[a-z]+\\}", ".+", re.escape(fault))) for fault in asked]
    faults = {*mutants.FAULTS, *mutants.VARIANT_FAULTS, *mutants.RELATION_FAULTS, *mutants.DRAW_FAULTS}
    assert all(any(pattern.fullmatch(fault) for fault in faults) for pattern in patterns)
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    written = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {fault for fault in faults if not any(p.fullmatch(fault) for p in patterns)} <= written
