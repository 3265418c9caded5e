"""Check the text form of layers, models, optimisers and runs."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import models, optim, training

SHOWN = {
    "LSTM": lambda: xplstm.LSTM(3, 2, 2, bidirectional=True, rng=0),
    "frozen": lambda: xplstm.LSTM(3, 2, 2, bidirectional=True, rng=0).freeze(),
    "GRU": lambda: xplstm.GRU(3, 2),
    "RNN": lambda: xplstm.RNN(3, 2),
    "frozen RNN": lambda: xplstm.RNN(3, 2).freeze(),
    "JordanRNN": lambda: xplstm.JordanRNN(3, 2, 2),
    "Linear": lambda: xplstm.Linear(3, 2, bias=False),
    "Embedding": lambda: xplstm.Embedding(3, 2),
    "CharLM": lambda: models.CharLM("abc", 4),
    "classifier": lambda: models.SequenceClassifier(None, 4, 2, vocab_size=5, padding_idx=0),
    "Forecaster": lambda: models.Forecaster(3, 2),
    "Seq2Seq": lambda: models.Seq2Seq("ab", "xy", 4),
}


def count(thing):
    if hasattr(thing, "params"):
        return sum(a.size for a in thing.params.values())
    return thing.nbytes // 4


@pytest.mark.parametrize("name", SHOWN)
def test_every_layer_and_model_counts_and_lists_its_parameters(name):
    thing = SHOWN[name]()
    assert thing.num_parameters == count(thing)
    first, head, *rows, total = thing.summary().splitlines()
    assert first == repr(thing)
    assert head.split()[-1] == "parameters"
    counts = [int(row.split()[-1].replace(",", "")) for row in rows]
    assert sum(counts) == thing.num_parameters == int(total.split()[-1].replace(",", ""))
    html = thing._repr_html_()
    assert html.count("<tr>") == len(rows) + 2
    assert html.count("<") == html.count(">")


def test_a_notebook_shows_no_markup_of_a_vocabulary():
    assert "<b>" not in models.Seq2Seq(["<b>"], "xy", 4)._repr_html_()


def test_dropout_has_no_parameters():
    assert xplstm.Dropout(0.5).num_parameters == 0


def test_an_optimiser_shows_its_options_and_its_state():
    adam = optim.AdamW(0.1, groups=[optim.Group("w", lr_scale=0.5)])
    assert repr(adam).startswith("AdamW(lr=0.1, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01")
    assert "groups=[Group(names=('w',)" in repr(adam)
    assert adam.num_parameters == 0
    adam.update({"w": np.ones((3, 4))}, {"w": np.ones((3, 4))})
    assert adam.num_parameters == 24
    assert adam.summary().splitlines()[-1].split() == ["total", "24"]


def test_a_run_is_shown_in_one_line():
    assert repr(training.History()) == "History(0 losses)"
    long = training.History([0.5] * 9999 + [0.25], [(0, 3.0), (7, 1.5), (9, 2.0)])
    assert repr(long) == ("History(10000 losses, the last 0.25; 3 validations, the best 1.5 at update 7)")


def results():
    """Return one of each public result that contains arrays, with its text."""
    x, lstm = np.ones((9, 4, 2), "float32"), xplstm.LSTM(2, 3, rng=0)
    series = models.Forecaster(2, 3, horizon=2, rng=0)
    gates = "float32[1, 9, 4, 3]"
    state = "LSTMState(h=float32[1, 4, 3], c=float32[1, 4, 3])"
    yield lstm(x)[1], state
    yield lstm.trace(x), f"LSTMTrace({', '.join(f'{gate}={gates}' for gate in 'ifgoch')})"
    yield xplstm.GRU(2, 3).trace(x), f"GRUTrace({', '.join(f'{gate}={gates}' for gate in 'rznh')})"
    yield models.Ragged(x, [1, 2]), "Ragged(x=float32[9, 4, 2], lengths=[1, 2])"
    yield models.Ragged(np.ones(2), [1, 2, 3, 4]), "Ragged(x=array([1., 1.]), lengths=[1, 2, 3, ...])"
    yield training.Streams(np.arange(30), 4, 2), "Streams(4 batches, batch_size=4, steps=2)"
    yield models.WithFuture(x, x[0]), "WithFuture(x=float32[9, 4, 2], future=float32[4, 2])"
    numbers = "origins=int64[8], forecasts=float64[8, 2, 2], happened=float64[8, 2, 2]"
    yield series.backtest(np.ones((29, 2)), 5, start=20), f"Backtest({numbers}, quantiles=None)"
    found = training.gradients_over(lstm, [(x, x[..., :1] * np.ones(3, "float32"))], xplstm.losses.mse)
    weights = "'bias_hh_l0': float32[12], 'bias_ih_l0': float32[12], 'weight_hh_l0': float32[12, 3]"
    text = f"loss=0.5, state={state}, dstate_0={state}, dparams={{{weights}, ...}}, dothers={{}}"
    yield found._replace(loss=0.5), f"Gradients({text})"


@pytest.mark.parametrize("number", range(9))
def test_a_result_shows_shapes_in_place_of_arrays(number):
    thing, text = list(results())[number]
    assert repr(thing) == text


def test_a_checkpoint_shows_its_place_and_few_of_its_numbers(tmp_path):
    model, path = models.CharLM("abcdefgh", 30, rng=0), tmp_path / "run.safetensors"
    batches = training.Streams(model.encode("abcdefgh" * 40), 4, 20)
    training.fit(model, batches, optim.Adam(0.1), updates=9, progress=False, checkpoint=path, rng=0)
    shown = repr(training.load_checkpoint(path))
    params = "params={'embedding.weight': float32[8, 30], "
    assert shown.startswith(f"Checkpoint(update=9, epoch=2, position=1, {params}")
    assert len(shown) < 1200
    assert "\n" not in shown
