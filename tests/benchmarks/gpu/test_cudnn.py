"""Check the arguments of the calls of cuDNN with a library that only inspects them."""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.benchmarks.gpu import cudnn
from tests.cuda_emulation import standin
from xplstm._errors import BackendError, KernelError
from xplstm.cli.peers import Shape

SHAPE = Shape(4, 2, 3, 5)
# Bytes that the library requests.
WEIGHTS, WORK, RESERVE = 4096, 512, 384
STREAM = 4711


class Library:
    """Functions with the types of cuDNN that record their arguments; weights are stored gate by gate."""

    def __init__(self) -> None:
        self.called: list[tuple[str, tuple[Any, ...]]] = []
        self.alive: set[int] = set()
        for name, arguments in cudnn.SIGNATURES.items():
            codes = [cudnn.CODES[letter] for letter in arguments]
            made = ctypes.CFUNCTYPE(ctypes.c_int, *codes)(self._noting(name))
            setattr(self, name, made)
        self.fails = ""

    def cudnnGetErrorString(self, status: int) -> bytes:
        return f"status {status}".encode()

    def _noting(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append((name, arguments))
            if name == self.fails:
                return 3
            if name.startswith("cudnnCreate"):
                handle = max(self.alive, default=0) + 1
                self.alive.add(handle)
                ctypes.c_void_p.from_address(arguments[0]).value = handle
            elif name.startswith("cudnnDestroy"):
                self.alive.remove(arguments[0])
            elif name == "cudnnGetRNNWeightSpaceSize":
                ctypes.c_size_t.from_address(arguments[2]).value = WEIGHTS
            elif name == "cudnnGetRNNTempSpaceSizes":
                for at, size in zip(arguments[4:], (WORK, RESERVE), strict=True):
                    ctypes.c_size_t.from_address(at).value = size
            elif name == "cudnnGetRNNWeightParams":
                space, gate, weight, bias = arguments[4], arguments[5], arguments[7], arguments[9]
                ctypes.c_void_p.from_address(weight).value = space + 4 * 64 * gate
                ctypes.c_void_p.from_address(bias).value = space + 4 * (512 + 16 * gate)
            return 0

        return call


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(cudnn, "library", lambda: made)
    return made


def layer(
    algorithm: str = "standard", precision: str = "float32"
) -> tuple[cudnn.Layer, dict[str, np.ndarray]]:
    params = xplstm.LSTM(SHAPE.I, SHAPE.H, rng=1).params
    cp = standin.modules()["cupy"]
    cp.asarray, cp.concatenate = standin.asarray, np.concatenate
    cp.cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=STREAM)
    return cudnn.Layer(cp, SHAPE, algorithm, precision, params, np.dtype("float32")), params


def test_it_works_on_the_current_stream_of_cupy(library: Library) -> None:
    made, _ = layer()
    assert dict(library.called)["cudnnSetStream"] == (made._handle.value.value, STREAM)


def test_weights_stand_where_the_library_says(library: Library) -> None:
    made, params = layer()
    held = np.asarray(made._weights)
    H = SHAPE.H
    for gate in range(4):
        rows = slice(gate * H, (gate + 1) * H)
        for first, name in ((0, "ih"), (4, "hh")):
            want = params[f"weight_{name}_l0"][rows].ravel()
            start = 64 * (first + gate)
            np.testing.assert_array_equal(held[start : start + want.size], want)
            start = 512 + 16 * (first + gate)
            np.testing.assert_array_equal(held[start : start + H], params[f"bias_{name}_l0"][rows])
    made._gradients[...] = made._weights
    np.testing.assert_array_equal(made.gradient(), params["weight_hh_l0"])


def test_arguments_of_a_training_step(library: Library) -> None:
    made, _ = layer(precision="tf32")
    settings = dict(library.called)["cudnnSetRNNDescriptor_v8"]
    assert settings[1:13] == (0, 2, 2, 0, 0, 0, 0, 0, SHAPE.I, SHAPE.H, SHAPE.H, 1)
    assert settings[14] == 1
    x, dy = (standin.zeros((4, 2, n)) for n in (3, 5))
    made._gradients.fill(7)
    made.train(x, dy)
    called = dict(library.called)
    forward, back = called["cudnnRNNForward"], called["cudnnRNNBackwardData_v8"]
    weights = called["cudnnRNNBackwardWeights_v8"]
    y, zeros = made._kept.data.ptr, made._zeros.data.ptr
    assert forward[2] == cudnn.TRAINING
    assert (forward[5], forward[7], forward[9], forward[12]) == (x.data.ptr, y, zeros, zeros)
    assert (back[4], back[5], back[9], back[10], back[13], back[14]) == (y, dy.data.ptr, *[zeros] * 4)
    assert (weights[5], weights[7], weights[9]) == (x.data.ptr, zeros, y)
    assert weights[11] == made._gradients.data.ptr
    for call in (forward, back, weights):
        assert call[3 if call is not back else 2] is None, "lengths are in the descriptors"
        assert (call[-6], call[-4], call[-2]) == (WEIGHTS, WORK, RESERVE)
    assert not np.asarray(made._gradients).any(), "cuDNN adds to what is there"
    # The output must not be the input, and h and c must be different arrays.
    written = [forward[10], forward[13], back[11], back[15]]
    assert len({*written[:2], y, zeros}) == 4
    assert len({*written[2:], y, zeros}) == 4


def test_a_plan_is_built_for_the_dynamic_algorithm_alone(library: Library) -> None:
    layer("static")
    assert "cudnnBuildRNNDynamic" not in dict(library.called)
    layer("dynamic")
    assert dict(library.called)["cudnnBuildRNNDynamic"][2] == SHAPE.B


def test_a_status_is_an_error_with_its_name(library: Library) -> None:
    library.fails = "cudnnSetRNNDescriptor_v8"
    with pytest.raises(KernelError, match="cudnnSetRNNDescriptor_v8: status 3"):
        layer()


def test_everything_is_destroyed(library: Library) -> None:
    made, _ = layer()
    assert library.alive
    del made
    assert not library.alive


def test_every_precision_has_numbers() -> None:
    assert cudnn.NUMBERS["float32"] == (0, 3)
    assert cudnn.NUMBERS["tf32"] == (0, 0)
    assert {cudnn.NUMBERS[name].data for name in ("float16", "bfloat16")} == {2, 9}


def test_the_library_has_every_function() -> None:
    """If cuDNN is installed, this check needs no GPU."""
    try:
        found = cudnn.library()
    except BackendError as error:
        pytest.skip(str(error))
    assert found.cudnnRNNForward.argtypes[2] is ctypes.c_int
    assert cudnn.version().startswith("9.")
