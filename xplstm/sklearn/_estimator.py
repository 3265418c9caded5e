"""Common base class of both estimators: input, scaling, training and saving."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import (
    _check_feature_names,
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from xplstm import _array, _values, optim, training
from xplstm._errors import ArgumentError, DTypeError, FormatError, ShapeError
from xplstm.io._models import load_model, save_model
from xplstm.io.files import safetensors
from xplstm.models import Ragged, SequenceClassifier
from xplstm.models._forecast_roles import mean_and_deviation
from xplstm.sklearn._saved import plain, unplain
from xplstm.sklearn._sequences import Sequences, is_table, sequences_of, time_first, without_names

METADATA = "xplstm.sklearn"
PREDICTED_AT_ONCE = 256


class SequenceEstimator(BaseEstimator):  # type: ignore[misc]
    """Base class of the estimators: input, scaling, training and saving."""

    model_: SequenceClassifier
    _fitted: tuple[str, ...] = ("mean_", "scale_", "of_table_", "n_features_in_")
    """Attributes that ``fit`` sets, apart from the model and its history."""

    def _keep(self, given: Mapping[str, Any]) -> None:
        """Store the parameters unchanged; ``fit`` checks them."""
        self.__dict__.update({name: value for name, value in given.items() if name != "self"})

    @contextlib.contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Restore all attributes after an error, so that the old network keeps its own scales and classes."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(
        self,
        X: Any,
        targets: np.ndarray,
        outputs: int,
        stratify: Any,
        sample_weight: Any,
        of_class: np.ndarray | float = 1.0,
        **options: Any,
    ) -> Self:
        """Train a new network on checked targets; `of_class` are weights that only the loss uses."""
        sequences = self._sequences(X, reset=True)
        check_consistent_length(sequences.items, targets)
        weights = weights_of(sample_weight, targets)
        batch_size, epochs = _values.size("batch_size", self.batch_size), _values.size("epochs", self.epochs)
        patience = _values.size("patience", self.patience)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1, size=4))
        of_ids = self.vocab_size is not None
        model = SequenceClassifier(
            None if of_ids else int(sequences.items[0].shape[-1]),
            self.hidden_size,
            outputs,
            self.num_layers,
            vocab_size=self.vocab_size,
            embedding_dim=self.embedding_dim,
            padding_idx=self.padding_idx,
            bidirectional=self.bidirectional,
            pooling=self.pooling,
            dropout=self.dropout,
            xp=self.xp,
            dtype=self.dtype,
            rng=rng,
            **options,
        )
        self._check_steps(sequences)
        learnt, held_out = self._split(len(sequences), stratify, rng)
        for part, what in ((learnt, "to learn from"), (held_out, "that early_stopping holds out")):
            if len(part) and not weights[part].any():
                msg = f"sample_weight is 0 for all sequences {what}; one must be above 0"
                raise ArgumentError(msg)
            if len(part) and not (weights * of_class)[part].any():
                msg = f"class_weight gives the weight 0 to all sequences {what}; one must be above 0"
                raise ArgumentError(msg)
        self._set_scale(sequences.part(learnt), weights[learnt])
        weights = weights * of_class
        weights = weights / weights[learnt].mean()
        sequences = self._scale(sequences)
        weighted = _Weighted(model)

        def batches(_epoch: int) -> Iterator[tuple[Any, Any]]:
            for part in _parts(rng.permutation(learnt), batch_size):
                yield weighted.batch(sequences.take(part), targets[part], weights[part])

        def validate() -> float:
            parts = _parts(held_out, PREDICTED_AT_ONCE)
            losses = [
                weighted.loss(*weighted.batch(sequences.take(part), targets[part], weights[part]))
                for part in parts
            ]
            return float(np.average(losses, weights=[weights[part].sum() for part in parts]))

        an_epoch = -(-len(learnt) // batch_size)
        rate = optim.warmup_cosine(
            _values.positive("learning_rate", self.learning_rate), an_epoch, an_epoch * (epochs + 1)
        )
        self.history_ = training.fit(
            weighted,
            batches,
            optim.AdamW(rate, weight_decay=self.weight_decay),
            epochs=epochs,
            max_norm=self.max_norm,
            rng=int(rng.integers(2**31)),
            validate=validate if len(held_out) else None,
            validate_every=an_epoch,
            patience=patience if len(held_out) else None,
            progress=False,
        )
        self.model_ = model
        return self

    def _split(self, count: int, stratify: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the training sequences and of the validation sequences."""
        everything = np.arange(count)
        share = _values.positive("validation_fraction", self.validation_fraction)
        _values.in_range("validation_fraction", share, 0, 1)
        if not _values.flag("early_stopping", self.early_stopping):
            return everything, everything[:0]
        seed = int(rng.integers(2**31))
        learnt, held_out = train_test_split(everything, test_size=share, stratify=stratify, random_state=seed)
        return learnt, held_out

    def _outputs(self, X: Any) -> np.ndarray:
        """Return the outputs of the last layer for every sequence, as float64."""
        check_is_fitted(self)
        sequences = self._scale(self._sequences(X, reset=False))
        parts = _parts(np.arange(len(sequences)), PREDICTED_AT_ONCE)
        outputs = [_array.to_numpy(self.model_(_on(self.model_, sequences.take(part)))) for part in parts]
        return np.concatenate(outputs).astype(np.float64)

    def _sequences(self, X: Any, reset: bool) -> Sequences:
        """Return X as `Sequences`; with `reset`, store the number of features."""
        sequences = self._check_sequences(without_names(X), reset)
        if sequences.of_table and self.vocab_size is None:
            sequences = sequences.map(lambda a: a[..., None])
        return sequences

    def _check_sequences(self, X: Any, reset: bool) -> Sequences:
        """Return checked sequences; those of a table have no feature axis."""
        dtype: Any = self._input_dtype()
        several = sequences_of(X)
        if several is not None and self.vocab_size is None and (reset or self.of_table_):
            several = None if is_table(several) else several
        if several is None and getattr(X, "ndim", 2) != 3:
            table = validate_data(self, X, reset=reset, dtype="numeric" if self.vocab_size else dtype)
            return self._same_kind(Sequences(self._ids("X", table), of_table=True), reset)
        self._check_columns([X] if several is None else several, reset)
        if several is None:
            whole = check_array(X, dtype=dtype, allow_nd=True, estimator=self, input_name="X")
            sequences = Sequences(whole, of_table=False)
        else:
            sequences = Sequences([self._one(k, a, dtype) for k, a in enumerate(several)], of_table=False)
            shapes = {a.shape[1:] for a in sequences.items}
            if len(shapes) > 1:
                msg = f"X has sequences with different numbers of features: {sorted(s[0] for s in shapes)}"
                raise ShapeError(msg)
        if self.vocab_size is not None and sequences.items[0].ndim > 1:
            msg = "with vocab_size, X must be a table (n, T) of ids, or a list of sequences (T_k,) of ids"
            raise ShapeError(msg)
        return self._same_kind(sequences, reset)

    def _input_dtype(self) -> Any:
        """Return the dtype of checked features: float64 or float32 as given if they are scaled afterwards.

        Rounding them first would lose the variation of a feature with a large mean, such as a time.
        """
        dtype = dtype_of(self.dtype)
        return [np.float64, np.float32] if _values.flag("standardize", self.standardize) else dtype

    def _check_columns(self, sequences: Sequence[Any], reset: bool) -> None:
        """Check that data frames have the columns of the first one in ``fit``, in the same order."""
        for k, sequence in enumerate(sequences):
            if k == 0 or hasattr(sequence, "columns"):
                try:
                    _check_feature_names(self, sequence, reset=reset and k == 0)
                except ValueError as error:
                    msg = f"X[{k}]: {error}"
                    raise ArgumentError(msg) from error

    def _one(self, k: int, sequence: Any, dtype: Any) -> np.ndarray:
        """Return one sequence of a list, (T_k, F), or (T_k,) of ids."""
        name, given = f"X[{k}]", np.asarray(time_first(sequence))
        if self.vocab_size is not None and given.ndim == 1:
            return self._ids(name, given)
        if given.ndim not in (1, 2):
            msg = f"{name} has shape {given.shape}, expected (T, F) or (T,)"
            raise ShapeError(msg)
        given = given[:, None] if given.ndim == 1 else given
        if given.shape[0] == 0:
            return np.zeros(given.shape, dtype_of(self.dtype))
        return np.asarray(check_array(given, dtype=dtype, ensure_min_features=1, input_name=name))

    def _ids(self, name: str, given: np.ndarray) -> np.ndarray:
        """Return ids as integers if the estimator reads ids; otherwise return the numbers."""
        if self.vocab_size is None:
            return given
        if given.dtype.kind not in "iu" and given.size:  # NumPy gives an empty list the dtype float64
            msg = f"{name} has dtype {given.dtype}, expected integer ids with vocab_size="
            raise DTypeError(msg)
        return given.astype(np.int64)

    def _check_steps(self, sequences: Sequences) -> None:
        """Check that every sequence has a step to learn from."""
        padding = self.padding_idx
        for k, ids in enumerate(sequences.items):
            if not len(ids) or (padding is not None and (ids == padding).all()):
                only = "" if padding is None else f" other than padding_idx={padding}"
                msg = f"X[{k}] has no step{only} to learn from; leave the sequence and its target out"
                raise ArgumentError(msg)

    def _same_kind(self, found: Sequences, reset: bool) -> Sequences:
        """Store the number of features, or check that it is the number in ``fit``."""
        features = found.features if found.of_table or self.vocab_size is None else 1
        if reset:
            self.of_table_, self.n_features_in_ = found.of_table, features
        elif found.of_table != self.of_table_ or features != self.n_features_in_:
            kinds = {True: "a table of {} steps", False: "sequences with {} features"}
            given, known = kinds[found.of_table].format(features), kinds[self.of_table_]
            msg = f"X is {given}; {type(self).__name__} was fitted on {known.format(self.n_features_in_)}"
            raise ShapeError(msg)
        return found

    def _set_scale(self, sequences: Sequences, weights: np.ndarray) -> None:
        """Measure mean and standard deviation of each feature over all steps of the training sequences."""
        self.mean_ = self.scale_ = None
        if self.vocab_size is None and _values.flag("standardize", self.standardize):
            steps = sequences.steps().astype(np.float64)
            self.mean_, self.scale_ = scale_of("X", steps, sequences.each_step(weights))

    def _scale(self, sequences: Sequences) -> Sequences:
        """Return the scaled sequences in the dtype of the computation."""
        if self.mean_ is None:
            return sequences
        dtype = dtype_of(self.dtype)

        def scaled(a: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):  # checked below
                result = ((a - self.mean_) / self.scale_).astype(dtype)
            if not np.isfinite(result).all():
                msg = (
                    f"X has values up to {np.abs(a).max():.3g}, which are too large for {dtype} after scaling"
                )
                raise ArgumentError(msg)
            return result

        return sequences.map(scaled)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator atomically to one file, without pickle; an existing file is overwritten.

        Parameters
        ----------
        path : path
            File name that ends in ``.safetensors``, in an existing folder.

        Raises
        ------
        ArgumentError
            If `path` does not end in ``.safetensors``, or JSON cannot represent a parameter or class, such
            as a ``RandomState``.
        sklearn.exceptions.NotFittedError
            Before ``fit``.
        OSError
            If the file cannot be written. An existing file is then unchanged.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> from xplstm.sklearn import LSTMRegressor
        >>> X = np.random.default_rng(0).normal(size=(20, 6, 2))
        >>> regressor = LSTMRegressor(4, epochs=1, random_state=0).fit(X, X.sum(axis=(1, 2)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "regressor.safetensors")
        ...     regressor.save(path)
        ...     again = LSTMRegressor.load(path)
        >>> bool((again.predict(X) == regressor.predict(X)).all())
        True
        """
        check_is_fitted(self)
        kept = {name: value for name, value in vars(self).items() if name.endswith("_")}
        for name in ("model_", "history_"):
            kept.pop(name)
        about = {"class": type(self).__name__, "params": self.get_params(), "fitted": kept}
        try:
            text = json.dumps({name: plain(name, value) for name, value in about.items()})
        except (TypeError, ValueError) as error:
            msg = f"the estimator cannot be written as JSON: {error}"
            raise ArgumentError(msg) from error
        save_model(path, self.model_.config(), self.model_.params, {METADATA: text})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load an estimator of this class from a file of `save`.

        Parameters
        ----------
        path : path
            The safetensors file.

        Returns
        -------
        estimator
            Fitted estimator with NumPy parameters, without ``history_``.

        Raises
        ------
        FormatError
            If the file is damaged or does not contain an estimator of this class.
        OSError
            If the file cannot be read.

        Examples
        --------
        See `save`.
        """
        where = _values.path("path", path)
        text = safetensors.read(where).metadata.get(METADATA, "{}")
        try:
            about = json.loads(text, object_hook=unplain)
            if about.get("class") != cls.__name__:
                msg = f"{where} does not contain an {cls.__name__}"
                raise FormatError(msg)
            estimator, fitted = cls(**about["params"]), dict(about["fitted"])
            if fitted.keys() - {"feature_names_in_"} != {*cls._fitted}:
                msg = f"{where} has {ascii(sorted(fitted))[:200]}, expected {sorted(cls._fitted)}"
                raise FormatError(msg)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, FormatError):
                raise
            msg = f"{where} has an invalid description of an estimator: {ascii(error)[:200]}"
            raise FormatError(msg) from error
        estimator.model_ = load_model(where)
        estimator.__dict__.update(fitted)
        estimator._check_loaded(where)
        return estimator

    def _check_loaded(self, where: str) -> None:
        """Check that the loaded attributes fit the network."""
        network, count = self.model_, len(self._of_outputs())
        if count != network.linear.out_features:
            msg = (
                f"{where} has {count} classes or numbers, expected {network.linear.out_features}, the outputs"
            )
            raise FormatError(msg)
        features = network.lstm.input_size
        for name in ("mean_", "scale_"):
            scale = getattr(self, name)
            if scale is not None and np.shape(scale) != (features,):
                msg = f"{where} has {name} with {np.size(scale)} features, expected {features}"
                raise FormatError(msg)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class _Weighted:
    """Network for `xplstm.training.fit` whose targets are pairs of targets and sequence weights.

    The loss of a batch is the sum of the weighted losses, divided by the number of sequences. A weight
    therefore has the same effect in every batch.
    """

    def __init__(self, model: SequenceClassifier) -> None:
        self.model = model

    @property
    def params(self) -> Any:
        """Parameters of the network."""
        return self.model.params

    @params.setter
    def params(self, params: Any) -> None:
        self.model.params = params

    def batch(self, x: Any, targets: np.ndarray, weights: np.ndarray) -> Any:
        """Return a batch on the device of the parameters."""
        dtype = "float64" if self.model.linear.params["weight"].dtype == "float64" else "float32"
        x, targets = _on(self.model, x, targets)
        return x, (targets, self.model._to_device(weights.astype(dtype)), float(weights.mean()))

    def loss(self, x: Any, targets: Any) -> float:
        """Return the weighted mean of the losses."""
        classes, weights, _ = targets
        return float(self.model._weighted_vjp(x, classes, weights, None, None)[0])

    def loss_vjp(self, inputs: Any, targets: Any, state: Any, rng: Any) -> Any:
        """Return the loss, the state and the pullback."""
        classes, weights, share = targets
        loss, state, pullback = self.model._weighted_vjp(inputs, classes, weights, state, rng)
        return loss * share, state, lambda factor=1.0: pullback(factor * share)


