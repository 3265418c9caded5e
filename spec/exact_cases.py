"""Define the records of the profile `exact`: ``python -m spec.exact_cases`` writes spec/vectors-exact/*.json.

Every number is the one of spec/exact.py, as a hexadecimal float. Where an array
has a `seed`, its numbers come from SplitMix64 (Steele, Lea and Flood 2014), so
that sums over more than one block need no large file.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from spec.exact import Exact
from spec.generate import digest, dumps
from spec.ieee import FORMATS, HALVES, Format

Record: TypeAlias = dict[str, Any]

VECTORS = Path(__file__).parent / "vectors-exact"
PINS = VECTORS / "SHA256SUMS"

STEP = ["XPL-EXACT-001", "XPL-EXACT-002", "XPL-EXACT-003", "XPL-EXACT-004"]
FUNCTIONS = ["XPL-EXACT-005", "XPL-EXACT-006", "XPL-EXACT-007"]
WORD = 2**64
STORED = FORMATS | HALVES


def words(seed: int) -> Iterator[int]:
    """Yield 64-bit words of SplitMix64 without end."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % WORD
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
        yield z ^ z >> 31


def drawn(kind: Format, shape: list[int], seed: int, exponent: int) -> Any:
    """Return signed numbers in [-2**exponent, 2**exponent) from the upper bits of each word."""
    bits, source = kind.precision, words(seed)

    def array(sizes: list[int]) -> Any:
        if sizes:
            return [array(sizes[1:]) for _ in range(sizes[0])]
        word = next(source) >> 64 - bits
        return (word - (word >> bits - 1 << bits)) * 2.0 ** (exponent + 1 - bits)

    return array(shape)


def decoded(tensor: Record, kind: Format) -> Any:
    """Return the nested lists of a record's tensor."""
    if "seed" in tensor:
        return drawn(kind, tensor["shape"], tensor["seed"], tensor["exponent"])
    flat = iter(tensor["data"])

    def array(sizes: list[int]) -> Any:
        return [array(sizes[1:]) for _ in range(sizes[0])] if sizes else float.fromhex(next(flat))

    return array(tensor["shape"])


def encoded(array: Any) -> Record:
    """Return shape and flat data in C order, with numbers as hexadecimal floats."""
    shape, flat = [], [array]
    while flat and isinstance(flat[0], list):
        shape.append(len(flat[0]))
        flat = [v for part in flat for v in part]
    return {"shape": shape, "data": [v.hex() for v in flat]}


def seeded(name: str, T: int, B: int, sizes: Record, bias: bool = True) -> Record:
    """Return every input of a layer, each with a separate seed."""
    I, H, P = sizes["input_size"], sizes["hidden_size"], sizes["proj_size"]
    shapes = {"weight_ih": [4 * H, I], "weight_hh": [4 * H, P or H]}
    shapes |= {"bias_ih": [4 * H], "bias_hh": [4 * H]} if bias else {}
    shapes |= {"weight_hr": [P, H]} if P else {}
    shapes |= {"x": [T, B, I], "h_0": [B, P or H], "c_0": [B, H]}
    first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    exponents = {"weight_ih": -1, "weight_hh": -1, "weight_hr": -2}
    return {
        array: {"shape": shape, "seed": first + k, "exponent": exponents.get(array, 0)}
        for k, (array, shape) in enumerate(shapes.items())
    }


def layer(
    name: str, T: int, B: int, sizes: tuple[int, int, int], bias: bool = True, **options: Any
) -> Record:
    """Return a case with drawn inputs; sizes are I, H and P."""
    config: Record = dict(zip(("input_size", "hidden_size", "proj_size"), sizes, strict=True))
    config |= {"bias": bias, "reverse": False, "lengths": None, **options}
    return {"clauses": STEP, "config": config, "inputs": seeded(name, T, B, config, bias)}


