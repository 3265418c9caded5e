"""Check that the shell commands of the README and of all pages name things that exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator

import pytest

from tests.support.pages import PAGES, ROOT, SNIPPETS
from xplstm.__main__ import main

INLINE = re.compile(r"`((?:nox|pytest|pip install|python -m)(?: [^`|]*)?)`")


def commands() -> Iterator[tuple[str, str]]:
    """Yield every shell command with its place, in blocks and in the text."""
    for snippet in SNIPPETS:
        lines = enumerate(snippet.text.splitlines(), start=snippet.line + 1)
        for number, line in lines if snippet.language in ("sh", "console") else ():
            # In a console block what has no prompt is output.
            if snippet.language == "sh" or line.startswith("$ "):
                for part in line.removeprefix("$ ").split("&&"):
                    yield f"{snippet.page}:{number}", part.strip()
    for page, text in PAGES.items():
        for command in INLINE.findall(text):
            yield page, command.replace("\n", " ")


def words_of(command: str) -> list[str]:
    """Return the words of a command without comment and assignments."""
    words = shlex.split(command, comments=True)
    return [word for n, word in enumerate(words) if n or not re.match("[A-Z_]+=", word)]


def optional_dependencies() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(project["optional-dependencies"])


def sessions_and_tags() -> tuple[set[str], set[str]]:
    """Read the names from the source, because nox is not installed where the tests run."""
    sessions, tags = set(), set()
    for function in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body:
        if isinstance(function, ast.FunctionDef) and function.decorator_list:
            sessions.add(function.name)
            keywords = [n for n in ast.walk(function.decorator_list[0]) if isinstance(n, ast.keyword)]
            tags |= {tag for k in keywords if k.arg == "tags" for tag in ast.literal_eval(k.value)}
    return sessions, tags


def test_the_conformance_page_is_of_the_versions_that_nox_installs():
    body = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body
    (pins,) = (n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "VERSIONS")
    pinned = {name.partition("[")[0]: version for name, version in ast.literal_eval(pins).items()}
    report = json.loads((ROOT / "docs" / "conformance.json").read_text(encoding="utf-8"))
    said = {about["library"]: about["version"] for about in report["subjects"].values()} | report["packages"]
    # A distribution may have another name than its library.
    names = {"tensorflow": "tensorflow-cpu", "ai_edge_litert": "ai-edge-litert"}
    found = {names.get(name, name): version.partition("+")[0] for name, version in said.items()}
    compared = pinned.keys() & found.keys()
    assert len(compared) >= 10
    assert {name: found[name] for name in compared} == {name: pinned[name] for name in compared}


def test_the_first_pages_count_the_clauses_of_the_conformance_page():
    report = json.loads((ROOT / "docs" / "conformance.json").read_text(encoding="utf-8"))
    results = [clauses for name, clauses in report["results"].items() if name.startswith("xplstm:")]
    passed = {
        clause
        for clause in report["clauses"]
        if any(one.get(clause, {}).get("status") == "passed" for one in results)
    }
    clauses = len(report["clauses"])
    first, readme = (ROOT / "docs" / "index.md", ROOT / "README.md")
    assert f"passes {len(passed)} of the {clauses} clauses" in first.read_text(encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    assert f"checks {clauses} clauses" in text
    assert f"xplstm passes {len(passed)}," in text


def check_pip(words, _):
    assert words[0] == "install"
    options = ["--force-reinstall", "--no-deps", "--no-cache-dir", "--no-binary"]
    for word in words[1:]:
        own = re.fullmatch(r"(?:\.|xplstm)(?:\[([a-z0-9,]+)\])?", word)
        here = word.startswith("./") and (ROOT / word / "pyproject.toml").exists()
        others = ("nox", "ml_dtypes", "tensorboard", "xarray", "zarr")
        assert own or here or word in ("-e", *others, *options), f"what is {word}?"
        extras = own[1].split(",") if own and own[1] else []
        assert set(extras) <= optional_dependencies().keys(), word


def check_nox(words, _):
    sessions, tags = sessions_and_tags()
    own = words[: words.index("--")] if "--" in words else words
    for option, name in zip(own[::2], own[1::2], strict=True):
        assert name.partition("(")[0] in {"-s": sessions, "-t": tags}[option]


def check_pytest(words, _):
    places = itertools.takewhile(lambda word: not word.startswith("-"), words)
    for word in places:  # values follow the first option
        assert (ROOT / word).exists(), word


def check_python(words, monkeypatch):
    assert words[0] == "-m", "a page runs modules, which work from anywhere"
    if words[1] != "xplstm":
        assert importlib.util.find_spec(words[1]), words[1]
    elif words[2:] == ["--version"]:
        with pytest.raises(SystemExit, match="0"):
            main(words[2:])
    elif len(words) > 2:
        module = importlib.import_module(f"xplstm.cli.{words[2]}")
        monkeypatch.setattr(module, "run", lambda _: 0)
        assert main([word for word in words[2:] if word != "--help"]) == 0


def check_files(words, _):
    for word in " ".join(words).split():
        if word.startswith(("spec/", "tests/")):
            assert (ROOT / word).exists(), word


CHECKS = {
    "cc": check_files,
    "rustc": check_files,
    "lstm-spec": check_files,
    "pip": check_pip,
    "nox": check_nox,
    "pytest": check_pytest,
    "python": check_python,
}


@pytest.mark.parametrize(("place", "command"), sorted(set(commands())))
def test_a_command_names_what_exists(place, command, monkeypatch):
    program, *words = words_of(command)
    assert program in CHECKS, f"{place}: no test knows {program}"
    CHECKS[program](words, monkeypatch)


def test_a_clone_is_installed_in_place():
    """Check that Python finds the clone's own sources first, and with them the compiled kernel."""
    installs = [words for _, c in commands() if (words := words_of(c))[:2] == ["pip", "install"]]
    own = [words for words in installs if any(re.match(r"\.(\[|$)", word) for word in words)]
    assert len(own) > 4
    assert [words for words in own if "-e" not in words] in ([], [["pip", "install", "."]])


def test_the_table_of_extras_is_whole():
    table = re.findall(r"^\| (`.*?) \|", PAGES["docs/install.md"], re.MULTILINE)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == optional_dependencies().keys()


def test_workflows_run_sessions_that_exist():
    sessions, tags = sessions_and_tags()
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / ".github" / "workflows").glob("*.yml"))
    named = set(re.findall(r"- session: (\w+)", text)) | set(re.findall(r"--session (\w+)", text))
    assert len(named) > 9
    assert named <= sessions
    assert set(re.findall(r"--tags (\w+)", text)) <= tags


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: f"{snippet.page}:{snippet.line}")
def test_every_block_says_what_it_is(snippet):
    known = ("python", "sh", "console", "text")
    assert snippet.language in known or snippet.language.startswith("{"), "no test looks into it"


def test_continuous_integration_runs_the_test_command_of_the_readme():
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^pip install nox && nox\b", PAGES["README.md"], re.MULTILINE)
    assert re.search(r"pip install --quiet nox\n *nox\n", run)
