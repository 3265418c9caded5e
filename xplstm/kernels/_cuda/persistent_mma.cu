/* The recurrence with mma instructions of the tensor cores, for float16, bfloat16, and float32 rounded to
   TF32. Weights stay in registers (Diamos et al., 2016), and in shared memory if the registers are full. Sums
   are in float32.

   A warp computes a slice of k for all columns of the block. The weights of a lane never change, so they stay
   in its registers. h and dz are exchanged in the layout of the instruction, 16 bytes per lane, and move from
   the L2 cache directly into registers. Shared memory holds only the partial sums of the slices. A warp waits
   only for the blocks of its own slice.

   In a single-block group, a warp computes all of k for its own columns. A lane's sums belong to its own
   cells, so a step forward needs a single barrier.

   Implements xplstm.cells.lstm, clauses XPL-CELL and XPL-SEQ. */

#define WORDS (STEP_BYTES / 4) /* 32-bit words of a row or column per instruction */

#ifdef TF32
#define A_WORD 1 /* numbers in a word */
#else
#define A_WORD 2
#endif
#define STEP_OF_K (WORDS * A_WORD)
#define HELD_AT_ONCE 16 /* words of weights that a lane loads together */
#define POLLED 4        /* steps of k whose flags a lane checks together */

/* For 8 * N columns, the steps of k that a warp reads together, and the steps whose weights fit into
   registers. */
DEVICE constexpr int batch(int N) { return N == 1 ? 8 : N <= 12 ? 4 : 2; }
DEVICE constexpr int kept(int N) { return (N <= 2 ? 48 : 64) / N / batch(N) * batch(N); }

/* The division of the steps over `height` numbers of k among warps, and the share of this warp: all steps in
   a single-block group. */
struct Slice {
    int steps, share, slices, begin, count;
};

template <bool ALONE> DEVICE Slice slice_of(int height)
{
    int warps = blockDim.x / WARP, steps = (height + STEP_OF_K - 1) / STEP_OF_K,
        share = (steps + warps - 1) / warps;
    if (ALONE)
        return {steps, steps, 1, 0, steps};
    int begin = (int)threadIdx.x / WARP * share, left = steps - begin;
    return {steps, share, (steps + share - 1) / share, begin, left < 0 ? 0 : left < share ? left : share};
}

/* Return the weight of a block's column for number k. Forward, the four gates of a unit are adjacent, in two
   tiles of 8 columns. Backward, a column is a unit. */
template <bool BACK> DEVICE Sent weight_at(const Stored *weight, int H, int unit, int tile, int column, int k)
{
    unit += BACK ? tile * 8 + column : tile / 2 * 4 + column / 2;
    Size row = BACK ? k : (tile % 2 * 2 + column % 2) * H + unit;
    Stored number = load_if(unit < H && k < (BACK ? 4 * H : H), weight + row * H + (BACK ? unit : k));
#ifdef TF32
    return sent(number);
#else
    return number;
#endif
}

template <bool BACK>
DEVICE unsigned word_at(const Stored *weight, int H, int unit, int tile, int column, int k)
{
    unsigned word = weight_at<BACK>(weight, H, unit, tile, column, k);
#ifndef TF32
    word |= (unsigned)weight_at<BACK>(weight, H, unit, tile, column, k + 1) << 16;
#endif
    return word;
}

/* One lane's weights: the warp's first steps in registers, the other steps in shared memory. */
template <int N> struct Weights {
    unsigned kept[::kept(N)][N][2];
    unsigned *rest; /* (steps, N, lanes, 2) */
};

/* Return the bytes of shared memory for the other steps of one warp. */
DEVICE int rest_of(int share, int N)
{
    int left = share - kept(N);
    return left <= 0 ? 0 : (left + batch(N) - 1) / batch(N) * batch(N) * N * WARP * 8;
}

