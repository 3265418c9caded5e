/* What the threads of a call do together. */
#ifndef XPLSTM_JOBS_H
#define XPLSTM_JOBS_H

#include "lstm.h"

/* Pack weights into the `bytes` of memory that they have been placed in. */
void run_pack(const Packed *packed, const Weights *weights, size_t bytes, int threads);

/* A mask of zoneout: flags (T, B, size), each row `stride` from the next, true with probability p. */
typedef struct Mask {
    uint64_t key[2], purpose, stream, start; /* start: time of the first step */
    Size T, B, size, stride;
    double p;
    uint8_t *flags;
} Mask;

void run_draw(const Mask *mask, int threads);

/* How the threads of a direction share its work: as `plan` decides, or pinned for measurements. */
enum { AUTOMATIC, BY_ROWS, BY_PANELS, SHARES };

void pin_shares(int how);

/* Multiply-adds of a call below which one thread runs it. */
long worth_threads(void);

/* Both give -1 where memory is short. */
int run_forward(Forward *f, int threads);
int run_backward(Backward *f, int threads);

#endif
