"""Check models and layers in files: loading keeps all bits, and inconsistent files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.modelcases import replace_networks
from xplstm import io, models, optim, training
from xplstm.io.files import safetensors

RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 4, 3)).astype("float32")
IDS = RNG.integers(0, 9, (6, 4))
SERIES = RNG.normal(size=(9, 2, 3)).astype("float32")


def seq2seq() -> models.Seq2Seq:
    return models.Seq2Seq(["ab", "c"], "xyz", 5, 2, embedding_dim=4, dropout=0.25, teacher_forcing=0.5, rng=1)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "CharLM": (
        lambda: models.CharLM("hélo w", 6, 2, embedding_dim=4, dropout=0.5, rng=1),
        lambda m: m(m.encode("hélo"))[0],
    ),
    "SequenceClassifier": (
        lambda: models.SequenceClassifier(3, 6, 4, 2, bidirectional=True, each_step=True, rng=1),
        lambda m: m(X.astype(m.params["linear.bias"].dtype)),
    ),
    "classifier of ids": (
        lambda: models.SequenceClassifier(
            None, 6, 3, vocab_size=9, embedding_dim=4, padding_idx=2, pooling="mean", task="multilabel",
            class_weights=[1, 0.1, 2], rng=1,
        ),
        lambda m: [m(IDS), m.predict_proba(IDS), m.loss(IDS, np.eye(3, dtype=int)[[0, 1, 2, 0]])],
    ),
    "classifier of numbers": (
        lambda: models.SequenceClassifier(3, 6, 2, pooling="max", task="regression", rng=1),
        lambda m: m.predict(X),
    ),
    "Forecaster": (
        lambda: models.Forecaster(3, 5, 2, mean=[0.1, -2.5, 1 / 3], std=[1.5, 1e-3, 7.0], rng=1),
        lambda m: m.forecast(SERIES, 4),
    ),
    "direct Forecaster": (
        lambda: models.Forecaster(
            3, 5, horizon=2, targets=[2], known=[0], quantiles=[0.1, 0.5], mean=[0.1, -2, 1 / 3], std=7, rng=1
        ),
        lambda m: m.forecast(models.WithFuture(SERIES, SERIES[:2, :, :1])),
    ),
    "Seq2Seq": (seq2seq, lambda m: m(m.encode(["ab", "c", "c"]), np.asarray([0, 2, 1]))[0]),
    "CharLM with a GRU": (
        lambda: replace_networks(models.CharLM("abcdefghi", 6, 2, rng=1), xplstm.GRU),
        lambda m: m(IDS)[0],
    ),
    "classifier with an RNN": (
        lambda: replace_networks(models.SequenceClassifier(3, 6, 4, bidirectional=True, rng=1), xplstm.RNN),
        lambda m: m(X),
    ),
    "Forecaster with a Jordan RNN": (
        lambda: replace_networks(
            models.Forecaster(3, 5, rng=1), lambda i, h, _, **options: xplstm.JordanRNN(i, h, h, **options)
        ),
        lambda m: m.forecast(SERIES, 4),
    ),
    "LSTM": (
        lambda: xplstm.LSTM(
            3, 5, 2, bidirectional=True, proj_size=2, merge="sum", batch_first=True, dropout=0.5, rng=1,
            variant=xplstm.Variant(peepholes=True, activations=(("hard_sigmoid", 0.2), "tanh", "relu")),
        ),
        lambda m: m(X)[0],
    ),
    "GRU": (lambda: xplstm.GRU(3, 5, 2, reset_after=False, rng=1), lambda m: m(X)[0]),
    "RNN": (lambda: xplstm.RNN(3, 5, nonlinearity="relu", bias=False, rng=1), lambda m: m(X)[0]),
    "JordanRNN": (lambda: xplstm.JordanRNN(3, 5, 2, dtype="float64", rng=1), lambda m: m(X.astype("f8"))[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_with_the_same_bits(name: str, tmp_path: Path) -> None:
    make, use = MODELS[name]
    model, path = make(), tmp_path / "model.safetensors"
    model.save(path)
    for again in (type(model).load(path), io.load_model(path)):
        assert type(again) is type(model)
        for ours, theirs in zip(use(again), use(model), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert {repr(a.dtype) for a in again.params.values()} == {
            repr(a.dtype) for a in model.params.values()
        }
        assert getattr(again, "config", again.__repr__)() == getattr(model, "config", model.__repr__)()


def test_a_model_is_opened_by_another_process(tmp_path: Path) -> None:
    model, path = models.CharLM("abc ", 6, 1, rng=3), tmp_path / "model.safetensors"
    model.save(path)
    code = f"import xplstm; print(xplstm.io.load_model({str(path)!r}).generate('ab', 20, rng=4), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert made == model.generate("ab", 20, rng=4)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_the_dtype_and_a_replaced_network_are_kept(dtype: str, tmp_path: Path) -> None:
    model, path = models.SequenceClassifier(3, 6, 4, rng=1, dtype=dtype), tmp_path / "model.safetensors"
    model.lstm = xplstm.LSTM(3, 6, variant=xplstm.Variant(cell_clip=0.5), dtype=dtype, rng=2)
    model.save(path)
    again = models.SequenceClassifier.load(path)
    assert repr(again.lstm) == repr(model.lstm)
    assert {a.dtype for a in again.params.values()} == {np.dtype(dtype)}
    assert repr(io.load(path, prefix="lstm")) == repr(model.lstm)


VARIANTS = (
    xplstm.Variant(peepholes=True, coupled=True),
    xplstm.Variant(layer_norm=True, cell_clip=0.5),
    xplstm.Variant(peepholes=True, layer_norm=True, activations=("hard_sigmoid", "tanh", "softsign")),
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_variant_with_more_parameters_is_kept(variant: xplstm.Variant, bias: bool, tmp_path: Path) -> None:
    model, path = models.SequenceClassifier(3, 6, 4, 2, bidirectional=True, rng=1), tmp_path / "m.safetensors"
    model.lstm = xplstm.LSTM(3, 6, 2, bidirectional=True, bias=bias, variant=variant, rng=2)
    model.save(path)
    again = models.SequenceClassifier.load(path)
    assert repr(again.lstm) == repr(model.lstm)
    np.testing.assert_array_equal(again(X), model(X))
    options = {"updates": 1, "progress": False, "checkpoint": tmp_path / "run.safetensors", "rng": 0}
    training.fit(model, [(X, np.asarray([0, 1, 0, 1]))], optim.Adam(0.1), **options)
    again = models.SequenceClassifier.load(tmp_path / "run.safetensors")
    np.testing.assert_array_equal(again(X), model(X))


@pytest.mark.parametrize("merge", ["sum", "mean", "product"])
def test_a_merge_between_layers_is_kept(merge: Any, tmp_path: Path) -> None:
    model, path = models.SequenceClassifier(3, 6, 4, 2, rng=1), tmp_path / "m.safetensors"
    model.lstm = xplstm.LSTM(3, 6, 2, bidirectional=True, merge=merge, rng=2)
    model.linear = xplstm.Linear(6, 4, rng=3)
    model.save(path)
    assert repr(models.SequenceClassifier.load(path).lstm) == repr(model.lstm)
    assert repr(io.load(model.lstm.params, merge=merge)) == repr(model.lstm)
    with pytest.raises(xplstm.ArgumentError, match=r"merge is not stored in the mapping, .*; pass merge="):
        io.load(model.lstm.params)


def test_every_backend_reads_a_model(xp: Any, tmp_path: Path) -> None:
    model, path = models.Forecaster(3, 5, mean=1.5, rng=1), tmp_path / "model.safetensors"
    model.save(path)
    again = models.Forecaster.load(path, xp=xp.xp)
    want, _ = model(SERIES)
    got, _ = again(xp.asarray(SERIES))
    np.testing.assert_allclose(xplstm._array.to_numpy(got), want, rtol=0, atol=1e-6)


def test_a_checkpoint_gives_the_model_as_fit_left_it(tmp_path: Path) -> None:
    model, path = models.SequenceClassifier(3, 4, 2, rng=1), tmp_path / "run.safetensors"
    targets = np.asarray([0, 1, 0, 1])
    scores = iter([3.0, 1.0, 2.0, 4.0])
    seen: list[dict[str, np.ndarray]] = []

    def validate() -> float:
        seen.append(dict(model.params))
        return next(scores)

    training.fit(
        model, [(X, targets)], optim.Adam(0.1), updates=9, validate=validate, validate_every=1, patience=2,
        checkpoint=path, progress=False,
    )  # fmt: skip
    point = training.load_checkpoint(path)
    np.testing.assert_array_equal(models.SequenceClassifier.load(point)(X), model(X))
    with pytest.raises(
        xplstm.FormatError, match="the checkpoint has the class SequenceClassifier, expected CharLM"
    ):
        models.CharLM.load(point)
    with pytest.raises(xplstm.FormatError, match=r"the checkpoint does not have the config\(\)"):
        io.load_model(point._replace(model=None))
    again = models.SequenceClassifier.load(path)
    for name, best in seen[1].items():
        np.testing.assert_array_equal(again.params[name], best)
        np.testing.assert_array_equal(model.params[name], best)
    np.testing.assert_array_equal(again(X), model(X))


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """Write a saved model again with a changed description and tensors."""
    contents = safetensors.read(str(path))
    tensors = {name: np.array(tensor.array()) for name, tensor in contents.tensors.items()}
    config = json.loads(contents.metadata["xplstm.model"])
    change(config, tensors)
    metadata = {"xplstm": json.dumps(config.get("networks", {})), "xplstm.model": json.dumps(config)}
    path.write_bytes(safetensors.pack(tensors, metadata))


WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "class": (
        lambda c, _: c.update({"class": "\x1b[31mNo" * 40}),
        r"model of class \\x1b\[31mNo.*does not have",
    ),
    "class of something else": (
        lambda c, _: c.update({"class": "Ragged"}),
        "which xplstm.models does not have",
    ),
    "no options": (lambda c, _: c.pop("options"), "must have the objects options and networks"),
    "option unknown": (lambda c, _: c["options"].update(depth=3), "options of CharLM: .*depth"),
    "option missing": (lambda c, _: c["options"].pop("vocab"), "options of CharLM: .*vocab"),
    "option of another type": (lambda c, _: c["options"].update(vocab=3), "vocab must be a str"),
    "dropout": (lambda c, _: c["options"].update(dropout=2), r"dropout|p=2 must be in \[0, 1\)"),
    "vocab too long": (
        lambda c, _: c["options"]["vocab"].append("z"),
        r"embedding.weight has shape \(3, 4\)",
    ),
    "tensor missing": (lambda _, t: t.pop("linear.weight"), "Linear"),
    "tensor too many": (lambda _, t: t.update(extra=np.ones(3)), "extra has shape"),
    "tensor of another shape": (
        lambda _, t: t.update({"linear.bias": np.ones(9, "f4")}),
        "Linear is invalid: .*bias has shape",
    ),
    "network cut": (lambda _, t: t.pop("lstm.bias_hh_l0"), "bias_hh_l0 is missing"),
    "network of another kind": (
        lambda _, t: [t.update({n: a[: 3 * 4]}) for n, a in list(t.items()) if n.startswith("lstm.")],
        "description of LSTM is invalid: it has the parameters of GRU",
    ),
    "options of another kind": (
        lambda c, _: c["networks"]["lstm"].update(reset_after=True),
        "it has the parameters of LSTM, but the options of GRU|reset_after",
    ),
    "network's options": (lambda c, _: c["networks"]["lstm"].update(merge=["sum"]), "lstm|LSTM"),
    "option of an embedding": (
        lambda c, _: c["networks"].update(embedding={"rng": 1}),
        "the description of Embedding is invalid: Embedding does not have the options .'rng'",
    ),
    "padding": (lambda c, _: c["networks"].update(embedding={"padding_idx": 3}), "padding_idx=3 must be at"),
    "networks no object": (lambda c, _: c.update(networks=[1]), "not a JSON object"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_with_the_path(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    path = tmp_path / "model.safetensors"
    models.CharLM("abc", 4, 1, rng=1).save(path)
    changed(path, change)
    with pytest.raises(xplstm.FormatError, match=message) as caught:
        models.CharLM.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert "\x1b" not in str(caught.value)


def networks_of(model: Any) -> dict[str, Any]:
    """Return the recurrent layers of a model by name."""
    return {name: part for name, part in vars(model).items() if isinstance(part, xplstm.nn.Recurrent)}


@pytest.mark.parametrize("name", [name for name in MODELS if hasattr(MODELS[name][0](), "config")])
def test_a_network_of_a_model_is_loaded_alone_with_its_options(name: str, tmp_path: Path) -> None:
    """An embedding with a padding id is no network; in a checkpoint, names start with a group."""
    model, path = MODELS[name][0](), tmp_path / "model.safetensors"
    point = training.Checkpoint(
        *(0, 0, 0, model.params, {"step": 0}, None, None, training.History(), model.params, {}),
        model=model.config(),
        settings={"run": "a"},
    )
    networks = networks_of(model)
    assert networks
    for part, network in networks.items():
        for start in ("", "params.", "best."):
            if start:
                training.save_checkpoint(path, point)
            else:
                model.save(path)
            loaded = io.load(path, prefix=f"{start}{part}")
            assert repr(loaded) == repr(network)
            assert all(np.array_equal(loaded.params[key], a) for key, a in network.params.items())


def test_averages_of_an_optimiser_are_no_network(tmp_path: Path) -> None:
    model, path = models.CharLM("ab", 3, dropout=0.5, rng=0), tmp_path / "run.safetensors"
    ids = np.asarray([[0, 1], [1, 0]])
    options = {"updates": 1, "progress": False, "checkpoint": path, "rng": 0}
    training.fit(model, [(ids, ids)], optim.Adam(0.1), **options)
    assert "optimizer.m.lstm.weight_ih_l0" in safetensors.read(str(path)).tensors
    alone = io.load(path, prefix="params.lstm")
    assert repr(alone) == repr(model.lstm) == "LSTM(3, 3, num_layers=2, dropout=0.5)"


@pytest.mark.parametrize("layer", [xplstm.LSTM(3, 2, rng=0), xplstm.GRU(3, 2, rng=0)])
def test_a_frozen_layer_is_not_saved(layer: Any, tmp_path: Path) -> None:
    with pytest.raises(xplstm.ArgumentError, match=r"got Frozen.*; pass the layer that was frozen"):
        io.save(tmp_path / "layer.safetensors", layer.freeze())


def test_a_model_is_not_loaded_as_its_network_without_a_prefix(tmp_path: Path) -> None:
    model, path = models.SequenceClassifier(3, 4, 2, rng=0), tmp_path / "model.safetensors"
    with pytest.raises(xplstm.ArgumentError, match=r"got SequenceClassifier; call its method save\(path\)"):
        io.save(path, model)  # type: ignore[arg-type]
    model.save(path)
    run = tmp_path / "run.safetensors"
    batch, options = (X, np.zeros(4, int)), {"updates": 1, "progress": False, "checkpoint": run}
    training.fit(model, [batch], optim.Adam(0.1), **options)
    for source in (path, run, path.read_bytes()):
        for load in (io.load, io.load_with_call):
            with pytest.raises(xplstm.ArgumentError, match="contains a whole model; call xplstm"):
                load(source)
    assert repr(io.load(path, prefix="lstm")) == repr(model.lstm)


def test_other_classes_endings_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    models.Forecaster(1, 4, rng=0).save(path)
    with pytest.raises(xplstm.FormatError, match="has the class Forecaster, expected CharLM; xplstm"):
        models.CharLM.load(path)
    with pytest.raises(xplstm.FormatError, match="has the class Forecaster, expected LSTM; xplstm"):
        xplstm.LSTM.load(path)
    for thing in (models.Forecaster(1, 4), xplstm.LSTM(1, 4)):
        with pytest.raises(xplstm.ArgumentError, match=r"must end in \.safetensors"):
            thing.save(tmp_path / "model.bin")
    path.write_bytes(b"nothing")
    with pytest.raises(xplstm.FormatError, match=r"model\.safetensors"):
        io.load_model(path)


def test_sizes_of_a_layer_can_be_read_and_not_set() -> None:
    lstm = xplstm.LSTM(3, 5, 2, bidirectional=True, dropout=0.5)
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers) == (3, 5, 2)
    assert (lstm.bidirectional, lstm.dropout, lstm.bias, lstm.batch_first) == (True, 0.5, True, False)
    with pytest.raises(AttributeError, match="dropout"):
        lstm.dropout = 0.9  # type: ignore[misc]
