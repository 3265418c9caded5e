"""Define the equations of the LSTM with the options of `Variant`, forward and backward.

`Variant` names the sources of the options. Without options, the equations are those of `xplstm.cells.lstm`.
One step computes, in this order::

    h~ = h * mask                                                recurrent dropout
    z = W_ih x + b_ih + W_hh h~ + b_hh                           layer_norm: norm(W_ih x), norm(W_hh h~)
    z_i += w_i * c;  z_f += w_f * c                              peepholes
    i, f, g = F(clip(z_i)), F(clip(z_f)), G(clip(z_g))           gate_clip; coupled: f = 1 - i
    c^ = clip(f * c + i * g)                                     cell_clip
    o = F(clip(z_o + w_o * c^))                                  peepholes, gate_clip
    h^ = W_hr (o * H(norm(c^)))                                  layer_norm
    c' = c or c^, h' = h or h^, unit by unit                     zoneout
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError
from xplstm._typing import Array, Namespace
from xplstm.cells import Cell, Direction, Equations, Masks, Pointwise, Sizes
from xplstm.cells.activations import FUNCTIONS, blocks, clip, clip_back, constants, slope, value
from xplstm.cells.lstm import STANDARD, STANDARD_STEP, Gates, LSTMCell, project_output
from xplstm.cells.masks import Draw, Purpose, hold_mask, scaled_mask
from xplstm.cells.params import Activation, LSTMParams, Variant

EPSILON = 1e-5


# For each parameter that the standard LSTM does not have, the option that uses it.
OPTION = {
    "weight_ch": "variant.peepholes",
    **dict.fromkeys(("gain_ih", "gain_hh", "gain_c"), "variant.layer_norm"),
    "bias_c": "variant.layer_norm with biases",
}


class Step(NamedTuple):
    """The residuals of one step."""

    z: Gates
    """Inputs of the gates' functions, before gate_clip."""
    gates: Gates
    h_seen: Array
    """h after recurrent dropout."""
    product: Array
    """``W_hh h~`` before normalisation."""
    c_prev: Array
    unclipped: Array
    """c^ before cell_clip."""
    exposed: Array
    """c^ after normalisation, the input of H."""
    h: Array
    """h' after zoneout."""
    c: Array
    """c' after zoneout."""


class StepGradients(NamedTuple):
    """The contribution of one step to the gradients of the parameters, for each batch entry.

    The kernel joins the contributions of all steps, then computes one product or sum for each parameter.
    """

    dz: Array
    dproduct: Array
    h_seen: Array
    m: Array | None
    dh: Array | None
    dweight_ch: Array | None
    dgain_hh: Array | None
    dgain_c: Array | None
    dbias_c: Array | None


@dataclass(frozen=True, slots=True)
class VariantCell(LSTMCell):
    """An LSTM with at least one option of `Variant`."""

    variant: Variant

    @property
    def reason(self) -> str:
        """Why a kernel for the standard LSTM cannot run this cell."""
        return f"supports only the standard LSTM, not {self.variant}"

    @property
    def random(self) -> bool:
        """Whether a step draws a random mask."""
        variant = self.variant
        return bool(variant.zoneout_h or variant.zoneout_c or variant.recurrent_dropout)

    def pointwise(self, problem: Direction) -> Pointwise:  # noqa: ARG002 - the signature of every cell
        """Return the options of the pointwise step."""
        return _pointwise(self.variant)

    def masks(self, problem: Direction) -> Masks | None:
        """Return the random masks of a whole call, or None if the call draws no masks."""
        if problem.noise is None or not self.random:
            return None
        variant, (key, stream, start) = self.variant, problem.noise
        options = (
            (variant.recurrent_dropout, Purpose.RECURRENT, 0),
            (variant.zoneout_h, Purpose.ZONEOUT_H, start),
            (variant.zoneout_c, Purpose.ZONEOUT_C, start),
        )
        return Masks(*(Draw(key, purpose, stream, at, p) if p else None for p, purpose, at in options))

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Return the parameter shapes of the standard LSTM, and of peepholes and layer_norm."""
        shapes = LSTMCell.shapes(self, sizes)
        H = sizes.hidden
        if self.variant.peepholes:
            shapes["weight_ch"] = (3 * H,)
        if self.variant.layer_norm:
            shapes |= {"gain_ih": (4 * H,), "gain_hh": (4 * H,), "gain_c": (H,)}
            shapes |= {"bias_c": (H,)} if sizes.bias else {}
        return shapes

    def options(self) -> dict[str, Any]:
        """Return the options that are on."""
        return {"variant": self.variant}

    def direction(self, d: int) -> Cell:
        """Return the cell with only the activations of direction `d`."""
        a = self.variant.activations
        if len(a) == 3:
            return self
        return VariantCell(self.variant._replace(activations=a[3 * d : 3 * d + 3]))

    def at(self, problem: Direction) -> Callable[[int], Equations]:
        """Return a function from a time to the equations, with the random masks of that time."""
        variant = self.variant
        dropped = _recurrent_mask(problem, variant.recurrent_dropout)

        def equations(t: int) -> StepEquations:
            hold_h = _hold(problem, variant.zoneout_h, Purpose.ZONEOUT_H, problem.output_size, t)
            hold_c = _hold(problem, variant.zoneout_c, Purpose.ZONEOUT_C, problem.H, t)
            return StepEquations(variant, hold_h, hold_c, dropped)

        return equations


@cache
def _pointwise(variant: Variant) -> Pointwise:
    """Return the options of the variant's pointwise step, with default constants filled in."""
    if variant._replace(recurrent_dropout=0.0) == Variant():
        return STANDARD_STEP
    activations = tuple((a.name, *constants(a)) for a in variant.activations)
    gate_clip, cell_clip = (
        float("inf") if bound is None else float(bound) for bound in (variant.gate_clip, variant.cell_clip)
    )
    holds = variant.zoneout_h, variant.zoneout_c
    return Pointwise(variant.coupled, activations, gate_clip, cell_clip, *holds)


