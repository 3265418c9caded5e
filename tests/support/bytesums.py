"""Detect whether ONNX Runtime's products of bytes are exact on this processor."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest


@cache
def saturate() -> bool:
    """Return whether a sum of products of bytes saturates, as on x86 processors without VNNI."""
    import onnxruntime
    from onnx import helper, numpy_helper

    size = 64
    weights = numpy_helper.from_array(np.full((size, 1), 127, np.int8), "w")
    x, y = helper.make_tensor_value_info("x", 2, [1, size]), helper.make_tensor_value_info("y", 6, None)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "g", [x], [y], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((1, size), 255, np.uint8)})
    return int(found[0, 0]) != 255 * 127 * size


def skip_where_they_saturate() -> None:
    """Skip the rest of a test that compares with ONNX Runtime's products of bytes, if they saturate."""
    if saturate():
        pytest.skip("the products of bytes of ONNX Runtime saturate on this processor, which lacks VNNI")
