/* The recurrence with fused multiply-adds in reproducible summation order, and weights in shared memory
   (Diamos et al., 2016).

   A sum over k is divided into blocks of 128 terms. A warp computes one block's chain of fused multiply-adds
   for a tile of rows and 32 columns. The results of the blocks are added in ascending order, as XPL-EXACT-002
   and XPL-EXACT-003 require. The backward pass may use any order.

   Implements xplstm.cells.lstm, clauses XPL-CELL, XPL-SEQ and XPL-EXACT. */

#define TILE_COLUMNS 32

/* Base of Forward and Backward. A tile has ROWS rows; h and dz are exchanged as (tiles, height, ROWS). */
template <int ROWS, bool ALONE> struct Staged : Group<ALONE> {
    using Group<ALONE>::part, Group<ALONE>::cells, Group<ALONE>::numbers;
    int height, pass_rows;  /* exchanged numbers per row; rows per pass */
    Wide *weights, *staged; /* (height, columns); exchanged numbers of a pass or chunk, or of two steps */

    __device__ __forceinline__ Staged(const Layer &l, const Plan &p, int h) : Group<ALONE>(l, p), height(h)
    {
        pass_rows = part.tiles * ROWS;
        cells = pass_rows * part.units;
        numbers = part.passes * pass_rows * height;
        weights = (Wide *)shared_memory();
    }

    /* Place the staged numbers at `to`: `count` of them, or the exchange buffers of a single-block group.
       Return their end. */
    __device__ __forceinline__ Wide *place_staged(Wide *to, int count)
    {
        staged = to;
        if (ALONE)
            this->on_chip = (Sent *)to;
        return to + (ALONE ? 2 * numbers : count);
    }

    __device__ __forceinline__ Cell cell_at(int n) const
    {
        return this->cell(n / part.units, n % part.units);
    }

    __device__ __forceinline__ int spot(int r, int k) const
    {
        return (r / ROWS * height + k) * ROWS + r % ROWS;
    }

    __device__ __forceinline__ bool await(const Waits &waits, const Wide *, unsigned step) const
    {
        bool late = false;
        for (int n = threadIdx.x; !ALONE && n < part.unit_blocks && !late; n += (int)blockDim.x)
            late = this->await_one(waits, n, step);
        if (!ALONE)
            __syncthreads();
        return late;
    }

    /* Prefetch `count` numbers, a multiple of 16 bytes, to shared memory. */
    __device__ __forceinline__ void stage(Wide *to, const Wide *from, int count) const
    {
        const int each = 16 / (int)sizeof(Wide);
        for (int n = (int)threadIdx.x * each; n < count; n += (int)blockDim.x * each)
            copy_fresh(to + n, from + n);
    }
};

/* Forward: parts[block of k][tile row][column] of all tiles. A warp has one block of k of one tile and 32
   columns, a lane 4 rows and C columns of these; a tile has 4 * C rows. */
