"""Find the library of an array, query it, and move arrays between libraries.

Only this module imports `array_api_compat`. Arrays are recognised by their type. A library is imported only
when a user names it, never to find out whether it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from functools import cache, lru_cache, update_wrapper
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

import array_api_compat
import numpy as np

from xplstm._choice import Choice, Chosen
from xplstm._errors import ArgumentError, BackendError, DTypeError, XplstmError
from xplstm._typing import Array, Device, DType, Namespace

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The floating dtypes of layers, losses and optimisers."""

FEW = 2**14
"""Elements up to which zeros are kept for later calls; a compiled function has them as constants."""

# Backend name -> (module with its array API namespace, top-level package).
BACKENDS = {
    "numpy": ("numpy", "numpy"),
    "cupy": ("array_api_compat.cupy", "cupy"),
    "torch": ("array_api_compat.torch", "torch"),
    "jax": ("jax.numpy", "jax"),
    "dask": ("array_api_compat.dask.array", "dask"),
    "array_api_strict": ("array_api_strict", "array_api_strict"),
}

_SHORT = {module: name for name, (module, _) in BACKENDS.items()}

_DTYPE_NAMES: dict[np.dtype, str] = {}
"""Names of NumPy's dtypes. NumPy recomputes a name at every access, and `step` reads names often."""

_backend: Choice[str | None] = Choice("xplstm_backend", None)

# The module of each library whose `room` returns faster functions, or None. These modules import this one, so
# `faster` loads them by name, and only for arrays of that library.
_FASTER = {"cupy": "xplstm.kernels._cuda.parts"}

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


def use_backend(name: str) -> Chosen[str | None]:
    """Set the backend of new parameters that are created without ``xp=``.

    A computation runs where its arrays are. This setting affects only new arrays.
    A call sets the backend for the whole process at once. As a context manager,
    the call sets the backend inside its block, for the current thread or task.
    A call inside such a block has effect until the end of the block.

    Parameters
    ----------
    name : {"numpy", "cupy", "torch", "jax", "dask", "array_api_strict", "auto"}
        ``"auto"`` selects CuPy if a CUDA device works, else NumPy.

    Returns
    -------
    context manager
        Optional to enter. Leaving its block restores the previous setting.

    Raises
    ------
    ArgumentError
        If `name` is unknown.
    BackendError
        If the backend cannot run here. The message names what is missing.

    Examples
    --------
    >>> import xplstm
    >>> with xplstm.use_backend("numpy"):
    ...     lstm = xplstm.LSTM(3, 2)
    >>> type(lstm.params["weight_hh_l0"]).__name__
    'ndarray'
    """
    resolve(name)
    return Chosen(_backend, name)


def default_namespace() -> Namespace:
    """Return the namespace of new arrays: from `use_backend`, else ``XPLSTM_BACKEND``, else NumPy."""
    chosen, variable = _backend.get(), os.environ.get("XPLSTM_BACKEND")
    if chosen is not None or not variable:
        return resolve(chosen or "numpy")
    try:
        return resolve(variable)
    except XplstmError as error:
        msg = f"XPLSTM_BACKEND={variable!r}: {error}"
        raise type(error)(msg) from None


def resolve(xp: str | Namespace | None) -> Namespace:
    """Return the namespace for the argument ``xp=``: a backend's name, a module, or None."""
    if xp is None:
        return default_namespace()
    if isinstance(xp, str):
        if xp == "auto":
            xp = "cupy" if why_unusable("cupy") is None else "numpy"
        return named_namespace(xp)
    name = getattr(xp, "__name__", "").removeprefix("array_api_compat.").partition(".")[0]
    if name in BACKENDS:
        return named_namespace(name)
    if hasattr(xp, "__array_namespace_info__"):
        return xp
    msg = f"xp={xp!r} is neither an array API namespace nor one of {', '.join(BACKENDS)}, auto"
    raise ArgumentError(msg)


