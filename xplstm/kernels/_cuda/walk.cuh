/* The recurrence over all time steps in one launch: `walk` forward and `walk_back` backward.

   A block owns some hidden units of one direction for one group of batch entries: the rows of W_hh of these
   units, and their c and h. In every step it reads h of its whole group, multiplies, applies the gates and
   publishes h of its own units; backward it publishes dz. Only the blocks of one group and direction wait for
   each other. Each has one counter, which holds the number of the last step that it has published.

   An engine, a struct derived from Group, computes the product: persistent.cu by fused multiply-adds,
   persistent_mma.cu by tensor cores. The constructor of an engine fills Block and copies the block's weights
   on-chip. An engine has the methods

     cell_at(n)           return the batch entry and unit of cell n of this block
     spot(row, k)         return the index of number k of a row of the group in the exchange buffer
     await(waits, in, s)  wait until the numbers of step s that this thread's warp reads are in buffer `in`;
                          return whether the thread has given up
     multiply(in, pass)   compute the partial sums of a pass in `parts`. Begin with a barrier if the previous
                          pass may still read `parts`, and end with this thread's copies complete.

   A group with all units in one block (ALONE) needs no other block. Its exchange buffer is in shared memory,
   and it neither waits nor publishes: the barriers of the block order all accesses.

   Why this is safe:

   - Read after write, between blocks: release and acquire. A block's stores precede its __syncthreads, and
     that precedes the release store of its counter. A reader's acquire load of the counter precedes the
     barrier that the other threads of its block pass.
   - Read after write, with flags inside the data (TF32): the low 13 bits of a word, which TF32 does not use,
     hold the low bits of its step. A word is stored and loaded as one access, so a number and its flag belong
     together. A lane reads the same words in every step. Loads of one address by one thread never go back
     to an older value, so a flag from 8192 steps ago cannot be read. No counter and no fence is needed.
   - Write after read, between blocks: double buffering. Before a block writes step k + 2 it has observed, in
     one thread or another, all counters or words of step k + 1, each written after its block finished reading
   step k.
   - Between the threads of a block: cell n belongs to thread n % threads in every loop, also where the cells
     of a pass begin at another thread (own_from). Threads exchange only `parts`, between two barriers.
   - No deadlock: a block raises its counter for a step before it waits for the same step of others, so the
     block that is furthest behind never waits. All blocks are resident, because the launch is cooperative
     with at most one block for each SM. Blocks are numbered along y of the grid. With too many blocks along
     x, CuPy would launch only the blocks that fit, and warn.
   - No endless wait, even if an assumption is wrong: a thread that waits longer than `patience` abandons the
     launch. All threads of its block learn this at their next common barrier, before they write to a buffer
     that other blocks may still read. Waiting threads of other blocks read it in `abandoned`. Each block
     writes NaN for the steps that it has not computed, and exits.

   tests/protocol/walk.pml has this protocol for a model checker. */

/* ONLY selects a single entry to compile, because the compiler needs about a second per entry. */
#define BACKWARD_ENTRY 100
#define ALONE_ENTRY 200
#ifdef ONLY
#define WANTED(entry) (ONLY == (entry))
#else
#define WANTED(entry) 1
#endif

/* The type of numbers that blocks exchange. */
#ifdef TF32
#define FLAG_BITS 0x1fffu /* of a word: the low bits of its step */
typedef unsigned Sent;
DEVICE Sent sent(Wide a) { return tf32_from_float(a); }
#else
typedef Stored Sent;
DEVICE Sent sent(Wide a) { return narrowed(a); }
#endif

/* The synchronisation variables of blocks. */
struct Waits {
    unsigned *counters;  /* (directions, groups, unit_blocks), zeros */
    unsigned *abandoned; /* nonzero after a thread of this launch has given up */
    unsigned *status;    /* in host memory; set together with `abandoned`, cleared only by the host */
    Size patience;       /* nanoseconds */
};

