"""Each erratum of docs/errata.md, shown by running a reconstruction that has the same fault.

The reconstructions are written again from what the documents' code computes;
names are kept only where the name is the fault.
"""

from __future__ import annotations

import argparse
import doctest
import json
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import xplstm
from xplstm.cli import example
from xplstm.models import CharLM

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


def record(name):
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def array(entry):
    return np.array([float(v) for v in entry["data"]]).reshape(entry["shape"])


def logistic(z):
    return 1 / (1 + np.exp(-z))


def layer(rng, input_size, hidden_size, scale=0.5):
    """Return distinct random parameters with the gates in the order i, f, g, o."""
    shapes = [(4 * hidden_size, input_size), (4 * hidden_size, hidden_size), 4 * hidden_size, 4 * hidden_size]
    return xplstm.LSTMParams(*(rng.uniform(-scale, scale, shape) for shape in shapes))


def pasted(text):
    """Compile the text of a page whose indentation is lost."""
    return compile(text, "<page>", "exec")


@pytest.mark.parametrize(
    "text",
    [
        "def gate(z):\nreturn 1 / (1 + z)",
        "class Layer(object):\ndef __init__(self, width):\nself.width = width",
        "for step in range(3):\nstate = step",
        "class Elman(Module): def __init__(self): super().__init__()",
    ],
)
def test_code_without_its_indentation_does_not_compile(text):
    with pytest.raises(SyntaxError):
        pasted(text)


# ---- 000 and 004: one class, its gates on [h, x] -------------------------------------------------


def concatenated_step(weights, biases, x, h, c):
    """Run one step on column vectors; `weights` are f, i, C, o, each (H, H + I) for h above x."""
    hx = np.vstack((h, x))
    f, i, candidate, o = (w @ hx + b for w, b in zip(weights, biases, strict=True))
    c = logistic(f) * c + logistic(i) * np.tanh(candidate)
    return logistic(o) * np.tanh(c), c


def concatenated_sequence(weights, biases, xs, hidden_size):
    h = c = np.zeros((hidden_size, 1))
    rows = []
    for x in xs:
        h, c = concatenated_step(weights, biases, x.reshape(-1, 1), h, c)
        rows.append(h)
    return np.hstack(rows).T


def hx_layer(rng, input_size, hidden_size):
    weights = [rng.standard_normal((hidden_size, hidden_size + input_size)) for _ in range(4)]
    biases = [rng.standard_normal((hidden_size, 1)) for _ in range(4)]
    order = (1, 0, 2, 3)
    rows = np.concatenate([weights[k] for k in order])
    bias = np.concatenate([biases[k] for k in order])[:, 0]
    ours = xplstm.LSTMParams(
        rows[:, hidden_size:].copy(), rows[:, :hidden_size].copy(), bias, np.zeros(4 * hidden_size)
    )
    return weights, biases, ours


def test_000_equations_are_ours():
    rng = np.random.default_rng(0)
    weights, biases, ours = hx_layer(rng, 3, 5)
    xs = rng.standard_normal((4, 3))
    y, _ = xplstm.lstm(xs[:, None, :], ours)
    np.testing.assert_allclose(concatenated_sequence(weights, biases, xs, 5), y[:, 0, :], rtol=0, atol=1e-14)


def test_000_sigmoid_overflows_and_ours_does_not():
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert logistic(np.float64(-1000.0)) == 0
    ours = xplstm.LSTMParams(np.full((4, 1), -1000.0), np.zeros((4, 1)), np.zeros(4), np.zeros(4))
    y, _ = xplstm.lstm(np.ones((1, 1, 1)), ours)
    assert y[0, 0, 0] == 0


def test_000_sequence_of_no_steps_fails_and_ours_does_not():
    weights, biases, ours = hx_layer(np.random.default_rng(1), 3, 5)
    with pytest.raises(ValueError, match="at least one array"):
        concatenated_sequence(weights, biases, np.zeros((0, 3)), 5)
    y, _ = xplstm.lstm(np.zeros((0, 2, 3)), ours)
    assert y.shape == (0, 2, 5)


