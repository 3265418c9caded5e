"""Tasks of a classifier: one of several classes, several labels, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np

from xplstm import _array, _checks, _values, losses
from xplstm._checks import Home
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._typing import Array
from xplstm.cells.activations import sigmoid
from xplstm.nn import _blocks

TaskName: TypeAlias = Literal["multiclass", "multilabel", "regression"]
TASKS = ("multiclass", "multilabel", "regression")
GAPS = "a prediction needs finite features and parameters; fill or drop gaps"


class Task(NamedTuple):
    """Loss, predictions and probabilities from logits."""

    name: str
    class_weights: tuple[float, ...] | None
    label_smoothing: float

    @classmethod
    def of(cls, name: Any, class_weights: Any, label_smoothing: Any, count: int) -> Self:
        """Check the options of a model with `count` outputs."""
        name = _values.one_of("task", name, TASKS)
        smoothing = _values.probability("label_smoothing", label_smoothing)
        if smoothing and name != "multiclass":
            msg = f"label_smoothing={smoothing} needs task='multiclass', got task={name!r}"
            raise ArgumentError(msg)
        if class_weights is None:
            return cls(name, None, smoothing)
        if name == "regression":
            msg = "class_weights need task='multiclass' or 'multilabel', got task='regression'"
            raise ArgumentError(msg)
        return cls(name, _weights(class_weights, count), smoothing)

    def loss(
        self, home: Home, logits: Array, targets: Array, mask: Array | None, weights: Array | None = None
    ) -> tuple[Array, Callable[..., Array]]:
        """Return the mean loss, and the function that returns its gradient with respect to the logits."""
        xp = _array.namespace(targets, "targets")
        shape = tuple(logits.shape[:-1] if self.name == "multiclass" else logits.shape)
        if tuple(targets.shape) != shape:
            msg = f"targets has shape {tuple(targets.shape)}, expected {shape} as in the logits; "
            msg += "x is (T, B, I), or (T, B) for ids"
            raise ShapeError(msg)
        options: Any = {"mask": mask, "weights": weights}
        if self.name == "multiclass":
            options |= {"class_weights": self._on(home), "label_smoothing": self.label_smoothing}
            return losses.softmax_cross_entropy(logits, targets, **options)
        if self.name == "regression":
            return losses.mse(logits, _checks.array("targets", targets, home, shape), **options)
        if not xp.isdtype(targets.dtype, "real floating"):
            targets = _array.narrow(targets, home.dtype)
        targets = _checks.array("targets", targets, home, shape)
        return losses.binary_cross_entropy(logits, targets, positive_weights=self._on(home), **options)

    def predict(self, logits: Array) -> Array:
        """Return the most probable class, the labels with a probability above 0.5, or the numbers."""
        if _blocks.is_dask(logits):
            dtype = {"multiclass": np.int64, "multilabel": np.bool_}.get(self.name, logits.dtype)
            return _blocks.on_last_axis(self.predict, logits, dtype, keep=self.name != "multiclass")
        _checks.finite("logits", logits, GAPS)
        if self.name == "multiclass":
            return _array.namespace(logits, "logits").argmax(logits, axis=-1)
        return logits > 0 if self.name == "multilabel" else logits

    def probabilities(self, logits: Array) -> Array:
        """Return the probability of each class or label."""
        if self.name == "regression":
            msg = "task='regression' has no probabilities; call predict"
            raise ArgumentError(msg)
        if _blocks.is_dask(logits):
            return _blocks.on_last_axis(self.probabilities, logits, logits.dtype, keep=True)
        _checks.finite("logits", logits, GAPS)
        xp, z = _array.namespace(logits, "logits"), _array.widen(logits)
        if self.name == "multilabel":
            return _array.narrow(sigmoid(xp, z), _array.dtype_name(logits.dtype))
        shares = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
        p = shares / xp.sum(shares, axis=-1, keepdims=True)
        return _array.narrow(p, _array.dtype_name(logits.dtype))

    def _on(self, home: Home) -> Array | None:
        """Return the class weights on the device of the parameters."""
        if self.class_weights is None:
            return None
        dtype = "float64" if home.dtype == "float64" else "float32"
        return _array.asarray(np.asarray(self.class_weights), home.xp, home.device, dtype)


def _weights(given: Sequence[float] | np.ndarray, count: int) -> tuple[float, ...]:
    """Return the checked weights of `count` classes, at least one of which is above 0."""
    items = _values.items("class_weights", given)
    if len(items) != count:
        msg = f"class_weights has {len(items)} elements, expected {count}, one for each class"
        raise ShapeError(msg)
    numbers = tuple(_values.finite(f"class_weights[{k}]", w) for k, w in enumerate(items))
    if min(numbers) < 0 or not any(numbers):
        msg = f"class_weights={list(numbers)} must be at least 0, with at least one above 0"
        raise ArgumentError(msg)
    return numbers


def check_features(name: str, x: Array) -> None:
    """Check that features are floats."""
    kind = _array.dtype_name(x.dtype) if hasattr(x, "dtype") else ""
    if kind.startswith(("int", "uint")):
        msg = (
            f"{name} has dtype {kind}, expected features of a float dtype. For token ids, create the model "
            "with input_size=None and vocab_size="
        )
        raise DTypeError(msg)
