"""Show parameters as a table in text or HTML, and results with arrays in one line."""

from __future__ import annotations

import html
import math
import reprlib
from collections.abc import Sequence
from typing import Any, ClassVar

Row = tuple[str, str, int]


class Summary:
    """A base class that counts parameters and lists them in a table."""

    _columns: ClassVar[tuple[str, str, str]] = ("name", "shape", "parameters")

    def _rows(self) -> Sequence[Row]:
        """Return a name, a description and a count for each line of the table."""
        return ()

    @property
    def num_parameters(self) -> int:
        """Number of elements of all parameters."""
        return sum(count for *_, count in self._rows())

    def summary(self) -> str:
        """Return a table of the parameters as text.

        Returns
        -------
        str
            The ``repr``, one line per parameter or part, and the total.

        Examples
        --------
        >>> import xplstm
        >>> print(xplstm.Linear(3, 2).summary())
        Linear(3, 2)
        name    shape   parameters
        weight  (2, 3)           6
        bias    (2,)             2
        total                    8
        """
        rows = [(name, what, f"{count:,}") for name, what, count in self._rows()]
        lines = [self._columns, *rows, ("total", "", f"{self.num_parameters:,}")]
        first, second, third = (max(len(line[k]) for line in lines) for k in range(3))
        table = [f"{a:<{first}}  {b:<{second}}  {c:>{third}}" for a, b, c in lines]
        return "\n".join([repr(self), *table])

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        rows = [(name, what, f"{count:,}") for name, what, count in self._rows()]
        lines = [*rows, ("total", "", f"{self.num_parameters:,}")]
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self._columns)
        body = "".join(
            f'<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td><td align="right">{c}</td></tr>'
            for a, b, c in lines
        )
        return (
            f"<table><caption><code>{html.escape(repr(self))}</code></caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def shape_rows(shapes: dict[str, tuple[int, ...]]) -> list[Row]:
    """Return a line for each parameter of these shapes."""
    return [(name, str(shape), math.prod(shape)) for name, shape in shapes.items()]


class _Brief(reprlib.Repr):
    """Show larger arrays as dtype and shape, and the first items of a container."""

    def __init__(self) -> None:
        super().__init__()
        self.maxdict = self.maxlist = self.maxtuple = 3
        self.maxstring = self.maxother = 1000

    def repr1(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple) and hasattr(x, "dtype") and (len(shape) > 1 or math.prod(shape) > 6):
            return f"{str(x.dtype).removeprefix('torch.')}[{', '.join(map(str, shape))}]"
        return super().repr1(x, level)


def brief(self: Any) -> str:
    """Return the ``repr`` of a named tuple with arrays in one short line."""
    fields = (f"{name}={_BRIEF.repr(a)}" for name, a in zip(self._fields, self, strict=True))
    return f"{type(self).__name__}({', '.join(fields)})"


_BRIEF = _Brief()
