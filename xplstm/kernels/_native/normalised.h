/* Layer normalisation of W_ih x, W_hh h and c' inside the step (Ba, Kiros and Hinton, 2016). Implements
   xplstm.cells.variant, clause XPL-VAR.

   A sum runs over the units of one batch entry. Lane n of 16 adds the units n, n + 16, ... of each block in
   ascending order; then the blocks are added, then the lanes in pairs. The order does not depend on the width
   of a vector, on threads, nor on the batch. */

#define NORMAL_EPSILON ((REAL)1e-5)

enum { NAME(WAYS) = 16 / LANES };

/* The accumulators of a sum. */
#define Lanes NAME(Lanes)
typedef struct Lanes {
    V sum[NAME(WAYS)][4];
} Lanes;

/* Return accumulators of zero. An initialiser of the whole array would keep it in memory. */
INLINE Lanes NAME(no_sums)(int blocks)
{
    Lanes of;
    EACH (j, NAME(WAYS))
        EACH (block, blocks)
            of.sum[j][block] = all(0);
    return of;
}

/* Return sum / n. The product with the reciprocal of a power of two is faster and has the same bits. */
INLINE V NAME(divided)(V sum, Size n)
{
    V count = all((REAL)n), part = all(1 / (REAL)n);
    return n & (n - 1) ? sum / count : sum * part;
}

/* Return the sum over the lanes of all accumulators, in every lane. */
INLINE V NAME(add_lanes)(const Lanes *of, int blocks)
{
    V sums[NAME(WAYS)];
    EACH (j, NAME(WAYS)) {
        sums[j] = of->sum[j][0];
        for (int block = 1; block < blocks; block++)
            sums[j] = sums[j] + of->sum[j][block];
    }
    for (int half = NAME(WAYS) / 2; half; half /= 2)
        for (int j = 0; j < half; j++)
            sums[j] = sums[j] + sums[j + half];
    return NAME(add_pairs)(sums[0]);
}

/* Return the first `width` numbers of a vector, padded with zeros. */
INLINE V NAME(first)(V v, Size width)
{
    V lane;
    for (int k = 0; k < LANES; k++)
        lane[k] = (REAL)k;
    return width >= LANES ? v : less(lane, all((REAL)width), v, all(0));
}

/* Return the mean of the H units of each of the `blocks`, or of the squares of their distances from `mean`,
   in every lane. The vectors of numbers have the distance `step`. */
INLINE V NAME(row_mean)(const REAL *a, Size step, Size H, int blocks, V mean, int squares)
{
    Lanes of = NAME(no_sums)(blocks);
    for (Size left = H; left > 0; left -= NAME(WAYS) * LANES, a += NAME(WAYS) * blocks * step)
        EACH (j, NAME(WAYS))
            if (left > j * LANES)
                EACH (block, blocks) {
                    V v = load(a + (j * blocks + block) * step);
                    v = NAME(first)(squares ? v - mean : v, left - j * LANES);
                    of.sum[j][block] = squares ? fma(v, v, of.sum[j][block]) : of.sum[j][block] + v;
                }
    return NAME(divided)(NAME(add_lanes)(&of, blocks), H * blocks);
}

INLINE void NAME(normalise_units)(const REAL *a, Size step, Size H, int blocks, const REAL *gain,
                                  const REAL *more, REAL *kept, REAL *scale, REAL *to)
{
    V mean = NAME(row_mean)(a, step, H, blocks, all(0), 0);
    V variance = NAME(row_mean)(a, step, H, blocks, mean, 1);
    REAL divisor = (REAL)__builtin_sqrt((double)(variance[0] + NORMAL_EPSILON));
    V factor = all(1 / divisor);
    if (scale)
        *scale = factor[0];
    for (Size n = 0, vectors = (H + LANES - 1) / LANES * blocks; n < vectors; n++) {
        V v = (load(a + n * step) - mean) * factor, scaled = load(gain + n * LANES);
        if (kept)
            store(kept + n * LANES, v);
        store(to + n * LANES, more ? fma(v, scaled, load(more + n * LANES)) : v * scaled);
    }
}

/* Scale a row to mean 0 and variance 1, then multiply it by `gain` and add `more`, if that is not NULL. Its
   vectors have the distance `step`; those of `to` are contiguous. The backward pass needs the row before the
   gain and the reciprocal of its divisor, which go to `kept` and `scale`, if those are not NULL. The case of
   one full vector per block has no loops and less latency, which is most of the time of so short a step. */
INLINE void NAME(normalise)(const REAL *a, Size step, Size H, int blocks, const REAL *gain, const REAL *more,
                            REAL *kept, REAL *scale, REAL *to)
{
    if (H == LANES)
        NAME(normalise_units)(a, step, LANES, blocks, gain, more, kept, scale, to);
    else
        NAME(normalise_units)(a, step, H, blocks, gain, more, kept, scale, to);
}

