"""Launch the kernels of training.cu: updates, clipping, cross-entropy, random masks and embedding gradients.

Each public function has the name of a generic function that `xplstm._array.part` marks, and takes its
arguments without the namespace. The results are equal up to rounding; updates and masks have the same bits.
All work runs on the arrays' device and CuPy's current stream, without synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from xplstm._array import dtype_from_name, dtype_name
from xplstm._typing import CuPyArray, Device
from xplstm.kernels._cuda import launch
from xplstm.kernels._cuda.launch import CONSTANTS

THREADS, WARP = CONSTANTS.TRAINING_THREADS, CONSTANTS.WARP

# The largest number of arrays of one launch, and of blocks per array.
TABLE, BLOCKS = CONSTANTS.TABLE, 512

# For the norm, the number of elements of a gradient per block, and the largest number of blocks per gradient.
RUN = 4096
RUNS = 256

# The number of blocks that keeps a GPU busy.
BUSY = 2048

UPDATE = launch.fields(
    f"p:{TABLE} g:{TABLE} before:{2 * TABLE} master:{TABLE} "
    f"made:{TABLE} after:{2 * TABLE} copy:{TABLE} size:{TABLE}"
)
# The kind of the float32 copies of half-precision parameters.
MASTER = "master"
PARTS = launch.fields("largest squares first count")
ENTROPY = launch.fields("logits targets mask largest total rows classes")
DRAW = np.dtype(
    [("key", np.uint64, (2,)), *((n, np.uint64) for n in ("t", "stream", "purpose", "threshold", "count"))]
)

Averages = dict[str, dict[str, CuPyArray]]


def update(
    rules: Mapping[str, Any],
    params: Mapping[str, CuPyArray],
    grads: Mapping[str, CuPyArray],
    averages: Averages,
) -> tuple[dict[str, CuPyArray], Averages] | None:
    """Update parameters, with one launch for up to 32 parameters that share a dtype and a rule."""
    if not _supports_all(params, grads, averages):
        return None
    import cupy as cp

    made: dict[str, CuPyArray] = {}
    after: Averages = {kind: {} for kind in averages}
    with next(iter(params.values())).device:
        for name, p in params.items():
            made[name] = cp.empty(p.shape, p.dtype)
            wide = _wide(dtype_name(p.dtype))
            for kind, new in after.items():
                if kind != MASTER or wide != p.dtype:
                    new[name] = cp.empty(p.shape, wide)
        p, g, *before = (_contiguous(arrays) for arrays in (params, grads, *averages.values()))
        columns = {"before": before[:-1], "after": list(after.values())[:-1]}
        columns |= {"p": [p], "g": [g], "made": [made], "master": before[-1:], "copy": [after[MASTER]]}
        for rule in dict.fromkeys(rules.values()):
            for dtype, names in _tables({name: a for name, a in params.items() if rules[name] == rule}):
                table = _table(names, **columns)
                grid = _grid(table, THREADS, BLOCKS)
                numbers = _numbers(_wide(dtype), rule)
                _launch(f"update_{rule.name}", dtype, grid, launch.by_value(table), numbers)
    return made, after


def clip(grads: Mapping[str, CuPyArray], max_norm: float) -> tuple[dict[str, CuPyArray], CuPyArray] | None:
    """Clip gradients, with three launches for up to 32 gradients: largest magnitude, norm, clipping."""
    dtype = dtype_name(next(iter(grads.values())).dtype)
    if not _supports_all(grads, grads, {}) or any(dtype_name(g.dtype) != dtype for g in grads.values()):
        return None
    import cupy as cp

    with next(iter(grads.values())).device:
        made = {name: cp.empty(g.shape, g.dtype) for name, g in grads.items()}
        grads = _contiguous(grads)
        tables = [_table(names, g=[grads], made=[made]) for _, names in _tables(grads)]
        grids = [_grid(table, RUN, RUNS) for table in tables]
        count = sum(math.prod(grid) for grid in grids)
        largest, squares = cp.empty(count, _wide(dtype)), cp.empty(count, _wide(dtype))
        norm = (cp.empty if count else cp.zeros)((), _wide(dtype))
        rounds = {"find_largest": (), "sum_squares": (), "clip": (_numbers(_wide(dtype), [max_norm]), norm)}
        for name, more in rounds.items():
            first = 0
            for table, grid in zip(tables, grids, strict=True):
                parts = launch.struct(PARTS, largest=largest, squares=squares, first=first, count=count)
                _launch(name, dtype, grid, launch.by_value(table), parts, *more, shared=THREADS)
                first += math.prod(grid)
    return made, norm


def cross_entropy(
    logits: CuPyArray, targets: CuPyArray, mask: CuPyArray | None
) -> tuple[CuPyArray, Callable[[CuPyArray | float], CuPyArray]]:
    """Return the loss from one pass over the logits, and a pullback that makes a second pass."""
    import cupy as cp

    dtype, rows, device = dtype_name(logits.dtype), math.prod(logits.shape[:-1]), logits.device
    sizes = {"rows": rows, "classes": logits.shape[-1]}
    threads = min(THREADS, max(WARP, 1 << (sizes["classes"] // 4).bit_length()))
    with device:
        arrays = {
            "logits": cp.ascontiguousarray(logits),
            "targets": cp.ascontiguousarray(targets.astype(np.int64, copy=False)),
            "mask": None if mask is None else cp.ascontiguousarray(mask),
            "largest": cp.empty(rows, _wide(dtype)),
            "total": cp.empty(rows, _wide(dtype)),
        }
        losses, share, mean = (
            cp.empty(shape, kind)
            for shape, kind in ((rows, _wide(dtype)), (1, _wide(dtype)), ((), logits.dtype))
        )
        entropy = launch.struct(ENTROPY, **arrays, **sizes)
        if rows:
            _launch("entropy_of_rows", dtype, (rows,), entropy, losses, threads=(threads,), shared=threads)
        _launch("mean_entropy", dtype, (1,), entropy, losses, share, mean, shared=THREADS)

    def pullback(dloss: CuPyArray | float = 1.0) -> CuPyArray:
        with device:
            scale = (share * dloss).astype(share.dtype, copy=False)
            dlogits, entropy = cp.empty(logits.shape, logits.dtype), launch.struct(ENTROPY, **arrays, **sizes)
            if rows:
                _launch("entropy_gradient", dtype, (rows,), entropy, scale, dlogits, threads=(threads,))
        return dlogits

    return mean, pullback


def scaled_mask(
    shape: tuple[int, ...],
    p: float,
    key: tuple[int, int],
    stream: int,
    dtype: str,
    device: Device,
    purpose: int,
) -> CuPyArray:
    """Draw an array of `shape` whose elements are 0 with probability p, else 1 / (1 - p)."""
    import cupy as cp

    with device:
        out = cp.empty(shape, dtype_from_name(cp, dtype))
        _draw("scaled_mask", dtype, out, p, key, (0, stream, purpose), _numbers(out.dtype, [1 / (1 - p)]))
        return out


def hold_mask(
    shape: tuple[int, ...], p: float, key: tuple[int, int], purpose: int, stream: int, t: int, device: Device
) -> CuPyArray:
    """Draw booleans of `shape`, True with probability p."""
    import cupy as cp

    with device:
        out = cp.empty(shape, np.bool_)
        _draw("hold_mask", "float32", out, p, key, (t, stream, purpose))
        return out


def _draw(
    name: str,
    dtype: str,
    out: CuPyArray,
    p: float,
    key: tuple[int, int],
    counter: tuple[int, int, int],
    *more: np.ndarray,
) -> None:
    """Draw a mask with one thread per four elements; the threshold is exact, in units of 2**-53."""
    if out.size:
        draw = np.array([(key, *counter, math.ceil(p * 2.0**53), out.size)], DRAW)
        _launch(name, dtype, (-(-out.size // (4 * THREADS)),), launch.by_value(draw), *more, out)


def sum_rows(ids: CuPyArray, rows: CuPyArray, count: int) -> CuPyArray:
    """Return an array whose row k is the sum of the `rows` with id k, in a stable order."""
    import cupy as cp

    dtype, (number, columns) = dtype_name(rows.dtype), rows.shape
    with rows.device:
        rows = cp.ascontiguousarray(rows)
        ids = cp.ascontiguousarray(ids.astype(np.int64, copy=False))
        order, starts = ids.argsort(), cp.empty(count + 1, np.int64)
        out = cp.empty((count, columns), rows.dtype)
        _launch("find_starts", dtype, (count // THREADS + 1,), ids, order, number, count, starts)
        grid = count, min(-(-columns // WARP), max(1, BUSY // count))
        arguments = rows, order, starts, columns, out
        _launch("sum_rows", dtype, grid, *arguments, threads=(WARP, THREADS // WARP), shared=THREADS)
        return out


def _supports_all(
    params: Mapping[str, CuPyArray], grads: Mapping[str, CuPyArray], averages: Averages
) -> bool:
    """Return whether all arrays are CuPy's, on one device, with dtypes that the kernels support together."""
    import cupy as cp

    pairs = [(p, g) for name, p in params.items() for g in (p, grads[name])]
    wide = [(params[name], a) for values in averages.values() for name, a in values.items() if name in params]
    return (
        all(isinstance(a, cp.ndarray) for _, a in (*pairs, *wide))
        and len({a.device.id for _, a in (*pairs, *wide)}) == 1
        and all(dtype_name(p.dtype) in launch.SIZES and g.dtype == p.dtype for p, g in pairs)
        and all(dtype_name(a.dtype) == launch.wide(dtype_name(p.dtype)) for p, a in wide)
    )