def named_namespace(name: str) -> Namespace:
    """Return the namespace of the backend `name`, which must be able to run here."""
    if name not in BACKENDS:
        msg = f"backend {name!r} is unknown, expected one of {', '.join(BACKENDS)}, auto"
        raise ArgumentError(msg)
    reason = why_unusable(name)
    if reason is not None:
        msg = f"backend {name!r} cannot run here: {reason}"
        raise BackendError(msg)
    return numpy_namespace() if name == "numpy" else importlib.import_module(BACKENDS[name][0])


def numpy_namespace() -> Namespace:
    """Return NumPy itself if it implements the standard, because importing the wrapper takes 0.1 s."""
    if hasattr(np, "__array_namespace_info__"):
        return np
    return importlib.import_module("array_api_compat.numpy")


@cache
def why_unusable(name: str) -> str | None:
    """Return why backend `name` cannot run here, or None if it can; checked once per process."""
    package = BACKENDS[name][1]
    if importlib.util.find_spec(package) is None:
        extras = {"cupy": "'xplstm[cuda12]' or 'xplstm[cuda13]'", "dask": "'xplstm[dask]'"}
        return f"the package {package!r} is not installed (pip install {extras.get(name, package)})"
    return _why_cupy_unusable() if name == "cupy" else None


def _why_cupy_unusable() -> str | None:
    """Return why CuPy cannot run a kernel, or None; an installed CuPy may have no device or driver."""
    try:
        import cupy as cp
    except ImportError as error:
        return f"importing cupy failed: {error}"
    try:
        devices = cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        return f"the CUDA driver does not answer: {error}"
    if devices == 0:
        return "CUDA finds no device"
    try:
        total = int((cp.ones(4, dtype=cp.float32) * 2).sum())
    except Exception as error:  # a broken driver or compiler may raise any exception
        return f"CUDA finds a device, but a test kernel failed: {error}"
    return None if total == 8 else f"a test kernel returned {total} instead of 8"


def namespace(x: Any, name: str) -> Namespace:
    """Return the namespace of the array `x`; an error calls it `name`."""
    if type(x) is np.ndarray:  # this check comes first, because checks take most of the time of a small call
        return numpy_namespace()
    if _is_tensor(x):
        # An import statement takes ten times as long.
        found = sys.modules.get("array_api_compat.torch")
        return found or importlib.import_module("array_api_compat.torch")
    if isinstance(x, np.ma.MaskedArray):
        msg = (
            f"{name} is a masked array, and this call would ignore its mask; "
            f"pass {name}.filled(0) and mask= or lengths="
        )
        raise DTypeError(msg)
    if isinstance(x, np.ndarray | np.generic):
        return numpy_namespace()
    if not array_api_compat.is_array_api_obj(x):
        msg = f"{name} must be an array of an array API library, got {type(x).__name__}{_remedy(name, x)}"
        raise DTypeError(msg)
    return array_api_compat.array_namespace(x)


def _is_tensor(x: Any) -> bool:
    """Return whether `x` is a tensor; `torch.compile` warns about the caches in array_api_compat's check."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def check_strided(name: str, x: Any) -> None:
    """Raise an error for a tensor of PyTorch without an element at every place."""
    if not _is_tensor(x):
        return
    if x.is_nested:
        padded = f"{name}.to_padded_tensor(0.0), whose first axis is the batch, and lengths="
        msg = f"{name} is a nested tensor; pass {padded}"
        raise DTypeError(msg)
    if x.layout is not sys.modules["torch"].strided:
        msg = f"{name} is a sparse tensor; pass {name}.to_dense()"
        raise DTypeError(msg)


def _remedy(name: str, x: Any) -> str:
    """Return advice on what to pass instead of a container, by its type."""
    package, kind = type(x).__module__.partition(".")[0], type(x).__name__
    ragged = isinstance(x, list) and len({str(getattr(item, "shape", None)) for item in x}) > 1
    padded = f"xplstm.models.pad({name}) to a model, or its x and lengths to a layer"
    ways = {
        ("xarray", "DataArray"): f"{name}.data",
        ("xarray", "Dataset"): f"the data of one variable, {name}[...].data",
        ("zarr", "Array"): f"{name}[...], or dask.array.from_zarr({name}) to read it block by block",
        ("h5py", "Dataset"): f"{name}[...], or dask.array.from_array({name}) to read it block by block",
        ("pandas", kind): f"{name}.to_numpy()",
        ("polars", kind): f"{name}.to_numpy()",
        ("torch", "PackedSequence"): f"both results of pad_packed_sequence({name}), as {name} and lengths=",
        ("builtins", "list"): padded if ragged else f"numpy.asarray({name})",
    }
    way = ways.get((package, kind))
    return "" if way is None else f"; pass {way}"


def backend_name(xp: Namespace) -> str:
    """Return the short name of a namespace: ``"numpy"``, ``"cupy"``, ..., or its package's own name."""
    name: str = xp.__name__
    return _SHORT.get(name) or name.removeprefix("array_api_compat.").partition(".")[0]


