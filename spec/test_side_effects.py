"""Test what a call changes outside its results, and that only the numbers of its arrays matter."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections.abc import Callable
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pytest

from spec.calls import CASES, given
from spec.process import other_settings, restored, settings
from spec.sized import Sized, drawn, layer, module
from spec.sized_mutants import RIGHT, Call
from spec.subject import Adapter, Arrays, Config, Refused, Unsupported
from spec.wrong_calls import (
    SETTERS,
    Plain,
    apart,
    at_multiples,
    at_wide_addresses,
    buffered,
    drawing_elsewhere,
    emptied,
    final_of_outputs,
    gradients_by_object,
    in_a_ring,
    in_an_arena,
    in_c_order,
    lanes_of_nan,
    of_one_vector,
    one_object,
    one_zero,
    own_state,
    packed_by,
    packed_by_sum,
    packed_once,
    rows_by_width,
    scratch,
    setting,
    sorting,
    state_without_steps,
    with_large_buffers,
    with_old_biases,
    with_old_lengths,
)

NAMES = ("square", "lengths-231", "two-directions-2-p2", "peepholes-and-norm")
WITHOUT_STEPS = (
    *("no-steps-reverse", "lengths-000", "no-steps-lengths-module", "no-steps-module"),
    *("no-step-of-a-mask", "no-step-of-a-mask-module"),
)
KEPT = (*NAMES, *WITHOUT_STEPS, "as-many-steps-as-rows")
STAY = (*NAMES, "ragged-b64", "as-many-steps-as-rows")
OPTIONS = ("lengths-231", "mask-module", "resets-lengths", "peepholes-module", "dropout-sum")
SETTING = ("square", "two-directions-2-p2", "dropout-sum", "noise-zoneout", "nan-in-reverse", "four-layers")
LATER = 5
"""Number of calls after the one whose results are kept, which exceeds a ring of two or four buffers."""
CLOSE = 1e-4
COTANGENTS = ("dy", "dh_n", "dc_n")


def answer(subject: Adapter, name: str, a: Arrays, gradients: bool = True) -> Arrays:
    """Return results with gradients if they are requested and offered, and otherwise without."""
    return answer_of(subject, CASES[name].op, CASES[name].config, a, gradients)


def answer_of(subject: Adapter, op: str, config: Config, a: Arrays, gradients: bool) -> Arrays:
    try:
        if gradients:
            return subject.call(f"{op}_vjp", config, dict(a))
    except Unsupported:
        pass
    try:
        return subject.call(op, config, {n: v for n, v in a.items() if n not in COTANGENTS})
    except Unsupported as reason:
        pytest.skip(str(reason))


def writable(name: str) -> Arrays:
    return {n: v.copy() for n, v in given(name, "float32").items()}


def differing(pairs: list[tuple[Arrays, Arrays]]) -> list[str]:
    """Return the arrays that differ by more than rounding errors."""
    return [
        n
        for got, expected in pairs
        for n, v in expected.items()
        if not np.allclose(got[n], v, rtol=0, atol=CLOSE * max(1, np.abs(v).max(initial=0)), equal_nan=True)
    ]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", STAY)
def test_results_stay_as_they_are(subject: Adapter, name: str, gradients: bool) -> None:
    """XPL-REL-013: make calls of these and other sizes, with gradients and without, after one call."""
    first = answer(subject, name, writable(name), gradients)
    before = {n: v.copy() for n, v in first.items()}
    for _ in range(LATER):
        answer(subject, name, {n: -v for n, v in writable(name).items()}, gradients)
    for other in {*NAMES, name}:
        answer(subject, other, {n: -v for n, v in writable(other).items()}, not gradients)
        answer(subject, other, {n: -v for n, v in writable(other).items()}, gradients)
    for n, v in first.items():
        np.testing.assert_array_equal(v, before[n], err_msg=n)


@pytest.mark.parametrize("name", KEPT)
def test_results_are_no_inputs(subject: Adapter, name: str) -> None:
    """XPL-REL-013: check that no result shares memory with an input."""
    a = writable(name)
    got = answer(subject, name, a)
    shared = [(n, m) for n, v in got.items() for m, w in a.items() if np.shares_memory(v, w)]
    assert not shared


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", KEPT)
def test_results_are_apart(subject: Adapter, name: str, gradients: bool) -> None:
    """XPL-REL-013: check that no two results share memory, and no two numbers of a result."""
    got = answer(subject, name, writable(name), gradients)
    names = [n for n, v in got.items() if v.flags.writeable]
    shared = [(n, m) for n, m in combinations(names, 2) if np.shares_memory(got[n], got[m])]
    shared += [(n, n) for n in names if is_repeated(got[n])]
    assert not shared


def is_repeated(a: np.ndarray) -> bool:
    """Return whether an axis of an array repeats the same numbers."""
    return a.size > 0 and any(s == 0 and n > 1 for s, n in zip(a.strides, a.shape, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_read_in_each_call(subject: Adapter, name: str) -> None:
    """XPL-REL-014: change arrays in place between calls."""
    a = {n: v.copy() for n, v in given(name, "float32").items()}
    right = writable(name)
    expected = [answer(subject, name, right, gradients) for gradients in (False, True)]
    for v in a.values():
        v *= -1
    answer(subject, name, a)
    answer(subject, name, a, gradients=False)
    for n, v in a.items():
        v[...] = right[n]
    assert not differing(
        [(answer(subject, name, a, g), e) for g, e in zip((False, True), expected, strict=True)]
    )


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "gradients-of-19-units", "everything-three"])
def test_the_place_of_each_number_is_read(subject: Adapter, name: str, gradients: bool) -> None:
    """XPL-REL-014: exchange two numbers of an array, so that sum, ends and address stay.

    One pair is near the start, one in the middle, beyond what a key of the first numbers would read.
    """
    case, a = CASES[name], writable(name)
    answer(subject, name, a, gradients)
    wrong = []
    for array, at in product(a, (1, None)):
        flat = a[array].reshape(-1)
        here = len(flat) // 2 if at is None else at
        flat[[here, here + 1]] = flat[[here + 1, here]]
        got, expected = answer(subject, name, a, gradients), RIGHT.call(f"{case.op}_vjp", case.config, a)
        wrong += [
            f"{n} of another {array}"
            for n in differing([(got, {n: expected[n] for n in got if n in expected})])
        ]
        flat[[here, here + 1]] = flat[[here + 1, here]]
    assert not wrong


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_not_changed(subject: Adapter, name: str) -> None:
    """XPL-SEQ-006: compare lengths, masks, resets and the contents of options before and after a call."""
    case, a = CASES[name], writable(name)
    config = copy.deepcopy(case.config)
    try:
        if case.draws:
            subject.call(f"{case.op}_vjp", config, a)
        else:
            subject.call(case.op, config, {n: v for n, v in a.items() if n not in COTANGENTS})
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert config == case.config


class Omitted(NamedTuple):
    """An option that a call does not have after calls that have it."""

    case: Sized
    """A call of sizes that no other test has."""
    without: Config
    """Its options without this one; None is a missing option."""
    other: Config
    """Its options with another value of this one; arrays are negated."""
    arrays: tuple[str, ...] = ()
    """First parts of the names that the option adds."""


BOTH: Config = {"num_layers": 2, "bidirectional": True}
SOME = [[True, False, True], [False, True, True], [True, True, True], [True, False, False]]
MIDDLE = [[False, True, False]] * 4
OMITTED = {
    "biases": Omitted(layer(6, 7, 4, 3), {"bias": False}, {}, ("bias", "dbias")),
    "biases of a module": Omitted(module(6, 7, 4, 3, **BOTH), {"bias": False}, {}, ("bias", "dbias")),
    "lengths": Omitted(layer(7, 6, 4, 3, lengths=[2, 4, 1]), {"lengths": None}, {"lengths": [3, 1, 2]}),
    "lengths of a module": Omitted(
        module(7, 6, 4, 3, lengths=[2, 4, 1], **BOTH), {"lengths": None}, {"lengths": [3, 1, 2]}
    ),
    "reverse": Omitted(layer(7, 9, 4, 3, reverse=True), {"reverse": False}, {"reverse": False}),
    "mask": Omitted(layer(9, 6, 4, 3, mask=SOME), {"mask": None}, {"mask": MIDDLE}),
    "resets": Omitted(layer(9, 7, 4, 3, reset=SOME), {"reset": None}, {"reset": MIDDLE}),
    "peepholes": Omitted(
        layer(6, 9, 4, 3, variant={"peepholes": True}), {"variant": None}, {}, ("weight_ch", "dweight_ch")
    ),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("option", OMITTED)
def test_an_option_of_an_earlier_call_is_forgotten(subject: Adapter, option: str, gradients: bool) -> None:
    """XPL-REL-012: omit an option before and after calls with two values of it."""
    op, one, a = (
        OMITTED[option].case.op,
        OMITTED[option],
        drawn(OMITTED[option].case, np.random.default_rng(0)),
    )
    a = {n: v.astype("float32") for n, v in a.items()}
    kept = {n: v for n, v in a.items() if not one.arrays or not n.startswith(one.arrays)}
    config = {n: v for n, v in (one.case.config | one.without).items() if v is not None}
    before = answer_of(subject, op, config, kept, gradients)
    for changed, sign in (({}, 1), (one.other, -1)):
        earlier = {n: sign * v for n, v in a.items()}
        answer_of(subject, op, one.case.config | changed, earlier, gradients)
        assert not differing([(answer_of(subject, op, config, kept, gradients), before)])


def backwards(v: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(v[::-1])[::-1]


def every_second(v: np.ndarray) -> np.ndarray:
    wide = np.full((*v.shape, 2), 7.25, v.dtype)
    wide[..., 0] = v
    return np.asarray(wide[..., 0])


def by_columns(v: np.ndarray) -> np.ndarray:
    return np.asfortranarray(v)


def batch_first(v: np.ndarray) -> np.ndarray:
    """Store the first two axes in the other order, as a transposed batch of sequences has them."""
    return np.ascontiguousarray(v.swapaxes(0, 1)).swapaxes(0, 1) if v.ndim > 1 else v


def part_of_rows(v: np.ndarray) -> np.ndarray:
    """Store an array as parts of every second row of a wider matrix."""
    if v.ndim == 1:
        return every_second(v)
    wide = np.full((2 * len(v), *v.shape[1:-1], v.shape[-1] + 3), 7.25, v.dtype)
    found = wide[::2, ..., : v.shape[-1]]
    found[...] = v
    return found


def off_by_one(v: np.ndarray) -> np.ndarray:
    """Store an array at an address that is a multiple of its item size only."""
    wide = np.full(v.size + 1, 7.25, v.dtype)[1:].reshape(v.shape)
    wide[...] = v
    return wide


def at_an_odd_address(v: np.ndarray) -> np.ndarray:
    """Store an array at an address that is no multiple of its item size, as in a file without padding."""
    found = np.frombuffer(bytearray(v.nbytes + 1), v.dtype, v.size, offset=1).reshape(v.shape)
    found[...] = v
    return found


STRIDES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "backwards": backwards,
    "every second": every_second,
    "by columns": by_columns,
    "batch first": batch_first,
    "part of rows": part_of_rows,
    "off by one": off_by_one,
    "at an odd address": at_an_odd_address,
}


@pytest.mark.parametrize("how", STRIDES)
@pytest.mark.parametrize("name", NAMES)
def test_strides(subject: Adapter, name: str, how: str) -> None:
    """XPL-SEQ-011."""
    a = {n: STRIDES[how](v) for n, v in writable(name).items()}
    assert not differing([(answer(subject, name, a), answer(subject, name, writable(name)))])


REPEATED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a number": lambda v: v[:1, :1, :1] if v.ndim == 3 else v[:1, :1],
    "an entry": lambda v: v[..., :1, :],
    "a feature": lambda v: v[..., :1],
    "a step": lambda v: v[:1],
}
"""Parts of an array that its zero strides repeat."""


@pytest.mark.parametrize("part", REPEATED)
@pytest.mark.parametrize("name", NAMES)
def test_repeated_numbers(subject: Adapter, name: str, part: str) -> None:
    """XPL-SEQ-011: repeat numbers by zero strides, as in a sum's cotangent or a state of all entries."""
    a = writable(name)
    some = {n: v for n, v in a.items() if n in (*COTANGENTS, "x", "h_0", "c_0")}
    repeated = {n: np.broadcast_to(REPEATED[part](v), v.shape) for n, v in some.items()}
    got = answer(subject, name, a | repeated)
    expected = answer(subject, name, a | {n: v.copy() for n, v in repeated.items()})
    assert not differing([(got, expected)])


