"""Layouts that know one layer and one direction: cells, and layers that are stacked by hand.

Each is a row of the same table: what the arrays are called, whether gates stand in rows or in columns, in
which order, and whether a state begins with h or with c.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from xplstm import _array, _checks
from xplstm._errors import ArgumentError, ShapeError
from xplstm._params import LSTMParams
from xplstm._typing import Array
from xplstm.io import layers
from xplstm.io._contents import Contents, Found
from xplstm.io._written import plain
from xplstm.nn._module import Recurrent

GATES = "ifgo"
ROWS = "rows i, f, g, o"


class Single(NamedTuple):
    """How one layer and direction of a plain LSTM stands in arrays of certain names."""

    name: str
    ih: tuple[str, ...]
    """The weights of x: one array for all gates, or four, in `order`."""
    hh: tuple[str, ...]
    """Those of h."""
    biases: tuple[tuple[str, ...], ...]
    """One group, or two to be added; each is left out wholly in a layer without biases."""
    order: str = GATES
    columns: bool = False
    """Whether weights are (inputs, outputs); else (outputs, inputs)."""
    STATE: tuple[str, str] = ("h", "c")
    SURE: bool = True
    foreign: tuple[str, ...] = ()
    """Names beside which it is another layout."""

    @property
    def gates(self) -> str:
        """How the gates stand, in words."""
        return f"{'columns' if self.columns else 'rows'} {', '.join(self.order)}"

    @property
    def weights(self) -> tuple[str, ...]:
        """All names but the biases."""
        return self.ih + self.hh

    def find(self, contents: Contents) -> list[Found]:
        """Every prefix under which the first weights of x and of h stand."""
        found = []
        for name in contents.tensors:
            prefix, _, _ = name.rpartition(self.ih[0])
            if name != prefix + self.ih[0] or (prefix and not prefix.endswith(".")):
                continue
            beside = {prefix + other for other in self.foreign}
            if prefix + self.hh[0] in contents.tensors and not beside & contents.tensors.keys():
                found.append(self._found(contents, prefix))
        return found

    def to_mapping(self, network: Recurrent) -> dict[str, Array]:
        """One layer and direction under its own names, more under ``l0``, ``l0_reverse``, ``l1`` ..."""
        parted = layers.split(plain(network, self.name))
        if len(parted) == len(parted[0]) == 1:
            return self.write(parted[0][0])
        return {
            f"l{layer}{suffix}.{name}": a
            for layer, directions in enumerate(parted)
            for suffix, params in zip(("", "_reverse"), directions, strict=False)
            for name, a in self.write(params).items()
        }

    def read(self, arrays: Mapping[str, Array]) -> LSTMParams:
        """Our parameters from arrays by their names there.

        Parameters
        ----------
        arrays : mapping of str to array
            Of one library, device and floating dtype.

        Returns
        -------
        LSTMParams
            Where there is one bias a gate, it is bias_ih, and bias_hh is zero.

        Raises
        ------
        ArgumentError
            If a name is missing or unknown.
        ShapeError, DTypeError, BackendError
            Naming the array and what it should be.
        """
        _checks.mapping("arrays", arrays)
        groups = [group for group in self.biases if arrays.keys() & {*group}]
        wanted = (*self.weights, *(name for group in groups and self.biases for name in group))
        _checks.names(arrays, wanted)
        _checks.home(arrays)
        wrong = self._misfit({name: tuple(a.shape) for name, a in arrays.items()})
        if wrong:
            raise ShapeError(wrong)
        weights = [self._gathered([arrays[name] for name in names]) for names in (self.ih, self.hh)]
        biases = [self._gathered([arrays[name] for name in names]) for names in self.biases if groups]
        if len(biases) == 1:
            biases.append(_array.namespace(biases[0], "bias").zeros_like(biases[0]))
        return LSTMParams(*weights, *biases)

    def write(self, params: LSTMParams) -> dict[str, Array]:
        """Arrays by their names there from our parameters; two biases are added where there is place for one.

        Parameters
        ----------
        params : LSTMParams
            Of a plain LSTM without a projection.

        Returns
        -------
        dict of str to array

        Raises
        ------
        ArgumentError
            If `params` has a parameter that the layout has no place for.
        """
        extra = [name for name, a in params._asdict().items() if a is not None and name not in _PLAIN]
        if extra:
            msg = f"params has {', '.join(extra)}, for which format {self.name!r} has no place"
            raise ArgumentError(msg)
        found = self._spread(self.ih, params.weight_ih) | self._spread(self.hh, params.weight_hh)
        if params.bias_ih is None or params.bias_hh is None:
            return found
        both = [params.bias_ih, params.bias_hh]
        for names, bias in zip(
            self.biases, both if len(self.biases) == 2 else [both[0] + both[1]], strict=True
        ):
            found |= self._spread(names, bias)
        return found

    def _found(self, contents: Contents, prefix: str) -> Found:
        """The layer whose names begin with `prefix`, a dot at its end included."""
        groups = [group for group in self.biases if any(prefix + name in contents.tensors for name in group)]
        names = (*self.weights, *(name for group in groups and self.biases for name in group))
        missing = [name for name in names if prefix + name not in contents.tensors]
        shapes = {name: contents.tensors[prefix + name].shape for name in names if name not in missing}
        problem = f"{missing[0]} is missing" if missing else self._misfit(shapes)
        options = {} if problem else self._sizes(shapes) | {"bias": bool(groups)}
        there = tuple(prefix + name for name in names if name not in missing)
        params = partial(self._params, contents, prefix, names)
        return Found(prefix[:-1], self.name, "LSTM", options, self.gates, there, params, problem)

    def _params(self, contents: Contents, prefix: str, names: tuple[str, ...]) -> dict[str, Array]:
        arrays = {name: _array.native(contents.tensors[prefix + name].array()) for name in names}
        return layers.join([self.read(arrays)])

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """input_size and hidden_size of shapes that fit."""
        inputs = 0 if self.columns else 1
        return {"input_size": shapes[self.ih[0]][inputs], "hidden_size": shapes[self.hh[0]][inputs]}

    def _misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What of the shapes is not as the first weights imply."""
        for name in (self.ih[0], self.hh[0]):
            if len(shapes[name]) != 2 or 0 in shapes[name]:
                return f"{name} has shape {shapes[name]}; a matrix was expected"
        sizes = self._sizes(shapes)
        H = sizes["hidden_size"]
        rows = shapes[self.hh[0]][1 if self.columns else 0]
        if len(self.hh) == 1 and rows in (H, 3 * H):
            whose = "a simple network" if rows == H else "a GRU"
            what = f"that of {whose}, of which no single cell is read"
            return f"{self.hh[0]} has shape {shapes[self.hh[0]]}, {what}; an LSTM has 4 * {H}, not {rows}"
        for names, columns in ((self.ih, sizes["input_size"]), (self.hh, H)):
            out = H if len(names) == 4 else 4 * H
            wanted = (columns, out) if self.columns else (out, columns)
            for name in names:
                if shapes[name] != wanted:
                    return f"{name} has shape {shapes[name]}, expected {wanted} for hidden_size {H}"
        for name in (name for group in self.biases for name in group if name in shapes):
            wanted_bias = (H,) if len(self.biases[0]) == 4 else (4 * H,)
            if shapes[name] != wanted_bias:
                return f"{name} has shape {shapes[name]}, expected {wanted_bias} for hidden_size {H}"
        return None

    def _gathered(self, arrays: list[Array]) -> Array:
        """One array with the gates as rows i, f, g, o."""
        if self.columns:
            arrays = [a.T if a.ndim == 2 else a for a in arrays]
        if len(arrays) == 1 and self.order == GATES:
            return arrays[0]
        blocks = arrays if len(arrays) == 4 else _blocks(arrays[0])
        xp = _array.namespace(blocks[0], "a gate's array")
        return xp.concat([blocks[self.order.index(gate)] for gate in GATES], axis=0)

    def _spread(self, names: tuple[str, ...], a: Array) -> dict[str, Array]:
        """The rows i, f, g, o of `a` as this layout has them."""
        blocks = [_blocks(a)[GATES.index(gate)] for gate in self.order]
        if len(names) == 1:
            xp = _array.namespace(a, "a parameter")
            blocks = [a if self.order == GATES else xp.concat(blocks, axis=0)]
        turned = [block.T if self.columns and block.ndim == 2 else block for block in blocks]
        return dict(zip(names, turned, strict=True))


