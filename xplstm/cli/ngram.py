"""The baseline of the demo: an n-gram model of characters, interpolated after Kneser and Ney."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple


class _Level(NamedTuple):
    """What is known about the grams of one length."""

    counts: Counter[str]
    totals: Counter[str]
    followers: Counter[str]
    discount: float


def bits_per_character(text: str, split: int, order: int = 5) -> float:
    """Mean of ``-log2 p(character)`` over ``text[split:]``, of a model that counted ``text[:split]``.

    Interpolated Kneser-Ney: an order's count, less a discount, plus the discount's
    share of what the next lower order says; lower orders count in how many
    contexts a gram was seen, not how often (Kneser and Ney, "Improved backing-off
    for m-gram language modeling", 1995; in the interpolated form of Chen and
    Goodman, "An empirical study of smoothing techniques for language modeling",
    1999, section 3). The order below single characters is the uniform distribution
    over all different characters of `text`.

    Parameters
    ----------
    text : str
    split : int
        In ``[order, len(text))``; the text before it is counted, the rest predicted.
    order : int, optional
        Longest gram, at least 1: the character and the ``order - 1`` before it.

    Returns
    -------
    float

    Examples
    --------
    >>> from xplstm.cli import ngram
    >>> ngram.bits_per_character("abab" * 100, 300, order=2) < 0.1
    True
    """
    levels = _levels(text[:split], order)
    uniform = 1 / len(set(text))
    bits = [-math.log2(_probability(levels, text, i, uniform)) for i in range(split, len(text))]
    return math.fsum(bits) / len(bits)


def _levels(text: str, order: int) -> list[_Level]:
    """Count grams of the lengths 1 to `order`."""
    counts = Counter(text[i : i + order] for i in range(len(text) - order + 1))
    levels = [_level(counts)]
    for _ in range(order - 1):
        counts = Counter(gram[1:] for gram in counts)
        levels.insert(0, _level(counts))
    return levels


def _level(counts: Counter[str]) -> _Level:
    """Sum the counts by context, and estimate the discount from how many are 1 and 2."""
    totals: Counter[str] = Counter()
    followers: Counter[str] = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        followers[gram[:-1]] += 1
    ones, twos = (sum(count == n for count in counts.values()) for n in (1, 2))
    # The ones added keep it off 0, which would call what was never seen impossible.
    return _Level(counts, totals, followers, (ones + 1) / (ones + 2 * twos + 2))


def _probability(levels: list[_Level], text: str, i: int, uniform: float) -> float:
    """Return the probability of ``text[i]`` after the preceding text."""
    p = uniform
    for n, level in enumerate(levels):
        gram = text[i - n : i + 1]
        total = level.totals[gram[:-1]]
        if total == 0:
            break
        seen = max(level.counts[gram] - level.discount, 0.0)
        p = (seen + level.discount * level.followers[gram[:-1]] * p) / total
    return p
