"""Check the comparison with CuPy's signatures, without CuPy."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from tests import cupy_signatures


def documented(*_: Any) -> None:
    """MemoryPointer.memset_async(self, int value, size_t size, stream=None) -> None

    More.
    """


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("f(1, 2)", None),
        ("f(1, size=2, stream=3)", None),
        ("f(*a)", None),
        ("f(1)", "missing a required argument: 'size'"),
        ("f(1, 2, 3, 4)", "too many positional arguments"),
        ("f(1, 2, streams=3)", "unexpected keyword argument 'streams'"),
    ],
)
def test_calls_are_held_against_what_a_docstring_says(
    call: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspect.signature", lambda _: (_ for _ in ()).throw(ValueError))
    (statement,) = ast.parse(call).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    found = list(cupy_signatures.refused(documented, statement.value))
    assert len(found) == (reason is not None)
    assert reason is None or reason in found[0]


def test_the_names_that_the_library_uses_are_found() -> None:
    names = {name for path in cupy_signatures.FILES for name, _ in cupy_signatures.used(path)}
    assert {"cp.cuda.alloc_pinned_memory", "cp.zeros", "runtime.getDeviceProperties", "cp.RawModule"} <= names


def test_products_are_held_against_what_the_library_says() -> None:
    names = [f"int a{n}" for n in range(23)]
    right = f"gemmEx({', '.join(names[:19])})\0gemmStridedBatchedEx({', '.join(names)})\0"
    assert cupy_signatures.products(right.encode()) == []
    (reason,) = cupy_signatures.products(right.replace("int a18)", "int a18, int a)", 1).encode())
    assert reason == "the stand-in's gemmEx takes 19 arguments, and CuPy's {20}"
