"""Check which kernel is selected, how callers can choose, and the text of the explanation."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.conftest import required
from xplstm import _dispatch
from xplstm._typing import Proof
from xplstm.kernels import reference

X = np.zeros((5, 4, 3), dtype=np.float32)
FASTEST = "numpy_inplace" if _dispatch.why_missing("native") else "native"


def test_the_last_kernel_is_the_reference() -> None:
    assert list(_dispatch.TABLE)[-1] == "reference"


def test_the_fastest_that_can_is_chosen() -> None:
    assert xplstm.LSTM(3, 2).explain(X).kernels == (FASTEST,)


def test_other_libraries_go_the_generic_way_unless_their_memory_is_borrowed(xp: Any) -> None:
    lstm = xplstm.LSTM(3, 2, num_layers=2, xp=xp.xp)
    explanation = lstm.explain(xp.asarray(X))
    if xp.name in ("numpy", "numpy_readonly", "torch", "jax"):
        assert explanation.kernels == (FASTEST, FASTEST)
    else:
        generic = {"reference", *(name for name in required() if name in _dispatch.TABLE)}
        assert set(explanation.kernels) <= (generic if xp.name == "cupy" else {"reference"})
        assert xp.name in explanation.reasons[0]["numpy_inplace"]
        assert not explanation.canonical_sums


def test_a_block_pins_and_restores() -> None:
    lstm = xplstm.LSTM(3, 2)
    with xplstm.use_kernel("reference"):
        assert lstm.explain(X).kernels == ("reference",)
        assert "pinned" in lstm.explain(X).reasons[0][FASTEST]
        with xplstm.use_kernel(None):
            assert lstm.explain(X).kernels == (FASTEST,)
        assert lstm.explain(X).kernels == ("reference",)
    assert lstm.explain(X).kernels == (FASTEST,)


def test_a_plain_call_holds_for_the_process() -> None:
    lstm = xplstm.LSTM(3, 2)
    xplstm.use_kernel("reference")
    try:
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.extend(lstm.explain(X).kernels))
        thread.start()
        thread.join()
        assert seen == ["reference"]
    finally:
        xplstm.use_kernel(None)
    assert lstm.explain(X).kernels == (FASTEST,)


def test_a_block_stays_in_its_thread() -> None:
    lstm = xplstm.LSTM(3, 2)
    seen: list[str] = []
    with xplstm.use_kernel("reference"):
        thread = threading.Thread(target=lambda: seen.extend(lstm.explain(X).kernels))
        thread.start()
        thread.join()
    assert seen == [FASTEST]


def test_a_pinned_kernel_that_cannot_raises_with_its_reason() -> None:
    lstm = xplstm.LSTM(3, 2, dtype="float16")
    with (
        xplstm.use_kernel("numpy_inplace"),
        pytest.raises(xplstm.KernelError, match=r"'numpy_inplace' is pinned .* float16"),
    ):
        lstm(X.astype("float16"))


def test_an_unknown_kernel_is_refused_with_the_choices() -> None:
    with pytest.raises(
        xplstm.ArgumentError,
        match="kernel 'cuda' is unknown, expected one of native, numpy_inplace, cupy_block, cu",
    ):
        xplstm.use_kernel("cuda")


def test_a_plain_call_in_a_block_holds_to_its_end() -> None:
    lstm = xplstm.LSTM(3, 2)
    with xplstm.use_kernel("reference"):
        xplstm.use_kernel("numpy_inplace")
        assert lstm.explain(X).kernels == ("numpy_inplace",)
        xplstm.use_kernel(None)
        assert lstm.explain(X).kernels == (FASTEST,)
        xplstm.use_kernel("reference")
        assert lstm.explain(X).kernels == ("reference",)
    assert _dispatch._pinned.get() is None


def test_blocks_of_many_threads_leave_the_process_as_it_was() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    wrong: list[str | None] = []

    def work(name: str) -> None:
        for _ in range(300):
            with xplstm.use_kernel(name):
                if _dispatch._pinned.get() != name:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in list(_dispatch.TABLE) * 4]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert _dispatch._pinned.get() is None


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add a kernel at the start of the table: the reference with some replaced functions."""
    monkeypatch.setattr(_dispatch, "load", _dispatch.load.__wrapped__)

    def put(**parts: Any) -> None:
        module = types.ModuleType("another_kernel")
        for name in ("supports", "prepare", "forward", "backward"):
            setattr(module, name, getattr(reference, name))
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, "another_kernel", module)
        monkeypatch.setattr(_dispatch, "TABLE", {"another": "another_kernel", **_dispatch.TABLE})

    return put


