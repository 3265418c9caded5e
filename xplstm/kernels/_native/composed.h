/* The pointwise step with options: peepholes, coupled gates, activations, clips. The loop over time is shared
   with the standard cell, whose `gates` and `backward_unit` have no branch on an option.

   The forward pass keeps z instead of the gates, because the derivatives of most activations need z. The
   backward pass recomputes the gates from z. Implements xplstm.cells.variant, clause XPL-VAR. */

/* log(1 + exp(z)) = max(z, 0) + log(1 + e) with e = exp(-|z|), and log(1 + e) = 2 atanh(s) with s = e / (2 +
   e): s is at most 1/3, so the series of atanh converges after few terms. */
INLINE V NAME(softplus)(V z)
{
    enum { TERMS = DOUBLE ? 17 : 8 };
    V a = NAME(magnitude)(z), e = NAME(sigmoid)(-a) / NAME(sigmoid)(a), s = e / (all(2) + e), sum = all(0);
    for (int k = TERMS - 1; k >= 0; k--)
        sum = fma(sum, s * s, all((REAL)1 / (REAL)(2 * k + 1)));
    return less(z, all(0), all(0), z) + (s + s) * sum;
}

INLINE V NAME(activation)(const Activation *f, V z)
{
    V alpha = all((REAL)f->alpha), beta = all((REAL)f->beta), zero = all(0), one = all(1), half, low;
    switch (f->kind) {
    case SIGMOID:
        return NAME(sigmoid)(z);
    case TANH:
        return NAME(tanh)(z);
    case RELU:
        return less(z, zero, zero, z);
    case AFFINE:
        return alpha * z + beta;
    case LEAKY_RELU:
        return less(z, zero, alpha * z, z);
    case THRESHOLDED_RELU:
        return less(z, alpha, zero, z);
    case SCALED_TANH:
        return alpha * NAME(tanh)(beta * z);
    case HARD_SIGMOID:
        low = alpha * z + beta;
        low = less(low, zero, zero, low);
        return less(one, low, one, low);
    case ELU:
        /* exp(z) - 1 = 2 t / (1 - t) with t = tanh(z / 2) avoids cancellation near 0. */
        half = NAME(tanh)(less(z, zero, z, zero) * all((REAL)0.5));
        return less(z, zero, alpha * ((half + half) / (one - half)), z);
    case SOFTSIGN:
        return z / (one + NAME(magnitude)(z));
    case SOFTPLUS:
        return NAME(softplus)(z);
    default:
        return z;
    }
}

/* Return the derivative at z, given the value a at z. */
INLINE V NAME(slope)(const Activation *f, V z, V a)
{
    V alpha = all((REAL)f->alpha), beta = all((REAL)f->beta), zero = all(0), one = all(1), some;
    switch (f->kind) {
    case SIGMOID:
        return fnma(a, a, a);
    case TANH:
        return fnma(a, a, one);
    case RELU:
        return less(zero, z, one, zero);
    case AFFINE:
        return alpha;
    case LEAKY_RELU:
        return less(z, zero, alpha, one);
    case THRESHOLDED_RELU:
        return less(z, alpha, zero, one);
    case SCALED_TANH:
        some = NAME(tanh)(beta * z);
        return alpha * beta * fnma(some, some, one);
    case HARD_SIGMOID:
        some = alpha * z + beta;
        return less(zero, some, less(some, one, alpha, zero), zero);
    case ELU:
        /* exp(z) = sigmoid(z) / sigmoid(-z) */
        some = less(z, zero, z, zero);
        return less(z, zero, alpha * (NAME(sigmoid)(some) / NAME(sigmoid)(-some)), one);
    case SOFTSIGN:
        some = one / (one + NAME(magnitude)(z));
        return some * some;
    case SOFTPLUS:
        return NAME(sigmoid)(z);
    default:
        return one;
    }
}

/* Clip x to [-bound, bound]; NaN stays NaN. */
INLINE V NAME(clip)(V x, double bound)
{
    if (__builtin_isinf(bound))
        return x;
    V high = all((REAL)bound), low = all((REAL)-bound);
    x = less(high, x, high, x);
    return less(x, low, low, x);
}

/* Return the gradient dx, or zero where x was clipped. */
INLINE V NAME(through_clip)(V x, double bound, V dx)
{
    return less(all((REAL)bound), NAME(magnitude)(x), all(0), dx);
}

