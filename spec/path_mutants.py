"""Define LSTMs that are wrong on one of several paths: without gradients, at a size, for a function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np

from spec.corner_mutants import layers, of_size, off
from spec.paths import FUNCTIONS, ODD
from spec.plausible_mutants import OPTIONS, deep, drawn, masked, merged, nan_everywhere, zeroed
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
    full,
    option,
    ragged,
    right,
    single,
    sized,
    stacked,
)
from spec.subject import Arrays, Config


def alone(op: str, _config: Config, _a: Arrays) -> bool:
    """Return whether no gradients are requested."""
    return not op.endswith("_vjp")


def steps_of(T: int) -> Test:
    return of_size(0, T)


def work(*least: tuple[str, int]) -> Test:
    """Return the condition that two sizes are large together."""
    return both(*(sized(name, n) for name, n in least))


def zero_cotangents(*names: str) -> Test:
    return lambda _op, _config, a: all(n in a and not a[n].any() for n in names)


def backward(when: Test, spoil: Spoil) -> Call:
    """Return an LSTM with the gradients of another call, where `when` is true."""

    def finish(config: Config, a: Arrays, got: Arrays) -> Arrays:
        op = "layer_vjp" if got["h_n"].ndim == 2 else "module_vjp"
        other = right(op, *spoil(config, dict(a)))
        return {n: other[n] if n.startswith("d") else v for n, v in got.items()}

    return after(both(when, lambda op, _config, _a: op.endswith("_vjp")), finish)


def of_state(layer: int, name: str) -> Spoil:
    """Return a change of calls: ignore the cotangent of one layer's final state."""

    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        D, v = 1 + bool(config.get("bidirectional")), a[name].copy()
        v[layer * D : (layer + 1) * D] = 0
        return config, a | {name: v}

    return spoil


def filled(value: float, *names: str) -> Finish:
    """Return a change of results: a number instead of NaN in arrays with these name prefixes."""
    return lambda _c, _a, got: {
        n: np.nan_to_num(v, nan=value, posinf=np.inf, neginf=-np.inf) if n.startswith(names) else v
        for n, v in got.items()
    }


def no_nan_in(*names: str) -> Spoil:
    """Return a change of calls: zero instead of NaN in arrays with these name prefixes."""
    return lambda c, a: (
        c,
        {
            n: np.nan_to_num(v, nan=0, posinf=np.inf, neginf=-np.inf) if n.startswith(names) else v
            for n, v in a.items()
        },
    )


def spread(source: int, to: int) -> Spoil:
    """Return a change of calls: a NaN of one batch entry reaches another."""

    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        x = a["x"].copy()
        if x.shape[1] > 1 and np.isnan(x[:, source]).any():
            x[:, to] = np.nan
        return config, a | {"x": x}

    return spoil


def infinite_past_the_end(config: Config, a: Arrays, got: Arrays) -> Arrays:
    """Change results: masking by multiplication makes an infinity at an invalid step NaN."""
    absent = np.arange(len(a["x"]))[:, None] >= np.asarray(config["lengths"])
    bad = np.isinf(a["x"][absent]).any() or ("dy" in a and np.isinf(a["dy"][..., absent, :]).any())
    return {n: v + np.nan if bad else v for n, v in got.items()}


def infinite(_op: str, _config: Config, a: Arrays) -> bool:
    return bool(np.isinf(a["x"]).any())


def overflowing(_op: str, _config: Config, a: Arrays) -> bool:
    return bool("weight_ih" in a and np.abs(a["x"] @ a["weight_ih"].T).max(initial=0) > 709)