def _recurrent_mask(problem: Direction, p: float) -> Array | None:
    """Return the mask of recurrent dropout, the same at every step; None without dropout or noise."""
    if p == 0 or problem.noise is None:
        return None
    xp, shape, (key, stream, _) = problem.xp, (problem.B, problem.output_size), problem.noise
    wide = _array.dtype_name(_array.wide_dtype(xp, _array.dtype_from_name(xp, problem.dtype)))
    return scaled_mask(xp, shape, p, key, stream, wide, problem.device, Purpose.RECURRENT)


def _hold(problem: Direction, p: float, purpose: Purpose, size: int, t: int) -> Array | float:
    """Return the zoneout mask at time `t` of `problem`, or without noise the share of the old value."""
    if p == 0 or problem.noise is None:
        return p
    key, stream, start = problem.noise
    shape = (problem.B, size)
    return hold_mask(problem.xp, shape, p, key, purpose, stream, start + t, problem.device)


class StepEquations(NamedTuple):
    """The equations of one step, with the random masks of its time."""

    variant: Variant
    hold_h: Array | float
    hold_c: Array | float
    dropped: Array | None

    def project_input(self, x: Array, p: LSTMParams) -> Array:
        """Return ``W_ih x``, normalised if layer_norm is on, plus both biases."""
        zx = x @ p.weight_ih.T
        if p.gain_ih is not None:
            zx = normalise(_array.namespace(x, "x"), zx)[0] * p.gain_ih
        return zx if p.bias_ih is None else zx + (p.bias_ih + p.bias_hh)

    def forward(
        self, xp: Namespace, zx: Array, h: Array, c: Array, p: LSTMParams
    ) -> tuple[Array, Array, Step]:
        """Run one step from ``zx`` (B, 4H) of `project_input`, ``h`` and ``c``; return ``h'`` and ``c'``."""
        F, G, H = self.variant.activations
        bound = self.variant.gate_clip
        w_i, w_f, w_o = _peepholes(xp, p)
        h_seen = h if self.dropped is None else h * self.dropped
        product = h_seen @ p.weight_hh.T
        z_i, z_f, z_g, z_o = blocks(xp, zx + _normalise_and_scale(xp, product, p.gain_hh), 4)
        z_i, z_f = _add_peephole(z_i, w_i, c), _add_peephole(z_f, w_f, c)
        i = value(xp, F, clip(xp, z_i, bound))
        f = 1 - i if self.variant.coupled else value(xp, F, clip(xp, z_f, bound))
        g = value(xp, G, clip(xp, z_g, bound))
        unclipped = f * c + i * g
        c_new = clip(xp, unclipped, self.variant.cell_clip)
        z_o = _add_peephole(z_o, w_o, c_new)
        o = value(xp, F, clip(xp, z_o, bound))
        exposed = _normalise_and_scale(xp, c_new, p.gain_c)
        exposed = exposed if p.bias_c is None else exposed + p.bias_c
        h_new = _apply_zoneout(xp, self.hold_h, h, project_output(o * value(xp, H, exposed), p))
        c_next = _apply_zoneout(xp, self.hold_c, c, c_new)
        z, gates = Gates(z_i, z_f, z_g, z_o), Gates(i, f, g, o)
        return h_new, c_next, Step(z, gates, h_seen, product, c, unclipped, exposed, h_new, c_next)

    def backward(
        self, xp: Namespace, dh: Array, dc: Array, step: Step, p: LSTMParams
    ) -> tuple[StepGradients, Array, Array]:
        """Return the gradients with respect to h and c, given those with respect to ``h'`` and ``c'``."""
        (i, f, g, o), z, c_prev = step.gates, step.z, step.c_prev
        F, G, H = self.variant.activations
        w_i, w_f, w_o = _peepholes(xp, p)
        dh_new, dh_old = _zoneout_backward(xp, self.hold_h, dh)
        dc_new, dc_old = _zoneout_backward(xp, self.hold_c, dc)

        squashed = value(xp, H, step.exposed)
        dm = dh_new if p.weight_hr is None else dh_new @ p.weight_hr
        dexposed = dm * o * slope(xp, H, step.exposed, squashed)
        c_new = clip(xp, step.unclipped, self.variant.cell_clip)
        dz_o = self._through_gate(xp, dm * squashed, F, z.o, o)
        dc_new = _add_peephole(dc_new + _normalise_backward(xp, dexposed, c_new, p.gain_c), w_o, dz_o)
        dc_new = clip_back(xp, dc_new, step.unclipped, self.variant.cell_clip)

        df = dc_new * c_prev
        di = dc_new * g - df if self.variant.coupled else dc_new * g
        dz_i = self._through_gate(xp, di, F, z.i, i)
        dz_f = xp.zeros_like(df) if self.variant.coupled else self._through_gate(xp, df, F, z.f, f)
        dz_g = self._through_gate(xp, dc_new * i, G, z.g, g)
        dc_prev = _add_peephole(_add_peephole(dc_new * f, w_i, dz_i), w_f, dz_f) + dc_old

        dz = xp.concat([dz_i, dz_f, dz_g, dz_o], axis=-1)
        dproduct = _normalise_backward(xp, dz, step.product, p.gain_hh)
        dh_seen = dproduct @ p.weight_hh
        dh_prev = (dh_seen if self.dropped is None else dh_seen * self.dropped) + dh_old
        normal = p.gain_hh is not None
        steps = StepGradients(
            dz,
            dproduct,
            step.h_seen,
            None if p.weight_hr is None else o * squashed,
            None if p.weight_hr is None else dh_new,
            None if w_i is None else xp.concat([dz_i * c_prev, dz_f * c_prev, dz_o * c_new], axis=-1),
            dz * normalise(xp, step.product)[0] if normal else None,
            dexposed * normalise(xp, c_new)[0] if normal else None,
            None if p.bias_c is None else dexposed,
        )
        return steps, dh_prev, dc_prev

    def _through_gate(self, xp: Namespace, da: Array, activation: Activation, z: Array, a: Array) -> Array:
        """Return the gradient with respect to the unclipped input of a gate's function."""
        bound = self.variant.gate_clip
        return clip_back(xp, da * slope(xp, activation, clip(xp, z, bound), a), z, bound)

    def gradients(
        self, xp: Namespace, x: Array, steps: StepGradients, p: LSTMParams
    ) -> tuple[Array, LSTMParams]:
        """Return the gradients with respect to x and the parameters, summed over all steps."""
        dz, dproduct, h_seen, m, dh, *summed = steps
        product = x @ p.weight_ih.T
        dgain_ih = None if p.gain_ih is None else xp.sum(dz * normalise(xp, product)[0], axis=0)
        dzx = _normalise_backward(xp, dz, product, p.gain_ih)
        db = None if p.bias_ih is None else xp.sum(dz, axis=0)
        twin = None if db is None else xp.astype(db, db.dtype, copy=True)
        dweight_hr = None if m is None or dh is None else dh.T @ m
        dweight_ch, *dgains = (None if a is None else xp.sum(a, axis=0) for a in summed)
        return dzx @ p.weight_ih, LSTMParams(
            dzx.T @ x, dproduct.T @ h_seen, db, twin, dweight_hr, dweight_ch, dgain_ih, *dgains
        )

    def trace(self, _xp: Namespace, step: Step, _p: LSTMParams) -> tuple[Array, ...]:
        """Return the arrays i, f, g, o, c and h of one step."""
        return (*step.gates, step.c, step.h)


