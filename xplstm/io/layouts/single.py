"""Layouts of one layer and one direction: cells, and separate layers that form a stack.

Each layout is a row of one table: array names, gates as rows or columns, gate order, and state order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from xplstm import _array, _checks
from xplstm._errors import ArgumentError, ShapeError
from xplstm._typing import Array
from xplstm.cells.params import LSTMParams
from xplstm.io import layers
from xplstm.io._contents import Contents, Found
from xplstm.io._written import no_place, options_of, plain
from xplstm.nn._module import Recurrent

# Gates of the parameters of this package, in order.
GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}
ROWS = "rows i, f, g, o"


class Single(NamedTuple):
    """Layout of one layer and direction of a standard LSTM, a GRU or an RNN."""

    name: str
    ih: tuple[str, ...]
    """Names of the input weights: one array for all gates, or one for each gate in `order`."""
    hh: tuple[str, ...]
    """Names of the recurrent weights."""
    biases: tuple[tuple[str, ...], ...]
    """Names of one group of biases, or of two groups to add; a layer without biases has neither."""
    order: str = "ifgo"
    columns: bool = False
    """Whether weights have shape (inputs, outputs) instead of (outputs, inputs)."""
    STATE: tuple[str, str] = ("h", "c")
    SURE: bool = True
    foreign: tuple[str, ...] = ()
    """Names that show another layout."""
    kind: str = "LSTM"
    """Name of the class."""
    paired: bool = False
    """Whether the bias is (2, 3H), for x and for h, if the reset gate scales the product; otherwise (3H,)."""
    tail: bool = False
    """Whether the second group of biases is for the last gate only."""
    also: tuple[Single, ...] = ()
    """Rows for other classes or other names of the same layout."""
    hr: str = ""
    """Name of the weights of an optional projection."""
    forget: float = 0.0
    """Constant that the library adds to the forget gate at every step, in addition to the bias."""
    ends: tuple[str, ...] = ("", ".")
    """Allowed endings of a prefix."""

    @property
    def gates(self) -> str:
        """Order of the gates as text."""
        added = f", {self.forget:g} added to f" if self.forget else ""
        return f"{'columns' if self.columns else 'rows'} {', '.join(self.order)}{added}"

    @property
    def weights(self) -> tuple[str, ...]:
        """All names except the biases."""
        return self.ih + self.hh

    @property
    def ours(self) -> str:
        """Gates of the parameters of this package."""
        return GATES[self.kind]

    def find(self, contents: Contents) -> list[Found]:
        """Find all prefixes with the first input weights and the first recurrent weights."""
        networks: dict[str, Found] = {}
        for row in (*self.also, self):
            for one in row._find(contents):
                shape = contents.tensors[next(n for n in one.names if n.endswith(row.hh[0]))].shape
                fits = row.kind == self.kind or len(row.hh) > 1 or row._has_gates(shape)
                old = networks.get(one.prefix)
                if fits and (old is None or (old.problem and not one.problem)):
                    networks[one.prefix] = one
        return list(networks.values())

    def _has_gates(self, shape: tuple[int, ...]) -> bool:
        """Return whether a recurrent matrix for all gates has the number of gates of this row."""
        sizes = shape if self.columns else shape[::-1]
        return len(sizes) == 2 and sizes[1] == len(self.ours) * sizes[0]

    def row_of(self, network: Recurrent) -> Single:
        """Return the row for the class of a network; the row of the LSTM if there is none."""
        return next((row for row in self.also if row.kind == network._stack.cell.name), self)

    def _find(self, contents: Contents) -> list[Found]:
        networks = []
        for name in contents.tensors:
            prefix, _, _ = name.rpartition(self.ih[0])
            if name != prefix + self.ih[0] or prefix[-1:] not in self.ends:
                continue
            beside = {prefix + other for other in self.foreign}
            if prefix + self.hh[0] in contents.tensors and not beside & contents.tensors.keys():
                networks.append(self._find_layer(contents, prefix))
        return networks

    def to_mapping(self, network: Recurrent) -> dict[str, Array]:
        """Return the arrays by name; several layers get the prefixes ``l0``, ``l0_reverse``, ``l1``, ..."""
        row = self.row_of(network)
        parted = layers.split(plain(network, self.name, row.kind, projected=bool(row.hr)))
        write = partial(row.write, reset_after=network._stack.cell.options().get("reset_after", True))
        if len(parted) == len(parted[0]) == 1:
            return write(parted[0][0])
        return {
            f"l{layer}{suffix}.{name}": a
            for layer, directions in enumerate(parted)
            for suffix, params in zip(("", "_reverse"), directions, strict=False)
            for name, a in write(params).items()
        }

    def read(self, arrays: Mapping[str, Array]) -> LSTMParams:
        """Convert arrays with the names of this layout to the parameters of this package.

        Parameters
        ----------
        arrays : mapping of str to array
            Arrays of one library, device and float dtype.

        Returns
        -------
        LSTMParams
            If there is one bias for each gate, it becomes bias_ih, and bias_hh is zero.

        Raises
        ------
        ArgumentError
            If a name is missing or unknown.
        ShapeError, DTypeError, BackendError
            If an array has the wrong shape, dtype, library or device.
        """
        _checks.mapping("arrays", arrays)
        groups = [group for group in self.biases if arrays.keys() & {*group}]
        projection = [self.hr] if self.hr in arrays else []
        wanted = (*self.weights, *(name for group in groups and self.biases for name in group), *projection)
        _checks.names(arrays, wanted)
        _checks.home(arrays)
        wrong = self._misfit({name: tuple(a.shape) for name, a in arrays.items()})
        if wrong:
            raise ShapeError(wrong)
        weights = [self._gather_gates([arrays[name] for name in names]) for names in (self.ih, self.hh)]
        biases = self._read_biases(arrays) if groups else []
        weight_hr = arrays[self.hr] if projection else None
        if weight_hr is not None and self.columns:
            weight_hr = _array.native(weight_hr).T
        return LSTMParams(*weights, *biases)._replace(weight_hr=weight_hr)

    def _read_biases(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Return bias_ih and bias_hh; a bias that the layout does not have is zero."""
        given = [[arrays[name] for name in names] for names in self.biases]
        if self.paired and given[0][0].ndim == 2:
            given = [[given[0][0][k, :]] for k in range(2)]
        first = self._gather_gates(given[0])
        xp = _array.namespace(first, "bias")
        first = self._shift_forget(xp, first, self.forget)
        if len(given) == 1:
            return [first, xp.zeros_like(first)]
        if self.tail:
            (last,) = given[1]
            return [first, xp.concat([xp.zeros_like(first)[: first.shape[0] - last.shape[0]], last], axis=0)]
        return [first, self._gather_gates(given[1])]

    def _shift_forget(self, xp: Any, bias: Array, by: float) -> Array:
        """Add a number to every unit of the forget gate in a bias."""
        if not by:
            return bias
        i, f, *rest = _blocks(bias, len(self.ours))
        return xp.concat([i, f + xp.full_like(f, by), *rest], axis=0)

    def write(self, params: LSTMParams, reset_after: bool = True) -> dict[str, Array]:
        """Convert the parameters of this package to arrays with the names of this layout.

        If the layout has one bias for each gate, the two biases are added.

        Parameters
        ----------
        params : LSTMParams
            Parameters of a standard LSTM without a projection, or of a GRU.
        reset_after : bool, default True
            Option of the GRU.

        Returns
        -------
        dict of str to array
            Arrays by name.

        Raises
        ------
        ArgumentError
            If `params` has a parameter that the layout does not support.
        """
        known = (*_PLAIN, "weight_hr") if self.hr else _PLAIN
        extra = [name for name, a in params._asdict().items() if a is not None and name not in known]
        if extra:
            msg = f"params has {', '.join(extra)}, which format {self.name!r} does not support"
            raise ArgumentError(msg)
        if not (reset_after or self.paired):
            raise no_place(self.name, "has reset_after=False")
        arrays = self._spread(self.ih, params.weight_ih) | self._spread(self.hh, params.weight_hh)
        if params.weight_hr is not None:
            arrays[self.hr] = params.weight_hr.T if self.columns else params.weight_hr
        if params.bias_ih is None or params.bias_hh is None:
            if self.forget:
                raise no_place(self.name, "has no biases")
            return arrays
        return arrays | self._write_biases(params.bias_ih, params.bias_hh, reset_after)

    def _write_biases(self, bias_ih: Array, bias_hh: Array, reset_after: bool) -> dict[str, Array]:
        xp = _array.namespace(bias_ih, "bias_ih")
        cut = bias_hh.shape[0] // len(self.ours) * (len(self.ours) - 1)
        last = bias_hh[cut:]
        if self.paired and reset_after:
            (name,) = self.biases[0]
            both = [self._spread((name,), bias)[name] for bias in (bias_ih, bias_hh)]
            return {name: xp.stack(both, axis=0)}
        if self.tail:
            summed = bias_ih + xp.concat([bias_hh[:cut], xp.zeros_like(last)], axis=0)
            return self._spread(self.biases[0], summed) | dict(zip(self.biases[1], [last], strict=True))
        if len(self.biases) == 2:
            return self._spread(self.biases[0], bias_ih) | self._spread(self.biases[1], bias_hh)
        if self.kind == "GRU" and reset_after and bool(xp.any(last != 0)):
            raise no_place(self.name, "has a nonzero bias_hh for the gate n")
        return self._spread(self.biases[0], self._shift_forget(xp, bias_ih + bias_hh, -self.forget))

    def _find_layer(self, contents: Contents, prefix: str) -> Found:
        """Return the layer whose names start with `prefix`, which includes a final dot."""
        groups = [group for group in self.biases if any(prefix + name in contents.tensors for name in group)]
        names = (*self.weights, *(name for group in groups and self.biases for name in group))
        if self.hr and prefix + self.hr in contents.tensors:
            names += (self.hr,)
        missing = [name for name in names if prefix + name not in contents.tensors]
        missing += [self.biases[0][0]] if self.forget and not groups else []
        shapes = {name: contents.tensors[prefix + name].shape for name in names if name not in missing}
        problem = f"{missing[0]} is missing" if missing else self._misfit(shapes)
        options: dict[str, Any] = {} if problem else self._sizes(shapes) | {"bias": bool(groups)}
        if self.paired and groups and not problem:
            options["reset_after"] = len(shapes[self.biases[0][0]]) == 2
        if self.kind == "RNN" and not problem:
            options |= options_of(contents, prefix[:-1], self.kind)
        there = tuple(prefix + name for name in names if name not in missing)
        params = partial(self._params, contents, prefix, names)
        # Files of cells with a projection do not contain the clip values.
        undetermined: tuple[str, ...] = ("variant",) if self.hr in shapes else ()
        # Without biases, no shape shows where the reset gate applies.
        undetermined += ("reset_after",) if self.paired and not groups else ()
        undetermined += ("nonlinearity",) if self.kind == "RNN" else ()
        return Found(
            prefix[:-1], self.name, self.kind, options, self.gates, there, params, problem, undetermined
        )

    def _params(self, contents: Contents, prefix: str, names: tuple[str, ...]) -> dict[str, Array]:
        arrays = {name: _array.native(contents.tensors[prefix + name].array()) for name in names}
        return layers.join([self.read(arrays)])

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return input_size, hidden_size and, with a projection, proj_size from valid shapes."""
        inputs = 0 if self.columns else 1
        sizes = {"input_size": shapes[self.ih[0]][inputs], "hidden_size": shapes[self.hh[0]][inputs]}
        if len(shapes.get(self.hr, ())) == 2:
            sizes |= {"hidden_size": shapes[self.hr][inputs], "proj_size": sizes["hidden_size"]}
        return sizes

    def _misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Return a message about the first shape that contradicts the first weights; None if all fit."""
        for name in (self.ih[0], self.hh[0]):
            if len(shapes[name]) != 2 or 0 in shapes[name]:
                return f"{name} has shape {shapes[name]}, expected a matrix"
        sizes = self._sizes(shapes)
        H, outputs = sizes["hidden_size"], sizes.get("proj_size", sizes["hidden_size"])
        if self.hr in shapes and sorted(shapes[self.hr]) != sorted((H, outputs)):
            return f"{self.hr} has shape {shapes[self.hr]}, expected a matrix"
        rows = shapes[self.hh[0]][1 if self.columns else 0]
        gates = len(self.ours)
        if len(self.hh) == 1 and rows in (H, 3 * H) and rows != gates * H:
            whose = "an Elman RNN" if rows == H else "a GRU"
            what = f"that of {whose}, which format {self.name!r} does not have"
            given = f"{self.hh[0]} has shape {shapes[self.hh[0]]}"
            return f"{given}, {what}; an {self.kind} has {gates} * {H}, not {rows}"
        for names, columns in ((self.ih, sizes["input_size"]), (self.hh, outputs)):
            out = H if len(names) > 1 else gates * H
            wanted = (columns, out) if self.columns else (out, columns)
            for name in names:
                if shapes[name] != wanted:
                    return f"{name} has shape {shapes[name]}, expected {wanted} for hidden_size {H}"
        for number, group in enumerate(self.biases):
            each = len(group) > 1 or (self.tail and number == 1)
            wanted_bias = (H,) if each else (gates * H,)
            for name in group:
                fits = shapes.get(name) in (None, wanted_bias, (2, *wanted_bias) if self.paired else None)
                if not fits:
                    return f"{name} has shape {shapes[name]}, expected {wanted_bias} for hidden_size {H}"
        return None

    def _gather_gates(self, arrays: list[Array]) -> Array:
        """Join arrays into one array with the gates as rows, in the order of this package."""
        if self.columns:
            arrays = [a.T if a.ndim == 2 else a for a in arrays]
        if len(arrays) == 1 and self.order == self.ours:
            return arrays[0]
        blocks = arrays if len(arrays) > 1 else _blocks(arrays[0], len(self.ours))
        xp = _array.namespace(blocks[0], "a gate's array")
        return xp.concat([blocks[self.order.index(gate)] for gate in self.ours], axis=0)

    def _spread(self, names: tuple[str, ...], a: Array) -> dict[str, Array]:
        """Convert the rows of `a` from the order of this package to the arrays of this layout."""
        blocks = [_blocks(a, len(self.ours))[self.ours.index(gate)] for gate in self.order]
        if len(names) == 1:
            xp = _array.namespace(a, "a parameter")
            blocks = [a if self.order == self.ours else xp.concat(blocks, axis=0)]
        turned = [block.T if self.columns and block.ndim == 2 else block for block in blocks]
        return dict(zip(names, turned, strict=True))


