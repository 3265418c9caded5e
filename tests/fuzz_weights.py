"""Fuzz the readers of weight files: any bytes must be loaded, or cause an error of xplstm.

``nox -s fuzz`` runs it; arguments after ``--`` are passed to libFuzzer. Every kind of file goes through
`load`, `inspect` and `arrays`, and safetensors also through `load_checkpoint` and `load_model`. Inputs that
take 10 seconds or 1 GiB are failures. The command prints the seeds and the number of inputs. ``XPLSTM_FUZZ``
lists the suffixes of the kinds to fuzz, separated by commas; the default is all.
"""

from __future__ import annotations

import io as bytesio
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["xplstm.io", "xplstm.training"]):
    from xplstm import io
    from xplstm._errors import LONGEST_MESSAGE, ArgumentError, FormatError
    from xplstm.io import _registry
    from xplstm.training import load_checkpoint

    # The modules are loaded here, because libFuzzer does not instrument modules that are loaded later.
    for name in _registry.FILES:
        _registry.file_format(name)
    for name in _registry.LAYOUTS:
        _registry.layout(name)

from tests.support import weightfiles

# Members of a valid zip file; changed bytes of the complete file would fail its checksums.
INSIDE = {
    ".pt": "archive/data.pkl",
    ".npz": "weight_ih_l0.npy",
    ".keras": "config.json",
    ".keras.h5": "model.weights.h5",
}
CHOSEN = os.environ.get("XPLSTM_FUZZ", ",".join([*weightfiles.ALL_SUFFIXES, ".keras.h5"])).split(",")
KINDS = [(suffix, None) for suffix in weightfiles.ALL_SUFFIXES if suffix in CHOSEN]
KINDS += [kind for kind in INSIDE.items() if kind[0] in CHOSEN]


def packed(member: str, content: bytes) -> bytes:
    """Return a zip file with `content` as one of its members."""
    archive = bytesio.BytesIO()
    others = (
        {"archive/data/0": bytes(4096)} if member.endswith((".pkl", ".npy")) else weightfiles.keras_parts()
    )
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in (others | {member: content}).items():
            file.writestr(name, data)
    return archive.getvalue()


def check(data: bytes, folder: Path) -> None:
    """Read `data` as the kind of file that its first byte selects."""
    suffix, member = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    content = data[1:]
    path = folder / f"fuzzed{suffix.removesuffix('.h5') if member else suffix}"
    path.write_bytes(content if member is None else packed(member, content))
    calls = [io.inspect, io.arrays, lambda path: io.load(path, dtype="float32")]
    calls += [load_checkpoint, io.load_model] if suffix == ".safetensors" else []
    for call in calls:
        try:
            call(path)
        except (FormatError, ArgumentError) as error:
            check_message(error, path)


def check_message(error: Exception, path: Path) -> None:
    """Check that a message is bounded and printable, and names the path if the file is the cause."""
    text = str(error)
    assert len(text) <= LONGEST_MESSAGE, len(text)
    assert all(line.isprintable() for line in text.split("\n")), text
    assert isinstance(error, ArgumentError) or text.startswith(str(path)), text


def seeds(folder: Path) -> list[str]:
    """Write valid initial files of the selected kinds; return their names."""
    names = []
    for name, content in (weightfiles.whole() | weightfiles.more()).items():
        for number, (suffix, member) in enumerate(KINDS):
            if not name.endswith(suffix.removesuffix(".h5") if member else suffix):
                continue
            seed = content
            if member is not None and not content.startswith(b"PK"):
                continue
            if member is not None:
                with zipfile.ZipFile(bytesio.BytesIO(content)) as file:
                    end = ".npy" if member.endswith(".npy") else member.rpartition("/")[2]
                    seed = file.read(next(m for m in file.namelist() if m.endswith(end)))
            (folder / f"{name}.{number}").write_bytes(bytes([number]) + seed)
            names.append(name if member is None else f"{member} of {name}")
    return names


def main() -> None:
    """Fuzz until libFuzzer reaches a limit."""
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as corpus:
        names = seeds(Path(corpus))
        print(f"{len(KINDS)} kinds, {len(names)} seeds: {', '.join(names)}", flush=True)
        limits = ["-rss_limit_mb=1024", "-timeout=10", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], corpus], lambda d: check(d, Path(work)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
