"""The equations of an LSTM's variants, forward and backward, all in one step.

Each option is off by itself; what is off leaves its line of `_cell` as it is.
One step, in this order (the sources stand in `Variant`)::

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

from collections.abc import Callable
from typing import NamedTuple

from xplstm import _array
from xplstm._activations import clipped, clipped_back, slope, value
from xplstm._cell import Gates, project_output
from xplstm._dropout import Purpose, hold_mask, scaled_mask
from xplstm._params import Activation, LSTMParams, Problem, Variant
from xplstm._typing import Array, Namespace

EPSILON = 1e-5


class Step(NamedTuple):
    """What the backward pass needs of one step."""

    z: Gates
    """Before gate_clip."""
    gates: Gates
    h_seen: Array
    """h as it met W_hh: after recurrent dropout."""
    product: Array
    """``W_hh h~`` before its normalisation."""
    c_prev: Array
    unclipped: Array
    """c^ before cell_clip."""
    exposed: Array
    """c^ as it meets H: after its normalisation."""
    h: Array
    """h' and c', after zoneout."""
    c: Array


class Rows(NamedTuple):
    """What one step gives to the parameters' gradients, a row for each member of the batch.

    Rows of all steps are joined, then multiplied or summed once.
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


def cells(problem: Problem) -> Callable[[int], VariantCell]:
    """The equations at each time of the only direction of `problem`, with the random masks of that time."""
    variant = problem.variant
    assert isinstance(variant, Variant)
    dropped = _recurrent_mask(problem, variant.recurrent_dropout)

    def cell(t: int) -> VariantCell:
        hold_h = _hold(problem, variant.zoneout_h, Purpose.ZONEOUT_H, problem.output_size, t)
        hold_c = _hold(problem, variant.zoneout_c, Purpose.ZONEOUT_C, problem.H, t)
        return VariantCell(variant, hold_h, hold_c, dropped)

    return cell


def _recurrent_mask(problem: Problem, p: float) -> Array | None:
    """What scales h on its way to the gates at every step of a call with noise."""
    if p == 0 or problem.noise is None:
        return None
    xp, shape, (key, stream, _) = problem.xp, (problem.B, problem.output_size), problem.noise
    wide = _array.dtype_name(_array.wide_dtype(xp, _array.dtype_named(xp, problem.dtype)))
    return scaled_mask(xp, shape, p, key, stream, wide, problem.device, Purpose.RECURRENT)


def _hold(problem: Problem, p: float, purpose: Purpose, size: int, t: int) -> Array | float:
    """Where zoneout keeps the old value at time `t` of `problem`, or, without noise, how much of it."""
    if p == 0 or problem.noise is None:
        return p
    key, stream, start = problem.noise
    shape = (problem.B, size)
    return hold_mask(problem.xp, shape, p, key, purpose, stream, start + t, problem.device)