WAITS = {
    "unproven": {"proof": lambda *_: Proof(False, "no GPU has run it yet")},
    "slower": {"slower": lambda _: "no GPU has run it yet"},
}


@pytest.mark.parametrize("parts", WAITS.values(), ids=WAITS)
def test_what_waits_runs_when_it_is_pinned(row: Any, parts: dict[str, Any]) -> None:
    row(**parts)
    lstm = xplstm.LSTM(3, 2, rng=0)
    explanation = lstm.explain(X)
    assert explanation.kernels == (FASTEST,)
    assert explanation.reasons[0]["another"] == "no GPU has run it yet; use_kernel('another') runs it"
    with xplstm.use_kernel("another"):
        assert lstm.explain(X).kernels == ("another",)
        assert lstm(X)[0].shape == (5, 4, 2)
    with xplstm.use_kernel("reference"):
        assert lstm.explain(X).reasons[0]["another"] == "kernel 'reference' is pinned"


def test_the_configuration_names_what_waits(row: Any, capsys: pytest.CaptureFixture[str]) -> None:
    row(proof=lambda *_: Proof(False, "no GPU has run it yet"))
    xplstm.show_config()
    assert "  another           usable if proven on the device, or pinned\n" in capsys.readouterr().out


def test_what_is_proven_is_chosen_and_explained(row: Any) -> None:
    row(proof=lambda *_: Proof(True, "passed its trials"))
    explanation = xplstm.LSTM(3, 2, num_layers=2, rng=0).explain(X)
    assert explanation.kernels == ("another", "another")
    assert explanation.proofs == ("passed its trials",) * 2
    line = (
        "  proof: it passed its trials; without it another kernel runs, and the results have different bits"
    )
    assert str(explanation).splitlines()[:2] == ["layer 0: another", line]
    with xplstm.use_kernel("another"):
        assert xplstm.LSTM(3, 2).explain(X).proofs == ()


def test_what_supports_and_does_not_wait_is_chosen(row: Any) -> None:
    row(canonical_sums=lambda problem: problem.reproducible)
    assert xplstm.LSTM(3, 2).explain(X) == (("another",), ({},), False, (), ())
    assert xplstm.LSTM(3, 2, reproducible=True).explain(X) == (("another",), ({},), True, (), ())


@pytest.mark.parametrize("canonical", [3, 2])
def test_one_layer_in_another_order_is_enough_to_have_none(row: Any, canonical: int) -> None:
    row(canonical_sums=lambda problem: canonical == problem.I)
    assert not xplstm.LSTM(3, 2, num_layers=2).explain(X).canonical_sums


