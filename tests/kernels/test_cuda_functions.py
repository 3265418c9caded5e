"""Check sigmoid and tanh of the CUDA sources: without branches, and with the special function unit."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from tests.cuda_emulation import compiled, thorough
from xplstm.kernels._cuda import launch

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="a C++20 compiler is needed")

NAMES = ("sigmoid", "hyperbolic_tangent")
OFF = (-2, -1, 0, 1, 2)
"""Units in the last place that an estimate of 1 / b may be off: NVIDIA allows a relative error of 2**-23."""
BRANCHLESS = "return fused(fused(negated(b), q, a), r, q);"
PROGRAM = """
static int off = 1;
{primitives}
namespace ours {{ {functions} }}
namespace ieee {{ {exact} }}
"""
OF_EACH = """
extern "C" unsigned long long {name}_different(
    int estimate_off, unsigned first, unsigned last, unsigned step, unsigned *example)
{{
    off = estimate_off;
    unsigned long long found = 0;
    for (unsigned long long bits = first; bits < last; bits += step) {{
        float x = number_of(unsigned(bits));
        if (bits_of(ours::{name}(x)) != bits_of(ieee::{name}(x))) {{
            *example = unsigned(bits);
            found++;
        }}
    }}
    return found;
}}
extern "C" void {name}_each(const float *x, float *y, long size)
{{
    for (long n = 0; n < size; n++)
        y[n] = ours::{name}(x[n]);
}}
"""


def library(kind: str, wrong: tuple[str, str] = ("", "")) -> ctypes.CDLL:
    functions = (launch.SOURCES / "functions.cuh").read_text(encoding="utf-8")
    assert BRANCHLESS in functions
    text = PROGRAM.format(
        primitives=(compiled.HERE / "primitives.hpp").read_text(encoding="utf-8"),
        functions=functions.replace(*wrong),
        exact=functions.replace(BRANCHLESS, "return quotient(a, b);"),
    )
    text += "".join(OF_EACH.format(name=name) for name in NAMES)
    defines = (f"-D{kind.upper()}", "-DESTIMATE_OFF=off", *launch.DEFINES)
    options = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-pthread", *defines)
    return ctypes.CDLL(str(compiled.shared("functions", text, options)))


def different(found: ctypes.CDLL, name: str, off: int, step: int) -> list[str]:
    """Return arguments of both signs, from every `step`-th, whose results differ from an IEEE division."""
    bad, count_different = [], found[f"{name}_different"]
    count_different.restype = ctypes.c_ulonglong
    # Smaller ones have a divisor of 1 or 2, larger ones are clipped.
    first, last = (int(np.float32(x).view(np.uint32)) for x in (2.0**-27, 128.0))
    for sign in (0, 1 << 31):
        example = ctypes.c_uint()
        count = count_different(off, first | sign, last | sign, step, ctypes.byref(example))
        if count:
            bad.append(f"{count}, such as bits {example.value:#x}")
    return bad


@pytest.mark.parametrize(("name", "off"), [*product(NAMES, OFF)])
def test_the_branchless_division_has_the_bits_of_ieee(name: str, off: int) -> None:
    assert different(library("float32"), name, off, 1009) == []


@thorough
@pytest.mark.parametrize(("name", "off"), [*product(NAMES, OFF)])
def test_it_has_them_for_every_argument(name: str, off: int) -> None:
    assert different(library("float32"), name, off, 1) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_division_without_its_last_step_is_seen(name: str) -> None:
    assert different(library("float32", (BRANCHLESS, "return q;")), name, 1, 1009)


def arguments() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    yield rng.normal(size=4096) * 10.0 ** rng.integers(-42, 3, 4096)
    yield np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-45, 3e38, 88.5, -88.5, 0.25, -0.25])


@pytest.mark.parametrize("kind", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_special_function_unit_is_close_enough(name: str, kind: str) -> None:
    """The error is within 2**-20 of the value, or within 2**-120 beyond the range of exp."""
    each = library(kind)[f"{name}_each"]
    for x in (a.astype(np.float32) for a in arguments()):
        y = np.empty_like(x)
        pointers = (a.ctypes.data_as(ctypes.c_void_p) for a in (x, y))
        each(*pointers, ctypes.c_long(x.size))
        with np.errstate(over="ignore"):
            wide = x.astype(np.longdouble)
            want = np.tanh(wide) if name == "hyperbolic_tangent" else 1 / (1 + np.exp(-wide))
        small = np.finfo(np.float32).tiny
        slack = 2.0**-20 * np.abs(want) * np.maximum(1, np.abs(np.where(np.isfinite(wide), wide, 0)) / 8)
        assert (np.abs(y - want) <= slack + small).all()
        assert (np.signbit(y) == np.signbit(want)).all()
        nan = np.array([np.nan], np.float32)
        each(*(nan.ctypes.data_as(ctypes.c_void_p),) * 2, ctypes.c_long(1))
        assert np.isnan(nan[0])