def dtype_of(dtype: Any) -> np.dtype:
    """Return the checked dtype of the computation."""
    return np.dtype(_values.one_of("dtype", dtype, ("float32", "float64")))


def weights_of(sample_weight: Any, targets: np.ndarray) -> np.ndarray:
    """Check the weights of the sequences: all at least 0, and at least one above 0."""
    weights = _check_sample_weight(sample_weight, targets, dtype=np.float64, ensure_non_negative=True)
    if not weights.any():
        msg = "sample_weight is 0 for all sequences; one must be above 0"
        raise ArgumentError(msg)
    return np.asarray(weights)


def scale_of(name: str, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each column of `name`, with 1 in place of 0."""
    mean, spread = mean_and_deviation(values, weights)
    if not np.isfinite(spread).all():
        largest = np.abs(values).max()
        msg = f"{name} has values up to {largest:.3g}, whose sum overflows; divide {name} by a constant"
        raise ArgumentError(msg)
    # Rounding errors give a constant column a deviation up to this size.
    rounding = 10 * np.finfo(np.float64).eps * abs(mean)
    return mean, np.where(spread > rounding, spread, 1.0)


def _parts(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Split the numbers into parts of at most `size`."""
    return [numbers[k : k + size] for k in range(0, len(numbers), size)]


def _on(model: SequenceClassifier, batch: Any, targets: Any = None) -> Any:
    """Move a batch, and its targets if given, to the device of the model's parameters."""
    moved = (
        Ragged(model._to_device(batch.x), batch.lengths)
        if isinstance(batch, Ragged)
        else model._to_device(batch)
    )
    return moved if targets is None else (moved, model._to_device(targets))
