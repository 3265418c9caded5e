"""Test what a clause requires and no record can contain."""

from __future__ import annotations

import numpy as np
import pytest

from spec.calls import CASES, given
from spec.records import RECORDS, Record, arrays, errors
from spec.subject import Adapter, Arrays, Refused, Unsupported

RECORD = RECORDS["sequence"]


def answer(subject: Adapter, op: str, config: Record, given: Arrays) -> Arrays:
    """Return a result, or skip the test with the reason of the subject."""
    try:
        return subject.call(op, config, given)
    except Unsupported as reason:
        pytest.skip(str(reason))


def test_batch_without_rows(subject: Adapter) -> None:
    """XPL-SEQ-009: check the shapes, and that the gradients of the parameters are zero."""
    given = arrays(RECORD["inputs"] | RECORD["cotangents"], "float32")
    batched = {name: a[:0] if a.ndim == 2 else a[:, :0] for name, a in given.items() if "bias" not in name}
    given |= {name: batched[name] for name in ("x", "h_0", "c_0", "dy", "dh_n", "dc_n")}
    got = answer(subject, "layer_vjp", RECORD["config"], given)
    assert got["y"].shape == (5, 0, 4)
    assert got["h_n"].shape == got["c_n"].shape == got["dc_0"].shape == (0, 4)
    assert got["dx"].shape == (5, 0, 3)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        np.testing.assert_array_equal(got[f"d{name}"], np.zeros_like(given[name]))


@pytest.mark.parametrize("wrong", [-1, 6])
def test_length_out_of_range_is_refused(subject: Adapter, wrong: int) -> None:
    """XPL-ERR-003."""
    with pytest.raises(Refused, match=str(wrong)):
        answer(
            subject, "layer", RECORD["config"] | {"lengths": [5, wrong]}, arrays(RECORD["inputs"], "float32")
        )


@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_one_bias_is_refused(subject: Adapter, missing: str) -> None:
    """XPL-ERR-004."""
    given = arrays(RECORD["inputs"], "float32")
    del given[missing]
    with pytest.raises(Refused):
        answer(subject, "layer", RECORD["config"], given)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_results_have_the_dtype_of_the_inputs(subject: Adapter, dtype: str) -> None:
    """XPL-NUM-002."""
    given = arrays(RECORD["inputs"] | RECORD["cotangents"], dtype)
    got = answer(subject, "layer_vjp", RECORD["config"], given)
    assert {str(a.dtype) for a in got.values()} == {dtype}


def test_weights_as_they_are_printed(subject: Adapter) -> None:
    """XPL-CELL-007: pass a matrix for each gate, h above x, called W_i to W_o, and biases b_i to b_o."""
    given = arrays(RECORD["inputs"], "float64")
    whole = np.concatenate([given["weight_hh"], given["weight_ih"]], axis=1)
    both = given["bias_ih"] + given["bias_hh"]
    printed = {f"W_{gate}": block for gate, block in zip("ifgo", np.split(whole, 4), strict=True)}
    printed |= {f"b_{gate}": block for gate, block in zip("ifgo", np.split(both, 4), strict=True)}
    printed |= {name: given[name] for name in ("x", "h_0", "c_0")}
    got = answer(subject, "layer", RECORD["config"] | {"printed": True}, printed)
    found = errors(got, RECORD["outputs"], "float64")
    assert max(found.values()) <= RECORD["tolerance"]["outputs"], found


@pytest.mark.parametrize("cotangent", ["dy", "dh_n", "dc_n"])
@pytest.mark.parametrize("name", ["square", "reverse-5", "two-directions-2-p0"])
def test_nan_in_cotangents(subject: Adapter, name: str, cotangent: str) -> None:
    """XPL-GRAD-001 and XPL-NUM-004: find NaN in the gradients of the parameters and of one batch entry."""
    case, a = CASES[name], dict(given(name, "float32"))
    expected = answer(subject, f"{case.op}_vjp", case.config, dict(a))
    a[cotangent] = a[cotangent].copy()
    a[cotangent][-1 if a[cotangent].ndim == 3 else ..., 1, 0] = np.nan
    got = answer(subject, f"{case.op}_vjp", case.config, a)
    assert any(np.isnan(v).any() for n, v in got.items() if n.startswith("dweight")), "no parameter has it"
    for tensor in ("dx", "dh_0", "dc_0"):
        assert np.isnan(got[tensor][..., 1, :]).any(), f"{tensor} of its row is finite"
        here, there = (np.delete(found[tensor], 1, axis=-2) for found in (got, expected))
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5, err_msg=f"{tensor} of other rows")


@pytest.mark.parametrize("name", ["one-step-of-a-module", "one-step-or-none"])
def test_gates_make_the_states_if_shown(subject: Adapter, name: str) -> None:
    """XPL-CELL-006: compute the states of many units from the gates, for batch entries with a step."""
    case, a = CASES[name], given(name, "float32")
    forward = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    got = answer(subject, case.op, case.config, forward)
    if got.keys().isdisjoint("ifgo"):
        pytest.skip("it shows no gates")
    there = np.asarray(case.config["lengths"] or [1] * case.B, bool)
    i, f, g, o = (got[gate][0, there] for gate in "ifgo")
    c = f * a["c_0"][0, there] + i * g
    np.testing.assert_allclose(got["c_n"][0, there], c, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got["h_n"][0, there], o * np.tanh(c), rtol=0, atol=1e-5)
