"""Training with truncated backpropagation, and checkpoints from which a run continues bit for bit."""

from xplstm.training._data import Streams
from xplstm.training._fit import Model, fit
from xplstm.training._saved import Checkpoint, History, load_checkpoint, save_checkpoint
from xplstm.training._stateful import StatefulTrainer

__all__ = [
    "Checkpoint",
    "History",
    "Model",
    "StatefulTrainer",
    "Streams",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
