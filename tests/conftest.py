"""Provide the fixture `xp` for every backend, and print a table of the tests of each backend."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

# JAX reads this variable once, at import. Without it JAX has no float64.
os.environ.setdefault("JAX_ENABLE_X64", "1")
# By default, JAX on a GPU multiplies float32 in TF32 and reserves most of the memory.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# The tests compile many programs and run each of them once, on small arrays.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Keras reads this variable at import. Its default backend, TensorFlow, is not installed.
os.environ.setdefault("KERAS_BACKEND", "torch")

from xplstm import _array, _dispatch
from xplstm.kernels._cuda import parts, proof

FINISHED = itertools.count(1)
BACKENDS = ("numpy", "numpy_readonly", "array_api_strict", "torch", "jax", "dask", "cupy")


@dataclass(frozen=True)
class Backend:
    """An array library under test."""

    name: str
    xp: Any

    def asarray(self, a: np.ndarray) -> Any:
        """Return the host array `a` in this library; read-only for the backend numpy_readonly."""
        a = np.asarray(a)
        if self.name == "numpy_readonly":
            a = a.copy()
            a.setflags(write=False)
            return a
        return a.copy() if self.name == "numpy" else _array.asarray(a, self.xp)

    def arrays(self, mapping: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return every value of `mapping` in this library."""
        return {name: self.asarray(a) for name, a in mapping.items()}


def required() -> set[str]:
    return {name for name in os.environ.get("XPLSTM_REQUIRE", "").split(",") if name}


def library_of(name: str) -> str:
    """Return the array library of a backend."""
    return "numpy" if name == "numpy_readonly" else name


def why_absent(name: str) -> str | None:
    """Return why a backend cannot run here, or None."""
    return _array.why_unusable(library_of(name))


def open_backend(name: str) -> Backend:
    """Return the backend. If it cannot run, skip the test with the reason, or fail if it is required."""
    reason = why_absent(name)
    if reason is not None:
        if name in required():
            pytest.fail(f"XPLSTM_REQUIRE names {name}, which cannot run here: {reason}")
        pytest.skip(f"{name}: {reason}")
    if name == "array_api_strict":
        import array_api_strict

        array_api_strict.set_array_api_strict_flags(
            boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
        )
    if name == "dask":
        import dask

        dask.config.set(scheduler="synchronous")  # threads gain nothing at these sizes
    return Backend(name, _array.named_namespace(library_of(name)))


def backend(name: str, *values: Any) -> Any:
    """Return a parameter that belongs to a backend: its name, and further values."""
    return pytest.param(name, *values, marks=pytest.mark.backend(name))


@pytest.fixture(params=[backend(name) for name in BACKENDS])
def xp(request: pytest.FixtureRequest) -> Backend:
    return open_backend(request.param)


@pytest.fixture(scope="session")
def torch() -> Any:
    """Return PyTorch, as reference or as source of files."""
    open_backend("torch")
    return importlib.import_module("torch")


@pytest.fixture(scope="session")
def jax() -> Any:
    """Return JAX, as reference or under other libraries."""
    open_backend("jax")
    return importlib.import_module("jax")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261)


def pytest_configure() -> None:
    known = (*BACKENDS, *_dispatch.TABLE)
    unknown = required().difference(known)
    if unknown:
        raise pytest.UsageError(f"XPLSTM_REQUIRE has {sorted(unknown)}, expected some of {', '.join(known)}")
    for name in required().intersection(_dispatch.TABLE):
        # A required kernel is tested even if it has no proof.
        vars(importlib.import_module(_dispatch.TABLE[name])).pop("proof", None)
    if required().intersection(proof.KERNELS):
        parts.is_proven = lambda: True


def pytest_addoption(parser: pytest.Parser) -> None:
    choice = "run only the tests of this backend; may be repeated"
    parser.addoption("--backend", action="append", choices=BACKENDS, help=choice)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Disable the garbage collector during collection, because all items live until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Free reference cycles of finished tests, such as Dask graphs, before they take gigabytes."""
    if next(FINISHED) % 20 == 0:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the tests of the backends in `--backend`; record the backends of each test in its report.

    Of the tests that a missing library would skip, one in each file is kept, which reports the reason.
    """
    chosen = set(config.getoption("--backend") or BACKENDS)
    absent = {name for name in BACKENDS if why_absent(name) is not None} - required()
    others, told = [], set()
    for item in items:
        names = backends_of(item)
        item.user_properties += [("backend", name) for name in sorted(names)]
        reason = (item.path, frozenset(names & absent))
        if (config.getoption("--backend") and not names & chosen) or (names & absent and reason in told):
            others.append(item)
        told.add(reason)
    if others:
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of a backend that cannot run here, or fail it if the backend is required."""
    marked = {name for mark in item.iter_markers("backend") for name in mark.args}
    for name in sorted(marked.intersection(BACKENDS)):
        open_backend(name)


def backends_of(item: pytest.Item) -> set[str]:
    """Return the names in an item's `backend` marks, and the libraries among its fixtures."""
    marked = {name for mark in item.iter_markers("backend") for name in mark.args}
    return marked | {"torch", "jax"}.intersection(getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Generator[None]:
    """Print at the end how many tests of each backend passed, failed and were skipped, with a reason."""
    yield
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*BACKENDS, "no backend")}
    reasons: dict[str, str] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            given = [v for key, v in getattr(report, "user_properties", ()) if key == "backend"]
            for name in [name for name in given if name in counts] or ["no backend"]:
                counts[name][outcome] += 1
                if outcome == "skipped" and isinstance(report.longrepr, tuple):
                    reasons.setdefault(name, report.longrepr[2].removeprefix("Skipped: "))
    if not any(counts[name] for name in BACKENDS):
        return
    terminalreporter.section("backends")
    terminalreporter.write_line(f"{'backend':<18}{'passed':>8}{'failed':>8}{'skipped':>9}")
    reasons["no backend"] = "reasons of all that was skipped: pytest -rs" if reasons else ""
    for name, count in counts.items():
        failed = count["failed"] + count["error"]
        row = f"{name:<18}{count['passed']:>8}{failed:>8}{count['skipped']:>9}"
        terminalreporter.write_line(f"{row}  {reasons.get(name, '')}".rstrip())
