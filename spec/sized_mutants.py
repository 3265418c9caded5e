"""Define LSTMs that are wrong only at some sizes, options or inputs; a sized case must detect each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from spec.subject import Arrays, Config
from spec.wrong import LSTM
from spec.wrong_gru import GRU

Call: TypeAlias = Callable[[str, Config, Arrays], Arrays]


class Wrong:
    """Wrong LSTM as a subject; it computes in float64."""

    def __init__(self, ask: Call) -> None:
        self.ask = ask

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(("name", "version", "library", "kernel"), "wrong")

    def why_unavailable(self) -> str | None:
        return None

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        with np.errstate(all="ignore"):
            found = self.ask(op, config, arrays)
        return {n: v.astype(arrays["x"].dtype) for n, v in found.items()}


Test: TypeAlias = Callable[[str, Config, Arrays], bool]
Spoil: TypeAlias = Callable[[Config, Arrays], tuple[Config, Arrays]]
Finish: TypeAlias = Callable[[Config, Arrays, Arrays], Arrays]

RIGHT = LSTM()
RIGHT_GRU = GRU()
ANSWERED: dict[tuple[object, ...], tuple[Config, Arrays, Arrays]] = {}


def right(op: str, config: Config, a: Arrays) -> Arrays:
    """Answer as the correct LSTM or GRU; calls with the same read-only arrays are computed once."""
    model = RIGHT_GRU if config.get("cell") == "gru" else RIGHT
    if any(v.flags.writeable for v in a.values()):
        return model.call(op, config, a)
    key = (op, id(config), *(id(v) for v in a.values()))
    if key not in ANSWERED:
        found = model.call(op, config, a)
        for v in found.values():
            v.flags.writeable = False
        # The arguments are kept, so that no other object gets their addresses.
        ANSWERED[key] = config, dict(a), found
    return dict(ANSWERED[key][2])


class Sometimes:
    """LSTM that is wrong only where `when` is true, so that only such calls can detect it."""

    def __init__(self, when: Test, wrong: Call) -> None:
        self.when, self.wrong = when, wrong

    def __call__(self, op: str, config: Config, a: Arrays) -> Arrays:
        return self.wrong(op, config, a) if self.when(op, config, a) else right(op, config, a)


def before(when: Test, spoil: Spoil) -> Call:
    """Return an LSTM that gets other arguments where `when` is true."""
    return Sometimes(when, lambda op, config, a: right(op, *spoil(config, dict(a))))


def after(when: Test, finish: Finish) -> Call:
    """Return an LSTM whose results are changed where `when` is true."""
    return Sometimes(when, lambda op, config, a: finish(config, a, right(op, config, a)))


def faulty(when: Test, fault: str) -> Call:
    """Return an LSTM with one of the faults of wrong.py where `when` is true."""
    return Sometimes(when, LSTM(fault).call)


def may_differ(call: Call, op: str, config: Config, a: Arrays) -> bool:
    """Return whether a wrong LSTM can answer a call differently from the correct one."""
    return not isinstance(call, Sometimes) or call.when(op, config, a)


def always(_op: str, _config: Config, _a: Arrays) -> bool:
    return True


def full(_op: str, config: Config, _a: Arrays) -> bool:
    return config.get("lengths") is None and config.get("mask") is None


def stacked(op: str, _config: Config, _a: Arrays) -> bool:
    return op.startswith("module")


def single(op: str, _config: Config, _a: Arrays) -> bool:
    return op.startswith("layer")


def empty(_op: str, _config: Config, a: Arrays) -> bool:
    return a["x"].shape[0] == 0


def both(*tests: Test) -> Test:
    return lambda op, config, a: all(test(op, config, a) for test in tests)


def option(name: str) -> Test:
    return lambda _op, config, _a: bool(config.get(name) or config.get("variant", {}).get(name))


def sized(name: str, least: int) -> Test:
    """Return the condition that the input, hidden state, batch or sequence is larger than these sizes."""
    axis = {"T": 0, "B": 1, "I": 2}
    return lambda _op, config, a: (config["hidden_size"] if name == "H" else a["x"].shape[axis[name]]) > least


def exactly(units: int) -> Test:
    return lambda _op, config, _a: config["hidden_size"] == units


def cast(dtype: str, names: tuple[str, ...]) -> Spoil:
    """Return a change of calls: store arrays with these name prefixes in fewer bits."""
    return lambda config, a: (
        config,
        {n: v.astype(dtype).astype(v.dtype) if n.startswith(names) else v for n, v in a.items()},
    )


def beyond(name: str, axis: int, least: int, value: float = 0.0) -> Finish:
    """Return a change of results: numbers beyond the first `least` of an axis are lost."""

    def finish(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
        found = {n: v.copy() for n, v in got.items()}
        for n, v in found.items():
            if n.startswith(name):
                np.moveaxis(v, axis, 0)[least:] = value
        return found

    return finish


def features(least: int) -> Spoil:
    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        x = a["x"].copy()
        x[..., least:] = 0
        return config, a | {"x": x}

    return spoil


def units(least: int) -> Spoil:
    """Return a change of calls: the recurrent sums end after so many units."""

    def short(v: np.ndarray) -> np.ndarray:
        return np.where(np.arange(v.shape[-1]) < least, v, 0)

    return lambda config, a: (config, {n: short(v) if n.startswith("weight_hh") else v for n, v in a.items()})


def tail(width: int) -> Spoil:
    """Return a change of calls: features beyond a multiple of a vector's width are lost."""

    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        least = a["x"].shape[2] // width * width
        return features(least)(config, a) if least else (config, a)

    return spoil


