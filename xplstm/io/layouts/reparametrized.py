"""Compute reparametrised PyTorch weights from the tensors that replace them.

A wrapper renames the parameter that it replaces. The parameter is computed as in evaluation mode:

* ``prune``: ``name_orig * name_mask``,
* ``weight_norm``: ``g * v / |v|``, from ``name_g`` and ``name_v``, or, for a matrix, from
  ``parametrizations.name.original0`` and ``original1``; those of a vector could have another meaning,
* ``spectral_norm``: ``W / (u . W v)``, from ``name_orig`` or ``parametrizations.name.original``, for
  the first singular vectors u and v,
* weight dropout, as in AWD-LSTM: ``name_raw`` is the trained weight; ``name`` is a copy with dropout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

from xplstm import _array
from xplstm._errors import FormatError
from xplstm._typing import Array
from xplstm.io._contents import Contents, Tensor, show

_WEIGHT = r"(?:weight|bias)_(?:ih|hh|hr)(?:_l\d{1,6})?(?:_reverse)?"
_OLD = re.compile(rf"((?:.*\.)?)({_WEIGHT})_(orig|mask|g|v|u|raw)")
# A module that computes a weight.
_PART = re.compile(r"(?:(.*)\.)?parametrizations\.[^.]+\.\d+")
_NEW = re.compile(rf"((?:.*\.)?)parametrizations\.({_WEIGHT})\.(.+)")


def owner_of(place: str) -> str:
    """Return the place of the module that a parametrization belongs to; any other place itself."""
    match = _PART.fullmatch(place)
    return (match[1] or "") if match else place


def is_known(place: str, kind: str) -> bool:
    """Return whether a class of a TorchScript program is one of PyTorch, and computes a weight as here."""
    parts = "nn.utils.parametrizations." if _PART.fullmatch(place) else ""
    return kind.startswith(f"__torch__.torch.{parts}")


# Smallest cosine of the angle between a saved vector and the one that the matrix gives, and largest relative
# difference of two norms that are equal up to rounding.
_ALIGNED, _SAME = 0.9, 1e-3


class _Rule(NamedTuple):
    """Rule that computes a weight from its parts."""

    parts: tuple[str, ...]
    compute: Callable[..., Array]


def resolve(contents: Contents) -> Contents:
    """Return the contents with computed weights in place of their parts."""
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
        # Two numbered vectors may be tensors of any parametrisation.
        if rule is None or (
            rule.parts == _NORMED[1] and all(len(tensors[parts[part]].shape) == 1 for part in rule.parts)
        ):
            continue
        given = [tensors.pop(parts[part]) for part in rule.parts]
        place = _inner_name(target, places) if rule.parts == ("raw",) else target
        if place in tensors and rule.parts != ("raw",):
            msg = f"{contents.where}: {show(place)} is present together with {', '.join(parts)}"
            raise FormatError(msg)
        array = partial(_compute, rule, contents.where, place, given)
        shape = given[1].shape if rule.parts in _NORMED else given[0].shape
        tensors[place] = Tensor(shape, given[0].dtype, array)
    return contents._replace(tensors=tensors)


def _inner_name(target: str, places: Collection[str]) -> str:
    """Return the name of the weight in a wrapped module; weight dropout may wrap the LSTM or be inside."""
    start, _, name = target.rpartition(".")
    inner = f"{start}.module" if start else "module"
    return f"{inner}.{name}" if inner in places else target


def _compute(rule: _Rule, where: str, name: str, given: list[Tensor]) -> Array:
    arrays = [_array.native(tensor.array()) for tensor in given]
    try:
        return rule.compute(_array.namespace(arrays[0], name), *arrays)
    except ValueError as error:
        msg = f"{where}: {show(name)}: {error}"
        raise FormatError(msg) from error


def _apply_pruning(xp: Any, weight: Array, mask: Array) -> Array:
    if mask.shape != weight.shape:
        msg = f"the mask has shape {tuple(mask.shape)}, expected {tuple(weight.shape)}"
        raise ValueError(msg)
    return weight * xp.astype(mask, weight.dtype)


def _weight_norm(xp: Any, g: Array, v: Array) -> Array:
    """Return ``g * v / |v|``, with the norm over the axes along which g has one element."""
    fits = g.ndim == v.ndim and all(n in (1, v.shape[k]) for k, n in enumerate(g.shape))
    # A norm for each index of one axis, or a single norm; other pairs are not a normalised weight.
    if g.shape and not (fits and sum(n > 1 for n in g.shape) <= 1):
        msg = f"g has shape {tuple(g.shape)}, which does not fit v of shape {tuple(v.shape)}"
        raise ValueError(msg)
    axes = tuple(k for k, n in enumerate(g.shape) if n == 1) if g.shape else tuple(range(v.ndim))
    return v * (g / xp.sqrt(xp.sum(v * v, axis=axes, keepdims=True)))


def _spectral_norm(xp: Any, weight: Array, u: Any, v: Any) -> Array:
    """Return ``W / (u . W v)`` for the first singular vectors of W or its transpose, up to an error."""
    shape, given = tuple(weight.shape), (*u.shape, *v.shape)
    if len(shape) != 2 or given not in (shape, shape[::-1]):
        msg = f"u and v have shapes {u.shape} and {v.shape}, expected vectors for a matrix of shape {shape}"
        raise ValueError(msg)
    sizes = []
    for matrix in (weight, weight.T):
        if given == tuple(matrix.shape):
            # The wrapper computes one vector from the other; later training changes W a little.
            pairs = (u, matrix @ v), (v, matrix.T @ u)
            if any(float(xp.sum(a * b)) > _ALIGNED * _norm(xp, a) * _norm(xp, b) for a, b in pairs):
                sizes.append(xp.sum(u * (matrix @ v)))
    if not sizes or abs(float(sizes[0] / sizes[-1]) - 1) > _SAME:
        msg = "u and v are the first singular vectors of "
        msg += "both the matrix and its transpose" if sizes else "neither the matrix nor its transpose"
        raise ValueError(f"{msg}; pass the module, or a mapping with the computed weight")
    return weight / sizes[0]


def _norm(xp: Any, a: Any) -> float:
    return float(xp.sum(a * a)) ** 0.5


def _raw(_xp: Any, weight: Array) -> Array:
    return weight


_NORMED = (("g", "v"), ("parametrizations.original0", "parametrizations.original1"))
_RULES = (
    _Rule(("orig", "mask"), _apply_pruning),
    *(_Rule(parts, _weight_norm) for parts in _NORMED),
    _Rule(("orig", "u", "v"), _spectral_norm),
    _Rule(("parametrizations.original", "parametrizations.0._u", "parametrizations.0._v"), _spectral_norm),
    _Rule(("raw",), _raw),
)
