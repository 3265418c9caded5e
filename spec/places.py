"""Map batch entries, features and units into a larger or permuted call."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from spec.records import Record
from spec.subject import Arrays

LAYER = (
    *("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"),
    *("weight_ch", "gain_ih", "gain_hh", "gain_c", "bias_c"),
)
KINDS: dict[str, tuple[str, ...]] = {
    "x": ("B", "I"),
    "y": ("B", "P*"),
    "h_0": ("B", "P"),
    "h_n": ("B", "P"),
    "c_0": ("B", "H"),
    "c_n": ("B", "H"),
    "weight_ih": ("H*", "I"),
    "weight_hh": ("H*", "P"),
    "bias_ih": ("H*",),
    "bias_hh": ("H*",),
    "weight_hr": ("P", "H"),
    "weight_ch": ("H*",),
    "gain_ih": ("H*",),
    "gain_hh": ("H*",),
    "gain_c": ("H",),
    "bias_c": ("H",),
}
"""What the last axes of each array are, * for some blocks of it; a gradient has the axes of its array."""
SUFFIX = re.compile(r"_l(\d+)(_reverse)?$")


def split_name(name: str) -> tuple[str, int | None, bool]:
    """Return an array's name without layer and direction, the layer, and whether it is of the reverse one."""
    found = SUFFIX.search(name)
    if found is None:
        return name, None, False
    return name[: found.start()], int(found[1]), found[2] is not None


def features(index: np.ndarray, size: int, blocks: int) -> np.ndarray:
    """Return an index of units, repeated for each block of `size`."""
    return np.concatenate([k * size + index for k in range(blocks)])


def joined(ys: list[np.ndarray], merge: str) -> np.ndarray:
    """Return the output of a layer's directions as XPL-STK-002 and XPL-VAR-014 say."""
    if len(ys) == 1:
        return ys[0]
    if merge in ("concat", "none"):
        return np.concatenate(ys, -1) if merge == "concat" else np.stack(ys)
    if merge == "product":
        return np.asarray(ys[0] * ys[1])
    return np.asarray((ys[0] + ys[1]) / (2 if merge == "mean" else 1))


class Axis(NamedTuple):
    """New indices of the old places, and the new size."""

    places: np.ndarray
    size: int

    @property
    def new(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.size), self.places)


def at(axes: list[Axis]) -> Any:
    """Return the index of the old places in the last axes of a new array."""
    return (..., *np.ix_(*(axis.places for axis in axes)))


def unchanged(n: int) -> Axis:
    return Axis(np.arange(n), n)


class Places(NamedTuple):
    """One axis each for batch entries, features, hidden units and outputs of the projection."""

    B: Axis
    I: Axis
    H: Axis
    P: Axis

    @classmethod
    def of(cls, config: Record, a: Arrays, choose: Callable[[int], Axis]) -> Places:
        """Choose a place for everything; without a projection the outputs are the units."""
        sizes = (a["x"].shape[1], config["input_size"], config["hidden_size"])
        B, I, H = (choose(n) for n in sizes)
        return cls(B, I, H, choose(config["proj_size"]) if config.get("proj_size") else H)

    @classmethod
    def row(cls, config: Record, a: Arrays, b: int) -> Places:
        """One batch entry among all."""
        found = cls.of(config, a, unchanged)
        return found._replace(B=Axis(np.asarray([b]), a["x"].shape[1]))

    def without_units(self, config: Record) -> Places:
        """Keep the places of the units."""
        H = unchanged(config["hidden_size"])
        return self._replace(H=H, P=unchanged(config["proj_size"]) if config.get("proj_size") else H)

    def axes(self, name: str, shape: tuple[int, ...], taken: bool) -> list[Axis]:
        """Return the last axes of an array of a shape, which is the new one if it is `taken` from."""
        base, layer, _ = split_name(name)
        base = base if base in KINDS else base[1:]
        kinds = ("H*", "P*") if base == "weight_ih" and layer else KINDS[base]
        sizes = shape[len(shape) - len(kinds) :]
        return [self.axis(kind, size, taken) for kind, size in zip(kinds, sizes, strict=True)]

    def axis(self, kind: str, size: int, taken: bool) -> Axis:
        one: Axis = getattr(self, kind[0])
        blocks = size // (one.size if taken else len(one.places)) if kind.endswith("*") else 1
        return Axis(features(one.places, one.size, blocks), blocks * one.size)

    def put(self, a: Arrays, rng: np.random.Generator) -> Arrays:
        """Return the arrays of the new call; what is new in it changes nothing in the old places."""
        found = {}
        for name, v in a.items():
            axes = self.axes(name, v.shape, taken=False)
            lead = v.shape[: v.ndim - len(axes)]
            new = rng.uniform(-1, 1, (*lead, *(axis.size for axis in axes)))
            new[at(axes)] = v
            self.silence(name, new, axes)
            found[name] = new
        return found

    def silence(self, name: str, new: np.ndarray, axes: list[Axis]) -> None:
        """Set to zero what would change the old places: rows and states of dead units, and columns."""
        base, layer, _ = split_name(name)
        if base in LAYER:
            new[axes[0].new] = 0
        if base in ("h_0", "c_0") or (base == "weight_ih" and not layer):
            new[..., axes[-1].new] = 0
        if base in ("dy", "dh_n", "dc_n"):
            new[..., axes[0].new, :] = 0

    def take(self, a: Arrays) -> Arrays:
        """Return what is at the old places."""
        found = {}
        for name, v in a.items():
            axes = self.axes(name, v.shape, taken=True)
            found[name] = v[at(axes)]
        return found

    def config(self, config: Record, T: int, rng: np.random.Generator) -> Record:
        """Return the config of the new call; new batch entries have any steps."""
        found = config | {"input_size": self.I.size, "hidden_size": self.H.size}
        found |= {"proj_size": self.P.size} if config.get("proj_size") else {}
        if config.get("lengths") is not None:
            lengths = rng.integers(0, T + 1, self.B.size)
            lengths[self.B.places] = config["lengths"]
            found["lengths"] = lengths.tolist()
        if config.get("mask") is not None:
            mask = rng.random((T, self.B.size)) < 0.5
            mask[:, self.B.places] = config["mask"]
            found["mask"] = mask.tolist()
        return found

    def config_of_row(self, config: Record) -> Record:
        """Return the config of the batch entries at the old places alone."""
        found = dict(config)
        if config.get("lengths") is not None:
            found["lengths"] = [config["lengths"][b] for b in self.B.places]
        if config.get("mask") is not None:
            found["mask"] = [[step[b] for b in self.B.places] for step in config["mask"]]
        return found
