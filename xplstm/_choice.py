"""Settings for the whole process, or for the current context inside a ``with`` block."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")

# A plain call can later be entered as a block. Only this many recent calls are stored for that purpose.
REMEMBERED = 64


class Held(NamedTuple, Generic[V]):
    """A setting of a context: from a block that was entered, or from a plain call inside a block."""

    chosen: Chosen[V]
    entered: bool


class Choice(Generic[V]):
    """One value for the whole process, which a block can override for the current context."""

    def __init__(self, name: str, default: V) -> None:
        self.default = default
        self.local: ContextVar[tuple[Held[V], ...]] = ContextVar(name, default=())
        self._plain: list[Chosen[V]] = []
        self._lock = threading.Lock()

    def get(self) -> V:
        """Return the value of the innermost block, else of the latest plain call, else the default."""
        held = self.local.get()
        return held[-1].chosen.value if held else self.everywhere()

    def everywhere(self) -> V:
        """Return the value outside all blocks."""
        plain = self._plain  # replaced, never changed
        return plain[-1].value if plain else self.default

    def enter(self, chosen: Chosen[V]) -> None:
        """Begin a block, and move the setting of its call from the process into the block."""
        self.take_back(chosen)
        held = self.local.get()
        others = tuple(other for other in held if other.entered or other.chosen is not chosen)
        self.local.set((*others, Held(chosen, entered=True)))

    def leave(self, chosen: Chosen[V]) -> None:
        """End the innermost block of `chosen` and the plain calls inside it; keep later blocks."""
        held = self.local.get()
        starts = [k for k, one in enumerate(held) if one.entered]
        mine = [k for k in starts if held[k].chosen is chosen]
        if not mine:
            msg = "this block was not entered in the current thread or task; leave it where it was entered"
            raise RuntimeError(msg)
        end = next((k for k in starts if k > mine[-1]), len(held))
        self.local.set(held[: mine[-1]] + held[end:])

    def add(self, chosen: Chosen[V]) -> None:
        """Apply `chosen` to the whole process."""
        with self._lock:
            self._plain = [*self._plain[1 - REMEMBERED :], chosen]

    def take_back(self, chosen: Chosen[V]) -> None:
        """Remove `chosen` from the process, and keep all later settings."""
        with self._lock:
            self._plain = [other for other in self._plain if other is not chosen]


class Chosen(Generic[V]):
    """The result of a ``use_...`` function: a setting with effect at once, or inside its block.

    Python cannot distinguish a call from the start of a block. A call outside
    every block therefore sets the value for the process. Entering the block
    removes this setting and applies it only to the current thread or task.
    Other threads see the setting for an instant between the two steps. A call
    inside a block has effect until the end of that block.
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
"""The number of threads that the compiled kernel may use; None for automatic."""

kernel: Choice[str | None] = Choice("xplstm_kernel", None)
"""The name of the pinned kernel, or None. The CUDA kernels for training read it too."""