# ---- 001: forward, backward, update --------------------------------------------------------------


class ColumnLayer:
    """Layer of document 001 with Wh, Wx and b per gate, and a backward pass with selected faults."""

    def __init__(self, rng, input_size, hidden_size, scale):
        self.w = {}
        for gate in "fioc":
            self.w[f"W{gate}h"] = rng.uniform(-scale, scale, (hidden_size, hidden_size))
            self.w[f"W{gate}x"] = rng.uniform(-scale, scale, (hidden_size, input_size))
            self.w[f"b{gate}"] = rng.uniform(-scale, scale, (hidden_size, 1))
        self.hidden_size = hidden_size

    def forward(self, xs):
        zero = np.zeros((self.hidden_size, 1))
        self.h, self.c, self.gates = [zero], [zero], [{}]
        for x in xs:
            z = {k: self.w[f"W{k}h"] @ self.h[-1] + self.w[f"W{k}x"] @ x + self.w[f"b{k}"] for k in "fioc"}
            a = {k: np.tanh(v) if k == "c" else logistic(v) for k, v in z.items()}
            self.c.append(a["f"] * self.c[-1] + a["i"] * a["c"])
            self.h.append(a["o"] * np.tanh(self.c[-1]))
            self.gates.append(a)
        return self.h[-1]

    def deltas(self, dh, cell_path):
        """Return dz of each gate at each step; as printed, dc of the next step is missing."""
        steps, dc = {}, 0.0
        for k in range(len(self.h) - 1, 0, -1):
            a, tanh_c = self.gates[k], np.tanh(self.c[k])
            dc = dh * a["o"] * (1 - tanh_c**2) + (dc if cell_path else 0.0)
            steps[k] = {
                "o": dh * tanh_c * a["o"] * (1 - a["o"]),
                "f": dc * self.c[k - 1] * a["f"] * (1 - a["f"]),
                "i": dc * a["c"] * a["i"] * (1 - a["i"]),
                "c": dc * a["i"] * (1 - a["c"] ** 2),
            }
            dh = sum(self.w[f"W{gate}h"].T @ delta for gate, delta in steps[k].items())
            dc = dc * a["f"]
        return steps

    def gradients(self, xs, dh, *, cell_path=False, own_bias=False, every_input=False):
        steps = self.deltas(dh, cell_path)
        last = max(steps)
        result = {}
        for gate in "fioc":
            bias_of = "f" if gate in "io" and not own_bias else gate
            inputs = steps if every_input else [last]
            result[f"W{gate}h"] = sum(steps[k][gate] @ self.h[k - 1].T for k in steps)
            result[f"W{gate}x"] = sum(steps[k][gate] @ xs[k - 1].T for k in inputs)
            result[f"b{gate}"] = sum(steps[k][bias_of] for k in steps)
        return result

    def differences(self, xs, dh, eps=1e-6):
        """Return central differences of sum(dh * h_T), because in 001 only the last step has a loss."""
        result = {}
        for name, w in self.w.items():
            result[name] = np.empty_like(w)
            for k in np.ndindex(w.shape):
                kept = w[k]
                ends = []
                for w[k] in (kept + eps, kept - eps):
                    ends.append(np.sum(dh * self.forward(xs)))
                w[k] = kept
                result[name][k] = (ends[0] - ends[1]) / (2 * eps)
        self.forward(xs)
        return result


REPAIRED = {"cell_path": True, "own_bias": True, "every_input": True}


def wrong_gradients(T, **repairs):
    """Return the gradients that differ from finite differences of the layer's own forward pass."""
    rng = np.random.default_rng(T)
    built = ColumnLayer(rng, 3, 2, scale=0.5)
    xs = [np.array([[1.0], [2.0], [3.0]]) + t for t in range(T)]
    dh = np.array([[1.0], [2.0]])
    expected = built.differences(xs, dh)
    got = built.gradients(xs, dh, **repairs)
    return {name for name in expected if np.abs(got[name] - expected[name]).max() > 1e-7}


