"""``python -m tests.benchmarks.jax_scan`` compares the kernel ``jax_scan`` with a scan written by hand.

Results are compared first. Then each round compiles and runs both, one after the other, so that both meet the
same load of the machine. Prints medians, and the ratios of xplstm to the scan by hand.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import xplstm

LENGTHS = (50, 200, 1000)
BATCH, INPUTS, HIDDEN = 8, 64, 128


def by_hand(params: dict[str, Any], x: Any) -> Any:
    """Run a standard LSTM by ``jax.lax.scan``, as its equations are usually written."""
    import jax

    z_x = x @ params["weight_ih_l0"].T + params["bias_ih_l0"] + params["bias_hh_l0"]

    def step(state: tuple[Any, Any], z_t: Any) -> tuple[tuple[Any, Any], Any]:
        h, c = state
        i, f, g, o = jax.numpy.split(z_t + h @ params["weight_hh_l0"].T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
        h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
        return (h, c), h

    zeros = jax.numpy.zeros((x.shape[1], params["weight_hh_l0"].shape[1]), x.dtype)
    return jax.lax.scan(step, (zeros, zeros), z_x)[1]


def subjects(layer: xplstm.LSTM, gradient: bool) -> dict[str, Callable[..., Any]]:
    """Return both as functions of the parameters and x, or their gradients with respect to both."""
    import jax

    def ours(params: dict[str, Any], x: Any) -> Any:
        layer.params = params
        return layer(x)[0]

    if not gradient:
        return {"jax_scan": ours, "by hand": by_hand}

    def of(run: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(lambda params, x: (run(params, x) ** 2).sum(), (0, 1))

    return {"jax_scan": of(ours), "by hand": of(by_hand)}


def compare(steps: int, gradient: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds that each subject compiles and runs."""
    import jax

    layer = xplstm.LSTM(INPUTS, HIDDEN, xp="jax", rng=0)
    params = dict(layer.params)
    shape = (steps, BATCH, INPUTS)
    x = jax.numpy.asarray(np.random.default_rng(0).standard_normal(shape, dtype="float32"))
    both, first = subjects(layer, gradient), {}
    for name, run in both.items():
        first[name] = jax.jit(run).lower(params, x).compile()
    results = [jax.tree_util.tree_leaves(run(params, x)) for run in first.values()]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(abs(b).max()))
    compiling: dict[str, list[float]] = {name: [] for name in both}
    running: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(rounds):
        for name in sorted(both, reverse=turn % 2 == 1):
            # A new function each time, because JAX caches traced functions.
            fresh = jax.jit(lambda params, x, run=both[name]: run(params, x))
            start = time.perf_counter()
            compiled = fresh.lower(params, x).compile()
            middle = time.perf_counter()
            jax.block_until_ready(compiled(params, x))
            begin = time.perf_counter()
            for _ in range(3):
                jax.block_until_ready(compiled(params, x))
            compiling[name].append(middle - start)
            running[name].append((time.perf_counter() - begin) / 3)
    return {
        what: {name: statistics.median(times) for name, times in found.items()}
        for what, found in (("compile", compiling), ("run", running))
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.jax_scan", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds, each subject once a round (default 9)")
    rounds = parser.parse_args(arguments).rounds
    print(
        f"one layer, B, I, H = {BATCH}, {INPUTS}, {HIDDEN}, float32; milliseconds, jax_scan / by hand = ratio"
    )
    for steps in LENGTHS:
        for gradient in (False, True):
            found, cells = compare(steps, gradient, rounds), []
            for what, times in found.items():
                ours, theirs = (1e3 * times[name] for name in ("jax_scan", "by hand"))
                cells.append(f"{what} {ours:7.2f} / {theirs:7.2f} = {ours / theirs:4.2f}")
            print(f"T {steps:5d}  {'gradient' if gradient else 'forward':8}  {'   '.join(cells)}")


if __name__ == "__main__":
    main()
