"""Keras 3: models (``.keras``) and weights (``.weights.h5``), read without Keras; weights also written.

A model's configuration is read as text: no class or function that it names is ever looked for.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence

from xplstm import _array
from xplstm._errors import ArgumentError, FormatError
from xplstm._typing import Array
from xplstm.io import _h5, _keras_config, layers
from xplstm.io._archive import Archive
from xplstm.io._combined import combine
from xplstm.io._contents import Contents, Found, Opening, by_name
from xplstm.io._keras_config import Recurrent
from xplstm.io._written import no_place, plain
from xplstm.io.single import Single
from xplstm.nn import _module

SUFFIXES = (".weights.h5",)
LAYOUT = "keras"
STATE = ("h", "c")
SURE = False

# A configuration is a few kilobytes a layer.
LONGEST_CONFIG = 1 << 24
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"

# One direction's variables by their numbers, as files have them, and by their names.
NUMBERED = Single("keras", ("cell.vars.0",), ("cell.vars.1",), (("cell.vars.2",),), columns=True)
NAMED = Single("keras", ("kernel",), ("recurrent_kernel",), (("bias",),), columns=True)

_SIDES = ("forward_layer", "backward_layer")
_NUMBER = re.compile(r"(.*?)(?:_([1-9]\d{0,5}))?")


def recognises(opening: Opening) -> bool:
    """An HDF5 file, or an archive with one and a configuration."""
    archive = {_WEIGHTS, _CONFIG} <= {*opening.members} or opening.path.lower().endswith(".keras")
    return archive or opening.head.startswith(_h5.SIGNATURE) or opening.path.lower().endswith(SUFFIXES)


def read(path: str) -> Contents:
    """Variables by their paths, and the configuration of a model."""
    with open(path, "rb") as file:
        archived = file.read(2) == b"PK"
    if not archived:
        tree = _h5.read(_h5.Source(path))
        told = {name: "not read" for name in ("model_config",) if name in tree.attributes}
        return Contents(path, "keras", by_name(path, tree.tensors), told, "keras")
    archive = Archive(path)
    missing = sorted({_WEIGHTS, _CONFIG} - archive.members.keys())
    if missing:
        msg = f"{path} holds no {', '.join(missing)}: it is no model of Keras 3"
        raise FormatError(msg)
    if archive.members[_CONFIG].file_size > LONGEST_CONFIG:
        msg = (
            f"{path}: {_CONFIG} has {archive.members[_CONFIG].file_size} bytes; {LONGEST_CONFIG} are allowed"
        )
        raise FormatError(msg)
    config = _keras_config.parse(path, archive.read(_CONFIG))
    tree = _h5.read(_h5.Source(path, archive.read(_WEIGHTS)))
    metadata = {"config": config, "names": tree.names}
    return Contents(path, "keras", by_name(path, tree.tensors), metadata, "keras")


def encode(network: _module.Recurrent, layout: str, prefix: str) -> bytes:
    """The bytes of a file of weights."""
    if layout != "keras":
        msg = f"format={layout!r} cannot stand in a file of Keras; leave it out, or save another kind of file"
        raise ArgumentError(msg)
    if _array.dtype_name(network.params["weight_hh_l0"].dtype) == "bfloat16":
        raise no_place("keras", "has dtype bfloat16")
    content = io.BytesIO()
    with _h5.import_h5py().File(content, "w") as file:
        for number, directions in enumerate(layers.split(plain(network, "keras"))):
            kind = "lstm" if len(directions) == 1 else "bidirectional"
            place = "/".join(filter(None, [prefix.replace(".", "/"), "layers", kind]))
            place += f"_{number}" if number else ""
            sides = ("",) if len(directions) == 1 else tuple(f"/{side}" for side in _SIDES)
            for side, params in zip(sides, directions, strict=True):
                for name, a in NUMBERED.write(params).items():
                    file[f"{place}{side}/{name.replace('.', '/')}"] = _array.to_numpy(a)
    return content.getvalue()


def to_mapping(network: _module.Recurrent) -> dict[str, Array]:
    """kernel, recurrent_kernel and bias, as the variables of a cell are called."""
    return NAMED.to_mapping(network)


def find(contents: Contents) -> list[Found]:
    """The LSTMs of a model, or whatever has the variables of one."""
    cells = {
        found.prefix: found._replace(options={**found.options, "batch_first": True})
        for found in NUMBERED.find(contents)
    }
    if "config" in contents.metadata:
        told = _keras_config.recurrent(contents.where, contents.metadata["config"])
        _check_names(contents, told)
        return [_stack(cells, stack) for stack in _stacks(told)]
    if "model_config" in contents.metadata:
        problem = "a whole model as Keras 2 has it, whose configuration is not read: "
        problem += "save it as .keras or .weights.h5"
        return [Found("", "keras", "LSTM", {}, NAMED.gates, (), dict, problem)]
    # A mapping is what a caller made of weights that are known; a file has it from elsewhere.
    named = NAMED.find(contents)
    if contents.file == "keras":
        named = [one._replace(untold=("variant",)) for one in named]
    return [*_untold(cells), *named]


def _check_names(contents: Contents, told: Sequence[Recurrent]) -> None:
    """Refuse weights that say they are another layer's than the configuration has there."""
    for one in told:
        name = contents.metadata["names"].get(f"{one.path}/vars", one.name)
        if name != one.name:
            whose = f"the weights at {one.path} are those of {name!a}, the model's of {one.name!r}"
            msg = f"{contents.where}: {whose}"
            raise FormatError(msg)


