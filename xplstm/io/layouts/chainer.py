"""Layout of Chainer's ``NStepLSTM`` and ``NStepBiLSTM``: eight numbered matrices for each direction."""

from __future__ import annotations

import re

from xplstm._typing import Array
from xplstm.io import layers
from xplstm.io._combined import Stack, combine
from xplstm.io._contents import Contents, Found
from xplstm.io._written import no_place, plain
from xplstm.io.layouts.single import CHAINER
from xplstm.nn._module import Recurrent

STATE = CHAINER.STATE
SURE = True

_PLACE = re.compile(r"(?:(.*)\.)?(0|[1-9]\d{0,5})")


def find(contents: Contents) -> list[Found]:
    """Return the stacks of cells numbered from 0, with each number of directions that fits."""
    groups: dict[str, dict[int, Found]] = {}
    for one in CHAINER.find(contents):
        match = _PLACE.fullmatch(one.prefix)
        if match is not None:
            groups.setdefault(match[1] or "", {})[int(match[2])] = one
    return [found for prefix, ones in groups.items() for found in _find_stacks(prefix, ones)]


def to_mapping(network: Recurrent) -> dict[str, Array]:
    """Return the arrays of all layers, with the forward direction of each layer first."""
    params = plain(network, "chainer")
    if "bias_ih_l0" not in params:
        raise no_place("chainer", "has no biases")
    directions = [direction for layer in layers.split(params) for direction in layer]
    return {f"{k}.{name}": a for k, one in enumerate(directions) for name, a in CHAINER.write(one).items()}


def _find_stacks(prefix: str, ones: dict[int, Found]) -> list[Found]:
    """Return the possible stacks of these cells; if none fits, the first with its problem."""
    count = len(ones)
    if max(ones) != count - 1:
        problem = f"there are {count} cells, but one has the number {max(ones)}"
        return [ones[max(ones)]._replace(prefix=prefix, problem=problem)]
    stacks: list[Stack] = [[(ones[k],) for k in range(count)]]
    if count % 2 == 0:
        stacks.append([(ones[k], ones[k + 1]) for k in range(0, count, 2)])
    networks = [combine(prefix, stack) for stack in stacks]
    return [one for one in networks if one.problem is None] or networks[:1]
