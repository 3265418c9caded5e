/* A whole walk through time in one cooperative launch, both directions at once, weights held on the chip.

   A block owns `units` hidden units of one direction for one group of the batch's rows: the 4 * units rows of
   W_hh in shared memory, and those units' c. Every step it reads all of its group's h, multiplies, applies the
   gates, and publishes its own units' h. Blocks of one group and direction wait for each other alone, by one
   counter each: written with release, polled with acquire. What is exchanged lies in two buffers by turns: a
   block that writes one has seen every counter of the step before, so that nobody reads it any more.

   In half precision mma instructions take what is exchanged as it is, and sum in float32. Otherwise
   a sum over k is cut into blocks of 128: a warp makes one block's chain of fused multiply-adds for a tile of
   rows and 32 columns, and the blocks' results are added in ascending order, as XPL-EXACT-002 and
   XPL-EXACT-003 have it. The idea of weights that stay on the chip: Diamos et al. (2016).

   Derived from the equations of xplstm._cell, clauses XPL-CELL, XPL-SEQ and XPL-EXACT of the specification. */

#define WARP 32
#define BLOCK_OF_K 128
#define TILE_COLUMNS 32
#define LANE_ROWS 4                     /* rows of a tile that one lane sums */

#if defined(FLOAT16) || defined(BFLOAT16)
#define HALF 1
typedef Stored Sent;                    /* what blocks hand each other, and what weights are held as */
DEVICE Sent sent(Wide a) { return narrowed(a); }
DEVICE Wide received(Sent a) { return widened(a); }
#else
#define HALF 0
typedef Wide Sent;
DEVICE Sent sent(Wide a) { return a; }
DEVICE Wide received(Sent a) { return a; }
#endif

/* Numbers from one row of k's to the next for mma, so that eight rows lie in different banks; else k's. */
DEVICE int padded(int k) { return HALF ? (k + 15) / 16 * 16 + 8 : k; }

/* How the work is cut; the Python side chooses it by the device's attributes. */
struct Plan {
    Size units;                         /* of a block: a multiple of 8 */
    Size unit_blocks, groups;           /* blocks = directions * groups * unit_blocks */
    Size rows;                          /* of a group, the last one may have fewer */
    Size tiles;                         /* row tiles that are on the chip at once */
    Size passes;                        /* times that as many tiles make up the group's rows */
    Size chunk;                         /* of k that is on the chip at once, backward */
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
    Stored *h;                          /* (directions, slots, B, H) */
    Wide *c;
    Stored *y;                          /* (T, B, directions * H) */
    Sent *exchange;                     /* (2, directions, groups, passes, tiles, H, tile rows), or rows first */
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
    Sent *exchange;                     /* (2, directions, groups, passes, tiles, 4H, tile rows), or rows first */
    unsigned *counters;
};

/* The part of the work that this block has. */
struct Own {
    int d, group, unit_block, unit, row, rows;
};

DEVICE Own own_part(const Layer &layer, const Cut &cut)
{
    int block = blockIdx.x, group = block / cut.unit_blocks % cut.groups, row = group * cut.rows;
    int rows = (int)layer.B - row < cut.rows ? (int)layer.B - row : cut.rows, unit_block = block % cut.unit_blocks;
    return {block / cut.unit_blocks / cut.groups, group, unit_block, unit_block * cut.units, row, rows};
}

/* Say that this block has written what it owes for `epoch`. */
DEVICE void announce(unsigned *counters, const Own &own, const Cut &cut, unsigned epoch)
{
    __syncthreads();
    if (threadIdx.x == 0)
        store_release(counters + (own.d * cut.groups + own.group) * cut.unit_blocks + own.unit_block, epoch);
}

/* Wait until every block of the group has announced `epoch`. */
DEVICE void await(const unsigned *counters, const Own &own, const Cut &cut, unsigned epoch)
{
    const unsigned *group = counters + (own.d * cut.groups + own.group) * cut.unit_blocks;
    if (threadIdx.x < WARP)
        for (int n = threadIdx.x; n < cut.unit_blocks; n += WARP)
            while (load_acquire(group + n) < epoch)
                rest();
    __syncthreads();
}

