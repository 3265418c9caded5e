"""Run the standard LSTM on NumPy with reused buffers, a hoisted input projection and in-place operations.

Buffers have the layout (features, batch). Each gate is then a contiguous block
of rows, and OpenBLAS multiplies ``W (4H, H) @ h (H, B)`` faster than the
transposed product. The gates are in the order i, f, o, g. The rows of i, f and o
are halved beforehand: because ``sigmoid(z) = (1 + tanh(z / 2)) / 2``, one call of
tanh computes all four gates.

Ragged batches are packed. Batch entries are sorted by their number of steps, and
step k contains only the entries that have a k-th step, so that padding costs no
time. For a mask, the k-th step of an entry is its k-th valid step. For a reverse
direction, the steps of an entry are in the opposite order. Before a step that
starts from zeros, columns of h and c are set to zero. In the backward pass, the
gradients of these columns are set to zero.

The code implements the equations of `xplstm.cells.lstm`, and the clauses XPL-CELL
and XPL-SEQ of the specification.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm.cells.params import LSTMParams
from xplstm.kernels import _recycled, _support

# The number of packed rows of one input projection. The result must stay in the cache until the loop adds it.
# The products of the backward pass are faster with more rows.
FORWARD_ROWS = 256
BACKWARD_ROWS = 1024

# Padding in elements. If a row had a power of two of bytes, the columns of a step would evict each other from
# the cache (set conflicts).
CACHE_LINE = 16

# Saturated gates underflow to 0. This must not raise an error, even if the user calls `numpy.seterr`.
_UNDERFLOWS = np.errstate(under="ignore")
arrays = "numpy"


class Weights(NamedTuple):
    """One direction's weights, with the gates in the order i, f, o, g and the rows of i, f and o halved.

    The bias is the last column of `ih`, and inputs end with a 1. The product then
    adds the bias, and the last column of the gradient of `ih` is the bias's gradient.
    """

    ih: np.ndarray
    hh: np.ndarray
    hr: np.ndarray | None


class Packing(NamedTuple):
    """The batch entries of each step, in the order of one direction.

    Step k has the packed rows ``starts[k]:starts[k + 1]``. For a ragged batch,
    `order` sorts the batch entries by decreasing number of steps, and `times` and
    `rows` are the positions in (T, B) of each packed row. All three are None if
    every step is valid.
    """

    starts: list[int]
    order: np.ndarray | None
    times: np.ndarray | None
    rows: np.ndarray | None
    reverse: bool
    fresh: dict[int, np.ndarray]
    """By step, the columns that start from zeros."""

    def blocks(self, size: int) -> list[tuple[int, int]]:
        """Return the bounds of blocks of steps with at most `size` packed rows, or with one step."""
        bounds, last = [0], len(self.starts) - 1
        for k in range(1, last):
            if self.starts[k + 1] - self.starts[bounds[-1]] > size:
                bounds.append(k)
        return list(zip(bounds, [*bounds[1:], last], strict=True)) if last else []

    def take(self, a: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """Return the packed rows of `a` (T, B, N) for the steps ``lo:hi``."""
        if self.times is None or self.rows is None:
            steps = a[::-1][lo:hi] if self.reverse else a[lo:hi]
            return steps.reshape(-1, a.shape[2])
        where = slice(self.starts[lo], self.starts[hi])
        taken: np.ndarray = a[self.times[where], self.rows[where]]
        return taken

    def put(self, a: np.ndarray, lo: int, hi: int, packed: np.ndarray) -> None:
        """Write packed rows of the steps ``lo:hi`` into `a` (T, B, N)."""
        if self.times is None or self.rows is None:
            steps = a[::-1][lo:hi] if self.reverse else a[lo:hi]
            steps[...] = packed.reshape(steps.shape)
        else:
            where = slice(self.starts[lo], self.starts[hi])
            a[self.times[where], self.rows[where]] = packed

    def find_fresh(self, flags: np.ndarray) -> Packing:
        """Return this packing with the columns that start from zeros according to `flags` (T, B)."""
        starts = self.starts
        packed = self.take(flags[..., None], 0, len(starts) - 1)[:, 0]
        steps = np.flatnonzero(np.logical_or.reduceat(packed, np.asarray(starts[:-1], dtype=np.intp)))
        columns = {k: np.flatnonzero(packed[starts[k] : starts[k + 1]]) for k in steps.tolist()}
        return self._replace(fresh=columns)

    def sort(self, a: Any) -> np.ndarray:
        """Copy `a` (B, N) to (N, B), with the batch entries sorted."""
        return np.array((a if self.order is None else a[self.order]).T, order="C")

    def unsort(self, a: np.ndarray, out: Any, lo: int, hi: int) -> None:
        """Write the columns ``lo:hi`` of `a` (N, ...) to their batch entries in `out` (B, N)."""
        out[slice(lo, hi) if self.order is None else self.order[lo:hi]] = a[:, lo:hi].T


class DirectionResiduals(NamedTuple):
    """The residuals of one direction."""

    packing: Packing
    gates: list[np.ndarray]
    """The gates i, f, o, g of each step, (4H, n_k)."""
    c: list[np.ndarray]
    """c before the first step and after every step, (H, n)."""
    h: np.ndarray
    """h in rows: B rows of the initial state, then the packed rows."""


class Residuals(NamedTuple):
    """The residuals of a whole call."""

    problem: Problem
    weights: tuple[Weights, ...]
    x: np.ndarray
    kept: tuple[DirectionResiduals, ...]


def supports(problem: Problem) -> str | None:
    """Return None for the standard LSTM in float32 or float64, else the reason."""
    return (
        _support.why_not(problem, "numpy", ("float32", "float64"), resets=True) or problem.cell.reason or None
    )


@_UNDERFLOWS
def prepare(problem: Problem, params: tuple[LSTMParams, ...]) -> tuple[Weights, ...]:
    """Reorder the gates and halve the rows of i, f and o."""
    return tuple(_pack_weights(problem, p) for p in params)


def _pack_weights(problem: Problem, p: LSTMParams) -> Weights:
    H = problem.H
    ih: Any = p.weight_ih
    hr: Any = p.weight_hr
    if p.bias_ih is not None:
        ih = np.concatenate([ih, (p.bias_ih + p.bias_hh)[:, None]], axis=1)
    return Weights(_reorder_gates(ih, H), _reorder_gates(p.weight_hh, H), hr)


def _inputs(problem: Problem, packing: Packing, x: np.ndarray, lo: int, hi: int) -> np.ndarray:
    """Return the packed rows of x for the steps ``lo:hi``, with a last column of ones for the bias."""
    rows = packing.take(x, lo, hi)
    if not problem.bias:
        return rows
    ended = np.empty((rows.shape[0], problem.I + 1), x.dtype)
    ended[:, :-1] = rows
    ended[:, -1] = 1
    return ended


def _reorder_gates(a: Any, H: int) -> np.ndarray:
    """Reorder the gates i, f, g, o to i/2, f/2, o/2, g."""
    packed = np.empty_like(a)
    np.multiply(a[: 2 * H], 0.5, out=packed[: 2 * H])
    np.multiply(a[3 * H :], 0.5, out=packed[2 * H : 3 * H])
    packed[3 * H :] = a[2 * H : 3 * H]
    return packed


def _pack_steps(problem: Problem, valid: np.ndarray | None, reverse: bool) -> Packing:
    """Sort the batch entries by their number of steps, and list the entries of each step."""
    T, B = problem.T, problem.B
    if valid is None:
        return Packing([k * B for k in range(T + 1)] if B else [0], None, None, None, reverse, {})
    times = np.broadcast_to(np.arange(T)[:, None], (T, B))
    counts = valid
    if problem.valid == "mask":
        times = np.argsort(~valid, axis=0, kind="stable")
        counts = np.count_nonzero(valid, axis=0)
    order = np.argsort(-counts, kind="stable")
    counts, times = counts[order], times[:, order]
    steps = np.arange(T)[:, None]
    if reverse:
        times = np.take_along_axis(times, np.maximum(counts - 1 - steps, 0), axis=0)
    exists = steps < counts
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(exists, axis=1))])
    longest = int(counts.max(initial=0))
    rows = np.broadcast_to(order, (T, B))[exists]
    return Packing(starts[: longest + 1].tolist(), order, times[exists], rows, reverse, {})


@_UNDERFLOWS
def forward(
    problem: Problem,
    weights: tuple[Weights, ...],
    x: np.ndarray,
    state: LSTMState,
    valid: np.ndarray | None,
    fresh: np.ndarray | None = None,
) -> tuple[np.ndarray, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·), or from zeros where `fresh` is True."""
    T, B, P = problem.T, problem.B, problem.output_size
    _recycled.pieces.free_idle()
    empty, zeros = (_recycled.empty, _recycled.zeros) if problem.keep else (np.empty, np.zeros)
    y = (empty if valid is None else zeros)((T, B, P * len(weights)), x.dtype)
    state_n = LSTMState(np.empty_like(state.h), np.empty_like(state.c))
    kept = []
    for d, w in enumerate(weights):
        packing = _pack_steps(problem, valid, problem.reverse[d])
        if fresh is not None:
            packing = packing.find_fresh(fresh[d])
        start, end = (LSTMState(s.h[d], s.c[d]) for s in (state, state_n))
        kept.append(_walk(problem, w, packing, x, start, y[..., d * P : (d + 1) * P], end))
    return y, state_n, Residuals(problem, weights, x, tuple(kept)) if problem.keep else None


