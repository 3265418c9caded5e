"""Fuzzing what reads files of weights: any bytes are loaded, or refused with an error raised on purpose.

``nox -s fuzz`` runs it; what follows ``--`` goes to libFuzzer.
"""

from __future__ import annotations

import contextlib
import io as bytesio
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["xplstm.io"]):
    from xplstm import io
    from xplstm._errors import ArgumentError, FormatError
    from xplstm.io import _registry

    # Here, since what is loaded later is not watched.
    for name in _registry.FILES:
        _registry.file_format(name)
    for name in _registry.LAYOUTS:
        _registry.layout(name)

from tests import weightfiles

# Behind a whole zip file's checksums, where changed bytes would not come otherwise.
INSIDE = {".pt": "archive/data.pkl", ".npz": "weight_ih_l0.npy"}
KINDS = [(suffix, None) for suffix in weightfiles.SUFFIXES] + list(INSIDE.items())


def packed(member: str, content: bytes) -> bytes:
    """A zip file with `content` as one of its members."""
    archive = bytesio.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(member, content)
        file.writestr("archive/data/0", bytes(4096))
    return archive.getvalue()


def check(data: bytes, folder: Path) -> None:
    """Load `data` as the kind of file that its first byte chooses."""
    suffix, member = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    content = data[1:]
    path = folder / f"fuzzed{suffix}"
    path.write_bytes(content if member is None else packed(member, content))
    with contextlib.suppress(FormatError, ArgumentError):
        io.inspect(path)
    with contextlib.suppress(FormatError, ArgumentError):
        io.load(path, dtype="float32")


def seeds(folder: Path) -> None:
    """Whole files to begin with."""
    for name, content in weightfiles.whole().items():
        suffix = Path(name).suffix
        (folder / name).write_bytes(bytes([KINDS.index((suffix, None))]) + content)
        if suffix in INSIDE:
            with zipfile.ZipFile(bytesio.BytesIO(content)) as file:
                member = next(m for m in file.namelist() if m.endswith((".pkl", "weight_ih_l0.npy")))
                inner = bytes([KINDS.index((suffix, INSIDE[suffix]))]) + file.read(member)
                (folder / f"{name}.inner").write_bytes(inner)


def main() -> None:
    """Fuzz until a limit of libFuzzer's stops it."""
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as corpus:
        seeds(Path(corpus))
        atheris.Setup(
            [sys.argv[0], "-rss_limit_mb=1024", *sys.argv[1:], corpus], lambda d: check(d, Path(work))
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
