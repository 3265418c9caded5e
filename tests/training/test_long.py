"""Compare gradients chunk by chunk with those of one pass over the whole sequence."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import _dispatch, losses
from xplstm._array import to_numpy
from xplstm.kernels import native
from xplstm.training import Streams, gradients_over

ORDERED = not _dispatch.why_missing("native") and native.ISAS[native.ISA]
T, B, I, H = 29, 4, 3, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((T, B, I))
TARGETS = RNG.standard_normal((T, B, H))
VALID: dict[str, Any] = {
    "lengths": np.asarray([29, 0, 7, 18]),
    "mask": RNG.random((T, B)) < 0.7,
    "reset": RNG.random((T, B)) < 0.2,
}
NETWORKS: dict[str, Any] = {
    "LSTM": lambda **kw: xplstm.LSTM(I, H, **kw),
    "stack": lambda **kw: xplstm.LSTM(I, 6, 2, proj_size=H, **kw),
    "batch first": lambda **kw: xplstm.LSTM(I, H, 2, batch_first=True, **kw),
    "GRU": lambda **kw: xplstm.GRU(I, H, 2, **kw),
    "RNN": lambda **kw: xplstm.RNN(I, H, **kw),
    "Jordan": lambda **kw: xplstm.JordanRNN(I, 6, H, **kw),
}


def loss(y: Any, targets: Any) -> Any:
    return losses.mse(y, targets, reduction="sum")


def options_of(name: str, lo: int, hi: int, first: bool) -> dict[str, Any]:
    """Return the steps ``lo:hi`` of lengths, mask and reset."""
    if not name:
        return {}
    if name == "lengths":
        return {name: np.clip(VALID[name] - lo, 0, hi - lo)}
    return {name: VALID[name][lo:hi].T if first else VALID[name][lo:hi]}


def sizes(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return random chunk sizes, some of them zero."""
    cuts = np.sort(rng.integers(0, T + 1, size=rng.integers(0, 6)))
    bounds = [0, *cuts.tolist(), T]
    return list(itertools.pairwise(bounds))


def leaves(state: Any) -> list[Any]:
    return list(state) if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("valid", ["", *VALID])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradients_of_one_pass(name: str, valid: str) -> None:
    network = NETWORKS[name](dtype="float64", rng=1)
    first = network.batch_first
    x, targets = (a.swapaxes(0, 1) if first else a for a in (X, TARGETS))
    axis = 1 if first else 0
    _, state = network(x)  # any state that is not zeros
    y, end, pullback = network.vjp(x, state, **options_of(valid, 0, T, first))
    value, pull = loss(y, targets)
    _, dstate_0, dparams = pullback(pull(), state)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        chunks = []
        for lo, hi in sizes(rng):
            part = (slice(None),) * axis + (slice(lo, hi),)
            chunks.append((x[part], targets[part], options_of(valid, lo, hi, first)))
        got = gradients_over(network, chunks, loss, state, dstate_n=state)
        assert got.dparams.keys() == network.params.keys()
        assert got.dothers == {}
        np.testing.assert_allclose(got.loss, value, rtol=1e-13)
        for key, want in dparams.items():
            np.testing.assert_allclose(got.dparams[key], want, rtol=0, atol=1e-11, err_msg=key)
        for a, want in zip(leaves(got.dstate_0), leaves(dstate_0), strict=True):
            np.testing.assert_allclose(a, want, rtol=0, atol=1e-11)
        for a, want in zip(leaves(got.state), leaves(end), strict=True):
            np.testing.assert_allclose(a, want, rtol=0, atol=0 if ORDERED else 1e-13)


def test_every_backend(xp: Any) -> None:
    lstm = xplstm.LSTM(I, H, rng=1, xp=xp.xp, dtype="float64")
    x, targets = xp.asarray(X[:8]), xp.asarray(TARGETS[:8])
    y, _, pullback = lstm.vjp(x)
    _, pull = loss(y, targets)
    want = pullback(pull())[2]
    got = gradients_over(lstm, [(x[:3, ...], targets[:3, ...]), (x[3:, ...], targets[3:, ...])], loss)
    for key, a in want.items():
        assert type(got.dparams[key]) is type(a)
        np.testing.assert_allclose(to_numpy(got.dparams[key]), to_numpy(a), rtol=0, atol=1e-12)


