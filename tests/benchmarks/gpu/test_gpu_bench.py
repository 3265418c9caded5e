"""Test the GPU benchmark without a GPU: engines on the CPU, goals and files."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import xplstm
from tests.benchmarks.gpu import bench, engines, loop, results, workers
from tests.benchmarks.gpu.workers import Server, Worker
from tests.conftest import backend
from tests.cuda_emulation import compiled, standin, thorough
from tests.cuda_emulation.carried import emulated
from xplstm import _dispatch
from xplstm._errors import KernelError
from xplstm.cli.engines import describe
from xplstm.cli.peers import Shape
from xplstm.cli.results import Report, Row, load, ratio
from xplstm.kernels._cuda import launch, partitions
from xplstm.kernels._cuda import loop as steps_loop

SHAPE = Shape(4, 2, 3, 5)


class Event:
    """Time on the CPU instead of an event on a device."""

    clock: ClassVar[float] = 0.0

    def record(self) -> None:
        Event.clock += 0.001
        self.at = Event.clock

    def synchronize(self) -> None:
        pass


class Device:
    id = 0
    attributes: ClassVar[dict[str, int]] = {
        "L2CacheSize": 1000,
        "MultiProcessorCount": 7,
        "MaxSharedMemoryPerBlockOptin": 4096,
    }
    compute_capability = "90"

    def synchronize(self) -> None:
        pass


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """NumPy with the functions of CuPy that the benchmark calls; it has no GPU and no CuPy kernels."""
    made = types.ModuleType("cupy")
    names = ("asarray", "zeros", "zeros_like", "vstack", "stack", "concatenate", "dot", "exp", "tanh")
    for name in (*names, "float32"):
        setattr(made, name, getattr(np, name))
    made.asnumpy, made.ndarray = np.asarray, type("ndarray", (), {})
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)
    made.get_default_memory_pool = made.get_default_pinned_memory_pool = lambda: pool
    runtime = types.SimpleNamespace(
        getDeviceProperties=lambda _: {"name": b"no GPU"},
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
    )
    made.cuda = types.SimpleNamespace(
        Device=Device, Event=Event, runtime=runtime, get_elapsed_time=lambda a, b: 1e3 * (b.at - a.at)
    )
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(engines, "LIBRARY", "numpy")
    monkeypatch.setattr(engines, "DEVICE", "cpu")
    yield made
    xplstm.use_kernel(None)


class Inline:
    """Worker without a process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._server = Server(name)

    def ask(self, op: str, **request: Any) -> Any:
        # In a separate process, an engine does not share the pinned kernel.
        xplstm.use_kernel(self.name if self.name in _dispatch.TABLE else None)
        try:
            return json.loads(json.dumps(getattr(self._server, op)(**request)))
        except Exception as error:
            raise KernelError(describe(error)) from error

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_the_documents_loop_is_an_lstm() -> None:
    rng = np.random.default_rng(3)
    lstm = xplstm.LSTM(3, 5, rng=rng, dtype="float64")
    x, dy = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 2, 5))
    y, _, pullback = lstm.vjp(x)
    np.testing.assert_allclose(loop.Forward(np, lstm.params)(x), y, atol=1e-14)
    gradient = loop.Training(np, lstm.params)(x, dy)
    np.testing.assert_allclose(gradient, pullback(dy)[2]["weight_hh_l0"], atol=1e-13)


@pytest.mark.parametrize("name", [backend("torch"), backend("jax"), "documents"])
def test_engines_compute_the_same(name: str, cupy: Any) -> None:
    given = engines.inputs(SHAPE, 1000)
    works = {n: engines.ENGINES[n].build(given, "float32") for n in ("reference", name)}
    assert given.sets > 2
    for what in ("forward", "train"):
        found = [[engines.sample(w, SHAPE, getattr(w, what)(k)) for w in works.values()] for k in (0, 1)]
        for want, got in found:
            assert got
            for key, a in got.items():
                np.testing.assert_allclose(a, want[key], atol=1e-5, err_msg=key)
        assert not np.allclose(*(results[0][next(iter(results[0]))] for results in found)), "sets are alike"


