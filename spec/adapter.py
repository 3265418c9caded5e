"""Adapt xplstm for each array library and kernel; this is the only file that imports xplstm."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

import xplstm
from spec.subject import Arrays, Config, Refused, Unsupported

PARAMETERS = xplstm.LSTMParams._fields
# All supported entries of a call; any other entry is unsupported.
SIZES = ("input_size", "hidden_size", "num_layers", "proj_size", "bias", "bidirectional", "reverse")
NUMBERS = ("variant", "merge", "input_dropout", "weight_dropout", "noise", "dropout", "profile")
STORED = ("weights", "activations")
STORES = ("module", "numpy", "float32")
OPTIONS = (*SIZES, "lengths", "mask", "reset", *NUMBERS, "cell", "reset_after", "nonlinearity", *STORED)
VARIANT = xplstm.Variant._fields
ARRAYS = (*PARAMETERS, "x", "h_0", "c_0", "dy", "dh_n", "dc_n")


class Library(NamedTuple):
    """Conversions of a NumPy array to an array library and back."""

    module: str
    enter: Callable[[Any, np.ndarray], Any]
    leave: Callable[[Any], np.ndarray]


def as_array(xp: Any, a: np.ndarray) -> Any:
    return xp.asarray(a)


def read_only(_: Any, a: np.ndarray) -> np.ndarray:
    view = a.view()
    view.flags.writeable = False
    return view


def as_tensor(torch: Any, a: np.ndarray) -> Any:
    """Convert through float32 from NumPy's bfloat16, which PyTorch does not support; copy if necessary."""
    if a.dtype.name == "bfloat16":
        return torch.asarray(a.astype("float32")).to(torch.bfloat16)
    return torch.asarray(a if a.flags.writeable and min(a.strides, default=0) >= 0 else a.copy())


def from_tensor(tensor: Any) -> np.ndarray:
    if str(tensor.dtype) == "torch.bfloat16":
        return np.asarray(tensor.float().numpy().astype("bfloat16"))
    return np.asarray(tensor.numpy())


LIBRARIES = {
    "numpy": Library("numpy", as_array, np.asarray),
    "numpy_readonly": Library("numpy", read_only, np.asarray),
    "array_api_strict": Library("array_api_strict", as_array, np.asarray),
    "torch": Library("torch", as_tensor, from_tensor),
    "jax": Library("jax.numpy", as_array, np.asarray),
    "dask": Library("dask.array", as_array, np.asarray),
    "cupy": Library("cupy", as_array, lambda a: a.get()),
}

LONG = 100

# Kernels for the arrays of some libraries; all other kernels are tested with every library.
HOMES = {
    "native": ("numpy", "numpy_readonly", "torch", "jax"),
    "numpy_inplace": ("numpy", "numpy_readonly", "torch", "jax"),
    "cupy_block": ("cupy",),
    "cupy_persistent": ("cupy",),
    "cupy_fused": ("cupy",),
    "cupy_elementwise": ("cupy",),
    "jax_scan": ("jax",),
}


def kernels() -> tuple[str, ...]:
    """Return every kernel by name; with the last kernel pinned, `explain` lists all kernels before it."""
    with xplstm.use_kernel("reference"):
        explanation = xplstm.LSTM(1, 1).explain(np.zeros((1, 1, 1), "float32"))
    return (*explanation.reasons[0], *explanation.kernels)


class FixedKey(np.random.Generator):
    """Generator with the two given words as its next output."""

    def __init__(self, key: list[str]) -> None:
        super().__init__(np.random.PCG64(0))
        self.key = iter([int(word) for word in key])

    def integers(self, *_: Any, **__: Any) -> Any:
        return next(self.key)


