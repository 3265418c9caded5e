"""Define the profile `exact`: one layer, each operation and its order, in the arithmetic of spec/ieee.py.

The clauses XPL-EXACT of SPEC.md in code, of the LSTM, the GRU and the Elman RNN. A method is what a mutant
replaces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from spec.ieee import BINARY32, BINARY64, HALVES, Format

BLOCK = 128

Row = list[float]
Array = Any
Config = dict[str, Any]


class Constants(NamedTuple):
    """XPL-EXACT-005: constants of the exponential in one format."""

    magic: float
    """A number so large that adding it rounds to a whole number."""
    log2_e: float
    ln2_high: float
    ln2_low: float
    scale: int
    """Exponent that keeps the powers of two of `sigmoid` normal."""
    tanh_end: float
    sigmoid_end: float
    q: tuple[float, ...]
    """Coefficients of (exp(r) - 1 - r) / r**2, ascending."""


def hexadecimal(text: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, text.split()))


CONSTANTS = {
    BINARY32: Constants(
        magic=1.5 * 2**23,
        log2_e=float.fromhex("0x1.715476p+0"),
        ln2_high=float.fromhex("0x1.62e4p-1"),
        ln2_low=float.fromhex("0x1.7f7d1cp-20"),
        scale=64,
        tanh_end=10.0,
        sigmoid_end=104.0,
        q=hexadecimal("0x1.fffffep-2 0x1.5554b0p-3 0x1.55571ap-5 0x1.122798p-7 0x1.6b6ebap-10"),
    ),
    BINARY64: Constants(
        magic=1.5 * 2**52,
        log2_e=float.fromhex("0x1.71547652b82fep+0"),
        ln2_high=float.fromhex("0x1.62e42fefa38p-1"),
        ln2_low=float.fromhex("0x1.ef35793c7673p-45"),
        scale=512,
        tanh_end=20.0,
        sigmoid_end=746.0,
        q=hexadecimal(
            "0x1.0000000000005p-1 0x1.5555555555541p-3 0x1.5555555552117p-5 0x1.1111111116fd0p-7 "
            "0x1.6c16c17f2c33ep-10 0x1.a01a01804204dp-13 0x1.a019a6a8e0c58p-16 0x1.71de6e6b8bb9bp-19 "
            "0x1.28a28960d80d6p-22 0x1.ae94f215ade36p-26"
        ),
    ),
}


class Exact:
    """One layer and direction in one format."""

    block = BLOCK

    def __init__(self, stored: Format) -> None:
        self.stored = stored
        self.kind = BINARY32 if stored.name in HALVES else stored
        self.constants = CONSTANTS[self.kind]

    def blocks(self, w: Row, v: Row) -> list[float]:
        """XPL-EXACT-002: return the result of each block of the sum over k of w[k] * v[k]."""
        return [
            self.chain(w[k : k + self.block], v[k : k + self.block]) for k in range(0, len(w), self.block)
        ]

    def chain(self, w: Row, v: Row) -> float:
        """Compute one block: fused multiply-adds in ascending k, from zero."""
        s = 0.0
        for a, b in zip(w, v, strict=True):
            s = self.kind.fma(a, b, s)
        return s

    def total(self, parts: Sequence[float]) -> float:
        """Add the block results to the first in ascending order."""
        s = parts[0]
        for part in parts[1:]:
            s = self.kind.add(s, part)
        return s

    def pre_activation(self, a: Array, row: int, x: Row, h: Row) -> float:
        """XPL-EXACT-003: return the input's part with the biases, then add the blocks of the state's part."""
        u = self.total(self.blocks(a["weight_ih"][row], x))
        if "bias_ih" in a:
            u = self.kind.add(u, self.kind.add(a["bias_ih"][row], a["bias_hh"][row]))
        return self.total([u, *self.blocks(a["weight_hh"][row], h)])

    def step(self, a: Array, x: Row, h: Row, c: Row) -> tuple[Row, Row]:
        """XPL-EXACT-004."""
        z = [self.pre_activation(a, row, x, h) for row in range(4 * len(c))]
        units = [self.unit(z[j :: len(c)], c[j]) for j in range(len(c))]
        m, c = [m for m, _ in units], [c for _, c in units]
        if "weight_hr" in a:
            m = [self.total(self.blocks(w, m)) for w in a["weight_hr"]]
        return m, c

    def gru_step(self, a: Array, x: Row, h: Row) -> Row:
        """XPL-EXACT-008."""
        H, fma = len(h), self.kind.fma
        found = []
        for j in range(H):
            r = self.sigmoid(self.pre_activation(a, j, x, h))
            z = self.sigmoid(self.pre_activation(a, H + j, x, h))
            row = 2 * H + j
            u = self.total(self.blocks(a["weight_ih"][row], x))
            u = self.kind.add(u, a["bias_ih"][row]) if "bias_ih" in a else u
            v = self.new_gate_of_state(self.blocks(a["weight_hh"][row], h), a.get("bias_hh", {row: 0.0})[row])
            found.append(self.mixed(self.tanh(fma(r, v, u)), z, h[j]))
        return found

    def new_gate_of_state(self, blocks: list[float], bias: float) -> float:
        """Return the part of a GRU's new gate that depends on h."""
        return self.total([bias, *blocks])

    def mixed(self, n: float, z: float, h: float) -> float:
        """Return the new state of a GRU's unit."""
        return self.kind.fma(z, h, self.kind.fma(-z, n, n))

    def rnn_step(self, a: Array, x: Row, h: Row, relu: bool) -> Row:
        """XPL-EXACT-009."""
        z = [self.pre_activation(a, row, x, h) for row in range(len(h))]
        return [v if math.isnan(v) else max(v, 0.0) for v in z] if relu else [self.tanh(v) for v in z]

    def unit(self, z: Row, c: float) -> tuple[float, float]:
        """Return o * tanh(c') and c' of one hidden unit, from z of its four gates."""
        z_i, z_f, z_g, z_o = z
        i, f, g, o = self.sigmoid(z_i), self.sigmoid(z_f), self.tanh(z_g), self.sigmoid(z_o)
        c = self.new_cell(f, c, i, g)
        return self.kind.mul(o, self.tanh(c)), c

    def new_cell(self, f: float, c: float, i: float, g: float) -> float:
        return self.kind.fma(f, c, self.kind.mul(i, g))

    def reduced(self, v: float) -> tuple[int, float, float, float]:
        """XPL-EXACT-005: return n, r, r * r and q(r), where exp(v) = 2**n * (1 + r + r**2 * q(r))."""
        fma, k = self.kind.fma, self.constants
        n = self.kind.sub(fma(v, k.log2_e, k.magic), k.magic)
        r = fma(n, -k.ln2_low, fma(n, -k.ln2_high, v))
        r2 = self.kind.mul(r, r)
        parts = [fma(odd, r, even) for even, odd in zip(k.q[::2], k.q[1::2], strict=False)]
        parts += k.q[-1:] if len(k.q) % 2 else ()
        q = parts.pop()
        for part in reversed(parts):
            q = fma(q, r2, part)
        return int(n), r, r2, q

    def sigmoid(self, x: float) -> float:
        """XPL-EXACT-006."""
        if math.isnan(x):
            return x
        fma, mul, k = self.kind.fma, self.kind.mul, self.constants
        n, r, r2, q = self.reduced(-min(abs(x), k.sigmoid_end))
        s = 2.0 ** (n + k.scale)
        e = mul(fma(s, fma(r2, q, r), s), 2.0**-k.scale)
        y = self.kind.div(e if math.copysign(1, x) < 0 else 1.0, self.kind.add(1.0, e))
        return self.refined(y, e) if x < -0.5 else y

    def refined(self, y: float, e: float) -> float:
        """Correct y = e / (1 + e) once, with e - e * y."""
        return self.kind.fma(-e, y, e)

    def tanh(self, x: float) -> float:
        """XPL-EXACT-007."""
        if math.isnan(x):
            return x
        fma = self.kind.fma
        a = min(abs(x), self.constants.tanh_end)
        n, r, r2, q = self.reduced(2 * a)
        s = 2.0 ** (n - 1)
        b = self.kind.sub(s, 0.5)
        first = fma(s, r, b)
        lost = self.lost(s, r, b, first)
        e = self.kind.add(first, fma(self.kind.mul(s, r2), q, lost))
        y = self.kind.div(e, self.kind.add(e, 1.0))
        return math.copysign(self.refined(y, e) if a < 0.5 else y, x)

    def lost(self, s: float, r: float, b: float, first: float) -> float:
        """Return the rounding error of first = s * r + b."""
        return self.kind.fma(s, r, self.kind.sub(b, first))

    def layer(self, config: Config, a: Array) -> dict[str, Array]:
        """Return y and the final state; an invalid step keeps the state."""
        cell = config.get("cell", "lstm")
        if cell != "lstm":
            # The calls of a GRU and an RNN are those of a module of one layer.
            a = {name.removesuffix("_l0"): v[0] if name == "h_0" else v for name, v in a.items()}
        T, B = len(a["x"]), len(a["h_0"])
        size = len(a["h_0"][0])
        y = [[[0.0] * size for _ in range(B)] for _ in range(T)]
        h, c = list(a["h_0"]), list(a.get("c_0", [[]] * B))
        for t, b in existing(config, T, B):
            if cell == "lstm":
                h[b], c[b] = self.step(a, a["x"][t][b], h[b], c[b])
            elif cell == "gru":
                h[b] = self.gru_step(a, a["x"][t][b], h[b])
            else:
                h[b] = self.rnn_step(a, a["x"][t][b], h[b], config["nonlinearity"] == "relu")
            y[t][b] = h[b]
        return self.narrowed({"y": y, "h_n": h, "c_n": c} if cell == "lstm" else {"y": y, "h_n": [h]})

    def narrowed(self, v: Any) -> Any:
        """XPL-EXACT-010: round each number of a result to its storage format."""
        if isinstance(v, dict):
            return {name: self.narrowed(each) for name, each in v.items()}
        return [self.narrowed(each) for each in v] if isinstance(v, list) else self.stored.nearest(v)


def existing(config: Config, T: int, B: int) -> Iterator[tuple[int, int]]:
    """Return the valid steps, in the order of the direction."""
    lengths = config.get("lengths") or [T] * B
    for t in reversed(range(T)) if config.get("reverse") else range(T):
        for b in range(B):
            if config["mask"][t][b] if config.get("mask") else t < lengths[b]:
                yield t, b
