/* Operations on one vector of REAL for the instruction set ISA. The file is included once for each pair, and
   undefines its parameters. */

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

/* Load at most n numbers, padded with zeros. */
INLINE V NAME(load_part)(const REAL *p, Size n)
{
    if (n >= LANES)
        return NAME(load)(p);
    REAL all[LANES] = {0};
    __builtin_memcpy(all, p, (size_t)n * sizeof(REAL));
    return NAME(load)(all);
}

/* Store at most n numbers. */
INLINE void NAME(store_part)(REAL *p, V v, Size n)
{
    if (n >= LANES) {
        NAME(store)(p, v);
        return;
    }
    REAL all[LANES];
    NAME(store)(all, v);
    __builtin_memcpy(p, all, (size_t)n * sizeof(REAL));
}

#if !DOUBLE
typedef VU NAME(UnalignedWords) __attribute__((aligned(2), may_alias));

/* Load vector n of a panel of bfloat16, which is the upper half of a float. Each word has the numbers of two
   vectors in its halves, so a shift or a mask is the whole conversion. */
INLINE V NAME(load_bfloat16)(const uint16_t *panel, int n)
{
    VU pair = *(const NAME(UnalignedWords) *)(panel + n / 2 * 2 * LANES);
    return (V)(n % 2 ? pair & 0xffff0000u : pair << 16);
}

/* Load numbers of float16. Every processor with AVX2 and fused multiply-adds supports the conversion. */
INLINE V NAME(load_float16)(const uint16_t *p)
{
#if VECTOR_BYTES == 64
    return (V)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
#elif VECTOR_BYTES == 32
    return (V)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
#else
    VU bits;
    for (int k = 0; k < LANES; k++)
        bits[k] = p[k];
    /* Moved to its place in a float, a number lacks a factor of 2**112; infinities and NaN need the exponent.
     */
    VU moved = (bits & 0x7fff) << 13;
    VU special = (VU)(moved >= 0x0f800000u) & 0x7f800000u;
    return (V)((VU)((V)moved * 0x1p112f) | special | (bits & 0x8000) << 16);
#endif
}

typedef VI NAME(UnalignedIntegers) __attribute__((aligned(1), may_alias));

INLINE VI NAME(load_words)(const void *p) { return *(const NAME(UnalignedIntegers) *)p; }

/* Round to the nearest integer, ties to even. */
INLINE VI NAME(nearest)(V x)
{
#if VECTOR_BYTES == 64
    return (VI)_mm512_cvtps_epi32((__m512)x);
#elif VECTOR_BYTES == 32
    return (VI)_mm256_cvtps_epi32((__m256)x);
#elif defined(__x86_64__)
    return (VI)_mm_cvtps_epi32((__m128)x);
#elif defined(__aarch64__)
    return (VI)vcvtnq_s32_f32((float32x4_t)x);
#else
    VI n;
    for (int k = 0; k < LANES; k++)
        n[k] = (int32_t)__builtin_rintf(x[k]);
    return n;
#endif
}

/* Store the lowest byte of each word. */
INLINE void NAME(store_bytes)(uint8_t *to, VI words)
{
#if VECTOR_BYTES == 64
    _mm_storeu_si128((void *)to, _mm512_cvtepi32_epi8((__m512i)words));
#else
    for (int k = 0; k < LANES; k++)
        to[k] = (uint8_t)words[k];
#endif
}

/* Return, for each word, the sum of the products of both halves. */
INLINE VI NAME(multiply_pairs)(VI a, VI b)
{
#if VECTOR_BYTES == 64 /* does not use AVX512BW, which the engine does not require */
    __m256i low = _mm256_madd_epi16(_mm512_castsi512_si256((__m512i)a), _mm512_castsi512_si256((__m512i)b));
    __m256i high =
        _mm256_madd_epi16(_mm512_extracti64x4_epi64((__m512i)a, 1), _mm512_extracti64x4_epi64((__m512i)b, 1));
    return (VI)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#elif VECTOR_BYTES == 32
    return (VI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (VI)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* sum + the products of four unsigned bytes, the same for all lanes, with the four signed ones of each word.
 */
INLINE VI NAME(dot)(VI sum, const char *digits, VI w)
{
    uint32_t word;
    __builtin_memcpy(&word, digits, sizeof word);
    VI even = (VI)((VU){0} + (word & 0x00ff00ff)), odd = (VI)((VU){0} + (word >> 8 & 0x00ff00ff));
    VI w_odd = (w >> 8 & (INT)0xffff0000) | ((w << 16 >> 24) & 0xffff);
    VI w_even = (w << 8 >> 24 << 16) | ((w << 24 >> 24) & 0xffff);
    return sum + NAME(multiply_pairs)(even, w_even) + NAME(multiply_pairs)(odd, w_odd);
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

/* Exchange the lanes n and n ^ half. */
#ifdef __clang__
#define PERMUTED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define PERMUTED(v, ...) __builtin_shuffle(v, (VI){__VA_ARGS__})
#endif
#define TWO(n, half) (n) ^ (half), ((n) + 1) ^ (half)
#define FOUR(n, half) TWO(n, half), TWO((n) + 2, half)
#define EIGHT(n, half) FOUR(n, half), FOUR((n) + 4, half)
#if VECTOR_BYTES == 64 && !DOUBLE
#define EXCHANGED(v, half) PERMUTED(v, EIGHT(0, half), EIGHT(8, half))
#elif VECTOR_BYTES == 64 || (VECTOR_BYTES == 32 && !DOUBLE)
#define EXCHANGED(v, half) PERMUTED(v, EIGHT(0, half))
#elif VECTOR_BYTES == 32 || !DOUBLE
#define EXCHANGED(v, half) PERMUTED(v, FOUR(0, half))
#else
#define EXCHANGED(v, half) PERMUTED(v, TWO(0, half))
#endif

/* Return the sum of all lanes in every lane: pairs of distance 8, 4, 2 and 1 are added, in this order. */
INLINE V NAME(add_pairs)(V v)
{
#if VECTOR_BYTES == 64 && !DOUBLE
    v = v + EXCHANGED(v, 8);
#endif
#if VECTOR_BYTES == 64 || (VECTOR_BYTES == 32 && !DOUBLE)
    v = v + EXCHANGED(v, 4);
#endif
#if VECTOR_BYTES >= 32 || !DOUBLE
    v = v + EXCHANGED(v, 2);
#endif
    return v + EXCHANGED(v, 1);
}

#undef PERMUTED
#undef TWO
#undef FOUR
#undef EIGHT
#undef EXCHANGED

#define load NAME(load)
#define store NAME(store)
#define load_part NAME(load_part)
#define store_part NAME(store_part)
#define all NAME(all)
#define fma NAME(fma)
#define fnma NAME(fnma)
#define less NAME(less)
#define negative NAME(negative)
