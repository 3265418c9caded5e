"""Calls with int8 weights against whole numbers of NumPy, bit by bit over whole sequences.

With relu and identity as activations every rounding of a step is known, so that h and c of float32 are too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import Variant
from xplstm.kernels import _stored, native

pytestmark = pytest.mark.skipif(bool(native.WHY_NOT), reason=f"native: {native.WHY_NOT}")

F = np.float32
WAYS: list[dict[str, Any]] = [{"weights": "int8", "activations": "int8"}, {"weights": "int8"}]
SIZES = [(5, 1, 3, 1), (4, 3, 70, 17), (3, 7, 16, 33), (6, 2, 1, 20), (2, 14, 129, 64), (9, 5, 37, 29)]
EXACT = Variant(activations=("relu", "identity", "identity"))


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(native, "ISA", request.param)
    with xplstm.use_kernel("native"):
        yield str(request.param)


def product(a: np.ndarray, w: np.ndarray, integers_of_8_bits: bool) -> np.ndarray:
    """Return ``a @ w.T`` of integers, one digit of `a` at a time; the highest digit has the sign."""
    limit = F(127 if integers_of_8_bits else 2**23 - 1)
    largest = np.maximum(np.abs(a).max(-1, keepdims=True, initial=0), F(2.0**-100))
    n = np.minimum(np.rint(a * (limit / largest)), limit).astype(np.int64)
    shifted = n + 2**23
    digits = [n] if integers_of_8_bits else [(shifted >> 16) - 128, shifted >> 8 & 255, shifted & 255]
    stored = _stored._store("w", w, "int8")
    assert stored.scales is not None
    q = stored.values.astype(np.int64).T
    total = (digits[0] @ q).astype(F)
    for digit in digits[1:]:
        total = total * F(256) + (digit @ q).astype(F)
    return np.asarray(total * stored.scales * (largest / limit))


def direction(
    p: dict[str, np.ndarray], x: np.ndarray, state: Any, exists: np.ndarray, small: bool, fused: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y and the final state of one direction, forward in time."""
    (h, c), lstm = state, len(p["weight_ih"]) == 4 * len(p["weight_hh"][0]) or "weight_hr" in p
    b, y = p["bias_ih"] + p["bias_hh"], []
    for x_t, there in zip(x, exists[:, :, None], strict=True):
        z = product(x_t, p["weight_ih"], small) + b + product(h, p["weight_hh"], small)
        if lstm:
            i, f, g, o = np.split(z, 4, 1)
            i, f, o = (np.maximum(a, 0) for a in (i, f, o))
            both = (f.astype("f8") * c + (i * g).astype("f8")).astype(F) if fused else f * c + i * g
            c = np.where(there, both, c)
            new = o * both
            new = product(new, p["weight_hr"], small) if "weight_hr" in p else new
        else:
            new = np.maximum(z, 0)
        h = np.where(there, new, h)
        y.append(np.where(there, new, F(0)))
    return np.array(y).reshape(len(x), *h.shape), h, c


def check(layer: Any, how: dict[str, Any], isa: str, x: np.ndarray, lengths: Any) -> None:
    """Compare all outputs of a layer of any depth and direction with the emulation."""
    T, B, _ = x.shape
    rng, D = np.random.default_rng(T), 1 + layer.bidirectional
    P, lstm = len(layer.params["weight_hh_l0"][0]), isinstance(layer, xplstm.LSTM)
    h_0, c_0 = (rng.normal(size=(layer.num_layers * D, B, n)).astype(F) for n in (P, layer.hidden_size))
    exists = np.arange(T)[:, None] < np.asarray([T] * B if lengths is None else lengths)
    y, end = layer.freeze(**how)(x, (h_0, c_0) if lstm else h_0, lengths=lengths)
    seen, ends = x, []
    for k in range(layer.num_layers):
        ys = []
        for d, suffix in enumerate(("", "_reverse")[:D]):
            p = {n.partition("_l")[0]: a for n, a in layer.params.items() if n.endswith(f"_l{k}{suffix}")}
            order = slice(None, None, -1 if d else 1)
            state, at = (h_0[len(ends)], c_0[len(ends)]), (seen[order], exists[order])
            found = direction(p, at[0], state, at[1], "activations" in how, native.ISAS[isa])
            ys.append(found[0][order])
            ends.append(found[1:])
        seen = np.concatenate(ys, -1)
    assert np.any(seen)
    np.testing.assert_array_equal(y, seen)
    for one, other in zip(end if lstm else [end], zip(*ends, strict=True), strict=False):
        np.testing.assert_array_equal(one, np.array(other))


@pytest.mark.parametrize("how", WAYS, ids=["both", "weights"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["lstm", "projection", "rnn"])
def test_every_bit_is_that_of_the_integers(
    kind: str, sizes: tuple[int, ...], how: dict[str, Any], isa: str
) -> None:
    (T, B, I, H), rng = sizes, np.random.default_rng(7)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": T % 2 == 1, "rng": T}
    if kind == "rnn":
        layer: Any = xplstm.RNN(I, H, nonlinearity="relu", **options)
    else:
        proj_size = max(1, H // 3) if kind == "projection" and H > 1 else 0
        layer = xplstm.LSTM(I, H, variant=EXACT, proj_size=proj_size, **options)
    x = (rng.normal(size=(T, B, I)) * 10.0 ** rng.integers(-4, 1, (T, B, 1))).astype(F)
    check(layer, how, isa, x, None)
    check(layer, how, isa, x, [*rng.integers(0, T + 1, B).tolist()[:-1], T])
    with xplstm.use_threads(2):
        check(layer, how, isa, x, None)