def _stacks(told: Sequence[Recurrent]) -> Iterator[list[Recurrent]]:
    """LSTMs that stand one upon the other and are alike, so that one LSTM here can be all of them."""
    stacks: dict[str, list[Recurrent]] = {}
    for one in told:
        below = stacks.get(one.below or "", [])
        if below and _alike(below[-1], one):
            stacks[one.path] = [*stacks.pop(str(one.below)), one]
        else:
            stacks[one.path] = [one]
    yield from stacks.values()


def _alike(a: Recurrent, b: Recurrent) -> bool:
    """Whether two layers can be layers of one LSTM."""
    same = (a.units, a.use_bias, a.options, a.problem) == (b.units, b.use_bias, b.options, b.problem)
    return same and a.options.get("merge") != "none"


def _stack(cells: Mapping[str, Found], stack: Sequence[Recurrent]) -> Found:
    """The network of some layers."""
    prefix = stack[0].path.replace("/", ".")
    sides = tuple(f".{side}" for side in _SIDES) if stack[0].bidirectional else ("",)
    paths = [[one.path.replace("/", ".") + side for side in sides] for one in stack]
    missing = [path for layer in paths for path in layer if path not in cells]
    problem = next((f"{one.name}: {one.problem}" for one in stack if one.problem), None)
    if missing:
        return Found(
            prefix, "keras", "LSTM", {}, NUMBERED.gates, (), dict, problem or f"{missing[0]} has no weights"
        )
    merge = stack[0].options.get("merge", "concat")
    found = combine(prefix, [tuple(cells[path] for path in layer) for layer in paths], merge)
    problem = problem or found.problem
    for one in stack:
        if not problem and (found.options["hidden_size"], found.options["bias"]) != (one.units, one.use_bias):
            problem = (
                f"{one.name} has units={one.units!r} and use_bias={one.use_bias!r}, its weights have not"
            )
    options = {k: v for k, v in stack[0].options.items() if (k, v) != ("merge", "concat")}
    return found._replace(options={**found.options, **options}, problem=problem)


def _untold(cells: Mapping[str, Found]) -> list[Found]:
    """The LSTMs of a file of weights, which does not tell all of them; and stacks that could be made."""
    found: dict[str, Found] = {}
    for path, cell in cells.items():
        place, _, side = path.rpartition(".")
        other = cells.get(f"{place}.{_SIDES[1]}")
        if side == _SIDES[0] and other is not None:
            both = combine(place, [(cell, other)])
            found[place] = both._replace(untold=("variant", "merge"))
        elif side != _SIDES[1] or f"{place}.{_SIDES[0]}" not in cells:
            found[path] = cell._replace(untold=("variant",))
    return [*found.values(), *_numbered(cells, found)]


def _numbered(cells: Mapping[str, Found], found: Mapping[str, Found]) -> Iterator[Found]:
    """Layers beside each other that are numbered on and fit: a caller may mean all of them."""
    families: dict[tuple[str, str], list[str]] = {}
    for path in found:
        parent, _, name = path.rpartition(".")
        match = _NUMBER.fullmatch(name)
        families.setdefault((parent, match[1] if match else name), []).append(path)
    for (parent, kind), paths in families.items():
        wanted = [f"{parent}.{kind}" + (f"_{k}" if k else "") for k in range(len(paths))]
        if len(paths) == 1 or sorted(paths) != sorted(wanted):
            continue
        stack = [
            tuple(cells[f"{path}.{side}"] for side in _SIDES) if path not in cells else (cells[path],)
            for path in wanted
        ]
        all_of_them = combine(f"{parent}.{kind}*", stack)
        if all_of_them.problem is None:
            yield all_of_them._replace(untold=found[wanted[0]].untold)
