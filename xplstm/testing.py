"""Check gradients against finite differences, and measure the error of quantised weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, DTypeError, GradientError
from xplstm._state import LSTMState
from xplstm._typing import Array, Lengths
from xplstm.kernels import _stored
from xplstm.nn._module import Recurrent
from xplstm.training import _trees
from xplstm.training._trees import Tree

__all__ = [
    "GradientError",
    "GradientReport",
    "GradientRow",
    "QuantisationReport",
    "QuantisationRow",
    "check_grad",
    "quantisation_error",
]

Gradients: TypeAlias = Callable[[Any], dict[str, "Array | None"]]
Run: TypeAlias = Callable[[Mapping[str, Tree]], tuple[tuple[Tree, ...], Gradients]]

# Bound of the rounding error of the sums behind one output, in units of the last place.
ROUNDINGS = 64


class Layer(Protocol):
    """A layer with a method `vjp`, such as `xplstm.LSTM`."""

    def vjp(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs and the pullback."""
        ...


class GradientRow(NamedTuple):
    """Compare the two gradients of one array at the element where they differ most.

    Attributes
    ----------
    name : str
        The argument, such as ``x``, ``state.h`` or ``params.weight_ih_l0``.
    shape : tuple of int
    place : tuple of int
        Index of the element.
    analytic, measured : float
        Gradient from the pullback, and gradient from the finite differences.
    bound : float
        Largest allowed difference.
    """

    name: str
    shape: tuple[int, ...]
    place: tuple[int, ...]
    analytic: float
    measured: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the bound; False for NaN."""
        return abs(self.analytic - self.measured) <= self.bound

    def __str__(self) -> str:
        index = f"[{', '.join(map(str, self.place))}]" if self.place else ""
        verdict = "ok  " if self.passed else "FAIL"
        return (
            f"{verdict} {self.name}{index}: analytic {self.analytic:.9g}, measured {self.measured:.9g}, "
            f"difference {abs(self.analytic - self.measured):.2g}, bound {self.bound:.2g}"
        )


class GradientReport(NamedTuple):
    """Report a gradient check with one row for each array; prints as a table.

    Attributes
    ----------
    rows : tuple of GradientRow
    """

    rows: tuple[GradientRow, ...]

    @property
    def passed(self) -> bool:
        """Whether the gradients of all arrays passed."""
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))


class QuantisationRow(NamedTuple):
    """Measure the error of one quantised layer, compared with the float32 layer.

    Attributes
    ----------
    weights : str
    activations : str or None
        Arguments of `xplstm.LSTM.freeze`.
    nbytes : int
        Bytes of the parameters.
    largest : float
        Largest difference of an element of y.
    relative : float
        Root mean square of the differences of y, divided by the root mean square of y; 0 if y is 0.
    state : float
        Largest difference of an element of the final h and c.
    """

    weights: str
    activations: str | None
    nbytes: int
    largest: float
    relative: float
    state: float

    def __str__(self) -> str:
        stored = self.weights if self.activations is None else f"{self.weights}, {self.activations}"
        return (
            f"{stored:<10} {self.nbytes:>12,} bytes, y: largest {self.largest:.2e}, "
            f"relative {self.relative:.2e}, state: largest {self.state:.2e}"
        )


class QuantisationReport(NamedTuple):
    """Report a quantisation test with one row for each storage of the weights; prints as a table.

    Attributes
    ----------
    rows : tuple of QuantisationRow
    """

    rows: tuple[QuantisationRow, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))


def quantisation_error(
    lstm: Recurrent,
    x: Array,
    state: LSTMState | tuple[Array, Array] | Array | None = None,
    *,
    lengths: Lengths = None,
    mask: Array | None = None,
) -> QuantisationReport:
    """Compare the results of each ``freeze(weights=)`` with the float32 results on the same input.

    Parameters
    ----------
    lstm : LSTM, GRU, RNN or JordanRNN
        Layer with float32 NumPy parameters.
    x, state, lengths, mask
        Arguments of a call of `lstm`; `state` is the initial state. Use a typical input, since the error
        depends on the input.

    Returns
    -------
    QuantisationReport
        One row each for ``"bfloat16"`` and ``"int8"``. If the kernel ``native`` runs the int8 layer, one
        more row each with `activations` in the same storage.

    Raises
    ------
    DTypeError
        If `lstm` is not one of these layers, or not float32.
    ShapeError, BackendError, ArgumentError
        As for a call of `lstm` and of ``lstm.freeze``.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.testing import quantisation_error
    >>> lstm = xplstm.LSTM(64, 128, rng=0)
    >>> x = np.random.default_rng(1).normal(size=(20, 4, 64)).astype("float32")
    >>> for row in quantisation_error(lstm, x).rows:
    ...     print(row.weights, row.nbytes, row.relative < 0.02)
    bfloat16 200704 True
    int8 106496 True
    bfloat16 200704 True
    int8 106496 True
    """
    if not isinstance(lstm, Recurrent):
        msg = f"lstm must be an LSTM, GRU or RNN with its float32 parameters, got {type(lstm).__name__}"
        raise DTypeError(msg)
    network: Any = lstm
    y, end = network(x, state, lengths=lengths, mask=mask)
    rows = []
    ways: list[dict[str, Any]] = [{"weights": storage} for storage in _stored.STORAGES]
    integers = network.freeze(weights="int8").explain(x, state, lengths=lengths, mask=mask)
    if set(integers.kernels) == {"native"}:
        ways += [{"weights": storage, "activations": storage} for storage in _stored.STORAGES]
    for way in ways:
        frozen = network.freeze(**way)
        found, found_end = frozen(x, state, lengths=lengths, mask=mask)
        off = _difference(found, y)
        size = float(np.sqrt(np.sum(_difference(y, 0 * y) ** 2)))
        relative = float(np.sqrt(np.sum(off**2))) / size if size else 0.0
        ends = [_difference(a, b).max(initial=0.0) for a, b in zip(found_end, end, strict=True)]
        largest = float(off.max(initial=0.0))
        stored = way["weights"], way.get("activations")
        rows.append(QuantisationRow(*stored, frozen.nbytes, largest, relative, float(max(ends))))
    return QuantisationReport(tuple(rows))


def _difference(a: Array, b: Array) -> np.ndarray:
    """Return the absolute differences of two arrays in float64."""
    return np.abs(np.subtract(_array.to_numpy(a), _array.to_numpy(b), dtype=np.float64))


def check_grad(
    vjp: Layer | Callable[..., tuple[Any, ...]],
    arguments: Mapping[str, Tree],
    *,
    tolerance: float = 1e-6,
    step: float = 1e-5,
    entries: int | None = None,
    seed: int = 0,
    **options: Any,
) -> GradientReport:
    """Compare a pullback with central differences, element by element.

    The outputs are multiplied by random weights and summed. The measured gradient of an element is the
    change of this sum from ``element - step`` to ``element + step``, divided by twice the step. Each
    element costs two calls of `vjp`, so use small sizes.

    Parameters
    ----------
    vjp : layer or callable
        ``vjp(**arguments, **options)`` returns the outputs, followed by the pullback. The pullback takes
        the gradients with respect to the outputs. It returns the gradients with respect to the arguments
        in their order, as a mapping with their names, or as a single gradient. A layer, such as an
        `xplstm.LSTM`, is also accepted; its ``vjp`` is called and its parameters are checked too. Its
        arguments may be passed in any order, and those without a check as options.
    arguments : mapping of str to array, or to tuple, list or mapping of arrays
        Points at which gradients are checked; float64, of any array library. None stays None.
    tolerance : float, default 1e-6
        Allowed difference, relative to the largest measured gradient of the same array; above 0. The
        bound adds the rounding error of the differences.
    step : float, default 1e-5
        Change of an element, above 0.
    entries : int, optional
        Number of elements of each array to check, chosen at random; at least 1. All if omitted.
    seed : int, default 0
        Seed of the output weights and of the choice of elements; at least 0.
    **options
        Passed to `vjp`, such as ``lengths=`` or a target. For dropout, pass an int as ``rng=``, so that
        every call drops the same elements.

    Returns
    -------
    GradientReport
        One row for each array.

    Raises
    ------
    GradientError
        If a gradient is missing, has the wrong shape, or differs by more than its bound. The message is
        the whole report. The error is also an `AssertionError`.
    DTypeError
        If an array is not float64.
    ArgumentError
        For a value outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.testing import check_grad
    >>> lstm = xplstm.LSTM(3, 2, dtype="float64", rng=0)
    >>> x = np.random.default_rng(1).normal(size=(4, 2, 3))
    >>> check_grad(lstm, {"x": x}, lengths=[4, 1]).passed
    True
    >>> check_grad(lambda x: (x**2, lambda dy: 2.1 * x * dy), {"x": np.ones(2)})
    Traceback (most recent call last):
    xplstm._errors.GradientError: 1 of 1 gradients differ from the finite differences:
    FAIL x[1]: analytic -0.277420213, measured -0.264209727, difference 0.013, bound 2.6e-07
    """
    _values.positive("tolerance", tolerance)
    _values.positive("step", step)
    run, arguments = _open_layer(vjp, arguments, options)
    leaves = dict(_trees.leaves(arguments))
    _check_leaves(leaves)
    rng = np.random.default_rng(_values.size("seed", seed, 0))
    outputs, pullback = run(arguments)
    values = _numbers(outputs)
    weights = {name: rng.standard_normal(a.shape) for name, a in values.items()}
    gradients = pullback(_trees.map_arrays("", outputs, lambda name, a: _move_like(weights[name], a)))
    total = float(sum(np.sum(np.abs(weights[name] * a)) for name, a in values.items()))
    rounding = ROUNDINGS * float(np.finfo(np.float64).eps) * total / step
    rows = []
    for name, a in leaves.items():
        analytic = _gradient(name, a, gradients[name])
        places = _places(a.shape, entries, rng)
        measured = np.asarray(
            [_measure(run, arguments, name, a, place, step, weights) for place in places], dtype=np.float64
        )
        rows.append(_find_worst(name, analytic, measured, places, tolerance, rounding))
    report = GradientReport(tuple(rows))
    if not report.passed:
        failed = sum(not row.passed for row in rows)
        msg = f"{failed} of {len(rows)} gradients differ from the finite differences:\n{report}"
        raise GradientError(msg)
    return report


def _open_layer(
    vjp: Any, arguments: Mapping[str, Tree], options: Mapping[str, Any]
) -> tuple[Run, dict[str, Tree]]:
    """Return a function of all arguments, and the arguments with a layer's parameters."""
    _checks.mapping("arguments", arguments)
    arguments = dict(arguments)
    has_params = hasattr(vjp, "vjp") and hasattr(vjp, "params")
    if not has_params:
        _values.function("vjp", vjp)
    for name in arguments:
        if not isinstance(name, str):
            msg = f"arguments has the key {name!r}, expected a str"
            raise DTypeError(msg)
    if has_params:
        arguments["params"] = dict(vjp.params)

    def run(given: Mapping[str, Tree]) -> tuple[tuple[Tree, ...], Gradients]:
        call, passed = getattr(vjp, "vjp", vjp), dict(given)
        if has_params:
            layer = copy.copy(vjp)
            layer.params = passed.pop("params")
            call = layer.vjp
        outputs, pullback = _split_result(call(**passed, **options))
        order = list(inspect.signature(call).parameters) if has_params else None

        def gradients(douts: Any) -> dict[str, Array | None]:
            return dict(_trees.beside(given, _by_name(pullback(*douts), list(given), order)))

        return tuple(outputs), gradients

    return run, arguments


