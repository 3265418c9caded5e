"""Define valid calls of every public function, with all arguments by name, for `nonsense`."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import xplstm
from xplstm import init, io, losses, models, optim, plots, testing, training
from xplstm.io import cell, columns, gates, layers

X = np.ones((3, 2, 3), "float32")
IDS = np.array([[0, 1], [1, 0], [0, 1]])
PLACE = {"xp": "numpy", "device": None, "dtype": "float32"}
SHAPES = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "bias_hh_l0": (8,)}
SIMPLE = {"weight_ih_l0": (2, 3), "weight_hh_l0": (2, 2), "bias_ih_l0": (2,), "bias_hh_l0": (2,)}
GATED = {"weight_ih_l0": (6, 3), "weight_hh_l0": (6, 2), "bias_ih_l0": (6,), "bias_hh_l0": (6,)}
FOLDER = tempfile.gettempdir()

Call = tuple[Callable[..., Any], dict[str, Any]]


def lstm(**options: Any) -> xplstm.LSTM:
    return xplstm.LSTM(3, 2, rng=0, **options)


def varied(**options: Any) -> xplstm.LSTM:
    """Use a variant, which checks its options."""
    return lstm(variant=xplstm.Variant(**options))


varied.__signature__ = inspect.signature(xplstm.Variant)  # type: ignore[attr-defined]


def one_layer() -> xplstm.LSTMParams:
    return layers.split(lstm().params)[0][0]


def state(count: int = 2) -> xplstm.LSTMState:
    return xplstm.LSTMState(np.ones((1, count, 2), "float32"), np.ones((1, count, 2), "float32"))


def member() -> xplstm.LSTMState:
    return xplstm.LSTMState(np.ones((1, 2), "float32"), np.ones((1, 2), "float32"))


def charlm() -> models.CharLM:
    return models.CharLM("ab", 2, rng=0)


def seq2seq() -> models.Seq2Seq:
    return models.Seq2Seq("ab", "xy", 2, rng=0)


def classifier() -> models.SequenceClassifier:
    return models.SequenceClassifier(3, 2, 2, rng=0)


def forecaster() -> models.Forecaster:
    return models.Forecaster(3, 2, rng=0)


def numbers() -> dict[str, np.ndarray]:
    return {"w": np.ones(3)}


def trainer() -> training.StatefulTrainer:
    made = training.StatefulTrainer(lstm(), optim.SGD(0.1))
    made.forward(X)
    return made


def beam(tokens: Any, carried: Any) -> tuple[np.ndarray, Any]:
    return np.zeros((len(tokens), 3)), carried


def take(carried: Any, rows: Any) -> Any:
    return carried


def checkpoint() -> training.Checkpoint:
    return training.Checkpoint(1, 0, 0, numbers(), {}, None, None, training.History([1.0], []), None, {})


def network(kind: type, **options: Any) -> dict[str, Callable[[], Call]]:
    """Return calls of a recurrent network and of its frozen copy."""
    sizes = {"input_size": 3, "hidden_size": 2} | ({"output_size": 2} if kind is xplstm.JordanRNN else {})

    def new() -> Any:
        return kind(**sizes, rng=0)

    rule = (
        init.lstm_uniform
        if kind is xplstm.LSTM
        else init.gru_uniform
        if kind is xplstm.GRU
        else init.rnn_uniform
    )
    name = kind.__name__
    return {
        name: lambda: (kind, sizes),
        f"{name}.__call__": lambda: (new(), {"x": X}),
        f"{name}.explain": lambda: (new().explain, {"x": X}),
        f"{name}.initialize": lambda: (new().initialize, {"rule": rule}),
        f"{name}.load_state_dict": lambda: (new().load_state_dict, {"state_dict": new().state_dict()}),
        f"{name}.step": lambda: (new().step, {"x_t": X[0]}),
        f"{name}.to": lambda: (new().to, {}),
        f"{name}.trace": lambda: (new().trace, {"x": X}),
        f"{name}.vjp": lambda: (new().vjp, {"x": X}),
    }


def frozen(name: str, new: Callable[[], Any]) -> dict[str, Callable[[], Call]]:
    return {
        f"{name}.__call__": lambda: (new(), {"x": X}),
        f"{name}.explain": lambda: (new().explain, {"x": X}),
        f"{name}.step": lambda: (new().step, {"x_t": X[0]}),
    }


def optimizer(kind: type) -> dict[str, Callable[[], Call]]:
    name = f"optim.{kind.__name__}"
    return {
        name: lambda: (kind, {"lr": 0.1}),
        f"{name}.load_state_dict": lambda: (kind(0.1).load_state_dict, {"state": kind(0.1).state_dict()}),
        f"{name}.update": lambda: (kind(0.1).update, {"params": numbers(), "grads": numbers()}),
        f"{name}.without_state": lambda: (kind(0.1).without_state, {"names": ["w"]}),
    }


def model(
    name: str, new: Callable[[], Any], sizes: dict[str, Any], good: dict[str, Any]
) -> dict[str, Callable[[], Call]]:
    kind = getattr(models, name)
    inputs, targets = good.values()
    first = next(
        iter(inspect.signature(kind.loss_vjp).parameters.keys() - {"self", "targets", "state", "rng"})
    )
    return {
        f"models.{name}": lambda: (kind, sizes),
        f"models.{name}.loss": lambda: (new().loss, good),
        f"models.{name}.loss_vjp": lambda: (new().loss_vjp, {first: inputs, "targets": targets}),
        f"models.{name}.load_state_dict": lambda: (new().load_state_dict, {"state_dict": new().state_dict()}),
        f"models.{name}.to": lambda: (new().to, {}),
    }


RULES = {
    **dict.fromkeys(
        ("lstm_uniform", "lstm_glorot_orthogonal", "lstm_glorot", "lstm_normal", "lstm_small_uniform"), SHAPES
    ),
    **{"gru_uniform": GATED, "rnn_uniform": SIMPLE, "rnn_glorot_orthogonal": SIMPLE},
}
LOGITS = np.zeros((3, 2, 4), "float32")
PREDICTED = {"pred": X, "target": X}
CALLS: dict[str, Callable[[], Call]] = {
    **network(xplstm.LSTM),
    **network(xplstm.GRU),
    **network(xplstm.RNN),
    **network(xplstm.JordanRNN),
    **frozen("FrozenLSTM", lambda: lstm().freeze()),
    **frozen("FrozenRNN", lambda: xplstm.RNN(3, 2, rng=0).freeze()),
    "Variant": lambda: (varied, {}),
    "Embedding": lambda: (xplstm.Embedding, {"num_embeddings": 3, "embedding_dim": 2}),
    "Embedding.__call__": lambda: (xplstm.Embedding(3, 2, rng=0), {"ids": IDS}),
    "Embedding.vjp": lambda: (xplstm.Embedding(3, 2, rng=0).vjp, {"ids": IDS}),
    "Embedding.load_state_dict": lambda: (
        xplstm.Embedding(3, 2).load_state_dict,
        {"state_dict": xplstm.Embedding(3, 2).params},
    ),
    "Embedding.to": lambda: (xplstm.Embedding(3, 2).to, {}),
    "Linear": lambda: (xplstm.Linear, {"in_features": 3, "out_features": 2}),
    "Linear.__call__": lambda: (xplstm.Linear(3, 2, rng=0), {"x": X}),
    "Linear.vjp": lambda: (xplstm.Linear(3, 2, rng=0).vjp, {"x": X}),
    "Linear.load_state_dict": lambda: (
        xplstm.Linear(3, 2).load_state_dict,
        {"state_dict": xplstm.Linear(3, 2).params},
    ),
    "Linear.to": lambda: (xplstm.Linear(3, 2).to, {}),
    "Dropout": lambda: (xplstm.Dropout, {"p": 0.5}),
    "Dropout.__call__": lambda: (xplstm.Dropout(0.5), {"x": X}),
    "Dropout.vjp": lambda: (xplstm.Dropout(0.5).vjp, {"x": X}),
    "lstm": lambda: (xplstm.lstm, {"x": X, "params": one_layer()}),
    "lstm_vjp": lambda: (xplstm.lstm_vjp, {"x": X, "params": one_layer()}),
    "LSTMState.take": lambda: (state().take, {"rows": [0]}),
    "LSTMState.reset": lambda: (state().reset, {"rows": [0]}),
    "LSTMState.zeros": lambda: (state().zeros, {"count": 2}),
    "LSTMState.concat": lambda: (xplstm.LSTMState.concat, {"states": [state(), state()]}),
    "LSTMState.stack": lambda: (xplstm.LSTMState.stack, {"states": [member(), member()]}),
    "use_backend": lambda: (xplstm.use_backend, {"name": "numpy"}),
    "use_kernel": lambda: (xplstm.use_kernel, {"name": None}),
    "use_threads": lambda: (xplstm.use_threads, {"count": None}),
    "init.uniform": lambda: (init.uniform, {"shape": (2, 3), "bound": 0.5}),
    "init.glorot_uniform": lambda: (init.glorot_uniform, {"shape": (2, 3)}),
    "init.orthogonal": lambda: (init.orthogonal, {"shape": (2, 3)}),
    "init.forget_bias": lambda: (init.forget_bias, {"rule": init.lstm_uniform}),
    **{f"init.{n}": lambda n=n, s=s: (getattr(init, n), {"shapes": s}) for n, s in RULES.items()},
    **optimizer(optim.SGD),
    **optimizer(optim.Adam),
    **optimizer(optim.AdamW),
    "optim.Group": lambda: (optim.Group, {"names": "w"}),
    "optim.Plateau": lambda: (optim.Plateau, {"lr": 0.1}),
    "optim.Plateau.__call__": lambda: (optim.Plateau(0.1), {"step": 1}),
    "optim.Plateau.report": lambda: (optim.Plateau(0.1).report, {"value": 1.0}),
    "optim.clip_by_global_norm": lambda: (optim.clip_by_global_norm, {"grads": numbers(), "max_norm": 1.0}),
    "optim.warmup_cosine": lambda: (optim.warmup_cosine, {"peak": 0.1, "warmup": 2, "total": 4}),
    "optim.one_cycle": lambda: (optim.one_cycle, {"peak": 0.1, "total": 4}),
    "losses.softmax_cross_entropy": lambda: (
        losses.softmax_cross_entropy,
        {"logits": LOGITS, "targets": IDS},
    ),
    "losses.binary_cross_entropy": lambda: (losses.binary_cross_entropy, {"logits": X, "targets": X}),
    "losses.ctc": lambda: (losses.ctc, {"logits": LOGITS, "targets": np.ones((2, 1), int)}),
    "losses.mse": lambda: (losses.mse, PREDICTED),
    "losses.mae": lambda: (losses.mae, PREDICTED),
    "losses.huber": lambda: (losses.huber, PREDICTED),
    "losses.quantile": lambda: (losses.quantile, PREDICTED | {"quantiles": 0.5}),
    **model("CharLM", charlm, {"vocab": "ab", "hidden_size": 2}, {"ids": IDS, "targets": IDS}),
    **model(
        "SequenceClassifier",
        classifier,
        {"input_size": 3, "hidden_size": 2, "num_classes": 2},
        {"x": X, "targets": np.array([0, 1])},
    ),
    **model("Forecaster", forecaster, {"features": 3, "hidden_size": 2}, {"x": X, "targets": X}),
    "models.Seq2Seq": lambda: (
        models.Seq2Seq,
        {"source_vocab": "ab", "target_vocab": "xy", "hidden_size": 2},
    ),
    "models.CharLM.__call__": lambda: (charlm(), {"ids": IDS}),
    "models.CharLM.encode": lambda: (charlm().encode, {"text": "ab"}),
    "models.CharLM.generate": lambda: (charlm().generate, {"prompt": "a", "length": 2}),
    "models.SequenceClassifier.__call__": lambda: (classifier(), {"x": X}),
    "models.SequenceClassifier.predict": lambda: (classifier().predict, {"x": X}),
    "models.SequenceClassifier.predict_proba": lambda: (classifier().predict_proba, {"x": X}),
    "models.SequenceClassifier of ids": lambda: (
        models.SequenceClassifier,
        {"input_size": None, "hidden_size": 2, "num_classes": 2, "vocab_size": 3},
    ),
    "models.Forecaster with a horizon": lambda: (
        models.Forecaster,
        {"features": 3, "hidden_size": 2, "horizon": 2},
    ),
    "models.windows with a horizon": lambda: (models.windows, {"series": X[:, 0], "size": 1, "horizon": 2}),
    "models.Forecaster.__call__": lambda: (forecaster(), {"x": X}),
    "models.Forecaster.forecast": lambda: (forecaster().forecast, {"x": X, "steps": 2}),
    "models.Forecaster.fit": lambda: (
        forecaster().fit,
        {"series": np.arange(60.0).reshape(20, 3), "window": 3, "updates": 1, "progress": False},
    ),
    "models.Forecaster.backtest": lambda: (
        forecaster().backtest,
        {"series": np.arange(60.0).reshape(20, 3), "window": 3, "start": 10, "steps": 2},
    ),
    "models.Seq2Seq.encode": lambda: (seq2seq().encode, {"text": "ab"}),
    "models.Seq2Seq.encode_target": lambda: (seq2seq().encode_target, {"text": "xy"}),
    "models.Seq2Seq.batch": lambda: (seq2seq().batch, {"sources": ["a"], "targets": ["x"]}),
    "models.Seq2Seq.translate": lambda: (seq2seq().translate, {"texts": ["a"], "max_length": 3}),
    "models.Seq2Seq.decode": lambda: (seq2seq().decode, {"source": IDS, "max_length": 3}),
    "models.one_hot": lambda: (models.one_hot, {"ids": IDS, "count": 2}),
    "models.pad": lambda: (models.pad, {"sequences": [X[0], X[1]]}),
    "models.windows": lambda: (models.windows, {"series": X[:, 0], "size": 1}),
    "models.sample": lambda: (models.sample, {"logits": LOGITS[0]}),
    "models.probabilities": lambda: (models.probabilities, {"logits": LOGITS[0]}),
    "models.beam_search": lambda: (
        models.beam_search,
        {"step": beam, "state": None, "first": [0], "end": 2, "width": 2, "max_length": 3},
    ),
    "training.Shards": lambda: (training.Shards, {"group": None, "count": 4, "batch_axis": 1}),
    "training.Streams": lambda: (training.Streams, {"ids": np.arange(13), "batch_size": 2, "steps": 3}),
    "training.Samples": lambda: (
        training.Samples,
        {"inputs": X, "targets": X, "batch_size": 1, "seed": 0, "block": 1, "batch_axis": 1, "prepare": None},
    ),
    "training.StatefulTrainer": lambda: (
        training.StatefulTrainer,
        {"lstm": lstm(), "optimizer": optim.SGD(0.1)},
    ),
    "training.StatefulTrainer.forward": lambda: (trainer().forward, {"x": X}),
    "training.StatefulTrainer.backward": lambda: (trainer().backward, {"dy": np.ones((3, 2, 2), "float32")}),
    "training.StatefulTrainer.reset_state": lambda: (trainer().reset_state, {}),
    "training.gradients_over": lambda: (
        training.gradients_over,
        {
            "network": lstm(),
            "chunks": [(X, np.zeros((3, 2, 2), "float32"))],
            "loss": losses.mse,
            "state": None,
            "dstate_n": None,
        },
    ),
    "training.fit": lambda: (
        training.fit,
        {
            "model": charlm(),
            "data": [(IDS, IDS)],
            "optimizer": optim.SGD(0.1),
            "updates": 1,
            "progress": False,
        },
    ),
    "training.save_checkpoint": lambda: (
        training.save_checkpoint,
        {"path": f"{FOLDER}/c.safetensors", "checkpoint": checkpoint()},
    ),
    "training.load_checkpoint": lambda: (training.load_checkpoint, {"path": "absent.safetensors"}),
    "testing.check_grad": lambda: (
        testing.check_grad,
        {"vjp": lstm(dtype="float64"), "arguments": {"x": X.astype("float64")}},
    ),
    "testing.quantisation_error": lambda: (testing.quantisation_error, {"lstm": lstm(), "x": X}),
    "LSTM.freeze": lambda: (lstm().freeze, {}),
    "plots.plot_history": lambda: (plots.plot_history, {"history": training.History([2.0, 1.0])}),
    "plots.plot_trace": lambda: (plots.plot_trace, {"trace": lstm().trace(X)}),
    "io.load": lambda: (io.load, {"source": lstm().state_dict()}),
    "io.load_with_call": lambda: (io.load_with_call, {"source": lstm().state_dict()}),
    "io.save": lambda: (io.save, {"path": f"{FOLDER}/w.safetensors", "network": lstm()}),
    "io.inspect": lambda: (io.inspect, {"source": lstm().state_dict()}),
    "io.arrays": lambda: (io.arrays, {"source": lstm().state_dict()}),
    "io.to_mapping": lambda: (io.to_mapping, {"network": lstm(), "format": "keras"}),
    "io.from_state": lambda: (io.from_state, {"state": [X[0], X[0]], "format": "keras"}),
    "io.to_state": lambda: (io.to_state, {"state": state(), "format": "keras"}),
    "io.gates.from_joined": lambda: (gates.from_joined, {"weights": gates.to_joined(one_layer())}),
    "io.gates.to_joined": lambda: (gates.to_joined, {"params": one_layer()}),
    "io.gates.from_parted": lambda: (gates.from_parted, {"weights": gates.to_parted(one_layer())}),
    "io.gates.to_parted": lambda: (gates.to_parted, {"params": one_layer()}),
    "io.columns.from_columns": lambda: (columns.from_columns, {"h": np.ones((2, 1)), "c": np.ones((2, 1))}),
    "io.columns.to_columns": lambda: (
        columns.to_columns,
        {"state": columns.from_columns(np.ones((2, 1)), np.ones((2, 1)))},
    ),
    "io.layers.split": lambda: (layers.split, {"params": lstm().params}),
    "io.layers.join": lambda: (layers.join, {"layers": layers.split(lstm().params)}),
    "io.layers.to_lstm": lambda: (layers.to_lstm, {"layers": layers.split(lstm().params)}),
    "io.cell.lstm_cell": lambda: (
        cell.lstm_cell,
        {
            "x": X[0],
            "state": (X[0, :, :2], X[0, :, :2]),
            "weight_ih": np.ones((8, 3), "float32"),
            "weight_hh": np.ones((8, 2), "float32"),
        },
    ),
}
