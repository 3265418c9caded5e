"""Tensors of PyTorch and arrays of JAX on a GPU that is pretended: CuPy's stand-in runs on their memory.

Never a run on a GPU. The libraries are real and on the processor. They say that their arrays are on a GPU,
and the exchange with CuPy fails where it would copy, wait, or leave the stream that PyTorch uses.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import xplstm
from tests.conftest import backend, open_backend
from tests.cuda_emulation import compiled, standin
from tests.support.cases import CASES, run
from xplstm import Variant, _array
from xplstm._problem import Loan
from xplstm._stack import _borrow

pytestmark = [
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here to emulate kernels"),
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
]

GPU = 1
STREAM = 0x51
T, B, I, H = 3, 2, 2, 3
GPU_KERNELS = ["cupy_elementwise", "cupy_fused", "cupy_persistent", "cupy_block"]


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Import the stand-in as CuPy, on a machine where it can run."""
    named, unusable = _array.named_namespace, _array.why_unusable
    monkeypatch.setattr(
        _array, "named_namespace", lambda name: standin.LIBRARY if name == "cupy" else named(name)
    )
    monkeypatch.setattr(_array, "why_unusable", lambda name: None if name == "cupy" else unusable(name))
    with standin.installed():
        standin.queues.clear()
        yield


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return PyTorch, whose tensors claim to be on a GPU, with a separate current stream."""
    open_backend("torch")
    import torch
    from torch.overrides import TorchFunctionMode

    tensor, device = torch.Tensor, torch.device("cuda", GPU)
    address = getattr(request, "param", STREAM)
    export = tensor.__dlpack__

    class Pretended(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            answers = {tensor.is_cpu.__get__: False, tensor.device.__get__: device}  # type: ignore[attr-defined]
            if func in answers:
                return answers[func]
            assert func is not tensor.numpy, "a copy to the host"
            if func is tensor.__dlpack_device__:
                return 2, GPU
            if func is export:
                return exported(*args, **kwargs)
            if isinstance(kwargs.get("device"), torch.device):
                kwargs["device"] = "cpu"
            return func(*("cpu" if isinstance(a, torch.device) else a for a in args), **kwargs)

    def exported(a: Any, *, stream: int, max_version: Any, dl_device: Any, copy: Any) -> Any:
        """Export like PyTorch on a GPU: refuse another current device, and wait for another stream."""
        assert standin.Device.current.id == GPU
        assert stream == (address or 1), f"PyTorch would make stream {stream} wait for its own"
        assert (dl_device, copy) == (None, None)
        return export(a, max_version=max_version)

    stream = SimpleNamespace(cuda_stream=address, __cuda_stream__=lambda: (0, address))
    assert list(inspect.signature(torch.cuda.current_stream).parameters) == ["device"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with Pretended():
        yield torch


def backward(outputs: list[Any], gradients: list[Any], create_graph: bool = False) -> None:
    """Run ``torch.autograd.backward`` without its part in which no tensor states its device."""
    from torch.autograd.graph import _engine_run_backward

    how = {"allow_unreachable": True, "accumulate_grad": True}
    _engine_run_backward(tuple(outputs), tuple(gradients), create_graph, create_graph, (), **how)


def plain(a: Any) -> np.ndarray:
    """Return the values of a tensor that claims to be on a GPU, or of a JAX array."""
    if "torch" not in type(a).__module__:
        return np.asarray(a)
    from torch._C import DisableTorchFunction

    with DisableTorchFunction():
        return _array.to_numpy(a)


@pytest.mark.parametrize("kernel", GPU_KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["plain", "bidirectional_ragged", "projection_ragged"])
@pytest.mark.parametrize("name", [backend("torch")])
def test_results_are_those_of_cupy_on_the_stream_of_pytorch(
    name: str, case: str, dtype: str, kernel: str, on_gpu: Any
) -> None:
    made = CASES[case]
    if kernel in ("cupy_block", "cupy_persistent") and made.options.get("proj_size"):
        pytest.skip(f"{kernel} has no projection")
    host = {k: a.astype(_array.dtype_from_name(np, dtype)) for k, a in made.arrays().items()}
    arrays = {k: _array.asarray(a, _array.named_namespace("torch")) for k, a in host.items()}
    lstm = made.lstm(dtype=dtype, xp="torch")
    valid = {k: v if v is None or k == "lengths" else on_gpu.asarray(v) for k, v in made.valid().items()}
    with xplstm.use_kernel(kernel):
        assert set(lstm.explain(arrays["x"], **valid).kernels) == {kernel}
        got = run(lstm, arrays, **valid).flat()
        assert standin.launched
        for a in arrays.values():
            a.requires_grad_()
        y, state = lstm(arrays["x"], (arrays["h_0"], arrays["c_0"]), **valid)
        backward([y, *state], [arrays[k].detach() for k in ("dy", "dh_n", "dc_n")])
    assert standin.queues == {(GPU, STREAM)}
    with xplstm.use_kernel("reference"):
        want = run(made.lstm(dtype="float64"), made.arrays(), **made.valid()).flat()
    tolerance = 1e-5 if dtype == "float32" else 0.06
    for key, value in want.items():
        np.testing.assert_allclose(plain(got[key]).astype("f8"), value, rtol=0, atol=tolerance, err_msg=key)
    for key in ("x", "h_0", "c_0"):
        np.testing.assert_array_equal(plain(arrays[key].grad), plain(got[f"d{key}"]), err_msg=key)


def layer(kind: Any = xplstm.LSTM, **options: Any) -> Any:
    """Return a layer of PyTorch."""
    return kind(I, H, rng=0, xp="torch", **options)


def drawn(torch: Any, *shape: int) -> Any:
    """Return random numbers in float32."""
    return torch.tensor(np.random.default_rng(sum(shape)).normal(size=shape).astype("float32"))


@pytest.mark.parametrize("on_gpu", [0], indirect=True)
def test_the_default_stream_of_pytorch_is_the_legacy_one(on_gpu: Any) -> None:
    lstm, x = layer(), drawn(on_gpu, T, B, I).requires_grad_()
    lstm(x)  # proves the kernel on a stream of CuPy
    standin.queues.clear()
    y, _ = lstm(x)
    backward([y], [on_gpu.ones_like(y)])
    assert standin.queues == {(GPU, 0)}


def test_nothing_is_copied_on_the_way(on_gpu: Any) -> None:
    a = drawn(on_gpu, T, B, I)
    library = _borrow._torch_on_gpu()
    lent = library.loan([a], False)
    assert isinstance(lent, Loan)
    with library.bound(lent):
        there = library.view(a)
        assert there.data.ptr == a.data_ptr()
        made = standin.asarray(np.ones((2, 3), "float32"))
        (back,) = library.own([made], a)
        assert back.data_ptr() == made.data.ptr
        strided = library.view(a.transpose(0, 2))
        assert strided.strides == (4, 4 * I, 4 * B * I)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layer(xplstm.GRU, num_layers=2, bidirectional=True),
        lambda: layer(xplstm.RNN),
        lambda: layer(variant=Variant(peepholes=True, cell_clip=0.3)),
        lambda: layer(proj_size=2, batch_first=True),
    ],
)
def test_every_cell_and_resets(make: Callable[[], Any], on_gpu: Any) -> None:
    ours = make()
    first = getattr(ours, "batch_first", False)
    x = drawn(on_gpu, *((B, T) if first else (T, B)), I)
    reset = on_gpu.tensor([[False, True], [True, False], [False, False]])
    given = {"reset": reset.T if first else reset, "lengths": [3, 2]}
    assert set(ours.explain(x, **given).kernels) == {"cupy_elementwise"}
    y, state, pullback = ours.vjp(x, **given)
    gradients = pullback(on_gpu.ones_like(y), state)
    leaf = x.clone().requires_grad_()
    out, _ = ours(leaf, **given)
    backward([out], [on_gpu.ones_like(out)])
    assert standin.queues == {(GPU, STREAM)}
    with xplstm.use_kernel("reference"):
        y_2, state_2, pullback = ours.vjp(x, **given)
        want = pullback(on_gpu.ones_like(y), state_2)
        out, _ = ours(again := x.clone().requires_grad_(), **given)
        backward([out], [on_gpu.ones_like(out)])
    np.testing.assert_allclose(plain(y), plain(y_2), atol=1e-6)
    np.testing.assert_allclose(plain(gradients[0]), plain(want[0]), atol=1e-5)
    np.testing.assert_allclose(plain(leaf.grad), plain(again.grad), atol=1e-5)
    for name, value in want[2].items():
        np.testing.assert_allclose(plain(gradients[2][name]), plain(value), atol=1e-5, err_msg=name)


def test_frozen_layers_and_single_steps(on_gpu: Any) -> None:
    lstm, x = layer(num_layers=2), drawn(on_gpu, T, B, I)
    frozen, state = lstm.freeze(), None
    lstm(x)  # proves the kernel on a stream of CuPy
    standin.queues.clear()
    y, end = frozen(x)
    steps = []
    for t in range(T):
        y_t, state = frozen.step(x[t], state)
        steps.append(plain(y_t))
    np.testing.assert_allclose(np.stack(steps), plain(y), atol=1e-6)
    np.testing.assert_allclose(plain(state.c), plain(end.c), atol=1e-6)
    assert standin.queues == {(GPU, STREAM)}


@pytest.mark.parametrize("shape", [(0, B, I), (T, 0, I)])
def test_empty_tensors(shape: tuple[int, ...], on_gpu: Any) -> None:
    lstm, x = layer(), drawn(on_gpu, *shape).requires_grad_()
    y, state = lstm(x)
    backward([y], [on_gpu.ones_like(y)])
    assert tuple(y.shape) == (*shape[:2], H)
    assert x.grad.shape == x.shape
    assert not plain(state.h).any()


@pytest.mark.filterwarnings("ignore:Using backward")
def test_double_backward_is_generic(on_gpu: Any) -> None:
    """Compare second-order gradients of the layer on the GPU with those of generic code."""

    def twice() -> np.ndarray:
        x = drawn(on_gpu, T, B, I).requires_grad_()
        y, _ = layer()(x)
        backward([(y**2).sum()], [on_gpu.ones(())], create_graph=True)
        first, x.grad = x.grad, None
        backward([(first**2).sum()], [on_gpu.ones(())])
        return plain(x.grad)

    got = twice()
    with xplstm.use_kernel("reference"):
        want = twice()
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, atol=1e-6)


def reason(torch: Any) -> str:
    """Return why CuPy's kernels do not run a call, which the generic code then runs."""
    found = layer().explain(drawn(torch, T, B, I))
    assert found.kernels == ("reference",)
    return str(found.reasons[0]["cupy_elementwise"])