@pytest.mark.parametrize("T", [1, 2, 3, 5])
def test_001_full_formula_agrees_with_differences(T):
    assert wrong_gradients(T, **REPAIRED) == set()


def test_001_backward_leaves_out_the_path_through_the_cell_state():
    without = REPAIRED | {"cell_path": False}
    assert wrong_gradients(1, **without) == set()
    # At T = 2 from zero states, step 1 has h_0 = c_0 = 0: only its gradients with respect to i and c
    # through x and the biases remain, and these lack dc_2 * f_2.
    assert wrong_gradients(2, **without) == {"Wix", "Wcx", "bi", "bc"}
    assert wrong_gradients(3, **without) == {f"W{g}{k}" for g in "fic" for k in "hx"} | {"Wox"} | {
        f"b{g}" for g in "fioc"
    }


def test_001_what_is_left_out_is_exactly_the_cell_path():
    rng = np.random.default_rng(7)
    built = ColumnLayer(rng, 3, 2, scale=0.5)
    xs = [np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [3.0], [4.0]])]
    dh = np.array([[1.0], [2.0]])
    built.forward(xs)
    printed, full = (built.deltas(dh, cell_path) for cell_path in (False, True))
    a = built.gates
    dc_2 = dh * a[2]["o"] * (1 - np.tanh(built.c[2]) ** 2)
    missing = dc_2 * a[2]["f"]
    np.testing.assert_allclose(
        full[1]["i"] - printed[1]["i"], missing * a[1]["c"] * a[1]["i"] * (1 - a[1]["i"]), rtol=1e-12
    )
    np.testing.assert_allclose(
        full[1]["c"] - printed[1]["c"], missing * a[1]["i"] * (1 - a[1]["c"] ** 2), rtol=1e-12
    )
    for gate in "fioc":
        np.testing.assert_array_equal(full[2][gate], printed[2][gate])
    np.testing.assert_array_equal(full[1]["o"], printed[1]["o"])


def test_001_bias_gradients_of_i_and_o_are_those_of_f():
    assert wrong_gradients(2, **REPAIRED | {"own_bias": False}) == {"bi", "bo"}
    # One step from c_0 = 0: delta_f is 0, so the biases of i and o would never learn.
    built = ColumnLayer(np.random.default_rng(0), 3, 2, scale=0.5)
    xs, dh = [np.array([[1.0], [2.0], [3.0]])], np.array([[1.0], [2.0]])
    built.forward(xs)
    printed = built.gradients(xs, dh)
    assert not printed["bi"].any()
    assert not printed["bo"].any()


def test_001_input_weight_gradients_see_only_the_last_step():
    without = REPAIRED | {"every_input": False}
    assert wrong_gradients(1, **without) == set()
    assert wrong_gradients(2, **without) == {"Wix", "Wox", "Wcx"}
    assert wrong_gradients(3, **without) == {"Wfx", "Wix", "Wox", "Wcx"}


def test_001_our_gradients_are_the_full_ones():
    built = ColumnLayer(np.random.default_rng(3), 3, 2, scale=0.5)
    xs = [np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [3.0], [4.0]])]
    dh = np.array([[1.0], [2.0]])
    expected = built.differences(xs, dh)
    stacked = {
        part: np.concatenate([built.w[part.format(g)] for g in "ifco"]) for part in ("W{}x", "W{}h", "b{}")
    }
    ours = xplstm.LSTMParams(stacked["W{}x"], stacked["W{}h"], stacked["b{}"][:, 0], np.zeros(8))
    x = np.stack([column.T for column in xs])
    y, _, pullback = xplstm.lstm_vjp(x, ours)
    np.testing.assert_allclose(y[-1, 0], built.h[-1][:, 0], rtol=0, atol=1e-15)
    _, _, dparams = pullback(np.zeros_like(y), xplstm.LSTMState(dh.T, np.zeros((1, 2))))
    for got, part in ((dparams.weight_ih, "W{}x"), (dparams.weight_hh, "W{}h"), (dparams.bias_ih, "b{}")):
        want = np.concatenate([expected[part.format(g)] for g in "ifco"]).reshape(got.shape)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8)


