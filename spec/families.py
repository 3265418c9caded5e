"""Define the cases that identify an LSTM, with the results of the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from mpmath import mp, mpf

from spec import oracle
from spec.dyadic import Dyadic, Record, encode_all

Wanted: TypeAlias = Callable[[str, int], bool]
Change: TypeAlias = Callable[[Record], None]


def every(_name: str, _index: int) -> bool:
    return True


def parameters(numbers: Dyadic, input_size: int, config: Record, suffix: str = "") -> Record:
    """Return distinct parameters of one layer and direction."""
    rows, size, proj_size = 4 * config["hidden_size"], config["hidden_size"], config["proj_size"]
    variant = config.get("variant", {})
    p = {
        "weight_ih": numbers.draw(rows, input_size),
        "weight_hh": numbers.draw(rows, proj_size or size),
    }
    if config["bias"]:
        p |= {"bias_ih": numbers.draw(rows), "bias_hh": numbers.draw(rows)}
    if proj_size:
        p["weight_hr"] = numbers.draw(proj_size, size)
    if variant.get("peepholes"):
        p["weight_ch"] = numbers.draw(3 * size)
    if variant.get("layer_norm"):
        p |= {"gain_ih": numbers.draw(rows), "gain_hh": numbers.draw(rows), "gain_c": numbers.draw(size)}
        p |= {"bias_c": numbers.draw(size)} if config["bias"] else {}
    return {name + suffix: a for name, a in p.items()}


def variants(config: Record) -> tuple[oracle.Variant, ...]:
    """Return the oracle's options of both directions; decimals become numbers."""
    given = {k: mpf(v) if isinstance(v, str) else v for k, v in config.get("variant", {}).items()}
    functions = given.pop("activations", [["sigmoid"], ["tanh"], ["tanh"]])
    named = [oracle.activation(*spec) for spec in functions] * 2
    return tuple(oracle.Variant(**given, activations=tuple(named[3 * d : 3 * d + 3])) for d in (0, 1))


def key(config: Record) -> oracle.Key | None:
    """Return the two words that determine the masks of a call, if it has masks."""
    given = config.get("noise") or config.get("dropout")
    return (int(given["key"][0]), int(given["key"][1])) if given else None


def scaled(a: Any, factor: Any) -> Any:
    return [scaled(v, factor) for v in a] if isinstance(a, list) else a * factor


def steps(config: Record, T: int, B: int) -> list[list[int]]:
    """XPL-SEQ-003 and XPL-SEQ-007: return the valid steps of each batch entry."""
    if config.get("mask") is not None:
        return [[t for t in range(T) if config["mask"][t][b]] for b in range(B)]
    return [list(range(n)) for n in config.get("lengths") or [T] * B]


def blank_padding(inputs: Record, config: Record) -> None:
    """Set x to NaN at all invalid steps."""
    existing = steps(config, len(inputs["x"]), len(inputs["x"][0]))
    for t, rows in enumerate(inputs["x"]):
        for b, row in enumerate(rows):
            if t not in existing[b]:
                rows[b] = [mp.nan] * len(row)


def layer_config(input_size: int, hidden_size: int, **options: Any) -> Record:
    defaults = {"proj_size": 0, "bias": True, "reverse": False, "lengths": None}
    return {"input_size": input_size, "hidden_size": hidden_size, **defaults, **options}


def module_config(input_size: int, hidden_size: int, **options: Any) -> Record:
    defaults = {"num_layers": 1, "bidirectional": False, "proj_size": 0, "bias": True, "lengths": None}
    return {"input_size": input_size, "hidden_size": hidden_size, **defaults, **options}