def part(generic: Callable[Concatenate[Namespace, P], R]) -> Callable[Concatenate[Namespace, P], R]:
    """Call the faster function of the same name, without an underscore, before ``generic(xp, ...)``.

    `faster` finds the module of that function. The function takes the arguments without the namespace, and
    returns None for arguments that it does not support. `generic` defines the result and runs everywhere.
    """
    name = generic.__name__.removeprefix("_")

    def chosen(xp: Namespace, /, *args: P.args, **kwargs: P.kwargs) -> R:
        room = faster(xp)
        result: R | None = None if room is None else getattr(room, name)(*args, **kwargs)
        return generic(xp, *args, **kwargs) if result is None else result

    update_wrapper(chosen, generic)
    return chosen


def faster(xp: Namespace) -> ModuleType | None:
    """Return the module of faster functions for arrays of `xp`, or None if only the generic code can run."""
    where = _FASTER.get(backend_name(xp))
    room: ModuleType | None = None if where is None else importlib.import_module(where).room()
    return room


def device(x: Any) -> Device:
    """Return the device of an array, or None while a compiler traces the array."""
    if isinstance(x, np.ndarray):
        return "cpu"
    return x.device if _is_tensor(x) else array_api_compat.device(x)


def is_current(device: Device) -> bool:
    """Return whether work on arrays of `device` runs there; CuPy queues all work on its current device."""
    kind = type(device)
    return not kind.__module__.startswith("cupy") or device == kind()


def dtype_name(dtype: DType) -> str:
    """Return the name of any library's dtype, such as ``"float32"``."""
    if isinstance(dtype, type):  # NumPy and JAX name dtypes by scalar classes
        dtype = np.dtype(dtype)
    if not isinstance(dtype, np.dtype):
        return str(dtype).rpartition(".")[2]
    name = _DTYPE_NAMES.get(dtype)
    if name is None:
        name = _DTYPE_NAMES[dtype] = dtype.name
    return name


def dtype_from_name(xp: Namespace, name: str) -> DType:
    """Return the dtype object of `xp` with this name."""
    dtype = getattr(xp, name, None)
    if dtype is None and backend_name(xp) in ("numpy", "cupy", "dask"):
        dtype = _numpy_dtype(name)
    if dtype is None:
        msg = f"dtype={name!r} does not exist in {backend_name(xp)}"
        raise DTypeError(msg)
    return dtype


def _numpy_dtype(name: str) -> DType:
    """Return NumPy's dtype of this name; ml_dtypes provides bfloat16."""
    if name != "bfloat16":
        return np.dtype(name)
    if importlib.util.find_spec("ml_dtypes") is None:
        msg = "dtype='bfloat16' needs the package ml_dtypes (pip install ml_dtypes)"
        raise DTypeError(msg)
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)


def wide_dtype(xp: Namespace, dtype: DType) -> DType:
    """Return the accumulation dtype for `dtype`: float32 for half precision, else `dtype` itself."""
    return xp.float32 if dtype_name(dtype) in ("float16", "bfloat16") else dtype


def float_array(name: str, a: Array) -> Array:
    """Return an array, checked to have a floating dtype, without a subclass of NumPy's array."""
    namespace(a, name)
    dtype = dtype_name(a.dtype)
    if dtype not in FLOATS:
        msg = f"{name} has dtype {dtype}, expected one of {', '.join(FLOATS)}"
        raise DTypeError(msg)
    return native(a)


