/* The words of xplstm/kernels/_cuda/primitives.cuh for a host compiler: a thread of the GPU is a fiber of this
   process, which runs until it waits for others, or a thread of the operating system under ThreadSanitizer.

   Launches run their blocks side by side, as many threads at a time as LARGEST allows; a cooperative launch
   needs all of its blocks at once. Threads of a warp do not run in step: what a kernel may not rely on. */

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define DEVICE static inline
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct Index {
    unsigned x, y, z;
};

inline void flush();

inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned LARGEST = 512;   /* threads of one launch that run side by side */

/* Lets others run: what every loop that waits for them calls. */
inline void yield();

/* std::barrier waits by a table that all barriers share, whose atomics would order what a kernel does not. */
class Barrier {
public:
    explicit Barrier(unsigned threads) : all(threads) {}

    void meet()
    {
        unsigned now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
        }
        while (round.load(std::memory_order_acquire) == now)
            yield();
    }

private:
    const unsigned all;
    std::atomic<unsigned> arrived{0}, round{0};
};

struct Warp {
    Barrier meeting;
    uint64_t words[WARP][4];
    explicit Warp(unsigned lanes) : meeting(lanes) {}
};

struct Block {
    static constexpr size_t GUARD = 4096;       /* bytes behind shared memory that nobody may write to */
    Barrier meeting;
    size_t size;
    std::vector<uint64_t> shared;
    std::vector<std::unique_ptr<Warp>> warps;
    std::atomic<bool> any{false};

    Block(unsigned threads, size_t bytes) : meeting(threads), size(bytes), shared(bytes / 8 + 2 + GUARD / 8)
    {
        std::memset(shared.data(), 0xff, shared.size() * 8);     /* NaN, as fresh memory may hold anything */
        for (unsigned first = 0; first < threads; first += WARP)
            warps.push_back(std::make_unique<Warp>(threads - first < WARP ? threads - first : WARP));
    }

    unsigned char *bytes()
    {
        auto at = reinterpret_cast<uintptr_t>(shared.data());
        return reinterpret_cast<unsigned char *>((at + 15) / 16 * 16);
    }

    bool unharmed()
    {
        return std::all_of(bytes() + size, bytes() + size + GUARD, [](unsigned char a) { return a == 0xff; });
    }
};

inline thread_local Block *block;
inline thread_local unsigned thread;

inline Warp &warp() { return *block->warps[thread / WARP]; }
inline unsigned lane() { return thread % WARP; }

#ifndef __SANITIZE_THREAD__
/* Threads of a launch by turns, in an order that changes: nothing but a wait puts one before another. */
class Pool {
public:
    void run(unsigned count, void (*f)(void *, unsigned), void *with)
    {
        while (fibers.size() < count)
            fibers.push_back(std::make_unique<Fiber>());
        work = f;
        argument = with;
        active = this;
        unsigned left = count;
        for (unsigned n = 0; n < count; n++)
            fibers[n]->begin(&scheduler);
        while (left) {
            unsigned first = unsigned(order()) % count, step = order() % 2 ? 1 : count - 1;
            for (unsigned turn = 0, n = first; turn < count; turn++, n = (n + step) % count) {
                if (fibers[n]->done)
                    continue;
                now = n;
                swapcontext(&scheduler, &fibers[n]->context);
                left -= fibers[n]->done;
            }
        }
    }

    static void yield()
    {
        /* What is a register on a GPU. */
        auto kept = std::tuple(threadIdx, blockIdx, block, thread);
        swapcontext(&active->fibers[active->now]->context, &active->scheduler);
        std::tie(threadIdx, blockIdx, block, thread) = kept;
    }

private:
    struct Fiber {
        static constexpr size_t STACK = 1 << 17;
        ucontext_t context;
        std::unique_ptr<char[]> stack{new char[STACK]};
        bool done = false;

        void begin(ucontext_t *after)
        {
            done = false;
            getcontext(&context);
            context.uc_stack.ss_sp = stack.get();
            context.uc_stack.ss_size = STACK;
            context.uc_link = after;
            makecontext(&context, &Pool::enter, 0);
        }
    };

    static inline Pool *active;
    ucontext_t scheduler;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::minstd_rand order;
    unsigned now = 0;
    void (*work)(void *, unsigned) = nullptr;
    void *argument = nullptr;

    static void enter()
    {
        Pool &pool = *active;
        pool.work(pool.argument, pool.now);
        pool.fibers[pool.now]->done = true;
    }
};

