"""Check losses and their gradients against the definition, differences and PyTorch, on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xplstm
from tests.support.cases import differences
from xplstm import _array, losses

T, B, V = 5, 3, 7


@pytest.fixture
def logits(rng):
    return rng.normal(size=(T, B, V)) * 3


@pytest.fixture
def targets(rng):
    return rng.integers(0, V, size=(T, B))


@pytest.fixture
def mask(rng):
    return rng.random((T, B)) < 0.6


def defined_cross_entropy(logits, targets, mask=None):
    """Compute the definition, one element at a time."""
    mask = np.ones(targets.shape, dtype=bool) if mask is None else mask
    terms = []
    for place in zip(*np.nonzero(mask), strict=True):
        p = [math.exp(v) for v in logits[place]]
        terms.append(-math.log(p[targets[place]] / math.fsum(p)))
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_and_its_gradient(xp, logits, targets, mask, masked):
    mask = mask if masked else None
    given = None if mask is None else xp.asarray(mask)
    loss, pullback = losses.softmax_cross_entropy(xp.asarray(logits), xp.asarray(targets), mask=given)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(defined_cross_entropy(logits, targets, mask), abs=1e-13)
    expected = differences(lambda z: defined_cross_entropy(z, targets, mask), logits)
    np.testing.assert_allclose(_array.to_numpy(pullback()), expected, atol=1e-9)
    np.testing.assert_allclose(_array.to_numpy(pullback(2.5)), 2.5 * expected, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
def test_mse_and_its_gradient(xp, rng, mask, masked):
    pred, target = rng.normal(size=(2, T, B, 4))
    chosen = mask if masked else np.ones((T, B), dtype=bool)
    given = xp.asarray(mask) if masked else None

    def defined(pred):
        return float(np.mean((pred - target)[chosen] ** 2))

    loss, pullback = losses.mse(xp.asarray(pred), xp.asarray(target), mask=given)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(defined(pred), abs=1e-13)
    np.testing.assert_allclose(_array.to_numpy(pullback()), differences(defined, pred), atol=1e-9)
    np.testing.assert_allclose(_array.to_numpy(pullback(-3.0)), -3 * _array.to_numpy(pullback()), atol=1e-14)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_what_stands_in_the_padding_changes_nothing(xp, logits, targets, mask, garbage):
    clean, clean_pullback = losses.softmax_cross_entropy(
        xp.asarray(logits), xp.asarray(targets), mask=xp.asarray(mask)
    )
    logits[~mask], targets[~mask] = garbage, -100
    loss, pullback = losses.softmax_cross_entropy(
        xp.asarray(logits), xp.asarray(targets), mask=xp.asarray(mask)
    )
    dlogits = _array.to_numpy(pullback())
    assert float(loss) == float(clean)
    assert np.array_equal(dlogits, _array.to_numpy(clean_pullback()))
    assert not dlogits[~mask].any()

    pred, target = logits, np.where(mask[..., None], logits + 1, garbage)
    error, error_pullback = losses.mse(xp.asarray(pred), xp.asarray(target), mask=xp.asarray(mask))
    assert float(error) == pytest.approx(1.0)
    assert not _array.to_numpy(error_pullback())[~mask].any()


@pytest.mark.parametrize("size", [(0, 3), (2, 0), (4, 3)])
def test_nothing_that_counts_gives_zero(xp, size):
    logits, targets, mask = np.ones((*size, V)), np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
    for call in (
        lambda: losses.softmax_cross_entropy(xp.asarray(logits), xp.asarray(targets), mask=xp.asarray(mask)),
        lambda: losses.mse(xp.asarray(logits), xp.asarray(2 * logits), mask=xp.asarray(mask)),
    ):
        loss, pullback = call()
        assert float(loss) == 0
        assert not _array.to_numpy(pullback()).any()
        assert pullback().shape == logits.shape


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_stays(xp, logits, targets, dtype):
    if getattr(xp.xp, dtype, None) is None:
        pytest.skip(f"{xp.name} has no {dtype}")
    z = xp.asarray(logits.astype(dtype))
    loss, pullback = losses.softmax_cross_entropy(z, xp.asarray(targets))
    error, error_pullback = losses.mse(z, xp.asarray((logits + 1).astype(dtype)))
    for a in (loss, pullback(), error, error_pullback()):
        assert _array.dtype_name(a.dtype) == dtype
    accuracy = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-13}[dtype]
    exact = defined_cross_entropy(logits.astype(dtype).astype(np.float64), targets)
    assert float(loss) == pytest.approx(exact, rel=accuracy)


def test_half_precision_is_summed_in_float32():
    """There are 70000 elements, and float16 cannot represent this number."""
    logits = np.zeros((70000, 2), dtype=np.float16)
    loss, pullback = losses.softmax_cross_entropy(logits, np.zeros(70000, dtype=np.int8))
    assert float(loss) == pytest.approx(math.log(2), rel=1e-3)
    assert float(losses.mse(logits, logits + np.float16(2))[0]) == 4
    assert pullback().dtype == np.float16


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_logits_neither_overflow_nor_lose_the_loss(xp, scale):
    z = np.asarray([[scale, 0.0], [0.0, scale], [-scale, -scale]], dtype=np.float32)
    loss, pullback = losses.softmax_cross_entropy(xp.asarray(z), xp.asarray(np.asarray([0, 0, 1])))
    assert float(loss) == pytest.approx((0 + scale + math.log(2)) / 3, rel=1e-6)
    np.testing.assert_allclose(3 * _array.to_numpy(pullback()), [[0, 0], [-1, 1], [0.5, -0.5]], atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("options", [{}, {"class_weights": np.ones(2)}])
def test_large_logits_of_one_step_do_not_overflow_with_options(smoothing, options):
    z = np.asarray([[[0.0, 1e4]]])
    loss, pullback = losses.softmax_cross_entropy(z, np.asarray([[0]]), label_smoothing=smoothing, **options)
    assert float(loss) == pytest.approx(1e4 * (1 - smoothing / 2), rel=1e-12)
    np.testing.assert_allclose(pullback(), [[[-(1 - smoothing / 2), 1 - smoothing / 2]]], atol=1e-12)


def test_a_pullback_without_argument_is_of_one(rng):
    pred, target = rng.normal(size=(2, T, B, V))
    classes = rng.integers(1, V, size=(T, B))
    made = [
        losses.mse(pred, target),
        losses.mae(pred, target),
        losses.huber(pred, target),
        losses.quantile(pred, target, 0.3),
        losses.quantile(rng.normal(size=(T, B, 2)), target[..., 0], [0.1, 0.9]),
        losses.binary_cross_entropy(pred, (target > 0).astype(float)),
        losses.softmax_cross_entropy(pred, classes),
        losses.softmax_cross_entropy(pred, classes, label_smoothing=0.1),
        losses.ctc(pred, classes[:B, :2]),
    ]
    for _, pullback in made:
        np.testing.assert_array_equal(pullback(), pullback(1.0))


def test_small_losses_are_not_rounded_to_zero():
    loss, _ = losses.softmax_cross_entropy(np.asarray([[0.0, -30.0]]), np.asarray([0]))
    assert float(loss) == pytest.approx(math.exp(-30), rel=1e-3)


def test_any_integer_dtype_names_a_class(logits, targets):
    expected = float(losses.softmax_cross_entropy(logits, targets)[0])
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        assert float(losses.softmax_cross_entropy(logits, targets.astype(dtype))[0]) == expected
    wide = np.zeros((1, 300))
    dlogits = losses.softmax_cross_entropy(wide, np.asarray([4], dtype=np.uint8))[1]()
    assert np.flatnonzero(dlogits < 0).tolist() == [4]


def test_byte_swapped_and_strided_input(logits, targets):
    expected, pullback = losses.softmax_cross_entropy(logits, targets)
    swapped = logits.astype(logits.dtype.newbyteorder())[::-1]
    loss, swapped_pullback = losses.softmax_cross_entropy(swapped, targets[::-1])
    assert float(loss) == pytest.approx(float(expected), abs=1e-14)
    np.testing.assert_allclose(swapped_pullback()[::-1], pullback(), atol=1e-15)
    assert swapped_pullback().dtype.isnative


def test_against_torch(logits, targets, torch):
    z = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(z.reshape(-1, V), torch.tensor(targets).reshape(-1))
    expected.backward()
    loss, pullback = losses.softmax_cross_entropy(logits, targets)
    assert float(loss) == pytest.approx(expected.item(), abs=1e-14)
    np.testing.assert_allclose(pullback(), z.grad.numpy(), atol=1e-15)


def test_jax_compiles_and_differentiates_through(logits, targets, mask, jax):
    z, k, m = jax.numpy.asarray(logits), jax.numpy.asarray(targets), jax.numpy.asarray(mask)
    for loss in (
        lambda z: losses.softmax_cross_entropy(z, k, mask=m)[0],
        lambda z: losses.mse(z, jax.numpy.ones_like(z), mask=m)[0],
    ):
        assert jax.jit(jax.grad(loss))(z).shape == z.shape
    traced = jax.jit(jax.grad(lambda z, k: losses.softmax_cross_entropy(z, k)[0]))(z, k)
    np.testing.assert_allclose(traced, losses.softmax_cross_entropy(z, k)[1](), atol=1e-15)


F, K = np.zeros((2, 3, 4)), np.zeros((2, 3), dtype=np.int64)
cross_entropy, mse = losses.softmax_cross_entropy, losses.mse
BAD = [
    (lambda: cross_entropy(F.astype(int), K), xplstm.DTypeError, "logits has dtype int64"),
    (
        lambda: cross_entropy(F, K.astype(float)),
        xplstm.DTypeError,
        "targets has dtype float64",
    ),
    (lambda: cross_entropy(F, K[0]), xplstm.ShapeError, r"targets has shape \(3,\).*\(2, 3\)"),
    (lambda: cross_entropy(F[..., :0], K), xplstm.ShapeError, r"logits has shape \(2, 3, 0\)"),
    (lambda: mse(F[0, 0, :1].reshape(()), K), xplstm.ShapeError, r"pred has shape \(\),"),
    (
        lambda: cross_entropy(F, K + 4),
        xplstm.ArgumentError,
        r"class 4, expected classes in \[0, 4\)",
    ),
    (lambda: cross_entropy(F, K - 1), xplstm.ArgumentError, "class -1"),
    (lambda: cross_entropy(F, K, mask=K), xplstm.DTypeError, "mask has dtype int64"),
    (
        lambda: cross_entropy(F, K, mask=K[:1] == 0),
        xplstm.ShapeError,
        r"mask has shape \(1, 3\)",
    ),
    (lambda: cross_entropy(F.tolist(), K), xplstm.DTypeError, "logits must be an array"),
    (lambda: mse(F, F[0]), xplstm.ShapeError, r"target has shape \(3, 4\), but pred has \(2, 3, 4\)"),
    (lambda: mse(F, F.astype("float32")), xplstm.DTypeError, "target has dtype float32"),
    (lambda: mse(K, K), xplstm.DTypeError, "pred has dtype int64"),
    (lambda: mse(F, F, mask=F == 0), xplstm.ShapeError, r"mask has shape \(2, 3, 4\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_arrays_of_two_libraries_are_refused():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(xplstm.BackendError, match=r"targets is from array_api_strict .* is from numpy"):
        losses.softmax_cross_entropy(F, strict.asarray(K))