def layer(
    wanted: Wanted,
    *,
    start: int,
    T: int,
    B: int,
    config: Record,
    change: Change | None = None,
    gradients: Wanted | None = every,
    **about: Any,
) -> Record:
    """Return one layer and direction with outputs and the requested elements of the gradients."""
    numbers = Dyadic(start)
    P = config["proj_size"] or config["hidden_size"]
    inputs = parameters(numbers, config["input_size"], config)
    inputs |= {
        "x": numbers.draw(T, B, config["input_size"]),
        "h_0": numbers.draw(B, P),
        "c_0": numbers.draw(B, config["hidden_size"]),
    }
    if change is not None:
        change(inputs)
    words = key(config)
    run = partial(
        oracle.lstm,
        steps=steps(config, T, B),
        reverse=config["reverse"],
        variant=variants(config)[0],
        noise=oracle.Noise(words, 0) if words else None,
        resets=config.get("reset"),
    )
    cotangents = draw_cotangents(numbers, (T, B, P), (B, P), (B, config["hidden_size"]))
    about |= {"op": "layer"}
    if gradients is None:
        return answered(about, config, inputs, run, None, wanted)
    return answered(about, config, inputs, run, cotangents, both(wanted, gradients))


def both(first: Wanted, second: Wanted) -> Wanted:
    return lambda name, index: first(name, index) and second(name, index)


def module(
    wanted: Wanted, *, start: int, T: int, B: int, config: Record, change: Change | None = None, **about: Any
) -> Record:
    """Return layers and directions with outputs and the gradients with respect to every input."""
    numbers = Dyadic(start)
    L, H, P = config["num_layers"], config["hidden_size"], config["proj_size"] or config["hidden_size"]
    options = around(config)
    D, merge = len(options.suffixes), options.merge
    inputs: Record = {}
    for k in range(L):
        for suffix in options.suffixes:
            size = (D * P if merge in ("concat", "none") else P) if k else config["input_size"]
            inputs |= parameters(numbers, size, config, f"_l{k}{suffix}")
    inputs |= {
        "x": numbers.draw(T, B, config["input_size"]),
        "h_0": numbers.draw(L * D, B, P),
        "c_0": numbers.draw(L * D, B, H),
    }
    if change is not None:
        change(inputs)
    shapes = {"concat": (T, B, D * P), "none": (D, T, B, P)}
    cotangents = draw_cotangents(numbers, shapes.get(merge, (T, B, P)), (L * D, B, P), (L * D, B, H))
    run = partial(oracle.stack, steps=steps(config, T, B), options=options, resets=config.get("reset"))
    return answered({**about, "op": "module"}, config, inputs, run, cotangents, wanted)


def around(config: Record) -> oracle.Stack:
    """Return the oracle's layers and directions, and the operations around them."""
    return oracle.Stack(
        config["num_layers"],
        ("", "_reverse") if config["bidirectional"] else ("",),
        variants(config),
        config.get("merge", "concat"),
        key(config),
        mpf(config.get("dropout", {}).get("p", 0)),
        mpf(config.get("input_dropout", 0)),
        mpf(config.get("weight_dropout", 0)),
    )


def draw_cotangents(numbers: Dyadic, y: tuple[int, ...], h: tuple[int, ...], c: tuple[int, ...]) -> Record:
    return {"dy": numbers.draw(*y), "dh_n": numbers.draw(*h), "dc_n": numbers.draw(*c)}


def answered(
    about: Record, config: Record, inputs: Record, run: Any, cotangents: Record | None, wanted: Wanted
) -> Record:
    """Return the record with the oracle's results."""
    found = {
        **about,
        "result": "valid",
        "config": config,
        "inputs": encode_all(inputs),
        "outputs": encode_all(run(inputs)),
    }
    if cotangents is not None:
        found["cotangents"] = encode_all(cotangents)
        found["gradients"] = encode_all(oracle.gradients(run, inputs, cotangents, wanted))
    # Nested lists cannot say how wide an array without steps is.
    for group, names in (("inputs", "x"), ("outputs", "y"), ("cotangents", "dy"), ("gradients", "dx")):
        if found.get(group, {}).get(names, {}).get("shape") == [0]:
            rows, size = len(inputs["h_0"]), len(inputs["h_0"][0])
            found[group][names]["shape"] = [0, rows, config["input_size"] if names in ("x", "dx") else size]
    return found


