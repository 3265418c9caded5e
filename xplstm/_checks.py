"""Check the arrays that a user passes; a message names the argument, its value and the bound."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from xplstm import _array, _state, _values
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError, XplstmError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, Merge, Namespace
from xplstm.cells import Cell, Sizes
from xplstm.cells.params import LSTMParams, each
from xplstm.cells.variant import OPTION

# Axes of x; a batch in the other order first fails in the argument that has a batch or time axis too.
AXES = "x is (T, B, I), or (B, T, I) for a layer with batch_first=True"


class Home(NamedTuple):
    """Library, device and dtype of the parameters, which all other arrays of a call must share."""

    xp: Namespace
    device: Device
    dtype: str


def projection(proj_size: int, hidden_size: int) -> int:
    """Return `proj_size`, checked to be in [0, hidden_size); 0 means no projection."""
    number = _values.size("proj_size", proj_size, 0)
    if number >= hidden_size:
        msg = f"proj_size={number} must be smaller than hidden_size={hidden_size}; 0 means no projection"
        raise ArgumentError(msg)
    return number


def merge(value: str, bidirectional: bool) -> str:
    """Return the checked merge mode; one direction allows only the default."""
    if _values.one_of("merge", value, get_args(Merge)) != "concat" and not bidirectional:
        msg = f"merge={value!r} needs bidirectional=True; this layer has one direction"
        raise ArgumentError(msg)
    return value


def precision(value: str | None, reproducible: bool) -> str | None:
    """Return the checked precision of float32 products; reproducible=True excludes TF32."""
    if value is not None and not (isinstance(value, str) and value == "tf32"):
        msg = f"precision={value!r} must be None or 'tf32'"
        raise ArgumentError(msg)
    if value is not None and reproducible:
        msg = f"precision={value!r} cannot be combined with reproducible=True, which needs float32 products"
        raise ArgumentError(msg)
    return value


def convert(what: str, a: Array, xp: Namespace, device: Device | None, dtype: str) -> Array:
    """Return `a` converted to another library, device and dtype; raise an error if a value overflows."""
    with np.errstate(over="ignore"):  # checked below
        result = _array.asarray(a, xp, device, dtype)
    if _array.is_lazy(result) or _array.dtype_name(a.dtype) == dtype:
        return result
    finite = _array.namespace(a, what).isfinite(a)
    if int(_array.to_numpy(finite).sum()) != int(_array.to_numpy(xp.isfinite(result)).sum()):
        msg = f"dtype={dtype!r} cannot represent {what}, which has numbers outside that dtype's range"
        raise ArgumentError(msg)
    return result


def dtype(value: Any) -> str:
    """Return the name of a layer's floating dtype, given by name or as a library's dtype."""
    name = value if isinstance(value, str) else _array.dtype_name(value)
    if name not in _array.FLOATS:
        msg = f"dtype={value!r} must be one of {', '.join(_array.FLOATS)}"
        raise DTypeError(msg)
    return name


def home(params: Mapping[str, Array | None]) -> Home:
    """Return the library, device and floating dtype that all of `params` share; skip None."""
    homes: dict[str, Home] = {}
    for name, a in params.items():
        if a is not None:
            xp = _array.namespace(a, name)
            homes[name] = Home(xp, _array.device(a), _array.dtype_name(a.dtype))
    if not homes:
        msg = f"params={dict(params)!r} must contain at least 1 array"
        raise DTypeError(msg)
    first, expected = next(iter(homes.items()))
    if expected.dtype not in _array.FLOATS:
        msg = f"{first} has dtype {expected.dtype}, expected one of {', '.join(_array.FLOATS)}"
        raise DTypeError(msg)
    for name, given in homes.items():
        _same_home(name, given, first, expected)
    return expected


def floats(named: Mapping[str, Any]) -> Home:
    """Return the library, device and floating dtype that all values share; each must be an array."""
    for name, a in named.items():
        _array.namespace(a, name)
    return home(named)


def array(name: str, a: Array, where: Home, shape: tuple[int | str, ...], meaning: str = "") -> Array:
    """Return `a`, checked to be at `where` and to have `shape`, in which a string matches any size."""
    given = Home(_array.namespace(a, name), _array.device(a), _array.dtype_name(a.dtype))
    _array.check_strided(name, a)
    _same_home(name, given, "the parameters", where)
    if not _array.is_current(given.device):
        block = f"`with cupy.cuda.Device({given.device.id}):`"
        msg = f"{name} is on CUDA device {given.device.id}, which is not the current device; call in {block}"
        raise BackendError(msg)
    if not fits(a.shape, shape):
        raise ShapeError(_shape_message(name, a.shape, shape, meaning))
    return _array.native(a)


def finite(name: str, a: Array, remedy: str, exists: Array | None = None) -> None:
    """Raise an error if `a` has a value that is not finite; skip arrays on a device and traced arrays.

    `exists` (T, B) is True where a step of `a` exists. Values of other steps are not checked.
    """
    if _array.is_lazy(a) or (exists is not None and _array.is_lazy(exists)):
        return
    host = _array.to_numpy(a)
    if host.dtype.kind in "OSTU":
        return  # not numeric: the dtype check raises an error that names it
    bad = ~np.isfinite(host)
    if exists is not None:
        steps = _array.to_numpy(exists)
        bad &= steps.reshape(steps.shape + (1,) * (host.ndim - 2))
    if bad.any():
        place = np.argwhere(bad)[0]
        more = f", one of {bad.sum()} that are not finite" if bad.sum() > 1 else ""
        msg = f"{name}[{', '.join(map(str, place))}] is {host[tuple(place)]}{more}; {remedy}"
        raise ArgumentError(msg)


def all_finite(arrays: Mapping[str, Array], remedy: str) -> None:
    """Raise an error for the first array with a value that is not finite."""
    for name, a in arrays.items():
        finite(name, a, remedy)


def _same_home(name: str, given: Home, first: str, expected: Home) -> None:
    """Raise an error if an array has another library, device or dtype than `first`."""
    if given == expected:
        return
    ours, theirs = _array.backend_name(given.xp), _array.backend_name(expected.xp)
    verb = "are" if first == "the parameters" else "is"
    if given.xp is not expected.xp and ours == "dask":
        msg = (
            f"{name} is a Dask array, and only a call of a layer accepts Dask arrays; use {name}.compute(), "
            f"or dask.array.map_blocks with a frozen layer"
        )
        raise BackendError(msg)
    if given.xp is not expected.xp:
        msg = (
            f"{name} is an array from {ours}, but {first} {verb} from {theirs}; "
            f"convert {name}, or move the layer or model with .to(xp={ours!r})"
        )
        raise BackendError(msg)
    if given.device is not None and expected.device is not None and given.device != expected.device:
        msg = f"{name} is on device {given.device}, but {first} {verb} on {expected.device}"
        raise BackendError(msg)
    if given.dtype != expected.dtype:
        other = (
            f", or the layer or model with .to(dtype={given.dtype!r})" if given.dtype in _array.FLOATS else ""
        )
        if given.dtype.startswith(("int", "uint")):
            other = "; pass token ids to xplstm.Embedding instead"
        msg = (
            f"{name} has dtype {given.dtype}, but {first} {verb} {expected.dtype}; convert it with "
            f"{_conversion(name, ours, expected.dtype)}{other}"
        )
        raise DTypeError(msg)


def _conversion(name: str, library: str, dtype: str) -> str:
    """Return the expression that converts an array of a library to `dtype`."""
    if library == "torch":
        return f"{name}.to(torch.{dtype})"
    if library in ("numpy", "cupy", "jax", "dask"):
        return f"{name}.astype({dtype!r})"
    return f"xp.astype({name}, xp.{dtype})"


def fits(given: tuple[int, ...], expected: Sequence[int | str]) -> bool:
    """Return whether a shape fits another one, in which a string matches any size."""
    if len(given) != len(expected):
        return False
    # Faster than `all`; checks take most of the time of a small call.
    for g, e in zip(given, expected, strict=True):  # noqa: SIM110
        if g != e and not isinstance(e, str):
            return False
    return True


def _shape_message(name: str, given: tuple[int, ...], expected: Sequence[int | str], meaning: str) -> str:
    wanted = "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
    return f"{name} has shape {tuple(given)}, expected {wanted}" + (f": {meaning}" if meaning else "")


def layer(params: LSTMParams, cell: Cell) -> tuple[LSTMParams, Sizes]:
    """Check one layer's parameters; return them with the sizes that their shapes imply."""
    if not isinstance(params, LSTMParams):
        msg = f"params must be an LSTMParams, got {type(params).__name__}"
        raise DTypeError(msg)
    named = params._asdict()
    for name in ("weight_ih", "weight_hh"):
        if named[name] is None:
            msg = f"params.{name} is None; every LSTM needs this array"
            raise ArgumentError(msg)
    if (params.bias_ih is None) != (params.bias_hh is None):
        missing = "bias_ih" if params.bias_ih is None else "bias_hh"
        msg = f"params.{missing} is None, but the other bias is an array; pass both or neither"
        raise ArgumentError(msg)
    home(named)
    for name in ("weight_ih", "weight_hh", "weight_hr"):
        if named[name] is not None and named[name].ndim != 2:
            raise ShapeError(_shape_message(name, named[name].shape, ("rows", "columns"), ""))
    proj, hidden = (0, params.weight_hh.shape[1]) if params.weight_hr is None else params.weight_hr.shape
    for name, value, from_ in (
        ("hidden_size", hidden, "weight_hh" if params.weight_hr is None else "weight_hr"),
        ("input_size", params.weight_ih.shape[1], "weight_ih"),
    ):
        if value < 1:
            shape = tuple(named[from_].shape)
            msg = f"{from_} has shape {shape}, which implies {name}={value}; {name} must be at least 1"
            raise ShapeError(msg)
    if params.weight_hr is not None:
        projection(proj, hidden)
    sizes = Sizes(params.weight_ih.shape[1], hidden, proj, params.bias_ih is not None)
    shapes = cell.shapes(sizes)
    _check_options(named, shapes)
    implied = "" if params.weight_hr is None else f", as weight_hr has shape {tuple(params.weight_hr.shape)}"
    parameters(named, shapes, f"four gates of hidden_size {hidden} rows each{implied}")
    native = each(_array.native, params)
    return native, sizes


