"""Check Seq2Seq against PyTorch, differences and all possible answers, and between backends."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xplstm
from tests.models.test_decoding import every_sequence
from tests.support.modelcases import check_gradients, check_same, check_torch, host, torch_copy
from xplstm import optim, training
from xplstm.cells import masks
from xplstm.models import Ragged, Seq2Seq

SOURCE, TARGET = "abcdef", "xyz"
S, U, B, H, E, V = 5, 4, 3, 6, 2, 4
SOURCE_LENGTHS, TARGET_LENGTHS = [2, 5, 0], [4, 1, 3]


def make(**options):
    return Seq2Seq(
        SOURCE, TARGET, H, **({"num_layers": 2, "embedding_dim": E, "dtype": "float64", "rng": 3} | options)
    )


def lively(**options):
    """Return a model with many different answers."""
    model = make(rng=2, **options)
    loud = ("encoder.weight", "decoder.weight", "linear.weight")
    model.params = {name: 8 * a if name.startswith(loud) else a for name, a in model.params.items()}
    return model


@pytest.fixture
def source(rng):
    return rng.integers(0, len(SOURCE), size=(S, B))


@pytest.fixture
def target(rng):
    return rng.integers(0, V, size=(U, B))


@pytest.fixture
def ragged(source, target):
    return Ragged(source, SOURCE_LENGTHS), Ragged(target, TARGET_LENGTHS)


@pytest.fixture
def state(rng):
    return tuple(rng.normal(size=(2, B, H)) for _ in "hc")


def in_torch(model):
    import torch

    return torch_copy(
        model,
        {
            "encoder_embedding": torch.nn.Embedding(len(SOURCE), E),
            "encoder": torch.nn.LSTM(E, H, 2),
            "decoder_embedding": torch.nn.Embedding(V, E),
            "decoder": torch.nn.LSTM(E, H, 2),
            "linear": torch.nn.Linear(H, V),
        },
    )


def test_logits_loss_and_gradients_are_those_of_torch(source, target, state, torch):
    model = make()
    theirs = in_torch(model)
    read = np.concatenate([np.full((1, B), V - 1), target[:-1]])
    _, between = theirs["encoder"](
        theirs["encoder_embedding"](torch.tensor(source)), tuple(torch.tensor(a) for a in state)
    )
    y, _ = theirs["decoder"](theirs["decoder_embedding"](torch.tensor(read)), between)
    logits = theirs["linear"](y)
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.tensor(target).reshape(-1))
    loss.backward()

    ours, our_between = model(source, target, state)
    np.testing.assert_allclose(ours, logits.detach(), atol=1e-12)
    np.testing.assert_allclose(our_between.h, between[0].detach(), atol=1e-12)
    our_loss, _, pullback = model.loss_vjp(source, target, state)
    assert float(our_loss) == pytest.approx(loss.item(), abs=1e-13)
    assert float(model.loss(source, target, state)[0]) == pytest.approx(loss.item(), abs=1e-13)
    check_torch(pullback, theirs)


@pytest.mark.slow
def test_gradients_of_ragged_batches_with_dropout_and_own_tokens_are_differences(ragged, state):
    check_gradients(
        lambda: make(dropout=0.3, teacher_forcing=0.5), lambda model: model.loss_vjp(*ragged, state, 5)
    )


def test_padding_changes_nothing(ragged):
    past = [np.arange(len(batch.x))[:, None] >= np.asarray(batch.lengths) for batch in ragged]
    strange = [Ragged(np.where(p, -9, b.x), b.lengths) for p, b in zip(past, ragged, strict=True)]
    for model in (make(), make(teacher_forcing=0.4)):
        check_same(host(model.loss_vjp(*strange, None, 1)), host(model.loss_vjp(*ragged, None, 1)))
    assert make().decode(strange[0], max_length=3) == make().decode(ragged[0], max_length=3)


def own_tokens(model, source, target, told):
    """Return the tokens that the decoder reads, from one run over the tokens so far for each step."""
    read = np.concatenate([np.full((1, B), V - 1), target[:-1]])
    for t in range(1, U):
        # The targets decide what is read one step later.
        logits, _ = model(source, np.concatenate([read[1 : t + 1], target[t:]])[:U])
        read[t] = np.where(told[t], read[t], logits[t - 1].argmax(axis=-1))
    return read


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_decoder_reads_what_the_coins_say(source, target, ratio):
    model, coins = lively(teacher_forcing=ratio), np.random.default_rng(12)
    masks.draw_key(coins)  # the encoder's, though it drops nothing
    told = coins.random((U, B)) < ratio
    read = own_tokens(model, source, target, told)
    if ratio < 1:
        assert (read != np.concatenate([np.full((1, B), V - 1), target[:-1]])).any()
    # The loss of these inputs and targets, put together by hand.
    _, between, _ = model.encoder.vjp(model.encoder_embedding(source))
    y, _ = model.decoder(model.decoder_embedding(read), between)
    expected = xplstm.losses.softmax_cross_entropy(model.linear(y), target)[0]
    loss, _, _ = model.loss_vjp(source, target, None, np.random.default_rng(12))
    assert float(loss) == pytest.approx(float(expected), abs=1e-13)


def test_without_a_generator_there_are_no_coins(source, target):
    with pytest.raises(xplstm.ArgumentError, match=r"teacher_forcing=0\.5 needs rng="):
        make(teacher_forcing=0.5).loss_vjp(source, target)
    assert float(make(teacher_forcing=0).loss_vjp(source, target)[0]) > 0


def test_teacher_forcing_can_be_set_between_updates(source, target):
    model = make()
    forced = float(model.loss_vjp(source, target, None, 1)[0])
    model.teacher_forcing = 0.0
    assert float(model.loss_vjp(source, target, None, 1)[0]) != forced
    assert float(model.loss(source, target)[0]) == pytest.approx(forced, abs=1e-14)
    with pytest.raises(xplstm.ArgumentError, match=r"teacher_forcing=1.1 must be in \[0, 1\]"):
        model.teacher_forcing = 1.1


def test_dropout_reaches_both_networks_and_the_linear_layer(source, target):
    for quiet in ("encoder", "decoder"):
        model, calm = make(dropout=0.5), make(dropout=0.0)
        model.dropout = xplstm.Dropout(0.0)
        setattr(model, quiet, getattr(calm, quiet))
        assert float(model.loss_vjp(source, target, None, 1)[0]) != float(calm.loss(source, target)[0])
    one = make(num_layers=1, dropout=0.5)
    assert float(one.loss_vjp(source, target, None, 1)[0]) != float(one.loss(source, target)[0])
    assert float(one.loss_vjp(source, target)[0]) == pytest.approx(float(one.loss(source, target)[0]))


def log_probabilities(model, source, lengths):
    """Return the log-probability of each answer of up to 3 tokens as a target, for each batch entry."""
    found = {}
    for tokens in (np.asarray(t) for t in every_answer(3)):
        target = np.tile(tokens[:, None], (1, B))
        logits, _ = model(Ragged(source, lengths), target)
        p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        found[tuple(tokens.tolist())] = np.take_along_axis(p, target[..., None], axis=-1)[..., 0].sum(axis=0)
    return found


def every_answer(max_length):
    """Return all sequences of this vocabulary, whose end token is 3 and not 2 as in `every_sequence`."""
    swapped = {2: 3, 3: 2}
    for tokens in every_sequence(max_length):
        yield tuple(swapped.get(token, token) for token in tokens)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_decoding_with_full_width_finds_the_best_of_all_answers(source, length_penalty):
    model = lively()
    found = model.decode(
        Ragged(source, SOURCE_LENGTHS), max_length=3, width=V**3, length_penalty=length_penalty
    )
    scores = {
        tokens: p / len(tokens) ** length_penalty
        for tokens, p in log_probabilities(model, source, SOURCE_LENGTHS).items()
    }
    for row, hypotheses in enumerate(found):
        best = max(scores, key=lambda tokens, row=row: scores[tokens][row])
        assert hypotheses[0].score == pytest.approx(scores[best][row], abs=1e-10)
        assert hypotheses[0].tokens + (3,) * hypotheses[0].ended == best


def test_decoding_reads_the_source_and_the_state(source, state):
    model = lively()
    found = model.decode(source, max_length=8)
    assert len({row[0].tokens for row in found}) > 1
    reached = model.encoder(model.encoder_embedding(source[:2]))[1]
    assert model.decode(source[2:], max_length=8, state=reached) == found
    assert model.decode(source[2:], max_length=8) != found


def test_every_backend_gives_the_same(xp, ragged, state):
    options = {"dropout": 0.3, "teacher_forcing": 0.5}
    ours, given = make(xp=xp.xp, **options), tuple(xp.asarray(a) for a in state)
    there = [Ragged(xp.asarray(batch.x), batch.lengths) for batch in ragged]
    check_same(host(ours.loss_vjp(*there, given, 2)), host(make(**options).loss_vjp(*ragged, state, 2)))


def test_every_backend_writes_the_same(xp):
    texts, how = ["abc", "", "fedcb"], {"max_length": 4, "width": 2, "length_penalty": 1.0}
    written = lively().translate(texts, **how)
    assert len(set(written)) == 3
    assert lively(xp=xp.xp).translate(texts, **how) == written


def test_a_batch_of_texts():
    model = make()
    source, target = model.batch(["abf", "d"], ["z", "xyx"])
    assert source.x.T.tolist() == [[0, 1, 5], [3, 0, 0]]
    assert source.lengths.tolist() == [3, 1]
    assert target.x.T.tolist() == [[2, 3, 0, 0], [0, 1, 0, 3]]
    assert target.lengths.tolist() == [2, 4]
    assert model.end == 3


def test_tokens_may_be_words():
    model = Seq2Seq(["guten", "Tag"], ["good ", "day"], 5, rng=0)
    source, target = model.batch([["guten", "Tag"]], [["good ", "day"]])
    training.fit(model, [(source, target)], optim.Adam(0.05), updates=40, progress=False)
    assert model.translate([["guten", "Tag"]], max_length=5) == ["good day"]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_it_learns_to_reverse(ratio):
    """The words have up to 3 of 4 letters; the guide checks many others."""
    words = ["".join(SOURCE[k] for k in word) for word in np.ndindex(4, 4, 4)]
    words += ["".join(SOURCE[k] for k in word) for word in np.ndindex(4, 4)]
    model = Seq2Seq("abcd", "abcd", 24, teacher_forcing=ratio, rng=0)
    batch = model.batch(words, [word[::-1] for word in words])
    training.fit(model, [batch], optim.Adam(0.02), updates=150, max_norm=1.0, rng=1, progress=False)
    for width in (1, 3):
        written = model.translate(words, max_length=5, width=width)
        assert np.mean([a == b[::-1] for a, b in zip(written, words, strict=True)]) > 0.99


def test_one_pair_without_an_axis_of_rows(source, target):
    model = make(teacher_forcing=0.5)
    np.testing.assert_allclose(
        model(source[:, 1], target[:, 1])[0], model(source, target)[0][:, 1], atol=1e-13
    )
    assert model.loss_vjp(source[:, 1], target[:, 1], None, 1)[2]().keys() == model.params.keys()


def test_decoding_nothing():
    assert make().decode(np.zeros((3, 0), dtype=int), max_length=4) == []


BAD = [
    (lambda: make().decode(np.zeros(3, int), max_length=4), xplstm.ShapeError, r"source has shape \(3,\)"),
    (lambda: Seq2Seq("", "x", H), xplstm.ArgumentError, "source_vocab='' must have at least 1 token"),
    (lambda: Seq2Seq("a", "xx", H), xplstm.ArgumentError, "target_vocab='xx' must have .* no token twice"),
    (lambda: make(teacher_forcing=-0.1), xplstm.ArgumentError, "teacher_forcing=-0.1"),
    (lambda: make(teacher_forcing=math.nan), xplstm.ArgumentError, "teacher_forcing=nan"),
    (lambda: make(dropout=1), xplstm.ArgumentError, "dropout=1"),
    (lambda: make().batch(["a"], []), xplstm.ArgumentError, "sources has 1 texts, but targets has 0"),
    (lambda: make().encode("ax"), xplstm.ArgumentError, "not in source_vocab: 'x'"),
    (lambda: make().encode_target("ax"), xplstm.ArgumentError, "not in target_vocab: 'a'"),
    (lambda: make().translate([], max_length=3), xplstm.ArgumentError, r"texts=\[\] must have at least 1"),
    (lambda: make().batch([], []), xplstm.ArgumentError, r"sources=\[\] must have at least 1"),
    (lambda: make().translate(["a"], max_length=0), xplstm.ArgumentError, "max_length=0"),
    (lambda: make().translate(["a"], max_length=3, width=0), xplstm.ArgumentError, "width=0"),
    (lambda: make().loss(np.full((2, 1), 9), np.zeros((2, 1), int)), xplstm.ArgumentError, "ids contains 9"),
    (
        lambda: make().loss(Ragged(np.zeros((2, 1)), [1]), np.zeros((2, 1), int)),
        xplstm.DTypeError,
        "source has",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
