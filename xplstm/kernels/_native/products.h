/* Products of rows with packed panels, in the order of XPL-EXACT-002, and the sums over rows that gradients
   are. */

#define PANEL (4 * LANES)

/* Bytes of a cache line. */
#define LINE 64

/* A loop that is unrolled fully, so that the array that it runs over stays in registers. */
#define EACH(n, count) _Pragma("GCC unroll 6") for (int n = 0; n < (count); n++)

/* A tile: R rows by one panel over k terms of one block, added to u where there is one, then the bias. Terms
   of a row stand `step` apart. Each term prefetches one more cache line of what comes `next`: weights that
   are too large for the L2 cache would stall the loop. */
#define TILE(R)                                                                                            \
    static __attribute__((noinline)) void NAME(tile##R)(const REAL *const *rows, Size step, const REAL *w, \
                                                        Size k, REAL *out, Size out_step, const REAL *u,   \
                                                        Size u_step, const REAL *bias, const char *next)   \
    {                                                                                                      \
        const REAL *a[R];                                                                                  \
        V sum[R][4];                                                                                       \
        EACH (r, R) {                                                                                      \
            a[r] = rows[r];                                                                                \
            EACH (j, 4)                                                                                    \
                sum[r][j] = all(0);                                                                        \
        }                                                                                                  \
        if (u)                                                                                             \
            EACH (r, R)                                                                                    \
                EACH (j, 4)                                                                                \
                    __builtin_prefetch(u + r * u_step + j * LANES);                                        \
        for (Size n = 0; n < k; n++, w += PANEL) {                                                         \
            V w0 = load(w), w1 = load(w + LANES), w2 = load(w + 2 * LANES), w3 = load(w + 3 * LANES);      \
            __builtin_prefetch(next + n * LINE, 0, 2);                                                     \
            EACH (r, R) {                                                                                  \
                V v = all(a[r][n * step]);                                                                 \
                sum[r][0] = fma(v, w0, sum[r][0]);                                                         \
                sum[r][1] = fma(v, w1, sum[r][1]);                                                         \
                sum[r][2] = fma(v, w2, sum[r][2]);                                                         \
                sum[r][3] = fma(v, w3, sum[r][3]);                                                         \
            }                                                                                              \
        }                                                                                                  \
        if (u)                                                                                             \
            EACH (r, R)                                                                                    \
                EACH (j, 4)                                                                                \
                    sum[r][j] = load(u + r * u_step + j * LANES) + sum[r][j];                              \
        if (bias)                                                                                          \
            EACH (r, R)                                                                                    \
                EACH (j, 4)                                                                                \
                    sum[r][j] = sum[r][j] + load(bias + j * LANES);                                        \
        EACH (r, R)                                                                                        \
            EACH (j, 4)                                                                                    \
                store(out + r * out_step + j * LANES, sum[r][j]);                                          \
    }

TILE(1)
TILE(2)
TILE(3)
#if ROWS > 3
TILE(4)
TILE(5)
TILE(6)
#endif

typedef void (*NAME(Tile))(const REAL *const *, Size, const REAL *, Size, REAL *, Size, const REAL *, Size,
                           const REAL *, const char *);

static const NAME(Tile) NAME(tiles)[] = {
    NULL,        NAME(tile1), NAME(tile2), NAME(tile3),
#if ROWS > 3
    NAME(tile4), NAME(tile5), NAME(tile6),
#endif
};

/* For one row and K <= SHORT, prefetch the weights AHEAD terms in advance. */
enum { NAME(SHORT) = 64, NAME(AHEAD) = 6 };

#define NO_PREFETCH(at) (void)0
#define PREFETCH_AHEAD(at)                     \
    EACH (j, PANEL * (int)sizeof(REAL) / LINE) \
    __builtin_prefetch((const char *)((at) + NAME(AHEAD) * PANEL) + j * LINE)

/* One row by C consecutive panels of w, `panel` apart: C times as many independent chains hide the latency of
   the multiply-adds. */
#define ROW(name, C, PREFETCH)                                                                         \
    static __attribute__((noinline)) void NAME(name)(const REAL *a, const REAL *w, Size panel, Size k, \
                                                     REAL *out, const REAL *u, const REAL *bias)       \
    {                                                                                                  \
        V sum[C][4];                                                                                   \
        const REAL *at[C];                                                                             \
        EACH (c, C) {                                                                                  \
            at[c] = w + c * panel;                                                                     \
            EACH (j, 4)                                                                                \
                sum[c][j] = all(0);                                                                    \
        }                                                                                              \
        for (Size n = 0; n < k; n++) {                                                                 \
            V v = all(a[n]);                                                                           \
            EACH (c, C) {                                                                              \
                PREFETCH(at[c] + n * PANEL);                                                           \
                EACH (j, 4)                                                                            \
                    sum[c][j] = fma(v, load(at[c] + n * PANEL + j * LANES), sum[c][j]);                \
            }                                                                                          \
        }                                                                                              \
        if (u)                                                                                         \
            EACH (c, C)                                                                                \
                EACH (j, 4)                                                                            \
                    sum[c][j] = load(u + c * PANEL + j * LANES) + sum[c][j];                           \
        if (bias)                                                                                      \
            EACH (c, C)                                                                                \
                EACH (j, 4)                                                                            \
                    sum[c][j] = sum[c][j] + load(bias + c * PANEL + j * LANES);                        \
        EACH (c, C)                                                                                    \
            EACH (j, 4)                                                                                \
                store(out + c * PANEL + j * LANES, sum[c][j]);                                         \
    }

