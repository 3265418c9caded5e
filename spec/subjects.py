"""Every subject by name, present or not, and those that a choice of names means."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache

from spec.subject import Adapter

SLOW = ("jax", "dask", "flax")
PEERS = ("torch", "onnxruntime", "flax", "keras")


def xplstm() -> dict[str, Adapter]:
    """One adapter for each array library and kernel for it."""
    from spec.adapter import HOMES, LIBRARIES, Xplstm, kernels

    return {
        f"xplstm:{library}:{kernel}": Xplstm(library, kernel)
        for library in LIBRARIES
        for kernel in kernels()
        if library in HOMES.get(kernel, LIBRARIES)
    }


@cache
def subjects() -> dict[str, Adapter]:
    """Adapters of xplstm, if it is installed, and of other libraries."""
    ours = xplstm() if importlib.util.find_spec("xplstm") else {}
    return ours | {name: importlib.import_module(f"spec.peers.{name}").Subject() for name in PEERS}


def named(choices: Sequence[str]) -> dict[str, Adapter]:
    """The subjects that `choices` mean, each a name, its first parts, or module:class of an adapter."""
    return {name: adapter for choice in choices for name, adapter in meant(choice).items()}


def meant(choice: str) -> dict[str, Adapter]:
    found = {
        name: adapter
        for name, adapter in subjects().items()
        # By whole parts: xplstm:numpy does not mean xplstm:numpy_readonly.
        if f"{name}:".startswith(f"{choice}:")
    }
    if found:
        return found
    module, colon, name = choice.partition(":")
    if colon and importlib.util.find_spec(module) is not None:
        made = getattr(importlib.import_module(module), name, None)
        if made is not None:
            return {choice: made()}
    msg = f"subject {choice!r} is neither module:class nor one of {', '.join(subjects())}"
    raise LookupError(msg)


def required() -> set[str]:
    """The libraries that have to be here, by the variable XPLSTM_REQUIRE."""
    return {name.strip() for name in os.environ.get("XPLSTM_REQUIRE", "").split(",")}


def is_slow(adapter: Adapter) -> bool:
    """Whether all records would take minutes: its library compiles, or plans, every call anew."""
    return adapter.describe()["library"] in SLOW
