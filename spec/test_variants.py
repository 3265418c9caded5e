"""Check that clips and kinks apply in records of variants, and that no number is close to one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from spec import oracle
from spec.records import RECORDS, arrays
from spec.subject import Arrays
from spec.wrong import LSTM
from spec.wrong_cell import Cell

NAMES = [name for name in RECORDS if name.startswith("variant-")]
APART = 1 / 128
KINKS: dict[str, Callable[..., list[float]]] = {
    "relu": lambda: [0.0],
    "leaky_relu": lambda _=0.01: [0.0],
    "thresholded_relu": lambda alpha=1.0: [alpha],
    "hard_sigmoid": lambda alpha=0.2, beta=0.5: [-beta / alpha, (1 - beta) / alpha],
    "elu": lambda alpha=1.0: [0.0] if alpha != 1 else [],
}


def kinks_of(name: str, *settings: str) -> list[float]:
    return KINKS[name](*map(float, settings)) if name in KINKS else []


class Watched(LSTM):
    """LSTM that keeps the steps of all its layers and directions."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[Cell, np.ndarray, list[SimpleNamespace]]] = []

    def forward(
        self, cell: Cell, a: Arrays, exists: np.ndarray, reverse: bool, reset: np.ndarray | None = None
    ) -> tuple[Arrays, list[SimpleNamespace]]:
        out, steps = super().forward(cell, a, exists, reverse, reset)
        self.runs.append((cell, exists, steps))
        return out, steps


def edges(name: str) -> dict[str, tuple[list[float], np.ndarray]]:
    """Return the kinks of each function and clip, and the numbers that reach it."""
    record, watched = RECORDS[name], Watched()
    config = {"bidirectional": False, **record["config"]}
    watched.call(record["op"], config, arrays(record["inputs"], "float64"))
    found: dict[str, tuple[list[float], list[np.ndarray]]] = {}
    specs = config["variant"].get("activations", [["sigmoid"], ["tanh"], ["tanh"]]) * 2
    for n, (cell, exists, steps) in enumerate(watched.runs):
        first = 3 * (n % 2) if config["bidirectional"] else 0
        kinks = [kinks_of(*spec) for spec in specs[first : first + 3]]
        for s in steps:
            here = exists[s.t]
            places = {gate: ([*kinks[gate == "g"]], s.raw[gate][here]) for gate in "ifgo"}
            for points, _ in places.values():
                points += [cell.v.gate_clip, -cell.v.gate_clip] if np.isfinite(cell.v.gate_clip) else []
            places["h"] = (kinks[2], s.seen[here])
            bounds = [cell.v.cell_clip, -cell.v.cell_clip] if np.isfinite(cell.v.cell_clip) else []
            places["c"] = (bounds, s.grown[here])
            for place, (points, numbers) in places.items():
                found.setdefault(f"{place}{first}", (points, []))[1].append(numbers.ravel())
    return {place: (points, np.concatenate(numbers)) for place, (points, numbers) in found.items()}


@pytest.mark.parametrize("name", [name for name in NAMES if "variant" in RECORDS[name]["config"]])
def test_numbers_keep_away_from_kinks(name: str) -> None:
    for place, (kinks, numbers) in edges(name).items():
        for kink in kinks:
            assert np.abs(numbers - kink).min() > APART, place


@pytest.mark.parametrize("name", ["variant-gate-clip", "variant-cell-clip", "variant-clips-peepholes"])
def test_clips_bite_on_both_sides_and_not_everywhere(name: str) -> None:
    bitten = 0
    for place, (bounds, numbers) in edges(name).items():
        if bounds:
            sides = [np.mean(numbers > bounds[0]), np.mean(numbers < bounds[1])]
            assert min(sides) > 0.1, place
            assert sum(sides) < 0.95, place
            bitten += 1
    assert bitten == {"variant-gate-clip": 4, "variant-cell-clip": 1, "variant-clips-peepholes": 5}[name]


def test_every_activation_and_its_defaults_are_recorded() -> None:
    used = [
        spec for name in NAMES for spec in RECORDS[name]["config"].get("variant", {}).get("activations", [])
    ]
    assert {name for name, *_ in used} | {"tanh"} == oracle.ACTIVATIONS.keys()
    for name in ("affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu"):
        assert len({len(spec) for spec in used if spec[0] == name}) == 2, f"{name} with and without settings"
