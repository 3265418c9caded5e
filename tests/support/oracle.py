"""Define an LSTM in scalar loops, the oracle for the reference kernel.

It is written from the equations alone. It shares no code, loop order or optimisation with the library, such
as moving a product out of a loop or masking a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def dot(row: Sequence[float], column: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(row, column, strict=True))


def direction(
    x: np.ndarray, steps: list[int], p: dict[str, np.ndarray], h: list[float], c: list[float]
) -> tuple[dict[int, list[float]], list[float], list[float]]:
    """Run one batch entry over `steps`; return h after each step, and the last h and c."""
    H = len(c)
    out: dict[int, list[float]] = {}
    for t in steps:
        z = []
        for row in range(4 * H):
            total = dot(p["weight_ih"][row], x[t]) + dot(p["weight_hh"][row], h)
            if "bias_ih" in p:
                total += p["bias_ih"][row] + p["bias_hh"][row]
            z.append(total)
        m, c_new = [], []
        for unit in range(H):
            i, f = sigmoid(z[unit]), sigmoid(z[H + unit])
            g, o = math.tanh(z[2 * H + unit]), sigmoid(z[3 * H + unit])
            c_new.append(f * c[unit] + i * g)
            m.append(o * math.tanh(c_new[-1]))
        h = [dot(row, m) for row in p["weight_hr"]] if "weight_hr" in p else m
        c = c_new
        out[t] = h
    return out, h, c


def stack(
    x: np.ndarray,
    params: dict[str, np.ndarray],
    h_0: np.ndarray,
    c_0: np.ndarray,
    num_layers: int,
    directions: int,
    exists: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run all layers over a time-major batch; `exists` (T, B) is True for valid steps."""
    T, B, _ = x.shape
    h_n, c_n = h_0.copy(), c_0.copy()
    for layer in range(num_layers):
        P = h_0.shape[2]
        y = np.zeros((T, B, P * directions))
        for d in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if d else "")
            p = {name.removesuffix(suffix): a for name, a in params.items() if name.endswith(suffix)}
            for b in range(B):
                steps = [t for t in range(T) if exists[t, b]]
                row = layer * directions + d
                out, h, c = direction(
                    x[:, b], steps[::-1] if d else steps, p, list(h_0[row, b]), list(c_0[row, b])
                )
                h_n[row, b], c_n[row, b] = h, c
                for t, value in out.items():
                    y[t, b, d * P : (d + 1) * P] = value
        x = y
    return x, h_n, c_n
