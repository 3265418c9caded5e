"""Uses of the public face: the type checker must report each line that ends in `# wrong`, and no other."""

from __future__ import annotations

from typing import assert_type

import numpy as np

import xplstm
from xplstm import io, models, optim, training

x = np.ones((5, 4, 3), dtype="float32")
lstm = xplstm.LSTM(3, 2, num_layers=2, merge="concat", dtype="float64", rng=0)
y, state = lstm(x, lengths=[5, 0, 2, 3])
y, (h_n, c_n) = lstm(x, (state.h, state.c), mask=np.ones((5, 4), dtype=bool))
assert_type(lstm.to(dtype="float32"), xplstm.LSTM)
assert_type(xplstm.GRU(3, 2).freeze(), xplstm.FrozenRNN)
assert_type(models.CharLM.load("m.safetensors"), models.CharLM)
assert_type(io.load("weights.pt"), xplstm.LSTM | xplstm.GRU | xplstm.RNN | xplstm.JordanRNN)
xplstm.LSTM(3, 2, dtype=np.float32)
xplstm.LSTM(3, 2, dtype=np.dtype("float32"))

xplstm.optim.Adamm(0.1)  # wrong
xplstm.modles.CharLM("ab", 3)  # wrong
optim.Adam("0.1")  # wrong
optim.SGD(0.1, momentum="0.9")  # wrong
lstm("hello")  # wrong
lstm(x, lengths="x")  # wrong
lstm(x, lengths=["a", "b"])  # wrong
lstm(x, mask="x")  # wrong
lstm(x, length=[5, 0, 2, 3])  # wrong
lstm.step([1.0, 2.0, 3.0])  # wrong
lstm.vjp(x, checkpoint="2")  # wrong
lstm.forwad(x)  # wrong
lstm.hidden_size = 3  # wrong
xplstm.LSTM(3, 2, dtype="flaot32")  # wrong
xplstm.LSTM(3, 2, merge="summ")  # wrong
xplstm.LSTM(3, 2, precision="tf64")  # wrong
xplstm.LSTM(3, 2, bidirectional="yes")  # wrong
xplstm.LSTM("3", 2)  # wrong
xplstm.LSTM(3)  # wrong
xplstm.RNN(3, 2, nonlinearity="sigmoid")  # wrong
xplstm.GRU(3, 2, proj_size=1)  # wrong
xplstm.LSTM(3, 2, variant={"peepholes": True})  # wrong
xplstm.Variant(peephole=True)  # wrong
xplstm.lstm(x, {"weight_ih": x})  # wrong
xplstm.LSTMParams(x)  # wrong
xplstm.LSTMState(x)  # wrong
models.CharLM("ab")  # wrong
training.fit(lstm, [(x, x)], optim.SGD(0.1), updates=1)  # wrong
io.load("a.pt").forward(x)  # wrong
y, state, pullback = lstm(x)  # wrong