_PLAIN = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _blocks(a: Array, gates: int) -> list[Array]:
    """Return the rows of each gate."""
    H = a.shape[0] // gates
    return [a[k * H : (k + 1) * H, ...] for k in range(gates)]


def _dense(f: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the names of Flax cells with a dense layer for each gate; `f` names the layer from x to f."""
    return (
        ("ii.kernel", f"{f}.kernel", "ig.kernel", "io.kernel"),
        tuple(f"h{gate}.kernel" for gate in "ifgo"),
        (tuple(f"h{gate}.bias" for gate in "ifgo"),),
    )


TORCH_CELL = Single("torch", ("weight_ih",), ("weight_hh",), (("bias_ih",), ("bias_hh",)), foreign=("bias",))
# Names after dynamic quantisation.
_PACKED_CELL = TORCH_CELL._replace(
    ih=("_packed_weight_ih.weight",),
    hh=("_packed_weight_hh.weight",),
    biases=(("_packed_weight_ih.bias",), ("_packed_weight_hh.bias",)),
)
TORCH_CELL = TORCH_CELL._replace(
    also=(
        *(TORCH_CELL._replace(order=GATES[kind], kind=kind) for kind in ("GRU", "RNN")),
        _PACKED_CELL,
        *(_PACKED_CELL._replace(order=GATES[kind], kind=kind) for kind in ("GRU", "RNN")),
    )
)
EQUINOX = Single("equinox", ("weight_ih",), ("weight_hh",), (("bias",),), foreign=("bias_ih", "bias_hh"))
EQUINOX = EQUINOX._replace(
    also=(EQUINOX._replace(biases=(("bias",), ("bias_n",)), tail=True, order="rzn", kind="GRU"),)
)
FLAX_GRU = Single(
    "flax",
    ("ir.kernel", "iz.kernel", "in.kernel"),
    ("hr.kernel", "hz.kernel", "hn.kernel"),
    (("ir.bias", "iz.bias", "in.bias"), ("hn.bias",)),
    order="rzn",
    columns=True,
    kind="GRU",
    tail=True,
)
NNX_GRU = Single(
    "nnx",
    ("dense_i.kernel",),
    ("dense_h.kernel",),
    (("dense_i.bias",),),
    order="rzn",
    columns=True,
    kind="GRU",
)
FLAX = Single("flax", *_dense("if"), columns=True, STATE=("c", "h"), also=(FLAX_GRU,))
NNX = Single("nnx", *_dense("if_"), columns=True, STATE=("c", "h"), also=(NNX_GRU,))
NNX_OPTIMIZED = Single(
    "nnx_optimized",
    ("dense_i.kernel",),
    ("dense_h.kernel",),
    (("dense_h.bias",),),
    columns=True,
    STATE=("c", "h"),
    also=(NNX_GRU,),
)
# Other libraries use the same names with another gate order.
MLX = Single("mlx", ("Wx",), ("Wh",), (("bias",),), SURE=False)
HASTE = Single(
    "haste", ("kernel",), ("recurrent_kernel",), (("bias",),), order="igfo", columns=True, SURE=False
)
# The cells of AllenNLP have one bias or two.
ALLENNLP = Single(
    "allennlp",
    ("input_linearity.weight",),
    ("state_linearity.weight",),
    (("input_linearity.bias",), ("state_linearity.bias",)),
    hr="state_projection.weight",
)
ALLENNLP = ALLENNLP._replace(
    also=(ALLENNLP._replace(biases=(("state_linearity.bias",),), foreign=("input_linearity.bias",)),)
)
# Gluon names have an underscore after the prefix of a block.
MXNET = Single(
    "mxnet",
    ("i2h_weight",),
    ("h2h_weight",),
    (("i2h_bias",), ("h2h_bias",)),
    ends=("", ".", "_"),
)
MXNET = MXNET._replace(also=(MXNET._replace(order="rzn", kind="GRU"),))
# Chainer's documentation assigns the third matrix to the output gate, but its code to the candidate.
CHAINER = Single(
    "chainer",
    tuple(f"w{k}" for k in range(4)),
    tuple(f"w{k}" for k in range(4, 8)),
    (tuple(f"b{k}" for k in range(4)), tuple(f"b{k}" for k in range(4, 8))),
)
