"""Define LSTMs that are wrong at corners: an option at a size, three options, odd values, no steps."""

from __future__ import annotations

import numpy as np

from spec.plausible_mutants import deep, drawn, masked, merged, unbiased, zeroed
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
    single,
    sized,
    stacked,
)
from spec.subject import Arrays, Config


def layers(least: int) -> Test:
    return lambda _op, config, _a: int(config.get("num_layers", 1)) >= least


def merging(how: str) -> Test:
    return lambda _op, config, _a: config.get("merge") == how


def of_size(axis: int, size: int) -> Test:
    """Return the condition that x has this size along an axis."""
    return lambda _op, _config, a: a["x"].shape[axis] == size


def zero(name: str) -> Test:
    return lambda _op, _config, a: not a[name].any()


def flat(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    return {n: v.ravel() for n, v in got.items()}


def off(*names: str) -> Finish:
    """Return a change of results: an error of one hundredth in arrays with these name prefixes."""
    return lambda _c, _a, got: {n: v * 1.01 + 0.01 if n.startswith(names) else v for n, v in got.items()}


def clipped(bound: float, *names: str) -> Spoil:
    """Return a change of calls: clip arrays with these name prefixes."""
    return lambda c, a: (
        c,
        {n: np.clip(v, -bound, bound) if n.startswith(names) else v for n, v in a.items()},
    )


def zero_is_absent(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: mask the steps of zeros."""
    kept = {n: v for n, v in config.items() if n != "lengths"}
    return kept | {"mask": (a["x"] != 0).any(-1).tolist()}, a


def zeros_end(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: read zeros at the end as padding."""
    there, T = np.any(np.not_equal(a["x"], 0), axis=-1, keepdims=False), len(a["x"])
    lengths = [int(np.flatnonzero(column).max(initial=-1)) + 1 for column in np.asarray(there).T]
    return (config | {"lengths": lengths} if min(lengths, default=T) < T else config), a


def some_zero(_op: str, config: Config, a: Arrays) -> bool:
    whole = full("", config, a) and config.get("reset") is None
    return whole and bool(a["x"].size) and bool((a["x"] == 0).all(-1).any())


def same_states(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: ignore a c_0 equal to h_0."""
    same = np.array_equal(a["h_0"], a["c_0"])
    return config, a | ({"c_0": np.zeros_like(a["c_0"])} if same else {})


def no_state(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: replace states of zeros."""
    found = {n: np.full_like(a[n], 0.05) if not a[n].any() else a[n] for n in ("h_0", "c_0") if n in a}
    return config, a | found


def existing(config: Config, a: Arrays) -> np.ndarray:
    T, B = a["x"].shape[:2]
    if config.get("mask") is not None:
        return np.reshape(np.asarray(config["mask"], bool), (T, B))
    lengths = config.get("lengths")
    return np.arange(T)[:, None] < np.asarray([T] * B if lengths is None else lengths)


def spread_of_absent(name: str, *results: str) -> Finish:
    """Return a change of results: a NaN at an invalid step reaches gradients."""

    def finish(config: Config, a: Arrays, got: Arrays) -> Arrays:
        flat = a[name].ndim == 3 and np.isnan(a[name][~existing(config, a)]).any()
        return {n: v + np.nan if flat and n.startswith(results) else v for n, v in got.items()}

    return finish


def ended_without_steps(config: Config, a: Arrays, got: Arrays) -> Arrays:
    """Change results: batch entries without steps end at zero."""
    here = ~np.any(existing(config, a), axis=0)
    return got | {n: np.where(np.reshape(here, (-1, 1)), 0, got[n]) for n in ("h_n", "c_n") if n in got}


def batch_without_steps(config: Config, a: Arrays, got: Arrays) -> Arrays:
    return got if existing(config, a).any() else got | {n: got[n] * 0 for n in ("h_n", "c_n")}


def flushed(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
    return got | {n: np.where(np.abs(got[n]) < 2.0**-126, 0, got[n]) for n in ("h_n", "c_n")}


def of_bounded_norm(bound: float) -> Finish:
    """Return a change of results: clip gradients by their norm."""

    def finish(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
        norm = np.sqrt(sum(float(np.sum(np.nan_to_num(v) ** 2)) for n, v in got.items() if n.startswith("d")))
        by = bound / norm if norm > bound else 1.0
        return {n: v * by if n.startswith("d") else v for n, v in got.items()}

    return finish


def grouped(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: separate entries of equal lengths share the input of the first."""
    x = a["x"].copy()
    lengths: list[int] = config["lengths"]
    for b, n in enumerate(lengths):
        first = lengths.index(n)
        x[:, b] = x[:, first] if b - first > 1 else x[:, b]
    return config, a | {"x": x}


def lost_at(name: str, at: int) -> Finish:
    """Return a change of results: the gradient with respect to one initial state of a stack is zero."""

    def finish(_c: Config, _a: Arrays, got: Arrays) -> Arrays:
        if name not in got:
            return got
        v = got[name].copy()
        v[at] = 0
        return got | {name: v}

    return finish


OPTIONS = ("peepholes", "coupled", "gate_clip", "cell_clip", "layer_norm", "zoneout_h", "zoneout_c", "reset")
WAYS: dict[str, Test] = {
    "lengths": ragged,
    "a mask": masked,
    "no bias": unbiased,
    "a projection": option("proj_size"),
    "a merge": merged,
    "dropout": drawn,
    **{name: option(name) for name in OPTIONS},
}
KINDS: dict[str, Test] = {"layers": single, "modules": stacked}
NEVER = (("a merge", "layers"), ("dropout", "layers"))
"""What no call has together."""
PEOPLE = (96, 100, 384, 784, 1000, 1024)
AT_SIZES: dict[str, Call] = {
    **{
        f"units beyond 16 of {kind} with {way}": after(both(KINDS[kind], test), beyond("h_n", -1, 16))
        for way, test in WAYS.items()
        for kind in KINDS
        if (way, kind) not in (*NEVER, ("dropout", "modules"))
    },
    **{
        f"entries beyond {n} of {kind} with {way}": after(both(KINDS[kind], test), beyond("c_n", -2, n))
        for way, test in WAYS.items()
        for kind in KINDS
        for n in (16, 32)
        if (way, kind) not in NEVER
    },
    **{
        f"steps beyond 20 of {kind} with {way}": after(both(KINDS[kind], test), beyond("y", -3, 20))
        for way, test in WAYS.items()
        for kind in KINDS
        if (way, kind) not in NEVER
    },
    **{
        f"{what} of {n}": after(of_size(axis, n), off("y"))
        for what, axis in (("I", 2), ("B", 1))
        for n in PEOPLE
    },
    **{f"H of {n}": after(exactly(n), off("y")) for n in (80, 96, 100, 112, 160, 192)},
    "inputs beyond 600": after(sized("I", 600), off("y")),
    "entries beyond 1000 of modules": after(both(stacked, sized("B", 1000)), off("y")),
    "inputs beyond 256 of modules": after(both(stacked, sized("I", 256)), off("y")),
    "units beyond 100 of modules": after(both(stacked, sized("H", 100)), off("y")),
    **{
        f"ragged modules of {n} entries": after(both(ragged, stacked, of_size(1, n)), off("y"))
        for n in (8, 16, 32, 64)
    },
    "steps beyond 20 of three layers": after(layers(3), beyond("y", -3, 20)),
}
VALUES: dict[str, Call] = {
    "steps of zeros are masked": before(some_zero, zero_is_absent),
    "zeros at the end are padding": before(some_zero, zeros_end),
    "zero states filled": before(always, no_state),
    **{
        f"{name} ignored where {other} is zero": before(zero(other), zeroed(name))
        for name, other in (("h_0", "c_0"), ("c_0", "h_0"))
    },
    "one axis without steps and entries": after(both(of_size(0, 0), of_size(1, 0)), flat),
    "equal states": before(always, same_states),
    **{
        f"{name} clipped at {bound} in {kind}": before(test, clipped(bound, name))
        for kind, test in KINDS.items()
        for name, bound in (
            ("x", 5),
            ("h_0", 1),
            ("c_0", 3),
            ("weight", 2),
            ("bias", 1),
            ("dy", 1),
            ("dh_n", 1),
        )
    },
    **{
        f"gradients' norm clipped at {n} in {kind}": after(test, of_bounded_norm(n))
        for kind, test in KINDS.items()
        for n in (100, 10000)
    },
    **{
        f"NaN of {name} past the end reaches dw of {kind}": after(test, spread_of_absent(name, "dw", "db"))
        for kind, test in KINDS.items()
        for name in ("x", "dy")
    },
    **{
        f"NaN of {name} in a hole reaches {kind}": after(both(test, masked), spread_of_absent(name, "d"))
        for kind, test in KINDS.items()
        for name in ("x", "dy")
    },
    **{
        f"no step of an entry in a mask ends at zero in {kind}": after(
            both(test, masked), ended_without_steps
        )
        for kind, test in KINDS.items()
    },
    **{
        f"a mask of no step ends at zero in {kind}": after(both(test, masked), batch_without_steps)
        for kind, test in KINDS.items()
    },
    "entries of length 0 end at zero": after(ragged, ended_without_steps),
    "subnormal states flushed": after(always, flushed),
    "equal lengths that are apart share x": before(ragged, grouped),
}
TOGETHER: dict[str, tuple[Test, ...]] = {
    "a projection, lengths and three layers": (option("proj_size"), ragged, layers(3)),
    "a projection, a mask and no bias": (option("proj_size"), masked, unbiased),
    "a projection, lengths and reverse": (option("proj_size"), ragged, option("reverse")),
    "norm, zoneout and two directions": (option("layer_norm"), option("zoneout_h"), option("bidirectional")),
    "peepholes, a projection and a mask": (option("peepholes"), option("proj_size"), masked),
    "coupled gates, a clip and three layers": (option("coupled"), option("cell_clip"), layers(3)),
    "a product, three layers and lengths": (merging("product"), layers(3), ragged),
    "directions apart, lengths and no bias": (merging("none"), ragged, unbiased),
    "a mean, a mask and three layers": (merging("mean"), masked, layers(3)),
    "peepholes, both clips": (option("peepholes"), option("cell_clip"), option("gate_clip")),
    "zoneout, a projection and reverse": (option("zoneout_h"), option("proj_size"), option("reverse")),
}
MUTANTS: dict[str, Call] = {
    **AT_SIZES,
    **VALUES,
    **{
        f"{what}: {name} off": after(both(*tests), off(name))
        for what, tests in TOGETHER.items()
        for name in ("y", "dx")
    },
    "dh_0 of the third layer's reverse direction lost": after(
        both(layers(3), option("bidirectional")), lost_at("dh_0", 5)
    ),
    "dc_0 of the fourth layer lost": after(layers(4), lost_at("dc_0", 3)),
    "dweight_hr of the second layer's reverse direction lost": after(
        both(deep, option("bidirectional")),
        lambda _c, _a, got: {n: v * (n != "dweight_hr_l1_reverse") for n, v in got.items()},
    ),
}
