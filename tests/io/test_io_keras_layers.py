"""Check HDF5 files with layer names, as the source of Keras 2 writes them, and as Keras 3 can write them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import xplstm
import xplstm.io

# First, since the module below skips itself without it.
h5py = pytest.importorskip("h5py")

from tests.io.test_io_keras import H, I, T, agrees, keras, sequential  # noqa: E402
from xplstm.io.layouts.keras_config import DEEPEST  # noqa: E402

__all__ = ["keras"]

KERNELS = ("kernel", "recurrent_kernel", "bias")


def layer(name: str = "lstm_1", kind: str = "LSTM", **config: Any) -> dict[str, Any]:
    """Return the configuration of one layer in Keras 2: no module, and every option."""
    told: dict[str, Any] = {"name": name, "units": H, "go_backwards": False, "implementation": 1}
    if kind != "CuDNNLSTM":
        told |= {"activation": "tanh", "recurrent_activation": "hard_sigmoid", "use_bias": True}
    return {"class_name": kind, "config": told | config}


def model(*layers: Any, kind: str = "Sequential") -> dict[str, Any]:
    """Return a model of Keras 2, in which the layers of a Sequential were a list."""
    return {"class_name": kind, "config": list(layers) if kind == "Sequential" else {"layers": list(layers)}}


def arrays(inputs: int, seed: int, cudnn: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = ((inputs, 4 * H), (H, 4 * H), ((8 if cudnn else 4) * H,))
    return {name: rng.normal(size=s).astype("f4") for name, s in zip(KERNELS, shapes, strict=True)}


def write(path: Any, cells: dict[str, Any], config: Any = None, version: str | None = "2.2.4") -> Any:
    """Write cells by their paths, and the complete model if there is a configuration."""
    with h5py.File(path, "w") as file:
        group = file if config is None else file.create_group("model_weights")
        group.attrs["layer_names"] = [np.bytes_(place.split("/")[0]) for place in cells]
        for target in (file, group):
            if version is not None:
                target.attrs["keras_version"] = np.bytes_(version)
        if config is not None:
            file.attrs["model_config"] = config if isinstance(config, bytes) else json.dumps(config).encode()
            file["optimizer_weights/Adam/lstm_1/kernel/m:0"] = np.zeros(3, "f4")
        for place, weights in cells.items():
            for name, a in weights.items():
                group[f"{place}/{name}:0"] = a
    return path


def run(x: Any, cell: dict[str, Any], gate: Any, reverse: bool = False) -> Any:
    """Run one layer by the equations of Keras, with the batch first."""
    h = c = np.zeros((x.shape[0], H))
    y = []
    for x_t in x.swapaxes(0, 1)[:: -1 if reverse else 1]:
        z = x_t @ cell["kernel"] + h @ cell["recurrent_kernel"] + cell["bias"]
        i, f, g, o = np.split(z, 4, axis=1)
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
        y.append(h)
    return np.stack(y[:: -1 if reverse else 1], axis=1)


def hard(a: Any) -> Any:
    return np.clip(0.2 * a + 0.5, 0, 1)


def sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def batch() -> Any:
    return np.random.default_rng(9).normal(size=(3, T, I)).astype("f4")


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def call(name: str, *below: str) -> Any:
    """Return a layer of a functional model with its calls, in the form of Keras 2."""
    return layer(name, recurrent_activation="sigmoid") | {
        "name": name,
        "inbound_nodes": [[[one, 0, 0, {}] for one in below]],
    }


def test_a_whole_model_has_the_slope_of_its_version(tmp_path: Any) -> None:
    cell = arrays(I, 0)
    path = write(
        tmp_path / "model.h5",
        {"lstm_1/lstm_1": cell},
        model(layer(), {"class_name": "Dense", "config": {"name": "d"}}),
    )
    lstm = xplstm.io.load(path)
    close(lstm(batch())[0], run(batch(), cell, hard))
    write(path, {"lstm_1/lstm_1": cell}, model(layer()), version=None)
    with pytest.raises(
        xplstm.FormatError, match=r"hard_sigmoid' must be one of .* state its version of Keras"
    ):
        xplstm.io.load(path)
    write(path, {"lstm_1/lstm_1": cell}, model(layer()), version="1.2.2")
    with pytest.raises(xplstm.FormatError, match=r"written by Keras '1.2.2', expected version 2 or 3"):
        xplstm.io.load(path)


def test_functional_layers_are_stacked_where_they_are(tmp_path: Any) -> None:
    cells = {"a/a/lstm_cell": arrays(I, 0), "b/b/lstm_cell_1": arrays(H, 1)}
    entry = {"class_name": "InputLayer", "config": {"name": "x"}, "name": "x", "inbound_nodes": []}
    config = model(entry, call("a", "x"), call("b", "a"), kind="Model")
    close(
        xplstm.io.load(write(tmp_path / "m.h5", cells, config))(batch())[0],
        run(run(batch(), cells["a/a/lstm_cell"], sigmoid), cells["b/b/lstm_cell_1"], sigmoid),
    )
    twice = model(entry, call("a", "x"), call("b", "a"), call("c", "a"), kind="Model")
    cells["c/c/lstm_cell_2"] = arrays(H, 2)
    assert len(xplstm.io.inspect(write(tmp_path / "m.h5", cells, twice)).networks) == 3


@pytest.mark.parametrize(
    "options", [{"initial_state": [[[0.5, 0.25]], [[0.0, 1.0]]]}, {"mask": [[True, False]]}]
)
def test_numbers_in_a_call_are_refused(options: Any, tmp_path: Any) -> None:
    cells = {"a/a/lstm_cell": arrays(I, 0), "b/b/lstm_cell_1": arrays(H, 1)}
    entry = {"class_name": "InputLayer", "config": {"name": "x"}, "name": "x", "inbound_nodes": []}
    for given, ending in (
        (options, "passes constant numbers"),
        ({"mask": ["x", 0, 0]}, r"prefix='b', format='keras': LSTM\(2, 2"),
    ):
        upper = call("b", "a") | {"inbound_nodes": [[["a", 0, 0, given | {"training": False}]]]}
        path = write(tmp_path / "m.h5", cells, model(entry, call("a", "x"), upper, kind="Model"))
        with pytest.raises(xplstm.ArgumentError, match=f"2 networks(.|\n)*{ending}"):
            xplstm.io.load(path)
    # A state or a mask that another layer makes is an argument of the call.
    assert xplstm.io.load(path, prefix="b").input_size == H


def test_two_directions(tmp_path: Any) -> None:
    forward, backward = arrays(I, 0), arrays(I, 1)
    start = "bidirectional_1/bidirectional_1"
    cells = {f"{start}/backward_lstm_1": backward, f"{start}/forward_lstm_1": forward}
    config = {"name": "bidirectional_1", "merge_mode": "sum", "layer": layer()}
    path = write(tmp_path / "m.h5", cells, model({"class_name": "Bidirectional", "config": config}))
    wanted = run(batch(), forward, hard) + run(batch(), backward, hard, reverse=True)
    close(xplstm.io.load(path)(batch())[0], wanted)
    alone = write(tmp_path / "w.h5", cells)
    hard_gates = xplstm.Variant(activations=(("hard_sigmoid", 0.2, 0.5), "tanh", "tanh"))
    with pytest.raises(xplstm.ArgumentError, match="pass variant=, merge="):
        xplstm.io.load(alone)
    close(xplstm.io.load(alone, variant=hard_gates, merge="sum")(batch())[0], wanted)


def test_a_backward_layer_of_its_own_is_like_the_forward_one(tmp_path: Any) -> None:
    start = "bidirectional_1/bidirectional_1"
    cells = {f"{start}/backward_lstm_1": arrays(I, 1), f"{start}/forward_lstm_1": arrays(I, 0)}
    differing = ({"activation": "relu"}, {"use_bias": False}, {"units": H + 1})
    for options, alike in (({}, True), *((one, False) for one in differing)):
        backward = layer("back", go_backwards=True, **options)
        config = {
            "name": "bidirectional_1",
            "merge_mode": "sum",
            "layer": layer(),
            "backward_layer": backward,
        }
        path = write(tmp_path / "m.h5", cells, model({"class_name": "Bidirectional", "config": config}))
        if alike:
            wanted = run(batch(), arrays(I, 0), hard) + run(batch(), arrays(I, 1), hard, reverse=True)
            close(xplstm.io.load(path)(batch())[0], wanted)
        else:
            with pytest.raises(xplstm.FormatError, match="backward_layer differs from the forward layer"):
                xplstm.io.load(path)


def test_models_are_found_to_the_greatest_depth(tmp_path: Any) -> None:
    for depth in (0, 1, DEEPEST, DEEPEST + 1):
        config = layer()
        for number in range(depth + 1):
            config = {"class_name": "Sequential", "config": {"name": f"m{number}", "layers": [config]}}
        path = write(tmp_path / "m.h5", {"lstm_1/lstm_1": arrays(I, 0)}, config)
        names = [network[0] for network in xplstm.io.inspect(path).networks]
        assert names == ["lstm_1"] * (depth <= DEEPEST), depth


def test_a_class_that_is_not_read_is_named_before_layers_of_keras(tmp_path: Any) -> None:
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"name": "d"}}
    own = {"module": "mine", "class_name": "Own", "config": {"name": "o"}}
    path = write(tmp_path / "m.h5", {"o/o": {"w": np.ones(2, "f4")}}, model(dense, own))
    with pytest.raises(xplstm.FormatError, match="class 'Own' is not supported"):
        xplstm.io.load(path)


@pytest.mark.parametrize(
    ("name", "shape"), [("kernel", (I, 4 * H - 1)), ("recurrent_kernel", (H, 5 * H)), ("bias", (9 * H,))]
)
def test_a_cell_that_is_none_of_cudnn_is_refused(name: str, shape: tuple[int, ...], tmp_path: Any) -> None:
    cell = arrays(I, 0, cudnn=True) | {name: np.ones(shape, "f4")}
    with pytest.raises(xplstm.FormatError, match="has shape"):
        xplstm.io.load(write(tmp_path / "m.hdf5", {"rnn_1/rnn_1": cell}), prefix="rnn_1")


def test_a_gru_of_cudnn_is_one_with_other_kernels(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    kernel, recurrent, bias = (rng.normal(size=s).astype("f4") for s in ((I, 3 * H), (H, 3 * H), (6 * H,)))
    units = [kernel[:, k * H : (k + 1) * H].ravel().reshape(H, I).T for k in range(3)]
    hidden = [recurrent[:, k * H : (k + 1) * H].T for k in range(3)]
    other = dict(zip(KERNELS, (np.hstack(units), np.hstack(hidden), bias.reshape(2, 3 * H)), strict=True))
    found = []
    for kind, cell in (
        ("CuDNNGRU", dict(zip(KERNELS, (kernel, recurrent, bias), strict=True))),
        ("GRU", other),
    ):
        config = model(layer("rnn_1", kind, recurrent_activation="sigmoid", reset_after=True))
        found.append(xplstm.io.load(write(tmp_path / "m.h5", {"rnn_1/rnn_1": cell}, config)))
    assert found[0].bias
    np.testing.assert_array_equal(found[0](batch())[0], found[1](batch())[0])


def test_dropout_between_two_layers_keeps_them_a_stack(tmp_path: Any) -> None:
    cells = {"a/a": arrays(I, 0), "b/b": arrays(H, 1)}
    for kind, layers in (("Dropout", 2), ("Dense", 1)):
        config = model(layer("a"), {"class_name": kind, "config": {"name": "d"}}, layer("b"))
        found = xplstm.io.inspect(write(tmp_path / "m.h5", cells, config)).networks
        assert len(found) == 3 - layers, kind


def test_a_layer_has_the_weights_under_its_name_alone(tmp_path: Any) -> None:
    cells = {"a/a": arrays(I, 0), "b/a": arrays(H, 1)}
    found = xplstm.io.load(write(tmp_path / "m.h5", cells, model(layer("a"), layer("b"))))
    close(found(batch())[0], run(run(batch(), cells["a/a"], hard), cells["b/a"], hard))


def test_weights_of_another_layer_are_not_taken(tmp_path: Any) -> None:
    path = write(tmp_path / "m.h5", {"other/other": arrays(I, 0)}, model(layer()))
    with pytest.raises(xplstm.FormatError, match="lstm_1"):
        xplstm.io.load(path)


def plain_of_cudnn(cell: dict[str, Any]) -> dict[str, Any]:
    """Convert a cuDNN layer to the standard form; cuDNN has a matrix (units, inputs) per gate."""
    units = [cell["kernel"][:, k * H : (k + 1) * H].ravel().reshape(H, -1).T for k in range(4)]
    hidden = [cell["recurrent_kernel"][:, k * H : (k + 1) * H].T for k in range(4)]
    bias = cell["bias"][: 4 * H] + cell["bias"][4 * H :]
    return {"kernel": np.hstack(units), "recurrent_kernel": np.hstack(hidden), "bias": bias}


@pytest.mark.parametrize("whole", [False, True])
def test_cudnn_has_its_own_kernels_and_fixed_functions(whole: bool, tmp_path: Any) -> None:
    cell = arrays(I, 0, cudnn=True)
    config = model(layer("rnn_1", "CuDNNLSTM")) if whole else None
    lstm = xplstm.io.load(write(tmp_path / "m.hdf5", {"rnn_1/rnn_1": cell}, config), prefix="rnn_1")
    close(lstm(batch())[0], run(batch(), plain_of_cudnn(cell), sigmoid))


def test_weights_alone_tell_no_functions(tmp_path: Any) -> None:
    cell = arrays(I, 0)
    path = write(tmp_path / "w.h5", {"lstm/lstm/lstm_cell": cell})
    with pytest.raises(xplstm.ArgumentError, match="pass variant="):
        xplstm.io.load(path)
    close(xplstm.io.load(path, variant=None)(batch())[0], run(batch(), cell, sigmoid))
    named = {f"lstm/lstm_cell/{name}:0": a for name, a in cell.items()}
    close(xplstm.io.load(named, format="keras", batch_first=True)(batch())[0], run(batch(), cell, sigmoid))


def test_stacked_cells_are_taken_by_their_names(tmp_path: Any) -> None:
    inner = [layer(f"lstm_cell{n}", "LSTMCell", recurrent_activation="sigmoid") for n in ("", "_1")]
    stack = {"name": "rnn", "cell": {"class_name": "StackedRNNCells", "config": {"cells": inner}}}
    config = model({"class_name": "RNN", "config": stack})
    start = "rnn/rnn/stacked_rnn_cells"
    cells = {f"{start}/lstm_cell": arrays(I, 0), f"{start}/lstm_cell_1": arrays(H, 1)}
    lstm = xplstm.io.load(write(tmp_path / "m.h5", cells, config))
    lower, upper = cells.values()
    close(lstm(batch())[0], run(run(batch(), lower, sigmoid), upper, sigmoid))
    write(tmp_path / "m.h5", {"rnn/rnn": arrays(H, 0)}, config)
    with pytest.raises(xplstm.FormatError, match="has no weights"):
        xplstm.io.load(tmp_path / "m.h5", prefix="rnn/cell/cells/lstm_cell")


def test_what_cannot_be_told_apart_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "m.h5"
    write(path, {"lstm_1/lstm_1": arrays(I, 0)}, model(layer(), layer()))
    with pytest.raises(xplstm.FormatError, match="two layers named 'lstm_1'"):
        xplstm.io.load(path)
    write(path, {"lstm_1/lstm_1": arrays(I, 0)}, b"[" * 100_000)
    with pytest.raises(xplstm.FormatError, match="model_config is not valid JSON"):
        xplstm.io.load(path)
    write(path, {"lstm_1/lstm_1": arrays(I, 0) | {"gamma": np.ones(4 * H, "f4")}}, model(layer()))
    with pytest.raises(xplstm.FormatError, match=r"does not use .*gamma"):
        xplstm.io.load(path)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_what_keras_3_writes(keras: Any, ending: str, tmp_path: Any) -> None:
    make = keras.layers
    inner = keras.Sequential([keras.Input((None, I)), make.LSTM(H, return_sequences=True)])
    stacked = make.RNN([make.LSTMCell(H) for _ in range(3)], return_sequences=True)
    both = make.Bidirectional(make.LSTM(H, return_sequences=True))
    activation = make.LSTM(H, recurrent_activation="hard_sigmoid", use_bias=False, return_sequences=True)
    for one in (inner, stacked, both, activation, make.GRU(H, return_sequences=True)):
        made = sequential(keras, one)
        made.save(tmp_path / f"model{ending}")
        agrees(made, xplstm.io.load(tmp_path / f"model{ending}"))


def test_stacked_cells_of_several_sizes_are_apart(keras: Any, tmp_path: Any) -> None:
    make = keras.layers
    made = sequential(keras, make.RNN([make.LSTMCell(H), make.LSTMCell(H + 1)], return_sequences=True))
    made.save_weights(tmp_path / "m.weights.h5")
    made.save(tmp_path / "m.keras")
    for name, options in (("m.weights.h5", {"variant": None}), ("m.keras", {})):
        y = batch()
        for cell in ("lstm_cell", "lstm_cell_1"):
            y, _ = xplstm.io.load(tmp_path / name, prefix=f"layers.rnn.cell.cells.{cell}", **options)(y)
        close(y, made(batch()).detach().numpy())


CHANGES: dict[str, Any] = {
    "flip": lambda keras, x: keras.ops.flip(x, 1),
    "multiply": lambda keras, x: keras.layers.Identity()(x) * 2,
    "rescaling": lambda keras, x: keras.layers.Rescaling(0.5)(x),
    "zero_padding1d": lambda keras, x: keras.layers.Dropout(0.1)(keras.layers.ZeroPadding1D(1)(x)),
    "subtract": lambda keras, x: keras.layers.GaussianNoise(0.1)(x) - 1,
    "time_distributed": lambda keras, x: keras.layers.TimeDistributed(keras.layers.Activation("tanh"))(x),
    "time_distributed_inside": lambda keras, x: keras.layers.Reshape((T, I))(
        keras.layers.TimeDistributed(functional(keras, lambda x: x * 2))(keras.layers.Reshape((1, T, I))(x))
    ),
    "layer_normalization": lambda keras, x: keras.layers.LayerNormalization(center=False, scale=False)(x),
    "normalization": lambda keras, x: keras.layers.Normalization(mean=1.0, variance=4.0)(x),
    "attention": lambda keras, x: keras.layers.Attention()([x, x]),
    "dot": lambda keras, x: keras.layers.Dot((2, 1))([keras.layers.Dot(2)([x, x]), x]),
    "concatenate": lambda keras, x: keras.layers.Concatenate(axis=1)([x, x]),
    "add": lambda keras, x: keras.layers.Add()([x, keras.layers.Dense(I)(x)]),
    "add_inside": lambda keras, x: keras.ops.add(keras.layers.Dense(I)(x), x),
    "where": lambda keras, x: keras.ops.where(keras.layers.Dense(I)(x) > 0, 0.0, x),
    "rescaling_before": lambda keras, x: keras.layers.Reshape((T, I))(keras.layers.Rescaling(0.5)(x)),
    "rescaling_inside": lambda keras, x: sequential(keras, keras.layers.Rescaling(0.5))(x),
    "multiply_inside": lambda keras, x: functional(keras, lambda x: x * 2)(x),
}


def functional(keras: Any, function: Any) -> Any:
    x = keras.Input((None, I))
    return keras.Model(x, function(x))


@pytest.mark.parametrize("ending", [".h5", ".keras"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_layer_without_weights_that_changes_the_input_is_named(
    keras: Any, name: str, ending: str, tmp_path: Any
) -> None:
    path, x, layer = tmp_path / f"model{ending}", keras.Input((T, I)), keras.layers.LSTM(H)
    keras.Model(x, layer(CHANGES[name](keras, x))).save(path)
    named = name.removesuffix("_before").removesuffix("_inside")
    with pytest.raises(xplstm.FormatError, match=f"the layer {named}[_0-9]*, which has no weights, changes"):
        xplstm.io.load(path)
    lstm = xplstm.io.load(xplstm.io.arrays(path), format="keras", variant=None, batch_first=True)
    np.testing.assert_array_equal(lstm.params["weight_ih_l0"], layer.get_weights()[0].T)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
@pytest.mark.parametrize("kind", ["sequential", "functional", "two inputs", "two outputs"])
def test_an_input_that_was_changed_is_followed_into_a_model(
    keras: Any, kind: str, ending: str, tmp_path: Any
) -> None:
    make, path = keras.layers, tmp_path / f"model{ending}"
    lstm = make.LSTM(H, return_sequences=True)
    x, a, b = (keras.Input((None, I)) for _ in range(3))
    half, dense = make.Rescaling(0.5), make.Dense(I)
    if kind == "two inputs":
        inner = keras.Model([a, b], make.Add()([make.Dense(H)(a), lstm(b)]))
        made = keras.Model(x, inner([x, half(x)]))
    elif kind == "two outputs":
        inner = keras.Model(a, [half(a), make.Dense(I)(a)])
        changed, other = inner(x)
        made = keras.Model(x, [lstm(changed), other])
    else:
        inner = sequential(keras, lstm) if kind == "sequential" else functional(keras, lstm)
        made = keras.Model(x, inner(half(x)))
    made.save(path)
    with pytest.raises(xplstm.FormatError, match=r"the layer rescaling[_0-9]*, which has no"):
        xplstm.io.load(path)
    # Not the input of the model any more.
    inner = sequential(keras, make.Rescaling(0.5), make.LSTM(H, return_sequences=True))
    keras.Model(x, inner(dense(x))).save(path)
    assert xplstm.io.load(path).input_size == I


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_an_lstm_of_a_model_in_a_wrapper_is_named(keras: Any, ending: str, tmp_path: Any) -> None:
    make, path = keras.layers, tmp_path / f"model{ending}"
    inner = sequential(keras, make.LSTM(I))
    made = keras.Sequential([keras.Input((2, T, I)), make.TimeDistributed(inner), make.LSTM(H, name="last")])
    made.save(path)
    last, wrapper = (
        ("last", "time_distributed") if ending == ".h5" else ("layers.lstm", "layers.time_distributed")
    )
    networks = {one[0]: one[3] for one in xplstm.io.inspect(path).networks}
    (named,) = (one for one in networks if one.startswith(wrapper))
    with pytest.raises(xplstm.FormatError, match="a TimeDistributed around Sequential around LSTM, which is"):
        xplstm.io.load(path, prefix=named)
    assert xplstm.io.load(path, prefix=last).hidden_size == H


def test_a_layer_that_two_models_share_has_weights_in_both(keras: Any, tmp_path: Any) -> None:
    make, path = keras.layers, tmp_path / "model.keras"
    table, x, z = make.Embedding(9, I), keras.Input((None,)), keras.Input((None,))
    encoder = keras.Model(x, make.LSTM(H)(table(x)), name="encoder")
    decoder = keras.Model(z, make.LSTM(H)(table(z)), name="decoder")
    keras.Model([x, z], [encoder(x), decoder(z)]).save(path)
    for place in ("layers.functional", "layers.functional_1"):
        assert xplstm.io.load(path, prefix=f"{place}.layers.lstm").input_size == I


def test_a_changed_input_without_keras(tmp_path: Any) -> None:
    changing = {"class_name": "Rescaling", "config": {"name": "half", "scale": 0.5}}
    noise = {"class_name": "GaussianNoise", "config": {"name": "noise"}}
    inside = {"class_name": "Sequential", "config": {"name": "inside", "layers": [noise, changing]}}
    path = write(tmp_path / "m.h5", {"lstm_1/lstm_1": arrays(I, 0)}, model(inside, noise, layer()))
    with pytest.raises(xplstm.FormatError, match="the layer half, which has no weights, changes"):
        xplstm.io.load(path)
    dense = {"class_name": "Dense", "config": {"name": "dense_1"}}
    for first in (noise, dense):
        write(path, {"lstm_1/lstm_1": arrays(I, 0)}, model(first, layer()))
        assert xplstm.io.load(path).input_size == I


def test_a_layer_with_another_number_of_features_is_no_change_of_the_input(keras: Any, tmp_path: Any) -> None:
    path, x = tmp_path / "model.keras", keras.Input((T, I))
    keras.Model(x, keras.layers.LSTM(H)(keras.layers.Concatenate()([x, x]))).save(path)
    assert xplstm.io.load(path).input_size == 2 * I


def test_the_first_layer_of_a_sequential_may_change_the_input(keras: Any, tmp_path: Any) -> None:
    make, path = keras.layers, tmp_path / "model.keras"
    sequential(keras, make.Rescaling(0.5), make.LSTM(H)).save(path)
    with pytest.raises(xplstm.FormatError, match="the layer rescaling"):
        xplstm.io.load(path)


def test_layers_that_keep_the_input_or_have_weights_may_come_before(keras: Any, tmp_path: Any) -> None:
    make, path = keras.layers, tmp_path / "model.keras"
    for first in (make.Masking(), make.Dropout(0.1), make.Identity(), make.Dense(I)):
        x = keras.Input((T, I))
        y = make.LSTM(H, return_sequences=True)(first(x))
        keras.Model(x, [y, make.LSTM(H)(keras.ops.flip(y, 1))]).save(path)
        assert xplstm.io.load(path, prefix="layers.lstm").input_size == I
        assert xplstm.io.load(path, prefix="layers.lstm_1").input_size == H