def _contiguous(arrays: Mapping[str, CuPyArray]) -> dict[str, CuPyArray]:
    import cupy as cp

    return {name: cp.ascontiguousarray(a) for name, a in arrays.items()}


def _tables(arrays: Mapping[str, CuPyArray]) -> Iterator[tuple[str, list[str]]]:
    """Yield a dtype and names of nonempty arrays of this dtype, at most TABLE at a time."""
    for dtype in launch.SIZES:
        names = [name for name, a in arrays.items() if a.size and dtype_name(a.dtype) == dtype]
        for first in range(0, len(names), TABLE):
            yield dtype, names[first : first + TABLE]


def _table(names: list[str], **columns: Iterable[Mapping[str, CuPyArray]]) -> np.ndarray:
    """Return the addresses of the arrays with these names, null for missing arrays, and their sizes."""
    table = np.zeros(1, UPDATE)
    for field, values in columns.items():
        for k, arrays in enumerate(values):
            row = [launch.address(arrays[name]) if name in arrays else 0 for name in names]
            table[field][0, k * TABLE : k * TABLE + len(names)] = row
    table["size"][0, : len(names)] = [next(iter(columns["g"]))[name].size for name in names]
    return table


def _grid(table: np.ndarray, elements: int, blocks: int) -> tuple[int, int]:
    """Return the grid of a table: blocks per array, from its largest array, and the number of arrays."""
    sizes = table["size"][0]
    return min(blocks, -(-int(sizes.max()) // elements)), int(np.count_nonzero(sizes))


def _numbers(dtype: Any, values: Iterable[float]) -> np.ndarray:
    """Return a struct of numbers of one dtype, rounded like Python numbers in an array expression."""
    rounded = np.array(tuple(values), np.float64).astype(dtype)
    return launch.by_value(rounded)


def _wide(dtype: str) -> np.dtype:
    return np.dtype(launch.wide(dtype))


def _launch(
    name: str,
    dtype: str,
    grid: tuple[int, ...],
    *arguments: Any,
    threads: tuple[int, ...] = (THREADS,),
    shared: int = 0,
) -> None:
    """Launch a kernel of training.cu, with shared memory for `shared` sums per block."""
    kernel = launch.kernel("training.cu", name, dtype)
    kernel(grid, threads, arguments, shared_mem=shared * _wide(dtype).itemsize)
