"""Check `load`, `save` and `inspect` on complete files and mappings of every origin."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import numpy as np
import pytest

import xplstm
from tests.conftest import open_backend
from tests.support import weightfiles
from xplstm import _array, io
from xplstm._errors import ArgumentError, DTypeError, FormatError
from xplstm.io.files import safetensors
from xplstm.io.layouts.single import CHAINER

T, B, I, H = 4, 2, 3, 5
SINGLE = ("flax", "nnx", "nnx_optimized", "equinox", "mlx", "haste")
VARIANT = xplstm.Variant(
    peepholes=True,
    activations=("hard_sigmoid", ("elu", 0.5), "tanh"),
    cell_clip=3.0,
    layer_norm=True,
    zoneout_c=0.25,
)


def logistic(z):
    return 1 / (1 + np.exp(-z))


def steps(x, gates):
    """Return h after every step by the equations; `gates` returns the sums of each gate by name."""
    h = c = np.zeros(H)
    rows = []
    for x_t in x:
        z = gates(x_t, h)
        c = logistic(z["f"]) * c + logistic(z["i"]) * np.tanh(z["g"])
        h = logistic(z["o"]) * np.tanh(c)
        rows.append(h)
    return np.stack(rows)


def draws(shapes, seed=3):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def joined(weights, ih, hh, bias, order, columns):
    """Return a function that computes the sums of each gate from weights in one matrix."""
    w, u = (weights[ih], weights[hh]) if not columns else (weights[ih].T, weights[hh].T)
    return lambda x, h: dict(zip(order, np.split(w @ x + u @ h + weights[bias], 4), strict=True))


def dense(weights, f):
    """Return a function that computes the sums of each gate of a Flax cell."""
    first = {"f": f, **{gate: f"i{gate}" for gate in "igo"}}
    return lambda x, h: {
        g: x @ weights[f"{first[g]}.kernel"] + h @ weights[f"h{g}.kernel"] + weights[f"h{g}.bias"]
        for g in "ifgo"
    }


def chained(weights):
    """Return a function that computes Chainer's sums in the order of its code: i, f, candidate, o."""
    return lambda x, h: {
        g: weights[f"0.w{k}"] @ x + weights[f"0.b{k}"] + weights[f"0.w{k + 4}"] @ h + weights[f"0.b{k + 4}"]
        for k, g in enumerate("ifgo")
    }


def dense_shapes(f):
    found = {f"{name}.kernel": (I, H) for name in ("ii", f, "ig", "io")}
    found |= {f"h{gate}.kernel": (H, H) for gate in "ifgo"}
    return found | {f"h{gate}.bias": (H,) for gate in "ifgo"}


