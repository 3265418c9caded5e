"""Problems whose output bits the specification publishes as digests, in its profile `exact`.

The inputs come from SplitMix64 (Steele, Lea and Flood 2014), as in spec/exact_cases.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xplstm import LSTMParams

PRECISION = {"float32": 24, "float64": 53}
LEAST = {"float32": -149, "float64": -1074}
"""Exponents of the smallest positive numbers."""
HOLES = ((True, False, True), (False, False, True), (True, False, True), (True, False, False))


class Record(NamedTuple):
    """A problem of one layer with one direction."""

    T: int
    B: int
    I: int
    H: int
    bias: bool = True
    mask: tuple[tuple[bool, ...], ...] | None = None


RECORDS = {
    "functions": Record(1, 100, 1, 2),
    "one-block": Record(3, 2, 5, 3),
    "input-of-two-blocks": Record(2, 2, 130, 3),
    "input-of-four-blocks": Record(2, 2, 385, 2),
    "no-bias": Record(2, 3, 129, 2, bias=False),
    "state-of-two-blocks": Record(2, 1, 2, 131),
    "mask": Record(4, 3, 4, 3, mask=HOLES),
}


class Inputs(NamedTuple):
    """Inputs of a layer; the state has no direction axis."""

    params: LSTMParams
    x: np.ndarray
    h_0: np.ndarray
    c_0: np.ndarray


def draw_numbers(dtype: str, shape: tuple[int, ...], seed: int, exponent: int) -> np.ndarray:
    """Return numbers in [-2**exponent, 2**exponent) from the upper bits of each random word."""
    bits, count = PRECISION[dtype], int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    word = ((z ^ z >> np.uint64(31)) >> np.uint64(64 - bits)).astype(np.int64)
    signed = word - (word >> (bits - 1) << bits)
    return np.ldexp(signed.astype(np.float64), exponent + 1 - bits).astype(dtype).reshape(shape)


def inputs(name: str, dtype: str) -> Inputs:
    """Return the inputs of a record."""
    if name == "functions":
        return _functions(dtype)
    T, B, I, H = RECORDS[name][:4]
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H)}
    shapes |= {"bias_ih": (4 * H,), "bias_hh": (4 * H,)} if RECORDS[name].bias else {}
    shapes |= {"x": (T, B, I), "h_0": (B, H), "c_0": (B, H)}
    first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    made: dict[str, Any] = {
        array: draw_numbers(dtype, shape, first + k, -1 if array.startswith("weight") else 0)
        for k, (array, shape) in enumerate(shapes.items())
    }
    rest = [made.pop(array) for array in ("x", "h_0", "c_0")]
    return Inputs(LSTMParams(**made), *rest)


def _values(dtype: str) -> Iterator[float]:
    """Yield arguments for tanh and sigmoid: range limits, subnormal numbers, and others."""
    bits, least, ends = PRECISION[dtype], LEAST[dtype], (8.0, 10.0, 18.0, 40.0, 87.5, 103.5, 700.0, 745.0)
    for v in (0.0, 2.0**least, 3 * 2.0 ** (least + 20), 2.0 ** (1 - bits // 2), 0.5 - 2.0**-bits, 0.5, *ends):
        yield from (v, -v)
    for exponent in (-4, -1, 0, 1, 2, 4):
        yield from draw_numbers(dtype, (12,), 100 + exponent, exponent).tolist()


def _functions(dtype: str) -> Inputs:
    """Return a batch whose c_n is tanh(v) in the first unit and sigmoid(v) in the second."""
    x = np.asarray(list(_values(dtype)), dtype)[None, :, None]
    weight, bias = np.zeros((8, 1), dtype), np.zeros(8, dtype)
    weight[[1, 4]], bias[[0, 5, 6, 7]] = 1, 2000
    zeros = np.zeros((x.shape[1], 2), dtype)
    params = LSTMParams(weight, np.zeros((8, 2), dtype), bias, np.zeros(8, dtype))
    return Inputs(params, x, zeros, zeros.copy())


def digest(*outputs: np.ndarray) -> str:
    """Return the digest of y, h_n and c_n, with negative zeros as positive zeros."""
    content = hashlib.sha256()
    for a in outputs:
        content.update(np.ascontiguousarray(a + 0.0, a.dtype.newbyteorder("<")).tobytes())
    return content.hexdigest()


DIGESTS: dict[str, dict[str, str]] = {
    "float32": {
        "functions": "2e973bd611f1b0de2dfb467ef2775bd098ef6bd72ba80219dbfe378ddab334f4",
        "one-block": "676deda9eb57686ab30852c36c0af467f6f39803edc7bcd5e6be3118c8bf12cf",
        "input-of-two-blocks": "0276d0161513f62b15c2b16eba192c8c28eae543270fd02352c5518dfae0c3d7",
        "input-of-four-blocks": "108a7990ea6321bd3882fa2ec9ac0a06cfb27ec4c78fb3bcf4f043e5cf34c90a",
        "no-bias": "85560c6252cd5a02045f365dddbbbacd6c19a4bf0f689b10c0c32f4d0aa6aab6",
        "state-of-two-blocks": "3ffc82dda7bb95273b0b5284a901b37f5a6dabe45ea36fc9349e2e6922ba059c",
        "mask": "1e0c7ab35620c43bd5425aa94c3e25d29d7ccaebeeca62bcb96ca9b744c3a924",
    },
    "float64": {
        "functions": "fb3629bc2cf787d7a6b4870a195d0284fafe728595894eec4031f4d1f6400de3",
        "one-block": "aba116930db0095498cf23ae5ee9f4932bb6f1970e6846ce243e3ad0fc7a737f",
        "input-of-two-blocks": "da35ae7948cc8c607936d7bb8029f794b19f71e866e304401a678783864931ed",
        "input-of-four-blocks": "cf4c18005de43ed76da38fa6dd8de6158910b850b38198f8c015f7f7b92e834b",
        "no-bias": "9cdc03ff6fa358d057c7b0c544b085e19196ff08b5ba5ff0b247f7201f25ebb1",
        "state-of-two-blocks": "0acc9c3af47cb5f3045f3bd80ec6d6d0024c570a586f0e54b11eecce48375f3e",
        "mask": "1d4a9de22a8a2786b26752bb74f623e981cc96dcd6322bc4878d3b7b2f104972",
    },
}
"""Digests of the published outputs."""
