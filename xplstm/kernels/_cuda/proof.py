"""Look up and record proofs: whether a kernel has passed its trials on a device.

``python -m xplstm prove`` runs the trials and records passed and failed results in a file in the user's
cache. A proof is valid for one device, one version of the driver, NVRTC, cuBLAS and CuPy, and one content of
the kernels' files. A process looks up each proof once. The package may contain proofs of the project's own
runs in the same format; the user's proofs take precedence. ``prove --fit`` adds a file with the costs of a
device.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from xplstm._typing import Device, Proof
from xplstm.kernels._compiled import INTERFACE
from xplstm.kernels._cuda import launch, loop

try:
    import fcntl
except ImportError:  # Windows has no fcntl; if two processes record at once, one record may be lost
    fcntl = None  # type: ignore[assignment]

FOLDER = "XPLSTM_PROOFS"
"""The environment variable that sets the folder of proofs."""
SHIPPED = launch.SOURCES / "proofs"
"""The package's folder with proofs of the project's own runs."""
KERNELS = ("cupy_block", "cupy_persistent", "cupy_fused")
"""Names of the kernels that need a proof."""
FORMAT = 1
LARGEST = 2**16
"""The largest size of a file of proofs, in bytes."""
LONGEST = 500
"""The largest length of a reason, in characters."""
NOT_PROVEN = "the kernel is not proven on this device; run python -m xplstm prove"
DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
PROC_DRIVER = Path("/proc/driver/nvidia/version")

_decided: dict[tuple[str, str, int], Proof] = {}
_fitted: dict[int, dict[str, float]] = {}
_lock = threading.Lock()


class Verdict(NamedTuple):
    """The result of the trials of one kernel for one kind."""

    passed: bool
    reason: str
    """Why the kernel failed, or ""."""
    date: str


def verdict(reason: str | None) -> Verdict:
    """Return a verdict with the current date: passed if `reason` is None, else failed."""
    text = "".join(c if c.isprintable() else " " for c in reason or "")[:LONGEST]
    return Verdict(reason is None, text, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def decide(kernel: str, kind: str, device: Device, check: Callable[[], str | None] | None = None) -> Proof:
    """Return whether `kernel` is proven for a kind, from a cache that is filled once per process.

    Without a record, `check` is called unless it is None, and its result is recorded. `check` returns why the
    kernel failed, or None.
    """
    decision = _decided.get((kernel, kind, device.id))
    if decision is None:
        with _lock:
            decision = _decided.get((kernel, kind, device.id))
            if decision is None:
                decision = _decided[kernel, kind, device.id] = _decide(kernel, kind, device, check)
    return decision


def is_decided(kernel: str, kind: str, device: Device) -> bool:
    """Return whether this process has decided on a proof."""
    return (kernel, kind, device.id) in _decided


def forget() -> None:
    """Clear the cache of the process."""
    _decided.clear()
    _fitted.clear()
    identity.cache_clear()


def _decide(kernel: str, kind: str, device: Device, check: Callable[[], str | None] | None) -> Proof:
    try:
        key = identity(device.id)
    except Exception as error:  # a driver or a library may raise any exception
        return Proof(False, f"this device cannot be identified: {type(error).__name__}: {error}")
    path, trouble = file_of(key), ""
    try:
        known = read(path, key).get(name_of(kernel, kind))
    except (OSError, ValueError) as error:
        known, trouble = None, f"; {path} is ignored: {error}"
    where = "on this device"
    if known is None:
        try:
            known, where = (
                _find_shipped(key, name_of(kernel, kind)),
                "on an equal device, in a run of the project,",
            )
        except (OSError, ValueError) as error:
            trouble += f"; the package's proof is ignored: {error}"
    if known is None and check is None:
        return Proof(False, f"{NOT_PROVEN}{trouble}")
    if known is None and check is not None:
        try:
            known, where = verdict(check()), "on this device"
        except Exception as error:  # such as a missing compiler, or too little memory
            return Proof(False, f"the kernel's results could not be checked: {type(error).__name__}: {error}")
        # If the cache cannot be written, every process checks again.
        with contextlib.suppress(OSError):
            record(key, name_of(kernel, kind), known)
    assert known is not None
    if known.passed:
        return Proof(True, f"passed its trials {where} on {known.date[:10]}")
    return Proof(False, f"the kernel failed its trials {where} on {known.date[:10]}: {known.reason}")


def _find_shipped(key: dict[str, str], name: str) -> Verdict | None:
    """Return the verdict of the project's own run for this key, or None."""
    content = _content(SHIPPED / file_of(key).name, private=False)
    return None if content is None else _verdicts(content, key).get(name)