def check_integers(name: str, a: Array) -> None:
    """Check that an array has an integer dtype."""
    dtype = dtype_name(a.dtype)
    if not dtype.startswith(("int", "uint")):
        msg = f"{name} has dtype {dtype}, expected integers"
        raise DTypeError(msg)


def native(x: A) -> A:
    """Return a NumPy array in native byte order and without a subclass; return other arrays unchanged."""
    if not isinstance(x, np.ndarray):
        return x
    plain: Any = x if type(x) is np.ndarray else x.view(np.ndarray)
    return plain if plain.dtype.isnative else plain.astype(plain.dtype.newbyteorder("="))


def widen(x: Array) -> Array:
    """Return `x` in its accumulation dtype."""
    xp = namespace(x, "x")
    return xp.astype(x, wide_dtype(xp, x.dtype), copy=False)


def narrow(x: Array, dtype: str) -> Array:
    """Return `x` in the dtype named `dtype`."""
    xp = namespace(x, "x")
    return xp.astype(x, dtype_from_name(xp, dtype), copy=False)


def is_traced(x: Any) -> bool:
    """Return whether a compiler traces `x`, so that its values cannot be read."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.core.Tracer)


def is_lazy(x: Any) -> bool:
    """Return whether reading a value of `x` would start a computation or wait for a device."""
    if isinstance(x, np.ndarray):
        return False
    if _is_tensor(x):
        return bool(x.device.type != "cpu")
    if array_api_compat.is_jax_array(x):
        return is_traced(x) or any(d.platform != "cpu" for d in x.devices())
    return bool(array_api_compat.is_cupy_array(x) or array_api_compat.is_dask_array(x))


def to_numpy(x: Any) -> np.ndarray:
    """Return a view of `x` on the host, or a copy; from another device, wait for the values first."""
    if isinstance(x, np.ndarray):
        return np.asarray(x)
    if _is_tensor(x):
        x = x.detach().cpu()
        if dtype_name(x.dtype) == "bfloat16":
            return np.asarray(x.float().numpy().astype(dtype_from_name(np, "bfloat16")))
        return np.asarray(x.numpy())
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    if hasattr(x, "__array__"):
        return np.asarray(x)
    return np.asarray(np.from_dlpack(x))


def detach(x: Any) -> Any:
    """Return `x`, without its graph if it is a tensor of PyTorch's autograd."""
    return x.detach() if _is_tensor(x) and x.requires_grad else x


def requiring(x: Any, old: Any) -> Any:
    """Return `x`, made to require gradients of PyTorch's autograd if `old` does."""
    return x.requires_grad_() if _is_tensor(old) and old.requires_grad else x


def asarray(x: Any, xp: Namespace, on: Device | None = None, dtype: str | None = None) -> Array:
    """Return `x`, from any library, as an array of `xp` on the device `on`, with the dtype named `dtype`."""
    plain = type(x) is np.ndarray or _is_tensor(x)
    found = plain or (not isinstance(x, list | tuple) and array_api_compat.is_array_api_obj(x))
    if found and namespace(x, "x") is xp:
        if on is not None and hasattr(on, "shape"):
            msg = f"device is an array of shape {tuple(on.shape)}, expected a device or its name"
            raise BackendError(msg)
        moved = x if on is None or device(x) == on else _on_device(_to_device, x, xp, on)
        moved = moved if dtype is None else xp.astype(moved, dtype_from_name(xp, dtype), copy=False)
    else:
        host = native(np.asarray(x) if isinstance(x, list | tuple) else to_numpy(x))
        moved = _from_host(host if dtype is None else host.astype(dtype_from_name(np, dtype)), xp, on)
    if dtype is not None and dtype_name(moved.dtype) != dtype:
        hint = "; call jax.config.update('jax_enable_x64', True) first" if backend_name(xp) == "jax" else ""
        msg = f"dtype={dtype!r} was requested, but {backend_name(xp)} gave {dtype_name(moved.dtype)}{hint}"
        raise DTypeError(msg)
    return moved


def _to_device(x: Any, on: Device) -> Array:
    """Return `x` on another device of its library."""
    return x.to(on) if _is_tensor(x) else array_api_compat.to_device(x, on)


