"""Run stacked layers, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xplstm import _array, _checks, _dispatch, _values
from xplstm._checks import Home
from xplstm._dispatch import Directions, Kernel, Stepper
from xplstm._problem import Explanation, Noise, Problem
from xplstm._stack import _borrow, _merge
from xplstm._stack._arguments import (
    Call,
    enter,
    enter_dy,
    enter_state,
    enter_step,
    leave_state,
    leave_y,
    user_major,
)
from xplstm._stack._layers import Stack, names, shapes
from xplstm._state import LSTMState
from xplstm._typing import Array, Namespace
from xplstm.cells import Params
from xplstm.cells.masks import Key, Purpose, draw_key, scaled_mask
from xplstm.kernels import _checkpoint, _stored, reference

__all__ = [
    "Call",
    "Layers",
    "Packed",
    "Prepare",
    "Stack",
    "caller",
    "enter",
    "explain",
    "forward",
    "names",
    "packing",
    "problem",
    "shapes",
    "step",
    "stepper",
    "trace",
    "vjp",
]

Layers = tuple[Directions, ...]
Back = Callable[[Array, LSTMState], tuple[Array | None, LSTMState, Directions]]
Pullback = Callable[[Array | None, LSTMState | None], tuple[Any, LSTMState, Layers]]


class Prepare(NamedTuple):
    """The parameters of a call, and the function that packs them."""

    layers: Layers
    pack: Callable[[Kernel, Problem, int], Any]
    """(kernel, problem, layer) -> the layer's packed weights."""


def problem(
    stack: Stack, call: Call, layers: Layers, layer: int, keep: bool, key: Key | None = None
) -> Problem:
    """Return the problem of one layer; a key enables the random masks of a variant."""
    T, B = call.x.shape[0], call.x.shape[1]
    return Problem(
        xp=call.xp,
        backend=_array.backend_name(call.xp),
        device=call.home.device,
        dtype=call.home.dtype,
        T=T,
        B=B,
        I=stack.layer_input(layer),
        H=stack.hidden_size,
        proj_size=stack.proj_size,
        bias=stack.bias,
        reverse=stack.reverse,
        valid=call.valid.kind,
        keep=keep,
        cell=stack.cell,
        noise=Noise(key, layer * len(stack.reverse), 0) if key and stack.cell.random else None,
        precision=stack.precision,
        reproducible=stack.reproducible,
        weights=stack.weights,
        resets=bool(call.fresh),
        activations=stack.activations,
        loan=_borrow.loan(call.home, (call.x, *call.state, call.valid.array, *call.fresh), layers, keep),
    )


def _layer_state(stack: Stack, state: LSTMState, layer: int) -> LSTMState:
    if stack.num_layers == 1:
        return state
    D = len(stack.reverse)
    return LSTMState(*(a[layer * D : (layer + 1) * D, ...] for a in state))


def explain(stack: Stack, call: Call, layers: Layers) -> Explanation:
    """Return the kernel of each layer, and why each faster kernel does not run it."""
    names = list(_dispatch.TABLE)
    chosen, reasons, canonical, weights, proofs = [], [], [], [], []
    for layer in range(stack.num_layers):
        asked = problem(stack, call, layers, layer, keep=False)
        kernel = _dispatch.select(asked)
        faster = names[: names.index(kernel.name)]
        reasons.append({name: why for name in faster if (why := _dispatch.why_not(name, asked))})
        chosen.append(kernel.name)
        canonical.append(_dispatch.canonical_sums(kernel, asked))
        proofs.append(_dispatch.proof(kernel, asked))
        if stack.weights:
            read = stack.weights if _reads(kernel, asked) else f"{stack.weights}, as {asked.dtype}"
            weights.append(f"{read}, activations: {stack.activations}" if stack.activations else read)
    proven = tuple(proofs) if any(proofs) else ()
    return Explanation(tuple(chosen), tuple(reasons), all(canonical), tuple(weights), proven)


def _reads(kernel: Kernel, asked: Problem) -> bool:
    """Return whether `kernel` reads the weights in their storage type."""
    return asked.weights is None or asked.weights in kernel.storages


