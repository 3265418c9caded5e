/* A whole walk through time in one cooperative launch with the published sums, weights held in shared memory.

   A sum over k is cut into blocks of 128: a warp makes one block's chain of fused multiply-adds for a tile of
   rows and 32 columns, and the blocks' results are added in ascending order, as XPL-EXACT-002 and
   XPL-EXACT-003 have it. The idea of weights that stay on the chip: Diamos et al. (2016).

   Derived from the equations of xplstm.cells.lstm, clauses XPL-CELL, XPL-SEQ and XPL-EXACT of the specification. */

#define BLOCK_OF_K 128
#define TILE_COLUMNS 32
#define LANE_ROWS 4                     /* rows of a tile that one lane sums */

/* Wait until every block of the group has announced `epoch`. */
DEVICE void await(const unsigned *counters, const Own &own, const Cut &cut, unsigned epoch)
{
    for (int n = threadIdx.x; n < cut.unit_blocks; n += (int)blockDim.x)
        await_one(counters, own, n, epoch);
    __syncthreads();
}

/* `count` numbers, a multiple of those in 16 bytes, to shared memory. */
DEVICE void stage(Wide *to, const Wide *from, int count)
{
    const int each = 16 / (int)sizeof(Wide);
    for (int n = (int)threadIdx.x * each; n < count; n += (int)blockDim.x * each)
        copy_fresh(to + n, from + n);
}

/* Where one of `height` numbers of a row stands in what is exchanged: (tiles, height, tile rows). */
DEVICE int spot(int row, int k, int height, int tile_rows)
{
    return (row / tile_rows * height + k) * tile_rows + row % tile_rows;
}

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

