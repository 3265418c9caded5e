"""The GRU at 90 digits, and its records: ``python -m spec.gru`` writes spec/vectors-gru/*.json.

As in `oracle.py`, a gradient is a central difference of the forward pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mpmath import mp, mpf, tanh

from spec import oracle, rounding
from spec.dyadic import Dyadic, Record, encode_all
from spec.families import Wanted, blank_padding, every, steps
from spec.generate import digest, dumps
from spec.oracle import Arrays, Nested, dot, sigmoid

VECTORS = Path(__file__).parent / "vectors-gru"
PINS = VECTORS / "SHA256SUMS"


def cell(p: Arrays, x: Nested, h: Nested, reset_after: bool) -> Nested:
    """XPL-GRU-002 and XPL-GRU-003: run one step of one batch entry."""
    H = len(h)
    zero = [mpf(0)] * (3 * H)
    b_ih, b_hh = p.get("bias_ih", zero), p.get("bias_hh", zero)
    of_x = [dot(w, x) + b for w, b in zip(p["weight_ih"], b_ih, strict=True)]
    of_h = [dot(w, h) + b for w, b in zip(p["weight_hh"], b_hh, strict=True)]
    r = [sigmoid(a + b) for a, b in zip(of_x[:H], of_h[:H], strict=True)]
    z = [sigmoid(a + b) for a, b in zip(of_x[H : 2 * H], of_h[H : 2 * H], strict=True)]
    if reset_after:
        last = [r_k * v for r_k, v in zip(r, of_h[2 * H :], strict=True)]
    else:
        scaled = [r_k * h_k for r_k, h_k in zip(r, h, strict=True)]
        last = [dot(w, scaled) + b for w, b in zip(p["weight_hh"][2 * H :], b_hh[2 * H :], strict=True)]
    n = [tanh(a + b) for a, b in zip(of_x[2 * H :], last, strict=True)]
    return [(1 - z_k) * n_k + z_k * h_k for z_k, n_k, h_k in zip(z, n, h, strict=True)]


def sequence(
    p: Arrays, times: Sequence[Sequence[int]], reverse: bool, reset_after: bool
) -> tuple[Nested, Nested]:
    """Run one layer and direction; `times` are the valid steps of each batch entry."""
    x, h_n = p["x"], []
    B, H = len(p["h_0"]), len(p["h_0"][0])
    y = [[[mpf(0)] * H for _ in range(B)] for _ in x]
    for b in range(B):
        h = p["h_0"][b]
        for t in reversed(times[b]) if reverse else times[b]:
            h = y[t][b] = cell(p, x[t][b], h, reset_after)
        h_n.append(h)
    return y, h_n


def stack(arrays: Arrays, config: Record) -> dict[str, Nested]:
    """XPL-GRU-004: run layers and directions."""
    x, h_n = arrays["x"], []
    times = steps(config, len(x), len(x[0]))
    suffixes = ("", "_reverse") if config["bidirectional"] else ("",)
    for layer in range(config["num_layers"]):
        ys = []
        for d, suffix in enumerate(suffixes):
            ending = f"_l{layer}{suffix}"
            p = {name.removesuffix(ending): a for name, a in arrays.items() if name.endswith(ending)}
            p |= {"x": x, "h_0": arrays["h_0"][len(suffixes) * layer + d]}
            y, last = sequence(p, times, d == 1, config["reset_after"])
            ys.append(y)
            h_n.append(last)
        x = oracle.merged(ys, "concat")
    return {"y": x, "h_n": h_n}


def config_of(input_size: int, hidden_size: int, **options: Any) -> Record:
    defaults = {"num_layers": 1, "bidirectional": False, "bias": True, "lengths": None, "reset_after": True}
    return {"cell": "gru", "input_size": input_size, "hidden_size": hidden_size, **defaults, **options}


def record(
    wanted: Wanted, *, start: int, T: int, B: int, config: Record, clauses: list[str], comment: str
) -> Record:
    """Return outputs, and the gradients with respect to every requested input number."""
    numbers, H = Dyadic(start), config["hidden_size"]
    inputs: Record = {}
    D = 1 + config["bidirectional"]
    for k in range(config["num_layers"]):
        for suffix in ("", "_reverse")[:D]:
            wide = config["input_size"] if not k else D * H
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (3 * H, wide), "weight_hh": (3 * H, H)}
            shapes |= {"bias_ih": (3 * H,), "bias_hh": (3 * H,)} if config["bias"] else {}
            inputs |= {f"{name}_l{k}{suffix}": numbers.draw(*shape) for name, shape in shapes.items()}
    states = (config["num_layers"] * D, B, H)
    inputs |= {"x": numbers.draw(T, B, config["input_size"]), "h_0": numbers.draw(*states)}
    cotangents = {"dy": numbers.draw(T, B, D * H), "dh_n": numbers.draw(*states)}
    if config["lengths"] or config.get("mask"):
        blank_padding(inputs, config)
    run = partial(stack, config=config)
    return {
        "comment": comment,
        "clauses": ["XPL-GRU-001", "XPL-GRU-002", "XPL-GRU-004", *clauses],
        "op": "module",
        "result": "valid",
        "config": config,
        "inputs": encode_all(inputs),
        "outputs": encode_all(run(inputs)),
        "cotangents": encode_all(cotangents),
        "gradients": encode_all(oracle.gradients(run, inputs, cotangents, wanted)),
    }


HOLES = [[True, False, True], [False, True, True], [True, True, False], [False, True, True]]
BUILDERS: dict[str, Any] = {}
for place, after in (("after", True), ("before", False)):
    clauses = [] if after else ["XPL-GRU-003"]
    for name, T, B, config, comment in (
        ("step", 1, 3, config_of(2, 4), "A single step from a nonzero state."),
        ("sequence", 5, 2, config_of(3, 4), "Steps over full rows."),
        ("no-bias", 4, 2, config_of(3, 5, bias=False), "No biases."),
        (
            "ragged",
            5,
            3,
            config_of(2, 4, lengths=[3, 0, 4]),
            "Rows shorter than T, one of them empty; NaN past them.",
        ),
        ("mask", 4, 3, config_of(2, 5, mask=HOLES), "A mask with holes, NaN where no step exists."),
        ("stacked", 3, 2, config_of(4, 5, num_layers=2), "Two layers."),
        (
            "bidirectional",
            5,
            3,
            config_of(2, 4, bidirectional=True, lengths=[2, 5, 4]),
            "Two directions over ragged rows.",
        ),
        (
            "stacked-bidirectional",
            3,
            2,
            config_of(3, 4, num_layers=2, bidirectional=True),
            "Two layers of two directions.",
        ),
    ):
        BUILDERS[f"gru-reset-{place}-{name}"] = partial(
            record,
            start=len(BUILDERS) * 37 + 5,
            T=T,
            B=B,
            config=config | {"reset_after": after},
            clauses=clauses,
            comment=f"{comment} The reset gate scales {'W_hn h + b_hn' if after else 'h'}.",
        )


def built(name: str, wanted: Wanted = every) -> Record:
    """Return one record in the precision of the oracle."""
    with mp.workdps(oracle.DIGITS):
        return {"name": name, **BUILDERS[name](wanted)}


def main() -> int:
    VECTORS.mkdir(exist_ok=True)
    for name in BUILDERS:
        # By way of JSON, so that the tolerance is that of the numbers as they are published.
        found = json.loads(dumps(built(name)))
        text = dumps(found | {"tolerance": rounding.tolerance(found)})
        (VECTORS / f"{name}.json").write_text(text, encoding="utf-8")
    lines = [f"{digest(path)}  {path.name}\n" for path in sorted(VECTORS.glob("*.json"))]
    PINS.write_text("".join(lines), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
