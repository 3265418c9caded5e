"""Call the LSTM of cuDNN directly, one algorithm at a time.

PyTorch and JAX select an algorithm of cuDNN automatically. This module measures each algorithm that cuDNN
allows. ctypes loads the library from PyTorch's packages or from the system. Only the benchmark uses it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from xplstm._errors import BackendError, KernelError
from xplstm.cli.peers import Shape

NAME = "libcudnn.so.9"
WHEELS = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")

CODES = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "z": ctypes.c_size_t,
    "f": ctypes.c_float,
    "q": ctypes.c_ulonglong,
}
# Argument types of each function, one letter per argument; all functions return a status.
SIGNATURES = {
    "cudnnCreate": "p",
    "cudnnDestroy": "p",
    "cudnnSetStream": "pp",
    "cudnnCreateDropoutDescriptor": "p",
    "cudnnSetDropoutDescriptor": "ppfpzq",
    "cudnnDestroyDropoutDescriptor": "p",
    "cudnnCreateRNNDescriptor": "p",
    "cudnnSetRNNDescriptor_v8": "piiiiiiiiiiiipu",
    "cudnnDestroyRNNDescriptor": "p",
    "cudnnBuildRNNDynamic": "ppi",
    "cudnnCreateRNNDataDescriptor": "p",
    "cudnnSetRNNDataDescriptor": "piiiiipp",
    "cudnnDestroyRNNDataDescriptor": "p",
    "cudnnCreateTensorDescriptor": "p",
    "cudnnSetTensorNdDescriptor": "piipp",
    "cudnnDestroyTensorDescriptor": "p",
    "cudnnGetRNNWeightSpaceSize": "ppp",
    "cudnnGetRNNTempSpaceSizes": "ppippp",
    "cudnnGetRNNWeightParams": "ppizpipppp",
    "cudnnRNNForward": "ppippppppppppp" + "zpzpzp",
    "cudnnRNNBackwardData_v8": "pppppppppppppppp" + "zpzpzp",
    "cudnnRNNBackwardWeights_v8": "ppippppppp" + "zpzpzp",
}

ALGORITHMS = {"standard": 0, "static": 1, "dynamic": 2, "small": 3}
DYNAMIC = ALGORITHMS["dynamic"]
LSTM, BOTH_BIASES, ONE_DIRECTION, LINEAR_INPUT, PADDED = 2, 2, 0, 0, 1
INFERENCE, TRAINING = 0, 1
BY_TIME = 0
ADD = 0
FLOAT, HALF, BFLOAT16 = 0, 2, 9
DEFAULT_MATH, TENSOR_MATH, FMA_MATH = 0, 1, 3


class Numbers(NamedTuple):
    """Constants of cuDNN for a precision."""

    data: int
    math: int


# The choice of PyTorch: tensor cores, except for float32 without TF32.
NUMBERS = {
    "float32": Numbers(FLOAT, FMA_MATH),
    "tf32": Numbers(FLOAT, DEFAULT_MATH),
    "float16": Numbers(HALF, TENSOR_MATH),
    "bfloat16": Numbers(BFLOAT16, DEFAULT_MATH),
}


@cache
def library() -> ctypes.CDLL:
    """Load cuDNN and declare the types of its functions."""
    if importlib.util.find_spec("torch"):
        # The import of PyTorch loads cuDNN and the libraries that it needs.
        importlib.import_module("torch")
    for path in (NAME, *_in_wheels()):
        try:
            found = ctypes.CDLL(path)
        except OSError:
            continue
        for name, arguments in SIGNATURES.items():
            getattr(found, name).argtypes = [CODES[letter] for letter in arguments]
        found.cudnnGetVersion.restype = ctypes.c_size_t
        found.cudnnGetErrorString.restype = ctypes.c_char_p
        return found
    msg = f"{NAME} is neither on the system nor in a package: pip install {WHEELS[0]}"
    raise BackendError(msg)


def _in_wheels() -> list[str]:
    """Return the folders in which NVIDIA's packages install the library."""
    found = []
    for wheel in WHEELS:
        try:
            files = importlib.metadata.files(wheel) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found += [str(file.locate()) for file in files if file.name == NAME]
    return found