/* Where the exchange of one turn, pass and group begins: (tiles, height, tile rows), or rows first. */
DEVICE Sent *exchanged(Sent *exchange, const Layer &layer, const Own &own, const Cut &cut, Size turn, Size pass,
                       Size height, Size tile_rows)
{
    Size at = (((turn & 1) * layer.directions + own.d) * cut.groups + own.group) * cut.passes + pass;
    return exchange + at * cut.tiles * height * tile_rows;
}

/* `count` numbers, a multiple of those in 16 bytes, to shared memory. */
DEVICE void stage(Sent *to, const Sent *from, int count)
{
    const int each = 16 / (int)sizeof(Sent);
    for (int n = (int)threadIdx.x * each; n < count; n += (int)blockDim.x * each)
        copy_fresh(to + n, from + n);
}

/* Where one of `height` numbers of a row stands in what is exchanged and staged. */
DEVICE int spot(int row, int k, int height, int tile_rows)
{
    return HALF ? row * height + k : (row / tile_rows * height + k) * tile_rows + row % tile_rows;
}

#if HALF
/* parts[slice][row][column] of columns (columns, padded) times staged (rows, pitch): a warp has one slice of k
   for 16 rows and up to 32 columns. `begun` parts grow. */
DEVICE void multiply_tiles(const Sent *columns_of_k, int pitch, const Sent *staged, int staged_pitch, Wide *parts,
                           int columns, int tiles, int slices, int k_count, bool begun)
{
    int groups = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS, items = slices * tiles * groups;
    int steps = (k_count + 15) / 16, share = (steps + slices - 1) / slices;
    int lane = threadIdx.x % WARP, eighth = lane / 4, pair = lane % 4 * 2;
    for (int item = threadIdx.x / WARP; item < items; item += (int)blockDim.x / WARP) {
        int slice = item / (tiles * groups), tile = item / groups % tiles, first = item % groups * TILE_COLUMNS;
        int begin = slice * share, end = begin + share < steps ? begin + share : steps;
        int octets = (columns - first) / 8 < 4 ? (columns - first) / 8 : 4;
        const Sent *a_at = staged + (tile * 16 + eighth) * staged_pitch + pair;
        const Sent *b_at = columns_of_k + (first + eighth) * pitch + pair;
        Wide sums[4][4] = {};
        for (int step = begin; step < end; step++) {
            const Sent *a = a_at + step * 16, *b = b_at + step * 16;
            unsigned left[4] = {two_at(a), two_at(a + 8 * staged_pitch), two_at(a + 8),
                                two_at(a + 8 * staged_pitch + 8)};
#pragma unroll
            for (int n = 0; n < 4; n++)
                if (n < octets) {
                    unsigned right[2] = {two_at(b + n * 8 * pitch), two_at(b + n * 8 * pitch + 8)};
                    multiply_16_8_16(sums[n], left, right);
                }
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int at = 0; at < 4; at++)
                if (n < octets) {
                    int row = eighth + at / 2 * 8, column = first + n * 8 + pair + at % 2;
                    Wide *part = parts + ((slice * tiles + tile) * 16 + row) * columns + column;
                    *part = begun ? *part + sums[n][at] : sums[n][at];
                }
    }
}

/* As many slices of k as give every warp something. */
DEVICE int slices_for(int columns, int tiles, int)
{
    int items = tiles * ((columns + TILE_COLUMNS - 1) / TILE_COLUMNS), warps = blockDim.x / WARP;
    return warps / items > 0 ? warps / items : 1;
}
#else
/* N numbers that are read at once. */
template <int N> struct __align__(N * sizeof(Wide) < 16 ? N * sizeof(Wide) : 16) Run {
    Wide at[N];
};

template <int N> DEVICE Run<N> run_at(const Wide *from) { return *(const Run<N> *)from; }

