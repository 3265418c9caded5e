"""Compute the valid steps of each batch entry, and the steps that start from a zero state."""

from __future__ import annotations

from xplstm._typing import Array, Device, Namespace


def existing(xp: Namespace, kind: str, valid: Array | None, T: int, device: Device) -> Array | None:
    """Return (T, B) booleans from lengths or a mask, or None if all steps are valid."""
    if valid is None or kind == "mask":
        return valid
    times = xp.arange(T, dtype=valid.dtype, device=device)
    return times[:, None] < valid[None, :]


def fresh(xp: Namespace, reset: Array, exists: Array | None, reverse: tuple[bool, ...]) -> Array:
    """Return (D, T, B) booleans, True where a valid step of a direction starts from zeros.

    A reset at time t is a boundary between the times t - 1 and t. The first valid step after the boundary
    starts a new segment. A forward direction starts from zeros at this step, and a reverse direction at the
    last valid step before the boundary.
    """
    first = reset if exists is None else _move_to_existing(xp, reset, exists, 1)
    directions = {False: first}
    if True in reverse:
        last = _shift_time(xp, first, -1)
        directions[True] = last if exists is None else _move_to_existing(xp, last, exists, -1)
    if len(reverse) == 1:
        return directions[reverse[0]][None, ...]
    return xp.stack([directions[back] for back in reverse], axis=0)


def _move_to_existing(xp: Namespace, flags: Array, exists: Array, by: int) -> Array:
    """Move each flag to the next valid step, later for `by` = 1 and earlier for `by` = -1.

    The algorithm is the parallel prefix of Kogge and Stone (1973) over time.
    """
    passes, reach = _shift_time(xp, xp.logical_not(exists), by), 1
    while reach < flags.shape[0]:
        flags = xp.logical_or(flags, xp.logical_and(passes, _shift_time(xp, flags, by * reach)))
        passes = xp.logical_and(passes, _shift_time(xp, passes, by * reach))
        reach *= 2
    return xp.logical_and(flags, exists)


def _shift_time(xp: Namespace, flags: Array, by: int) -> Array:
    """Shift `flags` along time, later for a positive `by`, and fill with False."""
    if flags.shape[0] == 0:  # the standard allows no slice beyond an empty axis
        return flags
    kept = flags[:-by, :] if by > 0 else flags[-by:, :]
    none = xp.zeros_like(flags[: flags.shape[0] - kept.shape[0], :])
    return xp.concat([none, kept] if by > 0 else [kept, none], axis=0)
