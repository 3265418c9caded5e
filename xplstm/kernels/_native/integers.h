/* Products of rows with packed panels of int8. Integer sums are exact in any order, so XPL-EXACT-002 does not
   apply. A row is converted to integers relative to its largest magnitude, in DIGITS bytes. The includer
   defines DIGITS; DOT, which multiplies unsigned by signed bytes and adds the products to each word of its
   first vector; TARGET, the function attribute that DOT needs; and the suffix of the names in STORE. */

/* Number of terms whose bytes form one word. */
enum { STORE(GROUP) = 4 };

/* A converted row: its scale, then one plane per digit, the highest digit first. Planes are padded to the
   widest vector, so that converted rows are equal for all instruction sets. */
#define PLANE(K) round_up(K, 16)

/* A panel: scales; the contribution of the highest digit's offset to each sum; then groups of terms. */
#define HEAD (PANEL * (sizeof(REAL) + sizeof(int32_t)))

enum { STORE(LIMIT) = DIGITS == 1 ? 127 : (1 << 23) - 1 };

/* Lower bound of a row's largest magnitude, so that neither the scale nor its inverse overflows. */
#define SMALLEST 0x1p-100f

static size_t STORE(panel_bytes)(Size K) { return HEAD + (size_t)(round_up(K, STORE(GROUP)) * PANEL); }

static size_t STORE(entered_bytes)(Size K) { return lines(sizeof(REAL) + (size_t)(DIGITS * PLANE(K))); }

/* A row with an infinity or a NaN has the scale NaN. */
static void STORE(enter)(const REAL *a, Size K, void *to)
{
    VI most = {0};
    for (Size k = 0; k < K; k += LANES) {
        VI bits = (VI)NAME(magnitude)(load_part(a + k, K - k));
        VI greater = bits > most;
        most = (bits & greater) | (most & ~greater);
    }
    INT top = 0;
    for (int lane = 0; lane < LANES; lane++)
        top = most[lane] > top ? most[lane] : top;
    REAL largest;
    __builtin_memcpy(&largest, &top, sizeof largest);
    int finite = top < 0x7f800000;
    largest = !finite ? 0 : largest < SMALLEST ? SMALLEST : largest;
    *(REAL *)to = finite ? largest / STORE(LIMIT) : __builtin_nanf("");
    const V by = all(finite ? STORE(LIMIT) / largest : 0);
    uint8_t *digit = (uint8_t *)to + sizeof(REAL);
    for (Size k = 0; k < K; k += LANES, digit += LANES) {
        V x = load_part(a + k, K - k);
        VI n = NAME(nearest)(finite ? x * by : all(0));
        VI above = n > STORE(LIMIT);
        n = ((n & ~above) | (above & STORE(LIMIT))) + (1 << (8 * DIGITS - 1));
        EACH (d, DIGITS)
            NAME(store_bytes)(digit + d * PLANE(K), n >> (8 * (DIGITS - 1 - d)));
    }
}

/* A tile: R rows by C panels. */
#define TILE(R, C)                                                                                  \
    TARGET static __attribute__((noinline)) void STORE(                                             \
        tile##R##C)(const REAL *const *rows, const char *panel, size_t stride, Size K, REAL *out,   \
                    Size out_step, const REAL *u, Size u_step, const REAL *bias)                    \
    {                                                                                               \
        VI sum[R][C][DIGITS][4] = {0};                                                              \
        const char *digit[R], *at = panel + HEAD;                                                   \
        EACH (r, R)                                                                                 \
            digit[r] = (const char *)rows[r] + sizeof(REAL);                                        \
        for (Size k = 0; k < K; k += STORE(GROUP), at += STORE(GROUP) * PANEL)                      \
            EACH (c, C)                                                                             \
                EACH (j, 4) {                                                                       \
                    VI w = NAME(load_words)(at + (size_t)c * stride + j * VECTOR_BYTES);            \
                    EACH (r, R)                                                                     \
                        EACH (d, DIGITS)                                                            \
                            sum[r][c][d][j] = DOT(sum[r][c][d][j], digit[r] + d * PLANE(K) + k, w); \
                }                                                                                   \
        EACH (r, R)                                                                                 \
            EACH (c, C)                                                                             \
                EACH (j, 4) {                                                                       \
                    const char *head = panel + (size_t)c * stride + j * VECTOR_BYTES;               \
                    VI first = sum[r][c][0][j] - NAME(load_words)(head + PANEL * sizeof(REAL));     \
                    V z = __builtin_convertvector(first, V);                                        \
                    for (int d = 1; d < DIGITS; d++)                                                \
                        z = z * all(256) + __builtin_convertvector(sum[r][c][d][j], V);             \
                    z = z * load((const REAL *)head) * all(rows[r][0]);                             \
                    if (u)                                                                          \
                        z = load(u + r * u_step + c * PANEL + j * LANES) + z;                       \
                    if (bias)                                                                       \
                        z = z + load(bias + c * PANEL + j * LANES);                                 \
                    store(out + r * out_step + c * PANEL + j * LANES, z);                           \
                }                                                                                   \
    }

