"""Check that a release needs the repository's address, its version and its date."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.release import ADDRESSES, CLOSED, ROOT, project, unready, without_address

HOME = "https://example.org/xplstm"
URLS = "".join(f'{name} = "{HOME}/{name}"\n' for name in ADDRESSES)
READY = {
    "pyproject.toml": f'[project]\nclassifiers = ["Typing :: Typed"]\n[project.urls]\n{URLS}',
    "README.md": f"[Contributing]({HOME}/CONTRIBUTING.md), [install](#install)\n",
    "CITATION.cff": f"type: software\nrepository-code: {HOME}/Repository\n",
    "CHANGELOG.md": "## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n",
    "xplstm/__init__.py": '__version__ = "0.1.0"\n',
}


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Return a tree that has all that a release needs."""
    (tmp_path / "xplstm").mkdir()
    for name, text in READY.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_pypi_refuses_the_files_while_an_address_is_missing():
    assert not without_address() or CLOSED in project(ROOT)["classifiers"]


def test_a_complete_tree_can_be_released(ready):
    assert unready("v0.1.0", ready) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("pyproject.toml", "Issues = ", "Bugs = ", "pyproject.toml: [project.urls] needs Issues"),
        (
            "pyproject.toml",
            f'Changelog = "{HOME}',
            'Changelog = "',
            "needs Changelog with https://, got /Changelog",
        ),
        ("pyproject.toml", '"Typing :: Typed"', f'"{CLOSED}"', "pyproject.toml: PyPI refuses"),
        ("README.md", f"]({HOME}/CONTRIBUTING", "](CONTRIBUTING", "README.md: the link to CONTRIBUTING.md"),
        ("CITATION.cff", f"{HOME}/Repository", HOME, "CITATION.cff: needs repository-code"),
        ("CHANGELOG.md", "[0.1.0] - 2026-12-01", "[0.1.0]", "CHANGELOG.md: needs a section '## [0.1.0] - '"),
        ("xplstm/__init__.py", '"0.1.0"', '"0.2.0"', "xplstm/__init__.py: the tag v0.1.0 needs"),
    ],
)
def test_each_missing_part_is_named(ready, name, old, new, message):
    assert old in READY[name]
    (ready / name).write_text(READY[name].replace(old, new), encoding="utf-8")
    assert message in "\n".join(unready("v0.1.0", ready))
