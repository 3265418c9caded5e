"""The equations of simple recurrent networks: one nonlinearity a step, and no cell state.

Elman (1990)::

    h' = act(W_ih x + b_ih + W_hh h + b_hh)

Jordan (1986): an output recurs in the place of the hidden units, so that h is
the output before::

    h' = W_hr act(W_ih x + b_ih + W_hh h + b_hh) + b_hr

c has no columns: it comes and goes empty, and the reference kernel walks over
time as it does for an LSTM.
"""

from __future__ import annotations

from typing import NamedTuple

from xplstm import _activations, _cell
from xplstm._params import Activation, Problem, RNNParams, Simple
from xplstm._typing import Array, Namespace


class Step(NamedTuple):
    """What the backward pass needs of one step."""

    z: Array
    a: Array
    h_prev: Array


class Rows(NamedTuple):
    """What one step gives to the parameters' gradients; `a` and `dh` with an output alone."""

    dz: Array
    h_prev: Array
    a: Array | None
    dh: Array | None


class SimpleCell:
    """An Elman or Jordan network in the place of the LSTM's equations."""

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.variant, Simple)
        nonlinearity, _, alpha, beta, self.clip = problem.variant
        self.activation = Activation(nonlinearity, alpha, beta)

    project_input = staticmethod(_cell.project_input)

    def forward(
        self, xp: Namespace, zx: Array, h: Array, c: Array, p: RNNParams
    ) -> tuple[Array, Array, Step]:
        """One step; `c` is empty and passes through."""
        z = zx + h @ p.weight_hh.T
        a = _activations.value(xp, self.activation, _activations.clipped(xp, z, self.clip))
        return self.output(a, p), c, Step(z, a, h)

    def output(self, a: Array, p: RNNParams) -> Array:
        """The hidden units themselves, or the output that recurs."""
        if p.weight_hr is None:
            return a
        y = a @ p.weight_hr.T
        return y if p.bias_hr is None else y + p.bias_hr

    def backward(
        self, xp: Namespace, dh: Array, dc: Array, step: Step, p: RNNParams
    ) -> tuple[Rows, Array, Array]:
        """One step back."""
        z, a, h_prev = step
        da = dh if p.weight_hr is None else dh @ p.weight_hr
        seen = _activations.clipped(xp, z, self.clip)
        dz = _activations.clipped_back(
            xp, da * _activations.slope(xp, self.activation, seen, a), z, self.clip
        )
        rows = Rows(dz, h_prev, None, None) if p.weight_hr is None else Rows(dz, h_prev, a, dh)
        return rows, dz @ p.weight_hh, dc

    def gradients(self, xp: Namespace, x: Array, rows: Rows, p: RNNParams) -> tuple[Array, RNNParams]:
        """Sum over all steps at once: gradients by the rows of x, and by the parameters."""
        dz, h_prev, a, dh = rows
        db = None if p.bias_ih is None else xp.sum(dz, axis=0)
        twin = None if db is None else xp.asarray(db, copy=True)
        dweight_hr = None if a is None or dh is None else dh.T @ a
        db_hr = None if p.bias_hr is None or dh is None else xp.sum(dh, axis=0)
        return dz @ p.weight_ih, RNNParams(dz.T @ x, dz.T @ h_prev, db, twin, dweight_hr, db_hr)

    def trace(self, _xp: Namespace, step: Step, _p: RNNParams) -> tuple[Array, ...]:
        """The hidden units of one step."""
        return (step.a,)
