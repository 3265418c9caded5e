"""Check files of Keras, read without Keras; files of this package, read by Keras; and untrusted files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io

h5py = pytest.importorskip("h5py")

T, B, I, H = 5, 4, 3, 2


@pytest.fixture(scope="module")
def keras(torch: Any) -> Any:
    del torch  # it runs Keras
    return pytest.importorskip("keras")


def sequential(keras: Any, *layers: Any) -> Any:
    """Return a model with random weights."""
    model = keras.Sequential([keras.Input((None, I)), *layers])
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape).astype("float32") * 0.7 for w in model.get_weights()])
    return model


def agrees(model: Any, lstm: Any) -> None:
    x = np.random.default_rng(2).normal(size=(B, T, I)).astype("float32")
    found, _ = lstm(x)
    wanted = model(x)
    wanted = [a.detach().numpy() for a in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    np.testing.assert_allclose(found, wanted if len(wanted) == 2 else wanted[0], rtol=0, atol=2e-6)


def loaded(model: Any, tmp_path: Any, **options: Any) -> Any:
    model.save(tmp_path / "model.keras")
    return xplstm.io.load(tmp_path / "model.keras", **options)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_bias": False},
    {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    {"activation": "leaky_relu"},
    {"activation": "elu", "recurrent_activation": "softsign"},
    {"activation": None},
    {"activation": "softplus", "dropout": 0.1, "recurrent_dropout": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_models(keras: Any, options: dict[str, Any], count: int, tmp_path: Any) -> None:
    layers = [keras.layers.LSTM(H, return_sequences=True, **options) for _ in range(count)]
    model = sequential(keras, *(one for layer in layers for one in (layer, keras.layers.Dropout(0.5))))
    lstm = loaded(model, tmp_path)
    assert (lstm._stack.num_layers, lstm._stack.bias) == (count, options.get("use_bias", True))
    assert lstm._stack.input_dropout == options.get("dropout", 0)
    agrees(model, lstm)


@pytest.mark.parametrize("merge", ["concat", "sum", "ave", "mul", None])
@pytest.mark.parametrize("count", [1, 2])
def test_two_directions(keras: Any, merge: str | None, count: int, tmp_path: Any) -> None:
    if merge is None and count == 2:
        pytest.skip("two outputs are no layer's input")
    make = keras.layers
    layers = [make.Bidirectional(make.LSTM(H, return_sequences=True), merge_mode=merge) for _ in range(count)]
    model = sequential(keras, *layers)
    lstm = loaded(model, tmp_path)
    assert (lstm._stack.num_layers, len(lstm._stack.reverse)) == (count, 2)
    agrees(model, lstm)


def test_cells_functional_and_nested_models(keras: Any, tmp_path: Any) -> None:
    make = keras.layers
    agrees(*twice(sequential(keras, make.RNN(make.LSTMCell(H), return_sequences=True)), tmp_path))
    x = keras.Input((None, I))
    lower = make.LSTM(H, return_sequences=True, name="lower")(x)
    model = keras.Model(x, make.LSTM(H, return_sequences=True, name="upper")(lower))
    agrees(*twice(model, tmp_path))
    inner = keras.Sequential([keras.Input((None, I)), make.LSTM(H, return_sequences=True)])
    agrees(*twice(sequential(keras, inner), tmp_path))


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_cells_in_two_directions(keras: Any, cell: str, tmp_path: Any) -> None:
    make = keras.layers
    rnn = make.RNN(getattr(make, f"{cell}Cell")(H), return_sequences=True)
    net = loaded(model := sequential(keras, make.Bidirectional(rnn)), tmp_path)
    assert net.bidirectional
    agrees(model, net)


def test_backwards_alone_gives_the_outputs_in_order_of_time(keras: Any, tmp_path: Any) -> None:
    make = keras.layers
    model = sequential(keras, make.LSTM(H, return_sequences=True, go_backwards=True))
    with pytest.raises(xplstm.ArgumentError, match="in reverse order of time; pass reverse=True"):
        loaded(model, tmp_path)
    net = loaded(model, tmp_path, reverse=True)
    x = np.random.default_rng(2).normal(size=(B, T, I)).astype("float32")
    np.testing.assert_allclose(net(x)[0][:, ::-1], model(x).detach().numpy(), rtol=0, atol=2e-6)
    # Another such layer would read these outputs from the first step to the last.
    layers = [make.LSTM(I, return_sequences=True, go_backwards=True) for _ in range(2)]
    with pytest.raises(xplstm.ArgumentError, match="has 2 networks"):
        loaded(sequential(keras, *layers), tmp_path, reverse=True)


def twice(model: Any, tmp_path: Any) -> tuple[Any, Any]:
    return model, loaded(model, tmp_path)


@pytest.mark.parametrize("given", ["initial_state", "mask"])
@pytest.mark.parametrize("of_torch", [False, True])
def test_numbers_in_a_call_are_refused(
    keras: Any, torch: Any, given: str, of_torch: bool, tmp_path: Any
) -> None:
    make, x = keras.layers, keras.Input((T, I))
    h_0, mask = (
        torch.asarray(a) if of_torch else a for a in (np.ones((B, H), dtype="float32"), np.eye(B, T) > 0)
    )

    def called(layer: Any, inputs: Any, states: int = 2) -> Any:
        return layer(inputs, **{given: [h_0] * states if given == "initial_state" else mask})

    two_ways = called(make.Bidirectional(make.LSTM(H)), x, 4)
    for y in (called(make.LSTM(H), x), called(make.RNN(make.LSTMCell(H)), x), two_ways):
        with pytest.raises(xplstm.FormatError, match="passes constant numbers to the layer"):
            loaded(keras.Model(x, y), tmp_path)
    lower = make.LSTM(H, return_sequences=True)
    with pytest.raises(xplstm.ArgumentError, match=r"2 networks(.|\n)*passes constant numbers"):
        loaded(keras.Model(x, called(make.LSTM(H), lower(x))), tmp_path)
    net = xplstm.io.load(tmp_path / "model.keras", prefix="layers.lstm")
    assert np.array_equal(net.params["weight_ih_l0"], lower.get_weights()[0].T)


def test_an_output_for_two_is_the_end_of_a_stack(keras: Any, tmp_path: Any) -> None:
    make = keras.layers
    x = keras.Input((None, I))
    lower = make.LSTM(H, return_sequences=True)(x)
    model = keras.Model(x, [make.LSTM(H)(lower), make.LSTM(H)(lower)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(xplstm.ArgumentError, match="has 3 networks"):
        xplstm.io.load(tmp_path / "model.keras")
    lstm = xplstm.io.load(tmp_path / "model.keras", prefix="layers/lstm_1")
    assert np.array_equal(lstm.params["weight_ih_l0"], model.layers[2].get_weights()[0].T)


def test_layers_that_differ_stand_apart(keras: Any, tmp_path: Any) -> None:
    make = keras.layers
    model = sequential(keras, make.LSTM(H, return_sequences=True), make.LSTM(H + 2))
    with pytest.raises(
        xplstm.ArgumentError, match=r"layers.lstm'.*LSTM\(3, 2.*\n.*layers.lstm_1'.*LSTM\(2, 4"
    ):
        loaded(model, tmp_path)
    upper = xplstm.io.load(tmp_path / "model.keras", prefix="layers.lstm_1")
    lower = xplstm.io.load(tmp_path / "model.keras", prefix="layers.lstm")
    x = np.random.default_rng(0).normal(size=(B, T, I)).astype("float32")
    _, (h_n, _) = upper(lower(x)[0])
    np.testing.assert_allclose(h_n[0], model(x).detach().numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation 'gelu' must be one of .*tanh"),
        ({"recurrent_activation": "exponential"}, "activation 'exponential' must be one of"),
    ],
)
def test_what_no_lstm_here_can_do_is_refused(keras: Any, options: Any, message: str, tmp_path: Any) -> None:
    with pytest.raises(xplstm.FormatError, match=message):
        loaded(sequential(keras, keras.layers.LSTM(H, **options)), tmp_path)


def test_a_lambda_is_never_run(keras: Any, tmp_path: Any) -> None:
    model = sequential(keras, keras.layers.LSTM(H))
    model.layers[0].cell.activation = lambda x: x
    with pytest.warns(UserWarning, match="lambda"):
        model.save(tmp_path / "model.keras")
    with pytest.raises(xplstm.FormatError, match="activation a value of type dict"):
        xplstm.io.load(tmp_path / "model.keras")


def test_weights_alone_tell_no_options(keras: Any, tmp_path: Any) -> None:
    path = tmp_path / "model.weights.h5"
    model = sequential(keras, keras.layers.LSTM(H, return_sequences=True))
    model.save_weights(path)
    with pytest.raises(xplstm.ArgumentError, match=r"variant is not stored in .*; pass variant="):
        xplstm.io.load(path)
    agrees(model, xplstm.io.load(path, variant=None))
    both = sequential(
        keras, keras.layers.Bidirectional(keras.layers.LSTM(H, return_sequences=True), merge_mode="sum")
    )
    both.save_weights(path)
    with pytest.raises(xplstm.ArgumentError, match="pass merge="):
        xplstm.io.load(path, variant=None)
    agrees(both, xplstm.io.load(path, variant=xplstm.Variant(), merge="sum"))


def test_stacks_of_weights_are_asked_for(keras: Any, tmp_path: Any) -> None:
    path = tmp_path / "model.weights.h5"
    layers = [keras.layers.LSTM(H, return_sequences=True) for _ in range(3)]
    model = sequential(keras, *layers)
    model.save_weights(path)
    with pytest.raises(xplstm.ArgumentError, match="has 4 networks"):
        xplstm.io.load(path, variant=None)
    agrees(model, xplstm.io.load(path, prefix="layers.lstm*", variant=None))
    names = ["layers.lstm", "layers.lstm_1", "layers.lstm_2"]
    agrees(model, xplstm.io.load(path, prefix=names, variant=None))


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True}, {"bias": False}]
)
def test_keras_reads_what_is_written_here(keras: Any, options: Any, tmp_path: Any) -> None:
    lstm = xplstm.LSTM(I, H, batch_first=True, rng=3, **options)
    path = tmp_path / "ours.weights.h5"
    xplstm.io.save(path, lstm)
    make = keras.layers
    layers = [
        make.LSTM(H, return_sequences=True, use_bias=options.get("bias", True))
        for _ in range(options.get("num_layers", 1))
    ]
    if "bidirectional" in options:
        layers = [make.Bidirectional(layer) for layer in layers]
    model = sequential(keras, *layers)
    model.load_weights(path)
    agrees(model, lstm)
    kind = "bidirectional" if "bidirectional" in options else "lstm"
    star = "*" if "num_layers" in options else ""
    told = {"merge": "concat"} if "bidirectional" in options else {}
    again = xplstm.io.load(path, prefix=f"layers.{kind}{star}", variant=None, **told)
    x = np.ones((B, T, I), "float32")
    np.testing.assert_allclose(again(x)[0], lstm(x)[0], rtol=0, atol=1e-6)


def test_variables_by_their_names() -> None:
    lstm = xplstm.LSTM(I, H, rng=0)
    theirs = xplstm.io.to_mapping(lstm, "keras")
    assert {name: a.shape for name, a in theirs.items()} == {
        "kernel": (I, 4 * H),
        "recurrent_kernel": (H, 4 * H),
        "bias": (4 * H,),
    }
    with pytest.raises(xplstm.ArgumentError, match="fit several gate orders"):
        xplstm.io.load(theirs)
    again = xplstm.io.load(theirs, format="keras")
    x = np.ones((T, B, I), "float32")
    np.testing.assert_allclose(again(x)[0], lstm(x)[0], rtol=0, atol=1e-6)
    with pytest.raises(xplstm.ArgumentError, match="peepholes"):
        xplstm.io.to_mapping(xplstm.LSTM(I, H, variant=xplstm.Variant(peepholes=True)), "keras")


CELL = "layers/lstm/cell/vars"
SHAPES = {"0": (I, 4 * H), "1": (H, 4 * H), "2": (4 * H,)}


def nothing(file: Any) -> None:
    """Leave a file unchanged."""


def weights(change: Any = nothing) -> bytes:
    """Return the weight file of one LSTM after a change."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, shape in SHAPES.items():
            file[f"{CELL}/{name}"] = np.zeros(shape, "float32")
        change(file)
    return content.getvalue()