def lstm_cell(variant: Variant | None, directions: int) -> LSTMCell:
    """Check the options of an LSTM, and return its cell: the standard cell if no option is on."""
    if variant is None:
        return STANDARD
    if not isinstance(variant, Variant):
        msg = f"variant must be a Variant, got {type(variant).__name__}"
        raise DTypeError(msg)
    checked = Variant(
        _values.flag("variant.peepholes", variant.peepholes),
        _values.flag("variant.coupled", variant.coupled),
        _activations(variant.activations, directions),
        None if variant.gate_clip is None else _values.positive("variant.gate_clip", variant.gate_clip),
        None if variant.cell_clip is None else _values.positive("variant.cell_clip", variant.cell_clip),
        _values.flag("variant.layer_norm", variant.layer_norm),
        _values.probability("variant.zoneout_h", variant.zoneout_h),
        _values.probability("variant.zoneout_c", variant.zoneout_c),
        _values.probability("variant.recurrent_dropout", variant.recurrent_dropout),
    )
    return VariantCell(checked) if checked.changed() else STANDARD


def _activations(given: Any, directions: int) -> tuple[Activation, ...]:
    """Check the activations: three for all directions, or three for each direction."""
    counts = (3, 6) if directions == 2 else (3,)
    if not isinstance(given, tuple | list) or len(given) not in counts:
        msg = f"variant.activations={given!r} must have {' or '.join(map(str, counts))} activations: F, G, H"
        raise ArgumentError(msg)
    functions = tuple(_activation(f"variant.activations[{k}]", one) for k, one in enumerate(given))
    return functions[:3] if functions[3:] == functions[:3] else functions


