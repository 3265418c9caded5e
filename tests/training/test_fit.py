"""Check `fit` with numbers that are not finite, signals, unsuitable resumed runs, and invalid arguments."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest

import xplstm
from xplstm import _array, optim, training
from xplstm.io.files import safetensors
from xplstm.models import CharLM, Forecaster, Ragged, WithFuture
from xplstm.training import History, StatefulTrainer, _fit

NUMPY = _array.numpy_namespace()


class Line:
    """Model of two weights; a batch states the fault of its loss, gradient or parameters."""

    def __init__(self, xp=NUMPY, dtype="float64"):
        self.xp = xp
        self.params = {name: _array.asarray(np.ones(2), xp, dtype=dtype) for name in ("w", "b")}

    def loss_vjp(self, fault, *_):
        w = self.params["w"]
        loss = self.xp.sum(w * w)
        loss = loss * math.nan if fault == "loss" else loss

        def pullback(factor=1.0):
            bad = {"nan": math.nan, "inf": math.inf, "huge": 1e300}.get(fault, 1.0)
            return {"w": w * (factor * bad), "b": self.xp.ones_like(w) * factor}

        return loss, None, pullback


def fit(model, data, optimizer=None, **options):
    settings = {"progress": False} | options
    return training.fit(model, data, optim.SGD(0.1) if optimizer is None else optimizer, **settings)


def batches(faults):
    return [(fault, None) for fault in faults]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def host(params):
    return {name: _array.to_numpy(a) for name, a in params.items()}


# What is not finite.


class Reads:
    """PyTorch tensors that behave like device arrays: lazy, and reads of a value are counted."""

    def __init__(self, monkeypatch, torch):
        self.count = 0
        is_lazy = _array.is_lazy
        monkeypatch.setattr(_array, "is_lazy", lambda a: isinstance(a, torch.Tensor) or is_lazy(a))
        for name in ("__bool__", "__float__", "__int__", "item", "tolist"):
            monkeypatch.setattr(torch.Tensor, name, self.counted(getattr(torch.Tensor, name)))

    def counted(self, look):
        def call(tensor, *args):
            self.count += 1
            return look(tensor, *args)

        return call


@pytest.fixture(params=["numpy", pytest.param("deferred", marks=pytest.mark.backend("torch"))])
def place(request, monkeypatch):
    if request.param == "numpy":
        return NUMPY, None
    import torch

    return _array.named_namespace("torch"), Reads(monkeypatch, torch)


@pytest.mark.parametrize("optimizer", [lambda: optim.SGD(0.1, momentum=0.5), lambda: optim.Adam(0.1)])
@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("fault", ["loss", "nan", "inf"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_the_last_finite_parameters_are_restored(place, path, at, fault, max_norm, optimizer):
    xp, _ = place
    faults = [None] * 5
    expected = Line(xp)
    ours = optimizer()
    fit(expected, batches(faults), ours, updates=at, max_norm=max_norm)
    faults[at] = fault
    model, again = Line(xp), optimizer()
    with pytest.raises(xplstm.NonFiniteError, match=f"update {at} .*batch {at} of epoch 0"):
        fit(model, batches(faults), again, updates=5, max_norm=max_norm, checkpoint=path)
    for name, a in host(expected.params).items():
        np.testing.assert_array_equal(host(model.params)[name], a)
    assert again.step == ours.step
    for name, a in ours.state_dict().items():
        np.testing.assert_array_equal(_array.to_numpy(np.asarray(again.state_dict()[name])), np.asarray(a))
    assert not path.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["inputs.x", "targets"])
def test_a_batch_that_is_not_finite_is_named_as_the_cause(name, value):
    x, y = np.ones((4, 2, 1), "float32"), np.ones((4, 2, 1), "float32")
    (x if name == "inputs.x" else y)[1, 1, 0] = value
    message = f"the loss of update 0 is .*; {name} of the batch have values that are not finite: fill or drop"
    with pytest.raises(xplstm.NonFiniteError, match=message):
        fit(Forecaster(1, 3, rng=0), [(Ragged(x, [4, 3]), y)], updates=1)


def test_averages_that_overflow_are_not_kept(place):
    model = Line(place[0])
    with pytest.raises(xplstm.NonFiniteError, match="update 1"):
        fit(model, batches([None, "huge", None]), optim.Adam(0.1), updates=3)
    assert all(np.isfinite(a).all() for a in host(model.params).values())


def test_the_checkpoint_before_stays(place, path):
    model = Line(place[0])
    faults = batches([None, None, None, "nan", None])
    with pytest.raises(xplstm.NonFiniteError, match="update 3"):
        fit(model, faults, updates=5, checkpoint=path, checkpoint_every=2)
    assert training.load_checkpoint(path).update == 2


def test_the_best_parameters_are_restored_where_there_are_some(place):
    model, values = Line(place[0]), iter([5.0, 1.0, 2.0, 3.0])
    with pytest.raises(FloatingPointError, match="best validation"):
        fit(
            model,
            batches([None, None, None, "nan"]),
            updates=4,
            validate=lambda: next(values),
            validate_every=1,
            patience=9,
        )
    np.testing.assert_allclose(host(model.params)["b"], 0.9)


def test_no_update_waits_for_a_device(monkeypatch, torch):
    model, reads = Line(_array.named_namespace("torch")), Reads(monkeypatch, torch)
    seen = []
    model.loss_vjp = lambda *args, work=model.loss_vjp: (seen.append(reads.count), work(*args))[1]
    fit(model, batches([None]), optim.Adam(0.1), updates=30, max_norm=1.0)
    assert set(seen) == {0}
    assert reads.count > 0


def test_ctrl_c_while_the_loss_is_nan_stays_ctrl_c(place, path):
    model = Line(place[0])
    work, calls = model.loss_vjp, []

    def interrupted(fault, *args):
        calls.append(fault)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return work(fault, *args)

    model.loss_vjp = interrupted
    faults = [None, None, "nan" if place[1] else None, None]
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, batches(faults), updates=4, checkpoint=path)
    assert path.exists() == (place[1] is None)
    assert bool(getattr(caught.value, "__notes__", [])) == (place[1] is not None)
    assert all(np.isfinite(a).all() for a in host(model.params).values())


def test_clipping_by_infinity_trains_as_without():
    ours, plain = Line(), Line()
    fit(ours, batches([None]), updates=5, max_norm=math.inf)
    fit(plain, batches([None]), updates=5)
    np.testing.assert_array_equal(ours.params["w"], plain.params["w"])


# Half precision.


class Small(Line):
    """Model with one gradient below the range of float16."""

    def loss_vjp(self, fault, *_):
        w = self.params["w"]

        def pullback(factor=1.0):
            if fault == "overflow" and factor > 2.0**14:
                return {"w": w * math.inf, "b": w}
            return {name: (1e-8 * factor * np.ones(2)).astype(w.dtype) for name in ("w", "b")}

        return np.asarray(1.0, w.dtype), None, pullback


def test_small_gradients_of_float16_are_not_lost():
    narrow, wide = Small(dtype="float16"), Small(dtype="float32")
    fit(narrow, batches([None]), optim.SGD(1e5), updates=8)
    fit(wide, batches([None]), optim.SGD(1e5), updates=8)
    np.testing.assert_allclose(narrow.params["w"], wide.params["w"], rtol=1e-3)
    unscaled = Small(dtype="float16")
    fit(unscaled, batches([None]), optim.SGD(1e5), updates=8, loss_scale=None)
    assert abs(float(unscaled.params["w"][0]) - float(wide.params["w"][0])) > 1e-3


def test_an_update_that_overflows_is_skipped_and_the_scale_is_resumed(path):
    model, adam = Small(dtype="float16"), optim.Adam(0.1)
    history = fit(model, batches(["overflow"]), adam, updates=5, checkpoint=path)
    assert (adam.step, len(history.losses)) == (3, 5)
    assert training.load_checkpoint(path).settings["scale"] == [2.0**14, 3]
    again = Small(dtype="float16")
    fit(again, batches(["overflow"]), optim.Adam(0.1), updates=7, checkpoint=path, resume=True)
    assert training.load_checkpoint(path).settings["scale"] == [2.0**14, 5]


def test_gradients_that_no_scale_mends_stop_the_run():
    model = Small(dtype="float16")
    model.loss_vjp = lambda *_: (np.asarray(1.0), None, lambda _: {n: np.full(2, np.nan) for n in "wb"})
    with pytest.raises(xplstm.NonFiniteError, match="even with loss scale 1"):
        fit(model, batches([None]), updates=50)


def test_a_pullback_that_takes_no_factor_is_named():
    model = Line(dtype="float16")
    model.loss_vjp = lambda *_: (np.asarray(1.0), None, lambda: {n: np.ones(2, "float16") for n in "wb"})
    with pytest.raises(xplstm.ArgumentError, match=r"pullback\(factor=1.0\)"):
        fit(model, batches([None]), updates=1)
    fit(model, batches([None]), updates=1, loss_scale=None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_in_half_precision_learns_as_in_float32(dtype):
    pytest.importorskip("ml_dtypes")

    def losses(dtype):
        model = CharLM("abcd", 8, 1, dtype=dtype, rng=0)
        data = training.Streams(model.encode("abcdabcaabcd" * 4), 2, 6)
        return fit(model, data, optim.Adam(1e-3), updates=60).losses

    np.testing.assert_allclose(losses(dtype)[-4:], losses("float32")[-4:], rtol=0.02)


# Accumulation, averages, frozen and tied parameters.


def test_accumulated_batches_are_one_large_batch():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(6, 8, 2))

    def trained(data, **options):
        model = Forecaster(2, 3, 1, dtype="float64", rng=1)
        history = fit(model, data, optim.Adam(0.1), **options)
        return model.params, history.losses

    halves = [(series[:-1, rows], series[1:, rows]) for rows in (slice(0, 4), slice(4, 8))]
    one, one_losses = trained([(series[:-1], series[1:])], updates=3)
    two, two_losses = trained(halves, updates=3, accumulate=2)
    np.testing.assert_allclose(two_losses, one_losses, rtol=1e-12)
    for name, a in one.items():
        np.testing.assert_allclose(two[name], a, rtol=0, atol=1e-12)


class Overwriting(Line):
    """Write the gradients of every batch into the same array."""

    def __init__(self):
        super().__init__()
        self.gradient = np.zeros(2)

    def loss_vjp(self, slope, *_):
        self.gradient[:] = slope
        return 0.0, None, lambda: dict.fromkeys(self.params, self.gradient)


def test_accumulation_keeps_gradients_that_the_next_batch_overwrites():
    model = Overwriting()
    before = dict(model.params)
    fit(model, [(1.0, None), (4.0, None)], optim.SGD(0.1), updates=1, accumulate=2)
    for name, a in before.items():
        np.testing.assert_allclose(model.params[name], a - 0.1 * 2.5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_no_array_is_refused_by_name(accumulate):
    model = Line()
    model.loss_vjp = lambda *_: (0.0, None, lambda: {"w": None, "b": np.ones(2)})
    with pytest.raises(xplstm.DTypeError, match=r"grads\['w'\] must be an array .* got NoneType"):
        fit(model, batches([None, None]), updates=1, accumulate=accumulate)


def test_accumulation_takes_the_next_batches_and_ends_with_the_last_epoch():
    model, seen = Line(), []
    model.loss_vjp = lambda fault, *args, work=model.loss_vjp: (seen.append(fault), work(fault, *args))[1]
    history = fit(model, batches("abc"), epochs=3, accumulate=2)
    assert "".join(seen) == "abcabcabc"
    assert len(history.losses) == 5


def test_the_average_is_validated_returned_and_resumed(path):
    def run(updates, resume=False):
        model, seen = Line(), []
        options = {"average": 0.5, "validate_every": 1, "checkpoint": path, "resume": resume}
        validate = lambda: seen.append(model.params["b"][0]) or 1.0  # noqa: E731
        fit(model, batches([None]), updates=updates, validate=validate, **options)
        return model, seen

    model, seen = run(4)
    b, average, expected = 1.0, 1.0, [1.0]
    for _ in range(4):
        b -= 0.1
        average = 0.5 * average + 0.5 * b
        expected.append(average)
    np.testing.assert_allclose(seen, expected)
    assert model.params["b"][0] == pytest.approx(average)
    loaded = training.load_checkpoint(path)
    assert loaded.final == "best"
    assert loaded.best["b"][0] == pytest.approx(average)
    assert loaded.params["b"][0] == pytest.approx(b)
    path.unlink()
    run(2)
    resumed, _ = run(4, resume=True)
    np.testing.assert_array_equal(resumed.params["b"], model.params["b"])


@pytest.mark.parametrize("frozen", ["embedding", ["embedding.*"], "embedding.weight"])
def test_a_part_can_be_frozen(frozen):
    model = CharLM("abcd", 4, 1, rng=0)
    before = model.params
    fit(model, training.Streams(model.encode("abcdabcd"), 1, 3), updates=2, frozen=frozen)
    assert model.params["embedding.weight"] is before["embedding.weight"]
    assert not np.array_equal(model.params["linear.weight"], before["linear.weight"])


@pytest.mark.parametrize("average", [0.0, 0.3, 0.7, 0.99])
def test_an_average_does_not_change_frozen_parameters(average):
    model = CharLM("abcd", 4, 1, rng=0)
    before = model.params["embedding.weight"]
    streams = training.Streams(model.encode("abcdabcd"), 1, 3)
    fit(model, streams, optim.Adam(0.1), updates=20, frozen="embedding", average=average)
    np.testing.assert_array_equal(model.params["embedding.weight"], before)


def test_an_average_with_decay_0_is_the_last_parameters():
    models = CharLM("abcd", 4, 1, rng=0), CharLM("abcd", 4, 1, rng=0)
    streams = training.Streams(models[0].encode("abcdabcd"), 1, 3)
    for model, average in zip(models, (None, 0.0), strict=True):
        fit(model, streams, optim.Adam(0.1), updates=5, average=average)
    for name, a in models[0].params.items():
        np.testing.assert_array_equal(models[1].params[name], a)


class Tied(Line):
    """Model with two names for one array."""

    def __init__(self):
        super().__init__()
        self.params["b"] = self.params["w"]


def test_tied_parameters_stay_one_array_through_a_checkpoint(path):
    model = Tied()
    fit(model, batches([None]), optim.Adam(0.1), updates=4)
    again = Tied()
    fit(again, batches([None]), optim.Adam(0.1), updates=2, checkpoint=path, average=0.9)
    again = Tied()
    fit(again, batches([None]), optim.Adam(0.1), updates=4, checkpoint=path, average=0.9, resume=True)
    assert again.params["b"] is again.params["w"]
    loaded = training.load_checkpoint(path).params
    assert loaded["b"] is loaded["w"]
    np.testing.assert_array_equal(loaded["w"], model.params["w"])
    with pytest.raises(xplstm.FormatError, match="shares arrays"):
        fit(Line(), batches([None]), optim.Adam(0.1), updates=4, checkpoint=path, average=0.9, resume=True)
    with pytest.raises(xplstm.ArgumentError, match="share one array"):
        fit(Tied(), batches([None]), updates=1, frozen="b")


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_the_gradient_norm_counts_the_sum_of_tied_parameters_once(names):
    class Sums:
        def __init__(self):
            self.params = dict.fromkeys(names, np.zeros(2)) | {"other": np.zeros(1)}

        def loss_vjp(self, *_):
            grads = {name: np.asarray([4.0, -k]) for k, name in enumerate(names)}
            return np.float64(0), None, lambda: {**grads, "other": np.ones(1)}

    model, norms = Sums(), []
    fit(
        model,
        batches([None]),
        optim.SGD(1.0),
        updates=1,
        max_norm=2.0,
        callbacks=lambda e: norms.append(e.norm),
    )
    total = np.asarray([4.0 * len(names), -sum(range(len(names))), 1.0])
    norm = np.linalg.norm(total)
    assert norms == pytest.approx([norm])
    moved = np.concatenate([model.params["a"], model.params["other"]])
    np.testing.assert_allclose(moved, -total * 2 / norm, rtol=1e-12)
    assert model.params["a"] is model.params["b"]


# Stopping and resuming.


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_writes_the_checkpoint(tmp_path, name):
    # Shells start programs in the background with SIGINT ignored.
    program = """
