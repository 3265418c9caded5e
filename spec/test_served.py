"""Check that a subject that aborts, hangs or prints fails only that request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spec.peers.torch import Subject as Torch
from spec.records import RECORDS, arrays, errors
from spec.served import Served
from spec.stdio import Failed
from spec.subject import Arrays, Refused, Unsupported
from spec.test_stdio import FOLDER, suite

SUBJECT = """
import os, time
from spec.wrong import LSTM

class Subject(LSTM):
    def describe(self): return {"name": "mine", "version": "1", "library": "mine", "kernel": ""}
    def why_unavailable(self): return None
    def call(self, op, config, arrays):
        print("a line of the library", flush=True)
        B = len(arrays["h_0"])
        if B == 100: os.abort()
        if B == 101: time.sleep(60)
        if B == 102: raise ZeroDivisionError("a mistake")
        if B == 103: raise __import__("spec.subject").subject.Refused("shape", "no")
        if B == 104: raise __import__("spec.subject").subject.Unsupported("not here")
        if arrays["x"].shape[-1] == ABORTS_AT: os.abort()
        return super().call(op, config, arrays)
"""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    (tmp_path / "mine.py").write_text(SUBJECT.replace("ABORTS_AT", "-1"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{FOLDER.parent}")
    found = Served("mine:Subject", Torch(), patience=20)
    yield found
    found.close()


def ask(subject: Served, B: int) -> Arrays:
    return subject.call("layer", {}, {"h_0": np.zeros((B, 1)), "x": np.zeros((1, B, 1))})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_numbers_are_those_of_the_subject(served: Served, dtype: str) -> None:
    record = RECORDS["sequence"]
    got = served.call("layer", record["config"], arrays(record["inputs"], dtype))
    assert {a.dtype.name for a in got.values()} == {dtype}
    assert max(errors(got, record["outputs"], dtype).values()) <= record["tolerance"]["outputs"]


def test_bfloat16_reaches_a_subject_that_does_not_import_it(served: Served) -> None:
    pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by ml_dtypes alone")
    record = RECORDS["sequence"]
    got = served.call("layer", record["config"], arrays(record["inputs"], "bfloat16"))
    assert {a.dtype.name for a in got.values()} == {"bfloat16"}


def test_what_ends_a_call_or_the_process_ends_one_question(served: Served) -> None:
    with pytest.raises(RuntimeError, match=r"ended without an answer, exit status -6"):
        ask(served, 100)
    with pytest.raises(Failed, match="ZeroDivisionError: a mistake"):
        ask(served, 102)
    with pytest.raises(Refused, match="no"):
        ask(served, 103)
    with pytest.raises(Unsupported, match="not here"):
        ask(served, 104)
    served.patience = 2
    with pytest.raises(RuntimeError, match="no answer within 2 s"):
        ask(served, 101)
    served.patience = 20
    record = RECORDS["cell"]
    assert served.call("layer", record["config"], arrays(record["inputs"], "float64"))


def test_suite_goes_past_an_abort(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        SUBJECT.replace("ABORTS_AT", str(RECORDS["sequence"]["config"]["input_size"]))
    )
    chosen = ("--subject", "mine:Subject", "-k", "test_outputs and (cell or sequence) and float64")
    found = suite("--isolated", *chosen, path=f"{tmp_path}:{FOLDER.parent}")
    assert found.returncode == 1, found.stdout
    assert re.search(r"FAILED .*sequence-float64", found.stdout)
    assert re.search(r"1 failed, \d+ passed", found.stdout)


def test_isolation_needs_a_subject() -> None:
    found = suite("--isolated", "--collect-only")
    assert found.returncode == 4
    assert "--isolated needs --subject" in found.stderr
