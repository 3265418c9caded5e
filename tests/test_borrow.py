"""Check PyTorch and JAX arrays on the CPU: NumPy's kernels on their memory, and their own differentiation."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.conftest import backend, open_backend
from tests.support.cases import CASES, kernels, run
from xplstm import _array, models
from xplstm._stack import _borrow, _jax, _run
from xplstm.kernels import _recycled, _threads

LIBRARIES = [backend("torch"), backend("jax")]
HOST_KERNELS = [kernel for kernel in kernels() if kernel.values[0] in ("native", "numpy_inplace")]
T, B, I, H = 3, 2, 2, 3
# PyTorch's own, at the first forward-mode derivative of a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def library(name: str) -> Any:
    open_backend(name)
    return _array.named_namespace(name)


def lstm_of(name: str, **options: Any) -> xplstm.LSTM:
    library(name)
    return xplstm.LSTM(I, H, rng=0, xp=name, dtype="float64", bidirectional=True, **options)


def values(found: Any) -> list[np.ndarray]:
    """Return the arrays of a result on the host."""
    if isinstance(found, tuple | list):
        return [a for one in found for a in values(one)]
    if isinstance(found, dict):
        return values(list(found.values()))
    return [_array.to_numpy(found)]


def assert_like_the_reference(compute: Callable[[], Any]) -> None:
    got = values(compute())
    with xplstm.use_kernel("reference"):
        want = values(compute())
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert np.abs(b).max(initial=0) > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", HOST_KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LIBRARIES)
def test_results_have_the_bits_of_numpy(name: str, case: str, dtype: str, kernel: str) -> None:
    xp, made = library(name), CASES[case]
    if dtype.endswith("16") and kernel != "native":
        pytest.skip(f"{kernel} has no half precision")
    arrays = {k: a.astype(_array.dtype_from_name(np, dtype)) for k, a in made.arrays().items()}
    ours = {k: _array.asarray(a, xp) for k, a in arrays.items()}
    with xplstm.use_kernel(kernel):
        want = run(made.lstm(dtype=dtype), arrays, **made.valid()).flat()
        lstm = made.lstm(dtype=dtype, xp=name)
        got = run(lstm, ours, **made.valid()).flat()
        y, _ = lstm(ours["x"], (ours["h_0"], ours["c_0"]), **made.valid())
        frozen, _ = lstm.freeze()(ours["x"], (ours["h_0"], ours["c_0"]), **made.valid())
    for key, value in want.items():
        assert _array.namespace(got[key], key) is xp
        np.testing.assert_array_equal(_array.to_numpy(got[key]), value, err_msg=key)
    np.testing.assert_array_equal(_array.to_numpy(y), want["y"])
    np.testing.assert_array_equal(_array.to_numpy(frozen), want["y"])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [(), (4,)])
@pytest.mark.parametrize("name", LIBRARIES)
def test_single_steps_have_the_bits_of_numpy(
    name: str, rows: tuple[int, ...], dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp, kind = library(name), _array.dtype_from_name(np, dtype)
    host = xplstm.LSTM(I, H, 2, rng=0, dtype=dtype).freeze()  # type: ignore[arg-type]
    ours = xplstm.LSTM(I, H, 2, rng=0, dtype=dtype, xp=name).freeze()  # type: ignore[arg-type]
    state, theirs = None, None
    for k in range(4):
        x_t = rng.normal(size=(*rows, I)).astype(kind)
        want, state = host.step(x_t, state)
        got, theirs = ours.step(_array.asarray(x_t, xp), theirs)
        for a, b in zip((want, *state), (got, *theirs), strict=True):
            assert _array.namespace(b, "b") is xp
            np.testing.assert_array_equal(_array.to_numpy(b), a)
        if k == 0 and "native" in {kernel.values[0] for kernel in HOST_KERNELS}:
            # From now on a step takes the short way, past the checks of a call.
            monkeypatch.setattr("xplstm._stack.step", None)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", [xplstm.LSTM, xplstm.GRU])
@pytest.mark.parametrize("name", LIBRARIES)
def test_small_calls_have_the_bits_of_numpy(
    name: str, cell: Any, batch_first: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp, options = library(name), {"batch_first": batch_first, "rng": 0}
    host, ours = cell(I, H, 2, **options).freeze(), cell(I, H, 2, xp=name, **options).freeze()
    for k in range(3):
        x = rng.normal(size=(1, 4 + k, I) if batch_first else (4 + k, 1, I)).astype("float32")
        y, state = host(x)
        y_2, state = host(x, state)
        got, theirs = ours(_array.asarray(x, xp))
        got_2, theirs = ours(_array.asarray(x, xp), theirs)
        for a, b in zip(values([y, y_2, state]), values([got, got_2, theirs]), strict=True):
            np.testing.assert_array_equal(b, a)
        assert _array.namespace(got_2, "y") is xp
        if k == 0 and "native" in {kernel.values[0] for kernel in HOST_KERNELS}:
            monkeypatch.setattr("xplstm._stack.enter", None)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_step_checks_what_it_is_given(name: str) -> None:
    xp = library(name)
    frozen = xplstm.LSTM(I, H, rng=0, xp=name).freeze()
    x_t = xp.ones((B, I), dtype=xp.float32)
    _, state = frozen.step(x_t)
    frozen.step(x_t, state)
    for bad in (
        np.ones((B, I), "float32"),
        xp.ones((B, I + 1), dtype=xp.float32),
        xp.ones((B, I), dtype=xp.int32),
        None,
    ):
        with pytest.raises(xplstm.XplstmError, match="x_t"):
            frozen.step(bad, state)
    for bad in ((state.h,), 3, (np.ones((1, B, H), "float32"), state.c), (state.h[:, :1], state.c)):
        with pytest.raises(xplstm.XplstmError):
            frozen.step(x_t, bad)


def test_autograd_follows_a_step(torch: Any) -> None:
    frozen = xplstm.LSTM(I, H, rng=0, xp="torch", dtype="float64").freeze()
    x_t = torch.ones(B, I, dtype=torch.float64)
    frozen.step(x_t)
    asked = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(frozen.step(asked)[0].sum(), asked)
    h = 1e-6
    ahead, behind = (frozen.step(x_t + s * torch.eye(B, I, dtype=torch.float64))[0].sum() for s in (h, -h))
    assert float((ahead - behind) / (2 * h)) == pytest.approx(
        float(gradient[0, 0] + gradient[1, 1]), rel=1e-6
    )


@pytest.mark.parametrize("kernel", HOST_KERNELS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_their_own_gradients_have_the_bits_of_numpy(name: str, kernel: str) -> None:
    case, xp = CASES["projection_ragged"], library(name)
    arrays = case.arrays()
    a = {k: _array.asarray(v, xp) for k, v in arrays.items()}
    lstm = case.lstm(xp=name)
    with xplstm.use_kernel(kernel):
        want = run(case.lstm(), arrays, **case.valid()).flat()
        got = (torch_gradients if name == "torch" else jax_gradients)(lstm, a, **case.valid())
    for key, value in got.items():
        np.testing.assert_array_equal(_array.to_numpy(value), want[key], err_msg=key)


def torch_gradients(lstm: xplstm.LSTM, a: dict[str, Any], **valid: Any) -> dict[str, Any]:
    import torch

    leaves = {f"d{k}": a[k].requires_grad_() for k in ("x", "h_0", "c_0")} | lstm.params
    lstm.params = {k: v.requires_grad_() for k, v in lstm.params.items()}
    y, state = lstm(a["x"], (a["h_0"], a["c_0"]), **valid)
    torch.autograd.backward([y, *state], [a["dy"], a["dh_n"], a["dc_n"]])
    return {k: v.grad for k, v in leaves.items()}


def jax_gradients(lstm: xplstm.LSTM, a: dict[str, Any], **valid: Any) -> dict[str, Any]:
    import jax

    def outputs(params: Any, x: Any, h_0: Any, c_0: Any) -> Any:
        lstm.params = params
        return lstm(x, (h_0, c_0), **valid)

    _, pull = jax.vjp(outputs, lstm.params, a["x"], a["h_0"], a["c_0"])
    dparams, *others = pull((a["dy"], xplstm.LSTMState(a["dh_n"], a["dc_n"])))
    return dict(zip(("dx", "dh_0", "dc_0"), others, strict=True)) | dparams


@pytest.mark.parametrize("name", LIBRARIES)
def test_resets_and_gru_are_borrowed_too(name: str) -> None:
    xp, rng = library(name), np.random.default_rng(2)
    x, dy = rng.normal(size=(5, 4, I)), rng.normal(size=(5, 4, 2 * H))
    options = {"reset": rng.random((5, 4)) < 0.3, "lengths": [5, 0, 2, 4]}
    ours = {k: _array.asarray(a, xp) if k == "reset" else a for k, a in options.items()}
    for kind in (xplstm.LSTM, xplstm.GRU):
        host = kind(I, H, bidirectional=True, rng=0, dtype="float64")
        lstm = kind(I, H, bidirectional=True, rng=0, dtype="float64", xp=name)
        a, da = _array.asarray(x, xp), _array.asarray(dy, xp)
        assert lstm.explain(a, **ours).kernels == host.explain(x, **options).kernels
        y, _, pullback = host.vjp(x, **options)
        np.testing.assert_array_equal(_array.to_numpy(lstm(a, **ours)[0]), y)
        np.testing.assert_array_equal(_array.to_numpy(lstm.vjp(a, **ours)[2](da)[0]), pullback(dy)[0])
        if name == "torch":
            lstm(a.requires_grad_(), **ours)[0].backward(da)
            np.testing.assert_array_equal(a.grad.numpy(), pullback(dy)[0])


def test_inputs_are_not_copied(torch: Any, jax: Any) -> None:
    a = torch.ones(4, 3)
    assert _borrow._torch().view(a).ctypes.data == a.data_ptr()
    b = jax.numpy.ones((4, 3))
    assert _jax.on_cpu().view(b).ctypes.data == b.unsafe_buffer_pointer()


# ---- PyTorch


@pytest.fixture
def trained(torch: Any) -> Any:
    """Return a layer whose parameters require gradients, the sum of squares of its output, and its leaves."""
    lstm = lstm_of("torch")
    lstm.params = {k: v.requires_grad_() for k, v in lstm.params.items()}
    x = torch.tensor(np.random.default_rng(1).normal(size=(T, B, I)), requires_grad=True)
    return lstm, lambda x: (lstm(x)[0] ** 2).sum(), [x, *lstm.params.values()]


def twice(f: Any, leaves: Any) -> Any:
    import torch

    first = torch.autograd.grad(f(leaves[0]), leaves, create_graph=True)
    return torch.autograd.grad(sum((a**2).sum() for a in first), leaves)


def forward_mode(f: Any, leaves: Any) -> Any:
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        x = leaves[0].detach()
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x + 1))).tangent.detach()


def checkpointed(f: Any, leaves: Any) -> Any:
    import torch
    from torch.utils.checkpoint import checkpoint

    return torch.autograd.grad(checkpoint(f, leaves[0], use_reentrant=False), leaves)


def through_hooks(f: Any, leaves: Any) -> Any:
    import torch

    with torch.autograd.graph.saved_tensors_hooks(lambda a: a.clone(), lambda a: a):
        loss = f(leaves[0])
    return torch.autograd.grad(loss, leaves)


def recorded(f: Any, leaves: Any) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    x = leaves[0].detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_fx(f)(x)(2 * x).detach()


def jit_traced(f: Any, leaves: Any) -> Any:
    import torch

    lstm, x = lstm_of("torch"), leaves[0].detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(lambda x: lstm(x)[0], (x,), check_trace=False)(2 * x)


def vmapped(f: Any, leaves: Any) -> Any:
    import torch

    x = leaves[0].detach()
    return torch.func.vmap(f)(torch.stack([x, 2 * x])).detach()


def hessian(f: Any, leaves: Any) -> Any:
    import torch

    return torch.func.hessian(f)(leaves[0].detach()).detach()


def batched_gradients(f: Any, leaves: Any) -> Any:
    import torch

    return torch.autograd.functional.hessian(f, leaves[0].detach(), vectorize=True)


MODES = [
    *(twice, forward_mode, checkpointed, through_hooks, recorded, jit_traced, vmapped, hessian),
    batched_gradients,
]


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_pytorch_gives_what_the_reference_gives(mode: Any, trained: Any) -> None:
    _, f, leaves = trained
    assert_like_the_reference(lambda: mode(f, leaves))


def test_a_change_of_any_input_before_backward_is_found(trained: Any) -> None:
    import torch

    _, f, leaves = trained
    for leaf in leaves:
        loss = f(leaves[0])
        with torch.no_grad():
            leaf.mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_backward_frees_what_it_needed(trained: Any) -> None:
    import torch

    lstm = xplstm.LSTM(8, 128, rng=0, xp="torch")
    lstm.params = {k: v.requires_grad_() for k, v in lstm.params.items()}
    gc.collect()
    before = set(_recycled.pieces.used)
    loss = lstm(torch.ones(64, 32, 8))[0].sum()
    assert set(_recycled.pieces.used) - before
    loss.backward()
    for p in lstm.params.values():
        p.grad = None  # large gradients are in such memory too
    assert not set(_recycled.pieces.used) - before
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_nothing_is_recorded_where_nothing_asks_for_it(trained: Any) -> None:
    import torch

    lstm, _, (x, *_) = trained
    with torch.no_grad():
        assert not lstm(x)[0].requires_grad
    with torch.inference_mode():
        assert lstm(x)[0].is_inference()
    assert lstm_of("torch")(x.detach())[0].grad_fn is None


@pytest.mark.parametrize("shape", [(0, 2, I), (2, 0, I)])
def test_empty_tensors_have_gradients(shape: tuple[int, ...], trained: Any) -> None:
    import torch

    lstm, _, (_, *params) = trained
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    for again in (False, True):
        found = torch.autograd.grad(lstm(x)[0].sum(), [x, *params], create_graph=again, allow_unused=True)
        assert all(a is None or not a.any() for a in found)


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_any_layout_in_memory(trained: Any) -> None:
    import torch

    lstm, _, (x, *_) = trained
    plain = x.detach()
    odd = [
        plain.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        torch.imag(torch.complex(plain, -plain).conj()),
        torch.nn.Parameter(plain.clone()),
        plain[:1].expand(T, B, I),
    ]
    for a in odd:
        with torch.no_grad():
            np.testing.assert_array_equal(
                lstm(a)[0].numpy(), lstm(a.detach().clone().contiguous())[0].numpy()
            )


def test_calls_use_no_more_threads_than_pytorch(torch: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with xplstm.use_threads(4), _borrow._limit_to_torch_threads(_run.host()):
            assert _threads.count(0) == 1
    finally:
        torch.set_num_threads(before)


def compiled_calls() -> dict[str, Callable[[Any], Any]]:
    """Return calls to compile, of layers and models that already exist."""
    given: dict[str, Any] = {"xp": "torch", "rng": 0}
    lstm, gru = xplstm.LSTM(I, H, 2, bidirectional=True, **given), xplstm.GRU(I, H, **given)
    fast, features = lstm_of("torch").freeze(), models.SequenceClassifier(I, H, 2, **given)
    ids = models.SequenceClassifier(None, H, 2, vocab_size=3, pooling="mean", **given)
    return {
        "lengths": lambda x: lstm(x, lengths=[2, 0]),
        "mask": lambda x: gru(x, mask=x[..., 0] > 0),
        "frozen": lambda x: fast(x.double()),
        "pullback": lambda x: gru.vjp(x)[2](gru(x)[0]),
        "checkpoint": lambda x: lstm.vjp(x, checkpoint=1)[2](lstm(x)[0]),
        "features": features.predict_proba,
        "ids": lambda x: ids.loss((x[..., 0] > 0) * 2, (x[0, :, 1] > 0) * 1),
    }


@pytest.mark.parametrize("name", ["lengths", "mask", "frozen", "pullback", "checkpoint", "features", "ids"])
def test_torch_compile_gives_the_same_without_a_warning(torch: Any, name: str) -> None:
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(T, B, I)).astype("float32"))
    torch._dynamo.reset()
    call = compiled_calls()[name]
    got, want = (values(f(x)) for f in (torch.compile(call, backend="aot_eager"), call))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# PyTorch hides it, unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_torch_compile_is_differentiable(trained: Any) -> None:
    import torch

    lstm, _, (x, *_) = trained
    compiled = torch.compile(lambda x: lstm(x)[0], backend="aot_eager")
    np.testing.assert_allclose(compiled(x).detach().numpy(), lstm(x)[0].detach().numpy(), rtol=0, atol=1e-12)
    weight = lstm.params["weight_hh_l0"]
    got, want = (torch.autograd.grad((f(x) ** 2).sum(), weight)[0] for f in (compiled, lambda x: lstm(x)[0]))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


# ---- JAX


@pytest.fixture
def pure(jax: Any) -> Any:
    """Return the sum of squares of a layer's output as a function of its parameters and x, and both."""
    lstm = lstm_of("jax")

    def f(params: Any, x: Any) -> Any:
        lstm.params = params
        return jax.numpy.sum(lstm(x)[0] ** 2)

    x = jax.numpy.asarray(np.random.default_rng(1).normal(size=(2, B, I)))
    return f, dict(lstm.params), x


