"""Adapt flax.nnx with LSTMCell, which has one matrix per gate, instead of OptimizedLSTMCell."""

from __future__ import annotations

import importlib
from typing import Any

from spec.peers.flax import Subject as Flax


class Subject(Flax):
    """The same RNN and Bidirectional around another cell."""

    name = "flax_lstm_cell"
    kernel = "nnx.LSTMCell"
    cell = "LSTMCell"

    def assign(self, param: Any, cell: Any, weight_ih: Any, weight_hh: Any, bias: Any) -> None:
        """Set the columns of each gate."""
        split = importlib.import_module("jax.numpy").split
        parts = (split(a, 4, axis=-1) for a in (weight_ih, weight_hh, bias))
        for gate, ih, hh, b in zip(("i", "f_", "g", "o"), *parts, strict=True):
            getattr(cell, f"i{gate}").kernel = param(ih)
            recurrent = getattr(cell, f"h{gate[0]}")
            recurrent.kernel, recurrent.bias = param(hh), param(b)
