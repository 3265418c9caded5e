"""Read batches of memory maps and zarr arrays that are larger than memory, in a seeded order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm.training import _trees
from xplstm.training._data import Batch, index_of
from xplstm.training._order import Permutation


class Samples:
    """Read batches of samples from arrays of any size, in a new order for each epoch.

    Pass the object to `fit` as `data`. The order is a keyed permutation of the sample indices. It needs no
    memory, and a resumed run continues it from the checkpoint. Only the samples of a batch are read. With
    `Shards`, each process reads its own part of each batch.

    Parameters
    ----------
    inputs, targets : array-like, or a tuple, list or mapping of them
        Objects with ``shape``, ``dtype`` and ``__getitem__``: NumPy arrays, memory maps, zarr arrays or h5py
        datasets, also in `xplstm.models.Ragged`. The first axis of each is the sample axis, of length N.
        `targets` may be None if `prepare` returns the targets.
    batch_size : int
        B, at least 1. The last batch of an epoch may be smaller.
    seed : int or None, optional
        Seed of the order of every epoch, at least 0. With None the samples keep their order.
    block : int, optional
        Number of neighbouring samples that are read as one slice, at least 1. The order of the blocks and the
        order within each block are permuted. Use a multiple of the chunk length of a zarr array, since
        reading one sample reads its whole chunk. The blocks of a batch are kept in memory.
    batch_axis : {1, 0}, optional
        Batch axis of arrays with two or more axes, as in `Shards`; 1 gives (T, B, ...). For targets (B, C) of
        whole sequences, pass ``prepare=lambda x, y: (x, y.T)``.
    prepare : callable, optional
        ``prepare(inputs, targets)`` returns the batch for the model, from NumPy arrays of a batch or a part
        of a batch. It must process each batch entry independently.

    Raises
    ------
    ArgumentError
        If a number is outside its range, or there are no samples.
    ShapeError
        If the arrays have different numbers of samples.
    DTypeError
        If an array has no shape, or an argument has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim, training
    >>> from xplstm.models import Forecaster
    >>> series = np.sin(np.arange(600.0)).reshape(60, 10, 1)  # or np.load("series.npy", mmap_mode="r")
    >>> data = training.Samples(series, None, 8, seed=0, prepare=lambda x, _: (x[:-1], x[1:]))
    >>> len(data), data(0)[0][0].shape  # the batches of epoch 0
    (8, (9, 8, 1))
    >>> model = Forecaster(1, 4, dtype="float64", rng=0)
    >>> history = training.fit(model, data, optim.Adam(0.01), epochs=2, read_ahead=2, progress=False)
    >>> len(history.losses)
    16
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        batch_size: int,
        *,
        seed: int | None = None,
        block: int = 1,
        batch_axis: int = 1,
        prepare: Callable[[Any, Any], Batch] | None = None,
    ) -> None:
        self.batch_size = _values.size("batch_size", batch_size)
        self.seed = None if seed is None else _values.size("seed", seed, 0)
        self.block = _values.size("block", block)
        self.batch_axis = _values.size("batch_axis", batch_axis, 0, 1)
        self.prepare = None if prepare is None else _values.function("prepare", prepare)
        self.trees = {"inputs": inputs, "targets": targets}
        self.size = _samples(self.trees)

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __repr__(self) -> str:
        return f"Samples({self.size} samples, batch_size={self.batch_size}, seed={self.seed})"

    def __call__(self, epoch: int) -> Sequence[Batch]:
        """Return the batches of one epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, at least 0.

        Returns
        -------
        sequence of (inputs, targets)
            The batches, read on access.
        """
        return Epoch(self, _values.size("epoch", epoch, 0))


