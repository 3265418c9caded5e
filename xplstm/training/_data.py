"""Read the batches that `fit` trains on, by epoch and position."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError, FormatError, ShapeError
from xplstm._typing import Array
from xplstm.training import _trees

Batch: TypeAlias = tuple[Any, Any]
Batches: TypeAlias = "Sequence[Batch] | Iterable[Batch]"


class Streams(Sequence[Batch]):
    """Split one long sequence into consecutive batches.

    The sequence is split into `batch_size` parallel streams. Each batch contains the next `steps` steps of
    every stream. Targets are the inputs one step later. The state after a batch is therefore the initial
    state of the next batch, as truncated backpropagation requires.

    Parameters
    ----------
    ids : array, shape (N,)
        Any dtype and library; N greater than `batch_size`. Up to ``batch_size - 1`` elements at the end
        that do not fill all streams are dropped.
    batch_size : int
        B, at least 1.
    steps : int
        T of each batch, at least 1; the last batch may be shorter.

    Raises
    ------
    ArgumentError
        If a size is less than 1 or the sequence is too short.
    ShapeError
        If `ids` does not have one axis.
    DTypeError
        If `ids` is not an array, or a size is not an integer.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.training import Streams
    >>> batches = Streams(np.arange(9), batch_size=2, steps=3)
    >>> inputs, targets = batches[0]
    >>> inputs
    array([[0, 4],
           [1, 5],
           [2, 6]])
    >>> targets[:, 1]
    array([5, 6, 7])
    >>> len(batches), batches[1][0].shape
    (2, (1, 2))
    """

    def __init__(self, ids: Array, batch_size: int, steps: int) -> None:
        batch_size, steps = _values.size("batch_size", batch_size), _values.size("steps", steps)
        xp = _array.namespace(ids, "ids")
        if len(ids.shape) != 1:
            msg = f"ids has shape {tuple(ids.shape)}, expected one axis"
            raise ShapeError(msg)
        length: int = (ids.shape[0] - 1) // batch_size
        if length < 1:
            msg = f"ids has {ids.shape[0]} elements; batch_size={batch_size} needs at least {batch_size + 1}"
            raise ArgumentError(msg)

        def side_by_side(first: int) -> Array:
            streams = xp.reshape(ids[first : first + batch_size * length], (batch_size, length))
            return xp.permute_dims(streams, (1, 0))

        self._inputs, self._targets = side_by_side(0), side_by_side(1)
        self._steps, self._length = steps, length

    def __len__(self) -> int:
        return math.ceil(self._length / self._steps)

    def __repr__(self) -> str:
        return f"Streams({len(self)} batches, batch_size={self._inputs.shape[1]}, steps={self._steps})"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        number = index_of(index)
        if not -len(self) <= number < len(self):
            msg = f"index={index} must be in [{-len(self)}, {len(self)})"
            raise IndexError(msg)
        first = number % len(self) * self._steps
        steps = slice(first, min(first + self._steps, self._length))
        return self._inputs[steps, ...], self._targets[steps, ...]


def index_of(index: Any) -> int:
    """Return the index of a batch, checked to be an integer."""
    try:
        number = operator.index(index)
    except TypeError:
        number = None
    if number is None or isinstance(index, bool):
        msg = f"index={index!r} must be an integer or a slice"
        raise DTypeError(msg)
    return number


class Place(NamedTuple):
    """Epoch and position of a batch."""

    epoch: int
    position: int

    def __str__(self) -> str:
        return f"batch {self.position} of epoch {self.epoch}"

    def next(self, is_last: bool) -> Place:
        """Return the place of the next batch; `is_last` is True if this batch ends its epoch."""
        return Place(self.epoch + 1, 0) if is_last else Place(self.epoch, self.position + 1)


class Found(NamedTuple):
    """One batch, or the part that this process needs."""

    inputs: Any
    targets: Any
    part: tuple[int, int, int] | None
    """First entry of the part, entry after its last, and number of all entries; None for a whole batch."""
    is_last: bool
    """Whether the batch is the last of its epoch."""
    data: dict[str, Any] | None
    """Result of `Source.describe` for the first batch of an epoch; None for other batches."""


Own: TypeAlias = Callable[[int], tuple[int, int]]
"""Map the number of batch entries to the range ``(first, stop)`` that this process needs."""


class Source:
    """The batches of all epochs, read by place.

    A sequence is read by index. If a sequence has the methods ``entries(index)`` and ``part(index, low,
    high)``, each process reads its own part. Any other iterable is read in order, one batch in advance, to
    recognise the last batch of an epoch. `check` raises an error for batches of an epoch that do not fit.
    """

    def __init__(
        self, data: Batches | Callable[[int], Batches], own: Own, check: Callable[[Any], object]
    ) -> None:
        self._data, self._own, self._check = data, own, check
        self._epoch: int | None = None
        self._batches: _Indexed | _Iterated
        self.is_parted: bool | None = None
        """Whether each process reads its own part of a batch; None before the first access."""

    def batch(self, place: Place) -> Found:
        """Return one batch."""
        batches = self._of(place.epoch)
        batch = batches.get(place)
        return batch._replace(data=self.describe(place.epoch)) if place.position == 0 else batch

    def describe(self, epoch: int) -> dict[str, Any]:
        """Return the number of batches, their order, and the shapes of the first batch of an epoch."""
        batches = self._of(epoch)
        return {"epoch": epoch, "batches": batches.size, "shapes": batches.shapes, "order": batches.order}

    def count(self, epochs: int) -> int | None:
        """Return the number of batches of so many epochs, or None if the data does not state it."""
        size = None if callable(self._data) else self._of(self._epoch or 0).size
        return None if size is None else epochs * size

    def check(self, recorded: Mapping[str, Any] | None, place: Place) -> None:
        """Check that the data has the recorded sizes, and has a batch at `place`."""
        if recorded is not None:
            epoch, ours = recorded["epoch"], self._of(recorded["epoch"])
            if isinstance(ours, _Indexed) and not ours.is_parted:
                ours.get(Place(epoch, 0))
            _check_order(recorded.get("order"), ours.order)
            if recorded["batches"] != ours.size:
                before = recorded["batches"]
                msg = f"data has {ours.size} batches in epoch {epoch}, expected {before} as in the run to "
                msg += "resume"
                raise ArgumentError(msg)
            if None not in (recorded["shapes"], ours.shapes) and recorded["shapes"] != ours.shapes:
                before = recorded["shapes"]
                msg = (
                    f"the first batch of epoch {epoch} has the shapes {ours.shapes}, expected {before} as in "
                )
                msg += "the run to resume"
                raise ArgumentError(msg)
        size = self._of(place.epoch).size
        if size is not None and place.position >= size:
            msg = f"the checkpoint is at {place}, but that epoch has {size} batches"
            raise FormatError(msg)

    def _of(self, epoch: int) -> _Indexed | _Iterated:
        """Return the batches of an epoch, at least one."""
        if epoch != self._epoch:
            given = self._data(epoch) if callable(self._data) else self._data
            self._check(given)
            self._batches, self._epoch = _open_epoch(given, epoch, self._own), epoch
            before, self.is_parted = self.is_parted, self._batches.is_parted
            if before not in (None, self.is_parted):
                has = "have" if self.is_parted else "do not have"
                msg = f"the batches of epoch {epoch} {has} part(index, low, high), unlike the previous epoch"
                raise ArgumentError(msg)
        return self._batches


class _Indexed:
    """Batches that are read by index."""

    def __init__(self, batches: Any, epoch: int, own: Own) -> None:
        self._batches, self._own = batches, own
        self.size: int = len(batches)
        if self.size == 0:
            raise _no_batches(epoch)
        self.is_parted = callable(getattr(batches, "part", None)) and callable(
            getattr(batches, "entries", None)
        )
        describe = getattr(batches, "describe", None)
        self.order: Any = (
            json.loads(json.dumps(describe())) if self.is_parted and callable(describe) else None
        )
        self.shapes: list[Any] | None = None

    def get(self, place: Place) -> Found:
        """Return one batch, or this process's part of it."""
        position, is_last = place.position, place.position + 1 == self.size
        if not self.is_parted:
            inputs, targets = _pair(self._batches[position], place)
            if position == 0:
                self.shapes = _shapes((inputs, targets))
            return Found(inputs, targets, None, is_last, None)
        entries = _values.size(f"entries({position})", self._batches.entries(position))
        low, high = self._own(entries)
        part = self._batches.part(position, low, high) if low < high else (None, None)
        return Found(*_pair(part, place), (low, high, entries), is_last, None)