import signal, sys, numpy as np
from xplstm import optim, training
signal.signal(signal.SIGINT, signal.default_int_handler)
class Line:
    params = {"w": np.ones(1)}
    def loss_vjp(self, *_):
        print("on", flush=True)
        return np.asarray(1.0), None, lambda: {"w": np.ones(1)}
training.fit(Line(), [(0, 0)], optim.SGD(0.1), updates=10**9, checkpoint=sys.argv[1], progress=False)
"""
    path = tmp_path / "run.safetensors"
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines == ["on\n"] * 3
        process.send_signal(getattr(signal, name))
        _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in error
    assert training.load_checkpoint(path).update > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")
@pytest.mark.parametrize(("code", "status"), [("time.sleep(60)", 15), ("sys.exit(3)", 3 << 8)])
def test_a_forked_process_ends_as_without_a_run(path, code, status):
    program = f"""
import os, sys, time, numpy as np
from xplstm import optim, training
class Line:
    params = {{"w": np.ones(1)}}
    def loss_vjp(self, *_):
        return np.asarray(1.0), None, lambda: {{"w": np.ones(1)}}
def fork(event):
    if event.update == 2:
        ready, begun = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(begun, b"1")  # Python forgets signals that come before a fork has ended
            {code}
        os.read(ready, 1)
        os.kill(pid, 15) if "sleep" in {code!r} else None
        print(os.waitpid(pid, 0)[1], os.path.exists(sys.argv[1]), flush=True)
