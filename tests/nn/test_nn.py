"""Check the public classes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import CASES, Case, differences, run
from xplstm import _array, _dispatch, init
from xplstm._array import to_numpy
from xplstm.kernels import native

X = np.random.default_rng(1).normal(size=(5, 4, 3)).astype(np.float32)


def host(a: Any) -> np.ndarray:
    return to_numpy(a)


# LSTM


def test_names_shapes_and_defaults_are_those_of_torch(torch) -> None:
    for options in ({}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}, {"bias": False}):
        module, lstm = torch.nn.LSTM(3, 4, **options), xplstm.LSTM(3, 4, **options)
        assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == lstm.shapes
        assert list(lstm.params) == list(lstm.shapes)
        assert {v.dtype.name for v in lstm.params.values()} == {"float32"}


def test_a_seed_gives_the_same_parameters_on_every_backend(xp: Any) -> None:
    want = xplstm.LSTM(3, 2, num_layers=2, rng=3)
    got = xplstm.LSTM(3, 2, num_layers=2, rng=3, xp=xp.xp)
    for name, value in want.params.items():
        np.testing.assert_array_equal(host(got.params[name]), value)
        assert np.abs(value).max() <= 2**-0.5


def test_initialize_keeps_dtype_and_backend(xp: Any) -> None:
    lstm = xplstm.LSTM(3, 2, xp=xp.xp)
    lstm.initialize(init.lstm_glorot_orthogonal, rng=0)
    want = init.lstm_glorot_orthogonal(lstm.shapes, rng=0)
    for name, value in lstm.params.items():
        np.testing.assert_array_equal(host(value), want[name].astype(np.float32))
    assert host(lstm.params["bias_ih_l0"])[2:4].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["plain", "ragged", "holes", "bidirectional_ragged", "projection"])
def test_batch_first_is_the_transpose(name: str) -> None:
    case = CASES[name]
    arrays = case.arrays()
    valid = case.valid()
    want = run(case.lstm(), arrays, **valid).flat()
    swapped = Case(**{**vars(case), "options": {**case.options, "batch_first": True}})
    arrays |= {k: arrays[k].swapaxes(0, 1) for k in ("x", "dy")}
    valid |= {"mask": valid["mask"].T} if "mask" in valid else {}
    got = run(swapped.lstm(), arrays, **valid).flat()
    for key, value in want.items():
        turned = got[key].swapaxes(0, 1) if key in ("y", "dx") else got[key]
        np.testing.assert_allclose(turned, value, rtol=0, atol=1e-14, err_msg=key)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "valid", [{}, {"lengths": 3}, {"lengths": np.asarray(3)}, {"mask": np.asarray([1, 0, 1, 1, 0], bool)}]
)
def test_unbatched_is_a_batch_of_one(xp: Any, batch_first: bool, valid: dict[str, Any]) -> None:
    case = Case(B=1, options={"bidirectional": True, "num_layers": 2})
    arrays = case.arrays()
    batched = dict(valid)
    if "lengths" in valid:
        batched["lengths"] = [int(valid["lengths"])]
    if "mask" in valid:
        batched["mask"] = valid["mask"][:, None]
    want = run(case.lstm(), arrays, **batched).flat()
    lstm = case.lstm(xp=xp.xp)
    lstm = xplstm.LSTM(
        3, 6, 2, bidirectional=True, batch_first=batch_first, dtype="float64", xp=xp.xp, rng=case.seed
    )
    got = run(lstm, xp.arrays({k: a[:, 0] for k, a in arrays.items()}), **valid).flat()
    for key, value in want.items():
        flat = value if key in lstm.shapes else value[:, 0]
        np.testing.assert_allclose(host(got[key]), flat, rtol=0, atol=1e-13, err_msg=key)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_steps_are_the_sequence(xp: Any, frozen: bool, batch_first: bool) -> None:
    lstm = xplstm.LSTM(3, 4, num_layers=2, proj_size=2, batch_first=batch_first, xp=xp.xp, rng=0)
    x = xp.asarray(X.swapaxes(0, 1) if batch_first else X)
    y, want = lstm(x)
    y = host(y).swapaxes(0, 1) if batch_first else host(y)
    runner = lstm.freeze() if frozen else lstm
    state = None
    for t in range(5):
        y_t, state = runner.step(xp.asarray(X[t]), state)
        np.testing.assert_allclose(host(y_t), y[t], rtol=0, atol=1e-6)
    for got, value in zip(state, want, strict=True):
        np.testing.assert_allclose(host(got), host(value), rtol=0, atol=1e-6)
    one, _ = runner.step(xp.asarray(X[0, 0]))
    np.testing.assert_allclose(host(one), y[0, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [xplstm.LSTM, xplstm.GRU, xplstm.RNN])
def test_reverse_is_forward_on_the_sequence_backwards(xp: Any, kind: Any) -> None:
    forward, back = (kind(3, 2, 2, xp=xp.xp, rng=0, reverse=reverse) for reverse in (False, True))
    X_back = X.copy()
    for b, n in enumerate(lengths := [5, 2, 0, 3]):
        X_back[:n, b] = X[:n, b][::-1]
    wanted = host(forward(xp.asarray(X_back), lengths=lengths)[0])
    for net in (back, back.freeze()):
        y = host(net(xp.asarray(X), lengths=lengths)[0])
        for b, n in enumerate(lengths):
            np.testing.assert_allclose(y[:n, b], wanted[:n, b][::-1], rtol=0, atol=1e-6)
    with pytest.raises(xplstm.ArgumentError, match="step needs reverse=False"):
        back.step(xp.asarray(X[0]))
    with pytest.raises(xplstm.ArgumentError, match="reverse=True needs bidirectional=False"):
        kind(3, 2, reverse=True, bidirectional=True)


def test_frozen_is_the_same_and_stays_so(xp: Any) -> None:
    case = CASES["bidirectional_ragged"]
    lstm, arrays = case.lstm(xp=xp.xp), xp.arrays(case.arrays())
    want, _ = lstm(arrays["x"], lengths=case.lengths)
    fast = lstm.freeze()
    lstm.params = {k: v * 0 for k, v in lstm.params.items()}
    for _ in range(2):
        got, _ = fast(arrays["x"], lengths=case.lengths)
        np.testing.assert_array_equal(host(got), host(want))


def test_writing_into_a_parameter_reaches_the_next_call_but_not_the_frozen() -> None:
    lstm = xplstm.LSTM(3, 2, rng=0)
    fast = lstm.freeze()
    before, _ = lstm(X)
    np.testing.assert_array_equal(fast(X)[0], before)
    lstm.params["weight_hh_l0"][...] = 0
    assert np.abs(lstm(X)[0] - before).max() > 1e-3
    np.testing.assert_array_equal(fast(X)[0], before)


def test_frozen_packs_once_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    load = _dispatch.load

    def counting(name: str) -> Any:
        kernel = load(name)
        return kernel._replace(prepare=lambda *a: (calls.append(name), kernel.prepare(*a))[1])

    monkeypatch.setattr(_dispatch, "load", counting)
    fast = xplstm.LSTM(3, 2, num_layers=2).freeze()
    for x in (X, X[:2], X[:, :1]):
        fast(x)
    assert calls == [*fast.explain(X).kernels]


@pytest.mark.parametrize("layer", [xplstm.LSTM, xplstm.GRU, xplstm.RNN])
def test_what_a_frozen_copy_lacks_is_asked_of_the_layer(layer: Any) -> None:
    frozen = layer(3, 2).freeze()
    for name in ("save", "vjp", "state_dict"):
        with pytest.raises(AttributeError, match=f"'{name}'; it is a read-only copy, so use the layer"):
            getattr(frozen, name)
    assert not hasattr(frozen, "_repr_png_")


def test_trace_shows_what_the_call_computes(xp: Any) -> None:
    case = CASES["projection_ragged"]
    lstm, arrays = case.lstm(xp=xp.xp), xp.arrays(case.arrays())
    state = arrays["h_0"], arrays["c_0"]
    y, _ = lstm(arrays["x"], state, lengths=case.lengths)
    trace = xplstm.LSTMTrace(*(host(a) for a in lstm.trace(arrays["x"], state, lengths=case.lengths)))
    assert trace.i.shape == (2, case.T, case.B, case.H)
    np.testing.assert_allclose(np.concatenate(list(trace.h), axis=-1), host(y), rtol=0, atol=1e-14)
    c = np.concatenate([case.arrays()["c_0"][:1, None][:, 0][None][0][None], trace.c[:1, :-1]], axis=1)[0]
    exists = np.arange(case.T)[:, None] < np.asarray(case.lengths)
    updated = trace.f[0] * c + trace.i[0] * trace.g[0]
    np.testing.assert_allclose(trace.c[0][exists], updated[exists], rtol=0, atol=1e-14)
    for quantity in trace:
        assert not quantity[:, ~exists].any()


def test_to_moves_and_converts(xp: Any) -> None:
    lstm = xplstm.LSTM(3, 2, rng=0)
    want, _ = lstm(X)
    back = lstm.to(xp=xp.xp).to(dtype="float64")
    assert back is lstm
    assert lstm._home().dtype == "float64"
    y, _ = lstm(xp.asarray(X.astype(np.float64)))
    np.testing.assert_allclose(host(y), want, rtol=0, atol=1e-6)
    lstm.to(xp="numpy", dtype="float32")
    np.testing.assert_array_equal(lstm(X)[0], want)


def test_load_state_dict_takes_arrays_of_any_library_and_copies(xp: Any) -> None:
    source = xplstm.LSTM(3, 2, rng=0, xp=xp.xp)
    lstm = xplstm.LSTM(3, 2, rng=1)
    lstm.load_state_dict(source.state_dict())
    for name, value in lstm.params.items():
        np.testing.assert_array_equal(value, host(source.params[name]))
        assert not np.shares_memory(value, host(source.params[name]))


def test_use_backend(monkeypatch: pytest.MonkeyPatch, xp: Any) -> None:
    library = "numpy" if xp.name == "numpy_readonly" else xp.name
    kind = type(xp.asarray(X))
    with xplstm.use_backend(library):
        assert isinstance(xplstm.LSTM(3, 2).params["weight_hh_l0"], kind)
    assert isinstance(xplstm.LSTM(3, 2).params["weight_hh_l0"], np.ndarray)
    monkeypatch.setenv("XPLSTM_BACKEND", library)
    assert isinstance(xplstm.LSTM(3, 2).params["weight_hh_l0"], kind)
    with xplstm.use_backend("numpy"):
        assert isinstance(xplstm.LSTM(3, 2).params["weight_hh_l0"], np.ndarray)


def test_a_backend_that_is_not_there_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from xplstm import _array

    _array.why_unusable.cache_clear()
    monkeypatch.setattr(_array.importlib.util, "find_spec", lambda _: None)
    try:
        with pytest.raises(
            xplstm.BackendError, match=r"'cupy' .* package 'cupy' is not installed .*xplstm\[cuda12\]"
        ):
            xplstm.use_backend("cupy")
        assert _array.resolve("auto") is not None
    except xplstm.BackendError:
        assert "numpy" in str(_array.why_unusable("numpy"))
    finally:
        _array.why_unusable.cache_clear()


def test_a_variable_that_names_no_backend_is_named_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPLSTM_BACKEND", "numppy")
    with pytest.raises(xplstm.ArgumentError, match="XPLSTM_BACKEND='numppy': backend 'numppy' is unknown"):
        xplstm.LSTM(3, 2)


def test_repr_reads_as_the_call() -> None:
    text = repr(xplstm.LSTM(3, 4, 2, bias=False, bidirectional=True, proj_size=2))
    assert text == "LSTM(3, 4, num_layers=2, bias=False, bidirectional=True, proj_size=2)"


@pytest.mark.parametrize("how", [{"precision": "tf32"}, {"reproducible": True}], ids=str)
def test_repr_tells_how_only_where_it_is_not_the_default(how: dict[str, Any]) -> None:
    lstm = xplstm.LSTM(3, 4, **how)
    ((name, value),) = how.items()
    assert repr(lstm) == f"LSTM(3, 4, num_layers=1, {name}={value!r})"
    assert repr(lstm.freeze()) == f"FrozenLSTM(3, 4, num_layers=1, {name}={value!r})"
    assert lstm.state_dict().keys() == xplstm.LSTM(3, 4).state_dict().keys()


ORDERED = not _dispatch.why_missing("native") and native.ISAS[native.ISA]


@pytest.mark.skipif(not ORDERED, reason=f"no fused multiply-adds: {native.WHY_NOT or native.ISA}")
def test_a_reproducible_row_has_the_same_bits_alone() -> None:
    """The only kernel with reproducible sums gives the same bits, with lengths, directions and layers."""
    case = Case(
        T=5, B=7, I=131, H=9, options={"num_layers": 2, "bidirectional": True}, lengths=[5, 3, 0, 1, 5, 2, 4]
    )
    a = {name: value.astype("float32") for name, value in case.arrays().items()}
    lstm = case.lstm(dtype="float32", reproducible=True)
    explanation = lstm.explain(a["x"], lengths=case.lengths)
    assert explanation == (("native", "native"), ({}, {}), True, (), ())
    y, (h_n, c_n) = lstm(a["x"], (a["h_0"], a["c_0"]), lengths=case.lengths)
    assert np.abs(y).max() > 0
    for b, length in enumerate(case.lengths or []):
        row = slice(b, b + 1)
        y_b, (h_b, c_b) = lstm(a["x"][:, row], (a["h_0"][:, row], a["c_0"][:, row]), lengths=[length])
        for got, want in ((y_b, y[:, row]), (h_b, h_n[:, row]), (c_b, c_n[:, row])):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["copy", "pickle"]
)
def test_a_frozen_lstm_travels_to_another_process(way: Any) -> None:
    fast = xplstm.LSTM(3, 2, num_layers=2, rng=0).freeze()
    want, _ = fast(X)
    other = way(fast)
    np.testing.assert_array_equal(other(X)[0], want)
    assert repr(other) == repr(fast) == "FrozenLSTM(3, 2, num_layers=2)"


def test_a_frozen_lstm_is_not_on_the_tape_of_torch(torch) -> None:
    lstm = xplstm.LSTM(3, 2, xp="torch", rng=0)
    lstm.params = {k: v.requires_grad_() for k, v in lstm.params.items()}
    x = torch.tensor(X, requires_grad=True)
    lstm.freeze()(x)[0].sum().backward()
    assert x.grad is not None
    assert all(v.grad is None for v in lstm.params.values())


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), "float64"])
def test_a_dtype_may_be_a_librarys_own(dtype: Any) -> None:
    assert xplstm.LSTM(3, 2, dtype=dtype).params["bias_ih_l0"].dtype == np.float64
    assert xplstm.LSTM(3, 2).to(dtype=dtype).params["bias_ih_l0"].dtype == np.float64


def test_subclasses_of_numpy_arrays_are_taken_as_arrays() -> None:
    lstm = xplstm.LSTM(3, 2, rng=0)
    want, _ = lstm(X[:, 0])
    got, _ = lstm(X[:, 0].view(np.matrix))
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, want)


# Dropout between layers


def test_dropout_acts_exactly_when_given_a_generator() -> None:
    lstm = xplstm.LSTM(3, 8, num_layers=2, dropout=0.5, rng=0)
    plain, _ = lstm(X)
    silent, _, _ = lstm.vjp(X)
    np.testing.assert_array_equal(silent, plain)
    first, _, _ = lstm.vjp(X, rng=1)
    again, _, _ = lstm.vjp(X, rng=1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 1e-3
    generator = np.random.default_rng(1)
    one, _, _ = lstm.vjp(X, rng=generator)
    two, _, _ = lstm.vjp(X, rng=generator)
    np.testing.assert_array_equal(one, first)
    assert np.abs(two - one).max() > 1e-3


def test_dropout_leaves_the_last_layer_and_a_single_one_alone() -> None:
    with pytest.warns(UserWarning, match="no effect"):
        lstm = xplstm.LSTM(3, 8, dropout=0.5, rng=0)
    np.testing.assert_array_equal(lstm.vjp(X, rng=1)[0], lstm(X)[0])


def test_gradients_through_dropout_are_those_of_differences() -> None:
    case = Case(T=3, B=2, H=4, options={"num_layers": 2, "dropout": 0.5})
    lstm, a = case.lstm(), case.arrays()
    got = run(lstm, a, rng=9)

    def loss(x: np.ndarray) -> float:
        return float(np.sum(lstm.vjp(x, (a["h_0"], a["c_0"]), rng=9)[0] * a["dy"]))

    y, _, pullback = lstm.vjp(a["x"], (a["h_0"], a["c_0"]), rng=9)
    np.testing.assert_allclose(pullback(a["dy"])[0], differences(loss, a["x"]), rtol=0, atol=2e-8)
    np.testing.assert_array_equal(got.y, y)


# Embedding, Linear, Dropout


def test_embedding(xp: Any) -> None:
    embedding = xplstm.Embedding(6, 3, xp=xp.xp, dtype="float64", rng=0)
    table = host(embedding.params["weight"])
    ids = np.asarray([[1, 5, 1], [0, 1, 3]])
    y, pullback = embedding.vjp(xp.asarray(ids))
    np.testing.assert_array_equal(host(y), table[ids])
    dy = np.random.default_rng(0).normal(size=(2, 3, 3))
    want = np.zeros((6, 3))
    np.add.at(want, ids, dy)
    np.testing.assert_allclose(host(pullback(xp.asarray(dy))["weight"]), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_embedding_takes_integers_of_any_width(xp: Any, dtype: Any) -> None:
    embedding = xplstm.Embedding(300, 2, xp=xp.xp, rng=0)
    y, pullback = embedding.vjp(xp.asarray(np.asarray([5, 7, 5], dtype=dtype)))
    gradient = host(pullback(xp.asarray(np.ones((3, 2), dtype=np.float32)))["weight"])
    np.testing.assert_array_equal(host(y), host(embedding.params["weight"])[[5, 7, 5]])
    assert np.nonzero(gradient[:, 0])[0].tolist() == [5, 7]
    assert gradient[5, 0] == 2


def test_embedding_of_nothing(xp: Any) -> None:
    embedding = xplstm.Embedding(6, 3, xp=xp.xp, rng=0)
    y, pullback = embedding.vjp(xp.asarray(np.zeros((0, 2), dtype=np.int64)))
    assert y.shape == (0, 2, 3)
    assert not host(pullback(y)["weight"]).any()


@pytest.mark.parametrize("bias", [False, True])
def test_linear(xp: Any, bias: bool) -> None:
    linear = xplstm.Linear(3, 2, bias=bias, xp=xp.xp, dtype="float64", rng=0)
    p = {k: host(v) for k, v in linear.params.items()}
    x, dy = X.astype(np.float64), np.random.default_rng(0).normal(size=(5, 4, 2))
    y, pullback = linear.vjp(xp.asarray(x))
    np.testing.assert_allclose(host(y), x @ p["weight"].T + p.get("bias", 0), rtol=0, atol=1e-14)
    dx, dparams = pullback(xp.asarray(dy))
    np.testing.assert_allclose(host(dx), dy @ p["weight"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(host(dparams["weight"]), np.einsum("tbo,tbi->oi", dy, x), rtol=0, atol=1e-13)
    assert set(dparams) == set(linear.params)
    if bias:
        np.testing.assert_allclose(host(dparams["bias"]), dy.sum((0, 1)), rtol=0, atol=1e-13)


def test_dropout(xp: Any) -> None:
    dropout = xplstm.Dropout(0.25)
    with pytest.raises(xplstm.ArgumentError, match=r"p=1\.0"):
        dropout.p = 1.0
    x = xp.asarray(np.ones((50, 40), dtype=np.float32))
    assert dropout(x) is x
    y, pullback = dropout.vjp(x, rng=3)
    values = host(y)
    assert set(np.unique(values)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((values == 0).mean() - 0.25) < 0.04
    np.testing.assert_array_equal(host(pullback(x)), values)
    np.testing.assert_array_equal(
        values, xplstm.Dropout(0.25).vjp(np.ones((50, 40), dtype=np.float32), rng=3)[0]
    )
    assert dropout.vjp(x)[0] is x


PULLBACKS = {
    "LSTM": lambda: (xplstm.LSTM(3, 2, rng=0), np.ones((5, 4, 3), "float32")),
    "GRU": lambda: (xplstm.GRU(3, 2, rng=0), np.ones((5, 4, 3), "float32")),
    "RNN": lambda: (xplstm.RNN(3, 2, rng=0), np.ones((5, 4, 3), "float32")),
    "JordanRNN": lambda: (xplstm.JordanRNN(3, 4, 2, rng=0), np.ones((5, 4, 3), "float32")),
    "Linear": lambda: (xplstm.Linear(3, 2, rng=0), np.ones((4, 3), "float32")),
    "Embedding": lambda: (xplstm.Embedding(3, 2, rng=0), np.asarray([0, 2, 2])),
}


@pytest.mark.parametrize("name", PULLBACKS)
def test_a_pullback_keeps_the_parameters_it_was_made_with(name: str) -> None:
    layer, x = PULLBACKS[name]()
    y, *_, pullback = layer.vjp(x)
    want = pullback(np.ones_like(y))
    layer.params = {key: 2 * value for key, value in layer.params.items()}
    got = pullback(np.ones_like(y))
    for a, b in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def leaves(tree: Any) -> list[np.ndarray]:
    """Return every array of a gradient, in order."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, tuple | list):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def test_a_matrix_of_numpy_is_an_array_in_dropout() -> None:
    x = np.arange(1.0, 5.0, dtype="float32").reshape(2, 2)
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.asmatrix(x)
    want, back = xplstm.Dropout(0.5).vjp(x, rng=3)
    got, pullback = xplstm.Dropout(0.5).vjp(matrix, rng=3)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(pullback(matrix), back(x))
    assert type(xplstm.Dropout(0.5)(matrix)) is np.ndarray
    with pytest.raises(xplstm.DTypeError, match="x must be an array"):
        xplstm.Dropout(0.5)("text")


