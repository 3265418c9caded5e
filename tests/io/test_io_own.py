"""Check that every saved file loads as the same network, or that `save` refuses the network by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xplstm
from xplstm import _array, io
from xplstm._errors import ArgumentError, FormatError
from xplstm.io import _registry
from xplstm.io._written import WORDS
from xplstm.io.files import safetensors

CONTAINERS = (".safetensors", ".npz", ".pt")
# Layouts whose arrays hold what the library adds to the forget gate: coming back, it is rounded twice.
ADDING = ("tensorflow", "elmo", "haiku")
# Layouts that have a place for the second bias.
TWO_BIASES = ("torch", "chainer", "mxnet", "onnx")
CASES = [
    *((suffix, layout) for suffix in CONTAINERS for layout in _registry.LAYOUTS),
    (".weights.h5", "keras"),
    (".onnx", "onnx"),
    (".eqx", "equinox"),
]
EPS = {"float64": 2**-52, "float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}
VARIANTS = (
    {"peepholes": True},
    {"activations": ("hard_sigmoid", "tanh", "relu")},
    {"coupled": True},
    {"layer_norm": True, "cell_clip": 3.0},
)


def network(rng):
    """Return a random network of any class with random options."""
    kind = rng.choice(["LSTM", "LSTM", "LSTM", "GRU", "RNN", "JordanRNN"])
    options = {
        "num_layers": int(rng.integers(1, 4)),
        "bias": bool(rng.integers(4)),
        "bidirectional": bool(rng.integers(2)),
        "batch_first": bool(rng.integers(2)),
        "dtype": str(rng.choice(["float32", "float64", "float16", "bfloat16"])),
    }
    often = rng.random(8) < 0.25
    if often[0] and options["num_layers"] > 1:
        options["dropout"] = 0.25
    if often[1] and not options["bidirectional"]:
        options["reverse"] = True
    if kind == "LSTM":
        if often[2]:
            options["proj_size"] = 2
        if often[3]:
            options["variant"] = xplstm.Variant(**VARIANTS[rng.integers(len(VARIANTS))])
        if often[4] and options["bidirectional"]:
            options["merge"] = "sum"
        if often[5]:
            options["input_dropout"] = 0.125
    elif kind == "GRU":
        options["reset_after"] = bool(rng.integers(2))
    else:
        options["nonlinearity"] = str(rng.choice(["tanh", "relu"]))
    sizes = (3, 5, 2) if kind == "JordanRNN" else (3, 5)
    made = getattr(xplstm, kind)(*sizes, rng=rng, **options)
    if rng.integers(2):
        made.load_state_dict({n: np.zeros_like(a) if "bias_hh" in n else a for n, a in made.params.items()})
    return made


def same(found, ours, layout):
    """Compare parameters bit by bit; compare only the sum of biases that a layout adds."""
    for name, a in ours.params.items():
        b = found.params[name]
        assert a.dtype == b.dtype
        if "bias" not in name or layout in TWO_BIASES:
            np.testing.assert_array_equal(b, a, err_msg=name)
    for name, a in ours.params.items():
        if "bias_ih" in name and layout not in TWO_BIASES:
            other = name.replace("bias_ih", "bias_hh")
            wanted, given = (n.params[name] + n.params[other] for n in (ours, found))
            rounding = 4 * EPS[_array.dtype_name(a.dtype)] if layout in ADDING else 0
            np.testing.assert_allclose(
                given.astype("float64"), wanted.astype("float64"), rtol=0, atol=rounding, err_msg=name
            )


def refused(path, ours, layout, prefix):
    """Save a network, and return the error if there is one."""
    try:
        io.save(path, ours, format=layout, prefix=prefix)
    except ArgumentError as error:
        return str(error)
    return None


@pytest.mark.parametrize("wanted", [10, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("suffix", "layout"), CASES)
def test_what_is_saved_comes_back_without_a_word(suffix, layout, wanted, tmp_path):
    pytest.importorskip({".onnx": "onnx", ".weights.h5": "h5py"}.get(suffix, "numpy"))
    rng = np.random.default_rng([*suffix.encode(), *layout.encode()])
    came = 0
    for _ in range(60):
        if came == wanted:
            break
        ours = network(rng)
        prefix = "" if suffix == ".eqx" else str(rng.choice(["", "enc.x"]))
        path = tmp_path / f"ours{suffix}"
        refusal = refused(path, ours, layout, prefix)
        if refusal is not None:
            assert "not support" in refusal or "use .safetensors" in refusal
            continue
        words = {}
        if suffix == ".eqx":
            # Arrays without names: the guide says which words are needed.
            stack, biases = ours._stack, {"LSTM": 1, "GRU": 2}[ours._stack.cell.name] * ours._stack.bias
            starts = [str(k * (2 + biases)) for k in range(stack.num_layers * len(stack.reverse))]
            pairs = list(zip(starts[::2], starts[1::2], strict=True)) if len(stack.reverse) == 2 else starts
            words = {"format": "equinox", "prefix": pairs, "batch_first": stack.batch_first}
        if suffix in (".eqx", ".onnx"):
            # Rates of dropout are of training, for which these formats have no place.
            rates = ("dropout", "input_dropout", "weight_dropout")
            words |= {name: rate for name in rates if (rate := getattr(ours._stack, name))}
        found = io.load(path, **words)
        assert repr(found) == repr(ours)
        same(found, ours, layout)
        if suffix != ".eqx":
            _, told, dtype, shown = io.inspect(path).networks[0]
            assert (told.removesuffix("_optimized"), dtype) == (
                layout.removesuffix("_optimized"),
                _array.dtype_name(ours.params["weight_ih_l0"].dtype),
            )
            assert ours._stack.num_layers == 1 or f"num_layers={ours._stack.num_layers}" in shown
        came += 1
    assert came


@pytest.mark.slow
@pytest.mark.parametrize("layout", _registry.LAYOUTS)
def test_a_mapping_comes_back_or_an_option_is_asked_for(layout):
    """Only the order of axes is assumed, no option that changes the outputs."""
    rng = np.random.default_rng([*layout.encode()])
    came = 0
    for _ in range(300):
        ours = network(rng)
        stack, options = ours._stack, {"batch_first": ours._stack.batch_first}
        try:
            arrays = io.to_mapping(ours, layout)
        except ArgumentError:
            continue
        asked = {"variant": None, "bidirectional": len(stack.reverse) == 2, **stack.cell.options()}
        sides = ("", "_reverse")[: len(stack.reverse)]
        if "l0.R" not in arrays and any(name.startswith("l0.") for name in arrays):
            options["prefix"] = [[f"l{k}{side}" for side in sides] for k in range(stack.num_layers)]
        while True:
            try:
                found = io.load(arrays, format=layout, **options)
                break
            except ArgumentError as error:
                name = str(error).partition(" ")[0].rstrip("=")
                if name not in asked.keys() - options.keys():
                    raise
                options[name] = asked[name]
        assert found._stack.cell.options() == stack.cell.options()
        assert found._stack.reverse == stack.reverse
        same(found, ours, layout)
        came += 1
    assert came


@pytest.mark.parametrize("layout", ["flax", "keras", "haste"])
def test_a_caller_may_still_say_more(layout, tmp_path):
    ours = xplstm.LSTM(3, 5, 2, batch_first=True, rng=0)
    path = tmp_path / "ours.safetensors"
    io.save(path, ours, format=layout)
    assert not io.load(path, batch_first=False)._stack.batch_first
    assert io.load(path, format=layout, dropout=0.5)._stack.dropout == 0.5
    assert io.load(path, format=layout, prefix="l1", variant=None).input_size == 5
    with pytest.raises(ArgumentError, match="merge='concat', which merge='sum' contradicts"):
        io.load(path, merge="sum")


WHOLE = {"format": "flax", "prefix": "", "layers": 0, "bidirectional": False, "options": {}}
WRONG = {
    "no JSON": ("{", "is not valid JSON"),
    "a part missing": ({"format": "flax"}, "must have exactly format"),
    "another part": (WHOLE | {"more": 1}, "must have exactly format"),
    "no text": (WHOLE | {"format": ["flax"]}, "must have exactly format"),
    "no format": (WHOLE | {"format": "\x1b[31mflix"}, "has format"),
    "layers without end": (WHOLE | {"layers": 10**9}, "at most one layer per tensor"),
    "another prefix": (WHOLE | {"prefix": "elsewhere"}, "does not fit its tensors"),
    "another format": (WHOLE | {"format": "haste"}, "no known LSTM of format 'haste'"),
    "an option of no LSTM": (
        WHOLE | {"options": {"reset_after": True}},
        "has options that LSTM does not have",
    ),
    "an option of another type": (WHOLE | {"options": {"batch_first": 1}}, "batch_first"),
    "two directions of one": (
        WHOLE | {"bidirectional": True},
        "has bidirectional=True, but the tensors have False",
    ),
    "a merge of one direction": (
        WHOLE | {"options": {"merge": "sum"}},
        "merge='sum' needs bidirectional=True",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_words_that_do_not_fit_are_refused(case, tmp_path):
    given, words = WRONG[case]
    path = tmp_path / "theirs.safetensors"
    text = given if isinstance(given, str) else json.dumps(given)
    path.write_bytes(safetensors.pack(io.to_mapping(xplstm.LSTM(3, 5), "flax"), {WORDS: text}))
    with pytest.raises(FormatError, match=words) as raised:
        io.load(path)
    assert str(raised.value).isprintable() or case == "another prefix"
    assert "theirs.safetensors" in str(io.inspect(path))


@pytest.mark.parametrize("prefix", ["", "enc.x"])
def test_a_layer_that_the_words_do_not_count_is_not_left_out(prefix, tmp_path):
    path = tmp_path / "ours.safetensors"
    io.save(path, xplstm.LSTM(3, 3, 3, rng=0), format="flax", prefix=prefix)
    stored = safetensors.read(str(path))
    words = json.loads(stored.metadata[WORDS]) | {"layers": 2}
    arrays = {name: tensor.array() for name, tensor in stored.tensors.items()}
    path.write_bytes(safetensors.pack(arrays, {WORDS: json.dumps(words)}))
    with pytest.raises(FormatError, match=r"has layers=2, but the file also has tensors of '.*l2\.'"):
        io.load(path)


def test_words_that_contradict_the_tensors_are_refused(tmp_path):
    path = tmp_path / "theirs.safetensors"
    theirs = io.to_mapping(xplstm.GRU(3, 5, reset_after=False), "keras")
    text = json.dumps(WHOLE | {"format": "keras", "options": {"reset_after": True}})
    path.write_bytes(safetensors.pack(theirs, {WORDS: text}))
    with pytest.raises(FormatError, match="has reset_after=True, but the tensors have False"):
        io.load(path)
    with pytest.raises(ArgumentError, match="has reset_after=True, which reset_after=False contradicts"):
        io.load(io.to_mapping(xplstm.GRU(3, 5), "keras"), format="keras", reset_after=False)
