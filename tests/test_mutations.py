"""Check the mutation run: its changes, and its list of changes that alter no result."""

from __future__ import annotations

import ast
import gc

import pytest

from tests.mutations.changes import c_changes, python_changes
from tests.mutations.judge import replace
from tests.mutations.targets import ROOT, harmless

PYTHON = '''def f(a, b: int = 0):
    """Return 1 < 2."""
    if not a or a < 2 * b:
        msg = f"{a} < 1"
        raise ValueError(msg)
    return max(
        a, True if a else -b
    )
'''
C = """/* a + b */
#define N 3
static int f(int a) { return !a && a < 2; }
const char *text = "a + b";
"""


def test_every_operator_constant_and_branch_of_python_is_changed():
    changes = list(python_changes("m.py", PYTHON))
    assert [(c.line, c.inside) for c in changes] == [(1, False), *[(3, True)] * 5, *[(6, True)] * 4]
    for change in changes:
        assert ast.dump(ast.parse(change.text)) != ast.dump(ast.parse(PYTHON))
        assert change.text.count("\n") == PYTHON.count("\n")
    assert len({change.key for change in changes}) == len(changes)


def test_comments_strings_and_macros_of_c_are_left_alone():
    changes = list(c_changes("m.c", C))
    assert [c.line for c in changes] == [3] * 4
    assert all("/* a + b */\n#define N 3" in c.text and '"a + b"' in c.text for c in changes)


def test_a_change_reaches_every_function_that_exists(tmp_path):
    path, right = str(tmp_path / "m.py"), "def f():\n    return lambda: 1\n"
    names: dict = {}
    exec(compile(right, path, "exec"), names)
    made = names["f"]()
    gc.freeze()
    replace(path, right, right.replace("1", "2"))
    assert (made(), names["f"]()()) == (2, 2)


@pytest.mark.slow
def test_every_change_without_an_effect_exists_and_has_a_reason():
    texts = {}
    for one in harmless():
        make = python_changes if one.module.endswith(".py") else c_changes
        if one.module not in texts:
            text = (ROOT / one.module).read_text(encoding="utf-8")
            texts[one.module] = {(c.before, c.after) for c in make(one.module, text)}
        assert (one.before, one.after) in texts[one.module], one
        assert len(one.why) > 10