def _walk(
    problem: Problem,
    w: Weights,
    packing: Packing,
    x: np.ndarray,
    start: LSTMState,
    y: np.ndarray,
    end: LSTMState,
) -> DirectionResiduals:
    """Run one direction and write `y` and `end`; without `keep`, all steps share the same buffers."""
    H, P, B, starts, keep = problem.H, problem.output_size, problem.B, packing.starts, problem.keep
    held = starts[-1] if keep else B
    gates_held, c_held = (_recycled.empty((n * held,), x.dtype) for n in (4 * H, H))
    m_buffer, h_buffer = np.empty(H * B, x.dtype), np.empty(P * B, x.dtype)
    h, c = packing.sort(start.h), packing.sort(start.c)
    kept = DirectionResiduals(packing, [], [c], _recycled.empty((B + held if keep else 0, P), x.dtype))
    if keep:
        kept.h[:B] = h.T
    zx_buffer = _block_buffer(4 * H, min(starts[-1], max(FORWARD_ROWS, B)), x.dtype)
    for lo, hi in packing.blocks(FORWARD_ROWS):
        first, last = starts[lo], starts[hi]
        zx = zx_buffer[:, : last - first]
        np.matmul(w.ih, _inputs(problem, packing, x, lo, hi).T, out=zx)
        h_rows = kept.h[B + first : B + last] if keep else np.empty((last - first, P), x.dtype)
        for k in range(lo, hi):
            s, n = starts[k], starts[k + 1] - starts[k]
            if n < h.shape[1]:
                _finish(packing, h, c, n, end)
                h, c = h[:, :n], c[:, :n]
            fresh = packing.fresh.get(k)
            if fresh is not None:
                h[:, fresh] = 0
            z = _columns(gates_held, 4 * H, s if keep else 0, n)
            c_new = _columns(c_held, H, s, n) if keep else c
            m = _columns(m_buffer, H, 0, n)
            np.matmul(w.hh, h, out=z)
            z += zx[:, s - first : s - first + n]
            c = _activate(z, c, c_new, m, fresh)
            h = m if w.hr is None else np.matmul(w.hr, m, out=_columns(h_buffer, P, 0, n))
            h_rows[s - first : s - first + n] = h.T
            if keep:
                kept.gates.append(z)
                kept.c.append(c)
        packing.put(y, lo, hi, h_rows)
    _finish(packing, h, c, 0, end)
    return kept


