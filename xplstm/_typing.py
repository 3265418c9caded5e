"""Types that every room uses.

The array API standard defines behaviour, not a class. `Array` lists what the library itself asks of an array;
arrays of NumPy, CuPy, PyTorch, JAX, Dask and array-api-strict have all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, Self, SupportsIndex, TypeAlias

import numpy as np


class Array(Protocol):
    """An array of any library: what the library itself asks of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def T(self) -> Self: ...

    def __getitem__(self, key: Any, /) -> Self: ...

    def __add__(self, other: Any, /) -> Self: ...

    def __radd__(self, other: Any, /) -> Self: ...

    def __sub__(self, other: Any, /) -> Self: ...

    def __rsub__(self, other: Any, /) -> Self: ...

    def __mul__(self, other: Any, /) -> Self: ...

    def __rmul__(self, other: Any, /) -> Self: ...

    def __truediv__(self, other: Any, /) -> Self: ...

    def __rtruediv__(self, other: Any, /) -> Self: ...

    def __pow__(self, other: Any, /) -> Self: ...

    def __matmul__(self, other: Any, /) -> Self: ...

    def __neg__(self) -> Self: ...

    def __and__(self, other: Any, /) -> Self: ...

    def __or__(self, other: Any, /) -> Self: ...

    def __invert__(self) -> Self: ...

    def __eq__(self, other: Any, /) -> Self: ...  # type: ignore[override]

    def __lt__(self, other: Any, /) -> Self: ...

    def __le__(self, other: Any, /) -> Self: ...

    def __gt__(self, other: Any, /) -> Self: ...

    def __ge__(self, other: Any, /) -> Self: ...

    def __float__(self) -> float: ...


CuPyArray: TypeAlias = Any
"""In rooms of CuPy alone, which use more of its arrays than `Array` lists."""
Namespace: TypeAlias = ModuleType
Device: TypeAlias = Any
DType: TypeAlias = Any
Params: TypeAlias = Mapping[str, Array]
Merge: TypeAlias = Literal["concat", "sum", "mean", "product", "none"]
Nonlinearity: TypeAlias = Literal["tanh", "relu"]
Precision: TypeAlias = Literal["tf32"]


class _TorchDType(Protocol):
    """A dtype of PyTorch."""

    @property
    def is_floating_point(self) -> bool: ...


FloatDType: TypeAlias = (
    Literal["float32", "float64", "float16", "bfloat16"] | np.dtype[Any] | type[Any] | _TorchDType
)
"""What names a dtype of a layer: a word, or a dtype of a library."""
Lengths: TypeAlias = Array | Sequence[SupportsIndex] | SupportsIndex | None
"""Steps of each batch entry; one number without a batch."""


class Proof(NamedTuple):
    """Whether a kernel that needs a proof has one, for a device and a kind of numbers."""

    passed: bool
    text: str
    """What was proven and when, or why the kernel is not chosen."""