def layer(**config: Any) -> dict[str, Any]:
    told = {
        "name": "lstm",
        "units": H,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "use_bias": True,
    }
    told |= {"go_backwards": False}
    return {"module": "keras.layers", "class_name": "LSTM", "registered_name": None, "config": told | config}


def archive(h5: bytes | None = None, config: Any = None, **more: bytes) -> bytes:
    """Return a model of one LSTM."""
    config = {"class_name": "Sequential", "config": {"layers": [layer()]}} if config is None else config
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        file.writestr("model.weights.h5", weights() if h5 is None else h5)
        for name, data in more.items():
            file.writestr(name, data)
    return content.getvalue()


def model_of(*layers: Any) -> Any:
    return {"class_name": "Sequential", "config": {"layers": list(layers)}}


def test_what_is_built_here_can_be_loaded(tmp_path: Any) -> None:
    (tmp_path / "model.keras").write_bytes(archive())
    assert repr(xplstm.io.load(tmp_path / "model.keras")) == "LSTM(3, 2, num_layers=1, batch_first=True)"
    for option, given in {"reverse": True, "variant": xplstm.Variant(cell_clip=3.0)}.items():
        with pytest.raises(xplstm.ArgumentError, match="contradicts"):
            xplstm.io.load(tmp_path / "model.keras", **{option: given})


