"""Say which steps of a batch entry exist, and which of them start from a state of zeros."""

from __future__ import annotations

from xplstm._typing import Array, Device, Namespace


def existing(xp: Namespace, kind: str, valid: Array | None, T: int, device: Device) -> Array | None:
    """Return (T, B) booleans from lengths or a mask, or None where all have every step."""
    if valid is None or kind == "mask":
        return valid
    times = xp.arange(T, dtype=valid.dtype, device=device)
    return times[:, None] < valid[None, :]


def fresh(xp: Namespace, reset: Array, exists: Array | None, reverse: tuple[bool, ...]) -> Array:
    """Return (D, T, B) booleans, true where a direction starts a step that exists from zeros.

    A reset is a boundary before its time. The first step that exists from there on starts a new segment, in
    which a forward direction begins with this step; a backward one begins with the last step before it.
    """
    first = reset if exists is None else _moved(xp, reset, exists, 1)
    directions = {False: first}
    if True in reverse:
        last = _shifted(xp, first, -1)
        directions[True] = last if exists is None else _moved(xp, last, exists, -1)
    if len(reverse) == 1:
        return directions[reverse[0]][None, ...]
    return xp.stack([directions[back] for back in reverse], axis=0)


def _moved(xp: Namespace, flags: Array, exists: Array, by: int) -> Array:
    """Move each flag to the next step that exists, later with `by` 1, earlier with -1.

    A parallel prefix over time: Kogge and Stone (1973).
    """
    passes, reach = _shifted(xp, xp.logical_not(exists), by), 1
    while reach < flags.shape[0]:
        flags = xp.logical_or(flags, xp.logical_and(passes, _shifted(xp, flags, by * reach)))
        passes = xp.logical_and(passes, _shifted(xp, passes, by * reach))
        reach *= 2
    return xp.logical_and(flags, exists)


def _shifted(xp: Namespace, flags: Array, by: int) -> Array:
    """Return `flags` moved along time, later for a positive `by`, with false where none comes from."""
    kept = flags[:-by, :] if by > 0 else flags[-by:, :]
    none = xp.zeros_like(flags[: flags.shape[0] - kept.shape[0], :])
    return xp.concat([none, kept] if by > 0 else [kept, none], axis=0)