def _split_result(result: Any) -> tuple[list[Tree], Callable[..., Any]]:
    """Split a result into the outputs and the pullback."""
    if not isinstance(result, tuple | list) or len(result) < 2 or not callable(result[-1]):
        msg = f"vjp returned a {type(result).__name__}, expected the outputs followed by the pullback"
        raise DTypeError(msg)
    return [*result[:-1]], result[-1]


def _by_name(gradients: Tree, names: list[str], order: list[str] | None) -> dict[str, Tree]:
    """Return the results of a pullback by the names of the arguments.

    The pullback of a layer returns gradients in the `order` of its arguments, then those of its parameters.
    """
    if isinstance(gradients, Mapping) and gradients.keys() == {*names}:
        return dict(gradients)
    if order is not None and isinstance(gradients, tuple | list) and len(gradients) >= len(names):
        *inputs, of_params = gradients
        known = sorted((name for name in names[:-1] if name in order), key=order.index)
        # More gradients than names include those of arguments that are options, such as the initial state.
        by_name = dict(zip(order if len(gradients) > len(names) else known, inputs, strict=False))
        return {name: by_name.get(name) for name in names[:-1]} | {names[-1]: of_params}
    if len(names) == 1:
        return {names[0]: gradients}
    if not isinstance(gradients, tuple | list):
        given = type(gradients).__name__
        msg = f"the pullback returned a {given}, expected one gradient each for {', '.join(names)}"
        raise GradientError(msg)
    if len(gradients) != len(names):
        msg = f"the pullback returned {len(gradients)} gradients, expected one each for {', '.join(names)}"
        raise GradientError(msg)
    return dict(zip(names, gradients, strict=True))