class _Iterated:
    """Batches that are read in order; the latest batch can be read again."""

    is_parted, order = False, None

    def __init__(self, batches: Iterable[Any], epoch: int) -> None:
        self.size: int | None = len(batches) if isinstance(batches, Sized) else None
        self._again = iter(batches) is not batches
        self._batches = iter(batches)
        self._last: Any = None
        self._next, self._ahead = 0, copy_arrays(next(self._batches, _END))
        if self._ahead is _END:
            raise _no_batches(epoch, self._again)
        self.shapes = _shapes(_pair(self._ahead, Place(epoch, 0)))

    def get(self, place: Place) -> Found:
        """Return one batch."""
        while self._next <= place.position and self._ahead is not _END:
            self._last = self._ahead
            self._next, self._ahead = self._next + 1, copy_arrays(next(self._batches, _END))
        if self._next != place.position + 1:
            msg = f"data ended after {self._next} batches of epoch {place.epoch}, expected {place}"
            raise ArgumentError(msg)
        return Found(*_pair(self._last, place), None, self._ahead is _END, None)


def copy_arrays(tree: Any) -> Any:
    """Copy the NumPy arrays of a batch, since a source may reuse their memory."""
    return _trees.map_arrays("", tree, lambda _, a: a.copy(order="K") if isinstance(a, np.ndarray) else a)