def nan(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    return {n: v + np.nan for n, v in got.items()}


def of_function(name: str) -> Test:
    return lambda _op, c, _a: any(s[0] == name for s in c.get("variant", {}).get("activations", []))


def steep(_op: str, config: Config, _a: Arrays) -> bool:
    """Return whether a leaky_relu has an alpha above 1: there it is not max(z, alpha * z)."""
    functions = config.get("variant", {}).get("activations", [])
    return any(name == "leaky_relu" and numbers and float(numbers[0]) > 1 for name, *numbers in functions)


def changed(change: Callable[[Config], None]) -> Spoil:
    """Return a change of calls: store the numbers of options in fewer bits."""

    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        found = copy.deepcopy(config)
        change(found)
        return found, a

    return spoil


def rates_in_eighths(config: Config) -> None:
    for part in (config, config.get("variant", {}), config.get("dropout", {})):
        for name in ("zoneout_h", "zoneout_c", "recurrent_dropout", "input_dropout", "weight_dropout", "p"):
            if name in part:
                part[name] = str(round(float(part[name]) * 8) / 8)


def bounds(of: Callable[[float], float]) -> Callable[[Config], None]:
    """Return a change of options: other bounds of clips."""

    def change(config: Config) -> None:
        variant = config.get("variant", {})
        for name in ("gate_clip", "cell_clip"):
            if name in variant:
                variant[name] = str(of(float(variant[name])))

    return change


def magnitudes(config: Config) -> None:
    """Take the magnitudes of the functions' numbers."""
    functions = config["variant"]["activations"]
    functions[:] = [[name, *(str(abs(float(v))) for v in numbers)] for name, *numbers in functions]


def lone_alpha_twice(config: Config) -> None:
    """Take an alpha without beta for both."""
    functions = config.get("variant", {}).get("activations", [])
    functions[:] = [
        [name, *numbers * (1 + (len(numbers) == 1 and name in ("affine", "scaled_tanh", "hard_sigmoid")))]
        for name, *numbers in functions
    ]


def keys(change: Callable[[int, int], tuple[int, int]]) -> Callable[[Config], None]:
    """Return a change of options: other words of each key."""

    def change_all(config: Config) -> None:
        for name in ("noise", "dropout"):
            if name in config:
                first, second = config[name]["key"]
                config[name]["key"] = [str(word) for word in change(int(first), int(second))]

    return change_all


KEYS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "keys of 31 bits": lambda k, m: (k % 2**31, m % 2**31),
    "a first word of 0 taken for no key": lambda k, m: (k, m) if k else (1, 1),
    "a second word of 0 taken for no key": lambda k, m: (k, m) if m else (1, 1),
    "a key of zeros taken for no key": lambda k, m: (k, m) if k or m else (1, 1),
    "a key of all ones taken for no key": lambda k, m: (k, m) if k < 2**64 - 1 else (1, 1),
    "a second word of 32 bits after a short first one": lambda k, m: (k, m if k >> 32 else m % 2**32),
    "a first word of 32 bits before a short second one": lambda k, m: (k if m >> 32 else k % 2**32, m),
    "words of a key that are equal taken for one": lambda k, m: (k, 0 if k == m else m),
    "words of a key in ascending order": lambda k, m: (min(k, m), max(k, m)),
}


