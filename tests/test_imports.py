"""Check which module imports which, from the sources, and the cost of `import xplstm`."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# A room may import the rooms of earlier rows, and no others. A name that ends in a dot is a folder, whose
# rooms are siblings; the face of the package is "". A new room needs a place here.
ROWS = (
    ("_errors", "_typing", "_choice", "io.files._durable"),
    ("_values", "_summary"),
    (
        "training._order",
        "training._trees",
        "kernels._compiled",
        "kernels._recycled",
        "kernels._threads",
        "kernels._cuda.launch",
        "kernels._cuda.recorded",
        "kernels._cuda.waits",
    ),
    ("kernels._cuda.loop", "kernels._cuda.program"),
    ("_array",),
    ("_state",),
    ("init",),
    ("cells.masks", "cells.params"),
    ("cells",),
    ("_problem", "kernels._steps"),
    ("kernels._cuda.proof",),
    ("kernels._support", "kernels._stored"),
    ("kernels._cuda.layer",),
    ("kernels._cuda.partitions", "kernels._cuda.training", "kernels._cuda.trials"),
    ("kernels._cuda.parts", "kernels._cuda.walks"),
    ("_stack._merge", "losses._shares", "optim._schedules"),
    ("losses._classes", "losses._ctc", "losses._numbers"),
    ("losses",),
    ("optim._clip",),
    ("optim._optimizer",),
    ("optim._rules",),
    ("optim",),
    ("cells.activations",),
    ("cells.lstm",),
    ("cells.variant", "cells.rnn", "cells.gru"),
    ("_checks",),
    ("kernels.",),
    ("kernels._checkpoint", "_dispatch"),
    ("_stack._cuda", "_stack._run"),
    ("_stack._jax",),
    ("_stack._borrow", "_stack._layers"),
    ("_stack._arguments",),
    ("_stack",),
    ("functional", "_process"),
    ("nn._blocks", "nn._pytrees"),
    ("nn._module",),
    ("nn._lstm", "nn._rnn", "nn._layers"),
    ("nn",),
    ("io.layers", "io.gates", "io._contents", "io._registry"),
    (
        *("io._combined", "io._foreign", "io._mapping", "io._unused", "io._written"),
        "io.layouts.reparametrized",
    ),
    ("io._given",),
    ("io.files.archive", "io.files.buffers", "io.files.h5_texts", "io.files.pickled", "io.files.shards"),
    (
        "io.layouts.single",
        "io.files.h5",
        "io.files.torch_objects",
        "io.layouts.keras_config",
        "io.onnx._graph",
        "io.onnx._operator",
    ),
    ("io.onnx._export", "io.onnx._nodes"),
    ("io.onnx._whole",),
    ("io.onnx._math",),
    ("io.onnx._model",),
    ("io.onnx._cost",),
    ("io.onnx._fold",),
    ("io.onnx._projected",),
    ("io.onnx._trace",),
    ("io.onnx._entry",),
    ("io.onnx._find",),
    ("io.layouts.concatenated", "io.layouts.keras_layers", "io.files.npz"),
    ("io.layouts.keras",),
    ("io.",),
    ("io._source",),
    ("io._inspect", "io._load"),
    ("io._models",),
    ("io",),
    ("",),
    (
        "training._data",
        "training._saved",
        "training._judge",
        "training._signals",
        "training._groups",
        "training._long",
    ),
    ("training._ahead", "training._samples", "training._team"),
    ("training._shards",),
    ("training._resumed",),
    ("training._run", "training._stateful"),
    ("training._arguments",),
    ("training._progress",),
    ("training._fit",),
    ("models._forecast_roles",),
    ("models._composite", "models._vocabulary", "models.batching", "models.decoding"),
    ("training",),
    ("models._pooling", "models._task", "models._forecast_series"),
    ("models.charlm", "models.classifier", "models.forecaster", "models.seq2seq"),
    ("models", "testing", "cli.peers", "cli.ngram"),
    ("plots",),
    ("sklearn._saved", "sklearn._sequences"),
    ("sklearn._estimator",),
    ("sklearn._estimators",),
    ("sklearn",),
    ("cli.engines", "cli.results", "cli.published", "cli.fit"),
    ("cli.trials",),
    ("cli.",),
    ("__main__",),
)
GROUND = {room for row in ROWS[: ROWS.index(("init",)) + 1] for room in row}
BASE = {
    room for row in ROWS[: ROWS.index(("kernels._cuda.parts", "kernels._cuda.walks")) + 1] for room in row
}
LOSSES = {"losses._shares", "losses._classes", "losses._ctc", "losses._numbers"}
OPTIM = {"optim._schedules", "optim._clip", "optim._optimizer", "optim._rules"}
# Rooms that may see less than the rows before them, or that few may see.
MAY_SEE = {
    "losses": GROUND | LOSSES,
    **dict.fromkeys(LOSSES, GROUND | LOSSES),
    "optim": GROUND | OPTIM,
    **dict.fromkeys(OPTIM, GROUND | OPTIM),
    "init": GROUND,
    "kernels.": BASE | {"_checks", "cells.activations", "cells.lstm"},
}
ESTIMATORS = {"sklearn", "sklearn._estimator", "sklearn._estimators", "sklearn._sequences"}
MAY_BE_SEEN_BY = {
    "models": {"cli."} | ESTIMATORS,
    "training": {"cli.", "plots", "models._forecast_series"} | ESTIMATORS,
    "cli.": {"__main__"},
    "__main__": set(),
}

# Compiled from C, and so part of the room that imports it.
COMPILED = {"kernels._engine"}

# What a function may import when it is called, in addition to the standard library and NumPy.
OPTIONAL = {
    "nn._blocks": {"dask"},
    "nn._pytrees": {"jax"},
    "_stack._borrow": {"torch"},
    "_stack._cuda": {"cupy"},
    "_stack._jax": {"jax"},
    "_array": {"cupy", "array_api_compat", "ml_dtypes"},
    "io.files.h5": {"h5py"},
    "io.onnx._graph": {"google", "onnx"},
    "kernels._cuda.launch": {"cupy"},
    "kernels._cuda.loop": {"cupy", "cupy_backends"},
    "kernels._cuda.layer": {"cupy"},
    "kernels._cuda.program": {"cupy"},
    "kernels.cupy_elementwise": {"cupy"},
    "kernels.jax_scan": {"jax"},
    "kernels._cuda.training": {"cupy"},
    "kernels._cuda.waits": {"cupy"},
    "kernels._cuda.proof": {"cupy", "cupy_backends"},
    "cli.trials": {"cupy"},
    "plots": {"matplotlib"},
    "training._groups": {"cupy", "mpi4py", "torch"},
    "training._progress": {"tqdm"},
    "cli.demo": {"matplotlib", "threadpoolctl"},
    "cli.bench": {"tqdm"},
    "cli.peers": {"jax", "mlx", "onnx", "onnxruntime", "openvino", "torch"},
    "cli.results": {"matplotlib"},
}


class Import(NamedTuple):
    room: str
    name: str
    at_top: bool


def imports_of(room: str, path: Path) -> Iterator[Import]:
    """Yield every import, also by a literal string; `at_top` states whether loading the module runs it."""
    pending = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while pending:
        node, at_top = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += [(child, at_top) for child in node.orelse]
            continue
        for name in imported_names(node):
            yield Import(room, name, at_top)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending += [(child, at_top and not inside) for child in ast.iter_child_nodes(node)]


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute, so that a reader sees where a name comes from"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
    return []


def rooms(package: str) -> dict[str, Path]:
    """Return every module of a package by its dotted name inside it; '' for the package itself."""
    folder = ROOT / package
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


ROOMS = rooms("xplstm")
# At the top of the package: a reader has to hold them all in mind at once.
MOST_AT_THE_TOP = 32
MOST_ARROWS = 168
IMPORTS = [found for room, path in ROOMS.items() for found in imports_of(room, path)]


def place(room: str) -> str:
    """Return the name of a module in ROWS: its own, or that of its folder."""
    named = any(room in row for row in ROWS)
    return room if named else room.partition(".")[0] + "."


def room_named(name: str) -> str | None:
    """Return the module that an import of `name` reaches, or None outside xplstm."""
    package, _, inner = name.partition(".")
    if inner in COMPILED:
        return None
    while inner not in ROOMS:
        inner = inner.rpartition(".")[0]
    return inner if package == "xplstm" else None


def row_of(room: str) -> int:
    return next(number for number, row in enumerate(ROWS) if place(room) in row)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_place(room):
    assert any(place(room) in row for row in ROWS), f"{room} has no place in ROWS"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_below_it(room):
    for found in IMPORTS:
        other = room_named(found.name)
        # The face is loaded before any other room, so that a version number can come from it at any time.
        if found.room != room or other is None or (other == "" and not found.at_top):
            continue
        assert row_of(other) < row_of(room), f"{room} imports {found.name}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may_see(room):
    for found in IMPORTS:
        other = room_named(found.name)
        if found.room != room or other is None:
            continue
        assert place(other) in MAY_SEE.get(place(room), {place(other)}), f"{room} imports {found.name}"
        assert place(room) in MAY_BE_SEEN_BY.get(place(other), {place(room)}), f"{room} imports {found.name}"


@pytest.mark.parametrize("room", ROOMS)
def test_only_numpy_is_imported_at_the_top(room):
    # Estimators derive from classes of scikit-learn; this room is loaded when one is asked for.
    own = {"_array": {"array_api_compat"}} | {room: {"sklearn"} for room in ESTIMATORS}
    allowed = {"xplstm", "numpy"} | own.get(room, set())
    for found in IMPORTS:
        package = found.name.partition(".")[0]
        if found.room == room and package not in sys.stdlib_module_names:
            allowed_here = allowed if found.at_top else allowed | OPTIONAL.get(room, set())
            assert package in allowed_here, f"{room} imports {found.name}, at the top: {found.at_top}"


@pytest.mark.parametrize("room", [room for room in ROOMS if room.startswith("kernels.")])
def test_an_engine_imports_the_underscore_rooms_of_its_family_alone(room):
    gpu, cpu = ("kernels._cuda",), ("kernels._recycled", "kernels._threads")
    family = (
        "kernels._compiled",
        "kernels._engine",
        "kernels._support",
        "kernels._steps",
        "kernels._stored",
        *(gpu if "cupy" in room or "_cuda" in room else cpu),
    )
    shared = [name for found in IMPORTS if found.room == room and (name := room_named(found.name))]
    wrong = [name for name in shared if name.startswith("kernels._") and not name.startswith(family)]
    assert not wrong, f"{room} imports {wrong}"


def test_the_specification_reaches_the_library_in_its_adapter_alone():
    reaching = {
        room
        for room, path in rooms("spec").items()
        for found in imports_of(room, path)
        if found.name.partition(".")[0] == "xplstm"
    }
    assert reaching == {"adapter"}


def test_the_adapter_uses_public_names_alone():
    names = [found.name for found in imports_of("adapter", ROOT / "spec" / "adapter.py")]
    assert not [name for name in names if name.startswith("xplstm.") and "._" in name]


def backends_imported_inside(function: ast.FunctionDef) -> set[str]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and node.args]
    first = [c.args[0] for c in calls if ast.unparse(c.func) == "pytest.importorskip"]
    named = {str(a.value).partition(".")[0] for a in first if isinstance(a, ast.Constant)}
    marked = any("mark.backend(" in ast.unparse(decorator) for decorator in function.decorator_list)
    return set() if marked else named & {"torch", "jax", "dask", "cupy"}


@pytest.mark.slow
def test_no_test_hides_its_backend_from_the_choice_of_backends():
    """`pytest --backend torch` sees fixtures and marks, but not a skip inside a function."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            hidden = backends_imported_inside(node) if isinstance(node, ast.FunctionDef) else set()
            advice = "use the fixture torch or jax of tests/conftest.py, or pytest.mark.backend"
            assert not hidden, f"{path.relative_to(ROOT)}:{node.lineno} skips without {hidden}: {advice}"


