"""Layout of the variables of Keras layers, with the options from a model configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from xplstm._errors import FormatError
from xplstm._typing import Array
from xplstm.io._combined import combine
from xplstm.io._contents import Contents, Found, Tensor, dot_name, quote, show
from xplstm.io.layouts import keras_config
from xplstm.io.layouts.keras_config import Recurrent
from xplstm.io.layouts.keras_layers import SIDES, from_cudnn, mark_cudnn, place_cells
from xplstm.io.layouts.single import Single
from xplstm.nn import _module

STATE = ("h", "c")
SURE = False


# Variables of one direction, by number as in files, and by name.
def _rows(kernel: str, recurrent_kernel: str, bias: str) -> Single:
    lstm = Single("keras", (kernel,), (recurrent_kernel,), ((bias,),), columns=True)
    return lstm._replace(also=(lstm._replace(order="zrn", kind="GRU", paired=True),))


NUMBERED = _rows("cell.vars.0", "cell.vars.1", "cell.vars.2")
# A cell of stacked cells in an RNN layer.
STACKED = _rows("vars.0", "vars.1", "vars.2")
NAMES = ("kernel", "recurrent_kernel", "bias")
NAMED = _rows(*NAMES)

_NUMBER = re.compile(r"(.*?)(?:_([1-9]\d{0,5}))?")


def to_mapping(network: _module.Recurrent) -> dict[str, Array]:
    """Return the arrays as kernel, recurrent_kernel and bias."""
    return NAMED.to_mapping(network)


def find(contents: Contents) -> list[Found]:
    """Return the LSTMs of a model, or all groups with the variables of an LSTM."""
    by_layer = contents.metadata.get("by_layer", False)
    configured = None
    if "config" in contents.metadata:
        reading = keras_config.Reading(contents.metadata["version"], _weighed(contents, by_layer))
        configured = keras_config.recurrent(contents.where, contents.metadata["config"], reading, by_layer)
        _check_names(contents, configured)
    resolved, cudnn = from_cudnn(contents, NAMES)
    named = [mark_cudnn(one, cudnn) for one in NAMED.find(resolved)]
    if by_layer:
        cells = place_cells(contents, [_batch_first(one) for one in named], configured)
    else:
        stacked = [one for one in STACKED.find(contents) if one.prefix.split(".")[-2:-1] == ["cells"]]
        cells = {one.prefix: _batch_first(one) for one in (*NUMBERED.find(contents), *stacked)}
    if configured is not None:
        return [_stack(cells, stack) for stack in _stacks(configured)]
    # The caller knows the weights of a mapping; the weights of a file need a confirmation.
    if contents.file == "keras":
        named = [one._replace(undetermined=_open(one)) for one in named]
    return [*_find_unconfigured(cells), *(() if by_layer else named)]


def _weighed(contents: Contents, by_layer: bool) -> Callable[[str], bool]:
    """Return a function of a path or name that returns whether the file has weights of this layer."""
    names = [name.split(".") for name, tensor in contents.tensors.items() if not _is_whole(tensor)]
    if by_layer:
        parts = {part for name in names for part in name}
        return lambda layer: parts.issuperset(dot_name(layer).split("."))
    starts = {".".join(name[:k]) for name in names for k in range(len(name))}
    return lambda path: dot_name(path) in starts


def _is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor has integers, such as the state of a random number generator."""
    return tensor.dtype.startswith(("int", "uint", "bool"))


def _batch_first(cell: Found) -> Found:
    return cell._replace(options={**cell.options, "batch_first": True})


def _check_names(contents: Contents, configured: Sequence[Recurrent]) -> None:
    """Check that the weights at each path have the layer name of the configuration."""
    for one in configured:
        name = contents.metadata["names"].get(f"{one.path}/vars", one.name)
        if name != one.name:
            whose = (
                f"the weights at {one.path} are those of {quote(name)}, expected those of {quote(one.name)}"
            )
            msg = f"{contents.where}: {whose}"
            raise FormatError(msg)


