"""Layouts of cells with one matrix, which multiplies the concatenation of x and h.

Each layout is a table row: the `Single` of the two halves of the matrix, and the name of the matrix. Most of
these cells add a constant to the forget gate at every step, which is not part of the bias.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NamedTuple

from xplstm import _array
from xplstm._typing import Array
from xplstm.io._contents import Contents, Found, Tensor
from xplstm.io.layouts.single import Single
from xplstm.nn._module import Recurrent


class Concatenated(NamedTuple):
    """Layout of one layer and direction with one matrix, whose first rows are those of x."""

    halves: Single
    """Layout with the matrix split in two; gates are columns."""
    kernel: str
    """Name of the matrix."""
    is_common: bool = False
    """Whether other layers and cells have the same names: the last part of a prefix distinguishes them."""

    @property
    def STATE(self) -> tuple[str, str]:
        """Order of a state."""
        return self.halves.STATE

    @property
    def SURE(self) -> bool:
        """Whether the names identify the layout."""
        return self.halves.SURE

    def find(self, contents: Contents) -> list[Found]:
        """Return all cells whose matrix is large enough for their gates."""
        halves: dict[str, Tensor] = {}
        for name in contents.tensors:
            prefix = name.removesuffix(self.kernel)
            if prefix != name and prefix[-1:] in ("", ".") and self._is_cell(contents, prefix[:-1]):
                halves |= self._split(contents, prefix)
        found = self.halves.find(contents._replace(tensors=halves))
        ends = {*self.halves.weights}
        return [
            one._replace(names=tuple(dict.fromkeys(self._joint_name(name, ends) for name in one.names)))
            for one in found
        ]

    def to_mapping(self, network: Recurrent) -> dict[str, Array]:
        """Return the arrays by name; several cells get the prefixes ``l0``, ``l0_reverse``, ``l1``, ..."""
        (ih,), (hh,) = self.halves.ih, self.halves.hh
        arrays = self.halves.to_mapping(network)
        for name in [name for name in arrays if name.endswith(ih)]:
            prefix = name.removesuffix(ih)
            parts = [arrays.pop(prefix + part) for part in (ih, hh)]
            xp = _array.namespace(parts[0], name)
            arrays[prefix + self.kernel] = xp.concat(parts, axis=0)
        return arrays

    def _is_cell(self, contents: Contents, prefix: str) -> bool:
        """Return whether a prefix is that of such a cell, by its name or by the caller's layout."""
        last = prefix.rpartition(".")[2]
        named = contents.layout == self.halves.name or "lstm" in last.lower()
        return not self.is_common or (named and not _OTHERS.search(last))

    def _split(self, contents: Contents, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of a cell with the matrix split; empty if the matrix does not fit a cell."""
        kernel = contents.tensors[prefix + self.kernel]
        projection = contents.tensors.get(prefix + self.halves.hr) if self.halves.hr else None
        if len(kernel.shape) != 2 or kernel.shape[1] % 4:
            return {}
        outputs = (
            projection.shape[-1] if projection is not None and projection.shape else kernel.shape[1] // 4
        )
        inputs = kernel.shape[0] - outputs
        if inputs < 1 or not outputs:
            return {}
        others = (name for group in self.halves.biases for name in (*group, self.halves.hr))
        tensors = {
            prefix + name: contents.tensors[prefix + name]
            for name in others
            if prefix + name in contents.tensors
        }
        (ih,), (hh,) = self.halves.ih, self.halves.hh
        for name, rows, start, end in ((ih, inputs, 0, inputs), (hh, outputs, inputs, kernel.shape[0])):
            tensors[prefix + name] = Tensor(
                (rows, kernel.shape[1]), kernel.dtype, partial(_rows, kernel, start, end)
            )
        return tensors

    def _joint_name(self, name: str, ends: set[str]) -> str:
        """Return the name of the tensor that contains a half."""
        half = next((end for end in ends if name.endswith(end)), None)
        return name if half is None else name.removesuffix(half) + self.kernel


def _rows(tensor: Tensor, start: int, end: int) -> Array:
    a: Array = _array.native(tensor.array())[start:end, :]
    return a


def _row(name: str, kernel: str, bias: str, **options: Any) -> Single:
    """Return the table row of a cell with the gates i, g, f, o."""
    row = Single(
        name, (f"{kernel}[x]",), (f"{kernel}[h]",), ((bias,),), order="igfo", columns=True, forget=1.0
    )
    return row._replace(**options)


# LSTMCell, BasicLSTMCell and LSTMBlockCell add 1 by default. Files do not store another value.
# Other TensorFlow cells with similar names have three gates, image axes or their own time scales.
_OTHERS = re.compile("coupled|conv|grid|phased|time_?freq", re.IGNORECASE)
_STATE = ("c", "h")
_TENSORFLOW = _row(
    *("tensorflow", "kernel", "bias"),
    hr="projection.kernel",
    foreign=("recurrent_kernel",),
    SURE=False,
    STATE=_STATE,
)
TENSORFLOW = Concatenated(_TENSORFLOW, "kernel", is_common=True)
_CUDNN = _TENSORFLOW._replace(name="tensorflow_cudnn", forget=0.0)
TENSORFLOW_CUDNN = Concatenated(_CUDNN, "kernel", is_common=True)
ELMO = Concatenated(_row("elmo", "W_0", "B", hr="W_P_0", STATE=_STATE), "W_0")
HAIKU = Concatenated(_row("haiku", "linear.w", "linear.b"), "linear.w", is_common=True)
