/* Products of rows with packed panels, in the order of XPL-EXACT-002. The file is included once for each
   storage of weights. A term is one number of a row, or two numbers that form one word. The includer defines
   TERM, the number of columns of a term; WEIGHT, the type of a term for one lane; NUMBER, the type of a
   weight in its matrix; GET, which loads a vector of LANES weights; DOT, which multiplies and adds; PLACE,
   the position of a weight in its term; TARGET, the function attribute that DOT needs; VECTORS, the number of
   vectors of weights in a panel; and the suffix of the names in STORE. Without WEIGHT, weights have the type
   REAL. Products, u and the bias have panels
   of four vectors for any VECTORS; the arguments begin at the first vector that the weights fill. */

#ifndef WEIGHT
#define WEIGHT REAL
#define NUMBER REAL
#define GET(at, n) load((at) + (n) * LANES)
#define PLACE(n, lane, part) ((n) * LANES + (lane))
#define TERM 1
#define DOT fma
#define TARGET
#endif

/* Numbers of weights between two terms of a panel. */
#define PACKED (VECTORS * LANES)

/* Rows of the largest tile. Three rows of four vectors have 12 chains in 16 registers; panels of fewer
   vectors need more rows. */
#define HEIGHT (ROWS == 3 ? 12 / VECTORS : ROWS)

/* One row takes WIDE panels at once. */
enum { STORE(WIDE) = ROWS > 3 || VECTORS < 4 ? 4 : 2 };

#define TERMS(K) (((K) + TERM - 1) / TERM)

static size_t STORE(panel_bytes)(Size K) { return (size_t)(TERMS(K) * PACKED) * sizeof(WEIGHT); }

#define NO_PREFETCH(at) (void)0
#define PREFETCH(at) __builtin_prefetch(at, 0, 2)

/* Multiply R numbers by the vectors of one term, and add. The fewer of both stay in registers. */
#if VECTORS == 4
#define MULTIPLY_ADD(R)                               \
    V v[R];                                           \
    EACH (r, R)                                       \
        v[r] = all(a[r][n * step]);                   \
    EACH (j, VECTORS) {                               \
        V column = GET(w, j);                         \
        EACH (r, R)                                   \
            sum[r][j] = DOT(v[r], column, sum[r][j]); \
    }
#else
#define MULTIPLY_ADD(R)                               \
    V column[VECTORS];                                \
    EACH (j, VECTORS)                                 \
        column[j] = GET(w, j);                        \
    EACH (r, R) {                                     \
        V v = all(a[r][n * step]);                    \
        EACH (j, VECTORS)                             \
            sum[r][j] = DOT(v, column[j], sum[r][j]); \
    }
#endif

/* A tile: multiply R rows by one panel over k terms of one block, and add u and the bias if they are not
   NULL. Terms of a row are `step` apart. Each vector of weights is loaded once, for all rows. Where tiles are
   few, each term prefetches one cache line of the `next` weights, because loads of weights that exceed the L2
   cache would stall the loop. The eight chains of two rows only just hide the latency of a multiply-add:
   without unrolling, the loop itself costs a quarter of the speed. */
#define TILE(name, R, UNROLL, AHEAD)                                                                    \
    TARGET static __attribute__((noinline)) void STORE(                                                 \
        name##R)(const REAL *const *rows, Size step, const WEIGHT *w, Size k, REAL *out, Size out_step, \
                 const REAL *u, Size u_step, const REAL *bias, const char *next)                        \
    {                                                                                                   \
        const REAL *a[R];                                                                               \
        V sum[R][VECTORS];                                                                              \
        (void)next;                                                                                     \
        EACH (r, R) {                                                                                   \
            a[r] = rows[r];                                                                             \
            EACH (j, VECTORS)                                                                           \
                sum[r][j] = all(0);                                                                     \
        }                                                                                               \
        if (u)                                                                                          \
            EACH (r, R)                                                                                 \
                EACH (j, VECTORS)                                                                       \
                    __builtin_prefetch(u + r * u_step + j * LANES);                                     \
        _Pragma(UNROLL) for (Size n = 0; n < k; n++, w += PACKED)                                       \
        {                                                                                               \
            AHEAD(next + n * LINE);                                                                     \
            MULTIPLY_ADD(R)                                                                             \
        }                                                                                               \
        if (u)                                                                                          \
            EACH (r, R)                                                                                 \
                EACH (j, VECTORS)                                                                       \
                    sum[r][j] = load(u + r * u_step + j * LANES) + sum[r][j];                           \
        if (bias)                                                                                       \
            EACH (r, R)                                                                                 \
                EACH (j, VECTORS)                                                                       \
                    sum[r][j] = sum[r][j] + load(bias + j * LANES);                                     \
        EACH (r, R)                                                                                     \
            EACH (j, VECTORS)                                                                           \
                store(out + r * out_step + j * LANES, sum[r][j]);                                       \
    }