ROW(row2, 2, NO_PREFETCH)
ROW(prefetching2, 2, PREFETCH_AHEAD)
#if ROWS > 3
ROW(row3, 3, NO_PREFETCH)
ROW(row4, 4, NO_PREFETCH)
ROW(prefetching3, 3, PREFETCH_AHEAD)
ROW(prefetching4, 4, PREFETCH_AHEAD)
enum { NAME(WIDE) = 4 };
#else
enum { NAME(WIDE) = 2 };
#endif

typedef void (*NAME(Row))(const REAL *, const REAL *, Size, Size, REAL *, const REAL *, const REAL *);

static const NAME(Row) NAME(rows)[2][5] = {
#if ROWS > 3
    {NULL, NULL, NAME(row2), NAME(row3), NAME(row4)},
    {NULL, NULL, NAME(prefetching2), NAME(prefetching3), NAME(prefetching4)},
#else
    {NULL, NULL, NAME(row2)},
    {NULL, NULL, NAME(prefetching2)},
#endif
};

/* out = ((u + block) + block) + ... + bias for one row and `panels` panels next to each other. Of a single
   step no weight is in the L1 cache yet, and a short sum ends before the hardware prefetcher starts. */
static void NAME(row_product)(const REAL *a, Size K, const REAL *w, Size panels, int single, REAL *out,
                              const REAL *u, const REAL *bias)
{
    const NAME(Row) *rows = NAME(rows)[single && K <= NAME(SHORT)];
    while (panels > 0) {
        Size c = panels > NAME(WIDE) ? NAME(WIDE) : panels;
#if ROWS > 3
        if (panels == 5)
            c = 3;
#endif
        for (Size k = 0; k < K; k += BLOCK) {
            Size n = K - k < BLOCK ? K - k : BLOCK;
            const REAL *from = k ? out : u, *last = k + n == K ? bias : NULL, *at = w + k * PANEL;
            const REAL *row = a + k;
            if (c == 1)
                NAME(tile1)(&row, 1, at, n, out, PANEL, from, PANEL, last, (const char *)(at + n * PANEL));
            else
                rows[c](row, at, K * PANEL, n, out, from, last);
        }
        panels -= c;
        w += c * K * PANEL;
        out += c * PANEL;
        u = u ? u + c * PANEL : NULL;
        bias = bias ? bias + c * PANEL : NULL;
    }
}

/* The same for many rows and one panel. */
static void NAME(product)(const REAL *const *rows, Size count, Size K, const REAL *w, REAL *out,
                          Size out_step, const REAL *u, Size u_step, const REAL *bias)
{
    Size tiles = (count + ROWS - 1) / ROWS;
    for (Size k = 0; k < K; k += BLOCK) {
        Size n = K - k < BLOCK ? K - k : BLOCK;
        const REAL *from = k ? out : u, *last = k + n == K ? bias : NULL;
        Size from_step = k ? out_step : u_step;
        const char *next = (const char *)(w + (k + n) * PANEL);
        for (Size t = 0; t < tiles; t++) {
            Size first = count * t / tiles, r = count * (t + 1) / tiles - first;
            const REAL *a[ROWS];
            for (Size j = 0; j < r; j++)
                a[j] = rows[first + j] + k;
            const NAME(Tile) tile = NAME(tiles)[r];
            tile(a, 1, w + k * PANEL, n, out + first * out_step, out_step,
                 from ? from + first * from_step : NULL, from_step, last, next + t * n * LINE);
        }
    }
}

/* One row of a panel: `width` numbers, and zeros. */
INLINE void NAME(panel_row)(const REAL *from, Size width, REAL *out)
{
    if (width == PANEL) {
        EACH (j, 4)
            store(out + j * LANES, load(from + j * LANES));
        return;
    }
    __builtin_memcpy(out, from, (size_t)width * sizeof(REAL));
    __builtin_memset(out + width, 0, (size_t)(PANEL - width) * sizeof(REAL));
}

/* Pack a member's rows k of a matrix (K, columns) into panels of consecutive columns. */
static void NAME(pack_columns)(const REAL *w, Size K, Size columns, int member, int members, REAL *out)
{
    Size last = share(K, member + 1, members);
    for (Size k = share(K, member, members); k < last; k++)
        for (Size first = 0; first < columns; first += PANEL) {
            Size width = columns - first < PANEL ? columns - first : PANEL;
            NAME(panel_row)(w + k * columns + first, width, out + first * K + k * PANEL);
        }
}

