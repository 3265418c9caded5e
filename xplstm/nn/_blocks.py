"""Run layers on Dask arrays, with one task for each chunk of time and batch.

The tasks of one chunk of the batch form a chain that passes the state along time. The parameters stay NumPy
or CuPy arrays, in one node of the graph: each worker unpickles and packs them once. Each task runs the kernel
that `explain` names on one block, so the results have the same bits as one call over the whole array. Two
directions run layer by layer; the backward direction has a second chain from the end of time. Layers and
models without recurrence run block by block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array, _checks, _stack
from xplstm._checks import Home
from xplstm._choice import Chosen, threads
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError
from xplstm._problem import Explanation
from xplstm._stack import Layers, Packed, Stack, _merge
from xplstm._state import LSTMState
from xplstm.cells.params import each
from xplstm.kernels import _steps

LETTERS = "abcdefghijklmnopqrstuvwxy"
"""Axis names for Dask arrays."""


def is_dask(x: Any) -> bool:
    """Return whether `x` is a Dask array."""
    dask = sys.modules.get("dask.array")
    return dask is not None and isinstance(x, dask.Array)


def takes(x: Any, home: Home) -> bool:
    """Return whether a call builds tasks: `x` is a Dask array, but the parameters are not."""
    return is_dask(x) and _array.backend_name(home.xp) != "dask"


def without_empty(x: Any) -> Any:
    """Return `x` with one chunk along each axis of size 0 or 1.

    Dask broadcasts an axis of size 1 even if it has several chunks, and cannot join several chunks of size 0.
    """
    for axis, sizes in enumerate(x.chunks):
        size = sum(sizes)
        if len(sizes) > 1 and size <= 1:
            x = x.blocks[(slice(None),) * axis + (sizes.index(size),)]
    return x


class _Blocks(NamedTuple):
    """The checked, time-major arguments of a call, in the chunks of x."""

    x: Any
    state: tuple[Any, Any] | None
    lengths: Any
    mask: Any
    fresh: Any
    """None, or booleans (D, T, B), True where a direction starts a step from zeros."""
    batched: bool

    @property
    def times(self) -> tuple[int, ...]:
        """Number of steps of each chunk of time."""
        return tuple(self.x.chunks[0])

    @property
    def batches(self) -> tuple[Any, ...]:
        """Number of entries of each chunk of the batch; NaN if Dask does not know the number."""
        return tuple(self.x.chunks[1])

    @property
    def are_widened(self) -> bool:
        """Whether tasks compute half precision in float32, which avoids rounding between chunks of time."""
        return _array.dtype_name(self.x.dtype) in ("float16", "bfloat16") and len(self.times) > 1


def forward(
    stack: Stack, home: Home, layers: Layers, x: Any, state: Any, lengths: Any, mask: Any, reset: Any
) -> tuple[Any, LSTMState]:
    """Return y in the chunks of x and the final state in the batch chunks of x, both lazily."""
    import dask.array as da

    blocks = _enter(stack, home, x, state, lengths, mask, reset)
    if len(stack.reverse) == 2 or blocks.are_widened:
        y, ends = _layer_by_layer(stack, layers, blocks)
    else:
        y, ends = _run(stack._replace(batch_first=False), layers, blocks, blocks.state)
    # Unknown chunk sizes agree, because all parts have the batch chunks of x.
    h, c = (da.concatenate(parts, axis=0, allow_unknown_chunksizes=True) for parts in zip(*ends, strict=True))
    if not blocks.batched:
        axis = 2 if stack.merge == "none" else 1
        return y[(slice(None),) * axis + (0,)], LSTMState(h[:, 0], c[:, 0])
    if stack.batch_first:
        y = da.swapaxes(y, -3, -2)
    return y, LSTMState(h, c)


def explain(
    stack: Stack, home: Home, layers: Layers, x: Any, lengths: Any, mask: Any, reset: Any
) -> Explanation:
    """Return which kernel would run the largest block of x."""
    blocks = _enter(stack, home, x, None, lengths, mask, reset)
    # Unknown sizes of chunks are NaN.
    batch = int(max((n for n in blocks.batches if n == n), default=1))
    sizes = max(blocks.times, default=0), batch, stack.input_size
    if blocks.are_widened:
        home, layers = home._replace(dtype="float32"), _wide(layers)
    dtype = _array.dtype_from_name(home.xp, home.dtype)
    block = home.xp.zeros(sizes, dtype=dtype, device=home.device)
    T, B, _ = sizes
    steps = None if lengths is None else np.zeros(B, dtype=np.int32)
    flags = home.xp.zeros((T, B), dtype=home.xp.bool, device=home.device)
    holes, resets = (None if given is None else flags for given in (mask, reset))
    stack = stack._replace(batch_first=False)
    call = _stack.enter(stack, home, block, None, steps, holes, resets)
    return _stack.explain(stack, call, layers)


def _enter(stack: Stack, home: Home, x: Any, state: Any, lengths: Any, mask: Any, reset: Any) -> _Blocks:
    """Check every argument, and convert it to (T, B, .) in chunks that match x."""
    import dask.array as da

    x, batched = without_empty(x), x.ndim != 2
    if x.ndim not in (2, 3) or x.shape[-1] != stack.input_size:
        msg = f"x has shape {x.shape}, expected (T, B, {stack.input_size}): the last axis is input_size"
        raise ShapeError(msg)
    check_kind("x", x, home, home.dtype)
    x = x.astype(_array.dtype_from_name(home.xp, home.dtype))  # bytes of x may be in another order
    x = x if batched else x[:, None, :]
    x = da.swapaxes(x, 0, 1) if batched and stack.batch_first else x
    x = x.rechunk({2: -1})
    check_time(x)
    if lengths is not None and mask is not None:
        msg = "lengths and mask were both passed; pass only one of them"
        raise ArgumentError(msg)
    T, B = x.shape[0], x.shape[1]
    if mask is not None:
        mask = _flags("mask", stack, mask, x, batched)
    if lengths is not None:
        lengths = _lengths(home, lengths, x, T, B)
    fresh = None
    if reset is not None:
        fresh = _fresh(stack, _flags("reset", stack, reset, x, batched), lengths, mask)
    return _Blocks(x, states(stack, home, state, x, batched), lengths, mask, fresh, batched)


def check_kind(name: str, a: Any, home: Home, dtype: str) -> None:
    """Raise an error if the chunks and the parameters differ in library or dtype."""
    xp = _array.namespace(a._meta, name)
    if xp is not home.xp:
        ours, theirs = _array.backend_name(xp), _array.backend_name(home.xp)
        msg = (
            f"{name} has {ours} chunks, but the parameters are {theirs} arrays; "
            f"move the parameters with to(xp={ours!r})"
        )
        raise BackendError(msg)
    given = _array.dtype_name(a.dtype)
    if given != dtype:
        msg = f"{name} has dtype {given}, expected {dtype}; convert it with {name}.astype({dtype!r})"
        raise DTypeError(msg)


def existing(x: Any, lengths: Any) -> Any:
    """Return booleans (T, B) in the chunks of `x` (T, B, ...), True where a batch entry has a step."""
    import dask.array as da

    x = without_empty(x)
    check_time(x)
    numpy = Home(_array.numpy_namespace(), "cpu", "float32")
    lengths = _lengths(numpy, lengths, x, x.shape[0], x.shape[1])
    return da.arange(x.shape[0], chunks=(x.chunks[0],))[:, None] < lengths[None, :]


def check_time(x: Any) -> None:
    """Raise an error for chunks of unknown size along the first axis."""
    if any(n != n for n in x.chunks[0]):
        msg = "x has chunks of unknown size along time; call x.compute_chunk_sizes() first"
        raise ShapeError(msg)


def _lengths(home: Home, lengths: Any, x: Any, T: int, B: Any) -> Any:
    """Return lengths as a Dask array in the batch chunks; a list or NumPy array is checked immediately."""
    import dask.array as da

    if not isinstance(lengths, da.Array):
        if B != B:
            msg = "lengths must be a Dask array in the batch chunks of x, whose sizes are unknown"
            raise ShapeError(msg)
        numpy = Home(_array.numpy_namespace(), "cpu", home.dtype)
        entries = [lengths] if isinstance(lengths, int) else lengths
        lengths = da.from_array(_array.to_numpy(_checks.lengths(entries, numpy, T, B)), chunks=-1)
    else:
        _array.check_integers("lengths", lengths)
        lengths = lengths.map_blocks(_within, T, dtype=lengths.dtype, meta=lengths._meta)
    return align("lengths", lengths, (x.shape[1],), (x.chunks[1],))


def _within(lengths: Any, T: int) -> Any:
    """Return the lengths of a block, which must be in [0, T]."""
    host = _array.to_numpy(lengths)
    for wrong in host[(host < 0) | (host > T)][:1]:
        msg = f"lengths contains {wrong}, which is not in [0, T={T}]"
        raise ArgumentError(msg)
    return lengths


def _flags(name: str, stack: Stack, flags: Any, x: Any, batched: bool) -> Any:
    """Return a mask or resets as a time-major Dask array in the chunks of x."""
    import dask.array as da

    flags = flags if isinstance(flags, da.Array) else da.asarray(flags)
    if flags.dtype != bool:
        msg = f"{name} has dtype {flags.dtype}, expected bool ({_checks.FLAGS[name]})"
        raise DTypeError(msg)
    flags = flags if batched else flags[:, None]
    flags = da.swapaxes(flags, 0, 1) if batched and stack.batch_first else flags
    return align(name, flags, x.shape[:2], x.chunks[:2])


def _fresh(stack: Stack, reset: Any, lengths: Any, mask: Any) -> Any:
    """Return where each direction starts from zeros, computed over all steps of each batch chunk."""
    import dask.array as da

    xp, T = _array.numpy_namespace(), reset.shape[0]
    valid = (lengths, "b") if mask is None else (mask.rechunk({0: -1}), "tb")

    def find(flags: Any, *given: Any) -> Any:
        known = (_array.to_numpy(a) for a in given)
        exists = _steps.existing(xp, "lengths" if mask is None else "mask", next(known, None), T, "cpu")
        return _steps.fresh(xp, _array.to_numpy(flags), exists, stack.reverse)

    found = da.blockwise(
        *(find, "dtb", reset.rechunk({0: -1}), "tb", *(() if valid[0] is None else valid)),
        new_axes={"d": len(stack.reverse)},
        dtype=bool,
        align_arrays=False,
        meta=np.zeros((0, 0, 0), dtype=bool),
    )
    return found.rechunk({1: reset.chunks[0]})


def states(stack: Stack, home: Home, state: Any, x: Any, batched: bool) -> tuple[Any, Any] | None:
    """Return h and c as Dask arrays (L*D, B, .) in the batch chunks of `x`."""
    if state is None:
        return None
    rows = stack.num_layers * len(stack.reverse)
    sizes = (stack.output_size, stack.cell.cell_size(stack.hidden_size))
    arrays = []
    for name, a, n in zip(("h_0", "c_0"), _checks.state("state", state), sizes, strict=True):
        whole = a if batched or not hasattr(a, "ndim") else a[:, None, ...]
        arrays.append(in_batches(name, whole, home, (rows, x.shape[1], n), x))
    return arrays[0], arrays[1]


def in_batches(name: str, a: Any, home: Home, shape: tuple[int, Any, int], x: Any) -> Any:
    """Check an array (N, B, .) and return it as a Dask array in the batch chunks of `x`."""
    import dask.array as da

    if not isinstance(a, da.Array):
        where = (shape[0], "B" if shape[1] != shape[1] else shape[1], shape[2])
        a = da.from_array(_checks.array(name, a, home, where), chunks=-1)
    check_kind(name, a, home, home.dtype)
    return align(name, a, shape, ((shape[0],), x.chunks[1], (shape[2],)))


def align(name: str, a: Any, shape: tuple[Any, ...], chunks: tuple[Any, ...]) -> Any:
    """Return `a` in these chunks, checked for its shape; unknown sizes need the same number of chunks."""
    a = without_empty(a)
    known = all(n == n for sizes in chunks for n in sizes) and all(n == n for n in a.shape)
    if a.ndim != len(shape) or (known and a.shape != tuple(shape)):
        msg = f"{name} has shape {a.shape}, expected {tuple(shape)}"
        raise ShapeError(msg)
    if known:
        return a.rechunk(chunks) if a.chunks != tuple(chunks) else a
    if a.numblocks != tuple(len(sizes) for sizes in chunks):
        wanted = tuple(map(len, chunks))
        msg = f"{name} has {a.numblocks} chunks of unknown size, expected {wanted} chunks, like x"
        raise ShapeError(msg)
    return a


def _wide(layers: Layers) -> Layers:
    """Return the parameters of all layers in float32."""
    return tuple(tuple(each(_array.widen, p) for p in directions) for directions in layers)


def _layer_by_layer(stack: Stack, layers: Layers, blocks: _Blocks) -> tuple[Any, list[tuple[Any, Any]]]:
    """Run a chain of tasks for each direction of each layer, and merge the blocks of two directions."""
    ends: list[tuple[Any, Any]] = []
    y: Any = blocks.x
    for layer, directions in enumerate(layers):
        ys = []
        for d, params in enumerate(directions):
            row = layer * len(directions) + d
            start = None if blocks.state is None else tuple(a[row : row + 1] for a in blocks.state)
            fresh = None if blocks.fresh is None else blocks.fresh[d : d + 1]
            one = stack._replace(
                num_layers=1,
                input_size=stack.layer_input(layer),
                reverse=(stack.reverse[d],),
                cell=stack.cell.direction(d),
                merge="concat",
                batch_first=False,
            )
            y_d, ends_d = _run(one, ((params,),), blocks._replace(x=y, fresh=fresh), start)
            ys.append(y_d)
            ends += ends_d
        y = ys[0] if len(ys) == 1 else _merge_directions(stack, ys, last=layer == stack.num_layers - 1)
    return y, ends


def _merge_directions(stack: Stack, ys: list[Any], last: bool) -> Any:
    """Merge both directions into the layer's output."""
    import dask.array as da

    apart = stack.merge == "none" and last
    axes, sizes = ("dtbo", {"d": 2, "o": stack.output_size}) if apart else ("tbo", {"o": stack.width})
    pairs = [part for y in ys for part in (y, "tbf")]
    return da.blockwise(
        *(_join, axes, *pairs),
        merge=None if apart else "concat" if stack.merge == "none" else stack.merge,
        new_axes=sizes,
        concatenate=True,
        align_arrays=False,
        dtype=ys[0].dtype,
        meta=_array.namespace(ys[0]._meta, "y").empty((0,) * len(axes), dtype=ys[0].dtype),
    )


