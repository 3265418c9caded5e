"""Read untrusted HDF5 files without access to other files and without plugins.

HDF5 can refer to other files (external links, external and virtual datasets), to plugins (filters) and to
itself in cycles (hard links). Weight files do not need any of these. An error is raised before data is read.
"""

from __future__ import annotations

import io
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array
from xplstm._errors import FormatError
from xplstm.io._contents import Tensor, quote, show, unreadable
from xplstm.io.files import buffers
from xplstm.io.files.archive import GROWTH, SMALL
from xplstm.io.files.h5_texts import check_texts

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Bounds far above those of any weight file.
MOST_OBJECTS, DEEPEST, LONGEST_ATTRIBUTE = 100_000, 32, 4096
# Deflate, shuffle, checksum and LZF are part of h5py; other filters would be plugins.
_FILTERS = {1, 2, 3, 32000}


class Source(NamedTuple):
    """Location of an HDF5 file: a path, or bytes from an archive."""

    where: str
    content: bytes | None = None
    length: int = 0
    """Size of the archive in bytes; 0 for a separate file."""

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open the file for reading; convert errors to a FormatError that names the file."""
        import_h5py()
        try:
            with _file(self) as file:
                yield file
        except FormatError:
            raise
        except Exception as error:  # h5py has no error class of its own
            msg = f"{self.where} is a damaged HDF5 file: {quote(str(error))}"
            raise FormatError(msg) from error


class Tree(NamedTuple):
    """Contents of a file: tensors by path, and the names of the variable groups."""

    tensors: list[tuple[str, Tensor]]
    names: dict[str, str]
    attributes: dict[str, str]
    """Requested text attributes of the root."""
    marks: set[str]
    """Names of all attributes of the root."""


class _Budget:
    """Limit on the total bytes of all datasets, a multiple of the file size."""

    def __init__(self, source: Source) -> None:
        self.where = source.where
        content = source.content or b""
        self.length = source.length or len(content) or os.path.getsize(source.where)
        self.left = max(GROWTH * self.length - (len(content) if source.length else 0), SMALL)

    def spend(self, path: str, needed: int) -> None:
        """Subtract the bytes of one dataset."""
        self.left -= needed
        if self.left < 0:
            msg = (
                f"{self.where} has {self.length} bytes, but its datasets up to {show(path)} have more than "
                f"{GROWTH} times as many"
            )
            raise FormatError(msg)


def import_h5py() -> Any:
    """Return the package h5py."""
    try:
        import h5py
    except ImportError as error:
        msg = "Keras files need the package h5py: pip install 'xplstm[io]'"
        raise ImportError(msg) from error
    return h5py


@contextmanager
def _file(source: Source) -> Iterator[Any]:
    """Open an h5py.File; if the path cannot be opened, raise the OSError of the system."""
    place = io.BytesIO(source.content) if source.content is not None else open(source.where, "rb")  # noqa: SIM115
    with place, import_h5py().File(place, "r") as file:
        yield file


def read(source: Source, attributes: Mapping[str, int] = MappingProxyType({})) -> Tree:
    """Return the contents of a file, datasets unread; `attributes` maps root attributes to text limits."""
    _check_texts(source, attributes)
    with source.open() as file:
        if file.id.get_create_plist().get_sizes() != (8, 8):
            msg = f"{source.where} has addresses or lengths whose size is not 8 bytes"
            raise FormatError(msg)
        texts = {name: _text(source, "/", file, name, longest) for name, longest in attributes.items()}
        tree = Tree([], {}, {name: text for name, text in texts.items() if text is not None}, set(file.attrs))
        budget = _Budget(source)
        seen: set[Any] = set()
        pending: list[tuple[str, Any, int]] = [("", file["/"], 0)]
        while pending:
            path, group, depth = pending.pop()
            _check_visit(source, path, group, seen, depth)
            name = _text(source, path, group, "name")
            if name is not None:
                tree.names[path] = name
            for key in reversed(group):
                inner = f"{path}/{key}" if path else str(key)
                _check_link(source, inner, group, key)
                item = group[key]
                if hasattr(item, "keys"):
                    pending.append((inner, item, depth + 1))
                elif hasattr(item, "shape"):
                    _check_visit(source, inner, item, seen, depth)
                    tree.tensors.append((inner, _tensor(source, inner, item, budget)))
        return tree


def _check_texts(source: Source, attributes: Mapping[str, int]) -> None:
    """Check that the HDF5 library can read the texts in bounded time and memory."""
    longest = {"name": LONGEST_ATTRIBUTE, "dtype": LONGEST_ATTRIBUTE, **attributes}
    if source.content is not None:
        check_texts(source.where, source.content, longest)
    elif os.path.getsize(source.where):
        with (
            open(source.where, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            check_texts(source.where, content, longest)


def _check_visit(source: Source, path: str, item: Any, seen: set[Any], depth: int) -> None:
    """Check that an object is visited for the first time, at a bounded depth."""
    info = import_h5py().h5o.get_info(item.id)
    key = info.addr if hasattr(info, "addr") else info.token
    if key in seen or depth > DEEPEST or len(seen) >= MOST_OBJECTS:
        msg = f"{source.where}: {show(path)} occurs twice, is nested too deeply or exceeds the limit"
        raise FormatError(msg)
    seen.add(key)


def _check_link(source: Source, path: str, group: Any, key: str) -> None:
    """Check that a link is a hard link."""
    link = group.get(key, getlink=True)
    if type(link) is not import_h5py().HardLink:
        msg = f"{source.where}: {show(path)} is a {type(link).__name__}; such links are not followed"
        raise FormatError(msg)


def _text(source: Source, path: str, item: Any, name: str, longest: int = LONGEST_ATTRIBUTE) -> str | None:
    """Return a short text attribute, such as the name of a group."""
    if name not in item.attrs:
        return None
    attribute = item.attrs.get_id(name)
    if attribute.shape != () or attribute.get_storage_size() > longest:
        msg = f"{source.where}: {show(path)} has an attribute {name!r} that is not a short text"
        raise FormatError(msg)
    value = item.attrs[name]
    raw = value if isinstance(value, bytes) else str(value).encode(errors="replace")
    return raw.decode(errors="replace")[:longest]


def _tensor(source: Source, path: str, dataset: Any, budget: _Budget) -> Tensor:
    """Check a dataset, and return it as an unread tensor."""
    h5py, where = import_h5py(), f"{source.where}: {show(path)}"
    plan = dataset.id.get_create_plist()
    if dataset.external or dataset.is_virtual:
        msg = f"{where} is in another file, which is not opened"
        raise FormatError(msg)
    brain = dataset.dtype == np.dtype("V2") and _text(source, path, dataset, "dtype") == "bfloat16"
    if not brain and (dataset.shape is None or dataset.dtype.kind not in "fiub" or dataset.dtype.hasobject):
        return unreadable(f"{where} has unsupported dtype {ascii(str(dataset.dtype))[:80]}")
    filters = {plan.get_filter(k)[0] for k in range(plan.get_nfilters())}
    if filters - _FILTERS:
        return unreadable(f"{where} has unsupported filters {filters}", dataset.shape)
    stored = dataset.id.get_storage_size()
    needed = math.prod(dataset.shape) * dataset.dtype.itemsize
    if needed > max(GROWTH * stored, SMALL) or (
        not filters and needed > stored and plan.get_layout() != h5py.h5d.COMPACT
    ):
        msg = f"{where} has shape {dataset.shape} but only {stored} bytes"
        raise FormatError(msg)
    budget.spend(path, needed)
    dtype = "bfloat16" if brain else _array.dtype_name(dataset.dtype.newbyteorder("="))
    return Tensor(tuple(dataset.shape), dtype, partial(_read, source, path, brain))


def _read(source: Source, path: str, brain: bool) -> np.ndarray:
    """Read one dataset in native byte order; bfloat16 is stored as bytes."""
    with source.open() as file:
        values = np.asarray(file[path][()])
    if not brain:
        return np.asarray(_array.native(values))
    return buffers.as_array(
        source.where, path, np.frombuffer(values.tobytes(), np.uint8), "bfloat16", values.shape
    )
