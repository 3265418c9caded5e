"""Define an LSTM in scalar loops with 90 digits, which computes the numbers of every vector.

Meant to be checked by eye against SPEC.md. It imports neither an array library
nor any implementation under test, and has no backward pass of its own: a
gradient is a central difference of the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import count
from typing import Any, NamedTuple, TypeAlias

from mpmath import mp, mpf, tanh

Number: TypeAlias = Any
Nested: TypeAlias = list[Any]
Arrays: TypeAlias = Mapping[str, Nested]
Key: TypeAlias = tuple[int, int]
Resets: TypeAlias = Sequence[Sequence[bool]] | None

DIGITS = 90
# The truncation error of a central difference goes with STEP**2 = 1e-60, its cancellation with
# 10**-DIGITS / STEP = 1e-60: both far below the 40 digits that are published.
STEP = mpf(10) ** -30


def sigmoid(z: Number) -> Number:
    return 1 / (1 + mp.exp(-z))


# XPL-VAR-003, with the values that alpha and beta have where none are given.
ACTIVATIONS: dict[str, tuple[Callable[..., Number], tuple[str, ...]]] = {
    "sigmoid": (sigmoid, ()),
    "tanh": (tanh, ()),
    "relu": (lambda z: z if z > 0 else mpf(0), ()),
    "identity": (lambda z: z, ()),
    "affine": (lambda z, alpha, beta: alpha * z + beta, ("1", "0")),
    "leaky_relu": (lambda z, alpha: z if z >= 0 else alpha * z, ("0.01",)),
    "thresholded_relu": (lambda z, alpha: z if z >= alpha else mpf(0), ("1",)),
    "scaled_tanh": (lambda z, alpha, beta: alpha * tanh(beta * z), ("1", "1")),
    "hard_sigmoid": (lambda z, alpha, beta: min(max(alpha * z + beta, mpf(0)), mpf(1)), ("0.2", "0.5")),
    "elu": (lambda z, alpha: z if z >= 0 else alpha * (mp.exp(z) - 1), ("1",)),
    "softsign": (lambda z: z / (1 + abs(z)), ()),
    "softplus": (lambda z: mp.log(1 + mp.exp(z)), ()),
}


def activation(name: str, *given: str) -> Callable[[Number], Number]:
    """Return the function with this name; alpha and beta are decimals."""
    function, defaults = ACTIVATIONS[name]
    settings = [mpf(v) for v in (*given, *defaults[len(given) :])]
    return lambda z: function(z, *settings)


class Variant(NamedTuple):
    """Options of XPL-VAR for one layer and direction."""

    peepholes: bool = False
    coupled: bool = False
    activations: tuple[Callable[[Number], Number], ...] = (sigmoid, tanh, tanh)
    gate_clip: Number | None = None
    cell_clip: Number | None = None
    layer_norm: bool = False
    zoneout_h: Number = mpf(0)
    zoneout_c: Number = mpf(0)
    recurrent_dropout: Number = mpf(0)


class Noise(NamedTuple):
    """XPL-VAR-016: the key of a call, and the number of the layer and direction that draws."""

    key: Key
    stream: int


PLAIN = Variant()


def dot(u: Nested, v: Nested) -> Number:
    return mp.fdot(zip(u, v, strict=True))


def clamp(v: Number, bound: Number | None) -> Number:
    """Return the nearest number in [-bound, bound]; NaN stays NaN."""
    return v if bound is None or not abs(v) > bound else mp.sign(v) * bound


def normalised(v: Nested) -> Nested:
    """XPL-VAR-007: subtract the mean, and divide by the root of the biased variance and 1e-5."""
    mean = sum(v) / len(v)
    variance = sum((a - mean) ** 2 for a in v) / len(v)
    return [(a - mean) / mp.sqrt(variance + mpf("1e-5")) for a in v]


def scale(v: Nested, gain: Nested) -> Nested:
    return [a * k for a, k in zip(v, gain, strict=True)]


def sums(p: Arrays, x: Nested, h: Nested, layer_norm: bool) -> Nested:
    """XPL-CELL-002 and XPL-VAR-007: return the pre-activations from x and h."""
    of_x, of_h = [dot(w, x) for w in p["weight_ih"]], [dot(w, h) for w in p["weight_hh"]]
    if layer_norm:
        of_x, of_h = scale(normalised(of_x), p["gain_ih"]), scale(normalised(of_h), p["gain_hh"])
    z = [a + b for a, b in zip(of_x, of_h, strict=True)]
    if "bias_ih" in p:
        z = [a + b + d for a, b, d in zip(z, p["bias_ih"], p["bias_hh"], strict=True)]
    return z


def cell(
    p: Arrays, x: Nested, h: Nested, c: Nested, variant: Variant = PLAIN
) -> tuple[Nested, Nested, dict[str, Nested]]:
    """XPL-CELL-002 to XPL-CELL-004, XPL-VAR-001 to XPL-VAR-008: run one step of one batch entry."""
    F, G, H = variant.activations
    n = len(c)
    clip = partial(clamp, bound=variant.gate_clip)
    z = sums(p, x, h, variant.layer_norm)
    z_i, z_f, z_g, z_o = (z[k * n : (k + 1) * n] for k in range(4))
    peep = p["weight_ch"] if variant.peepholes else [mpf(0)] * (3 * n)
    i = [F(clip(a + w * c_k)) for a, w, c_k in zip(z_i, peep[:n], c, strict=True)]
    f = [F(clip(a + w * c_k)) for a, w, c_k in zip(z_f, peep[n : 2 * n], c, strict=True)]
    f = [1 - a for a in i] if variant.coupled else f
    g = [G(clip(a)) for a in z_g]
    c = [f_k * c_k + i_k * g_k for f_k, c_k, i_k, g_k in zip(f, c, i, g, strict=True)]
    c = [clamp(c_k, variant.cell_clip) for c_k in c]
    o = [F(clip(a + w * c_k)) for a, w, c_k in zip(z_o, peep[2 * n :], c, strict=True)]
    seen = scale(normalised(c), p["gain_c"]) if variant.layer_norm else c
    seen = [a + b for a, b in zip(seen, p["bias_c"], strict=True)] if "bias_c" in p else seen
    h = [o_k * H(a) for o_k, a in zip(o, seen, strict=True)]
    gates = {"i": i, "f": f, "g": g, "o": o}
    return ([dot(w, h) for w in p["weight_hr"]] if "weight_hr" in p else h), c, gates


def zoned(old: Nested, new: Nested, p: Number, drawn: Nested | None) -> Nested:
    """XPL-VAR-009 and XPL-VAR-010: keep old values if a draw is below p; without draws, the expectation."""
    if drawn is None:
        return [p * a + (1 - p) * b for a, b in zip(old, new, strict=True)] if p else new
    return [a if v < p else b for a, b, v in zip(old, new, drawn, strict=True)]


def parted(resets: Resets, b: int, earlier: int, later: int) -> bool:
    """XPL-SEQ-010: return whether a segment of entry `b` begins after one time, up to another."""
    return resets is not None and any(resets[t][b] for t in range(earlier + 1, later + 1))


def lstm(
    arrays: Arrays,
    steps: Sequence[Sequence[int]] | None = None,
    reverse: bool = False,
    variant: Variant = PLAIN,
    noise: Noise | None = None,
    resets: Resets = None,
) -> dict[str, Nested]:
    """XPL-SEQ-001 to XPL-SEQ-010: run one layer and direction; `steps` are the valid steps of each entry."""
    x, h_0, c_0 = arrays["x"], arrays["h_0"], arrays["c_0"]
    T, B, output_size = len(x), len(h_0), len(h_0[0])
    kept = dropped(noise, 1, variant.recurrent_dropout, (B, output_size))
    y = [[[mpf(0)] * output_size for _ in range(B)] for _ in range(T)]
    h_n, c_n = [], []
    for b in range(B):
        h, c = h_0[b], c_0[b]
        walk = range(T) if steps is None else steps[b]
        # Before its first step a backward direction has no boundary.
        last = T if reverse else -1
        for t in reversed(walk) if reverse else walk:
            if last < T and parted(resets, b, min(t, last), max(t, last)):
                h, c = [mpf(0)] * len(h), [mpf(0)] * len(c)
            last = t
            h_new, c_new, _ = cell(arrays, x[t][b], scale(h, kept[b]) if kept else h, c, variant)
            zone_h = draws(*noise, 2, t, B, output_size)[b] if noise else None
            zone_c = draws(*noise, 3, t, B, len(c))[b] if noise else None
            h, c = zoned(h, h_new, variant.zoneout_h, zone_h), zoned(c, c_new, variant.zoneout_c, zone_c)
            y[t][b] = h
        h_n.append(h)
        c_n.append(c)
    return {"y": y, "h_n": h_n, "c_n": c_n}


class Stack(NamedTuple):
    """Layers and directions, and the operations around them."""

    num_layers: int
    suffixes: tuple[str, ...]
    variants: tuple[Variant, ...] = (PLAIN, PLAIN)
    """One for each direction."""
    merge: str = "concat"
    key: Key | None = None
    dropout: Number = mpf(0)
    input_dropout: Number = mpf(0)
    weight_dropout: Number = mpf(0)


def stack(
    arrays: Arrays, steps: Sequence[Sequence[int]] | None, options: Stack, resets: Resets = None
) -> dict[str, Nested]:
    """XPL-STK-001 to XPL-STK-003, XPL-DRP and XPL-VAR-013 to XPL-VAR-015: run layers and directions."""
    x, h_n, c_n = arrays["x"], [], []
    directions = len(options.suffixes)
    ends: list[dict[str, Nested]] = []
    for layer in range(options.num_layers):
        if layer:
            x = merged([end["y"] for end in ends], "concat" if options.merge == "none" else options.merge)
        x, ends = dropped_input(x, layer, options), []
        for d, suffix in enumerate(options.suffixes):
            ending, at = f"_l{layer}{suffix}", layer * directions + d
            p = {name.removesuffix(ending): a for name, a in arrays.items() if name.endswith(ending)}
            noise = Noise(options.key, at) if options.key else None
            shape = (len(p["weight_hh"]), len(p["weight_hh"][0]))
            kept = dropped(noise, 5, options.weight_dropout, shape)
            p["weight_hh"] = multiply(p["weight_hh"], kept) if kept else p["weight_hh"]
            p |= {"x": x, "h_0": arrays["h_0"][at], "c_0": arrays["c_0"][at]}
            ends.append(lstm(p, steps, suffix == "_reverse", options.variants[d], noise, resets))
        h_n += [end["h_n"] for end in ends]
        c_n += [end["c_n"] for end in ends]
    ys = [end["y"] for end in ends]
    return {"y": ys if options.merge == "none" else merged(ys, options.merge), "h_n": h_n, "c_n": c_n}


def merged(ys: Sequence[Nested], how: str) -> Nested:
    """XPL-VAR-014: return the merged outputs of the directions of a layer."""
    combine: dict[str, Callable[[Sequence[Nested]], Nested]] = {
        "concat": join,
        "sum": lambda rows: [sum(v) for v in zip(*rows, strict=True)],
        "mean": lambda rows: [sum(v) / len(v) for v in zip(*rows, strict=True)],
        "product": lambda rows: [mp.fprod(v) for v in zip(*rows, strict=True)],
    }
    T, B = len(ys[0]), len(ys[0][0]) if ys[0] else 0
    return [[combine[how]([y[t][b] for y in ys]) for b in range(B)] for t in range(T)]


def join(parts: Iterable[Nested]) -> Nested:
    """Concatenate the numbers of all parts."""
    return [value for part in parts for value in part]


def dropped_input(x: Nested, layer: int, options: Stack) -> Nested:
    """XPL-DRP-001 and XPL-VAR-013: return the input of a layer times its masks."""
    if not options.key or not x:
        return x
    T, B, size = len(x), len(x[0]), len(x[0][0])
    noise = Noise(options.key, layer)
    between = dropped(noise, 0, options.dropout, (T * B, size)) if layer else None
    x = multiply(x, [between[t * B : (t + 1) * B] for t in range(T)]) if between else x
    once = dropped(noise, 4, options.input_dropout, (B, size))
    return multiply(x, [once] * T) if once else x


def multiply(u: Any, v: Any) -> Any:
    """Multiply nested lists of one shape element by element."""
    return [multiply(a, b) for a, b in zip(u, v, strict=True)] if isinstance(u, list) else u * v


def philox(key: Sequence[int], counter: Sequence[int]) -> list[int]:
    """XPL-DRP-003: return the four words of a block of Philox 4x64-10 (Salmon and others, 2011)."""
    word = (1 << 64) - 1
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (right >> 64) ^ c1 ^ k0, right & word, (left >> 64) ^ c3 ^ k1, left & word
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & word, (k1 + 0xBB67AE8584CAA73B) & word
    return [c0, c1, c2, c3]


@cache
def draws(key: Key, stream: int, purpose: int, t: int, rows: int, size: int) -> Nested:
    """XPL-DRP-003 and XPL-VAR-016: return numbers in [0, 1), equal for equal arguments."""

    def element(n: int) -> Number:
        return mpf(philox(key, (n // 4 + 1, t, stream, purpose))[n % 4] >> 11) / 2**53

    return [[element(row * size + k) for k in range(size)] for row in range(rows)]


def dropped(noise: Noise | None, purpose: int, p: Number, shape: tuple[int, int]) -> Nested | None:
    """XPL-DRP-002: return 0 with probability p, else 1 / (1 - p); None without dropout."""
    if noise is None or not p:
        return None
    drawn = draws(*noise, purpose, 0, *shape)
    return [[1 / (1 - p) if v >= p else mpf(0) for v in row] for row in drawn]


def gradients(
    run: Callable[[Arrays], dict[str, Nested]],
    arrays: Arrays,
    cotangents: Arrays,
    wanted: Callable[[str, int], bool] = lambda _name, _index: True,
) -> dict[str, Nested]:
    """XPL-GRAD-001: return the requested gradients of sum(dy y) + sum(dh_n h_n) + sum(dc_n c_n)."""

    def objective() -> Number:
        outputs = run(arrays)
        return sum((inner(cotangents[f"d{name}"], value) for name, value in outputs.items()), mpf(0))

    def chosen(name: str, indices: Iterator[int]) -> bool:
        return wanted(name, next(indices))

    return {
        f"d{name}": differences(objective, array, partial(chosen, name, count()))
        for name, array in arrays.items()
    }


def inner(u: Any, v: Any) -> Number:
    """Return the sum of products of nested lists of any depth."""
    if isinstance(u, list):
        return sum((inner(a, b) for a, b in zip(u, v, strict=True)), mpf(0))
    return u * v


def differences(objective: Callable[[], Number], array: Nested, wanted: Callable[[], bool]) -> Nested:
    """Return central differences of `objective` for each number of `array`; None if not requested."""
    result: Nested = []
    for k, value in enumerate(array):
        if isinstance(value, list):
            result.append(differences(objective, value, wanted))
            continue
        if not wanted():
            result.append(None)
            continue
        array[k] = value + STEP
        above = objective()
        array[k] = value - STEP
        below = objective()
        array[k] = value
        result.append((above - below) / (2 * STEP))
    return result