def dataset(name: str, **options: Any) -> Any:
    def change(file: Any) -> None:
        del file[f"{CELL}/{name}"]
        file.create_dataset(f"{CELL}/{name}", **options)

    return change


def link(to: Any, name: str = "0") -> Any:
    def change(file: Any) -> None:
        del file[f"{CELL}/{name}"]
        file[f"{CELL}/{name}"] = to(file) if callable(to) else to

    return change


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=SHAPES["0"], dtype="float32")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=SHAPES["0"])
    del file[f"{CELL}/0"]
    file.create_virtual_dataset(f"{CELL}/0", layout)


def long_name(file: Any) -> None:
    file[CELL].attrs["name"] = np.bytes_(b"x" * 60000)


def deep(file: Any) -> None:
    file.create_group("/".join("abcdefghij" * 5))


HOSTILE_WEIGHTS = {
    "external link": (link(h5py.ExternalLink("/etc/passwd", "/x")), "cell/vars/0 is a ExternalLink"),
    "soft link": (link(h5py.SoftLink("/layers")), "cell/vars/0 is a SoftLink"),
    "circle": (link(lambda file: file["layers"]), "occurs twice"),
    "external data": (
        dataset("0", shape=SHAPES["0"], dtype="float32", external=[("/etc/passwd", 0, 96)]),
        "cell/vars/0 is in another file",
    ),
    "virtual": (virtual, "cell/vars/0 is in another file"),
    "shape bomb": (
        dataset("0", shape=(1 << 20, 1 << 20), dtype="float32"),
        "but only",
    ),
    "packed bomb": (
        dataset(
            "0", shape=(1 << 13, 1 << 13), dtype="float32", chunks=(1 << 10, 1 << 10), compression="gzip"
        ),
        "but only",
    ),
    "long attribute": (long_name, "an attribute 'name' that is not a short text"),
    "deep": (deep, "is nested too deep"),
    "objects": (dataset("0", shape=(3,), dtype=h5py.string_dtype()), "cell.vars.0"),
    "wrong shape": (
        dataset("1", data=np.zeros((H, 4 * H + 1), "float32")),
        r"cell.vars.0 has shape \(3, 8\)|cell.vars.1",
    ),
    "wrong dtype": (dataset("2", data=np.zeros(4 * H, "int32")), "dtypes float32, int32"),
    "missing": (lambda file: file.__delitem__(f"{CELL}/1"), "has no weights|contains no known LSTM"),
}


