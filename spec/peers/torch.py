"""Adapt torch.nn.LSTM on the CPU, with packed ragged batches."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module
from spec.subject import Arrays, Config, Refused


class Subject(Peer):
    """Module with its parameters by their own names; gradients from autograd."""

    name = "torch"
    kernel = "torch.nn.LSTM"
    packages = ("torch",)
    offered = ("cell", "reset_after")

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "torch.nn.LSTM has no masks with holes": bool(config.get("mask")),
                "torch.nn.LSTM has no backward direction by itself": bool(config.get("reverse")),
                "torch.nn.LSTM draws its own dropout masks": bool(config.get("dropout")),
                "torch.nn.GRU scales W_hn h by the reset gate, not h": config.get("reset_after") is False,
                "pack_padded_sequence has no rows of length 0": 0 in (config.get("lengths") or ()),
            },
        )
        try:
            if op.startswith("layer"):
                return as_layer(self.run(*as_module(config, arrays)))
            return self.run(config, arrays)
        except RuntimeError as error:
            raise Refused("shape", str(error)) from error

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        torch = importlib.import_module("torch")
        module, given = self.built(torch, config, arrays)
        packing, lengths = torch.nn.utils.rnn, config.get("lengths")
        x = given["x"]
        x = packing.pack_padded_sequence(x, lengths, enforce_sorted=False) if lengths else x
        with warnings.catch_warnings():
            # With a projection, torch warns about an engine that it cannot use.
            warnings.simplefilter("ignore", UserWarning)
            if config.get("cell") == "gru":
                y, h_n = module(x, given["h_0"])
                results = {"h_n": h_n}
            else:
                y, (h_n, c_n) = module(x, (given["h_0"], given["c_0"]))
                results = {"h_n": h_n, "c_n": c_n}
        y = packing.pad_packed_sequence(y, total_length=len(arrays["x"]))[0] if lengths else y
        results = {"y": y, **results}
        if "dy" in arrays:
            cotangents = [tensor(torch, arrays[f"d{name}"]) for name in results]
            torch.autograd.backward(list(results.values()), cotangents)
            results |= {f"d{name}": a.grad for name, a in given.items()}
        return {name: array(torch, a) for name, a in results.items()}

    def built(self, torch: Any, config: Config, arrays: Arrays) -> tuple[Any, dict[str, Any]]:
        """Return the module, and every input as a tensor that requires a gradient."""
        names = ("num_layers", "bidirectional", "proj_size", "bias")
        sizes = {name: config[name] for name in names if name in config}
        kind = torch.nn.GRU if config.get("cell") == "gru" else torch.nn.LSTM
        module = kind(config["input_size"], config["hidden_size"], **sizes)
        module = module.to(getattr(torch, str(arrays["x"].dtype)))
        tensors = {n: tensor(torch, a) for n, a in arrays.items() if n not in ("dy", "dh_n", "dc_n")}
        states: dict[str, Any] = {
            n: tensors.pop(n).requires_grad_() for n in ("x", "h_0", "c_0") if n in tensors
        }
        module.load_state_dict(tensors)
        return module, states | dict(module.named_parameters())


def tensor(torch: Any, a: np.ndarray) -> Any:
    """Return a copy as a tensor; NumPy's bfloat16, which torch does not support, by its bits."""
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(a.copy())


def array(torch: Any, t: Any) -> np.ndarray:
    """Convert a tensor back to an array."""
    if t.dtype == torch.bfloat16:
        return np.asarray(t.detach().contiguous().view(torch.int16).numpy().view("bfloat16"))
    return np.asarray(t.detach().numpy())