def name_of(kernel: str, kind: str) -> str:
    """Return the name of a record."""
    return f"{kernel} {kind}"


@cache
def identity(number: int) -> dict[str, str]:
    """Return the properties of device `number` and its software that identify a proof."""
    import cupy as cp
    from cupy_backends.cuda.libs import cublas

    device, runtime = cp.cuda.Device(number), cp.cuda.runtime
    with device:
        return {
            "device": runtime.getDeviceProperties(number)["name"].decode(),
            "compute capability": str(device.compute_capability),
            "multiprocessors": str(device.attributes["MultiProcessorCount"]),
            "shared bytes": str(device.attributes["MaxSharedMemoryPerBlockOptin"]),
            "share": os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", ""),
            "driver": f"{runtime.driverGetVersion()} {_driver()}".strip(),
            "runtime": str(runtime.runtimeGetVersion()),
            "nvrtc": ".".join(map(str, cp.cuda.nvrtc.getVersion())),
            "cublas": str(cublas.getVersion(cp.cuda.get_cublas_handle())),
            "cupy": str(cp.__version__),
            "loop": "in Python" if loop.why_python() else f"compiled, interface {INTERFACE}",
            "sources": sources(),
        }


def _driver() -> str:
    """Return Linux's description of the driver's build; CUDA reports only the version of its interface."""
    try:
        return PROC_DRIVER.read_text(encoding="utf-8", errors="replace").partition("\n")[0][:LONGEST]
    except OSError:
        return ""


@cache
def sources() -> str:
    """Return the digest of all files that define, launch or test the kernels."""
    package = launch.SOURCES.parents[1]
    files = [path for path in launch.SOURCES.iterdir() if path.suffix in (".cu", ".cuh", ".py")]
    files += [package / "kernels" / f"{name}.py" for name in ("_support", *KERNELS)]
    files += [package / "cli" / "trials.py"]
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def folder() -> Path:
    """Return the folder of proofs: XPLSTM_PROOFS, or a folder in the user's cache."""
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER])
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "xplstm" / "proofs"


def file_of(key: dict[str, str]) -> Path:
    """Return the path of the proofs for one key."""
    text = json.dumps(key, sort_keys=True)
    return folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def read(path: Path, key: dict[str, str]) -> dict[str, Verdict]:
    """Return the records of a file, or an empty dict if the file does not exist.

    Raises
    ------
    OSError
        If `path` is not a regular file, or other users may write to it.
    ValueError
        If the content is not in the format of `record` for `key`.
    """
    content = _content(path)
    return {} if content is None else _verdicts(content, key)


def _content(path: Path, private: bool = True) -> Any:
    """Return the JSON content of a file, or None without a file; only the user may write a `private` file."""
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        file = os.open(path, flags)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            msg = "the path is not a regular file"
            raise OSError(msg)
        if private and os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            msg = "other users may write to the file"
            raise OSError(msg)
        text = stream.read(LARGEST + 1)
    if len(text) > LARGEST:
        msg = f"the file is larger than {LARGEST} bytes"
        raise ValueError(msg)
    try:
        content = json.loads(text.decode())
    except RecursionError as error:
        msg = "the file is nested too deeply"
        raise ValueError(msg) from error
    if content is None:
        msg = "the file contains null"
        raise ValueError(msg)
    return content


