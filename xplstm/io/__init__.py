"""Load, save and inspect networks in the weight formats of many libraries.

`gates`, `columns`, `layers` and `cell` convert the parameters and states of hand-written LSTMs.
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
