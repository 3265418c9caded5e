"""Store and read the options of a network that its tensor shapes do not show."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

from xplstm import _values
from xplstm._errors import ArgumentError, FormatError, XplstmError
from xplstm._typing import Array, Merge
from xplstm.cells.params import Variant
from xplstm.cells.variant import lstm_cell
from xplstm.io import _registry
from xplstm.io._contents import Contents, Found, json_object, quote
from xplstm.nn._module import Recurrent
from xplstm.nn._rnn import NONLINEARITIES

# Keys of the options of networks under PyTorch's names, and of the arguments of `load` in other layouts.
METADATA, WORDS = "xplstm", "xplstm.load"
MODEL = "xplstm.model"
"""Metadata key of the JSON object from `Composite.config`."""
CHECKPOINT = "xplstm-checkpoint-"
"""Start of the format name in a file of `xplstm.training`."""

_NO_NETWORKS = ("optimizer", "history", "state")
"""Groups of tensors of a checkpoint without networks; an optimiser's averages have a network's shapes."""

_OPTIONS = {
    "batch_first": False,
    "dropout": 0.0,
    "merge": "concat",
    "input_dropout": 0.0,
    "weight_dropout": 0.0,
}
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("batch_first", "reset_after", "reverse"), _values.flag),
    **dict.fromkeys(("dropout", "input_dropout", "weight_dropout"), _values.probability),
    "merge": partial(_values.one_of, known=get_args(Merge)),
    "nonlinearity": partial(_values.one_of, known=NONLINEARITIES),
}
_KNOWN = {
    "LSTM": (*_OPTIONS, "reverse", "variant"),
    "GRU": ("batch_first", "dropout", "reverse", "reset_after"),
    "RNN": ("batch_first", "dropout", "reverse", "nonlinearity"),
    "JordanRNN": ("batch_first", "dropout", "reverse", "nonlinearity"),
}


class Words(NamedTuple):
    """The arguments of `load` that restore a network which `save` wrote under another library's names."""

    format: str
    prefix: str
    layers: int
    """Number of layers with separate prefixes, such as ``l0`` and ``l0_reverse``; 0 with one prefix."""
    bidirectional: bool
    options: Any
    """Unchecked options in the form of `changed_options`."""

    @property
    def places(self) -> str | list[list[str]]:
        """Return the prefix, or the prefixes of each layer."""
        if not self.layers:
            return self.prefix
        sides = ("", "_reverse")[: 1 + self.bidirectional]
        return [[self._start(layer) + side for side in sides] for layer in range(self.layers)]

    @property
    def next_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes that an additional layer would have."""
        return tuple(f"{self._start(self.layers)}{side}." for side in ("", "_reverse"))

    def _start(self, layer: int) -> str:
        return f"{self.prefix}.l{layer}" if self.prefix else f"l{layer}"


def serialise(network: Recurrent, layout: str, prefix: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Return arrays by name, and the other contents of the file as JSON by name."""
    arrays = _registry.layout(layout).to_mapping(network)
    start = prefix and f"{prefix}."
    named = {start + name: a for name, a in arrays.items()}
    if layout != "torch":
        # The layers of ONNX are found as one network.
        apart = layout != "onnx" and any(name.startswith("l0.") for name in arrays)
        return named, words_for(network, layout, prefix, apart)
    options = changed_options(network)
    return named, {METADATA: json.dumps({prefix: options})} if options else {}


def words_for(network: Recurrent, layout: str, prefix: str, apart: bool) -> dict[str, str]:
    """Return the arguments of `load` for a network, as JSON; `apart` is True if each layer has a prefix."""
    stack = network._stack
    options: dict[str, Any] = {"batch_first": stack.batch_first}
    # Several layouts require these options, because their arrays do not show them.
    options |= {"variant": {}, "merge": "concat"} if stack.cell.name == "LSTM" else {}
    options |= changed_options(network)
    words = Words(layout, prefix, stack.num_layers if apart else 0, len(stack.reverse) == 2, options)
    return {WORDS: json.dumps(words._asdict())}


def words_of(contents: Contents) -> Words | None:
    """Return the arguments of `load` that a file contains; None without them."""
    if WORDS not in contents.metadata:
        return None
    what = f"{contents.where}: its metadata {WORDS!r}"
    given = json_object(what, contents.metadata[WORDS], once=True)
    kinds = {"format": str, "prefix": str, "layers": int, "bidirectional": bool, "options": dict}
    if given.keys() != kinds.keys() or any(type(given[name]) is not kind for name, kind in kinds.items()):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        msg = f"{what} must have exactly {wanted}"
        raise FormatError(msg)
    words = Words(**given)
    if words.format not in _registry.LAYOUTS or not 0 <= words.layers <= len(contents.tensors):
        what += f" has format {quote(words.format)} and {quote(words.layers)} layers"
        msg = f"{what}; expected one of {', '.join(_registry.LAYOUTS)} and at most one layer per tensor"
        raise FormatError(msg)
    return words


