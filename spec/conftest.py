"""The subjects: ``pytest spec --subject NAME``; a name's beginning, such as xplstm:numpy, will do."""

from __future__ import annotations

import os

import pytest

from spec import peers
from spec.adapter import LIBRARIES, SLOW, Xplstm, kernels
from spec.deviations import DEVIATIONS
from spec.stdio import Stdio
from spec.subject import Adapter

REQUIRED = {name.strip() for name in os.environ.get("XPLSTM_REQUIRE", "").split(",")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--subject", action="append", help="test these alone: xplstm:numpy, torch, onnxruntime")
    parser.addoption(
        "--stdio", metavar="COMMAND", help="test a program that answers JSON lines, and nothing else"
    )


def known() -> dict[str, Adapter]:
    """Every subject by name, present or not."""
    ours = {
        f"xplstm:{library}:{kernel}": Xplstm(library, kernel) for library in LIBRARIES for kernel in kernels()
    }
    return ours | {"torch": peers.Torch(), "onnxruntime": peers.OnnxRuntime()}


def chosen(config: pytest.Config) -> dict[str, Adapter]:
    command, names = config.getoption("--stdio"), config.getoption("--subject")
    if command:
        return {"stdio": Stdio(command)}
    # Minutes each without compilation: tested where they are asked for.
    late = tuple(f"xplstm:{library}:" for library in SLOW if library not in REQUIRED)
    found = {
        name: a
        for name, a in known().items()
        if (name.startswith(tuple(names)) if names else not name.startswith(late))
    }
    if not found:
        msg = f"--subject {names}: none of {sorted(known())}"
        raise pytest.UsageError(msg)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        subjects = chosen(metafunc.config)
        metafunc.parametrize("subject", subjects.values(), ids=subjects.keys(), indirect=True)


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Adapter:
    """An implementation under test; one that cannot run shows as skipped, or fails where it is required."""
    adapter: Adapter = request.param
    reason = adapter.why_unavailable()
    if reason is not None and adapter.describe()["library"] in REQUIRED:
        pytest.fail(f"XPLSTM_REQUIRE asks for it: {reason}")
    if reason is not None:
        pytest.skip(reason)
    return adapter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a subject is known to do otherwise; one that does not any more fails."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None or "subject" not in callspec.params:
            continue
        case = [
            item.name.partition("[")[0],
            *(str(v) for k, v in sorted(callspec.params.items()) if k != "subject"),
        ]
        name = callspec.params["subject"].describe()["name"]
        reason = DEVIATIONS.get(name, {}).get(" ".join(case))
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