def test_what_cannot_be_lent_is_refused_by_name(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(on_gpu.cuda, "is_current_stream_capturing", lambda: True)
        assert "PyTorch captures a CUDA graph" in reason(on_gpu)
    with monkeypatch.context() as patch:
        patch.setattr(on_gpu.version, "hip", "6.0")
        assert "has no CUDA streams" in reason(on_gpu)
    with monkeypatch.context() as patch:
        patch.delattr(on_gpu.cuda.Stream, "__cuda_stream__")
        assert f"PyTorch {on_gpu.__version__} has no CUDA streams" in reason(on_gpu)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["cupy"], "__version__", "13.4.0")
        assert "on cuda:1, where CuPy's kernels cannot run: the kernel needs CuPy 14" in reason(on_gpu)
    with monkeypatch.context() as patch:
        patch.setattr(_array, "why_unusable", lambda name: "CUDA finds no device" * (name == "cupy") or None)
        assert "cannot run: CUDA finds no device" in reason(on_gpu)
    x = drawn(on_gpu, T, B, I)
    found = layer(variant=Variant(layer_norm=True)).explain(x)
    assert found.kernels == ("reference",)
    assert "not elementwise" in found.reasons[0]["cupy_elementwise"]
    with xplstm.use_kernel("native"), pytest.raises(xplstm.KernelError, match="needs numpy arrays"):
        layer()(x)


