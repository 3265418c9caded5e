/* Vectors of 16 bytes, which every 64-bit processor has: NEON on Arm, SSE2 without fused multiply-adds on
   x86-64. */
#include "lstm.h"

#define VECTOR_BYTES 16
#if defined(__aarch64__)
#include <arm_neon.h>
#define ROWS 6
#define FUSED 1
#define ISA "neon"
#else
#if defined(__x86_64__)
#include <emmintrin.h>
#endif
#define ROWS 3
#define FUSED 0
#define ISA "baseline"
#endif
#define ENGINE baseline
#include "engine.h"
