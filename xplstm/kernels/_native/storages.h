/* The products of every storage of weights, and the table of them that the walk reads. Sums and activations
   are in REAL in each, so that a storage whose numbers are exact in REAL has the bits of the rounded weights.
 */

#define PANEL (4 * LANES)

/* Bytes of a cache line. */
#define LINE 64

/* A loop that is unrolled fully, so that the array that it runs over stays in registers. */
#define EACH(n, count) _Pragma("GCC unroll 6") for (int n = 0; n < (count); n++)

/* For one row and K <= SHORT, prefetch the weights AHEAD terms in advance. One row takes WIDE panels at once.
 */
enum { NAME(SHORT) = 64, NAME(AHEAD) = 6, NAME(WIDE) = ROWS > 3 ? 4 : 2 };

#define STORE(x) NAME(x)
#define WEIGHT REAL
#define GET(at, n) load((at) + (n) * LANES)
#define PLACE(n, lane) ((n) * LANES + (lane))
#include "products.h"

#if !DOUBLE
#define STORE(x) JOIN(x, bfloat16)
#define WEIGHT uint16_t
#define GET(at, n) NAME(load_bfloat16)(at, n)
#define PLACE(n, lane) ((n) / 2 * 2 * LANES + 2 * (lane) + (n) % 2)
#include "products.h"

#define STORE(x) JOIN(x, float16)
#define WEIGHT uint16_t
#define GET(at, n) NAME(load_float16)((at) + (n) * LANES)
#define PLACE(n, lane) ((n) * LANES + (lane))
#include "products.h"

#define STORE(x) JOIN(x, int8)
#define DIGITS 3
#define DOT NAME(dot)
#define TARGET
#include "integers.h"

#define STORE(x) JOIN(x, int8_both)
#define DIGITS 1
#define DOT NAME(dot)
#define TARGET
#include "integers.h"

#if VECTOR_BYTES == 64
#define WITH_VNNI __attribute__((target("avx512vnni")))

WITH_VNNI INLINE VI NAME(vnni_dot)(VI sum, const char *digits, VI w)
{
    int32_t word;
    __builtin_memcpy(&word, digits, sizeof word);
    return (VI)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(word), (__m512i)w);
}

#define STORE(x) JOIN(x, vnni)
#define DIGITS 3
#define DOT NAME(vnni_dot)
#define TARGET WITH_VNNI
#include "integers.h"

#define STORE(x) JOIN(x, vnni_both)
#define DIGITS 1
#define DOT NAME(vnni_dot)
#define TARGET WITH_VNNI
#include "integers.h"

#undef WITH_VNNI
#endif
#endif

/* One storage. `product` and `row_product` are described in products.h and integers.h; they read rows that
   `enter` has written in `entered_bytes`, or where it is NULL the rows themselves. */
typedef struct NAME(Storage) {
    size_t (*panel_bytes)(Size K);
    void (*product)(const REAL *const *rows, Size count, Size K, const void *panel, REAL *out, Size out_step,
                    const REAL *u, Size u_step, const REAL *bias);
    void (*row_product)(const REAL *a, Size K, const void *first, Size panels, int single, REAL *out,
                        const REAL *u, const REAL *bias);
    void (*pack_vector)(const Matrix *m, Size row, Size lanes, Size K, void *panel, Size n);
    void (*enter)(const REAL *a, Size K, void *to);
    size_t (*entered_bytes)(Size K);
} NAME(Storage);

#define ROW_OF(name) \
    JOIN(panel_bytes, name), JOIN(product, name), JOIN(row_product, name), JOIN(pack_vector, name)
#define ENTERED_ROW_OF(name) ROW_OF(name), JOIN(enter, name), JOIN(entered_bytes, name)

static const NAME(Storage) NAME(TABLE)[STORAGES] = {
    [FULL] = {NAME(panel_bytes), NAME(product), NAME(row_product), NAME(pack_vector)},
#if !DOUBLE
    [BFLOAT16] = {ROW_OF(bfloat16)},
    [FLOAT16] = {ROW_OF(float16)},
    [INT8] = {ENTERED_ROW_OF(int8)},
    [INT8_BOTH] = {ENTERED_ROW_OF(int8_both)},
#if VECTOR_BYTES == 64
    [INT8 + VNNI] = {ENTERED_ROW_OF(vnni)},
    [INT8_BOTH + VNNI] = {ENTERED_ROW_OF(vnni_both)},
#endif
#endif
};

/* The products of a layer's weights. */
INLINE const NAME(Storage) * NAME(storage_of)(const Packed *p) { return &NAME(TABLE)[p->storage]; }

/* The panel of a packed matrix with K columns. */
INLINE const void *NAME(panel_at)(const Packed *p, const void *packed, Size K, Size panel)
{
    return (const char *)packed + (size_t)panel * NAME(storage_of)(p)->panel_bytes(K);
}

#undef ROW_OF
#undef ENTERED_ROW_OF
