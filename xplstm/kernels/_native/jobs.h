/* What the threads of a call do together. */
#ifndef XPLSTM_JOBS_H
#define XPLSTM_JOBS_H

#include "lstm.h"

/* Pack weights into the `bytes` of memory that they have been placed in. */
void run_pack(const Packed *packed, const Weights *weights, size_t bytes, int threads);

/* Both give -1 where memory is short. */
int run_forward(Forward *f, int threads);
int run_backward(Backward *f, int threads);

#endif