def _activate(
    z: np.ndarray, c: np.ndarray, c_new: np.ndarray, m: np.ndarray, fresh: np.ndarray | None
) -> np.ndarray:
    """Overwrite z with the gates i, f, o, g; write c' to `c_new` and o * tanh(c') to `m`.

    The columns `fresh` use 0 instead of c. c itself is not modified, because the backward pass of the
    previous step may need it.
    """
    H = len(c)
    np.tanh(z, out=z)
    ifo = z[: 3 * H]
    ifo *= 0.5
    ifo += 0.5
    np.multiply(z[:H], z[3 * H :], out=m)
    np.multiply(z[H : 2 * H], c, out=c_new)
    if fresh is not None:
        c_new[:, fresh] = 0
    c_new += m
    np.tanh(c_new, out=m)
    m *= z[2 * H : 3 * H]
    return c_new


def _columns(held: np.ndarray, size: int, start: int, n: int) -> np.ndarray:
    """Return a (size, n) view of a flat buffer, for the packed batch entries from `start` on."""
    return held[size * start : size * (start + n)].reshape(size, n)


def _block_buffer(size: int, rows: int, dtype: np.dtype) -> np.ndarray:
    """Allocate a (size, rows) array whose rows do not all map to the same cache set."""
    return _recycled.empty((size, rows + CACHE_LINE), dtype)[:, :rows]