TILE(tile, 1, "GCC unroll 1", PREFETCH)
TILE(tile, 2, "GCC unroll 4", PREFETCH)
TILE(tile, 3, "GCC unroll 1", PREFETCH)
#if HEIGHT == 3
TILE(plain, 2, "GCC unroll 4", NO_PREFETCH)
#else
TILE(tile, 4, "GCC unroll 1", PREFETCH)
#endif
#if HEIGHT <= 4
TILE(plain, 3, "GCC unroll 1", NO_PREFETCH)
#endif
#if HEIGHT == 4
TILE(plain, 4, "GCC unroll 1", NO_PREFETCH)
#endif
#if HEIGHT == 6
TILE(tile, 5, "GCC unroll 1", PREFETCH)
TILE(tile, 6, "GCC unroll 1", PREFETCH)
TILE(plain, 5, "GCC unroll 1", NO_PREFETCH)
TILE(plain, 6, "GCC unroll 1", NO_PREFETCH)
#endif

typedef void (*STORE(Tile))(const REAL *const *, Size, const WEIGHT *, Size, REAL *, Size, const REAL *, Size,
                            const REAL *, const char *);

static const STORE(Tile) STORE(tiles)[] = {
    NULL,         STORE(tile1), STORE(tile2), STORE(tile3),
#if HEIGHT > 3
    STORE(tile4),
#endif
#if HEIGHT > 4
    STORE(tile5), STORE(tile6),
#endif
};

/* From this number of tiles on, each prefetches its part of the next weights before its loop: the loop is
   faster without prefetches, and one per term would request every line several times. The number for tall
   tiles has not been measured. */
enum { STORE(MANY) = HEIGHT == 6 ? 16 : 8 };

/* The tiles of such a product: as many rows as there are accumulators for, or one row fewer. */
static const STORE(Tile) STORE(many)[] = {
#if HEIGHT == 6
    STORE(plain5),
    STORE(plain6),
#elif HEIGHT == 4
    STORE(plain3),
    STORE(plain4),
#else
    STORE(plain2),
    STORE(plain3),
#endif
};

/* Prefetch part t of the `size` bytes from `next` on, which are divided into `parts`. */
static void STORE(prefetch_part)(const char *next, Size size, Size t, Size parts)
{
    for (Size at = size * t / parts / LINE * LINE; at < size * (t + 1) / parts; at += LINE)
        PREFETCH(next + at);
}

#define PREFETCH_AHEAD(at)                                     \
    EACH (j, (PACKED * (int)sizeof(WEIGHT) + LINE - 1) / LINE) \
    __builtin_prefetch((const char *)((at) + NAME(AHEAD) * PACKED) + j * LINE)

/* Multiply one row by C panels of w at distance `panel`: C independent chains hide the latency of the
   multiply-adds. */
#define ROW(name, C, AHEAD)                                                                              \
    TARGET static __attribute__((noinline)) void STORE(name)(const REAL *a, const WEIGHT *w, Size panel, \
                                                             Size k, REAL *out, const REAL *u,           \
                                                             const REAL *bias)                           \
    {                                                                                                    \
        V sum[C][VECTORS];                                                                               \
        const WEIGHT *at[C];                                                                             \
        EACH (c, C) {                                                                                    \
            at[c] = w + c * panel;                                                                       \
            EACH (j, VECTORS)                                                                            \
                sum[c][j] = all(0);                                                                      \
        }                                                                                                \
        for (Size n = 0; n < k; n++) {                                                                   \
            V v = all(a[n]);                                                                             \
            EACH (c, C) {                                                                                \
                AHEAD(at[c] + n * PACKED);                                                               \
                EACH (j, VECTORS)                                                                        \
                    sum[c][j] = DOT(v, GET(at[c] + n * PACKED, j), sum[c][j]);                           \
            }                                                                                            \
        }                                                                                                \
        if (u)                                                                                           \
            EACH (c, C)                                                                                  \
                EACH (j, VECTORS)                                                                        \
                    sum[c][j] = load(u + c * PANEL + j * LANES) + sum[c][j];                             \
        if (bias)                                                                                        \
            EACH (c, C)                                                                                  \
                EACH (j, VECTORS)                                                                        \
                    sum[c][j] = sum[c][j] + load(bias + c * PANEL + j * LANES);                          \
        EACH (c, C)                                                                                      \
            EACH (j, VECTORS)                                                                            \
                store(out + c * PANEL + j * LANES, sum[c][j]);                                           \
    }

ROW(row2, 2, NO_PREFETCH)
ROW(prefetching2, 2, PREFETCH_AHEAD)
#if ROWS > 3 || VECTORS < 4
ROW(row3, 3, NO_PREFETCH)
ROW(row4, 4, NO_PREFETCH)
ROW(prefetching3, 3, PREFETCH_AHEAD)
ROW(prefetching4, 4, PREFETCH_AHEAD)
#endif