template <int N, bool BACK>
DEVICE void hold(Weights<N> &held, const Stored *weight, int H, int unit, const Slice &own)
{
    int lane = threadIdx.x % WARP, column = lane / 4, rest = rest_of(own.share, N) / (N * WARP * 8);
    held.rest = (unsigned *)(shared_memory() + (int)threadIdx.x / WARP * rest_of(own.share, N));
#pragma unroll
    for (int step = 0; step < kept(N); step++)
#pragma unroll
        for (int at = 0; at < 2 * N; at++) {
            /* A barrier for the compiler: more loads in flight would spill registers that hold weights. */
            if ((step * 2 * N + at) % HELD_AT_ONCE == 0)
                __syncwarp();
            int k = (own.begin + step) * STEP_OF_K + (lane % 4 + at % 2 * 4) * A_WORD;
            unsigned word = word_at<BACK>(weight, H, unit, at / 2, column, k);
            held.kept[step][at / 2][at % 2] = step < own.count ? word : 0;
        }
#pragma unroll 8
    for (int n = 0; n < rest * 2 * N; n++) {
        int step = kept(N) + n / (2 * N), at = n % (2 * N);
        int k = (own.begin + step) * STEP_OF_K + (lane % 4 + at % 2 * 4) * A_WORD;
        unsigned word = word_at<BACK>(weight, H, unit, at / 2, column, k);
        held.rest[((n / (2 * N) * N + at / 2) * WARP + lane) * 2 + at % 2] = step < own.count ? word : 0;
    }
}

/* Read a lane's words of the steps from `first` on, with zeros after the warp's last step. */
template <int N, bool ALONE> DEVICE void read(Words *words, const Sent *from, int first, int count)
{
#pragma unroll
    for (int at = 0; at < batch(N); at++) {
        const Sent *here = from + (first + at) * WARP * 4 * A_WORD;
        words[at] = first + at >= count ? Words{} : ALONE ? words_at(here) : read_fresh(here);
#ifdef TF32
#pragma unroll
        for (int n = 0; n < 4; n++)
            words[at].at[n] &= ~FLAG_BITS;
#endif
    }
}

/* Compute sums (16, 8 * N) of one tile's rows and the warp's slice of k. `from` points to this lane's words.
   Software pipelining: the words of the next steps are loaded during the products. */
template <int N, bool ALONE>
DEVICE void multiply(const Weights<N> &weights, const Sent *from, int count, Wide (*sums)[4])
{
    Words words[2][batch(N)];
    read<N, ALONE>(words[0], from, 0, count);
#pragma unroll
    for (int first = 0; first < kept(N); first += batch(N)) {
        int buffer = first / batch(N) % 2;
        if (first >= count)
            continue;
        read<N, ALONE>(words[1 - buffer], from, first + batch(N), count);
#pragma unroll
        for (int at = 0; at < batch(N); at++)
#pragma unroll
            for (int n = 0; n < N; n++)
                multiply_16_8(sums[n], words[buffer][at].at, weights.kept[first + at][n]);
    }
    const int buffer = kept(N) / batch(N) % 2;
    const unsigned *rest = weights.rest + threadIdx.x % WARP * 2;
    for (int first = kept(N); first < count; first += batch(N)) {
        read<N, ALONE>(words[1 - buffer], from, first + batch(N), count);
#pragma unroll
        for (int at = 0; at < batch(N); at++)
#pragma unroll
            for (int n = 0; n < N; n++, rest += WARP * 2) {
                Pair right = pair_at(rest);
                multiply_16_8(sums[n], words[buffer][at].at, right.at);
            }
#pragma unroll
        for (int at = 0; at < batch(N); at++)
            words[buffer][at] = words[1 - buffer][at];
    }
}

/* N tiles of 8 columns of a warp. Forward, two tiles are the four gates of 4 units. Backward, a tile is 8
   units. */
