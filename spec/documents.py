"""Define the cases in the source documents, and their errata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpmath import mp, mpf, tanh

from spec import oracle
from spec.dyadic import Dyadic, Record, decode, encode, encode_all
from spec.families import Wanted, answered, layer, layer_config

# The documents' worked example, as decimals.
W_IH = [["0.1", "0.2", "0.3"], ["0.4", "0.5", "0.6"], ["0.7", "0.8", "0.9"], ["1.0", "1.1", "1.2"]]
W_HH = [["0.1", "0.2"], ["0.3", "0.4"], ["0.5", "0.6"], ["0.7", "0.8"]]
B_IH = ["0.01", "0.02", "0.03", "0.04"]
B_HH = ["0.05", "0.06", "0.07", "0.08"]
X, H_0, C_0 = ["0.5", "-0.2", "0.1"], ["0.3", "-0.4"], ["0.8", "-0.6"]
EXAMPLE_CONFIG = {"input_size": 3, "hidden_size": 2, "num_layers": 1, "bidirectional": False}


def example_inputs(repeat: int) -> Record:
    """Return the inputs of the worked example, with each printed row repeated `repeat` times for its gate."""
    rows: Record = {"weight_ih_l0": W_IH, "weight_hh_l0": W_HH, "bias_ih_l0": B_IH, "bias_hh_l0": B_HH}
    repeated = {name: [row for row in printed for _ in range(repeat)] for name, printed in rows.items()}
    return encode_all(repeated | {"x": [[X]], "h_0": [[H_0]], "c_0": [[C_0]]})


def worked_example_literal(_: Wanted) -> Record:
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


def worked_example_transcript(_: Wanted) -> Record:
    """Return what the printed program computes before it stops, and where it stops."""
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


def worked_example_repaired(_: Wanted) -> Record:
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
    }


def worked_example_companion(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=0,
        T=5,
        B=4,
        config=layer_config(3, 2),
        comment="The worked example's sizes with eight distinct rows, so that no gate can stand for another.",
        clauses=["XPL-CELL-002", "XPL-CELL-003", "XPL-SEQ-001", "XPL-SEQ-002", "XPL-GRAD-001", "XPL-NUM-001"],
        erratum="E-0001",
    )


def zeros(*shape: int) -> Any:
    return [zeros(*shape[1:]) for _ in range(shape[0])] if shape else mpf(0)


def training_two_steps(wanted: Wanted) -> Record:
    """Return document 001: x = [1, 2, 3], [2, 3, 4] and an error d = [1, 2] at the last output."""
    numbers = Dyadic(90)
    inputs = {
        "weight_ih": numbers.draw(8, 3),
        "weight_hh": numbers.draw(8, 2),
        "bias_ih": zeros(8),
        "bias_hh": zeros(8),
        "x": [[[mpf(v) for v in row]] for row in ((1, 2, 3), (2, 3, 4))],
        "h_0": zeros(1, 2),
        "c_0": zeros(1, 2),
    }
    cotangents = {"dy": zeros(2, 1, 2), "dh_n": [[mpf(1), mpf(2)]], "dc_n": zeros(1, 2)}
    about = {
        "comment": "Training by two steps; beside the gradients, those that the printed code computes.",
        "clauses": ["XPL-GRAD-001"],
        "erratum": "E-0002",
        "op": "layer",
        "printed": encode_all(printed_gradients(inputs, [mpf(1), mpf(2)])),
    }
    return answered(about, layer_config(3, 2), inputs, oracle.lstm, cotangents, wanted)


def printed_gradients(inputs: Record, delta_h: list[Any]) -> Record:
    """Return the result of document 001's backward pass, with its three faults, in this gate order."""
    h, c = inputs["h_0"][0], inputs["c_0"][0]
    kept = []
    for x in inputs["x"]:
        before = (h, c)
        h, c, gates = oracle.cell(inputs, x[0], h, c)
        kept.append((*before, c, gates))
    total, dbias, last = zeros(8, 2), zeros(8), None
    for h_before, c_before, c_after, a in reversed(kept):
        dz: dict[str, list[Any]] = {name: [] for name in "ifgo"}
        for k, delta in enumerate(delta_h):
            squashed = tanh(c_after[k])
            # The fault: what comes back along f * c, from the step after, is missing here.
            dc = delta * a["o"][k] * (1 - squashed**2)
            dz["i"].append(dc * a["g"][k] * a["i"][k] * (1 - a["i"][k]))
            dz["f"].append(dc * c_before[k] * a["f"][k] * (1 - a["f"][k]))
            dz["g"].append(dc * a["i"][k] * (1 - a["g"][k] ** 2))
            dz["o"].append(delta * squashed * a["o"][k] * (1 - a["o"][k]))
        rows = [v for name in "ifgo" for v in dz[name]]
        # The fault: the walk ends at the first step, but the input weights keep the last step alone.
        last = rows if last is None else last
        total = [
            [s + v * u for s, u in zip(row, h_before, strict=True)]
            for row, v in zip(total, rows, strict=True)
        ]
        # The fault: the biases of i and o take the gradient of f.
        dbias = [s + v for s, v in zip(dbias, [*dz["f"], *dz["f"], *dz["g"], *dz["f"]], strict=True)]
        columns = zip(*inputs["weight_hh"], strict=True)
        delta_h = [oracle.dot(rows, list(column)) for column in columns]
    assert last is not None
    x_last = inputs["x"][-1][0]
    return {"dweight_ih": [[v * u for u in x_last] for v in last], "dweight_hh": total, "dbias": dbias}


