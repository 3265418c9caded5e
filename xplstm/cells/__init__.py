"""Recurrent cells: what the library asks of a cell, and one module for the equations of each.

A layer, a problem and a kernel hold a cell and ask it. No module outside this folder asks which kind of cell
it has. A new cell is one module here, and a row in the tables of `nn`, `io` and `spec`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from xplstm._typing import Array, Device, Namespace
from xplstm.cells.params import LSTMParams

if TYPE_CHECKING:
    from xplstm.cells.masks import Draw
    from xplstm.init import Rule

Params: TypeAlias = Any
"""The parameters of one layer and direction: the tuple `Cell.Params` of its cell."""


class Direction(Protocol):
    """What a cell asks of the problem that a kernel runs, for one direction."""

    @property
    def xp(self) -> Namespace:
        """The array library in use."""

    @property
    def device(self) -> Device:
        """Of the arrays."""

    @property
    def dtype(self) -> str:
        """Name of the arrays' dtype."""

    @property
    def B(self) -> int:
        """Batch entries."""

    @property
    def H(self) -> int:
        """Hidden units."""

    @property
    def output_size(self) -> int:
        """Features of h."""

    @property
    def noise(self) -> tuple[tuple[int, int], int, int] | None:
        """Key, stream and first time of the random masks; None where nothing is random."""


class Sizes(NamedTuple):
    """What the shapes of one layer and direction depend on."""

    input: int
    hidden: int
    projection: int
    """Features of h where it is not the hidden units themselves, else 0."""
    bias: bool

    @property
    def output(self) -> int:
        """Features of h."""
        return self.projection or self.hidden


class Pointwise(NamedTuple):
    """The pointwise step of an LSTM, for kernels that compose it from options.

    Peepholes are on where the parameters have weight_ch, layer normalisation where they have gains.
    """

    coupled: bool
    activations: tuple[tuple[str, float, float], ...]
    """(name, alpha, beta) of F, G and H, of each direction where they differ."""
    gate_clip: float
    """Infinite where there is none, as is cell_clip."""
    cell_clip: float
    hold_h: float = 0.0
    """Of zoneout: the probability that a unit of h keeps its old value; without noise the mean is taken."""
    hold_c: float = 0.0
    kind: Literal["lstm", "gru", "elman", "reset"] = "lstm"
    """Of a GRU h is also c; with "reset" the reset gate scales h before its product. Of an RNN the gates are
    the quarters of its units; see `Cell.in_four_blocks`."""


class Masks(NamedTuple):
    """The random masks of one direction of a call, for kernels that compose the pointwise step."""

    dropped: Array | None
    """The factor of h in the gates at every step, (B, output_size)."""
    held_h: Draw | None
    """Where zoneout keeps the old value; `xplstm.cells.masks.hold_mask` draws one time of it."""
    held_c: Draw | None


class FourBlocks(NamedTuple):
    """The parameters of one layer and direction as those of four gates, each a block of rows."""

    lstm: LSTMParams
    bias_hr: Array | None = None
    """Bias of the projection, which an LSTM does not have."""


class Equations(Protocol):
    """One step, forward and backward. Axis 0 of every array is the batch."""

    def project_input(self, x: Array, p: Any, /) -> Array:
        """Return the part of the step that does not depend on h: the kernel hoists it out of the loop."""
        ...

    def forward(self, xp: Namespace, zx: Array, h: Array, c: Array, p: Any, /) -> tuple[Array, Array, Any]:
        """Run one step from `project_input`, h and c; return h', c' and what `backward` needs."""
        ...

    def backward(self, xp: Namespace, dh: Array, dc: Array, step: Any, p: Any, /) -> tuple[Any, Array, Array]:
        """Take gradients with respect to h' and c' to a `StepGradients` and those with respect to h and c."""
        ...

    def gradients(self, xp: Namespace, x: Array, steps: Any, p: Any, /) -> tuple[Array, Any]:
        """Sum the joined `StepGradients` of all steps: gradients with respect to x and the parameters."""
        ...

    def trace(self, xp: Namespace, step: Any, p: Any, /) -> tuple[Array, ...]:
        """Return what users see of one step, in the order of `Cell.trace_sizes`."""
        ...


class Cell(ABC):
    """A kind of recurrent cell with its options: immutable, comparable, hashable, and of no array library."""

    __slots__ = ()

    name: ClassVar[str]
    """Of its class in `xplstm.nn`."""
    gates: ClassVar[int]
    """Blocks of hidden_size rows in weight_ih, weight_hh and their biases."""
    Params: ClassVar[type[Params]]
    """The tuple of one layer and direction's parameters."""
    init: ClassVar[Rule]
    """The default initialisation."""
    output_required: ClassVar[bool] = False
    """Whether every layer has a projection, which its class in `nn` takes as output_size."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Defaults of `options`."""

    @property
    def random(self) -> bool:
        """Whether `xplstm.LSTM.vjp` draws masks inside its step."""
        return False

    @property
    @abstractmethod
    def reason(self) -> str:
        """Why a kernel of the standard LSTM cannot run it, or nothing."""

    @abstractmethod
    def pointwise(self, problem: Direction) -> Pointwise:
        """Return how a kernel composes the pointwise step of `problem`."""

    def masks(self, problem: Direction) -> Masks | None:  # noqa: ARG002 - the signature of every cell
        """Return what the random masks of a whole call are drawn from, or None where nothing is random."""
        return None

    def in_four_blocks(self, p: Any) -> FourBlocks:
        """Return the parameters as those of four gates, for a kernel that composes `pointwise`."""
        return FourBlocks(p)

    def from_four_blocks(self, gradients: FourBlocks) -> Any:
        """Return gradients with respect to the parameters from those with respect to the four blocks."""
        return gradients.lstm

    @abstractmethod
    def at(self, problem: Direction) -> Callable[[int], Equations]:
        """Return the equations at each time of the only direction of `problem`."""

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of one layer and direction, in the order of `Params`."""
        rows = self.gates * sizes.hidden
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, sizes.input),
            "weight_hh": (rows, sizes.output),
        }
        if sizes.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if sizes.projection:
            shapes["weight_hr"] = (sizes.projection, sizes.hidden)
        return shapes

    def cell_size(self, hidden_size: int) -> int:  # noqa: ARG002 - the signature of every cell
        """Return the features of c: none where h is the whole state."""
        return 0

    @abstractmethod
    def trace_sizes(self, hidden_size: int, output_size: int) -> tuple[int, ...]:
        """Return the features of each array that `Equations.trace` returns."""

    def options(self) -> dict[str, Any]:
        """Return the arguments of its class in `xplstm.nn` that say which cell it is."""
        return {}

    def direction(self, d: int) -> Cell:  # noqa: ARG002 - the signature of every cell
        """Return the cell of direction `d`, where the directions differ."""
        return self