def cell(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=31,
        T=1,
        B=3,
        config=layer_config(2, 4),
        comment="A single step from nonzero states.",
        clauses=["XPL-CELL-001", "XPL-CELL-002", "XPL-CELL-003", "XPL-SEQ-002", "XPL-GRAD-001"],
    )


def sequence(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=77,
        T=5,
        B=2,
        config=layer_config(3, 4),
        comment="Five steps with both biases.",
        clauses=["XPL-SEQ-001", "XPL-SEQ-002", "XPL-GRAD-001"],
    )


def ragged_reverse(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=130,
        T=6,
        B=5,
        config=layer_config(4, 3, reverse=True, lengths=[3, 0, 6, 1, 4]),
        comment="A backward direction over rows of different lengths, one of them empty.",
        clauses=["XPL-SEQ-003", "XPL-SEQ-004", "XPL-SEQ-005", "XPL-GRAD-001", "XPL-GRAD-002", "XPL-NUM-001"],
    )


def ragged_projection(wanted: Wanted) -> Record:
    config = layer_config(5, 3, proj_size=2, bias=False, lengths=[4, 2, 0, 3, 1, 4])
    return layer(
        wanted,
        start=300,
        T=4,
        B=6,
        config=config,
        comment="A projection, no biases, and NaN in the padding of x.",
        clauses=["XPL-CELL-004", "XPL-CELL-005", "XPL-SEQ-003", "XPL-SEQ-004", "XPL-GRAD-002", "XPL-NUM-001"],
        change=partial(blank_padding, config=config),
    )


HOLES = [
    [True, False, False, True],
    [False, True, False, True],
    [True, True, False, False],
    [True, False, False, True],
    [False, True, False, False],
    [True, True, False, False],
]


def mask_holes(wanted: Wanted, reverse: bool = False) -> Record:
    config = layer_config(3, 2, reverse=reverse, mask=HOLES)
    return layer(
        wanted,
        start=210 + 90 * reverse,
        T=6,
        B=4,
        config=config,
        comment="A mask with holes at both ends and between, a row without steps, NaN in all holes.",
        clauses=["XPL-SEQ-007", "XPL-SEQ-004", "XPL-GRAD-002"] + ["XPL-SEQ-005"] * reverse,
        change=partial(blank_padding, config=config),
    )


RESETS = [
    [True, False, False, True],
    [False, False, True, False],
    [False, True, True, False],
    [True, False, False, True],
    [False, True, False, False],
    [False, False, False, True],
]
# Resets for HOLES: before a row's first step and after its last, in holes, at steps, twice before one step,
# and in a row without steps.
RESETS_IN_HOLES = [
    [False, True, True, False],
    [True, False, False, False],
    [False, False, True, True],
    [False, True, False, False],
    [True, False, True, False],
    [False, False, False, True],
]


def resets(wanted: Wanted, reverse: bool = False) -> Record:
    return layer(
        wanted,
        start=520 + 60 * reverse,
        T=6,
        B=4,
        config=layer_config(3, 2, reverse=reverse, reset=RESETS),
        comment="Resets at the first step, in two steps that follow each other, and at the last.",
        clauses=["XPL-SEQ-010", "XPL-GRAD-001"],
    )


def resets_holes(wanted: Wanted, reverse: bool = False) -> Record:
    return layer(
        wanted,
        start=710 + 60 * reverse,
        T=6,
        B=4,
        config=layer_config(5, 3, proj_size=2, reverse=reverse, mask=HOLES, reset=RESETS_IN_HOLES),
        comment="Resets in the holes of a mask take effect at the next step; a projection.",
        clauses=["XPL-SEQ-010", "XPL-SEQ-007", "XPL-GRAD-001"],
    )