def _finish(packing: Packing, h: np.ndarray, c: np.ndarray, n: int, end: LSTMState) -> None:
    """Write the final state of the batch entries from the n-th on, which have no more steps."""
    packing.unsort(h, end.h, n, h.shape[1])
    packing.unsort(c, end.c, n, c.shape[1])


@_UNDERFLOWS
def backward(
    residuals: Residuals, dy: np.ndarray, dstate_n: LSTMState
) -> tuple[np.ndarray, LSTMState, tuple[LSTMParams, ...]]:
    """Return the gradients with respect to x, the initial state and each direction's parameters."""
    problem, weights, x, kept = residuals
    P = problem.output_size
    dx = _recycled.zeros(x.shape, x.dtype)
    dstate_0 = LSTMState(np.empty_like(dstate_n.h), np.empty_like(dstate_n.c))
    dparams = []
    for d, w in enumerate(weights):
        start, end = (LSTMState(s.h[d], s.c[d]) for s in (dstate_0, dstate_n))
        dparams.append(_walk_back(problem, w, kept[d], x, dy[..., d * P : (d + 1) * P], end, dx, start))
    return dx, dstate_0, tuple(dparams)


def _walk_back(
    problem: Problem,
    w: Weights,
    kept: DirectionResiduals,
    x: np.ndarray,
    dy: np.ndarray,
    dend: LSTMState,
    dx: np.ndarray,
    dstart: LSTMState,
) -> LSTMParams:
    """Run one direction backward, add to `dx` and write `dstart`."""
    H, P, B, packing, starts = problem.H, problem.output_size, problem.B, kept.packing, kept.packing.starts
    total: list[np.ndarray] = []
    dh_all, dc_all = packing.sort(dend.h), packing.sort(dend.c)
    buffers, dz_k_buffer = np.empty((4, H * B), x.dtype), np.empty(4 * H * B, x.dtype)
    dz_buffer = _block_buffer(4 * H, min(starts[-1], max(BACKWARD_ROWS, B)), x.dtype)
    for lo, hi in reversed(packing.blocks(BACKWARD_ROWS)):
        first, last = starts[lo], starts[hi]
        dz = dz_buffer[:, : last - first]
        projected = last - first if w.hr is not None else 0
        dh_block, m_block = np.empty((P, projected), x.dtype), np.empty((H, projected), x.dtype)
        dy_block = packing.take(dy, lo, hi)
        for k in range(hi - 1, lo - 1, -1):
            s, n = starts[k], starts[k + 1] - starts[k]
            now = slice(s - first, s - first + n)
            dh, dc = dh_all[:, :n], dc_all[:, :n]
            dh += dy_block[now].T
            dm = dh if w.hr is None else w.hr.T @ dh
            dz_k = _columns(dz_k_buffer, 4 * H, 0, n)
            m = _deactivate(kept.gates[k], kept.c[k][:, :n], kept.c[k + 1], dm, dc, dz_k, buffers)
            fresh = packing.fresh.get(k)
            if fresh is not None:
                dz_k[H : 2 * H, fresh] = 0
            if w.hr is not None:
                dh_block[:, now], m_block[:, now] = dh, m
            np.matmul(w.hh.T, dz_k, out=dh)
            if fresh is not None:
                dh[:, fresh] = 0
                dc[:, fresh] = 0
            dz[:, now] = dz_k
        inputs, h_prev = _inputs(problem, packing, x, lo, hi), _previous(kept, lo, hi, B)
        parts = [dz @ inputs, dz @ h_prev, dh_block @ m_block.T]
        for part, sum_ in zip(parts, total, strict=False):
            part += sum_
        total = parts
        packing.put(dx, lo, hi, packing.take(dx, lo, hi) + dz.T @ w.ih[:, : problem.I])
    packing.unsort(dh_all, dstart.h, 0, B)
    packing.unsort(dc_all, dstart.c, 0, B)
    if not total:
        total = [np.zeros(shape, x.dtype) for shape in (w.ih.shape, w.hh.shape, (P, H))]
    return _as_params(problem, w, total)


