"""Read Keras weights with layer names, as in HDF5 files of Keras 2, and weights for cuDNN.

A name consists of a layer of the model, the scopes of its variables, and the variable:
``lstm_1/lstm_1/kernel:0`` or ``bidirectional/bidirectional/forward_lstm/lstm_cell/kernel:0``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from xplstm import _array
from xplstm._errors import FormatError
from xplstm._typing import Array
from xplstm.cells.activations import blocks
from xplstm.cells.params import Variant
from xplstm.io._contents import Contents, Found, Tensor, dot_name, quote
from xplstm.io.layouts.keras_config import Recurrent

SIDES = ("forward_layer", "backward_layer")
# Name prefixes of the two layers of a Bidirectional layer.
_SIDE_NAMES = ("forward_", "backward_")
# Number of gates, and number of vectors in the bias of a cuDNN layer.
_CUDNN_BIASES = {4: 8, 3: 6}


def place_cells(
    contents: Contents, cells: Sequence[Found], told: Sequence[Recurrent] | None
) -> dict[str, Found]:
    """Return the cells by the path of their layer in the configuration; without one, by layer name."""
    if told is None:
        layers = dict.fromkeys(one.prefix.partition(".")[0] for one in cells)
        networks: dict[str, Found] = {}
        for layer in layers:
            here = _under(cells, layer)
            alone = {layer: _move(here[0], layer)} if len(here) == 1 else {}
            networks |= alone or _sides(layer, here) or {one.prefix: one for one in here}
        return networks
    paths = [one.path for one in told]
    twice = next((path for path in paths if path and paths.count(path) > 1), None)
    if twice is not None:
        msg = f"{contents.where} has two layers named {quote(twice)}, whose weights cannot be distinguished"
        raise FormatError(msg)
    return {path: one for layer in told for path, one in _of_layer(cells, layer)}


def _of_layer(cells: Sequence[Found], layer: Recurrent) -> Iterator[tuple[str, Found]]:
    """Yield the cells of a layer of the configuration, if their number is that of the directions."""
    path = layer.path.replace("/", ".")
    here = _under(cells, dot_name(layer.path.partition("/cell/cells/")[0]))
    is_stacked = "/cell/cells/" in layer.path
    if len(here) != 1 + layer.bidirectional or is_stacked:
        named = [one for one in here or cells if dot_name(layer.name) in one.prefix.split(".")]
        here = named if named or is_stacked else here
    if layer.bidirectional:
        yield from _sides(path, here).items()
    elif len(here) == 1:
        yield path, _move(here[0], path)


def _under(cells: Sequence[Found], layer: str) -> list[Found]:
    return [one for one in cells if f"{one.prefix}.".startswith(f"{layer}.")]


def _sides(path: str, cells: Sequence[Found]) -> dict[str, Found]:
    """Return the two directions of a layer by path; empty if the cells are not two directions."""
    sides = {
        f"{path}.{side}": _move(one, f"{path}.{side}")
        for side, start in zip(SIDES, _SIDE_NAMES, strict=True)
        for one in cells
        if any(part.startswith(start) for part in one.prefix.split("."))
    }
    return sides if len(sides) == len(cells) == 2 else {}


def _move(cell: Found, path: str) -> Found:
    return cell._replace(prefix=path, parts=cell.places)


def from_cudnn(contents: Contents, names: tuple[str, str, str]) -> tuple[Contents, frozenset[str]]:
    """Convert the weights of cuDNN layers to those of other layers, and return the prefixes of cuDNN layers.

    CuDNNLSTM and CuDNNGRU concatenate a bias for x and a bias for h; other layers store their sum. Each gate
    has the matrices of cuDNN. The data of the matrix for x has the order of an array (units, inputs), which
    differs from its shape.
    """
    kernel, recurrent, bias = names
    tensors, places = dict(contents.tensors), set()
    for name, tensor in contents.tensors.items():
        place = name.removesuffix(bias)
        given = [tensors.get(place + one) for one in (kernel, recurrent)]
        if place == name or place[-1:] not in ("", ".") or None in given:
            continue
        shapes = [one.shape for one in given if one is not None]
        gates = _gates(shapes[0], shapes[1], tensor.shape)
        if gates is None:
            continue
        places.add(place[:-1])
        for one, change in ((kernel, _kernel), (recurrent, _recurrent_kernel)):
            old = contents.tensors[place + one]
            tensors[place + one] = old._replace(array=partial(_change, change, old, gates))
        H = shapes[1][0]
        shape = (4 * H,) if gates == 4 else (2, 3 * H)
        tensors[name] = Tensor(shape, tensor.dtype, partial(_change, _bias, tensor, gates))
    return contents._replace(tensors=tensors), frozenset(places)


def mark_cudnn(cell: Found, places: frozenset[str]) -> Found:
    """Return a cell with the fixed functions of a cuDNN layer."""
    is_cudnn = cell.prefix in places and cell.kind == "LSTM"
    return cell._replace(options={**cell.options, "variant": Variant()}) if is_cudnn else cell


def _gates(kernel: tuple[int, ...], recurrent: tuple[int, ...], bias: tuple[int, ...]) -> int | None:
    """Return the number of gates of a cuDNN layer; None if the shapes do not fit such a layer."""
    if len(kernel) != 2 or len(recurrent) != 2 or not recurrent[0]:
        return None
    gates, rest = divmod(recurrent[1], recurrent[0])
    fits = not rest and gates in _CUDNN_BIASES and kernel[1] == recurrent[1]
    return gates if fits and bias == (_CUDNN_BIASES[gates] * recurrent[0],) else None


def _change(change: Any, tensor: Tensor, gates: int) -> Array:
    a = _array.native(tensor.array())
    changed: Array = change(_array.namespace(a, "a kernel"), a, gates)
    return changed


def _kernel(xp: Any, a: Array, gates: int) -> Array:
    joined: Array = xp.concat([xp.reshape(b, b.shape[::-1]).T for b in blocks(xp, a, gates)], axis=1)
    return joined


def _recurrent_kernel(xp: Any, a: Array, gates: int) -> Array:
    joined: Array = xp.concat([b.T for b in blocks(xp, a, gates)], axis=1)
    return joined


def _bias(xp: Any, a: Array, gates: int) -> Array:
    both: Array = xp.reshape(a, (2, a.shape[0] // 2))
    return both[0, :] + both[1, :] if gates == 4 else both