@pytest.fixture
def fresh(tmp_path):
    """Return the output of code in a new interpreter that imports this source tree."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}

    def run(code: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=env, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    return run


def test_import_loads_only_numpy_and_array_api_compat(fresh):
    loaded = fresh(
        "import sys; before = set(sys.modules); import xplstm; print(*{m.partition('.')[0] for m in "
        "set(sys.modules) - before if getattr(sys.modules[m], '__file__', None)})"
    ).split()
    assert {"numpy", "array_api_compat", "xplstm"} <= set(loaded)
    strange = set(loaded) - sys.stdlib_module_names - {"numpy", "array_api_compat", "xplstm"}
    assert not strange, f"import xplstm also loads {sorted(strange)}"


def test_import_loads_no_kernel_but_the_reference(fresh):
    """Every other kernel is loaded at its first use."""
    loaded = set(fresh("import sys, xplstm; print(*sys.modules)").split())
    kernels = {name.removeprefix("xplstm.kernels.") for name in loaded if name.startswith("xplstm.kernels.")}
    made = {"native", "_engine", "_compiled", "numpy_inplace", "jax_scan"}
    assert not {name for name in kernels if name in made or name.startswith(("cupy", "_cuda"))}


@pytest.mark.slow
def test_import_costs_little_more_than_its_dependencies(fresh):
    """The test counts function calls, because times depend on the load of the machine."""
    counted = """
import sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
{}
sys.setprofile(None)
print(calls)
"""
    with_it = int(fresh(counted.format("import xplstm")))
    without = int(fresh(counted.format("import numpy, array_api_compat")))
    assert with_it <= 1.3 * without, f"{with_it} calls, and {without} for numpy and array_api_compat alone"


def top(room: str) -> str:
    return room.partition(".")[0]


def test_the_top_of_the_package_has_few_rooms_and_arrows():
    rooms_at_the_top = {top(room) for room in ROOMS}
    count = len(rooms_at_the_top)
    assert count <= MOST_AT_THE_TOP, f"{count} rooms at the top: {sorted(rooms_at_the_top)}"
    reached = [(i.room, other) for i in IMPORTS if (other := room_named(i.name)) is not None]
    arrows = {(top(a), top(b)) for a, b in reached if top(a) != top(b)}
    assert len(arrows) <= MOST_ARROWS, f"{len(arrows)} arrows between rooms at the top"


def test_loading_no_room_at_the_top_leads_back_to_it():
    """No import cycle exists, also not through another module of a folder."""
    below: dict[str, set[str]] = {}
    for found in IMPORTS:
        other = room_named(found.name)
        # The face is loaded before any other room.
        if found.at_top and other and top(other) != top(found.room):
            below.setdefault(top(found.room), set()).add(top(other))
    TopologicalSorter(below).prepare()
