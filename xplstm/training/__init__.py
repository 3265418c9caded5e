"""Training with truncated backpropagation, and checkpoints from which a run continues bit for bit."""

from xplstm.training._data import Streams
from xplstm.training._fit import fit
from xplstm.training._run import Event, Model
from xplstm.training._saved import Checkpoint, History, load_checkpoint, save_checkpoint
from xplstm.training._stateful import StatefulTrainer

__all__ = [
    "Checkpoint",
    "Event",
    "History",
    "Model",
    "StatefulTrainer",
    "Streams",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