# ---- JAX


class Device(NamedTuple):
    """Attributes of a JAX device that the library reads."""

    platform: str


@pytest.fixture
def jax_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return JAX, whose arrays claim to be on a GPU, with other streams than CuPy's."""
    open_backend("jax")
    import jax

    array = type(jax.numpy.ones(1))
    export = array.__dlpack__
    device = Device("gpu")

    def exported(a: Any, *, stream: int, max_version: Any = None, copy: Any = None) -> Any:
        assert (standin.Device.current.id, stream) == (GPU, standin.Stream.consumer())
        assert copy is None
        return export(a)

    def imported(a: Any) -> Any:
        with standin.Device(GPU):
            assert a.__dlpack_device__() == (2, GPU)
            a.__dlpack__(stream=standin.Stream.consumer())
        return jax.numpy.asarray(np.array(a))

    monkeypatch.setattr(array, "devices", lambda _: {device})
    monkeypatch.setattr(array, "__dlpack_device__", lambda _: (2, GPU))
    monkeypatch.setattr(array, "__dlpack__", exported)
    monkeypatch.setattr(jax.dlpack, "from_dlpack", imported)
    return jax


@pytest.mark.parametrize("name", [backend("jax")])
def test_jax_outside_jit(name: str, jax_on_gpu: Any) -> None:
    """Calls and gradients wait for the device once in each direction."""
    jax = jax_on_gpu
    lstm = xplstm.LSTM(I, H, bidirectional=True, rng=0, xp="jax", dtype="float32")
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(T, B, I)), dtype="float32")
    stream = standin.Stream.current[GPU]

    def loss(params: Any, x: Any) -> Any:
        lstm.params = params
        return (lstm(x, lengths=[3, 1])[0] ** 2).sum()

    params = dict(lstm.params)
    assert lstm.explain(x).kernels == ("cupy_block",)
    standin.launched.clear()
    before = stream.waited_for
    y, _ = lstm(x)
    assert stream.waited_for == before + 2  # the weights are packed, and the call is made
    got = jax.grad(loss, argnums=(0, 1))(params, x)
    assert standin.launched
    assert {device for device, _ in standin.queues} == {GPU}
    with xplstm.use_kernel("reference"):
        want = jax.grad(loss, argnums=(0, 1))(params, x)
        lstm.params = params  # not those that JAX followed
        np.testing.assert_allclose(y, lstm(x)[0], atol=1e-6)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", [backend("jax")])
def test_what_jax_keeps_elsewhere_is_refused_by_name(
    name: str, jax_on_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lstm = xplstm.LSTM(I, H, rng=0, xp="jax")
    x = jax_on_gpu.numpy.ones((T, B, I), dtype="float32")
    seen = []
    jax_on_gpu.jit(lambda x: (seen.append(lstm.explain(x)), x)[1])(x)
    assert seen[0].kernels == ("jax_scan",)
    assert "JAX traces them" in seen[0].reasons[0]["cupy_elementwise"]
    for kind in (3, 10):  # memory of the host that CUDA reaches, and of ROCm
        monkeypatch.setattr(type(x), "__dlpack_device__", lambda _, kind=kind: (kind, 0))
        found = lstm.explain(x)
        assert found.kernels == ("jax_scan",)
        assert "not all are in CUDA memory" in found.reasons[0]["cupy_elementwise"]
