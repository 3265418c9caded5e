"""Check that docstring examples run, and that each public name has an example and is on an API page."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import xplstm
from tests.support.pages import PAGES

MODULES = ["xplstm", *(info.name for info in pkgutil.walk_packages(xplstm.__path__, "xplstm."))]
MODULES.remove("xplstm.__main__")
ROOMS = ("init", "losses", "models", "optim", "training", "testing", "plots", "sklearn")
FORMS = ("io", "io.gates", "io.columns", "io.layers", "io.cell", "io.onnx")
FOR_USERS = ("xplstm", *(f"xplstm.{name}" for name in (*ROOMS, *FORMS)))
# A user gets these from a function, or writes a class like them; those functions have the examples.
ELSEWHERE = {
    "Checkpoint",
    "Event",
    "Explanation",
    "FrozenLSTM",
    "FrozenRNN",
    "GRUTrace",
    "GradientReport",
    "GradientRow",
    "Gradients",
    "History",
    "NCCLGroup",
    "Inspection",
    "Group",
    "LSTMTrace",
    "LocalGroup",
    "MPIGroup",
    "Model",
    "Optimizer",
    "Prepared",
    "QuantisationReport",
    "QuantisationRow",
    "TorchGroup",
    "load_checkpoint",
}


def public(module):
    """Return the public classes and functions of `module` by name."""
    if module == "xplstm.sklearn":
        pytest.importorskip("sklearn", minversion="1.6", reason="pip install 'xplstm[sklearn]'")
    face = importlib.import_module(module)
    own = {name for name, value in vars(face).items() if getattr(value, "__module__", "") == module}
    named = {name: vars(face)[name] for name in getattr(face, "__all__", own) if not name.startswith("_")}
    return {name: v for name, v in named.items() if inspect.isclass(v) or inspect.isfunction(v)}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name == "xplstm.io.onnx":
        pytest.importorskip("onnx", reason="its examples make models: pip install 'xplstm[io]'")
    if name.startswith("xplstm.sklearn"):
        pytest.importorskip("sklearn", minversion="1.6", reason="pip install 'xplstm[sklearn]'")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("module", FOR_USERS)
def test_what_a_user_calls_has_an_example(module):
    errors = {name for name, v in public(module).items() if inspect.isclass(v) and issubclass(v, Exception)}
    missing = {name for name, value in public(module).items() if ">>>" not in (value.__doc__ or "")}
    assert missing - errors <= ELSEWHERE


@pytest.mark.parametrize("module", FOR_USERS)
def test_what_a_user_calls_has_a_place_in_the_api_pages(module):
    entry = re.compile(
        r"^\.\. (?:currentmodule:: (\S+)|auto(?:class|exception|function):: (\w+))", re.MULTILINE
    )
    listed = set()
    for page, text in PAGES.items():
        current = ""
        for named, name in entry.findall(text) if page.startswith("docs/api/") else ():
            current = named or current
            listed |= {name} if name and current == module else set()
    assert listed == public(module).keys()