def _join(*ys: Any, merge: str | None) -> Any:
    """Merge the outputs of both directions, or stack them on a first axis if `merge` is None."""
    xp = _array.namespace(ys[0], "y")
    return xp.stack(ys) if merge is None else _merge.forward(merge, xp.concat(ys, axis=-1))


def _run(
    stack: Stack, layers: Layers, blocks: _Blocks, start: tuple[Any, Any] | None
) -> tuple[Any, list[tuple[Any, Any]]]:
    """Run one direction by a chain of tasks along time for each batch chunk."""
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    x = blocks.x
    fresh = None if blocks.fresh is None else blocks.fresh[0]
    given = [a for a in (x, *(start or ()), blocks.lengths, blocks.mask, fresh) if a is not None]
    arrays = [None if a is None else _array.to_numpy(a) for layer in layers for p in layer for a in p]
    token = tokenize(stack, arrays, *(a.name for a in given))
    model, run = f"lstm-model-{token}", f"lstm-{token}"
    graph: dict[Any, Any] = {model: Packed(stack, None, _wide(layers) if blocks.are_widened else layers)}
    bounds = np.concatenate([[0], np.cumsum(blocks.times)]).astype(int).tolist()
    order = range(len(blocks.times))[:: -1 if stack.reverse[0] else 1]
    for b in range(len(blocks.batches)):
        before: Any = None if start is None else [(a.name, 0, b, 0) for a in start]
        for t in order:
            exists: Any = None
            if blocks.lengths is not None:
                exists = (blocks.lengths.name, b)
            elif blocks.mask is not None:
                exists = (blocks.mask.name, t, b)
            resets = None if fresh is None else (fresh.name, t, b)
            graph[run, t, b] = (_block, model, (x.name, t, b, 0), before, exists, bounds[t], resets)
            before = (run, t, b)
    base = HighLevelGraph.from_collections(run, graph, dependencies=given)
    last = order[-1] if len(order) else None

    def array(part: str, keys: Iterator[tuple[Any, Any]], chunks: tuple[Any, ...]) -> Any:
        name = f"lstm-{part}-{token}"
        named = {(name, *key): task for key, task in keys}
        layered = {**base.layers, name: named}
        return da.Array(
            HighLevelGraph(layered, {**base.dependencies, name: {run}}), name, chunks=chunks, meta=x._meta
        )

    times, batches = range(len(blocks.times)), range(len(blocks.batches))
    width, rows = stack.width, stack.num_layers
    y = array(
        "y",
        (((t, b, 0), (_part, (run, t, b), 0)) for t in times for b in batches),
        (blocks.times, blocks.batches, (width,)),
    )
    sizes = (stack.output_size, stack.cell.cell_size(stack.hidden_size))
    ends = [
        array(
            letter,
            (((0, b, 0), (_part, (run, last, b), k)) for b in batches),
            ((rows,), blocks.batches, (n,)),
        )
        for k, letter, n in zip((1, 2), "hc", sizes, strict=True)
    ]
    return y, [(ends[0], ends[1])]


