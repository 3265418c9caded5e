"""The suite reaches a program in another process, and believes what it says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec.records import RECORDS, arrays, errors
from spec.stdio import Stdio
from spec.subject import Refused, Unsupported

PROGRAM = Path(__file__).parent / "one_layer.py"


@pytest.fixture
def program() -> Iterator[Stdio]:
    found = Stdio(f"{sys.executable} {PROGRAM}")
    yield found
    found.close()


@pytest.mark.parametrize("name", ["sequence", "extreme-nan", "extreme-infinity"])
def test_program_answers_a_record(program: Stdio, name: str) -> None:
    record = RECORDS[name]
    got = program.call("layer", record["config"], arrays(record["inputs"], "float64"))
    found = errors(got, record["outputs"], "float64")
    assert found.keys() == {"y", "h_n", "c_n"}
    assert max(found.values()) <= record["tolerance"]["outputs"]


def test_program_declares_what_it_lacks(program: Stdio) -> None:
    record = RECORDS["projection"]
    with pytest.raises(Unsupported, match="one forward layer"):
        program.call("layer", record["config"], arrays(record["inputs"], "float64"))


def test_refusal_travels() -> None:
    code = 'input(); print(\'{"refused": "shape", "message": "weight_ih"}\')'
    refusing = Stdio(f'{sys.executable} -c "{code.replace(chr(34), chr(92) + chr(34))}"')
    with pytest.raises(Refused, match="weight_ih") as refusal:
        refusing.call("layer", {}, arrays(RECORDS["cell"]["inputs"], "float32"))
    assert refusal.value.kind == "shape"
    refusing.close()


def test_program_that_ends_is_an_error() -> None:
    silent = Stdio(f"{sys.executable} -c 'input()'")
    with pytest.raises(RuntimeError, match="exit status 0"):
        silent.call("layer", {}, arrays(RECORDS["cell"]["inputs"], "float32"))
    silent.close()
