"""Compute IEEE 754 arithmetic in integers: to nearest, ties to even, with gradual underflow.

A number is a Python float, which holds every number of both formats. Nothing
here relies on the rounding of the machine.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Format(NamedTuple):
    """Binary format: bits of the significand, smallest and largest exponent."""

    name: str
    precision: int
    least: int
    largest: int

    def rounded(self, n: int, d: int, zero: float = 0.0) -> float:
        """Return the number nearest to n / d, or `zero` with its sign if n is 0."""
        if n == 0:
            return zero
        m = abs(n)
        exponent = m.bit_length() - d.bit_length()
        exponent -= (m < d << exponent) if exponent >= 0 else (m << -exponent < d)
        quantum = max(exponent - self.precision + 1, self.least)
        q, rest = divmod(m << max(-quantum, 0), d << max(quantum, 0))
        twice = 2 * rest - (d << max(quantum, 0))
        q += twice > 0 or (twice == 0 and q % 2 == 1)
        infinite = q.bit_length() + quantum > self.largest + 1
        magnitude = math.inf if infinite else math.ldexp(q, quantum)
        return magnitude if n > 0 else -magnitude

    def fma(self, a: float, b: float, c: float) -> float:
        """Return a * b + c, rounded once."""
        if not (math.isfinite(a) and math.isfinite(b)):
            return a * b + c
        if not math.isfinite(c):
            return c
        (n, d), (p, q), (r, s) = a.as_integer_ratio(), b.as_integer_ratio(), c.as_integer_ratio()
        negative = math.copysign(1, a) * math.copysign(1, b) < 0 and math.copysign(1, c) < 0
        zero = -0.0 if negative and c == 0 else 0.0
        return self.rounded(n * p * s + r * d * q, d * q * s, zero)

    def nearest(self, v: float) -> float:
        """Round a number of any format once."""
        return self.rounded(*v.as_integer_ratio(), v) if math.isfinite(v) else v

    def add(self, a: float, b: float) -> float:
        return self.fma(a, 1.0, b)

    def sub(self, a: float, b: float) -> float:
        return self.fma(a, 1.0, -b)

    def mul(self, a: float, b: float) -> float:
        return self.fma(a, b, -0.0)

    def div(self, a: float, b: float) -> float:
        """Return a / b of finite numbers with b above 0; NaN if one is NaN."""
        if math.isnan(a) or math.isnan(b):
            return math.nan
        (n, d), (p, q) = a.as_integer_ratio(), b.as_integer_ratio()
        return self.rounded(n * q, d * p, math.copysign(0.0, a))


BINARY32 = Format("float32", 24, -149, 127)
BINARY64 = Format("float64", 53, -1074, 1023)
FORMATS = {f.name: f for f in (BINARY32, BINARY64)}
HALVES = {f.name: f for f in (Format("float16", 11, -24, 15), Format("bfloat16", 8, -133, 127))}
"""Formats that arrays are stored in; what is computed is then in BINARY32."""
