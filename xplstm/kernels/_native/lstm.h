/* What the files of this folder share: a layer's packed weights, a job, and the functions of one instruction
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

/* Terms of a sum that make one chain of fused multiply-adds: XPL-EXACT-002. */
enum { BLOCK = 128 };

struct Engine;

/* A function of one number, as composed.h evaluates it; native.py names the kinds in this order. */
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

/* Options of the pointwise step; a clip that is off is infinite. In a step of a GRU c is h, and the four
   blocks are r, z, what x makes of n, and what h makes of it. In a RESET_STEP r scales h before the product:
   the fourth block is empty, m is r * h, and the projection is the last block of W_hh. In a step of an RNN
   the four blocks are the quarters of its hidden units, c is unused, and `gate` is the nonlinearity. */
enum { LSTM_STEP, GRU_STEP, ELMAN_STEP, RESET_STEP, STEPS };

typedef struct Pointwise {
    int composed, peepholes, normal, coupled, kind; /* composed: any option is on */
    Activation gate, input, output;                 /* of i, f and o; of g; of c on its way to h */
    double gate_clip, cell_clip;
    double hold_h, hold_c; /* zoneout: the probability that a unit keeps its old value */
} Pointwise;

/* What packed weights are stored in: the dtype of the activations, or less. INT8 takes activations in 24
   bits, INT8_BOTH in 8, BFLOAT16_BOTH in bfloat16. FASTER is added to these where the processor has VNNI, or
   AVX512_BF16. native.py names the first six in this order. */
enum { FULL, BFLOAT16, FLOAT16, INT8, INT8_BOTH, BFLOAT16_BOTH };
enum { FASTER = BFLOAT16_BOTH - FLOAT16, STORAGES = BFLOAT16_BOTH + FASTER + 1 };

static inline int has_scales(int storage) { return storage == INT8 || storage == INT8_BOTH; }

/* The weights of one direction. A panel is what one tile of registers holds: the four gates of some units, or
   that many outputs of a projection. */
typedef struct Packed {
    const struct Engine *engine;
    int storage;
    Size I, H, P; /* P is what h has */
    Size M;       /* what m has, which a projection reads: H, in an RNN at most 4H */
    int projected, biased, output_biased;
    Size units, m_units; /* H and M rounded up to whole vectors */
    void *ih, *hh, *bias, *hr, *ch, *bias_hr, *gain_ih, *gain_hh, *gain_c, *bias_c;
    Pointwise pointwise;
} Packed;

/* A matrix as it is stored, and in INT8 the scale of each row. */
typedef struct Matrix {
    const void *values;
    const float *scales;
} Matrix;

/* The weights before they are packed. */
typedef struct Weights {
    Matrix ih, hh, hr;
    const void *bias_ih, *bias_hh, *ch, *bias_hr, *gain_ih, *gain_hh, *gain_c, *bias_c;
} Weights;

/* Which batch entries have a step, and which steps that exist start from zeros. */
typedef struct Valid {
    const int32_t *lengths;
    const uint8_t *mask;  /* (T, B) */
    const uint8_t *fresh; /* (directions, T, B) */
} Valid;

/* Random masks of one direction, or NULL. Without them zoneout takes the mean. The masks of zoneout are
   padded to whole vectors: (T, B, units), that of h with a projection (T, B, P). */
typedef struct Noise {
    const void *dropped;            /* (B, P): what h is multiplied by on its way into products */
    const uint8_t *held_h, *held_c; /* where the old value remains */
} Noise;

/* What a forward pass keeps for the backward pass, by direction and step: the gates, or z where the step is
   composed; of a GRU r, z, n and the fourth block, which is unused in a RESET_STEP. Slot T of `cells` is the
   first state. `hidden` is h as the products of the next step read it. With layer normalisation also W_ih x,
   W_hh h and c', scaled to mean 0 and variance 1, and by what: (T, B, 3). */
typedef struct Kept {
    void *gates, *cells, *hidden, *inputs, *products, *exposed, *scales;
} Kept;

typedef struct Forward {
    const Packed *packed[2];
    int directions, reverse[2];
    Size T, B;
    Valid valid;
    const void *x;
    Size x_step, x_row; /* elements from one step, one row to the next */
    const void *h_0, *c_0;
    void *y, *h_n, *c_n;
    Noise noise[2];
    Kept kept[2];
    int keep;
    int team, by_rows; /* threads of one direction, and whether they share out rows or panels */
    Size cache;        /* bytes of the L2 cache of a core */
    Barrier barrier[2];
    char *scratch;
    size_t scratch_size; /* of one thread */
} Forward;

typedef struct Gradient {
    void *ih, *hh, *bias, *hr, *ch, *bias_hr, *gain_ih, *gain_hh, *gain_c, *bias_c;
} Gradient;

/* Steps of one direction whose rows wait for the products over all of them. */
typedef struct Rows {
    Size first, last; /* steps */
    Size count;
    int32_t *t, *b;    /* of each row */
    int32_t *index;    /* (steps, B): the row, or -1 */
    void *dz, *dh, *m; /* (count, 4H), (count, P), (count, M); the last two with a projection */
    void *cell;        /* (count, H): c' before zoneout, where peepholes need it; else NULL */
    void *dzx, *dzh;   /* dz as W_ih x and W_hh h meet it: dz itself without layer normalisation */
    void *dseen;       /* (count, H): with it, the gradient with respect to c' after it */
} Rows;

typedef struct Backward {
    const Packed *packed[2];
    const void *weight_ih[2], *weight_hh[2], *weight_hr[2];
    int directions, reverse[2];
    Size T, B;
    Valid valid;
    const void *x;
    Size x_step, x_row;
    const void *h_0; /* as the products of the first step read it */
    const void *dy;
    Noise noise[2];
    Kept kept[2];
    void *dx, *dh_0, *dc_0; /* dx may be NULL; the others hold the gradients of the final state first */
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

static inline size_t lines(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* A scratch area, handed out in whole cache lines. With a NULL base it only counts: the function that carves
   an area also says how large it must be. */
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
    size_t stored[STORAGES]; /* of a weight; 0 where this dtype has no such storage */
    Size lanes, rows;        /* numbers in a vector, rows of a tile */
    int fused;               /* whether multiply-adds are, so that sums have the published bits */
    /* Each returns the bytes of what it carves; with no memory it only counts. */
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

/* The step that row b had before step t of the walk, or T where it had none. */
static inline Size step_before(const Valid *v, Size T, Size B, int reverse, Size t, Size b)
{
    Size by = reverse ? -1 : 1;
    for (t -= by; t >= 0 && t < T; t -= by)
        if (exists(v, B, t, b))
            return t;
    return T;
}

static inline Size round_up(Size n, Size to) { return (n + to - 1) / to * to; }

/* The part of n that member k of some has. */
static inline Size share(Size n, int k, int members) { return n * k / members; }

#endif
