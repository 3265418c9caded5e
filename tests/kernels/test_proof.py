"""Check proofs on a device: records in a file, and one decision per process, with the stand-in for CuPy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.cuda_emulation import compiled, standin
from xplstm import _dispatch
from xplstm._problem import Problem
from xplstm.cells.lstm import STANDARD
from xplstm.kernels import cupy_fused, cupy_persistent
from xplstm.kernels._cuda import launch, proof, trials

pytestmark = [
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here"),
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
]
NAME = proof.name_of("cupy_persistent", "float32")


@pytest.fixture
def cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Provide the stand-in with its own cache."""
    with standin.installed() as cupy:
        monkeypatch.setenv(proof.FOLDER, str(tmp_path / "a" / "proofs"))
        yield cupy


def problem(**changes: Any) -> Problem:
    xp, device = standin.LIBRARY, standin.Device(0)
    return Problem(
        xp, "cupy", device, "float32", 5, 4, 3, 130, 0, True, (False,), "all", False, STANDARD
    )._replace(**changes)


def recorded(reason: str | None = None) -> Path:
    """Record a verdict for cupy_persistent in float32; return the file."""
    key = proof.identity(0)
    proof.record(key, NAME, proof.verdict(reason))
    proof.forget()
    return proof.file_of(key)


@pytest.mark.usefixtures("cupy")
def test_without_a_record_a_kernel_that_waits_is_not_chosen() -> None:
    assert _dispatch.select(problem()).name == "cupy_fused"
    reason = _dispatch.why_not("cupy_persistent", problem())
    assert reason == f"{proof.NOT_PROVEN}; use_kernel('cupy_persistent') runs it"
    with xplstm.use_kernel("cupy_persistent"):
        assert _dispatch.select(problem()).name == "cupy_persistent"


@pytest.mark.usefixtures("cupy")
def test_a_proven_kernel_is_chosen_for_its_kind_of_numbers_and_device_alone() -> None:
    recorded()
    chosen = _dispatch.select(problem())
    assert chosen.name == "cupy_persistent"
    assert _dispatch.proof(chosen, problem()).startswith("passed its trials on this device on 20")
    for other in ({"precision": "tf32"}, {"dtype": "float64"}):
        assert _dispatch.select(problem(**other)).name == "cupy_fused"
    # The stand-in's second device has another name.
    assert _dispatch.select(problem(device=standin.Device(1))).name == "cupy_fused"


def shipped(folder: Path, monkeypatch: pytest.MonkeyPatch, reason: str | None = None) -> Path:
    """Replace the shipped proofs with an invented proof; return the file."""
    monkeypatch.setattr(proof, "SHIPPED", folder)
    path = recorded(reason)
    folder.mkdir()
    return path.rename(folder / path.name)


@pytest.mark.usefixtures("cupy")
def test_the_package_may_have_proofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shipped(tmp_path / "shipped", monkeypatch)
    path.chmod(0o644)
    chosen = _dispatch.select(problem())
    assert chosen.name == "cupy_persistent"
    assert "on an equal device, in a run of the project, on 20" in _dispatch.proof(chosen, problem())
    assert _dispatch.select(problem(device=standin.Device(1))).name == "cupy_fused"
    recorded("two streams: y has other bits")
    assert _dispatch.select(problem()).name == "cupy_fused", "the user's own comes first"


@pytest.mark.usefixtures("cupy")
def test_a_failure_that_the_package_has_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shipped(tmp_path / "shipped", monkeypatch, "4096 steps: y is off")
    assert _dispatch.select(problem()).name == "cupy_fused"
    reason = str(_dispatch.why_not("cupy_persistent", problem()))
    assert reason.startswith(
        "the kernel failed its trials on an equal device, in a run of the project, on 20"
    )
    path.write_text("{")
    proof.forget()
    reason = str(_dispatch.why_not("cupy_persistent", problem()))
    assert reason.startswith(f"{proof.NOT_PROVEN}; the package's proof is ignored: ")


def test_every_proof_of_the_package_is_well_formed() -> None:
    """There is no proof yet, because nothing has run on a GPU."""
    for path in proof.SHIPPED.glob("*.json"):
        key = json.loads(path.read_text(encoding="utf-8"))["key"]
        assert proof._verdicts(proof._content(path, private=False), key)
        assert path.name == proof.file_of(key).name