/* A slice of k is a block of the published sums. */
DEVICE int slices_for(int, int, int k) { return (k + BLOCK_OF_K - 1) / BLOCK_OF_K; }

/* parts[block of k][tile row][column] of all tiles: a warp has one block of k of one tile and 32 columns. C is
   the number of columns of a lane, and a tile has 4 * C rows. */
template <int C>
DEVICE void multiply(const Wide *weights, const Wide *h, Wide *parts, const Layer &layer, const Cut &cut)
{
    const int tile_rows = LANE_ROWS * C, column_lanes = TILE_COLUMNS / C;
    int columns = 4 * cut.units, column_tiles = columns / TILE_COLUMNS, H = (int)layer.H;
    int blocks = (H + BLOCK_OF_K - 1) / BLOCK_OF_K, items = blocks * cut.tiles * column_tiles;
    int lane = threadIdx.x % WARP, column = lane % column_lanes * C, row = lane / column_lanes * LANE_ROWS;
    for (int item = threadIdx.x / WARP; item < items; item += (int)blockDim.x / WARP) {
        int at = item / (cut.tiles * column_tiles), tile = item / column_tiles % cut.tiles;
        int first = item % column_tiles * TILE_COLUMNS + column;
        int begin = at * BLOCK_OF_K, end = begin + BLOCK_OF_K < H ? begin + BLOCK_OF_K : H;
        const Wide *w = weights + begin * columns + first, *v = h + (tile * H + begin) * tile_rows + row;
        Wide sums[LANE_ROWS][C] = {};
#pragma unroll 4
        for (int k = begin; k < end; k++, w += columns, v += tile_rows) {
            Run<C> left = run_at<C>(w);
            Run<LANE_ROWS> right = run_at<LANE_ROWS>(v);
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++)
#pragma unroll
                for (int n = 0; n < C; n++)
                    sums[r][n] = fused(left.at[n], right.at[r], sums[r][n]);
        }
        Wide *part = parts + ((at * cut.tiles + tile) * tile_rows + row) * columns + first;
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++)
#pragma unroll
            for (int n = 0; n < C; n++)
                part[r * columns + n] = sums[r][n];
    }
}

#endif

/* One unit of one row: where it stands in the batch and in the layer. */
struct Cell {
    int row, unit, local_row, local_unit;
    bool inside;
};

DEVICE Cell cell_of(const Layer &layer, const Own &own, const Cut &cut, int n, int pass_row)
{
    int local_row = pass_row + n / cut.units, local_unit = n % cut.units;
    return {own.row + local_row, own.unit + local_unit, local_row, local_unit,
            local_row < own.rows && own.unit + local_unit < layer.H};
}

DEVICE Wide *input_of(const Walk &f, const Own &own, const Cell &cell, Size t)
{
    return f.z + ((own.d * f.held + t - f.first[own.d]) * f.layer.B + cell.row) * 4 * f.layer.H + cell.unit;
}

/* The four gates' W_ih x of one cell, fetched while others still compute. */
struct Ahead {
    Wide z[4];
};

DEVICE Ahead fetch(const Walk &f, const Own &own, const Cell &cell, Size t)
{
    Ahead ahead = {};
    if (cell.inside)
        for (int n = 0; n < 4; n++)
            ahead.z[n] = input_of(f, own, cell, t)[n * f.layer.H];
    return ahead;
}

