"""Write guides as Jupyter notebooks; ``python docs/notebooks.py FOLDER`` also runs them, as CI does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
GUIDES = ("classification", "forecasting", "language_models", "student")
# A notebook is read away from these pages: their pictures and links lead nowhere there.
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)\n?")
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")
# What a page says to those who read it as a page.
OFFER = re.compile(r"^\{download\}`.*\n\n?", re.MULTILINE)


def notebook(guide: str) -> nbformat.NotebookNode:
    """Return the guide of this name with its programs as cells; what a shell runs remains text."""
    made = jupytext.reads((HERE / "guides" / f"{guide}.md").read_text(encoding="utf-8"), fmt="md")
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(made.cells):
        if cell.cell_type == "code" and cell.source.startswith("%%sh\n"):
            text = "```sh\n" + cell.source.removeprefix("%%sh\n") + "\n```"
            made.cells[number] = nbformat.v4.new_markdown_cell(text, id=cell.id)
        elif cell.cell_type == "markdown":
            cell.source = LINK.sub(r"\1", PICTURE.sub("", OFFER.sub("", cell.source)))
    return made


def write(folder: Path) -> list[Path]:
    """Write every notebook to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{guide}.ipynb" for guide in GUIDES]
    for path in paths:
        nbformat.write(notebook(path.stem), path)
    return paths


def run(path: Path) -> None:
    """Run a notebook in its folder and keep what it printed; a cell that fails is an error."""
    from nbclient import NotebookClient

    read = nbformat.read(path, as_version=4)
    NotebookClient(read, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(read, path)


if __name__ == "__main__":
    for each in write(Path(sys.argv[1])):
        print(f"running {each}", flush=True)
        run(each)
