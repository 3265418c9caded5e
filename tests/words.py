"""Check that documents, comments, docstrings and messages are plain technical English.

``python -m tests.words`` prints each banned phrase with its place and a better wording. codespell cannot do
this: most entries are phrases, and many are ordinary identifiers in code.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = Path(__file__).with_name("words_allowed.txt")
PLACES = (
    *("*.md", "noxfile.py", "docs/**/*.md", "spec/**/*.py", "spec/**/*.md", "tests/**/*.py"),
    *("xplstm/**/*.py", "xplstm/**/*.[ch]", "xplstm/**/*.cu*"),
)

# Files that are not rewritten yet, as prefixes of their paths. This list may only shrink.
NOT_YET: tuple[str, ...] = (
    "docs/conformance.md",
    "docs/clauses.md",
    "spec/SPEC.md",
)
# This list of phrases, and its tests.
QUOTING = ("tests/words.py", "tests/docs/test_words.py")

# Pattern, and what to write instead. A space matches any white space; upper and lower case are the same.
BANNED = {
    r"stands?(?!-in)|stood": "is, exists, is written; replaces",
    r"lies?": "is, is stored",
    r"beside": "next to, with, compared with",
    r"anew": "again",
    r"told|tells?": "state, give, set",
    r"wholly": "completely, atomically",
    r"will do": "is accepted",
    r"(has|have|had|having) (a|no) part in": "uses",
    r"(lets?|letting) go": "release, free",
    r"(goes|go|going|went) on": "continue",
    r"as it has it": "name the value or the source",
    r"whoever|nobody|everybody": "the caller, no kernel, every thread",
    r"gradients? by(?! (names?|their|row))": "gradient with respect to",
    r"ways? back": "backward pass",
    r"members? of (the|a|one) batch": "batch entry, sample",
    r"rows? of (the|a|one|its) (ragged )?batch(es)?|batch rows?": "batch entry, sample",
    r"first values?": "initial values, initialisation",
    r"simple (recurrent )?networks?": "Elman RNN, Jordan RNN",
    r"plain (LSTMs?|one|cells?)": "standard LSTM",
    r"canonical (sums?|order)|published order": "reproducible summation order",
    r"files? of weights": "weight file",
    r"known ahead": "known in advance",
    r"must hold": "must contain",
    r"known are": "expected one of",
}
SEARCH = re.compile(
    "|".join(rf"(?P<w{n}>\b(?:{p})\b)".replace(" ", r"\s+") for n, p in enumerate(BANNED)), re.IGNORECASE
)
ADVICE = list(BANNED.values())
C_PROSE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def prose_of(path: str, text: str) -> str:
    """Return `text` with code crossed out, so that each place keeps its line."""
    if path.endswith(".md"):
        return text
    kept = python_prose(text) if path.endswith(".py") else [m.span() for m in C_PROSE.finditer(text)]
    result, end = [], 0
    for start, stop in kept:
        result.append(re.sub(r"\S", "|", text[end:start]))
        result.append(re.sub(r"(?m)^\s*\*|[#/]+", lambda m: " " * len(m[0]), text[start:stop]))
        end = stop
    return "".join(result) + re.sub(r"\S", "|", text[end:])


def python_prose(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the comments and strings of Python code are."""
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    names = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in names:
            (first, left), (last, right) = token.start, token.end
            yield lines[first - 1] + left, lines[last - 1] + right


def found_in(path: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, phrase and advice of each banned phrase."""
    prose = prose_of(path, text)
    for match in SEARCH.finditer(prose):
        phrase = " ".join(match[0].split())
        yield prose.count("\n", 0, match.start()) + 1, phrase, ADVICE[int(str(match.lastgroup)[1:])]


def allowed() -> set[tuple[str, str]]:
    """Return the path and phrase of each exception; a line without a reason is an error."""
    entries = set()
    for line in ALLOWED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            entry = re.fullmatch(r"(\S+): (.+?)  # (.+)", line)
            if entry is None:
                raise ValueError(f"{ALLOWED.name} has {line!r}, expected 'path: phrase  # reason'")
            entries.add((entry[1], entry[2].lower()))
    return entries


def problems() -> Iterator[str]:
    """Yield each problem as one line: banned phrases, and exceptions that are no longer needed."""
    exceptions = allowed()
    unused = set(exceptions)
    for file in sorted({file for place in PLACES for file in ROOT.glob(place)}):
        path = file.relative_to(ROOT).as_posix()
        if path.startswith((*NOT_YET, *QUOTING)) or "/_build/" in path:
            continue
        for line, phrase, advice in found_in(path, file.read_text(encoding="utf-8")):
            entry = (path, phrase.lower())
            unused.discard(entry)
            if entry not in exceptions:
                yield f"{path}:{line}: {phrase!r}: write {advice}"
    for path, phrase in sorted(unused):
        yield f"{ALLOWED.name}: {path} no longer has {phrase!r}: remove the entry"


if __name__ == "__main__":
    listed = list(problems())
    print(*listed, sep="\n") if listed else print("plain English: no banned phrase")
    sys.exit(bool(listed))