/* The gates of one cell, and h' for the others to read; `apart` lies between two slices' parts. */
DEVICE Sent advance(const Walk &f, const Own &own, const Cell &cell, const Step &step, const Ahead &ahead,
                    const Wide *parts, int slices, int apart, Wide h_old, Wide *c_held, bool last)
{
    const Layer &layer = f.layer;
    Size H = layer.H;
    Wide gate[4];
    for (int n = 0; n < 4; n++) {
        Wide total = f.bias ? sum(ahead.z[n], f.bias[(own.d * 4 + n) * H + cell.unit]) : ahead.z[n];
        for (int at = 0; at < slices; at++)
            total = sum(total, parts[at * apart + n]);
        gate[n] = n == 2 ? hyperbolic_tangent(total) : sigmoid(total);
        if (f.keep)
            input_of(f, own, cell, step.t)[n * H] = gate[n];
    }
    bool valid = exists(layer, step.t, cell.row);
    Wide c_new = fused(gate[1], *c_held, product(gate[0], gate[2]));
    Stored m = narrowed(product(gate[3], hyperbolic_tangent(c_new))), h_new = valid ? m : narrowed(h_old);
    *c_held = valid ? c_new : *c_held;
    f.y[((step.t * layer.B + cell.row) * layer.directions + own.d) * H + cell.unit] = valid ? m : narrowed(0);
    if (last || f.slots > 1) {
        Size at = state_row(layer, f.slots, own.d, step.after, cell.row) * H + cell.unit;
        f.h[at] = h_new;
        f.c[at] = *c_held;
    }
    return sent(widened(h_new));
}

template <int C> DEVICE void walk(const Walk &f)
{
    const Layer &layer = f.layer;
    const Cut cut = cut_by(f.plan);
    const int tile_rows = LANE_ROWS * C;
    const Own own = own_part(layer, cut);
    const int H = (int)layer.H, columns = 4 * cut.units, pass_rows = cut.tiles * tile_rows;
    const int cells = pass_rows * cut.units, threads = blockDim.x;
    const int height = padded(H), slices = slices_for(columns, cut.tiles, H);
    Sent *weights = (Sent *)shared_memory(), *h = weights + height * columns;
    Wide *parts = (Wide *)(h + pass_rows * height), *c = parts + slices * pass_rows * columns;
    for (int n = threadIdx.x; n < height * columns; n += threads) {
        int column = n / height, k = n % height, unit = own.unit + column / 4;
        Size row = (own.d * 4 + column % 4) * layer.H + unit;
        weights[HALF ? n : k * columns + column] = sent(unit < H && k < H ? widened(f.weight[row * H + k]) : 0);
    }
    Size before = step_of(layer, own.d, f.from).before;
    for (int pass = 0; pass < cut.passes; pass++)
        for (int n = threadIdx.x; n < cells; n += threads) {
            Cell cell = cell_of(layer, own, cut, n, pass * pass_rows);
            Size at = state_row(layer, f.slots, own.d, before, cell.row) * H + cell.unit;
            c[cell.local_row * cut.units + cell.local_unit] = cell.inside ? f.c[at] : 0;
            Sent *out = exchanged(f.exchange, layer, own, cut, f.from, pass, height, tile_rows);
            if (cell.unit < H)
                out[spot(n / cut.units, cell.unit, height, tile_rows)] = sent(cell.inside ? widened(f.h[at]) : 0);
        }
    for (Size k = f.from; k < f.to; k++) {
        Step step = step_of(layer, own.d, k);
        announce(f.counters, own, cut, (unsigned)(k - f.from + 1));
        Ahead ahead = fetch(f, own, cell_of(layer, own, cut, threadIdx.x, 0), step.t);
        await(f.counters, own, cut, (unsigned)(k - f.from + 1));
        for (int pass = 0; pass < cut.passes; pass++) {
            stage(h, exchanged(f.exchange, layer, own, cut, k, pass, height, tile_rows), pass_rows * height);
            copies_done();
            __syncthreads();
#if HALF
            multiply_tiles(weights, height, h, height, parts, columns, cut.tiles, slices, H, false);
#else
            multiply<C>(weights, h, parts, layer, cut);
#endif
            __syncthreads();
            Sent *out = exchanged(f.exchange, layer, own, cut, k + 1, pass, height, tile_rows);
            for (int n = threadIdx.x; n < cells; n += threads) {
                Cell cell = cell_of(layer, own, cut, n, pass * pass_rows);
                if (!cell.inside)
                    continue;
                if (pass || n >= threads)
                    ahead = fetch(f, own, cell, step.t);
                int row = n / cut.units, at = spot(row, cell.unit, height, tile_rows);
                const Wide *part = parts + row * columns + 4 * cell.local_unit;
                Wide *c_held = c + cell.local_row * cut.units + cell.local_unit;
                out[at] = advance(f, own, cell, step, ahead, part, slices, pass_rows * columns, received(h[at]), c_held,
                                  k + 1 == f.to);
            }
            __syncthreads();
        }
    }
}