options = {{"checkpoint": sys.argv[1], "progress": False, "callbacks": fork}}
training.fit(Line(), [(0, 0)], optim.SGD(0.1), updates=3, **options)
"""
    command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{status} False\n", done.stderr
    assert training.load_checkpoint(path).update == 3


def test_the_checkpoint_stays_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    options = {"checkpoint": "run.safetensors", "callbacks": lambda _: os.chdir(tmp_path / "inner")}
    fit(Line(), batches([None]), updates=2, **options)
    assert training.load_checkpoint(tmp_path / "run.safetensors").update == 2


def test_handlers_of_signals_are_restored_and_those_of_the_program_stay():
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    model = Line()
    work = model.loss_vjp

    def looking(*args):
        seen.append(signal.getsignal(signal.SIGTERM))
        return work(*args)

    model.loss_vjp = looking
    fit(model, batches([None]), updates=1)
    assert seen[0] not in (before, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) is before
    own = lambda *_: None  # noqa: E731
    signal.signal(signal.SIGTERM, own)
    try:
        fit(model, batches([None]), updates=1)
        assert seen[1] is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_resume_auto_starts_or_continues(path):
    for updates in (2, 5):
        model = Line()
        history = fit(model, batches([None]), updates=updates, checkpoint=path, resume="auto")
    assert len(history.losses) == 5
    np.testing.assert_allclose(model.params["b"], 0.5)


def test_a_checkpoint_is_written_by_time(path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    written = []
    monkeypatch.setattr(_fit, "save_checkpoint", lambda _, point: written.append(point.update))

    def later(event):
        now[0] += 1.0

    fit(Line(), batches([None]), updates=7, checkpoint=path, checkpoint_seconds=2.5, callbacks=later)
    assert written == [3, 6, 7]


def test_a_failing_disk_does_not_hide_the_error(path, monkeypatch):
    def failing(*_):
        raise OSError(28, "no space left")

    monkeypatch.setattr(_fit, "save_checkpoint", failing)
    model = Line()
    with pytest.raises(ZeroDivisionError) as caught:
        fit(model, batches([None]), updates=3, checkpoint=path, callbacks=lambda _: 1 / 0)
    assert "no space left" in caught.value.__notes__[0]


CHANGES = [
    ({"carry": True}, "carry=True must be False as in the run to resume"),
    ({"max_norm": 2.0}, "max_norm=2.0 must be 1.0 as"),
    ({"max_norm": None}, "max_norm=None must be 1.0 as"),
    ({"accumulate": 2}, "accumulate=2 must be 1 as"),
    ({"frozen": "b"}, r"frozen=\['b'\] must be \[\] as"),
    ({"average": 0.5}, "average=0.5 must be None as"),
    ({"patience": None}, "patience=None does not fit .* patience=3.*pass any number.*load_model"),
    ({"validate_every": 7}, "validate_every=7 must be 1 as"),
    ({"validate": None, "patience": None}, "validate=False must be True as"),
    ({"optimizer": optim.SGD(0.1, momentum=0.5)}, "'momentum': 0.5.* must be .*'momentum': 0.0"),
    ({"optimizer": optim.Adam(0.1)}, "'class': 'Adam'.* must be .*'class': 'SGD'"),
    ({"data": batches([None] * 2)}, "data has 2 batches in epoch 0, expected 3"),
    ({"data": batches([None] * 6)}, "data has 6 batches in epoch 0, expected 3"),
    ({"rng": 3}, "rng=Generator"),
    ({"updates": 1}, "updates=1 must be at least 2, the updates of the run to resume"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_resumed_run_refuses_what_does_not_fit_by_name(path, change, message):
    def run(**options):
        settings = {"data": batches([None] * 3), "optimizer": optim.SGD(0.1), "max_norm": 1.0, "rng": None}
        settings |= {"validate": lambda: 1.0, "validate_every": 1, "patience": 3, **options}
        settings = {"optimizer": settings.pop("optimizer"), "data": settings.pop("data"), **settings}
        fit(Line(), settings.pop("data"), settings.pop("optimizer"), checkpoint=path, **settings)

    run(updates=2)
    before = path.read_bytes()
    with pytest.raises(xplstm.ArgumentError, match=message):
        run(**{"updates": 4, "resume": True, **change})
    assert path.read_bytes() == before
    run(updates=3, resume=True, optimizer=optim.SGD(0.5))


def test_a_file_without_averages_is_refused(path):
    fit(Line(), batches([None]), optim.Adam(0.1), updates=2, checkpoint=path)
    point = training.load_checkpoint(path)
    optimizer = {name: a for name, a in point.optimizer.items() if not name.endswith(".w")}
    training.save_checkpoint(path, point._replace(optimizer=optimizer))
    with pytest.raises(xplstm.FormatError, match=r"no averages of \['w'\]"):
        fit(Line(), batches([None]), optim.Adam(0.1), updates=4, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: CharLM("dcba", 4, rng=0),
            r"options.vocab=\['d', 'c', 'b', 'a'\], expected \['a', 'b', 'c', 'd'\]",
        ),
        (lambda: CharLM("abcd", 4, rng=0, dropout=0.5), "dropout=0.5, expected None"),
        (lambda: CharLM("abcd", 5, rng=0), "the checkpoint is from another model"),
    ],
)
def test_a_model_with_other_options_is_refused(path, model, message):
    data = training.Streams(CharLM("abcd", 4).encode("abcdabcd"), 1, 3)
    fit(CharLM("abcd", 4, rng=0), data, updates=1, checkpoint=path, rng=0)
    with pytest.raises((xplstm.ArgumentError, xplstm.FormatError), match=message):
        fit(model(), data, updates=2, checkpoint=path, rng=0, resume=True)


def test_another_loss_scaling_is_refused(path):
    fit(Line(dtype="float16"), batches([None]), updates=1, checkpoint=path)
    with pytest.raises(xplstm.ArgumentError, match="give no loss scale, expected a loss scale as in the run"):
        fit(Line(dtype="float16"), batches([None]), updates=2, checkpoint=path, resume=True, loss_scale=None)


def test_a_generator_of_another_kind_is_named(path):
    fit(Line(), batches([None]), updates=1, checkpoint=path, rng=0)
    other = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(xplstm.ArgumentError, match="used 'PCG64'"):
        fit(Line(), batches([None]), updates=2, checkpoint=path, rng=other, resume=True)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937])
def test_another_seed_of_a_resumed_run_is_warned_of(path, kind):
    def drop(rng, updates, resume=True):
        options = {"updates": updates, "checkpoint": path, "rng": rng, "resume": resume}
        model, losses = Line(), []
        model.loss_vjp = lambda *args, work=model.loss_vjp: (losses.append(args[3].random()), work(*args))[1]
        fit(model, batches([None]), **options)
        return losses

    def generator(seed):
        return np.random.Generator(kind(seed))

    whole = drop(generator(3), 6, resume=False)
    path.unlink()
    assert drop(generator(3), 2, resume=False) == whole[:2]
    begun = generator(3)
    assert drop(begun, 3) == whole[2:3]
    assert drop(begun, 4) == whole[3:4]  # as after an interruption, in the same process
    with pytest.warns(UserWarning, match="rng= is another seed or generator.*continues with the recorded"):
        assert drop(generator(4), 5) == whole[4:5]
    with pytest.warns(UserWarning, match="rng= is another seed"):
        assert drop(begun.spawn(1)[0], 6) == whole[5:]


def test_a_run_that_lost_patience_may_be_given_more(path):
    options = {"validate": lambda: 1.0, "validate_every": 1, "checkpoint": path, "updates": 20}
    assert len(fit(Line(), batches([None]), patience=2, **options).losses) == 2
    assert len(fit(Line(), batches([None]), patience=5, resume=True, **options).losses) == 5


def series(batch_size, count):
    return [(np.ones((4, batch_size, 2), "float32"),) * 2 for _ in range(count)]


@pytest.mark.parametrize("carry", [False, True])
def test_another_batch_size_is_refused_by_name(path, carry):
    def run(data, updates, **options):
        fit(Forecaster(2, 3, 1), data, updates=updates, carry=carry, checkpoint=path, **options)

    run(series(4, 3), 2)
    with pytest.raises(xplstm.ArgumentError, match=r"has the shapes \[\[4, 3, 2\].*expected \[\[4, 4, 2\]"):
        run(series(3, 3), 4, resume=True)


def test_a_carried_state_of_another_batch_size_is_named():
    with pytest.raises(xplstm.ShapeError, match="batch 1 of epoch 0 does not fit the state"):
        fit(Forecaster(2, 3, 1), [*series(4, 1), *series(3, 1)], updates=2, carry=True)
    trainer = StatefulTrainer(xplstm.LSTM(2, 3), optim.SGD(0.1))
    trainer.forward(np.ones((4, 5, 2), "float32"))
    with pytest.raises(xplstm.ShapeError, match="reset_state"):
        trainer.forward(np.ones((4, 3, 2), "float32"))


DAMAGED = [
    (lambda rest: rest.update(update=10**9), "at update 1000000000 and has 2 losses"),
    (lambda rest: rest.update(position=999), "batch 999 of epoch 0, but that epoch has 3 batches"),
    (lambda rest: rest["rng"].pop("state"), "the state of PCG64 cannot be restored"),
    (lambda rest: rest["settings"].update(data={"epoch": "x"}), "the settings data="),
    (lambda rest: rest["settings"].update(data=[1]), "the settings data="),
    (lambda rest: rest["settings"].update(scale=["x", 0]), r"is damaged: .*scale=\['x', 0\]"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_a_checkpoint_that_contradicts_itself_is_refused(path, change, message):
    fit(Line(), batches([None] * 3), updates=2, checkpoint=path, rng=0)
    contents = safetensors.read(str(path))
    tensors = {name: np.array(t.array()) for name, t in contents.tensors.items()}
    rest = json.loads(contents.metadata["xplstm"])
    change(rest)
    path.write_bytes(safetensors.pack(tensors, {"xplstm": json.dumps(rest)}))
    with pytest.raises(xplstm.FormatError, match=message):
        fit(Line(), batches([None] * 3), updates=4, checkpoint=path, resume=True, rng=0)


def test_averages_of_other_shapes_are_refused(path):
    fit(Line(), batches([None]), updates=1, checkpoint=path, average=0.5)
    point = training.load_checkpoint(path)
    training.save_checkpoint(path, point._replace(average={**point.average, "w": np.ones(1)}))
    with pytest.raises(xplstm.FormatError, match=r"average\.w: the model has float64\(2,\)"):
        fit(Line(), batches([None]), updates=2, checkpoint=path, average=0.5, resume=True)


# Data, models and arguments of every kind.


def test_a_generator_is_one_epoch():
    model = Line()
    history = fit(model, (pair for pair in batches([None] * 3)), epochs=1)
    assert len(history.losses) == 3
    history = fit(model, zip([None] * 3, [0] * 3, strict=True), updates=3)
    assert len(history.losses) == 3
    with pytest.raises(xplstm.ArgumentError, match=r"no batches in epoch 1.*list, or a function"):
        fit(model, iter(batches([None] * 3)), updates=4)


def test_an_iterable_is_read_in_order_and_resumed(path):
    class Loader:
        def __iter__(self):
            return iter(batches("abcd"))

    def seen(data, updates, resume=False):
        model, found = Line(), []
        model.loss_vjp = lambda fault, *args, work=model.loss_vjp: (found.append(fault), work(fault, *args))[
            1
        ]
        fit(model, data, updates=updates, checkpoint=path, resume=resume)
        return "".join(found)

    assert seen(Loader(), 6) == "abcdab"
    assert seen(Loader(), 9, resume=True) == "cda"
    path.unlink()
    assert seen(lambda epoch: (pair for pair in batches("abcd"[: epoch + 1])), 4) == "aaba"
    assert seen(lambda epoch: (pair for pair in batches("abcd"[: epoch + 1])), 6, resume=True) == "bc"


@pytest.mark.parametrize("average", [None, 0.5])
@pytest.mark.parametrize("who", ["inputs", "params"])
def test_no_update_keeps_a_graph_of_autograd(torch, who, average):
    def trained(graphed):
        model, seen = Forecaster(1, 3, 2, xp="torch", rng=0), []
        model.params = {name: a.requires_grad_(graphed == "params") for name, a in model.params.items()}
        x = torch.linspace(0, 1, 12).reshape(6, 2, 1)
        data = [(x.clone().requires_grad_(graphed == "inputs"), x)] * 2
        options = {"carry": True, "average": average, "max_norm": 1.0, "callbacks": seen.append}
        fit(model, data, optim.AdamW(0.1), updates=6, **options)
        return model.params, seen

    expected, _ = trained(None)
    params, events = trained(who)
    for name, a in params.items():
        assert a.grad_fn is None
        assert a.requires_grad == (who == "params" and average is None)
        torch.testing.assert_close(a.detach(), expected[name], rtol=1e-3, atol=1e-5)
    assert not any(torch.is_tensor(part) and part.requires_grad for event in events for part in event)


def test_a_loader_of_torch_feeds_a_model(torch):
    from torch.utils.data import DataLoader, TensorDataset

    x = torch.randn(8, 4, 2)
    model = Forecaster(2, 3, 1, xp="torch")
    history = fit(model, DataLoader(TensorDataset(x, x), batch_size=4), epochs=2)
    assert len(history.losses) == 4


X = np.ones((2, 3))
REFUSED = [
    (
        lambda: fit(Line(), (X, X), updates=1),
        xplstm.DTypeError,
        r"data=\(inputs, targets\) is one batch.*\[\(inputs, targets\)\]",
    ),
    (lambda: fit(Line(), (Ragged(X, [2, 2, 2]), (X, X)), updates=1), xplstm.DTypeError, "is one batch"),
    (lambda: fit(Line(), [Ragged(X, [2, 2, 2])], updates=1), xplstm.DTypeError, "be a pair.*got Ragged"),
    (lambda: fit(Line(), [WithFuture(X, X)], updates=1), xplstm.DTypeError, "be a pair.*got WithFuture"),
    (lambda: fit(Line(), [(X, X, X)], updates=1), xplstm.DTypeError, "got tuple of 3"),
    (lambda: fit(Line(), X, updates=1), xplstm.DTypeError, "must be a pair"),
    (
        lambda: fit(Line(), {"a": 1}, updates=1),
        xplstm.DTypeError,
        "data must be a sequence or an iterable of pairs",
    ),
    (lambda: fit(Line(), 3, updates=1), xplstm.DTypeError, "data must be a sequence or an iterable of pairs"),
    (lambda: fit(Line(), [], updates=1), xplstm.ArgumentError, "no batches in epoch 0"),
    (lambda: fit(Line(), iter([]), updates=1), xplstm.ArgumentError, "no batches in epoch 0"),
    (lambda: fit(Line, batches([None]), updates=1), xplstm.DTypeError, "model=Line is a class"),
    (lambda: fit(xplstm.LSTM(2, 3), batches([None]), updates=1), xplstm.DTypeError, "model=LSTM must have"),
    (lambda: fit(None, batches([None]), updates=1), xplstm.DTypeError, "model=NoneType must have"),
    (lambda: fit(Line(), batches([None]), optim.SGD, updates=1), xplstm.DTypeError, "SGD is a class"),
    (lambda: fit(Line(), batches([None]), 3, updates=1), xplstm.DTypeError, r"optimizer is a builtins\.int"),
    (lambda: fit(Line(), batches([None])), xplstm.ArgumentError, "updates=None and epochs=None"),
    (lambda: fit(Line(), batches([None]), updates=1, epochs=1), xplstm.ArgumentError, "one of the two"),
    (
        lambda: fit(Line(), batches([None]), updates=1, frozen="x"),
        xplstm.ArgumentError,
        r"frozen='x' matches no .*; a pattern without a dot is compared .*, and the model has \['b', 'w'\]",
    ),
    (
        lambda: fit(Line(), batches([None]), updates=1, frozen="*"),
        xplstm.ArgumentError,
        "no parameter to train",
    ),
    (lambda: fit(Line(), batches([None]), updates=1, accumulate=0), xplstm.ArgumentError, "accumulate=0"),
    (lambda: fit(Line(), batches([None]), updates=1, average=1.0), xplstm.ArgumentError, "average=1.0"),
    (lambda: fit(Line(), batches([None]), updates=1, carry="x"), xplstm.DTypeError, "carry='x'"),
    (lambda: fit(Line(), batches([None]), updates=1, loss_scale=3), xplstm.DTypeError, "loss_scale=3"),
    (lambda: fit(Line(), batches([None]), updates=1, resume="yes"), xplstm.ArgumentError, "resume='yes'"),
    (lambda: fit(Line(), batches([None]), updates=1, callbacks=[3]), xplstm.DTypeError, r"callbacks\[0\]=3"),
    (lambda: fit(Line(), batches([None]), updates=1, progress=3), xplstm.DTypeError, "progress=3"),
    (
        lambda: fit(Line(), batches([None]), optim.SGD(optim.Plateau(1.0)), updates=1),
        xplstm.ArgumentError,
        "Plateau",
    ),
    (lambda: fit(Line(), batches([None]), updates=1, validate=3), xplstm.DTypeError, "validate=3"),
    (
        lambda: fit(Line(), batches([None]), updates=1, checkpoint=b"run"),
        xplstm.DTypeError,
        "checkpoint=b'run'",
    ),
    (
        lambda: fit(Line(), batches([None]), updates=1, checkpoint="x" * 300),
        xplstm.ArgumentError,
        "cannot be",
    ),
    (lambda: fit(Line(), batches([None]), updates=1, checkpoint="a\0b"), xplstm.ArgumentError, "no NUL"),
    (
        lambda: fit(Line(), batches([None]), optim.SGD(0.1, groups=[optim.Group("x")]), updates=1),
        xplstm.ArgumentError,
        "matches no parameter",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_fit_cannot_use_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_optimiser_of_torch_is_named(torch):
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    with pytest.raises(xplstm.DTypeError, match=r"optimizer is a torch\.optim\.sgd\.SGD"):
        fit(Line(), batches([None]), theirs, updates=1)


@pytest.mark.parametrize("value", ["nan", None, True, 1j, np.ones(2), [1.0]])
def test_a_validation_that_is_no_number_is_named(value):
    with pytest.raises(xplstm.DTypeError, match=r"validate\(\) gave"):
        fit(Line(), batches([None]), updates=1, validate=lambda: value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_of_a_validation_that_is_not_finite_are_not_the_best(value, path):
    model, values = Line(), iter([value, value, 3.0, value, 4.0, 5.0])
    options = {"validate": lambda: next(values), "validate_every": 1, "patience": 2}
    with pytest.warns(UserWarning, match=r"no result of validate\(\) was finite, .* last parameters"):
        fit(model, batches([None]), updates=1, checkpoint=path, **options)
    assert model.params["w"][0] < 1
    at = training.load_checkpoint(path)
    assert (at.best, at.final) == (None, "params")
    history = fit(model, batches([None]), updates=9, checkpoint=path, resume=True, **options)
    assert history.best == (2, 3.0)
    assert model.params["w"][0] == pytest.approx(0.81)


def test_a_program_without_stderr_trains(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert len(fit(Line(), batches([None]), updates=2, progress=True).losses) == 2


RETURNED = [
    ((np.asarray(1.0), None), "must return"),
    ((np.asarray(1.0), None, {}), "must return"),
    ((np.ones(2), None, dict), r"loss of shape \(2,\)"),
    ((np.asarray(1.0), "h", dict), "state of str"),
    ((np.asarray(1.0), None, list), "pullback"),
    ((np.asarray(1.0), None, dict), r"no gradients with respect to \['b', 'w'\]"),
]


@pytest.mark.parametrize(("returned", "message"), RETURNED)
def test_what_a_model_returns_is_checked(returned, message):
    model = Line()
    model.loss_vjp = lambda *_: returned
    with pytest.raises(xplstm.XplstmError, match=message):
        fit(model, batches([None]), updates=1, carry=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    tmp_path.chmod(0o500)
    model = Line()
    with pytest.raises(xplstm.ArgumentError, match="cannot be written"):
        fit(model, batches([None]), updates=1, checkpoint=tmp_path / "run")
    tmp_path.chmod(0o700)
    assert model.params["w"][0] == 1


def test_nothing_is_left_of_looking_whether_a_file_can_be_written(tmp_path):
    with pytest.raises(xplstm.DTypeError):
        fit(Line(), 3, updates=1, checkpoint=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_dropout_without_a_generator_is_warned_of():
    data = series(4, 1)
    with pytest.warns(UserWarning, match="Forecaster has dropout, and fit applies no dropout without rng="):
        fit(Forecaster(2, 3, 2, dropout=0.5), data, updates=1)
    fit(Forecaster(2, 3, 2, dropout=0.5), data, updates=1, rng=0)
    model = Forecaster(2, 3)
    model.lstm = xplstm.LSTM(2, 3, variant=xplstm.Variant(recurrent_dropout=0.5))
    with pytest.warns(UserWarning, match="Forecaster has dropout, and fit applies no dropout without rng="):
        fit(model, data, updates=1)


def test_callbacks_see_every_update_and_validation():
    seen = []
    model = Line()
    schedule = optim.warmup_cosine(0.1, 2, 4)
    history = fit(
        model,
        batches([None] * 2),
        optim.SGD(schedule),
        updates=3,
        validate=lambda: 2.0,
        validate_every=2,
        callbacks=[seen.append],
    )
    assert [(e.update, e.epoch, e.validation) for e in seen] == [
        (0, 0, 2.0),
        (1, 0, None),
        (2, 1, None),
        (2, 1, 2.0),
        (3, 1, None),
        (3, 1, 2.0),
    ]
    assert [float(e.loss) for e in seen if e.validation is None] == history.losses
    assert [e.lr for e in seen if e.validation is None] == [schedule(step) for step in range(3)]
    assert float(seen[1].norm) == 2.0


def test_a_prolonged_run_with_an_average_does_not_go_back_to_its_earlier_end(path):
    data, options = batches([*[None] * 4, "nan"]), {"average": 0.5, "checkpoint": path}
    fit(Line(), data, updates=2, **options)
    expected, model = Line(), Line()
    fit(expected, data, updates=4)
    with pytest.raises(xplstm.NonFiniteError, match="has the parameters of 4 updates"):
        fit(model, data, updates=9, resume=True, **options)
    np.testing.assert_array_equal(model.params["w"], expected.params["w"])


EMPTY = np.zeros((5, 0, 1))


@pytest.mark.parametrize(
    "inputs", [EMPTY, np.zeros((0, 3, 1)), Ragged(EMPTY, np.zeros(0, int)), {"x": EMPTY, "n": EMPTY[0]}]
)
@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("parallel", [None, training.Shards(None, 1)])
def test_an_empty_batch_is_refused_by_name(inputs, kind, parallel):
    """Its loss would be 0, and the optimiser's averages would determine the update."""
    full, model = (np.ones((5, 2, 1), "float32"),) * 2, Forecaster(1, 2, rng=0)
    data = kind([full, (inputs, EMPTY), full])
    with pytest.raises(xplstm.ArgumentError, match=r"inputs of batch 1 of epoch 0 have the shapes .* leave"):
        fit(model, data, epochs=1, parallel=parallel)


