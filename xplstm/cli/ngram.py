"""Baseline of the demo: an n-gram model of characters with interpolated Kneser-Ney smoothing."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple


class _Level(NamedTuple):
    """Counts of the n-grams of one length."""

    counts: Counter[str]
    totals: Counter[str]
    followers: Counter[str]
    discount: float


def bits_per_character(text: str, split: int, order: int = 5) -> float:
    """Return the mean of ``-log2 p(character)`` over ``text[split:]``, for a model of ``text[:split]``.

    Interpolated Kneser-Ney smoothing adds the count of an order, minus a discount, to the distribution of the
    next lower order, weighted by the discounts. Lower orders count the different contexts of an n-gram
    (Kneser and Ney, "Improved backing-off for m-gram language modeling", 1995; interpolated form: Chen and
    Goodman, "An empirical study of smoothing techniques for language modeling", 1999, section 3). The lowest
    order is the uniform distribution over all different characters of `text`.

    Parameters
    ----------
    text : str
        The whole text.
    split : int
        Length of the counted text, in ``[order, len(text))``; the rest is predicted.
    order : int, optional
        Longest n-gram, at least 1: a character and the ``order - 1`` characters before it.

    Returns
    -------
    float
        Bits per character.

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
    """Count n-grams of the lengths 1 to `order`."""
    counts = Counter(text[i : i + order] for i in range(len(text) - order + 1))
    levels = [_level(counts)]
    for _ in range(order - 1):
        counts = Counter(gram[1:] for gram in counts)
        levels.insert(0, _level(counts))
    return levels


def _level(counts: Counter[str]) -> _Level:
    """Sum the counts by context, and estimate the discount from the numbers of counts 1 and 2."""
    totals: Counter[str] = Counter()
    followers: Counter[str] = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        followers[gram[:-1]] += 1
    ones, twos = (sum(count == n for count in counts.values()) for n in (1, 2))
    # The added ones avoid a discount of 0, which would give unseen n-grams probability 0.
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
