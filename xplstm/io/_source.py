"""Open a file or mapping, and select the requested network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, FormatError, printable
from xplstm._typing import Array
from xplstm.cells.params import Variant
from xplstm.io import _foreign, _given, _registry
from xplstm.io._combined import combine
from xplstm.io._contents import Contents, Found, Opening, Tensor, dot_name, show
from xplstm.io._unused import check_unused
from xplstm.io._written import WORDS, parse_options, words_of
from xplstm.io.files import shards
from xplstm.io.files.archive import Archive

Path: TypeAlias = "str | os.PathLike[str]"
Prefix: TypeAlias = "str | Sequence[str | Sequence[str]]"

_SIZES = (
    *("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "reverse"),
    *("proj_size", "output_size"),
)
# Options that a caller may replace: the order of the axes, the order of sums, and rates of training.
FREE = ("batch_first", "reproducible", "dropout", "input_dropout", "weight_dropout")
_SHOWN, _LONGEST_LINE = 12, 130


def open_source(source: Any) -> Contents:
    """Return the contents of a mapping, module or file; the first bytes determine the file format."""
    if isinstance(source, Mapping):
        return _given.of_mapping(source)
    if not isinstance(source, str | os.PathLike):
        found = _given.of_module(source)
        if found is None:
            what = "a path, an open binary file, bytes, a mapping of arrays or a module of another library"
            msg = f"source must be {what}, got {type(source).__name__}"
            raise ArgumentError(msg)
        return found
    path = _values.path("source", source)
    _foreign.refuse_irregular(path)
    shards.refuse_shard(path)
    with open(path, "rb") as file:
        head = file.read(64)
    if shards.is_index(Opening(path, head, ())):
        return shards.read(path, _read_one)
    return _read_one(path)


def _read_one(path: str) -> Contents:
    """Return the contents of one file."""
    with open(path, "rb") as file:
        head = file.read(64)
    _foreign.refuse_foreign(path, head)
    members = Archive(path).members if head.startswith(b"PK") else {}
    for name in _registry.FILES:
        module = _registry.file_format(name)
        if module.recognises(Opening(path, head, members.keys())):
            contents: Contents = module.read(path)
            return contents
    msg = f"{path} has none of the formats {', '.join(_registry.FILES)}; it begins with {ascii(head[:8])[1:]}"
    msg += _foreign.hint(head, members.keys())
    raise FormatError(msg)


def cast(contents: Contents, dtype: str) -> Contents:
    """Return the contents with all floating-point and quantised arrays in one dtype."""

    def one(name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype not in _array.FLOATS and not tensor.dtype.startswith("q"):
            return tensor

        def array() -> Array:
            what, a = f"{contents.where}: {show(name)}", tensor.array()
            return _checks.convert(what, a, _array.namespace(a, what), None, dtype)

        return Tensor(tensor.shape, dtype, array)

    return contents._replace(tensors={name: one(name, tensor) for name, tensor in contents.tensors.items()})


def layouts_of(contents: Contents) -> list[str]:
    """Return the possible layouts of the contents."""
    return list(_registry.LAYOUTS) if contents.layout is None else [contents.layout]


def candidates_in(contents: Contents, layouts: Sequence[str]) -> list[Found]:
    """Return the networks that the layouts find; of two that read the same parameters, only the first."""
    candidates: dict[tuple[str, str, bool], Found] = {}
    for layout in layouts:
        for one in _registry.layout(layout).find(contents):
            key = (one.prefix, one.gates, bool(one.options.get("bidirectional")))
            if key not in candidates or (candidates[key].problem and not one.problem):
                candidates[key] = one
    return check_unused(contents, [_with_module_options(contents, one) for one in candidates.values()])


def _with_module_options(contents: Contents, one: Found) -> Found:
    """Return a network with the options of its module in memory, and the module's problem, if any."""
    options = dict(contents.said.get(one.prefix, {}))
    problem, undetermined = one.problem, options.pop("undetermined", one.undetermined)
    for place in _places_inside(one):
        problem = contents.said.get(place, {}).get("problem", problem)
    options.pop("problem", None)
    for name, size in options.pop("sizes", {}).items():
        held = one.options.get(name, size if name in ("input_size", "hidden_size", "num_layers") else 0)
        if held != size and not problem:
            problem = f"the module has {name}={size!r}, but its weights are those of {name}={held!r}"
    return one._replace(options={**one.options, **options}, problem=problem, undetermined=undetermined)