def jax_modes() -> dict[str, Callable[[Any, Any, Any, Any], Any]]:
    return {
        "grad": lambda jax, f, p, x: jax.grad(f, argnums=(0, 1))(p, x),
        "jvp": lambda jax, f, p, x: jax.jvp(f, (p, x), (p, x)),
        "jvp of x alone": lambda jax, f, p, x: jax.jvp(lambda x: f(p, x), (x,), (x,)),
        "jacfwd": lambda jax, f, p, x: jax.jacfwd(f, argnums=1)(p, x),
        "linearize": lambda jax, f, p, x: jax.jit(jax.linearize(lambda x: f(p, x), x)[1])(x),
        "jit of a pullback": lambda jax, f, p, x: jax.jit(jax.vjp(f, p, x)[1])(jax.numpy.asarray(2.0)),
        "hessian": lambda jax, f, p, x: jax.hessian(f, argnums=1)(p, x),
        "grad of grad": lambda jax, f, p, x: jax.grad(
            lambda x: jax.numpy.sum(jax.grad(f, argnums=1)(p, x) ** 2)
        )(x),
        "vmap": lambda jax, f, p, x: jax.vmap(f, in_axes=(None, 0))(p, jax.numpy.stack([x, 2 * x])),
        "vmap of grad": lambda jax, f, p, x: jax.vmap(jax.grad(f), in_axes=(None, 0))(
            p, jax.numpy.stack([x, 2 * x])
        ),
        "remat": lambda jax, f, p, x: jax.grad(jax.checkpoint(f))(p, x),
        "jit of grad": lambda jax, f, p, x: jax.jit(jax.grad(f))(p, x),
        "constants in jit": lambda jax, f, p, x: jax.jit(lambda: f(p, x))(),
    }


