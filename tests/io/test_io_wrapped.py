"""Check wrapped weights, and cells with more tensors than a standard LSTM: computed, or refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import xplstm
from xplstm import _array, io
from xplstm._errors import FormatError

T, B, I, H = 6, 2, 3, 5


@pytest.fixture
def x(torch):
    torch.manual_seed(0)
    return torch.randn(T, B, I)


def pruned(torch, lstm, name):
    from torch.nn.utils import prune

    prune.l1_unstructured(lstm, name, 0.3)


def weight_normed(torch, lstm, name):
    torch.nn.utils.parametrizations.weight_norm(lstm, name)


def weight_normed_by_columns(torch, lstm, name):
    torch.nn.utils.parametrizations.weight_norm(lstm, name, dim=lstm.get_parameter(name).ndim - 1)


def weight_normed_before_2(torch, lstm, name):
    torch.nn.utils.weight_norm(lstm, name)


def spectral_normed(torch, lstm, name):
    torch.nn.utils.parametrizations.spectral_norm(lstm, name)


def spectral_normed_before_2(torch, lstm, name):
    torch.nn.utils.spectral_norm(lstm, name)


WEIGHTS = ("weight_ih_l0", "weight_hh_l0")
BIASES = ("bias_ih_l0", "bias_hh_l0")
WRAPPERS = [
    (pruned, WEIGHTS + BIASES),
    (weight_normed, WEIGHTS),
    (weight_normed_by_columns, WEIGHTS),
    (weight_normed_before_2, WEIGHTS),
    (spectral_normed, WEIGHTS),
    (spectral_normed_before_2, WEIGHTS),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("wrap", "names"), WRAPPERS)
def test_a_wrapped_weight_is_computed(wrap, names, torch, x, tmp_path):
    lstm = torch.nn.LSTM(I, H)
    for name in names:
        wrap(torch, lstm, name)
    for name in names:
        lstm(x)  # in training: wrappers that iterate do so
        with torch.no_grad():
            [p.mul_(1.25) for n, p in lstm.named_parameters() if name in n]
    torch.save({"net": lstm.state_dict()}, tmp_path / "wrapped.pt")
    expected = lstm.eval()(x)[0].detach().numpy()
    for source in (lstm.state_dict(), tmp_path / "wrapped.pt"):
        np.testing.assert_allclose(io.load(source)(x.numpy())[0], expected, rtol=0, atol=1e-6)
    assert io.inspect(tmp_path / "wrapped.pt").networks[0][:2] == ("net", "torch")


def test_a_wrapped_weight_is_computed_in_any_library(xp):
    rng = np.random.default_rng(0)
    ours = xplstm.LSTM(I, H, dtype="float64", rng=1).params
    v = 3 * ours["weight_hh_l0"]
    theirs = {name: a for name, a in ours.items() if name != "weight_hh_l0"}
    g = np.sqrt((ours["weight_hh_l0"] ** 2).sum(axis=1, keepdims=True))
    mask = rng.integers(0, 2, 4 * H).astype("float64")
    theirs |= {"weight_hh_l0_g": g, "weight_hh_l0_v": v, "bias_ih_l0_orig": theirs.pop("bias_ih_l0")}
    found = io.load(xp.arrays(theirs | {"bias_ih_l0_mask": mask}), xp=xp.xp)
    np.testing.assert_allclose(
        _array.to_numpy(found.params["weight_hh_l0"]), ours["weight_hh_l0"], atol=1e-14
    )
    np.testing.assert_array_equal(_array.to_numpy(found.params["bias_ih_l0"]), ours["bias_ih_l0"] * mask)


@pytest.mark.parametrize("inner", ["module.", ""])
@pytest.mark.parametrize("dropped", [True, False])
def test_weight_dropout_loads_the_trained_weight(inner, dropped):
    ours = xplstm.LSTM(I, H, rng=1).params
    theirs = {f"0.rnns.0.{inner}{name}": a for name, a in ours.items()}
    plain = theirs.pop(f"0.rnns.0.{inner}weight_hh_l0")
    theirs["0.rnns.0.weight_hh_l0_raw"] = plain
    if dropped:
        theirs[f"0.rnns.0.{inner}weight_hh_l0"] = plain * 2
    found = io.load(theirs)
    np.testing.assert_array_equal(found.params["weight_hh_l0"], plain)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"weight_hh_l0_orig": (20, 5), "weight_hh_l0_mask": (20, 4)}, r"mask has shape \(20, 4\)"),
        ({"weight_hh_l0_g": (20, 2), "weight_hh_l0_v": (20, 5)}, r"g has shape \(20, 2\)"),
        ({"weight_hh_l0_g": (20, 5), "weight_hh_l0_v": (20, 5)}, r"g has shape \(20, 5\)"),
        (
            {"weight_hh_l0_orig": (20, 5), "weight_hh_l0_u": (19,), "weight_hh_l0_v": (5,)},
            r"u and v have",
        ),
        ({"parametrizations.weight_hh_l0.original": (20, 5)}, "a weight computed from other tensors"),
        ({"weight_hh_l0": (20, 5), "weight_hh_l0_orig": (20, 5)}, "a weight computed from other tensors"),
        (
            {"weight_hh_l0": (20, 5), "weight_hh_l0_orig": (20, 5), "weight_hh_l0_mask": (20, 5)},
            "is present together with",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong, words):
    with pytest.raises(FormatError, match=words):
        io.load({name: np.ones(shape) for name, shape in {"weight_ih_l0": (20, 3), **wrong}.items()})


def test_an_orthogonal_weight_is_refused_by_name(torch):
    lstm = torch.nn.LSTM(I, H)
    torch.nn.utils.parametrizations.orthogonal(lstm, "weight_hh_l0")
    with pytest.raises(FormatError, match=r"weight_hh_l0\.original,.*computed from other"):
        io.load(lstm.state_dict())


def singular(weight, by_columns=False):
    """Return the vectors that the wrapper saves for the rows or for the columns of a matrix."""
    u, _, v = np.linalg.svd(weight.T if by_columns else weight)
    return u[:, 0], v[0]


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("columns", [5, 20])
def test_spectral_norm_divides_by_the_largest_singular_value(columns, by_columns, xp):
    weight = np.random.default_rng(3).standard_normal((20, columns))
    weight_hh = np.ones((20, 5))
    u, v = singular(weight, by_columns)
    theirs = {"weight_hh_l0": weight_hh, "weight_ih_l0_orig": weight + 0.01}  # after a step of training
    found = io.load(xp.arrays(theirs | {"weight_ih_l0_u": u, "weight_ih_l0_v": v}), xp=xp.xp)
    size = u @ (weight.T + 0.01 if by_columns else weight + 0.01) @ v
    np.testing.assert_allclose(
        _array.to_numpy(found.params["weight_ih_l0"]), (weight + 0.01) / size, rtol=1e-12
    )


@pytest.mark.parametrize("case", ["other vectors", "zero", "both", "symmetric"])
def test_vectors_that_spectral_norm_does_not_save_are_refused(case):
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((20, 20))
    u, v = singular(weight) if case != "other vectors" else rng.standard_normal((2, 20))
    if case == "both":  # the two norms are 3.04 and 2.88
        weight = np.zeros((20, 20))
        weight[:2, :2] = [[3, 0.5], [-0.5, 2]]
        u, v = np.eye(20)[0], weight[0] / np.linalg.norm(weight[0])
    elif case == "symmetric":
        weight, (u, v) = weight @ weight.T, singular(weight @ weight.T)
    elif case == "zero":
        weight *= 0
    theirs = {"weight_hh_l0": np.ones((20, 5)), "weight_ih_l0_orig": weight}
    theirs |= {"weight_ih_l0_u": u, "weight_ih_l0_v": v}
    if case == "symmetric":
        size = np.linalg.norm(weight, 2)
        np.testing.assert_allclose(io.load(theirs).params["weight_ih_l0"], weight / size, rtol=1e-12)
        return
    words = {"other vectors": "neither the", "zero": "neither the", "both": "both the"}[case]
    with pytest.raises(FormatError, match=f"weight_ih_l0: u and v are the first singular vectors of {words}"):
        io.load(theirs)


def parametrizations(torch):
    """Return functions that parametrise a weight, in the ways that a state dict does not show."""
    nn = torch.nn

    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    class Product(nn.Module):
        def forward(self, a, b):
            return a * b

        def right_inverse(self, w):
            return 2 * torch.ones(len(w), 1), w / 2

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("_u", torch.randn(4 * H))
            self.register_buffer("_v", torch.randn(H))

        def forward(self, w):
            return w + self._u[:, None]

    class Drop(nn.Module):
        def forward(self, w):
            return nn.functional.dropout(w, training=self.training)

    def by(*wrappers):
        def wrap(lstm, name):
            for one in wrappers:
                if isinstance(one, str):
                    getattr(nn.utils.parametrizations, one)(lstm, name)
                else:
                    nn.utils.parametrize.register_parametrization(lstm, name, one())

        return wrap

    return {
        "weight norm, then a class": by("weight_norm", Double),
        "weight norm, then Tanh": by("weight_norm", nn.Tanh),
        "spectral norm, then a class": by("spectral_norm", Double),
        "norm of a part": lambda lstm, name: (
            by(Double)(lstm, name),
            nn.utils.parametrizations.weight_norm(lstm.parametrizations[name], "original"),
        ),
        "spectral norm twice": by("spectral_norm", "spectral_norm"),
        "two tensors": by(Product),
        "buffers of spectral norm": by(Shift),
        "orthogonal": by("orthogonal"),
        "dropout": by(Drop),
        "normalised columns": lambda lstm, name: nn.utils.parametrizations.spectral_norm(lstm, name, dim=1),
    }


CASES = [
    *("weight norm, then a class", "weight norm, then Tanh", "spectral norm, then a class"),
    *("spectral norm twice", "two tensors", "buffers of spectral norm", "orthogonal", "dropout"),
    *("norm of a part", "normalised columns"),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("inside", [False, True])
def test_a_module_computes_its_own_parametrised_weights(case, inside, torch, x):
    lstm = torch.nn.LSTM(I, H, num_layers=2)
    for name in ("weight_ih_l0", "weight_hh_l1"):
        if case not in ("two tensors", "buffers of spectral norm") or name == "weight_hh_l1":
            parametrizations(torch)[case](lstm, name)
    before = {name: a.clone() for name, a in lstm.state_dict().items()}
    model = torch.nn.ModuleDict({"net": lstm}) if inside else lstm
    found = io.load(model)
    assert all(part.training for part in model.modules())
    assert all(a.equal(before[name]) for name, a in lstm.state_dict().items())
    expected = lstm.eval()(x)[0].detach().numpy()
    np.testing.assert_allclose(found(x.numpy())[0], expected, rtol=0, atol=1e-6)
    start = "net." if inside else ""
    assert f"{start}weight_hh_l1" in io.arrays(model)
    assert not any("parametrizations" in name for name in io.arrays(model))


@pytest.mark.parametrize("names", [("weight_ih_l0",), ("bias_ih_l0",), ("bias_hh_l0", "weight_ih_l0")])
def test_a_module_with_weight_norm_on_any_parameter_loads(names, torch, x):
    lstm = torch.nn.LSTM(I, H)
    for name in names:
        weight_normed(torch, lstm, name)
    found = io.load(torch.nn.Sequential(lstm))
    np.testing.assert_allclose(found(x.numpy())[0], lstm(x)[0].detach().numpy(), rtol=0, atol=1e-6)


def test_a_parametrization_that_is_not_a_function_is_refused(torch):
    class Noise(torch.nn.Module):
        def forward(self, w):
            return w + torch.randn_like(w)

    lstm = torch.nn.LSTM(I, H)
    torch.nn.utils.parametrize.register_parametrization(lstm, "weight_hh_l0", Noise())
    with pytest.raises(
        FormatError, match=r"parametrization of net\.weight_hh_l0 gives other numbers at each call"
    ):
        io.load(torch.nn.ModuleDict({"net": lstm}))


@pytest.mark.filterwarnings("ignore")  # of the tracer
@pytest.mark.parametrize("case", ["weight norm, then Tanh", "two tensors", "buffers of spectral norm", None])
def test_a_program_with_a_parametrization_that_is_not_known_is_refused(case, torch, x, tmp_path):
    lstm = torch.nn.LSTM(I, H)
    parametrizations(torch)[case](lstm, "weight_hh_l0") if case else weight_normed(
        torch, lstm, "weight_hh_l0"
    )
    program = torch.jit.trace(torch.nn.Sequential(lstm), x)
    torch.jit.save(program, tmp_path / "program.pt")
    for source in (program, tmp_path / "program.pt"):
        if case is None:
            expected = lstm(x)[0].detach().numpy()
            np.testing.assert_allclose(io.load(source)(x.numpy())[0], expected, rtol=0, atol=1e-6)
            continue
        with pytest.raises(FormatError, match=r"it is a \S+, which is not a PyTorch class"):
            io.load(source)


CELL = {"weight_ih": (20, 3), "weight_hh": (20, 5)}
COLUMNS = {"kernel": (3, 20), "recurrent_kernel": (5, 20), "bias": (20,)}
FLAX = {f"{k}.kernel": (3 if k[0] == "i" else 5, 5) for k in ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho")}
EXTRA = {
    "layer norm of a module": (None, CELL, {"layernorm_i.weight": (20,)}, "layer normalisation"),
    "peepholes by gate": (
        None,
        CELL,
        {"weight_ci": (5,), "weight_cf": (5,)},
        "_ci, .*_cf .peephole",
    ),
    "gains": ("haste", COLUMNS, {"gamma": (2, 20), "gamma_h": (5,), "beta_h": (5,)}, "layer normalisation"),
    "peepholes": ("keras", COLUMNS, {"input_gate_peephole_weights": (5,)}, "peephole"),
    "norm next to a kernel": ("keras", COLUMNS, {"kernel_norm.gamma": (20,)}, "layer normalisation"),
    "norm of Flax": (None, FLAX, {"LayerNorm_0.scale": (5,)}, "layer normalisation"),
    "another matrix": ("mlx", {"Wx": (20, 3), "Wh": (20, 5)}, {"Wc": (5, 5)}, "does not use Wc"),
    "an initial state": (None, CELL, {"h0": (5,)}, "an initial state"),
    "a gate too many": ("joined", {f"W{k}": (5, 8) for k in "fiCo"}, {"Wz": (5, 8)}, "does not use Wz"),
}


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("case", EXTRA)
def test_a_tensor_that_no_layout_uses_is_refused(case, prefix):
    layout, cell, extra, words = EXTRA[case]
    plain = {prefix + name: np.ones(shape, "float32") for name, shape in cell.items()}
    assert isinstance(io.load(plain, format=layout), xplstm.LSTM)
    theirs = plain | {prefix + name: np.ones(shape, "float32") for name, shape in extra.items()}
    with pytest.raises(FormatError, match=words):
        io.load(theirs, format=layout)
    assert "does not use" in str(io.inspect(theirs))


@pytest.mark.parametrize("name", ["mask_hh", "weight_scale", "zero_point", "clip"])
def test_integers_that_change_numbers_are_refused(name):
    theirs = {name: np.ones(shape, "float32") for name, shape in CELL.items()}
    with pytest.raises(FormatError, match=f"does not use {name}"):
        io.load(theirs | {name: np.ones(1, "int64")})


@pytest.mark.parametrize("start", ["", "net.lstm."])
def test_adapters_around_a_network_are_refused(start):
    theirs = {f"{start}base_layer.{name}": np.ones(shape, "float32") for name, shape in CELL.items()}
    assert isinstance(io.load(theirs), xplstm.LSTM)
    with pytest.raises(FormatError, match=r"does not use .*lora_A.default.weight \(an adapter\)"):
        io.load(theirs | {f"{start}lora_A.default.weight": np.ones((2, 3), "float32")})


@pytest.mark.parametrize("above", ["", "cell."])
def test_an_adapter_of_a_module_around_a_network_is_refused(above):
    theirs = {f"{above}lstm.{name}": np.ones(shape, "float32") for name, shape in CELL.items()}
    one = np.ones((2, 3), "float32")
    assert isinstance(
        io.load(theirs | {f"{above}head.lora_A": one, f"{above}adapter.weight": one}), xplstm.LSTM
    )
    with pytest.raises(FormatError, match=rf"does not use {above}lora_A.default.weight \(an adapter\)"):
        io.load(theirs | {f"{above}lora_A.default.weight": one})


MXNET = {"i2h_weight": (8, 3), "h2h_weight": (8, 2), "i2h_bias": (8,), "h2h_bias": (8,)}


@pytest.mark.parametrize(
    ("cell", "extra"),
    [(MXNET, "h2r_weight"), (MXNET, "h2h_weight_mask"), (MXNET, "i2h_gamma"), (CELL, "lora_A")],
)
def test_an_underscore_may_follow_a_prefix(cell, extra):
    between = "lstm0_" if cell is MXNET else "lstm0."
    theirs = {f"{between}{name}": np.ones(shape, "float32") for name, shape in cell.items()}
    assert isinstance(io.load(theirs | {"lstm01_dense.weight": np.ones((2, 2), "float32")}), xplstm.LSTM)
    with pytest.raises(FormatError, match=f"does not use {extra}"):
        io.load(theirs | {f"lstm0_{extra}": np.ones((2, 2), "float32")})


def test_a_bias_of_two_numbered_tensors_is_not_computed():
    theirs = {name: np.ones(shape, "float32") for name, shape in CELL.items() if name != "bias_ih"}
    pair = {f"parametrizations.bias_ih.original{k}": np.ones(8, "float32") for k in range(2)}
    with pytest.raises(FormatError, match=r"does not use parametrizations.bias_ih.original0"):
        io.load(theirs | pair)


def test_what_fits_no_format_is_not_offered():
    theirs = {"lstm_cell/kernel": np.ones((5, 8), "float32"), "lstm_cell/bias": np.ones(9, "float32")}
    with pytest.raises(FormatError, match=r"names and shapes fit no format(.|\n)*bias has shape \(9,\)"):
        io.load(theirs)
    # Three gates of four units, which would be four gates of three.
    other = {name.replace("lstm", "coupled_input_forget_gate_lstm"): a for name, a in theirs.items()}
    with pytest.raises(FormatError, match="contains no known LSTM of format 'tensorflow'"):
        io.load(other, format="tensorflow")


def test_counters_and_other_networks_do_no_harm():
    theirs = {name: np.ones(shape, "float32") for name, shape in CELL.items()}
    inner = {f"inner.{name}": a for name, a in theirs.items()}
    found = io.load(theirs | inner | {"rngs.count": np.asarray(3), "steps": np.asarray(2)}, prefix="")
    assert repr(found) == "LSTM(3, 5, num_layers=1, bias=False)"


def test_the_work_for_many_wrapped_weights_does_not_grow_by_their_square():
    def calls(count):
        theirs = {f"m{k}.weight_hh_l0_raw": np.ones((4, 1), "float32") for k in range(count)}
        events = []
        sys.setprofile(lambda _frame, event, _: events.append(event))
        try:
            found = io.inspect(theirs)
        finally:
            sys.setprofile(None)
        assert len(found.networks) == count
        return len(events)

    calls(1)  # what the first call loads and keeps
    assert calls(400) < 2.1 * calls(200)


@pytest.mark.parametrize("wrapper", ["WeightNorm", "SpectralNorm"])
@pytest.mark.parametrize("in_rnn", [False, True])
def test_cells_in_a_norm_of_linen_are_refused(jax, wrapper, in_rnn):
    """The wrapper stores the factors of each weight next to the cell, and another cell has none."""
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")
    x = np.ones((B, T, I), "float32")
    given = (x,) if in_rnn else ((np.zeros((B, H), "float32"),) * 2, x[:, 0])
    stats = {"update_stats": True} if wrapper == "SpectralNorm" else {}

    class Normed(linen.Module):
        @linen.compact
        def __call__(self, *given):
            cell = linen.LSTMCell(H)
            return getattr(linen, wrapper)(linen.RNN(cell) if in_rnn else cell)(*given, **stats)

    class Both(linen.Module):
        def setup(self):
            self.normed, self.free = Normed(), linen.RNN(linen.LSTMCell(H))

        def __call__(self, *given):
            return self.normed(*given), self.free(x)

    variables = Both().init(jax.random.key(0), *given)
    (inner,) = [name for name in variables["params"]["normed"] if not name.startswith(wrapper)]
    cell = "params.normed." + (
        inner if "cell" not in variables["params"]["normed"][inner] else f"{inner}.cell"
    )
    with pytest.raises(FormatError, match="a weight computed from other tensors"):
        io.load(variables, prefix=cell)
    assert repr(io.load(variables, prefix="params.free.cell")) == "LSTM(3, 5, num_layers=1)"


@pytest.mark.parametrize("wrapper", ["WeightNorm", "SpectralNorm"])
def test_cells_in_a_norm_of_nnx_are_refused(wrapper):
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    normed = getattr(nnx, wrapper)(nnx.LSTMCell(I, H, rngs=rngs), rngs=rngs)
    for source in (normed, nnx.state(normed)):
        with pytest.raises(FormatError, match="a weight computed from other tensors"):
            io.load(source, prefix="layer_instance")
    assert repr(io.load(normed.layer_instance)) == "LSTM(3, 5, num_layers=1)"
