"""The one file that reaches xplstm, by public names only.

An adapter has ``describe()`` and ``call(op, config, arrays)``: NumPy arrays in
and out, time-major, gates i, f, g, o, two biases, (h, c). The operations:

layer
    One layer and direction: arrays x, h_0, c_0 and parameters without suffix;
    gives y, h_n, c_n.
layer_vjp
    The same with dy, dh_n, dc_n among the arrays; gives also d<name> of every
    input.
module
    An LSTM of the sizes in config, parameters named as in ``weight_ih_l0``,
    states (L*D, B, H); gives y, h_n, c_n and, where it can, i, f, g, o.

It raises `Refused` for what the implementation rejects and `Unsupported` for
what it declares not to offer.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import xplstm

Arrays: TypeAlias = dict[str, np.ndarray]
Config: TypeAlias = dict[str, Any]

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class Refused(Exception):
    """The implementation rejected the call; `kind` is "shape" or "other"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Unsupported(Exception):
    """The implementation declares that it does not offer this."""


class Library(NamedTuple):
    """How to bring a NumPy array into an array library and back."""

    module: str
    enter: Callable[[Any, np.ndarray], Any]
    leave: Callable[[Any], np.ndarray]


def as_array(xp: Any, a: np.ndarray) -> Any:
    return xp.asarray(a)


def read_only(_: Any, a: np.ndarray) -> np.ndarray:
    view = a.view()
    view.flags.writeable = False
    return view


LIBRARIES = {
    "numpy": Library("numpy", as_array, np.asarray),
    "numpy_readonly": Library("numpy", read_only, np.asarray),
    "array_api_strict": Library("array_api_strict", as_array, np.asarray),
    "torch": Library("torch", as_array, lambda a: a.numpy()),
    "jax": Library("jax.numpy", as_array, np.asarray),
    "dask": Library("dask.array", as_array, np.asarray),
    "cupy": Library("cupy", as_array, lambda a: a.get()),
}


def kernels() -> tuple[str, ...]:
    """Every kernel by name: pinned to the last resort, `explain` lists all that stand before it."""
    with xplstm.use_kernel("reference"):
        explanation = xplstm.LSTM(1, 1).explain(np.zeros((1, 1, 1), "float32"))
    return (*explanation.reasons[0], *explanation.kernels)


class Adapter:
    """xplstm on one array library, with one kernel pinned."""

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
        }

    def why_unavailable(self) -> str | None:
        """Say what is missing to run here at all, or None."""
        try:
            with xplstm.use_backend(self.backend):
                return None
        except xplstm.BackendError as error:
            return str(error)

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        run = {"layer": self.layer, "layer_vjp": self.layer_vjp, "module": self.module}.get(op)
        if run is None:
            msg = f"operation {op!r}"
            raise Unsupported(msg)
        library = LIBRARIES[self.library]
        with self.settings(), xplstm.use_kernel(self.kernel):
            xp = importlib.import_module(library.module)
            given = {name: library.enter(xp, a) for name, a in arrays.items()}
            try:
                results = run(config, given)
            except xplstm.KernelError as error:
                raise Unsupported(str(error)) from error
            except xplstm.XplstmError as error:
                raise Refused(
                    "shape" if isinstance(error, xplstm.ShapeError) else "other", str(error)
                ) from error
            return {name: library.leave(a) for name, a in results.items()}

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """What a library needs to be told: double precision for JAX, the least common ground for strict."""
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
        y, state, pullback = xplstm.lstm_vjp(*self.arguments(arrays), **self.options(config))
        dx, dstate_0, dparams = pullback(arrays["dy"], xplstm.LSTMState(arrays["dh_n"], arrays["dc_n"]))
        gradients = {f"d{name}": getattr(dparams, name) for name in PARAMETERS if name in arrays}
        gradients |= {"dx": dx, "dh_0": dstate_0.h, "dc_0": dstate_0.c}
        return {"y": y, "h_n": state.h, "c_n": state.c, **gradients}

    def module(self, config: Config, arrays: dict[str, Any]) -> dict[str, Any]:
        x, state = arrays.pop("x"), (arrays.pop("h_0"), arrays.pop("c_0"))
        dtype = str(x.dtype).rpartition(".")[2]
        lstm = xplstm.LSTM(**config, xp=self.backend, dtype=dtype)
        lstm.load_state_dict(arrays)
        y, (h_n, c_n) = lstm(x, state)
        gates = lstm.trace(x, state)
        shown = {name: getattr(gates, name)[0, ...] for name in "ifgo"} if config["num_layers"] == 1 else {}
        return {"y": y, "h_n": h_n, "c_n": c_n, **shown}

    def arguments(self, arrays: dict[str, Any]) -> tuple[Any, Any, Any]:
        params = xplstm.LSTMParams(**{name: arrays[name] for name in PARAMETERS if name in arrays})
        return arrays["x"], params, (arrays["h_0"], arrays["c_0"])

    def options(self, config: Config) -> dict[str, Any]:
        return {"lengths": config["lengths"], "reverse": config["reverse"]}