/* Convert the flags of one vector to numbers. */
INLINE V NAME(flags)(const uint8_t *mask)
{
    REAL numbers[LANES];
    for (int k = 0; k < LANES; k++)
        numbers[k] = mask[k];
    return load(numbers);
}

/* Zoneout: return the old value where the mask is set, or without a mask the expected value. */
INLINE V NAME(hold)(V after, V old, const uint8_t *mask, double p)
{
    if (mask)
        return less(all(0), NAME(flags)(mask), old, after);
    return fma(all((REAL)p), old, all((REAL)(1 - p)) * after);
}

/* Backward pass of `hold`: return the gradient with respect to the old value, and keep the rest in d. */
INLINE V NAME(hold_back)(V *d, const uint8_t *mask, double p)
{
    V total = *d, zero = all(0);
    *d = mask ? less(zero, NAME(flags)(mask), zero, total) : all((REAL)(1 - p)) * total;
    return mask ? less(zero, NAME(flags)(mask), total, zero) : all((REAL)p) * total;
}

/* Inputs of zoneout for several batch entries: h before the step, and the masks or NULL. */
#define Hold NAME(Hold)
typedef struct Hold {
    const REAL **h;
    const uint8_t **held_h, **held_c;
} Hold;

/* The step of a GRU whose r scales the fourth block, in two parts like that of an LSTM. The first part writes
   the argument of n's tanh to the first block of z, and the update gate to the third. Implements
   xplstm.cells.gru, clause XPL-GRU. */
INLINE void NAME(gated_gates)(REAL *z, Size z_step, Size rows, REAL *const *kept, Size unit)
{
    for (Size k = 0; k < rows; k++, z += z_step) {
        V r = NAME(sigmoid)(load(z + LANES)), u = NAME(sigmoid)(load(z + 2 * LANES));
        V last = load(z + 3 * LANES);
        store(z, fma(r, last, load(z)));
        store(z + 2 * LANES, u);
        if (kept) {
            REAL *to = kept[k] + 4 * unit;
            store(to, r);
            store(to + LANES, u);
            store(to + 3 * LANES, last);
        }
    }
}

/* The second part. */
INLINE void NAME(gated_outputs)(const REAL *z, Size z_step, Size rows, Size width, const REAL *const *c,
                                REAL *const *c_new, REAL *const *out, REAL *const *copy, REAL *const *kept,
                                Size unit)
{
    for (Size k = 0; k < rows; k++, z += z_step) {
        V n = NAME(tanh)(load(z)), u = load(z + 2 * LANES);
        V h = fma(u, load(c[k] + unit), fnma(u, n, n));
        store(c_new[k] + unit, h);
        if (kept)
            store(kept[k] + 4 * unit + 2 * LANES, n);
        store_part(out[k] + unit, h, width);
        if (copy)
            store_part(copy[k] + unit, h, width);
    }
}

/* Backward pass of `gated_gates`, from the kept gates. */
INLINE void NAME(gated_backward)(const REAL *kept, V h_before, V dh, REAL *dc, V dz[4])
{
    V r = load(kept), u = load(kept + LANES), n = load(kept + 2 * LANES), last = load(kept + 3 * LANES);
    V total = dh + load(dc), one = all(1);
    dz[2] = total * (h_before - n) * fnma(u, u, u);
    dz[0] = total * (one - u) * fnma(n, n, one);
    dz[3] = dz[0] * r;
    dz[1] = dz[0] * last * fnma(r, r, r);
    store(dc, total * u);
}

/* First part of a GRU step whose reset gate scales h before the product: write r * h to `out`. Keep r, the
   update gate and the contribution of x to n for the second part. */
INLINE void NAME(reset_gates)(const REAL *z, Size z_step, Size rows, const REAL *const *h, REAL *const *out,
                              REAL *const *kept, Size unit)
{
    for (Size k = 0; k < rows; k++, z += z_step) {
        REAL *to = kept[k] + 4 * unit;
        V r = NAME(sigmoid)(load(z + LANES));
        store(to, r);
        store(to + LANES, NAME(sigmoid)(load(z + 2 * LANES)));
        store(to + 2 * LANES, load(z));
        store(out[k] + unit, r * load(h[k] + unit));
    }
}

/* Second part of the step for one vector of the product: write n to `kept` and h' to `h`, and overwrite the
   product with h'. */
