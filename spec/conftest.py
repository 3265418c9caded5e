"""The subjects: xplstm on every array library with every kernel, present or not."""

from __future__ import annotations

import os

import pytest

from spec.adapter import LIBRARIES, Adapter, kernels

REQUIRED = {name.strip() for name in os.environ.get("XPLSTM_REQUIRE", "").split(",")}
SUBJECTS = [Adapter(library, kernel) for library in LIBRARIES for kernel in kernels()]


@pytest.fixture(params=SUBJECTS, ids=lambda adapter: f"{adapter.library}:{adapter.kernel}")
def subject(request: pytest.FixtureRequest) -> Adapter:
    """An implementation under test; one that cannot run shows as skipped, or fails where it is required."""
    adapter: Adapter = request.param
    reason = adapter.why_unavailable()
    if reason is not None and adapter.library in REQUIRED:
        pytest.fail(f"XPLSTM_REQUIRE asks for it: {reason}")
    if reason is not None:
        pytest.skip(reason)
    return adapter