def _activation(name: str, given: Any) -> Activation:
    """Check a name, or a name with its constants."""
    if not isinstance(given, str) and not (isinstance(given, tuple | list) and len(given) > 0):
        msg = f"{name}={given!r} must be a name, or (name, alpha) or (name, alpha, beta)"
        raise DTypeError(msg)
    word, *constants = (given,) if isinstance(given, str) else given
    function = FUNCTIONS[_values.one_of(name, word, FUNCTIONS)]
    if len(constants) > 2:
        msg = f"{name}={given!r} must be a name and at most 2 constants, alpha and beta"
        raise ArgumentError(msg)
    defaults = {"alpha": function.alpha, "beta": function.beta}
    checked: list[float | None] = []
    for (letter, default), constant in zip(defaults.items(), constants, strict=False):
        if constant is not None and default is None:
            msg = f"{name}={given!r} has {letter}={constant!r}, but {word} has no constant {letter}"
            raise ArgumentError(msg)
        checked.append(None if constant is None else _values.finite(f"{letter} of {name}", constant))
    return Activation(word, *checked)


def normalise(xp: Namespace, a: Array) -> tuple[Array, Array]:
    """Scale each row to mean 0 and variance 1; return the result and the divisors."""
    centred = a - xp.mean(a, axis=-1, keepdims=True)
    deviation = xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)
    return centred / deviation, deviation


def _normalise_and_scale(xp: Namespace, a: Array, gain: Array | None) -> Array:
    """Normalise `a` and multiply it by the gain; if there is no gain, return `a` unchanged."""
    return a if gain is None else normalise(xp, a)[0] * gain


def _normalise_backward(xp: Namespace, da: Array, a: Array, gain: Array | None) -> Array:
    """Return the gradient with respect to the input of `_normalise_and_scale`."""
    if gain is None:
        return da
    unit, deviation = normalise(xp, a)
    da = da * gain
    along = xp.mean(da * unit, axis=-1, keepdims=True)
    return (da - xp.mean(da, axis=-1, keepdims=True) - unit * along) / deviation


def _peepholes(xp: Namespace, p: LSTMParams) -> Sequence[Array | None]:
    """Return the weights from c to the gates i, f and o."""
    return (None, None, None) if p.weight_ch is None else blocks(xp, p.weight_ch, 3)


def _add_peephole(z: Array, w: Array | None, c: Array) -> Array:
    """Return ``z + w * c``, or z without peepholes; zero weights would turn an infinite c into NaN."""
    return z if w is None else z + w * c


def _apply_zoneout(xp: Namespace, hold: Array | float, old: Array, new: Array) -> Array:
    """Return the old values where a mask is True, or a weighted mean of old and new values."""
    if isinstance(hold, float):
        return new if hold == 0 else hold * old + (1 - hold) * new
    return xp.where(hold, old, new)


def _zoneout_backward(xp: Namespace, hold: Array | float, d: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to the new and the old values."""
    nothing = xp.zeros_like(d)
    if isinstance(hold, float):
        return (d, nothing) if hold == 0 else ((1 - hold) * d, hold * d)
    return xp.where(hold, nothing, d), xp.where(hold, d, nothing)
