"""Initialise parameters: one function a rule, each returns a dict of all arrays of an LSTM.

Everything is drawn in float64 on the host by a NumPy generator, whatever
library the parameters go to, so that one seed gives one set of values on
every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from xplstm import _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]
Seed: TypeAlias = "int | np.random.Generator | None"
Rule: TypeAlias = "Callable[..., dict[str, np.ndarray]]"


def uniform(shape: Shape, bound: float, rng: Seed = None) -> np.ndarray:
    """Draw from the uniform distribution on [-bound, bound).

    Parameters
    ----------
    shape : tuple of int
    bound : float
        At least 0.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    numpy.ndarray, float64

    Raises
    ------
    ArgumentError
        If `bound` is negative.

    Examples
    --------
    >>> from xplstm import init
    >>> bool(abs(init.uniform((3, 2), 0.5, rng=0)).max() <= 0.5)
    True
    """
    bound = _values.in_range("bound", bound, 0, math.inf)
    return _values.generator("rng", rng).uniform(-bound, bound, _sizes("shape", shape))


def glorot_uniform(shape: Shape, rng: Seed = None) -> np.ndarray:
    """Draw a weight whose outputs keep the variance of the inputs, forward and backward.

    Uniform within ``sqrt(6 / (fan_in + fan_out))`` of zero: formula 16 of
    Glorot and Bengio, "Understanding the difficulty of training deep
    feedforward neural networks", 2010.

    Parameters
    ----------
    shape : (int, int)
        ``(fan_out, fan_in)``, the layout of every weight in this library.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

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
    """Draw a matrix with orthonormal rows, or columns where it has more rows than columns.

    Every such matrix is equally likely: the signs of R's diagonal are moved into
    the factor Q of a normal matrix's QR factorisation (Mezzadri, "How to
    generate random matrices from the classical compact groups", 2007). That
    orthogonal weights keep the length of a signal through many steps is shown
    in Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics
    of learning in deep linear neural networks", 2014.

    Parameters
    ----------
    shape : (int, int)
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

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


def lstm_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw every parameter within ``1 / sqrt(hidden_size)`` of zero, as torch does.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_ih_l0: (4H, I)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

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
    shapes = _checked(shapes)
    hidden_size = _hidden_size(shapes)
    rng = _values.generator("rng", rng)
    return {
        name: _neutral(name, shape) if _is_norm(name) else uniform(shape, hidden_size**-0.5, rng)
        for name, shape in shapes.items()
    }


def rnn_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw every parameter of an RNN within ``1 / sqrt(hidden_size)`` of zero, as torch does.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_ih_l0: (H, I)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

    Raises
    ------
    ShapeError
        If there is no ``weight_ih`` that gives the hidden size.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> rnn = xplstm.RNN(3, 2)
    >>> rnn.initialize(init.rnn_uniform, rng=0)
    """
    shapes = _checked(shapes)
    rows = [shape[0] for name, shape in shapes.items() if name.startswith("weight_ih") and shape and shape[0]]
    if not rows:
        msg = f"shapes={dict(shapes)} name no weight_ih with hidden_size rows"
        raise ShapeError(msg)
    rng = _values.generator("rng", rng)
    return {name: uniform(shape, rows[0] ** -0.5, rng) for name, shape in shapes.items()}