@pytest.mark.parametrize(
    ("name", "precision"),
    [backend("torch", "float16"), backend("torch", "bfloat16"), backend("jax", "bfloat16")],
)
def test_a_peer_in_half_precision_is_within_what_is_allowed(name: str, precision: str, cupy: Any) -> None:
    given = engines.inputs(SHAPE, 1000)
    judge = engines.ENGINES["reference"].build(given, "float32")
    half = engines.ENGINES[name].build(given, precision)
    for what in ("forward", "train"):
        want, got = (engines.sample(w, SHAPE, getattr(w, what)(0)) for w in (judge, half))
        worst = max(bench.difference(got[key], want[key]) for key in want)
        assert 1e-5 < worst < bench.ALLOWED[precision]


def test_torch_is_told_of_tf32_as_it_wants(torch) -> None:
    before = torch.backends.cudnn.rnn.fp32_precision
    try:
        for allowed, said in ((False, "ieee"), (True, "tf32")):
            engines._allow_tf32(torch, allowed)
            assert torch.backends.cudnn.rnn.fp32_precision == said
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before
    old = types.SimpleNamespace(backends=types.SimpleNamespace(cudnn=types.SimpleNamespace()))
    engines._allow_tf32(old, False)
    assert old.backends.cudnn.allow_tf32 is False


def test_input_sets_outgrow_the_cache_and_do_not_overlap() -> None:
    given = engines.inputs(SHAPE, 10_000)
    x, dy = given.parts(given.numbers)
    assert given.sets * given.stride * 4 >= 2 * 10_000
    assert x(0).shape == (4, 2, 3)
    assert dy(given.sets - 1).shape == (4, 2, 5)
    assert not np.shares_memory(x(0), x(1))
    assert not np.shares_memory(x(1), dy(1))
    assert engines.inputs(Shape(512, 64, 512, 512), 1000).sets == 1
    assert engines.inputs(SHAPE, 10**9).sets == engines.MOST_SETS


