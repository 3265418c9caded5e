"""Convert sources to a path or a mapping: bytes, open files, and modules of other libraries.

A module is recognised by its attributes. No library is imported.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

from xplstm._errors import ArgumentError, FormatError
from xplstm.io import _registry
from xplstm.io._contents import Contents, show
from xplstm.io._mapping import contents
from xplstm.io._written import METADATA
from xplstm.io.layouts.reparametrized import is_known, owner_of

# Libraries whose cells have layouts in this package.
_LIBRARIES = {"torch", "flax", "equinox", "allennlp"}
# Methods that do not change the results of a call; and methods that every call runs.
_HARMLESS = {"merge_fn", "extra_repr", "reset_parameters", "flatten_parameters", "_compiled_call_impl"}
_CALLS = ("__call__", "__getattr__", "__getattribute__", "_call_impl", "forward", "state_dict")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_hooks")
# Libraries whose modules store their arrays as attributes.
_BY_ATTRIBUTES = {"equinox", "flax"}
_DEEPEST = 32
# Functions that modules of Flax and Equinox hold, with their packages.
_FUNCTIONS = {
    "gate_fn": ("sigmoid", "jax"),
    "activation_fn": ("tanh", "jax"),
    "dot_general": ("dot_general", "jax"),
    "promote_dtype": ("promote_dtype", "flax"),
    "merge_fn": ("_concatenate", "flax"),
}
_STATE_ALONE = "load only the weights, nnx.state(cell), with variant= for other gates"
_OPTIONS = {"batch_first": bool, "dropout": float, "nonlinearity": str}
_MODES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
# Place of the outermost parametrization with a tensor of a state dict.
_PARAMETRIZATION = re.compile(r"(?:.*?\.)??parametrizations\.[^.]+")
_SIZES = ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size")


@contextmanager
def as_path(source: Any) -> Iterator[Any]:
    """Yield a temporary path for bytes and open binary files; yield any other source unchanged."""
    is_file = not isinstance(source, str | os.PathLike) and callable(getattr(source, "read", None))
    if not is_file and not isinstance(source, bytes | bytearray | memoryview):
        yield source
        return
    content = source.read() if is_file else source
    if not isinstance(content, bytes | bytearray | memoryview):
        msg = f"source.read() returned {type(content).__name__}, expected bytes; open the file with mode 'rb'"
        raise ArgumentError(msg)
    where = "the open file" if is_file else "the bytes"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "given")
        with open(path, "wb") as file:
            file.write(content)
        try:
            yield path
        except (FormatError, ArgumentError) as error:
            raise type(error)(str(error).replace(path, where)) from error


def of_module(source: Any) -> Contents | None:
    """Return the contents of a module, a train state or a module tree; None for other objects."""
    where = f"the {type(source).__name__}"
    if "xplstm" in _libraries(source):
        return None
    if callable(getattr(source, "state_dict", None)):
        options = _options_of(source)
        metadata = {METADATA: json.dumps(options)} if options else {}
        changes = dict(_changes_of(source))
        return of_mapping(_state_of(source))._replace(where=where, metadata=metadata, said=changes)
    if isinstance(getattr(source, "params", None), Mapping):
        return _of_params(source)._replace(where=where)
    if _libraries(source) & _BY_ATTRIBUTES:
        # A flat state is a sequence of paths and values.
        tree = _tree(dict(source) if isinstance(source, Sequence) else source, 0)
        said: dict[str, dict[str, Any]] = {}
        _collect_options(source, "", 0, said)
        return contents(tree)._replace(where=where, said=said) if isinstance(tree, Mapping) else None
    return None


def _of_params(state: Any) -> Contents:
    """Return the contents of the params of a train state that has no other arrays of the same names."""
    params = contents(state.params)
    fields = state._asdict() if hasattr(state, "_asdict") else getattr(state, "__dict__", {})
    for name, tree in fields.items():
        if name == "params" or not isinstance(tree, Mapping):
            continue
        if contents(tree).tensors.keys() == params.tensors.keys():
            what, other = f"the {type(state).__name__}", show(name)
            msg = f"{what} has params and {other}, with the same names; pass source.params or source.{other}"
            raise ArgumentError(msg)
    return params


def _state_of(module: Any) -> dict[str, Any]:
    """Return the state dict of a PyTorch module, with computed tensors in place of parametrizations."""
    computed = dict(_compute_parametrized(module))
    state = {}
    for name, a in module.state_dict().items():
        inside = _PARAMETRIZATION.match(name)
        if inside is None or inside[0] not in computed:
            state[name] = a
    for place, value in computed.items():
        state[_parametrized_name(place)] = value
    return state


def _compute_parametrized(module: Any) -> Iterator[tuple[str, Any]]:
    """Compute the parametrised tensors of PyTorch modules in evaluation mode, by place."""
    last = None
    named = getattr(module, "named_modules", None)
    for place, one in named(remove_duplicate=False) if callable(named) else ():
        # A parametrization inside another one comes right after it, and is a part of its value.
        is_inside = last is not None and place.startswith(f"{last}.")
        if is_inside or not any(
            kind.__name__ == "ParametrizationList" and _package(kind) == "torch" for kind in type(one).__mro__
        ):
            continue
        last = place
        modes = {part: part.training for part in one.modules()}
        try:
            with sys.modules["torch"].no_grad():
                one.eval()
                value = one()
                same = value.is_meta or bool(value.isclose(one(), rtol=0, atol=0, equal_nan=True).all())
        except Exception as error:  # any class may compute a parameter
            what = f"the parametrization of {show(_parametrized_name(place))}"
            msg = f"{what} raised {type(error).__name__}: {show(str(error))}"
            raise FormatError(msg) from error
        finally:
            for part, mode in modes.items():
                part.training = mode
        if not same:
            msg = f"the parametrization of {show(_parametrized_name(place))} gives other numbers at each call"
            raise FormatError(f"{msg}; remove it, or pass a mapping of arrays")
        yield place, value


def _parametrized_name(place: str) -> str:
    """Return the name of the tensor that the parametrization at a place computes."""
    start, _, name = place.rpartition("parametrizations.")
    return start + name


def of_mapping(given: Mapping[Any, Any]) -> Contents:
    """Return the contents of a mapping.

    PyTorch writes quantised tensors to a file in memory, from which they are read.
    """
    quantised = dict(_find_quantised(given, "", 0)) if "torch" in sys.modules else {}
    whole = contents(given)
    if not quantised:
        return whole
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "given.pt")
        sys.modules["torch"].save(quantised, path)
        tensors = _registry.file_format("pt").read(path).tensors
        arrays = {name: tensor.array() for name, tensor in tensors.items() if tensor.dtype != "unreadable"}
    read = {name: tensors[name]._replace(array=partial(arrays.__getitem__, name)) for name in arrays}
    return whole._replace(tensors={**whole.tensors, **read})


def _find_quantised(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Find quantised tensors, and PyTorch objects that contain quantised tensors."""
    if isinstance(value, Mapping) and depth <= _DEEPEST:
        for key, inner in value.items():
            yield from _find_quantised(inner, f"{name}.{key}" if name else str(key), depth + 1)
    parts = value if isinstance(value, tuple) else (value,)
    if any(getattr(a, "is_quantized", False) or type(a).__name__ == "ScriptObject" for a in parts):
        yield name, value


