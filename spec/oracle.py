"""An LSTM in scalar loops at 90 digits: where the numbers of every vector come from.

Meant to be checked by eye against SPEC.md. It imports neither an array library
nor any implementation under test, and has no backward pass of its own: a
gradient is a central difference of the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from mpmath import mp, mpf, tanh

Number: TypeAlias = Any
Nested: TypeAlias = list[Any]
Arrays: TypeAlias = Mapping[str, Nested]

DIGITS = 90
# The truncation error of a central difference goes with STEP**2 = 1e-60, its cancellation with
# 10**-DIGITS / STEP = 1e-60: both far below the 40 digits that are published.
STEP = mpf(10) ** -30


def sigmoid(z: Number) -> Number:
    return 1 / (1 + mp.exp(-z))


def dot(u: Nested, v: Nested) -> Number:
    return sum((a * b for a, b in zip(u, v, strict=True)), mpf(0))


def gates(p: Arrays, x: Nested, h: Nested, hidden_size: int) -> dict[str, Nested]:
    """XPL-CELL-002: the activated gates of one row at one step."""
    z = [dot(w, x) + dot(u, h) for w, u in zip(p["weight_ih"], p["weight_hh"], strict=True)]
    if "bias_ih" in p:
        z = [a + b + d for a, b, d in zip(z, p["bias_ih"], p["bias_hh"], strict=True)]
    block = {name: z[k * hidden_size : (k + 1) * hidden_size] for k, name in enumerate("ifgo")}
    return {name: [tanh(v) if name == "g" else sigmoid(v) for v in zs] for name, zs in block.items()}


def cell(p: Arrays, x: Nested, h: Nested, c: Nested) -> tuple[Nested, Nested, dict[str, Nested]]:
    """XPL-CELL-003 and XPL-CELL-004: one step of one row."""
    a = gates(p, x, h, len(c))
    c = [f * c_k + i * g for f, c_k, i, g in zip(a["f"], c, a["i"], a["g"], strict=True)]
    h = [o * tanh(c_k) for o, c_k in zip(a["o"], c, strict=True)]
    return ([dot(w, h) for w in p["weight_hr"]] if "weight_hr" in p else h), c, a


def lstm(arrays: Arrays, lengths: Sequence[int] | None = None, reverse: bool = False) -> dict[str, Nested]:
    """XPL-SEQ-001 to XPL-SEQ-005: one layer, one direction; y (T, B, H or P), h_n, c_n (B, H or P)."""
    x, h_0, c_0 = arrays["x"], arrays["h_0"], arrays["c_0"]
    T, B, output_size = len(x), len(h_0), len(h_0[0])
    y = [[[mpf(0)] * output_size for _ in range(B)] for _ in range(T)]
    h_n, c_n = [], []
    for b in range(B):
        h, c = h_0[b], c_0[b]
        valid = range(T if lengths is None else lengths[b])
        for t in reversed(valid) if reverse else valid:
            h, c, _ = cell(arrays, x[t][b], h, c)
            y[t][b] = h
        h_n.append(h)
        c_n.append(c)
    return {"y": y, "h_n": h_n, "c_n": c_n}


def gradients(
    arrays: Arrays, cotangents: Arrays, lengths: Sequence[int] | None = None, reverse: bool = False
) -> dict[str, Nested]:
    """XPL-GRAD-001: of sum(dy y) + sum(dh_n h_n) + sum(dc_n c_n), by every input array."""

    def objective() -> Number:
        outputs = lstm(arrays, lengths, reverse)
        return sum((inner(cotangents[f"d{name}"], value) for name, value in outputs.items()), mpf(0))

    return {f"d{name}": differences(objective, array) for name, array in arrays.items()}


def inner(u: Any, v: Any) -> Number:
    """Sum of products over nested lists of any depth."""
    if isinstance(u, list):
        return sum((inner(a, b) for a, b in zip(u, v, strict=True)), mpf(0))
    return u * v


def differences(objective: Callable[[], Number], array: Nested) -> Nested:
    """Central difference of `objective` by each number of `array`, which it reads at every call."""
    result: Nested = []
    for k, value in enumerate(array):
        if isinstance(value, list):
            result.append(differences(objective, value))
            continue
        array[k] = value + STEP
        above = objective()
        array[k] = value - STEP
        below = objective()
        array[k] = value
        result.append((above - below) / (2 * STEP))
    return result
