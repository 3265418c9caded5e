"""Define numbers that every floating-point format represents, and their form in a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from mpmath import mp, mpf

Record: TypeAlias = dict[str, Any]

PRIME, ROOT = 509, 2


class Dyadic:
    """Numbers n/512 with odd n, no two alike in 508 draws, exact in every format from float16 up.

    The powers of a primitive root visit each residue once: scattered like
    random numbers, and the same for ever on every machine.
    """

    def __init__(self, start: int) -> None:
        self.residue = pow(ROOT, start, PRIME)

    def draw(self, *shape: int) -> Any:
        if shape:
            return [self.draw(*shape[1:]) for _ in range(shape[0])]
        self.residue = self.residue * ROOT % PRIME
        return mpf(2 * self.residue - PRIME) / 512


def encode_all(arrays: Record) -> Record:
    return {name: encode(array) for name, array in arrays.items()}


def encode(array: Any) -> Record:
    """Return shape and flat data in C order; numbers are decimals of up to 40 digits."""
    shape, flat = [], array
    while isinstance(flat, list):
        shape.append(len(flat))
        flat = flat[0] if flat else None
    return {"shape": shape, "data": [text(v) for v in flatten(array)]}


def flatten(array: Any) -> Iterator[Any]:
    if not isinstance(array, list):
        yield array
        return
    for part in array:
        yield from flatten(part)


def text(value: Any) -> str:
    """Return a decimal, inf, -inf or nan; None for a number that was not requested."""
    if value is None:
        return ""
    return value if isinstance(value, str) else str(mp.nstr(value, 40, strip_zeros=True)).lstrip("+")


def decode(array: Record) -> Any:
    """Return nested lists of mpf from shape and data."""
    values: list[Any] = [mpf(v) for v in array["data"]]
    for size in reversed(array["shape"][1:]):
        values = [values[k : k + size] for k in range(0, len(values), size)]
    return values