NOISE: dict[str, Test] = {
    "zoneout": both(option("zoneout_h"), option("noise")),
    "recurrent dropout": option("recurrent_dropout"),
    "input dropout": option("input_dropout"),
    "weight dropout": option("weight_dropout"),
}
LARGE: dict[str, Test] = {
    "units beyond 16": sized("H", 16),
    "entries beyond 16": sized("B", 16),
    "inputs beyond 16": sized("I", 16),
    "steps beyond 16": sized("T", 16),
}
WAYS: dict[str, Test] = {
    "in three layers": layers(3),
    "with two directions": option("bidirectional"),
    "with a mask": masked,
    "with lengths": ragged,
    "with a projection": option("proj_size"),
    "with a merge": merged,
    "with resets": option("reset"),
    "with a norm": option("layer_norm"),
    "with peepholes": option("peepholes"),
}
WITHOUT_GRADIENTS: dict[str, Test] = {
    **{f"units beyond {n}": sized("H", n) for n in (16, 64, 300)},
    **{f"entries beyond {n}": sized("B", n) for n in (16, 64, 300)},
    **{f"inputs beyond {n}": sized("I", n) for n in (16, 64, 300)},
    **{f"steps beyond {n}": sized("T", n) for n in (16, 64, 512)},
    **{name: option(name) for name in OPTIONS},
    **{way: test for way, test in WAYS.items() if way != "with resets"},
}
SIZES: dict[str, Call] = {
    **{f"{T} steps": after(steps_of(T), off("y")) for T in (16, 17, 31, 32, 48, 100, 128, 256)},
    **{
        f"{what} of {n} in modules": after(both(stacked, test(n)), off("y"))
        for n in (10, 24, 40, 50)
        for what, test in (
            ("H", exactly),
            ("B", lambda n: of_size(1, n)),
            ("I", lambda n: of_size(2, n)),
        )
    },
    **{
        f"{a} and {b} beyond {n}": after(work((a, n), (b, m)), off("y"))
        for a, n, b, m in (
            *(("I", 128, "H", 128), ("I", 128, "B", 128), ("H", 128, "B", 64)),
            *(("T", 64, "H", 64), ("T", 64, "B", 64)),
        )
    },
    "inputs beyond 1024 of modules": after(both(stacked, sized("I", 1024)), off("y")),
    "outputs beyond 64 with lengths": after(
        both(ragged, lambda _op, c, _a: c["proj_size"] > 64), beyond("h_n", -1, 64)
    ),
    "ten layers": after(layers(10), off("y")),
    "six layers of two directions": after(both(layers(6), option("bidirectional")), off("dx")),
}
NARROW: dict[str, Test] = {
    "beyond 16 units": sized("H", 16),
    "beyond 16 units of modules": both(stacked, sized("H", 16)),
    "beyond 64 steps": sized("T", 64),
    "with a projection of modules": both(stacked, option("proj_size")),
}
"""Where NaN takes another path."""
NUMBERS: dict[str, Call] = {
    **{
        f"NaN under {name} becomes its bound": after(option(name), filled(0.25, "y", "h_n", "c_n"))
        for name in ("gate_clip", "cell_clip")
    },
    **{
        f"NaN swallowed by {name}": after(option(name), filled(0, "y", "h_n", "c_n"))
        for name in ("activations", "peepholes", "zoneout_h", "coupled", "layer_norm", "proj_size")
    },
    **{f"NaN swallowed {where}": after(test, filled(0, "y", "h_n", "c_n")) for where, test in NARROW.items()},
    **{f"NaN {where} in every entry": after(test, nan_everywhere) for where, test in NARROW.items()},
    **{
        f"infinite sums give NaN with {name}": after(both(option(name), infinite), nan)
        for name in ("coupled", "gate_clip", "peepholes", "zoneout_h", "proj_size")
    },
    "infinite sums give NaN beyond 16 units": after(both(sized("H", 16), infinite), nan),
    "scaled_tanh by a quotient that overflows": after(both(of_function("scaled_tanh"), overflowing), nan),
    **{f"NaN in {name} swallowed": before(always, no_nan_in(name)) for name in ("weight", "bias")},
    **{
        f"NaN of entry {source} reaches entry {to}": before(both(single, full), spread(source, to))
        for source, to in ((0, 1), (-1, 0))
    },
    "an infinity past the end becomes NaN": after(ragged, infinite_past_the_end),
    **{f"{name} of magnitudes": before(of_function(name), changed(magnitudes)) for name in ODD},
    "alpha alone is beta too": before(always, changed(lone_alpha_twice)),
    "leaky_relu by maximum": after(steep, off("y")),
    "rates stored in eighths": before(always, changed(rates_in_eighths)),
    **{
        f"bounds of clips at most {n}": before(always, changed(bounds(partial(min, n))))
        for n in (1.0, 2.0, 8.0)
    },
    **{
        f"bounds of clips at least {n}": before(always, changed(bounds(partial(max, n))))
        for n in (0.01, 0.1)
    },
    **{name: before(always, changed(keys(change))) for name, change in KEYS.items()},
    "dh_n ignored where dy is zero": backward(zero_cotangents("dy"), zeroed("dh_n")),
    "dc_n ignored where dy is zero": backward(zero_cotangents("dy"), zeroed("dc_n")),
    "dy ignored where dh_n and dc_n are zero": backward(zero_cotangents("dh_n", "dc_n"), zeroed("dy")),
    "dh_n ignored where dc_n is zero": backward(zero_cotangents("dc_n"), zeroed("dh_n")),
    **{f"{name} of layer {k + 1} ignored": backward(layers(k + 1), of_state(k, name))
       for name in ("dh_n", "dc_n") for k in (1, 2, 5)},
    **{f"{name} ignored with {way}": backward(test, zeroed(name))
       for name in ("dh_n", "dc_n")
       for way, test in (("a mask", masked), ("resets", option("reset")), ("several layers", deep))},
}  # fmt: skip
MUTANTS: dict[str, Call] = {
    **SIZES,
    **NUMBERS,
    **{f"without gradients: {what}": after(both(alone, test), off("y"))
       for what, test in WITHOUT_GRADIENTS.items()},
    **{f"{noise} {way}": after(both(test, where), off("y"))
       for noise, test in NOISE.items()
       for way, where in (WAYS | LARGE).items()},
    **{f"{noise} in {kind}": after(both(test, where), off("y"))
       for noise, test in NOISE.items()
       for kind, where in (("modules", stacked), ("layers in reverse", option("reverse")))
       if kind == "modules" or noise in ("zoneout", "recurrent dropout")},
    **{f"dropout {way}": after(both(drawn, test), off("y")) for way, test in (WAYS | LARGE).items()},
    **{f"{name} {where}": after(both(of_function(name), test), off(*what))
       for name in FUNCTIONS
       for where, test, what in (
           ("in reverse", option("reverse"), ("y",)),
           ("in modules", stacked, ("y",)),
           ("beyond 8 units", sized("H", 8), ("y",)),
           ("in the backward pass", always, ("dx", "dw")),
       )},
}  # fmt: skip