@pytest.mark.parametrize("kind", HOSTILE_WEIGHTS)
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_hostile_weights(kind: str, ending: str, tmp_path: Any) -> None:
    change, message = HOSTILE_WEIGHTS[kind]
    path = tmp_path / f"model{ending}"
    path.write_bytes(archive(weights(change)) if ending == ".keras" else weights(change))
    options = {} if ending == ".keras" else {"variant": None}
    with pytest.raises(xplstm.FormatError, match=message) as error:
        xplstm.io.load(path, **options)
    assert str(error.value).startswith(str(path))


HOSTILE_ARCHIVES = {
    "truncated": (archive()[:-40], "is a damaged zip file"),
    "no zip": (b"PK\x03\x04 and no more", "is a damaged zip file"),
    "traversal": (archive(**{"../../evil": b"x"}), "a path outside the archive"),
    "zip bomb": (archive(bomb=b"\0" * (1 << 24)), "would unpack to 1"),
    "no weights": (archive(b""), "is a damaged HDF5 file"),
    "cut weights": (archive(weights()[:700]), "is a damaged HDF5 file"),
    "no JSON": (archive(config=b"{"), "config.json is not valid JSON"),
    "deep JSON": (archive(config=b"[" * 100_000 + os.urandom(40_000)), "config.json is not valid JSON"),
    "a list": (archive(config=b"[]"), "config.json is not a JSON object"),
    "no layers": (
        archive(config={"class_name": "Sequential", "config": {}}),
        "not a valid Keras configuration",
    ),
    "layers that are none": (archive(config=model_of(3)), "not a valid Keras configuration"),
    "no units": (archive(config=model_of(layer(units=None))), "units=None must be"),
    "other units": (
        archive(config=model_of(layer(units=7))),
        "weights of lstm do not fit units=7 and use_bias=True",
    ),
    "no bias": (archive(config=model_of(layer(use_bias=False))), "do not fit .*use_bias=False"),
    "an unknown option": (archive(config=model_of(layer(peepholes=True))), "peepholes=True is unknown"),
    "more layers": (archive(config=model_of(layer(), layer(name="b"))), "layers.lstm_1 has no weights"),
    "an unknown merge": (
        archive(
            config=model_of(
                {
                    "module": "keras.layers",
                    "class_name": "Bidirectional",
                    "config": {"name": "b", "layer": layer(), "merge_mode": "max"},
                }
            )
        ),
        "merge_mode='max' is unknown",
    ),
}


