"""Check modules whose calls may differ from their weights, and weights that no call can use."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import xplstm
from xplstm import _array, io
from xplstm._errors import ArgumentError, FormatError
from xplstm.io import onnx


def torch_cases(torch):
    nn = torch.nn

    class Forward(nn.LSTM):
        def forward(self, x, state=None):
            return super().forward(2 * x, state)

    class Inner(nn.GRU):
        def permute_hidden(self, h, *_):
            return h

    class Cell(nn.LSTMCell):
        def forward(self, x, *_):
            return x

    class Called(nn.LSTM):
        def __call__(self, x):
            return x

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            for name, a in nn.LSTMCell(3, 5).named_parameters():
                setattr(self, name, a)

    def hooked(register, hook):
        lstm = nn.LSTM(3, 5)
        getattr(lstm, register)(hook)
        return lstm

    replaced = nn.LSTM(3, 5)
    replaced.forward = lambda x: x
    parametrized = Forward(3, 5)
    nn.utils.parametrizations.weight_norm(parametrized, "weight_hh_l0")
    return {
        "forward of Forward is not the method of LSTM": Forward(3, 5),
        "permute_hidden of Inner": Inner(3, 5),
        "forward of Cell is not the method of LSTMCell": Cell(3, 5),
        "__call__ of Called": Called(3, 5),
        "Own is not a recurrent module": Own(),
        "forward of the object is replaced": replaced,
        "forward of ParametrizedForward": parametrized,
        "has forward hooks": hooked("register_forward_hook", lambda *_: None),
        "has forward pre hooks": hooked("register_forward_pre_hook", lambda *_: None),
        "has state dict hooks": hooked("register_state_dict_post_hook", lambda *_: None),
    }


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_of_torch_that_may_compute_something_else_is_refused(inside, torch):
    for words, module in torch_cases(torch).items():
        whole = torch.nn.ModuleDict({"rnn": module}) if inside else module
        with pytest.raises(FormatError, match=rf"{words}.*state_dict\(\) returns only the weights"):
            io.load(whole)
        assert words in str(io.inspect(whole))
        if "hooks" in words or "replaced" in words:
            assert io.load(whole.state_dict())._stack.hidden_size == 5


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_global_hook_of_torch_is_refused(kind, torch):
    module = importlib.import_module("torch.nn.modules.module")
    handle = getattr(module, f"register_module_{kind}_hook")(lambda *_: None)
    try:
        for one in (torch.nn.LSTM(3, 5), torch.nn.Sequential(torch.nn.GRUCell(3, 5))):
            with pytest.raises(FormatError, match=r"PyTorch has global forward .*hooks, which may change"):
                io.load(one)
    finally:
        handle.remove()
    assert io.load(torch.nn.LSTM(3, 5))._stack.hidden_size == 5


def test_a_module_of_torch_with_another_size_or_weight_than_its_parameters_is_refused(torch):
    nn = torch.nn
    short, unbiased, moved, cell = nn.LSTM(3, 5, 2), nn.GRU(3, 5), nn.LSTM(3, 5), nn.LSTMCell(3, 5)
    short.num_layers = 1
    unbiased.bias = False
    moved._flat_weights[1] = torch.zeros(20, 5)
    swapped, twice = nn.LSTM(3, 5), nn.LSTM(3, 5)
    swapped._flat_weights_names[2:] = swapped._flat_weights_names[:1:-1]
    twice._flat_weights_names[3] = "bias_ih_l0"
    observed = nn.LSTM(3, 5)
    observed.register_forward_hook(torch.nn.init.zeros_)
    for name in ("bias_ih", "bias_hh"):  # not in the state dict
        cell.register_buffer(name, cell._parameters.pop(name).detach(), persistent=False)
    for module, words in (
        (short, "has num_layers=1, but its weights are those of num_layers=2"),
        (unbiased, "has bias=False, but its weights are those of bias=True"),
        (moved, "its _flat_weights differ from its parameters in weight_hh_l0"),
        (swapped, "_flat_weights_names are weight_ih_l0, weight_hh_l0, bias_hh_l0, bias_ih_l0, expected"),
        (twice, "bias_ih_l0, bias_ih_l0, expected .* bias_ih_l0, bias_hh_l0"),
        (observed, "it has forward hooks"),
        (cell, "has bias=True, but its weights are those of bias=False"),
    ):
        with pytest.raises(FormatError, match=words):
            io.load(module)


def test_a_cell_of_equinox_that_ignores_its_bias_is_refused(jax):
    eqx = pytest.importorskip("equinox")
    for kind in (eqx.nn.LSTMCell, eqx.nn.GRUCell):
        cell = kind(3, 5, key=jax.random.key(0))
        assert io.load(cell).params.keys() >= {"bias_ih_l0"}
        object.__setattr__(cell, "use_bias", False)
        with pytest.raises(FormatError, match="has bias=False, but its weights are those of bias=True"):
            io.load(cell)


def test_the_mode_of_a_module_of_torch_is_its_nonlinearity(torch):
    rnn = torch.nn.RNN(3, 5)
    rnn.nonlinearity = "relu"  # without effect in PyTorch
    assert io.load(rnn)._stack.cell.options() == io.load(torch.nn.RNN(3, 5))._stack.cell.options()


def test_a_compiled_module_of_torch_loads(torch):
    lstm = torch.nn.LSTM(3, 5, batch_first=True)
    assert io.load(torch.compile(lstm, backend="eager"))._stack.batch_first


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_module_of_torch_that_computes_the_same_loads(torch):
    nn = torch.nn

    class Sizes(nn.LSTM):
        """Subclass of LSTM with fixed sizes."""

        def __init__(self):
            super().__init__(3, 5, batch_first=True)

        def extra_repr(self):
            return "mine"

    normed = nn.utils.parametrizations.weight_norm(Sizes(), "weight_hh_l0")
    pruned = importlib.import_module("torch.nn.utils.prune").l1_unstructured(
        nn.LSTM(3, 5, batch_first=True), "weight_hh_l0", 0.5
    )
    packed = nn.LSTM(3, 5, batch_first=True)
    assert io.load(torch.jit.script(packed))._stack.hidden_size == 5
    packed.flatten_parameters = lambda: None
    x = torch.ones(2, 4, 3)
    for module in (Sizes(), normed, pruned, packed):
        with torch.no_grad():
            want = module(x)[0].numpy()
        np.testing.assert_allclose(io.load(module, batch_first=True)(x.numpy())[0], want, rtol=0, atol=1e-6)


def test_a_method_of_pytorch_that_is_replaced_for_all_is_refused(torch, monkeypatch):
    monkeypatch.setattr(torch.nn.LSTM, "forward", lambda *given: given[1])
    with pytest.raises(FormatError, match="forward of LSTM is not the method of LSTM"):
        io.load(torch.nn.LSTM(3, 5))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_program_with_a_class_of_its_own_is_refused(torch, tmp_path):
    own = torch_cases(torch)["Own is not a recurrent module"]
    type(own).forward = lambda self, x: x + self.weight_ih.sum()
    program = torch.jit.trace(torch.nn.Sequential(own), torch.zeros(2))
    with pytest.raises(FormatError, match="which is not a PyTorch class"):
        io.load(program)
    torch.jit.save(program, tmp_path / "program.pt")
    with pytest.raises(FormatError, match="may compute something else"):
        io.load(tmp_path / "program.pt")
    weights = io.arrays(tmp_path / "program.pt", "0")
    assert io.load(weights)._stack.hidden_size == 5


def test_modules_of_nnx_that_may_compute_something_else_are_refused():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

    class Cell(nnx.LSTMCell):
        def __call__(self, carry, x):
            return carry, x

    class Start(nnx.GRUCell):
        def initialize_carry(self, *arguments, **options):
            return super().initialize_carry(*arguments, **options) + 1

    class Runner(nnx.RNN):
        def __call__(self, *arguments, **options):
            return 2 * super().__call__(*arguments, **options)

    class Same(nnx.OptimizedLSTMCell):
        def __init__(self):
            super().__init__(3, 5, rngs=nnx.Rngs(0))

    for kind, word in ((Cell, "__call__ of Cell"), (Start, "initialize_carry of Start")):
        with pytest.raises(FormatError, match=word):
            io.load(kind(3, 5, rngs=nnx.Rngs(0)))
    with pytest.raises(FormatError, match="__call__ of Runner"):
        io.load(Runner(Same()))
    assert repr(io.load(Same())) == "LSTM(3, 5, num_layers=1)"


@pytest.mark.filterwarnings("ignore:carry_init is provided")
def test_parts_of_a_cell_of_nnx_that_may_compute_something_else_are_refused(jax):
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

    class Double(nnx.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    class Same(nnx.Linear):
        """Subclass without changes."""

    def replaced(kind):
        cell = nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0))
        cell.hf = kind(5, 5, rngs=nnx.Rngs(1))
        return cell

    def changed(**functions):
        cell = nnx.GRUCell(3, 5, rngs=nnx.Rngs(0))
        for name, function in functions.items():
            setattr(cell.dense_h, name, function)
        return cell

    for words, cell in {
        "__call__ of Double is not the method of Linear": replaced(Double),
        "conv_general_dilated=.*, expected None": replaced(
            lambda *sizes, rngs: nnx.Conv(*sizes, (), rngs=rngs)
        ),
        "dot_general=<lambda>, expected dot_general of jax": changed(dot_general=lambda *given: given[0]),
        "promote_dtype=.*, expected promote_dtype of flax": changed(promote_dtype=lambda *given: given),
        "carry_init=ones, expected None": nnx.OptimizedLSTMCell(
            3, 5, carry_init=jax.nn.initializers.ones, rngs=nnx.Rngs(0)
        ),
    }.items():
        for module in (cell, nnx.RNN(cell)):
            with pytest.raises(FormatError, match=words):
                io.load(module)
        assert io.load(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))._stack.hidden_size == 5
    assert io.load(replaced(Same))._stack.hidden_size == 5
    assert io.load(changed(kernel_init=lambda *given: given[0]))._stack.hidden_size == 5


def test_modules_of_equinox_that_may_compute_something_else_are_refused(jax):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")

    class Cell(eqx.nn.LSTMCell):
        def __call__(self, *given):
            return given[1]

    class Own(eqx.Module):
        weight_ih: jax.Array
        weight_hh: jax.Array
        bias: jax.Array

    class Same(eqx.nn.GRUCell):
        """Subclass without changes."""

    key = jax.random.key(0)
    cell = eqx.nn.LSTMCell(3, 5, key=key)
    with pytest.raises(FormatError, match="__call__ of Cell"):
        io.load(Cell(3, 5, key=key))
    with pytest.raises(FormatError, match="Own is not a recurrent module"):
        io.load(Own(cell.weight_ih, cell.weight_hh, cell.bias))
    assert repr(io.load(Same(3, 5, key=key))) == "GRU(3, 5, num_layers=1)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value, xp, tmp_path):
    ours = xplstm.LSTM(3, 5, rng=0)
    theirs = {name: np.array(a) for name, a in io.to_mapping(ours, "flax").items()}
    theirs["hf.kernel"][2, 3] = theirs["hf.kernel"][4, 1] = value
    path = tmp_path / "theirs.npz"
    np.savez(path, **theirs)
    word = rf"hf.kernel\[2, 3\] is {value}, one of 2 that are not finite; xplstm.io.arrays"
    with pytest.raises(FormatError, match=word):
        io.load(path)
    assert not np.isfinite(io.arrays(path)["hf.kernel"]).all()
    broken = {name: np.array(a) for name, a in ours.params.items()}
    broken["bias_hh_l0"][7] = value
    given = xp.arrays(broken)
    if not _array.is_lazy(given["bias_hh_l0"]):
        with pytest.raises(FormatError, match=rf"the mapping: .*bias_hh_l0\[7\] is {value}; "):
            io.load(given)
    ours.load_state_dict(broken)
    for save in (io.save, onnx.export) if importlib.util.find_spec("onnx") else ():
        network = [ours, tmp_path / "ours.onnx"][:: 1 if save is onnx.export else -1]
        with pytest.raises(ArgumentError, match=rf"(bias_hh_l0\[7|B_l0\[0, 32)\] is {value}; such"):
            save(*network)
    with pytest.raises(ArgumentError, match=rf"bias_hh_l0\[7\] is {value}; such"):
        ours.save(tmp_path / "ours.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.npz"]


def test_a_model_whose_weights_are_not_finite_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    model = xplstm.models.CharLM("abc", 8, rng=0)
    model.save(path)
    content = path.read_bytes()
    weight = np.asarray(next(a for name, a in model.params.items() if "weight_hh" in name))
    broken = content.replace(weight.tobytes(), np.full_like(weight, np.nan).tobytes())
    assert broken != content
    path.write_bytes(broken)
    with pytest.raises(FormatError, match=r"weight_hh_l0\[0, 0\] is nan, one of .* not finite"):
        io.load_model(path)
    model.params = {name: np.full_like(a, np.inf) for name, a in model.params.items()}
    with pytest.raises(ArgumentError, match="is inf, one of"):
        model.save(path)
    assert path.read_bytes() == broken


def test_names_with_a_prefix_are_pointed_out():
    ours = xplstm.LSTM(3, 5, rng=0)
    theirs = {f"net.rnn.{name}": a for name, a in ours.params.items()}
    words = r"arrays\(state_dict, 'net.rnn'\), or .*load\(state_dict, prefix='net.rnn'"
    with pytest.raises(ArgumentError, match=words):
        ours.load_state_dict(theirs | {"head.weight": np.ones(3)})
    ours.load_state_dict(io.arrays(theirs, "net.rnn"))
    del theirs["net.rnn.bias_hh_l0"]
    with pytest.raises(ArgumentError, match="bias_hh_l0 is missing") as raised:
        ours.load_state_dict(theirs)
    assert "xplstm.io" not in str(raised.value)


@pytest.mark.parametrize("write", [io.save, lambda path, network: onnx.export(network, path)])
def test_a_missing_folder_is_named_and_no_temporary_file(write, tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "missing" / "ours.onnx"
    with pytest.raises(FileNotFoundError) as raised:
        write(path, xplstm.LSTM(3, 5, rng=0))
    assert raised.value.filename == str(path)
    assert ".tmp" not in str(raised.value)