inline void yield() { Pool::yield(); }
#else
/* Threads that wait for work from one launch to the next. */
class Pool {
public:
    ~Pool() { end(); }

    void run(unsigned count, void (*f)(void *, unsigned), void *with)
    {
        while (threads.size() < count)
            threads.emplace_back([this, n = unsigned(threads.size()), seen = round.load()] { wait(n, seen); });
        work = f;
        argument = with;
        active = count;
        left = unsigned(threads.size());
        begin();
        for (unsigned rest = left.load(); rest; rest = left.load())
            left.wait(rest);
        if (threads.size() > KEPT)
            end();
    }

private:
    /* Each kernel of each library has a pool: more idle threads than these would add up to thousands. */
    static constexpr unsigned KEPT = 128;
    std::atomic<unsigned> round{0}, left{0};
    void (*work)(void *, unsigned) = nullptr;
    void *argument = nullptr;
    unsigned active = 0;
    std::vector<std::jthread> threads;

    void end()
    {
        work = nullptr;
        begin();
        threads.clear();
    }

    void begin()
    {
        round++;
        round.notify_all();
    }

    void wait(unsigned n, unsigned seen)
    {
        for (;;) {
            round.wait(seen);
            seen = round.load();
            if (!work)
                return;
            if (n < active)
                work(argument, n);
            if (--left == 0)
                left.notify_all();
        }
    }
};

inline void yield() { std::this_thread::yield(); }
#endif

struct Geometry {
    Index grid, threads;
    size_t shared;
    bool cooperative;
};

template <typename... A>
bool launch(void (*kernel)(A...), const Geometry &g, void **arguments)
{
    static Pool pool;
    unsigned size = g.threads.x * g.threads.y * g.threads.z, blocks = g.grid.x * g.grid.y * g.grid.z;
    unsigned together = g.cooperative ? blocks : std::max(1u, std::min(blocks, LARGEST / size));
    if (g.cooperative && blocks * size > 4 * LARGEST)
        return false;
    for (unsigned first = 0; first < blocks; first += together) {
        std::vector<std::unique_ptr<Block>> running;
        for (unsigned n = first; n < std::min(blocks, first + together); n++)
            running.push_back(std::make_unique<Block>(size, g.shared));
        auto one = [&](unsigned n) {
            unsigned b = first + n / size;
            thread = n % size;
            block = running[n / size].get();
            gridDim = g.grid;
            blockDim = g.threads;
            blockIdx = {b % g.grid.x, b / g.grid.x % g.grid.y, b / g.grid.x / g.grid.y};
            ::flush();
            threadIdx = {thread % g.threads.x, thread / g.threads.x % g.threads.y, thread / g.threads.x / g.threads.y};
            [&]<size_t... I>(std::index_sequence<I...>) {
                kernel(*static_cast<std::remove_cvref_t<A> *>(arguments[I])...);
            }(std::index_sequence_for<A...>{});
        };
        pool.run(unsigned(running.size()) * size, [](void *f, unsigned n) { (*static_cast<decltype(one) *>(f))(n); }, &one);
        for (const auto &block : running)
            if (!block->unharmed())
                std::abort();
    }
    return true;
}

} // namespace emulation

namespace emulation {

template <typename... A>
int sizes_of(void (*)(A...), unsigned *sizes)
{
    unsigned found[] = {unsigned(sizeof(A))...};
    for (size_t n = 0; n < sizeof...(A); n++)
        sizes[n] = found[n];
    return sizeof...(A);
}

} // namespace emulation

/* What the library offers for each kernel: a launch, and the number and sizes of its arguments. */
#define EXPORT(name)                                                                                          \
    extern "C" int launch_##name(const unsigned *sizes, size_t shared, int cooperative, void **arguments)     \
    {                                                                                                         \
        emulation::Geometry g{{sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]}, shared,         \
                              cooperative != 0};                                                              \
        return emulation::launch(name, g, arguments) ? 0 : 1;                                                 \
    }                                                                                                         \
    extern "C" int arguments_##name(unsigned *sizes) { return emulation::sizes_of(name, sizes); }

inline void __syncthreads() { emulation::block->meeting.meet(); }
inline void __syncwarp() { emulation::warp().meeting.meet(); }

DEVICE unsigned char *shared_memory() { return emulation::block->bytes(); }

/* With FLUSH a thread flushes subnormal numbers to zero, as C++ compiled with -ftz=true does on a GPU, and what
   is PTX there keeps them: the control register changes around it. Volatile statements keep their order. */