def test_a_layer_is_found_by_its_class_whatever_its_name_is(tmp_path: Any) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(archive(config=model_of(layer(name="mine"))))
    assert (xplstm.io.load(path).input_size, xplstm.io.load(path).hidden_size) == (I, H)


@pytest.mark.parametrize("kind", HOSTILE_ARCHIVES)
def test_hostile_archives(kind: str, tmp_path: Any) -> None:
    data, message = HOSTILE_ARCHIVES[kind]
    (tmp_path / "model.keras").write_bytes(data)
    with pytest.raises(xplstm.FormatError, match=message) as error:
        xplstm.io.load(tmp_path / "model.keras")
    assert str(error.value).startswith(str(tmp_path / "model.keras"))


def test_weights_of_another_layer_are_refused(tmp_path: Any) -> None:
    def rename(file: Any) -> None:
        file.create_group("layers/lstm/vars").attrs["name"] = "another"

    (tmp_path / "model.keras").write_bytes(archive(weights(rename)))
    with pytest.raises(
        xplstm.FormatError, match="weights at layers/lstm are those of 'another', expected those of 'lstm'"
    ):
        xplstm.io.load(tmp_path / "model.keras")


def test_a_class_of_the_same_name_is_no_lstm(tmp_path: Any) -> None:
    own = layer() | {"module": "evil", "registered_name": "LSTM"}
    (tmp_path / "model.keras").write_bytes(archive(config=model_of(own)))
    with pytest.raises(xplstm.FormatError, match="contains no known LSTM"):
        xplstm.io.load(tmp_path / "model.keras")


