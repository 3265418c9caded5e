"""Convert raw bytes to arrays; dtype names and widths of all file formats."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._errors import FormatError
from xplstm.io._contents import show

_PLAIN = {
    "bool": 8,
    "uint8": 8,
    "int8": 8,
    "uint16": 16,
    "int16": 16,
    "uint32": 32,
    "int32": 32,
    "uint64": 64,
    "int64": 64,
    "float16": 16,
    "float32": 32,
    "float64": 64,
    "complex64": 64,
    "complex128": 128,
}
# Dtypes that NumPy does not have. Of these, only bfloat16 can be read.
BITS = _PLAIN | {
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float6_e2m3": 6,
    "float6_e3m2": 6,
    "float4_e2m1": 4,
}


_MOST_AXES = 32
_MOST = 1 << 48


def check_numbers(where: str, name: str, numbers: Any) -> None:
    """Check that the numbers of a shape, strides or offset are integers in [0, 2**48]."""
    if not isinstance(numbers, list | tuple) or not all(type(n) is int and 0 <= n <= _MOST for n in numbers):
        msg = f"{where}: {show(name)} has a shape or offset that is not a list of integers in [0, 2**48]"
        raise FormatError(msg)


def count(where: str, name: str, shape: Any) -> int:
    """Check a shape from a file, and return its number of elements."""
    check_numbers(where, name, shape)
    if len(shape) > _MOST_AXES or math.prod(shape) > _MOST:
        msg = f"{where}: {show(name)} has a shape with more axes or elements than an array can have"
        raise FormatError(msg)
    return math.prod(shape)


def size(where: str, name: str, dtype: str, shape: Any) -> int:
    """Return the number of bytes of a tensor."""
    return -(-count(where, name, shape) * BITS[dtype] // 8)


def as_array(where: str, name: str, raw: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return little-endian bytes as an array; a view if NumPy has the dtype."""
    if dtype == "bfloat16":
        return _bfloat16(np.frombuffer(raw, dtype="<u2")).reshape(shape)
    if dtype not in _PLAIN:
        msg = f"{where}: {show(name)} has dtype {dtype}, which is not supported"
        raise FormatError(msg)
    # From its text, a native dtype is the one that prints as float32, not as <f4.
    little = np.dtype(np.dtype(dtype).newbyteorder("<").str)
    return np.frombuffer(raw, dtype=little).reshape(shape)


def _bfloat16(bits: np.ndarray) -> np.ndarray:
    """Convert bits to bfloat16 numbers, or to equal float32 numbers if ml_dtypes is missing."""
    if importlib.util.find_spec("ml_dtypes") is not None:
        return bits.astype(np.uint16, copy=False).view(_array.dtype_from_name(np, "bfloat16"))
    return (bits.astype(np.uint32) << 16).view(np.float32)