#ifdef FLUSH
inline const unsigned FLUSHED = 0x9fc0, KEPT = 0x1f80;
inline void flush() { asm volatile("ldmxcsr %0" : : "m"(FLUSHED)); }
inline void made_by_here(float &a) { asm volatile("" : "+x"(a)); }
template <typename F, typename... A> DEVICE float exact(F operation, A... numbers)
{
    (made_by_here(numbers), ...);
    asm volatile("ldmxcsr %0" : : "m"(KEPT));
    (made_by_here(numbers), ...);
    float made = operation(numbers...);
    made_by_here(made);
    flush();
    made_by_here(made);
    return made;
}
#else
inline void flush() {}
template <typename F, typename... A> DEVICE float exact(F operation, A... numbers) { return operation(numbers...); }
#endif

DEVICE float negated(float a) { return std::bit_cast<float>(std::bit_cast<unsigned>(a) ^ 1u << 31); }
DEVICE double negated(double a) { return -a; }
DEVICE float fused(float a, float b, float c)
{
    return exact([](float p, float q, float r) { return std::fma(p, q, r); }, a, b, c);
}

DEVICE double fused(double a, double b, double c) { return std::fma(a, b, c); }
DEVICE float sum(float a, float b) { return exact([](float p, float q) { return p + q; }, a, b); }
DEVICE double sum(double a, double b) { return a + b; }
DEVICE float product(float a, float b) { return exact([](float p, float q) { return p * q; }, a, b); }
DEVICE double product(double a, double b) { return a * b; }
DEVICE float quotient(float a, float b) { return exact([](float p, float q) { return p / q; }, a, b); }
DEVICE double quotient(double a, double b) { return a / b; }

DEVICE float square_root(float a) { return std::sqrt(a); }
DEVICE double square_root(double a) { return std::sqrt(a); }

using std::exp, std::log;