def test_bfloat16_has_no_place(tmp_path: Any) -> None:
    pytest.importorskip("ml_dtypes")
    with pytest.raises(xplstm.ArgumentError, match="has dtype bfloat16"):
        xplstm.io.save(tmp_path / "ours.weights.h5", xplstm.LSTM(I, H, dtype="bfloat16"))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_are_refused_or_loaded(ending: str, seed: int, tmp_path: Any) -> None:
    """The archive's checksums are correct, but the weight file inside is damaged."""
    rng = np.random.default_rng(seed)
    path = tmp_path / f"model{ending}"
    for _ in range(25):
        spoiled = bytearray(weights())
        for place in rng.integers(len(spoiled), size=rng.integers(1, 6)):
            spoiled[place] = rng.integers(256)
        path.write_bytes(archive(bytes(spoiled)) if ending == ".keras" else spoiled)
        with contextlib.suppress(xplstm.FormatError, xplstm.ArgumentError):
            xplstm.io.inspect(path)
            assert isinstance(xplstm.io.load(path, variant=None), xplstm.LSTM)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_a_file_cut_anywhere_is_refused(ending: str, tmp_path: Any) -> None:
    whole = archive() if ending == ".keras" else weights()
    path = tmp_path / f"model{ending}"
    for length in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(xplstm.FormatError):
            xplstm.io.load(path, variant=None)


def test_a_state_from_elsewhere_ends_a_stack(keras: Any, tmp_path: Any) -> None:
    make = keras.layers
    x = keras.Input((None, I))
    y, h, c = make.LSTM(H, return_sequences=True, return_state=True)(x)
    decoded = make.LSTM(H, return_sequences=True)(y, initial_state=[h, c])
    model = keras.Model(x, make.LSTM(H, return_sequences=True)(decoded))
    with pytest.raises(xplstm.ArgumentError, match="has 3 networks"):
        loaded(model, tmp_path)
    path = tmp_path / "model.keras"
    encoder, decoder, top = (
        xplstm.io.load(path, prefix=f"layers.lstm{end}", dtype="float64") for end in ("", "_1", "_2")
    )
    a = np.random.default_rng(0).normal(size=(B, T, I))
    found, _ = top(decoder(*encoder(a))[0])
    np.testing.assert_allclose(found, model(a.astype("float32")).detach().numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["residual", "both outputs", "through dropout", "named outputs"])
def test_an_output_that_is_used_again_is_no_inner_layer(keras: Any, kind: str, tmp_path: Any) -> None:
    make = keras.layers
    x = keras.Input((None, I))
    a = make.LSTM(H, return_sequences=True)(x)
    inner = make.Dropout(0.5)(a) if kind == "through dropout" else a
    b = make.LSTM(H, return_sequences=True)(inner)
    outputs: dict[str, Any] = {
        "residual": lambda: make.Add()([a, b]),
        "both outputs": lambda: [a, b],
        "through dropout": lambda: [inner, b],
        "named outputs": lambda: {"lower": a, "upper": b},
    }
    with pytest.raises(xplstm.ArgumentError, match="has 2 networks"):
        loaded(keras.Model(x, outputs[kind]()), tmp_path)


def test_weights_by_name_tell_no_options(tmp_path: Any) -> None:
    """The file has the form in which Keras 2 wrote weights alone."""
    with h5py.File(tmp_path / "old.h5", "w") as file:
        for name, shape in zip(("kernel", "recurrent_kernel", "bias"), SHAPES.values(), strict=True):
            file[f"lstm/lstm/lstm_cell/{name}"] = np.zeros(shape, "float32")
    with pytest.raises(xplstm.ArgumentError, match="pass variant="):
        xplstm.io.load(tmp_path / "old.h5")
    assert isinstance(xplstm.io.load(tmp_path / "old.h5", variant=None), xplstm.LSTM)