def _check_leaves(leaves: Mapping[str, Array]) -> None:
    """Check that all arrays are float64."""
    if not leaves:
        msg = "arguments contain no array, expected at least one to check"
        raise ArgumentError(msg)
    for name, a in leaves.items():
        _array.namespace(a, name)
        if _array.dtype_name(a.dtype) != "float64":
            msg = (
                f"{name} has dtype {_array.dtype_name(a.dtype)}, expected float64. Convert a layer with "
                ".to(dtype='float64'), and pass arguments without a gradient as keyword options"
            )
            raise DTypeError(msg)


def _numbers(outputs: Tree) -> dict[str, np.ndarray]:
    """Return the values of all outputs by name."""
    leaves = _trees.leaves({"": outputs})
    return {name: np.asarray(_array.to_numpy(a), dtype=np.float64) for name, a in leaves}


def _move_like(values: np.ndarray, a: Array) -> Array:
    """Return host values as an array with the library, device and dtype of `a`."""
    return _array.asarray(values, _array.namespace(a, "a"), _array.device(a), _array.dtype_name(a.dtype))


def _gradient(name: str, a: Array, given: Array | None) -> np.ndarray:
    """Return the gradient of one array."""
    if given is None:
        msg = f"the pullback returned no gradient with respect to {name}"
        raise GradientError(msg)
    gradient = np.asarray(_array.to_numpy(given), dtype=np.float64)
    if gradient.shape != tuple(a.shape):
        msg = f"the gradient with respect to {name} has shape {gradient.shape}, expected {tuple(a.shape)}"
        raise GradientError(msg)
    return gradient


