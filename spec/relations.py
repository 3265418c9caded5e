"""Define relations between calls of one implementation, which need no stored number.

A relation calls the implementation twice or more and compares the results. Each function yields pairs of
results that must agree; `Ask` makes the calls. The sizes and options come from `spec/plan.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from spec.places import LAYER, Axis, Places, features, joined, split_name
from spec.plan import CASES
from spec.records import UNITS, Record
from spec.sized import Sized, distance, drawn
from spec.subject import Adapter, Arrays, Unsupported

COTANGENTS = ("dy", "dh_n", "dc_n")
ALLOWED = {"outputs": 256, "gradients": 1024}
"""Differences in u * s: each of the two answers may miss by a quarter of it."""

GUARD = 7
"""Numbers before and after each array that a call must not write to; odd, so that no array is aligned."""
SCALES = (-80, 60)
"""Powers of two of cotangents, within float32, where an intermediate number has some room."""


class Pair(NamedTuple):
    """Two results that must agree, and their description."""

    what: str
    got: Arrays
    expected: Arrays
    allowed: float | None = None
    """Errors in u * s, where they are not those of `ALLOWED`."""


Pairs: TypeAlias = Iterator[Pair]


class Ask:
    """Calls of a subject, with gradients if it supports them."""

    def __init__(self, subject: Adapter, dtype: str, gradients: bool = True) -> None:
        self.subject, self.dtype, self.gradients = subject, dtype, gradients

    def __call__(self, op: str, config: Record, a: Arrays) -> Arrays:
        return self.exactly(op, config, {n: np.array(v, self.dtype, order="C") for n, v in a.items()})

    def exactly(self, op: str, config: Record, given: Arrays) -> Arrays:
        """Call with the arrays themselves, to which the subject could write."""
        if self.gradients and "dy" in given:
            try:
                return self.subject.call(f"{op}_vjp", config, dict(given))
            except Unsupported:
                self.gradients = False
        return self.subject.call(op, config, {n: v for n, v in given.items() if n not in COTANGENTS})


Relation: TypeAlias = Callable[[Ask, Sized, Arrays, np.random.Generator], Pairs]


def faults(pair: Pair, dtype: str) -> list[str]:
    """Return where two results differ by more than rounding errors."""
    said = []
    for name in sorted(pair.got.keys() & pair.expected.keys()):
        got, expected = pair.got[name], pair.expected[name]
        usual = ALLOWED["gradients" if name.startswith("d") else "outputs"]
        allowed = usual if pair.allowed is None else pair.allowed
        if got.shape != expected.shape:
            said.append(f"{pair.what}: {name} is {got.shape}, expected {expected.shape}")
            continue
        off = distance(got.astype("float64"), expected.astype("float64"), dtype)
        if not off <= allowed:
            said.append(f"{pair.what}: {name} differs by {off:.3g} u * s, allowed are {allowed}")
    return said


def embedded(ask: Ask, case: Sized, a: Arrays, places: Places, rng: np.random.Generator, what: str) -> Pairs:
    """Check that a call inside a larger or permuted call gives the same results as alone."""
    whole = places.put(a, rng)
    config = places.config(case.config, len(a["x"]), rng)
    yield Pair(what, places.take(ask(case.op, config, whole)), ask(case.op, case.config, a))


def permuted(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    places = Places.of(case.config, a, lambda n: Axis(rng.permutation(n), n))
    yield from embedded(ask, case, a, places, rng, "batch entries, features and units permuted")


def one_in_a_batch(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Call each batch entry alone, and compare it with its entry in the batch."""
    whole = ask(case.op, case.config, a)
    B = a["x"].shape[1]
    for b in {0, int(rng.integers(B)), B - 1} if B else ():
        alone = Places.row(case.config, a, b)
        got = ask(case.op, alone.config_of_row(case.config), alone.take(a))
        names = ("y", "h_n", "c_n", "dx", "dh_0", "dc_0")
        expected = {n: v for n, v in alone.take(whole).items() if n in names}
        yield Pair(f"batch entry {b} alone", got, expected)


