"""Training's CUDA room for NumPy's arrays, which are carried to the stand-in and back.

``python -m tests.cuda_emulation.training`` goes through its kernels under a preloaded ThreadSanitizer.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda_emulation import compiled, standin
from tests.cuda_emulation.carried import DEVICE
from xplstm.kernels._cuda import training as training_parts
from xplstm.optim import Adam


def carried(a: Any) -> Any:
    """Return `a` as on the stand-in's second device; dicts, tuples and functions by their contents."""
    if isinstance(a, np.ndarray):
        with DEVICE:
            return standin.asarray(a) if a.flags.c_contiguous else spread(a)
    if type(a) in (dict, tuple):
        return {k: carried(v) for k, v in a.items()} if isinstance(a, dict) else tuple(map(carried, a))
    return DEVICE if isinstance(a, str) and a == "cpu" else a


def spread(a: np.ndarray) -> standin.ndarray:
    """Return `a` as every second element of a larger array."""
    view: standin.ndarray = standin.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)[..., ::2]
    np.asarray(view)[...] = a
    return view


def returned(a: Any) -> Any:
    """Return NumPy arrays from the result of a carried call."""
    if isinstance(a, standin.ndarray):
        assert a.device == DEVICE
        return np.array(a)
    if type(a) in (dict, tuple):
        return {k: returned(v) for k, v in a.items()} if isinstance(a, dict) else tuple(map(returned, a))
    if a is DEVICE:
        return "cpu"
    return there(a) if isinstance(a, types.FunctionType) else a


def bits(a: Any) -> Any:
    """Return what two equal arguments have in common, even with NaN in their arrays."""
    if isinstance(a, dict | tuple):
        return {k: bits(v) for k, v in a.items()} if isinstance(a, dict) else tuple(map(bits, a))
    return (a.dtype, a.shape, a.tobytes()) if isinstance(a, np.ndarray) else a


def there(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` of the CUDA module as a function of NumPy arrays."""

    def called(*args: Any) -> Any:
        moved = carried(args)
        answer = function(*moved)
        assert bits(returned(moved)) == bits(args), "an input was written to"
        return returned(answer)

    return called


ROOM = types.SimpleNamespace(
    **{
        name: there(getattr(training_parts, name))
        for name in ("update", "clip", "cross_entropy", "scaled_mask", "hold_mask", "sum_rows")
    }
)


def main() -> None:
    """Run each kernel with several blocks."""
    compiled.extra = ("-fsanitize=thread", "-g")
    params = {"a": np.ones((700, 2), "float32"), "b": np.ones(3, "float32")}
    rules = dict.fromkeys(params, Adam(0.1)._rule(0.1, 1, None, "a"))
    with standin.installed():
        _, averages = ROOM.update(rules, params, params, {"m": {}, "v": {}, "master": {}})
        ROOM.update(rules, params, params, averages)
        ROOM.clip({**params, "c": np.ones(2 * training_parts.RUN, "float32")}, 1.0)
        targets = np.asarray([0, 299, 5])
        _, pullback = ROOM.cross_entropy(np.ones((3, 300), "float32"), targets, targets > 0)
        pullback(2.0)
        ROOM.scaled_mask((3, 700), 0.5, (1, 2), 0, "float32", "cpu", 0)
        ROOM.sum_rows(np.arange(50) % 7, np.ones((50, 40), "float32"), 9)
    print("no race")


if __name__ == "__main__":
    main()
