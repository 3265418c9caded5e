"""The problem that a kernel is asked to run, and the explanation of which kernel runs it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from xplstm._typing import Device, Namespace
from xplstm.cells import Cell


class Noise(NamedTuple):
    """Where the random masks of a variant come from."""

    key: tuple[int, int]
    stream: int
    """Index ``layer * D + direction`` of the first direction."""
    start: int
    """Time of the first step."""


class Problem(NamedTuple):
    """One layer, all its directions, one whole sequence: what a kernel is asked to run.

    Everything that chooses a kernel and nothing that a computation needs the
    values of.
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
    """None where nothing is random."""
    precision: str | None = None
    """What products of float32 may be made in on a GPU: "tf32", or None for float32 alone."""
    reproducible: bool = False
    """Whether sums must have the reproducible summation order."""
    weights: str | None = None
    """What the matrices are stored in where it is not `dtype`."""
    resets: bool = False
    """Whether some steps start from zeros: `forward` then takes one more array, which says where."""
    activations: str | None = None
    """What x and h are rounded to on their way into products with int8 weights; None for `dtype`."""
    why_not_borrowed: str | None = ""
    """Why kernels for NumPy may not run on the memory of another library's arrays, or None where they may.
    Empty where the library's memory is never borrowed."""
    dx: bool = True
    """Whether `backward` is asked for the gradient with respect to x, which a kernel may give anyway."""

    @property
    def output_size(self) -> int:
        """Features of h: P with a projection, else H."""
        return self.proj_size or self.H

    def part(self, d: int, lo: int, hi: int) -> Problem:
        """Return direction `d` alone, over the steps ``lo:hi``."""
        noise = self.noise
        if noise is not None:
            noise = Noise(noise.key, noise.stream + d, noise.start + lo)
        cell, reverse = self.cell.direction(d), self.reverse[d : d + 1]
        return self._replace(T=hi - lo, reverse=reverse, cell=cell, noise=noise)


class Explanation(NamedTuple):
    """Kernel that would run each layer, and why each faster kernel would not.

    Attributes
    ----------
    kernels : tuple of str
        One name a layer.
    reasons : tuple of dict
        For each layer, the reason why each kernel before the selected one cannot run.
    canonical_sums : bool
        Whether every layer has the reproducible summation order, so that the bits of
        a batch entry do not depend on the other entries.
    weights : tuple of str
        For each layer of ``freeze(weights=)``, what its kernel reads the weights as; else empty.
    proofs : tuple of str
        For each layer, what proved its kernel on the device; empty where no kernel needs a proof.
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
                f"  proof: it {text}; without it another kernel runs, and the results have other bits"
                for text in self.proofs[layer : layer + 1]
                if text
            ]
            lines += [f"  not {name}: {reason}" for name, reason in reasons.items()]
        lines.append(f"reproducible summation order: {'yes' if self.canonical_sums else 'no'}")
        return "\n".join(lines)
