"""Define what adapters of libraries share: availability, support of options, a layer as a module."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from typing import ClassVar

import numpy as np

from spec.subject import Arrays, Config, Unsupported

PLAIN_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
STATES = ("h_0", "c_0", "dh_n", "dc_n")
SEQUENCES = ("x", "dy")
PLAIN_OPTIONS = (
    *("input_size", "hidden_size", "num_layers", "proj_size"),
    *("bias", "bidirectional", "reverse", "lengths", "mask", "dropout"),
)


class Peer:
    """Library that may be installed; of several packages, the first is the one under test."""

    name: ClassVar[str]
    kernel: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    offered: ClassVar[tuple[str, ...]] = ()
    """Options and parameters that the standard LSTM does not have."""

    def describe(self) -> dict[str, str]:
        package = self.packages[0]
        return {"name": self.name, "version": version(package), "library": package, "kernel": self.kernel}

    def why_unavailable(self) -> str | None:
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def declare(self, config: Config, arrays: Arrays, lacking: dict[str, bool]) -> None:
        """Raise `Unsupported` with every reason that applies, and with every unknown option."""
        reasons = [reason for reason, holds in lacking.items() if holds]
        reasons += [f"{self.name} does not offer {name}" for name in self.unknown(config, arrays)]
        if reasons:
            raise Unsupported("; ".join(reasons))

    def unknown(self, config: Config, arrays: Arrays) -> list[str]:
        """Return the options or parameters that this library does not have, so that none is ignored."""
        offered = {"variant", *PLAIN_OPTIONS, *PLAIN_PARAMETERS, *STATES, *SEQUENCES, *self.offered}
        options = {name for name, value in (config | config.get("variant", {})).items() if value} - offered
        words = {"profile": f"the profile {config.get('profile')}", "noise": "masks from a given key"}
        return sorted(words.get(n, n) for n in options or {parameter(n) for n in arrays} - offered)


@cache
def version(package: str) -> str:
    """Return the version of a package from its distribution, which may have another name; or ""."""
    if importlib.util.find_spec(package) is None:
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version(importlib.metadata.packages_distributions()[package][0])


def parameter(name: str) -> str:
    """Return a parameter's name without layer and direction."""
    return name.partition("_l")[0]


def one_bias(arrays: Arrays) -> bool:
    """Return whether a call has only one of the two biases."""
    return len({parameter(name) for name in arrays} & {"bias_ih", "bias_hh"}) == 1


def as_module(config: Config, arrays: Arrays) -> tuple[Config, Arrays]:
    """Return one layer as a module: parameters with torch's names, states with a leading axis."""

    def renamed(name: str, a: np.ndarray) -> tuple[str, np.ndarray]:
        if name in STATES:
            return name, a[None]
        return (name, a) if name in SEQUENCES else (f"{name}_l0", a)

    given = dict(renamed(name, a) for name, a in arrays.items())
    return config | {"num_layers": 1, "bidirectional": False}, given


def as_layer(arrays: Arrays) -> Arrays:
    """Convert the results of `as_module` back."""
    found = {name.replace("_l0", ""): a for name, a in arrays.items()}
    return found | {n: found[n][0] for n in ("h_n", "c_n", "dh_0", "dc_0") if n in found}
