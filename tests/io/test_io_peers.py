"""Compare files and parameters of the real libraries, after loading, with the libraries' own results."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import pathlib
import zipfile

import numpy as np
import pytest

import xplstm
from tests.support import weightfiles
from xplstm import io
from xplstm._errors import FormatError

T, B, I, H = 5, 4, 3, 7

TORCH = {
    "plain": {},
    "deep": {"num_layers": 3, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "bare": {"bias": False, "batch_first": True},
}


def example(seed=1, dtype="float32"):
    """Return x as (T, B, I), and distinct states."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((T, B, I)).astype(dtype)


def torch_model(torch, options):
    """Return a PyTorch LSTM with distinct weights."""
    torch.manual_seed(3)
    return torch.nn.LSTM(I, H, **options).double()


def write_pt(torch, model, path):
    torch.save(model.state_dict(), path)


def write_checkpoint(torch, model, path):
    """Write a checkpoint after an optimiser step, with other objects that users store."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    kept = {
        "epoch": 3,
        "losses": [1.5, 0.25],
        "best": None,
        "device": torch.device("cpu"),
        "shape": torch.Size([3]),
    }
    kept |= {"model": {"net": model.state_dict()}, "optimizer": optimizer.state_dict()}
    torch.save(kept, path)


def write_parameters(torch, model, path):
    torch.save(dict(model.named_parameters()), path)


def write_transposed(torch, model, path):
    """Tensors with other strides, with an offset, and two in one storage."""
    given = model.state_dict()
    both = torch.cat([torch.zeros(3, dtype=torch.float64), given["weight_hh_l0"].T.reshape(-1)])
    given["weight_hh_l0"] = both[3:].reshape(given["weight_hh_l0"].T.shape).T
    given["weight_ih_l0"] = torch.cat([given["weight_ih_l0"], given["weight_ih_l0"]])[
        : len(given["weight_ih_l0"])
    ]
    torch.save(given, path)


def write_protocol_5(torch, model, path):
    torch.save(model.state_dict(), path, pickle_protocol=5)


def write_safetensors(_torch, model, path):
    saved = pytest.importorskip("safetensors.torch")
    saved.save_file({name: a.contiguous() for name, a in model.state_dict().items()}, path, {"format": "pt"})


def write_npz(_torch, model, path):
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: a.numpy() for name, a in model.state_dict().items()})


WRITERS = [
    write_pt,
    write_checkpoint,
    write_parameters,
    write_transposed,
    write_protocol_5,
    write_safetensors,
    write_npz,
]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("kind", TORCH)
def test_files_of_torch(kind, writer, torch, tmp_path):
    model = torch_model(torch, TORCH[kind])
    path = tmp_path / "weights.of.some.name"
    writer(torch, model, path)
    options = {"batch_first": True} if kind == "bare" else {}
    lstm = io.load(path, **options)
    assert lstm.shapes == {name: tuple(a.shape) for name, a in model.state_dict().items()}
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(lstm.params[name], a.numpy(), strict=True)
    x = example(dtype="float64")
    theirs, _ = model(torch.asarray(x))
    np.testing.assert_allclose(lstm(x)[0], theirs.detach().numpy(), rtol=0, atol=1e-12)


def test_mappings_of_torch(torch):
    model = torch_model(torch, TORCH["projected"])
    for given in (model.state_dict(), dict(model.named_parameters()), {"a": {"b": model.state_dict()}}):
        lstm = io.load(given)
        np.testing.assert_array_equal(
            lstm.params["weight_hr_l1_reverse"], model.weight_hr_l1_reverse.detach().numpy()
        )
    moved = io.load(model.state_dict(), xp="torch")
    assert moved.params["weight_hh_l0"].data_ptr() != model.weight_hh_l0.data_ptr()
    assert not moved.params["weight_hh_l0"].requires_grad


def test_cells_and_simple_networks_of_torch(torch):
    x = example()
    cell = torch.nn.LSTMCell(I, H)
    lstm = io.load(cell.state_dict())
    h, _ = cell(torch.asarray(x[0]))
    np.testing.assert_allclose(lstm(x[:1])[1].h[0], h.detach().numpy(), rtol=0, atol=1e-6)
    simple = torch.nn.RNN(I, H, 2, nonlinearity="relu", bidirectional=True)
    rnn = io.load(simple.state_dict(), nonlinearity="relu")
    np.testing.assert_allclose(rnn(x)[0], simple(torch.asarray(x))[0].detach().numpy(), rtol=0, atol=1e-6)
    theirs = torch.nn.GRU(I, H, 2, bidirectional=True)
    gru = io.load(theirs.state_dict())
    np.testing.assert_allclose(gru(x)[0], theirs(torch.asarray(x))[0].detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_of_torch(dtype, torch, tmp_path):
    model = torch_model(torch, {}).to(getattr(torch, dtype))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    write_safetensors(torch, model, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        assert io.inspect(path).tensors["weight_hh_l0"] == ((4 * H, H), dtype)
        lstm = io.load(path, dtype="float64")
        np.testing.assert_array_equal(
            lstm.params["weight_hh_l0"], model.weight_hh_l0.detach().double().numpy()
        )


def test_a_file_of_torch_with_the_other_end_first(torch, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.byteorder", "big")
    model = torch_model(torch, {})
    swapped = {name: torch.asarray(a.numpy().byteswap()) for name, a in model.state_dict().items()}
    torch.save(swapped, tmp_path / "weights.pt")
    found = io.load(tmp_path / "weights.pt").params["weight_hh_l0"]
    np.testing.assert_array_equal(found, model.weight_hh_l0.detach().numpy(), strict=True)


def test_a_whole_model_of_torch_is_refused_by_name(torch, tmp_path):
    torch.save(torch_model(torch, {}), tmp_path / "whole.pt")
    with pytest.raises(FormatError, match=r"only objects of torch\.nn\.modules\.rnn\.LSTM"):
        io.load(tmp_path / "whole.pt")


def test_a_file_from_before_torch_1_6_loads(torch, tmp_path):
    model = torch_model(torch, {"num_layers": 2})
    model.lower = model.weight_ih_l0[3:]  # a view that begins later in its storage
    given = {"state": model.state_dict(), "lower": model.lower, "epoch": 3}
    torch.save(given, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = io.load(tmp_path / "old.pt", prefix="state")
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(found.params[name], a.numpy())
    np.testing.assert_array_equal(io.arrays(tmp_path / "old.pt")["lower"], model.lower.detach().numpy())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_of_torchscript_gives_its_parameters(torch, tmp_path):
    model = torch.nn.Sequential()
    model.encoder = torch_model(torch, {"num_layers": 2})
    torch.jit.save(torch.jit.script(model), tmp_path / "program.pt")
    found = io.load(tmp_path / "program.pt", prefix="encoder")
    for name, a in model.encoder.state_dict().items():
        np.testing.assert_array_equal(found.params[name], a.numpy())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_of_torch_without_readable_parameters_is_called_what_it_is(torch, tmp_path):
    model = torch.jit.script(torch.nn.Sequential(torch_model(torch, {})).eval())
    torch.jit.save(torch.jit.freeze(model), tmp_path / "frozen.pt")
    with zipfile.ZipFile(tmp_path / "exported.pt2", "w") as archive:
        archive.writestr("exported/archive_format", "pt2")
    for name, words in (("frozen.pt", "before it is frozen"), ("exported.pt2", "torch.export.load")):
        with pytest.raises(xplstm.FormatError, match=f"{name} .*{words}"):
            io.load(tmp_path / name)


class Level(enum.Enum):
    LOW = 1


@dataclasses.dataclass
class Options:
    size: int = 3


class Settings(dict):
    """Subclass of dict, like the hyperparameters that Lightning stores."""


BYSTANDERS = {
    "scalar": np.float64(0.3),
    "array": np.arange(3.0),
    "namespace": argparse.Namespace(lr=1e-3),
    "path": pathlib.PurePosixPath("a/b"),
    "frozenset": frozenset({1}),
    "enum": Level.LOW,
    "key": {Level.LOW: 1, b"a": 2, (1, (2, "a")): 3, (): 4},
    "dataclass": Options(),
    "date": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    "deque": collections.deque([1, 2], maxlen=3),
    "bytes": [b"a", bytearray(b"a"), 1j],
    "ordered": collections.OrderedDict(a=1),
    "settings": Settings(a=1),
    "function": collections.defaultdict(collections.OrderedDict, a=1),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", BYSTANDERS)
def test_what_is_no_tensor_does_not_hide_the_weights(name, old, torch, tmp_path):
    model = torch_model(torch, {})
    given = {"extra": BYSTANDERS[name], "state_dict": model.state_dict()}
    torch.save(given, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=not old)
    found = io.load(tmp_path / "checkpoint.pt")
    np.testing.assert_array_equal(found.params["weight_hh_l0"], model.weight_hh_l0.detach().numpy())
    assert io.inspect(tmp_path / "checkpoint.pt").networks[0][0] == "state_dict"


def odd_tensors(torch):
    """Return tensors that `torch.load` reads with weights_only=True, and whether `load` reads them."""
    ones = torch.ones(2, 2)
    attributed = torch.nn.Parameter(torch.ones(2))
    attributed.note = 3
    return {
        "sparse": (ones.to_sparse(), False),
        "meta": (torch.ones(2, device="meta"), False),
        "complex32": (torch.ones(2, dtype=torch.complex32), False),
        "conjugated": (torch.ones(2, dtype=torch.complex64).conj(), False),
        "negated": (torch.ones(2, dtype=torch.complex64).conj().imag, False),
        "buffer": (torch.nn.Buffer(ones), True),
        "attributed": (attributed, True),
    }


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_odd_tensors_do_not_hide_the_weights(torch, tmp_path):
    model = torch_model(torch, {})
    for name, (tensor, is_read) in odd_tensors(torch).items():
        torch.save({"state": model.state_dict(), "odd": {"one": tensor}}, tmp_path / "odd.pt")
        found = io.load(tmp_path / "odd.pt")
        np.testing.assert_array_equal(found.params["weight_hh_l0"], model.weight_hh_l0.detach().numpy())
        assert "odd.one" in io.inspect(tmp_path / "odd.pt").tensors, name
        if is_read:
            np.testing.assert_array_equal(
                io.arrays(tmp_path / "odd.pt", "odd")["one"], tensor.detach().numpy()
            )
        else:
            with pytest.raises(FormatError, match="which cannot be read"):
                io.arrays(tmp_path / "odd.pt", "odd")


def test_an_object_by_the_name_of_a_parameter_is_refused(torch, tmp_path):
    given = {**torch_model(torch, {}).state_dict(), "bias_ih_l0": Level.LOW}
    torch.save(given, tmp_path / "object.pt")
    with pytest.raises(FormatError, match=r"bias_ih_l0 is an object of .*Level"):
        io.load(tmp_path / "object.pt")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_reads_what_is_saved(dtype, torch, tmp_path):
    ours = weightfiles.lstm(dtype=dtype, proj_size=2)
    io.save(tmp_path / "weights.pt", ours)
    given = torch.load(tmp_path / "weights.pt", weights_only=True)
    model = torch.nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2, dtype=getattr(torch, dtype))
    model.load_state_dict(given)
    for name, a in ours.params.items():
        np.testing.assert_array_equal(model.state_dict()[name].double().numpy(), a.astype("float64"))


@pytest.fixture
def flax():
    return pytest.importorskip("flax", reason="flax is not installed")


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell"])
def test_cells_of_flax_linen(cell, flax, jax):
    from flax import linen

    x = example()
    module = linen.RNN(getattr(linen, cell)(H), return_carry=True)
    variables = module.init(jax.random.key(3), x.swapaxes(0, 1))
    spread = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(4), a.shape, a.dtype), variables
    )
    (c, h), theirs = module.apply(spread, x.swapaxes(0, 1))
    lstm = io.load(spread)
    y, state = lstm(x)
    np.testing.assert_allclose(y, np.asarray(theirs).swapaxes(0, 1), rtol=0, atol=2e-6)
    ours = io.from_state((c, h), "flax")
    np.testing.assert_allclose(state.h[0], ours.h, rtol=0, atol=2e-6)
    np.testing.assert_allclose(state.c[0], ours.c, rtol=0, atol=2e-6)
    back = flax.traverse_util.unflatten_dict(io.to_mapping(lstm, "flax"), sep=".")
    again = module.apply({"params": {"cell": back}}, x.swapaxes(0, 1))[1]
    np.testing.assert_array_equal(again, theirs)


def test_directions_and_layers_of_flax_linen(flax, tmp_path, jax):
    from flax import linen

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(2):
                forward, backward = linen.RNN(linen.LSTMCell(H)), linen.RNN(linen.OptimizedLSTMCell(H))
                x = linen.Bidirectional(forward, backward)(x)
            return x

    x = example()
    variables = Model().init(jax.random.key(3), x.swapaxes(0, 1))
    theirs = Model().apply(variables, x.swapaxes(0, 1))
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    np.savez(tmp_path / "weights.npz", **flat)
    for given in (variables, tmp_path / "weights.npz"):
        layers = [(f"params/LSTMCell_{k}", f"params/OptimizedLSTMCell_{k}") for k in range(2)]
        lstm = io.load(given, prefix=layers)
        np.testing.assert_allclose(lstm(x)[0], np.asarray(theirs).swapaxes(0, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell"])
def test_cells_of_flax_nnx(cell, flax):
    from flax import nnx

    x = example()
    made = getattr(nnx, cell)(I, H, rngs=nnx.Rngs(3), bias_init=nnx.initializers.normal(0.5))
    carry = (np.full((B, H), 0.25, "float32"), np.full((B, H), -0.5, "float32"))
    (c, h), _ = made(carry, x[0])
    state = nnx.state(made)
    for given in (nnx.to_pure_dict(nnx.state(made, nnx.Param)), state, nnx.to_flat_state(state)):
        lstm = io.load(given)
        h_0, c_0 = io.from_state(carry, "nnx")
        _, state = lstm(x[:1], (h_0[None], c_0[None]))
        np.testing.assert_allclose(state.h[0], h, rtol=0, atol=2e-6)
        np.testing.assert_allclose(state.c[0], c, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_cells_of_equinox(bias, jax):
    equinox = pytest.importorskip("equinox", reason="equinox is not installed")

    x = example()
    cell = equinox.nn.LSTMCell(I, H, use_bias=bias, dtype="float32", key=jax.random.key(3))
    lstm = io.load(vars(cell), format="equinox")
    state = h, c = np.full(H, 0.25, "float32"), np.full(H, -0.5, "float32")
    for x_t in x[:, 0]:
        h, c = cell(x_t, (h, c))
    _, ours = lstm(x[:, 0], tuple(a[None] for a in state))
    np.testing.assert_allclose(ours.h[0], h, rtol=0, atol=2e-6)
    np.testing.assert_allclose(ours.c[0], c, rtol=0, atol=2e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_of_mlx(suffix, tmp_path):
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    from mlx import nn

    layer = nn.LSTM(I, H)
    layer.save_weights(str(tmp_path / f"weights{suffix}"))
    x = example()
    hidden, _ = layer(mx.array(x.swapaxes(0, 1)))
    lstm = io.load(tmp_path / f"weights{suffix}", format="mlx")
    np.testing.assert_allclose(lstm(x)[0], np.array(hidden).swapaxes(0, 1), rtol=0, atol=2e-6)


def test_hand_written_weights_of_a_file(tmp_path):
    ours = xplstm.LSTM(I, H, rng=1)
    np.savez(tmp_path / "mine.npz", **io.to_mapping(ours, "joined"))
    found = io.load(tmp_path / "mine.npz", format="joined")
    x = example()
    np.testing.assert_allclose(found(x)[0], ours(x)[0], rtol=0, atol=1e-6)