def _stacks(configured: Sequence[Recurrent]) -> Iterator[list[Recurrent]]:
    """Yield groups of consecutive compatible layers, each of which forms one network."""
    stacks: dict[str, list[Recurrent]] = {}
    for one in configured:
        below = stacks.get(one.below or "", [])
        if below and _fit_together(below[-1], one):
            stacks[one.path] = [*stacks.pop(str(one.below)), one]
        else:
            stacks[one.path] = [one]
    yield from stacks.values()


def _fit_together(a: Recurrent, b: Recurrent) -> bool:
    """Return whether two layers can be layers of one network."""
    alike = ("kind", "units", "use_bias", "options", "problem")
    same = all(getattr(a, name) == getattr(b, name) for name in alike)
    return same and a.options.get("merge") != "none" and not a.options.get("reverse")


def _stack(cells: Mapping[str, Found], stack: Sequence[Recurrent]) -> Found:
    """Return one network from consecutive layers."""
    prefix = stack[0].path.replace("/", ".")
    sides = tuple(f".{side}" for side in SIDES) if stack[0].bidirectional else ("",)
    paths = [[one.path.replace("/", ".") + side for side in sides] for one in stack]
    missing = [path for layer in paths for path in layer if path not in cells]
    problem = next((f"{show(one.name)}: {one.problem}" for one in stack if one.problem), None)
    if missing or stack[0].units is None:
        problem = problem or f"{missing[0]} has no weights"
        return Found(prefix, "keras", "LSTM", {}, NUMBERED.gates, (), dict, problem)
    merge = stack[0].options.get("merge", "concat")
    found = combine(prefix, [tuple(cells[path] for path in layer) for layer in paths], merge)
    problem = problem or found.problem
    after = [o.get("reset_after", True) for o in (found.options, stack[0].options)]
    if not problem and (found.kind != stack[0].kind or (found.options["bias"] and after[0] != after[1])):
        problem = f"the weights do not fit the configuration, {stack[0].kind} with reset_after={after[1]}"
    for one in stack:
        if not problem and (found.options["hidden_size"], found.options["bias"]) != (one.units, one.use_bias):
            given = f"units={one.units!r} and use_bias={one.use_bias!r}"
            problem = f"the weights of {show(one.name)} do not fit {given}"
    options = {k: v for k, v in stack[0].options.items() if (k, v) != ("merge", "concat")}
    undetermined = ("reverse",) if options.get("reverse") else ()
    return found._replace(options={**found.options, **options}, problem=problem, undetermined=undetermined)


def _open(cell: Found, *more: str) -> tuple[str, ...]:
    """Return the arguments that the variables of a cell do not determine.

    A GRU is read only with its default functions and merge. By passing "format", the caller confirms them.
    """
    if cell.kind == "LSTM":
        return ("variant", *more)
    return ("format",) if cell.options.get("bias") else ("format", "reset_after")


def _find_unconfigured(cells: Mapping[str, Found]) -> list[Found]:
    """Return the LSTMs of a weights file, and the possible stacks of them."""
    networks: dict[str, Found] = {}
    for path, cell in cells.items():
        place, _, side = path.rpartition(".")
        other = cells.get(f"{place}.{SIDES[1]}")
        if side == SIDES[0] and other is not None:
            both = combine(place, [(cell, other)])
            networks[place] = both._replace(undetermined=_open(cell, "merge"))
        elif side != SIDES[1] or f"{place}.{SIDES[0]}" not in cells:
            networks[path] = cell._replace(undetermined=_open(cell))
    return [*networks.values(), *_find_numbered(cells, networks)]


def _find_numbered(cells: Mapping[str, Found], found: Mapping[str, Found]) -> Iterator[Found]:
    """Yield stacks of consecutively numbered layers that fit each other."""
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
            tuple(cells[f"{path}.{side}"] for side in SIDES) if path not in cells else (cells[path],)
            for path in wanted
        ]
        all_of_them = combine(f"{parent}.{kind}*", stack)
        if all_of_them.problem is None:
            yield all_of_them._replace(undetermined=found[wanted[0]].undetermined)