/* Record the time of the first call. Return whether to give up: after `patience`, or after another thread. */
DEVICE bool gives_up(const Waits &waits, unsigned long long &begun)
{
    unsigned long long now = nanoseconds();
    if (load_relaxed(waits.abandoned))
        return true;
    if (!begun)
        begun = now;
    if (now - begun <= (unsigned long long)waits.patience)
        return false;
    store_relaxed(waits.abandoned, 1);
    store_to_host(waits.status, 1);
    return true;
}

/* The partition of the work, which the Python code selects by the attributes of the device. */
struct Plan {
    Size units;               /* units per block, a multiple of 8 */
    Size unit_blocks, groups; /* blocks = directions * groups * unit_blocks */
    Size rows;                /* batch entries of a group; the last group may have fewer */
    Size tiles;               /* row tiles that are on-chip at once */
    Size passes;              /* number of passes of `tiles` tiles that cover the rows of a group */
    Size chunk;               /* numbers of k that are on-chip at once; only backward without mma */
};

/* The partition in 32-bit integers, because 64-bit division is slow on a GPU. */
struct Partition {
    int units, unit_blocks, groups, rows, tiles, passes, chunk;
};

struct Walk {
    Layer layer;
    Plan plan;
    const Stored *weight;    /* (directions, 4H, H) */
    Wide *z;                 /* (directions, held, B, 4H): W_ih x, overwritten by the gates */
    const Wide *bias;        /* (directions, 4H), or null */
    const Stored *h_0, *c_0; /* (directions, B, H) */
    Stored *h_n, *c_n;
    Stored *h; /* (directions, slots, B, H) */
    Wide *c;
    Stored *y;      /* (T, B, directions * H) */
    void *exchange; /* (2, directions, groups, numbers of a group) */
    Waits waits;
    Size first[2], held, slots, keep, from, to;
};

struct WalkBack {
    Layer layer;
    Plan plan;
    const Stored *weight;
    const Wide *gates; /* (directions, T, B, 4H) */
    const Wide *c;     /* (directions, T + 1, B, H) */
    const Stored *dy;
    Wide *dh, *dc; /* (directions, B, H): gradients of the final state, replaced by gradients of the initial
                      state */
    Stored *dz;    /* (directions, T, B, 4H) */
    void *exchange;
    Waits waits;
};

/* One unit of one batch entry. */
struct Cell {
    int row, unit; /* in the batch and in the layer */
    bool inside;
};

/* This block's share of the work, and its arrays in shared memory. */
struct Block {
    const Layer &layer;
    Partition part;
    int d, group, unit_block; /* `group` counts through all directions */
    int H, unit, row, rows;   /* the first unit, the first batch entry, and the number of batch entries */
    int cells, slices,
        numbers;       /* cells per pass; partial sums per z or dh; numbers that the group exchanges */
    Wide *parts;       /* (slices, cells, 4), backward (slices, cells) */
    Wide *bias, *held; /* (units, 4); Held or HeldBack */

    __device__ __forceinline__ Block(const Layer &l, const Plan &p)
        : layer(l), part{(int)p.units, (int)p.unit_blocks, (int)p.groups, (int)p.rows,
                         (int)p.tiles, (int)p.passes,      (int)p.chunk}
    {
        group = (int)blockIdx.y / part.unit_blocks;
        unit_block = (int)blockIdx.y % part.unit_blocks;
        d = group / part.groups;
        H = (int)layer.H;
        unit = unit_block * part.units;
        row = group % part.groups * part.rows;
        int left = (int)layer.B - row;
        rows = left < part.rows ? left : part.rows;
    }

    __device__ __forceinline__ Cell cell(int r, int u) const
    {
        return {row + r, unit + u, r < rows && unit + u < H};
    }
};

