"""The equations of an LSTM, forward and backward, each once.

Hochreiter and Schmidhuber (1997) with the forget gate of Gers, Schmidhuber and
Cummins (2000); projection after Sak, Senior and Beaufays (2014). One step, the
gates in the order i, f, g, o, each a block of H columns of z::

    z = W_ih x + b_ih + W_hh h + b_hh
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g)
    c' = f * c + i * g
    h' = o * tanh(c')              with a projection  h' = W_hr (o * tanh(c'))

Rows are members of the batch, so that every product stands transposed. The
kernels in ``kernels/`` restate this arithmetic for their engine; they derive,
never define.
"""

from __future__ import annotations

from typing import NamedTuple

from xplstm._params import LSTMParams, Params
from xplstm._typing import Array, Namespace


class Gates(NamedTuple):
    """The activated gates of one step, each of shape (B, H)."""

    i: Array
    f: Array
    g: Array
    o: Array


class Step(NamedTuple):
    """What the backward pass needs of one step."""

    gates: Gates
    h_prev: Array
    c_prev: Array
    c: Array


class Rows(NamedTuple):
    """What one step gives to the parameters' gradients, a row for each member of the batch.

    Rows of all steps are joined, and multiplied once. `m` is `unprojected` and
    `dh` the gradient by its projection; both are there only with one.
    """

    dz: Array
    h_prev: Array
    m: Array | None
    dh: Array | None


def sigmoid(xp: Namespace, z: Array) -> Array:
    """``1 / (1 + exp(-z))`` whose exponent is never positive, so that nothing overflows."""
    positive = z >= 0
    e = xp.exp(xp.where(positive, -z, z))
    return xp.where(positive, 1 / (1 + e), e / (1 + e))


def project_input(x: Array, p: Params) -> Array:
    """``W_ih x + b_ih + b_hh``: the part of z that does not wait for h."""
    zx = x @ p.weight_ih.T
    return zx if p.bias_ih is None else zx + (p.bias_ih + p.bias_hh)


def activate(xp: Namespace, z: Array) -> Gates:
    """Split z into its four blocks and apply each gate's function."""
    H = z.shape[-1] // 4
    z_i, z_f, z_g, z_o = (z[..., k * H : (k + 1) * H] for k in range(4))
    return Gates(sigmoid(xp, z_i), sigmoid(xp, z_f), xp.tanh(z_g), sigmoid(xp, z_o))


def unprojected(xp: Namespace, o: Array, c: Array) -> Array:
    """``o * tanh(c')``: h' itself, or what a projection is applied to."""
    return o * xp.tanh(c)


def project_output(m: Array, p: LSTMParams) -> Array:
    """``W_hr m``, or m itself where there is no projection."""
    return m if p.weight_hr is None else m @ p.weight_hr.T


def forward(xp: Namespace, zx: Array, h: Array, c: Array, p: LSTMParams) -> tuple[Array, Array, Step]:
    """One step: ``zx`` (B, 4H) from `project_input`, ``h``, ``c`` -> ``h'``, ``c'``."""
    gates = activate(xp, zx + h @ p.weight_hh.T)
    i, f, g, o = gates
    c_new = f * c + i * g
    return project_output(unprojected(xp, o, c_new), p), c_new, Step(gates, h, c, c_new)


def backward(xp: Namespace, dh: Array, dc: Array, step: Step, p: LSTMParams) -> tuple[Rows, Array, Array]:
    """One step back: gradients by ``h'`` and ``c'`` -> rows, gradients by h and c."""
    (i, f, g, o), h_prev, c_prev, c = step
    tanh_c = xp.tanh(c)
    dm = dh if p.weight_hr is None else dh @ p.weight_hr
    dc = dc + dm * o * (1 - tanh_c * tanh_c)
    dz_i = dc * g * (i * (1 - i))
    dz_f = dc * c_prev * (f * (1 - f))
    dz_g = dc * i * (1 - g * g)
    dz_o = dm * tanh_c * (o * (1 - o))
    dz = xp.concat([dz_i, dz_f, dz_g, dz_o], axis=-1)
    rows = Rows(dz, h_prev, None, None) if p.weight_hr is None else Rows(dz, h_prev, o * tanh_c, dh)
    return rows, dz @ p.weight_hh, dc * f


def gradients(xp: Namespace, x: Array, rows: Rows, p: LSTMParams) -> tuple[Array, LSTMParams]:
    """Sum over all steps at once: gradients by the rows of x, and by the parameters."""
    dz, h_prev, m, dh = rows
    db = None if p.bias_ih is None else xp.sum(dz, axis=0)
    twin = None if db is None else xp.asarray(db, copy=True)
    dweight_hr = None if m is None or dh is None else dh.T @ m
    return dz @ p.weight_ih, LSTMParams(dz.T @ x, dz.T @ h_prev, db, twin, dweight_hr)


def trace(xp: Namespace, step: Step, p: LSTMParams) -> tuple[Array, ...]:
    """The gates i, f, g, o, and c and h, of one step."""
    return (*step.gates, step.c, project_output(unprojected(xp, step.gates.o, step.c), p))
