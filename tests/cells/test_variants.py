"""Check each variant of an LSTM, and all together: derivatives, backends, bounds and errors."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import pytest

import xplstm
from tests.conftest import backend
from tests.support.cases import Case, run, slopes
from xplstm import Variant
from xplstm._array import numpy_namespace, to_numpy
from xplstm.cells import activations
from xplstm.cells.activations import FUNCTIONS
from xplstm.cells.masks import Purpose, draw_key, uniform
from xplstm.cells.params import Activation
from xplstm.kernels import native

SMOOTH = ("softsign", ("scaled_tanh", 0.9, 1.2), "softplus")
ALL = Variant(
    peepholes=True,
    coupled=True,
    activations=SMOOTH,
    gate_clip=1.3,
    cell_clip=0.7,
    layer_norm=True,
    zoneout_h=0.2,
    zoneout_c=0.3,
    recurrent_dropout=0.4,
)
VARIANTS = {
    "peepholes": Variant(peepholes=True),
    "coupled": Variant(coupled=True),
    "activations": Variant(activations=SMOOTH),
    "activations_by_direction": Variant(activations=("sigmoid", "tanh", "identity", *SMOOTH)),
    "gate_clip": Variant(gate_clip=0.6),
    "cell_clip": Variant(cell_clip=0.4),
    "layer_norm": Variant(layer_norm=True),
    "zoneout": Variant(zoneout_h=0.3, zoneout_c=0.6),
    "recurrent_dropout": Variant(recurrent_dropout=0.5),
    "all": ALL,
}
SHAPES: dict[str, dict[str, Any]] = {
    "one direction": {},
    "ragged": {"lengths": [2, 5, 0, 3]},
    "two directions, projection, layers": {
        "options": {"bidirectional": True, "proj_size": 2, "num_layers": 2},
        "lengths": [3, 1, 0],
        "T": 3,
        "B": 3,
        "H": 3,
    },
    "no bias, holes": {"options": {"bias": False}, "holes": True},
}


def case(variant: Variant, shape: str = "one direction", **options: Any) -> Case:
    made = SHAPES[shape]
    options = {**made.get("options", {}), "variant": variant, **options}
    if len(variant.activations) == 6:
        options["bidirectional"] = True
    return Case(**{"T": 5, "H": 4, "I": 2, **made, "options": options})


def distinct(made: Case, **where: Any) -> xplstm.LSTM:
    """Return the LSTM of a case, with distinct gains."""
    lstm = made.lstm(**where)
    rng = np.random.default_rng(3)
    for name, a in lstm.params.items():
        if name.startswith(("gain", "bias_c")):
            lstm.params[name] = a + rng.normal(size=a.shape, scale=0.3)
    return lstm


def loss(made: Case, lstm: xplstm.LSTM, a: dict[str, np.ndarray], rng: int | None) -> float:
    y, (h_n, c_n), _ = lstm.vjp(a["x"], (a["h_0"], a["c_0"]), **made.valid(), rng=rng)
    return float(np.sum(y * a["dy"]) + np.sum(h_n * a["dh_n"]) + np.sum(c_n * a["dc_n"]))


def close(got: np.ndarray, want: np.ndarray, tolerance: float, what: str) -> None:
    """Compare within a fraction of the largest number, because gradients here are in the hundreds."""
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, err_msg=what)


def assert_gradients(made: Case, a: dict[str, np.ndarray], rng: int | None) -> None:
    lstm = distinct(made)
    got = run(lstm, a, **made.valid(), rng=rng)
    for key, gradient in (("x", got.dx), ("h_0", got.dh_0), ("c_0", got.dc_0)):
        assert gradient.shape == a[key].shape
        close(*slopes(lambda v, key=key: loss(made, lstm, a | {key: v}, rng), a[key], gradient), 2e-8, key)
    for key, gradient in got.dparams.items():
        at = lstm.params[key]

        def moved(v: np.ndarray, key: str = key) -> float:
            lstm.params[key] = v
            return loss(made, lstm, a, rng)

        assert gradient.shape == at.shape
        got_slopes, want = slopes(moved, at, gradient)
        lstm.params[key] = at
        close(got_slopes, want, 2e-8, key)


@pytest.mark.parametrize("rng", [None, 5])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_differences(name: str, rng: int | None) -> None:
    made = case(VARIANTS[name])
    assert_gradients(made, made.arrays(), rng)


@pytest.mark.parametrize("shape", list(SHAPES)[1:])
def test_gradients_of_all_options_together(shape: str) -> None:
    made = case(ALL, shape, input_dropout=0.3, weight_dropout=0.4)
    assert_gradients(made, made.arrays(), rng=5)


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["sum", "mean", "product", "none"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_merged_directions(merge: str, batch_first: bool) -> None:
    options = {"bidirectional": True, "num_layers": 2, "merge": merge, "batch_first": batch_first}
    made = Case(T=3, H=4, lengths=[3, 0, 1, 2], options=options)
    a = made.arrays()
    shape = (4, 3) if batch_first else (3, 4)
    a["dy"] = np.random.default_rng(1).normal(size=(2, *shape, 4) if merge == "none" else (*shape, 4))
    assert_gradients(made, a, rng=None)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, "two directions, projection, layers") for name in VARIANTS),
        *(("all", s) for s in SHAPES if not s.startswith("two")),
    ],
)
def test_every_backend_gives_the_same(xp: Any, name: str, shape: str) -> None:
    if xp.name in ("dask", "jax") and (name != "all" or shape == "one direction"):
        pytest.skip(f"{xp.name}: all options at once are enough on a slow backend")
    made = case(VARIANTS[name], shape)
    arrays = made.arrays()
    want = run(distinct(made), arrays, **made.valid(), rng=5)
    lstm = made.lstm(xp=xp.xp)
    lstm.params = {k: xp.asarray(to_numpy(v)) for k, v in distinct(made).params.items()}
    got = run(lstm, xp.arrays(arrays), **made.valid(), rng=5)
    for key, value in want.flat().items():
        close(to_numpy(got.flat()[key]), value, 1e-13, key)


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpointing_changes_nothing(shape: str) -> None:
    """The random masks of a step do not depend on where a segment starts."""
    made = case(ALL, shape, weight_dropout=0.4)
    if "options" in SHAPES[shape] and SHAPES[shape]["options"].get("bidirectional"):
        made.options["variant"] = ALL._replace(activations=("sigmoid", "tanh", "identity", *SMOOTH))
    a, lstm = made.arrays(), distinct(made)
    want = run(lstm, a, **made.valid(), rng=5)
    got = run(lstm, a, **made.valid(), rng=5, checkpoint=2)
    for key, value in want.flat().items():
        close(got.flat()[key], value, 1e-13, key)


def test_without_options_it_is_the_plain_lstm() -> None:
    plain, made = Case(), Case(options={"variant": Variant()})
    assert made.lstm().explain(made.arrays()["x"]).kernels == plain.lstm().explain(made.arrays()["x"]).kernels
    for key, value in run(plain.lstm(), plain.arrays()).flat().items():
        np.testing.assert_array_equal(run(made.lstm(), made.arrays()).flat()[key], value)


def test_options_that_change_nothing_give_the_plain_lstm() -> None:
    """Zero peepholes, bounds that no number reaches, and the equations of the reference change nothing."""
    plain = Case().lstm()
    made = Case(options={"variant": Variant(peepholes=True, gate_clip=1e3, cell_clip=1e3)}).lstm()
    made.params |= plain.params
    made.params["weight_ch_l0"] = np.zeros_like(made.params["weight_ch_l0"])
    a = Case().arrays()
    got, want = run(made, a), run(plain, a)
    del got.dparams["weight_ch_l0"]
    for key, value in want.flat().items():
        np.testing.assert_allclose(got.flat()[key], value, rtol=0, atol=1e-14, err_msg=key)


@pytest.mark.parametrize("name", VARIANTS)
def test_explain_names_what_a_fast_kernel_lacks(name: str) -> None:
    made = case(VARIANTS[name])
    explanation = made.lstm().explain(made.arrays()["x"])
    assert explanation.kernels == ("reference" if native.WHY_NOT else "native",)
    for kernel, reason in explanation.reasons[0].items():
        assert kernel.startswith(("cupy", "jax")) or str(VARIANTS[name]).partition("=")[0] in reason


def test_trace_shows_the_coupling_and_the_held_state() -> None:
    made = case(Variant(coupled=True, zoneout_c=0.4))
    a = made.arrays()
    lstm = made.lstm()
    gates = lstm.trace(a["x"], (a["h_0"], a["c_0"]))
    np.testing.assert_allclose(gates.f, 1 - gates.i, rtol=0, atol=1e-15)
    _, (_, c_n) = lstm(a["x"], (a["h_0"], a["c_0"]))
    np.testing.assert_allclose(gates.c[:, -1], c_n, rtol=0, atol=1e-14)


def test_zoneout_keeps_old_values_as_often_as_asked() -> None:
    made = Case(T=40, B=20, H=10, options={"variant": Variant(zoneout_c=0.3)})
    lstm, a = made.lstm(), made.arrays()
    _, (_, c_n), _ = lstm.vjp(a["x"][:1], (a["h_0"], a["c_0"]), rng=1)
    assert 0.2 < np.mean(c_n == a["c_0"]) < 0.4
    _, (_, expected) = lstm(a["x"][:1], (a["h_0"], a["c_0"]))
    plain = Case(T=40, B=20, H=10).lstm()
    _, (_, new) = plain(a["x"][:1], (a["h_0"], a["c_0"]))
    np.testing.assert_allclose(expected, 0.3 * a["c_0"] + 0.7 * new, rtol=0, atol=1e-14)


def test_each_direction_has_its_own_functions() -> None:
    by_direction = VARIANTS["activations_by_direction"]
    made = case(by_direction, "ragged")
    lstm, a = made.lstm(), made.arrays()
    y, (h_n, _) = lstm(a["x"], (a["h_0"], a["c_0"]), **made.valid())
    for d, suffix in enumerate(("_l0", "_l0_reverse")):
        p = xplstm.LSTMParams(*(lstm.params.get(f + suffix) for f in xplstm.LSTMParams._fields))
        alone = Variant(activations=by_direction.activations[3 * d : 3 * d + 3])
        state, H = (a["h_0"][d], a["c_0"][d]), made.H
        want, end = xplstm.lstm(a["x"], p, state, reverse=d == 1, variant=alone, **made.valid())
        np.testing.assert_array_equal(y[..., d * H : (d + 1) * H], want)
        np.testing.assert_array_equal(h_n[d], end.h)


def test_each_layer_and_direction_draws_its_own_masks() -> None:
    """A unit of c that zoneout keeps at the only step has the old bits."""
    made = Case(T=1, options={"bidirectional": True, "num_layers": 2, "variant": Variant(zoneout_c=0.5)})
    a = made.arrays()
    _, (_, c_n), _ = made.lstm().vjp(a["x"], (a["h_0"], a["c_0"]), rng=4)
    for row in range(4):
        held = uniform((made.B, made.H), draw_key(4), Purpose.ZONEOUT_C, row, 0) < 0.5
        np.testing.assert_array_equal(c_n[row] == a["c_0"][row], held)


def test_each_direction_drops_its_own_weights_and_each_layer_its_own_inputs() -> None:
    """Dropped elements have no gradient, and all other elements have one."""
    made = Case(options={"bidirectional": True, "num_layers": 2, "weight_dropout": 0.5, "input_dropout": 0.5})
    a, key = made.arrays(), draw_key(4)
    got = run(made.lstm(), a, rng=4)
    for row, name in enumerate(("_l0", "_l0_reverse", "_l1", "_l1_reverse")):
        dweight = got.dparams[f"weight_hh{name}"]
        kept = uniform(dweight.shape, key, Purpose.WEIGHT, row) >= 0.5
        np.testing.assert_array_equal(dweight != 0, kept)
    kept = uniform((made.B, made.I), key, Purpose.INPUT, 0) >= 0.5
    np.testing.assert_array_equal(got.dx != 0, np.broadcast_to(kept, got.dx.shape))


def test_layer_normalisation_is_that_of_its_formula() -> None:
    """The inputs are small, so that the constant under the root has a visible effect."""
    made = case(Variant(layer_norm=True), "one direction")
    lstm, a = distinct(made), made.arrays()
    x, (h, c), p = 1e-3 * a["x"][:1], (1e-3 * a["h_0"], 1e-3 * a["c_0"]), lstm.params

    def norm(v: np.ndarray) -> np.ndarray:
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)

    z = norm(x[0] @ p["weight_ih_l0"].T) * p["gain_ih_l0"] + p["bias_ih_l0"]
    z = z + norm(h[0] @ p["weight_hh_l0"].T) * p["gain_hh_l0"] + p["bias_hh_l0"]
    i, f, g, o = np.split(z, 4, axis=-1)
    c_1 = c[0] / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    want = np.tanh(norm(c_1) * p["gain_c_l0"] + p["bias_c_l0"]) / (1 + np.exp(-o))
    y, (_, c_n) = lstm(x, (h, c))
    np.testing.assert_allclose(y[0], want, rtol=0, atol=1e-14)
    np.testing.assert_allclose(c_n[0], c_1, rtol=0, atol=1e-14)


def test_recurrent_dropout_drops_the_same_units_at_every_step() -> None:
    """With identity functions, no input and only W_hh, a dropped unit never has an effect."""
    H = 6
    variant = Variant(recurrent_dropout=0.5)
    lstm = xplstm.LSTM(1, H, variant=variant, dtype="float64", rng=0)
    h_0 = np.random.default_rng(0).normal(size=(1, 3, H))
    x, c_0 = np.zeros((7, 3, 1)), np.zeros((1, 3, H))
    _, _, pullback = lstm.vjp(x, (h_0, c_0), rng=2)
    _, dstate_0, _ = pullback(np.ones((7, 3, H)))
    mask = uniform((3, H), draw_key(2), Purpose.RECURRENT, 0) >= 0.5
    np.testing.assert_array_equal(dstate_0.h[0] != 0, mask)
    assert 0 < mask.sum() < mask.size


def test_no_two_masks_share_a_counter() -> None:
    key = draw_key(3)
    drawn = {
        (purpose, stream, t): uniform((16,), key, purpose, stream, t).tobytes()
        for purpose in Purpose
        for stream in range(4)
        for t in range(3)
    }
    assert len(set(drawn.values())) == len(drawn)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_activation_and_its_slope(xp: Any, name: str) -> None:
    z = np.asarray([-3.1, -0.7, -0.2, 0.3, 0.9, 2.9])
    kind = Activation(name)
    wrapped = xp.asarray(z)
    a = activations.value(xp.xp, kind, wrapped)
    slope = to_numpy(activations.slope(xp.xp, kind, wrapped, a))
    ahead, behind = (activations.value(numpy_namespace(), kind, z + step) for step in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_activation_at_the_ends(name: str) -> None:
    """The largest numbers do not overflow; a warning is an error here."""
    big = np.asarray([-1e30, 1e30], dtype="float32")
    a = activations.value(numpy_namespace(), Activation(name), big)
    slope = activations.slope(numpy_namespace(), Activation(name), big, a)
    assert a.dtype == slope.dtype == np.float32
    assert not np.isnan(a).any()
    assert not np.isnan(slope).any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_activation_of_nan_is_nan(xp: Any, name: str) -> None:
    """XPL-NUM-004: no function hides a NaN."""
    z = xp.asarray(np.asarray([np.nan, 1.0], dtype="float32"))
    a = to_numpy(activations.value(xp.xp, Activation(name), z))
    assert np.isnan(a).tolist() == [True, False]


@pytest.mark.parametrize("library", [backend("torch"), backend("jax")])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autograd_of_an_activation_is_its_slope(name: str, library: str) -> None:
    """At a kink, automatic derivatives may be those of either side; elsewhere they are the slope."""
    places = np.asarray([-3.0, -2.5, -1.0, -1e-3, -0.0, 0.0, 1e-3, 1.0, 2.5, 3.0])
    kind = Activation(name)
    numpy = numpy_namespace()
    slopes = activations.slope(numpy, kind, places, activations.value(numpy, kind, places))
    if library == "torch":
        import torch

        z = torch.asarray(places, requires_grad=True)
        activations.value(array_api_compat.array_namespace(z), kind, z).sum().backward()
        got = z.grad.numpy()
    else:
        import jax

        with jax.enable_x64(True):
            z = jax.numpy.asarray(places)
            xp = array_api_compat.array_namespace(z)
            got = jax.jit(jax.grad(lambda z: activations.value(xp, kind, z).sum()))(z)
    np.testing.assert_allclose(np.asarray(got), slopes, rtol=1e-12, atol=0)


def test_half_precision_keeps_its_dtype() -> None:
    made = case(ALL, "ragged")
    a = {k: v.astype("float16") for k, v in made.arrays().items()}
    got = run(made.lstm(dtype="float16"), a, **made.valid(), rng=1)
    assert {v.dtype for v in got.flat().values()} == {np.dtype("float16")}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variant": 3}, "variant must be a Variant"),
        ({"variant": Variant(gate_clip=0.0)}, r"variant\.gate_clip=0\.0 must be above 0"),
        ({"variant": Variant(cell_clip=-1)}, r"variant\.cell_clip=-1 must be above 0"),
        ({"variant": Variant(zoneout_h=1.0)}, r"variant\.zoneout_h=1\.0 must be in \[0, 1\)"),
        ({"variant": Variant(coupled=1)}, r"variant\.coupled=1 must be True or False"),  # type: ignore[arg-type]
        ({"variant": Variant(activations=("tanh", "tanh"))}, "must have 3 activations"),
        (
            {"variant": Variant(activations=("tanh", "tank", "tanh"))},
            "'tank' must be one of",
        ),
        ({"variant": Variant(activations=(("tanh", 2.0), "tanh", "tanh"))}, "tanh has no constant alpha"),
        (
            {"variant": Variant(activations=(("elu", float("nan")), "tanh", "tanh"))},
            r"alpha of variant\.activations\[0\]=nan must be finite",
        ),
        ({"variant": Variant(activations=(np.tanh, "tanh", "tanh"))}, "must be a name"),
        ({"variant": Variant(activations=((), "tanh", "tanh"))}, "must be a name"),
        ({"merge": "sum"}, "needs bidirectional=True"),
        ({"merge": "max", "bidirectional": True}, r"merge='max' must be one of"),
        ({"weight_dropout": 1.0}, r"weight_dropout=1\.0 must be in \[0, 1\)"),
    ],
)
def test_errors_name_the_argument(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(xplstm.XplstmError, match=message):
        xplstm.LSTM(3, 2, **wrong)


def test_functional_wants_what_the_options_use() -> None:
    p = xplstm.LSTMParams(np.ones((8, 3)), np.ones((8, 2)))
    x = np.ones((4, 1, 3))
    with pytest.raises(xplstm.ArgumentError, match=r"params\.weight_ch is None"):
        xplstm.lstm(x, p, variant=Variant(peepholes=True))
    with pytest.raises(
        xplstm.ArgumentError, match=r"params\.weight_ch has .*variant\.peepholes, which uses it, is off"
    ):
        xplstm.lstm(x, p._replace(weight_ch=np.ones(6)))
    with pytest.raises(xplstm.ShapeError, match=r"weight_ch has shape \(5,\), expected \(6,\)$"):
        xplstm.lstm(x, p._replace(weight_ch=np.ones(5)), variant=Variant(peepholes=True))
    y, _ = xplstm.lstm(x, p._replace(weight_ch=np.ones(6)), variant=Variant(peepholes=True))
    assert y.shape == (4, 1, 2)


def test_a_constant_shows_where_it_stands() -> None:
    by_beta = Variant(activations=(("hard_sigmoid", None, 0.3), "tanh", "tanh"))
    by_alpha = Variant(activations=(("hard_sigmoid", 0.3), "tanh", "tanh"))
    assert str(by_beta) != str(by_alpha)


def test_constants_that_are_not_given_are_not_shown() -> None:
    given = ("hard_sigmoid", 0.3, None), ("scaled_tanh", None, 0.5), ("elu", None, None)
    shown = ("hard_sigmoid", 0.3), ("scaled_tanh", None, 0.5), "elu"
    assert Variant(activations=given).changed() == {"activations": shown}
