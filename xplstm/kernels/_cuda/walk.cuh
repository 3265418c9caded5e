/* What both walks through time in one launch share: how the work is cut, how blocks wait for each other, and
   what happens to one unit of one row in a step.

   A block owns some hidden units of one direction for one group of the batch's rows: their rows of W_hh, and
   their c and h. Every step it reads all of its group's h, multiplies, applies the gates, and publishes its own
   units' h; backward it is dz. Only blocks of one group and direction wait for each other, by one counter each.

   Why nobody reads too early: a block's stores come before its __syncthreads, and that before the release store
   of its counter; a reader's acquire load of it comes before the barrier that its other threads pass.

   Why nobody writes too early: what is exchanged lies in two buffers by turns. Who writes turn k + 2 has seen, in
   one thread or another, every counter of turn k + 1, and each was raised by a block that was done reading turn k.

   Why no barrier guards what a block holds of its cells: cell n is thread n % threads' own, from the first loop to
   the last, in those over one pass's cells too, wherever these begin: see own_from. What threads hand each other in
   a block are the sums of slices, between two barriers.

   Why nobody waits for ever: every block raises its counter for a turn before it waits for that turn's others,
   so that the one furthest behind never waits; and all blocks run at the same time, since the launch is a
   cooperative one, of at most one block a multiprocessor. The blocks stand along y of the
   grid: with too many along x CuPy would launch those that fit, and warn. */

#define WARP 32

/* How the work is cut; the Python side chooses it by the device's attributes. */
struct Plan {
    Size units;                         /* of a block: a multiple of 8 */
    Size unit_blocks, groups;           /* blocks = directions * groups * unit_blocks */
    Size rows;                          /* of a group, the last one may have fewer */
    Size tiles;                         /* row tiles that are on the chip at once */
    Size passes;                        /* times that as many tiles make up the group's rows */
    Size chunk;                         /* of k that is on the chip at once; backward without mma alone */
};

/* The same in numbers that a GPU divides fast. */
struct Cut {
    int units, unit_blocks, groups, rows, tiles, passes, chunk;
};

DEVICE Cut cut_by(const Plan &p)
{
    return {(int)p.units, (int)p.unit_blocks, (int)p.groups, (int)p.rows, (int)p.tiles, (int)p.passes, (int)p.chunk};
}

struct Walk {
    Layer layer;
    Plan plan;
    const Stored *weight;               /* (directions, 4H, H) */
    Wide *z;                            /* (directions, held, B, 4H): W_ih x, and the gates afterwards */
    const Wide *bias;                   /* (directions, 4H), or null */
    const Stored *h_0, *c_0;            /* (directions, B, H) */
    Stored *h_n, *c_n;
    Stored *h;                          /* (directions, slots, B, H) */
    Wide *c;
    Stored *y;                          /* (T, B, directions * H) */
    void *exchange;                     /* (2, directions, groups, what one group sends) */
    unsigned *counters;                 /* (directions, groups, unit_blocks), zeros */
    Size first[2], held, slots, keep, from, to;
};

struct WalkBack {
    Layer layer;
    Plan plan;
    const Stored *weight;
    const Wide *gates;                  /* (directions, T, B, 4H) */
    const Wide *c;                      /* (directions, T + 1, B, H) */
    const Stored *dy;
    Wide *dh, *dc;                      /* (directions, B, H): by the end, and then by the start */
    Stored *dz;                         /* (directions, T, B, 4H) */
    void *exchange;
    unsigned *counters;
};

/* The part of the work that this block has; `lot` counts the groups of all directions. */
struct Own {
    int d, lot, unit_block, unit, row, rows;
};

DEVICE Own own_part(const Layer &layer, const Cut &cut)
{
    int lot = (int)blockIdx.y / cut.unit_blocks, unit_block = (int)blockIdx.y % cut.unit_blocks;
    int row = lot % cut.groups * cut.rows, left = (int)layer.B - row;
    return {lot / cut.groups, lot, unit_block, unit_block * cut.units, row, left < cut.rows ? left : cut.rows};
}

/* Say that this block has written what it owes for `epoch`. */
DEVICE void announce(unsigned *counters, unsigned epoch)
{
    __syncthreads();
    if (threadIdx.x == 0)
        store_release(counters + blockIdx.y, epoch);
}

/* Wait for a block of the group. */
DEVICE void await_one(const unsigned *counters, const Own &own, int unit_block, unsigned epoch)
{
    while (load_acquire(counters + blockIdx.y - own.unit_block + unit_block) < epoch)
        rest();
}

/* Where the exchange of one turn begins, of `count` numbers a group. */
template <typename Sent>
DEVICE Sent *exchanged(void *exchange, const Layer &layer, const Own &own, const Cut &cut, Size turn, Size count)
{
    return (Sent *)exchange + ((turn & 1) * layer.directions * cut.groups + own.lot) * count;
}