# The weight that each line of the printed update() changes, and the attribute that it reads for it.
UPDATE = {
    "Wfh": "Whf_grad",
    "Wfx": "Whx_grad",
    "bf": "bf_grad",
    "Wih": "Whi_grad",
    "Wix": "Whi_grad",
    "bi": "bi_grad",
    "Woh": "Wof_grad",
    "Wox": "Wox_grad",
    "bo": "bo_grad",
    "Wch": "Wcf_grad",
    "Wcx": "Wcx_grad",
    "bc": "bc_grad",
}


class Attributes:
    """Weights and gradients as attributes, as in document 001, with the printed update."""

    def __init__(self, built, gradients):
        for name, w in built.w.items():
            setattr(self, name, w.copy())
            setattr(self, f"{name}_grad", gradients[name])

    def update(self, learning_rate=1e-3):
        for weight, gradient in UPDATE.items():
            setattr(self, weight, getattr(self, weight) - learning_rate * getattr(self, gradient))


def attributes(input_size, hidden_size):
    built = ColumnLayer(np.random.default_rng(0), input_size, hidden_size, scale=0.5)
    xs = [np.full((input_size, 1), 1.0 + t) for t in range(2)]
    built.forward(xs)
    return Attributes(built, built.gradients(xs, np.ones((hidden_size, 1)), **REPAIRED))


def test_001_update_reads_gradients_that_do_not_exist():
    holder = attributes(3, 2)
    missing = {name for name in UPDATE.values() if not hasattr(holder, name)}
    assert missing == {"Whf_grad", "Whx_grad", "Whi_grad", "Wof_grad", "Wcf_grad"}
    with pytest.raises(AttributeError, match="Whf_grad"):
        holder.update()


def rename_gradients(holder):
    """Give the misspelt names the gradient that the line probably means."""
    for weight, printed in UPDATE.items():
        if weight != "Wix" and not hasattr(holder, printed):
            setattr(holder, printed, getattr(holder, f"{weight}_grad"))
    return holder


def test_001_update_of_Wix_takes_the_gradient_of_another_matrix():
    with pytest.raises(ValueError, match="broadcast"):
        rename_gradients(attributes(3, 2)).update()
    silent = rename_gradients(attributes(2, 2))
    before = silent.Wix.copy()
    silent.update(learning_rate=1.0)
    np.testing.assert_allclose(before - silent.Wix, silent.Wih_grad)
    assert np.abs(silent.Wih_grad - silent.Wix_grad).max() > 1e-3


def test_001_return_over_two_lines_ends_at_the_first():
    names = {}
    exec("def per_step():\n    return 'Wfh', 'bf', 'Wih', 'bi',\n    'Woh', 'bo', 'Wch', 'bc'", names)
    with pytest.raises(ValueError, match="expected 8, got 4"):
        _a, _b, _c, _d, _e, _f, _g, _h = names["per_step"]()


def test_001_relu_cannot_take_an_array():
    z = np.array([[1.0], [-2.0]])
    with pytest.raises(ValueError, match="ambiguous"):
        max(0, z)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(z > 0)


def test_001_tanh_by_exponentials_cancels_and_overflows():
    def printed_tanh(z):
        return 2.0 / (1.0 + np.exp(-2 * z)) - 1.0

    # 001's own weights of size 1e-4 keep z where this loses half of the digits.
    z = np.float64(1e-9)
    assert abs(printed_tanh(z) / np.tanh(z) - 1) > 1e-9
    assert printed_tanh(np.float64(1e-17)) == 0
    with pytest.warns(RuntimeWarning, match="overflow"):
        printed_tanh(np.float64(-400.0))


