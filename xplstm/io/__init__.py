"""Weights from everywhere: `load` brings an LSTM in, `save` takes it out, `inspect` says what is there.

`gates`, `columns`, `layers` and `cell` read hand-written LSTMs.
"""

from xplstm.io._inspect import Inspection, inspect
from xplstm.io._load import arrays, from_state, load, load_with_call, save, to_mapping, to_state
from xplstm.io._models import load_model

__all__ = [
    "Inspection",
    "arrays",
    "from_state",
    "inspect",
    "load",
    "load_model",
    "load_with_call",
    "save",
    "to_mapping",
    "to_state",
]
