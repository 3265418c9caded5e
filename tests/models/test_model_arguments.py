"""Check errors of layers and models, and that a pullback keeps the parameters of its call."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from tests.support.cases import settled
from xplstm import ArgumentError, DTypeError, ShapeError, XplstmError, _array
from xplstm.models import (
    CharLM,
    Forecaster,
    Ragged,
    Seq2Seq,
    SequenceClassifier,
    WithFuture,
    beam_search,
    pad,
    windows,
)

HOW = {"dtype": "float64", "rng": 0}
IDS, TARGETS = np.asarray([[0, 1], [2, 0]]), np.asarray([[1, 0], [2, 2]])
X = np.linspace(-1, 1, 12).reshape(2, 2, 3)
LAYERS = {
    "LSTM": (lambda **o: xplstm.LSTM(3, 4, proj_size=2, **o), X),
    "variant": (lambda **o: xplstm.LSTM(3, 4, variant=xplstm.Variant(layer_norm=True), **o), X),
    "GRU": (lambda **o: xplstm.GRU(3, 4, **o), X),
    "RNN": (lambda **o: xplstm.RNN(3, 4, **o), X),
    "JordanRNN": (lambda **o: xplstm.JordanRNN(3, 4, 2, **o), X),
    "Linear": (lambda **o: xplstm.Linear(3, 4, **o), X),
    "Embedding": (lambda **o: xplstm.Embedding(3, 4, **o), IDS),
}
MODELS = {
    "CharLM": (lambda **o: CharLM("abc", 4, **o), IDS, TARGETS),
    "classifier": (lambda **o: SequenceClassifier(3, 4, 3, **o), X, IDS[0]),
    "each step": (lambda **o: SequenceClassifier(3, 4, 3, each_step=True, **o), X, IDS),
    "Forecaster": (lambda **o: Forecaster(3, 4, **o), X, -X),
    "Seq2Seq": (lambda **o: Seq2Seq("abc", "xy", 4, **o), IDS, TARGETS),
}


def flat(gradients):
    """Return every array of a nested result on the host."""
    if isinstance(gradients, dict):
        return [a for part in gradients.values() for a in flat(part)]
    if isinstance(gradients, tuple):
        return [a for part in gradients for a in flat(part)]
    return [_array.to_numpy(a) for a in settled([gradients])]


def check_kept(model, pullback):
    """Replace the parameters between two calls of a pullback."""
    before = flat(pullback())
    model.params = {name: 2 * a for name, a in model.params.items()}
    after = flat(pullback())
    model.to(dtype="float32")
    for a, b, c in zip(before, after, flat(pullback()), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert any(a.any() for a in before)


@pytest.mark.parametrize("name", LAYERS)
def test_the_pullback_of_a_layer_keeps_its_parameters(name, xp):
    make, x = LAYERS[name]
    layer = make(xp=xp.xp, **HOW)
    y, *_, pullback = layer.vjp(xp.asarray(x))
    check_kept(layer, lambda: pullback(y))


@pytest.mark.parametrize("name", MODELS)
def test_the_pullback_of_a_model_keeps_its_parameters(name, xp):
    make, x, targets = MODELS[name]
    model = make(xp=xp.xp, **HOW)
    check_kept(model, model.loss_vjp(xp.asarray(x), xp.asarray(targets))[2])


@pytest.mark.parametrize("lengths", [[3, 1], [-1, 1], [1.7, 1.0], [1]])
def test_lengths_of_a_target_are_checked(lengths):
    model = Seq2Seq("abc", "xy", 4, **HOW)
    for call in (model, model.loss, model.loss_vjp):
        with pytest.raises(XplstmError, match="target: lengths"):
            call(IDS, Ragged(TARGETS, lengths))


def test_source_and_target_are_of_one_batch():
    model = Seq2Seq("abc", "xy", 4, **HOW)
    with pytest.raises(ShapeError, match=r"source has shape \(2, 2\) and target \(2, 1\)"):
        model.loss(IDS, TARGETS[:, :1])


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (["a", "ab"], "vocab contains 'ab'"),
        (["a", ""], "vocab contains ''"),
        ([1, 2], "vocab contains 1, which is not a str"),
        (b"ab", "vocab"),
        ({"a", "b"}, "vocab is a set, which has no order"),
        ({"a": 1, "b": 0}, "vocab is a dict, whose values are not 0, 1, 2"),
        (3, "vocab"),
    ],
)
def test_a_vocabulary_of_characters_holds_characters(vocab, message):
    with pytest.raises(XplstmError, match=message):
        CharLM(vocab, 4)


def test_a_mapping_from_tokens_to_their_ids_is_a_vocabulary():
    assert CharLM({"b": 0, "a": 1}, 4).vocab == ("b", "a")


def test_a_generator_is_a_vocabulary():
    model = CharLM((c for c in "abc"), 4, rng=0)
    assert model.generate("a", 5, rng=0) == CharLM("abc", 4, rng=0).generate("a", 5, rng=0)


SMALL = [np.int8(100), np.uint8(100)]


@pytest.mark.parametrize("n", SMALL, ids=repr)
def test_sizes_may_be_integers_of_numpy(n):
    models = [
        CharLM("abc", n, 1, embedding_dim=n),
        SequenceClassifier(3, n, 2, np.int8(1), bidirectional=True),
        Seq2Seq("abc", "xy", n),
        Forecaster(np.uint8(3), n),
        xplstm.Linear(n, n),
        xplstm.Embedding(n, n),
    ]
    for model in models:
        sizes = [size for shape in model.shapes.values() for size in shape]
        assert all(type(size) is int and size > 0 for size in sizes)
    assert SequenceClassifier(3, n, 2, bidirectional=True)(X.astype("float32")).shape == (2, 2)
    assert windows(np.zeros((300, 1)), np.uint8(255))[0].shape == (255, 45, 1)


SEEDS = [-1, 1.5, "x", np.asarray([[1, 2]]), True, np.asarray([[1, 2]]).view(np.matrix)]


@pytest.mark.parametrize("name", [*MODELS, *LAYERS])
@pytest.mark.parametrize("seed", SEEDS, ids=repr)
def test_a_seed_is_refused_by_name(name, seed):
    make = (MODELS | LAYERS)[name][0]
    with pytest.raises(XplstmError, match="rng="):
        make(rng=seed)


@pytest.mark.parametrize("seed", SEEDS[:3], ids=repr)
def test_a_seed_of_a_draw_is_refused_by_name(seed):
    model = CharLM("abc", 4, **HOW)
    for call in (
        lambda: model.loss_vjp(IDS, TARGETS, rng=seed),
        lambda: model.generate("a", 3, rng=seed),
        lambda: xplstm.Dropout(0.5).vjp(X, rng=seed),
    ):
        with pytest.raises(XplstmError, match="rng="):
            call()


def test_dropout_treats_a_matrix_as_an_array():
    x = np.ones((3, 3)).view(np.matrix)
    y, pullback = xplstm.Dropout(0.5).vjp(x, rng=0)
    expected, _ = xplstm.Dropout(0.5).vjp(np.ones((3, 3)), rng=0)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pullback(x), expected)


def test_linear_treats_a_matrix_as_an_array():
    layer = xplstm.Linear(3, 2, **HOW)
    layer.params = {name: a.view(np.matrix) if a.ndim == 2 else a for name, a in layer.params.items()}
    y, pullback = layer.vjp(X[0].view(np.matrix))
    assert type(y) is type(pullback(y)[0]) is np.ndarray


def step(tokens, state):
    return np.zeros((len(tokens), 3)), state


NONSENSE = [
    (lambda: xplstm.Dropout(0.5)("x"), DTypeError, "x must be an array"),
    (lambda: beam_search(step, (), [0], end=1.5, width=1, max_length=3), DTypeError, "end=1.5"),
    (lambda: beam_search(step, (), [0.7], end=1, width=1, max_length=3), DTypeError, "first has dtype"),
    (lambda: beam_search(step, (), [[0]], end=1, width=1, max_length=3), ShapeError, "first has shape"),
    (
        lambda: beam_search(lambda _, s: (np.zeros((7, 3)), s), (), [0], end=1, width=1, max_length=3),
        ShapeError,
        r"logits of shape \(7, 3\), expected \(1, V\)",
    ),
    (
        lambda: beam_search(step, (), [0], end=1, width=1, max_length=9, length_penalty=700.0),
        ArgumentError,
        "length_penalty=700",
    ),
    (lambda: pad([np.asarray([1]), np.asarray([1.5])]), DTypeError, r"sequences\[1\] has dtype float64"),
    (lambda: Seq2Seq("abc", "xy", 4).translate("ab", max_length=2), DTypeError, "texts='ab'"),
    (lambda: Seq2Seq("abc", "xy", 4).batch("ab", ["x", "y"]), DTypeError, "sources='ab'"),
    (lambda: Seq2Seq("abc", "xy", 4, teacher_forcing="1"), DTypeError, "teacher_forcing='1'"),
    (lambda: CharLM("abc", 4).generate("a", 3, temperature="1"), DTypeError, "temperature='1'"),
    (lambda: CharLM("abc", 4).generate("a", 1.5), DTypeError, "length=1.5"),
    (lambda: Forecaster(3, 4, std=1e-50, rng=0), ArgumentError, "std=1e-50 must be above"),
    (lambda: Forecaster(3, 4, mean=1e39, rng=0)(X.astype("float32")), ArgumentError, "do not fit float32"),
    (lambda: Forecaster(3, 4, **HOW).loss(X, X[..., :2]), ShapeError, r"targets has shape \(2, 2, 2\)"),
    (lambda: Forecaster(3, 4, **HOW)(None), DTypeError, "x must be an array"),
    (lambda: SequenceClassifier(3, 4, 2, **HOW)((X, [1, 2], 3)), ArgumentError, "a tuple of 3"),
]


@pytest.mark.parametrize(("call", "error", "message"), NONSENSE)
def test_nonsense_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_language_model_must_not_see_the_future():
    model = CharLM("abc", 4, 1, rng=0)
    model.lstm = xplstm.LSTM(4, 2, bidirectional=True)
    for call in (lambda: model(IDS), lambda: model.loss_vjp(IDS, TARGETS), lambda: model.generate("a", 2)):
        with pytest.raises(ArgumentError, match="one direction"):
            call()


def test_windows_of_numpy_share_the_memory_of_the_series():
    series = np.arange(12.0).reshape(6, 2)
    inputs, targets = windows(series, 3)
    assert np.shares_memory(inputs, series)
    assert np.shares_memory(targets, series)
    assert not inputs.flags.writeable


def test_a_repr_shows_sizes_and_options():
    assert repr(xplstm.Linear(3, 2, bias=False)) == "Linear(3, 2, bias=False)"
    assert repr(xplstm.Embedding(3, 2)) == "Embedding(3, 2)"
    assert repr(xplstm.Dropout(0.5)) == "Dropout(0.5)"
    assert repr(SequenceClassifier(3, 4, 2)) == (
        "SequenceClassifier(lstm=LSTM(3, 4, num_layers=1), linear=Linear(4, 2))"
    )


def decoded(first=(0,), state=(), results=None):
    """Search with a step that returns `results`, or logits and the state that it got."""

    def step(tokens, before):
        return (np.zeros((len(tokens), 2)), before) if results is None else results

    return beam_search(step, state, first, end=1, width=2, max_length=3)


LOGITS = np.zeros((1, 2))
NOT_ARRAYS = [
    (lambda: decoded(first=[[1, 2], [3]]), DTypeError, r"first=\[\[1, 2\], \[3\]\] must be integers"),
    (lambda: decoded(state=(1, 2)), DTypeError, r"state\[0\] must be an array"),
    (lambda: decoded(state=(np.zeros(3),)), ShapeError, r"state\[0\] has shape \(3,\), expected \(rows, B"),
    (lambda: decoded(results=LOGITS), DTypeError, r"step must return \(logits, state\), got ndarray"),
    (lambda: decoded(results=(LOGITS, None)), DTypeError, "the state that step returned must be a tuple"),
    (
        lambda: decoded(results=(LOGITS, (3,))),
        DTypeError,
        r"that step returned\[0\] must be an array",
    ),
    (lambda: decoded(results=(LOGITS, (X,))), ShapeError, r"has shape \(2, 2, 3\), expected \(rows, 1, "),
    (lambda: Forecaster(3, 4).forecast(WithFuture(X, 3), 1), DTypeError, "future must be an array"),
    (lambda: Forecaster(3, 4).count([1], X), DTypeError, "inputs must be an array"),
    (lambda: CharLM("abc", 4).count(IDS, 3), DTypeError, "targets must be an array"),
    (lambda: Seq2Seq("abc", "xy", 4).count(IDS, 3), DTypeError, "targets must be an array"),
    (lambda: SequenceClassifier(3, 4, 3).count(X, 3), DTypeError, "targets must be an array"),
]


@pytest.mark.parametrize(("call", "error", "message"), NOT_ARRAYS)
def test_what_is_no_array_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_step_may_return_lists():
    def step(tokens, before):
        return [np.zeros((len(tokens), 2)), list(before)]

    found = beam_search(step, (np.zeros((1, 1, 2)),), [0], end=1, width=2, max_length=3)
    assert [len(row) for row in found] == [2]