@pytest.mark.parametrize("padding", [0, 3, -1])
def test_the_vector_of_padding_begins_as_zeros_and_has_no_gradient(padding, xp):
    plain = xplstm.Embedding(4, 2, xp=xp.xp, dtype="float64", rng=0)
    padded = xplstm.Embedding(4, 2, padding_idx=padding, xp=xp.xp, dtype="float64", rng=0)
    ids, dy = xp.asarray(np.asarray([0, 3, 3, 1])), xp.asarray(np.ones((4, 2)))
    for found, expected in (
        (padded.params["weight"], plain.params["weight"]),
        (padded.vjp(ids)[1](dy)["weight"], plain.vjp(ids)[1](dy)["weight"]),
    ):
        expected = to_numpy(expected).copy()
        assert expected[padding].any()
        expected[padding] = 0
        np.testing.assert_array_equal(to_numpy(found), expected)


@pytest.mark.parametrize("padding", [4, -5])
def test_an_id_of_padding_outside_the_table_is_named(padding):
    with pytest.raises(xplstm.ArgumentError, match=f"padding_idx={padding}"):
        xplstm.Embedding(4, 2, padding_idx=padding)


@pytest.mark.parametrize("kept", ["h", "c"])
def test_none_in_a_pair_of_gradients_stands_for_zeros(kept: str) -> None:
    lstm = xplstm.LSTM(3, 2, 2, dtype="float64", rng=0)
    _, state, pullback = lstm.vjp(np.ones((5, 4, 3)))
    zeros, ones = np.zeros_like(state.h), np.ones_like(state.h)
    want = pullback(None, (ones, zeros) if kept == "h" else (zeros, ones))
    got = pullback(None, (ones, None) if kept == "h" else (None, ones))
    for a, b in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(xplstm.XplstmError, match="h_0"):
        lstm(np.ones((5, 4, 3)), (None, ones))


def test_dropout_without_effect_is_a_warning() -> None:
    with pytest.warns(
        UserWarning, match="dropout=0.5 has no effect with num_layers=1, because it applies between layers"
    ):
        xplstm.LSTM(3, 2, dropout=0.5)
    xplstm.LSTM(3, 2, 2, dropout=0.5)
    xplstm.models.CharLM("ab", 3, 1, dropout=0.5)


def test_linear_makes_one_product_of_two_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """For three axes, CuPy would compute T products and copy the weights for each."""
    layer, axes, widen = xplstm.Linear(3, 2, rng=0), [], _array.widen

    def recorded(a: Any) -> Any:
        axes.append(a.ndim)
        return widen(a)

    monkeypatch.setattr(_array, "widen", recorded)
    assert layer(np.ones((5, 4, 3), "float32")).shape == (5, 4, 2)
    assert layer(np.ones((0, 4, 3), "float32")).shape == (0, 4, 2)
    assert layer(np.ones(3, "float32")).shape == (2,)
    assert max(axes) == 2
