"""Recurrent cells: the interface of a cell, and one module for the equations of each cell.

Layers, problems and kernels call the methods of their cell. No module outside this folder tests the type of
a cell. A new cell is one module here, and a row in the tables of `nn`, `io` and `spec`.
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
"""The parameters of one layer and direction, in the tuple `Cell.Params` of the cell."""


class Direction(Protocol):
    """The attributes of a problem that a cell reads, for one direction."""

    @property
    def xp(self) -> Namespace:
        """Namespace of the arrays."""

    @property
    def device(self) -> Device:
        """Device of the arrays."""

    @property
    def dtype(self) -> str:
        """Name of the arrays' dtype."""

    @property
    def B(self) -> int:
        """Number of batch entries."""

    @property
    def H(self) -> int:
        """Number of hidden units."""

    @property
    def output_size(self) -> int:
        """Number of features of h."""

    @property
    def noise(self) -> tuple[tuple[int, int], int, int] | None:
        """Key, stream and first time of the random masks, or None without random masks."""


class Sizes(NamedTuple):
    """The sizes that determine the parameter shapes of one layer and direction."""

    input: int
    hidden: int
    projection: int
    """Number of features of a projected h, or 0 without a projection."""
    bias: bool

    @property
    def output(self) -> int:
        """Number of features of h."""
        return self.projection or self.hidden


class Pointwise(NamedTuple):
    """The options of the pointwise step, for kernels that compose the step from options.

    Peepholes are on if the parameters have weight_ch. Layer normalisation is on if the parameters have gains.
    """

    coupled: bool
    activations: tuple[tuple[str, float, float], ...]
    """(name, alpha, beta) of F, G and H, for each direction if the directions differ."""
    gate_clip: float
    """Infinite without a clip, like cell_clip."""
    cell_clip: float
    hold_h: float = 0.0
    """Zoneout probability that a unit of h keeps its previous value. Without noise, the expected value
    is used."""
    hold_c: float = 0.0
    kind: Literal["lstm", "gru", "elman", "reset"] = "lstm"
    """The equations of the step. "gru" and "reset" are GRUs, whose h is also c; with "reset", the reset gate
    scales h before the product. Their gates are the contribution of x to n, r, z, and the contribution of
    h to n. "elman" is an RNN, whose four gates are the quarters of its units; see `Cell.in_four_blocks`."""


class Masks(NamedTuple):
    """The random masks of one direction of a call, for kernels that compose the pointwise step."""

    dropped: Draw | None
    """Recurrent dropout of h in the gates, one mask (B, output_size) for all steps, drawn for time 0."""
    held_h: Draw | None
    """Zoneout masks of h; `xplstm.cells.masks.hold_mask` draws the mask of one time."""
    held_c: Draw | None


class FourBlocks(NamedTuple):
    """The parameters of one layer and direction, arranged as four gates with one block of rows each.

    A matrix has no rows for a gate to which it does not contribute; the biases have four blocks.
    """

    lstm: LSTMParams
    bias_hr: Array | None = None
    """Bias of the projection; an LSTM has no such bias."""


class Equations(Protocol):
    """One step, forward and backward. Axis 0 of every array is the batch."""

    def project_input(self, x: Array, p: Any, /) -> Array:
        """Return the part of the step that does not depend on h; kernels hoist it out of the loop."""
        ...

    def forward(self, xp: Namespace, zx: Array, h: Array, c: Array, p: Any, /) -> tuple[Array, Array, Any]:
        """Run one step from the result of `project_input`, h and c; return h', c' and the residuals."""
        ...

    def backward(self, xp: Namespace, dh: Array, dc: Array, step: Any, p: Any, /) -> tuple[Any, Array, Array]:
        """Return a `StepGradients` and the gradients with respect to h and c, given those of h' and c'."""
        ...

    def gradients(self, xp: Namespace, x: Array, steps: Any, p: Any, /) -> tuple[Array, Any]:
        """Return the gradients with respect to x and the parameters from the joined `StepGradients`."""
        ...

    def trace(self, xp: Namespace, step: Any, p: Any, /) -> tuple[Array, ...]:
        """Return the traced arrays of one step, in the order of `Cell.trace_sizes`."""
        ...


class Cell(ABC):
    """A kind of recurrent cell with its options: immutable, comparable, hashable, without arrays."""

    __slots__ = ()

    name: ClassVar[str]
    """Name of the cell's class in `xplstm.nn`."""
    gates: ClassVar[int]
    """Number of blocks of hidden_size rows in weight_ih, weight_hh and their biases."""
    Params: ClassVar[type[Params]]
    """Tuple type of the parameters of one layer and direction."""
    init: ClassVar[Rule]
    """The default initialisation."""
    output_required: ClassVar[bool] = False
    """Whether every layer has a projection; its class in `nn` calls the size output_size."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Default values of `options`."""

    @property
    def random(self) -> bool:
        """Whether `xplstm.LSTM.vjp` draws random masks inside a step."""
        return False

    @property
    @abstractmethod
    def reason(self) -> str:
        """Why a kernel for the standard LSTM cannot run this cell, or ""."""

    @abstractmethod
    def pointwise(self, problem: Direction) -> Pointwise:
        """Return the options of the pointwise step of `problem`."""

    def masks(self, problem: Direction) -> Masks | None:  # noqa: ARG002 - the signature of every cell
        """Return the random masks of a whole call, or None if the call draws no masks."""
        return None

    def in_four_blocks(self, p: Any) -> FourBlocks:
        """Arrange the parameters as four gates, for a kernel that uses `pointwise`."""
        return FourBlocks(p)

    def from_four_blocks(self, gradients: FourBlocks) -> Any:
        """Convert gradients with respect to the four blocks to gradients with respect to the parameters."""
        return gradients.lstm

    @abstractmethod
    def at(self, problem: Direction) -> Callable[[int], Equations]:
        """Return a function from a time to the equations of `problem`, which has one direction."""

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
        """Return the number of features of c: 0 if h is the whole state."""
        return 0

    @abstractmethod
    def trace_sizes(self, hidden_size: int, output_size: int) -> tuple[int, ...]:
        """Return the number of features of each array that `Equations.trace` returns."""

    def options(self) -> dict[str, Any]:
        """Return the arguments of the class in `xplstm.nn` that describe this cell."""
        return {}

    def direction(self, d: int) -> Cell:  # noqa: ARG002 - the signature of every cell
        """Return the cell of direction `d`."""
        return self
