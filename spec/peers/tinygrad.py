"""Adapt tinygrad.nn.LSTMCell on the CPU: this module calls the cell, and its gradient, once for each step.

The steps are computed one by one, so that all steps of a call run the same compiled programs. Clang is the
program that ``CC`` names, or ``clang``; Clang before version 15 does not compile bfloat16.
"""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused

LONGEST, LARGEST = 32, 16
"""Steps of a call, and its batch entries, inputs and units: a new size is compiled, which takes seconds."""

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Subject(Peer):
    """One layer and direction without lengths."""

    name = "tinygrad"
    kernel = "tinygrad.nn.LSTMCell"
    packages = ("tinygrad",)

    def why_unavailable(self) -> str | None:
        compiler = os.environ.get("CC", "clang")
        missing = f"its CPU device needs {compiler}, which is not installed"
        return super().why_unavailable() or (None if shutil.which(compiler) else missing)

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        sizes = (*arrays["x"].shape[1:], config["hidden_size"])
        self.declare(
            config,
            arrays,
            {
                "tinygrad.nn.LSTMCell is one step, without lengths and masks": bool(
                    config.get("mask") or config.get("lengths") is not None
                ),
                "tinygrad.nn.LSTMCell has no projection": bool(config.get("proj_size")),
                "tinygrad.nn.LSTMCell is one layer": config.get("num_layers", 1) > 1,
                "tinygrad.nn.LSTMCell is one direction": bool(
                    config.get("bidirectional") or config.get("reverse")
                ),
                "tinygrad.nn.LSTMCell has no dropout": bool(config.get("dropout")),
                "tinygrad.nn.LSTMCell has two biases or none": one_bias(arrays),
                f"more than {LONGEST} steps take long": len(arrays["x"]) > LONGEST,
                f"programs for sizes above {LARGEST} take long to compile": max(sizes) > LARGEST,
            },
        )
        if op.startswith("layer"):
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        a = {name: given(array) for name, array in arrays.items()}
        try:
            lstm_cell = importlib.import_module("tinygrad.nn").LSTMCell
            cell = lstm_cell(config["input_size"], config["hidden_size"])
            for name in WEIGHTS:
                setattr(cell, name, a.get(f"{name}_l0"))
            states = forward(cell, a)
            results = outputs(states, a)
            if "dy" in a:
                results |= backward(cell, states, a)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise Refused("shape", str(error)) from error
        return {name: taken(one, arrays["x"].dtype) for name, one in results.items()}


def forward(cell: Any, a: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return the states before each step and after the last."""
    realize = importlib.import_module("tinygrad").Tensor.realize
    states = [(a["h_0"][0], a["c_0"][0])]
    for t in range(a["x"].shape[0]):
        states.append(cell(a["x"][t].contiguous(), states[-1]))
        realize(*states[-1])
    return states


def outputs(states: list[tuple[Any, Any]], a: dict[str, Any]) -> dict[str, Any]:
    """Return the results in the shapes of a module."""
    tensor = importlib.import_module("tinygrad").Tensor
    h, c = states[-1]
    ys = [h for h, _ in states[1:]]
    y = tensor.stack(*ys) if ys else tensor.zeros(0, *h.shape, dtype=a["x"].dtype, device="CPU")
    return {"y": y, "h_n": h[None], "c_n": c[None]}


def backward(cell: Any, states: list[tuple[Any, Any]], a: dict[str, Any]) -> dict[str, Any]:
    """Return the gradients: those of each step are the cell's own, added up from the last step on."""
    tensor = importlib.import_module("tinygrad").Tensor
    weights = {name: a[name] for name in (f"{w}_l0" for w in WEIGHTS) if name in a}
    sums = [w.zeros_like() for w in weights.values()]
    dxs, dh, dc = [], a["dh_n"][0], a["dc_n"][0]
    for t in reversed(range(len(states) - 1)):
        of = (a["x"][t].contiguous(), *states[t], *weights.values())
        h, c = cell(of[0], of[1:3])
        total = (h * (dh + a["dy"][t])).sum() + (c * dc).sum()
        dx, dh, dc, *more = total.gradient(*of)
        sums = [one + other for one, other in zip(sums, more, strict=True)]
        tensor.realize(dx, dh, dc, *sums)
        dxs.append(dx)
    dx = tensor.stack(*reversed(dxs)) if dxs else a["x"].zeros_like()
    named = {f"d{name}": one for name, one in zip(weights, sums, strict=True)}
    return {"dx": dx, "dh_0": dh[None], "dc_0": dc[None], **named}


def given(a: np.ndarray) -> Any:
    """Copy to a tensor; bfloat16 by way of float32."""
    tinygrad = importlib.import_module("tinygrad")
    wide = a.astype("float32") if a.dtype.name == "bfloat16" else a
    return tinygrad.Tensor(wide, device="CPU").cast(getattr(tinygrad.dtypes, a.dtype.name))


def taken(a: Any, dtype: np.dtype) -> np.ndarray:
    """Copy to NumPy."""
    wide = a.cast("float32") if dtype.name == "bfloat16" else a
    return np.array(wide.numpy().astype(dtype))