@pytest.mark.parametrize("name", NAMES)
def test_repeated_parameters(subject: Adapter, name: str) -> None:
    """XPL-SEQ-011: repeat a number of each parameter by zero strides, as in a bias from one number."""
    a = writable(name)
    kept = (*COTANGENTS, "x", "h_0", "c_0")
    repeated = {n: np.broadcast_to(v.ravel()[:1], v.shape) for n, v in a.items() if n not in kept}
    got = answer(subject, name, a | repeated)
    expected = answer(subject, name, a | {n: v.copy() for n, v in repeated.items()})
    assert not differing([(got, expected)])


def end_to_end(a: Arrays) -> Arrays:
    """Store all arrays in one buffer, each directly after another."""
    whole = np.concatenate([v.ravel() for v in a.values()])
    ends = np.cumsum([v.size for v in a.values()])
    return {
        n: whole[end - v.size : end].reshape(v.shape) for (n, v), end in zip(a.items(), ends, strict=True)
    }


def overlapping(a: Arrays) -> Arrays:
    """Store all arrays in one buffer, so that they overlap."""
    whole = np.concatenate([v.ravel() for v in a.values()])
    return {n: whole[k : k + v.size].reshape(v.shape) for k, (n, v) in enumerate(a.items())}


BUFFERS = {"end to end": end_to_end, "overlapping": overlapping}


