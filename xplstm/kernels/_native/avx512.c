/* x86-64 with AVX-512. */
#if defined(__x86_64__)
#include "lstm.h"

#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif
#define VECTOR_BYTES 64
#define ROWS 6
#define FUSED 1
#define ISA "avx512"
#define ENGINE avx512
#include "engine.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
