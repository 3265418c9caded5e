"""Loss functions for training. Each returns its value, and a function that computes its gradient."""

from xplstm.losses._classes import binary_cross_entropy, softmax_cross_entropy
from xplstm.losses._ctc import ctc
from xplstm.losses._numbers import huber, mae, mse, quantile

__all__ = [
    "binary_cross_entropy",
    "ctc",
    "huber",
    "mae",
    "mse",
    "quantile",
    "softmax_cross_entropy",
]
