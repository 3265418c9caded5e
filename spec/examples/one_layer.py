"""Answer one forward layer, for ``pytest spec --stdio "python spec/examples/one_layer.py"``."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

OFFERED = ("input_size", "hidden_size", "bias")


def answer(question: Any) -> Any:
    """Run one forward layer on full batch entries, or return what is missing."""
    config = question["config"]
    absent = [name for name, value in config.items() if value and name not in OFFERED]
    if question["op"] != "layer" or question["dtype"] == "bfloat16" or absent or not config.get("bias"):
        return {"unsupported": "only one forward layer over full rows, with biases and without gradients"}
    if missing := {"bias_ih", "bias_hh"} - question["arrays"].keys():
        return {"refused": "other", "message": f"{missing} is missing"}
    a = {name: read(tensor, question["dtype"]) for name, tensor in question["arrays"].items()}
    if wrong := misfit(a, config):
        return {"refused": "shape", "message": wrong}
    h, c, y = a["h_0"], a["c_0"], np.zeros((*a["x"].shape[:2], config["hidden_size"]), question["dtype"])
    for t, x_t in enumerate(a["x"]):
        z = x_t @ a["weight_ih"].T + a["bias_ih"] + h @ a["weight_hh"].T + a["bias_hh"]
        i, f, g, o = np.split(z, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y[t] = h
    return {"arrays": {name: written(value) for name, value in (("y", y), ("h_n", h), ("c_n", c))}}


def misfit(a: dict[str, np.ndarray], config: Any) -> str:
    """Return which array has a wrong shape, or an empty text."""
    I, H, T, B = config["input_size"], config["hidden_size"], len(a["x"]), len(a["h_0"])
    shapes = {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
    shapes |= {"x": (T, B, I), "h_0": (B, H), "c_0": (B, H)}
    wrong = next((name for name, shape in shapes.items() if a[name].shape != shape), None)
    return f"{wrong} has shape {a[wrong].shape}, expected {shapes[wrong]}" if wrong else ""


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray((1 + np.tanh(z / 2)) / 2)


def read(tensor: Any, dtype: str) -> np.ndarray:
    return np.array([float(v) for v in tensor["data"]], dtype).reshape(tensor["shape"])


def written(a: np.ndarray) -> Any:
    return {"shape": a.shape, "data": [str(v) for v in a.ravel().tolist()]}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
