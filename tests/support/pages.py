"""Extract the code snippets of the README and of every page in docs/."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PATHS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# text of every page, by name
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in PATHS
    if not path.is_relative_to(ROOT / "docs" / "_build")
}


class Snippet(NamedTuple):
    """Fenced block; `line` is the line of the opening fence, counted from 1."""

    page: str
    line: int
    language: str
    text: str

    @property
    def is_session(self) -> bool:
        """Return whether the snippet has prompts and output."""
        return self.text.startswith(">>>")

    @property
    def code(self) -> str:
        """Return the Python code without prompts and output."""
        if not self.is_session:
            return self.text
        return "".join(example.source for example in doctest.DocTestParser().get_examples(self.text))


def snippets_of(page: str) -> Iterator[Snippet]:
    """Yield every fenced block of a page."""
    lines = PAGES[page].splitlines()
    start, fence = 0, ""
    for number, line in enumerate(lines, start=1):
        if not fence and (opening := re.match(r"\s*(```+|~~~+)", line)):
            start, fence = number, opening[1]
        elif fence and line.strip() == fence:
            text = "".join(inner + "\n" for inner in lines[start : number - 1])
            yield Snippet(page, start, lines[start - 1].strip(" `~"), text)
            fence = ""
    assert not fence, f"{page}:{start}: the fence is never closed"


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]
