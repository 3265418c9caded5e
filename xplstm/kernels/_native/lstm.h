/* Types that the files of this folder share: packed weights, jobs, and the functions of one instruction
   set. */
#ifndef XPLSTM_LSTM_H
#define XPLSTM_LSTM_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#include "pool.h"

#if !defined(__GNUC__)
#error "this kernel needs GCC or Clang: vector types and target attributes"
#endif
#ifdef __FAST_MATH__
#error "-ffast-math breaks the order of sums and the treatment of NaN"
#endif
#if FLT_EVAL_METHOD != 0
#error "numbers held in more digits than their dtype has, as the x87 does, break sigmoid and tanh"
#endif
#if UINTPTR_MAX < UINT64_MAX
#error "this kernel is for 64-bit processors: its checks of sizes leave little of a smaller address space"
#endif

typedef ptrdiff_t Size;

/* Number of terms of one chain of fused multiply-adds: XPL-EXACT-002. */
enum { BLOCK = 128 };

struct Engine;

/* Kinds of activation functions, which composed.h evaluates; native.py lists them in this order. */
enum {
    SIGMOID,
    TANH,
    IDENTITY,
    RELU,
    AFFINE,
    LEAKY_RELU,
    THRESHOLDED_RELU,
    SCALED_TANH,
    HARD_SIGMOID,
    ELU,
    SOFTSIGN,
    SOFTPLUS,
    ACTIVATIONS,
};

typedef struct Activation {
    int kind;
    double alpha, beta;
} Activation;

/* Options of the pointwise step; a clip that is off is infinite. In a GRU step, c is h, and the four blocks
   are the contribution of x to n, r, z, and the contribution of h to n. In a RESET_STEP, r scales h before
   the product: the fourth block is empty, m is r * h, and the projection is the last block of W_hh. In the
   step of an RNN, the four blocks are the quarters of the hidden units, c is unused, and `gate` is the
   nonlinearity. */
enum { LSTM_STEP, GRU_STEP, ELMAN_STEP, RESET_STEP, STEPS };

typedef struct Pointwise {
    int composed, peepholes, normal, coupled, kind; /* composed: any option is on */
    Activation gate, input, output;                 /* of i, f and o; of g; of c before the output gate */
    double gate_clip, cell_clip;
    double hold_h, hold_c; /* zoneout: the probability that a unit keeps its old value */
} Pointwise;

/* Storage types of packed weights: the dtype of the activations, or fewer bits. INT8 uses activations in 24
   bits, INT8_BOTH in 8 bits, BFLOAT16_BOTH in bfloat16. FASTER is added to these if the processor has VNNI or
   AVX512_BF16. native.py lists the first six in this order. */
enum { FULL, BFLOAT16, FLOAT16, INT8, INT8_BOTH, BFLOAT16_BOTH };
enum { FASTER = BFLOAT16_BOTH - FLOAT16, STORAGES = BFLOAT16_BOTH + FASTER + 1 };

/* The blocks of z that a matrix fills; the matrix has no rows for others. */
typedef struct Blocks {
    int first, count;
} Blocks;

static inline int has_scales(int storage) { return storage == INT8 || storage == INT8_BOTH; }

/* The weights of one direction. A panel has the columns of one register tile: the four gates of one vector of
   units, or as many outputs of a projection. */
typedef struct Packed {
    const struct Engine *engine;
    int storage;
    Size I, H, P; /* P: number of features of h */
    Size M;       /* number of features of m, the input of a projection: H, or for an RNN at most 4H */
    Blocks x, h;  /* filled by W_ih and by W_hh */
    int projected, biased, output_biased;
    Size units, m_units; /* H and M rounded up to whole vectors */
    void *ih, *hh, *bias, *hr, *ch, *bias_hr, *gain_ih, *gain_hh, *gain_c, *bias_c;
    Pointwise pointwise;
} Packed;

/* A stored matrix, and for INT8 the scale of each row. */
typedef struct Matrix {
    const void *values;
    const float *scales;
} Matrix;

/* The weights before they are packed. */
typedef struct Weights {
    Matrix ih, hh, hr;
    const void *bias_ih, *bias_hh, *ch, *bias_hr, *gain_ih, *gain_hh, *gain_c, *bias_c;
} Weights;

/* Which steps of the batch entries are valid, and which valid steps start from zeros. */
typedef struct Valid {
    const int32_t *lengths;
    const uint8_t *mask;  /* (T, B) */
    const uint8_t *fresh; /* (directions, T, B) */
} Valid;

/* Random masks of one direction, or NULL. Without masks, zoneout uses the expected value. Zoneout masks are
   padded to whole vectors: (T, B, units). The mask of a projected h is (T, B, P). */
typedef struct Noise {
    const void *dropped;            /* (B, P): factor of h before products */
    const uint8_t *held_h, *held_c; /* nonzero where the old value is kept */
} Noise;

/* Residuals of the forward pass, by direction and step: the gates, or z of a composed step; for a GRU r, z, n
   and the contribution of h to n, which is unused in a RESET_STEP. Slot T of `cells` is the initial state.
   `hidden` is the h that the products of the next step read. Layer normalisation adds W_ih x, W_hh h and c',
   scaled to mean 0 and variance 1, and the scales (T, B, 3). */
