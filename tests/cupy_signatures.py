"""Compare the calls of CuPy in the sources with CuPy's own signatures, without a GPU.

The calls are read from the sources. CuPy's compiled functions state their parameters in the first line of
their docstrings.
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
# Modules for the names in the sources.
ROOTS = {"cp": "cupy", "runtime": "cupy.cuda.runtime", "cublas": "cupy_backends.cuda.libs.cublas"}
# Modules that cannot be imported without cuBLAS.
LAZY = {"cublas"}


def used(path: Path) -> Iterator[tuple[str, ast.Call | None]]:
    """Yield every dotted name that begins with one of ROOTS, and its call if it is called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            # An attribute of a result, such as ``cp.cuda.Device(0).id``, is not a name of CuPy.
            name = re.sub(r"^(self|call)\.(?=cp\.)", "", ast.unparse(node))
            if re.fullmatch(r"[\w.]+", name) and name.partition(".")[0] in ROOTS:
                yield name, called.get(id(node))


def parameters(function: Any) -> inspect.Signature | None:
    """Return the signature of a function or class of CuPy, or None if it states none."""
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
    """Return names that CuPy does not have, and calls that do not fit a signature."""
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
    """Yield why a call does not fit CuPy's signature, unless the call unpacks its arguments."""
    signature = parameters(thing)
    hidden = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    if signature is None or hidden:
        return
    try:
        signature.bind(*call.args, **{str(k.arg): k.value for k in call.keywords})
    except TypeError as error:
        yield f"({ast.unparse(call).partition('(')[2]}: {error}; it takes {signature}"


def stand_in() -> list[str]:
    """Return functions of the substitute that accept arguments which CuPy does not accept."""
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
    """Return methods of the substitute's classes with parameters that CuPy's methods do not have."""
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
    """Return functions of cuBLAS for which the substitute has other parameters than CuPy's library.

    The library is read as a file, because its import would load cuBLAS.
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
