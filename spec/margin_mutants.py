"""Define LSTMs that are wrong with an option at a margin: no steps, one unit, a high rate, another option."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from spec.corner_mutants import layers, of_size, off
from spec.mutants import DRAW_FAULTS
from spec.path_mutants import backward, work, zero_cotangents
from spec.plausible_mutants import drawn, masked, started_forward, unbiased, zeroed
from spec.sized_mutants import (
    Call,
    Finish,
    Spoil,
    Test,
    after,
    always,
    before,
    both,
    exactly,
    faulty,
    option,
    ragged,
    single,
    sized,
    stacked,
)
from spec.subject import Arrays, Config
from spec.wrong import LSTM
from spec.wrong_cell import Exact

EDGES: dict[str, Test] = {
    "no steps": of_size(0, 0),
    "no entries": of_size(1, 0),
    "one step": of_size(0, 1),
    "one unit": exactly(1),
    "one entry": of_size(1, 1),
}
OPTIONS: dict[str, Test] = {
    **{n: option(n) for n in ("peepholes", "coupled", "gate_clip", "cell_clip", "layer_norm", "zoneout_h")},
    **{"activations": option("activations"), "noise": option("noise")},
}
NEVER = (("no steps", "a mask"), ("no steps", "resets"), ("no entries", "lengths"))
"""What no call can say: a list that is empty has one axis."""
STEPS: dict[str, Test] = {"lengths": ragged, "a mask": masked, "resets": option("reset")}
SHAPES: dict[str, Test] = {"a projection": option("proj_size"), "no bias": unbiased}
OTHERS: dict[str, Test] = {
    **{n: test for n, test in OPTIONS.items() if n != "noise"},
    **STEPS,
    **SHAPES,
    **{"a merge": option("merge"), "three layers": layers(3)},
}

DEEP: dict[str, Test] = {
    **{name: test for name, test in OTHERS.items() if name != "three layers"},
    **{"noise": option("noise"), "dropout": drawn},
}
THIRDS: dict[str, Test] = {
    "activations": option("activations"),
    **{n: both(stacked, option(n)) for n in ("input_dropout", "weight_dropout")},
    "recurrent_dropout": option("recurrent_dropout"),
    "dropout": drawn,
}
PAIRED = ("peepholes", "coupled", "gate_clip", "lengths", "a mask", "a projection", "no bias")
"""Options of which each pair is asked together with each of `THIRDS`."""


def full(_op: str, config: Config, _a: Arrays) -> bool:
    """Where every step of a mask exists."""
    return bool(np.all(config["mask"]))


def rate(name: str, least: float) -> Test:
    """Return the condition that a rate is above a bound."""
    return lambda _op, c, _a: any(
        float(part.get(name, 0)) > least for part in (c, c.get("variant", {}), c.get("dropout", {}))
    )


def alone(name: str, other: str) -> Test:
    """Return the condition that one rate of zoneout is given without the other."""
    return lambda _op, c, _a: name in c.get("variant", {}) and other not in c.get("variant", {})


def square(*lists: str) -> Test:
    """Return the condition that steps and entries are equal in number, and one of these lists is given."""
    return lambda _op, c, a: a["x"].shape[0] == a["x"].shape[1] and any(c.get(n) is not None for n in lists)


def turned(name: str) -> Spoil:
    return lambda c, a: (c | {name: np.transpose(c[name]).tolist()}, a)


def of_one_shape(_op: str, _config: Config, a: Arrays) -> bool:
    return "weight_ih_l1" in a and a["weight_ih_l0"].shape == a["weight_ih_l1"].shape


def exchanged_layers(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: exchange the input weights of the first two layers."""
    return config, a | {"weight_ih_l0": a["weight_ih_l1"], "weight_ih_l1": a["weight_ih_l0"]}


def states_as_entries(_op: str, _config: Config, a: Arrays) -> bool:
    return a["h_0"].ndim == 3 and a["h_0"].shape[0] == a["h_0"].shape[1]


def entries_as_outputs(_op: str, config: Config, a: Arrays) -> bool:
    joined = config.get("bidirectional") and config.get("merge", "concat") == "concat"
    return bool(joined) and a["x"].shape[1] == 2 * a["h_0"].shape[-1]


