"""Holds the names of CuPy that the library uses, and its calls of them, against CuPy itself; needs no GPU.

The calls are read from the sources. CuPy's compiled functions say their parameters in the first line of their
docstrings.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.cuda_emulation import libraries, standin
from xplstm.kernels._cuda import launch

PACKAGE = launch.SOURCES.parents[1]
CLI = tuple(PACKAGE / "cli" / f"{name}.py" for name in ("trials", "fit"))
FILES = (
    *launch.SOURCES.glob("*.py"),
    *PACKAGE.glob("kernels/cupy_*.py"),
    *CLI,
    PACKAGE / "_stack" / "_cuda.py",
)
# What a name of the sources stands for.
ROOTS = {"cp": "cupy", "runtime": "cupy.cuda.runtime", "cublas": "cupy_backends.cuda.libs.cublas"}
# Needs cuBLAS itself where it is read.
LAZY = {"cublas"}


def used(path: Path) -> Iterator[tuple[str, ast.Call | None]]:
    """Every dotted name that begins with one of ROOTS, and the call of it, if it is called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            # An attribute of a result, as ``cp.cuda.Device(0).id``, is no name of CuPy's.
            name = re.sub(r"^(self|call)\.(?=cp\.)", "", ast.unparse(node))
            if re.fullmatch(r"[\w.]+", name) and name.partition(".")[0] in ROOTS:
                yield name, called.get(id(node))


def parameters(function: Any) -> inspect.Signature | None:
    """Return the signature of a function or class of CuPy, or None where it says none."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        line = (inspect.getdoc(function) or "").partition("\n")[0]
        found = re.match(r"[\w.]+\((.*)\)(?: -> .*)?$", line)
    if found is None:
        return None
    made, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for text in filter(None, map(str.strip, found[1].split(","))):
        if text == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        name, _, default = text.partition("=")
        if name.startswith("**"):
            made.append(inspect.Parameter(name[2:], inspect.Parameter.VAR_KEYWORD))
        elif name.split()[-1] != "self":
            value = default or inspect.Parameter.empty
            made.append(inspect.Parameter(name.split()[-1], kind, default=value))
    return inspect.Signature(made)


def wrong() -> list[str]:
    """Names that CuPy has not, and calls that it would not take."""
    found, modules = [], {}
    for path in FILES:
        for name, call in used(path):
            root, *rest = name.split(".")
            if root in LAZY:
                continue
            thing: Any = modules.setdefault(root, importlib.import_module(ROOTS[root]))
            for part in rest:
                thing = getattr(thing, part, None)
            where = f"{path.name}: {name}"
            if thing is None:
                found.append(f"{where} is not in CuPy")
            elif call is not None:
                found += [f"{where}{reason}" for reason in refused(thing, call)]
    return found + stand_in()


def refused(thing: Callable[..., Any], call: ast.Call) -> Iterator[str]:
    """Why CuPy would not take a call, unless the call hides what it passes."""
    signature = parameters(thing)
    hidden = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    if signature is None or hidden:
        return
    try:
        signature.bind(*call.args, **{str(k.arg): k.value for k in call.keywords})
    except TypeError as error:
        yield f"({ast.unparse(call).partition('(')[2]}: {error}; it takes {signature}"


def stand_in() -> list[str]:
    """Functions of the stand-in that take what CuPy's do not."""
    offered = standin.modules()["cupy"]
    cupy = importlib.import_module("cupy")
    found = []
    for name in ("empty", "zeros", "empty_like", "zeros_like", "ascontiguousarray", "stack", "from_dlpack"):
        ours, theirs = (parameters(getattr(module, name)) for module in (offered, cupy))
        assert ours is not None
        assert theirs is not None
        first = list(theirs.parameters)[: len(ours.parameters)]
        if len(first) < len(ours.parameters):
            found.append(f"the stand-in's {name} takes {ours}, and CuPy's {theirs}")
    return found + methods(cupy) + products()


def methods(cupy: Any) -> list[str]:
    """Methods of the stand-in's classes with parameters that those of CuPy's have not."""
    pairs = (
        (standin.Kernel.__call__, cupy.RawKernel.__call__),
        (standin.RawModule.get_function, cupy.RawModule.get_function),
        (standin.Event.record, cupy.cuda.Event.record),
        (standin.Event.synchronize, cupy.cuda.Event.synchronize),
        (standin.Stream.synchronize, cupy.cuda.Stream.synchronize),
        (standin.Stream.is_capturing, cupy.cuda.Stream.is_capturing),
        (standin.Stream.from_external, cupy.cuda.Stream.from_external),
        (standin.ndarray.__dlpack__, cupy.ndarray.__dlpack__),
        (standin.get_elapsed_time, cupy.cuda.get_elapsed_time),
        (standin.MemoryPointer.memset_async, cupy.cuda.MemoryPointer.memset_async),
    )
    found = []
    for ours, theirs in pairs:
        taken, offered = (_names(parameters(f)) for f in (ours, theirs))
        if offered is not None and len(taken or ()) > len(offered):
            found.append(f"the stand-in's {ours.__qualname__} takes {taken}, and CuPy's {offered}")
    return found


def _names(signature: inspect.Signature | None) -> list[str] | None:
    return None if signature is None else [name for name in signature.parameters if name != "self"]


def products(text: bytes | None = None) -> list[str]:
    """Functions of cuBLAS of which the stand-in's take other parameters; CuPy's say theirs in its library.

    Importing them would load cuBLAS itself.
    """
    if text is None:
        spec = importlib.util.find_spec("cupy_backends.cuda.libs.cublas")
        assert spec is not None
        text = Path(str(spec.origin)).read_bytes()
    found = []
    for ours in (libraries.gemmEx, libraries.gemmStridedBatchedEx):
        said = re.findall(rb"\b" + ours.__name__.encode() + rb"\(([^)\0]*)\)", text)
        counts = {len(parts.split(b",")) for parts in said}
        taken = len(inspect.signature(ours).parameters)
        if taken not in counts:
            found.append(f"the stand-in's {ours.__name__} takes {taken} arguments, and CuPy's {counts}")
    return found
