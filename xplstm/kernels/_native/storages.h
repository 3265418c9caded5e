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
#define SCALED 0
#include "products.h"

#if !DOUBLE
#define STORE(x) JOIN(x, bfloat16)
#define WEIGHT uint16_t
#define GET(at, n) NAME(load_bfloat16)(at, n)
#define PLACE(n, lane) ((n) / 2 * 2 * LANES + 2 * (lane) + (n) % 2)
#define SCALED 0
#include "products.h"

#define STORE(x) JOIN(x, int8)
#define WEIGHT int8_t
#define GET(at, n) NAME(load_int8)((at) + (n) * LANES)
#define PLACE(n, lane) ((n) * LANES + (lane))
#define SCALED 1
#include "products.h"
#endif

/* One storage: `product` and `row_product` are described in products.h. */
typedef struct NAME(Storage) {
    size_t (*panel_bytes)(Size K);
    void (*product)(const REAL *const *rows, Size count, Size K, const void *panel, REAL *out, Size out_step,
                    const REAL *u, Size u_step, const REAL *bias);
    void (*row_product)(const REAL *a, Size K, const void *first, Size panels, int single, REAL *out,
                        const REAL *u, const REAL *bias);
    void (*pack_vector)(const Matrix *m, Size row, Size lanes, Size K, void *panel, Size n);
} NAME(Storage);

#define ROW_OF(storage)                                                              \
    {JOIN(panel_bytes, storage), JOIN(product, storage), JOIN(row_product, storage), \
     JOIN(pack_vector, storage)}

static const NAME(Storage) NAME(TABLE)[STORAGES] = {
    [FULL] = {NAME(panel_bytes), NAME(product), NAME(row_product), NAME(pack_vector)},
#if !DOUBLE
    [BFLOAT16] = ROW_OF(bfloat16),
    [INT8] = ROW_OF(int8),
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
