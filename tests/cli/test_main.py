"""Check the output of ``python -m xplstm``."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xplstm
import xplstm.io
from xplstm import __main__ as command
from xplstm import _array, _dispatch
from xplstm.cli import info

ROOT = Path(__file__).parents[2]


def test_show_config_names_every_backend_and_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    xplstm.show_config()
    text = capsys.readouterr().out
    for name in (*_array.BACKENDS, *_dispatch.TABLE, xplstm.__version__):
        assert name in text


@pytest.mark.slow
def test_info_says_of_each_kernel_whether_its_package_is_missing() -> None:
    """JAX is hidden like a package that is not installed."""
    code = (
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'jax' else find(name, *a)\n"
        "import xplstm\n"
        "xplstm.show_config()\n"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in text.splitlines() if line.startswith("  jax_scan")]
    assert line.split(maxsplit=1)[1] == "not usable: the package 'jax' is not installed (pip install jax)"
    assert "  reference" in text.splitlines()


def test_the_version_is_the_one_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--version"])
    assert capsys.readouterr().out == f"xplstm {xplstm.__version__}\n"


@pytest.mark.slow
def test_info_is_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    xplstm.show_config()
    want = capsys.readouterr().out
    assert command.main(["info"]) == 0
    assert capsys.readouterr().out == want


def test_inspect_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    xplstm.io.save(path, xplstm.LSTM(3, 2))
    assert command.main(["inspect", str(path)]) == 0
    assert capsys.readouterr().out == f"{xplstm.io.inspect(path)}\n"
    path.write_bytes(b"<!DOCTYPE html>")
    assert command.main(["inspect", str(path)]) == 2
    assert "a web page" in capsys.readouterr().err


def test_help_lists_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xplstm", "--help"], capture_output=True, text=True, check=True
    )
    for name in command.COMMANDS:
        assert name in done.stdout


def test_an_error_of_ours_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_array, "why_unusable", lambda _: "no such luck")
    assert command.main(["example", "--backend", "cupy"]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "no such luck" in text


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which {xplstm} is the program."""
    line = command.format(xplstm=f"{shlex.quote(sys.executable)} -m xplstm")
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=120, env=env, check=False
    )


posix = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="needs a POSIX shell")


@posix
@pytest.mark.parametrize("name", ["info", "example"])
def test_a_reader_that_has_enough_ends_it_in_silence(name: str) -> None:
    done = shell(f"{{xplstm}} {name} | head -1; exit ${{{{PIPESTATUS[0]}}}}", PYTHONUNBUFFERED="1")
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.returncode in (0, 141)


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered: str) -> None:
    done = shell("{xplstm} info > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert command.main(["info"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."


@pytest.mark.parametrize(
    "shape", ["99999999999,1,1,1", "1,1,1,40000", f"1,1,1,{10**400}", "2,100000,10000,1"]
)
def test_bench_refuses_a_shape_that_memory_cannot_hold(
    shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["bench", "--shape", shape]) == 2
    text = capsys.readouterr().err
    assert f"shape={shape}" in text
    assert text.count("\n") == 1
