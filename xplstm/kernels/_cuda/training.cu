/* Kernels for updates, clipping, cross-entropy, random masks and the gradient of an embedding. No sum uses
   atomics, so the order of additions depends only on the sizes.

   Implements the generic code of xplstm.optim, xplstm.losses, xplstm.cells.masks and xplstm.nn. */

DEVICE Size first_element() { return (Size)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE Size all_threads() { return (Size)gridDim.x * blockDim.x; }

/* Return the maximum, or NaN if an operand is NaN, as array libraries do. */
DEVICE Wide larger(Wide a, Wide b) { return a > b || a != a ? a : b; }

/* Reduce the values of all threads of a block by a binary tree, and return the result to every thread. The
   number of threads is a power of two. */
template <Wide (*join)(Wide, Wide)> DEVICE Wide over_block(Wide value)
{
    Wide *parts = (Wide *)shared_memory();
    parts[threadIdx.x] = value;
    for (unsigned half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            parts[threadIdx.x] = join(parts[threadIdx.x], parts[threadIdx.x + half]);
    }
    __syncthreads();
    value = parts[0];
    __syncthreads();
    return value;
}

/* The arrays of an update, indexed by blockIdx.y; arrays that an optimiser does not use are null. */
struct Table {
    const Stored *p[TABLE], *g[TABLE];
    const Wide *before[2][TABLE]; /* averages, null while they are zero */
    const Wide *master[TABLE];    /* float32 copy of the parameter, or null */
    Stored *made[TABLE];
    Wide *after[2][TABLE];
    Wide *copy[TABLE]; /* the new float32 copy, or null for wide dtypes */
    Size size[TABLE];
};

struct Descent {
    Wide rate, momentum;
};

struct Moments {
    Wide rate, keep, decay_m, fresh_m, decay_v, fresh_v, root, eps;
};

/* Return decay * before + fresh. */
DEVICE Wide average(const Table &table, int kind, Size at, Wide decay, Wide fresh)
{
    const Wide *before = table.before[kind][blockIdx.y];
    Wide now = sum(product(decay, before ? before[at] : 0), fresh);
    table.after[kind][blockIdx.y][at] = now;
    return now;
}

/* Return the parameter in the dtype of its averages: the float32 copy, unless other code replaced the
   parameter. */
DEVICE Wide present(const Table &table, Size at)
{
    Stored p = table.p[blockIdx.y][at];
    const Wide *master = table.master[blockIdx.y];
    return master && widened(narrowed(master[at])) == widened(p) ? master[at] : widened(p);
}

DEVICE void store(const Table &table, Size at, Wide p)
{
    table.made[blockIdx.y][at] = narrowed(p);
    if (table.copy[blockIdx.y])
        table.copy[blockIdx.y][at] = p;
}

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    update_descent(const Table table, const Descent rule)
{
    Size size = table.size[blockIdx.y];
    for (Size at = first_element(); at < size; at += all_threads()) {
        Wide p = present(table, at), m = widened(table.g[blockIdx.y][at]);
        if (table.after[0][blockIdx.y])
            m = average(table, 0, at, rule.momentum, m);
        store(table, at, sum(p, product(-rule.rate, m)));
    }
}

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    update_moments(const Table table, const Moments rule)
{
    Size size = table.size[blockIdx.y];
    for (Size at = first_element(); at < size; at += all_threads()) {
        Wide p = product(present(table, at), rule.keep), g = widened(table.g[blockIdx.y][at]);
        Wide m = average(table, 0, at, rule.decay_m, product(rule.fresh_m, g));
        Wide v = average(table, 1, at, rule.decay_v, product(rule.fresh_v, product(g, g)));
        Wide step = quotient(m, sum(quotient(square_root(v), rule.root), rule.eps));
        store(table, at, sum(p, product(-rule.rate, step)));
    }
}

/* The norm of all gradients, computed by three kernels. Each block of the first two kernels writes one of
   `count` partial results, from index `first` on. Every block of the next kernel reduces all partial
   results. */
struct Parts {
    Wide *largest, *squares;
    Size first, count;
};

DEVICE Size part_of(const Parts &parts) { return parts.first + (Size)blockIdx.y * gridDim.x + blockIdx.x; }

template <Wide (*join)(Wide, Wide)> DEVICE Wide joined(const Wide *parts, Size count)
{
    Wide all = 0;
    for (Size at = threadIdx.x; at < count; at += blockDim.x)
        all = join(all, parts[at]);
    return over_block<join>(all);
}

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    find_largest(const Table table, const Parts parts)
{
    const Stored *g = table.g[blockIdx.y];
    Wide largest = 0;
    for (Size at = first_element(); at < table.size[blockIdx.y]; at += all_threads())
        largest = larger(largest, magnitude(widened(g[at])));
    largest = over_block<larger>(largest);
    if (threadIdx.x == 0)
        parts.largest[part_of(parts)] = largest;
}

DEVICE bool is_finite(Wide a) { return sum(a, -a) == 0; }
DEVICE Wide scale_of(Wide largest)
{
    const Wide highest = (Wide)(sizeof(Wide) == 4 ? 0x1p120 : 0x1p1016);
    return !(largest > 0 && is_finite(largest)) ? (Wide)1 : largest < highest ? largest : highest;
}

/* Scale by the largest magnitude, so that no square overflows. */
extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    sum_squares(const Table table, const Parts parts)
{
    const Stored *g = table.g[blockIdx.y];
    Wide largest = joined<larger>(parts.largest, parts.count), total = 0;
    Wide scale = scale_of(largest);
    for (Size at = first_element(); at < table.size[blockIdx.y]; at += all_threads()) {
        Wide part = quotient(widened(g[at]), scale);
        total = fused(part, part, total);
    }
    total = over_block<sum>(total);
    if (threadIdx.x == 0)
        parts.squares[part_of(parts)] = total;
}

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    clip(const Table table, const Parts parts, Wide bound, Wide *norm)
{
    Wide largest = joined<larger>(parts.largest, parts.count);
    Wide root = square_root(joined<sum>(parts.squares, parts.count)), scale = scale_of(largest);
    Wide total = product(scale, root);
    bool fits = total <= bound, overflows = !fits && is_finite(largest) && !is_finite(total);
    /* A power of two keeps the norm of finite numbers finite. */
    Wide shift = overflows ? (Wide)0x1p-64 : (Wide)1;
    Wide factor = fits ? (Wide)1 : quotient(bound, product(product(scale, shift), root));
    for (Size at = first_element(); at < table.size[blockIdx.y]; at += all_threads())
        table.made[blockIdx.y][at] =
            narrowed(product(product(widened(table.g[blockIdx.y][at]), shift), factor));
    if (threadIdx.x == 0 && part_of(parts) == 0)
        *norm = total;
}

/* A block computes one row of logits. */
struct Entropy {
    const Stored *logits; /* (rows, classes) */
    const long long *targets;
    const unsigned char *mask; /* null if every row counts */
    Wide *largest, *total;     /* of each row: max z, and the sum of exp(z - max z) */
    Size rows, classes;
};

DEVICE bool counts(const Entropy &e, Size row) { return !e.mask || e.mask[row]; }

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS) entropy_of_rows(const Entropy e, Wide *losses)
{
    Size row = blockIdx.x, target = e.targets[row];
    if (!counts(e, row)) {
        if (threadIdx.x == 0)
            losses[row] = 0;
        return;
    }
    const Stored *z = e.logits + row * e.classes;
    Wide largest = widened(z[0]), total = 0;
    for (Size k = threadIdx.x; k < e.classes; k += blockDim.x)
        largest = larger(largest, widened(z[k]));
    largest = over_block<larger>(largest);
#pragma unroll 1 /* several exponentials at a time would spill registers in float64 */
    for (Size k = threadIdx.x; k < e.classes; k += blockDim.x)
        total = sum(total, exp(sum(widened(z[k]), -largest)));
    total = over_block<sum>(total);
    if (threadIdx.x)
        return;
    Wide z_target = 0 <= target && target < e.classes ? sum(widened(z[target]), -largest) : 0;
    e.largest[row] = largest;
    e.total[row] = total;
    losses[row] = sum(log(total), -z_target);
}

