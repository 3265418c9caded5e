"""Define the equations of the GRU, forward and backward.

The GRU is that of Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder". The gates
r, z, n are blocks of H columns in this order. The sign of z is that of PyTorch, Keras and ONNX::

    r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))        reset_after=True: r scales the product
    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)        reset_after=False: r scales h before the product
    h' = (1 - z) * n + z * h
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xplstm import init
from xplstm._typing import Array, Namespace
from xplstm.cells import Cell, Direction, FourBlocks, Pointwise
from xplstm.cells.activations import blocks, sigmoid
from xplstm.cells.params import LSTMParams


class GRUParams(NamedTuple):
    """Parameters of one layer and direction, with the gates in the order r, z, n.

    Attributes
    ----------
    weight_ih : array, shape (3H, I)
    weight_hh : array, shape (3H, H)
    bias_ih, bias_hh : array, shape (3H,), or None
    """

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None = None
    bias_hh: Array | None = None


class Step(NamedTuple):
    """The residuals of one step."""

    r: Array
    z: Array
    n: Array
    product: Array
    """``W_hn h + b_hn`` with reset_after, else ``r * h``."""
    h_prev: Array


class StepGradients(NamedTuple):
    """The contribution of one step to the gradients of the parameters, for each batch entry.

    `dzx` and `dzh` are the gradients with respect to ``W_ih x + b_ih`` and ``W_hh h + b_hh``. `h_n` is the
    factor of the last block of W_hh.
    """

    dzx: Array
    dzh: Array
    h_prev: Array
    h_n: Array


GATED_STEP = Pointwise(
    False,
    (("sigmoid", 0.0, 0.0), ("tanh", 0.0, 0.0), ("identity", 0.0, 0.0)),
    math.inf,
    math.inf,
    kind="gru",
)
RESET_STEP = GATED_STEP._replace(kind="reset")


def _n_first(a: Any) -> Any:
    """Return the blocks r, z, n in the order n, r, z."""
    H = a.shape[0] // 3
    return np.concatenate([a[2 * H :], a[: 2 * H]])


def _n_last(a: Any) -> Any:
    """Return the blocks n, r, z in the order r, z, n."""
    H = a.shape[0] // 3
    return np.concatenate([a[H:], a[:H]])


@dataclass(frozen=True, slots=True)
class GRUCell(Cell):
    """The gated recurrent unit, with the equations of this module's docstring."""

    reset_after: bool = True

    name = "GRU"
    gates = 3
    Params = GRUParams
    init = staticmethod(init.gru_uniform)
    defaults = {"reset_after": True}  # noqa: RUF012
    reason = "supports only the standard LSTM, not the cell of GRU"

    def pointwise(self, problem: Direction) -> Pointwise:  # noqa: ARG002 - the signature of every cell
        """Return the options of the GRU step."""
        return GATED_STEP if self.reset_after else RESET_STEP

    def in_four_blocks(self, p: GRUParams) -> FourBlocks:
        """Return the blocks n for x, r, z, n for h; without reset_after, W_hn becomes the projection."""
        ih, hh, *biases = p
        four = LSTMParams(_n_first(ih), hh, *self._biases(*biases))
        if self.reset_after:
            return FourBlocks(four)
        H = hh.shape[1]
        return FourBlocks(four._replace(weight_hh=hh[: 2 * H, :], weight_hr=hh[2 * H :, :]))

    def _biases(self, ih: Any, hh: Any) -> tuple[Any, Any]:
        """Return the biases in four blocks; without reset_after, that of W_hn is added to n for x."""
        if ih is None:
            return None, None
        zeros = np.zeros(ih.shape[0] // 3, ih.dtype)
        order = (zeros, hh) if self.reset_after else (_n_first(hh), zeros)
        return np.concatenate([_n_first(ih), zeros]), np.concatenate(order)

    def from_four_blocks(self, gradients: FourBlocks) -> GRUParams:
        """Select the rows of the parameters."""
        ih, hh, bias_ih, bias_hh, hr = gradients.lstm[:5]
        recurrent: Any = hh if hr is None else np.concatenate([hh, hr])
        if bias_ih is None or bias_hh is None:
            return GRUParams(_n_last(ih), recurrent)
        H = hh.shape[1]
        after = bias_hh[H:] if self.reset_after else _n_last(bias_hh[: 3 * H])
        return GRUParams(_n_last(ih), recurrent, _n_last(bias_ih[: 3 * H]), after)

    def project_input(self, x: Array, p: GRUParams) -> Array:
        """Return ``W_ih x + b_ih``."""
        zx = x @ p.weight_ih.T
        return zx if p.bias_ih is None else zx + p.bias_ih

    def forward(
        self, xp: Namespace, zx: Array, h: Array, c: Array, p: GRUParams
    ) -> tuple[Array, Array, Step]:
        """Run one step from ``zx`` (B, 3H) of `project_input` and ``h``; `c` has no columns."""
        H = h.shape[-1]
        both = h @ p.weight_hh[: 2 * H, :].T
        both = both if p.bias_hh is None else both + p.bias_hh[: 2 * H]
        gates = sigmoid(xp, zx[..., : 2 * H] + both)
        r, z = blocks(xp, gates, 2)
        scaled = h if self.reset_after else r * h
        last = scaled @ p.weight_hh[2 * H :, :].T
        last = last if p.bias_hh is None else last + p.bias_hh[2 * H :]
        n = xp.tanh(zx[..., 2 * H :] + (r * last if self.reset_after else last))
        product = last if self.reset_after else scaled
        return (1 - z) * n + z * h, c, Step(r, z, n, product, h)

    def backward(
        self, xp: Namespace, dh: Array, dc: Array, step: Step, p: GRUParams
    ) -> tuple[StepGradients, Array, Array]:
        """Return the gradient with respect to h from the gradient with respect to ``h'``."""
        r, z, n, product, h = step
        H = h.shape[-1]
        W_n = p.weight_hh[2 * H :, :]
        dz_z = dh * (h - n) * (z * (1 - z))
        dz_n = dh * (1 - z) * (1 - n * n)
        dlast = dz_n * r if self.reset_after else dz_n
        dscaled = dlast @ W_n
        dr = dz_n * product if self.reset_after else dscaled * h
        dz_r = dr * (r * (1 - r))
        both = xp.concat([dz_r, dz_z], axis=-1)
        dh_prev = dh * z + both @ p.weight_hh[: 2 * H, :] + (dscaled if self.reset_after else dscaled * r)
        steps = StepGradients(
            xp.concat([both, dz_n], axis=-1),
            xp.concat([both, dlast], axis=-1),
            h,
            h if self.reset_after else product,
        )
        return steps, dh_prev, dc

    def gradients(
        self, xp: Namespace, x: Array, steps: StepGradients, p: GRUParams
    ) -> tuple[Array, GRUParams]:
        """Return the gradients with respect to x and the parameters, summed over all steps."""
        dzx, dzh, h_prev, h_n = steps
        H = h_prev.shape[-1]
        dweight_hh = xp.concat([dzh[..., : 2 * H].T @ h_prev, dzh[..., 2 * H :].T @ h_n], axis=0)
        dbias_ih = None if p.bias_ih is None else xp.sum(dzx, axis=0)
        dbias_hh = None if p.bias_hh is None else xp.sum(dzh, axis=0)
        return dzx @ p.weight_ih, GRUParams(dzx.T @ x, dweight_hh, dbias_ih, dbias_hh)

    def trace(self, _xp: Namespace, step: Step, _p: GRUParams) -> tuple[Array, ...]:
        """Return the arrays r, z, n and h of one step."""
        r, z, n, _, h = step
        return r, z, n, (1 - z) * n + z * h

    def at(self, problem: Direction) -> Callable[[int], GRUCell]:  # noqa: ARG002 - the signature of every cell
        """Return a function that gives this cell at every time."""
        return lambda _: self

    def trace_sizes(self, hidden_size: int, output_size: int) -> tuple[int, ...]:  # noqa: ARG002
        """Return the number of features of r, z, n and h."""
        return (hidden_size,) * 4

    def options(self) -> dict[str, Any]:
        """Return the option that places the reset gate."""
        return {"reset_after": self.reset_after}
