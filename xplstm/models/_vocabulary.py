"""Tokens and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from xplstm._errors import ArgumentError


def numbered(name: str, tokens: str | Sequence[str]) -> dict[str, int]:
    """Token -> number, for a vocabulary that is the argument called `name`."""
    ids = {token: number for number, token in enumerate(tokens)}
    if not ids or len(ids) < len(tokens):
        msg = f"{name}={tokens!r} must have at least 1 character, and none twice"
        raise ArgumentError(msg)
    return ids


def numbers(text: Iterable[str], ids: Mapping[str, int], name: str) -> np.ndarray:
    """Numbers of the tokens of `text`, by the vocabulary called `name`."""
    tokens = list(text)
    strange = sorted(set(tokens) - ids.keys())
    if strange:
        msg = f"text has characters that {name} lacks: {''.join(strange)!r}"
        raise ArgumentError(msg)
    return np.asarray([ids[token] for token in tokens], dtype=np.int64)
