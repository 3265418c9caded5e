"""Check the estimators for scikit-learn: its own checks, their inputs, and their files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support import nonsense
from xplstm.io.files import safetensors
from xplstm.models import SequenceClassifier

sklearn = pytest.importorskip("sklearn", minversion="1.6", reason="pip install 'xplstm[sklearn]'")

from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from xplstm.sklearn import LSTMClassifier, LSTMRegressor  # noqa: E402

# Checks of scikit-learn that an estimator of sequences cannot pass, with the reason. There is none, because a
# table is read as sequences with one feature. Two checks skip themselves: one needs SCIPY_ARRAY_API, and one
# a decision_function.
EXPECTED_FAILURES: dict[str, dict[str, str]] = {"LSTMClassifier": {}, "LSTMRegressor": {}}


@pytest.mark.slow
@parametrize_with_checks(
    [
        LSTMClassifier(8, epochs=8, learning_rate=0.04, random_state=0, dtype="float64"),
        LSTMRegressor(16, epochs=20, learning_rate=0.05, random_state=0, dtype="float64"),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES[type(estimator).__name__],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture
def whole(rng):
    return rng.normal(size=(60, 7, 2))


@pytest.fixture
def ragged(rng, whole):
    return [sequence[:length] for sequence, length in zip(whole, rng.integers(2, 8, 60), strict=True)]


@pytest.fixture
def labels(ragged):
    return np.asarray(["up" if sequence[-1, 0] > 0 else "down" for sequence in ragged])


def small(**options: Any) -> LSTMClassifier:
    return LSTMClassifier(**{"hidden_size": 4, "epochs": 2, "random_state": 0} | options)


def test_it_learns_from_sequences_of_several_lengths(ragged, labels):
    scores = cross_val_score(LSTMClassifier(8, epochs=30, random_state=0), ragged, labels, cv=3)
    assert scores.mean() > 0.8


def test_it_works_in_a_pipeline_and_a_grid(ragged, labels):
    pipeline = make_pipeline(FunctionTransformer(lambda X: [2 * x for x in X]), small())
    grid = GridSearchCV(pipeline, {"lstmclassifier__hidden_size": [2, 3]}, cv=2)
    grid.fit(ragged, labels)
    assert grid.best_params_["lstmclassifier__hidden_size"] in (2, 3)
    assert grid.predict(ragged).shape == (60,)


def test_a_clone_is_unfitted_and_gives_the_same_again(ragged, labels):
    fitted = small(dropout=0.3).fit(ragged, labels)
    again = clone(fitted)
    with pytest.raises(NotFittedError):
        again.predict(ragged)
    np.testing.assert_array_equal(
        again.fit(ragged, labels).predict_proba(ragged), fitted.predict_proba(ragged)
    )


def test_every_form_of_the_same_sequences_gives_the_same(whole, labels):
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    forms = [
        whole,
        list(whole),
        [sequence.tolist() for sequence in whole],
        [pandas.DataFrame(sequence) for sequence in whole],
        pandas.Series(list(whole), index=range(60, 0, -1)),
        [xarray.DataArray(sequence.T, dims=["feature", "time"]) for sequence in whole],
        xarray.DataArray(whole, dims=("station", "time", "variable")),
        xarray.DataArray(whole.transpose(1, 0, 2), dims=("time", "station", "variable")),
        xarray.DataArray(whole.transpose(0, 2, 1), dims=("station", "variable", "time")),
        xarray.DataArray(whole, dims=("a", "b", "c")),
    ]
    expected = small().fit(whole, labels).predict_proba(whole)
    for form in forms:
        np.testing.assert_allclose(small().fit(form, labels).predict_proba(form), expected, atol=1e-6)
    objects = np.empty(60, dtype=object)
    objects[:] = list(whole)
    np.testing.assert_allclose(small().fit(objects, labels).predict_proba(objects), expected, atol=1e-6)


def test_a_table_is_sequences_of_one_feature(whole, labels):
    pandas = pytest.importorskip("pandas")
    table = whole[..., 0]
    frame = pandas.DataFrame(table, columns=[f"t{k}" for k in range(7)])
    fitted = small().fit(frame, labels)
    assert fitted.n_features_in_ == 7
    assert list(fitted.feature_names_in_) == list(frame.columns)
    expected = small().fit(whole[..., :1], labels).predict_proba(whole[..., :1])
    np.testing.assert_allclose(fitted.predict_proba(frame), expected, atol=1e-6)
    np.testing.assert_allclose(small().fit(table.tolist(), labels).predict_proba(table.tolist()), expected)


def test_columns_of_frames_in_a_list_keep_their_order(whole, labels, tmp_path):
    """A frame with other columns would give predictions from the wrong features."""
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(sequence, columns=["speed", "angle"]) for sequence in whole]
    turned = [frame[["angle", "speed"]] for frame in frames]
    fitted = small().fit(frames, labels)
    fitted.save(tmp_path / "fitted.safetensors")
    for estimator in (fitted, LSTMClassifier.load(tmp_path / "fitted.safetensors")):
        assert list(estimator.feature_names_in_) == ["speed", "angle"]
        np.testing.assert_array_equal(estimator.predict_proba(frames), fitted.predict_proba(frames))
        with pytest.raises(ValueError, match=r"X\[0\]: .* feature names should match"):
            estimator.predict(turned)
        with pytest.raises(ValueError, match=r"X\[2\]: .* feature names should match"):
            estimator.predict([*frames[:2], *turned])
    with pytest.raises(ValueError, match=r"X\[1\]: .* feature names should match"):
        small().fit([frames[0], *turned[1:]], labels)
    for X in (whole, list(whole)):
        assert not hasattr(fitted.fit(X, labels), "feature_names_in_")


def test_the_features_are_scaled_as_they_were_in_fit(ragged, labels):
    moved = [sequence * [3.0, 0.01] + [100.0, -5.0] for sequence in ragged]
    found = small(dtype="float64").fit(moved, labels).predict_proba(moved)
    np.testing.assert_allclose(
        found, small(dtype="float64").fit(ragged, labels).predict_proba(ragged), atol=1e-9
    )
    raw = small(standardize=False, dtype="float64").fit(ragged, labels)
    assert raw.mean_ is None
    logits = raw.model_(ragged[0])
    np.testing.assert_allclose(raw.predict_proba(ragged)[0], np.exp(logits) / np.exp(logits).sum())


@pytest.mark.parametrize("form", [list, lambda found: np.stack([a[:3] for a in found])])
def test_a_feature_with_a_large_mean_keeps_its_variation(ragged, labels, form):
    long = [np.concatenate([sequence] * 3) for sequence in ragged]
    moved, plain = form([sequence + 2.0**30 for sequence in long]), form(long)
    found = small().fit(moved, labels).predict_proba(moved)
    np.testing.assert_allclose(found, small().fit(plain, labels).predict_proba(plain), atol=1e-4)


def test_a_feature_that_is_too_large_after_scaling_is_refused(ragged, labels):
    fitted = small().fit(ragged, labels)
    with pytest.raises(ValueError, match=r"X has values up to .*e\+2\d\d, .* too large for float32"):
        fitted.predict([sequence * 1e250 for sequence in ragged])


@pytest.mark.slow
def test_ids_of_tokens(rng):
    texts = [rng.integers(1, 9, length).tolist() for length in rng.integers(1, 8, 200)]
    there = [5 in text for text in texts]
    options = {"vocab_size": 9, "pooling": "max", "epochs": 40, "random_state": 0}
    listed = LSTMClassifier(16, **options).fit(texts[:150], there[:150])
    assert listed.score(texts[150:], there[150:]) > 0.9
    assert listed.predict([texts[0]])[0] in (True, False)
    table = np.zeros((200, 8), int)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = text
    padded = LSTMClassifier(16, padding_idx=0, **options).fit(table[:150], there[:150])
    assert padded.score(table[150:], there[150:]) > 0.9


@pytest.mark.parametrize("factor", [1e-300, 1e300])
def test_targets_of_any_size_are_scaled(factor, whole):
    sums = whole.sum(axis=(1, 2))
    one, other = (
        LSTMRegressor(4, epochs=3, dtype="float64", random_state=0).fit(whole, y).predict(whole)
        for y in (sums, sums * factor)
    )
    np.testing.assert_allclose(other / factor, one, rtol=1e-9)


def test_several_labels_and_several_numbers(whole):
    facts = np.stack([whole[:, -1, 0] > 0, whole[:, -1, 1] > 0], axis=1).astype(int)
    classifier = LSTMClassifier(16, epochs=60, random_state=0).fit(whole, facts)
    assert classifier.predict(whole).shape == classifier.predict_proba(whole).shape == (60, 2)
    assert (classifier.predict(whole) == facts).mean() > 0.9
    sums = whole.sum(axis=1) * [1.0, 1000.0]
    regressor = LSTMRegressor(16, epochs=60, learning_rate=0.03, random_state=0).fit(whole, sums)
    assert regressor.score(whole, sums) > 0.8
    assert regressor.predict(whole).shape == (60, 2)


def test_class_weights_move_the_decision(whole):
    rare = (whole[:, -1, 0] > 0.8).astype(int)
    none = LSTMClassifier(4, epochs=5, random_state=0).fit(whole, rare).predict(whole).sum()
    much = LSTMClassifier(4, epochs=5, random_state=0, class_weight={0: 1, 1: 50}).fit(whole, rare)
    assert much.predict(whole).sum() > none


def test_a_list_without_ids_has_the_prediction_of_the_initial_state():
    reader = small(vocab_size=5).fit([[1, 2], [3], [4, 4]], [0, 1, 1])
    initial = reader.predict_proba([[2], np.zeros(0, dtype=int)])
    np.testing.assert_array_equal(reader.predict_proba([[2], []]), initial)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_a_class_weight_is_a_weight_of_its_sequences(whole, batch_size):
    """A mean over the weights of a batch would cancel the weight of a batch of one class."""
    rare = (whole[:, -1, 0] > 0.8).astype(int)
    options = {"hidden_size": 4, "epochs": 3, "batch_size": batch_size, "standardize": False}
    by_class = LSTMClassifier(**options, class_weight={0: 1, 1: 20}, random_state=0).fit(whole, rare)
    by_sequence = LSTMClassifier(**options, random_state=0).fit(whole, rare, 1 + 19 * rare)
    np.testing.assert_array_equal(by_class.predict_proba(whole), by_sequence.predict_proba(whole))
    both = LSTMClassifier(**options, class_weight={1: 20}, random_state=0).fit(whole, rare, 1 + rare)
    product = LSTMClassifier(**options, random_state=0).fit(whole, rare, 1 + 39 * rare)
    np.testing.assert_array_equal(both.predict_proba(whole), product.predict_proba(whole))
    plain = LSTMClassifier(**options, random_state=0).fit(whole, rare)
    assert by_class.predict_proba(whole)[:, 1].mean() > plain.predict_proba(whole)[:, 1].mean() + 0.03


def test_class_weights_do_not_scale_features(whole):
    rare = (whole[:, -1, 0] > 0.8).astype(int)
    plain, weighted = (LSTMClassifier(2, epochs=1, class_weight=w).fit(whole, rare) for w in (None, {1: 9}))
    np.testing.assert_array_equal(weighted.mean_, plain.mean_)


@pytest.mark.parametrize("kind", [LSTMClassifier, LSTMRegressor])
def test_weights_count_as_often_as_they_say(kind, whole):
    """In one batch, a weight of 2 repeats a sequence, and a weight of 0 removes it."""
    y = (whole[:, -1, 0] > 0).astype(int) if kind is LSTMClassifier else whole[:, -1, 0]
    weights = np.arange(60) % 3
    options = {"hidden_size": 4, "epochs": 5, "dtype": "float64", "batch_size": 200, "random_state": 0}
    weighted = kind(**options).fit(whole, y, sample_weight=weights)
    repeated = kind(**options).fit(np.repeat(whole, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.mean_, repeated.mean_, rtol=1e-9)
    predict = "predict_proba" if kind is LSTMClassifier else "predict"
    np.testing.assert_allclose(
        getattr(weighted, predict)(whole), getattr(repeated, predict)(whole), rtol=1e-6
    )
    plain = kind(**options).fit(whole, y)
    assert not np.allclose(getattr(plain, predict)(whole), getattr(weighted, predict)(whole), rtol=1e-3)


def test_a_weight_means_the_same_in_every_batch(whole, labels):
    def proba(weights):
        return small(batch_size=1, epochs=1).fit(whole, labels, sample_weight=weights).predict_proba(whole)

    one, many = proba(np.ones(60)), proba(np.full(60, 7.0))
    np.testing.assert_allclose(one, many, atol=1e-6)
    assert not np.allclose(one, proba(np.where(labels == "up", 5.0, 0.1)), atol=1e-2)


def test_the_scale_is_of_what_is_learnt_from(whole, labels):
    fitted = small(early_stopping=True, validation_fraction=0.5).fit(whole, labels)
    assert not np.allclose(fitted.mean_, whole.mean(axis=(0, 1)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(6), "sample_weight is 0 for all|at least one non-zero"),
        (-np.ones(6), "[Nn]egative"),
        (np.ones(5), "sample_weight"),
        (np.full(6, np.nan), "sample_weight contains NaN"),
    ],
)
def test_bad_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        small().fit(WHOLE, CLASSES, sample_weight=weights)


def test_early_stopping_keeps_the_best_parameters(ragged, labels):
    fitted = small(early_stopping=True, patience=2, epochs=40, learning_rate=0.05).fit(ragged, labels)
    validations = fitted.history_.validations
    assert 3 <= len(validations) <= 41
    assert not small().fit(ragged, labels).history_.validations


SAVED = {
    "str": lambda: (small(class_weight={"up": 2.0, "down": 1.0}), None),
    "int": lambda: (small(class_weight={1: 2, 0: 1}, hidden_size=np.int64(3)), lambda y: (y == "up") * 1),
    "bool": lambda: (small(), lambda y: y == "up"),
    "objects": lambda: (small(), lambda y: y.astype(object)),
    "regressor": lambda: (LSTMRegressor(4, epochs=1, random_state=0), lambda y: (y == "up") + 0.5),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_file_gives_the_same_estimator(name, ragged, labels, tmp_path):
    estimator, change = SAVED[name]()
    y, path = labels if change is None else change(labels), tmp_path / "estimator.safetensors"
    estimator.fit(ragged, y).save(path)
    again = type(estimator).load(path)
    assert again.get_params() == estimator.get_params()
    np.testing.assert_array_equal(again.predict(ragged), estimator.predict(ragged))
    assert again.predict(ragged).dtype == estimator.predict(ragged).dtype
    assert again.score(ragged, y) == estimator.score(ragged, y)
    assert SequenceClassifier.load(path).shapes == estimator.model_.shapes
    clone(again).fit(ragged, y)


DAMAGED = {
    "no estimator": (lambda _: {}, "does not contain an LSTMClassifier"),
    "another class": (lambda about: about | {"class": "LSTMRegressor"}, "does not contain an LSTMClassifier"),
    "parameter": (lambda about: about | {"params": {"depth": 3}}, "invalid description"),
    "attribute": (lambda about: about | {"fitted": {"pairs": [["mean_", 1]]}}, "expected .*classes_"),
    "dtype": (
        lambda about: json.loads(json.dumps(about).replace('"float64"', '"float77"')),
        "invalid description",
    ),
    "fewer classes": (lambda about: json.loads(json.dumps(about).replace('"down", ', "")), "1 classes"),
    "fewer features": (lambda about: json.loads(CUT.sub(r"\1]", json.dumps(about))), "1 features"),
}
CUT = re.compile(r'("mean_", \{"array": \[[^],]*)[^]]*\]')


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_does_not_fit_is_refused(case, ragged, labels, tmp_path):
    change, message = DAMAGED[case]
    path = tmp_path / "estimator.safetensors"
    small().fit(ragged, labels).save(path)
    contents = safetensors.read(str(path))
    about = change(json.loads(contents.metadata["xplstm.sklearn"]))
    tensors = {name: np.array(tensor.array()) for name, tensor in contents.tensors.items()}
    path.write_bytes(safetensors.pack(tensors, contents.metadata | {"xplstm.sklearn": json.dumps(about)}))
    with pytest.raises(xplstm.FormatError, match=message):
        LSTMClassifier.load(path)


def test_what_a_file_cannot_hold_is_refused(ragged, labels, tmp_path):
    path = tmp_path / "estimator.safetensors"
    with pytest.raises(NotFittedError):
        small().save(path)
    with pytest.raises(xplstm.ArgumentError, match="RandomState"):
        small(random_state=np.random.RandomState(0)).fit(ragged, labels).save(path)
    assert not path.exists()


def long_frame() -> Any:
    pandas = pytest.importorskip("pandas")
    index = pandas.MultiIndex.from_product([range(3), range(2)], names=["sequence", "step"])
    return pandas.DataFrame(np.ones((6, 2)), index=index)


WHOLE = np.random.default_rng(0).normal(size=(6, 4, 2))
CLASSES = [0, 1, 0, 1, 0, 1]
BAD = [
    (lambda: small().fit(np.ones((2, 2, 2, 2)), [0, 1]), "dim 4|4 dim"),
    (lambda: small().fit([np.ones((2, 1)), np.ones((3, 2))], [0, 1]), "different numbers of features"),
    (lambda: small().fit([np.ones((2, 1, 1))] * 2, [0, 1]), r"X\[0\] has shape \(2, 1, 1\)"),
    (lambda: small().fit([np.full((2, 1), np.nan)] * 2, [0, 1]), r"Input X\[0\] contains NaN"),
    (lambda: small().fit(np.full((2, 2, 1), np.inf), [0, 1]), "Input X contains infinity"),
    (lambda: small().fit([np.ones((3, 1)), np.ones((0, 1))], [0, 1]), r"X\[1\] has no step to learn from"),
    (lambda: small().fit(np.ones((2, 0, 1)), [0, 1]), r"X\[0\] has no step to learn from"),
    (lambda: small(vocab_size=5).fit([[1, 2], []], [0, 1]), r"X\[1\] has no step to learn from"),
    (
        lambda: small(vocab_size=5, padding_idx=3).fit([[1, 3], [3], [3, 2]], [0, 1, 1]),
        r"X\[1\] has no step other than padding_idx=3 to learn from",
    ),
    (lambda: small().fit(WHOLE, [0, 1]), "inconsistent numbers of samples"),
    (lambda: small().fit(WHOLE, CLASSES).predict(WHOLE[..., :1]), "sequences with 1 features; .* with 2"),
    (lambda: small().fit(WHOLE, CLASSES).predict(WHOLE[..., 0]), "expecting 2|a table of 4"),
    (lambda: small().fit(WHOLE[..., 0], CLASSES).predict(WHOLE), "fitted on a table of 4 steps"),
    (lambda: LSTMRegressor(2, dtype="real").fit(WHOLE, CLASSES), "dtype='real' must be one of float32"),
    (lambda: small(class_weight={0: 0, 1: 0}).fit(WHOLE, CLASSES), "class_weight gives the weight 0"),
    (lambda: small(vocab_size=5).fit(WHOLE, CLASSES), "with vocab_size, X must be a table"),
    (lambda: small(vocab_size=5).fit(WHOLE[..., 0], CLASSES), "expected integer ids"),
    (lambda: small(vocab_size=5).fit([[1, 2], [9]], [0, 1]), r"contains 9, which is not in \[0, 5\)"),
    (lambda: small(class_weight="balanced").fit(WHOLE, np.eye(3, dtype=int)[CLASSES]), "needs a y of shape"),
    (
        lambda: small(dtype="float64").fit(np.full_like(WHOLE, 1e308), CLASSES),
        "X has values up to .*, whose sum",
    ),
    (
        lambda: LSTMRegressor(2, epochs=1).fit(WHOLE, 3e307 * np.arange(6)),
        r"y has values up to 1.5e\+308, whose sum overflows; divide y by a constant",
    ),
    (
        lambda: small(validation_fraction=2.0).fit(WHOLE, CLASSES),
        "validation_fraction=2.0 must",
    ),
    (lambda: small(patience=0).fit(WHOLE, CLASSES), "patience=0 must be at least 1"),
    (lambda: small().fit(long_frame(), [0, 1, 0]), r"X.groupby\(level=0, sort=False\)"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.slow
def test_nonsense_is_refused_by_name():
    """`fit` refuses each strange value of each parameter by name, or the value has a meaning."""
    meaning = {
        "hidden_size": "1", "num_layers": "1", "epochs": "1", "batch_size": "1", "patience": "1",
        "bidirectional": "True", "standardize": "True", "early_stopping": "True",
        "vocab_size": "None", "embedding_dim": "None", "padding_idx": "None", "xp": "None",
        "random_state": "None 0 1 True", "class_weight": "None {}", "learning_rate": "1 1.5 2**63",
        "dropout": "0", "weight_decay": "0 1 1.5 2**63", "max_norm": "1 1.5 inf None 10**400 2**63",
    }  # fmt: skip
    strange = []
    for name in LSTMClassifier().get_params():
        validating = name in ("early_stopping", "patience", "validation_fraction")
        extra = {"early_stopping": True, "validation_fraction": 0.34} if validating else {}
        for shown, value in nonsense.VALUES.items():
            estimator = small(**{"epochs": 1} | extra).set_params(**{name: value})
            try:
                estimator.fit(WHOLE, CLASSES)
            except xplstm.XplstmError:
                continue
            except ValueError as error:
                if name in str(error) or (name == "random_state" and "seed" in str(error).lower()):
                    continue
                strange.append(f"{name}={shown}: {error!r}")
            except Exception as error:
                strange.append(f"{name}={shown}: {error!r}")
            else:
                if shown not in meaning.get(name, "").split():
                    strange.append(f"{name}={shown} was taken")
    assert not strange, "\n".join(strange)


def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import xplstm; xplstm.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: xplstm.sklearn needs the package scikit-learn" in done.stderr


@pytest.mark.parametrize("kind", [LSTMClassifier, LSTMRegressor])
def test_a_refused_fit_keeps_the_fitted_estimator(kind, whole):
    y = (whole[:, -1, 0] > 0).astype(int)
    estimator = kind(4, epochs=2, random_state=0).fit(whole, y)
    before = estimator.predict(whole)
    with pytest.raises(xplstm.ArgumentError, match="max_norm"):
        estimator.set_params(max_norm=-1.0).fit(whole[..., :1], 100 + 7 * y)
    np.testing.assert_array_equal(estimator.predict(whole), before)