/* The exchange of numbers within a group: between several blocks, or within one (ALONE). */
template <bool ALONE> struct Group : Block {
    Sent *on_chip; /* the exchange buffers of a single-block group: (2, numbers) */

    using Block::Block;

    /* Return the exchange buffer of step k (double buffering). */
    __device__ __forceinline__ Sent *buffer(void *exchange, int k) const
    {
        if (ALONE)
            return on_chip + (k & 1) * numbers;
        return (Sent *)exchange + ((k & 1) * layer.directions * part.groups + group) * numbers;
    }

    /* Write a number of a step to an exchange buffer. */
    __device__ __forceinline__ void send(Sent *to, Wide a, unsigned step) const
    {
#ifdef TF32
        if (!ALONE)
            return store_relaxed(to, (sent(a) & ~FLAG_BITS) | (step & FLAG_BITS));
#else
        (void)step;
#endif
        *to = sent(a);
    }

    /* Publish this block's writes for a step, after a barrier of the block, unless flags are inside. */
    __device__ __forceinline__ void publish(const Waits &waits, unsigned step) const
    {
#ifndef TF32
        if (!ALONE && threadIdx.x == 0)
            store_release(waits.counters + blockIdx.y, step);
#else
        (void)waits, (void)step;
#endif
    }

    /* The barrier between the product of a pass and its cells. Return whether a thread has given up. */
    __device__ __forceinline__ bool meet(int pass, bool late) const
    {
        if (!ALONE && pass == 0)
            return any_of_block(late);
        __syncthreads();
        return false;
    }

    /* Wait for one block of the group; return whether this thread has given up. */
    __device__ __forceinline__ bool await_one(const Waits &waits, int other, unsigned step) const
    {
        const unsigned *counter = waits.counters + group * part.unit_blocks + other;
        unsigned long long begun = 0;
        for (int polls = 1; load_acquire(counter) < step; polls++) {
            rest();
            if (polls % POLLS == 0 && gives_up(waits, begun))
                return true;
        }
        return false;
    }
};

/* Return the value that marks a number as not computed. */
DEVICE Wide not_a_number() { return number_of((Bits)(4 * BIAS + 3) << (FRACTION - 1)); }

/* N numbers that one instruction reads. */
template <int N> struct __align__(N * sizeof(Wide) < 16 ? N * sizeof(Wide) : 16) Run {
    Wide at[N];
};

template <int N> DEVICE Run<N> run_at(const Wide *from) { return *(const Run<N> *)from; }

/* Return the first cell of this thread from `cell` on. */
DEVICE int own_from(int cell)
{
    int apart = (int)threadIdx.x - cell % (int)blockDim.x;
    return cell + (apart < 0 ? apart + (int)blockDim.x : apart);
}

/* The valid steps of a cell take one word in shared memory: the number of steps, or with a mask the word
   that contains the step's byte. The word is loaded before the step, so the step does not wait for it. */
#define EVERY_STEP 0x7f7f7f7fu /* all steps are valid, for any index of the byte */

DEVICE const unsigned char *mask_of(const Layer &layer, Size t, Size b)
{
    return layer.mask + t * layer.B + b;
}

DEVICE unsigned steps_of(const Layer &layer, Size b)
{
    Size length = layer.lengths ? layer.lengths[b] : layer.T;
    return length < 0 ? 0 : length < layer.T ? (unsigned)length : (unsigned)layer.T;
}

DEVICE bool exists_by(const Layer &layer, unsigned word, Size t, Size b)
{
    bool masked = layer.mask && !layer.lengths;
    return masked ? (word >> 8 * ((Size)mask_of(layer, t, b) & 3) & 0xff) != 0 : t < (Size)word;
}

/* Copy the aligned word around a narrower number, because an asynchronous copy has at least four bytes. The
   word never exceeds the allocation, which begins and ends at multiples of a word. */
DEVICE void copy_word_soon(unsigned *to, const void *from)
{
    copy_soon(to, (const unsigned *)((Size)from & ~(Size)3));
}

