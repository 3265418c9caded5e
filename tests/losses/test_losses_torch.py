"""Compare losses with every option with PyTorch, on every backend."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import _array, losses

T, B, V = 5, 3, 4


def agree(torch, ours, theirs, given, dloss=None):
    """Compare value and gradient of one loss with those of PyTorch."""
    loss, pullback = ours
    tensor, reference = theirs
    scale = np.asarray(1.0 if dloss is None else dloss)
    (reference * torch.tensor(scale)).sum().backward()
    np.testing.assert_allclose(loss, reference.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(pullback(scale), tensor.grad.numpy(), rtol=0, atol=1e-12)
    assert pullback(scale).shape == given.shape


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("ignore", [None, 2, -100])
def test_cross_entropy(torch, rng, reduction, smoothing, classes, ignore):
    logits, targets = rng.normal(size=(7, V)), rng.integers(0, V, 7)
    if ignore == -100:
        targets[1] = -100
    weights = rng.uniform(0.2, 2, V) if classes else None
    options = {"label_smoothing": smoothing, "reduction": reduction}
    ours = losses.softmax_cross_entropy(
        logits, targets, class_weights=weights, ignore_index=ignore, **options
    )
    tensor = torch.tensor(logits, requires_grad=True)
    reference = torch.nn.functional.cross_entropy(
        tensor,
        torch.tensor(targets),
        weight=None if weights is None else torch.tensor(weights),
        ignore_index=-100 if ignore is None else ignore,
        **options,
    )
    dloss = rng.normal(size=7) if reduction == "none" else 3.0
    agree(torch, ours, (tensor, reference), logits, dloss)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("positive", [False, True])
def test_binary_cross_entropy(torch, rng, reduction, positive):
    logits, targets = 40 * rng.normal(size=(7, V)), rng.uniform(size=(7, V))
    of_ones = rng.uniform(0.2, 2, V) if positive else None
    ours = losses.binary_cross_entropy(logits, targets, positive_weights=of_ones, reduction=reduction)
    tensor = torch.tensor(logits, requires_grad=True)
    reference = torch.nn.functional.binary_cross_entropy_with_logits(
        tensor,
        torch.tensor(targets),
        pos_weight=None if of_ones is None else torch.tensor(of_ones),
        reduction=reduction,
    )
    agree(torch, ours, (tensor, reference), logits, rng.normal(size=(7, V)) if reduction == "none" else 3.0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_losses_of_numbers(torch, rng, kind, reduction):
    pred, target = rng.normal(size=(7, V)), rng.normal(size=(7, V))
    options = {"delta": 0.5} if kind == "huber" else {}
    theirs = {"mse": "mse_loss", "mae": "l1_loss", "huber": "huber_loss"}[kind]
    ours = getattr(losses, kind)(pred, target, reduction=reduction, **options)
    tensor = torch.tensor(pred, requires_grad=True)
    reference = getattr(torch.nn.functional, theirs)(
        tensor, torch.tensor(target), reduction=reduction, **options
    )
    agree(torch, ours, (tensor, reference), pred, rng.normal(size=(7, V)) if reduction == "none" else 3.0)


def quantiles_of_torch(torch, pred, target, quantiles):
    error = target[..., None] - pred
    q = torch.tensor(quantiles, dtype=torch.float64)
    return torch.maximum(q * error, (q - 1) * error)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_quantiles(torch, rng, reduction):
    pred, target = rng.normal(size=(7, 2, 3)), rng.normal(size=(7, 2))
    ours = losses.quantile(pred, target, [0.1, 0.5, 0.9], reduction=reduction)
    tensor = torch.tensor(pred, requires_grad=True)
    each = quantiles_of_torch(torch, tensor, torch.tensor(target), [0.1, 0.5, 0.9])
    reference = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    agree(torch, ours, (tensor, reference), pred, rng.normal(size=pred.shape) if reduction == "none" else 3.0)
    one, _ = losses.quantile(pred[..., 0], target, 0.1, reduction="none")
    np.testing.assert_array_equal(
        one, losses.quantile(pred[..., :1], target, [0.1], reduction="none")[0][..., 0]
    )


LOSSES = {
    "cross_entropy": lambda x, t, **o: losses.softmax_cross_entropy(
        x, t["classes"], label_smoothing=0.1, **o
    ),
    "binary": lambda x, t, **o: losses.binary_cross_entropy(x, t["shares"], **o),
    "mse": lambda x, t, **o: losses.mse(x, t["numbers"], **o),
    "mae": lambda x, t, **o: losses.mae(x, t["numbers"], **o),
    "huber": lambda x, t, **o: losses.huber(x, t["numbers"], **o),
    "quantile": lambda x, t, **o: losses.quantile(x, t["numbers"], 0.3, **o),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_masks_and_weights_of_samples_and_steps(kind, xp, rng):
    """Masked elements are NaN, and a weight of 2 counts twice."""
    x = rng.normal(size=(T, B, V))
    mask = rng.random((T, B)) < 0.7
    mask[0, 0] = True
    x[~mask] = np.nan
    given = {
        "classes": rng.integers(0, V, (T, B)),
        "shares": rng.uniform(size=(T, B, V)),
        "numbers": rng.normal(size=(T, B, V)),
    }
    there = {name: xp.asarray(a) for name, a in given.items()}
    each, _ = LOSSES[kind](x, given, mask=mask, reduction="none")
    for weights in (np.asarray([1.0, 2.0, 0.5]), rng.uniform(size=(T, 1)), rng.uniform(size=(T, B))):
        loss, pullback = LOSSES[kind](
            xp.asarray(x), there, mask=xp.asarray(mask), weights=xp.asarray(weights)
        )
        counts = np.broadcast_to(weights, (T, B)) * mask
        rows = each if each.ndim == 2 else each.mean(axis=-1)
        np.testing.assert_allclose(float(loss), (rows * counts).sum() / counts.sum(), rtol=1e-12)
        gradient = _array.to_numpy(pullback())
        assert not gradient[~mask].any()
        step = 1e-6 * rng.normal(size=x.shape)
        after, _ = LOSSES[kind](x + step, given, mask=mask, weights=weights)
        before, _ = LOSSES[kind](x - step, given, mask=mask, weights=weights)
        np.testing.assert_allclose(after - before, 2 * np.nansum(gradient * step), rtol=1e-6, atol=1e-13)


def test_nothing_that_counts_is_a_loss_of_0():
    for kind in LOSSES.values():
        x = np.ones((2, V))
        given = {"classes": np.zeros(2, int), "shares": np.ones((2, V)), "numbers": np.ones((2, V))}
        for options in ({"mask": np.zeros(2, bool), "weights": np.ones(2)}, {"weights": np.zeros(2)}):
            loss, pullback = kind(x, given, **options)
            assert float(loss) == 0
            assert not pullback().any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("ragged", [False, True])
def test_ctc_is_that_of_torch(torch, rng, reduction, blank, ragged):
    steps, rows, width = 9, 5, 4
    logits = 2 * rng.normal(size=(steps, rows, V))
    others = [label for label in range(V) if label != blank]
    targets = rng.choice(others, size=(rows, width))
    targets[0] = others[0]  # four equal labels need a blank between each two
    lengths = np.asarray([9, 5, 7, 1, 9]) if ragged else np.full(rows, steps)
    counts = np.asarray([4, 2, 3, 0, 1]) if ragged else np.full(rows, width)
    given = {"lengths": lengths, "target_lengths": counts} if ragged else {}
    ours = losses.ctc(logits, targets, blank=blank, reduction=reduction, **given)
    tensor = torch.tensor(logits, requires_grad=True)
    reference = torch.nn.functional.ctc_loss(
        tensor.log_softmax(-1),
        torch.tensor(targets),
        torch.tensor(lengths),
        torch.tensor(counts),
        blank=blank,
        reduction=reduction,
    )
    agree(torch, ours, (tensor, reference), logits, rng.normal(size=rows) if reduction == "none" else 3.0)


def test_ctc_on_every_backend(xp, rng):
    logits, targets = rng.normal(size=(6, 2, V)), np.asarray([[1, 1], [2, 3]])
    lengths, counts = np.asarray([6, 4]), np.asarray([2, 1])
    loss, pullback = losses.ctc(logits, targets, lengths=lengths, target_lengths=counts)
    theirs, their_pullback = losses.ctc(
        *(xp.asarray(a) for a in (logits, targets)),
        lengths=xp.asarray(lengths),
        target_lengths=xp.asarray(counts),
    )
    np.testing.assert_allclose(float(theirs), loss, rtol=1e-12)
    np.testing.assert_allclose(_array.to_numpy(their_pullback()), pullback(), rtol=0, atol=1e-12)


def test_a_target_too_long_for_its_sequence_has_no_alignment():
    logits, targets = np.zeros((3, 2, V)), np.asarray([[1, 1, 1], [1, 2, 3]])
    loss, pullback = losses.ctc(logits, targets, reduction="none")
    assert loss[0] == np.inf
    assert np.isfinite(loss[1])
    assert not pullback()[:, 0].any()
    assert np.isfinite(pullback()).all()


X, K = np.zeros((2, V)), np.zeros(2, int)
LABELS = np.ones((2, 1), int)
BAD = [
    (lambda: losses.mse(X, X, reduction="max"), xplstm.ArgumentError, "reduction='max'"),
    (lambda: losses.mse(X, X, weights=np.ones(3)), xplstm.ShapeError, r"weights has shape \(3,\)"),
    (lambda: losses.mse(X, X, weights=np.ones(2, int)), xplstm.DTypeError, "weights has dtype int64"),
    (lambda: losses.mse(X, X, weights=-np.ones(2)), xplstm.ArgumentError, "weights has elements"),
    (lambda: losses.mse(X, X, weights=np.ones(2) * np.nan), xplstm.ArgumentError, "weights has elements"),
    (lambda: losses.huber(X, X, 0.0), xplstm.ArgumentError, "delta=0.0"),
    (lambda: losses.quantile(X, X, 0.0), xplstm.ArgumentError, "quantiles=0.0"),
    (lambda: losses.quantile(X, X, []), xplstm.ArgumentError, "quantiles="),
    (lambda: losses.quantile(X, X, [0.5]), xplstm.ShapeError, r"expected \(2, 4, 1\)"),
    (lambda: losses.binary_cross_entropy(X, X + 2), xplstm.ArgumentError, r"outside \[0, 1\]"),
    (lambda: losses.binary_cross_entropy(X, X[:1]), xplstm.ShapeError, "targets has shape"),
    (
        lambda: losses.softmax_cross_entropy(X, K, label_smoothing=1.0),
        xplstm.ArgumentError,
        "label_smoothing",
    ),
    (
        lambda: losses.softmax_cross_entropy(X, K, class_weights=np.ones(2)),
        xplstm.ShapeError,
        "class_weights",
    ),
    (lambda: losses.ctc(X, LABELS), xplstm.ShapeError, r"expected \(T, B, V\)"),
    (lambda: losses.ctc(np.zeros((3, 2, V)), LABELS[0]), xplstm.ShapeError, r"expected \(B, U\)"),
    (lambda: losses.ctc(np.zeros((3, 2, V)), LABELS * 0), xplstm.ArgumentError, "other than blank=0"),
    (lambda: losses.ctc(np.zeros((3, 2, V)), LABELS, blank=4), xplstm.ArgumentError, "blank=4"),
    (
        lambda: losses.ctc(np.zeros((3, 2, V)), LABELS, lengths=np.asarray([0, 3])),
        xplstm.ArgumentError,
        "lengths",
    ),
    (lambda: losses.ctc(np.zeros((3, 2, V)), LABELS * 1.0), xplstm.DTypeError, "targets has dtype float64"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
