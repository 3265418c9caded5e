"""Map tokens to ids."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping, Set

import numpy as np

from xplstm import _values
from xplstm._errors import ArgumentError, DTypeError


def number_tokens(name: str, tokens: Iterable[str], *, characters: bool = False) -> dict[str, int]:
    """Return a dict from token to id for the vocabulary `name`; `characters` requires single characters."""
    if not isinstance(tokens, Iterable) or isinstance(tokens, bytes | bytearray | np.ndarray):
        msg = f"{name} must be a str or an iterable of str, got {type(tokens).__name__}"
        raise DTypeError(msg)
    if isinstance(tokens, Set) and not isinstance(tokens, KeysView):
        msg = f"{name} is a {type(tokens).__name__}, which has no order; pass a sorted list"
        raise DTypeError(msg)
    if isinstance(tokens, Mapping) and list(tokens.values()) != list(range(len(tokens))):
        msg = f"{name} is a {type(tokens).__name__}, whose values are not 0, 1, 2, ... in this order; pass a "
        raise ArgumentError(msg + "list of the tokens in the order of their ids")
    given, tokens = tokens, tuple(tokens)
    for token in tokens:
        if not isinstance(token, str):
            msg = f"{name} contains {token!r}, which is not a str"
            raise DTypeError(msg)
        if not token or (characters and len(token) > 1):
            wanted = "exactly" if characters else "at least"
            msg = f"{name} contains {token!r}; each token must have {wanted} 1 character"
            raise ArgumentError(msg)
    ids = {token: number for number, token in enumerate(tokens)}
    if not ids or len(ids) < len(tokens):
        shown = given if isinstance(given, str) else tokens
        msg = f"{name}={shown!r} must have at least 1 token, and no token twice"
        raise ArgumentError(msg)
    return ids


def numbers(text: Iterable[str], ids: Mapping[str, int], name: str) -> np.ndarray:
    """Return the ids of the tokens of `text` in the vocabulary `name`."""
    tokens = list(text) if isinstance(text, str) else _values.items("text", text)
    for token in tokens:
        if not isinstance(token, str):
            msg = f"text contains {token!r}, which is not a str"
            raise DTypeError(msg)
    unknown = sorted(set(tokens) - ids.keys())
    if unknown:
        msg = f"text has characters that are not in {name}: {''.join(unknown)!r}"
        raise ArgumentError(msg)
    return np.asarray([ids[token] for token in tokens], dtype=np.int64)
