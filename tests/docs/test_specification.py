"""Check that the program on the page "Testing another LSTM" passes the suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "guides" / "specification.md"


def test_the_program_of_the_page_passes(tmp_path: Path) -> None:
    block = re.search(
        r"```\{code-block\} python\n(import json.*?)```", PAGE.read_text(encoding="utf-8"), re.S
    )
    assert block is not None
    (tmp_path / "mine.py").write_text(block[1], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "spec", "--stdio", f"{sys.executable} {tmp_path / 'mine.py'}"]
    options = ["-q", "-p", "no:xdist", "-k", "sequence or refus or side_effects"]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 25