/* The cells of a block in shared memory. Only thread n % threads accesses cell n. */
struct Held {
    Wide *z; /* (cells, 4): W_ih x of the next step, then the gates */
    int cells;

    __device__ Wide &c(int n) const { return z[4 * cells + n]; }
    __device__ Wide &h(int n) const { return z[5 * cells + n]; }
    __device__ unsigned &steps(int n) const { return ((unsigned *)(z + 6 * cells))[n]; }
    __device__ unsigned &late() const { return steps(cells); } /* a thread of the block has given up */
};

DEVICE Wide *input_of(const Walk &f, const Block &own, const Cell &cell, Size t)
{
    return f.z + ((own.d * f.held + t - f.first[own.d]) * f.layer.B + cell.row) * 4 * f.layer.H + cell.unit;
}

/* Return the index of h and c of a cell, before or after a step. */
DEVICE Size state_of(const Walk &f, const Block &own, const Cell &cell, Size slot)
{
    return state_row(f.layer, f.slots, own.d, slot, cell.row) * f.layer.H + cell.unit;
}

/* Load c and h of a cell before the first step of this launch. */
DEVICE void begin(const Walk &f, const Block &own, const Cell &cell, const Held &held, int n)
{
    held.c(n) = held.h(n) = 0;
    if (!cell.inside)
        return;
    held.steps(n) = steps_of(f.layer, cell.row);
    Size at = state_of(f, own, cell, step_of(f.layer, own.d, f.from).before);
    Size row = (own.d * f.layer.B + cell.row) * f.layer.H + cell.unit;
    held.c(n) = f.from ? f.c[at] : widened(f.c_0[row]);
    held.h(n) = widened(f.from ? f.h[at] : f.h_0[row]);
    if (f.slots > 1) {
        f.c[at] = held.c(n);
        f.h[at] = narrowed(held.h(n));
    }
}

/* Prefetch W_ih x of step k of a cell, while other threads still compute. */
DEVICE void fetch(const Walk &f, const Block &own, const Cell &cell, const Held &held, int n, Size k)
{
    if (!cell.inside)
        return;
    Size t = step_of(f.layer, own.d, k).t;
    const Wide *from = input_of(f, own, cell, t);
    for (int gate = 0; gate < 4; gate++)
        copy_soon(held.z + 4 * n + gate, from + gate * f.layer.H);
    if (f.layer.mask)
        copy_word_soon(&held.steps(n), mask_of(f.layer, t, cell.row));
}

/* Run the step of one cell and return h'. `bias` and `parts` point to the numbers of this cell; `apart` is
   the distance between the parts of two slices. */
DEVICE Wide forward_step(const Held &held, int n, bool exists, const Wide *bias, const Wide *parts,
                         int slices, int apart)
{
    Wide *z = held.z + 4 * n, c = held.c(n);
    Run<4> gate = run_at<4>(z), biases = run_at<4>(bias);
    for (int at = 0; at < 4; at++)
        gate.at[at] = sum(gate.at[at], biases.at[at]);
    for (int slice = 0; slice < slices; slice++) {
        Run<4> part = run_at<4>(parts + slice * apart);
        for (int at = 0; at < 4; at++)
            gate.at[at] = sum(gate.at[at], part.at[at]);
    }
    Stored h = forward_cell(gate.at, c);
    for (int at = 0; at < 4; at++)
        z[at] = gate.at[at];
    if (exists) {
        held.c(n) = c;
        held.h(n) = widened(h);
    }
    return held.h(n);
}