typedef void (*STORE(Tile))(const REAL *const *, const char *, size_t, Size, REAL *, Size, const REAL *, Size,
                            const REAL *);

/* Tile sizes whose sums fit into the registers. */
TILE(1, 1)
#if DIGITS == 1
TILE(2, 1)
TILE(3, 1)
TILE(1, 2)
#if ROWS > 3
TILE(4, 1)
TILE(5, 1)
TILE(6, 1)
#endif
static const STORE(Tile) STORE(tiles)[] = {
    NULL,          STORE(tile11), STORE(tile21), STORE(tile31),
#if ROWS > 3
    STORE(tile41), STORE(tile51), STORE(tile61),
#endif
};
enum { STORE(FIT) = ROWS > 3 ? 6 : 3, STORE(WIDE) = 2 };
#elif ROWS > 3
TILE(2, 1)
TILE(1, 2)
static const STORE(Tile) STORE(tiles)[] = {NULL, STORE(tile11), STORE(tile21)};
enum { STORE(FIT) = 2, STORE(WIDE) = 2 };
#else
static const STORE(Tile) STORE(tiles)[] = {NULL, STORE(tile11)};
enum { STORE(FIT) = 1, STORE(WIDE) = 1 };
#endif

/* out = u + product + bias for one converted row and `panels` adjacent panels. */
static void STORE(row_product)(const REAL *a, Size K, const void *first, Size panels, int single, REAL *out,
                               const REAL *u, const REAL *bias)
{
    (void)single;
    size_t stride = STORE(panel_bytes)(K);
    const char *panel = first;
    for (Size done = 0, c; done < panels; done += c) {
        STORE(Tile) tile = STORE(tile11);
        c = 1;
#if DIGITS == 1 || ROWS > 3
        if (panels - done >= STORE(WIDE)) {
            tile = STORE(tile12);
            c = STORE(WIDE);
        }
#endif
        tile(&a, panel + (size_t)done * stride, stride, K, out + done * PANEL, 0, u ? u + done * PANEL : NULL,
             0, bias ? bias + done * PANEL : NULL);
    }
}

/* out = u + product + bias for many converted rows and one panel. */
static void STORE(product)(const REAL *const *rows, Size count, Size K, const void *panel, REAL *out,
                           Size out_step, const REAL *u, Size u_step, const REAL *bias)
{
    Size tiles = (count + STORE(FIT) - 1) / STORE(FIT);
    for (Size t = 0; t < tiles; t++) {
        Size first = count * t / tiles, r = count * (t + 1) / tiles - first;
        STORE(tiles)
        [r](rows + first, panel, 0, K, out + first *out_step, out_step, u ? u + first *u_step : NULL, u_step,
            bias);
    }
}

/* Pack `lanes` rows of a matrix (rows, K), the first of them `row`, into vector n of a panel. */
static void STORE(pack_vector)(const Matrix *m, Size row, Size lanes, Size K, void *panel, Size n)
{
    REAL *scales = panel;
    int32_t *offsets = (int32_t *)(scales + PANEL);
    int8_t *out = (int8_t *)panel + HEAD;
    for (Size lane = 0; lane < LANES; lane++) {
        const int8_t *w = lane < lanes ? (const int8_t *)m->values + (row + lane) * K : NULL;
        Size at = n * LANES + lane;
        int32_t sum = 0;
        for (Size k = 0; k < round_up(K, STORE(GROUP)); k++) {
            int8_t q = w && k < K ? w[k] : 0;
            out[k / STORE(GROUP) * STORE(GROUP) * PANEL + at * STORE(GROUP) + k % STORE(GROUP)] = q;
            sum += q;
        }
        scales[at] = w ? m->scales[row + lane] : 0;
        offsets[at] = sum * 128;
    }
}

#undef PLANE
#undef HEAD
#undef SMALLEST
#undef TILE
#undef STORE
#undef DIGITS
#undef DOT
#undef TARGET
