"""Adapt torch.nn.LSTM in float32 under torch.autocast to bfloat16, with bfloat16 inputs and outputs."""

from __future__ import annotations

import importlib
from functools import cache

import numpy as np

from spec.peers.torch import Subject as Torch
from spec.subject import Arrays, Config


@cache
def lacks_processor() -> bool:
    """Return whether PyTorch has no LSTM in bfloat16 for this processor, such as one without AVX-512."""
    torch = importlib.import_module("torch")
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        return True
    return False


class Subject(Torch):
    """The parameters stay in float32, and autocast converts them."""

    name = "torch_autocast"
    kernel = "torch.nn.LSTM, autocast bfloat16"

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        dtype = arrays["x"].dtype
        self.declare(config, arrays, {"autocast to bfloat16 is of bfloat16 alone": dtype.name != "bfloat16"})
        self.declare(config, arrays, {"PyTorch has no LSTM of bfloat16 on this processor": lacks_processor()})
        torch = importlib.import_module("torch")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = super().call(op, config, {n: a.astype(np.float32) for n, a in arrays.items()})
        return {n: a.astype(dtype) for n, a in found.items()}