def _block(model: Packed, x: Any, before: Any, exists: Any, first: int, fresh: Any) -> tuple[Any, Any, Any]:
    """Run one block from the previous block's state or the initial state; return y, h and c."""
    dtype = model._where.dtype
    state = None if before is None else LSTMState(*(_array.narrow(a, dtype) for a in before[-2:]))
    lengths = mask = None
    if exists is not None and exists.ndim == 2:
        mask = exists
    elif exists is not None:
        lengths = np.clip(_array.to_numpy(exists).astype(np.int64) - first, 0, x.shape[0])
    # Dask already runs several tasks in parallel threads.
    with Chosen(threads, 1):
        y, end = model._run(_array.narrow(x, dtype), state, lengths, mask, fresh)
    return _array.narrow(y, _array.dtype_name(x.dtype)), end.h, end.c


def _part(parts: tuple[Any, Any, Any], k: int) -> Any:
    """Return one of the results of a block."""
    return _array.narrow(parts[k], _array.dtype_name(parts[0].dtype))


def layer(module: Any, home: Home, name: str, x: Any, features: int, width: int) -> Any:
    """Apply a layer to the last axis of each block of `x`."""
    if not x.ndim or x.shape[-1] != features:
        msg = f"{name} has shape {x.shape}, expected (..., {features})"
        raise ShapeError(msg)
    check_kind(name, x, home, home.dtype)
    axes = LETTERS[: x.ndim]
    work, out = type(module).__call__, axes[:-1] + "z"
    return apply(work, out, {"z": width}, x.dtype, (x, axes), model=module)