def forward(stack: Stack, call: Call, prepare: Prepare) -> tuple[Array, LSTMState]:
    """Return the output and the final state, without residuals."""
    if _borrow.is_compiled(call.home):
        return _borrow.outside_graphs(forward, stack, call, prepare)
    x, ends = call.x, []
    for layer in range(stack.num_layers):
        asked = problem(stack, call, prepare.layers, layer, keep=False)
        kernel = _borrow.select(asked)
        state = _layer_state(stack, call.state, layer)
        packed = prepare.pack(kernel, asked, layer)
        y, end, _ = kernel.forward(asked, packed, x, state, call.valid.array, *call.fresh)
        x = _merge.forward(stack.merge, y)
        ends.append(end)
    return leave_y(stack, call, x), leave_state(stack, call, _concat(call.xp, ends))


def packing(layers: Layers) -> Prepare:
    """Return parameters that are packed at every call, because users may write to them between calls."""
    return Prepare(layers, lambda kernel, problem, layer: kernel.prepare(problem, layers[layer]))


def _home(stack: Stack, layers: Layers) -> Home:
    """Return the `Home` of copied parameters; parameters with stored matrices are NumPy float32 arrays."""
    if stack.weights:
        return Home(_array.numpy_namespace(), "cpu", "float32")
    return _checks.home(layers[0][0]._asdict())


