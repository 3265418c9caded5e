"""Check the conversion of separate gate weights and column vectors in both directions, and their results."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xplstm
from tests.support.pages import ROOT
from xplstm import _array
from xplstm.io import columns, gates, layers

T, I, H = 4, 3, 5


def joined(I=I, H=H, candidate="C", columns=True, seed=0):
    """Return distinct weights in the form of the documents 000, 004 and 002."""
    rng = np.random.default_rng(seed)
    found = {f"W{k}": rng.standard_normal((H, H + I)) for k in f"fi{candidate}o"}
    return found | {f"b{k}": rng.standard_normal((H, 1) if columns else H) for k in f"fi{candidate}o"}


def parted(I=I, H=H, seed=0):
    """Return distinct weights in the form of the document 001."""
    found = {}
    rng = np.random.default_rng(seed)
    for k in "fioc":
        found |= {f"W{k}h": rng.standard_normal((H, H)), f"W{k}x": rng.standard_normal((H, I))}
        found[f"b{k}"] = rng.standard_normal((H, 1))
    return found


def logistic(z):
    return 1 / (1 + np.exp(-z))


def their_step(weights, x, h, c):
    """Run one step on column vectors with joined weights, written from the equations."""
    z = {k: weights[f"W{k}"] @ np.vstack((h, x)) + weights[f"b{k}"] for k in "fiCo"}
    c = logistic(z["f"]) * c + logistic(z["i"]) * np.tanh(z["C"])
    return logistic(z["o"]) * np.tanh(c), c


def their_sequence(weights, xs):
    h = c = np.zeros((H, 1))
    rows = []
    for x in xs:
        h, c = their_step(weights, x.reshape(-1, 1), h, c)
        rows.append(h)
    return np.hstack(rows).T


def hosted(arrays):
    return {name: _array.to_numpy(a) for name, a in arrays.items()}


def assert_same(found, expected):
    found = hosted(found)
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name, strict=True)


def test_joined_there_and_back(xp):
    for weights in (joined(), joined(candidate="c", columns=False)):
        letter, columns_ = ("C", True) if "WC" in weights else ("c", False)
        params = gates.from_joined(xp.arrays(weights))
        assert_same(gates.to_joined(params, candidate=letter, columns=columns_), weights)


def test_parted_there_and_back(xp):
    assert_same(gates.to_parted(gates.from_parted(xp.arrays(parted()))), parted())


def test_without_biases_there_and_back():
    bare = {name: a for name, a in joined().items() if name.startswith("W")}
    assert gates.from_joined(bare).bias_ih is None
    assert_same(gates.to_joined(gates.from_joined(bare)), bare)
    bare = {name: a for name, a in parted().items() if name.startswith("W")}
    assert_same(gates.to_parted(gates.from_parted(bare)), bare)


@pytest.mark.parametrize("form", ["joined", "parted"])
def test_an_lstm_there_and_back_computes_the_same(form, xp):
    lstm = xplstm.LSTM(I, H, num_layers=2, bidirectional=True, xp=xp.xp, dtype="float64", rng=1)
    to, from_ = getattr(gates, f"to_{form}"), getattr(gates, f"from_{form}")
    again = layers.to_lstm([[from_(to(p)) for p in layer] for layer in layers.split(lstm.params)])
    x = xp.asarray(np.random.default_rng(2).standard_normal((T, 2, I)))
    expected, found = lstm(x)[0], again(x)[0]
    np.testing.assert_allclose(_array.to_numpy(found), _array.to_numpy(expected), rtol=0, atol=1e-14)


def test_forward_is_the_documents_step(xp):
    rng = np.random.default_rng(3)
    x, h, c = rng.standard_normal((I, 2)), rng.standard_normal((H, 2)), rng.standard_normal((H, 2))
    params = gates.from_joined(xp.arrays(joined()))
    found = columns.forward(*(xp.asarray(a) for a in (x, h, c)), params)
    for b in range(2):
        expected = their_step(joined(), x[:, [b]], h[:, [b]], c[:, [b]])
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(_array.to_numpy(got)[:, [b]], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", ["rows", "columns", "list of vectors", "list of columns"])
def test_forward_sequence_is_the_documents(form, xp):
    X = np.random.default_rng(4).standard_normal((T, I))
    given = X if "vector" in form or form == "rows" else X[:, :, None]
    given = [xp.asarray(x) for x in given] if form.startswith("list") else xp.asarray(given)
    found = columns.forward_sequence(given, gates.from_joined(xp.arrays(joined())))
    assert found.shape == (T, H)
    np.testing.assert_allclose(_array.to_numpy(found), their_sequence(joined(), X), rtol=0, atol=1e-14)


def test_forward_sequence_of_no_steps(xp):
    params = gates.from_joined(xp.arrays(joined()))
    assert columns.forward_sequence([], params).shape == (0, H)
    assert columns.forward_sequence(xp.asarray(np.zeros((0, I))), params).shape == (0, H)


def test_the_specifications_joined_record():
    path = ROOT / "spec" / "vectors" / "document-000-joined.json"
    record = json.loads(path.read_text(encoding="utf-8"))

    def read(entry):
        return np.asarray([float(v) for v in entry["data"]]).reshape(entry["shape"])

    params = gates.from_joined({name: read(a) for name, a in record["printed"].items()})
    x, expected = read(record["inputs"]["x"]), read(record["outputs"]["y"])
    np.testing.assert_allclose(columns.forward_sequence(x[:, 0], params), expected[:, 0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("form", "weights"), [("joined", joined()), ("parted", parted())])
def test_gradients_in_their_form(form, weights, xp):
    to, from_ = getattr(gates, f"to_{form}"), getattr(gates, f"from_{form}")
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((T, 2, I)), rng.standard_normal((T, 2, H))
    _, _, pullback = xplstm.lstm_vjp(xp.asarray(x), from_(xp.arrays(weights)))
    found = hosted(to(pullback(xp.asarray(dy))[2], gradient=True))

    def total(changed):
        return np.sum(xplstm.lstm(x, from_(changed))[0] * dy)

    for name, a in weights.items():
        direction = rng.standard_normal(a.shape)
        ends = [total(weights | {name: a + sign * 1e-6 * direction}) for sign in (1, -1)]
        measured = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(np.sum(found[name] * direction), measured, rtol=1e-7, atol=1e-8)


def without(weights, name):
    return {key: a for key, a in weights.items() if key != name}


one = xplstm.LSTMParams(np.ones((4 * H, I)), np.ones((4 * H, H)))
WRONG = [
    (lambda: gates.from_joined(without(joined(), "Wo")), xplstm.ArgumentError, r"missing \['Wo'\]"),
    (lambda: gates.from_joined(without(joined(), "bi")), xplstm.ArgumentError, r"missing \['bi'\]"),
    (lambda: gates.from_joined(joined() | {"Wc": joined()["WC"]}), xplstm.ArgumentError, r"unknown \['Wc'\]"),
    (
        lambda: gates.from_joined(joined() | {"Wf": np.ones((H, H))}),
        xplstm.ShapeError,
        r"Wf has shape \(5, 5\), expected \(H, H \+ I\)",
    ),
    (
        lambda: gates.from_joined(joined() | {"Wi": np.ones((H, H)), "WC": np.ones(3)}),
        xplstm.ShapeError,
        r"Wi has shape \(5, 5\), expected \(5, 8\); WC has shape \(3,\), expected \(5, 8\)",
    ),
    (
        lambda: gates.from_joined(joined() | {"bo": np.ones((H, H))}),
        xplstm.ShapeError,
        r"bo has shape \(5, 5\), expected \(5, 1\) or \(5,\)",
    ),
    (
        lambda: gates.from_joined(joined() | {"bo": np.ones((H, 1), dtype="float32")}),
        xplstm.DTypeError,
        "bo has dtype float32",
    ),
    (
        lambda: gates.from_parted(parted() | {"Wch": np.ones((H, H + I))}),
        xplstm.ShapeError,
        r"Wch has shape \(5, 8\), expected \(5, 5\)",
    ),
    (
        lambda: gates.from_parted(parted() | {"Wfx": np.ones((H, 0))}),
        xplstm.ShapeError,
        r"Wfx has shape \(5, 0\)",
    ),
    (
        lambda: gates.to_joined(xplstm.LSTMParams(*(np.ones((8, 2)),) * 2, weight_hr=np.ones((1, 2)))),
        xplstm.ArgumentError,
        "params has weight_hr, which this form does not support",
    ),
    (
        lambda: gates.to_joined(gates.from_joined(joined()), candidate="g"),
        xplstm.ArgumentError,
        "candidate='g' must be one of C, c",
    ),
    (
        lambda: columns.forward(
            np.ones((I, 1)), np.ones((H, 2)), np.ones((H, 1)), gates.from_joined(joined())
        ),
        xplstm.ShapeError,
        r"h_prev has shape \(5, 2\), expected \(5, 1\)",
    ),
    (
        lambda: columns.forward(np.ones(I), np.ones((H, 1)), np.ones((H, 1)), gates.from_joined(joined())),
        xplstm.ShapeError,
        r"x has shape \(3,\), expected \(3, B\)",
    ),
    (
        lambda: columns.forward_sequence([np.ones(I), np.ones(I + 1)], gates.from_joined(joined())),
        xplstm.ShapeError,
        r"X\[1\] has shape \(4,\), expected \(3,\)",
    ),
    (
        lambda: columns.forward_sequence(np.ones((T, I + 1)), gates.from_joined(joined())),
        xplstm.ShapeError,
        r"X has shape \(4, 4\), expected \(T, 3\)",
    ),
    (lambda: columns.from_columns(np.ones(H), np.ones(H)), xplstm.ShapeError, r"h has shape \(5,\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"num_layers": 3, "bidirectional": True}, {"proj_size": 2, "num_layers": 2}],
)
def test_layers_there_and_back(options, xp):
    lstm = xplstm.LSTM(I, H, xp=xp.xp, dtype="float64", rng=1, **options)
    parts = layers.split(lstm.params)
    assert len(parts) == options.get("num_layers", 1)
    again = layers.to_lstm(parts, batch_first=True)
    assert repr(again) == repr(xplstm.LSTM(I, H, batch_first=True, **options))
    assert list(again.params) == list(lstm.params)
    assert_same(again.params, hosted(lstm.params))


def test_layers_of_a_variant_there_and_back():
    variant = xplstm.Variant(peepholes=True, layer_norm=True, cell_clip=2.0)
    lstm = xplstm.LSTM(I, H, num_layers=2, bidirectional=True, variant=variant, dtype="float64", rng=1)
    parts = layers.split(lstm.params)
    assert parts[1][1].gain_c is lstm.params["gain_c_l1_reverse"]
    assert_same(layers.to_lstm(parts, variant=variant).params, lstm.params)
    with pytest.raises(xplstm.ArgumentError, match="weight_ch_l0 is unknown"):
        layers.to_lstm(parts)
    with pytest.raises(xplstm.ArgumentError, match="params has weight_ch, gain_ih, gain_hh, gain_c, bias_c"):
        gates.to_parted(parts[0][0])


def test_layers_split_gradients_too():
    lstm = xplstm.LSTM(I, H, num_layers=2, dtype="float64", rng=1)
    y, _, pullback = lstm.vjp(np.ones((T, 2, I)))
    dparams = pullback(y)[2]
    assert layers.split(dparams)[1][0].weight_hh is dparams["weight_hh_l1"]


WRONG_LAYERS = [
    (lambda: layers.to_lstm([]), xplstm.ArgumentError, "layers is empty"),
    (
        lambda: layers.to_lstm([one, (one, one)]),
        xplstm.ArgumentError,
        r"layers\[1\] has 2 directions, expected 1",
    ),
    (lambda: layers.to_lstm([()]), xplstm.ArgumentError, r"layers\[0\] has 0 directions, expected 1 or 2"),
    (lambda: layers.to_lstm([[]]), xplstm.ArgumentError, r"layers\[0\] has 0 directions"),
    (lambda: layers.to_lstm([["weight"]]), xplstm.DTypeError, r"layers\[0\] must be LSTMParams.*got str"),
    (
        lambda: layers.to_lstm([one, one]),
        xplstm.ShapeError,
        r"weight_ih_l1 has shape \(20, 3\), expected \(20, 5\)",
    ),
    (lambda: layers.split({"weight": np.ones(3)}), xplstm.ArgumentError, r"unknown \['weight'\]"),
    (lambda: layers.split({"weight_ih_l0": np.ones(3)}), xplstm.ArgumentError, r"missing \['weight_hh_l0'\]"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG_LAYERS, ids=[w[2][:40] for w in WRONG_LAYERS])
def test_wrong_layers_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