template <int C> DEVICE void walk(const Walk &f)
{
    const Layer &layer = f.layer;
    const Cut cut = cut_by(f.plan);
    const int tile_rows = LANE_ROWS * C;
    const Own own = own_part(layer, cut);
    const int H = (int)layer.H, units = cut.units, columns = 4 * units, pass_rows = cut.tiles * tile_rows;
    const int cells = pass_rows * units, all_cells = cut.passes * cells, threads = blockDim.x;
    const int slices = (H + BLOCK_OF_K - 1) / BLOCK_OF_K, sent = cut.passes * pass_rows * H;
    const int staged = pass_rows * H, buffers = cut.passes > 1 ? 2 : 1;
    Wide *weights = (Wide *)shared_memory(), *h = weights + H * columns, *parts = h + buffers * staged;
    Wide *bias = parts + slices * pass_rows * columns;
    const Held held = {bias + columns, all_cells};
    for (int n = threadIdx.x; n < H * columns; n += threads) {
        int column = n / H, k = n % H, unit = own.unit + column / 4;
        Size row = (own.d * 4 + column % 4) * layer.H + unit;
        weights[k * columns + column] = unit < H ? widened(f.weight[row * H + k]) : 0;
    }
    hold_biases(f, own, cut, bias);
    Wide *out = exchanged<Wide>(f.exchange, layer, own, cut, f.from, sent);
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        Cell cell = cell_of(layer, own, n / units, n % units);
        begin(f, own, cell, held, n);
        if (cell.unit < H)
            out[spot(n / units, cell.unit, H, tile_rows)] = held.h(n);
        fetch(f, own, cell, held, n, step_of(layer, own.d, f.from).t);
    }
    announce(f.counters, 1);
    for (int k = (int)f.from; k < (int)f.to; k++) {
        unsigned epoch = (unsigned)(k - (int)f.from + 1);
        await(f.counters, own, cut, epoch);
        const Wide *in = exchanged<Wide>(f.exchange, layer, own, cut, k, sent);
        out = exchanged<Wide>(f.exchange, layer, own, cut, k + 1, sent);
        stage(h, in, staged);
        for (int pass = 0; pass < cut.passes; pass++) {
            copies_done();
            __syncthreads();
            if (pass + 1 < cut.passes)
                stage(h + (pass + 1) % 2 * staged, in + (pass + 1) * staged, staged);
            multiply<C>(weights, h + pass % 2 * staged, parts, layer, cut);
            __syncthreads();
            for (int n = own_from(pass * cells); n < (pass + 1) * cells; n += threads) {
                int row = n / units, unit = n % units;
                Cell cell = cell_of(layer, own, row, unit);
                const Wide *sums = parts + 4 * (n - pass * cells);
                if (cell.inside)
                    out[spot(row, cell.unit, H, tile_rows)] =
                        advance(held, n, bias + 4 * unit, sums, slices, 4 * cells);
            }
        }
        if (k + 1 < f.to)
            announce(f.counters, epoch + 1);
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            Cell cell = cell_of(layer, own, n / units, n % units);
            write_out(f, own, cell, held, n, k);
            if (k + 1 < f.to)
                fetch(f, own, cell, held, n, step_of(layer, own.d, k + 1).t);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 1) walk_4(const Walk f) { walk<1>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_8(const Walk f) { walk<2>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_16(const Walk f) { walk<4>(f); }

/* parts[slice][tile row][unit] grows by a chunk of `height` rows of dz: a warp has one slice of the chunk for one
   tile and 8 units, and a lane 4 rows and 4 units. R is the number of a warp's lanes along the rows, and a tile has
   4 * R of these; two lanes stand along the units, the others part the slice once more and are added by shuffles. */
template <int R>
DEVICE void multiply_back(const Wide *weights, const Wide *dz, Wide *parts, const Cut &cut, int slices,
                          int height, bool begun)
{
    const int tile_rows = LANE_ROWS * R, k_lanes = WARP / (2 * R);
    int units = cut.units, unit_tiles = units / 8, items = slices * cut.tiles * unit_tiles;
    int share = (height + slices - 1) / slices;
    int lane = threadIdx.x % WARP, column = lane % 2 * 4, row = lane / 2 % R * LANE_ROWS, phase = lane / (2 * R);
    for (int item = threadIdx.x / WARP; item < items; item += (int)blockDim.x / WARP) {
        int slice = item / (cut.tiles * unit_tiles), tile = item / unit_tiles % cut.tiles;
        int unit = item % unit_tiles * 8 + column, begin = slice * share;
        int end = begin + share < height ? begin + share : height;
        Wide sums[LANE_ROWS][4] = {};
#pragma unroll 4
        for (int k = begin + phase; k < end; k += k_lanes) {
            Run<LANE_ROWS> right = run_at<LANE_ROWS>(dz + (tile * cut.chunk + k) * tile_rows + row);
            Run<4> left = run_at<4>(weights + k * units + unit);
#pragma unroll
            for (int at = 0; at < LANE_ROWS * 4; at++)
                sums[at / 4][at % 4] = fused(left.at[at % 4], right.at[at / 4], sums[at / 4][at % 4]);
        }
        Wide *part = parts + ((slice * cut.tiles + tile) * tile_rows + row) * units + unit;
#pragma unroll
        for (int at = 0; at < LANE_ROWS * 4; at++) {
            Wide total = sums[at / 4][at % 4], *to = part + at / 4 * units + at % 4;
#pragma unroll
            for (int apart = 2 * R; apart < WARP; apart *= 2)
                total = sum(total, from_lane(total, lane ^ apart));
            if (phase == 0)
                *to = begun ? sum(*to, total) : total;
        }
    }
}

/* Have one chunk of a pass's dz brought; `in` is the whole exchange of the turn. */
DEVICE void stage_chunk(Wide *to, const Wide *in, const Cut &cut, int pass, int begin, int height, int tile_rows)
{
    int rows = height - begin < cut.chunk ? height - begin : cut.chunk;
    for (int tile = 0; tile < cut.tiles; tile++)
        stage(to + tile * cut.chunk * tile_rows, in + ((pass * cut.tiles + tile) * height + begin) * tile_rows,
              rows * tile_rows);
}

template <int R> DEVICE void walk_back(const WalkBack &f)
{
    const Layer &layer = f.layer;
    const Cut cut = cut_by(f.plan);
    const int tile_rows = LANE_ROWS * R;
    const Own own = own_part(layer, cut);
    const int H = (int)layer.H, height = 4 * H, units = cut.units, pass_rows = cut.tiles * tile_rows;
    const int cells = pass_rows * units, all_cells = cut.passes * cells, sent = cut.passes * pass_rows * height;
    const int threads = blockDim.x, warps = threads / WARP, share = cut.tiles * (units / 8);
    const int slices = warps / share > 0 ? warps / share : 1;
    const int chunks = (height + cut.chunk - 1) / cut.chunk, all_chunks = cut.passes * chunks;
    const int staged = pass_rows * cut.chunk, buffers = all_chunks > 1 ? 2 : 1;
    Wide *weights = (Wide *)shared_memory(), *chunk = weights + height * units, *parts = chunk + buffers * staged;
    const HeldBack held = {parts + slices * cells, all_cells};
    for (int n = threadIdx.x; n < height * units; n += threads) {
        int k = n / units, unit = own.unit + n % units;
        weights[n] = unit < H ? widened(f.weight[((Size)own.d * height + k) * H + unit]) : 0;
    }
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        Cell cell = cell_of(layer, own, n / units, n % units);
        begin_back(f, own, cell, held, n);
        fetch_back(f, own, cell, held, n, layer.T - 1);
    }
    for (int k = (int)layer.T - 1; k >= 0; k--) {
        Wide *out = exchanged<Wide>(f.exchange, layer, own, cut, k, sent);
        copies_done();
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            Cell cell = cell_of(layer, own, n / units, n % units);
            if (!cell.inside)
                continue;
            retreat(held, n);
            for (int gate = 0; gate < 4; gate++)
                out[spot(n / units, gate * H + cell.unit, height, tile_rows)] = held.z[4 * n + gate];
        }
        unsigned epoch = (unsigned)((int)layer.T - k);
        announce(f.counters, epoch);
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            Cell cell = cell_of(layer, own, n / units, n % units);
            write_out_back(f, own, cell, held, n, k);
            if (k)
                fetch_back(f, own, cell, held, n, k - 1);
        }
        await(f.counters, own, cut, epoch);
        stage_chunk(chunk, out, cut, 0, 0, height, tile_rows);
        for (int n = 0; n < all_chunks; n++) {
            int pass = n / chunks, begin = n % chunks * cut.chunk, next = n + 1;
            copies_done();
            __syncthreads();
            if (next < all_chunks)
                stage_chunk(chunk + next % 2 * staged, out, cut, next / chunks, next % chunks * cut.chunk, height,
                            tile_rows);
            multiply_back<R>(weights + begin * units, chunk + n % 2 * staged, parts, cut, slices,
                             height - begin < cut.chunk ? height - begin : cut.chunk, begin > 0);
            if (next % chunks)
                continue;
            __syncthreads();
            for (int at = own_from(pass * cells); at < (pass + 1) * cells; at += threads)
                for (int slice = 0; slice < slices; slice++)
                    held.dh(at) = sum(held.dh(at), parts[(slice - pass) * cells + at]);
        }
    }
    for (int n = threadIdx.x; n < all_cells; n += threads)
        end_back(f, own, cell_of(layer, own, n / units, n % units), held, n);
}

extern "C" __global__ void __launch_bounds__(256, 1) walk_back_4(const WalkBack f) { walk_back<1>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_8(const WalkBack f) { walk_back<2>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_16(const WalkBack f) { walk_back<4>(f); }
