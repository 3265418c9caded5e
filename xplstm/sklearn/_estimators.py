"""The estimators `LSTMClassifier` and `LSTMRegressor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_array, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from xplstm._errors import ArgumentError
from xplstm.sklearn._estimator import SequenceEstimator, dtype_of, scale_of, weights_of


class LSTMClassifier(ClassifierMixin, SequenceEstimator):  # type: ignore[misc]
    """Classify sequences with a scikit-learn estimator based on `xplstm.models.SequenceClassifier`.

    Parameters
    ----------
    hidden_size : int, optional
        Units of each layer, at least 1.
    num_layers : int, optional
        Number of LSTM layers, at least 1.
    bidirectional : bool, optional
        Whether a second direction reads each sequence from its end.
    pooling : {"last", "mean", "max"}, optional
        Outputs that the linear layer reads: those of the last step, or their mean or maximum over all steps.
    dropout : float, optional
        Dropout probability, in [0, 1), of the outputs of each LSTM layer in ``fit``.
    vocab_size, embedding_dim, padding_idx : int, optional
        For token ids, as for `xplstm.models.SequenceClassifier`.
    standardize : bool, optional
        Whether the network reads ``(x - mean) / std``, with mean and std of each feature from ``fit``.
    epochs : int, optional
        Passes over the data, at least 1.
    batch_size : int, optional
        Sequences for each update, at least 1.
    learning_rate : float, optional
        Largest learning rate of `xplstm.optim.AdamW`, above 0. The rate rises during the first epoch and then
        falls along a half cosine.
    weight_decay : float, optional
        Weight decay of `xplstm.optim.AdamW`, at least 0.
    max_norm : float, optional
        Bound of the global gradient norm, above 0.
    early_stopping : bool, optional
        Whether to hold out `validation_fraction` of the sequences and to validate after each epoch. Training
        then stops after `patience` epochs without a new best, and the best parameters are kept.
    validation_fraction : float, optional
        Fraction of held-out sequences, in (0, 1).
    patience : int, optional
        Number of epochs without a new best, at least 1.
    xp : str, optional
        Backend of the computation, such as ``"cupy"``. X, y and predictions are NumPy arrays on any backend.
    dtype : {"float32", "float64"}, optional
        Dtype of the computation.
    random_state : int or RandomState, optional
        Seed of initialisation, order and dropout. With an int, ``fit`` is reproducible.
    class_weight : dict, "balanced" or None, optional
        Weights of the classes, as in scikit-learn: a sequence counts in the loss with its `sample_weight`
        times the weight of its class. Not allowed for several labels.

    Attributes
    ----------
    classes_ : array
        The classes in the order of `predict_proba`.
    model_ : SequenceClassifier
        The network, which reads scaled features.
    mean_, scale_ : array of float64, shape (F,), or None
        Mean and standard deviation of each feature.
    n_features_in_ : int
        F, or the number of columns of a table.
    history_ : History
        Losses and validations of ``fit``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import cross_val_score
    >>> from xplstm.sklearn import LSTMClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=(length, 2)) for length in rng.integers(3, 9, 60)]  # of several lengths
    >>> y = ["up" if sequence[-1, 0] > 0 else "down" for sequence in X]
    >>> scores = cross_val_score(LSTMClassifier(8, epochs=30, random_state=0), X, y, cv=3)
    >>> bool(scores.mean() > 0.7)
    True
    """

    _fitted = (*SequenceEstimator._fitted, "classes_", "multilabel_")

    def __init__(
        self,
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        vocab_size: int | None = None,
        embedding_dim: int | None = None,
        padding_idx: int | None = None,
        standardize: bool = True,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        max_norm: float = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        xp: str | None = None,
        dtype: str = "float32",
        random_state: int | np.random.RandomState | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        self._keep(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X : sequences
            One of the forms that `xplstm.sklearn` lists, each sequence with at least 1 step.
        y : array of labels, shape (n,); or of 0 and 1, shape (n, L), for L labels
            Target of each sequence.
        sample_weight : array of numbers, shape (n,), optional
            Weight of each sequence in the loss and in the scale of the features; at least 0.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X and y do not match, a value is NaN or infinite, or a parameter is outside its range.

        Examples
        --------
        See the class.
        """
        with self._restored_on_error():
            y = _target(self, y)
            assert_all_finite(np.asarray(y), input_name="y", estimator_name=type(self).__name__)
            check_classification_targets(y)
            if type_of_target(y) == "multilabel-indicator":
                if self.class_weight is not None:
                    msg = f"class_weight={self.class_weight!r} needs a y of shape (n,), got several labels"
                    raise ArgumentError(msg)
                self.classes_ = np.arange(np.shape(y)[1])
                self.multilabel_ = True
                return self._fit(X, np.asarray(y), len(self.classes_), None, sample_weight, task="multilabel")
            self.classes_, numbers = np.unique(column_or_1d(y, warn=True), return_inverse=True)
            self.multilabel_ = False
            of_class = np.ones(len(self.classes_))
            if self.class_weight is not None:
                of_class = compute_class_weight(
                    self.class_weight, classes=self.classes_, y=self.classes_[numbers]
                )
            return self._fit(X, numbers, len(self.classes_), numbers, sample_weight, of_class[numbers])

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class, or the labels, of each sequence.

        Parameters
        ----------
        X : sequences
            Sequences in the form and with the features of the X in ``fit``. A sequence without steps has the
            prediction of the initial state of the network.

        Returns
        -------
        array of labels, shape (n,); or of 0 and 1, shape (n, L)
            Predictions.

        Raises
        ------
        sklearn.exceptions.NotFittedError, ValueError
            Before ``fit``, or if X has another form or other features.

        Examples
        --------
        See the class.
        """
        outputs = self._outputs(X)
        if self.multilabel_:
            return (outputs > 0).astype(int)
        return np.asarray(self.classes_[outputs.argmax(axis=-1)])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict the probability of each class, or of each label.

        Parameters
        ----------
        X : sequences
            As for `predict`.

        Returns
        -------
        array of float64, shape (n, classes) or (n, L)
            Probabilities in [0, 1].

        Raises
        ------
        sklearn.exceptions.NotFittedError, ValueError
            As for `predict`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.sklearn import LSTMClassifier
        >>> X = np.random.default_rng(0).normal(size=(20, 6, 2))
        >>> LSTMClassifier(4, epochs=1).fit(X, X[:, 0, 0] > 0).predict_proba(X).shape
        (20, 2)
        """
        outputs = self._outputs(X)
        return np.asarray(self.model_.task.probabilities(outputs))

    def _of_outputs(self) -> Any:
        return self.classes_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class LSTMRegressor(RegressorMixin, SequenceEstimator):  # type: ignore[misc]
    """Predict numbers from sequences with an estimator based on `xplstm.models.SequenceClassifier`.

    ``fit`` standardises the targets and minimises the mean squared error.

    Parameters
    ----------
    hidden_size, num_layers, bidirectional, pooling, dropout, vocab_size, embedding_dim, padding_idx
        As for `LSTMClassifier`.
    standardize, epochs, batch_size, learning_rate, weight_decay, max_norm
        As for `LSTMClassifier`.
    early_stopping, validation_fraction, patience, xp, dtype, random_state
        As for `LSTMClassifier`.

    Attributes
    ----------
    model_ : SequenceClassifier
        The network, with ``task="regression"``. Its inputs and outputs are scaled.
    mean_, scale_ : array of float64, shape (F,), or None
        Mean and standard deviation of each feature.
    y_mean_, y_scale_ : array of float64, shape (outputs,)
        Mean and standard deviation of each target.
    n_features_in_ : int
        F, or the number of columns of a table.
    history_ : History
        Losses and validations of ``fit``.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.sklearn import LSTMRegressor
    >>> X = np.random.default_rng(0).normal(size=(200, 6, 2))
    >>> y = X[:, :, 0].sum(axis=1)
    >>> regressor = LSTMRegressor(16, random_state=0).fit(X[:150], y[:150])
    >>> bool(regressor.score(X[150:], y[150:]) > 0.8)
    True
    """

    _fitted = (*SequenceEstimator._fitted, "y_mean_", "y_scale_", "several_")

    def __init__(
        self,
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        vocab_size: int | None = None,
        embedding_dim: int | None = None,
        padding_idx: int | None = None,
        standardize: bool = True,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        max_norm: float = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        xp: str | None = None,
        dtype: str = "float32",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self._keep(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X : sequences
            One of the forms that `xplstm.sklearn` lists, each sequence with at least 1 step.
        y : array of numbers, shape (n,) or (n, outputs)
            Target of each sequence.
        sample_weight : array of numbers, shape (n,), optional
            Weight of each sequence in the loss and in the scales; at least 0.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X and y do not match, a value is NaN or infinite, or a parameter is outside its range.

        Examples
        --------
        See the class.
        """
        with self._restored_on_error():
            y = check_array(
                _target(self, y), ensure_2d=False, dtype=np.float64, input_name="y", estimator=self
            )
            several = y.ndim == 2 and y.shape[1] > 1
            targets = y if several else column_or_1d(y, warn=True)[:, None]
            dtype = dtype_of(self.dtype)
            self.y_mean_, self.y_scale_ = scale_of("y", targets, weights_of(sample_weight, targets))
            self.several_ = several
            scaled = ((targets - self.y_mean_) / self.y_scale_).astype(dtype)
            return self._fit(X, scaled, targets.shape[1], None, sample_weight, task="regression")

    def predict(self, X: Any) -> np.ndarray:
        """Predict the numbers of each sequence.

        Parameters
        ----------
        X : sequences
            Sequences in the form and with the features of the X in ``fit``. A sequence without steps has the
            prediction of the initial state of the network.

        Returns
        -------
        array of float64, shape (n,) or (n, outputs)
            Predictions.

        Raises
        ------
        sklearn.exceptions.NotFittedError, ValueError
            Before ``fit``, or if X has another form or other features.

        Examples
        --------
        See the class.
        """
        numbers = self._outputs(X) * self.y_scale_ + self.y_mean_
        return numbers if self.several_ else numbers[:, 0]

    def _of_outputs(self) -> Any:
        return self.y_mean_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _target(estimator: Any, y: Any) -> Any:
    """Check that y is not None."""
    if y is None:
        msg = f"{type(estimator).__name__} requires y to be passed, but the target y is None"
        raise ArgumentError(msg)
    return y
