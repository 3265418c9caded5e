"""Check layers from PyTorch's dynamic quantisation, which are dequantised on request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import io

pytestmark = [
    pytest.mark.backend("torch"),
    # That torch.ao will leave PyTorch, and what tracing does.
    pytest.mark.filterwarnings("ignore"),
]
I, H, STEPS, BATCH = 3, 5, 6, 2
STACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "three layers": ("LSTM", {"num_layers": 3}),
    "two directions": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "GRU": ("GRU", {"num_layers": 2}),
}


def stored(torch: Any, layer: Any, path: Any, kind: str, traced: bool = False) -> Any:
    """Quantise a layer and write it; return the quantised layer."""
    net = torch.nn.Sequential(layer).eval()
    net = torch.ao.quantization.quantize_dynamic(net, {type(layer)}, dtype=getattr(torch, kind))
    if traced:
        torch.jit.trace(net, torch.zeros(STEPS, BATCH, I)).save(str(path))
    else:
        torch.save(net.state_dict(), path)
    return net[0]


def weights_of(packed: Any) -> tuple[Any, Any]:
    """Return the real numbers of both products of a cell, as PyTorch dequantises them."""
    _, _, _, _, linear = packed.__getstate__()[0]
    return tuple(part.__getstate__()[0][0].dequantize().numpy() for part in linear)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("case", STACKS)
def test_a_quantised_stack(case: str, traced: bool, tmp_path: Any, torch: Any) -> None:
    torch.manual_seed(0)
    kind, options = STACKS[case]
    theirs = stored(torch, getattr(torch.nn, kind)(I, H, **options), tmp_path / "q.pt", "qint8", traced)
    with pytest.raises(
        xplstm.FormatError, match=r"float32, qint8.* pass dtype= to convert, which also dequantises"
    ):
        io.load(tmp_path / "q.pt")
    ours = io.load(tmp_path / "q.pt", dtype="float32")
    assert type(ours).__name__ == kind
    D = 2 if options.get("bidirectional") else 1
    cells = [cell.param for cell in theirs._all_weight_values]
    assert len(cells) == D * options.get("num_layers", 1)
    for number, packed in enumerate(cells):
        name = f"l{number // D}" + ("_reverse" if number % D else "")
        for field, wanted in zip(("weight_ih", "weight_hh"), weights_of(packed), strict=True):
            assert np.array_equal(ours.params[f"{field}_{name}"], wanted)
    x = torch.randn(STEPS, BATCH, I)
    # PyTorch also rounds x and h to 8 bits.
    np.testing.assert_allclose(ours(x.numpy())[0], theirs(x)[0].detach().numpy(), rtol=0, atol=0.02)


def test_weights_in_half_precision(tmp_path: Any, torch: Any) -> None:
    theirs = stored(torch, torch.nn.LSTM(I, H, 2, bidirectional=True), tmp_path / "q.pt", "float16")
    x = torch.randn(STEPS, BATCH, I)
    ours = io.load(tmp_path / "q.pt")
    np.testing.assert_allclose(ours(x.numpy())[0], theirs(x)[0].detach().numpy(), rtol=0, atol=1e-5)


def test_two_layers_that_could_be_two_directions_are_asked_for(tmp_path: Any, torch: Any) -> None:
    theirs = stored(torch, torch.nn.LSTM(I, I, 2), tmp_path / "q.pt", "float16")
    with pytest.raises(xplstm.ArgumentError, match="bidirectional= is needed"):
        io.load(tmp_path / "q.pt")
    x = torch.randn(STEPS, BATCH, I)
    ours = io.load(tmp_path / "q.pt", bidirectional=False)
    np.testing.assert_allclose(ours(x.numpy())[0], theirs(x)[0].detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_a_quantised_cell(kind: str, tmp_path: Any, torch: Any) -> None:
    theirs = stored(torch, getattr(torch.nn, kind)(I, H), tmp_path / "q.pt", "qint8")
    ours = io.load(tmp_path / "q.pt", dtype="float32")
    x = torch.randn(1, BATCH, I)
    h = theirs(x[0])
    h = (h[0] if kind == "LSTMCell" else h).detach().numpy()
    np.testing.assert_allclose(ours(x.numpy())[0][0], h, rtol=0, atol=0.02)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_quantised_rnn_cell(nonlinearity: str, tmp_path: Any, torch: Any) -> None:
    cell = torch.nn.RNNCell(I, H, nonlinearity=nonlinearity)
    theirs, x = stored(torch, cell, tmp_path / "q.pt", "qint8"), torch.randn(1, BATCH, I)
    for ours in (
        io.load(theirs, dtype="float32"),
        io.load(tmp_path / "q.pt", dtype="float32", nonlinearity=nonlinearity),
    ):
        np.testing.assert_allclose(ours(x.numpy())[0][0], theirs(x[0]).detach().numpy(), rtol=0, atol=0.02)


@pytest.mark.parametrize("given", ["module", "inside", "state dict", "nested"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_quantised_modules_themselves(kind: str, given: str, tmp_path: Any, torch: Any) -> None:
    torch.manual_seed(0)
    options = {} if kind.endswith("Cell") else {"num_layers": 2, "bidirectional": True, "batch_first": True}
    theirs = stored(torch, getattr(torch.nn, kind)(I, H, **options), tmp_path / "q.pt", "qint8")
    both = torch.nn.Sequential(theirs, torch.nn.Linear(H, 2))
    sources = {
        "module": theirs,
        "inside": both,
        "state dict": theirs.state_dict(),
        "nested": {"model": both.state_dict(), "step": 3},
    }
    source = sources[given]
    with pytest.raises(
        xplstm.FormatError, match=r"float32, qint8.* pass dtype= to convert, which also dequantises"
    ):
        io.load(source)
    ours, wanted = io.load(source, dtype="float32"), io.load(tmp_path / "q.pt", dtype="float32")
    assert ours.params.keys() == wanted.params.keys()
    for name, a in wanted.params.items():
        assert np.array_equal(ours.params[name], a)
    told = given in ("module", "inside") and bool(options)
    assert ours._stack.batch_first == told
    assert "qint8" in str(io.inspect(source))
