"""Compute the loss of connectionist temporal classification, for label sequences without alignment."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, ShapeError
from xplstm._typing import Array, Namespace
from xplstm.losses._shares import Pullback, check_float, check_reduction, common_namespace, guard, one_hot

# Represents log 0. It is far below any sum of log-probabilities, and differences of such values are finite.
LOWEST = -1e30


def ctc(
    logits: Array,
    targets: Array,
    *,
    lengths: Array | None = None,
    target_lengths: Array | None = None,
    blank: int = 0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> tuple[Array, Pullback]:
    """Compute the negative log-probability, in nats, of label sequences, summed over all alignments.

    The forward and backward variables are those of equations 6 to 10, in logarithms, and the gradient is
    that of equation 16 of Graves, Fernandez, Gomez and Schmidhuber, "Connectionist temporal classification",
    2006.

    Parameters
    ----------
    logits : array, shape (T, B, V)
        Any floating dtype. Sums over float16 and bfloat16 are computed in float32. T is at least 1.
    targets : array of integers, shape (B, U)
        Labels in ``[0, V)`` other than `blank`. Values beyond a target's length are ignored.
    lengths : array of integers, shape (B,), optional
        Number of steps of each sequence, in ``[1, T]``; T if omitted.
    target_lengths : array of integers, shape (B,), optional
        Number of labels of each target, in ``[0, U]``; U if omitted.
    blank : int, optional
        The class that means no label, in ``[0, V)``.
    reduction : {"mean", "sum", "none"}, optional
        With "mean", divide each loss by the number of its labels, or by 1 without labels, and return the
        mean. With "sum", return the sum. With "none", return all losses.

    Returns
    -------
    loss : array, shape (), or (B,) for ``reduction="none"``
        In the dtype of `logits`. A target that is too long for its sequence has no alignment. Its loss is
        infinite, and its gradient is 0.
    pullback : callable
        ``pullback(dloss=1.0)`` returns the gradient of ``sum(dloss * loss)`` with respect to `logits`.
        `dloss` is a finite number, or an array of floats with the shape of the loss.

    Raises
    ------
    DTypeError, ShapeError, BackendError, ArgumentError
        If an argument is invalid. The message names the argument, its value and the bound. Labels and
        lengths on a device and traced ones are not checked.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import losses
    >>> loss, pullback = losses.ctc(np.zeros((2, 1, 2)), np.asarray([[1]]))
    >>> round(float(loss), 4)  # three of the four paths are alignments
    0.2877
    """
    xp = common_namespace(logits=logits, targets=targets, lengths=lengths, target_lengths=target_lengths)
    logits = _array.native(logits)
    check_float("logits", logits)
    check_reduction(reduction)
    if len(logits.shape) != 3 or logits.shape[0] == 0:
        msg = f"logits has shape {tuple(logits.shape)}, expected (T, B, V) with T at least 1"
        raise ShapeError(msg)
    steps, rows, classes = logits.shape
    blank = _values.size("blank", blank, 0, classes - 1)
    _check_labels(targets, rows)
    device, width = _array.device(logits), targets.shape[1]
    lengths = _counts(xp, "lengths", lengths, rows, 1, steps, device)
    target_lengths = _counts(xp, "target_lengths", target_lengths, rows, 0, width, device)
    _check_values(targets, target_lengths, classes, blank)
    # 2 * target_lengths and the blank may exceed the range of narrow integers.
    index = xp.arange(0, device=device).dtype
    targets, lengths, target_lengths = (xp.astype(a, index) for a in (targets, lengths, target_lengths))
    wide = _array.wide_dtype(xp, logits.dtype)
    z = xp.astype(logits, wide, copy=False)
    exists = xp.arange(steps, device=device)[:, None] < lengths[None, :]
    z = xp.where(exists[..., None], z, xp.zeros_like(z))
    z = z - xp.max(z, axis=-1, keepdims=True)
    log_p = z - xp.log(xp.sum(xp.exp(z), axis=-1, keepdims=True))
    inside = xp.arange(width, device=device)[None, :] < target_lengths[:, None]
    labels = xp.where(inside, targets, xp.full_like(targets, blank))
    states = _with_blanks(xp, labels, blank)
    log_q = _of_states(xp, log_p, states)
    forward = _forward(xp, log_q, states, blank)
    last = 2 * target_lengths
    log_total = _final(xp, forward, lengths, last)
    possible = log_total > LOWEST / 2
    losses = xp.where(possible, -log_total, xp.full_like(log_total, xp.inf))
    share = xp.ones_like(losses)
    if reduction == "mean":
        floor = xp.where(target_lengths > 0, target_lengths, xp.ones_like(target_lengths))
        share = share / (xp.astype(floor, wide) * max(rows, 1))
    loss = losses * share if reduction != "none" else losses

    def pullback(dloss: Array | float) -> Array:
        backward = _backward(xp, log_q, states, blank, lengths, last)
        total = xp.where(possible, log_total, xp.zeros_like(log_total))
        occupied = xp.exp(forward + backward - total[None, :, None])
        of_class = xp.matmul(
            xp.permute_dims(occupied, (1, 0, 2)), xp.astype(one_hot(xp, states, classes), wide)
        )
        dz = xp.exp(log_p) - xp.permute_dims(of_class, (1, 0, 2))
        counts = xp.astype(exists & possible[None, :], wide) * (share * dloss)[None, :]
        return xp.astype(dz * counts[..., None], logits.dtype, copy=False)

    loss = loss if reduction == "none" else xp.sum(loss)
    return guard(xp.astype(loss, logits.dtype, copy=False), pullback)


def _with_blanks(xp: Namespace, labels: Array, blank: int) -> Array:
    """Return the labels, with a blank before, between and after them, in an array (B, 2U + 1)."""
    rows, width = labels.shape
    first = xp.full((rows, 1), blank, dtype=labels.dtype, device=_array.device(labels))
    if width == 0:  # Dask cannot reshape an empty array
        return first
    blanks = xp.full((rows, width, 1), blank, dtype=labels.dtype, device=_array.device(labels))
    pairs = xp.reshape(xp.concat([labels[..., None], blanks], axis=-1), (rows, 2 * width))
    return xp.concat([first, pairs], axis=1)


def _of_states(xp: Namespace, log_p: Array, states: Array) -> Array:
    """Return the log-probability of each state's class, shape (T, B, S)."""
    steps, rows, classes = log_p.shape
    table = xp.reshape(xp.permute_dims(log_p, (1, 2, 0)), (rows * classes, steps))
    row = xp.arange(rows, device=_array.device(log_p))[:, None] * classes
    chosen = _array.take_rows(table, row + states)
    return _bound_below(xp, xp.permute_dims(chosen, (2, 0, 1)))