DEVICE unsigned long long upper_product(unsigned long long a, unsigned long long b)
{
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

DEVICE unsigned bits_of(float a) { return std::bit_cast<unsigned>(a); }
DEVICE unsigned long long bits_of(double a) { return std::bit_cast<unsigned long long>(a); }
DEVICE float number_of(unsigned a) { return std::bit_cast<float>(a); }
DEVICE double number_of(unsigned long long a) { return std::bit_cast<double>(a); }

/* A GPU's estimates are a few units off; ESTIMATE_OFF says how many, for a test. */
#ifndef ESTIMATE_OFF
#define ESTIMATE_OFF 1
#endif
DEVICE float reciprocal(float a)
{
    float exact = 1 / a;
    return std::isnormal(exact) ? number_of(bits_of(exact) + ESTIMATE_OFF) : exact * 0;
}
DEVICE float power_of_two(float a) { return std::exp2(a); }

DEVICE float half_to_float(unsigned short a)
{
    unsigned sign = (a & 0x8000u) << 16, exponent = a >> 10 & 0x1fu, fraction = a & 0x3ffu;
    if (exponent == 0x1f)
        return number_of(sign | 0x7f800000u | fraction << 13);
    if (exponent)
        return number_of(sign | (exponent + 112) << 23 | fraction << 13);
    float small = std::ldexp(float(fraction), -24);
    return sign ? -small : small;
}

DEVICE unsigned short half_from_float(float a)
{
    unsigned sign = bits_of(a) >> 16 & 0x8000u;
    float m = std::fabs(a);
    if (!(m < 65520.0f))
        return static_cast<unsigned short>(sign | (std::isnan(a) ? 0x7fffu : 0x7c00u));
    int exponent = std::max(m == 0 ? -14 : std::ilogb(m), -14);
    float steps = std::nearbyint(std::ldexp(m, 10 - exponent));       /* of 2**(exponent - 10), ties to even */
    return static_cast<unsigned short>(sign | (unsigned(exponent + 14) * 1024 + unsigned(steps)));
}

DEVICE void store_release(unsigned *at, unsigned value)
{
    std::atomic_ref<unsigned>(*at).store(value, std::memory_order_release);
}

DEVICE unsigned load_acquire(const unsigned *at)
{
    return std::atomic_ref<unsigned>(*const_cast<unsigned *>(at)).load(std::memory_order_acquire);
}

DEVICE unsigned load_relaxed(const unsigned *at)
{
    return std::atomic_ref<unsigned>(*const_cast<unsigned *>(at)).load(std::memory_order_relaxed);
}

DEVICE void store_relaxed(unsigned *at, unsigned value)
{
    std::atomic_ref<unsigned>(*at).store(value, std::memory_order_relaxed);
}

DEVICE void store_to_host(unsigned *at, unsigned value) { store_relaxed(at, value); }

DEVICE void rest() { emulation::yield(); }

DEVICE bool any_of_block(bool a)
{
    emulation::Block &block = *emulation::block;
    if (a)
        block.any.store(true, std::memory_order_relaxed);
    block.meeting.meet();
    bool any = block.any.load(std::memory_order_relaxed);
    block.meeting.meet();
    if (emulation::thread == 0)
        block.any.store(false, std::memory_order_relaxed);
    block.meeting.meet();
    return any;
}

DEVICE unsigned long long nanoseconds()
{
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<unsigned long long>(std::chrono::nanoseconds(now).count());
}

DEVICE void copy_fresh(void *to, const void *from)
{
    bool aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
    if (!aligned)
        std::abort();
    std::memcpy(to, from, 16);
}

template <typename A> DEVICE A load_if(bool wanted, const A *at) { return wanted ? *at : A(0); }

template <typename A> DEVICE void copy_soon(A *to, const A *from) { std::memcpy(to, from, sizeof(A)); }

DEVICE void copies_done() {}

struct Words {
    unsigned at[4];
};

DEVICE Words read_fresh(const void *from)
{
    Words words;
    if (reinterpret_cast<uintptr_t>(from) % 16)
        std::abort();
    for (int n = 0; n < 4; n++)
        words.at[n] = load_relaxed(static_cast<const unsigned *>(from) + n);
    return words;
}

DEVICE Words words_at(const void *from)
{
    Words words;
    if (reinterpret_cast<uintptr_t>(from) % 16)
        std::abort();
    std::memcpy(&words, from, 16);
    return words;
}

struct Pair {
    unsigned at[2];
};

DEVICE Pair pair_at(const unsigned *from)
{
    Pair pair;
    if (reinterpret_cast<uintptr_t>(from) % 8)
        std::abort();
    std::memcpy(&pair, from, 8);
    return pair;
}

template <typename A> DEVICE A from_lane(A a, int lane)
{
    emulation::Warp &warp = emulation::warp();
    std::memcpy(warp.words[emulation::lane()], &a, sizeof(A));
    warp.meeting.meet();
    std::memcpy(&a, warp.words[lane], sizeof(A));
    warp.meeting.meet();
    return a;
}

#if defined(FLOAT16) || defined(BFLOAT16) || defined(TF32)
#ifdef TF32
DEVICE unsigned tf32_from_float(float a)
{
    unsigned bits = bits_of(a);
    bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return finite ? (bits + 0x1000u) & ~0x1fffu : std::isnan(a) ? bits | 0x400000u : bits;
}

constexpr int IN_WORD = 1;
DEVICE float number_in(unsigned word, int) { return number_of(word & ~0x1fffu); }   /* as the hardware cuts */
#else
constexpr int IN_WORD = 2;
DEVICE float number_in(unsigned word, int which)
{
    unsigned short bits = static_cast<unsigned short>(word >> 16 * which);
#ifdef FLOAT16
    return half_to_float(bits);
#else
    return number_of(unsigned(bits) << 16);
#endif
}
#endif

/* In scalar loops, by the places that the instruction gives every lane's numbers. */
DEVICE void multiply_16_8(float *c, const unsigned *a, const unsigned *b)
{
    emulation::Warp &warp = emulation::warp();
    unsigned lane = emulation::lane();
    auto &own = warp.words[lane];
    own[0] = uint64_t(a[1]) << 32 | a[0];
    own[1] = uint64_t(a[3]) << 32 | a[2];
    own[2] = uint64_t(b[1]) << 32 | b[0];
    warp.meeting.meet();
    for (int at = 0; at < 4; at++) {
        int row = int(lane / 4) + at / 2 * 8, column = int(lane % 4) * 2 + at % 2;
        for (int word = 0; word < 8; word++) {
            int later = word / 4;
            unsigned left = unsigned(warp.words[row % 8 * 4 + word % 4][later] >> (row / 8 * 32));
            unsigned right = unsigned(warp.words[column * 4 + word % 4][2] >> (later * 32));
            for (int which = 0; which < IN_WORD; which++)
                c[at] += number_in(left, which) * number_in(right, which);
        }
    }
    warp.meeting.meet();
}
#endif
