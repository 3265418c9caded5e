"""Compare complete models in ONNX Runtime with this package, at every batch size and length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import settled
from tests.support.modelcases import replace_networks
from xplstm import ArgumentError, _array
from xplstm.io import onnx
from xplstm.models import CharLM, Forecaster, Ragged, Seq2Seq, SequenceClassifier, WithFuture

SIZES = [(1, 1), (7, 1), (4, 3), (2, 5)]
MODELS = {
    "CharLM": lambda: CharLM("abcd", 5, 2, embedding_dim=3, rng=1),
    "classifier": lambda: SequenceClassifier(3, 5, 4, 2, bidirectional=True, rng=1),
    "one direction": lambda: SequenceClassifier(3, 5, 4, rng=1),
    "each step": lambda: SequenceClassifier(3, 5, 4, bidirectional=True, each_step=True, rng=1),
    "mean": lambda: SequenceClassifier(3, 5, 4, 2, bidirectional=True, pooling="mean", rng=1),
    "max": lambda: SequenceClassifier(3, 5, 4, pooling="max", task="regression", rng=1),
    **{
        f"ids, {pooling}": lambda pooling=pooling: SequenceClassifier(
            None, 5, 4, 2, vocab_size=4, padding_idx=1, bidirectional=True, pooling=pooling, rng=1
        )
        for pooling in ("last", "mean", "max")
    },
    "ids without padding": lambda: SequenceClassifier(None, 5, 4, vocab_size=4, each_step=True, rng=1),
    "direct": lambda: Forecaster(3, 5, horizon=4, targets=[2, 0], mean=[9, 0.1, -3], std=[5, 0.1, 1], rng=1),
    "quantiles": lambda: Forecaster(3, 5, horizon=2, quantiles=[0.1, 0.4, 0.5, 0.9], std=[5, 0.1, 1], rng=1),
    "one quantile": lambda: Forecaster(3, 5, horizon=1, targets=[1], quantiles=[0.4], rng=1),
    "Forecaster": lambda: Forecaster(3, 5, 2, mean=[10, 0.1, -3], std=[5, 0.01, 1], rng=1),
}


def session(model: Any, **options: Any) -> Any:
    ort = pytest.importorskip("onnxruntime")
    made = onnx.export(model, **options)
    import onnx as theirs

    theirs.checker.check_model(made, full_check=True)
    return ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def inputs_of(model: Any, T: int, B: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(T * 10 + B)
    if getattr(model, "embedding", None) is not None:
        return {"ids": rng.integers(0, 4, (T, B))}
    return {"x": rng.normal(size=(T, B, 3)).astype("float32")}


def state_of(model: Any, B: int) -> dict[str, np.ndarray]:
    rng, stack = np.random.default_rng(B), model.lstm._stack
    shape = (stack.num_layers * len(stack.reverse), B, stack.hidden_size)
    return {name: rng.normal(size=shape).astype("float32") for name in ("h_0", "c_0")}


def first(result: Any) -> np.ndarray:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_gives_the_numbers_of_the_model(name: str) -> None:
    model = MODELS[name]()
    runtime = session(model)
    for T, B in SIZES:
        given = inputs_of(model, T, B)
        (x,) = given.values()
        np.testing.assert_allclose(runtime.run(None, given)[0], first(model(x)), rtol=2e-5, atol=2e-6)
        state = state_of(model, B)
        found = runtime.run(None, given | state)[0]
        np.testing.assert_allclose(found, first(model(x, tuple(state.values()))), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "CharLM"])
def test_lengths_act_in_onnx_runtime_as_in_the_model(name: str) -> None:
    model = MODELS[name]()
    ((key, x),), lengths = inputs_of(model, 5, 4).items(), np.asarray([5, 0, 2, 1], dtype=np.int32)
    if key == "ids":
        x[2:, 2] = 77  # past the length
    found, *_ = session(model).run(None, {key: x, "lengths": lengths})
    np.testing.assert_allclose(found, first(model(Ragged(x, lengths))), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "CharLM"])
def test_prepare_runs_what_export_writes(name: str, xp: Any) -> None:
    pytest.importorskip("onnx")
    model, lengths = MODELS[name](), np.asarray([5, 0, 2, 1], dtype=np.int32)
    ((key, x),) = inputs_of(model, 5, 4).items()
    prepared = onnx.prepare(onnx.export(model), xp=xp.xp)
    given = {key: x if key == "ids" else xp.asarray(x), "lengths": lengths}
    found, *_ = prepared.run(given)
    want = first(model(Ragged(x, lengths)))
    np.testing.assert_allclose(_array.to_numpy(found), want, rtol=2e-5, atol=2e-6)


def test_prepare_reads_what_is_known_ahead(xp: Any) -> None:
    pytest.importorskip("onnx")
    model = Forecaster(3, 5, horizon=3, targets=[0], known=[2, 1], quantiles=[0.2, 0.5], rng=1)
    x, lengths = inputs_of(model, 5, 4)["x"], np.asarray([5, 0, 2, 1], dtype=np.int32)
    future = np.random.default_rng(1).normal(size=(3, 4, 2)).astype("float32")
    prepared = onnx.prepare(onnx.export(model), xp=xp.xp)
    found, *_ = prepared.run({"x": xp.asarray(x), "future": xp.asarray(future), "lengths": lengths})
    want, _ = model(WithFuture(Ragged(x, lengths), future))
    np.testing.assert_allclose(_array.to_numpy(found), want, rtol=2e-5, atol=2e-6)


def test_a_language_model_goes_on_from_its_state() -> None:
    model = MODELS["CharLM"]()
    runtime, ids = session(model), inputs_of(model, 6, 2)["ids"]
    _, h, c = runtime.run(["logits", "h_n", "c_n"], {"ids": ids[:4]})
    found = runtime.run(["logits"], {"ids": ids[4:], "h_0": h, "c_0": c})[0]
    np.testing.assert_allclose(found, model(ids)[0][4:], rtol=2e-5, atol=2e-6)


def test_softmax_gives_probabilities() -> None:
    model = MODELS["classifier"]()
    x = inputs_of(model, 4, 3)["x"]
    found = session(model, softmax=True).run(["probabilities"], {"x": x})[0]
    e = np.exp(model(x))
    np.testing.assert_allclose(found, e / e.sum(axis=-1, keepdims=True), rtol=2e-5, atol=2e-6)


def test_labels_have_probabilities_of_their_own() -> None:
    model = SequenceClassifier(3, 5, 4, task="multilabel", rng=1)
    x = inputs_of(model, 4, 3)["x"]
    found = session(model, softmax=True).run(["probabilities"], {"x": x})[0]
    np.testing.assert_allclose(found, model.predict_proba(x), rtol=2e-5, atol=2e-6)


def test_a_frozen_network_is_exported_as_the_network_is() -> None:
    pytest.importorskip("onnx")
    lstm = xplstm.LSTM(3, 4, 2, bidirectional=True, rng=0)
    assert onnx.export(lstm.freeze()) == onnx.export(lstm)


def test_parameters_come_from_every_backend(xp: Any) -> None:
    model = SequenceClassifier(3, 4, 2, xp=xp.xp, rng=0)
    x = xp.asarray(np.ones((3, 2, 3), dtype="float32"))
    (expected,) = settled([model(x)])
    found = session(model).run(["logits"], {"x": np.ones((3, 2, 3), dtype="float32")})[0]
    np.testing.assert_allclose(found, _array.to_numpy(expected), rtol=2e-5, atol=2e-6)


REFUSED = [
    (lambda: Seq2Seq("ab", "xy", 3), {}, "model must be .* got Seq2Seq"),
    (lambda: xplstm.Linear(3, 2), {}, "got Linear"),
    (lambda: None, {}, "got NoneType"),
    (lambda: {"a": 1}, {}, "got dict"),
    (lambda: xplstm.JordanRNN(3, 2, 1), {}, "is a JordanRNN"),
    (lambda: xplstm.LSTM(3, 2), {"softmax": True}, "needs a model with logits, got LSTM"),
    (lambda: Forecaster(1, 2), {"softmax": True}, "needs a model with logits, got Forecaster"),
    (
        lambda: SequenceClassifier(1, 2, 3, task="regression"),
        {"softmax": True},
        "needs a model with logits, got a SequenceClassifier with task='regression'",
    ),
    (
        lambda: SequenceClassifier(None, 2, 3, vocab_size=4, padding_idx=0, each_step=True),
        {},
        "each_step=True and padding_idx= has no ONNX graph",
    ),
    (lambda: CharLM("ab", 3, dtype="bfloat16"), {}, "has dtype bfloat16"),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED)
def test_what_has_no_graph_is_refused_by_name(make: Any, options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        onnx.export(make(), **options)


def test_a_model_whose_network_was_replaced_is_exported_with_it() -> None:
    model = MODELS["one direction"]()
    model.lstm = xplstm.LSTM(3, 5, variant=xplstm.Variant(peepholes=True, coupled=True), rng=3)
    x = inputs_of(model, 4, 3)["x"]
    np.testing.assert_allclose(session(model).run(None, {"x": x})[0], model(x), rtol=2e-5, atol=2e-6)
    model.lstm = xplstm.LSTM(3, 5, batch_first=True)
    with pytest.raises(ArgumentError, match="must be time-major"):
        onnx.export(model)


@pytest.mark.parametrize("network", [xplstm.GRU, xplstm.RNN])
@pytest.mark.parametrize("name", ["CharLM", "classifier", "mean", "ids, last", "direct"])
def test_a_model_with_another_network_is_exported(name: str, network: Any) -> None:
    model = replace_networks(MODELS[name](), network)
    runtime = session(model)
    for T, B in SIZES:
        given, h_0 = inputs_of(model, T, B), state_of(model, B)["h_0"]
        (x,) = given.values()
        np.testing.assert_allclose(runtime.run(None, given)[0], first(model(x)), rtol=2e-5, atol=2e-6)
        found = runtime.run(None, given | {"h_0": h_0})[0]
        np.testing.assert_allclose(found, first(model(x, h_0)), rtol=2e-5, atol=2e-6)
        if name != "CharLM":
            lengths = np.random.default_rng(T).integers(0, T + 1, B).astype("int32")
            found = runtime.run(None, given | {"lengths": lengths})[0]
            np.testing.assert_allclose(found, first(model(Ragged(x, lengths))), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("quantiles", [None, [0.2, 0.5, 0.7]])
def test_a_forecaster_reads_what_is_known_ahead(quantiles: Any) -> None:
    """The input future follows the last step of each entry, at any length."""
    options = {"horizon": 3, "targets": [0], "known": [2, 1], "quantiles": quantiles}
    model = Forecaster(3, 5, 2, mean=[9, 0.1, -3], std=[5, 0.1, 1], rng=1, **options)
    runtime = session(model)
    for T, B in SIZES:
        rng = np.random.default_rng(T)
        x, future = (rng.normal(size=(n, B, k)).astype("float32") for n, k in ((T, 3), (3, 2)))
        found = runtime.run(None, {"x": x, "future": future})[0]
        np.testing.assert_allclose(found, model(WithFuture(x, future))[0], rtol=2e-5, atol=2e-5)
        lengths = rng.integers(0, T + 1, B).astype("int32")
        found = runtime.run(None, {"x": x, "future": future, "lengths": lengths})[0]
        expected = model(WithFuture(Ragged(x, lengths), future))[0]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
