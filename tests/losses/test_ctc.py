"""Check CTC against the sum over all alignments; no other library is needed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.support.cases import differences
from xplstm import _array, losses

T, B, V = 4, 3, 3


def collapsed(path, blank):
    """Return the labels of a path: merge repeated labels, then remove blanks."""
    return [label for label, _ in itertools.groupby(path) if label != blank]


def defined(logits, targets, lengths, target_lengths, blank=0):
    """Return one loss for each batch entry."""
    found = []
    for b, (steps, count) in enumerate(zip(lengths, target_lengths, strict=True)):
        p = np.exp(logits[:steps, b])
        p /= p.sum(-1, keepdims=True)
        wanted = list(targets[b, :count])
        paths = itertools.product(range(V), repeat=steps)
        total = math.fsum(
            math.prod(p[t, label] for t, label in enumerate(path))
            for path in paths
            if collapsed(path, blank) == wanted
        )
        found.append(-math.log(total))
    return np.asarray(found)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize(
    ("lengths", "target_lengths"), [((4, 4, 4), (2, 2, 2)), ((4, 3, 2), (2, 1, 0)), ((1, 4, 3), (1, 0, 2))]
)
def test_ctc_and_its_gradient(xp, rng, blank, lengths, target_lengths):
    logits = rng.normal(size=(T, B, V)) * 2
    targets = np.asarray([[1, 1], [1, 1 if blank else 2], [1, 0 if blank else 2]])
    if lengths[0] == 4 and target_lengths[0] == 2:
        assert targets[0, 0] == targets[0, 1]  # equal labels need a blank between them
    given = [xp.asarray(np.asarray(a)) for a in (targets, lengths, target_lengths)]

    def ours(z, reduction):
        return losses.ctc(
            xp.asarray(z),
            given[0],
            lengths=given[1],
            target_lengths=given[2],
            blank=blank,
            reduction=reduction,
        )

    each = defined(logits, targets, lengths, target_lengths, blank)
    np.testing.assert_allclose(_array.to_numpy(ours(logits, "none")[0]), each, atol=1e-12)
    mean = np.mean(each / np.maximum(target_lengths, 1))
    loss, pullback = ours(logits, "mean")
    assert float(loss) == pytest.approx(mean, abs=1e-12)
    expected = differences(
        lambda z: np.mean(
            defined(z, targets, lengths, target_lengths, blank) / np.maximum(target_lengths, 1)
        ),
        logits,
    )
    np.testing.assert_allclose(_array.to_numpy(pullback()), expected, atol=1e-8)
