"""Compare random configurations with PyTorch: outputs, states and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import Answer, Case, kernels, run

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.backend("torch"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]

KERNELS = kernels()


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    H = int(rng.integers(2, 9))
    options: dict[str, Any] = {
        "num_layers": int(rng.integers(1, 4)),
        "bias": bool(rng.integers(2)),
        "bidirectional": bool(rng.integers(2)),
        "batch_first": bool(rng.integers(2)),
        "proj_size": int(rng.integers(0, H)),
    }
    T, B = int(rng.integers(1, 12)), int(rng.integers(1, 8))
    lengths = rng.integers(0, T + 1, size=B).tolist() if rng.integers(2) else None
    return Case(T=T, B=B, I=int(rng.integers(1, 7)), H=H, options=options, lengths=lengths, seed=seed)


def torch_answer(case: Case, lstm: xplstm.LSTM, arrays: dict[str, np.ndarray]) -> Answer:
    """Return PyTorch's results; ragged batches run entry by entry, because packing refuses length 0."""
    module = torch.nn.LSTM(case.I, case.H, **case.options).double()
    module.load_state_dict({k: torch.tensor(v) for k, v in lstm.params.items()})
    a = {k: torch.tensor(v, requires_grad=True) for k, v in arrays.items()}
    time = 1 if case.options["batch_first"] else 0
    lengths = case.lengths or [case.T] * case.B
    ys, hs, cs = [], [], []
    for b, n in enumerate(lengths):
        x = a["x"].select(1 - time, b)[:n]
        h, c = a["h_0"][:, b], a["c_0"][:, b]
        y = x.new_zeros((0, case.output_size * case.directions))
        if n:
            y, (h, c) = module(x, (h.contiguous(), c.contiguous()))
        ys.append(torch.cat([y, y.new_zeros((case.T - n, y.shape[1]))]))
        hs.append(h)
        cs.append(c)
    y, h_n, c_n = torch.stack(ys, 1 - time), torch.stack(hs, 1), torch.stack(cs, 1)
    ((y * a["dy"]).sum() + (h_n * a["dh_n"]).sum() + (c_n * a["dc_n"]).sum()).backward()
    dparams = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in module.named_parameters()}
    found = Answer(y.detach(), h_n.detach(), c_n.detach(), a["x"].grad, a["h_0"].grad, a["c_0"].grad, dparams)
    return found


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(40))
def test_float64(seed: int, kernel: str) -> None:
    case = random_case(seed)
    lstm, arrays = case.lstm(), case.arrays()
    want = torch_answer(case, lstm, arrays).flat()
    laid_out = {k: np.asfortranarray(a) for k, a in arrays.items()}
    with xplstm.use_kernel(kernel):
        got = run(lstm, laid_out, **case.valid()).flat()
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value.numpy(), rtol=0, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(20))
def test_float32_within_8_units_of_the_scale(seed: int, kernel: str) -> None:
    case = random_case(seed)
    arrays = {k: a.astype(np.float32) for k, a in case.arrays().items()}
    lstm = case.lstm(dtype="float32")
    wide = case.lstm(dtype="float32").to(dtype="float64")
    want = torch_answer(case, wide, {k: a.astype(np.float64) for k, a in arrays.items()}).flat()
    with xplstm.use_kernel(kernel):
        got = run(lstm, arrays, **case.valid()).flat()
    for key, value in want.items():
        exact = value.numpy()
        bound = 8 * np.finfo(np.float32).eps * max(1.0, float(np.abs(exact).max(initial=0)))
        np.testing.assert_allclose(got[key], exact, rtol=0, atol=bound, err_msg=key)


def test_a_torch_state_dict_loads_as_it_is() -> None:
    module = torch.nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    lstm = xplstm.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    lstm.load_state_dict(module.state_dict())
    x = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    with torch.no_grad():
        want, _ = module(torch.tensor(x))
    np.testing.assert_allclose(lstm(x)[0], want.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_resets_are_those_of_a_loop_over_cells(kernel: str) -> None:
    """PyTorch users write such a loop: zero the state of some entries before each step."""
    case = Case(T=12, B=5, options={"batch_first": False})
    reset = np.random.default_rng(0).random((case.T, case.B)) < 0.3
    module, arrays = case.lstm(), case.arrays()
    cell = torch.nn.LSTMCell(case.I, case.H).double()
    cell.load_state_dict({name.removesuffix("_l0"): torch.tensor(a) for name, a in module.params.items()})
    a = {name: torch.tensor(value, requires_grad=True) for name, value in arrays.items()}
    h, c, ys = a["h_0"][0], a["c_0"][0], []
    for x_t, now in zip(a["x"], torch.tensor(reset), strict=True):
        h, c = cell(x_t, tuple(torch.where(now[:, None], torch.zeros_like(s), s) for s in (h, c)))
        ys.append(h)
    y = torch.stack(ys)
    ((y * a["dy"]).sum() + (h * a["dh_n"][0]).sum() + (c * a["dc_n"][0]).sum()).backward()
    gradients = {f"{name}_l0": p.grad for name, p in cell.named_parameters()}
    want = Answer(y, h[None], c[None], a["x"].grad, a["h_0"].grad, a["c_0"].grad, gradients).flat()
    with xplstm.use_kernel(kernel):
        got = run(module, arrays, reset=reset).flat()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value.detach().numpy(), rtol=0, atol=1e-12, err_msg=name)
