"""The ONNX operator LSTM as ONNX Runtime computes it on the CPU."""

from __future__ import annotations

import importlib
from typing import Any

from spec.peers.operator import Operator, Results
from spec.subject import Arrays, Refused


class Subject(Operator):
    """An InferenceSession for every call."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    kernel = "CPUExecutionProvider"
    packages = ("onnxruntime", "onnx")

    def compute(self, model: Any, inputs: Arrays) -> Results:
        if not inputs["X"].shape[1]:
            # Asked, it would end this process, and with it every other result.
            msg = "the operator LSTM ends the whole process at a batch without rows"
            raise RuntimeError(msg)
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        errors = runtime.capi.onnxruntime_pybind11_state
        try:
            session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            return Results(*session.run(None, inputs))
        except (errors.InvalidArgument, errors.Fail) as error:
            raise Refused("shape", str(error)) from error