template <int N, bool BACK, bool ALONE> struct Mma : Group<ALONE> {
    using Base = Group<ALONE>;
    using Base::part, Base::H, Base::cell, Base::cells, Base::slices, Base::numbers, Base::parts;
    static constexpr int units = N * (BACK ? 8 : 2); /* of a warp */
    int height;                                      /* exchanged numbers per row */
    Slice slice;                                     /* of this warp */
    Weights<N> weights;

    template <class F> __device__ __forceinline__ explicit Mma(const F &f) : Base(f.layer, f.plan)
    {
        const int warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
        height = BACK ? 4 * H : H;
        slice = slice_of<ALONE>(height);
        cells = part.tiles * TILE_ROWS * units * (ALONE ? warps : 1);
        slices = slice.slices;
        numbers = part.passes * part.tiles * slice.steps * WARP * 4 * A_WORD;
        Wide *next = (Wide *)(shared_memory() + warps * rest_of(slice.share, N));
        if (ALONE) {
            clear_exchange((unsigned *)next, 2 * numbers / A_WORD);
            next += 2 * numbers / A_WORD;
        }
        parts = next;
        this->bias = parts + slices * cells * (BACK ? 1 : 4);
        this->held = BACK ? this->bias : this->bias + 4 * part.units;
        int unit = this->unit + (ALONE ? warp * units : 0);
        hold<N, BACK>(weights, f.weight + (Size)this->d * 4 * H * H, H, unit, slice);
    }

    /* Set the exchange buffers to zero, because the instruction reads k up to a multiple of STEP_OF_K. */
    __device__ __forceinline__ void clear_exchange(unsigned *words, int count)
    {
        this->on_chip = (Sent *)words;
        for (int n = threadIdx.x; n < count; n += (int)blockDim.x)
            words[n] = 0;
        __syncthreads();
    }

    /* Cells are numbered such that a lane's sums belong to its own cells: forward 32 cells are 8 rows of 4
       units, backward 16 rows of 8 units. In a single-block group, so do a thread's. */
    __device__ __forceinline__ Cell cell_at(int n) const
    {
        constexpr int across = N / 2 > 0 ? N / 2 : 1;
        if (ALONE) {
            int item = n / (int)blockDim.x, lane = n % WARP, first = n % (int)blockDim.x / WARP * units;
            if (!BACK)
                return cell(item / across * 8 + lane / 4, first + item % across * 4 + lane % 4);
            int at = item % 4, tile = item / 4;
            return cell(tile / N * TILE_ROWS + lane / 4 + at / 2 * 8,
                        first + tile % N * 8 + lane % 4 * 2 + at % 2);
        }
        if (BACK) {
            int lane = n / 4 % WARP, at = n % 4, tile = n / 4 / WARP;
            return cell(tile / N * TILE_ROWS + lane / 4 + at / 2 * 8, tile % N * 8 + lane % 4 * 2 + at % 2);
        }
        return cell(n / WARP / across * 8 + n % WARP / 4, n / WARP % across * 4 + n % 4);
    }

    /* The layout is (tiles, steps, lanes, 4 words). */
    __device__ __forceinline__ int spot(int r, int k) const
    {
        int word = k % STEP_OF_K / A_WORD, lane = r % 8 * 4 + word % 4,
            place = r % TILE_ROWS / 8 + word / 4 * 2;
        int step = r / TILE_ROWS * slice.steps + k / STEP_OF_K;
        return ((step * WARP + lane) * 4 + place) * A_WORD + k % A_WORD;
    }

#ifdef TF32
    /* Return whether a number of a lane's words for a step of k is not there yet. */
    __device__ __forceinline__ bool missing(const Words &words, int tile, int at, unsigned step) const
    {
        const int lane = threadIdx.x % WARP, row = tile * TILE_ROWS + lane / 4,
                  k = (slice.begin + at) * STEP_OF_K + lane % 4;
        unsigned wrong = 0;
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (row + n % 2 * 8 < this->rows && k + n / 2 * 4 < height)
                wrong |= (words.at[n] ^ step) & FLAG_BITS;
        return wrong != 0;
    }

    /* Poll the words of one step of k until all are there; return whether this thread has given up. */
    __device__ __forceinline__ bool await_words(const Waits &waits, Words words, const Sent *from, int tile,
                                                int at, unsigned step) const
    {
        unsigned long long begun = 0;
        for (int polls = 1; missing(words, tile, at, step); polls++) {
            rest();
            if (polls % POLLS == 0 && gives_up(waits, begun))
                return true;
            words = read_fresh(from);
        }
        return false;
    }

    /* Wait for the words of this lane, which `multiply` reads again. The first loads of several steps of k
       overlap. */
    __device__ __forceinline__ bool await(const Waits &waits, const Sent *in, unsigned step) const
    {
        bool late = false;
        for (int tile = 0; !ALONE && tile < part.passes * part.tiles; tile++)
            for (int first = 0; first < slice.count; first += POLLED) {
                int n = (tile * slice.steps + slice.begin + first) * WARP + (int)threadIdx.x % WARP;
                Words words[POLLED];
#pragma unroll
                for (int at = 0; at < POLLED; at++)
                    words[at] = first + at < slice.count ? read_fresh(in + (n + at * WARP) * 4) : Words{};
#pragma unroll
                for (int at = 0; at < POLLED; at++)
                    if (first + at < slice.count && !late)
                        late =
                            await_words(waits, words[at], in + (n + at * WARP) * 4, tile, first + at, step);
            }
        __syncwarp();
        return late;
    }
#else
    /* Wait for the blocks whose units are in this warp's slice of k. */
    __device__ __forceinline__ bool await(const Waits &waits, const Sent *, unsigned step) const
    {
        if (ALONE)
            return false;
        int begin = slice.begin * STEP_OF_K, end = (slice.begin + slice.count) * STEP_OF_K;
        end = (end < height ? end : height) - 1;
        bool one_gate = begin / H == end / H;
        int first = one_gate ? begin % H / part.units : 0;
        int last = one_gate ? end % H / part.units : part.unit_blocks - 1;
        bool late = false;
        if (slice.count)
            for (int n = first + (int)threadIdx.x % WARP; n <= last && !late; n += WARP)
                late = this->await_one(waits, n, step);
        __syncwarp();
        return late;
    }
#endif

    __device__ __forceinline__ void multiply(const Sent *in, int pass) const
    {
        if (!ALONE && pass)
            __syncthreads();
        if (slice.count)
            for (int tile = 0; tile < part.tiles; tile++) {
                Wide sums[N][4] = {};
                int first = (pass * part.tiles + tile) * slice.steps + slice.begin;
                const Sent *from = in + (first * WARP + (int)threadIdx.x % WARP) * 4 * A_WORD;
                ::multiply<N, ALONE>(weights, from, slice.count, sums);
                keep(tile, sums);
            }
        copies_done();
    }

    /* In a single-block group, a thread reads only its own sums. */
    __device__ __forceinline__ bool meet(int pass, bool late) const
    {
        return !ALONE && Base::meet(pass, late);
    }

    /* Store the sums of a warp in the order of the cells of a pass. */
    __device__ __forceinline__ void keep(int tile, Wide (*sums)[4]) const
    {
        const int lane = threadIdx.x % WARP, apart = ALONE ? (int)blockDim.x : WARP;
        const int first = ALONE ? tile * N * apart + (int)threadIdx.x
                                : ((int)threadIdx.x / WARP * part.tiles + tile) * N * WARP + lane;
        Run<4> *to = (Run<4> *)parts + first;
#pragma unroll
        for (int n = 0; n < N; n++) {
            if (BACK && ALONE)
                for (int at = 0; at < 4; at++)
                    parts[((tile * N + n) * 4 + at) * apart + (int)threadIdx.x] = sums[n][at];
            else if (BACK)
                to[n * WARP] = {{sums[n][0], sums[n][1], sums[n][2], sums[n][3]}};
            else {
                int one = n / 2 * 2, half = n % 2, at = 2 * half;
                to[(half * (N / 2) + n / 2) * apart] = {
                    {sums[one][at], sums[one][at + 1], sums[one + 1][at], sums[one + 1][at + 1]}};
            }
        }
    }
};

