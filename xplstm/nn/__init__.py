"""Layers with parameters: `LSTM`, `GRU`, the RNNs, and the other layers of a model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xplstm.cells import Cell
from xplstm.cells.gru import GRUCell
from xplstm.cells.params import Activation
from xplstm.cells.rnn import ElmanCell, JordanCell
from xplstm.cells.variant import lstm_cell
from xplstm.nn._layers import Dropout, Embedding, Linear
from xplstm.nn._lstm import LSTM, FrozenLSTM, LSTMTrace
from xplstm.nn._module import Recurrent
from xplstm.nn._rnn import GRU, RNN, FrozenRNN, GRUTrace, JordanRNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Dropout",
    "Embedding",
    "FrozenLSTM",
    "FrozenRNN",
    "GRUTrace",
    "JordanRNN",
    "LSTMTrace",
    "Linear",
    "Recurrent",
]


class Network(NamedTuple):
    """A class of recurrent layers, and the function that creates its cell."""

    cls: Callable[..., Recurrent]
    cell: Callable[[Mapping[str, Any], int], Cell]
    """Options by name, number of directions -> cell."""


NETWORKS = {
    "LSTM": Network(LSTM, lambda options, directions: lstm_cell(options.get("variant"), directions)),
    "GRU": Network(GRU, lambda options, _: GRUCell(options.get("reset_after", True))),
    "RNN": Network(RNN, lambda options, _: ElmanCell(Activation(options.get("nonlinearity", "tanh")))),
    "JordanRNN": Network(
        JordanRNN, lambda options, _: JordanCell(Activation(options.get("nonlinearity", "tanh")))
    ),
}
"""Networks by the name of the class, which is `Cell.name`."""
