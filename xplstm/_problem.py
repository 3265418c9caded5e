"""The problem that a kernel runs, and the explanation of the kernel selection."""

from __future__ import annotations

from typing import Literal, NamedTuple

from xplstm._typing import Device, Namespace
from xplstm.cells import Cell


class Loan(NamedTuple):
    """Library whose kernels can run on the memory of another library's arrays."""

    xp: Namespace
    backend: str
    device: Device


class Noise(NamedTuple):
    """Key and counters of a variant's random masks."""

    key: tuple[int, int]
    stream: int
    """Index ``layer * D + direction`` of the first direction."""
    start: int
    """Time of the first step."""


class Problem(NamedTuple):
    """A run of one layer with all its directions over a whole sequence.

    The fields decide which kernel runs the problem. They contain no array values.
    """

    xp: Namespace
    backend: str
    device: Device
    dtype: str
    T: int
    B: int
    I: int
    H: int
    proj_size: int
    bias: bool
    reverse: tuple[bool, ...]
    valid: Literal["all", "lengths", "mask"]
    keep: bool
    cell: Cell
    noise: Noise | None = None
    """None if the cell draws no random masks."""
    precision: str | None = None
    """"tf32" if a GPU kernel may compute float32 products in TF32, else None."""
    reproducible: bool = False
    """Whether sums must use the reproducible summation order."""
    weights: str | None = None
    """Storage type of the weight matrices, or None for `dtype`."""
    resets: bool = False
    """Whether `forward` takes one more array, which marks the steps that start from a zero state."""
    activations: str | None = None
    """Type that x and h are rounded to before products with int8 weights, or None for `dtype`."""
    loan: Loan | str = ""
    """Library whose kernels can run on the memory of another library's arrays, or why none can.
    Empty for a library whose memory is never borrowed."""
    dx: bool = True
    """Whether the gradient with respect to x is needed. A kernel may compute it anyway."""

    @property
    def output_size(self) -> int:
        """Number of features of h: P with a projection, else H."""
        return self.proj_size or self.H

    def lend_to(self, backend: str) -> Problem:
        """Return the problem for kernels on arrays of `backend`, with borrowed memory if it is lent."""
        if isinstance(self.loan, str) or self.loan.backend != backend:
            return self
        xp, backend, device = self.loan
        return self._replace(xp=xp, backend=backend, device=device, loan="")

    def part(self, d: int, lo: int, hi: int) -> Problem:
        """Return the problem of one direction, `d`, over the steps ``lo:hi``."""
        noise = self.noise
        if noise is not None:
            noise = Noise(noise.key, noise.stream + d, noise.start + lo)
        cell, reverse = self.cell.direction(d), self.reverse[d : d + 1]
        return self._replace(T=hi - lo, reverse=reverse, cell=cell, noise=noise)


class Explanation(NamedTuple):
    """The kernel that runs each layer, and why each faster kernel does not.

    Attributes
    ----------
    kernels : tuple of str
        One name per layer.
    reasons : tuple of dict of str to str
        For each layer, the name of each faster kernel and the reason why that kernel does not run.
    canonical_sums : bool
        Whether every layer uses the reproducible summation order, so that the bits of
        a batch entry do not depend on the other entries.
    weights : tuple of str
        For each layer of ``freeze(weights=)``, the type in which its kernel reads the weights. Empty for
        other layers.
    proofs : tuple of str
        For each layer, the text of its kernel's proof on the device. Empty if no kernel needs a proof.
    """

    kernels: tuple[str, ...]
    reasons: tuple[dict[str, str], ...]
    canonical_sums: bool
    weights: tuple[str, ...] = ()
    proofs: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for layer, (kernel, reasons) in enumerate(zip(self.kernels, self.reasons, strict=True)):
            lines.append(f"layer {layer}: {kernel}")
            lines += [f"  weights: {read}" for read in self.weights[layer : layer + 1]]
            lines += [
                f"  proof: it {text}; without it another kernel runs, and the results have different bits"
                for text in self.proofs[layer : layer + 1]
                if text
            ]
            lines += [f"  not {name}: {reason}" for name, reason in reasons.items()]
        lines.append(f"reproducible summation order: {'yes' if self.canonical_sums else 'no'}")
        return "\n".join(lines)