def _places_inside(one: Found) -> set[str]:
    """Return the places of a network and of the modules inside that have its tensors."""
    places = {one.prefix}
    for name in one.names:
        while len(name) > len(one.prefix):
            places.add(name)
            name = name.rpartition(".")[0]
    return places


def determines_layout(contents: Contents, found: Found) -> bool:
    """Return whether the contents determine the layout; Equinox files without names do not."""
    if contents.file == "eqx":
        return False
    return contents.layout is not None or _registry.layout(found.layout).SURE


def select_network(
    contents: Contents, layout: str | None, prefix: Prefix | None, options: Mapping[str, Any]
) -> Found:
    """Return the requested network; a list of prefixes stacks cells."""
    layouts = layouts_of(contents)
    if layout is not None:
        layouts = [name for name in layouts if name == _values.one_of("format", layout, _registry.LAYOUTS)]
        contents = contents._replace(layout=layout)
    candidates = candidates_in(contents, layouts)
    if prefix is None or isinstance(prefix, str):
        return _pick_one(contents, candidates, layout, prefix, options)
    layers = [(one,) if isinstance(one, str) else one for one in _values.items("prefix", prefix)]
    layers = [tuple(_values.items(f"prefix[{k}]", one)) for k, one in enumerate(layers)]
    if not all(layers) or not layers or not all(isinstance(one, str) for layer in layers for one in layer):
        msg = f"prefix={prefix!r} must be a prefix, or one or two for each layer"
        raise ArgumentError(msg)
    stack = [tuple(_pick_one(contents, candidates, layout, one, {}) for one in layer) for layer in layers]
    return combine(" + ".join(one for layer in layers for one in layer), stack)


def saved_network(contents: Contents, layout: str | None, prefix: Prefix | None) -> Found | None:
    """Return the network that `save` wrote under another library's names, unless the arguments exclude it."""
    call = words_of(contents)
    if call is None or prefix is not None or layout not in (None, call.format):
        return None
    what = f"{contents.where}: its metadata {WORDS!r}"
    if call.layers and any(name.startswith(call.next_prefixes) for name in contents.tensors):
        msg = f"{what} has layers={call.layers}, but the file also has tensors of {call.next_prefixes[0]!r}"
        raise FormatError(msg)
    try:
        found = select_network(contents, call.format, call.places, {"bidirectional": call.bidirectional})
    except ArgumentError as error:
        msg = f"{what} does not fit its tensors: {error}"
        raise FormatError(msg) from error
    if found.problem is not None:
        return found
    options = parse_options(what, found.kind, call.options) | {"bidirectional": call.bidirectional}
    try:
        _checks.merge(options.get("merge", "concat"), call.bidirectional)
    except ArgumentError as error:
        msg = f"{what}: {error}"
        raise FormatError(msg) from error
    given = {"bidirectional": False, **found.options}
    for name in options.keys() & given.keys() - {*FREE}:
        # The repr of a Variant shows only changed options, and activations for one direction or for both.
        said, shapes = repr(options[name]), repr(given[name])
        if said != shapes:
            msg = f"{what} has {name}={said}, but the tensors have {shapes}"
            raise FormatError(msg)
    return found._replace(options={**found.options, **options}, undetermined=())