#if !HALF
extern "C" __global__ void __launch_bounds__(256, 1) walk_4(const Walk f) { walk<1>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_8(const Walk f) { walk<2>(f); }
#endif
extern "C" __global__ void __launch_bounds__(256, 1) walk_16(const Walk f) { walk<4>(f); }

/* What the gradient of one cell's step needs, fetched while others still compute. */
struct AheadBack {
    Wide gate[4], c_old, c_new, dy;
};

DEVICE AheadBack fetch_back(const WalkBack &f, const Own &own, const Cell &cell, const Step &step)
{
    const Layer &layer = f.layer;
    Size H = layer.H, B = layer.B, gates = ((own.d * layer.T + step.t) * B + cell.row) * 4 * H + cell.unit;
    AheadBack ahead = {};
    if (!cell.inside)
        return ahead;
    for (int n = 0; n < 4; n++)
        ahead.gate[n] = f.gates[gates + n * H];
    ahead.c_old = f.c[state_row(layer, layer.T + 1, own.d, step.before, cell.row) * H + cell.unit];
    ahead.c_new = f.c[state_row(layer, layer.T + 1, own.d, step.after, cell.row) * H + cell.unit];
    ahead.dy = widened(f.dy[((step.t * B + cell.row) * layer.directions + own.d) * H + cell.unit]);
    return ahead;
}

/* dz of one cell, for the gradients by the weights and for the others to read; dh is left for what comes by h. */
DEVICE void retreat(const WalkBack &f, const Own &own, const Cell &cell, Size t, const AheadBack &a, Wide *dh,
                    Wide *dc, Sent *out, int apart)
{
    const Layer &layer = f.layer;
    Size H = layer.H;
    Stored *dz_at = f.dz + ((own.d * layer.T + t) * layer.B + cell.row) * 4 * H + cell.unit;
    Wide dz[4] = {};
    if (exists(layer, t, cell.row)) {
        Wide i = a.gate[0], f_ = a.gate[1], g = a.gate[2], o = a.gate[3], tanh_c = hyperbolic_tangent(a.c_new);
        Wide dm = sum(*dh, a.dy), dc_new = *dc + dm * o * (1 - tanh_c * tanh_c);
        dz[0] = dc_new * g * (i * (1 - i));
        dz[1] = dc_new * a.c_old * (f_ * (1 - f_));
        dz[2] = dc_new * i * (1 - g * g);
        dz[3] = dm * tanh_c * (o * (1 - o));
        *dc = dc_new * f_;
        *dh = 0;
    }
    for (int n = 0; n < 4; n++) {
        dz_at[n * H] = narrowed(dz[n]);
        out[n * apart] = sent(dz[n]);
    }
}

#if !HALF
/* parts[slice][tile row][unit] grows by a chunk of `height` rows of dz: a warp has one slice of the chunk for one
   tile and 8 units. R is the number of a warp's lanes along the rows, and a tile has 4 * R of these; the other
   lanes part the slice once more, and are added by shuffles. */
template <int R>
DEVICE void multiply_back(const Wide *weights, const Wide *dz, Wide *parts, const Cut &cut, int slices,
                          int height, bool begun)
{
    const int tile_rows = LANE_ROWS * R, k_lanes = 4 / R;
    int units = cut.units, unit_tiles = units / 8, items = slices * cut.tiles * unit_tiles;
    int share = (height + slices - 1) / slices;
    int lane = threadIdx.x % WARP, column = lane % 8, row = lane / 8 % R * LANE_ROWS, phase = lane / (8 * R);
    for (int item = threadIdx.x / WARP; item < items; item += (int)blockDim.x / WARP) {
        int slice = item / (cut.tiles * unit_tiles), tile = item / unit_tiles % cut.tiles;
        int unit = item % unit_tiles * 8 + column, begin = slice * share;
        int end = begin + share < height ? begin + share : height;
        Wide sums[LANE_ROWS] = {};
#pragma unroll 4
        for (int k = begin + phase; k < end; k += k_lanes) {
            Run<LANE_ROWS> right = run_at<LANE_ROWS>(dz + (tile * cut.chunk + k) * tile_rows + row);
            Wide left = weights[k * units + unit];
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++)
                sums[r] = fused(left, right.at[r], sums[r]);
        }
        Wide *part = parts + ((slice * cut.tiles + tile) * tile_rows + row) * units + unit;
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
#pragma unroll
            for (int apart = 8 * R; apart < WARP; apart *= 2)
                sums[r] = sum(sums[r], from_lane(sums[r], lane ^ apart));
            if (phase == 0)
                part[r * units] = begun ? sum(part[r * units], sums[r]) : sums[r];
        }
    }
}

