"""Check that mypy reports each of a list of wrong uses, and swapped arguments in the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="the type checker comes with nox -s types")

ROOT = Path(__file__).parent.parent.parent
WRONG = Path(__file__).parent / "wrong_uses.py"


def reported(folder: Path, *files: str) -> str:
    """Return what mypy reports for the files in `folder`, with the project's settings."""
    if folder != ROOT and (ROOT / ".mypy_cache").exists():
        # mypy takes from here what does not depend on the changes.
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(folder / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *settings, *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_every_wrong_use_is_reported_and_no_right_one() -> None:
    lines = WRONG.read_text(encoding="utf-8").splitlines()
    wanted = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = {int(line) for line in re.findall(r"wrong_uses\.py:(\d+): error", reported(ROOT, str(WRONG)))}
    assert len(wanted) >= 25
    assert found == wanted


def test_arguments_swapped_inside_a_kernel_are_reported(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "xplstm", tmp_path / "xplstm", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    changed = tmp_path / "xplstm" / "kernels" / "reference.py"
    text = changed.read_text(encoding="utf-8")
    wrong = {
        "forward(xp, zx, h, c, p)": "forward(zx, xp, h, c, p)",
        ".cell.at(part)": ".cell.att(part)",
    }
    for right, swapped in wrong.items():
        assert right in text
        text = text.replace(right, swapped)
    changed.write_text(text, encoding="utf-8")
    lines = text.splitlines()
    found = re.findall(
        r"kernels/reference\.py:(\d+): error", reported(tmp_path, "xplstm/kernels/reference.py")
    )
    for swapped in wrong.values():
        assert any(swapped in lines[int(number) - 1] for number in found), swapped
