"""Adapt flax.nnx: OptimizedLSTMCell in RNN, two directions in Bidirectional, compiled, gradients from JAX."""

from __future__ import annotations

import importlib
from typing import Any

from spec.peers.jax import Traced
from spec.peers.peer import one_bias
from spec.subject import Arrays, Config


class Subject(Traced):
    """One layer; its single bias is the sum of the two biases."""

    name = "flax"
    kernel = "nnx.OptimizedLSTMCell"
    packages = ("flax", "jax")
    cell = "OptimizedLSTMCell"

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "flax.nnx.RNN has no masks with holes": bool(config.get("mask")),
                f"{self.cell} has no projection": bool(config.get("proj_size")),
                "flax.nnx has no stack of layers": config.get("num_layers", 1) > 1,
                "flax.nnx has no dropout between layers": bool(config.get("dropout")),
                f"{self.cell} has one bias": one_bias(arrays),
            },
        )
        return self.run(op, config, arrays)

    def outputs(self, config: Config, a: dict[str, Any]) -> dict[str, Any]:
        nnx, xp = importlib.import_module("flax.nnx"), importlib.import_module("jax.numpy")
        lengths = config.get("lengths")
        how: dict[str, Any] = {"time_major": True, "return_carry": True}
        how["seq_lengths"] = xp.asarray(lengths, xp.int32) if lengths is not None else None
        # A Flax state begins with c.
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
        """Return an RNN around a cell with the parameters of one direction."""
        nnx, xp = importlib.import_module("flax.nnx"), importlib.import_module("jax.numpy")
        zeros = nnx.initializers.zeros_init()
        cell = getattr(nnx, self.cell)(
            config["input_size"],
            config["hidden_size"],
            kernel_init=zeros,
            recurrent_kernel_init=zeros,
            param_dtype=a["x"].dtype,
            rngs=nnx.Rngs(0),
        )
        rows = a[f"weight_hh{suffix}"].shape[0]
        both = [a[name + suffix] for name in ("bias_ih", "bias_hh") if name + suffix in a]
        bias = sum(both, xp.zeros(rows, a["x"].dtype))
        self.assign(nnx.Param, cell, a[f"weight_ih{suffix}"].T, a[f"weight_hh{suffix}"].T, bias)
        return nnx.RNN(cell)

    def assign(self, param: Any, cell: Any, weight_ih: Any, weight_hh: Any, bias: Any) -> None:
        """Set the parameters of a cell: (I, 4H), (H, 4H) and (4H,)."""
        cell.dense_i.kernel, cell.dense_h.kernel = param(weight_ih), param(weight_hh)
        cell.dense_h.bias = param(bias)