@pytest.mark.parametrize("where", ["all", "group", "both"])
def test_a_plateau_follows_the_validations_and_is_replayed(path, where):
    def run(updates, resume=False):
        plateau, values = optim.Plateau(1.0, factor=0.5, patience=0), iter([1.0] * 9)
        groups = [] if where == "all" else [optim.Group("b", lr=plateau)]
        sgd = optim.SGD(1.0 if where == "group" else plateau, groups=groups)
        with pytest.raises(xplstm.ArgumentError, match="Plateau, which needs validate="):
            fit(Line(), batches([None]), sgd, updates=updates)
        options = {"validate": lambda: next(values), "validate_every": 1, "checkpoint": path}
        fit(Line(), batches([None]), sgd, updates=updates, resume=resume, **options)
        return plateau(0)

    assert run(2) == 0.25
    assert run(3, resume=True) == 0.125


def test_a_history_is_what_it_was_before():
    assert fit(Line(), batches([None]), epochs=0, validate=lambda: 2.5) == History([], [(0, 2.5)])


def test_streams_count_from_the_end_and_take_any_integer():
    streams = training.Streams(np.arange(601), np.int8(2), np.int8(100))
    assert [a.shape for a, _ in streams] == [(100, 2)] * 3
    np.testing.assert_array_equal(streams[-1][0], streams[2][0])
    assert [len(a) for a, _ in streams[1:]] == [100, 100]
    with pytest.raises(xplstm.DTypeError, match="ids must be an array"):
        training.Streams([1, 2, 3], 1, 1)
    with pytest.raises(xplstm.ShapeError, match=r"ids has shape \(2, 2\)"):
        training.Streams(np.ones((2, 2)), 1, 1)


