"""Compare optimisers, schedules and clipping with their formulas, also at values where the code branches."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xplstm
from xplstm import optim

# Large, so that a place where it does not count shows.
EPS = 0.1


def adamw(p, grads, lr, decay, betas=(0.8, 0.95)):
    """Run the updates of Loshchilov and Hutter with one learning rate and weight decay."""
    m, v = 0.0, 0.0
    for step, g in enumerate(grads, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        unbiased = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
        p = p * (1 - lr * decay) - lr * unbiased[0] / (np.sqrt(unbiased[1]) + EPS)
    return p


def test_groups_take_the_steps_of_their_formula(rng):
    names, start = ["a", "b", "c", "d"], rng.normal(size=3)
    groups = [optim.Group("b", lr_scale=0.25), optim.Group("c", lr=0.2, weight_decay=0.3), optim.Group("d")]
    ours = optim.AdamW(0.1, betas=(0.8, 0.95), eps=EPS, weight_decay=0.01, no_decay=(), groups=groups)
    params, grads = {name: start.copy() for name in names}, rng.normal(size=(4, 3))
    for g in grads:
        params = ours.update(params, {name: g.copy() for name in names})
    for name, lr, decay in (("a", 0.1, 0.01), ("b", 0.025, 0.01), ("c", 0.2, 0.3), ("d", 0.1, 0.01)):
        np.testing.assert_allclose(params[name], adamw(start, grads, lr, decay), rtol=1e-13, err_msg=name)


def test_weight_decay_follows_a_schedule():
    ours = optim.AdamW(lambda step: (0.5, 0.25)[step], eps=1.0, weight_decay=0.5, no_decay=())
    params = {"w": np.ones(1)}
    for expected in (0.75, 0.75 * 0.875):
        params = ours.update(params, {"w": np.zeros(1)})
        assert params["w"][0] == expected


def test_names_that_become_tied_continue_from_the_older_one(rng):
    ours, alone = optim.Adam(0.1), optim.Adam(0.1)
    a, grads = rng.normal(size=3), rng.normal(size=(3, 3))
    params, expected = {"x": a, "y": a.copy()}, {"x": a}
    for g in grads:
        present = {"x": g} if ours.step < 2 else {"x": g, "y": np.zeros(3)}
        params = ours.update(params, present)
        expected = alone.update(expected, {"x": g})
        params["y"] = params["x"]
    np.testing.assert_array_equal(params["x"], expected["x"])


def test_the_state_counts_the_averages_that_exist():
    adam = optim.Adam(0.1)
    assert adam.num_parameters == 0
    adam.update({"w": np.ones((2, 3))}, {"w": np.ones((2, 3))})
    assert adam.num_parameters == 2 * 2 * 3
    assert "1 parameters" in adam.summary()


def test_a_cosine_from_its_floor_stays_there():
    lr = optim.warmup_cosine(0.5, warmup=0, total=4, floor=0.5)
    assert [lr(step) for step in range(6)] == [0.5] * 6


def test_one_cycle_falls_along_half_a_cosine():
    ours = optim.one_cycle(1.0, 11, rise=0.4)
    start, floor = 1 / 25, 1 / 25 / 10_000
    assert [ours(step) for step in (0, 4, 7, 10)] == pytest.approx(
        [start, 1.0, (1 + floor) / 2, floor], rel=1e-12
    )
    assert ours(2) == pytest.approx((start + 1) / 2)
    assert ours(6) == pytest.approx(floor + (1 - floor) * (1 + math.cos(math.pi / 3)) / 2)


def test_one_cycle_at_its_edges():
    assert [optim.one_cycle(1.0, 2, rise=0)(step) for step in (0, 1)] == [1.0, 1 / 25 / 10_000]
    assert optim.one_cycle(1.0, 4, start=1.0, floor=1.0)(2) == 1.0


@pytest.mark.parametrize("total", [2, 3, 4, 10, 100])
@pytest.mark.parametrize("rise", [0, 0.3, 0.9, 0.99])
def test_one_cycle_reaches_its_peak(total, rise):
    rates = list(map(optim.one_cycle(1.0, total, rise=rise, floor=0.0), range(total)))
    assert max(rates) == 1.0
    assert rates[-1] == 0.0


@pytest.mark.parametrize("wrong", [{"rise": 1}, {"rise": 1.5}, {"start": 1.5}, {"floor": 1.5}])
def test_one_cycle_refuses_what_is_no_cycle(wrong):
    with pytest.raises(xplstm.ArgumentError, match=r"rise=|start=|floor="):
        optim.one_cycle(1.0, 11, **wrong)


def test_plateau_tolerates_ten_reports_and_keeps_to_its_floor():
    plateau = optim.Plateau(1.0, factor=0.5, floor=0.2)
    plateau.report(1.0)
    for expected in (1.0, 0.5, 0.25, 0.2, 0.2):
        for _ in range(11):
            assert plateau(0) == expected
            plateau.report(1.0)


def test_plateau_refuses_a_factor_that_lowers_nothing():
    for factor in (0, 1, 1.5):
        with pytest.raises(xplstm.ArgumentError, match="factor="):
            optim.Plateau(1.0, factor=factor)


def test_plateau_refuses_a_threshold_above_one():
    with pytest.raises(xplstm.ArgumentError, match=r"threshold=1.5 must be in \[0, 1\)"):
        optim.Plateau(1.0, threshold=1.5)


def test_plateau_does_not_raise_a_rate_to_its_floor():
    plateau = optim.Plateau(0.1, patience=1, floor=0.5)
    for _ in range(4):
        plateau.report(math.nan)
        assert plateau(0) == 0.1


def test_plateau_counts_reports_before_the_first_improvement():
    plateau = optim.Plateau(0.1, patience=1)
    for expected in (0.1, 0.01):
        plateau.report(math.inf)
        assert plateau(0) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_clipping_survives_float64_whose_squares_do_not(size):
    grads = {"a": np.asarray([3 * size, 4 * size])}
    clipped, norm = optim.clip_by_global_norm(grads, size)
    assert float(norm) == pytest.approx(5 * size)
    np.testing.assert_allclose(clipped["a"], [0.6 * size, 0.8 * size], rtol=1e-14)


def test_clipping_nothing_gives_nothing():
    clipped, norm = optim.clip_by_global_norm({"a": np.zeros((0, 3))}, 1.0)
    assert (clipped["a"].shape, float(norm)) == ((0, 3), 0)
