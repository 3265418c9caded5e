"""Check that a release is ready: ``python -m tests.release v0.1.0`` prints what is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ADDRESSES = ("Changelog", "Documentation", "Issues", "Repository")
# PyPI rejects every upload with a classifier that begins with "Private ::".
CLOSED = "Private :: Do Not Upload"


def project(root: Path) -> dict[str, Any]:
    """Return the table [project] of pyproject.toml."""
    return dict(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def without_address(root: Path = ROOT) -> list[str]:
    """Return the places that need the public address of the repository."""
    urls = project(root).get("urls", {})
    missing = [
        f"pyproject.toml: [project.urls] needs {name} with https://, got {urls.get(name)}"
        for name in ADDRESSES
        if not str(urls.get(name)).startswith("https://")
    ]
    links = re.findall(r"\]\(([^)]+)\)", (root / "README.md").read_text(encoding="utf-8"))
    relative = sorted({link for link in links if not link.startswith(("https://", "#"))})
    missing += [f"README.md: the link to {link} must be absolute for PyPI" for link in relative]
    code = re.findall(r"(?m)^repository-code: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"))
    if code != [urls.get("Repository")]:
        missing.append(f"CITATION.cff: needs repository-code, the Repository of pyproject.toml, got {code}")
    return missing


def unready(tag: str, root: Path = ROOT) -> list[str]:
    """Return what is missing for a release of the commit under this tag."""
    missing = without_address(root)
    if CLOSED in project(root)["classifiers"]:
        missing.append(f"pyproject.toml: PyPI refuses files with the classifier {CLOSED!r}")
    source = (root / "xplstm" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'(?m)^__version__ = "(.+)"$', source)
    if tag != f"v{version}":
        missing.append(f"xplstm/__init__.py: the tag {tag} needs __version__ = {tag[1:]!r}, got {version!r}")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"(?m)^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes):
        missing.append(f"CHANGELOG.md: needs a section '## [{version}] - ' with its date")
    return missing


def main() -> None:
    """Print what is missing, one item per line, and fail if anything is missing."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.release TAG")
    missing = unready(sys.argv[1])
    print("\n".join(missing) or f"{sys.argv[1]} can be released")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
