"""Nonsense for every argument of a call: an error of ours, or a result; no raw error, no hang."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest

import xplstm
from xplstm import init

with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)
    MATRIX = np.asmatrix([[1, 2]])
VALUES = [
    *(None, True, "x", "", -1, 0, 1.5, float("nan"), float("inf"), 2**63, 10**400, [], {}, (), object(), int),
    *(np.array(2), MATRIX, np.ones(3), b"a", 1j, np.datetime64("2020")),
]
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # numpy.matrix
X = np.ones((3, 2, 3), "float32")
LSTM = xplstm.LSTM(3, 2, rng=0)
CALLS = {
    "LSTM": (xplstm.LSTM, {"input_size": 3, "hidden_size": 2}),
    "GRU": (xplstm.GRU, {"input_size": 3, "hidden_size": 2}),
    "RNN": (xplstm.RNN, {"input_size": 3, "hidden_size": 2}),
    "Linear": (xplstm.Linear, {"in_features": 3, "out_features": 2}),
    "call": (LSTM.__call__, {"x": X}),
    "vjp": (LSTM.vjp, {"x": X}),
    "step": (LSTM.step, {"x_t": X[0]}),
    "use_kernel": (xplstm.use_kernel, {"name": None}),
    "use_threads": (xplstm.use_threads, {"count": None}),
    "glorot_uniform": (init.glorot_uniform, {"shape": (2, 3)}),
    "orthogonal": (init.orthogonal, {"shape": (2, 3)}),
    "forget_bias": (init.forget_bias, {"rule": init.lstm_uniform}),
}
# An array as a device is compared with devices before a library can refuse it.
KNOWN = {"device"}


@pytest.mark.parametrize("name", CALLS)
def test_nonsense_is_refused_by_name_or_has_a_meaning(name):
    function, good = CALLS[name]
    for argument in inspect.signature(function).parameters.keys() - KNOWN:
        for value in VALUES:
            try:
                function(**good | {argument: value})
            except xplstm.XplstmError:
                continue
            finally:
                xplstm.use_kernel(None)
                xplstm.use_threads(None)
