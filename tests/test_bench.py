"""The benchmark command: it compares what is equal, refuses what is not, and prints a table that lines up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xplstm import __main__ as command
from xplstm.cli import bench
from xplstm.cli.engines import Shape


def test_a_small_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "available", lambda: ["numpy_inplace", "reference"])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    file = tmp_path / "times.json"
    argv = [
        "bench",
        "--shape",
        "4,2,3,5",
        "--shape",
        "1,1,3,5",
        "--repeats",
        "2",
        "--threads",
        "1",
        "--json",
        str(file),
    ]
    assert command.main(argv) == 0
    report = json.loads(file.read_text())
    assert set(report["times"]["forward"]) == {"4,2,3,5", "1,1,3,5"}
    assert set(report["times"]["train"]) == {"4,2,3,5"}
    for times in report["times"]["forward"].values():
        assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in times.values())
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len({len(line) for line in lines[1:]}) == 1


class Fake:
    """An engine that gives a fixed result."""

    def __init__(self, name: str, result: list[float]) -> None:
        self.name = name
        self._result = np.asarray(result, dtype=np.float32)

    def result(self, _: str) -> np.ndarray:
        return self._result


def test_unequal_results_are_not_compared() -> None:
    with pytest.raises(bench.UnequalError, match=r"forward at \(4, 2, 3, 5\): b and a differ by 1.0e-03"):
        bench._check_equal([Fake("a", [1.0]), Fake("b", [1.001])], "forward", Shape(4, 2, 3, 5))
    bench._check_equal([Fake("a", [1.0]), Fake("b", [1.00001])], "forward", Shape(4, 2, 3, 5))


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,0"])
def test_a_wrong_shape_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["bench", "--shape", text])
    assert "must be four positive integers T,B,I,H" in capsys.readouterr().err
