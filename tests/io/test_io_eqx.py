"""Check Equinox files, which have no names: shapes identify cells, and the caller names the format."""

from __future__ import annotations

import io as bytesio
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import io

I, H = 3, 5


def arrays(*shapes: tuple[int, ...], dtype: str = "float32") -> bytes:
    content = bytesio.BytesIO()
    for number, shape in enumerate(shapes):
        np.save(content, np.random.default_rng(number).normal(size=shape).astype(dtype))
    return content.getvalue()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_equinox_writes(kind: str, bias: bool, dtype: str, tmp_path: Any, jax: Any) -> None:
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    keys = jax.random.split(jax.random.key(0), 4)
    cells = [
        getattr(eqx.nn, f"{kind}Cell")(n, H, use_bias=bias, dtype=dtype, key=key)
        for n, key in zip((I, H), keys, strict=False)
    ]
    model = [
        eqx.nn.Linear(7, I, dtype=dtype, key=keys[2]),
        *cells,
        eqx.nn.Linear(H, 2, dtype=dtype, key=keys[3]),
    ]
    path = tmp_path / "model.eqx"
    eqx.tree_serialise_leaves(str(path), model)
    first, second = 2, 2 + {"LSTM": 3, "GRU": 4}[kind] - (0 if bias else {"LSTM": 1, "GRU": 2}[kind])
    with pytest.raises(xplstm.ArgumentError, match="gate orders"):
        io.load(path, prefix=str(first))
    for place, cell in zip((first, second), cells, strict=True):
        ours = io.load(path, format="equinox", prefix=str(place))
        theirs = io.load(cell)
        assert repr(ours) == repr(theirs)
        assert all(np.array_equal(ours.params[name], a) for name, a in theirs.params.items())
    stacked = io.load(path, format="equinox", prefix=[str(first), str(second)])
    assert stacked.num_layers == 2
    if bias:
        io.save(tmp_path / "again.eqx", stacked)
        again = eqx.tree_deserialise_leaves(str(tmp_path / "again.eqx"), cells)
        assert eqx.tree_equal(again, cells)


BROKEN = {
    "cut": (arrays((20, 3), (20, 5))[:-1], "array 1 with shape .* ends at byte"),
    "followed by something": (arrays((20, 3)) + b"more", "array 1 is not a valid NumPy array"),
    "of objects": (arrays((2,)).replace(b"'<f4'", b"'|O' "), "objects or records are not supported"),
    "nothing of an LSTM": (arrays((5, 3), (5,), (2, 5), (2,)), "contains no known LSTM"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_whole_file_is_refused(case: str, tmp_path: Any) -> None:
    content, words = BROKEN[case]
    (tmp_path / "model.eqx").write_bytes(content)
    with pytest.raises(xplstm.FormatError, match=words):
        io.load(tmp_path / "model.eqx", format="equinox")


def test_a_cell_without_a_bias_keeps_its_neighbour(tmp_path: Any) -> None:
    """A vector that cannot be the bias of the cell belongs to the next object."""
    (tmp_path / "model.eqx").write_bytes(arrays((20, 3), (20, 5), (7,), (20, 3), (20, 5), (20,)))
    found = io.inspect(tmp_path / "model.eqx").networks
    assert [(one[0], one[3]) for one in found] == [("0", "LSTM(3, 5, bias=False)"), ("3", "LSTM(3, 5)")]


def test_what_has_no_place_is_refused(tmp_path: Any) -> None:
    lstm = xplstm.LSTM(3, 5)
    with pytest.raises(xplstm.ArgumentError, match="has no names"):
        io.save(tmp_path / "model.eqx", lstm, prefix="a")
    with pytest.raises(xplstm.ArgumentError, match="is not possible in"):
        io.save(tmp_path / "model.eqx", lstm, format="torch")
    with pytest.raises(xplstm.ArgumentError, match="proj_size"):
        io.save(tmp_path / "model.eqx", xplstm.LSTM(3, 5, proj_size=2))
