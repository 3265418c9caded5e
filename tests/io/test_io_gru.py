"""Check GRU weights with the names, axes and gate orders of other libraries."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import _array, io
from xplstm._errors import ArgumentError, FormatError

T, B, I, H = 5, 4, 3, 2


def logistic(z):
    return 1 / (1 + np.exp(-z))


def steps(x, sums):
    """Return h after every step; `sums` returns r, z and the candidate from x and h."""
    h, rows = np.zeros((x.shape[1], H)), []
    for x_t in x:
        _, z, candidate = sums(x_t, h)
        h = (1 - z) * candidate + z * h
        rows.append(h)
    return np.stack(rows)


def rows(w, order, bias_ih, bias_hh):
    """Return a function that computes gates from rows of a matrix, with the reset gate after the product."""

    def sums(x, h):
        a = dict(zip(order, np.split(x @ w["ih"].T + bias_ih, 3, axis=1), strict=True))
        b = dict(zip(order, np.split(h @ w["hh"].T + bias_hh, 3, axis=1), strict=True))
        r, z = logistic(a["r"] + b["r"]), logistic(a["z"] + b["z"])
        return r, z, np.tanh(a["n"] + r * b["n"])

    return sums


def torch_cell(w):
    return rows({"ih": w["weight_ih"], "hh": w["weight_hh"]}, "rzn", w["bias_ih"], w["bias_hh"])


def equinox(w):
    tail = np.concatenate([np.zeros(2 * H), w["bias_n"]])
    return rows({"ih": w["weight_ih"], "hh": w["weight_hh"]}, "rzn", w["bias"], tail)


def keras(w):
    matrices = {"ih": w["kernel"].T, "hh": w["recurrent_kernel"].T}
    return rows(matrices, "zrn", w["bias"][0], w["bias"][1])


def keras_before(w):
    """Return a function that computes the gates with the reset gate before the product."""

    def sums(x, h):
        a = x @ w["kernel"] + w["bias"]
        u = w["recurrent_kernel"]
        z, r = logistic(a[:, :H] + h @ u[:, :H]), logistic(a[:, H : 2 * H] + h @ u[:, H : 2 * H])
        return r, z, np.tanh(a[:, 2 * H :] + (r * h) @ u[:, 2 * H :])

    return sums


def flax(w):
    def sums(x, h):
        r, z = (logistic(x @ w[f"i{k}.kernel"] + w[f"i{k}.bias"] + h @ w[f"h{k}.kernel"]) for k in ("r", "z"))
        inner = h @ w["hn.kernel"] + w["hn.bias"]
        return r, z, np.tanh(x @ w["in.kernel"] + w["in.bias"] + r * inner)

    return sums


def nnx(w):
    matrices = {"ih": w["dense_i.kernel"].T, "hh": w["dense_h.kernel"].T}
    return rows(matrices, "rzn", w["dense_i.bias"], np.zeros(3 * H))


ROWS = {"weight_ih": (3 * H, I), "weight_hh": (3 * H, H)}
COLUMNS = {"kernel": (I, 3 * H), "recurrent_kernel": (H, 3 * H)}
DENSE = {f"i{k}.kernel": (I, H) for k in "rzn"} | {f"h{k}.kernel": (H, H) for k in "rzn"}
LAYOUTS = {
    "torch": ("torch", ROWS | {"bias_ih": (3 * H,), "bias_hh": (3 * H,)}, torch_cell),
    "equinox": ("equinox", ROWS | {"bias": (3 * H,), "bias_n": (H,)}, equinox),
    "keras": ("keras", COLUMNS | {"bias": (2, 3 * H)}, keras),
    "keras, reset before": ("keras", COLUMNS | {"bias": (3 * H,)}, keras_before),
    "flax": ("flax", DENSE | {f"{k}.bias": (H,) for k in ("ir", "iz", "in", "hn")}, flax),
    "nnx": (
        "nnx",
        {"dense_i.kernel": (I, 3 * H), "dense_h.kernel": (H, 3 * H), "dense_i.bias": (3 * H,)},
        nnx,
    ),
}
SURE = [case for case, (layout, _, _) in LAYOUTS.items() if layout != "keras"]


def draws(shapes):
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_means_what_its_equations_say(case):
    layout, shapes, sums = LAYOUTS[case]
    theirs = draws(shapes)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    gru = io.load(theirs, format=layout)
    assert isinstance(gru, xplstm.GRU)
    np.testing.assert_allclose(gru(x)[0], steps(x, sums(theirs)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_there_and_back(case, xp):
    layout, shapes, _ = LAYOUTS[case]
    theirs = draws(shapes)
    gru = io.load(xp.arrays(theirs), format=layout, xp=xp.xp)
    back = io.to_mapping(gru, layout)
    if layout == "torch":  # the names of a stack, of which the cell is one layer
        back = {name.removesuffix("_l0"): a for name, a in back.items()}
    assert back.keys() == theirs.keys()
    for name, a in theirs.items():
        np.testing.assert_array_equal(_array.to_numpy(back[name]), a, err_msg=name)


@pytest.mark.parametrize("case", SURE)
def test_names_alone_tell_a_gru(case):
    layout, shapes, _ = LAYOUTS[case]
    theirs = {f"net.{name}": a for name, a in draws(shapes).items()}
    assert repr(io.load(theirs)) == "GRU(3, 2, num_layers=1)"
    found = io.inspect(theirs).networks
    assert [row[0] for row in found if row[3] == "GRU(3, 2)"] == ["net"]
    assert repr(io.load({n: a for n, a in theirs.items() if "bias" not in n}, format=layout)) == (
        "GRU(3, 2, num_layers=1, bias=False)"
    )


@pytest.mark.parametrize("layout", ["equinox", "keras", "flax"])
def test_two_biases_become_what_the_layout_has(layout):
    gru = xplstm.GRU(I, H, dtype="float64", rng=1)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    again = io.load(io.to_mapping(gru, layout), format=layout)
    np.testing.assert_allclose(again(x)[0], gru(x)[0], rtol=0, atol=1e-14)


def test_what_a_layout_has_no_place_for_is_refused():
    for layout in ("equinox", "flax", "nnx"):
        with pytest.raises(ArgumentError, match="reset_after=False, which format"):
            io.to_mapping(xplstm.GRU(I, H, reset_after=False), layout)
    with pytest.raises(ArgumentError, match="nonzero bias_hh for the gate n"):
        io.to_mapping(xplstm.GRU(I, H, rng=0), "nnx")
    for layout in ("mlx", "haste", "chainer"):
        with pytest.raises(ArgumentError, match="is a GRU"):
            io.to_mapping(xplstm.GRU(I, H), layout)
    with pytest.raises(FormatError, match=r"bias has shape \(2, 8\)"):
        io.load(draws(COLUMNS | {"bias": (2, 8)}), format="keras")


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2}, {"bidirectional": True}])
def test_our_file_for_keras_there_and_back(options, reset_after, tmp_path):
    h5py = pytest.importorskip("h5py")
    gru = xplstm.GRU(I, H, rng=1, reset_after=reset_after, batch_first=True, **options)
    path = tmp_path / "ours.weights.h5"
    io.save(path, gru)
    assert repr(io.load(path)) == repr(gru)
    with h5py.File(path, "r+") as file:  # as Keras writes it
        del file.attrs["xplstm.load"]
    star = "layers.gru*" if "num_layers" in options else None
    with pytest.raises(
        ArgumentError, match="not its functions or merge; pass format='keras' if they are sigm"
    ):
        io.load(path, prefix=star)
    if not options.get("bias", True):
        with pytest.raises(ArgumentError, match="pass reset_after="):
            io.load(path, format="keras")
    told = {} if options.get("bias", True) else {"reset_after": reset_after}
    again = io.load(path, prefix=star, format="keras", **told)
    assert repr(again) == repr(gru)
    x = np.random.default_rng(2).standard_normal((B, T, I)).astype("float32")
    np.testing.assert_allclose(again(x)[0], gru(x)[0], rtol=0, atol=1e-6)


def test_cells_stacked_by_hand():
    first, second = (io.to_mapping(xplstm.GRU(i, H, rng=i), "flax") for i in (I, H))
    theirs = {"a": first, "b": second}
    assert repr(io.load(theirs, prefix=["a", "b"])) == "GRU(3, 2, num_layers=2)"
    mixed = theirs | {"b": io.to_mapping(xplstm.LSTM(H, H), "flax")}
    with pytest.raises(FormatError, match="'b' must be an GRU"):
        io.load(mixed, prefix=["a", "b"])


@pytest.fixture
def x():
    return np.random.default_rng(2).standard_normal((B, T, I)).astype("float32")


MODELS = {
    "plain": lambda k: [k.GRU(H, return_sequences=True)],
    "reset before": lambda k: [k.GRU(H, return_sequences=True, reset_after=False)],
    "without bias": lambda k: [k.GRU(H, return_sequences=True, use_bias=False)],
    "cell": lambda k: [k.RNN(k.GRUCell(H), return_sequences=True)],
    "two": lambda k: [k.GRU(H, return_sequences=True), k.GRU(H, return_sequences=True)],
    "both": lambda k: [k.Bidirectional(k.GRU(H, return_sequences=True))],
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_keras(name, x, tmp_path):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((None, I)), *MODELS[name](keras.layers)])
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    model.save(tmp_path / "model.keras")
    gru = io.load(tmp_path / "model.keras")
    assert isinstance(gru, xplstm.GRU)
    np.testing.assert_allclose(gru(x)[0], model.predict(x, verbose=0), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_cell_of_flax(kind, x, jax):
    flax = pytest.importorskip("flax")
    pytest.importorskip(f"flax.{kind}")
    if kind == "linen":
        cell = flax.linen.GRUCell(H)
        carry = cell.initialize_carry(jax.random.key(0), (B, I))
        theirs = cell.init(jax.random.key(1), carry, x[:, 0])
        step = lambda h, x_t: cell.apply(theirs, h, x_t)[0]  # noqa: E731
    else:
        cell = flax.nnx.GRUCell(I, H, rngs=flax.nnx.Rngs(0))
        theirs = flax.nnx.to_pure_dict(flax.nnx.state(cell, flax.nnx.Param))
        step = lambda h, x_t: cell(h, x_t)[0]  # noqa: E731
    theirs = jax.tree.map(lambda a: a + 0.25, theirs)
    if kind == "nnx":
        flax.nnx.update(cell, theirs)
    h = np.zeros((B, H), "float32")
    gru = io.load(theirs, batch_first=True, dtype="float32")
    y, _ = gru(x)
    for t in range(T):
        h = step(h, x[:, t])
        np.testing.assert_allclose(y[:, t], h, rtol=0, atol=1e-5)


def test_a_cell_of_equinox(x, jax):
    equinox = pytest.importorskip("equinox")
    cell = equinox.nn.GRUCell(I, H, key=jax.random.key(0))
    y, _ = io.load(vars(cell), batch_first=True, dtype="float32")(x)
    h = np.zeros((B, H), "float32")
    for t in range(T):
        h = jax.vmap(cell)(x[:, t], h)
        np.testing.assert_allclose(y[:, t], h, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_what_pytorchs_names_cannot_say_is_refused(suffix, tmp_path):
    wrong = [
        xplstm.GRU(3, 5, reset_after=False),
        xplstm.LSTM(3, 5, variant=xplstm.Variant(cell_clip=0.05)),
        xplstm.LSTM(3, 5, bidirectional=True, merge="sum"),
    ]
    for network in wrong:
        with pytest.raises(xplstm.ArgumentError, match="cannot store"):
            xplstm.io.save(tmp_path / f"w{suffix}", network)
        with pytest.raises(xplstm.ArgumentError, match="cannot store"):
            xplstm.io.to_mapping(network, "torch")