def last_of_batch(_config: Config, a: Arrays) -> tuple[Config, Arrays]:
    found = {n: v.copy() for n, v in a.items()}
    found["x"][:, -1] = found["x"][:, 0]
    return _config, found


def reset(step: int) -> Call:
    """Return an LSTM that sets the state to zero at a step."""

    def call(op: str, config: Config, a: Arrays) -> Arrays:
        if single(op, config, a) and full(op, config, a) and len(a["x"]) > step and not config["reverse"]:
            forward = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
            first = RIGHT.call("layer", config, forward | {"x": a["x"][:step]})
            zero = {n: np.zeros_like(a[n]) for n in ("h_0", "c_0")}
            second = RIGHT.call("layer", config, forward | zero | {"x": a["x"][step:]})
            return second | {"y": np.concatenate([first["y"], second["y"]])}
        return RIGHT.call(op, config, a)

    return call


def swapped_gates(layer: int) -> Spoil:
    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        names = [
            n for n in a if n.endswith(f"_l{layer}") and n.startswith(("weight_ih", "weight_hh", "bias"))
        ]
        return config, a | {n: np.concatenate([np.split(a[n], 4)[k] for k in (0, 2, 1, 3)]) for n in names}

    return spoil


def without(*names: str) -> Spoil:
    """Return a change of calls: ignore options."""

    def spoil(config: Config, a: Arrays) -> tuple[Config, Arrays]:
        variant = {k: v for k, v in config.get("variant", {}).items() if k not in names}
        kept = {k: v for k, v in config.items() if k not in names}
        return kept | ({"variant": variant} if "variant" in config else {}), a

    return spoil


def lengths_as(change: Callable[[list[int], int], list[int] | None]) -> Spoil:
    return lambda config, a: (config | {"lengths": change([*config["lengths"]], len(a["x"]))}, a)


