/* A whole walk through time in one cooperative launch by mma instructions, weights held in registers and, where
   these are full, in shared memory. For float16, bfloat16, and float32 rounded to TF32; sums are of float32.

   A warp has a slice of k for all of the block's columns. What a lane of it takes of the weights never changes,
   and lies in its registers. What it takes of h or dz is exchanged just as the instruction wants it, 16 bytes a
   lane, so that it goes from the second cache into registers past shared memory, which only the slices' sums cross.
   A warp waits for the blocks of its own slice alone.

   Derived from the equations of xplstm.cells.lstm, clauses XPL-CELL and XPL-SEQ of the specification; the idea of weights
   that stay on the chip: Diamos et al. (2016). */

#define TILE_ROWS 16
#define WORDS 8                         /* of a row or column, of 32 bits, that one instruction takes */

#ifdef TF32
#define A_WORD 1                        /* numbers in a word */
typedef unsigned Sent;
DEVICE Sent sent(Wide a) { return tf32_from_float(a); }
#else
#define A_WORD 2
typedef Stored Sent;
DEVICE Sent sent(Wide a) { return narrowed(a); }
#endif
#define STEP_OF_K (WORDS * A_WORD)

/* Steps of k whose numbers a warp reads at once, and steps whose weights it has in registers, for 8 * N columns. */
DEVICE constexpr int batch(int N) { return N == 1 ? 8 : N <= 12 ? 4 : 2; }
DEVICE constexpr int kept(int N) { return (N <= 2 ? 48 : 64) / N / batch(N) * batch(N); }

/* How the steps over `height` numbers of k are shared among warps, and which are this one's. */
struct Slice {
    int steps, share, slices, begin, count;
};

DEVICE Slice slice_of(int height)
{
    int warps = blockDim.x / WARP, steps = (height + STEP_OF_K - 1) / STEP_OF_K, share = (steps + warps - 1) / warps;
    int begin = (int)threadIdx.x / WARP * share, left = steps - begin;
    return {steps, share, (steps + share - 1) / share, begin, left < 0 ? 0 : left < share ? left : share};
}

/* Where number k of a row stands in what is exchanged: (tiles, steps, lanes, 4 words). */
DEVICE int spot(int row, int k, int steps)
{
    int word = k % STEP_OF_K / A_WORD, lane = row % 8 * 4 + word % 4, place = row % TILE_ROWS / 8 + word / 4 * 2;
    return (((row / TILE_ROWS * steps + k / STEP_OF_K) * WARP + lane) * 4 + place) * A_WORD + k % A_WORD;
}

/* Weights of a block's column for number k: forward the four gates of a unit stand side by side, in two tiles of
   8 columns; backward a column is a unit. */
template <bool BACK> DEVICE Sent weight_at(const Stored *weight, int H, int unit, int tile, int column, int k)
{
    unit += BACK ? tile * 8 + column : tile / 2 * 4 + column / 2;
    Size row = BACK ? k : (tile % 2 * 2 + column % 2) * H + unit;
    if (unit >= H || k >= (BACK ? 4 * H : H))
        return 0;
    return sent(widened(weight[row * H + (BACK ? unit : k)]));
}

template <bool BACK> DEVICE unsigned word_at(const Stored *weight, int H, int unit, int tile, int column, int k)
{
    unsigned word = weight_at<BACK>(weight, H, unit, tile, column, k);
#ifndef TF32
    word |= (unsigned)weight_at<BACK>(weight, H, unit, tile, column, k + 1) << 16;
#endif
    return word;
}

/* One lane's weights: in registers those of the warp's first steps, in shared memory those of the rest. */
template <int N> struct Weights {
    unsigned kept[::kept(N)][N][2];
    unsigned *rest;                     /* (steps, N, lanes, 2) */
};

/* Bytes of shared memory that one warp takes for the rest. */
DEVICE int rest_of(int share, int N)
{
    int left = share - kept(N);
    return left <= 0 ? 0 : (left + batch(N) - 1) / batch(N) * batch(N) * N * WARP * 8;
}