/* Pack the rows of w (rows, K) named by lane for one vector of a panel, a few columns at a time: their lines
   of `out` stay in the L1 cache until every lane has been there. */
static void NAME(pack_lanes)(const REAL *w, Size lanes, Size K, REAL *out)
{
    enum { COLUMNS = 32 };
    for (Size first = 0; first < K; first += COLUMNS) {
        Size last = K - first < COLUMNS ? K : first + COLUMNS;
        for (Size lane = 0; lane < LANES; lane++)
            for (Size k = first; k < last; k++)
                out[k * PANEL + lane] = lane < lanes ? w[lane * K + k] : 0;
    }
}

/* Rows of a product over all steps that wait in one block. */
enum { NAME(DEPTH) = 128 };

/* From one tile's rows to the next's: an odd number of cache lines, so that they do not share a few of its
   sets. */
enum { NAME(TALL) = ROWS * NAME(DEPTH) + LINE / (int)sizeof(REAL) };

/* Columns first to last of a's rows, as tiles read them: some rows at a time, so that lines are written
   whole. */
static void NAME(pack_tall)(const REAL *a, Size stride, Size first, Size last, Size depth, REAL *out)
{
    enum { SOME = 8 };
    Size whole = (last - first) / ROWS, rest = (last - first) % ROWS;
    for (Size from = 0; from < depth; from += SOME) {
        Size to = depth - from < SOME ? depth : from + SOME;
        for (Size tile = 0; tile < whole; tile++)
            for (Size n = from; n < to; n++)
                __builtin_memcpy(out + tile * NAME(TALL) + n * ROWS, a + n * stride + first + tile * ROWS,
                                 ROWS * sizeof(REAL));
        for (Size n = from; n < to && rest; n++)
            for (Size r = 0; r < ROWS; r++)
                out[whole * NAME(TALL) + n * ROWS + r] =
                    r < rest ? a[n * stride + first + whole * ROWS + r] : 0;
    }
}

/* One of the products below: b's rows by pointers, and where the result is added. */
#define Sum NAME(Sum)
typedef struct Sum {
    const REAL **b;
    Size columns;
    REAL *c;
} Sum;

/* Operands as tiles read them, and a tile at the edge. */
#define SumScratch NAME(SumScratch)
typedef struct SumScratch {
    REAL *b, *a, *tile; /* (DEPTH, PANEL), (tiles, TALL), (ROWS, PANEL) */
} SumScratch;

/* Carve them for at most so many rows of c. */
static void NAME(carve_sums)(SumScratch *w, Size rows, Arena *arena)
{
    w->b = take(arena, sizeof(REAL) * NAME(DEPTH) * PANEL);
    w->a = take(arena, sizeof(REAL) * NAME(TALL) * (size_t)((rows + ROWS - 1) / ROWS));
    w->tile = take(arena, sizeof(REAL) * ROWS * PANEL);
}

/* c (rows, columns) += a^T b for every sum: a (count, ...) holds columns first to last of each row, stride
   apart. And total += the sum of a's rows, where it is not NULL, while they are in the cache. The order of a
   sum over rows does not depend on the partition of c. */
static void NAME(sum_products)(const REAL *a, Size a_stride, Size first, Size last, Size count,
                               const Sum *sums, int how_many, REAL *restrict total, const SumScratch *w)
{
    REAL *packed_b = w->b, *packed_a = w->a, *tile = w->tile;
    const NAME(Tile) whole = NAME(tiles)[ROWS];
    for (Size from = 0; from < count; from += NAME(DEPTH)) {
        Size depth = count - from < NAME(DEPTH) ? count - from : NAME(DEPTH);
        NAME(pack_tall)(a + from * a_stride, a_stride, first, last, depth, packed_a);
        for (Size n = from; n < from + depth && total; n++)
            for (Size column = first; column < last; column++)
                total[column] += a[n * a_stride + column];
        for (const Sum *sum = sums; sum < sums + how_many; sum++)
            for (Size column = 0, columns = sum->columns; column < columns; column += PANEL) {
                Size width = columns - column < PANEL ? columns - column : PANEL;
                for (Size n = 0; n < depth; n++)
                    NAME(panel_row)(sum->b[from + n] + column, width, packed_b + n * PANEL);
                const REAL *at = packed_a;
                for (Size row = first; row < last; row += ROWS, at += NAME(TALL)) {
                    const char *next = (const char *)(at + NAME(TALL));
                    Size height = last - row < ROWS ? last - row : ROWS;
                    const REAL *rows[ROWS];
                    for (Size r = 0; r < ROWS; r++)
                        rows[r] = at + r;
                    REAL *to = sum->c + row * columns + column;
                    if (width == PANEL && height == ROWS) {
                        whole(rows, ROWS, packed_b, depth, to, columns, to, columns, NULL, next);
                        continue;
                    }
                    whole(rows, ROWS, packed_b, depth, tile, PANEL, NULL, 0, NULL, next);
                    for (Size r = 0; r < height; r++)
                        for (Size n = 0; n < width; n++)
                            to[r * columns + n] += tile[r * PANEL + n];
                }
            }
    }
}