/* N numbers that are read at once. */
template <int N> struct __align__(N * sizeof(Wide) < 16 ? N * sizeof(Wide) : 16) Run {
    Wide at[N];
};

template <int N> DEVICE Run<N> run_at(const Wide *from) { return *(const Run<N> *)from; }

/* One unit of one row: where it stands in the batch and in the layer. */
struct Cell {
    int row, unit;
    bool inside;
};

DEVICE Cell cell_of(const Layer &layer, const Own &own, int row, int unit)
{
    return {own.row + row, own.unit + unit, row < own.rows && own.unit + unit < layer.H};
}

/* The first of this thread's cells that is not before `cell`. */
DEVICE int own_from(int cell)
{
    int apart = (int)threadIdx.x - cell % (int)blockDim.x;
    return cell + (apart < 0 ? apart + (int)blockDim.x : apart);
}

/* What a block holds of its cells in shared memory: cell n is touched by thread n % threads alone. */
struct Held {
    Wide *z;                            /* (cells, 4): W_ih x of the step to come, then its gates */
    int cells;

    __device__ Wide &c(int n) const { return z[4 * cells + n]; }
    __device__ Wide &h(int n) const { return z[5 * cells + n]; }
    __device__ unsigned char &lives(int n) const { return ((unsigned char *)(z + 6 * cells))[n]; }  /* has the step */
};

DEVICE Wide *input_of(const Walk &f, const Own &own, const Cell &cell, Size t)
{
    return f.z + ((own.d * f.held + t - f.first[own.d]) * f.layer.B + cell.row) * 4 * f.layer.H + cell.unit;
}

/* Where h and c stand of a cell, before or after a step. */
DEVICE Size state_of(const Walk &f, const Own &own, const Cell &cell, Size slot)
{
    return state_row(f.layer, f.slots, own.d, slot, cell.row) * f.layer.H + cell.unit;
}

/* c and h of a cell before the first step of this launch. */
DEVICE void begin(const Walk &f, const Own &own, const Cell &cell, const Held &held, int n)
{
    held.c(n) = held.h(n) = 0;
    if (!cell.inside)
        return;
    Size at = state_of(f, own, cell, step_of(f.layer, own.d, f.from).before);
    Size row = (own.d * f.layer.B + cell.row) * f.layer.H + cell.unit;
    held.c(n) = f.from ? f.c[at] : widened(f.c_0[row]);
    held.h(n) = widened(f.from ? f.h[at] : f.h_0[row]);
    if (f.slots > 1) {
        f.c[at] = held.c(n);
        f.h[at] = narrowed(held.h(n));
    }
}

/* Have a cell's W_ih x brought, while others still compute. */
DEVICE void fetch(const Walk &f, const Own &own, const Cell &cell, const Held &held, int n, Size t)
{
    if (!cell.inside)
        return;
    const Wide *from = input_of(f, own, cell, t);
    for (int gate = 0; gate < 4; gate++)
        copy_soon(held.z + 4 * n + gate, from + gate * f.layer.H);
    held.lives(n) = exists(f.layer, t, cell.row);
}

/* The gates of one cell, and its h'; `apart` lies between two slices' parts. */
DEVICE Wide advance(const Held &held, int n, const Wide *bias, const Wide *parts, int slices, int apart)
{
    Wide *gate = held.z + 4 * n, c_old = held.c(n);
    Run<4> total = run_at<4>(gate), biases = run_at<4>(bias);
    for (int at = 0; at < 4; at++)
        total.at[at] = sum(total.at[at], biases.at[at]);
    for (int slice = 0; slice < slices; slice++) {
        Run<4> part = run_at<4>(parts + slice * apart);
        for (int at = 0; at < 4; at++)
            total.at[at] = sum(total.at[at], part.at[at]);
    }
    for (int at = 0; at < 4; at++)
        gate[at] = total.at[at] = at == 2 ? hyperbolic_tangent(total.at[at]) : sigmoid(total.at[at]);
    Wide c_new = fused(total.at[1], c_old, product(total.at[0], total.at[2]));
    Stored m = narrowed(product(total.at[3], hyperbolic_tangent(c_new)));
    if (held.lives(n)) {
        held.c(n) = c_new;
        held.h(n) = widened(m);
    }
    return held.h(n);
}

/* What nobody waits for. */
DEVICE void write_out(const Walk &f, const Own &own, const Cell &cell, const Held &held, int n, Size k)
{
    const Layer &layer = f.layer;
    Step step = step_of(layer, own.d, k);
    bool last = k + 1 == f.to;
    if (!cell.inside)
        return;
    f.y[((step.t * layer.B + cell.row) * layer.directions + own.d) * layer.H + cell.unit] =
        narrowed(held.lives(n) ? held.h(n) : 0);
    if (f.keep)
        for (int gate = 0; gate < 4; gate++)
            input_of(f, own, cell, step.t)[gate * layer.H] = held.z[4 * n + gate];
    if (last || f.slots > 1) {
        Size at = state_of(f, own, cell, step.after);
        f.h[at] = narrowed(held.h(n));
        f.c[at] = held.c(n);
    }
    if (last && f.to == layer.T) {
        Size row = (own.d * layer.B + cell.row) * layer.H + cell.unit;
        f.h_n[row] = narrowed(held.h(n));
        f.c_n[row] = narrowed(held.c(n));
    }
}

