"""Check that documents, comments, docstrings and messages are plain technical English."""

from __future__ import annotations

import re

import pytest

from tests import words

PHRASES = (
    "It stands here.",
    "It lies there.",
    "beside it",
    "draws it anew",
    "it is told to",
    "written wholly",
    "a list will do",
    "what JAX has a part in",
    "it lets go",
    "the run goes on",
    "as it has it",
    "for whoever trains",
    "the gradient by x",
    "on the way back",
    "a member of the batch",
    "the rows of a ragged batch",
    "first values",
    "the simple networks",
    "the plain LSTM",
    "the published order",
    "a file of weights",
    "columns that are known ahead",
    "params must hold an array",
    "the name is unknown; known are two",
)


@pytest.mark.slow
def test_nothing_banned_is_written():
    assert list(words.problems()) == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_each_phrase_is_found_in_each_language(phrase):
    broken = phrase.replace(" ", "\n# ")
    found = [
        list(words.found_in("a.md", phrase)),
        list(words.found_in("a.py", f'x = 1\n"""{phrase}"""\n')),
        list(words.found_in("a.py", f"x = 1\n# {broken}\n")),
        list(words.found_in("a.cu", f"int x;\n/* {phrase} */\n")),
        list(words.found_in("a.h", f'int x;\nerror("{phrase}");\n')),
    ]
    assert [len(one) for one in found] == [1] * len(found)
    assert [one[0][0] for one in found if one is not found[2]] == [1, 2, 2, 2]


def test_every_pattern_has_a_phrase():
    found = {advice for phrase in PHRASES for *_, advice in words.found_in("a.md", phrase)}
    assert found == set(words.BANNED.values())


def test_names_in_code_and_compounds_are_not_banned():
    assert not list(words.found_in("a.py", "lies = stand + beside\n"))
    assert not list(words.found_in("a.md", "a stand-in for CuPy"))
    assert not list(words.found_in("a.c", "int stand = lies; /* understand */\n"))


def test_every_environment_variable_is_on_its_page():
    page = (words.ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in words.ROOT.glob("xplstm/**/*.py"))
    assert set(re.findall(r"XPLSTM_[A-Z_]+", sources)) <= set(re.findall(r"XPLSTM_[A-Z_]+", page))