def steps_as_directions(_op: str, config: Config, a: Arrays) -> bool:
    return config.get("merge") == "none" and len(a["x"]) == 2


def swapped(name: str, first: int, second: int) -> Finish:
    """Return a change of results: two axes of one array are exchanged."""
    return lambda _config, _a, got: got | {name: np.swapaxes(got[name], first, second)}


def four_inputs_a_unit(_op: str, config: Config, a: Arrays) -> bool:
    return a["x"].shape[2] == 4 * int(config["hidden_size"])


def turned_weights(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: read a square matrix in the other order."""
    return config, {
        n: v.T if n.startswith("weight_ih") and len(set(v.shape)) == 1 else v for n, v in a.items()
    }


def listed(_op: str, config: Config, _a: Arrays) -> bool:
    """Return whether lengths are given."""
    return config.get("lengths") is not None


def one_layer(_op: str, config: Config, _a: Arrays) -> bool:
    """Return whether a module has two directions of one layer."""
    return bool(config.get("bidirectional")) and int(config["num_layers"]) == 1


def outputs(least: int) -> Test:
    return lambda _op, c, _a: int(c["proj_size"]) > least


LARGE: dict[str, Test] = {
    "units beyond 600": sized("H", 600),
    "units beyond 260 of modules": both(stacked, sized("H", 260)),
    "outputs beyond 520": outputs(520),
    "inputs beyond 2100": sized("I", 2100),
    "twelve layers of two directions": both(layers(11), option("bidirectional")),
    "inputs four times the units, with lengths": both(four_inputs_a_unit, ragged),
    "two layers beyond 600 steps": both(layers(2), sized("T", 600)),
    "activations of layers and units beyond 34": both(single, option("activations"), sized("H", 34)),
    "activations of modules and units beyond 16": both(stacked, option("activations"), sized("H", 16)),
    "activations beyond 100 steps": both(option("activations"), sized("T", 100)),
    "activations and all else in reverse": both(
        *map(option, ("activations", "peepholes", "coupled", "gate_clip", "cell_clip", "zoneout_h")),
        *(option("proj_size"), masked, option("reset"), option("reverse")),
    ),
    "activations and all else in modules": both(
        *map(option, ("activations", "peepholes", "coupled", "gate_clip", "cell_clip", "zoneout_h")),
        *(option("proj_size"), ragged, option("reset"), option("merge")),
    ),
    "two directions beyond 600 steps": both(option("bidirectional"), sized("T", 600)),
    "modules with lengths beyond 300 steps": both(stacked, ragged, sized("T", 300)),
    **{f"{name} beyond 300 steps": both(test, sized("T", 300)) for name, test in (
        ("a projection", option("proj_size")),
        ("a mask", masked),
        ("a norm", option("layer_norm")),
        ("peepholes", option("peepholes")),
    )},
    **{f"{name} and units beyond 66": both(option(name), sized("H", 66))
       for name in ("layer_norm", "peepholes")},
    "a norm of modules and units beyond 34": both(stacked, option("layer_norm"), sized("H", 34)),
    **{f"{name} and inputs beyond 34": both(test, sized("I", 34))
       for name, test in (("a norm", option("layer_norm")), ("a mask", masked))},
    **{f"{name} and entries beyond 66": both(test, sized("B", 66)) for name, test in (
        ("a mask", masked),
        ("resets", option("reset")),
        ("peepholes", option("peepholes")),
    )},
    **{f"resets, lengths, reverse and {name}": both(ragged, *map(option, ("reset", "reverse", name)))
       for name in ("proj_size", "peepholes")},
}  # fmt: skip


def numbers(least: int) -> Test:
    """Return the condition that the outputs of a direction have more numbers than this."""
    return lambda _op, c, a: a["x"][..., 0].size * int(c["hidden_size"]) > least


def last_repeated(config: Config, _a: Arrays, got: Arrays) -> Arrays:
    """Change results: y repeats its last step after the end of each entry, like edge padding."""
    y, h_n, n = got["y"], got["h_n"], np.asarray(config["lengths"])
    D = 1 + bool(config.get("bidirectional"))
    last = h_n if h_n.ndim == 2 else np.concatenate([*h_n[-D:]], -1)
    if y.shape[1:] != last.shape:
        return got
    past = (np.arange(len(y))[:, None] >= n) & (n > 0)
    return got | {"y": np.where(past[..., None], last, y)}


def clipped(bound: float, name: str) -> Spoil:
    """Return a change of calls: clip the numbers of an array to a bound."""
    return lambda c, a: (c, {n: np.clip(v, -bound, bound) if n.startswith(name) else v for n, v in a.items()})


class Saturated(Exact):
    """LSTM whose functions return 1 or 0 too early."""

    def __init__(self, one: float, zero: float) -> None:
        self.one, self.zero = one, zero

    def curved(self, v: np.ndarray) -> np.ndarray:
        v = np.where(np.abs(v) > 1 - self.one, np.sign(v), v)
        return np.where(np.abs(v) < self.zero, 0, v)


CLIPPED: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("x", "weight_ih"), (10, 10000)),
    **dict.fromkeys(("h_0", "c_0", "weight_hh", "weight_hr", "weight_ch"), (2, 10, 1000)),
    **dict.fromkeys(("gain_ih", "gain_hh", "gain_c", "bias_c"), (2, 4)),
    **dict.fromkeys(("dy", "dh_n", "dc_n"), (1000, 1e10)),
}
"""Bounds to which an implementation may clip its arrays unasked."""


def unused_rows(_config: Config, a: Arrays, got: Arrays) -> Arrays:
    """Change results: rows of f that coupled gates do not use are multiplied by zero."""
    rows = [np.split(v, 4)[1] for n, v in a.items() if n.startswith(("weight_ih", "weight_hh", "bias_"))]
    return got | {"y": got["y"] + 0 * sum(v.sum() for v in rows)}


def of_sums(least: float, most: float) -> Test:
    """Return the condition that the inputs of a layer normalisation are within these magnitudes."""
    return lambda _op, c, a: bool(
        c.get("variant", {}).get("layer_norm") and least < np.abs(a["x"]).max(initial=0) < most
    )


MUTANTS: dict[str, Call] = {
    "rows of f of coupled gates multiplied by zero": after(
        both(option("coupled"), lambda _op, c, _a: not c["variant"].get("layer_norm")), unused_rows),
    "norms of large numbers": after(of_sums(1000, np.inf), off("y")),
    "norms of small numbers": after(of_sums(0, 0.01), off("y")),
    "functions saturated at 16": LSTM(arithmetic=Saturated(2.0**-45, 0)).call,
    "functions saturated at -29": LSTM(arithmetic=Saturated(0, 2.0**-42)).call,
    **{f"{name} clipped at {bound:g}": before(always, clipped(bound, name))
       for name, bounds in CLIPPED.items() for bound in bounds},
    "y repeats its last step past the end": after(ragged, last_repeated),
    **{f"{name} of reverse is that of forward": before(option("bidirectional"), started_forward(name))
       for name in ("h_0", "c_0")},
    **{f"{name} with {edge}": after(both(test, at), off("h_n", "dw"))
       for edge, at in EDGES.items() for name, test in OPTIONS.items()},
    **{f"{name} with {edge} in {kind}": after(both(test, at, where), off("c_n", "dw"))
       for edge, at in EDGES.items() for name, test in STEPS.items() if (edge, name) not in NEVER
       for kind, where in (("layers", single), ("reverse", option("reverse")), ("modules", stacked))},
    **{f"{name} with {edge} in {kind}": after(both(test, at, where), off("h_n", "dw", "dx"))
       for edge, at in EDGES.items() for name, test in SHAPES.items()
       if (edge, name) != ("one unit", "a projection")
       for kind, where in (("layers", single), ("reverse", option("reverse")), ("modules", stacked))},
    "a projection, lengths and no steps": after(
        both(option("proj_size"), listed, of_size(0, 0)), off("h_n")
    ),
    **{name: after(test, off("y")) for name, test in LARGE.items()},
    **{f"{name} ignored where it alone is not zero": backward(zero_cotangents(*others), zeroed(name))
       for name, others in (("dh_n", ("dy", "dc_n")), ("dc_n", ("dy", "dh_n")))},
    "dc_n of modules ignored where it alone is not zero": backward(
        both(stacked, zero_cotangents("dy", "dh_n")), zeroed("dc_n")
    ),
    "gradients of no cotangent": after(zero_cotangents("dy", "dh_n", "dc_n"), off("d")),
    **{f"merged with {edge}": after(both(option("merge"), at), off("h_n", "dw"))
       for edge, at in EDGES.items()},
    **{f"dropout with {edge}": after(both(drawn, at), off("h_n", "dw")) for edge, at in EDGES.items()},
    **{f"activations and {name}": after(both(option("activations"), test), off("y"))
       for name, test in OTHERS.items() if name != "activations"},
    **{f"noise and {name}": after(both(option("noise"), test), off("y")) for name, test in OTHERS.items()},
    **{f"{name} above {least}": after(rate(name, least), off("y"))
       for name in ("p", "zoneout_h", "zoneout_c", "recurrent_dropout", "input_dropout", "weight_dropout")
       for least in (0.5, 0.65)},
    **{f"{name} drawn by {fault}": faulty(rate(name, 0), fault)
       for name in ("p", "zoneout_h", "zoneout_c", "recurrent_dropout", "input_dropout", "weight_dropout")
       for fault in DRAW_FAULTS},
    **{f"{name} through six layers": after(both(test, layers(6)), off("y"))
       for name, test in DEEP.items()},
    **{f"{what} and {one} and {other}": after(both(test, OTHERS[one], OTHERS[other]), off("y"))
       for what, test in THIRDS.items() for one, other in combinations(PAIRED, 2)
       if (one, other) != ("lengths", "a mask")},
    **{f"masks of inputs with {edge}": after(both(at, option("input_dropout")), off("h_n", "dw"))
       for edge, at in EDGES.items()},
    "a full mask of modules": after(both(stacked, masked, full), off("y")),
    **{f"two directions of one layer with {edge}": after(both(at, one_layer), off("h_n", "dw"))
       for edge, at in EDGES.items()},
    **{f"{name} and two directions of one layer with {edge}": after(
        both(at, test, one_layer), off("h_n", "dw"))
       for edge, at in EDGES.items() for name, test in STEPS.items() if (edge, name) not in NEVER},
    **{f"{one} without {other}": after(alone(one, other), off("y"))
       for one, other in (("zoneout_h", "zoneout_c"), ("zoneout_c", "zoneout_h"))},
    **{f"{name} turned where it is square": before(square(name), turned(name)) for name in ("mask", "reset")},
    "weight_ih of two layers exchanged where they have one shape": before(of_one_shape, exchanged_layers),
    **{f"{name} turned where there are as many states as entries": after(
        states_as_entries, swapped(name, 0, 1)) for name in ("h_n", "c_n")},
    "y turned where there are as many entries as outputs": after(entries_as_outputs, swapped("y", 1, 2)),
    "y turned where there are as many steps as directions": after(steps_as_directions, swapped("y", 0, 1)),
    "weight_ih turned where it is square": before(four_inputs_a_unit, turned_weights),
    "more than 65536 numbers in layers": after(both(single, numbers(2**16)), off("y")),
    "more than 65536 numbers in modules": after(both(stacked, numbers(2**16)), off("y")),
    "more than 8192 steps of entries": after(
        lambda _op, _c, a: a["x"][..., 0].size > 2**13, off("y")
    ),
    "more than a million weights": after(work(("I", 512), ("H", 400)), off("y")),
    "steps beyond 2048": after(sized("T", 2048), off("h_n")),
    **{f"H is {n}": after(exactly(n), off("y")) for n in (120, 144, 200, 224, 300, 320, 400)},
    **{f"T is {n}": after(of_size(0, n), off("y")) for n in (150, 200, 500, 512, 1000, 1024)},
    "resets beyond step 128": after(both(option("reset"), sized("T", 128)), off("y")),
    "lengths of large layers": after(both(ragged, single, sized("H", 128)), off("y")),
    "lengths of large batches": after(both(ragged, sized("B", 128)), off("y")),
    "three large layers": after(both(layers(3), sized("H", 64)), off("y")),
    "projection of large batches": after(both(option("proj_size"), sized("B", 64)), off("y")),
}  # fmt: skip
