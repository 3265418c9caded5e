"""Compare the CUDA kernels for training with the generic code on NumPy: emulated, and on CuPy if it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.conftest import backend, open_backend
from tests.cuda_emulation import compiled, kinds, standin, thorough
from tests.cuda_emulation.training import ROOM
from xplstm import _array, losses, optim
from xplstm.cells import masks
from xplstm.kernels._cuda import parts, proof
from xplstm.kernels._cuda import training as training_parts
from xplstm.models import CharLM
from xplstm.nn import _layers

DTYPES = ("float64", "float32", "float16", "bfloat16")
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


class On:
    """Place where the kernels run."""

    def __init__(self, xp: Any, device: Any) -> None:
        self.xp, self.device = xp, device

    def arrays(self, values: Any, dtype: str | None = None) -> Any:
        if isinstance(values, dict):
            return {name: self.arrays(a, dtype) for name, a in values.items()}
        return _array.asarray(_array.asarray(np.asarray(values), np, dtype=dtype), self.xp)


@pytest.fixture(params=["emulated", backend("cupy")])
def on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[On]:
    """Provide the stand-in behind the public functions on NumPy arrays, or CuPy with a pinned kernel."""
    if request.param == "cupy":
        xp = open_backend("cupy").xp
        with xplstm.use_kernel("cupy_fused"):
            yield On(xp, _array.device(xp.zeros(1)))
        return
    if compiled.compiler() is None or int(np.__version__.split(".")[0]) < 2:
        pytest.skip("a C++20 compiler and NumPy 2 are needed to emulate the CUDA sources")
    with standin.installed(), monkeypatch.context() as patch:
        patch.setattr(_array, "faster", lambda _: ROOM)
        yield On(_array.numpy_namespace(), "cpu")


@pytest.fixture
def generic(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a function of NumPy arrays with the generic code alone."""

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with xplstm.use_kernel(None), monkeypatch.context() as patch:
            patch.setattr(_array, "faster", lambda _: None)
            return function(*args, **kwargs)

    return call


def host(a: Any) -> np.ndarray:
    return _array.to_numpy(a).astype("float64")


def same_bits(got: Any, want: np.ndarray, what: str) -> None:
    got = _array.to_numpy(got)
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    assert got.tobytes() == want.tobytes(), what


RULES: dict[str, Callable[[], optim.Optimizer]] = {
    "sgd": lambda: optim.SGD(0.3),
    "momentum": lambda: optim.SGD(lambda step: 0.3 / (1 + step), momentum=0.9),
    "adam": lambda: optim.Adam(0.1, betas=(0.8, 0.95), eps=1e-6),
    "adamw": lambda: optim.AdamW(0.1, weight_decay=0.1),
}
SHAPES = {
    "lstm.weight": (19, 31),
    "lstm.bias": (19,),
    "scale": (),
    "nothing": (0, 3),
    "linear.weight": (2, 3),
}


def values_of(
    rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RULES)
def test_updates_have_the_bits_of_the_generic_code(
    kind: str, dtype: str, on: On, generic: Any, rng: np.random.Generator
) -> None:
    start, ours, reference = values_of(rng), RULES[kind](), RULES[kind]()
    got, want = on.arrays(start, dtype), {n: _array.asarray(a, np, dtype=dtype) for n, a in start.items()}
    for _ in range(3):
        grads = values_of(rng)
        got = ours.update(got, on.arrays(grads, dtype))
        want = generic(
            reference.update, want, {n: _array.asarray(a, np, dtype=dtype) for n, a in grads.items()}
        )
    for name, value in want.items():
        same_bits(got[name], value, name)
    state, want_state = ours.state_dict(), reference.state_dict()
    assert state.pop("step") == want_state.pop("step") == 3
    assert state.keys() == want_state.keys()
    for name, average in want_state.items():
        same_bits(state[name], np.asarray(average), name)