@pytest.mark.parametrize("mode", jax_modes())
def test_every_transformation_of_jax_gives_what_the_reference_gives(mode: str, pure: Any) -> None:
    import jax

    assert_like_the_reference(lambda: jax_modes()[mode](jax, *pure))


@pytest.mark.parametrize("compiled", [False, True])
def test_results_stay_where_the_arrays_are_committed(
    compiled: bool, pure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    monkeypatch.setattr("xplstm._stack._jax.WORTH_COMPILING", 0 if compiled else 10**9)
    x = pure[2]
    lstm = lstm_of("jax")
    assert not lstm(x)[0].committed
    device = jax.devices("cpu")[-1]
    there = jax.device_put(x, device)
    for y in (lstm(there)[0], lstm.freeze()(there)[0]):
        assert y.committed
        assert y.devices() == {device}
    gradient = jax.grad(lambda x: jax.numpy.sum(lstm(x)[1].h))(there)
    assert gradient.committed, "y has no gradient, whose place could be taken"
    assert (np.asarray(lstm(there)[0]) == np.asarray(lstm(x)[0])).all()


def test_shapes_that_recur_are_converted_by_a_compiled_function(pure: Any) -> None:
    from xplstm._stack import _jax

    lstm, x = lstm_of("jax").freeze(), pure[2]
    want = np.asarray(lstm(x)[0])
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        identity = _jax._identity
        patch.setattr(_jax, "_identity", lambda device: calls.append(1) or identity(device))
        _jax._conversions.cache_clear()
        for _ in range(_jax.WORTH_COMPILING + 2):
            np.testing.assert_array_equal(np.asarray(lstm(x)[0]), want)
    assert len(calls) == 2


def test_a_call_makes_no_zeros_of_jax_again(pure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make zeros takes JAX as long as the kernel takes for a short sequence."""
    import jax
    from jax.interpreters import ad

    lstm, x = lstm_of("jax"), pure[2]
    gradient = jax.grad(lambda x: jax.numpy.sum(lstm(x)[1].h))
    want = gradient(x)
    monkeypatch.setattr(jax.numpy, "zeros", None)
    monkeypatch.setattr(ad, "instantiate_zeros", lambda a: a if type(a) is not ad.Zero else None)
    assert (gradient(x) == want).all()


MAPPED = """
import jax, numpy as np, xplstm
from jax.sharding import Mesh, PartitionSpec
lstm, x = xplstm.LSTM(3, 4, xp="jax", rng=0), jax.numpy.ones((2, 4, 3), "float32")
want = np.asarray(lstm(x)[0])
part = PartitionSpec(None, "b")
mesh = Mesh(np.asarray(jax.devices()), ("b",))
shard = jax.shard_map(lambda x: lstm(x)[0], mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
pmap = jax.pmap(lambda x: lstm(x)[0], in_axes=1, out_axes=1)
for _ in range(2):
    assert len(shard(x).devices()) == 2
    for y in (shard(x), jax.jit(shard)(x), pmap(x.reshape(2, 2, 2, 3)).reshape(want.shape), lstm(x)[0]):
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-6)
"""


def test_a_call_can_be_mapped_over_devices(jax: Any) -> None:
    """Zeros that are kept for one device must not reach a call on several, nor the other way round."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    ran = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr


# ---- which kernel


def test_explain_names_what_prevents_borrowing(pure: Any, trained: Any) -> None:
    import jax
    import torch

    seen: dict[str, str] = {}

    def look(name: str, lstm: xplstm.LSTM, x: Any) -> Any:
        explanation = lstm.explain(x)
        assert explanation.kernels == ("jax_scan" if name == "jit" else "reference",)
        seen[name] = explanation.reasons[0]["numpy_inplace"]
        return x

    jax.jit(lambda x: look("jit", lstm_of("jax"), x))(pure[2])
    torch.func.vmap(lambda x: look("vmap", lstm_of("torch"), x))(torch.ones(2, T, B, I, dtype=torch.float64))
    look("meta", xplstm.LSTM(I, H, xp="torch", device="meta"), torch.ones(T, B, I, device="meta"))
    assert "needs numpy arrays, got jax arrays; JAX traces them" in seen["jit"]
    assert "a transform of PyTorch" in seen["vmap"]
    assert "they are on meta" in seen["meta"]


def test_parameters_that_jax_traces_count_too(pure: Any) -> None:
    import jax

    lstm, x = lstm_of("jax"), pure[2]

    def f(params: Any) -> Any:
        lstm.params = params
        assert lstm.explain(x).kernels == ("jax_scan",)
        return lstm(x)[0]

    jax.jit(f)(lstm.params)


def test_a_pinned_kernel_is_honoured_or_refuses(pure: Any) -> None:
    import jax

    lstm, x = lstm_of("jax"), pure[2]
    with xplstm.use_kernel("numpy_inplace"):
        assert lstm.explain(x).kernels == ("numpy_inplace",)
        with pytest.raises(xplstm.KernelError, match=r"numpy_inplace.*JAX traces them"):
            jax.jit(lstm)(x)