@pytest.mark.usefixtures("cupy")
def test_a_kernel_that_failed_is_never_chosen() -> None:
    recorded("two streams: y has other bits")
    assert _dispatch.select(problem()).name == "cupy_fused"
    reason = str(_dispatch.why_not("cupy_persistent", problem()))
    assert reason.startswith("the kernel failed its trials on this device on 20")
    assert "two streams: y has other bits" in reason


@pytest.mark.usefixtures("cupy")
def test_a_process_decides_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later calls open no file, query no device, hash no source and check no number."""
    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*args: Any) -> Any:
            calls[name] += 1
            return function(*args)

        monkeypatch.setattr(module, name, call)

    for module, name in ((proof, "read"), (proof, "sources"), (proof, "_decide"), (trials, "check")):
        counted(module, name)
    monkeypatch.setattr(cupy_persistent, "slower", lambda _: None)
    recorded()
    for _ in range(3):
        assert _dispatch.select(problem()).name == "cupy_persistent"
        assert _dispatch.select(problem(proj_size=2)).name == "cupy_fused"
    first = calls.copy()
    for _ in range(20):
        _dispatch.select(problem())
        _dispatch.select(problem(proj_size=2))
    assert calls == first
    assert first["check"] == 1
    assert first["_decide"] == 2


@pytest.mark.usefixtures("cupy")
def test_what_needs_no_trials_is_checked_at_first_use_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    standin.launched.clear()
    assert _dispatch.select(problem()).name == "cupy_fused"
    assert "forward_gates" in standin.launched
    assert "backward_projected" in standin.launched
    proof.forget()
    monkeypatch.setattr(trials, "check", lambda *_: pytest.fail("another process has checked it"))
    assert _dispatch.select(problem()).name == "cupy_fused"


FAULTS = {
    "wrong cell": ("product(gate[0], gate[2])", "product(gate[0], gate[3])"),
    "wrong gradient": ("dc = dc_new * f;", "dc = dc_new;"),
    "padding is read": (
        "f.y[y_row * P + at.unit] = valid ? h_new",
        "f.y[y_row * P + at.unit] = true ? h_new",
    ),
}


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_wrong_numbers_are_found_at_first_use(fault: tuple[str, str]) -> None:
    with compiled.faulty(fault):
        assert _dispatch.select(problem()).name == "cupy_elementwise"
    assert "has an error of" in str(_dispatch.why_not("cupy_fused", problem()))
    proof.forget()
    assert "the kernel failed its trials" in str(_dispatch.why_not("cupy_fused", problem())), "it is recorded"


@pytest.mark.usefixtures("cupy")
def test_a_check_that_cannot_run_leaves_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        msg = "out of memory"
        raise MemoryError(msg)

    monkeypatch.setattr(trials, "check", full)
    assert _dispatch.select(problem()).name == "cupy_elementwise"
    reason = str(_dispatch.why_not("cupy_fused", problem()))
    assert reason.startswith("the kernel's results could not be checked: MemoryError: out of memory")
    assert not proof.folder().exists()


def test_a_device_that_cannot_be_asked_has_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    proof.forget()
    try:
        found = proof.decide("cupy_persistent", "float32", standin.Device(0))
    finally:
        proof.forget()
    assert not found.passed
    assert found.text.startswith("this device cannot be identified: ")


@pytest.mark.usefixtures("cupy")
def test_records_are_private() -> None:
    path = recorded()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert proof.read(path, proof.identity(0))[NAME].passed


@pytest.mark.parametrize("what", ["driver", "cupy", "nvrtc", "device", "sources", "share"])
def test_a_proof_is_of_one_device_and_version(what: str, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded()
    assert _dispatch.select(problem()).name == "cupy_persistent"
    if what == "driver":
        monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 13010)
    elif what == "cupy":
        monkeypatch.setattr(cupy, "__version__", "14.3.0")
    elif what == "nvrtc":
        monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", lambda: (13, 1))
    elif what == "device":
        monkeypatch.setitem(standin.ATTRIBUTES, "MultiProcessorCount", 5)
    elif what == "sources":
        monkeypatch.setattr(proof, "sources", lambda: "0" * 64)
    else:
        monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "50")
    proof.forget()
    assert _dispatch.select(problem()).name == "cupy_fused"
    assert "the kernel is not proven on this device" in str(_dispatch.why_not("cupy_persistent", problem()))


@pytest.mark.parametrize("changed", ["kernels/_cuda/walk.cuh", "kernels/cupy_persistent.py", "cli/trials.py"])
def test_the_digest_covers_sources_and_what_launches_and_tries_them(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "xplstm"
    shutil.copytree(launch.SOURCES.parents[1], package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(launch, "SOURCES", package / "kernels" / "_cuda")
    assert proof.sources.__wrapped__() == proof.sources()
    (package / changed).write_text((package / changed).read_text() + " ")
    assert proof.sources.__wrapped__() != proof.sources()


def content(**changes: Any) -> dict[str, Any]:
    """Return what `record` would write, with changes in the only record."""
    found = {**proof.verdict(None)._asdict(), **changes}
    return {"format": proof.FORMAT, "key": proof.identity(0), "proofs": {NAME: found}}


HOSTILE: dict[str, Callable[[], Any]] = {
    "empty": lambda: b"",
    "truncated": lambda: json.dumps(content()).encode()[:-9],
    "no dict": lambda: [],
    "no UTF-8": lambda: b"\xff\xfe{}",
    "nested": lambda: b"[" * 60000,
    "large": lambda: json.dumps(content()).encode() + b" " * proof.LARGEST,
    "half a format": lambda: {"format": 1},
    "another format": lambda: content() | {"format": 2},
    "another device": lambda: content() | {"key": proof.identity(1)},
    "a word for passed": lambda: content(passed="yes"),
    "a number for passed": lambda: content(passed=1),
    "escapes": lambda: content(reason="\x1b[2J"),
    "a long reason": lambda: content(reason="a" * 501),
    "no date": lambda: content(date="today"),
    "more in a record": lambda: content(more=1),
    "records in a list": lambda: content() | {"proofs": [content()["proofs"][NAME]]},
    "a record of NaN": lambda: content() | {"proofs": {NAME: float("nan")}},
}


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_or_hostile_file_proves_nothing_and_is_replaced(hostile: Callable[[], Any]) -> None:
    path = recorded()
    assert proof.read(path, proof.identity(0))
    made = hostile()
    path.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
    proof.forget()
    reason = str(_dispatch.why_not("cupy_persistent", problem()))
    assert reason.startswith(f"{proof.NOT_PROVEN}; {path} is ignored: ")
    assert reason.isprintable()
    recorded()
    assert _dispatch.select(problem()).name == "cupy_persistent"


def writable_by_others(path: Path) -> None:
    path.chmod(0o620)


def symbolic_link(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("change", [writable_by_others, symbolic_link, pipe])
def test_a_file_that_others_may_have_written_proves_nothing(change: Callable[[Path], None]) -> None:
    path = recorded()
    change(path)
    assert f"{path} is ignored: " in str(_dispatch.why_not("cupy_persistent", problem()))


@pytest.mark.usefixtures("cupy")
def test_a_cache_that_cannot_be_written_costs_a_check_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(proof.FOLDER, str(tmp_path / "file" / "proofs"))
    for _ in range(2):
        standin.launched.clear()
        proof.forget()
        assert _dispatch.select(problem()).name == "cupy_fused"
        assert "forward_gates" in standin.launched
    with pytest.raises(OSError, match="file"):
        recorded()


RECORD = """
import sys
from xplstm.kernels._cuda import proof
for n in range(5):
    proof.record({"device": "one"}, f"kernel {sys.argv[1]} {n}", proof.verdict(None))
"""


@pytest.mark.slow
def test_eight_processes_record_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(proof.FOLDER, str(tmp_path / "proofs"))
    command = [sys.executable, "-c", RECORD]
    running = [subprocess.Popen([*command, str(n)], cwd=Path(__file__).parents[2]) for n in range(8)]
    assert [process.wait() for process in running] == [0] * 8
    key = {"device": "one"}
    assert len(proof.read(proof.file_of(key), key)) == 40
    assert {path.suffix for path in (tmp_path / "proofs").iterdir()} == {".json", ".lock"}


def test_where_records_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(proof.FOLDER, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/user")
    assert proof.folder() == Path("/of/user/xplstm/proofs")
    monkeypatch.setenv(proof.FOLDER, "/elsewhere")
    assert proof.folder() == Path("/elsewhere")


@pytest.mark.usefixtures("cupy")
def test_the_kernels_ask_for_their_own_records() -> None:
    reference = _dispatch.load("reference")
    assert not cupy_persistent.proof(problem(), reference).passed
    assert cupy_fused.proof(problem(), reference).passed
