"""An LSTM in scalar loops at 90 digits: where the numbers of every vector come from.

Meant to be checked by eye against SPEC.md. It imports neither an array library
nor any implementation under test, and has no backward pass of its own: a
gradient is a central difference of the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
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


def lstm(
    arrays: Arrays, steps: Sequence[Sequence[int]] | None = None, reverse: bool = False
) -> dict[str, Nested]:
    """XPL-SEQ-001 to XPL-SEQ-007: one layer, one direction; `steps` are the times of each row that exist."""
    x, h_0, c_0 = arrays["x"], arrays["h_0"], arrays["c_0"]
    T, B, output_size = len(x), len(h_0), len(h_0[0])
    y = [[[mpf(0)] * output_size for _ in range(B)] for _ in range(T)]
    h_n, c_n = [], []
    for b in range(B):
        h, c = h_0[b], c_0[b]
        walk = range(T) if steps is None else steps[b]
        for t in reversed(walk) if reverse else walk:
            h, c, _ = cell(arrays, x[t][b], h, c)
            y[t][b] = h
        h_n.append(h)
        c_n.append(c)
    return {"y": y, "h_n": h_n, "c_n": c_n}


def stack(
    arrays: Arrays,
    steps: Sequence[Sequence[int]] | None,
    num_layers: int,
    suffixes: Sequence[str],
    masks: Sequence[Nested | None],
) -> dict[str, Nested]:
    """XPL-STK-001 to XPL-STK-003 and XPL-DRP-001: layers, each with the directions of `suffixes`."""
    x, h_n, c_n = arrays["x"], [], []
    for layer in range(num_layers):
        x = multiply(x, masks[layer]) if masks[layer] is not None else x
        ends = []
        for d, suffix in enumerate(suffixes):
            ending = f"_l{layer}{suffix}"
            p = {name.removesuffix(ending): a for name, a in arrays.items() if name.endswith(ending)}
            at = layer * len(suffixes) + d
            p |= {"x": x, "h_0": arrays["h_0"][at], "c_0": arrays["c_0"][at]}
            ends.append(lstm(p, steps, reverse=suffix == "_reverse"))
        x = [[join(end["y"][t][b] for end in ends) for b in range(len(row))] for t, row in enumerate(x)]
        h_n += [end["h_n"] for end in ends]
        c_n += [end["c_n"] for end in ends]
    return {"y": x, "h_n": h_n, "c_n": c_n}


def join(parts: Iterable[Nested]) -> Nested:
    """The numbers of all parts, side by side."""
    return [value for part in parts for value in part]


def multiply(u: Any, v: Any) -> Any:
    """Products, number by number, over nested lists of one shape."""
    return [multiply(a, b) for a, b in zip(u, v, strict=True)] if isinstance(u, list) else u * v


def philox(key: Sequence[int], counter: Sequence[int]) -> list[int]:
    """XPL-DRP-003: the four words of one block of Philox 4x64-10, Salmon and others (2011), in integers."""
    word = (1 << 64) - 1
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (right >> 64) ^ c1 ^ k0, right & word, (left >> 64) ^ c3 ^ k1, left & word
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & word, (k1 + 0xBB67AE8584CAA73B) & word
    return [c0, c1, c2, c3]


def dropout_mask(key: Sequence[int], stream: int, p: Number, shape: tuple[int, int, int]) -> Nested:
    """XPL-DRP-002 and XPL-DRP-003: 0 with probability p, else 1 / (1 - p)."""
    T, B, size = shape

    def element(n: int) -> Number:
        drawn = mpf(philox(key, (n // 4 + 1, 0, stream, 0))[n % 4] >> 11) / 2**53
        return 1 / (1 - p) if drawn >= p else mpf(0)

    return [[[element((t * B + b) * size + k) for k in range(size)] for b in range(B)] for t in range(T)]


def gradients(
    run: Callable[[Arrays], dict[str, Nested]],
    arrays: Arrays,
    cotangents: Arrays,
    wanted: Callable[[str, int], bool] = lambda _name, _index: True,
) -> dict[str, Nested]:
    """XPL-GRAD-001: of sum(dy y) + sum(dh_n h_n) + sum(dc_n c_n), by every input number that is wanted."""

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
    """Sum of products over nested lists of any depth."""
    if isinstance(u, list):
        return sum((inner(a, b) for a, b in zip(u, v, strict=True)), mpf(0))
    return u * v


def differences(objective: Callable[[], Number], array: Nested, wanted: Callable[[], bool]) -> Nested:
    """Central difference of `objective` by each number of `array`, which it reads; None if not wanted."""
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
