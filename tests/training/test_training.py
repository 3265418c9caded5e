"""Check `fit` and its checkpoints: a resumed run has the same bits, and files are always complete."""

from __future__ import annotations

import json
import math
import os
import re
import sys

import numpy as np
import pytest

import xplstm
from xplstm import _array, optim, training
from xplstm.models import CharLM
from xplstm.training import Checkpoint, History, Streams

TEXT = "the cat sat on the mat, and the rat sat on the hat; " * 6
UPDATES = 11


def char_model(**options):
    return CharLM(sorted(set(TEXT)), 6, 2, embedding_dim=5, dropout=0.3, rng=1, **options)


class Setup:
    """Settings of a run with dropout, carried state, schedule, clipping, validation and early stopping."""

    def __init__(self, path, **options):
        self.model = char_model()
        self.batches = Streams(self.model.encode(TEXT), 3, 17)
        self.optimizer = optim.AdamW(optim.warmup_cosine(0.05, 2, UPDATES))
        self.rng = np.random.default_rng(8)
        self.path = path
        self.options = options

    def validate(self):
        inputs, targets = self.batches[0]
        return float(self.model.loss(inputs, targets)[0])

    def fit(self, **options):
        settings = {
            "updates": UPDATES,
            "carry": True,
            "max_norm": 0.5,
            "rng": self.rng,
            "validate": self.validate,
            "validate_every": 3,
            "patience": 50,
            "checkpoint": self.path,
            "checkpoint_every": 4,
            "extra": {"note": "é"},
            "progress": False,
        }
        return training.fit(self.model, self.batches, self.optimizer, **(settings | self.options | options))


