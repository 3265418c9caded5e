"""Check that training on a long sequence takes no more memory than PyTorch."""

import importlib.util

import pytest

from tests.benchmarks import memory
from xplstm import _dispatch

NEEDS = {
    "PyTorch": importlib.util.find_spec("torch") is not None,
    "a Linux that reports a process's memory": memory.STATUS.exists(),
    "the compiled kernel": not _dispatch.why_missing("native"),
}
MISSING = [what for what, there in NEEDS.items() if not there]


@pytest.mark.backend("torch")
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_no_more_than_pytorch():
    assert memory.measure("xplstm") <= memory.measure("torch")