INLINE void NAME(reset_blend)(REAL *product, REAL *kept, const REAL *h_before, REAL *h)
{
    V u = load(kept + LANES), n = NAME(tanh)(load(kept + 2 * LANES) + load(product));
    V blended = fma(u, load(h_before), fnma(u, n, n));
    store(kept + 2 * LANES, n);
    store(h, blended);
    store(product, blended);
}

/* Backward pass of `reset_blend`: return the gradient with respect to the product. `dh` is a part of the
   gradient with respect to h', and `dc` holds the rest; afterwards `dc` holds the sum. */
INLINE V NAME(reset_blend_back)(const REAL *kept, V dh, REAL *dc)
{
    V u = load(kept + LANES), n = load(kept + 2 * LANES), total = dh + load(dc), one = all(1);
    store(dc, total);
    return total * (one - u) * fnma(n, n, one);
}

/* Backward pass of `reset_gates`, from the gradient dm with respect to r * h. Return r * h. */
INLINE V NAME(reset_backward)(const REAL *kept, V h_before, V dm, REAL *dc, V dz[4])
{
    V r = load(kept), u = load(kept + LANES), n = load(kept + 2 * LANES), total = load(dc), one = all(1);
    dz[0] = total * (one - u) * fnma(n, n, one);
    dz[1] = dm * h_before * fnma(r, r, r);
    dz[2] = total * (h_before - n) * fnma(u, u, u);
    dz[3] = all(0);
    store(dc, fma(dm, r, total * u));
    return r * h_before;
}

/* Return the number of units of an RNN in a vector; the last vector of a quarter may have fewer. */
INLINE Size NAME(elman_width)(const Packed *p, Size at, Size width)
{
    Size left = p->M - at < 0 ? 0 : p->M - at;
    return left < width ? left : width;
}

/* The step of an RNN: compute one vector of units in each quarter. Implements xplstm.cells.rnn. */
INLINE void NAME(elman_units)(const Packed *p, const REAL *z, Size z_step, Size rows, Size width,
                              REAL *const *c_new, REAL *const *out, REAL *const *copy, REAL *const *kept,
                              Size unit)
{
    const Pointwise *how = &p->pointwise;
    for (Size k = 0; k < rows; k++, z += z_step) {
        for (Size quarter = 0; quarter < 4; quarter++) {
            V v = load(z + quarter * LANES), h = NAME(activation)(&how->gate, NAME(clip)(v, how->gate_clip));
            Size at = quarter * p->H + unit, some = NAME(elman_width)(p, at, width);
            store_part(out[k] + at, h, some);
            if (copy)
                store_part(copy[k] + at, h, some);
            if (kept)
                store(kept[k] + 4 * unit + quarter * LANES, v);
        }
        store(c_new[k] + unit, all(0));
    }
}

/* Backward pass of `elman_units`, from the kept z; dm is the sum of two gradients, the second of which may be
   NULL. Write the hidden units of the step to `m` unless it is NULL. */
INLINE void NAME(elman_backward)(const Packed *p, Size unit, Size width, const REAL *z, const REAL *dh,
                                 const REAL *dy, REAL *m, V dz[4])
{
    const Pointwise *how = &p->pointwise;
    for (Size quarter = 0; quarter < 4; quarter++) {
        Size at = quarter * p->H + unit, some = NAME(elman_width)(p, at, width);
        REAL d[LANES];
        V v = load(z + quarter * LANES), clipped = NAME(clip)(v, how->gate_clip);
        V a = NAME(activation)(&how->gate, clipped), slope = NAME(slope)(&how->gate, clipped, a);
        V dm = load_part(dh + at, some);
        if (dy)
            dm = dm + load_part(dy + at, some);
        if (m)
            store_part(m + at, a, some);
        store(d, NAME(through_clip)(v, how->gate_clip, dm * slope));
        /* Select instead of multiplying by 0: z of a padding unit may be NaN. */
        dz[quarter] = load_part(d, some);
    }
}

/* Last part of a step for one vector of units: compute h and c after zoneout from c' and H(c'). */
INLINE void NAME(composed_output)(const Packed *p, V squashed, V cell, V o, V c_old, Size width, REAL *c_new,
                                  REAL *out, REAL *copy, const Hold *hold, Size r, Size unit)
{
    const Pointwise *how = &p->pointwise;
    V m = o * squashed;
    if (how->hold_c != 0)
        cell = NAME(hold)(cell, c_old, hold->held_c ? hold->held_c[r] + unit : NULL, how->hold_c);
    if (how->hold_h != 0 && !p->projected)
        m = NAME(hold)(m, load_part(hold->h[r] + unit, width), hold->held_h ? hold->held_h[r] + unit : NULL,
                       how->hold_h);
    store(c_new + unit, cell);
    store_part(out + unit, m, width);
    if (copy)
        store_part(copy + unit, m, width);
}