def larger(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Add batch entries, dead features, and dead units unless they are normalised."""

    def grown(n: int, least: int = 4) -> Axis:
        more = n + least + int(rng.integers(3))
        return Axis(np.sort(rng.permutation(more)[:n]), more)

    places = Places.of(case.config, a, grown)
    if case.config.get("proj_size"):
        # Fewer than the new units, because a projection has fewer outputs than units.
        places = places._replace(P=grown(case.config["proj_size"], 1))
    if normalised(case):
        places = places.without_units(case.config)
    yield from embedded(ask, case, a, places, rng, "dead units and features added")


def part_of(config: Record, start: int, stop: int) -> Record:
    """Return the config of the steps from `start` to `stop`."""
    found = dict(config)
    if config.get("lengths") is not None:
        found["lengths"] = [min(max(n - start, 0), stop - start) for n in config["lengths"]]
    if config.get("mask") is not None:
        found["mask"] = config["mask"][start:stop]
    return found


def cut(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Compare a call with two halves, with the state passed forward and its cotangents backward."""
    whole = ask(case.op, case.config, a)
    for at in {int(rng.integers(1, case.T)), *(n for n in (64, 512, 1100) if n < case.T)}:
        parts = [(0, at), (at, case.T)]
        first, second = parts[::-1] if case.config.get("reverse") else parts
        yield Pair(f"cut at {at} and carried on", halves(ask, case, a, first, second), whole)


def halves(ask: Ask, case: Sized, a: Arrays, first: tuple[int, int], second: tuple[int, int]) -> Arrays:
    """Run `first`, then `second` from its state; with gradients run `first` again with their cotangents."""

    def call(part: tuple[int, int], change: Arrays) -> Arrays:
        here = {n: v[slice(*part)] if n in ("x", "dy") else v for n, v in a.items()} | change
        return ask(case.op, part_of(case.config, *part), here)

    before = call(first, {})
    after = call(second, {n: before[m] for n, m in (("h_0", "h_n"), ("c_0", "c_n")) if n in a})
    if "dx" in after:
        before = call(first, {n: after[m] for n, m in (("dh_n", "dh_0"), ("dc_n", "dc_0")) if n in a})
    early, late = (before, after) if first < second else (after, before)
    found: Arrays = {
        n: np.concatenate([early[n], late[n]]) for n in ("y", "dx") if n in after and n in before
    }
    found |= {n: after[n] for n in ("h_n", "c_n") if n in after}
    found |= {n: before[n] for n in ("dh_0", "dc_0") if n in after and n in before}
    summed = [n for n in after if n.startswith("d") and n in before and n not in found]
    return found | {n: after[n] + before[n] for n in summed}


def segments(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Check that a reset of the whole batch starts a second call from a zero state."""
    at, B = int(rng.integers(1, case.T)), a["x"].shape[1]
    reset = [[t == at] * B for t in range(case.T)]
    whole = ask(case.op, case.config | {"reset": reset}, a)
    parts = [(0, at), (at, case.T)]
    first, second = parts[::-1] if case.config.get("reverse") else parts
    last = existing_in(case.config, second, B)[:, None]
    # In reverse, a reset after the last step of an entry starts no segment, so its state is passed on.
    begun = existing_in(case.config, first, B)[:, None] | (first < second)

    def call(part: tuple[int, int], change: Arrays) -> Arrays:
        here = {n: v[slice(*part)] if n in ("x", "dy") else v for n, v in a.items()} | change
        return ask(case.op, part_of(case.config, *part), here)

    # An entry without a step after the reset ends with its state before the reset.
    ends = {n: a[n] for n in ("dh_n", "dc_n") if n in a}
    before = call(first, {n: np.where(last, 0, v) for n, v in ends.items()})
    starts = {n: np.where(begun, 0, a[n]) for n in ("h_0", "c_0") if n in a}
    after = call(second, starts | {n: np.where(last, v, 0) for n, v in ends.items()})
    early, late = (before, after) if first < second else (after, before)
    timed = [n for n in ("y", "dx") if n in before]
    found: Arrays = {n: np.concatenate([early[n], late[n]], -3) for n in timed}
    found |= {n: np.where(last, after[n], before[n]) for n in ("h_n", "c_n") if n in before}
    found |= {n: before[n] + np.where(begun, 0, after[n]) for n in ("dh_0", "dc_0") if n in before}
    summed = [n for n in before if n.startswith("d") and n not in found]
    yield Pair(f"reset at {at}", whole, found | {n: before[n] + after[n] for n in summed})


def existing_in(config: Record, part: tuple[int, int], B: int) -> np.ndarray:
    """Return (B,) booleans, True if a batch entry has a step in a part of the sequence."""
    start, stop = part
    if config.get("mask") is not None:
        return np.any(config["mask"][start:stop], axis=0)
    return np.greater(config.get("lengths") or [stop] * B, start)


def reversed_input(ask: Ask, case: Sized, a: Arrays, _rng: np.random.Generator) -> Pairs:
    """Compare a reverse layer with reversed input; two directions exchange their roles."""
    flip = flipping(case, a["x"].shape[1])
    mirrored = dict(case.config)
    if case.config.get("mask") is not None:
        mirrored["mask"] = case.config["mask"][::-1]
    if case.op == "layer":
        mirrored["reverse"] = not case.config["reverse"]
    exchange: Callable[[Arrays], Arrays] = dict if case.op == "layer" else exchanged_directions

    def mirror(given: Arrays) -> Arrays:
        found = exchange(given)
        timed = [n for n in ("x", "y", "dx", "dy") if n in found]
        return found | {n: flip(found[n], case.config.get("merge")) for n in timed}

    yield Pair(
        "reversed input, reversed direction",
        mirror(ask(case.op, mirrored, mirror(a))),
        ask(case.op, case.config, a),
    )


def flipping(case: Sized, B: int) -> Callable[[np.ndarray, str | None], np.ndarray]:
    """Reverse the valid steps of each batch entry; with a mask, or without lengths, reverse all steps."""
    lengths = case.config.get("lengths")
    T = case.T
    order = np.tile(np.arange(T)[::-1, None], (1, B))
    if lengths is not None:
        t, n = np.arange(T)[:, None], np.asarray(lengths)
        order = np.where(t < n, n - 1 - t, t)

    def flip(v: np.ndarray, merge: str | None) -> np.ndarray:
        if merge == "none" and v.ndim == 4:
            return np.stack([np.take_along_axis(one, order[..., None], 0) for one in v])
        return np.take_along_axis(v, order[..., None], 0)

    return flip


def exchanged_directions(a: Arrays) -> Arrays:
    """Exchange the directions: parameters, states, and halves of the concatenated output."""
    found: Arrays = {}
    P = next(a[n].shape[-1] for n in ("h_0", "h_n") if n in a)
    for name, v in a.items():
        base, layer, reverse = split_name(name)
        to = name
        if layer is not None:
            to = f"{base}_l{layer}" + ("" if reverse else "_reverse")
        halved = base in ("y", "dy") and v.shape[-1] == 2 * P
        joins = base in ("weight_ih", "dweight_ih") and layer and v.shape[-1] == 2 * P
        if halved or joins:
            v = np.concatenate([v[..., P:], v[..., :P]], -1)
        elif base in ("y", "dy") and v.ndim == 4:
            v = v[::-1]
        elif base.lstrip("d") in ("h_0", "c_0", "h_n", "c_n"):
            v = v.reshape(-1, 2, *v.shape[1:])[:, ::-1].reshape(v.shape)
        found[to] = np.ascontiguousarray(v)
    return found


def one_by_one(ask: Ask, case: Sized, a: Arrays, _rng: np.random.Generator) -> Pairs:
    """Compare a stack with its layers, which pass outputs forward and gradients backward."""
    L = case.config["num_layers"]
    D = 1 + bool(case.config["bidirectional"])
    merge = case.config.get("merge")
    inner = {n: v for n, v in case.config.items() if n != "merge" or v != "none"}

    def one(k: int, x: np.ndarray, dy: np.ndarray | None) -> Arrays:
        config = (case.config if k == L - 1 else inner) | {"num_layers": 1, "input_size": x.shape[-1]}
        at = slice(k * D, (k + 1) * D)
        given = {"x": x} | {n: v[at] for n, v in a.items() if n in ("h_0", "c_0", "dh_n", "dc_n")}
        for n, v in a.items():
            base, layer, reverse = split_name(n)
            if layer == k:
                given[f"{base}_l0{'_reverse' * reverse}"] = v
        return ask("module", config, given | ({"dy": dy} if dy is not None else {}))

    inputs, found = [a["x"]], []
    for k in range(L):
        # A call has gradients only with all cotangents; dy of the last layer comes first.
        found.append(one(k, inputs[-1], a.get("dy") if k == L - 1 else None))
        inputs.append(found[-1]["y"])
    whole = ask(case.op, case.config, a)
    gradients: Arrays = {}
    if "dx" in found[-1] and "dx" in whole:
        gradients = handed_back(one, inputs, found[-1], L)
    outputs: Arrays = {n: np.concatenate([f[n] for f in found]) for n in ("h_n", "c_n") if n in whole}
    outputs["y"] = found[-1]["y"]
    yield Pair(f"layers one by one, merge {merge}", outputs | gradients, whole)


def handed_back(one: Callable[..., Arrays], inputs: list[np.ndarray], last: Arrays, L: int) -> Arrays:
    """Return the gradients of a stack from those of its layers, the last first."""
    found: Arrays = {}
    states: list[Arrays] = []
    for k in reversed(range(L)):
        got = last if k == L - 1 else one(k, inputs[k], found["dx"])
        states.insert(0, got)
        found["dx"] = got["dx"]
        for name, v in got.items():
            base, layer, reverse = split_name(name)
            if layer is not None:
                found[f"{base}_l{k}{'_reverse' if reverse else ''}"] = v
    return found | {n: np.concatenate([s[n] for s in states]) for n in ("dh_0", "dc_0") if n in last}


def directions_apart(ask: Ask, case: Sized, a: Arrays, _rng: np.random.Generator) -> Pairs:
    """Compare a module of one layer with one call for each direction."""
    merge, D = case.config.get("merge", "concat"), 1 + bool(case.config["bidirectional"])
    P = a["h_0"].shape[-1]
    kept = {n: v for n, v in case.config.items() if n not in ("num_layers", "bidirectional", "merge")}
    ends: list[Arrays] = []
    gradients: Arrays = {}
    simple = merge in ("concat", "none", "sum")
    for d in range(D):
        given = {"x": a["x"]} | {n: a[n][d] for n in ("h_0", "c_0", "dh_n", "dc_n") if n in a}
        given |= {b: a[n] for n in a for b, m, r in [split_name(n)] if m == 0 and r == bool(d)}
        if simple and "dy" in a:
            given["dy"] = of_direction(a["dy"], merge, d, P)
        got = ask("layer", kept | {"reverse": bool(d)}, given)
        ends.append(got)
        gradients |= {f"{n}_l0{'_reverse' * d}": v for n, v in got.items() if n.removeprefix("d") in LAYER}
    if "dx" in ends[-1]:
        gradients["dx"] = np.sum([e["dx"] for e in ends], axis=0)
        gradients |= {n: np.stack([e[n] for e in ends]) for n in ("dh_0", "dc_0") if n in ends[-1]}
    outputs = {"y": joined([e["y"] for e in ends], merge)}
    whole = ask(case.op, case.config, a)
    outputs |= {n: np.stack([e[n] for e in ends]) for n in ("h_n", "c_n") if n in whole}
    yield Pair(f"directions one by one, merge {merge}", outputs | gradients, whole)


def of_direction(dy: np.ndarray, merge: str, d: int, P: int) -> np.ndarray:
    """Return the cotangent of one direction's output."""
    if merge == "none" and dy.ndim == 4:
        return np.asarray(dy[d])
    return dy[..., d * P : (d + 1) * P] if merge == "concat" else dy


def same_steps(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Compare lengths with the equal mask, and full lengths and a full mask with neither."""
    T, B = case.T, a["x"].shape[1]
    plain = {n: v for n, v in case.config.items() if n not in ("lengths", "mask")}
    lengths = case.config.get("lengths") or rng.integers(0, T + 1, B).tolist()
    mask = (np.arange(T)[:, None] < np.asarray(lengths)).tolist()
    for what, one, other in (
        ("full lengths and none", {"lengths": [T] * B}, {"lengths": None}),
        ("a full mask and none", {"mask": [[True] * B] * T}, {"lengths": None}),
        ("lengths and their mask", {"lengths": lengths}, {"mask": mask}),
    ):
        try:
            yield Pair(what, ask(case.op, plain | one, a), ask(case.op, plain | other, a))
        except Unsupported:
            continue


def linear(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Check that the pullback is linear in the cotangents: sums and multiples."""
    other = {n: rng.uniform(-1, 1, a[n].shape) for n in COTANGENTS if n in a}
    first = ask(case.op, case.config, a)
    if "dx" not in first:
        return
    second = ask(case.op, case.config, a | other)
    both = ask(case.op, case.config, a | {n: a[n] - 2 * v for n, v in other.items()})
    expected = {n: v - 2 * second[n] for n, v in first.items() if n.startswith("d")}
    yield Pair("the pullback of a sum", both, expected)
    zero = ask(case.op, case.config, a | {n: np.zeros_like(v) for n, v in other.items()})
    nothing = {n: np.zeros_like(v) for n, v in zero.items() if n.startswith("d")}
    yield Pair("the pullback of zero", zero, nothing)
    for power in SCALES:
        scaled = ask(case.op, case.config, a | {n: a[n] * 2.0**power for n in other})
        back = {n: v * 2.0**-power for n, v in scaled.items() if n.startswith("d")}
        yield Pair(f"the pullback of cotangents times 2**{power}", back, first)


def directional(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Compare gradients with central differences of the forward pass, in the subject's own precision."""
    got = ask(case.op, case.config, a)
    if "dx" not in got:
        return
    # The error of a difference is about step**2 from its length, and u / step from rounding.
    step, close = (2.0**-17, 2.0**-20) if ask.dtype == "float64" else (2.0**-7, 2.0**-7)
    forward = Ask(ask.subject, ask.dtype, gradients=False)
    inputs = [n for n in a if n not in COTANGENTS and f"d{n}" in got]
    states: list[str] = [n for n in ("h_0", "c_0") if n in a]
    for what, names in {"all inputs": inputs, "the states": states, "x": ["x"]}.items():
        moves = {n: rng.choice([-1.0, 1.0], a[n].shape) / np.sqrt(max(a[n].size, 1)) for n in names}
        ends = [
            forward(case.op, case.config, a | {n: a[n] + sign * v for n, v in moves.items()})
            for sign in (step, -step)
        ]
        changed = {n: ends[0][n].astype("float64") - ends[1][n] for n in ("y", "h_n", "c_n") if f"d{n}" in a}
        measured = sum(float(np.sum(a[f"d{n}"] * v)) for n, v in changed.items()) / (2 * step)
        slopes = {n: got[f"d{n}"].astype("float64") for n in moves}
        stated = sum(float(np.sum(slopes[n] * v)) for n, v in moves.items())
        size = 1 + np.sqrt(sum(float(np.sum(v**2)) for v in slopes.values()))
        yield Pair(
            f"slope with respect to {what}, {stated:.6g} by gradients and {measured:.6g} by differences",
            {"slope": np.asarray(stated / size)},
            {"slope": np.asarray(measured / size)},
            allowed=close / UNITS[ask.dtype],
        )


def projected(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Check that a projection by rows of the identity selects units, and that weight_hh reads only these."""
    H = case.config["hidden_size"]
    P = int(rng.integers(1, H))
    units = np.sort(rng.permutation(H)[:P])
    others = np.setdiff1d(np.arange(H), units)
    plain, some = dict(a), dict(a)
    for name in a:
        base, layer, reverse = split_name(name)
        if base == "weight_hh":
            plain[name] = a[name].copy()
            plain[name][:, others] = 0
            some[name] = a[name][:, units]
            suffix = "" if layer is None else f"_l{layer}" + "_reverse" * reverse
            some[f"weight_hr{suffix}"] = np.eye(H)[units]
    some["h_0"] = a["h_0"][..., units]
    blocks = features(units, H, a["dy"].shape[-1] // H)
    if "dy" in a:
        dead = np.setdiff1d(np.arange(a["dy"].shape[-1]), blocks)
        plain["dy"], plain["dh_n"] = a["dy"].copy(), a["dh_n"].copy()
        plain["dy"][..., dead], plain["dh_n"][..., others] = 0, 0
        some["dy"], some["dh_n"] = a["dy"][..., blocks], a["dh_n"][..., units]
    got = ask(case.op, case.config | {"proj_size": P}, some)
    expected = ask(case.op, case.config, plain)
    # The projection removes h of the other units, so it is unknown.
    cuts = {"y": blocks, "h_n": units, "dh_0": units}
    expected = {n: v[..., cuts[n]] if n in cuts else v for n, v in expected.items() if "weight_hh" not in n}
    yield Pair(f"a projection to units {units.tolist()}", got, expected)


VANISHING = {"zoneout_h": "0", "zoneout_c": "0", "gate_clip": "1000000", "cell_clip": "1000000"}


def vanishing(ask: Ask, case: Sized, a: Arrays, _rng: np.random.Generator) -> Pairs:
    """Compare each option at the value without an effect with the call without the option."""
    variant = case.config.get("variant", {})
    none = ask(case.op, case.config, a)
    for name, value in VANISHING.items():
        if name not in variant:
            config = case.config | {"variant": variant | {name: value}}
            yield from offered(f"{name} = {value}", ask, case.op, config, a, none)
    if "activations" not in variant:
        config = case.config | {"variant": variant | {"activations": [["sigmoid"], ["tanh"], ["tanh"]]}}
        yield from offered("the usual activations by name", ask, case.op, config, a, none)
    H = case.config["hidden_size"]
    if "peepholes" not in variant:
        peeps = {n.replace("weight_hh", "weight_ch"): np.zeros(3 * H) for n in a if n.startswith("weight_hh")}
        config = case.config | {"variant": variant | {"peepholes": True}}
        yield from offered("peepholes of zero", ask, case.op, config, a | peeps, none)
    if not {"coupled", "peepholes", "layer_norm", "activations"} & {*variant}:
        yield from coupled(ask, case, a)
    if not case.config["bias"] and not normalised(case):
        yield from without_bias(ask, case, a, none)


def without_bias(ask: Ask, case: Sized, a: Arrays, none: Arrays) -> Pairs:
    """Compare zero biases with the call without biases."""
    rows = {n: len(v) for n, v in a.items() if n.startswith("weight_hh")}
    names = ("bias_ih", "bias_hh")
    zeros = {n.replace("weight_hh", b): np.zeros(size) for b in names for n, size in rows.items()}
    yield from offered("biases of zero", ask, case.op, case.config | {"bias": True}, a | zeros, none)


def coupled(ask: Ask, case: Sized, a: Arrays) -> Pairs:
    """Compare coupled gates with rows of f that are the negatives of those of i: 1 - s(z) = s(-z)."""
    H = case.config["hidden_size"]
    mirrored = dict(a)
    for n in a:
        if n.startswith(("weight_ih", "weight_hh", "bias")):
            mirrored[n] = a[n].copy()
            mirrored[n][H : 2 * H] = -a[n][:H]
    config = case.config | {"variant": case.config.get("variant", {}) | {"coupled": True}}
    expected = ask(case.op, case.config, mirrored)
    kept = {n: v for n, v in expected.items() if not n.startswith(("dweight", "dbias"))}
    yield from offered("coupled gates", ask, case.op, config, mirrored, kept)


def offered(what: str, ask: Ask, op: str, config: Record, a: Arrays, expected: Arrays) -> Pairs:
    """Yield a pair if the subject supports the first call."""
    try:
        got = ask(op, config, a)
    except Unsupported:
        return
    yield Pair(what, got, expected)


def shifted_norm(ask: Ask, case: Sized, a: Arrays, _rng: np.random.Generator) -> Pairs:
    """Check that layer normalisation ignores a constant that is added to all 4H sums, however large."""
    far = dict(a)
    for n in a:
        if n.startswith(("weight_ih", "weight_hh")):
            far[n] = a[n].copy()
            far[n][:, 0] += 256
    forward = Ask(ask.subject, ask.dtype, gradients=False)
    got, expected = (forward(case.op, case.config, given) for given in (far, a))
    # Sums of 256 and a spread below 1 lose as many units; a variance E[v**2] - E[v]**2 loses their square.
    yield Pair("sums with a large mean", got, expected, allowed=16384)


def again(ask: Ask, case: Sized, a: Arrays, rng: np.random.Generator) -> Pairs:
    """Check that a call gives the same results after another one, and writes neither to inputs nor beyond."""
    before = ask(case.op, case.config, a)
    other = {n: -a[n] for n in ("h_0", "c_0") if n in a}
    ask(case.op, case.config, a | other | {"x": rng.uniform(-1, 1, a["x"].shape)})
    guarded, buffers = guard({n: v.astype(ask.dtype) for n, v in a.items()})
    kept = {n: v.copy() for n, v in buffers.items()}
    forward = Ask(ask.subject, ask.dtype, gradients=False)
    yield Pair("the same call again", ask.exactly(case.op, case.config, guarded), before)
    yield Pair("the call without gradients", forward.exactly(case.op, case.config, guarded), before)
    yield Pair("inputs, and what is next to them", buffers, kept, allowed=0)


def guard(a: Arrays) -> tuple[Arrays, Arrays]:
    """Return each array as a part of a larger buffer, and the buffers."""
    buffers = {n: np.full(v.size + 2 * GUARD, 7.25, v.dtype) for n, v in a.items()}
    views = {n: b[GUARD : GUARD + a[n].size].reshape(a[n].shape) for n, b in buffers.items()}
    for n, view in views.items():
        view[...] = a[n]
    return views, buffers


def stateful(case: Sized) -> bool:
    """Return whether a call can be split and continued: it has one direction."""
    return case.T > 1 and not case.config.get("bidirectional")


def directed(case: Sized) -> bool:
    return case.op == "layer" or case.config["bidirectional"]


def deep(case: Sized) -> bool:
    return case.config.get("num_layers", 1) > 1


def shallow(case: Sized) -> bool:
    return case.op == "module" and not deep(case)


def without(*names: str) -> Callable[[Sized], bool]:
    return lambda case: not {*names} & {*case.config.get("variant", {})}


def unprojected(case: Sized) -> bool:
    return not case.config["proj_size"] and not deep(case) and without("layer_norm")(case)


def normalised(case: Sized) -> bool:
    return not without("layer_norm")(case)


def always(_case: Sized) -> bool:
    return True


class Law(NamedTuple):
    """Relation, the clause that states it, and the calls to which it applies."""

    clause: str
    relation: Relation
    applies: Callable[[Sized], bool] = always


CALLS = ("layer", "module-three-by-two", "module-two-directions", "options-5")
"""Of a wrong LSTM each relation is asked in the first of these calls that it applies to."""
LAWS: dict[str, Law] = {
    "permuted": Law("XPL-REL-001", permuted),
    "alone": Law("XPL-REL-001", one_in_a_batch),
    "larger": Law("XPL-REL-002", larger),
    "cut": Law("XPL-REL-003", cut, stateful),
    "segments": Law("XPL-SEQ-010", segments, stateful),
    "reversed": Law("XPL-REL-004", reversed_input, directed),
    "layers": Law("XPL-REL-005", one_by_one, deep),
    "directions": Law("XPL-REL-005", directions_apart, shallow),
    "steps": Law("XPL-REL-006", same_steps),
    "linear": Law("XPL-REL-007", linear),
    "slope": Law("XPL-REL-008", directional, without("gate_clip", "cell_clip")),
    "identity": Law("XPL-REL-009", projected, unprojected),
    "vanishing": Law("XPL-REL-010", vanishing),
    "shifted": Law("XPL-REL-011", shifted_norm, normalised),
    "again": Law("XPL-REL-012", again),
}


def broken(ask: Ask, law: str, name: str) -> tuple[list[str], int]:
    """Compare a relation on a call of the plan; return the errors, and the number of compared pairs."""
    rng = np.random.default_rng(zlib.crc32(f"{law} {name}".encode()))
    return compared(ask, LAWS[law].relation, CASES[name], drawn(CASES[name], rng), rng)


def compared(
    ask: Ask, relation: Relation, case: Sized, a: Arrays, rng: np.random.Generator
) -> tuple[list[str], int]:
    """Return the errors of a relation in a call, and the number of compared pairs."""
    pairs = list(relation(ask, case, a, rng))
    return [said for pair in pairs for said in faults(pair, ask.dtype)], len(pairs)
