"""Run the trials of one kernel and data type, in a process of `prove` that may hang or crash.

The process prints one JSON object per line: the properties of the device, the name of each trial before it
starts, and the outcome. All memory that CuPy allocates is filled with NaN.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from xplstm import DTypeError, Embedding, LSTMState, _array, _dispatch, losses, optim, use_kernel
from xplstm._problem import Problem
from xplstm.cells import masks
from xplstm.cells.lstm import STANDARD
from xplstm.cli import fit, published
from xplstm.kernels import cupy_block, cupy_fused, cupy_persistent
from xplstm.kernels._cuda import launch, partitions, proof, trials
from xplstm.kernels._cuda.partitions import STEP_OF_K, Plan
from xplstm.kernels._cuda.trials import BOTH, Engine, Shape

KINDS = tuple(launch.KINDS)
SUBJECTS = {"cupy_block": KINDS, "cupy_persistent": KINDS, "cupy_fused": KINDS, "training": ("all",)}
"""Subjects of the trials: each kernel for each data type, and the parts of training."""

FIT = "fit"
"""Name of the measurement of device costs, which needs kernels that passed."""
IDENTITY = "identity"
"""Name of the subject that only prints the properties of the device."""

LAUNCHES = 200
"""Number of repetitions that must have the same bits."""
LONG = 4096
"""Steps of the long sequence."""
BUSY = 0.2
"""Seconds for which other work occupies half of the multiprocessors."""
RANDOM = (
    Shape(T=5, B=4, I=3, H=6, reverse=BOTH, valid="lengths"),
    Shape(T=4, B=33, I=7, H=65, valid="mask"),
    Shape(T=3, B=2, I=5, H=130, bias=False),
    Shape(T=1, B=1, I=1, H=1),
    Shape(T=6, B=64, I=16, H=256, reverse=BOTH),
)
REPEATED = Shape(T=20, B=16, I=8, H=72, reverse=BOTH, valid="lengths")

Trials = dict[str, Callable[[], "str | None"]]


def run(kernel: str, kind: str, number: int) -> int:
    """Print the outcome of the trials of a kernel on the device `number`."""
    xp = _array.named_namespace("cupy")
    import cupy as cp

    device = cp.cuda.Device(number)
    key = proof.identity(number)
    dtype = "float32" if kind in ("tf32", "all", FIT, IDENTITY) else kind
    like = Problem(xp, "cupy", device, dtype, 1, 1, 1, 1, 0, True, (False,), "all", True, STANDARD)
    like = like._replace(precision="tf32" if kind == "tf32" else None)
    with device, poison_memory(cp):
        say(begun=key)
        made: Trials = MAKERS[kernel](cp, like, kind)
        for name, trial in made.items():
            say(trial=name)
            try:
                reason = trial()
            except (MemoryError, DTypeError) as error:  # out of device memory, or bfloat16 without ml_dtypes
                say(not_run=f"{type(error).__name__}: {error}")
                return 0
            if reason is not None:
                say(failed=f"{name}: {reason}")
                return 0
    say(passed=True)
    return 0


def say(**line: Any) -> None:
    """Print one line of JSON and flush it, since a crash may follow."""
    print(json.dumps(line), flush=True)


@contextlib.contextmanager
def poison_memory(cp: Any) -> Iterator[None]:
    """Fill all memory that CuPy allocates with bytes that are NaN in every float type."""
    pool = cp.get_default_memory_pool()

    def allocate(size: int) -> Any:
        memory = pool.malloc(size)
        if size:
            memory.memset_async(0xFF, size)
        return memory

    with cp.cuda.using_allocator(allocate):
        yield


def reference() -> Engine:
    """Return the reference kernel as an engine."""
    return engine_of(_dispatch.load("reference"))


def fused(_: Any, like: Problem, kind: str) -> Trials:  # noqa: ARG001 - one signature
    """Return the trials of the fused kernel, which has no synchronisation between blocks."""
    engine = engine_of(cupy_fused)
    shapes = (*trials.CHECKED, *trials.PROJECTED, *RANDOM)
    return {"random problems": lambda: trials.check(engine, reference(), like, shapes)}


def block(cp: Any, like: Problem, kind: str) -> Trials:
    """Return the trials of the walks in one block, which has no synchronisation between blocks."""
    engine, chip = engine_of(cupy_block), partitions.chip_of(like.device)
    return {
        "every kind of partition": lambda: every_cut(cp, like, kind, chip, alone=True),
        "random problems": lambda: trials.check(engine, reference(), like, cupy_block.check_shapes(like)),
    }


def engine_of(kernel: ModuleType | _dispatch.Kernel) -> Engine:
    """Return a kernel, or its module, as an engine."""
    return Engine(kernel.prepare, kernel.forward, kernel.backward)


def persistent(cp: Any, like: Problem, kind: str) -> Trials:
    """Return the trials of the persistent kernel, whose blocks wait for each other."""
    engine, chip = engine_of(cupy_persistent), partitions.chip_of(like.device)
    found: Trials = {}
    if kind not in STEP_OF_K:
        found["recorded bits"] = lambda: every_record(cp, like)
    found |= {
        "every kind of partition": lambda: every_cut(cp, like, kind, chip),
        "random problems": lambda: trials.check(engine, reference(), like, RANDOM),
        f"{LAUNCHES} launches": lambda: same_bits(cp, like, kind, contextlib.nullcontext, LAUNCHES),
        f"{LONG} steps": lambda: trials.check(engine, reference(), like, [Shape(T=LONG, B=4, I=3, H=40)]),
        "two streams": lambda: two_streams(cp, like, kind),
        "next to other work": lambda: same_bits(cp, like, kind, lambda: occupy_device(cp, like.device), 5),
    }
    return found


def cut_shapes(kind: str) -> tuple[Shape, ...]:
    """Return shapes with several tiles, groups and k blocks, and with weights that exceed the registers."""
    if kind not in STEP_OF_K:
        return (
            Shape(T=3, B=11, I=5, H=29, reverse=BOTH, valid="lengths"),
            Shape(T=2, B=35, I=3, H=133, valid="lengths"),
            Shape(T=3, B=21, I=3, H=7),
        )
    in_registers = partitions.THREADS // partitions.WARP * STEP_OF_K[kind]
    return (
        Shape(T=3, B=35, I=5, H=23, valid="lengths"),
        Shape(T=2, B=19, I=3, H=4 * in_registers + 8, valid="mask"),
        Shape(T=2, B=3, I=2, H=16 * in_registers + 8),
    )


def shapes_alone() -> tuple[Shape, ...]:
    """Return shapes for every entry of the walks in one block, with several tiles and groups."""
    per_entry = partitions.THREADS // partitions.WARP * partitions.WARP_UNITS[0]
    return (
        Shape(T=3, B=35, I=5, H=min(23, per_entry - 1), reverse=BOTH, valid="lengths"),
        Shape(T=2, B=19, I=3, H=per_entry + 6, valid="mask"),
    )


def cuts(chip: partitions.Chip, shape: Shape, kind: str, backward: bool, alone: bool = False) -> list[Plan]:
    """Return a plan for each combination of kernel entry and plan parameters."""
    cases: dict[Any, Plan] = {}
    sizes = chip, len(shape.reverse), shape.B, shape.H, kind
    for p in partitions.plans(*sizes, backward, partitions.COSTS, alone):
        rest = kind in STEP_OF_K and partitions.slice_steps(p, shape.H, kind, backward).rest > 0
        properties = (
            p.units if kind in STEP_OF_K else p.tile_rows,
            p.unit_blocks > 1,
            p.passes > 1,
            p.passes > 1 and p.tiles * p.tile_rows * p.units % partitions.THREADS > 0,
            p.tiles > 1,
            p.groups > 1 and p.groups * p.rows > shape.B,
            p.unit_blocks > 1 and p.unit_blocks * p.units > shape.H,
            0 < p.chunk < 4 * shape.H,
            rest,
        )
        cases.setdefault(properties, p)
    return list(cases.values())


def with_plans(forward: Plan, backward: Plan) -> Engine:
    """Return the kernel that runs these plans."""
    kernel: ModuleType = cupy_block if forward.alone else cupy_persistent
    run_forward, run_backward = partial(kernel.forward, plan=forward), partial(kernel.backward, plan=backward)
    return Engine(kernel.prepare, run_forward, run_backward)


def every_cut(cp: Any, like: Problem, kind: str, chip: partitions.Chip, alone: bool = False) -> str | None:
    """Compare each kind of plan with the reference, and the outputs of all plans bit by bit."""
    for shape in shapes_alone() if alone else cut_shapes(kind):
        problem = trials.problem_of(shape, like, kind)
        inputs = trials.draw_inputs(shape, problem.dtype)
        want, there = trials.answers(reference(), problem, inputs), trials.each_array(inputs, cp.asarray)
        plans = [cuts(chip, shape, kind, backward, alone) for backward in (False, True)]
        first: dict[str, bytes] = {}
        for n in range(max(map(len, plans)) if all(plans) else 0):
            pair = [each[n % len(each)] for each in plans]
            got = trials.results(with_plans(*pair), problem, there)
            reason = trials.difference(got, want, trials.tolerance(shape, kind))
            outputs = {name: cp.asnumpy(got[name]).tobytes() for name in ("y", "h_n", "c_n")}
            first = first or outputs
            reason = reason or next((f"bits of {at}" for at, b in outputs.items() if b != first[at]), None)
            if reason is not None:
                cut = ", ".join(f"{name} {value}" for name, value in pair[0].fields().items())
                back = ", ".join(f"{name} {value}" for name, value in pair[1].fields().items())
                return f"{reason}; T={shape.T}, B={shape.B}, H={shape.H}; forward {cut}; backward {back}"
    return None


def same_bits(
    cp: Any,
    like: Problem,
    kind: str,
    beside: Callable[[], contextlib.AbstractContextManager[Any]],
    count: int,
) -> str | None:
    """Run one problem repeatedly, and check that every result has the bits of the first."""
    problem = trials.problem_of(REPEATED, like, kind)
    there = trials.each_array(trials.draw_inputs(REPEATED, problem.dtype), cp.asarray)
    engine = engine_of(cupy_persistent)
    first = host_bytes(cp, trials.results(engine, problem, there))
    for n in range(count):
        with beside():
            got = host_bytes(cp, trials.results(engine, problem, there))
        for name, value in first.items():
            if got[name] != value:
                return f"{name} has different bits in run {n + 2}"
    return None


def host_bytes(cp: Any, found: dict[str, Any]) -> dict[str, bytes]:
    """Return the bytes of all arrays."""
    return {name: cp.asnumpy(a).tobytes() for name, a in found.items()}


@contextlib.contextmanager
def occupy_device(cp: Any, device: Any) -> Iterator[None]:
    """Keep half of the multiprocessors busy, from another stream."""
    chip = partitions.chip_of(device)
    kernel = launch.kernel("trial.cu", "occupy", "float32")
    kernel.max_dynamic_shared_size_bytes = chip.shared
    other = cp.cuda.Stream(non_blocking=True)
    with other:
        kernel((max(1, chip.processors // 2),), (32,), (int(BUSY * 1e9),), shared_mem=chip.shared)
    yield
    other.synchronize()


def two_streams(cp: Any, like: Problem, kind: str) -> str | None:
    """Run one problem on two streams at the same time."""
    problem = trials.problem_of(REPEATED, like, kind)
    there = trials.each_array(trials.draw_inputs(REPEATED, problem.dtype), cp.asarray)
    engine = engine_of(cupy_persistent)
    first = host_bytes(cp, trials.results(engine, problem, there))
    streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
    for _ in range(10):
        outputs = []
        for stream in streams:
            with stream:
                outputs.append(trials.results(engine, problem, there))
        for stream, got in zip(streams, outputs, strict=True):
            stream.synchronize()
            other = next((at for at, b in host_bytes(cp, got).items() if b != first[at]), None)
            if other is not None:
                return f"{other} has bits that differ from those on one stream"
    return None


def every_record(cp: Any, like: Problem) -> str | None:
    """Compare output bits with those in the specification, with and without residuals."""
    for name, record in published.RECORDS.items():
        given, mask = published.inputs(name, like.dtype), record.mask
        shape = Shape(*record[:4], valid="mask" if mask else "all", bias=record.bias)
        params, x, h_0, c_0 = trials.each_array(given, cp.asarray)
        valid = None if mask is None else cp.asarray(np.asarray(mask))
        for keep in (True, False):
            problem = trials.problem_of(shape, like, like.dtype, keep)._replace(reproducible=True)
            packed = cupy_persistent.prepare(problem, (params,))
            y, end, _ = cupy_persistent.forward(problem, packed, x, LSTMState(h_0[None], c_0[None]), valid)
            if published.digest(*map(cp.asnumpy, (y, *end))) != published.DIGESTS[like.dtype][name]:
                return f"the outputs of {name} do not have the bits in the specification"
    return None


def training(cp: Any, like: Problem, kind: str) -> Trials:  # noqa: ARG001 - one signature
    """Return the trials of the parts of training, one for each data type."""

    def trial(dtype: str) -> Callable[[], str | None]:
        return lambda: training_differs(like.xp, like.device, dtype)

    return {dtype: trial(dtype) for dtype in launch.SIZES}


def training_differs(xp: Any, device: Any, dtype: str) -> str | None:
    """Return the part of training whose results differ from those of generic NumPy code, or None."""
    with use_kernel("cupy_fused"):
        got = steps_of_training(xp, device, dtype)
    with use_kernel("reference"):
        want = steps_of_training(_array.numpy_namespace(), "cpu", dtype)
    for name, value in want.items():
        found, exact = (_array.to_numpy(a) for a in (got[name], value))
        if name.startswith(("update", "mask")):
            if found.tobytes() != exact.tobytes():
                return f"{name} does not have the bits of generic code"
            continue
        off = np.abs(found.astype(np.float64) - exact.astype(np.float64)).max(initial=0)
        bound = trials.ULPS * 2.0 ** -min(trials.BITS[dtype], 24) * max(1.0, float(np.abs(exact).max()))
        if not off <= bound:
            return f"{name} has an error of {off:.3g}; at most {bound:.3g} is allowed"
    return None


def steps_of_training(xp: Any, device: Any, dtype: Any) -> dict[str, Any]:
    """Return the results of each part of training for the same numbers."""
    rng = np.random.default_rng(3)
    outputs: dict[str, Any] = {}

    def numbers(*sizes: int) -> Any:
        return _array.asarray(rng.normal(size=sizes), xp, device, dtype)

    rules = {"SGD": optim.SGD(0.3), "momentum": optim.SGD(0.3, momentum=0.9), "Adam": optim.Adam(0.1)}
    for name, rule in {**rules, "AdamW": optim.AdamW(0.1, weight_decay=0.1)}.items():
        params = {"matrix": numbers(19, 31), "bias": numbers(700)}
        for _ in range(3):
            params = rule.update(params, {"matrix": numbers(19, 31), "bias": numbers(700)})
        outputs |= {f"update by {name} of {key}": a for key, a in params.items()}
    clipped, outputs["norm"] = optim.clip_by_global_norm({"a": numbers(5000), "b": numbers(3, 5)}, 0.5)
    outputs |= {f"clipped {key}": a for key, a in clipped.items()}
    targets = _array.asarray(rng.integers(0, 300, 4), xp, device)
    outputs["cross-entropy"], pullback = losses.softmax_cross_entropy(numbers(4, 300), targets)
    outputs["gradient of cross-entropy"] = pullback()
    draw: Any = (0.4, (1, 2))
    outputs["mask of dropout"] = masks.scaled_mask(
        *(xp, (5, 70), *draw, 0, dtype, device, masks.Purpose.BETWEEN_LAYERS)
    )
    ids = _array.asarray(rng.integers(0, 9, 50), xp, device)
    embedding = Embedding(9, 40, xp=xp, device=device, dtype=dtype, rng=1)
    outputs["gradient of Embedding"] = embedding.vjp(ids)[1](numbers(50, 40))["weight"]
    return outputs


def fitting(cp: Any, like: Problem, kind: str) -> Trials:  # noqa: ARG001 - one signature
    """Return the trial that measures the device and prints its costs."""

    def measure() -> str | None:
        name = cupy_persistent.NAME
        kinds = [kind for kind in fit.KINDS if proof.decide(name, kind, like.device).passed]
        if not kinds:
            return f"{name} has not passed the trials for any of {', '.join(fit.KINDS)}"
        costs, said = fit.find_costs(cp, like, kinds)
        if costs is None:
            return said
        say(costs=costs._asdict(), fit=said)
        return None

    return {"times of steps": measure}


MAKERS: dict[str, Callable[[Any, Problem, str], Trials]] = {
    "cupy_block": block,
    "cupy_persistent": persistent,
    "cupy_fused": fused,
    "training": training,
    FIT: fitting,
    IDENTITY: lambda *_: {},
}
