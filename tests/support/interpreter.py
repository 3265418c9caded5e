"""Run code in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def started(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, which must succeed within a time limit."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