def _from_host(host: np.ndarray, xp: Namespace, on: Device | None) -> Array:
    """Copy `host` to `xp`; bfloat16 passes through float32 because PyTorch cannot read NumPy's bfloat16."""
    if backend_name(xp) == "torch" and dtype_name(host.dtype) == "bfloat16":
        wide = _from_host(host.astype(np.float32), xp, on)
        return xp.astype(wide, xp.bfloat16)
    if on is None:
        return xp.asarray(host, copy=True)
    return _on_device(lambda a, where: xp.asarray(a, device=where, copy=True), host, xp, on)


def _on_device(move: Callable[[Array, Device], Array], x: Array, xp: Namespace, on: Device) -> Array:
    """Move `x` to the device `on`; convert any library's error to a `BackendError`."""
    try:
        return move(x, on)
    except Exception as error:
        msg = f"device={on!r} cannot store {backend_name(xp)} arrays here: {error}"
        raise BackendError(msg) from error


def zeros(xp: Namespace, shape: tuple[int, ...], dtype: str, device: Device) -> Array:
    """Return zeros that no caller may write to."""
    if backend_name(xp) == "jax" and math.prod(shape) <= FEW:
        jax = sys.modules["jax"]
        # An array made for one device is wrong, or has another type, where JAX maps a call over several.
        if (device is None or isinstance(device, jax.Device)) and jax.sharding.get_abstract_mesh().empty:
            place = device or jax.config.jax_default_device
            return _kept_zeros(shape, dtype, place, jax.config.jax_enable_x64)
    return xp.zeros(shape, dtype=dtype_from_name(xp, dtype), device=device)


@lru_cache(maxsize=64)
def _kept_zeros(shape: tuple[int, ...], dtype: str, place: Device, wide: bool) -> Array:  # noqa: ARG001
    """Return zeros of JAX, whose arrays cannot change: making them takes longer than a short call."""
    jax = sys.modules["jax"]
    # Inside a transformation, the zeros must be values, which later calls can use.
    with jax.core.eval_context(), jax.default_device(place):
        return jax.numpy.zeros(shape, dtype=dtype)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """Return `x` in another shape; create an empty array, because Dask cannot reshape one."""
    if x.shape == shape:
        return x
    xp = namespace(x, "x")
    if 0 in shape and not isinstance(x, np.ndarray):
        return xp.zeros(shape, dtype=x.dtype, device=device(x))
    return xp.reshape(x, shape)


def clip_values(xp: Namespace, x: Array, lowest: float, highest: float) -> Array:
    """Clip `x` to the bounds and keep NaN; `clip` of array-api-compat waits for the GPU on CuPy."""
    x = xp.where(x < lowest, xp.full_like(x, lowest), x)
    return xp.where(x > highest, xp.full_like(x, highest), x)


def copy(x: Any) -> Array:
    """Copy `x` within its library, device and dtype; detach the copy from PyTorch's autograd."""
    if _is_tensor(x):
        return x.detach().clone()
    return namespace(x, "x").asarray(x, copy=True)


def take_rows(table: Array, ids: Array) -> Array:
    """Return the rows of `table` (N, E) at the integers `ids` (...), as an array (..., E)."""
    xp = namespace(table, "table")
    flat = xp.reshape(ids, (-1,))
    if not _is_tensor(flat) and array_api_compat.is_dask_array(flat):
        flat = flat + 0  # Dask mistakes an array [0] for its own list of offsets; a new array has a new name
    return xp.reshape(xp.take(table, flat, axis=0), (*ids.shape, table.shape[1]))


def version(package: str) -> str | None:
    """Return the installed version of a package by its import name, without an import of the package."""
    from importlib import metadata  # slow to import: takes as long as the rest of this module

    names = metadata.packages_distributions().get(package, [package])
    try:
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        return None


def nbytes(x: Any) -> int:
    """Return the size of `x` in bytes."""
    if hasattr(x, "nbytes"):
        return int(x.nbytes)
    return int(np.prod(x.shape)) * int(x.dtype.itemsize)