/* `gates` and `outputs_of_cells` with options, in two loops for the same reason. With layer normalisation c'
   and o are left in z, for `composed_output`. If `usual`, the activations are those of the standard cell,
   without a switch in the loop. */
INLINE void NAME(lstm_units)(const Packed *p, REAL *z, Size z_step, Size rows, Size width,
                             const REAL *const *c, REAL *const *c_new, REAL *const *out, REAL *const *copy,
                             REAL *const *kept, const Hold *hold, Size unit, int usual)
{
    static const Activation sigmoid = {.kind = SIGMOID}, tanh = {.kind = TANH};
    const Pointwise *how = &p->pointwise;
    const Activation *gate = usual ? &sigmoid : &how->gate, *input = usual ? &tanh : &how->input;
    /* The peepholes of i, f and o, a vector each in every panel. */
    const REAL *ch = how->peepholes ? (const REAL *)p->ch + 3 * unit : NULL;
    REAL *const first = z;
    for (Size r = 0; r < rows; r++, z += z_step) {
        V c_old = load(c[r] + unit), z_i = load(z), z_f = load(z + LANES), z_g = load(z + 2 * LANES);
        V z_o = load(z + 3 * LANES);
        if (ch) {
            z_i = fma(load(ch), c_old, z_i);
            z_f = fma(load(ch + LANES), c_old, z_f);
        }
        V i = NAME(activation)(gate, NAME(clip)(z_i, how->gate_clip));
        V f = how->coupled ? all(1) - i : NAME(activation)(gate, NAME(clip)(z_f, how->gate_clip));
        V g = NAME(activation)(input, NAME(clip)(z_g, how->gate_clip));
        V cell = NAME(clip)(fma(f, c_old, i * g), how->cell_clip);
        if (ch)
            z_o = fma(load(ch + 2 * LANES), cell, z_o);
        V o = NAME(activation)(gate, NAME(clip)(z_o, how->gate_clip));
        if (kept) {
            REAL *to = kept[r] + 4 * unit;
            store(to, z_i);
            store(to + LANES, z_f);
            store(to + 2 * LANES, z_g);
            store(to + 3 * LANES, z_o);
        }
        store(z + 2 * LANES, cell);
        store(z + 3 * LANES, o);
    }
    z = first;
    for (Size r = 0; r < rows && !how->normal; r++, z += z_step) {
        V cell = load(z + 2 * LANES), squashed = NAME(activation)(usual ? &tanh : &how->output, cell);
        NAME(composed_output)(p, squashed, cell, load(z + 3 * LANES), load(c[r] + unit), width, c_new[r],
                              out[r], copy ? copy[r] : NULL, hold, r, unit);
    }
}

/* Run the pointwise step with options for the units of one panel. */
static void NAME(composed_gates)(const Packed *p, REAL *z, Size z_step, Size rows, Size width,
                                 const REAL *const *c, REAL *const *c_new, REAL *const *out,
                                 REAL *const *copy, REAL *const *kept, const Hold *hold, Size unit)
{
    const Pointwise *how = &p->pointwise;
    if (how->kind == GRU_STEP) {
        NAME(gated_gates)(z, z_step, rows, kept, unit);
        NAME(gated_outputs)(z, z_step, rows, width, c, c_new, out, copy, kept, unit);
    } else if (how->kind == ELMAN_STEP) {
        NAME(elman_units)(p, z, z_step, rows, width, c_new, out, copy, kept, unit);
    } else if (how->kind == RESET_STEP) {
        NAME(reset_gates)(z, z_step, rows, c, out, kept, unit);
    } else if (how->gate.kind == SIGMOID && how->input.kind == TANH && how->output.kind == TANH) {
        NAME(lstm_units)(p, z, z_step, rows, width, c, c_new, out, copy, kept, hold, unit, 1);
    } else {
        NAME(lstm_units)(p, z, z_step, rows, width, c, c_new, out, copy, kept, hold, unit, 0);
    }
}