/* `normalise` backward, from the scaled row before the gain and the scale: convert `d` to `to`. */
INLINE void NAME(gain_back)(const REAL *d, const REAL *gain, const REAL *unit_row, REAL scale, Size H,
                            int blocks, REAL *to)
{
    Size size = (H + LANES - 1) / LANES * LANES * blocks;
    Lanes plain = NAME(no_sums)(blocks), along = plain;
    for (Size left = H, at = 0; left > 0; left -= NAME(WAYS) * LANES, at += NAME(WAYS) * LANES * blocks)
        EACH (j, NAME(WAYS))
            if (left > j * LANES)
                EACH (block, blocks) {
                    Size n = at + (j * blocks + block) * LANES;
                    V v = NAME(first)(load(d + n) * load(gain + n), left - j * LANES);
                    plain.sum[j][block] = plain.sum[j][block] + v;
                    along.sum[j][block] = fma(v, load(unit_row + n), along.sum[j][block]);
                }
    V mean = NAME(divided)(NAME(add_lanes)(&plain, blocks), H * blocks);
    V part = NAME(divided)(NAME(add_lanes)(&along, blocks), H * blocks);
    for (Size n = 0; n < size; n += LANES) {
        V v = load(d + n) * load(gain + n);
        store(to + n, fnma(load(unit_row + n), part, v - mean) * all(scale));
    }
}

/* Pack gains in the layout of panels, `blocks` vectors per panel, or zeros if w is NULL. */
static void NAME(pack_gain)(const REAL *w, Size H, Size units, Size blocks, REAL *out)
{
    for (Size unit = 0; unit < units; unit++)
        for (Size block = 0; block < blocks; block++)
            out[(unit / LANES * blocks + block) * LANES + unit % LANES] =
                w && unit < H ? w[block * H + unit] : 0;
}

/* Arrays of the normalisation of c' backward, for one batch entry: the gradients with respect to m
   and to H's argument, this argument, and the gradient with respect to c'. */
#define Exposed NAME(Exposed)
typedef struct Exposed {
    REAL *dm, *dseen, *seen, *dcell;
} Exposed;

/* Convert dm of all units to the gradient with respect to c', for one batch entry with the kept z and the
   normalised c'. */
static void NAME(exposed_backward)(const Packed *p, const REAL *z, const REAL *unit_c, REAL scale,
                                   const Exposed *e)
{
    const Pointwise *how = &p->pointwise;
    const REAL *gain = p->gain_c, *bias = p->bias_c;
    for (Size unit = 0; unit < p->units; unit += LANES) {
        V seen = fma(load(unit_c + unit), load(gain + unit), load(bias + unit));
        V squashed = NAME(activation)(&how->output, seen);
        V o = NAME(activation)(&how->gate, NAME(clip)(load(z + 4 * unit + 3 * LANES), how->gate_clip));
        V d = load(e->dm + unit) * o * NAME(slope)(&how->output, seen, squashed);
        store(e->seen + unit, seen);
        store(e->dseen + unit, d);
        store(e->dcell + unit, d);
    }
    NAME(gain_back)(e->dcell, gain, unit_c, scale, p->H, 1, e->dcell);
}

/* Sum over a block's rows for this thread's panels: dz for the bias, dz times the scaled numbers for the
 * gains. */
static void NAME(sum_gains)(const Backward *f, int direction, Size first, Size last, REAL *sums)
{
    const Rows *rows = &f->rows[direction];
    const Packed *p = f->packed[direction];
    const Kept *kept = &f->kept[direction];
    const Gradient *g = &f->gradient[direction];
    Size H = p->H, units = p->units;
    REAL *total[] = {sums, sums + 4 * units, sums + 8 * units, sums + 12 * units, sums + 13 * units};
    __builtin_memset(sums, 0, (size_t)(14 * units) * sizeof(REAL));
    for (Size n = 0; n < rows->count; n++) {
        Size at = rows->t[n] * f->B + rows->b[n];
        const REAL *dz = (const REAL *)rows->dz + n * 4 * H, *dseen = (const REAL *)rows->dseen + n * H;
        const REAL *x = (const REAL *)kept->inputs + at * 4 * units;
        const REAL *h = (const REAL *)kept->products + at * 4 * units;
        const REAL *c = (const REAL *)kept->exposed + at * units;
        for (Size unit = first * LANES; unit < last * LANES && unit < H; unit += LANES) {
            for (Size gate = 0; gate < 4; gate++) {
                Size k = 4 * unit + gate * LANES;
                V d = load_part(dz + gate * H + unit, H - unit);
                store(total[0] + k, load(total[0] + k) + d);
                store(total[1] + k, fma(d, load(x + k), load(total[1] + k)));
                store(total[2] + k, fma(d, load(h + k), load(total[2] + k)));
            }
            V d = load_part(dseen + unit, H - unit);
            store(total[3] + unit, fma(d, load(c + unit), load(total[3] + unit)));
            store(total[4] + unit, load(total[4] + unit) + d);
        }
    }
    REAL *to[] = {g->bias, g->gain_ih, g->gain_hh, g->gain_c, g->bias_c};
    for (int k = 0; k < 5; k++)
        for (Size unit = first * LANES; unit < last * LANES && unit < H && to[k]; unit++)
            for (Size block = 0, blocks = k < 3 ? 4 : 1; block < blocks; block++)
                to[k][block * H + unit] += total[k][(unit / LANES * blocks + block) * LANES + unit % LANES];
}

#undef NORMAL_EPSILON
#undef Lanes
