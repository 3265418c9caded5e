"""One step of the LSTM that faults can spoil, forward and backward, with every variant.

The derivatives are written out by hand: held to the oracle's differences by
every record, they are the independent analytic form of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from spec.subject import Arrays, Config

Array: TypeAlias = np.ndarray
Key: TypeAlias = tuple[int, int]


def sigmoid(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1.0 + small))


class Activation(NamedTuple):
    """A function, and its slope from its argument and its value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]


def linear(a: float, b: float) -> Activation:
    return Activation(lambda z: a * z + b, lambda z, _: np.full_like(z, a))


def split_at(edge: float, below: float) -> Activation:
    """The identity from `edge` on, and `below` times it before."""
    return Activation(
        lambda z: np.where(z >= edge, z, below * z), lambda z, _: np.where(z >= edge, 1.0, below)
    )


def hard(a: float, b: float) -> Activation:
    return Activation(
        lambda z: np.clip(a * z + b, 0, 1), lambda z, _: a * ((a * z + b > 0) & (a * z + b < 1))
    )


def bent(a: float) -> Activation:
    return Activation(
        lambda z: np.where(z >= 0, z, a * np.expm1(np.minimum(z, 0))),
        lambda z, y: np.where(z >= 0, 1.0, y + a),
    )


def stretched(a: float, b: float) -> Activation:
    return Activation(lambda z: a * np.tanh(b * z), lambda _, y: a * b * (1 - (y / a) ** 2) if a else 0 * y)


def overflowing_sigmoid(z: Array) -> Array:
    return np.asarray(np.exp(z) / (1 + np.exp(z)))


def overflowing_tanh(z: Array) -> Array:
    return np.asarray((np.exp(2 * z) - 1) / (np.exp(2 * z) + 1))


SIGMOID = Activation(sigmoid, lambda _, y: y * (1 - y))
ACTIVATIONS: dict[str, tuple[Callable[..., Activation], tuple[float, ...]]] = {
    "sigmoid": (lambda: SIGMOID, ()),
    "tanh": (lambda: stretched(1.0, 1.0), ()),
    "relu": (lambda: split_at(0.0, 0.0), ()),
    "identity": (lambda: linear(1.0, 0.0), ()),
    "affine": (linear, (1.0, 0.0)),
    "leaky_relu": (lambda a: split_at(0.0, a), (0.01,)),
    "thresholded_relu": (lambda a: split_at(a, 0.0), (1.0,)),
    "scaled_tanh": (stretched, (1.0, 1.0)),
    "hard_sigmoid": (hard, (0.2, 0.5)),
    "elu": (bent, (1.0,)),
    "softsign": (
        lambda: Activation(lambda z: z / (1 + np.abs(z)), lambda z, _: 1 / (1 + np.abs(z)) ** 2),
        (),
    ),
    "softplus": (
        lambda: Activation(
            lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), lambda z, _: sigmoid(z)
        ),
        (),
    ),
}


class Variant(NamedTuple):
    """The options of one layer and direction."""

    activations: tuple[Activation, Activation, Activation]
    peepholes: bool = False
    coupled: bool = False
    gate_clip: float = np.inf
    cell_clip: float = np.inf
    layer_norm: bool = False
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0


class Exact:
    """Elementary operations as they are; the estimate of rounding errors spoils them."""

    def product(self, a: Array, b: Array) -> Array:
        return np.asarray(a @ b)

    def rounded(self, v: Array, ulps: float = 1.0) -> Array:  # noqa: ARG002 - of the estimate alone
        return v

    def curved(self, v: Array) -> Array:
        return v


