"""A setting that holds for the process, or inside a ``with`` block for that context alone."""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token, copy_context
from typing import Generic, TypeVar

V = TypeVar("V")

# Plain calls can still become a block later; of so many that is remembered.
REMEMBERED = 64


class Choice(Generic[V]):
    """One value for the whole process, which a block of the present context can override."""

    def __init__(self, name: str, default: V) -> None:
        self.default = default
        self.local: ContextVar[V] = ContextVar(name)
        self._plain: list[Chosen[V]] = []
        self._lock = threading.Lock()

    def get(self) -> V:
        """Return the innermost block's value, else that of the latest plain call."""
        plain = self._plain  # replaced, never changed
        return self.local.get(plain[-1].value if plain else self.default)

    def add(self, chosen: Chosen[V]) -> None:
        """Let `chosen` hold for the process."""
        with self._lock:
            self._plain = [*self._plain[1 - REMEMBERED :], chosen]

    def take_back(self, chosen: Chosen[V]) -> None:
        """Let the process be as if `chosen` had never held, whatever was chosen since."""
        with self._lock:
            self._plain = [other for other in self._plain if other is not chosen]


class Chosen(Generic[V]):
    """What a ``use_...`` function returns: in force at once; as a block, only inside it.

    Python cannot tell a call from the beginning of a block. So a call outside
    every block holds for the process, and entering the block takes that back
    and makes it local to the present thread or task; between the two, for an
    instant, other threads see it. A call inside a block holds to the end of
    that block.
    """

    def __init__(self, choice: Choice[V], value: V) -> None:
        self.value = value
        self._choice = choice
        self._token: Token[V] | None = None
        if choice.local in copy_context():
            self._token = choice.local.set(value)
        else:
            choice.add(self)

    def __enter__(self) -> V:
        if self._token is None:
            self._choice.take_back(self)
            self._token = self._choice.local.set(self.value)
        return self.value

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            self._choice.local.reset(self._token)
            self._token = None


kernel: Choice[str | None] = Choice("xplstm_kernel", None)
"""The kernel that is pinned; asked for below the seam too, by training's parts."""
