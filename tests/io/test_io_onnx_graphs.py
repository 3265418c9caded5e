"""Check networks from random ONNX graphs: each equals ONNX Runtime, or is refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io
from tests.support.onnxgraphs import Case, build, values_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CHUNK = 50


def read(path: Path, case: Case, prefix: str | None, seen: Counter[str]) -> Any:
    """Return the network and its arguments, with the order of axes if needed; or the error."""
    options: dict[str, Any] = {}
    while True:
        try:
            return xplstm.io.load_with_call(path, prefix=prefix, **options)
        except xplstm.ArgumentError as error:
            if not str(error).startswith("batch_first is not stored in ") or options:
                raise
            seen["asked"] += 1
            options = {"batch_first": case.batch_first if prefix in (None, "first") else False}


def compare(
    case: Case, values: dict[str, np.ndarray], net: Any, own: Any, first: str, seen: Counter[str]
) -> None:
    """Run the network on the inputs of its first layer."""
    layers = net._stack.num_layers
    last = case.nodes[case.nodes.index(first) + layers - 1]
    given = case.layer_input if first == "first" else by_name(case, first).input[0]
    x, lengths = values[given], own.get("lengths", case.feed.get("lengths"))
    lengths = np.repeat(lengths, 3) if lengths is not None and len(lengths) == 1 else lengths
    if first == "second" and net._stack.batch_first:
        x = x.swapaxes(0, 1)  # before the Transpose right before the node
    D, states = len(net._stack.reverse), []
    for letter, place in (("h", 5), ("c", 6)) if "state" not in own else ():
        names = [by_name(case, name).input for name in case.nodes]
        names = names[case.nodes.index(first) :][:layers]
        if f"{letter}_0" in case.feed and all(len(n) > place and n[place] for n in names):
            states.append(np.concatenate([values[n[place]] for n in names]))
        else:
            states.append(np.zeros((layers * D, 3, net._stack.hidden_size), "float32"))
    if "state" in own:
        state = own["state"]
        states = list(state.take([0] * 3) if state.h.shape[1] == 1 else state)
    y = net(x, tuple(states), lengths=lengths)[0]
    wanted = values[f"{last}_Y"].transpose(0, 2, 1, 3)
    wanted = wanted.reshape(*wanted.shape[:2], -1)
    wanted = wanted.swapaxes(0, 1) if net._stack.batch_first else wanted
    assert y.shape == wanted.shape, case.what
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5, err_msg=f"{net}: {case.what}")
    seen["loaded"] += 1
    seen["joined"] += layers > 1
    for name in own:
        seen[name] += 1


def by_name(case: Case, name: str) -> Any:
    return next(node for node in case.model.graph.node if node.name == name)


def check(seed: int, path: Path, seen: Counter[str]) -> None:
    case = build(onnx, seed)
    path.write_bytes(case.model.SerializeToString())
    xplstm.io.inspect(path)
    try:
        values = values_of(onnx, onnxruntime, case)
    except Exception:
        seen["invalid"] += 1
        if not any(word in case.what for word in ("wrong_size", "'first_steps'", "'reversed_gather'")):
            raise
        return
    for prefix in (None, *case.nodes):
        try:
            net, own = read(path, case, prefix, seen)
        except (xplstm.FormatError, xplstm.ArgumentError) as error:
            seen["refused"] += 1
            message = str(error)
            assert len(message) < 2000
            assert any(name in message for name in case.nodes), message
            continue
        compare(case, values, net, own, prefix or case.nodes[0], seen)


@pytest.mark.parametrize("chunk", range(14))
def test_equal_or_refused(chunk: int, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        check(seed, tmp_path / "random.onnx", seen)
    # Neither everything is refused nor everything loaded.
    assert seen["loaded"] >= 10, seen
    assert seen["refused"] >= 10, seen


@pytest.mark.parametrize("front", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("swaps", [1, 2, 3])
@pytest.mark.parametrize("D", [1, 2])
def test_the_lower_layer_determines_the_time_of_the_upper_one(
    front: bool, swaps: int, D: int, tmp_path: Path
) -> None:
    """Each Transpose between the layers exchanges time and batch."""
    rng, make, helper = np.random.default_rng(0), onnx.helper.make_node, onnx.helper
    sizes = {"W1": (D, 12, 2), "R1": (D, 12, 3), "W2": (1, 8, 3 * D), "R2": (1, 8, 2)}
    arrays = {name: rng.normal(size=shape).astype("f4") for name, shape in sizes.items()}
    ones = [*arrays.items(), ("axis", np.array([1])), ("joined", np.array([0, 0, -1]))]

    def swap(start: str, end: str) -> Any:
        return make("Transpose", [start], [end], perm=[1, 0, 2])

    nodes = [swap("x", "a") if front else make("Identity", ["x"], ["a"])]
    nodes += [make("LSTM", ["a", "W1", "R1"], ["Y1"], name="lower", hidden_size=3)]
    nodes[-1].attribute.append(helper.make_attribute("direction", "bidirectional" if D == 2 else "forward"))
    if D == 1:
        nodes += [make("Squeeze", ["Y1", "axis"], ["b0"])]
    else:
        nodes += [
            make("Transpose", ["Y1"], ["p"], perm=[0, 2, 1, 3]),
            make("Reshape", ["p", "joined"], ["b0"]),
        ]
    for k in range(swaps):
        nodes += [make("Tanh", [f"b{k}"], [f"t{k}"]), swap(f"t{k}", f"b{k + 1}")]
    nodes += [make("LSTM", [f"b{swaps}", "W2", "R2"], ["Y2"], name="upper", hidden_size=2)]
    nodes += [make("Squeeze", ["Y2", "axis"], ["y"])]
    x = helper.make_tensor_value_info("x", 1, ["first", "second", 2])
    y = helper.make_tensor_value_info("y", 1, None)
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in ones]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path := tmp_path / "m.onnx")

    given = rng.normal(size=(4, 5, 2)).astype("f4")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": given})
    lower, upper = (xplstm.io.load(path, prefix=prefix) for prefix in ("lower", "upper"))
    states: Any = lower(given)[0]
    for _ in range(swaps):
        states = np.tanh(states)
    found: Any = upper(states)[0]
    # The upper node returns its own time first.
    np.testing.assert_allclose(
        found.swapaxes(0, 1) if upper._stack.batch_first else found, wanted, rtol=0, atol=1e-6
    )
