"""Define the targets, the tests that judge them, and the changes that alter no result."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
HARMLESS = Path(__file__).with_name("harmless.toml")
SPECIFICATION = ("spec/test_vectors.py", "spec/test_behaviour.py", "spec/test_sized.py", "spec/test_gru.py")
REFERENCE = (*SPECIFICATION, "--subject", "xplstm:numpy:reference")
NATIVE = tuple(
    f"tests/kernels/test_{name}.py"
    for name in (
        *(
            "native",
            "threads",
            "composed",
            "resets",
            "networks",
            "steps",
            "stored",
            "half",
            "sequence",
            "cupy_loop",
        ),
        "kernels",
    )
)


class Target(NamedTuple):
    """Modules, as patterns, and the arguments of the pytest run that tests them."""

    patterns: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def compiled(self) -> bool:
        return not self.patterns[0].endswith(".py")

    def modules(self) -> list[str]:
        return [p.relative_to(ROOT).as_posix() for one in self.patterns for p in sorted(ROOT.glob(one))]

    def arguments(self) -> list[str]:
        """Return the tests, with the examples in the docstrings of the modules."""
        names = [module.removesuffix(".py").replace("/", ".") for module in self.modules()]
        names = [name.removesuffix(".__init__") for name in names if not self.compiled]
        return [*self.tests, *(f"tests/docs/test_doctests.py::test_examples_run[{name}]" for name in names)]


SEQUENCES = (
    "tests/kernels/test_sequence.py",
    "tests/kernels/test_kernels.py",
    "tests/kernels/test_resets.py",
)
LAYOUTS = tuple(
    f"tests/io/test_io_{name}.py"
    for name in (
        *("gates", "load", "keras", "keras_layers", "peers", "cell", "cells", "gru", "dtypes", "bounds"),
        *("given", "wrapped", "quantised", "eqx"),
    )
)
LAYERS = (
    "tests/nn/test_nn.py",
    "tests/nn/test_dropout.py",
    "tests/test_functional.py",
    "tests/test_checks.py",
)
TARGETS = {
    "cells": Target(("xplstm/cells/*.py",), (*REFERENCE, "tests/cells", "tests/nn/test_nn.py", *SEQUENCES)),
    "reference": Target(
        ("xplstm/kernels/reference.py", "xplstm/kernels/_steps.py", "xplstm/kernels/_checkpoint.py"),
        (*REFERENCE, *SEQUENCES, *LAYERS, "tests/kernels/test_steps.py", "tests/training/test_long.py"),
    ),
    "stack": Target(
        (
            *(f"xplstm/_stack/{name}.py" for name in ("__init__", "_layers", "_arguments", "_merge")),
            "xplstm/cells/masks.py",
        ),
        (*REFERENCE, *LAYERS, *(f"tests/kernels/test_{name}.py" for name in ("composed", "steps", "stored"))),
    ),
    "numpy_inplace": Target(
        ("xplstm/kernels/numpy_inplace.py",),
        (*SPECIFICATION, "--subject", "xplstm:numpy:numpy_inplace", *SEQUENCES, "tests/kernels/test_half.py"),
    ),
    "optim": Target(("xplstm/optim/*.py",), ("tests/optim", "tests/test_summary.py")),
    "losses": Target(("xplstm/losses/*.py",), ("tests/losses",)),
    "decoding": Target(
        ("xplstm/models/decoding.py",), ("tests/models/test_decoding.py", "tests/models/test_seq2seq.py")
    ),
    "io": Target(("xplstm/io/gates.py", "xplstm/io/columns.py", "xplstm/io/layouts/*.py"), LAYOUTS),
    "native": Target(
        ("xplstm/kernels/_native/*.[ch]",),
        (*NATIVE, "spec/test_vectors.py", "--subject", "xplstm:numpy:native"),
    ),
}


class Harmless(NamedTuple):
    """Change that alters no result: the line before and after it, and the reason."""

    module: str
    before: str
    after: str
    why: str


def harmless() -> list[Harmless]:
    entries = tomllib.loads(HARMLESS.read_text(encoding="utf-8"))["change"]
    return [Harmless(**entry) for entry in entries]


def chosen(only: str) -> dict[str, Target]:
    return {name: target for name, target in TARGETS.items() if fnmatch(name, only)}
