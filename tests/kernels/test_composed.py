"""Check the pointwise step of `native` with options, and its random masks, against the reference."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import numpy as np
import pytest

import xplstm
from tests.support.cases import Case, run
from xplstm import LSTMState, Variant
from xplstm.cells.activations import FUNCTIONS
from xplstm.kernels import native

if native.WHY_NOT and "native" not in os.environ.get("XPLSTM_REQUIRE", ""):
    pytest.skip(native.WHY_NOT, allow_module_level=True)

FUSED = [isa for isa, fused in native.ISAS.items() if fused]


@pytest.fixture(autouse=True)
def pinned() -> Iterator[None]:
    with xplstm.use_kernel("native"):
        yield


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native, "ISA", request.param)
    return str(request.param)


ACTIVATIONS = [
    "sigmoid",
    "tanh",
    "identity",
    "relu",
    ("affine", 0.7, 0.1),
    ("leaky_relu", 0.2),
    ("thresholded_relu", 0.1),
    ("scaled_tanh", 0.8, 1.3),
    "hard_sigmoid",
    ("elu", 0.7),
    "softsign",
    "softplus",
]
VARIANTS = {
    "peepholes": Variant(peepholes=True),
    "coupled": Variant(coupled=True),
    "gate_clip": Variant(gate_clip=0.5),
    "cell_clip": Variant(cell_clip=0.3),
    "recurrent_dropout, without noise": Variant(recurrent_dropout=0.3),
    "layer_norm": Variant(layer_norm=True),
    "layer_norm, all": Variant(
        *(True, True, ("sigmoid", "softsign", "tanh"), 0.9, 1.1, True), zoneout_h=0.2, zoneout_c=0.3
    ),
    "zoneout, mean": Variant(zoneout_h=0.3, zoneout_c=0.2, peepholes=True),
    "four": Variant(peepholes=True, coupled=True, gate_clip=0.7, cell_clip=0.4),
    **{f"gates {a}": Variant(activations=(a, "tanh", "sigmoid"), peepholes=True) for a in ACTIVATIONS},
    **{f"g, h {a}": Variant(activations=("hard_sigmoid", a, a)) for a in ACTIVATIONS},
}


def test_every_activation_has_a_kind() -> None:
    assert set(native.ACTIVATIONS) == set(FUNCTIONS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_composed_step_agrees_with_the_reference(isa: str, name: str, dtype: str) -> None:
    """Compare forward, backward and a single step: ragged, two directions, a projection, several panels."""
    cases = [
        Case(T=6, B=7, H=13, lengths=[3, 0, 6, 2, 5, 6, 1]),
        Case(T=3, B=2, H=37, options={"bidirectional": True, "proj_size": 5}, holes=True),
        Case(T=4, B=1, H=9, options={"bias": False, "num_layers": 2}),
    ]
    for case in cases:
        case.options["variant"] = VARIANTS[name]
        a = {key: value.astype(dtype) for key, value in case.arrays().items()}
        lstm = case.lstm(dtype=dtype)
        got = run(lstm, a, **case.valid()).flat()
        with xplstm.use_kernel("reference"):
            wide = {key: value.astype("float64") for key, value in a.items()}
            want = run(case.lstm(dtype=dtype).to(dtype="float64"), wide, **case.valid()).flat()
        for key, value in want.items():
            scale = max(1.0, float(np.abs(value).max(initial=0)))
            bound = 2e-5 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(got[key], value, rtol=0, atol=bound * scale, err_msg=f"{case} {key}")
        if case.directions == 1:
            state = (a["h_0"], a["c_0"])
            y, _ = lstm(a["x"][:1], state)
            np.testing.assert_array_equal(lstm.freeze().step(a["x"][0], state)[0], y[0])


NOISY = {
    "recurrent_dropout": Variant(recurrent_dropout=0.4),
    "zoneout_h": Variant(zoneout_h=0.4),
    "zoneout_c": Variant(zoneout_c=0.4),
    "layer_norm": Variant(peepholes=True, layer_norm=True, zoneout_h=0.3, recurrent_dropout=0.4),
    "all": Variant(peepholes=True, cell_clip=0.4, zoneout_h=0.3, zoneout_c=0.2, recurrent_dropout=0.4),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NOISY)
def test_drawn_masks_are_those_of_the_reference(isa: str, name: str, dtype: str) -> None:
    """Compare ragged calls with resets, two directions, a projection, `checkpoint`, and repeated calls."""
    cases = [
        (Case(T=6, B=7, H=13, lengths=[3, 0, 6, 2, 5, 6, 1]), None),
        (Case(T=5, B=2, H=37, options={"bidirectional": True, "proj_size": 5}, holes=True), None),
        (Case(T=5, B=6, H=18, options={"bidirectional": True, "num_layers": 2}), 2),
        (Case(T=4, B=1, H=9, options={"bias": False}), None),
    ]
    for case, checkpoint in cases:
        case.options["variant"] = NOISY[name]
        a = {key: value.astype(dtype) for key, value in case.arrays().items()}
        reset = np.random.default_rng(3).random((case.T, case.B)) < 0.3
        found = []
        for kernel, wide in (("native", dtype), ("reference", "float64")):
            lstm, rng = case.lstm(dtype=dtype).to(dtype=wide), np.random.default_rng(5)
            b = {key: value.astype(wide) for key, value in a.items()}
            state, options = LSTMState(b["h_0"], b["c_0"]), {**case.valid(), "reset": reset, "rng": rng}
            with xplstm.use_kernel(kernel):
                lstm.vjp(b["x"], rng=rng)
                y, end, pullback = lstm.vjp(b["x"], state, checkpoint=checkpoint, **options)
                dx, dstate, dparams = pullback(b["dy"], LSTMState(b["dh_n"], b["dc_n"]))
            found.append(
                {"y": y, "h_n": end.h, "c_n": end.c, "dx": dx, "dh": dstate.h, "dc": dstate.c} | dparams
            )
        for key, value in found[1].items():
            scale = max(1.0, float(np.abs(value).max(initial=0)))
            bound = 2e-5 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(
                found[0][key], value, rtol=0, atol=bound * scale, err_msg=f"{case} {key}"
            )


def test_a_mask_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = xplstm.LSTM(3, 70, rng=0, variant=NOISY["zoneout_c"], dtype="float64")
    x = np.random.default_rng(1).normal(size=(50, 40, 3))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(native, "THREADS", threads)
        found.append(lstm.vjp(x, rng=7)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", ["four", "g, h softplus", "gates ('elu', 0.7)", "layer_norm, all"])
def test_a_composed_step_has_the_same_bits_on_any_threads_and_vectors(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(T=5, B=9, I=70, H=130, options={"variant": VARIANTS[name], "bidirectional": True})
    answers = []
    for isa, threads in itertools.product(FUSED, (1, 2, 3)):
        monkeypatch.setattr(native, "ISA", isa)
        monkeypatch.setattr(native, "THREADS", threads)
        answers.append(run(case.lstm(), case.arrays()).flat())
    for other in answers[1:]:
        for key, value in answers[0].items():
            np.testing.assert_array_equal(other[key], value, err_msg=key)
