"""List every subject by name, installed or not, and find the subjects of a selection."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache

from spec.subject import Adapter

SLOW = ("dask", "flax", "flax_lstm_cell", "jax", "keras", "openvino", "tensorflow", "tinygrad")
"""Libraries and peers of which a run without a choice asks a sample: they compile or plan every call."""
ABORT = ("openvino",)
"""Peers that end the process in some calls: by name each is run in a process of its own."""
PEERS = (
    *("torch", "torch_autocast", "jax", "flax", "flax_lstm_cell", "keras", "mlx", "tensorflow"),
    *("onnx", "onnxruntime", "openvino", "litert", "tinygrad"),
)


def xplstm() -> dict[str, Adapter]:
    """Return one adapter for each array library and each of its kernels."""
    from spec.adapter import HOMES, LIBRARIES, Xplstm, kernels

    return {
        f"xplstm:{library}:{kernel}": Xplstm(library, kernel)
        for library in LIBRARIES
        for kernel in kernels()
        if library in HOMES.get(kernel, LIBRARIES)
    }


@cache
def subjects() -> dict[str, Adapter]:
    """Return the adapters of xplstm, if it is installed, and of other libraries."""
    ours = xplstm() if importlib.util.find_spec("xplstm") else {}
    return ours | {name: importlib.import_module(f"spec.peers.{name}").Subject() for name in PEERS}


def named(choices: Sequence[str]) -> dict[str, Adapter]:
    """Return the subjects of `choices`: names, first parts of names, or module:class of an adapter."""
    return {name: adapter for choice in choices for name, adapter in meant(choice).items()}


def meant(choice: str) -> dict[str, Adapter]:
    found = {
        name: adapter
        for name, adapter in subjects().items()
        # Only complete parts match: xplstm:numpy does not match xplstm:numpy_readonly.
        if f"{name}:".startswith(f"{choice}:")
    }
    if found:
        return found
    module, colon, name = choice.partition(":")
    ours = {one.partition(":")[0] for one in subjects()}
    if colon and importable(module):
        made = getattr(importlib.import_module(module), name, None)
        if made is not None:
            return {choice: made()}
        why = f"the module {module!r} has no {name!r}"
    else:
        why = f"there is no module {module!r}"
    if not colon or module in ours:
        why = f"neither module:class nor one of {', '.join(subjects())}"
    msg = f"subject {choice!r} cannot be found: {why}"
    raise LookupError(msg)


def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent is missing, or the name is empty
        return False


def missing(choices: Sequence[str]) -> dict[str, str]:
    """Return the choices of which no subject can run here, with the reasons."""
    found = {choice: [a.why_unavailable() for a in meant(choice).values()] for choice in choices}
    return {
        choice: "; ".join(sorted({*filter(None, reasons)}))
        for choice, reasons in found.items()
        if None not in reasons
    }


def required() -> set[str]:
    """Return the libraries that the variable XPLSTM_REQUIRE names."""
    return {name.strip() for name in os.environ.get("XPLSTM_REQUIRE", "").split(",")}


def is_slow(adapter: Adapter) -> bool:
    """Return whether all records take minutes, because the library compiles or plans every call."""
    about = adapter.describe()
    return not {about["library"], about["name"]}.isdisjoint(SLOW)


def takes_minutes(adapter: Adapter) -> bool:
    """Return whether a report needs the name of the subject: xplstm with a library that plans each call."""
    return adapter.describe()["name"] == "xplstm" and is_slow(adapter)