@pytest.mark.parametrize("how", BUFFERS)
@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_one_buffer(subject: Adapter, name: str, how: str) -> None:
    """XPL-REL-014: pass parameters of one vector, and arrays that share a part of their memory."""
    a = BUFFERS[how](writable(name))
    got = answer(subject, name, a)
    expected = answer(subject, name, {n: v.copy() for n, v in a.items()})
    assert not differing([(got, expected)])


@pytest.mark.parametrize("name", NAMES)
def test_one_array_for_two_arguments(subject: Adapter, name: str) -> None:
    """XPL-REL-014: pass one object for all arrays of a shape: biases, tied layers, states, x and dy."""
    a = writable(name)
    first = {v.shape: v for v in reversed(a.values())}
    tied = {n: first[v.shape] for n, v in a.items()}
    got = answer(subject, name, tied)
    expected = answer(subject, name, {n: v.copy() for n, v in tied.items()})
    assert not differing([(got, expected)])


@pytest.mark.parametrize("name", SETTING)
def test_settings_of_the_process_stay(subject: Adapter, name: str) -> None:
    """XPL-REL-015: compare modes, generators, folder and environment, after NaN and noise too."""
    answer(subject, name, writable(name))
    with other_settings():
        before = settings()
        answer(subject, name, writable(name))
        after = settings()
    assert [n for n, value in before.items() if after[n] != value] == []


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_two_threads(subject: Adapter, name: str) -> None:
    """XPL-REL-016: compare with calls one after another."""
    if getattr(subject, "one_by_one", False):
        pytest.skip("it answers one question after the other")
    ways = [{n: v * sign for n, v in writable(name).items()} for sign in (1, -1)]
    expected = [answer(subject, name, a) for a in ways]
    wrong: list[str] = []
    start = threading.Barrier(2)

    def ask(k: int) -> None:
        start.wait()
        for _ in range(8):
            got = answer(subject, name, ways[k])
            wrong.extend(
                n for n, v in expected[k].items() if not np.allclose(got[n], v, rtol=1e-4, atol=1e-4)
            )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(k,)) for k in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_call_leaves_nothing(subject: Adapter, name: str) -> None:
    """XPL-REL-012: compare calls before and after one that is refused."""
    a = writable(name)
    before = answer(subject, name, a)
    for array in (n for n in a if n not in ("x", "dx")):
        with contextlib.suppress(Refused):
            answer(subject, name, a | {array: a[array][..., :-1].copy()})
    after = answer(subject, name, a)
    assert not differing([(after, before)])


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_nan_leaves_nothing(subject: Adapter, name: str, gradients: bool) -> None:
    """XPL-REL-012: compare calls before and after one with NaN."""
    a = writable(name)
    before = answer(subject, name, a, gradients)
    spoilt = {n: np.full_like(v, np.nan) for n, v in a.items() if n in (*COTANGENTS, "x", "h_0", "c_0")}
    answer(subject, name, a | spoilt, gradients)
    assert not differing([(answer(subject, name, a, gradients), before)])