#endif

template <int R> DEVICE void walk_back(const WalkBack &f)
{
    const Layer &layer = f.layer;
    const Cut cut = cut_by(f.plan);
    const int tile_rows = LANE_ROWS * R;
    const Own own = own_part(layer, cut);
    const int H = (int)layer.H, height = 4 * H, pitch = padded(height), units = cut.units, pass_rows = cut.tiles * tile_rows;
    const int cells = pass_rows * units, all_cells = cut.passes * cells;
    const int threads = blockDim.x, warps = threads / WARP;
    const int share = HALF ? (units + TILE_COLUMNS - 1) / TILE_COLUMNS : units / 8;
    const int slices = warps / (cut.tiles * share) > 0 ? warps / (cut.tiles * share) : 1;
    const int staged_pitch = HALF ? cut.chunk + 8 : cut.chunk;
    Sent *weights = (Sent *)shared_memory(), *staged = weights + pitch * units;
    Wide *parts = (Wide *)(staged + pass_rows * staged_pitch), *dh = parts + slices * cells, *dc = dh + all_cells;
    for (int n = threadIdx.x; n < pitch * units; n += threads) {
        int k = n / units, unit = own.unit + n % units;
        bool inside = unit < H && k < height;
        Wide w = inside ? widened(f.weight[((Size)own.d * height + k) * H + unit]) : 0;
        weights[HALF ? n % units * pitch + k : n] = sent(w);
    }
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        Cell cell = cell_of(layer, own, cut, n, 0);
        Size at = (own.d * layer.B + cell.row) * H + cell.unit;
        dh[n] = cell.inside ? f.dh[at] : 0;
        dc[n] = cell.inside ? f.dc[at] : 0;
    }
    AheadBack ahead = fetch_back(f, own, cell_of(layer, own, cut, threadIdx.x, 0), step_of(layer, own.d, layer.T - 1));
    for (Size k = layer.T - 1; k >= 0; k--) {
        Step step = step_of(layer, own.d, k);
        __syncthreads();
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            Cell cell = cell_of(layer, own, cut, n, 0);
            if (!cell.inside)
                continue;
            if (n >= threads)
                ahead = fetch_back(f, own, cell, step);
            int row = n / units, tile = row / tile_rows;
            Sent *out = exchanged(f.exchange, layer, own, cut, k, tile / cut.tiles, pitch, tile_rows);
            out += spot(row % pass_rows, cell.unit, pitch, tile_rows);
            retreat(f, own, cell, step.t, ahead, dh + n, dc + n, out, HALF ? H : H * tile_rows);
        }
        unsigned epoch = (unsigned)(layer.T - k);
        announce(f.counters, own, cut, epoch);
        if (k)
            ahead = fetch_back(f, own, cell_of(layer, own, cut, threadIdx.x, 0), step_of(layer, own.d, k - 1));
        await(f.counters, own, cut, epoch);
        for (int pass = 0; pass < cut.passes; pass++) {
            const Sent *from = exchanged(f.exchange, layer, own, cut, k, pass, pitch, tile_rows);
            for (int begin = 0; begin < height; begin += cut.chunk) {
                int rows = height - begin < cut.chunk ? height - begin : cut.chunk;
#if HALF
                for (int row = 0; row < pass_rows; row++)
                    stage(staged + row * staged_pitch, from + row * pitch + begin, (rows + 15) / 16 * 16);
                copies_done();
                __syncthreads();
                multiply_tiles(weights + begin, pitch, staged, staged_pitch, parts, units, cut.tiles, slices, rows,
                               begin > 0);
#else
                for (int tile = 0; tile < cut.tiles; tile++)
                    stage(staged + tile * cut.chunk * tile_rows, from + (tile * height + begin) * tile_rows,
                          rows * tile_rows);
                copies_done();
                __syncthreads();
                multiply_back<R>(weights + begin * units, staged, parts, cut, slices, rows, begin > 0);
#endif
                __syncthreads();
            }
            for (int n = threadIdx.x; n < cells; n += threads)
                for (int slice = 0; slice < slices; slice++)
                    dh[pass * cells + n] = sum(dh[pass * cells + n], parts[slice * cells + n]);
            __syncthreads();
        }
    }
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        Cell cell = cell_of(layer, own, cut, n, 0);
        if (!cell.inside)
            continue;
        f.dh[(own.d * layer.B + cell.row) * H + cell.unit] = dh[n];
        f.dc[(own.d * layer.B + cell.row) * H + cell.unit] = dc[n];
    }
}