def test_half_precision_is_rounded_once() -> None:
    lstm = xplstm.LSTM(I, H, dtype="float16", rng=1)
    x, targets = X.astype("float16"), TARGETS.astype("float16")
    y, end, pullback = lstm.vjp(x)
    want = pullback(losses.mse(y, targets)[1]())[2]

    def scaled(y: Any, targets: Any) -> Any:
        value, pull = losses.mse(y, targets, reduction="sum")
        return value, lambda: pull() / np.float16(TARGETS.size)

    got = gradients_over(lstm, [(x[k : k + 4], targets[k : k + 4]) for k in range(0, T, 4)], scaled)
    np.testing.assert_array_equal(got.state.c, end.c)
    for key, a in want.items():
        assert got.dparams[key].dtype == np.float16
        np.testing.assert_allclose(got.dparams[key], a, rtol=4e-3, atol=2e-5)
    with pytest.raises(xplstm.DTypeError, match="x has dtype float64, expected float16"):
        gradients_over(lstm, [(X, targets)], loss)


def test_a_head_and_an_embedded_stream() -> None:
    """Compute gradients of an additional layer, with chunks from `Streams`."""
    lstm, head = xplstm.LSTM(1, H, dtype="float64", rng=1), xplstm.Linear(H, 1, dtype="float64", rng=1)

    def judge(y: Any, targets: Any) -> Any:
        pred, head_pullback = head.vjp(y)
        value, pull = losses.mse(pred, targets[..., None], reduction="sum")
        return value, lambda: head_pullback(pull())

    series = RNG.standard_normal(41)
    chunks = [(x[..., None], after) for x, after in Streams(series, 2, 6)]
    got = gradients_over(lstm, chunks, judge)
    y, _, pullback = lstm.vjp(np.concatenate([x for x, _ in chunks]))
    dy, dhead = judge(y, np.concatenate([after for _, after in chunks]))[1]()
    for key, want in {**pullback(dy)[2], **dhead}.items():
        found = {**got.dparams, **got.dothers}[key]
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-11)


def test_a_loss_may_overwrite_its_gradients() -> None:
    """Write the gradients of every chunk with respect to the loss's parameter into the same array."""
    lstm = xplstm.LSTM(I, H, dtype="float64", rng=1)
    kept = np.zeros(1)

    def judge(y: Any, targets: float) -> Any:
        kept[:] = targets
        return 0.0, lambda: (np.zeros_like(y), {"scale": kept})

    got = gradients_over(lstm, [(X[:10], 1.0), (X[10:20], 2.0), (X[20:], 4.0)], judge)
    np.testing.assert_array_equal(got.dothers["scale"], [7.0])


class Twice:
    """Chunks with forward and backward iteration; the second reading may be shorter."""

    def __init__(self, chunks: list[Any], lost: int = 0) -> None:
        self.chunks, self.lost = chunks, lost

    def __iter__(self) -> Any:
        return iter(self.chunks)

    def __reversed__(self) -> Any:
        return reversed(self.chunks[self.lost :])


def test_chunks_are_read_by_iter_and_reversed() -> None:
    lstm = xplstm.LSTM(I, H, dtype="float64", rng=1)
    chunks = [(X[:9], TARGETS[:9]), (X[9:], TARGETS[9:])]
    want = gradients_over(lstm, chunks, loss)
    got = gradients_over(lstm, Twice(chunks), loss)
    for key, a in want.dparams.items():
        np.testing.assert_array_equal(got.dparams[key], a)
    with pytest.raises(xplstm.ArgumentError, match="chunks returned 2 chunks with iter and 1 with reversed"):
        gradients_over(lstm, Twice(chunks, 1), loss)


