"""Define the calls that `relations` compares: every size, each pair of options, long sequences, deep stacks.

One seed determines all of them, so a failure is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from spec.sized import Sized, layer, module

Choice: TypeAlias = dict[str, Any]

SEED = 19
SMALL = range(1, 73)
LARGE = tuple(n + k for n in (128, 256, 512) for k in (-1, 0, 1))
FACTORS: dict[str, tuple[Any, ...]] = {
    "op": ("layer", "module"),
    "num_layers": (1, 2, 3),
    "two": (False, True),
    "merge": ("concat", "sum", "mean", "product", "none"),
    "steps": ("full", "lengths", "mask"),
    "bias": (True, False),
    "projection": (False, True),
    "peepholes": (False, True),
    "coupled": (False, True),
    "gate_clip": (False, True),
    "cell_clip": (False, True),
    "layer_norm": (False, True),
    "zoneout": (False, True),
}
VALUES: dict[str, Choice] = {
    "peepholes": {"peepholes": True},
    "coupled": {"coupled": True},
    "gate_clip": {"gate_clip": "0.5"},
    "cell_clip": {"cell_clip": "0.5"},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout_h": "0.125", "zoneout_c": "0.375"},
}


def possible(choice: Choice) -> bool:
    """Return whether the factors can be combined: a layer has no layers, and a merge needs two directions."""
    stack = choice["op"] == "module"
    return (stack or choice["num_layers"] == 1) and (choice["merge"] == "concat" or (stack and choice["two"]))


def numbers(choices: Sequence[Choice], at_once: int) -> np.ndarray:
    """Number the combinations of values in each choice: (choices, combinations), equal for equal values."""
    places = [{value: n for n, value in enumerate(values)} for values in FACTORS.values()]
    drawn = [[place[choice[f]] for f, place in zip(FACTORS, places, strict=True)] for choice in choices]
    found = np.arange(math.comb(len(FACTORS), at_once))
    for factors in np.transpose([*combinations(range(len(FACTORS)), at_once)]):
        found = found * max(map(len, places)) + np.take(drawn, factors, axis=1)
    return found


def covering(rng: np.random.Generator) -> list[Choice]:
    """Return choices that contain every possible pair of values; each is the best of many random choices."""
    drawn = [choice for choice in draw(4000, rng) if possible(choice)]
    pairs = numbers(drawn, at_once=2)
    missing = np.zeros(pairs.max() + 1, bool)
    missing[pairs] = True
    found: list[Choice] = []
    while missing.any():
        best = missing[pairs].sum(axis=1).argmax()
        found.append(drawn[best])
        missing[pairs[best]] = False
    return found


def draw(count: int, rng: np.random.Generator) -> list[Choice]:
    """Draw choices, possible or not."""
    drawn = rng.integers([len(values) for values in FACTORS.values()], size=(count, len(FACTORS))).tolist()
    return [{name: v[n] for (name, v), n in zip(FACTORS.items(), row, strict=True)} for row in drawn]


def steps_of(kind: str, T: int, B: int, rng: np.random.Generator) -> Choice:
    if kind == "lengths":
        return {"lengths": [int(n) for n in rng.integers(0, T + 1, B)]}
    return {"mask": (rng.random((T, B)) < 0.6).tolist()} if kind == "mask" else {}


def made(choice: Choice, rng: np.random.Generator) -> Sized:
    """Return the call of a choice with random sizes."""
    I, H, T, B = (int(n) for n in rng.integers((1, 2, 2, 1), (9, 12, 7, 7)))
    P = int(rng.integers(1, H)) if choice["projection"] else 0
    variant = {k: v for name, given in VALUES.items() if choice[name] for k, v in given.items()}
    options: Choice = {"proj_size": P, "bias": choice["bias"], **steps_of(choice["steps"], T, B, rng)}
    options |= {"variant": variant} if variant else {}
    if choice["op"] == "layer":
        return layer(I, H, T, B, reverse=choice["two"], **options)
    options |= {} if choice["merge"] == "concat" else {"merge": choice["merge"]}
    return module(I, H, T, B, num_layers=choice["num_layers"], bidirectional=choice["two"], **options)


def options() -> dict[str, Sized]:
    """Return each pair of options together."""
    rng = np.random.default_rng(SEED)
    return {f"options-{n}": made(choice, rng) for n, choice in enumerate(covering(rng))}


def sizes() -> dict[str, Sized]:
    """Return every size from 1 to 72 as I, H, B and P, and one size around 128, 256 or 512 per call.

    For units and outputs above 129 `margins` has single calls, because a relation asks for several.
    """
    rng = np.random.default_rng(SEED)
    found = {}
    columns = (rng.permutation(SMALL) for _ in range(3))
    projected = dict(zip(rng.permutation(SMALL[1:]).tolist(), range(1, 72), strict=True))
    for n, sizes in enumerate(zip(*columns, strict=True)):
        I, H, B = map(int, sizes)
        T = int(rng.integers(1, 4))
        given = steps_of(("full", "lengths")[n % 4 == 0], T, B, rng)
        found[f"sizes-i{I}-h{H}-b{B}"] = layer(I, H, T, B, reverse=n % 3 == 1, **given)
    for H, P in projected.items():
        P = min(P, H - 1)
        found[f"sizes-h{H}-p{P}"] = layer(3, H, 2, 2, reverse=P % 2 == 1, proj_size=P)
    for P in (n for n in SMALL if all(case.config["proj_size"] != n for case in found.values())):
        found[f"sizes-h{P + 1}-p{P}"] = layer(3, P + 1, 2, 2, reverse=P % 2 == 1, proj_size=P)
    for n in LARGE:
        found[f"sizes-i{n}"] = layer(n, 5, 2, 3)
        found[f"sizes-b{n}"] = layer(3, 4, 2, n)
    for n in LARGE[:3]:
        found[f"sizes-h{n}"] = layer(3, n, 2, 2)
        found[f"sizes-p{n}"] = layer(3, n + 3, 2, 2, proj_size=n)
    return found


def plain() -> dict[str, Sized]:
    """Return calls without options, which every LSTM supports; long sequences and deep stacks."""
    both: Choice = {"num_layers": 2, "bidirectional": True}
    return {
        "layer": layer(3, 5, 6, 4),
        "layer-reverse": layer(3, 5, 6, 4, reverse=True),
        "layer-lengths": layer(3, 5, 6, 4, lengths=[4, 1, 0, 5]),
        "layer-lengths-reverse": layer(3, 5, 6, 4, lengths=[4, 1, 0, 5], reverse=True),
        "layer-lengths-short-reverse": layer(4, 6, 5, 3, lengths=[3, 3, 3], reverse=True),
        "layer-projection": layer(3, 7, 5, 3, proj_size=4),
        "layer-no-bias": layer(3, 5, 4, 3, bias=False),
        "module": module(3, 5, 6, 4),
        "module-five-layers": module(3, 4, 4, 3, num_layers=5),
        "module-two-directions": module(3, 5, 4, 3, bidirectional=True),
        "module-two-by-two": module(3, 4, 5, 3, **both),
        "module-two-by-two-lengths": module(3, 4, 5, 3, lengths=[4, 1, 3], **both),
        "module-three-by-two": module(3, 4, 4, 2, num_layers=3, bidirectional=True),
        "module-projection": module(3, 6, 4, 3, proj_size=2, **both),
        "steps-600": layer(2, 3, 600, 3),
        "steps-2000": layer(2, 3, 2000, 2),
        "steps-1300-reverse": layer(2, 3, 1300, 2, reverse=True),
    }


PLAIN, OPTIONS, SIZES = plain(), options(), sizes()
CASES: dict[str, Sized] = {**PLAIN, **OPTIONS, **SIZES}
