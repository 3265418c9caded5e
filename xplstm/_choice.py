"""A setting that holds for the process, or inside a ``with`` block for that context alone."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")

# Plain calls can still become a block later; of so many that is remembered.
REMEMBERED = 64


class Held(NamedTuple, Generic[V]):
    """What holds in a context: a block that was entered, or a plain call inside one."""

    chosen: Chosen[V]
    entered: bool


class Choice(Generic[V]):
    """One value for the whole process, which a block of the present context can override."""

    def __init__(self, name: str, default: V) -> None:
        self.default = default
        self.local: ContextVar[tuple[Held[V], ...]] = ContextVar(name, default=())
        self._plain: list[Chosen[V]] = []
        self._lock = threading.Lock()

    def get(self) -> V:
        """Return the innermost block's value, else that of the latest plain call."""
        held = self.local.get()
        if held:
            return held[-1].chosen.value
        plain = self._plain  # replaced, never changed
        return plain[-1].value if plain else self.default

    def enter(self, chosen: Chosen[V]) -> None:
        """Begin a block; what its call did before counts as part of the block."""
        self.take_back(chosen)
        held = self.local.get()
        others = tuple(other for other in held if other.entered or other.chosen is not chosen)
        self.local.set((*others, Held(chosen, entered=True)))

    def leave(self, chosen: Chosen[V]) -> None:
        """End the innermost block of `chosen` and the plain calls inside it; later blocks stay."""
        held = self.local.get()
        starts = [k for k, one in enumerate(held) if one.entered]
        mine = [k for k in starts if held[k].chosen is chosen]
        if not mine:
            msg = "this block was not entered in the present thread or task; leave it where it was entered"
            raise RuntimeError(msg)
        end = next((k for k in starts if k > mine[-1]), len(held))
        self.local.set(held[: mine[-1]] + held[end:])

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

    Python cannot distinguish a call from the start of a block. So a call outside
    every block holds for the process, and entering the block takes that back
    and makes it local to the present thread or task; between the two, for an
    instant, other threads see it. A call inside a block holds to the end of
    that block.
    """

    def __init__(self, choice: Choice[V], value: V) -> None:
        self.value = value
        self._choice = choice
        held = choice.local.get()
        if held:
            choice.local.set((*held, Held(self, entered=False)))
        else:
            choice.add(self)

    def __enter__(self) -> V:
        self._choice.enter(self)
        return self.value

    def __exit__(self, *exc: object) -> None:
        self._choice.leave(self)


threads: Choice[int | None] = Choice("xplstm_threads", None)
"""How many threads the compiled kernel may use; None for automatic."""

kernel: Choice[str | None] = Choice("xplstm_kernel", None)
"""The kernel that is pinned; asked for below the seam too, by training's parts."""