UNREAD: dict[str, tuple[Any, str]] = {
    "SimpleRNN": (lambda make: make.SimpleRNN(H), ": a SimpleRNN, which is not supported"),
    "GRU": (
        lambda make: make.GRU(H, activation="relu"),
        "activations 'sigmoid' and 'relu', expected sigmoid and tanh",
    ),
    "cells": (
        lambda make: make.RNN([make.SimpleRNNCell(H)]),
        ": an RNN of SimpleRNNCell, which is not supported",
    ),
    "a GRU's sum": (
        lambda make: make.Bidirectional(make.GRU(H), merge_mode="sum"),
        "merge_mode='sum', expected concat",
    ),
    "two stacks": (
        lambda make: make.Bidirectional(make.RNN([make.LSTMCell(H), make.LSTMCell(H)])),
        ": a Bidirectional around RNN of StackedRNNCells, which is not supported",
    ),
    "a wrapper": (
        lambda make: make.TimeDistributed(make.LSTM(H)),
        ": a TimeDistributed around LSTM, which is not supported",
    ),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_no_lstm_here_is_named(keras: Any, kind: str, tmp_path: Any) -> None:
    make, (layer, message) = keras.layers, UNREAD[kind]
    shape = (None, 4, I) if kind == "a wrapper" else (None, I)
    model = keras.Sequential([keras.Input(shape), layer(make)])
    with pytest.raises(xplstm.FormatError, match=message):
        loaded(model, tmp_path)


OWN = {
    "cell": lambda make, own: make.RNN(own(H), return_sequences=True),
    "one of the cells": lambda make, own: make.RNN([make.LSTMCell(H), own(H)], return_sequences=True),
    "Bidirectional": lambda make, own: make.Bidirectional(make.RNN(own(H), return_sequences=True)),
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")  # of Keras, that HDF5 is an old format
def test_a_cell_class_of_the_same_name_is_refused(keras: Any, kind: str, suffix: str, tmp_path: Any) -> None:
    @keras.saving.register_keras_serializable(package=f"{kind}{suffix}")
    class LSTMCell(keras.layers.LSTMCell):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any, states: Any, training: bool = False) -> Any:
            y, states = super().call(inputs, states, training=training)
            return 2 * y, states

    model = keras.Sequential([keras.Input((None, I)), OWN[kind](keras.layers, LSTMCell)])
    path = tmp_path / f"model{suffix}"
    model.save(path)
    with pytest.raises(xplstm.XplstmError, match="RNN of LSTMCell, a class of another package"):
        xplstm.io.load(path)


def test_other_recurrent_layers_do_not_hide_an_lstm(keras: Any, tmp_path: Any) -> None:
    make = keras.layers
    lstm = loaded(
        sequential(keras, make.LSTM(H, return_sequences=True), make.SimpleRNN(H), make.Dense(2)), tmp_path
    )
    assert isinstance(lstm, xplstm.LSTM)


def test_a_model_of_its_own_class_is_named(tmp_path: Any) -> None:
    (tmp_path / "model.keras").write_bytes(archive(config={"class_name": "Mine", "config": {}}))
    with pytest.raises(xplstm.FormatError, match="model: of class 'Mine', which is not supported"):
        xplstm.io.load(tmp_path / "model.keras")


def test_bfloat16_is_read(tmp_path: Any) -> None:
    dtype = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(0)
    wanted = [rng.normal(size=shape).astype(dtype) for shape in SHAPES.values()]

    def shorten(file: Any) -> None:
        for name, a in zip(SHAPES, wanted, strict=True):
            del file[f"{CELL}/{name}"]
            file.create_dataset(f"{CELL}/{name}", data=a.view("V2")).attrs["dtype"] = "bfloat16"

    (tmp_path / "model.keras").write_bytes(archive(weights(shorten)))
    lstm = xplstm.io.load(tmp_path / "model.keras")
    assert lstm.params["weight_ih_l0"].dtype == dtype
    found = (lstm.params[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih"))
    assert all(np.array_equal(a, one.T) for a, one in zip(found, wanted, strict=True))
