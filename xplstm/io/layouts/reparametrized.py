"""Weights that PyTorch keeps as other tensors, from which it computes them at every call.

Each wrapper renames the parameter that it replaces. Here the parameter is computed as in evaluation mode:

* ``prune``: ``name_orig * name_mask``,
* ``weight_norm``: ``g * v / |v|``, of ``name_g`` and ``name_v``, or ``parametrizations.name.original0`` of a
  matrix: the tensors of a vector have one shape, as those of other parametrizations can have,
* ``spectral_norm``: ``W / (u . W v)``, under ``name_orig`` or ``parametrizations.name.original``,
* weight dropout, as in AWD-LSTM: ``name_raw`` is the trained weight; a copy under ``name`` had dropout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

from xplstm import _array
from xplstm._errors import FormatError
from xplstm._typing import Array
from xplstm.io._contents import Contents, Tensor, shown

_WEIGHT = r"(?:weight|bias)_(?:ih|hh|hr)(?:_l\d{1,6})?(?:_reverse)?"
_OLD = re.compile(rf"((?:.*\.)?)({_WEIGHT})_(orig|mask|g|v|u|raw)")
_NEW = re.compile(rf"((?:.*\.)?)parametrizations\.({_WEIGHT})\.(.+)")


class _Rule(NamedTuple):
    """How a weight is computed from its parts."""

    parts: tuple[str, ...]
    compute: Callable[..., Array]


def resolve(contents: Contents) -> Contents:
    """Return the contents with every reparametrized weight under its own name, instead of its parts."""
    groups: dict[str, dict[str, str]] = {}
    for name in contents.tensors:
        match = _OLD.fullmatch(name) or _NEW.fullmatch(name)
        if match is not None:
            kind = match[3] if match.re is _OLD else f"parametrizations.{match[3]}"
            groups.setdefault(match[1] + match[2], {})[kind] = name
    if not groups:
        return contents
    tensors = dict(contents.tensors)
    places = {name.rpartition(".")[0] for name in tensors}
    for target, parts in groups.items():
        rule = next((rule for rule in _RULES if {*rule.parts} == parts.keys()), None)
        if rule is None or _is_any_pair(rule, [tensors[parts[part]].shape for part in rule.parts]):
            continue
        given = [tensors.pop(parts[part]) for part in rule.parts]
        place = _inner(target, places) if rule.parts == ("raw",) else target
        if place in tensors and rule.parts != ("raw",):
            msg = f"{contents.where}: {shown(place)} has a value of its own and {', '.join(parts)} as well"
            raise FormatError(msg)
        array = partial(_compute, rule, contents.where, place, given)
        shape = given[1].shape if rule.parts in _NORMED else given[0].shape
        tensors[place] = Tensor(shape, given[0].dtype, array)
    return contents._replace(tensors=tensors)


def _is_any_pair(rule: _Rule, shapes: list[tuple[int, ...]]) -> bool:
    """Return whether two tensors with numbers as names are vectors, which any parametrization can have."""
    return rule.parts == _NORMED[1] and len(shapes[0]) == len(shapes[1]) == 1


def _inner(target: str, places: Collection[str]) -> str:
    """Return where a wrapped module keeps the weight: weight dropout is around the LSTM, or in it."""
    start, _, name = target.rpartition(".")
    inner = f"{start}.module" if start else "module"
    return f"{inner}.{name}" if inner in places else target


def _compute(rule: _Rule, where: str, name: str, given: list[Tensor]) -> Array:
    arrays = [_array.native(tensor.array()) for tensor in given]
    try:
        return rule.compute(_array.namespace(arrays[0], name), *arrays)
    except ValueError as error:
        msg = f"{where}: {shown(name)}: {error}"
        raise FormatError(msg) from error


def _pruned(xp: Any, weight: Array, mask: Array) -> Array:
    if mask.shape != weight.shape:
        msg = f"the mask has shape {tuple(mask.shape)}, expected {tuple(weight.shape)}"
        raise ValueError(msg)
    return weight * xp.astype(mask, weight.dtype)


def _weight_normed(xp: Any, g: Array, v: Array) -> Array:
    """Return ``g * v / |v|``; the norm is over the axes along which g has one element."""
    fits = g.ndim == v.ndim and all(n in (1, v.shape[k]) for k, n in enumerate(g.shape))
    # One norm for each place along one axis, or a single one; other pairs of tensors are no such weight.
    if g.shape and not (fits and sum(n > 1 for n in g.shape) <= 1):
        msg = f"g has shape {tuple(g.shape)}, which does not fit v of shape {tuple(v.shape)}"
        raise ValueError(msg)
    axes = tuple(k for k, n in enumerate(g.shape) if n == 1) if g.shape else tuple(range(v.ndim))
    return v * (g / xp.sqrt(xp.sum(v * v, axis=axes, keepdims=True)))


def _spectral_normed(xp: Any, weight: Array, u: Any, v: Any) -> Array:
    """Return ``W / (u . W v)`` with the saved vectors; u belongs to the rows, or to the columns."""
    shape, given = tuple(weight.shape), (*u.shape, *v.shape)
    if len(shape) != 2 or given not in (shape, shape[::-1]):
        msg = f"u and v have {u.shape} and {v.shape}, expected vectors for a matrix of shape {shape}"
        raise ValueError(msg)
    matrix = weight if given == shape else weight.T
    return weight / xp.sum(u * (matrix @ v))


def _raw(_xp: Any, weight: Array) -> Array:
    return weight


_NORMED = (("g", "v"), ("parametrizations.original0", "parametrizations.original1"))
_RULES = (
    _Rule(("orig", "mask"), _pruned),
    *(_Rule(parts, _weight_normed) for parts in _NORMED),
    _Rule(("orig", "u", "v"), _spectral_normed),
    _Rule(("parametrizations.original", "parametrizations.0._u", "parametrizations.0._v"), _spectral_normed),
    _Rule(("raw",), _raw),
)
