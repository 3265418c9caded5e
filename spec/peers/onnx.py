"""Adapt the reference evaluator of the package onnx for the ONNX operator LSTM, in NumPy."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from spec.peers.operator import Operator, Results
from spec.subject import Arrays, Refused


class Subject(Operator):
    """Create a ReferenceEvaluator for every call."""

    name = "onnx"
    title = "ONNX's reference evaluator"
    kernel = "ReferenceEvaluator"
    packages = ("onnx",)
    dtypes = ("float64", "float32", "float16")

    def compute(self, model: Any, inputs: Arrays) -> Results:
        evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
        try:
            with np.errstate(all="ignore"):
                return Results(*evaluator.run(None, inputs))
        except (IndexError, RuntimeError, ValueError) as error:
            raise Refused("shape", str(error)) from error