_PLAIN = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _blocks(a: Array) -> list[Array]:
    """The rows of each gate."""
    H = a.shape[0] // len(GATES)
    return [a[k * H : (k + 1) * H, ...] for k in range(len(GATES))]


def _dense(f: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The names of Flax's cells, which have a dense layer a gate; `f` is that from x to the forget gate."""
    return (
        ("ii.kernel", f"{f}.kernel", "ig.kernel", "io.kernel"),
        tuple(f"h{gate}.kernel" for gate in GATES),
        (tuple(f"h{gate}.bias" for gate in GATES),),
    )


TORCH_CELL = Single("torch", ("weight_ih",), ("weight_hh",), (("bias_ih",), ("bias_hh",)), foreign=("bias",))
EQUINOX = Single("equinox", ("weight_ih",), ("weight_hh",), (("bias",),), foreign=("bias_ih", "bias_hh"))
FLAX = Single("flax", *_dense("if"), columns=True, STATE=("c", "h"))
NNX = Single("nnx", *_dense("if_"), columns=True, STATE=("c", "h"))
NNX_OPTIMIZED = Single(
    "nnx_optimized",
    ("dense_i.kernel",),
    ("dense_h.kernel",),
    (("dense_h.bias",),),
    columns=True,
    STATE=("c", "h"),
)
# Others call theirs so too, with the gates in another order.
MLX = Single("mlx", ("Wx",), ("Wh",), (("bias",),), SURE=False)
HASTE = Single(
    "haste", ("kernel",), ("recurrent_kernel",), (("bias",),), order="igfo", columns=True, SURE=False
)
# Chainer's documentation calls the third matrix the output gate's; its code takes it for the candidate's.
CHAINER = Single(
    "chainer",
    tuple(f"w{k}" for k in range(4)),
    tuple(f"w{k}" for k in range(4, 8)),
    (tuple(f"b{k}" for k in range(4)), tuple(f"b{k}" for k in range(4, 8))),
)