/* Store the results of step k, off the critical path. */
DEVICE void write_out(const Walk &f, const Block &own, const Cell &cell, const Held &held, int n, Size k)
{
    const Layer &layer = f.layer;
    Step step = step_of(layer, own.d, k);
    bool last = k + 1 == f.to;
    if (!cell.inside)
        return;
    bool exists = exists_by(layer, held.steps(n), step.t, cell.row);
    f.y[((step.t * layer.B + cell.row) * layer.directions + own.d) * layer.H + cell.unit] =
        narrowed(exists ? held.h(n) : 0);
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

/* Copy the biases of a block's units, or zeros, to shared memory, with the four gates of a unit adjacent. */
DEVICE void hold_biases(const Walk &f, const Block &own)
{
    for (int n = threadIdx.x; n < 4 * own.part.units; n += (int)blockDim.x) {
        bool there = f.bias && own.unit + n / 4 < f.layer.H;
        own.bias[n] = there ? f.bias[(own.d * 4 + n % 4) * f.layer.H + own.unit + n / 4] : 0;
    }
}

/* Write NaN for the steps from k on, which this block has not computed. */
template <class Engine> DEVICE void spoil(const Walk &f, const Engine &own, const Held &held, int k)
{
    copies_done();
    for (int n = threadIdx.x; n < held.cells; n += (int)blockDim.x) {
        for (int gate = 0; gate < 4; gate++)
            held.z[4 * n + gate] = not_a_number();
        held.c(n) = held.h(n) = not_a_number();
        held.steps(n) = EVERY_STEP;
        for (int at = k; at < (int)f.to; at++)
            write_out(f, own, own.cell_at(n), held, n, at);
    }
}

template <class Engine> DEVICE void walk(const Walk &f)
{
    const Engine own(f);
    const int threads = blockDim.x, cells = own.cells, all_cells = own.part.passes * cells;
    const Held held = {own.held, all_cells};
    hold_biases(f, own);
    Sent *out = own.buffer(f.exchange, (int)f.from);
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        Cell cell = own.cell_at(n);
        begin(f, own, cell, held, n);
        if (cell.inside)
            own.send(out + own.spot(cell.row - own.row, cell.unit), held.h(n), 1);
        fetch(f, own, cell, held, n, f.from);
    }
    if (threadIdx.x == 0)
        held.late() = false;
    __syncthreads();
    own.publish(f.waits, 1);
    for (int k = (int)f.from; k < (int)f.to; k++) {
        unsigned step = (unsigned)(k - (int)f.from + 1);
        const Sent *in = own.buffer(f.exchange, k);
        if (own.await(f.waits, in, step))
            held.late() = true;
        for (int pass = 0; pass < own.part.passes; pass++) {
            own.multiply(in, pass);
            if (own.meet(pass, held.late()))
                return spoil(f, own, held, k);
            out = own.buffer(f.exchange, k + 1);
            const Size t = step_of(f.layer, own.d, k).t;
            for (int n = own_from(pass * cells); n < (pass + 1) * cells; n += threads) {
                Cell cell = own.cell_at(n);
                const Wide *bias = own.bias + 4 * (cell.unit - own.unit),
                           *sums = own.parts + 4 * (n - pass * cells);
                if (cell.inside)
                    own.send(out + own.spot(cell.row - own.row, cell.unit),
                             forward_step(held, n, exists_by(f.layer, held.steps(n), t, cell.row), bias, sums,
                                          own.slices, 4 * cells),
                             step + 1);
            }
        }
        __syncthreads();
        if (k + 1 < f.to)
            own.publish(f.waits, step + 1);
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            Cell cell = own.cell_at(n);
            write_out(f, own, cell, held, n, k);
            if (k + 1 < f.to)
                fetch(f, own, cell, held, n, k + 1);
        }
    }
}

/* The cells of a block in shared memory for the backward pass, with the same ownership as Held. */
struct HeldBack {
    Wide *z; /* (cells, 4): the gates of the next step, then dz */
    int cells;

