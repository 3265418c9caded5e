"""Check tensors that a network does not use: each must be known to be harmless.

A layout finds a network by the names of its tensors. Another tensor under the same prefix, such as the gain
of a layer normalisation, shows that the network computes something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from xplstm.io._contents import Contents, Found, show

# Meanings of the extra tensors of known cells and wrappers.
_MEANINGS = (
    (
        r"parametrizations|_orig$|_mask$|_[gvu]$|_raw$|original\d?$|kernel\.(scale|sigma|u)$|^scales\.",
        "a weight computed from other tensors",
    ),
    (r"(?<!weight)(?<!spectral)norm|^ln|_ln|gamma|beta|gain", "layer normalisation"),
    (r"peephole|(^|_)w?_?c[ifo]$|_diag$|weight_ch|^p[ifo]$", "peephole connections"),
    (r"_hr|proj", "a projection"),
    (r"lora_", "an adapter"),
    (r"bias|^b\d?$", "a bias"),
    (r"^[hc]_?[0x]|init|state", "an initial state"),
)
_ADAPTER = re.compile(r"(lora|dora|adapter)(_|\.|$)", re.IGNORECASE)
# Names of adapter modules. A module with the name adapter may be an ordinary layer.
_FACTOR = re.compile(
    r"(^|\.)((?:lora|dora)_(?:a|b|up|down|embedding_[ab]|magnitude\w*)(?:\.|$))", re.IGNORECASE
)
_COLLECTION = re.compile(r"^(params|batch_stats)\.")
_INSTANCE = re.compile(r"(^|\.)layer_instance$")
# The largest number of names between a wrapper of linen and the end of the path of a weight.
_DEPTH = 8
_SHOWN = 6


def check_unused(contents: Contents, candidates: Sequence[Found]) -> list[Found]:
    """Return the candidates, with a problem if tensors under their prefixes do not belong to them."""
    if contents.file == "onnx":  # a graph shows which tensors a node uses
        return list(candidates)
    places = {_wrapper_of(place) for one in candidates for place in one.places}
    by_place: dict[str, list[str]] = {place: [] for place in places}
    for name, tensor in contents.tensors.items():
        place = name
        while place and place not in places:
            place = place.rpartition(".")[0]
        if place in places and not _is_harmless(name, tensor.dtype):
            by_place[place].append(name)
    for find in (_join_suffixes, _find_adapters, _find_norms):
        for place, name in find(contents, candidates):
            by_place[place].append(name)
    return [_check_candidate(one, by_place) for one in candidates]


def _join_suffixes(contents: Contents, candidates: Sequence[Found]) -> Iterator[tuple[str, str]]:
    """Yield each prefix with a tensor whose name is the prefix, an underscore and a suffix.

    Such a tensor belongs to the network if the network's names have this form, as in MXNet, or if it is part
    of an adapter.
    """
    used = {name for one in candidates for name in one.names}
    joined = {one.prefix for one in candidates if any(n.startswith(f"{one.prefix}_") for n in one.names)}
    places = {_wrapper_of(place) for one in candidates for place in one.places if place}
    for name in (name for name in contents.tensors if name not in used):
        for match in re.finditer("_", name):
            place, rest = name[: match.start()], name[match.end() :]
            if place in places and (place in joined or _ADAPTER.match(rest)):
                yield place, name


def _find_adapters(contents: Contents, candidates: Sequence[Found]) -> Iterator[tuple[str, str]]:
    """Yield each prefix with a tensor of an adapter of an enclosing module."""
    places = {place for one in candidates for place in one.places}
    for name in contents.tensors:
        match = _FACTOR.search(name)
        if match is not None:
            above = name[: match.start(2)]
            yield from ((_wrapper_of(place), name) for place in places if place.startswith(above))


def _find_norms(contents: Contents, candidates: Sequence[Found]) -> Iterator[tuple[str, str]]:
    """Yield each prefix with a tensor of Flax's WeightNorm or SpectralNorm, which compute its weights.

    Linen stores the tensors of a weight in the wrapper, under the path of the weight, as in
    ``WeightNorm_0.LSTMCell_0.hf.kernel.scale``. nnx stores them next to the wrapped cell.
    """
    places = {place for one in candidates for place in one.places}
    parents = {place.removesuffix("layer_instance"): place for place in places if _INSTANCE.search(place)}
    owners: dict[str, str] = {}
    beside: dict[tuple[str, str], list[str]] = {}
    for one in (one for one in candidates if one.places and one.layout in ("flax", "nnx")):
        for name in one.names:
            path = _COLLECTION.sub("", name).split(".")
            owners[".".join(path)] = one.places[0]
            beside.setdefault((".".join(path[:-3]), ".".join(path[-2:])), []).append(one.places[0])
    for name in contents.tensors:
        *path, end = _COLLECTION.sub("", name).split(".")
        if end in ("scale", "sigma", "u"):
            outer = range(max(0, len(path) - _DEPTH), len(path))
            paths = (".".join(path[:k] + path[k + 1 :]) for k in outer)
            wrapped = [owners[path] for path in paths if path in owners]
            # A wrapped RNN may give its own name to the weights of its cell.
            wrapped = wrapped or beside.get((".".join(path[:-4]), ".".join(path[-2:])), [])
            yield from ((_wrapper_of(place), name) for place in dict.fromkeys(wrapped))
        for start, place in parents.items():
            if name.startswith((f"{start}scales.", f"{start}batch_stats.")):
                yield _wrapper_of(place), name


def _wrapper_of(place: str) -> str:
    """Return the prefix of the wrapper around a network, or the network's prefix."""
    return f".{place}".removesuffix(".base_layer").removeprefix(".")  # adapters of PEFT


def _is_harmless(name: str, dtype: str) -> bool:
    """Return whether a tensor is a counter or a random key, which does not change the outputs."""
    is_real = dtype.startswith(("float", "bfloat", "complex", "q", "unreadable"))
    return not is_real and re.search(r"mask|scale|zero_?point|clip", name.rpartition(".")[2]) is None


def _check_candidate(one: Found, by_place: dict[str, list[str]]) -> Found:
    used = {*one.names}
    places = dict.fromkeys(map(_wrapper_of, one.places))
    extra = [name for place in places for name in by_place[place] if name not in used]
    if not extra:
        return one
    ends = [name.removeprefix(one.prefix).lstrip("._") for name in extra]
    meanings = {
        words: None for end in ends for pattern, words in _MEANINGS if re.search(pattern, end, re.IGNORECASE)
    }
    names = ", ".join(show(end) for end in ends[:_SHOWN])
    more = f" and {len(ends) - _SHOWN} more" if len(ends) > _SHOWN else ""
    meaning = f" ({', '.join(meanings)})" if meanings else ""
    problem = (
        f"format {one.layout!r} does not use {names}{more}{meaning}; if they do not belong to the network, "
        "pass a mapping without them"
    )
    return one._replace(problem=f"{one.problem}; {problem}" if one.problem else problem)
