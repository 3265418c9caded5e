"""Other LSTMs, through the same adapter: PyTorch and ONNX Runtime."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import numpy as np

from spec.subject import Arrays, Config, Refused, Unsupported

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"the package {package!r} is not installed"


def as_module(config: Config, arrays: Arrays) -> tuple[Config, Arrays]:
    """One layer as a module: parameters by torch's names, states with a leading axis."""
    renamed = {f"{n}_l0": arrays[n] for n in PARAMETERS if n in arrays}
    states = {n: arrays[n][None] for n in ("h_0", "c_0", "dh_n", "dc_n") if n in arrays}
    rest = {n: arrays[n] for n in ("x", "dy") if n in arrays}
    return config | {"num_layers": 1, "bidirectional": False}, renamed | states | rest


def as_layer(arrays: Arrays) -> Arrays:
    """Back from `as_module`."""
    found = {name.replace("_l0", ""): a for name, a in arrays.items()}
    return found | {n: found[n][0] for n in ("h_n", "c_n", "dh_0", "dc_0") if n in found}


class Torch:
    """torch.nn.LSTM on the CPU, ragged batches packed."""

    def describe(self) -> dict[str, str]:
        version = str(importlib.import_module("torch").__version__) if missing("torch") is None else ""
        return {"name": "torch", "version": version, "library": "torch", "kernel": "torch.nn.LSTM"}

    def why_unavailable(self) -> str | None:
        return missing("torch")

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        if config.get("mask") or config.get("reverse"):
            msg = "torch.nn.LSTM has no masks with holes and no backward direction by itself"
            raise Unsupported(msg)
        if "dropout" in config:
            msg = "torch.nn.LSTM draws its own dropout masks"
            raise Unsupported(msg)
        if op.startswith("layer"):
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, dict(arrays))

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        torch = importlib.import_module("torch")
        lengths = config.get("lengths")
        if lengths and 0 in lengths:
            msg = "pack_padded_sequence has no rows of length 0"
            raise Unsupported(msg)
        lstm, given = self.built(torch, config, arrays)
        x, T = given["x"], len(arrays["x"])
        packing = torch.nn.utils.rnn
        packed = packing.pack_padded_sequence(x, lengths, enforce_sorted=False) if lengths else x
        with warnings.catch_warnings():
            # With a projection torch says which engine it cannot use.
            warnings.simplefilter("ignore", UserWarning)
            y, (h_n, c_n) = lstm(packed, (given["h_0"], given["c_0"]))
        y = packing.pad_packed_sequence(y, total_length=T)[0] if lengths else y
        results = {"y": y, "h_n": h_n, "c_n": c_n}
        if "dy" in arrays:
            cotangents = [torch.from_numpy(arrays[f"d{name}"].copy()) for name in results]
            torch.autograd.backward(list(results.values()), cotangents)
            results |= {f"d{name}": a.grad for name, a in given.items()}
        return {name: a.detach().numpy() for name, a in results.items()}

    def built(self, torch: Any, config: Config, arrays: Arrays) -> tuple[Any, dict[str, Any]]:
        """The module, and every input as a tensor that takes a gradient."""
        names = ("num_layers", "bidirectional", "proj_size", "bias")
        sizes = {name: config[name] for name in names if name in config}
        lstm = torch.nn.LSTM(config["input_size"], config["hidden_size"], **sizes)
        lstm = lstm.to(getattr(torch, str(arrays["x"].dtype)))
        tensors = {
            n: torch.from_numpy(a.copy()) for n, a in arrays.items() if n not in ("dy", "dh_n", "dc_n")
        }
        states = {n: tensors.pop(n).requires_grad_() for n in ("x", "h_0", "c_0")}
        self.load(lstm, tensors)
        return lstm, states | dict(lstm.named_parameters())

    def load(self, lstm: Any, tensors: dict[str, Any]) -> None:
        try:
            lstm.load_state_dict(tensors)
        except RuntimeError as error:
            raise Refused("shape", str(error)) from error


class OnnxRuntime:
    """The ONNX operator LSTM of one layer, forward only."""

    def describe(self) -> dict[str, str]:
        name = "onnxruntime"
        version = str(importlib.import_module(name).__version__) if missing(name) is None else ""
        return {"name": name, "version": version, "library": name, "kernel": "CPUExecutionProvider"}

    def why_unavailable(self) -> str | None:
        return missing("onnx") or missing("onnxruntime")

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.check(op, config, arrays)
        directions = ("_l0", "_l0_reverse") if config.get("bidirectional") else ("_l0",)
        if op == "layer":
            sizes, a = as_module(config, arrays)
            return as_layer(self.run(sizes, a, directions))
        return self.run(config, arrays, directions)

    def check(self, op: str, config: Config, arrays: Arrays) -> None:
        """Declare what the operator does not offer."""
        reasons = {
            "ONNX Runtime has no gradient of LSTM": op.endswith("_vjp"),
            "the operator LSTM has no masks with holes": "mask" in config,
            "the operator LSTM has no projection": bool(config.get("proj_size")),
            "a graph of several operators would be the author's, not the runtime's": config.get(
                "num_layers", 1
            )
            > 1,
            "the operator LSTM takes both biases as one array": len([n for n in arrays if "bias" in n]) % 2
            == 1,
            "its CPU kernel is float32 only": arrays["x"].dtype != np.float32,
        }
        for reason, holds in reasons.items():
            if holds:
                raise Unsupported(reason)

    def run(self, config: Config, a: Arrays, directions: tuple[str, ...]) -> Arrays:
        onnx = importlib.import_module("onnx")
        runtime = importlib.import_module("onnxruntime")
        inputs = self.inputs(config, a, directions)
        side = "reverse" if config.get("reverse") else "forward"
        node = onnx.helper.make_node(
            "LSTM",
            ["X", "W", "R", "B", "lengths", "h", "c"],
            ["Y", "h_n", "c_n"],
            hidden_size=config["hidden_size"],
            direction="bidirectional" if len(directions) == 2 else side,
        )
        described = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in inputs.items()
        ]
        results = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in node.output]
        graph = onnx.helper.make_graph([node], "lstm", described, results)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        try:
            y, h_n, c_n = session.run(None, inputs)
        except runtime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise Refused("shape", str(error)) from error
        T, _, B, _ = y.shape
        return {
            "y": np.moveaxis(y, 1, 2).reshape(T, B, len(directions) * config["hidden_size"]),
            "h_n": h_n,
            "c_n": c_n,
        }

    def inputs(self, config: Config, a: Arrays, directions: tuple[str, ...]) -> Arrays:
        """The operator's inputs: gates in ONNX's order i, o, f, c and both biases in one row."""

        def stacked(name: str) -> np.ndarray:
            return np.stack(
                [np.concatenate([np.split(a[name + d], 4)[k] for k in (0, 3, 1, 2)]) for d in directions]
            )

        T, B = a["x"].shape[:2]
        bias = np.zeros((len(directions), 8 * config["hidden_size"]), "float32")
        if config.get("bias", True):
            bias = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
        lengths = np.asarray(config.get("lengths") or [T] * B, "int32")
        parameters = {"W": stacked("weight_ih"), "R": stacked("weight_hh"), "B": bias}
        return {"X": a["x"], **parameters, "lengths": lengths, "h": a["h_0"], "c": a["c_0"]}