def _deactivate(
    gates: np.ndarray,
    c_prev: np.ndarray,
    c: np.ndarray,
    dm: np.ndarray,
    dc: np.ndarray,
    dz: np.ndarray,
    buffers: np.ndarray,
) -> np.ndarray:
    """Write gradients with respect to the halved z to `dz` and to c to `dc`; return o * tanh(c')."""
    H, n = c.shape
    ifo, g = gates[: 3 * H], gates[3 * H :]
    i, f, o = ifo[:H], ifo[H : 2 * H], ifo[2 * H :]
    tanh_c, twice = _columns(buffers[0], H, 0, n), _columns(buffers[1], H, 0, n)
    np.tanh(c, out=tanh_c)
    np.multiply(tanh_c, tanh_c, out=twice)
    np.subtract(1, twice, out=twice)
    twice *= o
    twice *= dm
    dc += twice
    np.multiply(dc, i, out=dz[3 * H :])
    np.add(dc, dc, out=twice)
    np.multiply(twice, g, out=dz[:H])
    np.multiply(twice, c_prev, out=dz[H : 2 * H])
    np.add(dm, dm, out=twice)
    np.multiply(twice, tanh_c, out=dz[2 * H : 3 * H])
    slopes = _columns(buffers[1:].reshape(-1), 3 * H, 0, n)
    np.subtract(1, ifo, out=slopes)
    slopes *= ifo
    dz[: 3 * H] *= slopes
    slope = slopes[:H]
    np.multiply(g, g, out=slope)
    np.subtract(1, slope, out=slope)
    dz[3 * H :] *= slope
    dc *= f
    tanh_c *= o
    return tanh_c


def _previous(kept: DirectionResiduals, lo: int, hi: int, B: int) -> np.ndarray:
    """Return the packed rows of h before each of the steps ``lo:hi``."""
    starts, fresh = kept.packing.starts, kept.packing.fresh
    if kept.packing.order is None and not fresh:
        return kept.h[starts[lo] : starts[hi]]
    before = [B + starts[k - 1] if k else 0 for k in range(lo, hi)]
    sizes = [starts[k + 1] - starts[k] for k in range(lo, hi)]
    rows = np.concatenate([kept.h[b : b + n] for b, n in zip(before, sizes, strict=True)])
    for k in range(lo, hi):
        if k in fresh:
            rows[starts[k] - starts[lo] + fresh[k]] = 0
    return rows


def _as_params(problem: Problem, w: Weights, total: list[np.ndarray]) -> LSTMParams:
    """Convert gradients of the halved and reordered weights to gradients of the user's weights."""
    dih, dhh = (_restore_gates(a, problem.H) for a in total[:2])
    dhr = None if w.hr is None else total[2]
    if not problem.bias:
        return LSTMParams(dih, dhh, weight_hr=dhr)
    return LSTMParams(np.ascontiguousarray(dih[:, :-1]), dhh, dih[:, -1].copy(), dih[:, -1].copy(), dhr)


def _restore_gates(a: np.ndarray, H: int) -> np.ndarray:
    """Apply the chain rule of `_reorder_gates` in place: from i/2, f/2, o/2, g to i, f, g, o."""
    a[: 3 * H] *= 0.5
    o = a[2 * H : 3 * H].copy()
    a[2 * H : 3 * H] = a[3 * H :]
    a[3 * H :] = o
    return a
