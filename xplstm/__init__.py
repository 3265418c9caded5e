"""xplstm: one LSTM, written against the Python array API, run by the fastest kernel your arrays allow."""

from xplstm._array import use_backend
from xplstm._config import show_config
from xplstm._dispatch import use_kernel
from xplstm._errors import (
    ArgumentError,
    BackendError,
    DTypeError,
    FormatError,
    KernelError,
    ShapeError,
    XplstmError,
)
from xplstm._params import Explanation, LSTMParams, LSTMState, LSTMTrace, Variant
from xplstm.functional import lstm, lstm_vjp
from xplstm.nn import LSTM, RNN, Dropout, Embedding, FrozenLSTM, JordanRNN, Linear

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "RNN",
    "ArgumentError",
    "BackendError",
    "DTypeError",
    "Dropout",
    "Embedding",
    "Explanation",
    "FormatError",
    "FrozenLSTM",
    "JordanRNN",
    "KernelError",
    "LSTMParams",
    "LSTMState",
    "LSTMTrace",
    "Linear",
    "ShapeError",
    "Variant",
    "XplstmError",
    "__version__",
    "lstm",
    "lstm_vjp",
    "show_config",
    "use_backend",
    "use_kernel",
]