@pytest.mark.parametrize("kind", RULES)
def test_more_parameters_than_a_launch_takes(
    kind: str, on: On, generic: Any, rng: np.random.Generator
) -> None:
    """The parameters have two dtypes, and one array fills several blocks."""
    shapes = {f"p{k}": (k % 5 + 1, 3) for k in range(2 * training_parts.TABLE + 3)} | {"large": (700,)}
    start, grads, ours, reference = (
        values_of(rng, shapes),
        values_of(rng, shapes),
        RULES[kind](),
        RULES[kind](),
    )
    dtypes = {name: "float64" if k % 3 else "float32" for k, name in enumerate(shapes)}
    got, got_grads = ({n: on.arrays(a, dtypes[n]) for n, a in side.items()} for side in (start, grads))
    want, want_grads = ({n: a.astype(dtypes[n]) for n, a in side.items()} for side in (start, grads))
    if on.device == "cpu":
        standin.launched.clear()
    got = ours.update(got, got_grads)
    if on.device == "cpu":
        assert len(standin.launched) == 3
    for name, value in generic(reference.update, want, want_grads).items():
        same_bits(got[name], value, name)


def test_what_the_kernels_do_not_mix_the_generic_code_takes(on: On) -> None:
    """Gradients of another dtype, and their optimiser states, run in the generic code."""
    params, grads = on.arrays({"w": np.ones(3)}, "float32"), on.arrays({"w": np.ones(3)}, "float64")
    assert _array.dtype_name(optim.SGD(0.5).update(params, grads)["w"].dtype) == "float32"
    mixed = {**params, "v": grads["w"]}
    clipped, norm = optim.clip_by_global_norm(mixed, 1.0)
    np.testing.assert_allclose(host(norm), 6**0.5, rtol=1e-6)
    assert {name: _array.dtype_name(a.dtype) for name, a in clipped.items()} == {
        "w": "float32",
        "v": "float64",
    }


def test_views_give_what_copies_give(on: On, rng: np.random.Generator) -> None:
    a, ids = rng.normal(size=(7, 4)), np.asarray([[0, 9], [2, 9], [1, 9], [1, 9]])

    def answers(x: Any, y: Any, numbers: Any) -> list[Any]:
        new = optim.Adam(0.1).update({"w": x}, {"w": y})
        clipped, norm = optim.clip_by_global_norm({"w": y}, 0.5)
        loss, pullback = losses.softmax_cross_entropy(x, numbers)
        rows = _layers._sum_rows(on.xp, numbers, x, 4)
        return [new["w"], clipped["w"], norm, loss, pullback(), rows]

    views = on.arrays(a)[::-2, 1:], on.arrays(a).T[1:, ::2].T, on.arrays(ids)[:, 0]
    copies = on.arrays(a[::-2, 1:].copy()), on.arrays(a.T[1:, ::2].T.copy()), on.arrays(ids[:, 0].copy())
    for k, (one, other) in enumerate(zip(answers(*views), answers(*copies), strict=True)):
        same_bits(one, _array.to_numpy(other), str(k))


@pytest.mark.parametrize("dtype", kinds(DTYPES))
@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_clipping(dtype: str, bound: float, on: On, generic: Any, rng: np.random.Generator) -> None:
    # More than a table takes, where it is of float32: each launch is emulated by hundreds of threads.
    many = training_parts.TABLE + 1 if dtype == "float32" and bound < 1 else 0
    shapes = {**SHAPES, **{f"p{k}": (k,) for k in range(many)}, "large": (2 * training_parts.RUN + 5,)}
    grads = {n: _array.asarray(a, np, dtype=dtype) for n, a in values_of(rng, shapes).items()}
    got, got_norm = optim.clip_by_global_norm(on.arrays(grads), bound)
    want, want_norm = generic(optim.clip_by_global_norm, grads, bound)
    np.testing.assert_allclose(host(got_norm), host(want_norm), rtol=1e-6)
    assert got_norm.shape == ()
    for name, value in want.items():
        np.testing.assert_allclose(host(got[name]), host(value), rtol=4 * UNIT[dtype] + 1e-6, atol=0)
        if bound > 500:
            same_bits(got[name], grads[name], name)


