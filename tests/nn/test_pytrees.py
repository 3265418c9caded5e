"""Check layers, states and models under JAX's transformations, as arguments and results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import models

T, B, I = 4, 3, 2
LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": lambda **o: xplstm.LSTM(I, 5, 2, bidirectional=True, **o),
    "GRU": lambda **o: xplstm.GRU(I, 5, **o),
    "RNN": lambda **o: xplstm.RNN(I, 5, **o),
    "JordanRNN": lambda **o: xplstm.JordanRNN(I, 5, 2, **o),
    "Linear": lambda **o: xplstm.Linear(I, 5, **o),
}
MODELS: dict[str, Callable[..., Any]] = {
    "Forecaster": lambda **o: models.Forecaster(I, 5, mean=[1, 2], std=[1, 3], **o),
    "classifier": lambda **o: models.SequenceClassifier(I, 5, 3, **o),
}


@pytest.fixture
def x(jax: Any, rng: np.random.Generator) -> Any:
    return jax.numpy.asarray(rng.normal(size=(T, B, I)).astype("float32"))


def close(jax: Any, found: Any, expected: Any) -> None:
    pairs = zip(*(jax.tree_util.tree_leaves(a) for a in (found, expected)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
def test_an_object_is_an_argument_of_jit_and_a_result(name: str, jax: Any, x: Any) -> None:
    layer = (LAYERS | MODELS)[name](xp="jax", rng=0)
    leaves, structure = jax.tree_util.tree_flatten(layer)
    assert len(leaves) == len(layer.params)
    again = jax.tree_util.tree_unflatten(structure, leaves)
    assert repr(again) == repr(layer)
    close(jax, jax.jit(lambda layer, x: layer(x))(layer, x), layer(x))
    twice = jax.jit(lambda layer: jax.tree_util.tree_map(lambda a: 2 * a, layer))(layer)
    assert type(twice) is type(layer)
    for key, a in layer.params.items():
        np.testing.assert_array_equal(twice.params[key], 2 * a)


def test_options_are_part_of_the_structure(jax: Any) -> None:
    def structure(**options: Any) -> Any:
        return jax.tree_util.tree_structure(xplstm.LSTM(I, 5, xp="jax", rng=0, **options))

    assert structure() == structure()
    assert hash(structure()) == hash(structure())
    assert structure() != structure(batch_first=True)


def test_the_gradient_of_a_model_is_one_more_model(jax: Any, x: Any) -> None:
    model = MODELS["Forecaster"](xp="jax", rng=0)
    found = jax.jit(jax.grad(lambda model: model.loss(x, x + 1)[0]))(model)
    assert type(found) is models.Forecaster
    close(jax, found.params, model.loss_vjp(x, x + 1)[2]())


def test_an_ensemble_runs_under_vmap(jax: Any, x: Any) -> None:
    layers = [LAYERS["GRU"](xp="jax", rng=seed) for seed in range(3)]
    stacked = jax.tree_util.tree_map(lambda *a: jax.numpy.stack(a), *layers)
    found = jax.vmap(lambda layer: layer(x)[0])(stacked)
    for k, layer in enumerate(layers):
        np.testing.assert_allclose(found[k], layer(x)[0], atol=1e-6)


def test_a_state_is_carried_by_a_scan(jax: Any, x: Any) -> None:
    lstm = xplstm.LSTM(I, 5, xp="jax", rng=0)
    y, end = lstm(x)
    state = xplstm.LSTMState(*(0 * a for a in end))

    def step(state: Any, x_t: Any) -> Any:
        y_t, state = lstm.step(x_t, state)
        return state, y_t

    found, ys = jax.lax.scan(step, state, x)
    close(jax, (ys, found), (y, end))


ORDERS = {
    "before": "import jax, xplstm; lstm = xplstm.LSTM(2, 3, xp='jax')",
    "by the layer": "import xplstm; lstm = xplstm.LSTM(2, 3, xp='jax'); import jax",
    "by the model": "import xplstm; lstm = xplstm.models.Forecaster(2, 3, xp='jax'); import jax",
    "by a move": "import xplstm; lstm = xplstm.LSTM(2, 3); import jax; lstm.to('jax')",
}


@pytest.mark.parametrize("order", ORDERS)
def test_jax_may_be_imported_at_any_time(order: str, jax: Any) -> None:
    code = f"{ORDERS[order]}; assert len(jax.tree_util.tree_leaves(lstm)) == len(lstm.params)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_nothing_imports_jax() -> None:
    code = "import sys, xplstm; xplstm.models.Forecaster(2, 3); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
