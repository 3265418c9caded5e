"""Check that clauses are registered with their text and tested, and that each test names its clause."""

from __future__ import annotations

import ast
import doctest
import json
import re
from pathlib import Path

import pytest

from spec import clauses, gru_relations
from spec.relations import LAWS

FOLDER = Path(__file__).parent
PROSE = clauses.SPEC.read_text(encoding="utf-8")
CLAUSES = clauses.clauses(PROSE)
REGISTER = clauses.register()
FILES = (path for folder in ("vectors", "vectors-gru") for path in (FOLDER / folder).glob("*.json"))
RECORDS = [json.loads(path.read_text(encoding="utf-8")) for path in FILES]


def docstrings(file: str) -> dict[str, str]:
    """Return the docstring of every test in a file."""
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name: ast.get_docstring(f) or "" for f in functions if f.name.startswith("test_")}


def test_register_is_the_prose() -> None:
    assert clauses.entered(REGISTER, PROSE) == REGISTER, "run python -m spec.clauses"
    assert clauses.dumps(REGISTER) == clauses.REGISTER.read_text(encoding="utf-8")
    assert REGISTER.keys() == CLAUSES.keys()
    assert PROSE.count("\n**XPL-") == len(CLAUSES)


def test_no_version_of_a_clause_comes_again() -> None:
    hashes = [digest for entry in REGISTER.values() for digest in entry["history"]]
    assert len(hashes) == len(set(hashes)) >= len(REGISTER)
    versions = {entry["since"] for entry in REGISTER.values()}
    assert max(versions) == clauses.version(PROSE)


@pytest.mark.parametrize(
    "change", [("T = 0 is valid", "T = 0 is not valid"), ("(MAY) Dropout", "(MUST) Dropout")]
)
def test_changed_text_is_found_and_adds_a_version(change: tuple[str, str]) -> None:
    changed = clauses.entered(REGISTER, PROSE.replace(*change))
    assert changed != REGISTER
    longer = [name for name in REGISTER if len(changed[name]["history"]) > len(REGISTER[name]["history"])]
    assert len(longer) == 1


def test_new_line_breaks_are_no_change() -> None:
    assert clauses.entered(REGISTER, PROSE.replace("with every\npath", "with\nevery path")) == REGISTER


def test_every_clause_is_tested_and_every_test_has_a_clause() -> None:
    named = {clause for record in RECORDS for clause in record["clauses"]}
    behaviour = docstrings("test_behaviour.py")
    assert all("XPL-" in text for text in behaviour.values())
    files = ("vectors", "side_effects", "sized", "refusals", "kinks")
    others = [text for file in files for text in docstrings(f"test_{file}.py").values()]
    for text in (*behaviour.values(), *others):
        named |= set(re.findall(r"XPL-[A-Z]+-\d{3}", text))
    named |= {law.clause for laws in (LAWS, gru_relations.LAWS) for law in laws.values()}
    drafts = {name for name, clause in CLAUSES.items() if clause.status == "draft"}
    assert named == CLAUSES.keys() - drafts


def test_examples_in_the_prose_run() -> None:
    """Run each example after those before it, as a reader would type them."""
    blocks = re.findall(r"^```python\n(.*?)^```", PROSE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    assert PROSE.count("```") == 2 * len(blocks)
    runner = doctest.DocTestRunner(verbose=False)
    known: dict[str, object] = {}
    said: list[str] = []
    for number, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, known, f"example {number}", "SPEC.md", 0)
        assert test.examples
        runner.run(test, out=said.append, clear_globs=False)
        known = test.globs
    assert runner.failures == 0, "".join(said)
    assert runner.tries == sum(block.count(">>> ") for block in blocks)
