"""Compare optimisers with PyTorch and with their formulas, on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xplstm
from xplstm import _array, optim

SHAPES = {"lstm.weight": (5, 3), "lstm.bias": (5,), "scale": ()}
STEPS = 7
MAKE = {
    "sgd": lambda lr: optim.SGD(lr),
    "momentum": lambda lr: optim.SGD(lr, momentum=0.9),
    "adam": lambda lr: optim.Adam(lr, betas=(0.8, 0.95), eps=1e-6),
    "adamw": lambda lr: optim.AdamW(lr, betas=(0.85, 0.99), eps=1e-7, weight_decay=0.1, no_decay=()),
}


def torch_optimizer(kind, parameters):
    import torch

    return {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
        "momentum": lambda: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adam": lambda: torch.optim.Adam(parameters, lr=0.1, betas=(0.8, 0.95), eps=1e-6),
        "adamw": lambda: torch.optim.AdamW(
            parameters, lr=0.1, betas=(0.85, 0.99), eps=1e-7, weight_decay=0.1
        ),
    }[kind]()


def lr_at(step):
    return 0.1 / (1 + step)


@pytest.fixture
def start(rng):
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


@pytest.fixture
def gradients(rng):
    return [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]


@pytest.mark.parametrize("kind", MAKE)
def test_steps_are_those_of_torch(kind, start, gradients, torch):
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in start.items()}
    reference, optimizer, params = torch_optimizer(kind, list(theirs.values())), MAKE[kind](lr_at), start
    for step, grads in enumerate(gradients):
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(grads[name])
        reference.param_groups[0]["lr"] = lr_at(step)
        reference.step()
        params = optimizer.update(params, grads)
        for name, tensor in theirs.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MAKE)
def test_every_backend_takes_the_same_steps(kind, xp, start, gradients):
    expected, ours = start, xp.arrays(start)
    reference, optimizer = MAKE[kind](lr_at), MAKE[kind](lr_at)
    for grads in gradients:
        expected = reference.update(expected, grads)
        ours = optimizer.update(ours, xp.arrays(grads))
    for name, a in ours.items():
        np.testing.assert_allclose(_array.to_numpy(a), expected[name], rtol=0, atol=1e-13)
    assert optimizer.step == STEPS


@pytest.mark.parametrize("kind", MAKE)
def test_a_loaded_state_goes_on_bit_for_bit(kind, start, gradients):
    through, params = MAKE[kind](lr_at), start
    for step, grads in enumerate(gradients):
        if step == 3:
            halfway, state = params, through.state_dict()
        params = through.update(params, grads)
    resumed = MAKE[kind](lr_at)
    resumed.load_state_dict(state)
    for grads in gradients[3:]:
        halfway = resumed.update(halfway, grads)
    assert resumed.step == through.step == STEPS
    for name in start:
        assert np.array_equal(halfway[name], params[name])
    assert resumed.state_dict().keys() == through.state_dict().keys()


def test_state_names_say_average_and_parameter(start, gradients):
    names = {}
    for kind, make in MAKE.items():
        optimizer = make(0.1)
        optimizer.update(start, gradients[0])
        names[kind] = set(optimizer.state_dict())
    assert names["sgd"] == {"step"}
    assert names["momentum"] == {"step", *(f"momentum.{name}" for name in SHAPES)}
    assert names["adam"] == names["adamw"] == {"step", *(f"{k}.{name}" for k in "mv" for name in SHAPES)}


@pytest.mark.parametrize("kind", MAKE)
def test_nothing_that_is_passed_is_written_to(kind, start, gradients):
    optimizer, params = MAKE[kind](0.1), start
    for grads in gradients[:2]:
        for a in (*params.values(), *grads.values()):
            if isinstance(a, np.ndarray):
                a.setflags(write=False)
        state, before = optimizer.state_dict(), {name: a.copy() for name, a in params.items()}
        after = optimizer.update(params, grads)
        assert all(np.array_equal(params[name], before[name]) for name in params)
        assert state["step"] == optimizer.step - 1
        params = after


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_stays_even_with_numpy_scalars_as_settings(kind, dtype):
    params = {"w": np.ones(3, dtype=dtype)}
    optimizer = MAKE[kind](np.float64(0.1))
    for _ in range(2):
        params = optimizer.update(params, {"w": np.ones(3, dtype=dtype)})
    assert params["w"].dtype == dtype
    assert all(a.dtype == dtype for name, a in optimizer.state_dict().items() if name != "step")
    clipped, norm = optim.clip_by_global_norm(params, np.float64(0.1))
    assert clipped["w"].dtype == norm.dtype == dtype


def test_half_precision_keeps_its_averages_in_float32():
    params = {"w": np.ones(3, dtype=np.float16)}
    adam = optim.Adam(0.5)
    small = {"w": np.full(3, 1e-4, dtype=np.float16)}
    params = adam.update(params, small)
    assert params["w"].dtype == np.float16
    # The square of 1e-4 times 0.001 is far below what float16 can hold.
    assert adam.state_dict()["v.w"].dtype == np.float32
    np.testing.assert_allclose(params["w"], 0.5, atol=1e-3)


def norm_of(grads):
    return math.sqrt(sum(float(np.sum(g * g)) for g in grads.values()))


@pytest.mark.parametrize("factor", [0.25, 0.999])
def test_clipping_scales_all_gradients_together(xp, gradients, factor):
    grads = gradients[0]
    bound = factor * norm_of(grads)
    clipped, norm = optim.clip_by_global_norm(xp.arrays(grads), bound)
    assert float(norm) == pytest.approx(norm_of(grads), rel=1e-13)
    for name, g in clipped.items():
        np.testing.assert_allclose(_array.to_numpy(g), factor * grads[name], rtol=1e-13)


@pytest.mark.parametrize("factor", [1.001, 1e6])
def test_clipping_leaves_small_gradients_bit_for_bit(xp, gradients, factor):
    clipped, _ = optim.clip_by_global_norm(xp.arrays(gradients[0]), factor * norm_of(gradients[0]))
    assert all(np.array_equal(_array.to_numpy(g), gradients[0][name]) for name, g in clipped.items())


def test_clipping_zero_gradients_gives_zero():
    clipped, norm = optim.clip_by_global_norm({"w": np.zeros(4)}, 1e-3)
    assert not clipped["w"].any()
    assert norm == 0


def test_clipping_half_precision_sums_in_float32():
    clipped, norm = optim.clip_by_global_norm({"w": np.full(1000, 100.0, dtype=np.float16)}, 1.0)
    assert float(norm) == pytest.approx(100 * math.sqrt(1000), rel=1e-6)
    assert clipped["w"].dtype == np.float16


def test_clipping_sums_in_float64_if_any_gradient_has_it():
    grads = {"a": np.ones(3, dtype=np.float32), "b": np.ones(4)}
    clipped, norm = optim.clip_by_global_norm(grads, 1e-200)
    assert float(norm) == pytest.approx(math.sqrt(7))
    np.testing.assert_allclose(clipped["b"], 1e-200 / math.sqrt(7), rtol=1e-12)


def test_clipping_reads_no_value(gradients, jax):
    """Under jit, reading a value raises an error."""
    grads = {name: jax.numpy.asarray(g) for name, g in gradients[0].items()}
    clipped, _ = jax.jit(lambda grads: optim.clip_by_global_norm(grads, 0.1))(grads)
    assert norm_of(clipped) == pytest.approx(0.1)


def test_schedule_rises_falls_and_stays():
    lr = optim.warmup_cosine(2.0, warmup=4, total=12, floor=0.5)
    assert [lr(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert lr(4) == 2.0
    assert lr(8) == pytest.approx(1.25)
    assert lr(6) == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi / 4)) / 2)
    assert lr(12) == lr(1000) == 0.5
    falling = [lr(step) for step in range(4, 13)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(("warmup", "total"), [(0, 0), (0, 5), (5, 5)])
def test_schedule_at_its_edges(warmup, total):
    lr = optim.warmup_cosine(1.0, warmup, total)
    assert all(0 <= lr(step) <= 1 for step in range(8))
    assert lr(total) == 0


def test_the_optimizer_follows_its_schedule(start, gradients):
    sgd = optim.SGD(optim.warmup_cosine(1.0, 0, 4))
    assert sgd.lr == 1.0
    sgd.update(start, gradients[0])
    sgd.update(start, gradients[0])
    assert sgd.lr == pytest.approx(0.5)


W = {"w": np.ones(2), "b": np.ones(1)}
BAD = [
    (lambda: optim.SGD(-0.1), xplstm.ArgumentError, r"lr=-0.1 must be in \[0, inf\)"),
    (lambda: optim.SGD(math.nan), xplstm.ArgumentError, "lr=nan"),
    (lambda: optim.SGD(0.1, momentum=1.0), xplstm.ArgumentError, r"momentum=1.0 must be in \[0, 1\)"),
    (lambda: optim.Adam(0.1, betas=(0.9, 1.0)), xplstm.ArgumentError, r"betas\[1\]=1.0"),
    (lambda: optim.Adam(0.1, betas=(-0.9, 0.9)), xplstm.ArgumentError, r"betas\[0\]=-0.9"),
    (lambda: optim.Adam(0.1, eps=-1), xplstm.ArgumentError, "eps=-1"),
    (lambda: optim.AdamW(0.1, weight_decay=-1), xplstm.ArgumentError, "weight_decay=-1"),
    (lambda: optim.SGD(lambda step: -1.0 - step).update(W, W), xplstm.ArgumentError, "lr=-1.0"),
    (
        lambda: optim.SGD(0.1).update(W, {"w": np.ones(2), "c": np.ones(1)}),
        xplstm.ArgumentError,
        r"missing: \['b'\], unknown: \['c'\]",
    ),
    (
        lambda: optim.SGD(0.1).update(W, {"w": np.ones(3), "b": np.ones(1)}),
        xplstm.ShapeError,
        r"grads\['w'\] has shape \(3,\), expected \(2,\) as in params",
    ),
    (lambda: optim.Adam(0.1).load_state_dict({"step": 1, "x.w": W["w"]}), xplstm.ArgumentError, "'m.<name>'"),
    (lambda: optim.Adam(0.1).load_state_dict({"m.w": W["w"]}), xplstm.ArgumentError, "'step'"),
    (
        lambda: optim.SGD(0.1).load_state_dict({"step": 1, "m.w": 1}),
        xplstm.ArgumentError,
        "has the names",
    ),
    (lambda: optim.clip_by_global_norm(W, 0), xplstm.ArgumentError, "max_norm=0 must be above 0"),
    (lambda: optim.clip_by_global_norm({"w": np.ones(2, int)}, 1.0), xplstm.DTypeError, "int64"),
    (
        lambda: optim.clip_by_global_norm(W, 1e-320),
        xplstm.ArgumentError,
        "max_norm=1e-320 must be at least 2.2",
    ),
    (lambda: optim.clip_by_global_norm(W, "1"), xplstm.DTypeError, "max_norm='1'"),
    (lambda: optim.clip_by_global_norm({}, 1.0), xplstm.ArgumentError, "grads={} must have at least 1 array"),
    (lambda: optim.warmup_cosine(0.1, 5, 4), xplstm.ArgumentError, r"warmup=5 must be in \[0, total=4\]"),
    (lambda: optim.warmup_cosine(0.1, -1, 4), xplstm.ArgumentError, "warmup=-1"),
    (lambda: optim.warmup_cosine(0.1, 1, 4, floor=0.2), xplstm.ArgumentError, "peak=0.1 must be at least"),
    (lambda: optim.warmup_cosine(0.1, 1, 4, floor=-0.2), xplstm.ArgumentError, "floor=-0.2"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("values", [[np.inf, 1.0], [np.nan, 1.0], [-np.inf, np.nan], [3.0, 4.0]])
def test_clipping_what_is_not_finite_is_that_of_torch(values, xp, torch):
    theirs = torch.zeros(2, requires_grad=True)
    theirs.grad = torch.tensor(values)
    norm = torch.nn.utils.clip_grad_norm_([theirs], 2.0)
    # Dask computes when it is looked at.
    with np.errstate(all="ignore" if xp.name == "dask" else "warn"):
        clipped, ours = optim.clip_by_global_norm({"w": xp.asarray(np.asarray(values, "float32"))}, 2.0)
        found = _array.to_numpy(clipped["w"])
        np.testing.assert_array_equal(float(ours), float(norm))
    np.testing.assert_allclose(found, theirs.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("bound", [np.inf, 1e39, 1e300])
def test_a_bound_beyond_the_dtype_leaves_gradients_alone(xp, bound):
    grads = {"w": np.asarray([3.0, 4.0], "float32")}
    clipped, norm = optim.clip_by_global_norm(xp.arrays(grads), bound)
    assert float(norm) == 5
    np.testing.assert_array_equal(_array.to_numpy(clipped["w"]), grads["w"])


def test_a_norm_beyond_the_dtype_keeps_the_direction(xp):
    grads = {"w": np.asarray([3e38, 3e38, 0.0], "float32")}
    with np.errstate(all="ignore" if xp.name == "dask" else "warn"):
        clipped, norm = optim.clip_by_global_norm(xp.arrays(grads), 1.0)
        assert float(norm) == math.inf
        found = _array.to_numpy(clipped["w"])
    np.testing.assert_allclose(found, [0.5**0.5, 0.5**0.5, 0], rtol=1e-6)


def test_a_norm_that_is_not_finite_raises_if_that_is_asked_for():
    with pytest.raises(xplstm.NonFiniteError, match="inf"):
        optim.clip_by_global_norm({"w": np.asarray([math.inf])}, 1.0, error_if_nonfinite=True)
    optim.clip_by_global_norm(W, 1.0, error_if_nonfinite=True)


def test_clipping_survives_gradients_whose_squares_do_not():
    huge = {"a": np.asarray([3e30, 0], dtype=np.float32), "b": np.asarray([4e30], dtype=np.float32)}
    clipped, norm = optim.clip_by_global_norm(huge, 1.0)
    assert float(norm) == pytest.approx(5e30)
    np.testing.assert_allclose(clipped["a"], [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [0.8], rtol=1e-6)
    zero, norm = optim.clip_by_global_norm({"a": np.zeros(3, dtype=np.float32)}, 1.0)
    assert float(norm) == 0
    assert not zero["a"].any()
