"""Layers with parameters: `LSTM`, the simple networks before it, and what stands around them in a model."""

from xplstm.nn._layers import Dropout, Embedding, Linear
from xplstm.nn._lstm import LSTM, FrozenLSTM
from xplstm.nn._rnn import RNN, JordanRNN

__all__ = ["LSTM", "RNN", "Dropout", "Embedding", "FrozenLSTM", "JordanRNN", "Linear"]
