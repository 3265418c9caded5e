"""Define calls of objects that public calls return and read: pullbacks, states, callbacks, models, files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

import xplstm
from tests.support.publiccalls import (
    FOLDER,
    IDS,
    LOGITS,
    PREDICTED,
    Call,
    X,
    charlm,
    classifier,
    forecaster,
    lstm,
    numbers,
    one_layer,
    seq2seq,
    state,
    trainer,
)
from xplstm import init, io, losses, models, optim, plots, training
from xplstm.io import columns, onnx

DY = np.ones((3, 2, 2), "float32")
STEP = np.ones((3, 1))
WIDE = {"x": STEP, "h_prev": np.ones((2, 1)), "c_prev": np.ones((2, 1))}
PARAMS = xplstm.LSTMParams(np.ones((8, 3)), np.ones((8, 2)), np.ones(8), np.ones(8))
TEXT = np.array([0, 1])
FILE = os.path.join(FOLDER, "nonsense.safetensors")
LAYERS = {
    "LSTM": lstm,
    "GRU": lambda: xplstm.GRU(3, 2, rng=0),
    "RNN": lambda: xplstm.RNN(3, 2, rng=0),
    "JordanRNN": lambda: xplstm.JordanRNN(3, 2, 2, rng=0),
}


# ---- Attributes that can be set.


def with_params(params: Any) -> Any:
    network = lstm()
    network.params = params
    return network(X)


def with_weight(weight: Any) -> Any:
    network = lstm()
    network.params["weight_hh_l0"] = weight
    return network.vjp(X)


def model_with_params(params: Any) -> Any:
    model = charlm()
    model.params = params
    return model(IDS)


def model_with_weight(weight: Any) -> Any:
    model = charlm()
    model.params = {**model.params, "linear.bias": weight}
    return model(IDS)


def with_rate(lr: Any) -> Any:
    made = optim.SGD(0.1)
    made.lr = lr
    return made.update(numbers(), numbers())


def scheduled(rate: Any) -> Any:
    return optim.SGD(lambda _: rate).update(numbers(), numbers())


def forcing(teacher_forcing: Any) -> None:
    seq2seq().teacher_forcing = teacher_forcing


def updated(param: Any, grad: Any) -> Any:
    return optim.Adam(0.1).update({"w": param}, {"w": grad})


def clipped(grad: Any) -> Any:
    return optim.clip_by_global_norm({"w": grad}, 1.0)


def loaded(step: Any, m: Any, v: Any) -> None:
    optim.Adam(0.1).load_state_dict({"step": step, "m.w": m, "v.w": v})


def loaded_weight(weight: Any) -> None:
    lstm().load_state_dict({**lstm().params, "bias_hh_l0": weight})


def of_params(weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
    return xplstm.lstm(X.astype("float64"), xplstm.LSTMParams(weight_ih, weight_hh, bias_ih, bias_hh))


def of_state(h: Any, c: Any) -> Any:
    return lstm()(X, (h, c))


def taken(h: Any, c: Any) -> Any:
    return xplstm.LSTMState(h, c).take([0])


def zeroed(h: Any, c: Any) -> Any:
    return xplstm.LSTMState(h, c).reset([0])


def joined(one: Any) -> Any:
    return xplstm.LSTMState.concat([state(), one])


def ruled(result: Any) -> None:
    lstm().initialize(lambda _shapes, _rng: result)


def stateful(state: Any) -> Any:
    made = trainer()
    made.reset_state()
    made.state = state
    return made.forward(X)


def forwarded(lengths: Any, mask: Any, reset: Any, rng: Any, checkpoint: Any) -> Any:
    return trainer().forward(X, lengths=lengths, mask=mask, reset=reset, rng=rng, checkpoint=checkpoint)


# ---- Values inside an argument of `fit`.


class Model:
    """Model of one parameter with one invalid return value."""

    def __init__(self, **answers: Any) -> None:
        self.params = {"w": np.ones(3)}
        self.answers = answers

    def loss_vjp(self, *_: Any) -> Any:
        good = {"loss": np.asarray(1.0), "state": None, "gradient": np.ones(3)} | self.answers
        given = good.get("gradients", {"w": good["gradient"]})
        whole = (good["loss"], good["state"], good.get("pullback", lambda: given))
        return good.get("answer", whole)


def run(model: Any, data: Any = ((1, 2), (1, 2)), **options: Any) -> Any:
    given = {"updates": 2, "progress": False} | options
    return training.fit(model, data, optim.SGD(0.1), **given)


def answered(answer: Any) -> Any:
    return run(Model(answer=answer))


def of_loss(loss: Any) -> Any:
    return run(Model(loss=loss))


def of_carried(state: Any) -> Any:
    return run(Model(state=state), carry=True)


def of_pullback(pullback: Any) -> Any:
    return run(Model(pullback=pullback))


def of_gradients(gradients: Any) -> Any:
    return run(Model(gradients=gradients))


def of_gradient(gradient: Any) -> Any:
    return run(Model(gradient=gradient))


def of_param(param: Any) -> Any:
    model = Model()
    model.params = {"w": param}
    return run(model)


def validated(value: Any) -> Any:
    return run(Model(), validate=lambda: value)


def of_batch(batch: Any) -> Any:
    return run(charlm(), [batch])


def of_epoch(epoch: Any) -> Any:
    return run(charlm(), lambda _: epoch)


def of_inputs(inputs: Any, targets: Any) -> Any:
    return run(charlm(), [(inputs, targets)])


def written(update: Any, epoch: Any, params: Any, optimizer: Any, state: Any, rng: Any) -> None:
    history = training.History([1.0], [])
    point = training.Checkpoint(update, epoch, 0, params, optimizer, state, rng, history, None, {})
    training.save_checkpoint(FILE, point)


def of_losses(losses: Any, validations: Any) -> Any:
    return plots.plot_history(training.History(losses, validations))


# ---- Models.


def ragged(x: Any, lengths: Any) -> Any:
    return classifier()(models.Ragged(x, lengths))


def ragged_ids(x: Any, lengths: Any) -> Any:
    return seq2seq().loss(models.Ragged(x, lengths), IDS)


def ragged_targets(x: Any, lengths: Any) -> Any:
    return seq2seq().loss(IDS, models.Ragged(x, lengths))


def searched(logits: Any, carried: Any) -> Any:
    return models.beam_search(lambda *_: (logits, carried), None, [0], end=2, width=1, max_length=2)


def saved_layer(path: Any) -> None:
    lstm().save(path)


def saved_model(path: Any) -> None:
    charlm().save(path)


def loaded_layer(path: Any, xp: Any, device: Any) -> Any:
    lstm().save(FILE)
    return xplstm.LSTM.load(path, xp=xp, device=device)


def loaded_model(path: Any, xp: Any, device: Any) -> Any:
    charlm().save(FILE)
    return models.CharLM.load(path, xp=xp, device=device)


def opened_model(path: Any, xp: Any, device: Any) -> Any:
    charlm().save(FILE)
    return io.load_model(path, xp=xp, device=device)


def of_tensor(weight: Any) -> Any:
    return io.load({**lstm().state_dict(), "bias_hh_l0": weight})


def pulled(vjp: Callable[[], Any], good: dict[str, Any]) -> Callable[[], Call]:
    """Return a call of the pullback, which is the last result of another call."""
    return lambda: (vjp()[-1], good)


def of_loss_function(name: str, given: dict[str, Any]) -> dict[str, Callable[[], Call]]:
    function = getattr(losses, name)
    return {f"losses.{name}.pullback": pulled(lambda: function(**given), {"dloss": 1.0})}


NEWLY = {"path": FILE, "xp": None, "device": None}
OPERATOR = {"X": X, "W": np.ones((1, 8, 3), "float32"), "R": np.ones((1, 8, 2), "float32")}
SIMPLE = {"X": X, "W": np.ones((1, 2, 3), "float32"), "R": np.ones((1, 2, 2), "float32")}


def exported() -> Any:
    return onnx.export(lstm())


CALLS: dict[str, Callable[[], Call]] = {
    **{
        f"{name}.vjp.pullback": pulled(lambda new=new: new().vjp(X), {"dy": DY})
        for name, new in LAYERS.items()
    },
    "lstm_vjp.pullback": pulled(lambda: xplstm.lstm_vjp(X, one_layer()), {"dy": DY}),
    "LSTM.vjp.pullback of checkpoints": pulled(lambda: lstm().vjp(X, checkpoint=2), {"dy": DY}),
    "Embedding.vjp.pullback": pulled(lambda: xplstm.Embedding(3, 2, rng=0).vjp(IDS), {"dy": DY}),
    "Linear.vjp.pullback": pulled(lambda: xplstm.Linear(3, 2, rng=0).vjp(X), {"dy": DY}),
    "Dropout.vjp.pullback": pulled(lambda: xplstm.Dropout(0.5).vjp(X, rng=0), {"dy": X}),
    "Dropout.vjp.pullback of nothing": pulled(lambda: xplstm.Dropout(0.5).vjp(X), {"dy": X}),
    **of_loss_function("softmax_cross_entropy", {"logits": LOGITS, "targets": IDS}),
    **of_loss_function("binary_cross_entropy", {"logits": X, "targets": X}),
    **of_loss_function("ctc", {"logits": LOGITS, "targets": np.ones((2, 1), int)}),
    **of_loss_function("mse", PREDICTED),
    **of_loss_function("mae", PREDICTED),
    **of_loss_function("huber", PREDICTED),
    **of_loss_function("quantile", PREDICTED | {"quantiles": 0.5}),
    "models.CharLM.pullback": pulled(lambda: charlm().loss_vjp(IDS, IDS), {"factor": 1.0}),
    "models.SequenceClassifier.pullback": pulled(lambda: classifier().loss_vjp(X, TEXT), {"factor": 1.0}),
    "models.Forecaster.pullback": pulled(lambda: forecaster().loss_vjp(X, X), {"factor": 1.0}),
    "models.Seq2Seq.pullback": pulled(lambda: seq2seq().loss_vjp(IDS, IDS), {"factor": 1.0}),
    "models.Seq2Seq.loss": lambda: (seq2seq().loss, {"source": IDS, "target": IDS}),
    "models.Seq2Seq.loss_vjp": lambda: (seq2seq().loss_vjp, {"inputs": IDS, "targets": IDS}),
    "models.Seq2Seq.load_state_dict": lambda: (
        seq2seq().load_state_dict,
        {"state_dict": seq2seq().state_dict()},
    ),
    "models.Seq2Seq.to": lambda: (seq2seq().to, {}),
    "models.Seq2Seq.teacher_forcing": lambda: (forcing, {"teacher_forcing": 0.5}),
    "LSTM.params": lambda: (with_params, {"params": lstm().params}),
    "LSTM.params of one": lambda: (with_weight, {"weight": lstm().params["weight_hh_l0"]}),
    "LSTM.load_state_dict of one": lambda: (loaded_weight, {"weight": lstm().params["bias_hh_l0"]}),
    "models.CharLM.params": lambda: (model_with_params, {"params": charlm().params}),
    "models.CharLM.params of one": lambda: (model_with_weight, {"weight": charlm().params["linear.bias"]}),
    "LSTMParams": lambda: (of_params, dict(zip(PARAMS._fields[:4], PARAMS[:4], strict=True))),
    "LSTMState": lambda: (of_state, state()._asdict()),
    "LSTMState.take of": lambda: (taken, state()._asdict()),
    "LSTMState.reset of": lambda: (zeroed, state()._asdict()),
    "LSTMState.concat of": lambda: (joined, {"one": state()}),
    "LSTM.initialize of": lambda: (ruled, {"result": init.lstm_uniform(lstm().shapes, 0)}),
    "init.forget_bias of": lambda: (init.forget_bias(init.lstm_uniform), {"shapes": lstm().shapes}),
    "optim.SGD.lr": lambda: (with_rate, {"lr": 0.1}),
    "optim.SGD of a schedule": lambda: (scheduled, {"rate": 0.1}),
    "optim.warmup_cosine.step": lambda: (optim.warmup_cosine(0.1, 2, 4), {"step": 1}),
    "optim.one_cycle.step": lambda: (optim.one_cycle(0.1, 4), {"step": 1}),
    "optim.Adam.update of one": lambda: (updated, {"param": np.ones(3), "grad": np.ones(3)}),
    "optim.clip_by_global_norm of one": lambda: (clipped, {"grad": np.ones(3)}),
    "optim.Adam.load_state_dict of": lambda: (loaded, {"step": 1, "m": np.ones(3), "v": np.ones(3)}),
    "training.StatefulTrainer.state": lambda: (stateful, {"state": None}),
    "training.StatefulTrainer.forward of": lambda: (
        forwarded,
        dict.fromkeys(("lengths", "mask", "reset", "rng", "checkpoint")),
    ),
    "training.Streams.item": lambda: (training.Streams(np.arange(13), 2, 3).__getitem__, {"index": 0}),
    "training.fit of an answer": lambda: (answered, {"answer": Model().loss_vjp(0, 0, 0, 0)}),
    "training.fit of a loss": lambda: (of_loss, {"loss": np.asarray(1.0)}),
    "training.fit of a state": lambda: (of_carried, {"state": None}),
    "training.fit of a pullback": lambda: (of_pullback, {"pullback": lambda: {"w": np.ones(3)}}),
    "training.fit of gradients": lambda: (of_gradients, {"gradients": {"w": np.ones(3)}}),
    "training.fit of a gradient": lambda: (of_gradient, {"gradient": np.ones(3)}),
    "training.fit of a parameter": lambda: (of_param, {"param": np.ones(3)}),
    "training.fit of a validation": lambda: (validated, {"value": 1.0}),
    "training.fit of a batch": lambda: (of_batch, {"batch": (IDS, IDS)}),
    "training.fit of an epoch": lambda: (of_epoch, {"epoch": [(IDS, IDS)]}),
    "training.fit of inputs": lambda: (of_inputs, {"inputs": IDS, "targets": IDS}),
    "training.save_checkpoint of": lambda: (
        written,
        {"update": 1, "epoch": 0, "params": numbers(), "optimizer": {}, "state": None, "rng": None},
    ),
    "plots.plot_history of": lambda: (of_losses, {"losses": [2.0, 1.0], "validations": []}),
    "models.Ragged": lambda: (ragged, {"x": X, "lengths": [1, 2]}),
    "models.Ragged of ids": lambda: (ragged_ids, {"x": IDS, "lengths": [1, 2]}),
    "models.Ragged of targets": lambda: (ragged_targets, {"x": IDS, "lengths": [1, 2]}),
    "models.beam_search of a step": lambda: (searched, {"logits": np.zeros((1, 3)), "carried": None}),
    "LSTM.save": lambda: (saved_layer, {"path": FILE}),
    "models.CharLM.save": lambda: (saved_model, {"path": FILE}),
    "LSTM.load": lambda: (loaded_layer, NEWLY),
    "models.CharLM.load": lambda: (loaded_model, NEWLY),
    "io.load_model": lambda: (opened_model, NEWLY),
    "io.load of a tensor": lambda: (of_tensor, {"weight": lstm().params["bias_hh_l0"]}),
    "io.columns.forward": lambda: (columns.forward, {**WIDE, "params": PARAMS}),
    "io.columns.forward_sequence": lambda: (
        columns.forward_sequence,
        {"X": np.ones((4, 3)), "params": PARAMS},
    ),
    "io.onnx.lstm": lambda: (onnx.lstm, OPERATOR),
    "io.onnx.lstm_vjp": lambda: (onnx.lstm_vjp, OPERATOR),
    "io.onnx.lstm_vjp.pullback": pulled(
        lambda: onnx.lstm_vjp(**OPERATOR), {"dY": np.ones((3, 1, 2, 2), "float32")}
    ),
    "io.onnx.rnn": lambda: (onnx.rnn, SIMPLE),
    "io.onnx.prepare": lambda: (onnx.prepare, {"model": exported()}),
    "io.onnx.Prepared.run": lambda: (onnx.prepare(exported()).run, {"inputs": [X]}),
    "io.onnx.run_model": lambda: (onnx.run_model, {"model": exported(), "inputs": [X]}),
    "io.onnx.export": lambda: (onnx.export, {"model": lstm()}),
    "io.onnx.supports_device": lambda: (onnx.supports_device, {"device": "CPU"}),
    "io.onnx.is_compatible": lambda: (onnx.is_compatible, {"model": exported()}),
}
