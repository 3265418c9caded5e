/* The kernels between two matrix products of a step: the gates of all batch entries, units and directions.

   A thread computes one unit of one batch entry; blockIdx.y is the direction. Both directions run at the same
   time, from opposite ends. A padded or masked step keeps the state and has the output 0.

   Implements xplstm.cells.lstm, clauses XPL-CELL and XPL-SEQ of the specification. */

/* z is (directions, held, B, 4H), with the times of each direction from `first` on. h and c are
   (directions, slots, B, .) with T + 1 slots or 1 slot. m is (directions, m_slots, B, H) with T slots or 1
   slot. */
struct Forward {
    Layer layer;
    Wide *z;
    const Wide *bias; /* (directions, 4H), or null */
    Stored *h;
    Wide *c;
    Stored *m;             /* null without a projection */
    const Wide *projected; /* (directions, B, P): W_hr m of this step */
    Stored *y;             /* (T, B, directions * P) */
    Size first[2], held, slots, m_slots, keep;
};

struct Backward {
    Layer layer;
    const Wide *gates; /* (directions, T, B, 4H) */
    const Wide *c;     /* (directions, T + 1, B, H) */
    const Stored *dy;  /* (T, B, directions * P) */
    Wide *dh;          /* (directions, B, P) */
    Wide *dc;          /* (directions, B, H) */
    const Wide *dm; /* (directions, B, H): gradient with respect to o * tanh(c'); null without a projection */
    Stored *dprojected; /* (directions, T, B, P): gradient with respect to W_hr m */
    Stored *dz;         /* (directions, T, B, 4H) */
};

struct Place {
    Size d, b, unit;
    bool inside;
};

/* 32-bit integers, because 64-bit division is slow on a GPU. layer.py bounds the size of a step. */
DEVICE Place place_of(const Layer &layer, Size width)
{
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x, across = (unsigned)width, row = at / across;
    return {(Size)blockIdx.y, (Size)row, (Size)(at - row * across), row < layer.B};
}

DEVICE void publish(const Forward &f, const Place &at, const Step &step, bool valid, Stored h_new)
{
    const Layer &layer = f.layer;
    Size P = layer.P, y_row = (step.t * layer.B + at.b) * layer.directions + at.d;
    Stored h_old = f.h[state_row(layer, f.slots, at.d, step.before, at.b) * P + at.unit];
    f.h[state_row(layer, f.slots, at.d, step.after, at.b) * P + at.unit] = valid ? h_new : h_old;
    f.y[y_row * P + at.unit] = valid ? h_new : narrowed(0);
}

/* Overwrite z with the gates and c with c'. o * tanh(c') is h', or the input of the projection. */
extern "C" __global__ void __launch_bounds__(THREADS) forward_gates(const Forward f, Size k)
{
    const Layer &layer = f.layer;
    Size H = layer.H;
    Place at = place_of(layer, H);
    if (!at.inside)
        return;
    Step step = step_of(layer, at.d, k);
    bool valid = exists(layer, step.t, at.b);
    Wide *z = f.z + ((at.d * f.held + step.t - f.first[at.d]) * layer.B + at.b) * 4 * H + at.unit;
    const Wide *bias = f.bias + at.d * 4 * H + at.unit;
    Wide gate[4];
    for (int n = 0; n < 4; n++)
        gate[n] = f.bias ? sum(z[n * H], bias[n * H]) : z[n * H];
    Wide c_old = f.c[state_row(layer, f.slots, at.d, step.before, at.b) * H + at.unit], c_new = c_old;
    Stored m = forward_cell(gate, c_new);
    if (f.keep)
        for (int n = 0; n < 4; n++)
            z[n * H] = gate[n];
    f.c[state_row(layer, f.slots, at.d, step.after, at.b) * H + at.unit] = valid ? c_new : c_old;
    if (f.m)
        f.m[state_row(layer, f.m_slots, at.d, step.t, at.b) * H + at.unit] = valid ? m : narrowed(0);
    else
        publish(f, at, step, valid, m);
}

extern "C" __global__ void __launch_bounds__(THREADS) forward_projected(const Forward f, Size k)
{
    const Layer &layer = f.layer;
    Place at = place_of(layer, layer.P);
    if (!at.inside)
        return;
    Step step = step_of(layer, at.d, k);
    Wide h = f.projected[(at.d * layer.B + at.b) * layer.P + at.unit];
    publish(f, at, step, exists(layer, step.t, at.b), narrowed(h));
}

