"""Split a batch into fixed shards, whose gradients are added in one fixed tree on any number of processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, DTypeError, GroupError, ShapeError
from xplstm._typing import Array
from xplstm.training._data import Found, Place, arrays_of
from xplstm.training._groups import Group
from xplstm.training._saved import State, parts_of, with_parts
from xplstm.training._team import BATCH, HEADER, LOSS, Team, digest, refuse_size

Grads: TypeAlias = dict[str, Array]
One: TypeAlias = Callable[[Any, Any, State, "np.random.Generator | None"], tuple[Any, State, Grads]]


class Shards:
    """Split each batch into a fixed number of shards, and train with one or more processes.

    Each shard is a range of batch entries; the ranges have nearly equal length. The gradient of each shard
    is weighted by the number of elements in its loss. The gradients are added in one binary tree, which
    depends on `count` but not on the number of processes. A run therefore has the same bits on 1, 2, 4, ...
    processes, even if it is resumed on another number of processes. On one process, this is gradient
    accumulation within a batch.

    Parameters
    ----------
    group : Group or None
        `LocalGroup`, `MPIGroup`, `TorchGroup`, `NCCLGroup` or your own class; None for a single process. The
        number of processes must be a power of two that divides `count`. With ``sums="fast"`` it can be any
        divisor of `count`.
    count : int
        K, the number of shards, at least 1. A run with another K has different bits.
    batch_axis : {1, 0}, optional
        Batch axis of arrays with two or more axes; 1 for the models of `xplstm.models`. An array with one
        axis has one element for each batch entry. An attribute `batch_axis` of the model must be the same.
        An attribute `targets_axis` of the model, if it exists, is the batch axis of targets with two or more
        axes: `xplstm.models.SequenceClassifier` has targets (B, C).
    sums : {"tree", "fast"}, optional
        ``"fast"`` adds the gradients of the processes with the all-reduce of the transport, whose order is
        not fixed. The bits then depend on the number of processes.

    Raises
    ------
    ArgumentError
        If a value is outside its range, or the number of processes does not fit `count`.
    DTypeError
        If `group` does not have the methods of `Group`.

    Notes
    -----
    A batch may be an array, or a tuple, list or mapping of arrays, such as `xplstm.models.Ragged`. The
    weight of a shard is the result of ``model.count(inputs, targets)``, the number of elements over which
    the loss is averaged. Without that method, the loss must be the mean over all batch entries, and inputs
    and targets must be arrays.

    Each shard has its own dropout seed, which every rank draws from ``rng``.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import optim, training
    >>> from xplstm.models import Forecaster
    >>> x = np.sin(np.arange(60.0)).reshape(6, 10, 1)
    >>> def trained(shards):
    ...     model = Forecaster(1, 4, dtype="float64", rng=0)
    ...     data = [(x[:-1], x[1:])]
    ...     training.fit(model, data, optim.Adam(0.1), updates=5, parallel=shards, progress=False)
    ...     return model.loss(*data[0])[0]
    >>> whole, parts = trained(None), trained(training.Shards(None, 4))
    >>> bool(abs(whole - parts) < 1e-9)
    True
    """

    def __init__(self, group: Group | None, count: int, *, batch_axis: int = 1, sums: str = "tree") -> None:
        self.count = _values.size("count", count)
        self.batch_axis = _values.size("batch_axis", batch_axis, 0, 1)
        self.sums = _values.one_of("sums", sums, ("tree", "fast"))
        if group is not None:
            missing = [n for n in ("rank", "size", "exchange", "gather") if not hasattr(group, n)]
            if missing or isinstance(group, type):
                msg = (
                    f"group={group!r} must have rank, size, exchange and gather, such as training.MPIGroup()"
                )
                raise DTypeError(msg)
            size = _values.size("group.size", group.size)
            _values.size("group.rank", group.rank, 0, size - 1)
            refuse_size(size, self.count, self.sums)
            if self.sums == "fast" and not callable(getattr(group, "all_reduce", None)):
                msg = f"sums='fast' needs a group with all_reduce, which {type(group).__name__} does not have"
                raise ArgumentError(msg)
        self.group = group

    def __repr__(self) -> str:
        return f"Shards({self.group!r}, {self.count}, batch_axis={self.batch_axis}, sums={self.sums!r})"


def own_entries(shards: Shards | None, entries: int) -> tuple[int, int]:
    """Return the range ``(first, stop)`` of the batch entries of this rank."""
    if shards is None or shards.group is None:
        return 0, entries
    each = shards.count // shards.group.size
    low, high = shards.group.rank * each, (shards.group.rank + 1) * each
    return low * entries // shards.count, high * entries // shards.count


class Work(NamedTuple):
    """Objects for the gradient of one batch."""

    team: Team
    place: Place
    shards: Shards
    model: Any
    names: tuple[str, ...]
    """Names of the parameters that are not frozen."""
    rng: np.random.Generator | None
    is_parted: bool
    """Whether each process reads its own part of a batch."""


def gradients(
    work: Work, read: Callable[[], Found], one: One, state: State, carry: bool
) -> tuple[Any, State, Grads, bool]:
    """Return loss, state and gradients of one batch, and whether it ends the epoch; equal on all ranks.

    `read` returns the batch. `one` returns the loss, the state and the gradients of a part of the batch.
    """
    params = {name: work.model.params[name] for name in work.names}
    dtypes = [_array.dtype_name(a.dtype) for a in params.values()]
    dtype = "float64" if "float64" in dtypes else "float32"
    length = HEADER + sum(math.prod(a.shape) for a in params.values())
    states: list[Any] = []
    cuts: list[_Cut] = []

    def own_count() -> int:
        """Read the part of this rank, and return the number of elements in its loss."""
        cuts.append(_Cut(work, read()))
        return cuts[0].counted

    total = sum(work.team.together(own_count)) if work.is_parted else None

    def own_part() -> tuple[np.ndarray, tuple[bool, str]]:
        """Return the sum over the shards of this rank, and keep the states."""
        cut = cuts[0] if cuts else _Cut(work, read())
        is_last, whole = cut.is_last, cut.counted if total is None else total
        count, team = work.shards.count, work.team
        seeds = None if work.rng is None else work.rng.integers(0, 2**63, count)  # every rank draws all seeds

        def tree(low: int, high: int) -> np.ndarray:
            if high - low > 1:
                middle = (low + high) // 2
                left = tree(low, middle)
                left += tree(middle, high)
                return left
            flat = np.zeros(length, dtype)
            part = cut.shard(low, state, whole)
            if part.entries:
                rng = None if seeds is None else np.random.default_rng(seeds[low])
                loss, after, grads = one(part.inputs, part.targets, part.state, rng)
                if part.weight:
                    _fill(flat, loss, {name: (grads[name], a) for name, a in params.items()})
                    flat *= flat.dtype.type(part.weight)
                if carry and not is_last and after is not None:
                    states.append(with_parts(after, _check_state(after, part.entries)))
            return flat

        each = count // team.size
        flat = tree(team.rank * each, (team.rank + 1) * each)
        described = cut.digest() if team.size > 1 else ""
        if described:
            flat[BATCH:HEADER] = _bits(described)
        return flat, (is_last, described)

    flat, (is_last, described) = work.team.add(own_part, length, dtype)
    _check_batch(work, flat[BATCH:HEADER], described)
    after = _join_states(work.team, states, next(iter(params.values()))) if carry and not is_last else None
    return flat[LOSS], after, _grads(flat, params), is_last


class _Part(NamedTuple):
    """One shard of a batch."""

    inputs: Any
    targets: Any
    state: State
    entries: int
    weight: float


class _Cut:
    """A batch, or the part of a batch that this rank read, with the ranges of its shards."""

    def __init__(self, work: Work, found: Found) -> None:
        self._work, self._inputs, self._targets = work, found.inputs, found.targets
        self.is_last, axis = found.is_last, work.shards.batch_axis
        self._is_part = found.part is not None
        self._targets_axis = getattr(work.model, "targets_axis", axis)
        if found.part is None:
            self._first, self._size = 0, _entries(found.inputs, axis)
            self._entries = self._size
        else:
            self._first, high, self._entries = found.part
            self._size = high - self._first
            given = _entries(found.inputs, axis) if self._size else 0
            if given != self._size:
                msg = f"part({self._first}, {high}) of the data returned {given} entries on axis {axis}"
                raise ShapeError(f"{msg}, expected {self._size}")
        self.counted = self._count(found.inputs, found.targets, self._size) if self._size else 0

    def digest(self) -> str:
        """Return a hash of what all ranks must have read: a whole batch, but only the size of a part."""
        read = {} if self._is_part else arrays_of(self._inputs, self._targets)
        return digest({"size": np.asarray([self._entries, self.is_last]), **read})

    def shard(self, number: int, state: State, total: int) -> _Part:
        """Return one shard of a batch whose loss has `total` elements."""
        count = self._work.shards.count
        low, high = number * self._entries // count, (number + 1) * self._entries // count
        if low == high:
            return _Part(None, None, None, 0, 0.0)
        inputs, targets = (
            self._slice(name, tree, axis, low - self._first, high - self._first)
            for name, tree, axis in (
                ("inputs", self._inputs, self._work.shards.batch_axis),
                ("targets", self._targets, self._targets_axis),
            )
        )
        counted = self._count(inputs, targets, high - low)
        if state is not None:
            _check_state(state, self._entries)
            state = with_parts(state, (a[..., low:high, :] for a in parts_of(state)))
        return _Part(inputs, targets, state, high - low, counted / max(total, 1))

    def _count(self, inputs: Any, targets: Any, entries: int) -> int:
        """Return the number of elements over which the loss is averaged."""
        count = getattr(self._work.model, "count", None)
        if callable(count):
            return _values.size("model.count()", count(inputs, targets), 0, 2**63 - 1)
        if not (hasattr(inputs, "shape") and hasattr(targets, "shape")):
            model = type(self._work.model).__name__
            msg = f"a batch of {type(inputs).__name__} and {type(targets).__name__} needs "
            msg += f"{model}.count(inputs, targets), the number of elements over which the loss is averaged"
            raise ArgumentError(msg)
        return entries

    def _slice(self, name: str, tree: Any, axis: int, low: int, high: int) -> Any:
        """Return the batch entries ``[low, high)`` of arrays in tuples, lists and mappings."""
        if tree is None:
            return None
        if isinstance(tree, Mapping):
            return {key: self._slice(f"{name}[{key!r}]", part, axis, low, high) for key, part in tree.items()}
        if isinstance(tree, list) and all(isinstance(value, Integral) for value in tree):
            return self._slice(name, np.asarray(tree, dtype=np.int64), axis, low, high)
        if isinstance(tree, tuple | list):
            parts = [self._slice(f"{name}[{k}]", part, axis, low, high) for k, part in enumerate(tree)]
            return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
        axis = 0 if len(_shape(name, tree)) == 1 else axis
        if tree.shape[axis] != self._size:
            msg = f"{name} has shape {tuple(tree.shape)}, expected {self._size} batch entries on axis {axis} "
            msg += "as in inputs; batch_axis= of Shards sets the axis"
            raise ShapeError(msg)
        return tree[low:high, ...] if axis == 0 else tree[:, low:high, ...]


def _bits(digest: str) -> list[int]:
    """Return the first bits of a digest in hexadecimal digits."""
    return [int(digest, 16) >> k & 1 for k in range(HEADER - BATCH)]


def _check_batch(work: Work, bits: np.ndarray, described: str) -> None:
    """Check that all ranks read the same batch; `bits` is the sum of `_bits` over the ranks.

    A sum of bits is exact in float32, and all ranks find the same sum, so all of them raise the error.
    """
    if np.all((bits == 0) | (bits == work.team.size)):
        return
    digests = work.team.together(lambda: described)
    rank = next(k for k, other in enumerate(digests) if other != digests[0])
    msg = f"{work.place} of rank {rank} differs from that of rank 0; every rank must read the same batches "
    msg += "in the same order, for example shuffled by the same seed"
    raise GroupError(msg)


def _shape(name: str, a: Any) -> tuple[int, ...]:
    """Return the shape of an array with at least one axis."""
    shape = tuple(getattr(a, "shape", ()))
    if not shape:
        msg = f"{name} is a {type(a).__name__}; Shards splits arrays with at least one axis, and tuples, "
        msg += "lists and mappings of such arrays"
        raise DTypeError(msg)
    return shape


def _entries(inputs: Any, axis: int) -> int:
    """Return the number of batch entries of the first array of the inputs."""
    first = inputs
    while isinstance(first, tuple | list | Mapping) and len(first):
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    shape = _shape("inputs", first)
    if len(shape) <= axis:
        msg = f"inputs have shape {shape}, but Shards splits axis {axis}; add a batch axis"
        raise ShapeError(msg)
    return int(shape[axis])


def _fill(flat: np.ndarray, loss: Any, grads: Mapping[str, tuple[Array, Array]]) -> None:
    """Write a loss and the parameter gradients into one array."""
    flat[LOSS] = float(loss)
    at = HEADER
    for name, (g, a) in grads.items():
        if g.shape != a.shape:
            msg = f"the gradient of {name!r} has shape {tuple(g.shape)}, expected {tuple(a.shape)}"
            raise ShapeError(msg)
        size = math.prod(a.shape)
        flat[at : at + size] = _array.to_numpy(_array.widen(g)).reshape(-1)
        at += size


def _grads(flat: np.ndarray, params: Mapping[str, Array]) -> Grads:
    """Return the gradients of one flat array by name, on the device of the parameters."""
    made: Grads = {}
    at = HEADER
    for name, a in params.items():
        size, xp = math.prod(a.shape), _array.namespace(a, name)
        wide = _array.dtype_name(_array.wide_dtype(xp, a.dtype))
        made[name] = _array.asarray(flat[at : at + size].reshape(a.shape).astype(wide), xp, _array.device(a))
        at += size
    return made


# The carried state: its second-last axis is the batch.


def _check_state(state: Any, entries: int) -> tuple[np.ndarray, ...]:
    """Return a state on the host, and check its number of batch entries."""
    parts = parts_of(state)
    for k, a in enumerate(parts):
        shape = tuple(a.shape)
        if len(shape) < 2 or shape[-2] != entries:
            msg = f"state[{k}] has shape {shape}, expected (..., {entries}, H) to split the carried state"
            raise ShapeError(msg)
    return tuple(map(_array.to_numpy, parts))


def _join_states(team: Team, states: list[Any], like: Array) -> State:
    """Join the states of all ranks in rank order, on the device of `like`."""
    every = [part for content in team.share(_serialise(states)) for part in _deserialise(content)]
    if not every:
        return None
    xp, device = _array.namespace(like, "params"), _array.device(like)
    columns = zip(*map(parts_of, every), strict=True)
    return with_parts(every[0], (_array.asarray(np.concatenate(c, -2), xp, device) for c in columns))


def _serialise(states: list[Any]) -> bytes:
    """Serialise states as a line that describes the arrays, followed by their elements."""
    arrays = [parts_of(state) for state in states]
    described = [
        [isinstance(state, tuple), [[_array.dtype_name(a.dtype), a.shape] for a in parts]]
        for state, parts in zip(states, arrays, strict=True)
    ]
    elements = [_array.to_numpy(a).tobytes() for parts in arrays for a in parts]
    return b"".join([json.dumps(described).encode(), b"\n", *elements])


def _deserialise(content: bytes) -> list[Any]:
    """Undo `_serialise`."""
    line, _, elements = content.partition(b"\n")
    states, at = list[Any](), 0
    for is_tuple, described in json.loads(line):
        state = []
        for name, shape in described:
            dtype = np.dtype(_array.dtype_from_name(np, name))
            size = math.prod(shape)
            state.append(np.frombuffer(elements, dtype, size, at).reshape(shape))
            at += size * dtype.itemsize
        states.append(tuple(state) if is_tuple else state[0])
    return states