class Constant:
    """Model that does not read its batch."""

    def __init__(self):
        self.params = {"w": np.ones(1)}

    def loss_vjp(self, *_):
        return np.asarray(1.0), None, lambda _=1.0: {"w": np.ones(1)}


class Recorder(Constant):
    """Model that keeps a copy of each batch."""

    def __init__(self):
        super().__init__()
        self.read = []

    def loss_vjp(self, inputs, targets, *_):
        self.read.append((inputs.x.copy(), targets.copy()))
        return super().loss_vjp()


class Reused(Sequence):
    """Yield batches in `count` buffers in turn."""

    def __init__(self, count):
        self.buffers = np.zeros((count, 1, 2))

    def __len__(self):
        return 6

    def __getitem__(self, k):
        if k >= len(self):
            raise IndexError
        buffer = self.buffers[k % len(self.buffers)]
        buffer[:] = k
        return Ragged(buffer[:, :1], [1]), buffer[:, 1:]


@pytest.mark.parametrize("read_ahead", [0, 3])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "read", [lambda data: lambda _: iter(data), lambda data: data], ids=["iterated", "indexed"]
)
def test_batches_that_are_read_ahead_may_share_buffers(read, count, read_ahead):
    model = Recorder()
    fit(model, read(Reused(count)), optim.SGD(0.0), updates=6, read_ahead=read_ahead)
    for k, pair in enumerate(model.read):
        np.testing.assert_array_equal(pair, np.full((2, 1, 1), k))


def test_the_same_batch_again_and_views_of_one_array_are_no_fault():
    x = np.arange(12.0).reshape(3, 4)
    windows = [(x[:, k : k + 3], x[:, k + 1 : k + 4]) for k in (0, 1)]
    for data in ([windows[0]] * 3, windows):
        history = fit(Constant(), lambda _, data=data: iter(data), optim.SGD(0.0), updates=2)
        assert len(history.losses) == 2
