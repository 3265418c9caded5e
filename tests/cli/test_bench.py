"""Check that the benchmark compares equal results, refuses others, and prints aligned tables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support import bytesums
from xplstm import __main__ as command
from xplstm._errors import FormatError, KernelError
from xplstm.cli import bench, peers, results
from xplstm.cli.engines import VARIABLES, Engine
from xplstm.cli.peers import Shape

SHAPE = Shape(4, 2, 3, 5)
ROOT = Path(__file__).parents[2]


def test_an_engine_that_is_unknown_or_not_installed_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "available", lambda: ["numpy_inplace"])
    assert command.main(["bench", "--engines", "numpy_inplace,torch"]) == 2
    assert "engine 'torch' is not installed here, expected one of numpy_inplace" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["bench", "--engines", "numpy"])
    assert "engine 'numpy' is unknown, expected one of native, numpy_inplace" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "available", lambda: ["numpy_inplace", "reference"])
    before = {name: os.environ.get(name) for name in VARIABLES}
    numbers, picture = tmp_path / "times.json", tmp_path / "times.svg"
    argv = ["bench", "--shape", "4,2,3,5", "--shape", "1,1,3,5", "--repeats", "2", "--threads", "1"]
    assert command.main([*argv, "--json", str(numbers), "--plot", str(picture)]) == 0
    assert {name: os.environ.get(name) for name in VARIABLES} == before
    report = results.load(numbers)
    tables = results.group_timed(report.rows)
    assert {key: list(shapes) for key, shapes in tables.items()} == {
        ("forward", "1 thread"): [SHAPE],
        ("train", "1 thread"): [SHAPE],
        ("step", "1 thread"): [Shape(1, 1, 3, 5)],
    }
    for shapes in tables.values():
        for rows in shapes.values():
            assert list(rows) == ["numpy_inplace", "reference"]
            assert all(len(row.times) == 2 and min(row.times) > 0 for row in rows.values())
    assert report.about["peak GFLOP/s"]["1 thread"] > 0
    assert {"date", "command", "processor", "versions"} <= set(report.about)
    printed = capsys.readouterr().out
    assert printed == report.text(results.pairs) + "\n"
    tables = [t for t in printed.split("\n\n") if "geometric mean" in t]
    assert [t.splitlines()[0].split(":")[0] for t in tables] == [
        "inference, 1 thread",
        "training",
        "a stream, 1 thread",
    ]
    for text in tables:
        assert len({len(line) for line in text.splitlines()[1:]}) == 1
    assert "forward, 1 thread" in picture.read_text()


def rows_of(times: dict[str, list[float]], shape: Shape = SHAPE, what: str = "forward") -> results.Rows:
    """Return the rows of engines on one thread."""
    return {name: results.Row(shape, "1 thread", what, name, found) for name, found in times.items()}


def test_numbers_of_a_table() -> None:
    shape = Shape(2, 10, 5, 25)
    rows = {
        shape: rows_of({"ours": [1.0, 2.0, 4.0], "other": [3.0, 2.0, 4.0]}, shape),
        SHAPE: rows_of({"ours": [1.0, 1.0, 1.0], "other": [4.0, 4.0, 5.0]}),
    }
    assert results.ratios(rows, results.pairs) == {"other": {shape: 1.0, SHAPE: 4.0}}
    # 10 rows, 100 rows of weights, 30 columns: 30 000 multiply-adds in 2 microseconds.
    assert results.speed("forward", shape, [1.0, 2.0, 4.0]) == pytest.approx(30)
    assert results.speed("train", shape, [1.0, 2.0, 4.0]) == pytest.approx(90)
    lines = results.table("forward", "2 threads", rows, results.pairs, 60.0).splitlines()
    assert lines[0] == "inference, 2 threads"
    assert lines[2].split() == ["2,10,5,25", "2.00", "3.00", "1.00", "30.0", "50%"]
    assert lines[-1].split() == ["geometric", "mean", "2.00"]
    lines = results.table("forward", "float32", rows, results.pairs, None).splitlines()
    assert lines[2].split() == ["2,10,5,25", "2.00", "3.00", "1.00"]


def test_an_engine_that_did_not_run_a_shape_has_a_dash() -> None:
    shape = Shape(2, 10, 5, 25)
    rows = {shape: rows_of({"ours": [2.0], "a": [4.0], "b": [6.0]}, shape), SHAPE: rows_of({"ours": [1.0]})}
    *_, line, means = results.table("forward", "1 thread", rows, results.pairs, None).splitlines()
    assert line.split() == [str(SHAPE), "1.00", "-", "-", "-", "-"]
    assert means.split()[2:] == ["2.00", "3.00"]


def test_a_wide_table_is_folded_to_fit_a_terminal() -> None:
    names = ["native", *(f"native+{option}" for option in (*peers.VARIANTS, *peers.CELLS))]
    rows = {SHAPE: rows_of({name: [float(k)] for k, name in enumerate(names, 1)})}
    title, *lines = results.table("forward", "1 thread", rows, results.pairs, 60.0).splitlines()
    assert title == "inference, 1 thread"
    assert max(map(len, lines)) <= 100
    parts = [part.splitlines() for part in "\n".join(lines).split("\n\n")]
    assert len(parts) > 2
    shape = str(SHAPE)
    assert all(part[0].startswith("T,B,I,H ") and part[1].startswith(shape) for part in parts)
    heads = [head for part in parts for head in part[0].split()[1:]]
    assert heads == [*names, *(f"x/{name}" for name in names[1:]), "GFLOP/s", "of", "peak"]
    cells = [cell for part in parts for cell in part[1].split()[1:]]
    assert cells[: len(names)] == [f"{k:.2f}" for k in range(1, len(names) + 1)]
    assert all(len(part) == 2 or part[2].split()[2:] for part in parts)


def test_an_engine_is_compared_with_ours_of_the_same_option() -> None:
    names = ["native", "native+int8", "native+int8x8", "torch", "torch+int8x8"]
    assert results.pairs(names) == {
        "native+int8": "native",
        "native+int8x8": "native",
        "torch": "native",
        "torch+int8x8": "native+int8x8",
    }
    rows = {SHAPE: rows_of({name: [float(2**k)] for k, name in enumerate(names)})}
    assert results.ratios(rows, results.pairs)["torch+int8x8"][SHAPE] == pytest.approx(4)


def test_a_process_works_in_its_turn_alone() -> None:
    with Engine("numpy_inplace", 1) as engine:
        engine.build(SHAPE)
        stat = Path(f"/proc/{engine._process.pid}/stat")
        if not stat.exists() or not hasattr(signal, "SIGSTOP"):
            pytest.skip("only Linux shows whether a process is stopped")
        deadline = time.monotonic() + 10
        while (
            state := stat.read_text().rpartition(")")[2].split()[0]
        ) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state == "T"
        assert engine.time("forward", 1) > 0


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
@pytest.mark.slow
def test_an_end_by_signal_leaves_no_process_behind() -> None:
    code = (
        "from xplstm.cli import bench, engines; from xplstm.__main__ import main;"
        "bench.available = lambda: ['numpy_inplace'];"
        "bench._check_equal = lambda able, *_: print(able[0]._process.pid, flush=True);"
        "main(['bench', '--shape', '4,2,3,5', '--threads', '1', '--repeats', '1000000'])"
    )
    command = [sys.executable, "-c", f"if __name__ == '__main__':\n {code}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        engine = next(int(line) for line in process.stdout if line.strip().isdigit())
        process.terminate()
        assert process.wait(timeout=60) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


def test_what_a_process_reports_is_an_error() -> None:
    engine = Engine("numpy_inplace", 1)
    with engine, pytest.raises(KernelError, match="'Server' object has no attribute 'unknown'"):
        engine.ask("unknown")


class Fake:
    """Engine that returns a fixed result."""

    def __init__(self, name: str, result: list[float]) -> None:
        self.name = name
        self._result = np.asarray(result, dtype=np.float32)

    def result(self, _: str) -> np.ndarray:
        return self._result


def test_unequal_results_are_not_compared() -> None:
    with pytest.raises(bench.UnequalError, match=r"forward at 4,2,3,5: results of b and a differ by 1.0e-03"):
        bench._check_equal([Fake("a", [1.0]), Fake("b", [1.001])], "forward", SHAPE)
    bench._check_equal([Fake("a", [1.0]), Fake("b", [1.00001])], "forward", SHAPE)


def test_fewer_bits_are_compared_with_float32_and_options_with_their_own() -> None:
    ours, clipped = Fake("a", [1.0]), Fake("a+gate_clip", [3.0])
    bench._check_equal([ours, clipped, Fake("b+gate_clip", [3.0]), Fake("b+int8", [1.01])], "forward", SHAPE)
    with pytest.raises(bench.UnequalError, match=r"b\+int8 and a differ by 3.0e-02"):
        bench._check_equal([ours, clipped, Fake("b+int8", [1.03])], "forward", SHAPE)
    with pytest.raises(bench.UnequalError, match=r"b\+gate_clip and a\+gate_clip differ"):
        bench._check_equal([ours, clipped, Fake("b+gate_clip", [1.0])], "forward", SHAPE)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,0"])
def test_a_wrong_shape_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["bench", "--shape", text])
    assert "must be four positive integers T,B,I,H" in capsys.readouterr().err


def test_no_threads_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["bench", "--threads", "1,0"])
    assert "must be positive integers" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many"])
def test_rounds_are_at_least_one(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never_measure(monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        command.main(["bench", f"--repeats={text}"])
    assert f"--repeats: {text!r} must be an integer of at least 1" in capsys.readouterr().err


def never_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if the command starts to measure."""
    monkeypatch.setattr(bench, "available", lambda: pytest.fail("it has begun to measure"))


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    never_measure(monkeypatch)
    argv, folder = ["bench", option], tmp_path / "missing"
    shut = tmp_path / "shut.svg"
    shut.touch()
    for file, reason in (
        (folder / "a.svg", f"the folder {str(folder)!r} does not exist"),
        (tmp_path, "it is a folder"),
        (shut, "permission denied"),
    ):
        # Root may write everywhere.
        monkeypatch.setattr(os, "access", lambda path, _: path != shut)
        with pytest.raises(SystemExit, match="2"):
            command.main([*argv, str(file)])
        assert f"argument {option}: {str(file)!r} cannot be written: {reason}" in capsys.readouterr().err