/* Compute, by one block, the mean over the rows that count, and the weight of each of these rows. */
extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    mean_entropy(const Entropy e, const Wide *losses, Wide *share, Stored *mean)
{
    Wide number = 0, total = 0;
    for (Size row = threadIdx.x; row < e.rows; row += blockDim.x)
        number = sum(number, counts(e, row) ? 1 : 0);
    number = over_block<sum>(number);
    Wide part = quotient(1, number > 0 ? number : 1);
    for (Size row = threadIdx.x; row < e.rows; row += blockDim.x)
        total = fused(losses[row], part, total);
    total = over_block<sum>(total);
    if (threadIdx.x)
        return;
    *share = part;
    *mean = narrowed(total);
}

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    entropy_gradient(const Entropy e, const Wide *scale, Stored *dlogits)
{
    Size row = blockIdx.x, target = e.targets[row];
    bool counted = counts(e, row);
    for (Size k = threadIdx.x; k < e.classes; k += blockDim.x) {
        Size at = row * e.classes + k;
        Wide dz = 0;
        if (counted) {
            Wide share = quotient(exp(sum(widened(e.logits[at]), -e.largest[row])), e.total[row]);
            dz = product(sum(share, k == target ? -1 : 0), *scale);
        }
        dlogits[at] = narrowed(dz);
    }
}