def same(a: Checkpoint, b: Checkpoint) -> bool:
    """Check that all bits are equal."""

    def flat(c):
        best = {f"best.{k}": v for k, v in (c.best or {}).items()}
        state = {f"state.{i}": v for i, v in enumerate(c.state or ())}
        return {f"params.{k}": v for k, v in c.params.items()} | best | state | c.optimizer

    ours, theirs = flat(a), flat(b)
    rest = [(c.update, c.epoch, c.position, c.history, c.extra, json.dumps(c.rng)) for c in (a, b)]
    return (
        ours.keys() == theirs.keys()
        and all(np.array_equal(ours[k], theirs[k]) and np.shape(ours[k]) == np.shape(theirs[k]) for k in ours)
        and rest[0] == rest[1]
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the uninterrupted run, and its last checkpoint."""
    setup = Setup(tmp_path_factory.mktemp("whole") / "run.safetensors")
    history = setup.fit()
    return setup, history, training.load_checkpoint(setup.path)


class Raising:
    """Replacement of a method that raises at its n-th call, before or after its work."""

    def __init__(self, method, n, error, after=False):
        self.method, self.left, self.error, self.after = method, n, error, after

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise self.error
        result = self.method(*args, **kwargs)
        if self.left == 0:
            raise self.error
        return result


PLACES = {
    "loss_vjp": lambda setup: (setup.model, "loss_vjp"),
    "optimizer": lambda setup: (setup.optimizer, "update"),
    # The last thing that an update does, when its loss is noted already; asked once before the first.
    "state_dict": lambda setup: (setup.optimizer, "state_dict"),
    "validate": lambda setup: (setup, "validate"),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("place", "n"),
    [
        *((place, n) for place in ("loss_vjp", "optimizer") for n in (1, 3, 6, 7, 11)),
        *((place, n) for place in ("state_dict", "validate") for n in (2, 4)),
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(path, whole, place, n, after):
    first = Setup(path)
    target, name = PLACES[place](first)
    setattr(target, name, Raising(getattr(target, name), n, KeyboardInterrupt, after))
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    left = training.load_checkpoint(path)
    assert left.update == {"validate": 3 * (n - 1), "state_dict": n - 2}.get(place, n - 1)
    assert all(np.array_equal(first.model.params[k], left.params[k]) for k in left.params)

    second = Setup(path)
    second.model.params = {k: np.zeros_like(v) for k, v in second.model.params.items()}
    history = second.fit(resume=True)
    expected_setup, expected_history, expected = whole
    assert history == expected_history
    assert same(training.load_checkpoint(path), expected)
    for name, a in expected_setup.model.params.items():
        assert np.array_equal(second.model.params[name], a)


def test_the_whole_run_is_what_it_should_be(whole):
    """The run that the tests above compare with uses all its settings."""
    setup, history, last = whole
    assert len(setup.batches) < UPDATES < 2 * len(setup.batches) * 3
    assert last.epoch >= 1
    assert last.position != 0
    assert last.state is not None
    assert len(history.losses) == last.update == UPDATES
    assert [update for update, _ in history.validations] == [0, 3, 6, 9, 11]
    assert last.extra == {"note": "é"}
    assert last.optimizer["step"] == UPDATES
    fresh = Setup(setup.path).rng
    assert last.rng["state"] != fresh.bit_generator.state["state"]


def test_interrupted_twice_and_resumed_in_the_same_process(path, whole):
    setup = Setup(path)
    work = setup.model.loss_vjp
    for n in (2, 5):
        setup.model.loss_vjp = Raising(work, n, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            setup.fit(resume=path.exists())
    setup.model.loss_vjp = work
    assert setup.fit(resume=True) == whole[1]
    assert same(training.load_checkpoint(path), whole[2])


def test_a_crash_writes_the_last_whole_update(path, whole):
    crashing = Setup(path)
    crashing.model.loss_vjp = Raising(crashing.model.loss_vjp, 7, MemoryError)
    with pytest.raises(MemoryError):
        crashing.fit()
    assert training.load_checkpoint(path).update == 6
    assert Setup(path).fit(resume=True) == whole[1]
    assert same(training.load_checkpoint(path), whole[2])


def test_a_finished_run_that_is_resumed_stays_as_it_is(path, whole):
    expected_setup, history, last = whole
    training.save_checkpoint(path, last)
    again = Setup(path)
    assert again.fit(resume=True) == history
    assert same(training.load_checkpoint(path), last)
    assert np.array_equal(again.model.params["linear.weight"], expected_setup.model.params["linear.weight"])


def test_without_a_checkpoint_ctrl_c_leaves_the_last_whole_update():
    setup = Setup(None, patience=None)
    setup.model.loss_vjp = Raising(setup.model.loss_vjp, 4, KeyboardInterrupt, after=True)
    with pytest.raises(KeyboardInterrupt):
        setup.fit()
    reference = Setup(None, patience=None)
    reference.fit(updates=3)
    for name, a in reference.model.params.items():
        assert np.array_equal(setup.model.params[name], a)
    assert setup.optimizer.step == 3
    assert setup.rng.bit_generator.state == reference.rng.bit_generator.state


@pytest.mark.parametrize("kind", ["PCG64", "Philox", "MT19937", "SFC64"])
def test_every_generator_of_numpy_is_restored(path, kind):
    def run(updates, resume):
        setup = Setup(path)
        setup.rng = np.random.Generator(getattr(np.random, kind)(5))
        setup.fit(updates=updates, resume=resume)
        return training.load_checkpoint(path)

    run(3, False)
    halves = run(5, True)
    path.unlink()
    assert same(run(5, False)._replace(history=halves.history), halves)


class Spy:
    """Model of one weight that records its arguments."""

    def __init__(self):
        self.params = {"w": np.ones(2)}
        self.calls = []

    def loss_vjp(self, inputs, targets, state, rng):
        self.calls.append((inputs, targets, state, rng))
        loss = np.asarray(float(len(self.calls)))
        return loss, (np.asarray([len(self.calls)]),), lambda: {"w": np.asarray([3.0, 4.0])}


BATCHES = [("a", 1), ("b", 2), ("c", 3)]


def states_of(spy):
    return [None if state is None else int(state[0][0]) for _, _, state, _ in spy.calls]


def test_the_state_is_carried_inside_an_epoch_and_not_into_the_next():
    spy = Spy()
    training.fit(spy, BATCHES, optim.SGD(0.0), updates=7, carry=True, progress=False)
    assert states_of(spy) == [None, 1, 2, None, 4, 5, None]
    assert [inputs for inputs, *_ in spy.calls] == list("abcabca")


def test_without_carry_each_batch_begins_anew():
    spy = Spy()
    training.fit(spy, BATCHES, optim.SGD(0.0), updates=4, progress=False)
    assert states_of(spy) == [None] * 4
    assert all(rng is None for *_, rng in spy.calls)


def test_data_can_be_a_function_of_the_epoch(path):
    def epoch(number):
        return [BATCHES[(number + k) % 3] for k in range(2)]

    spy = Spy()
    training.fit(spy, epoch, optim.SGD(0.0), updates=5, progress=False, checkpoint=path)
    assert [inputs for inputs, *_ in spy.calls] == list("abbcc")
    again = Spy()
    training.fit(again, epoch, optim.SGD(0.0), updates=8, progress=False, checkpoint=path, resume=True)
    assert [inputs for inputs, *_ in again.calls] == list("aab")


def test_gradients_are_clipped_and_the_optimizer_takes_the_step():
    spy = Spy()
    training.fit(spy, BATCHES, optim.SGD(1.0), updates=2, max_norm=0.5, progress=False)
    np.testing.assert_allclose(spy.params["w"], [1 - 2 * 0.3, 1 - 2 * 0.4])
    spy = Spy()
    training.fit(spy, BATCHES, optim.SGD(1.0), updates=2, progress=False)
    np.testing.assert_allclose(spy.params["w"], [-5, -7])


def test_one_generator_is_handed_on():
    spy = Spy()
    training.fit(spy, BATCHES, optim.SGD(0.0), updates=3, rng=4, progress=False)
    generators = [rng for *_, rng in spy.calls]
    assert isinstance(generators[0], np.random.Generator)
    assert generators[0] is generators[1] is generators[2]


@pytest.mark.parametrize(
    ("values", "patience", "stops_at", "best"),
    [
        ([5, 4, 3, 4, 5, 6, 1], 2, 8, 4),
        ([5, 5, 5, 5], 3, 6, 0),
        ([math.nan, 4, math.nan, math.nan, 1], 2, 6, 2),
        ([3, math.nan, math.inf, 2, 2, 2], 2, 4, 0),
        ([6, 5, 4, 3, 2, 1], 1, 10, 10),
    ],
)
def test_early_stop_ends_with_the_best_parameters(path, values, patience, stops_at, best):
    spy, script = Spy(), iter(values)
    history = training.fit(
        spy,
        BATCHES,
        optim.SGD(1.0),
        updates=10,
        validate=lambda: next(script),
        validate_every=2,
        patience=patience,
        checkpoint=path,
        progress=False,
    )
    assert history.validations[-1][0] == len(history.losses) == stops_at
    assert history.best[0] == best
    np.testing.assert_allclose(spy.params["w"], [1 - 3 * best, 1 - 4 * best])
    last = training.load_checkpoint(path)
    np.testing.assert_allclose(last.params["w"], [1 - 3 * stops_at, 1 - 4 * stops_at])


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(path):
    spy = Spy()
    training.fit(spy, BATCHES, optim.SGD(1.0), updates=2, checkpoint=path, progress=False)
    before = path.read_bytes()
    work = spy.loss_vjp
    spy.loss_vjp = lambda *args: (np.asarray(math.nan), *work(*args)[1:])
    with pytest.raises(FloatingPointError, match="loss of update 2 is nan"):
        training.fit(spy, BATCHES, optim.SGD(1.0), updates=5, checkpoint=path, resume=True, progress=False)
    assert path.read_bytes() == before


def test_zero_updates_train_nothing():
    spy = Spy()
    history = training.fit(spy, BATCHES, optim.SGD(1.0), updates=0, validate=lambda: 2.5, progress=False)
    assert history == History([], [(0, 2.5)])
    assert not spy.calls


def test_every_backend_trains_alike(xp, path):
    """The same seeds give the same losses; a checkpoint from NumPy continues on every backend."""

    def run(updates, resume, **where):
        model = CharLM(sorted(set(TEXT)), 3, 2, embedding_dim=2, dropout=0.3, dtype="float64", rng=1, **where)
        batches = Streams(model.encode(TEXT[:30]), 2, 3)
        settings = {"carry": True, "max_norm": 0.5, "rng": 4, "progress": False, "checkpoint": path}
        if not resume:
            path.unlink(missing_ok=True)
        history = training.fit(model, batches, optim.Adam(0.05), updates=updates, resume=resume, **settings)
        return history.losses, training.load_checkpoint(path)

    losses, last = run(3, False)
    run(2, False)
    their_losses, theirs = run(3, True, xp=xp.xp)
    np.testing.assert_allclose(their_losses, losses, rtol=1e-12)
    assert theirs.state is not None
    for name, a in theirs.params.items():
        np.testing.assert_allclose(a, last.params[name], atol=1e-12)


@pytest.mark.parametrize(
    ("data", "options", "text"),
    [
        (lambda: BATCHES, {"epochs": 2}, "6/6 "),
        (lambda: BATCHES, {"epochs": 2, "accumulate": 4}, "2/2 "),
        (lambda: BATCHES, {"updates": 3}, "3/3 "),
        (lambda: iter(BATCHES), {"epochs": 1}, "3 updates ["),
        (lambda: lambda epoch: iter(BATCHES[epoch:]), {"epochs": 2}, "epoch 2 of 2: 5 updates ["),
    ],
)
def test_the_bar_shows_what_is_known_of_the_end(capsys, data, options, text):
    training.fit(Spy(), data(), optim.SGD(0.0), **options)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert text in shown
    assert re.search(r"updates/s, loss \d\.\d{4}", shown)


def test_the_bar_shows_loss_and_validation(capsys):
    training.fit(Spy(), BATCHES, optim.SGD(0.0), updates=3, validate=lambda: 0.125)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "loss 2.0000, validation 0.1250" in shown


def test_the_bar_can_say_something_else(capsys):
    training.fit(
        Spy(), BATCHES, optim.SGD(0.0), updates=3, progress=lambda history: f"sum {sum(history.losses)}"
    )
    assert "sum 6.0" in capsys.readouterr().err


def test_the_text_of_the_bar_is_that_of_the_shown_update(capsys, monkeypatch):
    monkeypatch.setattr("xplstm.training._progress.SECONDS_BETWEEN_REPORTS", 0.0)
    options = {"updates": 4, "progress": lambda history: f"seen {len(history.losses)}"}
    training.fit(Spy(), BATCHES, optim.SGD(0.0), **options)
    shown = re.findall(r"(\d+)/4 [^\r]*seen (\d+)", capsys.readouterr().err)
    assert len(shown) >= 4
    assert all(update == seen for update, seen in shown)


def test_the_bar_ends_with_the_last_validation(capsys):
    values = iter([3.0, 2.0, 4.0, 5.0])
    training.fit(
        Spy(),
        BATCHES,
        optim.SGD(0.0),
        updates=9,
        validate=lambda: next(values),
        validate_every=1,
        patience=2,
    )
    last = capsys.readouterr().err.split("\r")[-1]
    assert "3/9" in last
    assert "validation 5.0000" in last


def test_no_bar_says_nothing(capsys):
    training.fit(Spy(), BATCHES, optim.SGD(0.0), updates=3, progress=False)
    assert capsys.readouterr().err == ""


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    spy = Spy()
    with pytest.raises(ImportError, match=r"tqdm.*pip install 'xplstm\[train\]'"):
        training.fit(spy, BATCHES, optim.SGD(0.0), updates=3)
    assert not spy.calls


# Checkpoint files.


@pytest.fixture
def point():
    history = History([1.5, 0.1 + 0.2], [(0, math.inf), (2, 1e-300)])
    params = {"a.weight": np.arange(6.0).reshape(2, 3).T, "b": np.asarray(2.0, dtype=np.float32)}
    state = (np.zeros((0, 2), dtype=np.float16), np.ones((1, 1)))
    optimizer = {"step": 2, "m.b": np.ones(1)}
    rng = np.random.Philox(3).state
    return Checkpoint(2, 1, 0, params, optimizer, state, rng, history, {"b": np.ones(2)}, {"k": [1, None]})


def test_what_is_saved_is_loaded(path, point):
    training.save_checkpoint(path, point)
    loaded = training.load_checkpoint(path)
    assert same(loaded, point._replace(rng=loaded.rng))
    assert loaded.params["b"].dtype == np.float32
    assert loaded.state[0].dtype == np.float16
    assert loaded.history.losses == point.history.losses
    restored = np.random.Philox(9)
    restored.state = loaded.rng
    assert restored.random_raw() == np.random.Philox(3).random_raw()


def test_empty_places_stay_empty(path, point):
    training.save_checkpoint(
        path,
        point._replace(optimizer={"step": 0}, state=None, rng=None, history=History(), best=None, extra={}),
    )
    loaded = training.load_checkpoint(path)
    assert (loaded.optimizer, loaded.state, loaded.rng, loaded.best) == ({"step": 0}, None, None, None)
    assert loaded.history == History()


def test_bfloat16_survives(path, point):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    params = {"w": np.asarray([1.5, -3e38, 1e-40], dtype=ml_dtypes.bfloat16)}
    training.save_checkpoint(path, point._replace(params=params))
    loaded = training.load_checkpoint(path).params["w"]
    assert loaded.dtype == ml_dtypes.bfloat16
    assert np.array_equal(loaded, params["w"])


def test_the_file_is_open_to_other_readers(path, point):
    from safetensors.numpy import load_file

    training.save_checkpoint(path, point)
    tensors = load_file(path)
    assert np.array_equal(tensors["params.a.weight"], point.params["a.weight"])
    assert {"optimizer.m.b", "state.0", "best.b", "history.losses", "history.validations"} <= set(tensors)


class Disk:
    """Count disk operations, and fail at the n-th operation after half of a write."""

    def __init__(self, monkeypatch, fail_at=None):
        self.calls, self.fail_at = [], fail_at
        for name in ("open", "write", "fsync", "close", "replace"):
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, work):
        def call(*args, **kwargs):
            self.calls.append(name)
            if len(self.calls) == self.fail_at:
                if name == "write":
                    work(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(28, f"no space left, at {name}")
            return work(*args, **kwargs)

        return call


def test_content_is_forced_to_the_disk_before_it_takes_the_name(monkeypatch, path, point):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        training.save_checkpoint(path, point)
    assert disk.calls == ["open", "write", "fsync", "close", "replace", "open", "fsync", "close"]


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("there_is_an_old_one", [False, True])
def test_a_failing_disk_leaves_the_old_file_or_the_new_one(
    monkeypatch, tmp_path, path, point, n, there_is_an_old_one
):
    new, old = point, point._replace(update=1)
    if there_is_an_old_one:
        training.save_checkpoint(path, old)
    with monkeypatch.context() as patch:
        disk = Disk(patch, fail_at=n)
        with pytest.raises(OSError, match="no space left"):
            training.save_checkpoint(path, new)
    assert len(disk.calls) >= n
    renamed = n > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        [path.name] if renamed or there_is_an_old_one else []
    )
    if renamed or there_is_an_old_one:
        left = training.load_checkpoint(path)
        assert same(left, (new if renamed else old)._replace(rng=left.rng))


def test_the_disk_may_take_the_content_in_parts(monkeypatch, path, point):
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda file, content: write(file, bytes(content[:7])))
        training.save_checkpoint(path, point)
    loaded = training.load_checkpoint(path)
    assert same(loaded, point._replace(rng=loaded.rng))


def test_ctrl_c_while_writing_leaves_the_old_file(monkeypatch, tmp_path, path, point):
    training.save_checkpoint(path, point)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Raising(os.fsync, 1, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            training.save_checkpoint(path, point._replace(update=9))
    assert training.load_checkpoint(path).update == point.update
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


def of_somebody_else(path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2)}, path)


def of_a_later_format(path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2)}, path, metadata={"xplstm": '{"format": "xplstm-checkpoint-2"}'})


@pytest.mark.parametrize("damage", [truncated, empty, of_somebody_else, of_a_later_format])
def test_a_file_that_is_no_checkpoint_is_refused(path, point, damage):
    training.save_checkpoint(path, point)
    damage(path)
    with pytest.raises(xplstm.FormatError, match=r"run\.safetensors"):
        training.load_checkpoint(path)


def test_the_checkpoint_of_another_model_is_refused(path, whole):
    training.save_checkpoint(path, whole[2])
    other = Setup(path)
    other.model = CharLM(sorted(set(TEXT)), 6, 1, embedding_dim=5, dtype="float64")
    with pytest.raises(xplstm.FormatError) as caught:
        other.fit(resume=True)
    assert "lstm.weight_ih_l1: the model has None, the checkpoint float32(24, 6)" in str(caught.value)
    assert "linear.bias: the model has float64(14,), the checkpoint float32(14,)" in str(caught.value)


def test_streams_lay_a_sequence_side_by_side(xp):
    ids = np.arange(100, 123)
    batches = Streams(xp.asarray(ids), 3, 4)
    inputs = np.concatenate([_array.to_numpy(x) for x, _ in batches])
    targets = np.concatenate([_array.to_numpy(y) for _, y in batches])
    assert np.array_equal(inputs, ids[:21].reshape(3, 7).T)
    assert np.array_equal(targets, inputs + 1)
    assert [x.shape for x, _ in batches] == [(4, 3), (3, 3)]
    with pytest.raises(IndexError, match=r"index=2 must be in \[-2, 2\)"):
        batches[2]


MODEL, SGD = Spy(), optim.SGD(0.1)
NUMBERS = np.arange(5)
BAD = [
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, validate_every=0), "validate_every=0"),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, checkpoint_every=0), "checkpoint_every=0"),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, patience=0, validate=int), "patience=0"),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, patience=2), "patience=2 needs validate="),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, resume=True), "resume=True needs checkpoint="),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, checkpoint="no/run"), "checkpoint='no/run'"),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=-1), "updates=-1 must be at least 0"),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, extra={"a": {1}}), "cannot be written as JSON"),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, checkpoint="."), "checkpoint='.' is a folder"),
    (lambda: training.fit(MODEL, [], SGD, updates=1), "no batches in epoch 0"),
    (lambda: training.fit(MODEL, BATCHES, SGD, updates=1, max_norm=0, progress=False), "max_norm=0"),
    (lambda: Streams(NUMBERS, 0, 2), "batch_size=0 must be at least 1"),
    (lambda: Streams(NUMBERS, 2, 0), "steps=0 must be at least 1"),
    (lambda: Streams(NUMBERS, 5, 2), "ids has 5 elements; batch_size=5 needs at least 6"),
    (lambda: History().best, "validations is empty"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(xplstm.ArgumentError, match=message):
        call()


def test_nothing_to_resume_from_is_an_error(path):
    with pytest.raises(FileNotFoundError):
        training.fit(Spy(), BATCHES, SGD, updates=1, checkpoint=path, resume=True, progress=False)


@pytest.mark.parametrize("resumed_with", [None, 3])
def test_a_generator_must_be_there_exactly_if_it_was(path, resumed_with):
    begun_with = 3 if resumed_with is None else None
    training.fit(Spy(), BATCHES, SGD, updates=1, checkpoint=path, rng=begun_with, progress=False)
    with pytest.raises(xplstm.ArgumentError, match="rng="):
        training.fit(
            Spy(), BATCHES, SGD, updates=2, checkpoint=path, resume=True, rng=resumed_with, progress=False
        )
