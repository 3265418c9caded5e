"""Run the ONNX operators LSTM, GRU and RNN as layers of this package, with converted axes and gate orders.

See https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html and onnx__RNN.html for the definitions.
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


# ONNX Runtime uses 0 for their constants. ONNX defines 1 for ThresholdedRelu, and no value for the others.
_UNSURE = ("affine", "scaledtanh", "thresholdedrelu")
# Domain of ONNX Runtime's operators, and its operator with 8-bit weights.
RUNTIME, QUANTIZED = "com.microsoft", "DynamicQuantizeLSTM"


class Kind(NamedTuple):
    """Parameter layout of an operator."""

    from_gates: tuple[int, ...]
    """ONNX gate index of each gate of this package."""
    to_gates: tuple[int, ...]
    """Gate index in this package of each ONNX gate."""
    params: type[LSTMParams | GRUParams | RNNParams]
    activations: tuple[str, ...]
    """Default functions of one direction."""
    inputs: int
    """Largest number of inputs."""
    own: frozenset[str] = frozenset()
    """Attributes that no other operator has."""


OPERATORS = {
    # ONNX has i, o, f, c; this package has i, f, g, o
    "LSTM": Kind(
        (0, 2, 3, 1),
        (0, 3, 1, 2),
        LSTMParams,
        ("Sigmoid", "Tanh", "Tanh"),
        8,
        frozenset({"input_forget"}),
    ),
    # ONNX has z, r, h; this package has r, z, n
    "GRU": Kind((1, 0, 2), (1, 0, 2), GRUParams, ("Sigmoid", "Tanh"), 6, frozenset({"linear_before_reset"})),
    "RNN": Kind((0,), (0,), RNNParams, ("Tanh",), 6),
}
# Peepholes: ONNX has i, o, f; this package has i, f, o. This permutation is its own inverse.
PEEPHOLES = (0, 2, 1)


class Attributes(NamedTuple):
    """Attributes of a node, with the names and defaults of the operators."""

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
    """Parameter inputs of a node, as arrays or names."""

    W: Any
    R: Any
    B: Any = None
    P: Any = None


class Operator(NamedTuple):
    """A node converted to layers of this package, for many calls."""

    parts: tuple[FrozenLSTM, ...]
    """One layer for all directions, or one for each direction."""
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
        """Run the node, and return Y, Y_h and Y_c; Y_c has no columns for RNN."""
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
        """Check X and the state, and return them with the axes (D, B, H); an omitted state is zero."""
        D, I, H = self.sizes
        X = _checks.array("X", X, self.where, ("B", "T", I) if self.layout else ("T", "B", I), "as W has it")
        B = X.shape[0 if self.layout else 1]
        dtype = _array.dtype_from_name(self.where.xp, self.where.dtype)
        entered = []
        for name, a, n in ((h_name, h, H), (c_name, c, self.parts[0]._stack.cell.cell_size(H))):
            if a is None:
                a = self.where.xp.zeros((D, B, n), dtype=dtype, device=self.where.device)
            else:
                shape = (B, D, n) if self.layout else (D, B, n)
                a = self._swap_axes(_checks.array(name, a, self.where, shape, "directions, B, hidden_size"))
            entered.append(a)
        return X, LSTMState(*entered)

    def leave(self, y: Array, state: LSTMState) -> tuple[Array, Array, Array]:
        """Convert y and the final state to the axes of Y, Y_h and Y_c."""
        D, _, H = self.sizes
        y = _array.reshape(y, (*y.shape[:2], D, H))
        Y = y if self.layout else self.where.xp.permute_dims(y, (0, 2, 1, 3))
        return Y, self._swap_axes(state.h), self._swap_axes(state.c)

    def enter_gradient(self, dY: Array | None) -> Array | None:
        """Convert dY to the gradient with respect to y."""
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
        """Run an LSTM node, and return its outputs and the pullback."""
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
            dstates = {"initial_h": self._swap_axes(dstate_0.h), "initial_c": self._swap_axes(dstate_0.c)}
            return {"X": dX, **{name: a for name, a in dweights.items() if a is not None}, **dstates}

        return self.leave(y, state_n), pullback

    def _swap_axes(self, a: Array) -> Array:
        """Convert a state between the axes of ONNX and of this package."""
        return self.where.xp.permute_dims(a, (1, 0, 2)) if self.layout else a


def operator(kind: str, weights: Weights, attributes: Attributes) -> Operator:
    """Return the operator of a node, with one layer for all directions, or one for each cell."""
    where, sizes = _check_operator(weights, attributes, kind)
    cells = cells_of(kind, attributes, weights.P)
    reverse, params = REVERSE[attributes.direction], tuple(params_of(kind, weights))
    layers = [(cells[0], reverse, params)]
    if len(cells) > 1:
        layers = [(cell, (back,), (one,)) for cell, back, one in zip(cells, reverse, params, strict=True)]
    _, I, H = sizes
    parts = []
    for cell, backs, layer in layers:
        stack = _stack.Stack(
            I, H, weights.B is not None, 1, backs, batch_first=bool(attributes.layout), cell=cell
        )
        parts.append(FrozenLSTM(stack, where, (layer,)))
    return Operator(tuple(parts), where, sizes, attributes.layout)


def _check_operator(
    weights: Weights, attributes: Attributes, operator: str
) -> tuple[_checks.Home, tuple[int, int, int]]:
    """Check weights and attributes, and return the library, and the sizes D, I and H."""
    _checks.floats({"W": weights.W, "R": weights.R})
    where, gates = _checks.home(weights._asdict()), len(OPERATORS[operator].to_gates)
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
    return where, (D, I, H)


def _directions(attributes: Attributes) -> int:
    """Return the number of directions of a node."""
    return len(REVERSE[_values.one_of("direction", attributes.direction, REVERSE)])


def cells_of(kind: str, attributes: Attributes, P: Array | None) -> Sequence[Cell]:
    """Return one cell for all directions, or the cell of each direction of an RNN."""
    if kind == "RNN":
        return elman_cells(attributes)
    return [_lstm_cell(attributes, P) if kind == "LSTM" else _gru_cell(attributes)]


def _lstm_cell(attributes: Attributes, P: Array | None) -> LSTMCell:
    """Return the cell of an LSTM node."""
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


def _gru_cell(attributes: Attributes) -> GRUCell:
    """Return the cell of a GRU node."""
    D = _directions(attributes)
    _values.size("linear_before_reset", attributes.linear_before_reset, 0, 1)
    own = (Activation("sigmoid"), Activation("tanh")) * D
    if attributes.clip is not None or functions("GRU", attributes, D) != own:
        msg = f"activations={attributes.activations} and clip={attributes.clip}, expected Sigmoid and Tanh"
        raise ArgumentError(f"{msg} and no clip for a GRU")
    return GRUCell(bool(attributes.linear_before_reset))


def functions(operator: str, attributes: Attributes, directions: int) -> tuple[Activation, ...]:
    """Return the functions by the names of this package, with constants from the attributes or defaults."""
    defaults = OPERATORS[operator].activations
    count = len(defaults) * directions
    names = list(defaults * directions)
    if attributes.activations is not None:
        given = _values.items("activations", attributes.activations)
        names = [_values.text(f"activations[{k}]", name) for k, name in enumerate(given)]
    if operator == "RNN" and names == ["Tanh", "Tanh"]:
        names = names[:count]  # the default of the schema has names for both directions
    if len(names) != count:
        msg = f"activations={names!r} must have {count} names for direction={attributes.direction!r}"
        raise ArgumentError(msg)
    known = {name.lower(): ours for name, ours in ACTIVATIONS.items()}
    left = {
        "alpha": _constants("activation_alpha", attributes.activation_alpha),
        "beta": _constants("activation_beta", attributes.activation_beta),
    }
    activations = []
    for name in names:
        if name.lower() not in known:
            msg = f"activations={list(names)!r} has {name!r}, expected one of {', '.join(ACTIVATIONS)}"
            raise ArgumentError(msg)
        function = FUNCTIONS[known[name.lower()]]
        constants = (("alpha", function.alpha), ("beta", function.beta))
        required = (k for k, own in constants if name.lower() in _UNSURE and own is not None)
        missing = next((k for k in required if not left[k]), None)
        if missing:
            what = f"activations={list(names)!r} has {name!r} without activation_{missing}"
            msg = f"{what}, whose default differs between ONNX and ONNX Runtime; pass a value"
            raise ArgumentError(msg)
        taken = [left[k].pop(0) if left[k] and own is not None else own for k, own in constants]
        told = [None if value == own else value for value, (_, own) in zip(taken, constants, strict=True)]
        activations.append(Activation(known[name.lower()], *told))
    for letter, values in left.items():
        if values:
            msg = f"activation_{letter} has unused values {values} for activations={list(names)}"
            raise ArgumentError(msg)
    return tuple(activations)


def _constants(name: str, given: Any) -> list[float]:
    """Return the constants of the functions; empty if omitted."""
    items = [] if given is None else _values.items(name, given)
    return [_values.finite(f"{name}[{k}]", value) for k, value in enumerate(items)]


def params_of(operator: str, weights: Weights) -> list[Any]:
    """Return copies of the parameters of each direction, in the gate order of this package."""
    kind, params = OPERATORS[operator], []
    for d in range(weights.W.shape[0]):
        W, R, B, P = (None if a is None else _array.native(a[d, ...]) for a in weights)
        halves = () if B is None else tuple(blocks(half, kind.from_gates) for half in _halves(B))
        own = {"weight_ch": blocks(P, PEEPHOLES)} if P is not None else {}
        params.append(kind.params(blocks(W, kind.from_gates), blocks(R, kind.from_gates), *halves, **own))
    return params


def from_params(layer: Sequence[Any]) -> Weights:
    """Convert the parameters of a layer, or their gradients, to the layout of the operator."""
    first = layer[0]
    xp = _array.namespace(first.weight_ih, "weight_ih")
    order = next(kind.to_gates for kind in OPERATORS.values() if isinstance(first, kind.params))
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
    """Return a copy of `a` with its blocks of rows in another order."""
    xp, n = _array.namespace(a, "weights"), a.shape[0] // len(order)
    return xp.concat([a[k * n : (k + 1) * n, ...] for k in order], axis=0)


def _halves(B: Array) -> tuple[Array, Array]:
    n = B.shape[0] // 2
    return B[:n], B[n:]


def _join(arrays: list[Array], axis: int) -> Array:
    xp = _array.namespace(arrays[0], "y")
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=axis)