def resets_bidirectional(wanted: Wanted) -> Record:
    config = module_config(3, 2, num_layers=2, bidirectional=True, lengths=[6, 3, 0, 5], reset=RESETS)
    return module(
        wanted,
        start=840,
        T=6,
        B=4,
        config=config,
        comment="Resets in two layers and directions over a ragged batch, one of them past a row's length.",
        clauses=["XPL-SEQ-010", "XPL-SEQ-003", "XPL-STK-002", "XPL-GRAD-001"],
    )


def projection(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=411,
        T=6,
        B=5,
        config=layer_config(3, 4, proj_size=2),
        comment="A projection with biases.",
        clauses=["XPL-CELL-004", "XPL-GRAD-001"],
    )


def bidirectional(wanted: Wanted) -> Record:
    return module(
        wanted,
        start=19,
        T=4,
        B=3,
        config=module_config(5, 2, bidirectional=True, lengths=[4, 1, 3]),
        comment="Two directions side by side over a ragged batch.",
        clauses=["XPL-STK-002", "XPL-SEQ-005", "XPL-GRAD-001"],
    )


def stacked(wanted: Wanted) -> Record:
    return module(
        wanted,
        start=255,
        T=4,
        B=5,
        config=module_config(3, 2, num_layers=2),
        comment="Two layers, one direction.",
        clauses=["XPL-STK-001", "XPL-STK-003", "XPL-GRAD-001"],
    )


def stacked_bidirectional_projection(wanted: Wanted) -> Record:
    config = module_config(
        1, 3, num_layers=2, bidirectional=True, proj_size=2, bias=False, lengths=[2, 5, 0, 3]
    )
    return module(
        wanted,
        start=333,
        T=5,
        B=4,
        config=config,
        comment="Two layers and directions, a projection, no biases, a ragged batch with NaN padding.",
        clauses=["XPL-STK-001", "XPL-STK-002", "XPL-STK-003", "XPL-CELL-004", "XPL-CELL-005", "XPL-SEQ-004"],
        change=partial(blank_padding, config=config),
    )


def deep(wanted: Wanted) -> Record:
    return module(
        wanted,
        start=77,
        T=5,
        B=2,
        config=module_config(4, 1, num_layers=3),
        comment="Three layers of one unit: the third is not the second, and nothing is broadcast.",
        clauses=["XPL-STK-001", "XPL-STK-003", "XPL-GRAD-001"],
    )


def wide(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=600,
        T=2,
        B=11,
        config=layer_config(3, 19),
        comment="More units and rows than a vector has; gradients of some numbers.",
        clauses=["XPL-CELL-002", "XPL-CELL-003", "XPL-SEQ-001", "XPL-GRAD-001"],
        change=soften,
        gradients=scattered,
    )


def soften(inputs: Record) -> None:
    """Make weights so small that sums of many terms do not saturate gates, and errors do not grow."""
    inputs["weight_hh"] = scaled(inputs["weight_hh"], mpf(1) / 4)


def scattered(_: str, index: int) -> bool:
    """Return whether a number is one of a few in the first and last units."""
    return index % 97 == 23


def dropout(wanted: Wanted) -> Record:
    drops = {"p": "0.25", "key": ["11400714819323198485", "15241578753238836750"]}
    return module(
        wanted,
        start=144,
        T=5,
        B=4,
        config=module_config(2, 3, num_layers=2, dropout=drops),
        comment="Dropout between two layers with the masks of a given key.",
        clauses=["XPL-DRP-001", "XPL-DRP-002", "XPL-DRP-003"],
    )


def long(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=5,
        T=1000,
        B=1,
        config=layer_config(3, 2),
        comment="A thousand steps; gradients of some numbers.",
        clauses=["XPL-SEQ-001", "XPL-NUM-001", "XPL-GRAD-001"],
        gradients=few,
    )


def few(name: str, index: int) -> bool:
    """Return whether a number is one of a few, from the first, middle and last steps; each takes seconds."""
    return index in (0, 1, 1502, 2998) if name == "x" else index % 7 == 1


