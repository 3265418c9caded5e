"""TensorFlow's kernel BlockLSTM on the CPU, gradients from its tape.

BlockLSTMV2 has the gates f and g in the other order. TensorFlow registers for it the gradient of BlockLSTM,
so that its gradients are wrong. Its outputs are those of BlockLSTM.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused


class Subject(Peer):
    """One layer and direction without lengths, with the sum of the biases and one matrix for both weights."""

    name = "tensorflow"
    kernel = "tf.raw_ops.BlockLSTM"
    packages = ("tensorflow",)
    offered = ("peepholes", "weight_ch", "cell_clip")

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "BlockLSTM has one length for the whole batch, and no masks": bool(
                    config.get("mask") or config.get("lengths") is not None
                ),
                "BlockLSTM has no projection": bool(config.get("proj_size")),
                "BlockLSTM is one layer": config.get("num_layers", 1) > 1,
                "BlockLSTM is one direction": bool(config.get("bidirectional") or config.get("reverse")),
                "BlockLSTM has no dropout": bool(config.get("dropout")),
                "BlockLSTM has one bias": one_bias(arrays),
                "BlockLSTM is float32 and float16 only": arrays["x"].dtype.name not in ("float32", "float16"),
            },
        )
        if not arrays["x"].shape[1] and "dy" in arrays:
            # They contain uninitialised memory, and so differ from call to call.
            msg = "of a batch without rows the gradients of the parameters are never filled"
            raise RuntimeError(msg)
        if op.startswith("layer"):
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        tf = importlib.import_module("tensorflow")
        given = {n: tf.constant(a) for n, a in arrays.items() if n not in ("dy", "dh_n", "dc_n")}
        try:
            with tf.GradientTape() as tape:
                tape.watch(list(given.values()))
                results = self.outputs(tf, config, given)
            found = dict(results)
            if "dy" in arrays:
                cotangents = [tf.constant(arrays[f"d{name}"]) for name in results]
                gradients = tape.gradient(list(results.values()), given, cotangents)
                found |= {f"d{name}": a for name, a in gradients.items()}
        except (tf.errors.OpError, ValueError) as error:
            raise Refused("shape", str(error)) from error
        return {name: np.asarray(a) for name, a in found.items()}

    def outputs(self, tf: Any, config: Config, a: dict[str, Any]) -> dict[str, Any]:
        """Return y, h_n and c_n."""
        rows = tf.concat([a["weight_ih_l0"], a["weight_hh_l0"]], 1)
        biases = [a[name] for name in ("bias_ih_l0", "bias_hh_l0") if name in a]
        H, dtype = config["hidden_size"], a["x"].dtype
        bias = tf.add_n(biases) if biases else tf.zeros(4 * H, dtype)

        def ordered(v: Any) -> Any:
            """Move g before f."""
            i, f, g, o = tf.split(v, 4)
            return tf.concat([i, g, f, o], 0)

        peepholes = "weight_ch_l0" in a
        columns = tf.split(a["weight_ch_l0"], 3) if peepholes else [tf.zeros(H, dtype)] * 3
        found = tf.raw_ops.BlockLSTM(
            seq_len_max=len(a["x"]),
            x=a["x"],
            cs_prev=a["c_0"][0],
            h_prev=a["h_0"][0],
            w=tf.transpose(ordered(rows)),
            b=ordered(bias),
            **dict(zip(("wci", "wcf", "wco"), columns, strict=True)),
            cell_clip=float(config.get("variant", {}).get("cell_clip", -1)),
            forget_bias=0,
            use_peephole=peepholes,
        )
        return {"y": found.h, "h_n": found.h[-1][None], "c_n": found.cs[-1][None]}