def version() -> str:
    """Return the version of cuDNN."""
    number = int(library().cudnnGetVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def call(name: str, *arguments: Any) -> None:
    """Call one function, and raise an error if its status is not success."""
    status = getattr(library(), name)(*arguments)
    if status:
        msg = f"{name}: {library().cudnnGetErrorString(status).decode()}"
        raise KernelError(msg)


class Handle:
    """Object of cuDNN, which is destroyed together with this one."""

    def __init__(self, kind: str, *settings: Any) -> None:
        self.value = ctypes.c_void_p()
        self._destroy = getattr(library(), "cudnnDestroy" + kind)
        call("cudnnCreate" + kind, ctypes.byref(self.value))
        if settings:
            call(settings[0], self.value, *settings[1:])

    def __del__(self) -> None:
        if self.value:
            self._destroy(self.value)


class Layer:
    """One layer of one direction on CuPy arrays, from a zero state, on CuPy's current stream."""

    def __init__(
        self, cp: Any, shape: Shape, algorithm: str, precision: str, params: dict[str, np.ndarray], dtype: Any
    ) -> None:
        T, B, I, H = shape
        self._cp, self._dtype, self._shape = cp, dtype, shape
        numbers, kind = NUMBERS[precision], ALGORITHMS[algorithm]
        self._handle = Handle("", "cudnnSetStream", cp.cuda.get_current_stream().ptr)
        self._dropout = Handle(
            "DropoutDescriptor", "cudnnSetDropoutDescriptor", self._handle.value, 0.0, None, 0, 0
        )
        how = (kind, LSTM, BOTH_BIASES, ONE_DIRECTION, LINEAR_INPUT, numbers.data, FLOAT, numbers.math)
        sizes = (I, H, H, 1, self._dropout.value, PADDED)
        self._lstm = Handle("RNNDescriptor", "cudnnSetRNNDescriptor_v8", *how, *sizes)
        if kind == DYNAMIC:
            call("cudnnBuildRNNDynamic", self._handle.value, self._lstm.value, B)
        lengths = (ctypes.c_int * B)(*[T] * B)
        batch = ("cudnnSetRNNDataDescriptor", numbers.data, BY_TIME, T, B)
        self._x = Handle("RNNDataDescriptor", *batch, I, lengths, None)
        self._y = Handle("RNNDataDescriptor", *batch, H, lengths, None)
        dims, strides = (ctypes.c_int * 3)(1, B, H), (ctypes.c_int * 3)(B * H, H, 1)
        self._state = Handle("TensorDescriptor", "cudnnSetTensorNdDescriptor", numbers.data, 3, dims, strides)
        self._weights = self._space(self._size("cudnnGetRNNWeightSpaceSize"))
        self._gradients = self._space(self._weights.nbytes)
        self._load(params)
        self._work: dict[int, tuple[Any, Any]] = {}
        self._kept = cp.empty((T, B, H), dtype)
        self._zeros = cp.zeros((1, B, H), dtype)
        self._ends = [cp.empty((1, B, H), dtype) for _ in range(2)]

    def _space(self, size: int) -> Any:
        """Return memory for weights or gradients; elements without a weight are zero."""
        return self._cp.zeros(size // np.dtype(self._dtype).itemsize, self._dtype)

    def _size(self, name: str) -> int:
        size = ctypes.c_size_t()
        call(name, self._handle.value, self._lstm.value, ctypes.byref(size))
        return size.value

    def _spaces(self, mode: int) -> tuple[int, ...]:
        """Return the workspace, and for training the reserve space."""
        if mode not in self._work:
            work, reserve = ctypes.c_size_t(), ctypes.c_size_t()
            sizes = ctypes.byref(work), ctypes.byref(reserve)
            call(
                *("cudnnGetRNNTempSpaceSizes", self._handle.value, self._lstm.value, mode),
                *(self._x.value, *sizes),
            )
            empty = self._cp.empty
            self._work[mode] = empty(work.value, np.uint8), empty(reserve.value, np.uint8)
        work_space, reserved = self._work[mode]
        return work_space.nbytes, work_space.data.ptr, reserved.nbytes, reserved.data.ptr

    def _place(self, space: Any, gate: int, bias: bool) -> int:
        """Return the index of a gate's first weight or bias; gates 4 to 7 are those of h."""
        matrix, vector = Handle("TensorDescriptor"), Handle("TensorDescriptor")
        at = ctypes.c_void_p(), ctypes.c_void_p()
        call(
            *("cudnnGetRNNWeightParams", self._handle.value, self._lstm.value, 0, space.nbytes),
            *(space.data.ptr, gate, matrix.value, ctypes.byref(at[0]), vector.value, ctypes.byref(at[1])),
        )
        return ((at[bias].value or 0) - int(space.data.ptr)) // int(space.itemsize)

    def _load(self, params: dict[str, np.ndarray]) -> None:
        """Load the weights; cuDNN and xplstm have the same gate order."""
        H = self._shape.H
        for offset, side in ((0, "ih"), (4, "hh")):
            for bias, kind in ((False, "weight"), (True, "bias")):
                a = self._cp.asarray(params[f"{kind}_{side}_l0"])
                for gate in range(4):
                    rows = a[gate * H : (gate + 1) * H].reshape(-1)
                    first = self._place(self._weights, offset + gate, bias)
                    self._weights[first : first + rows.size] = rows.astype(self._dtype)

    def gradient(self) -> Any:
        """Return the gradient with respect to weight_hh (4H, H) of the last training step."""
        H = self._shape.H
        firsts = [self._place(self._gradients, 4 + gate, False) for gate in range(4)]
        return self._cp.concatenate([self._gradients[f : f + H * H].reshape(H, H) for f in firsts])

    def forward(self, x: Any, mode: int = INFERENCE) -> Any:
        """Return y (T, B, H); training keeps it in one buffer, which the backward pass reads."""
        y = self._kept if mode == TRAINING else self._cp.empty(self._kept.shape, self._dtype)
        call(
            *("cudnnRNNForward", self._handle.value, self._lstm.value, mode, None),
            *(self._x.value, x.data.ptr, self._y.value, y.data.ptr),
            *self._of_state(1),
            *(self._weights.nbytes, self._weights.data.ptr, *self._spaces(mode)),
        )
        return y

    def _of_state(self, zeros: int) -> list[Any]:
        """Return for h and for c: the descriptor, arrays of zeros to read, and one array to write."""
        read = [self._zeros.data.ptr] * zeros
        return [a for end in self._ends for a in (self._state.value, *read, end.data.ptr)]

    def train(self, x: Any, dy: Any) -> Any:
        """Run forward and backward; return dx, and the weight gradients in a separate buffer."""
        y, dx = self.forward(x, TRAINING), self._cp.empty(x.shape, self._dtype)
        engine, spaces = (self._handle.value, self._lstm.value), self._spaces(TRAINING)
        call(
            *("cudnnRNNBackwardData_v8", *engine, None, self._y.value, y.data.ptr, dy.data.ptr),
            *(self._x.value, dx.data.ptr, *self._of_state(2)),
            *(self._weights.nbytes, self._weights.data.ptr, *spaces),
        )
        # cuDNN can only add to this buffer.
        self._gradients.fill(0)
        call(
            *("cudnnRNNBackwardWeights_v8", *engine, ADD, None, self._x.value, x.data.ptr),
            *(self._state.value, self._zeros.data.ptr, self._y.value, y.data.ptr),
            *(self._gradients.nbytes, self._gradients.data.ptr, *spaces),
        )
        return dx
