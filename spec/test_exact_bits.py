"""Compare every subject that claims the profile `exact` with its records, bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spec import exact_cases
from spec.sized import Sized, module
from spec.sized import drawn as drawn_call
from spec.subject import Adapter, Arrays, Config, Unsupported
from spec.subjects import named

RECORDS: dict[str, Any] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(exact_cases.VECTORS.glob("*.json"))
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.clauses(*record["clauses"])) for name, record in RECORDS.items()],
)
def test_every_bit(subject: Adapter, name: str) -> None:
    record = RECORDS[name]
    if record["dtype"] == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by ml_dtypes alone")
    given = {key: np.array(a, record["dtype"]) for key, a in exact_cases.inputs(record).items()}
    try:
        got = subject.call(record["op"], record["config"] | {"profile": "exact"}, given)
    except Unsupported as reason:
        pytest.skip(str(reason))
    for key, expected in record["outputs"].items():
        flat = np.array([float.fromhex(v) for v in expected["data"]], record["dtype"])
        assert got[key].dtype == flat.dtype
        np.testing.assert_array_equal(got[key], flat.reshape(expected["shape"]), err_msg=key)


def drawn(I: int, H: int, T: int, B: int) -> Arrays:
    rng = np.random.default_rng(I)
    shapes = {"x": (T, B, I), "h_0": (B, H), "c_0": (B, H), "weight_ih": (4 * H, I), "weight_hh": (4 * H, H)}
    shapes |= {"bias_ih": (4 * H,), "bias_hh": (4 * H,)}
    return {n: rng.uniform(-1, 1, s).astype("float32") / np.float32(4) for n, s in shapes.items()}


def exactly(subject: Adapter, a: Arrays) -> Arrays:
    """Compute a forward layer in the profile exact."""
    config = {"input_size": a["x"].shape[2], "hidden_size": len(a["weight_hh"]) // 4, "proj_size": 0}
    config |= {"bias": True, "reverse": False, "lengths": None, "profile": "exact"}
    return subject.call("layer", config, {n: np.ascontiguousarray(v) for n, v in a.items()})


def one_row(a: Arrays, b: int) -> Arrays:
    rows = {"x": a["x"][:, [b]], "h_0": a["h_0"][[b]], "c_0": a["c_0"][[b]]}
    return a | rows


def padded(a: Arrays, features: int, units: int) -> Arrays:
    """Insert a block of unused features or units before the others, which shifts no block of a sum."""
    H = len(a["weight_hh"]) // 4

    def before(v: np.ndarray, axis: int, n: int, value: float = 0.0) -> np.ndarray:
        widths = [(n, 0) if k == axis % v.ndim else (0, 0) for k in range(v.ndim)]
        return np.pad(v, widths, constant_values=value)

    def rows(v: np.ndarray) -> np.ndarray:
        return np.concatenate([before(v[k * H : (k + 1) * H], 0, units) for k in range(4)])

    found = {n: rows(a[n]) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    found["weight_ih"] = before(found["weight_ih"], 1, features)
    found["weight_hh"] = before(found["weight_hh"], 1, units, 0.5)
    found |= {n: before(a[n], 1, units) for n in ("h_0", "c_0")}
    return found | {"x": before(a["x"], 2, features, 0.5)}


def bits_of_rows(subject: Adapter) -> list[tuple[Arrays, Arrays]]:
    a = drawn(40, 20, 6, 9)
    whole = exactly(subject, a)
    return [
        (exactly(subject, one_row(a, b)), {"y": whole["y"][:, [b]], "c_n": whole["c_n"][[b]]})
        for b in (0, 3, 4, 8)
    ]


def bits_of_halves(subject: Adapter) -> list[tuple[Arrays, Arrays]]:
    a = drawn(40, 20, 9, 3)
    first = exactly(subject, a | {"x": a["x"][:3]})
    second = exactly(subject, a | {"x": a["x"][3:], "h_0": first["h_n"], "c_0": first["c_n"]})
    whole = exactly(subject, a)
    return [(second, {"y": whole["y"][3:], "h_n": whole["h_n"], "c_n": whole["c_n"]})]


def bits_beside_dead_features(subject: Adapter) -> list[tuple[Arrays, Arrays]]:
    a = drawn(300, 20, 3, 3)
    return [(exactly(subject, padded(a, 128, 0)), exactly(subject, a))]


def bits_beside_dead_units(subject: Adapter) -> list[tuple[Arrays, Arrays]]:
    a = drawn(20, 260, 3, 3)
    got = exactly(subject, padded(a, 0, 128))
    return [({n: v[..., 128:] for n, v in got.items()}, exactly(subject, a))]


def bits_of_permuted_units(subject: Adapter) -> list[tuple[Arrays, Arrays]]:
    """Compare permuted units without recurrent weights, whose order is then in no sum."""
    a = drawn(30, 150, 1, 3)
    a["weight_hh"] = np.zeros_like(a["weight_hh"])
    rows = {
        n: np.concatenate([v[::-1] for v in np.split(a[n], 4)]) for n in a if n.startswith(("weight", "bias"))
    }
    got = exactly(subject, a | rows | {n: a[n][:, ::-1] for n in ("h_0", "c_0")})
    return [({n: v[..., ::-1] for n, v in got.items()}, exactly(subject, a))]


BITS = {
    "rows": bits_of_rows,
    "halves": bits_of_halves,
    "dead features": bits_beside_dead_features,
    "dead units": bits_beside_dead_units,
    "permuted units": bits_of_permuted_units,
}


def differing(pairs: list[tuple[Arrays, Arrays]]) -> list[str]:
    return [n for got, expected in pairs for n in expected if not np.array_equal(got[n], expected[n])]


@pytest.mark.parametrize("relation", BITS)
def test_bits_agree(subject: Adapter, relation: str) -> None:
    """XPL-EXACT-002 and XPL-EXACT-003: change sizes, batch and steps around a sum, and no bit of it."""
    try:
        pairs = BITS[relation](subject)
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert not differing(pairs)


GRADIENTS: dict[str, Sized] = {
    # Steps times batch entries exceed one block of a backward pass.
    "layers": module(9, 17, 40, 30, num_layers=2, bidirectional=True),
    "ragged": module(5, 8, 6, 4, lengths=[6, 0, 3, 5], bidirectional=True),
    "projection": module(5, 9, 6, 4, proj_size=4),
}


def pulled_back(subject: Adapter, name: str, dtype: str, shift: int = 0) -> Arrays:
    """Return the results of a call with gradients; each array begins `shift` numbers into a buffer."""
    case = GRADIENTS[name]
    given = drawn_call(case, np.random.default_rng(len(name)))
    a = {}
    for n, v in given.items():
        buffer = np.empty(v.size + shift, dtype)
        a[n] = buffer[shift:].reshape(v.shape)
        a[n][...] = v
    return subject.call("module_vjp", case.config | {"profile": "exact"}, a)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_depend_on_inputs_alone(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-EXACT-011: repeat a call after another one, with arrays at other addresses."""
    try:
        first = pulled_back(subject, name, dtype)
        for other in GRADIENTS:
            pulled_back(subject, other, dtype)
        second = pulled_back(subject, name, dtype, shift=1)
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert not differing([(second, first)])