def test_pictures_that_cannot_be_drawn_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    never_measure(monkeypatch)
    argv = ["bench", "--plot"]
    assert command.main([*argv, str(tmp_path / "a.doc")]) == 2
    assert "--plot a.doc must end in one of " in capsys.readouterr().err
    for name in ("a", "a.SVG"):
        results.check_plot(tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command.main([*argv, str(tmp_path / "a.svg")]) == 2
    assert "--plot a.svg needs matplotlib: pip install 'xplstm[plot]'" in capsys.readouterr().err


def test_the_loop_of_jax_is_an_lstm(jax) -> None:
    rng = np.random.default_rng(3)
    lstm = xplstm.LSTM(SHAPE.I, SHAPE.H, rng=rng)
    x = rng.standard_normal((SHAPE.T, SHAPE.B, SHAPE.I), dtype=np.float32)
    np.testing.assert_allclose(peers.scan_lstm(lstm.params, x), lstm(x)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["benchmarks", "benchmarks_amd", "benchmarks_precisions"])
def test_the_published_tables_are_of_the_published_measurements(name: str, tmp_path: Path) -> None:
    docs = ROOT / "docs"
    text = (docs / f"{name}.txt").read_text(encoding="utf-8")
    report = results.load(docs / f"{name}.json")
    assert report.text(results.pairs) + "\n" == text
    report.save(tmp_path / "again.json")
    assert results.load(tmp_path / "again.json") == report


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    for text in ("[]", "{}", "nothing", '{"rows": [{"shape": "1"}]}', '{"rows": [{"shape": "1,1,1,1"}]}'):
        file.write_text(text)
        with pytest.raises(FormatError, match=r"times\.json: it is not a benchmark report"):
            results.load(file)


def test_an_engine_looks_the_same_in_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    times = {"native": [1.0], **{f"peer{k}": [2.0 + k] for k in range(12)}}
    trained = {name: t for name, t in times.items() if name != "peer0"}
    other = Shape(1, 2, 3, 5)
    rows = [
        *rows_of(times).values(),
        *rows_of(times, other).values(),
        *rows_of(trained, what="train").values(),
        results.Row(SHAPE, "2 threads", "forward", "native"),
    ]
    results.draw(rows, tmp_path / "a.svg", results.pairs)
    forward, train = (
        {
            line.get_label(): (line.get_marker(), line.get_color(), list(line.get_xdata()))
            for line in axes.lines
        }
        for axes in drawn[0].axes
    )
    assert forward["peer11"] == (*train["peer11"][:2], [13.0, 13.0])
    assert len({look[:2] for name, look in forward.items() if name in times}) == 10
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == [str(SHAPE), str(other)]
    with pytest.raises(xplstm.ArgumentError, match=r"--plot a\.svg has nothing to draw"):
        results.draw(rows[-1:], tmp_path / "a.svg", results.pairs)


@pytest.mark.parametrize("option", [*peers.SHARED, *peers.OPERATORS])
def test_options_are_those_of_onnxruntime(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are equal, also if weights and inputs make the options act far from their defaults."""
    pytest.importorskip("onnxruntime")
    params, x, dy = peers.problem(SHAPE, option)
    scaled = {name: 3 * a for name, a in params.items()}, 3 * x, dy
    monkeypatch.setattr(peers, "problem", lambda *_: scaled)
    try:
        ours, theirs = (peers.builder(f"{n}+{option}")(SHAPE, 1) for n in ("reference", "onnxruntime"))
        np.testing.assert_allclose(ours.forward(), theirs.forward(), rtol=0, atol=1e-6)
    finally:
        xplstm.use_kernel(None)


EVERY_PEER = [
    f"{name}{end}" for name, peer in peers.PEERS.items() for end in ("", *(f"+{o}" for o in peer.options))
]


# What a peer asks its users to replace is asked here on purpose.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("shape", [Shape(6, 3, 16, 16), Shape(1, 3, 16, 16)], ids=["sequence", "step"])
@pytest.mark.parametrize("name", EVERY_PEER)
def test_every_peer_is_an_lstm(name: str, shape: Shape) -> None:
    """y and dx equal those of the reference, within the precision of the peer."""
    base, option = name.partition("+")[0], peers.option_of(name)
    for package in peers.PEERS[base].needs:
        pytest.importorskip(package)
    if name == "onnxruntime+int8x8":
        bytesums.skip_where_they_saturate()
    variant = f"+{option}" if option in peers.VARIANTS or option in peers.CELLS else ""
    theirs, ours = peers.builder(name)(shape, 1), peers.builder(f"reference{variant}")(shape, 1)
    try:
        bound = peers.ALLOWED.get(option, 1e-5)
        np.testing.assert_allclose(theirs.forward().ravel(), ours.forward().ravel(), rtol=0, atol=bound)
        if theirs.train is not None and ours.train is not None:
            np.testing.assert_allclose(theirs.train(), ours.train(), rtol=0, atol=bound)
    finally:
        xplstm.use_kernel(None)


def engines_of(file: Path) -> dict[tuple[str, Shape], list[str]]:
    """Return the engines in the file of a run, by operation and shape."""
    tables = results.group_timed(results.load(file).rows)
    return {
        (what, shape): list(rows) for (what, _), shapes in tables.items() for shape, rows in shapes.items()
    }


@pytest.mark.slow
def test_a_small_run_on_arrays_of_others(tmp_path: Path) -> None:
    """A run ends with an error if results differ by more than rounding."""
    numbers = tmp_path / "times.json"
    argv = [
        "bench",
        "--arrays",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--shape",
        "4,2,3,5",
        "--shape",
        "1,2,3,5",
    ]
    assert command.main([*argv, "--json", str(numbers)]) == 0
    names = peers.available_arrays()
    assert engines_of(numbers) == dict.fromkeys(
        [("forward", SHAPE), ("train", SHAPE), ("step", Shape(1, 2, 3, 5))], names
    )
    assert [name.partition("@")[2] for name in names if "@" in name] == [
        n for n in names if n in peers.ON_ARRAYS
    ]


@pytest.mark.slow
def test_a_small_run_of_precisions(tmp_path: Path) -> None:
    """The run does not time training, which has no such precision."""
    numbers = tmp_path / "times.json"
    argv = ["bench", "--precisions", "--shape", "4,2,16,16", "--repeats", "1", "--threads", "1"]
    if peers.available_precisions()[0] != "native":
        pytest.skip("native is not compiled")
    if "onnxruntime+int8x8" in peers.available_precisions():
        bytesums.skip_where_they_saturate()
    assert command.main([*argv, "--json", str(numbers)]) == 0
    assert engines_of(numbers) == {("forward", Shape(4, 2, 16, 16)): peers.available_precisions()}


@pytest.mark.slow
def test_a_small_run_of_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = tmp_path / "times.json"
    argv = ["bench", "--choices", "--shape", "4,2,3,5", "--repeats", "1", "--threads", "2"]
    assert command.main([*argv, "--json", str(numbers)]) == 0
    names = peers.available_choices()
    assert engines_of(numbers) == dict.fromkeys([("forward", SHAPE), ("train", SHAPE)], names)
    assert "largest regret: " in capsys.readouterr().out


def test_the_regret_is_of_least_times() -> None:
    times = {"chosen": [9.0, 3.0], "a": [5.0, 2.0], "b": [4.0, 4.0]}
    assert results.regret(rows_of(times)) == ("a", 0.5)
    assert results.regret(rows_of({"chosen": [1.0], "a": [2.0]})) == ("a", 0.0)
    found = rows_of({"chosen": [3.0], "a": [2.0]}, what="train")
    assert results.regrets(found.values()).splitlines()[1].split() == [
        "train",
        "1",
        "thread",
        "4,2,3,5",
        "a",
        "50.0%",
    ]


@pytest.mark.slow
def test_a_small_run_of_variants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["numpy_inplace", "reference+peepholes", "reference+all"]
    monkeypatch.setattr(bench, "available_variants", lambda: names)
    numbers = tmp_path / "times.json"
    argv = ["bench", "--variants", "--shape", "4,2,3,5", "--repeats", "1", "--threads", "1"]
    assert command.main([*argv, "--json", str(numbers)]) == 0
    assert engines_of(numbers)["train", SHAPE] == names
    assert "x/reference+all" in capsys.readouterr().out
