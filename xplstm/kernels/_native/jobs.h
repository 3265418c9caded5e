/* Jobs that the threads of a call share. */
#ifndef XPLSTM_JOBS_H
#define XPLSTM_JOBS_H

#include "lstm.h"

/* Pack weights into memory of `bytes` that `place` has laid out. */
void run_pack(const Packed *packed, const Weights *weights, size_t bytes, int threads);

/* A zoneout mask: flags (T, B, size) with a distance of `stride` between rows, true with probability p. */
typedef struct Mask {
    uint64_t key[2], purpose, stream, start; /* start: time of the first step */
    Size T, B, size, stride;
    double p;
    uint8_t *flags;
} Mask;

void run_draw(const Mask *mask, int threads);

/* How the threads of a direction divide its work: as `plan` decides, or pinned for measurements. */
enum { AUTOMATIC, BY_ROWS, BY_PANELS, SHARES };

void pin_shares(int how);

/* Return the number of multiply-adds below which one thread runs a call. */
long worth_threads(void);

/* Return the number of multiply-adds from which even short steps of a call may be divided between threads. */
long worth_barriers(void);

/* Both return -1 if memory allocation fails. */
int run_forward(Forward *f, int threads);
int run_backward(Backward *f, int threads);

#endif
