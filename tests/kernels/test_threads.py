"""Check the number of threads of the compiled kernel, its settings, and other busy processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import xplstm
from tests.support.interpreter import started
from xplstm.kernels import _threads, native

if native.WHY_NOT and "native" not in os.environ.get("XPLSTM_REQUIRE", ""):
    pytest.skip(native.WHY_NOT, allow_module_level=True)


@pytest.mark.parametrize("value", ["abc", "-1", "0", "²", "1.5", "9" * 30, "9" * 5000])
def test_a_wrong_number_of_threads_is_refused_by_name(value: str) -> None:
    code = "import xplstm\ntry: from xplstm.kernels import native\nexcept xplstm.XplstmError as e: print(e)"
    assert "XPLSTM_NUM_THREADS=" in started(code, XPLSTM_NUM_THREADS=value).stdout


def test_a_wrong_number_of_threads_is_refused_at_the_first_use_with_threadpoolctl() -> None:
    """threadpoolctl lists the threads of the kernel, but the import of xplstm does not load the kernel."""
    pytest.importorskip("threadpoolctl")
    code = "import threadpoolctl, xplstm\nx = xplstm.LSTM(1, 1).params['weight_ih_l0'][:, None]\n"
    for use in ("xplstm.LSTM(1, 1)(x)", "threadpoolctl.threadpool_info()"):
        code += f"try: {use}\nexcept xplstm.ArgumentError as e: print(e)\n"
    assert started(code, XPLSTM_NUM_THREADS="0").stdout.count("XPLSTM_NUM_THREADS=0 must be") == 2


@pytest.mark.parametrize(("value", "count"), [(" 4 ", 4), ("007", 7)])
def test_spaces_around_a_number_of_threads(value: str, count: int) -> None:
    code = "from xplstm.kernels import native; print(native.THREADS)"
    assert int(started(code, XPLSTM_NUM_THREADS=value).stdout) == count


@pytest.mark.parametrize("value", ["abc", "²", "-3", "9" * 5000])
def test_what_other_libraries_misread_is_left_to_them(value: str) -> None:
    code = "from xplstm.kernels import native; print(native.THREADS)"
    assert started(code, XPLSTM_NUM_THREADS="", OMP_NUM_THREADS=value).stdout.strip() == "0"


def test_threads_are_chosen_at_run_time() -> None:
    with xplstm.use_threads(3):
        assert _threads.count(7) == 3
    assert _threads.count(7) == 7
    assert _threads.count(0) < 0
    for wrong in (0, -1, True, 1.5, "2", 2**70):
        with pytest.raises(xplstm.XplstmError, match="count="):
            xplstm.use_threads(wrong)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/gone", {"cpu.max": "400000 100000"}, 4),
        ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 2**31 - 1),
        ("", {}, 2**31 - 1),
    ],
)
def test_the_quota_of_control_groups(cgroup, files, expected, monkeypatch, tmp_path):
    for name, text in {
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{n}": t for n, t in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(_threads, "ROOT", tmp_path)
    assert _threads.quota() == expected


AFFINITY = """
import os, numpy as np, xplstm
lstm, x = xplstm.LSTM(256, 256, rng=0), np.ones((50, 8, 256), "float32")
allowed = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(allowed)})
want = lstm(x)[0]
print(len(os.listdir("/proc/self/task")))
os.sched_setaffinity(0, allowed)
assert np.array_equal(lstm(x)[0], want)
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity cannot be set here")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor")
def test_processors_taken_away_get_no_threads() -> None:
    one, several = started(
        AFFINITY, XPLSTM_NUM_THREADS="", OMP_NUM_THREADS="", OPENBLAS_NUM_THREADS="1"
    ).stdout.split()
    assert int(one) == 1
    assert int(several) > 1


