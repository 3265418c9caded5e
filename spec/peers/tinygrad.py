"""Adapt tinygrad.nn.LSTMCell on the CPU: this module calls the cell once for each step."""

from __future__ import annotations

import importlib
import shutil
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused

LONGEST = 32
"""Steps of one call: the kernels of each step are compiled, which takes one or two seconds with gradients."""


class Subject(Peer):
    """One layer and direction without lengths."""

    name = "tinygrad"
    kernel = "tinygrad.nn.LSTMCell"
    packages = ("tinygrad",)

    def why_unavailable(self) -> str | None:
        compiler = None if shutil.which("clang") else "its CPU device needs clang, which is not installed"
        return super().why_unavailable() or compiler

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
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
                f"the graph of more than {LONGEST} steps takes minutes": len(arrays["x"]) > LONGEST,
            },
        )
        if op.startswith("layer"):
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        names = [name for name in arrays if name not in ("dy", "dh_n", "dc_n")]
        try:
            a = {name: given(arrays[name]) for name in names}
            results = self.outputs(config, a)
            if "dy" in arrays:
                total = sum((results[n] * given(arrays[f"d{n}"])).sum() for n in results)
                gradients = total.gradient(*a.values())
                results |= {f"d{name}": one for name, one in zip(names, gradients, strict=True)}
            # One graph for all results: alone, each would run the whole LSTM again.
            importlib.import_module("tinygrad").Tensor.realize(*results.values())
            return {name: taken(one, arrays["x"].dtype) for name, one in results.items()}
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise Refused("shape", str(error)) from error

    def outputs(self, config: Config, a: dict[str, Any]) -> dict[str, Any]:
        tensor = importlib.import_module("tinygrad").Tensor
        cell = importlib.import_module("tinygrad.nn").LSTMCell(config["input_size"], config["hidden_size"])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(cell, name, a.get(f"{name}_l0"))
        ys, state = [], (a["h_0"][0], a["c_0"][0])
        for t in range(a["x"].shape[0]):
            state = cell(a["x"][t], state)
            ys.append(state[0])
        y = tensor.stack(*ys) if ys else tensor.zeros(0, *state[0].shape, dtype=a["x"].dtype, device="CPU")
        return {"y": y, "h_n": state[0][None], "c_n": state[1][None]}


def given(a: np.ndarray) -> Any:
    """Copy to a tensor; bfloat16 by way of float32."""
    tinygrad = importlib.import_module("tinygrad")
    wide = a.astype("float32") if a.dtype.name == "bfloat16" else a
    return tinygrad.Tensor(wide, device="CPU").cast(getattr(tinygrad.dtypes, a.dtype.name))


def taken(a: Any, dtype: np.dtype) -> np.ndarray:
    """Copy to NumPy."""
    wide = a.cast("float32") if dtype.name == "bfloat16" else a
    return np.array(wide.numpy().astype(dtype))
