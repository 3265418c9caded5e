"""Check the flag protocol of the persistent CUDA kernel with the model checker Spin, and find all faults."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda_emulation import thorough

MODEL = Path(__file__).parent / "walk.pml"
DIRECTIONS = {
    "forward": (),
    "back": ("BACK",),
    "forward, flags inside": ("FLAGGED",),
    "back, flags inside": ("FLAGGED", "BACK"),
}
# Numbers of blocks, of warps per block, and of steps; the check is exhaustive.
SIZES = ((2, 2, 3), (3, 1, 4), (4, 1, 3))
SIZES_THAT_GIVE_UP = ((2, 1, 4), (3, 1, 2), (2, 2, 2))
WRONG = {
    "one buffer": 1,
    "publishes before it writes": 2,
    "waits for the step before": 3,
    "no barrier before publishing": 4,
    "a warp does not wait": 5,
}

COUNTERS_ALONE = (2, 4)
"""Faults in the order of a number and its counter."""

pytestmark = [
    thorough,
    pytest.mark.skipif(not (shutil.which("spin") and shutil.which("gcc")), reason="spin or gcc is not here"),
]


def errors(
    folder: Path, size: tuple[int, int, int], *flags: str, mutant: int = 0, dead: int = 0
) -> tuple[int, str]:
    """Return the number of errors that the checker finds, and its output."""
    values = dict(zip("NWK", size, strict=True)) | {"MUTANT": mutant, "DEAD": dead}
    defines = [f"-D{name}={value}" for name, value in values.items()] + [f"-D{flag}" for flag in flags]
    shutil.copy(MODEL, folder)
    checker = ("gcc", "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=3000", "-o", "pan", "pan.c")
    for command in (("spin", "-a", *defines, MODEL.name), checker, ("./pan", "-m1000000")):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert "max search depth too small" not in done.stdout
    found = re.search(r"errors: (\d+)", done.stdout)
    assert found is not None, done.stdout
    assert found[1] != "0" or "Search not completed" not in done.stdout, done.stdout
    return int(found[1]), done.stdout


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_every_order_of_events_reads_the_right_numbers_and_ends(
    direction: tuple[str, ...], size: tuple[int, int, int], tmp_path: Path
) -> None:
    assert errors(tmp_path, size, *direction)[0] == 0


@pytest.mark.parametrize("dead", [0, 1, 2])
@pytest.mark.parametrize("size", SIZES_THAT_GIVE_UP)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_launch_that_is_abandoned_ends_with_no_wrong_number(
    direction: tuple[str, ...], size: tuple[int, int, int], dead: int, tmp_path: Path
) -> None:
    """Any thread may abandon the launch at any time, and a block may stop publishing at any step."""
    assert errors(tmp_path, size, "GIVE_UP", *direction, dead=dead)[0] == 0


@pytest.mark.parametrize("mutant", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_protocol_with_a_fault_is_refuted(direction: tuple[str, ...], mutant: int, tmp_path: Path) -> None:
    """A number that is overwritten early causes a wrong result, or with a flag inside an endless wait."""
    if "FLAGGED" in direction and mutant in COUNTERS_ALONE:
        pytest.skip("a number is its own flag, so that no order of the two can be wrong")
    count, text = errors(tmp_path, (2, 2, 3), *direction, mutant=mutant)
    assert count == 1
    assert "assertion violated" in text or ("FLAGGED" in direction and "invalid end state" in text)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_without_giving_up_a_block_that_never_arrives_is_waited_for_endlessly(
    direction: tuple[str, ...], tmp_path: Path
) -> None:
    assert "invalid end state" in errors(tmp_path, (2, 1, 3), *direction, dead=2)[1]


@pytest.mark.parametrize("flags", [(), ("FLAGGED",)], ids=["counters", "flags inside"])
@pytest.mark.parametrize(("mutant", "what"), [(6, "no block leaves"), (7, "writes before it leaves")])
def test_a_block_that_gives_up_wrongly_is_refuted(
    mutant: int, what: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    count, text = errors(tmp_path, (2, 1, 3), "GIVE_UP", *flags, mutant=mutant, dead=2)
    assert count == 1, what
    assert "assertion violated" in text
