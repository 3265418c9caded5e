/* All operations that need a GPU. A host compiler can compile the rest of the sources as C++.

   Arithmetic is in PTX. CuPy compiles with -ftz=true, which would flush subnormal results of __fmaf_rn and
   similar functions, and the compiler may contract operations of plain C++. */

#define DEVICE __device__ __forceinline__

/* Compilers would convert a C++ minus, or an exclusive or of the sign bit, to neg.ftz. */
DEVICE float negated(float a)
{
    float d;
    asm("neg.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}

DEVICE double negated(double a)
{
    double d;
    asm("neg.f64 %0, %1;" : "=d"(d) : "d"(a));
    return d;
}

DEVICE float fused(float a, float b, float c)
{
    float d;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
    return d;
}

DEVICE double fused(double a, double b, double c)
{
    double d;
    asm("fma.rn.f64 %0, %1, %2, %3;" : "=d"(d) : "d"(a), "d"(b), "d"(c));
    return d;
}

DEVICE float sum(float a, float b)
{
    float d;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

DEVICE double sum(double a, double b)
{
    double d;
    asm("add.rn.f64 %0, %1, %2;" : "=d"(d) : "d"(a), "d"(b));
    return d;
}

DEVICE float product(float a, float b)
{
    float d;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

DEVICE double product(double a, double b)
{
    double d;
    asm("mul.rn.f64 %0, %1, %2;" : "=d"(d) : "d"(a), "d"(b));
    return d;
}

DEVICE float quotient(float a, float b)
{
    float d;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

DEVICE double quotient(double a, double b)
{
    double d;
    asm("div.rn.f64 %0, %1, %2;" : "=d"(d) : "d"(a), "d"(b));
    return d;
}

/* Estimate 1 / a, and 2 to the power a, by the special function unit. Subnormal results are flushed to zero.
 */
DEVICE float reciprocal(float a)
{
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}

DEVICE float power_of_two(float a)
{
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}

DEVICE float square_root(float a)
{
    float d;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}

DEVICE double square_root(double a)
{
    double d;
    asm("sqrt.rn.f64 %0, %1;" : "=d"(d) : "d"(a));
    return d;
}

/* Return the upper 64 bits of the 128-bit product a * b. */
DEVICE unsigned long long upper_product(unsigned long long a, unsigned long long b)
{
    return __umul64hi(a, b);
}

DEVICE unsigned bits_of(float a) { return __float_as_uint(a); }
DEVICE unsigned long long bits_of(double a) { return (unsigned long long)__double_as_longlong(a); }
DEVICE float number_of(unsigned a) { return __uint_as_float(a); }
DEVICE double number_of(unsigned long long a) { return __longlong_as_double((long long)a); }

DEVICE float half_to_float(unsigned short a)
{
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(a));
    return d;
}

DEVICE unsigned short half_from_float(float a)
{
    unsigned short d;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(a));
    return d;
}

extern __shared__ __align__(16) unsigned char shared_bytes[];
DEVICE unsigned char *shared_memory() { return shared_bytes; }

/* Release: a thread that reads `value` by load_acquire sees all earlier writes of this block's threads. */
DEVICE void store_release(unsigned *at, unsigned value)
{
    asm volatile("st.release.gpu.global.u32 [%0], %1;" : : "l"(at), "r"(value) : "memory");
}

DEVICE unsigned load_acquire(const unsigned *at)
{
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

DEVICE unsigned load_relaxed(const unsigned *at)
{
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

DEVICE void store_relaxed(unsigned *at, unsigned value)
{
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" : : "l"(at), "r"(value) : "memory");
}

/* Store to host memory, which the host reads without synchronisation. */
DEVICE void store_to_host(unsigned *at, unsigned value)
{
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(at), "r"(value) : "memory");
}

DEVICE void rest() { __nanosleep(20); }

/* A barrier of the block that returns whether any thread's `a` is true. */
DEVICE bool any_of_block(bool a) { return __syncthreads_or(a) != 0; }

/* Return the time of a clock that all SMs share, and that continues while the GPU runs another process. */
DEVICE unsigned long long nanoseconds()
{
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

/* Copy 16 bytes to shared memory past the L1 cache, which is not coherent with the writes of other SMs. */
DEVICE void copy_fresh(void *to, const void *from)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(at), "l"(from) : "memory");
}

/* Copy one number to shared memory asynchronously. */
template <typename A> DEVICE void copy_soon(A *to, const A *from)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                 :
                 : "r"(at), "l"(from), "n"(sizeof(A))
                 : "memory");
}

/* Wait until all asynchronous copies of this thread are complete. */
DEVICE void copies_done() { asm volatile("cp.async.wait_all;" : : : "memory"); }

/* Load a number if `wanted`, else return zero, without a branch, so that many loads overlap. */
DEVICE unsigned short load_if(bool wanted, const unsigned short *at)
{
    unsigned short d;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.u16 %0, 0; @p ld.global.u16 %0, [%1]; }"
                 : "=&h"(d)
                 : "l"(at), "r"((unsigned)wanted));
    return d;
}

DEVICE float load_if(bool wanted, const float *at)
{
    float d;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.f32 %0, 0f00000000; @p ld.global.f32 %0, [%1]; }"
                 : "=&f"(d)
                 : "l"(at), "r"((unsigned)wanted));
    return d;
}

struct __align__(16) Words {
    unsigned at[4];
};

/* Read 16 bytes of this block's memory. */
DEVICE Words words_at(const void *from) { return *(const Words *)from; }

/* Read 16 bytes past the L1 cache, which is not coherent with the writes of other SMs. */
DEVICE Words read_fresh(const void *from)
{
    Words w;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
                 : "l"(from)
                 : "memory");
    return w;
}

struct __align__(8) Pair {
    unsigned at[2];
};

DEVICE Pair pair_at(const unsigned *from) { return *(const Pair *)from; }

DEVICE float from_lane(float a, int lane) { return __shfl_sync(0xffffffffu, a, lane); }
DEVICE double from_lane(double a, int lane) { return __shfl_sync(0xffffffffu, a, lane); }

#if defined(FLOAT16) || defined(BFLOAT16) || defined(TF32)
#if defined(FLOAT16)
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#elif defined(BFLOAT16)
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "

/* Round to TF32, 10 fraction bits, to nearest with ties away from zero; mma itself would truncate. */
DEVICE unsigned tf32_from_float(float a)
{
    unsigned d;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(a));
    return d;
}
#endif

/* Compute c (16, 8) += a b. Rows of a and columns of b have 8 words of k, distributed over a warp's lanes. */
DEVICE void multiply_16_8(float *c, const unsigned *a, const unsigned *b)
{
    asm(MMA "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
