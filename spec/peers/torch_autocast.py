"""torch.nn.LSTM in float32 under torch.autocast to bfloat16: numbers of bfloat16 in and out."""

from __future__ import annotations

import importlib

import numpy as np

from spec.peers.torch import Subject as Torch
from spec.subject import Arrays, Config


class Subject(Torch):
    """The parameters stay in float32; autocast casts them where it computes."""

    name = "torch_autocast"
    kernel = "torch.nn.LSTM, autocast bfloat16"

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        dtype = arrays["x"].dtype
        self.declare(config, arrays, {"autocast to bfloat16 is of bfloat16 alone": dtype.name != "bfloat16"})
        torch = importlib.import_module("torch")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = super().call(op, config, {n: a.astype(np.float32) for n, a in arrays.items()})
        return {n: a.astype(dtype) for n, a in found.items()}
