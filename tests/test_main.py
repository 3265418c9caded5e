"""``python -m xplstm`` and what it prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

import xplstm
from xplstm import __main__ as command
from xplstm import _array, _dispatch


def test_show_config_names_every_backend_and_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    xplstm.show_config()
    text = capsys.readouterr().out
    for name in (*_array.BACKENDS, *_dispatch.TABLE, xplstm.__version__):
        assert name in text


def test_info_is_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    xplstm.show_config()
    want = capsys.readouterr().out
    assert command.main(["info"]) == 0
    assert capsys.readouterr().out == want


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