typedef void (*STORE(Row))(const REAL *, const WEIGHT *, Size, Size, REAL *, const REAL *, const REAL *);

static const STORE(Row) STORE(rows)[2][5] = {
#if ROWS > 3 || VECTORS < 4
    {NULL, NULL, STORE(row2), STORE(row3), STORE(row4)},
    {NULL, NULL, STORE(prefetching2), STORE(prefetching3), STORE(prefetching4)},
#else
    {NULL, NULL, STORE(row2)},
    {NULL, NULL, STORE(prefetching2)},
#endif
};

/* out = ((u + block) + block) + ... + bias for one row of K columns and `panels` adjacent panels. In a single
   step, no weight is in the L1 cache yet, and a short sum ends before the hardware prefetcher starts, so the
   loop prefetches by software. */
static void STORE(row_product)(const REAL *a, Size K, const void *first, Size panels, int single, REAL *out,
                               const REAL *u, const REAL *bias)
{
    const STORE(Row) *rows = STORE(rows)[single && K <= NAME(SHORT)];
    const WEIGHT *w = first;
    K = TERMS(K);
    while (panels > 0) {
        Size c = panels > STORE(WIDE) ? STORE(WIDE) : panels;
#if ROWS > 3 || VECTORS < 4
        if (panels == 5)
            c = 3;
#endif
        for (Size k = 0; k < K; k += BLOCK) {
            Size n = K - k < BLOCK ? K - k : BLOCK;
            const REAL *from = k ? out : u, *last = k + n == K ? bias : NULL, *row = a + k;
            const WEIGHT *at = w + k * PACKED;
            if (c == 1)
                STORE(tile1)(&row, 1, at, n, out, PANEL, from, PANEL, last, (const char *)(at + n * PACKED));
            else
                rows[c](row, at, K * PACKED, n, out, from, last);
        }
        panels -= c;
        w += c * K * PACKED;
        out += c * PANEL;
        u = u ? u + c * PANEL : NULL;
        bias = bias ? bias + c * PANEL : NULL;
    }
}

/* out = ((u + block) + block) + ... + bias for many rows and one panel. */
static void STORE(product)(const REAL *const *rows, Size count, Size K, const void *panel, REAL *out,
                           Size out_step, const REAL *u, Size u_step, const REAL *bias)
{
    Size tiles = (count + HEIGHT - 1) / HEIGHT;
    const WEIGHT *w = panel;
    K = TERMS(K);
    for (Size k = 0; k < K; k += BLOCK) {
        Size n = K - k < BLOCK ? K - k : BLOCK;
        const REAL *from = k ? out : u, *last = k + n == K ? bias : NULL;
        Size from_step = k ? out_step : u_step;
        const char *next = (const char *)(w + (k + n) * PACKED);
        for (Size t = 0; t < tiles; t++) {
            Size first = (count * t + tiles - 1) / tiles, r = (count * (t + 1) + tiles - 1) / tiles - first;
            const REAL *a[HEIGHT];
            for (Size j = 0; j < r; j++)
                a[j] = rows[first + j] + k;
            STORE(Tile) tile = STORE(tiles)[r];
            if (tiles >= STORE(MANY)) {
                tile = STORE(many)[r - (HEIGHT - 1)];
                STORE(prefetch_part)(next, n * PACKED * (Size)sizeof(WEIGHT), t, tiles);
            }
            tile(a, 1, w + k * PACKED, n, out + first * out_step, out_step,
                 from ? from + first * from_step : NULL, from_step, last, next + t * n * LINE);
        }
    }
}

/* Pack `lanes` rows of a matrix (rows, K), the first of them `row`, into vector n of a panel. Pack a
   few columns at a time: their lines of the panel stay in the L1 cache until every lane is written. */
static void STORE(pack_vector)(const Matrix *m, Size row, Size lanes, Size K, void *panel, Size n)
{
    enum { COLUMNS = 32 };
    const NUMBER *w = m->values;
    NUMBER *out = panel;
    for (Size first = 0, padded = TERMS(K) * TERM; first < padded; first += COLUMNS) {
        Size last = padded - first < COLUMNS ? padded : first + COLUMNS;
        for (Size lane = 0; lane < LANES; lane++)
            for (Size k = first; k < last; k++)
                out[k / TERM * TERM * PACKED + PLACE(n, lane, k % TERM)] =
                    lane < lanes && k < K ? w[(row + lane) * K + k] : 0;
    }
}

#undef HEIGHT
#undef PACKED
#undef VECTORS
#undef NO_PREFETCH
#undef PREFETCH
#undef PREFETCH_AHEAD
#undef MULTIPLY_ADD
#undef TILE
#undef ROW
#undef STORE
#undef TERMS
#undef TERM
#undef NUMBER
#undef DOT
#undef TARGET
#undef WEIGHT
#undef GET
#undef PLACE