    __device__ Wide &c_old(int n) const { return z[4 * cells + n]; }
    __device__ Wide &c_new(int n) const { return z[5 * cells + n]; }
    __device__ Wide &dy(int n) const
    {
        return z[6 * cells + n];
    } /* or the aligned word around a narrower number */
    __device__ Wide &dh(int n) const { return z[7 * cells + n]; }
    __device__ Wide &dc(int n) const { return z[8 * cells + n]; }
    __device__ unsigned &steps(int n) const { return ((unsigned *)(z + 9 * cells))[n]; }
    __device__ unsigned &late() const { return steps(cells); } /* a thread of the block has given up */
};

DEVICE void begin_back(const WalkBack &f, const Block &own, const Cell &cell, const HeldBack &held, int n)
{
    const Layer &layer = f.layer;
    held.dh(n) = held.dc(n) = 0;
    if (!cell.inside)
        return;
    held.steps(n) = steps_of(layer, cell.row);
    Size row = (own.d * layer.B + cell.row) * layer.H + cell.unit;
    Size slot = step_of(layer, own.d, layer.T - 1).after;
    held.dh(n) = f.dh[row];
    held.dc(n) = f.dc[row];
    held.c_new(n) = f.c[state_row(layer, layer.T + 1, own.d, slot, cell.row) * layer.H + cell.unit];
}

DEVICE const Stored *dy_of(const WalkBack &f, const Block &own, const Cell &cell, Size t)
{
    const Layer &layer = f.layer;
    return f.dy + ((t * layer.B + cell.row) * layer.directions + own.d) * layer.H + cell.unit;
}

DEVICE void fetch_dy(const HeldBack &held, int n, const Stored *from)
{
#if defined(FLOAT16) || defined(BFLOAT16)
    copy_word_soon((unsigned *)&held.dy(n), from);
#else
    copy_soon(&held.dy(n), from);
#endif
}

/* Return the number that fetch_dy has copied from `from`. */
DEVICE Wide fetched_dy(const HeldBack &held, int n, const Stored *from)
{
#if defined(FLOAT16) || defined(BFLOAT16)
    return widened((Stored)(bits_of(held.dy(n)) >> 8 * ((Size)from & 2)));
#else
    (void)from;
    return held.dy(n);
#endif
}

/* Prefetch the inputs of one cell's backward step. */
DEVICE void fetch_back(const WalkBack &f, const Block &own, const Cell &cell, const HeldBack &held, int n,
                       Size k)
{
    const Layer &layer = f.layer;
    Size H = layer.H, B = layer.B;
    Step step = step_of(layer, own.d, k);
    if (!cell.inside)
        return;
    const Wide *gates = f.gates + ((own.d * layer.T + step.t) * B + cell.row) * 4 * H + cell.unit;
    for (int gate = 0; gate < 4; gate++)
        copy_soon(held.z + 4 * n + gate, gates + gate * H);
    copy_soon(&held.c_old(n),
              f.c + state_row(layer, layer.T + 1, own.d, step.before, cell.row) * H + cell.unit);
    fetch_dy(held, n, dy_of(f, own, cell, step.t));
    if (layer.mask)
        copy_word_soon(&held.steps(n), mask_of(layer, step.t, cell.row));
}

/* Replace the gates of one cell by dz, and set dh to zero; the product adds the recurrent gradient. */
DEVICE void backward_step(const HeldBack &held, int n, bool exists, const Stored *dy)
{
    Wide *z = held.z + 4 * n, gate[4] = {z[0], z[1], z[2], z[3]};
    z[0] = z[1] = z[2] = z[3] = 0;
    if (exists) {
        Wide dm = sum(held.dh(n), fetched_dy(held, n, dy));
        backward_cell(gate, held.c_old(n), held.c_new(n), dm, held.dc(n));
        for (int at = 0; at < 4; at++)
            z[at] = gate[at];
        held.dh(n) = 0;
    }
    held.c_new(n) = held.c_old(n);
}

