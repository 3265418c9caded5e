"""Define LSTMs with plausible faults at some option, size or place; a call must detect each.

Most are a family: one habit, and each option, size or array that it can spoil.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spec.sized_mutants import (
    Call,
    Finish,
    Spoil,
    Test,
    after,
    always,
    before,
    beyond,
    both,
    exactly,
    faulty,
    features,
    full,
    option,
    ragged,
    right,
    single,
    sized,
    stacked,
    without,
)
from spec.subject import Arrays, Config

OPTIONS = (
    *("peepholes", "coupled", "gate_clip", "cell_clip", "layer_norm", "zoneout_h", "zoneout_c"),
    *("activations", "reset"),
)


def masked(_op: str, config: Config, _a: Arrays) -> bool:
    return config.get("mask") is not None


def deep(_op: str, config: Config, _a: Arrays) -> bool:
    return bool(config.get("num_layers", 1) > 1)


def merged(_op: str, config: Config, _a: Arrays) -> bool:
    return config.get("merge") in ("sum", "mean", "product")


def unbiased(_op: str, config: Config, _a: Arrays) -> bool:
    return not config["bias"]


def drawn(_op: str, config: Config, _a: Arrays) -> bool:
    return "dropout" in config


def one_entry(_op: str, _config: Config, a: Arrays) -> bool:
    return a["x"].shape[1] == 1


def one_step(_op: str, _config: Config, a: Arrays) -> bool:
    return len(a["x"]) == 1


def square_entries(_op: str, _config: Config, a: Arrays) -> bool:
    """Return whether there are as many batch entries as states of layers and directions."""
    return a["h_0"].ndim == 3 and a["h_0"].shape[0] == a["h_0"].shape[1]


CIRCUMSTANCES: dict[str, Test] = {
    "in reverse": option("reverse"),
    "with two directions": option("bidirectional"),
    "with several layers": deep,
    "with lengths": ragged,
    "with a mask": masked,
    "with a projection": option("proj_size"),
    "without biases": unbiased,
    "where directions are merged": merged,
}
NEVER = {("activations", "where directions are merged"), ("activations", "with a mask")}
"""What no call has together."""


def cleared(*names: str) -> Finish:
    """Return a change of results: zeros in arrays with these name prefixes."""
    return lambda _c, _a, got: {n: v * 0 if n.startswith(names) else v for n, v in got.items()}


def scaled(factor: Callable[[Arrays], float], *names: str) -> Finish:
    return lambda _c, a, got: {n: v * factor(a) if n.startswith(names) else v for n, v in got.items()}


def zeroed(*names: str) -> Spoil:
    """Return a change of calls: zeros in arrays with these name prefixes."""
    return lambda c, a: (c, {n: np.zeros_like(v) if n.startswith(names) else v for n, v in a.items()})


def only(name: str) -> Spoil:
    """Return a change of calls: all entries use the list of the first."""

    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        given = np.asarray(config[name])
        first = given[..., :1] if given.size else given
        return config | {name: np.broadcast_to(first, given.shape).tolist()}, a

    return spoil


def sorted_lengths(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    return config | {"lengths": sorted(config["lengths"], reverse=True)}, a


def lengths_at_least_one(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    return config | {"lengths": [max(n, min(1, len(a["x"]))) for n in config["lengths"]]}, a


def filled_mask(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: a mask is True before each later valid step of a batch entry."""
    mask = np.asarray(config["mask"])
    return config | {"mask": np.maximum.accumulate(mask[::-1])[::-1].tolist()}, a


