"""Write spec/vectors/*.json from the oracle: ``python -m spec.generate``.

Run by hand when a vector is added or a clause changes. The test suite
regenerates every file in memory and compares; nothing overwrites a published
number on its own.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from mpmath import mp, mpf

from spec import oracle

Record: TypeAlias = dict[str, Any]

VECTORS = Path(__file__).parent / "vectors"
PRIME, ROOT = 509, 2


class Dyadic:
    """Numbers n/512 with odd n, no two alike in 508 draws, exact in every format from float16 up.

    The powers of a primitive root visit each residue once: scattered like
    random numbers, and the same for ever on every machine.
    """

    def __init__(self, start: int) -> None:
        self.residue = pow(ROOT, start, PRIME)

    def draw(self, *shape: int) -> Any:
        if shape:
            return [self.draw(*shape[1:]) for _ in range(shape[0])]
        self.residue = self.residue * ROOT % PRIME
        return mpf(2 * self.residue - PRIME) / 512


def parameters(numbers: Dyadic, input_size: int, hidden_size: int, proj_size: int, bias: bool) -> Record:
    rows = 4 * hidden_size
    p = {
        "weight_ih": numbers.draw(rows, input_size),
        "weight_hh": numbers.draw(rows, proj_size or hidden_size),
    }
    if bias:
        p |= {"bias_ih": numbers.draw(rows), "bias_hh": numbers.draw(rows)}
    if proj_size:
        p["weight_hr"] = numbers.draw(proj_size, hidden_size)
    return p


def layer(*, start: int, T: int, B: int, config: Record, **about: Any) -> Record:
    """One layer and direction with outputs and the gradients by every input."""
    lengths = config["lengths"]
    numbers = Dyadic(start)
    output_size = config["proj_size"] or config["hidden_size"]
    sizes = {key: config[key] for key in ("input_size", "hidden_size", "proj_size", "bias")}
    inputs = parameters(numbers, **sizes) | {
        "x": numbers.draw(T, B, config["input_size"]),
        "h_0": numbers.draw(B, output_size),
        "c_0": numbers.draw(B, config["hidden_size"]),
    }
    cotangents = {
        "dy": numbers.draw(T, B, output_size),
        "dh_n": numbers.draw(B, output_size),
        "dc_n": numbers.draw(B, config["hidden_size"]),
    }
    if about.pop("nan_padding", False):
        for b, length in enumerate(lengths):
            for t in range(length, T):
                inputs["x"][t][b] = [mp.nan] * config["input_size"]
    return {
        **about,
        "op": "layer",
        "result": "valid",
        "config": config,
        "inputs": encode_all(inputs),
        "outputs": encode_all(oracle.lstm(inputs, lengths, config["reverse"])),
        "cotangents": encode_all(cotangents),
        "gradients": encode_all(oracle.gradients(inputs, cotangents, lengths, config["reverse"])),
        "tolerance": {"outputs": 8, "gradients": 32},
    }


# The documents' worked example, as decimals.
W_IH = [["0.1", "0.2", "0.3"], ["0.4", "0.5", "0.6"], ["0.7", "0.8", "0.9"], ["1.0", "1.1", "1.2"]]
W_HH = [["0.1", "0.2"], ["0.3", "0.4"], ["0.5", "0.6"], ["0.7", "0.8"]]
B_IH = ["0.01", "0.02", "0.03", "0.04"]
B_HH = ["0.05", "0.06", "0.07", "0.08"]
X, H_0, C_0 = ["0.5", "-0.2", "0.1"], ["0.3", "-0.4"], ["0.8", "-0.6"]
EXAMPLE_CONFIG = {"input_size": 3, "hidden_size": 2, "num_layers": 1, "bidirectional": False}


def example_inputs(repeat: int) -> Record:
    """Inputs of the worked example, each printed row standing for `repeat` rows of its gate."""
    rows: Record = {"weight_ih_l0": W_IH, "weight_hh_l0": W_HH, "bias_ih_l0": B_IH, "bias_hh_l0": B_HH}
    repeated = {name: [row for row in printed for _ in range(repeat)] for name, printed in rows.items()}
    return encode_all(repeated | {"x": [[X]], "h_0": [[H_0]], "c_0": [[C_0]]})


def worked_example_literal() -> Record:
    given = example_inputs(repeat=1)
    expected = {"weight_ih_l0": [8, 3], "weight_hh_l0": [8, 2], "bias_ih_l0": [8], "bias_hh_l0": [8]}
    return {
        "comment": "Hidden size 2 asks for 8 rows; the documents print 4. Refused, never repaired.",
        "clauses": ["XPL-ERR-001", "XPL-ERR-002"],
        "erratum": "E-0001",
        "op": "module",
        "result": "invalid",
        "config": EXAMPLE_CONFIG,
        "inputs": given,
        "errors": [
            {"kind": "shape", "argument": name, "expected": shape, "given": given[name]["shape"]}
            for name, shape in expected.items()
        ],
    }


def worked_example_transcript() -> Record:
    """What the printed program computes before it stops, and where it stops."""
    number = mp.mpf
    z = [
        oracle.dot([*map(number, w)], [*map(number, X)])
        + oracle.dot([*map(number, u)], [*map(number, H_0)])
        + number(b)
        + number(d)
        for w, u, b, d in zip(W_IH, W_HH, B_IH, B_HH, strict=True)
    ]
    slices = {name: [2 * k, 2 * k + 2] for k, name in enumerate("ifgo")}
    lengths = {name: len(z[lo:hi]) for name, (lo, hi) in slices.items()}
    return {
        "comment": "The printed slices of four numbers leave g and o empty; f * c + i * g cannot be formed.",
        "clauses": ["XPL-ERR-002"],
        "erratum": "E-0001",
        "op": "transcript",
        "result": "invalid",
        "inputs": example_inputs(repeat=1),
        "slices": slices,
        "outputs": {"z": encode(z)},
        "errors": [
            {"kind": "broadcast", "argument": "i * g", "expected": [lengths["i"]], "given": [lengths["g"]]}
        ],
    }


def worked_example_repaired() -> Record:
    inputs = example_inputs(repeat=2)
    p = {name.removesuffix("_l0"): decode(value) for name, value in inputs.items()}
    row = {"x": p.pop("x")[0], "h_0": p.pop("h_0")[0], "c_0": p.pop("c_0")[0]}
    h, c, gates = oracle.cell(p, row["x"][0], row["h_0"][0], row["c_0"][0])
    return {
        "comment": "Our reading: each printed row serves both hidden units of its gate.",
        "clauses": ["XPL-CELL-001", "XPL-CELL-002", "XPL-CELL-003", "XPL-CELL-006", "XPL-NUM-001"],
        "erratum": "E-0001",
        "op": "module",
        "result": "valid",
        "config": EXAMPLE_CONFIG,
        "inputs": inputs,
        "outputs": encode_all(
            {"y": [[h]], "h_n": [[h]], "c_n": [[c]]} | {k: [[v]] for k, v in gates.items()}
        ),
        "tolerance": {"outputs": 8, "gradients": 32},
    }


def worked_example_companion() -> Record:
    return layer(
        start=0,
        T=5,
        B=4,
        config=layer_config(3, 2),
        comment="The worked example's sizes with eight distinct rows, so that no gate can stand for another.",
        clauses=["XPL-CELL-002", "XPL-CELL-003", "XPL-SEQ-001", "XPL-SEQ-002", "XPL-GRAD-001", "XPL-NUM-001"],
        erratum="E-0001",
    )


def ragged_reverse() -> Record:
    return layer(
        start=130,
        T=6,
        B=5,
        config=layer_config(4, 3, reverse=True, lengths=[3, 0, 6, 1, 4]),
        comment="A backward direction over rows of different lengths, one of them empty.",
        clauses=["XPL-SEQ-003", "XPL-SEQ-004", "XPL-SEQ-005", "XPL-GRAD-001", "XPL-GRAD-002", "XPL-NUM-001"],
    )


def ragged_projection() -> Record:
    return layer(
        start=300,
        T=4,
        B=6,
        config=layer_config(5, 3, proj_size=2, bias=False, lengths=[4, 2, 0, 3, 1, 4]),
        comment="A projection, no biases, and NaN in the padding of x.",
        clauses=["XPL-CELL-004", "XPL-CELL-005", "XPL-SEQ-003", "XPL-SEQ-004", "XPL-GRAD-002", "XPL-NUM-001"],
        nan_padding=True,
    )


def layer_config(
    input_size: int,
    hidden_size: int,
    proj_size: int = 0,
    bias: bool = True,
    reverse: bool = False,
    lengths: list[int] | None = None,
) -> Record:
    return {
        "input_size": input_size,
        "hidden_size": hidden_size,
        "proj_size": proj_size,
        "bias": bias,
        "reverse": reverse,
        "lengths": lengths,
    }


BUILDERS: dict[str, Callable[[], Record]] = {
    "worked-example-literal": worked_example_literal,
    "worked-example-transcript": worked_example_transcript,
    "worked-example-repaired": worked_example_repaired,
    "worked-example-companion": worked_example_companion,
    "ragged-reverse": ragged_reverse,
    "ragged-projection": ragged_projection,
}


def record(name: str) -> Record:
    """Build one published record, in the precision of the oracle."""
    with mp.workdps(oracle.DIGITS):
        return {"name": name, **BUILDERS[name]()}


def encode_all(arrays: Record) -> Record:
    return {name: encode(array) for name, array in arrays.items()}


def encode(array: Any) -> Record:
    """Shape and flat data in C order; numbers as decimals of 40 digits, shorter where exact."""
    shape, flat = [], array
    while isinstance(flat, list):
        shape.append(len(flat))
        flat = flat[0]
    return {"shape": shape, "data": [text(v) for v in flatten(array)]}


def flatten(array: Any) -> Iterator[Any]:
    if not isinstance(array, list):
        yield array
        return
    for part in array:
        yield from flatten(part)


def text(value: Any) -> str:
    return value if isinstance(value, str) else str(mp.nstr(value, 40, strip_zeros=True))


def decode(array: Record) -> Any:
    """Nested lists of mpf from shape and data."""
    values: list[Any] = [mpf(v) for v in array["data"]]
    for size in reversed(array["shape"][1:]):
        values = [values[k : k + size] for k in range(0, len(values), size)]
    return values


def dumps(content: Record) -> str:
    """JSON with the innermost lists filled to the line, for people who read diffs."""
    body = json.dumps(content, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda m: fill(m[0]), body) + "\n"


def fill(numbers: str) -> str:
    return textwrap.fill(" ".join(numbers.split()), 100, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    for name in BUILDERS:
        path = VECTORS / f"{name}.json"
        path.write_text(dumps(record(name)), encoding="utf-8")
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
