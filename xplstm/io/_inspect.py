"""List the contents of a file as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xplstm._errors import FormatError, printable
from xplstm.io._contents import LONGEST_NAME, Contents, Found, show
from xplstm.io._given import as_path
from xplstm.io._source import (
    Path,
    candidates_in,
    constructor_call,
    determines_layout,
    dtypes_of,
    layouts_of,
    open_source,
    saved_network,
)
from xplstm.io.layouts.reparametrized import resolve


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`; prints as a table.

    Parameters
    ----------
    where, file : str
        Path, and format of the file.
    networks : tuple of tuple of str
        Prefix, format, dtype and constructor call of each network. A network that fits several formats has
        one entry for each.
    tensors : dict of str to tuple
        Shape and dtype of each tensor by name.
    metadata : tuple of str
        Names of the other contents.
    """

    where: str
    file: str
    networks: tuple[tuple[str, str, str, str], ...]
    tensors: dict[str, tuple[tuple[int, ...], str]]
    metadata: tuple[str, ...]

    def __repr__(self) -> str:
        count = f"{len(self.tensors)} tensor{'s' if len(self.tensors) != 1 else ''}"
        lines = [f"{show(self.where, LONGEST_NAME)}: {self.file}, {count}"]
        if self.metadata:
            lines.append(f"metadata: {', '.join(map(show, self.metadata))}")
        networks = [("prefix", "format", "dtype", "network"), *self.networks]
        tensors = [(name, dtype, str(shape)) for name, (shape, dtype) in self.tensors.items()]
        for rows in (networks, [("tensor", "dtype", "shape"), *tensors]):
            lines += ["", *_table(rows)] if len(rows) > 1 else []
        return "\n".join(lines)


def inspect(source: Path | Mapping[str, Any]) -> Inspection:
    """List all networks and tensors in a file or mapping.

    Parameters
    ----------
    source : path, open binary file, bytes, mapping of str to array, or module
        As for `load`.

    Returns
    -------
    Inspection
        Prints as a table. A network that cannot be loaded is listed with the reason.

    Raises
    ------
    FormatError
        If the file is damaged or its format is unknown.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import xplstm.io
    >>> print(xplstm.io.inspect({"encoder": xplstm.LSTM(3, 2, bias=False).params}))
    the mapping: mapping, 2 tensors
    <BLANKLINE>
    prefix   format  dtype    network
    encoder  torch   float32  LSTM(3, 2, bias=False)
    <BLANKLINE>
    tensor                dtype    shape
    encoder.weight_ih_l0  float32  (8, 3)
    encoder.weight_hh_l0  float32  (8, 2)
    """
    with as_path(source) as given:
        contents = open_source(given)
        resolved = resolve(contents)
        candidates = _candidates(resolved)
        sure = {found.prefix for found in candidates if determines_layout(contents, found)}
        rows = [
            (show(one.prefix, LONGEST_NAME) or '""', one.layout, dtypes_of(resolved, one), _describe(one))
            for one in candidates
            if one.prefix not in sure or determines_layout(contents, one)
        ]
        tensors = {show(name, LONGEST_NAME): (t.shape, t.dtype) for name, t in contents.tensors.items()}
        where = contents.where if given is source else f"the {type(source).__name__}"
        return Inspection(where, contents.file, tuple(rows), tensors, tuple(contents.metadata))


def _candidates(contents: Contents) -> list[Found]:
    """Return all networks that could be loaded: first the network that `save` wrote, in only one layout."""
    candidates = candidates_in(contents, layouts_of(contents))
    try:
        saved = saved_network(contents, None, None)
    except FormatError as error:
        return [one._replace(problem=str(error)) for one in candidates]
    first = [] if saved is None else [saved]
    return first + [one for one in candidates if not first or one.prefix != first[0].prefix]


def _describe(one: Found) -> str:
    """Return the constructor call of a network, or why it cannot be loaded."""
    own = f", called with constant {' and '.join(one.arguments)}" if one.arguments else ""
    return printable(one.problem or constructor_call(one) + own)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