class Faulty:
    """What asks for faults."""

    def __init__(self, faults: frozenset[str], arithmetic: Exact) -> None:
        self.faults = faults
        self.arithmetic = arithmetic

    def has(self, fault: str) -> bool:
        return fault in self.faults

    def activation(self, name: str, *given: str) -> Activation:
        make, defaults = ACTIVATIONS[name]
        numbers = [*map(float, given)]
        numbers = [] if self.has("alpha and beta ignored") else numbers
        numbers = numbers[:1] if self.has("beta ignored") else numbers
        settings = [*numbers, *defaults[len(numbers) :]]
        settings = settings[::-1] if self.has("alpha and beta swapped") else settings
        if self.has("other defaults") and not given:
            settings = {"hard_sigmoid": [1 / 6, 0.5], "leaky_relu": [0.3], "elu": [1.5]}.get(name, settings)
        if name == "thresholded_relu" and self.has("threshold of zero"):
            settings = [0.0]
        if name == "thresholded_relu" and self.has("threshold subtracted"):
            return Activation(
                lambda z: np.maximum(z - settings[0], 0), lambda z, _: (z > settings[0]).astype(float)
            )
        made = make(*settings)
        return made._replace(slope=SIGMOID.slope) if self.has("every slope is the sigmoid's") else made

    def variant(self, config: Config, d: int) -> Variant:
        """Direction `d` by a record's config."""
        given: dict[str, Any] = dict(config.get("variant", {}))
        specs = given.pop("activations", [["sigmoid"], ["tanh"], ["tanh"]]) * 2
        at = 0 if self.has("reverse has forward's activations") else 3 * d
        specs = [["sigmoid"], ["tanh"], ["tanh"]] if self.has("activations ignored") else specs[at : at + 3]
        specs = [specs[0], specs[2], specs[1]] if self.has("G and H swapped") else specs
        F, G, H = (self.activation(*spec) for spec in specs)
        G = F if self.has("F for g") else G
        H = self.activation("tanh") if self.has("H is always tanh") else H
        options: dict[str, Any] = {k: float(v) if isinstance(v, str) else v for k, v in given.items()}
        for name in ("peepholes", "coupled", "gate_clip", "cell_clip", "layer_norm"):
            if self.has(f"{name} ignored"):
                options.pop(name, None)
        if self.has("zoneout of h and c swapped"):
            options |= {f"zoneout_{a}": options.get(f"zoneout_{b}", 0.0) for a, b in (("h", "c"), ("c", "h"))}
        return Variant(activations=(F, G, H), **options)

    def draw(self, key: Key, purpose: int, stream: int, t: int, shape: tuple[int, ...]) -> Array:
        """Numbers in [0, 1) of XPL-VAR-016."""
        words = key[::-1] if self.has("noise key swapped") else key
        stream = 0 if self.has("stream of noise ignored") else stream
        purpose = 0 if self.has("purpose of noise ignored") else purpose
        counter = (
            [0, stream, t, purpose]
            if self.has("time and stream of noise swapped")
            else [0, t, stream, purpose]
        )
        philox = np.random.Philox(key=np.asarray(words, np.uint64), counter=np.asarray(counter, np.uint64))
        found = np.random.Generator(philox).random(shape)
        found = found.astype("float32").astype("float64") if self.has("masks of float32 numbers") else found
        return np.floor(found * 2.0**32) / 2.0**32 if self.has("masks of 32 bits") else found

    def dropped(
        self, what: str, key: Key | None, purpose: int, stream: int, p: float, shape: tuple[int, ...]
    ) -> Array | None:
        """A mask of zeros and 1 / (1 - p), or None where nothing is dropped."""
        if key is None or not p or self.has(f"{what} ignored"):
            return None
        keep = self.draw(key, purpose, stream, 0, shape) >= p
        keep = ~keep if self.has(f"{what} keeps what it should drop") else keep
        return np.asarray(keep * (1.0 if self.has(f"{what} not scaled") else 1 / (1 - p)))