def grow(inputs: Record) -> None:
    for name in ("weight_ih", "weight_hh"):
        inputs[name] = scaled(inputs[name], mpf(16))


def stress(_: Wanted) -> Record:
    """Return a record of numbers without a precise result, which checks properties of any LSTM."""
    numbers, config = Dyadic(244), layer_config(3, 4)
    inputs = parameters(numbers, 3, config)
    inputs |= {"x": numbers.draw(20, 2, 3), "h_0": numbers.draw(2, 4), "c_0": numbers.draw(2, 4)}
    grow(inputs)
    return {
        "comment": "Weights so large that rounding errors grow past any estimate.",
        "clauses": ["XPL-NUM-006"],
        "op": "layer",
        "result": "stress",
        "config": config,
        "inputs": encode_all(inputs),
    }


def empty_time(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=60,
        T=0,
        B=3,
        config=layer_config(2, 4),
        comment="No steps: the final state is the initial one, and so are their gradients.",
        clauses=["XPL-SEQ-008", "XPL-GRAD-003"],
    )


def saturate(inputs: Record) -> None:
    """Set pre-activations far outside the range of exp, together with ordinary batch entries."""
    inputs["x"][0][0] = [mpf(60000), mpf(-3)]
    inputs["x"][2][1] = [mpf(-60000), mpf(5)]
    inputs["x"][3][2] = [mpf(0.5), mpf(30000)]


def saturation(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=99,
        T=5,
        B=4,
        config=layer_config(2, 3),
        comment="Pre-activations of some ten thousand in single rows.",
        clauses=["XPL-NUM-003", "XPL-GRAD-001"],
        change=saturate,
    )


def infinite(inputs: Record) -> None:
    inputs["x"][1][0][0] = mp.inf
    inputs["x"][2][1][0] = -mp.inf
    inputs["x"][3][2][1] = mp.inf


def infinity(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=401,
        T=5,
        B=4,
        config=layer_config(2, 3),
        comment="Infinities in x close and open gates; nothing becomes NaN.",
        clauses=["XPL-NUM-003"],
        change=infinite,
        gradients=None,
    )


def nan_in_one_row(inputs: Record) -> None:
    inputs["x"][2][1][0] = mp.nan


def nan_containment(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=450,
        T=5,
        B=4,
        config=layer_config(2, 3),
        comment="One NaN in x: its row is NaN from that step on, and no other row is.",
        clauses=["XPL-NUM-004"],
        change=nan_in_one_row,
        gradients=None,
    )


def shrink(inputs: Record) -> None:
    """Set inputs and states at and below the smallest normal number of float16."""
    for name in ("x", "h_0", "c_0"):
        inputs[name] = scaled(inputs[name], mpf(2) ** -15)


def subnormal(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=480,
        T=5,
        B=4,
        config=layer_config(2, 3),
        comment="Inputs and states that float16 holds as subnormal numbers.",
        clauses=["XPL-NUM-001"],
        change=shrink,
    )


CASES: dict[str, Callable[[Wanted], Record]] = {
    "bidirectional": bidirectional,
    "cell": cell,
    "deep": deep,
    "dropout": dropout,
    "empty-time": empty_time,
    "extreme-infinity": infinity,
    "extreme-nan": nan_containment,
    "extreme-saturation": saturation,
    "extreme-subnormal": subnormal,
    "long": long,
    "mask-holes": mask_holes,
    "mask-holes-reverse": partial(mask_holes, reverse=True),
    "projection": projection,
    "ragged-projection": ragged_projection,
    "ragged-reverse": ragged_reverse,
    "resets": resets,
    "resets-bidirectional": resets_bidirectional,
    "resets-holes": resets_holes,
    "resets-holes-reverse": partial(resets_holes, reverse=True),
    "resets-reverse": partial(resets, reverse=True),
    "sequence": sequence,
    "stacked": stacked,
    "stress": stress,
    "wide": wide,
    "stacked-bidirectional-projection": stacked_bidirectional_projection,
}
