"""Check the state of each parameter: missing gradients, groups, ties, half precision, loaded states."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import xplstm
from xplstm import _array, optim
from xplstm.optim import Group

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2,), "c": ()}
MAKE = {
    "sgd": lambda lr, **more: optim.SGD(lr, **more),
    "momentum": lambda lr, **more: optim.SGD(lr, momentum=0.9, **more),
    "adam": lambda lr, **more: optim.Adam(lr, betas=(0.8, 0.95), eps=1e-6, **more),
    "adamw": lambda lr, **more: optim.AdamW(lr, betas=(0.85, 0.99), weight_decay=0.1, **more),
}


def torch_optimizer(torch, kind, groups):
    return {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1),
        "momentum": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        "adam": lambda: torch.optim.Adam(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-6),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.1, betas=(0.85, 0.99), weight_decay=0.1),
    }[kind]()


def values(rng, shapes=SHAPES):
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("left_out", ["grads", "params"])
def test_any_pattern_of_presence_moves_as_in_torch(kind, seed, left_out, torch):
    rng = np.random.default_rng(seed)
    params = values(rng)
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in params.items()}
    biases, others = [theirs["a.bias"]], [t for name, t in theirs.items() if name != "a.bias"]
    reference = torch_optimizer(torch, kind, [{"params": others}, {"params": biases}])
    if kind == "adamw":
        reference.param_groups[1]["weight_decay"] = 0.0
    schedule = torch.optim.lr_scheduler.LambdaLR(reference, lambda step: 1 / (1 + step))
    ours = MAKE[kind](lambda step: 0.1 / (1 + step))
    for update in range(60):
        present = [name for name in SHAPES if rng.random() < 0.5 and (name != "c" or update > 30)]
        grads = {name: rng.normal(size=SHAPES[name]) for name in present}
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(grads[name]) if name in grads else None
        reference.step()
        schedule.step()
        if left_out == "grads":
            params = ours.update(params, grads)
        else:
            params |= ours.update({name: params[name] for name in present}, grads)
        if update == 40:
            state, ours = ours.state_dict(), MAKE[kind](ours.schedule)
            ours.load_state_dict(state)
        for name, tensor in theirs.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=0, atol=1e-12)


def test_groups_are_those_of_torch(rng, torch):
    params = values(rng)
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in params.items()}
    options = {
        "a.weight": {"lr": 0.05, "weight_decay": 0.3},
        "a.bias": {"lr": 0.05, "weight_decay": 0.0},
        "b.weight": {"lr": 0.2, "weight_decay": 0.1},
        "c": {"lr": 0.1, "weight_decay": 0.1},
    }
    reference = torch.optim.AdamW([{"params": [theirs[name]], **o} for name, o in options.items()])
    groups = [
        Group("a.weight", lr_scale=0.5, weight_decay=0.3),
        Group("a", lr_scale=0.5),
        Group(["b.*", "nothing"], lr=lambda _: 0.2),
    ]
    ours = optim.AdamW(0.1, weight_decay=0.1, groups=groups)
    for _ in range(5):
        grads = values(rng)
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(grads[name])
        reference.step()
        params = ours.update(params, grads)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=0, atol=1e-12)


def test_biases_are_not_shrunk_unless_that_is_asked_for():
    names = ("lstm.bias_ih_l0", "bias", "linear.bias", "weight", "bias.weight")
    params, grads = dict.fromkeys(names), dict.fromkeys(names)
    for name in names:
        params[name], grads[name] = np.ones(2), np.zeros(2)
    new = optim.AdamW(0.5, weight_decay=0.5).update(params, grads)
    assert {name: a[0] for name, a in new.items()} == {
        "lstm.bias_ih_l0": 1.0,
        "bias": 1.0,
        "linear.bias": 1.0,
        "weight": 0.75,
        "bias.weight": 0.75,
    }
    assert optim.AdamW(0.5, weight_decay=0.5, no_decay=()).update(params, grads)["bias"][0] == 0.75


@pytest.mark.parametrize("kind", MAKE)
def test_tied_parameters_get_one_update_and_stay_one_array(kind, xp, rng):
    a, g, h = (rng.normal(size=(2, 3)) for _ in range(3))
    shared = xp.asarray(a)
    ours, alone = MAKE[kind](0.1), MAKE[kind](0.1)
    params, expected = {"x": shared, "y": shared, "z": xp.asarray(a)}, {"x": a}
    for _ in range(3):
        params = ours.update(params, xp.arrays({"x": g, "y": h, "z": g}))
        expected = alone.update(expected, {"x": g + h})
    assert params["x"] is params["y"]
    assert params["z"] is not params["x"]
    np.testing.assert_allclose(_array.to_numpy(params["x"]), expected["x"], rtol=0, atol=1e-13)
    assert len({id(a) for name, a in ours.state_dict().items() if name.endswith((".x", ".y"))}) <= 2


def test_a_frozen_parameter_stays_the_same_array():
    frozen = np.ones(2)
    new = optim.Adam(0.1).update({"w": np.ones(2), "f": frozen}, {"w": np.ones(2)})
    assert new["f"] is frozen


HALVES = ["float16", "bfloat16"]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", MAKE)
def test_half_precision_moves_as_float32(dtype, kind, xp):
    """Each update is below half a unit in the last place of the parameter."""
    pytest.importorskip("ml_dtypes")
    if xp.name == "array_api_strict" or (xp.name == "dask" and dtype == "bfloat16"):
        pytest.skip(f"{xp.name} has no {dtype}")
    half = _array.asarray(np.full(3, 1.5, "float32"), xp.xp, dtype=dtype)
    narrow, wide = {"w": half}, {"w": np.full(3, 1.5, "float32")}
    ours, reference = MAKE[kind](1e-4), MAKE[kind](1e-4)
    gradient = _array.asarray(np.ones(3, "float32"), xp.xp, dtype=dtype)
    updates = 10 if xp.name == "dask" else 100  # the graph of Dask grows with each update
    for _ in range(updates):
        narrow = ours.update(narrow, {"w": gradient})
        wide = reference.update(wide, {"w": np.ones(3, "float32")})
    master = _array.to_numpy(ours.state_dict()["master.w"])
    assert master.dtype == np.float32
    np.testing.assert_allclose(master, wide["w"], rtol=1e-6)
    np.testing.assert_array_equal(_array.narrow(master, dtype), _array.to_numpy(narrow["w"]))
    assert abs(float(narrow["w"][0]) - 1.5) > 5e-5 * updates


def test_a_half_parameter_that_was_replaced_replaces_its_copy():
    sgd = optim.SGD(1e-4)
    params = sgd.update({"w": np.asarray([1.0, 1.0], "float16")}, {"w": np.ones(2, "float16")})
    params = {"w": np.asarray([params["w"][0], 5.0], "float16")}
    sgd.update(params, {"w": np.ones(2, "float16")})
    np.testing.assert_allclose(sgd.state_dict()["master.w"], [1 - 2e-4, 5 - 1e-4], rtol=1e-6)


@pytest.mark.parametrize("kind", MAKE)
def test_a_matrix_is_an_array(kind):
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0], [3.0, 4.0]])
    plain, ours = np.asarray(matrix), MAKE[kind](0.1)
    new = ours.update({"w": matrix}, {"w": matrix})
    expected = MAKE[kind](0.1).update({"w": plain}, {"w": plain})
    assert type(new["w"]) is np.ndarray
    np.testing.assert_array_equal(new["w"], expected["w"])
    assert float(optim.clip_by_global_norm({"w": matrix}, 1.0)[1]) == pytest.approx(30**0.5)


W = {"w": np.ones(2)}
LARGE = np.ones((2, 2))
AVERAGES = {"m.w": np.ones(2), "v.w": np.ones(2)}
REFUSED = [
    ({"step": 1, "m.w": np.ones((2, 2)), "v.w": np.ones(2)}, xplstm.ShapeError, "'w'"),
    (
        {"step": 1, "m.w": LARGE, "v.w": LARGE},
        xplstm.ShapeError,
        r"'m.w' has shape \(2, 2\)",
    ),
    ({"step": 1, "m.w": np.ones(2)}, xplstm.ArgumentError, "v.w"),
    ({"step": 1, "v.w": np.ones(2)}, xplstm.ArgumentError, "m.w"),
    ({"step": True, **AVERAGES}, xplstm.DTypeError, "step=True"),
    ({"step": 1.9, **AVERAGES}, xplstm.DTypeError, "step=1.9"),
    ({"step": -0.0, **AVERAGES}, xplstm.DTypeError, "step=-0.0"),
    ({"step": "3", **AVERAGES}, xplstm.DTypeError, "step='3'"),
    ({"step": -1, **AVERAGES}, xplstm.ArgumentError, "step=-1"),
    ({"step": 0, **AVERAGES}, xplstm.ArgumentError, "step.w=0"),
    ({"step": 3, "step.w": 4, **AVERAGES}, xplstm.ArgumentError, r"step.w=4 must be in \[1, step=3\]"),
    ({"step": 3, "step.w": 2}, xplstm.ArgumentError, "m.w"),
    ({"step": 3, "step.w": 2.0, **AVERAGES}, xplstm.DTypeError, "step.w=2.0"),
    ({"step": 3, "m.w": np.ones(2, "float32"), "v.w": np.ones(2)}, xplstm.DTypeError, "m.w"),
    ({"step": 3, "m.w": np.ones(2, int), "v.w": np.ones(2)}, xplstm.DTypeError, "m.w"),
    ({"step": 3, "m.w": [1.0, 1.0], "v.w": np.ones(2)}, xplstm.DTypeError, "m.w"),
    ({"step": 3, "m.w": np.ma.ones(2), "v.w": np.ones(2)}, xplstm.DTypeError, "masked"),
    (None, xplstm.DTypeError, "state=None"),
    ({"step": 3, "step.w": 0, **AVERAGES}, xplstm.ArgumentError, r"step.w=0 must be in \[1, step=3\]"),
    ({"step": 3}, xplstm.ArgumentError, "step=3 and no averages; Adam needs 'm.<name>', 'v.<name>'"),
]


@pytest.mark.parametrize(("state", "error", "message"), REFUSED)
def test_a_state_that_does_not_fit_is_refused_by_name(state, error, message):
    def load_and_update():
        adam = optim.Adam(0.1)
        adam.load_state_dict(state)
        adam.update(W, W)

    with pytest.raises(error, match=message):
        load_and_update()


@pytest.mark.parametrize("present", ["", "w", "b", "bw"])
def test_a_state_without_some_averages_is_loaded_again(present):
    """After updates without gradients, the state has step counts but no average."""
    params = {"w": np.ones(2), "b": np.ones(3, "float16")}
    adam = optim.Adam(optim.warmup_cosine(0.1, 2, 9))
    for names in ("", present, ""):
        params = adam.update(params, {name: params[name] for name in names})
    again = optim.Adam(optim.warmup_cosine(0.1, 2, 9))
    again.load_state_dict(adam.state_dict())
    assert again.step == 3
    for _ in range(2):
        ours, theirs = adam.update(params, params), again.update(params, params)
        for name in params:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_updates_without_any_parameter_count_and_are_loaded_again():
    adam, again = (optim.Adam(optim.warmup_cosine(0.1, 2, 9)) for _ in range(2))
    assert adam.update({}, {}) == {}
    again.load_state_dict(adam.state_dict())
    assert (again.step, again.lr) == (1, adam.lr)
    np.testing.assert_array_equal(again.update(W, W)["w"], adam.update(W, W)["w"])
    assert sorted(again.state_dict()) == sorted(adam.state_dict()) == ["m.w", "step", "step.w", "v.w"]


def test_autograd_of_torch_records_no_update(torch):
    """A hand-written loop may pass gradients with a graph, and parameters that require gradients."""
    w, fixed = torch.ones(3, requires_grad=True), torch.ones(2)
    params, adam = {"w": w, "tied": w, "fixed": fixed}, optim.AdamW(0.1)
    for _ in range(3):
        (grad,) = torch.autograd.grad((params["w"] ** 3).sum(), params["w"], create_graph=True)
        params = adam.update(params, {"w": grad, "fixed": fixed})
        assert params["w"] is params["tied"]
        assert params["w"].is_leaf
        assert params["w"].requires_grad
        assert not params["fixed"].requires_grad
    assert not any(a.requires_grad for name, a in adam.state_dict().items() if name[:2] in ("m.", "v."))
    assert w.tolist() == [1.0] * 3


def test_a_refused_state_changes_nothing():
    adam = optim.Adam(0.1)
    adam.update(W, W)
    before = adam.state_dict()
    with pytest.raises(xplstm.ArgumentError):
        adam.load_state_dict({"step": 5, "m.w": np.ones(2)})
    assert adam.state_dict().keys() == before.keys()
    assert adam.step == 1


def test_a_state_of_another_library_is_refused_by_name(torch):
    adam = optim.Adam(0.1)
    adam.update(W, W)
    with pytest.raises(xplstm.BackendError, match=r"'m.w' is from numpy, but params\['w'\] is from torch"):
        adam.update({"w": torch.ones(2, dtype=torch.float64)}, {"w": torch.ones(2, dtype=torch.float64)})


def test_a_gradient_of_another_library_is_refused_by_name(torch):
    for optimizer in (optim.SGD(0.1), optim.Adam(0.1)):
        with pytest.raises(xplstm.BackendError, match=r"grads\['w'\] is from torch, expected numpy as"):
            optimizer.update(W, {"w": torch.ones(2, dtype=torch.float64)})
        assert optimizer.step == 0


BAD = [
    (lambda: optim.SGD(0.1).update({"w": np.ones(2, int)}, W), xplstm.DTypeError, "int64"),
    (lambda: optim.SGD(0.1).update({"w": np.ones(2, bool)}, W), xplstm.DTypeError, "bool"),
    (lambda: optim.SGD(0.1).update(W, {"w": np.ones(2, int)}), xplstm.DTypeError, r"grads\['w'\]"),
    (lambda: optim.SGD(0.1).update({"w": np.ma.ones(2)}, W), xplstm.DTypeError, "masked"),
    (lambda: optim.SGD(0.1).update(W, {"w": np.ma.ones(2)}), xplstm.DTypeError, "masked"),
    (lambda: optim.SGD(0.1).update(None, W), xplstm.DTypeError, "params must be a mapping"),
    (lambda: optim.SGD(0.1).update(W, [1]), xplstm.DTypeError, "grads must be a mapping"),
    (lambda: optim.SGD(None), xplstm.DTypeError, "lr=None"),
    (lambda: optim.SGD("1"), xplstm.DTypeError, "lr='1'"),
    (lambda: optim.SGD(True), xplstm.DTypeError, "lr=True"),
    (lambda: optim.SGD(int), xplstm.DTypeError, "is a class"),
    (lambda: optim.SGD(10**400), xplstm.ArgumentError, "lr=an integer of 1329 bits"),
    (lambda: optim.SGD(str).lr, xplstm.DTypeError, "is a class"),
    (lambda: optim.SGD(lambda _: "x").lr, xplstm.DTypeError, r"lr='x'"),
    (lambda: optim.Adam(0.1, betas=(0.1, 0.2, 0.3)), xplstm.DTypeError, "betas="),
    (lambda: optim.SGD(0.1, groups=["w"]), xplstm.DTypeError, "groups="),
    (lambda: optim.SGD(0.1, groups=[Group("w", weight_decay=1.0)]), xplstm.ArgumentError, "no weight decay"),
    (lambda: Group(3), xplstm.DTypeError, "names=3"),
    (lambda: Group([]), xplstm.ArgumentError, r"names=\[\] must have at least 1"),
    (lambda: Group("w", lr=-1.0), xplstm.ArgumentError, "lr=-1.0"),
    (lambda: Group("w", lr_scale=-1.0), xplstm.ArgumentError, "lr_scale=-1.0"),
    (lambda: optim.AdamW(0.1, no_decay=3), xplstm.DTypeError, "no_decay=3"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_learning_rate_can_be_assigned():
    sgd = optim.SGD(0.1)
    sgd.lr = 0.5
    assert sgd.update(W, W)["w"][0] == 0.5
    sgd.lr = optim.warmup_cosine(1.0, 4, 8)
    assert sgd.lr == 0.5
    with pytest.raises(xplstm.ArgumentError, match="lr=-1"):
        sgd.lr = -1


@pytest.mark.parametrize(
    ("optimizer", "name", "wrong"),
    [
        (optim.SGD, "momentum", 1.0),
        (optim.SGD, "groups", [Group("w", weight_decay=1.0)]),
        (optim.Adam, "groups", Group("w", weight_decay=1.0)),
        (optim.Adam, "betas", (0.9, 1.5)),
        (optim.Adam, "betas", 0.9),
        (optim.Adam, "eps", -1.0),
        (optim.AdamW, "weight_decay", "0.1"),
        (optim.AdamW, "no_decay", 3),
    ],
)
def test_an_option_that_is_set_later_is_checked(optimizer, name, wrong):
    one = optimizer(0.1)
    before = getattr(one, name)
    with pytest.raises(xplstm.XplstmError, match=rf"^{name}"):
        setattr(one, name, wrong)
    assert getattr(one, name) == before


def test_an_option_can_be_set_later():
    adam, grads = optim.AdamW(0.5, weight_decay=0.0), {"w": np.zeros(2)}
    adam.weight_decay, adam.groups = 0.5, [Group("b", lr=0.0)]
    updated = adam.update({"w": np.ones(2), "b": np.ones(2)}, {**grads, "b": np.ones(2)})
    np.testing.assert_array_equal(updated["w"], np.full(2, 0.75))
    np.testing.assert_array_equal(updated["b"], np.ones(2))
    assert copy.copy(adam).weight_decay == 0.5


@pytest.mark.parametrize(
    "schedule",
    [optim.warmup_cosine(1.0, 2, 5), optim.one_cycle(1.0, 5), optim.Plateau(1.0, patience=0)],
    ids=["warmup_cosine", "one_cycle", "plateau"],
)
def test_schedules_pickle_and_copy(schedule):
    adam = optim.AdamW(schedule)
    params = adam.update(W, W)
    for other in (pickle.loads(pickle.dumps(adam)), copy.deepcopy(adam)):
        assert other.lr == adam.lr
        np.testing.assert_array_equal(
            other.update(params, W)["w"], copy.deepcopy(adam).update(params, W)["w"]
        )


def test_one_cycle_has_the_rates_of_torch(torch):
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(reference, 0.5, 11, pct_start=0.4, cycle_momentum=False)
    ours, rates = optim.one_cycle(0.5, 11, rise=3.5 / 11), []
    for _ in range(11):
        rates.append(reference.param_groups[0]["lr"])
        reference.step()
        if len(rates) < 11:
            theirs.step()
    assert [ours(0), ours(10)] == pytest.approx([rates[0], rates[-1]])
    assert max(map(ours, range(11))) == 0.5


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_plateau_lowers_when_torch_does(threshold, rng, torch):
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options = {"factor": 0.5, "patience": 2, "threshold": threshold}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, min_lr=0.1, eps=0, **options)
    ours = optim.Plateau(1.0, floor=0.1, **options)
    for value in [3.0, 2.9, 2.0, *rng.uniform(1.0, 4.0, size=60), np.nan, 0.5]:
        theirs.step(value)
        ours.report(value)
        assert ours(0) == reference.param_groups[0]["lr"]


def test_a_momentum_that_is_set_later_has_an_effect():
    late, whole = optim.SGD(0.1), optim.SGD(0.1, 0.5)
    params = late.update(W, W)
    late.momentum = 0.5
    other = whole.update(params, W)
    params = late.update(params, W)
    again = optim.SGD(0.1, 0.5)
    again.load_state_dict(late.state_dict())
    for _ in range(3):
        restored, params, other = again.update(params, W), late.update(params, W), whole.update(other, W)
        np.testing.assert_array_equal(params["w"], other["w"])
        np.testing.assert_array_equal(restored["w"], other["w"])
    with pytest.raises(xplstm.ArgumentError, match="momentum=1"):
        late.momentum = 1