template <int N, bool BACK> DEVICE void hold(Weights<N> &held, const Stored *weight, int H, int unit, const Slice &own)
{
    int lane = threadIdx.x % WARP, column = lane / 4, rest = rest_of(own.share, N) / (N * WARP * 8);
    held.rest = (unsigned *)(shared_memory() + (int)threadIdx.x / WARP * rest_of(own.share, N));
#pragma unroll
    for (int step = 0; step < kept(N); step++)
#pragma unroll
        for (int at = 0; at < 2 * N; at++) {
            int k = (own.begin + step) * STEP_OF_K + (lane % 4 + at % 2 * 4) * A_WORD;
            held.kept[step][at / 2][at % 2] = step < own.count ? word_at<BACK>(weight, H, unit, at / 2, column, k) : 0;
        }
    for (int n = 0; n < rest * 2 * N; n++) {
        int step = kept(N) + n / (2 * N), at = n % (2 * N);
        int k = (own.begin + step) * STEP_OF_K + (lane % 4 + at % 2 * 4) * A_WORD;
        held.rest[((n / (2 * N) * N + at / 2) * WARP + lane) * 2 + at % 2] =
            step < own.count ? word_at<BACK>(weight, H, unit, at / 2, column, k) : 0;
    }
}

/* What a lane takes of the steps from `first` on, zeros past the warp's last one. */
template <int N> DEVICE void read(Words *words, const Sent *from, int first, int count)
{
#pragma unroll
    for (int at = 0; at < batch(N); at++)
        words[at] = first + at < count ? read_fresh(from + (first + at) * WARP * 4 * A_WORD) : Words{};
}

/* sums (16, 8 * N) of one tile's rows and the warp's slice of k; `from` is where this lane's words begin. The
   next steps' words are on their way while these are multiplied. */
template <int N> DEVICE void multiply(const Weights<N> &weights, const Sent *from, int count, Wide (*sums)[4])
{
    Words words[2][batch(N)];
    read<N>(words[0], from, 0, count);
#pragma unroll
    for (int first = 0; first < kept(N); first += batch(N)) {
        int turn = first / batch(N) % 2;
        if (first >= count)
            continue;
        read<N>(words[1 - turn], from, first + batch(N), count);
#pragma unroll
        for (int at = 0; at < batch(N); at++)
#pragma unroll
            for (int n = 0; n < N; n++)
                multiply_16_8(sums[n], words[turn][at].at, weights.kept[first + at][n]);
    }
    const int turn = kept(N) / batch(N) % 2;
    const unsigned *rest = weights.rest + threadIdx.x % WARP * 2;
    for (int first = kept(N); first < count; first += batch(N)) {
        read<N>(words[1 - turn], from, first + batch(N), count);
#pragma unroll
        for (int at = 0; at < batch(N); at++)
#pragma unroll
            for (int n = 0; n < N; n++, rest += WARP * 2) {
                Pair right = pair_at(rest);
                multiply_16_8(sums[n], words[turn][at].at, right.at);
            }
#pragma unroll
        for (int at = 0; at < batch(N); at++)
            words[turn][at] = words[1 - turn][at];
    }
}

/* Wait for the blocks whose units are this warp's slice of k. */
DEVICE void await(const unsigned *counters, const Own &own, const Cut &cut, int H, const Slice &slice, int height, unsigned epoch)
{
    int begin = slice.begin * STEP_OF_K, end = (slice.begin + slice.count) * STEP_OF_K;
    end = (end < height ? end : height) - 1;
    bool one_gate = begin / H == end / H;
    int first = one_gate ? begin % H / cut.units : 0, last = one_gate ? end % H / cut.units : cut.unit_blocks - 1;
    if (slice.count)
        for (int n = first + (int)threadIdx.x % WARP; n <= last; n += WARP)
            await_one(counters, own, n, epoch);
    __syncwarp();
}

/* Row and unit of a cell forward: 32 cells are 8 rows of 4 units, as the lanes have their sums. */
template <int N> DEVICE Cell cell_at(const Layer &layer, const Own &own, int n, int *row)
{
    int eight = n / WARP / (N / 2);
    *row = eight * 8 + n % WARP / 4;
    return cell_of(layer, own, *row, n / WARP % (N / 2) * 4 + n % 4);
}