/* Store dz, which the gradients with respect to the weights need, off the critical path. */
DEVICE void write_out_back(const WalkBack &f, const Block &own, const Cell &cell, const HeldBack &held, int n,
                           Size k)
{
    Size H = f.layer.H, t = step_of(f.layer, own.d, k).t;
    if (cell.inside)
        for (int gate = 0; gate < 4; gate++)
            f.dz[((own.d * f.layer.T + t) * f.layer.B + cell.row) * 4 * H + gate * H + cell.unit] =
                narrowed(held.z[4 * n + gate]);
}

DEVICE void end_back(const WalkBack &f, const Block &own, const Cell &cell, const HeldBack &held, int n)
{
    if (!cell.inside)
        return;
    f.dh[(own.d * f.layer.B + cell.row) * f.layer.H + cell.unit] = held.dh(n);
    f.dc[(own.d * f.layer.B + cell.row) * f.layer.H + cell.unit] = held.dc(n);
}

/* Write NaN for the steps from k down, whose gradients this block has not computed. */
template <class Engine>
DEVICE void spoil_back(const WalkBack &f, const Engine &own, const HeldBack &held, int k)
{
    copies_done();
    for (int n = threadIdx.x; n < held.cells; n += (int)blockDim.x) {
        for (int gate = 0; gate < 4; gate++)
            held.z[4 * n + gate] = not_a_number();
        held.dh(n) = held.dc(n) = not_a_number();
        for (int at = k; at >= 0; at--)
            write_out_back(f, own, own.cell_at(n), held, n, at);
        end_back(f, own, own.cell_at(n), held, n);
    }
}

template <class Engine> DEVICE void walk_back(const WalkBack &f)
{
    const Engine own(f);
    const int T = (int)f.layer.T, threads = blockDim.x, cells = own.cells,
              all_cells = own.part.passes * cells;
    const HeldBack held = {own.held, all_cells};
    for (int n = threadIdx.x; n < all_cells; n += threads) {
        Cell cell = own.cell_at(n);
        begin_back(f, own, cell, held, n);
        fetch_back(f, own, cell, held, n, T - 1);
    }
    if (threadIdx.x == 0)
        held.late() = false;
    __syncthreads();
    for (int k = T - 1; k >= 0; k--) {
        Sent *out = own.buffer(f.exchange, k);
        const Size t = step_of(f.layer, own.d, k).t;
        unsigned step = (unsigned)(T - k);
        copies_done();
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            Cell cell = own.cell_at(n);
            if (!cell.inside)
                continue;
            backward_step(held, n, exists_by(f.layer, held.steps(n), t, cell.row), dy_of(f, own, cell, t));
            for (int gate = 0; gate < 4; gate++)
                own.send(out + own.spot(cell.row - own.row, gate * own.H + cell.unit), held.z[4 * n + gate],
                         step);
        }
        __syncthreads();
        own.publish(f.waits, step);
        for (int n = threadIdx.x; n < all_cells; n += threads) {
            Cell cell = own.cell_at(n);
            write_out_back(f, own, cell, held, n, k);
            if (k)
                fetch_back(f, own, cell, held, n, k - 1);
        }
        if (own.await(f.waits, out, step))
            held.late() = true;
        for (int pass = 0; pass < own.part.passes; pass++) {
            own.multiply(out, pass);
            if (own.meet(pass, held.late()))
                return spoil_back(f, own, held, k - 1);
            for (int n = own_from(pass * cells); n < (pass + 1) * cells; n += threads) {
                /* A local sum: in memory the compiler would store it after each slice, as `parts` may alias.
                 */
                Wide total = held.dh(n);
                for (int slice = 0; slice < own.slices; slice++)
                    total = sum(total, own.parts[(slice - pass) * cells + n]);
                held.dh(n) = total;
            }
        }
    }
    for (int n = threadIdx.x; n < all_cells; n += threads)
        end_back(f, own, own.cell_at(n), held, n);
}
