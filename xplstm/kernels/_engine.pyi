"""The extension module of `native` and of CuPy's loops, which `_native/module.c` defines."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np

_Result = TypeVar("_Result")
_Handle: TypeAlias = object
_Optional: TypeAlias = np.ndarray | None
_Matrix: TypeAlias = np.ndarray | tuple[np.ndarray, np.ndarray | None] | None

def interface() -> int: ...
def isas() -> list[tuple[str, bool]]: ...
def release_memory() -> None: ...
def in_ieee(call: Callable[[], _Result], /) -> _Result: ...
def walks_alone() -> int: ...
def worth_threads() -> int: ...
def units(packed: _Handle, /) -> int: ...
def apply(isa: str, dtype: str, function: str, x: np.ndarray, y: np.ndarray, /) -> None: ...
def draw(
    key_low: int,
    key_high: int,
    purpose: int,
    stream: int,
    start: int,
    p: float,
    sizes: tuple[int, int, int, int],
    flags: np.ndarray,
    threads: int,
    /,
) -> None: ...
def pack(
    isa: str,
    dtype: str,
    storage: int,
    I: int,
    H: int,
    proj_size: int,
    room: Callable[[int], np.ndarray],
    threads: int,
    weight_ih: _Matrix,
    weight_hh: _Matrix,
    bias_ih: _Optional,
    bias_hh: _Optional,
    weight_hr: _Matrix,
    weight_ch: _Optional,
    pointwise: tuple[Any, ...] | None,
    /,
) -> _Handle: ...
def forward(
    packed: tuple[_Handle, ...],
    reverse: tuple[bool, ...],
    x: np.ndarray,
    h_0: np.ndarray,
    c_0: np.ndarray,
    lengths: _Optional,
    mask: _Optional,
    fresh: _Optional,
    noise: tuple[tuple[_Optional, ...], ...] | None,
    y: np.ndarray,
    h_n: np.ndarray,
    c_n: np.ndarray,
    kept: tuple[tuple[np.ndarray, ...], ...] | None,
    threads: int,
    /,
) -> None: ...
def stepper(
    packed: tuple[_Handle, ...],
    threads: int,
    array: type,
    dtype: np.dtype,
    empty: Callable[..., np.ndarray],
    state: type,
    order: int,
    /,
) -> Callable[[Any, Any], Any]: ...
def issue(
    functions: tuple[int, int, int, int, int],
    handle: int,
    stream: int,
    workspace: int,
    workspace_bytes: int,
    operations: np.ndarray,
    start: int,
    count: int,
    by: int,
    /,
) -> tuple[bool, int, int, int] | None: ...
def pin_shares(how: int, /) -> None: ...
def backward(
    packed: tuple[_Handle, ...],
    reverse: tuple[bool, ...],
    weights: tuple[tuple[_Optional, ...], ...],
    x: np.ndarray,
    h_0: np.ndarray,
    lengths: _Optional,
    mask: _Optional,
    fresh: _Optional,
    noise: tuple[tuple[_Optional, ...], ...] | None,
    dy: np.ndarray,
    kept: tuple[tuple[np.ndarray, ...], ...],
    dx: _Optional,
    dh_0: np.ndarray,
    dc_0: np.ndarray,
    gradients: tuple[tuple[_Optional, ...], ...],
    threads: int,
    /,
) -> None: ...
