"""Initialise parameters. Each rule is a function that returns all arrays of a layer in a dict.

A NumPy generator draws all values in float64 on the host. One seed therefore
gives the same values on every backend.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np

from xplstm import _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]
Seed: TypeAlias = "int | np.random.Generator | None"
Rule: TypeAlias = "Callable[..., dict[str, np.ndarray]]"
F = TypeVar("F", bound="Callable[..., dict[str, np.ndarray]]")

_SECTIONS = """Parameters
----------
shapes : mapping of str to tuple of int
    Name and shape of each parameter, as in the `params` of a layer.
rng : int, numpy.random.Generator or None
    A seed, a generator to draw from, or None for fresh entropy.

Returns
-------
dict of str to numpy.ndarray, float64
    Arrays by name, drawn in the order of `shapes`."""


def _rule(rule: F) -> F:
    """Replace ``{sections}`` in the docstring of a rule by the sections that all rules share."""
    rule.__doc__ = inspect.cleandoc(rule.__doc__ or "").replace("{sections}", _SECTIONS) + "\n"
    return rule


def uniform(shape: Shape, bound: float, rng: Seed = None) -> np.ndarray:
    """Draw from the uniform distribution on [-bound, bound).

    Parameters
    ----------
    shape : tuple of int
        Sizes, each at least 0.
    bound : float
        At least 0, and at most half of the largest float64.
    rng : int, numpy.random.Generator or None
        A seed, a generator to draw from, or None for fresh entropy.

    Returns
    -------
    numpy.ndarray, float64

    Raises
    ------
    DTypeError
        If an argument has the wrong type.
    ArgumentError
        If `bound` or a size is outside its range.

    Examples
    --------
    >>> from xplstm import init
    >>> bool(abs(init.uniform((3, 2), 0.5, rng=0)).max() <= 0.5)
    True
    """
    largest = float(np.finfo(np.float64).max) / 2
    if _values.at_least_zero("bound", bound) > largest:
        msg = f"bound={bound} must be at most {largest}"
        raise ArgumentError(msg)
    return _values.generator("rng", rng).uniform(-bound, bound, _sizes("shape", shape))


def glorot_uniform(shape: Shape, rng: Seed = None) -> np.ndarray:
    """Draw a weight that keeps the variance of signals, forward and backward.

    The values are uniform within ``sqrt(6 / (fan_in + fan_out))`` of zero
    (formula 16 of Glorot and Bengio, "Understanding the difficulty of training
    deep feedforward neural networks", 2010).

    Parameters
    ----------
    shape : (int, int)
        ``(fan_out, fan_in)``, each at least 0. Every weight in this library has this layout.
    rng : int, numpy.random.Generator or None
        A seed, a generator to draw from, or None for fresh entropy.

    Returns
    -------
    numpy.ndarray, float64

    Raises
    ------
    ShapeError
        If `shape` is not two numbers.

    Examples
    --------
    >>> from xplstm import init
    >>> bool(abs(init.glorot_uniform((4, 2), rng=0)).max() <= 1.0)
    True
    """
    fan_out, fan_in = _matrix(shape)
    return uniform(shape, (6 / max(fan_in + fan_out, 1)) ** 0.5, rng)


def orthogonal(shape: Shape, rng: Seed = None) -> np.ndarray:
    """Draw a matrix with orthonormal rows, or orthonormal columns if it has more rows than columns.

    The distribution is uniform. The function factors a matrix of normal values
    into Q and R, and multiplies the columns of Q by the signs of R's diagonal
    (Mezzadri, "How to generate random matrices from the classical compact
    groups", 2007). Orthogonal weights keep the length of a signal through many
    steps (Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics
    of learning in deep linear neural networks", 2014).

    Parameters
    ----------
    shape : (int, int)
        Rows and columns, each at least 0.
    rng : int, numpy.random.Generator or None
        A seed, a generator to draw from, or None for fresh entropy.

    Returns
    -------
    numpy.ndarray, float64

    Raises
    ------
    ShapeError
        If `shape` is not two numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm import init
    >>> w = init.orthogonal((2, 3), rng=0)
    >>> bool(np.allclose(w @ w.T, np.eye(2)))
    True
    """
    rows, columns = _matrix(shape)
    normal = _values.generator("rng", rng).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(normal)
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray(q if rows >= columns else q.T)


@_rule
def lstm_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw every parameter within ``1 / sqrt(hidden_size)`` of zero, as PyTorch does.

    {sections}

    Raises
    ------
    ShapeError
        If no parameter gives the hidden size.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> lstm = xplstm.LSTM(3, 2)
    >>> lstm.initialize(init.lstm_uniform, rng=0)
    """
    shapes = _check_shapes(shapes)
    hidden_size = _hidden_size(shapes)
    rng = _values.generator("rng", rng)
    return {
        name: _neutral(name, shape) if _is_norm(name) else uniform(shape, hidden_size**-0.5, rng)
        for name, shape in shapes.items()
    }


@_rule
def rnn_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw every parameter of an RNN within ``1 / sqrt(hidden_size)`` of zero, as PyTorch does.

    {sections}

    Raises
    ------
    ShapeError
        If there is no ``weight_ih``, whose rows give the hidden size.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> rnn = xplstm.RNN(3, 2)
    >>> rnn.initialize(init.rnn_uniform, rng=0)
    """
    shapes = _check_shapes(shapes)
    rows = [shape[0] for name, shape in shapes.items() if name.startswith("weight_ih") and shape and shape[0]]
    if not rows:
        msg = f"shapes={dict(shapes)} must have a weight_ih with hidden_size rows"
        raise ShapeError(msg)
    rng = _values.generator("rng", rng)
    return {name: uniform(shape, rows[0] ** -0.5, rng) for name, shape in shapes.items()}


@_rule
def gru_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw every parameter of a GRU within ``1 / sqrt(hidden_size)`` of zero, as PyTorch does.

    {sections}

    Raises
    ------
    ShapeError
        If there is no ``weight_hh``, or one is not of shape ``(3H, H)``.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> gru = xplstm.GRU(3, 2)
    >>> gru.initialize(init.gru_uniform, rng=0)
    """
    shapes = _check_shapes(shapes)
    weights = [shape for name, shape in shapes.items() if name.startswith("weight_hh")]
    if not weights or any(len(shape) != 2 or shape[0] != 3 * shape[1] for shape in weights):
        msg = f"shapes={dict(shapes)} must have weight_hh with 3 * hidden_size rows and hidden_size columns"
        raise ShapeError(msg)
    rng = _values.generator("rng", rng)
    return {name: uniform(shape, weights[0][1] ** -0.5, rng) for name, shape in shapes.items()}


@_rule
def rnn_glorot_orthogonal(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw Glorot (Xavier) input weights and orthogonal recurrent weights of an RNN; set biases to 0.

    {sections}

    Raises
    ------
    ShapeError
        If a weight is not a matrix.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> rnn = xplstm.RNN(3, 2)
    >>> rnn.initialize(init.rnn_glorot_orthogonal, rng=0)
    """
    shapes = _check_shapes(shapes)
    rng = _values.generator("rng", rng)

    def first(name: str, shape: Shape) -> np.ndarray:
        if name.startswith("bias"):
            return np.zeros(shape)
        return orthogonal(shape, rng) if name.startswith("weight_hh") else glorot_uniform(shape, rng)

    return {name: first(name, shape) for name, shape in shapes.items()}


def forget_bias(rule: Rule, value: float = 1.0) -> Rule:
    """Return a rule that sets the forget-gate biases of an LSTM to the sum `value`.

    A positive bias opens the forget gate at the start of training, so that c
    persists. Gers, Schmidhuber and Cummins (2000) start the bias above zero.
    Jozefowicz, Zaremba and Sutskever (2015) measure the effect.

    Parameters
    ----------
    rule : callable
        One of this module's rules for an LSTM.
    value : float, default 1.0
        Finite. Has no effect with coupled gates, whose f is 1 - i.

    Returns
    -------
    callable
        ``rule(shapes, rng)``, for `LSTM.initialize`.

    Raises
    ------
    DTypeError
        If `rule` is not callable or `value` is not a number.
    ArgumentError
        If `value` is not finite. The returned rule raises this error if there are no biases.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> lstm = xplstm.LSTM(3, 2)
    >>> lstm.initialize(init.forget_bias(init.lstm_uniform, 2.0), rng=0)
    >>> lstm.params["bias_ih_l0"][2:4].tolist()
    [2.0, 2.0]
    """
    _values.function("rule", rule)
    value = _values.finite("value", value)

    def with_bias(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
        shapes = _check_shapes(shapes)
        H, values = _hidden_size(shapes), rule(shapes, rng)
        biases = [name for name in values if name.startswith(("bias_ih", "bias_hh"))]
        if not biases:
            msg = f"shapes={dict(shapes)} has no bias_ih or bias_hh; forget_bias needs bias=True"
            raise ArgumentError(msg)
        for name in biases:
            values[name][H : 2 * H] = value if name.startswith("bias_ih") else 0.0
        return values

    return with_bias


@_rule
def lstm_glorot_orthogonal(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw Glorot input weights and orthogonal recurrent weights; set the forget-gate bias to 1.

    The rule draws one matrix per gate, because each gate reads all inputs. A
    projection is part of the recurrent path and is orthogonal too. The
    forget-gate entries of ``bias_ih`` are 1, and all other biases are 0
    (recommended by Jozefowicz, Zaremba and Sutskever, "An empirical exploration
    of recurrent network architectures", 2015).

    {sections}

    Raises
    ------
    ShapeError
        If a weight is not a matrix, or does not have ``4 * hidden_size`` rows.

    Examples
    --------
    >>> from xplstm import init
    >>> init.lstm_glorot_orthogonal({"bias_ih_l0": (8,)})["bias_ih_l0"]
    array([0., 0., 1., 1., 0., 0., 0., 0.])
    """
    shapes = _check_shapes(shapes)
    hidden_size = _hidden_size(shapes)
    rng = _values.generator("rng", rng)

    def first(name: str, shape: Shape) -> np.ndarray:
        if _is_norm(name):
            return _neutral(name, shape)
        if name.startswith("weight_ch"):
            return uniform(shape, hidden_size**-0.5, rng)
        if name.startswith("weight_ih"):
            return _per_gate(glorot_uniform, shape, hidden_size, rng)
        if name.startswith("weight_hh"):
            return _per_gate(orthogonal, shape, hidden_size, rng)
        if name.startswith("weight_hr"):
            return orthogonal(shape, rng)
        bias = np.zeros(shape)
        if name.startswith("bias_ih"):
            bias[hidden_size : 2 * hidden_size] = 1.0
        return bias

    return {name: first(name, shape) for name, shape in shapes.items()}


@_rule
def lstm_glorot(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw each gate's weights for h and x together as one Glorot (Xavier) matrix; set biases to 0.

    Two of the source documents recommend this rule for their gate matrices on
    [h, x], of shape (H, H + I). The values are uniform within
    ``sqrt(6 / (2 H + I))`` of zero (formula 16 of Glorot and Bengio,
    "Understanding the difficulty of training deep feedforward neural networks",
    2010, called the normalized initialization there).

    {sections}

    Raises
    ------
    ShapeError
        If a weight is not a matrix, or one of a gate's two weights is missing.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> lstm = xplstm.LSTM(2, 2)
    >>> lstm.initialize(init.lstm_glorot, rng=0)
    >>> bool(abs(lstm.params["weight_hh_l0"]).max() <= 1)
    True
    """
    shapes = _check_shapes(shapes)
    hidden_size = _hidden_size(shapes)
    rng = _values.generator("rng", rng)

    def first(name: str, shape: Shape) -> np.ndarray:
        if name.startswith(("weight_ih", "weight_hh")):
            return uniform(shape, _joined_bound(shapes, name, hidden_size), rng)
        if name.startswith("weight_hr"):
            return glorot_uniform(shape, rng)
        if name.startswith("weight_ch"):
            return uniform(shape, hidden_size**-0.5, rng)
        return _neutral(name, shape)

    return {name: first(name, shape) for name, shape in shapes.items()}


@_rule
def lstm_normal(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw standard normal weights; set biases to 0.

    This rule reproduces two of the source documents, which themselves advise
    against it. With weights of this size, the gates of a wide layer start saturated.

    {sections}

    Raises
    ------
    DTypeError
        If `shapes` is not a mapping of str to tuple of int.

    Examples
    --------
    >>> from xplstm import init
    >>> init.lstm_normal({"bias_hh_l0": (4,)}, rng=0)
    {'bias_hh_l0': array([0., 0., 0., 0.])}
    """
    shapes = _check_shapes(shapes)
    rng = _values.generator("rng", rng)
    return _weights_only(shapes, rng.standard_normal)


@_rule
def lstm_small_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw weights within 1e-4 of zero; set biases to 0.

    This rule reproduces one of the source documents. Every gate starts at about
    0.5 and every candidate at about 0, so early training is slow.

    {sections}

    Raises
    ------
    DTypeError
        If `shapes` is not a mapping of str to tuple of int.

    Examples
    --------
    >>> from xplstm import init
    >>> bool(abs(init.lstm_small_uniform({"weight_ih_l0": (4, 3)})["weight_ih_l0"]).max() <= 1e-4)
    True
    """
    shapes = _check_shapes(shapes)
    rng = _values.generator("rng", rng)
    return _weights_only(shapes, lambda shape: uniform(shape, 1e-4, rng))


def _matrix(shape: Shape) -> tuple[int, int]:
    """Return the rows and columns of `shape`, checked."""
    if not isinstance(shape, tuple | list):
        msg = f"shape={shape!r} must be a tuple, the rows and the columns of a weight"
        raise DTypeError(msg)
    if len(shape) != 2:
        msg = f"shape={tuple(shape)} must have 2 dimensions, the rows and the columns of a weight"
        raise ShapeError(msg)
    rows, columns = shape
    return _values.size("rows", rows, 0), _values.size("columns", columns, 0)


def _sizes(name: str, shape: Any) -> Shape:
    """Return a shape, checked to be a sequence of sizes."""
    return tuple(_values.size(f"{name}[{k}]", n, 0) for k, n in enumerate(_values.items(name, shape)))


def _check_shapes(shapes: Any) -> Shapes:
    """Return the checked names and shapes."""
    return {
        _name(name): _sizes(f"shapes[{name!r}]", shape)
        for name, shape in _values.mapping("shapes", shapes).items()
    }


def _name(name: object) -> str:
    """Return the name of a parameter, checked to be a str."""
    if not isinstance(name, str):
        msg = f"shapes has the name {name!r}, expected a str"
        raise DTypeError(msg)
    return name


def _hidden_size(shapes: Shapes) -> int:
    """Return H, a quarter of the rows of any parameter with four gates."""
    for name, shape in shapes.items():
        if name.startswith("weight_hh"):
            projection = shapes.get(name.replace("weight_hh", "weight_hr"), shape)
            _check_gates(name, shape, _matrix(projection)[1])
    for name, shape in shapes.items():
        gates = name.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        if gates and shape and shape[0] >= 4:
            return shape[0] // 4
    msg = f"shapes={dict(shapes)} must have a parameter with 4 * hidden_size rows, as for an LSTM"
    raise ShapeError(msg)


def _check_gates(name: str, shape: Shape, hidden_size: int) -> None:
    """Raise an error if a recurrent weight does not have four gates, such as the weight of an RNN."""
    if _matrix(shape)[0] != 4 * hidden_size:
        msg = (
            f"{name} has shape {tuple(shape)}, expected {4 * hidden_size} rows for four gates of "
            f"hidden_size={hidden_size}. This rule is for an LSTM; RNN and JordanRNN have the rules rnn_*"
        )
        raise ShapeError(msg)


def _per_gate(
    rule: Callable[[Shape, Seed], np.ndarray], shape: Shape, hidden_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Stack one draw of `rule` for each gate's block of rows."""
    rows, columns = _matrix(shape)
    if rows != 4 * hidden_size:
        msg = f"a weight has {rows} rows, expected {4 * hidden_size} for four gates of {hidden_size=}"
        raise ShapeError(msg)
    return np.concatenate([rule((hidden_size, columns), rng) for _ in range(4)])


def _joined_bound(shapes: Shapes, name: str, hidden_size: int) -> float:
    """Return Glorot's bound for one gate's input and recurrent weights, joined into one matrix."""
    suffix = name[len("weight_ih") :]
    fan_in = 0
    for part in (f"weight_ih{suffix}", f"weight_hh{suffix}"):
        if part not in shapes:
            msg = f"shapes={dict(shapes)} have {name} but not {part}; this rule needs both"
            raise ShapeError(msg)
        fan_in += _matrix(shapes[part])[1]
    return float((6 / (hidden_size + fan_in)) ** 0.5)


def _weights_only(shapes: Shapes, draw: Callable[[Shape], np.ndarray]) -> dict[str, np.ndarray]:
    """Draw the parameters whose name starts with "weight"; set the biases to zero."""
    return {name: draw(s) if name.startswith("weight") else _neutral(name, s) for name, s in shapes.items()}


def _is_norm(name: str) -> bool:
    """Return whether a parameter belongs to a layer normalisation."""
    return name.startswith(("gain_", "bias_c"))


def _neutral(name: str, shape: Shape) -> np.ndarray:
    """Return ones for a scale and zeros for a bias."""
    return np.ones(shape) if name.startswith("gain_") else np.zeros(shape)