def lookup(module: Any, home: Home, ids: Any, width: int) -> Any:
    """Look up the vectors of the ids of each block; the task of a block checks the range of its ids."""
    _array.check_integers("ids", ids)
    check_kind("ids", ids, home, _array.dtype_name(ids.dtype))
    axes, dtype = LETTERS[: ids.ndim], _array.dtype_from_name(home.xp, home.dtype)
    work = type(module).__call__
    return apply(work, axes + "z", {"z": width}, dtype, (ids, axes), model=module)


def on_last_axis(work: Callable[[Any], Any], x: Any, dtype: Any, *, keep: bool) -> Any:
    """Apply `work` to each block of `x`, whose last axis is one chunk; `work` keeps that axis if `keep`."""
    axes = LETTERS[: x.ndim]
    return apply(work, axes if keep else axes[:-1], {}, dtype, (x, axes))


def apply(
    work: Callable[..., Any],
    out: str,
    sizes: Mapping[str, int],
    dtype: Any,
    *arrays: tuple[Any, str],
    model: Any = None,
) -> Any:
    """Apply ``work(*blocks)``, or ``work(model, *blocks)``, lazily to Dask arrays whose axes are letters.

    Blocks along axes that are not in `out` are concatenated. `sizes` are the sizes of new axes. The graph
    contains one copy of `model`, which later changes of the parameters do not affect. The result is in
    native byte order.
    """
    import dask.array as da
    from dask.base import tokenize
    from dask.delayed import delayed

    given, dtype = {}, np.dtype(dtype).newbyteorder("=")
    if model is not None:
        owned = model._duplicate()
        given = {"model": delayed(owned, name=f"xplstm-model-{tokenize(owned)}", traverse=False)}
    parts = [part for a, axes in arrays for part in (without_empty(a), axes)]
    return da.blockwise(
        *(_apply, out, *parts),
        work=work,
        **given,
        new_axes=dict(sizes),
        concatenate=True,
        align_arrays=False,
        dtype=dtype,
        meta=_array.namespace(arrays[0][0]._meta, "x").empty((0,) * len(out), dtype=dtype),
    )


def finite(x: Any, exists: Any, remedy: str) -> Any:
    """Return `x` lazily, with a check in each chunk that all values are finite."""
    axes = LETTERS[: x.ndim]
    given = [(x, axes)] if exists is None else [(x, axes), (exists, axes[:2])]
    return apply(partial(_finite_block, remedy), axes, {}, x.dtype, *given)


def _finite_block(remedy: str, x: Any, exists: Any = None) -> Any:
    """Return a chunk, checked to be finite; an error names the position in the chunk."""
    _checks.finite("a chunk of x", x, remedy, exists)
    return x


def _apply(*blocks: Any, work: Callable[..., Any], model: Any = None) -> Any:
    """Run one task on one thread, because Dask already runs several tasks in parallel threads."""
    with Chosen(threads, 1):
        return _array.native(work(*blocks) if model is None else work(model, *blocks))
