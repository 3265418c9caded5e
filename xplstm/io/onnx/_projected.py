"""Recognise LSTMs with a projection, which the ONNX operator LSTM does not have.

`export` multiplies the projection into the recurrent weights: R is ``weight_hh @ weight_hr``, and the outputs
Y and Y_h are multiplied by ``weight_hr.T``. An initial h is multiplied by a right inverse of ``weight_hr.T``.
Any graph with this structure is an LSTM with a projection.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from xplstm.io.onnx._fold import Evaluator
from xplstm.io.onnx._graph import Graph, Node
from xplstm.io.onnx._model import pad_inputs, why_not_node


class _Shape(NamedTuple):
    """Values of a node that a projection changes."""

    recurrent: str
    projection: str
    start: str
    outputs: tuple[str, str]


def find_projections(graph: Graph) -> Graph:
    """Return the graph with one node for each LSTM with a projection, listed in `Graph.projections`."""
    sizes = {"MatMul": 2, "Transpose": 1}
    whole = [n for n in graph.nodes if len(n.inputs) == sizes.get(n.op) and not why_not_node(n)]
    makers = {name: node for node in whole for name in node.outputs if name}
    users: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        for name in {*node.inputs}:
            users[name].append(node)
    nodes, projections, gone = [], {}, set()
    evaluator = Evaluator(graph)
    for node in graph.nodes:
        found = _shape_of(evaluator, node, makers, users)
        if found is None:
            nodes.append(node)
            continue
        inputs = list(node.inputs)
        inputs[2] = found.recurrent
        if found.start:
            inputs[5] = found.start
        outputs = (*found.outputs, *node.outputs[2:])
        nodes.append(node._replace(inputs=tuple(inputs), outputs=outputs))
        projections[outputs] = found.projection
        gone |= {name for name in found.outputs if name}
    kept = [node for node in nodes if node.outputs in projections or gone.isdisjoint(node.outputs)]
    return graph._replace(nodes=tuple(kept), projections=projections) if projections else graph


def _shape_of(
    evaluator: Evaluator, node: Node, makers: dict[str, Node], users: dict[str, list[Node]]
) -> _Shape | None:
    """Return the projection of a node; None if the node has no proven projection."""
    graph = evaluator.graph
    if node.op != "LSTM" or why_not_node(node) is not None:
        return None
    product = makers.get(node.inputs[2])
    turned = makers.get(product.inputs[1]) if product is not None and product.op == "MatMul" else None
    if product is None or turned is None or turned.op != "Transpose":
        return None
    recurrent, projection = product.inputs[0], turned.inputs[0]
    if turned.attributes.get("perm") != [0, 2, 1] or not {recurrent, projection} <= graph.constants.keys():
        return None
    rows, width = graph.constants[recurrent].shape, graph.constants[projection].shape
    if len(rows) != 3 or len(width) != 3 or (rows[0], rows[2]) != (width[0], width[2]):
        return None
    outputs: list[str] = []
    for name in (*node.outputs[:2], "", "")[:2]:
        multiplied = users[name] if name else []
        others = [n for n in multiplied if n.op != "MatMul" or n.inputs != (name, projection)]
        if name in graph.outputs or others or len(multiplied) > 1:
            return None
        outputs += multiplied[0].outputs[:1] if multiplied else [""]
    start = pad_inputs(node)[5]
    if start:
        back = makers.get(start)
        if back is None or back.op != "MatMul" or back.inputs[1] not in graph.constants:
            return None
        turned_shape = (width[0], width[2], width[1])
        if graph.constants[back.inputs[1]].shape != turned_shape:
            return None
        if not _is_inverse(evaluator.value(back.inputs[1]), evaluator.value(projection)):
            return None
        start = back.inputs[0]
    return _Shape(recurrent, projection, start, (outputs[0], outputs[1])) if len(outputs) == 2 else None


def _is_inverse(back: np.ndarray, projection: np.ndarray) -> bool:
    """Return whether ``back @ projection`` is the identity, up to the rounding of `back`."""
    if back.dtype.kind != "f" or back.dtype != projection.dtype:
        return False
    left, right = back.astype(np.float64), projection.astype(np.float64)
    with np.errstate(all="ignore"):  # numbers that are not finite are no proof
        bound = 64 * float(np.finfo(back.dtype).eps) * (np.abs(left) @ np.abs(right))
        return bool(np.all(np.abs(left @ right - np.eye(left.shape[1])) <= bound))
