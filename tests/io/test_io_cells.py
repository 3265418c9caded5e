"""Check cells of libraries that are not installed against the equations in their documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io

T, B, I, H, P = 6, 3, 4, 5, 2


def sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def run(step: Any, outputs: int = H) -> Any:
    """Run a step over a batch from zero states."""
    h, c = np.zeros((B, outputs)), np.zeros((B, H))
    y = []
    for x_t in batch():
        h, c = step(x_t, h, c)
        y.append(h)
    return np.stack(y)


def batch() -> Any:
    return np.random.default_rng(1).normal(size=(T, B, I))


def random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def igfo(z: Any, c: Any, forget: float) -> Any:
    """Return h and c from sums in the gate order of TensorFlow 1 and Haiku, with a number added to f."""
    i, g, f, o = np.split(z, 4, axis=1)
    c = sigmoid(f + forget) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def ifgo(z: Any, c: Any) -> Any:
    i, f, g, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def concatenated(weights: dict[str, Any], names: tuple[str, str, str], forget: float) -> Any:
    kernel, bias, projection = (weights.get(name) for name in names)

    def step(x: Any, h: Any, c: Any) -> Any:
        h, c = igfo(np.hstack([x, h]) @ kernel + bias, c, forget)
        return (h if projection is None else h @ projection), c

    return run(step, H if projection is None else P)


def apart(
    weights: dict[str, Any], names: tuple[str, ...], biases: tuple[str, ...], projection: str = ""
) -> Any:
    ih, hh = (weights[name] for name in names)
    bias = sum((weights[name] for name in biases), np.zeros(4 * H))
    hr = weights.get(projection)

    def step(x: Any, h: Any, c: Any) -> Any:
        h, c = ifgo(x @ ih.T + h @ hh.T + bias, c)
        return (h if hr is None else h @ hr.T), c

    return run(step, H if hr is None else P)


TF = {"rnn/basic_lstm_cell/kernel:0": random(I + H, 4 * H), "rnn/basic_lstm_cell/bias:0": random(4 * H)}
PROJECTED = {
    "rnn/lstm_cell/kernel": random(I + P, 4 * H),
    "rnn/lstm_cell/bias": random(4 * H),
    "rnn/lstm_cell/projection/kernel": random(H, P),
}
ELMO = {"Cell0/LSTMCell/W_0": random(I + P, 4 * H), "Cell0/LSTMCell/B": random(4 * H)}
ELMO |= {"Cell0/LSTMCell/W_P_0": random(H, P)}
HAIKU = {"net/~/lstm_1/linear": {"w": random(I + H, 4 * H), "b": random(4 * H)}}
ALLENNLP = {"input_linearity.weight": random(4 * H, I), "state_linearity.weight": random(4 * H, H)}
ALLENNLP |= {"state_linearity.bias": random(4 * H)}
BOTH = ALLENNLP | {"input_linearity.bias": random(4, H).ravel()}
NARROW = ALLENNLP | {"state_linearity.weight": random(4 * H, P), "state_projection.weight": random(P, H)}
MXNET = {"lstm0_l0_i2h_weight": random(4 * H, I), "lstm0_l0_h2h_weight": random(4 * H, H)}
MXNET |= {"lstm0_l0_i2h_bias": random(4 * H), "lstm0_l0_h2h_bias": random(2, 2 * H).ravel()}
NO_CLIP = {"variant": None}
LINEARITY = ("input_linearity.weight", "state_linearity.weight")

CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "TensorFlow 1": (TF, concatenated(TF, (*TF, ""), 1.0), {"format": "tensorflow"}),
    "without the 1": (TF, concatenated(TF, (*TF, ""), 0.0), {"format": "tensorflow_cudnn"}),
    "with a projection": (
        PROJECTED,
        concatenated(PROJECTED, tuple(PROJECTED), 1.0),  # type: ignore[arg-type]
        {"format": "tensorflow", **NO_CLIP},
    ),
    "ELMo": (ELMO, concatenated(ELMO, tuple(ELMO), 1.0), NO_CLIP),  # type: ignore[arg-type]
    "Haiku": (HAIKU, concatenated(HAIKU["net/~/lstm_1/linear"], ("w", "b", ""), 1.0), {}),
    "AllenNLP": (ALLENNLP, apart(ALLENNLP, LINEARITY, ("state_linearity.bias",)), {}),
    "AllenNLP, two biases": (
        BOTH,
        apart(BOTH, LINEARITY, ("state_linearity.bias", "input_linearity.bias")),
        {},
    ),
    "AllenNLP, projected": (
        NARROW,
        apart(NARROW, LINEARITY, ("state_linearity.bias",), "state_projection.weight"),
        NO_CLIP,
    ),
    "MXNet": (MXNET, apart(MXNET, tuple(MXNET)[:2], tuple(MXNET)[2:]), {}),
}


@pytest.mark.parametrize("kind", CASES)
def test_cells_agree_with_their_equations(kind: str) -> None:
    weights, wanted, options = CASES[kind]
    y, _ = xplstm.io.load(weights, **options)(batch())
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", [PROJECTED, ELMO, NARROW], ids=["tensorflow", "elmo", "allennlp"])
def test_the_clips_of_projected_cells_are_asked_for(weights: Any) -> None:
    with pytest.raises(xplstm.ArgumentError, match="variant"):
        xplstm.io.load(weights, **({"format": "tensorflow"} if weights is PROJECTED else {}))


def test_what_tensorflow_adds_to_the_forget_gate_is_asked_for() -> None:
    with pytest.raises(xplstm.ArgumentError, match=r"fit several gate orders(.|\n)*tensorflow_cudnn"):
        xplstm.io.load(TF)


REFUSED = {
    "peepholes": (TF | {"rnn/basic_lstm_cell/w_f_diag": random(H)}, "w_f_diag .*peephole"),
    "no bias": ({"lstm/linear.w": random(I + H, 4 * H)}, "linear.b is missing"),
    "highway": (
        {"input_linearity.weight": random(6 * H, I), "state_linearity.weight": random(5 * H, H)},
        "input_linearity.weight has shape",
    ),
    "no inputs": ({"net/lstm/linear": {"w": random(H, 4 * H), "b": random(4 * H)}}, "contains no known LSTM"),
    "no units": ({"net/lstm/linear": {"w": random(H, 0), "b": random(0)}}, "contains no known LSTM"),
    "another layer": (
        {"mlp/linear": {"w": random(I + H, 4 * H), "b": random(4 * H)}},
        "contains no known LSTM",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_such_cell_is_refused(kind: str) -> None:
    weights, message = REFUSED[kind]
    with pytest.raises(xplstm.FormatError, match=message):
        xplstm.io.load(weights, **({"format": "tensorflow"} if kind == "peepholes" else {}))


@pytest.mark.parametrize("kind", CASES)
def test_inspection_names_the_tensors_of_a_cell(kind: str) -> None:
    weights, _, _ = CASES[kind]
    for network in xplstm.io.inspect(weights).networks:
        assert network[2] == "float64"


def test_a_cell_is_found_by_the_word_lstm_alone() -> None:
    weights = {"rnn/lstm/kernel": random(I + H, 4 * H), "rnn/lstm/bias": random(4 * H)}
    y, _ = xplstm.io.load(weights, format="tensorflow")(batch())
    np.testing.assert_allclose(y, concatenated(weights, (*weights, ""), 1.0), rtol=0, atol=1e-12)


def test_elmo_in_its_own_file(tmp_path: Any) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "elmo_weights.hdf5", "w") as file:
        for name, a in ELMO.items():
            file[f"RNN_0/RNN/MultiRNNCell/{name}"] = a.astype("f4")
    lstm = xplstm.io.load(tmp_path / "elmo_weights.hdf5", variant=xplstm.Variant(cell_clip=3.0))
    assert repr(lstm) == "LSTM(4, 5, num_layers=1, variant=Variant(cell_clip=3.0), proj_size=2)"


def test_keys_of_a_flat_state_are_paths() -> None:
    lstm = xplstm.LSTM(I, H, rng=0)
    flat = {("cell", *name.split(".")): a for name, a in xplstm.io.to_mapping(lstm, "nnx").items()}
    np.testing.assert_array_equal(
        xplstm.io.load(flat)(batch().astype("f4"))[0], lstm(batch().astype("f4"))[0]
    )


def test_a_gru_of_mxnet_is_that_of_pytorch() -> None:
    gru = xplstm.GRU(I, H, rng=0)
    names = {
        "weight_ih": "i2h_weight",
        "weight_hh": "h2h_weight",
        "bias_ih": "i2h_bias",
        "bias_hh": "h2h_bias",
    }
    given = {names[name.removesuffix("_l0")]: a for name, a in gru.params.items()}
    assert repr(xplstm.io.load(given)) == "GRU(4, 5, num_layers=1)"
    assert set(xplstm.io.to_mapping(gru, "mxnet")) == set(given)


@pytest.mark.parametrize("layout", ["allennlp", "mxnet", "tensorflow", "tensorflow_cudnn", "elmo", "haiku"])
@pytest.mark.parametrize("proj_size", [0, P])
def test_what_is_written_is_read_again(layout: str, proj_size: int) -> None:
    lstm = xplstm.LSTM(I, H, num_layers=2, proj_size=proj_size, rng=0)
    if proj_size and layout in ("mxnet", "haiku"):
        with pytest.raises(xplstm.ArgumentError, match="proj_size=2, which format"):
            xplstm.io.to_mapping(lstm, layout)
        return
    given = xplstm.io.to_mapping(lstm, layout)
    if layout in ("tensorflow", "tensorflow_cudnn", "haiku"):
        given = {name.replace("l0.", "lstm0.").replace("l1.", "lstm1."): a for name, a in given.items()}
    prefixes = list(dict.fromkeys(name.partition(".")[0] for name in given))
    again = xplstm.io.load(given, format=layout, prefix=sorted(prefixes), variant=None)
    x = batch().astype("f4")
    np.testing.assert_allclose(again(x)[0], lstm(x)[0], rtol=0, atol=1e-6)
    with pytest.raises(xplstm.ArgumentError, match="has no biases"):
        xplstm.io.to_mapping(xplstm.LSTM(I, H, bias=False), "haiku")


def test_tensorflow_has_c_before_h() -> None:
    c, h = np.zeros((B, H)), np.ones((B, H))
    assert xplstm.io.from_state((c, h), "tensorflow").h is h
    assert xplstm.io.from_state((h, c), "haiku").h is h