def changed_options(network: Recurrent) -> dict[str, Any]:
    """Return the options that differ from the defaults, in JSON types."""
    stack = network._stack
    options = {name: getattr(stack, name) for name, default in _OPTIONS.items()}
    options = {name: value for name, value in options.items() if value != _OPTIONS[name]}
    options |= {"reverse": True} if network.reverse else {}
    cell = stack.cell.options()
    if "variant" in cell:
        cell["variant"] = cell["variant"].changed()
    return options | cell


def refuse_lost(network: Recurrent, where: str) -> None:
    """Check that PyTorch's names describe all options that change the results."""
    same = {"variant": None, "merge": "concat", "reset_after": True, "reverse": False}
    changes = changed_options(network)
    lost = {name: changes[name] for name in same.keys() & changes.keys() if changes[name] != same[name]}
    if lost:
        shown = ", ".join(f"{name}={value}" for name, value in lost.items())
        msg = f"{where} cannot store {shown}; use .safetensors or .npz, which store every option"
        raise ArgumentError(msg)


def options_of(contents: Contents, prefix: str, kind: str) -> dict[str, Any]:
    """Return the options that `serialise` stored for the network at `prefix`, as arguments of its class."""
    return parse_options(contents.where, kind, stored_options(contents).get(prefix, {}))


def stored_options(contents: Contents) -> dict[str, Any]:
    """Return the stored options of all networks by prefix; those of a checkpoint have a group as prefix."""
    about = _metadata(contents, METADATA)
    if not is_checkpoint(about):
        return about
    networks = _metadata(contents, MODEL).get("networks", {})
    groups = {name.partition(".")[0] for name in contents.tensors} - {*_NO_NETWORKS}
    return {f"{group}.{name}": options for group in groups for name, options in networks.items()}


def is_checkpoint(about: Mapping[str, Any]) -> bool:
    """Return whether this is the metadata of a checkpoint of `xplstm.training`."""
    return str(about.get("format", "")).startswith(CHECKPOINT)


def _metadata(contents: Contents, key: str) -> dict[str, Any]:
    """Return a JSON object of the metadata."""
    text = contents.metadata.get(key, "{}")
    return json_object(f"{contents.where}: its metadata {key!r}", text, once=True)


def check_places(contents: Contents, found: Sequence[Found]) -> list[Found]:
    """Return networks, with a problem if the contents have options for a prefix without a layer."""
    try:
        if is_checkpoint(_metadata(contents, METADATA)):
            found = [one for one in found if one.prefix.partition(".")[0] not in _NO_NETWORKS]
        lost = stored_options(contents).keys() - {one.prefix for one in found}
    except FormatError:  # each network has this error as its problem
        lost = set()
    lost = {prefix for prefix in lost if f"{prefix}.weight" not in contents.tensors}  # no embedding
    if not lost:
        return list(found)
    where = quote(min(lost))
    problem = f"the file has options for a network at {where}, but no such network; were tensors renamed?"
    return [one._replace(problem=one.problem or problem) for one in found]


def parse_options(where: str, kind: str, options: Any) -> dict[str, Any]:
    """Convert the JSON form of `changed_options` to arguments of the class."""
    if not isinstance(options, dict):
        msg = f"{where} has network options of type {type(options).__name__}, expected a JSON object"
        raise FormatError(msg)
    unknown = options.keys() - {*_KNOWN[kind]}
    if unknown:
        msg = f"{where} has options that {kind} does not have: {ascii(sorted(unknown))[:200]}"
        raise FormatError(msg)
    try:
        for name in _CHECKS.keys() & options.keys():
            _CHECKS[name](name, options[name])
    except XplstmError as error:
        msg = f"{where} has an invalid option of a network: {error}"
        raise FormatError(msg) from error
    if "variant" not in options:
        return {**options}
    try:
        cell = lstm_cell(Variant(**options["variant"]), 2)
    except (XplstmError, TypeError, RecursionError) as error:
        msg = f"{where} has an invalid variant: {quote(str(error))}"
        raise FormatError(msg) from error
    return options | {"variant": cell.options().get("variant")}


def plain(
    network: Recurrent, layout: str, kind: str = "LSTM", projected: bool = False
) -> Mapping[str, Array]:
    """Return the parameters of a standard LSTM or another `kind`; a projection is allowed if `projected`."""
    stack = network._stack
    wrong = {
        f"is a {stack.cell.name}": stack.cell.name != kind,
        f"has variant={stack.cell.options().get('variant')}": "variant" in stack.cell.options(),
        f"has proj_size={stack.proj_size}": stack.proj_size and not projected,
        f"has merge={stack.merge!r}": stack.merge != "concat",
        "has reverse=True": network.reverse,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise no_place(layout, what)
    return network.params


def no_place(layout: str, what: str) -> ArgumentError:
    """Return the error for a property that a layout does not support."""
    return ArgumentError(f"the network {what}, which format {layout!r} does not support")