def _check_options(named: Mapping[str, Array | None], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise an error if an option's parameter is missing, or a parameter's option is off."""
    for name, a in named.items():
        option = OPTION.get(name, "a bias")
        if a is None and name in shapes:
            msg = f"params.{name} is None; {option} needs an array of shape {shapes[name]}"
            raise ArgumentError(msg)
        if a is not None and name not in shapes:
            msg = f"params.{name} has shape {tuple(a.shape)}, but {option}, which uses it, is off"
            raise ArgumentError(msg)


def parameters(
    params: Mapping[str, Array | None], shapes: Mapping[str, tuple[int, ...]], meaning: str = ""
) -> None:
    """Raise an error for the first parameter whose shape differs from `shapes`."""
    for name, shape in shapes.items():
        given = params[name]
        if given is None:
            msg = f"{name} is None, expected an array of shape {shape}"
            raise DTypeError(msg)
        if tuple(given.shape) != shape:
            of_gates = name.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh"))
            raise ShapeError(_shape_message(name, given.shape, shape, meaning if of_gates else ""))


def state_dict(given: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], dtype_: str) -> None:
    """Check a state dict; list all problems in one error."""
    mapping("state_dict", given)
    wrong: list[tuple[type[XplstmError], str]] = []
    wrong += [
        (ArgumentError, f"{name} is missing, expected shape {shapes[name]}")
        for name in shapes
        if name not in given
    ]
    wrong += [(ArgumentError, f"{name} is unknown") for name in given if name not in shapes]
    for name in (n for n in shapes if n in given):
        a = given[name]
        if not hasattr(a, "shape") or not hasattr(a, "dtype"):
            wrong.append((DTypeError, f"{name} must be an array, got {type(a).__name__}"))
            continue
        if tuple(a.shape) != shapes[name]:
            wrong.append((ShapeError, _shape_message(name, a.shape, shapes[name], "")))
        if _array.dtype_name(a.dtype) != dtype_:
            wrong.append((DTypeError, f"{name} has dtype {_array.dtype_name(a.dtype)}, expected {dtype_}"))
    if wrong:
        kinds = [kind for kind, _ in wrong]
        kind = next(k for k in (ShapeError, ArgumentError, DTypeError) if k in kinds)
        msg = f"{len(wrong)} problem(s) in the state dict:\n  " + "\n  ".join(text for _, text in wrong)
        first = next(iter(shapes))
        place = next((name.removesuffix(first) for name in given if _ends(name, first)), "")
        if place and all(place + name in given for name in shapes):
            start = repr(place.removesuffix("."))
            msg += f"\nall parameters are there under {start}: pass xplstm.io.arrays(state_dict, {start}), "
            msg += f"or make a network with xplstm.io.load(state_dict, prefix={start})"
        raise kind(msg)


def _ends(name: object, end: str) -> bool:
    return isinstance(name, str) and name.endswith(f".{end}")


def state(name: str, value: object) -> LSTMState:
    """Return `value` as an `LSTMState`."""
    return LSTMState(*_state.pair(name, value))


class Valid(NamedTuple):
    """Form and array of the argument that determines which steps are valid."""

    kind: Literal["all", "lengths", "mask"]
    array: Array | None


def sizes(T: int, B: int) -> None:
    """Raise an error for sizes that 32-bit integers cannot represent. JAX may pass symbolic sizes."""
    for name, n, what in (("T", T, "steps"), ("B", B, "batch entries")):
        if isinstance(n, int) and n > _values.LARGEST:
            msg = f"x has {name}={n} {what}, expected at most {_values.LARGEST}; split x along that axis"
            raise ArgumentError(msg)


def valid(given: Any, mask: Array | None, where: Home, T: int, B: int) -> Valid:
    """Return a time-major `mask`, or checked `lengths`; at most one may be passed."""
    if given is None and mask is None:
        return Valid("all", None)
    if given is not None and mask is not None:
        msg = "lengths and mask were both passed; pass only one of them"
        raise ArgumentError(msg)
    return Valid("mask", mask) if given is None else Valid("lengths", lengths(given, where, T, B))


FLAGS = {"mask": "true for a valid step", "reset": "true where the state is zeroed before a step"}


def flags(name: str, given: Array, where: Home, shape: tuple[int, ...]) -> Array:
    """Return checked booleans of `shape`, copied to the device of the parameters if they are from NumPy."""
    xp = _array.namespace(given, name)
    if not isinstance(given, np.ndarray):
        _same_home(name, Home(xp, _array.device(given), where.dtype), "the parameters", where)
    if _array.dtype_name(given.dtype) != "bool":
        msg = f"{name} has dtype {_array.dtype_name(given.dtype)}, expected bool ({FLAGS[name]})"
        raise DTypeError(msg)
    if tuple(given.shape) != shape:
        raise ShapeError(_shape_message(name, given.shape, shape, f"the time and batch axes of x; {AXES}"))
    return _copy_to_device(name, _array.native(given), where)


def lengths(given: Any, where: Home, T: int, B: int) -> Array:
    """Return checked (B,) integers on the device of `where`; any backend accepts a list or a NumPy array."""
    sizes(T, B)
    if isinstance(given, list | tuple):
        given = _integers("lengths", given)
        _length_bounds(given, T)
        given = np.asarray(given, dtype=np.int32)
    if isinstance(given, np.ndarray):
        _array.namespace(given, "lengths")
        given = _array.native(given)
    else:
        home = Home(_array.namespace(given, "lengths"), _array.device(given), where.dtype)
        _same_home("lengths", home, "the parameters", where)
    _array.check_integers("lengths", given)
    if tuple(given.shape) != (B,):
        raise ShapeError(_shape_message("lengths", given.shape, (B,), f"one length per batch entry; {AXES}"))
    if not _array.is_lazy(given):
        _length_bounds(_array.to_numpy(given).tolist(), T)
    return _copy_to_device("lengths", given, where, "int32")


def _copy_to_device(name: str, given: Array, where: Home, dtype: str | None = None) -> Array:
    """Return `given` on the device of `where`; no copy is possible while CuPy captures a graph."""
    try:
        return _array.asarray(given, where.xp, where.device, dtype)
    except BackendError as error:
        msg = (
            f"{name} cannot be copied to the device of the parameters: {error}; pass an array of that device"
        )
        raise BackendError(msg) from error


def _integers(name: str, given: Sequence[Any]) -> list[int]:
    """Return Python integers; NumPy would promote int8 together with uint64 to a float."""
    try:
        if any(isinstance(value, bool | np.bool_) for value in given):
            raise TypeError
        return [operator.index(value) for value in given]
    except TypeError:
        msg = f"{name}={given!r} must contain integers, one per batch entry"
        raise DTypeError(msg) from None


def _length_bounds(lengths: Sequence[int], T: int) -> None:
    for entry, length in enumerate(lengths):
        if not 0 <= length <= T:
            msg = f"lengths[{entry}]={length} must be in [0, T={T}]; {AXES}"
            raise ArgumentError(msg)


def ids(name: str, a: Array, where: Home, count: int) -> Array:
    """Return integers checked to be in [0, count); values on a device and traced values are not read."""
    given = Home(_array.namespace(a, name), _array.device(a), where.dtype)
    _same_home(name, given, "the parameters", where)
    _array.check_integers(name, a)
    if not _array.is_lazy(a):
        host = _array.to_numpy(a)
        if host.size and not 0 <= host.min() <= host.max() < count:
            bad = int(host.min() if host.min() < 0 else host.max())
            msg = f"{name} contains {bad}, which is not in [0, {count})"
            raise ArgumentError(msg)
    # Some libraries reject smaller integers as an index.
    kept = _array.dtype_name(a.dtype) in ("int32", "int64")
    return a if kept else where.xp.astype(a, where.xp.int32)


def checkpoint(value: int | None) -> int | None:
    """Return `value`, checked to be None or a number of steps, at least 1."""
    return None if value is None else _values.size("checkpoint", value)


def mapping(name: str, value: object) -> None:
    """Raise an error if `value` is not a mapping."""
    if not isinstance(value, Mapping):
        msg = f"{name} must be a mapping from names to arrays, got {type(value).__name__}"
        raise DTypeError(msg)


def names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise an error if the names of parameters differ from the known names."""
    given, known = set(given), set(known)
    if given != known:
        missing, unknown = sorted(known - given), sorted(given - known)
        msg = f"params: missing {missing}, unknown {unknown}; expected {sorted(known)}"
        raise ArgumentError(msg)