# ---- 002: a script with slips, and a product of the wrong kind -----------------------------------

SCRIPT = """
import numpy as np
rng = np.random
rng.seed(0)
def squash(v):
    return 1 / (1 + np.exp(-v))
input_feature, out_feature = 6, 7
one_hot = np.eye(6, dtype=int)
history = []
C = np.zeros((out_feature,))
h = np.zeros((out_featrue,))
wide = lambda: rng.random((out_feature, out_feature + input_featur))
Wf, Wi, Wc, Wo = wide(), wide(), wide(), wide()
bf = rng.randmom((out_feature,))
bi = rng.randmom((out_feature,))
bc = rng.randmom((out_feature,))
bo = rng.randmom((out_feature, out_feature))
for x in one_hot:
    hx = np.concatenate([h, x], axis=0)
    f, i, candidate = squash(Wf @ hx + bf), squash(Wi @ hx + bi), np.tanh(Wc @ hx + bc)
    C = f * C + i * candidate
    o = squash(Wo @ hx + b0)
    h = np.dot(o, np.tanh(C)
    history.append(h)
history = np.array(history)
"""

# Each slip, what repairs it, and the error that it raises while those before it are repaired.
SLIPS = [
    ("h = np.dot(o, np.tanh(C)", "h = np.dot(o, np.tanh(C))", SyntaxError, "was never closed"),
    ("out_featrue", "out_feature", NameError, "out_featrue"),
    ("input_featur)", "input_feature)", NameError, "input_featur"),
    ("randmom", "random", AttributeError, "randmom"),
    ("+ b0", "+ bo", NameError, "b0"),
]


def run_script(repairs):
    source = SCRIPT
    for wrong, right in repairs:
        assert wrong in source
        source = source.replace(wrong, right)
    names = {}
    exec(compile(source, "<script>", "exec"), names)
    return names


@pytest.mark.parametrize("k", range(len(SLIPS)), ids=[slip[0] for slip in SLIPS])
def test_002_slip_stops_the_script(k):
    with pytest.raises(SLIPS[k][2], match=SLIPS[k][3]):
        run_script([slip[:2] for slip in SLIPS[:k]])


SPELLING = [slip[:2] for slip in SLIPS]
ONE_BIAS = ("bo = rng.random((out_feature, out_feature))", "bo = rng.random((out_feature,))")
UNIT_BY_UNIT = ("np.dot(o, np.tanh(C))", "o * np.tanh(C)")


def test_002_square_bias_of_o_turns_the_output_gate_into_a_matrix():
    names = run_script(SPELLING)
    assert names["bo"].shape == names["o"].shape == (7, 7)
    # Nothing fails: a matrix times tanh(C) is a vector again, and leaves the range of an LSTM's h.
    assert names["history"].shape == (6, 7)
    assert np.abs(names["history"]).max() > 1


def test_002_dot_of_gate_and_cell_is_one_number():
    with pytest.raises(ValueError, match="zero-dimensional"):
        run_script([*SPELLING, ONE_BIAS])


def test_002_repaired_script_is_ours():
    names = run_script([*SPELLING, ONE_BIAS, UNIT_BY_UNIT])
    rows = np.concatenate([names[k] for k in ("Wi", "Wf", "Wc", "Wo")])
    bias = np.concatenate([names[k] for k in ("bi", "bf", "bc", "bo")])
    ours = xplstm.LSTMParams(rows[:, 7:].copy(), rows[:, :7].copy(), bias, np.zeros(28))
    y, _ = xplstm.lstm(np.eye(6)[:, None, :], ours)
    np.testing.assert_allclose(names["history"], y[:, 0, :], rtol=0, atol=1e-14)


