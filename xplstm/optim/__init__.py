"""Optimisers, gradient clipping and learning-rate schedules.

An optimiser returns new arrays and never writes to its arguments. It therefore
supports immutable arrays, and old parameters stay valid.
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
