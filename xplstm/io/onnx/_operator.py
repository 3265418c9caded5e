"""ONNX's operators LSTM, GRU and RNN as layers of ours: their attributes, their axes, their order of gates.

They are described in https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html and onnx__RNN.html.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xplstm import _array, _checks, _stack, _values
from xplstm._errors import ArgumentError
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.cells import Cell
from xplstm.cells.activations import FUNCTIONS
from xplstm.cells.gru import GRUCell, GRUParams
from xplstm.cells.lstm import LSTMCell
from xplstm.cells.params import Activation, LSTMParams, Variant
from xplstm.cells.rnn import ElmanCell, RNNParams
from xplstm.cells.variant import lstm_cell
from xplstm.nn._lstm import FrozenLSTM

REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
ACTIVATIONS = {
    "Relu": "relu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Affine": "affine",
    "LeakyRelu": "leaky_relu",
    "ThresholdedRelu": "thresholded_relu",
    "ScaledTanh": "scaled_tanh",
    "HardSigmoid": "hard_sigmoid",
    "Elu": "elu",
    "Softsign": "softsign",
    "Softplus": "softplus",
}


# ONNX Runtime takes 0 for their constants. ONNX says 1 for ThresholdedRelu, and has no schema of the others.
_UNSURE = ("affine", "scaledtanh", "thresholdedrelu")
# The domain of ONNX Runtime's own operators, and the one whose weights have 8 bits.
RUNTIME, QUANTIZED = "com.microsoft", "DynamicQuantizeLSTM"


class Kind(NamedTuple):
    """How an operator keeps its parameters."""

    from_gates: tuple[int, ...]
    """Which of their blocks is at each place of ours."""
    to_gates: tuple[int, ...]
    """Which of our blocks is at each place of theirs."""
    params: type[LSTMParams | GRUParams | RNNParams]
    activations: tuple[str, ...]
    """Its default functions in one direction."""
    inputs: int
    """The most that a node has."""
    own: frozenset[str] = frozenset()
    """Attributes that no other operator has."""


KINDS = {
    # i, o, f, c there and i, f, g, o here
    "LSTM": Kind(
        (0, 2, 3, 1),
        (0, 3, 1, 2),
        LSTMParams,
        ("Sigmoid", "Tanh", "Tanh"),
        8,
        frozenset({"input_forget"}),
    ),
    # z, r, h there and r, z, n here
    "GRU": Kind((1, 0, 2), (1, 0, 2), GRUParams, ("Sigmoid", "Tanh"), 6, frozenset({"linear_before_reset"})),
    "RNN": Kind((0,), (0,), RNNParams, ("Tanh",), 6),
}
# The same of i, o, f and i, f, o: this order is its own inverse.
PEEPHOLES = (0, 2, 1)


class Attributes(NamedTuple):
    """What a node says in addition to its inputs; the names and defaults are the operators'."""

    direction: str = "forward"
    layout: int = 0
    hidden_size: int | None = None
    clip: float | None = None
    input_forget: int = 0
    activations: Sequence[str] | None = None
    activation_alpha: Sequence[float] | None = None
    activation_beta: Sequence[float] | None = None
    linear_before_reset: int = 0


class Weights(NamedTuple):
    """Inputs of a node that are parameters of the layer: arrays, or their names."""

    W: Any
    R: Any
    B: Any = None
    P: Any = None