class Packed:
    """Picklable layers with their own copies of the parameters, packed once for each kernel that runs."""

    def __init__(self, stack: Stack, home: Home | None, layers: Layers) -> None:
        self._stack = stack
        self._where = _home(stack, layers) if home is None else home
        self._layers = layers
        self._packed: dict[tuple[str, int], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Omit the module of the array library, which cannot be pickled, and all packed weights."""
        return {"_stack": self._stack, "_layers": self._layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_stack"], None, state["_layers"])  # type: ignore[misc]

    @property
    def nbytes(self) -> int:
        """Size of the parameters in bytes."""
        return sum(_array.nbytes(a) for layer in self._layers for p in layer for a in p if a is not None)

    def __sizeof__(self) -> int:
        """Return the size in bytes; Dask uses it to place and spill objects."""
        return object.__sizeof__(self) + self.nbytes

    def _ready(self) -> tuple[Home, Prepare]:
        """Return the `Home` of the parameters, and the parameters with their packing function."""
        return self._where, self._prepare

    @property
    def _prepare(self) -> Prepare:
        """Return the parameters and their packing function."""
        return Prepare(self._layers, self._pack)

    def _pack(self, kernel: Kernel, problem: Problem, layer: int) -> Any:
        """Return the layer's packed weights; a cache is safe because no other code writes to the copies."""
        key = (kernel.name, layer)
        if key not in self._packed:
            params = self._layers[layer]
            if not _reads(kernel, problem):
                params = tuple(map(_stored.restore, params))
            self._packed[key] = kernel.prepare(problem, params)
        return self._packed[key]

    def _own_layers(self) -> Layers:
        """Return the parameters, which no other code can write to."""
        return self._layers

    def _run(self, x: Array, state: Any, lengths: Any, mask: Any, fresh: Any) -> tuple[Array, LSTMState]:
        """Run all layers over a block of steps; steps where `fresh` (T, B) is True start from zeros."""
        xp, device, _ = self._where
        call = enter(self._stack, self._where, x, state, lengths, mask)
        if fresh is not None:
            call = call._replace(fresh=(_array.asarray(fresh[None, ...], xp, device),))
        return forward(self._stack, call, self._prepare)


def step(stack: Stack, home: Home, x_t: Array, state: Any, prepare: Prepare) -> tuple[Array, LSTMState]:
    """Run one step of all layers, as a sequence of length 1."""
    y, state_n = forward(stack._replace(batch_first=False), enter_step(stack, home, x_t, state), prepare)
    return y[0, ...], state_n


def stepper(stack: Stack, home: Home, x_t: Array, prepare: Prepare) -> Stepper | None:
    """Return the selected kernel's function for single steps of all layers, or None."""
    selection = _select(stack, enter_step(stack, home, x_t, None), prepare)
    return selection[0].stepper(*selection[1:]) if selection and selection[0].stepper else None


def caller(stack: Stack, home: Home, prepare: Prepare) -> Stepper | None:
    """Return the selected kernel's function for small calls of all layers, or None."""
    dtype = _array.dtype_from_name(home.xp, home.dtype)
    x = home.xp.zeros((1, 1, stack.input_size), dtype=dtype, device=home.device)
    selection = _select(stack, enter(stack, home, x, None, None, None), prepare)
    if not selection or not selection[0].caller:
        return None
    return selection[0].caller(*selection[1:], stack.batch_first)


def _select(stack: Stack, call: Call, prepare: Prepare) -> tuple[Kernel, Problem, tuple[Any, ...]] | None:
    """Return the kernel that all layers select, the first layer's problem, and all packed weights."""
    layers = range(stack.num_layers)
    asked = [problem(stack, call, prepare.layers, layer, keep=False) for layer in layers]
    kernels = [_borrow.select(each) for each in asked]
    if len({kernel.name for kernel in kernels}) > 1 or not stack.layer_axis or any(stack.reverse):
        return None
    return kernels[0], asked[0], tuple(map(prepare.pack, kernels, asked, layers))


def _concat(xp: Namespace, states: list[LSTMState]) -> LSTMState:
    if len(states) == 1:
        return states[0]
    return LSTMState(xp.concat([s.h for s in states], axis=0), xp.concat([s.c for s in states], axis=0))


class _Layer(NamedTuple):
    """The values of one layer that the pullback needs."""

    back: Back
    masks: list[Array]
    """Dropout masks of the layer's input."""
    weight_masks: list[Array | None]
    """Dropout mask of each direction's weight_hh."""
    y: Array
    """The layer's output before the directions were merged."""


def vjp(
    stack: Stack,
    call: Call,
    layers: Layers,
    rng: Any = None,
    checkpoint: int | None = None,
    dx: bool = True,
) -> tuple[Array, LSTMState, Pullback]:
    """Return the output, the final state, and the pullback of both."""
    if _borrow.is_compiled(call.home):
        return _borrow.outside_graphs(vjp, stack, call, layers, rng, checkpoint, dx)
    dx = _values.flag("dx", dx)
    checkpoint = _checks.checkpoint(checkpoint)
    key = None if rng is None else draw_key(rng)
    x, ends, kept = call.x, [], []
    for layer, params in enumerate(layers):
        masks = _input_masks(stack, call, key, layer)
        for mask in masks:
            x = x * mask
        weight_masks = [_weight_mask(stack, call, key, layer, d, p) for d, p in enumerate(params)]
        params = tuple(map(_apply_mask, params, weight_masks))
        state = _layer_state(stack, call.state, layer)
        asked = problem(stack, call, layers, layer, True, key)
        if not dx and layer == 0:
            asked = asked._replace(dx=False)
        y, end, back = _keep(asked, params, x, state, call, checkpoint)
        kept.append(_Layer(back, masks, weight_masks, y))
        x = _merge.forward(stack.merge, y)
        ends.append(end)

    def pullback(
        dy: Array | None = None, dstate_n: LSTMState | None = None
    ) -> tuple[Array | None, LSTMState, Layers]:
        gradients = _pull_back(stack, call, kept, dy, dstate_n)
        return gradients if dx else (None, *gradients[1:])

    return leave_y(stack, call, x), leave_state(stack, call, _concat(call.xp, ends)), pullback


def _keep(
    asked: Problem, params: Directions, x: Array, state: LSTMState, call: Call, checkpoint: int | None
) -> tuple[Array, LSTMState, Back]:
    """Run one layer forward, and return its backward function."""
    valid = call.valid.array
    if checkpoint is None or checkpoint >= asked.T:
        kernel = _borrow.select(asked)
        y, end, residuals = kernel.forward(asked, kernel.prepare(asked, params), x, state, valid, *call.fresh)
        return y, end, lambda dy, dstate: kernel.backward(residuals, dy, dstate)
    kernel = _borrow.select(_checkpoint.widen_problem(asked)._replace(T=checkpoint))
    y, end, segments = _checkpoint.forward(kernel, checkpoint, asked, params, x, state, valid, *call.fresh)
    return y, end, lambda dy, dstate: _checkpoint.backward(segments, dy, dstate)


def _input_masks(stack: Stack, call: Call, key: Key | None, layer: int) -> list[Array]:
    """Return the dropout masks of a layer's input: one for all steps, and one per step between layers."""
    (T, B, _), features = call.x.shape, stack.layer_input(layer)
    arrays = []
    if key is not None and stack.input_dropout:
        arrays.append(_mask(call, (B, features), stack.input_dropout, key, layer, Purpose.INPUT))
    if key is not None and stack.dropout and layer:
        arrays.append(_mask(call, (T, B, features), stack.dropout, key, layer, Purpose.BETWEEN_LAYERS))
    return arrays


def _weight_mask(stack: Stack, call: Call, key: Key | None, layer: int, d: int, p: Params) -> Array | None:
    """Return the dropout mask of a direction's weight_hh (Wan et al., 2013; Merity et al., 2018)."""
    if key is None or stack.weight_dropout == 0:
        return None
    stream = layer * len(stack.reverse) + d
    return _mask(call, p.weight_hh.shape, stack.weight_dropout, key, stream, Purpose.WEIGHT)


def _mask(call: Call, shape: tuple[int, ...], p: float, key: Key, stream: int, purpose: Purpose) -> Array:
    xp, device, dtype = call.home
    return scaled_mask(xp, shape, p, key, stream, dtype, device, purpose)


def _apply_mask(p: Params, mask: Array | None) -> Params:
    """Multiply weight_hh, or its gradient, by a mask."""
    return p if mask is None else p._replace(weight_hh=p.weight_hh * mask)


def _pull_back(
    stack: Stack, call: Call, kept: list[_Layer], dy: Array | None, dstate_n: LSTMState | None
) -> tuple[Array | None, LSTMState, Layers]:
    """Return the gradients with respect to x, the initial state and the parameters of each layer."""
    if _borrow.is_compiled(call.home):
        return _borrow.outside_graphs(_pull_back, stack, call, kept, dy, dstate_n)
    T, B = call.x.shape[0], call.x.shape[1]
    dx: Array | None = enter_dy(stack, call, dy, T, B)
    dstate_n = enter_state(stack, call.home, dstate_n, B, call.batched, "_n's gradient", "dstate_n")
    starts: list[LSTMState] = []
    dlayers: list[Directions] = []
    for layer in reversed(range(stack.num_layers)):
        back, masks, weight_masks, y = kept[layer]
        assert dx is not None, "only the first layer may omit dx"
        parts = _merge.backward(stack.merge, y, dx)
        dx = parts[0] if len(parts) == 1 else call.xp.concat(parts, axis=-1)
        dx, dstate, dparams = back(dx, _layer_state(stack, dstate_n, layer))
        for mask in masks:
            dx = None if dx is None else dx * mask
        starts.insert(0, dstate)
        dlayers.insert(0, tuple(map(_apply_mask, dparams, weight_masks)))
    dstate_0 = leave_state(stack, call, _concat(call.xp, starts))
    return None if dx is None else user_major(stack, call, dx), dstate_0, tuple(dlayers)


def trace(stack: Stack, call: Call, layers: Layers) -> tuple[Array, ...]:
    """Return the cell's trace, each array (L*D, T, B, ·), computed by the reference kernel."""
    x, directions = call.x, []
    for layer, params in enumerate(layers):
        asked = problem(stack, call, layers, layer, keep=True)
        packed = reference.prepare(asked, params)
        state = _layer_state(stack, call.state, layer)
        y, _, residuals = reference.forward(asked, packed, x, state, call.valid.array, *call.fresh)
        assert residuals is not None
        x = _merge.forward(stack.merge, y)
        directions += [reference.trace(residuals, d) for d in range(len(stack.reverse))]
    columns = zip(*directions, strict=True)
    return tuple(call.xp.stack([user_major(stack, call, a) for a in column], axis=0) for column in columns)
