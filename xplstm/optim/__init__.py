"""From gradients to better parameters: SGD, Adam, AdamW, clipping and learning-rate schedules.

An optimiser never writes to an array that it is given: it returns new ones, so
that it runs on immutable arrays too, and a reference to old parameters stays
a copy of them.
"""

from xplstm.optim._clip import clip_by_global_norm
from xplstm.optim._optimizer import Group, Optimizer
from xplstm.optim._rules import SGD, Adam, AdamW
from xplstm.optim._schedules import Plateau, one_cycle, warmup_cosine

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Group",
    "Optimizer",
    "Plateau",
    "clip_by_global_norm",
    "one_cycle",
    "warmup_cosine",
]
