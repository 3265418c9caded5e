"""Check what a SequenceClassifier reads, pools and predicts: ids, padding, mean, maximum, labels, numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

import xplstm
from tests.support.modelcases import check_gradients, check_same, host
from xplstm import _array, losses, models, optim, training
from xplstm.models import Ragged, SequenceClassifier

T, B, V, H, C = 5, 4, 9, 6, 3
PAD = 2
LENGTHS = [2, 5, 0, 3]
# Padding at the end, at the beginning, between ids, and everywhere.
IDS = np.asarray([[1, 2, 3, 2], [2, 2, 5, 2], [4, 7, 2, 2], [8, 1, 6, 2], [2, 3, 2, 2]])
POOLINGS = ("last", "mean", "max")
TARGETS = {
    "multiclass": np.asarray([0, 2, 1, 1]),
    "multilabel": np.asarray([[0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]]),
    "regression": np.linspace(-1, 2, B * C).reshape(B, C),
}


def make(**options):
    sizes = {"vocab_size": V, "embedding_dim": 4, "padding_idx": PAD, "num_layers": 2}
    return SequenceClassifier(None, H, C, **({"dtype": "float64", "rng": 3} | sizes | options))


def features(**options):
    return SequenceClassifier(4, H, C, **({"dtype": "float64", "rng": 3} | options))


@pytest.fixture
def x(rng):
    return rng.normal(size=(T, B, 4))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("two", [False, True])
def test_padding_anywhere_is_as_if_it_were_not_there(pooling, two):
    model = make(pooling=pooling, bidirectional=two)
    logits = model(IDS)
    for entry in range(B):
        alone = IDS[:, entry][IDS[:, entry] != PAD]
        np.testing.assert_allclose(logits[entry], model(alone), atol=1e-14)
    strange = np.where(np.arange(T)[:, None] < LENGTHS, IDS, -99)
    np.testing.assert_array_equal(model(Ragged(strange, LENGTHS)), model(Ragged(IDS, LENGTHS)))


def test_without_a_padding_id_every_id_is_read():
    model = make(padding_idx=None)
    for entry, length in enumerate(LENGTHS):
        np.testing.assert_allclose(model(Ragged(IDS, LENGTHS))[entry], model(IDS[:length, entry]), atol=1e-14)
    assert not np.allclose(model(IDS)[0], model(IDS[:4, 0]))


def test_pooling_that_is_set_later_is_checked(x):
    model, each = features(pooling="last"), features(each_step=True)
    with pytest.raises(xplstm.ArgumentError, match="pooling='median'"):
        model.pooling = "median"
    model.pooling = "mean"
    np.testing.assert_array_equal(model(x), features(pooling="mean")(x))
    with pytest.raises(xplstm.ArgumentError, match="pooling='mean' cannot be combined with each_step=True"):
        each.pooling = "mean"
    with pytest.raises(AttributeError):
        each.each_step = False


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_is_over_the_steps_that_exist(x, pooling):
    model = features(pooling=pooling, bidirectional=True)
    y, _ = model.lstm(x, lengths=LENGTHS)
    reduce = {"mean": np.mean, "max": np.max}[pooling]
    pooled = [reduce(y[:n, b], axis=0) if n else np.zeros(2 * H) for b, n in enumerate(LENGTHS)]
    x[2:, 0] = np.nan
    np.testing.assert_allclose(model(Ragged(x, LENGTHS)), model.linear(np.stack(pooled)), atol=1e-14)
    assert features(pooling=pooling)(np.zeros((0, 2, 4))).shape == (2, C)
    np.testing.assert_allclose(model(x[:, 1]), model(x[:, 1:2])[0], atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_differences(task, pooling):
    options = {"task": task, "pooling": pooling, "dropout": 0.3, "padding_idx": None, "vocab_size": V}
    if task != "regression":
        options["class_weights"] = [1.0, 0.25, 3.0]
    if task == "multiclass":
        options["label_smoothing"] = 0.2
    inputs = Ragged(IDS, [2, 5, 4, 3])
    check_gradients(
        lambda: make(**options), lambda model: model.loss_vjp(inputs, TARGETS[task], None, 5), rtol=1e-5
    )


def test_the_padding_vector_stays_zero():
    model = make()
    training.fit(model, [(IDS, TARGETS["multiclass"])], optim.Adam(0.1), updates=3, progress=False)
    assert not model.params["embedding.weight"][PAD].any()
    assert model.params["embedding.weight"][1].any()


def test_losses_are_those_of_the_library():
    logits, labels = make()(IDS), TARGETS["multilabel"]
    expected = {
        "multiclass": losses.softmax_cross_entropy(logits, TARGETS["multiclass"]),
        "multilabel": losses.binary_cross_entropy(logits, labels.astype(float)),
        "regression": losses.mse(logits, TARGETS["regression"]),
    }
    for task, targets in TARGETS.items():
        assert make(task=task).loss(IDS, targets) == expected[task][0]
        assert make(task=task).loss_vjp(IDS, targets)[0] == expected[task][0]
    weighted = make(class_weights=[1, 2, 0.5], label_smoothing=0.1)
    smoothed = losses.softmax_cross_entropy(
        logits, TARGETS["multiclass"], class_weights=np.asarray([1, 2, 0.5]), label_smoothing=0.1
    )
    assert weighted.loss(IDS, TARGETS["multiclass"]) == smoothed[0]
    for given in (labels.astype(bool), labels.astype(float)):
        assert make(task="multilabel").loss(IDS, given) == make(task="multilabel").loss(IDS, labels)


def test_steps_that_are_padding_do_not_count():
    model = make(each_step=True)
    targets = np.where(IDS == PAD, -7, 1)
    exists = IDS != PAD
    expected = losses.softmax_cross_entropy(model(IDS), targets, mask=exists)[0]
    assert model.loss(IDS, targets) == expected
    assert model.loss_vjp(IDS, targets)[0] == expected


def test_predictions_and_probabilities():
    logits = make()(IDS)
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(make().predict_proba(IDS), e / e.sum(axis=-1, keepdims=True), atol=1e-15)
    np.testing.assert_array_equal(make().predict(IDS), logits.argmax(axis=-1))
    labels = make(task="multilabel")
    np.testing.assert_allclose(labels.predict_proba(IDS), 1 / (1 + np.exp(-logits)), atol=1e-15)
    np.testing.assert_array_equal(labels.predict(IDS), logits > 0)
    np.testing.assert_array_equal(make(task="regression").predict(IDS), logits)
    with pytest.raises(xplstm.ArgumentError, match="task='regression' has no probabilities"):
        make(task="regression").predict_proba(IDS)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("task", TARGETS)
def test_every_backend_gives_the_same(xp, pooling, task):
    options = {"pooling": pooling, "task": task, "dropout": 0.3}
    expected = host(make(**options).loss_vjp(IDS, TARGETS[task], None, 2))
    ours = make(xp=xp.xp, **options)
    ids, targets = xp.asarray(IDS), xp.asarray(TARGETS[task])
    check_same(host(ours.loss_vjp(ids, targets, None, 2)), expected)
    np.testing.assert_allclose(_array.to_numpy(ours.predict(ids)), make(**options).predict(IDS), atol=1e-12)
    if task != "regression":
        found = _array.to_numpy(ours.predict_proba(ids))
        np.testing.assert_allclose(found, make(**options).predict_proba(IDS), atol=1e-12)


def test_it_learns_whether_a_word_is_there(rng):
    """The class states whether the id 7 is in a sequence; sequences are padded with 0."""
    ids = rng.integers(1, 20, (12, 400))
    ids[np.arange(12)[:, None] >= rng.integers(3, 13, 400)] = 0
    there = (ids == 7).any(axis=0).astype(int)
    model = SequenceClassifier(None, 16, 2, vocab_size=20, padding_idx=0, pooling="max", rng=0)
    training.fit(model, [(ids[:, :300], there[:300])], optim.Adam(0.03), updates=80, progress=False)
    assert (model.predict(ids[:, 300:]) == there[300:]).mean() > 0.95


def test_a_model_keeps_its_padding_id(tmp_path):
    path = tmp_path / "model.safetensors"
    for model in (make(padding_idx=-V + PAD), models.CharLM("abc", 4, rng=0)):
        model.embedding = xplstm.Embedding(*model.embedding.params["weight"].shape, padding_idx=PAD, rng=1)
        model.save(path)
        assert type(model).load(path).embedding.padding_idx == PAD
    assert make(padding_idx=-V + PAD).padding_idx == PAD


BAD = [
    (lambda: SequenceClassifier(None, H, C), "input_size=None needs vocab_size="),
    (lambda: SequenceClassifier(4, H, C, padding_idx=0), "padding_idx=0 needs vocab_size="),
    (lambda: SequenceClassifier(4, H, C, embedding_dim=3), "embedding_dim=3 needs vocab_size="),
    (lambda: SequenceClassifier(4, H, C, vocab_size=3), "input_size=4 must be None with vocab_size="),
    (lambda: make(padding_idx=V), "padding_idx=9 must be at most 8"),
    (lambda: make(vocab_size=0), "vocab_size=0 must be at least 1"),
    (lambda: make(embedding_dim=0), "embedding_dim=0 must be at least 1"),
    (lambda: make(pooling="sum"), "pooling='sum' must be one of last, mean, max"),
    (lambda: make(pooling="max", each_step=True), "pooling='max' cannot be combined with each_step=True"),
    (lambda: make(task="binary"), "task='binary' must be one of multiclass, multilabel, regression"),
    (lambda: make(class_weights=[1, 2]), "class_weights has 2 elements, expected 3"),
    (lambda: make(class_weights=[1, 2, -1]), r"class_weights=\[1.0, 2.0, -1.0\] must be at least 0"),
    (lambda: make(class_weights=[0, 0, 0]), "with at least one above 0"),
    (lambda: make(class_weights=[1, float("nan"), 0]), r"class_weights\[1\]=nan must be finite"),
    (lambda: make(task="regression", class_weights=[1, 1, 1]), "class_weights need task='multiclass'"),
    (lambda: make(label_smoothing=1), r"label_smoothing=1 must be in \[0, 1\)"),
    (lambda: make(task="multilabel", label_smoothing=0.1), "label_smoothing=0.1 needs task='multiclass'"),
    (lambda: make()(IDS * 1.0), "dtype float64, expected integers"),
    (lambda: make()(IDS + V), r"ids contains \d+, which is not in \[0, 9\)"),
    (lambda: make()(IDS[None]), r"expected ids of tokens \(T, B\)"),
    (lambda: xplstm.LSTM(B, H)(IDS), "x has dtype int64.*pass token ids to xplstm.Embedding"),
    (lambda: features()(IDS), "x has dtype int64, expected features.* vocab_size="),
    (lambda: make(task="multilabel").loss(IDS, TARGETS["multiclass"]), r"targets has shape \(4,\), expected"),
    (lambda: make(task="multilabel").loss(IDS, TARGETS["multilabel"] + 1), r"outside \[0, 1\]"),
    (lambda: make(task="regression").loss(IDS, TARGETS["multiclass"]), r"targets has shape \(4,\)"),
    (lambda: make(task="regression").loss(IDS, TARGETS["multilabel"]), "targets has dtype int64"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(xplstm.XplstmError, match=message):
        call()


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_a_prediction_of_what_is_not_finite_is_refused(task, xp):
    model = SequenceClassifier(3, 4, 2, task=task, pooling="mean", xp=xp.xp, rng=0)
    ways = [model.predict] if task == "regression" else [model.predict, model.predict_proba]
    for value in (np.nan, np.inf):
        x = np.ones((5, 2, 3), dtype="float32")
        x[3:, 1] = value
        padded = Ragged(xp.asarray(x), [5, 3])
        for predict in ways:
            assert np.isfinite(_array.to_numpy(predict(padded))).all()
            expected = re.escape(f"x[3, 1, 0] is {value}, one of 6 that are not finite;")
            with np.errstate(invalid="ignore"), pytest.raises(xplstm.ArgumentError, match=expected):
                _array.to_numpy(predict(xp.asarray(x)))
    model.params = {name: a * float("nan") for name, a in model.params.items()}
    with np.errstate(invalid="ignore"), pytest.raises(xplstm.ArgumentError, match=r"logits\[0, 0\] is nan"):
        _array.to_numpy(model.predict(xp.asarray(np.ones((5, 2, 3), dtype="float32"))))


@pytest.mark.parametrize("task", TARGETS)
def test_targets_of_a_batch_in_the_other_order_name_the_axes(task):
    with pytest.raises(xplstm.ShapeError, match=r"targets has shape .*; x is \(T, B, I\), or \(T, B\)"):
        make(task=task).loss(IDS.T, TARGETS[task])
