/* x86-64 with AVX2 and fused multiply-adds. */
#if defined(__x86_64__)
#include "lstm.h"

#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define VECTOR_BYTES 32
#define ROWS 3
#define FUSED 1
#define ISA "avx2"
#define ENGINE avx2
#include "engine.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