FOUND: dict[str, tuple[Call, Callable[..., None], tuple[object, ...]]] = {
    "results in a buffer": (buffered(), test_results_stay_as_they_are, ("square", True)),
    "a result is an input where no step exists": (
        state_without_steps,
        test_results_are_no_inputs,
        ("no-step-of-a-mask",),
    ),
    "one zero for all outputs": (one_zero, test_results_are_apart, ("lengths-000", True)),
    "weights by their first numbers": (
        packed_by(lambda v: v.tobytes()[:64]),
        test_the_place_of_each_number_is_read,
        ("gradients-of-19-units", True),
    ),
    "weights of a middle layer by shape": (
        packed_by(lambda _: b"", "_l1"),
        test_the_place_of_each_number_is_read,
        ("everything-three", True),
    ),
    "a result is an input": (own_state, test_results_are_no_inputs, ("no-steps-module",)),
    "weights by address": (packed_once(), test_numbers_are_read_in_each_call, ("square",)),
    "weights by sum": (packed_by_sum(), test_the_place_of_each_number_is_read, ("square", True)),
    "biases of an earlier call": (
        with_old_biases(),
        test_an_option_of_an_earlier_call_is_forgotten,
        ("biases", False),
    ),
    "lengths of an earlier call": (
        with_old_lengths(),
        test_an_option_of_an_earlier_call_is_forgotten,
        ("lengths", True),
    ),
    "lanes of NaN": (lanes_of_nan(), test_nan_leaves_nothing, ("square", False)),
    "large results in buffers": (with_large_buffers(), test_results_stay_as_they_are, ("ragged-b64", True)),
    "memory in C order": (in_c_order, test_strides, ("square", "backwards")),
    **{
        f"{part} repeated": (in_c_order, test_repeated_numbers, ("square", part))
        for part in ("an entry", "a feature", "a step")
    },
    "parameters in C order": (in_c_order, test_repeated_parameters, ("square",)),
    "one vector of all parameters": (of_one_vector, test_arrays_of_one_buffer, ("square", "end to end")),
    "no overlap expected": (apart, test_arrays_of_one_buffer, ("square", "overlapping")),
    "gradients shared by one object": (gradients_by_object, test_one_array_for_two_arguments, ("square",)),
    **{
        f"{name} set": (setting(change), test_settings_of_the_process_stay, ("square",))
        for name, change in SETTERS.items()
    },
    "one object": (one_object, test_one_array_for_two_arguments, ("square",)),
    "lengths sorted": (sorting, test_options_are_not_changed, ("lengths-231",)),
    "results in a ring": (in_a_ring(), test_results_stay_as_they_are, ("square", True)),
    "results in an arena": (in_an_arena(), test_results_stay_as_they_are, ("square", True)),
    "a view of y": (final_of_outputs, test_results_are_apart, ("square", True)),
    "options emptied": (emptied, test_options_are_not_changed, ("mask-module",)),
    "rows of a width": (rows_by_width, test_strides, ("square", "part of rows")),
    "a batch by its last stride": (rows_by_width, test_strides, ("square", "batch first")),
    "multiples of the item size": (at_multiples, test_strides, ("square", "at an odd address")),
    "wide addresses": (at_wide_addresses, test_strides, ("square", "off by one")),
    "generator of dropout": (drawing_elsewhere, test_settings_of_the_process_stay, ("dropout-sum",)),
    "one scratch": (scratch(), test_calls_of_two_threads, ("square",)),
}


@pytest.mark.parametrize("fault", FOUND)
def test_a_wrong_lstm_is_found(fault: str) -> None:
    call, test, values = FOUND[fault]
    test(Plain(), *values)
    with restored(), pytest.raises(AssertionError):
        test(Plain(call), *values)
