/* Instantiate all code for one instruction set and one dtype. */

#include "vector.h"
#include "functions.h"
#include "storages.h"
#include "sums.h"
#include "composed.h"
#include "normalised.h"
#include "layout.h"
#include "forward.h"
#include "backward.h"

#if DOUBLE
#define STORED {sizeof(REAL)}
#elif VECTOR_BYTES == 64
#define STORED {sizeof(REAL), 2, 2, 1, 1, 2, 1, 1, 2}
#else
#define STORED {sizeof(REAL), 2, 2, 1, 1, 2}
#endif

const Engine JOIN(ENGINE, NAME(engine)) = {
    .isa = ISA,
    .dtype = DOUBLE ? "float64" : "float32",
    .size = sizeof(REAL),
    .stored = STORED,
    .lanes = LANES,
    .rows = ROWS,
    .fused = FUSED,
    .place = NAME(place),
    .pack = NAME(pack),
    .forward_scratch = NAME(forward_scratch),
    .forward = NAME(forward),
    .place_backward = NAME(place_backward),
    .pack_backward = NAME(pack_backward),
    .backward_scratch = NAME(backward_scratch),
    .walk_back = NAME(walk_back),
    .accumulate = NAME(accumulate),
    .apply = NAME(apply),
};

#undef STORED
#undef Walk
#undef Back
#undef Products
#undef Sum
#undef Exposed
#undef SumScratch
#undef load
#undef store
#undef load_part
#undef store_part
#undef all
#undef fma
#undef fnma
#undef less
#undef negative
#undef INLINE
#undef LANES
#undef PANEL
#undef EACH
#undef LINE