class Operator(NamedTuple):
    """A node as layers of ours, its gates in our order: what can be done once for all calls."""

    parts: tuple[FrozenLSTM, ...]
    """One for all directions, or one for each."""
    where: _checks.Home
    sizes: tuple[int, int, int]
    """D, I, H."""
    layout: int

    def __call__(
        self,
        X: Array,
        sequence_lens: Any = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Run the node: Y, Y_h, Y_c; the last has no columns for RNN."""
        X, state = self.enter(X, initial_h, initial_c)
        ys, ends, row = [], [], 0
        for part in self.parts:
            rows = len(part._stack.reverse)
            piece = LSTMState(*(a[row : row + rows, ...] for a in state))
            y, end = part(X, piece, lengths=sequence_lens)
            ys.append(y)
            ends.append(end)
            row += rows
        return self.leave(_join(ys, -1), LSTMState(*(_join(list(a), 0) for a in zip(*ends, strict=True))))

    def enter(
        self, X: Array, h: Array | None, c: Array | None, h_name: str = "initial_h", c_name: str = "initial_c"
    ) -> tuple[Array, LSTMState]:
        """Return X, and the state as (D, B, H), zeros where it is left out; checked."""
        D, I, H = self.sizes
        X = _checks.array("X", X, self.where, ("B", "T", I) if self.layout else ("T", "B", I), "as W has it")
        B = X.shape[0 if self.layout else 1]
        dtype = _array.dtype_named(self.where.xp, self.where.dtype)
        entered = []
        for name, a, n in ((h_name, h, H), (c_name, c, self._cell_size)):
            if a is None:
                a = self.where.xp.zeros((D, B, n), dtype=dtype, device=self.where.device)
            else:
                shape = (B, D, n) if self.layout else (D, B, n)
                a = self._swapped(_checks.array(name, a, self.where, shape, "directions, B, hidden_size"))
            entered.append(a)
        return X, LSTMState(*entered)

    def leave(self, y: Array, state: LSTMState) -> tuple[Array, Array, Array]:
        """Return Y, Y_h and Y_c from our axes."""
        D, _, H = self.sizes
        y = _array.reshape(y, (*y.shape[:2], D, H))
        Y = y if self.layout else self.where.xp.permute_dims(y, (0, 2, 1, 3))
        return Y, self._swapped(state.h), self._swapped(state.c)

    def enter_gradient(self, dY: Array | None) -> Array | None:
        """Return the gradient with respect to our y."""
        if dY is None:
            return None
        D, _, H = self.sizes
        axes: tuple[int | str, ...] = ("B", "T", D, H) if self.layout else ("T", D, "B", H)
        dY = _checks.array("dY", dY, self.where, axes, "the shape of Y")
        dy = dY if self.layout else self.where.xp.permute_dims(dY, (0, 2, 1, 3))
        return _array.reshape(dy, (*dy.shape[:2], D * H))

    def vjp(
        self, X: Array, sequence_lens: Any, initial_h: Array | None, initial_c: Array | None
    ) -> tuple[tuple[Array, Array, Array], Callable[..., dict[str, Array]]]:
        """Run a node LSTM and keep what its gradients need: outputs, and the backward pass."""
        (part,) = self.parts
        X, state = self.enter(X, initial_h, initial_c)
        call = _stack.enter(part._stack, self.where, X, state, sequence_lens, None)
        y, state_n, back = _stack.vjp(part._stack, call, part._layers, None, None)

        def pullback(
            dY: Array | None = None, dY_h: Array | None = None, dY_c: Array | None = None
        ) -> dict[str, Array]:
            _, dstate_n = self.enter(X, dY_h, dY_c, "dY_h", "dY_c")
            dX, dstate_0, dlayers = back(self.enter_gradient(dY), dstate_n)
            dweights = from_params(dlayers[0])._asdict()
            dstates = {"initial_h": self._swapped(dstate_0.h), "initial_c": self._swapped(dstate_0.c)}
            return {"X": dX, **{name: a for name, a in dweights.items() if a is not None}, **dstates}

        return self.leave(y, state_n), pullback

    @property
    def _cell_size(self) -> int:
        return self.parts[0]._stack.cell.cell_size(self.sizes[2])

    def _swapped(self, a: Array) -> Array:
        """Convert a state between their axes and ours."""
        return self.where.xp.permute_dims(a, (1, 0, 2)) if self.layout else a


def lstm(weights: Weights, attributes: Attributes) -> Operator:
    """Return a node LSTM: one layer, all its directions at once."""
    where, sizes, attributes = _opened(weights, attributes, "LSTM")
    layer = tuple(params_of("LSTM", weights))
    stack = _one(sizes, attributes, REVERSE[attributes.direction], weights, node_cell(attributes, weights.P))
    return Operator((FrozenLSTM(stack, where, (layer,)),), where, sizes, attributes.layout)


def rnn(weights: Weights, attributes: Attributes) -> Operator:
    """Return a node RNN: each direction by itself, since each has a function of its own."""
    where, sizes, attributes = _opened(weights, attributes, "RNN")
    parts = [
        FrozenLSTM(_one(sizes, attributes, (reverse,), weights, cell), where, ((p,),))
        for reverse, cell, p in zip(
            REVERSE[attributes.direction], elman_cells(attributes), params_of("RNN", weights), strict=True
        )
    ]
    return Operator(tuple(parts), where, sizes, attributes.layout)


def gru(weights: Weights, attributes: Attributes) -> Operator:
    """Return a GRU node: one layer, all its directions at once."""
    where, sizes, attributes = _opened(weights, attributes, "GRU")
    stack = _one(sizes, attributes, REVERSE[attributes.direction], weights, gru_cell(attributes))
    layer = tuple(params_of("GRU", weights))
    return Operator((FrozenLSTM(stack, where, (layer,)),), where, sizes, attributes.layout)


OPERATORS: dict[str, Callable[[Weights, Attributes], Operator]] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}


def _opened(
    weights: Weights, attributes: Attributes, operator: str
) -> tuple[_checks.Home, tuple[int, int, int], Attributes]:
    """Return where the weights live, their sizes D, I and H, and the attributes; all checked."""
    _checks.floats({"W": weights.W, "R": weights.R})
    where, gates = _checks.home(weights._asdict()), len(KINDS[operator].to_gates)
    D = _directions(attributes)
    _values.size("layout", attributes.layout, 0, 1)
    H = weights.R.shape[-1] if attributes.hidden_size is None else attributes.hidden_size
    _values.size("hidden_size", H)
    I = weights.W.shape[-1] if weights.W.ndim == 3 else 1
    shapes = {
        "W": (D, gates * H, _values.size("input_size", I)),
        "R": (D, gates * H, H),
        "B": (D, 2 * gates * H),
        "P": (D, 3 * H),
    }
    for name, a in weights._asdict().items():
        if a is not None:
            _checks.array(name, a, where, shapes[name], f"direction {attributes.direction}, hidden_size {H}")
    return where, (D, I, H), attributes


def _one(
    sizes: tuple[int, int, int],
    attributes: Attributes,
    reverse: tuple[bool, ...],
    weights: Weights,
    cell: Cell,
) -> _stack.Stack:
    _, I, H = sizes
    return _stack.Stack(
        I, H, weights.B is not None, 1, reverse, batch_first=bool(attributes.layout), cell=cell
    )


def _directions(attributes: Attributes) -> int:
    """Return how many directions a node has."""
    return len(REVERSE[_values.one_of("direction", attributes.direction, REVERSE)])


def node_cell(attributes: Attributes, P: Array | None) -> LSTMCell:
    """Return the cell that the attributes of an LSTM node describe."""
    D = _directions(attributes)
    _values.size("input_forget", attributes.input_forget, 0, 1)
    variant = Variant(
        peepholes=P is not None,
        coupled=bool(attributes.input_forget),
        activations=functions("LSTM", attributes, D),
        gate_clip=None if attributes.clip is None else _values.positive("clip", attributes.clip),
    )
    return lstm_cell(variant, D)


def elman_cells(attributes: Attributes) -> list[ElmanCell]:
    """Return the cell of each direction of an RNN node."""
    clip = None if attributes.clip is None else _values.positive("clip", attributes.clip)
    D = _directions(attributes)
    return [ElmanCell(f, clip) for f in functions("RNN", attributes, D)]


def gru_cell(attributes: Attributes) -> GRUCell:
    """Return the cell that the attributes of a GRU node describe."""
    D = _directions(attributes)
    _values.size("linear_before_reset", attributes.linear_before_reset, 0, 1)
    own = (Activation("sigmoid"), Activation("tanh")) * D
    if attributes.clip is not None or functions("GRU", attributes, D) != own:
        msg = f"activations={attributes.activations}, clip={attributes.clip}: a GRU here has Sigmoid and Tanh"
        raise ArgumentError(f"{msg}, and no clip")
    return GRUCell(bool(attributes.linear_before_reset))


def functions(operator: str, attributes: Attributes, directions: int) -> tuple[Activation, ...]:
    """Return the functions by our names, each with its constants from the two lists, or its defaults."""
    defaults = KINDS[operator].activations
    count = len(defaults) * directions
    names = list(defaults * directions)
    if attributes.activations is not None:
        given = _values.items("activations", attributes.activations)
        names = [_values.text(f"activations[{k}]", name) for k, name in enumerate(given)]
    if operator == "RNN" and names == ["Tanh", "Tanh"]:
        names = names[:count]  # the schema's own default, whatever the direction
    if len(names) != count:
        msg = f"activations={names!r} must hold {count} names for direction={attributes.direction!r}"
        raise ArgumentError(msg)
    known = {name.lower(): ours for name, ours in ACTIVATIONS.items()}
    left = {
        "alpha": _constants("activation_alpha", attributes.activation_alpha),
        "beta": _constants("activation_beta", attributes.activation_beta),
    }
    found = []
    for name in names:
        if name.lower() not in known:
            msg = f"activations={list(names)!r} has {name!r}, which is none of {', '.join(ACTIVATIONS)}"
            raise ArgumentError(msg)
        function = FUNCTIONS[known[name.lower()]]
        constants = (("alpha", function.alpha), ("beta", function.beta))
        required = (k for k, own in constants if name.lower() in _UNSURE and own is not None)
        missing = next((k for k in required if not left[k]), None)
        if missing:
            what = f"activations={list(names)!r} has {name!r} without activation_{missing}"
            msg = f"{what}, whose default is not the same in ONNX and ONNX Runtime; write it out"
            raise ArgumentError(msg)
        taken = [left[k].pop(0) if left[k] and own is not None else own for k, own in constants]
        told = [None if value == own else value for value, (_, own) in zip(taken, constants, strict=True)]
        found.append(Activation(known[name.lower()], *told))
    for letter, values in left.items():
        if values:
            msg = f"activation_{letter} has {values} left over, which none of activations={list(names)} takes"
            raise ArgumentError(msg)
    return tuple(found)


def _constants(name: str, given: Any) -> list[float]:
    """Return the constants of the functions, none if left out."""
    items = [] if given is None else _values.items(name, given)
    return [_values.finite(f"{name}[{k}]", value) for k, value in enumerate(items)]


def params_of(operator: str, weights: Weights) -> list[Any]:
    """Return the parameters of each direction, copied into our order of gates."""
    kind, found = KINDS[operator], []
    for d in range(weights.W.shape[0]):
        W, R, B, P = (None if a is None else _array.native(a[d, ...]) for a in weights)
        halves = () if B is None else tuple(blocks(half, kind.from_gates) for half in _halves(B))
        own = {"weight_ch": blocks(P, PEEPHOLES)} if P is not None else {}
        found.append(kind.params(blocks(W, kind.from_gates), blocks(R, kind.from_gates), *halves, **own))
    return found


def from_params(layer: Sequence[Any]) -> Weights:
    """Return one layer's parameters, or their gradients, as the operator keeps them."""
    first = layer[0]
    xp = _array.namespace(first.weight_ih, "weight_ih")
    order = next(kind.to_gates for kind in KINDS.values() if isinstance(first, kind.params))
    peepholes = isinstance(first, LSTMParams) and first.weight_ch is not None
    return Weights(
        xp.stack([blocks(p.weight_ih, order) for p in layer]),
        xp.stack([blocks(p.weight_hh, order) for p in layer]),
        None
        if first.bias_ih is None
        else xp.stack([xp.concat([blocks(b, order) for b in (p.bias_ih, p.bias_hh)]) for p in layer]),
        xp.stack([blocks(p.weight_ch, PEEPHOLES) for p in layer]) if peepholes else None,
    )


def blocks(a: Any, order: Sequence[int]) -> Array:
    """Return the blocks of rows of `a` in another order, copied."""
    xp, n = _array.namespace(a, "weights"), a.shape[0] // len(order)
    return xp.concat([a[k * n : (k + 1) * n, ...] for k in order], axis=0)


def _halves(B: Array) -> tuple[Array, Array]:
    n = B.shape[0] // 2
    return B[:n], B[n:]


def _join(arrays: list[Array], axis: int) -> Array:
    xp = _array.namespace(arrays[0], "y")
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=axis)
