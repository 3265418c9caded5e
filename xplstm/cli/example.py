"""``python -m xplstm example``: print a worked example of one LSTM step, gate by gate.

The example has one row of weights for each gate and hidden size 2. Both hidden units use the same row; see
``docs/errata.md``.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

import xplstm
from xplstm import _array
from xplstm._array import FLOATS
from xplstm._typing import Array

X, H_0, C_0 = (0.5, -0.2, 0.1), (0.3, -0.4), (0.8, -0.6)
ROWS = {
    "weight_ih_l0": ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.7, 0.8, 0.9), (1.0, 1.1, 1.2)),
    "weight_hh_l0": ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8)),
    "bias_ih_l0": (0.01, 0.02, 0.03, 0.04),
    "bias_hh_l0": (0.05, 0.06, 0.07, 0.08),
}
# Exact values of both units: the record `worked-example-repaired` of spec/, rounded to 20 decimals.
EXACT = {
    "z_i": ("0.05", "0.05"),
    "z_f": ("0.17", "0.17"),
    "z_g": ("0.29", "0.29"),
    "z_o": ("0.41", "0.41"),
    "i": ("0.51249739648421034366", "0.51249739648421034366"),
    "f": ("0.54239794077435099188", "0.54239794077435099188"),
    "g": ("0.28213481266963412600", "0.28213481266963412600"),
    "o": ("0.60108787884836977093", "0.60108787884836977093"),
    "c": ("0.57851170957022868595", "-0.18084540751386270268"),
    "h": ("0.31351713969222643931", "-0.10753422599725260463"),
}
FORMULA = {
    "z": "W_ih x + b_ih + W_hh h_0 + b_hh",
    "i": "sigmoid(z_i)",
    "f": "sigmoid(z_f)",
    "g": "tanh(z_g)",
    "o": "sigmoid(z_o)",
    "c": "f * c_0 + i * g",
    "h": "o * tanh(c)",
}
# Unit roundoff u = eps / 2, and the number of decimals that distinguishes two adjacent numbers.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
DECIMALS = {"float64": 17, "float32": 9, "float16": 5, "bfloat16": 4}
TOLERANCE = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend`` and ``--dtype``."""
    backends = [*_array.BACKENDS, "auto"]
    parser.add_argument(
        "--backend", choices=backends, help="array library; default: XPLSTM_BACKEND, else numpy"
    )
    parser.add_argument("--dtype", choices=FLOATS, default="float64", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Print the step; return 1 if a number differs by more than 8 u from the exact value."""
    if args.dtype == "float64":
        # JAX reads this on import; otherwise it rounds to float32.
        os.environ.setdefault("JAX_ENABLE_X64", "1")
    lstm, x, state = setting(args.backend, args.dtype)
    library, kernel = _array.backend_name(_array.namespace(x, "x")), lstm.explain(x, state).kernels[0]
    print(f"One step of an LSTM with 3 inputs and 2 hidden units: {library}, {args.dtype}, kernel {kernel}.")
    print(f"x = {X}, h_0 = {H_0}, c_0 = {C_0}; each printed row of the weights serves both units.")
    print("i, f, g, o come from LSTM.trace, c and h from the call.\n")
    worst = print_table(step(lstm, x, state), args.dtype)
    verdict = "all within" if worst <= TOLERANCE else "NOT within"
    print(f"\nlargest difference {worst:.2f} u, {verdict} {TOLERANCE} u; u = {UNIT[args.dtype]:.3g}")
    return 0 if worst <= TOLERANCE else 1


def setting(backend: str | None, dtype: Any) -> tuple[xplstm.LSTM, Array, xplstm.LSTMState]:
    """Return the LSTM with the example's weights, x of shape (1, 1, 3), and the initial state."""
    lstm = xplstm.LSTM(3, 2, xp=backend, dtype=dtype)
    xp = _array.namespace(lstm.params["weight_ih_l0"], "weight_ih_l0")

    def on_backend(values: object) -> Array:
        return _array.asarray(np.asarray(values), xp, None, dtype)

    lstm.load_state_dict(
        {name: on_backend(np.repeat(np.asarray(rows), 2, axis=0)) for name, rows in ROWS.items()}
    )
    return lstm, on_backend([[X]]), xplstm.LSTMState(on_backend([[H_0]]), on_backend([[C_0]]))


def step(lstm: xplstm.LSTM, x: Array, state: xplstm.LSTMState) -> dict[str, list[float]]:
    """Return every quantity of the step by its name in `EXACT`, with one number for each unit."""
    p = lstm.params
    z = (
        x[0, ...] @ p["weight_ih_l0"].T
        + p["bias_ih_l0"]
        + state.h[0, ...] @ p["weight_hh_l0"].T
        + p["bias_hh_l0"]
    )
    trace = lstm.trace(x, state)
    _, (h_n, c_n) = lstm(x, state)
    arrays = {f"z_{gate}": z[..., 2 * k : 2 * k + 2] for k, gate in enumerate("ifgo")}
    arrays |= {gate: getattr(trace, gate) for gate in "ifgo"} | {"c": c_n, "h": h_n}
    return {name: [float(v) for v in _array.to_numpy(a).reshape(-1)] for name, a in arrays.items()}


def print_table(found: Mapping[str, list[float]], dtype: str) -> float:
    """Print a row for each quantity and unit; return the largest difference in u."""
    width = DECIMALS[dtype] + 3
    print(f"{'':5}{'formula':33}{'unit':5}{'computed':>{width}}   {'exact':>23}{'difference':>12}")
    worst = 0.0
    for name, exact in EXACT.items():
        for unit, (value, reference) in enumerate(zip(found[name], exact, strict=True)):
            difference = math.inf
            if math.isfinite(value):
                difference = float(abs(Fraction(value) - Fraction(reference)) / Fraction(UNIT[dtype]))
            worst = max(worst, difference)
            label, formula = (name, FORMULA[name[0]]) if unit == 0 else ("", "")
            shown = f"{value:.{DECIMALS[dtype]}f}"
            print(f"{label:5}{formula:33}{unit:<5}{shown:>{width}}   {reference:>23} {difference:8.2f} u")
    return worst
