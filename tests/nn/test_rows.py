"""Check that batch entries can be selected, reset, joined and stacked, also in streams."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from tests.conftest import open_backend
from xplstm import LSTMState, _array

h = np.random.default_rng(1).normal(size=(3, 5, 2))
c = np.random.default_rng(2).normal(size=(3, 5, 4))


def state(xp):
    return LSTMState(xp.asarray(h), xp.asarray(c))


def hosted(found):
    return [_array.to_numpy(a) for a in found]


def same(found, expected_h, expected_c):
    for got, expected in zip(hosted(found), (expected_h, expected_c), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("rows", [[3, 0, 3], [2], [0], [], (4, 1), range(1, 3), np.asarray([1, 4, 0])])
def test_take_gives_the_rows_asked_for_in_their_order(xp, rows):
    wanted = np.asarray(rows, dtype=int)
    same(state(xp).take(rows), h[:, wanted], c[:, wanted])
    flat = LSTMState(xp.asarray(h[1]), xp.asarray(c[1])).take(rows, axis=0)
    same(flat, h[1][wanted], c[1][wanted])


def test_take_of_one_integer_has_no_rows(xp):
    same(state(xp).take(3), h[:, 3], c[:, 3])
    same(LSTMState(xp.asarray(h[1]), xp.asarray(c[1])).take(np.int64(3), axis=0), h[1][3], c[1][3])


def test_take_reads_an_index_of_the_states_own_library(xp):
    rows = _array.asarray(np.asarray([4, 1]), xp.xp)
    same(state(xp).take(rows), h[:, [4, 1]], c[:, [4, 1]])


@pytest.mark.parametrize("rows", [[4, 1], np.asarray([False, True, False, False, True]), (1, 4, 4)])
def test_reset_zeroes_these_rows_and_no_other_bit(xp, rows):
    poisoned = state(xp)._replace(h=xp.asarray(np.where(np.arange(5)[:, None] == 4, np.nan, h)))
    keep = np.asarray([1.0, 0, 1, 1, 0])[:, None]
    same(poisoned.reset(rows), h * keep, c * keep)


def test_reset_to_a_state_of_all_rows_of_one_or_of_none(xp):
    full, one, bare = (h + 1, c + 2), (h[:, :1] + 3, c[:, :1] + 4), (h[:, 0] + 3, c[:, 0] + 4)
    expected_h, expected_c = h.copy(), c.copy()
    expected_h[:, 2], expected_c[:, 2] = full[0][:, 2], full[1][:, 2]
    same(state(xp).reset(2, [xp.asarray(a) for a in full]), expected_h, expected_c)
    expected_h[:, 2], expected_c[:, 2] = one[0][:, 0], one[1][:, 0]
    for to in (one, bare):
        same(state(xp).reset([2], tuple(xp.asarray(a) for a in to)), expected_h, expected_c)


def test_concat_joins_rows_and_zeros_are_new_ones(xp):
    joined = LSTMState.concat([state(xp), state(xp).zeros(2), state(xp).take([0])])
    same(
        joined,
        np.concatenate([h, np.zeros((3, 2, 2)), h[:, :1]], axis=1),
        np.concatenate([c, np.zeros((3, 2, 4)), c[:, :1]], axis=1),
    )
    assert [_array.dtype_name(a.dtype) for a in joined] == ["float64", "float64"]


def test_stack_undoes_take_of_single_rows(xp):
    same(LSTMState.stack([state(xp).take(row) for row in range(5)]), h, c)
    flat = LSTMState(xp.asarray(h[1]), xp.asarray(c[1]))
    same(LSTMState.stack([flat.take(row, axis=0) for row in range(5)]), h[1], c[1])


WRONG = [
    (lambda s: s.take([0, 5]), xplstm.ArgumentError, r"rows\[1\]=5 must be in \[0, 5\), the batch entries"),
    (lambda s: s.take(-1), xplstm.ArgumentError, r"rows=-1 must be in \[0, 5\)"),
    (lambda s: s.take(1.5), xplstm.DTypeError, "rows=1.5 must be an integer or an array of integers"),
    (lambda s: s.take([0.0]), xplstm.DTypeError, "rows has dtype float64"),
    (lambda s: s.take([True] * 5), xplstm.DTypeError, "flatnonzero"),
    (lambda s: s.take([[1, 2]]), xplstm.ShapeError, r"rows has shape \(1, 2\), expected one axis"),
    (lambda s: s.take(0, axis=2), xplstm.ArgumentError, r"axis=2 must be in \[0, 2\)"),
    (lambda s: s.reset([True, False]), xplstm.ShapeError, r"rows has shape \(2,\), expected \(5,\)"),
    (lambda s: s.reset(0, to=(s.h,)), xplstm.DTypeError, r"to must be a pair \(h, c\), got 1 items"),
    (lambda s: s.reset(0, to=(s.h, s.h)), xplstm.ShapeError, r"to\.c has shape \(3, 5, 2\), expected"),
    (lambda s: s.zeros(-1), xplstm.ArgumentError, "count=-1 must be at least 0"),
    (lambda s: s.zeros("2"), xplstm.DTypeError, "count='2' must be an integer$"),
    (lambda _: LSTMState.concat([]), xplstm.ArgumentError, "states is empty; at least 1"),
    (lambda s: LSTMState.concat([s, (s.h, s.h)]), xplstm.ShapeError, r"states\[1\]\.c has shape \(3, 5, 2\)"),
    (lambda s: LSTMState.concat([s, s.h]), xplstm.DTypeError, r"states\[1\] must be a pair"),
    (lambda s: LSTMState.stack([s]), xplstm.ShapeError, r"states\[0\]\.h has shape \(3, 5, 2\)"),
    (lambda s: LSTMState.stack([s.take(0), s.take([0])]), xplstm.ShapeError, r"states\[1\]\.h has shape"),
    (lambda s: LSTMState(*s.take(0)).take([0]), xplstm.ShapeError, r"h has shape \(3, 2\).*axis=0.*stack"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(LSTMState(h, c))


def test_states_of_two_dtypes_or_libraries_are_refused(xp):
    with pytest.raises(xplstm.DTypeError, match=r"states\[1\]\.h has dtype float32, but states\[0\]\.h is"):
        LSTMState.concat([LSTMState(h, c), LSTMState(h.astype("float32"), c)])
    if _array.backend_name(xp.xp) != "numpy":
        with pytest.raises(xplstm.BackendError, match=r"states\[1\]\.h is from .* states\[0\]\.h is from"):
            LSTMState.concat([LSTMState(h, c), state(xp)])
        with pytest.raises(xplstm.BackendError, match="rows is an array from"):
            LSTMState(h, c).take(_array.asarray(np.asarray([1]), xp.xp))


def test_a_compiled_function_may_take_and_reset():
    open_backend("jax")
    import jax
    import jax.numpy as jnp

    @jax.jit
    def change(h, c, rows, ended):
        return LSTMState(h, c).reset(ended).take(rows)

    ended = np.asarray([True, False, False, False, False])
    found = change(jnp.asarray(h), jnp.asarray(c), jnp.asarray([4, 0]), jnp.asarray(ended))
    expected = LSTMState(h, c).reset(ended).take([4, 0])
    same(found, *expected)


# Stream -> the steps of the clock in which it is there, first and past the last.
STAYS = {"a": (0, 4), "b": (0, 7), "c": (2, 9), "d": (5, 9)}


def test_members_that_join_and_leave_are_as_each_alone(xp):
    lstm = xplstm.LSTM(3, 6, num_layers=2, xp=xp.xp, dtype="float64", rng=5)
    rng = np.random.default_rng(3)
    frames = {name: rng.normal(size=(end - start, 3)) for name, (start, end) in STAYS.items()}
    found = {name: [] for name in STAYS}
    members, batch = [], None
    for t in range(9):
        staying = [k for k, name in enumerate(members) if t < STAYS[name][1]]
        joining = [name for name, (start, _) in STAYS.items() if start == t]
        if batch is not None:
            batch = batch.take(staying)
            batch = LSTMState.concat([batch, batch.zeros(len(joining))])
        members = [members[k] for k in staying] + joining
        x_t = np.stack([frames[name][t - STAYS[name][0]] for name in members])
        y_t, batch = lstm.step(xp.asarray(x_t), batch)
        for name, row in zip(members, _array.to_numpy(y_t), strict=True):
            found[name].append(row)
    for name, x in frames.items():
        alone, _ = lstm(xp.asarray(x))
        np.testing.assert_allclose(np.stack(found[name]), _array.to_numpy(alone), rtol=0, atol=1e-13)


def test_rows_of_several_lengths_are_refused_by_name():
    state = LSTMState(np.zeros((1, 3, 2)), np.zeros((1, 3, 2)))
    for call in (state.take, state.reset):
        with pytest.raises(xplstm.DTypeError, match=r"rows=\[\[1, 2\], \[0\]\] must be an integer or"):
            call([[1, 2], [0]])
