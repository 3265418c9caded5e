"""Scikit-learn estimators that classify sequences or predict numbers from sequences with an LSTM.

They wrap `xplstm.models.SequenceClassifier` in ``fit``, ``predict`` and ``score``, and work in ``Pipeline``,
``cross_val_score`` and ``GridSearchCV``.

``X`` has one of these forms, which its type and shape determine:

- an array (n, T, F): n sequences of T steps with F features
- a list of n arrays, lists or data frames, (T_k, F) or (T_k,): sequences of different lengths
- a table (n, T), which may be a pandas DataFrame or a list of lists of numbers with one length: each row is a
  sequence of T steps with one feature
- an ``xarray.DataArray`` with two or three dimensions: an array whose time axis is the dimension ``time``, if
  there is one

With `vocab_size` the numbers are token ids, without a feature axis.
"""

try:
    from sklearn.utils.validation import validate_data as _since_1_6  # noqa: F401
except ImportError as error:
    msg = "xplstm.sklearn needs the package scikit-learn, 1.6 or later: pip install 'xplstm[sklearn]'"
    raise ImportError(msg) from error

from xplstm._process import register_threads as _register_threads
from xplstm.sklearn._estimators import LSTMClassifier, LSTMRegressor

# scikit-learn has imported threadpoolctl.
_register_threads()

__all__ = ["LSTMClassifier", "LSTMRegressor"]
