"""The examples of every docstring run, and everything that a user calls has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import xplstm

MODULES = ["xplstm", *(info.name for info in pkgutil.walk_packages(xplstm.__path__, "xplstm."))]
MODULES.remove("xplstm.__main__")
FOR_USERS = ("xplstm", *(f"xplstm.{name}" for name in ("init", "losses", "models", "optim", "training")))
# A user is handed these, or writes a class like them; the examples stand where that happens.
ELSEWHERE = {
    "Checkpoint",
    "Explanation",
    "FrozenLSTM",
    "History",
    "LSTMTrace",
    "Model",
    "Optimizer",
    "load_checkpoint",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("module", FOR_USERS)
def test_what_a_user_calls_has_an_example(module):
    face = importlib.import_module(module)
    missing = set()
    for name, value in vars(face).items():
        public = name in face.__all__ if module == "xplstm" else getattr(value, "__module__", "") == module
        called = inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception))
        if public and called and not name.startswith("_") and ">>>" not in (value.__doc__ or ""):
            missing.add(name)
    assert missing <= ELSEWHERE
