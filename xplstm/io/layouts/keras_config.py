"""Read the options of recurrent layers from the configuration of a Keras model, without creating objects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from xplstm import _values
from xplstm._errors import FormatError
from xplstm.cells.params import Variant
from xplstm.io._contents import quote, show

DEEPEST = 16
MODELS = ("Sequential", "Functional", "Model")
# Layers that are the identity outside training.
_PASSING = (
    *("ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "InputLayer"),
    "SpatialDropout1D",
)
# Layers without weights that change the number of features or axes. Their input does not fit the LSTM.
_RESHAPING = (
    *("CategoryEncoding", "Flatten", "MelSpectrogram", "Permute", "RepeatVector", "Reshape"),
    "STFTSpectrogram",
)
# Layers that have weights, also where another place in the file has them because two models share the layer.
_WEIGHTED = ("BatchNormalization", "Conv1D", "Dense", "EinsumDense", "Embedding", "MultiHeadAttention")
_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
# Layers of Keras 2 with fixed functions, and the classes and options that replaced them.
_CUDNN = {
    "CuDNNLSTM": ("LSTM", {"activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}),
    "CuDNNGRU": (
        "GRU",
        {"activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "reset_after": True},
    ),
}
MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "product", None: "none"}
# Functions with constants, and their values in Keras 3.
_ACTIVATIONS: dict[str, Any] = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "identity",
    "relu": "relu",
    "elu": "elu",
    "softsign": "softsign",
    "softplus": "softplus",
    "leaky_relu": ("leaky_relu", 0.2),
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
}
# Functions by major version of Keras; for an unknown version only those that are the same in all versions.
ACTIVATIONS: dict[int | None, dict[str, Any]] = {
    3: _ACTIVATIONS,
    2: _ACTIVATIONS | {"hard_sigmoid": ("hard_sigmoid", 0.2, 0.5)},
    None: {name: function for name, function in _ACTIVATIONS.items() if name != "hard_sigmoid"},
}
# Options that change only training, the initialisation or the returned values. An LSTM in this package always
# returns y and the state.
_ASIDE = re.compile(
    r"name|trainable|dtype|return_sequences|return_state|stateful|unroll|seed|units|unit_forget_bias|zero_output_for_mask"
    r"|implementation|batch_input_shape|input_dim|input_length|.*_(initializer|regularizer|constraint)|cell|use_cudnn"
)
_READ = (
    *("activation", "recurrent_activation", "use_bias", "go_backwards", "time_major", "reset_after"),
    *("dropout", "recurrent_dropout"),
)


# Classes of arrays among the arguments of a call.
_ARRAYS = ("__numpy__", "__tensor__")
_WITH_NUMBERS = (
    "the model passes constant numbers to the layer, such as initial_state or mask, which load does not "
    "read; load the weights with xplstm.io.arrays, and pass the numbers to each call"
)
_ON_CHANGED = (
    "the layer {}, which has no weights, changes the input of the model before it reaches this layer; apply "
    "it yourself, and load the weights with xplstm.io.arrays"
)
_CELLS = {"LSTMCell": "LSTM", "GRUCell": "GRU"}


# Maps a layer that reads the input of the model through no weights to the first layer that changes it, or to
# None. The key None is the input of a sequential model, or of a layer without inputs.
Raw: TypeAlias = dict[str | None, str | None]


class Recurrent(NamedTuple):
    """A recurrent layer of a model, with one or two directions."""

    kind: str
    """Name of the xplstm class."""

    path: str
    """Path of its weights in the weights file."""
    name: str
    units: Any
    """None for a layer of a class that cannot be loaded."""
    options: dict[str, Any]
    """Arguments of the class from the configuration."""
    use_bias: bool
    below: str | None
    """Path of the recurrent layer whose outputs are its only input, or None."""
    problem: str | None

    @property
    def bidirectional(self) -> bool:
        """Whether the layer has two directions."""
        return "merge" in self.options


def modern(config: Any, depth: int = 0) -> Any:
    """Convert a Keras 2 configuration, or a part of it, to the form of Keras 3."""
    if depth > 8 * DEEPEST or not isinstance(config, dict | list):
        return config
    if isinstance(config, list):
        return [modern(one, depth + 1) for one in config]
    entry = {
        key: value if key == "inbound_nodes" else modern(value, depth + 1) for key, value in config.items()
    }
    kind, options = entry.get("class_name"), entry.get("config")
    if kind == "Sequential" and isinstance(options, list):
        entry["config"] = {"layers": options}
    if isinstance(kind, str) and kind in _CUDNN and isinstance(options, dict):
        entry["class_name"], entries = _CUDNN[kind]
        entry["config"] = {**options, **entries}
    if isinstance(kind, str) and ">" not in kind:
        entry.setdefault("module", "keras.layers")
    if isinstance(entry.get("inbound_nodes"), list):
        entry["inbound_nodes"] = [_call(node) for node in entry["inbound_nodes"]]
    return entry


def _call(node: Any) -> Any:
    """Convert one call of a layer; in Keras 2, a tensor is a list of layer, call, output and arguments."""
    if not isinstance(node, list):
        return node
    tensors = [node] if node and isinstance(node[0], str) else node
    return {"args": [one[:3] for one in tensors], "kwargs": [one[3:] for one in tensors]}


class Reading(NamedTuple):
    """What is known about a file besides its configuration."""

    version: int | None
    """Major version of Keras."""
    has_weights: Callable[[str], bool]
    """Return whether the file has weights of the layer at a path."""


def recurrent(
    where: str, config: Mapping[str, Any], reading: Reading, by_layer: bool = False
) -> list[Recurrent]:
    """Return all recurrent layers of a model, including those of nested models.

    With `by_layer`, paths are layer names, as in HDF5 model files.
    """
    try:
        start = None if by_layer else "layers"
        layers = list(_of_model(config, start, 0, reading, {None: None})) or list(_of_own_classes(config))
    except Exception as error:  # any part of an invalid configuration can have any type
        what = f"{type(error).__name__} {quote(str(error))}"
        msg = f"{where}: config.json is not a valid Keras configuration: {what}"
        raise FormatError(msg) from error
    return layers


def _of_own_classes(model: Mapping[str, Any]) -> Iterator[Recurrent]:
    """Yield entries for custom classes: the model itself, or its layers."""
    if model["class_name"] not in MODELS:
        why = f"of class {quote(model['class_name'])}, which is not supported, since it lists no layers"
        yield _unreadable_entry("", "model", f"{why}; save its weights as .weights.h5")
        return
    for layer in model["config"]["layers"]:
        if not str(layer.get("module") or "").startswith("keras") and layer["class_name"] not in MODELS:
            why = f"contains no known LSTM; class {quote(layer['class_name'])} is not supported"
            yield _unreadable_entry("", str(layer["config"].get("name")), why)
            return


def _unreadable_entry(path: str, name: str, problem: str) -> Recurrent:
    """Return an entry for a layer that cannot be loaded."""
    return Recurrent("LSTM", path, name, None, {}, True, None, problem)


def snake_case(name: str) -> str:
    """Return the Keras name for the weights of a layer class."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _of_model(
    model: Mapping[str, Any], path: str | None, depth: int, reading: Reading, raw: Raw
) -> Generator[Recurrent, None, list[str | None]]:
    """Find the recurrent layers of a model with weights under `path`, or under layer names if it is None.

    `raw` has the inputs of this model that are inputs of the outermost model, and receives the layers after
    them. Returns the names of the layers whose outputs are those of the model.
    """
    if model["class_name"] not in MODELS or depth > DEEPEST:
        return []
    counts: Counter[str] = Counter()
    # Maps a layer name to the path of the recurrent layer whose outputs the layer returns unchanged.
    above: dict[str, str | None] = {}
    before: str | None = None
    last: str | None = None
    uses = _uses(model)
    for layer in model["config"]["layers"]:
        kind, config = layer["class_name"], layer["config"]
        key = snake_case(kind)
        place = f"{path}/{key}_{counts[key]}" if counts[key] else f"{path}/{key}"
        counts[key] += 1
        name = config.get("name", layer.get("name"))
        if not isinstance(name, str):
            msg = f"the name of a layer is {quote(name)}, expected text"
            raise TypeError(msg)
        place = name if path is None else place
        in_order = model["class_name"] == "Sequential"
        source = before if in_order else _source(layer, above, uses)
        hands_on = source if layer.get("module") == "keras.layers" and kind in _PASSING else None
        inputs: list[str | None] = [last] if in_order else [*_inputs(layer)] or [None]
        changed, last = _changer(layer, name, inputs, raw, reading.has_weights(place)), name
        if kind in MODELS:
            inner = _inputs_of(layer, inputs, raw)
            under = None if path is None else f"{place}/layers"
            ends = yield from _of_model(layer, under, depth + 1, reading, inner)
            states = [inner[end] for end in ends if end in inner]
            # Which output a later layer reads is not followed: one that is changed counts for all.
            if any(states) or (states and len(states) == len(ends)):
                raw[name] = next(filter(None, states), None)
        elif layer.get("module") == "keras.layers" and (kinds := _recurrent_in(layer)):
            if kind in ("LSTM", "GRU", "Bidirectional", "RNN"):
                ones = _layers(kind, config, place, name, source, reading.version)
                hands_on = ones[-1].path if in_order or _takes_one(layer) else None
            else:
                ones = [_unreadable_entry(place, name, f"a {kinds}, which is not supported")]
            if any(_has_numbers(call) for call in layer.get("inbound_nodes", [])):
                ones = [one._replace(problem=one.problem or _WITH_NUMBERS) for one in ones]
            if changed is not None:
                why = _ON_CHANGED.format(show(changed))
                ones = [one._replace(problem=one.problem or why) for one in ones]
            yield from ones
        above[name] = before = hands_on
    return [last] if model["class_name"] == "Sequential" else [*_outputs_of(model)]


