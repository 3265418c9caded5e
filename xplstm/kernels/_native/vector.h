/* One vector of REAL for the instruction set ISA; included once for each of both. Undefines what it is given
   again. */

#undef V
#undef VI
#undef VU
#undef LANES
#undef REAL
#undef INT
#undef BITS
#undef UNSIGNED
#undef SIGN

#if DOUBLE
#define REAL double
#define INT int64_t
#define UNSIGNED uint64_t
#define SIGN ((uint64_t)1 << 63)
#define BITS 52
#else
#define REAL float
#define INT int32_t
#define UNSIGNED uint32_t
#define SIGN ((uint32_t)1 << 31)
#define BITS 23
#endif

#define LANES (VECTOR_BYTES / (int)sizeof(REAL))
#define V NAME(Vector)
#define VI NAME(Integers)
#define VU NAME(Words)

typedef REAL V __attribute__((vector_size(VECTOR_BYTES)));
typedef INT VI __attribute__((vector_size(VECTOR_BYTES)));
typedef UNSIGNED VU __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL NAME(Unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE V NAME(load)(const REAL *p) { return *(const NAME(Unaligned) *)p; }
INLINE void NAME(store)(REAL *p, V v) { *(NAME(Unaligned) *)p = v; }

/* The first n numbers, and zeros. */
INLINE V NAME(load_part)(const REAL *p, Size n)
{
    REAL all[LANES] = {0};
    __builtin_memcpy(all, p, (size_t)n * sizeof(REAL));
    return NAME(load)(all);
}

INLINE void NAME(store_part)(REAL *p, V v, Size n)
{
    REAL all[LANES];
    NAME(store)(all, v);
    __builtin_memcpy(p, all, (size_t)n * sizeof(REAL));
}

#if !DOUBLE
typedef VU NAME(UnalignedWords) __attribute__((aligned(2), may_alias));

/* Vector n of a panel of bfloat16, which is the upper half of a float: each word has the numbers of two
   vectors in its halves, so that a shift or a mask is the whole conversion. */
INLINE V NAME(load_bfloat16)(const uint16_t *panel, int n)
{
    VU pair = *(const NAME(UnalignedWords) *)(panel + n / 2 * 2 * LANES);
    return (V)(n % 2 ? pair & 0xffff0000u : pair << 16);
}

/* GCC 12 makes shuffles of one element at a time of __builtin_convertvector from bytes. */
INLINE V NAME(load_int8)(const int8_t *p)
{
#if VECTOR_BYTES == 64
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
#elif VECTOR_BYTES == 32
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
#else
    V numbers;
    for (int k = 0; k < LANES; k++)
        numbers[k] = (float)p[k];
    return numbers;
#endif
}
#endif

#if VECTOR_BYTES == 64 && DOUBLE
INLINE V NAME(all)(REAL x) { return _mm512_set1_pd(x); }
INLINE V NAME(fma)(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
INLINE V NAME(fnma)(V a, V b, V c) { return _mm512_fnmadd_pd(a, b, c); }
INLINE V NAME(less)(V a, V b, V yes, V no)
{
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), no, yes);
}
INLINE V NAME(negative)(V a, V yes, V no)
{
    return _mm512_mask_blend_pd(_mm512_movepi64_mask((__m512i)a), no, yes);
}
#elif VECTOR_BYTES == 64
INLINE V NAME(all)(REAL x) { return _mm512_set1_ps(x); }
INLINE V NAME(fma)(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V NAME(fnma)(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE V NAME(less)(V a, V b, V yes, V no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
INLINE V NAME(negative)(V a, V yes, V no)
{
    return _mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)a), no, yes);
}
#elif VECTOR_BYTES == 32 && DOUBLE
INLINE V NAME(all)(REAL x) { return _mm256_set1_pd(x); }
INLINE V NAME(fma)(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
INLINE V NAME(fnma)(V a, V b, V c) { return _mm256_fnmadd_pd(a, b, c); }
INLINE V NAME(less)(V a, V b, V yes, V no)
{
    return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}
INLINE V NAME(negative)(V a, V yes, V no) { return _mm256_blendv_pd(no, yes, a); }
#elif VECTOR_BYTES == 32
INLINE V NAME(all)(REAL x) { return _mm256_set1_ps(x); }
INLINE V NAME(fma)(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE V NAME(fnma)(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE V NAME(less)(V a, V b, V yes, V no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE V NAME(negative)(V a, V yes, V no) { return _mm256_blendv_ps(no, yes, a); }
#else
INLINE V NAME(all)(REAL x)
{
    V v;
    for (int k = 0; k < LANES; k++)
        v[k] = x;
    return v;
}
#if defined(__aarch64__) && DOUBLE
INLINE V NAME(fma)(V a, V b, V c) { return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
INLINE V NAME(fnma)(V a, V b, V c) { return (V)vfmsq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#elif defined(__aarch64__)
INLINE V NAME(fma)(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE V NAME(fnma)(V a, V b, V c) { return (V)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
INLINE V NAME(fma)(V a, V b, V c) { return a * b + c; }
INLINE V NAME(fnma)(V a, V b, V c) { return c - a * b; }
#endif
INLINE V NAME(less)(V a, V b, V yes, V no)
{
    VI which = a < b;
    return (V)((which & (VI)yes) | (~which & (VI)no));
}
INLINE V NAME(negative)(V a, V yes, V no)
{
    VI which = (VI)a < 0;
    return (V)((which & (VI)yes) | (~which & (VI)no));
}
#endif

#define load NAME(load)
#define store NAME(store)
#define load_part NAME(load_part)
#define store_part NAME(store_part)
#define all NAME(all)
#define fma NAME(fma)
#define fnma NAME(fnma)
#define less NAME(less)
#define negative NAME(negative)