def _pick_one(
    contents: Contents,
    candidates: Sequence[Found],
    layout: str | None,
    prefix: str | None,
    options: Mapping[str, Any],
) -> Found:
    """Return the only candidate that fits all arguments."""
    if not candidates:
        raise FormatError(_describe_nothing(contents, layout))
    here = [one for one in candidates if prefix is None or one.prefix == dot_name(prefix)]
    if contents.file != "onnx" or prefix is not None:
        # Names may fit several layouts; a graph has no such ambiguity, nor have the cells of a Keras model.
        is_model = prefix is None and contents.file == "keras" and "config" in contents.metadata
        here = [one for one in here if one.problem is None or (is_model and one.options)] or here
    names = list(dict.fromkeys(one.prefix for one in here))
    if len(names) != 1:
        count = f"{len(names)} networks" if here else "no such network"
        what = f"{contents.where} has {count}"
        choices = _lines(
            f"{label_of(one)}: {one.problem or constructor_call(one)}" for one in here or candidates
        )
        msg = f"prefix={prefix!r}: {what}; pass one of\n{choices}"
        raise ArgumentError(printable(msg))
    sizes = {name: value for name, value in options.items() if name in _SIZES}
    fitting = [one for one in here if all(one.options.get(n, v) == v for n, v in sizes.items())]
    if not fitting:
        msg = f"{dict(options)} contradicts {contents.where}, which contains {constructor_call(here[0])}"
        raise ArgumentError(printable(msg))
    certain = [one for one in fitting if layout is not None or determines_layout(contents, one)]
    if len(certain) != 1 and all(one.problem for one in fitting):
        choices = _lines(f"{label_of(one)}: {one.problem}" for one in fitting)
        msg = f"{contents.where} contains tensors whose names and shapes fit no format\n{choices}"
        raise FormatError(printable(msg))
    if len(certain) != 1:
        raise ArgumentError(printable(_ask_for(contents, certain or fitting)))
    return certain[0]


def _ask_for(contents: Contents, fitting: Sequence[Found]) -> str:
    """Return a message about the argument that the caller must pass."""
    choices = _lines(f"format={one.layout!r}: {constructor_call(one)}, {one.gates}" for one in fitting)
    if len({one.layout for one in fitting}) < len(fitting):
        return f"bidirectional= is needed: the shapes in {contents.where} fit several networks\n{choices}"
    return f"format= is needed: the names in {contents.where} fit several gate orders\n{choices}"


def _describe_nothing(contents: Contents, layout: str | None) -> str:
    """Return the message for contents without a network, with a list of the tensors."""
    of = f" of format {layout!r}" if layout is not None else ""
    return f"{contents.where} contains no known LSTM{of}; it contains {list_tensors(contents)}"


def _lines(choices: Iterable[str]) -> str:
    """Return the first choices, one on each line, and the number of the others."""
    lines = [f"  {choice[:_LONGEST_LINE]}" for choice in choices]
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(lines[:_SHOWN] + more)


def list_tensors(contents: Contents) -> str:
    """Return the first tensors, and the number of the others."""
    first = islice(contents.tensors.items(), _SHOWN)
    names = [f"{show(name)[:_LONGEST_LINE]} {t.shape} {t.dtype}" for name, t in first]
    rest = len(contents.tensors) - len(names)
    return (", ".join(names) or "nothing") + (f" and {rest} more" if rest else "")


def label_of(found: Found) -> str:
    """Return a name for a network that distinguishes it from others."""
    return f"prefix={show(found.prefix)!r}, format={found.layout!r}"


def constructor_call(found: Found) -> str:
    """Return the constructor call of a network."""
    options = dict(found.options)
    first = ("input_size", "hidden_size", "output_size")
    sizes = [str(options.pop(name)) for name in first if name in options]
    plain = {"num_layers": 1, "bias": True, "proj_size": 0, "variant": Variant()}
    plain |= {"bidirectional": False, "reverse": False, "reset_after": True}
    rest = [f"{n}={v!r}" for n, v in options.items() if v is not None and plain.get(n) != v]
    return f"{found.kind}({', '.join([*sizes, *rest])})"


def dtypes_of(contents: Contents, found: Found) -> str:
    """Return the dtypes of the tensors of a network."""
    return ", ".join(sorted({contents.tensors[name].dtype for name in found.names}))
