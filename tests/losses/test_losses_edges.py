"""Check losses at values and shapes where the code branches."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xplstm
from xplstm import _array, losses

EVERY = {
    "cross_entropy": lambda z, **how: losses.softmax_cross_entropy(z, np.asarray([1, 0]), **how),
    "ctc": lambda z, **how: losses.ctc(z[:, None, :], np.asarray([[1]]), **how),
    "mse": lambda z, **how: losses.mse(z, np.ones((2, 3)), **how),
    "huber": lambda z, **how: losses.huber(z, np.ones((2, 3)), **how),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_pullback_is_linear_in_what_it_is_given(name, rng):
    _, pullback = EVERY[name](rng.normal(size=(2, 3)))
    one = pullback()
    assert np.abs(one).max() > 0
    for given in (np.asarray(-2.5), -2.5, np.asarray(-2.5, "float32")):
        np.testing.assert_allclose(pullback(given), -2.5 * one, rtol=1e-15)
    with pytest.raises(xplstm.DTypeError, match="dloss has dtype int64"):
        pullback(np.asarray(2))
    with pytest.raises(
        xplstm.ShapeError, match=r"dloss has shape \(1,\), expected \(\), the shape of the loss"
    ):
        pullback(np.ones(1))


def test_ctc_gives_each_entry_its_own_gradient(rng):
    logits, targets = rng.normal(size=(4, 2, 3)), np.asarray([[1, 2], [2, 1]])
    _, pullback = losses.ctc(logits, targets, reduction="none")
    one = pullback(np.ones(2))
    np.testing.assert_allclose(
        pullback(np.asarray([2.0, -3.0])), one * np.asarray([[[2.0], [-3.0]]]), rtol=1e-14
    )


def test_class_weights_divide_the_mean():
    logits = np.log(np.asarray([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
    targets, of_class, of_each = np.asarray([0, 2]), np.asarray([3.0, 1.0, 2.0]), np.asarray([1.0, 5.0])
    loss, _ = losses.softmax_cross_entropy(logits, targets, weights=of_each, class_weights=of_class)
    weights = of_each * of_class[targets]
    assert float(loss) == pytest.approx((weights * [math.log(2), math.log(4)]).sum() / weights.sum())
    loss, _ = losses.softmax_cross_entropy(logits, targets, class_weights=of_class)
    assert float(loss) == pytest.approx((3 * math.log(2) + 2 * math.log(4)) / 5)
    for shape in ((2,), (2, 3)):
        with pytest.raises(xplstm.ShapeError, match=r"class_weights has shape .*\(3,\)"):
            losses.softmax_cross_entropy(logits, targets, class_weights=np.ones(shape))


WEIGHTED = {
    "cross_entropy": lambda z, **how: losses.softmax_cross_entropy(z, np.asarray([1, 0]), **how),
    "binary": lambda z, **how: losses.binary_cross_entropy(z, np.ones((2, 3)), **how),
    "mse": lambda z, **how: losses.mse(z, np.ones((2, 3)), **how),
    "quantile": lambda z, **how: losses.quantile(z[:, None], np.ones((2, 1)), [0.1, 0.5, 0.9], **how),
}


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_of_zero_excludes_an_element_as_a_mask_does(name, reduction, value, rng):
    z = rng.normal(size=(2, 3))
    z[0] = value
    weights, mask = np.asarray([0.0, 2.0]), np.asarray([False, True])
    loss, pullback = WEIGHTED[name](z, weights=weights, reduction=reduction)
    expected, other = WEIGHTED[name](z, mask=mask, reduction=reduction)
    times = 1 if reduction == "mean" else 2
    np.testing.assert_allclose(loss, times * expected, rtol=1e-15)
    np.testing.assert_allclose(pullback(), times * other(), rtol=1e-15)


def test_weights_whose_sum_is_infinite_are_refused():
    large = np.full(2, 3e38, "float32")
    message = (
        r"weights has elements up to 3[.0-9]*e\+38, which float32, the dtype of the sums, cannot represent or"
    )
    with pytest.raises(xplstm.ArgumentError, match=message):
        losses.mse(np.ones((2, 3), "float32"), np.ones((2, 3), "float32"), weights=large)
    # Broadcasting repeats the one weight.
    with pytest.raises(xplstm.ArgumentError, match="or add; multiply weights by a constant"):
        losses.mse(np.ones((2, 3), "float32"), np.ones((2, 3), "float32"), weights=large[:1])
    loss, _ = losses.mse(np.zeros((1, 3), "float32"), np.ones((1, 3), "float32"), weights=large[:1])
    assert float(loss) == 1


def test_smoothing_alone_keeps_the_plain_mean():
    logits, targets = np.log(np.asarray([[0.75, 0.25]] * 2)), np.asarray([0, 0])
    mask = np.asarray([True, False])
    loss, _ = losses.softmax_cross_entropy(logits, targets, mask=mask, label_smoothing=0.5)
    assert float(loss) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_a_class_that_counts_is_checked_under_a_mask():
    logits, targets = np.zeros((2, 3)), np.asarray([3, 0])
    losses.softmax_cross_entropy(logits, targets, mask=np.asarray([False, True]))
    with pytest.raises(xplstm.ArgumentError, match="targets contains the class 3"):
        losses.softmax_cross_entropy(logits, targets, mask=np.asarray([True, False]))


def test_huber_turns_from_a_square_to_a_line_at_one():
    for error, expected, slope in ((0.5, 0.125, 0.5), (1.0, 0.5, 1.0), (3.0, 2.5, 1.0)):
        loss, pullback = losses.huber(np.asarray([[error]]), np.zeros((1, 1)))
        assert (float(loss), float(pullback()[0, 0])) == (expected, slope)


def test_the_array_that_is_missing_is_named():
    with pytest.raises(xplstm.XplstmError, match="targets"):
        losses.softmax_cross_entropy(np.zeros((2, 3)), None)


def test_every_argument_is_of_one_library():
    strict = pytest.importorskip("array_api_strict")
    logits, targets = np.zeros((2, 3)), np.asarray([0, 1])
    for name, dtype in (("mask", strict.bool), ("weights", strict.float64)):
        with pytest.raises(xplstm.BackendError, match=f"{name} is from array_api_strict"):
            losses.softmax_cross_entropy(logits, targets, **{name: strict.ones(2, dtype=dtype)})


@pytest.mark.parametrize("lazy", [{"targets"}, {"mask"}, {"targets", "mask"}])
def test_classes_that_are_not_at_hand_are_not_looked_at(lazy, monkeypatch):
    given = {"targets": np.asarray([3, 0]), "mask": np.asarray([True, True])}
    monkeypatch.setattr(_array, "is_lazy", lambda x: any(x is given[name] for name in lazy))
    losses.softmax_cross_entropy(np.zeros((2, 3)), given["targets"], mask=given["mask"])


def test_any_class_but_the_blank_is_a_label():
    logits = np.zeros((2, 1, 3))
    first, last = losses.ctc(logits, np.asarray([[0]]), blank=2)[0], losses.ctc(logits, np.asarray([[2]]))[0]
    assert float(first) == float(last) == pytest.approx(-math.log(3 / 9))


@pytest.mark.parametrize("shape", [(2,), (2, 1, 1), (3, 1), (1, 1)])
def test_ctc_needs_labels_of_every_entry(shape):
    with pytest.raises(xplstm.ShapeError, match=r"targets has shape .*expected \(B, U\) with B=2"):
        losses.ctc(np.zeros((4, 2, 3)), np.ones(shape, dtype=int))


def test_ctc_needs_a_step_but_no_entry():
    with pytest.raises(xplstm.ShapeError, match="T at least 1"):
        losses.ctc(np.zeros((0, 1, 2)), np.asarray([[1]]))
    loss, pullback = losses.ctc(np.zeros((2, 0, 2)), np.zeros((0, 1), dtype=int))
    assert (float(loss), pullback().shape) == (0, (2, 0, 2))


@pytest.mark.parametrize("shape", [(2, 4), (1, 4), (4, 3), (4,), (1, 2, 3)])
def test_weights_that_do_not_broadcast_are_refused(shape):
    with pytest.raises(xplstm.ShapeError, match=r"weights has shape .* broadcast to \(2, 3\)"):
        losses.softmax_cross_entropy(np.zeros((2, 3, 5)), np.zeros((2, 3), dtype=int), weights=np.ones(shape))


def test_an_ignored_class_outside_the_dtype_is_no_class(xp, rng):
    """PyTorch and JAX compare uint8 numbers with -100 as with 156."""
    logits, targets = rng.normal(size=(2, 200)), np.asarray([156, 3], "uint8")
    given = xp.asarray(logits.astype("float32")), xp.asarray(targets)
    expected, _ = losses.softmax_cross_entropy(logits, targets)
    for ignored in (-100, 412):
        loss, _ = losses.softmax_cross_entropy(*given, ignore_index=ignored)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss, _ = losses.softmax_cross_entropy(*given, ignore_index=156)
    assert float(loss) == pytest.approx(
        float(losses.softmax_cross_entropy(logits[1:], targets[1:])[0]), rel=1e-5
    )


def test_a_wrong_mask_is_refused_with_an_ignored_class_too():
    logits, targets = np.zeros((3, 2, 4)), np.zeros((3, 2), dtype=int)
    for mask in (np.ones(5, bool), np.ones((1, 2), bool)):
        with pytest.raises(xplstm.ShapeError, match=r"mask has shape .*, expected \(3, 2\)"):
            losses.softmax_cross_entropy(logits, targets, mask=mask, ignore_index=1)
    with pytest.raises(xplstm.DTypeError, match="mask has dtype float64, expected bool"):
        losses.softmax_cross_entropy(logits, targets, mask=np.ones((3, 2)), ignore_index=1)


def test_several_quantiles_share_mask_and_weights(rng):
    pred, target = rng.normal(size=(5, 3, 2, 2)), rng.normal(size=(5, 3, 2))
    chosen = {"mask": rng.random((5, 3)) < 0.6, "weights": rng.random((5, 3))}
    loss, pullback = losses.quantile(pred, target, [0.2, 0.7], **chosen)
    each = [losses.quantile(pred[..., k], target, q, **chosen) for k, q in enumerate((0.2, 0.7))]
    assert float(loss) == pytest.approx(np.mean([one for one, _ in each]), abs=1e-14)
    expected = np.stack([back() for _, back in each], axis=-1) / 2
    np.testing.assert_allclose(pullback(), expected, atol=1e-15)


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_quantiles_need_a_number_to_predict(shape):
    with pytest.raises(xplstm.ShapeError, match=r"target has shape .* last axis with at least 1 element"):
        losses.quantile(np.ones((*shape, 2)), np.ones(shape), [0.5, 0.9])


def test_huber_does_not_square_a_large_error():
    """NumPy would warn of an overflow, and a warning is an error here."""
    loss, pullback = losses.huber(np.asarray([[1e25]], "float32"), np.zeros((1, 1), "float32"), 2.0)
    assert (float(loss), float(pullback()[0, 0])) == (np.float32(2e25), 2.0)


@pytest.mark.parametrize("of", ["weights", "class_weights"])
@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_weights_that_float32_cannot_represent_are_refused(of, size):
    logits, targets = np.zeros((3, 3), dtype="float32"), np.asarray([0, 1, 2])
    with pytest.raises(xplstm.ArgumentError, match=f"{of} has elements up to .* float32"):
        losses.softmax_cross_entropy(logits, targets, **{of: np.full(3, size)})
    for dtype, weights in (("float64", np.full(3, size)), ("float32", np.asarray([1e-60, 1.0, 0.0]))):
        loss, _ = losses.softmax_cross_entropy(logits.astype(dtype), targets, **{of: weights})
        assert float(loss) == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    "option", [{"reduction": "none"}, {"weights": np.ones(1)}, {"class_weights": np.ones(2)}]
)
def test_a_class_with_the_logit_minus_infinity_is_excluded_with_every_option(option):
    loss, pullback = losses.softmax_cross_entropy(np.asarray([[3.0, -np.inf]]), np.asarray([0]), **option)
    assert float(np.sum(loss)) == 0.0
    np.testing.assert_array_equal(pullback(np.ones_like(loss)), [[0.0, 0.0]])


def test_a_huber_bound_above_the_range_of_the_dtype_squares_all_errors():
    pred = np.asarray([[2.0]], dtype="float32")
    loss, pullback = losses.huber(pred, np.zeros_like(pred), 1e300)
    assert float(loss) == 2.0
    assert pullback().tolist() == [[2.0]]
