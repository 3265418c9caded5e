"""Layout of PyTorch's ``LSTM``, ``RNN`` and ``LSTMCell``, with additional names for variants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

from xplstm import _checks, _stack
from xplstm._errors import XplstmError
from xplstm._stack import Stack
from xplstm._typing import Array
from xplstm.cells.params import LSTMParams, Variant
from xplstm.cells.rnn import RNNParams
from xplstm.io._contents import Contents, Found
from xplstm.io._written import check_places, options_of
from xplstm.io.layouts.single import ROWS, TORCH_CELL
from xplstm.nn import NETWORKS
from xplstm.nn._module import Recurrent

STATE = ("h", "c")
SURE = True

_FIELDS = "|".join(dict.fromkeys((*LSTMParams._fields, *RNNParams._fields)))
_NAME = re.compile(rf"(?:(.*)\.)?({_FIELDS})_l(0|[1-9]\d{{0,5}})(_reverse)?")
_NUMBERED = re.compile(r"(?:(.*)\.)?_all_weight_values\.(\d{1,6})\.param\.(ih|hh)\.(weight|bias)")
_KINDS = {network.cell({}, 1).gates: name for name, network in NETWORKS.items() if name != "JordanRNN"}

# Maps the name in this package to the name in the contents.
Names: TypeAlias = dict[str, str]


def find(contents: Contents) -> list[Found]:
    """Return all stacks of layers and all cells."""
    groups: dict[str, Names] = {}
    for name in contents.tensors:
        match = _NAME.fullmatch(name)
        if match is not None:
            prefix = match[1] or ""
            groups.setdefault(prefix, {})[name[len(prefix) + 1 :] if match[1] is not None else name] = name
    stacks = [_find_network(contents, prefix, names) for prefix, names in groups.items()]
    return check_places(contents, stacks + _find_quantised(contents) + TORCH_CELL.find(contents))


def _find_quantised(contents: Contents) -> list[Found]:
    """Find all dynamically quantised stacks, whose cells are numbered."""
    groups: dict[str, dict[int, Names]] = {}
    for name in contents.tensors:
        match = _NUMBERED.fullmatch(name)
        if match is not None:
            prefix, number, of, field = match.groups()
            groups.setdefault(prefix or "", {}).setdefault(int(number), {})[f"{field}_{of}"] = name
    networks = []
    for prefix, cells in groups.items():
        ways = []
        for D in (1, 2):
            suffixes = [(f"_l{number // D}", "_reverse" if number % D else "") for number in cells]
            names = {
                "".join((field, *suffix)): name
                for suffix, fields in zip(suffixes, cells.values(), strict=True)
                for field, name in fields.items()
            }
            ways.append(_find_network(contents, prefix, names))
        # Two layers with equal numbers of inputs and outputs could be two directions; the caller must choose.
        networks += [way for way in ways if way.problem is None] or ways[:1]
    return networks


def to_mapping(network: Recurrent) -> dict[str, Array]:
    """Return the parameters, whose names are those of PyTorch."""
    return network.state_dict()


def _find_network(contents: Contents, prefix: str, names: Names) -> Found:
    """Return the network of one prefix, with its problem if it cannot be loaded."""
    shapes = {ours: contents.tensors[name].shape for ours, name in names.items()}
    kind, sizes, problem = _sizes(shapes)
    options: dict[str, Any] = sizes
    if problem is None:
        try:
            options = sizes | options_of(contents, prefix, kind)
            _checks.merge(options.get("merge", "concat"), options["bidirectional"])
            problem = _misfit(shapes, _stack.shapes(_stack_of(kind, _shown_by(kind, shapes) | options)))
        except XplstmError as error:
            problem = str(error)
    undetermined = ("nonlinearity",) if kind in ("RNN", "JordanRNN") else tuple(_shown_by(kind, shapes))
    params = partial(_params, contents, names)
    return Found(prefix, "torch", kind, options, ROWS, tuple(names.values()), params, problem, undetermined)


def _shown_by(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return options with the shapes of a network that is not standard; the caller must give their values.

    The parameters do not show the activations of a variant, nor which merge leaves one half of the features.
    """
    if kind != "LSTM":
        return {}
    variant = Variant(peepholes="weight_ch_l0" in shapes, layer_norm="gain_ih_l0" in shapes)
    shown: dict[str, Any] = {"variant": variant} if variant != Variant() else {}
    upper, outputs = (shapes.get(name, ())[1:] for name in ("weight_ih_l1", "weight_hh_l0"))
    is_merged = "weight_ih_l0_reverse" in shapes and upper != () and upper == outputs
    return shown | ({"merge": "sum"} if is_merged else {})


def _params(contents: Contents, names: Names) -> dict[str, Array]:
    return {ours: contents.tensors[name].array() for ours, name in names.items()}


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, Any], str | None]:
    """Return class and sizes from the shapes of the first layer, and their problem or None."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if len(shapes.get(name, ())) != 2 or 0 in shapes[name]:
            what = f"has shape {shapes[name]}" if name in shapes else "is missing"
            return "LSTM", {}, f"{name} {what}, expected a matrix"
    rows, outputs = shapes["weight_hh_l0"]
    projection = shapes.get("weight_hr_l0")
    hidden_size = outputs if projection is None else projection[-1] if projection else 0
    kind = _KINDS.get(rows // hidden_size) if hidden_size and rows % hidden_size == 0 else None
    if kind is None:
        wanted = ", ".join(f"{gates} * {hidden_size} for {name}" for gates, name in _KINDS.items())
        return "LSTM", {}, f"weight_hh_l0 has shape {(rows, outputs)}, expected rows: {wanted}"
    layers = {int(_NAME.fullmatch(name)[3]) for name in shapes}  # type: ignore[index]
    if max(layers) != len(layers) - 1:
        return kind, {}, f"there are {len(layers)} layers, but one has the number {max(layers)}"
    sizes: dict[str, Any] = {
        "input_size": shapes["weight_ih_l0"][1],
        "hidden_size": hidden_size,
        "num_layers": len(layers),
        "bias": bool(shapes.keys() & {"bias_ih_l0", "bias_hh_l0"}),
        "bidirectional": "weight_ih_l0_reverse" in shapes,
    }
    if kind == "RNN" and projection is not None:
        return "JordanRNN", sizes | {"output_size": outputs}, None
    return kind, sizes | ({"proj_size": outputs} if projection is not None else {}), None


def _stack_of(kind: str, options: Mapping[str, Any]) -> Stack:
    """Return the stack of these options, which gives the shapes of the parameters."""
    reverse = (False, True) if options["bidirectional"] else (False,)
    names = ("input_size", "hidden_size", "num_layers", "bias")
    return Stack(
        **{name: options[name] for name in names},
        proj_size=options.get("proj_size", options.get("output_size", 0)),
        reverse=reverse,
        cell=NETWORKS[kind].cell(options, len(reverse)),
        merge=options.get("merge", "concat"),
    )


def _misfit(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the names and shapes that do not fit the sizes as text; None if all fit."""
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is not a parameter of this network" for name in given if name not in wanted]
    wrong += [
        f"{name} has shape {given[name]}, expected {shape}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    return "; ".join(wrong[:10]) or None