def ended_at_zero(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    return got | {n: np.zeros_like(got[n]) for n in ("h_n", "c_n")}


def cut(config: Config, _a: Arrays, got: Arrays) -> Arrays:
    return got | {"y": got["y"][: max(config["lengths"])]}


def last_y(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    """Change results, a common mistake: h_n of two directions is y at the last time."""
    P = got["h_n"].shape[-1]
    h_n = got["h_n"].copy()
    if not len(got["y"]) or got["y"].shape[1:] != (h_n.shape[1], 2 * P):
        return got
    h_n[-1] = got["y"][-1, :, P : 2 * P]
    return got | {"h_n": h_n}


def no_nan(names: tuple[str, ...]) -> Spoil:
    return lambda config, a: (
        config,
        {n: np.nan_to_num(v, nan=0.0) if n in names else v for n, v in a.items()},
    )


def padded(_config: Config, a: Arrays, got: Arrays) -> Arrays:
    """Change results: mask by multiplication."""
    exists = np.arange(len(a["x"]))[:, None] < np.asarray(_config["lengths"])
    worse = {n: v + np.nan if np.isnan(a["dy"][~exists]).any() else v for n, v in got.items() if n[0] == "d"}
    return got | worse


def spread(_config: Config, a: Arrays, got: Arrays) -> Arrays:
    return {n: v + np.nan if np.isnan(a["c_0"]).any() else v for n, v in got.items()}


def tiny_padding(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    return got | {"y": np.where(got["y"] == 0, 1e-17, got["y"])}


def transposed(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    square = got["y"].shape[0] == got["y"].shape[1]
    return got | {"y": np.swapaxes(got["y"], 0, 1) if square else got["y"]}


def exchanged(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    fits = a["weight_ih"].shape == a["weight_hh"].shape
    return config, a | ({"weight_ih": a["weight_hh"], "weight_hh": a["weight_ih"]} if fits else {})


def other_p(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    """Change a call: multiply the inputs that survive dropout by 4/3, for any p."""
    p = float(config["dropout"]["p"])
    names = [n for n in a if n.startswith("weight_ih") and "_l0" not in n]
    return config, a | {n: a[n] * (1 - p) * 4 / 3 for n in names}


def no_rows_one_state(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    return got | {"h_n": got["h_n"][:1]}


def nan_of_nothing(_config: Config, _a: Arrays, got: Arrays) -> Arrays:
    return {n: v + np.nan if n.startswith("dbias") else v for n, v in got.items()}


def projected_not(config: Config, a: Arrays) -> tuple[Config, Arrays]:
    return config, {n: np.zeros_like(v) if n.startswith("bias") else v for n, v in a.items()}


def far_c(_config: Config, a: Arrays, got: Arrays) -> Arrays:
    """Change results: tanh(c) by exp(2c) overflows beyond 44 in float32."""
    with np.errstate(all="ignore"):
        lost = np.exp(np.float32(2) * a["c_0"].astype("float32"))
    bad = np.isinf(lost).any()
    return got | {"h_n": got["h_n"] + (np.nan if bad else 0)}


def no_rows(_op: str, _config: Config, a: Arrays) -> bool:
    return a["x"].shape[1] == 0


def equal(_op: str, config: Config, _a: Arrays) -> bool:
    return bool(config.get("lengths")) and len({*config["lengths"]}) == 1


def ragged(_op: str, config: Config, _a: Arrays) -> bool:
    return bool(config.get("lengths"))


def all_empty(_op: str, config: Config, _a: Arrays) -> bool:
    return bool(config.get("lengths")) and not any(config["lengths"])


MUTANTS: dict[str, Call] = {
    "reverse ignored where every row is full": faulty(both(stacked, full), "both directions forward"),
    "reverse of a layer ignored where every row is full": faulty(both(single, full), "reverse ignored"),
    "h_n of reverse is y at the last time": after(both(stacked, full, option("bidirectional")), last_y),
    "biases of a module with a projection ignored": before(
        both(stacked, option("proj_size")), projected_not
    ),
    "T = 1 in reverse: h_0 ignored": before(
        lambda _op, c, a: len(a["x"]) == 1 and c.get("reverse", False),
        lambda c, a: (c, a | {"h_0": np.zeros_like(a["h_0"])}),
    ),
    "y cut after the longest length": after(ragged, cut),
    "rows all of the longest length": before(
        lambda _op, c, a: bool(c.get("lengths")) and max(c["lengths"]) < len(a["x"]),
        lengths_as(lambda given, _: [max(given)] * len(given)),
    ),
    "equal lengths taken for full rows": before(equal, lengths_as(lambda _given, _T: None)),
    "all rows empty: the state ends at zero": after(all_empty, ended_at_zero),
    **{f"inputs beyond {n} ignored": before(sized("I", n), features(n)) for n in (8, 16, 32, 64, 128, 256)},
    **{f"sums over h cut at {n}": before(sized("H", n), units(n)) for n in (8, 16, 32, 64, 128, 256)},
    "remainder of I beyond a multiple of 8 ignored": before(always, tail(8)),
    **{f"units beyond {n} wrong": after(single, beyond("h_n", -1, n)) for n in (8, 19, 32, 64)},
    **{f"rows beyond {n} wrong": after(single, beyond("y", 1, n, 1.0)) for n in (8, 11, 16, 32, 64)},
    **{f"H = {n} mishandled": after(exactly(n), beyond("c_n", -1, n - 1))
       for n in (8, 16, 32, 64)},
    "the last row is the first where B is a multiple of 8": before(
        lambda _op, _c, a: a["x"].shape[1] % 8 == 0 and a["x"].shape[1] > 0, last_of_batch
    ),
    **{f"state reset at step {n}": reset(n) for n in (64, 512, 1024)},
    "gates f and g swapped in the fourth layer": before(option("num_layers"), swapped_gates(3)),
    "weights of x and h swapped where I = H": before(single, exchanged),
    "y batch first where T = B": after(stacked, transposed),
    "gradients of rows beyond 8 lost": after(single, beyond("dc_0", 0, 8)),
    "dx of rows beyond 8 lost": after(single, beyond("dx", 1, 8)),
    **{f"dbias of units beyond {n} lost": after(single, beyond("dbias", 0, 4 * n)) for n in (8, 16, 18)},
    "inputs stored in float16": before(single, cast("float16", ("x", "weight", "h_0"))),
    "inputs stored in float32": before(single, cast("float32", ("x", "weight", "bias", "h_0", "c_0"))),
    "cotangents stored in float16": before(single, cast("float16", ("dy", "dh_n", "dc_n"))),
    "T = 0 in modules: the state ends at zero": after(both(stacked, empty), ended_at_zero),
    "T = 0 in reverse: the state ends at zero": after(both(option("reverse"), empty), ended_at_zero),
    "B = 0 in modules: wrong shape of h_n": after(both(stacked, no_rows), no_rows_one_state),
    "B = 0 in modules: dbias is NaN": after(both(stacked, no_rows), nan_of_nothing),
    **{f"{name} ignored in modules": before(both(stacked, option(name)), without(name))
       for name in ("gate_clip", "cell_clip", "coupled", "layer_norm", "zoneout_h", "zoneout_c")},
    "zoneout has no expectation in modules": faulty(stacked, "expectation of zoneout ignored"),
    "mask in a module taken for lengths": faulty(stacked, "mask taken as lengths"),
    "mask in a module ignored": faulty(stacked, "mask ignored"),
    "merge ignored in one layer": before(
        lambda _op, c, _a: c.get("merge") == "mean" and c["num_layers"] == 1,
        lambda c, a: (c | {"merge": "sum"}, a),
    ),
    "dropout scaled by 4/3 whatever p is": before(option("dropout"), other_p),
    "NaN in h_0 swallowed": before(always, no_nan(("h_0",))),
    "NaN in c_0 swallowed": before(always, no_nan(("c_0",))),
    "NaN in c_0 spreads": after(single, spread),
    "padding by multiplication": after(both(ragged, single), padded),
    "padding of y is 1e-17": after(ragged, tiny_padding),
    "tanh(c) overflows": after(single, far_c),
}  # fmt: skip