def functions(kind: Format) -> Record:
    """Return one batch entry per number v: c_n is tanh(v) in the first unit and sigmoid(v) in the second."""
    bits, least, ends = kind.precision, kind.least, (8.0, 10.0, 18.0, 40.0, 87.5, 103.5, 700.0, 745.0)
    edges = [0.0, 2.0**least, 3 * 2.0 ** (least + 20), 2.0 ** (1 - bits // 2), 0.5 - 2.0**-bits, 0.5, *ends]
    values = [sign * v for v in edges for sign in (1, -1)]
    for exponent in (-4, -1, 0, 1, 2, 4):
        values += drawn(kind, [12], 100 + exponent, exponent)
    weights, biases = [[0.0], [1.0], [0.0], [0.0], [1.0], [0.0], [0.0], [0.0]], [0.0] * 8
    for row in (0, 5, 6, 7):
        biases[row] = 2000.0
    inputs = {
        "weight_ih": weights,
        "weight_hh": [[0.0, 0.0] for _ in range(8)],
        "bias_ih": biases,
        "bias_hh": [0.0] * 8,
        "x": [[[v] for v in values]],
        "h_0": [[0.0, 0.0] for _ in values],
        "c_0": [[0.0, 0.0] for _ in values],
    }
    config = {
        "input_size": 1,
        "hidden_size": 2,
        "proj_size": 0,
        "bias": True,
        "reverse": False,
        "lengths": None,
    }
    encoded_inputs = {name: encoded(a) for name, a in inputs.items()}
    return {"clauses": [*STEP, *FUNCTIONS], "config": config, "inputs": encoded_inputs}


def unit_cell(name: str, T: int, B: int, sizes: tuple[int, int], bias: bool = True, **options: Any) -> Record:
    """Return a case of a GRU or an Elman RNN, as a module of one layer; sizes are I and H."""
    gru = options["cell"] == "gru"
    blocks, (I, H) = 3 if gru else 1, sizes
    config: Record = {"input_size": I, "hidden_size": H, "num_layers": 1, "bidirectional": False}
    config |= {"bias": bias, "lengths": None, **({"reset_after": True} if gru else {}), **options}
    shapes = {"weight_ih_l0": [blocks * H, I], "weight_hh_l0": [blocks * H, H]}
    shapes |= {"bias_ih_l0": [blocks * H], "bias_hh_l0": [blocks * H]} if bias else {}
    shapes |= {"x": [T, B, I], "h_0": [1, B, H]}
    first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    exponents = {"weight_ih_l0": -1, "weight_hh_l0": -1}
    drawn_inputs = {
        array: {"shape": shape, "seed": first + k, "exponent": exponents.get(array, 0)}
        for k, (array, shape) in enumerate(shapes.items())
    }
    said = [*STEP[:3], *FUNCTIONS, "XPL-EXACT-008" if gru else "XPL-EXACT-009"]
    return {"op": "module", "clauses": said, "config": config, "inputs": drawn_inputs}


HOLES = [[True, False, True], [False, False, True], [True, False, True], [True, False, False]]


def cases(kind: Format) -> dict[str, Record]:
    """Return every record of one format, without its outputs."""
    found = {"functions": functions(kind)}
    found |= {
        name: layer(name, *case, **options)
        for name, case, options in (
            ("one-block", (3, 2, (5, 3, 0)), {}),
            ("input-of-two-blocks", (2, 2, (130, 3, 0)), {}),
            ("input-of-four-blocks", (2, 2, (385, 2, 0)), {}),
            ("no-bias", (2, 3, (129, 2, 0)), {"bias": False}),
            ("state-of-two-blocks", (2, 1, (2, 131, 0)), {}),
            ("projection-of-two-blocks", (2, 1, (3, 130, 4)), {}),
            ("ragged-reverse", (3, 3, (4, 5, 2)), {"reverse": True, "lengths": [3, 0, 2]}),
            ("mask", (4, 3, (4, 3, 0)), {"mask": HOLES}),
        )
    }
    return found


def unit_cells() -> dict[str, Record]:
    """Return every record of a GRU and an Elman RNN in one format."""
    gru: Record = {"cell": "gru"}
    tanh: Record = {"cell": "rnn", "nonlinearity": "tanh"}
    return {
        name: unit_cell(name, *case, **options)
        for name, case, options in (
            ("gru-one-block", (3, 2, (5, 3)), gru),
            ("gru-input-of-two-blocks", (2, 2, (130, 3)), gru),
            ("gru-state-of-two-blocks", (2, 1, (2, 131)), gru),
            ("gru-no-bias", (2, 3, (129, 2)), gru | {"bias": False}),
            ("gru-ragged", (3, 3, (4, 5)), gru | {"lengths": [3, 0, 2]}),
            ("gru-mask", (4, 3, (4, 3)), gru | {"mask": HOLES}),
            ("rnn-one-block", (3, 2, (5, 3)), tanh),
            ("rnn-two-blocks", (2, 2, (130, 131)), tanh),
            ("rnn-no-bias", (2, 3, (129, 2)), tanh | {"bias": False}),
            (
                "rnn-ragged-relu",
                (3, 3, (4, 5)),
                {"cell": "rnn", "nonlinearity": "relu", "lengths": [3, 0, 2]},
            ),
        )
    }


def halves() -> dict[str, Record]:
    """Return every record of one half-precision format."""
    every = cases(FORMATS["float32"]) | unit_cells()
    names = (
        *("one-block", "input-of-two-blocks", "state-of-two-blocks", "projection-of-two-blocks", "mask"),
        *("ragged-reverse", "gru-one-block", "gru-state-of-two-blocks", "rnn-one-block"),
    )
    return {n: every[n] | {"clauses": [*every[n]["clauses"], "XPL-EXACT-010"]} for n in names}


def inputs(record: Record) -> dict[str, Any]:
    """Return the arrays of a record as nested lists."""
    return {name: decoded(a, STORED[record["dtype"]]) for name, a in record["inputs"].items()}


def published(subject: Exact, record: Record) -> Record:
    """Return the outputs of `subject` for a record, in the form of the file."""
    return {name: encoded(a) for name, a in subject.layer(record["config"], inputs(record)).items()}


def records() -> dict[str, Record]:
    """Return every record by the name of its file, without its outputs."""
    by_format = {dtype: cases(kind) | unit_cells() for dtype, kind in FORMATS.items()}
    by_format |= {dtype: halves() for dtype in HALVES}
    return {
        f"{name}-{dtype}": {"name": f"{name}-{dtype}", "dtype": dtype, "op": "layer", **case}
        for dtype, found in by_format.items()
        for name, case in found.items()
    }


def main() -> int:
    VECTORS.mkdir(exist_ok=True)
    for name, record in records().items():
        outputs = published(Exact(STORED[record["dtype"]]), record)
        (VECTORS / f"{name}.json").write_text(dumps(record | {"outputs": outputs}), encoding="utf-8")
    lines = [f"{digest(path)}  {path.name}\n" for path in sorted(VECTORS.glob("*.json"))]
    PINS.write_text("".join(lines), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
