/* Instantiate all code for one instruction set, once in float and once in double. The includer defines
   VECTOR_BYTES, ROWS, FUSED, ISA and the suffix of the names. */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

#define DOUBLE 0
#define NAME(x) JOIN(x, f32)
#include "one_engine.h"
#undef DOUBLE
#undef NAME

#define DOUBLE 1
#define NAME(x) JOIN(x, f64)
#include "one_engine.h"
#undef DOUBLE
#undef NAME