/* Philox 4x64-10 of Salmon, Moraes, Dror and Shaw (2011), with the counters of xplstm.cells.masks. */
struct Draw {
    unsigned long long key[2], t, stream, purpose, threshold;
    Size count;
};

/* Write four elements per thread: `low` where a random 53-bit integer is below the threshold. */
template <typename Number> DEVICE void choose(const Draw &draw, Number low, Number high, Number *out)
{
    Size first = first_element();
    unsigned long long c[4] = {(unsigned long long)first + 1, draw.t, draw.stream, draw.purpose};
    unsigned long long key_0 = draw.key[0], key_1 = draw.key[1];
    for (int round = 0; round < 10; round++) {
        unsigned long long a = c[0], b = c[2];
        c[0] = upper_product(b, 0xCA5A826395121157ull) ^ c[1] ^ key_0;
        c[1] = b * 0xCA5A826395121157ull;
        c[2] = upper_product(a, 0xD2E7470EE14C6C93ull) ^ c[3] ^ key_1;
        c[3] = a * 0xD2E7470EE14C6C93ull;
        key_0 += 0x9E3779B97F4A7C15ull;
        key_1 += 0xBB67AE8584CAA73Bull;
    }
    for (int n = 0; n < 4; n++)
        if (4 * first + n < draw.count)
            out[4 * first + n] = c[n] >> 11 < draw.threshold ? low : high;
}

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    scaled_mask(const Draw draw, Stored kept, Stored *out)
{
    choose<Stored>(draw, narrowed(0), kept, out);
}

extern "C" __global__ void __launch_bounds__(TRAINING_THREADS) hold_mask(const Draw draw, unsigned char *out)
{
    choose<unsigned char>(draw, 1, 0, out);
}

/* Find where the rows of each id begin in the order of the ids; ids outside [0, count) are ignored. */
extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    find_starts(const long long *ids, const long long *order, Size rows, Size count, Size *starts)
{
    Size id = first_element(), low = 0, high = rows;
    if (id > count)
        return;
    while (low < high) {
        Size middle = (low + high) / 2;
        if (ids[order[middle]] < id)
            low = middle + 1;
        else
            high = middle;
    }
    starts[id] = low;
}

/* A block sums the rows of one id. For each of 32 columns, eight lanes add every eighth row, and one lane
   adds these sums. */
extern "C" __global__ void __launch_bounds__(TRAINING_THREADS)
    sum_rows(const Stored *rows, const long long *order, const Size *starts, Size columns, Stored *out)
{
    Wide *parts = (Wide *)shared_memory();
    Size id = blockIdx.x, last = starts[id + 1];
    for (Size from = (Size)blockIdx.y * WARP; from < columns; from += (Size)gridDim.y * WARP) {
        Size column = from + threadIdx.x;
        Wide total = 0;
        if (column < columns)
            for (Size at = starts[id] + threadIdx.y; at < last; at += 8)
                total = sum(total, widened(rows[order[at] * columns + column]));
        parts[threadIdx.y * WARP + threadIdx.x] = total;
        __syncthreads();
        if (threadIdx.y == 0 && column < columns) {
            for (int part = 1; part < 8; part++)
                total = sum(total, parts[part * WARP + threadIdx.x]);
            out[id * columns + column] = narrowed(total);
        }
        __syncthreads();
    }
}
