"""Define the LSTM of the documents on NumPy or CuPy, a baseline of the GPU benchmark.

It has the same products, concatenations and element-wise operations as the documents, in the same order.
Batch entries are the columns of x and h.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GATES = "ifgo"


class Forward:
    """LSTM of the first document: one product per gate with the concatenation of h and x."""

    def __init__(self, xp: Any, params: dict[str, np.ndarray]) -> None:
        self._xp = xp
        joined = np.concatenate([params["weight_hh_l0"], params["weight_ih_l0"]], axis=1)
        bias = (params["bias_ih_l0"] + params["bias_hh_l0"])[:, None]
        H = len(joined) // 4
        rows = {gate: slice(k * H, (k + 1) * H) for k, gate in enumerate(GATES)}
        self.weight = {gate: xp.asarray(np.ascontiguousarray(joined[r])) for gate, r in rows.items()}
        self.bias = {gate: xp.asarray(bias[r]) for gate, r in rows.items()}

    def sigmoid(self, z: Any) -> Any:
        """Compute the sigmoid as in the document, which overflows to the correct limit."""
        return 1 / (1 + self._xp.exp(-z))

    def step(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        """Run one step on columns x (I, B), h and c (H, B)."""
        xp, weight, bias = self._xp, self.weight, self.bias
        joined = xp.vstack((h, x))
        f = self.sigmoid(xp.dot(weight["f"], joined) + bias["f"])
        i = self.sigmoid(xp.dot(weight["i"], joined) + bias["i"])
        g = xp.tanh(xp.dot(weight["g"], joined) + bias["g"])
        c = f * c + i * g
        o = self.sigmoid(xp.dot(weight["o"], joined) + bias["o"])
        return o * xp.tanh(c), c

    def __call__(self, x: Any) -> Any:
        """Return y (T, B, H) for x (T, B, I)."""
        xp, H = self._xp, len(self.bias["i"])
        h = c = xp.zeros((H, x.shape[1]), x.dtype)
        outputs = []
        for columns in x:
            h, c = self.step(columns.T, h, c)
            outputs.append(h)
        return xp.stack(outputs).transpose(0, 2, 1)


class Training:
    """Training of the second document: two products per gate, and a backward pass over all errors.

    Like the document, it computes no gradient with respect to x. To make its gradient correct, it reads the
    gradient with respect to y of every step, not only of the last, and carries the error of c from step to
    step. It omits the gradients of the biases.
    """

    def __init__(self, xp: Any, params: dict[str, np.ndarray]) -> None:
        self._xp = xp
        H = len(params["bias_ih_l0"]) // 4
        bias = (params["bias_ih_l0"] + params["bias_hh_l0"])[:, None]

        def of(a: np.ndarray, k: int) -> Any:
            return xp.asarray(np.ascontiguousarray(a[k * H : (k + 1) * H]))

        self.by_h = {gate: of(params["weight_hh_l0"], k) for k, gate in enumerate(GATES)}
        self.by_x = {gate: of(params["weight_ih_l0"], k) for k, gate in enumerate(GATES)}
        self.bias = {gate: of(bias, k) for k, gate in enumerate(GATES)}

    def _gate(self, gate: str, x: Any, h: Any) -> Any:
        xp = self._xp
        net = xp.dot(self.by_h[gate], h) + xp.dot(self.by_x[gate], x) + self.bias[gate]
        return 2 / (1 + xp.exp(-2 * net)) - 1 if gate == "g" else 1 / (1 + xp.exp(-net))

    def _tanh(self, c: Any) -> Any:
        return 2 / (1 + self._xp.exp(-2 * c)) - 1

    def __call__(self, x: Any, dy: Any) -> Any:
        """Return the gradient with respect to weight_hh (4H, H) after a forward and a backward pass."""
        xp, zeros = self._xp, self._xp.zeros((len(self.bias["i"]), x.shape[1]), x.dtype)
        hs, cs, steps = [zeros], [zeros], []
        for columns in x:
            gates = {gate: self._gate(gate, columns.T, hs[-1]) for gate in "fiog"}
            cs.append(gates["f"] * cs[-1] + gates["i"] * gates["g"])
            hs.append(gates["o"] * self._tanh(cs[-1]))
            steps.append(gates)
        dh, dc = zeros, zeros
        sums = {gate: xp.zeros_like(weight) for gate, weight in self.by_h.items()}
        for k in range(len(steps), 0, -1):
            deltas, dc = self._deltas(steps[k - 1], cs[k], cs[k - 1], dh + dy[k - 1].T, dc)
            o, i, f, g = (xp.dot(deltas[gate].T, self.by_h[gate]) for gate in "oifg")
            dh = (o + i + f + g).T
            for gate, delta in deltas.items():
                sums[gate] += xp.dot(delta, hs[k - 1].T)
        return xp.concatenate([sums[gate] for gate in GATES])

    def _deltas(
        self, gates: dict[str, Any], c: Any, c_before: Any, dh: Any, dc: Any
    ) -> tuple[dict[str, Any], Any]:
        """Return the errors of the four gate inputs of a step, and the error of the previous c."""
        i, f, g, o = (gates[gate] for gate in GATES)
        tanh_c = self._tanh(c)
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        deltas = {
            "o": dh * tanh_c * (o * (1 - o)),
            "f": dc * c_before * (f * (1 - f)),
            "i": dc * g * (i * (1 - i)),
            "g": dc * i * (1 - g * g),
        }
        return deltas, dc * f