/* Return the gradient with respect to h' of a valid step, and zero it in dh, to which the next product
   adds the gradient with respect to h. */
DEVICE Wide taken(const Backward &f, const Place &at, Size t)
{
    const Layer &layer = f.layer;
    Wide *dh = f.dh + (at.d * layer.B + at.b) * layer.P + at.unit;
    Wide total =
        sum(*dh, widened(f.dy[((t * layer.B + at.b) * layer.directions + at.d) * layer.P + at.unit]));
    *dh = 0;
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS) backward_projected(const Backward f, Size k)
{
    const Layer &layer = f.layer;
    Place at = place_of(layer, layer.P);
    if (!at.inside)
        return;
    Size t = step_of(layer, at.d, k).t;
    Wide total = exists(layer, t, at.b) ? taken(f, at, t) : 0;
    f.dprojected[((at.d * layer.T + t) * layer.B + at.b) * layer.P + at.unit] = narrowed(total);
}

extern "C" __global__ void __launch_bounds__(THREADS) backward_gates(const Backward f, Size k)
{
    const Layer &layer = f.layer;
    Size H = layer.H;
    Place at = place_of(layer, H);
    if (!at.inside)
        return;
    Step step = step_of(layer, at.d, k);
    Size row = (at.d * layer.T + step.t) * layer.B + at.b, state = (at.d * layer.B + at.b) * H + at.unit;
    Stored *dz = f.dz + row * 4 * H + at.unit;
    if (!exists(layer, step.t, at.b)) {
        for (int n = 0; n < 4; n++)
            dz[n * H] = narrowed(0);
        return;
    }
    const Wide *gates = f.gates + row * 4 * H + at.unit;
    Wide gate[4] = {gates[0], gates[H], gates[2 * H], gates[3 * H]};
    Wide c_old = f.c[state_row(layer, layer.T + 1, at.d, step.before, at.b) * H + at.unit];
    Wide c_new = f.c[state_row(layer, layer.T + 1, at.d, step.after, at.b) * H + at.unit];
    Wide dm = f.dm ? f.dm[state] : taken(f, at, step.t);
    backward_cell(gate, c_old, c_new, dm, f.dc[state]);
    for (int n = 0; n < 4; n++)
        dz[n * H] = narrowed(gate[n]);
}

/* Copy `in` (T, B, N) to `out`, with zeros at padded and masked steps. Both may be the same array. */
extern "C" __global__ void __launch_bounds__(THREADS)
    zero_missing(const Layer layer, const Stored *in, Stored *out, Size N)
{
    Size at = (Size)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= layer.T * layer.B * N)
        return;
    Size row = at / N;
    out[at] = exists(layer, row / layer.B, row % layer.B) ? in[at] : narrowed(0);
}

/* First of two kernels for column sums of `in` (directions, rows, columns), in an order that depends only on
   the sizes. A block sums WARP columns over `height` rows. Each of blockDim.y lanes adds every blockDim.y-th
   row, and one lane adds these sums. */
extern "C" __global__ void __launch_bounds__(RUN_THREADS)
    sum_runs(const Stored *in, Wide *out, Size rows, Size columns, Size height)
{
    Wide *parts = (Wide *)shared_memory();
    Size column = (Size)blockIdx.x * WARP + threadIdx.x, run = blockIdx.y, d = blockIdx.z;
    Size end = (run + 1) * height < rows ? (run + 1) * height : rows;
    Wide total = 0;
    if (column < columns)
        for (Size row = run * height + threadIdx.y; row < end; row += blockDim.y)
            total = sum(total, widened(in[(d * rows + row) * columns + column]));
    parts[threadIdx.y * WARP + threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y || column >= columns)
        return;
    for (int part = 1; part < (int)blockDim.y; part++)
        total = sum(total, parts[part * WARP + threadIdx.x]);
    out[(d * gridDim.y + run) * columns + column] = total;
}

/* `in` is (directions, runs, columns). */
extern "C" __global__ void __launch_bounds__(THREADS)
    add_runs(const Wide *in, Stored *out, Size runs, Size columns)
{
    Size column = (Size)blockIdx.x * blockDim.x + threadIdx.x, d = blockIdx.y;
    if (column >= columns)
        return;
    Wide total = 0;
    for (Size run = 0; run < runs; run++)
        total = sum(total, in[(d * runs + run) * columns + column]);
    out[d * columns + column] = narrowed(total);
}
