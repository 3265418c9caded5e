"""Check sampling against its probabilities, and beam search against all sequences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import xplstm
from tests.support.cases import settled
from xplstm.models import beam_search, probabilities, sample

LOGITS = np.asarray([1.0, -1.0, 0.0, 2.0, -2.0, 0.5, -9.0])


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_probabilities_are_the_softmax_of_logits_over_temperature(temperature):
    p = probabilities(LOGITS, temperature=temperature)
    np.testing.assert_allclose(p, softmax(LOGITS / temperature), rtol=1e-14)


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-308, 1e-200, 1e-9, 1e-3])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_near_temperature_zero_the_likeliest_alone_is_left(temperature, dtype, rng):
    logits = rng.permuted(np.tile(LOGITS, (20, 1)), axis=1).astype(dtype)
    expected = (logits == logits.max(axis=1, keepdims=True)).astype(np.float64)
    np.testing.assert_array_equal(probabilities(logits, temperature=temperature), expected)
    drawn = sample(logits, temperature=temperature, rng=rng)
    np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


@pytest.mark.parametrize("size", [1e300, 1.7e308])
def test_huge_logits_overflow_nowhere(size):
    np.testing.assert_array_equal(probabilities(np.asarray([-size, size, 0.0])), [0, 1, 0])
    np.testing.assert_array_equal(probabilities(np.asarray([size, size]), temperature=1e-3), [0.5, 0.5])


def test_equal_logits_share_near_zero_and_the_first_is_taken_at_zero():
    logits = np.asarray([0.0, 3.0, 3.0])
    np.testing.assert_array_equal(probabilities(logits, temperature=1e-300), [0, 0.5, 0.5])
    np.testing.assert_array_equal(probabilities(logits, temperature=0), [0, 1, 0])


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_top_k_keeps_the_k_largest_in_proportion(k):
    p, whole = probabilities(LOGITS, top_k=k), softmax(LOGITS)
    kept = np.argsort(-LOGITS)[:k]
    np.testing.assert_allclose(p[kept], whole[kept] / whole[kept].sum(), rtol=1e-14)
    assert np.count_nonzero(p) == k
    assert p.sum() == pytest.approx(1, abs=1e-15)


def test_top_k_of_equal_logits_keeps_exactly_k_the_lower_first():
    np.testing.assert_array_equal(probabilities(np.zeros(5), top_k=2), [0.5, 0.5, 0, 0, 0])


@pytest.mark.parametrize("k", [7, 8, 1000])
def test_top_k_of_all_and_more_changes_nothing(k):
    np.testing.assert_allclose(probabilities(LOGITS, top_k=k), probabilities(LOGITS), rtol=1e-15)


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = np.log([0.05, 0.5, 0.15, 0.3])
    for top_p, kept in ((0.01, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [1, 3, 2])):
        p = probabilities(logits, top_p=top_p)
        assert sorted(np.nonzero(p)[0]) == sorted(kept), top_p
        np.testing.assert_allclose(p[kept], np.exp(logits[kept]) / np.exp(logits[kept]).sum())


def test_top_p_that_is_reached_exactly_keeps_no_further_token():
    np.testing.assert_array_equal(probabilities(np.zeros(4), top_p=0.5), [0.5, 0.5, 0, 0])


def test_top_p_of_one_keeps_even_what_rounding_would_lose():
    p = probabilities(np.asarray([0.0, -50.0, -60.0]), top_p=1)
    assert (p > 0).all()
    np.testing.assert_array_equal(p, probabilities(np.asarray([0.0, -50.0, -60.0])))
    np.testing.assert_array_equal(p, probabilities(np.asarray([0.0, -50.0, -60.0]), top_k=3, top_p=1))


def test_top_p_looks_at_what_top_k_has_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    # Of the first two 0.4 is 4/7, which reaches 0.5 but not 0.6.
    assert np.count_nonzero(probabilities(logits, top_k=2, top_p=0.5)) == 1
    assert np.count_nonzero(probabilities(logits, top_k=2, top_p=0.6)) == 2
    assert np.count_nonzero(probabilities(logits, top_p=0.5)) == 2


def test_top_p_looks_at_what_temperature_has_made():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert np.count_nonzero(probabilities(logits, temperature=0.2, top_p=0.8)) == 1 + (
        softmax(logits / 0.2)[0] < 0.8
    )
    assert np.count_nonzero(probabilities(logits, temperature=5, top_p=0.8)) == 4


def test_a_forbidden_token_is_never_drawn():
    logits = np.asarray([0.0, -math.inf, 0.0, -math.inf])
    assert set(sample(np.tile(logits, (500, 1)), rng=0)) == {0, 2}


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}])
def test_tokens_come_as_often_as_their_probability(how):
    n = 20000
    drawn = np.bincount(sample(np.tile(LOGITS, (n, 1)), rng=3, **how), minlength=7) / n
    p = probabilities(LOGITS, **how)
    assert (np.abs(drawn - p) <= 4 * np.sqrt(p * (1 - p) / n)).all()
    assert (drawn[p == 0] == 0).all()


def test_every_row_has_its_own_distribution():
    logits = np.where(np.eye(4)[:, None, :] > 0, 0.0, -np.inf) + np.zeros((4, 3, 4))
    np.testing.assert_array_equal(sample(logits, rng=0), np.arange(4)[:, None] + np.zeros((4, 3)))


class Constant(np.random.Generator):
    """Generator that always returns one number."""

    def __init__(self, number):
        super().__init__(np.random.PCG64(0))
        self.number = number

    def random(self, size=None):
        return np.full(size, self.number)


@pytest.mark.parametrize("tokens", [3, 7, 10, 49, 1000])
def test_the_ends_of_the_random_numbers_draw_the_first_and_the_last_possible_token(tokens):
    possible = np.full((2, tokens), 0.1)
    walled = np.pad(possible, ((0, 0), (1, 1)), constant_values=-math.inf)
    largest = np.nextafter(1.0, 0.0)
    for number, token in ((0.0, 0), (largest, tokens - 1)):
        assert sample(possible, rng=Constant(number)).tolist() == [token] * 2
        assert sample(walled, rng=Constant(number)).tolist() == [token + 1] * 2


def test_every_backend_draws_the_same(xp):
    logits = np.random.default_rng(4).normal(size=(50, 7))
    how = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "rng": 9}
    drawn = sample(xp.asarray(logits), **how)
    assert type(drawn) is np.ndarray
    np.testing.assert_array_equal(drawn, sample(logits, **how))


BAD_SAMPLING = [
    ({"temperature": -1e-9}, xplstm.ArgumentError, r"temperature=-1e-09 must be in \[0, inf\)"),
    ({"temperature": math.nan}, xplstm.ArgumentError, "temperature=nan"),
    ({"temperature": math.inf}, xplstm.ArgumentError, "temperature=inf"),
    ({"top_k": 0}, xplstm.ArgumentError, "top_k=0 must be at least 1"),
    ({"top_k": 1.5}, xplstm.DTypeError, "top_k=1.5 must be an integer"),
    ({"top_p": 0}, xplstm.ArgumentError, r"top_p=0 must be in \(0, 1\]"),
    ({"top_p": 1.1}, xplstm.ArgumentError, "top_p=1.1"),
    ({"top_p": math.nan}, xplstm.ArgumentError, "top_p=nan"),
]


@pytest.mark.parametrize(("how", "error", "message"), BAD_SAMPLING)
def test_bad_ways_to_sample_are_named(how, error, message):
    with pytest.raises(error, match=message):
        sample(LOGITS, **how)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    with pytest.raises(xplstm.ArgumentError, match=f"largest logit of a row is {bad}"):
        probabilities(np.asarray([[0.0, 1.0], [bad, 0.0]]))
    with pytest.raises(xplstm.ArgumentError, match="is -inf"):
        probabilities(np.full(3, -math.inf))


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_logits_without_tokens_are_refused(shape):
    with pytest.raises(xplstm.ArgumentError, match="last axis must have at least 1 element"):
        sample(np.zeros(shape))


V, END = 4, 2


class Chain:
    """Model whose next token depends on all earlier tokens through an LSTM, with sequence probabilities."""

    def __init__(self, backend=None, seed=0):
        where = {"xp": backend and backend.xp, "dtype": "float64", "rng": seed}
        self.embedding = xplstm.Embedding(V, 3, **where)
        self.lstm = xplstm.LSTM(3, 5, 2, **where)
        self.linear = xplstm.Linear(5, V, **where)
        for part, factor in ((self.lstm, 3.0), (self.linear, 5.0)):
            part.params = {name: factor * a for name, a in part.params.items()}
        self.asarray = backend.asarray if backend else np.asarray

    def step(self, tokens, state):
        y, state = self.lstm.step(self.embedding(self.asarray(tokens)), state)
        logits, *state = settled([self.linear(y), *state])
        return logits, tuple(state)

    def log_probability(self, tokens, h, c):
        """Return the log-probability of the tokens after the first one, computed for all steps at once."""
        y, _ = self.lstm(self.embedding(np.asarray([[t] for t in tokens[:-1]])), (h, c))
        logits = self.linear(y)[:, 0]
        z = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return sum(z[t, token] for t, token in enumerate(tokens[1:]))


@pytest.fixture
def state(rng):
    return tuple(rng.normal(size=(2, 3, 5)) for _ in "hc")


FIRST = [2, 0, 1]


def every_sequence(max_length):
    """Return all sequences that end, and all that are truncated."""
    others = [token for token in range(V) if token != END]
    for length in range(max_length):
        for tokens in itertools.product(others, repeat=length):
            yield (*tokens, END)
    yield from itertools.product(others, repeat=max_length)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_beam_of_full_width_finds_the_best_of_all_sequences(state, length_penalty, seed):
    chain, max_length = Chain(seed=seed), 4
    found = beam_search(
        chain.step,
        state,
        FIRST,
        end=END,
        width=V**max_length,
        max_length=max_length,
        length_penalty=length_penalty,
    )
    for row, hypotheses in enumerate(found):
        of_row = [a[:, row : row + 1] for a in state]
        scored = [
            (chain.log_probability((FIRST[row], *tokens), *of_row) / len(tokens) ** length_penalty, tokens)
            for tokens in every_sequence(max_length)
        ]
        scored.sort(reverse=True)
        assert len(hypotheses) == len(scored)
        for hypothesis, (score, tokens) in zip(hypotheses[:20], scored, strict=False):
            assert hypothesis.score == pytest.approx(score, abs=1e-10)
            ended = tokens[-1] == END
            assert hypothesis.ended == ended
            assert hypothesis.tokens == (tokens[:-1] if ended else tokens)


def greedy(chain, first, state, max_length):
    """Return the most probable token at each step."""
    tokens = [first]
    while len(tokens) <= max_length and (len(tokens) == 1 or tokens[-1] != END):
        logits, state = chain.step(np.asarray(tokens[-1:]), state)
        tokens.append(int(np.argmax(logits)))
    return tuple(tokens[1:])


def test_a_width_of_one_takes_the_likeliest_each_time(state):
    ways = set()
    for chain in (Chain(seed=seed) for seed in range(6)):
        found = beam_search(chain.step, state, FIRST, end=END, width=1, max_length=7)
        for row, (hypothesis,) in enumerate(found):
            tokens = greedy(chain, FIRST[row], tuple(a[:, row : row + 1] for a in state), 7)
            assert hypothesis.tokens + (END,) * hypothesis.ended == tokens
            ways.add((hypothesis.ended, len(set(tokens))))
    assert {ended for ended, _ in ways} == {True, False}
    assert max(different for _, different in ways) > 1


def test_a_wider_beam_finds_what_greedy_decoding_misses():
    """The most probable first token has no probable continuation."""
    with np.errstate(divide="ignore"):
        after = np.log([[0.4, 0.35, 0.25, 0], [0.02, 0.02, 0.96, 0], [1, 0, 0, 0], [0.55, 0.45, 0, 0]])
    search = {"end": 2, "max_length": 4}
    ((greedy,),) = beam_search(lambda t, s: (after[t], s), (), [3], width=1, **search)
    ((best, _),) = beam_search(lambda t, s: (after[t], s), (), [3], width=2, **search)
    assert greedy.tokens == (0, 0, 0, 0)
    assert not greedy.ended
    assert greedy.log_probability == pytest.approx(math.log(0.55 * 0.4**3))
    assert best.tokens == (1,)
    assert best.ended
    assert best.log_probability == pytest.approx(math.log(0.45 * 0.96))


def test_length_normalisation_turns_to_longer_sequences():
    """Ending at once has 0.4; three more tokens have 0.6 * 0.8 * 0.8 = 0.384, a better mean."""
    with np.errstate(divide="ignore"):
        after = np.log([[0, 0.8, 0.2], [0.8, 0, 0.2], [0.6, 0, 0.4]])
    found = {}
    for penalty in (0, 1):
        (found[penalty], *_), *_ = beam_search(
            lambda t, s: (after[t], s), (), [2], end=2, width=9, max_length=3, length_penalty=penalty
        )
    assert found[0].tokens == ()
    assert found[0].score == pytest.approx(math.log(0.4))
    assert found[1].tokens == (0, 1, 0)
    assert found[1].score == pytest.approx(math.log(0.384) / 3)


def test_every_backend_finds_the_same(xp, state):
    search = {"end": END, "width": 3, "max_length": 5, "length_penalty": 0.6}
    expected = beam_search(Chain().step, state, FIRST, **search)
    found = beam_search(Chain(xp).step, tuple(xp.asarray(a) for a in state), FIRST, **search)
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-12)


def test_the_search_stops_when_nothing_can_become_better():
    """After the first step, the best has half of the probability, and no other can reach it."""
    calls = []

    def step(tokens, state):
        calls.append(len(tokens))
        return np.log(np.tile([0.2, 0.3, 0.5], (len(tokens), 1))), state

    ((best,),) = beam_search(step, (), [0], end=2, width=1, max_length=50)
    assert best.tokens == ()
    assert calls == [1]
    ((best, second),) = beam_search(step, (), [0], end=2, width=2, max_length=50)
    assert (best.tokens, second.tokens) == ((), (1,))
    assert calls == [1, 1, 1]


def test_the_search_goes_on_while_a_longer_sequence_could_have_a_better_mean():
    """Two sequences have ended; the third is less probable than both, but certain from there on."""
    with np.errstate(divide="ignore"):
        after = np.log([[0, 0.55, 0, 0.45], [0, 0, 1, 0], [0, 0, 1, 0], [0.55, 0, 0, 0.45]])
    ((best, *_),) = beam_search(
        lambda t, s: (after[t], s), (), [3], end=3, width=2, max_length=4, length_penalty=1.0
    )
    assert best.tokens == (0, 1, 2, 2)
    assert best.score == pytest.approx(2 * math.log(0.55) / 4)


def test_the_search_goes_on_while_a_longer_sequence_could_be_among_the_best():
    """Two sequences have ended; the third is more probable than the second of them."""
    with np.errstate(divide="ignore"):
        after = np.log([[0, 0.7, 0.3], [0, 0.6, 0.4], [0.4, 0, 0.6]])
    ((first, second),) = beam_search(lambda t, s: (after[t], s), (), [2], end=2, width=2, max_length=3)
    assert (first.tokens, second.tokens) == ((), (0, 1, 1))
    assert second.log_probability == pytest.approx(math.log(0.4 * 0.7 * 0.6))


@pytest.mark.parametrize("kind", [tuple, list, lambda parts: xplstm.LSTMState(*parts)])
def test_a_step_can_return_its_state_in_each_kind(kind):
    def step(tokens, state):
        assert state[0].shape == (1, len(tokens), 2)
        return np.log([[0.3, 0.7]])[[0] * len(tokens)], kind([a + 1 for a in state])

    state = (np.zeros((1, 1, 2)), np.zeros((1, 1, 2)))
    ((best,),) = beam_search(step, state, [0], end=0, width=1, max_length=3)
    assert best.tokens == (1, 1, 1)


def test_the_first_token_can_be_the_end():
    ((best,),) = beam_search(lambda _, s: (np.log([[0.9, 0.1]]), s), (), [1], end=0, width=1, max_length=2)
    assert (best.tokens, best.ended) == ((), True)


def test_a_forbidden_token_is_in_no_sequence():
    """Two tokens are impossible, so only one sequence is found."""
    after = np.asarray([0.0, -math.inf, -math.inf])
    ((only,),) = beam_search(
        lambda t, s: (np.tile(after, (len(t), 1)), s), (), [0], end=2, width=3, max_length=2
    )
    assert only.tokens == (0, 0)
    assert only.score == 0


def test_the_largest_length_penalty_keeps_the_divisor_finite():
    search = {
        "step": lambda t, s: (np.zeros((len(t), 2)), s),
        "state": (),
        "first": [0],
        "end": 1,
        "width": 1,
    }
    for max_length, largest in ((1, 700), (2, 700), (10, 304), (1000, 101)):
        beam_search(max_length=max_length, length_penalty=largest, **search)
        with pytest.raises(xplstm.ArgumentError, match=r"length_penalty=.* must be in \[0, "):
            beam_search(max_length=max_length, length_penalty=largest + 1, **search)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2), (2, 2)])
def test_a_step_that_gives_logits_of_another_shape_is_refused(shape):
    with pytest.raises(xplstm.ShapeError, match=r"expected \(1, V\)"):
        beam_search(lambda _, s: (np.zeros(shape), s), (), [0], end=1, width=1, max_length=2)


BAD_SEARCH = [
    ({"width": 0}, "width=0 must be at least 1"),
    ({"max_length": 0}, "max_length=0 must be at least 1"),
    ({"length_penalty": -0.1}, r"length_penalty=-0.1 must be in \[0, "),
    ({"length_penalty": math.nan}, "length_penalty=nan"),
    ({"end": 4}, r"end=4 must be at most 3"),
    ({"end": -1}, "end=-1"),
]


@pytest.mark.parametrize(("how", "message"), BAD_SEARCH)
def test_bad_ways_to_search_are_named(how, message, state):
    search = {"end": END, "width": 2, "max_length": 3} | how
    with pytest.raises(xplstm.ArgumentError, match=message):
        beam_search(Chain().step, state, FIRST, **search)
