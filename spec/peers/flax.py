"""flax.nnx: OptimizedLSTMCell in RNN, both directions in Bidirectional, compiled, gradients by JAX."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused


class Subject(Peer):
    """One layer; its one bias is the sum of the two."""

    name = "flax"
    kernel = "nnx.OptimizedLSTMCell"
    packages = ("flax", "jax")

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "flax.nnx.RNN has no masks with holes": bool(config.get("mask")),
                "OptimizedLSTMCell has no projection": bool(config.get("proj_size")),
                "flax.nnx has no stack of layers": config.get("num_layers", 1) > 1,
                "flax.nnx has no dropout between layers": bool(config.get("dropout")),
                "OptimizedLSTMCell has one bias": one_bias(arrays),
            },
        )
        if op.startswith("layer"):
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    def run(self, config: Config, arrays: Arrays) -> Arrays:
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

    def outputs(self, config: Config, a: dict[str, Any]) -> dict[str, Any]:
        nnx, xp = importlib.import_module("flax.nnx"), importlib.import_module("jax.numpy")
        lengths = config.get("lengths")
        how: dict[str, Any] = {"time_major": True, "return_carry": True}
        how["seq_lengths"] = xp.asarray(lengths, xp.int32) if lengths is not None else None
        # Flax has c first.
        carries = [(c, h) for c, h in zip(a["c_0"], a["h_0"], strict=True)]
        if config.get("bidirectional"):
            rnn = nnx.Bidirectional(self.rnn(config, a, "_l0"), self.rnn(config, a, "_l0_reverse"))
            ends, y = rnn(a["x"], initial_carry=tuple(carries), **how)
        else:
            rnn = self.rnn(config, a, "_l0")
            reverse = bool(config.get("reverse"))
            end, y = rnn(a["x"], initial_carry=carries[0], reverse=reverse, keep_order=True, **how)
            ends = (end,)
        return {"y": y, "h_n": xp.stack([h for _, h in ends]), "c_n": xp.stack([c for c, _ in ends])}

    def rnn(self, config: Config, a: dict[str, Any], suffix: str) -> Any:
        """An RNN around a cell that holds the parameters of one direction."""
        nnx, xp = importlib.import_module("flax.nnx"), importlib.import_module("jax.numpy")
        zeros = nnx.initializers.zeros_init()
        cell = nnx.OptimizedLSTMCell(
            config["input_size"],
            config["hidden_size"],
            kernel_init=zeros,
            recurrent_kernel_init=zeros,
            param_dtype=a["x"].dtype,
            rngs=nnx.Rngs(0),
        )
        cell.dense_i.kernel = nnx.Param(a[f"weight_ih{suffix}"].T)
        cell.dense_h.kernel = nnx.Param(a[f"weight_hh{suffix}"].T)
        rows = a[f"weight_hh{suffix}"].shape[0]
        both = [a[name + suffix] for name in ("bias_ih", "bias_hh") if name + suffix in a]
        cell.dense_h.bias = nnx.Param(sum(both, xp.zeros(rows, a["x"].dtype)))
        return nnx.RNN(cell)