template <int C, bool ALONE> struct Forward : Staged<LANE_ROWS * C, ALONE> {
    using Base = Staged<LANE_ROWS * C, ALONE>;
    using Base::part, Base::H, Base::pass_rows, Base::weights, Base::staged, Base::parts;
    static constexpr int tile_rows = LANE_ROWS * C;

    __device__ __forceinline__ explicit Forward(const Walk &f) : Base(f.layer, f.plan, (int)f.layer.H)
    {
        int columns = 4 * part.units;
        this->slices = (H + BLOCK_OF_K - 1) / BLOCK_OF_K;
        parts = this->place_staged(weights + H * columns, (part.passes > 1 ? 2 : 1) * pass_rows * H);
        this->bias = parts + this->slices * pass_rows * columns;
        this->held = this->bias + columns;
        const int tiles_of_k = (H + WARP - 1) / WARP;
        for (int n = threadIdx.x / WARP; n < tiles_of_k * (columns / WARP); n += (int)blockDim.x / WARP)
            hold(f.weight, n / tiles_of_k * WARP, n % tiles_of_k * WARP);
    }

    /* Load the weights of 32 columns and 32 numbers of k, and store them transposed. The warp reads 32
       consecutive k at once. The lanes then rotate their registers, so that each lane stores another column:
       stores of one column from all lanes would cause bank conflicts in shared memory. */
    __device__ __forceinline__ void hold(const Stored *weight, int first, int begin) const
    {
        const int lane = threadIdx.x % WARP, k = begin + lane, columns = 4 * part.units;
        Wide held[WARP];
#pragma unroll
        for (int n = 0; n < WARP; n++) {
            int column = first + n, u = this->unit + column / 4;
            Size row = ((Size)this->d * 4 + column % 4) * H + (u < H ? u : 0);
            Wide number = widened(weight[row * H + (k < H ? k : 0)]);
            held[n] = u < H ? number : 0;
        }
#pragma unroll
        for (int apart = 1; apart < WARP; apart *= 2) {
            Wide turned[WARP];
#pragma unroll
            for (int n = 0; n < WARP; n++)
                turned[n] = lane & apart ? held[(n + apart) % WARP] : held[n];
#pragma unroll
            for (int n = 0; n < WARP; n++)
                held[n] = turned[n];
        }
        if (k < H)
#pragma unroll
            for (int n = 0; n < WARP; n++)
                weights[k * columns + first + (n + lane) % WARP] = held[n];
    }

    static __device__ __forceinline__ void add_products(Wide (*sums)[C], const Run<C> &left,
                                                        const Run<LANE_ROWS> &right)
    {
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++)
#pragma unroll
            for (int n = 0; n < C; n++)
                sums[r][n] = fused(left.at[n], right.at[r], sums[r][n]);
    }

    /* Return h of a pass on-chip. Double buffering: prefetch h of the next pass during this pass's product.
     */
    __device__ __forceinline__ const Wide *staged_h(const Wide *in, int pass) const
    {
        const int size = pass_rows * H;
        if (ALONE) {
            if (pass)
                __syncthreads();
            return in + pass * size;
        }
        if (pass == 0)
            this->stage(staged, in, size);
        copies_done();
        __syncthreads();
        if (pass + 1 < part.passes)
            this->stage(staged + (pass + 1) % 2 * size, in + (pass + 1) * size, size);
        return staged + pass % 2 * size;
    }

    __device__ __forceinline__ void multiply(const Wide *in, int pass) const
    {
        const Wide *h = staged_h(in, pass);
        const int columns = 4 * part.units, column_tiles = columns / TILE_COLUMNS;
        /* Lanes 2 n and 2 n + 1 have the same columns and different rows. Shared memory merges the halves of
           a wide load only if such neighbours read the same numbers. */
        const int lane = threadIdx.x % WARP, column = (C == 1 ? lane : lane / 2 % (TILE_COLUMNS / C)) * C,
                  row = (C == 1 ? 0 : lane % 2 + lane / (2 * TILE_COLUMNS / C) * 2) * LANE_ROWS;
        const int items = this->slices * part.tiles * column_tiles;
        for (int item = threadIdx.x / WARP; item < items; item += (int)blockDim.x / WARP) {
            int at = item / (part.tiles * column_tiles), tile = item / column_tiles % part.tiles;
            int first = item % column_tiles * TILE_COLUMNS + column;
            int begin = at * BLOCK_OF_K, end = begin + BLOCK_OF_K < H ? begin + BLOCK_OF_K : H;
            const Wide *w = weights + begin * columns + first, *v = h + (tile * H + begin) * tile_rows + row;
            Wide sums[LANE_ROWS][C] = {};
            /* Software pipelining: load the numbers of the next k during this product. */
            Run<C> left = run_at<C>(w);
            Run<LANE_ROWS> right = run_at<LANE_ROWS>(v);
#pragma unroll 4
            for (int k = begin + 1; k < end; k++) {
                w += columns, v += tile_rows;
                Run<C> next_left = run_at<C>(w);
                Run<LANE_ROWS> next_right = run_at<LANE_ROWS>(v);
                add_products(sums, left, right);
                left = next_left, right = next_right;
            }
            add_products(sums, left, right);
            Wide *to = parts + ((at * part.tiles + tile) * tile_rows + row) * columns + first;
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++)
#pragma unroll
                for (int n = 0; n < C; n++)
                    to[r * columns + n] = sums[r][n];
        }
        if (ALONE)
            copies_done();
    }
};

/* Backward: parts[slice][tile row][unit]. dz of a pass is read in chunks of k. A warp has one slice of a
   chunk for one tile and 8 units, and a lane 4 rows and 4 units. R is the number of a warp's lanes along the
   rows, and a tile has 4 * R of these. Two lanes are along the units; the others split the slice once more,
   and shuffles add their sums. */