/* The biases of a block's units, gate by gate, or zeros. */
DEVICE void hold_biases(const Walk &f, const Own &own, const Cut &cut, Wide *bias)
{
    for (int n = threadIdx.x; n < 4 * cut.units; n += (int)blockDim.x) {
        bool there = f.bias && own.unit + n / 4 < f.layer.H;
        bias[n] = there ? f.bias[(own.d * 4 + n % 4) * f.layer.H + own.unit + n / 4] : 0;
    }
}

/* What a block holds of its cells on the way back, owned likewise. */
struct HeldBack {
    Wide *z;                            /* (cells, 4): the gates of the step to come, then dz */
    int cells;

    __device__ Wide &c_old(int n) const { return z[4 * cells + n]; }
    __device__ Wide &c_new(int n) const { return z[5 * cells + n]; }
    __device__ Wide &dy(int n) const { return z[6 * cells + n]; }
    __device__ Wide &dh(int n) const { return z[7 * cells + n]; }
    __device__ Wide &dc(int n) const { return z[8 * cells + n]; }
    __device__ unsigned char &lives(int n) const { return ((unsigned char *)(z + 9 * cells))[n]; }
};

DEVICE void begin_back(const WalkBack &f, const Own &own, const Cell &cell, const HeldBack &held, int n)
{
    const Layer &layer = f.layer;
    held.dh(n) = held.dc(n) = 0;
    if (!cell.inside)
        return;
    Size row = (own.d * layer.B + cell.row) * layer.H + cell.unit, slot = step_of(layer, own.d, layer.T - 1).after;
    held.dh(n) = f.dh[row];
    held.dc(n) = f.dc[row];
    held.c_new(n) = f.c[state_row(layer, layer.T + 1, own.d, slot, cell.row) * layer.H + cell.unit];
}

/* Have brought what the gradient of one cell's step needs, while others still compute. */
DEVICE void fetch_back(const WalkBack &f, const Own &own, const Cell &cell, const HeldBack &held, int n, Size k)
{
    const Layer &layer = f.layer;
    Size H = layer.H, B = layer.B;
    Step step = step_of(layer, own.d, k);
    if (!cell.inside)
        return;
    const Wide *gates = f.gates + ((own.d * layer.T + step.t) * B + cell.row) * 4 * H + cell.unit;
    for (int gate = 0; gate < 4; gate++)
        copy_soon(held.z + 4 * n + gate, gates + gate * H);
    copy_soon(&held.c_old(n), f.c + state_row(layer, layer.T + 1, own.d, step.before, cell.row) * H + cell.unit);
    held.dy(n) = widened(f.dy[((step.t * B + cell.row) * layer.directions + own.d) * H + cell.unit]);
    held.lives(n) = exists(layer, step.t, cell.row);
}

/* dz of one cell in the place of its gates; dh is left for what comes by h. */
DEVICE void retreat(const HeldBack &held, int n)
{
    Wide *z = held.z + 4 * n, i = z[0], f = z[1], g = z[2], o = z[3];
    z[0] = z[1] = z[2] = z[3] = 0;
    if (held.lives(n)) {
        Wide tanh_c = hyperbolic_tangent(held.c_new(n)), dm = sum(held.dh(n), held.dy(n));
        Wide dc_new = held.dc(n) + dm * o * (1 - tanh_c * tanh_c);
        z[0] = dc_new * g * (i * (1 - i));
        z[1] = dc_new * held.c_old(n) * (f * (1 - f));
        z[2] = dc_new * i * (1 - g * g);
        z[3] = dm * tanh_c * (o * (1 - o));
        held.dc(n) = dc_new * f;
        held.dh(n) = 0;
    }
    held.c_new(n) = held.c_old(n);
}

/* What nobody waits for: dz for the gradients by the weights. */
DEVICE void write_out_back(const WalkBack &f, const Own &own, const Cell &cell, const HeldBack &held, int n, Size k)
{
    Size H = f.layer.H, t = step_of(f.layer, own.d, k).t;
    if (cell.inside)
        for (int gate = 0; gate < 4; gate++)
            f.dz[((own.d * f.layer.T + t) * f.layer.B + cell.row) * 4 * H + gate * H + cell.unit] =
                narrowed(held.z[4 * n + gate]);
}

DEVICE void end_back(const WalkBack &f, const Own &own, const Cell &cell, const HeldBack &held, int n)
{
    if (!cell.inside)
        return;
    f.dh[(own.d * f.layer.B + cell.row) * f.layer.H + cell.unit] = held.dh(n);
    f.dc[(own.d * f.layer.B + cell.row) * f.layer.H + cell.unit] = held.dc(n);
}
