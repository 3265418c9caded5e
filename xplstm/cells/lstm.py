"""Define the equations of the LSTM, forward and backward.

The LSTM is that of Hochreiter and Schmidhuber (1997) with the forget gate of
Gers, Schmidhuber and Cummins (2000) and the projection of Sak, Senior and
Beaufays (2014). The gates i, f, g, o are blocks of H columns of z in this
order. One step is::

    z = W_ih x + b_ih + W_hh h + b_hh
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g)
    c' = f * c + i * g
    h' = o * tanh(c')              with a projection  h' = W_hr (o * tanh(c'))

Axis 0 is the batch, so every product is transposed in the code. The kernels in
``kernels/`` implement these equations; this module defines them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from xplstm import init
from xplstm._typing import Array, Namespace
from xplstm.cells import Cell, Direction, Equations, Pointwise
from xplstm.cells.activations import blocks, sigmoid
from xplstm.cells.params import LSTMParams

STANDARD_STEP = Pointwise(
    False, (("sigmoid", 0.0, 0.0), ("tanh", 0.0, 0.0), ("tanh", 0.0, 0.0)), float("inf"), float("inf")
)


class Gates(NamedTuple):
    """The activated gates of one step, each of shape (B, H)."""

    i: Array
    f: Array
    g: Array
    o: Array


class Step(NamedTuple):
    """The residuals of one step."""

    gates: Gates
    h_prev: Array
    c_prev: Array
    c: Array


class StepGradients(NamedTuple):
    """The contribution of one step to the gradients of the parameters, for each batch entry.

    The kernel joins the contributions of all steps and computes one product. `m` is the
    result of `gate_output`, and `dh` is the gradient with respect to its projection. Both
    are None without a projection.
    """

    dz: Array
    h_prev: Array
    m: Array | None
    dh: Array | None


def activate(xp: Namespace, z: Array) -> Gates:
    """Apply the function of each gate to its block of z; one sigmoid of the whole z needs fewer calls."""
    H = z.shape[-1] // 4
    i, f, _, o = blocks(xp, sigmoid(xp, z), 4)
    return Gates(i, f, xp.tanh(z[..., 2 * H : 3 * H]), o)


def gate_output(xp: Namespace, o: Array, c: Array) -> Array:
    """Return ``o * tanh(c')``, which is h' or the input of the projection."""
    return o * xp.tanh(c)


def project_output(m: Array, p: LSTMParams) -> Array:
    """Return ``W_hr m``, or m without a projection."""
    return m if p.weight_hr is None else m @ p.weight_hr.T


@dataclass(frozen=True, slots=True)
class LSTMCell(Cell):
    """The standard LSTM, with the equations of this module's docstring."""

    name = "LSTM"
    gates = 4
    Params = LSTMParams
    init = staticmethod(init.lstm_uniform)

    @property
    def reason(self) -> str:
        """The empty string, because every LSTM kernel supports this cell."""
        return ""

    def pointwise(self, problem: Direction) -> Pointwise:  # noqa: ARG002 - the signature of every cell
        """Return the options of the standard step."""
        return STANDARD_STEP

    def project_input(self, x: Array, p: LSTMParams) -> Array:
        """Return ``W_ih x + b_ih + b_hh``, the part of z that does not depend on h."""
        zx = x @ p.weight_ih.T
        return zx if p.bias_ih is None else zx + (p.bias_ih + p.bias_hh)

    def forward(
        self, xp: Namespace, zx: Array, h: Array, c: Array, p: LSTMParams
    ) -> tuple[Array, Array, Step]:
        """Run one step from ``zx`` (B, 4H) of `project_input`, ``h`` and ``c``; return ``h'`` and ``c'``."""
        gates = activate(xp, zx + h @ p.weight_hh.T)
        i, f, g, o = gates
        c_new = f * c + i * g
        return project_output(gate_output(xp, o, c_new), p), c_new, Step(gates, h, c, c_new)

    def backward(
        self, xp: Namespace, dh: Array, dc: Array, step: Step, p: LSTMParams
    ) -> tuple[StepGradients, Array, Array]:
        """Return the gradients with respect to h and c, given those with respect to ``h'`` and ``c'``."""
        (i, f, g, o), h_prev, c_prev, c = step
        tanh_c = xp.tanh(c)
        dm = dh if p.weight_hr is None else dh @ p.weight_hr
        dc = dc + dm * o * (1 - tanh_c * tanh_c)
        dz_i = dc * g * (i * (1 - i))
        dz_f = dc * c_prev * (f * (1 - f))
        dz_g = dc * i * (1 - g * g)
        dz_o = dm * tanh_c * (o * (1 - o))
        dz = xp.concat([dz_i, dz_f, dz_g, dz_o], axis=-1)
        projected = (None, None) if p.weight_hr is None else (o * tanh_c, dh)
        return StepGradients(dz, h_prev, *projected), dz @ p.weight_hh, dc * f

    def gradients(
        self, xp: Namespace, x: Array, steps: StepGradients, p: LSTMParams
    ) -> tuple[Array, LSTMParams]:
        """Return the gradients with respect to x and the parameters, summed over all steps."""
        dz, h_prev, m, dh = steps
        db = None if p.bias_ih is None else xp.sum(dz, axis=0)
        twin = None if db is None else xp.astype(db, db.dtype, copy=True)
        dweight_hr = None if m is None or dh is None else dh.T @ m
        return dz @ p.weight_ih, LSTMParams(dz.T @ x, dz.T @ h_prev, db, twin, dweight_hr)

    def trace(self, xp: Namespace, step: Step, p: LSTMParams) -> tuple[Array, ...]:
        """Return the arrays i, f, g, o, c and h of one step."""
        return (*step.gates, step.c, project_output(gate_output(xp, step.gates.o, step.c), p))

    def at(self, problem: Direction) -> Callable[[int], Equations]:  # noqa: ARG002
        """Return a function that gives this cell at every time."""
        return lambda _: self

    def cell_size(self, hidden_size: int) -> int:
        """Return the number of features of c."""
        return hidden_size

    def trace_sizes(self, hidden_size: int, output_size: int) -> tuple[int, ...]:
        """Return the number of features of i, f, g, o, c and h."""
        return (*[hidden_size] * 5, output_size)


STANDARD = LSTMCell()
