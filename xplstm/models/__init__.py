"""Complete models, and functions that create their batches and decode their logits."""

from xplstm.models._forecast_series import Backtest
from xplstm.models.batching import Ragged, WithFuture, one_hot, pad, windows
from xplstm.models.charlm import CharLM
from xplstm.models.classifier import SequenceClassifier
from xplstm.models.decoding import Hypothesis, beam_search, probabilities, sample
from xplstm.models.forecaster import Forecaster
from xplstm.models.seq2seq import Seq2Seq

__all__ = [
    "Backtest",
    "CharLM",
    "Forecaster",
    "Hypothesis",
    "Ragged",
    "Seq2Seq",
    "SequenceClassifier",
    "WithFuture",
    "beam_search",
    "one_hot",
    "pad",
    "probabilities",
    "sample",
    "windows",
]