def test_each_parameter_has_its_own_options_and_count(on: On, generic: Any, rng: np.random.Generator) -> None:
    """There are two groups, a tied pair, and a late parameter, in half precision with float32 copies."""

    def run(arrays: Any) -> Any:
        adam = optim.AdamW(0.1, weight_decay=0.1, groups=[optim.Group("lstm.weight", lr_scale=0.5)])
        params = arrays(start)
        params["tied"] = params["scale"]
        for names in (("lstm.weight", "scale"), tuple(start), ("tied", "lstm.bias")):
            params = adam.update(params, arrays({name: start.get(name, start["scale"]) for name in names}))
        return params | {f"of {key}": a for key, a in adam.state_dict().items() if not isinstance(a, int)}

    start = {name: _array.asarray(a, np, dtype="float16") for name, a in values_of(rng).items()}
    got, want = run(on.arrays), generic(run, dict)
    assert got.keys() == want.keys()
    for name, value in want.items():
        same_bits(got[name], np.asarray(value), name)


@pytest.mark.parametrize("bound", [0.5, np.inf])
@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_clipping_norms_that_are_not_finite(value: float, bound: float, on: On, generic: Any) -> None:
    grads = {"a": np.asarray([value, value, 0.0], "float32"), "b": np.asarray([1.0], "float32")}
    got, norm = optim.clip_by_global_norm(on.arrays(grads), bound)
    want, want_norm = generic(optim.clip_by_global_norm, grads, bound)
    np.testing.assert_array_equal(host(norm), want_norm)
    for name in grads:
        np.testing.assert_allclose(host(got[name]), want[name], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e300, np.inf, np.nan])
def test_clipping_what_is_far_away(value: float, on: On, generic: Any) -> None:
    grads = {"a": np.asarray([value, value / 2]), "b": np.asarray([1e-300])}
    with np.errstate(invalid="ignore"):
        got, norm = optim.clip_by_global_norm(on.arrays(grads), 0.5)
        want, want_norm = generic(optim.clip_by_global_norm, grads, 0.5)
    np.testing.assert_allclose(host(norm), want_norm, rtol=1e-14)
    np.testing.assert_allclose(host(got["a"]), want["a"], rtol=1e-14)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_clipping_nothing(shape: tuple[int, ...], on: On) -> None:
    clipped, norm = optim.clip_by_global_norm({"a": on.arrays(np.ones(shape))}, 1.0)
    assert host(norm) == 0
    assert clipped["a"].shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 7), (2, 300), (4, 1), (11,)])
def test_cross_entropy(
    shape: tuple[int, ...], masked: bool, dtype: str, on: On, generic: Any, rng: np.random.Generator
) -> None:
    logits = _array.asarray(4 * rng.normal(size=shape), np, dtype=dtype)
    targets = rng.integers(0, shape[-1], shape[:-1])
    mask = rng.random(shape[:-1]) < 0.7 if masked else None
    if mask is not None:
        mask.reshape(-1)[0] = True
        logits[~mask] = np.nan
    given = {"mask": None if mask is None else on.arrays(mask)}
    loss, pullback = losses.softmax_cross_entropy(on.arrays(logits), on.arrays(targets), **given)
    want, want_pullback = generic(losses.softmax_cross_entropy, logits.astype("float64"), targets, mask=mask)
    assert loss.shape == ()
    for got in (loss, pullback(), pullback(3.0)):
        assert _array.dtype_name(got.dtype) == dtype
    u = UNIT[dtype]
    np.testing.assert_allclose(host(loss), want, rtol=u + 64 * min(u, 2.0**-24), atol=64 * min(u, 2.0**-24))
    for dloss in (1.0, 3.0):
        wide = 64 * min(u, 2.0**-24)
        np.testing.assert_allclose(
            host(pullback(dloss)),
            want_pullback(dloss),
            rtol=u + wide,
            atol=wide + 2.0**-24 * (dtype == "float16"),
        )