def _forward(xp: Namespace, log_q: Array, states: Array, blank: int) -> Array:
    """Return the log-probability of all paths to each state at each step."""
    width = states.shape[1]
    skips = _may_skip(xp, states, blank)
    low = xp.full_like(log_q[0, ...], LOWEST)
    column = xp.arange(width, device=_array.device(states))[None, :]
    now = xp.where(column < 2, log_q[0, ...], low)
    found = [now]
    for t in range(1, log_q.shape[0]):
        one = _move(xp, now, 1, LOWEST)
        two = xp.where(skips, _move(xp, now, 2, LOWEST), low)
        now = _bound_below(xp, _log_sum(xp, (now, one, two)) + log_q[t, ...])
        found.append(now)
    return xp.stack(found)


def _backward(xp: Namespace, log_q: Array, states: Array, blank: int, lengths: Array, last: Array) -> Array:
    """Return the log-probability of all paths from each state at each step to the end, without that step."""
    width = states.shape[1]
    low = xp.full_like(log_q[0, ...], LOWEST)
    skips = _move(xp, _may_skip(xp, states, blank), -2, fill=False)
    column = xp.arange(width, device=_array.device(states))[None, :]
    is_last = (column == last[:, None]) | (column == last[:, None] - 1)
    ends = xp.where(is_last, xp.zeros_like(low), low)
    now, found = low, list[Array]()
    for t in range(log_q.shape[0] - 1, -1, -1):
        if t + 1 < log_q.shape[0]:
            step = now + log_q[t + 1, ...]
            one = _move(xp, step, -1, LOWEST)
            two = xp.where(skips, _move(xp, step, -2, LOWEST), low)
            now = _bound_below(xp, _log_sum(xp, (step, one, two)))
        now = xp.where((lengths == t + 1)[:, None], ends, now)
        found.insert(0, now)
    return xp.stack(found)


