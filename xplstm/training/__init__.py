"""Train with truncated backpropagation, and resume runs from checkpoints bit for bit."""

from xplstm.training._data import Streams
from xplstm.training._fit import fit
from xplstm.training._groups import Group, LocalGroup, MPIGroup, NCCLGroup, TorchGroup, local_group
from xplstm.training._long import Gradients, gradients_over
from xplstm.training._run import Event, Model
from xplstm.training._samples import Samples
from xplstm.training._saved import Checkpoint, History, load_checkpoint, save_checkpoint
from xplstm.training._shards import Shards
from xplstm.training._stateful import StatefulTrainer

__all__ = [
    "Checkpoint",
    "Event",
    "Gradients",
    "Group",
    "History",
    "LocalGroup",
    "MPIGroup",
    "Model",
    "NCCLGroup",
    "Samples",
    "Shards",
    "StatefulTrainer",
    "Streams",
    "TorchGroup",
    "fit",
    "gradients_over",
    "load_checkpoint",
    "local_group",
    "save_checkpoint",
]
