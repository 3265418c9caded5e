/* The pointwise step of the LSTM cell, forward and backward, which all CUDA kernels share.

   Implements xplstm.cells.lstm, clause XPL-CELL of the specification. Gates are in the order i, f, g, o. The
   forward step writes every operation explicitly, so that its results have the bits of XPL-EXACT. */

/* Replace the sums in `gate` (4) by the gates and c by c'. Return o * tanh(c'), rounded to the stored type.
 */
DEVICE Stored forward_cell(Wide *gate, Wide &c)
{
#pragma unroll
    for (int n = 0; n < 4; n++)
        gate[n] = n == 2 ? hyperbolic_tangent(gate[n]) : sigmoid(gate[n]);
    c = fused(gate[1], c, product(gate[0], gate[2]));
    return narrowed(product(gate[3], hyperbolic_tangent(c)));
}

/* Replace the gates in `gate` (4) by dz, and the gradient dc with respect to c' by the gradient with respect
   to c. `dm` is the gradient with respect to o * tanh(c'). */
DEVICE void backward_cell(Wide *gate, Wide c, Wide c_new, Wide dm, Wide &dc)
{
    Wide i = gate[0], f = gate[1], g = gate[2], o = gate[3], tanh_c = hyperbolic_tangent(c_new);
    Wide dc_new = dc + dm * o * (1 - tanh_c * tanh_c);
    gate[0] = dc_new * g * (i * (1 - i));
    gate[1] = dc_new * c * (f * (1 - f));
    gate[2] = dc_new * i * (1 - g * g);
    gate[3] = dm * tanh_c * (o * (1 - o));
    dc = dc_new * f;
}
