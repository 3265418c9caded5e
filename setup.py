"""The compiled kernel `native` and the tag of the wheel; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

OLDEST = "cp311"
FOLDER = Path("xplstm", "kernels", "_native")
# Python without the global lock has no stable ABI yet.
STABLE_ABI = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildKernel(build_ext):
    """Compile the kernel, or leave no part of it."""

    def build_extension(self, ext: Extension) -> None:
        """Compile; after an error remove the result of an earlier build, which would be packed."""
        if self.editable_mode and os.environ.get("XPLSTM_KEEP_BUILD") and self.keep(ext):
            return
        compiler: Any = self.compiler
        compile_some = compiler.compile

        def compile_together(sources: list[str], **options: Any) -> list[str]:
            # A file for each instruction set takes most of the time.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                found = pool.map(lambda source: compile_some([source], **options), sources)
                return list(chain.from_iterable(found))

        compiler.compile = compile_together
        try:
            super().build_extension(ext)
        except Exception:
            for folder in (Path(self.build_lib), Path()):
                (folder / self.get_ext_filename(ext.name)).unlink(missing_ok=True)
            raise

    def keep(self, ext: Extension) -> bool:
        """Take the kernel of the clone and return True, if it is newer than all that it is made from."""
        here, target = Path(self.get_ext_filename(ext.name)), Path(self.get_ext_fullpath(ext.name))
        if not here.exists() or newer_group([*ext.sources, *ext.depends, __file__], str(here)):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(here, target)
        return True


class TagWheel(bdist_wheel):
    """Tag a wheel with the kernel for its platform, and one without it for every platform."""

    def finalize_options(self) -> None:
        """Name the oldest Python that the stable ABI reaches back to."""
        if STABLE_ABI and self.distribution.ext_modules:
            self.py_limited_api = OLDEST
        super().finalize_options()

    def run(self) -> None:
        """Compile first, because only the result tells which wheel it is."""
        if self.distribution.ext_modules:
            self.run_command("build_ext")
            command: Any = self.get_finalized_command("build_ext")
            if not all(Path(path).exists() for path in command.get_outputs()):
                self.distribution.ext_modules = []
                self.root_is_pure, self.plat_name_supplied, self.py_limited_api = True, False, False
        super().run()


def kernel() -> list[Extension]:
    """Return the extension; it is optional, because xplstm runs without it."""
    if os.environ.get("XPLSTM_PURE"):
        return []
    # Contracted products would break the reproducible summation order.
    options = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread"]
    return [
        Extension(
            "xplstm.kernels._engine",
            sources=sorted(map(str, FOLDER.glob("*.c"))),
            depends=sorted(map(str, FOLDER.glob("*.h"))),
            extra_compile_args=options,
            extra_link_args=["-pthread"],
            py_limited_api=STABLE_ABI,
            optional=True,
        )
    ]


setup(ext_modules=kernel(), cmdclass={"build_ext": BuildKernel, "bdist_wheel": TagWheel})
