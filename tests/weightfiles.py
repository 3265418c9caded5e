"""Files of weights to load, to break and to fuzz: small, whole, of every kind that needs no other library."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import xplstm
from xplstm import io

SUFFIXES = (".safetensors", ".npz", ".pt")


def lstm(**options):
    """An LSTM in which no two gates, layers or directions are alike."""
    arguments = {"hidden_size": 5, "num_layers": 2, "bidirectional": True, "rng": 7} | options
    return xplstm.LSTM(3, **arguments)


@cache
def whole() -> dict[str, bytes]:
    """Name -> bytes of a whole file of every kind."""
    with tempfile.TemporaryDirectory() as folder:
        return write_all(Path(folder))


def write_all(folder: Path) -> dict[str, bytes]:
    """Write the files, and give their bytes."""
    found = {}
    for suffix in SUFFIXES:
        path = folder / f"whole{suffix}"
        io.save(path, lstm(), prefix="encoder")
        found[path.name] = path.read_bytes()
    path = folder / "variant.npz"
    io.save(path, lstm(variant=xplstm.Variant(peepholes=True, cell_clip=3.0)))
    found[path.name] = path.read_bytes()
    return found