def _move(xp: Namespace, a: Array, by: int, fill: float) -> Array:
    """Return `a` (B, S), moved by some columns to the right, or to the left if `by` is negative."""
    rows, width = a.shape
    free = xp.full((rows, abs(by)), fill, dtype=a.dtype, device=_array.device(a))
    return xp.concat([free, a], axis=1)[:, :width] if by > 0 else xp.concat([a, free], axis=1)[:, -by:]


def _may_skip(xp: Namespace, states: Array, blank: int) -> Array:
    """Return whether a path may skip the blank before each state, between two different labels."""
    before: Any = _move(xp, states, 2, blank)
    return (states != blank) & (states != before)


def _final(xp: Namespace, forward: Array, lengths: Array, last: Array) -> Array:
    """Return the log-probability of all alignments, which end in one of the last two states."""
    low = xp.full_like(forward[0, :, 0], LOWEST)
    at_end = xp.arange(forward.shape[0], device=_array.device(forward))[:, None] == lengths[None, :] - 1
    column = xp.arange(forward.shape[2], device=_array.device(forward))[None, :]
    of_row = xp.max(xp.where(at_end[..., None], forward, low[None, :, None]), axis=0)
    ends = [
        xp.max(xp.where(column == place[:, None], of_row, low[:, None]), axis=1) for place in (last, last - 1)
    ]
    return _log_sum(xp, ends)


def _log_sum(xp: Namespace, terms: tuple[Array, ...] | list[Array]) -> Array:
    """Return the logarithm of the sum of exponentials."""
    largest = functools.reduce(xp.maximum, terms)
    return largest + xp.log(functools.reduce(lambda a, b: a + b, [xp.exp(t - largest) for t in terms]))


def _bound_below(xp: Namespace, x: Array) -> Array:
    """Return `x` with LOWEST as its lower bound."""
    return xp.maximum(x, xp.full_like(x, LOWEST))


def _check_labels(targets: Array, rows: int) -> None:
    """Raise an error unless targets are integers of shape (B, U)."""
    _array.check_integers("targets", targets)
    if len(targets.shape) != 2 or targets.shape[0] != rows:
        msg = f"targets has shape {tuple(targets.shape)}, expected (B, U) with B={rows} as in logits"
        raise ShapeError(msg)


def _counts(
    xp: Namespace, name: str, given: Array | None, rows: int, least: int, most: int, device: object
) -> Array:
    """Return one integer per batch entry, checked to be in [least, most]; `most` if None."""
    if given is None:
        return xp.full((rows,), most, dtype=xp.int64, device=device)
    _array.check_integers(name, given)
    if tuple(given.shape) != (rows,):
        msg = f"{name} has shape {tuple(given.shape)}, expected ({rows},)"
        raise ShapeError(msg)
    if not _array.is_lazy(given):
        values = _array.to_numpy(given)
        outside = values[(values < least) | (values > most)]
        if outside.size:
            msg = f"{name} contains {outside[0]}, expected integers in [{least}, {most}]"
            raise ArgumentError(msg)
    return given


def _check_values(targets: Array, target_lengths: Array, classes: int, blank: int) -> None:
    """Raise an error for a label that is the blank, or not a class."""
    if _array.is_lazy(targets) or _array.is_lazy(target_lengths):
        return
    values, counts = _array.to_numpy(targets), _array.to_numpy(target_lengths)
    inside = np.arange(values.shape[1])[None, :] < counts[:, None]
    wrong = values[inside & ((values < 0) | (values >= classes) | (values == blank))]
    if wrong.size:
        msg = f"targets contains {wrong[0]}, expected labels in [0, {classes}) other than blank={blank}"
        raise ArgumentError(msg)