def joined_source(numbers: Dyadic, input_size: int, hidden_size: int) -> Record:
    """Return one matrix per gate for h above x, and one bias, by the documents' names."""
    source: Record = {f"W{k}": numbers.draw(hidden_size, hidden_size + input_size) for k in "fico"}
    return source | {f"b{k}": numbers.draw(hidden_size) for k in "fico"}


def parted(source: Record, hidden_size: int) -> Record:
    """Return the parameters of XPL-CELL-001 from matrices for h above x; the document's C is g."""
    rows = [row for k in "ifco" for row in source[f"W{k}"]]
    bias = [v for k in "ifco" for v in source[f"b{k}"]]
    return {
        "weight_ih": [row[hidden_size:] for row in rows],
        "weight_hh": [row[:hidden_size] for row in rows],
        "bias_ih": bias,
        "bias_hh": zeros(len(bias)),
    }


def joined_layout(wanted: Wanted) -> Record:
    """Return the documents 000 and 004: three inputs, five units, four steps."""
    numbers = Dyadic(170)
    source = joined_source(numbers, 3, 5)
    inputs = parted(source, 5) | {"x": numbers.draw(4, 1, 3), "h_0": zeros(1, 5), "c_0": zeros(1, 5)}
    cotangents = {"dy": numbers.draw(4, 1, 5), "dh_n": numbers.draw(1, 5), "dc_n": numbers.draw(1, 5)}
    about = {
        "comment": "Each gate's matrix for [h, x] as printed, and the same numbers in this layout.",
        "clauses": ["XPL-CELL-001", "XPL-CELL-007"],
        "op": "layer",
        "printed": encode_all(source),
    }
    return answered(about, layer_config(3, 5), inputs, oracle.lstm, cotangents, wanted)


def one_hot(wanted: Wanted) -> Record:
    """Return document 002: six one-hot inputs, seven outputs."""
    numbers = Dyadic(40)
    source = joined_source(numbers, 6, 7)
    eye = [[[mpf(int(t == k)) for k in range(6)]] for t in range(6)]
    inputs = parted(source, 7) | {"x": eye, "h_0": zeros(1, 7), "c_0": zeros(1, 7)}
    cotangents = {"dy": numbers.draw(6, 1, 7), "dh_n": numbers.draw(1, 7), "dc_n": numbers.draw(1, 7)}
    about = {
        "comment": "Six one-hot steps into seven units; o * tanh(c) unit by unit, no dot product.",
        "clauses": ["XPL-CELL-003", "XPL-CELL-007", "XPL-GRAD-001"],
        "op": "layer",
    }
    return answered(about, layer_config(6, 7), inputs, oracle.lstm, cotangents, wanted)


CASES: dict[str, Callable[[Wanted], Record]] = {
    "worked-example-literal": worked_example_literal,
    "worked-example-transcript": worked_example_transcript,
    "worked-example-repaired": worked_example_repaired,
    "worked-example-companion": worked_example_companion,
    "document-001-training": training_two_steps,
    "document-002-one-hot": one_hot,
    "document-000-joined": joined_layout,
}