class Epoch(Sequence[Batch]):
    """The batches of one epoch, with a cache of the blocks of the last batch."""

    def __init__(self, samples: Samples, epoch: int) -> None:
        self.samples = samples
        self._order: _Order | None = None
        if samples.seed is not None:
            self._order = _Order(samples.size, samples.block, samples.seed, epoch)
        self._blocks: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        number = index_of(index)
        if not -len(self) <= number < len(self):
            msg = f"index={index} must be in [{-len(self)}, {len(self)})"
            raise IndexError(msg)
        return self.part(number % len(self), 0, self.entries(number % len(self)))

    def entries(self, index: int) -> int:
        """Return the number of samples in a batch."""
        size = self.samples.batch_size
        return min(size, self.samples.size - index * size)

    def part(self, index: int, low: int, high: int) -> Batch:
        """Read the batch entries in ``[low, high)`` of a batch."""
        first = index * self.samples.batch_size
        places = np.arange(first + low, first + high)
        wanted = places if self._order is None else self._order(places)
        used: dict[tuple[str, int], np.ndarray] = {}

        def read(name: str, stored: Any) -> np.ndarray:
            if self._order is None:
                found = _array.to_numpy(stored[first + low : first + high])
            elif isinstance(stored, np.ndarray):
                found = np.asarray(stored[wanted])
            else:
                found = self._read(name, stored, wanted, used)
            return np.moveaxis(found, 0, self.samples.batch_axis) if found.ndim > 1 else found

        inputs, targets = (_trees.map_arrays(name, tree, read) for name, tree in self.samples.trees.items())
        self._blocks = used
        prepare = self.samples.prepare
        return (inputs, targets) if prepare is None else prepare(inputs, targets)

    def describe(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share."""
        s = self.samples
        return {
            "samples": s.size,
            "batch_size": s.batch_size,
            "seed": s.seed,
            "block": s.block,
            "arrays": {
                name: f"{_array.dtype_name(a.dtype)}{tuple(a.shape)}" for name, a in _trees.leaves(s.trees)
            },
        }

    def _read(
        self, name: str, stored: Any, wanted: np.ndarray, used: dict[tuple[str, int], np.ndarray]
    ) -> np.ndarray:
        """Read samples as whole blocks in the order of the file."""
        length, total = self.samples.block, self.samples.size
        numbers, where = np.unique(wanted // length, return_inverse=True)
        for number in numbers.tolist():
            low, key = number * length, (name, number)
            kept = self._blocks.get(key)
            used[key] = _array.to_numpy(stored[low : min(low + length, total)]) if kept is None else kept
        values = np.empty((len(wanted), *stored.shape[1:]), used[name, int(numbers[0])].dtype)
        for k, number in enumerate(numbers.tolist()):
            here = where == k
            values[here] = used[name, number][wanted[here] - number * length]
        return values


class _Order:
    """Order of one epoch: order of the blocks, and order of the samples in each block."""

    def __init__(self, size: int, length: int, seed: int, epoch: int) -> None:
        self._length, self._rest = length, size % length
        count = -(-size // length)
        self._blocks = Permutation(count, seed, epoch, 0)
        self._inside = Permutation(length, seed, epoch, 1)
        self._last = count - 1
        if self._rest:  # the last block is shorter, so the blocks placed after it start earlier
            self._inside_last = Permutation(self._rest, seed, epoch, 2)
            self._end = int(self._blocks.inverse(self._last)) * length + self._rest

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Return the sample indices at places of the epoch."""
        if self._rest:
            places = np.where(places < self._end, places, places + (self._length - self._rest))
        blocks = self._blocks(places // self._length)
        inside, within = places % self._length, np.empty_like(places)
        whole = blocks != self._last if self._rest else np.full(blocks.shape, True)
        within[whole] = self._inside(inside[whole], blocks[whole])
        if self._rest:
            within[~whole] = self._inside_last(inside[~whole])
        return blocks * self._length + within


def _samples(trees: dict[str, Any]) -> int:
    """Return the common number of samples of all arrays."""
    sizes: dict[str, int] = {}
    if next(_trees.leaves({"inputs": trees["inputs"]}), None) is None:
        msg = f"inputs={trees['inputs']!r} contains no array, expected at least 1"
        raise ArgumentError(msg)
    for name, a in _trees.leaves(trees):
        if not (getattr(a, "shape", ()) and hasattr(a, "dtype") and hasattr(a, "__getitem__")):
            msg = f"{name} is a {type(a).__name__}, expected an array with the samples on its first axis"
            raise DTypeError(msg)
        sizes[name] = int(a.shape[0])
    if len({*sizes.values()}) > 1:
        found = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        msg = f"the arrays must have the same number of samples on their first axis, but {found}"
        raise ShapeError(msg)
    if not any(sizes.values()):
        msg = "inputs and targets contain no samples, expected at least 1"
        raise ArgumentError(msg)
    return next(iter(sizes.values()))
