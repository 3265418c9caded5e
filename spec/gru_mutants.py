"""Define GRUs that are wrong only at some sizes, options or numbers; a call of gru_calls must detect each."""

from __future__ import annotations

import numpy as np

from spec.corner_mutants import clipped, ended_without_steps, layers, no_state, of_size, off
from spec.margin_mutants import (
    EDGES,
    entries_as_outputs,
    exchanged_layers,
    last_repeated,
    of_one_shape,
    states_as_entries,
    swapped,
)
from spec.path_mutants import alone, backward, steps_of, zero_cotangents
from spec.plausible_mutants import (
    ends_finite,
    masked,
    nan_everywhere,
    nan_of_padding,
    only,
    sorted_lengths,
    started_forward,
    stored,
    unbiased,
    zeroed,
)
from spec.sized_mutants import (
    Call,
    Test,
    after,
    always,
    before,
    beyond,
    both,
    equal,
    lengths_as,
    option,
    ragged,
    sized,
    transposed,
    without,
)
from spec.subject import Arrays, Config

PLACES: dict[str, Test] = {
    "after": option("reset_after"),
    "before": lambda _op, c, _a: not c["reset_after"],
}
"""The place of the reset gate."""
WAYS: dict[str, Test] = {
    "two layers": layers(2),
    "three layers": layers(3),
    "two directions": option("bidirectional"),
    "two layers of two directions": both(layers(2), option("bidirectional")),
    "lengths": ragged,
    "a mask": masked,
    "resets": option("reset"),
    "no bias": unbiased,
}
LARGE: dict[str, Test] = {
    "units beyond 8": sized("H", 8),
    "units beyond 65": sized("H", 65),
    "entries beyond 8": sized("B", 8),
    "entries beyond 65": sized("B", 65),
    "inputs beyond 65": sized("I", 65),
    "steps beyond 20": sized("T", 20),
    "steps beyond 512": sized("T", 512),
}
TOGETHER = (
    *(("two layers", "units beyond 8"), ("two directions", "steps beyond 20")),
    *(("lengths", "units beyond 8"), ("lengths", "entries beyond 8"), ("lengths", "steps beyond 20")),
    *(("a mask", "units beyond 8"), ("a mask", "entries beyond 8"), ("no bias", "units beyond 8")),
    *(("lengths", "two layers of two directions"), ("a mask", "two directions"), ("a mask", "two layers")),
    *(
        ("no bias", "two layers"),
        ("no bias", "two directions"),
        ("no bias", "lengths"),
        ("no bias", "a mask"),
    ),
    *(("resets", "two directions"), ("resets", "lengths"), ("resets", "a mask"), ("resets", "two layers")),
)


def of_both(*names: str) -> Test:
    """Return the condition that two kinds of `WAYS`, `LARGE` or the edges of margins apply together."""
    known = WAYS | LARGE | EDGES
    return both(*(known[name] for name in names))


def exchanged_biases(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
    """Change results: exchange the gradients of the two biases."""
    other = {n: n.replace("_ih", "_hh") for n in got if n.startswith("dbias_ih")}
    return got | {n: got[m] for n, m in (other | {m: n for n, m in other.items()}).items()}


def inputs_a_unit(factor: int) -> Test:
    """Return the condition of this number of inputs per unit, so that two matrices have the same shape."""
    return lambda _op, c, a: a["x"].shape[2] == factor * int(c["hidden_size"])


def loud(_op: str, _config: Config, a: Arrays) -> bool:
    return bool(np.abs(np.nan_to_num(a["x"])).max(initial=0) > 700)


def overflown(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
    return {n: v + np.nan for n, v in got.items()}


MUTANTS: dict[str, Call] = {
    **{f"{what}, reset gate {place}": after(both(test, at), off("y"))
       for what, test in LARGE.items() for place, at in PLACES.items()
       if what not in ("units beyond 65", "entries beyond 65", "inputs beyond 65", "steps beyond 512")},
    **{f"{what}": after(test, off("dx")) for what, test in LARGE.items()},
    **{f"h_n of units beyond {n} wrong": after(always, beyond("h_n", -1, n)) for n in (8, 64)},
    **{f"{what}, reset gate {place}": after(both(test, at), off("dweight_hh"))
       for what, test in WAYS.items() for place, at in PLACES.items()},
    **{f"{a} and {b}": after(of_both(a, b), off("y")) for a, b in TOGETHER},
    **{f"{edge}: {name} off": after(test, off(name))
       for edge, test in EDGES.items() for name in ("h_n", "dh_0", "dweight_ih")
       if (edge, name) not in (("no entries", "h_n"), ("no entries", "dh_0"))},
    **{f"{edge} of {way}": after(of_both(edge, way), off("h_n", "dw"))
       for edge in ("no steps", "no entries", "one step")
       for way in ("two directions", "two layers")},
    "one entry with lengths": after(both(of_size(1, 1), ragged), off("y")),
    **{f"without gradients: {what}": after(both(alone, test), off("y"))
       for what, test in ({"all": always} | WAYS).items()},
    "gradients of the biases swapped": after(PLACES["after"], exchanged_biases),
    "entries without a step end at zero": after(ragged, ended_without_steps),
    "entries of a mask without a step end at zero": after(masked, ended_without_steps),
    **{f"dh_n ignored {way}": backward(test, zeroed("dh_n"))
       for way, test in {
           "with lengths": ragged,
           "with a mask": masked,
           "with resets": option("reset"),
           "in several layers": layers(2),
           "where dy is zero": zero_cotangents("dy"),
       }.items()},
    "dy ignored where dh_n is zero": backward(zero_cotangents("dh_n"), zeroed("dy")),
    "h_0 of reverse is that of forward": before(option("bidirectional"), started_forward("h_0")),
    "y repeats its last step past the end": after(ragged, last_repeated),
    "resets ignored": before(option("reset"), without("reset")),
    "resets of the first entry for all": before(option("reset"), only("reset")),
    "mask of the first entry for all": before(masked, only("mask")),
    "NaN past the end reaches gradients": after(ragged, nan_of_padding),
    "NaN of one entry in every entry": after(always, nan_everywhere),
    "NaN in the final state swallowed": after(always, ends_finite),
    "n overflows": after(loud, overflown),
    **{f"{name} clipped at {bound:g}": before(always, clipped(bound, name))
       for name in ("x", "h_0", "weight_ih", "weight_hh", "dy", "dh_n") for bound in (2, 100)},
    **{f"{name} clipped at 2": before(always, clipped(2, name)) for name in ("bias_ih", "bias_hh")},
    "weight_ih of two layers exchanged where they have one shape": before(of_one_shape, exchanged_layers),
    "h_n turned where there are as many states as entries": after(states_as_entries, swapped("h_n", 0, 1)),
    "y turned where there are as many entries as outputs": after(entries_as_outputs, swapped("y", 1, 2)),
    "zero states filled": before(lambda _op, _c, a: not a["h_0"].any(), no_state),
    "lengths sorted and not put back": before(ragged, sorted_lengths),
    "equal lengths taken for full": before(equal, lengths_as(lambda _given, _T: None)),
    "one step: h_0 ignored": before(steps_of(1), zeroed("h_0")),
    "gradients stored in float16": after(always, stored("float16", "d")),
    "y batch first where T = B": after(always, transposed),
    **{f"I is {n} H": after(inputs_a_unit(n), off("dweight_ih")) for n in (1, 3)},
}  # fmt: skip
