"""What layers, models, optimisers and runs show of themselves."""

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
