/* sigmoid and tanh: the operations of XPL-EXACT-005 to XPL-EXACT-007, one by one. */

#if DOUBLE
#define MAGIC 0x1.8p+52
#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefa38p-1
#define LN2_LOW 0x1.ef35793c7673p-45
#define SCALE 512
#define UNSCALE 0x1p-512
#define BIAS 1023
#define TANH_END 20.0
#define SIGMOID_END 746.0
#else
#define MAGIC 0x1.8p+23f
#define LOG2_E 0x1.715476p+0f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define SCALE 64
#define UNSCALE 0x1p-64f
#define BIAS 127
#define TANH_END 10.0f
#define SIGMOID_END 104.0f
#endif

typedef struct NAME(Reduced) {
    V n, r, r2, q; /* n still includes MAGIC: its lowest bits are the integer */
} NAME(Reduced);

INLINE NAME(Reduced) NAME(reduced)(V v)
{
    NAME(Reduced) e;
    e.n = fma(v, all(LOG2_E), all(MAGIC));
    V n = e.n - all(MAGIC);
    e.r = fnma(n, all(LN2_LOW), fnma(n, all(LN2_HIGH), v));
    e.r2 = e.r * e.r;
#if DOUBLE
    e.q = fma(all(0x1.ae94f215ade36p-26), e.r, all(0x1.28a28960d80d6p-22));
    e.q = fma(e.q, e.r2, fma(all(0x1.71de6e6b8bb9bp-19), e.r, all(0x1.a019a6a8e0c58p-16)));
    e.q = fma(e.q, e.r2, fma(all(0x1.a01a01804204dp-13), e.r, all(0x1.6c16c17f2c33ep-10)));
    e.q = fma(e.q, e.r2, fma(all(0x1.1111111116fd0p-7), e.r, all(0x1.5555555552117p-5)));
    e.q = fma(e.q, e.r2, fma(all(0x1.5555555555541p-3), e.r, all(0x1.0000000000005p-1)));
#else
    e.q = fma(all(0x1.6b6ebap-10f), e.r2, fma(all(0x1.122798p-7f), e.r, all(0x1.55571ap-5f)));
    e.q = fma(e.q, e.r2, fma(all(0x1.5554b0p-3f), e.r, all(0x1.fffffep-2f)));
#endif
    return e;
}

INLINE V NAME(magnitude)(V x) { return (V)((VU)x & ~SIGN); }

INLINE V NAME(power)(V n, int scale) { return (V)(((VU)n << BITS) + ((UNSIGNED)(BIAS + scale) << BITS)); }

INLINE V NAME(sigmoid)(V x)
{
    V a = NAME(magnitude)(x);
    a = less(all(SIGMOID_END), a, all(SIGMOID_END), a);
    NAME(Reduced) k = NAME(reduced)(-a);
    V s = NAME(power)(k.n, SCALE);
    V e = fma(s, fma(k.r2, k.q, k.r), s) * all(UNSCALE);
    V y = negative(x, e, all(1)) / (all(1) + e);
    return less(x, all((REAL)-0.5), fnma(e, y, e), y);
}

INLINE V NAME(tanh)(V x)
{
    V a = NAME(magnitude)(x);
    a = less(all(TANH_END), a, all(TANH_END), a);
    NAME(Reduced) k = NAME(reduced)(a + a);
    V s = NAME(power)(k.n, -1);
    V b = s - all((REAL)0.5);
    V first = fma(s, k.r, b);
    V e = first + fma(s * k.r2, k.q, fma(s, k.r, b - first));
    V y = e / (e + all(1));
    y = less(a, all((REAL)0.5), fnma(e, y, e), y);
    return (V)((VU)y | ((VU)x & SIGN));
}

#undef MAGIC
#undef LOG2_E
#undef LN2_HIGH
#undef LN2_LOW
#undef SCALE
#undef UNSCALE
#undef BIAS
#undef TANH_END
#undef SIGMOID_END
