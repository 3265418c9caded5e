"""Check training in fixed shards: the same bits on any number of processes, and shared decisions."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import warnings

import numpy as np
import pytest

import xplstm
from xplstm import optim, training
from xplstm.models import CharLM, Forecaster, Ragged, SequenceClassifier
from xplstm.training import _fit, _team

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are started by fork")


def batches(entries, ragged=False, count=6):
    rng, made = np.random.default_rng(5), []
    for _ in range(count):
        steps = np.cumsum(rng.standard_normal((9, entries, 2)), 0).astype("float32")
        inputs = Ragged(steps[:-1], rng.integers(0, 9, entries)) if ragged else steps[:-1]
        made.append((inputs, steps[1:]))
    return made


def digest(params):
    return hashlib.sha1(
        b"".join(np.ascontiguousarray(params[n]).tobytes() for n in sorted(params))
    ).hexdigest()


def trained(group, shards, data, optimizer=None, layers=2, batch_axis=1, sums="tree", **options):
    model = Forecaster(2, 8, layers, dropout=0.5 if "rng" in options else 0.0, rng=0)
    options = {"progress": False, "updates": 8, "max_norm": 1.0} | options
    parallel = None if shards is None else training.Shards(group, shards, batch_axis=batch_axis, sums=sums)
    model.batch_axis = batch_axis
    training.fit(model, data, (optimizer or (lambda: optim.Adam(1e-2)))(), parallel=parallel, **options)
    return digest(model.params)


def together(size, work, timeout=30.0):
    """Return the result of `work(group)` on each rank, its error as text, or None for a killed rank."""
    context = multiprocessing.get_context("fork")
    groups = training.local_group(size, timeout=timeout)
    ends = [context.Pipe(duplex=False) for _ in groups]

    def run(group, end):
        try:
            end.send(work(group))
        except BaseException as error:
            end.send(f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}")
        os._exit(0)

    ranks = [context.Process(target=run, args=(g, end)) for g, (_, end) in zip(groups, ends, strict=True)]
    for rank in ranks:
        rank.start()
    for group, (_, end) in zip(groups, ends, strict=True):
        group.close()
        end.close()
    found = []
    for rank, (end, _) in zip(ranks, ends, strict=True):
        try:
            found.append(end.recv())
        except EOFError:
            found.append(None)
        rank.join()
    return found


CASES = [
    # shards, entries, ragged, options
    (4, 8, False, {"carry": True, "rng": 3}),
    (4, 7, True, {"carry": True, "rng": 3}),
    (8, 5, True, {"rng": 1, "accumulate": 2, "average": 0.9}),
    (12, 7, False, {"frozen": "linear", "layers": 1}),
    (4, 3, False, {"optimizer": lambda: optim.SGD(0.01, momentum=0.9), "carry": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "entries", "ragged", "options"), CASES)
def test_the_bits_do_not_depend_on_the_number_of_processes(shards, entries, ragged, options):
    data = batches(entries, ragged)
    alone = trained(None, shards, data, **options)
    for size in (2, 4):
        assert together(size, lambda g: trained(g, shards, data, **options)) == [alone] * size


def test_one_shard_is_an_ordinary_run():
    data = batches(4)
    assert trained(None, 1, data, carry=True) == trained(None, None, data, carry=True)


def trained_gru(parallel, **options):
    """Train a model whose state is one array, with truncated backpropagation."""
    model = CharLM("abcd", 6, rng=0)
    model.lstm = xplstm.GRU(6, 6, 2, rng=0)
    streams = training.Streams(model.encode("abcdabdcab" * 9), batch_size=4, steps=5)
    options = {"carry": True, "progress": False, "updates": 7} | options
    training.fit(model, streams, optim.Adam(0.02), parallel=parallel, **options)
    return digest(model.params)


@pytest.mark.parametrize("shards", [None, 2])
def test_a_state_of_one_array_is_carried_and_resumed(tmp_path, shards):
    def parallel():
        return None if shards is None else training.Shards(None, shards)

    path, whole = tmp_path / "run.safetensors", trained_gru(parallel())
    assert whole != trained_gru(parallel(), carry=False)
    trained_gru(parallel(), updates=2, checkpoint=path)
    assert training.load_checkpoint(path).state.shape == (2, 4, 6)
    assert trained_gru(parallel(), checkpoint=path, resume=True) == whole


def test_a_state_of_one_array_is_joined_on_two_processes():
    alone = trained_gru(training.Shards(None, 2))
    assert together(2, lambda group: trained_gru(training.Shards(group, 2))) == [alone] * 2


@pytest.mark.parametrize("ragged", [False, True])
def test_shards_give_the_gradient_of_the_whole_batch(ragged):
    data, found = batches(7, ragged, 1), []
    for shards in (None, 3):
        model = Forecaster(2, 8, dtype="float64", rng=0)
        inputs, targets = data[0]
        x = Ragged(inputs.x.astype("f8"), inputs.lengths) if ragged else inputs.astype("f8")
        parallel = None if shards is None else training.Shards(None, shards)
        batch = [(x, targets.astype("f8"))]
        training.fit(model, batch, optim.SGD(0.1), updates=3, parallel=parallel, progress=False)
        found.append(model.params)
    for name, a in found[0].items():
        np.testing.assert_allclose(found[1][name], a, rtol=1e-12, atol=1e-14)


def test_batch_entries_on_the_first_axis():
    class Line:
        def __init__(self):
            self.params = {"w": np.ones((3, 1))}

        def loss_vjp(self, inputs, targets, *_):
            loss, pullback = xplstm.losses.mse(inputs @ self.params["w"], targets)
            return loss, None, lambda: {"w": inputs.T @ pullback()}

    x = np.random.default_rng(0).standard_normal((10, 3))
    found = []
    for parallel in (None, training.Shards(None, 4, batch_axis=0)):
        model = Line()
        training.fit(model, [(x, x[:, :1])], optim.SGD(0.1), updates=3, parallel=parallel, progress=False)
        found.append(model.params["w"])
    np.testing.assert_allclose(*found, rtol=1e-13)


# Faults.


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_and_a_restart_on_another_number(tmp_path, killed):
    data, path = batches(6, True), tmp_path / "run.safetensors"
    options = {"carry": True, "rng": 3, "updates": 12, "checkpoint_every": 3}
    expected = trained(None, 4, data, **options)
    options |= {"checkpoint": path, "resume": "auto"}

    def first(group):
        def kill(event):
            if event.update == 7 and group.rank == killed:
                os.kill(os.getpid(), signal.SIGKILL)

        return trained(group, 4, data, callbacks=kill, **options)

    found = together(2, first)
    assert found[killed] is None
    assert f"rank {1 - killed} lost rank {killed}" in found[1 - killed]
    saved = training.load_checkpoint(path).update
    assert saved == (7 if killed else 6)  # rank 0 writes, and it was alive in one of the two cases
    assert together(4, lambda g: trained(g, 4, data, **options)) == [expected] * 4


@pytest.mark.parametrize("where", ["data", "callback", "validate"])
def test_an_error_of_one_rank_is_an_error_of_all(tmp_path, where):
    path = tmp_path / "run.safetensors"

    def work(group):
        def fail(*_):
            if group.rank == 1:
                raise ValueError("broken")

        data = list(batches(4))
        options = {"checkpoint": path}
        if where == "data" and group.rank == 1:
            data[3] = None, None
        if where == "callback":
            options["callbacks"] = lambda event: fail() if event.update == 3 else None
        if where == "validate":
            count = iter(range(10))
            options |= {"validate": lambda: fail() or 1.0 if next(count) else 1.0, "validate_every": 3}
        return trained(group, 2, data, **options)

    first, second = together(2, work)
    assert first.startswith("GroupError: all ranks stop because of an error on rank 1")
    assert not second.startswith("GroupError")
    assert training.load_checkpoint(path).update == 3


def test_a_signal_at_one_rank_stops_all_at_the_same_update(tmp_path):
    path = tmp_path / "run.safetensors"

    def work(group):
        seen = []

        def stop(event):
            seen.append(event.update)
            if event.update == 3 and group.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            trained(group, 2, batches(4), callbacks=stop, updates=10**6, checkpoint=path)
        return seen

    assert together(2, work) == [[1, 2, 3]] * 2
    assert training.load_checkpoint(path).update == 3


def test_a_full_disk_at_rank_0_reaches_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_fit, "save_checkpoint", full)
    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 2}
    first, second = together(2, lambda g: trained(g, 2, batches(4), **options))
    assert first.startswith("OSError")
    assert "because of an error on rank 0" in second
    assert "No space left" in second


@pytest.mark.slow
def test_a_rank_that_hangs_is_named():
    def work(group):
        hang = multiprocessing.Event().wait
        callbacks = (lambda _: hang(3)) if group.rank == 1 else ()
        return trained(group, 2, batches(4), callbacks=[callbacks] if callbacks else [lambda _: None])

    found = together(2, work, timeout=0.5)
    assert "rank 0 lost rank 1: no answer within timeout=0.5 s" in found[0]


def test_validation_of_rank_0_decides():
    def work(group):
        value = iter([3, 2, 2.5, 2.6, 9, 9] if group.rank == 0 else range(100, 0, -1))
        options = {"validate": lambda: next(value), "validate_every": 2, "patience": 2, "updates": 40}
        model = Forecaster(2, 8, rng=0)
        parallel = training.Shards(group, 2)
        history = training.fit(
            model, batches(4), optim.Adam(1e-2), parallel=parallel, progress=False, **options
        )
        return history.validations

    assert together(2, work) == [[(0, 3.0), (2, 2.0), (4, 2.5), (6, 2.6)]] * 2


# What does not fit is named.


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_norm": 2.0}, "max_norm"),
        ({"updates": 9}, "updates"),
        ({"rng": 8}, "rng"),
        ({"shards": 4}, "shards"),
        ({"batch_axis": 0}, "batch_axis"),
    ],
)
def test_ranks_with_other_arguments_are_refused(change, name):
    def work(group):
        options = {"rng": 7, "shards": 2} | (change if group.rank == 1 else {})
        return trained(group, options.pop("shards"), batches(4), **options)

    for text in together(2, work):
        assert text.startswith("ArgumentError: rank 1 has")
        assert f"{name}=" in text


def test_ranks_with_other_parameters_or_data_are_refused():
    def other_model(group):
        model, parallel = Forecaster(2, 8, rng=group.rank), training.Shards(group, 2)
        training.fit(model, batches(4), optim.Adam(1e-2), updates=1, parallel=parallel, progress=False)

    assert "digest of the parameters" in together(2, other_model)[0]
    found = together(2, lambda g: trained(g, 2, batches(4)[g.rank :]))
    assert "batches" in found[0]
    found = together(2, lambda g: trained(g, 2, batches(4)[:: 1 - 2 * g.rank]))
    assert "digest of the next batch" in found[0]


class FastGroup(training.LocalGroup):
    """A group whose transport adds arrays itself."""

    def all_reduce(self, array):
        return np.sum([np.frombuffer(a, array.dtype) for a in self.gather(array.tobytes())], 0)


def with_other_targets(data):
    return [*data[:2], (data[2][0], data[2][1] + np.float32(1e-6)), *data[3:]]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda data: [data[0], *reversed(data[1:])], "batch 1 of epoch 0"),
        (with_other_targets, "batch 2 of epoch 0"),
        (lambda data: data[:4], "batch 3 of epoch 0"),  # it ends the epoch of one rank
    ],
)
@pytest.mark.parametrize("sums", ["tree", "fast"])
def test_batches_that_differ_between_ranks_are_refused_on_all_ranks(change, place, sums):
    def work(group):
        if sums == "fast":
            group.__class__ = FastGroup
        data = change(batches(4)) if group.rank == 2 else batches(4)
        return trained(group, 4, lambda _: iter(data), sums=sums, layers=1)

    for text in together(4, work):
        assert text.startswith(f"GroupError: {place} of rank 2 differs from that of rank 0")


def test_lengths_that_differ_between_ranks_are_refused():
    def work(group):
        data = batches(4, ragged=True)
        inputs, targets = data[3]
        data[3] = Ragged(inputs.x, [4, 1 + group.rank, 2, 3]), targets
        return trained(group, 2, data)

    for text in together(2, work):
        assert text.startswith("GroupError: batch 3 of epoch 0 of rank 1 differs")


def test_a_run_with_another_number_of_shards_is_not_resumed(tmp_path):
    path = tmp_path / "run.safetensors"
    trained(None, 4, batches(4), checkpoint=path)
    for shards in (2, None):
        with pytest.raises(xplstm.ArgumentError, match=f"shards={shards} must be 4 as"):
            trained(None, shards, batches(4), updates=9, checkpoint=path, resume=True)
    with pytest.raises(xplstm.ArgumentError, match="batch_axis=0 must be 1 as"):
        trained(None, 4, batches(4), updates=9, batch_axis=0, checkpoint=path, resume=True)
    with pytest.raises(xplstm.ArgumentError, match="sums='fast' must be 'tree' as"):
        trained(None, 4, batches(4), updates=9, sums="fast", checkpoint=path, resume=True)


def test_the_time_axis_of_a_model_is_not_divided():
    parallel = training.Shards(None, 2, batch_axis=0)
    with pytest.raises(xplstm.ArgumentError, match="has batch axis 1, but Shards has batch_axis=0"):
        training.fit(Forecaster(2, 8, rng=0), batches(4), optim.Adam(1e-2), updates=1, parallel=parallel)


@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_targets_of_whole_sequences_are_divided_by_entry(task, each_step):
    rng = np.random.default_rng(0)
    x, shape = rng.normal(size=(5, 4, 2)), (5, 4, 4) if each_step else (4, 4)
    targets = rng.integers(0, 2, size=shape) if task == "multilabel" else rng.normal(size=shape)
    found = []
    for parallel in (None, training.Shards(None, 4), training.Shards(None, 2)):
        model = SequenceClassifier(2, 3, 4, task=task, each_step=each_step, dtype="float64", rng=0)
        training.fit(model, [(x, targets)], optim.SGD(0.5), updates=2, parallel=parallel, progress=False)
        found.append(model.params)
    for params in found[1:]:
        for name, a in params.items():
            np.testing.assert_allclose(a, found[0][name], rtol=1e-12, atol=1e-14, err_msg=name)


class Fake:
    rank, size = 0, 3

    def exchange(self, *_):
        raise AssertionError

    gather = exchange


def test_wrong_arguments_are_named():
    with pytest.raises(
        xplstm.ArgumentError, match="3 processes, expected a power of two that divides 6, the shards"
    ):
        training.Shards(Fake(), 6)
    with pytest.raises(xplstm.DTypeError, match="rank, size, exchange and gather"):
        training.Shards(4, 4)
    with pytest.raises(xplstm.ArgumentError, match="count=0"):
        training.Shards(None, 0)
    with pytest.raises(xplstm.DTypeError, match="parallel=4"):
        training.fit(Forecaster(2, 4), batches(4), optim.Adam(1e-2), updates=1, parallel=4, progress=False)
    ids = np.zeros(6, dtype=int)
    with pytest.raises(xplstm.ShapeError, match="add a batch axis"):
        training.fit(
            CharLM("ab", 4),
            [(ids, ids)],
            optim.Adam(1e-2),
            updates=1,
            parallel=training.Shards(None, 2),
            progress=False,
        )


class Uncounted(Forecaster):
    count = None


def test_a_ragged_batch_needs_a_model_that_counts():
    with pytest.raises(xplstm.ArgumentError, match=r"Uncounted\.count"):
        training.fit(
            Uncounted(2, 4, rng=0),
            batches(4, True),
            optim.Adam(1e-2),
            updates=1,
            parallel=training.Shards(None, 2),
            progress=False,
        )


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_sums_are_those_of_one_tree(size):
    """XPL-EXACT-012 of the specification."""
    parts = np.random.default_rng(0).standard_normal((8, 13)).astype("float32")

    def tree(low, high):
        middle = (low + high) // 2
        return parts[low] if high - low == 1 else tree(low, middle) + tree(middle, high)

    def work(group):
        each, team = 8 // size, _team.Team(group)
        return team.add(
            lambda: (np.r_[1, 0, 0, tree(group.rank * each, (group.rank + 1) * each)].astype("f4"), 0),
            16,
            "f4",
        )[0]

    for found in together(size, work):
        np.testing.assert_array_equal(found[3:], tree(0, 8))


# Other transports.


def of_torch(rank, size, path, end):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    end.send(trained(training.TorchGroup(), 4, batches(7, True), carry=True, rng=3))
    end.close()
    dist.destroy_process_group()


def test_torch_distributed_gives_the_same_bits(torch, tmp_path):
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe(duplex=False) for _ in range(2)]
    ranks = [
        context.Process(target=of_torch, args=(r, 2, tmp_path / "meet", end))
        for r, (_, end) in enumerate(pairs)
    ]
    for rank in ranks:
        rank.start()
    expected = trained(None, 4, batches(7, True), carry=True, rng=3)
    assert [end.recv() if end.poll(120) else None for end, _ in pairs] == [expected] * 2
    for rank in ranks:
        rank.join()


# Two processes and one file.


def test_a_checkpoint_keeps_the_id_of_its_run(tmp_path):
    path, other = tmp_path / "run.safetensors", tmp_path / "other.safetensors"
    trained(None, 4, batches(4), updates=2, checkpoint=path)
    name = training.load_checkpoint(path).settings["run"]
    assert together(2, lambda g: trained(g, 4, batches(4), updates=4, checkpoint=path, resume=True))
    assert training.load_checkpoint(path).settings["run"] == name
    together(2, lambda g: trained(g, 4, batches(4), updates=1, checkpoint=other))
    assert training.load_checkpoint(other).settings["run"] != name


@pytest.mark.filterwarnings("ignore:checkpoint=.* exists")
@pytest.mark.parametrize("resume", [False, True])
def test_the_file_of_another_process_is_not_replaced(tmp_path, resume):
    """A job that was assumed to be lost meets the job that replaced it."""
    path, left = tmp_path / "run.safetensors", []
    options = {"checkpoint": path, "checkpoint_every": 2}

    def start_again(event):
        if event.update == 3:
            trained(None, 4, batches(4), updates=7, resume=resume, **options)
            left.append(path.read_bytes())

    with pytest.raises(xplstm.ArgumentError, match=r"at update 7 of run .*, expected update 2 of run"):
        trained(None, 4, batches(4), callbacks=start_again, **options)
    assert path.read_bytes() == left[0]


@pytest.mark.parametrize("content", [None, b"not a checkpoint"])
def test_a_new_run_keeps_every_file_that_it_finds(tmp_path, content):
    """Each start without resume renames the earlier file, also behind a link."""
    (tmp_path / "disk").mkdir()
    path, found = tmp_path / "run.safetensors", tmp_path / "disk" / "run.safetensors"
    path.symlink_to(found)
    if content is None:
        trained(None, 4, batches(4), updates=3, checkpoint=path)
    else:
        found.write_bytes(content)
    before = [found.read_bytes()]

    def again(group):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            trained(group, 4, batches(4), updates=1, checkpoint=path)
        return [str(warning.message) for warning in seen]

    for start in ("previous", "previous-2"):
        (message,), others = together(2, again)
        assert "run.safetensors' exists, and resume=False starts a new run" in message
        assert f"the new run renames that file to '{start}-run.safetensors'; resume='auto'" in message
        assert others == []
        before.append(found.read_bytes())
    kept = [found.with_name(f"{start}-run.safetensors").read_bytes() for start in ("previous", "previous-2")]
    assert [*kept, found.read_bytes()] == before
    assert len(list(found.parent.iterdir())) == 3
    assert path.is_symlink()


def test_a_file_that_appears_before_the_first_write_is_kept(tmp_path):
    path = tmp_path / "run.safetensors"

    def appear(event):
        if event.update == 1:
            path.write_text("of another process")

    trained(None, 4, batches(4), updates=2, checkpoint=path, callbacks=appear)
    assert (tmp_path / "previous-run.safetensors").read_text() == "of another process"
    assert training.load_checkpoint(path).update == 2


def test_a_run_without_a_finite_update_changes_no_file(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_text("the work of a night")
    data = [(np.full_like(x, np.nan), y) for x, y in batches(4)]
    with pytest.warns(UserWarning, match="exists"), pytest.raises(xplstm.NonFiniteError):
        trained(None, 4, data, checkpoint=path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the work of a night"]


def test_files_from_before_there_were_ids_are_resumed(tmp_path):
    path = tmp_path / "run.safetensors"
    expected = trained(None, 4, batches(4), updates=6)
    trained(None, 4, batches(4), updates=2, checkpoint=path)
    point = training.load_checkpoint(path)
    settings = {name: value for name, value in point.settings.items() if name != "run"}
    training.save_checkpoint(path, point._replace(settings=settings))
    options = {"checkpoint": path, "checkpoint_every": 1, "resume": True}
    assert trained(None, 4, batches(4), updates=6, **options) == expected
    assert training.load_checkpoint(path).settings["run"]


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path):
    """A limit of the process stops its write in the middle, like a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "run.safetensors"
    before = []

    def work(group):
        def fill(event):
            if event.update == 2:
                before.append(training.load_checkpoint(path).update)
                if group.rank == 0:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        try:
            return trained(group, 2, batches(4), checkpoint=path, checkpoint_every=1, callbacks=fill)
        finally:
            assert before == [1]

    first, second = together(2, work)
    assert first.startswith("OSError")
    assert "the checkpoint was not written" in first
    assert "all ranks stop because of an error on rank 0: OSError" in second
    assert training.load_checkpoint(path).update == 1
    assert os.listdir(tmp_path) == [path.name]
