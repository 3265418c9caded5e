"""A setting that holds for the process, or inside a ``with`` block for that context alone."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Generic, TypeVar

V = TypeVar("V")


class Choice(Generic[V]):
    """One value for the whole process, which a block of the present context can override."""

    def __init__(self, name: str, default: V) -> None:
        self.process_wide = default
        self.local: ContextVar[V] = ContextVar(name)

    def get(self) -> V:
        """Return the innermost block's value, else the process-wide one."""
        return self.local.get(self.process_wide)


class Chosen(Generic[V]):
    """What a ``use_...`` function returns: in force at once; as a block, only inside it.

    Entering the block takes the process-wide change back and makes it local to
    the present thread or task, so that blocks of two threads never meet.
    """

    def __init__(self, choice: Choice[V], value: V) -> None:
        self._choice = choice
        self._value = value
        self._before = choice.process_wide
        self._token: Token[V] | None = None
        choice.process_wide = value

    def __enter__(self) -> V:
        self._choice.process_wide = self._before
        self._token = self._choice.local.set(self._value)
        return self._value

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            self._choice.local.reset(self._token)
            self._token = None