template <int R, bool ALONE> struct Backward : Staged<LANE_ROWS * R, ALONE> {
    using Base = Staged<LANE_ROWS * R, ALONE>;
    using Base::part, Base::H, Base::pass_rows, Base::weights, Base::staged, Base::parts, Base::slices,
        Base::height;
    static constexpr int tile_rows = LANE_ROWS * R;
    int chunks; /* of a pass */

    __device__ __forceinline__ explicit Backward(const WalkBack &f)
        : Base(f.layer, f.plan, 4 * (int)f.layer.H)
    {
        int share = part.tiles * (part.units / 8), warps = (int)blockDim.x / WARP;
        slices = warps / share > 0 ? warps / share : 1;
        chunks = (height + part.chunk - 1) / part.chunk;
        parts = this->place_staged(weights + height * part.units,
                                   (part.passes * chunks > 1 ? 2 : 1) * pass_rows * part.chunk);
        this->held = parts + slices * this->cells;
        /* Loads without a branch, so that the loads of eight iterations overlap. */
#pragma unroll 8
        for (int n = threadIdx.x; n < height * part.units; n += (int)blockDim.x) {
            int k = n / part.units, u = this->unit + n % part.units;
            Wide number = widened(f.weight[((Size)this->d * height + k) * H + (u < H ? u : 0)]);
            weights[n] = u < H ? number : 0;
        }
    }

    /* Prefetch chunk n of the step's dz, counted through all passes, into one of two buffers. */
    __device__ __forceinline__ void stage_chunk(const Wide *in, int n) const
    {
        int pass = n / chunks, begin = n % chunks * part.chunk;
        int k = height - begin < part.chunk ? height - begin : part.chunk;
        Wide *to = staged + n % 2 * pass_rows * part.chunk;
        for (int tile = 0; tile < part.tiles; tile++)
            this->stage(to + tile * part.chunk * tile_rows,
                        in + ((pass * part.tiles + tile) * height + begin) * tile_rows, k * tile_rows);
    }

    __device__ __forceinline__ void multiply(const Wide *in, int pass) const
    {
        if (ALONE) { /* the plan has one chunk */
            if (pass)
                __syncthreads();
            multiply_chunk(in + pass * pass_rows * height, 0);
            copies_done();
        } else if (pass == 0)
            stage_chunk(in, 0);
        for (int chunk = 0; !ALONE && chunk < chunks; chunk++) {
            int n = pass * chunks + chunk;
            copies_done();
            __syncthreads();
            if (n + 1 < part.passes * chunks)
                stage_chunk(in, n + 1);
            multiply_chunk(staged + n % 2 * pass_rows * part.chunk, chunk * part.chunk);
        }
    }

    __device__ __forceinline__ void multiply_chunk(const Wide *dz, int first) const
    {
        const int k_lanes = WARP / (2 * R), units = part.units, unit_tiles = units / 8;
        const int rest = height - first < part.chunk ? height - first : part.chunk,
                  share = (rest + slices - 1) / slices;
        const int lane = threadIdx.x % WARP, column = lane % 2 * 4, row = lane / 2 % R * LANE_ROWS;
        const int phase = lane / (2 * R), items = slices * part.tiles * unit_tiles;
        for (int item = threadIdx.x / WARP; item < items; item += (int)blockDim.x / WARP) {
            int slice = item / (part.tiles * unit_tiles), tile = item / unit_tiles % part.tiles;
            int u = item % unit_tiles * 8 + column, begin = slice * share;
            int end = begin + share < rest ? begin + share : rest;
            Wide sums[LANE_ROWS][4] = {};
#pragma unroll 4
            for (int k = begin + phase; k < end; k += k_lanes) {
                Run<LANE_ROWS> right = run_at<LANE_ROWS>(dz + (tile * part.chunk + k) * tile_rows + row);
                Run<4> left = run_at<4>(weights + (first + k) * units + u);
#pragma unroll
                for (int at = 0; at < LANE_ROWS * 4; at++)
                    sums[at / 4][at % 4] = fused(left.at[at % 4], right.at[at / 4], sums[at / 4][at % 4]);
            }
            Wide *from = parts + ((slice * part.tiles + tile) * tile_rows + row) * units + u;
#pragma unroll
            for (int at = 0; at < LANE_ROWS * 4; at++) {
                Wide total = sums[at / 4][at % 4], *to = from + at / 4 * units + at % 4;
#pragma unroll
                for (int apart = 2 * R; apart < WARP; apart *= 2)
                    total = sum(total, from_lane(total, lane ^ apart));
                if (phase == 0)
                    *to = first > 0 ? sum(*to, total) : total;
            }
        }
    }
};

/* One entry per number of tile rows. */
#define BOUNDS __launch_bounds__(WALK_THREADS, 1)
#if WANTED(4)
extern "C" __global__ void BOUNDS walk_4(const Walk f) { walk<Forward<1, false>>(f); }
#endif
#if WANTED(8)
extern "C" __global__ void BOUNDS walk_8(const Walk f) { walk<Forward<2, false>>(f); }
#endif
#if WANTED(16)
extern "C" __global__ void BOUNDS walk_16(const Walk f) { walk<Forward<4, false>>(f); }
#endif
#if WANTED(ALONE_ENTRY + 4)
extern "C" __global__ void BOUNDS walk_alone_4(const Walk f) { walk<Forward<1, true>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + 4)
extern "C" __global__ void BOUNDS walk_back_4(const WalkBack f) { walk_back<Backward<1, false>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + 8)
extern "C" __global__ void BOUNDS walk_back_8(const WalkBack f) { walk_back<Backward<2, false>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + 16)
extern "C" __global__ void BOUNDS walk_back_16(const WalkBack f) { walk_back<Backward<4, false>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + ALONE_ENTRY + 4)
extern "C" __global__ void BOUNDS walk_back_alone_4(const WalkBack f) { walk_back<Backward<1, true>>(f); }
#endif