def test_002_pytorch_cell_is_ours():
    """The CPU path of the cell that 002 quotes has the gates i, f, g, o, and returns (h, c)."""
    rng = np.random.default_rng(2)
    ours = layer(rng, 3, 2)
    x, h, c = rng.standard_normal((4, 3)), rng.standard_normal((4, 2)), rng.standard_normal((4, 2))
    z = x @ ours.weight_ih.T + ours.bias_ih + h @ ours.weight_hh.T + ours.bias_hh
    i, f, g, o = np.split(z, 4, axis=1)
    c_1 = logistic(f) * c + logistic(i) * np.tanh(g)
    h_1 = logistic(o) * np.tanh(c_1)
    _, state = xplstm.lstm(x[None], ours, (h, c))
    np.testing.assert_allclose(state.h, h_1, rtol=0, atol=1e-15)
    np.testing.assert_allclose(state.c, c_1, rtol=0, atol=1e-15)


# ---- 003: the worked example, and the chapter's torch code ----------------------------------------


def printed_example():
    """Run the program printed with the worked example, which slices four numbers like eight."""
    inputs = {name: array(a) for name, a in record("worked-example-transcript")["inputs"].items()}
    h, c = inputs["h_0"][0, 0], inputs["c_0"][0, 0]
    z = (
        inputs["weight_ih_l0"] @ inputs["x"][0, 0]
        + inputs["bias_ih_l0"]
        + inputs["weight_hh_l0"] @ h
        + inputs["bias_hh_l0"]
    )
    return z, [z[0:2], z[2:4], z[4:6], z[6:8]], c


def test_003_worked_example_stops_at_two_empty_gates():
    transcript = record("worked-example-transcript")
    z, (i, f, g, o), c = printed_example()
    np.testing.assert_allclose(z, array(transcript["outputs"]["z"]), rtol=0, atol=1e-15)
    assert [part.shape for part in (i, f, g, o)] == [(2,), (2,), (0,), (0,)]
    (fault,) = transcript["errors"]
    assert (fault["expected"], fault["given"]) == ([2], [0])
    with pytest.raises(ValueError, match="broadcast"):
        logistic(f) * c + logistic(i) * np.tanh(g)


def test_003_worked_example_literal_shapes_are_refused():
    literal = record("worked-example-literal")
    lstm = xplstm.LSTM(3, 2, dtype="float64")
    given = {name: array(a) for name, a in literal["inputs"].items() if name in lstm.params}
    with pytest.raises(xplstm.ShapeError) as refusal:
        lstm.load_state_dict(given)
    for fault in literal["errors"]:
        line = next(line for line in str(refusal.value).splitlines() if fault["argument"] in line)
        assert str(tuple(fault["expected"])) in line
        assert str(tuple(fault["given"])) in line


def test_003_worked_example_command_states_the_published_numbers():
    published = record("worked-example-repaired")["outputs"]
    for name, exact in example.EXACT.items():
        if name.startswith("z_"):
            z = record("worked-example-transcript")["outputs"]["z"]["data"]
            assert exact == (z["ifgo".index(name[2])],) * 2
            continue
        numbers = published[{"c": "c_n", "h": "h_n"}.get(name, name)]["data"]
        for shown, number in zip(exact, numbers, strict=True):
            assert abs(Decimal(shown) - Decimal(number)) <= Decimal("5e-21")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_003_worked_example_command_finds_every_number(dtype, capsys):
    assert example.run(argparse.Namespace(backend="numpy", dtype=dtype)) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" u")]
    assert len(rows) == 2 * len(example.EXACT)
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("wrong", ["0.16999999999999", "0.17000000000001"])
def test_003_worked_example_command_fails_on_a_wrong_number(wrong, monkeypatch, capsys):
    monkeypatch.setitem(example.EXACT, "z_f", ("0.17", wrong))
    assert example.run(argparse.Namespace(backend="numpy", dtype="float64")) == 1
    assert "NOT within 8 u" in capsys.readouterr().out