class Xplstm:
    """Adapter of xplstm on one array library, with one kernel pinned."""

    UNIT_CELLS: ClassVar[dict[str, Any]] = {"gru": xplstm.GRU, "rnn": xplstm.RNN}
    """Classes of cells whose whole state is h."""

    def __init__(self, library: str, kernel: str) -> None:
        self.library = library
        self.backend = library.removesuffix("_readonly")
        self.kernel = kernel

    def describe(self) -> dict[str, str]:
        return {
            "name": "xplstm",
            "version": xplstm.__version__,
            "library": self.library,
            "kernel": self.kernel,
            "profiles": "exact" if self.adds_in_one_order() else "",
        }

    def adds_in_one_order(self) -> bool:
        """Return whether this kernel states that it uses the summation order of the profile exact."""
        library = LIBRARIES[self.library]
        if self.why_unavailable() is not None:
            return False
        x = library.enter(importlib.import_module(library.module), np.zeros((1, 1, 1), "float32"))
        try:
            with xplstm.use_kernel(self.kernel):
                lstm = xplstm.LSTM(1, 1, xp=self.backend, reproducible=True)
                return lstm.explain(x).canonical_sums
        except xplstm.KernelError:
            return False

    def why_unavailable(self) -> str | None:
        """Return what is missing to run here at all, or None."""
        try:
            with xplstm.use_backend(self.backend):
                return None
        except xplstm.BackendError as error:
            return str(error)

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        cell = config.get("cell", "lstm")
        if cell not in ("lstm", *self.UNIT_CELLS):
            msg = f"xplstm does not offer the cell {cell} here"
            raise Unsupported(msg)
        run = {
            "layer": self.layer,
            "layer_vjp": self.layer_vjp,
            "module": self.module,
            "module_vjp": self.module_vjp,
        }[op]
        run = run if cell == "lstm" else {"module": self.unit_cell, "module_vjp": self.unit_cell_vjp}[op]
        library = LIBRARIES[self.library]
        unknown = [name for name in (*config, *config.get("variant", {})) if name not in (*OPTIONS, *VARIANT)]
        unknown += [name for name in arrays if name.partition("_l")[0] not in ARRAYS]
        if unknown:
            raise Unsupported(f"xplstm does not offer {', '.join(unknown)}")
        if self.library in ("jax", "dask") and len(arrays["x"]) > LONG:
            msg = f"{self.library} without compilation needs milliseconds a step: {LONG} steps at most here"
            raise Unsupported(msg)
        if config.get("weights") and (op, self.backend, str(arrays["x"].dtype)) != STORES:
            msg = "weights are stored in fewer bits for inference of a module, in float32 on NumPy"
            raise Unsupported(msg)
        if config.get("profile") == "exact" and not self.adds_in_one_order():
            msg = f"kernel {self.kernel!r} does not add in the reproducible summation order"
            raise Unsupported(msg)
        with self.settings(), xplstm.use_kernel(self.kernel):
            xp = importlib.import_module(library.module)
            try:
                given = {name: library.enter(xp, a) for name, a in arrays.items()}
            except TypeError as error:
                msg = f"{self.library} has no such numbers: {error}"
                raise Unsupported(msg) from error
            try:
                results = run(config, given)
            except xplstm.KernelError as error:
                raise Unsupported(str(error)) from error
            except xplstm.XplstmError as error:
                raise Refused(
                    "shape" if isinstance(error, xplstm.ShapeError) else "other", str(error)
                ) from error
            if self.library == "dask" and arrays["x"].size:
                # The arrays are computed together, since each alone would be computed from the start. Dask
                # loses tasks of empty arrays here.
                dask = importlib.import_module("dask")
                results = dict(zip(results, dask.compute(*results.values()), strict=True))
            return {name: library.leave(a) for name, a in results.items()}

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Apply the settings of a library: float64 for JAX, the oldest standard version for strict."""
        if self.library == "jax":
            with importlib.import_module("jax").enable_x64(True):
                yield
        elif self.library == "array_api_strict":
            strict = importlib.import_module("array_api_strict")
            with strict.ArrayAPIStrictFlags(
                boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
            ):
                yield
        else:
            yield

    def layer(self, config: Config, arrays: dict[str, Any]) -> dict[str, Any]:
        y, state = xplstm.lstm(*self.arguments(arrays), **self.options(config))
        return {"y": y, "h_n": state.h, "c_n": state.c}

    def layer_vjp(self, config: Config, arrays: dict[str, Any]) -> dict[str, Any]:
        rng = FixedKey(config["noise"]["key"]) if "noise" in config else None
        y, state, pullback = xplstm.lstm_vjp(*self.arguments(arrays), **self.options(config), rng=rng)
        dx, dstate_0, dparams = pullback(arrays["dy"], xplstm.LSTMState(arrays["dh_n"], arrays["dc_n"]))
        gradients = {f"d{name}": getattr(dparams, name) for name in PARAMETERS if name in arrays}
        gradients |= {"dx": dx, "dh_0": dstate_0.h, "dc_0": dstate_0.c}
        return {"y": y, "h_n": state.h, "c_n": state.c, **gradients}

    def module(self, config: Config, arrays: dict[str, Any]) -> dict[str, Any]:
        lstm, x, state = self.built(config, arrays)
        if config.get("weights"):
            stored = lstm.freeze(weights=config["weights"], activations=config.get("activations"))
            y, (h_n, c_n) = stored(x, state, **self.valid(config))
            return {"y": y, "h_n": h_n, "c_n": c_n}
        y, (h_n, c_n) = lstm(x, state, **self.valid(config))
        if config["num_layers"] > 1 or config["bidirectional"]:
            return {"y": y, "h_n": h_n, "c_n": c_n}
        gates = lstm.trace(x, state, **self.valid(config))
        return {"y": y, "h_n": h_n, "c_n": c_n, **{name: getattr(gates, name)[0, ...] for name in "ifgo"}}

    def module_vjp(self, config: Config, arrays: dict[str, Any]) -> dict[str, Any]:
        dy, dstate_n = arrays.pop("dy"), xplstm.LSTMState(arrays.pop("dh_n"), arrays.pop("dc_n"))
        lstm, x, state = self.built(config, arrays)
        noise = config.get("noise") or config.get("dropout")
        rng = FixedKey(noise["key"]) if noise else None
        y, state_n, pullback = lstm.vjp(x, state, **self.valid(config), rng=rng)
        dx, dstate_0, dparams = pullback(dy, dstate_n)
        gradients = {f"d{name}": a for name, a in dparams.items()}
        gradients |= {"dx": dx, "dh_0": dstate_0.h, "dc_0": dstate_0.c}
        return {"y": y, "h_n": state_n.h, "c_n": state_n.c, **gradients}

    def unit_cell(self, config: Config, arrays: dict[str, Any]) -> dict[str, Any]:
        x, h_0 = arrays.pop("x"), arrays.pop("h_0")
        y, h_n = self.unit_cell_of(config, arrays, x)(x, h_0, **self.valid(config))
        return {"y": y, "h_n": h_n}

    def unit_cell_vjp(self, config: Config, arrays: dict[str, Any]) -> dict[str, Any]:
        x, h_0, dy, dh_n = (arrays.pop(name) for name in ("x", "h_0", "dy", "dh_n"))
        y, h_n, pullback = self.unit_cell_of(config, arrays, x).vjp(x, h_0, **self.valid(config))
        dx, dh_0, dparams = pullback(dy, dh_n)
        return {"y": y, "h_n": h_n, "dx": dx, "dh_0": dh_0, **{f"d{n}": a for n, a in dparams.items()}}

    def unit_cell_of(self, config: Config, params: dict[str, Any], x: Any) -> Any:
        """Return a GRU or an Elman RNN with its parameters."""
        names = ("input_size", "hidden_size", "num_layers", "bidirectional", "bias")
        options = ("reset_after", "nonlinearity")
        sizes = {name: config[name] for name in (*names, *options) if name in config}
        dtype: Any = str(x.dtype).rpartition(".")[2]
        made = self.UNIT_CELLS[config["cell"]]
        found = made(**sizes, xp=self.backend, dtype=dtype)
        found.load_state_dict(params)
        if config.get("profile") == "exact" and not found.explain(x).canonical_sums:
            msg = f"kernel {self.kernel!r} does not add in the reproducible summation order"
            raise Unsupported(msg)
        return found

    def built(self, config: Config, arrays: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return the module with its parameters, x and the initial state."""
        x, state = arrays.pop("x"), (arrays.pop("h_0"), arrays.pop("c_0"))
        names = ("input_size", "hidden_size", "num_layers", "bidirectional", "proj_size", "bias")
        sizes = {name: config[name] for name in names if name in config}
        rates: dict[str, Any] = {n: float(config.get(n, 0)) for n in ("input_dropout", "weight_dropout")}
        rates["dropout"] = float(config.get("dropout", {}).get("p", 0))
        dtype: Any = str(x.dtype).rpartition(".")[2]
        merge = config.get("merge", "concat")
        lstm = xplstm.LSTM(
            **sizes,
            **rates,
            merge=merge,
            variant=variant(config),
            xp=self.backend,
            dtype=dtype,
            reproducible=config.get("profile") == "exact",
        )
        lstm.load_state_dict(arrays)
        return lstm, x, state

    def arguments(self, arrays: dict[str, Any]) -> tuple[Any, Any, Any]:
        params = xplstm.LSTMParams(**{name: arrays[name] for name in PARAMETERS if name in arrays})
        return arrays["x"], params, (arrays["h_0"], arrays["c_0"])

    def options(self, config: Config) -> dict[str, Any]:
        given = {"reverse": config["reverse"], "variant": variant(config)}
        given["reproducible"] = config.get("profile") == "exact"
        return given | self.valid(config)

    def valid(self, config: Config) -> dict[str, Any]:
        """Return which steps are valid, and where segments begin, as keywords of a call."""
        given = {
            name: np.asarray(config[name], bool) for name in ("mask", "reset") if config.get(name) is not None
        }
        return given if "mask" in given else given | {"lengths": config.get("lengths")}


def variant(config: Config) -> xplstm.Variant | None:
    """Return the variant of a record for xplstm, with decimals as numbers."""
    if "variant" not in config:
        return None
    given = config["variant"].items()
    options: dict[str, Any] = {name: float(v) if isinstance(v, str) else v for name, v in given}
    if "activations" in options:
        options["activations"] = tuple(
            (name, *map(float, settings)) if settings else name for name, *settings in options["activations"]
        )
    return xplstm.Variant(**options)
