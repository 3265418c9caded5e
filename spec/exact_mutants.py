"""Define layers that add in another order or round differently, which the records of `exact` must detect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from spec.exact import Array, Config, Exact, Row
from spec.ieee import BINARY64, HALVES, Format


class SmallBlocks(Exact):
    """Each block has 64 terms."""

    block = 64


class LargeBlocks(Exact):
    """Each block has 256 terms."""

    block = 256


class OneBlock(Exact):
    """One chain contains all terms."""

    block = 2**30


class ShortBlockFirst(Exact):
    """The incomplete block comes before the complete blocks."""

    def blocks(self, w: Row, v: Row) -> list[float]:
        first = len(w) % self.block
        head = [self.chain(w[:first], v[:first])] if first else []
        return head + (super().blocks(w[first:], v[first:]) if len(w) > first else [])


class DescendingTerms(Exact):
    """A chain runs in descending k."""

    def chain(self, w: Row, v: Row) -> float:
        return super().chain(w[::-1], v[::-1])


class TwoChains(Exact):
    """Even and odd k have separate chains."""

    def chain(self, w: Row, v: Row) -> float:
        return self.kind.add(super().chain(w[::2], v[::2]), super().chain(w[1::2], v[1::2]))


class Unfused(Exact):
    """A product is rounded before it is added."""

    def chain(self, w: Row, v: Row) -> float:
        s = 0.0
        for a, b in zip(w, v, strict=True):
            s = self.kind.add(s, self.kind.mul(a, b))
        return s


class RoundedOnce(Exact):
    """Each block is exact until its end."""

    def chain(self, w: Row, v: Row) -> float:
        total = sum(Fraction(a) * Fraction(b) for a, b in zip(w, v, strict=True))
        return self.kind.rounded(*Fraction(total).as_integer_ratio())


class DescendingBlocks(Exact):
    """The last block is added first."""

    def blocks(self, w: Row, v: Row) -> list[float]:
        return super().blocks(w, v)[::-1]


class BlocksInPairs(Exact):
    """Blocks are added as a tree."""

    def total(self, parts: Sequence[float]) -> float:
        while len(parts) > 1:
            pairs = [self.kind.add(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = [*pairs, *(parts[-1:] if len(parts) % 2 else ())]
        return parts[0]


class BiasesFirst(Exact):
    """The chain over the input starts from the biases."""

    def pre_activation(self, a: Array, row: int, x: Row, h: Row) -> float:
        add = self.kind.add
        u = add(a["bias_ih"][row], a["bias_hh"][row]) if "bias_ih" in a else 0.0
        parts = [*self.blocks(a["weight_ih"][row], x), *self.blocks(a["weight_hh"][row], h)]
        return self.total([u, *parts])


class BiasesLast(Exact):
    """The biases are added after both products."""

    def pre_activation(self, a: Array, row: int, x: Row, h: Row) -> float:
        add = self.kind.add
        z = self.total([*self.blocks(a["weight_ih"][row], x), *self.blocks(a["weight_hh"][row], h)])
        return add(z, add(a["bias_ih"][row], a["bias_hh"][row])) if "bias_ih" in a else z


class BiasesOneByOne(Exact):
    """Each bias is added to the sum, and not first to the other bias."""

    def pre_activation(self, a: Array, row: int, x: Row, h: Row) -> float:
        parts = self.blocks(a["weight_ih"][row], x)
        parts += [a["bias_ih"][row], a["bias_hh"][row]] if "bias_ih" in a else []
        return self.total([*parts, *self.blocks(a["weight_hh"][row], h)])


class ProductsApart(Exact):
    """The state's blocks are added to each other before the input's part."""

    def pre_activation(self, a: Array, row: int, x: Row, h: Row) -> float:
        none = {name: v for name, v in a.items() if name != "weight_hh"} | {"weight_hh": {row: [0.0]}}
        u = super().pre_activation(none, row, x, [0.0])
        return self.kind.add(u, self.total(self.blocks(a["weight_hh"][row], h)))


class StateFirst(Exact):
    """The state's part comes before the input's part."""

    def pre_activation(self, a: Array, row: int, x: Row, h: Row) -> float:
        parts = [*self.blocks(a["weight_hh"][row], h), *self.blocks(a["weight_ih"][row], x)]
        parts += [self.kind.add(a["bias_ih"][row], a["bias_hh"][row])] if "bias_ih" in a else []
        return self.total(parts)


class OneSum(Exact):
    """x and h form one row, which is divided into blocks."""

    def pre_activation(self, a: Array, row: int, x: Row, h: Row) -> float:
        z = self.total(self.blocks([*a["weight_ih"][row], *a["weight_hh"][row]], [*x, *h]))
        return self.kind.add(z, self.kind.add(a["bias_ih"][row], a["bias_hh"][row])) if "bias_ih" in a else z


class CellUnfused(Exact):
    """f * c is rounded too."""

    def new_cell(self, f: float, c: float, i: float, g: float) -> float:
        return self.kind.add(self.kind.mul(f, c), self.kind.mul(i, g))


class CellFusedOtherwise(Exact):
    """i * g is the product that is not rounded."""

    def new_cell(self, f: float, c: float, i: float, g: float) -> float:
        return self.kind.fma(i, g, self.kind.mul(f, c))


class SigmoidNearest(Exact):
    """The result is the number nearest to sigmoid."""

    def sigmoid(self, x: float) -> float:
        e = math.exp(-abs(x))
        return self.kind.nearest((e if x < 0 else 1.0) / (1 + e))


class TanhNearest(Exact):
    """The result is the number nearest to tanh."""

    def tanh(self, x: float) -> float:
        return self.kind.nearest(math.tanh(x))


class SigmoidByTanh(Exact):
    """The result is (1 + tanh(x / 2)) / 2."""

    def sigmoid(self, x: float) -> float:
        return self.kind.fma(0.5, self.tanh(self.kind.mul(0.5, x)), 0.5)


class Unrefined(Exact):
    """The quotients are not corrected."""

    def refined(self, y: float, e: float) -> float:  # noqa: ARG002 - the signature of what it replaces
        return y


class TanhWithoutLost(Exact):
    """The rounding error of the first sum is not added."""

    def lost(self, s: float, r: float, b: float, first: float) -> float:  # noqa: ARG002 - as above
        return 0.0


class Flushed(Exact):
    """Subnormal results become zero."""

    def layer(self, config: Config, a: Array) -> dict[str, Any]:
        least = 2.0 ** (self.kind.least + self.kind.precision - 1)
        found = super().layer(config, a)
        return {name: flushed(v, least) for name, v in found.items()}


def flushed(v: Any, least: float) -> Any:
    return [flushed(w, least) for w in v] if isinstance(v, list) else v * (abs(v) >= least)


class Doubled(Exact):
    """Sums of float32 are computed in float64."""

    def chain(self, w: Row, v: Row) -> float:
        s = 0.0
        for a, b in zip(w, v, strict=True):
            s = BINARY64.fma(a, b, s)
        return self.kind.nearest(s)


class MixedUnfused(Exact):
    """z * n is rounded before it is subtracted."""

    def mixed(self, n: float, z: float, h: float) -> float:
        return self.kind.fma(z, h, self.kind.sub(n, self.kind.mul(z, n)))


class MixedByDifference(Exact):
    """The new state is n + z * (h - n)."""

    def mixed(self, n: float, z: float, h: float) -> float:
        return self.kind.fma(z, self.kind.sub(h, n), n)


class NewGateBiasLast(Exact):
    """b_hn is added after the blocks of W_hn h."""

    def new_gate_of_state(self, blocks: list[float], bias: float) -> float:
        return self.total([*blocks, bias])


class NarrowState(Exact):
    """The state is rounded to half precision after each step."""

    def step(self, a: Array, x: Row, h: Row, c: Row) -> tuple[Row, Row]:
        h, c = super().step(a, x, h, c)
        return self.narrowed(h), self.narrowed(c)


class NarrowHidden(Exact):
    """The hidden state of a GRU or an RNN is rounded to half precision after each step."""

    def gru_step(self, a: Array, x: Row, h: Row) -> Row:
        return list(self.narrowed(super().gru_step(a, x, h)))

    def rnn_step(self, a: Array, x: Row, h: Row, relu: bool) -> Row:
        return list(self.narrowed(super().rnn_step(a, x, h, relu)))


class Truncated(Exact):
    """Results are truncated to half precision, not rounded."""

    def narrowed(self, v: Any) -> Any:
        if isinstance(v, float) and self.stored.name in HALVES and math.isfinite(v):
            near = self.stored.nearest(v)
            unit = 2.0 ** max(math.frexp(near)[1] - self.stored.precision, self.stored.least)
            return near - math.copysign(unit, near) if abs(near) > abs(v) else near
        return super().narrowed(v)


Mutant: TypeAlias = Callable[[Format], Exact]

MUTANTS: tuple[Mutant, ...] = (
    *(SmallBlocks, LargeBlocks, OneBlock, ShortBlockFirst, DescendingTerms, TwoChains, Unfused, RoundedOnce),
    *(DescendingBlocks, BlocksInPairs, BiasesFirst, BiasesLast, BiasesOneByOne, ProductsApart),
    *(StateFirst, OneSum, CellUnfused, CellFusedOtherwise, SigmoidNearest, TanhNearest, SigmoidByTanh),
    *(Unrefined, TanhWithoutLost, Flushed, Doubled),
)
OF_GRU: tuple[Mutant, ...] = (MixedUnfused, MixedByDifference, NewGateBiasLast)
OF_HALVES: tuple[Mutant, ...] = (NarrowState, NarrowHidden, Truncated)
