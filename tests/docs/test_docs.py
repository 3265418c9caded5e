"""Check that the Python code of every page runs, and that sessions print the shown output."""

from __future__ import annotations

import ast
import doctest
import re
import runpy
from pathlib import Path

import matplotlib
import pytest

from tests.conftest import open_backend
from tests.support.pages import PAGES, ROOT, SNIPPETS, Snippet
from xplstm import _array
from xplstm.__main__ import COMMANDS

PROGRAMS = [snippet for snippet in SNIPPETS if snippet.language == "python"]
# Packages that a program needs in addition to array libraries; without them, the page's other programs run.
RAPIDS = ("cudf", "cuml")
SESSION = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def backends_needed() -> dict[Snippet, frozenset[str]]:
    """Return the backends that each program names, or that its earlier programs on the page name."""
    needs: dict[Snippet, frozenset[str]] = {}
    made: dict[tuple[str, str], frozenset[str]] = {}
    for snippet in PROGRAMS:
        nodes = list(ast.walk(ast.parse(snippet.code)))
        read = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
        written = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        written += [a.asname or a.name for n in imports for a in n.names]
        known = (*_array.BACKENDS, *RAPIDS)
        named = {b for b in known if re.search(rf"\bimport {b}\b|xp=\"{b}\"", snippet.code)}
        inherited = [made.get((snippet.page, name), frozenset()) for name in {*read} - {*written}]
        needs[snippet] = frozenset(named - {"numpy"}).union(*inherited)
        made |= dict.fromkeys([(snippet.page, name) for name in written], needs[snippet])
    return needs


def packages_of(page: str) -> set[str]:
    """Return the top-level packages that the programs of a page import."""
    nodes = [n for snippet in PROGRAMS if snippet.page == page for n in ast.walk(ast.parse(snippet.code))]
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


# What carries the data of the guides or made the weights, and is not there for every Python of the tests.
OTHERS = dict.fromkeys(("sklearn", "statsmodels"), "'xplstm[guides]'") | {
    name: name
    for name in (
        "equinox",
        "flax",
        "h5py",
        "keras",
        "onnx",
        "onnxruntime",
        "safetensors",
        "tensorboard",
        "xarray",
        "zarr",
    )
}
NEEDS = backends_needed()
RUNS = sorted({(snippet.page, tuple(sorted(needs))) for snippet, needs in NEEDS.items()})
# The guides whose programs train models for seconds.
TRAINING = [
    "classification",
    "forecasting",
    "horizons",
    "language_models",
    "precision",
    "rnn",
    "seq2seq",
    "sklearn",
]


def marks_of(page: str, backends: tuple[str, ...]) -> list[pytest.MarkDecorator]:
    """Return the marks of a page's run."""
    slow = [pytest.mark.slow] if Path(page).stem in TRAINING else []
    return slow + [pytest.mark.backend(name) for name in backends or ("numpy",)]


@pytest.mark.parametrize(
    ("page", "backends"),
    [
        pytest.param(
            *run,
            id=f"{run[0]}-{'+'.join(run[1]) or 'numpy'}",
            marks=marks_of(*run),
        )
        for run in RUNS
    ],
)
def test_python_runs(page, backends, tmp_path, monkeypatch):
    """The programs of a page run in order in one namespace, except those that need other backends."""
    for package in OTHERS.keys() & packages_of(page):
        pytest.importorskip(package, reason=f"{page} needs {package}: pip install {OTHERS[package]}")
    for backend in backends:
        if backend in RAPIDS:
            pytest.importorskip(backend, reason=f"{page} needs {backend}: https://docs.rapids.ai/install")
        else:
            open_backend(backend)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "snippet"}
    for snippet in PROGRAMS:
        if snippet.page == page and NEEDS[snippet] <= set(backends):
            run(snippet, namespace)


def run(snippet: Snippet, namespace: dict[str, object]) -> None:
    """Run a program, and compare the output of sessions with the printed output."""
    if not snippet.is_session:
        # As many empty lines before it as in the page, so that an error names the page's own line.
        exec(compile("\n" * snippet.line + snippet.text, snippet.page, "exec"), namespace)
        return
    test = doctest.DocTestParser().get_doctest(snippet.text, {}, snippet.page, snippet.page, snippet.line)
    test.globs = namespace
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=SESSION).run(test, out=report.append, clear_globs=False)
    assert not failed, "".join(report)


# A picture of a model that is trained has other numbers on every machine, and is no SVG.
FIGURES = [p for p in sorted((ROOT / "docs" / "figures").glob("*.py")) if p.with_suffix(".svg").exists()]


@pytest.mark.parametrize("program", FIGURES, ids=lambda p: p.stem)
@pytest.mark.slow
def test_figure_shows_what_the_library_computes(program, tmp_path):
    drawn = tmp_path / "drawn.svg"
    runpy.run_path(str(program))["draw"](drawn)
    kept = program.with_suffix(".svg")
    # Names made of digests change with the last bit of a coordinate, and strokes with Matplotlib's version.
    new, old = (re.sub(r"\b[mp][0-9a-f]{10}\b", "", p.read_text(encoding="utf-8")) for p in (drawn, kept))
    if f"Matplotlib v{matplotlib.__version__}," in old:
        assert new == old, f"python {program.relative_to(ROOT)} draws it again"


@pytest.mark.parametrize("page", sorted({s.page for s in PROGRAMS if ".savefig(" in s.text}))
def test_a_page_shows_what_it_draws(page):
    drawn = re.findall(r'\.savefig\("([^"]+)"', PAGES[page])
    shown = re.findall(r"!\[[^\]]+\]\(\.\./figures/([^)]+)\)", PAGES[page])
    assert drawn == shown
    assert all((ROOT / "docs" / "figures" / name).exists() for name in shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_told(name):
    assert any(f"python -m xplstm {name}" in text for text in PAGES.values())


@pytest.mark.parametrize("name", _array.BACKENDS)
def test_every_backend_is_told(name):
    assert f'`"{name}"`' in PAGES["docs/backends.md"]


@pytest.mark.parametrize("name", _array.BACKENDS)
def test_the_readme_names_every_backend(name):
    spelled = {"numpy": "NumPy", "cupy": "CuPy", "torch": "PyTorch", "jax": "JAX", "dask": "Dask"}
    assert spelled.get(name, name.replace("_", "-")) in PAGES["README.md"].partition("##")[0]