def _libraries(value: Any) -> set[str]:
    """Return the packages of the classes of a value."""
    return {kind.__module__.partition(".")[0] for kind in type(value).__mro__}


def _changes_of(module: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Find the sizes of PyTorch modules by prefix, or why their weights do not determine their results."""
    if callable(getattr(module, "named_modules", None)):
        for prefix, one in module.named_modules(remove_duplicate=False):
            change = _find_hooks(one) or _change(one, prefix) or _find_replaced(one)
            if change is not None:
                problem = {"problem": f"{change}; the module's state_dict() returns only the weights"}
                yield (owner_of(prefix) if hasattr(one, "original_name") else prefix), problem
            else:
                sizes = {name: getattr(one, name, None) for name in _SIZES}
                yield prefix, {"sizes": {n: size for n, size in sizes.items() if isinstance(size, int)}}


def _change(module: Any, place: str = "") -> str | None:
    """Return why a module may compute something other than its library's module, or None."""
    kinds = type(module).__mro__
    own = [kind for kind in kinds if _package(kind) in _LIBRARIES and kind.__name__ != "Module"]
    called = show(type(module).__name__)
    if hasattr(module, "original_name"):  # TorchScript keeps the class as a name
        name = str(module._c._type().qualified_name())
        return None if is_known(place, name) else f"it is a {show(name)}, which is not a PyTorch class"
    if not own and _package(kinds[0]) not in _LIBRARIES:
        return f"{called} is not a recurrent module of {', '.join(sorted(_LIBRARIES))}"
    values = [item for kind in own for item in vars(kind).items() if not item[0].startswith("__")]
    names = {name for name, value in values if callable(value) or hasattr(value, "__get__")}
    for name in sorted(names.union(_CALLS) - _HARMLESS):
        if name in vars(module):
            return f"{name} of the object is replaced"
        definer = next((kind for kind in kinds if name in vars(kind)), object)
        method = vars(definer).get(name)
        if definer is not object and (_package(definer) not in _LIBRARIES or _is_foreign(method)):
            return f"{name} of {called} is not the method of {own[0].__name__ if own else 'the library'}"
    return None


def _find_hooks(module: Any) -> str | None:
    """Return which hooks may change results, as text; None if there are only PyTorch's own hooks."""
    everywhere = sys.modules.get("torch.nn.modules.module")
    for hooks in _HOOKS:
        words = hooks.strip("_").replace("_", " ")
        if any(map(_is_unknown_hook, getattr(module, hooks, {}).values())):
            return f"it has {words}, which may change its results"
        if any(map(_is_unknown_hook, getattr(everywhere, f"_global{hooks}", {}).values())):
            return f"PyTorch has global {words}, which may change its results"
    return None


def _is_unknown_hook(hook: Any) -> bool:
    """Return whether a hook is not one that computes weights from other tensors of the state dict."""
    return not str(getattr(hook, "__module__", "")).startswith("torch.nn.utils.")


def _find_replaced(module: Any) -> str | None:
    """Return which parameter a recurrent module does not use; None if it uses all."""
    names, used = getattr(module, "_flat_weights_names", ()), getattr(module, "_flat_weights", ())
    wanted = _flat_names(module) if names else []
    if len(names) == len(wanted) and list(names) != wanted:  # other counts contradict the sizes
        return f"its _flat_weights_names are {show(', '.join(names))}, expected {show(', '.join(wanted))}"
    own = {} if hasattr(module, "original_name") else vars(module).get("_parameters", {})
    wrong = [name for name, a in zip(names, used, strict=False) if own.get(name, a) is not a]
    return f"its _flat_weights differ from its parameters in {show(wrong[0])}" if wrong else None


def _flat_names(module: Any) -> list[str]:
    """Return the names of the parameters of a recurrent PyTorch module, in the order of its calls."""
    fields = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
    fields += ("weight_hr",) if getattr(module, "proj_size", 0) else ()
    ends = ("", "_reverse") if module.bidirectional else ("",)
    return [f"{field}_l{k}{end}" for k in range(module.num_layers) for end in ends for field in fields]


def _is_foreign(method: Any) -> bool:
    """Return whether a method is a function of a package other than these libraries."""
    return isinstance(method, FunctionType) and _package(method) not in _LIBRARIES


def _options_of(module: Any) -> dict[str, dict[str, Any]]:
    """Return the options of every recurrent PyTorch module by prefix, since arrays do not show them."""
    if not callable(getattr(module, "named_modules", None)):
        return {}
    options = {}
    for prefix, one in module.named_modules(remove_duplicate=False):
        # Dynamic quantisation replaces the first attribute with the second.
        compiled = hasattr(one, "_orig_mod")  # has the attributes of the module inside it too
        is_layer = hasattr(one, "_flat_weights_names") or hasattr(one, "_all_weight_values")
        if not compiled and (is_layer or isinstance(getattr(one, "nonlinearity", None), str)):
            given = {name: kind(getattr(one, name)) for name, kind in _OPTIONS.items() if hasattr(one, name)}
            given |= {"nonlinearity": _MODES[one.mode]} if getattr(one, "mode", None) in _MODES else {}
            options[prefix] = {name: value for name, value in given.items() if value}
    return options


def _tree(value: Any, depth: int) -> Any:
    """Return the attributes of a module and its submodules as nested mappings."""
    if depth > _DEEPEST:
        msg = f"source is nested deeper than {_DEEPEST} levels"
        raise ArgumentError(msg)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        # An nnx variable contains its array.
        return value[...] if type(value).__module__.startswith("flax") else value
    inside = _parts_of(value)
    return None if inside is None else {key: _tree(inner, depth + 1) for key, inner in inside.items()}


def _parts_of(value: Any) -> Mapping[Any, Any] | None:
    """Return the parts of a module or container by name; None for other values."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        return {str(key): inner for key, inner in enumerate(value)}
    return vars(value) if _libraries(value) & _BY_ATTRIBUTES and hasattr(value, "__dict__") else None


def _collect_options(value: Any, prefix: str, depth: int, said: dict[str, dict[str, Any]]) -> None:
    """Collect the options of nnx cells, or why no network of this package gives the same results."""
    inside = _parts_of(value)
    if inside is None or depth > _DEEPEST:
        return
    own, start = {} if isinstance(value, Mapping) else inside, f"{prefix}." if prefix else ""
    change = None if isinstance(value, Mapping | list | tuple) else _change(value)
    if change is not None:
        said.setdefault(prefix, {})["problem"] = f"{change}; pass a mapping of its arrays"
    if isinstance(own.get("use_bias"), bool):  # of a cell of Equinox, which ignores a bias without it
        said.setdefault(prefix, {})["sizes"] = {"bias": own["use_bias"]}
    for name, function in own.items():
        called = getattr(function, "__name__", type(function).__name__)
        if _is_function(name, function) and (called, _package(function)) != _FUNCTIONS.get(name):
            usual = "{} of {}".format(*_FUNCTIONS[name]) if name in _FUNCTIONS else "None"
            problem = f"{name}={show(called)}, expected {usual}; {_STATE_ALONE}"
            said.setdefault(prefix, {})["problem"] = problem
    if "cell" in own and isinstance(own.get("time_major"), bool):
        of_cell = said.setdefault(f"{start}cell", {})
        if change is not None:
            of_cell["problem"] = said[prefix]["problem"]
        of_cell["batch_first"] = not own["time_major"]
        of_cell["reverse"] = bool(own.get("reverse"))
        if of_cell["reverse"] and not own.get("keep_order"):
            of_cell["undetermined"] = ("reverse",)
    for key, part in inside.items():
        _collect_options(part, f"{start}{key}", depth + 1, said)
    if "merge_fn" in own and isinstance(own.get("time_major"), bool):
        for side in ("forward_rnn", "backward_rnn"):
            of_cell = said.setdefault(f"{start}{side}.cell", {})
            of_cell["batch_first"] = not own["time_major"]  # instead of the option of each side
            if "problem" in said.get(prefix, {}):
                of_cell.setdefault("problem", said[prefix]["problem"])


def _is_function(name: str, value: Any) -> bool:
    """Return whether an attribute of a module is a function that its calls may use."""
    is_class = isinstance(value, type) or issubclass(type(value), type)
    used = name == "carry_init" or not name.endswith("_init")
    return (
        callable(value) and used and not is_class and not hasattr(value, "shape") and _parts_of(value) is None
    )


def _package(function: Any) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]
