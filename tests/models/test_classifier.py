"""Check SequenceClassifier against PyTorch and differences, and between backends."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from tests.support.modelcases import check_gradients, check_same, check_torch, host, torch_copy
from xplstm import _array, losses, optim, training
from xplstm.models import Ragged, SequenceClassifier

T, B, I, H, C = 5, 4, 3, 6, 7
LENGTHS = [2, 5, 0, 3]


def make(**options):
    return SequenceClassifier(I, H, C, **({"num_layers": 2, "dtype": "float64", "rng": 3} | options))


@pytest.fixture
def x(rng):
    return rng.normal(size=(T, B, I))


@pytest.fixture
def targets(rng):
    return rng.integers(0, C, size=B)


@pytest.fixture
def step_targets(rng):
    return rng.integers(0, C, size=(T, B))


@pytest.fixture
def state(rng):
    return tuple(rng.normal(size=(2, B, H)) for _ in "hc")


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("each_step", [False, True])
def test_logits_loss_and_gradients_are_those_of_torch(x, targets, step_targets, directions, each_step, torch):
    two = directions == 2
    model = make(bidirectional=two, each_step=each_step)
    theirs = torch_copy(
        model,
        {"lstm": torch.nn.LSTM(I, H, 2, bidirectional=two), "linear": torch.nn.Linear(directions * H, C)},
    )
    wanted = step_targets if each_step else targets
    y, (h_n, c_n) = theirs["lstm"](torch.tensor(x))
    features = y if each_step else torch.cat(list(h_n[-directions:]), 1)
    logits = theirs["linear"](features)
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, C), torch.tensor(wanted).reshape(-1))
    loss.backward()

    np.testing.assert_allclose(model(x), logits.detach(), atol=1e-12)
    np.testing.assert_array_equal(model.predict(x), logits.argmax(-1))
    our_loss, state_n, pullback = model.loss_vjp(x, wanted)
    assert float(our_loss) == pytest.approx(loss.item(), abs=1e-13)
    assert float(model.loss(x, wanted)) == pytest.approx(loss.item(), abs=1e-13)
    np.testing.assert_allclose(state_n.h, h_n.detach(), atol=1e-12)
    np.testing.assert_allclose(state_n.c, c_n.detach(), atol=1e-12)
    check_torch(pullback, theirs)


@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.slow
def test_gradients_of_a_ragged_batch_with_dropout_are_differences(x, targets, step_targets, each_step):
    options = {"dropout": 0.3, "bidirectional": True, "each_step": each_step}
    wanted = step_targets if each_step else targets
    check_gradients(
        lambda: make(**options), lambda model: model.loss_vjp(Ragged(x, LENGTHS), wanted, None, 5)
    )


def test_gradients_from_a_state_are_differences(x, targets, state):
    check_gradients(make, lambda model: model.loss_vjp(x, targets, state))


def test_every_row_is_read_as_if_it_were_alone(x):
    for model in (make(bidirectional=True), make(bidirectional=True, each_step=True)):
        logits = model(Ragged(x, LENGTHS))
        for row, length in enumerate(LENGTHS):
            alone = model(x[:length, row])
            ours = logits[:length, row] if model.each_step else logits[row]
            np.testing.assert_allclose(ours, alone, atol=1e-13)


def test_padding_changes_nothing(x, targets, step_targets):
    past = np.arange(T)[:, None] >= np.asarray(LENGTHS)
    poisoned, strange = np.where(past[..., None], np.nan, x), np.where(past, -7, step_targets)
    check_same(
        host(make().loss_vjp(Ragged(poisoned, LENGTHS), targets)),
        host(make().loss_vjp(Ragged(x, LENGTHS), targets)),
    )
    model = make(each_step=True)
    check_same(
        host(model.loss_vjp(Ragged(poisoned, LENGTHS), strange)),
        host(model.loss_vjp(Ragged(x, LENGTHS), step_targets)),
    )


def test_a_state_carries_the_first_half_over(x):
    model = make()
    _, state, _ = model.loss_vjp(x[:2], np.zeros(B, dtype=int))
    np.testing.assert_allclose(model(x[2:], state), model(x), atol=1e-13)
    assert not np.allclose(model(x[2:]), model(x))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"each_step": True}])
def test_every_backend_gives_the_same(xp, x, targets, step_targets, options):
    wanted = step_targets if "each_step" in options else targets
    options = options | {"dropout": 0.3}
    expected = host(make(**options).loss_vjp(Ragged(x, LENGTHS), wanted, None, 2))
    ours = make(xp=xp.xp, **options)
    found = ours.loss_vjp(Ragged(xp.asarray(x), LENGTHS), xp.asarray(wanted), None, 2)
    check_same(host(found), expected)
    predicted = _array.to_numpy(ours.predict(xp.asarray(x)))
    np.testing.assert_array_equal(predicted, make(**options).predict(x))


def test_dropout_reaches_between_the_layers_and_before_the_linear_one(x, targets):
    one = make(dropout=0.5, num_layers=1)
    assert float(one.loss_vjp(x, targets, rng=1)[0]) != float(one.loss(x, targets))
    two = make(dropout=0.5)
    two.dropout = xplstm.Dropout(0.0)
    assert float(two.loss_vjp(x, targets, rng=1)[0]) != float(two.loss(x, targets))
    assert float(two.loss_vjp(x, targets)[0]) == pytest.approx(float(two.loss(x, targets)), abs=1e-14)


def test_one_sequence_without_an_axis_of_rows(x, step_targets):
    model = make()
    np.testing.assert_allclose(model(x[:, 1]), model(x)[1], atol=1e-13)
    loss, state, pullback = model.loss_vjp(x[:, 1], np.asarray(4))
    assert float(loss) == pytest.approx(float(losses.softmax_cross_entropy(model(x[:, 1]), np.asarray(4))[0]))
    assert state.h.shape == (2, H)
    assert pullback().keys() == model.params.keys()
    assert make(each_step=True)(x[:, 1]).shape == (T, C)


def test_fit_trains_it_and_its_checkpoint_makes_it_again(tmp_path, rng):
    """The class is the index of the largest of three sums over the whole sequence."""
    pytest.importorskip("safetensors")
    x = rng.normal(size=(4, 200, 3)).astype("float32")
    targets = x.sum(axis=0).argmax(axis=-1)
    file = tmp_path / "run.safetensors"
    model = SequenceClassifier(3, 8, 3, rng=0)
    before = float(model.loss(x, targets))
    training.fit(model, [(x, targets)], optim.Adam(0.03), updates=60, rng=0, checkpoint=file, progress=False)
    assert float(model.loss(x, targets)) < before / 2
    again = SequenceClassifier(3, 8, 3, rng=9)
    again.load_state_dict(training.load_checkpoint(file).params)
    np.testing.assert_array_equal(again(x), model(x))


def test_parameters_move_and_are_refused_together():
    model = make()
    assert model.to(dtype="float32") is model
    assert {_array.dtype_name(a.dtype) for a in model.params.values()} == {"float32"}
    before = model.state_dict()
    wrong = before | {"linear.bias": np.zeros(2, dtype="float32"), "lstm.bias_hh_l1": np.zeros(4 * H)}
    with pytest.raises(
        xplstm.ShapeError, match=r"2 problem.s.*(\n.*lstm.bias_hh_l1.*\n.*linear.bias)"
    ) as error:
        model.load_state_dict(wrong)
    assert "expected (7,)" in str(error.value)
    assert all(model.params[name] is before[name] for name in before)


def test_ids_need_no_input_size():
    model = SequenceClassifier(hidden_size=3, num_classes=2, vocab_size=5, rng=0)
    same = SequenceClassifier(None, 3, 2, vocab_size=5, rng=0)
    ids = np.asarray([[1, 4], [0, 2]])
    np.testing.assert_array_equal(model(ids), same(ids))


BAD = [
    (lambda _: SequenceClassifier(vocab_size=5), "hidden_size=None must be an integer"),
    (lambda _: SequenceClassifier(vocab_size=5, hidden_size=3), "num_classes=None must be an integer"),
    (lambda _: SequenceClassifier(hidden_size=3, num_classes=2), "input_size=None needs vocab_size="),
    (lambda _: SequenceClassifier(I, H, 0), "num_classes=0 must be at least 1"),
    (lambda _: SequenceClassifier(0, H, C), "input_size=0 must be at least 1"),
    (lambda _: make(dropout=1.0), "dropout=1.0"),
    (lambda x: make().loss(x, np.full(B, C)), rf"class {C}, expected classes in \[0, {C}\)"),
    (lambda x: make()(x[..., :2]), "x has shape"),
    (lambda x: make().loss(x, np.zeros((T, B), dtype=int)), "targets has shape"),
    (lambda x: make()(Ragged(x, [1, 2, 3, 9])), r"lengths\[3\]=9 must be in \[0, T=5\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message, x):
    with pytest.raises(xplstm.XplstmError, match=message):
        call(x)
