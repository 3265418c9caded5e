"""Define checks that the tests of all models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import xplstm
from tests.support.cases import settled, slopes
from xplstm import _array


def check_gradients(make: Callable[[], Any], loss_of: Callable[[Any], Any], **options: Any) -> None:
    """Compare every gradient of a model with differences of its loss.

    `loss_of(model)` returns the results of ``model.loss_vjp``, with the same random masks in each call.
    """
    gradients = loss_of(make())[2]()
    params = make().params
    assert gradients.keys() == params.keys()
    for name, value in params.items():

        def loss_at(moved: np.ndarray, name: str = name) -> float:
            model = make()
            model.params = params | {name: moved}
            return float(loss_of(model)[0])

        assert gradients[name].shape == value.shape
        got, expected = slopes(loss_at, value, gradients[name])
        assert np.abs(expected).max() > 1e-5, f"{name} has no influence: nothing is tested"
        np.testing.assert_allclose(got, expected, err_msg=name, **({"atol": 1e-8} | options))


def host(results: tuple[Any, Any, Callable[[], dict[str, Any]]]) -> dict[str, np.ndarray]:
    """Return the loss, state and gradients of ``loss_vjp`` as host arrays."""
    loss, state, pullback = results
    gradients = pullback()
    arrays = settled([loss, *state, *gradients.values()])
    names = ["loss", *(f"state {k}" for k in range(len(state))), *gradients]
    return {name: _array.to_numpy(a) for name, a in zip(names, arrays, strict=True)}


def check_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compare two results of `host`."""
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        np.testing.assert_allclose(found[name], a, rtol=0, atol=1e-12, err_msg=name)


def torch_copy(model: Any, layers: dict[str, Any]) -> Any:
    """Return a PyTorch module of `layers` with the model's parameters, in float64."""
    import torch

    whole = torch.nn.ModuleDict(layers).double()
    whole.load_state_dict({name: torch.tensor(a) for name, a in model.params.items()})
    return whole


def check_torch(pullback: Callable[[], dict[str, Any]], theirs: Any) -> None:
    """Compare gradients with those of autograd."""
    gradients = pullback()
    named = dict(theirs.named_parameters())
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        np.testing.assert_allclose(gradients[name], parameter.grad, atol=1e-12, err_msg=name)


def replace_networks(model: Any, kind: Callable[..., Any]) -> Any:
    """Replace each LSTM of a model by a `kind` of the same sizes, and return the model."""
    for name, layer in model._layers.items():
        if isinstance(layer, xplstm.LSTM):
            sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
            home = model._home()
            setattr(
                model,
                name,
                kind(*sizes, bidirectional=layer.bidirectional, xp=home.xp, dtype=home.dtype, rng=3),
            )
    return model