def gru_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw every parameter of a GRU within ``1 / sqrt(hidden_size)`` of zero, as torch does.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_hh_l0: (3H, H)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

    Raises
    ------
    ShapeError
        If there is no ``weight_hh`` with three gates of rows.

    Examples
    --------
    >>> import xplstm
    >>> from xplstm import init
    >>> gru = xplstm.GRU(3, 2)
    >>> gru.initialize(init.gru_uniform, rng=0)
    """
    shapes = _checked(shapes)
    weights = [shape for name, shape in shapes.items() if name.startswith("weight_hh")]
    if not weights or any(len(shape) != 2 or shape[0] != 3 * shape[1] for shape in weights):
        msg = f"shapes={dict(shapes)} must have weight_hh with 3 * hidden_size rows and hidden_size columns"
        raise ShapeError(msg)
    rng = _values.generator("rng", rng)
    return {name: uniform(shape, weights[0][1] ** -0.5, rng) for name, shape in shapes.items()}


def rnn_glorot_orthogonal(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw Glorot (Xavier) weights for an RNN, orthogonal ones from h to h; zero biases.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_ih_l0: (H, I)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

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
    shapes = _checked(shapes)
    rng = _values.generator("rng", rng)

    def first(name: str, shape: Shape) -> np.ndarray:
        if name.startswith("bias"):
            return np.zeros(shape)
        return orthogonal(shape, rng) if name.startswith("weight_hh") else glorot_uniform(shape, rng)

    return {name: first(name, shape) for name, shape in shapes.items()}


def forget_bias(rule: Rule, value: float = 1.0) -> Rule:
    """Make a rule whose LSTM remembers at first: the forget gate's biases add up to `value`.

    Gers, Schmidhuber and Cummins (2000) start it above zero; Jozefowicz, Zaremba
    and Sutskever (2015) measure how much it helps.

    Parameters
    ----------
    rule : callable
        One of this module's rules for an LSTM.
    value : float, default 1.0
        Finite. Coupled gates have no use for it: their f is 1 - i.

    Returns
    -------
    callable
        ``rule(shapes, rng)``, as `LSTM.initialize` takes it.

    Raises
    ------
    ArgumentError
        If `value` is not finite, or, when the rule is used, if there are no biases.

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
        shapes = _checked(shapes)
        H, values = _hidden_size(shapes), rule(shapes, rng)
        biases = [name for name in values if name.startswith(("bias_ih", "bias_hh"))]
        if not biases:
            msg = f"shapes={dict(shapes)} have no bias_ih and bias_hh; a forget bias needs bias=True"
            raise ArgumentError(msg)
        for name in biases:
            values[name][H : 2 * H] = value if name.startswith("bias_ih") else 0.0
        return values

    return with_bias


