"""Check that after any failure or power loss during a save, the old or the new file is complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import xplstm
from tests.support import weightfiles
from xplstm import io

ROOT = Path(__file__).parents[2]
CALLS = ("open", "write", "fsync", "close", "replace")


class Failing:
    """Make the Nth call of some functions of `os` fail, and count the calls."""

    def __init__(self, monkeypatch, nth, short):
        self.nth, self.calls = nth, []
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name), short))

    def wrap(self, name, real, short):
        def call(*args, **options):
            self.calls.append(name)
            if len(self.calls) == self.nth:
                if name == "close":
                    real(*args)
                raise OSError(28, "No space left on device")
            if name == "write" and short:
                args = (args[0], args[1][:1000])  # the system may take a part alone
            return real(*args, **options)

        return call


@pytest.mark.parametrize("short", [False, True], ids=["whole writes", "short writes"])
@pytest.mark.parametrize("suffix", weightfiles.SUFFIXES)
def test_the_nth_failure_leaves_the_old_file_or_the_new(suffix, short, tmp_path, monkeypatch):
    """N counts up until a save succeeds, as in the tests of SQLite."""
    path = tmp_path / f"weights{suffix}"
    old, new = weightfiles.lstm(rng=1), weightfiles.lstm(rng=2)
    io.save(path, old)
    old_bytes = path.read_bytes()
    for nth in range(1, 200):
        path.write_bytes(old_bytes)
        with monkeypatch.context() as patch:
            failing = Failing(patch, nth, short)
            try:
                io.save(path, new)
            except OSError:
                survived = None
            else:
                survived = failing.calls
        left = path.read_bytes() == old_bytes
        expected = old if left else new
        for name, a in io.load(path).params.items():
            np.testing.assert_array_equal(a, expected.params[name])
        assert [other.name for other in tmp_path.iterdir()] == [path.name]
        if survived is not None:
            break
        # Once it is renamed, the new file stays whatever happens.
        assert left == ("replace" not in failing.calls[:-1])
    assert survived is not None
    assert survived.count("fsync") == (2 if os.name == "posix" else 1)
    assert survived.index("fsync") < survived.index("replace")
    assert not left


SAVING = """
import sys
from xplstm import LSTM, io
path, count = sys.argv[1], 0
both = [LSTM(64, 64, 2, rng=seed) for seed in (1, 2)]
while True:
    io.save(path, both[count % 2])
    count += 1
    if count == 1:
        print("first", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
@pytest.mark.parametrize("suffix", weightfiles.SUFFIXES)
def test_killed_at_any_moment_the_file_is_whole(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    both = [xplstm.LSTM(64, 64, 2, rng=seed) for seed in (1, 2)]
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(8):
        program = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with program:
            program.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            os.kill(program.pid, signal.SIGKILL)
        found = io.load(path).params["weight_hh_l1"]
        (which,) = [k for k, lstm in enumerate(both) if np.array_equal(found, lstm.params["weight_hh_l1"])]
        seen.add(which)
    assert seen <= {0, 1}


posix = pytest.mark.skipif(os.name != "posix", reason="permissions and pipes are POSIX's")


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "weights.npz"
    path.touch()
    path.chmod(mode)
    io.save(path, weightfiles.lstm(rng=1))
    assert path.stat().st_mode & 0o777 == mode


@posix
def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "weights.npz", tmp_path / "link.npz"
    link.symlink_to(target)
    for rng in (1, 2):
        io.save(link, weightfiles.lstm(rng=rng))
        assert link.is_symlink()
        assert target.is_file()
        assert [other.name for other in target.parent.iterdir()] == [target.name]


@posix
def test_a_pipe_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        io.save(path, weightfiles.lstm(rng=1))
    assert path.is_fifo()


@posix
def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "weights.npz"
    old, young, locked, foreign = (
        tmp_path / name
        for name in (
            ".weights.npz.01234567.tmp",
            ".weights.npz.12345678.tmp",
            ".weights.npz.23456789.tmp",
            ".weights.npz.mine.tmp",
        )
    )
    for file in (old, young, locked, foreign):
        file.touch()
        if file != young:
            os.utime(file, (0, 0))
    import fcntl

    with locked.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        io.save(path, weightfiles.lstm(rng=1))
    assert sorted(tmp_path.iterdir()) == sorted([path, young, locked, foreign])
