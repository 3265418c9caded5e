"""Check RNN, JordanRNN and GRU against a loop, differences and PyTorch, on every backend."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import settled, slopes
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
    "gru": lambda **o: xplstm.GRU(I, H, rng=7, **o),
    "gru, reset before": lambda **o: xplstm.GRU(I, H, reset_after=False, rng=7, **o),
    "stacked gru": lambda **o: xplstm.GRU(I, H, 2, bidirectional=True, rng=7, **o),
    "stacked gru, reset before": lambda **o: xplstm.GRU(
        I, H, 2, bidirectional=True, reset_after=False, bias=False, rng=7, **o
    ),
}
VALID: dict[str, dict[str, Any]] = {
    "full": {},
    "ragged": {"lengths": [2, 5, 0, 3]},
    "holes": {"mask": np.random.default_rng(0).random((T, B)) < 0.6},
}


def sizes(name: str) -> tuple[int, int]:
    """Return the number of layers times directions, and the size of the recurrent state."""
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


def gru_step(p: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, reset_after: bool) -> np.ndarray:
    """Run one step of one batch entry, one unit at a time."""
    zeros, new = np.zeros(3 * H), h.copy()
    b_ih, b_hh = p.get("bias_ih", zeros), p.get("bias_hh", zeros)
    u = p["weight_ih"] @ x + b_ih
    r, z = (1 / (1 + np.exp(-(u + p["weight_hh"] @ h + b_hh)[k * H : (k + 1) * H])) for k in (0, 1))
    for k in range(H):
        row = p["weight_hh"][2 * H + k]
        last = r[k] * (row @ h + b_hh[2 * H + k]) if reset_after else row @ (r * h) + b_hh[2 * H + k]
        new[k] = (1 - z[k]) * np.tanh(u[2 * H + k] + last) + z[k] * h[k]
    return new


def rnn_step(p: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, nonlinearity: Any) -> np.ndarray:
    """Run one step of one batch entry."""
    z = p["weight_ih"] @ x + p["weight_hh"] @ h
    h = nonlinearity(z + p["bias_ih"] + p["bias_hh"] if "bias_ih" in p else z)
    h = p["weight_hr"] @ h if "weight_hr" in p else h
    return h + p["bias_hr"] if "bias_hr" in p else h


def walked(rnn: Any, x: np.ndarray, h_0: np.ndarray, exists: np.ndarray) -> Any:
    """Run all layers, directions, batch entries and steps in plain loops."""
    text = repr(rnn)
    step: Any = partial(rnn_step, nonlinearity=relu if "relu" in text else np.tanh)
    if text.startswith("GRU"):
        step = partial(gru_step, reset_after="reset_after=False" not in text)
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
                        h = step(p, x[t, b], h)
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
    y, h_n = rnn(a["x"], a["h_0"], **VALID[valid])
    want = walked(rnn, a["x"], a["h_0"], existing(VALID[valid]))
    np.testing.assert_allclose(y, want[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(h_n, want[1], rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("valid", VALID)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_differences(name: str, valid: str) -> None:
    rnn, a = NETWORKS[name](dtype="float64"), arrays(name)
    got = run(rnn, a, **VALID[valid])

    def loss(x: np.ndarray, h_0: np.ndarray) -> float:
        y, h_n = rnn(x, h_0, **VALID[valid])
        return float(np.sum(y * a["dy"]) + np.sum(h_n * a["dh_n"]))

    np.testing.assert_allclose(
        *slopes(lambda x: loss(x, a["h_0"]), a["x"], got["dx"]), rtol=0, atol=1e-8, err_msg="x"
    )
    np.testing.assert_allclose(
        *slopes(lambda h: loss(a["x"], h), a["h_0"], got["dh_0"]), rtol=0, atol=1e-8, err_msg="h_0"
    )
    for key, shape in rnn.shapes.items():
        at = rnn.params[key]
        assert got[key].shape == shape

        def moved(v: np.ndarray, key: str = key) -> float:
            rnn.params[key] = v
            return loss(a["x"], a["h_0"])

        along = slopes(moved, at, got[key])
        rnn.params[key] = at
        np.testing.assert_allclose(*along, rtol=0, atol=2e-8, err_msg=key)


@pytest.mark.parametrize(
    "name", ["elman", "stacked", "jordan", "stacked jordan", "stacked gru", "gru, reset before"]
)
def test_every_backend_gives_the_same(xp: Any, name: str) -> None:
    plain, a = NETWORKS[name](dtype="float64"), arrays(name)
    want = run(plain, a, lengths=[2, 5, 0, 3])
    rnn = NETWORKS[name](dtype="float64", xp=xp.xp)
    rnn.params = {k: xp.asarray(to_numpy(v)) for k, v in rnn.params.items()}
    got = run(rnn, xp.arrays(a), lengths=[2, 5, 0, 3])
    for key, value in want.items():
        assert type(got[key]) is type(xp.asarray(value))
        np.testing.assert_allclose(to_numpy(got[key]), value, rtol=0, atol=1e-13, err_msg=key)


@pytest.mark.parametrize("name", ["stacked", "stacked relu", "stacked gru"])
def test_agrees_with_torch(name: str, torch) -> None:
    kind, options = (
        ("GRU", {}) if "gru" in name else ("RNN", {"nonlinearity": "relu" if "relu" in name else "tanh"})
    )
    ours = getattr(xplstm, kind)(I, H, 2, bidirectional=True, dtype="float64", rng=3, **options)
    theirs = getattr(torch.nn, kind)(I, H, 2, bidirectional=True, dtype=torch.float64, **options)
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


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["elman", "jordan", "gru", "gru, reset before"])
def test_steps_are_the_sequence(name: str, frozen: bool) -> None:
    rnn, a = NETWORKS[name](dtype="float64"), arrays(name)
    rnn = rnn.freeze() if frozen else rnn
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


def test_trace_shows_the_gates_of_a_gru() -> None:
    rnn, a = NETWORKS["stacked gru"](dtype="float64"), arrays("stacked gru")
    r, z, n, h = rnn.trace(a["x"], a["h_0"], lengths=[2, 5, 0, 3])
    assert r.shape == z.shape == n.shape == h.shape == (4, T, B, H)
    y, _ = rnn(a["x"], a["h_0"], lengths=[2, 5, 0, 3])
    np.testing.assert_allclose(np.concatenate(h[2:], axis=-1), y, rtol=0, atol=1e-14)
    before = np.concatenate([a["h_0"][2][None], h[2, :-1]])
    exists = existing({"lengths": [2, 5, 0, 3]})
    made = (1 - z[2]) * n[2] + z[2] * before
    np.testing.assert_allclose(made[exists], h[2][exists], rtol=0, atol=1e-15)
    u = a["x"][0] @ rnn.params["weight_ih_l0"][:H].T + a["h_0"][0] @ rnn.params["weight_hh_l0"][:H].T
    u = u + rnn.params["bias_ih_l0"][:H] + rnn.params["bias_hh_l0"][:H]
    np.testing.assert_allclose(r[0, 0][exists[0]], (1 / (1 + np.exp(-u)))[exists[0]], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["elman", "jordan", "gru"])
def test_frozen_copies_outlive_changes_and_pickling(name: str) -> None:
    rnn, a = NETWORKS[name](dtype="float64"), arrays(name)
    want, frozen = rnn(a["x"], a["h_0"]), rnn.freeze()
    rnn.params = {key: value * 0 for key, value in rnn.params.items()}
    for copy in (frozen, pickle.loads(pickle.dumps(frozen))):
        for got, value in zip(copy(a["x"], a["h_0"]), want, strict=True):
            np.testing.assert_array_equal(got, value)
        assert repr(copy) == f"FrozenRNN({rnn!r})"
    assert rnn.explain(a["x"]) == frozen.explain(a["x"])
    with xplstm.use_kernel("reference"):
        assert f"not the cell of {type(rnn).__name__}" in str(rnn.explain(a["x"]))


@pytest.mark.parametrize("name", ["stacked jordan", "stacked gru", "stacked gru, reset before"])
def test_checkpointing_and_half_precision(name: str) -> None:
    rnn, a = NETWORKS[name](dtype="float64"), arrays(name)
    want, got = run(rnn, a, lengths=[2, 5, 0, 3]), run(rnn, a, lengths=[2, 5, 0, 3], checkpoint=2)
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-14, err_msg=key)
    half = run(NETWORKS[name](dtype="float16"), {k: v.astype("float16") for k, v in a.items()})
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
        with pytest.raises(xplstm.DTypeError, match="h_0 must be an array, got"):
            xplstm.RNN(3, 2)(np.ones((4, 1, 3), "float32"), wrong)
    with pytest.raises(xplstm.DTypeError, match="reset_after='yes' must be"):
        xplstm.GRU(3, 2, reset_after="yes")
    with pytest.raises(xplstm.ArgumentError, match="bidirectional=False"):
        xplstm.RNN(3, 2, bidirectional=True).step(np.ones((1, 3), "float32"))


def test_what_it_was_called_with() -> None:
    assert repr(xplstm.RNN(3, 2, nonlinearity="relu")) == "RNN(3, 2, num_layers=1, nonlinearity='relu')"
    assert repr(xplstm.JordanRNN(3, 2, 5)) == "JordanRNN(3, 2, 5, num_layers=1)"
    for gru in (xplstm.GRU(3, 2, 4), xplstm.GRU(3, 2, reset_after=False, bias=False, batch_first=True)):
        assert repr(eval(repr(gru), {"GRU": xplstm.GRU})) == repr(gru)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_goes_through_a_file(reset_after: bool, tmp_path: Any) -> None:
    gru = xplstm.GRU(I, H, 2, reset_after=reset_after, bidirectional=True, rng=1)
    xplstm.io.save(tmp_path / "gru.safetensors", gru)
    found = xplstm.io.load(tmp_path / "gru.safetensors")
    assert repr(found) == repr(gru)
    for name, value in gru.params.items():
        np.testing.assert_array_equal(found.params[name], value)
