"""Load and save networks in any format."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, TypeAlias

import numpy as np

from xplstm import _array, _checks, _values, nn
from xplstm._errors import ArgumentError, FormatError, XplstmError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.io import _registry
from xplstm.io._contents import Contents, Found, dot_name, show
from xplstm.io._given import as_path
from xplstm.io._source import (
    FREE,
    Path,
    Prefix,
    cast,
    dtypes_of,
    label_of,
    list_tensors,
    open_source,
    saved_network,
    select_network,
)
from xplstm.io._written import MODEL, refuse_lost
from xplstm.io.files._durable import write_durably
from xplstm.io.layouts.reparametrized import resolve

REMEDY = "xplstm.io.arrays reads such numbers"
NOT_SAVED = "such parameters are not saved, because no call could use them"
Network: TypeAlias = nn.LSTM | nn.GRU | nn.RNN | nn.JordanRNN


def load(
    source: Path | Mapping[str, Any],
    *,
    format: str | None = None,  # noqa: A002 - what everyone calls it
    prefix: Prefix | None = None,
    xp: str | Namespace | None = None,
    device: Device | None = None,
    dtype: FloatDType | None = None,
    **options: Any,
) -> Network:
    """Load a network from the weights in a file or a mapping.

    The first bytes of a file determine its kind. Sizes, layers, directions, projection and biases follow
    from the arrays. Options come from the file, if the file has them. If the names allow several gate
    orders, an error lists the formats that fit. :doc:`/guides/weights` has a table of all formats.

    Parameters
    ----------
    source : path, open binary file, bytes, mapping of str to array, or module
        A file of safetensors (``.safetensors``), NumPy (``.npz``), PyTorch (``.pt``, ``.pth``), Keras
        (``.keras``, ``.weights.h5``, ``.h5``, ``.hdf5``), Equinox (``.eqx``) or ONNX (``.onnx``), also as an
        open file or as bytes. Or a flat or nested mapping with arrays of any library; other values in it are
        ignored. Or a module of PyTorch, Flax or Equinox, or a Flax train state. A PyTorch module also gives
        the options ``batch_first``, ``dropout`` and ``nonlinearity``.
    format : str, optional
        Names, axes and gate order of the weights: "torch", "flax", "nnx", "nnx_optimized", "equinox", "mlx",
        "haste", "chainer", "allennlp", "mxnet", "tensorflow", "tensorflow_cudnn", "elmo", "haiku", "keras",
        "onnx", "joined" or "parted". Needed if several formats fit.
    prefix : str, or sequence of layers, optional
        Common start of the tensor names of the network. Needed if there are several networks. For separate
        cells that form a stack, the prefix of each layer, or a pair of prefixes for two directions.
    xp, device : optional
        Backend and device of the parameters, as for `LSTM`.
    dtype : {"float32", "float64", "float16", "bfloat16"}, or a library's dtype, optional
        Dtype of the parameters; the dtype of the arrays if omitted.
    **options
        Arguments of `LSTM` or `RNN` that arrays do not show, such as ``batch_first``, ``dropout``,
        ``reproducible`` or, for an RNN, ``nonlinearity``. ``batch_first``, ``reproducible`` and the dropout
        rates override those of the file. All other options must agree with the file.

    Returns
    -------
    LSTM, GRU, RNN or JordanRNN
        The network, with copied parameters.

    Raises
    ------
    FormatError
        If the file is damaged, has an unknown format, or contains no network, or a weight is NaN or infinite.
        Code in a file is never executed. Arrays on a device and lazy arrays are not checked for such numbers.
    ArgumentError
        If there are several networks, or several formats fit; the message lists them. Or if the file is a
        model or a checkpoint, and `prefix` is omitted; `load_model` loads it.
    OSError
        If the file cannot be read.
    DTypeError, BackendError
        As for `LSTM`.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm.io
    >>> rng = np.random.default_rng(0)
    >>> theirs = {"Wx": rng.normal(size=(8, 3)), "Wh": rng.normal(size=(8, 2)), "bias": rng.normal(size=8)}
    >>> xplstm.io.load(theirs, format="mlx", batch_first=True)
    LSTM(3, 2, num_layers=1, batch_first=True)
    """
    with as_path(source) as given:
        contents, found = _find(given, format, prefix, dtype, options)
        if found.arguments:
            constants = " and ".join(found.arguments)
            msg = f"{contents.where}: {label_of(found)} is called with constant {constants}"
            raise FormatError(f"{msg}; call xplstm.io.load_with_call to load the network and its arguments")
        return _build(contents, found, xp, device, options)


def load_with_call(
    source: Path | Mapping[str, Any],
    *,
    format: str | None = None,  # noqa: A002
    prefix: Prefix | None = None,
    xp: str | Namespace | None = None,
    device: Device | None = None,
    dtype: FloatDType | None = None,
    **options: Any,
) -> tuple[Network, dict[str, Any]]:
    """Load a network and its constant call arguments, such as a learned initial state.

    ``network(x, **arguments)`` then computes the same as the file.

    Parameters
    ----------
    source, format, prefix, xp, device, dtype, **options
        As for `load`.

    Returns
    -------
    network : LSTM, GRU, RNN or JordanRNN
        As from `load`.
    arguments : dict
        Constants of the file; may be empty. "state" is an `LSTMState` for an LSTM and an array for another
        network, (layers and directions, batch, size). Its batch is 1 if all entries have the same state;
        ``state.take([0] * B)`` repeats it. "lengths" are integers of shape (batch,) on the host, or (1,) if
        all sequences have the same length.

    Raises
    ------
    FormatError, ArgumentError, OSError, DTypeError, BackendError
        As for `load`.

    Examples
    --------
    >>> import xplstm
    >>> import xplstm.io
    >>> lstm, arguments = xplstm.io.load_with_call({"encoder": xplstm.LSTM(3, 2).params})
    >>> arguments
    {}
    """
    with as_path(source) as given:
        contents, found = _find(given, format, prefix, dtype, options)
        network = _build(contents, found, xp, device, options)
        arguments: dict[str, Any] = {}
        if found.state is not None:
            home = network._home()
            placed = [_place_copy(a, home.xp, home.device, home.dtype) for a in found.state]
            arguments["state"] = LSTMState(*placed) if len(placed) == 2 else placed[0]
        if found.lengths is not None:
            arguments["lengths"] = np.asarray(found.lengths, dtype=np.int64)
        return network, arguments


def _find(
    source: Any,
    layout: str | None,
    prefix: Prefix | None,
    dtype: FloatDType | None,
    options: Mapping[str, Any],
) -> tuple[Contents, Found]:
    """Return the contents of a source, and the requested network in them."""
    contents = open_source(source)
    if MODEL in contents.metadata and prefix is None:
        msg = f"prefix=None: {contents.where} contains a whole model; call xplstm.io.load_model to load it, "
        msg += "or pass the prefix of one network, which xplstm.io.inspect lists"
        raise ArgumentError(msg)
    if dtype is not None:
        contents = cast(contents, _checks.dtype(dtype))
    contents = resolve(contents)
    found = saved_network(contents, layout, prefix) or select_network(contents, layout, prefix, options)
    if found.problem is not None:
        _check_readable(contents, found)
        msg = f"{contents.where}: {label_of(found)}: {found.problem}"
        raise FormatError(msg)
    if layout is None and "format" in found.undetermined:
        what = f"{contents.where} has the weights of a {found.kind}, but not its functions or merge"
        usual = "sigmoid, tanh and concat"
        msg = f"format=None: {what}; pass format={found.layout!r} if they are {usual}"
        raise ArgumentError(msg)
    if "reverse" in found.undetermined and "reverse" not in options:
        msg = f"{contents.where}: {label_of(found)} returns its outputs in reverse order of time"
        raise ArgumentError(f"{msg}; pass reverse=True for a layer with the same outputs in order of time")
    return contents, found


def _check_readable(contents: Contents, found: Found) -> None:
    """Raise the error of the first tensor of a network that cannot be read; its shape may be unknown."""
    for name in (name for name in found.names if contents.tensors[name].dtype == "unreadable"):
        contents.tensors[name].array()


def arrays(
    source: Path | Mapping[str, Any],
    prefix: str = "",
    *,
    xp: str | Namespace | None = None,
    device: Device | None = None,
    dtype: FloatDType | None = None,
) -> dict[str, Array]:
    """Read the arrays of a file or a mapping, such as those of the other layers of a model.

    The arrays do not include options of the networks in the file, such as a variant. `load` reads these
    options.

    Parameters
    ----------
    source : path, open binary file, bytes, mapping of str to array, or module
        As for `load`.
    prefix : str, optional
        Select the names with this prefix, and remove the prefix.
    xp, device : optional
        Backend and device of the arrays, as for `LSTM`.
    dtype : {"float32", "float64", "float16", "bfloat16"}, or a library's dtype, optional
        Dtype of the floating-point arrays; unchanged if omitted.

    Returns
    -------
    dict of str to array
        Arrays by name, with dots between the parts of a name.

    Raises
    ------
    FormatError
        If the file is damaged or has an unknown format, or the dtype of an array is not supported.
    ArgumentError
        If no name begins with `prefix`.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import xplstm.io
    >>> model = {"head": xplstm.Linear(3, 2, rng=0).params, "lstm": xplstm.LSTM(4, 3).params}
    >>> head = xplstm.Linear(3, 2)
    >>> head.load_state_dict(xplstm.io.arrays(model, "head"))
    """
    prefix = _values.text("prefix", prefix)
    with as_path(source) as given:
        contents = open_source(given)
        if dtype is not None:
            contents = cast(contents, _checks.dtype(dtype))
        namespace, start = _array.resolve(xp), f"{dot_name(prefix)}." if prefix else ""
        found = {
            name.removeprefix(start): _place_copy(tensor.array(), namespace, device, None)
            for name, tensor in contents.tensors.items()
            if name.startswith(start)
        }
        if prefix and not found:
            msg = f"prefix={prefix!r} matches no tensor; {contents.where} has {list_tensors(contents)}"
            raise ArgumentError(msg)
        return found


def save(
    path: Path,
    network: Network,
    *,
    format: str | None = None,  # noqa: A002
    prefix: str = "",
    dtype: FloatDType | None = None,
) -> None:
    """Write the parameters of a network to a file atomically.

    The function writes a new file in the same folder, syncs it to the disk and renames it. The old or the new
    file is therefore complete at every moment, even after a power failure.

    Parameters
    ----------
    path : path
        The file name selects the kind of file: ``.safetensors``, ``.npz``, ``.pt``, ``.pth``,
        ``.weights.h5``, ``.eqx`` or ``.onnx``. The folder must exist. An existing file is overwritten.
    network : LSTM, GRU, RNN or JordanRNN
        Network of any array library; arrays on a device are copied to the host.
    format : str, optional
        Names, axes and order of the weights, as for `load`; those of PyTorch if omitted, and those of Keras,
        ONNX and Equinox in their own files. All files except ``.eqx`` also store the options that the shapes
        do not determine, so that `load` needs no argument; ``.onnx`` does not store dropout rates.
        ``.safetensors`` and ``.npz`` store every variant with PyTorch's names; ``.onnx`` stores some.
    prefix : str, optional
        Start of the names of the arrays.
    dtype : {"float32", "float64", "float16", "bfloat16"}, or a library's dtype, optional
        Dtype of the parameters in the file; the network's dtype if omitted. The network does not change.

    Raises
    ------
    ArgumentError
        If the file name or `format` is unknown, the format does not support an option of the network, or a
        parameter is NaN, infinite or outside the range of `dtype`.
    OSError
        If the file cannot be written. An existing file is then unchanged.

    Examples
    --------
    >>> import os, tempfile
    >>> import xplstm.io
    >>> lstm = xplstm.LSTM(3, 2, variant=xplstm.Variant(peepholes=True), rng=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "weights.safetensors")
    ...     xplstm.io.save(path, lstm)
    ...     xplstm.io.load(path)
    LSTM(3, 2, num_layers=1, variant=Variant(peepholes=True))
    """
    _check_network(network)
    place, prefix = _values.path("path", path), _values.text("prefix", prefix)
    modules = {name: _registry.file_format(name) for name in _registry.FILES}
    file = next((name for name, one in modules.items() if place.lower().endswith(one.SUFFIXES)), None)
    if file is None:
        known = ", ".join(suffix for module in modules.values() for suffix in module.SUFFIXES)
        msg = f"path={place!r} must end in one of {known}"
        raise ArgumentError(msg)
    usual = modules[file].LAYOUT
    layout = usual if format is None else _values.one_of("format", format, _registry.LAYOUTS)
    if layout != usual and file in _registry.ONE_LAYOUT:
        msg = f"format={layout!r} is not possible in {place}; omit it, or use another file name ending"
        raise ArgumentError(msg)
    _checks.all_finite({name: _array.to_numpy(a) for name, a in network.params.items()}, NOT_SAVED)
    if dtype is not None:
        network = _copy_network(network, _checks.dtype(dtype))
    if network._home().dtype == "bfloat16" and file in _registry.NO_BFLOAT16:
        msg = f"the network has dtype bfloat16, which {place} cannot store; use .safetensors"
        raise ArgumentError(msg)
    write_durably(place, modules[file].encode(network, layout, dot_name(prefix)))


def _copy_network(network: Network, dtype: str) -> Network:
    """Return a copy of the network on the host, with another dtype."""
    hosts = {name: _array.to_numpy(a) for name, a in network.params.items()}
    duplicate = copy.copy(network)
    xp = _array.numpy_namespace()
    duplicate.params = {name: _checks.convert(name, a, xp, None, dtype) for name, a in hosts.items()}
    return duplicate


def to_mapping(network: Network, format: str) -> dict[str, Array]:  # noqa: A002
    """Convert the parameters of a network to the names, axes and gate order of another library.

    Parameters
    ----------
    network : LSTM, GRU, RNN or JordanRNN
        The network.
    format : str
        As for `load`.

    Returns
    -------
    dict of str to array
        Arrays of the network's library, device and dtype, with dots between the parts of a name. For a format
        with one bias, the two biases are added. If a format has only one layer or direction, several get the
        prefixes ``l0``, ``l0_reverse``, ``l1`` and so on.

    Raises
    ------
    ArgumentError
        If `format` is unknown, or does not support an option of the network.

    Examples
    --------
    >>> import xplstm.io
    >>> theirs = xplstm.io.to_mapping(xplstm.LSTM(3, 2), "flax")
    >>> theirs["if.kernel"].shape, theirs["hf.kernel"].shape, theirs["hf.bias"].shape
    ((3, 2), (2, 2), (2,))
    """
    _check_network(network)
    layout = _registry.layout(_values.one_of("format", format, _registry.LAYOUTS))
    if format == "torch":
        refuse_lost(network, "a mapping under PyTorch's names")
    arrays_by_name: dict[str, Array] = layout.to_mapping(network)
    return arrays_by_name


def from_state(state: Sequence[Array], format: str) -> LSTMState:  # noqa: A002
    """Convert a state (carry) from the order of another library.

    Parameters
    ----------
    state : sequence of two arrays
        h and c, of any shapes, in the order of the format: (c, h) for Flax, (h, c) for the others.
    format : str
        As for `load`.

    Returns
    -------
    LSTMState
        State with the same arrays, not copied.

    Raises
    ------
    ArgumentError
        If `format` is unknown.
    DTypeError
        If `state` is not two float arrays of one library, device and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm.io
    >>> c, h = np.ones((4, 2)), np.zeros((4, 2))
    >>> xplstm.io.from_state((c, h), "flax").h is h
    True
    """
    order = _registry.layout(_values.one_of("format", format, _registry.LAYOUTS)).STATE
    pair = _check_state(tuple(_values.items("state", state)))
    return LSTMState(*(dict(zip(order, pair, strict=True))[letter] for letter in LSTMState._fields))


def to_state(state: LSTMState | tuple[Array, Array], format: str) -> tuple[Array, Array]:  # noqa: A002
    """Convert a state to the order of another library.

    Parameters
    ----------
    state : (h, c)
        State with arrays of any shapes.
    format : str
        As for `load`.

    Returns
    -------
    tuple of two arrays
        (c, h) for Flax, (h, c) for the others, not copied.

    Raises
    ------
    ArgumentError
        If `format` is unknown.
    DTypeError
        If `state` is not two float arrays of one library, device and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> import xplstm.io
    >>> state = xplstm.LSTMState(h=np.zeros((4, 2)), c=np.ones((4, 2)))
    >>> carry = xplstm.io.to_state(state, "nnx")
    >>> carry[0] is state.c
    True
    """
    order = _registry.layout(_values.one_of("format", format, _registry.LAYOUTS)).STATE
    first, second = (getattr(_check_state(state), letter) for letter in order)
    return first, second


def _check_network(network: object) -> None:
    """Check that `network` is a network of this package."""
    if not isinstance(network, nn.Recurrent):
        msg = f"network must be one of {', '.join(nn.NETWORKS)}, got {type(network).__name__}"
        if callable(getattr(network, "save", None)):
            msg += "; call its method save(path)"
        elif isinstance(network, nn.FrozenLSTM | nn.FrozenRNN):
            msg += "; pass the layer that was frozen"
        raise ArgumentError(msg)


def _check_state(state: object) -> LSTMState:
    """Check that a state is two arrays of one library, device and float dtype."""
    pair = _checks.state("state", state)
    _checks.floats({f"state[{k}]": a for k, a in enumerate(pair)})
    return pair


def _build(
    contents: Contents,
    found: Found,
    xp: str | Namespace | None,
    device: Device | None,
    options: Mapping[str, Any],
) -> Network:
    """Create the network from its description."""
    kind: Any = nn.NETWORKS[found.kind].cls
    known = [name for name in signature(kind).parameters if name not in ("xp", "device", "dtype", "rng")]
    unknown = [name for name in options if name not in known]
    if unknown:
        msg = f"{unknown[0]}= is not an option of {found.kind}, expected one of {', '.join(known)}"
        raise ArgumentError(msg)
    _check_readable(contents, found)
    dtypes = {contents.tensors[name].dtype for name in found.names}
    if len(dtypes) != 1 or not dtypes <= {*_array.FLOATS}:
        what = f"{label_of(found)} has dtypes {dtypes_of(contents, found)}"
        msg = f"{contents.where}: {what}, expected one of {', '.join(_array.FLOATS)}"
        quantised = {name for name in dtypes if name.startswith("q")}
        if dtypes - quantised <= {*_array.FLOATS}:
            msg += "; pass dtype= to convert" + (", which also dequantises" if quantised else "")
        else:
            msg += (
                "; convert the arrays of xplstm.io.arrays to real numbers, with their scales if there are any"
            )
        raise FormatError(msg)
    for name in options.keys() & found.options.keys() - {*FREE}:
        held, given = found.options[name], options[name]
        if held != given:
            which = f"{name}={held!r}, which {name}={given!r} contradicts"
            msg = f"{contents.where}: {label_of(found)} has {which}"
            raise ArgumentError(msg)
    arguments = {**found.options, **options}
    undetermined = [name for name in found.undetermined if name not in arguments and name != "format"]
    if undetermined:
        what = f"is not stored in {contents.where}, but changes the results"
        msg = f"{undetermined[0]} {what}; pass {'=, '.join(undetermined)}="
        raise ArgumentError(msg)
    try:
        params = found.params()
        network: Network = kind(**arguments, xp=xp, device=device, dtype=dtypes.pop(), rng=0)
    except FormatError:
        raise
    except XplstmError as error:
        msg = f"{contents.where}: {label_of(found)}: {error}"
        raise type(error)(msg) from error
    shapes = {name: tuple(a.shape) for name, a in params.items()}
    if shapes != network.shapes:
        msg = f"{contents.where}: {label_of(found)} has shapes {shapes}, expected {network.shapes}"
        raise FormatError(msg)
    _check_finite(contents, found, params)
    home = network._home()
    network.params = {
        name: _place_copy(params[name], home.xp, home.device, home.dtype) for name in network.shapes
    }
    return network


def _check_finite(contents: Contents, found: Found, params: Mapping[str, Array]) -> None:
    """Raise an error for numbers that are not finite, with their name in the file if it has one."""
    try:
        try:
            _checks.all_finite(params, REMEDY)
        except ArgumentError:
            theirs = {show(name): contents.tensors[name].array() for name in found.names}
            _checks.all_finite({**theirs, **params}, REMEDY)
    except ArgumentError as error:
        msg = f"{contents.where}: {label_of(found)}: {error}"
        raise FormatError(msg) from error


def _place_copy(a: Array, xp: Namespace, device: Device | None, dtype: str | None) -> Array:
    """Return a copy of `a` in the library, device and dtype; copy at most once."""
    native = _array.native(a)
    placed = _array.asarray(native, xp, device, dtype)
    return _array.copy(placed) if _array.namespace(native, "a tensor") is xp else placed