LSTM64 = xplstm.LSTM(I, H, dtype="float64", rng=1)
GOOD = [(X, TARGETS)]
REFUSED: dict[str, Any] = {
    "two directions": (
        xplstm.LSTM(I, H, bidirectional=True),
        GOOD,
        loss,
        "network has a reverse direction",
    ),
    "a frozen network": (LSTM64.freeze(), GOOD, loss, "network must be a recurrent layer.* got FrozenLSTM"),
    "a generator": (LSTM64, iter(GOOD), loss, "chunks must be a sequence of tuples .* got list_iterator"),
    "no chunk": (LSTM64, [], loss, "chunks is empty; at least 1"),
    "an array": (LSTM64, X, loss, r"chunks\[0\] must be \(x, targets\) or .* got ndarray"),
    "four items": (LSTM64, [(X, X, {}, 1)], loss, r"got tuple of 4"),
    "options": (LSTM64, [(X, TARGETS, {"rng": 1})], loss, r"options of chunks\[0\] .* got \[\"'rng'\"\]"),
    "a loss": (LSTM64, GOOD, lambda y, _: y, "loss must return .value, pullback., .* got ndarray"),
    "losses": (LSTM64, GOOD, lambda y, t: losses.mse(y, t, reduction="none"), r"a number of shape \(\)"),
    "no gradient": (LSTM64, GOOD, lambda *_: (0.0, lambda: None), "the gradient of loss must be an array"),
    "no function": (LSTM64, GOOD, 3, "loss=3 must be a function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    network, chunks, judge, message = REFUSED[name]
    with pytest.raises(xplstm.XplstmError, match=message):
        gradients_over(network, chunks, judge)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["mask", "lengths"])
def test_a_reset_after_the_last_step_of_a_chunk_is_refused(kind: str, batch_first: bool) -> None:
    lstm = xplstm.LSTM(1, 2, batch_first=batch_first, rng=0)
    x, mask = np.ones((4, 2, 1), "float32"), np.ones((4, 2), bool)
    mask[1, 1], reset = False, np.zeros((4, 2), bool)
    reset[1, 1] = True

    def chunk(k: int) -> Any:
        at = slice(k, k + 2)
        steps = {"mask": mask[at]} if kind == "mask" else {"lengths": mask[at].sum(0)}
        options = {"reset": reset[at], **steps}
        if batch_first:
            options = {name: a.T if a.ndim == 2 else a for name, a in options.items()}
        given = x[at].transpose(1, 0, 2) if batch_first else x[at]
        return given, np.zeros((*given.shape[:2], 2), "float32"), options

    with pytest.raises(
        xplstm.ArgumentError,
        match=r"reset of chunks\[0\] is True at step 1 of batch entry 1, after the last step",
    ):
        gradients_over(lstm, [chunk(0), chunk(2)], losses.mse)
    reset[1, 1], reset[2, 1] = False, True  # what the message says
    assert np.isfinite(gradients_over(lstm, [chunk(0), chunk(2)], losses.mse).loss)


def test_chunks_may_be_read_into_one_buffer() -> None:
    lstm = xplstm.LSTM(1, 2, rng=0)
    x = np.random.default_rng(0).standard_normal((6, 1, 1), dtype="float32")
    zeros = np.zeros((2, 1, 2), "float32")

    class Reused:
        buffer = np.empty((2, 1, 1), "float32")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, k: int) -> Any:
            self.buffer[:] = x[2 * k : 2 * k + 2]
            return self.buffer, zeros

        def __iter__(self) -> Any:
            return (self[k] for k in range(3))

        def __reversed__(self) -> Any:
            return (self[k] for k in (2, 1, 0))

    found = gradients_over(lstm, Reused(), losses.mse)
    right = gradients_over(lstm, [(x[k : k + 2], zeros) for k in (0, 2, 4)], losses.mse)
    assert found.loss == right.loss
    for name, a in right.dparams.items():
        np.testing.assert_array_equal(found.dparams[name], a)


@pytest.mark.parametrize("network", [xplstm.LSTM, xplstm.GRU])
def test_chunks_that_change_between_the_readings_are_refused(network: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 2, 3)).astype("float32")

    class Noisy(list[Any]):
        def __getitem__(self, k: Any) -> Any:
            inputs, targets = super().__getitem__(k)
            return inputs + 0.01 * rng.standard_normal(inputs.shape).astype("float32"), targets

        def __iter__(self) -> Any:
            return (self[k] for k in range(len(self)))

        def __reversed__(self) -> Any:
            return (self[k] for k in reversed(range(len(self))))

    layer = network(3, 4, rng=0)
    chunks = [(x[k : k + 4], np.zeros((4, 2, 4), dtype="float32")) for k in (0, 4, 8)]
    gradients_over(layer, chunks, losses.mse)
    with pytest.raises(xplstm.ArgumentError, match=r"chunks\[1\] gives another final state at the second"):
        gradients_over(layer, Noisy(chunks), xplstm.losses.mse)
