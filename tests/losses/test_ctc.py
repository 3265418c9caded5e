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


def test_ctc_with_narrow_integers(xp, rng):
    if xp.name == "dask":
        pytest.skip("Dask takes more than 20 minutes for the graph of so many steps")
    logits = xp.asarray(rng.normal(size=(260, 2, 200)))
    targets = np.arange(200).reshape(2, 100) % 100
    given = {"lengths": np.asarray([120, 127]), "target_lengths": np.asarray([100, 70])}

    def ours(dtype):
        counts = {name: xp.asarray(a.astype(dtype)) for name, a in given.items()}
        return losses.ctc(logits, xp.asarray(targets.astype(dtype)), blank=199, reduction="none", **counts)

    (loss, pullback), (expected, expected_pullback) = ours("int8"), ours("int64")
    np.testing.assert_array_equal(_array.to_numpy(loss), _array.to_numpy(expected))
    np.testing.assert_array_equal(_array.to_numpy(pullback()), _array.to_numpy(expected_pullback()))
    assert np.isfinite(_array.to_numpy(loss)).all()


def test_ctc_with_excluded_classes(xp):
    logits = np.zeros((4, 2, 3))
    logits[:, 0] = -np.inf
    logits[:, 0, 1] = 0.0
    logits[1, 1, 2] = -np.inf
    targets = xp.asarray(np.asarray([[2, 1], [1, 2]]))
    loss, pullback = losses.ctc(xp.asarray(logits), targets, reduction="none")
    gradient = _array.to_numpy(pullback())
    with np.errstate(divide="ignore"):
        p = np.exp(logits[:, 1:])
        expected = defined(np.log(p / p.sum(-1, keepdims=True)), np.asarray([[1, 2]]), [4], [2])
    np.testing.assert_allclose(_array.to_numpy(loss), [np.inf, expected[0]], atol=1e-12)
    assert (gradient[:, 0] == 0).all()
    assert np.isfinite(gradient).all()
    assert gradient[1, 1, 2] == 0


def test_ctc_without_labels_is_the_loss_of_blanks(xp, rng):
    logits = rng.normal(size=(T, B, V))
    targets = xp.asarray(np.zeros((B, 0), dtype=np.int64))
    loss, pullback = losses.ctc(xp.asarray(logits), targets, reduction="sum")
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert float(loss) == pytest.approx(-np.log(p[..., 0]).sum(), abs=1e-12)
    np.testing.assert_allclose(_array.to_numpy(pullback()), p - (np.arange(V) == 0), atol=1e-12)