def _inputs(layer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the layers whose outputs a layer reads; for a recurrent layer, those of its first argument."""
    for call in layer.get("inbound_nodes", []):
        read = call["args"][:1] if layer["class_name"] in _RECURRENT else [call["args"], call.get("kwargs")]
        yield from (name for name, _, _ in _histories(read))


def _inputs_of(model: Mapping[str, Any], inputs: Sequence[str | None], raw: Raw) -> Raw:
    """Return the entries of `raw` for the inputs of a model inside a model, which has the given inputs."""
    names = [name for name, _, _ in _histories(model["config"].get("input_layers", []))]
    if model["class_name"] == "Sequential" or len(names) != len(inputs):
        states = [raw[one] for one in inputs if one in raw]
        return {None: states[0]} if states and len(states) == len(inputs) else {}
    return {name: raw[one] for name, one in zip(names, inputs, strict=True) if one in raw}


def _outputs_of(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield the layers that compute the outputs of a functional model."""
    yield from (name for name, _, _ in _histories(model["config"].get("output_layers", [])))


def _changer(
    layer: Mapping[str, Any], name: str, inputs: Sequence[str | None], raw: Raw, has_weights: bool
) -> str | None:
    """Return the layer without weights that changed the model's input before this layer; add it to `raw`."""
    if name in raw:  # an input of a model inside a model
        return None
    sources = [raw[one] for one in inputs if one in raw]
    changed = sources[0] if sources and all(sources) else None
    if not sources or has_weights or layer["class_name"] in MODELS:
        return changed
    while layer["class_name"] == "TimeDistributed":
        layer = layer["config"]["layer"]
    if layer["class_name"] in (*_RECURRENT, *_WEIGHTED):
        return changed
    if _keeps(layer):
        raw[name] = changed
    elif _reshapes(layer):
        raw |= {name: changed} if len(sources) == len(inputs) else {}
    else:
        raw[name] = changed or name
    return changed


def _keeps(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer returns the numbers of its input."""
    kind, module = layer["class_name"], str(layer.get("module"))
    return (module == "keras.layers" and kind in (*_PASSING, "Identity", "Masking")) or (
        module.startswith("keras.") and kind == "Cast"
    )


def _reshapes(layer: Mapping[str, Any]) -> bool:
    """Return whether the result of a layer cannot be taken for its input, by its axes or features."""
    kind = layer["class_name"]
    own = kind in _RESHAPING or (kind == "Concatenate" and layer["config"].get("axis") in (-1, 2))
    return own and layer.get("module") == "keras.layers"


def _uses(model: Mapping[str, Any]) -> Counter[str]:
    """Count the uses of each layer's first output in a functional model, including model outputs."""
    config = model["config"]
    calls = [layer.get("inbound_nodes", []) for layer in config["layers"]]
    histories = [*_histories(calls), *_histories(config.get("output_layers", []))]
    return Counter(name for name, _, output in histories if output == 0)


def _histories(entries: Any) -> Iterator[tuple[str, int, int]]:
    """Yield layer, call and output of all listed tensors, at any depth."""
    pending = [entries]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, list) and len(one) == 3 and [type(a) for a in one] == [str, int, int]:
            yield one[0], one[1], one[2]
        elif isinstance(one, list):
            pending += one


def _has_numbers(part: Any) -> bool:
    """Return whether an argument of a call, or a part of it, is an array of numbers."""
    if isinstance(part, dict):
        kind = part.get("class_name")
        return kind in _ARRAYS or (kind != "__keras_tensor__" and any(map(_has_numbers, part.values())))
    if not isinstance(part, list) or [*_histories(part)] == [tuple(part)]:
        return False
    return any(isinstance(one, int | float) or _has_numbers(one) for one in part)


def _takes_one(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer of a functional model is called once, with one tensor and no state or mask."""
    calls = layer.get("inbound_nodes", [])
    return len(calls) == 1 and len(calls[0]["args"]) == 1 and len([*_histories(calls)]) == 1


def _source(layer: Mapping[str, Any], above: Mapping[str, str | None], uses: Counter[str]) -> str | None:
    """Return the recurrent layer that feeds only this layer, and is its only input; None if there is none."""
    if not _takes_one(layer):
        return None
    name, call, output = next(_histories(layer["inbound_nodes"]))
    return above.get(name) if call == output == 0 and uses[name] == 1 else None


def _recurrent_in(layer: Mapping[str, Any], depth: int = 0) -> str | None:
    """Return the classes from a wrapper to its first recurrent layer as text; None without such a layer."""
    kind, config = layer["class_name"], layer["config"]
    if kind in _RECURRENT or depth > DEEPEST:
        return kind if kind in _RECURRENT else None
    inside = config["layers"] if kind in MODELS else [config.get("layer")]
    found = (_recurrent_in(one, depth + 1) for one in inside if isinstance(one, dict))
    first = next(filter(None, found), None)
    return first and f"{kind} around {first}"


def _layers(
    kind: str, config: Mapping[str, Any], path: str, name: str, below: str | None, version: int | None
) -> list[Recurrent]:
    """Return one layer, or one for each of an RNN's stacked cells."""
    if kind != "RNN" or _class_of(config["cell"]) != "StackedRNNCells":
        return [_layer(kind, config, path, name, below, version)]
    layers: list[Recurrent] = []
    counts: Counter[str] = Counter()
    for cell in config["cell"]["config"]["cells"]:
        key = snake_case(cell["class_name"])
        place = f"{path}/cell/cells/{key}_{counts[key]}" if counts[key] else f"{path}/cell/cells/{key}"
        counts[key] += 1
        own = cell["config"]["name"]
        layers.append(_layer(kind, {**config, "cell": cell}, place, own, below, version))
        below = place
    problem = next((one.problem for one in layers if one.problem), None)
    # A part of the cells is not the layer.
    layers = [one._replace(problem=problem) for one in layers] if problem else layers
    return layers or [_unreadable_entry(path, name, "an RNN without cells")]


def _class_of(layer: Mapping[str, Any]) -> str:
    """Return the class of a layer or cell of Keras; a class of another package may have the same name."""
    kind: str = layer["class_name"]
    return kind if layer.get("module") == "keras.layers" else f"{kind}, a class of another package"


def _layer(
    kind: str, config: Mapping[str, Any], path: str, name: str, below: str | None, version: int | None
) -> Recurrent:
    """Return one layer, with a problem if it is not supported."""
    if kind == "Bidirectional":
        given = [config["layer"], config.get("backward_layer") or config["layer"]]
        sides = [_with_cell(_class_of(side), side["config"]) for side in given]
        other = next((side for side, _ in sides if side not in _CELLS.values()), None)
        if other is not None:
            return _unreadable_entry(path, name, f"a Bidirectional around {other}, which is not supported")
        (kind, config), merge = sides[0], config.get("merge_mode", "concat")
        options, problem = _merge_directions(sides, merge, given[0] is given[1], version)
    else:
        kind, config = _with_cell(kind, config)
        if kind not in _CELLS.values():
            return _unreadable_entry(path, name, f"an {kind}, which is not supported")
        options, problem = _options(kind, config, version)
    use_bias = _values.flag("use_bias", config["use_bias"])
    units = _values.size("units", config["units"])
    return Recurrent(kind, path, name, units, options, use_bias, below, problem)


def _with_cell(kind: str, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the xplstm class of a layer, or a description, and its options with those of its cell."""
    if kind != "RNN":
        return kind, config
    cell = config["cell"]
    own = _CELLS.get(_class_of(cell), f"RNN of {_class_of(cell)}")
    return own, {**cell["config"], **config}


def _merge_directions(
    sides: Sequence[tuple[str, Mapping[str, Any]]], merge: Any, is_copied: bool, version: int | None
) -> tuple[dict[str, Any], str | None]:
    """Return the options of two directions, and their problem or None."""
    (kind, forward), (other, backward) = sides
    options, problem = _options(kind, forward, version)
    if options.get("reverse"):
        problem = "go_backwards=True in the forward layer of a Bidirectional"
    if not is_copied:
        of_backward, of_backward_problem = _options(other, backward, version)
        problem = problem or of_backward_problem
        alike = other == kind and of_backward == {**options, "reverse": True}
        alike = alike and all(backward[k] == forward[k] for k in ("units", "use_bias"))
        problem = problem or (None if alike else "backward_layer differs from the forward layer")
    if merge not in MERGES:
        return {}, f"merge_mode={quote(merge)} is unknown"
    if kind == "GRU" and merge != "concat":
        problem = problem or f"merge_mode={quote(merge)}, expected concat for a GRU"
    return options | {"merge": MERGES[merge]}, problem


def _options(kind: str, config: Mapping[str, Any], version: int | None) -> tuple[dict[str, Any], str | None]:
    """Return the arguments of the class for a layer's configuration, and its problem or None."""
    unknown = [k for k in config if k not in _READ and not _ASIDE.fullmatch(k) and config[k]]
    if unknown:
        return {}, f"{show(unknown[0])}={quote(config[unknown[0]])} is unknown"
    activations = ACTIVATIONS[version]
    names = [config["recurrent_activation"], config["activation"]]
    for name in names:
        if not isinstance(name, str) or name not in activations:
            known = ", ".join(activations)
            unknown_version = "" if version else "; the file does not state its version of Keras"
            return {}, f"activation {quote(name)} must be one of {known}{unknown_version}"
    gates, candidate = (activations[name] for name in names)
    variant = Variant(
        activations=(gates, candidate, candidate),
        recurrent_dropout=_values.probability("recurrent_dropout", config.get("recurrent_dropout", 0.0)),
    )
    options: dict[str, Any] = {"variant": None if variant == Variant() else variant}
    if kind == "GRU":
        if (gates, candidate) != ("sigmoid", "tanh"):
            return {}, f"activations {gates!r} and {candidate!r}, expected sigmoid and tanh for a GRU"
        options = (
            {} if _values.flag("reset_after", config.get("reset_after", False)) else {"reset_after": False}
        )
    if config.get("time_major"):
        options["batch_first"] = False
    options["reverse"] = _values.flag("go_backwards", config.get("go_backwards", False))
    if kind == "GRU":
        return options, None
    dropout = _values.probability("dropout", config.get("dropout", 0.0))
    return options | ({"input_dropout": dropout} if dropout else {}), None