/* Where the 4 gates of cell n of a pass stand in every slice's parts: n-th. */
template <int N> DEVICE void keep_parts(Wide *parts, int tile, Wide (*sums)[4])
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < N / 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Run<4> *to = (Run<4> *)parts + ((tile * 2 + half) * (N / 2) + m) * WARP + lane;
            *to = {{sums[2 * m][2 * half], sums[2 * m][2 * half + 1], sums[2 * m + 1][2 * half],
                    sums[2 * m + 1][2 * half + 1]}};
        }
}

template <int N> DEVICE void walk(const Walk &f)
{
    const Layer &layer = f.layer;
    const Cut cut = cut_by(f.plan);
    const Own own = own_part(layer, cut);
    const int H = (int)layer.H, threads = blockDim.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int cells = cut.tiles * TILE_ROWS * 2 * N, all_cells = cut.passes * cells;
    const Slice slice = slice_of(H);
    const int sent_words = cut.passes * cut.tiles * slice.steps * WARP * 4 * A_WORD;
    Wide *parts = (Wide *)(shared_memory() + threads / WARP * rest_of(slice.share, N));
    Wide *bias = parts + slice.slices * cells * 4, *own_cells = bias + 8 * N;
    const Held held = {own_cells, all_cells};
    Weights<N> weights;
    hold<N, false>(weights, f.weight + (Size)own.d * 4 * H * H, H, own.unit, slice);
    hold_biases(f, own, cut, bias);
    Sent *out = exchanged<Sent>(f.exchange, layer, own, cut, f.from, sent_words);
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        int row;
        Cell cell = cell_at<N>(layer, own, n, &row);
        begin(f, own, cell, held, n);
        if (cell.inside)
            out[spot(row, cell.unit, slice.steps)] = sent(held.h(n));
        fetch(f, own, cell, held, n, step_of(layer, own.d, f.from).t);
    }
    announce(f.counters, 1);
    for (int k = (int)f.from; k < (int)f.to; k++) {
        unsigned epoch = (unsigned)(k - (int)f.from + 1);
        const Sent *in = exchanged<Sent>(f.exchange, layer, own, cut, k, sent_words);
        await(f.counters, own, cut, H, slice, H, epoch);
        for (int pass = 0; pass < cut.passes; pass++) {
            if (slice.count)
                for (int tile = 0; tile < cut.tiles; tile++) {
                    Wide sums[N][4] = {};
                    const Sent *from = in + ((pass * cut.tiles + tile) * slice.steps + slice.begin) * WARP * 4 * A_WORD;
                    multiply<N>(weights, from + lane * 4 * A_WORD, slice.count, sums);
                    keep_parts<N>(parts + warp * cells * 4, tile, sums);
                }
            copies_done();
            __syncthreads();
            out = exchanged<Sent>(f.exchange, layer, own, cut, k + 1, sent_words);
            for (int n = own_from(pass * cells); n < (pass + 1) * cells; n += threads) {
                int row;
                Cell cell = cell_at<N>(layer, own, n, &row);
                const Wide *biases = bias + 4 * (cell.unit - own.unit), *sums = parts + 4 * (n - pass * cells);
                if (cell.inside)
                    out[spot(row, cell.unit, slice.steps)] =
                        sent(advance(held, n, biases, sums, slice.slices, 4 * cells));
            }
            if (pass + 1 < cut.passes)
                __syncthreads();
        }
        if (k + 1 < f.to)
            announce(f.counters, epoch + 1);
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            int row;
            Cell cell = cell_at<N>(layer, own, n, &row);
            write_out(f, own, cell, held, n, k);
            if (k + 1 < f.to)
                fetch(f, own, cell, held, n, step_of(layer, own.d, k + 1).t);
        }
    }
}

