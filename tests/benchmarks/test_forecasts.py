"""Check that every method reads the same past, and none of the values that it forecasts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import forecasts

# A synthetic linear series, so that each element gives its step.
LINE = np.stack([np.arange(40.0), 100 + np.arange(40.0), np.arange(40.0) % 4], axis=1)
TASK = forecasts.Task("a line", LINE, (2,), 6, 2, 30, 4)


def test_features_are_the_window_and_what_is_known_ahead():
    rows, happened = forecasts.features(TASK, LINE[24:], [0, 1])
    assert rows.shape == (9, 6 * 2 + 2)
    np.testing.assert_array_equal(rows[0, :12:2], LINE[24:30, 0])
    np.testing.assert_array_equal(rows[0, 12:], LINE[30:32, 2])
    np.testing.assert_array_equal(happened[0], LINE[30:32, 0])


@pytest.mark.slow
def test_every_method_forecasts_the_same_origins():
    pytest.importorskip("sklearn")
    test = forecasts.ours(TASK)[0]
    found = dict(forecasts.others(TASK))
    for name, forecast in found.items():
        assert forecast.shape == test.happened[..., 0].shape, name
    np.testing.assert_array_equal(found["persistence"][:, 0], test.happened[:, 0, 0] - 1)
    np.testing.assert_array_equal(found["the same time a year before"], test.happened[..., 0] - 4)
    np.testing.assert_allclose(found["autoregressive"], test.happened[..., 0], atol=1e-9)
