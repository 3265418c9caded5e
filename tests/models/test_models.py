"""Check CharLM against PyTorch and differences, on every backend, and its generated text."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xplstm
from tests.support.cases import slopes
from xplstm import _array, losses
from xplstm.models import CharLM

VOCAB = "aäbc \n漢"
T, B, H, E = 5, 3, 6, 4


def make(**options):
    return CharLM(VOCAB, H, 2, embedding_dim=E, **({"dtype": "float64", "rng": 3} | options))


@pytest.fixture
def ids(rng):
    return rng.integers(0, len(VOCAB), size=(T, B))


@pytest.fixture
def targets(rng):
    return rng.integers(0, len(VOCAB), size=(T, B))


@pytest.fixture
def state(rng):
    return tuple(rng.normal(size=(2, B, H)) for _ in "hc")


def in_torch(model):
    """Return the same model, made of PyTorch layers."""
    import torch

    layers = {
        "embedding": torch.nn.Embedding(len(VOCAB), E),
        "lstm": torch.nn.LSTM(E, H, 2),
        "linear": torch.nn.Linear(H, len(VOCAB)),
    }
    whole = torch.nn.ModuleDict(layers).double()
    whole.load_state_dict({name: torch.tensor(a) for name, a in model.params.items()})
    return whole


def test_logits_loss_state_and_gradients_are_those_of_torch(ids, targets, state, torch):
    model = make()
    theirs = in_torch(model)
    y, (h_n, c_n) = theirs["lstm"](
        theirs["embedding"](torch.tensor(ids)), tuple(torch.tensor(a) for a in state)
    )
    their_logits = theirs["linear"](y)
    their_loss = torch.nn.functional.cross_entropy(
        their_logits.reshape(-1, len(VOCAB)), torch.tensor(targets).reshape(-1)
    )
    their_loss.backward()

    logits, ours = model(ids, state)
    np.testing.assert_allclose(logits, their_logits.detach(), atol=1e-12)
    loss, ours_again, pullback = model.loss_vjp(ids, targets, state)
    for a, b, expected in zip(ours, ours_again, (h_n, c_n), strict=True):
        np.testing.assert_allclose(a, expected.detach(), atol=1e-12)
        np.testing.assert_allclose(b, expected.detach(), atol=1e-12)
    assert float(loss) == pytest.approx(their_loss.item(), abs=1e-13)
    assert float(model.loss(ids, targets, state)[0]) == pytest.approx(their_loss.item(), abs=1e-13)
    gradients = pullback()
    assert gradients.keys() == model.params.keys()
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(gradients[name], parameter.grad, atol=1e-12, err_msg=name)


def test_gradients_through_dropout_are_those_of_the_same_masks(ids, targets, state):
    model = make(dropout=0.4)
    loss, _, pullback = model.loss_vjp(ids, targets, state, rng=5)
    gradients = pullback()
    assert float(loss) != float(model.loss(ids, targets, state)[0])
    assert float(loss) == float(model.loss_vjp(ids, targets, state, rng=5)[0])
    assert float(loss) != float(model.loss_vjp(ids, targets, state, rng=6)[0])
    for name in ("embedding.weight", "lstm.weight_hh_l0", "lstm.bias_ih_l1", "linear.weight", "linear.bias"):

        def loss_at(value, name=name):
            moved = make(dropout=0.4)
            moved.params = moved.params | {name: value}
            return float(moved.loss_vjp(ids, targets, state, rng=5)[0])

        said, expected = slopes(loss_at, model.params[name], gradients[name])
        np.testing.assert_allclose(said, expected, atol=1e-8, err_msg=name)


def test_dropout_reaches_between_the_layers_and_before_the_linear_one(ids, targets):
    """With one layer, only the second dropout acts; with linear weights of 0, only the first is invisible."""
    one = CharLM(VOCAB, H, 1, dropout=0.5, dtype="float64", rng=3)
    assert float(one.loss_vjp(ids, targets, rng=1)[0]) != float(one.loss(ids, targets)[0])
    two = make(dropout=0.5)
    two.dropout = xplstm.Dropout(0.0)
    assert float(two.loss_vjp(ids, targets, rng=1)[0]) != float(two.loss(ids, targets)[0])


def test_nothing_is_dropped_without_a_generator(ids, targets):
    model = make(dropout=0.5)
    assert float(model.loss_vjp(ids, targets)[0]) == pytest.approx(
        float(make().loss(ids, targets)[0]), abs=1e-14
    )


def test_every_backend_gives_the_same(xp, ids, targets, state):
    expected, ours = make(dropout=0.3), make(dropout=0.3, xp=xp.xp)
    given = tuple(xp.asarray(a) for a in state)
    loss, state_n, pullback = ours.loss_vjp(xp.asarray(ids), xp.asarray(targets), given, rng=2)
    reference, reference_n, reference_pullback = expected.loss_vjp(ids, targets, state, rng=2)
    assert float(loss) == pytest.approx(float(reference), abs=1e-13)
    for a, b in zip(state_n, reference_n, strict=True):
        np.testing.assert_allclose(_array.to_numpy(a), b, atol=1e-13)
    gradients, reference_gradients = pullback(), reference_pullback()
    for name, g in gradients.items():
        np.testing.assert_allclose(_array.to_numpy(g), reference_gradients[name], atol=1e-12, err_msg=name)


def test_unbatched_text(ids, targets):
    model = make()
    logits, (h_n, _) = model(ids[:, 0])
    assert logits.shape == (T, len(VOCAB))
    assert h_n.shape == (2, H)
    np.testing.assert_allclose(logits, model(ids)[0][:, 0], atol=1e-13)
    loss, _, pullback = model.loss_vjp(ids[:, 0], targets[:, 0])
    assert float(loss) == pytest.approx(float(losses.softmax_cross_entropy(logits, targets[:, 0])[0]))
    assert pullback().keys() == model.params.keys()


def test_parameters_are_flat_and_settable(ids):
    model, other = make(), make(rng=4)
    assert set(model.params) == {
        "embedding.weight",
        *(
            f"lstm.{name}_l{layer}"
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for layer in (0, 1)
        ),
        "linear.weight",
        "linear.bias",
    }
    assert model.params["embedding.weight"].shape == (len(VOCAB), E)
    assert model.params["linear.weight"].shape == (len(VOCAB), H)
    assert not np.array_equal(model(ids)[0], other(ids)[0])
    model.params = other.params
    assert np.array_equal(model(ids)[0], other(ids)[0])


def test_the_embedding_is_as_wide_as_the_lstm_unless_told_otherwise():
    assert CharLM("ab", 7, 1).params["embedding.weight"].shape == (2, 7)


def test_encode_numbers_the_characters(xp):
    model = CharLM(VOCAB, H, xp=xp.xp)
    ids = _array.to_numpy(model.encode("漢a\na"))
    assert ids.tolist() == [6, 0, 5, 0]
    assert _array.to_numpy(model.encode("")).shape == (0,)


def greedy(model, prompt, length):
    """Return the likeliest characters, each from a new run over the whole text."""
    text = prompt
    for _ in range(length):
        text += VOCAB[int(np.argmax(model(model.encode(text))[0][-1]))]
    return text[len(prompt) :]


@pytest.fixture
def opinionated():
    """Return a model whose successive logits differ clearly."""
    model = make(rng=5)
    model.params = {name: 6 * a for name, a in model.params.items()}
    return model


@pytest.mark.parametrize("temperature", [0, 1e-308, 1e-20, 1e-3])
def test_near_zero_the_likeliest_is_taken(opinionated, temperature):
    expected = greedy(opinionated, "ab", 12)
    assert len(set(expected)) > 1
    assert opinionated.generate("ab", 12, temperature=temperature, rng=0) == expected


@pytest.mark.slow
def test_characters_come_as_often_as_their_probability():
    model = make()
    logits = np.asarray([1.0, -1.0, 0.0, 2.0, -2.0, 0.5, -9.0])
    model.params = model.params | {"linear.weight": np.zeros((7, H)), "linear.bias": logits}
    for temperature in (0.5, 1.0, 3.0):
        text = model.generate("a", 2000, temperature=temperature, rng=1)
        p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        for character, probability in zip(VOCAB, p, strict=True):
            deviation = math.sqrt(probability * (1 - probability) / 2000)
            assert abs(text.count(character) / 2000 - probability) < 4 * deviation + 1e-3


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-9}, {"top_k": 1, "temperature": 50.0}])
def test_of_the_likeliest_alone_only_one_text_can_come(opinionated, how):
    assert opinionated.generate("ab", 12, **how, rng=0) == greedy(opinionated, "ab", 12)


def test_what_top_k_and_top_p_cut_off_is_never_written():
    model = make()
    bias = np.log([0.4, 0.05, 0.3, 0.1, 0.05, 0.05, 0.05])
    model.params = model.params | {"linear.weight": np.zeros((7, H)), "linear.bias": bias}
    assert set(model.generate("a", 300, rng=1)) == set(VOCAB)
    assert set(model.generate("a", 300, top_k=2, rng=1)) == {VOCAB[0], VOCAB[2]}
    assert set(model.generate("a", 300, top_p=0.75, rng=1)) == {VOCAB[0], VOCAB[2], VOCAB[3]}
    assert set(model.generate("a", 300, top_k=3, top_p=0.8, rng=1)) == {VOCAB[0], VOCAB[2]}


def test_parameters_are_saved_and_taken_over(xp, ids):
    other = make(xp=xp.xp, rng=4)
    other.load_state_dict(make().state_dict())
    logits = _array.to_numpy(other(xp.asarray(ids))[0])
    np.testing.assert_allclose(logits, make()(ids)[0], atol=1e-13)
    before = other.params
    with pytest.raises(
        xplstm.XplstmError, match=r"2 problem\(s\).*\n.*linear.bias is missing(.*\n)*.*w is unknown"
    ):
        other.load_state_dict({n: a for n, a in before.items() if n != "linear.bias"} | {"w": ids})
    assert other.to(xp="numpy", dtype="float32") is other
    assert {type(a) for a in other.params.values()} == {np.ndarray}


def test_a_conversion_that_fails_changes_no_layer():
    model = make(dtype="float64")
    model.params = model.params | {"linear.bias": np.full(len(VOCAB), 1e6)}
    before = model.params
    with pytest.raises(xplstm.ArgumentError, match=r"dtype='float16' cannot represent linear\.bias"):
        model.to(dtype="float16")
    assert all(a is before[name] for name, a in model.params.items())


def test_a_seed_decides_the_text_on_every_backend(xp, request):
    expected = make().generate("ba", 9, rng=7)
    assert make(xp=xp.xp).generate("ba", 9, rng=np.random.default_rng(7)) == expected
    assert make().generate("ba", 9, rng=8) != expected


def test_the_whole_prompt_is_read(opinionated):
    assert opinionated.generate("aaaa", 12, rng=7) != opinionated.generate("caca", 12, rng=7)


def test_writing_nothing():
    assert make().generate("a", 0, rng=0) == ""


BAD = [
    (lambda: CharLM("", H), "vocab='' must have at least 1 token"),
    (lambda: CharLM("aba", H), "vocab='aba' must have .* no token twice"),
    (lambda: CharLM("ab", 0), "hidden_size=0 must be at least 1"),
    (lambda: CharLM("ab", 3, dropout=1.0), "dropout=1.0"),
    (lambda: make().encode("abd"), "characters that are not in vocab: 'd'"),
    (lambda: make().generate("", 3), "prompt='' must have at least 1 character"),
    (lambda: make().generate("x", 3), "not in vocab: 'x'"),
    (lambda: make().generate("a", -1), "length=-1 must be at least 0"),
    (lambda: make().generate("a", 3, temperature=-0.1), r"temperature=-0.1 must be in \[0, inf\)"),
    (lambda: make().generate("a", 3, temperature=math.nan), "temperature=nan"),
    (lambda: make().generate("a", 3, top_k=0), "top_k=0 must be at least 1"),
    (lambda: make().generate("a", 0, top_p=0.0), r"top_p=0.0 must be in \(0, 1\]"),
    (lambda: setattr(make(), "params", {"linear.bias": np.zeros(7)}), "missing .*embedding.weight"),
    (lambda: setattr(make(), "params", make().params | {"w": np.zeros(7)}), r"unknown \['w'\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(xplstm.ArgumentError, match=message):
        call()


def test_a_vocabulary_of_characters_holds_single_characters() -> None:
    for vocab, kind, message in (
        (["a", "ab"], xplstm.ArgumentError, "contains 'ab'; each token must have exactly 1 character"),
        (["a", ""], xplstm.ArgumentError, "contains ''"),
        ([1, 2], xplstm.DTypeError, "contains 1, which is not a str"),
        (b"ab", xplstm.DTypeError, "must be a str or an iterable of str, got bytes"),
        (7, xplstm.DTypeError, "got int"),
        ("aa", xplstm.ArgumentError, "no token twice"),
    ):
        with pytest.raises(kind, match=message):
            xplstm.models.CharLM(vocab, 4)
    assert xplstm.models.CharLM((c for c in "ab"), 4, rng=0).vocab == ("a", "b")


def test_the_pullback_of_a_model_keeps_the_parameters_it_was_made_with() -> None:
    model = xplstm.models.CharLM("abc", 4, 1, dtype="float64", rng=0)
    _, _, pullback = model.loss_vjp(model.encode("abca"), model.encode("bcab"))
    want = pullback()
    model.params = {name: 2 * value for name, value in model.params.items()}
    for name, value in pullback().items():
        np.testing.assert_array_equal(value, want[name])


def test_lengths_of_a_target_are_checked() -> None:
    model = xplstm.models.Seq2Seq("abc", "xy", 6, rng=0)
    source, target = model.batch(["a"], ["x"])[0], np.asarray([[0], [2]])
    wrong = {5: r"lengths\[0\]=5 must be in \[0, T=2\]", -1: r"lengths\[0\]=-1", 1.7: "must contain integers"}
    for length, message in wrong.items():
        with pytest.raises(xplstm.XplstmError, match=message):
            model.loss(source, xplstm.models.Ragged(target, [length]))
