"""Adapt a short LSTM with jax.lax.scan, as JAX programs contain it; define what related adapters share."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused


class Traced(Peer, ABC):
    """Function of JAX that is compiled in every call, with gradients from JAX."""

    packages: ClassVar[tuple[str, ...]] = ("jax",)

    @abstractmethod
    def outputs(self, config: Config, a: dict[str, Any]) -> dict[str, Any]:
        """Return y, h_n and c_n of a module of one layer."""

    def run(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        if op.startswith("layer"):
            return as_layer(self.traced(*as_module(config, arrays)))
        return self.traced(config, arrays)

    def traced(self, config: Config, arrays: Arrays) -> Arrays:
        jax = importlib.import_module("jax")
        given = {n: a for n, a in arrays.items() if n not in ("dy", "dh_n", "dc_n")}

        def forward(a: dict[str, Any]) -> dict[str, Any]:
            return self.outputs(config, a)

        def both(a: dict[str, Any], cotangents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            results, pullback = jax.vjp(forward, a)
            return results, pullback(cotangents)[0]

        with jax.enable_x64(True):
            try:
                if "dy" not in arrays:
                    return {n: np.asarray(a) for n, a in jax.jit(forward)(given).items()}
                cotangents = {n: arrays[f"d{n}"] for n in ("y", "h_n", "c_n")}
                results, gradients = jax.jit(both)(given, cotangents)
            except (TypeError, ValueError) as error:
                raise Refused("shape", str(error)) from error
            return {
                **{n: np.asarray(a) for n, a in results.items()},
                **{f"d{n}": np.asarray(a) for n, a in gradients.items()},
            }


class Subject(Traced):
    """One layer and direction without lengths."""

    name = "jax"
    kernel = "jax.lax.scan"

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "a scan of one cell has no lengths and no masks": bool(
                    config.get("mask") or config.get("lengths") is not None
                ),
                "a scan of one cell has no projection": bool(config.get("proj_size")),
                "a scan of one cell is one layer": config.get("num_layers", 1) > 1,
                "a scan of one cell is one direction": bool(config.get("bidirectional")),
                "a scan of one cell has no dropout": bool(config.get("dropout")),
                "a scan of one cell adds both biases": one_bias(arrays),
            },
        )
        return self.run(op, config, arrays)

    def outputs(self, config: Config, a: dict[str, Any]) -> dict[str, Any]:
        jax = importlib.import_module("jax")
        biases = [a[f"{name}_l0"] for name in ("bias_ih", "bias_hh") if f"{name}_l0" in a]

        def step(carry: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
            h, c = carry
            gates = sum(biases, x @ a["weight_ih_l0"].T + h @ a["weight_hh_l0"].T)
            i, f, g, o = jax.numpy.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
            h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
            return (h, c), h

        start = (a["h_0"][0], a["c_0"][0])
        (h, c), y = jax.lax.scan(step, start, a["x"], reverse=bool(config.get("reverse")))
        return {"y": y, "h_n": h[None], "c_n": c[None]}