def test_003_last_step_of_the_reversed_direction_has_seen_one_input(torch):
    torch.manual_seed(0)
    backward = torch.nn.RNN(3, 2, batch_first=True)

    def backward_half_of_the_last_step(x):
        out, _ = backward(torch.flip(x, [1]))
        return torch.flip(out, [1])[:, -1, :]

    x = torch.randn(4, 5, 3)
    other = torch.cat((torch.randn(4, 4, 3), x[:, -1:]), dim=1)
    torch.testing.assert_close(
        backward_half_of_the_last_step(x), backward_half_of_the_last_step(other), rtol=0, atol=0
    )
    one_step, _ = backward(x[:, -1:])
    torch.testing.assert_close(backward_half_of_the_last_step(x), one_step[:, 0])


def test_003_our_final_state_of_the_reversed_direction_has_seen_all():
    rng = np.random.default_rng(4)
    lstm = xplstm.LSTM(3, 2, bidirectional=True, dtype="float64", rng=4)
    x = rng.standard_normal((5, 4, 3))
    other = x.copy()
    other[:-1] = rng.standard_normal((4, 4, 3))
    (y, (h_n, _)), (y_other, (h_other, _)) = lstm(x), lstm(other)
    np.testing.assert_array_equal(y[-1, :, 2:], y_other[-1, :, 2:])
    assert np.abs(h_n[1] - h_other[1]).min() > 1e-3
    np.testing.assert_array_equal(h_n[1], y[0, :, 2:])


def packed_run(torch, rnn, sequences, lengths):
    """Handle ragged batches as document 003 does: sort, pack, run and unpack without restoring the order."""
    ordered, indices = lengths.sort(descending=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(sequences[indices], ordered, batch_first=True)
    out, hidden = rnn(packed)
    return torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0], hidden, indices


def test_003_ragged_batch_comes_back_in_another_order(torch):
    torch.manual_seed(1)
    rnn = torch.nn.RNN(3, 2, batch_first=True)
    sequences, lengths = torch.randn(4, 5, 3), torch.tensor([2, 5, 1, 4])
    _, hidden, indices = packed_run(torch, rnn, sequences, lengths)
    alone = torch.stack([rnn(row[None, :n])[1][0, 0] for row, n in zip(sequences, lengths, strict=True)])
    torch.testing.assert_close(hidden[0], alone[indices])
    assert (hidden[0] - alone).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="greater than 0"):
        packed_run(torch, rnn, sequences, torch.tensor([2, 0, 1, 4]))


def test_003_our_ragged_batch_keeps_its_order_and_takes_empty_rows():
    rng = np.random.default_rng(5)
    ours = layer(rng, 3, 2)
    x, lengths = rng.standard_normal((5, 4, 3)), [2, 0, 1, 5]
    _, (h_n, _) = xplstm.lstm(x, ours, lengths=lengths)
    for b, n in enumerate(lengths):
        _, (alone, _) = xplstm.lstm(x[:n, b : b + 1], ours)
        np.testing.assert_allclose(h_n[b], alone[0], rtol=0, atol=1e-15)


def test_003_function_on_a_comment_line_is_never_defined():
    names = {}
    exec("# ragged rows from rnn import pack def run(model, rows): return model(rows)", names)
    assert "run" not in names


def character_model(torch):
    """Return the CharLSTM of document 003, whose output has one row for each step and batch entry."""
    torch.manual_seed(2)
    table, lstm, head = (
        torch.nn.Embedding(5, 6),
        torch.nn.LSTM(6, 6, 2, batch_first=True),
        torch.nn.Linear(6, 5),
    )

    def forward(ids, state):
        out, state = lstm(table(ids), state)
        return head(out.contiguous().view(-1, 6)), state

    return forward


def sample(torch, model, fed, state, temperature=0.8):
    scores, state = model(fed, state)
    probabilities = torch.softmax(scores / temperature, dim=1).squeeze()
    return torch.multinomial(probabilities, 1).item(), state


