"""Estimators of scikit-learn: an LSTM that classifies sequences, or predicts numbers from them.

They are `xplstm.models.SequenceClassifier` behind ``fit``, ``predict`` and ``score``, so that ``Pipeline``,
``cross_val_score`` and ``GridSearchCV`` take them.

``X`` is one of these, and nothing is guessed from its values:

- an array (n, T, F): n sequences of T steps with F features, the samples first as scikit-learn has them
- a list of n arrays, lists or data frames, (T_k, F) or (T_k,): sequences of several lengths
- a table (n, T), which may be a pandas DataFrame or a list of lists of numbers of one length: each row is a
  sequence of T steps with one feature
- an ``xarray.DataArray`` of two or three dimensions: as an array, but a dimension that is called ``time`` is
  the time wherever it is

With `vocab_size` the numbers are ids of tokens instead, without an axis of features.
"""

try:
    from sklearn.utils.validation import validate_data as _since_1_6  # noqa: F401
except ImportError as error:
    msg = "xplstm.sklearn needs the package scikit-learn, 1.6 or later: pip install 'xplstm[sklearn]'"
    raise ImportError(msg) from error

from xplstm.sklearn._estimators import LSTMClassifier, LSTMRegressor

__all__ = ["LSTMClassifier", "LSTMRegressor"]