/* `backward_unit` with options, from the kept z; `cell` becomes c' before zoneout. With layer normalisation
   `seen` is what H reads, and `dcell` the gradient with respect to c' through it. */
static V NAME(composed_backward)(const Packed *p, Size unit, const REAL *z, V c_before, V dm,
                                 const REAL *seen, const REAL *dcell, REAL *dc, V dz[4], V *cell)
{
    const Pointwise *how = &p->pointwise;
    const REAL *ch = how->peepholes ? (const REAL *)p->ch + 3 * unit : NULL;
    const double bound = how->gate_clip;
    if (how->kind == GRU_STEP) {
        NAME(gated_backward)(z, c_before, dm, dc, dz);
        return all(0);
    }
    if (how->kind == RESET_STEP)
        return NAME(reset_backward)(z, c_before, dm, dc, dz);
    V z_i = load(z), z_f = load(z + LANES), z_g = load(z + 2 * LANES), z_o = load(z + 3 * LANES);
    V y_i = NAME(clip)(z_i, bound), y_f = NAME(clip)(z_f, bound), y_g = NAME(clip)(z_g, bound);
    V y_o = NAME(clip)(z_o, bound), i = NAME(activation)(&how->gate, y_i),
      g = NAME(activation)(&how->input, y_g);
    V f = how->coupled ? all(1) - i : NAME(activation)(&how->gate, y_f),
      o = NAME(activation)(&how->gate, y_o);
    V unclipped = fma(f, c_before, i * g), c = NAME(clip)(unclipped, how->cell_clip);
    V exposed = seen ? load(seen + unit) : c, squashed = NAME(activation)(&how->output, exposed);
    *cell = c;
    dz[3] = NAME(through_clip)(z_o, bound, dm * squashed * NAME(slope)(&how->gate, y_o, o));
    V total =
        seen ? load(dcell + unit) + load(dc) : fma(dm * o, NAME(slope)(&how->output, c, squashed), load(dc));
    if (ch)
        total = fma(load(ch + 2 * LANES), dz[3], total);
    total = NAME(through_clip)(unclipped, how->cell_clip, total);
    V df = total * c_before, di = how->coupled ? total * g - df : total * g;
    dz[0] = NAME(through_clip)(z_i, bound, di * NAME(slope)(&how->gate, y_i, i));
    dz[1] = how->coupled ? all(0) : NAME(through_clip)(z_f, bound, df * NAME(slope)(&how->gate, y_f, f));
    dz[2] = NAME(through_clip)(z_g, bound, total * i * NAME(slope)(&how->input, y_g, g));
    total = total * f;
    if (ch)
        total = fma(load(ch), dz[0], fma(load(ch + LANES), dz[1], total));
    store(dc, total);
    return o * squashed;
}

/* The peepholes in the order of `composed_gates`. */
static void NAME(pack_peepholes)(const REAL *w, Size H, Size units, REAL *out)
{
    for (Size unit = 0; unit < units; unit++)
        for (Size gate = 0; gate < 3; gate++)
            out[unit / LANES * 3 * LANES + gate * LANES + unit % LANES] = unit < H ? w[gate * H + unit] : 0;
}

/* Add the gradient with respect to the peepholes of the units from `first` to `last`. The order of the sum is
   the order of a block's rows, for any number of threads. */
static void NAME(sum_peepholes)(const Backward *f, int direction, Size first, Size last)
{
    const Rows *rows = &f->rows[direction];
    Size H = f->packed[direction]->H, units = f->packed[direction]->units;
    REAL *restrict sum = f->gradient[direction].ch;
    for (Size n = 0; n < rows->count; n++) {
        Size t = rows->t[n], b = rows->b[n];
        Size before = step_before(&f->valid, f->T, f->B, f->reverse[direction], t, b);
        const REAL *cells = f->kept[direction].cells, *dz = (const REAL *)rows->dz + n * 4 * H;
        const REAL *c = rows->cell ? (const REAL *)rows->cell + n * H : cells + (t * f->B + b) * units;
        const REAL *c_before = cells + (before * f->B + b) * units;
        int fresh = starts_fresh(&f->valid, f->T, f->B, direction, t, b);
        for (Size unit = first; unit < last; unit++) {
            REAL seen = fresh ? 0 : c_before[unit];
            sum[unit] += dz[unit] * seen;
            sum[H + unit] += dz[H + unit] * seen;
            sum[2 * H + unit] += dz[3 * H + unit] * c[unit];
        }
    }
}