/* Row and unit of a cell backward: a lane's four sums are four cells. */
template <int N> DEVICE Cell cell_back_at(const Layer &layer, const Own &own, int n, int *row)
{
    int lane = n / 4 % WARP, at = n % 4, tile = n / 4 / WARP;
    *row = tile / N * TILE_ROWS + lane / 4 + at / 2 * 8;
    return cell_of(layer, own, *row, tile % N * 8 + lane % 4 * 2 + at % 2);
}

template <int N> DEVICE void walk_back(const WalkBack &f)
{
    const Layer &layer = f.layer;
    const Cut cut = cut_by(f.plan);
    const Own own = own_part(layer, cut);
    const int H = (int)layer.H, threads = blockDim.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int cells = cut.tiles * TILE_ROWS * 8 * N, all_cells = cut.passes * cells;
    const Slice slice = slice_of(4 * H);
    const int sent_words = cut.passes * cut.tiles * slice.steps * WARP * 4 * A_WORD;
    Wide *parts = (Wide *)(shared_memory() + threads / WARP * rest_of(slice.share, N));
    Wide *own_cells = parts + slice.slices * cells;
    const HeldBack held = {own_cells, all_cells};
    Weights<N> weights;
    hold<N, true>(weights, f.weight + (Size)own.d * 4 * H * H, H, own.unit, slice);
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        int row;
        Cell cell = cell_back_at<N>(layer, own, n, &row);
        begin_back(f, own, cell, held, n);
        fetch_back(f, own, cell, held, n, layer.T - 1);
    }
    for (int k = (int)layer.T - 1; k >= 0; k--) {
        Sent *out = exchanged<Sent>(f.exchange, layer, own, cut, k, sent_words);
        copies_done();
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            int row;
            Cell cell = cell_back_at<N>(layer, own, n, &row);
            if (!cell.inside)
                continue;
            retreat(held, n);
            for (int gate = 0; gate < 4; gate++)
                out[spot(row, gate * H + cell.unit, slice.steps)] = sent(held.z[4 * n + gate]);
        }
        unsigned epoch = (unsigned)((int)layer.T - k);
        announce(f.counters, epoch);
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            int row;
            Cell cell = cell_back_at<N>(layer, own, n, &row);
            write_out_back(f, own, cell, held, n, k);
            if (k)
                fetch_back(f, own, cell, held, n, k - 1);
        }
        await(f.counters, own, cut, H, slice, 4 * H, epoch);
        for (int pass = 0; pass < cut.passes; pass++) {
            if (slice.count)
                for (int tile = 0; tile < cut.tiles; tile++) {
                    Wide sums[N][4] = {};
                    const Sent *from = out + ((pass * cut.tiles + tile) * slice.steps + slice.begin) * WARP * 4 * A_WORD;
                    multiply<N>(weights, from + lane * 4 * A_WORD, slice.count, sums);
                    Run<4> *to = (Run<4> *)(parts + warp * cells) + tile * N * WARP + lane;
#pragma unroll
                    for (int at = 0; at < N; at++)
                        to[at * WARP] = {{sums[at][0], sums[at][1], sums[at][2], sums[at][3]}};
                }
            __syncthreads();
            for (int n = own_from(pass * cells); n < (pass + 1) * cells; n += threads)
                for (int at = 0; at < slice.slices; at++)
                    held.dh(n) = sum(held.dh(n), parts[(at - pass) * cells + n]);
            if (pass + 1 < cut.passes)
                __syncthreads();
        }
    }
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        int row;
        Cell cell = cell_back_at<N>(layer, own, n, &row);
        end_back(f, own, cell, held, n);
    }
}

/* By the units of a block. */
extern "C" __global__ void __launch_bounds__(256, 1) walk_8(const Walk f) { walk<4>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_16(const Walk f) { walk<8>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_24(const Walk f) { walk<12>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_32(const Walk f) { walk<16>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_8(const WalkBack f) { walk_back<1>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_16(const WalkBack f) { walk_back<2>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_24(const WalkBack f) { walk_back<3>(f); }
extern "C" __global__ void __launch_bounds__(256, 1) walk_back_32(const WalkBack f) { walk_back<4>(f); }