class Cell(Faulty):
    """The equations of one layer and direction."""

    def __init__(
        self,
        faults: frozenset[str],
        arithmetic: Exact,
        p: Arrays,
        variant: Variant,
        key: Key | None,
        stream: int,
    ) -> None:
        super().__init__(faults, arithmetic)
        self.p, self.v, self.key, self.stream = p, variant, key, stream
        self.H = len(p["weight_hh"]) // 4
        self.w_ch = self.peepholes() if variant.peepholes else None

    def peepholes(self) -> list[Array]:
        """Peephole weights of i, f and o."""
        blocks = np.split(self.p["weight_ch"], 3)
        for order in ("iof", "fio", "oif", "foi", "ofi"):
            if self.has(f"peepholes in the order {order}"):
                blocks = [blocks[order.index(gate)] for gate in "ifo"]
        return blocks

    def forward(self, t: int, x: Array, h: Array, c: Array) -> tuple[Array, Array, SimpleNamespace]:
        s = SimpleNamespace(t=t, x=x, h=h, c=c)
        s.kept = self.recurrent_mask(t, h)
        s.h_in = h if s.kept is None else h * s.kept
        c_in = c
        if s.kept is not None and self.has("recurrent dropout on c"):
            s.h_in, c_in = h, c * s.kept if c.shape == h.shape else c
        z = self.sums(s)
        z = np.clip(z, -3, 3) if self.has("pre-activations clipped at 3") else z
        self.gates(s, z, c_in)
        self.outputs(s)
        h_new, c_new = self.zoneout(s)
        return h_new, c_new, s

    def recurrent_mask(self, t: int, h: Array) -> Array | None:
        p = self.v.recurrent_dropout
        if self.key is not None and p and self.has("recurrent dropout drawn at every step"):
            return np.asarray((self.draw(self.key, 1, self.stream, t, h.shape[-2:]) >= p) / (1 - p))
        return self.dropped("recurrent dropout", self.key, 1, self.stream, p, h.shape[-2:])

    def sums(self, s: SimpleNamespace) -> Array:
        p, A = self.p, self.arithmetic
        of_x, of_h = A.product(s.x, p["weight_ih"].T), A.product(s.h_in, p["weight_hh"].T)
        if not self.v.layer_norm:
            z = of_x + of_h
            return A.rounded(z + (p["bias_ih"] + p["bias_hh"] if "bias_ih" in p else 0.0), 2)
        gains = [p["gain_ih"], p["gain_hh"]]
        gains = gains[::-1] if self.has("gains swapped") else gains
        if self.has("biases normalised") and "bias_ih" in p:
            of_x, of_h = of_x + p["bias_ih"], of_h + p["bias_hh"]
        if self.has("one norm of the whole sum"):
            of_x, of_h = of_x + of_h, np.zeros_like(of_h)
        s.norm_x, s.inv_x = self.normalised(of_x)
        s.norm_h, s.inv_h = self.normalised(of_h)
        if self.has("recurrent sum not normalised"):
            s.norm_h = of_h
        z = s.norm_x * gains[0] + s.norm_h * gains[1]
        if "bias_ih" in p and not self.has("biases normalised"):
            z = z + p["bias_ih"] + p["bias_hh"]
        return A.rounded(z, 3)

    def normalised(self, v: Array) -> tuple[Array, Array]:
        """The normalised numbers, and what they were multiplied by."""
        whole = v.shape
        if self.has("norm over each gate") and whole[-1] == 4 * self.H:
            v = v.reshape(*whole[:-1], 4, self.H)
        axis = -2 if self.has("norm over the batch") else -1
        mean = 0.0 if self.has("norm without the mean") else v.mean(axis, keepdims=True)
        ddof = int(self.has("unbiased variance"))
        eps = {"eps dropped": 0.0, "eps of 1e-3": 1e-3, "eps of 1e-6": 1e-6}
        added = next((value for fault, value in eps.items() if self.has(fault)), 1e-5)
        variance = ((v - mean) ** 2).sum(axis, keepdims=True) / (v.shape[axis] - ddof)
        if self.has("variance by the difference of squares"):
            variance = (v**2).mean(axis, keepdims=True) - v.mean(axis, keepdims=True) ** 2
        inverse = 1 / np.sqrt(variance + added)
        inverse = 1 / (np.sqrt(variance) + added) if self.has("eps outside the root") else inverse
        found = self.arithmetic.rounded((v - mean) * self.arithmetic.rounded(inverse, 4), 2)
        return found.reshape(whole), inverse.repeat(self.H, -1) if v.shape != whole else inverse

    def clip(self, z: Array, gate: str) -> Array:
        bound = np.inf if self.has(f"gate clip not on {gate}") else self.v.gate_clip
        low = -np.inf if self.has("gate clip from above alone") else -bound
        return np.asarray(np.clip(z, low, bound))

    def gates(self, s: SimpleNamespace, z: Array, c: Array) -> None:
        """From the sums to c, as it is before zoneout."""
        F, G, _ = self.v.activations
        A = self.arithmetic
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=-1)
        z_f = z_f + 1.0 if self.has("forget bias added") else z_f
        if self.has("gate clip before the peepholes"):
            z_i, z_f, z_o = (self.clip(v, k) for v, k in ((z_i, "i"), (z_f, "f"), (z_o, "o")))
        seen = c
        if self.has("peepholes of i and f see the new c"):
            seen = sigmoid(z_f) * c + sigmoid(z_i) * np.tanh(z_g)
        if self.w_ch is not None:
            z_i, z_f = A.rounded(z_i + self.w_ch[0] * seen, 2), A.rounded(z_f + self.w_ch[1] * seen, 2)
        s.raw = {"i": z_i, "f": z_f, "g": z_g, "o": z_o}
        after = self.has("gate clip after the activation")
        late = self.has("gate clip before the peepholes")
        clipped = {k: v if after or (late and k != "g") else self.clip(v, k) for k, v in s.raw.items()}
        i, f = self.gate(clipped["i"], F), self.gate(clipped["f"], F)
        g = A.curved(G.value(clipped["g"]))
        g = sigmoid(z_g) if self.has("sigmoid for g") else g
        g = overflowing_tanh(z_g) if self.has("tanh by exp(2 v)") else g
        g = np.maximum(z_g, 0) if self.has("relu for g") else g
        if after:
            i, f, g = self.clip(i, "i"), self.clip(f, "f"), self.clip(g, "g")
        if s.kept is not None and self.has("recurrent dropout on g") and g.shape == s.kept.shape:
            g = g * s.kept
        if self.v.coupled:
            i, f = self.coupled(clipped, i, f, F)
        f = 1.0 - i if self.has("f coupled to i") else f
        c = np.clip(c, -self.v.cell_clip, self.v.cell_clip) if self.has("cell clip of the old c") else c
        grown = i * c + f * g if self.has("i and f trade places in c") else f * c + i * g
        s.grown = A.rounded(grown, 2)
        low = -np.inf if self.has("cell clip from above alone") else -self.v.cell_clip
        s.c_new = np.clip(s.grown, low, self.v.cell_clip)
        s.c_new = s.grown if self.has("cell clip of the old c") else s.c_new
        s.c_new = np.clip(s.c_new, -0.5, 0.5) if self.has("c clipped at 0.5") else s.c_new
        s.i, s.f, s.g = i, f, g

    def coupled(self, z: Arrays, i: Array, f: Array, F: Activation) -> tuple[Array, Array]:
        if self.has("coupled: i is 1 - f"):
            return 1.0 - f, f
        if self.has("coupled: f is F(-z_i)"):
            return i, F.value(-z["i"])
        if self.has("coupled: f is 1 - o"):
            return i, 1.0 - F.value(z["o"])
        return i, i if self.has("coupled: f is i") else 1.0 - i

    def gate(self, z: Array, F: Activation) -> Array:
        if self.has("hard sigmoid"):
            return np.clip(0.2 * z + 0.5, 0, 1)
        if self.has("sigmoid by exp(v) / (1 + exp(v))"):
            return overflowing_sigmoid(z)
        return np.tanh(z) if self.has("tanh for the gates") else self.arithmetic.curved(F.value(z))

    def outputs(self, s: SimpleNamespace) -> None:
        """From c to h, as it is before zoneout."""
        p, A = self.p, self.arithmetic
        F, _, H = self.v.activations
        F = SIGMOID if self.has("o is always a sigmoid") else F
        s.peeped = s.c if self.has("peephole of o sees the old c") else s.c_new
        s.peeped = s.grown if self.has("peephole of o sees the unclipped c") else s.peeped
        s.peeped = np.tanh(s.peeped) if self.has("peephole of o sees tanh(c)") else s.peeped
        if self.w_ch is not None:
            s.raw["o"] = A.rounded(s.raw["o"] + self.w_ch[2] * s.peeped, 2)
        unclipped = self.has("gate clip after the activation") or self.has("gate clip before the peepholes")
        s.o = self.gate(s.raw["o"] if unclipped else self.clip(s.raw["o"], "o"), F)
        s.o = self.clip(s.o, "o") if self.has("gate clip after the activation") else s.o
        s.o = self.gate(s.raw["o"] + s.c_new, F) if self.has("o sees the new c") else s.o
        s.seen = s.grown if self.has("h from the unclipped c") else s.c_new
        s.seen = s.c if self.has("h from the old c") else s.seen
        if self.v.layer_norm and not self.has("c not normalised"):
            s.norm_c, s.inv_c = self.normalised(s.seen)
            bias = 0.0 if "bias_c" not in p or self.has("bias_c ignored") else p["bias_c"]
            s.seen = A.rounded(s.norm_c * p["gain_c"] + bias, 2)
        s.squashed = s.seen if self.has("tanh(c) omitted") else A.curved(H.value(s.seen))
        if self.has("h from the zoned c"):
            s.squashed = H.value(self.mixed("c", s.c, s.c_new, s.t)[0])
        s.m = A.rounded(s.o * s.squashed)
        if "weight_hr" not in p:
            s.h_new = s.m
        elif self.has("projection before the output gate"):
            s.h_new = s.o[..., : len(p["weight_hr"])] * (s.squashed @ p["weight_hr"].T)
        else:
            s.h_new = A.product(s.m, p["weight_hr"].T)
        s.carried = s.squashed if self.has("state carries tanh(c)") else s.c_new
        if self.v.layer_norm and self.has("normalised c carried"):
            s.carried = s.seen
        s.carried = s.grown if self.has("unclipped c carried") else s.carried

    def mixed(self, which: str, old: Array, new: Array, t: int) -> tuple[Array, Array | float]:
        """Zoneout, and the share of the old value."""
        p = {"h": self.v.zoneout_h, "c": self.v.zoneout_c}[which]
        if not p or self.has(f"zoneout of {which} ignored"):
            return new, 0.0
        if self.key is None or self.has("expectation of zoneout with noise"):
            share: Array | float = 0.0 if self.has("expectation of zoneout ignored") else p
            share = 1.0 - p if self.has("zoneout inverted") else share
            return self.arithmetic.rounded(share * old + (1 - share) * new, 2), share
        purpose = {"h": 2, "c": 3}["c" if self.has("zoneout drawn for c alone") else which]
        at = 0 if self.has("one zoneout for all times") else t
        share = (self.draw(self.key, purpose, self.stream, at, new.shape[-2:]) < p) * 1.0
        share = 1.0 - share if self.has("zoneout inverted") else share
        old = np.zeros_like(old) if self.has("zoneout to zero") else old
        scale = 1 / (1 - p) if self.has("zoneout scaled as dropout") else 1.0
        return np.where(share == 1.0, old, new * scale), share

    def zoneout(self, s: SimpleNamespace) -> tuple[Array, Array]:
        h, s.share_h = self.mixed("h", s.h, s.h_new, s.t)
        c, s.share_c = self.mixed("c", s.c, s.carried, s.t)
        return h, c

    def backward(self, s: SimpleNamespace, dh: Array, dc: Array) -> tuple[Arrays, Array, Array]:
        """Return the gradients with respect to x and each parameter, by row, and to h and c."""
        A, p = self.arithmetic, self.p
        rows: dict[str, Any] = {}
        dh_old, dc_old = s.share_h * dh, s.share_c * dc
        if self.has("kept share of zoneout not carried back"):
            dh_old, dc_old = np.zeros_like(dh), np.zeros_like(dc)
        dm, dc = (1 - s.share_h) * dh, (1 - s.share_c) * dc
        if "weight_hr" in p:
            rows["weight_hr"] = (dm, s.m)
            dm = A.product(dm, p["weight_hr"])
        dc, dz_o = self.output_backward(s, dm, dc, rows)
        blocks, dc = self.gates_backward(s, dc, dz_o, rows)
        dz = A.rounded(np.concatenate(blocks, -1), 4)
        for k, name in enumerate("ifgo"):
            if self.has(f"gradient of {name} cut"):
                dz[..., k * self.H : (k + 1) * self.H] = 0
        dh_in, dx = self.sums_backward(s, dz, rows)
        if s.kept is not None and not self.has("recurrent dropout not in the backward pass"):
            dh_in = dh_in * s.kept
        through = 0.0 if self.has("path through h cut") else dh_in
        rows["x"] = dx
        return rows, dh_old + through, dc_old + (0.0 if self.has("path through c cut") else dc)

    def slope(self, which: int, z: Array, y: Array) -> Array:
        """The slope at clipped z, 0 where the clip bites."""
        inside = np.abs(z) < self.v.gate_clip
        slope = self.v.activations[which].slope(np.clip(z, -self.v.gate_clip, self.v.gate_clip), y)
        return slope if self.has("gate clip passes gradients") else slope * inside

    def output_backward(
        self, s: SimpleNamespace, dm: Array, dc: Array, rows: dict[str, Any]
    ) -> tuple[Array, Array]:
        """From h to c and to the pre-activation of o."""
        A = self.arithmetic
        slope = self.v.activations[2].slope(s.seen, s.squashed)
        slope = np.ones_like(slope) if self.has("slope of tanh(c) omitted") else slope
        dseen = A.rounded(dm * s.o * slope, 6)
        if hasattr(s, "norm_c"):
            rows["gain_c"] = np.zeros_like(dseen) if self.has("gain_c not trained") else dseen * s.norm_c
            if "bias_c" in self.p:
                rows["bias_c"] = dseen
            dseen = self.norm_backward(dseen * self.p["gain_c"], s.norm_c, s.inv_c)
        dc = dc + (0.0 if self.has("path from h to c cut") else dseen)
        dz_o = dm * s.squashed * self.slope(0, s.raw["o"], s.o)
        if self.w_ch is not None and not self.has("peephole of o not in the backward pass"):
            dc = dc + dz_o * self.w_ch[2]
        return A.rounded(dc, 2), dz_o

    def gates_backward(
        self, s: SimpleNamespace, dc: Array, dz_o: Array, rows: dict[str, Any]
    ) -> tuple[list[Array], Array]:
        """From c to the pre-activations and to the c before."""
        if not self.has("cell clip passes gradients"):
            dc = dc * (np.abs(s.grown) < self.v.cell_clip)
        di, df, dg, back = dc * s.g, dc * s.c, dc * s.i, dc * s.f
        back = dc if self.has("dc not multiplied by f") else back
        if self.v.coupled:
            di = di if self.has("coupled: no gradient from f") else di - df
            df = df if self.has("coupled: rows of f get gradients") else np.zeros_like(df)
        dz_i, dz_f = di * self.slope(0, s.raw["i"], s.i), df * self.slope(0, s.raw["f"], s.f)
        if self.w_ch is not None:
            rows["weight_ch"] = np.concatenate([dz_i * s.c, dz_f * s.c, dz_o * s.peeped], -1)
            if not self.has("peepholes of i and f not in the backward pass"):
                back = back + dz_i * self.w_ch[0] + dz_f * self.w_ch[1]
        return [dz_i, dz_f, dg * self.slope(1, s.raw["g"], s.g), dz_o], back

    def sums_backward(self, s: SimpleNamespace, dz: Array, rows: dict[str, Any]) -> tuple[Array, Array]:
        """From the pre-activations to h and x."""
        p, A = self.p, self.arithmetic
        of_x, of_h = dz, dz
        if self.v.layer_norm:
            rows |= {"gain_ih": dz * s.norm_x, "gain_hh": dz * s.norm_h}
            of_x = self.norm_backward(dz * p["gain_ih"], s.norm_x, s.inv_x)
            of_h = self.norm_backward(dz * p["gain_hh"], s.norm_h, s.inv_h)
        if "bias_ih" in p:
            rows |= {"bias_ih": dz, "bias_hh": np.zeros_like(dz) if self.has("bias_hh not trained") else dz}
        h_seen = s.m if self.has("dweight_hh with the new h") and "weight_hr" not in p else s.h_in
        h_seen = s.h if self.has("dweight_hh with the h before recurrent dropout") else h_seen
        rows |= {"weight_ih": (of_x, s.x), "weight_hh": (of_h, h_seen)}
        return A.product(of_h, p["weight_hh"]), A.product(of_x, p["weight_ih"])

    def norm_backward(self, d: Array, norm: Array, inverse: Array) -> Array:
        mean, bent = d.mean(-1, keepdims=True), (d * norm).mean(-1, keepdims=True)
        mean = 0.0 if self.has("norm's mean not in the backward pass") else mean
        bent = 0.0 if self.has("norm's variance not in the backward pass") else bent
        return self.arithmetic.rounded(inverse * (d - mean - norm * bent), 4)
