"""Adapt OpenVINO on the CPU for the ONNX operator LSTM, in float32."""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

import numpy as np

from spec.peers.operator import Operator, Results
from spec.subject import Arrays, Refused, Unsupported


class Subject(Operator):
    """Compile a model for every call."""

    name = "openvino"
    title = "OpenVINO"
    kernel = "CPU, hint f32"
    packages = ("openvino", "onnx")

    def compute(self, model: Any, inputs: Arrays) -> Results:
        try:
            compiled = core().compile_model(core().read_model(model.SerializeToString()), "CPU")
            found = compiled(inputs)
        except (RuntimeError, ValueError) as error:
            unknown = re.search(
                r"Unknown activation function: \w+|Unsupported activation function", str(error)
            )
            if unknown:
                raise Unsupported(f"its CPU plugin says: {unknown[0]}") from error
            raise Refused("shape", str(error)) from error
        return Results(*(np.array(found[name]) for name in Results._fields))


@cache
def core() -> Any:
    found = importlib.import_module("openvino").Core()
    # Without this hint, it computes float32 in bfloat16 on processors that support bfloat16.
    found.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return found
