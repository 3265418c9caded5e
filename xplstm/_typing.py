"""Types that every module uses.

The array API standard defines behaviour, not a class. `Array` lists the attributes that this package uses.
Arrays of NumPy, CuPy, PyTorch, JAX, Dask and array-api-strict have all these attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, Self, SupportsIndex, TypeAlias

import numpy as np


class Array(Protocol):
    """An array of any library, with the attributes that this package uses."""

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
"""An array in a module that supports only CuPy, which uses attributes that `Array` does not list."""
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
"""A layer's dtype: its name, or the dtype of a library."""
Lengths: TypeAlias = Array | Sequence[SupportsIndex] | SupportsIndex | None
"""The number of steps of each batch entry; one number without a batch axis."""


class Proof(NamedTuple):
    """The result of a kernel's trials on one device, for one kind of problem."""

    passed: bool
    text: str
    """What was proven and when, or why the kernel is not selected."""
