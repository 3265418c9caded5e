"""Adapt mlx.nn.LSTM on the CPU, with gradients from mlx.core.vjp."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused


class Subject(Peer):
    """One layer and direction without lengths; its single bias is the sum of the two biases."""

    name = "mlx"
    kernel = "mlx.nn.LSTM"
    packages = ("mlx",)

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "mlx.nn.LSTM has no lengths and no masks": bool(
                    config.get("mask") or config.get("lengths") is not None
                ),
                "mlx.nn.LSTM has no projection": bool(config.get("proj_size")),
                "mlx.nn.LSTM is one layer": config.get("num_layers", 1) > 1,
                "mlx.nn.LSTM is one direction": bool(config.get("bidirectional") or config.get("reverse")),
                "mlx.nn.LSTM has no dropout": bool(config.get("dropout")),
                "mlx.nn.LSTM has one bias": one_bias(arrays),
            },
        )
        if not arrays["x"].shape[1]:
            # MLX would end this process in such a call, and lose all other results.
            msg = "a batch without entries ends the whole process by a division by zero"
            raise RuntimeError(msg)
        if op.startswith("layer"):
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        mx = importlib.import_module("mlx.core")
        layer = importlib.import_module("mlx.nn").LSTM(config["input_size"], config["hidden_size"])
        names = [name for name in arrays if name not in ("dy", "dh_n", "dc_n")]

        def forward(*values: Any) -> list[Any]:
            a = dict(zip(names, values, strict=True))
            layer.Wx, layer.Wh = a["weight_ih_l0"], a["weight_hh_l0"]
            biases = [a[n] for n in ("bias_ih_l0", "bias_hh_l0") if n in a]
            layer.bias = sum(biases[1:], biases[0]) if biases else None
            h, c = layer(mx.swapaxes(a["x"], 0, 1), a["h_0"][0], a["c_0"][0])
            return [mx.swapaxes(h, 0, 1), h[:, -1][None], c[:, -1][None]]

        try:
            with mx.stream(mx.cpu):
                given = [as_mlx(mx, arrays[name]) for name in names]
                if "dy" not in arrays:
                    results, gradients = forward(*given), []
                else:
                    cotangents = [as_mlx(mx, arrays[f"d{name}"]) for name in ("y", "h_n", "c_n")]
                    results, gradients = mx.vjp(forward, given, cotangents)
                mx.eval(*results, *gradients)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise Refused("shape", str(error)) from error
        found = dict(zip(("y", "h_n", "c_n"), results, strict=True))
        found |= {f"d{name}": a for name, a in zip(names, gradients, strict=False)}
        return {name: as_numpy(mx, a) for name, a in found.items()}


def as_mlx(mx: Any, a: np.ndarray) -> Any:
    """Copy to MLX, which converts float64 to float32 if no dtype is passed."""
    return mx.array(a, dtype=getattr(mx, a.dtype.name))


def as_numpy(mx: Any, a: Any) -> np.ndarray:
    """Copy to NumPy; bfloat16 by its bits."""
    if a.dtype == mx.bfloat16:
        return np.array(a.view(mx.uint16)).view("bfloat16")
    return np.array(a)
