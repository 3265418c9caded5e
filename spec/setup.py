"""Build the distribution: its package is `lstm_spec`, which is `spec` in a clone."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Imports, and modules named in strings.
NAME = re.compile(r"""((?:from|import) |f?["'])spec(?=\.[\w{]| import )""")


class RenamePackage(build_py):
    """Copy the modules under the distribution's name."""

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Copy a module and rename what it imports."""
        found: tuple[str, bool] = super().build_module(module, module_file, package)
        path = Path(found[0])
        path.write_text(NAME.sub(r"\1lstm_spec", path.read_text(encoding="utf-8")), encoding="utf-8")
        return found


setup(cmdclass={"build_py": RenamePackage})