#if !HALF
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_4(const WalkBack f) { walk_back<1>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_8(const WalkBack f) { walk_back<2>(f); }
#endif
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_16(const WalkBack f) { walk_back<4>(f); }

/* z (directions, rows, 4H) = W_ih x with the canonical sums of XPL-EXACT-002; x of direction d begins at
   first[d] * B rows. A thread has one number; a block of 8 rows and 32 columns shares what it reads. */
struct Project {
    const Stored *x;                    /* (T * B, I) */
    const Stored *weight;               /* (directions, 4H, I) */
    Wide *z;
    Size rows, columns, inputs, held_rows, first_row[2];
};

extern "C" __global__ void __launch_bounds__(256) project_input(const Project f)
{
    Wide *w = (Wide *)shared_memory(), *v = w + 32 * 33;
    Size column = (Size)blockIdx.x * 32 + threadIdx.x, row = (Size)blockIdx.y * 8 + threadIdx.y, d = blockIdx.z;
    const Stored *x = f.x + f.first_row[d] * f.inputs;
    Wide total = 0, chain = 0;
    for (Size k = 0; k < f.inputs; k += 32) {
        for (Size n = threadIdx.y; n < 32; n += 8) {
            Size from = (Size)blockIdx.x * 32 + n;
            bool inside = from < f.columns && k + threadIdx.x < f.inputs;
            w[threadIdx.x * 33 + n] = inside ? widened(f.weight[(d * f.columns + from) * f.inputs + k + threadIdx.x]) : 0;
        }
        bool inside = row < f.rows && k + threadIdx.x < f.inputs;
        v[threadIdx.y * 32 + threadIdx.x] = inside ? widened(x[row * f.inputs + k + threadIdx.x]) : 0;
        __syncthreads();
        Size end = f.inputs - k < 32 ? f.inputs - k : 32;
        for (Size n = 0; n < end; n++)
            chain = fused(w[n * 33 + threadIdx.x], v[threadIdx.y * 32 + n], chain);
        if ((k + 32) % BLOCK_OF_K == 0 || k + 32 >= f.inputs) {
            total = k < BLOCK_OF_K ? chain : sum(total, chain);
            chain = 0;
        }
        __syncthreads();
    }
    if (column < f.columns && row < f.rows)
        f.z[(d * f.held_rows + row) * f.columns + column] = total;
}