def first_held(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: the first step of a mask is always valid."""
    mask = np.array(config["mask"])
    mask[:1] = True
    return config | {"mask": mask.tolist()}, a


def last_held(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    mask = np.array(config["mask"])
    mask[-1:] = True
    return config | {"mask": mask.tolist()}, a


def stored(dtype: str, *names: str) -> Finish:
    """Return a change of results: store them in fewer bits."""
    return lambda _c, _a, got: {
        n: v.astype(dtype).astype("float64") if n.startswith(names) else v for n, v in got.items()
    }


def tail_of_steps(width: int) -> Finish:
    """Return a change of results: steps after a multiple of an unrolled loop are zero."""

    def finish(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
        T = got["y"].shape[-3]
        y = got["y"].copy()
        y[..., T // width * width :, :, :] = 0
        return got | {"y": y if width < T else got["y"]}

    return finish


def tail_of_batch(width: int) -> Finish:
    def finish(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
        B = got["y"].shape[-2]
        y = got["y"].copy()
        y[..., B // width * width :, :] = 0
        return got | {"y": y if width < B else got["y"]}

    return finish


def interleaved(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
    """Change results: the outputs of two directions alternate unit by unit."""
    y = got["y"]
    P = y.shape[-1] // 2
    return got | {"y": np.stack([y[..., :P], y[..., P:]], -1).reshape(y.shape)}


def exchanged_axes(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
    return got | {n: np.swapaxes(got[n], 0, 1) for n in ("h_n", "c_n")}


def final_by_direction(config: Config, _a: Arrays, got: Arrays) -> Arrays:
    """Return results whose final states are of every layer in one direction, and then in the other."""
    layers = config["num_layers"]
    at = [k * 2 + d for d in range(2) for k in range(layers)]
    return got | {n: got[n][at] for n in ("h_n", "c_n")}


def of_the_entry_before(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Exchange the initial states of the batch entries."""
    return config, a | {n: np.roll(a[n], 1, -2) for n in ("h_0", "c_0")}


def carried(steps: int) -> Call:
    """Return an LSTM that truncates gradients after a number of steps."""

    def call(op: str, config: Config, a: Arrays) -> Arrays:
        got = right(op, config, a)
        if len(a["x"]) <= steps or "dx" not in got or option("reverse")(op, config, a):
            return got
        dx = got["dx"].copy()
        dx[:-steps] = 0
        return got | {"dx": dx}

    return call


def drops_mask(bits: int) -> Call:
    """Return an LSTM whose dropout mask repeats after a number of elements."""

    def call(op: str, config: Config, a: Arrays) -> Arrays:
        got = right(op, config, a)
        T, B = a["x"].shape[:2]
        size = a["h_0"].shape[-1] * (1 + bool(config.get("bidirectional")))
        return got | {"y": got["y"] + 1.0} if drawn(op, config, a) and T * B * size > 2**bits else got

    return call


def key_times(bits: int) -> Spoil:
    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        return (config | {"noise": {"key": ["1", "2"]}} if len(a["x"]) > 2**bits else config), a

    return spoil


def other_key(least: int) -> Spoil:
    return lambda c, a: (c | ({"noise": {"key": ["1", "2"]}} if c.get("num_layers", 1) > least else {}), a)


def reset_by_product(_c: Config, a: Arrays, got: Arrays) -> Arrays:
    """Change results: a reset multiplies the state by zero, so that NaN stays."""
    bad = np.isnan(a["h_0"]).any()
    return {n: v + np.nan if bad else v for n, v in got.items()}


def ends_finite(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
    return {n: np.nan_to_num(v, nan=0.0) if n in ("h_n", "c_n") else v for n, v in got.items()}


def nan_everywhere(_c: Config, a: Arrays, got: Arrays) -> Arrays:
    bad = np.isnan(a["x"]).any() and np.isnan(got["y"]).any()
    return {n: v + np.nan if bad else v for n, v in got.items()}


def nan_of_padding(_c: Config, a: Arrays, got: Arrays) -> Arrays:
    bad = np.isnan(a["x"]).any() and not np.isnan(got["y"]).any()
    return {n: v + np.nan if bad and n.startswith("d") else v for n, v in got.items()}


def saturated(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
    return {n: np.where(np.isinf(v), np.sign(v) * 1e30, v) for n, v in got.items()}


def reset_late(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    given = np.array(config["reset"])
    given[:1] = False
    return config | {"reset": given.tolist()}, a


def reset_where_it_exists(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    T, B = a["x"].shape[:2]
    mask = np.asarray(config["mask"]) if config.get("mask") else np.ones((T, B), bool)
    if config.get("lengths") is not None:
        mask = np.arange(T)[:, None] < np.asarray(config["lengths"])
    reset = np.asarray(config["reset"], bool).reshape(T, B)  # an empty list has one axis
    return config | {"reset": (reset & mask).tolist()}, a


def averaged(_c: Config, a: Arrays, got: Arrays) -> Arrays:
    """Change results: parameter gradients are means over the batch."""
    return scaled(lambda given: 1 / max(given["x"].shape[1], 1), "dweight", "dbias", "dgain")(_c, a, got)


def layer_of(name: str, k: int) -> bool:
    return f"_l{k}" in name


def at_layer(k: int, change: Callable[[np.ndarray], np.ndarray], *kinds: str) -> Spoil:
    return lambda c, a: (
        c,
        {n: change(v) if layer_of(n, k) and n.startswith(kinds) else v for n, v in a.items()},
    )


def of_reverse(change: Callable[[np.ndarray], np.ndarray], *kinds: str) -> Spoil:
    return lambda c, a: (
        c,
        {n: change(v) if n.endswith("_reverse") and n.startswith(kinds) else v for n, v in a.items()},
    )


def lost(layer: int, *kinds: str, reverse: bool = False) -> Finish:
    """Return a change of results: gradients of one layer and direction are zero."""

    def of(name: str) -> bool:
        return name.startswith(kinds) and layer_of(name, layer) and name.endswith("_reverse") == reverse

    return lambda _c, _a, got: {n: v * 0 if of(n) else v for n, v in got.items()}


def started_forward(*names: str) -> Spoil:
    """Return a change of calls: the reverse direction starts from the states of the forward one."""

    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        return config, a | {n: np.repeat(a[n][::2], 2, axis=0) for n in names}

    return spoil


def uncarried(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: layers after the first start from zeros."""
    D, found = 1 + bool(config["bidirectional"]), {n: a[n].copy() for n in ("h_0", "c_0")}
    for v in found.values():
        v[D:] = 0
    return config, a | found


GRADIENTS = ("dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh")

MUTANTS: dict[str, Call] = {
    **{
        f"{name} ignored {where}": before(both(option(name), test), without(name))
        for name in OPTIONS
        for where, test in CIRCUMSTANCES.items()
        if (name, where) not in NEVER
    },
    **{
        f"resets ignored with {name}": before(both(option("reset"), option(name)), without("reset"))
        for name in OPTIONS
        if name not in ("activations", "reset")
    },
    **{f"units of modules beyond {n} wrong": after(stacked, beyond("h_n", -1, n)) for n in (8, 16, 32, 64)},
    **{f"entries of modules beyond {n} wrong": after(stacked, beyond("c_n", 1, n)) for n in (8, 16, 32, 64)},
    **{
        f"inputs of modules beyond {n} ignored": before(both(stacked, sized("I", n)), features(n))
        for n in (8, 16, 32, 64)
    },
    **{
        f"outputs of modules beyond {n} wrong": after(
            both(stacked, option("proj_size")), beyond("h_n", -1, n)
        )
        for n in (8, 16)
    },
    **{f"dx of modules' inputs beyond {n} lost": after(stacked, beyond("dx", -1, n)) for n in (8, 32)},
    **{
        f"dweight_hh of modules beyond unit {n} lost": after(stacked, beyond("dweight_hh", -1, n))
        for n in (8, 32)
    },
    **{f"steps of modules beyond {n} wrong": after(stacked, beyond("y", 0, n)) for n in (64, 128, 512)},
    **{
        f"steps of reverse beyond {n} wrong": after(option("reverse"), beyond("y", 0, n))
        for n in (64, 512, 1024)
    },
    **{f"steps beyond {n} wrong with lengths": after(ragged, beyond("y", 0, n)) for n in (64, 512)},
    **{f"steps beyond {n} wrong with a mask": after(masked, beyond("y", 0, n)) for n in (64, 128)},
    **{f"gradients cut at {n} steps": carried(n) for n in (8, 16, 32, 64, 128, 256, 512, 1024)},
    **{
        f"steps beyond a multiple of {n} lost": after(both(test, full), tail_of_steps(n))
        for n in (2, 4, 8)
        for test in (stacked,)
    },
    **{f"entries beyond a multiple of {n} lost": after(stacked, tail_of_batch(n)) for n in (2, 4, 8, 16)},
    **{
        f"H = {n} mishandled in modules": after(both(stacked, exactly(n)), cleared("c_n"))
        for n in (1, 8, 16, 64)
    },
    "one batch entry: h_0 ignored": before(both(one_entry, single), zeroed("h_0")),
    "one batch entry: c_0 ignored in modules": before(both(one_entry, stacked), zeroed("c_0")),
    "one step: c_0 ignored": before(both(one_step, single), zeroed("c_0")),
    "one step of modules: h_0 ignored": before(both(one_step, stacked), zeroed("h_0")),
    "lengths sorted and not put back in modules": before(both(ragged, stacked), sorted_lengths),
    "lengths of the first entry for all": before(ragged, only("lengths")),
    "lengths of 0 taken for 1": before(ragged, lengths_at_least_one),
    "lengths ignored in modules of one direction": before(
        lambda op, c, a: ragged(op, c, a) and stacked(op, c, a) and not c["bidirectional"],
        lambda c, a: (c | {"lengths": None}, a),
    ),
    "lengths ignored by several layers": before(both(ragged, deep), lambda c, a: (c | {"lengths": None}, a)),
    "mask of the first entry for all": before(masked, only("mask")),
    "holes of a mask filled": before(masked, filled_mask),
    "the first step always exists": before(masked, first_held),
    "the last step always exists": before(masked, last_held),
    "mask ignored in reverse": faulty(both(masked, option("reverse")), "mask ignored"),
    "resets of the first entry for all": before(option("reset"), only("reset")),
    "resets at the first step lost": before(option("reset"), reset_late),
    "resets in holes lost in modules": before(both(option("reset"), stacked), reset_where_it_exists),
    "resets in padding lost in reverse": before(
        both(option("reset"), option("reverse")), reset_where_it_exists
    ),
    "resets keep the path of gradients in modules": faulty(
        both(option("reset"), stacked), "gradients cross resets"
    ),
    "resets of h alone in modules": faulty(both(option("reset"), stacked), "resets of h alone"),
    "resets of c alone in modules": faulty(both(option("reset"), stacked), "resets of c alone"),
    "resets of h alone with zoneout": faulty(both(option("reset"), option("zoneout_h")), "resets of h alone"),
    "resets of c alone with peepholes": faulty(
        both(option("reset"), option("peepholes")), "resets of c alone"
    ),
    "resets by multiplication": after(option("reset"), reset_by_product),
    **{f"c_n through {dtype}": after(always, stored(dtype, "c_n")) for dtype in ("float16", "float32")},
    **{
        f"h_n of modules through {dtype}": after(stacked, stored(dtype, "h_n"))
        for dtype in ("float16", "float32")
    },
    **{
        f"{name} through float16": after(always, stored("float16", name))
        for name in (*GRADIENTS, "dx", "dh_0", "dc_0", "dweight_hr", "dgain", "dweight_ch")
    },
    **{f"{name} through float32 in modules": after(stacked, stored("float32", name)) for name in GRADIENTS},
    **{
        f"{name} not computed": after(always, cleared(name))
        for name in (
            *GRADIENTS,
            "dx",
            "dh_0",
            "dc_0",
            "dweight_hr",
            "dweight_ch",
            "dgain_ih",
            "dgain_hh",
            "dgain_c",
            "dbias_c",
        )
    },
    **{
        f"{name} of the second layer not computed": after(deep, lost(1, name))
        for name in (*GRADIENTS, "dweight_hr")
    },
    **{
        f"{name} of the reverse direction not computed": after(
            option("bidirectional"), lost(0, name, reverse=True)
        )
        for name in (*GRADIENTS, "dweight_hr")
    },
    **{f"{name} of the fourth layer not computed": after(deep, lost(3, name)) for name in GRADIENTS},
    "gradients are means over the batch": after(always, averaged),
    "gradients are means over time": after(
        always, scaled(lambda a: 1 / max(len(a["x"]), 1), "dweight", "dbias")
    ),
    "gradients of h_0 zero in reverse": after(option("reverse"), cleared("dh_0")),
    "gradients of states zero in modules": after(stacked, cleared("dh_0", "dc_0")),
    "dh_n of modules ignored": faulty(stacked, "dh_n ignored"),
    "dc_n of modules ignored": faulty(stacked, "dc_n ignored"),
    "dc_n in reverse ignored": faulty(option("reverse"), "dc_n ignored"),
    "dy of modules at the last step alone": faulty(stacked, "dy of the last step only"),
    "path through c cut in reverse": faulty(option("reverse"), "path through c cut"),
    "path through h cut with lengths": faulty(ragged, "path through h cut"),
    "path through c cut with a mask": faulty(masked, "path through c cut"),
    "gradients flow through the padding of modules": faulty(
        both(stacked, ragged), "gradients flow through the padding"
    ),
    "dweight_hh with the new h in reverse": faulty(option("reverse"), "dweight_hh with the new h"),
    "dx of one direction with a merge": faulty(merged, "dx of one direction only"),
    "interleaved outputs of two directions": after(
        lambda _op, c, _a: c.get("bidirectional", False) and c.get("merge", "concat") == "concat", interleaved
    ),
    "directions swapped in y with lengths": faulty(
        both(ragged, option("bidirectional")), "directions swapped in y"
    ),
    "states by direction first in three layers": faulty(
        lambda _op, c, _a: c.get("num_layers", 1) > 2 and bool(c.get("bidirectional")),
        "states by direction first",
    ),
    "states batch first where the sizes agree": after(square_entries, exchanged_axes),
    "final states by direction first": after(both(deep, option("bidirectional")), final_by_direction),
    "entries start from the states of the one before": before(always, of_the_entry_before),
    "reverse starts from forward's states": before(option("bidirectional"), started_forward("h_0", "c_0")),
    "layers above the first start from zeros": before(deep, uncarried),
    "h_n is the last y with lengths": faulty(ragged, "h_n is the last y"),
    "both directions forward in the second layer": before(
        both(deep, option("bidirectional")), at_layer(1, lambda v: v[::-1], "bias_ih")
    ),
    "biases of the second layer ignored": before(deep, at_layer(1, np.zeros_like, "bias")),
    "bias_hh of the reverse direction ignored": before(
        option("bidirectional"), of_reverse(np.zeros_like, "bias_hh")
    ),
    "weight_hr of the second layer negative": before(deep, at_layer(1, lambda v: -v, "weight_hr")),
    "weight_hr of the reverse direction ignored": before(
        option("bidirectional"), of_reverse(np.zeros_like, "weight_hr")
    ),
    "peepholes of the reverse direction ignored": before(
        option("bidirectional"), of_reverse(np.zeros_like, "weight_ch")
    ),
    "peepholes of the second layer ignored": before(deep, at_layer(1, np.zeros_like, "weight_ch")),
    "gains of the second layer ignored": before(deep, at_layer(1, np.ones_like, "gain")),
    "projection of one output negative": after(
        lambda _op, c, _a: c["proj_size"] == 1, lambda _c, _a, got: got | {"y": -got["y"]}
    ),
    "projection to all but one output ignored": after(
        lambda _op, c, _a: c["proj_size"] == c["hidden_size"] - 1, cleared("h_n")
    ),
    **{f"dropout's mask of {n} bits": drops_mask(n) for n in (8, 10, 12, 16, 18)},
    "dropout ignored with lengths": before(both(drawn, ragged), without("dropout")),
    "dropout ignored with two directions": before(both(drawn, option("bidirectional")), without("dropout")),
    "dropout not in the backward pass of two directions": faulty(
        both(drawn, option("bidirectional")), "dropout not in the backward pass"
    ),
    "dropout's counter without the layer": faulty(drawn, "stream of noise ignored"),
    "time of noise in 8 bits": before(option("noise"), key_times(8)),
    "layer of noise in 2 bits": before(option("noise"), other_key(4)),
    "noise in walking order in layers": faulty(both(single, option("reverse")), "noise in walking order"),
    "noise of zoneout the same in reverse": faulty(option("reverse"), "zoneout drawn for c alone"),
    "NaN of a module in every entry": after(stacked, nan_everywhere),
    "NaN in reverse in every entry": after(option("reverse"), nan_everywhere),
    "NaN in the final states swallowed": after(always, ends_finite),
    "NaN past the end reaches gradients of modules": after(stacked, nan_of_padding),
    "NaN past the end reaches gradients under a norm": after(option("layer_norm"), nan_of_padding),
    "NaN past the end reaches gradients with peepholes": after(option("peepholes"), nan_of_padding),
    "infinities made finite": after(stacked, saturated),
    "infinite c of layers made finite": after(single, saturated),
    "norm's variance unbiased in modules": faulty(both(stacked, option("layer_norm")), "unbiased variance"),
    "eps of a norm dropped in reverse": faulty(option("reverse"), "eps outside the root"),
    "cell clip carried unclipped in modules": faulty(
        both(stacked, option("cell_clip")), "unclipped c carried"
    ),
    "h from the unclipped c in modules": faulty(both(stacked, option("cell_clip")), "h from the unclipped c"),
    "gate clip passes gradients in modules": faulty(
        both(stacked, option("gate_clip")), "gate clip passes gradients"
    ),
    "cell clip passes gradients in reverse": faulty(option("reverse"), "cell clip passes gradients"),
    "coupled rows of f get gradients in modules": faulty(stacked, "coupled: rows of f get gradients"),
    "y before zoneout in modules": faulty(stacked, "y before zoneout"),
    "h from the zoned c in modules": faulty(stacked, "h from the zoned c"),
    "mean not halved in one layer": faulty(
        lambda _op, c, _a: c.get("num_layers") == 1, "mean not halved in the backward pass"
    ),
    "product's gradients as a sum's in three layers": faulty(
        deep, "product merged as sum in the backward pass"
    ),
}