def test_cross_entropy_of_nothing_and_of_a_gradient_that_is_an_array(on: On) -> None:
    for rows, mask in ((0, None), (2, [False, False])):
        logits, targets = on.arrays(np.ones((rows, 3))), on.arrays(np.zeros(rows, np.int32))
        loss, pullback = losses.softmax_cross_entropy(
            logits, targets, mask=None if mask is None else on.arrays(mask)
        )
        assert host(loss) == 0
        np.testing.assert_array_equal(host(pullback()), np.zeros((rows, 3)))
    _, pullback = losses.softmax_cross_entropy(on.arrays(np.zeros((1, 2))), on.arrays(np.asarray([1])))
    np.testing.assert_array_equal(host(pullback(on.arrays(np.asarray(4.0)))), [[2.0, -2.0]])


def test_saturated_logits_lose_nothing(on: On) -> None:
    logits = on.arrays(np.asarray([[1e4, 0.0, -1e4], [-800.0, -801.0, -1e300]]))
    loss, pullback = losses.softmax_cross_entropy(logits, on.arrays(np.asarray([1, 0])))
    np.testing.assert_allclose(host(loss), (1e4 + np.log1p(np.exp(-1.0))) / 2, rtol=1e-15)
    np.testing.assert_array_equal(host(pullback())[0], [0.5, -0.5, 0.0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 2), (1,), (0, 4), (37, 61)])
def test_masks_have_the_bits_of_the_processor(
    shape: tuple[int, ...], dtype: str, on: On, generic: Any
) -> None:
    xp, numpy = on.xp, _array.numpy_namespace()
    for seed, p in enumerate((0.3, 0.5, 1 - 2.0**-53, 2.0**-60, 1 / 3)):
        key = masks.draw_key(seed)
        for purpose, stream in ((masks.Purpose.BETWEEN_LAYERS, 0), (masks.Purpose.WEIGHT, 2**63 + 3)):
            with np.errstate(over="ignore"):
                got = masks.scaled_mask(xp, shape, p, key, stream, dtype, on.device, purpose)
                want = generic(masks.scaled_mask, numpy, shape, p, key, stream, dtype, "cpu", purpose)
            same_bits(got, want, f"p={p}")
        got = masks.hold_mask(xp, shape, p, key, masks.Purpose.ZONEOUT_C, 3, 12345, on.device)
        want = generic(masks.hold_mask, numpy, shape, p, key, masks.Purpose.ZONEOUT_C, 3, 12345, "cpu")
        same_bits(got, want, f"p={p}")


def test_a_number_drawn_is_not_below_itself(on: On) -> None:
    """The bound of a mask equals a drawn number or the next representable number."""
    key = masks.draw_key(7)
    drawn = masks.uniform((12,), key, masks.Purpose.ZONEOUT_H, 1, 5)
    for k in (int(np.argmin(drawn)), int(np.argmax(drawn))):
        for p, below in ((drawn[k], False), (np.nextafter(drawn[k], 1), True)):
            mask = masks.hold_mask(on.xp, (12,), float(p), key, masks.Purpose.ZONEOUT_H, 1, 5, on.device)
            assert bool(_array.to_numpy(mask)[k]) is below


# Only `find_starts` has several blocks with 300 words, and it does not depend on the dtype.
@pytest.mark.parametrize(
    ("vocabulary", "columns", "dtype"),
    [*((*size, dtype) for size in ((5, 3), (1, 70)) for dtype in DTYPES), (300, 2, "float32")],
)
def test_gradient_of_an_embedding(
    vocabulary: int, columns: int, dtype: str, on: On, generic: Any, rng: np.random.Generator
) -> None:
    """Most rows have the same number, and most numbers have no row."""
    ids = np.where(rng.random((11, 6)) < 0.6, 0, rng.integers(0, vocabulary, (11, 6)))
    dy = _array.asarray(rng.normal(size=(11, 6, columns)), np, dtype=dtype)
    table = xplstm.Embedding(vocabulary, columns, dtype=dtype, rng=0)
    _, pullback = table.vjp(ids)
    want = generic(pullback, dy)["weight"]
    if on.device != "cpu":
        table = table.to(xp=on.xp)
    _, pullback = table.vjp(on.arrays(ids))
    got = pullback(on.arrays(dy))["weight"]
    assert _array.dtype_name(got.dtype) == dtype
    np.testing.assert_allclose(host(got), host(want), rtol=UNIT[dtype], atol=64 * min(UNIT[dtype], 2.0**-24))