def _places(shape: tuple[int, ...], entries: int | None, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Return the indices of the elements to check."""
    places = list(np.ndindex(*shape))
    if entries is None or _values.size("entries", entries) >= len(places):
        return places
    return [places[k] for k in np.sort(rng.choice(len(places), entries, replace=False))]


def _measure(
    run: Run,
    arguments: Mapping[str, Tree],
    name: str,
    a: Array,
    place: tuple[int, ...],
    step: float,
    weights: Mapping[str, np.ndarray],
) -> float:
    """Return the difference quotient at one element."""
    ends, values = [], []
    for signed in (step, -step):
        moved = np.array(_array.to_numpy(a), dtype=np.float64)
        moved[place] += signed
        changed = _trees.with_array(arguments, name, _move_like(moved, a))
        ends.append(_numbers(run(changed)[0]))
        values.append(float(moved[place]))
    up, down = ends
    total = sum(float(np.sum(weight * (up[key] - down[key]))) for key, weight in weights.items())
    return total / (values[0] - values[1])


def _find_worst(
    name: str,
    analytic: np.ndarray,
    measured: np.ndarray,
    places: list[tuple[int, ...]],
    tolerance: float,
    rounding: float,
) -> GradientRow:
    """Return the element with the largest error; a NaN is larger than any number."""
    if not places:
        return GradientRow(name, analytic.shape, (), 0.0, 0.0, rounding)
    at_places = np.asarray([analytic[place] for place in places])
    off = np.abs(at_places - measured)
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    bound = tolerance * float(np.max(np.abs(measured))) + rounding
    return GradientRow(
        name, analytic.shape, places[worst], float(at_places[worst]), float(measured[worst]), bound
    )