class VariantCell(NamedTuple):
    """The equations of one step, with the random masks of its time."""

    variant: Variant
    hold_h: Array | float
    hold_c: Array | float
    dropped: Array | None

    def project_input(self, x: Array, p: LSTMParams) -> Array:
        """``W_ih x``, normalised if asked, and both biases."""
        zx = x @ p.weight_ih.T
        if p.gain_ih is not None:
            zx = normalised(_array.namespace(x, "x"), zx)[0] * p.gain_ih
        return zx if p.bias_ih is None else zx + (p.bias_ih + p.bias_hh)

    def forward(
        self, xp: Namespace, zx: Array, h: Array, c: Array, p: LSTMParams
    ) -> tuple[Array, Array, Step]:
        """One step: ``zx`` (B, 4H) from `project_input`, ``h``, ``c`` -> ``h'``, ``c'``."""
        F, G, H = self.variant.activations
        bound = self.variant.gate_clip
        w_i, w_f, w_o = _peepholes(p)
        h_seen = h if self.dropped is None else h * self.dropped
        product = h_seen @ p.weight_hh.T
        z_i, z_f, z_g, z_o = _blocks(zx + _gained(xp, product, p.gain_hh), 4)
        z_i, z_f = _peeped(z_i, w_i, c), _peeped(z_f, w_f, c)
        i = value(xp, F, clipped(xp, z_i, bound))
        f = 1 - i if self.variant.coupled else value(xp, F, clipped(xp, z_f, bound))
        g = value(xp, G, clipped(xp, z_g, bound))
        unclipped = f * c + i * g
        c_new = clipped(xp, unclipped, self.variant.cell_clip)
        z_o = _peeped(z_o, w_o, c_new)
        o = value(xp, F, clipped(xp, z_o, bound))
        exposed = _gained(xp, c_new, p.gain_c)
        exposed = exposed if p.bias_c is None else exposed + p.bias_c
        h_new = _held(xp, self.hold_h, h, project_output(o * value(xp, H, exposed), p))
        c_next = _held(xp, self.hold_c, c, c_new)
        z, gates = Gates(z_i, z_f, z_g, z_o), Gates(i, f, g, o)
        return h_new, c_next, Step(z, gates, h_seen, product, c, unclipped, exposed, h_new, c_next)

    def backward(
        self, xp: Namespace, dh: Array, dc: Array, step: Step, p: LSTMParams
    ) -> tuple[Rows, Array, Array]:
        """One step back: gradients by ``h'`` and ``c'`` -> rows, gradients by h and c."""
        (i, f, g, o), z, c_prev = step.gates, step.z, step.c_prev
        F, G, H = self.variant.activations
        w_i, w_f, w_o = _peepholes(p)
        dh_new, dh_old = _held_back(xp, self.hold_h, dh)
        dc_new, dc_old = _held_back(xp, self.hold_c, dc)

        squashed = value(xp, H, step.exposed)
        dm = dh_new if p.weight_hr is None else dh_new @ p.weight_hr
        dexposed = dm * o * slope(xp, H, step.exposed, squashed)
        c_new = clipped(xp, step.unclipped, self.variant.cell_clip)
        dz_o = self._through_gate(xp, dm * squashed, F, z.o, o)
        dc_new = _peeped(dc_new + _gained_back(xp, dexposed, c_new, p.gain_c), w_o, dz_o)
        dc_new = clipped_back(xp, dc_new, step.unclipped, self.variant.cell_clip)

        df = dc_new * c_prev
        di = dc_new * g - df if self.variant.coupled else dc_new * g
        dz_i = self._through_gate(xp, di, F, z.i, i)
        dz_f = xp.zeros_like(df) if self.variant.coupled else self._through_gate(xp, df, F, z.f, f)
        dz_g = self._through_gate(xp, dc_new * i, G, z.g, g)
        dc_prev = _peeped(_peeped(dc_new * f, w_i, dz_i), w_f, dz_f) + dc_old

        dz = xp.concat([dz_i, dz_f, dz_g, dz_o], axis=-1)
        dproduct = _gained_back(xp, dz, step.product, p.gain_hh)
        dh_seen = dproduct @ p.weight_hh
        dh_prev = (dh_seen if self.dropped is None else dh_seen * self.dropped) + dh_old
        normal = p.gain_hh is not None
        rows = Rows(
            dz,
            dproduct,
            step.h_seen,
            None if p.weight_hr is None else o * squashed,
            None if p.weight_hr is None else dh_new,
            None if w_i is None else xp.concat([dz_i * c_prev, dz_f * c_prev, dz_o * c_new], axis=-1),
            dz * normalised(xp, step.product)[0] if normal else None,
            dexposed * normalised(xp, c_new)[0] if normal else None,
            None if p.bias_c is None else dexposed,
        )
        return rows, dh_prev, dc_prev

    def _through_gate(self, xp: Namespace, da: Array, activation: Activation, z: Array, a: Array) -> Array:
        """Gradient by what a gate's function is given, before its clip."""
        bound = self.variant.gate_clip
        return clipped_back(xp, da * slope(xp, activation, clipped(xp, z, bound), a), z, bound)

    def gradients(self, xp: Namespace, x: Array, rows: Rows, p: LSTMParams) -> tuple[Array, LSTMParams]:
        """Sum over all steps at once: gradients by the rows of x, and by the parameters."""
        dz, dproduct, h_seen, m, dh, *summed = rows
        product = x @ p.weight_ih.T
        dgain_ih = None if p.gain_ih is None else xp.sum(dz * normalised(xp, product)[0], axis=0)
        dzx = _gained_back(xp, dz, product, p.gain_ih)
        db = None if p.bias_ih is None else xp.sum(dz, axis=0)
        twin = None if db is None else xp.asarray(db, copy=True)
        dweight_hr = None if m is None or dh is None else dh.T @ m
        dweight_ch, *dgains = (None if a is None else xp.sum(a, axis=0) for a in summed)
        return dzx @ p.weight_ih, LSTMParams(
            dzx.T @ x, dproduct.T @ h_seen, db, twin, dweight_hr, dweight_ch, dgain_ih, *dgains
        )

    def trace(self, _xp: Namespace, step: Step, _p: LSTMParams) -> tuple[Array, ...]:
        """The gates i, f, g, o, and c and h, of one step."""
        return (*step.gates, step.c, step.h)


def normalised(xp: Namespace, a: Array) -> tuple[Array, Array]:
    """Each row with mean 0 and variance 1, and the divisor that made it so."""
    centred = a - xp.mean(a, axis=-1, keepdims=True)
    deviation = xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)
    return centred / deviation, deviation


def _gained(xp: Namespace, a: Array, gain: Array | None) -> Array:
    """`a` normalised and scaled, where there is a gain."""
    return a if gain is None else normalised(xp, a)[0] * gain


def _gained_back(xp: Namespace, da: Array, a: Array, gain: Array | None) -> Array:
    """Gradient by what went into `_gained`."""
    if gain is None:
        return da
    unit, deviation = normalised(xp, a)
    da = da * gain
    along = xp.mean(da * unit, axis=-1, keepdims=True)
    return (da - xp.mean(da, axis=-1, keepdims=True) - unit * along) / deviation


def _blocks(a: Array, count: int) -> tuple[Array, ...]:
    """`a` cut into blocks of columns."""
    H = a.shape[-1] // count
    return tuple(a[..., k * H : (k + 1) * H] for k in range(count))


def _peepholes(p: LSTMParams) -> tuple[Array | None, ...]:
    """Weights from c to the gates i, f and o."""
    return (None, None, None) if p.weight_ch is None else _blocks(p.weight_ch, 3)


def _peeped(z: Array, w: Array | None, c: Array) -> Array:
    """``z + w * c`` where there is a peephole: without one an infinite c must not meet a zero."""
    return z if w is None else z + w * c


def _held(xp: Namespace, hold: Array | float, old: Array, new: Array) -> Array:
    """Old values where a mask holds them, or a mean of both."""
    if isinstance(hold, float):
        return new if hold == 0 else hold * old + (1 - hold) * new
    return xp.where(hold, old, new)


def _held_back(xp: Namespace, hold: Array | float, d: Array) -> tuple[Array, Array]:
    """Gradients by the new and by the old values."""
    nothing = xp.zeros_like(d)
    if isinstance(hold, float):
        return (d, nothing) if hold == 0 else ((1 - hold) * d, hold * d)
    return xp.where(hold, nothing, d), xp.where(hold, d, nothing)