def test_no_rows_and_strange_numbers(on: On) -> None:
    """Numbers outside the table change nothing, because a device does not check numbers."""
    rows = np.arange(8.0).reshape(4, 2)
    got = _layers._sum_rows(on.xp, on.arrays(np.asarray([-1, 1, 3, 1])), on.arrays(rows), 3)
    np.testing.assert_array_equal(host(got), [[0, 0], [8, 10], [0, 0]])
    got = _layers._sum_rows(on.xp, on.arrays(np.zeros(0, np.int32)), on.arrays(rows[:0]), 3)
    np.testing.assert_array_equal(host(got), np.zeros((3, 2)))


def test_one_launch_for_all_parameters_and_one_pass_each_way(on: On) -> None:
    if on.device != "cpu":
        pytest.skip("launches are counted by the stand-in")
    params = {f"p{k}": np.ones((k, 2), "float32") for k in range(1, 12)}
    optim.Adam(0.1).update(params, params)
    optim.clip_by_global_norm(params, 1.0)
    _, pullback = losses.softmax_cross_entropy(np.ones((3, 4)), np.zeros(3, np.int64))
    pullback()
    assert standin.launched == [
        *("update_moments", "find_largest", "sum_squares", "clip"),
        *("entropy_of_rows", "mean_entropy", "entropy_gradient"),
    ]


def test_a_model_learns_the_same(on: On, generic: Any) -> None:
    """All kernels run together, through the public functions."""

    def losses_of(model: CharLM, ids: Any, targets: Any) -> list[float]:
        adam, found = optim.Adam(0.05), []
        for step in range(3):
            loss, _, pullback = model.loss_vjp(ids, targets, rng=step)
            grads, _ = optim.clip_by_global_norm(pullback(), 0.5)
            model.params = adam.update(model.params, grads)
            found.append(float(host(loss)))
        return found

    ids = np.asarray([[0, 1], [2, 2], [1, 3]])
    options: dict[str, Any] = {"num_layers": 2, "dropout": 0.4, "rng": 3}
    want = generic(losses_of, CharLM("abcd", 5, **options), ids, ids[::-1])
    model = CharLM("abcd", 5, xp=on.xp, **options)
    np.testing.assert_allclose(losses_of(model, on.arrays(ids), on.arrays(ids[::-1])), want, rtol=1e-5)


@thorough
def test_threads_do_not_race() -> None:
    """ThreadSanitizer checks every access of every emulated thread."""
    sanitizer = None if compiled.compiler() is None else compiled.sanitizer()
    if sanitizer is None:
        pytest.skip("the compiler has no ThreadSanitizer that runs here")
    env = {**os.environ, "LD_PRELOAD": sanitizer, "TSAN_OPTIONS": "exitcode=66:report_bugs=1"}
    command = [sys.executable, "-m", "tests.cuda_emulation.training"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "no race"


def test_the_generic_code_runs_unless_a_kernel_of_cupys_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel also runs without a pin if a GPU has proven the kernels."""
    monkeypatch.setattr(parts, "is_proven", lambda: False)
    cupy = types.ModuleType("array_api_compat.cupy")
    numpy = _array.numpy_namespace()
    assert _array.faster(cupy) is None
    for name in proof.KERNELS:
        with xplstm.use_kernel(name):
            assert _array.faster(cupy) is training_parts
            assert _array.faster(numpy) is None
    monkeypatch.setattr(parts, "is_proven", lambda: True)
    assert _array.faster(cupy) is training_parts
    with xplstm.use_kernel("reference"):
        assert _array.faster(cupy) is None