ROWS = {"Wx": (4 * H, I), "Wh": (4 * H, H), "bias": (4 * H,)}
COLUMNS = {"kernel": (I, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
NUMBERED = {f"0.w{k}": (H, I if k < 4 else H) for k in range(8)} | {f"0.b{k}": (H,) for k in range(8)}
LAYOUTS = {
    "flax": (dense_shapes("if"), lambda w: dense(w, "if")),
    "nnx": (dense_shapes("if_"), lambda w: dense(w, "if_")),
    "nnx_optimized": (
        {"dense_i.kernel": (I, 4 * H), "dense_h.kernel": (H, 4 * H), "dense_h.bias": (4 * H,)},
        lambda w: joined(w, "dense_i.kernel", "dense_h.kernel", "dense_h.bias", "ifgo", True),
    ),
    "equinox": (
        {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "bias": (4 * H,)},
        lambda w: joined(w, "weight_ih", "weight_hh", "bias", "ifgo", False),
    ),
    "mlx": (ROWS, lambda w: joined(w, "Wx", "Wh", "bias", "ifgo", False)),
    "haste": (COLUMNS, lambda w: joined(w, "kernel", "recurrent_kernel", "bias", "igfo", True)),
    "chainer": (NUMBERED, chained),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_means_what_its_equations_say(layout):
    shapes, sums = LAYOUTS[layout]
    theirs = draws(shapes)
    x = np.random.default_rng(1).standard_normal((T, I))
    y, _ = io.load(theirs, format=layout)(x)
    np.testing.assert_allclose(y, steps(x, sums(theirs)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_there_and_back(layout, xp):
    """Conversion in both directions keeps all bits, the library and the names."""
    shapes, _ = LAYOUTS[layout]
    theirs = draws(shapes)
    lstm = io.load(xp.arrays(theirs), format=layout, xp=xp.xp)
    assert all(type(a) is type(xp.asarray(np.ones(1))) for a in lstm.params.values())
    back = io.to_mapping(lstm, layout)
    assert back.keys() == theirs.keys()
    for name, a in theirs.items():
        # Chainer alone has two biases; the others' second is zero, and adding it changes nothing.
        np.testing.assert_array_equal(_array.to_numpy(back[name]), a, err_msg=name)


@pytest.mark.parametrize("layout", [*SINGLE, "chainer"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}]
)
def test_layers_and_directions_there_and_back(layout, options, tmp_path):
    ours = weightfiles.lstm(num_layers=1, bidirectional=False, dtype="float64") if not options else None
    ours = ours or xplstm.LSTM(I, H, dtype="float64", rng=2, **options)
    if layout == "chainer":
        prefix = None
    else:
        names = [f"l{k}" for k in range(options.get("num_layers", 1))]
        prefix = (
            [(n, f"{n}_reverse") if options.get("bidirectional") else n for n in names] if options else None
        )
    path = tmp_path / "theirs.npz"
    io.save(path, ours, format=layout)
    found = io.load(path, format=layout, prefix=prefix)
    assert repr(found) == repr(ours)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    for a, b in zip(ours(x)[1], found(x)[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "layout", ["equinox", "mlx", "haste", "flax", "nnx", "nnx_optimized", "joined", "parted"]
)
def test_without_biases_there_and_back(layout):
    ours = xplstm.LSTM(I, H, bias=False, rng=2)
    found = io.load(io.to_mapping(ours, layout), format=layout)
    assert repr(found) == repr(ours)
    for name, a in ours.params.items():
        np.testing.assert_array_equal(found.params[name], a)


@pytest.mark.parametrize("layout", ["joined", "parted"])
def test_hand_written_matrices_there_and_back(layout):
    ours = xplstm.LSTM(I, H, dtype="float64", rng=2)
    found = io.load({"mine": io.to_mapping(ours, layout)}, format=layout)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    np.testing.assert_allclose(found(x)[0], ours(x)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("layout", "first"),
    [
        ("flax", "c"),
        ("nnx", "c"),
        ("nnx_optimized", "c"),
        ("torch", "h"),
        ("chainer", "h"),
        ("mlx", "h"),
        ("haste", "h"),
        ("equinox", "h"),
        ("joined", "h"),
    ],
)
def test_a_state_in_the_order_of_the_format(layout, first):
    h, c = np.zeros((B, H)), np.ones((B, H))
    theirs = (c, h) if first == "c" else (h, c)
    assert io.from_state(theirs, layout) == (h, c) or io.from_state(theirs, layout).h is h
    back = io.to_state((h, c), layout)
    assert back[0] is theirs[0]
    assert back[1] is theirs[1]


KINDS = {
    "plain": (xplstm.LSTM, {}),
    "everything": (
        xplstm.LSTM,
        {
            "num_layers": 3,
            "bidirectional": True,
            "batch_first": True,
            "dropout": 0.5,
            "proj_size": 2,
            "variant": VARIANT,
            "merge": "sum",
            "input_dropout": 0.125,
            "weight_dropout": 0.25,
        },
    ),
    "two sets of activations": (
        xplstm.LSTM,
        {
            "bidirectional": True,
            "variant": xplstm.Variant(
                activations=("sigmoid", "tanh", "tanh", "hard_sigmoid", "relu", "tanh")
            ),
        },
    ),
    "elman": (xplstm.RNN, {"num_layers": 2, "nonlinearity": "relu", "dropout": 0.5}),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("kind", [*KINDS, "jordan"])
def test_our_own_files_keep_every_option(kind, suffix, tmp_path):
    if kind == "jordan":
        ours = xplstm.JordanRNN(I, H, 2, bidirectional=True, rng=1)
    else:
        made, options = KINDS[kind]
        ours = made(I, H, rng=1, **options)
    path = tmp_path / f"ours{suffix}"
    io.save(path, ours, prefix="model/net")
    found = io.load(path)
    assert type(found) is type(ours)
    assert repr(found) == repr(ours)
    for name, a in ours.params.items():
        np.testing.assert_array_equal(found.params[name], a, strict=True)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("suffix", weightfiles.SUFFIXES)
def test_every_dtype_is_kept_or_asked_for(dtype, suffix, tmp_path):
    ours = xplstm.LSTM(I, H, dtype=dtype, rng=1)
    path = tmp_path / f"ours{suffix}"
    if dtype == "bfloat16" and suffix == ".npz":
        with pytest.raises(ArgumentError, match=r"bfloat16.*\.safetensors"):
            io.save(path, ours)
        return
    io.save(path, ours)
    assert _array.dtype_name(io.load(path).params["weight_hh_l0"].dtype) == dtype
    wide = io.load(path, dtype="float64").params["weight_hh_l0"]
    np.testing.assert_array_equal(wide, ours.params["weight_hh_l0"].astype("float64"), strict=True)


def test_bfloat16_without_the_package_that_numpy_needs_for_it(tmp_path, monkeypatch):
    ours = xplstm.LSTM(I, H, dtype="bfloat16", rng=1)
    path = tmp_path / "ours.safetensors"
    io.save(path, ours)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    wide = io.load(path, dtype="float32").params["weight_hh_l0"]
    np.testing.assert_array_equal(wide, ours.params["weight_hh_l0"].astype("float32"), strict=True)
    with pytest.raises(DTypeError, match="ml_dtypes"):
        io.load(path)


@pytest.mark.parametrize("suffix", weightfiles.SUFFIXES)
def test_a_file_goes_where_it_is_asked_to(suffix, tmp_path, xp):
    path = tmp_path / f"ours{suffix}"
    ours = weightfiles.lstm()
    io.save(path, ours)
    found = io.load(path, xp=xp.xp)
    assert _array.backend_name(_array.namespace(found.params["weight_hh_l0"], "w")) == _array.backend_name(
        xp.xp
    )
    for name, a in ours.params.items():
        np.testing.assert_array_equal(_array.to_numpy(found.params[name]), a)


def test_what_is_loaded_is_its_own(tmp_path):
    theirs = xplstm.LSTM(I, H, rng=1).params
    found = io.load(theirs)
    found.params["weight_hh_l0"][...] = 0
    assert theirs["weight_hh_l0"].any()
    path = tmp_path / "ours.safetensors"
    io.save(path, xplstm.LSTM(I, H, rng=1))
    before = path.read_bytes()
    found = io.load(path)
    found.params["weight_hh_l0"][...] = 0
    assert path.read_bytes() == before


def test_a_file_of_several_networks_lists_them(tmp_path):
    path = tmp_path / "several.safetensors"
    arrays = {f"encoder.{n}": a for n, a in weightfiles.lstm().params.items()}
    arrays |= {f"decoder.{n}": a for n, a in xplstm.LSTM(2, 7, rng=1).params.items()}
    path.write_bytes(safetensors.pack(arrays, {}))
    with pytest.raises(ArgumentError) as raised:
        io.load(path)
    assert "has 2 networks" in str(raised.value)
    assert "prefix='encoder', format='torch': LSTM(3, 5, num_layers=2, bidirectional=True)" in str(
        raised.value
    )
    with pytest.raises(
        ArgumentError, match=r"prefix='encode': .* has no such network(.|\n)*prefix='decoder'"
    ):
        io.load(path, prefix="encode")
    assert repr(io.load(path, prefix="decoder")) == "LSTM(2, 7, num_layers=1)"


@pytest.mark.parametrize("layout", ["mlx", "haste", "joined", "parted"])
def test_names_that_anyone_could_use_do_not_tell_a_layout(layout):
    theirs = io.to_mapping(xplstm.LSTM(I, H), layout)
    with pytest.raises(ArgumentError, match=rf"format= is needed(.|\n)*format='{layout}': LSTM\(3, 5\)"):
        io.load(theirs)


def test_a_layout_that_names_do_not_tell_must_be_said():
    theirs = draws(COLUMNS)
    with pytest.raises(
        ArgumentError, match=r"format= is needed(.|\n)*format='haste': LSTM\(3, 5\), columns i, g, f, o"
    ):
        io.load(theirs)
    with pytest.raises(ArgumentError, match="format='hast' must be one of"):
        io.load(theirs, format="hast")
    with pytest.raises(FormatError, match=r"no known LSTM of format 'flax'.*kernel \(3, 20\) float64"):
        io.load(theirs, format="flax")


def test_numbered_cells_that_could_be_layers_or_directions_must_be_said():
    """If inputs and units are equal in number, two Chainer cells fit as two layers and as two directions."""
    cells = [CHAINER.write(xplstm.io.layers.split(xplstm.LSTM(H, H, rng=k).params)[0][0]) for k in (1, 2)]
    theirs = {f"{k}.{name}": a for k, cell in enumerate(cells) for name, a in cell.items()}
    with pytest.raises(ArgumentError, match="bidirectional= is needed"):
        io.load(theirs)
    assert repr(io.load(theirs, bidirectional=True)) == "LSTM(5, 5, num_layers=1, bidirectional=True)"
    assert repr(io.load(theirs, bidirectional=False)) == "LSTM(5, 5, num_layers=2)"


@pytest.mark.parametrize(
    ("start", "text", "words"),
    [
        ("encoder.", '{"": {"batch_first": true}}', "options for a network at '', but no such network"),
        ("", '{"": {}, "": {"batch_first": true}}', "occurs twice"),
        ("", '{"": {"batch_first": true, "batch_first": false}}', "batch_first occurs twice"),
        ("", "[]", "is not a JSON object"),
    ],
)
def test_options_that_fit_no_network_are_refused(start, text, words, tmp_path):
    params = {start + name: np.asarray(a) for name, a in xplstm.LSTM(3, 2, rng=0).params.items()}
    (tmp_path / "m.safetensors").write_bytes(safetensors.pack(params, {"xplstm": text}))
    with pytest.raises(FormatError, match=words):
        io.load(tmp_path / "m.safetensors")
    assert re.search(words, str(io.inspect(tmp_path / "m.safetensors")))


def test_options_that_the_file_tells_must_agree():
    theirs = xplstm.LSTM(I, H, 2, rng=1).params
    assert io.load(theirs, batch_first=True, dropout=0.5, hidden_size=H)._stack.batch_first
    with pytest.raises(
        ArgumentError, match=r"hidden_size.* contradicts .* contains LSTM\(3, 5, num_layers=2\)"
    ):
        io.load(theirs, hidden_size=H + 1)


def test_a_simple_network_must_be_told_its_function():
    theirs = xplstm.RNN(I, H, rng=1).params
    with pytest.raises(ArgumentError, match=r"is not stored in .* pass nonlinearity="):
        io.load(theirs)
    assert repr(io.load(theirs, nonlinearity="relu")) == "RNN(3, 5, num_layers=1, nonlinearity='relu')"


WRONG = {
    "a weight missing": ({"weight_ih_l0": (20, 3)}, "weight_hh_l0 is missing"),
    "gates of no cell": (
        {"weight_ih_l0": (10, 3), "weight_hh_l0": (10, 5)},
        "expected rows: 4 \\* 5 for LSTM",
    ),
    "a bias missing": (
        {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,)},
        "bias_hh_l0 is missing",
    ),
    "a bias too short": (
        {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (19,)},
        r"bias_hh_l0 has shape \(19,\), expected \(20,\)",
    ),
    "a layer missing": (
        {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "weight_ih_l2": (20, 5), "weight_hh_l2": (20, 5)},
        "2 layers, but one has the number 2",
    ),
    "layers beyond number": (
        {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "weight_hh_l999999": (20, 5)},
        "one has the number 999999",
    ),
    "a second layer too wide": (
        {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "weight_ih_l1": (20, 3), "weight_hh_l1": (20, 5)},
        r"weight_ih_l1 has shape \(20, 3\), expected \(20, 5\)",
    ),
    "a vector for a matrix": ({"weight_ih_l0": (20,), "weight_hh_l0": (20, 5)}, "expected a matrix"),
    "no input": ({"weight_ih_l0": (20, 0), "weight_hh_l0": (20, 5)}, "expected a matrix"),
    "peepholes of a GRU": (
        {"weight_ih_l0": (15, 3), "weight_hh_l0": (15, 5), "weight_ch_l0": (15,)},
        "weight_ch_l0 is not a parameter of this network",
    ),
    "a layer and a direction without recurrent weights": (
        {"weight_ih_l0": (20, 3), "weight_ih_l0_reverse": (20, 3), "weight_ih_l1": (20, 5)},
        "weight_hh_l0 is missing",
    ),
    "a gate missing": (
        {name: shape for name, shape in dense_shapes("if").items() if name != "ho.kernel"},
        "ho.kernel is missing",
    ),
    "a gate of another shape": (
        dense_shapes("if") | {"ig.kernel": (I, H + 1)},
        r"ig.kernel has shape \(3, 6\), expected \(3, 5\)",
    ),
    "a bias of another shape": (dense_shapes("if") | {"hg.bias": (H + 1,)}, r"hg.bias has shape \(6,\)"),
    "cells that are not numbered from 0": (
        {f"{number}.{name[2:]}": shape for number in (1, 2) for name, shape in NUMBERED.items()},
        "there are 2 cells, but one has the number 2",
    ),
    "a projection that is a vector": (
        {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 4), "weight_hr_l0": (5,)},
        r"weight_hr_l0 has shape \(5,\), expected \(4, 5\)",
    ),
    "nothing": ({"a": (3,)}, "contains no known LSTM; it contains a"),
}


@pytest.mark.parametrize("options", [{"peepholes": True}, {"layer_norm": True, "peepholes": True}])
def test_a_variant_is_given_to_its_parameters(options):
    network = xplstm.LSTM(3, 4, 2, variant=xplstm.Variant(**options), rng=0)
    with pytest.raises(ArgumentError, match=r"variant is not stored in the mapping, .*; pass variant="):
        io.load(network.params)
    again = io.load(network.params, variant=xplstm.Variant(**options))
    assert repr(again) == repr(network)
    assert all(np.array_equal(again.params[name], a) for name, a in network.params.items())
    with pytest.raises(FormatError, match="weight_ch_l0"):
        io.load(network.params, variant=None)
    with pytest.raises(FormatError, match=r"weight_ch_l0 has shape \(3,\), expected \(12,\)"):
        io.load({**network.params, "weight_ch_l0": np.zeros(3, "f4")}, variant=xplstm.Variant(**options))


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_the_shapes_is_said(case):
    shapes, words = WRONG[case]
    with pytest.raises(FormatError, match=words):
        io.load(draws(shapes))


OF_FORMATS = {
    "joined": (
        dict.fromkeys([f"W{gate}" for gate in "fiCo"], (5, 5)),
        r"Wf has shape \(5, 5\), expected \(H, H \+ I\)",
    ),
    "parted": (
        dict.fromkeys([f"W{gate}{of}" for gate in "fico" for of in "hx"], (5, 0)),
        r"Wfx has shape \(5, 0\), expected \(H, I\)",
    ),
    "mlx": (
        {"Wx": (15, 3), "Wh": (15, 5), "bias": (15,)},
        r"Wh has shape \(15, 5\), that of a GRU, which format 'mlx' does not have",
    ),
}


@pytest.mark.parametrize("name", OF_FORMATS)
def test_shapes_that_a_named_format_does_not_have_are_said(name):
    shapes, words = OF_FORMATS[name]
    with pytest.raises(FormatError, match=words):
        io.load(draws(shapes), format=name)


@pytest.mark.parametrize("form", ["joined", "parted"])
@pytest.mark.parametrize("bias", [False, True])
def test_matrices_of_documents_there_and_back(form, bias):
    """The tests of `io.gates` check the meaning of these matrices."""
    lstm = xplstm.LSTM(I, H, bias=bias, dtype="float64", rng=5)
    found = io.load(io.to_mapping(lstm, form), format=form)
    assert repr(found) == repr(lstm)
    x = np.random.default_rng(1).standard_normal((T, I))
    np.testing.assert_array_equal(found(x)[0], lstm(x)[0])


@pytest.mark.parametrize("form", ["joined", "parted"])
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
def test_matrices_of_documents_are_those_of_one_cell(form, options):
    with pytest.raises(ArgumentError, match="has more than one layer and direction"):
        io.to_mapping(xplstm.LSTM(I, H, rng=5, **options), form)


def test_cells_that_do_not_stack_are_refused():
    cells = {
        name: io.to_mapping(xplstm.LSTM(i, h, rng=1), "flax") for name, i, h in (("a", 3, 5), ("b", 5, 6))
    }
    with pytest.raises(FormatError, match="'b' has hidden_size=6, expected 5 in layer 1"):
        io.load(cells, prefix=["a", "b"])
    with pytest.raises(FormatError, match="'a' has input_size=3, expected 5 in layer 1"):
        io.load(cells, prefix=["a", "a"])
    with pytest.raises(FormatError, match=r"\[1, 2\] directions"):
        io.load(cells, prefix=["a", ("a", "a")])
    with pytest.raises(ArgumentError, match="one or two for each layer"):
        io.load(cells, prefix=[])


def test_dtypes_that_cannot_be_an_lstm_are_refused():
    theirs = dict(xplstm.LSTM(I, H, rng=1).params)
    mixed = theirs | {"bias_hh_l0": theirs["bias_hh_l0"].astype("float64")}
    with pytest.raises(FormatError, match=r"float32, float64.*pass dtype="):
        io.load(mixed)
    assert io.load(mixed, dtype="float32").params["bias_hh_l0"].dtype == "float32"
    for dtype, given in (("int32", "float32"), ("int8", None), ("complex64", "float32")):
        with pytest.raises(FormatError, match=rf"{dtype}, expected one of .*; convert the arrays"):
            io.load({name: a.astype(dtype) for name, a in theirs.items()}, dtype=given)


@pytest.mark.parametrize("layout", [*SINGLE, "chainer", "joined", "parted"])
@pytest.mark.parametrize(
    "network",
    [
        xplstm.LSTM(I, H, proj_size=2),
        xplstm.LSTM(I, H, variant=xplstm.Variant(coupled=True)),
        xplstm.LSTM(I, H, bidirectional=True, merge="sum"),
        xplstm.RNN(I, H),
    ],
    ids=["projection", "variant", "merge", "elman"],
)
def test_what_a_layout_has_no_place_for_is_refused(layout, network):
    with pytest.raises(ArgumentError, match=f"which format '{layout}' does not support"):
        io.to_mapping(network, layout)


def test_arguments_that_are_none(tmp_path):
    lstm = xplstm.LSTM(I, H)
    with pytest.raises(ArgumentError, match=r"must end in one of .*\.safetensors"):
        io.save(tmp_path / "weights.bin", lstm)
    with pytest.raises(ArgumentError, match="network must be one of LSTM, GRU"):
        io.save(tmp_path / "weights.npz", lstm.params)
    with pytest.raises(ArgumentError, match="source must be a path"):
        io.load(lstm)
    with pytest.raises(ArgumentError, match="cannot store variant"):
        io.save(tmp_path / "weights.pt", xplstm.LSTM(I, H, variant=VARIANT))
    with pytest.raises(ArgumentError, match="no biases"):
        io.save(tmp_path / "weights.npz", xplstm.LSTM(I, H, bias=False), format="chainer")
    with pytest.raises(ArgumentError, match="more than one layer"):
        io.save(tmp_path / "weights.npz", xplstm.LSTM(I, H, 2), format="joined")
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "nothing.npz")
    assert [*tmp_path.iterdir()] == []


def test_the_table_lines_up(tmp_path):
    path = tmp_path / "several.safetensors"
    theirs = {"a_long_name": io.to_mapping(xplstm.LSTM(I, H), "mlx"), "b": dict(xplstm.LSTM(2, 7).params)}
    flat = {f"{prefix}.{name}": a for prefix, arrays in theirs.items() for name, a in arrays.items()}
    path.write_bytes(safetensors.pack(flat | {"step": np.asarray(3)}, {"made": "here"}))
    seen = io.inspect(path)
    lines = str(seen).splitlines()
    assert lines[0] == f"{path}: safetensors, 8 tensors"
    assert lines[1] == "metadata: made"
    for first in ("prefix", "tensor"):
        start = next(k for k, line in enumerate(lines) if line.startswith(first))
        rows = lines[start : lines.index("", start)] if "" in lines[start:] else lines[start:]
        for word in lines[start].split():
            column = lines[start].index(word)
            assert all(line[column - 1] == " " and line[column] != " " for line in rows if column)
    assert ("b", "torch", "float32", "LSTM(2, 7)") in seen.networks
    assert ("a_long_name", "mlx", "float32", "LSTM(3, 5)") in seen.networks
    assert seen.tensors["step"] == ((), "int64")


def test_a_header_is_aligned_and_names_what_we_wrote(tmp_path):
    """The package safetensors requires the alignment, and reads the names."""
    content = weightfiles.whole()["whole.safetensors"]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header["encoder.weight_ih_l0"]["shape"] == [20, 3]
    reader = pytest.importorskip("safetensors.numpy")
    for name, a in reader.load(content).items():
        np.testing.assert_array_equal(weightfiles.lstm().params[name.removeprefix("encoder.")], a)


def test_a_file_of_many_megabytes(tmp_path):
    """The file has holes on the disk, so that writing it is cheap."""
    ours = xplstm.LSTM(I, H, rng=1).params
    header = {"a": {"dtype": "U8", "shape": [1 << 28], "data_offsets": [0, 1 << 28]}}
    end = 1 << 28
    for name, a in ours.items():
        header[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": [end, end + a.nbytes]}
        end += a.nbytes
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + (1 << 28))
        file.write(b"".join(a.tobytes() for a in ours.values()))
    found = io.load(path)
    for name, a in ours.items():
        np.testing.assert_array_equal(found.params[name], a)


def test_nested_mappings_of_any_library(xp):
    ours = weightfiles.lstm()
    nested = {"epoch": 3, "state": {"net": xp.arrays(ours.params)}, "note": "x", "none": None}
    found = io.load(nested)
    np.testing.assert_array_equal(found.params["weight_hh_l1"], ours.params["weight_hh_l1"])


def test_byte_swapped_arrays_are_read():
    ours = xplstm.LSTM(I, H, rng=1)
    swapped = {name: a.astype(a.dtype.newbyteorder()) for name, a in ours.params.items()}
    found = io.load(swapped)
    assert found.params["weight_hh_l0"].dtype.isnative
    np.testing.assert_array_equal(found.params["weight_hh_l0"], ours.params["weight_hh_l0"])


def test_strict_arrays_are_converted_by_the_standard_alone():
    xp = open_backend("array_api_strict")
    for layout, (shapes, _) in LAYOUTS.items():
        assert repr(io.load(xp.arrays(draws(shapes)), format=layout, xp=xp.xp)) == "LSTM(3, 5, num_layers=1)"


def test_the_arrays_around_an_lstm(tmp_path, xp):
    head = xplstm.Linear(H, 2, rng=1)
    path = tmp_path / "model.safetensors"
    flat = {f"head.{name}": a for name, a in head.params.items()} | {
        "step": np.asarray(3),
        "headless": np.ones(2),
    }
    path.write_bytes(safetensors.pack(flat, {}))
    found = io.arrays(path, "head", xp=xp.xp, dtype="float64")
    assert found.keys() == head.params.keys()
    for name, a in head.params.items():
        assert type(found[name]) is type(xp.asarray(np.ones(1)))
        np.testing.assert_array_equal(_array.to_numpy(found[name]), a.astype("float64"), strict=True)
    assert io.arrays(path)["step"] == 3
    with pytest.raises(ArgumentError, match=r"prefix='tail' matches no tensor; .* has .*headless \(2,\)"):
        io.arrays(path, "tail")


@pytest.mark.parametrize("name", ["params.msgpack", "params"])
def test_what_flax_wrote_as_msgpack_is_told_the_way(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"\x81\xa6params\x81\xa6kernel\xc7")
    with pytest.raises(FormatError, match=r"none of the formats .*flatten the params and save them as \.npz"):
        io.load(path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_an_rnn_cell_is_an_rnn(nonlinearity, bias, torch):
    cell = torch.nn.RNNCell(I, H, bias=bias, nonlinearity=nonlinearity)
    x, h = torch.randn(3, 2, I), torch.randn(2, H)
    wanted = [h := cell(step, h) for step in x]
    start = wanted[0].detach().numpy()[None]
    with pytest.raises(ArgumentError, match="nonlinearity is not stored in the mapping"):
        io.load(cell.state_dict())
    both = torch.nn.Sequential(cell, torch.nn.Linear(H, 2))
    for ours in (
        io.load(cell),
        io.load(both, prefix="0"),
        io.load(both.state_dict(), prefix="0", nonlinearity=nonlinearity),
    ):
        y, _ = ours(x[1:].numpy(), start)
        np.testing.assert_allclose(y, torch.stack(wanted[1:]).detach().numpy(), rtol=0, atol=1e-6)


def test_a_cell_that_is_no_lstm_is_called_what_it_is():
    elman = {"weight_ih": np.ones((H, I), "f4"), "weight_hh": np.ones((H, H), "f4"), "bias": np.ones(H, "f4")}
    with pytest.raises(FormatError, match="that of an Elman RNN, which format 'equinox' does not have"):
        io.load(elman)


def test_checkpoints_hold_what_training_leaves(tmp_path, torch):
    """Counters, dicts with defaults, tuples as keys and expanded tensors are stored with the weights."""
    model = torch.nn.LSTM(I, H)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    row = torch.arange(4.0)
    held = {
        "model": model.state_dict(),
        "schedule": schedule.state_dict(),
        ("moments", 1): row,
        "rows": row[1:].expand(2, 3),
        "columns": row[:2, None].expand(2, 3),
    }
    path = tmp_path / "checkpoint.pt"
    torch.save(held, path)
    torch.load(path, weights_only=True)
    found = io.arrays(path)
    np.testing.assert_array_equal(found["('moments', 1)"], [0, 1, 2, 3])
    np.testing.assert_array_equal(found["rows"], [[1, 2, 3]] * 2)
    np.testing.assert_array_equal(found["columns"], [[0, 0, 0], [1, 1, 1]])
    loaded = io.load(path)
    np.testing.assert_array_equal(loaded.params["weight_hh_l0"], model.weight_hh_l0.detach().numpy())
    torch.save({"found": defaultdict(list, {"a": [row]}), "none": defaultdict(None, {2: row})}, path)
    assert sorted(io.arrays(path)) == ["found.a.0", "none.2"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_names_that_are_bytes(tmp_path, torch, protocol):
    path, weights = tmp_path / "lstm.pt", torch.nn.LSTM(2, 3).state_dict()
    torch.save({name.encode(): a for name, a in weights.items()}, path, pickle_protocol=protocol)
    loaded = io.load(path)
    for name, a in weights.items():
        np.testing.assert_array_equal(loaded.params[name], a.numpy())
    torch.save({"a": weights["weight_ih_l0"], b"a": weights["weight_hh_l0"]}, path, pickle_protocol=protocol)
    with pytest.raises(FormatError, match="contains a twice"):
        io.load(path)