def _verdicts(content: Any, key: dict[str, str]) -> dict[str, Verdict]:
    if not isinstance(content, dict) or set(content) != {"format", "key", "proofs"}:
        msg = "the file does not contain proofs"
        raise ValueError(msg)
    if content["format"] != FORMAT or content["key"] != key:
        msg = "the proofs belong to another device or to other versions"
        raise ValueError(msg)
    proofs = content["proofs"]
    if not isinstance(proofs, dict) or not all(_is_verdict(v) for v in proofs.values()):
        msg = "a record of the file does not have the expected format"
        raise ValueError(msg)
    return {name: Verdict(**found) for name, found in proofs.items()}


def _is_verdict(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and set(found) == set(Verdict._fields)
        and isinstance(found["passed"], bool)
        and isinstance(found["reason"], str)
        and len(found["reason"]) <= LONGEST
        and found["reason"].isprintable()
        and isinstance(found["date"], str)
        and DATE.fullmatch(found["date"]) is not None
    )


def record(key: dict[str, str], name: str, found: Verdict) -> None:
    """Add or replace a verdict in the file of `key`; raise OSError if the file cannot be written."""
    from xplstm.io.files._durable import write_durably

    path = file_of(key)
    with lock_file(path.with_suffix(".lock")):
        try:
            known = read(path, key)
        except (OSError, ValueError):  # an invalid file is replaced
            known = {}
        proofs = {at: v._asdict() for at, v in {**known, name: found}.items()}
        content = json.dumps({"format": FORMAT, "key": key, "proofs": proofs}, indent=1, sort_keys=True)
        write_durably(str(path), content.encode(), 0o600)


def find_costs(number: int) -> dict[str, float]:
    """Return the costs fitted on device `number`, or an empty dict, from a cache filled once per process."""
    costs = _fitted.get(number)
    if costs is None:
        try:
            key = identity(number)
            costs = read_costs(key)
        except Exception:  # a driver or a library may raise any exception; the estimates are used then
            costs = {}
        _fitted[number] = costs
    return costs


def read_costs(key: dict[str, str]) -> dict[str, float]:
    """Return the costs of a device, or an empty dict if the file does not exist.

    Raises
    ------
    OSError
        If the path is not a regular file, or other users may write to it.
    ValueError
        If the content is not in the format of `record_costs` for `key`.
    """
    content = _content(costs_file(key))
    if content is None:
        return {}
    if not isinstance(content, dict) or content.get("key") != key or content.get("format") != FORMAT:
        msg = "the costs belong to another device or to other versions"
        raise ValueError(msg)
    costs = content.get("costs")
    if not isinstance(costs, dict) or not costs or not all(_is_cost(value) for value in costs.values()):
        msg = "the file must contain at least 1 cost, all positive numbers"
        raise ValueError(msg)
    return dict(costs)


def _is_cost(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def costs_file(key: dict[str, str]) -> Path:
    """Return the path of the costs for one key."""
    return file_of(key).with_suffix(".costs.json")


def record_costs(key: dict[str, str], costs: dict[str, float]) -> None:
    """Write the costs of `key`; raise OSError if the file cannot be written."""
    from xplstm.io.files._durable import write_durably

    path = costs_file(key)
    content = json.dumps({"format": FORMAT, "key": key, "costs": costs}, indent=1, sort_keys=True)
    with lock_file(path.with_suffix(".lock")):
        write_durably(str(path), content.encode(), 0o600)


@contextlib.contextmanager
def lock_file(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file lock; create the file, and its folder with access only for the user, if necessary.

    Raises BlockingIOError if another process holds the lock and `wait` is False.
    """
    os.makedirs(path.parent.parent, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path.parent, 0o700)
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(file)
