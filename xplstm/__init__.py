"""LSTM, GRU and RNN layers for every library of the array API standard.

A call runs where its arrays are, on the fastest kernel that supports them.
"""

import importlib as _importlib
import typing as _t
from types import ModuleType as _ModuleType

from xplstm._array import use_backend
from xplstm._dispatch import use_kernel
from xplstm._errors import (
    ArgumentError,
    BackendError,
    DTypeError,
    FormatError,
    GroupError,
    KernelError,
    NonFiniteError,
    ShapeError,
    XplstmError,
)
from xplstm._problem import Explanation
from xplstm._process import register_threads as _register_threads
from xplstm._process import release_memory, show_config, use_threads
from xplstm._state import LSTMState
from xplstm.cells.params import LSTMParams, Variant
from xplstm.functional import lstm, lstm_vjp
from xplstm.nn import (
    GRU,
    LSTM,
    RNN,
    Dropout,
    Embedding,
    FrozenLSTM,
    FrozenRNN,
    GRUTrace,
    JordanRNN,
    Linear,
    LSTMTrace,
)

if _t.TYPE_CHECKING:
    from xplstm import io as io
    from xplstm import losses as losses
    from xplstm import models as models
    from xplstm import optim as optim
    from xplstm import plots as plots
    from xplstm import sklearn as sklearn
    from xplstm import testing as testing
    from xplstm import training as training

__version__ = "0.1.0"

_register_threads()

__all__ = [
    "GRU",
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
    "FrozenRNN",
    "GRUTrace",
    "GroupError",
    "JordanRNN",
    "KernelError",
    "LSTMParams",
    "LSTMState",
    "LSTMTrace",
    "Linear",
    "NonFiniteError",
    "ShapeError",
    "Variant",
    "XplstmError",
    "__version__",
    "lstm",
    "lstm_vjp",
    "release_memory",
    "show_config",
    "use_backend",
    "use_kernel",
    "use_threads",
]

# Modules that are loaded on first access, so that importing the package stays fast.
_LATE = ("io", "losses", "models", "optim", "plots", "sklearn", "testing", "training")


if not _t.TYPE_CHECKING:  # a type checker reads the imports above, and reports a misspelt module name

    def __getattr__(name: str) -> _ModuleType:
        """Load an optional module on first access."""
        if name not in _LATE:
            msg = f"module 'xplstm' has no attribute {name!r}"
            raise AttributeError(msg)
        return _importlib.import_module(f"xplstm.{name}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LATE, "init", "nn"})
