"""Adapt keras.layers.LSTM with PyTorch: two directions in Bidirectional, gradients from PyTorch."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.peers.torch import array, tensor
from spec.subject import Arrays, Config, Refused


class Subject(Peer):
    """One layer; its single bias is the sum of the two biases, and lengths become a mask."""

    name = "keras"
    kernel = "keras.layers.LSTM on torch"
    packages = ("keras", "torch")
    offered = ("cell", "reset_after")

    def why_unavailable(self) -> str | None:
        chosen = os.environ.get("KERAS_BACKEND", "torch")
        other = f"KERAS_BACKEND is {chosen}, and this adapter takes its gradients from torch"
        return super().why_unavailable() or (None if chosen == "torch" else other)

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "keras.layers.LSTM has no projection": bool(config.get("proj_size")),
                "Keras stacks layers by a model of several": config.get("num_layers", 1) > 1,
                "Keras has dropout within a layer only": bool(config.get("dropout")),
                "keras.layers.LSTM has one bias": one_bias(arrays),
                "a layer of Keras makes its own parameters": incomplete(config, arrays),
                "Keras takes masks, not lengths": any(
                    not 0 <= n <= len(arrays["x"]) for n in config.get("lengths") or ()
                ),
            },
        )
        if op.startswith("layer"):
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        torch = importlib.import_module("torch")
        given = {
            n: tensor(torch, a).requires_grad_() for n, a in arrays.items() if n not in ("dy", "dh_n", "dc_n")
        }
        try:
            results = self.outputs(torch, config, given)
        except (IndexError, RuntimeError, ValueError) as error:
            raise Refused("shape", str(error)) from error
        if "dy" in arrays:
            cotangents = [tensor(torch, arrays[f"d{name}"]) for name in results]
            try:
                torch.autograd.backward(list(results.values()), cotangents)
            except RuntimeError as error:
                raise Refused("shape", str(error)) from error
            # A copy, because the gradients of the two added biases are one tensor.
            results |= {f"d{name}": a.grad.clone() for name, a in given.items()}
        return {name: array(torch, a) for name, a in results.items()}

    def outputs(self, torch: Any, config: Config, a: dict[str, Any]) -> dict[str, Any]:
        T, B, I = a["x"].shape
        layer = self.layer(config, str(a["x"].dtype).removeprefix("torch."))
        layer.build((B, T, I))
        suffixes = ("_l0", "_l0_reverse") if config.get("bidirectional") else ("_l0",)
        gru = config.get("cell") == "gru"
        pairs = [a["h_0"]] if gru else [a["h_0"], a["c_0"]]
        states = [state for both in zip(*pairs, strict=True) for state in both]
        exists = self.exists(config, T)
        (y, *ends), _ = layer.stateless_call(
            [v for s in suffixes for v in (self.gru_parameters if gru else self.parameters)(a, s, config)],
            [variable.value for variable in layer.non_trainable_variables],
            a["x"].swapaxes(0, 1),
            initial_state=states,
            mask=None if exists is None else torch.from_numpy(exists.T.copy()),
        )
        # With a single backward direction, Keras returns y in the order of its steps.
        y = y.flip(1) if config.get("reverse") else y
        if gru:
            return {"y": y.swapaxes(0, 1), "h_n": torch.stack(ends)}
        return {"y": y.swapaxes(0, 1), "h_n": torch.stack(ends[::2]), "c_n": torch.stack(ends[1::2])}

    def layer(self, config: Config, dtype: str) -> Any:
        # Keras reads this variable once, at import.
        os.environ.setdefault("KERAS_BACKEND", "torch")
        layers = importlib.import_module("keras").layers
        gru = config.get("cell") == "gru"
        more = {"reset_after": config["reset_after"]} if gru else {}
        layer = (layers.GRU if gru else layers.LSTM)(
            config["hidden_size"],
            use_bias=config.get("bias", True),
            go_backwards=bool(config.get("reverse")),
            return_sequences=True,
            return_state=True,
            zero_output_for_mask=True,
            # The default initialiser does not support half precision.
            recurrent_initializer="zeros",
            dtype=dtype,
            **more,
        )
        return layers.Bidirectional(layer, dtype=dtype) if config.get("bidirectional") else layer

    def gru_parameters(self, a: dict[str, Any], suffix: str, config: Config) -> list[Any]:
        """Return kernels with columns z, r, n; two biases, or their sum if the reset gate scales h."""
        torch = importlib.import_module("torch")

        def ordered(v: Any) -> Any:
            r, z, n = v.chunk(3)
            return torch.cat([z, r, n])

        names = [f"{n}{suffix}" for n in ("bias_ih", "bias_hh") if n + suffix in a]
        bias = [torch.stack([ordered(a[n]) for n in names])] if names else []
        bias = bias if config["reset_after"] else [b.sum(0) for b in bias]
        return [ordered(a[f"{n}{suffix}"]).mT for n in ("weight_ih", "weight_hh")] + bias

    def parameters(self, a: dict[str, Any], suffix: str, _config: Config) -> list[Any]:
        """Return kernels with rows of x and h, and one bias."""
        biases = [a[name + suffix] for name in ("bias_ih", "bias_hh") if name + suffix in a]
        # Without this check, the sum of biases of different shapes would be broadcast.
        bias = [importlib.import_module("torch").stack(biases).sum(0)] if biases else []
        return [a[f"weight_ih{suffix}"].mT, a[f"weight_hh{suffix}"].mT, *bias]

    def exists(self, config: Config, T: int) -> np.ndarray | None:
        """Return (T, B) booleans, True for valid steps."""
        if config.get("mask"):
            return np.asarray(config["mask"], bool)
        lengths = config.get("lengths")
        return None if lengths is None else np.arange(T)[:, None] < np.asarray(lengths)[None, :]


def incomplete(config: Config, arrays: Arrays) -> bool:
    """Return whether a weight of a direction is missing."""
    directions = 1 + bool(config.get("bidirectional"))
    return any(sum(n.startswith(kind) for n in arrays) < directions for kind in ("weight_ih", "weight_hh"))