def test_a_run_and_one_that_goes_on(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A complete run with engines on the CPU: rows, reasons, a second run, a figure."""
    monkeypatch.setattr(bench, "Worker", Inline)
    monkeypatch.setattr(bench, "TURN", 0.002)
    file, picture = tmp_path / "gpu.json", tmp_path / "gpu.svg"
    argv = ["--repeats", "3", "--json", str(file)]
    argv += ["--engines", "reference,documents,cupy_fused"]
    assert bench.main([*argv, "--shape", "4,2,3,5"]) == 0
    rows = load(file).rows
    assert {(r.what, r.engine, bool(r.times)) for r in rows if r.setting == "float32"} == {
        (what, engine, engine != "cupy_fused")
        for what in ("forward", "train")
        for engine in ("reference", "documents", "cupy_fused")
    }
    assert all(len(r.times) == 3 and r.facts["host"] > 0 for r in rows if r.times)
    refused = [r for r in rows if r.engine == "cupy_fused" and r.setting == "float16"]
    assert refused
    assert all("got numpy arrays" in r.facts["reason"] for r in refused)
    assert bench.main([*argv, "--shape", "4,2,3,5", "--shape", "2,3,5,7"]) == 0
    report = load(file)
    assert report.rows[: len(rows)] == rows
    assert {(r.shape, r.what) for r in report.rows} == {
        (s, w) for s in (SHAPE, Shape(2, 3, 5, 7)) for w in ("forward", "train")
    }
    assert report.about["command"].count("tests.benchmarks.gpu") == 1
    assert report.about["microseconds of Python"].startswith("not measured: AttributeError")
    capsys.readouterr()
    pytest.importorskip("matplotlib")
    assert bench.main([*argv, "--minutes", "0", "--plot", str(picture)]) == 0
    assert load(file) == report
    assert "float32" in picture.read_text()
    out = capsys.readouterr().out
    assert "inference, float32" in out
    assert "not timed" in out
    assert "under way\nreference" in out
    assert "not measured" in out


@pytest.mark.parametrize(
    "about", [{"gpu": "another"}, {"engines": "torch"}, {"kernels": "changed"}, {"rounds": 5}]
)
def test_another_machine_or_kernel_does_not_go_on(
    about: dict[str, Any],
    cupy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "Worker", Inline)
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it has begun to measure"))
    Report(about, [Row(SHAPE, "float32", "forward", "torch", [1.0])]).save(file)
    argv = ["--json", str(file), "--engines", "documents"]
    before = file.read_text()
    assert bench.main(argv) == 2
    assert file.read_text() == before
    assert (
        f"has measurements with {next(iter(about))} {next(iter(about.values()))}" in capsys.readouterr().err
    )


def test_what_was_not_timed_of_a_shape_is_timed_when_it_is_asked_for() -> None:
    """The file contains only the inference of DeepBench. A named shape is also measured in training."""
    shape = Shape(25, 4, 512, 512)
    rows = [Row(shape, "float32", "forward", "torch", [1.0])]
    args = types.SimpleNamespace(shape=[shape, SHAPE, SHAPE], quick=None)
    assert bench.left_of(args, rows) == {shape: ("train",), SHAPE: ("forward", "train")}
    args.shape = None
    assert shape not in bench.left_of(args, rows)
    assert bench.left_of(args, [])[shape] == ("forward",)


class Wrong:
    """Engine in a worker that gives specified wrong answers."""

    def __init__(self, name: str, y: float, seconds: float = 1e-3, fails: str = "", gives: str = "y") -> None:
        self.name, self.y, self.seconds, self.fails, self.gives = name, y, seconds, fails, gives

    def ask(self, op: str, **_: Any) -> Any:
        if op == self.fails:
            raise KernelError(f"no {op}")
        return {
            "results": {name: [1.0, self.y] for name in self.gives.split()},
            "time": {"device": self.seconds, "host": self.seconds / 2},
            "facts": {"walk": [4.0, 8.0, 12.0], "launches": {"walk_16": 1}},
        }.get(op)


def test_a_wrong_result_is_not_timed_and_fails_the_command(tmp_path: Path) -> None:
    workers: Any = {
        "torch": Wrong("torch", 0.5),
        "cupy_fused": Wrong("cupy_fused", 0.51),
        "cupy_persistent": Wrong("cupy_persistent", 0.5, 1e-4),
        "jax": Wrong("jax", float("nan")),
        "documents": Wrong("documents", 0.5, fails="time"),
    }
    rows = {r.engine: r for r in bench.measure(workers, SHAPE, ("forward",), 3) if r.setting == "float32"}
    assert "differs in y by 1.0e-02" in rows["cupy_fused"].facts["reason"]
    assert "differs in y by inf" in rows["jax"].facts["reason"]
    assert rows["documents"].facts["reason"] == "no time"
    ours = rows["cupy_persistent"]
    assert ours.times == pytest.approx([25.0] * 3)
    assert ours.facts == {"walk": 2.0, "launches": {"walk_16": 1}, "host": pytest.approx(50)}
    assert ratio(ours, rows["torch"]) == pytest.approx(10)
    assert [r.engine for r in results.wrong(rows.values())] == ["cupy_fused"]
    file = tmp_path / "gpu.json"
    Report({}, list(rows.values())).save(file)
    assert bench.main(["--json", str(file), "--minutes", "0"]) == 1


def test_who_gives_nothing_to_compare_is_not_timed() -> None:
    workers: Any = {
        "torch": Wrong("torch", 0.5, gives=""),
        "jax": Wrong("jax", 0.5, gives="dweight_hh"),
        "reference": Wrong("reference", 0.5, gives="dx"),
        "cupy_fused": Wrong("cupy_fused", 0.5, gives="dweight_hh dx"),
    }
    rows = {r.engine: r for r in bench.measure(workers, SHAPE, ("train",), 3) if r.setting == "float32"}
    assert rows["torch"].facts["reason"] == "gives nothing, and the judge dweight_hh: nothing to compare"
    assert rows["reference"].facts["reason"] == "gives dx, and the judge dweight_hh: nothing to compare"
    assert [name for name, row in rows.items() if row.times] == ["jax", "cupy_fused"]
    for name in ("jax", "reference", "cupy_fused"):
        workers[name].gives = ""
    assert not any(row.times for row in bench.measure(workers, SHAPE, ("train",), 3))


def test_no_time_at_all_is_not_divided_by() -> None:
    workers: Any = {"torch": Wrong("torch", 0.5), "cupy_fused": Wrong("cupy_fused", 0.5, seconds=0.0)}
    rows = {r.engine: r for r in bench.measure(workers, SHAPE, ("forward",), 3) if r.setting == "float32"}
    assert rows["cupy_fused"].facts["reason"] == f"events measured no time in {bench.MOST_CALLS} calls"
    assert len(rows["torch"].times) == 3
    turn, most = bench.TURN, bench.MOST_CALLS
    for seconds, calls in ((0.0, most), (turn / most, most), (turn / 4, 4), (turn, 1), (9 * turn, 1)):
        assert bench.calls_of(seconds, turn, most) == calls


def launched(walks: int) -> dict[str, dict[str, int]]:
    """Return the properties of a row with a number of launches."""
    return {"launches": {"walk_16": walks}}


def grid(ours: float, torch: float = 3.0, loop_time: float = 60.0) -> list[Row]:
    """Return rows of one machine on which every engine takes the same time."""
    found = []
    for shape in (Shape(512, 16, 256, 256), Shape(512, 16, 768, 768), Shape(512, 16, 64, 64)):
        for precision in engines.PRECISIONS:
            for what in ("forward", "train"):
                found.append(Row(shape, precision, what, "cupy_persistent", [ours], launched(1)))
                found.append(Row(shape, precision, what, "cupy_fused", [9.0]))
                found.append(Row(shape, precision, what, "torch", [torch]))
        found.append(Row(shape, "float32", "forward", "documents", [loop_time]))
    return found


def reached(rows: list[Row]) -> dict[str, bool | None]:
    return {goal.text.partition(":")[0]: goal.reached for goal in results.goals(rows)}


def test_goals() -> None:
    good = reached(grid(1.0))
    assert good.pop("train against the documents' loop at T 512, geometric mean") is None
    assert all(good.values())
    assert len(good) == 16
    slow = reached(grid(1.9))
    assert not slow["forward float32 against torch, H 256 to 1024, geometric mean"]
    assert slow["train float32 against torch, H 256 to 1024, geometric mean"]
    assert not slow["forward against the documents' loop at T 512, geometric mean"]
    assert not reached(grid(3.1))["forward float16 against torch where it persists, least"]
    assert reached(grid(3.1))["forward float32 against torch, least anywhere"]
    assert not reached(grid(3.2))["forward float32 against torch, least anywhere"]
    twice = [r._replace(facts=launched(2)) if r.facts else r for r in grid(1.0)]
    assert not reached(twice)["launches of the persistent kernel a layer forward"]
    assert set(reached([]).values()) == {None}


def test_where_cudnn_persists() -> None:
    assert results.persists(Shape(64, 16, 768, 768))
    for B, I, H in ((12, 768, 768), (136, 768, 768), (16, 768, 1152), (16, 100, 768), (16, 768, 100)):
        assert not results.persists(Shape(64, B, I, H))


def test_tables_compare_peers_with_the_faster_kernel() -> None:
    rows = [*grid(1.5), Row(SHAPE, "tf32", "train", "cudnn_static", facts={"reason": "no such thing"})]
    about, *tables = Report({"gpu": "none"}, rows).text(results.pairs).split("\n\n")
    assert about == "gpu: none"
    assert len(tables) == 8
    for text in tables:
        lines = text.splitlines()
        assert lines[1].split()[:4] == ["T,B,I,H", "cupy_persistent", "cupy_fused", "torch"]
        assert lines[2].split()[:4] == ["512,16,256,256", "1.50", "9.00", "3.00"]
        assert lines[-1].split()[:3] == ["geometric", "mean", "2.00"]
    assert results.reasons(rows) == ["cudnn_static tf32, 1 shapes from 4,2,3,5: no such thing"]
    assert results.pairs({"torch": rows[2]}) == {}


def serve_badly(name: str, connection: Any) -> None:
    """Run a process that hangs, exits or reports an error, as requested."""
    while True:
        request = json.loads(connection.recv_bytes())
        if request["op"] == "stop" or request["op"] == "end":
            return
        if request["op"] == "error":
            connection.send_bytes(json.dumps({"error": "said so", "broken": request["broken"]}).encode())
        if request["op"] == "answer":
            connection.send_bytes(json.dumps({"value": name}).encode())


@pytest.mark.slow
def test_a_worker_outlives_what_its_process_does() -> None:
    with Worker("a", serve_badly) as worker:
        with pytest.raises(KernelError, match=r"no answer to hang within 0 s; the process of a was ended"):
            worker.ask("hang", patience=0.2)
        assert worker.ask("answer") == "a"
        with pytest.raises(KernelError, match="the process of a ended with code 0 in end"):
            worker.ask("end")
        for broken in (True, False):
            assert worker.ask("answer") == "a"
            process = worker._process
            with pytest.raises(KernelError, match="said so"):
                worker.ask("error", broken=broken)
            assert (worker._process is process) is not broken
        with pytest.raises(KernelError, match="no answer to hang"):
            worker.ask("hang", patience=0.2)
        with pytest.raises(KernelError, match="a did not answer 2 times and gets no further requests"):
            worker.ask("answer")
    assert not process.is_alive()


def test_without_a_gpu_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is installed")
    assert bench.main(["--quick", "--engines", "documents"]) == 2
    assert "the benchmark needs CuPy and a CUDA device: ModuleNotFoundError" in capsys.readouterr().err


def test_an_unknown_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--engines", "torch,tensorflow"])
    assert "engine 'tensorflow' is unknown, expected one of cupy_block" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "nan", "long"])
def test_minutes_are_not_negative(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "Worker", lambda *_: pytest.fail("it has begun to measure"))
    with pytest.raises(SystemExit):
        bench.main([f"--minutes={text}"])
    assert f"--minutes: {text!r} must be a number of at least 0" in capsys.readouterr().err


def test_the_shapes_of_the_goals_come_first() -> None:
    args = types.SimpleNamespace(shape=None, quick=False)
    shapes = bench.shapes_of(args)
    assert len(shapes) == len(set(shapes)) == 96 + 22 + 15
    assert all(256 <= shape.H <= 1024 for shape in shapes[:24])
    assert bench.kinds_of(Shape(25, 4, 512, 512), False) == ("forward",)
    assert bench.kinds_of(Shape(25, 4, 512, 512), True) == ("forward", "train")


def test_launches_are_counted_and_walks_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        max_dynamic_shared_size_bytes = 0

        def __call__(self, *_: Any, **__: Any) -> None:
            pass

    real = Kernel()
    monkeypatch.setattr(launch, "kernel", lambda *_, **__: real)
    ran: list[Any] = []
    real_loop = types.SimpleNamespace(
        product=lambda *_: None, launch=lambda kernel, *_: ran.append(kernel), run=ran.append
    )
    monkeypatch.setattr(steps_loop, "new", lambda: real_loop)
    with workers.counted() as counts:
        for name in ("walk_16", "walk_16", "project"):
            kernel = launch.kernel("file.cu", name, "float32", cooperative=True)
            kernel.max_dynamic_shared_size_bytes = 9
            assert kernel.max_dynamic_shared_size_bytes == 9
            with pytest.raises(AttributeError, match="'Kernel' object has no attribute 'nothing'"):
                _ = kernel.nothing
            kernel((1,), (2,), ())
        object.__new__(steps_loop.Product)([1], [2], [3])
        each = steps_loop.new()
        each.product(None, None, None, None)
        each.launch(launch.kernel("fused.cu", "gates", "float32"), (1, 1), 32, None)
        each.run(range(3))
    assert ran == [range(1), real, range(3)]
    assert steps_loop.new() is real_loop
    assert counts == {"walk_16": 2, "project": 1, "product": 4, "gates": 3}
    assert real.max_dynamic_shared_size_bytes == 9
    assert launch.kernel("file.cu", "walk", "float32") is real
    room = types.SimpleNamespace(walk=lambda a: a + 1)
    cuda = types.SimpleNamespace(Event=Event)
    with workers.timed_walks(room, "walk", cuda) as spans:
        assert room.walk(1) == 2
    assert [end.at > start.at for start, end in spans] == [True]
    assert room.walk(1) == 2
    assert len(spans) == 1


@thorough
@pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here")
@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14")
@pytest.mark.parametrize("name", engines.OURS)
def test_facts_of_the_emulated_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts are those of the kernel modules; the times are not those of a GPU."""
    if importlib.util.find_spec("cupy"):
        pytest.skip("CuPy itself is here")
    monkeypatch.setattr(engines, "LIBRARY", "numpy")
    monkeypatch.setattr(partitions, "THREADS", 64)
    monkeypatch.setattr(_dispatch, "select", lambda _: emulated(name))
    monkeypatch.setattr(standin.Device, "synchronize", lambda _: None, raising=False)
    monkeypatch.setitem(standin.ATTRIBUTES, "L2CacheSize", 1000)
    try:
        with standin.installed() as cp:
            cp.asarray = cp.asnumpy = np.asarray
            cp.cuda.Event, cp.cuda.get_elapsed_time = Event, lambda a, b: 1e3 * (b.at - a.at)
            server = Server(name)
            server.build(list(SHAPE), "float32")
            facts = {what: server.facts(what, 3) for what in ("forward", "train")}
            found = server.results("train")
    finally:
        xplstm.use_kernel(None)
    assert set(found) == {"dx", "dweight_hh"}
    for what in facts:
        assert len(facts[what]["walk"]) == 3
        assert min(facts[what]["walk"]) > 0
    launches = facts["forward"]["launches"]
    if name == "cupy_fused":
        assert (launches["forward_gates"], launches["product"]) == (SHAPE.T, SHAPE.T + 1)
    else:
        assert sum(count for kernel, count in launches.items() if kernel.startswith("walk")) == 1
        assert sum(facts["train"]["launches"].values()) < 15


def test_a_server_changes_inputs_and_reads_events(cupy: Any) -> None:
    server, seen = Server("documents"), []
    waited: list[Any] = []
    work = engines.Work(lambda k: seen.append(k) or {"y": k}, dict, np.take, 3)
    server._work = work
    took = server.time("forward", 4)
    assert seen == [1, 2, 0, 1, 2], "a call to warm up, and four"
    # The clock of the substitute advances by one millisecond per event.
    assert took["device"] == pytest.approx(0.001 / 4)
    assert 0 < took["host"] < 0.1
    server._work = work._replace(wait=waited.append)
    took = server.time("forward", 2)
    assert [found["y"] for found in waited] == [0, 2], "after the first call and after the last"
    assert took["device"] >= took["host"]


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "Worker", lambda *_: pytest.fail("it has begun to measure"))
    with pytest.raises(SystemExit, match="2"):
        bench.main([option, str(tmp_path / "missing" / "a.svg")])
    assert f"argument {option}: " in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert bench.main(["--plot", str(tmp_path / "a.doc")]) == 2
    assert "--plot a.doc must end in one of " in capsys.readouterr().err


def test_quick_and_a_shape_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--quick", "--shape", "4,2,3,5"])
    assert "--shape: not allowed with argument --quick" in capsys.readouterr().err
