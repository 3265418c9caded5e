"""Check ranges, variances and places of the initial values, and that a seed determines them."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import _array, init

H, FEATURES, P = 24, 17, 9
RULES = [
    init.lstm_uniform,
    init.lstm_glorot_orthogonal,
    init.lstm_glorot,
    init.lstm_normal,
    init.lstm_small_uniform,
]


def lstm_shapes(**options):
    return xplstm.LSTM(FEATURES, H, num_layers=2, bidirectional=True, **options).shapes


def gates(weight):
    assert weight.shape[0] == 4 * H
    return weight.reshape(4, H, -1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{}, {"proj_size": P}, {"bias": False}])
def test_every_rule_fills_every_parameter_in_float64(rule, options):
    shapes = lstm_shapes(**options)
    values = rule(shapes, 3)
    assert {name: a.shape for name, a in values.items()} == shapes
    assert list(values) == list(shapes)
    assert all(a.dtype == np.float64 and np.all(np.isfinite(a)) for a in values.values())


@pytest.mark.parametrize("rule", RULES)
def test_one_seed_gives_one_set_of_values(rule):
    shapes = lstm_shapes()
    first, again, other = rule(shapes, 3), rule(shapes, np.random.default_rng(3)), rule(shapes, 4)
    assert all(np.array_equal(first[name], again[name]) for name in shapes)
    assert not np.array_equal(first["weight_ih_l0"], other["weight_ih_l0"])
    assert not np.array_equal(first["weight_hh_l0"], first["weight_hh_l0_reverse"])


@pytest.mark.parametrize("rule", RULES)
def test_a_seed_gives_the_same_values_on_every_backend(rule, xp):
    lstm = xplstm.LSTM(3, 5, xp=xp.xp, dtype="float64")
    lstm.initialize(rule, rng=11)
    expected = rule(lstm.shapes, 11)
    for name, a in lstm.params.items():
        assert np.array_equal(_array.to_numpy(a), expected[name])


def test_uniform_stays_within_its_bound_and_fills_it():
    a = init.uniform((200, 50), 0.25, 0)
    assert np.abs(a).max() <= 0.25
    assert np.abs(a).max() > 0.2499
    assert abs(a.mean()) < 0.005
    assert abs(a.var() - 0.25**2 / 3) < 0.001


def test_lstm_uniform_is_bounded_by_one_over_the_root_of_the_hidden_size():
    for a in init.lstm_uniform(lstm_shapes(proj_size=P), 0).values():
        assert np.abs(a).max() <= H**-0.5
        assert np.abs(a).max() > 0.85 * H**-0.5


def test_glorot_has_the_variance_of_its_paper():
    a = init.glorot_uniform((300, 200), 0)
    assert abs(a.var() / (2 / 500) - 1) < 0.02
    assert np.abs(a).max() <= (6 / 500) ** 0.5


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 1)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape):
    w = init.orthogonal(shape, 5)
    product = w @ w.T if shape[0] <= shape[1] else w.T @ w
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-14)
    assert w.shape == shape
    assert w.flags.c_contiguous


def test_orthogonal_favours_no_sign():
    rng = np.random.default_rng(0)
    corners = np.asarray([init.orthogonal((3, 3), rng)[0, 0] for _ in range(400)])
    assert abs(np.mean(corners > 0) - 0.5) < 0.1


def test_glorot_orthogonal_works_gate_by_gate():
    values = init.lstm_glorot_orthogonal(lstm_shapes(proj_size=P), 0)
    for gate in gates(values["weight_hh_l1_reverse"]):
        np.testing.assert_allclose(gate.T @ gate, np.eye(P), atol=1e-14)
    for gate in gates(values["weight_ih_l0"]):
        assert 0.9 * (6 / (H + FEATURES)) ** 0.5 < np.abs(gate).max() <= (6 / (H + FEATURES)) ** 0.5
    projection = values["weight_hr_l0"]
    np.testing.assert_allclose(projection @ projection.T, np.eye(P), atol=1e-14)


def test_glorot_orthogonal_opens_the_forget_gate_once():
    values = init.lstm_glorot_orthogonal(lstm_shapes(), 0)
    for layer in ("l0", "l0_reverse", "l1", "l1_reverse"):
        expected = np.repeat([0.0, 1.0, 0.0, 0.0], H)
        assert np.array_equal(values[f"bias_ih_{layer}"], expected)
        assert not values[f"bias_hh_{layer}"].any()


def test_glorot_counts_both_weights_of_a_gate_as_one_matrix():
    shapes = lstm_shapes(proj_size=P)
    values = init.lstm_glorot(shapes, 0)
    for suffix, features in (("l0", FEATURES), ("l1_reverse", 2 * P)):
        bound = (6 / (H + P + features)) ** 0.5
        for name in (f"weight_ih_{suffix}", f"weight_hh_{suffix}"):
            assert 0.98 * bound < np.abs(values[name]).max() <= bound
    assert np.abs(values["weight_hr_l0"]).max() <= (6 / (H + P)) ** 0.5
    assert not any(a.any() for name, a in values.items() if name.startswith("bias"))


def test_the_documents_rules():
    normal = init.lstm_normal(lstm_shapes(), 0)
    assert abs(normal["weight_ih_l1"].std() - 1) < 0.02
    small = init.lstm_small_uniform(lstm_shapes(), 0)
    assert 0.99e-4 < np.abs(small["weight_ih_l1"]).max() <= 1e-4
    for values in (normal, small):
        assert not any(a.any() for name, a in values.items() if name.startswith("bias"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: init.uniform((2,), -0.5), xplstm.ArgumentError, "bound=-0.5 must be in \\[0, inf\\)"),
        (lambda: init.uniform((2,), float("nan")), xplstm.ArgumentError, "bound=nan"),
        (lambda: init.uniform((2,), 1e308), xplstm.ArgumentError, "bound=1e\\+308 must be at most 8.98"),
        (lambda: init.lstm_uniform({"weight_hh_l0": ()}), xplstm.ShapeError, r"shape=\(\) must have 2"),
        (
            lambda: init.lstm_glorot({"weight_hh_l0": (8, 1), "weight_hr_l0": (2,)}),
            xplstm.ShapeError,
            r"shape=\(2,\) must have 2",
        ),
        (lambda: init.glorot_uniform((3,)), xplstm.ShapeError, r"shape=\(3,\) must have 2 dimensions"),
        (lambda: init.orthogonal((3, 2, 1)), xplstm.ShapeError, r"shape=\(3, 2, 1\)"),
        (lambda: init.lstm_uniform({"weight_hr_l0": (2, 3)}), xplstm.ShapeError, "4 \\* hidden_size"),
        (
            lambda: init.lstm_glorot_orthogonal({"weight_ih_l0": (10, 3)}),
            xplstm.ShapeError,
            "10 rows, expected 8 for four gates of hidden_size=2",
        ),
        (
            lambda: init.lstm_glorot({"weight_ih_l0": (8, 3)}),
            xplstm.ShapeError,
            "weight_ih_l0 but not weight_hh_l0; this rule needs both",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "rule", [init.lstm_uniform, init.lstm_glorot_orthogonal, init.forget_bias(init.rnn_uniform)]
)
def test_a_rule_for_an_lstm_refuses_a_simple_network(rule):
    for network in (xplstm.RNN(3, 8), xplstm.JordanRNN(3, 8, 2), xplstm.RNN(3, 2)):
        with pytest.raises(xplstm.ShapeError, match="This rule is for an LSTM"):
            network.initialize(rule, rng=0)


def test_a_forget_bias_that_could_do_nothing_is_refused():
    with pytest.raises(xplstm.ArgumentError, match="value=nan must be finite"):
        init.forget_bias(init.lstm_uniform, float("nan"))
    with pytest.raises(xplstm.ArgumentError, match="needs bias=True"):
        xplstm.LSTM(3, 2, bias=False).initialize(init.forget_bias(init.lstm_uniform))


def test_simple_networks_have_orthogonal_recurrence():
    rnn = xplstm.RNN(3, 8, dtype="float64")
    rnn.initialize(init.rnn_glorot_orthogonal, rng=0)
    w = rnn.params["weight_hh_l0"]
    np.testing.assert_allclose(w @ w.T, np.eye(8), rtol=0, atol=1e-12)
    assert abs(rnn.params["weight_ih_l0"]).max() <= (6 / (3 + 8)) ** 0.5
    assert not rnn.params["bias_ih_l0"].any()
