"""Define the equations of the Elman and Jordan RNNs, forward and backward.

The Elman RNN (1990) feeds its hidden units back::

    h' = act(W_ih x + b_ih + W_hh h + b_hh)

The Jordan RNN (1986) feeds its output back, so h is the previous output::

    h' = W_hr act(W_ih x + b_ih + W_hh h + b_hh) + b_hr

Neither RNN has a c. An array c without columns replaces it, so that kernels need no special case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xplstm import init
from xplstm._typing import Array, Namespace
from xplstm.cells import Cell, Direction, FourBlocks, Pointwise, Sizes
from xplstm.cells.activations import clip, clip_back, constants, slope, value
from xplstm.cells.lstm import LSTMCell
from xplstm.cells.params import Activation, LSTMParams


class RNNParams(NamedTuple):
    """Parameters of one layer and direction of an RNN.

    Attributes
    ----------
    weight_ih : array, shape (H, I)
    weight_hh : array, shape (H, H), or (H, O) with an output
    bias_ih, bias_hh : array, shape (H,), or None
    weight_hr, bias_hr : array, shapes (O, H) and (O,), or None
        Weight and bias from the hidden units to the output that is fed back.
    """

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None = None
    bias_hh: Array | None = None
    weight_hr: Array | None = None
    bias_hr: Array | None = None


class Step(NamedTuple):
    """The residuals of one step."""

    z: Array
    a: Array
    h_prev: Array


class StepGradients(NamedTuple):
    """The contribution of one step to the gradients of the parameters; `a` and `dh` only with an output."""

    dz: Array
    h_prev: Array
    a: Array | None
    dh: Array | None


def _pad_rows(a: Any) -> Any:
    """Return `a` with rows of zeros added up to a multiple of 4 rows."""
    missing = -a.shape[0] % 4
    return np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)]) if missing else a


@dataclass(frozen=True, slots=True)
class ElmanCell(Cell):
    """An RNN that feeds its hidden units back."""

    activation: Activation
    clip: float | None = None
    """Bound of the nonlinearity's input."""

    name = "RNN"
    gates = 1
    Params = RNNParams
    init = staticmethod(init.rnn_uniform)
    defaults = {"nonlinearity": "tanh"}  # noqa: RUF012

    @property
    def reason(self) -> str:
        """Why a kernel for the standard LSTM cannot run this cell."""
        return f"supports only the standard LSTM, not the cell of {self.name}"

    def pointwise(self, problem: Direction) -> Pointwise:  # noqa: ARG002 - the signature of every cell
        """Return the step of four gates, which are the quarters of the units, all with the nonlinearity."""
        function = (self.activation.name, *constants(self.activation))
        clip = math.inf if self.clip is None else self.clip
        return Pointwise(False, (function,) * 3, clip, math.inf, kind="elman")

    def in_four_blocks(self, p: RNNParams) -> FourBlocks:
        """Return the same rows as four blocks, padded with rows of zeros."""
        rows: dict[str, Any] = {
            name: None if a is None else _pad_rows(a) for name, a in zip(p._fields[:4], p, strict=False)
        }
        return FourBlocks(LSTMParams(**rows, weight_hr=p.weight_hr), p.bias_hr)

    def from_four_blocks(self, gradients: FourBlocks) -> RNNParams:
        """Return the rows without the padding."""
        of_gates = gradients.lstm
        hr = of_gates.weight_hr
        H = (of_gates.weight_hh if hr is None else hr).shape[1]
        rows: dict[str, Any] = {
            name: None if (a := getattr(of_gates, name)) is None else a[:H] for name in RNNParams._fields[:4]
        }
        return RNNParams(**rows, weight_hr=hr, bias_hr=gradients.bias_hr)

    project_input = LSTMCell.project_input

    def forward(
        self, xp: Namespace, zx: Array, h: Array, c: Array, p: RNNParams
    ) -> tuple[Array, Array, Step]:
        """Run one step; `c` has no columns and is returned unchanged."""
        z = zx + h @ p.weight_hh.T
        a = value(xp, self.activation, clip(xp, z, self.clip))
        return project_output(a, p), c, Step(z, a, h)

    def backward(
        self, xp: Namespace, dh: Array, dc: Array, step: Step, p: RNNParams
    ) -> tuple[StepGradients, Array, Array]:
        """Return the gradient with respect to h from the gradient with respect to ``h'``."""
        z, a, h_prev = step
        da = dh if p.weight_hr is None else dh @ p.weight_hr
        seen = clip(xp, z, self.clip)
        dz = clip_back(xp, da * slope(xp, self.activation, seen, a), z, self.clip)
        kept = (None, None) if p.weight_hr is None else (a, dh)
        return StepGradients(dz, h_prev, *kept), dz @ p.weight_hh, dc

    def gradients(
        self, xp: Namespace, x: Array, steps: StepGradients, p: RNNParams
    ) -> tuple[Array, RNNParams]:
        """Return the gradients with respect to x and the parameters, summed over all steps."""
        dz, h_prev, a, dh = steps
        db = None if p.bias_ih is None else xp.sum(dz, axis=0)
        twin = None if db is None else xp.astype(db, db.dtype, copy=True)
        dweight_hr = None if a is None or dh is None else dh.T @ a
        db_hr = None if p.bias_hr is None or dh is None else xp.sum(dh, axis=0)
        return dz @ p.weight_ih, RNNParams(dz.T @ x, dz.T @ h_prev, db, twin, dweight_hr, db_hr)

    def trace(self, _xp: Namespace, step: Step, _p: RNNParams) -> tuple[Array, ...]:
        """Return the hidden units of one step."""
        return (step.a,)

    def at(self, problem: Direction) -> Callable[[int], ElmanCell]:  # noqa: ARG002 - the signature of every cell
        """Return a function that gives this cell at every time."""
        return lambda _: self

    def trace_sizes(self, hidden_size: int, output_size: int) -> tuple[int, ...]:  # noqa: ARG002
        """Return the number of hidden units."""
        return (hidden_size,)

    def options(self) -> dict[str, Any]:
        """Return the nonlinearity."""
        return {"nonlinearity": self.activation.name}


@dataclass(frozen=True, slots=True)
class JordanCell(ElmanCell):
    """An RNN that feeds its output back."""

    name = "JordanRNN"
    output_required = True

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Return the parameter shapes of `ElmanCell` with a projection, and of the output's bias."""
        return Cell.shapes(self, sizes) | ({"bias_hr": (sizes.projection,)} if sizes.bias else {})


def project_output(a: Array, p: RNNParams) -> Array:
    """Return the output that is fed back, or the hidden units without an output."""
    if p.weight_hr is None:
        return a
    y = a @ p.weight_hr.T
    return y if p.bias_hr is None else y + p.bias_hr
