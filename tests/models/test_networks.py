"""Check models whose LSTM was replaced by a GRU, an RNN or a Jordan RNN, whose state is one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.modelcases import check_gradients, replace_networks
from xplstm import optim, training
from xplstm.models import CharLM, Forecaster, Ragged, Seq2Seq, SequenceClassifier

NETWORKS: dict[str, Any] = {
    "GRU": xplstm.GRU,
    "GRU, reset before": lambda *sizes, **where: xplstm.GRU(*sizes, reset_after=False, **where),
    "RNN": xplstm.RNN,
}
X = np.random.default_rng(0).normal(size=(5, 4, 3))
IDS = np.random.default_rng(1).integers(0, 4, (5, 4))


def make(kind: str, network: str, **options: Any) -> Any:
    where = {"dtype": "float64", "rng": 1} | options
    model = {
        "classifier": lambda: SequenceClassifier(3, 4, 3, 2, bidirectional=True, **where),
        "CharLM": lambda: CharLM("abcd", 4, 2, embedding_dim=3, **where),
        "Forecaster": lambda: Forecaster(3, 4, **where),
        "Seq2Seq": lambda: Seq2Seq("abcd", "wxyz", 4, **where),
    }[kind]()
    return replace_networks(model, NETWORKS[network])


@pytest.mark.parametrize("network", ["GRU", "RNN"])
@pytest.mark.slow
def test_gradients_through_the_last_state_are_differences(network: str) -> None:
    inputs, targets = Ragged(X, [5, 2, 1, 4]), np.asarray([0, 2, 1, 1])
    check_gradients(lambda: make("classifier", network), lambda model: model.loss_vjp(inputs, targets))


@pytest.mark.parametrize("network", ["GRU", "RNN"])
@pytest.mark.slow
def test_gradients_with_own_tokens_are_differences(network: str) -> None:
    check_gradients(
        lambda: make("Seq2Seq", network, teacher_forcing=0.5),
        lambda model: model.loss_vjp(IDS, IDS[::-1] % 4, None, 5),
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_a_classifier_reads_the_last_state_of_each_direction(network: str) -> None:
    model = make("classifier", network)
    y, h = model.lstm(X)
    np.testing.assert_allclose(model(X), model.linear(np.concatenate([h[-2], h[-1]], axis=-1)), atol=1e-12)
    np.testing.assert_allclose(h[-2], y[-1, :, :4], atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("width", [1, 3])
def test_a_translation_has_the_probability_of_its_tokens(network: str, width: int) -> None:
    model = make("Seq2Seq", network)
    for row, found in enumerate(model.decode(IDS, max_length=4, width=width)):
        for best in found:
            tokens = np.asarray([*best.tokens, *([model.end] if best.ended else [])])[:, None]
            logits, _ = model(IDS[:, row : row + 1], tokens)
            log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            said = np.take_along_axis(log_p[:, 0], tokens, axis=-1).sum()
            np.testing.assert_allclose(best.log_probability, said, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_text_and_forecasts_continue_from_a_state(network: str) -> None:
    model = make("Forecaster", network)
    _, state = model(X[:3])
    np.testing.assert_allclose(model.forecast(X[3:], 3, state), model.forecast(X, 3), atol=1e-12)
    text = make("CharLM", network)
    first, state = text(IDS[:2])
    following, _ = text(IDS[2:], state)
    np.testing.assert_allclose(np.concatenate([first, following]), text(IDS)[0], atol=1e-12)
    assert len(text.generate("ab", 6, rng=0)) == 6


@pytest.mark.backend("dask")
@pytest.mark.parametrize("network", NETWORKS)
def test_dask_gives_the_numbers_of_one_call(network: str) -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x = da.from_array(X, chunks=(2, 3, 3))
    classifier, forecaster = make("classifier", network), make("Forecaster", network)
    np.testing.assert_array_equal(classifier.predict(x).compute(), classifier.predict(X))
    np.testing.assert_allclose(forecaster.forecast(x, 3).compute(), forecaster.forecast(X, 3), atol=1e-12)
    _, state = forecaster(X)
    got = forecaster.forecast(x, 3, state).compute()
    np.testing.assert_allclose(got, forecaster.forecast(X, 3, state), atol=1e-12)


def test_a_checkpoint_of_a_gru_is_loaded(tmp_path: Any) -> None:
    model, path = make("classifier", "GRU, reset before"), tmp_path / "run.safetensors"
    data = [(X, np.asarray([0, 2, 1, 1]))]
    training.fit(model, data, optim.Adam(0.01), updates=3, checkpoint=path, progress=False)
    np.testing.assert_array_equal(SequenceClassifier.load(path)(X), model(X))


def _with(model, part, **options):
    old = getattr(model, part)
    setattr(model, part, xplstm.LSTM(old.input_size, old.hidden_size, rng=0, **options))
    return model


TWO_IDS = np.zeros((2, 2), dtype="int64")
ONES = np.ones((2, 2, 3), dtype="float32")


@pytest.mark.parametrize("option", [{"reverse": True}, {"bidirectional": True, "merge": "sum"}])
@pytest.mark.parametrize(
    ("part", "call"),
    [
        ("lstm", lambda change: change(CharLM("ab", 4))(TWO_IDS)),
        ("lstm", lambda change: change(Forecaster(3, 4))(ONES)),
        ("lstm", lambda change: change(Forecaster(3, 4)).loss(ONES, ONES)),
        ("lstm", lambda change: change(Forecaster(3, 4)).loss_vjp(ONES, ONES)),
        ("lstm", lambda change: change(Forecaster(3, 4, horizon=2)).forecast(ONES)),
        ("decoder", lambda change: change(Seq2Seq("ab", "xy", 4)).loss(TWO_IDS, TWO_IDS)),
        ("decoder", lambda change: change(Seq2Seq("ab", "xy", 4)).loss_vjp(TWO_IDS, TWO_IDS)),
        ("decoder", lambda change: change(Seq2Seq("ab", "xy", 4)).translate(["a"], max_length=2)),
    ],
)
def test_a_network_that_reads_later_steps_is_refused(part, call, option):
    with pytest.raises(xplstm.ArgumentError, match=f"{part}=.* must have one direction"):
        call(lambda model: _with(model, part, **option))


@pytest.mark.parametrize(
    ("part", "call"),
    [
        ("lstm", lambda change: change(SequenceClassifier(3, 4, 2)).predict(ONES)),
        ("lstm", lambda change: change(SequenceClassifier(3, 4, 2)).loss_vjp(ONES, TWO_IDS[0])),
        ("lstm", lambda change: change(Forecaster(3, 4))(ONES)),
        ("encoder", lambda change: change(Seq2Seq("ab", "xy", 4)).loss(TWO_IDS, TWO_IDS)),
        ("encoder", lambda change: change(Seq2Seq("ab", "xy", 4)).loss_vjp(TWO_IDS, TWO_IDS)),
    ],
)
def test_a_network_with_the_batch_first_is_refused(part, call):
    with pytest.raises(xplstm.ArgumentError, match=f"{part}=.*batch_first=False"):
        call(lambda model: _with(model, part, batch_first=True))
