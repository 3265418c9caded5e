"""Determine by tiny calls which operations a program supports, so that it gets no large request in vain.

A program that answers each tiny call of an operation, dtype and cell as unsupported is not asked again.
"""

from __future__ import annotations

import numpy as np

from spec import gru_calls, sized
from spec.calls import rounded
from spec.gru_calls import gru
from spec.sized import Sized, layer, module
from spec.stdio import Stdio
from spec.subject import Arrays, Config, Unsupported

COTANGENTS = ("dy", "dh_n", "dc_n")
TINY: dict[tuple[str, str], tuple[Sized, ...]] = {
    ("layer", "lstm"): (
        layer(2, 3, 2, 2),
        layer(2, 3, 2, 2, bias=False),
        layer(2, 3, 2, 2, reverse=True),
        layer(2, 3, 2, 2, lengths=[2, 1]),
        layer(2, 3, 2, 2, proj_size=2),
    ),
    ("module", "lstm"): (
        module(2, 3, 2, 2),
        module(2, 3, 2, 2, bias=False),
        module(2, 3, 2, 2, num_layers=2),
        module(2, 3, 2, 2, bidirectional=True),
        module(2, 3, 2, 2, num_layers=2, bidirectional=True),
        module(2, 3, 2, 2, lengths=[2, 1]),
        module(2, 3, 2, 2, proj_size=2),
    ),
    ("module", "gru"): tuple(
        gru(2, 3, 2, 2, reset_after=after, **options)
        for after in (True, False)
        for options in ({}, {"bias": False}, {"num_layers": 2, "bidirectional": True})
    ),
}


class Offered:
    """Program in another process, as a subject of the suite."""

    one_by_one = True
    """No request is sent before the previous one is answered."""

    def __init__(self, program: Stdio) -> None:
        self.program = program
        self.known: dict[tuple[str, str, str], str] = {}
        self.declined: dict[tuple[object, ...], str] = {}

    def describe(self) -> dict[str, str]:
        return self.program.describe()

    def why_unavailable(self) -> str | None:
        return self.program.why_unavailable()

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        dtype = str(next(iter(arrays.values())).dtype)
        kind = (op, dtype, config.get("cell", "lstm"))
        # Profiles have calls of their own, which a program may support alone.
        if not config.keys() & {"profile", "weights"}:
            if kind not in self.known:
                self.known[kind] = self.why_not(*kind)
            if self.known[kind]:
                raise Unsupported(self.known[kind])
        same = (op, dtype, repr(config), *(v.shape for v in arrays.values()))
        if same in self.declined:
            raise Unsupported(self.declined[same])
        try:
            return self.program.call(op, config, arrays)
        except Unsupported as reason:
            self.declined[same] = str(reason)
            raise

    def why_not(self, op: str, dtype: str, cell: str) -> str:
        """Return why every tiny call is unsupported; an empty string if one has another answer."""
        why = ""
        for case in TINY.get((op.removesuffix("_vjp"), cell), ()):
            draw = gru_calls.drawn if cell == "gru" else sized.drawn
            a = rounded(draw(case, np.random.default_rng(0)), dtype)
            given = {n: v for n, v in a.items() if op.endswith("_vjp") or n not in COTANGENTS}
            try:
                self.program.call(op, case.config, given)
            except Unsupported as reason:
                why = str(reason)
            except Exception:
                # A test that makes such a call shows the error.
                return ""
            else:
                return ""
        return why
