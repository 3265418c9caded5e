/* The products of every storage of weights, and their table. Sums and activations have the type REAL in each,
   so that a storage whose numbers are exact in REAL gives the bits of the rounded weights. */

#define PANEL (4 * LANES)

/* Bytes of a cache line. */
#define LINE 64

/* A fully unrolled loop, so that its array stays in registers. */
#define EACH(n, count) _Pragma("GCC unroll 6") for (int n = 0; n < (count); n++)

/* For one row and K <= SHORT, prefetch the weights AHEAD terms in advance. */
enum { NAME(SHORT) = 64, NAME(AHEAD) = 6 };

#define STORE(x) NAME(x)
#define VECTORS 4
#include "products.h"

/* The panels of a GRU, whose matrices fill three or two of the four vectors. */
#define STORE(x) NAME(JOIN(x, three))
#define VECTORS 3
#include "products.h"

#define STORE(x) NAME(JOIN(x, two))
#define VECTORS 2
#include "products.h"

#if !DOUBLE
#define STORE(x) JOIN(x, bfloat16)
#define WEIGHT uint16_t
#define NUMBER uint16_t
#define GET(at, n) NAME(load_bfloat16)(at, n)
#define PLACE(n, lane, part) ((n) / 2 * 2 * LANES + 2 * (lane) + (n) % 2)
#define TERM 1
#define DOT fma
#define TARGET
#define VECTORS 4
#include "products.h"

#define STORE(x) JOIN(x, float16)
#define WEIGHT uint16_t
#define NUMBER uint16_t
#define GET(at, n) NAME(load_float16)((at) + (n) * LANES)
#define PLACE(n, lane, part) ((n) * LANES + (lane))
#define TERM 1
#define DOT fma
#define TARGET
#define VECTORS 4
#include "products.h"

/* Return sum + the products of the lower bfloat16 halves, then + the products of the upper halves. */
INLINE V NAME(dot_bfloat16)(V pair, V w, V sum)
{
    sum = fma((V)((VU)pair << 16), (V)((VU)w << 16), sum);
    return fma((V)((VU)pair & 0xffff0000u), (V)((VU)w & 0xffff0000u), sum);
}

/* Convert a row to bfloat16, rounded to nearest even; a zero pads an odd number of columns. */
static void NAME(enter_bfloat16)(const REAL *a, Size K, void *to)
{
    typedef uint16_t __attribute__((may_alias)) Half; /* tiles read two numbers at once */
    Half *restrict out = to;
    for (Size k = 0; k < K; k++) {
        uint32_t bits;
        __builtin_memcpy(&bits, a + k, sizeof bits);
        int nan = (bits & 0x7fffffff) > 0x7f800000;
        out[k] = (uint16_t)((nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    if (K % 2)
        out[K] = 0;
}

static size_t NAME(entered_bfloat16_bytes)(Size K) { return lines((size_t)(K + K % 2) * sizeof(uint16_t)); }

#define STORE(x) JOIN(x, bfloat16_both)
#define WEIGHT REAL /* two of bfloat16 */
#define NUMBER uint16_t
#define GET(at, n) load((at) + (n) * LANES)
#define PLACE(n, lane, part) (2 * ((n) * LANES + (lane)) + (part))
#define TERM 2
#define DOT NAME(dot_bfloat16)
#define TARGET
#define VECTORS 4
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
#define WITH_BF16 __attribute__((target("avx512bf16")))

WITH_BF16 INLINE V NAME(paired_dot)(V pair, V w, V sum)
{
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)w);
}

#define STORE(x) JOIN(x, bf16_both)
#define WEIGHT REAL
#define NUMBER uint16_t
#define GET(at, n) load((at) + (n) * LANES)
#define PLACE(n, lane, part) (2 * ((n) * LANES + (lane)) + (part))
#define TERM 2
#define DOT NAME(paired_dot)
#define TARGET WITH_BF16
#define VECTORS 4
#include "products.h"

#undef WITH_BF16
#endif
#endif

/* One storage. products.h and integers.h describe `product` and `row_product`. These functions read rows that
   `enter` converted to `entered_bytes`, or unconverted rows if `enter` is NULL. */
typedef struct NAME(Storage) {
    int vectors; /* of weights in a panel */
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
    4, JOIN(panel_bytes, name), JOIN(product, name), JOIN(row_product, name), JOIN(pack_vector, name)
#define ENTERED_ROW_OF(name) ROW_OF(name), JOIN(enter, name), JOIN(entered_bytes, name)

static const NAME(Storage) NAME(TABLE)[STORAGES] = {
    [FULL] = {4, NAME(panel_bytes), NAME(product), NAME(row_product), NAME(pack_vector)},
#if !DOUBLE
    [BFLOAT16] = {ROW_OF(bfloat16)},
    [FLOAT16] = {ROW_OF(float16)},
    [INT8] = {ENTERED_ROW_OF(int8)},
    [INT8_BOTH] = {ENTERED_ROW_OF(int8_both)},
    [BFLOAT16_BOTH] = {ROW_OF(bfloat16_both), NAME(enter_bfloat16), NAME(entered_bfloat16_bytes)},
#if VECTOR_BYTES == 64
    [INT8 + FASTER] = {ENTERED_ROW_OF(vnni)},
    [INT8_BOTH + FASTER] = {ENTERED_ROW_OF(vnni_both)},
    [BFLOAT16_BOTH + FASTER] = {ROW_OF(bf16_both), NAME(enter_bfloat16), NAME(entered_bfloat16_bytes)},
#endif
#endif
};

static const NAME(Storage) NAME(THREE) = {3, NAME(JOIN(panel_bytes, three)), NAME(JOIN(product, three)),
                                          NAME(JOIN(row_product, three)), NAME(JOIN(pack_vector, three))};

static const NAME(Storage) NAME(TWO) = {2, NAME(JOIN(panel_bytes, two)), NAME(JOIN(product, two)),
                                        NAME(JOIN(row_product, two)), NAME(JOIN(pack_vector, two))};

/* Return the products with a layer's projection, which also convert its rows. */
INLINE const NAME(Storage) * NAME(storage_of)(const Packed *p) { return &NAME(TABLE)[p->storage]; }

/* Return the products with the matrix that fills these blocks. Other storages than FULL pack a vector of
   zeros for each missing block. */
INLINE const NAME(Storage) * NAME(gates_of)(const Packed *p, Blocks filled)
{
    if (p->storage != FULL || filled.count == 4)
        return NAME(storage_of)(p);
    return filled.count == 3 ? &NAME(THREE) : &NAME(TWO);
}

/* Return the first block of z that a panel of these products has. */
INLINE Size NAME(first_of)(const NAME(Storage) * products, Blocks filled)
{
    return products->vectors == 4 ? 0 : filled.first;
}

/* Return a panel of a packed matrix with K columns. */
INLINE const void *NAME(panel_at)(const NAME(Storage) * products, const void *packed, Size K, Size panel)
{
    return (const char *)packed + (size_t)panel * products->panel_bytes(K);
}

#undef ROW_OF
#undef ENTERED_ROW_OF