def lstm_glorot_orthogonal(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw Glorot input weights and orthogonal recurrent weights, gate by gate; forget-gate bias 1.

    Each gate's block of rows is a matrix of its own, because each gate reads
    all inputs by itself. A projection is on the recurrent path and is
    orthogonal too. The forget gate's 1 is in ``bias_ih``, all else in the
    biases is 0 (Jozefowicz, Zaremba and Sutskever, "An empirical exploration of
    recurrent network architectures", 2015, on why it should).

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_ih_l0: (4H, I)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

    Raises
    ------
    ShapeError
        If a weight is not a matrix, or its rows are not those of four gates.

    Examples
    --------
    >>> from xplstm import init
    >>> init.lstm_glorot_orthogonal({"bias_ih_l0": (8,)})["bias_ih_l0"]
    array([0., 0., 1., 1., 0., 0., 0., 0.])
    """
    shapes = _checked(shapes)
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


def lstm_glorot(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw each gate's weights for h and x together as one Glorot matrix; zero biases.

    What two of the source documents recommend for their matrices on [h, x], of shape
    (H, H + I): uniform within ``sqrt(6 / (2 H + I))`` of zero, by formula 16 of
    Glorot and Bengio, "Understanding the difficulty of training deep
    feedforward neural networks", 2010, who call it the normalized
    initialization; it is also known as Xavier's.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_ih_l0: (4H, I)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

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
    shapes = _checked(shapes)
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


def lstm_normal(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw standard normal weights; zero biases. Two of the source documents begin so.

    Kept to reproduce them: with weights of this size the gates of a wide layer
    start saturated, and the documents themselves advise against it.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_ih_l0: (4H, I)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

    Examples
    --------
    >>> from xplstm import init
    >>> init.lstm_normal({"bias_hh_l0": (4,)}, rng=0)
    {'bias_hh_l0': array([0., 0., 0., 0.])}
    """
    shapes = _checked(shapes)
    rng = _values.generator("rng", rng)
    return _weights_only(shapes, rng.standard_normal)


def lstm_small_uniform(shapes: Shapes, rng: Seed = None) -> dict[str, np.ndarray]:
    """Draw weights within 1e-4 of zero; zero biases. One of the source documents begins so.

    Kept to reproduce it: every gate starts at one half and every candidate at
    zero, and learning takes long to leave that point.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of the parameters, such as ``weight_ih_l0: (4H, I)``.
    rng : int, numpy.random.Generator or None
        A seed, a generator that is drawn from, or None for fresh entropy.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        The names of `shapes`, in their order, which is the order of drawing.

    Examples
    --------
    >>> from xplstm import init
    >>> bool(abs(init.lstm_small_uniform({"weight_ih_l0": (4, 3)})["weight_ih_l0"]).max() <= 1e-4)
    True
    """
    shapes = _checked(shapes)
    rng = _values.generator("rng", rng)
    return _weights_only(shapes, lambda shape: uniform(shape, 1e-4, rng))


def _matrix(shape: Shape) -> tuple[int, int]:
    """Return `shape` as rows and columns."""
    if not isinstance(shape, tuple | list):
        msg = f"shape={shape!r} must be a tuple, the rows and the columns of a weight"
        raise DTypeError(msg)
    if len(shape) != 2:
        msg = f"shape={tuple(shape)} must have 2 dimensions, the rows and the columns of a weight"
        raise ShapeError(msg)
    rows, columns = shape
    return _values.size("rows", rows, 0), _values.size("columns", columns, 0)


def _sizes(name: str, shape: Any) -> Shape:
    """Return a shape, of sizes that an array can have."""
    return tuple(_values.size(f"{name}[{k}]", n, 0) for k, n in enumerate(_values.items(name, shape)))


def _checked(shapes: Any) -> Shapes:
    """Return names and shapes, checked."""
    return {
        _name(name): _sizes(f"shapes[{name!r}]", shape)
        for name, shape in _values.mapping("shapes", shapes).items()
    }


def _name(name: object) -> str:
    """Return the name of a parameter, which is a str."""
    if not isinstance(name, str):
        msg = f"shapes names {name!r}; a str was expected"
        raise DTypeError(msg)
    return name


def _hidden_size(shapes: Shapes) -> int:
    """H, from the rows of any parameter that has four gates of them."""
    for name, shape in shapes.items():
        if name.startswith("weight_hh"):
            _check_gates(name, shape, shapes.get(name.replace("weight_hh", "weight_hr"), shape)[-1])
    for name, shape in shapes.items():
        gates = name.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        if gates and shape and shape[0] >= 4:
            return shape[0] // 4
    msg = f"shapes={dict(shapes)} name no parameter with the 4 * hidden_size rows of an LSTM's gates"
    raise ShapeError(msg)


def _check_gates(name: str, shape: Shape, hidden_size: int) -> None:
    """Raise an error for a recurrent weight without the rows of four gates, such as that of an RNN."""
    if shape[0] != 4 * hidden_size:
        msg = (
            f"{name} has shape {tuple(shape)}; four gates of hidden_size={hidden_size} have "
            f"{4 * hidden_size} rows. This rule is for an LSTM; those for RNN and JordanRNN begin with rnn_"
        )
        raise ShapeError(msg)


def _per_gate(
    rule: Callable[[Shape, Seed], np.ndarray], shape: Shape, hidden_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Stack one draw of `rule` for each gate's block of rows."""
    rows, columns = _matrix(shape)
    if rows != 4 * hidden_size:
        msg = f"a weight has {rows} rows; four gates of hidden_size={hidden_size} have {4 * hidden_size}"
        raise ShapeError(msg)
    return np.concatenate([rule((hidden_size, columns), rng) for _ in range(4)])


def _joined_bound(shapes: Shapes, name: str, hidden_size: int) -> float:
    """Glorot's bound for the matrix that a weight would be part of if its gate had one on [h, x]."""
    suffix = name[len("weight_ih") :]
    fan_in = 0
    for part in (f"weight_ih{suffix}", f"weight_hh{suffix}"):
        if part not in shapes:
            msg = f"shapes={dict(shapes)} have {name} and not {part}, which count together"
            raise ShapeError(msg)
        fan_in += _matrix(shapes[part])[1]
    return float((6 / (hidden_size + fan_in)) ** 0.5)


def _weights_only(shapes: Shapes, draw: Callable[[Shape], np.ndarray]) -> dict[str, np.ndarray]:
    """Draw what is called a weight; leave the biases at zero."""
    return {name: draw(s) if name.startswith("weight") else _neutral(name, s) for name, s in shapes.items()}


def _is_norm(name: str) -> bool:
    """Whether a parameter belongs to a layer normalisation, which is to change nothing at first."""
    return name.startswith(("gain_", "bias_c"))


def _neutral(name: str, shape: Shape) -> np.ndarray:
    """Ones for a scale, zeros for whatever is added."""
    return np.ones(shape) if name.startswith("gain_") else np.zeros(shape)
