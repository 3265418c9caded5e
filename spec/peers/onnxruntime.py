"""Adapt ONNX Runtime on the CPU for the ONNX operator LSTM."""

from __future__ import annotations

import importlib
from typing import Any

from spec.peers.operator import Operator, Results
from spec.subject import Arrays, Refused


class Subject(Operator):
    """Create an InferenceSession for every call."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    kernel = "CPUExecutionProvider"
    packages = ("onnxruntime", "onnx")

    def compute(self, model: Any, inputs: Arrays) -> Results:
        if not inputs["X"].shape[1]:
            # ONNX Runtime would end this process in such a call, and lose all other results.
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