def arrays_of(inputs: Any, targets: Any) -> dict[str, Array]:
    """Return the arrays and the integers of a batch by name, all as arrays."""
    found = dict(_trees.leaves({"inputs": inputs, "targets": targets}))
    integers = {name: np.asarray(a) for name, a in found.items() if isinstance(a, Integral)}
    return integers | {name: a for name, a in found.items() if hasattr(a, "shape")}


def _check_order(before: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> None:
    """Check that the samples have the order of the run to resume."""
    if before is None or ours is None:
        if before is not ours:
            ours_is, before_is = ("no " if order is None else "" for order in (ours, before))
            msg = f"data has {ours_is}describe(), but the data of the run to resume had {before_is}describe()"
            raise ArgumentError(msg)
        return
    for name in {**before, **ours}:
        if before.get(name) != ours.get(name):
            msg = f"data has {name}={ours.get(name)!r}, expected {before.get(name)!r} as in the run to resume"
            raise ArgumentError(msg)


_END = object()
_INPUTS = (("x", "lengths"), ("x", "future"))
"""Fields of the named tuples that are inputs."""


def _open_epoch(batches: Any, epoch: int, own: Own) -> _Indexed | _Iterated:
    """Return the batches of one epoch, indexed or iterated."""
    if isinstance(batches, tuple) and len(batches) == 2 and not all(map(_is_pair, batches)):
        msg = "data=(inputs, targets) is one batch; data must be a sequence of batches: [(inputs, targets)]"
        raise DTypeError(msg)
    if not isinstance(batches, Mapping | str | bytes) and getattr(batches, "shape", None) != ():
        if hasattr(batches, "__len__") and hasattr(batches, "__getitem__"):
            return _Indexed(batches, epoch, own)
        if isinstance(batches, Iterable):
            return _Iterated(batches, epoch)
    msg = (
        "data must be a sequence or an iterable of pairs (inputs, targets), or a function from the epoch to "
        f"one of these, got {type(batches).__name__}"
    )
    raise DTypeError(msg)


def _no_batches(epoch: int, again: bool = True) -> ArgumentError:
    """Return the error for an epoch without batches."""
    msg = f"data has no batches in epoch {epoch}; at least 1 is needed"
    if not again and epoch:
        msg += ". An iterator can be read once; pass a list, or a function from the epoch to its batches"
    return ArgumentError(msg)


def _is_pair(batch: Any) -> bool:
    """Return whether `batch` has inputs and targets, unlike `xplstm.models.Ragged` and `WithFuture`."""
    return (
        isinstance(batch, tuple | list) and len(batch) == 2 and getattr(batch, "_fields", ()) not in _INPUTS
    )


def _pair(batch: Any, place: Place) -> Batch:
    """Return the inputs and the targets of a batch that is not empty."""
    if _is_pair(batch):
        shapes = _shapes((batch[0], None))
        if shapes and all(0 in shape for shape in shapes):
            msg = f"the inputs of {place} have the shapes {shapes}, without any element; leave the batch out"
            raise ArgumentError(msg)
        return batch[0], batch[1]
    count = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    msg = (
        f"{place} must be a pair (inputs, targets), got {type(batch).__name__}{count}; "
        "pass a single batch as [(inputs, targets)]"
    )
    raise DTypeError(msg)


def _shapes(batch: Batch) -> list[list[int]]:
    """Return the shapes of all arrays of a batch."""
    arrays = [a for _, a in _trees.leaves({"inputs": batch[0], "targets": batch[1]}) if hasattr(a, "shape")]
    return [[int(size) for size in a.shape] for a in arrays]
