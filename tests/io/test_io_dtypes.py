"""Check parameters in another dtype in files, while the network keeps its dtype."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import io
from xplstm._errors import ArgumentError


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".onnx", ".npz"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_numbers_of_another_dtype_are_saved(suffix, dtype, tmp_path):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="pip install 'xplstm[io]'")
    lstm = xplstm.LSTM(3, 5, rng=0)
    kept, path = dict(lstm.params), tmp_path / f"half{suffix}"
    if dtype == "bfloat16" and suffix not in (".safetensors", ".pt"):
        with pytest.raises(ArgumentError, match="bfloat16"):
            io.save(path, lstm, dtype=dtype)
        return
    io.save(path, lstm, dtype=dtype)
    assert all(lstm.params[name] is a for name, a in kept.items())
    again = io.load(path)
    for name, a in kept.items():
        assert str(again.params[name].dtype) == dtype
        assert np.array_equal(again.params[name], a.astype(again.params[name].dtype))


def test_a_number_beyond_the_range_of_a_dtype_is_refused(tmp_path):
    lstm = xplstm.LSTM(3, 5, rng=0)
    lstm.params["bias_hh_l0"][2] = 1e5
    with pytest.raises(ArgumentError, match="dtype='float16' cannot represent bias_hh_l0, which has"):
        io.save(tmp_path / "a.npz", lstm, dtype="float16")
    with pytest.raises(ArgumentError, match="cannot represent the mapping: bias_hh_l0, which has"):
        io.load(lstm.params, dtype="float16")
