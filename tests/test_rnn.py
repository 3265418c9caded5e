"""Simple recurrent networks: against a loop, differences and torch, and alike on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.cases import differences, settled
from xplstm._array import to_numpy

T, B, I, H, OUT = 5, 4, 3, 6, 2
NETWORKS: dict[str, Any] = {
    "elman": lambda **o: xplstm.RNN(I, H, rng=7, **o),
    "relu": lambda **o: xplstm.RNN(I, H, nonlinearity="relu", rng=7, **o),
    "stacked": lambda **o: xplstm.RNN(I, H, 2, bidirectional=True, rng=7, **o),
    "no bias": lambda **o: xplstm.RNN(I, H, bias=False, rng=7, **o),
    "jordan": lambda **o: xplstm.JordanRNN(I, H, OUT, rng=7, **o),
    "wide jordan": lambda **o: xplstm.JordanRNN(I, 2, 5, bias=False, nonlinearity="relu", rng=7, **o),
    "stacked jordan": lambda **o: xplstm.JordanRNN(I, H, OUT, 2, bidirectional=True, rng=7, **o),
}
VALID: dict[str, dict[str, Any]] = {
    "full": {},
    "ragged": {"lengths": [2, 5, 0, 3]},
    "holes": {"mask": np.random.default_rng(0).random((T, B)) < 0.6},
}


def sizes(name: str) -> tuple[int, int]:
    """Layers times directions, and the size of what recurs."""
    rows = 4 if name.startswith("stacked") else 1
    return rows, {"jordan": OUT, "stacked jordan": OUT, "wide jordan": 5}.get(name, H)


def arrays(name: str) -> dict[str, np.ndarray]:
    rng, (rows, size) = np.random.default_rng(7), sizes(name)
    directions = 2 if rows == 4 else 1
    return {
        "x": rng.normal(size=(T, B, I)),
        "h_0": rng.normal(size=(rows, B, size)),
        "dy": rng.normal(size=(T, B, size * directions)),
        "dh_n": rng.normal(size=(rows, B, size)),
    }


def run(rnn: Any, a: dict[str, Any], **valid: Any) -> dict[str, Any]:
    y, h_n, pullback = rnn.vjp(a["x"], a["h_0"], **valid)
    dx, dh_0, dparams = pullback(a["dy"], a["dh_n"])
    names = ["y", "h_n", "dx", "dh_0", *dparams]
    return dict(zip(names, settled([y, h_n, dx, dh_0, *dparams.values()]), strict=True))


def walked(rnn: Any, x: np.ndarray, h_0: np.ndarray, exists: np.ndarray, nonlinearity: Any) -> Any:
    """Layers, directions, rows and times in plain loops."""
    rows = h_0.shape[0]
    directions = 2 if any(name.endswith("_reverse") for name in rnn.params) else 1
    h_n = h_0.copy()
    for layer in range(rows // directions):
        outputs = []
        for d in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if d else "")
            p = {n.removesuffix(suffix): v for n, v in rnn.params.items() if n.endswith(suffix)}
            y = np.zeros((T, B, h_0.shape[2]))
            for b in range(B):
                h = h_0[layer * directions + d, b]
                for t in range(T)[:: -1 if d else 1]:
                    if exists[t, b]:
                        z = p["weight_ih"] @ x[t, b] + p["weight_hh"] @ h
                        z = z + p["bias_ih"] + p["bias_hh"] if "bias_ih" in p else z
                        h = nonlinearity(z)
                        h = p["weight_hr"] @ h if "weight_hr" in p else h
                        h = h + p["bias_hr"] if "bias_hr" in p else h
                        y[t, b] = h
                h_n[layer * directions + d, b] = h
            outputs.append(y)
        x = np.concatenate(outputs, axis=2)
    return x, h_n


def relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def existing(valid: dict[str, Any]) -> np.ndarray:
    if "mask" in valid:
        return np.asarray(valid["mask"])
    return np.arange(T)[:, None] < np.asarray(valid.get("lengths", [T] * B))[None, :]


@pytest.mark.parametrize("valid", VALID)
@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_a_loop(name: str, valid: str) -> None:
    rnn, a = NETWORKS[name](dtype="float64"), arrays(name)
    function = relu if "relu" in repr(rnn) else np.tanh
    y, h_n = rnn(a["x"], a["h_0"], **VALID[valid])
    want = walked(rnn, a["x"], a["h_0"], existing(VALID[valid]), function)
    np.testing.assert_allclose(y, want[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(h_n, want[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("valid", VALID)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_differences(name: str, valid: str) -> None:
    rnn, a = NETWORKS[name](dtype="float64"), arrays(name)
    got = run(rnn, a, **VALID[valid])

    def loss(x: np.ndarray, h_0: np.ndarray) -> float:
        y, h_n = rnn(x, h_0, **VALID[valid])
        return float(np.sum(y * a["dy"]) + np.sum(h_n * a["dh_n"]))

    want = differences(lambda x: loss(x, a["h_0"]), a["x"])
    np.testing.assert_allclose(got["dx"], want, rtol=0, atol=1e-8)
    want = differences(lambda h: loss(a["x"], h), a["h_0"])
    np.testing.assert_allclose(got["dh_0"], want, rtol=0, atol=1e-8)
    for key in rnn.shapes:
        at = rnn.params[key]

        def moved(v: np.ndarray, key: str = key) -> float:
            rnn.params[key] = v
            return loss(a["x"], a["h_0"])

        want = differences(moved, at)
        rnn.params[key] = at
        np.testing.assert_allclose(got[key], want, rtol=0, atol=2e-8, err_msg=key)


@pytest.mark.parametrize("name", ["elman", "stacked", "jordan", "stacked jordan"])
def test_every_backend_gives_the_same(xp: Any, name: str) -> None:
    plain, a = NETWORKS[name](dtype="float64"), arrays(name)
    want = run(plain, a, lengths=[2, 5, 0, 3])
    rnn = NETWORKS[name](dtype="float64", xp=xp.xp)
    rnn.params = {k: xp.asarray(to_numpy(v)) for k, v in rnn.params.items()}
    got = run(rnn, xp.arrays(a), lengths=[2, 5, 0, 3])
    for key, value in want.items():
        assert type(got[key]) is type(xp.asarray(value))
        np.testing.assert_allclose(to_numpy(got[key]), value, rtol=0, atol=1e-13, err_msg=key)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_agrees_with_torch(nonlinearity: str) -> None:
    torch = pytest.importorskip("torch")
    ours = xplstm.RNN(I, H, 2, nonlinearity=nonlinearity, bidirectional=True, dtype="float64", rng=3)
    theirs = torch.nn.RNN(I, H, 2, nonlinearity=nonlinearity, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict({k: torch.as_tensor(v) for k, v in ours.params.items()})
    a = arrays("stacked")
    x = torch.tensor(a["x"], requires_grad=True)
    y, h_n = theirs(x, torch.tensor(a["h_0"]))
    (y * torch.tensor(a["dy"])).sum().backward()
    got_y, got_h_n, pullback = ours.vjp(a["x"], a["h_0"])
    dx, _, dparams = pullback(a["dy"])
    np.testing.assert_allclose(got_y, y.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(got_h_n, h_n.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=0, atol=1e-13)
    for key, value in theirs.named_parameters():
        np.testing.assert_allclose(dparams[key], value.grad.numpy(), rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", ["elman", "jordan"])
def test_steps_are_the_sequence(name: str) -> None:
    rnn, a = NETWORKS[name](dtype="float64"), arrays(name)
    y, h_n = rnn(a["x"], a["h_0"])
    h = a["h_0"]
    for t in range(T):
        y_t, h = rnn.step(a["x"][t], h)
        np.testing.assert_allclose(y_t, y[t], rtol=0, atol=1e-15)
    np.testing.assert_allclose(h, h_n, rtol=0, atol=1e-15)


def test_trace_shows_the_hidden_units() -> None:
    rnn, a = NETWORKS["jordan"](dtype="float64"), arrays("jordan")
    hidden = rnn.trace(a["x"], a["h_0"], lengths=[2, 5, 0, 3])
    assert hidden.shape == (1, T, B, H)
    y, _ = rnn(a["x"], a["h_0"], lengths=[2, 5, 0, 3])
    made = hidden[0] @ rnn.params["weight_hr_l0"].T + rnn.params["bias_hr_l0"]
    exists = existing({"lengths": [2, 5, 0, 3]})
    np.testing.assert_allclose(made[exists], y[exists], rtol=0, atol=1e-14)
    assert not hidden[0][~exists].any()


def test_checkpointing_and_half_precision() -> None:
    rnn, a = NETWORKS["stacked jordan"](dtype="float64"), arrays("stacked jordan")
    want, got = run(rnn, a, lengths=[2, 5, 0, 3]), run(rnn, a, lengths=[2, 5, 0, 3], checkpoint=2)
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-14, err_msg=key)
    half = run(NETWORKS["stacked jordan"](dtype="float16"), {k: v.astype("float16") for k, v in a.items()})
    assert {v.dtype for v in half.values()} == {np.dtype("float16")}


def test_empty_time() -> None:
    rnn, a = NETWORKS["stacked jordan"](dtype="float64"), arrays("stacked jordan")
    y, h_n, pullback = rnn.vjp(a["x"][:0], a["h_0"])
    dx, dh_0, dparams = pullback(a["dy"][:0], a["dh_n"])
    assert y.shape == (0, B, 2 * OUT)
    assert dx.shape == (0, B, I)
    np.testing.assert_array_equal(h_n, a["h_0"])
    np.testing.assert_array_equal(dh_0, a["dh_n"])
    assert not any(v.any() for v in dparams.values())
    assert rnn.trace(a["x"][:0]).shape == (4, 0, B, H)


def test_errors_name_the_argument() -> None:
    with pytest.raises(xplstm.ArgumentError, match="nonlinearity='sigmoid' must be one of tanh, relu"):
        xplstm.RNN(3, 2, nonlinearity="sigmoid")
    with pytest.raises(xplstm.ArgumentError, match="output_size=0 must be at least 1"):
        xplstm.JordanRNN(3, 2, 0)
    with pytest.raises(xplstm.ShapeError, match="h_0 has shape"):
        xplstm.RNN(3, 2)(np.ones((4, 1, 3), "float32"), np.ones((1, 1, 5), "float32"))
    for wrong in ((np.ones((1, 1, 2)), np.ones((1, 1, 2))), [1], 3, np.zeros((), "float32")):
        with pytest.raises(xplstm.DTypeError, match="h_0 must be an array of what recurs"):
            xplstm.RNN(3, 2)(np.ones((4, 1, 3), "float32"), wrong)
    with pytest.raises(xplstm.ArgumentError, match="bidirectional=False"):
        xplstm.RNN(3, 2, bidirectional=True).step(np.ones((1, 3), "float32"))


def test_what_it_was_called_with() -> None:
    assert repr(xplstm.RNN(3, 2, nonlinearity="relu")) == "RNN(3, 2, num_layers=1, nonlinearity='relu')"
    assert repr(xplstm.JordanRNN(3, 2, 5)) == "JordanRNN(3, 2, 5, num_layers=1)"
