/* Enforce IEEE 754 arithmetic, even if another library changed the floating-point mode. */
#ifndef XPLSTM_IEEE_H
#define XPLSTM_IEEE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Flush-to-zero and other rounding modes, which some libraries enable, would change bits: XPL-EXACT-001. */
#if defined(__x86_64__)
static inline uint64_t enter_ieee(void)
{
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}
static inline void leave_ieee(uint64_t before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
static inline uint64_t enter_ieee(void)
{
    uint64_t before, none = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(none));
    return before;
}
static inline void leave_ieee(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static inline uint64_t enter_ieee(void) { return 0; }
static inline void leave_ieee(uint64_t before) { (void)before; }
#endif

#endif
