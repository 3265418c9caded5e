"""Run CuPy's kernels on NumPy arrays, which are copied to the substitute for CuPy and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.cuda_emulation import standin
from xplstm import _dispatch
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm.cells.params import each
from xplstm.kernels import cupy_block, cupy_elementwise, cupy_fused, cupy_persistent

ROOMS = {"cupy_fused": cupy_fused, "cupy_persistent": cupy_persistent, "cupy_block": cupy_block}
"""Those with CUDA sources of their own."""
DEVICE = standin.Device(1)


def there(problem: Problem) -> Problem:
    return problem._replace(backend="cupy", device=DEVICE, xp=standin.LIBRARY)


def moved(a: Any) -> Any:
    return None if a is None else standin.asarray(a)


def emulated(name: str) -> _dispatch.Kernel:
    """Return the kernel on the substitute's second device; it must not change its arguments."""
    room = {**ROOMS, "cupy_elementwise": cupy_elementwise}[name]

    def prepare(problem: Problem, params: Any) -> Any:
        with DEVICE:
            return room.prepare(there(problem), tuple(each(moved, p) for p in params))

    def forward(problem: Problem, packed: Any, x: Any, state: LSTMState, *flags: Any) -> Any:
        with DEVICE:
            arrays = [moved(a) for a in (x, *state, *flags)]
        y, end, residuals = room.forward(
            there(problem), packed, arrays[0], LSTMState(*arrays[1:3]), *arrays[3:]
        )
        for there_now, before in zip(arrays, (x, *state, *flags), strict=True):
            assert before is None or there_now.tobytes() == before.tobytes(), "an input was written to"
        return np.array(y), LSTMState(*map(np.array, end)), residuals

    def backward(residuals: Any, dy: Any, dstate: LSTMState) -> Any:
        with DEVICE:
            arrays = [moved(a) for a in (dy, *dstate)]
        dx, start, dparams = room.backward(residuals, arrays[0], LSTMState(*arrays[1:]))
        for there_now, before in zip(arrays, (dy, *dstate), strict=True):
            assert there_now.tobytes() == before.tobytes(), "an input was written to"
        return np.array(dx), LSTMState(*map(np.array, start)), tuple(each(np.array, p) for p in dparams)

    return _dispatch.Kernel(name, lambda problem: room.supports(there(problem)), prepare, forward, backward)
