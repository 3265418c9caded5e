"""Check that instruction counts stay near those in `instructions.json`; `instructions.py` updates them."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.benchmarks import instructions
from xplstm.kernels import native

# Another compiler, or another NumPy in single steps, changes the counts by a few per cent.
WITHIN = 0.1


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    if os.environ.get("XPLSTM_INSTRUCTIONS") != "1":
        pytest.skip("counting takes long: XPLSTM_INSTRUCTIONS=1, or nox -s instructions")
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    if "avx2" not in native.ISAS:
        pytest.skip(native.WHY_NOT or "the counts are of AVX2, which this processor lacks")
    return instructions.count()


@pytest.mark.parametrize("name", [instructions.name_of(*case) for case in instructions.cases()])
def test_instructions_are_as_stated(name: str, counted: dict[str, int]) -> None:
    stated = json.loads(instructions.STATED.read_text(encoding="utf-8"))[name]
    ratio = counted[name] / stated
    renew = "python -m tests.benchmarks.instructions"
    assert ratio < 1 + WITHIN, f"{counted[name]} instructions instead of {stated}; if meant so: {renew}"
    assert ratio > 1 - WITHIN, f"{counted[name]} instructions instead of {stated}, to be held: {renew}"


def test_a_step_of_a_long_sequence_costs_no_more(counted: dict[str, int]) -> None:
    short, long = counted["forward 100,1,16,32"] / 100, counted["forward 20000,1,16,32"] / 20_000
    assert long < 1.02 * short
