"""Define relations between calls of one GRU: those of `relations`, and one of the reset gate."""

from __future__ import annotations

import zlib
from itertools import combinations, product

import numpy as np

from spec import relations
from spec.gru_calls import drawn, gru
from spec.plan import LARGE, SEED, SMALL, Choice, steps_of
from spec.relations import Ask, Law, Pairs, compared, offered
from spec.sized import Sized
from spec.subject import Arrays

CLAUSE = "XPL-GRU-005"
FACTORS: dict[str, tuple[object, ...]] = {
    "num_layers": (1, 2, 3),
    "bidirectional": (False, True),
    "steps": ("full", "lengths", "mask"),
    "bias": (True, False),
    "reset_after": (True, False),
}


def options() -> dict[str, Sized]:
    """Return calls with every pair of options; each is the first of those with the most new pairs."""
    rng = np.random.default_rng(SEED)
    choices: list[Choice] = [dict(zip(FACTORS, one, strict=True)) for one in product(*FACTORS.values())]
    pairs = [{*combinations(choice.items(), 2)} for choice in choices]
    missing = set().union(*pairs)
    found: dict[str, Sized] = {}
    while missing:
        best = max(range(len(choices)), key=lambda n: len(pairs[n] & missing))
        missing -= pairs[best]
        given = dict(choices[best])
        I, H, T, B = (int(n) for n in rng.integers((1, 2, 2, 1), (9, 12, 7, 7)))
        given |= steps_of(given.pop("steps"), T, B, rng)
        found[f"gru-options-{len(found)}"] = gru(I, H, T, B, **given)
    return found


def sizes() -> dict[str, Sized]:
    """Return every third size to 72 as I, H and B, and single sizes around 128, 256 and 512."""
    rng = np.random.default_rng(SEED)
    found: dict[str, Sized] = {}
    for n, drawn_sizes in enumerate(zip(*(rng.permutation(SMALL[::3]) for _ in range(3)), strict=True)):
        I, H, B = map(int, drawn_sizes)
        found[f"gru-sizes-i{I}-h{H}-b{B}"] = gru(I, H, 2, B, reset_after=n % 2 == 0)
    for k, n in enumerate(LARGE):
        after = k % 2 == 0
        found[f"gru-sizes-i{n}"] = gru(n, 5, 2, 3, reset_after=after)
        found[f"gru-sizes-h{n}"] = gru(3, n, 2, 2, reset_after=not after)
        found[f"gru-sizes-b{n}"] = gru(3, 4, 2, n, reset_after=after)
    return found


def both_places(ask: Ask, case: Sized, a: Arrays, _rng: np.random.Generator) -> Pairs:
    """Check that both reset gates give equal results for a diagonal W_hn and a zero b_hn."""
    given, H = dict(a), case.config["hidden_size"]
    for n, v in a.items():
        if n.startswith("weight_hh"):
            given[n] = np.concatenate([v[: 2 * H], v[2 * H :] * np.eye(H)])
        elif n.startswith("bias_hh"):
            given[n] = np.concatenate([v[: 2 * H], np.zeros(H)])
    other = case.config | {"reset_after": not case.config["reset_after"]}
    expected = in_common(ask(case.op, case.config, given), H)
    for pair in offered("the reset gate at the other place", ask, case.op, other, given, expected):
        yield pair._replace(got=in_common(pair.got, H))


def in_common(found: Arrays, H: int) -> Arrays:
    """Return what both share: the diagonal of the gradient of W_hn, without the gradient of b_hn."""
    cut = dict(found)
    for n, v in found.items():
        if n.startswith("dweight_hh"):
            cut[n] = np.concatenate([v[: 2 * H].ravel(), np.diagonal(v[2 * H :])])
        elif n.startswith("dbias_hh"):
            cut[n] = v[: 2 * H]
    return cut


def unbiased(case: Sized) -> bool:
    return not case.config["bias"]


def bias_of_zero(ask: Ask, case: Sized, a: Arrays, _rng: np.random.Generator) -> Pairs:
    yield from relations.without_bias(ask, case, a, ask(case.op, case.config, a))


SIZES = sizes()
CASES: dict[str, Sized] = {
    "gru": gru(3, 5, 6, 4),
    "gru-before": gru(3, 5, 6, 4, reset_after=False),
    "gru-two-directions": gru(3, 4, 5, 3, bidirectional=True, lengths=[4, 1, 3]),
    "gru-two-by-two": gru(3, 4, 4, 3, num_layers=2, bidirectional=True, reset_after=False),
    "gru-no-bias": gru(3, 4, 4, 3, bias=False),
    "gru-steps-1300": gru(2, 3, 1300, 2),
    **options(),
    **SIZES,
}
SHARED = (
    *("permuted", "alone", "larger", "cut", "segments", "reversed"),
    *("layers", "steps", "linear", "slope", "again"),
)
"""Relations that say of a GRU what they say of an LSTM."""
LAWS: dict[str, Law] = {
    **{name: relations.LAWS[name]._replace(clause=CLAUSE) for name in SHARED},
    "no bias": Law(CLAUSE, bias_of_zero, unbiased),
    "places": Law(CLAUSE, both_places),
}
CALLS = ("gru", "gru-two-by-two", "gru-no-bias")
"""Of a wrong GRU each relation is asked in the first of these calls that it applies to."""


def cases() -> list[tuple[str, str]]:
    """Return each law with the calls to which it applies; one of them has every size."""
    return [
        (law, name)
        for law, (_, _, applies) in LAWS.items()
        for name, case in CASES.items()
        if applies(case) and (law == "permuted" or name not in SIZES)
    ]


def broken(ask: Ask, law: str, name: str) -> tuple[list[str], int]:
    """Compare a relation on a call; return the errors, and the number of compared pairs."""
    rng = np.random.default_rng(zlib.crc32(f"{law} {name}".encode()))
    return compared(ask, LAWS[law].relation, CASES[name], drawn(CASES[name], rng), rng)