typedef struct Kept {
    void *gates, *cells, *hidden, *inputs, *products, *exposed, *scales;
} Kept;

typedef struct Forward {
    const Packed *packed[2];
    int directions, reverse[2];
    Size T, B;
    Valid valid;
    const void *x;
    Size x_step, x_row; /* strides of steps and rows, in elements */
    const void *h_0, *c_0;
    void *y, *h_n, *c_n;
    Noise noise[2];
    Kept kept[2];
    int keep;
    int team, by_rows; /* number of threads of one direction, and whether they divide rows or panels */
    Size cache;        /* bytes of the L2 cache of a core */
    Barrier barrier[2];
    char *scratch;
    size_t scratch_size; /* of one thread */
} Forward;

typedef struct Gradient {
    void *ih, *hh, *bias, *hr, *ch, *bias_hr, *gain_ih, *gain_hh, *gain_c, *bias_c;
} Gradient;

/* A block of steps of one direction, whose rows the products at the end of the block read. */
typedef struct Rows {
    Size first, last; /* steps */
    Size count;
    int32_t *t, *b; /* of each row */
    int32_t *index; /* (steps, B): the row, or -1 */
    void *dz, *dh,
        *m;     /* (count, 4H) in the order of z, (count, P), (count, M); the last two with a projection */
    void *cell; /* (count, H): c' before zoneout if peepholes need it, else NULL */
    void *dzx, *dzh; /* gradients with respect to W_ih x and W_hh h: dz itself without layer normalisation */
    void *dseen;     /* (count, H): gradient with respect to the normalised c', for layer normalisation */
} Rows;

typedef struct Backward {
    const Packed *packed[2];
    const void *weight_ih[2], *weight_hh[2], *weight_hr[2];
    int directions, reverse[2];
    Size T, B;
    Valid valid;
    const void *x;
    Size x_step, x_row;
    const void *h_0; /* the initial h that the products read, after recurrent dropout */
    const void *dy;
    Noise noise[2];
    Kept kept[2];
    void *dx, *dh_0, *dc_0; /* dx may be NULL; the others first hold the gradients of the final state */
    Gradient gradient[2];
    Rows rows[2];
    void *hh[2], *ih[2], *hr[2]; /* packed for the backward pass */
    void *dh[2], *dc[2];         /* (B, padded) */
    int team, by_rows, threads;
    int direction; /* of the products at the end */
    Barrier barrier[2];
    char *scratch;
    size_t scratch_size;
} Backward;

/* Return the multiply-adds of one batch entry's step with W_ih and with W_hh. */
static inline Size x_work(const Packed *p) { return p->x.count * p->H * p->I; }
static inline Size h_work(const Packed *p) { return p->h.count * p->H * p->P; }

static inline size_t lines(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* An arena allocator with whole cache lines. With a NULL base it only counts bytes, so that the function that
   lays out an area also computes its size. */
typedef struct Arena {
    char *base;
    size_t used;
} Arena;

static inline void *take(Arena *arena, size_t bytes)
{
    char *at = arena->base ? arena->base + arena->used : NULL;
    arena->used += lines(bytes);
    return at;
}

typedef struct Engine {
    const char *isa, *dtype;
    size_t size;             /* of a number */
    size_t stored[STORAGES]; /* bytes of a weight; 0 if this dtype does not support the storage */
    Size lanes, rows;        /* lanes of a vector, rows of a tile */
    int fused; /* whether multiply-adds are fused, so that sums have the bits of the specification */
    /* Each returns the bytes of its layout; with NULL memory, it only counts. */
    size_t (*place)(Packed *, void *memory);
    void (*pack)(const Packed *, const Weights *, int member, int members);
    size_t (*forward_scratch)(const Forward *);
    void (*forward)(const Forward *, int direction, int member, char *scratch);
    void (*place_backward)(Backward *, int direction, Arena *);
    void (*pack_backward)(const Backward *, int direction, int member, int members);
    size_t (*backward_scratch)(const Backward *);
    void (*walk_back)(const Backward *, int direction, int member, char *scratch);
    void (*accumulate)(const Backward *, int direction, int member, int members, char *scratch);
    void (*apply)(int function, Size n, const void *x, void *y);
} Engine;

static inline int exists(const Valid *v, Size B, Size t, Size b)
{
    if (v->lengths)
        return t < v->lengths[b];
    return !v->mask || v->mask[t * B + b];
}

static inline int starts_fresh(const Valid *v, Size T, Size B, int direction, Size t, Size b)
{
    return v->fresh && v->fresh[(direction * T + t) * B + b];
}

/* Return the previous valid step of batch entry b before step t in the direction's order, or T. */
static inline Size step_before(const Valid *v, Size T, Size B, int reverse, Size t, Size b)
{
    Size by = reverse ? -1 : 1;
    for (t -= by; t >= 0 && t < T; t -= by)
        if (exists(v, B, t, b))
            return t;
    return T;
}

static inline Size round_up(Size n, Size to) { return (n + to - 1) / to * to; }

/* Return the start of member k's share of n items. */
static inline Size share(Size n, int k, int members) { return n * k / members; }

#endif