CROWDED = """
import os, subprocess, sys, time, numpy as np, xplstm
from xplstm.kernels import _engine
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
layers = [
    xplstm.LSTM(256, 256, rng=0),
    xplstm.LSTM(256, 512, rng=1, proj_size=256),
    xplstm.LSTM(128, 256, rng=2, bidirectional=True),
]
def answers(lstm):
    x = np.random.default_rng(0).normal(size=(300, 1, lstm.input_size)).astype("float32")
    y, state, pullback = lstm.vjp(x)
    dx, dstate, dparams = pullback(y, state)
    return [lstm(x)[0], y, *state, dx, *dstate, *dparams.values()]
with xplstm.use_threads(1):
    wanted = [answers(lstm) for lstm in layers]
# The loops end with this process, even if it is killed.
loop = "import os; parent = os.getppid()\\nwhile os.getppid() == parent: pass"
busy = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(4)]
end, alone = time.monotonic() + 40, [0] * len(layers)
try:
    while min(alone) < 2 and time.monotonic() < end:
        for k, (lstm, want) in enumerate(zip(layers, wanted)):
            before = _engine.walks_alone()
            with xplstm.use_threads(4 if lstm.bidirectional else 2):
                got = answers(lstm)
            alone[k] += _engine.walks_alone() - before
            assert all(np.array_equal(a, b) for a, b in zip(got, want))
finally:
    for process in busy:
        process.kill()
print(*alone)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity cannot be set here")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor")
@pytest.mark.slow
def test_one_thread_ends_a_walk_where_others_have_the_processors() -> None:
    """Bits are equal, forward and backward, with a projection and two directions."""
    environment = {"XPLSTM_NUM_THREADS": "", "OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "1"}
    assert min(map(int, started(CROWDED, **environment).stdout.split())) > 0


LIMITED = """
import os, numpy as np, threadpoolctl, xplstm
from threadpoolctl import threadpool_info, threadpool_limits
from xplstm.kernels import _threads, native
def listed():
    found = [pool for pool in threadpool_info() if pool["user_api"] == "xplstm"]
    assert [pool["version"] for pool in found] == [xplstm.__version__]
    return found[0]["num_threads"]
def counted():
    return abs(_threads.count(native.THREADS))
lstm, x = xplstm.LSTM(256, 256, rng=0), np.ones((50, 8, 256), "float32")
free = listed()
print(free)
with threadpool_limits(1):
    assert listed() == counted() == 1
    want = lstm(x)[0]
    print(len(os.listdir("/proc/self/task")))
    with threadpool_limits(2), xplstm.use_threads(5):
        assert listed() == counted() == 2
    with xplstm.use_threads(5):
        assert counted() == 1
    assert counted() == 1
assert np.array_equal(lstm(x)[0], want)
print(len(os.listdir("/proc/self/task")))
with threadpool_limits({"blas": 1}):
    assert listed() == counted() == free
with xplstm.use_threads(1), threadpool_limits(2):
    assert counted() == 1
xplstm.use_threads(7)
assert listed() == counted() == 7
with threadpool_limits({"xplstm": 3}):
    assert listed() == counted() == 3
assert listed() == counted() == 7
xplstm.use_threads(None)
assert _threads.count(0) < 0
"""


def test_threadpoolctl_lists_and_limits_the_threads() -> None:
    """The limit applies before the compiled kernel is loaded, and the old number returns afterwards."""
    pytest.importorskip("threadpoolctl")
    free, limited, after = started(
        LIMITED, XPLSTM_NUM_THREADS="3", OMP_NUM_THREADS="", OPENBLAS_NUM_THREADS="1"
    ).stdout.split()
    assert (int(free), int(limited)) == (3, 1)
    assert int(after) > 1


FOREIGN = """
import ctypes, shutil, threadpoolctl, xplstm
from xplstm.kernels import _engine
ctypes.CDLL(shutil.copy(_engine.__file__, {folder!r}))
print(*(pool["filepath"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "xplstm"))
"""


def test_a_library_of_the_same_name_is_not_listed(tmp_path: Path) -> None:
    pytest.importorskip("threadpoolctl")
    (found,) = started(FOREIGN.format(folder=str(tmp_path))).stdout.split()
    assert Path(found).samefile(native._engine.__file__)


@pytest.mark.parametrize(
    "code",
    [
        "import xplstm, threadpoolctl",
        "import sys, types; sys.modules['threadpoolctl'] = types.ModuleType('old'); import xplstm",
    ],
)
def test_without_a_threadpoolctl_that_registers_nothing_is_loaded(code: str) -> None:
    code += "\nimport sys; print('xplstm.kernels.native' in sys.modules)"
    assert started(code).stdout.split() == ["False"]
