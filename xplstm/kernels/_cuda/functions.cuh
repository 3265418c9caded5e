/* The types of stored and of computed numbers, and the functions sigmoid and tanh. A macro selects the kind:
   FLOAT64, FLOAT32, FLOAT16, BFLOAT16, or TF32 for float32 with rounded products. float64 and float32 use
   exactly the operations of XPL-EXACT-005 to XPL-EXACT-007. The other kinds guarantee no bits, and use the
   special function unit. */

typedef long long Size;

#ifdef FLOAT64
typedef double Stored;
typedef double Wide;
typedef unsigned long long Bits;
#define HIGHEST_BIT 0x8000000000000000ull
#define FRACTION 52
#define BIAS 1023
#define MAGIC 0x1.8p+52
#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefa38p-1
#define LN2_LOW 0x1.ef35793c7673p-45
#define SCALE 512
#define UNSCALE 0x1p-512
#define TANH_END 20.0
#define SIGMOID_END 746.0
#else
typedef float Wide;
typedef unsigned Bits;
#define HIGHEST_BIT 0x80000000u
#define FRACTION 23
#define BIAS 127
#define MAGIC 0x1.8p+23f
#define LOG2_E 0x1.715476p+0f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define SCALE 64
#define UNSCALE 0x1p-64f
#define TANH_END 10.0f
#define SIGMOID_END 104.0f
#endif

#if defined(FLOAT64)
DEVICE Wide widened(Stored a) { return a; }
DEVICE Stored narrowed(Wide a) { return a; }
#elif defined(FLOAT32) || defined(TF32)
typedef float Stored;
DEVICE Wide widened(Stored a) { return a; }
DEVICE Stored narrowed(Wide a) { return a; }
#elif defined(FLOAT16)
typedef unsigned short Stored;
DEVICE Wide widened(Stored a) { return half_to_float(a); }
DEVICE Stored narrowed(Wide a) { return half_from_float(a); }
#elif defined(BFLOAT16)
typedef unsigned short Stored;
DEVICE Wide widened(Stored a) { return number_of((unsigned)a << 16); }

/* Round to nearest even by integer operations, because older GPUs lack an instruction; NaN stays NaN. */
DEVICE Stored narrowed(Wide a)
{
    unsigned bits = bits_of(a);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (Stored)(bits >> 16 | 0x40u);
    return (Stored)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
#endif

DEVICE Wide magnitude(Wide x) { return number_of(bits_of(x) & ~HIGHEST_BIT); }

#if defined(FLOAT64) || defined(FLOAT32)
struct Reduced {
    Wide n, r, r2, q; /* n still includes MAGIC: its lowest bits are the integer */
};

DEVICE Reduced reduced(Wide v)
{
    Reduced e;
    e.n = fused(v, (Wide)LOG2_E, (Wide)MAGIC);
    Wide n = sum(e.n, -(Wide)MAGIC);
    e.r = fused(n, -(Wide)LN2_LOW, fused(n, -(Wide)LN2_HIGH, v));
    e.r2 = product(e.r, e.r);
#ifdef FLOAT64
    e.q = fused(0x1.ae94f215ade36p-26, e.r, 0x1.28a28960d80d6p-22);
    e.q = fused(e.q, e.r2, fused(0x1.71de6e6b8bb9bp-19, e.r, 0x1.a019a6a8e0c58p-16));
    e.q = fused(e.q, e.r2, fused(0x1.a01a01804204dp-13, e.r, 0x1.6c16c17f2c33ep-10));
    e.q = fused(e.q, e.r2, fused(0x1.1111111116fd0p-7, e.r, 0x1.5555555552117p-5));
    e.q = fused(e.q, e.r2, fused(0x1.5555555555541p-3, e.r, 0x1.0000000000005p-1));
#else
    e.q = fused(0x1.6b6ebap-10f, e.r2, fused(0x1.122798p-7f, e.r, 0x1.55571ap-5f));
    e.q = fused(e.q, e.r2, fused(0x1.5554b0p-3f, e.r, 0x1.fffffep-2f));
#endif
    return e;
}

/* Return a / b rounded to nearest, for the operands of sigmoid and tanh. The float32 version has no branch,
   so that the activations of a cell overlap. It computes an estimate of 1 / b, a Newton step, and a corrected
   quotient (Markstein, 1990). If all bits of b are ones, the step ends below a tie, and rounds to less than
   any reciprocal of its binade; the smallest of these reciprocals replaces it. A test of all float32
   arguments gave the bits of an IEEE division, with estimates up to 2 units in the last place off. */
DEVICE Wide fraction(Wide a, Wide b)
{
#ifdef FLOAT64
    return quotient(a, b);
#else
    Wide r = reciprocal(b), smallest = number_of(((253u << FRACTION) - (bits_of(b) & 0x7f800000u)) | 1u);
    r = fused(fused(negated(b), r, (Wide)1), r, r);
    r = r < smallest ? smallest : r;
    Wide q = product(a, r);
    return fused(fused(negated(b), q, a), r, q);
#endif
}

DEVICE Wide power(Wide n, int scale)
{
    return number_of((bits_of(n) << FRACTION) + ((Bits)(BIAS + scale) << FRACTION));
}

DEVICE Wide sigmoid(Wide x)
{
    Wide a = magnitude(x);
    a = (Wide)SIGMOID_END < a ? (Wide)SIGMOID_END : a;
    Reduced k = reduced(negated(a));
    Wide s = power(k.n, SCALE);
    Wide e = product(fused(s, fused(k.r2, k.q, k.r), s), (Wide)UNSCALE);
    Wide y = fraction(bits_of(x) & HIGHEST_BIT ? e : (Wide)1, sum((Wide)1, e));
    return x < (Wide)-0.5 ? fused(negated(e), y, e) : y;
}

DEVICE Wide hyperbolic_tangent(Wide x)
{
    Wide a = magnitude(x);
    a = (Wide)TANH_END < a ? (Wide)TANH_END : a;
    Reduced k = reduced(sum(a, a));
    Wide s = power(k.n, -1);
    Wide b = sum(s, (Wide)-0.5);
    Wide first = fused(s, k.r, b);
    Wide e = sum(first, fused(product(s, k.r2), k.q, fused(s, k.r, sum(b, negated(first)))));
    Wide y = fraction(e, sum(e, (Wide)1));
    y = a < (Wide)0.5 ? fused(negated(e), y, e) : y;
    return number_of(bits_of(y) | (bits_of(x) & HIGHEST_BIT));
}
#else
DEVICE Wide sigmoid(Wide x) { return reciprocal(sum(1.0f, power_of_two(product(x, -LOG2_E)))); }

/* Near zero, 1 - exp(-2x) would suffer cancellation, so a polynomial replaces it. */
DEVICE Wide hyperbolic_tangent(Wide x)
{
    Wide a = magnitude(x), a2 = product(a, a), e = power_of_two(product(a, -2 * LOG2_E));
    Wide far = product(fused(e, -1.0f, 1.0f), reciprocal(sum(1.0f, e)));
    Wide near = fused(a2, fused(a2, -0.05396825f, 0.13333333f), -0.33333333f);
    Wide y = a < 0.25f ? fused(product(a, a2), near, a) : far;
    return number_of(bits_of(y) | (bits_of(x) & HIGHEST_BIT));
}
#endif