def printed_generation(torch, model, prompt, length):
    """Run the loop of document 003, which feeds only the last character of the prompt."""
    torch.manual_seed(3)
    ids, state = list(prompt), None
    with torch.no_grad():
        for _ in range(length):
            new, state = sample(torch, model, torch.tensor([[ids[-1]]]), state)
            ids.append(new)
    return ids[len(prompt) :]


def test_003_generation_ignores_the_prompt_but_its_last_character(torch):
    model = character_model(torch)
    assert printed_generation(torch, model, [0, 1, 2, 3], 20) == printed_generation(
        torch, model, [4, 4, 3], 20
    )
    prompts = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 4, 2, 3]])
    with torch.no_grad():
        read, other = (model(prompt, None)[0][-1] for prompt in prompts)
    assert (read - other).abs().max() > 1e-3


def test_003_flattened_output_cannot_sample_after_more_than_one_step(torch):
    model = character_model(torch)
    with torch.no_grad(), pytest.raises(RuntimeError, match="4 elements"):
        sample(torch, model, torch.tensor([[0, 1, 2, 3]]), None)


def test_003_our_generation_reads_the_whole_prompt():
    model = CharLM("abcde", 6, rng=2)
    for a in (*model.lstm.params.values(), *model.linear.params.values()):
        a *= 8  # untrained weights hardly remember
    assert model.generate("abcd", 20, rng=3) != model.generate("eed", 20, rng=3)


TRANSLATOR = """
import torch
class Decoder(torch.nn.Module):
    def __init__(self, words, width):
        super().__init__()
        self.table = torch.nn.Embedding(words, width)
        self.lstm = torch.nn.LSTM(width, width, batch_first=True)
        self.head = torch.nn.Linear(width, words)
    def forward(self, state, target, ratio=0.5):
        scores = torch.zeros(target.size(0), target.size(1), self.head.out_features)
        word = target[:, 0]
        for t in range(1, target.size(1)):
            out, state = self.lstm(self.table(word.unsqueeze(1)), state)
            scores[:, t] = self.head(out.squeeze(1))
            word = target[:, t] if random.random() < ratio else scores[:, t].argmax(1)
        return scores
"""


def test_003_translator_uses_a_module_that_it_never_imports(torch):
    names = {}
    exec(compile(TRANSLATOR, "<translator>", "exec"), names)
    decoder = names["Decoder"](7, 4)
    state, target = (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)), torch.ones(3, 5, dtype=torch.int64)
    with pytest.raises(NameError, match="random"):
        decoder(state, target)
    names["random"] = __import__("random")
    scores = decoder(state, target)
    # Position 0 is never predicted: a loss over all positions counts uniform guesses there.
    assert not scores[:, 0].any()
    assert scores[:, 1:].abs().min() > 0


# ---- The pages --------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")


class NearlyEqual(doctest.OutputChecker):
    """Equal up to 8 u of float64, because processors round differently; all other text is equal."""

    def check_output(self, want, got, optionflags):
        wanted, given = ([float(v) for v in NUMBER.findall(text)] for text in (want, got))
        same_text = super().check_output(NUMBER.sub("#", want), NUMBER.sub("#", got), optionflags)
        return same_text and all(abs(w - g) <= 8 * 2.0**-53 for w, g in zip(wanted, given, strict=True))


def test_worked_example_page_shows_what_runs():
    page = (DOCS / "worked_example.md").read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(page, {}, "worked_example", "worked_example.md", 0)
    assert len(examples.examples) > 20
    runner = doctest.DocTestRunner(NearlyEqual(), optionflags=doctest.NORMALIZE_WHITESPACE)
    printed = []
    runner.run(examples, out=printed.append)
    assert runner.failures == 0, "".join(printed)


def test_errata_page_names_every_test_and_no_other():
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "errata.md").read_text(encoding="utf-8")))
    here = {name for name in globals() if name.startswith("test_")}
    assert named <= here
    assert {name for name in here if re.match(r"test_00[0-4]_(?!worked_example_command)", name)} <= named