/* One entry per number of units of a block, or of a warp in a single-block group. */
#define BOUNDS __launch_bounds__(WALK_THREADS, 1)
#if WANTED(8)
extern "C" __global__ void BOUNDS walk_8(const Walk f) { walk<Mma<4, false, false>>(f); }
#endif
#if WANTED(16)
extern "C" __global__ void BOUNDS walk_16(const Walk f) { walk<Mma<8, false, false>>(f); }
#endif
#if WANTED(24)
extern "C" __global__ void BOUNDS walk_24(const Walk f) { walk<Mma<12, false, false>>(f); }
#endif
#if WANTED(32)
extern "C" __global__ void BOUNDS walk_32(const Walk f) { walk<Mma<16, false, false>>(f); }
#endif
#if WANTED(ALONE_ENTRY + 8)
extern "C" __global__ void BOUNDS walk_alone_8(const Walk f) { walk<Mma<4, false, true>>(f); }
#endif
#if WANTED(ALONE_ENTRY + 16)
extern "C" __global__ void BOUNDS walk_alone_16(const Walk f) { walk<Mma<8, false, true>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + 8)
extern "C" __global__ void BOUNDS walk_back_8(const WalkBack f) { walk_back<Mma<1, true, false>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + 16)
extern "C" __global__ void BOUNDS walk_back_16(const WalkBack f) { walk_back<Mma<2, true, false>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + 24)
extern "C" __global__ void BOUNDS walk_back_24(const WalkBack f) { walk_back<Mma<3, true, false>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + 32)
extern "C" __global__ void BOUNDS walk_back_32(const WalkBack f) { walk_back<Mma<4, true, false>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + ALONE_ENTRY + 8)
extern "C" __global__ void BOUNDS walk_back_alone_8(const WalkBack f) { walk_back<Mma<1, true, true>>(f); }
#endif
#if WANTED(BACKWARD_ENTRY + ALONE_ENTRY + 16)
extern "C" __global__ void BOUNDS walk_back_alone_16(const WalkBack f) { walk_back<Mma<2, true, true>>(f); }
#endif
