"""What a Keras model's configuration says of its LSTMs: read as text, never made into objects."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from xplstm._errors import FormatError
from xplstm._params import Variant

DEEPEST = 16
MODELS = ("Sequential", "Functional", "Model")
# Layers that hand on what they are given, outside training.
_PASSING = (
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "InputLayer",
    "SpatialDropout1D",
)
MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "product", None: "none"}
# Keras 3's own constants, where a function has some.
ACTIVATIONS: dict[str, Any] = {
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
# What changes training or the first values alone, or what a call hands back; an LSTM here always has y and
# the state.
_ASIDE = re.compile(
    r"name|trainable|dtype|return_sequences|return_state|stateful|unroll|seed|units|unit_forget_bias|zero_output_for_mask"
    r"|implementation|batch_input_shape|.*_(initializer|regularizer|constraint)|cell|use_cudnn|time_major"
)
_READ = ("activation", "recurrent_activation", "use_bias", "go_backwards", "dropout", "recurrent_dropout")


class Recurrent(NamedTuple):
    """One LSTM of a model, with one direction or two."""

    path: str
    """Of its weights, in the file of weights."""
    name: str
    units: Any
    options: dict[str, Any]
    """Arguments of `LSTM` that the configuration tells."""
    use_bias: bool
    below: str | None
    """Path of the LSTM whose outputs alone it is given, if it is such a layer."""
    problem: str | None

    @property
    def bidirectional(self) -> bool:
        """Whether it has two directions."""
        return "merge" in self.options


def parse(where: str, text: bytes) -> Mapping[str, Any]:
    """A configuration as a dict."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{where}: config.json is no JSON: {ascii(str(error))[1:-1][:200]}"
        raise FormatError(msg) from error
    if not isinstance(config, dict):
        msg = f"{where}: config.json is no JSON object"
        raise FormatError(msg)
    return config


def recurrent(where: str, config: Mapping[str, Any]) -> list[Recurrent]:
    """Every LSTM of a model, those of models inside it included."""
    try:
        found = list(_of_model(config, "layers", 0))
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        msg = f"{where}: config.json is not that of a Keras 3 model: {ascii(repr(error))[:200]}"
        raise FormatError(msg) from error
    return _claimed_once(found)


def _claimed_once(found: list[Recurrent]) -> list[Recurrent]:
    """An output that several LSTMs are given is the end of its stack."""
    claims = Counter(one.below for one in found)
    return [one if claims[one.below] == 1 else one._replace(below=None) for one in found]


def snake_case(name: str) -> str:
    """What Keras calls the weights of a class's layers."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _of_model(model: Mapping[str, Any], path: str, depth: int) -> Iterator[Recurrent]:
    """The LSTMs of a model whose layers' weights stand under `path`."""
    if model["class_name"] not in MODELS or depth > DEEPEST:
        return
    counts: Counter[str] = Counter()
    # Name of a layer -> path of the LSTM whose outputs it hands on, in a Sequential by their order.
    above: dict[str, str | None] = {}
    before: str | None = None
    for layer in model["config"]["layers"]:
        kind, config = layer["class_name"], layer["config"]
        key = snake_case(kind)
        place = f"{path}/{key}_{counts[key]}" if counts[key] else f"{path}/{key}"
        counts[key] += 1
        name = config.get("name", layer.get("name"))
        source = before if model["class_name"] == "Sequential" else _source(layer, above)
        hands_on = source if layer.get("module") == "keras.layers" and kind in _PASSING else None
        if kind in MODELS:
            yield from _of_model(layer, f"{place}/layers", depth + 1)
        elif layer.get("module") == "keras.layers" and kind in ("LSTM", "Bidirectional", "RNN"):
            one = _layer(kind, config, place, name, source)
            if one is not None:
                yield one
                hands_on = place
        above[name] = before = hands_on


def _source(layer: Mapping[str, Any], above: Mapping[str, str | None]) -> str | None:
    """The LSTM whose outputs alone a layer of a functional model is given."""
    calls = layer.get("inbound_nodes", [])
    if len(calls) != 1 or len(calls[0]["args"]) != 1 or not isinstance(calls[0]["args"][0], dict):
        return None
    tensor = calls[0]["args"][0]
    if tensor.get("class_name") != "__keras_tensor__":
        return None
    name, call, output = tensor["config"]["keras_history"]
    return above.get(name) if call == output == 0 else None


def _layer(kind: str, config: Mapping[str, Any], path: str, name: str, below: str | None) -> Recurrent | None:
    """One layer, if it is an LSTM."""
    if kind == "Bidirectional":
        forward, backward = config["layer"], config.get("backward_layer") or config["layer"]
        if forward["class_name"] != "LSTM":
            return None
        options, use_bias, problem = _both(config, forward["config"], backward)
        return Recurrent(path, name, forward["config"]["units"], options, use_bias, below, problem)
    if kind == "RNN":
        cell = config["cell"]
        if cell["class_name"] != "LSTMCell":
            return None
        config = {**cell["config"], **config}
    options, problem = _options(config, backwards=False)
    return Recurrent(path, name, config["units"], options, config["use_bias"], below, problem)


def _both(
    config: Mapping[str, Any], forward: Mapping[str, Any], backward: Mapping[str, Any]
) -> tuple[dict[str, Any], bool, str | None]:
    """The options of two directions, or what is wrong with them."""
    options, problem = _options(forward, backwards=False)
    if backward is not config["layer"]:
        of_backward, of_backward_problem = _options(backward["config"], backwards=True)
        problem = problem or of_backward_problem
        alike = backward["class_name"] == "LSTM" and of_backward == options
        alike = alike and all(backward["config"][k] == forward[k] for k in ("units", "use_bias"))
        problem = problem or (None if alike else "backward_layer is another layer than the forward one")
    merge = config.get("merge_mode", "concat")
    if merge not in MERGES:
        return {}, True, f"merge_mode={merge!r} is unknown"
    return options | {"merge": MERGES[merge]}, forward["use_bias"], problem


def _options(config: Mapping[str, Any], backwards: bool) -> tuple[dict[str, Any], str | None]:
    """Arguments of `LSTM` for a layer's configuration, or what of it no LSTM here can do."""
    unknown = [k for k in config if k not in _READ and not _ASIDE.fullmatch(k) and config[k]]
    if unknown:
        return {}, f"{unknown[0]}={config[unknown[0]]!r} is unknown"
    if config.get("go_backwards", False) is not backwards:
        told = f"go_backwards={config.get('go_backwards')!r}"
        return (
            {},
            f"{told}: no LSTM here has the backward direction alone; xplstm.lstm has, with reverse=True",
        )
    names = [config["recurrent_activation"], config["activation"]]
    for name in names:
        if not isinstance(name, str) or name not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            return {}, f"activation {ascii(name)[:80]} is none of {known}"
    gates, candidate = (ACTIVATIONS[name] for name in names)
    variant = Variant(
        activations=(gates, candidate, candidate),
        recurrent_dropout=float(config.get("recurrent_dropout", 0.0)),
    )
    options: dict[str, Any] = {} if variant == Variant() else {"variant": variant}
    dropout = float(config.get("dropout", 0.0))
    return options | ({"input_dropout": dropout} if dropout else {}), None