@pytest.mark.parametrize("other", [3, 2])
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_on_different_kernels_step_and_run_as_on_one(row: Any, other: int, frozen: bool) -> None:
    row(supports=lambda problem: None if other == problem.I else "this test leaves it to others")
    made = xplstm.LSTM(3, 2, num_layers=2, rng=0)
    lstm, x = made.freeze() if frozen else made, np.random.default_rng(0).random(X.shape, "float32")
    assert set(lstm.explain(x).kernels) == {FASTEST, "another"}
    with xplstm.use_kernel("reference"):
        expected = [lstm(x)[0], lstm.step(x[0])[0]]
    for got, wanted in zip([lstm(x)[0], lstm.step(x[0])[0]], expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_demand_for_the_published_order_that_none_meets(dtype: Any) -> None:
    lstm = xplstm.LSTM(3, 2, dtype=dtype, reproducible=True, variant=xplstm.Variant(layer_norm=True))
    with pytest.raises(xplstm.KernelError) as caught:
        lstm(X.astype(dtype))
    first, *lines = str(caught.value).splitlines()
    assert first == "no kernel can run this problem:"
    assert [line.split(":")[0] for line in lines] == [f"  not {name}" for name in _dispatch.TABLE]
    why = ": the kernel does not use the reproducible summation order, which reproducible=True requires"
    assert lines[-1] == f"  not reference{why}"
    assert lines[0].endswith(why) or "not compiled" in lines[0]


@pytest.mark.parametrize("shape", [(0, 4, 3), (5, 0, 3)])
def test_without_a_step_there_is_no_order(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float16)
    lstm = xplstm.LSTM(3, 2, dtype="float16", reproducible=True)
    assert lstm.explain(x).canonical_sums
    assert lstm(x)[0].shape == (*shape[:2], 2)


def test_the_demand_holds_for_a_pinned_kernel_too(row: Any) -> None:
    row(canonical_sums=lambda _: True, proof=lambda *_: Proof(False, "no GPU has run it yet"))
    x = X
    lstm = xplstm.LSTM(3, 2, variant=xplstm.Variant(layer_norm=True), reproducible=True)
    with (
        xplstm.use_kernel("reference"),
        pytest.raises(xplstm.KernelError, match=r"pinned .* reproducible summation order"),
    ):
        lstm(x)
    with pytest.raises(xplstm.KernelError, match=r"not another: no GPU .*; use_kernel\('another'\) runs it"):
        lstm(x)
    with xplstm.use_kernel("another"):
        assert lstm.explain(x).canonical_sums


PARAMS = xplstm.LSTMParams(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32))
WAYS: dict[str, Callable[..., Any]] = {
    "call": lambda lstm, _: lstm(X),
    "vjp": lambda lstm, _: lstm.vjp(X, rng=0)[2](),
    "checkpoint": lambda lstm, _: lstm.vjp(X, checkpoint=2)[2](),
    "explain": lambda lstm, _: lstm.explain(X),
    "to": lambda lstm, _: lstm.to(dtype="float64")(X.astype("float64")),
    "copy": lambda lstm, _: copy.deepcopy(lstm)(X),
    "pickle": lambda lstm, _: pickle.loads(pickle.dumps(lstm))(X),
    "freeze": lambda lstm, _: lstm.freeze()(X),
    "a copy of the frozen": lambda lstm, _: copy.deepcopy(lstm.freeze()).explain(X),
    "lstm": lambda _, how: xplstm.lstm(X, PARAMS, **how),
    "lstm_vjp": lambda _, how: xplstm.lstm_vjp(X, PARAMS, **how)[2](),
}


@pytest.mark.parametrize("how", [{"precision": "tf32"}, {"reproducible": True}], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_asks_the_kernel_for_it(row: Any, way: str, how: dict[str, Any]) -> None:
    asked: list[Any] = []
    row(supports=asked.append, canonical_sums=lambda _: True)
    WAYS[way](xplstm.LSTM(3, 2, 2, bidirectional=True, **how), how)
    want = {"precision": None, "reproducible": False, **how}
    assert asked
    assert all(want.items() <= problem._asdict().items() for problem in asked)


@pytest.mark.parametrize("how", [{"precision": "tf32"}, {"reproducible": True}], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_every_step_asks_the_kernel_for_it(row: Any, frozen: bool, how: dict[str, Any]) -> None:
    asked: list[Any] = []
    row(supports=asked.append, canonical_sums=lambda _: True)
    lstm = xplstm.LSTM(3, 2, **how)
    (lstm.freeze() if frozen else lstm).step(X[0])
    want = {"precision": None, "reproducible": False, **how}
    assert asked
    assert all(want.items() <= problem._asdict().items() for problem in asked)


def test_a_block_inside_itself_restores_the_outer_block() -> None:
    block = xplstm.use_kernel("reference")
    with block:
        with block:
            assert _dispatch.pinned() == "reference"
        assert _dispatch.pinned() == "reference"
    assert _dispatch.pinned() is None
    with block:
        assert _dispatch.pinned() == "reference"
    assert _dispatch.pinned() is None


def test_blocks_left_in_the_wrong_order_leave_nothing_pinned() -> None:
    first, second = xplstm.use_kernel("reference"), None
    first.__enter__()
    second = xplstm.use_kernel("numpy_inplace")
    second.__enter__()
    first.__exit__(None, None, None)
    assert _dispatch.pinned() == "numpy_inplace"
    second.__exit__(None, None, None)
    assert _dispatch.pinned() is None


def test_a_block_that_was_not_entered_here_cannot_be_left() -> None:
    with xplstm.use_kernel("reference"):
        other = xplstm.use_kernel("numpy_inplace")
        with pytest.raises(RuntimeError, match="leave it where it was entered"):
            other.__exit__(None, None, None)
    assert _dispatch.pinned() is None
