"""Generate random ONNX graphs with one or two recurrent nodes, and run them with ONNX Runtime."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

T, B, I, H = 5, 3, 4, 2
OPSET = 17
FRONTS = (
    *("none", "none", "swap", "swap", "cast", "unsqueeze", "reshape", "moved_twice"),
    *("flip", "reversed_gather", "reverse_sequence", "features", "scaled", "shifted", "first_steps"),
    *("relu", "linear", "norm", "embedding", "halves", "two_inputs", "relu_flip", "linear_swap", "swap_flip"),
    *("norm_swap", "embedding_swap", "embedding_late_swap", "image", "clipped", "whole_numbers", "halved"),
)
STATES = (
    *("none", "none", "none", "zero", "zero_of_shape", "zero_expanded", "zero_tiled", "zero_where"),
    *("learned", "tiled", "filled", "added", "tanh", "expanded"),
    *("input", "input", "input_slice", "input_flipped", "input_tanh", "wrong_size", "selected"),
    *("expanded_tanh", "branch", "divided", "powers", "summed_batch", "sliced", "branch_of_input"),
    *("input_clipped", "input_whole_numbers", "input_halved", "input_plus_one"),
)
LENGTHS = (
    *("none", "none", "none", "input", "input_cast", "constant", "whole", "whole_of_shape", "shorter"),
    *("constant_cast", "filled", "branch", "some_of_input"),
)
WEIGHTS = (
    "plain",
    "plain",
    "identity",
    "transpose",
    "concat",
    "slice",
    "unsqueeze",
    "cast",
    "sum",
    "dynamic",
)
BETWEEN = (
    *("squeeze", "squeeze", "squeeze", "scaled", "relu", "flip", "reshape", "swapped_twice", "residual"),
    *("clipped", "whole_numbers", "halved"),
)
SECOND = ("none", "none", "other", "shared", "handed", "other_lengths", "ragged_second", "own_state")


class Case(NamedTuple):
    """Model, and the values to compare with a network that was read from it."""

    model: Any
    feed: dict[str, np.ndarray]
    nodes: tuple[str, ...]
    """Names of the recurrent nodes."""
    layer_input: str
    """The value that the first layer is given, as its author sees it."""
    batch_first: bool
    what: str


class Builder:
    """Incomplete graph with its nodes and constants."""

    def __init__(self, onnx: Any, seed: int) -> None:
        self.onnx, self.rng = onnx, np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.kept: dict[str, np.ndarray] = {}
        self.feed: dict[str, np.ndarray] = {}
        self.shapes: dict[str, list[Any]] = {}
        self.direction = self.pick(("forward", "forward", "reverse"))

    def pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype("float32")

    def keep(self, a: Any) -> str:
        name = f"k{len(self.kept)}"
        self.kept[name] = np.asarray(a)
        return name

    def branch(self, condition: str, a: np.ndarray) -> str:
        """Return an If that gives `a` if the condition is true, and otherwise adds 10 to each number."""
        helper, numpy_helper = self.onnx.helper, self.onnx.numpy_helper
        graphs = {}
        for k, (name, value) in enumerate((("then_branch", a), ("else_branch", a + a.dtype.type(10)))):
            made = f"b{len(self.nodes)}_{k}"
            constant = helper.make_node("Constant", [], [made], value=numpy_helper.from_array(value))
            kind = helper.np_dtype_to_tensor_dtype(a.dtype)
            info = helper.make_tensor_value_info(made, kind, None)
            graphs[name] = helper.make_graph([constant], name, [], [info])
        return self.add("If", condition, **graphs)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        made = f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, [*inputs], [made], **attributes))
        return made

    def give(self, name: str, a: np.ndarray, shape: list[Any]) -> str:
        self.feed[name], self.shapes[name] = a, shape
        return name

    def cut(self, name: str, axis: int, start: int, end: int, step: int = 1) -> str:
        return self.add("Slice", name, *(self.keep([n]) for n in (start, end, axis, step)))

    def flip(self, name: str, axis: int) -> str:
        return self.cut(name, axis, -1, -(1 << 40), -1)

    def swap(self, name: str) -> str:
        return self.add("Transpose", name, perm=[1, 0, 2])

    def size(self, name: str, axis: int) -> str:
        return self.add("Gather", self.add("Shape", name), self.keep([axis]), axis=0)

    def front(self, kind: str) -> tuple[str, str, bool]:
        """Return X of the first node, the input of its layer, and whether the batch axis is first."""
        if kind.startswith("embedding"):
            return self.embedding(kind)
        if kind == "two_inputs":
            a = self.give("x", self.floats(T, B, I - 1), ["T", "B", I - 1])
            b = self.give("z", self.floats(T, B, 1), ["T", "B", 1])
            whole = self.add("Concat", a, b, axis=2)
            return whole, whole, False
        if kind == "image":
            a = self.give("x", self.floats(B, 1, I, T), ["B", 1, I, "T"])
            flat = self.add("Squeeze", a, self.keep([1]))
            moved = self.add("Transpose", flat, perm=[0, 2, 1])
            return self.swap(moved), moved, True
        bf = "swap" in kind
        shape = ["B", "T", I] if bf else ["T", "B", I]
        x = self.give("x", self.floats(*((B, T, I) if bf else (T, B, I))), shape)
        if kind == "swap_flip":
            back = self.flip(self.swap(x), 0)
            return back, x, True
        made = self.fronted(kind.removesuffix("_swap").removesuffix("swap"), x)
        given = made if made != x and kind not in ("cast", "unsqueeze", "reshape", "moved_twice") else x
        return (self.swap(made) if bf else made), given, bf

    def embedding(self, kind: str) -> tuple[str, str, bool]:
        bf = kind != "embedding"
        ids = self.rng.integers(0, 20, size=(B, T) if bf else (T, B))
        x = self.give("x", ids, ["B", "T"] if bf else ["T", "B"])
        if kind == "embedding_late_swap":  # no node after the table shows the axes
            x = self.add("Transpose", x, perm=[1, 0])
        made = self.add("Gather", self.keep(self.floats(20, I)), x)
        return (self.swap(made), made, True) if kind == "embedding_swap" else (made, made, False)

    def fronted(self, kind: str, x: str) -> str:
        add, keep = self.add, self.keep
        match kind:
            case "cast":
                return add("Cast", add("Cast", x, to=11), to=1)
            case "unsqueeze":
                return add("Squeeze", add("Unsqueeze", x, keep([0])), keep([0]))
            case "reshape":
                return add("Reshape", add("Reshape", x, keep([0, 0, 2, I // 2])), keep([0, 0, I]))
            case "moved_twice":
                return self.swap(self.swap(x))
            case "flip":
                return self.flip(x, 0)
            case "reversed_gather":
                return add("Gather", x, keep(np.arange(T)[::-1].copy()), axis=0)
            case "reverse_sequence":
                steps = add("Expand", self.size(x, 0), self.size(x, 1))
                return add("ReverseSequence", x, steps, time_axis=0, batch_axis=1)
            case "features":
                return add("Gather", x, keep([1, 0, 3, 2]), axis=2)
            case "scaled":
                return add("Mul", x, keep(np.float32(2)))
            case "shifted":
                return add("Sub", x, keep(self.floats(I)))
            case "first_steps":
                return self.cut(x, 0, 0, T - 1)
            case "clipped" | "whole_numbers" | "halved":
                return self.rounded(kind, x)
            case "relu":
                return add("Relu", x)
            case "relu_flip":
                return self.flip(add("Relu", x), 0)
            case "linear":
                return add("Add", add("MatMul", x, keep(self.floats(I, I))), keep(self.floats(I)))
            case "norm":
                return add("LayerNormalization", x, keep(self.floats(I)), axis=-1)
            case "halves":
                return add("Concat", self.cut(x, 2, 2, I), self.cut(x, 2, 0, 2), axis=2)
        return x

    def rounded(self, kind: str, x: str) -> str:
        """Add nodes that change only some numbers: negative, fractional, or with many digits."""
        if kind == "clipped":
            return self.add("Max", x, self.keep(np.float32(0)))
        return self.add("Cast", self.add("Cast", x, to=7 if kind == "whole_numbers" else 10), to=1)

    def weight(self, a: np.ndarray) -> str:
        """Return a constant, or the output of nodes that compute it from constants."""
        add, keep = self.add, self.keep
        match self.pick(WEIGHTS):
            case "identity":
                return add("Identity", keep(a))
            case "transpose":
                return add("Transpose", keep(np.ascontiguousarray(a.transpose(0, 2, 1))), perm=[0, 2, 1])
            case "concat":
                return add("Concat", keep(a[:, :3]), keep(a[:, 3:]), axis=1)
            case "slice":
                return self.cut(keep(np.concatenate([a, a], axis=1)), 1, a.shape[1], 2 * a.shape[1])
            case "unsqueeze":
                one = a.shape[0] == 1
                return add("Unsqueeze", keep(a[0]), keep([0])) if one else keep(a)
            case "cast":
                return add("Cast", keep(a.astype("float64")), to=1)
            case "sum":
                return add("Add", keep(a), keep(self.floats(*a.shape[1:])))
            case "dynamic":
                if self.rng.integers(4) == 0:  # computed from the input of the model
                    total = add("ReduceMax", "x", keepdims=0)
                    total = add("Cast", total, to=1)
                    return add("Add", keep(a), add("Mul", total, keep(np.float32(0.1))))
        return keep(a)

    def state(self, kind: str, D: int, X: str, letter: str, layer: int) -> str:
        add, keep = self.add, self.keep
        batch = self.size(X, 1)
        shape = add("Concat", keep([D]), batch, keep([H]), axis=0)
        one = self.floats(D, 1, H)
        match kind:
            case "zero":
                return keep(np.zeros((D, B, H), "float32"))
            case "zero_of_shape":
                return add("ConstantOfShape", shape)
            case "zero_expanded":
                return add("Expand", keep(np.zeros((D, 1, H), "float32")), shape)
            case "zero_tiled":
                times = add("Concat", keep([1]), batch, keep([1]), axis=0)
                return add("Tile", keep(np.zeros((D, 1, H), "float32")), times)
            case "zero_where":
                zeros = keep(np.zeros((D, 1, H), "float32"))
                return add("Where", keep(np.ones((D, B, H), bool)), zeros, zeros)
            case "learned":
                return keep(self.floats(D, B, H))
            case "tiled":
                return add("Tile", keep(one), add("Concat", keep([1]), batch, keep([1]), axis=0))
            case "filled":
                fill = self.onnx.numpy_helper.from_array(np.asarray([0.7], "float32"))
                return add("ConstantOfShape", shape, value=fill)
            case "added":
                return add("Add", keep(self.floats(D, B, H)), keep(np.zeros(1, "float32")))
            case "tanh":
                return add("Expand", add("Tanh", keep(one)), shape)
            case "expanded":
                return add("Expand", keep(one), shape)
            case "expanded_tanh":
                return add("Tanh", add("Expand", keep(one), shape))
            case "branch":
                made = self.branch(keep(np.asarray(bool(layer))), self.floats(D, 1, H))
                return add("Expand", made, shape)
            case "branch_of_input":
                total = add("ReduceMax", "x", keepdims=0)
                large = add("Greater", add("Cast", total, to=1), keep(np.float32(0)))
                return self.branch(large, self.floats(D, B, H))
            case "divided":
                norm = add("Sqrt", add("ReduceSum", add("Mul", keep(one), keep(one)), keep([2])))
                return add("Expand", add("Div", keep(one), norm), shape)
            case "powers":
                return add("Pow", add("Expand", keep(abs(one)), shape), keep(np.float32(0.5)))
            case "summed_batch":
                return add("Expand", add("ReduceSum", add("Expand", keep(one), shape), keep([1])), shape)
            case "sliced":
                table = keep(np.repeat(one, 2 * B, axis=1) + np.arange(2.0 * B, dtype="f4")[:, None])
                return add("Slice", table, keep([0]), batch, keep([1]))
            case "selected":
                zeros = keep(np.zeros((D, 1, H), "float32"))
                return add("Where", keep(np.ones((D, B, H), bool)), keep(one), zeros)
            case "wrong_size":
                wide = add("Concat", keep([D]), batch, keep([H + 1]), axis=0)
                return add("ConstantOfShape", wide)
        return self.input_state(kind, D, letter, layer)

    def input_state(self, kind: str, D: int, letter: str, layer: int) -> str:
        name = f"{letter}_0"
        if name not in self.feed:
            self.give(name, self.floats(2 * D, B, H), [2 * D, "B", H])
        part = self.cut(name, 0, layer * D, (layer + 1) * D)
        if kind == "input_flipped":
            return self.flip(part, 2)
        if kind == "input_plus_one":
            return self.add("Add", part, self.keep(np.float32(1)))
        if kind in ("input_clipped", "input_whole_numbers", "input_halved"):
            return self.rounded(kind.removeprefix("input_"), part)
        return self.add("Tanh", part) if kind == "input_tanh" else part

    def lengths(self, kind: str, X: str) -> str:
        add, keep = self.add, self.keep
        ragged = np.asarray([T - 1, 2, T - 1], "int32")
        match kind:
            case "input":
                return self.give("lengths", ragged, ["B"])
            case "input_cast":
                return add("Cast", self.give("lengths", ragged.astype("int64"), ["B"]), to=6)
            case "constant":
                return keep(ragged)
            case "whole":
                return keep(np.full(B, T, "int32"))
            case "whole_of_shape":
                return add("Cast", add("Expand", self.size(X, 0), self.size(X, 1)), to=6)
            case "constant_cast":
                return add("Cast", add("Add", keep(ragged.astype("int64")), keep([1])), to=6)
            case "filled":
                fill = self.onnx.numpy_helper.from_array(np.asarray([T - 2], "int32"))
                return add("ConstantOfShape", self.size(X, 1), value=fill)
            case "branch":
                return self.branch(keep(np.asarray(True)), ragged)
            case "some_of_input":
                return add("Min", self.give("lengths", ragged, ["B"]), keep(np.asarray([1, T, T], "int32")))
            case "shorter":
                steps = add("Sub", self.size(X, 0), keep([1]))
                return add("Cast", add("Expand", steps, self.size(X, 1)), to=6)
        return ""

    def recurrent(self, name: str, X: str, lens: str, states: list[str], weights: list[str], D: int) -> str:
        outputs = [f"{name}_{k}" for k in ("Y", "Y_h", "Y_c")]
        inputs = [X, *weights, lens, *states]
        while not inputs[-1]:
            inputs.pop()
        direction = "bidirectional" if D == 2 else self.direction
        made = self.onnx.helper.make_node("LSTM", inputs, outputs, name, hidden_size=H, direction=direction)
        self.nodes.append(made)
        return outputs[0]

    def new_weights(self, D: int, size: int) -> list[str]:
        shapes = ((D, 4 * H, size), (D, 4 * H, H))
        bias = self.keep(self.floats(D, 8 * H))
        return [*(self.weight(self.floats(*shape)) for shape in shapes), bias]

    def joined(self, Y: str, D: int) -> str:
        if D == 1:
            return self.add("Squeeze", Y, self.keep([1]))
        return self.add("Reshape", self.add("Transpose", Y, perm=[0, 2, 1, 3]), self.keep([0, 0, D * H]))

    def between(self, kind: str, y: str) -> str:
        match kind:
            case "scaled":
                return self.add("Mul", y, self.keep(np.float32(2)))
            case "relu":
                return self.add("Relu", y)
            case "clipped" | "whole_numbers" | "halved":
                return self.rounded(kind, y)
            case "flip":
                return self.flip(y, 0)
            case "swapped_twice":
                return self.swap(self.swap(y))
            case "reshape":
                return self.add("Reshape", self.add("Reshape", y, self.keep([0, -1])), self.keep([0, B, -1]))
        return y


def build(onnx: Any, seed: int) -> Case:
    """Return a random case."""
    b = Builder(onnx, seed)
    kinds = {
        name: b.pick(choices)
        for name, choices in {
            "front": FRONTS,
            "h": STATES,
            "lens": LENGTHS,
            "second": SECOND,
            "between": BETWEEN,
        }.items()
    }
    for name, plain in (("front", "swap"), ("h", "none"), ("lens", "none"), ("between", "squeeze")):
        if b.rng.integers(2):  # most graphs have one unusual part, not five
            kinds[name] = plain
    kinds["c"] = kinds["h"] if b.rng.integers(4) else b.pick(STATES)
    D = int(b.rng.integers(1, 3))
    X, given, batch_first = b.front(kinds["front"])
    lens = b.lengths(kinds["lens"], X)
    states = [b.state(kinds[k], D, X, k, 0) if kinds[k] != "none" else "" for k in "hc"]
    weights = b.new_weights(D, I)
    Y = b.recurrent("first", X, lens, states, weights, D)
    end, nodes = b.joined(Y, D), ["first"]
    if kinds["second"] != "none":
        X2 = b.between(kinds["between"], end)
        states = [b.state(kinds[k], D, X, k, 1) if kinds[k] != "none" else "" for k in "hc"]
        if kinds["second"] == "handed":
            states = ["first_Y_h", "first_Y_c"]
        if kinds["second"] == "own_state":
            states = [b.keep(b.floats(D, B, H)), ""]
        if kinds["second"] == "ragged_second":
            lens = b.keep(np.asarray([2, T - 1, 1], "int32"))
        shared = kinds["second"] == "shared" and D * H == I
        weights = weights if shared else b.new_weights(D, D * H)
        Y = b.recurrent("second", X2, lens, states, weights, D)
        nodes.append("second")
        below, end = end, b.joined(Y, D)
        if kinds["between"] == "residual":
            end = b.add("Add", below, end)
    b.nodes.append(onnx.helper.make_node("Identity", [end], ["y"]))
    helper = onnx.helper
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(b.feed[n].dtype), shape)
        for n, shape in b.shapes.items()
    ]
    kept = [onnx.numpy_helper.from_array(a, n) for n, a in b.kept.items()]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(b.nodes, "random", inputs, outputs, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return Case(model, b.feed, tuple(nodes), given, batch_first, str(kinds | {"D": D, "one": b.direction}))


def values_of(onnx: Any, runtime: Any, case: Case) -> dict[str, np.ndarray]:
    """Return every value of the graph, computed by ONNX Runtime."""
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return {**case.feed, **dict(zip(names, session.run(None, case.feed), strict=True))}