ANSWER = """\
import hashlib
from spec.subjects import named
from spec.test_exact_bits import GRADIENTS, pulled_back
subject = named(["xplstm:numpy:native"])["xplstm:numpy:native"]
made = hashlib.sha256()
for dtype in ("float64", "float32", "float16"):
    for name in GRADIENTS:
        for array, v in sorted(pulled_back(subject, name, dtype).items()):
            made.update(array.encode() + v.tobytes())
print(made.hexdigest())
"""


def test_gradients_of_native_have_the_same_bits_in_every_process() -> None:
    """XPL-EXACT-011: use one and three threads, and each instruction set with fused multiply-adds."""
    native = pytest.importorskip("xplstm.kernels.native")
    if native.WHY_NOT:
        pytest.skip(native.WHY_NOT)
    found = set()
    for isa in (name for name, fuses in native.ISAS.items() if fuses):
        for threads in ("1", "3"):
            env = {**os.environ, "XPLSTM_NATIVE_ISA": isa, "XPLSTM_NUM_THREADS": threads}
            command, root = [sys.executable, "-c", ANSWER], exact_cases.VECTORS.parent.parent
            run = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env)
            assert run.returncode == 0, run.stderr
            found.add(run.stdout)
    assert len(found) == 1


class Reordered:
    """Kernel native with another order of summation where `when` is true."""

    def __init__(self, when: Callable[[Arrays], bool]) -> None:
        self.when, self.right = when, named(["xplstm:numpy:native"])["xplstm:numpy:native"]

    def describe(self) -> dict[str, str]:
        return self.right.describe()

    def why_unavailable(self) -> str | None:
        return self.right.why_unavailable()

    def call(self, op: str, config: Config, a: Arrays) -> Arrays:
        other = {n: np.ascontiguousarray(a[n][..., ::-1]) for n in ("x", "weight_ih")} if self.when(a) else {}
        return self.right.call(op, config, a | other)


WRONG = {
    "rows": lambda a: a["x"].shape[1] > 3,
    "halves": lambda a: len(a["x"]) > 6,
    "dead features": lambda a: a["x"].shape[2] > 385,
    "dead units": lambda a: a["h_0"].shape[1] > 256 + 128,
}


@pytest.mark.parametrize("relation", WRONG)
def test_another_order_of_a_sum_is_found(relation: str) -> None:
    try:
        pairs = BITS[relation](Reordered(WRONG[relation]))
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert differing(pairs)
